/* Where the keys and values of one layer lie, as kernels compute it: kernels/device.h's geometry
 * with the products done once, on the host. */
#ifndef KV_KERNELS_CUDA_PAGED_H
#define KV_KERNELS_CUDA_PAGED_H

#include "kernels/cuda/attend.h"
#include "kernels/cuda/launch.h"

typedef struct {
    char *layer;        /* the layer's keys in slot 0 */
    size_t block_bytes; /* from slot to slot */
    size_t head_bytes;  /* from head to head; the values' heads follow the keys' */
    uint32_t token_shift, token_mask, token_bytes;
    uint32_t kv_head_count;
} paged_view_t;

static inline paged_view_t paged_view(const cuda_paged_t *paged)
{
    const kv_block_shape_t *shape = &paged->shape;
    paged_view_t view = {};
    view.layer = (char *)paged->arena + paged->layer * kv_block_layer_bytes(shape);
    view.block_bytes = kv_block_bytes(shape);
    view.token_bytes = shape->head_dim * shape->element_bytes;
    view.head_bytes = (size_t)shape->block_tokens * view.token_bytes;
    while (1u << view.token_shift < shape->block_tokens) {
        view.token_shift++;
    }
    view.token_mask = shape->block_tokens - 1;
    view.kv_head_count = shape->kv_head_count;
    return view;
}

/* The vector of a position: head 0 to kv_head_count - 1 are keys, the next as many values. */
static __device__ __forceinline__ char *paged_vector(
    const paged_view_t &view, const uint32_t *slots, uint32_t position, uint32_t head)
{
    return view.layer + slots[position >> view.token_shift] * view.block_bytes +
           head * view.head_bytes + (position & view.token_mask) * (size_t)view.token_bytes;
}

/* Columns of a row of the fused projection. */
static inline size_t paged_columns(const cuda_paged_t *paged)
{
    return (size_t)(paged->head_count + 2 * paged->shape.kv_head_count) * paged->shape.head_dim;
}

/* The first position that the token at position sees. */
static __device__ __forceinline__ uint32_t paged_first_seen(
    uint32_t position, uint32_t window_tokens)
{
    return window_tokens == 0 || position < window_tokens ? 0 : position + 1 - window_tokens;
}

#endif
