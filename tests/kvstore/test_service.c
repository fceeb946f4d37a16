/* A host's store and what strangers and broken clients send it: each is told what is wrong, and
 * ends alone. */
#include "service_bench.h"

#include <sys/stat.h>
#include <sys/syscall.h>

enum { GOOD_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, STAGING_BYTES = 1 << 20 };

typedef struct {
    bench_t bench;
    served_t served;
} both_t;

static void begin(both_t *both, const char *name)
{
    bench_init(&both->bench, name, 4);
    bench_with_host(&both->bench, 64);
    served_init(&both->served, &both->bench.params);
    served_start(&both->served);
}

/* Nothing of any client is left. */
static void end(both_t *both)
{
    served_pause(&both->served);
    kv_service_stats_t stats = {.clients = 1};
    uint64_t end_ns = patience_ns();
    while (stats.clients + stats.mapped > 0 && kv_clock_now_ns() < end_ns) {
        struct pollfd ready = {.fd = kv_service_fd(both->served.service), .events = POLLIN};
        poll(&ready, 1, 20);
        kv_service_poll(both->served.service);
        kv_service_stats(both->served.service, &stats);
    }
    assert_int_equal(stats.clients, 0);
    assert_int_equal(stats.leases, 0);
    assert_int_equal(stats.mapped, 0);
    assert_int_equal(stats.staging_bytes, 0);
    served_end(&both->served);
    bench_end(&both->bench);
}

static void what_is_no_frame_ends_the_connection(void **state)
{
    (void)state;
    both_t both;
    begin(&both, "garbage");
    const struct {
        const char *bytes;
        size_t count;
        const char *words;
    } cases[] = {
        {"\0\0\0\0", 4, "a frame of 0 bytes"},
        {"\xff\xff\xff\xff", 4, "a frame of 4294967295 bytes"},
        {"\4\0\0\0\xff\xff\xff\xff", 8, "not a frame of kvist.store.Request"},
        {"\2\0\0\0\x1a\0", 6, "attach comes first"},
        {"GET / HTTP/1.1\r\n\r\n", 18, "a frame of"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        raw_t raw;
        raw_open(&raw, both.served.path);
        assert_int_equal(
            send(raw.channel.fd, cases[i].bytes, cases[i].count, 0), (ssize_t)cases[i].count);
        raw_expect_end(&raw, KV_INVALID, cases[i].words);
        raw_end(&raw);
    }
    end(&both);
}

static void expect_refused(both_t *both, const kvist_layout_t *layout, const char *domain, int fd,
    uint64_t said_bytes, kv_status_t status, const char *words)
{
    raw_t raw;
    raw_open(&raw, both->served.path);
    raw_attach(&raw, layout, domain, fd, said_bytes);
    raw_expect_end(&raw, status, words);
    raw_end(&raw);
    if (fd >= 0) {
        close(fd);
    }
}

static void staging_memory_must_be_sealed(void **state)
{
    (void)state;
    both_t both;
    begin(&both, "seals");
    const kvist_layout_t *layout = &both.bench.layout;
    expect_refused(&both, layout, "default", -1, STAGING_BYTES, KV_INVALID, "no descriptor");
    expect_refused(&both, layout, "default", raw_memory(STAGING_BYTES, F_SEAL_GROW, 0),
        STAGING_BYTES, KV_INVALID, "not sealed");
    expect_refused(&both, layout, "default",
        raw_memory(STAGING_BYTES, F_SEAL_SHRINK | F_SEAL_GROW, 0), STAGING_BYTES, KV_INVALID,
        "not sealed");
    expect_refused(&both, layout, "default", raw_memory(4096, GOOD_SEALS, 0), STAGING_BYTES,
        KV_INVALID, "4096 bytes, said to be 1048576");
    expect_refused(&both, layout, "default", raw_memory((size_t)512 << 20, GOOD_SEALS, 0),
        (size_t)512 << 20, KV_INVALID, "it must be 1 to 268435456");
    expect_refused(
        &both, layout, "default", raw_memory(0, GOOD_SEALS, 0), 0, KV_INVALID, "it must be 1 to");
    expect_refused(&both, layout, "default", open("/dev/zero", O_RDWR), STAGING_BYTES, KV_INVALID,
        "not a memfd");
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    close(pipes[1]);
    expect_refused(&both, layout, "default", pipes[0], STAGING_BYTES, KV_INVALID, "not a memfd");
    end(&both);
}

static void other_domains_layouts_and_versions_are_refused(void **state)
{
    (void)state;
    both_t both;
    begin(&both, "refused");
    raw_t first;
    raw_begin(&first, both.served.path, &both.bench.layout);
    expect_refused(&both, &both.bench.layout, "nobody", raw_memory(STAGING_BYTES, GOOD_SEALS, 0),
        STAGING_BYTES, KV_REFUSED, "domain");
    kvist_layout_t other = both.bench.layout;
    other.groups[0].parts[1].heads = 4;
    expect_refused(&both, &other, "default", raw_memory(STAGING_BYTES, GOOD_SEALS, 0),
        STAGING_BYTES, KV_REFUSED, "groups.parts.heads is 4, not 2");
    Kvist__Store__Attach attach = KVIST__STORE__ATTACH__INIT;
    attach.version = attach.version_min = 4;
    raw_t raw;
    raw_open(&raw, both.served.path);
    raw_send(&raw, KVIST__STORE__REQUEST__BODY_ATTACH, &attach, NULL, 0);
    raw_expect_end(&raw, KV_REFUSED, "the client speaks 4 to 4, this store 2 to 3");
    raw_end(&raw);
    raw_end(&first);
    end(&both);
}

/* ---- attached, and broken ---- */

static uint32_t tokens[64 * BLOCK_TOKENS];

static void match(raw_t *raw, both_t *both, uint32_t lease, uint32_t blocks)
{
    raw_match(raw, &both->bench, lease, 1, blocks, tokens);
}

static void numbers_out_of_bounds_end_the_client(void **state)
{
    (void)state;
    both_t both;
    begin(&both, "bounds");
    raw_t raw, other;
    raw_begin(&other, both.served.path, &both.bench.layout);
    match(&other, &both, 3, 4);
    raw_expect_matched(&other, 3, 0);
    for (int which = 0; which < 9; which++) {
        raw_begin(&raw, both.served.path, &both.bench.layout);
        match(&raw, &both, 0, 4);
        raw_expect_matched(&raw, 0, 0);
        Kvist__Store__Release release = KVIST__STORE__RELEASE__INIT;
        Kvist__Store__Load load = KVIST__STORE__LOAD__INIT;
        Kvist__Store__Put put = KVIST__STORE__PUT__INIT;
        uint64_t checksums[4] = {0};
        put.block_count = load.block_count = 4;
        put.checksums = (ProtobufCBinaryData){sizeof checksums, (uint8_t *)(void *)checksums};
        const char *words = "offset";
        switch (which) {
        case 0: /* another client's */
            release.lease = 3;
            words = "lease 3";
            break;
        case 1:
            release.lease = UINT32_MAX;
            words = "lease 4294967295";
            break;
        case 2:
            load.offset = 1;
            break;
        case 3:
            load.offset = (1 << 20) - 64;
            break;
        case 4:
            load.offset = UINT64_MAX - 63;
            break;
        case 5:
            load.block_count = KVIST_CHAIN_BLOCKS_MAX;
            break;
        case 6:
            load.group = 1;
            words = "group 1";
            break;
        case 7:
            put.offset = 1 << 20;
            break;
        case 8:
            put.checksums.len = 8;
            words = "checksums";
            break;
        }
        if (which < 2) {
            raw_send(&raw, KVIST__STORE__REQUEST__BODY_RELEASE, &release, NULL, 0);
        } else if (which < 7) {
            raw_send(&raw, KVIST__STORE__REQUEST__BODY_LOAD, &load, NULL, 0);
        } else {
            raw_send(&raw, KVIST__STORE__REQUEST__BODY_PUT, &put, NULL, 0);
        }
        raw_expect_end(&raw, KV_INVALID, words);
        raw_end(&raw);
    }
    match(&other, &both, 4, 4); /* which has noticed nothing */
    raw_expect_matched(&other, 4, 0);
    raw_end(&other);
    end(&both);
}

static void bytes_that_are_not_as_promised_are_not_stored(void **state)
{
    (void)state;
    both_t both;
    begin(&both, "promised");
    raw_t raw;
    raw_begin(&raw, both.served.path, &both.bench.layout);
    match(&raw, &both, 0, 4);
    raw_expect_matched(&raw, 0, 0);
    uint64_t checksums[4];
    raw_fill(&raw, &both.bench, tokens, 4, checksums);
    raw.staging[2 * 2048 + 77] ^= 1; /* block 2 */
    raw_put(&raw, 9, 0, 0, 4, checksums);
    raw_expect_done(&raw, 9, KV_CORRUPT, 2);
    match(&raw, &both, 1, 4);
    raw_expect_matched(&raw, 1, 2);
    raw_end(&raw);
    end(&both);
}

/* ---- other users ---- */

enum { OTHER_USER = 65534 };

/* Of this thread alone: the service's keeps its own. */
static void be_user(uid_t user)
{
    assert_int_equal(syscall(SYS_setresuid, -1, user, -1), 0);
}

/* Connects and attaches as another user. */
static void begin_as_other(raw_t *raw, both_t *both)
{
    raw_open(raw, both->served.path);
    raw->staging_fd = raw_memory(STAGING_BYTES, GOOD_SEALS, 0);
    raw_attach(raw, &both->bench.layout, "default", raw->staging_fd, STAGING_BYTES);
}

static void other_users_enter_their_domain_and_set_no_quota(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        skip(); /* nobody else can be had */
    }
    both_t both;
    raw_t raw;
    uid_t users[] = {OTHER_USER};
    bench_init(&both.bench, "users", 4);
    bench_with_host(&both.bench, 64);
    bench_with_disk(&both.bench, 8);
    served_init(&both.served, &both.bench.params);
    served_start(&both.served);
    assert_int_equal(chmod(kv_test_folder(), 0711), 0);
    assert_int_equal(chmod(both.served.path, 0666), 0);
    be_user(OTHER_USER);
    begin_as_other(&raw, &both);
    raw_expect_end(&raw, KV_REFUSED, "none of that name for user 65534");
    be_user(0);
    raw_end(&raw);
    served_end(&both.served);

    both.served.domain.users = users;
    both.served.domain.user_count = 1;
    served_start(&both.served);
    be_user(OTHER_USER);
    begin_as_other(&raw, &both); /* the socket lets users in now */
    be_user(0);
    Kvist__Store__Answer *answer = raw_receive(&raw);
    assert_non_null(answer);
    assert_int_equal(answer->body_case, KVIST__STORE__ANSWER__BODY_ATTACHED);
    kvist__store__answer__free_unpacked(answer, NULL);
    Kvist__Store__SetDiskBytes asked = KVIST__STORE__SET_DISK_BYTES__INIT;
    asked.id = 5;
    asked.bytes = both.bench.params.disk_bytes;
    raw_send(&raw, KVIST__STORE__REQUEST__BODY_SET_DISK_BYTES, &asked, NULL, 0);
    raw_expect_done(&raw, 5, KV_REFUSED, 0);
    raw_end(&raw);
    raw_begin(&raw, both.served.path, &both.bench.layout);
    raw_send(&raw, KVIST__STORE__REQUEST__BODY_SET_DISK_BYTES, &asked, NULL, 0);
    raw_expect_done(&raw, 5, KV_OK, 0);
    raw_end(&raw);
    end(&both);
}

/* ---- floods ---- */

/* Sends the same request without end and reads nothing, until the service has ended it. */
static void flood(raw_t *raw)
{
    Kvist__Store__GetStats body = KVIST__STORE__GET_STATS__INIT;
    Kvist__Store__Request request = KVIST__STORE__REQUEST__INIT;
    kv_error_t error = {0};
    request.body_case = KVIST__STORE__REQUEST__BODY_STATS;
    request.stats = &body;
    uint64_t deadline_ns = kv_clock_now_ns() + 60ull * KV_NS_PER_S;
    kv_status_t status = KV_OK;
    while (status != KV_PEER_LOST) {
        assert_true(kv_clock_now_ns() < deadline_ns);
        if (raw->channel.out_bytes < 1 << 16) {
            assert_int_equal(
                kv_channel_queue(&raw->channel, &request.base, NULL, 0, &error), KV_OK);
        } else {
            poll(NULL, 0, 1); /* the socket is full: the service takes no more */
        }
        status = kv_channel_send(&raw->channel);
    }
}

static void who_reads_no_answers_is_ended_alone(void **state)
{
    (void)state;
    both_t both;
    bench_init(&both.bench, "unread", 4);
    bench_with_host(&both.bench, 64);
    served_init(&both.served, &both.bench.params);
    both.served.params.limits = (kv_service_limits_t){.silent_ms = 300};
    served_start(&both.served);
    raw_t raw, other;
    raw_begin(&other, both.served.path, &both.bench.layout);
    match(&other, &both, 3, 4);
    raw_expect_matched(&other, 3, 0);
    raw_begin(&raw, both.served.path, &both.bench.layout);
    match(&raw, &both, 0, 4); /* a lease that goes with it */
    flood(&raw);
    match(&other, &both, 4, 4); /* who reads is served */
    raw_expect_matched(&other, 4, 0);
    raw_end(&raw);
    served_pause(&both.served);
    kv_service_stats_t stats;
    kv_service_stats(both.served.service, &stats);
    assert_int_equal(stats.ended_clients, 1);
    assert_int_equal(stats.leases, 2);
    served_resume(&both.served);
    raw_end(&other);
    end(&both);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_frame_ends_the_connection),
        cmocka_unit_test(staging_memory_must_be_sealed),
        cmocka_unit_test(other_domains_layouts_and_versions_are_refused),
        cmocka_unit_test(numbers_out_of_bounds_end_the_client),
        cmocka_unit_test(bytes_that_are_not_as_promised_are_not_stored),
        cmocka_unit_test(other_users_enter_their_domain_and_set_no_quota),
        cmocka_unit_test(who_reads_no_answers_is_ended_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
