/* The wire's plain twin: pipes between sides of one process. One mutex guards everything; it is
 * never held while an upcall runs. As over UCX, a large message that was built in a pipe's buffer
 * is read there and comes back when it was, where the pipe says "shm"; others are copied. Direct
 * messages are read out of the sender's memory when the receiver has said where they go. */
#include "base/check.h"
#include "base/memory.h"
#include "transport/mover/wire.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { FIRST_PORT = 1000, LENT_BYTES_MIN = 4096 };

/* A pipe's buffers. Whoever reads in them keeps them, as a map of shared memory would. */
typedef struct {
    uint32_t holders;
    uint8_t bytes[];
} segment_t;

/* A direct message whose sender has not been told that it was read. */
typedef struct unread unread_t;
struct unread {
    unread_t *next;
    void *tag;
    bool read;
};

typedef struct message message_t;
struct message {
    message_t *next;
    const uint8_t *at;
    size_t count;
    segment_t *segment; /* holds what is at; NULL: it is behind this */
    uint32_t buffer;    /* of the segment */
    bool direct;        /* at is the sender's mapped memory; its head is behind this */
    size_t head_bytes;
    void *tag;
    uint8_t bytes[];
};

struct kv_wire_request {
    kv_wire_request_t *next;
    kv_wire_pipe_t *from;
    uint64_t id;
};

struct kv_wire_pipe {
    kv_wire_pipe_t *next;
    kv_wire_side_t *side;
    kv_wire_pipe_t *other; /* NULL: not accepted yet, or gone */
    void *owner;
    bool shm, accepted, opened, lost, reported;
    bool takes_direct;
    message_t *inbox, **inbox_tail;
    segment_t *segment; /* ours; NULL: none was asked for */
    struct {
        void *tag;
        bool lent, taken; /* the other side is to read it; has read it */
    } buffers[KV_WIRE_BUFFERS];
    unread_t *unread, **unread_tail; /* direct messages of ours */
};

struct kv_wire_side {
    kv_wire_side_t *next;
    kv_wire_params_t params;
    uint16_t port;
    int event_fd;
    bool mapped;
    kv_wire_pipe_t *pipes;
    kv_wire_request_t *requests;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all sides and pipes */
static kv_wire_side_t *sides;
static uint16_t next_port = FIRST_PORT;

static void wake(kv_wire_side_t *side)
{
    uint64_t one = 1;
    while (write(side->event_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static kv_wire_side_t *side_at(uint16_t port)
{
    kv_wire_side_t *side = sides;
    while (side != NULL && side->port != port) {
        side = side->next;
    }
    return side;
}

static kv_status_t loopback_open(
    const kv_wire_params_t *params, kv_wire_side_t **side_out, kv_error_t *error)
{
    pthread_mutex_lock(&mutex);
    if (params->port != 0 && side_at(params->port) != NULL) {
        pthread_mutex_unlock(&mutex);
        return kv_fail(error, KV_IO, "loopback port %u is taken", params->port);
    }
    kv_wire_side_t *side = kv_allocate(sizeof *side);
    side->params = *params;
    side->port = params->port != 0 ? params->port : next_port++;
    side->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    KV_CHECK(side->event_fd >= 0);
    side->next = sides;
    sides = side;
    pthread_mutex_unlock(&mutex);
    *side_out = side;
    return KV_OK;
}

static kv_wire_pipe_t *pipe_create(kv_wire_side_t *side, bool shm, void *owner)
{
    kv_wire_pipe_t *pipe = kv_allocate(sizeof *pipe);
    *pipe = (kv_wire_pipe_t){.side = side, .shm = shm, .owner = owner, .next = side->pipes};
    pipe->inbox_tail = &pipe->inbox;
    pipe->unread_tail = &pipe->unread;
    side->pipes = pipe;
    return pipe;
}

static kv_status_t loopback_connect(kv_wire_side_t *side, const char *host, uint16_t port,
    uint64_t id, bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    (void)host;
    pthread_mutex_lock(&mutex);
    kv_wire_side_t *to = side_at(port);
    if (to != NULL) {
        *pipe_out = pipe_create(side, shm, owner);
        kv_wire_request_t *request = kv_allocate(sizeof *request);
        *request = (kv_wire_request_t){to->requests, *pipe_out, id};
        to->requests = request;
        wake(to);
    }
    pthread_mutex_unlock(&mutex);
    return to != NULL ? KV_OK : kv_fail(error, KV_PEER_LOST, "nobody is at loopback port %u", port);
}

static kv_status_t loopback_accept(kv_wire_side_t *side, kv_wire_request_t *request, bool shm,
    void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    pthread_mutex_lock(&mutex);
    kv_wire_pipe_t *from = request->from;
    if (from != NULL) {
        kv_wire_pipe_t *pipe = pipe_create(side, shm, owner);
        pipe->other = from;
        pipe->accepted = pipe->opened = true;
        from->other = pipe;
        from->accepted = true;
        wake(from->side);
        *pipe_out = pipe;
    }
    pthread_mutex_unlock(&mutex);
    free(request);
    return from != NULL ? KV_OK : kv_fail(error, KV_PEER_LOST, "it went away");
}

static void loopback_reject(kv_wire_side_t *side, kv_wire_request_t *request)
{
    (void)side;
    pthread_mutex_lock(&mutex);
    if (request->from != NULL) {
        request->from->lost = true;
        wake(request->from->side);
    }
    pthread_mutex_unlock(&mutex);
    free(request);
}

static size_t buffer_bytes(const kv_wire_pipe_t *pipe)
{
    return pipe->side->params.message_bytes_max;
}

static void *loopback_buffer(kv_wire_pipe_t *pipe, uint32_t index)
{
    if (pipe->segment == NULL) {
        pipe->segment = kv_allocate(sizeof *pipe->segment + KV_WIRE_BUFFERS * buffer_bytes(pipe));
        pipe->segment->holders = 1;
    }
    return pipe->segment->bytes + index * buffer_bytes(pipe);
}

static void segment_release(segment_t *segment)
{
    if (segment != NULL && --segment->holders == 0) {
        free(segment);
    }
}

static bool lends(const kv_wire_pipe_t *pipe, const uint8_t *bytes, size_t count)
{
    return pipe->shm && pipe->segment != NULL && count >= LENT_BYTES_MIN &&
           bytes >= pipe->segment->bytes &&
           bytes < pipe->segment->bytes + KV_WIRE_BUFFERS * buffer_bytes(pipe);
}

static message_t *message_make(kv_wire_pipe_t *pipe, const uint8_t *bytes, size_t count, void *tag)
{
    if (!lends(pipe, bytes, count)) {
        message_t *message = kv_allocate(sizeof *message + count);
        message->count = count;
        message->at = memcpy(message->bytes, bytes, count);
        return message;
    }
    message_t *message = kv_allocate(sizeof *message);
    message->at = bytes;
    message->count = count;
    message->segment = pipe->segment;
    message->buffer = (uint32_t)((size_t)(bytes - pipe->segment->bytes) / buffer_bytes(pipe));
    message->segment->holders++;
    pipe->buffers[message->buffer].lent = true;
    pipe->buffers[message->buffer].tag = tag;
    return message;
}

static void message_free(message_t *message)
{
    segment_release(message->segment);
    free(message);
}

static kv_status_t loopback_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag)
{
    kv_status_t status = KV_PEER_LOST;
    pthread_mutex_lock(&mutex);
    kv_wire_pipe_t *to = pipe->other;
    if (to != NULL) {
        message_t *message = message_make(pipe, bytes, count, tag);
        status = message->segment != NULL ? KV_BUSY : KV_OK;
        *to->inbox_tail = message;
        to->inbox_tail = &message->next;
        wake(to->side);
    }
    pthread_mutex_unlock(&mutex);
    return status;
}

/* ---- direct messages ---- */

static kv_status_t loopback_map(kv_wire_side_t *side, void *memory, size_t bytes, kv_error_t *error)
{
    (void)memory;
    (void)bytes;
    if (side->params.network != KV_NETWORK_HOST) {
        return kv_fail(error, KV_MISSING, "the loopback wire reads this process's memory alone");
    }
    side->mapped = true;
    return KV_OK;
}

static void loopback_reach(kv_wire_pipe_t *pipe)
{
    pthread_mutex_lock(&mutex);
    pipe->takes_direct = pipe->shm && pipe->side->mapped;
    pthread_mutex_unlock(&mutex);
}

static bool loopback_reaches(const kv_wire_pipe_t *pipe)
{
    pthread_mutex_lock(&mutex);
    const bool both = pipe->side->mapped && pipe->other != NULL && pipe->other->takes_direct;
    pthread_mutex_unlock(&mutex);
    return both;
}

static kv_status_t loopback_send_direct(kv_wire_pipe_t *pipe, const void *head, size_t head_bytes,
    const void *data, size_t count, void *tag)
{
    message_t *message = kv_allocate(sizeof *message + head_bytes);
    message->direct = true;
    message->at = data;
    message->count = count;
    message->tag = tag;
    message->head_bytes = head_bytes;
    memcpy(message->bytes, head, head_bytes);
    unread_t *unread = kv_allocate(sizeof *unread);
    pthread_mutex_lock(&mutex);
    kv_wire_pipe_t *to = pipe->other;
    if (to != NULL) {
        *unread = (unread_t){NULL, tag, false};
        *pipe->unread_tail = unread;
        pipe->unread_tail = &unread->next;
        *to->inbox_tail = message;
        to->inbox_tail = &message->next;
        wake(to->side);
    }
    pthread_mutex_unlock(&mutex);
    if (to != NULL) {
        return KV_BUSY;
    }
    free(message);
    free(unread);
    return KV_PEER_LOST;
}

/* The first one that was read; NULL: none was. With the mutex held. */
static unread_t *take_read(kv_wire_pipe_t *pipe)
{
    unread_t **at = &pipe->unread;
    while (*at != NULL && !(*at)->read) {
        at = &(*at)->next;
    }
    unread_t *found = *at;
    if (found != NULL) {
        *at = found->next;
        pipe->unread_tail = *at == NULL ? at : pipe->unread_tail;
    }
    return found;
}

/* Reads the message to where it goes (NULL: nowhere) while its sender's memory is there for it. */
static kv_status_t read_direct(kv_wire_pipe_t *pipe, const message_t *message, void *to)
{
    pthread_mutex_lock(&mutex);
    kv_wire_pipe_t *from = pipe->other;
    if (from != NULL) {
        if (to != NULL) {
            memcpy(to, message->at, message->count);
        }
        unread_t *unread = from->unread;
        while (unread->tag != message->tag) {
            unread = unread->next;
        }
        unread->read = true;
        wake(from->side);
    }
    pthread_mutex_unlock(&mutex);
    return from != NULL ? KV_OK : KV_PEER_LOST;
}

static void put_back(kv_wire_pipe_t *pipe, message_t *message)
{
    pthread_mutex_lock(&mutex);
    message->next = pipe->inbox;
    pipe->inbox = message;
    if (message->next == NULL) {
        pipe->inbox_tail = &message->next;
    }
    pthread_mutex_unlock(&mutex);
}

/* false: it waits for memory to go to. */
static bool receive_direct(kv_wire_pipe_t *pipe, message_t *message)
{
    const kv_wire_upcalls_t *upcalls = &pipe->side->params.upcalls;
    void *to;
    kv_status_t status =
        upcalls->offered(pipe->owner, message->bytes, message->head_bytes, message->count, &to);
    if (status == KV_BUSY) {
        put_back(pipe, message);
        return false;
    }
    if (status == KV_OK) {
        upcalls->arrived(pipe->owner, to, read_direct(pipe, message, to));
    } else {
        (void)read_direct(pipe, message, NULL);
    }
    free(message);
    return true;
}

static message_t *take_message(kv_wire_pipe_t *pipe)
{
    message_t *message = pipe->inbox;
    if (message != NULL) {
        pipe->inbox = message->next;
        if (pipe->inbox == NULL) {
            pipe->inbox_tail = &pipe->inbox;
        }
    }
    return message;
}

static kv_status_t loopback_describe(
    kv_wire_pipe_t *pipe, kv_wire_t *wire_out, char *text_out, size_t text_bytes)
{
    *wire_out = pipe->shm ? KV_WIRE_SHM : KV_WIRE_TCP;
    snprintf(text_out, text_bytes, "loopback");
    return KV_OK;
}

static void forget_requests(const kv_wire_pipe_t *pipe)
{
    for (kv_wire_side_t *side = sides; side != NULL; side = side->next) {
        for (kv_wire_request_t *at = side->requests; at != NULL; at = at->next) {
            at->from = at->from == pipe ? NULL : at->from;
        }
    }
}

static void loopback_drop(kv_wire_pipe_t *pipe)
{
    pthread_mutex_lock(&mutex);
    kv_wire_pipe_t **at = &pipe->side->pipes;
    while (*at != pipe) {
        at = &(*at)->next;
    }
    *at = pipe->next;
    forget_requests(pipe);
    if (pipe->other != NULL) {
        pipe->other->other = NULL;
        pipe->other->lost = true;
        wake(pipe->other->side);
    }
    message_t *message;
    while ((message = take_message(pipe)) != NULL) {
        message_free(message);
    }
    segment_release(pipe->segment);
    pthread_mutex_unlock(&mutex);
    for (size_t i = 0; i < KV_WIRE_BUFFERS; i++) {
        if (pipe->buffers[i].lent) {
            pipe->side->params.upcalls.sent(pipe->owner, pipe->buffers[i].tag, KV_CANCELLED);
        }
    }
    while (pipe->unread != NULL) {
        unread_t *unread = pipe->unread;
        pipe->unread = unread->next;
        pipe->side->params.upcalls.sent(pipe->owner, unread->tag, KV_CANCELLED);
        free(unread);
    }
    free(pipe);
}

/* After the message was read: its buffer goes back, where its pipe is still there. */
static void give_back(kv_wire_pipe_t *pipe, message_t *message)
{
    pthread_mutex_lock(&mutex);
    kv_wire_pipe_t *from = pipe->other;
    if (message->segment != NULL && from != NULL) {
        from->buffers[message->buffer].taken = true;
        wake(from->side);
    }
    message_free(message);
    pthread_mutex_unlock(&mutex);
}

/* The first buffer that came back, KV_WIRE_BUFFERS where none did; with the mutex held. */
static uint32_t take_buffer(kv_wire_pipe_t *pipe)
{
    uint32_t index = 0;
    while (index < KV_WIRE_BUFFERS && !pipe->buffers[index].taken) {
        index++;
    }
    if (index < KV_WIRE_BUFFERS) {
        pipe->buffers[index].lent = pipe->buffers[index].taken = false;
    }
    return index;
}

/* One thing that happens to the pipe, outside of the mutex. */
static bool progress_pipe(kv_wire_pipe_t *pipe)
{
    const kv_wire_upcalls_t *upcalls = &pipe->side->params.upcalls;
    pthread_mutex_lock(&mutex);
    bool opens = pipe->accepted && !pipe->opened;
    pipe->opened |= opens;
    uint32_t buffer = opens ? KV_WIRE_BUFFERS : take_buffer(pipe);
    bool frees = buffer < KV_WIRE_BUFFERS;
    unread_t *read = opens || frees ? NULL : take_read(pipe);
    message_t *message = opens || frees || read != NULL ? NULL : take_message(pipe);
    bool ends =
        !opens && !frees && read == NULL && message == NULL && pipe->lost && !pipe->reported;
    pipe->reported |= ends;
    pthread_mutex_unlock(&mutex);
    if (opens) {
        upcalls->opened(pipe->owner);
    } else if (frees) {
        upcalls->sent(pipe->owner, pipe->buffers[buffer].tag, KV_OK);
    } else if (read != NULL) {
        upcalls->sent(pipe->owner, read->tag, KV_OK);
        free(read);
    } else if (message != NULL && message->direct) {
        return receive_direct(pipe, message);
    } else if (message != NULL) {
        upcalls->received(pipe->owner, message->at, message->count);
        give_back(pipe, message);
    } else if (ends) {
        upcalls->lost(pipe->owner, KV_PEER_LOST, "it closed the loopback pipe");
    }
    return opens || frees || read != NULL || message != NULL || ends;
}

static unsigned loopback_progress(kv_wire_side_t *side)
{
    unsigned happened = 0;
    pthread_mutex_lock(&mutex);
    kv_wire_request_t *request = side->requests;
    side->requests = request != NULL ? request->next : NULL;
    pthread_mutex_unlock(&mutex);
    if (request != NULL) {
        happened++;
        side->params.upcalls.requested(side->params.upcalls.context, request, request->id);
    }
    for (kv_wire_pipe_t *pipe = side->pipes; pipe != NULL; pipe = pipe->next) {
        happened += progress_pipe(pipe);
    }
    return happened;
}

static bool loopback_arm(kv_wire_side_t *side)
{
    uint64_t count;
    return read(side->event_fd, &count, sizeof count) < 0; /* woken since: look once more */
}

static void loopback_close(kv_wire_side_t *side)
{
    while (side->pipes != NULL) {
        loopback_drop(side->pipes);
    }
    while (side->requests != NULL) {
        kv_wire_request_t *request = side->requests;
        side->requests = request->next;
        loopback_reject(side, request);
    }
    pthread_mutex_lock(&mutex);
    kv_wire_side_t **at = &sides;
    while (*at != side) {
        at = &(*at)->next;
    }
    *at = side->next;
    pthread_mutex_unlock(&mutex);
    close(side->event_fd);
    free(side);
}

static uint16_t loopback_port(const kv_wire_side_t *side)
{
    return side->port;
}

static int loopback_fd(const kv_wire_side_t *side)
{
    return side->event_fd;
}

static uint64_t loopback_rendezvous_count(const kv_wire_side_t *side)
{
    (void)side;
    return 0;
}

const kv_wire_driver_t kv_wire_loopback = {
    .name = "loopback",
    .open = loopback_open,
    .close = loopback_close,
    .port = loopback_port,
    .connect = loopback_connect,
    .accept = loopback_accept,
    .reject = loopback_reject,
    .buffer = loopback_buffer,
    .send = loopback_send,
    .map = loopback_map,
    .reach = loopback_reach,
    .reaches = loopback_reaches,
    .send_direct = loopback_send_direct,
    .describe = loopback_describe,
    .drop = loopback_drop,
    .progress = loopback_progress,
    .arm = loopback_arm,
    .fd = loopback_fd,
    .rendezvous_count = loopback_rendezvous_count,
};
