/* The kernels in plain C: the reference for the others, and what runs on a machine without vector
 * instructions. */
#include "kernels/cpu/dequantise.h"
#include "kernels/cpu/kernels.h"

#include <math.h>

static void store(void *out, size_t at, float value, kv_element_t element)
{
    if (element == KV_ELEMENT_BF16) {
        ((uint16_t *)out)[at] = cpu_bf16_from_float(value);
    } else {
        ((float *)out)[at] = value;
    }
}

static float load(const void *from, size_t at, uint32_t element_bytes)
{
    return element_bytes == 2 ? cpu_float_from_bf16(((const uint16_t *)from)[at])
                              : ((const float *)from)[at];
}

static void norm(const float *x, const float *weight, float epsilon, uint32_t columns, void *out,
    kv_element_t out_element)
{
    float sum = 0;
    for (uint32_t i = 0; i < columns; i++) {
        sum += x[i] * x[i];
    }
    float factor = 1.0f / sqrtf(sum / (float)columns + epsilon);
    for (uint32_t i = 0; i < columns; i++) {
        store(out, i, x[i] * factor * weight[i], out_element);
    }
}

static void rotate(float *x, const float *rotation, uint32_t head_dim)
{
    for (uint32_t i = 0; i < head_dim; i += 2) {
        float cosine = rotation[i], sine = rotation[i + 1], even = x[i], odd = x[i + 1];
        x[i] = even * cosine - odd * sine;
        x[i + 1] = even * sine + odd * cosine;
    }
}

static void convert(const float *from, uint32_t count, void *to, kv_element_t to_element)
{
    for (uint32_t i = 0; i < count; i++) {
        store(to, i, from[i], to_element);
    }
}

static void gate(
    const float *in, const float *up, uint32_t count, void *out, kv_element_t out_element)
{
    for (uint32_t i = 0; i < count; i++) {
        store(out, i, in[i] / (1.0f + expf(-in[i])) * up[i], out_element);
    }
}

static void product(const cpu_rows_product_t *product)
{
    const size_t stride = cpu_rows_bytes(product->format, product->columns);
    for (uint32_t row = 0; row < product->row_count; row++) {
        const float *in = product->in + row * product->in_stride;
        float *out = product->out + row * product->out_stride;
        for (uint32_t n = 0; n < product->weight_rows; n++) {
            const char *weights = (const char *)product->weights + n * stride;
            float sum = 0, block[CPU_BLOCK];
            for (uint32_t k = 0; k < product->columns; k += CPU_BLOCK) {
                cpu_expand(product->format, weights + cpu_rows_bytes(product->format, k), CPU_BLOCK,
                    block);
                for (uint32_t i = 0; i < CPU_BLOCK; i++) {
                    sum += block[i] * in[k + i];
                }
            }
            out[n] = product->accumulate ? out[n] + sum : sum;
        }
    }
}

/* Adds the keys from first to last - 1 to a running softmax: largest score, sum, values. */
static void attend_keys(const cpu_vectors_t *keys, const cpu_vectors_t *values, uint32_t first,
    uint32_t last, float scale, const float *query, float *largest, float *sum, float *weighted)
{
    for (uint32_t position = first; position < last; position++) {
        const void *key = cpu_vector_at(keys, position), *value = cpu_vector_at(values, position);
        float score = 0;
        for (uint32_t i = 0; i < keys->head_dim; i++) {
            score += query[i] * load(key, i, keys->element_bytes);
        }
        score *= scale;
        float peak = score > *largest ? score : *largest, fade = expf(*largest - peak),
              weight = expf(score - peak);
        *sum = *sum * fade + weight;
        for (uint32_t i = 0; i < keys->head_dim; i++) {
            weighted[i] = weighted[i] * fade + weight * load(value, i, values->element_bytes);
        }
        *largest = peak;
    }
}

static void attend_tile(const cpu_attend_tile_t *tile)
{
    const uint32_t head_dim = tile->keys.head_dim;
    float weighted[CPU_HEAD_DIM_MAX];
    for (uint32_t row = tile->row_first; row < tile->row_first + tile->row_count; row++) {
        for (uint32_t head = 0; head < tile->group; head++) {
            float largest = -INFINITY, sum = 0;
            for (uint32_t i = 0; i < head_dim; i++) {
                weighted[i] = 0;
            }
            attend_keys(&tile->keys, &tile->values,
                cpu_first_seen(tile->position + row, tile->window_tokens), tile->position + row + 1,
                tile->scale, tile->queries + row * tile->query_stride + head * head_dim, &largest,
                &sum, weighted);
            for (uint32_t i = 0; i < head_dim; i++) {
                store(tile->out, row * tile->out_stride + head * head_dim + i, weighted[i] / sum,
                    tile->out_element);
            }
        }
    }
}

static void attend_segment(const cpu_attend_segment_t *segment)
{
    const uint32_t head_dim = segment->keys.head_dim;
    for (uint32_t head = 0; head < segment->group; head++) {
        float *partial = segment->partial + (size_t)head * (head_dim + 2);
        for (uint32_t i = 0; i < head_dim; i++) {
            partial[i] = 0;
        }
        partial[head_dim] = -INFINITY;
        partial[head_dim + 1] = 0;
        attend_keys(&segment->keys, &segment->values, segment->first, segment->last, segment->scale,
            segment->queries + (size_t)head * head_dim, &partial[head_dim], &partial[head_dim + 1],
            partial);
    }
}

const cpu_kernels_t cpu_kernels_plain = {
    .name = "plain",
    .norm = norm,
    .rotate = rotate,
    .convert = convert,
    .gate = gate,
    .product = product,
    .attend_tile = attend_tile,
    .attend_segment = attend_segment,
};
