/* Products of bf16 rows by AMX: C (16 left x 16 right) += A x B in steps of 32 elements. Rows of
 * the left side are A where they lie; the right side's are packed once, pairs of elements of 16
 * rows together, and serve every panel of the left. A result depends on its two rows alone. */
#include "kernels/simt/product.h"

#ifdef __x86_64__

#include "base/check.h"
#include "kernels/cpu/tiles.h"

#include <stdlib.h>
#include <string.h>

enum { SIDE = 16, STEP = 32, TILE = SIDE * STEP, HALVES = KV_PRODUCT_PANEL / SIDE };

/* Sixteen rows, or fewer and zeros; true if there is anything but zeros. */
static bool pack_block(
    const uint16_t *rows, size_t pitch, size_t count, size_t depth, uint16_t *packed)
{
    __m512i seen = _mm512_setzero_si512();
    for (size_t k = 0; k < depth; k += STEP) {
        __m512i lines[SIDE];
        for (size_t i = 0; i < SIDE; i++) {
            lines[i] =
                i < count ? _mm512_loadu_si512(rows + i * pitch + k) : _mm512_setzero_si512();
            seen = _mm512_or_si512(seen, lines[i]);
        }
        transpose(lines);
        for (size_t i = 0; i < SIDE; i++) {
            _mm512_store_si512(packed + k * SIDE + i * STEP, lines[i]);
        }
    }
    return _mm512_test_epi16_mask(seen, _mm512_set1_epi16(0x7fff)) != 0;
}

void kv_product_pack(
    const uint16_t *rows, size_t pitch, size_t count, size_t depth, kv_product_packed_t *packed_out)
{
    size_t block_count = (count + SIDE - 1) / SIDE;
    void *tiles = NULL;
    KV_CHECK(posix_memalign(&tiles, 64, (block_count + 1) * SIDE * depth * sizeof(uint16_t)) == 0);
    kv_product_packed_t packed = {.tiles = tiles, .count = count, .depth = depth};
    packed.filled = calloc(block_count + 1, sizeof *packed.filled);
    KV_CHECK(packed.filled != NULL);
    for (size_t block = 0; block < block_count; block++) {
        size_t first = block * SIDE, rest = count - first;
        packed.filled[block] = pack_block(rows + first * pitch, pitch, rest < SIDE ? rest : SIDE,
            depth, packed.tiles + first * depth);
    }
    *packed_out = packed;
}

void kv_product_unpack(kv_product_packed_t *packed)
{
    free(packed->tiles);
    free(packed->filled);
}

/* sums[block][half][left][right] of two blocks of the right side and both halves of the panel. */
static void multiply_two(const uint16_t *const left[HALVES], size_t pitch,
    const uint16_t *const right[2], size_t depth, float sums[2][HALVES][SIDE * SIDE])
{
    size_t stride = pitch * sizeof(uint16_t);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t k = 0; k < depth; k += STEP) {
        _tile_loadd(4, left[0] + k, stride);
        _tile_loadd(6, right[0] + k * SIDE, TILE_ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, left[1] + k, stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, right[1] + k * SIDE, TILE_ROW_BYTES);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0][0], TILE_ROW_BYTES);
    _tile_stored(1, sums[0][1], TILE_ROW_BYTES);
    _tile_stored(2, sums[1][0], TILE_ROW_BYTES);
    _tile_stored(3, sums[1][1], TILE_ROW_BYTES);
}

static void multiply_one(const uint16_t *const left[HALVES], size_t pitch, const uint16_t *right,
    size_t depth, float sums[HALVES][SIDE * SIDE])
{
    size_t stride = pitch * sizeof(uint16_t);
    _tile_zero(0);
    _tile_zero(1);
    for (size_t k = 0; k < depth; k += STEP) {
        _tile_loadd(6, right + k * SIDE, TILE_ROW_BYTES);
        _tile_loadd(4, left[0] + k, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, left[1] + k, stride);
        _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, sums[0], TILE_ROW_BYTES);
    _tile_stored(1, sums[1], TILE_ROW_BYTES);
}

/* out[right][left] = the sums of one block, turned. */
static void place(
    float sums[HALVES][SIDE * SIDE], size_t left_count, size_t right_count, float *out)
{
    for (size_t half = 0; half * SIDE < left_count; half++) {
        __m512i lines[SIDE];
        for (size_t i = 0; i < SIDE; i++) {
            lines[i] = _mm512_loadu_si512(sums[half] + i * SIDE);
        }
        transpose(lines);
        for (size_t j = 0; j < right_count; j++) {
            _mm512_storeu_si512(out + j * KV_PRODUCT_PANEL + half * SIDE, lines[j]);
        }
    }
}

void kv_product_bf16(const uint16_t *left, size_t pitch, size_t left_count,
    const kv_product_packed_t *packed, float *out)
{
    _Alignas(64) float sums[2][HALVES][SIDE * SIDE];
    const uint16_t *halves[HALVES] = {left, left_count > SIDE ? left + SIDE * pitch : left};
    size_t found[2], found_count = 0, depth = packed->depth;
    configure_tiles();
    for (size_t first = 0; first < packed->count; first += SIDE) {
        if (!packed->filled[first / SIDE]) {
            size_t rest = packed->count - first;
            memset(out + first * KV_PRODUCT_PANEL, 0,
                (rest < SIDE ? rest : SIDE) * KV_PRODUCT_PANEL * sizeof *out);
        } else {
            found[found_count++] = first;
        }
        bool last = first + SIDE >= packed->count;
        if (found_count == 2) {
            const uint16_t *const right[2] = {
                packed->tiles + found[0] * depth, packed->tiles + found[1] * depth};
            multiply_two(halves, pitch, right, depth, sums);
        } else if (found_count == 1 && last) {
            multiply_one(halves, pitch, packed->tiles + found[0] * depth, depth, sums[0]);
        } else {
            continue;
        }
        memory_settled();
        for (size_t i = 0; i < found_count; i++) {
            size_t rest = packed->count - found[i];
            place(
                sums[i], left_count, rest < SIDE ? rest : SIDE, out + found[i] * KV_PRODUCT_PANEL);
        }
        found_count = 0;
    }
    _tile_release();
}

#endif
