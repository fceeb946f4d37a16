#include "base/available.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "base/queue.h"
#include "base/status.h"
#include "base/worker.h"
#include "testing/testing.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void error_says_status_and_cause(void **state)
{
    (void)state;
    kv_error_t error;
    assert_int_equal(kv_fail(&error, KV_INVALID, "port is %d", 70000), KV_INVALID);
    assert_string_equal(error.text, "port is 70000");
    assert_int_equal(kv_fail_errno(&error, ENOSPC, "cannot write"), KV_NO_SPACE);
    assert_non_null(strstr(error.text, "cannot write: No space"));
    assert_int_equal(kv_fail(NULL, KV_BUSY, "nobody listens"), KV_BUSY);
}

static void sizes_are_read_as_people_write_them(void **state)
{
    (void)state;
    uint64_t bytes;
    assert_int_equal(kv_size_parse("512", &bytes), KV_OK);
    assert_int_equal(bytes, 512);
    assert_int_equal(kv_size_parse("1.5 GiB", &bytes), KV_OK);
    assert_int_equal(bytes, 3ull << 29);
    assert_int_equal(kv_size_parse("64k", &bytes), KV_OK);
    assert_int_equal(bytes, 65536);
    static const char *const WRONG[] = {"", "-1", "12 parsecs", "1e300", "nan", " 4"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        assert_int_equal(kv_size_parse(WRONG[i], &bytes), KV_INVALID);
    }
}

static void utf8_refuses_what_is_none(void **state)
{
    (void)state;
    assert_true(kv_utf8_valid("kvist \xc3\xa5 \xe2\x82\xac \xf0\x9f\x8c\xbf", 17));
    static const char *const WRONG[] = {
        "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff", "\xe2\x82", "\x80"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        assert_false(kv_utf8_valid(WRONG[i], strlen(WRONG[i])));
    }
}

static void hexadecimal_round_trips(void **state)
{
    (void)state;
    uint8_t bytes[3] = {0, 0xab, 0xff}, back[3];
    char text[7];
    kv_hex_encode(bytes, 3, text);
    assert_string_equal(text, "00abff");
    assert_int_equal(kv_hex_decode("00ABff", back, 3), KV_OK);
    assert_memory_equal(bytes, back, 3);
    assert_int_equal(kv_hex_decode("00abf", back, 3), KV_INVALID);
    assert_int_equal(kv_hex_decode("00abfg", back, 3), KV_INVALID);
}

static void queue_is_bounded_and_in_order(void **state)
{
    (void)state;
    kv_queue_t *queue = kv_queue_create(2, sizeof(int));
    struct pollfd poll_fd = {.fd = kv_queue_fd(queue), .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(kv_queue_push(queue, &i), KV_OK);
    }
    int value = 3;
    assert_int_equal(kv_queue_push(queue, &value), KV_BUSY);
    assert_int_equal(poll(&poll_fd, 1, 0), 1);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(kv_queue_pop(queue, &value), KV_OK);
        assert_int_equal(value, i);
    }
    assert_int_equal(kv_queue_pop(queue, &value), KV_MISSING);
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    kv_queue_close(queue);
    assert_int_equal(kv_queue_push(queue, &value), KV_CANCELLED);
    assert_int_equal(kv_queue_pop_wait(queue, &value), KV_CANCELLED);
    kv_queue_destroy(queue);
}

enum { PRODUCER_COUNT = 4, PER_PRODUCER = 2000 };

static void *produce(void *queue)
{
    for (int i = 1; i <= PER_PRODUCER; i++) {
        while (kv_queue_push(queue, &i) == KV_BUSY) {
        }
    }
    return NULL;
}

static void queue_loses_nothing_between_threads(void **state)
{
    (void)state;
    kv_queue_t *queue = kv_queue_create(8, sizeof(int));
    pthread_t threads[PRODUCER_COUNT];
    for (int i = 0; i < PRODUCER_COUNT; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, produce, queue), 0);
    }
    long sum = 0;
    for (int i = 0; i < PRODUCER_COUNT * PER_PRODUCER; i++) {
        int value;
        assert_int_equal(kv_queue_pop_wait(queue, &value), KV_OK);
        sum += value;
    }
    assert_int_equal(sum, (long)PRODUCER_COUNT * PER_PRODUCER * (PER_PRODUCER + 1) / 2);
    for (int i = 0; i < PRODUCER_COUNT; i++) {
        pthread_join(threads[i], NULL);
    }
    kv_queue_destroy(queue);
}

static void count_job(void *argument)
{
    atomic_fetch_add((atomic_int *)argument, 1);
}

static void workers_finish_what_was_submitted(void **state)
{
    (void)state;
    atomic_int done = 0;
    kv_workers_t *workers = kv_workers_create("test", 2, 64);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(kv_workers_submit(workers, (kv_job_t){count_job, &done}), KV_OK);
    }
    kv_workers_destroy(workers);
    assert_int_equal(atomic_load(&done), 50);
}

static void metrics_render_as_prometheus_reads_them(void **state)
{
    (void)state;
    kv_metric_t *hits = kv_metric_counter("kvist_test_hits_total", "tier=\"disk\"", "hits");
    kv_metric_counter("kvist_test_hits_total", "tier=\"host\"", "hits");
    kv_metric_t *wait = kv_metric_histogram("kvist_test_wait_seconds", "", "wait");
    kv_metric_add(hits, 2);
    assert_ptr_equal(hits, kv_metric_counter("kvist_test_hits_total", "tier=\"disk\"", "hits"));
    kv_metric_observe(wait, 0.03);
    kv_metric_observe(wait, 1000);
    size_t bytes;
    char *page = kv_metrics_render(&bytes);
    assert_non_null(strstr(page, "# TYPE kvist_test_hits_total counter\n"
                                 "kvist_test_hits_total{tier=\"disk\"} 2\n"
                                 "kvist_test_hits_total{tier=\"host\"} 0\n"));
    assert_non_null(strstr(page, "kvist_test_wait_seconds_bucket{le=\"0.05\"} 1\n"));
    assert_non_null(strstr(page, "kvist_test_wait_seconds_bucket{le=\"+Inf\"} 2\n"));
    assert_non_null(strstr(page, "kvist_test_wait_seconds_count 2\n"));
    free(page);
}

static void virtual_clock_moves_when_told(void **state)
{
    (void)state;
    kv_virtual_clock_t clock;
    kv_virtual_clock_init(&clock, 5);
    uint64_t before = clock.clock.monotonic_ns(&clock.clock);
    kv_virtual_clock_advance(&clock, 10);
    assert_int_equal(clock.clock.monotonic_ns(&clock.clock) - before, 10);
    assert_int_equal(clock.clock.unix_ns(&clock.clock), 15);
}

static void region_is_aligned_and_zeroed(void **state)
{
    (void)state;
    kv_region_t region;
    assert_int_equal(kv_region_map(3 << 20, &region, NULL), KV_OK);
    assert_int_equal((uintptr_t)region.base % (2 << 20), 0);
    assert_true(region.bytes >= 3 << 20);
    assert_int_equal(((char *)region.base)[region.bytes - 1], 0);
    kv_region_unmap(&region);
    assert_int_equal(kv_region_map(0, &region, NULL), KV_INVALID);
}

/* A file below the test's folder, and the folders to it. */
static void put_file(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof whole, "%s/%s", kv_test_folder(), path);
    for (char *at = strchr(whole + 1, '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(whole, 0700);
        *at = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void the_tightest_bound_on_memory_counts(void **state)
{
    (void)state;
    char proc[512], cgroup[512];
    snprintf(proc, sizeof proc, "%s/proc", kv_test_folder());
    snprintf(cgroup, sizeof cgroup, "%s/cgroup", kv_test_folder());
    const kv_available_places_t places = {proc, cgroup};
    kv_available_t left = kv_available_memory(&places); /* nothing can be read */
    assert_true(left.available_bytes == UINT64_MAX);
    put_file("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\n");
    left = kv_available_memory(&places);
    assert_int_equal(left.available_bytes, 600 << 10);
    assert_int_equal(left.total_bytes, 1000 << 10);
    /* Version 2, two levels: the upper one is tighter, but for its files. */
    put_file("proc/self/cgroup", "3:cpuset,mem:/x\n2:cpu,memory:/old\n0::/a/b\n");
    put_file("cgroup/a/b/memory.max", "max\n");
    put_file("cgroup/a/b/memory.current", "5000\n");
    put_file("cgroup/a/memory.max", "400000\n");
    put_file("cgroup/a/memory.current", "300000\n");
    left = kv_available_memory(&places);
    assert_int_equal(left.available_bytes, 100000);
    put_file("cgroup/a/memory.stat", "anon 7\ninactive_file 20000\nactive_file 30000\n");
    left = kv_available_memory(&places);
    assert_int_equal(left.available_bytes, 150000);
    assert_int_equal(left.total_bytes, 400000);
    /* Version 1; inside a container only the mount's root is there. */
    put_file("cgroup/memory/memory.limit_in_bytes", "200000\n");
    put_file("cgroup/memory/memory.usage_in_bytes", "190000\n");
    put_file("cgroup/memory/memory.stat", "total_inactive_file 1000\n");
    left = kv_available_memory(&places);
    assert_int_equal(left.available_bytes, 11000);
    put_file("cgroup/memory/memory.usage_in_bytes", "210000\n");
    assert_int_equal(kv_available_memory(&places).available_bytes, 0);
    assert_true(kv_available_memory(NULL).available_bytes > 0); /* this machine's */
}

/* What a peer said is part of many lines: it can neither end one and begin another, nor speak to a
 * terminal. */
static void a_log_line_is_one_line_of_text(void **state)
{
    (void)state;
    int ends[2], kept = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    kv_log_warn("test", "request %s ended", "a\n2026 info forged\x1b[2J\x7f\xc3\xa9");
    dup2(kept, STDERR_FILENO);
    close(kept);
    char line[KV_LOG_LINE_BYTES + 1] = "";
    assert_true(read(ends[0], line, sizeof line - 1) > 0);
    assert_non_null(strstr(line, "request a?2026 info forged?[2J?\xc3\xa9 ended\n"));
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_says_status_and_cause),
        cmocka_unit_test(sizes_are_read_as_people_write_them),
        cmocka_unit_test(utf8_refuses_what_is_none),
        cmocka_unit_test(hexadecimal_round_trips),
        cmocka_unit_test(queue_is_bounded_and_in_order),
        cmocka_unit_test(queue_loses_nothing_between_threads),
        cmocka_unit_test(workers_finish_what_was_submitted),
        cmocka_unit_test(metrics_render_as_prometheus_reads_them),
        cmocka_unit_test(virtual_clock_moves_when_told),
        cmocka_unit_test(region_is_aligned_and_zeroed),
        cmocka_unit_test(the_tightest_bound_on_memory_counts),
        cmocka_unit_test(a_log_line_is_one_line_of_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
