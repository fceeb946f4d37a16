/* A block is one row. Three things make the draw independent of the order of threads:
 *
 * 1. A token's weight is an integer, 2^42 for the likeliest: sums are exact in any order. What is
 *    less likely by more than that has no chance; all weights together stay below 2^63.
 * 2. Logits are compared as integers of the same order (a key; 0: not finite, never chosen).
 * 3. Nothing is sorted. The token at which the likeliest ones, added up, pass a target is found by
 *    four histograms of eight bits of the key each; top-k (a target of counts), top-p and the draw
 *    (targets of weights) are the same search. Of equal logits the lower id comes first.
 *
 * Without top-k and top-p the draw goes through the tokens in the order of ids.
 *
 * Bytes: the row once for the greedy token, once more for the sum, four times for each search; it
 * stays in the second-level cache. Tolerance against engine/sampler.c: the same token, unless the
 * target lies within 1e-6 of the border of its share; 1e-5 for the logprob. */
#include "kernels/cuda/sample.h"

#include "kernels/cuda/launch.h"

enum { THREADS = 256, WARPS = THREADS / CUDA_WARP, BINS = 256 };

typedef unsigned long long mass_t; /* what 64-bit atomics and exchanges are declared for */

static const uint32_t NO_KEY = 0;

/* What a block shares. */
typedef struct {
    mass_t masses[BINS];
    uint32_t counts[BINS];
    mass_t sums[WARPS];
    mass_t above, above_mass;
    uint32_t bin, token;
} board_t;

/* A row, and how its logits become weights. */
typedef struct {
    const float *logits;
    uint32_t count;
    float best, temperature;
} weighing_t;

static __device__ __forceinline__ uint32_t key_of(float logit)
{
    const uint32_t bits = __float_as_uint(logit + 0.0f); /* one zero */
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        return NO_KEY;
    }
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/* 0 where the logit is not finite. */
static __device__ __forceinline__ mass_t mass_of(const weighing_t &weighing, uint32_t token)
{
    const float logit = weighing.logits[token];
    if (key_of(logit) == NO_KEY) {
        return 0;
    }
    return (mass_t)(expf((logit - weighing.best) / weighing.temperature) * 0x1p42f);
}

/* The sum over the block, the same in every thread. */
static __device__ __forceinline__ mass_t block_sum(mass_t own, board_t *board)
{
    for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
        own += __shfl_xor_sync(CUDA_ALL_LANES, own, step);
    }
    __syncthreads(); /* the sums of an earlier call have been read */
    if (threadIdx.x % CUDA_WARP == 0) {
        board->sums[threadIdx.x / CUDA_WARP] = own;
    }
    __syncthreads();
    mass_t sum = 0;
    for (int warp = 0; warp < WARPS; warp++) {
        sum += board->sums[warp];
    }
    return sum;
}

/* The likeliest token's key in the high half, the complement of its id in the low one. */
static __device__ mass_t find_best(const float *logits, uint32_t count, board_t *board)
{
    mass_t best = 0;
    for (uint32_t token = threadIdx.x; token < count; token += THREADS) {
        const mass_t own = (mass_t)key_of(logits[token]) << 32 | (uint32_t)~token;
        best = own > best ? own : best;
    }
    for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
        const mass_t other = __shfl_xor_sync(CUDA_ALL_LANES, best, step);
        best = other > best ? other : best;
    }
    if (threadIdx.x % CUDA_WARP == 0) {
        board->sums[threadIdx.x / CUDA_WARP] = best;
    }
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) {
        best = board->sums[warp] > best ? board->sums[warp] : best;
    }
    return best;
}

static __device__ __forceinline__ mass_t total_mass(const weighing_t &weighing, board_t *board)
{
    mass_t own = 0;
    for (uint32_t token = threadIdx.x; token < weighing.count; token += THREADS) {
        own += mass_of(weighing, token);
    }
    return block_sum(own, board);
}

static __device__ uint32_t finite_count(const weighing_t &weighing, board_t *board)
{
    mass_t own = 0;
    for (uint32_t token = threadIdx.x; token < weighing.count; token += THREADS) {
        own += key_of(weighing.logits[token]) != NO_KEY;
    }
    return (uint32_t)block_sum(own, board);
}

/* Where a search ended: at the ordinal-th (from 1) of the tokens with the key. mass: of all tokens
 * up to that one. */
typedef struct {
    uint32_t key;
    mass_t ordinal, mass;
} found_t;

/* The histogram of the eight bits from shift on, of the keys that begin as prefix does. */
static __device__ void count_bins(
    const weighing_t &weighing, uint32_t prefix, int shift, board_t *board)
{
    board->masses[threadIdx.x] = 0;
    board->counts[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < weighing.count; token += THREADS) {
        const uint32_t key = key_of(weighing.logits[token]);
        if (key != NO_KEY && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8))) {
            const uint32_t bin = key >> shift & (BINS - 1);
            atomicAdd(&board->masses[bin], mass_of(weighing, token));
            atomicAdd(&board->counts[bin], 1u);
        }
    }
    __syncthreads();
}

/* The token at which the sum of weights (or, by_count, the number of tokens), likeliest first,
 * passes target, which is less than all of it. */
static __device__ __forceinline__ found_t search(
    const weighing_t &weighing, bool by_count, mass_t target, board_t *board)
{
    uint32_t prefix = 0;
    mass_t above = 0, above_mass = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        count_bins(weighing, prefix, shift, board);
        if (threadIdx.x == 0) {
            uint32_t bin = BINS - 1;
            for (; bin > 0; bin--) {
                const mass_t own = by_count ? board->counts[bin] : board->masses[bin];
                if (above + own > target) {
                    break;
                }
                above += own;
                above_mass += board->masses[bin];
            }
            board->bin = bin;
            board->above = above;
            board->above_mass = above_mass;
        }
        __syncthreads();
        prefix |= board->bin << shift;
        above = board->above;
        above_mass = board->above_mass; /* written again behind the barriers of count_bins */
    }
    const mass_t each = board->masses[board->bin] / board->counts[board->bin];
    found_t found;
    found.key = prefix;
    found.ordinal = (target - above) / (by_count ? 1 : each) + 1;
    found.mass = above_mass + found.ordinal * each;
    __syncthreads(); /* the board has been read */
    return found;
}

/* A token's part in a walk by ids: its weight, or with a key one if it has that key. */
static __device__ __forceinline__ mass_t part_of(
    const weighing_t &weighing, uint32_t key, uint32_t token)
{
    return key == NO_KEY ? mass_of(weighing, token) : key_of(weighing.logits[token]) == key;
}

/* The sum of this and all lower lanes' numbers. */
static __device__ __forceinline__ mass_t running_sum(mass_t own)
{
    for (int step = 1; step < CUDA_WARP; step *= 2) {
        const mass_t other = __shfl_up_sync(CUDA_ALL_LANES, own, step);
        own += threadIdx.x % CUDA_WARP >= (uint32_t)step ? other : 0;
    }
    return own;
}

/* The first token, by ids, at which the sum of parts passes target, which is less than all of it.
 * Each warp adds up a run of tokens; the one whose run it is walks through it once more. */
static __device__ __forceinline__ uint32_t walk(
    const weighing_t &weighing, uint32_t key, mass_t target, board_t *board)
{
    const uint32_t lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP,
                   run = (weighing.count + THREADS - 1) / THREADS * CUDA_WARP, first = warp * run,
                   last = first + run < weighing.count ? first + run : weighing.count;
    mass_t own = 0;
    for (uint32_t token = first + lane; token < last; token += CUDA_WARP) {
        own += part_of(weighing, key, token);
    }
    block_sum(own, board);
    uint32_t owner = 0;
    mass_t sum = 0;
    for (; owner < WARPS - 1 && sum + board->sums[owner] <= target; owner++) {
        sum += board->sums[owner];
    }
    for (uint32_t at = first; warp == owner && at < last; at += CUDA_WARP) {
        const mass_t part = at + lane < last ? part_of(weighing, key, at + lane) : 0,
                     sums = sum + running_sum(part);
        const uint32_t passed = __ballot_sync(CUDA_ALL_LANES, sums > target);
        if (passed != 0) {
            if (lane == 0) {
                board->token = at + (uint32_t)__ffs((int)passed) - 1;
            }
            break;
        }
        sum = __shfl_sync(CUDA_ALL_LANES, sums, CUDA_WARP - 1);
    }
    __syncthreads();
    return board->token;
}

/* The finalizer of splitmix64. */
static __device__ uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

/* Uniform in [0, 1), a function of (seed, position) alone: engine/sampler.c's. */
static __device__ double uniform(uint64_t seed, uint64_t position)
{
    const uint64_t stream = mix(seed + 0x9e3779b97f4a7c15u),
                   bits = mix(stream + (position + 1) * 0x9e3779b97f4a7c15u);
    return (double)(bits >> 11) * 0x1p-53;
}

/* share x mass, less than mass: what rounding may add is cut off. */
static __device__ mass_t part_of_mass(double share, mass_t mass)
{
    const mass_t part = (mass_t)(share * (double)mass);
    return part < mass ? part : mass - 1;
}

/* The mass of what top-k and top-p leave. */
static __device__ mass_t kept_mass(
    const weighing_t &weighing, const cuda_draw_t &draw, bool limited, board_t *board)
{
    mass_t mass =
        limited ? search(weighing, true, draw.top_k - 1, board).mass : total_mass(weighing, board);
    if (draw.top_p < 1) {
        /* The fewest whose share reaches p: at which the sum passes the last number below it. */
        const double wanted = ceil((double)draw.top_p * (double)mass);
        const mass_t target = wanted < 1 ? 0 : (mass_t)wanted - 1;
        mass = search(weighing, false, target < mass ? target : mass - 1, board).mass;
    }
    return mass;
}

static __device__ uint32_t draw_token(
    const weighing_t &weighing, const cuda_draw_t &draw, board_t *board)
{
    const double number = uniform(draw.seed, draw.position);
    const bool limited = draw.top_k > 0 && draw.top_k < finite_count(weighing, board);
    if (!limited && draw.top_p >= 1) {
        const mass_t mass = total_mass(weighing, board);
        return walk(weighing, NO_KEY, part_of_mass(number, mass), board);
    }
    const mass_t mass = kept_mass(weighing, draw, limited, board);
    const found_t found = search(weighing, false, part_of_mass(number, mass), board);
    return walk(weighing, found.key, found.ordinal - 1, board);
}

/* One block an SM suffices: without that word the compiler spills to fit eight. */
static __global__ void __launch_bounds__(THREADS, 1) sample_kernel(const cuda_sample_t sample)
{
    __shared__ board_t board;
    const cuda_draw_t draw = sample.draws[blockIdx.x];
    const float *logits = sample.logits + (size_t)blockIdx.x * sample.vocabulary_count;
    const mass_t best = find_best(logits, sample.vocabulary_count, &board);
    if (best >> 32 == NO_KEY) {
        if (threadIdx.x == 0) {
            sample.tokens_out[blockIdx.x] = 0;
            sample.logprobs_out[blockIdx.x] = -INFINITY;
        }
        return;
    }
    const uint32_t likeliest = ~(uint32_t)best;
    weighing_t weighing = {logits, sample.vocabulary_count, logits[likeliest], draw.temperature};
    const uint32_t token = draw.temperature > 0 ? draw_token(weighing, draw, &board) : likeliest;
    float logprob = 0;
    if (draw.wants_logprob) {
        weighing.temperature = 1;
        const double total = (double)total_mass(weighing, &board) * 0x1p-42;
        logprob = (float)((double)logits[token] - (double)weighing.best - log(total));
    }
    if (threadIdx.x == 0) {
        sample.tokens_out[blockIdx.x] = token;
        sample.logprobs_out[blockIdx.x] = logprob;
    }
}

kv_status_t cuda_sample(cuda_stream_t *stream, const cuda_sample_t *sample, kv_error_t *error)
{
    if (sample->row_count == 0) {
        return KV_OK;
    }
    return cuda_launched("sample",
        KV_LAUNCH(sample_kernel, dim3(sample->row_count), dim3(THREADS), 0, cuda_stream_of(stream),
            *sample),
        error);
}
