#include "holder/courier.h"

#include "base/memory.h"
#include "holder/bounce.h"

#include <stdlib.h>

typedef enum { FREE, LOADING, LOADED, LEAVING } window_state_t;

typedef struct {
    kv_courier_t *courier;
    window_state_t state;
    uint64_t tag;          /* of its piece, leaving */
    uint32_t first, count; /* of the courier's blocks */
    uint32_t slots[KV_COURIER_WINDOW_BLOCKS];
} window_t;

struct kv_courier {
    kv_holder_t *holder;
    kv_courier_params_t params;
    window_t windows[KV_COURIER_WINDOWS];
    uint32_t next, next_to_send; /* blocks: the next to load and to send */
    uint32_t end;                /* where they end: lower once one is not good */
    kv_status_t status;          /* KV_OK until it ends early for another reason than that */
    bool done;
};

static bool is_under_way(const kv_courier_t *courier)
{
    for (int i = 0; i < KV_COURIER_WINDOWS; i++) {
        if (courier->windows[i].state != FREE) {
            return true;
        }
    }
    return false;
}

static void end_if_over(kv_courier_t *courier)
{
    bool all = courier->next >= courier->end || courier->status != KV_OK;
    if (courier->done || !all || is_under_way(courier)) {
        return;
    }
    courier->done = true;
    kv_bounce_leave(courier->holder->bounce);
    kv_status_t status = courier->status;
    if (status == KV_OK && courier->end == 0) {
        status = KV_MISSING;
    }
    courier->params.done(courier->params.context, status, courier->end);
}

static void give_back(window_t *window)
{
    kv_bounce_give(window->courier->holder->bounce, window->count, window->slots);
    window->state = FREE;
}

/* The first reason stays. */
static void fail(kv_courier_t *courier, kv_status_t status)
{
    courier->status = courier->status == KV_OK ? status : courier->status;
}

static void send_window(window_t *window)
{
    kv_courier_t *courier = window->courier;
    kv_holder_t *holder = courier->holder;
    kv_range_t whole = kv_range_alike(0, holder->block_bytes);
    window->tag = kv_holder_new_id(holder);
    window->state = LEAVING;
    kv_piece_t piece = {
        .transfer_id = courier->params.transfer_id,
        .tag = window->tag,
        .first_block = window->first,
        .block_count = window->count,
        .ranges = &whole,
        .range_count = 1,
        .slots = window->slots,
    };
    courier->next_to_send += window->count;
    if (courier->params.peer == NULL ||
        !kv_holder_send_piece(holder, courier->params.peer, &piece)) {
        fail(courier, KV_PEER_LOST);
        give_back(window);
    }
}

/* Windows leave in order, and none that lies behind the end. */
static void send_loaded(kv_courier_t *courier)
{
    for (int i = 0; i < KV_COURIER_WINDOWS; i++) {
        window_t *window = &courier->windows[i];
        if (window->state != LOADED) {
            continue;
        }
        if (courier->status != KV_OK || window->first >= courier->end) {
            give_back(window);
        } else if (window->first == courier->next_to_send) {
            send_window(window);
            i = -1; /* the next one may have waited for it */
        }
    }
}

static void loaded(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count,
    kvist_miss_t miss)
{
    window_t *window = context;
    kv_courier_t *courier = window->courier;
    (void)lease;
    (void)miss; /* counted by the store */
    window->state = LOADED;
    if (status != KV_OK) {
        fail(courier, status);
    } else if (block_count < window->count) {
        uint32_t end = window->first + block_count;
        courier->end = end < courier->end ? end : courier->end;
        kv_bounce_give(
            courier->holder->bounce, window->count - block_count, window->slots + block_count);
        window->count = block_count;
    }
    kv_courier_go_on(courier);
}

static void load_window(window_t *window, uint32_t count)
{
    kv_courier_t *courier = window->courier;
    kv_holder_t *holder = courier->holder;
    kvist_piece_t pieces[KV_COURIER_WINDOW_BLOCKS];
    window->first = courier->next;
    window->count = count;
    window->state = LOADING;
    kv_bounce_take(holder->bounce, count, window->slots);
    for (uint32_t i = 0; i < count; i++) {
        pieces[i] =
            (kvist_piece_t){kv_bounce_block(holder->bounce, window->slots[i]), holder->block_bytes};
    }
    courier->next += count;
    kvist_selection_t selection = {
        .first_block = courier->params.first_block + window->first, .block_count = count};
    kv_status_t status =
        kvist_lease_load(courier->params.lease, &selection, pieces, count, loaded, window);
    if (status != KV_OK) {
        fail(courier, status);
        give_back(window);
    }
}

static uint32_t window_blocks(const kv_courier_t *courier)
{
    const kv_bounce_t *bounce = courier->holder->bounce;
    uint32_t left = courier->next < courier->end ? courier->end - courier->next : 0;
    uint32_t share = kv_bounce_share(bounce) / KV_COURIER_WINDOWS;
    uint32_t count = share > 1 ? share : 1;
    count = count < KV_COURIER_WINDOW_BLOCKS ? count : KV_COURIER_WINDOW_BLOCKS;
    count = count < left ? count : left;
    return count <= kv_bounce_free_count(bounce) ? count : 0;
}

void kv_courier_go_on(kv_courier_t *courier)
{
    send_loaded(courier);
    for (int i = 0; i < KV_COURIER_WINDOWS; i++) {
        uint32_t count = courier->windows[i].state == FREE ? window_blocks(courier) : 0;
        if (courier->status == KV_OK && count > 0) {
            load_window(&courier->windows[i], count);
        }
    }
    end_if_over(courier);
}

bool kv_courier_moved(kv_courier_t *courier, const kv_mover_event_t *event)
{
    for (int i = 0; event->kind == KV_MOVED_SENT && i < KV_COURIER_WINDOWS; i++) {
        window_t *window = &courier->windows[i];
        if (window->state == LEAVING && window->tag == event->tag) {
            if (event->status != KV_OK) {
                fail(courier, event->status);
            }
            give_back(window);
            kv_courier_go_on(courier);
            return true;
        }
    }
    return false;
}

void kv_courier_cancel(kv_courier_t *courier)
{
    fail(courier, KV_CANCELLED);
    if (courier->params.peer != NULL) {
        kv_mover_cancel(courier->holder->mover, kv_holder_link(courier->params.peer),
            courier->params.transfer_id);
    }
}

void kv_courier_peer_down(kv_courier_t *courier)
{
    fail(courier, KV_PEER_LOST);
    courier->params.peer = NULL;
}

kv_courier_t *kv_courier_create(kv_holder_t *holder, const kv_courier_params_t *params)
{
    kv_courier_t *courier = kv_allocate(sizeof *courier);
    courier->holder = holder;
    courier->params = *params;
    courier->end = params->block_count;
    kv_bounce_join(holder->bounce);
    for (int i = 0; i < KV_COURIER_WINDOWS; i++) {
        courier->windows[i].courier = courier;
    }
    return courier;
}

void kv_courier_destroy(kv_courier_t *courier)
{
    if (courier != NULL && !courier->done) {
        kv_bounce_leave(courier->holder->bounce);
    }
    free(courier);
}
