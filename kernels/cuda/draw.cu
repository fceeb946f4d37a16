/* Tokens from logits, where the logits are: of a step only tokens come back. How each is drawn goes
 * up, and what was drawn comes down, through the ring of uploads. */
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/sample.h"

#include <string.h>

/* What lies in the ring for a call: [count] of each. */
typedef struct {
    size_t draws, tokens, logprobs; /* where, in bytes */
    size_t bytes;
} places_t;

static places_t places_of(uint32_t count)
{
    places_t places = {};
    places.tokens = count * sizeof(cuda_draw_t);
    places.logprobs = places.tokens + count * sizeof(uint32_t);
    places.bytes = places.logprobs + count * sizeof(float);
    return places;
}

static void write_draws(const kv_draw_t *draws, uint32_t count, cuda_draw_t *to)
{
    memset(to, 0, count * sizeof *to);
    for (uint32_t i = 0; i < count; i++) {
        to[i].temperature = draws[i].temperature;
        to[i].top_k = draws[i].top_k;
        to[i].top_p = draws[i].top_p;
        to[i].wants_logprob = true;
        to[i].seed = draws[i].seed;
        to[i].position = draws[i].position;
    }
}

/* The ring's places from `at` on: draws to the device, the kernel, and its results back. */
static kv_status_t enqueue(cuda_device_t *cuda, const cuda_sample_t *rows, size_t at,
    const places_t *places, kv_error_t *error)
{
    char *device = cuda->uploads.device + at, *host = cuda->uploads.host + at;
    cuda_sample_t sample = *rows;
    sample.draws = (const cuda_draw_t *)(device + places->draws);
    sample.tokens_out = (uint32_t *)(device + places->tokens);
    sample.logprobs_out = (float *)(device + places->logprobs);
    kv_status_t status = cuda_upload_send(cuda, at, places->tokens, error);
    if (status == KV_OK) {
        status = cuda_sample(cuda_opaque(cuda->compute), &sample, error);
    }
    if (status == KV_OK) {
        status = cuda_check(cuda,
            cudaMemcpyAsync(host + places->tokens, device + places->tokens,
                places->bytes - places->tokens, cudaMemcpyDeviceToHost, cuda->compute),
            "cudaMemcpyAsync", error);
    }
    return status;
}

kv_status_t cuda_pass_draw(kv_device_t *device, const float *logits, uint32_t vocabulary_count,
    const kv_draw_t *draws, uint32_t row_count, uint32_t *tokens_out, float *logprobs_out,
    kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    const places_t places = places_of(row_count);
    size_t at = 0;
    if (cuda_pass_begin(cuda)) {
        kv_error_t own;
        kv_status_t status = cuda_upload_reserve(cuda, places.bytes, &at, &own);
        if (status == KV_OK) {
            cuda_sample_t rows = {};
            rows.logits = logits;
            rows.row_count = row_count;
            rows.vocabulary_count = vocabulary_count;
            write_draws(draws, row_count, (cuda_draw_t *)(cuda->uploads.host + at));
            status = enqueue(cuda, &rows, at, &places, &own);
        }
        cuda_pass_end(cuda, status, &own);
    }
    kv_status_t status = cuda_pass_finish(device, error);
    if (status == KV_OK) {
        const char *host = cuda->uploads.host + at;
        memcpy(tokens_out, host + places.tokens, row_count * sizeof *tokens_out);
        memcpy(logprobs_out, host + places.logprobs, row_count * sizeof *logprobs_out);
    }
    return status;
}
