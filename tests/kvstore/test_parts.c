/* The store's parts alone: table, names, pool, records, index. */
#include "harness.h"

static kvist_key_t key_of(uint64_t number)
{
    return kv_identity_digest(&number, sizeof number);
}

/* Whatever the fill, also while the index grows; apart from pages of 2 MiB that are not full. */
static double checked_bytes(const kv_table_t *table)
{
    size_t bytes = kv_table_memory_bytes(table), count = kv_table_count(table);
    assert_true(bytes <= 95 * count + (7u << 20));
    return (double)bytes / (double)count;
}

static void the_table_finds_what_it_holds_within_96_bytes_an_object(void **state)
{
    (void)state;
    enum { COUNT = 1500000, LOOKED_AT = 32 };
    kv_table_t *table = kv_table_create();
    uint32_t *numbers = malloc(COUNT * sizeof *numbers);
    uint64_t random = kv_test_seed();
    double most = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        kvist_key_t key = key_of(i);
        uint32_t parent = i % 8 == 0 ? KV_OBJECT_NONE : numbers[i - 1];
        numbers[i] = kv_table_insert(table, &key, parent);
        if (i % 4096 != 0) {
            continue;
        }
        double bytes = checked_bytes(table);
        most = i >= COUNT / 2 && bytes > most ? bytes : most;
        for (uint32_t j = 0; j < LOOKED_AT; j++) { /* half of them are not there yet */
            uint32_t which = (uint32_t)(kv_test_random(&random) % (2 * (uint64_t)i + 1));
            kvist_key_t looked_for = key_of(which);
            kv_table_approach(table, &looked_for);
            kv_table_approach_object(table, &looked_for);
            assert_int_equal(
                kv_table_find(table, &looked_for), which <= i ? numbers[which] : KV_OBJECT_NONE);
        }
    }
    print_message("%.1f bytes an object at most\n", most);
    /* Drop every second chain, leaf first, and look at all. */
    for (uint32_t i = COUNT; i-- > 0;) {
        if (i / 8 % 2 == 0) {
            kv_table_unlink(table, numbers[i]);
            kv_table_free(table, numbers[i]);
        }
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        kvist_key_t key = key_of(i);
        assert_int_equal(kv_table_find(table, &key), i / 8 % 2 == 0 ? KV_OBJECT_NONE : numbers[i]);
    }
    assert_int_equal(kv_table_count(table), COUNT / 2);
    /* Numbers are used again. */
    uint32_t bound = kv_table_bound(table);
    kvist_key_t key = key_of(COUNT);
    kv_table_insert(table, &key, KV_OBJECT_NONE);
    assert_int_equal(kv_table_bound(table), bound);
    free(numbers);
    kv_table_destroy(table);
}

static void numbers_are_set_apart_and_given_back(void **state)
{
    (void)state;
    enum { COUNT = 40 };
    kv_table_t *table = kv_table_create();
    kvist_key_t keys[COUNT];
    uint32_t first = kv_table_set_apart(table, COUNT), numbers[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        keys[i] = key_of(i);
    }
    /* Leaf first: each is expected before it comes, and then gets its number and its child. */
    for (uint32_t i = COUNT - 1; i > 0; i--) {
        assert_int_equal(kv_table_find(table, &keys[i]), KV_OBJECT_NONE);
        numbers[i] = kv_table_insert_at(table, &keys[i], first + i);
        assert_int_equal(numbers[i], first + i);
        if (i % 10 != 9) {
            assert_int_equal(kv_table_at(table, numbers[i])->first_child, numbers[i + 1]);
            assert_int_equal(kv_table_at(table, numbers[i + 1])->parent, numbers[i]);
        }
        if (i % 10 != 0) {
            kv_table_adopt(table, kv_table_expect(table, &keys[i - 1]), numbers[i]);
        }
    }
    /* The last root never came. A number that was taken and freed is not given back twice. */
    kv_table_unlink(table, numbers[9]);
    kv_table_free(table, numbers[9]);
    assert_int_equal(kv_table_count(table), COUNT - 2);
    kv_table_give_back(table, first, COUNT);
    uint32_t bound = kv_table_bound(table);
    for (uint32_t i = 0; i < 100; i++) {
        kvist_key_t key = key_of(1000 + i);
        uint32_t number = kv_table_insert(table, &key, KV_OBJECT_NONE);
        for (uint32_t j = 1; j < COUNT; j++) {
            assert_true(number != numbers[j] || j == 9);
        }
        assert_int_equal(kv_table_find(table, &key), number);
    }
    assert_int_equal(kv_table_count(table), COUNT - 2 + 100);
    assert_true(kv_table_bound(table) <= bound + 100);
    kv_table_destroy(table);
}

/* Against a plain array, with few keys, so that they come back and share their buckets. */
static void the_table_keeps_its_promise_while_keys_come_and_go(void **state)
{
    (void)state;
    enum { KEYS = 6000, STEPS = 200000 };
    kv_table_t *table = kv_table_create();
    uint32_t *numbers = malloc(KEYS * sizeof *numbers);
    memset(numbers, 0xff, KEYS * sizeof *numbers);
    uint64_t random = kv_test_seed();
    uint32_t count = 0;
    kv_table_reserve(table, 100);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t which = (uint32_t)(kv_test_random(&random) % (step % 20000 < 10000 ? KEYS : 50));
        kvist_key_t key = key_of(which);
        key.bytes[0] = (uint8_t)(which % 3); /* crowded: three homes and what follows them */
        key.bytes[1] = 0;
        assert_int_equal(kv_table_find(table, &key), numbers[which]);
        if (numbers[which] == KV_OBJECT_NONE) {
            numbers[which] = kv_table_insert(table, &key, KV_OBJECT_NONE);
            count++;
        } else {
            kv_table_unlink(table, numbers[which]);
            kv_table_free(table, numbers[which]);
            numbers[which] = KV_OBJECT_NONE;
            count--;
        }
        assert_int_equal(kv_table_count(table), count);
        if (step == STEPS / 2) {
            kv_table_reserve(table, 3 * KEYS);
        }
    }
    free(numbers);
    kv_table_destroy(table);
}

static void siblings_come_and_go(void **state)
{
    (void)state;
    kv_table_t *table = kv_table_create();
    kvist_key_t key = key_of(0);
    uint32_t root = kv_table_insert(table, &key, KV_OBJECT_NONE), children[3];
    for (uint32_t i = 0; i < 3; i++) {
        key = key_of(i + 1);
        children[i] = kv_table_insert(table, &key, root);
    }
    kv_table_unlink(table, children[1]);
    assert_int_equal(kv_table_at(table, root)->first_child, children[2]);
    assert_int_equal(kv_table_at(table, children[2])->next_sibling, children[0]);
    assert_int_equal(kv_table_at(table, children[0])->previous_sibling, children[2]);
    kv_table_unlink(table, children[2]);
    kv_table_unlink(table, children[0]);
    assert_int_equal(kv_table_at(table, root)->first_child, KV_OBJECT_NONE);
    kv_table_destroy(table);
}

static void names_have_one_number_each(void **state)
{
    (void)state;
    kv_names_t names;
    kv_names_init(&names, 8, 100);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 100; i++) {
            char name[8] = {0};
            snprintf(name, sizeof name, "n%d", i);
            assert_int_equal(kv_names_number(&names, name), i);
        }
    }
    assert_string_equal(kv_names_at(&names, 42), "n42");
    assert_int_equal(kv_names_number(&names, "another"), KV_NAMES_FULL);
    kv_names_destroy(&names);
}

static void come(kv_pool_t *pool, uint32_t slot, uint32_t object, kvist_priority_t priority)
{
    const kv_slot_of_t of = {.key_hash = object, .priority = priority, .tenant = object % 2};
    kv_pool_set_object(pool, slot, object, &of);
}

static void candidates_go_class_by_class_oldest_first(void **state)
{
    (void)state;
    kv_pool_t pool;
    uint32_t tokens[5];
    kv_pool_init(&pool, 5, 1, 0, tokens, NULL, &KV_POLICY_LRU);
    assert_int_equal(kv_pool_take(&pool), KV_SLOT_NONE);
    kv_pool_extend(&pool, 2);
    assert_int_equal(kv_pool_take(&pool), 0);
    kv_pool_extend(&pool, 5);
    kv_pool_give(&pool, 0);
    assert_int_equal(pool.free_count, 5);
    static const kvist_priority_t PRIORITIES[] = {KVIST_PRIORITY_INTERACTIVE,
        KVIST_PRIORITY_BACKGROUND, KVIST_PRIORITY_INTERACTIVE, KVIST_PRIORITY_BATCH,
        KVIST_PRIORITY_BACKGROUND};
    for (uint32_t i = 0; i < 5; i++) {
        uint32_t slot = kv_pool_take(&pool);
        come(&pool, slot, i, PRIORITIES[i]);
        kv_pool_release(&pool, slot, PRIORITIES[i]);
    }
    assert_int_equal(kv_pool_take(&pool), KV_SLOT_NONE);
    kv_pool_walk_t walk = kv_pool_walk(&pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    uint32_t first = kv_pool_step(&walk);
    kv_pool_hold(&pool, first);
    kv_pool_release(&pool, first, KVIST_PRIORITY_BACKGROUND); /* used again */
    static const uint32_t ORDER[] = {4, 1, 3, 0, 2};
    walk = kv_pool_walk(&pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(pool.slots[kv_pool_step(&walk)].object, ORDER[i]);
    }
    assert_int_equal(kv_pool_step(&walk), KV_SLOT_NONE);
    walk = kv_pool_walk(&pool, 1, KVIST_PRIORITY_BATCH); /* whose, and how far */
    assert_int_equal(pool.slots[kv_pool_step(&walk)].object, 1);
    assert_int_equal(pool.slots[kv_pool_step(&walk)].object, 3);
    assert_int_equal(kv_pool_step(&walk), KV_SLOT_NONE);
    walk = kv_pool_walk(&pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    kv_pool_give(&pool, kv_pool_step(&walk)); /* 4 goes; the walk goes on */
    kv_pool_hold(&pool, first);               /* 1 */
    assert_int_equal(pool.slots[kv_pool_step(&walk)].object, 3);
    assert_int_equal(pool.free_count, 1);
    kv_pool_destroy(&pool);
}

static void a_parent_waits_for_its_children(void **state)
{
    (void)state;
    kv_pool_t pool;
    uint32_t tokens[3];
    kv_pool_init(&pool, 3, 1, 0, tokens, NULL, &KV_POLICY_LRU);
    kv_pool_extend(&pool, 3);
    for (uint32_t i = 0; i < 3; i++) { /* a chain that was stored root first */
        uint32_t slot = kv_pool_take(&pool);
        come(&pool, slot, i, KVIST_PRIORITY_INTERACTIVE);
        kv_pool_release(&pool, slot, KVIST_PRIORITY_INTERACTIVE);
        if (i > 0) {
            kv_pool_add_child(&pool, i - 1);
        }
    }
    for (uint32_t i = 3; i-- > 0;) {
        kv_pool_walk_t walk = kv_pool_walk(&pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
        uint32_t slot = kv_pool_step(&walk);
        assert_int_equal(pool.slots[slot].object, i);
        assert_int_equal(kv_pool_step(&walk), KV_SLOT_NONE);
        kv_pool_give(&pool, slot);
        if (i > 0) {
            kv_pool_remove_child(&pool, i - 1);
        }
    }
    kv_pool_destroy(&pool);
}

static void promises_are_out_of_the_way_until_they_end(void **state)
{
    (void)state;
    kv_pool_t pool;
    uint32_t tokens[3];
    kv_pool_init(&pool, 3, 1, 0, tokens, NULL, &KV_POLICY_LRU);
    kv_pool_extend(&pool, 3);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t slot = kv_pool_take(&pool);
        come(&pool, slot, i, KVIST_PRIORITY_INTERACTIVE);
        kv_pool_release(&pool, slot, KVIST_PRIORITY_INTERACTIVE);
    }
    kv_pool_promise(&pool, 0, 200);
    kv_pool_promise(&pool, 1, 100);
    kv_pool_walk_t walk = kv_pool_walk(&pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    assert_int_equal(kv_pool_step(&walk), 2);
    assert_int_equal(kv_pool_step(&walk), KV_SLOT_NONE);
    kv_pool_end_promises(&pool, 99);
    kv_pool_end_promises(&pool, 100);
    walk = kv_pool_walk(&pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    assert_int_equal(kv_pool_step(&walk), 1); /* as old as it was */
    assert_int_equal(kv_pool_step(&walk), 2);
    assert_int_equal(kv_pool_step(&walk), KV_SLOT_NONE);
    kv_pool_destroy(&pool);
}

/* Against a plain search, with all slots in one order. */
static void a_ranking_is_what_a_search_finds(void **state)
{
    (void)state;
    enum { SLOTS = 200, STEPS = 20000 };
    static kv_ranking_node_t nodes[SLOTS];
    static kv_rank_t keys[SLOTS];
    static bool in[SLOTS];
    const kv_ranking_memory_t memory = {nodes, keys};
    uint32_t root = KV_RANKING_NONE, random = 1;
    for (int step = 0; step < STEPS; step++) {
        random = random * 1664525u + 1013904223u;
        uint32_t slot = (random >> 8) % SLOTS, best = KV_RANKING_NONE, next = KV_RANKING_NONE;
        if (in[slot]) {
            kv_ranking_remove(&memory, &root, slot);
        } else {
            keys[slot] = (kv_rank_t){(random >> 20) % 16, (random >> 16) % 4};
            kv_ranking_add(&memory, &root, slot);
        }
        in[slot] = !in[slot];
        uint64_t here = keys[slot].rank << 32 | keys[slot].used << 16 | slot;
        uint64_t least = UINT64_MAX, behind = UINT64_MAX;
        for (uint32_t i = 0; i < SLOTS; i++) {
            uint64_t key = keys[i].rank << 32 | keys[i].used << 16 | i;
            if (in[i] && key < least) {
                least = key;
                best = i;
            }
            if (in[i] && key > here && key < behind) {
                behind = key;
                next = i;
            }
        }
        assert_int_equal(kv_ranking_first(&memory, root), best);
        assert_int_equal(kv_ranking_after(&memory, root, keys[slot], slot), next);
    }
}

/* ---- records ---- */

static bool with_extra; /* blocks of samples have an extra key */

typedef struct {
    kv_layout_t layout;
    kv_record_t record;
    uint32_t words[16 + KV_EXTRA_WORDS];
    char *object, *at, *scratch;
} sample_t;

static void make_sample(sample_t *sample, kvist_codec_t codec, bool compressible)
{
    kv_error_t error;
    kv_block_shape_t shape = {3, 2, 32, 16, 2};
    kvist_layout_t layout = kvist_layout_plain(&shape);
    memset(sample, 0, sizeof *sample);
    assert_int_equal(kv_layout_init(&layout, 0, &sample->layout, &error), KV_OK);
    sample->object = malloc(sample->layout.object_bytes);
    sample->scratch = malloc(kv_record_scratch_bytes(&sample->layout));
    sample->at = aligned_alloc(KV_PAGE_BYTES, kv_record_bytes_max(&sample->layout));
    uint64_t random = 1;
    for (size_t i = 0; i < sample->layout.object_bytes; i++) {
        sample->object[i] = compressible ? (char)(i / 512) : (char)kv_test_random(&random);
    }
    uint32_t tokens[16];
    const kvist_key_t extra = kv_identity_digest("image", 5);
    make_tokens(3, 0, tokens, 16);
    kv_identity_words(tokens, with_extra ? &extra : NULL, 1, 16, sample->words);
    kv_record_t *record = &sample->record;
    record->name_space = key_of(1);
    record->parent = key_of(2);
    record->key = kv_identity_block_key(&record->parent, sample->words, 16);
    record->generation = 7;
    record->position = 9;
    record->codec = codec;
    snprintf(record->origin, sizeof record->origin, "here");
    assert_true(kv_record_write(
        &sample->layout, record, sample->words, sample->object, NULL, NULL, sample->at));
    kv_record_sign(sample->at, 7);
}

static void end_sample(sample_t *sample)
{
    free(sample->object);
    free(sample->scratch);
    free(sample->at);
}

static kv_status_t verify(const sample_t *sample)
{
    const void *object;
    uint32_t words[16 + KV_EXTRA_WORDS];
    const kv_record_reader_t reader = {NULL, sample->scratch};
    kv_status_t status = kv_record_verify(&sample->layout, &reader, &sample->record, sample->at,
        sample->record.stored_bytes, &object, words);
    if (status == KV_OK) {
        assert_memory_equal(object, sample->object, sample->layout.object_bytes);
        assert_memory_equal(words, sample->words, sizeof words);
    }
    return status;
}

static void a_record_proves_its_bytes_whatever_the_codec(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4 * KVIST_CODEC_COUNT; variant++) {
        sample_t sample;
        kvist_codec_t codec = (kvist_codec_t)(variant / 4);
        with_extra = variant / 2 % 2 == 1;
        bool compressible = variant % 2 == 1, encoded = compressible && codec != KVIST_CODEC_NONE;
        make_sample(&sample, codec, compressible);
        assert_int_equal(verify(&sample), KV_OK);
        /* Bytes that do not shrink are stored plainly. */
        assert_int_equal(sample.record.codec, encoded ? codec : KVIST_CODEC_NONE);
        for (size_t at = 0; at < sample.record.stored_bytes; at++) {
            sample.at[at] ^= 4;
            /* Encoded bytes may change and mean the same: then the object is right (verify looks).
             * */
            kv_status_t status = verify(&sample);
            assert_true(status == KV_CORRUPT || (encoded && at >= KV_PAGE_BYTES));
            sample.at[at] ^= 4;
        }
        end_sample(&sample);
    }
}

static void refuse_nonsense(uint64_t *random)
{
    sample_t sample;
    make_sample(&sample, KVIST_CODEC_LZ4, true);
    char *good = malloc(sample.record.stored_bytes);
    memcpy(good, sample.at, sample.record.stored_bytes);
    for (int i = 0; i < 20000; i++) { /* also with checksums that agree with the nonsense */
        memcpy(sample.at, good, sample.record.stored_bytes);
        for (uint64_t flips = 1 + kv_test_random(random) % 4; flips > 0; flips--) {
            size_t at = 8 + kv_test_random(random) % 600;
            at = at >= 12 && at < 16 ? 16 : at;
            sample.at[at] = (char)kv_test_random(random);
        }
        kv_record_sign(sample.at, 7);
        kv_status_t status = verify(&sample);
        /* What now says that it is encrypted lacks a key: there are none. */
        bool sealed = sample.at[8] == 3 || sample.at[8] == 5;
        assert_true(status == KV_OK || status == (sealed ? KV_MISSING : KV_CORRUPT) ||
                    status == KV_CORRUPT);
    }
    free(good);
    end_sample(&sample);
}

static void a_header_of_nonsense_is_refused(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    for (int i = 0; i < 2; i++) {
        with_extra = i == 1;
        refuse_nonsense(&random);
    }
}

/* ---- the index and its twin ---- */

static void count_entry(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
    assert_int_equal(key_bytes, 2);
    assert_int_equal(value_bytes, 3);
    *(uint32_t *)context += (uint32_t)key[1] * value[2];
}

static void exercise_index(kv_index_t *index)
{
    kv_error_t error;
    kv_index_batch_t batch = {0};
    kv_index_batch_put(&batch, "a\x01", 2, "xx\x05", 3);
    kv_index_batch_put(&batch, "a\x02", 2, "xx\x07", 3);
    kv_index_batch_put(&batch, "a\x01", 2, "xx\x06", 3);
    kv_index_batch_delete(&batch, "a\x02", 2);
    kv_index_batch_put(&batch, "a\x03", 2, "xx\x01", 3);
    assert_int_equal(index->ops->write(index, &batch, true, &error), KV_OK);
    kv_index_batch_release(&batch);
    uint32_t sum = 0;
    assert_int_equal(kv_index_read_all(index, 'a', count_entry, &sum, &error), KV_OK);
    assert_int_equal(sum, 1 * 6 + 3 * 1);
    assert_true(index->ops->estimate(index) > 0);

    /* A cursor sees what was there when it was opened; a get, what is there now. */
    kv_index_cursor_t *cursor = index->ops->open_cursor(index, 'a');
    kv_index_batch_put(&batch, "a\x04", 2, "xx\x02", 3);
    kv_index_batch_put(&batch, "b\x09", 2, "xx\x09", 3);
    kv_index_batch_delete(&batch, "a\x01", 2);
    assert_int_equal(index->ops->write(index, &batch, false, &error), KV_OK);
    kv_index_batch_release(&batch);
    bool ended;
    sum = 0;
    assert_int_equal(index->ops->read(index, cursor, 1, count_entry, &sum, &ended, &error), KV_OK);
    assert_false(ended);
    assert_true(sum == 1 * 6 || sum == 3 * 1);
    assert_int_equal(index->ops->read(index, cursor, 9, count_entry, &sum, &ended, &error), KV_OK);
    assert_true(ended);
    assert_int_equal(sum, 1 * 6 + 3 * 1);
    index->ops->close_cursor(index, cursor);
    sum = 0;
    assert_int_equal(index->ops->get(index,
                         (const uint8_t *)"a\x01"
                                          "a\x03"
                                          "a\x04"
                                          "a\x05",
                         2, 4, count_entry, &sum, &error),
        KV_OK);
    assert_int_equal(sum, 3 * 1 + 4 * 2);
    index->ops->close(index);
}

static void rocksdb_and_its_twin_agree(void **state)
{
    (void)state;
    kv_error_t error;
    kv_index_t *index;
    bool made;
    char path[512];
    snprintf(path, sizeof path, "%s/index-alone", kv_test_folder());
    assert_int_equal(kv_index_rocksdb_open(path, 0, &index, &made, &error), KV_OK);
    assert_true(made);
    exercise_index(index);
    kv_index_kept_t *kept = NULL;
    exercise_index(kv_index_memory_open(&kept, &made));
    assert_true(made);
    kv_index_memory_forget(&kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_finds_what_it_holds_within_96_bytes_an_object),
        cmocka_unit_test(the_table_keeps_its_promise_while_keys_come_and_go),
        cmocka_unit_test(numbers_are_set_apart_and_given_back),
        cmocka_unit_test(siblings_come_and_go),
        cmocka_unit_test(names_have_one_number_each),
        cmocka_unit_test(candidates_go_class_by_class_oldest_first),
        cmocka_unit_test(a_parent_waits_for_its_children),
        cmocka_unit_test(promises_are_out_of_the_way_until_they_end),
        cmocka_unit_test(a_ranking_is_what_a_search_finds),
        cmocka_unit_test(a_record_proves_its_bytes_whatever_the_codec),
        cmocka_unit_test(a_header_of_nonsense_is_refused),
        cmocka_unit_test(rocksdb_and_its_twin_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
