/* cachedContents under a virtual clock: the limit, whatever was read; its move; tenants apart; what
 * a restart finds; token-hours. */
#include "testing/testing.h"

#include "base/memory.h"
#include "base/metrics.h"
#include "gateway/gemini/contents.h"
#include "gateway/gemini/times.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t START = 1795000000ULL * KV_NS_PER_S;
static const uint64_t SECOND = KV_NS_PER_S;
static const uint64_t HOUR = 3600ULL * KV_NS_PER_S;

#define DOCUMENT "{\"contents\":[{\"parts\":[{\"text\":\"a long text\"}]}]}"

typedef struct {
    kv_virtual_clock_t clock;
    kv_contents_t *contents;
    char folder[512];
} bench_t;

static void open_bench(bench_t *bench, const char *directory, uint32_t count_max)
{
    kv_error_t error;
    const kv_contents_params_t params = {.clock = &bench->clock.clock,
        .directory = directory,
        .count_max = count_max,
        .bytes_max = 4096};
    if (kv_contents_open(&params, &bench->contents, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
}

static bench_t *make_bench(const char *name)
{
    bench_t *bench = kv_allocate(sizeof *bench);
    kv_virtual_clock_init(&bench->clock, START);
    if (name != NULL) {
        snprintf(bench->folder, sizeof bench->folder, "%s/%s/deep", kv_test_folder(), name);
    }
    open_bench(bench, bench->folder, 16);
    return bench;
}

static void reopen(bench_t *bench)
{
    kv_contents_close(bench->contents);
    open_bench(bench, bench->folder, 16);
}

static void end_bench(bench_t *bench)
{
    kv_contents_close(bench->contents);
    free(bench);
}

static kv_status_t draft(
    bench_t *bench, const char *tenant, uint64_t ttl_ns, kv_content_draft_t **draft_out)
{
    kv_error_t error;
    kv_content_t content = {.model = "tiny",
        .display_name = "the \"name\" \xc3\xa9",
        .expires_unix_ns = kv_contents_now_unix_ns(bench->contents) + ttl_ns};
    return kv_content_draft(
        bench->contents, tenant, &content, DOCUMENT, strlen(DOCUMENT), draft_out, &error);
}

static kv_content_t add(bench_t *bench, const char *tenant, uint64_t ttl_ns, uint32_t tokens)
{
    kv_content_draft_t *made;
    kv_content_t content;
    kv_error_t error;
    assert_int_equal(draft(bench, tenant, ttl_ns, &made), KV_OK);
    assert_int_equal(kv_content_commit(made, tokens, &content, &error), KV_OK);
    return content;
}

static kv_status_t get(bench_t *bench, const char *tenant, const kv_content_t *content)
{
    kv_content_t found;
    return kv_contents_get(bench->contents, tenant, content->id, &found, NULL, NULL);
}

static kv_status_t expire_at(bench_t *bench, const char *tenant, const kv_content_t *content,
    uint64_t expires_unix_ns, kv_content_t *moved_out)
{
    kv_error_t error;
    return kv_contents_expire_at(
        bench->contents, tenant, content->id, expires_unix_ns, moved_out, &error);
}

static kv_status_t remove_content(bench_t *bench, const char *tenant, const kv_content_t *content)
{
    kv_error_t error;
    return kv_contents_remove(bench->contents, tenant, content->id, &error);
}

static size_t count_files(const char *folder)
{
    DIR *files = opendir(folder);
    size_t count = 0;
    assert_non_null(files);
    for (struct dirent *file; (file = readdir(files)) != NULL;) {
        count += file->d_name[0] != '.' && strcmp(file->d_name, "lock") != 0;
    }
    closedir(files);
    return count;
}

static void test_limit(void **state)
{
    (void)state;
    bench_t *bench = make_bench("limit");
    kv_content_t content = add(bench, "a", HOUR, 100);
    assert_int_equal(strlen(content.id), KV_CONTENT_ID_BYTES);
    assert_int_equal(count_files(bench->folder), 2);
    /* Read all the time: it ends when it ends. */
    for (int minute = 0; minute < 59; minute++) {
        kv_virtual_clock_advance(&bench->clock, 60 * SECOND);
        assert_int_equal(get(bench, "a", &content), KV_OK);
    }
    kv_virtual_clock_advance(&bench->clock, 60 * SECOND - 1);
    assert_int_equal(get(bench, "a", &content), KV_OK);
    kv_virtual_clock_advance(&bench->clock, 1);
    assert_int_equal(get(bench, "a", &content), KV_MISSING);
    /* Its files go where somebody may wait for the disk. */
    assert_int_equal(count_files(bench->folder), 2);
    assert_true(kv_contents_sweep(bench->contents));
    kv_contents_clean(bench->contents);
    assert_false(kv_contents_sweep(bench->contents));
    assert_int_equal(count_files(bench->folder), 0);
    end_bench(bench);
}

/* Neither a new time nor the end of a content is told before it is on the disk. */
static void test_disk_fails(void **state)
{
    (void)state;
    bench_t *bench = make_bench("fails");
    kv_content_t content = add(bench, "a", HOUR, 100), moved, found;
    kv_content_draft_t *made;
    kv_error_t error;
    char elsewhere[600];
    assert_int_equal(draft(bench, "a", HOUR, &made), KV_OK);
    snprintf(elsewhere, sizeof elsewhere, "%s-moved", bench->folder);
    assert_int_equal(rename(bench->folder, elsewhere), 0);
    assert_int_not_equal(expire_at(bench, "a", &content, START + 2 * HOUR, &moved), KV_OK);
    assert_int_equal(kv_contents_get(bench->contents, "a", content.id, &found, NULL, NULL), KV_OK);
    assert_true(found.expires_unix_ns == content.expires_unix_ns);
    assert_int_not_equal(kv_content_commit(made, 5, &moved, &error), KV_OK);
    assert_non_null(strstr(error.text, "cannot write"));
    assert_int_equal(rename(elsewhere, bench->folder), 0);
    assert_int_equal(expire_at(bench, "a", &content, START + 2 * HOUR, &moved), KV_OK);
    assert_int_equal(remove_content(bench, "a", &content), KV_OK);
    assert_int_equal(count_files(bench->folder), 0); /* and with it those of the draft */
    end_bench(bench);
}

static void test_moved(void **state)
{
    (void)state;
    bench_t *bench = make_bench("moved");
    kv_content_t content = add(bench, "a", HOUR, 100), moved;
    kv_virtual_clock_advance(&bench->clock, HOUR / 2);
    uint64_t later = START + 2 * HOUR;
    assert_int_equal(expire_at(bench, "b", &content, later, &moved), KV_MISSING);
    assert_int_equal(expire_at(bench, "a", &content, later, &moved), KV_OK);
    assert_true(moved.expires_unix_ns == later);
    assert_true(moved.updated_unix_ns == START + HOUR / 2);
    assert_true(moved.created_unix_ns == content.created_unix_ns);
    kv_virtual_clock_advance(&bench->clock, HOUR);
    assert_int_equal(get(bench, "a", &content), KV_OK);
    reopen(bench); /* the new time too survives */
    assert_int_equal(get(bench, "a", &content), KV_OK);
    /* And earlier again. */
    assert_int_equal(expire_at(bench, "a", &content, START + 3 * HOUR / 2 + SECOND, &moved), KV_OK);
    kv_virtual_clock_advance(&bench->clock, SECOND);
    assert_int_equal(get(bench, "a", &content), KV_MISSING);
    assert_int_equal(expire_at(bench, "a", &content, later, &moved), KV_MISSING);
    end_bench(bench);
}

static void test_tenants_apart(void **state)
{
    (void)state;
    bench_t *bench = make_bench(NULL);
    kv_content_t of_a = add(bench, "a", HOUR, 1), of_b = add(bench, "b", HOUR, 2), page[4];
    char token[KV_CONTENTS_TOKEN_BYTES];
    size_t count;
    assert_int_equal(get(bench, "a", &of_b), KV_MISSING);
    assert_int_equal(get(bench, "", &of_a), KV_MISSING);
    assert_int_equal(remove_content(bench, "b", &of_a), KV_MISSING);
    assert_int_equal(get(bench, "a", &of_a), KV_OK);
    assert_int_equal(kv_contents_list(bench->contents, "b", "", 4, page, &count, token), KV_OK);
    assert_int_equal(count, 1);
    assert_string_equal(page[0].id, of_b.id);
    assert_string_equal(token, "");
    assert_int_equal(remove_content(bench, "a", &of_a), KV_OK);
    assert_int_equal(get(bench, "a", &of_a), KV_MISSING);
    assert_int_equal(remove_content(bench, "a", &of_a), KV_MISSING);
    end_bench(bench);
}

static void test_pages(void **state)
{
    (void)state;
    bench_t *bench = make_bench(NULL);
    kv_content_t made[5], page[2];
    char token[KV_CONTENTS_TOKEN_BYTES] = "", next[KV_CONTENTS_TOKEN_BYTES];
    size_t count, seen = 0;
    for (uint32_t i = 0; i < 5; i++) {
        made[i] = add(bench, "", HOUR, i);
        kv_virtual_clock_advance(&bench->clock, SECOND);
    }
    do {
        assert_int_equal(
            kv_contents_list(bench->contents, "", token, 2, page, &count, next), KV_OK);
        for (size_t i = 0; i < count; i++) {
            assert_string_equal(page[i].id, made[seen++].id);
        }
        /* What the token names may go meanwhile. */
        assert_int_equal(remove_content(bench, "", &page[count - 1]), KV_OK);
        memcpy(token, next, sizeof token);
    } while (token[0] != '\0');
    assert_int_equal(seen, 5);
    assert_int_equal(
        kv_contents_list(bench->contents, "", "nonsense", 2, page, &count, next), KV_INVALID);
    memset(token, 'z', sizeof token - 1);
    assert_int_equal(
        kv_contents_list(bench->contents, "", token, 2, page, &count, next), KV_INVALID);
    end_bench(bench);
}

static void test_restart(void **state)
{
    (void)state;
    bench_t *bench = make_bench("restart");
    kv_content_t kept = add(bench, "a", 2 * HOUR, 7), brief = add(bench, "a", HOUR, 8), found;
    kv_content_draft_t *pending;
    char *document, path[640];
    size_t bytes;
    kv_error_t error;
    assert_int_equal(draft(bench, "a", HOUR, &pending), KV_OK);
    assert_int_equal(count_files(bench->folder), 5);
    /* Another process finds the folder in use. */
    kv_contents_t *second;
    const kv_contents_params_t params = {.clock = &bench->clock.clock,
        .directory = bench->folder,
        .count_max = 4,
        .bytes_max = 4096};
    assert_int_equal(kv_contents_open(&params, &second, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "gateway.contents_directory"));

    /* What a killed process leaves: the draft's document. */
    char orphan[640], copy[640];
    snprintf(orphan, sizeof orphan, "%s/aaaaaaaaaaaaaaaa.document", bench->folder);
    snprintf(copy, sizeof copy, "%s/aaaaaaaaaaaaaaaa.new", bench->folder);
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(i == 0 ? orphan : copy, "w");
        assert_non_null(file);
        fclose(file);
    }
    kv_content_discard(pending);
    kv_virtual_clock_advance(&bench->clock, HOUR);
    reopen(bench);
    assert_int_equal(count_files(bench->folder), 2);
    assert_int_equal(get(bench, "a", &brief), KV_MISSING);
    assert_int_equal(
        kv_contents_get(bench->contents, "a", kept.id, &found, &document, &bytes), KV_OK);
    assert_int_equal(bytes, strlen(DOCUMENT));
    assert_memory_equal(document, DOCUMENT, bytes);
    free(document);
    assert_string_equal(found.display_name, kept.display_name);
    assert_string_equal(found.model, "tiny");
    assert_int_equal(found.token_count, 7);
    assert_true(found.created_unix_ns == kept.created_unix_ns &&
                found.expires_unix_ns == kept.expires_unix_ns);

    /* A flipped byte: gone, not served. */
    snprintf(path, sizeof path, "%s/%s.document", bench->folder, kept.id);
    kv_contents_close(bench->contents);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fseek(file, 20, SEEK_SET), 0);
    fputc('#', file);
    fclose(file);
    open_bench(bench, bench->folder, 16);
    assert_int_equal(get(bench, "a", &kept), KV_MISSING);
    assert_int_equal(count_files(bench->folder), 0);
    end_bench(bench);
}

/* A pipe would be waited for by who opens it. */
static void test_a_pipe_instead(void **state)
{
    (void)state;
    bench_t *bench = make_bench("pipe");
    kv_content_t content = add(bench, "a", HOUR, 7);
    char path[640];
    snprintf(path, sizeof path, "%s/%s.content", bench->folder, content.id);
    kv_contents_close(bench->contents);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    open_bench(bench, bench->folder, 16);
    assert_int_equal(get(bench, "a", &content), KV_MISSING);
    assert_int_equal(count_files(bench->folder), 0);
    end_bench(bench);
}

static void test_damaged_head(void **state)
{
    (void)state;
    for (long at = 0; at < 60; at += 7) {
        bench_t *bench = make_bench("damaged");
        kv_content_t content = add(bench, "a", HOUR, 7);
        char path[640];
        snprintf(path, sizeof path, "%s/%s.content", bench->folder, content.id);
        kv_contents_close(bench->contents);
        FILE *file = fopen(path, "r+");
        assert_non_null(file);
        assert_int_equal(fseek(file, at, SEEK_SET), 0);
        int byte = fgetc(file);
        assert_int_equal(fseek(file, at, SEEK_SET), 0);
        fputc(byte ^ 1, file);
        fclose(file);
        open_bench(bench, bench->folder, 16);
        assert_int_equal(get(bench, "a", &content), KV_MISSING);
        assert_int_equal(count_files(bench->folder), 0);
        end_bench(bench);
    }
}

static void test_draft(void **state)
{
    (void)state;
    bench_t *bench = make_bench("draft");
    kv_content_draft_t *made;
    kv_content_t content, page[2];
    kv_error_t error;
    char token[KV_CONTENTS_TOKEN_BYTES];
    size_t count;
    /* Not there before it is committed, nor after it was thrown away. */
    assert_int_equal(draft(bench, "a", HOUR, &made), KV_OK);
    assert_int_equal(kv_contents_list(bench->contents, "a", "", 2, page, &count, token), KV_OK);
    assert_int_equal(count, 0);
    kv_content_discard(made);
    kv_contents_clean(bench->contents);
    assert_int_equal(count_files(bench->folder), 0);
    /* Over before it was computed. */
    assert_int_equal(draft(bench, "a", SECOND, &made), KV_OK);
    kv_virtual_clock_advance(&bench->clock, SECOND);
    assert_int_equal(kv_content_commit(made, 5, &content, &error), KV_MISSING);
    kv_contents_clean(bench->contents);
    assert_int_equal(count_files(bench->folder), 0);
    kv_content_discard(NULL);
    end_bench(bench);
}

static void test_room(void **state)
{
    (void)state;
    bench_t *bench = make_bench(NULL);
    kv_content_draft_t *made[4], *more;
    /* A named tenant has a quarter of the 16. */
    for (int i = 0; i < 4; i++) {
        assert_int_equal(draft(bench, "a", HOUR, &made[i]), KV_OK);
    }
    assert_int_equal(draft(bench, "a", HOUR, &more), KV_NO_SPACE);
    assert_int_equal(draft(bench, "b", HOUR, &more), KV_OK);
    kv_content_discard(more);
    kv_content_discard(made[0]);
    assert_int_equal(draft(bench, "a", HOUR, &made[0]), KV_OK);
    for (int i = 0; i < 4; i++) {
        kv_content_discard(made[i]);
    }
    /* And of the bytes. */
    static char large[1100];
    kv_error_t error;
    kv_content_t content = {.model = "tiny", .expires_unix_ns = START + HOUR};
    memset(large, ' ', sizeof large);
    assert_int_equal(
        kv_content_draft(bench->contents, "a", &content, large, sizeof large, &more, &error),
        KV_NO_SPACE);
    assert_int_equal(
        kv_content_draft(bench->contents, "", &content, large, sizeof large, &more, &error), KV_OK);
    kv_content_discard(more);
    end_bench(bench);
}

static double hours_metric(const char *labels)
{
    return kv_metric_value(
        kv_metric_counter("kvist_gateway_content_token_hours_total", labels, ""));
}

static void test_token_hours(void **state)
{
    (void)state;
    bench_t *bench = make_bench(NULL);
    double before = hours_metric("tenant=\"hours\"");
    kv_content_t first = add(bench, "hours", HOUR, 1000);
    add(bench, "other", HOUR, 5000);
    kv_virtual_clock_advance(&bench->clock, HOUR / 2);
    kv_contents_account_t sums = kv_contents_account(bench->contents, "hours");
    assert_true(sums.token_hours > 499.99 && sums.token_hours < 500.01);
    assert_int_equal(sums.token_count, 1000);
    assert_int_equal(sums.content_count, 1);
    kv_content_t second = add(bench, "hours", HOUR, 200);
    /* Deleted after a quarter of an hour; the other runs out after half, counted to its end. */
    kv_virtual_clock_advance(&bench->clock, HOUR / 4);
    assert_int_equal(remove_content(bench, "hours", &second), KV_OK);
    kv_virtual_clock_advance(&bench->clock, 10 * HOUR);
    kv_contents_sweep(bench->contents);
    assert_int_equal(get(bench, "hours", &first), KV_MISSING);
    sums = kv_contents_account(bench->contents, "hours");
    assert_true(sums.token_hours > 1049.99 && sums.token_hours < 1050.01);
    assert_int_equal(sums.token_count, 0);
    assert_int_equal(sums.document_bytes, 0);
    double counted = hours_metric("tenant=\"hours\"") - before;
    assert_true(counted > 1049.99 && counted < 1050.01);
    end_bench(bench);
}

enum { THREADS = 4, ROUNDS = 40 };

/* What a parse thread and the reactor do, all at once; each has a tenant of its own. */
static void *work(void *argument)
{
    bench_t *bench = argument;
    static atomic_int next;
    char tenant[8], token[KV_CONTENTS_TOKEN_BYTES];
    kv_content_t page[4], moved;
    size_t count, wrong = 0;
    snprintf(tenant, sizeof tenant, "t%d", atomic_fetch_add(&next, 1));
    for (int i = 0; i < ROUNDS; i++) {
        kv_content_draft_t *made;
        kv_error_t error;
        wrong += draft(bench, tenant, HOUR, &made) != KV_OK;
        kv_contents_list(bench->contents, tenant, "", 4, page, &count, token);
        wrong += count != 0 || kv_content_commit(made, 1, &page[0], &error) != KV_OK;
        wrong += get(bench, tenant, &page[0]) != KV_OK;
        wrong += expire_at(bench, tenant, &page[0], START + 2 * HOUR, &moved) != KV_OK;
        if (kv_contents_sweep(bench->contents)) {
            kv_contents_clean(bench->contents);
        }
        wrong += remove_content(bench, tenant, &page[0]) != KV_OK;
    }
    return (void *)wrong;
}

static void test_threads(void **state)
{
    (void)state;
    bench_t *bench = make_bench("threads");
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, work, bench), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *wrong;
        assert_int_equal(pthread_join(threads[i], &wrong), 0);
        assert_null(wrong);
    }
    assert_int_equal(count_files(bench->folder), 0);
    end_bench(bench);
}

static void test_times(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t us; /* 0: refused */
        const char *again;
    } TIMES[] = {{"2014-10-02T15:01:23Z", 1412262083000000, "2014-10-02T15:01:23Z"},
        {"2014-10-02T15:01:23.045123456Z", 1412262083045123, "2014-10-02T15:01:23.045123Z"},
        {"2014-10-02T15:01:23.500+05:30", 1412242283500000, "2014-10-02T09:31:23.500Z"},
        {"2024-02-29t00:00:00-01:00", 1709168400000000, "2024-02-29T01:00:00Z"},
        {"2023-02-29T00:00:00Z", 0, NULL}, {"2014-13-02T15:01:23Z", 0, NULL},
        {"2014-10-02T24:01:23Z", 0, NULL}, {"2014-10-02T15:01:23", 0, NULL},
        {"2014-10-02T15:01:23.Z", 0, NULL}, {"2014-10-02T15:01:23.1234567890Z", 0, NULL},
        {"2014-10-02T15:01:23Zx", 0, NULL}, {"2014-10-02", 0, NULL}, {"", 0, NULL},
        {"1969-12-31T23:59:59Z", 0, NULL}, {"1970-01-01T00:00:00+01:00", 0, NULL},
        {"2100-01-01T00:00:00Z", 0, NULL}, {"99999-01-01T00:00:00Z", 0, NULL}};
    char text[KV_GEMINI_TIME_BYTES];
    for (size_t i = 0; i < sizeof TIMES / sizeof *TIMES; i++) {
        uint64_t ns = 0;
        bool good = kv_gemini_time_parse(TIMES[i].text, &ns);
        if (good != (TIMES[i].us != 0) || (good && ns != TIMES[i].us * KV_NS_PER_US)) {
            fail_msg("%s gave %d, %llu", TIMES[i].text, good, (unsigned long long)ns);
        }
        if (good) {
            kv_gemini_time_format(ns, text);
            assert_string_equal(text, TIMES[i].again);
        }
    }
    static const struct {
        const char *text;
        uint64_t ms;
        bool good;
    } DURATIONS[] = {{"3600s", 3600000, true}, {"0.5s", 500, true}, {"0s", 0, true},
        {"3.000000001s", 3000, true}, {"-1s", 0, false}, {"1", 0, false}, {"s", 0, false},
        {"1m", 0, false}, {"1.s", 0, false}, {"99999999999999999999s", 0, false},
        {"315360001s", 0, false}, {"1s ", 0, false}, {"", 0, false}};
    for (size_t i = 0; i < sizeof DURATIONS / sizeof *DURATIONS; i++) {
        uint64_t ns = 0;
        bool good = kv_gemini_duration_parse(DURATIONS[i].text, &ns);
        if (good != DURATIONS[i].good || ns != DURATIONS[i].ms * KV_NS_PER_MS) {
            fail_msg("%s gave %d, %llu", DURATIONS[i].text, good, (unsigned long long)ns);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_limit),
        cmocka_unit_test(test_disk_fails), cmocka_unit_test(test_moved),
        cmocka_unit_test(test_tenants_apart), cmocka_unit_test(test_pages),
        cmocka_unit_test(test_restart), cmocka_unit_test(test_a_pipe_instead),
        cmocka_unit_test(test_damaged_head), cmocka_unit_test(test_draft),
        cmocka_unit_test(test_room), cmocka_unit_test(test_token_hours),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_times)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
