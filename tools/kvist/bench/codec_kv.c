/* KV for `kvist bench codec`. */
#include "tools/kvist/bench/codec.h"

#include "engine/engine.h"
#include "engine/tokenizer.h"
#include "tools/kvist/tour/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { BLOCK_TOKENS = 16, CHUNK_TOKENS = 512 };
#define FILE_BYTES_MAX ((uint64_t)4 << 30)

/* All of a file, with a zero after it. */
static kv_status_t read_all(
    const char *path, char **bytes_out, size_t *count_out, kv_error_t *error)
{
    struct stat state;
    FILE *file = fopen(path, "rbe");
    if (file == NULL || fstat(fileno(file), &state) != 0) {
        kv_status_t status = kv_fail_errno(error, errno, "%s", path);
        if (file != NULL) {
            fclose(file);
        }
        return status;
    }
    uint64_t bytes = S_ISREG(state.st_mode) ? (uint64_t)state.st_size : 0;
    kv_status_t status = KV_OK;
    if (bytes == 0 || bytes > FILE_BYTES_MAX) {
        status = kv_fail(error, KV_INVALID, "%s: it must be a file of 1 to %ju bytes", path,
            (uintmax_t)FILE_BYTES_MAX);
    } else {
        *bytes_out = kv_allocate(bytes + 1);
        *count_out = fread(*bytes_out, 1, bytes, file);
        if (*count_out != bytes) {
            free(*bytes_out);
            status = kv_fail(error, KV_IO, "%s: it cannot be read", path);
        }
    }
    fclose(file);
    return status;
}

/* The contents of the tour's conversation, one after the other. */
static char *tour_text(void)
{
    json_t *messages = kv_tour_messages("bench", "");
    size_t used = 0, index;
    char *text = kv_allocate(1);
    const json_t *message;
    json_array_foreach(messages, index, message)
    {
        const char *content = json_string_value(json_object_get(message, "content"));
        size_t length = strlen(content);
        text = kv_reallocate(text, used + length + 1, 1);
        memcpy(text + used, content, length + 1);
        used += length;
    }
    json_decref(messages);
    return text;
}

static kv_status_t tokens_of(const char *model_path, const char *text_path, uint32_t **tokens_out,
    size_t *count_out, kv_error_t *error)
{
    char *text = NULL;
    size_t bytes;
    if (text_path == NULL) {
        text = tour_text();
        bytes = strlen(text);
    } else {
        kv_status_t status = read_all(text_path, &text, &bytes, error);
        if (status != KV_OK) {
            return status;
        }
    }
    kv_tokenizer_t *tokenizer;
    kv_status_t status = kv_tokenizer_open(model_path, &tokenizer, error);
    if (status == KV_OK) {
        const kv_tokenizer_mode_t mode = {.add_special = true};
        status = kv_tokenizer_encode(tokenizer, text, bytes, mode, tokens_out, count_out, error);
        kv_tokenizer_close(tokenizer);
    }
    free(text);
    return status;
}

static kv_status_t compute(
    kv_engine_t *engine, const uint32_t *tokens, uint32_t count, kv_error_t *error)
{
    uint32_t *slots = kv_allocate_array(count / BLOCK_TOKENS, sizeof *slots);
    for (uint32_t i = 0; i < count / BLOCK_TOKENS; i++) {
        slots[i] = i;
    }
    kv_status_t status = KV_OK;
    for (uint32_t at = 0; at < count && status == KV_OK; at += CHUNK_TOKENS) {
        const kv_engine_chunk_t chunk = {.tokens = tokens + at,
            .token_count = count - at < CHUNK_TOKENS ? count - at : CHUNK_TOKENS,
            .position = at,
            .slots = slots};
        status = kv_engine_prefill(engine, &chunk, NULL, error);
    }
    free(slots);
    return status;
}

static kv_status_t compute_on(kv_device_t *device, const char *model_path, const uint32_t *tokens,
    uint32_t count, kv_bench_kv_t *kv_out, kv_error_t *error)
{
    const kv_engine_params_t params = {.model_path = model_path,
        .block_tokens = BLOCK_TOKENS,
        .chunk_tokens_max = CHUNK_TOKENS,
        .batch_rows_max = 1,
        .slot_count = count / BLOCK_TOKENS};
    kv_engine_t *engine;
    kv_status_t status = kv_engine_open(device, &params, &engine, error);
    if (status != KV_OK) {
        return status;
    }
    const kv_engine_info_t *info = kv_engine_info(engine);
    if (count > info->context_tokens_max) {
        status = kv_fail(error, KV_INVALID, "--tokens is %u: the model's context holds %u", count,
            info->context_tokens_max);
    } else {
        status = compute(engine, tokens, count, error);
    }
    if (status == KV_OK) {
        const size_t block_bytes = kv_block_bytes(&info->shape);
        *kv_out = (kv_bench_kv_t){
            .count = count / BLOCK_TOKENS * block_bytes,
            .unit_bytes = info->shape.head_dim * BLOCK_TOKENS * info->shape.element_bytes,
            .block_bytes = (uint32_t)block_bytes,
        };
        kv_out->bytes = kv_allocate(kv_out->count);
        status = device->ops->copy_out(
            device, kv_out->bytes, kv_engine_arena(engine), kv_out->count, error);
        if (status != KV_OK) {
            free(kv_out->bytes);
            *kv_out = (kv_bench_kv_t){0};
        }
    }
    kv_engine_close(engine);
    return status;
}

kv_status_t kv_bench_kv_compute(const char *model_path, const char *text_path, uint32_t token_count,
    kv_bench_kv_t *kv_out, kv_error_t *error)
{
    uint32_t *tokens;
    size_t count;
    kv_status_t status = tokens_of(model_path, text_path, &tokens, &count, error);
    if (status != KV_OK) {
        return status;
    }
    uint32_t whole = (uint32_t)(count < token_count ? count : token_count);
    whole -= whole % BLOCK_TOKENS;
    kv_device_t *device;
    if (whole == 0) {
        status = kv_fail(error, KV_INVALID, "--text has %zu tokens: at least %d are needed", count,
            BLOCK_TOKENS);
    } else if ((status = kv_device_cpu_open(1, &device, error)) == KV_OK) {
        status = compute_on(device, model_path, tokens, whole, kv_out, error);
        kv_device_close(device);
    }
    free(tokens);
    return status;
}

kv_status_t kv_bench_kv_read(const char *path, uint32_t unit_bytes, uint32_t block_bytes,
    kv_bench_kv_t *kv_out, kv_error_t *error)
{
    char *bytes;
    size_t count;
    kv_status_t status = read_all(path, &bytes, &count, error);
    if (status != KV_OK) {
        return status;
    }
    if (count < block_bytes) {
        free(bytes);
        return kv_fail(error, KV_INVALID, "%s has %zu bytes: a block has %u (--block-bytes)", path,
            count, block_bytes);
    }
    *kv_out = (kv_bench_kv_t){
        (uint8_t *)bytes, count / block_bytes * block_bytes, unit_bytes, block_bytes};
    return KV_OK;
}
