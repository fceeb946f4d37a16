/* What a node records of its requests: the lines, the bound, what is in the file already. */
#include "runtime/recorder.h"

#include "base/metrics.h"
#include "testing/testing.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_TOKENS = 16, BYTES_MAX = 1 << 20 };

static double metric(const char *name)
{
    return kv_metric_value(kv_metric_counter(name, "", ""));
}

/* A file of this test's own, that is not there yet. */
static const char *new_path(void)
{
    static char path[256];
    static int number;
    snprintf(path, sizeof path, "%s/trace-%d.jsonl", kv_test_folder(), number++);
    return path;
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void read_file(const char *path, char *text, size_t capacity)
{
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    text[fread(text, 1, capacity - 1, file)] = '\0';
    assert_int_equal(fclose(file), 0);
}

static kv_recorder_t *open_recorder(const char *path, uint64_t bytes_max)
{
    kv_recorder_t *recorder = NULL;
    kv_error_t error = {0};
    if (kv_recorder_open(path, bytes_max, BLOCK_TOKENS, &recorder, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    return recorder;
}

/* Tokens 0, 1, 2, ... of a namespace of zeros. */
static kv_recorded_t request_of(uint32_t prompt_count)
{
    static uint32_t tokens[1000];
    for (uint32_t i = 0; i < 1000; i++) {
        tokens[i] = i;
    }
    return (kv_recorded_t){
        .arrived_unix_ms = 1700000000123,
        .tokens = tokens,
        .prompt_count = prompt_count,
        .answer_count = 7,
    };
}

/* One request, in a life of its own. */
static void record(const char *path, uint64_t bytes_max, uint32_t prompt_count)
{
    kv_recorder_t *recorder = open_recorder(path, bytes_max);
    kv_recorded_t request = request_of(prompt_count);
    kv_recorder_add(recorder, &request);
    kv_recorder_close(recorder);
}

/* The line of request_of(prompt_count), from keys made another way than the recorder's. */
static void expected_line(uint32_t prompt_count, char *line, size_t capacity)
{
    kv_recorded_t request = request_of(prompt_count);
    kvist_key_t keys[64];
    kvist_keys(&request.name_space, request.tokens, NULL, prompt_count, BLOCK_TOKENS, keys);
    int bytes = snprintf(line, capacity,
        "{\"block_tokens\": 16, \"timestamp\": 1700000000123, \"input_length\": %u, "
        "\"output_length\": 7, \"hash_ids\": [",
        prompt_count);
    for (uint32_t i = 0; i < prompt_count / BLOCK_TOKENS; i++) {
        char digits[17] = "";
        for (int byte = 0; byte < 8; byte++) {
            snprintf(digits + 2 * byte, 3, "%02x", keys[i].bytes[byte]);
        }
        bytes += snprintf(line + bytes, capacity - (size_t)bytes, "%s%" PRIu64, i > 0 ? ", " : "",
            (uint64_t)strtoull(digits, NULL, 16) / 2);
    }
    snprintf(line + bytes, capacity - (size_t)bytes, "]}\n");
}

static void test_requests_become_lines(void **state)
{
    (void)state;
    const char *path = new_path();
    double written = metric("kvist_trace_lines_total");
    record(path, BYTES_MAX, 50); /* three whole blocks */
    record(path, BYTES_MAX, 5);  /* none: added to what is there */
    char text[2048], first[1024], second[1024], both[2048];
    read_file(path, text, sizeof text);
    expected_line(50, first, sizeof first);
    expected_line(5, second, sizeof second);
    snprintf(both, sizeof both, "%s%s", first, second);
    assert_string_equal(text, both);
    assert_non_null(strstr(second, "\"hash_ids\": []"));
    assert_true(metric("kvist_trace_lines_total") == written + 2);
    struct stat facts;
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    kv_recorder_add(NULL, NULL); /* where nothing is recorded */
    kv_recorder_close(NULL);
}

static void test_the_file_has_a_bound(void **state)
{
    (void)state;
    const char *path = new_path();
    char line[1024], text[4096];
    expected_line(50, line, sizeof line);
    double dropped = metric("kvist_trace_lines_dropped_total");
    kv_recorder_t *recorder = open_recorder(path, 2 * strlen(line) + 1);
    kv_recorded_t request = request_of(50);
    for (int i = 0; i < 3; i++) {
        kv_recorder_add(recorder, &request);
    }
    request.prompt_count = 0; /* would fit, but comes after the end */
    kv_recorder_add(recorder, &request);
    kv_recorder_close(recorder);
    read_file(path, text, sizeof text);
    assert_int_equal(strlen(text), 2 * strlen(line));
    assert_true(metric("kvist_trace_lines_dropped_total") == dropped + 2);
}

/* A crash in the middle of a write, also of the first. */
static void test_a_cut_line_is_removed(void **state)
{
    (void)state;
    char line[1024], text[20000];
    expected_line(50, line, sizeof line);
    const char *path = new_path();
    snprintf(text, sizeof text, "%s%.60s%*s", line, line, 9000, ""); /* longer than one read */
    write_file(path, text);
    record(path, BYTES_MAX, 50);
    read_file(path, text, sizeof text);
    assert_int_equal(strlen(text), 2 * strlen(line));
    assert_string_equal(text + strlen(line), line);
    path = new_path();
    snprintf(text, sizeof text, "%.10s", line);
    write_file(path, text);
    record(path, BYTES_MAX, 50);
    read_file(path, text, sizeof text);
    assert_string_equal(text, line);
}

static void test_two_nodes_share_a_file(void **state)
{
    (void)state;
    const char *path = new_path();
    kv_recorder_t *nodes[] = {open_recorder(path, BYTES_MAX), open_recorder(path, BYTES_MAX)};
    kv_recorded_t request = request_of(50);
    for (int i = 0; i < 20; i++) {
        kv_recorder_add(nodes[i % 2], &request);
    }
    kv_recorder_close(nodes[0]);
    kv_recorder_close(nodes[1]);
    char line[1024], text[20000];
    expected_line(50, line, sizeof line);
    read_file(path, text, sizeof text);
    assert_int_equal(strlen(text), 20 * strlen(line));
    for (size_t i = 0; i < 20; i++) {
        assert_memory_equal(text + i * strlen(line), line, strlen(line));
    }
}

/* Whoever holds the lock for ever costs a line, and nothing waits for ever. */
static void test_a_lock_that_stays_costs_a_line(void **state)
{
    (void)state;
    const char *path = new_path();
    record(path, BYTES_MAX, 50);
    int other = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(flock(other, LOCK_EX), 0);
    double dropped = metric("kvist_trace_lines_dropped_total");
    record(path, BYTES_MAX, 50);
    assert_true(metric("kvist_trace_lines_dropped_total") == dropped + 1);
    close(other);
    char line[1024], text[2048];
    expected_line(50, line, sizeof line);
    read_file(path, text, sizeof text);
    assert_string_equal(text, line);
}

static void expect_refused(const char *path, kv_status_t status, const char *says)
{
    kv_recorder_t *recorder = NULL;
    kv_error_t error = {0};
    assert_int_equal(kv_recorder_open(path, BYTES_MAX, BLOCK_TOKENS, &recorder, &error), status);
    assert_non_null(strstr(error.text, "store.trace_file"));
    if (strstr(error.text, says) == NULL) {
        fail_msg("'%s' does not say '%s'", error.text, says);
    }
}

static void test_other_files_are_left_alone(void **state)
{
    (void)state;
    static const char *const TEXTS[] = {
        "model:\n  path: /x\n", "{\"block_tokens\": 32, \"timestamp\": 1", "{\"timestamp\": 1"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        const char *path = new_path();
        char text[128];
        write_file(path, TEXTS[i]);
        expect_refused(path, KV_INVALID, "blocks of 16 tokens: name another file");
        read_file(path, text, sizeof text);
        assert_string_equal(text, TEXTS[i]);
    }
    expect_refused("/nowhere/trace", KV_MISSING, "/nowhere/trace");
    const char *pipe = new_path();
    assert_int_equal(mkfifo(pipe, 0600), 0);
    expect_refused(pipe, KV_INVALID, "no plain file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_become_lines),
        cmocka_unit_test(test_the_file_has_a_bound),
        cmocka_unit_test(test_a_cut_line_is_removed),
        cmocka_unit_test(test_two_nodes_share_a_file),
        cmocka_unit_test(test_a_lock_that_stays_costs_a_line),
        cmocka_unit_test(test_other_files_are_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
