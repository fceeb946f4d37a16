/* The parts of `kvist` that need no cluster: arguments, figures, children, what is kept on disk. */
#include "testing/testing.h"

#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/child.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/cluster_file.h"
#include "tools/kvist/cluster_plan.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void test_durations_and_times(void **state)
{
    (void)state;
    uint64_t ns = 0, local_ns = 0;
    assert_int_equal(kv_duration_parse("90s", &ns), KV_OK);
    assert_int_equal(ns, 90ull * KV_NS_PER_S);
    assert_int_equal(kv_duration_parse("2w", &ns), KV_OK);
    assert_int_equal(ns, 14 * 86400ull * KV_NS_PER_S);
    static const char *const NO_DURATIONS[] = {"", "s", "0s", "-1s", "1", "1.5h", "2 h", "2hh",
        "99999999999999999999s", "4294967296s", "3000w"};
    for (size_t i = 0; i < sizeof NO_DURATIONS / sizeof *NO_DURATIONS; i++) {
        assert_int_equal(kv_duration_parse(NO_DURATIONS[i], &ns), KV_INVALID);
    }
    assert_int_equal(kv_time_parse("2026-12-24T18:30:00Z", &ns), KV_OK);
    assert_int_equal(ns, 1798137000ull * KV_NS_PER_S);
    assert_int_equal(kv_time_parse("2026-12-24T18:30Z", &ns), KV_OK);
    assert_int_equal(ns, 1798137000ull * KV_NS_PER_S);
    assert_int_equal(kv_time_parse("2026-12-24T18:30:00", &local_ns), KV_OK);
    char text[KV_TEXT_BYTES];
    assert_string_equal(kv_text_time(local_ns, text), "2026-12-24 18:30:00");
    assert_int_equal(kv_time_parse("2026-12-24", &ns), KV_OK);
    assert_string_equal(kv_text_time(ns, text), "2026-12-24 00:00:00");
    static const char *const NO_TIMES[] = {"", "tomorrow", "2026-13-01", "2026-12-24T25:00",
        "2026-12-24 18:30", "1960-01-01", "2026", "2026-02-31", "2026-04-31T12:00Z"};
    for (size_t i = 0; i < sizeof NO_TIMES / sizeof *NO_TIMES; i++) {
        assert_int_equal(kv_time_parse(NO_TIMES[i], &ns), KV_INVALID);
    }
}

static void test_nearest(void **state)
{
    (void)state;
    const char *const names[] = {"up", "down", "status", "tokenize"};
    assert_string_equal(kv_nearest("stauts", names, 4), "status");
    assert_string_equal(kv_nearest("tokenise", names, 4), "tokenize");
    assert_string_equal(kv_nearest("dwon", names, 4), "down");
    assert_null(kv_nearest("frobnicate", names, 4));
    assert_null(kv_nearest("", names, 4));
    char longest[200];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_null(kv_nearest(longest, names, 4));
}

typedef struct {
    const char *text, *word;
    uint64_t number;
    bool flag;
    const char *extras[KV_EXTRA_ARGUMENTS_MAX];
    size_t extra_count;
} given_t;

/* Parses words (the command's own name first); the exit code, or -1 where the command would run. */
static int parse(given_t *given, int count, const char *const *words)
{
    const kv_argument_t rows[] = {
        {"--text", KV_ARGUMENT_TEXT, "T", "", &given->text, 0, 0},
        {"--number", KV_ARGUMENT_NUMBER, "N", "", &given->number, 2, 50},
        {"--flag", KV_ARGUMENT_FLAG, NULL, "", &given->flag, 0, 0},
    };
    const kv_arguments_t arguments = {.usage = "kvist test [OPTIONS]",
        .summary = "",
        .rows = rows,
        .row_count = 3,
        .word = &given->word,
        .extras = given->extras,
        .extra_count = &given->extra_count};
    int code = -1;
    char *copies[16];
    for (int i = 0; i < count; i++) {
        copies[i] = (char *)words[i];
    }
    return kv_arguments_parse(&arguments, count, copies, &code) ? -1 : code;
}

#define PARSE(given, ...)                                                                          \
    parse(given, (int)(sizeof((const char *[]){"test", __VA_ARGS__}) / sizeof(char *)),            \
        (const char *[]){"test", __VA_ARGS__})

static void test_arguments_taken(void **state)
{
    (void)state;
    given_t given = {.number = 7};
    assert_int_equal(
        PARSE(&given, "--text", "a b", "word", "--flag", "--number=50", "--store.host_bytes=1GiB"),
        -1);
    assert_string_equal(given.text, "a b");
    assert_string_equal(given.word, "word");
    assert_int_equal(given.number, 50);
    assert_true(given.flag);
    assert_int_equal(given.extra_count, 1);
    assert_string_equal(given.extras[0], "--store.host_bytes=1GiB");
}

static void test_arguments_refused(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {{"--number", "1"}, {"--number", "51"},
        {"--number", "-3"}, {"--number", "3x"}, {"--number", "99999999999999999999"},
        {"--number", ""}, {"--nubmer", "3"}, {"--flag=yes", "word"}, {"one", "two"},
        {"--store.io", "auto"}, {"--text", ""}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        given_t given = {.number = 7};
        assert_int_equal(PARSE(&given, wrong[i][0], wrong[i][1]), KV_EXIT_USAGE);
        assert_int_equal(given.number, 7);
    }
    given_t given = {0};
    assert_int_equal(PARSE(&given, "--text"), KV_EXIT_USAGE);
}

static void test_text(void **state)
{
    (void)state;
    char text[KV_TEXT_BYTES];
    assert_string_equal(kv_text_size(0, text), "0 B");
    assert_string_equal(kv_text_size(1536, text), "1.5 KiB");
    assert_string_equal(kv_text_size(136716288, text), "130 MiB");
    assert_string_equal(kv_text_size((1u << 30) - 1, text), "1.0 GiB");
    assert_string_equal(kv_text_count(0, text), "0");
    assert_string_equal(kv_text_count(999, text), "999");
    assert_string_equal(kv_text_count(1234567, text), "1,234,567");
    assert_string_equal(kv_text_duration(3100000, text), "3.1 ms");
    assert_string_equal(kv_text_duration(2500000000u, text), "2.50 s");
    assert_string_equal(kv_text_duration(3600ull * 72 * 1000000000u, text), "3 d");
    assert_string_equal(kv_text_percent(7, 8, text), "87.5 %");
    assert_string_equal(kv_text_percent(0, 0, text), "-");
    assert_string_equal(kv_text_bar(0.001, text), "[#...................]");
    assert_string_equal(kv_text_bar(2, text), "[####################]");
}

static kv_child_t start_sleeper(void)
{
    char *const argv[] = {"/bin/sleep", "60", NULL};
    char log[300];
    kv_child_t child;
    snprintf(log, sizeof log, "%s/sleep.log", kv_test_folder());
    assert_int_equal(kv_child_start(argv, log, &child, NULL), KV_OK);
    return child;
}

static void test_child_lives_and_ends(void **state)
{
    (void)state;
    kv_child_t child = start_sleeper();
    assert_true(kv_child_alive(&child));
    assert_false(kv_child_wait(&child, 30));
    kv_child_signal(&child, SIGTERM);
    assert_true(kv_child_wait(&child, 5000));
    assert_false(kv_child_alive(&child));
}

static void test_child_of_another_life_is_left_alone(void **state)
{
    (void)state;
    kv_child_t child = start_sleeper();
    /* The same pid, but started at another time: somebody else's process. */
    kv_child_t stranger = {.pid = child.pid, .start_ticks = child.start_ticks + 1};
    assert_false(kv_child_alive(&stranger));
    kv_child_signal(&stranger, SIGKILL);
    assert_false(kv_child_wait(&child, 100));
    kv_child_signal(&child, SIGKILL);
    assert_true(kv_child_wait(&child, 5000));
}

static void test_child_that_cannot_run(void **state)
{
    (void)state;
    char *const argv[] = {"/nonexistent/program", NULL};
    char log[300];
    kv_child_t child;
    kv_error_t error;
    snprintf(log, sizeof log, "%s/none.log", kv_test_folder());
    assert_int_equal(kv_child_start(argv, log, &child, &error), KV_MISSING);
    assert_non_null(strstr(error.text, "/nonexistent/program"));
}

static void test_cluster_file_round_trip(void **state)
{
    (void)state;
    char *words[] = {"/bin/x", "--a=1", NULL};
    kv_cluster_t cluster = {.folder = (char *)kv_test_folder(),
        .model = "/m.gguf",
        .endpoint = "http://127.0.0.1:1",
        .members = {{.name = "n",
            .admin = "/a.sock",
            .log = "/l.log",
            .argv = words,
            .child = {.pid = 12, .start_ticks = 1ull << 40}}},
        .member_count = 1};
    kv_cluster_t read;
    assert_int_equal(kv_cluster_save(&cluster, NULL), KV_OK);
    assert_int_equal(kv_cluster_load(kv_test_folder(), &read, NULL), KV_OK);
    assert_string_equal(read.endpoint, cluster.endpoint);
    assert_int_equal(read.member_count, 1);
    assert_string_equal(read.members[0].argv[1], "--a=1");
    assert_null(read.members[0].argv[2]);
    assert_int_equal(read.members[0].child.pid, 12);
    assert_true(read.members[0].child.start_ticks == 1ull << 40);
    kv_cluster_clear(&read);
}

static void test_cluster_file_damaged(void **state)
{
    (void)state;
    static const char *const pages[] = {"", "{", "[]", "{\"endpoint\": 3}",
        "{\"endpoint\": \"e\", \"model\": \"m\", \"nodes\": []}",
        "{\"endpoint\": \"e\", \"model\": \"m\", \"nodes\": [1]}",
        /* a command without a program */
        ("{\"endpoint\": \"e\", \"model\": \"m\", \"nodes\": [{\"name\": \"n\", \"admin\": "
         "\"a\", \"log\": \"l\", \"pid\": 1, \"start_ticks\": 1, \"command\": []}]}"),
        "{\"endpoint\": \"e\", \"model\": \"m\", \"nodes\": [1, 2, 3, 4, 5]}"};
    char path[300];
    snprintf(path, sizeof path, "%s/cluster.json", kv_test_folder());
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(pages[i], file);
        fclose(file);
        kv_cluster_t cluster;
        kv_error_t error;
        assert_int_equal(kv_cluster_load(kv_test_folder(), &cluster, &error), KV_INVALID);
        assert_non_null(strstr(error.text, "cluster.json"));
    }
    assert_int_equal(remove(path), 0);
    kv_cluster_t cluster;
    assert_int_equal(kv_cluster_load(kv_test_folder(), &cluster, NULL), KV_MISSING);
}

static void test_plan_refuses(void **state)
{
    (void)state;
    static const char *const extras[] = {
        "--node.name=x", "--cluster.key=secret", "--gateway.http_port=1", "--nothing.such=1"};
    kv_cluster_t cluster;
    kv_error_t error;
    for (size_t i = 0; i < sizeof extras / sizeof *extras; i++) {
        const char *one[] = {extras[i]};
        kv_cluster_params_t params = {.extras = one, .extra_count = 1};
        assert_int_equal(kv_cluster_plan(&params, "/tmp", 0, &cluster, &error), KV_INVALID);
        assert_non_null(strstr(error.text, extras[i]));
    }
    char folder[120];
    memset(folder, 'x', sizeof folder);
    folder[0] = '/';
    folder[sizeof folder - 1] = '\0';
    kv_cluster_params_t params = {0};
    assert_int_equal(kv_cluster_plan(&params, folder, 0, &cluster, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "--dir"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_durations_and_times),
        cmocka_unit_test(test_arguments_taken),
        cmocka_unit_test(test_arguments_refused),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_child_lives_and_ends),
        cmocka_unit_test(test_child_of_another_life_is_left_alone),
        cmocka_unit_test(test_child_that_cannot_run),
        cmocka_unit_test(test_cluster_file_round_trip),
        cmocka_unit_test(test_cluster_file_damaged),
        cmocka_unit_test(test_plan_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
