/* The device's sampler against the engine's: the same tokens. */
#include "kernels/cuda/sample.h"
#include "on_device.h"

#include "base/memory.h"
#include "engine/sampler.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 12 };

static uint64_t random_state;

static float uniform(void)
{
    return (float)(kv_test_random(&random_state) >> 40) / 8388608.0f - 1.0f;
}

/* Logits with ties, both zeros, and some that are not finite. */
static void fill_logits(float *logits, uint32_t count, int kind)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t dice = kv_test_random(&random_state) % 16;
        logits[i] = kind == 0 ? uniform() * 10.0f : floorf(uniform() * 4.0f);
        logits[i] = kind == 2 && dice < 4 ? (dice == 0      ? INFINITY
                                                : dice == 1 ? NAN
                                                            : -INFINITY)
                                          : logits[i];
        logits[i] = kind == 1 && dice == 0 ? -0.0f : logits[i];
    }
}

static void run(const float *logits, uint32_t count, const cuda_draw_t *draws, uint32_t *tokens,
    float *logprobs)
{
    cuda_sample_t sample = {
        .logits = on_device(logits, (size_t)ROWS * count * sizeof *logits, 0),
        .row_count = ROWS,
        .vocabulary_count = count,
        .draws = on_device(draws, ROWS * sizeof *draws, 0),
        .tokens_out = on_device(NULL, ROWS * sizeof *tokens, 0),
        .logprobs_out = on_device(NULL, ROWS * sizeof *logprobs, 0),
    };
    assert_int_equal(cuda_sample(NULL, &sample, NULL), KV_OK);
    from_device(tokens, sample.tokens_out, ROWS * sizeof *tokens);
    off_device(sample.tokens_out);
    from_device(logprobs, sample.logprobs_out, ROWS * sizeof *logprobs);
    off_device(sample.logprobs_out);
    off_device((void *)(uintptr_t)sample.logits);
    off_device((void *)(uintptr_t)sample.draws);
}

/* Every way to cut: none, greedy, top-k, top-p, both; limits at and past what there is. */
static cuda_draw_t make_draw(int row, uint32_t count)
{
    static const float temperatures[] = {0, 1.0f, 0.7f, 3.0f}, shares[] = {1.0f, 0.9f, 0.3f, 1e-6f};
    const uint32_t limits[] = {0, 1, 5, 40, count, count + 1};
    return (cuda_draw_t){
        .temperature = temperatures[row % 4],
        .top_k = limits[kv_test_random(&random_state) % 6],
        .top_p = shares[kv_test_random(&random_state) % 4],
        .wants_logprob = true,
        .seed = kv_test_random(&random_state),
        .position = kv_test_random(&random_state) % 4096,
    };
}

static void check(uint32_t count, int kind)
{
    float *logits = kv_allocate_array((size_t)ROWS * count, sizeof *logits), logprobs[ROWS];
    cuda_draw_t draws[ROWS];
    uint32_t tokens[ROWS];
    fill_logits(logits, ROWS * count, kind);
    for (int row = 0; row < ROWS; row++) {
        draws[row] = make_draw(row, count);
    }
    run(logits, count, draws, tokens, logprobs);
    kv_sampler_t *sampler = kv_sampler_create(count);
    for (int row = 0; row < ROWS; row++) {
        const kv_sampling_t sampling = {
            draws[row].temperature, draws[row].top_k, draws[row].top_p, draws[row].seed};
        float logprob;
        const uint32_t token = kv_sampler_draw(
            sampler, &sampling, draws[row].position, logits + (size_t)row * count, &logprob);
        if (token != tokens[row]) {
            fail_msg("of %u tokens, kind %d, temperature %g, top_k %u, top_p %g: drawn %u, the "
                     "engine draws %u (seed %llu)",
                count, kind, (double)sampling.temperature, sampling.top_k, (double)sampling.top_p,
                tokens[row], token, (unsigned long long)kv_test_seed());
        }
        assert_true(isinf(logprob) ? isinf(logprobs[row])
                                   : fabsf(logprob - logprobs[row]) <= 1e-5f * (1 - logprob));
    }
    kv_sampler_destroy(sampler);
    free(logits);
}

static void tokens_are_the_engines(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    static const uint32_t counts[] = {1, 2, 31, 33, 255, 256, 257, 1000, 5003};
    for (size_t at = 0; at < sizeof counts / sizeof *counts; at++) {
        for (int kind = 0; kind < 3; kind++) {
            for (int round = 0; round < 3; round++) {
                check(counts[at], kind);
            }
        }
    }
}

static void a_row_without_a_finite_logit_gives_token_0(void **state)
{
    (void)state;
    float logits[ROWS][2], logprobs[ROWS];
    cuda_draw_t draws[ROWS];
    uint32_t tokens[ROWS];
    for (int row = 0; row < ROWS; row++) {
        logits[row][0] = NAN;
        logits[row][1] = row % 2 == 0 ? INFINITY : -INFINITY;
        draws[row] = (cuda_draw_t){.temperature = (float)(row % 3), .top_p = 1.0f};
    }
    run(&logits[0][0], 2, draws, tokens, logprobs);
    for (int row = 0; row < ROWS; row++) {
        assert_int_equal(tokens[row], 0);
        assert_true(logprobs[row] == -INFINITY);
    }
    assert_int_equal(cuda_sample(NULL, &(cuda_sample_t){.vocabulary_count = 2}, NULL), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_engines),
        cmocka_unit_test(a_row_without_a_finite_logit_gives_token_0),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
