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
    kvist_lease_t *layered_for; /* it comes layer by layer, for this lease; NULL: as a whole */
    waiting_lease_t *waiting;
};

static void take_words(const kv_load_t *load, const uint32_t *words)
{
    kvist_store_t *store = load->store;
    memcpy(
        kv_pool_words(&store->device_pool, load->slot), words, store->block_words * sizeof *words);
}

/* The bytes are proved where they have come to: until the load has ended well the slot is nobody's.
 */
static kv_status_t move_to_slot(kv_read_t *read, const kv_read_bytes_t *bytes)
{
    const kv_load_t *load = (const kv_load_t *)read;
    const size_t sums_bytes = bytes->layout->unit_count * sizeof(uint64_t);
    uint64_t *sums = kv_allocate(sums_bytes);
    kv_status_t status = kv_device_slot_in(load->store, load->slot, bytes->object, sums);
    if (status == KV_OK && memcmp(sums, bytes->checksums, sums_bytes) != 0) {
        /* Right where they were read from: they were damaged on their way, not for good. */
        status = kv_layout_units_agree(bytes->layout, bytes->object, bytes->checksums) ? KV_IO
                                                                                       : KV_CORRUPT;
    }
    free(sums);
    if (status == KV_OK) {
        take_words(load, bytes->words);
    }
    return status;
}

/* What is not right in the slot is no loss yet: the host looks at the record itself. */
static kv_status_t unpack_to_slot(kv_read_t *read, const kv_read_packed_t *packed)
{
    const kv_load_t *load = (const kv_load_t *)read;
    const size_t sums_bytes = packed->layout->unit_count * sizeof(uint64_t);
    uint64_t *sums = kv_allocate(sums_bytes);
    kv_status_t status =
        kv_device_slot_unpack(load->store, load->slot, packed->payload, packed->lengths, sums);
    if (status == KV_OK && memcmp(sums, packed->checksums, sums_bytes) != 0) {
        status = KV_CORRUPT;
    }
    free(sums);
    if (status == KV_OK) {
        take_words(load, packed->words);
    }
    return status;
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
        if (load->layered_for != NULL && kv_lease_keeps_slots(load->layered_for)) {
            kv_pool_keep_private(&store->device_pool, load->slot);
        } else {
            kv_pool_give(&store->device_pool, load->slot);
        }
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
        .read = {.move = move_to_slot, .move_packed = unpack_to_slot, .ended = load_ended},
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

bool kv_load_is_layered(const kvist_store_t *store, uint32_t slot, const kvist_lease_t *lease)
{
    return store->loads[slot] != NULL && store->loads[slot]->layered_for == lease;
}

/* Those from host memory, where the lease wants them layer by layer and that is worth it. What is
 * left of the reads: how many. */
static uint32_t start_layers(
    kvist_store_t *store, kvist_lease_t *lease, kv_read_t **reads, uint32_t count)
{
    kv_layered_t *layered = kv_allocate_array(count + 1, sizeof *layered);
    uint32_t layered_count = 0, left = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (reads[i]->tier == KVIST_TIER_HOST) {
            layered[layered_count++] = (kv_layered_t){reads[i], ((kv_load_t *)reads[i])->slot};
        } else {
            reads[left++] = reads[i];
        }
    }
    if (kv_load_layers_pay(store, layered_count)) {
        for (uint32_t i = 0; i < layered_count; i++) {
            ((kv_load_t *)layered[i].read)->layered_for = lease;
        }
        kv_load_layers(lease, layered, layered_count);
    } else {
        for (uint32_t i = 0; i < layered_count; i++) {
            reads[left++] = layered[i].read;
        }
    }
    free(layered);
    return left;
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
    if (count > 0 && kv_lease_wants_layers(lease)) {
        count = start_layers(store, lease, reads, count);
    }
    kv_reads_start(store, reads, count);
    free(reads);
}
