/* Bytes that the service has, into the caller's memory.
 *
 *   in host memory --> copied and proved by a worker, straight out of the mapped arena --+--> good
 *        (they are not as promised) |                                                    |
 *   on disk, or stored since -------+--> the service reads them into a window of staging |
 *                                        memory --> copied and proved by a worker -------+
 *   on the device alone --> the inner store's load --------------------------------------+
 *
 * What the service says of a block's bytes is its object checksum, bound to key and layout. The
 * units' checksums beside the slot are believed once they agree with that, the bytes once they
 * agree with those: a slot that has a new life never passes. Where the lease may have been released
 * meanwhile (the connection is lost) everything that was copied is copied again, by way of memory
 * that nobody else writes. */
#include "kvstore/attach/attached_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "kvstore/attach/attached_ops.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

enum { BATCH_BYTES = 1 << 20 };

typedef enum { MAPPED, HELD, ASKED, FETCHING, GOOD, BAD } block_state_t;

typedef struct {
    kv_attached_transfer_t transfer; /* first */
    kvist_selection_t selection;
    kv_pieces_t pieces;
    const kv_layout_t *layout;
    kvist_key_t *keys; /* [block_count], and */
    uint32_t *words;   /* [block_count][block_words]: copies, for workers */
    size_t block_bytes;
    uint32_t block_units;
    uint8_t *states;    /* [block_count] block_state_t */
    uint32_t parts_out; /* at workers, at the service, at the inner store */
    bool careful;       /* nothing that is mapped is trusted to stay as it is */
    bool copied;        /* something was copied from there without care */
    kvist_miss_t miss;  /* of the first bad block */
    kv_window_wait_t wait;
    uint64_t started_ns;
    kv_attached_loaded_t done;
    void *context;
} load_t;

/* Some blocks on their way out of the arena, or out of a window. */
typedef struct {
    kv_task_t task;
    load_t *load;
    uint32_t first, count; /* of the selection */
    kv_life_t *life;
    uint32_t window; /* UINT32_MAX: out of the arena */
    bool careful;
    uint8_t *good; /* [count] */
} part_t;

static void advance(load_t *load);

static kv_attached_t *store_of(const load_t *load)
{
    return kv_lease_attached(load->transfer.lease);
}

static const kv_places_t *places_of(const load_t *load)
{
    return &load->transfer.lease->places[load->selection.group];
}

static uint32_t slot_of(const load_t *load, uint32_t block)
{
    const kv_places_t *places = places_of(load);
    uint32_t number = load->selection.first_block + block;
    return number >= places->first_block && number - places->first_block < places->count
               ? places->slots[number - places->first_block]
               : KV_SLOT_NONE;
}

static void set_states(load_t *load, uint32_t first, uint32_t count, block_state_t state)
{
    memset(load->states + first, (int)state, count);
}

/* ---- out of the arena: on a worker ---- */

/* The units' checksums, believed. */
static bool read_checksums(const part_t *part, uint32_t block, uint32_t slot, uint64_t *sums_out)
{
    const load_t *load = part->load;
    const kv_arena_t *arena = &part->life->arenas[load->selection.group];
    const kv_places_t *places = places_of(load);
    uint32_t number = load->selection.first_block + block;
    size_t count = load->layout->unit_count;
    kvist_key_t key = kv_identity_group_key(&load->keys[block], load->selection.group);
    memcpy(sums_out, kv_arena_checksums(arena) + slot * count, count * sizeof *sums_out);
    return kv_layout_object_checksum(load->layout, &key, sums_out) ==
           places->checksums[number - places->first_block];
}

/* A key is believed when it is matched; equality is checked. */
static bool words_agree(const part_t *part, uint32_t block, uint32_t slot)
{
    const load_t *load = part->load;
    size_t count = load->layout->block_words;
    const uint32_t *stored =
        kv_arena_words(&part->life->arenas[load->selection.group]) + slot * count;
    return memcmp(stored, load->words + block * count, count * sizeof *stored) == 0;
}

static bool copy_unit(const part_t *part, kv_cursor_t *to, const char *from, size_t bytes,
    uint64_t checksum, char *scratch)
{
    if (!part->careful) {
        return kv_cursor_write(to, from, bytes) == checksum;
    }
    memcpy(scratch, from, bytes);
    bool good = kv_checksum(scratch, bytes) == checksum;
    kv_cursor_copy(to, scratch, bytes);
    return good;
}

static bool copy_block(const part_t *part, uint32_t block, uint64_t *sums, char *scratch)
{
    const load_t *load = part->load;
    uint32_t slot = slot_of(load, block), cursor = 0, unit;
    const char *object = kv_arena_slot(&part->life->arenas[load->selection.group], slot);
    if (!read_checksums(part, block, slot, sums) || !words_agree(part, block, slot)) {
        return false;
    }
    kv_cursor_t to = kv_pieces_at(&load->pieces, block * load->block_bytes);
    while (
        (unit = kv_layout_next_selected(load->layout, &load->selection, &cursor)) != UINT32_MAX) {
        size_t bytes, offset = kv_layout_unit(load->layout, unit, &bytes);
        if (!copy_unit(part, &to, object + offset, bytes, sums[unit], scratch)) {
            return false;
        }
    }
    return true;
}

static void copy_mapped(kv_task_t *task)
{
    part_t *part = (part_t *)task;
    const kv_layout_t *layout = part->load->layout;
    uint64_t *sums = kv_allocate_array(layout->unit_count, sizeof *sums);
    char *scratch = part->careful ? kv_allocate(layout->unit_bytes_max) : NULL;
    for (uint32_t i = 0; i < part->count; i++) {
        part->good[i] = copy_block(part, part->first + i, sums, scratch);
    }
    free(scratch);
    free(sums);
    kv_checksum_copy_fence();
    kv_store_finish(task);
}

/* ---- out of a window: on a worker ---- */

static bool copy_from_window(const part_t *part, uint32_t index)
{
    const load_t *load = part->load;
    const char *window = kv_window_bytes(part->life, part->window);
    const char *from = window + index * load->block_bytes;
    size_t sums_at = kv_round_up(part->count * load->block_bytes, sizeof(uint64_t));
    const uint64_t *sums =
        (const uint64_t *)(const void *)(window + sums_at) + (size_t)index * load->block_units;
    kv_cursor_t to = kv_pieces_at(&load->pieces, (part->first + index) * load->block_bytes);
    uint32_t cursor = 0, unit;
    while (
        (unit = kv_layout_next_selected(load->layout, &load->selection, &cursor)) != UINT32_MAX) {
        size_t bytes;
        kv_layout_unit(load->layout, unit, &bytes);
        if (kv_cursor_write(&to, from, bytes) != *sums++) {
            return false;
        }
        from += bytes;
    }
    return true;
}

static void copy_window(kv_task_t *task)
{
    part_t *part = (part_t *)task;
    for (uint32_t i = 0; i < part->count; i++) {
        if (part->good[i]) {
            part->good[i] = copy_from_window(part, i);
        }
    }
    kv_checksum_copy_fence();
    kv_store_finish(task);
}

/* ---- parts ---- */

static part_t *make_part(load_t *load, uint32_t first, uint32_t count, kv_life_t *life)
{
    part_t *part = kv_allocate(sizeof *part);
    *part = (part_t){
        .task = {.store = store_of(load)->inner},
        .load = load,
        .first = first,
        .count = count,
        .life = life,
        .window = UINT32_MAX,
        .careful = load->careful,
        .good = kv_allocate(count + 1),
    };
    kv_life_hold(life);
    load->parts_out++;
    return part;
}

static void end_part(part_t *part)
{
    load_t *load = part->load;
    if (part->window != UINT32_MAX) {
        kv_window_give(store_of(load), part->life, part->window);
    }
    kv_life_release(part->life);
    free(part->good);
    free(part);
    load->parts_out--;
    advance(load);
}

static void end_copies(part_t *part, kvist_tier_t tier, block_state_t otherwise)
{
    kv_attached_t *attached = store_of(part->load);
    for (uint32_t i = 0; i < part->count; i++) {
        part->load->states[part->first + i] = part->good[i] ? GOOD : otherwise;
        attached->loaded[tier].hit_blocks += part->good[i];
        attached->loaded[tier].read_bytes += part->good[i] ? part->load->block_bytes : 0;
    }
}

/* What is not as it was promised the service is asked for: it knows what became of it. */
static void mapped_done(kv_task_t *task)
{
    part_t *part = (part_t *)task;
    end_copies(part, KVIST_TIER_HOST, ASKED);
    end_part(part);
}

static void window_done(kv_task_t *task)
{
    part_t *part = (part_t *)task;
    end_copies(part, KVIST_TIER_DISK, BAD);
    end_part(part);
}

/* Of blocks in one state, from `first` on. */
static uint32_t run_length(
    const load_t *load, uint32_t first, block_state_t state, uint32_t count_max)
{
    uint32_t count = 0;
    while (count < count_max && first + count < load->selection.block_count &&
           load->states[first + count] == state) {
        count++;
    }
    return count;
}

/* The first part is copied here, once the workers have the others: they are awake by the time that
 * it is through. */
static void start_mapped(load_t *load)
{
    kvist_store_t *inner = store_of(load)->inner;
    uint32_t at_once = (uint32_t)(BATCH_BYTES / load->block_bytes);
    part_t *own = NULL;
    at_once = at_once > 0 ? at_once : 1;
    for (uint32_t block = 0; block < load->selection.block_count;) {
        uint32_t count = run_length(load, block, MAPPED, at_once);
        if (count == 0) {
            block++;
            continue;
        }
        part_t *part = make_part(load, block, count, load->transfer.lease->life);
        part->task.work = copy_mapped;
        part->task.done = mapped_done;
        set_states(load, block, count, FETCHING);
        load->copied = load->copied || !load->careful;
        if (own == NULL && count * load->block_bytes <= BATCH_BYTES) {
            own = part;
        } else {
            kv_store_submit(inner, &part->task);
        }
        block += count;
    }
    if (own != NULL) {
        kv_store_work(inner, &own->task);
    }
}

/* ---- the inner store's ---- */

typedef struct {
    load_t *load;
    uint32_t first, count;
} held_t;

static void held_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    held_t *held = context;
    load_t *load = held->load;
    set_states(load, held->first, held->count, BAD);
    set_states(load, held->first, status == KV_OK ? block_count : 0, GOOD);
    load->miss = status == KV_OK ? miss : KVIST_MISS_FAILED;
    free(held);
    load->parts_out--;
    advance(load);
}

/* The part of the pieces that a range of blocks is for. */
static size_t pieces_of(
    const load_t *load, uint32_t first, uint32_t count, kvist_piece_t *pieces_out)
{
    kv_cursor_t at = kv_pieces_at(&load->pieces, first * load->block_bytes);
    size_t left = count * load->block_bytes, pieces = 0;
    while (left > 0) {
        kvist_piece_t piece = load->pieces.items[at.piece++];
        piece.base = (char *)piece.base + at.offset;
        piece.bytes -= at.offset;
        piece.bytes = piece.bytes < left ? piece.bytes : left;
        at.offset = 0;
        left -= piece.bytes;
        if (piece.bytes > 0) {
            pieces_out[pieces++] = piece;
        }
    }
    return pieces;
}

static void start_held(load_t *load)
{
    for (uint32_t block = 0; block < load->selection.block_count;) {
        uint32_t count = run_length(load, block, HELD, UINT32_MAX);
        if (count == 0) {
            block++;
            continue;
        }
        held_t *held = kv_allocate(sizeof *held);
        *held = (held_t){load, block, count};
        kvist_piece_t *pieces = kv_allocate_array(load->pieces.count + 1, sizeof *pieces);
        kvist_selection_t selection = load->selection;
        selection.first_block += block;
        selection.block_count = count;
        set_states(load, block, count, FETCHING);
        load->parts_out++;
        kv_status_t status = kv_embedded_lease_load(load->transfer.lease->inner, &selection, pieces,
            pieces_of(load, block, count, pieces), held_loaded, held);
        if (status != KV_OK) {
            set_states(load, block, count, BAD);
            load->parts_out--;
            free(held);
        }
        free(pieces);
        block += count;
    }
}

/* ---- the service's, by way of windows ---- */

static void fetch_answered(void *owner, const Kvist__Store__Answer *answer)
{
    part_t *part = owner;
    load_t *load = part->load;
    uint32_t good = 0;
    kvist_miss_t miss = KVIST_MISS_FAILED;
    if (answer == NULL) {
        part->window = UINT32_MAX; /* it ended with its connection */
    } else if (answer->body_case == KVIST__STORE__ANSWER__BODY_LOADED &&
               answer->loaded->code == KV_OK && answer->loaded->block_count <= part->count) {
        good = answer->loaded->block_count;
        miss = answer->loaded->miss < KVIST_MISS_COUNT ? (kvist_miss_t)answer->loaded->miss
                                                       : KVIST_MISS_FAILED;
    }
    if (good < part->count) {
        load->miss = miss;
    }
    set_states(load, part->first + good, part->count - good, BAD);
    if (good == 0) {
        end_part(part);
        return;
    }
    memset(part->good, 1, good);
    part->task.work = copy_window;
    part->task.done = window_done;
    kv_store_submit_sized(store_of(load)->inner, &part->task, good * load->block_bytes);
}

static kv_status_t ask_for(load_t *load, part_t *part)
{
    Kvist__Store__Load asked = KVIST__STORE__LOAD__INIT;
    asked.lease = load->transfer.lease->number;
    asked.group = load->selection.group;
    asked.first_block = load->selection.first_block + part->first;
    asked.block_count = part->count;
    asked.first_layer = load->selection.first_layer;
    asked.layer_count = load->selection.layer_count;
    asked.first_head = load->selection.first_head;
    asked.head_count = load->selection.head_count;
    asked.offset = part->window * part->life->window_bytes;
    return kv_link_ask(
        store_of(load), KVIST__STORE__REQUEST__BODY_LOAD, &asked, &asked.id, fetch_answered, part);
}

/* false: no window is free. */
static bool fetch_some(load_t *load, uint32_t first)
{
    kv_attached_t *attached = store_of(load);
    kv_life_t *life = load->transfer.lease->life;
    uint32_t window = kv_window_take(attached);
    if (window == UINT32_MAX) {
        return false;
    }
    size_t each = load->block_bytes + load->block_units * sizeof(uint64_t);
    uint32_t fit = (uint32_t)((life->window_bytes - sizeof(uint64_t)) / each);
    part_t *part = make_part(load, first, run_length(load, first, ASKED, fit), life);
    part->window = window;
    set_states(load, first, part->count, FETCHING);
    if (ask_for(load, part) != KV_OK) {
        set_states(load, first, part->count, BAD);
        load->miss = KVIST_MISS_FAILED;
        kv_window_give(attached, life, window);
        kv_life_release(life);
        free(part->good);
        free(part);
        load->parts_out--;
    }
    return true;
}

static void fetch(load_t *load)
{
    const kv_attached_lease_t *lease = load->transfer.lease;
    bool can = lease->life != NULL && lease->life->up;
    for (uint32_t block = 0; block < load->selection.block_count;) {
        if (load->states[block] != ASKED) {
            block++;
        } else if (!can) {
            load->states[block] = BAD;
            load->miss = KVIST_MISS_FAILED;
        } else if (!fetch_some(load, block)) {
            kv_window_wait(store_of(load), &load->wait);
            return;
        }
    }
}

static void window_ready(kv_window_wait_t *wait)
{
    advance((load_t *)((char *)wait - offsetof(load_t, wait)));
}

/* ---- the end ---- */

static void tell(kv_attached_transfer_t *transfer)
{
    load_t *load = (load_t *)transfer;
    kv_attached_t *attached = store_of(load);
    uint32_t good = run_length(load, 0, GOOD, UINT32_MAX);
    bool all = good == load->selection.block_count;
    if (!all) {
        attached->miss_count[load->miss]++;
    }
    load->done(load->context, good, all ? KVIST_MISS_NONE : load->miss);
    kv_pieces_release(&load->pieces);
    free(load->states);
    free(load->keys);
    free(load->words);
    free(load);
}

static void note_rate(const load_t *load)
{
    kv_attached_t *attached = store_of(load);
    double bytes = (double)load->selection.block_count * (double)load->block_bytes;
    double ns = (double)(kv_clock_now_ns() - load->started_ns);
    if (load->copied && bytes > 0) {
        attached->host_ns_per_byte += (ns / bytes - attached->host_ns_per_byte) / 16;
    }
}

/* What was copied while somebody may have written there: once more, with care. */
static bool copy_again(load_t *load)
{
    if (!load->copied || load->careful ||
        kv_life_holds(store_of(load), load->transfer.lease->life)) {
        return false;
    }
    load->careful = true;
    for (uint32_t block = 0; block < load->selection.block_count; block++) {
        if (load->states[block] == GOOD && slot_of(load, block) != KV_SLOT_NONE) {
            load->states[block] = MAPPED;
        }
    }
    return true;
}

static void advance(load_t *load)
{
    load->parts_out++; /* what ends at once must not end it before all are started */
    if (load->parts_out == 1 && copy_again(load)) {
        start_mapped(load);
    }
    fetch(load);
    if (--load->parts_out == 0 && !load->wait.waiting) {
        note_rate(load);
        kv_attached_transfer_end(&load->transfer);
    }
}

/* ---- the beginning ---- */

/* The lease's own arrays may move while workers compare. */
static void copy_identity(load_t *load)
{
    kv_attached_lease_t *lease = load->transfer.lease;
    uint32_t first = load->selection.first_block, count = load->selection.block_count;
    size_t block_tokens = load->layout->block_tokens;
    load->keys = kv_allocate_array(count + 1, sizeof *load->keys);
    load->words =
        kv_allocate_array((size_t)count * load->layout->block_words + 1, sizeof *load->words);
    const kvist_key_t *keys = kv_attached_keys(lease, first + count);
    if (count > 0) {
        memcpy(load->keys, keys + first, count * sizeof *keys);
        kv_identity_words(lease->tokens + first * block_tokens, lease->extras + first, count,
            load->layout->block_tokens, load->words);
    }
}

static block_state_t state_of(const load_t *load, uint32_t block)
{
    const kv_attached_lease_t *lease = load->transfer.lease;
    if (slot_of(load, block) != KV_SLOT_NONE) {
        return MAPPED;
    }
    bool held = load->selection.group == 0 && lease->inner != NULL &&
                load->selection.first_block + block < lease->device_count;
    return held ? HELD : ASKED;
}

void kv_attached_load(kv_attached_lease_t *lease, const kvist_selection_t *selection,
    kv_pieces_t *pieces, kv_attached_loaded_t done, void *context)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    load_t *load = kv_allocate(sizeof *load);
    const kv_layout_t *layout = &attached->inner->groups[selection->group].layout;
    *load = (load_t){
        .transfer = {.tell = tell, .lease = lease, .counted = true},
        .selection = *selection,
        .pieces = *pieces,
        .layout = layout,
        .block_bytes = kv_layout_selected_bytes(layout, selection),
        .block_units = kv_layout_selected_units(layout, selection),
        .states = kv_allocate(selection->block_count + 1),
        .careful = lease->life == NULL || !lease->life->up,
        .miss = KVIST_MISS_FAILED,
        .wait = {.ready = window_ready},
        .started_ns = kv_clock_now_ns(),
        .done = done,
        .context = context,
    };
    copy_identity(load);
    lease->transfers_out++;
    for (uint32_t block = 0; block < selection->block_count; block++) {
        load->states[block] = (uint8_t)state_of(load, block);
    }
    load->parts_out++;
    start_mapped(load);
    start_held(load);
    load->parts_out--;
    advance(load);
}

/* ---- the call ---- */

typedef struct {
    kv_attached_lease_t *lease;
    kvist_loaded_t done;
    void *context;
} call_t;

static void call_loaded(void *context, uint32_t block_count, kvist_miss_t miss)
{
    call_t *call = context;
    kv_status_t status = call->lease->released ? KV_CANCELLED : KV_OK;
    call->done(call->context, (kvist_lease_t *)call->lease, status, block_count, miss);
    free(call);
}

kv_status_t kv_attached_lease_load(kvist_lease_t *of, const kvist_selection_t *selection,
    const kvist_piece_t *pieces, size_t piece_count, kvist_loaded_t done, void *context)
{
    kv_attached_lease_t *lease = kv_attached_lease_of(of);
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    if (lease->released || lease->prepare != NULL || selection->group >= inner->group_count ||
        selection->first_block > lease->sealed_count ||
        selection->block_count > lease->sealed_count - selection->first_block) {
        return KV_INVALID;
    }
    const kv_layout_t *layout = &inner->groups[selection->group].layout;
    kvist_selection_t resolved = *selection;
    kv_pieces_t list;
    if (!kv_layout_resolve(layout, &resolved) ||
        !kv_pieces_init(&list, pieces, piece_count,
            resolved.block_count * kv_layout_selected_bytes(layout, &resolved))) {
        return KV_INVALID;
    }
    call_t *call = kv_allocate(sizeof *call);
    *call = (call_t){lease, done, context};
    kv_attached_load(lease, &resolved, &list, call_loaded, call);
    return KV_OK;
}
