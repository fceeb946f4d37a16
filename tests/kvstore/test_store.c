/* The store as its callers see it: round trips through every tier, restarts, leases, bounds. */
#include "harness.h"

static void a_context_comes_back_from_device_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "device", 16);
    bench_open(&bench);
    assert_int_equal(request_context(&bench, 1, 6).miss, KVIST_MISS_NEW);
    kvist_match_t match = request_context(&bench, 1, 6);
    assert_int_equal(match.block_count, 6);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 6);
    assert_int_equal(match.miss, KVIST_MISS_NONE);
    assert_int_equal(bench_stats(&bench).slots_private, 0);
    bench_end(&bench);
}

static void spilled_blocks_come_back_from_host_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "host", 8);
    bench_with_host(&bench, 32);
    bench_open(&bench);
    for (uint32_t context = 0; context < 4; context++) {
        request_context(&bench, context, 8);
    }
    kvist_match_t match = request_context(&bench, 0, 8);
    assert_int_equal(match.block_count, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 8);
    bench_end(&bench);
}

/* Where the device is a GPU; the CPU's memory is no nearer to it than the host tier's. */
static void what_the_disk_has_leaves_a_gpu_for_host_memory(void **state)
{
    (void)state;
    for (int cpu = 0; cpu < 2; cpu++) {
        bench_t bench;
        bench_init(&bench, "leaves", 8);
        bench_with_large_blocks(&bench);
        bench_with_host(&bench, 32);
        bench_with_disk(&bench, 16);
        bench.ops.host = cpu == 1;
        bench_open(&bench);
        request_context(&bench, 0, 8);
        assert_int_equal(flush(&bench), KV_OK);
        assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DISK].object_count, 8);
        request_context(&bench, 1, 8);
        kvist_match_t match = request_context(&bench, 0, 8);
        assert_int_equal(match.tier_blocks[cpu ? KVIST_TIER_DISK : KVIST_TIER_HOST], 8);
        bench_end(&bench);
    }
}

static void round_trip_by_disk(kvist_persist_t persist, kvist_codec_t codec, kvist_io_t io)
{
    bench_t bench;
    bench_init(&bench, "disk", 8);
    bench_with_large_blocks(&bench);
    bench_with_host(&bench, 8);
    bench_with_disk(&bench, 16);
    bench.params.persist = persist;
    bench.params.codec = codec;
    bench.params.io = io;
    bench_open(&bench);
    for (uint32_t context = 0; context < 10; context++) {
        request_context(&bench, context, 8);
    }
    kvist_match_t match = request_context(&bench, 0, 8);
    assert_int_equal(match.block_count, 8);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], 8);
    assert_int_equal(flush(&bench), KV_OK);
    kvist_tier_stats_t disk = bench_stats(&bench).tiers[KVIST_TIER_DISK];
    assert_int_equal(disk.used_bytes, disk.object_count * LARGE_RECORD_BYTES(codec));
    bench_close(&bench);
    /* What the disk holds was written with another codec than the one that new records get. */
    bench.params.codec = (kvist_codec_t)((codec + 1) % KVIST_CODEC_COUNT);
    bench_open(&bench);
    for (uint32_t context = 0; context < 10; context++) {
        match = request_context(&bench, context, 8);
        assert_int_equal(match.block_count, 8);
        assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], 8);
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

static void evicted_blocks_and_restarts_are_served_from_disk(void **state)
{
    (void)state;
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, KVIST_IO_AUTO);
    round_trip_by_disk(KVIST_PERSIST_SPILL, KVIST_CODEC_NONE, KVIST_IO_AUTO);
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_LZ4, KVIST_IO_AUTO);
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, KVIST_IO_THREADS);
    round_trip_by_disk(KVIST_PERSIST_SPILL, KVIST_CODEC_LZ4, KVIST_IO_THREADS);
    round_trip_by_disk(KVIST_PERSIST_EAGER, KVIST_CODEC_BF16, KVIST_IO_THREADS);
    round_trip_by_disk(KVIST_PERSIST_SPILL, KVIST_CODEC_BF16, KVIST_IO_AUTO);
}

static void contexts_share_their_common_prefix(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "shared", 16);
    bench_open(&bench);
    uint32_t tokens[6 * BLOCK_TOKENS];
    make_tokens(1, 4 * BLOCK_TOKENS, tokens, 6 * BLOCK_TOKENS);
    request(&bench, tokens, 6);
    make_tokens(2, 4 * BLOCK_TOKENS, tokens, 6 * BLOCK_TOKENS);
    assert_int_equal(request(&bench, tokens, 6).block_count, 4);
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DEVICE].object_count, 8);
    bench_end(&bench);
}

static void a_match_says_why_it_ended(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "why", 8);
    bench_open(&bench);
    request_context(&bench, 1, 2);
    uint32_t tokens[3 * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, 3 * BLOCK_TOKENS);
    static const struct {
        size_t count;
        kvist_mode_t mode;
        uint32_t blocks;
        kvist_miss_t miss;
    } CASES[] = {
        {0, KVIST_MODE_READWRITE, 0, KVIST_MISS_NONE},
        {5, KVIST_MODE_READWRITE, 0, KVIST_MISS_SHORT},
        {2 * BLOCK_TOKENS, KVIST_MODE_READ, 2, KVIST_MISS_NONE},
        {2 * BLOCK_TOKENS + 1, KVIST_MODE_READWRITE, 2, KVIST_MISS_SHORT},
        {3 * BLOCK_TOKENS, KVIST_MODE_READ, 2, KVIST_MISS_NEW},
        {3 * BLOCK_TOKENS, KVIST_MODE_BYPASS, 0, KVIST_MISS_BYPASSED},
        {3 * BLOCK_TOKENS, KVIST_MODE_WRITE, 0, KVIST_MISS_BYPASSED},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        kvist_query_t query = {.name_space = bench.name_space,
            .tokens = tokens,
            .token_count = CASES[i].count,
            .mode = CASES[i].mode};
        kvist_lease_t *lease;
        kvist_match_t match;
        assert_int_equal(kvist_match(bench.store, &query, &lease, &match), KV_OK);
        assert_int_equal(match.block_count, CASES[i].blocks);
        assert_int_equal(match.miss, CASES[i].miss);
        kvist_lease_release(lease);
    }
    kvist_query_t too_long = {.name_space = bench.name_space,
        .tokens = tokens,
        .token_count = ((size_t)KVIST_CHAIN_BLOCKS_MAX + 1) * BLOCK_TOKENS};
    kvist_lease_t *lease;
    kvist_match_t match;
    assert_int_equal(kvist_match(bench.store, &too_long, &lease, &match), KV_INVALID);
    bench_end(&bench);
}

static void read_and_bypass_store_nothing(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "modes", 8);
    bench_open(&bench);
    uint32_t tokens[2 * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, 2 * BLOCK_TOKENS);
    static const kvist_mode_t MODES[] = {KVIST_MODE_READ, KVIST_MODE_BYPASS, KVIST_MODE_WRITE};
    for (size_t i = 0; i < 3; i++) {
        kvist_query_t query = {.name_space = bench.name_space,
            .tokens = tokens,
            .token_count = 2 * BLOCK_TOKENS,
            .mode = MODES[i]};
        kvist_lease_t *lease;
        kvist_match_t match;
        assert_int_equal(kvist_match(bench.store, &query, &lease, &match), KV_OK);
        assert_int_equal(prepare(&bench, lease, 2).status, KV_OK);
        assert_int_equal(kvist_lease_seal(lease, tokens, NULL, "x"), KV_OK);
        assert_int_equal(kvist_lease_sealed_count(lease), 1);
        assert_string_equal(kvist_lease_arithmetic(lease, 0), i == 2 ? "x" : "");
        kvist_lease_release(lease);
        assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DEVICE].object_count, i == 2);
    }
    bench_end(&bench);
}

static void a_block_that_two_sequences_compute_is_one_object(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "twice", 8);
    bench_open(&bench);
    uint32_t tokens[3 * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, 3 * BLOCK_TOKENS);
    kvist_key_t keys[3];
    kvist_keys(&bench.name_space, tokens, NULL, 3 * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    kvist_lease_t *leases[2];
    kvist_match_t match;
    for (int i = 0; i < 2; i++) {
        leases[i] = match_tokens(&bench, tokens, 3 * BLOCK_TOKENS, &match);
        assert_int_equal(match.block_count, 0);
        assert_int_equal(prepare(&bench, leases[i], 4).status, KV_OK);
    }
    for (uint32_t block = 0; block < 3; block++) {
        for (int i = 0; i < 2; i++) {
            uint32_t slot = kvist_lease_slots(leases[i])[block];
            fill_block(&keys[block], slot_bytes(&bench, slot), block_bytes(&bench));
            assert_int_equal(
                kvist_lease_seal(leases[i], tokens + block * BLOCK_TOKENS, NULL, "test/plain"),
                KV_OK);
        }
    }
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DEVICE].object_count, 3);
    kvist_lease_release(leases[0]);
    kvist_lease_release(leases[1]);
    assert_int_equal(bench_stats(&bench).slots_free, 5);
    assert_int_equal(request(&bench, tokens, 3).block_count, 3);
    bench_end(&bench);
}

static void sealing_needs_a_ready_lease_and_a_slot(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "seal", 8);
    bench_open(&bench);
    uint32_t tokens[BLOCK_TOKENS];
    char name[64];
    make_tokens(1, 0, tokens, BLOCK_TOKENS);
    memset(name, 'a', sizeof name);
    name[63] = '\0';
    kvist_match_t match;
    kvist_lease_t *lease = match_tokens(&bench, tokens, BLOCK_TOKENS, &match);
    assert_int_equal(kvist_lease_seal(lease, tokens, NULL, "x"), KV_INVALID);
    assert_int_equal(kvist_lease_prepare(lease, 9, UINT64_MAX, note_prepared, NULL), KV_INVALID);
    assert_int_equal(prepare(&bench, lease, 1).status, KV_OK);
    assert_int_equal(kvist_lease_seal(lease, tokens, NULL, name), KV_INVALID);
    assert_int_equal(kvist_lease_seal(lease, tokens, NULL, "x"), KV_OK);
    assert_int_equal(kvist_lease_seal(lease, tokens, NULL, "x"), KV_INVALID);
    kvist_lease_release(lease);
    bench_end(&bench);
}

/* ---- waiting ---- */

static kvist_lease_t *empty_lease(bench_t *bench)
{
    kvist_match_t match;
    return match_tokens(bench, NULL, 0, &match);
}

static void prepares_are_served_in_order_and_whole(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "order", 8);
    bench_open(&bench);
    kvist_lease_t *first = empty_lease(&bench), *big = empty_lease(&bench),
                  *small = empty_lease(&bench);
    assert_int_equal(prepare(&bench, first, 4).status, KV_OK);
    outcome_t big_outcome = {0}, small_outcome = {0};
    kvist_lease_prepare(big, 6, UINT64_MAX, note_prepared, &big_outcome);
    kvist_lease_prepare(small, 1, UINT64_MAX, note_prepared, &small_outcome);
    for (int i = 0; i < 5; i++) {
        kvist_store_poll(bench.store);
    }
    /* The small one would fit, and waits: else the big one might wait for ever. */
    assert_false(big_outcome.ended || small_outcome.ended);
    assert_int_equal(bench_stats(&bench).slots_private, 4);
    kvist_lease_release(first);
    wait_for(&bench, &small_outcome);
    assert_true(big_outcome.ended);
    assert_int_equal(big_outcome.status, KV_OK);
    kvist_lease_release(big);
    kvist_lease_release(small);
    assert_int_equal(bench_stats(&bench).slots_free, 8);
    bench_end(&bench);
}

static void those_who_wait_do_not_starve_the_first(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "yield", 8);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    uint32_t tokens[3][6 * BLOCK_TOKENS];
    for (uint32_t i = 0; i < 2; i++) {
        make_tokens(i + 1, 0, tokens[i], 6 * BLOCK_TOKENS);
        request(&bench, tokens[i], 4);
    }
    /* Each holds half of the device and wants three quarters. */
    kvist_lease_t *leases[2];
    kvist_match_t match;
    outcome_t outcomes[2] = {{0}};
    for (int i = 0; i < 2; i++) {
        leases[i] = match_tokens(&bench, tokens[i], 6 * BLOCK_TOKENS, &match);
        assert_int_equal(match.block_count, 4);
    }
    for (int i = 0; i < 2; i++) {
        kvist_lease_prepare(leases[i], 6, UINT64_MAX, note_prepared, &outcomes[i]);
    }
    for (int i = 0; i < 2; i++) {
        wait_for(&bench, &outcomes[i]);
        assert_int_equal(outcomes[i].status, KV_OK);
        assert_int_equal(
            outcomes[i].match.block_count, 4); /* half of the second one's, from disk */
        assert_int_equal(outcomes[i].match.tier_blocks[KVIST_TIER_DISK], i == 0 ? 0 : 2);
        assert_int_equal(outcomes[i].match.miss, KVIST_MISS_NEW);
        kvist_lease_release(leases[i]);
    }
    bench_end(&bench);
}

static void a_prepare_gives_up_at_its_deadline(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "deadline", 4);
    bench_open(&bench);
    kvist_lease_t *first = empty_lease(&bench), *late = empty_lease(&bench);
    assert_int_equal(prepare(&bench, first, 4).status, KV_OK);
    outcome_t outcome = {0};
    uint64_t start_ns = kv_clock_now_ns(), wait_ns = 50ull * KV_NS_PER_MS;
    kvist_lease_prepare(late, 1, start_ns + wait_ns, note_prepared, &outcome);
    while (!outcome.ended) { /* the descriptor alone wakes us */
        struct pollfd poll_fd = {.fd = kvist_store_fd(bench.store), .events = POLLIN};
        assert_int_equal(poll(&poll_fd, 1, 2000), 1);
        kvist_store_poll(bench.store);
    }
    uint64_t waited_ns = kv_clock_now_ns() - start_ns;
    assert_int_equal(outcome.status, KV_BUSY);
    assert_true(waited_ns >= wait_ns && waited_ns < 40 * wait_ns);
    kvist_lease_release(late);
    kvist_lease_release(first);
    bench_end(&bench);
}

static void a_virtual_clock_turns_the_deadline(void **state)
{
    (void)state;
    bench_t bench;
    kv_virtual_clock_t clock;
    kv_virtual_clock_init(&clock, 1700000000ull * KV_NS_PER_S);
    bench_init(&bench, "virtual", 4);
    bench.params.clock = &clock.clock;
    bench_open(&bench);
    kvist_lease_t *first = empty_lease(&bench), *late = empty_lease(&bench);
    assert_int_equal(prepare(&bench, first, 4).status, KV_OK);
    outcome_t outcome = {0};
    kvist_lease_prepare(late, 1, clock.monotonic_ns + KV_NS_PER_S, note_prepared, &outcome);
    kvist_store_poll(bench.store);
    assert_false(outcome.ended);
    kv_virtual_clock_advance(&clock, KV_NS_PER_S);
    kvist_store_poll(bench.store);
    assert_true(outcome.ended);
    assert_int_equal(outcome.status, KV_BUSY);
    kvist_lease_release(late);
    kvist_lease_release(first);
    bench_end(&bench);
}

static void releasing_cancels_a_prepare(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "cancel", 8);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    request_context(&bench, 1, 8);
    flush(&bench);
    request_context(&bench, 2, 8);
    flush(&bench);
    /* While it waits, while it loads, and when it is through but has not been told. */
    kvist_lease_t *holder = empty_lease(&bench);
    assert_int_equal(prepare(&bench, holder, 8).status, KV_OK);
    uint32_t tokens[8 * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, 8 * BLOCK_TOKENS);
    for (int turns = -1; turns < 4; turns++) {
        kvist_match_t match;
        outcome_t outcome = {0};
        kvist_lease_t *lease = match_tokens(&bench, tokens, 8 * BLOCK_TOKENS, &match);
        assert_int_equal(match.block_count, 8);
        kvist_lease_prepare(lease, 8, UINT64_MAX, note_prepared, &outcome);
        for (int i = 0; i < turns && !outcome.ended; i++) {
            usleep(200);
            kvist_store_poll(bench.store);
        }
        if (!outcome.ended) {
            kvist_lease_release(lease);
            assert_false(outcome.ended);
            wait_for(&bench, &outcome);
            assert_int_equal(outcome.status, KV_CANCELLED);
        } else {
            kvist_lease_release(lease);
        }
        if (turns == -1) {
            kvist_lease_release(holder);
        }
    }
    while (bench_stats(&bench).leases > 0) {
        bench_turn(&bench);
    }
    assert_int_equal(bench_stats(&bench).slots_private, 0);
    assert_int_equal(request(&bench, tokens, 8).block_count, 8);
    bench_end(&bench);
}

static void leases_that_want_the_same_blocks_load_them_once(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "together", 12);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    request_context(&bench, 1, 8);
    flush(&bench);
    bench_close(&bench);
    bench_open(&bench);
    uint32_t tokens[8 * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, 8 * BLOCK_TOKENS);
    kvist_match_t match;
    kvist_lease_t *leases[2];
    outcome_t outcomes[2] = {{0}};
    for (int i = 0; i < 2; i++) {
        leases[i] = match_tokens(&bench, tokens, 8 * BLOCK_TOKENS, &match);
        kvist_lease_prepare(leases[i], 10, UINT64_MAX, note_prepared, &outcomes[i]);
    }
    for (int i = 0; i < 2; i++) {
        wait_for(&bench, &outcomes[i]);
        assert_int_equal(outcomes[i].status, KV_OK);
        assert_int_equal(outcomes[i].match.block_count, 8);
    }
    assert_memory_equal(
        kvist_lease_slots(leases[0]), kvist_lease_slots(leases[1]), 8 * sizeof(uint32_t));
    assert_int_equal(
        bench_stats(&bench).tiers[KVIST_TIER_DISK].read_bytes, 8 * block_bytes(&bench));
    kvist_lease_release(leases[0]);
    kvist_lease_release(leases[1]);
    bench_end(&bench);
}

static void an_idle_store_is_quiet(void **state)
{
    (void)state;
    for (int io = KVIST_IO_AUTO; io <= KVIST_IO_THREADS; io += 2) {
        bench_t bench;
        bench_init(&bench, "idle", 8);
        bench_with_host(&bench, 8);
        bench_with_disk(&bench, 8);
        bench.params.io = (kvist_io_t)io;
        bench_open(&bench);
        for (uint32_t context = 0; context < 6; context++) {
            request_context(&bench, context, 8);
        }
        assert_int_equal(flush(&bench), KV_OK);
        int turns = 0;
        struct pollfd poll_fd = {.fd = kvist_store_fd(bench.store), .events = POLLIN};
        while (poll(&poll_fd, 1, 100) > 0) {
            kvist_store_poll(bench.store);
            assert_true(++turns < 20);
        }
        bench_end(&bench);
    }
}

/* ---- looking in, bounds ---- */

typedef struct {
    uint32_t count;
    kvist_context_t entries[4];
} listing_t;

static void note_context(void *context, const kvist_context_t *entry)
{
    listing_t *listing = context;
    assert_true(listing->count < 4);
    listing->entries[listing->count++] = *entry;
}

static void the_list_shows_contexts_newest_first(void **state)
{
    (void)state;
    bench_t bench;
    kv_virtual_clock_t clock;
    kv_virtual_clock_init(&clock, 1700000000ull * KV_NS_PER_S);
    bench_init(&bench, "list", 8);
    bench_with_disk(&bench, 8);
    bench.params.clock = &clock.clock;
    bench_open(&bench);
    for (uint32_t context = 1; context <= 3; context++) {
        request_context(&bench, context, context + 1);
        kv_virtual_clock_advance(&clock, KV_NS_PER_S);
    }
    request_context(&bench, 1, 2);
    assert_int_equal(flush(&bench), KV_OK);
    for (int round = 0; round < 2; round++) {
        listing_t listing = {0};
        kvist_store_list(bench.store, 2, note_context, &listing);
        assert_int_equal(listing.count, 2);
        assert_int_equal(listing.entries[0].token_count, round == 0 ? 32 : 64);
        assert_string_equal(listing.entries[0].origin, "test-node");
        assert_memory_equal(
            listing.entries[0].name_space.bytes, bench.name_space.bytes, KVIST_KEY_BYTES);
        assert_int_equal(listing.entries[1].bytes, (round == 0 ? 4 : 3) * block_bytes(&bench));
        assert_int_equal(listing.entries[0].tier, round == 0 ? KVIST_TIER_DEVICE : KVIST_TIER_DISK);
        assert_int_equal(
            listing.entries[1].used_unix_ns / KV_NS_PER_S, 1700000000 + (round == 0 ? 2 : 1));
        bench_close(&bench);
        bench_open(&bench); /* times of use since the record was written are not kept */
    }
    bench_end(&bench);
}

static void a_directory_has_one_process_at_a_time(void **state)
{
    (void)state;
    bench_t bench, other;
    kv_error_t error;
    bench_init(&bench, "lock", 4);
    bench_with_disk(&bench, 4);
    bench_open(&bench);
    bench_init(&other, "lock", 4);
    bench_with_disk(&other, 4);
    other.params.directory = bench.folder;
    assert_int_equal(kvist_store_open(&other.params, &other.store, &error), KV_BUSY);
    char pid[16];
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    assert_non_null(strstr(error.text, pid));
    bench_close(&bench);
    bench_open(&other); /* other.folder is unused: params.directory counts */
    bench_end(&other);
    bench_end(&bench);
}

/* More host memory than there is: an answer, not the end of the process. */
static void too_much_host_memory_is_refused(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error = {0};
    bench_init(&bench, "much", 4);
    kvist_layout_t layout = bench.layout;
    layout.groups[0].parts[0].dims = layout.groups[0].parts[1].dims = 8192;
    bench.params.layout = &layout;
    bench.params.device = NULL;
    void *arena = bench.params.device_arena;
    bench.params.device_arena = NULL;
    bench.params.device_slot_count = 0;
    bench.params.host_bytes = INT32_MAX * (uint64_t)kvist_layout_object_bytes(&layout, 0);
    kvist_store_t *store;
    assert_int_equal(kvist_store_open(&bench.params, &store, &error), KV_NO_SPACE);
    assert_non_null(strstr(error.text, "of memory"));
    free(arena);
}

static int no_space(
    kv_files_t *files, int file, uint64_t *total_bytes_out, uint64_t *free_bytes_out)
{
    (void)files;
    (void)file;
    *total_bytes_out = (uint64_t)1 << 30;
    *free_bytes_out = 0;
    return 0;
}

/* The index would stop the process where it finds no room. */
static void a_full_file_system_is_refused(void **state)
{
    (void)state;
    bench_t bench;
    kv_error_t error = {0};
    kv_files_t files = *kv_files_posix();
    kv_files_ops_t ops = *files.ops;
    bench_init(&bench, "full", 4);
    bench_with_disk(&bench, 4);
    bench_open(&bench);
    bench_close(&bench);
    files.ops = &ops;
    ops.space = no_space;
    bench.seams.files = &files;
    kvist_store_t *store;
    assert_int_equal(kv_store_open_with(&bench.params, &bench.seams, &store, &error), KV_NO_SPACE);
    assert_non_null(strstr(error.text, "0 bytes free"));
    bench.seams.files = NULL;
    bench_open(&bench);
    bench_end(&bench);
}

static void expect_refusal(const kvist_store_params_t *params, const char *field)
{
    kvist_store_t *store;
    kv_error_t error = {0};
    assert_int_equal(kvist_store_open(params, &store, &error), KV_INVALID);
    if (strstr(error.text, field) == NULL) {
        fail_msg("\"%s\" does not name %s", error.text, field);
    }
}

static void wrong_parameters_are_refused_by_name(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "bounds", 4);
    bench_with_disk(&bench, 4);
    kvist_store_params_t wrong = bench.params;
    kvist_layout_t layout = bench.layout;
    wrong.layout = &layout;
    layout.groups[0].layers[0] = 0;
    expect_refusal(&wrong, "layout.groups.layers");
    layout = bench.layout;
    layout.groups[0].parts[0].heads = 1024;
    memset(layout.groups[0].layers, 0xff, sizeof layout.groups[0].layers);
    expect_refusal(&wrong, "units");
    layout = bench.layout;
    layout.groups[0].kind = KVIST_GROUP_STATE;
    expect_refusal(&wrong, "groups[0].kind");
    layout = bench.layout;
    layout.group_count = 2;
    layout.groups[1] = layout.groups[0];
    expect_refusal(&wrong, "group_count");
    wrong = bench.params;
    wrong.history_bytes = ((uint64_t)1 << 30) + 1;
    expect_refusal(&wrong, "history_bytes");
    wrong = bench.params;
    wrong.device_slot_count = 0;
    expect_refusal(&wrong, "device_slot_count");
    wrong = bench.params;
    wrong.device_arena = NULL;
    expect_refusal(&wrong, "device_arena");
    wrong = bench.params;
    wrong.host_bytes = 100;
    expect_refusal(&wrong, "host_bytes");
    wrong = bench.params;
    wrong.segment_bytes = 5000;
    expect_refusal(&wrong, "segment_bytes");
    wrong = bench.params;
    wrong.segment_bytes = (256 << 10) + 1;
    expect_refusal(&wrong, "segment_bytes");
    wrong = bench.params;
    wrong.disk_bytes = wrong.segment_bytes;
    expect_refusal(&wrong, "disk_bytes");
    wrong = bench.params;
    wrong.disk_bytes = UINT64_MAX;
    expect_refusal(&wrong, "disk_bytes");
    wrong = bench.params;
    wrong.origin = "a name that is longer than thirty-one bytes";
    expect_refusal(&wrong, "origin");
    wrong = bench.params;
    wrong.directory = "/nonexistent/folder";
    kvist_store_t *store;
    kv_error_t error;
    assert_int_equal(kvist_store_open(&wrong, &store, &error), KV_MISSING);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_context_comes_back_from_device_memory),
        cmocka_unit_test(spilled_blocks_come_back_from_host_memory),
        cmocka_unit_test(what_the_disk_has_leaves_a_gpu_for_host_memory),
        cmocka_unit_test(evicted_blocks_and_restarts_are_served_from_disk),
        cmocka_unit_test(contexts_share_their_common_prefix),
        cmocka_unit_test(a_match_says_why_it_ended),
        cmocka_unit_test(read_and_bypass_store_nothing),
        cmocka_unit_test(a_block_that_two_sequences_compute_is_one_object),
        cmocka_unit_test(sealing_needs_a_ready_lease_and_a_slot),
        cmocka_unit_test(prepares_are_served_in_order_and_whole),
        cmocka_unit_test(those_who_wait_do_not_starve_the_first),
        cmocka_unit_test(a_prepare_gives_up_at_its_deadline),
        cmocka_unit_test(a_virtual_clock_turns_the_deadline),
        cmocka_unit_test(releasing_cancels_a_prepare),
        cmocka_unit_test(leases_that_want_the_same_blocks_load_them_once),
        cmocka_unit_test(an_idle_store_is_quiet),
        cmocka_unit_test(the_list_shows_contexts_newest_first),
        cmocka_unit_test(a_directory_has_one_process_at_a_time),
        cmocka_unit_test(wrong_parameters_are_refused_by_name),
        cmocka_unit_test(too_much_host_memory_is_refused),
        cmocka_unit_test(a_full_file_system_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
