#include "kernels/cpu/dequantise.h"

#include "base/bytes.h"
#include "base/check.h"

float cpu_float_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u,
             fraction = half & 0x3ffu;
    if (exponent == 31) {
        return cpu_float_from_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        /* Subnormal: fraction x 2^-24, exact in f32. */
        float value = (float)fraction * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    return cpu_float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static float scale_at(const uint8_t *at)
{
    return cpu_float_from_f16(kv_get_u16(at));
}

static void q8_0(const uint8_t *block, float *to)
{
    float d = scale_at(block);
    for (int i = 0; i < 32; i++) {
        to[i] = d * (float)(int8_t)block[2 + i];
    }
}

static void q4_0(const uint8_t *block, float *to)
{
    float d = scale_at(block);
    for (int i = 0; i < 16; i++) {
        to[i] = d * (float)((block[2 + i] & 15) - 8);
        to[i + 16] = d * (float)((block[2 + i] >> 4) - 8);
    }
}

static void q4_1(const uint8_t *block, float *to)
{
    float d = scale_at(block), m = scale_at(block + 2);
    for (int i = 0; i < 16; i++) {
        to[i] = d * (float)(block[4 + i] & 15) + m;
        to[i + 16] = d * (float)(block[4 + i] >> 4) + m;
    }
}

/* The 6-bit scale and minimum of sub-block 0..7 out of 12 bytes: the first four lie in bytes 0..3
 * and 4..7, the others have their low nibbles in bytes 8..11 and their high bits above those. */
static void q4_k_scale(const uint8_t *packed, int sub, float *scale_out, float *minimum_out)
{
    int scale, minimum;
    if (sub < 4) {
        scale = packed[sub] & 63;
        minimum = packed[sub + 4] & 63;
    } else {
        scale = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4;
        minimum = packed[sub + 4] >> 4 | (packed[sub] >> 6) << 4;
    }
    *scale_out = (float)scale;
    *minimum_out = (float)minimum;
}

static void q4_k(const uint8_t *block, float *to)
{
    float d = scale_at(block), d_minimum = scale_at(block + 2);
    const uint8_t *quants = block + 16;
    for (int sub = 0; sub < 8; sub++) {
        float scale, minimum;
        q4_k_scale(block + 4, sub, &scale, &minimum);
        scale *= d;
        minimum *= d_minimum;
        /* Sub-blocks 2i and 2i + 1 share 32 bytes: low and high nibbles. */
        const uint8_t *pair = quants + sub / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int quant = sub % 2 == 0 ? pair[i] & 15 : pair[i] >> 4;
            to[sub * 32 + i] = scale * (float)quant - minimum;
        }
    }
}

static void q6_k(const uint8_t *block, float *to)
{
    const uint8_t *low = block, *high = block + 128;
    const int8_t *scales = (const int8_t *)(block + 192);
    float d = scale_at(block + 208);
    for (int i = 0; i < 256; i++) {
        /* Each half of 128: four runs of 32 share 64 bytes of low nibbles and 32 of high pairs. */
        int half = i / 128, run = i % 128 / 32, column = i % 32;
        int nibble = low[half * 64 + run % 2 * 32 + column] >> (run / 2 * 4) & 15;
        int pair = high[half * 32 + column] >> (run * 2) & 3;
        to[i] = d * (float)scales[i / 16] * (float)((nibble | pair << 4) - 32);
    }
}

static void plain(kv_weight_type_t type, const uint8_t *from, size_t count, float *to)
{
    for (size_t i = 0; i < count; i++) {
        switch (type) {
        case KV_WEIGHT_F16:
            to[i] = cpu_float_from_f16(kv_get_u16(from + 2 * i));
            break;
        case KV_WEIGHT_BF16:
            to[i] = cpu_float_from_bf16(kv_get_u16(from + 2 * i));
            break;
        default:
            to[i] = cpu_float_from_bits(kv_get_u32(from + 4 * i));
        }
    }
}

void cpu_dequantise(kv_weight_type_t type, const void *from, size_t count, float *to)
{
    void (*block)(const uint8_t *, float *) = NULL;
    switch (type) {
    case KV_WEIGHT_F32:
    case KV_WEIGHT_F16:
    case KV_WEIGHT_BF16:
        plain(type, from, count, to);
        return;
    case KV_WEIGHT_Q8_0:
        block = q8_0;
        break;
    case KV_WEIGHT_Q4_0:
        block = q4_0;
        break;
    case KV_WEIGHT_Q4_1:
        block = q4_1;
        break;
    case KV_WEIGHT_Q4_K:
        block = q4_k;
        break;
    case KV_WEIGHT_Q6_K:
        block = q6_k;
        break;
    }
    uint32_t elements = kv_weight_block_elements(type), bytes = kv_weight_block_bytes(type);
    KV_CHECK(block != NULL && count % elements == 0);
    for (size_t at = 0; at < count / elements; at++) {
        block((const uint8_t *)from + at * bytes, to + at * elements);
    }
}

cpu_rows_format_t cpu_compact_format(kv_weight_type_t type)
{
    switch (type) {
    case KV_WEIGHT_Q8_0:
        return CPU_ROWS_BLOCK8;
    case KV_WEIGHT_Q4_0:
    case KV_WEIGHT_Q4_1:
    case KV_WEIGHT_Q4_K:
        return CPU_ROWS_BLOCK4;
    default:
        return CPU_ROWS_BF16;
    }
}

/* The eight sub-blocks of a Q4_K block, whose nibbles lie in pairs of sub-blocks. */
static void compact_q4_k(const uint8_t *block, cpu_block4_t *to)
{
    const float d = scale_at(block), d_minimum = scale_at(block + 2);
    for (int sub = 0; sub < 8; sub++) {
        float scale, minimum;
        q4_k_scale(block + 4, sub, &scale, &minimum);
        to[sub].scale = d * scale;
        to[sub].offset = -(d_minimum * minimum);
        const uint8_t *pair = block + 16 + sub / 2 * 32;
        for (int i = 0; i < 16; i++) {
            const int low = sub % 2 == 0 ? pair[i] & 15 : pair[i] >> 4,
                      high = sub % 2 == 0 ? pair[i + 16] & 15 : pair[i + 16] >> 4;
            to[sub].quants[i] = (uint8_t)(low | high << 4);
        }
    }
}

void cpu_compact(kv_weight_type_t type, const void *from, size_t count, void *to)
{
    const uint32_t elements = kv_weight_block_elements(type), bytes = kv_weight_block_bytes(type);
    cpu_block8_t *to8 = to;
    cpu_block4_t *to4 = to;
    for (size_t at = 0; at < count / elements; at++) {
        const uint8_t *block = (const uint8_t *)from + at * bytes;
        const float d = scale_at(block);
        switch (type) {
        case KV_WEIGHT_Q8_0:
            to8[at].scale = d;
            memcpy(to8[at].quants, block + 2, CPU_BLOCK);
            break;
        case KV_WEIGHT_Q4_0:
            to4[at].scale = d;
            to4[at].offset = -8 * d;
            memcpy(to4[at].quants, block + 2, CPU_BLOCK / 2);
            break;
        case KV_WEIGHT_Q4_1:
            to4[at].scale = d;
            to4[at].offset = scale_at(block + 2);
            memcpy(to4[at].quants, block + 4, CPU_BLOCK / 2);
            break;
        default:
            KV_CHECK(type == KV_WEIGHT_Q4_K);
            compact_q4_k(block, to4 + 8 * at);
        }
    }
}

void cpu_expand(cpu_rows_format_t format, const void *from, size_t count, float *to)
{
    for (size_t i = 0; i < count; i++) {
        const size_t block = i / CPU_BLOCK, in = i % CPU_BLOCK;
        switch (format) {
        case CPU_ROWS_F32:
            to[i] = ((const float *)from)[i];
            break;
        case CPU_ROWS_BF16:
            to[i] = cpu_float_from_bf16(((const uint16_t *)from)[i]);
            break;
        case CPU_ROWS_BLOCK8: {
            const cpu_block8_t *own = (const cpu_block8_t *)from + block;
            to[i] = own->scale * (float)own->quants[in];
            break;
        }
        case CPU_ROWS_BLOCK4: {
            const cpu_block4_t *own = (const cpu_block4_t *)from + block;
            const int quant = in < 16 ? own->quants[in] & 15 : own->quants[in - 16] >> 4;
            to[i] = own->scale * (float)quant + own->offset;
            break;
        }
        }
    }
}
