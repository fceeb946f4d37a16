/* A courier: brings leased blocks to the wire through bounce blocks, window by window.
 *
 *            take          load, verified        send            SENT
 *   (left) -------> window --------------> window ----> on the wire -----> blocks are free again
 *
 * Up to KV_COURIER_WINDOWS of a courier are under way at once, so that one loads while another one
 * leaves; they leave in order. A courier takes its share of the bounce blocks, and waits where none
 * is free. A block that proves damaged or cannot be read ends it early: what is before that is
 * sent, and nothing behind it.
 *
 * Owns: its windows.
 * Borrows: the holder, the lease and the peer until done; the peer is not used any more after
 * kv_courier_peer_down.
 * Threads: the reactor's. done runs once, from kv_courier_go_on, kv_courier_moved or
 * the store.
 * Errors: the status of done. */
#ifndef KV_HOLDER_COURIER_H
#define KV_HOLDER_COURIER_H

#include "holder/holder.h"

enum { KV_COURIER_WINDOWS = 2, KV_COURIER_WINDOW_BLOCKS = 16 };

typedef struct kv_courier kv_courier_t;

typedef struct {
    kvist_lease_t *lease;
    kv_peer_t *peer;
    uint64_t transfer_id;              /* of the receiver */
    uint32_t first_block, block_count; /* of the lease; the transfer's begin at 0 */
    /* Nothing of it is under way any more. status KV_OK: sent_count leading blocks, at least one,
     * were handed to the wire, and no more will be; KV_MISSING: not one could be read;
     * KV_CANCELLED; KV_PEER_LOST. */
    void (*done)(void *context, kv_status_t status, uint32_t sent_count);
    void *context;
} kv_courier_params_t;

/* Begins with the first kv_courier_go_on. */
kv_courier_t *kv_courier_create(kv_holder_t *holder, const kv_courier_params_t *params);

/* After done, or before the first kv_courier_go_on. */
void kv_courier_destroy(kv_courier_t *courier);

/* No further window begins; done follows with KV_CANCELLED when those under way have ended. */
void kv_courier_cancel(kv_courier_t *courier);
void kv_courier_peer_down(kv_courier_t *courier);

/* false: it is about no piece of this courier. Others may go on now. */
bool kv_courier_moved(kv_courier_t *courier, const kv_mover_event_t *event);

/* Begins what it can: to start, and every now and then while blocks were not free. */
void kv_courier_go_on(kv_courier_t *courier);

#endif
