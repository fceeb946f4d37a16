/* What `kvist bench route` is made of: the load of agents, and its replay over several stores. */
#include "testing/testing.h"

#include "tools/kvist/sim/agents.h"
#include "tools/kvist/sim/fleet.h"
#include "tools/kvist/sim/outcome.h"

#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 800, AGENTS = 16 };

static kv_trace_t make_agents(uint64_t seed)
{
    kv_trace_t trace;
    const kv_agents_params_t params = {
        .seed = seed, .agent_count = AGENTS, .request_count = REQUESTS};
    kv_agents_make(&params, &trace);
    return trace;
}

static kv_fleet_params_t params_of(uint32_t nodes, kv_routing_t routing, uint32_t device_blocks)
{
    return (kv_fleet_params_t){.node_count = nodes,
        .routing = routing,
        .node = {.device_blocks = device_blocks / nodes, .policy = KVIST_POLICY_LRU},
        .prompt_tokens_per_s = 10000,
        .answer_tokens_per_s = 50};
}

static double run(const kv_trace_t *trace, const kv_fleet_params_t *params, uint32_t *hits,
    kv_fleet_totals_t *totals)
{
    kv_error_t error;
    assert_int_equal(kv_fleet_run(trace, params, hits, totals, &error), KV_OK);
    kv_outcome_t outcome = kv_outcome_of(trace, (kv_window_t){0, trace->request_count}, hits);
    return (double)outcome.hit_tokens / (double)outcome.asked_tokens;
}

static void a_seed_makes_one_load(void **state)
{
    (void)state;
    kv_trace_t one = make_agents(3), again = make_agents(3), other = make_agents(4);
    assert_int_equal(one.request_count, REQUESTS);
    assert_int_equal(one.asked_count, again.asked_count);
    assert_memory_equal(one.blocks, again.blocks, one.asked_count * sizeof *one.blocks);
    assert_memory_equal(one.requests, again.requests, REQUESTS * sizeof *one.requests);
    assert_true(one.asked_count != other.asked_count);
    kv_trace_release(&one);
    kv_trace_release(&again);
    kv_trace_release(&other);
}

/* Each prompt is a chain from a root; times go up; lengths fit the blocks. */
static void loads_are_traces(void **state)
{
    (void)state;
    kv_trace_t trace = make_agents(5);
    for (uint32_t i = 0; i < trace.request_count; i++) {
        const kv_trace_request_t *request = &trace.requests[i];
        uint32_t parent = KV_TRACE_NONE;
        assert_true(i == 0 || request->at_ms >= trace.requests[i - 1].at_ms);
        assert_int_equal(request->block_count, request->input_tokens / KV_AGENTS_BLOCK_TOKENS);
        assert_true(request->block_count <= trace.longest_blocks && request->output_tokens > 0);
        for (uint32_t block = 0; block < request->block_count; block++) {
            uint32_t number = trace.blocks[request->first_block + block];
            assert_true(number < trace.block_count);
            assert_int_equal(trace.parents[number], parent);
            parent = number;
        }
    }
    kv_trace_release(&trace);
}

/* A fleet of one is the plain replay, whatever the routing. */
static void one_node_is_the_replay(void **state)
{
    (void)state;
    kv_trace_t trace = make_agents(6);
    uint32_t *hits = calloc(REQUESTS, sizeof *hits), *plain = calloc(REQUESTS, sizeof *plain);
    kv_fleet_totals_t totals;
    kv_replay_totals_t replay_totals;
    kv_error_t error;
    for (int routing = KV_ROUTING_PREFIX; routing <= KV_ROUTING_RANDOM; routing++) {
        kv_fleet_params_t params = params_of(1, (kv_routing_t)routing, 4000);
        run(&trace, &params, hits, &totals);
        assert_int_equal(
            kv_replay_run(&trace, &params.node, 0, plain, &replay_totals, &error), KV_OK);
        assert_memory_equal(hits, plain, REQUESTS * sizeof *hits);
        assert_int_equal(totals.node_requests[0], REQUESTS);
        assert_int_equal(totals.reasons[KV_CHOICE_ONLY], REQUESTS);
    }
    free(hits);
    free(plain);
    kv_trace_release(&trace);
}

/* What the router is for. The same digits everywhere: nothing here depends on time or place. */
static void prefixes_are_worth_the_routing(void **state)
{
    (void)state;
    kv_trace_t trace = make_agents(7);
    uint32_t *hits = calloc(REQUESTS, sizeof *hits), *again = calloc(REQUESTS, sizeof *again);
    kv_fleet_totals_t totals;
    kv_fleet_params_t one = params_of(1, KV_ROUTING_PREFIX, 10000);
    kv_fleet_params_t prefix = params_of(4, KV_ROUTING_PREFIX, 10000);
    kv_fleet_params_t in_turn = params_of(4, KV_ROUTING_ROUND_ROBIN, 10000);
    kv_fleet_params_t random = params_of(4, KV_ROUTING_RANDOM, 10000);
    double best = run(&trace, &one, hits, &totals);
    assert_true(run(&trace, &in_turn, hits, &totals) < best - 0.1);
    assert_true(run(&trace, &random, hits, &totals) < best - 0.1);
    double routed = run(&trace, &prefix, hits, &totals);
    print_message("one node %.4f, four by prefix %.4f\n", best, routed);
    assert_true(routed > best - 0.02);
    for (int i = 0; i < 4; i++) {
        assert_in_range(totals.node_requests[i], REQUESTS / 8, REQUESTS / 2);
    }
    assert_true(totals.first_ms_median > 0 && totals.first_ms_p90 >= totals.first_ms_median);
    run(&trace, &prefix, again, &totals);
    assert_memory_equal(hits, again, REQUESTS * sizeof *hits);
    free(hits);
    free(again);
    kv_trace_release(&trace);
}

static void a_node_too_small_is_refused(void **state)
{
    (void)state;
    kv_trace_t trace = make_agents(8);
    uint32_t *hits = calloc(REQUESTS, sizeof *hits);
    kv_fleet_totals_t totals;
    kv_error_t error;
    kv_fleet_params_t params = params_of(4, KV_ROUTING_PREFIX, 400);
    assert_int_equal(kv_fleet_run(&trace, &params, hits, &totals, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "100 blocks"));
    free(hits);
    kv_trace_release(&trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_makes_one_load),
        cmocka_unit_test(loads_are_traces),
        cmocka_unit_test(one_node_is_the_replay),
        cmocka_unit_test(prefixes_are_worth_the_routing),
        cmocka_unit_test(a_node_too_small_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
