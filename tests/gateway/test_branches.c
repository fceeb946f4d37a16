/* Branch points: what is added up, and what pushes what out. */
#include "testing/testing.h"

#include "gateway/routing/branches.h"

static void what_is_added_adds_up(void **state)
{
    (void)state;
    kv_branches_t *branches = kv_branches_create();
    kvist_key_t keys[3] = {{{1}}, {{2, 3}}, {{4, 5, 6}}};
    assert_int_equal(kv_branches_tokens(branches, keys, 2), 0);
    kv_branches_add(branches, keys, 2, 100);
    uint64_t once = kv_branches_tokens(branches, keys, 2);
    assert_true(once >= 100);
    kv_branches_add(branches, keys, 2, 50);
    assert_int_equal(kv_branches_tokens(branches, keys, 2), once + once / 2);
    assert_int_equal(kv_branches_tokens(branches, keys, 1), 0);
    assert_int_equal(kv_branches_tokens(branches, keys, 3), 0);
    /* Nothing is held: there is no point to go on from. */
    kv_branches_add(branches, keys, 0, 100);
    assert_int_equal(kv_branches_tokens(branches, keys, 0), 0);
    kv_branches_destroy(branches);
}

static void what_meets_in_a_place_is_not_mixed(void **state)
{
    (void)state;
    kv_branches_t *branches = kv_branches_create();
    kvist_key_t one = {{1, 2, 3}}, other = {{1, 2, 3, 4}};
    kv_branches_add(branches, &one, 1, 100);
    assert_int_equal(kv_branches_tokens(branches, &other, 1), 0);
    kv_branches_add(branches, &other, 1, 7);
    assert_true(kv_branches_tokens(branches, &other, 1) > 0);
    assert_true(kv_branches_tokens(branches, &other, 1) < 100);
    assert_int_equal(kv_branches_tokens(branches, &one, 1), 0);
    kv_branches_destroy(branches);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_added_adds_up),
        cmocka_unit_test(what_meets_in_a_place_is_not_mixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
