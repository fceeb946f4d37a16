/* The table of objects as it is used for long: objects come and go while their number stays. */
#include "testing/testing.h"

#include "kvstore/objects/table.h"

#include <string.h>

enum { OBJECTS_MAX = 256, ROUNDS = 20000 };

static kvist_key_t random_key(uint64_t *random)
{
    kvist_key_t key;
    for (size_t at = 0; at < sizeof key; at += sizeof(uint64_t)) {
        uint64_t word = kv_test_random(random);
        memcpy(key.bytes + at, &word, sizeof word);
    }
    return key;
}

/* At some time every one of few buckets has been passed: what is not there is still not found. */
static void test_few_buckets_after_many_objects(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    for (uint32_t count = 100; count <= OBJECTS_MAX; count += 12) {
        kv_table_t *table = kv_table_create();
        uint32_t numbers[OBJECTS_MAX];
        for (uint32_t round = 0; round < ROUNDS; round++) {
            uint32_t at = round < count ? round : (uint32_t)(kv_test_random(&random) % count);
            kvist_key_t key = random_key(&random);
            if (round >= count) {
                kv_table_unlink(table, numbers[at]);
                kv_table_free(table, numbers[at]);
            }
            assert_int_equal(kv_table_find(table, &key), KV_OBJECT_NONE);
            numbers[at] = kv_table_insert(table, &key, KV_OBJECT_NONE);
            assert_int_equal(kv_table_find(table, &key), numbers[at]);
        }
        assert_int_equal(kv_table_count(table), count);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(
                kv_table_find(table, &kv_table_at(table, numbers[i])->key), numbers[i]);
        }
        kv_table_destroy(table);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_few_buckets_after_many_objects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
