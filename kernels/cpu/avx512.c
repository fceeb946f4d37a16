/* The kernels for AVX-512; this file alone is compiled for it, and runs only where it is. */
#include "kernels/cpu/vector.h"

const cpu_kernels_t cpu_kernels_avx512 = {
    .name = "avx512",
    .norm = norm,
    .rotate = rotate,
    .convert = convert,
    .gate = gate,
    .product = product,
    .attend_tile = attend_tile,
    .attend_segment = attend_segment,
};
