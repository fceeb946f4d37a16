#include "engine/engine.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"
#include "engine/model.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_TOKENS_MIN = 64, CHUNK_TOKENS_MAX = 8192, BATCH_ROWS_MAX = 256 };

struct kv_engine {
    kv_device_t *device;
    kv_model_t *model;
    kv_engine_params_t params;
    kv_engine_info_t info;
    kv_arithmetic_t arithmetic;

    void *arena;
    size_t arena_bytes;

    /* Scratch, on the device; rows are those of a chunk's tiles or of a batch. */
    float *x;         /* [rows][embedding]: the residual stream */
    float *projected; /* [rows][(heads + 2 kv_heads) x head_dim] */
    float *gate_up;   /* [rows][2 x feed_forward] */
    void *operand;    /* [rows][widest input of a product], as products read it */
    float *logits;    /* [batch_rows_max][vocabulary] */
    size_t row_count, logits_bytes;

    kv_sequence_t *sequences; /* [batch_rows_max] */
    uint32_t *tokens;         /* [batch_rows_max] */
};

/* Columns of each scratch buffer. */
typedef struct {
    size_t x, projected, gate_up, operand;
} widths_t;

static widths_t widths(const kv_model_shape_t *shape)
{
    widths_t width = {
        .x = shape->embedding,
        .projected = (size_t)(shape->head_count + 2 * shape->kv_head_count) * shape->head_dim,
        .gate_up = (size_t)2 * shape->feed_forward,
        .operand = shape->feed_forward > shape->embedding ? shape->feed_forward : shape->embedding,
    };
    return width;
}

static kv_status_t validate_params(const kv_engine_params_t *params, kv_error_t *error)
{
    const uint32_t block = params->block_tokens;
    if (block != 16 && block != 32 && block != 64 && block != 128) {
        return kv_fail(
            error, KV_INVALID, "block_tokens is %u; 16, 32, 64 or 128 are possible", block);
    }
    if (params->chunk_tokens_max < CHUNK_TOKENS_MIN ||
        params->chunk_tokens_max > CHUNK_TOKENS_MAX) {
        return kv_fail(error, KV_INVALID, "chunk_tokens_max is %u; %d to %d are possible",
            params->chunk_tokens_max, CHUNK_TOKENS_MIN, CHUNK_TOKENS_MAX);
    }
    if (params->f32 && params->fp8) {
        return kv_fail(error, KV_INVALID, "f32 and fp8 are both on; products are one of them");
    }
    if (params->batch_rows_max < 1 || params->batch_rows_max > BATCH_ROWS_MAX) {
        return kv_fail(error, KV_INVALID, "batch_rows_max is %u; 1 to %d are possible",
            params->batch_rows_max, BATCH_ROWS_MAX);
    }
    return KV_OK;
}

/* How many slots the caller's words come to. */
static uint32_t choose_slot_count(const kv_engine_t *engine)
{
    const kv_engine_params_t *params = &engine->params;
    if (params->slot_count > 0) {
        return params->slot_count;
    }
    if (params->arena_bytes == 0) {
        return (engine->info.context_tokens_max - 1) / params->block_tokens + 1;
    }
    const uint64_t fitting = params->arena_bytes / kv_block_bytes(&engine->info.shape);
    return fitting < 1 ? 1 : fitting < UINT32_MAX ? (uint32_t)fitting : UINT32_MAX;
}

static kv_status_t allocate_arena(kv_engine_t *engine, kv_error_t *error)
{
    const size_t block_bytes = kv_block_bytes(&engine->info.shape);
    engine->info.slot_count = choose_slot_count(engine);
    if (engine->info.slot_count > SIZE_MAX / 2 / block_bytes) {
        return kv_fail(error, KV_INVALID, "slot_count is %u: %zu bytes each are too many",
            engine->info.slot_count, block_bytes);
    }
    engine->arena_bytes = engine->info.slot_count * block_bytes;
    return engine->device->ops->allocate(
        engine->device, engine->arena_bytes, &engine->arena, error);
}

static kv_status_t allocate_scratch(kv_engine_t *engine, kv_error_t *error)
{
    const kv_model_shape_t *shape = &engine->model->shape;
    const uint32_t tile_rows = engine->arithmetic.tile_rows;
    /* A chunk may begin anywhere in its first tile. */
    engine->row_count = kv_round_up(engine->params.chunk_tokens_max + tile_rows - 1, tile_rows);
    if (engine->row_count < engine->params.batch_rows_max) {
        engine->row_count = engine->params.batch_rows_max;
    }
    const widths_t width = widths(shape);
    engine->logits_bytes =
        (size_t)engine->params.batch_rows_max * shape->vocabulary_count * sizeof(float);
    struct {
        void **memory;
        size_t bytes;
    } wanted[] = {
        {(void **)&engine->x, engine->row_count * width.x * sizeof(float)},
        {(void **)&engine->projected, engine->row_count * width.projected * sizeof(float)},
        {(void **)&engine->gate_up, engine->row_count * width.gate_up * sizeof(float)},
        {&engine->operand, engine->row_count * width.operand * sizeof(float)},
        {(void **)&engine->logits, engine->logits_bytes},
    };
    for (size_t at = 0; at < sizeof wanted / sizeof *wanted; at++) {
        kv_status_t status = engine->device->ops->allocate(
            engine->device, wanted[at].bytes, wanted[at].memory, error);
        if (status != KV_OK) {
            return status;
        }
        engine->info.scratch_bytes += wanted[at].bytes;
    }
    engine->sequences = kv_allocate_array(engine->params.batch_rows_max, sizeof *engine->sequences);
    engine->tokens = kv_allocate_array(engine->params.batch_rows_max, sizeof *engine->tokens);
    return KV_OK;
}

/* The window is part of what makes KV: a version that did not know windows made other KV of the
 * same file. In hexadecimal, so that it always fits. */
static void name_window(char *arithmetic, size_t arithmetic_bytes, uint32_t window_tokens)
{
    const size_t used = strlen(arithmetic);
    const int added = snprintf(arithmetic + used, arithmetic_bytes - used, "/w%x", window_tokens);
    KV_CHECK(added > 0 && used + (size_t)added < arithmetic_bytes);
}

static void name_arithmetic(kv_engine_t *engine)
{
    kv_arithmetic_t *arithmetic = &engine->arithmetic;
    const uint32_t window_tokens = engine->model->shape.window_tokens;
    if (window_tokens > 0) {
        name_window(arithmetic->prefill, sizeof arithmetic->prefill, window_tokens);
        name_window(arithmetic->decode, sizeof arithmetic->decode, window_tokens);
    }
}

static void fill_info(kv_engine_t *engine)
{
    const kv_model_shape_t *shape = &engine->model->shape;
    engine->info = (kv_engine_info_t){
        .architecture = shape->architecture,
        .name = shape->name,
        .vocabulary_count = shape->vocabulary_count,
        .context_tokens_max = shape->context_tokens_max,
        .end_token = shape->end_token,
        .shape =
            {
                .layer_count = shape->layer_count,
                .kv_head_count = shape->kv_head_count,
                .head_dim = shape->head_dim,
                .block_tokens = engine->params.block_tokens,
                .element_bytes = engine->params.f32 ? 4 : 2,
            },
        .prefill_arithmetic = engine->arithmetic.prefill,
        .decode_arithmetic = engine->arithmetic.decode,
        .draws = engine->device->ops->draw != NULL,
        .weight_bytes = kv_model_bytes(engine->model),
    };
}

kv_status_t kv_engine_open(kv_device_t *device, const kv_engine_params_t *params,
    kv_engine_t **engine_out, kv_error_t *error)
{
    kv_status_t status = validate_params(params, error);
    if (status != KV_OK) {
        return status;
    }
    kv_engine_t *engine = kv_allocate(sizeof *engine);
    engine->device = device;
    engine->params = *params;
    status = device->ops->describe(device, params->f32, params->fp8, &engine->arithmetic, error);
    if (status == KV_OK) {
        status = kv_model_open(
            device, params->model_path, params->f32, params->fp8, &engine->model, error);
    }
    if (status == KV_OK) {
        name_arithmetic(engine);
        fill_info(engine);
        status = allocate_arena(engine, error);
    }
    if (status == KV_OK) {
        status = allocate_scratch(engine, error);
    }
    if (status != KV_OK) {
        kv_engine_close(engine);
        return status;
    }
    *engine_out = engine;
    return KV_OK;
}

void kv_engine_close(kv_engine_t *engine)
{
    if (engine == NULL) {
        return;
    }
    kv_device_t *device = engine->device;
    if (engine->model != NULL) {
        const widths_t width = widths(&engine->model->shape);
        const size_t row_bytes = engine->row_count * sizeof(float);
        device->ops->release(device, engine->arena, engine->arena_bytes);
        device->ops->release(device, engine->x, row_bytes * width.x);
        device->ops->release(device, engine->projected, row_bytes * width.projected);
        device->ops->release(device, engine->gate_up, row_bytes * width.gate_up);
        device->ops->release(device, engine->operand, row_bytes * width.operand);
        device->ops->release(device, engine->logits, engine->logits_bytes);
    }
    kv_model_close(engine->model);
    free(engine->sequences);
    free(engine->tokens);
    free(engine);
}

const kv_engine_info_t *kv_engine_info(const kv_engine_t *engine)
{
    return &engine->info;
}

void *kv_engine_arena(kv_engine_t *engine)
{
    return engine->arena;
}

/* A run of tokens of one sequence, from outside: everything is checked here, before any work. */
static kv_status_t validate_run(const kv_engine_t *engine, const char *what, uint32_t at,
    const uint32_t *tokens, uint32_t token_count, uint32_t position, const uint32_t *slots,
    kv_error_t *error)
{
    const uint32_t context = engine->info.context_tokens_max,
                   vocabulary = engine->info.vocabulary_count;
    if (token_count > context || position > context - token_count) {
        return kv_fail(error, KV_INVALID,
            "%s %u ends at position %llu; the model's context is %u tokens", what, at,
            (unsigned long long)position + token_count, context);
    }
    for (uint32_t i = 0; i < token_count; i++) {
        if (tokens[i] >= vocabulary) {
            return kv_fail(error, KV_INVALID,
                "%s %u: the token at position %u is %u; the vocabulary has %u", what, at,
                position + i, tokens[i], vocabulary);
        }
    }
    const uint32_t block_count = (position + token_count - 1) / engine->params.block_tokens + 1;
    for (uint32_t i = 0; i < block_count; i++) {
        if (slots[i] >= engine->info.slot_count) {
            return kv_fail(error, KV_INVALID, "%s %u: block %u is in slot %u; the arena has %u",
                what, at, i, slots[i], engine->info.slot_count);
        }
    }
    return KV_OK;
}

static kv_paged_t paged_layer(const kv_engine_t *engine, uint32_t layer)
{
    return (kv_paged_t){
        .shape = &engine->info.shape,
        .arena = engine->arena,
        .layer = layer,
        .head_count = engine->model->shape.head_count,
        .window_tokens = engine->model->shape.window_tokens,
    };
}

/* Up to a layer's keys and values in the arena. */
static void prefill_projection(
    kv_engine_t *engine, uint32_t at, const kv_sequence_t *sequence, kv_rows_t rows)
{
    kv_device_t *device = engine->device;
    const kv_model_layer_t *layer = &engine->model->layers[at];
    const kv_paged_t paged = paged_layer(engine, at);
    device->ops->norm(device, engine->x, layer->attention_norm, engine->model->shape.norm_epsilon,
        engine->model->shape.embedding, rows, engine->operand, engine->arithmetic.operand);
    device->ops->product_tiles(
        device, layer->projection, engine->operand, rows, false, engine->projected);
    device->ops->rotate_store(
        device, &paged, sequence, 1, engine->model->rotation, engine->projected);
}

/* The rest of a layer, for the rows of the sequence. */
static void prefill_rest(
    kv_engine_t *engine, uint32_t at, const kv_sequence_t *sequence, kv_rows_t rows)
{
    kv_device_t *device = engine->device;
    const kv_model_shape_t *shape = &engine->model->shape;
    const kv_model_layer_t *layer = &engine->model->layers[at];
    const kv_element_t operand = engine->arithmetic.operand;
    const kv_paged_t paged = paged_layer(engine, at);
    device->ops->attend_tiles(
        device, &paged, sequence, engine->projected, engine->operand, operand);
    device->ops->product_tiles(device, layer->output, engine->operand, rows, true, engine->x);
    device->ops->norm(device, engine->x, layer->feed_forward_norm, shape->norm_epsilon,
        shape->embedding, rows, engine->operand, operand);
    device->ops->product_tiles(
        device, layer->gate_up, engine->operand, rows, false, engine->gate_up);
    device->ops->gate(device, engine->gate_up, shape->feed_forward, rows, engine->operand, operand);
    device->ops->product_tiles(device, layer->down, engine->operand, rows, true, engine->x);
}

/* Enqueues the logits of row_count rows from row on, into the first rows of engine->logits. */
static void make_logits(kv_engine_t *engine, uint32_t row, uint32_t row_count)
{
    kv_device_t *device = engine->device;
    const kv_model_shape_t *shape = &engine->model->shape;
    const kv_rows_t rows = {0, row_count};
    device->ops->norm(device, engine->x + (size_t)row * shape->embedding, engine->model->norm,
        shape->norm_epsilon, shape->embedding, rows, engine->operand, KV_ELEMENT_F32);
    device->ops->product_rows(
        device, engine->model->logits, engine->operand, rows, false, engine->logits);
}

static kv_status_t read_logits(
    kv_engine_t *engine, uint32_t row, uint32_t row_count, float *logits_out, kv_error_t *error)
{
    kv_device_t *device = engine->device;
    const kv_model_shape_t *shape = &engine->model->shape;
    make_logits(engine, row, row_count);
    kv_status_t status = device->ops->finish(device, error);
    if (status == KV_OK) {
        status = device->ops->copy_out(device, logits_out, engine->logits,
            (size_t)row_count * shape->vocabulary_count * sizeof(float), error);
    }
    return status;
}

static kv_status_t validate_chunk(
    const kv_engine_t *engine, const kv_engine_chunk_t *chunk, kv_error_t *error)
{
    if (chunk->token_count < 1 || chunk->token_count > engine->params.chunk_tokens_max) {
        return kv_fail(error, KV_INVALID, "a chunk of %u tokens; 1 to %u are possible",
            chunk->token_count, engine->params.chunk_tokens_max);
    }
    return validate_run(engine, "chunk", 0, chunk->tokens, chunk->token_count, chunk->position,
        chunk->slots, error);
}

static bool is_cancelled(const kv_engine_chunk_t *chunk)
{
    return chunk->cancelled != NULL && __atomic_load_n(chunk->cancelled, __ATOMIC_RELAXED);
}

/* Waits for a layer's keys and values and tells of them. */
static kv_status_t end_layer(kv_engine_t *engine, const kv_engine_chunk_t *chunk, uint32_t layer,
    uint32_t mark, kv_error_t *error)
{
    kv_status_t status = engine->device->ops->reach(engine->device, mark, error);
    if (status != KV_OK) {
        return status;
    }
    if (chunk->layer_done != NULL) {
        chunk->layer_done(chunk->context, layer);
    }
    if (is_cancelled(chunk)) {
        return kv_fail(error, KV_CANCELLED, "prefill was cancelled after layer %u", layer);
    }
    return KV_OK;
}

/* What earlier positions have in the layer may be read from now on. */
static kv_status_t need_layer(const kv_engine_chunk_t *chunk, uint32_t layer, kv_error_t *error)
{
    return chunk->layer_needed != NULL ? chunk->layer_needed(chunk->context, layer, error) : KV_OK;
}

/* Every layer up to its keys and values, the rest of all but the last. On a device that runs ahead,
 * layers are enqueued behind the one that is waited for: what leaves a layer's slots does so while
 * the next ones are computed, what comes to them while earlier ones are, and the device never waits
 * for this thread. */
static kv_status_t prefill_layers(kv_engine_t *engine, const kv_engine_chunk_t *chunk,
    const kv_sequence_t *sequence, kv_rows_t rows, kv_error_t *error)
{
    const kv_device_ops_t *ops = engine->device->ops;
    const uint32_t layer_count = engine->model->shape.layer_count,
                   ahead = ops->ahead ? KV_DEVICE_MARKS_MAX - 1 : 0;
    uint32_t marks[KV_DEVICE_MARKS_MAX];
    kv_status_t status = KV_OK;
    for (uint32_t at = 0; at < layer_count + ahead && status == KV_OK; at++) {
        if (at < layer_count) {
            prefill_projection(engine, at, sequence, rows);
            marks[at % KV_DEVICE_MARKS_MAX] = ops->mark(engine->device);
        }
        if (at >= ahead) {
            const uint32_t layer = at - ahead;
            status = end_layer(engine, chunk, layer, marks[layer % KV_DEVICE_MARKS_MAX], error);
        }
        if (status == KV_OK && at + 1 < layer_count) {
            status = need_layer(chunk, at, error);
        }
        if (status == KV_OK && at + 1 < layer_count) {
            prefill_rest(engine, at, sequence, rows);
        }
    }
    return status == KV_OK ? need_layer(chunk, layer_count - 1, error) : status;
}

kv_status_t kv_engine_prefill(
    kv_engine_t *engine, const kv_engine_chunk_t *chunk, float *logits_out, kv_error_t *error)
{
    kv_status_t status = validate_chunk(engine, chunk, error);
    if (status != KV_OK) {
        return status;
    }
    kv_device_t *device = engine->device;
    const uint32_t row = chunk->position % engine->arithmetic.tile_rows;
    const kv_sequence_t sequence = {chunk->slots, chunk->position, row, chunk->token_count};
    const kv_rows_t rows = {row, chunk->token_count};
    device->ops->embed(device, engine->model->embedding, chunk->tokens, rows, engine->x);
    status = prefill_layers(engine, chunk, &sequence, rows, error);
    if (status != KV_OK || logits_out == NULL) {
        /* What was enqueued behind still writes to the slots, and reads what the call named. */
        kv_status_t finished = device->ops->finish(device, status == KV_OK ? error : NULL);
        return status != KV_OK ? status : finished;
    }
    /* After the last layer's keys and values only the last token's row is of use. */
    const uint32_t last = chunk->token_count - 1;
    const kv_sequence_t last_row = {chunk->slots, chunk->position + last, row + last, 1};
    prefill_rest(
        engine, engine->model->shape.layer_count - 1, &last_row, (kv_rows_t){row + last, 1});
    return read_logits(engine, row + last, 1, logits_out, error);
}

static void decode_layer(kv_engine_t *engine, uint32_t at, uint32_t row_count)
{
    kv_device_t *device = engine->device;
    const kv_model_shape_t *shape = &engine->model->shape;
    const kv_model_layer_t *layer = &engine->model->layers[at];
    const kv_paged_t paged = paged_layer(engine, at);
    const kv_rows_t rows = {0, row_count};
    const float epsilon = shape->norm_epsilon;
    float *in = engine->operand;
    device->ops->norm(device, engine->x, layer->attention_norm, epsilon, shape->embedding, rows, in,
        KV_ELEMENT_F32);
    device->ops->product_rows(device, layer->projection, in, rows, false, engine->projected);
    device->ops->rotate_store(
        device, &paged, engine->sequences, row_count, engine->model->rotation, engine->projected);
    device->ops->attend_rows(device, &paged, engine->sequences, row_count, engine->projected, in);
    device->ops->product_rows(device, layer->output, in, rows, true, engine->x);
    device->ops->norm(device, engine->x, layer->feed_forward_norm, epsilon, shape->embedding, rows,
        in, KV_ELEMENT_F32);
    device->ops->product_rows(device, layer->gate_up, in, rows, false, engine->gate_up);
    device->ops->gate(device, engine->gate_up, shape->feed_forward, rows, in, KV_ELEMENT_F32);
    device->ops->product_rows(device, layer->down, in, rows, true, engine->x);
}

/* Checks a batch and enqueues its layers. */
static kv_status_t begin_decode(
    kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count, kv_error_t *error)
{
    if (row_count < 1 || row_count > engine->params.batch_rows_max) {
        return kv_fail(error, KV_INVALID, "a batch of %u rows; 1 to %u are possible", row_count,
            engine->params.batch_rows_max);
    }
    for (uint32_t at = 0; at < row_count; at++) {
        kv_status_t status = validate_run(
            engine, "row", at, &rows[at].token, 1, rows[at].position, rows[at].slots, error);
        if (status != KV_OK) {
            return status;
        }
        engine->sequences[at] = (kv_sequence_t){rows[at].slots, rows[at].position, at, 1};
        engine->tokens[at] = rows[at].token;
    }
    kv_device_t *device = engine->device;
    device->ops->embed(
        device, engine->model->embedding, engine->tokens, (kv_rows_t){0, row_count}, engine->x);
    for (uint32_t layer = 0; layer < engine->model->shape.layer_count; layer++) {
        decode_layer(engine, layer, row_count);
    }
    return KV_OK;
}

kv_status_t kv_engine_decode(kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count,
    float *logits_out, kv_error_t *error)
{
    kv_status_t status = begin_decode(engine, rows, row_count, error);
    return status == KV_OK ? read_logits(engine, 0, row_count, logits_out, error) : status;
}

kv_status_t kv_engine_draw(kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count,
    const kv_draw_t *draws, uint32_t *tokens_out, float *logprobs_out, kv_error_t *error)
{
    kv_device_t *device = engine->device;
    if (device->ops->draw == NULL) {
        return kv_fail(error, KV_INVALID, "the device %s draws no tokens", device->ops->name);
    }
    kv_status_t status = begin_decode(engine, rows, row_count, error);
    if (status != KV_OK) {
        return status;
    }
    make_logits(engine, 0, row_count);
    return device->ops->draw(device, engine->logits, engine->model->shape.vocabulary_count, draws,
        row_count, tokens_out, logprobs_out, error);
}
