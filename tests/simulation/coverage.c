#include "simulation/coverage.h"

#include "simulation/faults.h"
#include "simulation/world.h"
#include "transport/pd.h"

#include <stdio.h>

enum { STATES_MAX = 16, EVENTS_MAX = 32 };

typedef struct {
    const char *name;
    uint32_t state_count, event_count;
    uint64_t counts[STATES_MAX][EVENTS_MAX];
} machine_t;

static machine_t decode = {"decode", KV_PD_DECODE_DONE + 1, KV_PD_DECODE_EV_CANCEL + 1, {{0}}};
static machine_t prefill = {
    "prefill", KV_PD_PREFILL_DONE + 1, KV_PD_PREFILL_EV_PEER_DOWN + 1, {{0}}};

void __real_kv_pd_decode_step(kv_pd_decode_t *machine, const kv_pd_decode_event_t *event,
    kv_pd_decode_actions_t *actions_out);
void __wrap_kv_pd_decode_step(kv_pd_decode_t *machine, const kv_pd_decode_event_t *event,
    kv_pd_decode_actions_t *actions_out);
void __wrap_kv_pd_decode_step(
    kv_pd_decode_t *machine, const kv_pd_decode_event_t *event, kv_pd_decode_actions_t *actions_out)
{
    int before = (int)machine->state;
    decode.counts[before][event->kind]++;
    faults_at_step();
    __real_kv_pd_decode_step(machine, event, actions_out);
    trace("decode machine %llu: state %d event %d -> state %d, %u actions",
        (unsigned long long)machine->transfer_id, before, (int)event->kind, (int)machine->state,
        actions_out->count);
}

void __real_kv_pd_prefill_step(kv_pd_prefill_t *machine, const kv_pd_prefill_event_t *event,
    kv_pd_prefill_actions_t *actions_out);
void __wrap_kv_pd_prefill_step(kv_pd_prefill_t *machine, const kv_pd_prefill_event_t *event,
    kv_pd_prefill_actions_t *actions_out);
void __wrap_kv_pd_prefill_step(kv_pd_prefill_t *machine, const kv_pd_prefill_event_t *event,
    kv_pd_prefill_actions_t *actions_out)
{
    int before = (int)machine->state;
    prefill.counts[before][event->kind]++;
    faults_at_step();
    __real_kv_pd_prefill_step(machine, event, actions_out);
    trace("prefill machine %llu: state %d event %d -> state %d, %u actions",
        (unsigned long long)machine->transfer_id, before, (int)event->kind, (int)machine->state,
        actions_out->count);
}

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
    if (world_traces()) {
        for (uint32_t state = 0; state < machine->state_count; state++) {
            printf("  state %2u:", state);
            for (uint32_t event = 0; event < machine->event_count; event++) {
                printf(" %llu", (unsigned long long)machine->counts[state][event]);
            }
            printf("\n");
        }
    }
}

void coverage_print(void)
{
    print_machine(&decode);
    print_machine(&prefill);
}
