/* XXH3 with 64 bits over many units at once; exact: compared with base/checksum.h bit by bit.
 *
 * Above 240 bytes XXH3 goes through 64-byte stripes with eight sums of 64 bits, and after each 16
 * stripes (here: a stretch, 1 KiB) it scrambles the sums. What a stretch adds to them depends on
 * nothing but its bytes and its place: so 32 lanes take 16 bytes each, twice, and fold their pair
 * of sums by shuffles; the warps of a thread block take stretches in turn, and its first warp adds
 * and scrambles in their order while the others go on. The last, shorter stretch is not scrambled,
 * and the last 64 bytes are added once more with keys of their own.
 *
 *   lane l: of the stretch's stripes l / 4 and 8 + l / 4 the two sums 2 x (l % 4) and the next one
 *
 * Source of the algorithm: doc/xxhash_spec.md and xxhash.h of xxHash 0.8 (its constants are facts
 * of the format). */
#include "kernels/cuda/seal.h"

#include "kernels/cuda/bytes.h"

enum {
    STRIPE_BYTES = 64,
    STRETCH_STRIPES = 16,
    STRETCH_BYTES = STRETCH_STRIPES * STRIPE_BYTES,
    PAIRS = 4,         /* of sums */
    WARPS_MAX = 8,     /* that share a unit */
    WARP_BYTES = 4096, /* units of no more go to one warp */
    SHORT_BYTES_MAX = 240,
    SCRAMBLE_WORD = 16,   /* of the secret, in words of 8 bytes */
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

/* The secret that every seed starts from: 192 bytes. */
static __constant__ const uint64_t SECRET[24] = {
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
    uint64_t *checksums_out;
    const uint64_t *expected;
    uint32_t *differing;
    uint32_t block_count;
} seal_t;

static_assert(sizeof(seal_t) <= CUDA_PARAMETER_BYTES_MAX, "the parameters of a launch");

/* The unit that a thread block works on. */
typedef struct {
    const uint8_t *from;
    uint8_t *to; /* or null */
    uint32_t bytes;
    uint64_t seed;
} item_t;

/* ---- arithmetic ---- */

/* A word of the secret, as long inputs are mixed with: a seed is added to every second one and
 * taken from the others. */
static __device__ uint64_t seeded_word(uint32_t word, uint64_t seed)
{
    return word % 2 == 0 ? SECRET[word] + seed : SECRET[word] - seed;
}

/* 8 bytes of that secret, from any byte on. */
static __device__ uint64_t seeded_at(uint32_t at, uint64_t seed)
{
    uint32_t word = at / 8, shift = at % 8 * 8;
    uint64_t low = seeded_word(word, seed);
    return shift == 0 ? low : low >> shift | seeded_word(word + 1, seed) << (64 - shift);
}

static __device__ uint64_t secret_at(uint32_t at)
{
    return seeded_at(at, 0);
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

static __device__ uint64_t sum_to_16(const uint8_t *from, uint32_t bytes, uint64_t seed)
{
    if (bytes == 0) {
        return avalanche_of_few(seed ^ secret_at(56) ^ secret_at(64));
    }
    if (bytes < 4) {
        uint32_t three = (uint32_t)from[0] << 16 | (uint32_t)from[bytes / 2] << 24 |
                         (uint32_t)from[bytes - 1] | bytes << 8;
        uint64_t first = secret_at(0);
        return avalanche_of_few(three ^ (((uint32_t)first ^ first >> 32) + seed));
    }
    if (bytes <= 8) {
        seed ^= (uint64_t)swap_4((uint32_t)seed) << 32;
        uint64_t both = (uint64_t)cuda_load_4(from) << 32 | cuda_load_4(from + bytes - 4);
        uint64_t value = both ^ ((secret_at(8) ^ secret_at(16)) - seed);
        value ^= rotate_left(value, 49) ^ rotate_left(value, 24);
        value *= SHORT_MIX;
        value ^= (value >> 35) + bytes;
        value *= SHORT_MIX;
        return value ^ value >> 28;
    }
    uint64_t low = cuda_load_8(from) ^ ((secret_at(24) ^ secret_at(32)) + seed);
    uint64_t high = cuda_load_8(from + bytes - 8) ^ ((secret_at(40) ^ secret_at(48)) - seed);
    return avalanche(bytes + swap_8(low) + high + fold_product(low, high));
}

static __device__ uint64_t mix_16(const uint8_t *from, uint32_t secret, uint64_t seed)
{
    return fold_product(cuda_load_8(from) ^ (secret_at(secret) + seed),
        cuda_load_8(from + 8) ^ (secret_at(secret + 8) - seed));
}

static __device__ uint64_t sum_to_240(const uint8_t *from, uint32_t bytes, uint64_t seed)
{
    enum { FIRST = 8, LATER_SECRET_AT = 3, LAST_SECRET_AT = 119 };
    uint64_t sum = bytes * PRIME64_1;
    if (bytes <= 128) { /* from both ends, until they meet */
        for (uint32_t i = 0; i <= (bytes - 1) / 32; i++) {
            sum += mix_16(from + 16 * i, 32 * i, seed);
            sum += mix_16(from + bytes - 16 * (i + 1), 32 * i + 16, seed);
        }
        return avalanche(sum);
    }
    for (uint32_t i = 0; i < FIRST; i++) {
        sum += mix_16(from + 16 * i, 16 * i, seed);
    }
    sum = avalanche(sum);
    for (uint32_t i = FIRST; i < bytes / 16; i++) {
        sum += mix_16(from + 16 * i, 16 * (i - FIRST) + LATER_SECRET_AT, seed);
    }
    return avalanche(sum + mix_16(from + bytes - 16, LAST_SECRET_AT, seed));
}

/* ---- more: by warps ---- */

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
    const item_t *item, uint32_t at, uint32_t stripes, const uint64_t *keys, uint32_t lane)
{
    enum { HALF_BYTES = STRETCH_BYTES / 2, HALF_STRIPES = STRETCH_STRIPES / 2 };
    pair_t sum = {0, 0};
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t mine = half * HALF_BYTES + lane * CUDA_VECTOR_BYTES;
        if (mine + CUDA_VECTOR_BYTES <= item->bytes - at) {
            uint4 vector = cuda_load_16(item->from + at + mine);
            if (item->to != nullptr) {
                cuda_store_16(item->to + at + mine, vector);
            }
            if (half * HALF_STRIPES + lane / PAIRS < stripes) {
                add_16(&sum, vector, keys[2 * half], keys[2 * half + 1]);
            }
        }
    }
    return sum;
}

static __device__ void scramble(uint64_t *sum, uint64_t key)
{
    *sum = (*sum ^ *sum >> 47 ^ key) * PRIME32_1;
}

/* What is left after the whole stretches, 1 to 1024 bytes: the sums of a whole warp. */
static __device__ pair_t sum_rest(
    const item_t *item, uint32_t at, const uint64_t *keys, uint32_t lane)
{
    uint32_t rest = item->bytes - at;
    pair_t sum = sum_stretch(item, at, (rest - 1) / STRIPE_BYTES, keys, lane);
    if (lane < PAIRS) {
        const uint8_t *last = item->from + item->bytes - STRIPE_BYTES;
        uint32_t secret = LAST_STRIPE_AT + lane * CUDA_VECTOR_BYTES;
        add_16(&sum, cuda_load_16(last + lane * CUDA_VECTOR_BYTES), seeded_at(secret, item->seed),
            seeded_at(secret + 8, item->seed));
    }
    uint32_t tail = item->bytes % CUDA_VECTOR_BYTES;
    if (item->to != nullptr && lane < tail) {
        item->to[item->bytes - tail + lane] = item->from[item->bytes - tail + lane];
    }
    return fold_lanes(sum);
}

static __device__ uint64_t merge(const item_t *item, pair_t sum, uint32_t pair)
{
    uint32_t secret = MERGE_AT + pair * CUDA_VECTOR_BYTES;
    uint64_t value = fold_product(
        sum.even ^ seeded_at(secret, item->seed), sum.odd ^ seeded_at(secret + 8, item->seed));
    for (uint32_t distance = 1; distance < PAIRS; distance *= 2) {
        value += __shfl_xor_sync(CUDA_ALL_LANES, value, distance);
    }
    return avalanche(value + item->bytes * PRIME64_1);
}

/* All threads of the thread block call; its first warp gets the checksum. Two sets of sums in
 * turn: while the first warp goes through one, the others fill the other one. */
static __device__ uint64_t sum_long(const item_t *item)
{
    __shared__ pair_t shared[2][WARPS_MAX][PAIRS];
    const uint32_t lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    const uint32_t warps = blockDim.x / CUDA_WARP, pair = lane % PAIRS, row = lane / PAIRS;
    uint64_t keys[4];
    for (uint32_t i = 0; i < 4; i++) {
        keys[i] = seeded_word(row + i / 2 * (STRETCH_STRIPES / 2) + 2 * pair + i % 2, item->seed);
    }
    const uint64_t even_key = seeded_word(SCRAMBLE_WORD + 2 * pair, item->seed);
    const uint64_t odd_key = seeded_word(SCRAMBLE_WORD + 2 * pair + 1, item->seed);
    pair_t sum = {FIRST_SUMS[2 * pair], FIRST_SUMS[2 * pair + 1]};
    const uint32_t stretches = (item->bytes - 1) / STRETCH_BYTES;
    uint32_t set = 0;
    for (uint32_t first = 0; first < stretches; first += warps, set ^= 1) {
        if (first + warp < stretches) {
            pair_t mine = fold_lanes(
                sum_stretch(item, (first + warp) * STRETCH_BYTES, STRETCH_STRIPES, keys, lane));
            if (row == 0) {
                shared[set][warp][pair] = mine;
            }
        }
        __syncthreads();
        for (uint32_t i = 0; warp == 0 && i < warps && first + i < stretches; i++) {
            sum.even += shared[set][i][pair].even;
            sum.odd += shared[set][i][pair].odd;
            scramble(&sum.even, even_key);
            scramble(&sum.odd, odd_key);
        }
    }
    uint64_t value = 0;
    if (warp == 0) {
        pair_t rest = sum_rest(item, stretches * STRETCH_BYTES, keys, lane);
        sum.even += rest.even;
        sum.odd += rest.odd;
        value = merge(item, sum, pair);
    }
    return value;
}

static __device__ uint64_t sum_short(const item_t *item)
{
    if (item->to != nullptr) {
        for (uint32_t at = threadIdx.x; at < item->bytes; at += blockDim.x) {
            item->to[at] = item->from[at];
        }
    }
    if (threadIdx.x != 0) {
        return 0;
    }
    return item->bytes <= 16 ? sum_to_16(item->from, item->bytes, item->seed)
                             : sum_to_240(item->from, item->bytes, item->seed);
}

static __global__ void __launch_bounds__(WARPS_MAX *CUDA_WARP) seal_units(const seal_t seal)
{
    const uint32_t count = seal.block_count * seal.units.unit_count;
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
        uint32_t block = i / seal.units.unit_count;
        cuda_unit_t unit = cuda_unit(&seal.units, i % seal.units.unit_count);
        item_t item;
        item.from = cuda_place(&seal.from, block) + unit.offset_bytes;
        item.to =
            seal.to.base != nullptr ? cuda_place(&seal.to, block) + unit.offset_bytes : nullptr;
        item.bytes = unit.bytes;
        item.seed = seal.seeds[block];
        uint64_t sum = unit.bytes > SHORT_BYTES_MAX ? sum_long(&item) : sum_short(&item);
        if (threadIdx.x == 0 && seal.checksums_out != nullptr) {
            seal.checksums_out[i] = sum;
        }
        if (threadIdx.x == 0 && seal.expected != nullptr && seal.expected[i] != sum) {
            atomicAdd(&seal.differing[block], 1);
        }
        __syncthreads(); /* the next unit's sums come to where this one's lay */
    }
}

static uint32_t warps_for(const cuda_units_t *units)
{
    uint32_t bytes_max = 0;
    for (uint32_t i = 0; i < units->part_count; i++) {
        uint32_t bytes = units->parts[i].unit_bytes;
        bytes_max = bytes > bytes_max ? bytes : bytes_max;
    }
    uint32_t warps = bytes_max / WARP_BYTES;
    return warps < 1 ? 1 : warps < WARPS_MAX ? warps : (uint32_t)WARPS_MAX;
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
    if (all->checksums_out != nullptr) {
        seal.checksums_out = all->checksums_out + unit_first;
    }
    if (all->expected != nullptr) {
        seal.expected = all->expected + unit_first;
        seal.differing = all->differing + first;
    }
    return seal;
}

extern "C" kv_status_t cuda_seal(cuda_stream_t *stream, const cuda_seal_t *seal, kv_error_t *error)
{
    const uint32_t threads = warps_for(seal->units) * CUDA_WARP;
    cudaError_t code = cudaSuccess;
    for (uint32_t first = 0; first < seal->block_count && code == cudaSuccess;
         first += CUDA_BATCH) {
        const seal_t batch = batch_of(seal, first);
        uint32_t units = batch.block_count * batch.units.unit_count;
        if (units > 0) {
            uint32_t grid = cuda_thread_blocks(units, seal->thread_blocks_max);
            code = KV_LAUNCH(seal_units, grid, threads, 0, (cudaStream_t)stream, batch);
        }
    }
    return cuda_launch_status(code, "seal_units", error);
}
