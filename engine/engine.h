/* The engine: a transformer's forward pass over paged KV.
 *
 * Owns: the model's weights on the device, scratch for one chunk of prefill and one batch of
 * decode.
 * Borrows: the device, the KV arena and every block table during a call.
 * Threads: one, the compute thread; info may be read anywhere after open.
 * Errors: open names the file, the field and the bound; a forward pass fails only with KV_INVALID
 * (a token, position or slot out of bounds: nothing was written) or KV_FATAL (the device failed).
 *
 * Arithmetic. Prefill works in row tiles of one fixed height aligned to absolute token positions,
 * and attention in key tiles likewise, so that a row's KV and logits are bit-equal for any chunk
 * size, block size and cached-prefix length. Decode uses other kernels: its KV may differ in the
 * last bits, hence two arithmetic ids. */
#ifndef KV_ENGINE_ENGINE_H
#define KV_ENGINE_ENGINE_H

#include "base/status.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_engine kv_engine_t;

typedef struct {
    const char *model_path;
    bool f32;                  /* f32 products and f32 KV instead of bf16 */
    bool fp8;                  /* e4m3 products, KV in bf16; where the device has them, not f32 */
    uint32_t block_tokens;     /* 16, 32, 64 or 128 */
    uint32_t chunk_tokens_max; /* of one prefill call: 64 to 8192 */
    uint32_t batch_rows_max;   /* of one decode call: 1 to 256 */
    uint32_t slot_count;       /* slots of the KV arena, which the engine allocates on the device */
    uint64_t arena_bytes;      /* where slot_count is 0: as many slots as fit, at least one; where
                                  both are: what the model's longest context needs */
} kv_engine_params_t;

typedef struct {
    const char *architecture, *name;
    uint32_t vocabulary_count, context_tokens_max;
    uint32_t end_token;
    kv_block_shape_t shape;
    uint32_t slot_count; /* of the arena */
    /* Which kernels make KV: family, phase, instruction sets, types, version
     * ("cpu/prefill/amx+amx/bf16/v1"), and a window ("/w1000"). At most 47 bytes. */
    const char *prefill_arithmetic, *decode_arithmetic;
    bool draws;           /* the device draws tokens: kv_engine_draw */
    size_t weight_bytes;  /* device memory of the weights, in every form that kernels read */
    size_t scratch_bytes; /* and of one chunk's and one batch's activations */
} kv_engine_info_t;

kv_status_t kv_engine_open(kv_device_t *device, const kv_engine_params_t *params,
    kv_engine_t **engine_out, kv_error_t *error);
void kv_engine_close(kv_engine_t *engine);
const kv_engine_info_t *kv_engine_info(const kv_engine_t *engine);

/* The KV arena: a device pointer to slot_count slots of kv_block_bytes(). */
void *kv_engine_arena(kv_engine_t *engine);

/* A run of consecutive new tokens of one sequence. */
typedef struct {
    const uint32_t *tokens; /* [token_count] */
    uint32_t token_count;   /* 1 to chunk_tokens_max */
    uint32_t position;      /* of tokens[0]; everything before it is in the block table already */
    const uint32_t *slots;  /* the block table: covers position + token_count tokens */
    /* Called on the compute thread when the K and V of a layer have been written for the whole
     * chunk, in the order of the layers; NULL for none. Must not block: later layers wait for it.
     */
    void (*layer_done)(void *context, uint32_t layer);
    /* Called on the compute thread before K and V that earlier positions have in a layer are read,
     * in the order of the layers, every one of them before the call ends well; NULL: they are in
     * the slots already. May wait for them, while the device goes on with what it was given. Its
     * status ends the call. */
    kv_status_t (*layer_needed)(void *context, uint32_t layer, kv_error_t *error);
    void *context;
    const bool *cancelled; /* checked between layers (relaxed); NULL for never. True ends the call:
                              KV_CANCELLED */
} kv_engine_chunk_t;

/* Computes the chunk. logits_out: [vocabulary_count] of its last token, in host memory, or NULL
 * when not wanted. */
kv_status_t kv_engine_prefill(
    kv_engine_t *engine, const kv_engine_chunk_t *chunk, float *logits_out, kv_error_t *error);

/* One new token of one sequence. */
typedef struct {
    uint32_t token, position;
    const uint32_t *slots; /* covers position + 1 tokens */
} kv_engine_row_t;

/* One decode step of a batch; a row's arithmetic does not depend on its neighbours. Rows may be
 * consecutive tokens of one sequence, in order: each sees those before it.
 * logits_out: [row_count][vocabulary_count], in host memory. */
kv_status_t kv_engine_decode(kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count,
    float *logits_out, kv_error_t *error);

/* The same step, of which only tokens leave the device: one of each row, as the sampler would draw
 * it (engine/sampler.h), and its logprob in the unmodified distribution. info's draws says whether
 * the device can. draws, tokens_out, logprobs_out: [row_count]. */
kv_status_t kv_engine_draw(kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count,
    const kv_draw_t *draws, uint32_t *tokens_out, float *logprobs_out, kv_error_t *error);

#endif
