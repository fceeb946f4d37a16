/* The prefill node's side of one request (pd.h).
 *
 *   IDLE --START: MATCH--> MATCHING --MATCHED, all is here--> COMPUTING --COMPUTED--> DRAINING
 *                           |   | blocks are missing:          ^   |                   | last SENT:
 *                           |   v FIND_SOURCE                  |   |                   v DONE
 *                           |  FINDING --SOURCE, none----------+   |
 *                           |   |  ^                           |   |
 *                           |   |  | still missing: SEAL,      |   |
 *          SOURCE: EXPECT,  |   |  | FIND_SOURCE               |   |
 *          SEND_FETCH       |   v  |        all is here, or    |   |
 *                           |  FETCHING ----enough was tried:--+   |
 *                           |   |           SEAL                   |
 *            MATCH_FAILED,  |   |                                  |
 *            CANCEL,        |   +----------------+-----------------+
 *            PEER_DOWN      v                    |  CANCEL, PEER_DOWN, a piece or compute failed:
 *                          DONE                  v  STOP, UNFETCH, REVOKE, CANCEL_PIECES
 *                           ^                 ENDING
 *                           +--------------------+  COMPUTED, REVOKED, last SENT: whatever is out
 *
 * A fetch ends when all that will come has landed and its makers are known (FETCH_BEGINS or
 * FETCHED), or, given up, by its REVOKED; what landed whole until then is kept.
 *
 * Invariants: 1. RELEASE comes once, on entering DONE, when nothing is expected (LANDED or
 * REVOKED), compute has ended and every piece had its SENT. 2. Prefilled is sent once, just
 * before, unless the peer is lost: its status is KV_OK only where every piece was handed to the
 * wire. 3. A fetch that fails costs compute, never the request. 4. SEAL names only blocks that the
 * mover verified whole and whose makers the source named; they are never expected again. */
#include "base/check.h"
#include "transport/pd.h"

typedef struct {
    kv_pd_prefill_t *machine;
    const kv_pd_prefill_event_t *event;
    kv_pd_prefill_actions_t *actions;
} step_t;

static kv_pd_prefill_action_t *act(step_t *step, kv_pd_prefill_action_kind_t kind)
{
    KV_CHECK(step->actions->count < KV_PD_ACTIONS_MAX);
    kv_pd_prefill_action_t *action = &step->actions->items[step->actions->count++];
    *action = (kv_pd_prefill_action_t){.kind = kind};
    return action;
}

static void finish_when_quiet(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    if (machine->computing || machine->expecting || machine->revoking || machine->pieces > 0) {
        return;
    }
    if (!machine->peer_lost) {
        kv_pd_prefill_action_t *action = act(step, KV_PD_PREFILL_DO_SEND_PREFILLED);
        action->transfer_id = machine->transfer_id;
        action->status = machine->status;
    }
    act(step, KV_PD_PREFILL_DO_RELEASE)->status = machine->status;
    machine->state = KV_PD_PREFILL_DONE;
}

static void revoke(step_t *step)
{
    if (step->machine->expecting && !step->machine->revoking) {
        step->machine->revoking = true;
        act(step, KV_PD_PREFILL_DO_REVOKE)->transfer_id = step->machine->fetch_id;
    }
}

/* The source is asked to send nothing more. */
static void take_back(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    if (machine->state == KV_PD_PREFILL_FETCHING && !machine->source_ended) {
        machine->source_ended = true;
        act(step, KV_PD_PREFILL_DO_SEND_UNFETCH)->transfer_id = machine->fetch_id;
    }
}

static void begin_ending(step_t *step, kv_status_t status)
{
    kv_pd_prefill_t *machine = step->machine;
    bool streamed =
        machine->state == KV_PD_PREFILL_COMPUTING || machine->state == KV_PD_PREFILL_DRAINING;
    take_back(step);
    machine->state = KV_PD_PREFILL_ENDING;
    machine->status = status;
    if (machine->computing) {
        act(step, KV_PD_PREFILL_DO_STOP);
    }
    if (streamed) {
        act(step, KV_PD_PREFILL_DO_CANCEL_PIECES)->transfer_id = machine->transfer_id;
    }
    revoke(step);
    finish_when_quiet(step);
}

static void compute(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    machine->state = KV_PD_PREFILL_COMPUTING;
    machine->computing = true;
    act(step, KV_PD_PREFILL_DO_SEND_PREFILLING)->transfer_id = machine->transfer_id;
    kv_pd_prefill_action_t *action = act(step, KV_PD_PREFILL_DO_COMPUTE);
    action->transfer_id = machine->transfer_id;
    action->first_block = machine->held_blocks;
}

static void in_idle(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    if (step->event->kind == KV_PD_PREFILL_EV_START) {
        machine->transfer_id = step->event->transfer_id;
        machine->decode_held = step->event->held_blocks;
        machine->state = KV_PD_PREFILL_MATCHING;
        act(step, KV_PD_PREFILL_DO_MATCH);
    }
}

/* Asks for a source of what is missing, while that is worth it; else computes it. */
static void find_or_compute(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    if (machine->held_blocks >= machine->whole_blocks || machine->fetches >= KV_PD_FETCHES_MAX) {
        compute(step);
        return;
    }
    machine->state = KV_PD_PREFILL_FINDING;
    kv_pd_prefill_action_t *action = act(step, KV_PD_PREFILL_DO_FIND_SOURCE);
    action->first_block = machine->held_blocks;
    action->block_count = machine->whole_blocks - machine->held_blocks;
}

static void take_match(step_t *step)
{
    step->machine->held_blocks = step->event->held_blocks;
    step->machine->whole_blocks = step->event->whole_blocks;
    find_or_compute(step);
}

static void in_matching(step_t *step)
{
    const kv_pd_prefill_event_t *event = step->event;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_MATCHED:
        take_match(step);
        return;
    case KV_PD_PREFILL_EV_MATCH_FAILED:
        begin_ending(step, event->status == KV_OK ? KV_FATAL : event->status);
        return;
    case KV_PD_PREFILL_EV_CANCEL:
        begin_ending(step, KV_CANCELLED);
        return;
    case KV_PD_PREFILL_EV_PEER_DOWN:
        step->machine->peer_lost = true;
        begin_ending(step, KV_PEER_LOST);
        return;
    default:
        return;
    }
}

static void in_finding(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    const kv_pd_prefill_event_t *event = step->event;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_SOURCE:
        if (event->block_count == 0) {
            compute(step);
            return;
        }
        machine->state = KV_PD_PREFILL_FETCHING;
        machine->fetches++;
        machine->fetch_id = event->transfer_id;
        uint32_t missing = machine->whole_blocks - machine->held_blocks;
        machine->fetch_count = event->block_count < missing ? event->block_count : missing;
        machine->known_blocks = machine->landed_blocks = 0;
        machine->source_ended = false;
        machine->expecting = true;
        static const kv_pd_prefill_action_kind_t BOTH[] = {
            KV_PD_PREFILL_DO_EXPECT, KV_PD_PREFILL_DO_SEND_FETCH};
        for (int i = 0; i < 2; i++) {
            kv_pd_prefill_action_t *action = act(step, BOTH[i]);
            action->transfer_id = machine->fetch_id;
            action->first_block = machine->held_blocks;
            action->block_count = machine->fetch_count;
        }
        return;
    case KV_PD_PREFILL_EV_CANCEL:
        begin_ending(step, KV_CANCELLED);
        return;
    case KV_PD_PREFILL_EV_PEER_DOWN:
        machine->peer_lost = true;
        begin_ending(step, KV_PEER_LOST);
        return;
    default:
        return;
    }
}

/* Nothing is expected any more: what landed whole, and is known, is this node's own. */
static void end_fetch(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    uint32_t known = machine->known_blocks;
    kv_pd_prefill_action_t *action = act(step, KV_PD_PREFILL_DO_SEAL);
    action->first_block = machine->held_blocks;
    action->block_count = machine->landed_blocks < known ? machine->landed_blocks : known;
    machine->held_blocks += action->block_count;
    find_or_compute(step);
}

static void end_fetch_when_complete(step_t *step)
{
    const kv_pd_prefill_t *machine = step->machine;
    if (!machine->expecting && machine->known_blocks >= machine->fetch_count) {
        end_fetch(step);
    }
}

static void give_up_fetch(step_t *step)
{
    take_back(step);
    if (step->machine->expecting) {
        revoke(step);
    } else {
        end_fetch(step);
    }
}

/* The source says how many blocks it sends, the first of those asked for, and who made them. */
static void take_count(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    uint32_t count = step->event->block_count;
    if (count == 0) {
        give_up_fetch(step);
        return;
    }
    if (count < machine->fetch_count) {
        machine->fetch_count = count;
        if (machine->expecting) {
            kv_pd_prefill_action_t *action = act(step, KV_PD_PREFILL_DO_SHORTEN);
            action->transfer_id = machine->fetch_id;
            action->block_count = count;
        }
    }
    machine->known_blocks = machine->fetch_count;
    end_fetch_when_complete(step);
}

static void in_fetching(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    const kv_pd_prefill_event_t *event = step->event;
    bool ours = event->transfer_id == machine->fetch_id;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_FETCH_REFUSED:
        machine->expecting = false;
        machine->source_ended = true; /* it was never asked */
        end_fetch(step);
        return;
    case KV_PD_PREFILL_EV_FETCH_BEGINS:
        if (ours && !machine->revoking) {
            take_count(step);
        }
        return;
    case KV_PD_PREFILL_EV_FETCHED:
        if (!ours || machine->revoking) {
            return;
        }
        machine->source_ended = true;
        if (event->status == KV_OK) {
            take_count(step);
        } else {
            give_up_fetch(step);
        }
        return;
    case KV_PD_PREFILL_EV_LANDED:
        if (ours && machine->expecting) {
            machine->landed_blocks = machine->fetch_count;
            machine->expecting = machine->revoking; /* one crossing a revoke: REVOKED follows */
            if (!machine->revoking) {
                end_fetch_when_complete(step);
            }
        }
        return;
    case KV_PD_PREFILL_EV_RECEIVE_FAILED:
        if (ours && machine->expecting && !machine->revoking) {
            give_up_fetch(step);
        }
        return;
    case KV_PD_PREFILL_EV_SOURCE_DOWN:
        machine->source_ended = true;
        if (!machine->revoking) {
            give_up_fetch(step);
        }
        return;
    case KV_PD_PREFILL_EV_TIMEOUT:
        if (!machine->revoking) {
            give_up_fetch(step);
        }
        return;
    case KV_PD_PREFILL_EV_REVOKED:
        if (ours && machine->revoking) {
            machine->revoking = machine->expecting = false;
            if (event->landed_blocks > machine->landed_blocks) {
                machine->landed_blocks = event->landed_blocks;
            }
            end_fetch(step);
        }
        return;
    case KV_PD_PREFILL_EV_CANCEL:
        begin_ending(step, KV_CANCELLED);
        return;
    case KV_PD_PREFILL_EV_PEER_DOWN:
        machine->peer_lost = true;
        begin_ending(step, KV_PEER_LOST);
        return;
    default:
        return;
    }
}

static void in_streaming(step_t *step) /* COMPUTING and DRAINING */
{
    kv_pd_prefill_t *machine = step->machine;
    const kv_pd_prefill_event_t *event = step->event;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_PIECE_QUEUED:
        machine->pieces++;
        return;
    case KV_PD_PREFILL_EV_PIECE_SENT:
        machine->pieces--;
        if (event->status != KV_OK) {
            begin_ending(step, event->status);
        } else if (machine->state == KV_PD_PREFILL_DRAINING) {
            finish_when_quiet(step);
        }
        return;
    case KV_PD_PREFILL_EV_COMPUTED:
        if (!machine->computing) {
            return;
        }
        machine->computing = false;
        if (event->status != KV_OK) {
            begin_ending(step, event->status);
            return;
        }
        machine->state = KV_PD_PREFILL_DRAINING;
        finish_when_quiet(step);
        return;
    case KV_PD_PREFILL_EV_CANCEL:
        begin_ending(step, KV_CANCELLED);
        return;
    case KV_PD_PREFILL_EV_PEER_DOWN:
        machine->peer_lost = true;
        begin_ending(step, KV_PEER_LOST);
        return;
    default:
        return;
    }
}

static void in_ending(step_t *step)
{
    kv_pd_prefill_t *machine = step->machine;
    const kv_pd_prefill_event_t *event = step->event;
    switch (event->kind) {
    case KV_PD_PREFILL_EV_PIECE_QUEUED:
        machine->pieces++;
        return;
    case KV_PD_PREFILL_EV_PIECE_SENT:
        machine->pieces--;
        break;
    case KV_PD_PREFILL_EV_COMPUTED:
        machine->computing = false;
        break;
    case KV_PD_PREFILL_EV_REVOKED:
        if (!machine->revoking || event->transfer_id != machine->fetch_id) {
            return;
        }
        machine->revoking = machine->expecting = false;
        break;
    case KV_PD_PREFILL_EV_PEER_DOWN:
        machine->peer_lost = true;
        return;
    default:
        return;
    }
    finish_when_quiet(step);
}

void kv_pd_prefill_step(kv_pd_prefill_t *machine, const kv_pd_prefill_event_t *event,
    kv_pd_prefill_actions_t *actions_out)
{
    actions_out->count = 0;
    step_t step = {machine, event, actions_out};
    switch (machine->state) {
    case KV_PD_PREFILL_IDLE:
        in_idle(&step);
        return;
    case KV_PD_PREFILL_MATCHING:
        in_matching(&step);
        return;
    case KV_PD_PREFILL_FINDING:
        in_finding(&step);
        return;
    case KV_PD_PREFILL_FETCHING:
        in_fetching(&step);
        return;
    case KV_PD_PREFILL_COMPUTING:
    case KV_PD_PREFILL_DRAINING:
        in_streaming(&step);
        return;
    case KV_PD_PREFILL_ENDING:
        in_ending(&step);
        return;
    case KV_PD_PREFILL_DONE:
        return;
    }
}
