/* The P/D protocol of one request, as three state machines without I/O: events in, actions out.
 *
 * kv_pd_decode_t is the decode node's side, kv_pd_prefill_t the prefill node's, kv_pd_source_t the
 * side that serves a Fetch of the latter. The node translates what happens (a message, an event of
 * the mover or the store, a timer) into an event, calls step, and carries out the actions in their
 * order. The machines know states, transfer ids and counts; tokens, leases and messages' other
 * fields stay with the node. Drawn in pd/decode.c, pd/prefill.c and pd/source.c.
 *
 * What they promise, whatever comes in whatever order: exactly one outcome; slots are sealed,
 * released or handed on only when nothing can be written to them any more and nothing is being read
 * from them; no action after the outcome.
 *
 * Owns: nothing.
 * Threads: as its caller. No allocation, no clock: deadlines are events.
 * Errors: an event that does not fit the state is ignored (peers send what they like). */
#ifndef KV_TRANSPORT_PD_H
#define KV_TRANSPORT_PD_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    KV_PD_ACTIONS_MAX = 8,
    KV_PD_ATTEMPTS_MAX = 3, /* prefill nodes that one request is sent to, one after the other */
    KV_PD_FETCHES_MAX = 3,  /* nodes that a prefill node asks for what a request lacks, in turn */
};

/* ---- decode side ---- */

typedef enum {
    KV_PD_DECODE_IDLE,
    KV_PD_DECODE_RESERVING, /* the store was asked for slots */
    KV_PD_DECODE_CHOOSING,  /* the node was asked for a prefill node */
    KV_PD_DECODE_STREAMING, /* Prefill was sent; {Prefilled, landed} in any order */
    KV_PD_DECODE_ENDING,    /* this attempt is given up; its revoke is out */
    KV_PD_DECODE_DONE,      /* the outcome was given */
} kv_pd_decode_state_t;

typedef enum {
    KV_PD_DECODE_EV_START,
    KV_PD_DECODE_EV_RESERVED, /* the lease is prepared: held_blocks, block_count, whole_blocks */
    KV_PD_DECODE_EV_RESERVE_FAILED, /* status: KV_BUSY, KV_INVALID, ... */
    KV_PD_DECODE_EV_CHOSEN,         /* peer_up: there is a prefill node to ask; transfer_id: a new
                                      one for it */
    KV_PD_DECODE_EV_EXPECT_FAILED,  /* the mover refused DO_EXPECT (status): skip what is left of
                                      the actions. Where SEND_PREFILL fails: PEER_DOWN */
    KV_PD_DECODE_EV_LANDED,         /* transfer_id */
    KV_PD_DECODE_EV_RECEIVE_FAILED, /* transfer_id, status */
    KV_PD_DECODE_EV_REVOKED,        /* transfer_id; landed_blocks: leading ones that are whole */
    KV_PD_DECODE_EV_PREFILLING,     /* transfer_id: who makes the blocks is known from now on */
    KV_PD_DECODE_EV_PREFILLED,      /* transfer_id, status; KV_OK says the same */
    KV_PD_DECODE_EV_PEER_DOWN,      /* control or data connection of the chosen prefill node */
    KV_PD_DECODE_EV_TIMEOUT,        /* the store, or the chosen prefill node, took too long */
    KV_PD_DECODE_EV_CANCEL,         /* the outcome is not wanted any more */
} kv_pd_decode_event_kind_t;

typedef struct {
    kv_pd_decode_event_kind_t kind;
    kv_status_t status;
    bool peer_up;
    uint64_t transfer_id;
    uint32_t held_blocks;   /* RESERVED: leading blocks that this node holds */
    uint32_t block_count;   /* RESERVED: blocks that will be streamed, after the held ones */
    uint32_t whole_blocks;  /* RESERVED: of those, the leading ones before the last token's */
    uint32_t landed_blocks; /* REVOKED */
} kv_pd_decode_event_t;

typedef enum {
    KV_PD_DECODE_DO_RESERVE,      /* ask the store for slots, with a bounded wait */
    KV_PD_DECODE_DO_CHOOSE,       /* a prefill node that this request was not sent to: CHOSEN */
    KV_PD_DECODE_DO_EXPECT,       /* kv_mover_expect(transfer_id, slots first_block ..) */
    KV_PD_DECODE_DO_SEND_PREFILL, /* the request; then watch its deadline */
    KV_PD_DECODE_DO_SEND_CANCEL,  /* tell the prefill node; it may be gone */
    KV_PD_DECODE_DO_REVOKE,       /* kv_mover_revoke(transfer_id) */
    KV_PD_DECODE_DO_KEEP,      /* blocks first_block .. + block_count landed whole before it ended:
                                     seal them. They are held from now on */
    KV_PD_DECODE_DO_READY,     /* outcome: the KV is here; decode */
    KV_PD_DECODE_DO_FALL_BACK, /* outcome: the lease stands, compute in it here what is not
                                      held. status: why */
    KV_PD_DECODE_DO_FAIL,      /* outcome: no slots; status: why. The lease is released */
    KV_PD_DECODE_DO_CANCELLED, /* outcome: as asked */
    KV_PD_DECODE_DO_RELEASE,   /* release the lease (comes before FAIL and CANCELLED) */
} kv_pd_decode_action_kind_t;

typedef struct {
    kv_pd_decode_action_kind_t kind;
    kv_status_t status;
    uint64_t transfer_id;
    uint32_t first_block, block_count;
} kv_pd_decode_action_t;

typedef struct {
    uint32_t count;
    kv_pd_decode_action_t items[KV_PD_ACTIONS_MAX];
} kv_pd_decode_actions_t;

/* Zero-initialise to begin. */
typedef struct {
    kv_pd_decode_state_t state;
    uint32_t held_blocks;   /* what was kept included */
    uint32_t block_count;   /* to be streamed after them */
    uint32_t whole_blocks;  /* of those: may be kept */
    uint32_t landed_blocks; /* of those, whole in their slots; known when the attempt has ended */
    uint32_t attempts;      /* prefill nodes that were asked */
    bool cancelled;         /* the outcome will be CANCELLED */
    kv_status_t reason;     /* why the last attempt ended without the peer's KV */

    /* This attempt: */
    uint64_t transfer_id;   /* of the reservation; 0: none yet */
    bool told;              /* who makes the blocks is known */
    bool prefilled, landed; /* streaming */
    bool expecting;         /* the mover may still write into our slots */
    bool revoking;
    bool peer_ended; /* it has answered: nothing to cancel there */
    bool peer_lost;  /* say nothing more to it */
} kv_pd_decode_t;

void kv_pd_decode_step(kv_pd_decode_t *machine, const kv_pd_decode_event_t *event,
    kv_pd_decode_actions_t *actions_out);

/* ---- prefill side ---- */

typedef enum {
    KV_PD_PREFILL_IDLE,
    KV_PD_PREFILL_MATCHING,  /* the store was asked for its prefix and for slots */
    KV_PD_PREFILL_FINDING,   /* the node was asked for a source of what is missing */
    KV_PD_PREFILL_FETCHING,  /* Fetch was sent; {who made them, landed} in any order */
    KV_PD_PREFILL_COMPUTING, /* computing what is missing; pieces leave meanwhile */
    KV_PD_PREFILL_DRAINING,  /* computed; the last pieces are out */
    KV_PD_PREFILL_ENDING,    /* given up; revoke, compute or pieces are still out */
    KV_PD_PREFILL_DONE,
} kv_pd_prefill_state_t;

typedef enum {
    KV_PD_PREFILL_EV_START,         /* a Prefill message, validated: transfer_id, held_blocks */
    KV_PD_PREFILL_EV_MATCHED,       /* the lease is prepared: held_blocks here, whole_blocks */
    KV_PD_PREFILL_EV_MATCH_FAILED,  /* status */
    KV_PD_PREFILL_EV_SOURCE,        /* a node to ask: block_count from the first missing one on (0:
                                      there is none), transfer_id: a new one for it */
    KV_PD_PREFILL_EV_FETCH_REFUSED, /* the mover refused DO_EXPECT: skip what is left of the
                                       actions. Where SEND_FETCH fails: SOURCE_DOWN */
    KV_PD_PREFILL_EV_FETCH_BEGINS,  /* transfer_id of the fetch; the source will send block_count,
                                       and said who made them */
    KV_PD_PREFILL_EV_FETCHED, /* transfer_id of the fetch, status; KV_OK: block_count were sent */
    KV_PD_PREFILL_EV_LANDED,  /* transfer_id of the fetch */
    KV_PD_PREFILL_EV_RECEIVE_FAILED, /* transfer_id of the fetch, status */
    KV_PD_PREFILL_EV_REVOKED,     /* transfer_id of the fetch; landed_blocks: leading ones, whole */
    KV_PD_PREFILL_EV_SOURCE_DOWN, /* control or data connection of the fetch's source */
    KV_PD_PREFILL_EV_TIMEOUT,     /* of the fetch */
    KV_PD_PREFILL_EV_PIECE_QUEUED, /* kv_mover_send accepted one; before COMPUTED, not always before
                                        its SENT */
    KV_PD_PREFILL_EV_PIECE_SENT,   /* its SENT: status */
    KV_PD_PREFILL_EV_COMPUTED,     /* compute ended, or stopped (status), and every PIECE_QUEUED was
                                        given */
    KV_PD_PREFILL_EV_CANCEL,       /* from the decode node */
    KV_PD_PREFILL_EV_PEER_DOWN,    /* control or data connection of the decode node */
} kv_pd_prefill_event_kind_t;

typedef struct {
    kv_pd_prefill_event_kind_t kind;
    kv_status_t status;
    uint64_t transfer_id;
    uint32_t held_blocks;   /* START: by the decode node; MATCHED: here */
    uint32_t whole_blocks;  /* MATCHED: leading ones that may be fetched */
    uint32_t block_count;   /* SOURCE, FETCH_BEGINS, FETCHED */
    uint32_t landed_blocks; /* REVOKED */
} kv_pd_prefill_event_t;

typedef enum {
    KV_PD_PREFILL_DO_MATCH,       /* match and prepare the lease */
    KV_PD_PREFILL_DO_FIND_SOURCE, /* first_block, block_count at most: a node that was not asked yet
                                     for this request, where it is worth it: SOURCE */
    KV_PD_PREFILL_DO_EXPECT,      /* kv_mover_expect(transfer_id, slots first_block ..) */
    KV_PD_PREFILL_DO_SEND_FETCH,  /* transfer_id, first_block, block_count; then watch its deadline
                                   */
    KV_PD_PREFILL_DO_SHORTEN,     /* kv_mover_shorten(transfer_id, block_count) */
    KV_PD_PREFILL_DO_SEND_UNFETCH, /* transfer_id; the source may be gone */
    KV_PD_PREFILL_DO_REVOKE,       /* kv_mover_revoke(transfer_id) */
    KV_PD_PREFILL_DO_SEAL,         /* blocks first_block .. + block_count were fetched: seal them.
                                      block_count 0: this fetch brought nothing */
    KV_PD_PREFILL_DO_SEND_PREFILLING, /* transfer_id; before the first piece */
    KV_PD_PREFILL_DO_COMPUTE, /* compute from block first_block (what is before it is here) and
                                 stream, as transfer_id, from the decode node's held_blocks on */
    KV_PD_PREFILL_DO_STOP,    /* compute: stop soon; COMPUTED follows */
    KV_PD_PREFILL_DO_CANCEL_PIECES,  /* kv_mover_cancel(transfer_id) */
    KV_PD_PREFILL_DO_SEND_PREFILLED, /* status; comes after the last SENT */
    KV_PD_PREFILL_DO_RELEASE,        /* the outcome: release the lease, forget the request */
} kv_pd_prefill_action_kind_t;

typedef struct {
    kv_pd_prefill_action_kind_t kind;
    kv_status_t status;
    uint64_t transfer_id;
    uint32_t first_block, block_count;
} kv_pd_prefill_action_t;

typedef struct {
    uint32_t count;
    kv_pd_prefill_action_t items[KV_PD_ACTIONS_MAX];
} kv_pd_prefill_actions_t;

typedef struct {
    kv_pd_prefill_state_t state;
    uint64_t transfer_id;  /* of the decode node's reservation */
    uint32_t decode_held;  /* leading blocks there */
    uint32_t held_blocks;  /* leading blocks here, fetched ones included once they are sealed */
    uint32_t whole_blocks; /* leading ones that may be fetched */
    uint32_t fetches;      /* sources that were asked */

    /* This fetch, of blocks from held_blocks on: */
    uint64_t fetch_id;      /* of our reservation; 0: none yet */
    uint32_t fetch_count;   /* blocks that will come, as far as that is known */
    uint32_t known_blocks;  /* of those, the leading ones whose makers were named */
    uint32_t landed_blocks; /* of those, whole in their slots; known when nothing is expected */
    bool expecting, revoking;
    bool source_ended; /* it has answered, or is gone: nothing to take back there */

    int64_t pieces; /* queued and not SENT; may be below 0 while computing */
    bool computing;
    bool peer_lost;
    kv_status_t status; /* of the whole: the first that went wrong */
} kv_pd_prefill_t;

void kv_pd_prefill_step(kv_pd_prefill_t *machine, const kv_pd_prefill_event_t *event,
    kv_pd_prefill_actions_t *actions_out);

/* ---- the side that serves a Fetch ---- */

typedef enum {
    KV_PD_SOURCE_IDLE,
    KV_PD_SOURCE_MATCHING, /* the store was asked to lease the blocks, in slots */
    KV_PD_SOURCE_SENDING,  /* the pieces are out */
    KV_PD_SOURCE_ENDING,   /* given up; the pieces are still out */
    KV_PD_SOURCE_DONE,
} kv_pd_source_state_t;

typedef enum {
    KV_PD_SOURCE_EV_START,   /* a Fetch message, validated: transfer_id, first_block, block_count */
    KV_PD_SOURCE_EV_MATCHED, /* the lease is prepared: held_blocks, leading ones of the context */
    KV_PD_SOURCE_EV_MATCH_FAILED, /* status */
    KV_PD_SOURCE_EV_SENT,         /* the pieces had their SENT, or the mover refused them: status */
    KV_PD_SOURCE_EV_TIMEOUT,      /* the asker does not wait any longer by now */
    KV_PD_SOURCE_EV_UNFETCH,      /* from the asker */
    KV_PD_SOURCE_EV_STOP,         /* the node stops */
    KV_PD_SOURCE_EV_PEER_DOWN,    /* control or data connection of the asker */
} kv_pd_source_event_kind_t;

typedef struct {
    kv_pd_source_event_kind_t kind;
    kv_status_t status;
    uint64_t transfer_id;
    uint32_t first_block, block_count; /* START */
    uint32_t held_blocks;              /* MATCHED */
    uint32_t unsent_blocks; /* SENT, KV_OK: of the last ones, that could not be read after all */
} kv_pd_source_event_t;

typedef enum {
    KV_PD_SOURCE_DO_MATCH,         /* match and prepare a lease, with a bounded wait */
    KV_PD_SOURCE_DO_SEND_BEGINS,   /* who made blocks first_block .. + block_count */
    KV_PD_SOURCE_DO_SEND_PIECES,   /* send those blocks as transfer_id; then event SENT, once */
    KV_PD_SOURCE_DO_CANCEL_PIECES, /* kv_mover_cancel(transfer_id) */
    KV_PD_SOURCE_DO_SEND_FETCHED,  /* status; KV_OK: first_block .. + block_count were sent */
    KV_PD_SOURCE_DO_RELEASE,       /* the outcome: release the lease, forget the fetch */
} kv_pd_source_action_kind_t;

typedef struct {
    kv_pd_source_action_kind_t kind;
    kv_status_t status;
    uint64_t transfer_id;
    uint32_t first_block, block_count;
} kv_pd_source_action_t;

typedef struct {
    uint32_t count;
    kv_pd_source_action_t items[KV_PD_ACTIONS_MAX];
} kv_pd_source_actions_t;

typedef struct {
    kv_pd_source_state_t state;
    uint64_t transfer_id; /* of the asker's reservation */
    uint32_t first_block, block_count;
    bool unwanted;      /* say nothing more to the asker */
    kv_status_t reason; /* ending: why */
} kv_pd_source_t;

void kv_pd_source_step(kv_pd_source_t *machine, const kv_pd_source_event_t *event,
    kv_pd_source_actions_t *actions_out);

#endif
