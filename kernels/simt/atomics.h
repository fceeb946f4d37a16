/* CUDA's atomic functions; part of simt.h.
 *
 * Threads: from inside a kernel. */
#ifndef KV_KERNELS_SIMT_ATOMICS_H
#define KV_KERNELS_SIMT_ATOMICS_H

#ifdef __cplusplus

#include "kernels/simt/block.h"
#include "kernels/simt/numbers.h"

#define KV_SIMT_ATOMIC_32(name, value_t, operation)                                                \
    static inline value_t name(value_t *address, value_t value)                                    \
    {                                                                                              \
        return (value_t)kv_simt_atomic_32(operation, address, (uint32_t)value, 0);                 \
    }
#define KV_SIMT_ATOMIC_64(name, value_t, operation)                                                \
    static inline value_t name(value_t *address, value_t value)                                    \
    {                                                                                              \
        return (value_t)kv_simt_atomic_64(operation, address, (uint64_t)value, 0);                 \
    }

KV_SIMT_ATOMIC_32(atomicAdd, int, KV_SIMT_ATOMIC_ADD)
KV_SIMT_ATOMIC_32(atomicAdd, unsigned int, KV_SIMT_ATOMIC_ADD)
KV_SIMT_ATOMIC_64(atomicAdd, unsigned long long, KV_SIMT_ATOMIC_ADD)
KV_SIMT_ATOMIC_32(atomicExch, int, KV_SIMT_ATOMIC_EXCHANGE)
KV_SIMT_ATOMIC_32(atomicExch, unsigned int, KV_SIMT_ATOMIC_EXCHANGE)
KV_SIMT_ATOMIC_64(atomicExch, unsigned long long, KV_SIMT_ATOMIC_EXCHANGE)
KV_SIMT_ATOMIC_32(atomicMin, int, KV_SIMT_ATOMIC_MIN_SIGNED)
KV_SIMT_ATOMIC_32(atomicMin, unsigned int, KV_SIMT_ATOMIC_MIN)
KV_SIMT_ATOMIC_64(atomicMin, unsigned long long, KV_SIMT_ATOMIC_MIN)
KV_SIMT_ATOMIC_32(atomicMax, int, KV_SIMT_ATOMIC_MAX_SIGNED)
KV_SIMT_ATOMIC_32(atomicMax, unsigned int, KV_SIMT_ATOMIC_MAX)
KV_SIMT_ATOMIC_64(atomicMax, unsigned long long, KV_SIMT_ATOMIC_MAX)
KV_SIMT_ATOMIC_32(atomicAnd, int, KV_SIMT_ATOMIC_AND)
KV_SIMT_ATOMIC_32(atomicAnd, unsigned int, KV_SIMT_ATOMIC_AND)
KV_SIMT_ATOMIC_32(atomicOr, int, KV_SIMT_ATOMIC_OR)
KV_SIMT_ATOMIC_32(atomicOr, unsigned int, KV_SIMT_ATOMIC_OR)
KV_SIMT_ATOMIC_64(atomicOr, unsigned long long, KV_SIMT_ATOMIC_OR)
KV_SIMT_ATOMIC_32(atomicXor, int, KV_SIMT_ATOMIC_XOR)
KV_SIMT_ATOMIC_32(atomicXor, unsigned int, KV_SIMT_ATOMIC_XOR)
KV_SIMT_ATOMIC_64(atomicXor, unsigned long long, KV_SIMT_ATOMIC_XOR)
#undef KV_SIMT_ATOMIC_32
#undef KV_SIMT_ATOMIC_64

static inline float atomicAdd(float *address, float value)
{
    return kv_float_of_bits(
        kv_simt_atomic_32(KV_SIMT_ATOMIC_ADD_F32, address, kv_float_bits(value), 0));
}

static inline float atomicExch(float *address, float value)
{
    return kv_float_of_bits(
        kv_simt_atomic_32(KV_SIMT_ATOMIC_EXCHANGE, address, kv_float_bits(value), 0));
}

static inline int atomicCAS(int *address, int expected, int value)
{
    return (int)kv_simt_atomic_32(
        KV_SIMT_ATOMIC_COMPARE, address, (uint32_t)value, (uint32_t)expected);
}

static inline unsigned int atomicCAS(
    unsigned int *address, unsigned int expected, unsigned int value)
{
    return kv_simt_atomic_32(KV_SIMT_ATOMIC_COMPARE, address, value, expected);
}

static inline unsigned long long atomicCAS(
    unsigned long long *address, unsigned long long expected, unsigned long long value)
{
    return kv_simt_atomic_64(KV_SIMT_ATOMIC_COMPARE, address, value, expected);
}

#endif

#endif
