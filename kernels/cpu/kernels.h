/* The inner loops of the CPU device, one table for each instruction set. The plain table is the
 * reference that tests compare the others with.
 *
 * Within one table a row's result depends on that row alone: never on how many rows are computed
 * with it, on the thread or on the chunk.
 *
 * Threads: any; the functions use only what they are given. */
#ifndef KV_KERNELS_CPU_KERNELS_H
#define KV_KERNELS_CPU_KERNELS_H

#include "kernels/cpu/isa.h"
#include "kernels/device.h"

#include <stddef.h>

enum {
    CPU_KEY_TILE = 64,     /* keys of one step of the running softmax, aligned to positions */
    CPU_QUERY_TILE = 64,   /* query rows that share the work on a key tile, aligned likewise */
    CPU_KEY_SEGMENT = 512, /* keys of one work item of decode, aligned likewise */
    CPU_HEAD_DIM_MAX = 256,
    CPU_GROUP_MAX = 64, /* query heads of one KV head */
};

/* Where the K (or V) vectors of one KV head of one layer lie. */
typedef struct {
    const char *arena;
    const uint32_t *slots;
    size_t block_bytes, head_offset; /* of the first token in a block */
    uint32_t block_tokens, head_dim, element_bytes;
} cpu_vectors_t;

/* The vector of a position; at least 16 consecutive ones lie beside each other from a multiple of
 * 16 on. */
static inline const void *cpu_vector_at(const cpu_vectors_t *vectors, uint32_t position)
{
    return vectors->arena +
           vectors->slots[position / vectors->block_tokens] * vectors->block_bytes +
           vectors->head_offset +
           (size_t)(position % vectors->block_tokens) * vectors->head_dim * vectors->element_bytes;
}

/* The first position that the token at position sees; a window of 0 tokens has no begin. */
static inline uint32_t cpu_first_seen(uint32_t position, uint32_t window_tokens)
{
    return window_tokens == 0 || position < window_tokens ? 0 : position + 1 - window_tokens;
}

/* Where the key tiles of a query tile begin: the same for all its rows, whichever are computed. */
static inline uint32_t cpu_first_key_tile(uint32_t position, uint32_t window_tokens)
{
    return cpu_first_seen(position, window_tokens) / CPU_KEY_TILE * CPU_KEY_TILE;
}

/* How a decode matrix' rows are held. The two compact forms have the file's own numbers. */
typedef enum { CPU_ROWS_F32, CPU_ROWS_BF16, CPU_ROWS_BLOCK8, CPU_ROWS_BLOCK4 } cpu_rows_format_t;

enum { CPU_BLOCK = 32 };

/* 32 weights: scale x quants[i]. */
typedef struct {
    float scale;
    int8_t quants[CPU_BLOCK];
} cpu_block8_t;

/* 32 weights: scale x quant + offset; element i in a low nibble, i + 16 in the high one. */
typedef struct {
    float scale, offset;
    uint8_t quants[CPU_BLOCK / 2];
} cpu_block4_t;

static inline size_t cpu_rows_bytes(cpu_rows_format_t format, size_t elements)
{
    switch (format) {
    case CPU_ROWS_F32:
        return elements * 4;
    case CPU_ROWS_BF16:
        return elements * 2;
    case CPU_ROWS_BLOCK8:
        return elements / CPU_BLOCK * sizeof(cpu_block8_t);
    case CPU_ROWS_BLOCK4:
        return elements / CPU_BLOCK * sizeof(cpu_block4_t);
    }
    return 0;
}

/* Some rows of a decode matrix against some rows of activations. */
typedef struct {
    cpu_rows_format_t format;
    const void *weights; /* [weight_rows][columns] in the format */
    uint32_t weight_rows, columns;
    const float *in; /* [row_count][in_stride] */
    size_t in_stride;
    float *out; /* [row_count][out_stride] */
    size_t out_stride;
    uint32_t row_count;
    bool accumulate;
} cpu_rows_product_t;

/* A tile of queries of one KV head's group. Position 0 of the tile is a multiple of
 * CPU_QUERY_TILE. */
typedef struct {
    cpu_vectors_t keys, values;
    uint32_t position;             /* of the tile's row 0 */
    uint32_t row_first, row_count; /* within the tile */
    uint32_t window_tokens;        /* as in kv_paged_t */
    uint32_t group;                /* query heads */
    float scale;
    const float *queries; /* tile row r, head h of the group: + r x query_stride + h x head_dim */
    size_t query_stride;
    void *out; /* likewise, in elements of out_element */
    size_t out_stride;
    kv_element_t out_element;
    void *scratch; /* attend_scratch_bytes, 64-byte aligned */
} cpu_attend_tile_t;

/* One query row of one KV head's group over the keys from first to last - 1. */
typedef struct {
    cpu_vectors_t keys, values;
    uint32_t first, last; /* of one segment of CPU_KEY_SEGMENT positions; first below last */
    uint32_t group;
    float scale;
    const float *queries; /* [group][head_dim] */
    float *partial; /* [group][head_dim + 2]: weighted values, largest score, sum of weights */
    void *scratch;  /* attend_scratch_bytes: scores[group][CPU_KEY_SEGMENT] */
} cpu_attend_segment_t;

typedef struct {
    const char *name; /* "avx512" */
    void (*norm)(const float *x, const float *weight, float epsilon, uint32_t columns, void *out,
        kv_element_t out_element);
    /* In place, adjacent pairs; rotation: [head_dim / 2][cos, sin]. */
    void (*rotate)(float *x, const float *rotation, uint32_t head_dim);
    void (*convert)(const float *from, uint32_t count, void *to, kv_element_t to_element);
    void (*gate)(
        const float *gate, const float *up, uint32_t count, void *out, kv_element_t out_element);
    void (*product)(const cpu_rows_product_t *product);
    void (*attend_tile)(const cpu_attend_tile_t *tile);
    void (*attend_segment)(const cpu_attend_segment_t *segment);
} cpu_kernels_t;

/* Bytes of scratch that one thread's attention needs. */
size_t cpu_attend_scratch_bytes(uint32_t head_dim, uint32_t group);

extern const cpu_kernels_t cpu_kernels_plain;
#if defined(__x86_64__)
extern const cpu_kernels_t cpu_kernels_avx2;
extern const cpu_kernels_t cpu_kernels_avx512;
extern const cpu_kernels_t cpu_kernels_amx; /* attention over tiles; the rest is AVX-512's */
#endif

const cpu_kernels_t *cpu_kernels_for(cpu_isa_t isa);

#endif
