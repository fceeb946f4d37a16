/* Whole clusters, simulated: prefill and decode nodes and gateways that run the protocol's real
 * code, from the peers' handshake to the store, over a network, a clock and faults that follow from
 * a seed (README.md). KVIST_SEED=n runs that seed alone, KVIST_TRACE=1 tells what happens. */
#include "simulation/clients.h"
#include "simulation/coverage.h"
#include "simulation/fake_wire.h"
#include "simulation/faults.h"
#include "simulation/network.h"
#include "simulation/version.h"
#include "testing/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUIET_LIMIT_S = 90, RUNS = 1000, RUNS_LONG = 20000 };

static node_t *add_node(Kvist__Wire__Role role, const char *kind, uint32_t index)
{
    node_t *node = &nodes[node_count];
    memset(node, 0, sizeof *node);
    node->number = node_count++;
    node->role = role;
    snprintf(node->name, sizeof node->name, "%s-%u", kind, index);
    node->slowness = 1;
    node->store_delay_ns = 50 * US;
    return node;
}

/* Some clusters have room for everything, some for hardly more than one request at a time; some
 * prefill nodes forget what decode nodes still hold. */
static void make_nodes(const clients_params_t *params)
{
    uint32_t longest = (params->prompt_tokens_max + params->answer_tokens_max +
                           (params->turns_max - 1) * (params->answer_tokens_max + 12)) /
                           16 +
                       2;
    bool roomy = chance(600), forgetful = chance(500);
    uint32_t prefill_count = 1 + pick(3), decode_count = 1 + pick(3), gateway_count = 1 + pick(2);
    bool host_tier = chance(500), meshed = chance(500);
    int wire = chance(500) ? KV_WIRE_AUTO : KV_WIRE_TCP;
    static const uint64_t COMPUTE_NS[] = {100 * US, 2 * MS, 20 * MS, 100 * MS};
    uint64_t compute_ns = COMPUTE_NS[pick(4)];
    size_t message_bytes = 1024 + (chance(500) ? pick(8 << 10) : pick(128 << 10));
    for (uint32_t i = 0; i < prefill_count + decode_count; i++) {
        bool prefill = i < prefill_count;
        node_t *node = prefill
                           ? add_node(KVIST__WIRE__ROLE__ROLE_PREFILL, "prefill", i)
                           : add_node(KVIST__WIRE__ROLE__ROLE_DECODE, "decode", i - prefill_count);
        node->slot_count = roomy && !(forgetful && prefill) ? 8 * longest : longest + pick(longest);
        node->host_slot_count = host_tier ? 1 + pick(2 * longest) : 0;
        node->queue_max = chance(800) ? 64 : 1 + pick(4);
        node->batch_rows = 1 + pick(8);
        node->reserve_limit_ns = between(100 * MS, 10 * SECOND);
        node->transfer_limit_ns = between(1 * SECOND, 10 * SECOND);
        node->request_limit_ns = between(1 * SECOND, 20 * SECOND);
        node->compute_ns = compute_ns;
        node->message_bytes = message_bytes;
        node->drain_limit_ns = chance(300) ? 0 : between(10 * MS, 10 * SECOND);
        node->wire = wire;
        node->meshed = meshed;
    }
    for (uint32_t i = 0; i < gateway_count; i++) {
        add_node(KVIST__WIRE__ROLE__ROLE_GATEWAY, "gateway", i);
    }
}

static bool everything_is_quiet(void)
{
    for (uint32_t i = 0; i < node_count; i++) {
        const process_t *process = nodes[i].process;
        if (process == NULL || process->terminated || !process_is_quiet(process)) {
            return false;
        }
    }
    return process_dying_count() == 0;
}

static bool everything_is_gone(void)
{
    bool gone = process_dying_count() == 0;
    for (uint32_t i = 0; i < node_count; i++) {
        gone &= nodes[i].role == KVIST__WIRE__ROLE__ROLE_GATEWAY || nodes[i].process == NULL;
    }
    return gone;
}

static void check_all_quiet(void)
{
    for (uint32_t i = 0; i < node_count; i++) {
        if (nodes[i].process != NULL) {
            process_check_quiet(nodes[i].process);
        }
    }
}

static void run_until(bool (*reached)(void), const char *what)
{
    uint64_t limit_ns = world_now_ns() + QUIET_LIMIT_S * SECOND;
    while (!reached()) {
        world_turn();
        if (world_now_ns() > limit_ns) {
            check_all_quiet();
            violation("the cluster is not %s after %d s", what, QUIET_LIMIT_S);
        }
    }
}

static void stop_all(void)
{
    for (uint32_t i = 0; i < node_count; i++) {
        process_t *process = nodes[i].process;
        if (process != NULL && nodes[i].role != KVIST__WIRE__ROLE__ROLE_GATEWAY) {
            process_check_quiet(process);
            process_terminate(process);
        }
    }
}

static void calm(void *subject, uint64_t detail)
{
    (void)subject;
    (void)detail;
    trace("no more faults");
    faults_end();
}

static void serve(uint64_t calm_ns)
{
    uint64_t look_ns = 0;
    while (!clients_are_done() || world_now_ns() < calm_ns) {
        world_turn();
        if (world_now_ns() >= look_ns) {
            look_ns = world_now_ns() + SECOND;
            clients_check_waiting(calm_ns);
        }
    }
}

static void simulate(uint64_t seed)
{
    world_begin(seed);
    version_begin(seed % 8 == 7);
    static const uint64_t LATENCIES_NS[] = {5 * US, 50 * US, 500 * US, 5 * MS};
    uint64_t latency_ns = LATENCIES_NS[pick(4)];
    network_begin(latency_ns, latency_ns * (1 + pick(4)));
    wire_begin();
    uint32_t kinds = (uint32_t)world_random() & (uint32_t)world_random();
    kinds = chance(200) ? chance(500) ? 0 : 1u << FAULT_CANCEL : kinds;
    kinds &= (1u << FAULTS) - 1;
    clients_params_t params = {
        .conversation_count = 1 + pick(12),
        .turns_max = 1 + pick(4),
        .prompt_tokens_max = 16 + pick(120),
        .answer_tokens_max = 1 + pick(24),
        .cancel_chance = (kinds & 1u << FAULT_CANCEL) != 0 ? 300 : 0,
        .begin_within_ns = between(10 * MS, chance(500) ? 200 * MS : 5 * SECOND),
        .faultless = (kinds & ~(1u << FAULT_CANCEL)) == 0,
    };
    node_count = 0;
    make_nodes(&params);
    params.cancel_limit_ns = 300 * MS + 3 * nodes[0].compute_ns + 20 * latency_ns;
    for (uint32_t i = 0; i < node_count; i++) {
        if (nodes[i].role != KVIST__WIRE__ROLE__ROLE_GATEWAY) {
            process_start(&nodes[i]);
        }
    }
    clients_begin(&params);
    uint64_t faults_ns = between(100 * MS, chance(500) ? 2 * SECOND : 8 * SECOND);
    faults_begin(kinds, 1 + pick(20), world_now_ns() + faults_ns);
    world_after(faults_ns, NULL, calm, NULL, 0);
    /* Whoever is stopped or stalled goes on within 8 s. */
    serve(world_now_ns() + faults_ns + (params.faultless ? 0 : 8 * SECOND));
    run_until(everything_is_quiet, "quiet");
    stop_all();
    run_until(everything_is_gone, "gone");
    clients_end();
    world_end();
}

static void clusters_keep_their_promises(void **state)
{
    (void)state;
    uint64_t first = kv_test_seed(), events = 0;
    const char *count = getenv("KVIST_RUNS");
    uint64_t runs = RUNS;
    if (count != NULL) {
        runs = strtoull(count, NULL, 10);
    } else if (getenv("KVIST_SEED") != NULL) {
        runs = 1;
    } else if (kv_test_long()) {
        runs = RUNS_LONG;
    }
    for (uint64_t run = 0; run < runs; run++) {
        simulate(first + run);
        events += world_event_count();
    }
    const clients_figures_t *figures = &clients_figures;
    printf("%llu runs, %llu events; requests %llu: answered %llu, cancelled %llu; attempts %llu: "
           "busy %llu, lost %llu, failed %llu\n",
        (unsigned long long)runs, (unsigned long long)events, (unsigned long long)figures->requests,
        (unsigned long long)figures->answered, (unsigned long long)figures->cancelled,
        (unsigned long long)figures->attempts, (unsigned long long)figures->busy,
        (unsigned long long)figures->lost, (unsigned long long)figures->failed);
    printf("faults:");
    for (uint32_t fault = 0; fault < FAULTS; fault++) {
        printf(" %s %llu%s", fault_name((fault_t)fault), (unsigned long long)fault_counts[fault],
            fault + 1 < FAULTS ? "," : "\n");
    }
    coverage_print();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(clusters_keep_their_promises)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
