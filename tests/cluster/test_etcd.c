/* etcd as a source of members, against an etcd that answers as the test wants. */
#include "base/clock.h"
#include "base/log.h"
#include "cluster/etcd.h"
#include "cluster/etcd_message.h"
#include "fake_etcd.h"

#include <signal.h>
#include <unistd.h>

static const char A[] = "{\"name\":\"a\",\"role\":\"prefill\",\"address\":\"10.0.0.1:1\"}";
static const char B[] = "{\"name\":\"b\",\"role\":\"decode\",\"address\":\"10.0.0.2:1\"}";

typedef struct {
    char log[512]; /* "+name " and "-name " */
} told_t;

static void came(void *context, const kv_member_t *member)
{
    told_t *told = context;
    size_t used = strlen(told->log);
    snprintf(told->log + used, sizeof told->log - used, "+%s ", member->name);
}

static void went(void *context, const kv_member_t *member)
{
    told_t *told = context;
    size_t used = strlen(told->log);
    snprintf(told->log + used, sizeof told->log - used, "-%s ", member->name);
}

static kv_etcd_t *open_client(
    uv_loop_t *loop, told_t *told, bool registers, const uint16_t *ports, uint32_t port_count)
{
    kv_member_t self = {
        .name = "me", .role = KVIST__WIRE__ROLE__ROLE_DECODE, .address = "10.0.0.9:9"};
    char urls[4][64];
    const char *endpoints[4];
    for (uint32_t i = 0; i < port_count; i++) {
        snprintf(urls[i], sizeof urls[i], "http://127.0.0.1:%u", ports[i]);
        endpoints[i] = urls[i];
    }
    kv_etcd_params_t params = {
        .loop = loop,
        .endpoints = endpoints,
        .endpoint_count = port_count,
        .prefix = "/k",
        .cluster = "c",
        .ttl_ns = 2 * (uint64_t)KV_NS_PER_S,
        .name = "me",
        .self = registers ? &self : NULL,
        .callbacks = {told, came, went},
    };
    kv_etcd_t *client;
    assert_int_equal(kv_etcd_open(&params, &client, NULL), KV_OK);
    return client;
}

static bool run_until(uv_loop_t *loop, bool (*done)(void *context), void *context, int limit_ms)
{
    uint64_t end_ns = kv_clock_now_ns() + (uint64_t)limit_ms * KV_NS_PER_MS;
    while (!done(context) && kv_clock_now_ns() < end_ns) {
        uv_run(loop, UV_RUN_NOWAIT);
        usleep(500);
    }
    return done(context);
}

static bool never(void *context)
{
    (void)context;
    return false;
}

static bool is_up(void *client)
{
    return kv_etcd_is_up(client);
}

typedef struct {
    const told_t *told;
    const char *text;
} wanted_t;

static bool is_told(void *context)
{
    const wanted_t *wanted = context;
    return strcmp(wanted->told->log, wanted->text) == 0;
}

static void expect(uv_loop_t *loop, told_t *told, const char *text)
{
    wanted_t wanted = {told, text};
    if (!run_until(loop, is_told, &wanted, 3000)) {
        fail_msg("told '%s', not '%s'", told->log, text);
    }
    told->log[0] = '\0';
}

typedef struct {
    const int *value;
    int least;
} reached_t;

static bool has_reached(void *context)
{
    const reached_t *reached = context;
    return *reached->value >= reached->least;
}

static bool counts_to(uv_loop_t *loop, const int *value, int least, int limit_ms)
{
    return run_until(loop, has_reached, &(reached_t){value, least}, limit_ms);
}

static void close_loop(uv_loop_t *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(loop), 0);
}

/* ---- the bytes ---- */

static void bodies_are_as_etcd_wants_them(void **state)
{
    (void)state;
    char *bodies[] = {kv_etcd_grant(10), kv_etcd_lease(INT64_C(7587848390)),
        kv_etcd_put("/k/n", "{}", 5), kv_etcd_range("/k/"), kv_etcd_watch("/k/", 12)};
    static const char *const EXPECTED[] = {"{\"TTL\":\"10\"}", "{\"ID\":\"7587848390\"}",
        "{\"key\":\"L2svbg==\",\"value\":\"e30=\",\"lease\":\"5\"}",
        "{\"key\":\"L2sv\",\"range_end\":\"L2sw\",\"limit\":\"1024\"}",
        ("{\"create_request\":{\"key\":\"L2sv\",\"range_end\":\"L2sw\",\"start_revision\":\"12\","
         "\"progress_notify\":true}}")};
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        assert_string_equal(bodies[i], EXPECTED[i]);
        free(bodies[i]);
    }
}

static void count_entry(void *context, const kv_etcd_entry_t *entry)
{
    assert_int_equal(strlen(entry->key), 3);
    ++*(int *)context;
}

/* Entries that are none are passed over, the others told; nothing is read past its end. */
static void entries_are_checked_one_by_one(void **state)
{
    (void)state;
    static const char LIST[] =
        "{\"header\":{\"revision\":\"4\"},\"kvs\":[1,null,{},{\"key\":5},{\"key\":\"\"},"
        "{\"key\":\"L2s\"},{\"key\":\"L2s=====\"},{\"key\":\"=L2sv\"},"
        "{\"key\":\"AAAA\"},{\"key\":\"L2sv\",\"value\":\"!!!!\"},{\"key\":\"L2sv\"}],"
        "\"more\":true}";
    int count = 0;
    int64_t revision = 0;
    bool more = false;
    kv_error_t error;
    assert_int_equal(
        kv_etcd_read_range(LIST, strlen(LIST), count_entry, &count, &revision, &more, &error),
        KV_OK);
    assert_int_equal(count, 2);
    assert_int_equal(revision, 4);
    assert_true(more);
    for (size_t bytes = 0; bytes < strlen(LIST); bytes++) {
        char *part = malloc(bytes + 1); /* so that a read past the end is seen */
        memcpy(part, LIST, bytes);
        assert_int_not_equal(
            kv_etcd_read_range(part, bytes, count_entry, &count, &revision, &more, &error), KV_OK);
        free(part);
    }
    bool created = false;
    static const char GONE[] = "{\"result\":{\"canceled\":true,\"compact_revision\":\"7\"}}";
    assert_int_equal(kv_etcd_read_watch(GONE, strlen(GONE), count_entry, &count, &created, &error),
        KV_CANCELLED);
    assert_non_null(strstr(error.text, "compacted"));
    static const char ERROR[] = "{\"error\":{\"grpc_code\":5,\"message\":\"lease not found\"}}";
    assert_int_equal(
        kv_etcd_read_watch(ERROR, strlen(ERROR), count_entry, &count, &created, &error),
        KV_MISSING);
    assert_string_equal(error.text, "lease not found");
}

/* ---- a good etcd ---- */

static void a_node_registers_and_follows(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    fake_etcd_t etcd;
    told_t told = {""};
    fake_open(&etcd, &loop);
    fake_set(&etcd, "/k/c/nodes/a", A);
    fake_set(&etcd, "/k/c/nodes/bad", "{}");
    fake_set(&etcd, "/k/c/nodes/", "{}");
    kv_etcd_t *client = open_client(&loop, &told, true, &etcd.port, 1);
    assert_true(run_until(&loop, is_up, client, 2000));
    expect(&loop, &told, "+a ");
    char key[64], value[512];
    fake_encode("/k/c/nodes/me", key);
    fake_encode(
        "{\"name\":\"me\",\"role\":\"decode\",\"address\":\"10.0.0.9:9\",\"version\":\"\"}", value);
    assert_string_equal(etcd.value[fake_find(&etcd, key)], value);
    char from[64];
    snprintf(from, sizeof from, "\"start_revision\":\"%ld\"", etcd.revision + 1);
    assert_non_null(strstr(etcd.watch_body, from)); /* nothing falls between list and watch */

    fake_set(&etcd, "/k/c/nodes/b", B);
    fake_set(&etcd, "/k/c/nodes/a", NULL);
    fake_set(&etcd, "/other/b", NULL);
    expect(&loop, &told, "+b -a ");
    assert_true(counts_to(&loop, &etcd.counts[FAKE_KEEPALIVE], 2, 3000));
    assert_int_equal(etcd.counts[FAKE_GRANT], 1);

    kv_etcd_leave(client);
    assert_true(counts_to(&loop, &etcd.counts[FAKE_REVOKE], 1, 1000));
    fake_set(&etcd, "/k/c/nodes/a", A);
    run_until(&loop, never, NULL, 300);
    assert_string_equal(told.log, ""); /* it follows no more */
    kv_etcd_close(client);
    fake_close(&etcd);
    close_loop(&loop);
}

static void a_lost_lease_or_key_is_registered_again(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    fake_etcd_t etcd;
    told_t told = {""};
    fake_open(&etcd, &loop);
    kv_etcd_t *client = open_client(&loop, &told, true, &etcd.port, 1);
    assert_true(run_until(&loop, is_up, client, 2000));
    etcd.lease_is_dead = true;
    assert_true(counts_to(&loop, &etcd.counts[FAKE_PUT], 2, 3000));
    assert_int_equal(etcd.counts[FAKE_GRANT], 2);
    fake_set(&etcd, "/k/c/nodes/me", NULL);
    assert_true(counts_to(&loop, &etcd.counts[FAKE_PUT], 3, 1000));
    run_until(&loop, never, NULL, 100);
    assert_true(kv_etcd_is_up(client));
    assert_int_equal(etcd.counts[FAKE_WATCH], 1); /* what is followed was not disturbed */
    /* The put finds that the lease has just ended, again and again: not without a pause. */
    etcd.wrong[FAKE_PUT] =
        "HTTP/1.1 404 Not Found\r\nContent-Length: 67\r\n\r\n"
        "{\"error\":\"etcdserver: requested lease not found\",\"code\":5,\"x\":12345}";
    fake_set(&etcd, "/k/c/nodes/me", NULL);
    assert_true(counts_to(&loop, &etcd.counts[FAKE_GRANT], 5, 3000));
    assert_true(etcd.counts[FAKE_PUT] < 10);
    etcd.wrong[FAKE_PUT] = NULL;
    assert_true(run_until(&loop, is_up, client, 3000));
    kv_etcd_close(client);
    fake_close(&etcd);
    close_loop(&loop);
}

static void a_watch_that_ends_is_begun_anew(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    fake_etcd_t etcd;
    told_t told = {""};
    fake_open(&etcd, &loop);
    fake_set(&etcd, "/k/c/nodes/a", A);
    kv_etcd_t *client = open_client(&loop, &told, false, &etcd.port, 1);
    assert_true(run_until(&loop, is_up, client, 2000));
    expect(&loop, &told, "+a ");
    assert_int_equal(etcd.counts[FAKE_GRANT] + etcd.counts[FAKE_PUT], 0); /* it only reads */
    /* Compaction: what changed meanwhile is in the list that follows. */
    memset(etcd.key, 0, sizeof etcd.key);
    char key[64], value[256];
    fake_encode("/k/c/nodes/b", key);
    fake_encode(B, value);
    snprintf(etcd.key[0], sizeof etcd.key[0], "%s", key);
    snprintf(etcd.value[0], sizeof etcd.value[0], "%s", value);
    fake_stream(&etcd, "{\"result\":{\"canceled\":true,\"compact_revision\":\"12\"}}");
    expect(&loop, &told, "+b -a ");
    /* The connection breaks: nobody goes. */
    assert_true(counts_to(&loop, &etcd.counts[FAKE_WATCH], 2, 2000));
    fake_cut(&etcd);
    assert_true(counts_to(&loop, &etcd.counts[FAKE_WATCH], 3, 2000));
    assert_true(run_until(&loop, is_up, client, 2000));
    assert_string_equal(told.log, "");
    kv_etcd_close(client);
    fake_close(&etcd);
    close_loop(&loop);
}

static void endpoints_are_tried_in_turn(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    fake_etcd_t silent, dead, good;
    told_t told = {""};
    fake_open(&silent, &loop);
    fake_open(&dead, &loop);
    fake_open(&good, &loop);
    fake_close(&dead);
    silent.wrong[FAKE_RANGE] = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"; /* and no more */
    fake_set(&good, "/k/c/nodes/a", A);
    uint16_t ports[] = {dead.port, silent.port, good.port};
    kv_etcd_t *client = open_client(&loop, &told, true, ports, 3);
    assert_true(run_until(&loop, is_up, client, 6000)); /* a call has 3 s */
    expect(&loop, &told, "+a ");
    assert_int_equal(silent.counts[FAKE_RANGE], 1);
    fake_close(&good);
    assert_true(counts_to(&loop, &silent.counts[FAKE_RANGE], 2, 4000)); /* round again */
    kv_etcd_close(client);
    fake_close(&silent);
    close_loop(&loop);
}

/* ---- a bad one ---- */

#define SAYS(code, body) "HTTP/1.1 " code "\r\nConnection: close\r\n\r\n" body

static const char *const WRONG[] = {
    "", /* closed */
    "rubbish\r\n\r\n", SAYS("200 OK", "not json"), SAYS("200 OK", "[]\n"), SAYS("200 OK", "{}\n"),
    SAYS("200 OK", "{\"result\":7,\"ID\":[],\"TTL\":\"-5\",\"kvs\":{},\"header\":3}\n"),
    SAYS("200 OK", "{\"ID\":\"0\",\"header\":{\"revision\":\"-1\"}}\n"),
    SAYS("200 OK", "{\"error\":{\"grpc_code\":14,\"message\":\"no leader\"}}\n"),
    SAYS("500 Internal Server Error", "{\"error\":\"etcdserver: no leader\",\"code\":14}"),
    SAYS("404 Not Found", "404 page not found"),
    SAYS("404 Not Found", "{\"error\":\"etcdserver: requested lease not found\",\"code\":5}"),
    SAYS("301 Moved", ""),
    "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{\"ID\":\"1\"", /* then silence */
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    NULL, /* too much, made by the test */
};

enum { WRONG_COUNT = sizeof WRONG / sizeof WRONG[0], STEP_COUNT = FAKE_WATCH + 1 };

typedef struct {
    fake_etcd_t etcd;
    told_t told;
    kv_etcd_t *client;
} trial_t;

static bool all_up(void *context)
{
    trial_t *trials = context;
    bool up = true;
    for (int i = 0; i < STEP_COUNT * WRONG_COUNT; i++) {
        up = up && kv_etcd_is_up(trials[i].client);
    }
    return up;
}

static bool all_asked(void *context)
{
    trial_t *trials = context;
    bool asked = true;
    for (int i = 0; i < STEP_COUNT * WRONG_COUNT; i++) {
        asked = asked && trials[i].etcd.counts[i / WRONG_COUNT] > 0;
    }
    return asked;
}

/* Each call answered in each wrong way, for a while, each with a client of its own; afterwards all
 * are well, and have told of the member once. */
static void any_wrong_answer_is_survived(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    trial_t *trials = calloc(STEP_COUNT * WRONG_COUNT, sizeof *trials);
    enum { LARGE_BYTES = 5 << 20 };
    char *large = malloc(LARGE_BYTES);
    int head = sprintf(large, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", LARGE_BYTES);
    memset(large + head, ' ', (size_t)(LARGE_BYTES - head - 1));
    large[LARGE_BYTES - 1] = '\0';
    for (int i = 0; i < STEP_COUNT * WRONG_COUNT; i++) {
        const char *wrong = WRONG[i % WRONG_COUNT];
        fake_open(&trials[i].etcd, &loop);
        fake_set(&trials[i].etcd, "/k/c/nodes/a", A);
        trials[i].etcd.wrong[i / WRONG_COUNT] = wrong != NULL ? wrong : large;
        trials[i].client = open_client(&loop, &trials[i].told, true, &trials[i].etcd.port, 1);
    }
    assert_true(run_until(&loop, all_asked, trials, 10000));
    run_until(&loop, never, NULL, 800);
    for (int i = 0; i < STEP_COUNT * WRONG_COUNT; i++) {
        assert_true(trials[i].etcd.counts[i / WRONG_COUNT] < 20); /* not without pause */
        trials[i].etcd.wrong[i / WRONG_COUNT] = NULL;
    }
    if (!run_until(&loop, all_up, trials, 15000)) {
        for (int i = 0; i < STEP_COUNT * WRONG_COUNT; i++) {
            if (!kv_etcd_is_up(trials[i].client)) {
                print_message(
                    "%s: wrong answer %d\n", FAKE_PATHS[i / WRONG_COUNT], i % WRONG_COUNT);
            }
        }
        fail_msg("not all came up");
    }
    for (int i = 0; i < STEP_COUNT * WRONG_COUNT; i++) {
        assert_string_equal(trials[i].told.log, "+a ");
        kv_etcd_close(trials[i].client);
        fake_close(&trials[i].etcd);
    }
    close_loop(&loop);
    free(large);
    free(trials);
}

/* Closed after any number of turns: nothing is left behind (LeakSanitizer looks). */
static void it_can_be_closed_at_any_time(void **state)
{
    (void)state;
    for (int turns = 0; turns < 40; turns++) {
        uv_loop_t loop;
        uv_loop_init(&loop);
        fake_etcd_t etcd;
        told_t told = {""};
        fake_open(&etcd, &loop);
        kv_etcd_t *client = open_client(&loop, &told, true, &etcd.port, 1);
        for (int i = 0; i < turns; i++) {
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        if (turns % 2 == 1) {
            kv_etcd_leave(client);
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        kv_etcd_close(client);
        fake_close(&etcd);
        close_loop(&loop);
    }
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* as the reactor does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bodies_are_as_etcd_wants_them),
        cmocka_unit_test(entries_are_checked_one_by_one),
        cmocka_unit_test(a_node_registers_and_follows),
        cmocka_unit_test(a_lost_lease_or_key_is_registered_again),
        cmocka_unit_test(a_watch_that_ends_is_begun_anew),
        cmocka_unit_test(endpoints_are_tried_in_turn),
        cmocka_unit_test(any_wrong_answer_is_survived),
        cmocka_unit_test(it_can_be_closed_at_any_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
