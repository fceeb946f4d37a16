/* What code calls that was compiled with -fsanitize=thread: the names are ThreadSanitizer's, whose
 * library is not linked. A program with this file must not be built with ThreadSanitizer itself. */
#include "kernels/simt/block_internal.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/watch.h"

#include <string.h>

static void hook(const void *address, size_t bytes, kv_simt_access_kind_t kind, const void *site)
{
    if (kv_simt_inside && kv_simt_block.current != NULL) {
        kv_simt_access(address, bytes, kind, site);
    } else if (kv_simt_memory_is_device(address)) {
        kv_simt_find(KV_SIMT_HOST_ACCESS, "host code touches %zu bytes of device memory at %p",
            bytes, address);
    }
}

/* An access that the compiler took for aligned, as a GPU's load or store would be. */
static void hook_aligned(
    const void *address, size_t bytes, kv_simt_access_kind_t kind, const void *site)
{
    if (kv_simt_inside && kv_simt_block.current != NULL && (uintptr_t)address % bytes != 0) {
        kv_simt_find(KV_SIMT_MISALIGNED, "%zu bytes at %p, which is less aligned", bytes, address);
        kv_simt_abandon(KV_SIMT_MISALIGNED_ADDRESS);
    }
    hook(address, bytes, kind, site);
}

#define HOOK(name, judge_by, bytes, kind)                                                          \
    void name(void *address);                                                                      \
    void name(void *address)                                                                       \
    {                                                                                              \
        judge_by(address, bytes, kind, __builtin_return_address(0));                               \
    }
#define HOOKS(bytes)                                                                               \
    HOOK(__tsan_read##bytes, hook_aligned, bytes, KV_SIMT_READ)                                    \
    HOOK(__tsan_write##bytes, hook_aligned, bytes, KV_SIMT_WRITE)                                  \
    HOOK(__tsan_unaligned_read##bytes, hook, bytes, KV_SIMT_READ)                                  \
    HOOK(__tsan_unaligned_write##bytes, hook, bytes, KV_SIMT_WRITE)                                \
    HOOK(__tsan_volatile_read##bytes, hook_aligned, bytes, KV_SIMT_READ)                           \
    HOOK(__tsan_volatile_write##bytes, hook_aligned, bytes, KV_SIMT_WRITE)

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_init(void);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void *unused);
void __tsan_read_range(void *address, long bytes);
void __tsan_write_range(void *address, long bytes);
void *__tsan_memcpy(void *to, const void *from, size_t bytes);
void *__tsan_memmove(void *to, const void *from, size_t bytes);
void *__tsan_memset(void *to, int value, size_t bytes);

void __tsan_init(void)
{
    kv_simt_watch_begin();
}

void __tsan_func_entry(void *caller)
{
    (void)caller;
}

void __tsan_func_exit(void *unused)
{
    (void)unused;
}

void __tsan_read_range(void *address, long bytes)
{
    hook(address, (size_t)bytes, KV_SIMT_READ, __builtin_return_address(0));
}

void __tsan_write_range(void *address, long bytes)
{
    hook(address, (size_t)bytes, KV_SIMT_WRITE, __builtin_return_address(0));
}

/* clang's names for what it copies and fills as a whole. */
void *__tsan_memcpy(void *to, const void *from, size_t bytes)
{
    return __tsan_memmove(to, from, bytes);
}

void *__tsan_memmove(void *to, const void *from, size_t bytes)
{
    if (bytes > 0) {
        hook(from, bytes, KV_SIMT_READ, __builtin_return_address(0));
        hook(to, bytes, KV_SIMT_WRITE, __builtin_return_address(0));
    }
    return memmove(to, from, bytes);
}

void *__tsan_memset(void *to, int value, size_t bytes)
{
    if (bytes > 0) {
        hook(to, bytes, KV_SIMT_WRITE, __builtin_return_address(0));
    }
    return memset(to, value, bytes);
}
