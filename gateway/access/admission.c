#include "gateway/access/admission.h"

#include "base/check.h"
#include "base/clock.h"

/* QUANTUM: what a turn is worth; about one prompt, so that turns alternate and no lane is visited
 * in vain for long. */
enum { QUANTUM_TOKENS = 1024 };

/* ---- lanes ---- */

static void join_ring(kv_admission_t *admission, kv_lane_t *lane, kvist_priority_t priority)
{
    kv_lane_t *turn = admission->turns[priority];
    lane->deficit = 0;
    if (turn == NULL) {
        lane->next = lane->previous = lane;
        admission->turns[priority] = lane;
        return;
    }
    /* Before whose turn it is: behind all others. */
    lane->next = turn;
    lane->previous = turn->previous;
    lane->previous->next = lane;
    turn->previous = lane;
}

static void leave_ring(kv_admission_t *admission, kv_lane_t *lane, kvist_priority_t priority)
{
    if (admission->turns[priority] == lane) {
        admission->turns[priority] = lane->next == lane ? NULL : lane->next;
    }
    lane->previous->next = lane->next;
    lane->next->previous = lane->previous;
    lane->next = lane->previous = NULL;
}

static void take_out(kv_admission_t *admission, kv_ticket_t *ticket)
{
    kv_lane_t *lane = &ticket->share->lanes[ticket->priority];
    *(ticket->previous != NULL ? &ticket->previous->next : &lane->first) = ticket->next;
    *(ticket->next != NULL ? &ticket->next->previous : &lane->last) = ticket->previous;
    ticket->next = ticket->previous = NULL;
    lane->count--;
    admission->waiting_counts[ticket->priority]--;
    if (lane->count == 0) {
        leave_ring(admission, lane, ticket->priority);
    }
}

void kv_admission_enter(kv_admission_t *admission, kv_ticket_t *ticket, kv_share_t *share,
    kvist_priority_t priority, uint64_t cost, void *owner)
{
    KV_CHECK(ticket->state == KV_TICKET_OUTSIDE);
    kv_lane_t *lane = &share->lanes[priority];
    lane->share = share;
    *ticket = (kv_ticket_t){.state = KV_TICKET_WAITING,
        .priority = priority,
        .cost = cost,
        .share = share,
        .owner = owner,
        .previous = lane->last};
    *(lane->last != NULL ? &lane->last->next : &lane->first) = ticket;
    lane->last = ticket;
    if (lane->count++ == 0) {
        join_ring(admission, lane, priority);
    }
    admission->waiting_counts[priority]++;
}

/* ---- whose turn it is ---- */

static bool may_go(const kv_lane_t *lane)
{
    return lane->share->places_max == 0 || lane->share->place_count < lane->share->places_max;
}

/* The rounds until some lane can pay for its first ticket; UINT64_MAX: none may go. */
static uint64_t rounds_needed(const kv_lane_t *turn)
{
    uint64_t least = UINT64_MAX;
    const kv_lane_t *lane = turn;
    do {
        if (may_go(lane)) {
            uint64_t lacking =
                lane->first->cost > lane->deficit ? lane->first->cost - lane->deficit : 0;
            uint64_t rounds = (lacking + QUANTUM_TOKENS - 1) / QUANTUM_TOKENS;
            least = rounds < least ? rounds : least;
        }
        lane = lane->next;
    } while (lane != turn);
    return least;
}

/* The first ticket of the class that may go. The turn stays with a lane while it can pay. */
static kv_ticket_t *choose(kv_admission_t *admission, kvist_priority_t priority)
{
    kv_lane_t *turn = admission->turns[priority];
    if (turn == NULL) {
        return NULL;
    }
    uint64_t rounds = rounds_needed(turn);
    if (rounds == UINT64_MAX) {
        return NULL;
    }
    /* All rounds in which nobody could pay at once; who may not go saves nothing up. */
    kv_lane_t *lane = turn;
    do {
        lane->deficit += may_go(lane) ? rounds * QUANTUM_TOKENS : 0;
        lane = lane->next;
    } while (lane != turn);
    while (!may_go(lane) || lane->first->cost > lane->deficit) {
        lane = lane->next;
    }
    lane->deficit -= lane->first->cost;
    /* Who cannot pay for the next one has had its turn. */
    const kv_ticket_t *next = lane->first->next;
    bool stays = next != NULL && next->cost <= lane->deficit;
    admission->turns[priority] = stays ? lane : lane->next;
    return lane->first;
}

static void note_grant(kv_admission_t *admission, uint64_t now_ns, bool others_wait)
{
    if (admission->granted_ns != 0 && others_wait) {
        double interval = (double)(now_ns - admission->granted_ns);
        admission->interval_ns =
            admission->interval_ns == 0
                ? interval
                : admission->interval_ns + (interval - admission->interval_ns) / 8;
    }
    admission->granted_ns = now_ns;
}

kv_ticket_t *kv_admission_next(kv_admission_t *admission, uint32_t places, uint64_t now_ns)
{
    if (admission->place_count >= places) {
        return NULL;
    }
    kv_ticket_t *ticket = NULL;
    for (int i = 0; i < KVIST_PRIORITY_COUNT && ticket == NULL; i++) {
        bool held_back = i == KVIST_PRIORITY_BACKGROUND &&
                         (admission->waiting_counts[KVIST_PRIORITY_INTERACTIVE] > 0 ||
                             admission->starting_counts[KVIST_PRIORITY_INTERACTIVE] > 0);
        ticket = held_back ? NULL : choose(admission, (kvist_priority_t)i);
    }
    if (ticket == NULL) {
        return NULL;
    }
    take_out(admission, ticket);
    ticket->state = KV_TICKET_STARTING;
    ticket->share->place_count++;
    admission->starting_counts[ticket->priority]++;
    admission->place_count++;
    uint32_t waiting = 0;
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        waiting += admission->waiting_counts[i];
    }
    note_grant(admission, now_ns, waiting > 0);
    return ticket;
}

void kv_admission_started(kv_admission_t *admission, kv_ticket_t *ticket)
{
    if (ticket->state == KV_TICKET_STARTING) {
        ticket->state = KV_TICKET_RUNNING;
        admission->starting_counts[ticket->priority]--;
    }
}

void kv_admission_leave(kv_admission_t *admission, kv_ticket_t *ticket)
{
    if (ticket->state == KV_TICKET_WAITING) {
        take_out(admission, ticket);
    } else if (ticket->state != KV_TICKET_OUTSIDE) {
        admission->starting_counts[ticket->priority] -= ticket->state == KV_TICKET_STARTING;
        admission->place_count--;
        ticket->share->place_count--;
    }
    ticket->state = KV_TICKET_OUTSIDE;
}

/* ---- no room ---- */

static kv_lane_t *longest_lane(kv_lane_t *turn)
{
    kv_lane_t *longest = turn;
    for (kv_lane_t *lane = turn->next; lane != turn; lane = lane->next) {
        longest = lane->count > longest->count ? lane : longest;
    }
    return longest;
}

kv_ticket_t *kv_admission_displace(
    kv_admission_t *admission, const kv_share_t *share, kvist_priority_t priority)
{
    for (int i = KVIST_PRIORITY_COUNT - 1; i > (int)priority; i--) {
        if (admission->turns[i] != NULL) {
            return longest_lane(admission->turns[i])->last;
        }
    }
    if (admission->turns[priority] == NULL) {
        return NULL;
    }
    kv_lane_t *longest = longest_lane(admission->turns[priority]);
    return longest->count >= share->lanes[priority].count + 2 ? longest->last : NULL;
}

uint64_t kv_admission_wait_ns(const kv_admission_t *admission, kvist_priority_t priority)
{
    uint64_t ahead = 1;
    for (int i = 0; i <= (int)priority; i++) {
        ahead += admission->waiting_counts[i];
    }
    double wait_ns = admission->interval_ns * (double)ahead;
    double least_ns = KV_NS_PER_S, most_ns = 60.0 * KV_NS_PER_S;
    return (uint64_t)(wait_ns < least_ns ? least_ns : wait_ns > most_ns ? most_ns : wait_ns);
}
