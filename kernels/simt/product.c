#include "kernels/simt/product.h"

#include "base/check.h"
#include "kernels/cpu/isa.h"

#include <pthread.h>

typedef float lanes_t __attribute__((vector_size(KV_PRODUCT_LANES * sizeof(float)), aligned(4)));

enum { LEFT = 2, RIGHT = 4 };

/* By pointer: how a vector is passed depends on the instruction set. */
static inline __attribute__((always_inline)) float total(const lanes_t *lanes)
{
    float sum = 0;
    for (size_t i = 0; i < KV_PRODUCT_LANES; i++) {
        sum += (*lanes)[i];
    }
    return sum;
}

/* Rows of left against rows of right; both counts are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(const float *left, size_t left_count,
    const float *right, size_t right_count, size_t pitch, float *out, size_t out_pitch)
{
    lanes_t sums[LEFT][RIGHT];
    for (size_t i = 0; i < left_count; i++) {
        for (size_t j = 0; j < right_count; j++) {
            sums[i][j] = (lanes_t){0};
        }
    }
    for (size_t k = 0; k < pitch; k += KV_PRODUCT_LANES) {
        lanes_t a[LEFT];
        for (size_t i = 0; i < left_count; i++) {
            a[i] = *(const lanes_t *)(const void *)(left + i * pitch + k);
        }
        for (size_t j = 0; j < right_count; j++) {
            lanes_t b = *(const lanes_t *)(const void *)(right + j * pitch + k);
            for (size_t i = 0; i < left_count; i++) {
                sums[i][j] += a[i] * b;
            }
        }
    }
    for (size_t i = 0; i < left_count; i++) {
        for (size_t j = 0; j < right_count; j++) {
            out[j * out_pitch + i] = total(&sums[i][j]);
        }
    }
}

/* Edges take one row against one: the same sums in the same order. */
static inline __attribute__((always_inline)) void product(const float *left, size_t left_count,
    const float *right, size_t right_count, size_t pitch, float *out, size_t out_pitch)
{
    size_t left_whole = left_count / LEFT * LEFT, right_whole = right_count / RIGHT * RIGHT;
    for (size_t i = 0; i < left_whole; i += LEFT) {
        for (size_t j = 0; j < right_whole; j += RIGHT) {
            tile(left + i * pitch, LEFT, right + j * pitch, RIGHT, pitch, out + j * out_pitch + i,
                out_pitch);
        }
    }
    for (size_t i = 0; i < left_count; i++) {
        for (size_t j = i < left_whole ? right_whole : 0; j < right_count; j++) {
            tile(left + i * pitch, 1, right + j * pitch, 1, pitch, out + j * out_pitch + i,
                out_pitch);
        }
    }
}

static void product_plain(const float *left, size_t left_count, const float *right,
    size_t right_count, size_t pitch, float *out, size_t out_pitch)
{
    product(left, left_count, right, right_count, pitch, out, out_pitch);
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void product_avx2(const float *left, size_t left_count,
    const float *right, size_t right_count, size_t pitch, float *out, size_t out_pitch)
{
    product(left, left_count, right, right_count, pitch, out, out_pitch);
}
#endif

static int order;
static pthread_once_t order_once = PTHREAD_ONCE_INIT;

static void choose_order(void)
{
    cpu_isa_t isa;
    kv_error_t error;
    if (cpu_isa_choose(&isa, &error) != KV_OK) {
        isa = CPU_ISA_PLAIN; /* what KVIST_ISA holds is refused where a device is opened */
    }
    order = isa == CPU_ISA_AMX ? 2 : isa >= CPU_ISA_AVX2 ? 1 : 0;
}

int kv_product_order(void)
{
    pthread_once(&order_once, choose_order);
    return order;
}

void kv_product_f32(const float *left, size_t left_count, const float *right, size_t right_count,
    size_t pitch, float *out, size_t out_pitch)
{
#ifdef __x86_64__
    if (kv_product_order() > 0) {
        product_avx2(left, left_count, right, right_count, pitch, out, out_pitch);
        return;
    }
#endif
    product_plain(left, left_count, right, right_count, pitch, out, out_pitch);
}

bool kv_product_takes_bf16(size_t left_count, size_t depth)
{
    return kv_product_order() == 2 && left_count % 16 == 0 && depth % 32 == 0;
}

#ifndef __x86_64__
void kv_product_pack(
    const uint16_t *rows, size_t pitch, size_t count, size_t depth, kv_product_packed_t *packed_out)
{
    (void)rows;
    (void)pitch;
    *packed_out = (kv_product_packed_t){.count = count, .depth = depth};
    KV_CHECK(!"no instruction for bf16 rows");
}

void kv_product_unpack(kv_product_packed_t *packed)
{
    (void)packed;
}

void kv_product_bf16(const uint16_t *left, size_t pitch, size_t left_count,
    const kv_product_packed_t *packed, float *out)
{
    (void)left;
    (void)pitch;
    (void)left_count;
    (void)packed;
    (void)out;
    KV_CHECK(!"no instruction for bf16 rows");
}
#endif
