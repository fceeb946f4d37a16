#include "simulation/model.h"

#include "testing/testing.h"

#include <string.h>

enum { WALK_START = 0x5eed };

const kv_block_shape_t MODEL_SHAPE = {
    .layer_count = MODEL_LAYERS,
    .kv_head_count = 1,
    .head_dim = 8, /* K and V of 8 x 2 bytes: a row of 32 */
    .block_tokens = MODEL_BLOCK_TOKENS,
    .element_bytes = 2,
};

_Static_assert(sizeof(model_row_t) == 2 * 8 * 2, "a row fills its token's part of a layer");

static uint64_t mix(uint64_t value)
{
    return kv_test_random(&value);
}

void model_row(uint32_t layer, const uint64_t *before, uint32_t token, uint64_t *row_out)
{
    uint64_t from = before != NULL ? before[0] : layer;
    uint64_t first = mix(from ^ mix(token + 1) ^ (uint64_t)layer << 56);
    for (uint32_t i = 0; i < MODEL_ROW_WORDS; i++) {
        row_out[i] = i == 0 ? first : mix(first + i);
    }
}

uint64_t *model_row_at(void *arena, const uint32_t *slots, uint32_t layer, uint32_t position)
{
    char *block =
        (char *)arena + slots[position / MODEL_BLOCK_TOKENS] * kv_block_bytes(&MODEL_SHAPE);
    return (uint64_t *)(void *)(block + layer * kv_block_layer_bytes(&MODEL_SHAPE)) +
           (size_t)(position % MODEL_BLOCK_TOKENS) * MODEL_ROW_WORDS;
}

/* Word by word through a position's rows, so that each of them counts. */
static uint64_t walk(uint64_t state, const uint64_t *row)
{
    for (uint32_t i = 0; i < MODEL_ROW_WORDS; i++) {
        state = mix(state ^ row[i]);
    }
    return state;
}

uint32_t model_draw(void *arena, const uint32_t *slots, uint32_t count)
{
    uint64_t state = WALK_START;
    for (uint32_t position = 0; position < count; position++) {
        for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
            state = walk(state, model_row_at(arena, slots, layer, position));
        }
    }
    return (uint32_t)(state % MODEL_VOCABULARY);
}

bool model_check(void *arena, const uint32_t *slots, const uint32_t *tokens, uint32_t count,
    uint32_t layer_count, uint32_t *layer_out, uint32_t *position_out)
{
    model_row_t rows[MODEL_LAYERS], row;
    for (uint32_t position = 0; position < count; position++) {
        for (uint32_t layer = 0; layer < layer_count; layer++) {
            model_row(layer, position > 0 ? rows[layer] : NULL, tokens[position], row);
            memcpy(rows[layer], row, sizeof row);
            if (memcmp(row, model_row_at(arena, slots, layer, position), sizeof row) != 0) {
                *layer_out = layer;
                *position_out = position;
                return false;
            }
        }
    }
    return true;
}

uint32_t model_answer(uint32_t *tokens, uint32_t count, uint32_t generate)
{
    model_row_t rows[MODEL_LAYERS], row;
    uint64_t state = WALK_START;
    for (uint32_t position = 0; position < count + generate; position++) {
        if (position >= count) {
            tokens[position] = (uint32_t)(state % MODEL_VOCABULARY);
            if (tokens[position] == MODEL_END_TOKEN) {
                return position - count + 1;
            }
        }
        for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
            model_row(layer, position > 0 ? rows[layer] : NULL, tokens[position], row);
            memcpy(rows[layer], row, sizeof row);
            state = walk(state, row);
        }
    }
    return generate;
}
