/* Promotion: blocks on their way from host memory or disk into device slots. A load fills one slot
 * for one object; leases that want the same object wait for the same load. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "kvstore/disk/read.h"

#include <stdlib.h>
#include <string.h>

typedef struct waiting_lease {
    kvist_lease_t *lease;
    struct waiting_lease *next;
} waiting_lease_t;

struct kv_load {
    kv_read_t read; /* first */
    kvist_store_t *store;
    uint32_t slot;
    waiting_lease_t *waiting;
};

/* The bytes are proved where they have come to: until the load has ended well the slot is nobody's.
 */
static kv_status_t move_to_slot(kv_read_t *read, const kv_read_bytes_t *bytes)
{
    const kv_load_t *load = (const kv_load_t *)read;
    kvist_store_t *store = load->store;
    const size_t sums_bytes = bytes->layout->unit_count * sizeof(uint64_t);
    uint64_t *sums = kv_allocate(sums_bytes);
    kv_status_t status = kv_device_slot_in(store, load->slot, bytes->object, sums);
    if (status == KV_OK && memcmp(sums, bytes->checksums, sums_bytes) != 0) {
        /* Right where they were read from: they were damaged on their way, not for good. */
        status = kv_layout_units_agree(bytes->layout, bytes->object, bytes->checksums) ? KV_IO
                                                                                       : KV_CORRUPT;
    }
    free(sums);
    if (status != KV_OK) {
        return status;
    }
    memcpy(kv_pool_words(&store->device_pool, load->slot), bytes->words,
        store->block_words * sizeof *bytes->words);
    return KV_OK;
}

static void load_ended(kv_read_t *read, bool try_again)
{
    kv_load_t *load = (kv_load_t *)read;
    kvist_store_t *store = load->store;
    kv_object_t *object = kv_table_at(store->table, read->object);
    bool wanted = object->device_slot == load->slot;
    store->loads[load->slot] = NULL;
    if (read->status == KV_OK && wanted && (object->flags & KV_OBJECT_DEAD) == 0) {
        kv_object_enter_device(store, read->object, load->slot);
    } else {
        kv_pool_give(&store->device_pool, load->slot);
        if (wanted) {
            object->device_slot = KV_SLOT_NONE;
        }
    }
    kv_object_settle(store, read->object);
    for (waiting_lease_t *waiting = load->waiting; waiting != NULL;) {
        waiting_lease_t *next = waiting->next;
        kv_lease_load_ended(waiting->lease, try_again);
        free(waiting);
        waiting = next;
    }
    free(load);
}

static void wait_for(kv_load_t *load, kvist_lease_t *lease)
{
    waiting_lease_t *waiting = kv_allocate(sizeof *waiting);
    *waiting = (waiting_lease_t){lease, load->waiting};
    load->waiting = waiting;
    kv_lease_load_started(lease);
}

static kv_load_t *plan_load(kvist_store_t *store, uint32_t number)
{
    kv_load_t *load = kv_allocate(sizeof *load);
    *load = (kv_load_t){
        .read = {.move = move_to_slot, .ended = load_ended},
        .store = store,
        .slot = kv_pool_take(&store->device_pool),
    };
    KV_CHECK(load->slot != KV_SLOT_NONE);
    kv_read_plan(store, number, &load->read);
    kv_pool_set_loading(&store->device_pool, load->slot, number);
    kv_table_at(store->table, number)->device_slot = load->slot;
    store->loads[load->slot] = load;
    return load;
}

void kv_load_start(kvist_store_t *store, kvist_lease_t *lease)
{
    uint32_t found = kv_lease_found_count(lease), count = 0;
    kv_read_t **reads = kv_allocate_array(found + 1, sizeof *reads);
    for (uint32_t block = 0; block < found; block++) {
        uint32_t number = kv_lease_object(lease, block);
        kv_object_t *object = kv_table_at(store->table, number);
        if (kv_object_on_device(store, object)) {
            continue;
        }
        kv_load_t *load = object->device_slot != KV_SLOT_NONE ? store->loads[object->device_slot]
                                                              : plan_load(store, number);
        if (load->waiting == NULL) {
            reads[count++] = &load->read;
        }
        wait_for(load, lease);
    }
    kv_reads_start(store, reads, count);
    free(reads);
}
