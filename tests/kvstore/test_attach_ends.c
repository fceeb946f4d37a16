/* What happens when either end of an attached store goes away, stops, or is killed: the other one
 * goes on, nothing is left behind, and no wrong byte comes out. */
#include "attach_bench.h"

#include <signal.h>

/* ---- a service in a process of its own ---- */

typedef struct {
    service_t of; /* parameters alone */
    pid_t process;
} apart_t;

static void start_apart(apart_t *apart)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    apart->process = fork();
    assert_true(apart->process >= 0);
    if (apart->process == 0) {
        kv_service_t *service;
        kv_error_t error;
        close(ready[0]);
        if (kv_service_open(&apart->of.served.params, &service, &error) != KV_OK ||
            write(ready[1], "r", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            struct pollfd wanted = {.fd = kv_service_fd(service), .events = POLLIN};
            poll(&wanted, 1, 100);
            kv_service_poll(service);
        }
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
}

static void begin_apart(apart_t *apart, const char *name, uint32_t host_slots, uint32_t segments)
{
    bench_init(&apart->of.host, name, 1);
    bench_with_host(&apart->of.host, host_slots);
    if (segments > 0) {
        bench_with_disk(&apart->of.host, segments);
    }
    served_init(&apart->of.served, &apart->of.host.params);
    start_apart(apart);
}

static void kill_apart(apart_t *apart)
{
    int status;
    assert_int_equal(kill(apart->process, SIGKILL), 0);
    assert_int_equal(waitpid(apart->process, &status, 0), apart->process);
}

static void end_apart(apart_t *apart)
{
    kill_apart(apart);
    bench_end(&apart->of.host);
}

static uint64_t now_ms(void)
{
    return kv_clock_now_ns() / KV_NS_PER_MS;
}

/* Matches until the service answers again. */
static void wait_back(bench_t *bench)
{
    uint64_t end_ns = patience_ns();
    while (kv_attached_of(bench->store)->link.state != KV_LINK_UP ||
           kv_attached_of(bench->store)->link.silent) {
        bench_wait(bench, end_ns);
    }
}

static kvist_match_t match_alone(bench_t *bench, const context_t *context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_release(match_blocks(bench, context, blocks, &match));
    return match;
}

/* Longer than a hundred matches take, on any machine. */
enum { WAIT_NOTICED_MS = 100000 };

static void a_stopped_service_costs_one_wait(void **state)
{
    (void)state;
    apart_t apart;
    bench_t bench;
    context_t context, fresh;
    begin_apart(&apart, "stopped", 64, 0);
    open_client(&bench, &apart.of, "client", 16);
    bench.bounds.match_ms = 50;
    kv_attached_of(bench.store)->bounds.match_ms = 50;
    make_context(&bench, 1, &context);
    make_context(&bench, 2, &fresh);
    request_context(&bench, 1, 8);
    wait_written(&bench);

    assert_int_equal(kill(apart.process, SIGSTOP), 0);
    kvist_match_t match = match_alone(&bench, &context, BLOCKS);
    assert_int_equal(match.block_count, 8); /* those on the device */
    assert_int_equal(match.miss, KVIST_MISS_FAILED);
    assert_true(kv_attached_of(bench.store)->link.silent);
    kv_attached_of(bench.store)->bounds.match_ms = WAIT_NOTICED_MS;
    uint64_t before_ms = now_ms();
    for (int i = 0; i < 100; i++) { /* at once: not one of them waits */
        match = match_alone(&bench, &fresh, BLOCKS);
        assert_int_equal(match.block_count, 0);
        assert_int_equal(match.miss, KVIST_MISS_FAILED);
        assert_true(now_ms() - before_ms < WAIT_NOTICED_MS);
    }
    request_context(&bench, 2, 8); /* is served, computed, and found on the device */
    assert_int_equal(request_context(&bench, 2, 8).block_count, 8);

    assert_int_equal(kill(apart.process, SIGCONT), 0);
    wait_back(&bench);
    kv_attached_of(bench.store)->bounds.match_ms = 20000;
    assert_int_equal(request_context(&bench, 1, 8).block_count, 8);
    request_context(&bench, 2, 8); /* what was computed without it is written through now */
    wait_written(&bench);
    bench_t other;
    open_client(&other, &apart.of, "other", 0);
    assert_int_equal(check_context(&other, &fresh, 8).tier_blocks[KVIST_TIER_HOST], 8);
    bench_end(&other);
    bench_end(&bench);
    end_apart(&apart);
}

static void a_silent_service_is_given_up(void **state)
{
    (void)state;
    apart_t apart;
    bench_t bench;
    context_t context;
    begin_apart(&apart, "silent", 64, 0);
    open_client(&bench, &apart.of, "client", 0);
    make_context(&bench, 1, &context);
    kvist_match_t match;
    kvist_lease_t *lease = match_blocks(&bench, &context, 8, &match);
    kv_attached_of(bench.store)->bounds.lost_ms = 300;
    assert_int_equal(kill(apart.process, SIGSTOP), 0);
    transfer_t stored = store_rest(&bench, lease, &context, 0, 8); /* waits for its end */
    assert_int_equal(stored.status, KV_PEER_LOST);
    assert_int_equal(stored.block_count, 0);
    kvist_lease_release(lease);
    assert_int_equal(match_alone(&bench, &context, 8).miss, KVIST_MISS_FAILED);
    assert_int_equal(flush(&bench), KV_PEER_LOST);
    kv_attached_of(bench.store)->bounds.lost_ms = 20000;
    assert_int_equal(kill(apart.process, SIGCONT), 0);
    wait_back(&bench);
    assert_int_equal(store_context(&bench, &context, 8), 0);
    check_context(&bench, &context, 8);
    bench_end(&bench);
    end_apart(&apart);
}

static void what_is_mapped_outlives_the_service(void **state)
{
    (void)state;
    apart_t apart;
    bench_t bench;
    context_t context, large[3];
    char back[BLOCKS * 2048];
    begin_apart(&apart, "killed", 2 * BLOCKS, 16);
    open_client(&bench, &apart.of, "client", 16);
    make_context(&bench, 9, &context);
    store_context(&bench, &context, 8);
    for (uint32_t i = 0; i < 3; i++) { /* pushes the first one out to disk */
        make_context(&bench, i + 1, &large[i]);
        store_context(&bench, &large[i], BLOCKS);
        assert_int_equal(flush(&bench), KV_OK);
    }
    kvist_match_t match, on_disk;
    kvist_lease_t *lease = match_blocks(&bench, &large[2], BLOCKS, &match);
    kvist_lease_t *disk_lease = match_blocks(&bench, &context, 8, &on_disk);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], BLOCKS);
    assert_int_equal(on_disk.tier_blocks[KVIST_TIER_DISK], 8);

    kill_apart(&apart);
    transfer_t loaded =
        load_blocks(&bench, lease, (kvist_selection_t){.block_count = BLOCKS}, back, sizeof back);
    assert_int_equal(loaded.block_count, BLOCKS);
    assert_memory_equal(back, large[2].bytes, sizeof back);
    loaded = load_blocks(
        &bench, disk_lease, (kvist_selection_t){.block_count = 8}, back, (size_t)8 * 2048);
    assert_int_equal(loaded.block_count, 0);
    assert_int_equal(loaded.miss, KVIST_MISS_FAILED);
    assert_int_equal(match_alone(&bench, &large[2], BLOCKS).miss, KVIST_MISS_FAILED);
    request_context(&bench, 5, 8); /* an engine goes on */

    start_apart(&apart);
    wait_back(&bench);
    uint64_t end_ns = patience_ns();
    while (match_alone(&bench, &context, 8).block_count < 8) { /* its index fills */
        bench_wait(&bench, end_ns);
    }
    check_context(&bench, &context, 8); /* from disk */
    loaded = load_blocks(&bench, lease, (kvist_selection_t){.block_count = BLOCKS}, back,
        sizeof back); /* of the former life: still mapped */
    assert_int_equal(loaded.block_count, BLOCKS);
    assert_memory_equal(back, large[2].bytes, sizeof back);
    kvist_lease_release(lease);
    kvist_lease_release(disk_lease);
    bench_end(&bench);
    end_apart(&apart);
}

/* The service lives, but has let go of what a client leased, and writes there: what the client
 * copies is what it was promised, or nothing. */
static void slots_with_a_new_life_never_pass(void **state)
{
    (void)state;
    service_t service;
    bench_t bench, other;
    context_t context, later;
    char back[BLOCKS * 2048];
    begin_service(&service, "new-life", BLOCKS, 0);
    open_client(&bench, &service, "client", 0);
    open_client(&other, &service, "other", 0);
    make_context(&bench, 1, &context);
    make_context(&bench, 2, &later);
    store_context(&bench, &context, BLOCKS);
    kvist_match_t match;
    kvist_lease_t *lease = match_blocks(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], BLOCKS);
    kv_link_lose(kv_attached_of(bench.store), KV_PEER_LOST, "for the test");
    uint64_t end_ns = patience_ns();
    for (;;) { /* until the service has noticed, and room is made */
        kvist_match_t found;
        kvist_lease_t *of = match_blocks(&other, &later, 4, &found);
        transfer_t stored = found.block_count < 4
                                ? store_rest(&other, of, &later, found.block_count, 4)
                                : (transfer_t){.status = KV_OK};
        kvist_lease_release(of);
        if (stored.status == KV_OK) {
            break;
        }
        bench_wait(&other, end_ns);
    }
    transfer_t loaded =
        load_blocks(&bench, lease, (kvist_selection_t){.block_count = BLOCKS}, back, sizeof back);
    assert_int_equal(loaded.status, KV_OK);
    assert_true(loaded.block_count < BLOCKS); /* four slots are others' by now */
    assert_int_equal(loaded.miss, KVIST_MISS_FAILED);
    assert_memory_equal(back, context.bytes, (size_t)loaded.block_count * 2048);
    kvist_lease_release(lease);
    check_context(&other, &later, 4);
    bench_end(&bench);
    bench_end(&other);
    end_service(&service);
}

/* ---- clients that are killed ---- */

/* What a client does until it is killed. */
static void run_client(const service_t *service, uint32_t seed)
{
    bench_t bench;
    context_t context;
    open_client(&bench, service, "victim", 16);
    for (uint32_t i = 0;; i++) {
        make_context(&bench, 1 + (seed + i) % 5, &context);
        kvist_match_t match;
        kvist_lease_t *lease = match_blocks(&bench, &context, BLOCKS, &match);
        char back[BLOCKS * 2048];
        if (match.block_count > 0) {
            load_blocks(&bench, lease, (kvist_selection_t){.block_count = match.block_count}, back,
                (size_t)match.block_count * 2048);
        } else {
            store_rest(&bench, lease, &context, 0, 6 + i % 6);
        }
        kvist_lease_release(lease);
        request_context(&bench, 6 + (seed + i) % 5, 8);
    }
}

static void a_killed_client_leaves_nothing(void **state)
{
    (void)state;
    service_t service;
    begin_service(&service, "victims", 48, 0);
    served_pause(&service.served); /* no thread while processes are made */
    uint64_t random = kv_test_seed();
    print_message("seed %ju (KVIST_SEED)\n", (uintmax_t)random);
    for (int i = 0; i < (kv_test_long() ? 200 : 12); i++) {
        pid_t victims[2];
        for (int j = 0; j < 2; j++) {
            victims[j] = fork();
            assert_true(victims[j] >= 0);
            if (victims[j] == 0) {
                run_client(&service, (uint32_t)(2 * i + j));
                _exit(0);
            }
        }
        uint64_t end_ms = now_ms() + kv_test_random(&random) % 60;
        do {
            struct pollfd ready = {.fd = kv_service_fd(service.served.service), .events = POLLIN};
            poll(&ready, 1, 5);
            kv_service_poll(service.served.service);
        } while (now_ms() < end_ms);
        for (int j = 0; j < 2; j++) {
            int status;
            assert_int_equal(kill(victims[j], SIGKILL), 0);
            assert_int_equal(waitpid(victims[j], &status, 0), victims[j]);
            assert_true(WIFSIGNALED(status));
        }
    }
    served_resume(&service.served);
    bench_t bench;
    open_client(&bench, &service, "survivor", 16);
    for (uint32_t number = 1; number <= 5; number++) {
        context_t context;
        make_context(&bench, number, &context);
        uint32_t found = match_alone(&bench, &context, BLOCKS).block_count;
        check_context(&bench, &context, found);  /* what is found is right */
        store_context(&bench, &context, BLOCKS); /* nothing that they held is in the way */
        check_context(&bench, &context, BLOCKS);
    }
    bench_end(&bench);
    end_service(&service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stopped_service_costs_one_wait),
        cmocka_unit_test(a_silent_service_is_given_up),
        cmocka_unit_test(what_is_mapped_outlives_the_service),
        cmocka_unit_test(slots_with_a_new_life_never_pass),
        cmocka_unit_test(a_killed_client_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
