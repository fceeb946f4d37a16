/* Each instruction set's kernels against the plain ones, at the sizes where loops begin and end. */
#include "kernels/cpu/dequantise.h"
#include "kernels/cpu/kernels.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static float uniform(void)
{
    return (float)(kv_test_random(&random_state) >> 40) / 8388608.0f - 1.0f;
}

static void fill(float *to, size_t count, float width)
{
    for (size_t i = 0; i < count; i++) {
        to[i] = uniform() * width;
    }
}

typedef void (*check_t)(const cpu_kernels_t *kernels);

/* Runs a check with the kernels of every instruction set that the machine has. */
static void each(check_t check)
{
    for (cpu_isa_t isa = CPU_ISA_AVX2; isa <= cpu_isa_detect(); isa++) {
        random_state = kv_test_seed();
        check(cpu_kernels_for(isa));
    }
}

static const uint32_t widths[] = {32, 64, 96, 160, 576, 1536};

enum { WIDTHS = sizeof widths / sizeof *widths, WIDTH_MAX = 1536 };

static void assert_near(const cpu_kernels_t *kernels, const char *what, const float *is,
    const float *wanted, size_t count, float tolerance)
{
    for (size_t i = 0; i < count; i++) {
        if (!(fabsf(is[i] - wanted[i]) <= tolerance * (1.0f + fabsf(wanted[i])))) {
            fail_msg("%s %s: element %zu of %zu is %g, plain C says %g (seed %llu)", kernels->name,
                what, i, count, (double)is[i], (double)wanted[i],
                (unsigned long long)kv_test_seed());
        }
    }
}

static void assert_near_bf16(const cpu_kernels_t *kernels, const char *what, const uint16_t *is,
    const uint16_t *wanted, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float a = cpu_float_from_bf16(is[i]), b = cpu_float_from_bf16(wanted[i]);
        assert_near(kernels, what, &a, &b, 1, 0.01f);
    }
}

static void check_rows(const cpu_kernels_t *kernels)
{
    static float x[WIDTH_MAX], y[WIDTH_MAX], is[WIDTH_MAX], wanted[WIDTH_MAX];
    static uint16_t is_bf16[WIDTH_MAX], wanted_bf16[WIDTH_MAX];
    for (int at = 0; at < WIDTHS; at++) {
        const uint32_t count = widths[at];
        fill(x, count, 20.0f);
        fill(y, count, 3.0f);
        kernels->norm(x, y, 1e-5f, count, is, KV_ELEMENT_F32);
        cpu_kernels_plain.norm(x, y, 1e-5f, count, wanted, KV_ELEMENT_F32);
        assert_near(kernels, "norm", is, wanted, count, 1e-5f);
        kernels->norm(x, y, 1e-5f, count, is_bf16, KV_ELEMENT_BF16);
        cpu_kernels_plain.norm(x, y, 1e-5f, count, wanted_bf16, KV_ELEMENT_BF16);
        assert_near_bf16(kernels, "norm to bf16", is_bf16, wanted_bf16, count);
        x[0] = 200.0f;
        x[1] = -200.0f;
        x[2] = 0.0f;
        kernels->gate(x, y, count, is, KV_ELEMENT_F32);
        cpu_kernels_plain.gate(x, y, count, wanted, KV_ELEMENT_F32);
        assert_near(kernels, "gate", is, wanted, count, 1e-5f);
        kernels->gate(x, y, count, is_bf16, KV_ELEMENT_BF16);
        cpu_kernels_plain.gate(x, y, count, wanted_bf16, KV_ELEMENT_BF16);
        assert_near_bf16(kernels, "gate to bf16", is_bf16, wanted_bf16, count);
        memcpy(is, x, sizeof is);
        memcpy(wanted, x, sizeof wanted);
        kernels->rotate(is, y, count);
        cpu_kernels_plain.rotate(wanted, y, count);
        assert_near(kernels, "rotate", is, wanted, count, 1e-5f);
    }
}

static void rows_equal_plain_c(void **state)
{
    (void)state;
    each(check_rows);
}

/* Conversion is what KV is stored by: equal to the bit. */
static void check_convert(const cpu_kernels_t *kernels)
{
    static uint16_t is[WIDTH_MAX], wanted[WIDTH_MAX];
    static float x[WIDTH_MAX];
    for (int round = 0; round < 50; round++) {
        for (uint32_t i = 0; i < WIDTH_MAX; i++) {
            x[i] = cpu_float_from_bits((uint32_t)kv_test_random(&random_state));
        }
        const uint32_t special[] = {0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
            0x3f808000, 0x3f818000, 0x3f80ffff, 0x7f7fffff, 1};
        for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
            x[7 * i] = cpu_float_from_bits(special[i]);
        }
        kernels->convert(x, WIDTH_MAX, is, KV_ELEMENT_BF16);
        cpu_kernels_plain.convert(x, WIDTH_MAX, wanted, KV_ELEMENT_BF16);
        assert_memory_equal(is, wanted, sizeof is);
    }
}

static void conversion_equals_plain_c(void **state)
{
    (void)state;
    each(check_convert);
}

/* Random rows in a format. */
static void fill_rows(cpu_rows_format_t format, size_t elements, void *to)
{
    if (format == CPU_ROWS_F32) {
        fill(to, elements, 0.1f);
        return;
    }
    if (format == CPU_ROWS_BF16) {
        for (size_t i = 0; i < elements; i++) {
            ((uint16_t *)to)[i] = cpu_bf16_from_float(uniform() * 0.1f);
        }
        return;
    }
    uint8_t *bytes = to;
    for (size_t i = 0; i < cpu_rows_bytes(format, elements); i++) {
        bytes[i] = (uint8_t)kv_test_random(&random_state);
    }
    for (size_t block = 0; block < elements / CPU_BLOCK; block++) {
        if (format == CPU_ROWS_BLOCK8) {
            ((cpu_block8_t *)to)[block].scale = uniform() * 0.001f;
        } else {
            ((cpu_block4_t *)to)[block].scale = uniform() * 0.01f;
            ((cpu_block4_t *)to)[block].offset = uniform() * 0.1f;
        }
    }
}

static void check_product(const cpu_kernels_t *kernels)
{
    enum { ROWS = 9, OUTPUTS = 37, FORMATS = 4 };
    static float in[ROWS][WIDTH_MAX], is[ROWS][OUTPUTS], wanted[ROWS][OUTPUTS], one[OUTPUTS],
        weights[OUTPUTS * WIDTH_MAX];
    fill(&in[0][0], ROWS * WIDTH_MAX, 1.0f);
    for (int at = 0; at < FORMATS * WIDTHS; at++) {
        const uint32_t columns = widths[at / FORMATS];
        const cpu_rows_format_t format = (cpu_rows_format_t)(at % FORMATS);
        fill_rows(format, (size_t)OUTPUTS * columns, weights);
        for (uint32_t rows = 1; rows <= ROWS; rows++) {
            cpu_rows_product_t product = {
                .format = format,
                .weights = weights,
                .weight_rows = OUTPUTS - rows,
                .columns = columns,
                .in = &in[0][0],
                .in_stride = WIDTH_MAX,
                .out = &is[0][0],
                .out_stride = OUTPUTS,
                .row_count = rows,
                .accumulate = rows % 2 == 0,
            };
            fill(&is[0][0], ROWS * OUTPUTS, 1.0f);
            memcpy(wanted, is, sizeof is);
            memcpy(one, is[rows - 1], sizeof one);
            kernels->product(&product);
            product.out = &wanted[0][0];
            cpu_kernels_plain.product(&product);
            assert_near(kernels, "product", &is[0][0], &wanted[0][0], ROWS * OUTPUTS, 1e-4f);
            /* The last row by itself: the same bits. */
            product.in = in[rows - 1];
            product.out = one;
            product.row_count = 1;
            kernels->product(&product);
            assert_memory_equal(one, is[rows - 1], product.weight_rows * sizeof(float));
        }
    }
}

static void products_equal_plain_c_and_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    each(check_product);
}

/* A paged arena of one layer with random content, NaN outside what was written. */
typedef struct {
    kv_block_shape_t shape;
    uint32_t slots[64];
    char *arena;
    cpu_vectors_t keys, values;
} arena_t;

static void make_arena(arena_t *arena, uint32_t head_dim, uint32_t block_tokens,
    uint32_t element_bytes, uint32_t tokens)
{
    arena->shape = (kv_block_shape_t){1, 1, head_dim, block_tokens, element_bytes};
    const size_t block_bytes = kv_block_bytes(&arena->shape);
    const uint32_t blocks = (tokens + block_tokens - 1) / block_tokens;
    assert_true(blocks <= 64);
    arena->arena = kv_allocate(blocks * block_bytes);
    memset(arena->arena, 0xff, blocks * block_bytes);
    for (uint32_t i = 0; i < blocks; i++) {
        arena->slots[i] = (i * 7 + 3) % blocks;
        for (uint32_t j = 0; j < i; j++) {
            if (arena->slots[j] == arena->slots[i]) {
                arena->slots[i] = (arena->slots[i] + 1) % blocks;
                j = UINT32_MAX; /* again from the first */
            }
        }
    }
    arena->keys = (cpu_vectors_t){.arena = arena->arena,
        .slots = arena->slots,
        .block_bytes = block_bytes,
        .block_tokens = block_tokens,
        .head_dim = head_dim,
        .element_bytes = element_bytes};
    arena->values = arena->keys;
    arena->values.head_offset = (size_t)block_tokens * head_dim * element_bytes;
    float line[CPU_HEAD_DIM_MAX];
    for (uint32_t position = 0; position < tokens; position++) {
        for (int kind = 0; kind < 2; kind++) {
            fill(line, head_dim, kind == 0 ? 1.5f : 1.0f);
            cpu_kernels_plain.convert(line, head_dim,
                (void *)(uintptr_t)cpu_vector_at(
                    kind == 0 ? &arena->keys : &arena->values, position),
                element_bytes == 2 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32);
        }
    }
}

static const struct {
    uint32_t head_dim, block_tokens, element_bytes, group;
} geometries[] = {
    {64, 16, 2, 3}, {32, 32, 4, 1}, {96, 64, 2, 2}, {128, 128, 2, 4}, {256, 16, 4, 5}};

enum { GEOMETRIES = sizeof geometries / sizeof *geometries };

static void check_tile(const cpu_kernels_t *kernels)
{
    enum { GROUP_MAX = 5, TOKENS_MAX = 300 };
    const size_t row = GROUP_MAX * CPU_HEAD_DIM_MAX, count = CPU_QUERY_TILE * row;
    float *queries = kv_allocate_array(count, sizeof(float)),
          *is = kv_allocate_array(count, sizeof(float)),
          *wanted = kv_allocate_array(count, sizeof(float));
    fill(queries, count, 1.0f);
    for (int at = 0; at < GEOMETRIES; at++) {
        const uint32_t head_dim = geometries[at].head_dim, group = geometries[at].group;
        void *scratch =
            aligned_alloc(64, kv_round_up(cpu_attend_scratch_bytes(head_dim, group), 64));
        for (int round = 0; round < 30; round++) {
            const uint32_t tile = (uint32_t)(kv_test_random(&random_state) % 4),
                           first = (uint32_t)(kv_test_random(&random_state) % CPU_QUERY_TILE),
                           rows = 1 + (uint32_t)(kv_test_random(&random_state) %
                                                 (CPU_QUERY_TILE - first));
            arena_t arena;
            make_arena(&arena, head_dim, geometries[at].block_tokens, geometries[at].element_bytes,
                tile * CPU_QUERY_TILE + first + rows);
            cpu_attend_tile_t attend = {
                .keys = arena.keys,
                .values = arena.values,
                .position = tile * CPU_QUERY_TILE,
                .row_first = first,
                .row_count = rows,
                .window_tokens =
                    round < 20 ? 0 : 1 + (uint32_t)(kv_test_random(&random_state) % 200),
                .group = group,
                .scale = 1.0f / sqrtf((float)head_dim),
                .queries = queries,
                .query_stride = row,
                .out = is,
                .out_stride = row,
                .scratch = scratch,
            };
            memset(is, 0, count * sizeof(float));
            memset(wanted, 0, count * sizeof(float));
            kernels->attend_tile(&attend);
            attend.out = wanted;
            cpu_kernels_plain.attend_tile(&attend);
            /* AMX multiplies in bf16. */
            assert_near(kernels, "attend_tile", is, wanted, count,
                strcmp(kernels->name, "amx") == 0 ? 0.03f : 1e-5f);
            /* One row by itself: the same bits. */
            attend.out = wanted;
            attend.row_first = first + rows - 1;
            attend.row_count = 1;
            memset(wanted, 0, count * sizeof(float));
            kernels->attend_tile(&attend);
            assert_memory_equal(is + attend.row_first * row, wanted + attend.row_first * row,
                (size_t)group * head_dim * sizeof(float));
            free(arena.arena);
        }
        free(scratch);
    }
    free(queries);
    free(is);
    free(wanted);
}

static void attention_over_tiles_equals_plain_c(void **state)
{
    (void)state;
    each(check_tile);
}

static void check_segment(const cpu_kernels_t *kernels)
{
    enum { GROUP_MAX = 5, PARTIAL_MAX = GROUP_MAX * (CPU_HEAD_DIM_MAX + 2) };
    static float queries[GROUP_MAX * CPU_HEAD_DIM_MAX], is[PARTIAL_MAX], wanted[PARTIAL_MAX];
    static _Alignas(64) float scratch[8 * CPU_KEY_SEGMENT];
    static const uint32_t lasts[] = {1, 2, 15, 16, 17, 31, 63, 100, 511, 512};
    fill(queries, GROUP_MAX * CPU_HEAD_DIM_MAX, 1.0f);
    for (int at = 0; at < GEOMETRIES; at++) {
        const uint32_t head_dim = geometries[at].head_dim, group = geometries[at].group;
        for (size_t i = 0; i < 2 * (sizeof lasts / sizeof *lasts); i++) {
            const uint32_t last = lasts[i / 2];
            arena_t arena;
            make_arena(
                &arena, head_dim, geometries[at].block_tokens, geometries[at].element_bytes, last);
            cpu_attend_segment_t attend = {
                .keys = arena.keys,
                .values = arena.values,
                .first = i % 2 == 0 ? 0 : (uint32_t)(kv_test_random(&random_state) % last),
                .last = last,
                .group = group,
                .scale = 1.0f / sqrtf((float)head_dim),
                .queries = queries,
                .partial = is,
                .scratch = scratch,
            };
            kernels->attend_segment(&attend);
            attend.partial = wanted;
            cpu_kernels_plain.attend_segment(&attend);
            assert_near(
                kernels, "attend_segment", is, wanted, (size_t)group * (head_dim + 2), 1e-4f);
            free(arena.arena);
        }
    }
}

static void attention_over_segments_equals_plain_c(void **state)
{
    (void)state;
    each(check_segment);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_equal_plain_c),
        cmocka_unit_test(conversion_equals_plain_c),
        cmocka_unit_test(products_equal_plain_c_and_do_not_depend_on_the_batch),
        cmocka_unit_test(attention_over_tiles_equals_plain_c),
        cmocka_unit_test(attention_over_segments_equals_plain_c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
