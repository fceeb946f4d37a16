/* The geometry of plain layouts, there and back. */
#include "holder/shape.h"
#include "testing/testing.h"

#include <string.h>

static void a_plain_layout_has_a_shape(void **state)
{
    (void)state;
    static const kv_block_shape_t SHAPES[] = {
        {30, 3, 64, 16, 2}, {1, 1, 8, 128, 4}, {80, 8, 128, 32, 2}};
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        kvist_layout_t layout = kvist_layout_plain(&SHAPES[i]);
        kv_block_shape_t shape;
        assert_true(kv_shape_of_layout(&layout, &shape));
        assert_memory_equal(&shape, &SHAPES[i], sizeof shape);
        assert_int_equal(kvist_layout_object_bytes(&layout, 0), kv_block_bytes(&shape));
    }
}

static void others_have_none(void **state)
{
    (void)state;
    kv_block_shape_t shape;
    kvist_layout_t plain = kvist_layout_plain(&(kv_block_shape_t){4, 2, 8, 16, 2});
    kvist_layout_t layout = plain;
    layout.group_count = 2;
    layout.groups[1] = layout.groups[0];
    assert_false(kv_shape_of_layout(&layout, &shape));
    layout = plain;
    layout.groups[0].layers[0] = 0xd; /* a gap */
    assert_false(kv_shape_of_layout(&layout, &shape));
    layout = plain;
    layout.groups[0].parts[1].dims = 16;
    assert_false(kv_shape_of_layout(&layout, &shape));
    layout = plain;
    layout.groups[0].part_count = 1;
    assert_false(kv_shape_of_layout(&layout, &shape));
    layout = plain;
    layout.groups[0].parts[0].element_bytes = layout.groups[0].parts[1].element_bytes = 1;
    assert_false(kv_shape_of_layout(&layout, &shape)); /* which no engine node has */
}

static void digests_tell_shapes_apart(void **state)
{
    (void)state;
    const kv_block_shape_t one = {4, 2, 8, 16, 2};
    kv_block_shape_t other = one;
    kvist_key_t digest = kv_shape_digest(&one), again = kv_shape_digest(&other);
    assert_memory_equal(&digest, &again, sizeof digest);
    other.block_tokens = 32;
    again = kv_shape_digest(&other);
    assert_true(memcmp(&digest, &again, sizeof digest) != 0);
    char text[KV_SHAPE_TEXT_BYTES];
    kv_shape_text(&one, text);
    assert_string_equal(text, "4 layers of 2 x 8, blocks of 16 tokens, bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_layout_has_a_shape),
        cmocka_unit_test(others_have_none),
        cmocka_unit_test(digests_tell_shapes_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
