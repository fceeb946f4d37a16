#include "simulation/process.h"

#include "base/memory.h"
#include "kvstore/store_internal.h"
#include "simulation/ownership.h"
#include "simulation/roles.h"
#include "transport/mover/mover_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STACK_BYTES = 1 << 20, SPARE_STACKS_MAX = 16 };

node_t nodes[NODES_MAX];
uint32_t node_count;

static process_t *current;
static ucontext_t scheduler;
static void *spare_stacks[SPARE_STACKS_MAX];
static uint32_t spare_stack_count, dying_count;

process_t *process_current(void)
{
    return current;
}

uint64_t process_delay(const process_t *process, uint64_t most_ns)
{
    return between(0, most_ns * process->node->slowness);
}

/* ---- main(), until it waits ---- */

static void *take_stack(void)
{
    return spare_stack_count > 0 ? spare_stacks[--spare_stack_count] : kv_allocate(STACK_BYTES);
}

static void give_stack(void *stack)
{
    if (spare_stack_count < SPARE_STACKS_MAX) {
        spare_stacks[spare_stack_count++] = stack;
    } else {
        free(stack);
    }
}

static void begin(void)
{
    char name[PROCESS_NAME_BYTES + 16];
    snprintf(name, sizeof name, "--node.name=%s", current->node->name);
    char *arguments[] = {"node", name, "--cluster.key=a simulated cluster's key", NULL};
    bool prefill = current->node->role == KVIST__WIRE__ROLE__ROLE_PREFILL;
    current->exit_code =
        prefill ? simulated_prefill_main(3, arguments) : simulated_decode_main(3, arguments);
    current->returned = true;
}

static void enter(process_t *process)
{
    process_t *before = current;
    current = process;
    swapcontext(&scheduler, &process->context);
    current = before;
}

static process_t *process_create(node_t *node)
{
    process_t *process = world_allocate(sizeof *process);
    process->node = node;
    process->deferred_tail = &process->deferred;
    snprintf(process->name, sizeof process->name, "%s.%u", node->name, node->lives++ % 1000);
    node->process = process;
    return process;
}

process_t *process_adopt(node_t *node)
{
    return process_create(node);
}

static void judge_end(process_t *process)
{
    if (process->exit_code != 0) {
        violation("%s ended with exit code %d", process->name, process->exit_code);
    }
    if (process->request_count != 0) {
        violation("%s ended with %u requests that live", process->name, process->request_count);
    }
    if (process->node->process == process) {
        process->node->process = NULL;
    }
    dying_count -= process->state == PROCESS_DYING;
    process->state = PROCESS_GONE;
    trace("process %s is gone", process->name);
}

static void settle(process_t *process);

static void run_until_it_waits(void *subject, uint64_t detail)
{
    process_t *process = subject;
    (void)detail;
    enter(process);
    if (process->returned) {
        give_stack(process->context.uc_stack.ss_sp);
        if (process->state != PROCESS_DYING) { /* who was killed is gone for the network already */
            network_process_ends(process, false);
        }
        judge_end(process);
    }
}

void process_start(node_t *node)
{
    process_t *process = process_create(node);
    trace("process %s starts", process->name);
    getcontext(&process->context);
    process->context.uc_stack.ss_sp = take_stack();
    process->context.uc_stack.ss_size = STACK_BYTES;
    process->context.uc_link = &scheduler;
    makecontext(&process->context, begin, 0);
    world_after(0, process, run_until_it_waits, process, 0);
}

void process_wait(void)
{
    swapcontext(&current->context, &scheduler);
}

void process_wake(process_t *process)
{
    world_after(0, process, run_until_it_waits, process, 0);
}

/* ---- what is due ---- */

static void store_turn(void *subject, uint64_t detail)
{
    process_t *process = subject;
    (void)detail;
    process->store_due = false;
    process->store_ready = process->store != NULL;
}

static void mover_turn_due(void *subject, uint64_t detail)
{
    process_t *process = subject;
    if (detail != process->mover_due_ns) {
        return; /* an earlier one took its place */
    }
    process->mover_due = false;
    if (process->mover != NULL) {
        ownership_enter_mover(process, true);
        uint64_t deadline_ns = UINT64_MAX;
        unsigned happened = mover_turn(process->mover, world_now_ns(), &deadline_ns);
        ownership_enter_mover(process, false);
        uint64_t now_ns = world_now_ns();
        if (happened > 0) {
            deadline_ns = now_ns;
        }
        if (deadline_ns != UINT64_MAX && process->mover != NULL) {
            uint64_t at_ns =
                (deadline_ns > now_ns ? deadline_ns : now_ns) + process_delay(process, 20 * US);
            process->mover_due = true;
            process->mover_due_ns = at_ns;
            world_after(at_ns - now_ns, process, mover_turn_due, process, at_ns);
        }
    }
}

static void make_mover_due(process_t *process)
{
    bool wanted = !mailbox_is_empty(&process->mover->commands) || wire_is_ready(process);
    uint64_t at_ns = world_now_ns() + process_delay(process, 20 * US);
    if (!wanted || (process->mover_due && process->mover_due_ns <= at_ns)) {
        return;
    }
    process->mover_due = true;
    process->mover_due_ns = at_ns;
    world_after(at_ns - world_now_ns(), process, mover_turn_due, process, at_ns);
}

/* The store has threads of its own, and a timer: its descriptor is looked at when they are due. */
static void make_store_due(process_t *process)
{
    const kvist_store_t *store = process->store;
    uint64_t now_ns = world_now_ns(), due_ns = UINT64_MAX;
    if (process->store_ready) {
        return; /* its poll is on its way */
    }
    if (store->kicked || store->tasks_out > 0 || kv_queue_count(store->finished) > 0) {
        due_ns = now_ns + process_delay(process, process->node->store_delay_ns);
    }
    uint64_t deadline_ns = kv_lease_next_deadline(store), sweep_ns = kv_sweep_due(store);
    deadline_ns = deadline_ns < sweep_ns ? deadline_ns : sweep_ns;
    if (deadline_ns != UINT64_MAX && deadline_ns < due_ns) {
        due_ns = deadline_ns > now_ns ? deadline_ns : now_ns + 50 * US;
    }
    if (due_ns == UINT64_MAX || (process->store_due && process->store_due_ns <= due_ns)) {
        return;
    }
    process->store_due = true;
    process->store_due_ns = due_ns;
    world_after(due_ns - now_ns, process, store_turn, process, 0);
}

static void settle(process_t *process)
{
    if (process->mover != NULL) {
        make_mover_due(process);
    }
    if (process->store != NULL) {
        make_store_due(process);
    }
    if (process->compute != NULL && !process->compute_due && compute_has_work(process->compute)) {
        process->compute_due = true;
        world_after(
            process_delay(process, process->node->compute_ns), process, compute_turn, process, 0);
    }
    if (process->loop != NULL) {
        loop_look(process);
    }
}

/* ---- its events ---- */

void process_run(process_t *process, happening_t run, void *subject, uint64_t detail)
{
    if (process == NULL) {
        run(subject, detail);
        return;
    }
    if (process->state == PROCESS_GONE) {
        return;
    }
    if (process->state == PROCESS_STOPPED) {
        deferred_t *deferred = world_allocate(sizeof *deferred);
        *deferred = (deferred_t){NULL, run, subject, detail};
        *process->deferred_tail = deferred;
        process->deferred_tail = &deferred->next;
        return;
    }
    process_t *before = current;
    current = process;
    run(subject, detail);
    if (process->state != PROCESS_GONE) {
        settle(process);
    }
    current = before;
}

void process_stop(process_t *process)
{
    if (process->state == PROCESS_RUNNING) {
        trace("process %s is stopped", process->name);
        process->state = PROCESS_STOPPED;
    }
}

static void release_deferred(process_t *process)
{
    /* What piled up comes in any order but for what the network put in order itself. */
    while (process->deferred != NULL) {
        deferred_t *deferred = process->deferred;
        process->deferred = deferred->next;
        world_after(
            between(0, 200 * US), process, deferred->run, deferred->subject, deferred->detail);
    }
    process->deferred_tail = &process->deferred;
}

void process_continue(process_t *process)
{
    if (process->state == PROCESS_STOPPED) {
        trace("process %s goes on", process->name);
        process->state = PROCESS_RUNNING;
        release_deferred(process);
    }
}

static void sigterm(void *subject, uint64_t detail)
{
    (void)detail;
    loop_signal(subject);
}

void process_terminate(process_t *process)
{
    trace("process %s: SIGTERM", process->name);
    world_after(0, process, sigterm, process, 0);
}

void process_kill(process_t *process, bool with_its_host)
{
    trace("process %s is killed%s", process->name, with_its_host ? ", with its host" : "");
    bool was_stopped = process->state == PROCESS_STOPPED;
    process->state = PROCESS_DYING;
    dying_count++;
    process->node->process = NULL;
    network_process_ends(process, with_its_host);
    wire_process_ends(process, with_its_host);
    if (was_stopped) {
        release_deferred(process);
    }
    world_after(0, process, sigterm, process, 0);
}

uint32_t process_dying_count(void)
{
    return dying_count;
}

bool process_has_request(const process_t *process, const char *id)
{
    const request_note_t *note = process->requests;
    while (note != NULL && strcmp(note->id, id) != 0) {
        note = note->next;
    }
    return note != NULL;
}

bool process_is_quiet(const process_t *process)
{
    return process->request_count == 0 &&
           (process->store == NULL ||
               (process->store->lease_count == 0 && process->mover->piece_count == 0 &&
                   process->mover->expectation_count == 0 &&
                   compute_sequence_count(process->compute) == 0));
}

void process_check_quiet(const process_t *process)
{
    if (process->request_count != 0) {
        violation("%s: %u requests live", process->name, process->request_count);
    }
    if (process->store == NULL) {
        return;
    }
    kvist_stats_t stats;
    kvist_store_stats(process->store, &stats);
    if (stats.leases != 0 || stats.slots_private != 0) {
        violation("%s: %llu leases and %llu private slots are left", process->name,
            (unsigned long long)stats.leases, (unsigned long long)stats.slots_private);
    }
    uint32_t pieces = process->mover->piece_count, expected = process->mover->expectation_count;
    if (pieces != 0 || expected != 0) {
        violation("%s: the mover has %u pieces and %u expectations left", process->name, pieces,
            expected);
    }
    kv_mover_stats_t moved;
    kv_mover_stats(process->mover, &moved);
    if (moved.links >= node_count) { /* one for each of the others, at most */
        violation("%s: %u data links are open", process->name, moved.links);
    }
    if (compute_sequence_count(process->compute) != 0) {
        violation("%s: %u sequences are left in compute", process->name,
            compute_sequence_count(process->compute));
    }
    ownership_check_quiet(process);
}
