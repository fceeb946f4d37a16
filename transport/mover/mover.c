/* The mover's calls and its thread. A call checks its arguments, takes from the bound on what it
 * asks for, and hands a command to the thread; the thread does everything else. */
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "transport/mover/mover_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { UNIT_BYTES_MAX = 64 << 20 };

/* ---- the thread ---- */

void mover_emit(kv_mover_t *mover, const kv_mover_event_t *event)
{
    event_mail_t *mail = kv_allocate(sizeof *mail);
    mail->event = *event;
    kv_mailbox_push(&mover->events, &mail->mail);
}

static void carry_out(kv_mover_t *mover, const command_t *command)
{
    link_t *link;
    switch (command->kind) {
    case COMMAND_LINK_OPEN:
        link_adopt(mover, command->object);
        return;
    case COMMAND_LINK_CLOSE:
        link = link_find(mover, command->link);
        if (link != NULL) {
            link_fail(link, KV_CANCELLED, "closed by this node");
        }
        return;
    case COMMAND_SEND:
        send_adopt(mover, command->link, command->object);
        return;
    case COMMAND_CANCEL:
        link = link_find(mover, command->link);
        if (link != NULL) {
            send_cancel(link, command->transfer_id);
        }
        return;
    case COMMAND_EXPECT:
        receive_adopt(mover, command->object);
        return;
    case COMMAND_SHORTEN:
        receive_shorten(mover, command->transfer_id, command->block_count);
        return;
    case COMMAND_REVOKE:
        receive_revoke(mover, command->transfer_id);
        return;
    case COMMAND_STOP:
        mover->stopping = true;
        return;
    }
}

/* Moves entries between lists and nothing else, so that it may run inside an upcall of the wire. */
void mover_drain_commands(kv_mover_t *mover)
{
    kv_mail_t *mail;
    while ((mail = kv_mailbox_pop(&mover->commands)) != NULL) {
        carry_out(mover, (command_t *)mail);
        free(mail);
    }
}

static void wait_for_work(kv_mover_t *mover, uint64_t deadline_ns, uint64_t now_ns)
{
    struct pollfd fds[] = {
        {.fd = mover->driver->fd(mover->side), .events = POLLIN},
        {.fd = mover->commands.event_fd, .events = POLLIN},
    };
    int timeout_ms = -1;
    if (deadline_ns != UINT64_MAX) {
        timeout_ms = deadline_ns <= now_ns ? 0 : (int)((deadline_ns - now_ns) / KV_NS_PER_MS) + 1;
    }
    while (poll(fds, 2, timeout_ms) < 0 && errno == EINTR) {
    }
}

unsigned mover_turn(kv_mover_t *mover, uint64_t now_ns, uint64_t *deadline_ns_out)
{
    mover->now_ns = now_ns;
    mover_drain_commands(mover);
    if (mover->stopping) {
        return 0;
    }
    unsigned happened = mover->driver->progress(mover->side);
    atomic_store(&mover->rendezvous_messages, mover->driver->rendezvous_count(mover->side));
    *deadline_ns_out = links_advance(mover, now_ns);
    for (link_t *link = mover->links; link != NULL; link = link->next) {
        happened += send_pump(link);
        happened += link->state == LINK_FAILED; /* to be ended before this thread sleeps */
    }
    return happened;
}

static void *run(void *argument)
{
    kv_mover_t *mover = argument;
    uint64_t busy_ns = 0; /* when something happened last */
    while (!mover->stopping) {
        uint64_t now_ns = kv_clock_now_ns(), deadline_ns = UINT64_MAX;
        unsigned happened = mover_turn(mover, now_ns, &deadline_ns);
        if (happened > 0) {
            busy_ns = now_ns;
        } else if (now_ns - busy_ns >= mover->busy_poll_ns && !mover->stopping &&
                   mover->driver->arm(mover->side)) {
            wait_for_work(mover, deadline_ns, now_ns);
        }
    }
    return NULL;
}

/* ---- life ---- */

static kv_status_t check_params(const kv_mover_params_t *params, kv_error_t *error)
{
    if (params->slot_count == 0 || params->slot_bytes == 0) {
        return kv_fail(error, KV_INVALID, "the arena has no slots");
    }
    if (params->unit_bytes == 0 || params->unit_bytes > UNIT_BYTES_MAX ||
        params->slot_bytes % params->unit_bytes != 0 ||
        params->slot_bytes / params->unit_bytes > UINT16_MAX) {
        return kv_fail(error, KV_INVALID,
            "slots of %zu bytes are not made of 1 to %d units of %zu bytes (at most %d)",
            params->slot_bytes, UINT16_MAX, params->unit_bytes, UNIT_BYTES_MAX);
    }
    return KV_OK;
}

kv_status_t mover_create_threadless(
    const kv_mover_params_t *params, kv_mover_t **mover_out, kv_error_t *error)
{
    kv_status_t status = check_params(params, error);
    if (status != KV_OK) {
        return status;
    }
    kv_mover_t *mover = kv_allocate(sizeof *mover);
    mover->device = params->device;
    mover->arena = params->arena;
    mover->slot_count = params->slot_count;
    mover->slot_bytes = params->slot_bytes;
    mover->unit_bytes = params->unit_bytes;
    mover->units_per_block = (uint32_t)(params->slot_bytes / params->unit_bytes);
    mover->wire = params->wire;
    mover->busy_poll_ns = params->busy_poll_ns;
    mover->driver = params->driver != NULL ? params->driver : &kv_wire_ucx;
    size_t unit_message_bytes = kv_data_head_bytes(1) + sizeof(uint64_t) + params->unit_bytes;
    mover->message_bytes =
        unit_message_bytes > KV_MOVER_MESSAGE_BYTES ? unit_message_bytes : KV_MOVER_MESSAGE_BYTES;
    mover->next_link = 1;
    /* A restarted process must not meet ids of its former life. */
    uint64_t start;
    KV_CHECK(getrandom(&start, sizeof start, 0) == sizeof start);
    mover->next_transfer = start | 1;

    kv_wire_params_t wire_params = {
        .host = params->host,
        .port = params->port,
        .shm = params->wire != KV_WIRE_TCP,
        .message_bytes_max = mover->message_bytes,
        .network = params->device->ops->network,
        .upcalls = {mover, link_requested, link_opened, link_received, send_done, link_lost,
            direct_offered, direct_arrived},
    };
    status = mover->driver->open(&wire_params, &mover->side, error);
    if (status != KV_OK) {
        free(mover);
        return status;
    }
    if (wire_params.shm) {
        direct_setup(mover);
    }
    kv_mailbox_init(&mover->commands);
    kv_mailbox_init(&mover->events);
    *mover_out = mover;
    return KV_OK;
}

kv_status_t kv_mover_create(
    const kv_mover_params_t *params, kv_mover_t **mover_out, kv_error_t *error)
{
    kv_status_t status = mover_create_threadless(params, mover_out, error);
    if (status == KV_OK) {
        kv_mover_t *mover = *mover_out;
        mover->threaded = true;
        KV_CHECK(pthread_create(&mover->thread, NULL, run, mover) == 0);
        pthread_setname_np(mover->thread, "mover");
    }
    return status;
}

static void post(kv_mover_t *mover, command_t command)
{
    command_t *mail = kv_allocate(sizeof *mail);
    *mail = command;
    kv_mailbox_push(&mover->commands, &mail->mail);
}

void kv_mover_destroy(kv_mover_t *mover)
{
    if (mover == NULL) {
        return;
    }
    post(mover, (command_t){.kind = COMMAND_STOP});
    if (mover->threaded) {
        pthread_join(mover->thread, NULL);
    }
    /* This thread is the mover's now: the rest of its work is done here. */
    mover_drain_commands(mover);
    for (link_t *link = mover->links; link != NULL; link = link->next) {
        link_fail(link, KV_CANCELLED, "this node stops");
    }
    links_advance(mover, kv_clock_now_ns());
    mover->driver->close(mover->side);
    direct_teardown(mover);
    for (size_t i = 0; i < EXPECTATION_BUCKETS; i++) {
        while (mover->expectations[i] != NULL) {
            expectation_t *next = mover->expectations[i]->next;
            receive_free(mover->expectations[i]);
            mover->expectations[i] = next;
        }
    }
    kv_mailbox_clear(&mover->commands);
    kv_mailbox_clear(&mover->events);
    free(mover);
}

uint16_t kv_mover_port(const kv_mover_t *mover)
{
    return mover->driver->port(mover->side);
}

/* ---- calls ---- */

/* Takes one from a bound; gives it back where the bound was reached. */
static bool take(_Atomic uint32_t *count, uint32_t maximum)
{
    if (atomic_fetch_add(count, 1) < maximum) {
        return true;
    }
    atomic_fetch_sub(count, 1);
    return false;
}

kv_status_t kv_mover_link_open(
    kv_mover_t *mover, const kv_link_params_t *params, kv_link_t *link_out, kv_error_t *error)
{
    if (strlen(params->host) >= LINK_HOST_BYTES) {
        return kv_fail(
            error, KV_INVALID, "the peer's address is longer than %d bytes", LINK_HOST_BYTES - 1);
    }
    if (!take(&mover->link_count, KV_MOVER_LINKS_MAX)) {
        return kv_fail(error, KV_BUSY, "%d links are open", KV_MOVER_LINKS_MAX);
    }
    link_t *link = kv_allocate(sizeof *link);
    *link = (link_t){
        .mover = mover,
        .id = atomic_fetch_add(&mover->next_link, 1),
        .state = params->connects ? LINK_NEW : LINK_AWAITED,
        .port = params->port,
        .connects = params->connects,
        .same_host = params->same_host,
    };
    strncat(link->name, params->name, LINK_NAME_BYTES - 1);
    strncat(link->host, params->host, LINK_HOST_BYTES - 1);
    memcpy(link->token, params->token, KV_DATA_TOKEN_BYTES);
    *link_out = link->id;
    post(mover, (command_t){.kind = COMMAND_LINK_OPEN, .object = link});
    return KV_OK;
}

void kv_mover_link_close(kv_mover_t *mover, kv_link_t link)
{
    post(mover, (command_t){.kind = COMMAND_LINK_CLOSE, .link = link});
}

static kv_status_t check_slots(
    const kv_mover_t *mover, const uint32_t *slots, uint32_t count, kv_error_t *error)
{
    if (count == 0 || count > KV_MOVER_BLOCKS_MAX) {
        return kv_fail(
            error, KV_INVALID, "block count %u is not in 1 to %d", count, KV_MOVER_BLOCKS_MAX);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (slots[i] >= mover->slot_count) {
            return kv_fail(error, KV_INVALID, "slot %u is not below the arena's %u", slots[i],
                mover->slot_count);
        }
    }
    return KV_OK;
}

/* The side that is this node's own must lie in a slot; of a piece's targets only the peer knows
 * where its slots end. */
static kv_status_t check_ranges(const kv_mover_t *mover, const kv_range_t *ranges, uint32_t count,
    bool sends, kv_error_t *error)
{
    if (count == 0 || count > KV_MOVER_RANGES_MAX) {
        return kv_fail(
            error, KV_INVALID, "range count %u is not in 1 to %d", count, KV_MOVER_RANGES_MAX);
    }
    size_t unit_bytes = mover->unit_bytes, slot_bytes = mover->slot_bytes, end = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t target = ranges[i].target_offset_bytes, bytes = ranges[i].bytes;
        size_t own = sends ? ranges[i].source_offset_bytes : target;
        if (bytes == 0 || bytes % unit_bytes != 0 || own % unit_bytes != 0 ||
            target % unit_bytes != 0) {
            return kv_fail(error, KV_INVALID,
                "range %u of %zu bytes from %zu to %zu is not made of units of %zu bytes", i, bytes,
                ranges[i].source_offset_bytes, target, unit_bytes);
        }
        if (bytes > slot_bytes || own > slot_bytes - bytes || target > SIZE_MAX - bytes) {
            return kv_fail(error, KV_INVALID,
                "range %u of %zu bytes at %zu is not in a slot of %zu bytes", i, bytes, own,
                slot_bytes);
        }
        if (target < end) {
            return kv_fail(error, KV_INVALID,
                "range %u to %zu does not follow the one before it, which ends at %zu", i, target,
                end);
        }
        end = target + bytes;
    }
    return KV_OK;
}

static piece_t *piece_make(const kv_piece_t *from)
{
    size_t ranges_bytes = from->range_count * sizeof from->ranges[0];
    size_t slots_bytes = from->block_count * sizeof from->slots[0];
    piece_t *piece = kv_allocate(sizeof *piece + ranges_bytes + slots_bytes);
    piece->transfer_id = from->transfer_id;
    piece->tag = from->tag;
    piece->first_block = from->first_block;
    piece->block_count = from->block_count;
    piece->range_count = from->range_count;
    for (uint32_t i = 0; i < from->range_count; i++) {
        piece->block_bytes += from->ranges[i].bytes;
    }
    memcpy(piece->ranges, from->ranges, ranges_bytes);
    uint32_t *slots = (uint32_t *)&piece->ranges[from->range_count];
    memcpy(slots, from->slots, slots_bytes);
    piece->slots = slots;
    return piece;
}

kv_status_t kv_mover_send(
    kv_mover_t *mover, kv_link_t link, const kv_piece_t *piece, kv_error_t *error)
{
    kv_status_t status = check_slots(mover, piece->slots, piece->block_count, error);
    if (status == KV_OK && piece->first_block > KV_MOVER_BLOCKS_MAX) {
        status = kv_fail(error, KV_INVALID, "first block %u is above %d", piece->first_block,
            KV_MOVER_BLOCKS_MAX);
    }
    if (status == KV_OK) {
        status = check_ranges(mover, piece->ranges, piece->range_count, true, error);
    }
    if (status != KV_OK) {
        return status;
    }
    if (!take(&mover->piece_count, KV_MOVER_PIECES_MAX)) {
        return kv_fail(error, KV_BUSY, "%d pieces wait for their SENT", KV_MOVER_PIECES_MAX);
    }
    post(mover, (command_t){.kind = COMMAND_SEND, .link = link, .object = piece_make(piece)});
    return KV_OK;
}

void kv_mover_cancel(kv_mover_t *mover, kv_link_t link, uint64_t transfer_id)
{
    post(mover, (command_t){.kind = COMMAND_CANCEL, .link = link, .transfer_id = transfer_id});
}

uint64_t kv_mover_transfer_id(kv_mover_t *mover)
{
    uint64_t id;
    do {
        id = atomic_fetch_add(&mover->next_transfer, 1);
    } while (id == 0);
    return id;
}

kv_status_t kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *expectation, kv_error_t *error)
{
    kv_status_t status = check_slots(mover, expectation->slots, expectation->block_count, error);
    kv_expectation_t wanted = *expectation;
    kv_range_t all = kv_range_alike(0, mover->slot_bytes);
    if (wanted.range_count == 0) {
        wanted.ranges = &all;
        wanted.range_count = 1;
    }
    if (status == KV_OK) {
        status = check_ranges(mover, wanted.ranges, wanted.range_count, false, error);
    }
    if (status != KV_OK) {
        return status;
    }
    if (!take(&mover->expectation_count, KV_MOVER_EXPECTATIONS_MAX)) {
        return kv_fail(
            error, KV_BUSY, "%d transfers are expected already", KV_MOVER_EXPECTATIONS_MAX);
    }
    post(mover, (command_t){.kind = COMMAND_EXPECT, .object = receive_make(mover, link, &wanted)});
    return KV_OK;
}

void kv_mover_shorten(kv_mover_t *mover, uint64_t transfer_id, uint32_t block_count)
{
    KV_CHECK(block_count > 0);
    post(mover,
        (command_t){
            .kind = COMMAND_SHORTEN, .transfer_id = transfer_id, .block_count = block_count});
}

void kv_mover_revoke(kv_mover_t *mover, uint64_t transfer_id)
{
    post(mover, (command_t){.kind = COMMAND_REVOKE, .transfer_id = transfer_id});
}

/* ---- events ---- */

int kv_mover_fd(const kv_mover_t *mover)
{
    return mover->events.event_fd;
}

bool kv_mover_poll(kv_mover_t *mover, kv_mover_event_t *event_out)
{
    event_mail_t *mail = (event_mail_t *)kv_mailbox_pop(&mover->events);
    if (mail == NULL) {
        return false;
    }
    *event_out = mail->event;
    free(mail);
    if (event_out->kind == KV_MOVED_SENT) {
        atomic_fetch_sub(&mover->piece_count, 1);
    }
    return true;
}

void kv_mover_stats(kv_mover_t *mover, kv_mover_stats_t *stats_out)
{
    *stats_out = (kv_mover_stats_t){
        .sent_bytes = mover->sent_bytes,
        .received_bytes = mover->received_bytes,
        .sent_messages = mover->sent_messages,
        .received_messages = mover->received_messages,
        .sent_direct_messages = mover->sent_direct_messages,
        .received_direct_messages = mover->received_direct_messages,
        .dropped_messages = mover->dropped_messages,
        .refused_endpoints = mover->refused_endpoints,
        .corrupt_fragments = mover->corrupt_fragments,
        .rendezvous_messages = mover->rendezvous_messages,
        .links_up = mover->links_up,
        .links = mover->link_count,
        .expectations = mover->expectation_count,
        .pieces = mover->piece_count,
    };
}
