/* Decisions: what is kept, what is told, in words that fit the reason.
 *
 * This program defines the admin socket's answers itself, and reads them. */
#include "testing/testing.h"

#include "gateway/routing/decisions.h"

#include <stdio.h>
#include <string.h>

enum { NODES = 20 };

static Kvist__Admin__Reply *reply;
static kv_status_t failure;

void kv_admin_reply(kv_admin_call_t *call, const Kvist__Admin__Reply *message)
{
    (void)call;
    static uint8_t packed[1 << 20];
    size_t bytes = kvist__admin__reply__get_packed_size(message);
    assert_true(bytes <= sizeof packed);
    kvist__admin__reply__pack(message, packed);
    reply = kvist__admin__reply__unpack(NULL, bytes, packed);
    assert_non_null(reply);
}

void kv_admin_fail(kv_admin_call_t *call, kv_status_t status, const char *text)
{
    (void)call;
    assert_non_null(text);
    failure = status;
}

static kv_router_node_t nodes[NODES];
static kv_router_score_t scores[NODES];
static char names[NODES][16];
static const char *name_list[NODES];

static kv_decision_params_t decide(const char *id, const kv_router_request_t *request, size_t count)
{
    kv_decision_params_t params = {.request_id = id,
        .attempt = 1,
        .unix_ns = 5,
        .request = request,
        .nodes = nodes,
        .names = name_list,
        .scores = scores,
        .count = count};
    params.choice = kv_router_choose(request, nodes, count, scores);
    return params;
}

static void clear_nodes(void)
{
    memset(nodes, 0, sizeof nodes);
    for (int i = 0; i < NODES; i++) {
        snprintf(names[i], sizeof names[i], "decode-%d", i);
        name_list[i] = names[i];
        nodes[i].name_hash = kv_router_hash(names[i], strlen(names[i]));
    }
}

static const Kvist__Admin__Explanation *explain(const kv_decisions_t *decisions, const char *id)
{
    if (reply != NULL) {
        kvist__admin__reply__free_unpacked(reply, NULL);
        reply = NULL;
    }
    failure = KV_OK;
    kv_decisions_explain(decisions, id, NULL);
    return reply != NULL ? reply->explanation : NULL;
}

static void the_numbers_are_told(void **state)
{
    (void)state;
    clear_nodes();
    kv_decisions_t *decisions = kv_decisions_create();
    nodes[2].run_tokens[0] = 900;
    nodes[2].run_tokens[2] = 60;
    nodes[1].waiting_tokens = 77;
    nodes[1].outstanding = 3;
    nodes[0].unfit = true;
    const kv_router_request_t request = {.prompt_tokens = 1000, .branched_tokens = 3};
    kv_decision_params_t params = decide("chatcmpl-1", &request, 4);
    kv_decisions_add(decisions, &params);
    const Kvist__Admin__Explanation *told = explain(decisions, "chatcmpl-1");
    assert_non_null(told);
    assert_int_equal(told->n_decisions, 1);
    const Kvist__Admin__Decision *decision = told->decisions[0];
    assert_string_equal(decision->node, "decode-2");
    assert_string_equal(decision->reason, "prefix");
    assert_string_equal(decision->routing, "prefix");
    assert_non_null(strstr(decision->words, "960 of the 1000 tokens"));
    assert_int_equal(decision->prompt_tokens, 1000);
    assert_int_equal(decision->branched_tokens, 3);
    assert_int_equal(decision->n_candidates, 4);
    assert_int_equal(decision->candidates[2]->device_tokens, 900);
    assert_int_equal(decision->candidates[2]->disk_tokens, 60);
    assert_int_equal(decision->candidates[1]->waiting_tokens, 77);
    assert_int_equal(decision->candidates[1]->requests, 3);
    assert_true(decision->candidates[0]->unfit);
    assert_int_equal(decision->candidates[2]->cost_tokens, decision->candidates[2]->bring_tokens);
    assert_null(explain(decisions, "chatcmpl-2"));
    assert_int_equal(failure, KV_MISSING);
    kv_decisions_destroy(decisions);
}

/* The latest ones; of many nodes the chosen one is always among those that are told. */
static void the_oldest_go_and_the_chosen_stays(void **state)
{
    (void)state;
    clear_nodes();
    kv_decisions_t *decisions = kv_decisions_create();
    nodes[19].run_tokens[0] = 900;
    const kv_router_request_t request = {.prompt_tokens = 1000};
    for (int i = 0; i < KV_DECISIONS_MAX + 10; i++) {
        char id[32];
        snprintf(id, sizeof id, "cmpl-%d", i);
        kv_decision_params_t params = decide(id, &request, NODES);
        kv_decisions_add(decisions, &params);
    }
    assert_null(explain(decisions, "cmpl-9"));
    const Kvist__Admin__Explanation *told = explain(decisions, "cmpl-10");
    assert_non_null(told);
    const Kvist__Admin__Decision *decision = told->decisions[0];
    assert_int_equal(decision->node_count, NODES);
    assert_int_equal(decision->n_candidates, KV_DECISION_CANDIDATES_MAX);
    assert_string_equal(decision->node, "decode-19");
    assert_string_equal(decision->candidates[KV_DECISION_CANDIDATES_MAX - 1]->name, "decode-19");
    /* Another attempt of the same request stands after the first. */
    kv_decision_params_t params = decide("cmpl-again", &request, NODES);
    kv_decisions_add(decisions, &params);
    params.attempt = 2;
    params.generated_tokens = 7;
    kv_decisions_add(decisions, &params);
    told = explain(decisions, "cmpl-again");
    assert_int_equal(told->n_decisions, 2);
    assert_int_equal(told->decisions[1]->attempt, 2);
    assert_int_equal(told->decisions[1]->generated_tokens, 7);
    kv_decisions_destroy(decisions);
}

static void expect_words(
    const kv_router_request_t *request, kv_choice_reason_t reason, const char *words)
{
    char said[KV_DECISION_WORDS_BYTES];
    kv_decision_params_t params = decide("x", request, 3);
    assert_string_equal(kv_choice_name(params.choice.reason), kv_choice_name(reason));
    kv_decision_words(&params, said);
    if (strstr(said, words) == NULL) {
        fail_msg("'%s' is not in '%s'", words, said);
    }
}

static void every_reason_has_its_words(void **state)
{
    (void)state;
    kv_router_request_t request = {.prompt_tokens = 1000, .affinity = 5};
    clear_nodes();
    expect_words(&request, KV_CHOICE_HASH, "the text decides; nobody holds any of it");
    request.has_session = true;
    expect_words(&request, KV_CHOICE_SESSION, "the session decides");
    nodes[0].run_tokens[0] = 960;
    expect_words(&request, KV_CHOICE_PREFIX, "960 of the 1000");
    nodes[0].waiting_tokens = 90000;
    nodes[1].waiting_tokens = 20000;
    expect_words(&request, KV_CHOICE_OVERLOADED, "90000 tokens wait there");
    clear_nodes();
    nodes[0].run_tokens[0] = 960;
    nodes[0].taken_tokens = 9000;
    request.branched_tokens = 4000;
    expect_words(&request, KV_CHOICE_SPREAD, "many go on from the 960 tokens that decode-0 holds");
    request.branched_tokens = 0;
    request.routing = KV_ROUTING_ROUND_ROBIN;
    expect_words(&request, KV_CHOICE_ROUND_ROBIN, "turn");
    request.routing = KV_ROUTING_RANDOM;
    expect_words(&request, KV_CHOICE_RANDOM, "random");
    nodes[0].tried = nodes[1].unfit = true;
    expect_words(&request, KV_CHOICE_ONLY, "no other node");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_numbers_are_told),
        cmocka_unit_test(the_oldest_go_and_the_chosen_stays),
        cmocka_unit_test(every_reason_has_its_words),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (reply != NULL) {
        kvist__admin__reply__free_unpacked(reply, NULL);
    }
    return failed;
}
