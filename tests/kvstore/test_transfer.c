/* Loading and storing through the caller's memory: scatter lists, units, layouts of several groups,
 * what is pending, terms, what fails half-way. */
#include "harness.h"

#include <errno.h>

enum { BLOCKS = 8 };

/* ---- calls that wait ---- */

typedef struct {
    bool ended;
    kv_status_t status;
    uint32_t block_count;
    kvist_miss_t miss;
} transfer_t;

static void note_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    *(transfer_t *)context = (transfer_t){true, status, block_count, miss};
}

static void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(transfer_t *)context = (transfer_t){true, status, block_count, KVIST_MISS_NONE};
}

static void wait_transfer(bench_t *bench, const transfer_t *transfer)
{
    uint64_t end_ns = patience_ns();
    while (!transfer->ended) {
        bench_wait(bench, end_ns);
    }
}

static transfer_t load(bench_t *bench, kvist_lease_t *lease, kvist_selection_t selection,
    const kvist_piece_t *pieces, size_t count)
{
    transfer_t transfer = {0};
    assert_int_equal(
        kvist_lease_load(lease, &selection, pieces, count, note_loaded, &transfer), KV_OK);
    assert_false(transfer.ended);
    wait_transfer(bench, &transfer);
    return transfer;
}

static transfer_t store(bench_t *bench, kvist_lease_t *lease, kvist_put_t put,
    const kvist_piece_t *pieces, size_t count)
{
    transfer_t transfer = {0};
    put.deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S;
    assert_int_equal(kvist_lease_store(lease, &put, pieces, count, note_stored, &transfer), KV_OK);
    assert_false(transfer.ended);
    wait_transfer(bench, &transfer);
    return transfer;
}

static void without_device(bench_t *bench)
{
    bench->params.device = NULL;
    bench->params.device_slot_count = 0;
}

/* A context in the caller's memory: tokens, keys, and the bytes of the blocks of one group. */
typedef struct {
    uint32_t tokens[64 * BLOCK_TOKENS];
    kvist_key_t keys[64];
    char *bytes;
    size_t object_bytes, count;
} context_t;

static void make_context(
    const bench_t *bench, uint32_t number, uint32_t blocks, uint32_t group, context_t *context)
{
    make_tokens(number, 0, context->tokens, (size_t)blocks * BLOCK_TOKENS);
    kvist_keys(&bench->name_space, context->tokens, NULL, (size_t)blocks * BLOCK_TOKENS,
        BLOCK_TOKENS, context->keys);
    context->object_bytes = kvist_layout_object_bytes(&bench->layout, group);
    context->count = blocks * context->object_bytes;
    context->bytes = malloc(context->count);
    for (uint32_t block = 0; block < blocks; block++) {
        kvist_key_t key = kv_identity_group_key(&context->keys[block], group);
        key.bytes[0] ^= (uint8_t)group; /* other bytes for other groups */
        fill_block(&key, context->bytes + block * context->object_bytes, context->object_bytes);
    }
}

static kvist_lease_t *match_context(
    bench_t *bench, const context_t *context, uint32_t blocks, kvist_match_t *match)
{
    return match_tokens(bench, context->tokens, (size_t)blocks * BLOCK_TOKENS, match);
}

/* Stores what is missing of the context; answers how many blocks were found. */
static uint32_t store_context(bench_t *bench, const context_t *context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_context(bench, context, blocks, &match);
    uint32_t found = match.block_count;
    kvist_piece_t piece = {
        context->bytes + found * context->object_bytes, (blocks - found) * context->object_bytes};
    transfer_t stored = store(bench, lease,
        (kvist_put_t){.first_block = found, .block_count = blocks - found, .arithmetic = "t"},
        &piece, 1);
    assert_int_equal(stored.status, KV_OK);
    assert_int_equal(stored.block_count, blocks - found);
    assert_int_equal(kvist_lease_sealed_count(lease), blocks);
    kvist_lease_release(lease);
    return found;
}

/* Finds, loads and compares the whole context. */
static void check_context(bench_t *bench, const context_t *context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_context(bench, context, blocks, &match);
    assert_int_equal(match.block_count, blocks);
    char *back = malloc(context->count);
    kvist_piece_t piece = {back, context->count};
    transfer_t loaded = load(bench, lease, (kvist_selection_t){.block_count = blocks}, &piece, 1);
    assert_int_equal(loaded.status, KV_OK);
    assert_int_equal(loaded.block_count, blocks);
    assert_int_equal(loaded.miss, KVIST_MISS_NONE);
    assert_memory_equal(back, context->bytes, context->count);
    kvist_lease_release(lease);
    free(back);
}

/* ---- the tests ---- */

static void what_is_stored_is_loaded_from_every_tier(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "transfer", 4);
    without_device(&bench);
    bench_with_host(&bench, 2 * BLOCKS);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context, other;
    make_context(&bench, 1, BLOCKS, 0, &context);
    make_context(&bench, 2, 2 * BLOCKS, 0, &other);
    assert_int_equal(store_context(&bench, &context, BLOCKS), 0);
    check_context(&bench, &context, BLOCKS); /* from host memory */
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_HOST].hit_blocks, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    assert_int_equal(store_context(&bench, &other, 2 * BLOCKS), 0); /* pushes it out */
    kvist_match_t match;
    kvist_lease_t *lease = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], BLOCKS);
    kvist_run_t runs[2];
    assert_int_equal(kvist_lease_runs(lease, runs, 2), 1);
    assert_int_equal(runs[0].tier, KVIST_TIER_DISK);
    assert_int_equal(runs[0].bytes, context.count);
    assert_true(runs[0].cost_ns > 0);
    kvist_lease_release(lease);
    check_context(&bench, &context, BLOCKS);
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DISK].hit_blocks, BLOCKS);
    bench_close(&bench);
    bench_open(&bench);
    check_context(&bench, &context, BLOCKS);
    check_context(&bench, &other, 2 * BLOCKS);
    check_accounts(&bench);
    free(context.bytes);
    free(other.bytes);
    bench_end(&bench);
}

/* Pieces of odd sizes, empty ones among them. */
static void pieces_may_have_any_sizes(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "pieces", 4);
    without_device(&bench);
    bench_with_host(&bench, BLOCKS);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    char *back = malloc(context.count);
    uint64_t random = kv_test_seed();
    for (int round = 0; round < 20; round++) {
        kvist_piece_t in[200], out[200];
        size_t counts[2] = {0, 0};
        for (int side = 0; side < 2; side++) {
            kvist_piece_t *pieces = side == 0 ? in : out;
            char *memory = side == 0 ? context.bytes : back;
            for (size_t at = 0; at < context.count;) {
                size_t bytes = kv_test_random(&random) % 900;
                bytes =
                    counts[side] == 199 || bytes > context.count - at ? context.count - at : bytes;
                pieces[counts[side]++] = (kvist_piece_t){memory + at, bytes};
                at += bytes;
            }
        }
        make_tokens((uint32_t)round + 10, 0, context.tokens, BLOCKS * BLOCK_TOKENS);
        kvist_match_t match;
        kvist_lease_t *lease = match_context(&bench, &context, BLOCKS, &match);
        transfer_t stored =
            store(&bench, lease, (kvist_put_t){.block_count = BLOCKS}, in, counts[0]);
        assert_int_equal(stored.block_count, BLOCKS);
        memset(back, 0, context.count);
        transfer_t loaded =
            load(&bench, lease, (kvist_selection_t){.block_count = BLOCKS}, out, counts[1]);
        assert_int_equal(loaded.block_count, BLOCKS);
        assert_memory_equal(back, context.bytes, context.count);
        kvist_lease_release(lease);
    }
    free(back);
    free(context.bytes);
    bench_end(&bench);
}

/* Of a store that waits for its turn nothing of the caller's is read when that comes. */
static void what_waits_for_its_turn_was_copied(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "turn", 4);
    without_device(&bench);
    bench_with_host(&bench, BLOCKS);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, 4, 0, &context);
    kvist_match_t match;
    kvist_lease_t *lease = match_context(&bench, &context, 4, &match);
    transfer_t stored[4] = {0};
    kvist_piece_t pieces[4];
    for (uint32_t block = 0; block < 4; block++) {
        char arithmetic[KVIST_ARITHMETIC_BYTES_MAX + 1];
        snprintf(arithmetic, sizeof arithmetic, "kernels %u", block);
        pieces[block] =
            (kvist_piece_t){context.bytes + block * context.object_bytes, context.object_bytes};
        kvist_put_t put = {.first_block = block,
            .block_count = 1,
            .arithmetic = arithmetic,
            .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
        assert_int_equal(
            kvist_lease_store(lease, &put, &pieces[block], 1, note_stored, &stored[block]), KV_OK);
        memset(arithmetic, 'x', sizeof arithmetic - 1);
    }
    wait_transfer(&bench, &stored[3]);
    for (uint32_t block = 0; block < 4; block++) {
        char arithmetic[KVIST_ARITHMETIC_BYTES_MAX + 1];
        snprintf(arithmetic, sizeof arithmetic, "kernels %u", block);
        assert_int_equal(stored[block].status, KV_OK);
        assert_string_equal(kvist_lease_arithmetic(lease, block), arithmetic);
    }
    kvist_lease_release(lease);
    free(context.bytes);
    bench_end(&bench);
}

/* The plain layout of the harness: 2 layers of 2 K heads and 2 V heads of 256 bytes. */
static void one_layer_or_head_is_loaded_alone(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "units", 4);
    without_device(&bench);
    bench_with_host(&bench, BLOCKS);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context, other;
    make_context(&bench, 1, 4, 0, &context);
    make_context(&bench, 2, BLOCKS, 0, &other);
    store_context(&bench, &context, 4);
    assert_int_equal(flush(&bench), KV_OK);
    for (int tier = 0; tier < 2; tier++) {
        kvist_match_t match;
        kvist_lease_t *lease = match_context(&bench, &context, 4, &match);
        char back[4 * 1024];
        kvist_selection_t layer = {
            .first_block = 1, .block_count = 3, .first_layer = 1, .layer_count = 1};
        assert_int_equal(kvist_selection_bytes(&bench.layout, &layer), 3 * 1024);
        kvist_piece_t piece = {back, 3 * 1024};
        assert_int_equal(load(&bench, lease, layer, &piece, 1).block_count, 3);
        for (size_t block = 0; block < 3; block++) {
            assert_memory_equal(
                back + block * 1024, context.bytes + (block + 1) * 2048 + 1024, 1024);
        }
        kvist_selection_t head = {.block_count = 2, .first_head = 1, .head_count = 1};
        piece.bytes = 2 * 4 * 256;
        assert_int_equal(kvist_selection_bytes(&bench.layout, &head), piece.bytes);
        assert_int_equal(load(&bench, lease, head, &piece, 1).block_count, 2);
        for (size_t unit = 0; unit < 8; unit++) { /* block, layer, k or v */
            assert_memory_equal(back + unit * 256, context.bytes + unit * 512 + 256, 256);
        }
        kvist_lease_release(lease);
        store_context(&bench, &other, BLOCKS); /* now from disk */
        assert_int_equal(flush(&bench), KV_OK);
    }
    assert_true(bench_stats(&bench).tiers[KVIST_TIER_DISK].hit_blocks >= 5);
    free(context.bytes);
    free(other.bytes);
    bench_end(&bench);
}

static void what_is_asked_wrongly_is_refused(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "refused", 4);
    without_device(&bench);
    bench_with_host(&bench, BLOCKS);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    store_context(&bench, &context, 4);
    kvist_match_t match;
    kvist_lease_t *lease = match_context(&bench, &context, BLOCKS, &match);
    kvist_piece_t piece = {context.bytes, 2048};
    static const kvist_selection_t WRONG[] = {
        {.group = 1, .block_count = 1},
        {.first_block = 4, .block_count = 1}, /* beyond what was found */
        {.first_block = 5},
        {.block_count = UINT32_MAX},
        {.block_count = 2}, /* more than the piece */
        {.block_count = 1, .first_layer = 2},
        {.block_count = 1, .first_layer = 1, .layer_count = 2},
        {.block_count = 1, .first_head = 1},
        {.block_count = 1, .first_head = 1, .head_count = 2},
    };
    transfer_t transfer = {0};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        assert_int_equal(
            kvist_lease_load(lease, &WRONG[i], &piece, 1, note_loaded, &transfer), KV_INVALID);
    }
    kvist_piece_t nowhere = {NULL, 2048};
    kvist_selection_t right = {.block_count = 1};
    assert_int_equal(
        kvist_lease_load(lease, &right, &nowhere, 1, note_loaded, &transfer), KV_INVALID);
    char long_name[64];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[63] = '\0';
    const kvist_put_t wrong_puts[] = {
        {.group = 1, .first_block = 4, .block_count = 1},
        {.first_block = 3, .block_count = 1},
        {.first_block = 5, .block_count = 1},
        {.first_block = 4, .block_count = 2},      /* more than the piece */
        {.first_block = 4, .block_count = BLOCKS}, /* tokens that nobody gave */
        {.first_block = 4, .block_count = UINT32_MAX, .tokens = context.tokens},
        {.first_block = 4, .block_count = 1, .arithmetic = long_name},
    };
    for (size_t i = 0; i < sizeof wrong_puts / sizeof wrong_puts[0]; i++) {
        assert_int_equal(
            kvist_lease_store(lease, &wrong_puts[i], &piece, 1, note_stored, &transfer),
            KV_INVALID);
    }
    kvist_lease_release(lease);
    kvist_query_t query = {.name_space = bench.name_space, .tokens = context.tokens};
    query.terms.priority = KVIST_PRIORITY_COUNT;
    assert_int_equal(kvist_match(bench.store, &query, &lease, &match), KV_INVALID);
    query.terms = (kvist_terms_t){.expires_unix_ns = 5, .pin_until_unix_ns = 6};
    assert_int_equal(kvist_match(bench.store, &query, &lease, &match), KV_INVALID);
    query.terms = (kvist_terms_t){.tenant = long_name};
    assert_int_equal(kvist_match(bench.store, &query, &lease, &match), KV_INVALID);
    free(context.bytes);
    bench_end(&bench);
}

static void a_context_may_be_larger_than_host_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "large", 4);
    without_device(&bench);
    bench_with_host(&bench, 6);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, 64, 0, &context);
    store_context(&bench, &context, 64);
    check_context(&bench, &context, 64);
    check_accounts(&bench);
    bench_end(&bench);
    /* Without a disk there is no room, and the answer says so. */
    bench_init(&bench, "small", 4);
    without_device(&bench);
    bench_with_host(&bench, 6);
    bench_open(&bench);
    kvist_match_t match;
    kvist_lease_t *lease = match_context(&bench, &context, 64, &match);
    kvist_piece_t piece = {context.bytes, context.count};
    transfer_t stored = store(&bench, lease, (kvist_put_t){.block_count = 64}, &piece, 1);
    assert_int_equal(stored.status, KV_NO_SPACE);
    assert_true(stored.block_count < 64);
    kvist_lease_release(lease);
    check_accounts(&bench);
    bench_end(&bench);
    free(context.bytes);
}

static void what_another_lease_stores_is_pending(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "pending", 4);
    without_device(&bench);
    bench_with_host(&bench, BLOCKS);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    kvist_match_t match;
    kvist_lease_t *first = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.miss, KVIST_MISS_NEW);
    kvist_lease_t *second = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.miss, KVIST_MISS_PENDING);
    kvist_lease_release(second);
    kvist_piece_t piece = {context.bytes, 3 * context.object_bytes};
    store(&bench, first, (kvist_put_t){.block_count = 3}, &piece, 1);
    second = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.block_count, 3);
    assert_int_equal(match.miss, KVIST_MISS_PENDING);
    kvist_lease_release(second);
    kvist_lease_release(first);
    second = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.miss, KVIST_MISS_NEW);
    kvist_lease_release(second);
    free(context.bytes);
    bench_end(&bench);
}

static void two_leases_may_store_the_same_blocks(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "same", 4);
    without_device(&bench);
    bench_with_host(&bench, 2 * BLOCKS);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    kvist_match_t match;
    kvist_lease_t *leases[2];
    transfer_t transfers[2] = {{0}};
    kvist_piece_t piece = {context.bytes, context.count};
    kvist_put_t put = {
        .block_count = BLOCKS, .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
    for (int i = 0; i < 2; i++) {
        leases[i] = match_context(&bench, &context, BLOCKS, &match);
        assert_int_equal(
            kvist_lease_store(leases[i], &put, &piece, 1, note_stored, &transfers[i]), KV_OK);
    }
    for (int i = 0; i < 2; i++) {
        wait_transfer(&bench, &transfers[i]);
        assert_int_equal(transfers[i].status, KV_OK);
        assert_int_equal(transfers[i].block_count, BLOCKS);
        kvist_lease_release(leases[i]);
    }
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_HOST].object_count, BLOCKS);
    check_context(&bench, &context, BLOCKS);
    check_accounts(&bench);
    free(context.bytes);
    bench_end(&bench);
}

/* Released with everything under way: each callback still runs, and nothing is lost or leaked. */
static void a_release_cancels_what_is_under_way(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "cancel", 4);
    without_device(&bench);
    bench_with_host(&bench, 4);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, 64, 0, &context);
    store_context(&bench, &context, 16);
    assert_int_equal(flush(&bench), KV_OK);
    kvist_match_t match;
    for (int turns = 0; turns < 6; turns++) {
        transfer_t loaded = {0}, stored[2] = {{0}};
        kvist_lease_t *lease = match_context(&bench, &context, 64, &match);
        char *back = malloc(context.count);
        uint32_t found = match.block_count;
        kvist_selection_t selection = {.block_count = found};
        kvist_piece_t out = {back, found * context.object_bytes};
        assert_int_equal(kvist_lease_load(lease, &selection, &out, 1, note_loaded, &loaded), KV_OK);
        for (uint32_t i = 0; i < 2; i++) {
            kvist_piece_t in = {
                context.bytes + (found + 8 * i) * context.object_bytes, 8 * context.object_bytes};
            kvist_put_t put = {.first_block = found + 8 * i,
                .block_count = 8,
                .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
            assert_int_equal(
                kvist_lease_store(lease, &put, &in, 1, note_stored, &stored[i]), KV_OK);
        }
        for (int i = 0; i < turns; i++) {
            bench_turn(&bench);
        }
        kvist_lease_release(lease);
        wait_transfer(&bench, &loaded);
        for (int i = 0; i < 2; i++) {
            wait_transfer(&bench, &stored[i]);
            assert_true(stored[i].status == KV_CANCELLED ||
                        (stored[i].status == KV_OK && stored[i].block_count == 8));
        }
        free(back);
        assert_int_equal(bench_stats(&bench).leases, 0);
        check_accounts(&bench);
        kvist_match_t again;
        lease = match_context(&bench, &context, 64, &again);
        assert_true(again.block_count >= found + stored[0].block_count);
        kvist_lease_release(lease);
        if (again.block_count > 40) {
            break;
        }
    }
    free(context.bytes);
    bench_end(&bench);
}

/* The first reads have to be asked for again, many times. */
static int64_t put_off(void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    uint32_t *left = context;
    return after && request->kind == KV_RING_READ && *left > 0 && (*left)-- > 0 ? -EAGAIN : result;
}

static void a_close_waits_for_what_a_released_lease_has_under_way(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "close", 4);
    without_device(&bench);
    bench_with_host(&bench, 4);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, 32, 0, &context);
    store_context(&bench, &context, 32);
    char *back = malloc(context.count);
    uint32_t left = 0;
    bench.seams.faults = (kv_ring_faults_t){put_off, &left};
    for (int turn = 0; turn < 5; turn++) {
        bench_close(&bench);
        bench_open(&bench);
        left = 1000;
        kvist_match_t match;
        kvist_lease_t *lease = match_context(&bench, &context, 32, &match);
        kvist_selection_t selection = {.block_count = 32};
        kvist_piece_t out = {back, context.count};
        transfer_t loaded = {0};
        assert_int_equal(kvist_lease_load(lease, &selection, &out, 1, note_loaded, &loaded), KV_OK);
        kvist_lease_release(lease);
        bench_close(&bench);
        assert_true(loaded.ended);
        assert_int_equal(loaded.status, KV_CANCELLED);
        bench_open(&bench);
    }
    free(back);
    free(context.bytes);
    bench_end(&bench);
}

static int64_t fail_third_read(
    void *context, bool after, kv_ring_request_t *request, int64_t result)
{
    uint32_t *reads = context;
    return after && request->kind == KV_RING_READ && ++*reads >= 3 ? -EIO : result;
}

static void a_load_that_fails_half_way_keeps_its_good_prefix(void **state)
{
    (void)state;
    bench_t bench;
    uint32_t reads = 0;
    bench_init(&bench, "half", 4);
    without_device(&bench);
    bench_with_host(&bench, BLOCKS);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    store_context(&bench, &context, BLOCKS);
    bench_close(&bench);
    bench.seams.faults = (kv_ring_faults_t){fail_third_read, &reads};
    bench_open(&bench);
    kvist_match_t match;
    kvist_lease_t *lease = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.block_count, BLOCKS);
    char *back = malloc(context.count);
    kvist_piece_t pieces[BLOCKS];
    transfer_t single[BLOCKS] = {{0}};
    for (uint32_t i = 0; i < BLOCKS; i++) { /* each alone: the first two work */
        pieces[i] = (kvist_piece_t){back + i * context.object_bytes, context.object_bytes};
        kvist_selection_t one = {.first_block = i, .block_count = 1};
        single[i] = load(&bench, lease, one, &pieces[i], 1);
        assert_int_equal(single[i].block_count, i < 2);
        assert_int_equal(single[i].miss, i < 2 ? KVIST_MISS_NONE : KVIST_MISS_FAILED);
    }
    assert_memory_equal(back, context.bytes, 2 * context.object_bytes);
    kvist_lease_release(lease);
    bench.seams.faults.hook = NULL;
    bench_close(&bench);
    bench_open(&bench);
    check_context(&bench, &context, BLOCKS); /* nothing was dropped */
    free(back);
    free(context.bytes);
    bench_end(&bench);
}

static void what_is_read_again_comes_up_to_host_memory(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "promote", 4);
    without_device(&bench);
    bench_with_host(&bench, 2 * BLOCKS);
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    store_context(&bench, &context, BLOCKS);
    bench_close(&bench);
    bench_open(&bench);
    static const uint64_t FROM_DISK[] = {BLOCKS, 2 * BLOCKS, 2 * BLOCKS, 2 * BLOCKS};
    for (int turn = 0; turn < 4; turn++) {
        check_context(&bench, &context, BLOCKS);
        kvist_stats_t stats = bench_stats(&bench);
        assert_int_equal(stats.tiers[KVIST_TIER_DISK].hit_blocks, FROM_DISK[turn]);
        assert_int_equal(stats.tiers[KVIST_TIER_HOST].object_count, turn > 0 ? BLOCKS : 0);
        check_accounts(&bench);
    }
    context_t others[3];
    for (uint32_t i = 0; i < 3; i++) { /* and goes again when others need the room */
        make_context(&bench, 2 + i, BLOCKS, 0, &others[i]);
        store_context(&bench, &others[i], BLOCKS);
        free(others[i].bytes);
    }
    check_context(&bench, &context, BLOCKS);
    check_accounts(&bench);
    free(context.bytes);
    bench_end(&bench);
}

/* ---- several groups ---- */

/* A full group, a window of 40 tokens, a state. */
static void with_groups(bench_t *bench)
{
    kvist_layout_t *layout = &bench->layout;
    layout->group_count = 3;
    layout->groups[1] = (kvist_group_t){.kind = KVIST_GROUP_WINDOW,
        .window_tokens = 40,
        .layers = {0x3c},
        .part_count = 2,
        .parts = {{KVIST_PART_LATENT, 1, 24, 2}, {KVIST_PART_ROPE, 1, 5, 2}}};
    layout->groups[2] = (kvist_group_t){.kind = KVIST_GROUP_STATE,
        .layers = {0xc0},
        .part_count = 1,
        .parts = {{KVIST_PART_STATE, 3, 333, 1}}};
    kvist_namespace_params_t identity = {.layout = layout, .salt = "", .adapter = ""};
    bench->name_space = kvist_namespace(&identity);
    without_device(bench);
}

static void store_group(bench_t *bench, kvist_lease_t *lease, const context_t *context,
    uint32_t group, uint32_t first, uint32_t count)
{
    kvist_piece_t piece = {
        context->bytes + first * context->object_bytes, count * context->object_bytes};
    kvist_put_t put = {.group = group, .first_block = first, .block_count = count};
    transfer_t stored = store(bench, lease, put, &piece, 1);
    assert_int_equal(stored.status, KV_OK);
    assert_int_equal(stored.block_count, count);
}

static uint32_t hit_blocks(bench_t *bench, const context_t *context, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_context(bench, context, blocks, &match);
    kvist_lease_release(lease);
    return match.block_count;
}

static void a_hit_is_what_all_groups_can_serve(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "groups", 4);
    with_groups(&bench);
    bench.params.host_bytes = 400 << 10;
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t full, window, snapshot;
    make_context(&bench, 1, 16, 0, &full);
    make_context(&bench, 1, 16, 1, &window);
    make_context(&bench, 1, 16, 2, &snapshot);
    kvist_match_t match;
    kvist_lease_t *lease = match_context(&bench, &full, 16, &match);
    store_group(&bench, lease, &full, 0, 0, 12);
    assert_int_equal(hit_blocks(&bench, &full, 16), 0); /* no snapshot anywhere */
    store_group(&bench, lease, &snapshot, 2, 9, 1);
    store_group(&bench, lease, &snapshot, 2, 5, 1);
    assert_int_equal(hit_blocks(&bench, &full, 16), 0); /* no window */
    store_group(&bench, lease, &window, 1, 3, 3);
    /* A hit at 6 blocks (96 tokens) needs tokens 57 to 95: blocks 3 to 5. */
    assert_int_equal(hit_blocks(&bench, &full, 16), 6);
    store_group(&bench, lease, &window, 1, 7, 5);
    assert_int_equal(hit_blocks(&bench, &full, 16), 10); /* the snapshot at 10 */
    assert_int_equal(hit_blocks(&bench, &full, 9), 6);
    kvist_lease_release(lease);
    for (int round = 0; round < 2; round++) {
        lease = match_context(&bench, &full, 16, &match);
        assert_int_equal(match.block_count, 10);
        assert_int_equal(match.tier_blocks[round == 0 ? KVIST_TIER_HOST : KVIST_TIER_DISK], 10);
        const context_t *contexts[] = {&full, &window, &snapshot};
        static const uint32_t FIRST[] = {0, 7, 9};
        for (uint32_t group = 0; group < 3; group++) {
            const context_t *of = contexts[group];
            uint32_t count = 10 - FIRST[group];
            char *back = malloc(count * of->object_bytes);
            kvist_piece_t piece = {back, count * of->object_bytes};
            transfer_t loaded = load(&bench, lease,
                (kvist_selection_t){
                    .group = group, .first_block = FIRST[group], .block_count = count},
                &piece, 1);
            assert_int_equal(loaded.block_count, count);
            assert_memory_equal(back, of->bytes + FIRST[group] * of->object_bytes, piece.bytes);
            free(back);
        }
        char one[2048];
        kvist_piece_t piece = {one, snapshot.object_bytes};
        transfer_t none = load(&bench, lease,
            (kvist_selection_t){.group = 2, .first_block = 8, .block_count = 1}, &piece, 1);
        assert_int_equal(none.block_count, 0);
        assert_int_equal(none.miss, KVIST_MISS_NEW);
        kvist_lease_release(lease);
        bench_close(&bench);
        bench_open(&bench);
    }
    bench_end(&bench);
    free(full.bytes);
    free(window.bytes);
    free(snapshot.bytes);
}

/* A full group and windows behind it, as many as there may be, in every tier. */
static void as_many_groups_as_there_may_be(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "most-groups", 4);
    with_groups(&bench);
    kvist_layout_t *layout = &bench.layout;
    kv_error_t error;
    layout->group_count = KVIST_GROUPS_MAX + 1;
    assert_int_equal(kvist_layout_check(layout, &error), KV_INVALID);
    layout->group_count = KVIST_GROUPS_MAX;
    for (uint32_t group = 2; group < KVIST_GROUPS_MAX; group++) {
        layout->groups[group] = layout->groups[1];
        layout->groups[group].layers[0] <<= 4 * (group - 1);
    }
    kvist_namespace_params_t identity = {.layout = layout, .salt = "", .adapter = ""};
    bench.name_space = kvist_namespace(&identity);
    bench.params.host_bytes = 4 << 20;
    bench_with_disk(&bench, 8);
    bench_open(&bench);
    context_t of[KVIST_GROUPS_MAX];
    kvist_match_t match;
    make_context(&bench, 1, 8, 0, &of[0]);
    kvist_lease_t *lease = match_context(&bench, &of[0], 8, &match);
    store_group(&bench, lease, &of[0], 0, 0, 8);
    for (uint32_t group = 1; group < KVIST_GROUPS_MAX; group++) {
        make_context(&bench, 1, 8, group, &of[group]);
        assert_int_equal(hit_blocks(&bench, &of[0], 8), 0);
        store_group(&bench, lease, &of[group], group, 0, 8);
    }
    kvist_lease_release(lease);
    for (int round = 0; round < 2; round++) {
        lease = match_context(&bench, &of[0], 8, &match);
        assert_int_equal(match.tier_blocks[round == 0 ? KVIST_TIER_HOST : KVIST_TIER_DISK], 8);
        for (uint32_t group = 0; group < KVIST_GROUPS_MAX; group++) {
            uint32_t first = group == 0 ? 0 : 5; /* a window needs blocks 5 to 7 */
            kvist_selection_t selection = {
                .group = group, .first_block = first, .block_count = 8 - first};
            char *back = malloc((8 - first) * of[group].object_bytes);
            kvist_piece_t piece = {back, (8 - first) * of[group].object_bytes};
            assert_int_equal(load(&bench, lease, selection, &piece, 1).block_count, 8 - first);
            assert_memory_equal(
                back, of[group].bytes + first * of[group].object_bytes, piece.bytes);
            free(back);
        }
        kvist_lease_release(lease);
        bench_close(&bench);
        bench_open(&bench);
    }
    bench_end(&bench);
    for (uint32_t group = 0; group < KVIST_GROUPS_MAX; group++) {
        free(of[group].bytes);
    }
}

static kvist_object_t shown(const bench_t *bench, const kvist_key_t *key)
{
    kvist_object_t object;
    assert_int_equal(kvist_store_show(bench->store, key, &object), KV_OK);
    return object;
}

/* Bytes, terms, verification and drop are those of a block's objects of all groups. */
static void a_block_is_kept_and_dropped_in_all_groups(void **state)
{
    (void)state;
    for (int erase = 0; erase < 2; erase++) {
        bench_t bench;
        bench_init(&bench, "group-drop", 4);
        with_groups(&bench);
        bench.params.host_bytes = 400 << 10;
        bench_with_disk(&bench, 8);
        bench_open(&bench);
        context_t of[3];
        kvist_match_t match;
        for (uint32_t group = 0; group < 3; group++) {
            make_context(&bench, 1, 16, group, &of[group]);
        }
        kvist_lease_t *lease = match_context(&bench, &of[0], 16, &match);
        store_group(&bench, lease, &of[0], 0, 0, 12);
        store_group(&bench, lease, &of[1], 1, 3, 3);
        store_group(&bench, lease, &of[1], 1, 7, 5);
        store_group(&bench, lease, &of[2], 2, 5, 1);
        store_group(&bench, lease, &of[2], 2, 9, 1);
        kvist_lease_release(lease);
        assert_int_equal(flush(&bench), KV_OK);

        kvist_object_t object = shown(&bench, &of[0].keys[9]);
        assert_int_equal(object.groups, 7);
        assert_int_equal(object.children, 1);
        assert_int_equal(
            object.bytes, of[0].object_bytes + of[1].object_bytes + of[2].object_bytes);
        kvist_terms_t terms = {.pin_until_unix_ns = UINT64_C(4000000000) * KV_NS_PER_S};
        assert_int_equal(kvist_store_keep(bench.store, &of[0].keys[11], &terms), KV_OK);
        kvist_key_t state_key = kv_identity_group_key(&of[0].keys[9], 2);
        const kv_object_t *state_object =
            kv_table_at(bench.store->table, kv_table_find(bench.store->table, &state_key));
        assert_int_equal(state_object->pin_until_s, 4000000000u);

        outcome_t outcome = {0};
        assert_int_equal(
            kvist_store_drop(bench.store, &of[0].keys[6], erase != 0, note_dropped, &outcome),
            KV_OK);
        wait_for(&bench, &outcome);
        assert_int_equal(outcome.status, KV_OK);
        assert_int_equal(outcome.match.block_count, 6 + 5 + 1);
        for (int lost = 0; lost < 2; lost++) {
            assert_int_equal(kv_table_count(bench.store->table), 6 + 3 + 1);
            assert_int_equal(hit_blocks(&bench, &of[0], 16), 6);
            bench_close(&bench);
            if (lost) {
                char command[600];
                snprintf(command, sizeof command, "rm -r '%s/index'", bench.folder);
                assert_int_equal(system(command), 0);
            }
            bench_open(&bench);
        }
        assert_int_equal(kv_table_count(bench.store->table), 6 + 3 + 1);
        bench_end(&bench);
        for (uint32_t group = 0; group < 3; group++) {
            free(of[group].bytes);
        }
    }
}

/* ---- terms ---- */

static kvist_lease_t *match_under(
    bench_t *bench, const context_t *context, uint32_t blocks, kvist_terms_t terms, bool renew)
{
    kvist_lease_t *lease;
    kvist_match_t match;
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = context->tokens,
        .token_count = (size_t)blocks * BLOCK_TOKENS,
        .terms = terms,
        .renew = renew};
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    kvist_piece_t piece = {context->bytes + match.block_count * context->object_bytes,
        (blocks - match.block_count) * context->object_bytes};
    kvist_put_t put = {.first_block = match.block_count, .block_count = blocks - match.block_count};
    assert_int_equal(store(bench, lease, put, &piece, 1).status, KV_OK);
    return lease;
}

static void an_expired_block_is_a_miss_to_the_second(void **state)
{
    (void)state;
    bench_t bench;
    kv_virtual_clock_t clock;
    const uint64_t start_ns = 1700000000ull * KV_NS_PER_S;
    kv_virtual_clock_init(&clock, start_ns);
    bench_init(&bench, "expiry", 4);
    without_device(&bench);
    bench_with_host(&bench, 4 * BLOCKS);
    bench_with_disk(&bench, 8);
    bench.params.clock = &clock.clock;
    bench_open(&bench);
    context_t context;
    make_context(&bench, 1, BLOCKS, 0, &context);
    kvist_terms_t ten = {.expires_unix_ns = start_ns + 10ull * KV_NS_PER_S, .tenant = "somebody"};
    kvist_terms_t thirty = {.expires_unix_ns = start_ns + 30ull * KV_NS_PER_S};
    kvist_lease_release(match_under(&bench, &context, BLOCKS, ten, false));
    kv_virtual_clock_advance(&clock, 9ull * KV_NS_PER_S + KV_NS_PER_S / 2);
    assert_int_equal(hit_blocks(&bench, &context, BLOCKS), BLOCKS); /* a read renews nothing */
    kvist_lease_release(match_under(&bench, &context, 3, thirty, true));
    assert_int_equal(flush(&bench), KV_OK);
    bench_close(&bench);
    bench_open(&bench); /* what was renewed after it was written survives */
    kvist_match_t match;
    kv_virtual_clock_advance(&clock, KV_NS_PER_S / 2);
    kvist_lease_t *lease = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.block_count, 3);
    assert_int_equal(match.miss, KVIST_MISS_EXPIRED);
    kvist_lease_release(lease);
    kv_virtual_clock_advance(&clock, 20ull * KV_NS_PER_S);
    lease = match_context(&bench, &context, BLOCKS, &match);
    assert_int_equal(match.block_count, 0);
    assert_int_equal(match.miss, KVIST_MISS_EXPIRED);
    kvist_lease_release(lease);
    assert_int_equal(store_context(&bench, &context, BLOCKS), 0); /* and can be stored again */
    check_context(&bench, &context, BLOCKS);
    check_accounts(&bench);
    free(context.bytes);
    bench_end(&bench);
}

/* Background contexts leave host memory before interactive ones, whatever was used last. */
static void background_goes_first(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "classes", 4);
    without_device(&bench);
    bench_with_host(&bench, 2 * BLOCKS);
    bench_open(&bench);
    context_t interactive, background, more;
    make_context(&bench, 1, BLOCKS, 0, &interactive);
    make_context(&bench, 2, BLOCKS, 0, &background);
    make_context(&bench, 3, BLOCKS, 0, &more);
    kvist_terms_t low = {.priority = KVIST_PRIORITY_BACKGROUND};
    kvist_lease_release(match_under(&bench, &interactive, BLOCKS, (kvist_terms_t){0}, false));
    kvist_lease_release(match_under(&bench, &background, BLOCKS, low, false));
    kvist_lease_release(match_under(&bench, &more, BLOCKS, low, false));
    assert_int_equal(hit_blocks(&bench, &interactive, BLOCKS), BLOCKS);
    assert_int_equal(hit_blocks(&bench, &background, BLOCKS), 0);
    /* An interactive continuation lifts what it stands on. */
    kvist_lease_release(match_under(&bench, &more, BLOCKS - 1, (kvist_terms_t){0}, false));
    check_accounts(&bench);
    free(interactive.bytes);
    free(background.bytes);
    free(more.bytes);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_stored_is_loaded_from_every_tier),
        cmocka_unit_test(pieces_may_have_any_sizes),
        cmocka_unit_test(what_waits_for_its_turn_was_copied),
        cmocka_unit_test(one_layer_or_head_is_loaded_alone),
        cmocka_unit_test(what_is_asked_wrongly_is_refused),
        cmocka_unit_test(a_context_may_be_larger_than_host_memory),
        cmocka_unit_test(what_another_lease_stores_is_pending),
        cmocka_unit_test(two_leases_may_store_the_same_blocks),
        cmocka_unit_test(a_release_cancels_what_is_under_way),
        cmocka_unit_test(a_close_waits_for_what_a_released_lease_has_under_way),
        cmocka_unit_test(a_load_that_fails_half_way_keeps_its_good_prefix),
        cmocka_unit_test(what_is_read_again_comes_up_to_host_memory),
        cmocka_unit_test(a_hit_is_what_all_groups_can_serve),
        cmocka_unit_test(as_many_groups_as_there_may_be),
        cmocka_unit_test(a_block_is_kept_and_dropped_in_all_groups),
        cmocka_unit_test(an_expired_block_is_a_miss_to_the_second),
        cmocka_unit_test(background_goes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
