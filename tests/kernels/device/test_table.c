/* Every kernel of a GPU's table against the CPU's, in f32, where loops begin and end. The kernels
 * themselves have tests of their own; here it is what lies between table and launch: block tables,
 * tokens, tiles, rows in a tile, scratch. */
#include "kernels/device/bench.h"

enum { ROWS_MAX = 256, HEADS = 6, KV_HEADS = 2, BLOCK_TOKENS = 16, SLOTS = 40, LAYERS = 2 };

static void norm_and_gate(void **state)
{
    (void)state;
    static const uint32_t COLUMNS[] = {32, 64, 160, 576};
    static const kv_rows_t ROWS[] = {{0, 1}, {3, 5}, {0, 64}, {127, 2}};
    bench_t bench;
    bench_open(&bench);
    for (size_t c = 0; c < sizeof COLUMNS / sizeof *COLUMNS; c++) {
        const uint32_t columns = COLUMNS[c];
        buffer_t x = bench_buffer(&bench, (size_t)ROWS_MAX * 2 * columns, 4),
                 weight = bench_buffer(&bench, columns, 2),
                 out = bench_buffer(&bench, (size_t)ROWS_MAX * columns, 0);
        for (size_t r = 0; r < sizeof ROWS / sizeof *ROWS; r++) {
            const kv_rows_t rows = ROWS[r];
            bench.tested->ops->norm(bench.tested, x.tested, weight.tested, 1e-5f, columns, rows,
                out.tested, KV_ELEMENT_F32);
            bench.cpu->ops->norm(
                bench.cpu, x.cpu, weight.cpu, 1e-5f, columns, rows, out.cpu, KV_ELEMENT_F32);
            bench_finish(&bench);
            bench_compare(&bench, "norm", &out, 0, out.count, 1e-5f);
            bench.tested->ops->gate(
                bench.tested, x.tested, columns, rows, out.tested, KV_ELEMENT_F32);
            bench.cpu->ops->gate(bench.cpu, x.cpu, columns, rows, out.cpu, KV_ELEMENT_F32);
            bench_finish(&bench);
            bench_compare(&bench, "gate", &out, 0, out.count, 1e-5f);
        }
        bench_release(&bench, &x);
        bench_release(&bench, &weight);
        bench_release(&bench, &out);
    }
    bench_close(&bench);
}

typedef struct {
    kv_matrix_t *tested, *cpu;
    float *weights;
} matrices_t;

/* A matrix of two parts. */
static matrices_t make_matrices(bench_t *bench, uint32_t rows, uint32_t columns, bool f32)
{
    matrices_t matrices = {.weights = malloc((size_t)rows * columns * sizeof(float))};
    for (size_t i = 0; i < (size_t)rows * columns; i++) {
        matrices.weights[i] = bench_uniform(bench);
    }
    const uint32_t first = rows / 3 + 1;
    const kv_matrix_params_t params = {
        .parts = {{KV_WEIGHT_F32, first, matrices.weights},
            {KV_WEIGHT_F32, rows - first, matrices.weights + (size_t)first * columns}},
        .part_count = 2,
        .columns = columns,
        .f32 = f32,
        .prefill = true,
        .decode = true,
    };
    kv_error_t error;
    assert_int_equal(
        bench->tested->ops->matrix_create(bench->tested, &params, &matrices.tested, &error), KV_OK);
    assert_int_equal(
        bench->cpu->ops->matrix_create(bench->cpu, &params, &matrices.cpu, &error), KV_OK);
    return matrices;
}

static void free_matrices(bench_t *bench, matrices_t *matrices)
{
    bench->tested->ops->matrix_destroy(bench->tested, matrices->tested);
    bench->cpu->ops->matrix_destroy(bench->cpu, matrices->cpu);
    free(matrices->weights);
}

static void embed_tokens(bench_t *bench, const matrices_t *matrices, uint32_t rows, buffer_t *x)
{
    static const uint32_t TOKENS[] = {4, 0, 30, 30, 7};
    const kv_rows_t where = {2, 5};
    assert_true(rows > 30);
    bench->tested->ops->embed(bench->tested, matrices->tested, TOKENS, where, x->tested);
    bench->cpu->ops->embed(bench->cpu, matrices->cpu, TOKENS, where, x->cpu);
    bench_finish(bench);
    bench_compare(bench, "embed", x, 0, x->count, 0);
}

static void products_of(bench_t *bench, uint32_t rows, uint32_t columns)
{
    static const kv_rows_t WHERE[] = {{0, 1}, {5, 60}, {63, 2}, {100, 130}};
    matrices_t matrices = make_matrices(bench, rows, columns, true);
    buffer_t in = bench_buffer(bench, (size_t)ROWS_MAX * columns, 1),
             out = bench_buffer(bench, (size_t)ROWS_MAX * rows, 1);
    embed_tokens(bench, &matrices, rows, &in);
    for (size_t i = 0; i < sizeof WHERE / sizeof *WHERE; i++) {
        const kv_rows_t where = WHERE[i];
        const bool accumulate = i % 2 == 1;
        bench->tested->ops->product_tiles(
            bench->tested, matrices.tested, in.tested, where, accumulate, out.tested);
        bench->cpu->ops->product_tiles(
            bench->cpu, matrices.cpu, in.cpu, where, accumulate, out.cpu);
        bench_finish(bench);
        bench_compare(bench, "product over tiles", &out, (size_t)where.first * rows,
            (size_t)where.count * rows, 1e-4f);
        bench->tested->ops->product_rows(
            bench->tested, matrices.tested, in.tested, where, accumulate, out.tested);
        bench->cpu->ops->product_rows(bench->cpu, matrices.cpu, in.cpu, where, accumulate, out.cpu);
        bench_finish(bench);
        bench_compare(bench, "product over rows", &out, (size_t)where.first * rows,
            (size_t)where.count * rows, 1e-4f);
        /* Rows outside went their own ways, by tiles of other heights: alike again. */
        bench_release(bench, &out);
        out = bench_buffer(bench, (size_t)ROWS_MAX * rows, 1);
    }
    bench_release(bench, &in);
    bench_release(bench, &out);
    free_matrices(bench, &matrices);
}

static void embedding_and_products(void **state)
{
    (void)state;
    bench_t bench;
    bench_open(&bench);
    products_of(&bench, 33, 32);
    products_of(&bench, 130, 96);
    bench_close(&bench);
}

/* A row's numbers do not depend on the rows beside it: one product of many rows, and each alone. */
static void row_alone_and_together(bool f32)
{
    enum { ROWS = 70, COLUMNS = 64, COUNT = 67 };
    bench_t bench;
    bench_open(&bench);
    matrices_t matrices = make_matrices(&bench, ROWS, COLUMNS, f32);
    buffer_t in = bench_buffer(&bench, COUNT * COLUMNS, 1),
             together = bench_buffer(&bench, COUNT * ROWS, 0),
             alone = bench_buffer(&bench, COUNT * ROWS, 0);
    const kv_device_ops_t *ops = bench.tested->ops;
    ops->product_rows(
        bench.tested, matrices.tested, in.tested, (kv_rows_t){0, COUNT}, false, together.tested);
    for (uint32_t row = 0; row < COUNT; row++) {
        ops->product_rows(
            bench.tested, matrices.tested, in.tested, (kv_rows_t){row, 1}, false, alone.tested);
    }
    bench_finish(&bench);
    static float a[COUNT * ROWS], b[COUNT * ROWS];
    kv_error_t error;
    assert_int_equal(ops->copy_out(bench.tested, a, together.tested, sizeof a, &error), KV_OK);
    assert_int_equal(ops->copy_out(bench.tested, b, alone.tested, sizeof b, &error), KV_OK);
    assert_memory_equal(a, b, sizeof a);
    bench_release(&bench, &in);
    bench_release(&bench, &together);
    bench_release(&bench, &alone);
    free_matrices(&bench, &matrices);
    bench_close(&bench);
}

static void rows_stand_alone(void **state)
{
    (void)state;
    row_alone_and_together(true);
    row_alone_and_together(false);
}

/* Nor do a tile's on the tiles beside it, of which there are more than one batch takes. */
static void tiles_alone_and_together(bool f32)
{
    enum { ROWS = 70, COLUMNS = 64, TILE = 128, TILES = 19, COUNT = TILE * TILES };
    bench_t bench;
    bench_open(&bench);
    const kv_device_ops_t *ops = bench.tested->ops;
    const kv_element_t element = f32 ? KV_ELEMENT_F32 : KV_ELEMENT_BF16;
    matrices_t matrices = make_matrices(&bench, ROWS, COLUMNS, f32);
    buffer_t x = bench_buffer(&bench, (size_t)COUNT * COLUMNS, 1),
             weight = bench_buffer(&bench, COLUMNS, 1),
             in = bench_buffer(&bench, (size_t)COUNT * COLUMNS, 0),
             together = bench_buffer(&bench, (size_t)COUNT * ROWS, 0),
             alone = bench_buffer(&bench, (size_t)COUNT * ROWS, 0);
    const kv_rows_t all = {0, COUNT};
    ops->norm(bench.tested, x.tested, weight.tested, 1e-5f, COLUMNS, all, in.tested, element);
    for (int twice = 0; twice < 2; twice++) { /* the second time it is added */
        ops->product_tiles(
            bench.tested, matrices.tested, in.tested, all, twice == 1, together.tested);
        for (uint32_t tile = 0; tile < TILES; tile++) {
            ops->product_tiles(bench.tested, matrices.tested, in.tested,
                (kv_rows_t){tile * TILE + tile % 3, 1}, twice == 1, alone.tested);
        }
    }
    bench_finish(&bench);
    static float a[COUNT * ROWS], b[COUNT * ROWS];
    kv_error_t error;
    assert_int_equal(ops->copy_out(bench.tested, a, together.tested, sizeof a, &error), KV_OK);
    assert_int_equal(ops->copy_out(bench.tested, b, alone.tested, sizeof b, &error), KV_OK);
    assert_memory_equal(a, b, sizeof a);
    buffer_t *const buffers[] = {&x, &weight, &in, &together, &alone};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        bench_release(&bench, buffers[i]);
    }
    free_matrices(&bench, &matrices);
    bench_close(&bench);
}

static void tiles_stand_alone(void **state)
{
    (void)state;
    tiles_alone_and_together(true);
    tiles_alone_and_together(false);
}

/* ---- paged KV ---- */

typedef struct {
    bench_t bench;
    kv_block_shape_t shape;
    uint32_t slots[SLOTS]; /* a block table, not in order */
    uint32_t window_tokens;
    buffer_t arena, rotation, projected, out;
} paged_bench_t;

static kv_paged_t paged_on(const paged_bench_t *paged, bool tested)
{
    return (kv_paged_t){
        .shape = &paged->shape,
        .arena = tested ? paged->arena.tested : paged->arena.cpu,
        .layer = 1,
        .head_count = HEADS,
        .window_tokens = paged->window_tokens,
    };
}

static void open_paged(paged_bench_t *paged, uint32_t head_dim)
{
    memset(paged, 0, sizeof *paged);
    bench_open(&paged->bench);
    paged->shape = (kv_block_shape_t){LAYERS, KV_HEADS, head_dim, BLOCK_TOKENS, 4};
    for (uint32_t i = 0; i < SLOTS; i++) {
        paged->slots[i] = (i * 7 + 3) % SLOTS;
    }
    const size_t columns = (size_t)(HEADS + 2 * KV_HEADS) * head_dim;
    bench_t *bench = &paged->bench;
    paged->arena = bench_buffer(bench, SLOTS * kv_block_bytes(&paged->shape) / sizeof(float), 1);
    paged->rotation = bench_buffer(bench, (size_t)SLOTS * BLOCK_TOKENS * head_dim, 1);
    paged->projected = bench_buffer(bench, ROWS_MAX * columns, 1);
    paged->out = bench_buffer(bench, (size_t)ROWS_MAX * HEADS * head_dim, 0);
}

static void close_paged(paged_bench_t *paged)
{
    bench_release(&paged->bench, &paged->arena);
    bench_release(&paged->bench, &paged->rotation);
    bench_release(&paged->bench, &paged->projected);
    bench_release(&paged->bench, &paged->out);
    bench_close(&paged->bench);
}

static void store_sequence(paged_bench_t *paged, const kv_sequence_t *sequence)
{
    const kv_paged_t tested = paged_on(paged, true), cpu = paged_on(paged, false);
    bench_t *bench = &paged->bench;
    bench->tested->ops->rotate_store(
        bench->tested, &tested, sequence, 1, paged->rotation.tested, paged->projected.tested);
    bench->cpu->ops->rotate_store(
        bench->cpu, &cpu, sequence, 1, paged->rotation.cpu, paged->projected.cpu);
    bench_finish(bench);
    bench_compare(bench, "rotated", &paged->projected, 0, paged->projected.count, 1e-5f);
    bench_compare(bench, "stored", &paged->arena, 0, paged->arena.count, 1e-5f);
}

static void attend_chunk(paged_bench_t *paged, const kv_sequence_t *sequence)
{
    const kv_paged_t tested = paged_on(paged, true), cpu = paged_on(paged, false);
    bench_t *bench = &paged->bench;
    const size_t columns = (size_t)HEADS * paged->shape.head_dim;
    store_sequence(paged, sequence);
    bench->tested->ops->attend_tiles(bench->tested, &tested, sequence, paged->projected.tested,
        paged->out.tested, KV_ELEMENT_F32);
    bench->cpu->ops->attend_tiles(
        bench->cpu, &cpu, sequence, paged->projected.cpu, paged->out.cpu, KV_ELEMENT_F32);
    bench_finish(bench);
    bench_compare(bench, "attention over tiles", &paged->out, sequence->row * columns,
        sequence->row_count * columns, 1e-4f);
}

static void attend_batch(paged_bench_t *paged)
{
    const kv_sequence_t rows[] = {{paged->slots, 0, 0, 1}, {paged->slots + 1, 15, 1, 1},
        {paged->slots, 16, 2, 1}, {paged->slots + 2, 511, 3, 1}, {paged->slots, 600, 4, 1}};
    enum { COUNT = 5 };
    const kv_paged_t tested = paged_on(paged, true), cpu = paged_on(paged, false);
    bench_t *bench = &paged->bench;
    bench->tested->ops->attend_rows(
        bench->tested, &tested, rows, COUNT, paged->projected.tested, paged->out.tested);
    bench->cpu->ops->attend_rows(
        bench->cpu, &cpu, rows, COUNT, paged->projected.cpu, paged->out.cpu);
    bench_finish(bench);
    bench_compare(bench, "attention over rows", &paged->out, 0,
        (size_t)COUNT * HEADS * paged->shape.head_dim, 1e-4f);
}

static void paged_attention(void **state)
{
    (void)state;
    static const uint32_t HEAD_DIMS[] = {32, 64, 128}, WINDOWS[] = {0, 40, 300};
    for (size_t i = 0; i < sizeof HEAD_DIMS / sizeof *HEAD_DIMS; i++) {
        paged_bench_t paged;
        open_paged(&paged, HEAD_DIMS[i]);
        paged.window_tokens = WINDOWS[i];
        attend_chunk(&paged, &(kv_sequence_t){paged.slots, 0, 0, 1});
        attend_chunk(&paged, &(kv_sequence_t){paged.slots, 1, 1, 70});
        attend_chunk(&paged, &(kv_sequence_t){paged.slots, 128 + 17, 17, 60});
        attend_batch(&paged);
        close_paged(&paged);
    }
}

/* ---- marks ---- */

static void marks_are_reached_in_order(void **state)
{
    (void)state;
    enum { COLUMNS = 64, ROUNDS = 20 };
    bench_t bench;
    bench_open(&bench);
    buffer_t x = bench_buffer(&bench, COLUMNS, 1), weight = bench_buffer(&bench, COLUMNS, 1);
    const kv_device_ops_t *ops = bench.tested->ops;
    uint32_t marks[ROUNDS];
    kv_error_t error;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        ops->norm(bench.tested, x.tested, weight.tested, 1, COLUMNS, (kv_rows_t){0, 1}, x.tested,
            KV_ELEMENT_F32);
        marks[i] = ops->mark(bench.tested);
        if (i >= KV_DEVICE_MARKS_MAX - 1) {
            assert_int_equal(
                ops->reach(bench.tested, marks[i - (KV_DEVICE_MARKS_MAX - 1)], &error), KV_OK);
        }
    }
    bench_finish(&bench);
    bench_release(&bench, &x);
    bench_release(&bench, &weight);
    bench_close(&bench);
}

/* ---- drawing ---- */

/* Greedy takes the largest, of equals the lowest; a draw depends on its row alone. */
static void tokens_are_drawn(void **state)
{
    (void)state;
    enum { VOCABULARY = 1000, COUNT = 5 };
    bench_t bench;
    bench_open(&bench);
    const kv_device_ops_t *ops = bench.tested->ops;
    buffer_t logits = bench_buffer(&bench, (size_t)COUNT * VOCABULARY, 3);
    kv_error_t error;
    kv_draw_t draws[COUNT];
    uint32_t tokens[COUNT], again[1];
    float logprobs[COUNT], again_logprob[1];
    for (uint32_t i = 0; i < COUNT; i++) {
        draws[i] = (kv_draw_t){.temperature = i < 2 ? 0.0f : 0.8f,
            .top_k = i == 3 ? 40 : 0,
            .top_p = i == 4 ? 0.7f : 1.0f,
            .seed = 11,
            .position = 100 + i};
    }
    assert_int_equal(
        ops->draw(bench.tested, logits.tested, VOCABULARY, draws, COUNT, tokens, logprobs, &error),
        KV_OK);
    for (uint32_t i = 0; i < COUNT; i++) {
        const float *row = logits.cpu + (size_t)i * VOCABULARY;
        uint32_t best = 0;
        double sum = 0;
        for (uint32_t token = 0; token < VOCABULARY; token++) {
            best = row[token] > row[best] ? token : best;
            sum += exp((double)row[token]);
        }
        assert_true(tokens[i] < VOCABULARY);
        assert_true(i >= 2 || tokens[i] == best);
        assert_true(fabs((double)logprobs[i] - ((double)row[tokens[i]] - log(sum))) < 1e-4);
        assert_int_equal(ops->draw(bench.tested, logits.tested + (size_t)i * VOCABULARY, VOCABULARY,
                             &draws[i], 1, again, again_logprob, &error),
            KV_OK);
        assert_int_equal(again[0], tokens[i]);
    }
    bench_release(&bench, &logits);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_and_gate),
        cmocka_unit_test(embedding_and_products),
        cmocka_unit_test(rows_stand_alone),
        cmocka_unit_test(tiles_stand_alone),
        cmocka_unit_test(paged_attention),
        cmocka_unit_test(tokens_are_drawn),
        cmocka_unit_test(marks_are_reached_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
