/* The inside of the wire over UCX, shared by ucx_wire.c (workers, fronts, eager messages) and
 * ucx_share.c (messages that the receiver reads where the sender built them). */
#ifndef KV_TRANSPORT_UCX_INTERNAL_H
#define KV_TRANSPORT_UCX_INTERNAL_H

#include "transport/mover/wire.h"
#include "transport/ucx/segment.h"

#include <ucp/api/ucp.h>

/* Ids of UCX's active messages. */
enum { MESSAGE_ID = 1, OFFER_ID, MAPPED_ID, NOTICE_ID, TAKEN_ID };

/* What a pipe over shared memory has beside UCX; drawn in ucx_share.c. */
typedef struct {
    kv_segment_t own; /* the buffers; base NULL: none */
    bool read;        /* the peer reads it */
    struct {
        void *tag;
        bool lent; /* the peer was told of it, and has not taken it */
    } buffers[KV_WIRE_BUFFERS];
    const uint8_t *theirs; /* the peer's buffers; NULL: not mapped */
    size_t theirs_bytes;
    uint32_t words; /* ours that UCX holds */
} share_t;

/* One front: a request that is being read (no pipe), or the companion of a pipe. */
typedef struct kv_wire_request front_t;
struct kv_wire_request {
    front_t *next;
    kv_wire_side_t *side;
    kv_wire_pipe_t *pipe;
    int fd;
    uint8_t *in, *out; /* [FRONT_BYTES_MAX], until both were exchanged */
    size_t in_count, out_count, out_done;
    bool closed;
};

struct kv_wire_pipe {
    kv_wire_side_t *side;
    ucp_worker_h worker;
    ucp_ep_h endpoint; /* NULL until the peer's address is here */
    int worker_fd;
    void *owner;
    bool shm;
    bool broken, reported;
    kv_status_t broken_status;
    char broken_reason[96];
    kv_wire_pipe_t *next;
    front_t *front;
    share_t share;
};

struct kv_wire_side {
    kv_wire_params_t params;
    ucp_context_h context;
    int epoll_fd;       /* workers' descriptors and front_epoll_fd */
    int front_epoll_fd; /* the listener (data NULL) and fronts */
    int listen_fd;
    uint16_t port;
    kv_wire_pipe_t *pipes;
    front_t *fronts;
    uint32_t request_count; /* fronts without a pipe */
    uint64_t rendezvous_count;
};

/* Said once to the pipe's owner, at the next progress. */
void pipe_break(kv_wire_pipe_t *pipe, kv_status_t status, const char *reason);
kv_status_t status_from_ucs(ucs_status_t status);

/* ucx_share.c */

/* Before the pipe's endpoint is there: memory and handlers. What fails costs speed alone. */
void share_open(kv_wire_pipe_t *pipe);
void share_offer(kv_wire_pipe_t *pipe); /* once the endpoint is there */
void *share_buffer(kv_wire_pipe_t *pipe, uint32_t index);

/* Sends a message without its bytes. false: not possible; send it another way. */
bool share_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag);

/* After the worker is gone: gives up what is lent, unmaps. */
void share_close(kv_wire_pipe_t *pipe);

#endif
