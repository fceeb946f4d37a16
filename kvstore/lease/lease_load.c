/* Loading: found blocks into the caller's memory.
 *
 * Each block is one read (read.h); its selected units are proved while they are copied to their
 * places. A block whose bytes prove damaged in one tier is read again from another that has it. The
 * load is over when all its reads are; what counts is the good prefix.
 *
 * A block that is loaded from disk for the second time goes to host memory as well, where it is
 * found the next time: what is read once would only push out what is read often. */
#include "kvstore/lease/lease_internal.h"

#include "base/checksum.h"
#include "base/memory.h"
#include "kvstore/disk/read.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/pieces.h"

#include <stdlib.h>
#include <string.h>

typedef struct lease_load lease_load_t;

typedef struct {
    kv_read_t read; /* first */
    lease_load_t *load;
    size_t offset; /* of the block's bytes in the pieces */
    bool good;
    uint32_t host_slot; /* promoted to it; KV_SLOT_NONE: not */
} block_t;

struct lease_load {
    kv_transfer_t transfer; /* first */
    kvist_selection_t selection;
    kv_pieces_t pieces;
    uint64_t *checksums; /* of the selected units, for the caller; NULL: it wants none */
    uint32_t block_units;
    block_t *blocks; /* [block_count] */
    uint32_t block_count, reads_out;
    kvist_miss_t miss; /* why there are fewer blocks than asked for */
    kvist_loaded_t done;
    void *context;
};

/* ---- promotion ---- */

static kv_store_group_t *group_of(const block_t *block)
{
    return &block->load->transfer.lease->store->groups[block->load->selection.group];
}

static void plan_promotion(block_t *block)
{
    kvist_store_t *store = block->load->transfer.lease->store;
    kv_object_t *object = kv_table_at(store->table, block->read.object);
    bool again = (object->flags & KV_OBJECT_READ) != 0, coming;
    block->host_slot = KV_SLOT_NONE;
    if (block->read.tier == KVIST_TIER_DISK) {
        object->flags |= KV_OBJECT_READ;
        if (again) {
            block->host_slot = kv_evict_host(store, kv_object_family(store, object), &coming);
        }
    }
}

/* Units first .. end - 1 of the object into its slot, proved. */
static kv_status_t move_to_host(
    const block_t *block, const kv_read_bytes_t *bytes, uint32_t first, uint32_t end)
{
    kv_store_group_t *group = group_of(block);
    if (block->host_slot == KV_SLOT_NONE) {
        return KV_OK;
    }
    char *to = kv_group_host_bytes(group, block->host_slot);
    uint64_t *checksums = kv_pool_checksums(&group->host_pool, block->host_slot);
    for (uint32_t unit = first; unit < end; unit++) {
        size_t count, offset = kv_layout_unit(bytes->layout, unit, &count);
        const char *here = (const char *)bytes->object + offset;
        if (block->load->transfer.lease->store->unverified) {
            memcpy(to + offset, here, count);
            checksums[unit] = bytes->checksums[unit];
            continue;
        }
        checksums[unit] = kv_checksum_copy(to + offset, here, count);
        if (checksums[unit] != bytes->checksums[unit]) {
            return KV_CORRUPT;
        }
    }
    if (end == bytes->layout->unit_count) {
        memcpy(kv_pool_words(&group->host_pool, block->host_slot), bytes->words,
            bytes->layout->block_words * sizeof *bytes->words);
    }
    return KV_OK;
}

/* The slot becomes the object's, unless that has another one, or died. */
static void end_promotion(block_t *block)
{
    kvist_store_t *store = block->load->transfer.lease->store;
    kv_object_t *object = kv_table_at(store->table, block->read.object);
    kv_pool_t *pool = &group_of(block)->host_pool;
    if (block->host_slot == KV_SLOT_NONE) {
        return;
    }
    if (block->good && !kv_object_on_host(object) && (object->flags & KV_OBJECT_DEAD) == 0) {
        kv_object_enter_host(store, block->read.object, block->host_slot);
        store->stats.tiers[KVIST_TIER_HOST].written_bytes += group_of(block)->layout.object_bytes;
    } else {
        kv_pool_give(pool, block->host_slot);
    }
    block->host_slot = KV_SLOT_NONE;
}

/* ---- reads ---- */

/* A key is believed when it is matched; equality is checked before the bytes are used. What lies
 * beyond the query this lease stored itself. */
static bool words_agree(const block_t *block, const kv_read_bytes_t *bytes)
{
    const kvist_lease_t *lease = block->load->transfer.lease;
    uint32_t number = block->read.expected.position, count = bytes->layout->block_words;
    return number >= lease->query_blocks ||
           memcmp(bytes->words, lease->words + (size_t)number * count,
               count * sizeof *bytes->words) == 0;
}

static kv_status_t move_to_pieces(kv_read_t *read, const kv_read_bytes_t *bytes)
{
    const block_t *block = (const block_t *)read;
    const lease_load_t *load = block->load;
    if (!words_agree(block, bytes)) {
        return KV_CORRUPT;
    }
    kv_cursor_t to = kv_pieces_at(&load->pieces, block->offset);
    uint32_t cursor = 0, unit, to_host = 0;
    size_t summed = (size_t)(block - load->blocks) * load->block_units;
    while (
        (unit = kv_layout_next_selected(bytes->layout, &load->selection, &cursor)) != UINT32_MAX) {
        size_t count, offset = kv_layout_unit(bytes->layout, unit, &count);
        const char *here = (const char *)bytes->object + offset;
        /* Up to this unit, which is then copied again while it is in the processor's cache. */
        if (move_to_host(block, bytes, to_host, unit + 1) != KV_OK) {
            return KV_CORRUPT;
        }
        to_host = unit + 1;
        if (load->transfer.lease->store->unverified) {
            kv_cursor_copy(&to, here, count);
            continue;
        }
        uint64_t checksum = kv_cursor_write(&to, here, count);
        if (bytes->checksums != NULL && checksum != bytes->checksums[unit]) {
            return KV_CORRUPT;
        }
        if (load->checksums != NULL) {
            load->checksums[summed++] = checksum;
        }
    }
    return move_to_host(block, bytes, to_host, bytes->layout->unit_count);
}

static void tell(kv_transfer_t *transfer)
{
    lease_load_t *load = (lease_load_t *)transfer;
    kvist_store_t *store = transfer->lease->store;
    uint32_t good = 0;
    while (good < load->block_count && load->blocks[good].good) {
        good++;
    }
    kvist_miss_t miss = load->miss;
    if (good < load->block_count) {
        miss =
            load->blocks[good].read.status == KV_CORRUPT ? KVIST_MISS_DAMAGED : KVIST_MISS_FAILED;
        store->stats.miss_count[miss]++;
    }
    for (uint32_t i = 0; i < good; i++) {
        store->stats.tiers[load->blocks[i].read.tier].hit_blocks++;
    }
    kv_status_t status = transfer->lease->released ? KV_CANCELLED : KV_OK;
    load->done(load->context, transfer->lease, status, good, miss);
    kv_pieces_release(&load->pieces);
    free(load->blocks);
    free(load);
}

static void read_ended(kv_read_t *read, bool try_again)
{
    block_t *block = (block_t *)read;
    lease_load_t *load = block->load;
    kvist_store_t *store = load->transfer.lease->store;
    block->good = read->status == KV_OK;
    end_promotion(block);
    if (try_again && !load->transfer.lease->released) {
        kv_read_plan(store, read->object, read);
        kv_reads_start(store, &read, 1);
        return;
    }
    kv_object_release(store, read->object);
    if (--load->reads_out == 0) {
        kv_transfer_end(&load->transfer);
    }
}

/* The object that a block of the selection is read from; KV_OBJECT_NONE: it is not stored. */
static uint32_t object_of(const kvist_lease_t *lease, uint32_t block, uint32_t group)
{
    const kvist_store_t *store = lease->store;
    uint32_t number = lease->objects[block];
    if (number == KV_OBJECT_NONE || kv_lease_gone(lease, block)) {
        return KV_OBJECT_NONE;
    }
    kvist_key_t key = kv_identity_group_key(&kv_table_at(store->table, number)->key, group);
    return group == 0 ? number : kv_table_find(store->table, &key);
}

/* Plans a read for each block up to the first that is not there any more. */
static void plan(lease_load_t *load, size_t block_bytes)
{
    kvist_lease_t *lease = load->transfer.lease;
    kv_why_make_room(lease);
    for (uint32_t i = 0; i < load->selection.block_count; i++) {
        uint32_t number = object_of(lease, load->selection.first_block + i, load->selection.group);
        if (number == KV_OBJECT_NONE) {
            bool held = load->selection.first_block + i < lease->held_count;
            load->miss = load->selection.group == 0 && held ? KVIST_MISS_DAMAGED : KVIST_MISS_NEW;
            return;
        }
        block_t *block = &load->blocks[load->block_count++];
        *block = (block_t){.read = {.move = move_to_pieces, .ended = read_ended},
            .load = load,
            .offset = i * block_bytes};
        kv_object_hold(lease->store, number);
        kv_read_plan(lease->store, number, &block->read);
        plan_promotion(block);
    }
}

static void start(lease_load_t *load)
{
    uint32_t count = load->block_count;
    kv_read_t **reads = kv_allocate_array(count + 1, sizeof *reads);
    for (uint32_t i = 0; i < count; i++) {
        reads[i] = &load->blocks[i].read;
    }
    load->reads_out = count;
    if (count == 0) {
        kv_transfer_end(&load->transfer);
    } else {
        kv_reads_start(load->transfer.lease->store, reads, count);
    }
    free(reads);
}

kv_status_t kv_embedded_lease_load(kvist_lease_t *lease, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, kvist_loaded_t done, void *context)
{
    return kv_lease_load_summed(lease, selection, pieces, piece_count, NULL, done, context);
}

kv_status_t kv_lease_load_summed(kvist_lease_t *lease, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, uint64_t *checksums_out, kvist_loaded_t done,
    void *context)
{
    kvist_store_t *store = lease->store;
    bool settled = lease->state == KV_LEASE_MATCHED || lease->state == KV_LEASE_READY;
    if (lease->released || !settled || selection->group >= store->group_count ||
        selection->first_block > lease->sealed_count ||
        selection->block_count > lease->sealed_count - selection->first_block) {
        return KV_INVALID;
    }
    const kv_layout_t *layout = &store->groups[selection->group].layout;
    lease_load_t *load = kv_allocate(sizeof *load);
    *load = (lease_load_t){
        .transfer = {.tell = tell, .lease = lease},
        .selection = *selection,
        .checksums = checksums_out,
        .done = done,
        .context = context,
    };
    bool good = kv_layout_resolve(layout, &load->selection);
    size_t block_bytes = good ? kv_layout_selected_bytes(layout, &load->selection) : 0;
    if (!good ||
        !kv_pieces_init(&load->pieces, pieces, piece_count, selection->block_count * block_bytes)) {
        free(load);
        return KV_INVALID;
    }
    load->block_units = kv_layout_selected_units(layout, &load->selection);
    load->blocks = kv_allocate_array(selection->block_count + 1, sizeof *load->blocks);
    lease->transfers_out++;
    plan(load, block_bytes);
    start(load);
    return KV_OK;
}
