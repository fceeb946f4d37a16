/* One connection's life:
 *
 *   (opener)  CONNECTING --connected--> HANDSHAKE --proofs agree--> UP
 *   (acceptor)             accepted --> HANDSHAKE --proofs agree--> UP
 *                                          |                        ^
 *                                          +--------> HELD ---------+   (targets.c says when)
 *   any of them --error, end of stream, deadline, kv_peer_close--> CLOSING --uv_close--> freed
 *
 * Which connections this side opens, and which of two between the same nodes stays, is decided in
 * targets.c. One timer serves all: pauses, deadlines, heartbeats, silence. */
#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "transport/peers/peers_internal.h"

#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TICK_MS = 100,
    LISTEN_BACKLOG = 128,
    NAME_HELD_MS = 2 * KV_PEER_HEARTBEAT_MS, /* a node that lives is heard within this */
};

_Static_assert((int)KV_DIGEST_BYTES == (int)KV_PEER_DIGEST_BYTES, "one digest");

struct kv_outgoing {
    uv_write_t request;
    kv_outgoing_t *next; /* while corked */
    kv_peer_t *peer;
    uint8_t *frame;
    size_t bytes;
};

static void peer_fail(kv_peer_t *peer, kv_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- ends ---- */

static void release(kv_peers_t *peers)
{
    if (--peers->handles > 0) {
        return;
    }
    kv_targets_clear(peers);
    OPENSSL_cleanse(peers->key, peers->identity.cluster_key_bytes);
    free(peers->key);
    free(peers);
}

static void give_down(kv_peer_t *peer)
{
    if (peer->owes_down && !peer->peers->destroyed) {
        peer->owes_down = false;
        kv_log_info("transport", "peer down name %s address %s: %s", peer->facts.name,
            peer->address, peer->end_reason);
        peer->peers->params.callbacks.down(
            peer->peers->params.callbacks.context, peer, peer->end_status, peer->end_reason);
    }
}

static void on_closed(uv_handle_t *handle)
{
    kv_peer_t *peer = handle->data;
    kv_peers_t *peers = peer->peers;
    give_down(peer);
    kv_peer_t **at = &peers->peers;
    while (*at != peer) {
        at = &(*at)->next;
    }
    *at = peer->next;
    peers->count--;
    if (peer->target != NULL) {
        peer->target->connection = NULL;
    }
    while (peer->line != NULL) {
        kv_outgoing_t *next = peer->line->next;
        free(peer->line->frame);
        free(peer->line);
        peer->line = next;
    }
    kv_frame_reader_clear(&peer->reader);
    free(peer->handshake);
    free(peer->held_proof);
    free(peer);
    release(peers);
}

/* A connection that never came up: says why, once for each reason. */
static void report_refusal(kv_peer_t *peer)
{
    const char *kind = peer->end_status == KV_REFUSED   ? "reason=\"handshake\""
                       : peer->end_status == KV_INVALID ? "reason=\"malformed\""
                                                        : "reason=\"lost\"";
    kv_target_t *target = peer->target;
    if (peer->quiet) {
        kv_log_debug(
            "transport", "connection address %s ended: %s", peer->address, peer->end_reason);
        return;
    }
    if (peer->state != PEER_CONNECTING) {
        kv_metric_add(kv_metric_counter("kvist_peers_refused_total", kind,
                          "Control connections that ended before both sides had proved themselves"),
            1);
    }
    /* Once for each reason of a target; of strangers one a tick, however many knock. */
    bool news = target == NULL ? !peer->peers->refusal_logged
                               : strcmp(target->last_reason, peer->end_reason) != 0;
    if (target != NULL) {
        snprintf(target->last_reason, sizeof target->last_reason, "%s", peer->end_reason);
    } else {
        peer->peers->refusal_logged = true;
    }
    if (news) {
        kv_log_warn("transport", "peer %s address %s: %s%s",
            peer->state == PEER_CONNECTING ? "not reached" : "refused", peer->address,
            peer->end_reason, target != NULL ? " (tried again)" : "");
    }
}

/* Accepted, and not proved itself. */
static bool is_stranger(const kv_peer_t *peer)
{
    return peer->target == NULL && peer->state <= PEER_HANDSHAKE;
}

static void peer_end(kv_peer_t *peer, kv_status_t status, const char *reason)
{
    if (peer->state == PEER_CLOSING) {
        return;
    }
    peer->end_status = status;
    snprintf(peer->end_reason, sizeof peer->end_reason, "%s", reason);
    peer->peers->stranger_count -= is_stranger(peer);
    if (peer->state != PEER_UP && !peer->peers->destroyed) {
        report_refusal(peer);
    }
    peer->state = PEER_CLOSING;
    if (peer->target != NULL) {
        kv_target_ended(peer->target, peer->quiet);
    }
    uv_close((uv_handle_t *)&peer->socket, on_closed);
}

void kv_peer_end_quietly(kv_peer_t *peer, const char *reason)
{
    peer->quiet = true;
    peer_end(peer, KV_CANCELLED, reason);
}

/* From the loop's own callbacks: down() runs at once. */
static void peer_fail(kv_peer_t *peer, kv_status_t status, const char *format, ...)
{
    char reason[KV_PEER_REASON_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    peer_end(peer, status, reason);
    give_down(peer);
}

void kv_peer_close(kv_peer_t *peer, kv_status_t status, const char *reason)
{
    peer_end(peer, status, reason);
}

/* ---- sending ---- */

static void on_written(uv_write_t *request, int result)
{
    kv_outgoing_t *outgoing = (kv_outgoing_t *)request;
    kv_peer_t *peer = outgoing->peer;
    peer->queued_bytes -= outgoing->bytes;
    free(outgoing->frame);
    free(outgoing);
    if (result < 0 && result != UV_ECANCELED) {
        peer_fail(peer, KV_PEER_LOST, "cannot send: %s", uv_strerror(result));
    }
}

static void write_now(kv_peer_t *peer, kv_outgoing_t *outgoing)
{
    uv_buf_t buffer = uv_buf_init((char *)outgoing->frame, (unsigned)outgoing->bytes);
    int result = uv_write(&outgoing->request, (uv_stream_t *)&peer->socket, &buffer, 1, on_written);
    if (result < 0) {
        peer->queued_bytes -= outgoing->bytes;
        free(outgoing->frame);
        free(outgoing);
        char reason[96];
        snprintf(reason, sizeof reason, "cannot send: %s", uv_strerror(result));
        peer_end(peer, KV_PEER_LOST, reason);
    }
}

/* Takes the frame. first: past what is corked. */
static void queue_frame(kv_peer_t *peer, uint8_t *frame, size_t bytes, bool first)
{
    kv_outgoing_t *outgoing = kv_allocate(sizeof *outgoing);
    outgoing->peer = peer;
    outgoing->frame = frame;
    outgoing->bytes = bytes;
    peer->queued_bytes += bytes;
    if (peer->corked && !first) {
        *peer->line_tail = outgoing;
        peer->line_tail = &outgoing->next;
        return;
    }
    write_now(peer, outgoing);
}

static void queue_handshake(kv_peer_t *peer, const uint8_t *message, size_t bytes)
{
    uint8_t *frame = kv_allocate(KV_FRAME_HEADER_BYTES + bytes);
    kv_put_u32(frame, (uint32_t)bytes);
    memcpy(frame + KV_FRAME_HEADER_BYTES, message, bytes);
    queue_frame(peer, frame, KV_FRAME_HEADER_BYTES + bytes, true);
}

static void uncork(kv_peer_t *peer)
{
    peer->corked = false;
    while (peer->line != NULL && peer->state == PEER_UP) {
        kv_outgoing_t *outgoing = peer->line;
        peer->line = outgoing->next;
        write_now(peer, outgoing);
    }
}

kv_status_t kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (peer->state != PEER_UP) {
        return KV_PEER_LOST;
    }
    uint8_t *frame;
    size_t bytes;
    kv_error_t error;
    kv_status_t status = kv_frame_pack(&message->base, &frame, &bytes, &error);
    if (status != KV_OK) {
        kv_log_error("transport", "message to %s not sent: %s", peer->facts.name, error.text);
        return status;
    }
    if (peer->queued_bytes + bytes > KV_PEER_QUEUE_BYTES_MAX) {
        free(frame);
        return KV_BUSY;
    }
    queue_frame(peer, frame, bytes, false);
    return peer->state == PEER_UP ? KV_OK : KV_PEER_LOST;
}

static void send_heartbeat(kv_peer_t *peer, uint64_t now_ns)
{
    peer->heartbeat_at_ns = now_ns + (uint64_t)KV_PEER_HEARTBEAT_MS * KV_NS_PER_MS;
    Kvist__Wire__Heartbeat heartbeat = KVIST__WIRE__HEARTBEAT__INIT;
    heartbeat.sequence = ++peer->sequence;
    heartbeat.echo = peer->peer_sequence;
    heartbeat.queued_requests = peer->peers->queued_requests;
    heartbeat.running_requests = peer->peers->running_requests;
    heartbeat.draining = peer->peers->draining;
    heartbeat.attached_to = peer->peers->attached_to;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_HEARTBEAT;
    envelope.heartbeat = &heartbeat;
    /* A full queue that does not move ends as silence; nothing to do about it here. */
    (void)kv_peer_send(peer, &envelope);
}

/* ---- receiving ---- */

/* One name is one node. A connection of that name that still talks belongs to another node, which
 * keeps it: were it replaced, the two would replace each other for ever. One that has fallen silent
 * is of a node that came back before its end was noticed, and makes room. false: the newcomer is
 * refused. */
static bool claim_name(kv_peer_t *peer, const char *name)
{
    kv_peer_t *older = kv_peers_find(peer->peers, name);
    if (older == NULL) {
        return true;
    }
    uint64_t now_ns = kv_clock_now_ns();
    if (kv_targets_crossed(peer, older)) {
        kv_peer_end_quietly(peer, "this side's own connection to that node has just come up");
        return false;
    }
    if (now_ns < older->heard_ns + (uint64_t)NAME_HELD_MS * KV_NS_PER_MS) {
        peer_fail(peer, KV_REFUSED,
            "a node named '%s' is connected already from %s: names are unique in a cluster", name,
            older->address);
        return false;
    }
    peer_fail(older, KV_PEER_LOST, "replaced by a newer connection from %s", peer->address);
    return true;
}

static void come_up(kv_peer_t *peer, const uint8_t *proof, size_t proof_bytes)
{
    kv_peers_t *peers = peer->peers;
    if (!claim_name(peer, peer->handshake->facts.name)) {
        return;
    }
    peer->facts = peer->handshake->facts;
    peers->stranger_count -= is_stranger(peer);
    free(peer->handshake);
    peer->handshake = NULL;
    peer->state = PEER_UP;
    peer->up_ns = kv_clock_now_ns();
    peer->owes_down = true;
    kv_targets_came_up(peer);
    kv_log_info("transport", "peer up name %s role %d address %s version %u", peer->facts.name,
        (int)peer->facts.role, peer->address, peer->facts.version);
    /* Our side of the data link must be expected before the peer learns its token: so up() comes
     * before the Proof goes out, and whatever up() sends waits behind it. */
    peer->corked = proof_bytes > 0;
    peers->params.callbacks.up(peers->params.callbacks.context, peer);
    if (peer->state == PEER_UP && proof_bytes > 0) {
        queue_handshake(peer, proof, proof_bytes);
        uncork(peer);
    }
}

/* Both sides have proved themselves; of an acceptor the other one does not know it yet. */
static void take_proved(kv_peer_t *peer, const uint8_t *proof, size_t proof_bytes)
{
    if (peer->target != NULL || !kv_targets_must_wait(peer)) {
        come_up(peer, proof, proof_bytes);
        return;
    }
    peer->peers->stranger_count--;
    peer->state = PEER_HELD;
    peer->held_proof = kv_allocate(proof_bytes);
    memcpy(peer->held_proof, proof, proof_bytes);
    peer->held_proof_bytes = proof_bytes;
}

static void take_handshake(kv_peer_t *peer, const uint8_t *message, size_t bytes)
{
    uint8_t reply[KV_HELLO_BYTES_MAX];
    size_t reply_bytes;
    kv_error_t error;
    if (kv_targets_met_self(peer, message, bytes)) {
        return;
    }
    kv_status_t status =
        kv_handshake_receive(peer->handshake, message, bytes, reply, &reply_bytes, &error);
    if (status != KV_OK) {
        peer_fail(peer, status, "%s", error.text);
    } else if (peer->handshake->state == KV_HANDSHAKE_DONE) {
        take_proved(peer, reply, reply_bytes);
    } else if (reply_bytes > 0 && kv_targets_want(peer)) {
        queue_handshake(peer, reply, reply_bytes);
    }
}

/* A name, or nothing. */
static void take_attached_to(kv_peer_t *peer, const char *name)
{
    bool is_name = kv_text_is_plain(name, '!', sizeof peer->attached_to - 1);
    snprintf(peer->attached_to, sizeof peer->attached_to, "%s", is_name ? name : "");
}

static void take_message(kv_peer_t *peer, const uint8_t *message, size_t bytes)
{
    Kvist__Wire__Envelope *envelope = kvist__wire__envelope__unpack(NULL, bytes, message);
    if (envelope == NULL) {
        peer_fail(peer, KV_INVALID, "it sent %zu bytes that are no message", bytes);
        return;
    }
    switch (envelope->body_case) {
    case KVIST__WIRE__ENVELOPE__BODY_HELLO:
    case KVIST__WIRE__ENVELOPE__BODY_PROOF:
        peer_fail(peer, KV_INVALID, "it began a second handshake");
        break;
    case KVIST__WIRE__ENVELOPE__BODY_HEARTBEAT:
        peer->peer_sequence = envelope->heartbeat->sequence;
        peer->queued_requests = envelope->heartbeat->queued_requests;
        peer->running_requests = envelope->heartbeat->running_requests;
        peer->draining = envelope->heartbeat->draining;
        take_attached_to(peer, envelope->heartbeat->attached_to);
        break;
    case KVIST__WIRE__ENVELOPE__BODY__NOT_SET:
        break; /* of a newer version */
    default:
        peer->peers->params.callbacks.message(
            peer->peers->params.callbacks.context, peer, envelope);
        break;
    }
    kvist__wire__envelope__free_unpacked(envelope, NULL);
}

static bool frame_too_long(const kv_peer_t *peer)
{
    const kv_frame_reader_t *reader = &peer->reader;
    return peer->state != PEER_UP && reader->count - reader->taken >= KV_FRAME_HEADER_BYTES &&
           kv_get_u32(reader->bytes + reader->taken) > KV_HELLO_BYTES_MAX;
}

static void take_frames(kv_peer_t *peer)
{
    while (peer->state == PEER_HANDSHAKE || peer->state == PEER_UP) {
        if (frame_too_long(peer)) {
            peer_fail(peer, KV_INVALID, "a frame above %d bytes before authentication",
                KV_HELLO_BYTES_MAX);
            return;
        }
        const uint8_t *message;
        size_t bytes;
        kv_error_t error;
        kv_status_t status = kv_frame_reader_next(&peer->reader, &message, &bytes, &error);
        if (status == KV_MISSING) {
            return;
        }
        if (status != KV_OK) {
            peer_fail(peer, status, "%s", error.text);
        } else if (peer->state == PEER_UP) {
            take_message(peer, message, bytes);
        } else {
            take_handshake(peer, message, bytes);
        }
    }
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer_out)
{
    (void)suggested;
    kv_peer_t *peer = handle->data;
    *buffer_out = uv_buf_init((char *)peer->peers->read_buffer, KV_PEER_READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer)
{
    kv_peer_t *peer = stream->data;
    if (peer->state == PEER_CLOSING || count == 0) {
        return;
    }
    if (count < 0) {
        const char *what = count == UV_EOF ? "it closed the connection" : uv_strerror((int)count);
        if (peer->state != PEER_UP && kv_targets_expect_end(peer)) {
            kv_peer_end_quietly(peer, "it has no use for this connection");
        } else if (peer->state == PEER_HANDSHAKE) {
            peer_fail(peer, KV_PEER_LOST, "%s during the handshake%s", what,
                peer->target != NULL ? ": its log says why (key, version, name, model)" : "");
        } else {
            peer_fail(peer, KV_PEER_LOST, "%s", what);
        }
        return;
    }
    if (peer->state == PEER_HELD) {
        peer_fail(peer, KV_INVALID, "it spoke before this side had proved itself");
        return;
    }
    peer->heard_ns = kv_clock_now_ns();
    kv_frame_reader_push(&peer->reader, buffer->base, (size_t)count);
    take_frames(peer);
}

/* ---- connections ---- */

static kv_peer_t *peer_create(kv_peers_t *peers, kv_target_t *target)
{
    kv_peer_t *peer = kv_allocate(sizeof *peer);
    peer->peers = peers;
    peer->target = target;
    peer->id = peers->next_id++;
    peer->state = PEER_CONNECTING;
    peer->line_tail = &peer->line;
    peer->deadline_ns = kv_clock_now_ns() + (uint64_t)KV_PEER_CONNECT_MS * KV_NS_PER_MS;
    KV_CHECK(uv_tcp_init(peers->params.loop, &peer->socket) == 0);
    peer->socket.data = peer;
    peers->handles++;
    peers->count++;
    peers->stranger_count += target == NULL;
    peer->next = peers->peers;
    peers->peers = peer;
    return peer;
}

static void begin_handshake(kv_peer_t *peer)
{
    struct sockaddr_storage address;
    int address_bytes = sizeof address;
    if (uv_tcp_getpeername(&peer->socket, (struct sockaddr *)&address, &address_bytes) != 0) {
        peer_fail(peer, KV_PEER_LOST, "it went away");
        return;
    }
    kv_address_host(&address, peer->host);
    kv_address_text(&address, peer->address);
    peer->state = PEER_HANDSHAKE;
    peer->deadline_ns = kv_clock_now_ns() + (uint64_t)KV_PEER_HANDSHAKE_MS * KV_NS_PER_MS;
    uv_tcp_nodelay(&peer->socket, 1);
    kv_error_t error;
    peer->handshake = kv_allocate(sizeof *peer->handshake);
    kv_status_t status =
        kv_handshake_begin(peer->handshake, &peer->peers->identity, peer->target != NULL, &error);
    if (status != KV_OK) {
        peer_fail(peer, status, "%s", error.text);
        return;
    }
    queue_handshake(peer, peer->handshake->own_hello, peer->handshake->own_hello_bytes);
    int result = uv_read_start((uv_stream_t *)&peer->socket, on_allocate, on_read);
    if (result < 0) {
        peer_fail(peer, KV_PEER_LOST, "cannot read: %s", uv_strerror(result));
    }
}

/* Who is in its handshake for longest; there is one. */
static kv_peer_t *oldest_stranger(kv_peers_t *peers)
{
    kv_peer_t *oldest = NULL;
    for (kv_peer_t *peer = peers->peers; peer != NULL; peer = peer->next) { /* newest first */
        oldest = peer->target == NULL && peer->state == PEER_HANDSHAKE ? peer : oldest;
    }
    return oldest;
}

static void on_connection(uv_stream_t *listener, int result)
{
    kv_peers_t *peers = listener->data;
    if (result < 0 || peers->destroyed) {
        return;
    }
    bool full = peers->count >= KV_PEERS_MAX;
    if (!full && peers->stranger_count >= KV_PEERS_PENDING_MAX) {
        /* Whoever has the key needs its place for a moment only: the newcomer may be one. */
        peer_fail(oldest_stranger(peers), KV_BUSY, "silent, and %d others have come since",
            KV_PEERS_PENDING_MAX);
    }
    kv_peer_t *peer = peer_create(peers, NULL);
    snprintf(peer->address, sizeof peer->address, "?");
    result = uv_accept(listener, (uv_stream_t *)&peer->socket);
    if (result < 0) {
        peer_fail(peer, KV_PEER_LOST, "cannot accept: %s", uv_strerror(result));
    } else if (full) {
        peer_fail(peer, KV_BUSY, "%u connections: no more are taken", peers->count - 1);
    } else {
        begin_handshake(peer);
    }
}

static void on_connected(uv_connect_t *request, int result)
{
    kv_peer_t *peer = request->data;
    if (peer->state == PEER_CLOSING) {
        return;
    }
    if (result < 0) {
        peer_fail(peer, KV_PEER_LOST, "cannot connect: %s", uv_strerror(result));
        return;
    }
    begin_handshake(peer);
}

void kv_peer_open(kv_peers_t *peers, kv_target_t *target)
{
    if (peers->count >= KV_PEERS_MAX) {
        kv_target_ended(target, false);
        return;
    }
    kv_peer_t *peer = peer_create(peers, target);
    target->connection = peer;
    snprintf(peer->address, sizeof peer->address, "%s", target->text);
    peer->connect.data = peer;
    int result = uv_tcp_connect(
        &peer->connect, &peer->socket, (const struct sockaddr *)&target->address, on_connected);
    if (result < 0) {
        char reason[96];
        snprintf(reason, sizeof reason, "cannot connect: %s", uv_strerror(result));
        peer_end(peer, KV_PEER_LOST, reason);
    }
}

/* ---- time ---- */

static void look_after(kv_peer_t *peer, uint64_t now_ns)
{
    if (peer->state == PEER_UP) {
        uint64_t silence_ms = (now_ns - peer->heard_ns) / KV_NS_PER_MS;
        if (now_ns > peer->heard_ns && silence_ms >= KV_PEER_SILENCE_MS) {
            peer_fail(peer, KV_PEER_LOST, "silent for %llu ms", (unsigned long long)silence_ms);
        } else if (now_ns >= peer->heartbeat_at_ns) {
            send_heartbeat(peer, now_ns);
        }
    } else if (peer->state != PEER_CLOSING && now_ns >= peer->deadline_ns) {
        bool connecting = peer->state == PEER_CONNECTING;
        peer_fail(peer, KV_PEER_LOST, "%s for %d ms",
            connecting ? "no answer to connecting" : "no complete handshake",
            connecting ? KV_PEER_CONNECT_MS : KV_PEER_HANDSHAKE_MS);
    } else if (peer->state == PEER_HELD && !kv_targets_must_wait(peer)) {
        come_up(peer, peer->held_proof, peer->held_proof_bytes);
    }
}

static void on_tick(uv_timer_t *timer)
{
    kv_peers_t *peers = timer->data;
    uint64_t now_ns = kv_clock_now_ns();
    /* Where this loop itself slept, the peers' silence is not theirs: what they said meanwhile has
     * not been read yet. */
    uint64_t late_ns = now_ns - peers->last_tick_ns;
    uint64_t credit_ns = late_ns > KV_NS_PER_S ? late_ns : 0;
    peers->last_tick_ns = now_ns;
    peers->refusal_logged = false;
    for (kv_peer_t *peer = peers->peers; peer != NULL; peer = peer->next) {
        peer->heard_ns += credit_ns;
        peer->deadline_ns += credit_ns;
        look_after(peer, now_ns);
    }
    kv_targets_tick(peers, now_ns);
}

/* ---- life ---- */

static kv_status_t check_params(const kv_peers_params_t *params, kv_error_t *error)
{
    size_t name_bytes = strlen(params->name);
    if (name_bytes == 0 || name_bytes >= KV_PEER_NAME_BYTES) {
        return kv_fail(error, KV_INVALID, "the node's name has %zu bytes, not 1 to %d", name_bytes,
            KV_PEER_NAME_BYTES - 1);
    }
    if (params->cluster_key_bytes < KV_CLUSTER_KEY_BYTES_MIN ||
        params->cluster_key_bytes > INT32_MAX) {
        return kv_fail(error, KV_INVALID, "the cluster key has %zu bytes, at least %d are needed",
            params->cluster_key_bytes, KV_CLUSTER_KEY_BYTES_MIN);
    }
    return KV_OK;
}

static kv_status_t open_listener(kv_peers_t *peers, kv_error_t *error)
{
    struct sockaddr_storage address;
    kv_status_t status = kv_address_from_parts(
        peers->params.listen_host, peers->params.listen_port, &address, error);
    if (status != KV_OK) {
        return status;
    }
    int result = uv_tcp_bind(&peers->listener, (const struct sockaddr *)&address, 0);
    if (result == 0) {
        result = uv_listen((uv_stream_t *)&peers->listener, LISTEN_BACKLOG, on_connection);
    }
    int address_bytes = sizeof address;
    if (result == 0) {
        result = uv_tcp_getsockname(&peers->listener, (struct sockaddr *)&address, &address_bytes);
    }
    if (result < 0) {
        return kv_fail(error, KV_IO, "cannot listen on %s port %u: %s", peers->params.listen_host,
            peers->params.listen_port, uv_strerror(result));
    }
    peers->port = kv_address_port(&address);
    return KV_OK;
}

kv_status_t kv_peers_create(
    const kv_peers_params_t *params, kv_peers_t **peers_out, kv_error_t *error)
{
    kv_status_t status = check_params(params, error);
    if (status != KV_OK) {
        return status;
    }
    kv_peers_t *peers = kv_allocate(sizeof *peers);
    peers->params = *params;
    snprintf(peers->name, sizeof peers->name, "%s", params->name);
    peers->key = kv_allocate(params->cluster_key_bytes);
    memcpy(peers->key, params->cluster_key, params->cluster_key_bytes);
    if (params->model != NULL) {
        memcpy(peers->model, params->model, sizeof peers->model);
    }
    if (params->layout != NULL) {
        memcpy(peers->layout, params->layout, sizeof peers->layout);
    }
    if (params->layout_text != NULL) {
        snprintf(peers->layout_text, sizeof peers->layout_text, "%s", params->layout_text);
    }
    peers->identity = (kv_identity_t){
        .name = peers->name,
        .role = params->role,
        .version = KV_WIRE_VERSION,
        .version_min = KV_WIRE_VERSION_MIN,
        .data_port = params->data_port,
        .model = params->model != NULL ? peers->model : NULL,
        .layout = params->layout != NULL ? peers->layout : NULL,
        .layout_text = params->layout_text != NULL ? peers->layout_text : NULL,
        .cluster_key = peers->key,
        .cluster_key_bytes = params->cluster_key_bytes,
    };
    peers->next_id = 1;
    peers->last_tick_ns = kv_clock_now_ns();
    KV_CHECK(uv_tcp_init(params->loop, &peers->listener) == 0);
    KV_CHECK(uv_timer_init(params->loop, &peers->timer) == 0);
    peers->listener.data = peers;
    peers->timer.data = peers;
    peers->handles = 2;
    if (params->listen_host != NULL) {
        status = open_listener(peers, error);
    }
    if (status != KV_OK) {
        kv_peers_destroy(peers);
        return status;
    }
    KV_CHECK(uv_timer_start(&peers->timer, on_tick, TICK_MS, TICK_MS) == 0);
    *peers_out = peers;
    return KV_OK;
}

static void on_handle_closed(uv_handle_t *handle)
{
    release(handle->data);
}

void kv_peers_destroy(kv_peers_t *peers)
{
    if (peers == NULL) {
        return;
    }
    KV_CHECK(!peers->destroyed);
    peers->destroyed = true;
    for (kv_peer_t *peer = peers->peers; peer != NULL; peer = peer->next) {
        peer_end(peer, KV_CANCELLED, "this node stops");
    }
    uv_close((uv_handle_t *)&peers->listener, on_handle_closed);
    uv_close((uv_handle_t *)&peers->timer, on_handle_closed);
}

uint16_t kv_peers_port(const kv_peers_t *peers)
{
    return peers->port;
}

/* ---- looking at peers ---- */

void kv_peers_visit(kv_peers_t *peers, void (*visit)(void *context, kv_peer_t *peer), void *context)
{
    for (kv_peer_t *peer = peers->peers; peer != NULL; peer = peer->next) {
        if (peer->state == PEER_UP) {
            visit(context, peer);
        }
    }
}

kv_peer_t *kv_peers_find(kv_peers_t *peers, const char *name)
{
    kv_peer_t *peer = peers->peers;
    while (peer != NULL && (peer->state != PEER_UP || strcmp(peer->facts.name, name) != 0)) {
        peer = peer->next;
    }
    return peer;
}

size_t kv_peer_queued_bytes(const kv_peer_t *peer)
{
    return peer->queued_bytes;
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    return peer->facts.name;
}

Kvist__Wire__Role kv_peer_role(const kv_peer_t *peer)
{
    return peer->facts.role;
}

const char *kv_peer_address(const kv_peer_t *peer)
{
    return peer->address;
}

uint64_t kv_peer_id(const kv_peer_t *peer)
{
    return peer->id;
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    return peer->facts.version;
}

const char *kv_peer_attached_to(const kv_peer_t *peer)
{
    return peer->attached_to;
}

void kv_peers_set_attached_to(kv_peers_t *peers, const char *name)
{
    snprintf(peers->attached_to, sizeof peers->attached_to, "%s", name);
}

bool kv_peer_draining(const kv_peer_t *peer)
{
    return peer->draining;
}

uint32_t kv_peer_queued_requests(const kv_peer_t *peer)
{
    return peer->queued_requests;
}

uint32_t kv_peer_running_requests(const kv_peer_t *peer)
{
    return peer->running_requests;
}

void kv_peers_set_load(kv_peers_t *peers, uint32_t queued_requests, uint32_t running_requests)
{
    peers->queued_requests = queued_requests;
    peers->running_requests = running_requests;
}

void kv_peers_set_draining(kv_peers_t *peers, bool draining)
{
    peers->draining = draining;
    uint64_t now_ns = kv_clock_now_ns();
    for (kv_peer_t *peer = peers->peers; peer != NULL; peer = peer->next) {
        if (peer->state == PEER_UP) {
            send_heartbeat(peer, now_ns);
        }
    }
}

bool kv_peer_link_params(const kv_peer_t *peer, kv_link_params_t *params_out)
{
    if (peer->peers->identity.data_port == 0 || peer->facts.data_port == 0) {
        return false;
    }
    *params_out = (kv_link_params_t){
        .name = peer->facts.name,
        .host = peer->host,
        .port = peer->facts.data_port,
        .connects = peer->target != NULL,
        .same_host = peer->facts.same_host,
    };
    memcpy(params_out->token, peer->facts.data_token, KV_DATA_TOKEN_BYTES);
    return true;
}

void kv_peer_set_context(kv_peer_t *peer, void *context)
{
    peer->context = context;
}

void *kv_peer_context(const kv_peer_t *peer)
{
    return peer->context;
}
