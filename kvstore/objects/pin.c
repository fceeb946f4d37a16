/* Makes the host tier's memory known to the device, a chunk at a time and behind the store's back:
 * what is not pinned yet moves all the same, only slower. Pinning touches every page, which for a
 * large tier takes many seconds, so nothing waits for it but the close. The disk's buffers are few,
 * and pinned at once. */
#include "kvstore/store_internal.h"

#include "base/log.h"
#include "base/memory.h"
#include "kernels/moves.h"

#include <stdatomic.h>
#include <stdlib.h>

struct kv_pinning {
    kv_device_t *device;
    char *base;
    size_t bytes;
    pthread_t thread;
    atomic_bool stop;
    size_t pinned_bytes; /* the thread's; after it was joined, the closer's */
};

#define CHUNK_BYTES ((size_t)256 << 20)

static size_t chunk_at(const kv_pinning_t *pinning, size_t at)
{
    const size_t left = pinning->bytes - at;
    return left < CHUNK_BYTES ? left : CHUNK_BYTES;
}

static void *pin_all(void *argument)
{
    kv_pinning_t *pinning = argument;
    while (pinning->pinned_bytes < pinning->bytes && !atomic_load(&pinning->stop)) {
        kv_error_t error;
        const size_t bytes = chunk_at(pinning, pinning->pinned_bytes);
        if (kv_device_pin(pinning->device, pinning->base + pinning->pinned_bytes, bytes, &error) !=
            KV_OK) {
            kv_log_warn("store",
                "host tier is not pinned any further, moves are slower pinned_mib %zu cause %s",
                pinning->pinned_bytes >> 20, error.text);
            break;
        }
        pinning->pinned_bytes += bytes;
    }
    return NULL;
}

void kv_pin_open(kvist_store_t *store)
{
    const kv_arena_t *arena = &store->groups[0].host_arena; /* no other group is on the device */
    if (store->device == NULL || store->device->ops->pin == NULL || arena->region.base == NULL) {
        return;
    }
    kv_pinning_t *pinning = kv_allocate(sizeof *pinning);
    pinning->device = store->device;
    pinning->base = arena->region.base;
    pinning->bytes = arena->region.bytes;
    if (pthread_create(&pinning->thread, NULL, pin_all, pinning) != 0) {
        kv_log_warn("store", "host tier is not pinned, moves are slower cause no thread");
        free(pinning);
        return;
    }
    store->pinning = pinning;
}

void kv_pin_close(kvist_store_t *store)
{
    kv_pinning_t *pinning = store->pinning;
    if (pinning == NULL) {
        return;
    }
    atomic_store(&pinning->stop, true);
    pthread_join(pinning->thread, NULL);
    for (size_t at = 0; at < pinning->pinned_bytes;) {
        const size_t bytes = chunk_at(pinning, at);
        kv_device_unpin(pinning->device, pinning->base + at, bytes);
        at += bytes;
    }
    free(pinning);
    store->pinning = NULL;
}

void kv_pin_staging(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_error_t error;
    if (store->device == NULL || store->device->ops->pin == NULL) {
        return;
    }
    disk->staging_pinned = kv_device_pin(store->device, disk->staging_region.base,
                               disk->staging_region.bytes, &error) == KV_OK;
    if (!disk->staging_pinned) {
        kv_log_warn("store", "disk buffers are not pinned, moves are slower cause %s", error.text);
    }
}

void kv_unpin_staging(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    if (disk->staging_pinned) {
        kv_device_unpin(store->device, disk->staging_region.base, disk->staging_region.bytes);
    }
}
