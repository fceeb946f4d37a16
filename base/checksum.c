#include "base/checksum.h"

#include "base/checksum_kernel.h"

static const kv_checksum_kernel_t *kernel(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        return &kv_checksum_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        return &kv_checksum_avx2;
    }
#endif
    return &kv_checksum_plain;
}

uint64_t kv_checksum(const void *bytes, size_t count)
{
    return kernel()->sum(bytes, count);
}

uint64_t kv_checksum_seeded(const void *bytes, size_t count, uint64_t seed)
{
    return kernel()->sum_seeded(bytes, count, seed);
}

uint64_t kv_checksum_copy(void *to, const void *from, size_t bytes)
{
    return kernel()->copy(to, from, bytes, 0); /* seed 0 is none */
}

uint64_t kv_checksum_copy_seeded(void *to, const void *from, size_t bytes, uint64_t seed)
{
    return kernel()->copy(to, from, bytes, seed);
}

uint64_t kv_checksum_copy_near(void *to, const void *from, size_t bytes, uint64_t seed)
{
    return kernel()->copy_near(to, from, bytes, seed);
}

void kv_checksum_copy_fence(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
