#include "kernels/cpu/team.h"

#include "base/memory.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 20 us: longer than the tail of a command's last item, shorter than what a neighbour would
 * notice. */
enum { SPINS_MAX = 600 };

typedef struct {
    cpu_team_t *team;
    uint32_t thread;
    pthread_t handle;
} helper_t;

struct cpu_team {
    uint32_t thread_count;
    helper_t *helpers; /* [thread_count - 1] */

    /* The list under way; written by the leader before it moves generation. */
    char *commands;
    size_t stride;
    uint32_t command_count;
    bool stopping;

    /* Moves when a list begins; helpers wait for it. */
    _Alignas(64) _Atomic uint32_t generation;
    /* The barrier between commands: the last to arrive moves the epoch. */
    _Alignas(64) _Atomic uint32_t arrived;
    _Alignas(64) _Atomic uint32_t epoch;
    _Alignas(64) _Atomic uint32_t sleepers;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex(_Atomic uint32_t *word, int operation, uint32_t value)
{
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Returns when *word is no longer seen. */
static void wait_change(cpu_team_t *team, _Atomic uint32_t *word, uint32_t seen)
{
    for (int spin = 0; spin < SPINS_MAX; spin++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) {
            return;
        }
        relax();
    }
    /* Sequentially consistent with publish: either the waker sees the sleeper or the sleeper the
     * new value. */
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(word) == seen) {
        futex(word, FUTEX_WAIT, seen);
    }
    atomic_fetch_sub(&team->sleepers, 1);
}

static void publish(cpu_team_t *team, _Atomic uint32_t *word)
{
    atomic_fetch_add(word, 1);
    if (atomic_load(&team->sleepers) > 0) {
        futex(word, FUTEX_WAKE, INT32_MAX);
    }
}

static void barrier(cpu_team_t *team)
{
    uint32_t epoch = atomic_load_explicit(&team->epoch, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 ==
        team->thread_count) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        publish(team, &team->epoch);
    } else {
        wait_change(team, &team->epoch, epoch);
    }
}

static void work(cpu_team_t *team, uint32_t thread)
{
    /* After the last barrier the leader may set the next list: the team's fields are read before.
     * */
    char *commands = team->commands;
    const size_t stride = team->stride;
    const uint32_t command_count = team->command_count;
    for (uint32_t at = 0; at < command_count; at++) {
        cpu_command_t *command = (cpu_command_t *)(commands + at * stride);
        for (;;) {
            uint32_t item = atomic_fetch_add_explicit(&command->item_next, 1, memory_order_relaxed);
            if (item >= command->item_count) {
                break;
            }
            command->run(command, item, thread);
        }
        if (team->thread_count > 1) {
            barrier(team);
        }
    }
}

static void *helper_main(void *argument)
{
    helper_t *helper = argument;
    cpu_team_t *team = helper->team;
    char name[16];
    snprintf(name, sizeof name, "kv-compute-%u", helper->thread);
    pthread_setname_np(pthread_self(), name);
    uint32_t seen = 0;
    for (;;) {
        wait_change(team, &team->generation, seen);
        seen++;
        if (team->stopping) {
            return NULL;
        }
        work(team, helper->thread);
    }
}

kv_status_t cpu_team_create(uint32_t thread_count, cpu_team_t **team_out, kv_error_t *error)
{
    cpu_team_t *team = aligned_alloc(64, sizeof *team);
    if (team == NULL) {
        return kv_fail(error, KV_NO_SPACE, "no memory for the compute team");
    }
    *team = (cpu_team_t){.thread_count = 1};
    team->helpers = kv_allocate_array(thread_count, sizeof *team->helpers);
    for (uint32_t thread = 1; thread < thread_count; thread++) {
        helper_t *helper = &team->helpers[thread - 1];
        *helper = (helper_t){.team = team, .thread = thread};
        int failure = pthread_create(&helper->handle, NULL, helper_main, helper);
        if (failure != 0) {
            cpu_team_destroy(team);
            return kv_fail_errno(error, failure, "cannot start compute thread %u", thread);
        }
        team->thread_count++;
    }
    *team_out = team;
    return KV_OK;
}

void cpu_team_destroy(cpu_team_t *team)
{
    if (team == NULL) {
        return;
    }
    team->stopping = true;
    publish(team, &team->generation);
    for (uint32_t thread = 1; thread < team->thread_count; thread++) {
        pthread_join(team->helpers[thread - 1].handle, NULL);
    }
    free(team->helpers);
    free(team);
}

uint32_t cpu_team_thread_count(const cpu_team_t *team)
{
    return team->thread_count;
}

void cpu_team_run(cpu_team_t *team, void *commands, size_t stride, uint32_t command_count)
{
    if (command_count == 0) {
        return;
    }
    team->commands = commands;
    team->stride = stride;
    team->command_count = command_count;
    if (team->thread_count > 1) {
        publish(team, &team->generation);
    }
    work(team, 0);
}
