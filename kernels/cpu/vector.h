/* The kernels with vectors of LANES floats. Included once by a file for each instruction set, which
 * is compiled for it; that file names the table. Counts are multiples of 32. */
#ifndef KV_KERNELS_CPU_VECTOR_H
#define KV_KERNELS_CPU_VECTOR_H

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/simd.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static inline void store(void *out, uint32_t at, vector_t value, kv_element_t element)
{
    if (element == KV_ELEMENT_BF16) {
        v_store_bf16((uint16_t *)out + at, value);
    } else {
        v_store((float *)out + at, value);
    }
}

static inline vector_t load(const void *from, size_t at, bool bf16)
{
    return bf16 ? v_load_bf16((const uint16_t *)from + at) : v_load((const float *)from + at);
}

static void norm(const float *x, const float *weight, float epsilon, uint32_t columns, void *out,
    kv_element_t out_element)
{
    vector_t sums = v_all(0);
    for (uint32_t i = 0; i < columns; i += LANES) {
        vector_t a = v_load(x + i);
        sums = v_fma(a, a, sums);
    }
    vector_t factor = v_all(1.0f / sqrtf(v_sum(sums) / (float)columns + epsilon));
    for (uint32_t i = 0; i < columns; i += LANES) {
        store(
            out, i, v_multiply(v_multiply(v_load(x + i), factor), v_load(weight + i)), out_element);
    }
}

static void rotate(float *x, const float *rotation, uint32_t head_dim)
{
    for (uint32_t i = 0; i < head_dim; i += LANES) {
        v_store(x + i, v_rotate(v_load(x + i), v_load(rotation + i)));
    }
}

static void convert(const float *from, uint32_t count, void *to, kv_element_t to_element)
{
    for (uint32_t i = 0; i < count; i += LANES) {
        store(to, i, v_load(from + i), to_element);
    }
}

static void gate(
    const float *in, const float *up, uint32_t count, void *out, kv_element_t out_element)
{
    for (uint32_t i = 0; i < count; i += LANES) {
        vector_t a = v_load(in + i),
                 below = v_add(v_all(1), v_exponential(v_subtract(v_all(0), a)));
        store(out, i, v_multiply(v_divide(a, below), v_load(up + i)), out_element);
    }
}

/* The 32 weights of a block of a row, as floats. */
static inline __attribute__((always_inline)) void widen(const void *weights, size_t block,
    const cpu_rows_format_t format, vector_t to[CPU_BLOCK / LANES])
{
    if (format == CPU_ROWS_BLOCK4) {
        const cpu_block4_t *own = (const cpu_block4_t *)weights + block;
        v_load_nibbles(own->quants, own->scale, own->offset, to);
    } else if (format == CPU_ROWS_BLOCK8) {
        const cpu_block8_t *own = (const cpu_block8_t *)weights + block;
        for (uint32_t i = 0; i < CPU_BLOCK / LANES; i++) {
            to[i] = v_multiply(v_load_int8(own->quants + i * LANES), v_all(own->scale));
        }
    } else {
        for (uint32_t i = 0; i < CPU_BLOCK / LANES; i++) {
            to[i] = load(weights, block * CPU_BLOCK + i * LANES, format == CPU_ROWS_BF16);
        }
    }
}

/* outputs x rows dot products at once; each has its own sum, added up in the order of k, so that
 * its value does not depend on the others. */
static inline __attribute__((always_inline)) void product_block(const cpu_rows_product_t *product,
    uint32_t n, uint32_t row, const uint32_t outputs, const uint32_t rows,
    const cpu_rows_format_t format)
{
    enum { PARTS = CPU_BLOCK / LANES };
    vector_t sums[4][4];
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t o = 0; o < outputs; o++) {
            sums[r][o] = v_all(0);
        }
    }
    const size_t blocks = product->columns / CPU_BLOCK;
    const void *weights[4];
    for (uint32_t o = 0; o < outputs; o++) {
        weights[o] =
            (const char *)product->weights + (n + o) * cpu_rows_bytes(format, product->columns);
    }
    for (size_t block = 0; block < blocks; block++) {
        for (uint32_t o = 0; o < outputs; o++) {
            vector_t wide[PARTS];
            widen(weights[o], block, format, wide);
            for (uint32_t r = 0; r < rows; r++) {
                const float *in = product->in + (row + r) * product->in_stride + block * CPU_BLOCK;
                for (uint32_t i = 0; i < PARTS; i++) {
                    sums[r][o] = v_fma(wide[i], v_load(in + i * LANES), sums[r][o]);
                }
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        float *out = product->out + (row + r) * product->out_stride + n;
        for (uint32_t o = 0; o < outputs; o++) {
            float sum = v_sum(sums[r][o]);
            out[o] = product->accumulate ? out[o] + sum : sum;
        }
    }
}

static inline __attribute__((always_inline)) void product_rows(const cpu_rows_product_t *product,
    uint32_t n, const uint32_t outputs, const cpu_rows_format_t format)
{
    uint32_t row = 0;
    for (; row + 4 <= product->row_count; row += 4) {
        product_block(product, n, row, outputs, 4, format);
    }
    for (; row < product->row_count; row++) {
        product_block(product, n, row, outputs, 1, format);
    }
}

static inline __attribute__((always_inline)) void product_all(
    const cpu_rows_product_t *product, const cpu_rows_format_t format)
{
    enum { OUTPUTS = LANES == 16 ? 4 : 2 }; /* 4 x OUTPUTS sums fit the registers */
    uint32_t n = 0;
    for (; n + OUTPUTS <= product->weight_rows; n += OUTPUTS) {
        product_rows(product, n, OUTPUTS, format);
    }
    for (; n < product->weight_rows; n++) {
        product_rows(product, n, 1, format);
    }
}

static void product(const cpu_rows_product_t *product)
{
    switch (product->format) {
    case CPU_ROWS_F32:
        product_all(product, CPU_ROWS_F32);
        break;
    case CPU_ROWS_BF16:
        product_all(product, CPU_ROWS_BF16);
        break;
    case CPU_ROWS_BLOCK8:
        product_all(product, CPU_ROWS_BLOCK8);
        break;
    case CPU_ROWS_BLOCK4:
        product_all(product, CPU_ROWS_BLOCK4);
        break;
    }
}

/* c[rows][width] (+)= a[rows][depth] x b[depth][width] for up to four rows and VECTORS x LANES
 * columns held in registers. */
enum { VECTORS = LANES == 16 ? 4 : 2 };

typedef struct {
    const float *a, *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    uint32_t depth;
} small_product_t;

static inline __attribute__((always_inline)) void small_block(
    const small_product_t *p, uint32_t row, uint32_t column, const uint32_t rows, bool accumulate)
{
    vector_t sums[4][VECTORS];
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < VECTORS; v++) {
            sums[r][v] =
                accumulate ? v_load(p->c + (row + r) * p->c_stride + column + v * LANES) : v_all(0);
        }
    }
    for (uint32_t k = 0; k < p->depth; k++) {
        vector_t b[VECTORS];
        for (uint32_t v = 0; v < VECTORS; v++) {
            b[v] = v_load(p->b + k * p->b_stride + column + v * LANES);
        }
        for (uint32_t r = 0; r < rows; r++) {
            vector_t a = v_all(p->a[(row + r) * p->a_stride + k]);
            for (uint32_t v = 0; v < VECTORS; v++) {
                sums[r][v] = v_fma(a, b[v], sums[r][v]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < VECTORS; v++) {
            v_store(p->c + (row + r) * p->c_stride + column + v * LANES, sums[r][v]);
        }
    }
}

/* width: a multiple of 32 (AVX2: 16 suffices; AVX-512 takes 64 at a time, then 16). */
static void small_product(const small_product_t *p, uint32_t rows, uint32_t width, bool accumulate)
{
    uint32_t column = 0;
    for (; column + VECTORS * LANES <= width; column += VECTORS * LANES) {
        uint32_t row = 0;
        for (; row + 4 <= rows; row += 4) {
            small_block(p, row, column, 4, accumulate);
        }
        for (; row < rows; row++) {
            small_block(p, row, column, 1, accumulate);
        }
    }
    for (; column < width; column += LANES) {
        for (uint32_t row = 0; row < rows; row++) {
            const float *a = p->a + row * p->a_stride;
            float *c = p->c + row * p->c_stride + column;
            vector_t sum = accumulate ? v_load(c) : v_all(0);
            for (uint32_t k = 0; k < p->depth; k++) {
                sum = v_fma(v_all(a[k]), v_load(p->b + k * p->b_stride + column), sum);
            }
            v_store(c, sum);
        }
    }
}

/* Scratch of attend_tile, in floats. */
typedef struct {
    float *keys;          /* [head_dim][CPU_KEY_TILE] */
    float *values;        /* [CPU_KEY_TILE][head_dim] */
    float *scores;        /* [CPU_QUERY_TILE][CPU_KEY_TILE] */
    float *weighted;      /* [group][CPU_QUERY_TILE][head_dim] */
    float *largest, *sum; /* [group][CPU_QUERY_TILE] */
} tile_scratch_t;

static tile_scratch_t tile_scratch(void *memory, uint32_t head_dim, uint32_t group)
{
    tile_scratch_t scratch = {.keys = memory};
    scratch.values = scratch.keys + (size_t)head_dim * CPU_KEY_TILE;
    scratch.scores = scratch.values + (size_t)head_dim * CPU_KEY_TILE;
    scratch.weighted = scratch.scores + CPU_QUERY_TILE * CPU_KEY_TILE;
    scratch.largest = scratch.weighted + (size_t)group * CPU_QUERY_TILE * head_dim;
    scratch.sum = scratch.largest + (size_t)group * CPU_QUERY_TILE;
    return scratch;
}

/* One key tile as floats: keys transposed, values as they are; what lies past last is zero, for a
 * slot's old content may be anything. */
static void unpack_keys(
    const cpu_attend_tile_t *tile, const tile_scratch_t *scratch, uint32_t first, uint32_t last)
{
    const uint32_t head_dim = tile->keys.head_dim;
    const bool bf16 = tile->keys.element_bytes == 2;
    float lines[LANES][CPU_HEAD_DIM_MAX];
    for (uint32_t at = 0; at < CPU_KEY_TILE; at += LANES) {
        for (uint32_t j = 0; j < LANES; j++) {
            float *value = scratch->values + (size_t)(at + j) * head_dim;
            const uint32_t position = first + at + j;
            const bool valid = position < last;
            const void *from = valid ? cpu_vector_at(&tile->keys, position) : NULL;
            const void *from_value = valid ? cpu_vector_at(&tile->values, position) : NULL;
            for (uint32_t i = 0; i < head_dim; i += LANES) {
                v_store(&lines[j][i], valid ? load(from, i, bf16) : v_all(0));
                v_store(value + i, valid ? load(from_value, i, bf16) : v_all(0));
            }
        }
        for (uint32_t i = 0; i < head_dim; i++) {
            for (uint32_t j = 0; j < LANES; j++) {
                scratch->keys[(size_t)i * CPU_KEY_TILE + at + j] = lines[j][i];
            }
        }
    }
}

/* Turns a row's scores into weights of the running softmax; the row sees the keys from first to
 * last - 1 of the tile. One that sees none stays as it was. */
static float soften(
    float *scores, uint32_t first, uint32_t last, float scale, float *largest, float *sum)
{
    if (first >= last) {
        memset(scores, 0, CPU_KEY_TILE * sizeof(float));
        return 1.0f;
    }
    for (uint32_t j = 0; j < first; j++) {
        scores[j] = -INFINITY;
    }
    for (uint32_t j = last; j < CPU_KEY_TILE; j++) {
        scores[j] = -INFINITY;
    }
    vector_t peaks = v_load(scores);
    for (uint32_t j = LANES; j < CPU_KEY_TILE; j += LANES) {
        peaks = v_max(peaks, v_load(scores + j));
    }
    float peak = v_peak(peaks) * scale;
    peak = peak > *largest ? peak : *largest;
    const vector_t scales = v_all(scale), shift = v_all(-peak);
    vector_t sums = v_all(0);
    for (uint32_t j = 0; j < CPU_KEY_TILE; j += LANES) {
        vector_t weight = v_exponential(v_fma(v_load(scores + j), scales, shift));
        v_store(scores + j, weight);
        sums = v_add(sums, weight);
    }
    float fade = *largest == peak ? 1.0f : expf(*largest - peak);
    *sum = *sum * fade + v_sum(sums);
    *largest = peak;
    return fade;
}

static void attend_head(
    const cpu_attend_tile_t *tile, const tile_scratch_t *scratch, uint32_t head, uint32_t first)
{
    const uint32_t head_dim = tile->keys.head_dim;
    float *weighted =
        scratch->weighted + ((size_t)head * CPU_QUERY_TILE + tile->row_first) * head_dim;
    const small_product_t score = {
        .a = tile->queries + tile->row_first * tile->query_stride + (size_t)head * head_dim,
        .a_stride = tile->query_stride,
        .b = scratch->keys,
        .b_stride = CPU_KEY_TILE,
        .c = scratch->scores,
        .c_stride = CPU_KEY_TILE,
        .depth = head_dim,
    };
    small_product(&score, tile->row_count, CPU_KEY_TILE, false);
    for (uint32_t at = 0; at < tile->row_count; at++) {
        const uint32_t row = tile->row_first + at, position = tile->position + row,
                       seen = cpu_first_seen(position, tile->window_tokens),
                       visible = position + 1 - first, state = head * CPU_QUERY_TILE + row;
        float fade = soften(scratch->scores + (size_t)at * CPU_KEY_TILE,
            seen > first ? seen - first : 0, visible < CPU_KEY_TILE ? visible : CPU_KEY_TILE,
            tile->scale, &scratch->largest[state], &scratch->sum[state]);
        if (fade != 1.0f) {
            for (uint32_t i = 0; i < head_dim; i += LANES) {
                float *line = weighted + (size_t)at * head_dim + i;
                v_store(line, v_multiply(v_load(line), v_all(fade)));
            }
        }
    }
    const small_product_t gather = {
        .a = scratch->scores,
        .a_stride = CPU_KEY_TILE,
        .b = scratch->values,
        .b_stride = head_dim,
        .c = weighted,
        .c_stride = head_dim,
        .depth = CPU_KEY_TILE,
    };
    small_product(&gather, tile->row_count, head_dim, true);
}

static void attend_tile(const cpu_attend_tile_t *tile)
{
    const uint32_t head_dim = tile->keys.head_dim,
                   last = tile->position + tile->row_first + tile->row_count;
    const tile_scratch_t scratch = tile_scratch(tile->scratch, head_dim, tile->group);
    for (uint32_t i = 0; i < tile->group * CPU_QUERY_TILE * head_dim; i += LANES) {
        v_store(scratch.weighted + i, v_all(0));
    }
    for (uint32_t i = 0; i < tile->group * CPU_QUERY_TILE; i += LANES) {
        v_store(scratch.largest + i, v_all(-INFINITY));
        v_store(scratch.sum + i, v_all(0));
    }
    for (uint32_t first = cpu_first_key_tile(tile->position, tile->window_tokens); first < last;
         first += CPU_KEY_TILE) {
        unpack_keys(tile, &scratch, first, last);
        for (uint32_t head = 0; head < tile->group; head++) {
            attend_head(tile, &scratch, head, first);
        }
    }
    for (uint32_t head = 0; head < tile->group; head++) {
        for (uint32_t row = tile->row_first; row < tile->row_first + tile->row_count; row++) {
            const uint32_t state = head * CPU_QUERY_TILE + row;
            const vector_t share = v_all(1.0f / scratch.sum[state]);
            const float *weighted = scratch.weighted + (size_t)state * head_dim;
            const size_t out = row * tile->out_stride + (size_t)head * head_dim;
            for (uint32_t i = 0; i < head_dim; i += LANES) {
                vector_t value = v_multiply(v_load(weighted + i), share);
                store(tile->out, (uint32_t)(out + i), value, tile->out_element);
            }
        }
    }
}

/* Heads that share a widened key or value: as many as the registers hold. */
enum { HEADS_AT_ONCE = 3 };

/* scores[head][key] of some heads, for one key after the other. */
static inline __attribute__((always_inline)) void segment_scores(
    const cpu_attend_segment_t *segment, uint32_t head, const uint32_t heads, const bool bf16)
{
    const uint32_t head_dim = segment->keys.head_dim;
    const float *queries = segment->queries + (size_t)head * head_dim;
    float *scores = (float *)segment->scratch + (size_t)head * CPU_KEY_SEGMENT;
    const char *key = NULL;
    for (uint32_t position = segment->first; position < segment->last; position++) {
        key = position % 16 == 0 || key == NULL ? cpu_vector_at(&segment->keys, position)
                                                : key + head_dim * segment->keys.element_bytes;
        vector_t sums[HEADS_AT_ONCE];
        for (uint32_t h = 0; h < heads; h++) {
            sums[h] = v_all(0);
        }
        for (uint32_t i = 0; i < head_dim; i += LANES) {
            const vector_t wide = load(key, i, bf16);
            for (uint32_t h = 0; h < heads; h++) {
                sums[h] = v_fma(v_load(queries + h * head_dim + i), wide, sums[h]);
            }
        }
        for (uint32_t h = 0; h < heads; h++) {
            scores[h * CPU_KEY_SEGMENT + position - segment->first] =
                v_sum(sums[h]) * segment->scale;
        }
    }
}

/* Adds up some heads' weighted values, 64 dimensions (AVX2: 16) at a time. */
static inline __attribute__((always_inline)) void segment_values(
    const cpu_attend_segment_t *segment, uint32_t head, const uint32_t heads, const uint32_t first,
    const uint32_t parts, const bool bf16)
{
    const uint32_t head_dim = segment->keys.head_dim;
    const float *weights = (const float *)segment->scratch + (size_t)head * CPU_KEY_SEGMENT;
    vector_t sums[HEADS_AT_ONCE][4];
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t i = 0; i < parts; i++) {
            sums[h][i] = v_all(0);
        }
    }
    const char *value = NULL;
    for (uint32_t position = segment->first; position < segment->last; position++) {
        value = position % 16 == 0 || value == NULL
                    ? cpu_vector_at(&segment->values, position)
                    : value + head_dim * segment->values.element_bytes;
        vector_t wide[4];
        for (uint32_t i = 0; i < parts; i++) {
            wide[i] = load(value, first + i * LANES, bf16);
        }
        for (uint32_t h = 0; h < heads; h++) {
            const vector_t weight = v_all(weights[h * CPU_KEY_SEGMENT + position - segment->first]);
            for (uint32_t i = 0; i < parts; i++) {
                sums[h][i] = v_fma(weight, wide[i], sums[h][i]);
            }
        }
    }
    for (uint32_t h = 0; h < heads; h++) {
        float *out = segment->partial + (size_t)(head + h) * (head_dim + 2) + first;
        for (uint32_t i = 0; i < parts; i++) {
            v_store(out + i * LANES, sums[h][i]);
        }
    }
}

/* A head's scores to weights; its largest score and the sum of weights go to the partial. */
static void segment_soften(const cpu_attend_segment_t *segment, uint32_t head)
{
    const uint32_t head_dim = segment->keys.head_dim, count = segment->last - segment->first,
                   padded = (count + LANES - 1) / LANES * LANES;
    float *scores = (float *)segment->scratch + (size_t)head * CPU_KEY_SEGMENT;
    float *partial = segment->partial + (size_t)head * (head_dim + 2);
    for (uint32_t j = count; j < padded; j++) {
        scores[j] = -INFINITY;
    }
    vector_t peaks = v_all(-INFINITY), sums = v_all(0);
    for (uint32_t j = 0; j < padded; j += LANES) {
        peaks = v_max(peaks, v_load(scores + j));
    }
    const float peak = v_peak(peaks);
    for (uint32_t j = 0; j < padded; j += LANES) {
        vector_t weight = v_exponential(v_subtract(v_load(scores + j), v_all(peak)));
        v_store(scores + j, weight);
        sums = v_add(sums, weight);
    }
    partial[head_dim] = peak;
    partial[head_dim + 1] = v_sum(sums);
}

static inline __attribute__((always_inline)) void segment_heads(
    const cpu_attend_segment_t *segment, uint32_t head, const uint32_t heads, const bool bf16)
{
    enum { PARTS = LANES == 16 ? 4 : 2 };
    const uint32_t head_dim = segment->keys.head_dim;
    segment_scores(segment, head, heads, bf16);
    for (uint32_t h = 0; h < heads; h++) {
        segment_soften(segment, head + h);
    }
    uint32_t first = 0;
    for (; first + PARTS * LANES <= head_dim; first += PARTS * LANES) {
        segment_values(segment, head, heads, first, PARTS, bf16);
    }
    for (; first < head_dim; first += LANES) {
        segment_values(segment, head, heads, first, 1, bf16);
    }
}

static void attend_segment(const cpu_attend_segment_t *segment)
{
    const bool bf16 = segment->keys.element_bytes == 2;
    uint32_t head = 0;
    for (; head + HEADS_AT_ONCE <= segment->group; head += HEADS_AT_ONCE) {
        if (bf16) {
            segment_heads(segment, head, HEADS_AT_ONCE, true);
        } else {
            segment_heads(segment, head, HEADS_AT_ONCE, false);
        }
    }
    for (; head < segment->group; head++) {
        if (bf16) {
            segment_heads(segment, head, 1, true);
        } else {
            segment_heads(segment, head, 1, false);
        }
    }
}

#endif
