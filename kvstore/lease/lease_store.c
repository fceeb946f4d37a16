/* Storing: blocks from the caller's memory, by way of host slots.
 *
 *   asked -> (for each block, in order) slot taken -> copying (worker) -> copied -> published
 *
 * Rules:
 *  1. Blocks are published in order, when their bytes are in: what can be found is whole.
 *  2. A block that is stored already is not copied; it counts as stored.
 *  3. Stores of a lease are carried out one after the other; where no host slot is free, the store
 *     waits for one, and others of other leases may overtake it.
 *  4. What fails or is cancelled half-way keeps its good prefix.
 *  5. What was stored is not held: a context may be larger than host memory. */
#include "kvstore/lease/lease_internal.h"

#include "base/check.h"
#include "base/checksum.h"
#include "base/memory.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/pieces.h"
#include "kvstore/terms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_BYTES = 1 << 20, COPIES_MAX = 4 };

typedef enum {
    WANTED,
    COPYING,
    DAMAGED, /* its slot has other bytes than were promised */
    COPIED,  /* its slot has the bytes */
    PRESENT, /* another sequence stored it */
} block_state_t;

typedef struct {
    block_state_t state;
    kvist_key_t key; /* of the object */
    uint32_t object; /* PRESENT: held */
    uint32_t slot;   /* COPYING, DAMAGED, COPIED */
} block_t;

struct kv_put {
    kv_transfer_t transfer; /* first */
    kvist_put_t asked;
    char arithmetic[KV_ARITHMETIC_BYTES]; /* the caller's may be gone when its turn comes */
    uint32_t *words;                      /* [block_count][block_words] */
    kv_pieces_t pieces;
    uint64_t *checksums; /* of the objects, promised by whoever may write to the pieces; or NULL */
    bool present_only;   /* there are no pieces */
    uint32_t family;
    block_t *blocks;
    uint32_t next;      /* the first block that has not begun */
    uint32_t published; /* blocks that are stored */
    uint32_t copies_out;
    bool begun;  /* its turn came */
    bool ending; /* nothing more is begun */
    kv_status_t status;
    kvist_stored_t done;
    void *context;
    kv_put_t *next_of_lease, *next_waiting;
    bool waiting;
};

/* Some blocks on their way into their slots. */
typedef struct {
    kv_task_t task;
    kv_put_t *put;
    uint32_t first, count;
} copy_t;

static kv_store_group_t *group_of(const kv_put_t *put)
{
    return &put->transfer.lease->store->groups[put->asked.group];
}

static const uint32_t *words_of(const kv_put_t *put, uint32_t block)
{
    return put->words + (size_t)block * put->transfer.lease->store->block_words;
}

/* ---- waiting for slots ---- */

static void wait_for_slots(kv_put_t *put)
{
    kvist_store_t *store = put->transfer.lease->store;
    if (!put->waiting) {
        kv_put_t **link = &store->first_put_waiting;
        while (*link != NULL) {
            link = &(*link)->next_waiting;
        }
        *link = put;
        put->next_waiting = NULL;
        put->waiting = true;
    }
}

static void wait_no_more(kv_put_t *put)
{
    kv_put_t **link = &put->transfer.lease->store->first_put_waiting;
    if (put->waiting) {
        while (*link != put) {
            link = &(*link)->next_waiting;
        }
        *link = put->next_waiting;
        put->waiting = false;
    }
}

/* ---- the end ---- */

static void free_put(kv_put_t *put)
{
    kv_pieces_release(&put->pieces);
    free(put->checksums);
    free(put->words);
    free(put->blocks);
    free(put);
}

static void tell(kv_transfer_t *transfer)
{
    kv_put_t *put = (kv_put_t *)transfer;
    kv_status_t status = put->status;
    if (put->published < put->asked.block_count && transfer->lease->released) {
        status = KV_CANCELLED;
    }
    put->done(put->context, transfer->lease, status, put->published);
    free_put(put);
}

static void advance(kv_put_t *put);

/* Gives back what was not published; then the next store of the lease has its turn. */
static void end(kv_put_t *put)
{
    kvist_lease_t *lease = put->transfer.lease;
    for (uint32_t i = put->published; i < put->next; i++) {
        block_t *block = &put->blocks[i];
        if (block->state == COPIED || block->state == DAMAGED) {
            kv_pool_give(&group_of(put)->host_pool, block->slot);
        } else if (block->state == PRESENT) {
            kv_object_release(lease->store, block->object);
        }
    }
    wait_no_more(put);
    KV_CHECK(lease->first_put == put);
    lease->first_put = put->next_of_lease;
    if (lease->first_put == NULL) {
        lease->last_put = NULL;
    }
    kv_transfer_end(&put->transfer);
    if (lease->first_put != NULL) {
        advance(lease->first_put);
    }
}

static void stop(kv_put_t *put, kv_status_t status)
{
    if (!put->ending) {
        put->ending = true;
        put->status = status;
    }
}

void kv_put_cancel(kvist_lease_t *lease)
{
    for (kv_put_t *put = lease->first_put; put != NULL; put = put->next_of_lease) {
        stop(put, KV_CANCELLED);
    }
    if (lease->first_put != NULL) {
        advance(lease->first_put);
    }
}

/* ---- publishing ---- */

/* What the block's object descends from: KV_OBJECT_NONE for a context's first block. false: that is
 * gone, or never was an object. */
static bool find_parent(const kv_put_t *put, uint32_t block, uint32_t *parent_out)
{
    const kvist_lease_t *lease = put->transfer.lease;
    uint32_t number = put->asked.first_block + block;
    if (put->asked.group == 0 && number == 0) {
        *parent_out = KV_OBJECT_NONE;
        return true;
    }
    uint32_t parent = put->asked.group == 0 ? number - 1 : number;
    *parent_out = lease->objects[parent];
    return *parent_out != KV_OBJECT_NONE && !kv_lease_gone(lease, parent);
}

/* The lease goes on from this object. */
static void append(kvist_lease_t *lease, const kvist_key_t *key, uint32_t number)
{
    uint32_t block = lease->sealed_count;
    if (block >= lease->block_max) {
        lease->block_max = 2 * lease->block_max + 16;
        lease->objects = kv_reallocate(lease->objects, lease->block_max, sizeof *lease->objects);
    }
    if (block - lease->held_count >= lease->stored_max) {
        lease->stored_max = 2 * lease->stored_max + 16;
        lease->stored_keys =
            kv_reallocate(lease->stored_keys, lease->stored_max, sizeof *lease->stored_keys);
    }
    lease->stored_keys[block - lease->held_count] = *key;
    kv_seal_append(lease, key, number);
}

/* Whether the object with the block's key has its words. */
static bool is_same(const kv_put_t *put, uint32_t block, uint32_t number)
{
    const kvist_store_t *store = put->transfer.lease->store;
    return put->asked.group > 0 ||
           kv_match_words(store, kv_table_at(store->table, number), words_of(put, block));
}

static uint32_t install(kv_put_t *put, uint32_t block, uint32_t parent)
{
    kvist_lease_t *lease = put->transfer.lease;
    kvist_store_t *store = lease->store;
    kv_store_group_t *group = group_of(put);
    block_t *of = &put->blocks[block];
    uint32_t number =
        kv_seal_new(lease, &of->key, parent, put->asked.first_block + block, put->family);
    if (number != KV_OBJECT_NONE) {
        memcpy(kv_pool_words(&group->host_pool, of->slot), words_of(put, block),
            store->block_words * sizeof(uint32_t));
        kv_object_enter_host(store, number, of->slot);
        kv_object_expect(store, number, lease->expected_s);
        kv_object_list(store, number);
        store->stats.tiers[KVIST_TIER_HOST].written_bytes += group->layout.object_bytes;
    }
    return number;
}

/* Publishes one block; false: it cannot be. */
static bool publish(kv_put_t *put, uint32_t block)
{
    kvist_lease_t *lease = put->transfer.lease;
    kvist_store_t *store = lease->store;
    block_t *of = &put->blocks[block];
    uint32_t parent, number = of->object;
    if (!find_parent(put, block, &parent)) {
        stop(put, kv_persist_usable(store) ? KV_MISSING : KV_NO_SPACE);
        return false;
    }
    if (of->state == COPIED) {
        number = kv_match_live(store, &of->key);
        if (number == KV_OBJECT_NONE) {
            number = install(put, block, parent);
        } else if (!is_same(put, block, number)) {
            stop(put, KV_REFUSED);
            return false;
        } else { /* stored by another sequence while the bytes were copied */
            kv_pool_give(&group_of(put)->host_pool, of->slot);
            kv_terms_renew(store, number, &lease->like);
            kv_table_at(store->table, number)->disk_flags |= KV_DISK_ASKED;
        }
    }
    if (number == KV_OBJECT_NONE) {
        stop(put, KV_NO_SPACE); /* for objects: there are as many as there can be */
        return false;
    }
    if (put->asked.group == 0) {
        append(lease, &of->key, number);
    }
    kv_seal_queue(store, number);
    if (of->state == PRESENT) {
        kv_object_release(store, number);
    }
    return true;
}

/* ---- copying ---- */

static void copy_in(kv_task_t *task)
{
    copy_t *copy = (copy_t *)task;
    kv_put_t *put = copy->put;
    const kv_store_group_t *group = group_of(put);
    bool shared = put->checksums != NULL;
    kv_cursor_t from = kv_pieces_at(&put->pieces, copy->first * group->layout.object_bytes);
    for (uint32_t i = copy->first; i < copy->first + copy->count; i++) {
        char *to = kv_group_host_bytes(group, put->blocks[i].slot);
        uint64_t *checksums = kv_pool_checksums(&group->host_pool, put->blocks[i].slot);
        for (uint32_t unit = 0; unit < group->layout.unit_count; unit++) {
            size_t bytes, offset = kv_layout_unit(&group->layout, unit, &bytes);
            checksums[unit] = shared ? kv_cursor_read_shared(&from, to + offset, bytes)
                                     : kv_cursor_read(&from, to + offset, bytes);
        }
        block_t *block = &put->blocks[i];
        if (shared && put->checksums[i] !=
                          kv_layout_object_checksum(&group->layout, &block->key, checksums)) {
            block->state = DAMAGED;
        }
    }
    kv_checksum_copy_fence();
    kv_store_finish(task);
}

static void copied(kv_task_t *task)
{
    copy_t *copy = (copy_t *)task;
    kv_put_t *put = copy->put;
    for (uint32_t i = copy->first; i < copy->first + copy->count; i++) {
        if (put->blocks[i].state == DAMAGED) {
            stop(put, KV_CORRUPT);
        } else {
            put->blocks[i].state = COPIED;
        }
    }
    put->copies_out--;
    free(copy);
    advance(put);
}

static void start_copy(kv_put_t *put, uint32_t first, uint32_t count)
{
    copy_t *copy = kv_allocate(sizeof *copy);
    *copy = (copy_t){
        .task = {.work = copy_in, .done = copied, .store = put->transfer.lease->store},
        .put = put,
        .first = first,
        .count = count,
    };
    put->copies_out++;
    kv_store_submit_sized(
        copy->task.store, &copy->task, count * group_of(put)->layout.object_bytes);
}

/* Another sequence's block with this key is taken as it is. */
static bool take_present(kv_put_t *put, block_t *block, uint32_t index)
{
    kvist_lease_t *lease = put->transfer.lease;
    kvist_store_t *store = lease->store;
    block->object = kv_match_live(store, &block->key);
    if (block->object == KV_OBJECT_NONE) {
        return false;
    }
    if (!is_same(put, index, block->object)) {
        stop(put, KV_REFUSED);
        return true;
    }
    block->state = PRESENT;
    kv_object_hold(store, block->object);
    kv_terms_renew(store, block->object, &lease->like);
    kv_table_at(store->table, block->object)->disk_flags |= KV_DISK_ASKED;
    return true;
}

/* Why there is no slot, and none to be expected. */
static void no_slot(kv_put_t *put, bool coming)
{
    kvist_store_t *store = put->transfer.lease->store;
    if (group_of(put)->host_pool.slot_count == 0) {
        stop(put, KV_NO_SPACE);
    } else if (put->asked.deadline_ns <= store->clock->monotonic_ns(store->clock)) {
        stop(put, coming ? KV_BUSY : KV_NO_SPACE);
    } else {
        wait_for_slots(put);
    }
}

/* Begins blocks, as many as there are slots for. */
static void begin(kv_put_t *put)
{
    kvist_store_t *store = put->transfer.lease->store;
    const kv_family_t family =
        *(const kv_family_t *)(const void *)kv_names_at(&store->families, put->family);
    size_t object_bytes = group_of(put)->layout.object_bytes;
    uint32_t at_once = (uint32_t)(COPY_BYTES / object_bytes), first = put->next, count = 0;
    at_once = at_once > 0 ? at_once : 1;
    kv_why_make_room(put->transfer.lease);
    while (!put->ending && put->next < put->asked.block_count && put->copies_out < COPIES_MAX) {
        block_t *block = &put->blocks[put->next];
        bool coming = false;
        if (take_present(put, block, put->next)) {
            if (count > 0) {
                start_copy(put, first, count);
            }
            put->next += block->state == PRESENT;
            first = put->next;
            count = 0;
            continue;
        }
        if (put->present_only) {
            stop(put, KV_MISSING);
            break;
        }
        block->slot = kv_evict_host(store, &family, &coming);
        if (block->slot == KV_SLOT_NONE) {
            no_slot(put, coming);
            break;
        }
        block->state = COPYING;
        put->next++;
        if (++count == at_once) {
            start_copy(put, first, count);
            first = put->next;
            count = 0;
        }
    }
    if (count > 0) {
        start_copy(put, first, count);
    }
}

/* ---- the turn ---- */

/* Keys of the put's objects. false: blocks that the lease has already have other words. */
static bool make_keys(kv_put_t *put)
{
    const kvist_lease_t *lease = put->transfer.lease;
    uint32_t block_tokens = lease->store->block_tokens, first = put->asked.first_block;
    kvist_key_t parent = first > 0 ? kv_lease_key(lease, first - 1) : lease->like.name_space;
    for (uint32_t i = 0; i < put->asked.block_count; i++) {
        parent = kv_identity_block_key(&parent, words_of(put, i), block_tokens);
        put->blocks[i].key = kv_identity_group_key(&parent, put->asked.group);
        if (put->asked.group > 0) {
            kvist_key_t known = kv_lease_key(lease, first + i);
            if (!kv_key_equal(&parent, &known)) {
                return false;
            }
        }
    }
    return true;
}

/* Its turn has come: what went before it in the lease is stored. */
static void take_turn(kv_put_t *put)
{
    kvist_lease_t *lease = put->transfer.lease;
    uint32_t first = put->asked.first_block, count = put->asked.block_count;
    int family = kv_seal_family(lease, put->asked.group, put->asked.arithmetic);
    bool follows =
        put->asked.group == 0 ? first == lease->sealed_count : first + count <= lease->sealed_count;
    put->begun = true;
    if (!lease->storing) {
        stop(put, KV_OK);
    } else if (!follows) {
        stop(put, KV_MISSING);
    } else if (family == KV_NAMES_FULL) {
        stop(put, KV_NO_SPACE);
    } else {
        put->family = (uint32_t)family;
        if (!make_keys(put)) {
            stop(put, KV_INVALID);
        }
    }
}

/* ---- together ---- */

static void advance(kv_put_t *put)
{
    if (!put->begun) {
        take_turn(put);
    }
    while (put->published < put->next && put->blocks[put->published].state >= COPIED &&
           publish(put, put->published)) {
        put->published++;
    }
    if (!put->ending) {
        begin(put);
        /* What was present is published at once. */
        while (put->published < put->next && put->blocks[put->published].state == PRESENT &&
               publish(put, put->published)) {
            put->published++;
        }
    }
    bool through = put->published == put->asked.block_count;
    if (put->copies_out == 0 && (through || put->ending)) {
        end(put);
    }
}

void kv_puts_advance(kvist_store_t *store)
{
    uint32_t count = 0;
    for (const kv_put_t *put = store->first_put_waiting; put != NULL; put = put->next_waiting) {
        count++;
    }
    /* Those that must wait on go to the end of the queue. */
    for (; count > 0 && store->first_put_waiting != NULL; count--) {
        kv_put_t *put = store->first_put_waiting;
        wait_no_more(put);
        advance(put);
    }
}

uint64_t kv_puts_next_deadline(const kvist_store_t *store)
{
    uint64_t next = UINT64_MAX;
    for (const kv_put_t *put = store->first_put_waiting; put != NULL; put = put->next_waiting) {
        next = put->asked.deadline_ns < next ? put->asked.deadline_ns : next;
    }
    return next;
}

/* ---- the call ---- */

static bool asks_well(const kvist_lease_t *lease, const kvist_put_t *asked)
{
    const kvist_store_t *store = lease->store;
    if (lease->released || lease->state != KV_LEASE_MATCHED || asked->group >= store->group_count ||
        asked->block_count > KVIST_CHAIN_BLOCKS_MAX ||
        asked->first_block > KVIST_CHAIN_BLOCKS_MAX ||
        (asked->arithmetic != NULL && strlen(asked->arithmetic) >= KV_ARITHMETIC_BYTES)) {
        return false;
    }
    return asked->tokens != NULL ||
           (asked->extras == NULL &&
               asked->first_block + asked->block_count <= lease->query_blocks);
}

/* Where the blocks of the first group begin: after what is sealed and what is asked for already. */
static uint32_t next_block(const kvist_lease_t *lease)
{
    uint32_t next = lease->sealed_count;
    for (const kv_put_t *put = lease->first_put; put != NULL; put = put->next_of_lease) {
        if (put->asked.group == 0) {
            next = put->asked.first_block + put->asked.block_count;
        }
    }
    return next;
}

static kv_put_t *make_put(
    kvist_lease_t *lease, const kvist_put_t *asked, kvist_stored_t done, void *context)
{
    const kvist_store_t *store = lease->store;
    size_t word_count = (size_t)asked->block_count * store->block_words;
    kv_put_t *put = kv_allocate(sizeof *put);
    *put = (kv_put_t){
        .transfer = {.tell = tell, .lease = lease},
        .asked = *asked,
        .words = kv_allocate_array(word_count + 1, sizeof *put->words),
        .blocks = kv_allocate_array(asked->block_count + 1, sizeof *put->blocks),
        .done = done,
        .context = context,
    };
    if (asked->tokens != NULL) {
        kv_identity_words(
            asked->tokens, asked->extras, asked->block_count, store->block_tokens, put->words);
    } else {
        memcpy(put->words, lease->words + (size_t)asked->first_block * store->block_words,
            word_count * sizeof *put->words);
    }
    snprintf(put->arithmetic, sizeof put->arithmetic, "%s",
        asked->arithmetic != NULL ? asked->arithmetic : "");
    put->asked.arithmetic = put->arithmetic;
    return put;
}

static bool follows_well(const kvist_lease_t *lease, const kvist_put_t *asked)
{
    return asks_well(lease, asked) &&
           (asked->group != 0 || asked->first_block == next_block(lease));
}

/* It has its turn after the lease's others. */
static void start(kv_put_t *put)
{
    kvist_lease_t *lease = put->transfer.lease;
    lease->transfers_out++;
    if (lease->last_put != NULL) {
        lease->last_put->next_of_lease = put;
    } else {
        lease->first_put = put;
    }
    lease->last_put = put;
    if (lease->first_put == put) {
        advance(put);
    }
}

kv_status_t kv_lease_store_summed(kvist_lease_t *lease, const kvist_put_t *asked,
    const kvist_piece_t *pieces, size_t piece_count, const uint64_t *checksums, kvist_stored_t done,
    void *context)
{
    if (!follows_well(lease, asked)) {
        return KV_INVALID;
    }
    kv_put_t *put = make_put(lease, asked, done, context);
    size_t bytes = asked->block_count * group_of(put)->layout.object_bytes;
    if (!kv_pieces_init(&put->pieces, pieces, piece_count, bytes)) {
        free_put(put);
        return KV_INVALID;
    }
    if (checksums != NULL) {
        put->checksums = kv_allocate_array(asked->block_count + 1, sizeof *checksums);
        memcpy(put->checksums, checksums, asked->block_count * sizeof *checksums);
    }
    start(put);
    return KV_OK;
}

kv_status_t kv_lease_store_present(
    kvist_lease_t *lease, const kvist_put_t *asked, kvist_stored_t done, void *context)
{
    if (!follows_well(lease, asked)) {
        return KV_INVALID;
    }
    kv_put_t *put = make_put(lease, asked, done, context);
    put->present_only = true;
    start(put);
    return KV_OK;
}

kv_status_t kv_embedded_lease_store(kvist_lease_t *lease, const kvist_put_t *asked,
    const kvist_piece_t *pieces, size_t piece_count, kvist_stored_t done, void *context)
{
    return kv_lease_store_summed(lease, asked, pieces, piece_count, NULL, done, context);
}
