/* The inside of the wire over UCX, shared by ucx_wire.c (workers, fronts, eager messages) and
 * ucx_share.c (messages that the receiver reads where the sender built them) and ucx_direct.c
 * (messages between the memories of devices). */
#ifndef KV_TRANSPORT_UCX_INTERNAL_H
#define KV_TRANSPORT_UCX_INTERNAL_H

#include "transport/mover/wire.h"
#include "transport/ucx/segment.h"

#include <ucp/api/ucp.h>

/* Ids of UCX's active messages. */
enum { MESSAGE_ID = 1, OFFER_ID, MAPPED_ID, NOTICE_ID, TAKEN_ID, REACH_ID, DIRECT_ID };

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

typedef struct flight flight_t;
typedef struct offer offer_t;

/* What a pipe has of direct messages; ucx_direct.c. */
typedef struct {
    bool here, there;               /* this side takes them; the peer has said so */
    flight_t *flights;              /* of either direction, in UCX's hands */
    offer_t *offers, **offers_tail; /* that wait for memory to go to */
    uint32_t offer_count;
} direct_t;

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
    direct_t direct;
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
    ucp_mem_h mapped; /* the device's memory for direct messages; NULL: none */
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

/* Tells the peer that this side takes direct messages; once the endpoint is there. */
void share_say_reach(kv_wire_pipe_t *pipe);

/* After the worker is gone: gives up what is lent, unmaps. */
void share_close(kv_wire_pipe_t *pipe);

/* ucx_direct.c */
ucs_memory_type_t direct_memory_type(kv_network_t network);
kv_status_t direct_map(kv_wire_side_t *side, void *memory, size_t bytes, kv_error_t *error);
void direct_unmap(kv_wire_side_t *side);
kv_status_t direct_open(kv_wire_pipe_t *pipe, kv_error_t *error);
void direct_reach(kv_wire_pipe_t *pipe);
bool direct_reaches(const kv_wire_pipe_t *pipe);
kv_status_t direct_send(kv_wire_pipe_t *pipe, const void *head, size_t head_bytes, const void *data,
    size_t count, void *tag);

/* Asks once more for what waits for memory; how many need no longer wait. */
unsigned direct_progress(kv_wire_pipe_t *pipe);

/* Before the worker goes: reads under way end, nothing else begins. false: they did not. */
bool direct_end_reads(kv_wire_pipe_t *pipe);

/* After the worker is gone: ends what is still out. */
void direct_close(kv_wire_pipe_t *pipe);

#endif
