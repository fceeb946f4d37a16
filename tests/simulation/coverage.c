#include "simulation/coverage.h"

#include "simulation/faults.h"
#include "simulation/world.h"
#include "transport/pd.h"

#include <stdio.h>
#include <stdlib.h>

enum { STATES_MAX = 16, EVENTS_MAX = 32 };

typedef struct {
    const char *name;
    uint32_t state_count, event_count;
    int lost_event;   /* the peer is gone */
    uint32_t waiting; /* bits: states that wait for it */
    uint64_t counts[STATES_MAX][EVENTS_MAX];
} machine_t;

static machine_t decode = {
    .name = "decode",
    .state_count = KV_PD_DECODE_DONE + 1,
    .event_count = KV_PD_DECODE_EV_CANCEL + 1,
    .lost_event = KV_PD_DECODE_EV_PEER_DOWN,
    .waiting = 1u << KV_PD_DECODE_STREAMING,
};
static machine_t prefill = {
    .name = "prefill",
    .state_count = KV_PD_PREFILL_DONE + 1,
    .event_count = KV_PD_PREFILL_EV_PEER_DOWN + 1,
    .lost_event = KV_PD_PREFILL_EV_PEER_DOWN,
    .waiting = 1u << KV_PD_PREFILL_MATCHING | 1u << KV_PD_PREFILL_FINDING |
               1u << KV_PD_PREFILL_FETCHING | 1u << KV_PD_PREFILL_COMPUTING |
               1u << KV_PD_PREFILL_DRAINING,
};
static machine_t source = {
    .name = "source",
    .state_count = KV_PD_SOURCE_DONE + 1,
    .event_count = KV_PD_SOURCE_EV_PEER_DOWN + 1,
    .lost_event = KV_PD_SOURCE_EV_PEER_DOWN,
    .waiting = 1u << KV_PD_SOURCE_MATCHING | 1u << KV_PD_SOURCE_SENDING,
};

static void step_begins(machine_t *machine, int state, int event)
{
    machine->counts[state][event]++;
    faults_at_step();
}

static void step_ends(const machine_t *machine, uint64_t transfer_id, int before, int event,
    int after, uint32_t action_count)
{
    trace("%s machine %llu: state %d event %d -> state %d, %u actions", machine->name,
        (unsigned long long)transfer_id, before, event, after, action_count);
    if (event == machine->lost_event && (machine->waiting & 1u << after) != 0) {
        violation("%s machine %llu goes on waiting in state %d for a peer that is gone",
            machine->name, (unsigned long long)transfer_id, after);
    }
}

/* Each machine's step, with a look at it before and after. */
#define LOOK_AT(machine)                                                                           \
    void __real_kv_pd_##machine##_step(kv_pd_##machine##_t *self,                                  \
        const kv_pd_##machine##_event_t *event, kv_pd_##machine##_actions_t *actions_out);         \
    void __wrap_kv_pd_##machine##_step(kv_pd_##machine##_t *self,                                  \
        const kv_pd_##machine##_event_t *event, kv_pd_##machine##_actions_t *actions_out);         \
    void __wrap_kv_pd_##machine##_step(kv_pd_##machine##_t *self,                                  \
        const kv_pd_##machine##_event_t *event, kv_pd_##machine##_actions_t *actions_out)          \
    {                                                                                              \
        int before = (int)self->state;                                                             \
        step_begins(&machine, before, (int)event->kind);                                           \
        __real_kv_pd_##machine##_step(self, event, actions_out);                                   \
        step_ends(&machine, self->transfer_id, before, (int)event->kind, (int)self->state,         \
            actions_out->count);                                                                   \
    }

LOOK_AT(decode)
LOOK_AT(prefill)
LOOK_AT(source)

static void print_machine(const machine_t *machine)
{
    uint32_t reached = 0;
    for (uint32_t state = 0; state < machine->state_count; state++) {
        for (uint32_t event = 0; event < machine->event_count; event++) {
            reached += machine->counts[state][event] > 0;
        }
    }
    printf("%s machine: %u of %u pairs of state and event\n", machine->name, reached,
        machine->state_count * machine->event_count);
    if (getenv("KVIST_COVERAGE") == NULL) {
        return;
    }
    for (uint32_t state = 0; state < machine->state_count; state++) {
        printf("  state %2u:", state);
        for (uint32_t event = 0; event < machine->event_count; event++) {
            printf(" %llu", (unsigned long long)machine->counts[state][event]);
        }
        printf("\n");
    }
}

void coverage_print(void)
{
    print_machine(&decode);
    print_machine(&prefill);
    print_machine(&source);
}
