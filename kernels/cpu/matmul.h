/* Products of row tiles with a weight matrix, by oneDNN: the only including file is
 * matmul_dnnl.c.
 *
 * The matrix is split into panels of equal width that fit a core's second-level cache; a work item
 * is one panel against some tiles. A tile has one fixed height, so that a row is computed by the
 * same instructions wherever a chunk begins.
 *
 * Owns: the packed weights.
 * Threads: created and destroyed by one thread; run on any thread, with that thread's number.
 * Errors: KV_FATAL with oneDNN's status. */
#ifndef KV_KERNELS_CPU_MATMUL_H
#define KV_KERNELS_CPU_MATMUL_H

#include "kernels/cpu/isa.h"
#include "kernels/device.h"

typedef struct cpu_matmul_context cpu_matmul_context_t; /* oneDNN's engine, one stream a thread */
typedef struct cpu_matmul cpu_matmul_t;

kv_status_t cpu_matmul_context_create(
    cpu_isa_t isa, uint32_t thread_count, cpu_matmul_context_t **context_out, kv_error_t *error);
void cpu_matmul_context_destroy(cpu_matmul_context_t *context);

/* Whether bf16 products are faster than f32 ones here (AMX). */
bool cpu_matmul_has_bf16(const cpu_matmul_context_t *context);
/* "amx", "avx512", "avx2", "sse41": what bf16 (or f32) products are made of. */
const char *cpu_matmul_isa(const cpu_matmul_context_t *context, bool bf16);

/* weights: [rows][columns] f32, copied. */
kv_status_t cpu_matmul_create(cpu_matmul_context_t *context, const float *weights, uint32_t rows,
    uint32_t columns, kv_element_t operand, uint32_t tile_rows, cpu_matmul_t **matmul_out,
    kv_error_t *error);
void cpu_matmul_destroy(cpu_matmul_t *matmul);
size_t cpu_matmul_bytes(const cpu_matmul_t *matmul);
uint32_t cpu_matmul_panel_count(const cpu_matmul_t *matmul);
kv_element_t cpu_matmul_operand(const cpu_matmul_t *matmul);

/* One tile, one panel. in: [tile_rows][columns] operand elements; out: [tile_rows][rows] f32, of
 * which the panel's columns are written (or added to). */
kv_status_t cpu_matmul_run(const cpu_matmul_t *matmul, uint32_t thread, uint32_t panel,
    const void *in, bool accumulate, float *out);

#endif
