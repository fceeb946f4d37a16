/* Attention over tiles with AMX: bf16 products with f32 sums; everything else is AVX-512's.
 *
 * For 16 queries of one head at a time: scores^T[64 keys][16 queries] = K x Q^T, the running
 * softmax down the columns (a query is a lane: no sums across lanes), then
 * out^T[head_dim][16 queries] += V^T x weights. K is read where it lies; V^T and Q^T are packed
 * once. A column of a tile product depends on that column alone, so a query's numbers do not depend
 * on which others are computed with it. */
#include "kernels/cpu/vector.h"

#include "kernels/cpu/dequantise.h"
#include "kernels/cpu/tiles.h"

#include <string.h>

enum { COLUMNS = 16, COLUMN_BLOCKS = CPU_QUERY_TILE / COLUMNS };

/* A score that no key has: its weight is zero, without the trouble of infinities. */
static const float NO_SCORE = -1e30f;

/* Below every score that a key has, and far above NO_SCORE: from where a query counts that has seen
 * no key yet, so that those hidden from it have no weight either. */
static const float NO_PEAK = -1e20f;

typedef struct {
    uint16_t *queries;    /* [group][block][head_dim / 2 pairs][16 queries][2] */
    uint16_t *values;     /* [head_dim][64 keys] */
    float *scores;        /* [64 keys][16 queries] */
    uint32_t *weights;    /* [32 pairs of keys][16 queries], two bf16 each */
    float *weighted;      /* [group][block][head_dim][16 queries] */
    float *largest, *sum; /* [group][block][16 queries] */
} amx_scratch_t;

static amx_scratch_t amx_scratch(void *memory, uint32_t head_dim, uint32_t group)
{
    const size_t columns = (size_t)group * CPU_QUERY_TILE;
    amx_scratch_t scratch = {.queries = memory};
    scratch.values = scratch.queries + columns * head_dim;
    scratch.scores = (float *)(scratch.values + (size_t)head_dim * CPU_KEY_TILE);
    scratch.weights = (uint32_t *)(scratch.scores + CPU_KEY_TILE * COLUMNS);
    scratch.weighted = (float *)(scratch.weights + CPU_KEY_TILE / 2 * COLUMNS);
    scratch.largest = scratch.weighted + columns * head_dim;
    scratch.sum = scratch.largest + columns;
    return scratch;
}

/* Q^T of one head's 16 rows in pairs of dimensions; rows that are not computed are zero. */
static void pack_queries(
    const cpu_attend_tile_t *tile, uint32_t head, uint32_t block, uint16_t *packed)
{
    const uint32_t head_dim = tile->keys.head_dim;
    for (uint32_t first = 0; first < head_dim; first += 32) {
        __m512i rows[16];
        for (uint32_t i = 0; i < COLUMNS; i++) {
            const uint32_t row = block * COLUMNS + i;
            uint16_t line[32] = {0};
            if (row >= tile->row_first && row < tile->row_first + tile->row_count) {
                const float *query =
                    tile->queries + row * tile->query_stride + (size_t)head * head_dim + first;
                v_store_bf16(line, v_load(query));
                v_store_bf16(line + 16, v_load(query + 16));
            }
            rows[i] = _mm512_loadu_si512(line);
        }
        transpose(rows);
        for (uint32_t i = 0; i < COLUMNS; i++) {
            _mm512_store_si512(packed + (size_t)(first / 2 + i) * COLUMNS * 2, rows[i]);
        }
    }
}

/* V^T of a key tile; values past last are zero: a slot's old content may be anything. */
static void pack_values(
    const cpu_attend_tile_t *tile, uint32_t first, uint32_t last, uint16_t *packed)
{
    const uint32_t head_dim = tile->keys.head_dim;
    const uint16_t *lines[CPU_KEY_TILE];
    static const uint16_t nothing[CPU_HEAD_DIM_MAX];
    for (uint32_t j = 0; j < CPU_KEY_TILE; j++) {
        lines[j] = first + j < last ? cpu_vector_at(&tile->values, first + j) : nothing;
    }
    for (uint32_t half = 0; half < CPU_KEY_TILE; half += 32) {
        for (uint32_t dimension = 0; dimension < head_dim; dimension += 16) {
            /* rows[i]: dimensions of keys 2 i and 2 i + 1, interleaved. */
            __m512i rows[16];
            for (uint32_t i = 0; i < 16; i++) {
                const __m256i *even = (const __m256i *)(lines[half + 2 * i] + dimension),
                              *odd = (const __m256i *)(lines[half + 2 * i + 1] + dimension);
                __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)),
                        high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(odd));
                rows[i] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            }
            transpose(rows);
            for (uint32_t i = 0; i < 16; i++) {
                _mm512_store_si512(packed + (size_t)(dimension + i) * CPU_KEY_TILE + half, rows[i]);
            }
        }
    }
}

/* scores = K x Q^T for four groups of 16 keys, of which the first groups_valid hold any. */
static void score_keys(const cpu_attend_tile_t *tile, const void *const *keys,
    uint32_t groups_valid, const uint16_t *queries, float *scores)
{
    const size_t stride = (size_t)tile->keys.head_dim * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t step = 0; step < tile->keys.head_dim / 32; step++) {
        const size_t at = (size_t)step * TILE_ROW_BYTES;
        _tile_loadd(4, queries + (size_t)step * 16 * COLUMNS * 2, TILE_ROW_BYTES);
        _tile_loadd(5, (const char *)keys[0] + at, stride);
        _tile_dpbf16ps(0, 5, 4);
        if (groups_valid > 1) {
            _tile_loadd(6, (const char *)keys[1] + at, stride);
            _tile_dpbf16ps(1, 6, 4);
        }
        if (groups_valid > 2) {
            _tile_loadd(7, (const char *)keys[2] + at, stride);
            _tile_dpbf16ps(2, 7, 4);
        }
        if (groups_valid > 3) {
            _tile_loadd(5, (const char *)keys[3] + at, stride);
            _tile_dpbf16ps(3, 5, 4);
        }
    }
    _tile_stored(0, scores, TILE_ROW_BYTES);
    _tile_stored(1, scores + 16 * COLUMNS, TILE_ROW_BYTES);
    _tile_stored(2, scores + 32 * COLUMNS, TILE_ROW_BYTES);
    _tile_stored(3, scores + 48 * COLUMNS, TILE_ROW_BYTES);
    memory_settled();
}

/* 2^a for a <= 0 to about 5e-5; 0 far below. */
static inline __m512 power_of_two(__m512 a)
{
    const __m512 n = _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 f = _mm512_sub_ps(a, n);
    /* ln(2)^k / k! */
    __m512 series =
        _mm512_fmadd_ps(f, _mm512_set1_ps(9.6181291e-3f), _mm512_set1_ps(5.5504109e-2f));
    series = _mm512_fmadd_ps(series, f, _mm512_set1_ps(2.4022651e-1f));
    series = _mm512_fmadd_ps(series, f, _mm512_set1_ps(6.9314718e-1f));
    series = _mm512_fmadd_ps(series, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(series, n);
}

/* Two bf16 beside each other, a in the lower half; for numbers that are not negative. */
static inline __m512i pair_bf16(__m512 a, __m512 b)
{
    const __m512i half = _mm512_set1_epi32(0x8000);
    __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a), half), 16),
            high = _mm512_add_epi32(_mm512_castps_si512(b), half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}

/* Scores to weights, in pairs of keys; moves the columns' state; returns the factor by which what
 * was summed before fades. */
static __m512 soften_columns(
    const float *scores, uint32_t *weights, __m512 factor, float *largest, float *sum)
{
    const __m512 before = _mm512_load_ps(largest);
    __m512 peaks[4];
    for (uint32_t i = 0; i < 4; i++) {
        peaks[i] = _mm512_load_ps(scores + (size_t)i * COLUMNS);
    }
    for (uint32_t j = 4; j < CPU_KEY_TILE; j += 4) {
        for (uint32_t i = 0; i < 4; i++) {
            peaks[i] = _mm512_max_ps(peaks[i], _mm512_load_ps(scores + (size_t)(j + i) * COLUMNS));
        }
    }
    const __m512 peak = _mm512_max_ps(before, _mm512_max_ps(_mm512_max_ps(peaks[0], peaks[1]),
                                                  _mm512_max_ps(peaks[2], peaks[3]))),
                 shift = _mm512_mul_ps(_mm512_max_ps(peak, _mm512_set1_ps(NO_PEAK)), factor);
    __m512 even_sum = _mm512_setzero_ps(), odd_sum = _mm512_setzero_ps();
    for (uint32_t j = 0; j < CPU_KEY_TILE; j += 2) {
        __m512 even = power_of_two(
                   _mm512_fmsub_ps(_mm512_load_ps(scores + (size_t)j * COLUMNS), factor, shift)),
               odd = power_of_two(_mm512_fmsub_ps(
                   _mm512_load_ps(scores + (size_t)(j + 1) * COLUMNS), factor, shift));
        even_sum = _mm512_add_ps(even_sum, even);
        odd_sum = _mm512_add_ps(odd_sum, odd);
        _mm512_store_si512(weights + (size_t)j / 2 * COLUMNS, pair_bf16(even, odd));
    }
    const __m512 fade = power_of_two(_mm512_fmsub_ps(before, factor, shift));
    _mm512_store_ps(largest, peak);
    _mm512_store_ps(
        sum, _mm512_fmadd_ps(_mm512_load_ps(sum), fade, _mm512_add_ps(even_sum, odd_sum)));
    return fade;
}

/* weighted = fade x weighted + V^T x weights. */
static void add_values(const uint16_t *values, const uint32_t *weights, uint32_t head_dim,
    __m512 fade, float *weighted)
{
    if (_mm512_cmp_ps_mask(fade, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) != 0) {
        for (uint32_t i = 0; i < head_dim; i++) {
            float *line = weighted + (size_t)i * COLUMNS;
            _mm512_store_ps(line, _mm512_mul_ps(_mm512_load_ps(line), fade));
        }
    }
    const size_t stride = CPU_KEY_TILE * sizeof(uint16_t);
    memory_settled();
    _tile_loadd(2, weights, TILE_ROW_BYTES);
    _tile_loadd(3, weights + 16 * COLUMNS, TILE_ROW_BYTES);
    for (uint32_t first = 0; first < head_dim; first += 32) {
        const uint16_t *a = values + (size_t)first * CPU_KEY_TILE, *b = a + 16 * CPU_KEY_TILE;
        float *to = weighted + (size_t)first * COLUMNS;
        _tile_loadd(0, to, TILE_ROW_BYTES);
        _tile_loadd(1, to + 16 * COLUMNS, TILE_ROW_BYTES);
        _tile_loadd(4, a, stride);
        _tile_dpbf16ps(0, 4, 2);
        _tile_loadd(5, b, stride);
        _tile_dpbf16ps(1, 5, 2);
        _tile_loadd(6, a + 32, stride);
        _tile_dpbf16ps(0, 6, 3);
        _tile_loadd(7, b + 32, stride);
        _tile_dpbf16ps(1, 7, 3);
        _tile_stored(0, to, TILE_ROW_BYTES);
        _tile_stored(1, to + 16 * COLUMNS, TILE_ROW_BYTES);
    }
    memory_settled();
}

/* Keys that a query may not see get no score: those after its own position. */
static void hide_later_keys(float *scores, uint32_t first_position, uint32_t first_key)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (uint32_t j = 0; j < CPU_KEY_TILE; j++) {
        /* A key at first_key + j is hidden from position first_position + lane below it. */
        const int ahead = (int)(first_key + j) - (int)first_position;
        __mmask16 hidden = _mm512_cmplt_epi32_mask(lanes, _mm512_set1_epi32(ahead));
        float *line = scores + (size_t)j * COLUMNS;
        _mm512_mask_store_ps(line, hidden, _mm512_set1_ps(NO_SCORE));
    }
}

/* And those before its window. */
static void hide_earlier_keys(
    float *scores, uint32_t first_position, uint32_t first_key, uint32_t window_tokens)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (uint32_t j = 0; j < CPU_KEY_TILE; j++) {
        /* A key at first_key + j is hidden from positions of window_tokens behind it on. */
        const int ahead = (int)(first_key + j + window_tokens) - (int)first_position;
        __mmask16 hidden = _mm512_cmpge_epi32_mask(lanes, _mm512_set1_epi32(ahead));
        float *line = scores + (size_t)j * COLUMNS;
        _mm512_mask_store_ps(line, hidden, _mm512_set1_ps(NO_SCORE));
    }
}

/* One key tile for all the tile's queries. */
static void attend_key_tile(const cpu_attend_tile_t *tile, const amx_scratch_t *scratch,
    uint32_t first, uint32_t last, uint32_t block_first, uint32_t block_last)
{
    const uint32_t head_dim = tile->keys.head_dim,
                   all_seen =
                       cpu_first_seen(tile->position + CPU_QUERY_TILE - 1, tile->window_tokens);
    const size_t block_floats = (size_t)head_dim * COLUMNS;
    const __m512 factor = _mm512_set1_ps(tile->scale * 1.44269504f);
    const void *keys[4] = {NULL};
    uint32_t groups_valid = 0;
    for (uint32_t at = first; at < first + CPU_KEY_TILE && at < last; at += 16) {
        keys[groups_valid++] = cpu_vector_at(&tile->keys, at);
    }
    pack_values(tile, first, last, scratch->values);
    for (uint32_t head = 0; head < tile->group; head++) {
        for (uint32_t block = block_first; block < block_last; block++) {
            const uint32_t at = head * COLUMN_BLOCKS + block;
            memory_settled();
            score_keys(
                tile, keys, groups_valid, scratch->queries + at * block_floats, scratch->scores);
            if (first == tile->position) {
                hide_later_keys(scratch->scores, tile->position + block * COLUMNS, first);
            }
            if (first < all_seen) {
                hide_earlier_keys(
                    scratch->scores, tile->position + block * COLUMNS, first, tile->window_tokens);
            }
            const __m512 fade = soften_columns(scratch->scores, scratch->weights, factor,
                scratch->largest + (size_t)at * COLUMNS, scratch->sum + (size_t)at * COLUMNS);
            add_values(scratch->values, scratch->weights, head_dim, fade,
                scratch->weighted + at * block_floats);
        }
    }
}

static void write_block(
    const cpu_attend_tile_t *tile, const amx_scratch_t *scratch, uint32_t head, uint32_t block)
{
    const uint32_t head_dim = tile->keys.head_dim, at = head * COLUMN_BLOCKS + block;
    const float *weighted = scratch->weighted + (size_t)at * head_dim * COLUMNS;
    const __m512 share =
        _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(scratch->sum + (size_t)at * COLUMNS));
    for (uint32_t first = 0; first < head_dim; first += 16) {
        __m512i rows[16];
        for (uint32_t i = 0; i < 16; i++) {
            rows[i] = _mm512_castps_si512(
                _mm512_mul_ps(_mm512_load_ps(weighted + (size_t)(first + i) * COLUMNS), share));
        }
        transpose(rows);
        for (uint32_t i = 0; i < COLUMNS; i++) {
            const uint32_t row = block * COLUMNS + i;
            if (row >= tile->row_first && row < tile->row_first + tile->row_count) {
                store(tile->out,
                    (uint32_t)(row * tile->out_stride + (size_t)head * head_dim + first),
                    _mm512_castsi512_ps(rows[i]), tile->out_element);
            }
        }
    }
}

static void attend_tile_amx(const cpu_attend_tile_t *tile)
{
    if (tile->keys.element_bytes != 2) {
        attend_tile(tile);
        return;
    }
    const uint32_t head_dim = tile->keys.head_dim,
                   last = tile->position + tile->row_first + tile->row_count,
                   block_first = tile->row_first / COLUMNS,
                   block_last = (tile->row_first + tile->row_count - 1) / COLUMNS + 1;
    const amx_scratch_t scratch = amx_scratch(tile->scratch, head_dim, tile->group);
    configure_tiles();
    for (uint32_t head = 0; head < tile->group; head++) {
        for (uint32_t block = block_first; block < block_last; block++) {
            const size_t at = (size_t)head * COLUMN_BLOCKS + block;
            pack_queries(tile, head, block, scratch.queries + at * head_dim * COLUMNS);
            memset(
                scratch.weighted + at * head_dim * COLUMNS, 0, head_dim * COLUMNS * sizeof(float));
            _mm512_store_ps(scratch.largest + at * COLUMNS, _mm512_set1_ps(NO_SCORE));
            _mm512_store_ps(scratch.sum + at * COLUMNS, _mm512_setzero_ps());
        }
    }
    for (uint32_t first = cpu_first_key_tile(tile->position, tile->window_tokens); first < last;
         first += CPU_KEY_TILE) {
        attend_key_tile(tile, &scratch, first, last, block_first, block_last);
    }
    for (uint32_t head = 0; head < tile->group; head++) {
        for (uint32_t block = block_first; block < block_last; block++) {
            write_block(tile, &scratch, head, block);
        }
    }
    _tile_release();
}

const cpu_kernels_t cpu_kernels_amx = {
    .name = "amx",
    .norm = norm,
    .rotate = rotate,
    .convert = convert,
    .gate = gate,
    .product = product,
    .attend_tile = attend_tile_amx,
    .attend_segment = attend_segment,
};
