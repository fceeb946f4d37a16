/* The ghost: what was seen, what of it was to be kept, and what leaves first. */
#include "testing/testing.h"

#include "gateway/figures/ghost.h"

#include <string.h>

enum { BLOCK_TOKENS = 16, BLOCKS = 20 };

/* Keys of a context that has this number as its first token. */
static void make_keys(uint32_t number, kvist_key_t keys_out[BLOCKS])
{
    static const kvist_key_t NAME_SPACE = {{7}};
    uint32_t tokens[BLOCKS * BLOCK_TOKENS] = {number};
    kvist_keys(&NAME_SPACE, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys_out);
}

static void what_was_seen_is_found(void **state)
{
    (void)state;
    kv_ghost_t *ghost = kv_ghost_create(64 << 10);
    kvist_key_t one[BLOCKS], other[BLOCKS];
    make_keys(1, one);
    make_keys(2, other);
    assert_int_equal(kv_ghost_look(ghost, one, BLOCKS).block_count, 0);
    assert_int_equal(kv_ghost_look(ghost, NULL, 0).block_count, 0);
    kv_ghost_note(ghost, one, 12, true);
    assert_int_equal(kv_ghost_look(ghost, one, BLOCKS).block_count, 12);
    assert_int_equal(kv_ghost_look(ghost, one, 5).block_count, 5);
    assert_int_equal(kv_ghost_look(ghost, other, BLOCKS).block_count, 0);
    kv_ghost_note(ghost, one, 12, true);
    assert_int_equal(kv_ghost_count(ghost), 12);
    kv_ghost_destroy(ghost);
}

static void what_was_to_be_kept_is_told_apart(void **state)
{
    (void)state;
    kv_ghost_t *ghost = kv_ghost_create(64 << 10);
    kvist_key_t keys[BLOCKS];
    make_keys(1, keys);
    kv_ghost_note(ghost, keys, 12, false);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).block_count, 12);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).kept_count, 0);
    kv_ghost_note(ghost, keys, 8, true);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).block_count, 12);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).kept_count, 8);
    kv_ghost_note(ghost, keys, 12, false);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).kept_count, 8);
    kv_ghost_destroy(ghost);
}

static void the_oldest_leave_from_their_ends(void **state)
{
    (void)state;
    kv_ghost_t *ghost = kv_ghost_create(64 << 10);
    uint32_t capacity = (uint32_t)kv_ghost_capacity(ghost), count = capacity / BLOCKS;
    assert_true(count > 10);
    kvist_key_t keys[BLOCKS];
    for (uint32_t i = 0; i < count; i++) {
        make_keys(i, keys);
        kv_ghost_note(ghost, keys, BLOCKS, true);
    }
    make_keys(0, keys);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).block_count, BLOCKS);
    kv_ghost_note(ghost, keys, BLOCKS / 2, true); /* the half of it is young again */
    make_keys(count, keys);
    kv_ghost_note(ghost, keys, BLOCKS, true);
    assert_true(kv_ghost_count(ghost) <= capacity);
    uint32_t left = 0;
    make_keys(0, keys);
    left = kv_ghost_look(ghost, keys, BLOCKS).block_count;
    assert_true(left >= BLOCKS / 2 && left < BLOCKS);
    /* The next one lost its end, and is there from its beginning. */
    make_keys(1, keys);
    left = kv_ghost_look(ghost, keys, BLOCKS).block_count;
    assert_true(left > 0);
    make_keys(count - 1, keys);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).block_count, BLOCKS);
    for (uint32_t i = 0; i < 3 * count; i++) {
        make_keys(1000 + i, keys);
        kv_ghost_note(ghost, keys, BLOCKS, true);
        assert_true(kv_ghost_count(ghost) <= capacity);
    }
    make_keys(0, keys);
    assert_int_equal(kv_ghost_look(ghost, keys, BLOCKS).block_count, 0);
    kv_ghost_destroy(ghost);
    kv_ghost_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_seen_is_found),
        cmocka_unit_test(what_was_to_be_kept_is_told_apart),
        cmocka_unit_test(the_oldest_leave_from_their_ends),
    };
    return cmocka_run_group_tests_name("ghost", tests, NULL, NULL);
}
