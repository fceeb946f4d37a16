/* The table's kernels: each goes to the compute stream at once, which runs them in order. What the
 * runtime refuses makes the pass worthless; reach and finish say so, and the next pass begins anew.
 */
#include "kernels/cuda/attend.h"
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/product_rows.h"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/weights.h"

#include "base/check.h"

bool cuda_pass_begin(cuda_device_t *cuda)
{
    kv_error_t error;
    if (!cuda->failing && cuda_enter(cuda, &error) != KV_OK) {
        cuda->failing = true;
        cuda->failure = error;
    }
    return !cuda->failing;
}

void cuda_pass_end(cuda_device_t *cuda, kv_status_t status, const kv_error_t *error)
{
    if (status != KV_OK && !cuda->failing) {
        (void)cudaGetLastError();
        cuda->failing = true;
        cuda->failure = *error;
    }
}

static kv_status_t pass_status(cuda_device_t *cuda, kv_error_t *error)
{
    return cuda->failing ? kv_fail(error, KV_FATAL, "%s", cuda->failure.text) : KV_OK;
}

/* ---- rows ---- */

static void call_embed(kv_device_t *device, const kv_matrix_t *matrix, const uint32_t *tokens,
    kv_rows_t rows, float *out)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (!cuda_pass_begin(cuda) || rows.count == 0) {
        return;
    }
    cuda_embed_t embed = {};
    kv_status_t status = cuda_upload_tokens(cuda, tokens, rows.count, &embed.tokens, &error);
    if (status == KV_OK) {
        embed.type = matrix->element == KV_ELEMENT_BF16 ? KV_WEIGHT_BF16 : KV_WEIGHT_F32;
        embed.matrix = matrix->weights;
        embed.columns = matrix->columns;
        embed.rows = rows;
        embed.out = out;
        status = cuda_embed(cuda_opaque(cuda->compute), &embed, &error);
    }
    cuda_pass_end(cuda, status, &error);
}

static void call_norm(kv_device_t *device, const float *x, const float *weight, float epsilon,
    uint32_t columns, kv_rows_t rows, void *out, kv_element_t out_element)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (cuda_pass_begin(cuda)) {
        const cuda_norm_t norm = {x, weight, epsilon, columns, rows, out, out_element};
        cuda_pass_end(cuda, cuda_norm(cuda_opaque(cuda->compute), &norm, &error), &error);
    }
}

static void call_gate(kv_device_t *device, const float *in, uint32_t columns, kv_rows_t rows,
    void *out, kv_element_t out_element)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (cuda_pass_begin(cuda)) {
        const cuda_gate_t gate = {in, columns, rows, out, out_element};
        cuda_pass_end(cuda, cuda_gate(cuda_opaque(cuda->compute), &gate, &error), &error);
    }
}

/* ---- products ---- */

static cuda_product_t product_of(const kv_matrix_t *matrix, uint32_t tile_rows, uint32_t tiles_max)
{
    cuda_product_t product = {};
    product.weights = matrix->weights;
    product.weight_scales = matrix->scales;
    product.element = matrix->element;
    product.rows = matrix->rows;
    product.columns = matrix->columns;
    product.tile_rows = tile_rows;
    product.tiles_max = tiles_max;
    return product;
}

/* Rows as the operand of a product of e4m3: to_rows of them in the scratch. */
static kv_status_t quantise_operand(
    cuda_device_t *cuda, const cuda_quantise_t *rows, cuda_product_t *product, kv_error_t *error)
{
    kv_status_t status = cuda_scratch_reserve(
        cuda, &cuda->rows_in, cuda_e4m3_bytes(rows->to_rows, rows->columns), error);
    if (status != KV_OK) {
        return status;
    }
    char *memory = (char *)cuda->rows_in.memory;
    cuda_quantise_t quantise = *rows;
    quantise.to = (uint8_t *)memory;
    quantise.scales = (float *)(memory + cuda_scales_at(rows->to_rows, rows->columns));
    product->in = quantise.to;
    product->in_scales = quantise.scales;
    return cuda_quantise(cuda_opaque(cuda->compute), &quantise, error);
}

/* The tiles' rows, which prefill has in bf16, as e4m3. */
static kv_status_t quantise_tiles(cuda_device_t *cuda, cuda_product_t *product, kv_error_t *error)
{
    cuda_quantise_t quantise = {};
    quantise.from = product->in;
    quantise.from_element = KV_ELEMENT_BF16;
    quantise.columns = product->columns;
    quantise.rows.count = quantise.to_rows = product->tile_count * product->tile_rows;
    return quantise_operand(cuda, &quantise, product, error);
}

static void call_product_tiles(kv_device_t *device, const kv_matrix_t *matrix, const void *in,
    kv_rows_t rows, bool accumulate, float *out)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (!cuda_pass_begin(cuda) || rows.count == 0) {
        return;
    }
    const uint32_t first = rows.first / CUDA_PRODUCT_ROWS * CUDA_PRODUCT_ROWS,
                   end_row = rows.first + rows.count;
    cuda_product_t product = product_of(matrix, CUDA_PRODUCT_ROWS, CUDA_PRODUCT_TILES);
    product.tile_count = (end_row - first + CUDA_PRODUCT_ROWS - 1) / CUDA_PRODUCT_ROWS;
    const bool e4m3 = matrix->element == KV_ELEMENT_E4M3;
    product.in =
        (const char *)in + (size_t)first * matrix->columns *
                               cuda_element_bytes(e4m3 ? KV_ELEMENT_BF16 : matrix->element);
    product.out = out + (size_t)first * matrix->rows;
    product.accumulate = accumulate;
    kv_status_t status = e4m3 ? quantise_tiles(cuda, &product, &error) : KV_OK;
    if (status == KV_OK) {
        status =
            cuda->products_ops->run(cuda->products, cuda_opaque(cuda->compute), &product, &error);
    }
    cuda_pass_end(cuda, status, &error);
}

/* Single rows into a tile of their own, as the product reads them. */
static kv_status_t fill_tile(cuda_device_t *cuda, const float *in, kv_rows_t rows,
    cuda_product_t *product, kv_error_t *error)
{
    if (product->element == KV_ELEMENT_E4M3) {
        cuda_quantise_t quantise = {};
        quantise.from = in;
        quantise.from_element = KV_ELEMENT_F32;
        quantise.columns = product->columns;
        quantise.rows = rows;
        quantise.to_rows = product->tile_rows;
        return quantise_operand(cuda, &quantise, product, error);
    }
    /* There since the matrix was made, unless growing for e4m3 has come to nothing since. */
    kv_status_t status = cuda_scratch_reserve(cuda, &cuda->rows_in,
        (size_t)product->tile_rows * product->columns * cuda_element_bytes(KV_ELEMENT_BF16), error);
    if (status != KV_OK) {
        return status;
    }
    cuda_rows_in_t rows_in = {};
    rows_in.in = in;
    rows_in.to = cuda->rows_in.memory;
    rows_in.columns = product->columns;
    rows_in.tile_rows = product->tile_rows;
    rows_in.rows = rows;
    product->in = rows_in.to;
    return cuda_rows_in(cuda_opaque(cuda->compute), &rows_in, error);
}

/* Single rows in bf16 or e4m3 go in a tile of their own: it holds what they are rounded to, and
 * what comes out goes to them alone, since behind the last one there may be no room. */
static kv_status_t product_some(cuda_device_t *cuda, const kv_matrix_t *matrix, const float *in,
    kv_rows_t rows, bool accumulate, float *out, kv_error_t *error)
{
    cuda_stream_t *stream = cuda_opaque(cuda->compute);
    cuda_product_t product = product_of(matrix, CUDA_DECODE_ROWS, 1);
    product.tile_count = 1;
    product.out = (float *)cuda->rows_out.memory;
    cuda_rows_out_t rows_out = {};
    rows_out.from = (const float *)cuda->rows_out.memory;
    rows_out.out = out;
    rows_out.columns = matrix->rows;
    rows_out.rows = rows;
    rows_out.accumulate = accumulate;
    kv_status_t status = fill_tile(cuda, in, rows, &product, error);
    if (status == KV_OK) {
        status = cuda->products_ops->run(cuda->products, stream, &product, error);
    }
    return status == KV_OK ? cuda_rows_out(stream, &rows_out, error) : status;
}

/* In f32 nothing is rounded, and nothing goes through a tile. */
static kv_status_t product_f32(cuda_device_t *cuda, const kv_matrix_t *matrix, const float *in,
    kv_rows_t rows, bool accumulate, float *out, kv_error_t *error)
{
    cuda_product_rows_t product = {};
    product.type = KV_WEIGHT_F32;
    product.weights = matrix->weights;
    product.weight_rows = product.out_stride = matrix->rows;
    product.columns = matrix->columns;
    product.in = in;
    product.rows = rows;
    product.out = out;
    product.accumulate = accumulate;
    return cuda_product_rows(cuda_opaque(cuda->compute), &product, error);
}

static void call_product_rows(kv_device_t *device, const kv_matrix_t *matrix, const float *in,
    kv_rows_t rows, bool accumulate, float *out)
{
    cuda_device_t *cuda = cuda_of(device);
    const bool f32 = matrix->element == KV_ELEMENT_F32;
    const uint32_t at_once = f32 ? rows.count : (uint32_t)CUDA_DECODE_ROWS;
    for (uint32_t at = 0; at < rows.count && cuda_pass_begin(cuda); at += at_once) {
        const uint32_t left = rows.count - at;
        kv_rows_t some = rows;
        some.first += at;
        some.count = left < at_once ? left : at_once;
        kv_error_t error;
        cuda_pass_end(cuda,
            f32 ? product_f32(cuda, matrix, in, some, accumulate, out, &error)
                : product_some(cuda, matrix, in, some, accumulate, out, &error),
            &error);
    }
}

/* ---- paged KV ---- */

static cuda_paged_t paged_of(const kv_paged_t *paged)
{
    cuda_paged_t own = {};
    own.shape = *paged->shape;
    own.arena = paged->arena;
    own.layer = paged->layer;
    own.head_count = paged->head_count;
    own.window_tokens = paged->window_tokens;
    return own;
}

static uint32_t last_position(const kv_sequence_t *sequence)
{
    return sequence->position + sequence->row_count - 1;
}

static void call_rotate_store(kv_device_t *device, const kv_paged_t *paged,
    const kv_sequence_t *sequences, uint32_t sequence_count, const float *rotation,
    float *projected)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (!cuda_pass_begin(cuda) || sequence_count == 0) {
        return;
    }
    cuda_rotate_store_t rotate = {};
    kv_status_t status = cuda_upload_sequences(
        cuda, sequences, sequence_count, paged->shape->block_tokens, &rotate.sequences, &error);
    if (status == KV_OK) {
        rotate.paged = paged_of(paged);
        rotate.sequence_count = sequence_count;
        for (uint32_t i = 0; i < sequence_count; i++) {
            rotate.row_count_max = sequences[i].row_count > rotate.row_count_max
                                       ? sequences[i].row_count
                                       : rotate.row_count_max;
        }
        rotate.rotation = rotation;
        rotate.projected = projected;
        status = cuda_rotate_store(cuda_opaque(cuda->compute), &rotate, &error);
    }
    cuda_pass_end(cuda, status, &error);
}

/* The block table of one sequence, which goes by value. */
static kv_status_t upload_one(cuda_device_t *cuda, const kv_sequence_t *sequence,
    uint32_t block_tokens, kv_sequence_t *one_out, kv_error_t *error)
{
    const kv_sequence_t *uploaded;
    kv_status_t status = cuda_upload_sequences(cuda, sequence, 1, block_tokens, &uploaded, error);
    if (status == KV_OK) {
        *one_out = *sequence;
        one_out->slots = (const uint32_t *)(uploaded + 1); /* which follow their only sequence */
    }
    return status;
}

static void call_attend_tiles(kv_device_t *device, const kv_paged_t *paged,
    const kv_sequence_t *sequence, const float *projected, void *out, kv_element_t out_element)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (!cuda_pass_begin(cuda) || sequence->row_count == 0) {
        return;
    }
    cuda_attend_tiles_t attend = {};
    attend.paged = paged_of(paged);
    attend.projected = projected;
    attend.out = out;
    attend.out_element = out_element;
    kv_status_t status =
        upload_one(cuda, sequence, paged->shape->block_tokens, &attend.sequence, &error);
    if (status == KV_OK) {
        attend.partial_bytes =
            cuda_attend_tiles_partial_bytes(&attend.paged, last_position(sequence));
        status = cuda_scratch_reserve(cuda, &cuda->partial, attend.partial_bytes, &error);
        attend.partial = (float *)cuda->partial.memory;
    }
    if (status == KV_OK) {
        status = cuda_attend_tiles(cuda_opaque(cuda->compute), &attend, &error);
    }
    cuda_pass_end(cuda, status, &error);
}

static void call_attend_rows(kv_device_t *device, const kv_paged_t *paged,
    const kv_sequence_t *sequences, uint32_t sequence_count, const float *projected, float *out)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t error;
    if (!cuda_pass_begin(cuda) || sequence_count == 0) {
        return;
    }
    cuda_attend_rows_t attend = {};
    attend.paged = paged_of(paged);
    attend.sequence_count = sequence_count;
    for (uint32_t i = 0; i < sequence_count; i++) {
        const uint32_t position = last_position(&sequences[i]);
        attend.position_max = position > attend.position_max ? position : attend.position_max;
    }
    attend.projected = projected;
    attend.out = out;
    attend.out_element = KV_ELEMENT_F32;
    kv_status_t status = cuda_scratch_reserve(cuda, &cuda->partial,
        cuda_attend_partial_bytes(&attend.paged, sequence_count, attend.position_max), &error);
    if (status == KV_OK) {
        attend.partial = (float *)cuda->partial.memory;
        status = cuda_upload_sequences(
            cuda, sequences, sequence_count, paged->shape->block_tokens, &attend.sequences, &error);
    }
    if (status == KV_OK) {
        status = cuda_attend_rows(cuda_opaque(cuda->compute), &attend, &error);
    }
    cuda_pass_end(cuda, status, &error);
}

/* ---- waiting ---- */

static uint32_t call_mark(kv_device_t *device)
{
    cuda_device_t *cuda = cuda_of(device);
    const uint32_t mark = cuda->mark_count++;
    kv_error_t error;
    if (cuda_pass_begin(cuda)) {
        const cudaError_t code =
            cudaEventRecord(cuda->marks[mark % KV_DEVICE_MARKS_MAX], cuda->compute);
        cuda_pass_end(cuda, cuda_check(cuda, code, "cudaEventRecord", &error), &error);
    }
    return mark;
}

static kv_status_t call_reach(kv_device_t *device, uint32_t mark, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    KV_CHECK(cuda->mark_count - mark <= KV_DEVICE_MARKS_MAX);
    if (cuda_pass_begin(cuda)) {
        kv_error_t own;
        const cudaError_t code = cudaEventSynchronize(cuda->marks[mark % KV_DEVICE_MARKS_MAX]);
        cuda_pass_end(cuda, cuda_check(cuda, code, "cudaEventSynchronize", &own), &own);
    }
    return pass_status(cuda, error);
}

/* The stream is waited for in every case: what the pass named is the caller's again. */
kv_status_t cuda_pass_finish(kv_device_t *device, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_error_t own;
    kv_status_t status = cuda_enter(cuda, &own);
    if (status == KV_OK) {
        status =
            cuda_check(cuda, cudaStreamSynchronize(cuda->compute), "cudaStreamSynchronize", &own);
    }
    cuda_pass_end(cuda, status, &own);
    cuda_uploads_reset(&cuda->uploads);
    status = pass_status(cuda, error);
    cuda->failing = false;
    return status;
}

void cuda_calls_fill(kv_device_ops_t *ops)
{
    ops->embed = call_embed;
    ops->norm = call_norm;
    ops->product_tiles = call_product_tiles;
    ops->product_rows = call_product_rows;
    ops->rotate_store = call_rotate_store;
    ops->attend_tiles = call_attend_tiles;
    ops->attend_rows = call_attend_rows;
    ops->gate = call_gate;
    ops->draw = cuda_pass_draw;
    ops->mark = call_mark;
    ops->reach = call_reach;
    ops->finish = cuda_pass_finish;
}
