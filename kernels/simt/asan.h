/* What AddressSanitizer has to be told of memory and stacks that it does not know; nothing in a
 * build without it.
 *
 * Threads: any. */
#ifndef KV_KERNELS_SIMT_ASAN_H
#define KV_KERNELS_SIMT_ASAN_H

#if defined(__SANITIZE_ADDRESS__)
#define KV_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KV_SIMT_ASAN 1
#endif
#endif

#ifdef KV_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define KV_SIMT_POISON(memory, bytes) __asan_poison_memory_region((memory), (bytes))
#define KV_SIMT_UNPOISON(memory, bytes) __asan_unpoison_memory_region((memory), (bytes))
#else
#define KV_SIMT_ASAN 0
#define KV_SIMT_POISON(memory, bytes) ((void)(memory), (void)(bytes))
#define KV_SIMT_UNPOISON(memory, bytes) ((void)(memory), (void)(bytes))
#endif

#endif
