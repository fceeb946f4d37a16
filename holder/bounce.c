#include "holder/bounce.h"

#include "base/check.h"
#include "base/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct kv_bounce {
    kv_device_t device; /* first */
    char *memory;
    size_t block_bytes;
    uint32_t count, free_count, user_count;
    uint32_t *free_slots; /* [free_count], a stack: what was used last is in the caches */
};

static kv_status_t copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(device_to, from, bytes);
    return KV_OK;
}

static kv_status_t copy_out(
    kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, device_from, bytes);
    return KV_OK;
}

static const kv_device_ops_t OPS = {
    .name = "memory", .host = true, .copy_in = copy_in, .copy_out = copy_out};

kv_status_t kv_bounce_create(
    size_t block_bytes, size_t bytes, kv_bounce_t **bounce_out, kv_error_t *error)
{
    size_t fit = bytes / block_bytes;
    uint32_t count = fit > KV_BOUNCE_BLOCKS_MIN ? (uint32_t)fit : KV_BOUNCE_BLOCKS_MIN;
    void *memory = mmap(NULL, count * block_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return kv_fail_errno(error, errno, "%zu bytes to send from", count * block_bytes);
    }
    kv_bounce_t *bounce = kv_allocate(sizeof *bounce);
    *bounce = (kv_bounce_t){
        .device.ops = &OPS, .memory = memory, .block_bytes = block_bytes, .count = count};
    bounce->free_slots = kv_allocate_array(count, sizeof *bounce->free_slots);
    for (uint32_t slot = count; slot > 0; slot--) {
        bounce->free_slots[bounce->free_count++] = slot - 1;
    }
    *bounce_out = bounce;
    return KV_OK;
}

void kv_bounce_destroy(kv_bounce_t *bounce)
{
    if (bounce != NULL) {
        munmap(bounce->memory, bounce->count * bounce->block_bytes);
        free(bounce->free_slots);
        free(bounce);
    }
}

kv_device_t *kv_bounce_device(kv_bounce_t *bounce)
{
    return &bounce->device;
}

void *kv_bounce_block(const kv_bounce_t *bounce, uint32_t slot)
{
    return bounce->memory + slot * bounce->block_bytes;
}

uint32_t kv_bounce_count(const kv_bounce_t *bounce)
{
    return bounce->count;
}

uint32_t kv_bounce_free_count(const kv_bounce_t *bounce)
{
    return bounce->free_count;
}

void kv_bounce_join(kv_bounce_t *bounce)
{
    bounce->user_count++;
}

void kv_bounce_leave(kv_bounce_t *bounce)
{
    KV_CHECK(bounce->user_count > 0);
    bounce->user_count--;
}

uint32_t kv_bounce_share(const kv_bounce_t *bounce)
{
    uint32_t share = bounce->user_count > 0 ? bounce->count / bounce->user_count : bounce->count;
    return share > 0 ? share : 1;
}

void kv_bounce_take(kv_bounce_t *bounce, uint32_t count, uint32_t *slots_out)
{
    KV_CHECK(count <= bounce->free_count);
    for (uint32_t i = 0; i < count; i++) {
        slots_out[i] = bounce->free_slots[--bounce->free_count];
    }
}

void kv_bounce_give(kv_bounce_t *bounce, uint32_t count, const uint32_t *slots)
{
    KV_CHECK(count <= bounce->count - bounce->free_count);
    for (uint32_t i = 0; i < count; i++) {
        bounce->free_slots[bounce->free_count++] = slots[i];
    }
}
