#include "holder/shape.h"

#include <stdio.h>
#include <string.h>

kvist_dtype_t kv_shape_dtype(const kv_block_shape_t *shape)
{
    return shape->element_bytes == 4 ? KVIST_DTYPE_F32 : KVIST_DTYPE_BF16;
}

kvist_key_t kv_shape_digest(const kv_block_shape_t *shape)
{
    kvist_layout_t layout = kvist_layout_plain(shape);
    kvist_namespace_params_t params = {
        .layout = &layout,
        .dtype = kv_shape_dtype(shape),
        .codec_class = KVIST_CODEC_CLASS_LOSSLESS,
        .adapter = "",
    };
    return kvist_namespace(&params);
}

void kv_shape_text(const kv_block_shape_t *shape, char text_out[KV_SHAPE_TEXT_BYTES])
{
    snprintf(text_out, KV_SHAPE_TEXT_BYTES, "%u layers of %u x %u, blocks of %u tokens, %s",
        shape->layer_count, shape->kv_head_count, shape->head_dim, shape->block_tokens,
        shape->element_bytes == 4 ? "f32" : "bf16");
}

bool kv_shape_of_layout(const kvist_layout_t *layout, kv_block_shape_t *shape_out)
{
    const kvist_group_t *group = &layout->groups[0];
    if (layout->group_count != 1 || group->part_count == 0) {
        return false;
    }
    kv_block_shape_t shape = {
        .kv_head_count = group->parts[0].heads,
        .head_dim = group->parts[0].dims,
        .block_tokens = layout->block_tokens,
        .element_bytes = group->parts[0].element_bytes,
    };
    for (size_t i = 0; i < sizeof group->layers / sizeof group->layers[0]; i++) {
        shape.layer_count += (uint32_t)__builtin_popcountll(group->layers[i]);
    }
    kvist_layout_t plain = kvist_layout_plain(&shape);
    const kvist_group_t *like = &plain.groups[0];
    bool same = (shape.element_bytes == 2 || shape.element_bytes == 4) &&
                group->kind == like->kind && group->part_count == like->part_count &&
                memcmp(group->layers, like->layers, sizeof group->layers) == 0;
    for (uint32_t i = 0; same && i < group->part_count; i++) {
        const kvist_part_t *one = &group->parts[i], *other = &like->parts[i];
        same = one->kind == other->kind && one->heads == other->heads && one->dims == other->dims &&
               one->element_bytes == other->element_bytes;
    }
    *shape_out = shape;
    return same;
}
