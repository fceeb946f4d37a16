#include "simulation/fake_wire.h"

#include "base/memory.h"
#include "simulation/network.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* After this time a wire gives up on an end that does not answer. */
enum { KEEPALIVE_S = 20, HAPPENINGS_A_TURN = 4 };

typedef enum { REQUESTED, OPENED, RECEIVED, SENT, LOST } kind_t;

/* Accepted by send and not with the wire yet; or lent: in the pipe's own buffer, where the receiver
 * reads it. */
typedef struct leaving leaving_t;

typedef struct happening happening_list_t;
struct happening {
    happening_list_t *next;
    kind_t kind;
    kv_wire_pipe_t *pipe; /* REQUESTED: the asking one */
    leaving_t *lent;      /* RECEIVED: its bytes are there; SENT: it came back */
    uint64_t id;
    void *tag;
    size_t count;
    uint8_t bytes[];
};

struct leaving {
    leaving_t *next;
    kv_wire_pipe_t *pipe;
    const void *bytes; /* the sender's own */
    size_t count;
    void *tag;
    bool gone;
};

struct kv_wire_request {
    kv_wire_pipe_t *from;
    uint64_t id;
};

struct kv_wire_pipe {
    kv_wire_pipe_t *next; /* of the world */
    kv_wire_side_t *side;
    kv_wire_pipe_t *other;
    void *owner;
    bool shm, dropped, cut, lost_said;
    leaving_t *leaving;
    uint8_t *buffers; /* [KV_WIRE_BUFFERS] of a message each; stays for who reads in it */
    size_t buffer_bytes;
};

struct kv_wire_side {
    kv_wire_side_t *next;
    process_t *process;
    kv_wire_params_t params;
    uint16_t port;
    bool closed;
    happening_list_t *ready, **ready_tail;
};

static struct {
    kv_wire_side_t *sides;
    kv_wire_pipe_t *pipes;
    accidents_t accidents;
    uint16_t next_port;
} wire;

void wire_begin(void)
{
    memset(&wire, 0, sizeof wire);
    wire.next_port = DATA_PORT;
}

void wire_set_accidents(const accidents_t *accidents)
{
    wire.accidents = *accidents;
}

/* ---- what happens at a side ---- */

static happening_list_t *happening_create(kind_t kind, kv_wire_pipe_t *pipe, size_t count)
{
    happening_list_t *happening = world_allocate(sizeof *happening + count);
    happening->kind = kind;
    happening->pipe = pipe;
    happening->count = count;
    return happening;
}

static void become_ready(kv_wire_side_t *side, happening_list_t *happening)
{
    if (!side->closed) {
        *side->ready_tail = happening;
        side->ready_tail = &happening->next;
    }
}

static void arrives(void *subject, uint64_t detail)
{
    happening_list_t *happening = subject;
    (void)detail;
    become_ready(happening->pipe->side, happening);
}

static void lose(kv_wire_pipe_t *pipe, uint64_t delay_ns)
{
    if (!pipe->dropped && !pipe->lost_said) {
        pipe->lost_said = true;
        world_after(delay_ns, pipe->side->process, arrives, happening_create(LOST, pipe, 0), 0);
    }
}

/* The other end is gone: when this one hears of it. */
static uint64_t notice_ns(const kv_wire_pipe_t *pipe, const kv_wire_pipe_t *gone)
{
    uint64_t now_ns = world_now_ns();
    uint64_t stalled_ns = network_stalled_until_ns(
        gone->side->process->node->number, pipe->side->process->node->number);
    return (stalled_ns > now_ns ? stalled_ns - now_ns : 0) + between(100 * US, 11 * MS);
}

/* ---- driver ---- */

static kv_status_t wire_open(
    const kv_wire_params_t *params, kv_wire_side_t **side_out, kv_error_t *error)
{
    (void)error;
    kv_wire_side_t *side = world_allocate(sizeof *side);
    side->process = process_current();
    side->params = *params;
    side->port = wire.next_port++;
    side->ready_tail = &side->ready;
    side->next = wire.sides;
    wire.sides = side;
    *side_out = side;
    return KV_OK;
}

static uint16_t wire_port(const kv_wire_side_t *side)
{
    return side->port;
}

static kv_wire_side_t *side_at(uint16_t port)
{
    kv_wire_side_t *side = wire.sides;
    while (side != NULL && (side->port != port || side->closed)) {
        side = side->next;
    }
    return side;
}

static kv_wire_pipe_t *pipe_create(kv_wire_side_t *side, bool shm, void *owner)
{
    kv_wire_pipe_t *pipe = world_allocate(sizeof *pipe);
    pipe->side = side;
    pipe->shm = shm;
    pipe->owner = owner;
    pipe->next = wire.pipes;
    wire.pipes = pipe;
    return pipe;
}

/* Becomes ready at the side it is for, unless nobody is there any more. */
static void knocks(void *subject, uint64_t port)
{
    happening_list_t *happening = subject;
    kv_wire_side_t *to = side_at((uint16_t)port);
    if (to == NULL || to->process->state == PROCESS_DYING) {
        lose(happening->pipe, 1 * MS);
    } else {
        become_ready(to, happening);
    }
}

static kv_status_t wire_connect(kv_wire_side_t *side, const char *host, uint16_t port, uint64_t id,
    bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    (void)host;
    kv_wire_side_t *to = side_at(port);
    if (to == NULL || side->process->state == PROCESS_DYING) {
        return kv_fail(error, KV_PEER_LOST, "nobody is at data port %u", port);
    }
    *pipe_out = pipe_create(side, shm, owner);
    happening_list_t *happening = happening_create(REQUESTED, *pipe_out, 0);
    happening->id = id;
    uint64_t delay_ns = network_arrival_ns(side->process, to->process) - world_now_ns();
    world_after(delay_ns, to->process, knocks, happening, port);
    return KV_OK;
}

static void join(kv_wire_pipe_t *from, kv_wire_pipe_t *pipe)
{
    pipe->other = from;
    from->other = pipe;
    uint64_t delay_ns =
        network_arrival_ns(pipe->side->process, from->side->process) - world_now_ns();
    world_after(delay_ns, from->side->process, arrives, happening_create(OPENED, from, 0), 0);
}

static kv_status_t wire_accept(kv_wire_side_t *side, kv_wire_request_t *request, bool shm,
    void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    if (request->from->dropped) {
        return kv_fail(error, KV_PEER_LOST, "it went away");
    }
    *pipe_out = pipe_create(side, shm, owner);
    join(request->from, *pipe_out);
    return KV_OK;
}

static void wire_reject(kv_wire_side_t *side, kv_wire_request_t *request)
{
    (void)side;
    lose(request->from, between(100 * US, 2 * MS));
}

static void transmit(kv_wire_pipe_t *pipe, const void *bytes, size_t count)
{
    kv_wire_pipe_t *to = pipe->other;
    if (pipe->cut || to == NULL || to->dropped) {
        if (to != NULL && to->dropped) {
            lose(pipe, notice_ns(pipe, to));
        }
        return;
    }
    const accidents_t *accidents = &wire.accidents;
    if (chance(accidents->lost)) {
        trace("a message of %zu bytes is lost", count);
        return;
    }
    uint32_t copies = chance(accidents->doubled) ? 2 : 1;
    for (uint32_t i = 0; i < copies; i++) {
        happening_list_t *happening = happening_create(RECEIVED, to, count);
        memcpy(happening->bytes, bytes, count);
        if (chance(accidents->damaged)) {
            trace("a message of %zu bytes is damaged", count);
            happening->bytes[pick((uint32_t)count)] ^= (uint8_t)(1u << pick(8));
        }
        uint64_t delay_ns =
            network_arrival_ns(pipe->side->process, to->side->process) - world_now_ns();
        world_after(
            delay_ns + between(0, accidents->late_ns), to->side->process, arrives, happening, 0);
    }
}

static void unlink_leaving(leaving_t *leaving)
{
    leaving_t **at = &leaving->pipe->leaving;
    while (*at != leaving) {
        at = &(*at)->next;
    }
    *at = leaving->next;
    leaving->gone = true;
}

static void leaves(void *subject, uint64_t detail)
{
    leaving_t *leaving = subject;
    (void)detail;
    if (leaving->gone) {
        return; /* its pipe was dropped meanwhile */
    }
    unlink_leaving(leaving);
    transmit(leaving->pipe, leaving->bytes, leaving->count);
    happening_list_t *happening = happening_create(SENT, leaving->pipe, 0);
    happening->tag = leaving->tag;
    become_ready(leaving->pipe->side, happening);
}

static void *wire_buffer(kv_wire_pipe_t *pipe, uint32_t index)
{
    if (!pipe->shm) {
        return NULL;
    }
    if (pipe->buffers == NULL) {
        pipe->buffer_bytes = pipe->side->process->node->message_bytes;
        pipe->buffers = world_allocate(KV_WIRE_BUFFERS * pipe->buffer_bytes);
    }
    return pipe->buffers + index * pipe->buffer_bytes;
}

/* The receiver reads where the sender wrote; the buffer comes back when it has. */
static void lend(leaving_t *leaving)
{
    kv_wire_pipe_t *pipe = leaving->pipe, *to = pipe->other;
    if (pipe->cut || to == NULL || to->dropped) {
        return; /* what is lent comes back when the pipe is dropped */
    }
    happening_list_t *happening = happening_create(RECEIVED, to, 0);
    happening->lent = leaving;
    uint64_t delay_ns = network_arrival_ns(pipe->side->process, to->side->process) - world_now_ns();
    world_after(
        delay_ns + between(0, wire.accidents.late_ns), to->side->process, arrives, happening, 0);
}

static void take_lent(const leaving_t *leaving, kv_wire_pipe_t *pipe)
{
    pipe->side->params.upcalls.received(pipe->owner, leaving->bytes, leaving->count);
    happening_list_t *back = happening_create(SENT, leaving->pipe, 0);
    back->lent = (leaving_t *)leaving;
    world_after(between(0, 200 * US), leaving->pipe->side->process, arrives, back, 0);
}

static kv_status_t wire_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag)
{
    const uint8_t *from = bytes;
    bool own = pipe->buffers != NULL && from >= pipe->buffers &&
               from < pipe->buffers + KV_WIRE_BUFFERS * pipe->buffer_bytes;
    if (!own && chance(400)) {
        transmit(pipe, bytes, count);
        return KV_OK;
    }
    leaving_t *leaving = world_allocate(sizeof *leaving);
    *leaving = (leaving_t){pipe->leaving, pipe, bytes, count, tag, false};
    pipe->leaving = leaving;
    if (own) {
        lend(leaving);
        return KV_BUSY;
    }
    world_after(
        process_delay(pipe->side->process, 100 * US), pipe->side->process, leaves, leaving, 0);
    return KV_BUSY;
}

static kv_status_t wire_describe(
    kv_wire_pipe_t *pipe, kv_wire_t *wire_out, char *text_out, size_t text_bytes)
{
    *wire_out = pipe->shm ? KV_WIRE_SHM : KV_WIRE_TCP;
    snprintf(text_out, text_bytes, "simulated");
    return KV_OK;
}

static void wire_drop(kv_wire_pipe_t *pipe)
{
    const kv_wire_upcalls_t *upcalls = &pipe->side->params.upcalls;
    pipe->dropped = true;
    while (pipe->leaving != NULL) {
        leaving_t *leaving = pipe->leaving;
        unlink_leaving(leaving);
        upcalls->sent(pipe->owner, leaving->tag, KV_CANCELLED);
    }
    /* Those that left and whose sent() did not run yet. */
    for (happening_list_t *at = pipe->side->ready; at != NULL; at = at->next) {
        if (at->pipe == pipe && at->kind == SENT && at->lent == NULL) {
            at->pipe = NULL;
            upcalls->sent(pipe->owner, at->tag, KV_OK);
        }
    }
    if (pipe->other != NULL && !pipe->cut) {
        lose(pipe->other, notice_ns(pipe->other, pipe));
    }
}

static void happen(kv_wire_side_t *side, happening_list_t *happening)
{
    const kv_wire_upcalls_t *upcalls = &side->params.upcalls;
    kv_wire_pipe_t *pipe = happening->pipe;
    kv_wire_request_t request = {pipe, happening->id};
    if (happening->kind == REQUESTED) {
        if (!pipe->dropped) {
            upcalls->requested(upcalls->context, &request, happening->id);
        }
        return;
    }
    if (pipe == NULL || pipe->dropped) {
        return;
    }
    switch (happening->kind) {
    case OPENED:
        upcalls->opened(pipe->owner);
        return;
    case RECEIVED:
        if (happening->lent != NULL) {
            take_lent(happening->lent, pipe);
        } else {
            upcalls->received(pipe->owner, happening->bytes, happening->count);
        }
        return;
    case SENT:
        if (happening->lent != NULL) { /* the pipe lives, so that it is still lent */
            unlink_leaving(happening->lent);
            upcalls->sent(pipe->owner, happening->lent->tag, KV_OK);
        } else {
            upcalls->sent(pipe->owner, happening->tag, KV_OK);
        }
        return;
    default:
        upcalls->lost(pipe->owner, KV_PEER_LOST, "the simulated pipe broke");
        return;
    }
}

static unsigned wire_progress(kv_wire_side_t *side)
{
    unsigned happened = 0, most = 1 + pick(HAPPENINGS_A_TURN);
    while (side->ready != NULL && happened < most) {
        happening_list_t *happening = side->ready;
        side->ready = happening->next;
        if (side->ready == NULL) {
            side->ready_tail = &side->ready;
        }
        happen(side, happening);
        happened++;
    }
    return happened;
}

static bool wire_arm(kv_wire_side_t *side)
{
    return side->ready == NULL;
}

static int wire_fd(const kv_wire_side_t *side)
{
    (void)side;
    return -1; /* nobody waits for it: the world takes the mover's turns */
}

static uint64_t wire_rendezvous_count(const kv_wire_side_t *side)
{
    (void)side;
    return 0;
}

static void wire_close(kv_wire_side_t *side)
{
    for (kv_wire_pipe_t *pipe = wire.pipes; pipe != NULL; pipe = pipe->next) {
        if (pipe->side == side && !pipe->dropped) {
            wire_drop(pipe);
        }
    }
    side->closed = true;
    side->ready = NULL;
}

const kv_wire_driver_t FAKE_WIRE = {
    .name = "simulated",
    .open = wire_open,
    .close = wire_close,
    .port = wire_port,
    .connect = wire_connect,
    .accept = wire_accept,
    .reject = wire_reject,
    .buffer = wire_buffer,
    .send = wire_send,
    .describe = wire_describe,
    .drop = wire_drop,
    .progress = wire_progress,
    .arm = wire_arm,
    .fd = wire_fd,
    .rendezvous_count = wire_rendezvous_count,
};

/* ---- for processes and faults ---- */

bool wire_is_ready(const process_t *process)
{
    for (const kv_wire_side_t *side = wire.sides; side != NULL; side = side->next) {
        if (side->process == process && side->ready != NULL) {
            return true;
        }
    }
    return false;
}

void wire_process_ends(process_t *process, bool with_its_host)
{
    for (kv_wire_pipe_t *pipe = wire.pipes; pipe != NULL; pipe = pipe->next) {
        if (pipe->side->process != process || pipe->cut) {
            continue;
        }
        pipe->cut = true;
        lose(pipe, 0);
        if (pipe->other != NULL) {
            pipe->other->cut = true;
            lose(pipe->other, with_its_host ? KEEPALIVE_S * SECOND : notice_ns(pipe->other, pipe));
        }
    }
}

bool wire_cut_any(void)
{
    uint32_t count = 0;
    kv_wire_pipe_t *chosen = NULL;
    for (kv_wire_pipe_t *pipe = wire.pipes; pipe != NULL; pipe = pipe->next) {
        bool up = pipe->other != NULL && !pipe->dropped && !pipe->cut && !pipe->other->dropped;
        if (up && pick(++count) == 0) {
            chosen = pipe;
        }
    }
    if (chosen == NULL) {
        return false;
    }
    trace("data connection %s - %s is cut", chosen->side->process->name,
        chosen->other->side->process->name);
    chosen->cut = chosen->other->cut = true;
    lose(chosen, between(0, 5 * MS));
    lose(chosen->other, between(0, 5 * MS));
    return true;
}
