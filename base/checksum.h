/* XXH3, 64 bit: the checksum of every unit, record and wire fragment. It detects damage, not
 * malice.
 *
 * Threads: any. The widest instructions of the machine are used; the values do not depend on them.
 */
#ifndef KV_BASE_CHECKSUM_H
#define KV_BASE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

uint64_t kv_checksum(const void *bytes, size_t count);

/* The checksum bound to what the bytes are: a value made with another seed never agrees. */
uint64_t kv_checksum_seeded(const void *bytes, size_t count, uint64_t seed);

/* Copies the range and gives its kv_checksum, in one pass over memory; the ranges do not overlap.
 * The copy goes past the caches, so that it costs no read of the destination and drives nothing
 * out. It is what was hashed but for a writer at the source in between: nobody may write there.
 * Before another thread, the kernel or a device is told of the copy: kv_checksum_copy_fence. */
uint64_t kv_checksum_copy(void *to, const void *from, size_t bytes);

/* The same with kv_checksum_seeded's value. */
uint64_t kv_checksum_copy_seeded(void *to, const void *from, size_t bytes, uint64_t seed);

/* The same for a copy that somebody reads at once: it stays in the caches. */
uint64_t kv_checksum_copy_near(void *to, const void *from, size_t bytes, uint64_t seed);

/* Makes this thread's copies visible in order, before what it does next. One for many copies. */
void kv_checksum_copy_fence(void);

#ifdef __cplusplus
}
#endif

#endif
