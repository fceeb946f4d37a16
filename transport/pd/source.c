/* The side that serves a Fetch (pd.h): any node, for any other.
 *
 *   IDLE --START: MATCH--> MATCHING --MATCHED: SEND_BEGINS, SEND_PIECES--> SENDING
 *                           |                                               |   |
 *   MATCHED without a block |              SENT: SEND_FETCHED               |   | UNFETCH, STOP,
 *   that is asked for,      |     +-----------------------------------------+   | PEER_DOWN,
 *   MATCH_FAILED, UNFETCH,  |     |                                             | TIMEOUT:
 *   STOP, PEER_DOWN,        v     v                                             v CANCEL_PIECES
 *   TIMEOUT               DONE(RELEASE) <------------------------------------ ENDING
 *                                              SENT
 *
 * Invariants: 1. RELEASE comes once, on entering DONE, when every piece had its SENT: a released
 * slot is not being read. 2. A Fetch is answered once, just before, unless it was taken back or the
 * asker is lost; with KV_OK only where every piece was handed to the wire. 3. What is sent is the
 * first of the blocks that were asked for, all of them leased; where some prove unreadable on the
 * way, the first ones of those, and Fetched says how many. */
#include "base/check.h"
#include "transport/pd.h"

typedef struct {
    kv_pd_source_t *machine;
    const kv_pd_source_event_t *event;
    kv_pd_source_actions_t *actions;
} step_t;

static kv_pd_source_action_t *act(step_t *step, kv_pd_source_action_kind_t kind)
{
    KV_CHECK(step->actions->count < KV_PD_ACTIONS_MAX);
    kv_pd_source_action_t *action = &step->actions->items[step->actions->count++];
    *action = (kv_pd_source_action_t){.kind = kind,
        .transfer_id = step->machine->transfer_id,
        .first_block = step->machine->first_block,
        .block_count = step->machine->block_count};
    return action;
}

static void finish(step_t *step, kv_status_t status)
{
    if (!step->machine->unwanted) {
        act(step, KV_PD_SOURCE_DO_SEND_FETCHED)->status = status;
    }
    act(step, KV_PD_SOURCE_DO_RELEASE);
    step->machine->state = KV_PD_SOURCE_DONE;
}

static void in_idle(step_t *step)
{
    kv_pd_source_t *machine = step->machine;
    if (step->event->kind == KV_PD_SOURCE_EV_START) {
        machine->transfer_id = step->event->transfer_id;
        machine->first_block = step->event->first_block;
        machine->block_count = step->event->block_count;
        machine->state = KV_PD_SOURCE_MATCHING;
        act(step, KV_PD_SOURCE_DO_MATCH);
    }
}

static void take_match(step_t *step)
{
    kv_pd_source_t *machine = step->machine;
    uint32_t held = step->event->held_blocks;
    uint32_t count = held > machine->first_block ? held - machine->first_block : 0;
    if (count < machine->block_count) {
        machine->block_count = count;
    }
    if (machine->block_count == 0) {
        finish(step, KV_MISSING);
        return;
    }
    machine->state = KV_PD_SOURCE_SENDING;
    act(step, KV_PD_SOURCE_DO_SEND_BEGINS);
    act(step, KV_PD_SOURCE_DO_SEND_PIECES);
}

/* The asker's word, the node's or the clock's. false: it is none of these. */
static bool take_end(step_t *step, kv_status_t *status_out)
{
    switch (step->event->kind) {
    case KV_PD_SOURCE_EV_UNFETCH:
    case KV_PD_SOURCE_EV_PEER_DOWN:
        step->machine->unwanted = true;
        *status_out = KV_CANCELLED;
        return true;
    case KV_PD_SOURCE_EV_STOP:
        *status_out = KV_CANCELLED;
        return true;
    case KV_PD_SOURCE_EV_TIMEOUT:
        *status_out = KV_BUSY;
        return true;
    default:
        return false;
    }
}

static void in_matching(step_t *step)
{
    kv_status_t status = step->event->status;
    if (step->event->kind == KV_PD_SOURCE_EV_MATCHED) {
        take_match(step);
    } else if (step->event->kind == KV_PD_SOURCE_EV_MATCH_FAILED) {
        finish(step, status == KV_OK ? KV_FATAL : status);
    } else if (take_end(step, &status)) {
        finish(step, status);
    }
}

static void in_sending(step_t *step)
{
    kv_status_t status;
    if (step->event->kind == KV_PD_SOURCE_EV_SENT) {
        KV_CHECK(step->event->unsent_blocks < step->machine->block_count ||
                 step->event->status != KV_OK);
        step->machine->block_count -= step->event->status == KV_OK ? step->event->unsent_blocks : 0;
        finish(step, step->event->status);
    } else if (take_end(step, &status)) {
        step->machine->state = KV_PD_SOURCE_ENDING;
        step->machine->reason = status;
        act(step, KV_PD_SOURCE_DO_CANCEL_PIECES);
    }
}

static void in_ending(step_t *step)
{
    kv_status_t ignored; /* the first reason stays */
    if (step->event->kind == KV_PD_SOURCE_EV_SENT) {
        finish(step, step->machine->reason);
    } else {
        take_end(step, &ignored);
    }
}

void kv_pd_source_step(
    kv_pd_source_t *machine, const kv_pd_source_event_t *event, kv_pd_source_actions_t *actions_out)
{
    actions_out->count = 0;
    step_t step = {machine, event, actions_out};
    switch (machine->state) {
    case KV_PD_SOURCE_IDLE:
        in_idle(&step);
        return;
    case KV_PD_SOURCE_MATCHING:
        in_matching(&step);
        return;
    case KV_PD_SOURCE_SENDING:
        in_sending(&step);
        return;
    case KV_PD_SOURCE_ENDING:
        in_ending(&step);
        return;
    case KV_PD_SOURCE_DONE:
        return;
    }
}
