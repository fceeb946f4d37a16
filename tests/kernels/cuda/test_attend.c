/* Paged attention against plain C: tiles on tensor cores and without, rows by segments, windows,
 * blocks of every size; what is stored by rotate_store; and that a row's bits do not depend on what
 * is computed with it. */
#include "kernels/cuda/attend.h"
#include "on_device.h"

#include "base/memory.h"
#include "kernels/cpu/dequantise.h"
#include "testing/testing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, LAYER = 1, ROWS_MAX = 256, FILL = 0x5a };

static uint64_t random_state;

static uint32_t below(uint32_t bound)
{
    return (uint32_t)(kv_test_random(&random_state) % bound);
}

static void fill(float *to, size_t count, float width)
{
    for (size_t i = 0; i < count; i++) {
        to[i] = ((float)(kv_test_random(&random_state) >> 40) / 8388608.0f - 1.0f) * width;
    }
}

static const struct {
    uint32_t head_dim, block_tokens, element_bytes, group, kv_heads;
} geometries[] = {
    {64, 16, 2, 3, 2},
    {64, 32, 2, 2, 1},
    {128, 128, 2, 4, 1},
    {128, 64, 2, 1, 2},
    {256, 16, 2, 5, 1},
    {32, 32, 4, 1, 2},
    {96, 64, 2, 2, 1},
    {64, 16, 4, 9, 1},
};

enum { GEOMETRIES = sizeof geometries / sizeof *geometries };

/* An arena whose layer holds random keys and values of one sequence; all else in it is NaN. */
typedef struct {
    cuda_paged_t paged; /* its arena is the device's */
    char *arena;
    size_t arena_bytes, columns, out_columns;
    uint32_t *slots, *device_slots;
    uint32_t tokens, block_count;
    float *projected, *device_projected; /* [ROWS_MAX][columns] */
} scene_t;

/* The host's view of the keys (kind 0) or values (kind 1) of a head. */
static cpu_vectors_t vectors(const scene_t *scene, uint32_t kind, uint32_t kv_head)
{
    const kv_block_shape_t *shape = &scene->paged.shape;
    return (cpu_vectors_t){
        .arena = scene->arena,
        .slots = scene->slots,
        .block_bytes = kv_block_bytes(shape),
        .head_offset = LAYER * kv_block_layer_bytes(shape) +
                       (size_t)(kind * shape->kv_head_count + kv_head) * shape->block_tokens *
                           shape->head_dim * shape->element_bytes,
        .block_tokens = shape->block_tokens,
        .head_dim = shape->head_dim,
        .element_bytes = shape->element_bytes,
    };
}

static kv_element_t kv_element(const scene_t *scene)
{
    return scene->paged.shape.element_bytes == 2 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32;
}

static void fill_arena(scene_t *scene)
{
    const kv_block_shape_t *shape = &scene->paged.shape;
    float line[CPU_HEAD_DIM_MAX];
    for (uint32_t at = 0; at < 2 * shape->kv_head_count * scene->tokens; at++) {
        const uint32_t head = at / scene->tokens;
        const cpu_vectors_t to =
            vectors(scene, head / shape->kv_head_count, head % shape->kv_head_count);
        fill(line, shape->head_dim, 1.5f);
        cpu_kernels_plain.convert(line, shape->head_dim,
            (void *)(uintptr_t)cpu_vector_at(&to, at % scene->tokens), kv_element(scene));
    }
}

/* tokens: known keys; 0: the arena is left empty. */
static void open_scene(scene_t *scene, int geometry, uint32_t capacity, uint32_t tokens)
{
    const uint32_t block_tokens = geometries[geometry].block_tokens;
    *scene = (scene_t){.tokens = tokens, .block_count = (capacity - 1) / block_tokens + 1};
    scene->paged.shape = (kv_block_shape_t){LAYERS, geometries[geometry].kv_heads,
        geometries[geometry].head_dim, block_tokens, geometries[geometry].element_bytes};
    scene->paged.layer = LAYER;
    scene->paged.head_count = geometries[geometry].group * geometries[geometry].kv_heads;
    scene->out_columns = (size_t)scene->paged.head_count * geometries[geometry].head_dim;
    scene->columns = scene->out_columns +
                     (size_t)2 * geometries[geometry].kv_heads * geometries[geometry].head_dim;
    scene->slots = kv_allocate_array(scene->block_count, sizeof(uint32_t));
    for (uint32_t i = 0; i < scene->block_count; i++) {
        /* Any order; the last slot of the arena is nobody's. */
        const uint32_t other = below(i + 1);
        scene->slots[i] = scene->slots[other];
        scene->slots[other] = i;
    }
    scene->arena_bytes = (scene->block_count + 1) * kv_block_bytes(&scene->paged.shape);
    scene->arena = kv_allocate(scene->arena_bytes);
    memset(scene->arena, 0xff, scene->arena_bytes);
    fill_arena(scene);
    scene->projected = kv_allocate_array(ROWS_MAX * scene->columns, sizeof(float));
    fill(scene->projected, ROWS_MAX * scene->columns, 1.0f);
    scene->paged.arena = on_device(scene->arena, scene->arena_bytes, 0);
    scene->device_slots = on_device(scene->slots, scene->block_count * sizeof(uint32_t), 0);
    scene->device_projected =
        on_device(scene->projected, ROWS_MAX * scene->columns * sizeof(float), 0);
}

static void close_scene(scene_t *scene)
{
    off_device(scene->paged.arena);
    off_device(scene->device_slots);
    off_device(scene->device_projected);
    free(scene->arena);
    free(scene->slots);
    free(scene->projected);
}

/* What plain C makes of one row: [heads][head_dim]. */
static void attend_plainly(
    const scene_t *scene, uint32_t position, const float *projected, float *out)
{
    const uint32_t head_dim = scene->paged.shape.head_dim,
                   kv_heads = scene->paged.shape.kv_head_count,
                   group = scene->paged.head_count / kv_heads, window = scene->paged.window_tokens;
    float partial[16 * (CPU_HEAD_DIM_MAX + 2)];
    for (uint32_t kv_head = 0; kv_head < kv_heads; kv_head++) {
        const cpu_attend_segment_t attend = {
            .keys = vectors(scene, 0, kv_head),
            .values = vectors(scene, 1, kv_head),
            .first = window == 0 || position < window ? 0 : position + 1 - window,
            .last = position + 1,
            .group = group,
            .scale = 1.0f / sqrtf((float)head_dim),
            .queries = projected + (size_t)kv_head * group * head_dim,
            .partial = partial,
        };
        cpu_kernels_plain.attend_segment(&attend);
        for (uint32_t i = 0; i < group * head_dim; i++) {
            const float *one = partial + (size_t)(i / head_dim) * (head_dim + 2);
            out[(size_t)kv_head * group * head_dim + i] = one[i % head_dim] / one[head_dim + 1];
        }
    }
}

static void assert_row(const scene_t *scene, const char *what, uint32_t position,
    const float *projected, const void *is, kv_element_t element, float tolerance)
{
    float *wanted = kv_allocate_array(scene->out_columns, sizeof *wanted);
    attend_plainly(scene, position, projected, wanted);
    for (size_t i = 0; i < scene->out_columns; i++) {
        const float own = element == KV_ELEMENT_BF16
                              ? cpu_float_from_bf16(((const uint16_t *)is)[i])
                              : ((const float *)is)[i];
        if (!(fabsf(own - wanted[i]) <= tolerance * (1.0f + fabsf(wanted[i])))) {
            fail_msg("%s, %u dimensions, window %u: position %u, column %zu is %g, plain C says %g "
                     "(seed %llu)",
                what, scene->paged.shape.head_dim, scene->paged.window_tokens, position, i,
                (double)own, (double)wanted[i], (unsigned long long)kv_test_seed());
        }
    }
    free(wanted);
}

typedef kv_status_t (*attend_t)(
    cuda_stream_t *stream, const cuda_attend_tiles_t *attend, kv_error_t *error);

static size_t tiles_partial_bytes(const scene_t *scene, attend_t function, uint32_t position_max)
{
    return function == cuda_attend_tiles
               ? cuda_attend_tiles_partial_bytes(&scene->paged, position_max)
               : cuda_attend_partial_bytes(&scene->paged, CUDA_TILE_ROWS, position_max);
}

/* Rows of out up to the sequence's last, FILL where nothing was written; to be freed. */
static char *attend_tiles(const scene_t *scene, attend_t function, uint32_t position,
    uint32_t row_count, kv_element_t element, size_t partial_bytes)
{
    const uint32_t row = position % CUDA_TILE_ROWS;
    const size_t out_bytes =
        (row + row_count) * scene->out_columns * (element == KV_ELEMENT_BF16 ? 2 : 4);
    char *is = kv_allocate(out_bytes);
    cuda_attend_tiles_t attend = {
        .paged = scene->paged,
        .sequence = {scene->device_slots, position, row, row_count},
        .projected = scene->device_projected,
        .out = on_device(NULL, out_bytes, 0),
        .out_element = element,
        .partial = on_device(NULL, partial_bytes, 0),
        .partial_bytes = partial_bytes,
    };
    assert_int_equal(function(NULL, &attend, NULL), KV_OK);
    from_device(is, attend.out, out_bytes);
    off_device(attend.out);
    off_device(attend.partial);
    return is;
}

static void check_tiles(
    const scene_t *scene, attend_t function, uint32_t position, uint32_t row_count, bool exact)
{
    const kv_element_t element = row_count % 2 == 0 ? KV_ELEMENT_BF16 : KV_ELEMENT_F32;
    const size_t row_bytes = scene->out_columns * (element == KV_ELEMENT_BF16 ? 2 : 4);
    const uint32_t row = position % CUDA_TILE_ROWS;
    const float tolerance = !exact ? 0.03f : element == KV_ELEMENT_BF16 ? 0.01f : 1e-4f;
    const size_t partial_bytes = tiles_partial_bytes(scene, function, position + row_count - 1);
    char *is = attend_tiles(scene, function, position, row_count, element, partial_bytes);
    for (size_t i = 0; i < row * row_bytes; i++) {
        assert_int_equal((uint8_t)is[i], FILL);
    }
    for (uint32_t at = 0; at < row_count; at++) {
        assert_row(scene, "attend_tiles", position + at,
            scene->projected + (row + at) * scene->columns, is + (row + at) * row_bytes, element,
            tolerance);
    }
    /* The last row by itself, in the place that its position gives it: the same bits. */
    const uint32_t last = position + row_count - 1, own = last % CUDA_TILE_ROWS;
    if (own == row + row_count - 1) {
        char *alone = attend_tiles(scene, function, last, 1, element, partial_bytes);
        assert_memory_equal(
            alone + own * row_bytes, is + (row + row_count - 1) * row_bytes, row_bytes);
        free(alone);
    }
    free(is);
}

static const struct {
    uint32_t position, row_count;
} chunks[] = {{0, 1}, {0, 64}, {63, 2}, {64, 1}, {65, 31}, {127, 65}, {30, 100}, {300, 3}};

enum { CHUNKS = sizeof chunks / sizeof *chunks };

static void attention_over_tiles_equals_plain_c(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    for (int geometry = 0; geometry < GEOMETRIES; geometry++) {
        for (int at = 0; at < CHUNKS; at++) {
            if (kv_test_sanitized() && (at + geometry) % 3 != 0) {
                continue;
            }
            scene_t scene;
            const uint32_t tokens = chunks[at].position + chunks[at].row_count;
            open_scene(&scene, geometry, tokens, tokens);
            static const uint32_t windows[] = {0, 1, 0, 40, 0, 64, 0, 100, 0};
            scene.paged.window_tokens = windows[(at + geometry) % 9];
            const bool exact = !cuda_attend_tiles_on_tensor_cores(&scene.paged);
            check_tiles(
                &scene, cuda_attend_tiles, chunks[at].position, chunks[at].row_count, exact);
            if (!exact && at % 4 == 0) {
                check_tiles(&scene, cuda_attend_tiles_plain, chunks[at].position,
                    chunks[at].row_count, true);
            }
            close_scene(&scene);
        }
    }
}

/* A chunk that sees several runs of keys: right, and the same bits with room for one tile. */
static void check_runs(int geometry, uint32_t position, uint32_t row_count, uint32_t window)
{
    const uint32_t tokens = position + row_count, runs = (tokens - 1) / 2048 + 1;
    scene_t scene;
    open_scene(&scene, geometry, tokens, tokens);
    scene.paged.window_tokens = window;
    check_tiles(&scene, cuda_attend_tiles, position, row_count, false);
    const size_t least = (size_t)scene.paged.head_count * runs * CUDA_TILE_ROWS *
                         (scene.paged.shape.head_dim + 2) * sizeof(float),
                 out_bytes = (position % CUDA_TILE_ROWS + row_count) * scene.out_columns * 4;
    char *is = attend_tiles(&scene, cuda_attend_tiles, position, row_count, KV_ELEMENT_F32,
             cuda_attend_tiles_partial_bytes(&scene.paged, tokens - 1)),
         *again =
             attend_tiles(&scene, cuda_attend_tiles, position, row_count, KV_ELEMENT_F32, least);
    assert_memory_equal(is, again, out_bytes);
    cuda_attend_tiles_t little = {
        .paged = scene.paged,
        .sequence = {scene.device_slots, position, position % CUDA_TILE_ROWS, row_count},
        .partial_bytes = least - 1,
    };
    kv_error_t error;
    assert_int_equal(cuda_attend_tiles(NULL, &little, &error), KV_FATAL);
    free(is);
    free(again);
    close_scene(&scene);
}

static void runs_of_keys_are_merged(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    check_runs(1, 2040, 20, 0); /* the first row sees one run, the last two */
    check_runs(1, 2049, 1, 0);
    check_runs(1, 4100, 3, 40); /* a window on both sides of a border: little on one of them */
    check_runs(1, 4170, 3, 40); /* one run, but not the first */
    if (kv_test_sanitized()) {
        return;
    }
    check_runs(1, 4090, 8, 2060); /* a row's window begins in another run than its neighbour's */
    check_runs(1, 4095, 2, 0);
    check_runs(2, 2047, 3, 0);
    check_runs(4, 2111, 2, 64);
}

/* Rows of out, in the order of the sequences; to be freed. */
static float *attend_rows(
    const scene_t *scene, const uint32_t *positions, const uint32_t *rows, uint32_t count)
{
    kv_sequence_t sequences[8];
    uint32_t position_max = 0, row_max = 0;
    for (uint32_t at = 0; at < count; at++) {
        sequences[at] = (kv_sequence_t){scene->device_slots, positions[at], rows[at], 1};
        position_max = positions[at] > position_max ? positions[at] : position_max;
        row_max = rows[at] > row_max ? rows[at] : row_max;
    }
    const size_t out_bytes = (row_max + 1) * scene->out_columns * sizeof(float);
    float *is = kv_allocate(out_bytes);
    cuda_attend_rows_t attend = {
        .paged = scene->paged,
        .sequences = on_device(sequences, count * sizeof *sequences, 0),
        .sequence_count = count,
        .position_max = position_max,
        .projected = scene->device_projected,
        .out = on_device(NULL, out_bytes, 0),
        .out_element = KV_ELEMENT_F32,
        .partial =
            on_device(NULL, cuda_attend_partial_bytes(&scene->paged, count, position_max), 0),
    };
    assert_int_equal(cuda_attend_rows(NULL, &attend, NULL), KV_OK);
    from_device(is, attend.out, out_bytes);
    off_device(attend.out);
    off_device(attend.partial);
    off_device((void *)(uintptr_t)attend.sequences);
    return is;
}

static void attention_over_rows_equals_plain_c(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    enum { ROWS = 6, TOKENS = 600 };
    static const uint32_t positions[ROWS] = {0, 255, 256, 599, 511, 17},
                          rows[ROWS] = {5, 0, 3, 1, 2, 4};
    static const uint32_t windows[] = {0, 1, 100, 256, 300};
    for (int geometry = 0; geometry < GEOMETRIES; geometry++) {
        scene_t scene;
        open_scene(&scene, geometry, TOKENS, TOKENS);
        for (int at = 0; at < 2; at++) {
            scene.paged.window_tokens = at == 0 ? 0 : windows[geometry % 5];
            float *is = attend_rows(&scene, positions, rows, ROWS);
            for (uint32_t i = 0; i < ROWS; i++) {
                const float *own = is + rows[i] * scene.out_columns;
                assert_row(&scene, "attend_rows", positions[i],
                    scene.projected + rows[i] * scene.columns, own, KV_ELEMENT_F32, 1e-4f);
                float *alone = attend_rows(&scene, &positions[i], &rows[i], 1);
                assert_memory_equal(
                    alone + rows[i] * scene.out_columns, own, scene.out_columns * sizeof(float));
                free(alone);
            }
            free(is);
        }
        close_scene(&scene);
    }
}

/* What rotate_store does, in plain C, to the host's projection and arena. */
static void store_plainly(scene_t *scene, const kv_sequence_t *sequence, const float *rotation)
{
    const uint32_t head_dim = scene->paged.shape.head_dim,
                   kv_heads = scene->paged.shape.kv_head_count;
    for (uint32_t at = 0; at < sequence->row_count; at++) {
        const uint32_t position = sequence->position + at;
        float *row = scene->projected + (sequence->row + at) * scene->columns;
        for (size_t i = 0; i < scene->out_columns + (size_t)kv_heads * head_dim; i += head_dim) {
            cpu_kernels_plain.rotate(row + i, rotation + (size_t)position * head_dim, head_dim);
        }
        for (uint32_t head = 0; head < 2 * kv_heads; head++) {
            const cpu_vectors_t to = vectors(scene, head / kv_heads, head % kv_heads);
            cpu_kernels_plain.convert(row + scene->out_columns + (size_t)head * head_dim, head_dim,
                (void *)(uintptr_t)cpu_vector_at(&to, position), kv_element(scene));
        }
    }
}

static float arena_element(const char *at, size_t bytes)
{
    return bytes == 2 ? cpu_float_from_bf16(*(const uint16_t *)at) : *(const float *)at;
}

/* The device's projection and arena are as the host's; this frees them there. */
static void assert_stored(scene_t *scene)
{
    const size_t floats = ROWS_MAX * scene->columns, step = scene->paged.shape.element_bytes;
    char *arena = kv_allocate(scene->arena_bytes);
    float *projected = kv_allocate_array(floats, sizeof(float));
    from_device(arena, scene->paged.arena, scene->arena_bytes);
    off_device(scene->paged.arena);
    from_device(projected, scene->device_projected, floats * sizeof(float));
    off_device(scene->device_projected);
    for (size_t i = 0; i < floats; i++) {
        assert_true(fabsf(projected[i] - scene->projected[i]) <= 4e-6f);
    }
    for (size_t i = 0; i < scene->arena_bytes; i += step) {
        const float is = arena_element(arena + i, step),
                    wanted = arena_element(scene->arena + i, step);
        assert_true(isnan(wanted) ? isnan(is) : fabsf(is - wanted) <= (step == 2 ? 0.02f : 4e-6f));
    }
    free(arena);
    free(projected);
    scene->paged.arena = NULL;
    scene->device_projected = NULL;
}

static void rotated_keys_and_values_are_stored(void **state)
{
    (void)state;
    random_state = kv_test_seed();
    enum { CAPACITY = 200 };
    for (int geometry = 0; geometry < GEOMETRIES; geometry++) {
        scene_t scene;
        open_scene(&scene, geometry, CAPACITY, 0);
        const uint32_t head_dim = geometries[geometry].head_dim;
        float *rotation = kv_allocate_array(CAPACITY * head_dim, sizeof(float));
        fill(rotation, CAPACITY * head_dim, 1.0f);
        /* Of different lengths in one call; the second has no row left. */
        const kv_sequence_t sequences[] = {{scene.device_slots, 3, 7, 30},
            {scene.device_slots, 50, 100, 0}, {scene.device_slots, 127, 50, 1}};
        cuda_rotate_store_t rotate = {
            .paged = scene.paged,
            .sequences = on_device(sequences, sizeof sequences, 0),
            .sequence_count = 3,
            .row_count_max = 30,
            .rotation = on_device(rotation, CAPACITY * head_dim * sizeof(float), 0),
            .projected = scene.device_projected,
        };
        assert_int_equal(cuda_rotate_store(NULL, &rotate, NULL), KV_OK);
        for (int at = 0; at < 3; at++) {
            store_plainly(&scene, &sequences[at], rotation);
        }
        assert_stored(&scene);
        off_device((void *)(uintptr_t)rotate.sequences);
        off_device((void *)(uintptr_t)rotate.rotation);
        free(rotation);
        close_scene(&scene);
    }
}

static void nothing_to_do_is_no_launch(void **state)
{
    (void)state;
    cuda_paged_t paged = {.shape = {1, 1, 64, 16, 2}, .head_count = 1};
    assert_int_equal(cuda_attend_tiles(NULL, &(cuda_attend_tiles_t){.paged = paged}, NULL), KV_OK);
    assert_int_equal(
        cuda_attend_tiles_plain(NULL, &(cuda_attend_tiles_t){.paged = paged}, NULL), KV_OK);
    assert_int_equal(cuda_attend_rows(NULL, &(cuda_attend_rows_t){.paged = paged}, NULL), KV_OK);
    assert_int_equal(cuda_rotate_store(NULL, &(cuda_rotate_store_t){.paged = paged}, NULL), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_over_tiles_equals_plain_c),
        cmocka_unit_test(runs_of_keys_are_merged),
        cmocka_unit_test(attention_over_rows_equals_plain_c),
        cmocka_unit_test(rotated_keys_and_values_are_stored),
        cmocka_unit_test(nothing_to_do_is_no_launch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
