#include "kernels/cpu/matmul.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

/* Weights of one panel: a core's second-level cache holds them beside the rows that pass by. */
enum { PANEL_BYTES_MAX = 768 * 1024, PANEL_ROWS_STEP = 32 };

struct cpu_matmul_context {
    uint32_t thread_count;
    dnnl_cpu_isa_t isa;
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* [thread_count] */
};

/* What one thread hands to a primitive; its handles are set before each run. */
typedef struct {
    dnnl_memory_t in, weights, out, scratchpad;
    void *scratchpad_bytes;
    float *dense; /* [tile_rows][panel_rows]: oneDNN's fast kernels refuse rows with gaps */
} thread_arguments_t;

struct cpu_matmul {
    cpu_matmul_context_t *context;
    uint32_t tile_rows, columns, rows, panel_rows, panel_count;
    size_t panel_bytes, element_bytes;
    kv_region_t packed; /* [panel_count][panel_bytes] */
    dnnl_primitive_t primitive;
    thread_arguments_t *threads;
};

static kv_status_t failed(kv_error_t *error, const char *what, dnnl_status_t status)
{
    return kv_fail(error, status == dnnl_out_of_memory ? KV_NO_SPACE : KV_FATAL,
        "oneDNN %s failed with status %d", what, (int)status);
}

/* Every product runs on the thread that calls it: the device's own team is the only one. */
static void stay_single(void)
{
    static _Thread_local bool done;
    if (!done) {
        omp_set_num_threads(1);
        done = true;
    }
}

static void cap_isa(cpu_isa_t isa)
{
    static const dnnl_cpu_isa_t caps[] = {
        [CPU_ISA_PLAIN] = dnnl_cpu_isa_sse41,
        [CPU_ISA_AVX2] = dnnl_cpu_isa_avx2,
        [CPU_ISA_AVX512] = dnnl_cpu_isa_avx512_core,
    };
    /* Refused once oneDNN has compiled anything: the first device of a process decides. */
    if (isa < CPU_ISA_AMX) {
        dnnl_set_max_cpu_isa(caps[isa]);
    }
}

kv_status_t cpu_matmul_context_create(
    cpu_isa_t isa, uint32_t thread_count, cpu_matmul_context_t **context_out, kv_error_t *error)
{
    stay_single();
    cap_isa(isa);
    cpu_matmul_context_t *context = kv_allocate(sizeof *context);
    context->isa = dnnl_get_effective_cpu_isa();
    context->thread_count = thread_count;
    context->streams = kv_allocate_array(thread_count, sizeof(dnnl_stream_t));
    dnnl_status_t status = dnnl_engine_create(&context->engine, dnnl_cpu, 0);
    for (uint32_t thread = 0; thread < thread_count && status == dnnl_success; thread++) {
        status = dnnl_stream_create(
            &context->streams[thread], context->engine, dnnl_stream_default_flags);
    }
    if (status != dnnl_success) {
        cpu_matmul_context_destroy(context);
        return failed(error, "engine", status);
    }
    *context_out = context;
    return KV_OK;
}

void cpu_matmul_context_destroy(cpu_matmul_context_t *context)
{
    if (context == NULL) {
        return;
    }
    for (uint32_t thread = 0; thread < context->thread_count; thread++) {
        dnnl_stream_destroy(context->streams[thread]);
    }
    dnnl_engine_destroy(context->engine);
    free(context->streams);
    free(context);
}

bool cpu_matmul_has_bf16(const cpu_matmul_context_t *context)
{
    /* AVX-512 BF16 without AMX was slower than f32 where it was measured. */
    return context->isa == dnnl_cpu_isa_avx512_core_amx;
}

const char *cpu_matmul_isa(const cpu_matmul_context_t *context, bool bf16)
{
    switch (context->isa) {
    case dnnl_cpu_isa_avx512_core_amx:
        return bf16 ? "amx" : "avx512";
    case dnnl_cpu_isa_avx512_core_bf16:
    case dnnl_cpu_isa_avx512_core:
    case dnnl_cpu_isa_avx512_core_vnni:
        return "avx512";
    case dnnl_cpu_isa_avx2:
    case dnnl_cpu_isa_avx2_vnni:
        return "avx2";
    default:
        return "sse41";
    }
}

/* The widest panel that fits, of those that divide the rows evenly: one primitive serves all. */
static uint32_t choose_panel_rows(uint32_t rows, uint32_t columns, size_t element_bytes)
{
    uint32_t best = 0;
    for (uint32_t width = PANEL_ROWS_STEP; width <= rows; width += PANEL_ROWS_STEP) {
        if (rows % width == 0 &&
            (best == 0 || width * columns * element_bytes <= PANEL_BYTES_MAX)) {
            best = width;
        }
    }
    return best != 0 ? best : rows;
}

/* A plain matrix description; the strides are in elements. */
static dnnl_memory_desc_t describe(
    uint32_t rows, uint32_t columns, dnnl_dim_t row_stride, dnnl_dim_t column_stride, bool bf16)
{
    dnnl_memory_desc_t description;
    const dnnl_dims_t sizes = {rows, columns}, strides = {row_stride, column_stride};
    dnnl_memory_desc_init_by_strides(&description, 2, sizes, bf16 ? dnnl_bf16 : dnnl_f32, strides);
    return description;
}

static dnnl_status_t create_primitive(
    cpu_matmul_t *matmul, bool bf16, dnnl_primitive_desc_t *description_out)
{
    const dnnl_dims_t weight_sizes = {matmul->columns, matmul->panel_rows};
    dnnl_memory_desc_t in = describe(matmul->tile_rows, matmul->columns, matmul->columns, 1, bf16),
                       out = describe(
                           matmul->tile_rows, matmul->panel_rows, matmul->panel_rows, 1, false),
                       weights;
    dnnl_memory_desc_init_by_tag(
        &weights, 2, weight_sizes, bf16 ? dnnl_bf16 : dnnl_f32, dnnl_format_tag_any);
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_matmul_desc_t operation;
    dnnl_status_t status = dnnl_matmul_desc_init(&operation, &in, &weights, NULL, &out);
    if (status == dnnl_success) {
        status = dnnl_primitive_attr_create(&attributes);
    }
    if (status == dnnl_success) {
        status = dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    }
    if (status == dnnl_success) {
        status = dnnl_primitive_desc_create(
            description_out, &operation, attributes, matmul->context->engine, NULL);
    }
    dnnl_primitive_attr_destroy(attributes);
    if (status == dnnl_success) {
        status = dnnl_primitive_create(&matmul->primitive, *description_out);
    }
    return status;
}

/* Packs weights[rows][columns] panel by panel into the form that the primitive wants. */
static dnnl_status_t pack(
    cpu_matmul_t *matmul, const dnnl_memory_desc_t *wanted, const float *weights)
{
    dnnl_engine_t engine = matmul->context->engine;
    dnnl_memory_desc_t plain =
        describe(matmul->columns, matmul->panel_rows, 1, matmul->columns, false);
    dnnl_primitive_desc_t description = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_status_t status =
        dnnl_reorder_primitive_desc_create(&description, &plain, engine, wanted, engine, NULL);
    if (status == dnnl_success) {
        status = dnnl_primitive_create(&reorder, description);
    }
    if (status == dnnl_success) {
        status = dnnl_memory_create(&from, &plain, engine, DNNL_MEMORY_NONE);
    }
    if (status == dnnl_success) {
        status = dnnl_memory_create(&to, wanted, engine, DNNL_MEMORY_NONE);
    }
    for (uint32_t panel = 0; panel < matmul->panel_count && status == dnnl_success; panel++) {
        size_t first = (size_t)panel * matmul->panel_rows * matmul->columns;
        dnnl_memory_set_data_handle(from, (void *)(uintptr_t)(weights + first));
        dnnl_memory_set_data_handle(to, (char *)matmul->packed.base + panel * matmul->panel_bytes);
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
        status = dnnl_primitive_execute(reorder, matmul->context->streams[0], 2, arguments);
    }
    dnnl_memory_destroy(from);
    dnnl_memory_destroy(to);
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(description);
    return status;
}

static const dnnl_memory_desc_t *query(const_dnnl_primitive_desc_t description, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(description, what, 0);
}

static dnnl_status_t create_arguments(cpu_matmul_t *matmul, const_dnnl_primitive_desc_t description)
{
    const dnnl_memory_desc_t *pad = query(description, dnnl_query_scratchpad_md);
    const size_t pad_bytes = dnnl_memory_desc_get_size(pad);
    dnnl_engine_t engine = matmul->context->engine;
    dnnl_status_t status = dnnl_success;
    for (uint32_t at = 0; at < matmul->context->thread_count && status == dnnl_success; at++) {
        thread_arguments_t *thread = &matmul->threads[at];
        thread->scratchpad_bytes = aligned_alloc(4096, (pad_bytes + 4096) / 4096 * 4096);
        thread->dense = aligned_alloc(
            4096, kv_round_up((size_t)matmul->tile_rows * matmul->panel_rows * 4, 4096));
        struct {
            dnnl_memory_t *memory;
            const dnnl_memory_desc_t *description;
            void *handle;
        } wanted[] = {
            {&thread->in, query(description, dnnl_query_src_md), DNNL_MEMORY_NONE},
            {&thread->weights, query(description, dnnl_query_weights_md), DNNL_MEMORY_NONE},
            {&thread->out, query(description, dnnl_query_dst_md), DNNL_MEMORY_NONE},
            {&thread->scratchpad, pad, thread->scratchpad_bytes},
        };
        for (size_t i = 0; i < 4 && status == dnnl_success; i++) {
            status = dnnl_memory_create(
                wanted[i].memory, wanted[i].description, engine, wanted[i].handle);
        }
    }
    return status;
}

kv_status_t cpu_matmul_create(cpu_matmul_context_t *context, const float *weights, uint32_t rows,
    uint32_t columns, kv_element_t operand, uint32_t tile_rows, cpu_matmul_t **matmul_out,
    kv_error_t *error)
{
    stay_single();
    const bool bf16 = operand == KV_ELEMENT_BF16;
    cpu_matmul_t *matmul = kv_allocate(sizeof *matmul);
    matmul->context = context;
    matmul->tile_rows = tile_rows;
    matmul->rows = rows;
    matmul->columns = columns;
    matmul->element_bytes = bf16 ? 2 : 4;
    matmul->panel_rows = choose_panel_rows(rows, columns, matmul->element_bytes);
    matmul->panel_count = rows / matmul->panel_rows;
    matmul->threads = kv_allocate_array(context->thread_count, sizeof *matmul->threads);
    dnnl_primitive_desc_t description = NULL;
    kv_status_t result = KV_OK;
    dnnl_status_t status = create_primitive(matmul, bf16, &description);
    if (status == dnnl_success) {
        const dnnl_memory_desc_t *packed = query(description, dnnl_query_weights_md);
        matmul->panel_bytes = (dnnl_memory_desc_get_size(packed) + 63) / 64 * 64;
        result = kv_region_map(matmul->panel_bytes * matmul->panel_count, &matmul->packed, error);
        if (result == KV_OK) {
            status = pack(matmul, packed, weights);
        }
    }
    if (status == dnnl_success && result == KV_OK) {
        status = create_arguments(matmul, description);
    }
    if (status != dnnl_success) {
        result = failed(error, "matmul", status);
    }
    dnnl_primitive_desc_destroy(description);
    if (result != KV_OK) {
        cpu_matmul_destroy(matmul);
        return result;
    }
    *matmul_out = matmul;
    return KV_OK;
}

void cpu_matmul_destroy(cpu_matmul_t *matmul)
{
    if (matmul == NULL) {
        return;
    }
    for (uint32_t at = 0; at < matmul->context->thread_count; at++) {
        thread_arguments_t *thread = &matmul->threads[at];
        dnnl_memory_destroy(thread->in);
        dnnl_memory_destroy(thread->weights);
        dnnl_memory_destroy(thread->out);
        dnnl_memory_destroy(thread->scratchpad);
        free(thread->scratchpad_bytes);
        free(thread->dense);
    }
    dnnl_primitive_destroy(matmul->primitive);
    kv_region_unmap(&matmul->packed);
    free(matmul->threads);
    free(matmul);
}

size_t cpu_matmul_bytes(const cpu_matmul_t *matmul)
{
    return matmul->packed.bytes;
}

uint32_t cpu_matmul_panel_count(const cpu_matmul_t *matmul)
{
    return matmul->panel_count;
}

kv_element_t cpu_matmul_operand(const cpu_matmul_t *matmul)
{
    return matmul->element_bytes == 2 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32;
}

/* Moves a dense tile to its place among the other panels' columns. */
static void place(const cpu_matmul_t *matmul, const float *dense, bool accumulate, float *out)
{
    for (uint32_t row = 0; row < matmul->tile_rows; row++) {
        const float *restrict from = dense + (size_t)row * matmul->panel_rows;
        float *restrict to = out + (size_t)row * matmul->rows;
        if (!accumulate) {
            memcpy(to, from, matmul->panel_rows * sizeof(float));
            continue;
        }
        for (uint32_t i = 0; i < matmul->panel_rows; i++) {
            to[i] += from[i];
        }
    }
}

kv_status_t cpu_matmul_run(const cpu_matmul_t *matmul, uint32_t thread, uint32_t panel,
    const void *in, bool accumulate, float *out)
{
    stay_single();
    const thread_arguments_t *own = &matmul->threads[thread];
    const bool direct = matmul->panel_count == 1 && !accumulate;
    dnnl_memory_set_data_handle(own->in, (void *)(uintptr_t)in);
    dnnl_memory_set_data_handle(
        own->weights, (char *)matmul->packed.base + panel * matmul->panel_bytes);
    dnnl_memory_set_data_handle(own->out, direct ? out : own->dense);
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, own->in},
        {DNNL_ARG_WEIGHTS, own->weights},
        {DNNL_ARG_DST, own->out},
        {DNNL_ARG_SCRATCHPAD, own->scratchpad},
    };
    dnnl_status_t status =
        dnnl_primitive_execute(matmul->primitive, matmul->context->streams[thread], 4, arguments);
    if (status != dnnl_success) {
        return KV_FATAL;
    }
    if (!direct) {
        place(matmul, own->dense, accumulate, out + (size_t)panel * matmul->panel_rows);
    }
    return KV_OK;
}
