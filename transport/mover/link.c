/* Links: one data pipe for each authenticated control connection.
 *
 *   connecting side                            accepting side
 *     NEW                                        AWAITED
 *      | connect, id = token's first 8 bytes      | requested(id of an AWAITED link)
 *      v                                          v
 *     CONNECTING --- "KVO1" token ------------> UNPROVEN
 *      |                                          | the token is right
 *      v                                          v
 *     UP <---------- "KVW1" -------------------- UP
 *
 * Whatever else happens, two seconds without coming up included, makes it FAILED; FAILED ends in
 * links_advance, outside of the wire's upcalls: the pipe is dropped (the fence), then what was to
 * be sent or received through it fails, then LINK_DOWN.
 *
 * The id of a connection request is the token's first 8 bytes; its lowest bit is the wire that the
 * connecting side chose: 1 for shared memory. */
#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "kernels/moves.h"
#include "transport/mover/mover_internal.h"

#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINK_UP_LIMIT_MS = 5000 };

link_t *link_find(kv_mover_t *mover, kv_link_t id)
{
    link_t *link = mover->links;
    while (link != NULL && link->id != id) {
        link = link->next;
    }
    return link;
}

void link_fail(link_t *link, kv_status_t status, const char *format, ...)
{
    if (link->state == LINK_FAILED) {
        return;
    }
    link->state = LINK_FAILED;
    link->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(link->reason, sizeof link->reason, format, arguments);
    va_end(arguments);
}

void link_adopt(kv_mover_t *mover, link_t *link)
{
    link->deadline_ns = kv_clock_now_ns() + (uint64_t)LINK_UP_LIMIT_MS * KV_NS_PER_MS;
    link->queue_tail = &link->queue;
    link->next = mover->links;
    mover->links = link;
}

void link_expect_progress(link_t *link)
{
    if (link->state == LINK_UP) {
        link->deadline_ns = link->mover->now_ns + (uint64_t)KV_MOVER_STALL_MS * KV_NS_PER_MS;
    }
}

static uint64_t request_id(const link_t *link)
{
    return kv_get_u64(link->token) >> 1 << 1;
}

static bool staging_open(link_t *link)
{
    const kv_wire_driver_t *driver = link->mover->driver;
    for (uint32_t i = 0; i < KV_MOVER_IN_FLIGHT; i++) {
        staging_t *staging = &link->staging[i];
        staging->bytes = driver->buffer != NULL ? driver->buffer(link->pipe, i) : NULL;
        if (staging->bytes == NULL) {
            staging->bytes = staging->own = malloc(link->mover->message_bytes);
        }
        if (staging->bytes == NULL) {
            link_fail(link, KV_NO_SPACE, "no memory for staging");
            return false;
        }
        staging->pinned = kv_device_pin(link->mover->device, staging->bytes,
                              link->mover->message_bytes, NULL) == KV_OK;
    }
    return true;
}

static void begin_connecting(link_t *link)
{
    kv_mover_t *mover = link->mover;
    if (mover->wire == KV_WIRE_SHM && !link->same_host) {
        link_fail(link, KV_INVALID, "wire is shm, and %s is on another host or in other namespaces",
            link->name);
        return;
    }
    link->shm = mover->wire != KV_WIRE_TCP && link->same_host;
    kv_error_t error;
    kv_status_t status = mover->driver->connect(mover->side, link->host, link->port,
        request_id(link) | link->shm, link->shm, link, &link->pipe, &error);
    if (status != KV_OK) {
        link_fail(link, status, "%s", error.text);
        return;
    }
    if (staging_open(link)) {
        direct_offer_link(link);
        link->state = LINK_CONNECTING;
    }
}

void link_opened(void *owner)
{
    link_t *link = owner;
    if (link->state == LINK_CONNECTING) {
        send_opening(link, KV_DATA_OPEN);
    }
}

static void refuse(kv_mover_t *mover, kv_wire_request_t *request, const char *reason)
{
    atomic_fetch_add(&mover->refused_endpoints, 1);
    kv_log_warn("transport", "data connection refused: %s", reason);
    mover->driver->reject(mover->side, request);
}

void link_requested(void *context, kv_wire_request_t *request, uint64_t id)
{
    kv_mover_t *mover = context;
    /* The link may have been opened a moment ago: before its token was told to the peer. */
    mover_drain_commands(mover);
    link_t *link = mover->links;
    while (link != NULL && (link->state != LINK_AWAITED || request_id(link) != id >> 1 << 1)) {
        link = link->next;
    }
    if (link == NULL) {
        refuse(mover, request, "no authenticated peer is expected");
        return;
    }
    link->shm = (id & 1) != 0;
    if (link->shm ? mover->wire == KV_WIRE_TCP || !link->same_host : mover->wire == KV_WIRE_SHM) {
        refuse(mover, request, "the peer chose another wire than this node is set to");
        link_fail(link, KV_INVALID, "the peer asked for wire %s, which this node's setting forbids",
            link->shm ? "shm" : "tcp");
        return;
    }
    kv_error_t error;
    kv_status_t status =
        mover->driver->accept(mover->side, request, link->shm, link, &link->pipe, &error);
    if (status != KV_OK) {
        link_fail(link, status, "%s", error.text);
        return;
    }
    if (staging_open(link)) {
        direct_offer_link(link);
        link->state = LINK_UNPROVEN;
    }
}

/* The wire says itself what carries the messages: a link that fell back silently is not used. */
static void come_up(link_t *link)
{
    kv_mover_t *mover = link->mover;
    kv_wire_t wire = KV_WIRE_AUTO;
    char name[64] = "?";
    kv_status_t status = mover->driver->describe(link->pipe, &wire, name, sizeof name);
    if (status != KV_OK || wire != (link->shm ? KV_WIRE_SHM : KV_WIRE_TCP)) {
        link_fail(link, KV_IO, "wire %s was asked for, and %s would carry the messages",
            link->shm ? "shm" : "tcp", name);
        return;
    }
    link->state = LINK_UP;
    link_expect_progress(link);
    link->was_up = true;
    atomic_fetch_add(&mover->links_up, 1);
    kv_log_info("transport", "data link up peer %s wire %s lane %s", link->name,
        link->shm ? "shm" : "tcp", name);
    kv_mover_event_t event = {.kind = KV_MOVED_LINK_UP, .link = link->id};
    snprintf(event.text, sizeof event.text, "%s", link->shm ? "shm" : "tcp");
    mover_emit(mover, &event);
}

static void prove(link_t *link, const uint8_t *bytes, size_t count)
{
    if (kv_data_kind(bytes, count) != KV_DATA_OPEN || count != KV_DATA_OPEN_BYTES ||
        CRYPTO_memcmp(bytes + 4, link->token, KV_DATA_TOKEN_BYTES) != 0) {
        atomic_fetch_add(&link->mover->refused_endpoints, 1);
        link_fail(link, KV_REFUSED, "its first data message does not carry the token");
        return;
    }
    send_opening(link, KV_DATA_WELCOME);
    if (link->state != LINK_FAILED) {
        come_up(link);
    }
}

void link_received(void *owner, const void *bytes, size_t count)
{
    link_t *link = owner;
    switch (link->state) {
    case LINK_UNPROVEN:
        prove(link, bytes, count);
        return;
    case LINK_CONNECTING:
        if (kv_data_kind(bytes, count) == KV_DATA_WELCOME && count == KV_DATA_WELCOME_BYTES) {
            come_up(link);
        } else {
            link_fail(link, KV_REFUSED, "its first data message is no welcome");
        }
        return;
    case LINK_UP:
        receive_blocks(link, bytes, count);
        return;
    case LINK_NEW:
    case LINK_AWAITED:
    case LINK_FAILED:
        return;
    }
}

void link_lost(void *owner, kv_status_t status, const char *reason)
{
    link_fail(owner, status == KV_OK ? KV_PEER_LOST : status, "%s", reason);
}

static void link_end(link_t *link)
{
    kv_mover_t *mover = link->mover;
    for (int i = 0; i < KV_MOVER_IN_FLIGHT; i++) { /* before the pipe takes its buffers back */
        if (link->staging[i].pinned) {
            kv_device_unpin(mover->device, link->staging[i].bytes, mover->message_bytes);
        }
    }
    if (link->pipe != NULL) {
        mover->driver->drop(link->pipe);
        link->pipe = NULL;
    }
    send_fail_queue(link);
    receive_fail_link(mover, link->id, link->reason);
    if (link->was_up) {
        atomic_fetch_sub(&mover->links_up, 1);
    }
    kv_log_info("transport", "data link down peer %s: %s", link->name, link->reason);
    kv_mover_event_t event = {.kind = KV_MOVED_LINK_DOWN, .status = link->status, .link = link->id};
    snprintf(event.text, sizeof event.text, "%s", link->reason);
    mover_emit(mover, &event);
    atomic_fetch_sub(&mover->link_count, 1);
    for (int i = 0; i < KV_MOVER_IN_FLIGHT; i++) {
        free(link->staging[i].own);
    }
    free(link);
}

/* Heartbeats pass on another connection: they do not tell that this one leads nowhere. */
static void link_late(link_t *link)
{
    if (link->state == LINK_UP) {
        link_fail(
            link, KV_PEER_LOST, "nothing that was sent has left for %d ms", KV_MOVER_STALL_MS);
        return;
    }
    if (link->state == LINK_UNPROVEN) {
        atomic_fetch_add(&link->mover->refused_endpoints, 1);
    }
    link_fail(
        link, KV_PEER_LOST, "the peer did not open the data link within %d ms", LINK_UP_LIMIT_MS);
}

uint64_t links_advance(kv_mover_t *mover, uint64_t now_ns)
{
    uint64_t deadline_ns = UINT64_MAX;
    link_t **at = &mover->links;
    while (*at != NULL) {
        link_t *link = *at;
        if (link->state == LINK_NEW) {
            begin_connecting(link);
        }
        if (link->state == LINK_UP ? link->in_flight > 0 : link->state != LINK_FAILED) {
            if (link->deadline_ns <= now_ns) {
                link_late(link);
            } else if (link->deadline_ns < deadline_ns) {
                deadline_ns = link->deadline_ns;
            }
        }
        if (link->state == LINK_FAILED) {
            *at = link->next;
            link_end(link);
        } else {
            at = &link->next;
        }
    }
    return deadline_ns;
}
