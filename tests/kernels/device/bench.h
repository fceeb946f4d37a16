/* What the tests of a GPU's table share: the device under test beside the CPU's, and buffers that
 * both have. KVIST_DEVICE names the device: simt, unless a machine with a GPU says cuda:0. */
#ifndef KV_TESTS_KERNELS_DEVICE_BENCH_H
#define KV_TESTS_KERNELS_DEVICE_BENCH_H

#include "kernels/plugin.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    kv_device_t *tested, *cpu;
    uint64_t random;
} bench_t;

/* The same numbers on both. */
typedef struct {
    float *tested, *cpu;
    size_t count;
} buffer_t;

static inline const char *bench_device(void)
{
    const char *name = getenv("KVIST_DEVICE");
    return name != NULL ? name : "simt";
}

static inline void bench_open(bench_t *bench)
{
    kv_error_t error = {0};
    *bench = (bench_t){.random = kv_test_seed()};
    if (kv_device_open(bench_device(), 1, &bench->tested, NULL, &error) != KV_OK) {
        fail_msg("no device %s: %s", bench_device(), error.text);
    }
    assert_int_equal(kv_device_open("cpu", 1, &bench->cpu, NULL, &error), KV_OK);
}

static inline void bench_close(bench_t *bench)
{
    kv_device_close(bench->tested);
    kv_device_close(bench->cpu);
}

static inline float bench_uniform(bench_t *bench)
{
    return (float)(kv_test_random(&bench->random) >> 40) / 8388608.0f - 1.0f;
}

/* Numbers between -width and width; 0: zeros. */
static inline buffer_t bench_buffer(bench_t *bench, size_t count, float width)
{
    buffer_t buffer = {.count = count};
    kv_error_t error;
    void *memory[2];
    float *host = malloc(count * sizeof *host);
    for (size_t i = 0; i < count; i++) {
        host[i] = width * bench_uniform(bench);
    }
    kv_device_t *devices[] = {bench->tested, bench->cpu};
    for (int i = 0; i < 2; i++) {
        const kv_device_ops_t *ops = devices[i]->ops;
        assert_int_equal(
            ops->allocate(devices[i], count * sizeof *host, &memory[i], &error), KV_OK);
        assert_int_equal(
            ops->copy_in(devices[i], memory[i], host, count * sizeof *host, &error), KV_OK);
    }
    free(host);
    buffer.tested = memory[0];
    buffer.cpu = memory[1];
    return buffer;
}

static inline void bench_release(bench_t *bench, buffer_t *buffer)
{
    const size_t bytes = buffer->count * sizeof(float);
    bench->tested->ops->release(bench->tested, buffer->tested, bytes);
    bench->cpu->ops->release(bench->cpu, buffer->cpu, bytes);
}

static inline void bench_finish(bench_t *bench)
{
    kv_error_t error = {0};
    if (bench->tested->ops->finish(bench->tested, &error) != KV_OK) {
        fail_msg("finish: %s", error.text);
    }
    assert_int_equal(bench->cpu->ops->finish(bench->cpu, &error), KV_OK);
}

/* Elements first to first + count - 1 agree within tolerance x (1 + |value|). */
static inline void bench_compare(bench_t *bench, const char *what, const buffer_t *buffer,
    size_t first, size_t count, float tolerance)
{
    kv_error_t error;
    float *is = malloc(count * sizeof *is);
    assert_int_equal(bench->tested->ops->copy_out(
                         bench->tested, is, buffer->tested + first, count * sizeof *is, &error),
        KV_OK);
    for (size_t i = 0; i < count; i++) {
        const float wanted = buffer->cpu[first + i];
        if (!(fabsf(is[i] - wanted) <= tolerance * (1.0f + fabsf(wanted)))) {
            fail_msg("%s: element %zu is %g, the cpu says %g (seed %llu)", what, first + i,
                (double)is[i], (double)wanted, (unsigned long long)kv_test_seed());
        }
    }
    free(is);
}

#endif
