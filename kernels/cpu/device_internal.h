/* What the files of the CPU device share. */
#ifndef KV_KERNELS_CPU_DEVICE_INTERNAL_H
#define KV_KERNELS_CPU_DEVICE_INTERNAL_H

#include "base/memory.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/team.h"
#include "kernels/device.h"

/* Rows of a tile of prefill. Also the alignment of query tiles. */
enum { CPU_TILE_ROWS = 64 };

struct kv_matrix {
    uint32_t rows, columns;
    cpu_matmul_t *tiles;      /* NULL: not for prefill */
    cpu_rows_format_t format; /* of the rows for decode */
    kv_region_t decode;       /* the rows in the format; no bytes: not for decode */
};

typedef struct cpu_device cpu_device_t;

/* One enqueued kernel. */
typedef struct {
    cpu_command_t head;
    cpu_device_t *device;
    const kv_matrix_t *matrix;
    const uint32_t *tokens;
    const kv_sequence_t *sequences;
    uint32_t sequence_count;
    kv_block_shape_t shape;
    kv_paged_t paged;
    kv_rows_t rows;
    const void *in;
    const float *weight; /* also: the rotation table */
    void *out;
    kv_element_t element;
    float epsilon;
    uint32_t columns;
    uint32_t group; /* rows, tiles or segments that make one item, as the kernel counts */
    bool accumulate;
} cpu_kernel_call_t;

struct cpu_device {
    kv_device_t device; /* first */
    cpu_isa_t isa;
    const cpu_kernels_t *kernels;
    cpu_team_t *team;
    cpu_matmul_context_t *matmul;
    cpu_kernel_call_t *calls;
    uint32_t call_count, calls_max;
    kv_region_t *scratch; /* of each thread's attention */
    float *partial;       /* of attention by segments */
    size_t partial_floats;
    _Atomic bool failed;
};

void cpu_embed(kv_device_t *device, const kv_matrix_t *matrix, const uint32_t *tokens,
    kv_rows_t rows, float *out);
void cpu_norm(kv_device_t *device, const float *x, const float *weight, float epsilon,
    uint32_t columns, kv_rows_t rows, void *out, kv_element_t out_element);
void cpu_product_tiles(kv_device_t *device, const kv_matrix_t *matrix, const void *in,
    kv_rows_t rows, bool accumulate, float *out);
void cpu_product_rows(kv_device_t *device, const kv_matrix_t *matrix, const float *in,
    kv_rows_t rows, bool accumulate, float *out);
void cpu_rotate_store(kv_device_t *device, const kv_paged_t *paged, const kv_sequence_t *sequences,
    uint32_t sequence_count, const float *rotation, float *projected);
void cpu_attend_tiles(kv_device_t *device, const kv_paged_t *paged, const kv_sequence_t *sequence,
    const float *projected, void *out, kv_element_t out_element);
void cpu_attend_rows(kv_device_t *device, const kv_paged_t *paged, const kv_sequence_t *sequences,
    uint32_t sequence_count, const float *projected, float *out);
void cpu_gate(kv_device_t *device, const float *in, uint32_t columns, kv_rows_t rows, void *out,
    kv_element_t out_element);
uint32_t cpu_mark(kv_device_t *device);
kv_status_t cpu_reach(kv_device_t *device, uint32_t mark, kv_error_t *error);
kv_status_t cpu_finish(kv_device_t *device, kv_error_t *error);

kv_status_t cpu_move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error);

kv_status_t cpu_matrix_create(kv_device_t *device, const kv_matrix_params_t *params,
    kv_matrix_t **matrix_out, kv_error_t *error);
void cpu_matrix_destroy(kv_device_t *device, kv_matrix_t *matrix);
size_t cpu_matrix_bytes(const kv_matrix_t *matrix);

#endif
