/* Each seeded mistake is found, and the same kernels without one are clean and right, whatever the
 * order of lanes and blocks. The kernels are compiled with the hooks of watch.h. */
#include "kernels/simt/api.h"
#include "kernels/simt/control.h"
#include "kernels/simt/finding.h"
#include "kernels/simt/numbers.h"
#include "tests/simt/samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { VALUES = 300, BLOCKS = 3, TILES = 5, TILE = 512, ORDERS = 8 };

static void *device_copy(const void *from, size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    assert_int_equal(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
}

static void *device_zeros(size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    assert_int_equal(cudaMemset(memory, 0, bytes), cudaSuccess);
    return memory;
}

/* The result of a kernel; false: the launch was ended. */
static bool fetch(void *to, const void *from, size_t bytes)
{
    return cudaDeviceSynchronize() == cudaSuccess &&
           cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
}

/* Each runs a sample; true if its numbers are right. */
static bool run_sum(sample_mistake_t mistake)
{
    float values[VALUES], sums[BLOCKS], expected[BLOCKS] = {0}, host = 1;
    for (int i = 0; i < VALUES; i++) {
        values[i] = (float)(i % 17 + 1);
        expected[i / 128] += values[i];
    }
    const float *in = device_copy(values, sizeof values);
    float *out = device_zeros(sizeof sums);
    assert_int_equal(sample_sum(NULL, in, VALUES, out, &host, mistake), cudaSuccess);
    return fetch(sums, out, sizeof sums) && memcmp(sums, expected, sizeof sums) == 0;
}

static bool run_turn(sample_mistake_t mistake)
{
    uint32_t values[32], turned[32];
    for (uint32_t i = 0; i < 32; i++) {
        values[i] = 100 + i;
    }
    const uint32_t *in = device_copy(values, sizeof values);
    uint32_t *out = device_zeros(sizeof turned);
    assert_int_equal(sample_turn(NULL, in, out, mistake), cudaSuccess);
    bool right = fetch(turned, out, sizeof turned);
    for (uint32_t i = 0; i < 32; i++) {
        right = right && turned[i] == 100 + ((i & ~7u) | ((i + 1) & 7u));
    }
    return right;
}

static bool run_count(sample_mistake_t mistake)
{
    uint8_t values[VALUES];
    uint32_t counts[16], expected[16] = {0};
    for (int i = 0; i < VALUES; i++) {
        values[i] = (uint8_t)(i * 7 % 16);
        expected[values[i]]++;
    }
    const uint8_t *in = device_copy(values, sizeof values);
    uint32_t *out = device_zeros(sizeof counts);
    assert_int_equal(sample_count(NULL, in, VALUES, out, mistake), cudaSuccess);
    return fetch(counts, out, sizeof counts) && memcmp(counts, expected, sizeof counts) == 0;
}

static bool run_stage(sample_mistake_t mistake)
{
    static float values[TILES * TILE], sums[TILE], expected[TILE];
    memset(expected, 0, sizeof expected);
    for (int i = 0; i < TILES * TILE; i++) {
        values[i] = (float)(i % 29);
        expected[i % TILE] += values[i];
    }
    const float *in = device_copy(values, sizeof values);
    float *out = device_zeros(sizeof sums);
    assert_int_equal(sample_stage(NULL, in, TILES, out, mistake), cudaSuccess);
    return fetch(sums, out, sizeof sums) && memcmp(sums, expected, sizeof sums) == 0;
}

static bool run_multiply(sample_mistake_t mistake)
{
    uint16_t a[16][16], b[8][16];
    float c[16][8];
    for (int k = 0; k < 16; k++) {
        for (int row = 0; row < 16; row++) {
            a[row][k] = kv_bf16_of_float((float)(row - k));
        }
        for (int column = 0; column < 8; column++) {
            b[column][k] = kv_bf16_of_float((float)(column * 3 + k % 5));
        }
    }
    const uint16_t *left = device_copy(a, sizeof a), *right = device_copy(b, sizeof b);
    float *out = device_zeros(sizeof c);
    assert_int_equal(sample_multiply(NULL, left, right, out, mistake), cudaSuccess);
    bool same = fetch(c, out, sizeof c);
    for (int row = 0; row < 16 && same; row++) {
        for (int column = 0; column < 8; column++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) {
                sum += (float)((row - k) * (column * 3 + k % 5));
            }
            same = same && c[row][column] == sum;
        }
    }
    return same;
}

typedef bool sample_run_t(sample_mistake_t mistake);

/* found: the kind of finding; KV_SIMT_FINDING_KINDS: any, or wrong numbers. */
static const struct {
    sample_mistake_t mistake;
    sample_run_t *run;
    kv_simt_finding_kind_t found;
} mistakes[] = {
    {MISTAKE_NO_BARRIER, run_sum, KV_SIMT_UNWRITTEN},
    {MISTAKE_DIVERGENT_BARRIER, run_sum, KV_SIMT_DIVERGENT_BARRIER},
    {MISTAKE_EARLY_RETURN, run_sum, KV_SIMT_DIVERGENT_BARRIER},
    {MISTAKE_TWO_BARRIERS, run_sum, KV_SIMT_DIVERGENT_BARRIER},
    {MISTAKE_LANE_GONE, run_sum, KV_SIMT_INACTIVE_LANE},
    {MISTAKE_LANE_OUTSIDE_MASK, run_sum, KV_SIMT_INACTIVE_LANE},
    {MISTAKE_MASK_WITHOUT_SELF, run_sum, KV_SIMT_INACTIVE_LANE},
    {MISTAKE_READ_PAST, run_sum, KV_SIMT_OUT_OF_BOUNDS},
    {MISTAKE_WRITE_PAST, run_sum, KV_SIMT_OUT_OF_BOUNDS},
    {MISTAKE_SHARED_PAST, run_sum, KV_SIMT_OUT_OF_BOUNDS},
    {MISTAKE_UNWRITTEN_SHARED, run_sum, KV_SIMT_UNWRITTEN},
    {MISTAKE_HOST_POINTER, run_sum, KV_SIMT_OUT_OF_BOUNDS},
    {MISTAKE_NO_SYNCWARP, run_turn, KV_SIMT_FINDING_KINDS},
    {MISTAKE_BLOCKS_RACE, run_count, KV_SIMT_RACE},
    {MISTAKE_LATE_WAIT, run_stage, KV_SIMT_FINDING_KINDS},
    {MISTAKE_WAIT_ONE_LESS, run_stage, KV_SIMT_FINDING_KINDS},
    {MISTAKE_NO_STAGE_BARRIER, run_stage, KV_SIMT_RACE},
    {MISTAKE_WRONG_FRAGMENT, run_multiply, KV_SIMT_FINDING_KINDS},
    {MISTAKE_NO_TENSOR_WAIT, run_multiply, KV_SIMT_MISUSE},
    {MISTAKE_LANE_WITHOUT, run_multiply, KV_SIMT_INACTIVE_LANE},
    {MISTAKE_MISALIGNED, run_multiply, KV_SIMT_MISALIGNED},
    {MISTAKE_WRONG_LANE, run_sum, KV_SIMT_FINDING_KINDS},
};

static sample_run_t *const samples[] = {run_sum, run_turn, run_count, run_stage, run_multiply};

static int begin(void **state)
{
    (void)state;
    kv_simt_findings_clear();
    kv_simt_set_order(0);
    return 0;
}

static int end(void **state)
{
    (void)state;
    kv_simt_reset();
    return 0;
}

static void samples_are_clean(void **state)
{
    (void)state;
    for (uint64_t order = 0; order < ORDERS; order++) {
        kv_simt_set_order(order);
        for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
            assert_true(samples[i](MISTAKE_NONE));
            assert_int_equal(kv_simt_finding_count(KV_SIMT_FINDING_KINDS), 0);
        }
    }
}

static void every_mistake_is_found(void **state)
{
    (void)state;
    bool all = true;
    assert_int_equal(sizeof mistakes / sizeof mistakes[0], MISTAKES - 1);
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        kv_simt_findings_clear();
        bool right = mistakes[i].run(mistakes[i].mistake);
        bool found = mistakes[i].found == KV_SIMT_FINDING_KINDS
                         ? !right || kv_simt_finding_count(KV_SIMT_FINDING_KINDS) > 0
                         : kv_simt_finding_count(mistakes[i].found) > 0;
        if (!found) {
            print_message("mistake %d: not found as %s\n", (int)mistakes[i].mistake,
                kv_simt_finding_kind_name(mistakes[i].found));
        }
        all = all && found;
        kv_simt_reset();
    }
    assert_true(all);
}

static void votes_count(void **state)
{
    (void)state;
    uint32_t votes[4];
    static const struct {
        uint32_t threads, limit, expected[4];
    } cases[] = {
        {64, 0, {0, 0, 0, 0}},
        {64, 40, {40, 0, 1, UINT32_MAX}},
        {64, 64, {64, 1, 1, UINT32_MAX}},
        {1024, 5, {5, 0, 1, 31}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t *out = device_zeros(sizeof votes);
        assert_int_equal(sample_vote(NULL, cases[i].threads, cases[i].limit, out), cudaSuccess);
        assert_true(fetch(votes, out, sizeof votes));
        assert_memory_equal(votes, cases[i].expected, sizeof votes);
    }
    assert_int_equal(kv_simt_finding_count(KV_SIMT_FINDING_KINDS), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(samples_are_clean, begin, end),
        cmocka_unit_test_setup_teardown(every_mistake_is_found, begin, end),
        cmocka_unit_test_setup_teardown(votes_count, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
