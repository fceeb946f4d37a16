/* The wire: what the mover asks of whatever carries its messages, as a table of functions.
 *
 * A *side* is this process's end: a listener and any number of *pipes*, each to one peer. Messages
 * arrive whole, or not at all; their order is not promised. ucx/ucx_wire.c is the real one,
 * loopback.c its plain twin within one process.
 *
 * A *direct* message has a head in this process's memory and its data in memory of a device, on
 * both ends: the receiver's wire reads it out of the sender's, and nobody writes to the receiver's
 * memory but itself. It needs a device that a network reaches, on both ends, and a pipe whose lanes
 * do.
 *
 * Owns: a side owns its pipes; a pipe may own memory to build messages in.
 * Borrows: message bytes, from send until done; mapped memory, until close; what a direct message
 * goes to, from offered until arrived.
 * Threads: a side belongs to one thread. Upcalls run inside progress and drop only; received, sent,
 * opened, offered and arrived must not call back into the driver but for send; lost and requested
 * may call anything but progress and drop.
 * Errors: a pipe that broke says lost once and stays until dropped. */
#ifndef KV_TRANSPORT_WIRE_H
#define KV_TRANSPORT_WIRE_H

#include "base/status.h"
#include "transport/mover.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_WIRE_BUFFERS = KV_MOVER_IN_FLIGHT,
    KV_WIRE_HEAD_BYTES = 4 << 10, /* at most, of a direct message */
};

typedef struct kv_wire_side kv_wire_side_t;
typedef struct kv_wire_pipe kv_wire_pipe_t;
typedef struct kv_wire_request kv_wire_request_t;

typedef struct {
    void *context;
    /* Somebody asks for a pipe and names it by id. Answer with accept or reject, inside. */
    void (*requested)(void *context, kv_wire_request_t *request, uint64_t id);
    /* A pipe that was asked for by connect may be sent on. */
    void (*opened)(void *owner);
    /* A message for the pipe's owner; its bytes are valid inside. They may lie in memory that the
     * peer can still write to: what was looked at once may be something else when it is looked at
     * again. */
    void (*received)(void *owner, const void *bytes, size_t count);
    /* The bytes given to send with this tag are free again. */
    void (*sent)(void *owner, void *tag, kv_status_t status);
    void (*lost)(void *owner, kv_status_t status, const char *reason);
    /* The peer has a direct message, of which the head is valid inside. KV_OK: its count bytes go
     * to *to_out, mapped memory, and arrived follows, whatever happens. KV_BUSY: ask again, with
     * the same. Else it is dropped; for the sender it is sent. */
    kv_status_t (*offered)(
        void *owner, const void *head, size_t head_bytes, size_t count, void **to_out);
    void (*arrived)(void *owner, void *to, kv_status_t status);
} kv_wire_upcalls_t;

typedef struct {
    const char *host; /* numeric address to listen on */
    uint16_t port;    /* 0: any */
    bool shm;         /* shared memory may be asked for */
    size_t message_bytes_max;
    kv_network_t network; /* how mapped memory is reached; NONE: none will be */
    kv_wire_upcalls_t upcalls;
} kv_wire_params_t;

struct kv_wire_driver {
    const char *name;
    kv_status_t (*open)(
        const kv_wire_params_t *params, kv_wire_side_t **side_out, kv_error_t *error);
    void (*close)(kv_wire_side_t *side);
    uint16_t (*port)(const kv_wire_side_t *side);

    /* Both ends of a pipe name the same wire: the id that connect sends carries the choice. The id
     * is a secret of the two: only who knows it learns anything. Nothing may be sent before opened;
     * an accepted pipe is open. */
    kv_status_t (*connect)(kv_wire_side_t *side, const char *host, uint16_t port, uint64_t id,
        bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error);
    kv_status_t (*accept)(kv_wire_side_t *side, kv_wire_request_t *request, bool shm, void *owner,
        kv_wire_pipe_t **pipe_out, kv_error_t *error);
    void (*reject)(kv_wire_side_t *side, kv_wire_request_t *request);

    /* Memory to build the index-th message in, message_bytes_max of it (index below
     * KV_WIRE_BUFFERS): the pipe's, until it is dropped. What is sent from there reaches the
     * receiver with fewer copies; the peer may read it at any time. Without this function, or
     * where it gives NULL, the caller's own memory serves. */
    void *(*buffer)(kv_wire_pipe_t *pipe, uint32_t index);

    /* KV_OK: done, the bytes are free. KV_BUSY: accepted; sent() follows. Else: not accepted. */
    kv_status_t (*send)(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag);

    /* Direct messages; without map there are none. map: memory of the device is theirs from now on;
     * once for a side. An error: it cannot be, and nothing has changed. */
    kv_status_t (*map)(kv_wire_side_t *side, void *memory, size_t bytes, kv_error_t *error);
    /* Tells the peer, once, that this side takes them. */
    void (*reach)(kv_wire_pipe_t *pipe);
    /* May be sent on this pipe now: mapped here, and the peer has said that it takes them. */
    bool (*reaches)(const kv_wire_pipe_t *pipe);
    /* As send. head: up to KV_WIRE_HEAD_BYTES; data: mapped memory. Both are free again when it is
     * done. */
    kv_status_t (*send_direct)(kv_wire_pipe_t *pipe, const void *head, size_t head_bytes,
        const void *data, size_t count, void *tag);

    /* What carries the messages: KV_WIRE_SHM or KV_WIRE_TCP, and its own name for it. */
    kv_status_t (*describe)(
        kv_wire_pipe_t *pipe, kv_wire_t *wire_out, char *text_out, size_t text_bytes);

    /* Ends the pipe at once, without the peer's help: sent() runs for all that was accepted,
     * arrived() for what is on its way, and nothing is received any more once it returns. */
    void (*drop)(kv_wire_pipe_t *pipe);

    /* Moves what can be moved, bounded; the number of things that happened. */
    unsigned (*progress)(kv_wire_side_t *side);

    /* true: nothing to do, fd becomes readable when there is. false: progress again. */
    bool (*arm)(kv_wire_side_t *side);
    int (*fd)(const kv_wire_side_t *side);
    uint64_t (*rendezvous_count)(
        const kv_wire_side_t *side); /* messages that did not come eagerly */
};

extern const kv_wire_driver_t kv_wire_ucx;

/* The twin within one process: its ports are numbers in a table of the process, its pipes lists of
 * messages. Carries what UCX would, in order; says "shm" or "tcp" as asked, and over "shm" lends
 * its buffers as UCX's pipes do. */
extern const kv_wire_driver_t kv_wire_loopback;

#endif
