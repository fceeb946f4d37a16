/* Device slots: the inner store's, filled with what the service has.
 *
 *   asked -> the inner store's prepare -> loading (what the device lacks, into private slots)
 *     -> sealed in the inner store, up to the first that could not be had -> answered
 *
 * What was found at the service becomes an object of the device tier like any other, under the
 * terms that it has there. */
#include "kvstore/attach/attached_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/attach/attached_ops.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/lease_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct kv_attached_prepare {
    kv_attached_transfer_t transfer; /* first */
    bool loading;
    kv_region_t bounce;    /* where a device's memory is no address of this process */
    uint32_t first, count; /* blocks that are loaded */
    uint32_t good;         /* of them, in the bounce or the slots */
    uint32_t copied;       /* from the bounce into the slots */
    kv_task_t task;
    kv_status_t status;
    kvist_prepared_t done;
    void *context;
} prepare_t;

static void tell(kv_attached_transfer_t *transfer)
{
    prepare_t *prepare = (prepare_t *)transfer;
    kv_attached_lease_t *lease = transfer->lease;
    lease->prepare = NULL;
    lease->prepared = prepare->status == KV_OK;
    kvist_match_t match = lease->match;
    kv_status_t status = lease->released ? KV_CANCELLED : prepare->status;
    prepare->done(prepare->context, (kvist_lease_t *)lease, status, &match);
    kv_region_unmap(&prepare->bounce);
    free(prepare);
}

static void answer(prepare_t *prepare, kv_status_t status)
{
    prepare->status = status;
    if (status == KV_OK && !prepare->transfer.lease->released) {
        kv_through_catch_up(prepare->transfer.lease); /* what the device alone has */
    }
    kv_attached_transfer_end(&prepare->transfer);
}

/* ---- what was loaded ---- */

static const kv_alike_t *alike_of(const kv_attached_lease_t *lease, uint32_t block)
{
    const kv_alike_t *alike = lease->alike;
    while (block >= alike->end_block) {
        alike++;
    }
    return alike;
}

/* The match is what the device has by now, in the tiers that it came from. */
static void shorten(kv_attached_lease_t *lease, uint32_t block_count, kvist_miss_t miss)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    uint32_t left = block_count;
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        uint32_t *count = &lease->match.tier_blocks[tier];
        *count = *count < left ? *count : left;
        left -= *count;
    }
    lease->match.block_count = block_count;
    lease->match.miss = miss;
    lease->match.detail = (kvist_miss_detail_t){.block = block_count};
    attached->miss_count[miss]++;
}

static void seal_loaded(prepare_t *prepare)
{
    kv_attached_lease_t *lease = prepare->transfer.lease;
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    uint32_t *words = kv_allocate_array(inner->block_words, sizeof *words);
    for (uint32_t i = 0; i < prepare->good; i++) {
        uint32_t block = prepare->first + i;
        const kv_alike_t *alike = alike_of(lease, block);
        kv_identity_words(lease->tokens + (size_t)block * inner->block_tokens,
            lease->extras + block, 1, inner->block_tokens, words);
        kv_seal_found(lease->inner, words, alike->arithmetic, (kvist_priority_t)alike->priority,
            alike->expires_s);
    }
    free(words);
    lease->device_count = lease->sealed_count = prepare->first + prepare->good;
    answer(prepare, KV_OK);
}

/* The bounce was proved when it was filled; the slot is where it has come to. sums: [2][units]. */
static bool copy_block(const kvist_store_t *inner, uint32_t slot, const char *from, uint64_t *sums)
{
    const kv_layout_t *layout = &inner->groups[0].layout;
    uint64_t *here = sums + layout->unit_count;
    kv_layout_unit_checksums(layout, from, here);
    if (kv_device_slot_in(inner, slot, from, sums) != KV_OK) {
        return false;
    }
    bool same = memcmp(sums, here, layout->unit_count * sizeof *sums) == 0;
    if (!same) {
        kv_log_warn("store", "bytes were damaged on their way to the device slot %u", slot);
    }
    return same;
}

/* On a worker. */
static void copy_in(kv_task_t *task)
{
    prepare_t *prepare = (prepare_t *)((char *)task - offsetof(prepare_t, task));
    const kvist_store_t *inner = task->store;
    const uint32_t *slots = kv_embedded_lease_slots(prepare->transfer.lease->inner);
    const kv_layout_t *layout = &inner->groups[0].layout;
    uint64_t *sums = kv_allocate_array(2 * (size_t)layout->unit_count, sizeof *sums);
    prepare->copied = 0;
    while (prepare->copied < prepare->good &&
           copy_block(inner, slots[prepare->first + prepare->copied],
               (const char *)prepare->bounce.base + prepare->copied * layout->object_bytes, sums)) {
        prepare->copied++;
    }
    free(sums);
    kv_store_finish(task);
}

static void copied_in(kv_task_t *task)
{
    prepare_t *prepare = (prepare_t *)((char *)task - offsetof(prepare_t, task));
    if (prepare->copied < prepare->good) {
        prepare->good = prepare->copied;
        shorten(prepare->transfer.lease, prepare->first + prepare->good, KVIST_MISS_FAILED);
    }
    seal_loaded(prepare);
}

static void loaded(void *context, uint32_t block_count, kvist_miss_t miss)
{
    prepare_t *prepare = context;
    kv_attached_lease_t *lease = prepare->transfer.lease;
    prepare->good = block_count;
    if (lease->released) {
        answer(prepare, KV_CANCELLED);
        return;
    }
    if (block_count < prepare->count) {
        shorten(lease, prepare->first + block_count, miss);
    }
    if (prepare->bounce.base == NULL) {
        seal_loaded(prepare);
        return;
    }
    kvist_store_t *inner = kv_lease_attached(lease)->inner;
    prepare->task = (kv_task_t){.work = copy_in, .done = copied_in, .store = inner};
    kv_store_submit(inner, &prepare->task);
}

/* ---- loading ---- */

/* The slots themselves as pieces, or one piece that is copied in afterwards. */
static kv_status_t make_pieces(prepare_t *prepare, kv_pieces_t *pieces_out)
{
    kv_attached_lease_t *lease = prepare->transfer.lease;
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    size_t bytes = inner->groups[0].layout.object_bytes;
    const uint32_t *slots = kv_embedded_lease_slots(lease->inner);
    kv_error_t error;
    kvist_piece_t *pieces = kv_allocate_array(prepare->count, sizeof *pieces);
    size_t count = prepare->count;
    kv_status_t status = KV_OK;
    if (inner->device->ops->host) {
        for (uint32_t i = 0; i < prepare->count; i++) {
            pieces[i] =
                (kvist_piece_t){kv_store_device_bytes(inner, slots[prepare->first + i]), bytes};
        }
    } else {
        status = kv_region_map(count * bytes, &prepare->bounce, &error);
        pieces[0] = (kvist_piece_t){prepare->bounce.base, count * bytes};
        count = 1;
    }
    if (status == KV_OK) {
        KV_CHECK(kv_pieces_init(pieces_out, pieces, count, prepare->count * bytes));
    }
    free(pieces);
    return status;
}

static void load_rest(prepare_t *prepare)
{
    kv_attached_lease_t *lease = prepare->transfer.lease;
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    kvist_selection_t selection = {.first_block = prepare->first, .block_count = prepare->count};
    kv_pieces_t pieces;
    KV_CHECK(kv_layout_resolve(&inner->groups[0].layout, &selection));
    if (make_pieces(prepare, &pieces) != KV_OK) {
        loaded(prepare, 0, KVIST_MISS_FAILED);
        return;
    }
    prepare->loading = true;
    kv_attached_load(lease, &selection, &pieces, loaded, prepare);
}

static void inner_prepared(
    void *context, kvist_lease_t *inner, kv_status_t status, const kvist_match_t *match)
{
    (void)inner;
    prepare_t *prepare = context;
    kv_attached_lease_t *lease = prepare->transfer.lease;
    if (status != KV_OK || lease->released) {
        answer(prepare, lease->released ? KV_CANCELLED : status);
        return;
    }
    bool less = match->block_count < lease->device_count;
    lease->device_count = match->block_count;
    prepare->first = match->block_count;
    if (lease->served_count > prepare->first) {
        prepare->count = lease->served_count - prepare->first;
        load_rest(prepare);
        return;
    }
    if (less && match->block_count < lease->match.block_count) {
        shorten(lease, match->block_count, match->miss);
    }
    lease->sealed_count = match->block_count;
    answer(prepare, KV_OK);
}

kv_status_t kv_attached_lease_prepare(kvist_lease_t *of, uint32_t slot_count, uint64_t deadline_ns,
    kvist_prepared_t done, void *context)
{
    kv_attached_lease_t *lease = kv_attached_lease_of(of);
    KV_CHECK(!lease->released && lease->prepare == NULL && !lease->prepared && done != NULL);
    if (lease->inner == NULL || lease->transfers_out > 0 ||
        lease->sealed_count > lease->match.block_count || slot_count < lease->match.block_count) {
        return KV_INVALID;
    }
    prepare_t *prepare = kv_allocate(sizeof *prepare);
    *prepare = (prepare_t){
        .transfer = {.tell = tell, .lease = lease, .counted = true},
        .done = done,
        .context = context,
    };
    kv_status_t status =
        kv_embedded_lease_prepare(lease->inner, slot_count, deadline_ns, inner_prepared, prepare);
    if (status != KV_OK) {
        free(prepare);
        return status;
    }
    lease->prepare = prepare;
    lease->transfers_out++;
    return KV_OK;
}

void kv_attached_prepare_cancel(kv_attached_lease_t *lease)
{
    if (lease->prepare != NULL && !lease->prepare->loading && lease->inner != NULL) {
        kv_embedded_lease_release(lease->inner); /* its callback, still to run, says cancelled */
        lease->inner = NULL;
    }
}

const uint32_t *kv_attached_lease_slots(const kvist_lease_t *of)
{
    const kv_attached_lease_t *lease = (const kv_attached_lease_t *)of;
    return lease->inner != NULL ? kv_embedded_lease_slots(lease->inner) : NULL;
}

kv_status_t kv_attached_lease_seal(
    kvist_lease_t *of, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic)
{
    kv_attached_lease_t *lease = kv_attached_lease_of(of);
    if (lease->inner == NULL || !lease->prepared) {
        return KV_INVALID;
    }
    kv_status_t status = kv_embedded_lease_seal(lease->inner, tokens, extra, arithmetic);
    if (status == KV_OK) {
        uint32_t block = lease->sealed_count++;
        kv_attached_note_tokens(lease, block, tokens, extra, 1);
        lease->key_count = lease->key_count < block ? lease->key_count : block;
        kv_through_catch_up(lease);
    }
    return status;
}
