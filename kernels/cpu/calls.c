/* The device's kernels: each enqueues a command, whose items the team runs at finish. How a kernel
 * is split into items never changes what a row's numbers are made of. */
#include "kernels/cpu/dequantise.h"
#include "kernels/cpu/device_internal.h"

#include "base/bytes.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS_PER_ITEM = 16, OUTPUTS_PER_ITEM = 32, TILES_PER_ITEM_MAX = 8 };

static uint32_t share(uint32_t count, uint32_t per_item)
{
    return (count + per_item - 1) / per_item;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

typedef void (*run_t)(const cpu_command_t *command, uint32_t item, uint32_t thread);

/* A new call at the end of the list; the pointer holds until the next one. */
static cpu_kernel_call_t *enqueue(kv_device_t *device, run_t run, uint32_t item_count)
{
    cpu_device_t *cpu = (cpu_device_t *)device;
    if (cpu->call_count == cpu->calls_max) {
        cpu->calls_max = cpu->calls_max > 0 ? 2 * cpu->calls_max : 512;
        cpu->calls = kv_reallocate(cpu->calls, cpu->calls_max, sizeof *cpu->calls);
    }
    cpu_kernel_call_t *call = &cpu->calls[cpu->call_count++];
    *call = (cpu_kernel_call_t){.head = {.run = run, .item_count = item_count}, .device = cpu};
    return call;
}

kv_status_t cpu_finish(kv_device_t *device, kv_error_t *error)
{
    cpu_device_t *cpu = (cpu_device_t *)device;
    cpu_team_run(cpu->team, cpu->calls, sizeof *cpu->calls, cpu->call_count);
    cpu->call_count = 0;
    if (cpu->failed) {
        return kv_fail(error, KV_FATAL, "a matrix product failed on the cpu device");
    }
    return KV_OK;
}

/* Nothing runs before it is waited for: to reach any mark is to run all. */
uint32_t cpu_mark(kv_device_t *device)
{
    return ((cpu_device_t *)device)->call_count;
}

kv_status_t cpu_reach(kv_device_t *device, uint32_t mark, kv_error_t *error)
{
    (void)mark;
    return cpu_finish(device, error);
}

static void embed_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    (void)thread;
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const uint32_t columns = call->columns,
                   last = least(call->rows.count, (item + 1) * ROWS_PER_ITEM);
    const cpu_rows_format_t format = call->matrix->format;
    for (uint32_t at = item * ROWS_PER_ITEM; at < last; at++) {
        cpu_expand(format,
            (const char *)call->matrix->decode.base +
                call->tokens[at] * cpu_rows_bytes(format, columns),
            columns, (float *)call->out + (size_t)(call->rows.first + at) * columns);
    }
}

void cpu_embed(kv_device_t *device, const kv_matrix_t *matrix, const uint32_t *tokens,
    kv_rows_t rows, float *out)
{
    cpu_kernel_call_t *call = enqueue(device, embed_item, share(rows.count, ROWS_PER_ITEM));
    call->matrix = matrix;
    call->tokens = tokens;
    call->rows = rows;
    call->columns = matrix->columns;
    call->out = out;
}

/* Where a row of a buffer lies. */
static void *row_at(void *buffer, size_t row, uint32_t columns, kv_element_t element)
{
    return (char *)buffer + row * columns * (element == KV_ELEMENT_BF16 ? 2 : 4);
}

static void norm_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    (void)thread;
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const uint32_t first = call->rows.first + item * ROWS_PER_ITEM,
                   last = least(call->rows.first + call->rows.count, first + ROWS_PER_ITEM);
    for (uint32_t row = first; row < last; row++) {
        call->device->kernels->norm((const float *)call->in + (size_t)row * call->columns,
            call->weight, call->epsilon, call->columns,
            row_at(call->out, row, call->columns, call->element), call->element);
    }
}

void cpu_norm(kv_device_t *device, const float *x, const float *weight, float epsilon,
    uint32_t columns, kv_rows_t rows, void *out, kv_element_t out_element)
{
    cpu_kernel_call_t *call = enqueue(device, norm_item, share(rows.count, ROWS_PER_ITEM));
    call->in = x;
    call->weight = weight;
    call->epsilon = epsilon;
    call->columns = columns;
    call->rows = rows;
    call->out = out;
    call->element = out_element;
}

static void gate_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    (void)thread;
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const uint32_t first = call->rows.first + item * ROWS_PER_ITEM,
                   last = least(call->rows.first + call->rows.count, first + ROWS_PER_ITEM);
    for (uint32_t row = first; row < last; row++) {
        const float *in = (const float *)call->in + (size_t)row * 2 * call->columns;
        call->device->kernels->gate(in, in + call->columns, call->columns,
            row_at(call->out, row, call->columns, call->element), call->element);
    }
}

void cpu_gate(kv_device_t *device, const float *in, uint32_t columns, kv_rows_t rows, void *out,
    kv_element_t out_element)
{
    cpu_kernel_call_t *call = enqueue(device, gate_item, share(rows.count, ROWS_PER_ITEM));
    call->in = in;
    call->columns = columns;
    call->rows = rows;
    call->out = out;
    call->element = out_element;
}

/* Items are (panel, run of tiles), panels outermost: threads near each other in the list read the
 * same weights, and a panel stays in a core's cache over its run. */
static void product_tiles_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const kv_matrix_t *matrix = call->matrix;
    const uint32_t runs = share(call->rows.count, call->group), panel = item / runs,
                   first = call->rows.first + item % runs * call->group,
                   last = least(call->rows.first + call->rows.count, first + call->group);
    for (uint32_t tile = first; tile < last; tile++) {
        const size_t row = (size_t)tile * CPU_TILE_ROWS;
        const void *in = row_at((void *)(uintptr_t)call->in, row, matrix->columns, call->element);
        float *out = (float *)call->out + row * matrix->rows;
        if (cpu_matmul_run(matrix->tiles, thread, panel, in, call->accumulate, out) != KV_OK) {
            call->device->failed = true;
        }
    }
}

void cpu_product_tiles(kv_device_t *device, const kv_matrix_t *matrix, const void *in,
    kv_rows_t rows, bool accumulate, float *out)
{
    cpu_device_t *cpu = (cpu_device_t *)device;
    const uint32_t first = rows.first / CPU_TILE_ROWS,
                   tiles = share(rows.first + rows.count, CPU_TILE_ROWS) - first,
                   panels = cpu_matmul_panel_count(matrix->tiles),
                   wanted = 4 * cpu_team_thread_count(cpu->team); /* items, to share evenly */
    uint32_t group = TILES_PER_ITEM_MAX;
    while (group > 1 && panels * share(tiles, group) < wanted) {
        group /= 2;
    }
    cpu_kernel_call_t *call = enqueue(device, product_tiles_item, panels * share(tiles, group));
    call->matrix = matrix;
    call->in = in;
    call->element = cpu_matmul_operand(matrix->tiles);
    call->rows = (kv_rows_t){first, tiles};
    call->accumulate = accumulate;
    call->out = out;
    call->group = group;
}

static void product_rows_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    (void)thread;
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const kv_matrix_t *matrix = call->matrix;
    const uint32_t first = item * OUTPUTS_PER_ITEM;
    const cpu_rows_product_t product = {
        .format = matrix->format,
        .weights = (const char *)matrix->decode.base +
                   first * cpu_rows_bytes(matrix->format, matrix->columns),
        .weight_rows = least(OUTPUTS_PER_ITEM, matrix->rows - first),
        .columns = matrix->columns,
        .in = (const float *)call->in + (size_t)call->rows.first * matrix->columns,
        .in_stride = matrix->columns,
        .out = (float *)call->out + (size_t)call->rows.first * matrix->rows + first,
        .out_stride = matrix->rows,
        .row_count = call->rows.count,
        .accumulate = call->accumulate,
    };
    call->device->kernels->product(&product);
}

void cpu_product_rows(kv_device_t *device, const kv_matrix_t *matrix, const float *in,
    kv_rows_t rows, bool accumulate, float *out)
{
    cpu_kernel_call_t *call =
        enqueue(device, product_rows_item, share(matrix->rows, OUTPUTS_PER_ITEM));
    call->matrix = matrix;
    call->in = in;
    call->rows = rows;
    call->accumulate = accumulate;
    call->out = out;
}

/* The keys (kind 0) or values (kind 1) of one KV head in a sequence's blocks. */
static cpu_vectors_t vectors_of(
    const cpu_kernel_call_t *call, const kv_sequence_t *sequence, uint32_t kind, uint32_t kv_head)
{
    const kv_block_shape_t *shape = &call->shape;
    return (cpu_vectors_t){
        .arena = call->paged.arena,
        .slots = sequence->slots,
        .block_bytes = kv_block_bytes(shape),
        .head_offset = call->paged.layer * kv_block_layer_bytes(shape) +
                       (size_t)(kind * shape->kv_head_count + kv_head) * shape->block_tokens *
                           shape->head_dim * shape->element_bytes,
        .block_tokens = shape->block_tokens,
        .head_dim = shape->head_dim,
        .element_bytes = shape->element_bytes,
    };
}

/* Floats of a row of the fused projection. */
static size_t projected_columns(const cpu_kernel_call_t *call)
{
    return (size_t)(call->paged.head_count + 2 * call->shape.kv_head_count) * call->shape.head_dim;
}

static void rotate_store_row(
    const cpu_kernel_call_t *call, const kv_sequence_t *sequence, uint32_t at)
{
    const cpu_kernels_t *kernels = call->device->kernels;
    const uint32_t head_dim = call->shape.head_dim, position = sequence->position + at,
                   kv_heads = call->shape.kv_head_count;
    const float *rotation = call->weight + (size_t)position * head_dim;
    const kv_element_t element = call->shape.element_bytes == 2 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32;
    float *query = (float *)call->out + (sequence->row + at) * projected_columns(call);
    float *key = query + (size_t)call->paged.head_count * head_dim;
    for (float *head = query; head < key + (size_t)kv_heads * head_dim; head += head_dim) {
        kernels->rotate(head, rotation, head_dim);
    }
    for (uint32_t kind = 0; kind < 2; kind++) {
        for (uint32_t head = 0; head < kv_heads; head++) {
            const cpu_vectors_t vectors = vectors_of(call, sequence, kind, head);
            kernels->convert(key + (size_t)(kind * kv_heads + head) * head_dim, head_dim,
                (void *)(uintptr_t)cpu_vector_at(&vectors, position), element);
        }
    }
}

/* An item is a run of rows of one sequence; group: items of a sequence. */
static void rotate_store_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    (void)thread;
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const kv_sequence_t *sequence = &call->sequences[item / call->group];
    const uint32_t first = item % call->group * ROWS_PER_ITEM,
                   last = least(sequence->row_count, first + ROWS_PER_ITEM);
    for (uint32_t at = first; at < last; at++) {
        rotate_store_row(call, sequence, at);
    }
}

static void set_paged(cpu_kernel_call_t *call, const kv_paged_t *paged,
    const kv_sequence_t *sequences, uint32_t sequence_count)
{
    call->paged = *paged;
    call->shape = *paged->shape;
    call->sequences = sequences;
    call->sequence_count = sequence_count;
}

void cpu_rotate_store(kv_device_t *device, const kv_paged_t *paged, const kv_sequence_t *sequences,
    uint32_t sequence_count, const float *rotation, float *projected)
{
    uint32_t rows_max = 0;
    for (uint32_t at = 0; at < sequence_count; at++) {
        rows_max = sequences[at].row_count > rows_max ? sequences[at].row_count : rows_max;
    }
    const uint32_t group = share(rows_max, ROWS_PER_ITEM);
    cpu_kernel_call_t *call = enqueue(device, rotate_store_item, sequence_count * group);
    set_paged(call, paged, sequences, sequence_count);
    call->group = group;
    call->weight = rotation;
    call->out = projected;
}

/* An item is one KV head and one query tile; the last tiles, which see most keys, go first. */
static void attend_tiles_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const kv_sequence_t *sequence = call->sequences;
    const uint32_t kv_heads = call->shape.kv_head_count, head_dim = call->shape.head_dim,
                   kv_head = item % kv_heads, group = call->paged.head_count / kv_heads,
                   tile_count = call->head.item_count / kv_heads,
                   first_tile = sequence->row / CPU_QUERY_TILE,
                   tile = first_tile + tile_count - 1 - item / kv_heads,
                   tile_row = tile * CPU_QUERY_TILE,
                   begin = sequence->row > tile_row ? sequence->row : tile_row,
                   end = least(sequence->row + sequence->row_count, tile_row + CPU_QUERY_TILE);
    const size_t head_first = (size_t)kv_head * group * head_dim,
                 out_stride = (size_t)call->paged.head_count * head_dim;
    const cpu_attend_tile_t attend = {
        .keys = vectors_of(call, sequence, 0, kv_head),
        .values = vectors_of(call, sequence, 1, kv_head),
        .position = sequence->position - sequence->row + tile_row,
        .row_first = begin - tile_row,
        .row_count = end - begin,
        .window_tokens = call->paged.window_tokens,
        .group = group,
        .scale = 1.0f / sqrtf((float)head_dim),
        .queries = (const float *)call->in + tile_row * projected_columns(call) + head_first,
        .query_stride = projected_columns(call),
        .out = (char *)call->out +
               (tile_row * out_stride + head_first) * (call->element == KV_ELEMENT_BF16 ? 2 : 4),
        .out_stride = out_stride,
        .out_element = call->element,
        .scratch = call->device->scratch[thread].base,
    };
    call->device->kernels->attend_tile(&attend);
}

void cpu_attend_tiles(kv_device_t *device, const kv_paged_t *paged, const kv_sequence_t *sequence,
    const float *projected, void *out, kv_element_t out_element)
{
    const uint32_t first = sequence->row / CPU_QUERY_TILE,
                   last = share(sequence->row + sequence->row_count, CPU_QUERY_TILE);
    cpu_kernel_call_t *call =
        enqueue(device, attend_tiles_item, (last - first) * paged->shape->kv_head_count);
    set_paged(call, paged, sequence, 1);
    call->in = projected;
    call->out = out;
    call->element = out_element;
}

/* Attention of single rows goes in two steps: (row, KV head, segment of keys) each by itself, then
 * the segments of a row's heads are merged in their order. group: segments of the longest row. */
static float *partial_at(
    const cpu_kernel_call_t *call, uint32_t sequence, uint32_t kv_head, uint32_t segment)
{
    const size_t heads = call->paged.head_count / call->shape.kv_head_count,
                 floats = heads * (call->shape.head_dim + 2);
    return call->device->partial +
           (((size_t)sequence * call->shape.kv_head_count + kv_head) * call->group + segment) *
               floats;
}

static const float *query_at(const cpu_kernel_call_t *call, uint32_t sequence, uint32_t kv_head)
{
    const uint32_t heads = call->paged.head_count / call->shape.kv_head_count;
    return (const float *)call->in + call->sequences[sequence].row * projected_columns(call) +
           (size_t)kv_head * heads * call->shape.head_dim;
}

static void attend_rows_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const uint32_t kv_heads = call->shape.kv_head_count, segment = item % call->group,
                   kv_head = item / call->group % kv_heads, at = item / call->group / kv_heads,
                   begin = segment * CPU_KEY_SEGMENT;
    const kv_sequence_t *sequence = &call->sequences[at];
    const uint32_t seen = cpu_first_seen(sequence->position, call->paged.window_tokens),
                   first = seen > begin ? seen : begin,
                   last = least(begin + CPU_KEY_SEGMENT, sequence->position + 1);
    if (first >= last) {
        return;
    }
    const cpu_attend_segment_t attend = {
        .keys = vectors_of(call, sequence, 0, kv_head),
        .values = vectors_of(call, sequence, 1, kv_head),
        .first = first,
        .last = last,
        .group = call->paged.head_count / kv_heads,
        .scale = 1.0f / sqrtf((float)call->shape.head_dim),
        .queries = query_at(call, at, kv_head),
        .partial = partial_at(call, at, kv_head, segment),
        .scratch = call->device->scratch[thread].base,
    };
    call->device->kernels->attend_segment(&attend);
}

static void merge_head(
    const float *partial, size_t stride, uint32_t segments, uint32_t head_dim, float *out)
{
    float largest = -INFINITY, sum = 0;
    for (uint32_t segment = 0; segment < segments; segment++) {
        largest = fmaxf(largest, partial[segment * stride + head_dim]);
    }
    for (uint32_t i = 0; i < head_dim; i++) {
        out[i] = 0;
    }
    for (uint32_t segment = 0; segment < segments; segment++) {
        const float *one = partial + segment * stride;
        const float weight = expf(one[head_dim] - largest);
        sum += weight * one[head_dim + 1];
        for (uint32_t i = 0; i < head_dim; i++) {
            out[i] += weight * one[i];
        }
    }
    for (uint32_t i = 0; i < head_dim; i++) {
        out[i] /= sum;
    }
}

static void merge_rows_item(const cpu_command_t *command, uint32_t item, uint32_t thread)
{
    (void)thread;
    const cpu_kernel_call_t *call = (const cpu_kernel_call_t *)command;
    const uint32_t head_dim = call->shape.head_dim, kv_heads = call->shape.kv_head_count,
                   group = call->paged.head_count / kv_heads;
    const kv_sequence_t *sequence = &call->sequences[item];
    const uint32_t first = cpu_first_seen(sequence->position, call->paged.window_tokens) /
                           CPU_KEY_SEGMENT,
                   last = sequence->position / CPU_KEY_SEGMENT;
    float *out = (float *)call->out + (size_t)sequence->row * call->paged.head_count * head_dim;
    for (uint32_t head = 0; head < call->paged.head_count; head++) {
        const float *partial =
            partial_at(call, item, head / group, first) + (size_t)(head % group) * (head_dim + 2);
        merge_head(partial, (size_t)group * (head_dim + 2), last - first + 1, head_dim,
            out + (size_t)head * head_dim);
    }
}

void cpu_attend_rows(kv_device_t *device, const kv_paged_t *paged, const kv_sequence_t *sequences,
    uint32_t sequence_count, const float *projected, float *out)
{
    cpu_device_t *cpu = (cpu_device_t *)device;
    const kv_block_shape_t *shape = paged->shape;
    uint32_t segments = 0;
    for (uint32_t at = 0; at < sequence_count; at++) {
        uint32_t own = sequences[at].position / CPU_KEY_SEGMENT + 1;
        segments = own > segments ? own : segments;
    }
    const size_t floats =
        (size_t)sequence_count * paged->head_count * segments * (shape->head_dim + 2);
    if (floats > cpu->partial_floats) {
        /* Calls find the partial sums through the device when they run: growing is safe here. */
        free(cpu->partial);
        cpu->partial = kv_allocate_array(floats, sizeof(float));
        cpu->partial_floats = floats;
    }
    cpu_kernel_call_t *call =
        enqueue(device, attend_rows_item, sequence_count * shape->kv_head_count * segments);
    set_paged(call, paged, sequences, sequence_count);
    call->group = segments;
    call->in = projected;
    call = enqueue(device, merge_rows_item, sequence_count);
    set_paged(call, paged, sequences, sequence_count);
    call->group = segments;
    call->out = out;
}
