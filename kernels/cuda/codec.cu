/* The bf16 codec, a warp for each unit; exact: compared with kvstore/codec byte by byte.
 *
 * The form's streams fit a warp: a vote of 32 lanes over 32 elements is 32 bits of a plane, and how
 * many lanes below have escaped says where a lane's exponent goes on. So a chunk (1024 elements) is
 * taken through its steps in shared memory, 32 elements at a time, without any two lanes waiting
 * for each other but in votes; both directions. Encoded chunks lie in shared memory as far from a
 * 16-byte boundary as in device memory: whole vectors move between the two.
 *
 * Encoding leaves each unit at its own place in scratch memory; then a scan over the lengths says
 * where it goes, and it is moved there. Decoding begins with the scan. */
#include "kernels/cuda/codec.h"

#include "kernels/cuda/bytes.h"

enum {
    WARPS = 4, /* of a thread block; each has its own unit */
    THREADS = WARPS * CUDA_WARP,
    SCAN_THREADS = 256,
    SCAN_WARPS = SCAN_THREADS / CUDA_WARP,
    CHUNK_ELEMENTS = 1024,
    VECTOR_ELEMENTS = 64, /* chunks are multiples of it */
    ELEMENT_BYTES = 2,
    THREE = 3, /* exponents of a step */
    NIBBLE_ESCAPE = 15,
    HEAD_BYTES = 2 * THREE + 1,
    EXPONENTS = 256,
    /* Where every exponent goes through all steps. */
    ENCODED_BYTES_MAX = HEAD_BYTES + CHUNK_ELEMENTS / 4 + CHUNK_ELEMENTS / 4 + CHUNK_ELEMENTS / 2 +
                        CHUNK_ELEMENTS + CHUNK_ELEMENTS,
    /* At any distance from a boundary. */
    ENCODED_ROOM =
        (ENCODED_BYTES_MAX + 2 * CUDA_VECTOR_BYTES - 1) / CUDA_VECTOR_BYTES * CUDA_VECTOR_BYTES,
};

static_assert(CHUNK_ELEMENTS <= CUDA_WARP * CUDA_WARP, "a lane keeps one word of each plane");

typedef struct {
    cuda_places_t blocks;
    cuda_units_t units;
    uint32_t block_count;
    uint8_t *unpacked_scratch; /* of pack */
    const uint8_t *packed;
    uint8_t *packed_out;
    uint64_t object_bytes, packed_stride_bytes;
    const uint32_t *lengths;
    uint32_t *lengths_out, *offsets, *damaged;
} batch_t;

static_assert(sizeof(batch_t) <= CUDA_PARAMETER_BYTES_MAX, "the parameters of a launch");

/* What a warp encodes with. */
typedef struct {
    alignas(16) uint16_t words[CHUNK_ELEMENTS];
    alignas(16) uint8_t encoded[ENCODED_ROOM];
    uint8_t exponents[CHUNK_ELEMENTS]; /* those that are still to be written */
    uint32_t counts[EXPONENTS];
} encoder_t;

typedef struct {
    alignas(16) uint8_t encoded[ENCODED_ROOM];
    uint8_t third[CHUNK_ELEMENTS], second[CHUNK_ELEMENTS];
} decoder_t;

/* A chunk's head. */
typedef struct {
    uint32_t first[THREE], second[THREE], base;
} values_t;

/* ---- both directions ---- */

static __device__ uint32_t lanes_below(uint32_t lane)
{
    return (1u << lane) - 1;
}

/* Of the next chunk; 0: what is left is none. */
static __device__ uint32_t chunk_elements(uint32_t left_bytes)
{
    uint32_t elements = left_bytes / (VECTOR_ELEMENTS * ELEMENT_BYTES) * VECTOR_ELEMENTS;
    return elements < CHUNK_ELEMENTS ? elements : (uint32_t)CHUNK_ELEMENTS;
}

static __device__ uint32_t plane_bytes(uint32_t count)
{
    return (count + 7) / 8;
}

/* The sum of the lanes up to this one. */
static __device__ uint32_t scan_lanes(uint32_t value, uint32_t lane)
{
    for (uint32_t distance = 1; distance < CUDA_WARP; distance *= 2) {
        uint32_t below = __shfl_up_sync(CUDA_ALL_LANES, value, distance);
        value += lane >= distance ? below : 0;
    }
    return value;
}

/* Where this warp's next unit is; false: it has no more. */
static __device__ bool unit_of(const batch_t *batch, uint32_t at, uint32_t *block_out,
    uint32_t *number_out, cuda_unit_t *unit_out)
{
    if (at >= batch->block_count * batch->units.unit_count) {
        return false;
    }
    *block_out = at / batch->units.unit_count;
    *number_out = at % batch->units.unit_count;
    *unit_out = cuda_unit(&batch->units, *number_out);
    return true;
}

static __device__ uint32_t first_unit(uint32_t warp)
{
    return blockIdx.x * WARPS + warp;
}

static __device__ uint32_t unit_stride(void)
{
    return gridDim.x * WARPS;
}

/* ---- encoding ---- */

static __device__ uint32_t exponent_of(uint32_t word)
{
    return word >> 7 & 255;
}

/* The most frequent exponent of those left, the highest one among equals; then it is not left any
 * more. A lane has the keys (count x 256 + exponent) of eight. */
static __device__ uint32_t take_most(uint32_t keys[8], uint32_t lane)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < 8; i++) {
        most = keys[i] > most ? keys[i] : most;
    }
    for (uint32_t distance = CUDA_WARP / 2; distance > 0; distance /= 2) {
        uint32_t other = __shfl_xor_sync(CUDA_ALL_LANES, most, distance);
        most = other > most ? other : most;
    }
    most &= EXPONENTS - 1;
    for (uint32_t i = 0; i < 8; i++) {
        keys[i] = 8 * lane + i == most ? 0 : keys[i];
    }
    return most;
}

/* From a fifth of the elements, eight neighbours at a time, as the other encoders do. */
static __device__ void choose(
    encoder_t *encoder, uint32_t elements, uint32_t lane, values_t *values_out)
{
    enum { EIGHT = 8, SAMPLES_MAX = 255, BELOW = 10 };
    uint32_t distance = EIGHT * ((elements + SAMPLES_MAX - 1) / SAMPLES_MAX | 1);
    uint32_t samples = (elements + distance - 1) / distance * EIGHT, keys[8];
    for (uint32_t i = lane; i < EXPONENTS; i += CUDA_WARP) {
        encoder->counts[i] = 0;
    }
    __syncwarp();
    for (uint32_t i = lane; i < samples; i += CUDA_WARP) {
        uint32_t word = encoder->words[i / EIGHT * distance + i % EIGHT];
        atomicAdd(&encoder->counts[exponent_of(word)], 1u);
    }
    __syncwarp();
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t exponent = 8 * lane + i;
        keys[i] = encoder->counts[exponent] << 8 | exponent;
    }
    for (uint32_t i = 0; i < THREE; i++) {
        values_out->first[i] = take_most(keys, lane);
    }
    for (uint32_t i = 0; i < THREE; i++) {
        values_out->second[i] = take_most(keys, lane);
    }
    uint32_t most = values_out->first[0];
    values_out->base = most > BELOW ? most - BELOW : 0;
}

/* Steps 1 and 2: codes of what stands in `exponents`; what has none moves to the front. Returns how
 * many those are. */
static __device__ uint32_t encode_step(uint8_t *exponents, uint32_t count,
    const uint32_t three[THREE], uint8_t *planes_out, uint32_t lane)
{
    const uint32_t bytes = plane_bytes(count);
    uint32_t on = 0, my_low = 0, my_high = 0;
    for (uint32_t at = 0; at < count; at += CUDA_WARP) {
        uint32_t value = at + lane < count ? exponents[at + lane] : three[0];
        uint32_t code = value == three[0] ? 0 : value == three[1] ? 1 : value == three[2] ? 2 : 3;
        uint32_t low = __ballot_sync(CUDA_ALL_LANES, code & 1);
        uint32_t high = __ballot_sync(CUDA_ALL_LANES, code >> 1);
        __syncwarp(); /* all have read before any writes there */
        if (code == 3) {
            exponents[on + __popc(low & high & lanes_below(lane))] = (uint8_t)value;
        }
        on += __popc(low & high);
        if (lane == at / CUDA_WARP) {
            my_low = low;
            my_high = high;
        }
    }
    for (uint32_t i = 0; i < 4 && 4 * lane + i < bytes; i++) {
        planes_out[4 * lane + i] = (uint8_t)(my_low >> 8 * i);
        planes_out[bytes + 4 * lane + i] = (uint8_t)(my_high >> 8 * i);
    }
    __syncwarp();
    return on;
}

/* Steps 3 and 4: two exponents a lane. Returns the bytes of both. */
static __device__ uint32_t encode_nibbles(
    const uint8_t *exponents, uint32_t count, uint32_t base, uint8_t *nibbles_out, uint32_t lane)
{
    uint8_t *fourth = nibbles_out + (count + 1) / 2;
    uint32_t on = 0;
    for (uint32_t at = 0; at < count; at += 2 * CUDA_WARP) {
        uint32_t even = at + 2 * lane, odd = even + 1, values[2] = {0, 0}, nibbles[2] = {0, 0};
        for (uint32_t i = 0; i < 2 && even + i < count; i++) {
            values[i] = exponents[even + i];
            nibbles[i] = (values[i] - base) & 255;
            nibbles[i] = nibbles[i] < NIBBLE_ESCAPE ? nibbles[i] : (uint32_t)NIBBLE_ESCAPE;
        }
        uint32_t evens = __ballot_sync(CUDA_ALL_LANES, nibbles[0] == NIBBLE_ESCAPE);
        uint32_t odds = __ballot_sync(CUDA_ALL_LANES, nibbles[1] == NIBBLE_ESCAPE);
        uint32_t mine = on + __popc(evens & lanes_below(lane)) + __popc(odds & lanes_below(lane));
        if (even < count) {
            nibbles_out[even / 2] = (uint8_t)(nibbles[0] | nibbles[1] << 4);
        }
        if (nibbles[0] == NIBBLE_ESCAPE) {
            fourth[mine++] = (uint8_t)values[0];
        }
        if (odd < count && nibbles[1] == NIBBLE_ESCAPE) {
            fourth[mine] = (uint8_t)values[1];
        }
        on += __popc(evens) + __popc(odds);
    }
    return (count + 1) / 2 + on;
}

/* The chunk in `words` to `encoded_out`, in shared memory. Returns its length. */
static __device__ uint32_t encode_chunk(
    encoder_t *encoder, uint32_t elements, uint8_t *encoded_out, uint32_t lane)
{
    values_t values;
    choose(encoder, elements, lane, &values);
    for (uint32_t i = lane; i < elements; i += CUDA_WARP) {
        encoder->exponents[i] = (uint8_t)exponent_of(encoder->words[i]);
    }
    for (uint32_t i = 0; lane == 0 && i < THREE; i++) {
        encoded_out[i] = (uint8_t)values.first[i];
        encoded_out[THREE + i] = (uint8_t)values.second[i];
        encoded_out[2 * THREE] = (uint8_t)values.base;
    }
    __syncwarp();
    uint8_t *at = encoded_out + HEAD_BYTES;
    uint32_t second = encode_step(encoder->exponents, elements, values.first, at, lane);
    at += 2 * plane_bytes(elements);
    uint32_t third = encode_step(encoder->exponents, second, values.second, at, lane);
    at += 2 * plane_bytes(second);
    at += encode_nibbles(encoder->exponents, third, values.base, at, lane);
    for (uint32_t i = lane; i < elements; i += CUDA_WARP) {
        uint32_t word = encoder->words[i];
        at[i] = (uint8_t)(word << 1 | word >> 15);
    }
    __syncwarp();
    return (uint32_t)(at - encoded_out) + elements;
}

/* Returns the length; 0: the unit does not get smaller. */
static __device__ uint32_t encode_unit(
    encoder_t *encoder, const uint8_t *from, uint32_t bytes, uint8_t *to, uint32_t lane)
{
    const uint32_t room = bytes > 0 ? bytes - 1 : 0;
    uint32_t at = 0, used = 0, elements;
    while ((elements = chunk_elements(bytes - at)) > 0) {
        cuda_copy_alike((uint8_t *)encoder->words, from + at, elements * ELEMENT_BYTES, lane);
        __syncwarp();
        uint8_t *encoded =
            encoder->encoded + (uint32_t)((uintptr_t)(to + used) % CUDA_VECTOR_BYTES);
        uint32_t got = encode_chunk(encoder, elements, encoded, lane);
        if (got > room - used) {
            return 0;
        }
        cuda_copy_alike(to + used, encoded, got, lane);
        at += elements * ELEMENT_BYTES;
        used += got;
    }
    if (bytes - at > room - used) {
        return 0;
    }
    cuda_copy_alike(to + used, from + at, bytes - at, lane);
    return used + (bytes - at);
}

static __global__ void __launch_bounds__(THREADS) encode_units(const batch_t batch)
{
    __shared__ encoder_t encoders[WARPS];
    const uint32_t lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    uint32_t block, number;
    cuda_unit_t unit;
    for (uint32_t i = first_unit(warp); unit_of(&batch, i, &block, &number, &unit);
         i += unit_stride()) {
        const uint8_t *from = cuda_place(&batch.blocks, block) + unit.offset_bytes;
        uint8_t *to = batch.unpacked_scratch + block * batch.object_bytes + unit.offset_bytes;
        uint32_t length = 0;
        if (unit.element_bytes == ELEMENT_BYTES) {
            length = encode_unit(&encoders[warp], from, unit.bytes, to, lane);
        }
        __syncwarp(); /* what was written of it goes */
        if (length == 0) {
            cuda_copy_alike(to, from, unit.bytes, lane);
            length = unit.bytes;
        }
        if (lane == 0) {
            batch.lengths_out[i] = length;
        }
    }
}

/* ---- where each unit lies in the packed object ---- */

/* A unit's length as it is stored; never more than the unit, whatever was said. */
static __device__ uint32_t stored_bytes(const batch_t *batch, uint32_t block, uint32_t unit)
{
    uint32_t said = batch->lengths[(uint64_t)block * batch->units.unit_count + unit];
    uint32_t bytes = cuda_unit(&batch->units, unit).bytes;
    return said < bytes ? said : bytes;
}

/* A thread block for each object. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_lengths(const batch_t batch)
{
    __shared__ uint32_t totals[SCAN_WARPS];
    const uint32_t lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    const uint32_t block = blockIdx.x, count = batch.units.unit_count;
    uint32_t *offsets = batch.offsets + (uint64_t)block * (count + 1);
    uint32_t before = 0;
    for (uint32_t first = 0; first < count; first += SCAN_THREADS) {
        uint32_t unit = first + threadIdx.x;
        uint32_t bytes = unit < count ? stored_bytes(&batch, block, unit) : 0;
        uint32_t through = scan_lanes(bytes, lane);
        if (lane == CUDA_WARP - 1) {
            totals[warp] = through;
        }
        __syncthreads();
        uint32_t here = before;
        for (uint32_t i = 0; i < SCAN_WARPS; i++) {
            here += i < warp ? totals[i] : 0;
            before += totals[i];
        }
        if (unit < count) {
            offsets[unit] = here + through - bytes;
        }
        __syncthreads(); /* before the next totals come there */
    }
    if (threadIdx.x == 0) {
        offsets[count] = before;
    }
}

static __global__ void __launch_bounds__(THREADS) pack_units(const batch_t batch)
{
    const uint32_t lane = threadIdx.x % CUDA_WARP;
    uint32_t block, number;
    cuda_unit_t unit;
    for (uint32_t i = first_unit(threadIdx.x / CUDA_WARP);
         unit_of(&batch, i, &block, &number, &unit); i += unit_stride()) {
        const uint32_t *offsets = batch.offsets + (uint64_t)block * (batch.units.unit_count + 1);
        cuda_copy_across(batch.packed_out + block * batch.packed_stride_bytes + offsets[number],
            batch.unpacked_scratch + block * batch.object_bytes + unit.offset_bytes,
            offsets[number + 1] - offsets[number], lane);
    }
}

/* ---- decoding ---- */

/* A lane's 32 codes of a step, and how many of those before them go on. */
typedef struct {
    uint32_t low, high, before;
} codes_t;

/* Returns how many go on in all. */
static __device__ uint32_t read_codes(
    const uint8_t *planes, uint32_t count, uint32_t lane, codes_t *codes_out)
{
    const uint32_t bytes = plane_bytes(count);
    codes_t codes = {0, 0, 0};
    for (uint32_t i = 0; i < 4 && 4 * lane + i < bytes; i++) {
        codes.low |= (uint32_t)planes[4 * lane + i] << 8 * i;
        codes.high |= (uint32_t)planes[bytes + 4 * lane + i] << 8 * i;
    }
    uint32_t left = count > CUDA_WARP * lane ? count - CUDA_WARP * lane : 0;
    uint32_t valid = left < CUDA_WARP ? lanes_below(left) : CUDA_ALL_LANES;
    uint32_t on = __popc(codes.low & codes.high & valid), through = scan_lanes(on, lane);
    codes.before = through - on;
    *codes_out = codes;
    return __shfl_sync(CUDA_ALL_LANES, through, CUDA_WARP - 1);
}

/* The exponent of element 32 x word + lane; all lanes call. Where there is no such element, any. */
static __device__ uint32_t value_of(const codes_t *codes, uint32_t word, bool there,
    const uint8_t *three, const uint8_t *rest, uint32_t lane)
{
    uint32_t low = __shfl_sync(CUDA_ALL_LANES, codes->low, word);
    uint32_t high = __shfl_sync(CUDA_ALL_LANES, codes->high, word);
    uint32_t before = __shfl_sync(CUDA_ALL_LANES, codes->before, word);
    uint32_t code = (low >> lane & 1) | (high >> lane & 1) << 1;
    if (!there) {
        return 0;
    }
    return code < THREE ? three[code] : rest[before + __popc(low & high & lanes_below(lane))];
}

/* Steps 3 and 4 to `third`. `bytes` are there from the nibbles on. Returns the bytes of both
 * steps; UINT32_MAX: they would not leave `room` bytes behind them. */
static __device__ uint32_t decode_nibbles(decoder_t *decoder, const uint8_t *nibbles,
    uint32_t count, uint32_t base, uint32_t bytes, uint32_t room, uint32_t lane)
{
    const uint32_t nibble_bytes = (count + 1) / 2;
    uint32_t on = 0;
    if (nibble_bytes + room > bytes) {
        return UINT32_MAX;
    }
    for (uint32_t at = 0; at < count; at += 2 * CUDA_WARP) {
        uint32_t even = at + 2 * lane;
        uint32_t both = even < count ? nibbles[even / 2] : 0;
        uint32_t parts[2] = {both & 15, both >> 4};
        bool full[2] = {even < count && parts[0] == NIBBLE_ESCAPE,
            even + 1 < count && parts[1] == NIBBLE_ESCAPE};
        uint32_t evens = __ballot_sync(CUDA_ALL_LANES, full[0]);
        uint32_t odds = __ballot_sync(CUDA_ALL_LANES, full[1]);
        uint32_t mine = on + __popc(evens & lanes_below(lane)) + __popc(odds & lanes_below(lane));
        for (uint32_t i = 0; i < 2 && even + i < count; i++) {
            decoder->third[even + i] =
                full[i] ? nibbles[nibble_bytes + mine] : (uint8_t)(base + parts[i]);
            mine += full[i];
        }
        on += __popc(evens) + __popc(odds);
    }
    __syncwarp();
    return nibble_bytes + on + room > bytes ? UINT32_MAX : nibble_bytes + on;
}

static __device__ void store_word(uint8_t *to, uint32_t word)
{
    if ((uintptr_t)to % ELEMENT_BYTES == 0) {
        *(uint16_t *)to = (uint16_t)word;
    } else {
        to[0] = (uint8_t)word;
        to[1] = (uint8_t)(word >> 8);
    }
}

/* The chunk at the start of `bytes` bytes in shared memory. Returns its length; 0: it would be
 * longer, and nothing is written. */
static __device__ uint32_t decode_chunk(decoder_t *decoder, const uint8_t *encoded, uint32_t bytes,
    uint32_t elements, uint8_t *to, uint32_t lane)
{
    codes_t first, second;
    uint32_t at = HEAD_BYTES + elements / 4;
    if (at + elements > bytes) {
        return 0;
    }
    uint32_t second_count = read_codes(encoded + HEAD_BYTES, elements, lane, &first);
    const uint8_t *second_planes = encoded + at;
    at += 2 * plane_bytes(second_count);
    if (at + elements > bytes) {
        return 0;
    }
    uint32_t third_count = read_codes(second_planes, second_count, lane, &second);
    uint32_t nibbles = decode_nibbles(
        decoder, encoded + at, third_count, encoded[2 * THREE], bytes - at, elements, lane);
    if (nibbles == UINT32_MAX) {
        return 0;
    }
    at += nibbles;
    for (uint32_t i = 0; i < second_count; i += CUDA_WARP) {
        bool there = i + lane < second_count;
        uint32_t value =
            value_of(&second, i / CUDA_WARP, there, encoded + THREE, decoder->third, lane);
        if (there) {
            decoder->second[i + lane] = (uint8_t)value;
        }
    }
    __syncwarp();
    for (uint32_t i = 0; i < elements; i += CUDA_WARP) { /* a multiple of 64 */
        uint32_t value = value_of(&first, i / CUDA_WARP, true, encoded, decoder->second, lane);
        uint32_t rotated = value << 8 | encoded[at + i + lane];
        store_word(to + (size_t)ELEMENT_BYTES * (i + lane), rotated >> 1 | rotated << 15);
    }
    return at + elements;
}

static __device__ bool decode_unit(decoder_t *decoder, const uint8_t *from, uint32_t stored,
    uint8_t *to, uint32_t bytes, uint32_t lane)
{
    uint32_t at = 0, used = 0, elements;
    while ((elements = chunk_elements(bytes - at)) > 0) {
        uint32_t left = stored - used;
        uint32_t there = left < ENCODED_BYTES_MAX ? left : (uint32_t)ENCODED_BYTES_MAX;
        uint8_t *encoded =
            decoder->encoded + (uint32_t)((uintptr_t)(from + used) % CUDA_VECTOR_BYTES);
        cuda_copy_alike(encoded, from + used, there, lane);
        __syncwarp();
        uint32_t got = decode_chunk(decoder, encoded, there, elements, to + at, lane);
        __syncwarp(); /* before the next chunk comes there */
        if (got == 0) {
            return false;
        }
        at += elements * ELEMENT_BYTES;
        used += got;
    }
    if (stored - used != bytes - at) {
        return false;
    }
    cuda_copy_alike(to + at, from + used, bytes - at, lane);
    return true;
}

static __global__ void __launch_bounds__(THREADS) decode_units(const batch_t batch)
{
    __shared__ decoder_t decoders[WARPS];
    const uint32_t lane = threadIdx.x % CUDA_WARP, warp = threadIdx.x / CUDA_WARP;
    uint32_t block, number;
    cuda_unit_t unit;
    for (uint32_t i = first_unit(warp); unit_of(&batch, i, &block, &number, &unit);
         i += unit_stride()) {
        const uint32_t *offsets = batch.offsets + (uint64_t)block * (batch.units.unit_count + 1);
        const uint8_t *from = batch.packed + block * batch.packed_stride_bytes + offsets[number];
        uint8_t *to = cuda_place(&batch.blocks, block) + unit.offset_bytes;
        uint32_t stored = batch.lengths[i];
        bool good = stored <= unit.bytes && (stored > 0 || unit.bytes == 0);
        if (good && stored == unit.bytes) {
            cuda_copy_across(to, from, stored, lane);
        } else if (good) {
            good = decode_unit(&decoders[warp], from, stored, to, unit.bytes, lane);
        }
        if (!good && lane == 0) {
            atomicAdd(&batch.damaged[block], 1u);
        }
    }
}

/* ---- launches ---- */

/* Thread blocks of 128 threads, where the bound counts such of 256. */
static uint32_t grid_of(const batch_t *batch, uint32_t thread_blocks_max)
{
    uint32_t units = batch->block_count * batch->units.unit_count;
    return cuda_thread_blocks((units + WARPS - 1) / WARPS, 2 * thread_blocks_max);
}

static batch_t pack_batch(const cuda_pack_t *pack, uint32_t first)
{
    const uint32_t unit_count = pack->units->unit_count;
    batch_t batch = {};
    batch.block_count = cuda_batch(first, pack->block_count);
    batch.blocks = cuda_places(pack->from, first, batch.block_count);
    batch.units = *pack->units;
    batch.object_bytes = pack->object_bytes;
    batch.packed_stride_bytes = pack->packed_stride_bytes;
    batch.unpacked_scratch = pack->scratch + first * pack->object_bytes;
    batch.packed_out = pack->packed_out + first * pack->packed_stride_bytes;
    batch.lengths = batch.lengths_out = pack->lengths_out + (uint64_t)first * unit_count;
    batch.offsets = pack->offsets_out + (uint64_t)first * (unit_count + 1);
    return batch;
}

extern "C" kv_status_t cuda_pack(cuda_stream_t *stream, const cuda_pack_t *pack, kv_error_t *error)
{
    cudaStream_t on = (cudaStream_t)stream;
    cudaError_t code = cudaSuccess;
    uint32_t block_count = pack->units->unit_count > 0 ? pack->block_count : 0;
    for (uint32_t first = 0; first < block_count && code == cudaSuccess; first += CUDA_BATCH) {
        const batch_t batch = pack_batch(pack, first);
        const uint32_t grid = grid_of(&batch, pack->thread_blocks_max);
        code = KV_LAUNCH(encode_units, grid, THREADS, 0, on, batch);
        if (code == cudaSuccess) {
            code = KV_LAUNCH(scan_lengths, batch.block_count, SCAN_THREADS, 0, on, batch);
        }
        if (code == cudaSuccess) {
            code = KV_LAUNCH(pack_units, grid, THREADS, 0, on, batch);
        }
    }
    return cuda_launched("pack", code, error);
}

static batch_t unpack_batch(const cuda_unpack_t *unpack, uint32_t first)
{
    const uint32_t unit_count = unpack->units->unit_count;
    batch_t batch = {};
    batch.block_count = cuda_batch(first, unpack->block_count);
    batch.blocks = cuda_places(unpack->to, first, batch.block_count);
    batch.units = *unpack->units;
    batch.object_bytes = unpack->object_bytes;
    batch.packed_stride_bytes = unpack->packed_stride_bytes;
    batch.packed = unpack->packed + first * unpack->packed_stride_bytes;
    batch.lengths = unpack->lengths + (uint64_t)first * unit_count;
    batch.offsets = unpack->offsets + (uint64_t)first * (unit_count + 1);
    batch.damaged = unpack->damaged + first;
    return batch;
}

extern "C" kv_status_t cuda_unpack(
    cuda_stream_t *stream, const cuda_unpack_t *unpack, kv_error_t *error)
{
    cudaStream_t on = (cudaStream_t)stream;
    cudaError_t code = cudaSuccess;
    uint32_t block_count = unpack->units->unit_count > 0 ? unpack->block_count : 0;
    for (uint32_t first = 0; first < block_count && code == cudaSuccess; first += CUDA_BATCH) {
        const batch_t batch = unpack_batch(unpack, first);
        const uint32_t grid = grid_of(&batch, unpack->thread_blocks_max);
        code = KV_LAUNCH(scan_lengths, batch.block_count, SCAN_THREADS, 0, on, batch);
        if (code == cudaSuccess) {
            code = KV_LAUNCH(decode_units, grid, THREADS, 0, on, batch);
        }
    }
    return cuda_launched("unpack", code, error);
}
