/* One element at a time: for every machine, and what the others are held against. */
#include "kvstore/codec/bf16_kernel.h"

static void take_apart(
    const uint8_t *from, uint32_t elements, uint8_t *exponents_out, uint8_t *low_out)
{
    for (uint32_t i = 0; i < elements; i++) {
        uint16_t word;
        memcpy(&word, from + (size_t)2 * i, sizeof word);
        exponents_out[i] = (uint8_t)(word >> 7);
        low_out[i] = (uint8_t)(word << 1 | word >> 15);
    }
}

static void put_together(
    const uint8_t *exponents, const uint8_t *low, uint32_t elements, uint8_t *to)
{
    for (uint32_t i = 0; i < elements; i++) {
        uint32_t rotated = (uint32_t)exponents[i] << 8 | low[i];
        uint16_t word = (uint16_t)(rotated >> 1 | rotated << 15);
        memcpy(to + (size_t)2 * i, &word, sizeof word);
    }
}

static uint32_t encode_step(const uint8_t *values, uint32_t count, const uint8_t *step_values,
    uint8_t *planes_out, uint8_t *rest_out)
{
    uint8_t codes[256];
    memset(codes, 3, sizeof codes);
    for (uint8_t i = 0; i < KV_BF16_STEP_VALUES; i++) {
        codes[step_values[i]] = i;
    }
    uint8_t *low = planes_out, *high = low + kv_bf16_plane_bytes(count);
    uint32_t rest = 0;
    for (uint32_t at = 0; at < count; at += 8) {
        uint32_t lows = 0, highs = 0, few = count - at < 8 ? count - at : 8;
        for (uint32_t i = 0; i < few; i++) {
            uint32_t code = codes[values[at + i]];
            lows |= (code & 1) << i;
            highs |= (code >> 1) << i;
            rest_out[rest] = values[at + i];
            rest += code == 3;
        }
        low[at / 8] = (uint8_t)lows;
        high[at / 8] = (uint8_t)highs;
    }
    return rest;
}

static void decode_step(const uint8_t *planes, uint32_t count, const uint8_t *step_values,
    const uint8_t *rest, uint8_t *values_out)
{
    const uint8_t *low = planes, *high = low + kv_bf16_plane_bytes(count);
    uint8_t choice[4] = {step_values[0], step_values[1], step_values[2], 0};
    for (uint32_t i = 0; i < count; i++) {
        uint32_t code = (low[i / 8] >> i % 8 & 1) | (high[i / 8] >> i % 8 & 1) << 1;
        choice[3] = *rest;
        values_out[i] = choice[code];
        rest += code == 3;
    }
}

static const kv_bf16_steps_t steps = {take_apart, put_together, encode_step, decode_step,
    kv_bf16_encode_nibbles, kv_bf16_decode_nibbles};

KV_BF16_KERNEL(kv_bf16_plain);
