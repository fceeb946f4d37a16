/* Blocks with extra keys: equal tokens that do not mean the same KV, in every tier, embedded and
 * attached. Contexts of one number have the same tokens; which extra keys they have says their
 * kind. */
#include "attach_bench.h"

enum { SLOTS = 8 * BLOCKS };

/* ---- contexts ---- */

/* How contexts of equal tokens differ. */
typedef enum {
    PLAIN,       /* no extra keys */
    FROM_FIRST,  /* one image, from the first block on */
    FROM_FIFTH,  /* the same image, from the fifth block on */
    OTHER_FIFTH, /* another image there */
    ONE_BIT,     /* an extra key of one bit in the fifth block alone */
    KINDS
} kind_t;

static context_t context_of(const bench_t *bench, uint32_t number, kind_t kind)
{
    context_t context;
    make_context(bench, number, &context);
    const kvist_key_t image = kv_identity_digest("image", 5),
                      other = kv_identity_digest("other", 5);
    uint32_t first = kind == FROM_FIRST ? 0 : 4;
    for (uint32_t block = first; block < BLOCKS && kind != PLAIN && kind != ONE_BIT; block++) {
        context.extras[block] = kind == OTHER_FIFTH ? other : image;
    }
    context.extras[4].bytes[31] ^= kind == ONE_BIT;
    fill_context(bench, &context);
    return context;
}

/* All kinds, one after the other: each finds what it shares with those before it, and no more. */
static void store_all(bench_t *bench, uint32_t number)
{
    static const uint32_t SHARED[KINDS] = {0, 0, 4, 4, 4};
    for (kind_t kind = PLAIN; kind < KINDS; kind++) {
        context_t context = context_of(bench, number, kind);
        assert_int_equal(store_context(bench, &context, BLOCKS), SHARED[kind]);
    }
}

/* Each kind gets its own bytes; answers how many blocks came out of that tier. */
static uint32_t check_all(bench_t *bench, uint32_t number, kvist_tier_t tier)
{
    uint32_t count = 0;
    for (kind_t kind = PLAIN; kind < KINDS; kind++) {
        context_t context = context_of(bench, number, kind);
        count += check_context(bench, &context, BLOCKS).tier_blocks[tier];
    }
    return count;
}

/* Nothing is found under an extra key that nobody stored, and no more under one further down. */
static void check_apart(bench_t *bench, uint32_t number)
{
    context_t image = context_of(bench, number, FROM_FIRST);
    kvist_match_t match;
    image.extras[0].bytes[7] ^= 1;
    kvist_lease_release(match_blocks(bench, &image, BLOCKS, &match));
    assert_int_equal(match.block_count, 0);
    context_t fifth = context_of(bench, number, FROM_FIFTH);
    fifth.extras[9] = (kvist_key_t){{0}};
    kvist_lease_release(match_blocks(bench, &fifth, BLOCKS, &match));
    assert_int_equal(match.block_count, 9);
}

static void begin_embedded(bench_t *bench, const char *name, uint32_t host_slots, uint32_t segments)
{
    bench_init(bench, name, 1);
    bench->params.device = NULL;
    bench->params.device_slot_count = 0;
    bench_with_host(bench, host_slots);
    if (segments > 0) {
        bench_with_disk(bench, segments);
    }
}

/* ---- on disk ---- */

/* The number in the directory's format. */
static unsigned format_of(const bench_t *bench)
{
    char path[600];
    unsigned version = 0;
    snprintf(path, sizeof path, "%s/format", bench->folder);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "kvist-store %u", &version), 1);
    fclose(file);
    return version;
}

static const kv_object_t *object_of(const bench_t *bench, const kvist_key_t *key)
{
    uint32_t number = kv_table_find(bench->store->table, key);
    assert_int_not_equal(number, KV_OBJECT_NONE);
    return kv_table_at(bench->store->table, number);
}

/* Reads, or with flip changes, bytes of the block's record. */
static void visit_record(
    const bench_t *bench, const kvist_key_t *key, off_t at, uint8_t *byte, bool flip)
{
    const kv_object_t *object = object_of(bench, key);
    char path[KV_FOLDER_BYTES + 64];
    kv_segment_path(bench->folder, object->segment, path, sizeof path);
    int fd = open(path, O_RDWR);
    off_t offset = (off_t)object->offset_pages * KV_PAGE_BYTES + at;
    assert_int_equal(pread(fd, byte, 1, offset), 1);
    if (flip) {
        *byte ^= 0x20;
        assert_int_equal(pwrite(fd, byte, 1, offset), 1);
        fsync(fd);
    }
    close(fd);
}

static void tier_by_tier(bench_t *bench)
{
    bench_open(bench);
    store_all(bench, 1);
    check_apart(bench, 1);
    assert_int_equal(check_all(bench, 1, KVIST_TIER_DISK), 0);
    bench_close(bench); /* to disk */
    bench_open(bench);
    check_apart(bench, 1);
    assert_true(check_all(bench, 1, KVIST_TIER_DISK) > 3 * BLOCKS);
    check_all(bench, 1, KVIST_TIER_DISK); /* the second reading brings it to host memory */
    assert_true(check_all(bench, 1, KVIST_TIER_HOST) > 3 * BLOCKS);
    bench_close(bench);
    bench_lose_index(bench); /* made anew from the records */
    bench_open(bench);
    check_apart(bench, 1);
    assert_true(check_all(bench, 1, KVIST_TIER_DISK) > 3 * BLOCKS);
    kvist_stats_t stats = bench_stats(bench);
    assert_int_equal(stats.damaged_objects + stats.failed_reads, 0);
    assert_int_equal(format_of(bench), 5);
    bench_end(bench);
}

static void equal_tokens_never_meet_in_any_tier(void **state)
{
    (void)state;
    for (kvist_codec_t codec = KVIST_CODEC_NONE; codec < KVIST_CODEC_COUNT; codec++) {
        bench_t bench;
        begin_embedded(&bench, "tiers", SLOTS, 16);
        bench.params.codec = codec;
        tier_by_tier(&bench);
    }
}

static void nor_where_records_are_encrypted(void **state)
{
    (void)state;
    bench_t bench;
    char key_file[600];
    kv_error_t error;
    begin_embedded(&bench, "encrypted", SLOTS, 16);
    snprintf(key_file, sizeof key_file, "%s.key", bench.folder);
    assert_int_equal(kvist_key_file_new(key_file, &error), KV_OK);
    bench.params.key_file = key_file;
    tier_by_tier(&bench);
}

/* A directory is what it was until a block with an extra key is written to it. */
static void records_without_extra_keys_are_as_before(void **state)
{
    (void)state;
    bench_t bench;
    uint8_t byte;
    begin_embedded(&bench, "format", SLOTS, 16);
    bench_open(&bench);
    context_t plain = context_of(&bench, 1, PLAIN), image = context_of(&bench, 1, FROM_FIFTH);
    store_context(&bench, &plain, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    assert_int_equal(format_of(&bench), 2);
    store_context(&bench, &image, BLOCKS);
    assert_int_equal(flush(&bench), KV_OK);
    assert_int_equal(format_of(&bench), 5);
    visit_record(&bench, &image.keys[3], 8, &byte, false); /* shared, without an extra key */
    assert_int_equal(byte, 2);
    visit_record(&bench, &image.keys[4], 8, &byte, false);
    assert_int_equal(byte, 4);
    for (off_t i = 0; i < KVIST_KEY_BYTES; i++) { /* behind the token ids */
        visit_record(&bench, &image.keys[4], 352 + 4 * BLOCK_TOKENS + i, &byte, false);
        assert_int_equal(byte, image.extras[4].bytes[i]);
    }
    bench_close(&bench);
    bench_open(&bench);
    assert_int_equal(format_of(&bench), 5);
    check_context(&bench, &plain, BLOCKS);
    check_context(&bench, &image, BLOCKS);
    bench_end(&bench);
}

/* What was moved out of a segment that is reclaimed is what it was. */
static void they_survive_reclaiming(void **state)
{
    (void)state;
    bench_t bench;
    begin_embedded(&bench, "reclaimed", 4 * BLOCKS, 4);
    bench_open(&bench);
    store_all(&bench, 1);
    const kvist_terms_t pinned = {.pin_until_unix_ns = UINT64_MAX / 2};
    for (kind_t kind = PLAIN; kind < KINDS; kind++) {
        context_t context = context_of(&bench, 1, kind);
        assert_int_equal(kvist_store_keep(bench.store, &context.keys[BLOCKS - 1], &pinned), KV_OK);
    }
    for (uint32_t number = 2; bench_stats(&bench).moved_objects < 20; number++) {
        assert_true(number < 500);
        context_t context = context_of(&bench, number, FROM_FIRST);
        store_context(&bench, &context, BLOCKS);
        assert_int_equal(flush(&bench), KV_OK);
    }
    bench_close(&bench);
    bench_open(&bench);
    assert_true(check_all(&bench, 1, KVIST_TIER_DISK) > 3 * BLOCKS);
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

/* ---- damage ---- */

static void a_changed_extra_key_is_found_on_disk(void **state)
{
    (void)state;
    for (off_t i = 0; i < KVIST_KEY_BYTES; i += 31) {
        bench_t bench;
        uint8_t byte;
        begin_embedded(&bench, "damaged", SLOTS, 16);
        bench_open(&bench);
        context_t context = context_of(&bench, 1, FROM_FIFTH);
        store_context(&bench, &context, BLOCKS);
        bench_close(&bench);
        bench_open(&bench);
        visit_record(&bench, &context.keys[6], 352 + 4 * BLOCK_TOKENS + i, &byte, true);
        kvist_match_t match;
        char back[BLOCKS * 2048];
        kvist_lease_t *lease = match_blocks(&bench, &context, BLOCKS, &match);
        transfer_t loaded = load_blocks(
            &bench, lease, (kvist_selection_t){.block_count = BLOCKS}, back, sizeof back);
        assert_int_equal(loaded.block_count, 6);
        assert_int_equal(loaded.miss, KVIST_MISS_DAMAGED);
        assert_memory_equal(back, context.bytes, 6 * 2048);
        kvist_lease_release(lease);
        bench_end(&bench);
    }
}

static void a_changed_extra_key_is_found_in_memory(void **state)
{
    (void)state;
    bench_t bench;
    begin_embedded(&bench, "memory", SLOTS, 0);
    bench_open(&bench);
    context_t context = context_of(&bench, 1, PLAIN);
    store_context(&bench, &context, BLOCKS);
    uint32_t slot = object_of(&bench, &context.keys[3])->host_slot;
    kv_pool_words(&bench.store->groups[0].host_pool, slot)[BLOCK_TOKENS + 7] ^= 1;
    kvist_match_t match;
    kvist_lease_release(match_blocks(&bench, &context, BLOCKS, &match));
    assert_int_equal(match.block_count, 3);
    assert_int_equal(match.miss, KVIST_MISS_DAMAGED);
    bench_end(&bench);
}

/* ---- device slots ---- */

/* As serve(), with extra keys. */
static kvist_match_t request_with(bench_t *bench, const context_t *context)
{
    kvist_match_t match;
    kvist_lease_t *lease = match_blocks(bench, context, BLOCKS, &match);
    outcome_t outcome = prepare(bench, lease, BLOCKS);
    assert_int_equal(outcome.status, KV_OK);
    const uint32_t *slots = kvist_lease_slots(lease);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        if (block < outcome.match.block_count) {
            check_block(bench, &context->keys[block], slots[block]);
            continue;
        }
        fill_block(&context->keys[block], slot_bytes(bench, slots[block]), block_bytes(bench));
        assert_int_equal(kvist_lease_seal(lease, context->tokens + (size_t)block * BLOCK_TOKENS,
                             &context->extras[block], "test/plain"),
            KV_OK);
    }
    kvist_lease_release(lease);
    return outcome.match;
}

static void engine_contexts(bench_t *bench)
{
    static const uint32_t SHARED[KINDS] = {0, 0, 4, 4, 4};
    for (int round = 0; round < 3; round++) {
        for (kind_t kind = PLAIN; kind < KINDS; kind++) {
            context_t context = context_of(bench, 1, kind);
            kvist_match_t match = request_with(bench, &context);
            assert_int_equal(match.block_count, round == 0 ? SHARED[kind] : BLOCKS);
        }
    }
}

static void sealed_blocks_go_down_and_come_back(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "sealed", BLOCKS + 2); /* each request pushes the one before it out */
    bench_with_host(&bench, 2 * BLOCKS);
    bench_with_disk(&bench, 16);
    bench_open(&bench);
    engine_contexts(&bench);
    kvist_stats_t stats = bench_stats(&bench);
    assert_true(stats.tiers[KVIST_TIER_DISK].hit_blocks > 0);
    assert_true(stats.tiers[KVIST_TIER_HOST].hit_blocks > 0);
    bench_end(&bench);
}

/* ---- attached ---- */

static void clients_of_a_service_share_them(void **state)
{
    (void)state;
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        service_t service;
        bench_t one, two, engine;
        begin_service(&service, "shared", on_disk ? 2 * BLOCKS : SLOTS, 16);
        open_client(&one, &service, "one", 0);
        open_client(&two, &service, "two", 0);
        open_client(&engine, &service, "engine", BLOCKS + 2);
        store_all(&one, 1);
        check_apart(&two, 1);
        kvist_tier_t tier = on_disk ? KVIST_TIER_DISK : KVIST_TIER_HOST;
        assert_true(check_all(&two, 1, tier) > BLOCKS);
        for (kind_t kind = PLAIN; kind < KINDS; kind++) { /* into its device slots */
            context_t context = context_of(&engine, 1, kind);
            assert_int_equal(request_with(&engine, &context).block_count, BLOCKS);
        }
        bench_end(&one);
        bench_end(&two);
        bench_end(&engine);
        end_service(&service);
    }
}

static void what_an_engine_seals_is_written_through_with_them(void **state)
{
    (void)state;
    service_t service;
    bench_t one, engine;
    begin_service(&service, "through", SLOTS, 0);
    open_client(&engine, &service, "engine", BLOCKS + 2);
    open_client(&one, &service, "one", 0);
    engine_contexts(&engine);
    wait_written(&engine);
    assert_int_equal(check_all(&one, 1, KVIST_TIER_HOST), KINDS * BLOCKS);
    check_apart(&one, 1);
    bench_end(&one);
    bench_end(&engine);
    end_service(&service);
}

/* A service that was told other extra keys than the query's finds nothing to copy. */
static void extras_out_of_bounds_end_the_client(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    begin_service(&service, "bounds", SLOTS, 0);
    open_client(&one, &service, "one", 0);
    static uint32_t tokens[8];
    static kvist_key_t extras[2];
    for (int wrong = 0; wrong < 3; wrong++) {
        raw_t raw;
        raw_begin(&raw, service.served.path, &one.layout);
        Kvist__Store__Match match = KVIST__STORE__MATCH__INIT;
        Kvist__Store__Put put = KVIST__STORE__PUT__INIT;
        uint32_t lease_tokens[4 * BLOCK_TOKENS];
        match.id = put.id = 1;
        match.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, one.name_space.bytes};
        match.tokens = (ProtobufCBinaryData){sizeof tokens, (uint8_t *)(void *)tokens};
        match.extras = (ProtobufCBinaryData){sizeof extras, extras[0].bytes};
        if (wrong == 0) { /* no block is whole */
            raw_send(&raw, KVIST__STORE__REQUEST__BODY_MATCH, &match, NULL, 0);
        } else {
            raw_match(&raw, &one, 0, 1, 4, lease_tokens);
            raw_expect_matched(&raw, 0, 0);
            put.block_count = 4;
            put.arithmetic = (char *)"raw";
            put.extras = match.extras;
            if (wrong == 2) { /* of two blocks, not four */
                put.tokens =
                    (ProtobufCBinaryData){sizeof lease_tokens, (uint8_t *)(void *)lease_tokens};
            }
            raw_send(&raw, KVIST__STORE__REQUEST__BODY_PUT, &put, NULL, 0);
        }
        raw_expect_end(&raw, KV_INVALID, "extras");
        raw_end(&raw);
    }
    bench_end(&one);
    end_service(&service);
}

/* ---- what is told ---- */

static void check_told(bench_t *bench)
{
    context_t image = context_of(bench, 1, FROM_FIFTH), other = context_of(bench, 1, OTHER_FIFTH);
    kvist_match_t match;
    store_context(bench, &image, BLOCKS);
    kvist_lease_release(match_blocks(bench, &other, BLOCKS, &match));
    kvist_why_t why;
    const kvist_why_query_t query = {.name_space = bench->name_space,
        .tokens = other.tokens,
        .extras = other.extras,
        .token_count = BLOCKS * BLOCK_TOKENS};
    assert_int_equal(kvist_why(bench->store, &query, &why), KV_OK);
    const kvist_match_t *told[] = {&match, &why.match};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(told[i]->block_count, 4);
        assert_int_equal(told[i]->miss, KVIST_MISS_DIVERGED);
        assert_true(told[i]->detail.extra_differs && told[i]->detail.token_known);
        assert_int_equal(told[i]->detail.token, 4 * BLOCK_TOKENS);
        assert_memory_equal(told[i]->detail.other.bytes, image.keys[4].bytes, KVIST_KEY_BYTES);
    }
    uint32_t tokens[BLOCK_TOKENS];
    kvist_key_t extra;
    assert_int_equal(kvist_store_tokens(bench->store, &image.keys[4], tokens, &extra), KV_OK);
    assert_memory_equal(tokens, image.tokens + 4 * BLOCK_TOKENS, sizeof tokens);
    assert_memory_equal(extra.bytes, image.extras[4].bytes, KVIST_KEY_BYTES);
    assert_int_equal(kvist_store_tokens(bench->store, &image.keys[3], tokens, &extra), KV_OK);
    assert_memory_equal(extra.bytes, image.extras[3].bytes, KVIST_KEY_BYTES); /* none */
    /* Where a token differs too, that is what is told. */
    other.tokens[4 * BLOCK_TOKENS + 3]++;
    kvist_lease_release(match_blocks(bench, &other, BLOCKS, &match));
    assert_false(match.detail.extra_differs);
    assert_int_equal(match.detail.token, 4 * BLOCK_TOKENS + 3);
}

static void why_and_tokens_know_extra_keys(void **state)
{
    (void)state;
    bench_t bench;
    service_t service;
    begin_embedded(&bench, "told", SLOTS, 0);
    bench_open(&bench);
    check_told(&bench);
    bench_end(&bench);
    begin_service(&service, "told-attached", SLOTS, 0);
    open_client(&bench, &service, "one", 0);
    check_told(&bench);
    bench_end(&bench);
    end_service(&service);
}

/* Of the query's own blocks a store takes the query's extra keys; others come with the tokens. */
static void check_calls(bench_t *bench)
{
    context_t context = context_of(bench, 1, FROM_FIRST);
    kvist_match_t match;
    kvist_lease_t *lease = match_blocks(bench, &context, BLOCKS, &match);
    transfer_t stored = {0};
    kvist_piece_t piece = {context.bytes, (size_t)BLOCKS * 2048};
    kvist_put_t put = {.block_count = BLOCKS,
        .extras = context.extras,
        .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &stored), KV_INVALID);
    put.extras = NULL;
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &stored), KV_OK);
    wait_transfer(bench, &stored);
    assert_int_equal(stored.status, KV_OK);
    kvist_lease_release(lease);
    check_context(bench, &context, BLOCKS);
    /* Tokens without extra keys are blocks without them, whatever the query had. */
    context_t plain = context_of(bench, 1, PLAIN);
    memcpy(context.bytes, plain.bytes, sizeof plain.bytes);
    lease = match_blocks(bench, &context, 0, &match);
    put.tokens = plain.tokens;
    stored = (transfer_t){0};
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &stored), KV_OK);
    wait_transfer(bench, &stored);
    assert_int_equal(stored.status, KV_OK);
    kvist_lease_release(lease);
    check_context(bench, &plain, BLOCKS);
}

static void stores_take_extra_keys_with_tokens(void **state)
{
    (void)state;
    bench_t bench;
    service_t service;
    begin_embedded(&bench, "calls", SLOTS, 0);
    bench_open(&bench);
    check_calls(&bench);
    bench_end(&bench);
    begin_service(&service, "calls-attached", SLOTS, 0);
    open_client(&bench, &service, "one", 0);
    check_calls(&bench);
    bench_end(&bench);
    end_service(&service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_tokens_never_meet_in_any_tier),
        cmocka_unit_test(nor_where_records_are_encrypted),
        cmocka_unit_test(records_without_extra_keys_are_as_before),
        cmocka_unit_test(they_survive_reclaiming),
        cmocka_unit_test(a_changed_extra_key_is_found_on_disk),
        cmocka_unit_test(a_changed_extra_key_is_found_in_memory),
        cmocka_unit_test(sealed_blocks_go_down_and_come_back),
        cmocka_unit_test(clients_of_a_service_share_them),
        cmocka_unit_test(what_an_engine_seals_is_written_through_with_them),
        cmocka_unit_test(extras_out_of_bounds_end_the_client),
        cmocka_unit_test(why_and_tokens_know_extra_keys),
        cmocka_unit_test(stores_take_extra_keys_with_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
