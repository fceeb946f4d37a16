#include "engine/score.h"

#include "base/memory.h"
#include "engine/engine.h"
#include "engine/json_lines.h"
#include "kernels/plugin.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>

enum {
    LINE_BYTES_MAX = 32 * 1024 * 1024, /* two lists of a million ids */
    BLOCK_TOKENS = 16,
    CHUNK_TOKENS = 512,
    TOP_COUNT = 5,
    THREADS_MAX = 16,
};

typedef struct {
    kv_engine_t *engine;
    const kv_engine_info_t *info;
    FILE *out;
    uint32_t *slots;  /* a block table over the whole arena */
    uint32_t *tokens; /* [context_tokens_max]: the prompt, then the forced ids */
    float *logits;
} scorer_t;

/* The field's ids, from tokens_out on; at most limit. */
static kv_status_t read_ids(const scorer_t *scorer, const json_t *object, const char *field,
    size_t number, uint32_t limit, uint32_t *tokens_out, uint32_t *count_out, kv_error_t *error)
{
    const json_t *ids = json_object_get(object, field);
    if (!json_is_array(ids)) {
        return kv_fail(error, KV_INVALID, "line %zu: %s is %s", number, field,
            ids == NULL ? "missing" : "no list");
    }
    const size_t count = json_array_size(ids);
    if (count < 1 || count > limit) {
        return kv_fail(error, KV_INVALID,
            "line %zu: %s has %zu ids; 1 to %u fit the model's context of %u", number, field, count,
            limit, scorer->info->context_tokens_max);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(ids, i);
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= scorer->info->vocabulary_count) {
            return kv_fail(error, KV_INVALID,
                "line %zu: %s[%zu] is no token id; they are whole numbers from 0 to %u", number,
                field, i, scorer->info->vocabulary_count - 1);
        }
        tokens_out[i] = (uint32_t)value;
    }
    *count_out = (uint32_t)count;
    return KV_OK;
}

static kv_status_t prefill(const scorer_t *scorer, uint32_t count, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (uint32_t at = 0; at < count && status == KV_OK; at += CHUNK_TOKENS) {
        const uint32_t left = count - at;
        const kv_engine_chunk_t chunk = {
            .tokens = scorer->tokens + at,
            .token_count = left < CHUNK_TOKENS ? left : CHUNK_TOKENS,
            .position = at,
            .slots = scorer->slots,
        };
        status = kv_engine_prefill(
            scorer->engine, &chunk, left <= CHUNK_TOKENS ? scorer->logits : NULL, error);
    }
    return status;
}

/* {"top5", "lse"} of the logits at hand. Ties go to the lower id. */
static json_t *describe_step(const scorer_t *scorer)
{
    uint32_t top[TOP_COUNT] = {0};
    uint32_t top_count = 0;
    for (uint32_t id = 0; id < scorer->info->vocabulary_count; id++) {
        uint32_t at = top_count;
        while (at > 0 && scorer->logits[top[at - 1]] < scorer->logits[id]) {
            at--;
        }
        if (at == TOP_COUNT) {
            continue;
        }
        top_count += top_count < TOP_COUNT;
        for (uint32_t i = top_count - 1; i > at; i--) {
            top[i] = top[i - 1];
        }
        top[at] = id;
    }
    double sum = 0;
    for (uint32_t id = 0; id < scorer->info->vocabulary_count; id++) {
        sum += exp((double)scorer->logits[id] - (double)scorer->logits[top[0]]);
    }
    json_t *list = json_array();
    for (uint32_t i = 0; i < top_count; i++) {
        json_array_append_new(
            list, json_pack("[i,f]", (int)top[i], (double)scorer->logits[top[i]]));
    }
    return json_pack("{s:o,s:f}", "top5", list, "lse", log(sum) + (double)scorer->logits[top[0]]);
}

static kv_status_t score_line(void *context, json_t *object, size_t number, kv_error_t *error)
{
    const scorer_t *scorer = context;
    const uint32_t room = scorer->info->context_tokens_max;
    uint32_t prompt_count = 0, forced_count = 0;
    json_t *id = json_object_get(object, "id");
    if (id == NULL) {
        return kv_fail(error, KV_INVALID, "line %zu: id is missing", number);
    }
    kv_status_t status =
        read_ids(scorer, object, "prompt_ids", number, room, scorer->tokens, &prompt_count, error);
    if (status == KV_OK) {
        /* The last forced id is never fed: it may stand just past the context. */
        status = read_ids(scorer, object, "forced_ids", number, room - prompt_count + 1,
            scorer->tokens + prompt_count, &forced_count, error);
    }
    if (status == KV_OK) {
        status = prefill(scorer, prompt_count, error);
    }
    json_t *steps = json_array();
    for (uint32_t step = 0; step < forced_count && status == KV_OK; step++) {
        if (step > 0) {
            const uint32_t position = prompt_count + step - 1;
            const kv_engine_row_t row = {scorer->tokens[position], position, scorer->slots};
            status = kv_engine_decode(scorer->engine, &row, 1, scorer->logits, error);
        }
        if (status == KV_OK && json_array_append_new(steps, describe_step(scorer)) != 0) {
            status = kv_fail(error, KV_NO_SPACE, "line %zu: no memory for its steps", number);
        }
    }
    if (status != KV_OK) {
        json_decref(steps);
        return status;
    }
    return kv_json_lines_write(
        scorer->out, json_pack("{s:O,s:o}", "id", id, "steps", steps), error);
}

kv_status_t kv_score_run_on(kv_device_t *device, FILE *in, FILE *out, const char *model_path,
    bool f32, bool fp8, kv_error_t *error)
{
    const kv_engine_params_t params = {
        .model_path = model_path,
        .f32 = f32,
        .fp8 = fp8,
        .block_tokens = BLOCK_TOKENS,
        .chunk_tokens_max = CHUNK_TOKENS,
        .batch_rows_max = 1,
    };
    scorer_t scorer = {.out = out};
    kv_status_t status = kv_engine_open(device, &params, &scorer.engine, error);
    if (status != KV_OK) {
        return status;
    }
    scorer.info = kv_engine_info(scorer.engine);
    scorer.slots = kv_allocate_array(scorer.info->slot_count, sizeof *scorer.slots);
    for (uint32_t slot = 0; slot < scorer.info->slot_count; slot++) {
        scorer.slots[slot] = slot;
    }
    scorer.tokens =
        kv_allocate_array((size_t)scorer.info->context_tokens_max + 1, sizeof *scorer.tokens);
    scorer.logits = kv_allocate_array(scorer.info->vocabulary_count, sizeof *scorer.logits);
    status = kv_json_lines_read(in, LINE_BYTES_MAX, score_line, &scorer, error);
    free(scorer.slots);
    free(scorer.tokens);
    free(scorer.logits);
    kv_engine_close(scorer.engine);
    return status;
}

kv_status_t kv_score_run_named(const char *name, FILE *in, FILE *out, const char *model_path,
    bool f32, bool fp8, kv_error_t *error)
{
    cpu_set_t allowed;
    int count = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    kv_device_t *device;
    kv_status_t status = kv_device_open(
        name, (uint32_t)(count < THREADS_MAX ? count : THREADS_MAX), &device, NULL, error);
    if (status != KV_OK) {
        return status;
    }
    status = kv_score_run_on(device, in, out, model_path, f32, fp8, error);
    kv_device_close(device);
    return status;
}

kv_status_t kv_score_run(FILE *in, FILE *out, const char *model_path, bool f32, kv_error_t *error)
{
    return kv_score_run_named("cpu", in, out, model_path, f32, false, error);
}
