/* Sampling: one token from each of some rows of logits, where the logits are, so that a row of
 * numbers need not leave the device for each token.
 *
 * The rules are engine/sampler.h's: temperature, then top-k, then top-p; one uniform number of
 * (seed, position). The same token is drawn as there, but where the number falls so near to the
 * border of two tokens' shares that the exponential's last bits decide.
 *
 * Borrows: every pointer but the call's own struct is device memory and belongs to the stream until
 * the kernel has run.
 * Threads: the stream's own.
 * Errors: KV_FATAL where the launch is refused. No rows: KV_OK, nothing is launched.
 * Limits: 1 to 2^21 tokens. A row's token depends on that row and its draw alone. */
#ifndef KV_KERNELS_CUDA_SAMPLE_H
#define KV_KERNELS_CUDA_SAMPLE_H

#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    float temperature; /* 0: greedy, the lowest of equals */
    uint32_t top_k;    /* 0: no limit */
    float top_p;       /* above 0, at most 1 */
    bool wants_logprob;
    uint64_t seed, position;
} cuda_draw_t;

typedef struct {
    const float *logits; /* [row_count][vocabulary_count] */
    uint32_t row_count, vocabulary_count;
    const cuda_draw_t *draws; /* [row_count] */
    uint32_t *tokens_out;     /* [row_count]; 0 for a row without a finite logit */
    float *logprobs_out;      /* [row_count]: in the unmodified distribution, where it is wanted */
} cuda_sample_t;

kv_status_t cuda_sample(cuda_stream_t *stream, const cuda_sample_t *sample, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
