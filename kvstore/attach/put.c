/* Storing at the service.
 *
 *   waiting for its turn -> offered -> moving, window by window:
 *     taken -> copied (worker, with checksums) -> sent -> answered -> (next) -> ended
 *
 * Rules:
 *  1. A lease's puts are carried out one after the other; what goes on from blocks that are on the
 *     device alone waits until those are written through (through.c).
 *  2. The offer comes first: what is stored already, or is stored by another client meanwhile, is
 *     not copied.
 *  3. Windows are sent in the order of their blocks. What fails keeps its good prefix.
 *  4. Bytes come from the caller's pieces, or from device slots whose objects the put holds. */
#include "kvstore/attach/attached_internal.h"

#include "base/check.h"
#include "base/checksum.h"
#include "kvstore/attach/attached_ops.h"

#include <stdlib.h>
#include <string.h>

enum { WINDOWS_AT_ONCE = 4, OFFER_BLOCKS_MAX = 1024 };

typedef enum { PUT_WAITING, PUT_OFFERED, PUT_MOVING } put_state_t;

/* Some blocks on their way. */
typedef struct part part_t;
struct part {
    kv_task_t task;
    kv_attached_put_t *put;
    kv_life_t *life;
    uint32_t window, first, count; /* of the put */
    uint64_t *checksums;           /* [count] of objects */
    bool copied;
    kv_status_t status; /* of the copy */
    part_t *next;       /* in the order of their blocks, until it is sent */
};

struct kv_attached_put {
    kv_attached_transfer_t transfer; /* first */
    put_state_t state;
    uint32_t group, first_block, block_count;
    uint64_t deadline_ns;
    char arithmetic[KV_ARITHMETIC_BYTES];
    kvist_key_t *keys; /* [block_count] of objects, once its turn came */
    kv_pieces_t pieces;
    uint32_t *slots; /* [block_count] on the device, in place of pieces; or NULL */
    uint32_t next, published, offered;
    uint32_t parts_out, offers_out; /* windows; at the service without bytes */
    part_t *first_part, *last_part; /* not sent yet */
    kv_window_wait_t wait;
    bool ending;
    kv_status_t status;
    kvist_stored_t done;
    kv_through_done_t through_done; /* in place of done, for through.c */
    void *context;
    kv_attached_put_t *next_of_lease;
};

static void advance(kv_attached_put_t *put);

static kv_attached_t *store_of(const kv_attached_put_t *put)
{
    return kv_lease_attached(put->transfer.lease);
}

static const kv_layout_t *layout_of(const kv_attached_put_t *put)
{
    return &store_of(put)->inner->groups[put->group].layout;
}

static void stop(kv_attached_put_t *put, kv_status_t status)
{
    if (!put->ending) {
        put->ending = true;
        /* The other end found other bytes than were summed here: not this memory's fault alone. */
        put->status = status == KV_CORRUPT ? KV_IO : status;
    }
}

/* ---- bytes: on a worker ---- */

static void copy_pieces(const part_t *part, uint32_t index, char *to, uint64_t *sums)
{
    const kv_attached_put_t *put = part->put;
    const kv_layout_t *layout = layout_of(put);
    kv_cursor_t from = kv_pieces_at(&put->pieces, (part->first + index) * layout->object_bytes);
    for (uint32_t unit = 0; unit < layout->unit_count; unit++) {
        size_t bytes, offset = kv_layout_unit(layout, unit, &bytes);
        sums[unit] = kv_cursor_read(&from, to + offset, bytes);
    }
}

static kv_status_t copy_slot(const part_t *part, uint32_t index, char *to, uint64_t *sums)
{
    const kv_attached_put_t *put = part->put;
    return kv_device_slot_out(store_of(put)->inner, put->slots[part->first + index], to, sums);
}

static void copy_out(kv_task_t *task)
{
    part_t *part = (part_t *)task;
    part->status = KV_OK;
    const kv_attached_put_t *put = part->put;
    const kv_layout_t *layout = layout_of(put);
    uint64_t *sums = kv_allocate_array(layout->unit_count, sizeof *sums);
    char *window = kv_window_bytes(part->life, part->window);
    for (uint32_t i = 0; i < part->count && part->status == KV_OK; i++) {
        char *to = window + i * layout->object_bytes;
        if (put->slots != NULL) {
            part->status = copy_slot(part, i, to, sums);
        } else {
            copy_pieces(part, i, to, sums);
        }
        part->checksums[i] = kv_layout_object_checksum(layout, &put->keys[part->first + i], sums);
    }
    free(sums);
    kv_checksum_copy_fence();
    kv_store_finish(task);
}

/* ---- to the service ---- */

/* What an offer and a window have in common. */
static Kvist__Store__Put ask_of(const kv_attached_put_t *put, uint32_t first, uint32_t count)
{
    const kv_attached_lease_t *lease = put->transfer.lease;
    const kv_attached_t *attached = store_of(put);
    size_t block_tokens = attached->layout.block_tokens;
    Kvist__Store__Put asked = KVIST__STORE__PUT__INIT;
    uint32_t number = put->first_block + first;
    uint64_t now_ns = attached->inner->clock->monotonic_ns(attached->inner->clock);
    asked.lease = lease->number;
    asked.group = put->group;
    asked.first_block = number;
    asked.block_count = count;
    asked.arithmetic = (char *)put->arithmetic;
    asked.wait_ns = put->deadline_ns > now_ns ? put->deadline_ns - now_ns : 0;
    asked.tokens = (ProtobufCBinaryData){count * block_tokens * sizeof(uint32_t),
        (uint8_t *)(void *)(lease->tokens + number * block_tokens)};
    asked.extras = kv_attached_pack_extras(lease->extras + number, count);
    return asked;
}

/* So many more blocks are stored. */
static void publish(kv_attached_put_t *put, uint32_t count)
{
    kv_attached_lease_t *lease = put->transfer.lease;
    put->published += count;
    if (put->group == 0) {
        uint32_t end = put->first_block + put->published;
        lease->service_count = end;
        lease->sealed_count = end > lease->sealed_count ? end : lease->sealed_count;
    }
}

static void free_part(part_t *part)
{
    kv_life_release(part->life);
    free(part->checksums);
    free(part);
}

static void part_answered(void *owner, const Kvist__Store__Answer *answer)
{
    part_t *part = owner;
    kv_attached_put_t *put = part->put;
    bool done = answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_DONE;
    if (answer != NULL) {
        kv_window_give(store_of(put), part->life, part->window);
    }
    if (!done) {
        stop(put, KV_PEER_LOST);
    } else {
        uint64_t count = answer->done->count;
        if (!put->ending || put->status == KV_CANCELLED) {
            publish(put, count < part->count ? (uint32_t)count : part->count);
        }
        if (answer->done->code != KV_OK) {
            stop(put, answer->done->code <= KV_FATAL ? (kv_status_t)answer->done->code : KV_FATAL);
        }
    }
    put->parts_out--;
    free_part(part);
    advance(put);
}

static void end_unsent(part_t *part)
{
    kv_window_give(store_of(part->put), part->life, part->window);
    part->put->parts_out--;
    free_part(part);
}

/* Parts leave in their order, as far as they are copied. */
static void send_parts(kv_attached_put_t *put)
{
    while (put->first_part != NULL && put->first_part->copied) {
        part_t *part = put->first_part;
        put->first_part = part->next;
        if (put->first_part == NULL) {
            put->last_part = NULL;
        }
        if (put->ending || !part->life->up) {
            stop(put, KV_PEER_LOST);
            end_unsent(part);
            continue;
        }
        Kvist__Store__Put asked = ask_of(put, part->first, part->count);
        asked.offset = part->window * part->life->window_bytes;
        asked.checksums = (ProtobufCBinaryData){
            part->count * sizeof *part->checksums, (uint8_t *)(void *)part->checksums};
        kv_status_t status = kv_link_ask(
            store_of(put), KVIST__STORE__REQUEST__BODY_PUT, &asked, &asked.id, part_answered, part);
        if (status != KV_OK) {
            stop(put, status);
            end_unsent(part);
        }
    }
}

static void copied(kv_task_t *task)
{
    part_t *part = (part_t *)task;
    part->copied = true;
    if (part->status != KV_OK) {
        stop(part->put, part->status);
    }
    advance(part->put);
}

/* Copies of the next blocks begin, as far as there are windows. */
static void move_on(kv_attached_put_t *put)
{
    kv_attached_t *attached = store_of(put);
    size_t object_bytes = layout_of(put)->object_bytes;
    while (!put->ending && put->next < put->block_count && put->parts_out < WINDOWS_AT_ONCE) {
        kv_life_t *life = put->transfer.lease->life;
        if (!life->up) {
            stop(put, KV_PEER_LOST);
            return;
        }
        uint32_t window = kv_window_take(attached);
        if (window == UINT32_MAX) {
            kv_window_wait(attached, &put->wait);
            return;
        }
        uint32_t fit = (uint32_t)(life->window_bytes / object_bytes);
        uint32_t left = put->block_count - put->next;
        part_t *part = kv_allocate(sizeof *part);
        *part = (part_t){
            .task = {.work = copy_out, .done = copied, .store = attached->inner},
            .put = put,
            .life = life,
            .window = window,
            .first = put->next,
            .count = left < fit ? left : fit,
        };
        part->checksums = kv_allocate_array(part->count, sizeof *part->checksums);
        kv_life_hold(life);
        if (put->last_part != NULL) {
            put->last_part->next = part;
        } else {
            put->first_part = part;
        }
        put->last_part = part;
        put->parts_out++;
        put->next += part->count;
        kv_store_submit_sized(attached->inner, &part->task, part->count * object_bytes);
    }
}

/* ---- the turn ---- */

static void offer_answered(void *owner, const Kvist__Store__Answer *answer)
{
    kv_attached_put_t *put = owner;
    put->offers_out--;
    if (answer == NULL || answer->body_case != KVIST__STORE__ANSWER__BODY_DONE) {
        stop(put, KV_PEER_LOST);
    } else {
        uint64_t count = answer->done->count;
        publish(put, count < put->offered ? (uint32_t)count : put->offered);
        put->next = put->published;
        put->state = answer->done->code == KV_OK && put->published < put->block_count
                         ? PUT_WAITING /* all that was offered: the rest is next */
                         : PUT_MOVING;
        if (answer->done->code != KV_OK && answer->done->code != KV_MISSING) {
            stop(put, answer->done->code <= KV_FATAL ? (kv_status_t)answer->done->code : KV_FATAL);
        }
    }
    advance(put);
}

static void make_keys(kv_attached_put_t *put)
{
    const kvist_key_t *keys =
        kv_attached_keys(put->transfer.lease, put->first_block + put->block_count);
    put->keys = kv_allocate_array(put->block_count, sizeof *put->keys);
    for (uint32_t i = 0; i < put->block_count; i++) {
        put->keys[i] = kv_identity_group_key(&keys[put->first_block + i], put->group);
    }
}

/* What it goes on from is there, or will not be. */
static void take_turn(kv_attached_put_t *put)
{
    kv_attached_lease_t *lease = put->transfer.lease;
    uint32_t first = put->first_block + put->published;
    uint32_t end = put->first_block + put->block_count;
    if (!lease->storing) {
        stop(put, KV_OK);
        return;
    }
    if (lease->life == NULL || !lease->life->up) {
        stop(put, KV_PEER_LOST);
        return;
    }
    if (put->group == 0 && first > lease->service_count && kv_through_catch_up(lease)) {
        return; /* it has its turn when that has ended */
    }
    if (put->group == 0 ? first != lease->service_count : end > lease->service_count) {
        stop(put, KV_MISSING);
        return;
    }
    if (!kv_link_has_room(store_of(put))) { /* many leases store at once */
        kv_window_wait(store_of(put), &put->wait);
        return;
    }
    if (put->keys == NULL) {
        make_keys(put);
    }
    uint32_t left = put->block_count - put->published;
    put->offered = left < OFFER_BLOCKS_MAX ? left : OFFER_BLOCKS_MAX;
    Kvist__Store__Put asked = ask_of(put, put->published, put->offered);
    kv_status_t status = kv_link_ask(
        store_of(put), KVIST__STORE__REQUEST__BODY_PUT, &asked, &asked.id, offer_answered, put);
    if (status != KV_OK) {
        stop(put, status);
        return;
    }
    put->state = PUT_OFFERED;
    put->offers_out++;
}

static void free_put(kv_attached_put_t *put)
{
    kv_pieces_release(&put->pieces);
    free(put->keys);
    free(put->slots);
    free(put);
}

static void tell(kv_attached_transfer_t *transfer)
{
    kv_attached_put_t *put = (kv_attached_put_t *)transfer;
    kv_status_t status = put->status;
    if (put->through_done != NULL) {
        put->through_done(put->transfer.lease, status, put->published);
    } else {
        if (put->published < put->block_count && transfer->lease->released) {
            status = KV_CANCELLED;
        }
        put->done(put->context, (kvist_lease_t *)transfer->lease, status, put->published);
    }
    free_put(put);
}

static void end(kv_attached_put_t *put)
{
    kv_attached_lease_t *lease = put->transfer.lease;
    kv_window_wait_no_more(store_of(put), &put->wait);
    if (put->through_done == NULL) {
        KV_CHECK(lease->first_put == put);
        lease->first_put = put->next_of_lease;
        if (lease->first_put == NULL) {
            lease->last_put = NULL;
        }
    }
    kv_attached_transfer_end(&put->transfer);
    if (put->through_done == NULL && lease->first_put != NULL) {
        advance(lease->first_put);
    }
}

static void advance(kv_attached_put_t *put)
{
    put->offers_out++; /* what ends at once must not end it before all is done here */
    if (put->state == PUT_WAITING && !put->ending) {
        take_turn(put);
    }
    if (put->state == PUT_MOVING) {
        move_on(put);
    }
    send_parts(put);
    bool through = put->published == put->block_count && put->state == PUT_MOVING;
    bool over = through || put->ending;
    if (--put->offers_out == 0 && put->parts_out == 0 && over) {
        end(put);
    }
}

static void window_ready(kv_window_wait_t *wait)
{
    kv_attached_put_t *put =
        (kv_attached_put_t *)((char *)wait - offsetof(kv_attached_put_t, wait));
    if (store_of(put)->link.state != KV_LINK_UP) {
        stop(put, KV_PEER_LOST);
    }
    advance(put);
}

void kv_attached_put_go_on(kv_attached_lease_t *lease)
{
    if (lease->first_put != NULL && lease->first_put->state == PUT_WAITING) {
        advance(lease->first_put);
    }
}

void kv_attached_put_cancel(kv_attached_lease_t *lease)
{
    for (kv_attached_put_t *put = lease->first_put; put != NULL; put = put->next_of_lease) {
        stop(put, KV_CANCELLED);
    }
    kv_attached_put_t *first = lease->first_put;
    if (first != NULL && first->offers_out + first->parts_out > 0 && lease->life != NULL &&
        lease->life->up) {
        Kvist__Store__CancelPuts cancel = KVIST__STORE__CANCEL_PUTS__INIT;
        cancel.lease = lease->number;
        kv_link_say(kv_lease_attached(lease), KVIST__STORE__REQUEST__BODY_CANCEL_PUTS, &cancel);
    }
    if (first != NULL) {
        advance(first);
    }
}

/* ---- the calls ---- */

static kv_attached_put_t *make_put(kv_attached_lease_t *lease, uint32_t group, uint32_t first,
    uint32_t count, const char *arithmetic)
{
    kv_attached_put_t *put = kv_allocate(sizeof *put);
    *put = (kv_attached_put_t){
        .transfer = {.tell = tell, .lease = lease},
        .group = group,
        .first_block = first,
        .block_count = count,
        .wait = {.ready = window_ready},
    };
    memcpy(put->arithmetic, arithmetic, strlen(arithmetic));
    return put;
}

void kv_attached_put_slots(kv_attached_lease_t *lease, uint32_t first, uint32_t count,
    uint32_t *slots, const char *arithmetic, uint64_t deadline_ns, kv_through_done_t done)
{
    kv_attached_put_t *put = make_put(lease, 0, first, count, arithmetic);
    put->slots = slots;
    put->deadline_ns = deadline_ns;
    put->through_done = done;
    lease->through_put = put;
    advance(put);
}

static bool asks_well(const kv_attached_lease_t *lease, const kvist_put_t *asked)
{
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    if (lease->released || lease->prepare != NULL || lease->prepared ||
        asked->group >= inner->group_count || asked->block_count > KVIST_CHAIN_BLOCKS_MAX ||
        asked->first_block > KVIST_CHAIN_BLOCKS_MAX ||
        (asked->arithmetic != NULL && strlen(asked->arithmetic) > KVIST_ARITHMETIC_BYTES_MAX)) {
        return false;
    }
    uint32_t next = lease->sealed_count;
    for (const kv_attached_put_t *put = lease->first_put; put != NULL; put = put->next_of_lease) {
        if (put->group == 0) {
            next = put->first_block + put->block_count;
        }
    }
    return (asked->tokens != NULL ||
               (asked->extras == NULL &&
                   asked->first_block + asked->block_count <= lease->query_blocks)) &&
           (asked->group > 0 ? asked->first_block + asked->block_count <= next
                             : asked->first_block == next);
}

/* Whether the lease's blocks have these tokens and extra keys. */
static bool are_known(const kv_attached_lease_t *lease, const kvist_put_t *asked)
{
    static const kvist_key_t NONE;
    size_t block_tokens = kv_lease_attached(lease)->layout.block_tokens;
    for (uint32_t i = 0; i < asked->block_count; i++) {
        size_t block = asked->first_block + i;
        const kvist_key_t *extra = asked->extras != NULL ? &asked->extras[i] : &NONE;
        if (memcmp(lease->tokens + block * block_tokens, asked->tokens + i * block_tokens,
                block_tokens * sizeof *asked->tokens) != 0 ||
            !kv_key_equal(&lease->extras[block], extra)) {
            return false;
        }
    }
    return true;
}

/* Tokens of the first group's blocks say what they are; of others they are known by then. */
static bool take_tokens(kv_attached_lease_t *lease, const kvist_put_t *asked)
{
    uint32_t end = asked->first_block + asked->block_count;
    if (asked->tokens == NULL) {
        return true;
    }
    if (asked->group > 0) {
        return end <= lease->token_blocks && are_known(lease, asked);
    }
    kv_attached_note_tokens(
        lease, asked->first_block, asked->tokens, asked->extras, asked->block_count);
    if (lease->key_count > asked->first_block) { /* of other tokens, those of the query */
        lease->key_count = asked->first_block;
    }
    return true;
}

kv_status_t kv_attached_lease_store(kvist_lease_t *of, const kvist_put_t *asked,
    const kvist_piece_t *pieces, size_t piece_count, kvist_stored_t done, void *context)
{
    kv_attached_lease_t *lease = kv_attached_lease_of(of);
    kv_pieces_t list;
    if (!asks_well(lease, asked)) {
        return KV_INVALID;
    }
    size_t object_bytes = kv_lease_attached(lease)->inner->groups[asked->group].layout.object_bytes;
    if (!kv_pieces_init(&list, pieces, piece_count, asked->block_count * object_bytes)) {
        return KV_INVALID;
    }
    if (!take_tokens(lease, asked)) {
        kv_pieces_release(&list);
        return KV_INVALID;
    }
    kv_attached_put_t *put = make_put(lease, asked->group, asked->first_block, asked->block_count,
        asked->arithmetic != NULL ? asked->arithmetic : "");
    put->transfer.counted = true;
    lease->transfers_out++;
    put->pieces = list;
    put->deadline_ns = asked->deadline_ns;
    put->done = done;
    put->context = context;
    if (asked->block_count == 0) {
        stop(put, KV_OK);
    }
    if (lease->last_put != NULL) {
        lease->last_put->next_of_lease = put;
    } else {
        lease->first_put = put;
    }
    lease->last_put = put;
    if (lease->first_put == put) {
        advance(put);
    }
    return KV_OK;
}
