/* What a benchmark says of its samples: medians, intervals, verdicts, and the form of a line. */
#include "testing/testing.h"

#include "tools/kvist/bench/measure.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define assert_near(value, expected) assert_true(fabs((value) - (expected)) < 1e-9)

static void test_quartiles(void **state)
{
    (void)state;
    double odd[] = {5, 1, 4, 2, 3};
    kv_spread_t spread = kv_quartiles(odd, 5);
    assert_near(spread.low, 2);
    assert_near(spread.median, 3);
    assert_near(spread.high, 4);
    double even[] = {4, 1, 3, 2};
    spread = kv_quartiles(even, 4);
    assert_near(spread.low, 1.75);
    assert_near(spread.median, 2.5);
    assert_near(spread.high, 3.25);
    double one[] = {7};
    spread = kv_quartiles(one, 1);
    assert_near(spread.low, 7);
    assert_near(spread.high, 7);
}

/* The ranks are those of the tables of the sign test at 5 %, two-sided. */
static void test_interval_of_the_median(void **state)
{
    (void)state;
    static const struct {
        uint32_t count, low_rank;
    } table[] = {{1, 1}, {3, 1}, {5, 1}, {6, 1}, {8, 1}, {9, 2}, {11, 2}, {12, 3}, {15, 4}, {20, 6},
        {25, 8}, {50, 18}, {99, 40}};
    for (size_t row = 0; row < sizeof table / sizeof *table; row++) {
        double values[KV_PAIRS_MAX];
        const uint32_t count = table[row].count;
        for (uint32_t i = 0; i < count; i++) {
            values[i] = count - i;
        }
        const kv_spread_t spread = kv_median_interval(values, count);
        assert_near(spread.low, table[row].low_rank);
        assert_near(spread.high, count + 1 - table[row].low_rank);
        assert_near(spread.median, (count + 1) / 2.0);
    }
}

/* Nine pairs of a slow and a fast minute: the ratio stays what it was in each pair. */
static void test_ratio_is_of_the_pairs(void **state)
{
    (void)state;
    double ours[9], theirs[9];
    for (int i = 0; i < 9; i++) {
        theirs[i] = i % 2 == 0 ? 1 : 10;
        ours[i] = theirs[i] * (0.90 + 0.01 * i);
    }
    const kv_measure_t measure = {.name = "m", .unit = "GB/s", .against = "them", .target = NAN};
    const kv_finding_t finding = kv_find(&measure, ours, theirs, 9);
    assert_near(finding.judged.median, 0.94);
    assert_near(finding.judged.low, 0.91);
    assert_near(finding.judged.high, 0.97);
    assert_int_equal(finding.verdict, KV_VERDICT_NONE);
}

static kv_verdict_t verdict(const char *unit, double target)
{
    double ours[9], theirs[9];
    for (int i = 0; i < 9; i++) {
        theirs[i] = 2;
        ours[i] = 2 * (0.90 + 0.01 * i); /* the interval is 0.91 to 0.97 */
    }
    const kv_measure_t measure = {.name = "m", .unit = unit, .against = "them", .target = target};
    return kv_find(&measure, ours, theirs, 9).verdict;
}

static void test_a_target_inside_the_interval_is_unsure(void **state)
{
    (void)state;
    assert_int_equal(verdict("GB/s", 0.90), KV_VERDICT_MET);
    assert_int_equal(verdict("GB/s", 0.965), KV_VERDICT_UNSURE);
    assert_int_equal(verdict("GB/s", 0.98), KV_VERDICT_MISSED);
    assert_int_equal(verdict("x", 0.90), KV_VERDICT_MET); /* of a factor more is better, too */
    assert_int_equal(verdict("x", 0.98), KV_VERDICT_MISSED);
    assert_int_equal(verdict("ns/token", 1.10), KV_VERDICT_MET);
    assert_int_equal(verdict("ns/token", 0.92), KV_VERDICT_UNSURE);
    assert_int_equal(verdict("ns/token", 0.90), KV_VERDICT_MISSED);
    double alone[] = {1.8, 1.9, 2.1};
    const kv_measure_t measure = {.name = "m", .unit = "ms", .target = 2};
    assert_int_equal(kv_find(&measure, alone, NULL, 3).verdict, KV_VERDICT_MET);
    double slow[] = {2.3, 2.2, 2.1};
    assert_int_equal(kv_find(&measure, slow, NULL, 3).verdict, KV_VERDICT_MISSED);
}

/* ---- the report ---- */

/* Who was asked, in order: 't' theirs, 'o' ours. */
typedef struct {
    char text[64];
    size_t length;
} asked_t;

typedef struct {
    asked_t *asked;
    char own;
    double value;
    int count, fail_at; /* the sample of that number fails; -1: none */
} side_state_t;

static kv_status_t sample(void *context, double *value_out, kv_error_t *error)
{
    side_state_t *side = context;
    side->asked->text[side->asked->length++] = side->own;
    if (side->count++ == side->fail_at) {
        return kv_fail(error, KV_IO, "the disk is gone");
    }
    *value_out = side->value;
    return KV_OK;
}

/* Reports a measure of two pairs; what was written, to be freed. */
static char *report_text(bool json, bool paired, double our_value, int fail_at, asked_t *asked,
    kv_status_t *status_out, kv_error_t *error)
{
    char *text = NULL;
    size_t bytes = 0;
    kv_report_t report = {.out = open_memstream(&text, &bytes), .json = json, .pairs = 2};
    side_state_t ours = {.own = 'o', .value = our_value, .fail_at = fail_at, .asked = asked};
    side_state_t theirs = {.own = 't', .value = 4, .fail_at = -1, .asked = asked};
    const kv_side_t our_side = {sample, &ours}, their_side = {sample, &theirs};
    const kv_measure_t measure = {.name = "disk \"get\"",
        .unit = "GB/s",
        .against = paired ? "fio" : NULL,
        .target = paired ? 0.5 : NAN};
    *status_out = kv_report_pairs(&report, &measure, paired ? &their_side : NULL, &our_side, error);
    kv_report_end(&report);
    fclose(report.out);
    return text;
}

static void test_pairs_alternate_and_the_first_does_not_count(void **state)
{
    (void)state;
    asked_t asked = {.length = 0};
    kv_status_t status;
    kv_error_t error;
    free(report_text(true, true, 3, -1, &asked, &status, &error));
    assert_int_equal(status, KV_OK);
    assert_string_equal(asked.text, "tototo");
}

static void test_json_line(void **state)
{
    (void)state;
    asked_t asked = {.length = 0};
    kv_status_t status;
    kv_error_t error;
    char *text = report_text(true, true, 3, -1, &asked, &status, &error);
    assert_string_equal(text,
        "{\"measure\": \"disk \\\"get\\\"\", \"ours\": 3.0, \"unit\": \"GB/s\", \"against\": "
        "\"fio\", \"theirs\": 4.0, \"ratio\": 0.75, \"spread\": [0.75, 0.75], \"target\": 0.5, "
        "\"ok\": true}\n");
    free(text);
    asked.length = 0;
    text = report_text(true, false, 3, -1, &asked, &status, &error);
    assert_string_equal(text,
        "{\"measure\": \"disk \\\"get\\\"\", \"ours\": 3.0, \"unit\": \"GB/s\", \"against\": null, "
        "\"theirs\": null, \"ratio\": null, \"spread\": [3.0, 3.0], \"target\": null, \"ok\": "
        "null}\n");
    free(text);
}

static void test_table(void **state)
{
    (void)state;
    asked_t asked = {.length = 0};
    kv_status_t status;
    kv_error_t error;
    char *text = report_text(false, true, 1, -1, &asked, &status, &error);
    assert_non_null(strstr(text, "0.250"));
    assert_non_null(strstr(text, ">= 0.5"));
    assert_non_null(strstr(text, "MISSED"));
    assert_non_null(strstr(text, ", 1 missed"));
    free(text);
}

static void test_a_failed_sample_reports_nothing(void **state)
{
    (void)state;
    asked_t asked = {.length = 0};
    kv_status_t status;
    kv_error_t error;
    char *text = report_text(true, true, 3, 2, &asked, &status, &error);
    assert_int_equal(status, KV_IO);
    assert_string_equal(error.text, "the disk is gone");
    assert_string_equal(text, "");
    free(text);
    asked.length = 0;
    text = report_text(true, true, 0, -1, &asked, &status, &error);
    assert_int_equal(status, KV_FATAL);
    assert_string_equal(text, "");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quartiles),
        cmocka_unit_test(test_interval_of_the_median),
        cmocka_unit_test(test_ratio_is_of_the_pairs),
        cmocka_unit_test(test_a_target_inside_the_interval_is_unsure),
        cmocka_unit_test(test_pairs_alternate_and_the_first_does_not_count),
        cmocka_unit_test(test_json_line),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_a_failed_sample_reports_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
