/* What `kvist bench pd` is made of: gaps between tokens, a plot's file, a process' cores and time.
 */
#include "testing/testing.h"

#include "base/clock.h"
#include "tools/kvist/bench/cores.h"
#include "tools/kvist/bench/plot.h"
#include "tools/kvist/running.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void test_gaps_of_a_window(void **state)
{
    (void)state;
    uint64_t arrivals[] = {100, 110, 130, 160, 200, 300};
    kv_answer_t answer = {.arrivals_ns = arrivals, .arrival_count = 6};
    kv_gaps_t gaps = {0};
    assert_int_equal(kv_gaps_quantile(&gaps, 99), 0);
    kv_gaps_add(&gaps, &answer, 125, 165); /* touched: 110-130, 130-160, 160-200 */
    assert_int_equal(gaps.count, 3);
    assert_int_equal(kv_gaps_quantile(&gaps, 0), 20);
    assert_int_equal(kv_gaps_quantile(&gaps, 50), 30);
    assert_int_equal(kv_gaps_quantile(&gaps, 100), 40);
    kv_gaps_add(&gaps, &answer, 201, 1000); /* a second stream's: 200-300 */
    assert_int_equal(gaps.count, 4);
    assert_int_equal(kv_gaps_quantile(&gaps, 100), 100);
    answer.arrival_count = 0;
    kv_gaps_add(&gaps, &answer, 0, 1000);
    assert_int_equal(gaps.count, 4);
    kv_gaps_clear(&gaps);
}

static void test_a_plot_is_drawn(void **state)
{
    (void)state;
    kv_plot_point_t points[] = {{0, 12}, {1, 15}, {2, 480}};
    kv_plot_panel_t panels[] = {{"apart", points, 2, {0.5, 1}}, {"a < b & c", points, 3, {1, 2}},
        {"none", NULL, 0, {0, 0}}};
    kv_plot_t plot = {"title", "seconds", "milliseconds", "prompts", panels, 3};
    char path[] = "/tmp/kvist-plot-XXXXXX", text[16384];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(kv_plot_write(&plot, path, NULL), KV_OK);
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    unlink(path);
    assert_true(count > 0);
    text[count] = '\0';
    assert_true(strncmp(text, "<svg ", 5) == 0 && strstr(text, "</svg>\n") == text + count - 7);
    assert_null(strstr(text, "nan"));
    assert_non_null(strstr(text, "a &lt; b &amp; c"));
    size_t dots = 0, bands = 0;
    for (const char *at = text; (at = strstr(at, "h0")) != NULL; at++) {
        dots++;
    }
    for (const char *at = text; (at = strstr(at, "'#f3e3c3'")) != NULL; at++) {
        bands++;
    }
    assert_int_equal(dots, 5);
    assert_int_equal(bands, 2);
    kv_error_t error;
    assert_int_not_equal(kv_plot_write(&plot, "/nowhere/plot.svg", &error), KV_OK);
    assert_non_null(strstr(error.text, "/nowhere/plot.svg"));
}

static void test_a_process_is_kept_on_its_cores(void **state)
{
    (void)state;
    char *argv[] = {"/bin/sh", "-c", "while :; do :; done", NULL};
    kv_child_t child;
    assert_int_equal(kv_child_start(argv, "/dev/null", &child, NULL), KV_OK);
    uint32_t cores = kv_cores_count();
    assert_true(cores >= 1);
    assert_int_equal(kv_child_pin(&child, cores - 1, 1, NULL), KV_OK);
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(child.pid, sizeof set, &set), 0);
    assert_int_equal(CPU_COUNT(&set), 1);
    uint64_t before_ns = 0, now_ns = 0;
    assert_int_equal(kv_child_cpu_ns(&child, &before_ns, NULL), KV_OK);
    for (int i = 0; i < 1000 && now_ns < before_ns + KV_NS_PER_MS; i++) {
        usleep(10000);
        assert_int_equal(kv_child_cpu_ns(&child, &now_ns, NULL), KV_OK);
    }
    assert_true(now_ns >= before_ns + KV_NS_PER_MS);
    kv_child_signal(&child, SIGKILL);
    assert_true(kv_child_wait(&child, 10000));
    kv_error_t error;
    assert_int_equal(kv_child_cpu_ns(&child, &now_ns, &error), KV_MISSING);
    assert_int_equal(kv_child_pin(&child, 0, 1, &error), KV_MISSING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gaps_of_a_window),
        cmocka_unit_test(test_a_plot_is_drawn),
        cmocka_unit_test(test_a_process_is_kept_on_its_cores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
