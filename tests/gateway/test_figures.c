/* The figures' page: what adds up, what is bounded. */
#include "testing/testing.h"

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

static void test_splits(void **state)
{
    (void)state;
    kv_figures_t *figures = kv_figures_create(32);
    kv_figure_t answer = {.labels = {[KV_BY_ROUTE] = "chat", [KV_BY_AGENT] = "planner"},
        .prompt_tokens = 100,
        .generated_tokens = 7,
        .cached = {16, 32, 0, 0},
        .miss = "diverged@48"};
    kv_figures_count(figures, &answer);
    answer.cached[0] = 0;
    answer.labels[KV_BY_AGENT] = NULL;
    answer.miss = "evicted:disk";
    kv_figures_count(figures, &answer);
    expect(figures, "kvist_gateway_agent_prompt_tokens_total{agent=\"planner\"} 100\n");
    expect(figures, "kvist_gateway_agent_answers_total{agent=\"none\"} 1\n");
    expect(figures, "kvist_gateway_route_prompt_tokens_total{route=\"chat\"} 200\n");
    expect(figures, "kvist_gateway_route_completion_tokens_total{route=\"chat\"} 14\n");
    expect(figures, "kvist_gateway_route_cached_tokens_total{route=\"chat\",tier=\"host\"} 64\n");
    expect(figures, "kvist_gateway_route_cached_tokens_total{route=\"chat\",tier=\"device\"} 16\n");
    expect(figures, "kvist_gateway_missed_tokens_total{reason=\"diverged\"} 52\n");
    expect(figures, "kvist_gateway_missed_tokens_total{reason=\"evicted:disk\"} 68\n");
    expect(figures, "# TYPE kvist_gateway_tool_mode_answers_total counter\n");
    kv_figures_destroy(figures);
}

static void test_values_are_bounded(void **state)
{
    (void)state;
    kv_figures_t *figures = kv_figures_create(3);
    for (int i = 0; i < 1000; i++) {
        char agent[16];
        snprintf(agent, sizeof agent, "agent-%d", i % 50);
        kv_figure_t answer = {.labels = {[KV_BY_AGENT] = agent}, .prompt_tokens = 1, .miss = agent};
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
    kv_figures_t *figures = kv_figures_create(4);
    /* 100 tokens in 2 s; a tail of 10 that took as long teaches nothing. */
    kv_figures_count(figures,
        &(kv_figure_t){.prompt_tokens = 100, .compute_ns = 2000000000, .decode_ns = 500000000});
    kv_figures_count(figures,
        &(kv_figure_t){.prompt_tokens = 60, .cached = {50, 0, 0, 0}, .compute_ns = 2000000000});
    expect(figures, "kvist_gateway_prefill_avoided_seconds_total 1\n");
    expect(figures, "kvist_gateway_compute_seconds_total{phase=\"prefill\"} 4\n");
    expect(figures, "kvist_gateway_compute_seconds_total{phase=\"decode\"} 0.5\n");
    kv_figures_destroy(figures);
}

/* A node that says that more was cached than there was. */
static void test_nonsense_is_not_counted(void **state)
{
    (void)state;
    kv_figures_t *figures = kv_figures_create(4);
    kv_figures_count(
        figures, &(kv_figure_t){.prompt_tokens = 10, .cached = {UINT32_MAX, UINT32_MAX, 0, 1}});
    char *page = render(figures);
    assert_null(strstr(page, "answers_total{"));
    free(page);
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
        cmocka_unit_test(test_values_are_bounded),
        cmocka_unit_test(test_seconds),
        cmocka_unit_test(test_nonsense_is_not_counted),
        cmocka_unit_test(test_labels_are_cleaned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
