/* The decode node's side of one request (pd.h).
 *
 *   IDLE --START: RESERVE--> RESERVING --RESERVED: CHOOSE--> CHOOSING --CHOSEN, none--> DONE
 *    |                           |                            ^    |               (FALL_BACK)
 *    | CANCEL                    | RESERVE_FAILED,            |    | CHOSEN:
 *    |                           | TIMEOUT, CANCEL            |    | EXPECT, SEND_PREFILL
 *    v                           v                            |    v
 *   DONE(CANCELLED)       DONE(FAIL or CANCELLED)             |  STREAMING ----------> DONE(READY)
 *                                                             |    |     PREFILLED and LANDED
 *                              attempts, and blocks to ask    |    |
 *                              for, are left: KEEP, CHOOSE    |    | PREFILLED with an error,
 *                                                             |    | RECEIVE_FAILED, PEER_DOWN,
 *                                                             |    v TIMEOUT, CANCEL: REVOKE
 *   DONE(FALL_BACK after KEEP, or CANCELLED) <--------------- ENDING
 *                                             REVOKED
 *
 * Invariants: 1. EXPECT is answered by LANDED or by REVOKE's REVOKED before any outcome, and before
 * another EXPECT. 2. One outcome, on entering DONE. 3. KEEP names only blocks that the mover
 * verified whole, whose makers the peer named, and that hold no token that is still to be
 * computed. */
#include "base/check.h"
#include "transport/pd.h"

typedef struct {
    kv_pd_decode_t *machine;
    const kv_pd_decode_event_t *event;
    kv_pd_decode_actions_t *actions;
} step_t;

static kv_pd_decode_action_t *act(step_t *step, kv_pd_decode_action_kind_t kind)
{
    KV_CHECK(step->actions->count < KV_PD_ACTIONS_MAX);
    kv_pd_decode_action_t *action = &step->actions->items[step->actions->count++];
    *action = (kv_pd_decode_action_t){.kind = kind};
    return action;
}

static void outcome(step_t *step, kv_pd_decode_action_kind_t kind, kv_status_t status)
{
    if (kind == KV_PD_DECODE_DO_FAIL || kind == KV_PD_DECODE_DO_CANCELLED) {
        act(step, KV_PD_DECODE_DO_RELEASE);
    }
    act(step, kind)->status = status;
    step->machine->state = KV_PD_DECODE_DONE;
}

/* What landed whole is this node's own from now on. */
static void keep_landed(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    uint32_t landed = machine->told ? machine->landed_blocks : 0;
    uint32_t kept = landed < machine->whole_blocks ? landed : machine->whole_blocks;
    if (kept == 0) {
        return;
    }
    kv_pd_decode_action_t *action = act(step, KV_PD_DECODE_DO_KEEP);
    action->first_block = machine->held_blocks;
    action->block_count = kept;
    machine->held_blocks += kept;
    machine->block_count -= kept;
    machine->whole_blocks -= kept;
}

static void choose(step_t *step)
{
    step->machine->state = KV_PD_DECODE_CHOOSING;
    act(step, KV_PD_DECODE_DO_CHOOSE);
}

/* The end of an attempt: another one, where that is worth it. */
static void finish_when_quiet(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    if (machine->expecting || machine->revoking) {
        return;
    }
    if (machine->cancelled) {
        outcome(step, KV_PD_DECODE_DO_CANCELLED, KV_CANCELLED);
        return;
    }
    keep_landed(step);
    if (machine->attempts < KV_PD_ATTEMPTS_MAX && machine->whole_blocks > 0) {
        choose(step);
    } else {
        outcome(step, KV_PD_DECODE_DO_FALL_BACK, machine->reason);
    }
}

static void begin_ending(step_t *step, kv_status_t reason)
{
    kv_pd_decode_t *machine = step->machine;
    machine->state = KV_PD_DECODE_ENDING;
    machine->reason = reason;
    if (!machine->peer_lost && !machine->peer_ended) {
        act(step, KV_PD_DECODE_DO_SEND_CANCEL);
    }
    if (machine->expecting) {
        machine->revoking = true;
        act(step, KV_PD_DECODE_DO_REVOKE)->transfer_id = machine->transfer_id;
    }
    finish_when_quiet(step);
}

static void ready_when_complete(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    if (machine->prefilled && machine->landed) {
        outcome(step, KV_PD_DECODE_DO_READY, KV_OK);
    }
}

static void in_idle(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    if (step->event->kind == KV_PD_DECODE_EV_START) {
        machine->state = KV_PD_DECODE_RESERVING;
        act(step, KV_PD_DECODE_DO_RESERVE);
    } else if (step->event->kind == KV_PD_DECODE_EV_CANCEL) {
        outcome(step, KV_PD_DECODE_DO_CANCELLED, KV_CANCELLED);
    }
}

static void in_reserving(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    const kv_pd_decode_event_t *event = step->event;
    switch (event->kind) {
    case KV_PD_DECODE_EV_RESERVED:
        machine->held_blocks = event->held_blocks;
        machine->block_count = event->block_count;
        machine->whole_blocks = event->whole_blocks;
        machine->reason = KV_PEER_LOST; /* where nobody can be asked at all */
        if (event->block_count == 0) {
            outcome(step, KV_PD_DECODE_DO_FALL_BACK, KV_OK);
        } else {
            choose(step);
        }
        return;
    case KV_PD_DECODE_EV_RESERVE_FAILED:
        outcome(step, KV_PD_DECODE_DO_FAIL, event->status == KV_OK ? KV_FATAL : event->status);
        return;
    case KV_PD_DECODE_EV_TIMEOUT:
        outcome(step, KV_PD_DECODE_DO_FAIL, KV_BUSY);
        return;
    case KV_PD_DECODE_EV_CANCEL:
        outcome(step, KV_PD_DECODE_DO_CANCELLED, KV_CANCELLED);
        return;
    default:
        return;
    }
}

static void take_choice(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    if (!step->event->peer_up) {
        outcome(step, KV_PD_DECODE_DO_FALL_BACK, machine->reason);
        return;
    }
    machine->state = KV_PD_DECODE_STREAMING;
    machine->attempts++;
    machine->transfer_id = step->event->transfer_id;
    machine->landed_blocks = 0;
    machine->told = machine->prefilled = machine->landed = false;
    machine->peer_ended = machine->peer_lost = false;
    machine->expecting = true;
    kv_pd_decode_action_t *expect = act(step, KV_PD_DECODE_DO_EXPECT);
    expect->transfer_id = machine->transfer_id;
    expect->first_block = machine->held_blocks;
    expect->block_count = machine->block_count;
    act(step, KV_PD_DECODE_DO_SEND_PREFILL)->transfer_id = machine->transfer_id;
}

static void in_choosing(step_t *step)
{
    if (step->event->kind == KV_PD_DECODE_EV_CHOSEN) {
        take_choice(step);
    } else if (step->event->kind == KV_PD_DECODE_EV_CANCEL) {
        outcome(step, KV_PD_DECODE_DO_CANCELLED, KV_CANCELLED);
    }
}

static void in_streaming(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    const kv_pd_decode_event_t *event = step->event;
    bool ours = event->transfer_id == machine->transfer_id;
    switch (event->kind) {
    case KV_PD_DECODE_EV_EXPECT_FAILED:
        machine->expecting = false;
        machine->peer_ended = true; /* it was never asked */
        begin_ending(step, event->status == KV_OK ? KV_FATAL : event->status);
        return;
    case KV_PD_DECODE_EV_LANDED:
        if (ours && machine->expecting) {
            machine->expecting = false;
            machine->landed = true;
            machine->landed_blocks = machine->block_count;
            ready_when_complete(step);
        }
        return;
    case KV_PD_DECODE_EV_PREFILLING:
        machine->told = machine->told || ours;
        return;
    case KV_PD_DECODE_EV_PREFILLED:
        if (!ours || machine->prefilled) {
            return;
        }
        machine->peer_ended = true;
        if (event->status != KV_OK) {
            begin_ending(step, event->status);
            return;
        }
        machine->prefilled = machine->told = true;
        ready_when_complete(step);
        return;
    case KV_PD_DECODE_EV_RECEIVE_FAILED:
        if (ours && machine->expecting) {
            begin_ending(step, event->status == KV_OK ? KV_FATAL : event->status);
        }
        return;
    case KV_PD_DECODE_EV_PEER_DOWN:
        machine->peer_lost = true;
        begin_ending(step, KV_PEER_LOST);
        return;
    case KV_PD_DECODE_EV_TIMEOUT:
        begin_ending(step, KV_BUSY);
        return;
    case KV_PD_DECODE_EV_CANCEL:
        machine->cancelled = true;
        begin_ending(step, KV_CANCELLED);
        return;
    default:
        return;
    }
}

static void in_ending(step_t *step)
{
    kv_pd_decode_t *machine = step->machine;
    const kv_pd_decode_event_t *event = step->event;
    switch (event->kind) {
    case KV_PD_DECODE_EV_LANDED: /* crossed our revoke; REVOKED still follows */
        if (machine->revoking && event->transfer_id == machine->transfer_id) {
            machine->landed_blocks = machine->block_count;
        }
        return;
    case KV_PD_DECODE_EV_REVOKED:
        if (machine->revoking && event->transfer_id == machine->transfer_id) {
            machine->revoking = machine->expecting = false;
            if (event->landed_blocks > machine->landed_blocks) {
                machine->landed_blocks = event->landed_blocks;
            }
            finish_when_quiet(step);
        }
        return;
    case KV_PD_DECODE_EV_PREFILLING: /* in time for what has landed */
        machine->told = machine->told || event->transfer_id == machine->transfer_id;
        return;
    case KV_PD_DECODE_EV_PEER_DOWN:
        machine->peer_lost = true;
        return;
    case KV_PD_DECODE_EV_CANCEL:
        machine->cancelled = true;
        return;
    default:
        return;
    }
}

void kv_pd_decode_step(
    kv_pd_decode_t *machine, const kv_pd_decode_event_t *event, kv_pd_decode_actions_t *actions_out)
{
    actions_out->count = 0;
    step_t step = {machine, event, actions_out};
    switch (machine->state) {
    case KV_PD_DECODE_IDLE:
        in_idle(&step);
        return;
    case KV_PD_DECODE_RESERVING:
        in_reserving(&step);
        return;
    case KV_PD_DECODE_CHOOSING:
        in_choosing(&step);
        return;
    case KV_PD_DECODE_STREAMING:
        in_streaming(&step);
        return;
    case KV_PD_DECODE_ENDING:
        in_ending(&step);
        return;
    case KV_PD_DECODE_DONE:
        return;
    }
}
