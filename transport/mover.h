/* The mover: one thread that carries KV between this node's slots and its peers'.
 *
 * A *link* is the data connection that belongs to one control connection (peers.h). A *transfer* is
 * one reservation of slots on the receiving side, named by an id that is never used again; the
 * other side sends *pieces* of it: the same byte ranges of a run of blocks, as soon as they are
 * computed, in any order. The receiver accepts what fits its reservation, verifies a checksum for
 * each block's fragment, writes it into its slot, and says LANDED when every byte that it expects
 * is there, exactly once each.
 *
 * A range may lie elsewhere in the receiver's block than in the sender's, and an expectation may
 * cover a part of its slots only: shards of different tensor-parallel degrees (relayout.h) fill one
 * another's slots by one expectation for each source link.
 *
 *                 expect               last byte verified
 *     (nothing) ---------> expecting ---------------------> landed    LANDED: slots are whole
 *                           |    |
 *                           |    +-- mismatch, bad range ---> failed    FAILED: slots not yet free
 *                           |        or link down               |
 *                           |                                   | revoke
 *                           +------------- revoke ---------> revoked    REVOKED: slots are free
 *
 * Fencing. A slot of an expectation may be used for something else only after LANDED or REVOKED:
 * nothing is ever written to it after those. A message for an unknown transfer, or from another
 * link than was expected, is dropped and counted.
 *
 * Owns: the thread, the wire, staging memory.
 * Borrows: the device and its arena for its life; a piece's source slots until its SENT; an
 * expectation's slots until LANDED or REVOKED.
 * Threads: every call from any thread (a compute thread may send the layer it just finished);
 * kv_mover_poll from one thread, which is woken by kv_mover_fd. No call blocks on the network.
 * Errors: KV_BUSY at a bound (nothing changed), KV_INVALID for slots and ranges outside the arena.
 * Limits: KV_MOVER_* below. */
#ifndef KV_TRANSPORT_MOVER_H
#define KV_TRANSPORT_MOVER_H

#include "base/status.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_DATA_TOKEN_BYTES = 16,
    KV_MOVER_LINKS_MAX = 256,
    KV_MOVER_PIECES_MAX = 16384,      /* accepted by kv_mover_send and not polled as SENT yet */
    KV_MOVER_EXPECTATIONS_MAX = 4096, /* accepted and not ended */
    KV_MOVER_BLOCKS_MAX = 1 << 20,    /* of one transfer */
    KV_MOVER_RANGES_MAX = 16384,      /* of one piece, of one expectation */
    KV_MOVER_MESSAGE_BYTES =
        (256 << 10) + 4096,   /* the largest message: data, and a page for the rest */
    KV_MOVER_IN_FLIGHT = 6,   /* messages a link */
    KV_MOVER_STALL_MS = 4000, /* none of them leaves: the link is lost */
};

typedef struct kv_mover kv_mover_t;
typedef uint64_t kv_link_t; /* 0: none; never reused in this process */

/* Which wire a link uses. auto: shared memory where both ends are on one host, else TCP. */
typedef enum { KV_WIRE_AUTO, KV_WIRE_SHM, KV_WIRE_TCP } kv_wire_t;

typedef struct kv_wire_driver kv_wire_driver_t; /* wire.h */

typedef struct {
    kv_device_t *device;
    void *arena; /* slot_count slots of slot_bytes */
    uint32_t slot_count;
    size_t slot_bytes; /* of one block */
    /* Ranges are whole units, which is the same on both sides of a link: one layer's bytes, or one
     * head's where degrees may differ. slot_bytes is a multiple. */
    size_t unit_bytes;
    const char *host; /* numeric address of the data listener; copied */
    uint16_t port;    /* 0: any; see kv_mover_port */
    kv_wire_t wire;
    uint64_t busy_poll_ns; /* the thread looks for more so long before it sleeps: costs a core while
                              KV moves and saves wake-ups; 0: not at all. Idle, it sleeps. */
    const kv_wire_driver_t *driver; /* NULL: UCX */
} kv_mover_params_t;

kv_status_t kv_mover_create(
    const kv_mover_params_t *params, kv_mover_t **mover_out, kv_error_t *error);

/* Stops the thread and closes every link; nothing is written to any slot once it returns. Events
 * that were not polled are lost. */
void kv_mover_destroy(kv_mover_t *mover);

uint16_t kv_mover_port(const kv_mover_t *mover); /* for peers.h: Hello's data_port */

/* ---- links ---- */

/* Filled by kv_peer_link_params. The side that opened the control connection connects, the other
 * one accepts exactly the endpoint whose first message carries the token. */
typedef struct {
    const char *name; /* of the peer, for the log */
    const char *host; /* numeric address of the peer */
    uint16_t port;    /* its data listener */
    uint8_t token[KV_DATA_TOKEN_BYTES];
    bool connects;  /* this side opened the control connection */
    bool same_host; /* equal host ids: shared memory may work */
} kv_link_params_t;

/* Pieces may be sent and transfers expected at once: they wait until the link is up. The link ends
 * with one LINK_DOWN, whoever ended it; where the peer does not appear on the data wire within 5 s,
 * that is a LINK_DOWN too. */
kv_status_t kv_mover_link_open(
    kv_mover_t *mover, const kv_link_params_t *params, kv_link_t *link_out, kv_error_t *error);

/* Call it from down(): force-closes the data connection, fails what depends on it. */
void kv_mover_link_close(kv_mover_t *mover, kv_link_t link);

/* ---- ranges ---- */

/* Bytes of a block, in whole units: where the sender has them, and where the receiver wants them.
 */
typedef struct {
    size_t source_offset_bytes, target_offset_bytes, bytes;
} kv_range_t;

/* Both sides hold the block alike. */
static inline kv_range_t kv_range_alike(size_t offset_bytes, size_t bytes)
{
    return (kv_range_t){offset_bytes, offset_bytes, bytes};
}

/* ---- sending ---- */

typedef struct {
    uint64_t transfer_id; /* of the receiver */
    uint64_t tag;         /* comes back in the event */
    uint32_t first_block; /* index in the transfer's blocks */
    uint32_t block_count;
    const kv_range_t *ranges; /* [range_count] of each block, ascending and disjoint in the target;
                                 the array is copied */
    uint32_t range_count;
    const uint32_t *slots; /* [block_count] source slots in this arena; the array is copied */
} kv_piece_t;

/* Exactly one SENT follows when KV_OK is returned. */
kv_status_t kv_mover_send(
    kv_mover_t *mover, kv_link_t link, const kv_piece_t *piece, kv_error_t *error);

/* Pieces of the transfer that were not begun end as SENT with KV_CANCELLED; the others as they
 * would. Each still has its own SENT. */
void kv_mover_cancel(kv_mover_t *mover, kv_link_t link, uint64_t transfer_id);

/* ---- receiving ---- */

/* A new id for a transfer to this node; from any thread. */
uint64_t kv_mover_transfer_id(kv_mover_t *mover);

typedef struct {
    uint64_t transfer_id;
    uint32_t block_count;
    const uint32_t *slots; /* [block_count], distinct; the array is copied */
    /* [range_count] What comes of each slot by this link, by its target's place (the source's is
     * not looked at); ascending and disjoint; the array is copied. 0 of them: all of it. Where
     * several expectations share slots, their ranges are disjoint too: their caller sees to it. */
    const kv_range_t *ranges;
    uint32_t range_count;
} kv_expectation_t;

/* Reserves: in force when the call returns, so that the peer may be told afterwards. */
kv_status_t kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *expectation, kv_error_t *error);

/* Fewer will come: the expectation is of its first block_count blocks (at least 1) from now on, and
 * lands with them. Does nothing where it ended already. */
void kv_mover_shorten(kv_mover_t *mover, uint64_t transfer_id, uint32_t block_count);

/* Gives the reservation up. Exactly one REVOKED follows, also where the transfer has already ended
 * (a LANDED that was on its way comes before it). Call it once, for each expectation that FAILED
 * and for each one that is not wanted any more; never needed after LANDED. */
void kv_mover_revoke(kv_mover_t *mover, uint64_t transfer_id);

/* ---- events ---- */

typedef enum {
    KV_MOVED_LINK_UP,   /* text: the wire that is really used, "shm" or "tcp" */
    KV_MOVED_LINK_DOWN, /* the last event of the link; status and text say why */
    KV_MOVED_SENT,   /* the source slots are free. status KV_OK: handed to the wire (not: landed);
                        else why not: KV_PEER_LOST, KV_CANCELLED */
    KV_MOVED_LANDED, /* all that was expected, verified */
    KV_MOVED_FAILED, /* KV_CORRUPT, KV_INVALID, KV_PEER_LOST; revoke next */
    KV_MOVED_REVOKED,
} kv_moved_t;

typedef struct {
    kv_moved_t kind;
    kv_status_t status;
    kv_link_t link;
    uint64_t transfer_id;
    uint64_t tag;   /* SENT */
    uint64_t bytes; /* SENT: of the piece; LANDED: of the expectation */
    /* LANDED, FAILED, REVOKED: so many leading blocks are whole and verified, as far as the
     * expectation covers them.
     * After FAILED nothing more is written, so REVOKED says the same; where a LANDED came first, or
     * nothing was expected, REVOKED says 0. */
    uint32_t landed_blocks;
    char text[96]; /* LINK_UP: the wire; FAILED and LINK_DOWN: the reason */
} kv_mover_event_t;

/* Readable when kv_mover_poll has something. */
int kv_mover_fd(const kv_mover_t *mover);

/* The next event, in the order in which they happened; false when there is none (which clears the
 * descriptor). */
bool kv_mover_poll(kv_mover_t *mover, kv_mover_event_t *event_out);

typedef struct {
    uint64_t sent_bytes, received_bytes; /* payload */
    uint64_t sent_messages, received_messages;
    uint64_t sent_direct_messages, received_direct_messages; /* of those, between devices' memories,
                                                                past this process's */
    uint64_t dropped_messages;                               /* unknown transfer, other link */
    uint64_t refused_endpoints; /* nobody was expected, wrong token, silent */
    uint64_t corrupt_fragments;
    uint64_t rendezvous_messages; /* that did not come eagerly: no Kvist node sends such */
    uint32_t links_up;
    uint32_t links;        /* opened and not ended: up or not */
    uint32_t expectations; /* neither landed nor revoked */
    uint32_t pieces;       /* whose SENT was not polled */
} kv_mover_stats_t;

void kv_mover_stats(kv_mover_t *mover, kv_mover_stats_t *stats_out);

#endif
