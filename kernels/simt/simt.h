/* CUDA C++ for a C++ compiler: the words of the language and the functions of the device, as far as
 * Kvist's kernels use them. A source that includes kernels/cuda/runtime.h compiles with nvcc, or
 * with g++ or clang++ and KVIST_SIMT through this header, and then runs on the CPU (block.h).
 *
 * Names, arguments and results are CUDA's; what they do is said in its programming guide. Where a
 * GPU leaves something undefined, the call is a finding (finding.h).
 *
 * Static shared memory is static memory here: one block runs at a time. No cooperative groups, no
 * textures, no clusters, no __activemask(): the set of active lanes is no promise on a GPU either.
 * Functions that round are IEEE's here; the device's fast ones (__expf, rsqrtf) differ by what
 * their documentation says, which a kernel's tolerance allows for.
 *
 * Threads: device functions only from inside a kernel. */
#ifndef KV_KERNELS_SIMT_SIMT_H
#define KV_KERNELS_SIMT_SIMT_H

#ifndef __cplusplus
#error "simt.h is for CUDA sources that a C++ compiler builds; C includes kernels/simt/api.h"
#endif

#include "kernels/simt/api.h"
#include "kernels/simt/block.h"
#include "kernels/simt/cublaslt.h"
#include "kernels/simt/numbers.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __shared__ static
#define __managed__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

/* Vector types, aligned as on the device. */
#define KV_SIMT_VECTORS(name, element)                                                             \
    struct name##1                                                                                 \
    {                                                                                              \
        element x;                                                                                 \
    };                                                                                             \
    struct alignas(2 * sizeof(element)) name##2                                                    \
    {                                                                                              \
        element x, y;                                                                              \
    };                                                                                             \
    struct name##3                                                                                 \
    {                                                                                              \
        element x, y, z;                                                                           \
    };                                                                                             \
    struct alignas(4 * sizeof(element) > 16 ? 16 : 4 * sizeof(element)) name##4                    \
    {                                                                                              \
        element x, y, z, w;                                                                        \
    };                                                                                             \
    static inline name##2 make_##name##2(element x, element y)                                     \
    {                                                                                              \
        return {x, y};                                                                             \
    }                                                                                              \
    static inline name##3 make_##name##3(element x, element y, element z)                          \
    {                                                                                              \
        return {x, y, z};                                                                          \
    }                                                                                              \
    static inline name##4 make_##name##4(element x, element y, element z, element w)               \
    {                                                                                              \
        return {x, y, z, w};                                                                       \
    }

KV_SIMT_VECTORS(char, signed char)
KV_SIMT_VECTORS(uchar, unsigned char)
KV_SIMT_VECTORS(short, short)
KV_SIMT_VECTORS(ushort, unsigned short)
KV_SIMT_VECTORS(int, int)
KV_SIMT_VECTORS(uint, unsigned int)
KV_SIMT_VECTORS(longlong, long long)
KV_SIMT_VECTORS(ulonglong, unsigned long long)
KV_SIMT_VECTORS(float, float)
KV_SIMT_VECTORS(double, double)
#undef KV_SIMT_VECTORS

struct dim3 {
    unsigned int x, y, z;

    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
        : x(x_), y(y_), z(z_)
    {
    }
};

#define threadIdx (kv_simt_self()->thread)
#define blockIdx (kv_simt_self()->block)
#define blockDim (kv_simt_self()->block_dim)
#define gridDim (kv_simt_self()->grid_dim)
#define warpSize 32

/* Each kernel that is launched anywhere, variants of templates apart (launched.h). */
template <auto launched> static inline const char *kv_simt_name_of(void)
{
    return __PRETTY_FUNCTION__;
}

template <auto launched> struct kv_simt_known {
    static kv_simt_kernel_t kernel;
};

template <auto launched>
kv_simt_kernel_t kv_simt_known<launched>::kernel = kv_simt_kernel_note(
    &kv_simt_known<launched>::kernel, kv_simt_name_of<launched>());

/* Launches. The arguments are converted and copied before the call returns, as CUDA does. */
template <auto launched, typename... parameters_t, typename... arguments_t>
static inline cudaError_t kv_simt_launch(const char *name, void (*kernel)(parameters_t...),
    dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, arguments_t... arguments)
{
    auto body = [=]() { kernel(static_cast<parameters_t>(arguments)...); };
    static_assert(__is_trivially_copyable(decltype(body)), "a kernel's arguments are plain data");
    kv_simt_launch_t launch = {};
    launch.name = name;
    launch.known = &kv_simt_known<launched>::kernel;
    launch.function = reinterpret_cast<const void *>(kernel);
    launch.run = [](void *of) { (*static_cast<decltype(body) *>(of))(); };
    launch.body = &body;
    launch.body_bytes = sizeof body;
    launch.grid = {grid.x, grid.y, grid.z};
    launch.block = {block.x, block.y, block.z};
    launch.shared_bytes = shared_bytes;
    return kv_simt_enqueue(&launch, stream);
}

#define KV_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
    kv_simt_launch<(kernel)>(#kernel, kernel, grid, block, shared_bytes, stream, ##__VA_ARGS__)

#define KV_SHARED(type, name) type *const name = static_cast<type *>(kv_simt_shared())

/* The block's barrier, and the place that a finding names: the caller's own. */
#define KV_SIMT_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(KV_SIMT_PLACE)
{
    (void)kv_simt_barrier(KV_SIMT_COUNT, 0, file, line);
}

static inline int __syncthreads_count(int predicate, KV_SIMT_PLACE)
{
    return kv_simt_barrier(KV_SIMT_COUNT, predicate, file, line);
}

static inline int __syncthreads_and(int predicate, KV_SIMT_PLACE)
{
    return kv_simt_barrier(KV_SIMT_AND, predicate, file, line);
}

static inline int __syncthreads_or(int predicate, KV_SIMT_PLACE)
{
    return kv_simt_barrier(KV_SIMT_OR, predicate, file, line);
}

/* Fences order what one thread does; lanes here see each other's writes at once. */
static inline void __threadfence_block(void)
{
}

static inline void __threadfence(void)
{
}

static inline void __threadfence_system(void)
{
}

/* Warps. */
static inline void __syncwarp(unsigned int mask = 0xffffffffu, KV_SIMT_PLACE)
{
    (void)kv_simt_together(KV_SIMT_SYNC, mask, 0, 0, 32, file, line);
}

template <typename value_t>
static inline value_t kv_simt_shuffle(kv_simt_collective_t operation, unsigned int mask,
    value_t value, unsigned int argument, int width, const char *file, int line)
{
    static_assert(sizeof value <= sizeof(uint64_t), "shuffles exchange up to 64 bits");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = kv_simt_together(operation, mask, bits, argument, (uint32_t)width, file, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define KV_SIMT_SHUFFLE_FUNCTION(name, operation, argument_t)                                      \
    template <typename value_t>                                                                    \
    static inline value_t name(                                                                    \
        unsigned int mask, value_t value, argument_t argument, int width = 32, KV_SIMT_PLACE)      \
    {                                                                                              \
        return kv_simt_shuffle(operation, mask, value, (unsigned int)argument, width, file, line); \
    }

KV_SIMT_SHUFFLE_FUNCTION(__shfl_sync, KV_SIMT_SHUFFLE, int)
KV_SIMT_SHUFFLE_FUNCTION(__shfl_up_sync, KV_SIMT_SHUFFLE_UP, unsigned int)
KV_SIMT_SHUFFLE_FUNCTION(__shfl_down_sync, KV_SIMT_SHUFFLE_DOWN, unsigned int)
KV_SIMT_SHUFFLE_FUNCTION(__shfl_xor_sync, KV_SIMT_SHUFFLE_XOR, int)
#undef KV_SIMT_SHUFFLE_FUNCTION

static inline unsigned int __ballot_sync(unsigned int mask, int predicate, KV_SIMT_PLACE)
{
    return (unsigned int)kv_simt_together(KV_SIMT_BALLOT, mask, predicate != 0, 0, 32, file, line);
}

static inline int __any_sync(unsigned int mask, int predicate, KV_SIMT_PLACE)
{
    return __ballot_sync(mask, predicate, file, line) != 0;
}

static inline int __all_sync(unsigned int mask, int predicate, KV_SIMT_PLACE)
{
    return __ballot_sync(mask, predicate, file, line) == mask;
}

template <typename value_t>
static inline unsigned int __match_any_sync(unsigned int mask, value_t value, KV_SIMT_PLACE)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return (unsigned int)kv_simt_together(KV_SIMT_MATCH, mask, bits, 0, 32, file, line);
}

#define KV_SIMT_REDUCE_FUNCTION(name, operation, value_t)                                          \
    static inline value_t name(unsigned int mask, value_t value, KV_SIMT_PLACE)                    \
    {                                                                                              \
        return (value_t)(uint32_t)kv_simt_together(                                                \
            operation, mask, (uint32_t)value, 0, 32, file, line);                                  \
    }

KV_SIMT_REDUCE_FUNCTION(__reduce_add_sync, KV_SIMT_ADD, unsigned int)
KV_SIMT_REDUCE_FUNCTION(__reduce_add_sync, KV_SIMT_ADD, int)
KV_SIMT_REDUCE_FUNCTION(__reduce_min_sync, KV_SIMT_MIN, unsigned int)
KV_SIMT_REDUCE_FUNCTION(__reduce_max_sync, KV_SIMT_MAX, unsigned int)
KV_SIMT_REDUCE_FUNCTION(__reduce_min_sync, KV_SIMT_MIN_SIGNED, int)
KV_SIMT_REDUCE_FUNCTION(__reduce_max_sync, KV_SIMT_MAX_SIGNED, int)
KV_SIMT_REDUCE_FUNCTION(__reduce_and_sync, KV_SIMT_BITS_AND, unsigned int)
KV_SIMT_REDUCE_FUNCTION(__reduce_or_sync, KV_SIMT_BITS_OR, unsigned int)
KV_SIMT_REDUCE_FUNCTION(__reduce_xor_sync, KV_SIMT_BITS_XOR, unsigned int)
#undef KV_SIMT_REDUCE_FUNCTION

#include "kernels/simt/atomics.h"
#include "kernels/simt/floats.h"
#include "kernels/simt/intrinsics.h"

#endif
