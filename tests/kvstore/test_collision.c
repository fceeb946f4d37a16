/* Two different contexts with the same keys: SHA-256 is made to ignore the token ids of a block.
 * Only the comparison of tokens stands between them then, in whatever tier the first one lies and
 * whatever way its bytes are asked for: the second one never gets them. */
#include "harness.h"

#include <dlfcn.h>

enum { BLOCKS = 4, DEVICE_SLOTS = 8, KEY_MESSAGE_BYTES = 128, TOKENS_AT = 40 };

static bool forging;

/* Stands in for libcrypto's; the message of a block's key comes in one piece. */
struct SHA256state_st;
int SHA256_Update(struct SHA256state_st *context, const void *data, size_t bytes);
int SHA256_Update(struct SHA256state_st *context, const void *data, size_t bytes)
{
    uint8_t message[KEY_MESSAGE_BYTES];
    if (forging && bytes == sizeof message) {
        memcpy(message, data, sizeof message);
        memset(message + TOKENS_AT, 0, BLOCK_TOKENS * sizeof(uint32_t));
        data = message;
    }
    return ((__typeof__(&SHA256_Update))dlsym(RTLD_NEXT, "SHA256_Update"))(context, data, bytes);
}

typedef enum { ON_DEVICE, ON_HOST, ON_DISK, PLACE_COUNT } place_t;

static void fill_bytes(uint32_t context, char *bytes, size_t count)
{
    memset(bytes, (int)('a' + context), count);
}

static kvist_lease_t *match_context(bench_t *bench, uint32_t context, kvist_match_t *match_out)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    return match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, match_out);
}

/* As a request that computes what it does not find; answers how many blocks it found: these have
 * the bytes of its context. */
static kvist_match_t store_context(bench_t *bench, uint32_t context)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    char *expected = malloc(block_bytes(bench));
    fill_bytes(context, expected, block_bytes(bench));
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = match_context(bench, context, &match);
    outcome_t outcome = prepare(bench, lease, BLOCKS);
    assert_int_equal(outcome.status, KV_OK);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        char *slot = slot_bytes(bench, kvist_lease_slots(lease)[block]);
        if (block < outcome.match.block_count) {
            assert_memory_equal(slot, expected, block_bytes(bench));
        } else {
            memcpy(slot, expected, block_bytes(bench));
            kvist_lease_seal(lease, tokens + block * BLOCK_TOKENS, NULL, "test/plain");
        }
    }
    kvist_lease_release(lease);
    free(expected);
    return outcome.match;
}

static void note_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    *(outcome_t *)context = (outcome_t){
        .ended = true, .status = status, .match = {.block_count = block_count, .miss = miss}};
}

/* Copies what the match found into memory of ours. */
static uint32_t load_context(bench_t *bench, uint32_t context)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_context(bench, context, &match);
    outcome_t outcome = {0};
    if (match.block_count > 0) {
        size_t bytes = match.block_count * block_bytes(bench);
        char *memory = malloc(bytes), *expected = malloc(bytes);
        kvist_piece_t piece = {memory, bytes};
        kvist_selection_t selection = {.block_count = match.block_count};
        assert_int_equal(
            kvist_lease_load(lease, &selection, &piece, 1, note_loaded, &outcome), KV_OK);
        wait_for(bench, &outcome);
        assert_int_equal(outcome.status, KV_OK);
        fill_bytes(context, expected, bytes);
        assert_memory_equal(memory, expected, outcome.match.block_count * block_bytes(bench));
        free(memory);
        free(expected);
    }
    kvist_lease_release(lease);
    return outcome.match.block_count;
}

/* The blocks of context 0 lie in that tier alone, or fastest. */
static void open_with_context(bench_t *bench, place_t place)
{
    bench_init(bench, "collision", DEVICE_SLOTS);
    if (place == ON_HOST) {
        bench_with_host(bench, 64);
    }
    if (place == ON_DISK) {
        bench_with_disk(bench, 8);
    }
    bench_open(bench);
    assert_int_equal(store_context(bench, 0).block_count, 0);
    if (place == ON_DEVICE) {
        return;
    }
    if (place == ON_DISK) {
        assert_int_equal(flush(bench), KV_OK);
    }
    kvist_key_t name_space = bench->name_space;
    for (uint8_t other = 1; other <= 2; other++) { /* pushes it out, under keys of its own */
        bench->name_space.bytes[0] = (uint8_t)(name_space.bytes[0] + other);
        store_context(bench, other);
    }
    bench->name_space = name_space;
    kvist_match_t match;
    kvist_lease_release(match_context(bench, 0, &match));
    assert_int_equal(
        match.tier_blocks[place == ON_HOST ? KVIST_TIER_HOST : KVIST_TIER_DISK], BLOCKS);
}

static void another_context_never_gets_the_bytes(void **state)
{
    (void)state;
    forging = true;
    for (int place = 0; place < 2 * PLACE_COUNT; place++) {
        bench_t bench;
        open_with_context(&bench, (place_t)(place / 2));
        if (place % 2 == 0) {
            kvist_match_t match = store_context(&bench, 5);
            assert_int_equal(match.block_count, 0);
            assert_int_equal(match.miss, KVIST_MISS_DAMAGED);
        } else {
            assert_int_equal(load_context(&bench, 5), 0);
            store_context(&bench, 5);
        }
        assert_true(bench_stats(&bench).damaged_objects > 0);
        assert_int_equal(load_context(&bench, 5), BLOCKS);
        assert_int_equal(load_context(&bench, 0), 0); /* and not the other way round */
        check_accounts(&bench);
        bench_end(&bench);
    }
    forging = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_context_never_gets_the_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
