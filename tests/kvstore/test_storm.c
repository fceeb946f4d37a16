/* Many requests at once: prepares that wait, load, share loads, are cancelled or run out of time,
 * while the disk fails now and then. Every prepare is answered once, every answer is right, and in
 * the end every slot is back. */
#include "harness.h"

#include <errno.h>

enum { AT_ONCE = 8, BLOCKS_MAX = 10, CONTEXTS = 40, DEVICE_SLOTS = 36 };

typedef struct storm storm_t;

typedef struct {
    storm_t *storm;
    kvist_lease_t *lease; /* NULL: idle */
    uint32_t tokens[BLOCKS_MAX * BLOCK_TOKENS];
    kvist_key_t keys[BLOCKS_MAX];
    uint32_t blocks;
    bool waiting, cancelled; /* for its callback */
    bool ready;
} client_t;

struct storm {
    bench_t bench;
    uint64_t random;
    client_t clients[AT_ONCE];
    uint32_t ready, busy, cancelled, failed, damaged;
    uint32_t fault_percent;
};

static uint32_t dice(storm_t *storm, uint32_t sides)
{
    return (uint32_t)(kv_test_random(&storm->random) % sides);
}

static int64_t maybe_fail(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    storm_t *storm = context;
    if (!after || dice(storm, 100) >= storm->fault_percent) {
        return result;
    }
    static const int64_t READ_FAULTS[] = {-EIO, -ENOMEM, -EINTR};
    if (request->kind == KV_RING_READ) {
        return READ_FAULTS[dice(storm, 3)];
    }
    /* Rarely: three failures in a row are the end of the disk tier. */
    return dice(storm, 10) == 0 ? -ENOSPC : result;
}

static void answered(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    client_t *client = context;
    storm_t *storm = client->storm;
    assert_true(client->waiting);
    client->waiting = false;
    if (client->cancelled) {
        assert_int_equal(status, KV_CANCELLED);
        storm->cancelled++;
        client->lease = NULL;
        return;
    }
    assert_ptr_equal(lease, client->lease);
    if (status == KV_BUSY) {
        storm->busy++;
        kvist_lease_release(lease); /* inside the callback: allowed */
        client->lease = NULL;
        return;
    }
    assert_int_equal(status, KV_OK);
    storm->ready++;
    storm->failed += match->miss == KVIST_MISS_FAILED;
    storm->damaged += match->miss == KVIST_MISS_DAMAGED;
    assert_int_equal(match->block_count, kvist_lease_sealed_count(lease));
    for (uint32_t block = 0; block < match->block_count; block++) {
        check_block(&storm->bench, &client->keys[block], kvist_lease_slots(lease)[block]);
    }
    client->ready = true;
}

static void begin(storm_t *storm, client_t *client)
{
    uint32_t context = dice(storm, CONTEXTS);
    client->blocks = 1 + dice(storm, BLOCKS_MAX);
    size_t count = (size_t)client->blocks * BLOCK_TOKENS;
    make_tokens(context, 0, client->tokens, count);
    make_tokens(context / 4 * 4, 0, client->tokens, count < 64 ? count : 64);
    kvist_keys(&storm->bench.name_space, client->tokens, NULL, count, BLOCK_TOKENS, client->keys);
    kvist_match_t match;
    client->lease = match_tokens(&storm->bench, client->tokens, count, &match);
    client->waiting = true;
    client->cancelled = client->ready = false;
    uint64_t patience_ns = dice(storm, 10) == 0 ? KV_NS_PER_MS : 20ull * KV_NS_PER_S;
    assert_int_equal(kvist_lease_prepare(client->lease, client->blocks,
                         kv_clock_now_ns() + patience_ns, answered, client),
        KV_OK);
}

static void go_on(storm_t *storm, client_t *client)
{
    if (client->lease == NULL) {
        begin(storm, client);
    } else if (client->waiting && !client->cancelled && dice(storm, 100) == 0) {
        client->cancelled = true;
        kvist_lease_release(client->lease);
    } else if (client->ready) {
        uint32_t block = kvist_lease_sealed_count(client->lease);
        if (block == client->blocks || dice(storm, 8) == 0) {
            kvist_lease_release(client->lease);
            client->lease = NULL;
            client->ready = false;
            return;
        }
        uint32_t slot = kvist_lease_slots(client->lease)[block];
        fill_block(
            &client->keys[block], slot_bytes(&storm->bench, slot), block_bytes(&storm->bench));
        assert_int_equal(kvist_lease_seal(client->lease,
                             client->tokens + (size_t)block * BLOCK_TOKENS, NULL, "test/plain"),
            KV_OK);
    }
}

static void storm_with(uint64_t seed, uint32_t host_slots, uint32_t segments,
    kvist_persist_t persist, kvist_io_t io, uint32_t fault_percent)
{
    static storm_t storm;
    memset(&storm, 0, sizeof storm);
    storm.random = seed;
    storm.fault_percent = fault_percent;
    bench_init(&storm.bench, "storm", DEVICE_SLOTS);
    bench_with_host(&storm.bench, host_slots);
    bench_with_disk(&storm.bench, segments);
    storm.bench.params.persist = persist;
    storm.bench.params.io = io;
    storm.bench.seams.faults = (kv_ring_faults_t){maybe_fail, &storm};
    bench_open(&storm.bench);
    uint32_t goal = kv_test_long() ? 50000 : 1500;
    uint64_t limit_ns = kv_clock_now_ns() + 200ull * KV_NS_PER_S;
    while (storm.ready < goal) {
        assert_true(kv_clock_now_ns() < limit_ns);
        client_t *client = &storm.clients[dice(&storm, AT_ONCE)];
        client->storm = &storm;
        go_on(&storm, client);
        if (dice(&storm, 4) == 0) {
            kvist_store_poll(storm.bench.store);
        }
        if (dice(&storm, 64) == 0) {
            usleep(100); /* the workers' turn */
            check_accounts(&storm.bench);
        }
    }
    storm.fault_percent = 0;
    for (bool waiting = true; waiting;) { /* those that are ready make room for those that wait */
        waiting = false;
        bench_turn(&storm.bench);
        for (int i = 0; i < AT_ONCE; i++) {
            client_t *client = &storm.clients[i];
            waiting = waiting || client->waiting;
            if (client->ready) {
                kvist_lease_release(client->lease);
                client->ready = false;
            }
        }
    }
    kvist_stats_t stats = bench_stats(&storm.bench);
    print_message("ready %u busy %u cancelled %u failed %u damaged %u; disk %ju objects %ju "
                  "evicted, offline %d\n",
        storm.ready, storm.busy, storm.cancelled, storm.failed, storm.damaged,
        (uintmax_t)stats.tiers[KVIST_TIER_DISK].object_count,
        (uintmax_t)stats.tiers[KVIST_TIER_DISK].evicted_objects, stats.disk_offline);
    assert_int_equal(stats.slots_private, 0);
    assert_int_equal(stats.damaged_objects, 0);
    bench_end(&storm.bench);
}

static void a_storm_of_requests_is_answered_rightly(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed();
    print_message(
        "seed %ju (KVIST_SEED: the same choices; threads decide the rest)\n", (uintmax_t)seed);
    storm_with(seed, 24, 20, KVIST_PERSIST_EAGER, KVIST_IO_AUTO, 0);
    storm_with(seed, 24, 3, KVIST_PERSIST_EAGER, KVIST_IO_AUTO, 3);
    storm_with(seed, 0, 20, KVIST_PERSIST_SPILL, KVIST_IO_AUTO, 3);
    storm_with(seed, 24, 3, KVIST_PERSIST_SPILL, KVIST_IO_THREADS, 3);
    storm_with(seed, 0, 2, KVIST_PERSIST_EAGER, KVIST_IO_THREADS, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_storm_of_requests_is_answered_rightly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
