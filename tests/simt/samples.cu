#include "tests/simt/samples.h"

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/tensor.h"

enum { THREADS = 128, WARPS = THREADS / 32 };

static __device__ float warp_sum(float value, int mistake)
{
    unsigned int mask = 0xffffffffu;
    const unsigned int lane = threadIdx.x % 32;
    if (mistake == MISTAKE_LANE_OUTSIDE_MASK) {
        mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    } else if (mistake == MISTAKE_MASK_WITHOUT_SELF && lane == 3) {
        mask = 0xfffffff7u;
    }
    for (int step = mistake == MISTAKE_WRONG_LANE ? 8 : 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(mask, value, step);
    }
    return value;
}

static __device__ float read_value(
    const float *values, uint32_t count, const float *host, int mistake)
{
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    if (mistake == MISTAKE_HOST_POINTER && at == 5) {
        return *host;
    }
    const bool inside = mistake == MISTAKE_READ_PAST ? at <= count : at < count;
    return inside ? values[at] : 0.0f;
}

/* The block's barrier, with what can go wrong about it. False: the thread returns. */
static __device__ bool wait_for_sums(int mistake)
{
    if (mistake == MISTAKE_NO_BARRIER) {
        return true;
    }
    if (mistake == MISTAKE_EARLY_RETURN && threadIdx.x >= THREADS - 32) {
        return false;
    }
    if (mistake == MISTAKE_DIVERGENT_BARRIER && threadIdx.x >= THREADS / 2) {
        return true;
    }
    if (mistake == MISTAKE_TWO_BARRIERS && threadIdx.x >= THREADS / 2) {
        __syncthreads();
        return true;
    }
    __syncthreads();
    return true;
}

static __global__ void sum_kernel(
    const float *values, uint32_t count, float *sums, const float *host, int mistake)
{
    KV_SHARED(float, warp_sums); /* [WARPS] */
    float value = read_value(values, count, host, mistake);
    if (mistake == MISTAKE_LANE_GONE && threadIdx.x == 40) {
        return;
    }
    value = warp_sum(value, mistake);
    const unsigned int warp = threadIdx.x / 32;
    const bool writes = mistake != MISTAKE_UNWRITTEN_SHARED || warp != 2;
    if (threadIdx.x % 32 == 0 && writes) {
        warp_sums[warp + (mistake == MISTAKE_SHARED_PAST ? 1 : 0)] = value;
    }
    if (!wait_for_sums(mistake)) {
        return;
    }
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++) {
            sum += warp_sums[i];
        }
        sums[blockIdx.x + (mistake == MISTAKE_WRITE_PAST ? 1 : 0)] = sum;
    }
}

extern "C" int sample_sum(void *stream, const float *values, uint32_t count, float *sums,
    const float *host, sample_mistake_t mistake)
{
    return KV_LAUNCH(sum_kernel, dim3((count + THREADS - 1) / THREADS), dim3(THREADS),
        WARPS * sizeof(float), (cudaStream_t)stream, values, count, sums, host, (int)mistake);
}

static __global__ void turn_kernel(const uint32_t *in, uint32_t *out, int mistake)
{
    __shared__ uint32_t values[32];
    const unsigned int lane = threadIdx.x;
    values[lane] = in[lane];
    if (mistake != MISTAKE_NO_SYNCWARP) {
        __syncwarp();
    }
    out[lane] = values[(lane & ~7u) | ((lane + 1) & 7u)];
}

extern "C" int sample_turn(
    void *stream, const uint32_t *in, uint32_t *out, sample_mistake_t mistake)
{
    return KV_LAUNCH(
        turn_kernel, dim3(1), dim3(32), 0, (cudaStream_t)stream, in, out, (int)mistake);
}

static __global__ void count_kernel(
    const uint8_t *values, uint32_t count, uint32_t *counts, int mistake)
{
    __shared__ uint32_t own[16];
    if (threadIdx.x < 16) {
        own[threadIdx.x] = 0;
    }
    __syncthreads();
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x;
    if (at < count) {
        atomicAdd(&own[values[at] & 15u], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 16 && mistake == MISTAKE_BLOCKS_RACE) {
        counts[threadIdx.x] += own[threadIdx.x];
    } else if (threadIdx.x < 16) {
        atomicAdd(&counts[threadIdx.x], own[threadIdx.x]);
    }
}

extern "C" int sample_count(
    void *stream, const uint8_t *values, uint32_t count, uint32_t *counts, sample_mistake_t mistake)
{
    return KV_LAUNCH(count_kernel, dim3((count + THREADS - 1) / THREADS), dim3(THREADS), 0,
        (cudaStream_t)stream, values, count, counts, (int)mistake);
}

static __global__ void stage_kernel(const float *in, uint32_t tiles, float *out, int mistake)
{
    __shared__ __align__(16) float tile[2][THREADS * 4];
    float sums[4] = {0, 0, 0, 0};
    const unsigned int own = threadIdx.x * 4, other = (THREADS - 1 - threadIdx.x) * 4;
    kv_copy_async_16(&tile[0][own], &in[own], 16);
    kv_copy_async_commit();
    for (uint32_t i = 0; i < tiles; i++) {
        if (i + 1 < tiles) {
            kv_copy_async_16(&tile[(i + 1) % 2][own], &in[(i + 1) * THREADS * 4 + own], 16);
        }
        kv_copy_async_commit();
        if (mistake == MISTAKE_WAIT_ONE_LESS) {
            kv_copy_async_wait<2>();
        } else if (mistake != MISTAKE_LATE_WAIT) {
            kv_copy_async_wait<1>();
        }
        __syncthreads();
        for (int k = 0; k < 4; k++) {
            sums[k] += tile[i % 2][other + k];
        }
        if (mistake != MISTAKE_NO_STAGE_BARRIER) {
            __syncthreads();
        }
    }
    for (int k = 0; k < 4; k++) {
        out[other + k] = sums[k];
    }
}

extern "C" int sample_stage(
    void *stream, const float *in, uint32_t tiles, float *out, sample_mistake_t mistake)
{
    return KV_LAUNCH(stage_kernel, dim3(1), dim3(THREADS), 0, (cudaStream_t)stream, in, tiles, out,
        (int)mistake);
}

static __global__ void multiply_kernel(const uint16_t *a, const uint16_t *b, float *c, int mistake)
{
    __shared__ __align__(16) uint16_t left[16 * 24], right[8 * 24];
    const unsigned int lane = threadIdx.x;
    const unsigned int pitch = mistake == MISTAKE_MISALIGNED ? 20 : 24;
    for (unsigned int i = lane; i < 256; i += 32) {
        left[i / 16 * pitch + i % 16] = a[i];
    }
    for (unsigned int i = lane; i < 128; i += 32) {
        right[i / 16 * pitch + i % 16] = b[i];
    }
    __syncthreads();
    uint32_t left_registers[4], right_registers[2];
    kv_load_matrix_x4(left_registers, &left[lane % 16 * pitch + lane / 16 * 8]);
    kv_load_matrix_x2(right_registers, &right[lane % 8 * pitch + lane / 8 % 2 * 8]);
    if (mistake == MISTAKE_WRONG_FRAGMENT) {
        const uint32_t kept = left_registers[1];
        left_registers[1] = left_registers[2];
        left_registers[2] = kept;
    }
    float sums[4] = {0, 0, 0, 0};
    if (mistake != MISTAKE_LANE_WITHOUT || lane != 7) {
        kv_mma_bf16(sums, left_registers, right_registers);
    }
    if (mistake != MISTAKE_NO_TENSOR_WAIT) {
        kv_tensor_wait();
    }
    const unsigned int group = lane / 4, pair = lane % 4 * 2;
    c[group * 8 + pair] = sums[0];
    c[group * 8 + pair + 1] = sums[1];
    c[(group + 8) * 8 + pair] = sums[2];
    c[(group + 8) * 8 + pair + 1] = sums[3];
}

extern "C" int sample_multiply(
    void *stream, const uint16_t *a, const uint16_t *b, float *c, sample_mistake_t mistake)
{
    return KV_LAUNCH(
        multiply_kernel, dim3(1), dim3(32), 0, (cudaStream_t)stream, a, b, c, (int)mistake);
}

static __global__ void vote_kernel(uint32_t limit, uint32_t *votes)
{
    const int below = threadIdx.x < limit;
    const int count = __syncthreads_count(below), all = __syncthreads_and(below);
    const int any = __syncthreads_or(below);
    if (threadIdx.x >= 32) {
        return;
    }
    const unsigned int ballot = __ballot_sync(0xffffffffu, below);
    if (threadIdx.x == 0) {
        votes[0] = (uint32_t)count;
        votes[1] = (uint32_t)all;
        votes[2] = (uint32_t)any;
        votes[3] = ballot;
    }
}

extern "C" int sample_vote(void *stream, uint32_t threads, uint32_t limit, uint32_t *votes)
{
    return KV_LAUNCH(vote_kernel, dim3(1), dim3(threads), 0, (cudaStream_t)stream, limit, votes);
}
