/* What the files of the attached store share.
 *
 *   attached.c  open, poll, close, the table      link.c     the connection, its lives, requests
 *   find.c      match, runs, release              load.c     bytes out of the shared host tier, or
 *   put.c       bytes to the service              window.c   by way of staging memory
 *   prepare.c   device slots, seal                through.c  sealed blocks to the service, behind
 *   behind.c    promises, spills: asked        ask.c      everything else, forwarded
 *               once all is written through
 *
 * An attached store is an embedded one with the device tier alone, the *inner* store, and a
 * connection to the service that has host and disk tier. A lease is one of the inner store's (where
 * there is a device) and one of the service's.
 *
 * Rules:
 *  1. A *life* is one connection: its arenas, its staging memory, its lease numbers. What was begun
 *     in a life ends with it; its mappings stay as long as anybody reads them.
 *  2. Bytes of the shared host tier count once they are proved against checksums that the service
 *     sent with the lease, and the lease was valid all the time: while the life is up nobody writes
 *     to a leased slot. In a life that is down they are proved in a copy of the reader's own.
 *  3. The service is believed about what is stored, never about bytes. */
#ifndef KV_KVSTORE_ATTACH_ATTACHED_INTERNAL_H
#define KV_KVSTORE_ATTACH_ATTACHED_INTERNAL_H

#include "kvstore/attach/attach.h"
#include "kvstore/attach/channel.h"
#include "kvstore/lease/pieces.h"
#include "kvstore/store_internal.h"
#include "proto/store.pb-c.h"

enum {
    KV_ATTACH_VERSION = 3,
    KV_ATTACH_VERSION_MIN = 2,
    KV_ATTACH_TOKENS_MAX = 1 << 20, /* of a query */
    KV_ATTACH_EXTRAS_MAX = 1 << 16, /* blocks of one that has extra keys: they fit a frame */
    KV_ATTACH_BLOCKS_MAX = 1 << 17,
    KV_ATTACH_REQUESTS_MAX = 512, /* not answered yet */
    KV_ATTACH_REQUESTS_KEPT = 64, /* of these for what cannot wait: all but offers */
    KV_ATTACH_WINDOWS_MAX = 32,
    KV_ATTACH_WINDOW_BYTES = 1 << 20, /* at least; one block and its checksums fit */
    KV_ATTACH_WINDOWS_MIN = 4,
    KV_ATTACH_STAGING_BYTES = 16 << 20, /* where windows are as small as that */
    KV_ATTACH_INSTANCE_BYTES = 16,
};

typedef struct kv_attached kv_attached_t;
typedef struct kv_attached_lease kv_attached_lease_t;
typedef struct kv_life kv_life_t;

/* Waits for a window of staging memory, or for room for an offer. */
typedef struct kv_window_wait kv_window_wait_t;
struct kv_window_wait {
    void (*ready)(kv_window_wait_t *wait); /* takes one, or several, or none */
    bool waiting;
    kv_window_wait_t *next;
};

struct kv_life {
    uint32_t references;
    bool up;          /* the service holds its leases */
    uint32_t version; /* that both speak */
    uint8_t instance[KV_ATTACH_INSTANCE_BYTES];
    char store_name[KV_ORIGIN_BYTES]; /* what it calls itself */
    kv_arena_t arenas[KVIST_GROUPS_MAX];
    kv_region_t staging;
    int staging_fd; /* -1: the service has it */
    uint64_t staging_bytes;
    size_t window_bytes;
    uint32_t window_count;
    uint32_t windows_free[KV_ATTACH_WINDOWS_MAX], windows_free_count;
    uint32_t leases_max;
    uint32_t *leases_free, leases_free_count; /* numbers */
};

/* answer NULL: the connection was lost. */
typedef void (*kv_answered_t)(void *owner, const Kvist__Store__Answer *answer);

typedef struct {
    uint64_t id; /* 0: not in use */
    kv_answered_t answered;
    void *owner;
    uint32_t next_free;
} kv_attach_request_t;

/* An answer that came while another one was waited for. */
typedef struct kv_backlog kv_backlog_t;
struct kv_backlog {
    Kvist__Store__Answer *answer;
    kv_backlog_t *next;
};

typedef enum { KV_LINK_DOWN, KV_LINK_ATTACHING, KV_LINK_UP } kv_link_state_t;

typedef struct {
    kv_link_state_t state;
    kv_channel_t channel;
    bool wants_out;    /* watched for EPOLLOUT too */
    uint64_t heard_ns; /* when something came last, or the connection began */
    uint64_t asked_ns; /* when the oldest request that waits was sent, or something came since */
    uint64_t retry_ns; /* down: when the next attempt is due */
    bool silent;       /* it did not answer in time, and has said nothing since */
    bool pinged;
    bool warned;      /* of this time without it */
    kv_error_t error; /* why it is down */
    kv_attach_request_t requests[KV_ATTACH_REQUESTS_MAX];
    uint32_t first_free, request_count;
    uint64_t serial;
    kv_backlog_t *first_backlog, *last_backlog;
} kv_link_t;

/* A load, store or prepare that has ended; its callback runs in the next poll. */
typedef struct kv_attached_transfer kv_attached_transfer_t;
struct kv_attached_transfer {
    void (*tell)(kv_attached_transfer_t *transfer); /* runs the callback, frees the transfer */
    kv_attached_lease_t *lease;
    bool counted; /* in the lease's transfers_out */
    kv_attached_transfer_t *next;
};

typedef struct kv_attached_put kv_attached_put_t;
typedef struct kv_attached_call kv_attached_call_t;

struct kv_attached {
    const kv_store_ops_t *ops; /* first: KV_ATTACHED_OPS */
    kvist_store_t *inner;      /* layouts, device tier, workers, clock */
    bool has_device;
    char *path, *domain;
    char origin[KV_ORIGIN_BYTES];
    kvist_layout_t layout;
    kv_attach_bounds_t bounds;
    int epoll_fd, timer_fd;
    uint64_t timer_ns; /* 0: not set */
    kv_link_t link;
    kv_life_t *life; /* of the connection, while attaching too; NULL: none */
    kv_window_wait_t *first_wait, *last_wait;
    kv_attached_lease_t *leases; /* all */
    kv_attached_transfer_t *first_ended, *last_ended;
    kv_attached_lease_t *first_dirty; /* with sealed blocks that nobody pushes yet */
    struct kv_attached_flush *first_flush;
    kv_attached_call_t *first_call;            /* of behind.c */
    uint64_t through_serial;                   /* of blocks that are to be written through */
    uint32_t calls_out;                        /* drop, verify: not answered */
    bool closing;                              /* no connection is made any more */
    double host_ns_per_byte, disk_ns_per_byte; /* of loads, measured here and there */
    kvist_stats_t told;                        /* by the service */
    uint64_t told_ns;                          /* when it was asked for that; 0: never */
    bool telling;
    uint64_t miss_count[KVIST_MISS_COUNT];
    struct {
        uint64_t hit_blocks, read_bytes;
    } loaded[KVIST_TIER_COUNT]; /* by this client, from the service's tiers */
};

/* Where the service has the found blocks' objects of one group. */
typedef struct {
    uint32_t first_block, count;
    uint32_t *slots;     /* KV_SLOT_NONE: not in host memory */
    uint64_t *checksums; /* of objects in host memory */
} kv_places_t;

typedef struct {
    uint32_t end_block; /* behind its last */
    char arithmetic[KV_ARITHMETIC_BYTES];
    uint32_t expires_s;
    uint8_t priority;
} kv_alike_t;

/* A sealed block that the service is to get: its object of the inner store, held. */
typedef struct {
    uint32_t object;
    uint64_t serial;
} kv_through_t;

struct kv_attached_lease {
    kvist_store_t *store; /* first: the attached store */
    kv_attached_lease_t *next, *previous;
    kvist_lease_t *inner; /* NULL: no device tier, or released */
    kv_life_t *life;      /* NULL: the service was away */
    uint32_t number;      /* of the lease in that life */
    kvist_mode_t mode;
    bool storing, released;
    kvist_key_t name_space;
    uint32_t *tokens;    /* [token_blocks][block_tokens]: the query's, and those sealed beyond it */
    kvist_key_t *extras; /* [token_blocks] */
    uint32_t token_blocks, token_room, query_blocks;
    kvist_key_t *keys; /* [key_count] of the first blocks, worked out as they are needed */
    uint32_t key_count;
    kvist_match_t match;
    uint32_t device_count;  /* found blocks that the inner lease holds */
    uint32_t service_count; /* blocks that the service's lease has: found, or stored through it */
    uint32_t served_count;  /* found by the service */
    uint32_t sealed_count;
    kv_places_t places[KVIST_GROUPS_MAX];
    kv_alike_t *alike;
    uint32_t alike_count;
    uint32_t transfers_out; /* loads, stores, prepare */

    struct kv_attached_prepare *prepare; /* under way */
    bool prepared;

    kv_attached_put_t *first_put, *last_put; /* in the order of their blocks */
    kv_through_t *through;                   /* [through_count] from block through_first on */
    uint32_t through_first, through_count, through_room;
    bool dirty, through_stopped;
    kv_attached_put_t *through_put; /* under way */
    kv_attached_lease_t *next_dirty;
};

static inline kv_attached_t *kv_attached_of(const kvist_store_t *store)
{
    return (kv_attached_t *)store;
}

static inline kv_attached_t *kv_lease_attached(const kv_attached_lease_t *lease)
{
    return kv_attached_of(lease->store);
}

static inline kv_attached_lease_t *kv_attached_lease_of(const kvist_lease_t *lease)
{
    return (kv_attached_lease_t *)lease;
}

/* ---- attached.c ---- */

void kv_attached_kick(kv_attached_t *attached);
void kv_attached_set_timer(kv_attached_t *attached, uint64_t due_ns);
uint64_t kv_attached_now_ns(const kv_attached_t *attached);
void kv_attached_transfer_end(kv_attached_transfer_t *transfer);

/* ---- link.c ---- */

/* Begins a connection; its answer is taken in by later polls. */
void kv_link_begin(kv_attached_t *attached);
void kv_link_poll(kv_attached_t *attached);
void kv_link_lose(kv_attached_t *attached, kv_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void kv_link_close(kv_attached_t *attached);

/* Whether there is room for a request that can wait: not too many are unanswered. */
bool kv_link_has_room(const kv_attached_t *attached);

/* Whether requests can be sent and are worth waiting for. */
bool kv_link_usable(const kv_attached_t *attached);

/* Sends a request; *id is the body's field. answered() runs in a poll, once. KV_PEER_LOST, KV_BUSY:
 * it was not sent. */
kv_status_t kv_link_ask(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind, void *body,
    uint64_t *id, kv_answered_t answered, void *owner);

void kv_link_ask_stats(kv_attached_t *attached);

/* The same for what has no answer and no haste: it goes with the next request, or by the next poll.
 */
void kv_link_say(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind, void *body);
void kv_link_send(kv_attached_t *attached);

/* Sends, and waits for the answer: of that kind, released with
 * kvist__store__answer__free_unpacked. late: for an answer that comes after the wait; may be NULL.
 */
kv_status_t kv_link_ask_now(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind,
    void *body, uint64_t *id, uint32_t wait_ms, kv_answered_t late, void *owner,
    Kvist__Store__Answer **answer_out);

/* Whether nothing can have been released at the service yet of what the life leased. */
bool kv_life_holds(const kv_attached_t *attached, const kv_life_t *life);
void kv_life_hold(kv_life_t *life);
void kv_life_release(kv_life_t *life);
uint32_t kv_life_take_lease(kv_life_t *life); /* UINT32_MAX: none is left */
void kv_life_give_lease(kv_life_t *life, uint32_t number);

/* ---- window.c ---- */

/* A window of the connection's staging memory; UINT32_MAX: none is free. */
uint32_t kv_window_take(kv_attached_t *attached);
void kv_window_give(kv_attached_t *attached, kv_life_t *life, uint32_t window);
void kv_window_wait(kv_attached_t *attached, kv_window_wait_t *wait);
void kv_window_wait_no_more(kv_attached_t *attached, kv_window_wait_t *wait);
void kv_windows_advance(kv_attached_t *attached);

static inline char *kv_window_bytes(const kv_life_t *life, uint32_t window)
{
    return (char *)life->staging.base + (size_t)window * life->window_bytes;
}

/* ---- find.c ---- */

/* Keys of the lease's first blocks. */
const kvist_key_t *kv_attached_keys(kv_attached_lease_t *lease, uint32_t block_count);
void kv_attached_note_tokens(kv_attached_lease_t *lease, uint32_t block, const uint32_t *tokens,
    const kvist_key_t *extras, uint32_t block_count);

/* Whether a query is within bounds. */
bool kv_attached_asks_well(
    const kv_attached_t *attached, size_t token_count, const kvist_key_t *extras);

/* Extra keys as they are sent: nothing where they are all zero. */
ProtobufCBinaryData kv_attached_pack_extras(const kvist_key_t *extras, size_t block_count);
void kv_attached_settle(kv_attached_lease_t *lease); /* goes when nothing of it is under way */

/* ---- ask.c ---- */

/* A service that has just answered knows no namespace of this client's. */
void kv_attached_describe_all(kv_attached_t *attached);

/* ---- behind.c ---- */

void kv_calls_advance(kv_attached_t *attached);

/* ---- load.c ---- */

typedef void (*kv_attached_loaded_t)(
    void *context, uint32_t block_count, kvist_miss_t miss); /* in a poll */

/* Blocks that the service has, into pieces. The selection is resolved. */
void kv_attached_load(kv_attached_lease_t *lease, const kvist_selection_t *selection,
    kv_pieces_t *pieces, kv_attached_loaded_t done, void *context);

/* ---- put.c ---- */

void kv_attached_put_cancel(kv_attached_lease_t *lease);
void kv_attached_put_go_on(kv_attached_lease_t *lease); /* what it waited for has ended */

/* Blocks of the device's slots ([count], the put's from now on), which are held until done. */
typedef void (*kv_through_done_t)(kv_attached_lease_t *lease, kv_status_t status, uint32_t count);
void kv_attached_put_slots(kv_attached_lease_t *lease, uint32_t first, uint32_t count,
    uint32_t *slots, const char *arithmetic, uint64_t deadline_ns, kv_through_done_t done);

/* ---- through.c ---- */

/* All that the lease has sealed, and the service has not, is to be written through. false: there is
 * nothing, or it cannot be. */
bool kv_through_catch_up(kv_attached_lease_t *lease);
void kv_through_advance(kv_attached_t *attached);
void kv_through_drop(kv_attached_lease_t *lease);

/* Whether something that was noted up to this serial is still to be written through. */
bool kv_through_before(const kv_attached_t *attached, uint64_t serial);

/* ---- prepare.c ---- */

void kv_attached_prepare_cancel(kv_attached_lease_t *lease);

/* ---- ask.c ---- */

void kv_flushes_advance(kv_attached_t *attached);

#endif
