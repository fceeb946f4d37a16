/* The figures' page: what adds up, what is bounded. */
#include "testing/testing.h"

#include "base/clock.h"
#include "gateway/figures/figures.h"

#include <stdlib.h>
#include <string.h>

static char *render(const kv_figures_t *figures)
{
    char *text = NULL;
    size_t bytes;
    FILE *page = open_memstream(&text, &bytes);
    assert_non_null(page);
    kv_figures_render(figures, page);
    fclose(page);
    return text;
}

static void expect(const kv_figures_t *figures, const char *line)
{
    char *page = render(figures);
    if (strstr(page, line) == NULL) {
        fail_msg("%s is not in\n%s", line, page);
    }
    free(page);
}

static kv_figures_t *open_figures(uint32_t label_values_max)
{
    const kv_figures_params_t params = {.label_values_max = label_values_max,
        .slo_ttft_ns = 2 * (uint64_t)KV_NS_PER_S,
        .slo_tpot_ns = 80 * (uint64_t)KV_NS_PER_MS};
    return kv_figures_create(&params);
}

static void test_splits(void **state)
{
    (void)state;
    kv_figures_t *figures = open_figures(32);
    kv_figure_t answer = {.labels = {[KV_BY_ROUTE] = "chat", [KV_BY_AGENT] = "planner"},
        .parts = {.prompt = 100, .hit = {16, 32, 0, 0}, .diverged = 40, .fresh = 8, .tail = 4},
        .generated_tokens = 7,
        .miss = "diverged@48"};
    kv_figures_count(figures, &answer);
    answer.parts = (kv_partition_t){.prompt = 100,
        .hit = {0, 32, 0, 0},
        .gap = {[KV_GAP_EVICTED_DISK] = 48},
        .fresh = 16,
        .tail = 4};
    answer.labels[KV_BY_AGENT] = NULL;
    answer.miss = "evicted:disk";
    kv_figures_count(figures, &answer);
    expect(figures, "kvist_gateway_agent_prompt_tokens_total{agent=\"planner\"} 100\n");
    expect(figures, "kvist_gateway_agent_answers_total{agent=\"none\"} 1\n");
    expect(figures, "kvist_gateway_agent_gap_tokens_total{agent=\"none\"} 48\n");
    expect(figures, "kvist_gateway_agent_gap_tokens_total{agent=\"planner\"} 0\n");
    expect(figures, "kvist_gateway_route_prompt_tokens_total{route=\"chat\"} 200\n");
    expect(figures, "kvist_gateway_route_completion_tokens_total{route=\"chat\"} 14\n");
    expect(figures, "kvist_gateway_route_cached_tokens_total{route=\"chat\",tier=\"host\"} 64\n");
    expect(figures, "kvist_gateway_route_cached_tokens_total{route=\"chat\",tier=\"device\"} 16\n");
    expect(figures, "kvist_gateway_missed_tokens_total{reason=\"diverged\"} 52\n");
    expect(figures, "kvist_gateway_missed_tokens_total{reason=\"evicted:disk\"} 68\n");
    expect(figures, "# TYPE kvist_gateway_tool_mode_answers_total counter\n");
    kv_figures_destroy(figures);
}

static void test_parts_of_prompts(void **state)
{
    (void)state;
    kv_figures_t *figures = open_figures(4);
    expect(figures, "kvist_gateway_hit_rate 0\n");
    expect(figures, "kvist_gateway_ideal_hit_rate 0\n");
    expect(figures, "kvist_gateway_input_output_ratio 0\n");
    const kv_figure_t answer = {.parts = {.prompt = 100,
                                    .hit = {16, 0, 0, 34},
                                    .gap = {[KV_GAP_ELSEWHERE] = 20, [KV_GAP_FORGOTTEN] = 5},
                                    .diverged = 10,
                                    .fresh = 11,
                                    .tail = 4},
        .generated_tokens = 10};
    kv_figures_count(figures, &answer);
    kv_figures_count(figures, &answer);
    expect(figures, "kvist_gateway_prompt_tokens_total 200\n");
    expect(figures, "kvist_gateway_cached_tokens_total{tier=\"device\"} 32\n");
    expect(figures, "kvist_gateway_cached_tokens_total{tier=\"remote\"} 68\n");
    expect(figures, "kvist_gateway_gap_tokens_total{reason=\"elsewhere\"} 40\n");
    expect(figures, "kvist_gateway_gap_tokens_total{reason=\"forgotten\"} 10\n");
    expect(figures, "kvist_gateway_gap_tokens_total{reason=\"evicted:disk\"} 0\n");
    expect(figures, "kvist_gateway_unseen_tokens_total{kind=\"new\"} 22\n");
    expect(figures, "kvist_gateway_unseen_tokens_total{kind=\"short\"} 8\n");
    expect(figures, "kvist_gateway_unseen_tokens_total{kind=\"diverged\"} 20\n");
    expect(figures, "kvist_gateway_hit_rate 0.5\n");
    expect(figures, "kvist_gateway_ideal_hit_rate 0.75\n");
    expect(figures, "kvist_gateway_input_output_ratio 10\n");
    assert_int_equal(kv_figures_totals(figures)->answers, 2);
    kv_figures_destroy(figures);
}

static void count_times(kv_figures_t *figures, uint64_t ttft_ms, uint64_t tpot_ms)
{
    const kv_figure_t answer = {.labels = {[KV_BY_TENANT] = "one"},
        .parts = {.prompt = 1, .fresh = 1},
        .ttft_ns = ttft_ms * KV_NS_PER_MS,
        .tpot_ns = tpot_ms * KV_NS_PER_MS};
    kv_figures_count(figures, &answer);
}

static void test_goodput(void **state)
{
    (void)state;
    kv_figures_t *figures = open_figures(4);
    count_times(figures, 2000, 80); /* on the target is within it */
    count_times(figures, 10, 0);
    count_times(figures, 2001, 80);
    count_times(figures, 2000, 81);
    count_times(figures, 5000, 100);
    expect(figures, "kvist_gateway_slo_answers_total{met=\"both\"} 2\n");
    expect(figures, "kvist_gateway_slo_answers_total{met=\"ttft\"} 1\n");
    expect(figures, "kvist_gateway_slo_answers_total{met=\"tpot\"} 1\n");
    expect(figures, "kvist_gateway_slo_answers_total{met=\"none\"} 1\n");
    expect(figures, "kvist_gateway_tenant_good_answers_total{tenant=\"one\"} 2\n");
    expect(figures, "kvist_gateway_slo_seconds{target=\"ttft\"} 2\n");
    assert_int_equal(kv_figures_totals(figures)->good_answers, 2);
    kv_figures_destroy(figures);
    /* Without targets every answer is good. */
    const kv_figures_params_t none = {.label_values_max = 4};
    figures = kv_figures_create(&none);
    count_times(figures, 100000, 100000);
    expect(figures, "kvist_gateway_slo_answers_total{met=\"both\"} 1\n");
    expect(figures, "kvist_gateway_slo_seconds{target=\"tpot\"} 0\n");
    kv_figures_destroy(figures);
}

static void test_values_are_bounded(void **state)
{
    (void)state;
    kv_figures_t *figures = open_figures(3);
    for (int i = 0; i < 1000; i++) {
        char agent[16];
        snprintf(agent, sizeof agent, "agent-%d", i % 50);
        kv_figure_t answer = {
            .labels = {[KV_BY_AGENT] = agent}, .parts = {.prompt = 1, .fresh = 1}, .miss = agent};
        kv_figures_count(figures, &answer);
        kv_figures_refused(figures, agent, "key");
    }
    expect(figures, "kvist_gateway_agent_prompt_tokens_total{agent=\"agent-2\"} 20\n");
    expect(figures, "kvist_gateway_agent_prompt_tokens_total{agent=\"other\"} 940\n");
    expect(figures, "kvist_gateway_refused_total{why=\"key\",tenant=\"other\"} 940\n");
    expect(figures, "kvist_gateway_missed_tokens_total{reason=\"other\"} 360\n");
    char *page = render(figures);
    assert_null(strstr(page, "agent=\"agent-3\""));
    assert_true(strlen(page) < 20000);
    free(page);
    kv_figures_destroy(figures);
}

static void test_seconds(void **state)
{
    (void)state;
    kv_figures_t *figures = open_figures(4);
    kv_figures_count(figures, &(kv_figure_t){.parts = {.prompt = 100, .fresh = 100},
                                  .compute_ns = 2000000000,
                                  .decode_ns = 500000000});
    kv_figures_count(figures, &(kv_figure_t){.parts = {.prompt = 60, .hit = {50}, .fresh = 10},
                                  .compute_ns = 2000000000});
    expect(figures, "kvist_gateway_prefill_avoided_seconds_total 1\n");
    expect(figures, "kvist_gateway_compute_seconds_total{phase=\"prefill\"} 4\n");
    expect(figures, "kvist_gateway_compute_seconds_total{phase=\"decode\"} 0.5\n");
    kv_figures_destroy(figures);
}

static void test_labels_are_cleaned(void **state)
{
    (void)state;
    static const struct {
        const char *text, *label;
    } CASES[] = {{NULL, ""}, {"", ""}, {"plan/v2.1:a-b_c@d+e", "plan/v2.1:a-b_c@d+e"},
        {"a\"b\\c\nd", "a_b_c_d"}, {"gr\xc3\xbcn", "gr__n"}, {" x", "_x"},
        {"0123456789012345678901234567890123456789012345678901234567890123456789",
            "012345678901234567890123456789012345678901234567890123456789012"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        char label[KV_LABEL_BYTES_MAX + 1];
        kv_label_clean(CASES[i].text, label);
        assert_string_equal(label, CASES[i].label);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_parts_of_prompts),
        cmocka_unit_test(test_goodput),
        cmocka_unit_test(test_values_are_bounded),
        cmocka_unit_test(test_seconds),
        cmocka_unit_test(test_labels_are_cleaned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
