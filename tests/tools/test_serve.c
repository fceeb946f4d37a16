/* The parts of `kvist bench serve` that need no endpoint: what is asked, what could have hit, what
 * is made of times. */
#include "testing/testing.h"

#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/bench/serve/known.h"
#include "tools/kvist/bench/serve/outcome.h"
#include "tools/kvist/bench/serve/parts.h"
#include "tools/kvist/bench/serve/workloads.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK = 16, ROW = 200 };

/* ---- known ---- */

static void test_known_counts_whole_blocks(void **state)
{
    (void)state;
    kv_known_t *known = kv_known_create(BLOCK);
    uint32_t row[ROW], other[ROW];
    kv_symbols_draw(1, ROW, 0, 1000, row);
    memcpy(other, row, sizeof row);
    other[50] ^= 1;
    kv_known_run_t run = kv_known_look(known, row, ROW);
    assert_int_equal(run.sent, 0);
    kv_known_add(known, row, ROW, false);
    run = kv_known_look(known, row, ROW);
    assert_int_equal(run.sent, ROW / BLOCK * BLOCK);
    assert_int_equal(run.computed, 0);
    kv_known_add(known, row, 100, true);
    run = kv_known_look(known, row, ROW);
    assert_int_equal(run.sent, ROW / BLOCK * BLOCK);
    assert_int_equal(run.computed, 96);
    assert_int_equal(kv_known_look(known, row, 40).computed, 32);
    assert_int_equal(kv_known_look(known, other, ROW).computed, 48);
    /* The same block behind another one is another one. */
    assert_int_equal(kv_known_look(known, row + BLOCK, ROW - BLOCK).sent, 0);
    kv_known_destroy(known);
}

static void test_known_grows(void **state)
{
    (void)state;
    enum { ROWS = 3000 };
    kv_known_t *known = kv_known_create(BLOCK);
    uint32_t row[ROW];
    for (uint32_t i = 0; i < ROWS; i++) {
        kv_symbols_draw(i, ROW, 0, 1000, row);
        kv_known_add(known, row, ROW, i % 2 == 0);
    }
    for (uint32_t i = 0; i < ROWS; i++) {
        kv_symbols_draw(i, ROW, 0, 1000, row);
        kv_known_run_t run = kv_known_look(known, row, ROW);
        assert_int_equal(run.sent, ROW / BLOCK * BLOCK);
        assert_int_equal(run.computed, i % 2 == 0 ? ROW / BLOCK * BLOCK : 0);
    }
    kv_known_destroy(known);
}

/* ---- workloads ---- */

static kv_script_t make(kv_workload_t workload, uint64_t seed)
{
    kv_script_t script;
    kv_error_t error;
    workload.seed = seed;
    workload.context_tokens = 8192;
    if (kv_workload_make(&workload, &script, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    return script;
}

/* What every script must hold: links, lengths, sessions. */
static void check_script(const kv_script_t *script)
{
    for (uint32_t i = 0; i < script->request_count; i++) {
        const kv_script_request_t *request = &script->requests[i];
        uint32_t tokens = kv_script_own_count(script, request);
        assert_true(tokens > 0 && request->answer_tokens > 0);
        if (request->parent == KV_SCRIPT_NONE) {
            assert_int_equal(script->roots[request->session], i);
        } else {
            const kv_script_request_t *parent = &script->requests[request->parent];
            bool found = false;
            for (uint32_t child = parent->first_child; child != KV_SCRIPT_NONE;
                 child = script->requests[child].next_sibling) {
                found |= child == i;
            }
            assert_true(found && request->parent < i);
            assert_int_equal(request->session, parent->session);
            tokens += parent->prompt_tokens + parent->answer_tokens;
        }
        assert_int_equal(request->prompt_tokens, tokens);
        assert_true(tokens + request->answer_tokens <= 8192);
    }
}

static void test_workloads_are_whole(void **state)
{
    (void)state;
    for (int kind = 0; kind < KV_WORKLOAD_TRACE; kind++) {
        for (uint64_t seed = 0; seed < 20; seed++) {
            kv_workload_t workload = kv_workload_defaults((kv_workload_kind_t)kind);
            workload.shared_percent = (uint32_t)seed * 5;
            workload.shuffled = seed % 2 == 0;
            kv_script_t script = make(workload, seed), again = make(workload, seed);
            check_script(&script);
            assert_int_equal(script.request_count, again.request_count);
            assert_int_equal(script.part_count, again.part_count);
            for (size_t i = 0; i < script.part_count; i++) {
                assert_true(script.parts[i].seed == again.parts[i].seed);
                assert_int_equal(script.parts[i].count, again.parts[i].count);
            }
            kv_script_release(&script);
            kv_script_release(&again);
        }
    }
}

static void test_tree_has_its_shape(void **state)
{
    (void)state;
    kv_workload_t workload = kv_workload_defaults(KV_WORKLOAD_TREE);
    workload.sessions = 3;
    workload.branches = 3;
    workload.depth = 4;
    workload.beam = 2;
    kv_script_t script = make(workload, 7);
    assert_int_equal(script.request_count, 3 * (1 + 3 + 3 * 2 * 3));
    for (uint32_t i = 0; i < script.request_count; i++) {
        uint32_t count = 0;
        for (uint32_t child = script.requests[i].first_child; child != KV_SCRIPT_NONE;
             child = script.requests[child].next_sibling) {
            count++;
        }
        assert_true(count == 0 || count == 3);
    }
    kv_script_release(&script);
}

static void test_batch_asks_each_question_once(void **state)
{
    (void)state;
    kv_workload_t workload = kv_workload_defaults(KV_WORKLOAD_BATCH);
    workload.shuffled = true;
    kv_script_t script = make(workload, 3);
    assert_int_equal(script.request_count, workload.sessions * workload.questions);
    uint32_t in_order = 0;
    for (uint32_t i = 0; i < script.request_count; i++) {
        const kv_script_part_t *parts = &script.parts[script.requests[i].first_part];
        assert_int_equal(script.requests[i].part_count, 3);
        assert_true(parts[0].seed == script.parts[0].seed);
        for (uint32_t j = 0; j < i; j++) {
            assert_true(parts[2].seed != script.parts[script.requests[j].first_part + 2].seed);
        }
        in_order += i > 0 && parts[1].seed == parts[-2].seed;
    }
    assert_true(in_order < script.request_count / 2);
    kv_script_release(&script);
}

static void test_too_long_is_refused(void **state)
{
    (void)state;
    for (int kind = 0; kind < KV_WORKLOAD_TRACE; kind++) {
        kv_workload_t workload = kv_workload_defaults((kv_workload_kind_t)kind);
        kv_script_t script;
        kv_error_t error;
        workload.context_tokens = 1000;
        workload.prompt_tokens = 990;
        assert_int_equal(kv_workload_make(&workload, &script, &error), KV_INVALID);
        assert_non_null(strstr(error.text, "--prompt-tokens"));
        workload = kv_workload_defaults((kv_workload_kind_t)kind);
        workload.context_tokens = 8192;
        workload.sessions = workload.requests = 1 << 19;
        workload.questions = workload.turns = workload.branches = 1000;
        workload.requests = KV_SCRIPT_REQUESTS_MAX + 1;
        assert_int_equal(kv_workload_make(&workload, &script, &error), KV_INVALID);
        assert_non_null(strstr(error.text, "requests"));
    }
}

/* ---- what comes of it ---- */

static void test_slo(void **state)
{
    (void)state;
    static const char *const BAD[] = {"", "ttft", "ttft=", "ttft=2", "ttft=-1s", "ttft=2m",
        "first=2s", "ttft=2s,", "ttft=2s;tpot=1s", "ttft=0s", "ttft=infs", "ttft=nans"};
    kv_slo_t slo;
    kv_error_t error;
    assert_int_equal(kv_slo_parse("ttft=2s,tpot=80ms", &slo, &error), KV_OK);
    assert_true(slo.ttft_ms == 2000 && slo.tpot_ms == 80 && slo.e2e_ms == 0);
    assert_int_equal(kv_slo_parse("e2e=1.5s", &slo, &error), KV_OK);
    assert_true(slo.e2e_ms == 1500 && slo.ttft_ms == 0);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_int_equal(kv_slo_parse(BAD[i], &slo, &error), KV_INVALID);
    }
}

static double number(const json_t *object, const char *outer, const char *inner)
{
    const json_t *value = json_object_get(object, outer);
    return json_number_value(inner != NULL ? json_object_get(value, inner) : value);
}

/* 100 requests of 1 to 100 ms to the first token and 10 ms for each of two after it; the last ten
 * fail. */
static void test_outcome(void **state)
{
    (void)state;
    kv_workload_t workload = kv_workload_defaults(KV_WORKLOAD_SWEEP);
    workload.requests = 100;
    kv_script_t script = make(workload, 1);
    kv_drive_result_t result = {.took_ns = 10 * (uint64_t)KV_NS_PER_S};
    result.records = kv_allocate_array(script.request_count, sizeof *result.records);
    for (uint32_t i = 0; i < script.request_count; i++) {
        uint64_t first_ns = (i + 1) * (uint64_t)KV_NS_PER_MS;
        result.records[i] = (kv_sent_record_t){.state = i < 90 ? KV_SENT_DONE : KV_SENT_FAILED,
            .has_cached = true,
            .first_ns = first_ns,
            .last_ns = first_ns + 20 * KV_NS_PER_MS,
            .ended_ns = first_ns + 21 * KV_NS_PER_MS,
            .prompt_tokens = 1000,
            .answer_tokens = 3,
            .cached_tokens = i % 2 == 0 ? 480 : 320,
            .known = {.computed = 400, .sent = 448},
            .symbols = 1000};
    }
    const kv_slo_t slo = {.ttft_ms = 45, .tpot_ms = 10};
    json_t *outcome = kv_outcome_pack(&script, &result, &slo);
    assert_int_equal(number(outcome, "requests", "done"), 90);
    assert_int_equal(number(outcome, "requests", "failed"), 10);
    assert_int_equal(number(outcome, "requests_per_s", NULL), 9);
    assert_int_equal(number(outcome, "ttft_ms", "p50"), 45);
    assert_int_equal(number(outcome, "ttft_ms", "p99"), 90);
    assert_int_equal(number(outcome, "tpot_ms", "max"), 10);
    assert_true(number(outcome, "goodput", "share") == 0.5);
    assert_true(number(outcome, "hit_rate", NULL) == 0.4);
    /* Of the ideal at least what hit: 480 of half of them, 400 of the others. */
    assert_int_equal(number(outcome, "tokens", "ideal"), 45 * 480 + 45 * 400);
    assert_int_equal(number(outcome, "tokens", "foreign"), 45 * 32);
    json_decref(outcome);
    kv_drive_result_release(&result);
    kv_script_release(&script);
}

/* ---- the gateway's parts ---- */

static json_t *parse_parts(const char *metrics)
{
    json_t *parts;
    kv_error_t error;
    return kv_parts_parse(metrics, &parts, &error) == KV_OK ? parts : NULL;
}

static void test_parts(void **state)
{
    (void)state;
    static const char BEFORE[] =
        "# HELP kvist_gateway_prompt_tokens_total prompt tokens of answers\n"
        "kvist_gateway_prompt_tokens_total 100\n"
        "kvist_gateway_cached_tokens_total{tier=\"device\"} 32\n"
        "kvist_gateway_gap_tokens_total{reason=\"evicted:disk\"} 0\n"
        "kvist_gateway_unseen_tokens_total{kind=\"new\"} 68\n";
    static const char AFTER[] =
        "kvist_gateway_prompt_tokens_total 400\n"
        "kvist_gateway_cached_tokens_total{tier=\"device\"} 192\n"
        "kvist_gateway_tenant_cached_tokens_total{tenant=\"a\",tier=\"device\"} 192\n"
        "kvist_gateway_gap_tokens_total{reason=\"evicted:disk\"} 16\n"
        "kvist_gateway_gap_tokens_total{reason=\"pending\"} 24\n"
        "kvist_gateway_unseen_tokens_total{kind=\"new\"} 168";
    json_t *before = parse_parts(BEFORE), *after = parse_parts(AFTER);
    assert_true(before != NULL && after != NULL);
    json_t *parts = kv_parts_between(before, after, 300);
    assert_true(json_is_true(json_object_get(parts, "adds_up")));
    assert_int_equal(number(parts, "prompt", NULL), 300);
    assert_int_equal(number(parts, "hit", "device"), 160);
    assert_int_equal(number(parts, "gap", "pending"), 24);
    assert_int_equal(kv_parts_sum(json_object_get(parts, "gap")), 40);
    assert_true(number(parts, "ideal_hit_rate", NULL) == 200 / 300.0);
    json_decref(parts);
    json_object_set_new(json_object_get(after, "gap"), "pending", json_integer(25));
    parts = kv_parts_between(before, after, 300);
    assert_true(json_is_false(json_object_get(parts, "adds_up")));
    json_decref(parts);
    json_decref(before);
    json_decref(after);
    assert_null(parse_parts("vllm:num_requests_running 0\n"));
    assert_null(parse_parts(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_counts_whole_blocks),
        cmocka_unit_test(test_known_grows),
        cmocka_unit_test(test_workloads_are_whole),
        cmocka_unit_test(test_tree_has_its_shape),
        cmocka_unit_test(test_batch_asks_each_question_once),
        cmocka_unit_test(test_too_long_is_refused),
        cmocka_unit_test(test_slo),
        cmocka_unit_test(test_outcome),
        cmocka_unit_test(test_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
