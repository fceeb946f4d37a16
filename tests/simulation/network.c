#include "simulation/network.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

typedef enum { SEGMENT_BYTES, SEGMENT_END, SEGMENT_RESET } segment_kind_t;

typedef struct segment segment_t;
struct segment {
    segment_t *next;
    segment_kind_t kind;
    uint64_t arrives_ns;
    size_t count;
    uint8_t bytes[];
};

struct stream {
    stream_t *next;
    process_t *process;
    uint32_t other_node;
    stream_t *other;              /* NULL: not connected */
    void *handle;                 /* NULL: nobody has it (any more) */
    bool closed;                  /* by its owner */
    bool cut;                     /* nothing that is sent arrives */
    bool silent;                  /* nor is it answered, ever */
    segment_t *line, **line_tail; /* on their way to this end */
    segment_t *received, **received_tail;
    size_t taken; /* of the first received one */
    int end;      /* UV_EOF, UV_ECONNRESET once it arrived */
    uint16_t port;
};

static struct {
    stream_t *streams;
    uint64_t latency_ns, jitter_ns;
    uint64_t stalled_until_ns[NODES_MAX][NODES_MAX];
} network;

void network_begin(uint64_t latency_ns, uint64_t jitter_ns)
{
    memset(&network, 0, sizeof network);
    network.latency_ns = latency_ns;
    network.jitter_ns = jitter_ns;
}

/* ---- time ---- */

void network_stall(uint32_t from_node, uint32_t to_node, uint64_t until_ns)
{
    uint64_t *at = &network.stalled_until_ns[from_node][to_node];
    *at = *at > until_ns ? *at : until_ns;
}

uint64_t network_stalled_until_ns(uint32_t from_node, uint32_t to_node)
{
    return network.stalled_until_ns[from_node][to_node];
}

static uint64_t flight_ns(void)
{
    return network.latency_ns + between(0, network.jitter_ns);
}

uint64_t network_arrival_ns(const process_t *from, const process_t *to)
{
    uint64_t at_ns = world_now_ns() + flight_ns();
    uint64_t stalled_ns = network_stalled_until_ns(from->node->number, to->node->number);
    return at_ns > stalled_ns ? at_ns : stalled_ns + between(0, network.jitter_ns);
}

/* ---- segments ---- */

static stream_t *stream_create(process_t *process, uint32_t other_node)
{
    stream_t *stream = world_allocate(sizeof *stream);
    stream->process = process;
    stream->other_node = other_node;
    stream->line_tail = &stream->line;
    stream->received_tail = &stream->received;
    stream->next = network.streams;
    network.streams = stream;
    return stream;
}

static void pump(void *subject, uint64_t detail);

static void put(stream_t *to, segment_kind_t kind, const void *bytes, size_t count)
{
    segment_t *segment = world_allocate(sizeof *segment + count);
    segment->kind = kind;
    segment->count = count;
    if (count > 0) {
        memcpy(segment->bytes, bytes, count);
    }
    segment->arrives_ns = world_now_ns() + flight_ns();
    *to->line_tail = segment;
    to->line_tail = &segment->next;
    world_after(segment->arrives_ns - world_now_ns(), NULL, pump, to, 0);
}

static void tell(stream_t *stream)
{
    if (stream->handle != NULL && !stream->closed) {
        world_after(process_delay(stream->process, 20 * US), stream->process, loop_readable,
            stream->handle, 0);
    }
}

static void end_with(stream_t *stream, int end)
{
    if (stream->end == 0) {
        stream->end = end;
        tell(stream);
    }
}

static void arrive(stream_t *to, segment_t *segment)
{
    if (segment->kind == SEGMENT_RESET) {
        end_with(to, UV_ECONNRESET);
    } else if (to->closed) {
        if (segment->kind == SEGMENT_BYTES && to->other != NULL && !to->other->closed) {
            put(to->other, SEGMENT_RESET, NULL, 0);
        }
    } else if (segment->kind == SEGMENT_END) {
        end_with(to, UV_EOF);
    } else if (to->end == 0) {
        segment->next = NULL;
        *to->received_tail = segment;
        to->received_tail = &segment->next;
        tell(to);
    }
}

/* One event for each segment; in order, whatever became of their times. */
static void pump(void *subject, uint64_t detail)
{
    stream_t *to = subject;
    (void)detail;
    segment_t *segment = to->line;
    uint64_t now_ns = world_now_ns();
    if (segment == NULL) {
        return;
    }
    uint64_t stalled_ns = network_stalled_until_ns(to->other_node, to->process->node->number);
    uint64_t due_ns = segment->arrives_ns > stalled_ns ? segment->arrives_ns : stalled_ns;
    if (due_ns > now_ns) {
        world_after(due_ns - now_ns, NULL, pump, to, 0);
        return;
    }
    to->line = segment->next;
    if (to->line == NULL) {
        to->line_tail = &to->line;
    }
    arrive(to, segment);
}

/* ---- connections ---- */

static void connected(void *subject, uint64_t result)
{
    stream_t *stream = subject;
    if (stream->handle != NULL && !stream->closed) {
        loop_connected(stream->handle, result);
    }
}

static void knock(void *subject, uint64_t detail)
{
    stream_t *stream = subject;
    (void)detail;
    uint32_t from = stream->process->node->number, to = stream->other_node;
    if (stream->closed) {
        return;
    }
    uint64_t there_ns = network_stalled_until_ns(from, to);
    uint64_t back_ns = network_stalled_until_ns(to, from);
    uint64_t stalled_ns = there_ns > back_ns ? there_ns : back_ns;
    if (stalled_ns > world_now_ns()) {
        world_after(stalled_ns - world_now_ns(), NULL, knock, stream, 0);
        return;
    }
    process_t *process = nodes[to].process;
    if (process == NULL || stream->process->state == PROCESS_DYING ||
        !loop_listens(process, stream->port)) {
        world_after(flight_ns(), stream->process, connected, stream, -UV_ECONNREFUSED);
        return;
    }
    stream_t *other = stream_create(process, from);
    other->other = stream;
    stream->other = other;
    loop_offer(process, stream->port, other);
    world_after(flight_ns(), stream->process, connected, stream, 0);
}

stream_t *network_connect(process_t *process, uint16_t port, void *handle)
{
    uint32_t node = (uint32_t)(port - CONTROL_PORT);
    if (port < CONTROL_PORT || node >= node_count) {
        violation("connect to port %u: no node has it", port);
    }
    stream_t *stream = stream_create(process, node);
    stream->handle = handle;
    stream->port = port;
    world_after(flight_ns(), NULL, knock, stream, 0);
    return stream;
}

void network_close(stream_t *stream)
{
    if (!stream->closed) {
        stream->closed = true;
        stream->handle = NULL;
        if (stream->other != NULL && !stream->cut) {
            put(stream->other, SEGMENT_END, NULL, 0);
        }
    }
}

void network_send(stream_t *stream, const void *bytes, size_t count)
{
    if (stream->other != NULL && !stream->cut) {
        put(stream->other, SEGMENT_BYTES, bytes, count);
    } else if (stream->cut && !stream->silent && nodes[stream->other_node].process != NULL) {
        put(stream, SEGMENT_RESET, NULL, 0); /* who is asked knows of no such connection */
    }
}

size_t network_receive(stream_t *stream, void *bytes_out, size_t count, int *end_out)
{
    size_t taken = 0;
    *end_out = 0;
    /* Bytes come in any cut: sometimes a part of what is there. */
    size_t wanted = chance(100) ? 1 + pick(64) : count;
    wanted = wanted < count ? wanted : count;
    while (stream->received != NULL && taken < wanted) {
        segment_t *segment = stream->received;
        size_t left = segment->count - stream->taken;
        size_t part = left < wanted - taken ? left : wanted - taken;
        memcpy((uint8_t *)bytes_out + taken, segment->bytes + stream->taken, part);
        taken += part;
        stream->taken += part;
        if (stream->taken == segment->count) {
            stream->taken = 0;
            stream->received = segment->next;
            if (stream->received == NULL) {
                stream->received_tail = &stream->received;
            }
        }
    }
    if (stream->received != NULL) {
        tell(stream);
    } else if (taken == 0) {
        *end_out = stream->end;
    } else if (stream->end != 0) {
        tell(stream);
    }
    return taken;
}

void network_set_handle(stream_t *stream, void *handle)
{
    stream->handle = handle;
    tell(stream);
}

uint32_t network_other_node(const stream_t *stream)
{
    return stream->other_node;
}

/* ---- faults ---- */

/* What is on its way is lost from some point on, or all of it. */
static void drop_line(stream_t *stream, bool all)
{
    segment_t **at = &stream->line;
    while (*at != NULL && !all && chance(700)) {
        at = &(*at)->next;
    }
    *at = NULL;
    stream->line_tail = at;
}

void network_process_ends(process_t *process, bool with_its_host)
{
    for (stream_t *stream = network.streams; stream != NULL; stream = stream->next) {
        if (stream->process != process) {
            continue;
        }
        stream_t *other = stream->other;
        if (other != NULL && !stream->cut && !stream->closed) {
            if (with_its_host) {
                drop_line(other, true);
                other->cut = true;
            } else {
                put(other, chance(500) ? SEGMENT_END : SEGMENT_RESET, NULL, 0);
            }
        }
        stream->cut = true;
        drop_line(stream, true);
        end_with(stream, UV_ECONNRESET); /* for its own tearing down */
    }
}

bool network_cut_any(cut_t cut)
{
    uint32_t count = 0;
    stream_t *chosen = NULL;
    for (stream_t *stream = network.streams; stream != NULL; stream = stream->next) {
        bool up = stream->other != NULL && !stream->closed && !stream->cut && stream->end == 0 &&
                  !stream->other->closed && !stream->other->cut;
        if (up && pick(++count) == 0) {
            chosen = stream;
        }
    }
    if (chosen == NULL) {
        return false;
    }
    stream_t *ends[] = {chosen, chosen->other};
    trace("control connection %s - %s is cut (%d)", ends[0]->process->name, ends[1]->process->name,
        (int)cut);
    bool silent = chance(500);
    for (int i = 0; i < 2; i++) {
        drop_line(ends[i], chance(500));
        ends[i]->cut = true;
        ends[i]->silent = silent;
        if (cut == CUT_BOTH || (cut == CUT_ONE && i == 0)) {
            put(ends[i], SEGMENT_RESET, NULL, 0);
        }
    }
    return true;
}
