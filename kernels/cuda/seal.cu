/* XXH3 with 64 bits over many units at once; exact: compared with base/checksum.h bit by bit.
 *
 * Above 240 bytes XXH3 goes through 64-byte stripes with eight sums of 64 bits, and after each 16
 * stripes (here: a stretch, 1 KiB) it scrambles the sums. What a stretch adds to them depends on
 * nothing but its bytes and its place: so 32 lanes take 16 bytes each, twice, and fold their pair
 * of sums by shuffles. The last, shorter stretch is not scrambled, and the last 64 bytes are added
 * once more with keys of their own.
 *
 *   lane l: of the stretch's stripes l / 4 and 8 + l / 4 the two sums 2 x (l % 4) and the next one
 *
 * A unit is a warp's. Large ones are a thread block's: its warps take stretches in turn, and the
 * first one scrambles in their order while the others go on.
 *
 * Source of the algorithm: doc/xxhash_spec.md and xxhash.h of xxHash 0.8 (its constants are facts
 * of the format). */
#include "kernels/cuda/seal.h"

#include "kernels/cuda/bytes.h"

enum {
    STRIPE_BYTES = 64,
    STRETCH_STRIPES = 16,
    STRETCH_BYTES = STRETCH_STRIPES * STRIPE_BYTES,
    PAIRS = 4, /* of sums */
    WARPS = 8, /* of a thread block */
    THREADS = WARPS * CUDA_WARP,
    THREAD_BLOCKS_MAX = 1024,   /* more than a chip holds at a time: they go round */
    WARP_BYTES_MAX = 16 * 1024, /* larger units take a whole thread block */
    SHORT_BYTES_MAX = 240,
    SECRET_WORDS = 24, /* of 8 bytes */
    SCRAMBLE_WORD = 16,
    LAST_STRIPE_AT = 121, /* in bytes */
    MERGE_AT = 11,
};

#define PRIME32_1 0x9e3779b1ull
#define PRIME32_2 0x85ebca77ull
#define PRIME32_3 0xc2b2ae3dull
#define PRIME64_1 0x9e3779b185ebca87ull
#define PRIME64_2 0xc2b2ae3d27d4eb4full
#define PRIME64_3 0x165667b19e3779f9ull
#define PRIME64_4 0x85ebca77c2b2ae63ull
#define PRIME64_5 0x27d4eb2f165667c5ull
#define AVALANCHE 0x165667919e3779f9ull
#define SHORT_MIX 0x9fb21c651e98df25ull

/* The secret that every seed starts from. Kernels read it from shared memory: lanes want different
 * words, and constant memory gives one at a time. */
static __constant__ const uint64_t SECRET[SECRET_WORDS] = {
    0xbe4ba423396cfeb8ull,
    0x1cad21f72c81017cull,
    0xdb979083e96dd4deull,
    0x1f67b3b7a4a44072ull,
    0x78e5c0cc4ee679cbull,
    0x2172ffcc7dd05a82ull,
    0x8e2443f7744608b8ull,
    0x4c263a81e69035e0ull,
    0xcb00c391bb52283cull,
    0xa32e531b8b65d088ull,
    0x4ef90da297486471ull,
    0xd8acdea946ef1938ull,
    0x3f349ce33f76faa8ull,
    0x1d4f0bc7c7bbdcf9ull,
    0x3159b4cd4be0518aull,
    0x647378d9c97e9fc8ull,
    0xc3ebd33483acc5eaull,
    0xeb6313faffa081c5ull,
    0x49daf0b751dd0d17ull,
    0x9e68d429265516d3ull,
    0xfca1477d58be162bull,
    0xce31d07ad1b8f88full,
    0x280416958f3acb45ull,
    0x7e404bbbcafbd7afull,
};

static __constant__ const uint64_t FIRST_SUMS[2 * PAIRS] = {
    PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};

typedef struct {
    uint64_t even, odd;
} pair_t;

typedef struct {
    cuda_places_t from, to;
    cuda_units_t units;
    uint64_t seeds[CUDA_BATCH];
    const uint32_t *offsets;
    uint64_t *checksums_out;
    const uint64_t *expected;
    uint32_t *differing;
    uint32_t block_count;
} seal_t;

static_assert(sizeof(seal_t) <= CUDA_PARAMETER_BYTES_MAX, "the parameters of a launch");

/* The unit that a warp or a thread block works on. */
typedef struct {
    const uint8_t *from;
    uint8_t *to; /* or null */
    uint32_t bytes;
    uint64_t seed;
    const uint64_t *secret; /* shared: [SECRET_WORDS] */
} item_t;

/* What a lane mixes with: of its two stripes the even and the odd word each. */
typedef struct {
    uint64_t stripes[4], scramble_even, scramble_odd;
} keys_t;

/* ---- arithmetic ---- */

/* 8 bytes of the secret, from any byte on, a word of which has `even` or `odd` added to it. */
static __device__ uint64_t words_at(
    const uint64_t *secret, uint32_t at, uint64_t even, uint64_t odd)
{
    uint32_t word = at / 8, shift = at % 8 * 8;
    uint64_t low = secret[word] + (word % 2 == 0 ? even : odd);
    if (shift == 0) {
        return low;
    }
    return low >> shift | (secret[word + 1] + (word % 2 == 0 ? odd : even)) << (64 - shift);
}

/* As short inputs are mixed with it. */
static __device__ uint64_t secret_at(const item_t *item, uint32_t at)
{
    return words_at(item->secret, at, 0, 0);
}

/* As long ones are: the seed is added to every second word and taken from the others. */
static __device__ uint64_t seeded_at(const item_t *item, uint32_t at)
{
    return words_at(item->secret, at, item->seed, 0 - item->seed);
}

static __device__ uint64_t fold_product(uint64_t left, uint64_t right)
{
    return (left * right) ^ __umul64hi(left, right);
}

static __device__ uint64_t avalanche(uint64_t value)
{
    value = (value ^ value >> 37) * AVALANCHE;
    return value ^ value >> 32;
}

static __device__ uint64_t avalanche_of_few(uint64_t value)
{
    value = (value ^ value >> 33) * PRIME64_2;
    value = (value ^ value >> 29) * PRIME64_3;
    return value ^ value >> 32;
}

static __device__ uint64_t rotate_left(uint64_t value, uint32_t bits)
{
    return value << bits | value >> (64 - bits);
}

static __device__ uint32_t swap_4(uint32_t value)
{
    return value >> 24 | (value >> 8 & 0xff00) | (value << 8 & 0xff0000) | value << 24;
}

static __device__ uint64_t swap_8(uint64_t value)
{
    return (uint64_t)swap_4((uint32_t)value) << 32 | swap_4((uint32_t)(value >> 32));
}

/* ---- at most 240 bytes: by one lane ---- */

static __device__ uint64_t sum_to_8(const item_t *item)
{
    const uint8_t *from = item->from;
    const uint32_t bytes = item->bytes;
    uint64_t seed = item->seed;
    if (bytes == 0) {
        return avalanche_of_few(seed ^ secret_at(item, 56) ^ secret_at(item, 64));
    }
    if (bytes < 4) {
        uint32_t three = (uint32_t)from[0] << 16 | (uint32_t)from[bytes / 2] << 24 |
                         (uint32_t)from[bytes - 1] | bytes << 8;
        uint64_t first = secret_at(item, 0);
        return avalanche_of_few(three ^ (((uint32_t)first ^ first >> 32) + seed));
    }
    seed ^= (uint64_t)swap_4((uint32_t)seed) << 32;
    uint64_t both = (uint64_t)cuda_load_4(from) << 32 | cuda_load_4(from + bytes - 4);
    uint64_t value = both ^ ((secret_at(item, 8) ^ secret_at(item, 16)) - seed);
    value ^= rotate_left(value, 49) ^ rotate_left(value, 24);
    value *= SHORT_MIX;
    value ^= (value >> 35) + bytes;
    value *= SHORT_MIX;
    return value ^ value >> 28;
}

static __device__ uint64_t sum_to_16(const item_t *item)
{
    uint64_t low_key = (secret_at(item, 24) ^ secret_at(item, 32)) + item->seed;
    uint64_t high_key = (secret_at(item, 40) ^ secret_at(item, 48)) - item->seed;
    uint64_t low = cuda_load_8(item->from) ^ low_key;
    uint64_t high = cuda_load_8(item->from + item->bytes - 8) ^ high_key;
    return avalanche(item->bytes + swap_8(low) + high + fold_product(low, high));
}

/* The 16 bytes from `at` on. */
static __device__ uint64_t mix_16(const item_t *item, uint32_t at, uint32_t secret)
{
    return fold_product(cuda_load_8(item->from + at) ^ (secret_at(item, secret) + item->seed),
        cuda_load_8(item->from + at + 8) ^ (secret_at(item, secret + 8) - item->seed));
}

static __device__ uint64_t sum_to_240(const item_t *item)
{
    enum { FIRST = 8, LATER_SECRET_AT = 3, LAST_SECRET_AT = 119 };
    const uint32_t bytes = item->bytes;
    uint64_t sum = bytes * PRIME64_1;
    if (bytes <= 128) { /* from both ends, until they meet */
        for (uint32_t i = 0; i <= (bytes - 1) / 32; i++) {
            sum += mix_16(item, 16 * i, 32 * i);
            sum += mix_16(item, bytes - 16 * (i + 1), 32 * i + 16);
        }
        return avalanche(sum);
    }
    for (uint32_t i = 0; i < FIRST; i++) {
        sum += mix_16(item, 16 * i, 16 * i);
    }
    sum = avalanche(sum);
    for (uint32_t i = FIRST; i < bytes / 16; i++) {
        sum += mix_16(item, 16 * i, 16 * (i - FIRST) + LATER_SECRET_AT);
    }
    return avalanche(sum + mix_16(item, bytes - 16, LAST_SECRET_AT));
}

/* A warp calls; its first lane gets the checksum. */
static __device__ uint64_t sum_short(const item_t *item, uint32_t lane)
{
    if (item->to != nullptr) {
        for (uint32_t at = lane; at < item->bytes; at += CUDA_WARP) {
            item->to[at] = item->from[at];
        }
    }
    if (lane != 0) {
        return 0;
    }
    return item->bytes <= 8    ? sum_to_8(item)
           : item->bytes <= 16 ? sum_to_16(item)
                               : sum_to_240(item);
}

/* ---- more: by warps ---- */

static __device__ keys_t keys_of(const item_t *item, uint32_t lane)
{
    const uint32_t pair = lane % PAIRS, row = lane / PAIRS;
    keys_t keys;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t stripe = row + i / 2 * (STRETCH_STRIPES / 2);
        keys.stripes[i] = seeded_at(item, 8 * (stripe + 2 * pair + i % 2));
    }
    keys.scramble_even = seeded_at(item, 8 * (SCRAMBLE_WORD + 2 * pair));
    keys.scramble_odd = seeded_at(item, 8 * (SCRAMBLE_WORD + 2 * pair + 1));
    return keys;
}

static __device__ void add_16(pair_t *sum, uint4 bytes, uint64_t even_key, uint64_t odd_key)
{
    uint64_t even = (uint64_t)bytes.y << 32 | bytes.x, odd = (uint64_t)bytes.w << 32 | bytes.z;
    uint64_t even_mixed = even ^ even_key, odd_mixed = odd ^ odd_key;
    sum->even += odd + (uint64_t)(uint32_t)even_mixed * (even_mixed >> 32);
    sum->odd += even + (uint64_t)(uint32_t)odd_mixed * (odd_mixed >> 32);
}

/* All lanes of the same pair get what they have together. */
static __device__ pair_t fold_lanes(pair_t sum)
{
    for (uint32_t distance = PAIRS; distance < CUDA_WARP; distance *= 2) {
        sum.even += __shfl_xor_sync(CUDA_ALL_LANES, sum.even, distance);
        sum.odd += __shfl_xor_sync(CUDA_ALL_LANES, sum.odd, distance);
    }
    return sum;
}

/* The lane's part of a stretch that begins at `at` and of which so many stripes count; copies all
 * whole vectors of it. */
static __device__ pair_t sum_stretch(
    const item_t *item, uint32_t at, uint32_t stripes, const keys_t *keys, uint32_t lane)
{
    enum { HALF_BYTES = STRETCH_BYTES / 2, HALF_STRIPES = STRETCH_STRIPES / 2 };
    pair_t sum = {0, 0};
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint32_t mine = turn * HALF_BYTES + lane * CUDA_VECTOR_BYTES;
        if (mine + CUDA_VECTOR_BYTES <= item->bytes - at) {
            uint4 vector = cuda_load_16(item->from + at + mine);
            if (item->to != nullptr) {
                cuda_store_16(item->to + at + mine, vector);
            }
            if (turn * HALF_STRIPES + lane / PAIRS < stripes) {
                add_16(&sum, vector, keys->stripes[2 * turn], keys->stripes[2 * turn + 1]);
            }
        }
    }
    return sum;
}

static __device__ pair_t sum_whole_stretch(
    const item_t *item, uint32_t number, const keys_t *keys, uint32_t lane)
{
    return fold_lanes(sum_stretch(item, number * STRETCH_BYTES, STRETCH_STRIPES, keys, lane));
}

static __device__ pair_t first_sums(uint32_t lane)
{
    pair_t sum = {FIRST_SUMS[2 * (lane % PAIRS)], FIRST_SUMS[2 * (lane % PAIRS) + 1]};
    return sum;
}

static __device__ uint64_t scrambled(uint64_t sum, uint64_t key)
{
    return (sum ^ sum >> 47 ^ key) * PRIME32_1;
}

static __device__ void take_stretch(pair_t *sum, pair_t stretch, const keys_t *keys)
{
    sum->even = scrambled(sum->even + stretch.even, keys->scramble_even);
    sum->odd = scrambled(sum->odd + stretch.odd, keys->scramble_odd);
}

/* What is left after the whole stretches, 1 to 1024 bytes. */
static __device__ pair_t sum_rest(
    const item_t *item, uint32_t at, const keys_t *keys, uint32_t lane)
{
    uint32_t rest = item->bytes - at;
    pair_t sum = sum_stretch(item, at, (rest - 1) / STRIPE_BYTES, keys, lane);
    if (lane < PAIRS) {
        const uint8_t *last = item->from + item->bytes - STRIPE_BYTES;
        uint32_t secret = LAST_STRIPE_AT + lane * CUDA_VECTOR_BYTES;
        add_16(&sum, cuda_load_16(last + lane * CUDA_VECTOR_BYTES), seeded_at(item, secret),
            seeded_at(item, secret + 8));
    }
    uint32_t tail = item->bytes % CUDA_VECTOR_BYTES;
    if (item->to != nullptr && lane < tail) {
        item->to[item->bytes - tail + lane] = item->from[item->bytes - tail + lane];
    }
    return fold_lanes(sum);
}

/* The checksum of all, from the sums after the last whole stretch; a warp calls. */
static __device__ uint64_t finish(
    const item_t *item, pair_t sum, uint32_t stretches, const keys_t *keys, uint32_t lane)
{
    pair_t rest = sum_rest(item, stretches * STRETCH_BYTES, keys, lane);
    uint32_t secret = MERGE_AT + lane % PAIRS * CUDA_VECTOR_BYTES;
    uint64_t value = fold_product((sum.even + rest.even) ^ seeded_at(item, secret),
        (sum.odd + rest.odd) ^ seeded_at(item, secret + 8));
    for (uint32_t distance = 1; distance < PAIRS; distance *= 2) {
        value += __shfl_xor_sync(CUDA_ALL_LANES, value, distance);
    }
    return avalanche(value + item->bytes * PRIME64_1);
}

/* By one warp. */
static __device__ uint64_t sum_long(const item_t *item, uint32_t lane)
{
    const keys_t keys = keys_of(item, lane);
    const uint32_t stretches = (item->bytes - 1) / STRETCH_BYTES;
    pair_t sum = first_sums(lane);
    for (uint32_t i = 0; i < stretches; i++) {
        take_stretch(&sum, sum_whole_stretch(item, i, &keys, lane), &keys);
    }
    return finish(item, sum, stretches, &keys, lane);
}

/* By all warps of the thread block; the first one gets the checksum. Two sets of sums in turn:
 * while the first warp goes through one, the others fill the other one. */
static __device__ uint64_t sum_together(const item_t *item)
{
    __shared__ pair_t sums[2][WARPS][PAIRS];
    const uint32_t lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    const uint32_t stretches = (item->bytes - 1) / STRETCH_BYTES;
    const keys_t keys = keys_of(item, lane);
    pair_t sum = first_sums(lane);
    uint32_t set = 0;
    for (uint32_t first = 0; first < stretches; first += WARPS, set ^= 1) {
        if (first + warp < stretches) {
            pair_t mine = sum_whole_stretch(item, first + warp, &keys, lane);
            if (lane < PAIRS) {
                sums[set][warp][lane] = mine;
            }
        }
        __syncthreads();
        for (uint32_t i = 0; warp == 0 && i < WARPS && first + i < stretches; i++) {
            take_stretch(&sum, sums[set][i][lane % PAIRS], &keys);
        }
    }
    return warp == 0 ? finish(item, sum, stretches, &keys, lane) : 0;
}

/* ---- kernels ---- */

static __device__ void load_secret(uint64_t *secret)
{
    if (threadIdx.x < SECRET_WORDS) {
        secret[threadIdx.x] = SECRET[threadIdx.x];
    }
    __syncthreads();
}

static __device__ item_t item_of(
    const seal_t *seal, const uint64_t *secret, uint32_t at, uint32_t *block_out)
{
    const uint32_t block = at / seal->units.unit_count;
    cuda_unit_t unit = cuda_unit(&seal->units, at % seal->units.unit_count);
    if (seal->offsets != nullptr) {
        const uint32_t *offsets = seal->offsets + at + block; /* a block has one more */
        unit.offset_bytes = offsets[0];
        unit.bytes = offsets[1] - offsets[0];
    }
    item_t item;
    item.from = cuda_place(&seal->from, block) + unit.offset_bytes;
    item.to = seal->to.base != nullptr ? cuda_place(&seal->to, block) + unit.offset_bytes : nullptr;
    item.bytes = unit.bytes;
    item.seed = seal->seeds[block];
    item.secret = secret;
    *block_out = block;
    return item;
}

static __device__ void tell(const seal_t *seal, uint32_t at, uint32_t block, uint64_t sum)
{
    if (seal->checksums_out != nullptr) {
        seal->checksums_out[at] = sum;
    }
    if (seal->expected != nullptr && seal->expected[at] != sum) {
        atomicAdd(&seal->differing[block], 1u);
    }
}

/* A warp for each unit. */
static __global__ void __launch_bounds__(THREADS) seal_units(const seal_t seal)
{
    __shared__ uint64_t secret[SECRET_WORDS];
    const uint32_t lane = threadIdx.x % CUDA_WARP;
    const uint32_t count = seal.block_count * seal.units.unit_count;
    load_secret(secret);
    for (uint32_t i = blockIdx.x * WARPS + threadIdx.x / CUDA_WARP; i < count;
         i += gridDim.x * WARPS) {
        uint32_t block;
        const item_t item = item_of(&seal, secret, i, &block);
        uint64_t sum =
            item.bytes > SHORT_BYTES_MAX ? sum_long(&item, lane) : sum_short(&item, lane);
        if (lane == 0) {
            tell(&seal, i, block, sum);
        }
    }
}

/* A thread block for each unit. */
static __global__ void __launch_bounds__(THREADS) seal_large_units(const seal_t seal)
{
    __shared__ uint64_t secret[SECRET_WORDS];
    const uint32_t count = seal.block_count * seal.units.unit_count;
    load_secret(secret);
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
        uint32_t block;
        const item_t item = item_of(&seal, secret, i, &block);
        uint64_t sum = 0;
        if (item.bytes > SHORT_BYTES_MAX) {
            sum = sum_together(&item);
        } else if (threadIdx.x < CUDA_WARP) {
            sum = sum_short(&item, threadIdx.x);
        }
        if (threadIdx.x == 0) {
            tell(&seal, i, block, sum);
        }
        __syncthreads(); /* the next unit's sums come to where this one's lay */
    }
}

/* ---- launches ---- */

static uint32_t unit_bytes_max(const cuda_units_t *units)
{
    uint32_t bytes_max = 0;
    for (uint32_t i = 0; i < units->part_count; i++) {
        uint32_t bytes = units->parts[i].unit_bytes;
        bytes_max = bytes > bytes_max ? bytes : bytes_max;
    }
    return bytes_max;
}

static seal_t batch_of(const cuda_seal_t *all, uint32_t first)
{
    const uint64_t unit_first = (uint64_t)first * all->units->unit_count;
    seal_t seal = {};
    seal.units = *all->units;
    seal.block_count = cuda_batch(first, all->block_count);
    seal.from = cuda_places(all->from, first, seal.block_count);
    if (all->to != nullptr) {
        seal.to = cuda_places(all->to, first, seal.block_count);
    }
    for (uint32_t i = 0; all->seeds != nullptr && i < seal.block_count; i++) {
        seal.seeds[i] = all->seeds[first + i];
    }
    if (all->offsets != nullptr) {
        seal.offsets = all->offsets + unit_first + first;
    }
    if (all->checksums_out != nullptr) {
        seal.checksums_out = all->checksums_out + unit_first;
    }
    if (all->expected != nullptr) {
        seal.expected = all->expected + unit_first;
        seal.differing = all->differing + first;
    }
    return seal;
}

static cudaError_t launch(cudaStream_t stream, const seal_t *batch, uint32_t thread_blocks_max)
{
    const bool large = unit_bytes_max(&batch->units) > WARP_BYTES_MAX;
    const uint32_t units = batch->block_count * batch->units.unit_count;
    const uint32_t bound = thread_blocks_max > 0 && thread_blocks_max < THREAD_BLOCKS_MAX
                               ? thread_blocks_max
                               : (uint32_t)THREAD_BLOCKS_MAX;
    if (units == 0) {
        return cudaSuccess;
    }
    if (large) {
        const uint32_t grid = cuda_thread_blocks(units, bound);
        return KV_LAUNCH(seal_large_units, grid, THREADS, 0, stream, *batch);
    }
    const uint32_t grid = cuda_thread_blocks((units + WARPS - 1) / WARPS, bound);
    return KV_LAUNCH(seal_units, grid, THREADS, 0, stream, *batch);
}

extern "C" kv_status_t cuda_seal(cuda_stream_t *stream, const cuda_seal_t *seal, kv_error_t *error)
{
    cudaError_t code = cudaSuccess;
    for (uint32_t first = 0; first < seal->block_count && code == cudaSuccess;
         first += CUDA_BATCH) {
        const seal_t batch = batch_of(seal, first);
        code = launch((cudaStream_t)stream, &batch, seal->thread_blocks_max);
    }
    return cuda_launched("seal_units", code, error);
}
