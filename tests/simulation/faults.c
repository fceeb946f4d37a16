#include "simulation/faults.h"

#include "simulation/fake_compute.h"
#include "simulation/fake_wire.h"
#include "simulation/network.h"
#include "simulation/ownership.h"
#include "simulation/process.h"

uint64_t fault_counts[FAULTS];

static struct {
    fault_t chosen[FAULTS]; /* of those that happen at some moment */
    uint32_t chosen_count, left_for_steps, step_chance;
} faults;

const char *fault_name(fault_t fault)
{
    static const char *const NAMES[FAULTS] = {"cut control", "half-open", "cut data",
        "stall one way", "stall", "kill", "kill host", "terminate", "stop", "slow", "slow store",
        "damaged messages", "doubled messages", "lost messages", "late messages", "full queues",
        "engine", "cancel"};
    return NAMES[fault];
}

/* ---- nodes that go and come ---- */

/* Waits for the end of one that is ending; where another life has begun already, that is it. */
static void revive(void *subject, uint64_t detail)
{
    node_t *node = subject;
    if (node->process == NULL) {
        process_start(node);
    } else if (node->process->terminated) {
        world_after(100 * MS, NULL, revive, node, detail);
    }
}

static node_t *any_engine_node(void)
{
    for (;;) {
        node_t *node = &nodes[pick(node_count)];
        if (node->role != KVIST__WIRE__ROLE__ROLE_GATEWAY) {
            return node;
        }
    }
}

/* Short, or about as long as peers wait for one another, or longer. */
static uint64_t any_while_ns(void)
{
    static const uint64_t MOST_MS[] = {50, 1000, 3000, 8000};
    return between(1 * MS, MOST_MS[pick(4)] * MS);
}

static bool kill_one(bool with_its_host)
{
    node_t *node = any_engine_node();
    if (node->process == NULL) {
        return false;
    }
    process_kill(node->process, with_its_host);
    world_after(any_while_ns(), NULL, revive, node, 0);
    return true;
}

static bool terminate_one(void)
{
    node_t *node = any_engine_node();
    if (node->process == NULL || node->process->state != PROCESS_RUNNING ||
        node->process->terminated) {
        return false;
    }
    process_terminate(node->process);
    world_after(10 * MS, NULL, revive, node, 0);
    return true;
}

static void go_on(void *subject, uint64_t detail)
{
    (void)detail;
    process_continue(subject);
}

static bool stop_one(void)
{
    node_t *node = &nodes[pick(node_count)];
    if (node->process == NULL || node->process->state != PROCESS_RUNNING) {
        return false;
    }
    process_stop(node->process);
    world_after(any_while_ns(), NULL, go_on, node->process, 0);
    return true;
}

static void be_fast(void *subject, uint64_t detail)
{
    node_t *node = subject;
    (void)detail;
    node->slowness = 1;
    node->store_delay_ns = 50 * US;
}

static bool slow_one(bool store)
{
    node_t *node = any_engine_node();
    if (store) {
        node->store_delay_ns = any_while_ns();
    } else {
        node->slowness = 2 + pick(50);
    }
    world_after(any_while_ns(), NULL, be_fast, node, 0);
    return true;
}

static bool stall_two(bool both_ways)
{
    uint32_t from = pick(node_count), to = pick(node_count);
    if (from == to) {
        return false;
    }
    uint64_t until_ns = world_now_ns() + any_while_ns();
    trace("nothing from %s arrives at %s%s for %llu ms", nodes[from].name, nodes[to].name,
        both_ways ? ", nor back," : "", (unsigned long long)((until_ns - world_now_ns()) / MS));
    network_stall(from, to, until_ns);
    if (both_ways) {
        network_stall(to, from, until_ns);
    }
    return true;
}

static bool commit(fault_t fault)
{
    switch (fault) {
    case FAULT_CUT_CONTROL:
        return network_cut_any(CUT_BOTH);
    case FAULT_HALF_OPEN:
        return network_cut_any(chance(500) ? CUT_ONE : CUT_NONE);
    case FAULT_CUT_DATA:
        return wire_cut_any();
    case FAULT_STALL_ONE_WAY:
        return stall_two(false);
    case FAULT_STALL:
        return stall_two(true);
    case FAULT_KILL:
        return kill_one(false);
    case FAULT_KILL_HOST:
        return kill_one(true);
    case FAULT_TERMINATE:
        return terminate_one();
    case FAULT_STOP:
        return stop_one();
    case FAULT_SLOW:
        return slow_one(false);
    case FAULT_SLOW_STORE:
        return slow_one(true);
    default:
        return false;
    }
}

static void happens(void *subject, uint64_t fault)
{
    (void)subject;
    fault_counts[fault] += commit((fault_t)fault);
}

void faults_at_step(void)
{
    if (faults.left_for_steps > 0 && chance(faults.step_chance)) {
        faults.left_for_steps--;
        world_after(between(0, chance(500) ? 200 * US : 20 * MS), NULL, happens, NULL,
            faults.chosen[pick(faults.chosen_count)]);
    }
}

void faults_begin(uint32_t kinds, uint32_t count, uint64_t until_ns)
{
    faults.chosen_count = 0;
    for (uint32_t fault = 0; fault < FAULTS; fault++) {
        if ((kinds & 1u << fault) != 0 && fault < FAULT_ONCE) {
            faults.chosen[faults.chosen_count++] = (fault_t)fault;
        }
        fault_counts[fault] += fault >= FAULT_ONCE && (kinds & 1u << fault) != 0;
    }
    faults.left_for_steps = faults.chosen_count > 0 ? count / 2 : 0;
    faults.step_chance = 1 + pick(40);
    for (uint32_t i = 0; i < count - count / 2 && faults.chosen_count > 0; i++) {
        world_after(between(0, until_ns - world_now_ns()), NULL, happens, NULL,
            faults.chosen[pick(faults.chosen_count)]);
    }
    const accidents_t accidents = {
        .damaged = (kinds & 1u << FAULT_DAMAGED_MESSAGES) != 0 ? 1 + pick(100) : 0,
        .doubled = (kinds & 1u << FAULT_DOUBLED_MESSAGES) != 0 ? 1 + pick(100) : 0,
        .lost = (kinds & 1u << FAULT_LOST_MESSAGES) != 0 ? 1 + pick(50) : 0,
        .late_ns = (kinds & 1u << FAULT_LATE_MESSAGES) != 0 ? any_while_ns() : 300 * US,
    };
    wire_set_accidents(&accidents);
    ownership_set_refusals((kinds & 1u << FAULT_FULL_QUEUES) != 0 ? 1 + pick(100) : 0);
    bool engine = (kinds & 1u << FAULT_ENGINE) != 0;
    compute_set_failures(engine ? pick(100) : 0, engine ? pick(30) : 0);
    ownership_set_move_failures(engine ? pick(200) : 0);
}

void faults_end(void)
{
    faults.left_for_steps = 0;
    wire_set_accidents(&(accidents_t){.late_ns = 300 * US});
    ownership_set_refusals(0);
    compute_set_failures(0, 0);
    ownership_set_move_failures(0);
}
