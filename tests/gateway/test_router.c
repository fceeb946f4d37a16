/* The router's scores: what each input does to the choice, and what must hold whatever comes. */
#include "testing/testing.h"

#include "gateway/routing/router.h"

#include <stdio.h>
#include <string.h>

enum { NODES = 4, ROUNDS = 3000, BLOCK = 16 };

static uint64_t state = 1;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005 + 1442695040888963407;
    return (uint32_t)(state >> 33) % below;
}

static void name_nodes(kv_router_node_t *nodes, size_t count)
{
    memset(nodes, 0, count * sizeof *nodes);
    for (size_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "decode-%zu", i);
        nodes[i].name_hash = kv_router_hash(name, strlen(name));
    }
}

static kv_router_choice_t choose(
    const kv_router_request_t *request, const kv_router_node_t *nodes, size_t count)
{
    kv_router_score_t scores[KV_ROUTER_NODES_MAX];
    return kv_router_choose(request, nodes, count, scores);
}

static kv_router_request_t prompt_of(uint32_t tokens)
{
    return (kv_router_request_t){.prompt_tokens = tokens, .affinity = state};
}

/* ---- one thing at a time ---- */

static void the_longest_run_wins(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    nodes[1].run_tokens[0] = 512;
    nodes[2].run_tokens[0] = 1024;
    kv_router_request_t request = prompt_of(1200);
    kv_router_choice_t choice = choose(&request, nodes, NODES);
    assert_int_equal(choice.node, 2);
    assert_int_equal(choice.reason, KV_CHOICE_PREFIX);
    assert_int_equal(choice.holder, 2);
}

static void faster_tiers_win(void **state_unused)
{
    (void)state_unused;
    kv_router_request_t request = prompt_of(2000);
    for (int faster = 0; faster + 1 < KV_ROUTER_TIERS; faster++) {
        kv_router_node_t nodes[NODES];
        name_nodes(nodes, NODES);
        nodes[0].run_tokens[faster + 1] = nodes[3].run_tokens[faster] = 1600;
        assert_int_equal(choose(&request, nodes, NODES).node, 3);
    }
    /* What is on a node's own disk is nearer than what is in another one's memory. */
    kv_router_node_t nodes[2];
    kv_router_score_t scores[2];
    name_nodes(nodes, 2);
    nodes[0].run_tokens[2] = 1600;
    nodes[1].run_tokens[0] = 400;
    kv_router_choice_t choice = kv_router_choose(&request, nodes, 2, scores);
    assert_int_equal(choice.node, 0);
    assert_int_equal(scores[0].bring_tokens, 1600 * 40 / 100 + 400);
    assert_int_equal(scores[1].bring_tokens, 1200 * 70 / 100 + 400);
}

static void what_is_coming_counts(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    nodes[3].coming_tokens = 960;
    nodes[3].outstanding = nodes[3].warm = 1;
    kv_router_request_t request = prompt_of(1000);
    kv_router_choice_t choice = choose(&request, nodes, NODES);
    assert_int_equal(choice.node, 3);
    assert_int_equal(choice.reason, KV_CHOICE_PREFIX);
}

static void an_overloaded_holder_yields(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    kv_router_request_t request = prompt_of(1000);
    nodes[1].run_tokens[0] = 960;
    nodes[1].waiting_tokens = 500; /* less than a copy costs: 960 * 70 % */
    assert_int_equal(choose(&request, nodes, NODES).node, 1);
    nodes[1].waiting_tokens = 5000;
    kv_router_choice_t choice = choose(&request, nodes, NODES);
    assert_int_not_equal(choice.node, 1);
    assert_int_equal(choice.holder, 1);
    nodes[0].waiting_tokens = nodes[2].waiting_tokens = 4000;
    choice = choose(&request, nodes, NODES); /* one is left that costs less: by name */
    assert_int_equal(choice.node, 3);
    assert_int_equal(choice.reason, KV_CHOICE_OVERLOADED);
}

static void a_session_keeps_its_node(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    kv_router_request_t request = prompt_of(400);
    request.has_session = true;
    for (int round = 0; round < 100; round++) {
        request.affinity = (uint64_t)round * 0x9e3779b97f4a7c15;
        kv_router_choice_t first = choose(&request, nodes, NODES);
        assert_int_equal(first.reason, KV_CHOICE_SESSION);
        request.prompt_tokens = 300 + draw(1000);
        assert_int_equal(choose(&request, nodes, NODES).node, first.node);
        /* It yields where its node has more than its share, and comes back when it has not. */
        nodes[first.node].outstanding = 2;
        kv_router_choice_t second = choose(&request, nodes, NODES);
        assert_int_not_equal(second.node, first.node);
        assert_int_equal(second.reason, KV_CHOICE_BOUND);
        nodes[first.node].outstanding = 0;
        assert_int_equal(choose(&request, nodes, NODES).node, first.node);
    }
}

static void cold_prompts_leave_warm_nodes_alone(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    nodes[0].warm = nodes[1].warm = 1;
    for (int i = 0; i < NODES; i++) {
        nodes[i].outstanding = 1;
    }
    for (int round = 0; round < 200; round++) {
        kv_router_request_t request = prompt_of(2000);
        request.affinity = (uint64_t)draw(1u << 30) << 20;
        assert_in_range(choose(&request, nodes, NODES).node, 2, 3);
    }
    /* Of two nodes neither can be spared; of four that are all warm none is. */
    bool seen[NODES] = {false};
    for (int round = 0; round < 200; round++) {
        kv_router_request_t request = prompt_of(2000);
        request.affinity = (uint64_t)draw(1u << 30) << 20;
        seen[choose(&request, nodes, 2).node] = true;
        nodes[2].warm = nodes[3].warm = 1;
        seen[choose(&request, nodes, NODES).node] = true;
        nodes[2].warm = nodes[3].warm = 0;
    }
    assert_true(seen[0] && seen[1] && seen[2] && seen[3]);
}

static void branches_of_a_hot_prefix_spread(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    nodes[2].run_tokens[0] = 1024;
    int counts[NODES] = {0};
    for (int round = 0; round < 400; round++) {
        kv_router_request_t request = prompt_of(1200);
        request.affinity = (uint64_t)draw(1u << 30) << 20;
        request.branched_tokens = 1023; /* a copy does not pay yet */
        assert_int_equal(choose(&request, nodes, NODES).node, 2);
        request.branched_tokens = 1024; /* and it has taken in no more than others */
        nodes[2].taken_tokens = nodes[3].taken_tokens = 5000;
        nodes[0].taken_tokens = nodes[1].taken_tokens = 4000;
        assert_int_equal(choose(&request, nodes, NODES).node, 2);
        nodes[2].taken_tokens = 9000;
        kv_router_choice_t choice = choose(&request, nodes, NODES);
        assert_int_equal(choice.reason, KV_CHOICE_SPREAD);
        counts[choice.node]++;
    }
    assert_int_equal(counts[2], 0);
    assert_in_range(counts[0], 90, 180);
    assert_in_range(counts[1], 90, 180);
    assert_in_range(counts[3], 90, 180);
    /* Where others hold it too, they are enough. */
    nodes[1].run_tokens[0] = 1024;
    kv_router_request_t request = prompt_of(1200);
    request.branched_tokens = 5000;
    kv_router_choice_t choice = choose(&request, nodes, NODES);
    assert_int_equal(choice.node, 1);
    assert_int_not_equal(choice.reason, KV_CHOICE_SPREAD);
}

static void nobody_and_only_one(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    kv_router_request_t request = prompt_of(100);
    assert_int_equal(choose(&request, nodes, 0).node, -1);
    for (int i = 0; i < NODES; i++) {
        nodes[i].unfit = i % 2 == 0;
        nodes[i].tried = i % 2 == 1;
    }
    kv_router_choice_t choice = choose(&request, nodes, NODES);
    assert_int_equal(choice.node, -1);
    assert_int_equal(choice.reason, KV_CHOICE_NONE);
    nodes[3].tried = false;
    nodes[3].waiting_tokens = nodes[3].outstanding = 1000000;
    for (int routing = KV_ROUTING_PREFIX; routing <= KV_ROUTING_RANDOM; routing++) {
        request.routing = (kv_routing_t)routing;
        choice = choose(&request, nodes, NODES);
        assert_int_equal(choice.node, 3);
        assert_int_equal(choice.reason, KV_CHOICE_ONLY);
    }
}

static void round_robin_and_random(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    nodes[0].run_tokens[0] = 4096; /* nobody looks */
    nodes[1].unfit = true;
    int counts[NODES] = {0};
    kv_router_request_t request = prompt_of(5000);
    request.routing = KV_ROUTING_ROUND_ROBIN;
    static const int IN_TURN[] = {0, 2, 3};
    for (int i = 0; i < 9; i++) {
        request.turn = (uint64_t)i;
        assert_int_equal(choose(&request, nodes, NODES).node, IN_TURN[i % 3]);
    }
    request.routing = KV_ROUTING_RANDOM;
    for (int i = 0; i < ROUNDS; i++) {
        request.turn = (uint64_t)i;
        counts[choose(&request, nodes, NODES).node]++;
    }
    assert_int_equal(counts[1], 0);
    for (int i = 0; i < NODES; i++) {
        if (i != 1) {
            assert_in_range(counts[i], ROUNDS / 3 - 150, ROUNDS / 3 + 150);
        }
    }
}

/* ---- whatever comes ---- */

static void draw_nodes(kv_router_node_t *nodes, size_t count, uint32_t prompt_tokens)
{
    name_nodes(nodes, count);
    for (size_t i = 0; i < count; i++) {
        uint32_t left = draw(3) == 0 ? 0 : prompt_tokens;
        for (int tier = 0; tier < KV_ROUTER_TIERS; tier++) {
            nodes[i].run_tokens[tier] = draw(left / BLOCK + 1) * BLOCK;
            left -= nodes[i].run_tokens[tier];
        }
        nodes[i].outstanding = draw(6);
        nodes[i].reported = draw(6);
        nodes[i].warm = draw(nodes[i].outstanding + 1);
        nodes[i].waiting_tokens = draw(4) == 0 ? 0 : draw(4000);
        nodes[i].taken_tokens = draw(20000);
        nodes[i].unfit = draw(8) == 0;
        nodes[i].tried = draw(8) == 0;
    }
}

static bool is_by_order(kv_choice_reason_t reason)
{
    return reason == KV_CHOICE_SESSION || reason == KV_CHOICE_HASH || reason == KV_CHOICE_BOUND ||
           reason == KV_CHOICE_SPREAD;
}

/* A longer run never makes a node's score worse, nor loses it the prompt where the run decided. */
static void monotone_in_the_run(void **state_unused)
{
    (void)state_unused;
    for (int round = 0; round < ROUNDS; round++) {
        kv_router_node_t nodes[NODES];
        kv_router_score_t before[NODES], after[NODES];
        kv_router_request_t request = prompt_of(200 + draw(4000));
        draw_nodes(nodes, NODES, request.prompt_tokens);
        kv_router_choice_t choice = kv_router_choose(&request, nodes, NODES, before);
        int grown = choice.node >= 0 ? choice.node : 0;
        uint32_t held =
            nodes[grown].run_tokens[0] + nodes[grown].run_tokens[1] + nodes[grown].run_tokens[2];
        uint32_t more = draw(request.prompt_tokens - held + 1);
        nodes[grown].run_tokens[draw(KV_ROUTER_TIERS)] += more;
        kv_router_choice_t then = kv_router_choose(&request, nodes, NODES, after);
        assert_true(after[grown].cost_tokens <= before[grown].cost_tokens);
        assert_true(after[grown].bring_tokens <= request.prompt_tokens);
        if (choice.reason == KV_CHOICE_PREFIX && !is_by_order(then.reason)) {
            assert_int_equal(then.node, grown);
        }
    }
}

/* No node that had its share gets one by the order of names; a choice is always fit. */
static void the_bound_holds(void **state_unused)
{
    (void)state_unused;
    for (int round = 0; round < ROUNDS; round++) {
        kv_router_node_t nodes[9];
        kv_router_score_t scores[9];
        size_t count = 1 + draw(9);
        kv_router_request_t request = prompt_of(1 + draw(4000));
        request.has_session = draw(2) == 0;
        request.affinity = (uint64_t)draw(1u << 30) << 21;
        request.branched_tokens = draw(3) == 0 ? draw(4000) : 0;
        draw_nodes(nodes, count, request.prompt_tokens);
        kv_router_choice_t choice = kv_router_choose(&request, nodes, count, scores);
        uint32_t fit = 0, load = 0;
        for (size_t i = 0; i < count; i++) {
            bool is_fit = !nodes[i].unfit && !nodes[i].tried;
            assert_int_equal(scores[i].fit, is_fit);
            fit += is_fit;
            load += is_fit ? kv_router_load(&nodes[i]) : 0;
        }
        assert_int_equal(choice.node < 0, fit == 0);
        if (fit == 0) {
            continue;
        }
        assert_true(scores[choice.node].fit);
        uint32_t share = (125 * (load + 1) + 100 * fit - 1) / (100 * fit);
        assert_int_equal(choice.bound, share > 2 ? share : 2);
        if (is_by_order(choice.reason)) {
            assert_true(kv_router_load(&nodes[choice.node]) + 1 <= choice.bound);
        }
    }
}

/* Requests one after the other, none ends: cold ones and those that all hold alike. */
static void equal_nodes_share(void **state_unused)
{
    (void)state_unused;
    for (uint32_t held = 0; held <= 960; held += 960) {
        kv_router_node_t nodes[NODES];
        name_nodes(nodes, NODES);
        for (uint32_t sent = 1; sent <= 400; sent++) {
            kv_router_request_t request = prompt_of(1000);
            request.affinity = (uint64_t)draw(1u << 30) << 21;
            for (int i = 0; i < NODES; i++) {
                nodes[i].run_tokens[0] = held;
                nodes[i].waiting_tokens = (uint64_t)nodes[i].outstanding * (1000 - held);
            }
            kv_router_choice_t choice = choose(&request, nodes, NODES);
            nodes[choice.node].outstanding++;
            for (int i = 0; i < NODES; i++) {
                assert_true(nodes[i].outstanding <= (125 * sent + 399) / 400 + 1);
            }
        }
    }
}

/* A node that goes takes only what it had with it. */
static void few_move(void **state_unused)
{
    (void)state_unused;
    kv_router_node_t nodes[NODES];
    name_nodes(nodes, NODES);
    for (int round = 0; round < ROUNDS; round++) {
        kv_router_request_t request = prompt_of(1000);
        request.affinity = (uint64_t)draw(1u << 30) << 21;
        int before = choose(&request, nodes, NODES).node;
        nodes[2].unfit = true;
        int without = choose(&request, nodes, NODES).node;
        nodes[2].unfit = false;
        assert_true(before == 2 || without == before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_run_wins),
        cmocka_unit_test(faster_tiers_win),
        cmocka_unit_test(what_is_coming_counts),
        cmocka_unit_test(an_overloaded_holder_yields),
        cmocka_unit_test(a_session_keeps_its_node),
        cmocka_unit_test(cold_prompts_leave_warm_nodes_alone),
        cmocka_unit_test(branches_of_a_hot_prefix_spread),
        cmocka_unit_test(nobody_and_only_one),
        cmocka_unit_test(round_robin_and_random),
        cmocka_unit_test(monotone_in_the_run),
        cmocka_unit_test(the_bound_holds),
        cmocka_unit_test(equal_nodes_share),
        cmocka_unit_test(few_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
