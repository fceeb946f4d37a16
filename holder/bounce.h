/* Bounce blocks: the arena of a holder without a device tier, out of which its mover sends.
 *
 * What the store has in host memory or on disk is copied here, proved by its checksums on the way,
 * and leaves from here: slots of the host tier may be evicted and used again, and a disk's bytes
 * have no other place. There are few: a fetch goes through them window by window (courier.h).
 *
 * Owns: the memory, which is touched as it is used; a device of which only copies work.
 * Threads: the reactor's; the bytes belong to whoever took the block.
 * Errors: KV_NO_SPACE. */
#ifndef KV_HOLDER_BOUNCE_H
#define KV_HOLDER_BOUNCE_H

#include "base/status.h"
#include "kernels/device.h"

#include <stddef.h>
#include <stdint.h>

enum { KV_BOUNCE_BYTES = 64 << 20, KV_BOUNCE_BLOCKS_MIN = 8 };

typedef struct kv_bounce kv_bounce_t;

/* As many blocks as `bytes` hold (KV_BOUNCE_BYTES are plenty), at least KV_BOUNCE_BLOCKS_MIN. */
kv_status_t kv_bounce_create(
    size_t block_bytes, size_t bytes, kv_bounce_t **bounce_out, kv_error_t *error);
void kv_bounce_destroy(kv_bounce_t *bounce); /* NULL: nothing */

kv_device_t *kv_bounce_device(kv_bounce_t *bounce);
void *kv_bounce_block(const kv_bounce_t *bounce, uint32_t slot); /* 0: the arena's start */
uint32_t kv_bounce_count(const kv_bounce_t *bounce);
uint32_t kv_bounce_free_count(const kv_bounce_t *bounce);

/* One more, or one less, wants blocks; each should take no more than its share at a time. */
void kv_bounce_join(kv_bounce_t *bounce);
void kv_bounce_leave(kv_bounce_t *bounce);
uint32_t kv_bounce_share(const kv_bounce_t *bounce); /* at least 1 */

/* The caller has looked that so many are free. */
void kv_bounce_take(kv_bounce_t *bounce, uint32_t count, uint32_t *slots_out);
void kv_bounce_give(kv_bounce_t *bounce, uint32_t count, const uint32_t *slots);

#endif
