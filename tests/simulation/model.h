/* The simulated model: KV whose every byte follows from all tokens before it, and tokens that
 * follow from every byte of KV. A wrong, late or missing byte anywhere is a wrong token.
 *
 * One token of one layer is a row of MODEL_ROW_WORDS words; a block holds its layers one after the
 * other, a layer its tokens (kernels/device.h's shape). */
#ifndef KV_TESTS_SIMULATION_MODEL_H
#define KV_TESTS_SIMULATION_MODEL_H

#include "kernels/device.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    MODEL_LAYERS = 3,
    MODEL_BLOCK_TOKENS = 16,
    MODEL_ROW_WORDS = 4,
    MODEL_VOCABULARY = 64,
    MODEL_END_TOKEN = 7,
    MODEL_CONTEXT_TOKENS = 512,
};

extern const kv_block_shape_t MODEL_SHAPE;

typedef uint64_t model_row_t[MODEL_ROW_WORDS];

/* The row of a token, from the one of the token before it (NULL: it is the first). */
void model_row(uint32_t layer, const uint64_t *before, uint32_t token, uint64_t *row_out);

/* Where it stands in an arena. */
uint64_t *model_row_at(void *arena, const uint32_t *slots, uint32_t layer, uint32_t position);

/* The token that follows on this KV: reads every row of positions 0 to count - 1. */
uint32_t model_draw(void *arena, const uint32_t *slots, uint32_t count);

/* Whether the KV of positions 0 to count - 1 in the first layers is that of these tokens; else
 * where it is not. */
bool model_check(void *arena, const uint32_t *slots, const uint32_t *tokens, uint32_t count,
    uint32_t layer_count, uint32_t *layer_out, uint32_t *position_out);

/* What a model by itself answers: tokens holds count, and room for generate more. Returns how many
 * were generated: less than that where the end token was. */
uint32_t model_answer(uint32_t *tokens, uint32_t count, uint32_t generate);

#endif
