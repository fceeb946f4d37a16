#include "gateway/routing/prompt_keys.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

kvist_key_t kv_naming_name_space(const kv_naming_t *naming, const void *salt, size_t salt_bytes)
{
    kvist_layout_t layout = kvist_layout_plain(&naming->shape);
    const kvist_namespace_params_t params = {
        .model = naming->model,
        .layout = &layout,
        .dtype = naming->shape.element_bytes == 4 ? KVIST_DTYPE_F32 : KVIST_DTYPE_BF16,
        .codec_class = KVIST_CODEC_CLASS_LOSSLESS,
        .salt = salt,
        .salt_bytes = salt_bytes,
        .adapter = "",
    };
    return kvist_namespace(&params);
}

void kv_prompt_keys_make(const kv_namings_t *namings, const void *salt, size_t salt_bytes,
    const uint32_t *tokens, size_t token_count, kv_prompt_keys_t *keys_out)
{
    *keys_out =
        (kv_prompt_keys_t){.naming_count = namings->count, .token_count = (uint32_t)token_count};
    for (uint32_t i = 0; i < namings->count; i++) {
        uint32_t block_tokens = namings->items[i].shape.block_tokens;
        uint32_t block_count = (uint32_t)(token_count / block_tokens);
        keys_out->of[i].block_tokens = block_tokens;
        if (block_count == 0) {
            continue;
        }
        kvist_key_t name_space = kv_naming_name_space(&namings->items[i], salt, salt_bytes);
        keys_out->of[i].keys = kv_allocate_array(block_count, sizeof(kvist_key_t));
        keys_out->of[i].block_count = block_count;
        kvist_keys(&name_space, tokens, NULL, token_count, block_tokens, keys_out->of[i].keys);
    }
}

void kv_prompt_keys_clear(kv_prompt_keys_t *keys)
{
    for (uint32_t i = 0; i < keys->naming_count; i++) {
        free(keys->of[i].keys);
    }
    *keys = (kv_prompt_keys_t){0};
}

uint32_t kv_prompt_keys_shared(
    const kv_prompt_keys_t *one, const kv_prompt_keys_t *other, int naming)
{
    if (naming < 0 || (uint32_t)naming >= one->naming_count ||
        (uint32_t)naming >= other->naming_count) {
        return 0;
    }
    uint32_t low = 0, high = one->of[naming].block_count; /* the first `low` blocks are shared */
    if (other->of[naming].block_count < high) {
        high = other->of[naming].block_count;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (memcmp(&one->of[naming].keys[middle], &other->of[naming].keys[middle],
                sizeof(kvist_key_t)) == 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}
