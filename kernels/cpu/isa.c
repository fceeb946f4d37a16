#include "kernels/cpu/isa.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux hands out the 8 KiB of tile state only to processes that ask (arch_prctl(2)). */
static bool amx_permitted(void)
{
    enum { ARCH_REQUEST_XCOMP_PERMISSION = 0x1023, XFEATURE_TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQUEST_XCOMP_PERMISSION, XFEATURE_TILE_DATA) == 0;
}

static bool amx_present(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return false;
    }
    bool tile = edx & 1u << 24, tile_bf16 = edx & 1u << 22;
    if (!tile || !tile_bf16 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
        return false;
    }
    return eax & 1u << 5; /* AVX512_BF16 */
}

cpu_isa_t cpu_isa_detect(void)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        return CPU_ISA_PLAIN;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return CPU_ISA_AVX2;
    }
    return amx_present() && amx_permitted() ? CPU_ISA_AMX : CPU_ISA_AVX512;
}

#else

cpu_isa_t cpu_isa_detect(void)
{
    return CPU_ISA_PLAIN;
}

#endif

kv_status_t cpu_isa_choose(cpu_isa_t *isa_out, kv_error_t *error)
{
    static const char *const names[] = {"plain", "avx2", "avx512", "amx"};
    cpu_isa_t best = cpu_isa_detect();
    const char *cap = getenv("KVIST_ISA");
    if (cap == NULL || cap[0] == '\0') {
        *isa_out = best;
        return KV_OK;
    }
    for (cpu_isa_t isa = CPU_ISA_PLAIN; isa <= CPU_ISA_AMX; isa++) {
        if (strcmp(cap, names[isa]) == 0) {
            *isa_out = isa < best ? isa : best;
            return KV_OK;
        }
    }
    return kv_fail(
        error, KV_INVALID, "KVIST_ISA is \"%s\"; it takes plain, avx2, avx512 or amx", cap);
}
