/* Device memory and pinned host memory of the stand-in.
 *
 * Device memory is cut from one range of addresses that nothing else uses, so that a pointer tells
 * what it is; allocations lie apart, and what lies between them belongs to nobody. New memory is
 * filled with ones: not-a-number in every float format. Host memory becomes pinned by
 * registration.
 *
 * Owns: the range. Borrows: host memory, while it is registered.
 * Threads: any.
 * Errors: false or NULL where there is no room, or where a range was never registered.
 * Limits: KV_SIMT_DEVICE_BYTES of addresses; KVIST_SIMT_MEMORY (MiB) caps what may be allocated. */
#ifndef KV_KERNELS_SIMT_MEMORY_H
#define KV_KERNELS_SIMT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KV_SIMT_DEVICE_BYTES ((size_t)64 << 30)

void *kv_simt_memory_allocate(size_t bytes); /* aligned to 512; NULL: no room */
bool kv_simt_memory_release(void *memory);   /* false: no allocation begins there */
void kv_simt_memory_release_all(void);       /* pinned host memory too */

/* Bytes allocated now, and the cap. */
size_t kv_simt_memory_used(void);
size_t kv_simt_memory_bound(void);
void kv_simt_memory_set_bound(size_t bytes);

bool kv_simt_memory_is_device(const void *address);

/* The offset of a device address in the range. */
size_t kv_simt_memory_offset(const void *address);

/* Do the bytes lie within one allocation, or within registered host memory? */
bool kv_simt_memory_covers(const void *address, size_t bytes);

/* The allocation that holds the address; false: none does. */
bool kv_simt_memory_find(const void *address, uintptr_t *begin_out, size_t *bytes_out);
bool kv_simt_memory_is_pinned(const void *address, size_t bytes);

/* Is some of it registered, and not all of it by one registration? CUDA refuses such copies. */
bool kv_simt_memory_is_cut(const void *address, size_t bytes);

/* Registers [address, address + bytes); false if part of it is. owned: release_all frees it. Ends
 * it, by its address; false if no registration begins there. The count: for leak checks. */
bool kv_simt_memory_pin(void *address, size_t bytes, bool owned);
bool kv_simt_memory_unpin(void *address);
size_t kv_simt_memory_pinned_count(void);

#ifdef __cplusplus
}
#endif

#endif
