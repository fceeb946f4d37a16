/* A block is one row; a thread takes pairs of dimensions of it: queries are rotated where they are,
 * keys and values go to the arena. Bytes a row: 8 of each query element, 4 in and 2 or 4 out of
 * each of the keys' and values'.
 *
 * Tolerance against kernels/cpu/plain.c: 1e-6 of 1 + |value| (a product is fused into its sum); in
 * bf16 one unit of the last place. Values are not rotated: their bf16 is equal to the bit, but for
 * a NaN, which becomes 0x7fff. */
#include "kernels/cuda/paged.h"

enum { THREADS = 256 };

typedef struct {
    paged_view_t view;
    const kv_sequence_t *sequences;
    const float *rotation;
    float *projected;
    uint32_t head_count, head_dim, element_bytes;
    size_t columns;
} rotate_t;

static __global__ void __launch_bounds__(THREADS) rotate_store_kernel(const rotate_t rotate)
{
    const kv_sequence_t sequence = rotate.sequences[blockIdx.y];
    if (blockIdx.x >= sequence.row_count) {
        return;
    }
    const uint32_t position = sequence.position + blockIdx.x, pairs = rotate.head_dim / 2,
                   kv_heads = rotate.view.kv_head_count,
                   rotated = (rotate.head_count + kv_heads) * pairs;
    const float2 *rotation = (const float2 *)(rotate.rotation + (size_t)position * rotate.head_dim);
    float2 *row =
        (float2 *)(rotate.projected + (size_t)(sequence.row + blockIdx.x) * rotate.columns);
    for (uint32_t i = threadIdx.x; i < rotated + kv_heads * pairs; i += THREADS) {
        const uint32_t head = i / pairs, pair = i % pairs;
        float2 value = row[i];
        if (i < rotated) {
            const float2 turn = rotation[pair];
            value = make_float2(
                value.x * turn.x - value.y * turn.y, value.x * turn.y + value.y * turn.x);
            row[i] = value;
        }
        if (head >= rotate.head_count) {
            char *to =
                paged_vector(rotate.view, sequence.slots, position, head - rotate.head_count);
            if (rotate.element_bytes == 2) {
                ((uint32_t *)to)[pair] = cuda_bf16_pair(value.x, value.y);
            } else {
                ((float2 *)to)[pair] = value;
            }
        }
    }
}

kv_status_t cuda_rotate_store(
    cuda_stream_t *stream, const cuda_rotate_store_t *rotate, kv_error_t *error)
{
    if (rotate->sequence_count == 0 || rotate->row_count_max == 0) {
        return KV_OK;
    }
    rotate_t own = {};
    own.view = paged_view(&rotate->paged);
    own.sequences = rotate->sequences;
    own.rotation = rotate->rotation;
    own.projected = rotate->projected;
    own.head_count = rotate->paged.head_count;
    own.head_dim = rotate->paged.shape.head_dim;
    own.element_bytes = rotate->paged.shape.element_bytes;
    own.columns = paged_columns(&rotate->paged);
    return cuda_launched("rotate_store",
        KV_LAUNCH(rotate_store_kernel, dim3(rotate->row_count_max, rotate->sequence_count),
            dim3(THREADS), 0, cuda_stream_of(stream), own),
        error);
}
