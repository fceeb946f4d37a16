/* What code with AMX tiles shares: their one form here, and the transposition that packs them.
 *
 * For files that are compiled for AMX and AVX-512.
 * Threads: tiles belong to the thread that configured them, until it releases them. */
#ifndef KV_KERNELS_CPU_TILES_H
#define KV_KERNELS_CPU_TILES_H

#include <immintrin.h>
#include <stdint.h>

enum { TILE_ROW_BYTES = 64 };

/* All eight tiles: 16 rows of 64 bytes. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config_t;

/* The compiler does not know that tile loads read memory. */
static inline void memory_settled(void)
{
    __asm__ volatile("" ::: "memory");
}

static inline void configure_tiles(void)
{
    tile_config_t config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = TILE_ROW_BYTES;
        config.rows[i] = 16;
    }
    memory_settled();
    _tile_loadconfig(&config);
}

/* Transposes 16 x 16 32-bit elements. */
static inline void transpose(__m512i rows[16])
{
    __m512i a[16], b[16];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        /* Column i of each 4 x 4 group, of rows 0-7 and 8-15. */
        __m512i low_even = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88),
                low_odd = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd),
                high_even = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88),
                high_odd = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(low_even, high_even, 0x88);
        rows[4 + i] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
        rows[8 + i] = _mm512_shuffle_i32x4(low_even, high_even, 0xdd);
        rows[12 + i] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
    }
}

#endif
