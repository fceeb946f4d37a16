#include "kernels/cpu/device_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cpu_device_t *own(kv_device_t *device)
{
    return (cpu_device_t *)device;
}

static kv_status_t cpu_allocate(
    kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error)
{
    (void)device;
    kv_region_t region;
    kv_status_t status = kv_region_map(bytes, &region, error);
    if (status == KV_OK) {
        *memory_out = region.base;
    }
    return status;
}

static void cpu_release(kv_device_t *device, void *memory, size_t bytes)
{
    (void)device;
    if (memory == NULL) {
        return;
    }
    enum { HUGE_PAGE_BYTES = 2 * 1024 * 1024 };
    size_t mapped = (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    kv_region_unmap(&(kv_region_t){memory, mapped});
}

static kv_status_t cpu_copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(device_to, from, bytes);
    return KV_OK;
}

static kv_status_t cpu_copy_out(
    kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, device_from, bytes);
    return KV_OK;
}

static kv_status_t cpu_describe(const kv_device_t *device, bool f32, bool fp8,
    kv_arithmetic_t *arithmetic_out, kv_error_t *error)
{
    const cpu_device_t *cpu = (const cpu_device_t *)device;
    if (fp8) {
        return kv_fail(error, KV_INVALID,
            "the device cpu has no fp8 products: turn model.fp8 off, or choose a gpu of compute "
            "capability 8.9 or more");
    }
    const bool bf16 = !f32 && cpu_matmul_has_bf16(cpu->matmul);
    kv_arithmetic_t arithmetic = {
        .tile_rows = CPU_TILE_ROWS,
        .operand = bf16 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32,
    };
    /* family / phase / products' and attention's instructions / products' and KV's type / version:
     * the version moves when the arithmetic of a kernel does. */
    snprintf(arithmetic.prefill, sizeof arithmetic.prefill, "cpu/prefill/%s+%s/%s/v1",
        cpu_matmul_isa(cpu->matmul, bf16), cpu->kernels->name,
        f32    ? "f32"
        : bf16 ? "bf16"
               : "f32-kv16");
    /* Decode has no kernels of AMX: its numbers are AVX-512's. */
    snprintf(arithmetic.decode, sizeof arithmetic.decode, "cpu/decode/%s/%s/v1",
        cpu->isa == CPU_ISA_AMX ? "avx512" : cpu->kernels->name, f32 ? "f32" : "f32-kv16");
    *arithmetic_out = arithmetic;
    return KV_OK;
}

static void cpu_title(const kv_device_t *device, char *text_out, size_t bytes)
{
    const cpu_device_t *cpu = (const cpu_device_t *)device;
    snprintf(
        text_out, bytes, "%s, threads %u", cpu->kernels->name, cpu_team_thread_count(cpu->team));
}

static void cpu_close(kv_device_t *device)
{
    cpu_device_t *cpu = own(device);
    uint32_t thread_count = cpu->team != NULL ? cpu_team_thread_count(cpu->team) : 0;
    for (uint32_t thread = 0; thread < thread_count; thread++) {
        kv_region_unmap(&cpu->scratch[thread]);
    }
    cpu_team_destroy(cpu->team);
    cpu_matmul_context_destroy(cpu->matmul);
    free(cpu->scratch);
    free(cpu->partial);
    free(cpu->calls);
    free(cpu);
}

static const kv_device_ops_t cpu_ops = {
    .name = "cpu",
    .host = true,
    .title = cpu_title,
    .close = cpu_close,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .copy_in = cpu_copy_in,
    .copy_out = cpu_copy_out,
    .move_start = cpu_move_start,
    .describe = cpu_describe,
    .matrix_create = cpu_matrix_create,
    .matrix_destroy = cpu_matrix_destroy,
    .matrix_bytes = cpu_matrix_bytes,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .product_tiles = cpu_product_tiles,
    .product_rows = cpu_product_rows,
    .rotate_store = cpu_rotate_store,
    .attend_tiles = cpu_attend_tiles,
    .attend_rows = cpu_attend_rows,
    .gate = cpu_gate,
    .mark = cpu_mark,
    .reach = cpu_reach,
    .finish = cpu_finish,
};

const cpu_kernels_t *cpu_kernels_for(cpu_isa_t isa)
{
#if defined(__x86_64__)
    switch (isa) {
    case CPU_ISA_AMX:
        return &cpu_kernels_amx;
    case CPU_ISA_AVX512:
        return &cpu_kernels_avx512;
    case CPU_ISA_AVX2:
        return &cpu_kernels_avx2;
    case CPU_ISA_PLAIN:
        break;
    }
#else
    (void)isa;
#endif
    return &cpu_kernels_plain;
}

size_t cpu_attend_scratch_bytes(uint32_t head_dim, uint32_t group)
{
    const size_t tile = 2 * (size_t)head_dim * CPU_KEY_TILE + CPU_QUERY_TILE * CPU_KEY_TILE +
                        (size_t)group * CPU_QUERY_TILE * (head_dim + head_dim / 2 + 2);
    const size_t segment = (size_t)group * CPU_KEY_SEGMENT;
    return sizeof(float) * (tile > segment ? tile : segment);
}

kv_status_t kv_device_cpu_open(uint32_t thread_count, kv_device_t **device_out, kv_error_t *error)
{
    if (thread_count < 1 || thread_count > 256) {
        return kv_fail(
            error, KV_INVALID, "compute threads are %u; 1 to 256 are possible", thread_count);
    }
    cpu_isa_t isa;
    kv_status_t status = cpu_isa_choose(&isa, error);
    if (status != KV_OK) {
        return status;
    }
    cpu_device_t *cpu = kv_allocate(sizeof *cpu);
    cpu->device.ops = &cpu_ops;
    cpu->isa = isa;
    cpu->kernels = cpu_kernels_for(isa);
    cpu->scratch = kv_allocate_array(thread_count, sizeof *cpu->scratch);
    status = cpu_team_create(thread_count, &cpu->team, error);
    if (status == KV_OK) {
        status = cpu_matmul_context_create(isa, thread_count, &cpu->matmul, error);
    }
    const size_t scratch_bytes = cpu_attend_scratch_bytes(CPU_HEAD_DIM_MAX, CPU_GROUP_MAX);
    for (uint32_t thread = 0; thread < thread_count && status == KV_OK; thread++) {
        status = kv_region_map(scratch_bytes, &cpu->scratch[thread], error);
    }
    if (status != KV_OK) {
        cpu_close(&cpu->device);
        return status;
    }
    *device_out = &cpu->device;
    return KV_OK;
}
