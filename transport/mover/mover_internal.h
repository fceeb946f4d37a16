/* The mover's inside, shared by mover.c (calls, thread), link.c (links), send.c and
 * receive.c. Everything but the mailboxes and the atomics belongs to the mover's thread. */
#ifndef KV_TRANSPORT_MOVER_INTERNAL_H
#define KV_TRANSPORT_MOVER_INTERNAL_H

#include "transport/mover.h"
#include "transport/mover/data_message.h"
#include "transport/mover/mailbox.h"
#include "transport/mover/wire.h"

#include <stdatomic.h>

enum { EXPECTATION_BUCKETS = 1024, LINK_NAME_BYTES = 64, LINK_HOST_BYTES = 64 };

/* ---- commands: from any thread to the mover's ---- */

typedef enum {
    COMMAND_LINK_OPEN,
    COMMAND_LINK_CLOSE,
    COMMAND_SEND,
    COMMAND_CANCEL,
    COMMAND_EXPECT,
    COMMAND_SHORTEN,
    COMMAND_REVOKE,
    COMMAND_STOP,
} command_kind_t;

typedef struct {
    kv_mail_t mail; /* first */
    command_kind_t kind;
    kv_link_t link;
    uint64_t transfer_id;
    uint32_t block_count; /* SHORTEN */
    void *object;         /* link_t, piece_t or expectation_t: handed over */
} command_t;

typedef struct {
    kv_mail_t mail; /* first */
    kv_mover_event_t event;
} event_mail_t;

/* ---- sending ---- */

typedef struct piece piece_t;
struct piece {
    piece_t *next; /* in the link's queue */
    uint64_t transfer_id, tag;
    uint32_t first_block, block_count, range_count;
    size_t block_bytes; /* all ranges of one block */
    /* The cursor: what is before it was handed to the wire. */
    uint32_t next_block, next_range;
    size_t next_offset_bytes; /* inside next_range */
    uint32_t messages;        /* in flight */
    bool queued;              /* not all handed to the wire */
    kv_status_t status;
    const uint32_t *slots; /* behind the ranges */
    kv_range_t ranges[];
};

typedef struct {
    uint8_t *bytes;  /* staging memory of one message: the pipe's, or */
    uint8_t *own;    /* this link's own */
    uint8_t *direct; /* the device's memory that its data lies in; NULL: all is in bytes */
    piece_t *piece;  /* that it carries; NULL: an opening message */
    bool busy, pinned;
} staging_t;

/* ---- links ---- */

typedef enum {
    LINK_NEW,        /* connects, and did not begin to */
    LINK_AWAITED,    /* accepts, and nobody came */
    LINK_UNPROVEN,   /* accepted; its token did not come */
    LINK_CONNECTING, /* connected; its welcome did not come */
    LINK_UP,
    LINK_FAILED, /* ends at the next reap */
} link_state_t;

typedef struct link link_t;
struct link {
    link_t *next;
    kv_mover_t *mover;
    kv_link_t id;
    link_state_t state;
    char name[LINK_NAME_BYTES], host[LINK_HOST_BYTES];
    uint16_t port;
    uint8_t token[KV_DATA_TOKEN_BYTES];
    bool connects, same_host, shm, was_up;
    uint64_t deadline_ns; /* to be up; then for one of the messages in flight to leave */
    uint32_t in_flight;
    kv_wire_pipe_t *pipe;
    staging_t staging[KV_MOVER_IN_FLIGHT];
    piece_t *queue, **queue_tail;
    kv_status_t status; /* failed: why */
    char reason[96];
};

/* ---- receiving ---- */

typedef struct expectation expectation_t;
struct expectation {
    expectation_t *next; /* in its bucket */
    kv_link_t link;
    uint64_t transfer_id;
    uint32_t block_count;
    uint64_t units_left;
    uint64_t bytes; /* that it covers */
    bool failed;
    uint64_t *closed; /* one bit a unit, [block][unit]: received, or not covered */
    uint32_t slots[];
};

/* ---- direct messages ---- */

enum { DIRECT_BUFFERS_MAX = 8 };

/* A message that is on its way into a buffer. */
typedef struct {
    link_t *link; /* NULL: the buffer is free */
    uint8_t *head;
    size_t head_bytes, bytes;
} arrival_t;

/* Device memory that the wire reaches: buffers to send from, behind them as many to receive into.
 * Each holds the data of one message. */
typedef struct {
    uint8_t *memory; /* NULL: there are no direct messages */
    size_t bytes, buffer_bytes;
    uint32_t count; /* of buffers, in either direction */
    bool sending[DIRECT_BUFFERS_MAX];
    arrival_t arrivals[DIRECT_BUFFERS_MAX];
    uint32_t failures; /* links that broke while they were read, since one was not */
} direct_t;

struct kv_mover {
    kv_device_t *device;
    uint8_t *arena;
    uint32_t slot_count, units_per_block;
    size_t slot_bytes, unit_bytes, message_bytes;
    kv_wire_t wire;
    const kv_wire_driver_t *driver;
    kv_wire_side_t *side;
    pthread_t thread;
    bool threaded, stopping;
    uint64_t busy_poll_ns;
    kv_mailbox_t commands, events;
    link_t *links;
    uint64_t now_ns; /* of this turn */
    expectation_t *expectations[EXPECTATION_BUCKETS];
    direct_t direct;

    _Atomic uint64_t next_link, next_transfer;
    _Atomic uint32_t link_count, piece_count, expectation_count;
    _Atomic uint64_t sent_bytes, received_bytes, sent_messages, received_messages;
    _Atomic uint64_t sent_direct_messages, received_direct_messages;
    _Atomic uint64_t dropped_messages, refused_endpoints, corrupt_fragments, rendezvous_messages;
    _Atomic uint32_t links_up;
};

/* mover.c */

/* A mover without its thread: whoever makes it takes its turns. For simulations. */
kv_status_t mover_create_threadless(
    const kv_mover_params_t *params, kv_mover_t **mover_out, kv_error_t *error);

/* One turn of the mover's thread: does what can be done now. The number of things that happened;
 * *deadline_ns_out: when the next turn is due though nothing wakes it (UINT64_MAX: never). */
unsigned mover_turn(kv_mover_t *mover, uint64_t now_ns, uint64_t *deadline_ns_out);

void mover_emit(kv_mover_t *mover, const kv_mover_event_t *event);
void mover_drain_commands(kv_mover_t *mover);

/* link.c */
link_t *link_find(kv_mover_t *mover, kv_link_t id);
void link_adopt(kv_mover_t *mover, link_t *link);
void link_requested(void *context, kv_wire_request_t *request, uint64_t id);
void link_opened(void *owner);
void link_received(void *owner, const void *bytes, size_t count);
/* One of the messages in flight has KV_MOVER_STALL_MS to leave, from now on. */
void link_expect_progress(link_t *link);
void link_lost(void *owner, kv_status_t status, const char *reason);
void link_fail(link_t *link, kv_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Connects what is new, ends what failed or is late; the next deadline, or UINT64_MAX. */
uint64_t links_advance(kv_mover_t *mover, uint64_t now_ns);

/* send.c */
void send_adopt(kv_mover_t *mover, kv_link_t id, piece_t *piece);
unsigned send_pump(link_t *link); /* messages handed to the wire */
void send_opening(link_t *link, kv_data_kind_t kind);
void send_done(void *owner, void *tag, kv_status_t status);
void send_cancel(link_t *link, uint64_t transfer_id);
void send_fail_queue(link_t *link);

/* moving.c */

/* A message's data on its way: the parts of each block lie in data one after the other, the blocks
 * likewise. */
typedef struct {
    kv_move_direction_t direction;
    const kv_data_blocks_t *blocks;
    const uint32_t *slots;       /* [block_count] */
    const kv_slot_part_t *parts; /* [range_count] */
    uint8_t *data;               /* of this process, or */
    bool beside;                 /* of the device */
} moving_t;

/* checksums_out: [block_count], of the blocks' data as it left or has come to be. A failure of the
 * device is logged. */
kv_status_t move_blocks(const kv_mover_t *mover, const moving_t *moving, uint64_t *checksums_out);

/* direct.c: all that goes wrong here leaves the mover as it is without direct messages. */
void direct_setup(kv_mover_t *mover);
void direct_teardown(kv_mover_t *mover); /* after the wire is closed */
void direct_offer_link(link_t *link);    /* its pipe is there */
bool direct_possible(const link_t *link);
uint8_t *direct_take(kv_mover_t *mover); /* a buffer to send from; NULL: none is free */
void direct_give(kv_mover_t *mover, const uint8_t *buffer);
kv_status_t direct_offered(
    void *owner, const void *head, size_t head_bytes, size_t count, void **to_out);
void direct_arrived(void *owner, void *to, kv_status_t status);

/* receive.c */

/* What a message says of itself, and where its data and checksums are. */
typedef struct {
    kv_data_blocks_t blocks;
    const uint8_t *checksums, *data;
    bool beside; /* data is the device's memory */
} incoming_t;

/* Where the blocks belong, NULL: nowhere; why is said and counted. */
expectation_t **receive_admit(link_t *link, const kv_data_blocks_t *blocks);
void receive_write(link_t *link, expectation_t **at, const incoming_t *incoming);
void receive_adopt(kv_mover_t *mover, expectation_t *expectation);
void receive_blocks(link_t *link, const uint8_t *bytes, size_t count);
void receive_shorten(kv_mover_t *mover, uint64_t transfer_id, uint32_t block_count);
void receive_revoke(kv_mover_t *mover, uint64_t transfer_id);
void receive_fail_link(kv_mover_t *mover, kv_link_t id, const char *reason);
expectation_t *receive_make(
    const kv_mover_t *mover, kv_link_t link, const kv_expectation_t *wanted);
void receive_free(expectation_t *expectation);

#endif
