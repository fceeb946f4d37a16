/* Numbers for objects in the order of their records on disk: the blocks of a chain were written one
 * after the other, and a match that walks a chain is fastest where they lie side by side in memory
 * too. The index gives them in the order of their keys, which is no order at all.
 *
 *   add every place, in any order -> sort -> rank of a place: 0 .. count - 1
 *
 * Owns: 8 bytes for each place, until it is released.
 * Threads: one at a time. */
#ifndef KV_KVSTORE_INDEX_ORDER_H
#define KV_KVSTORE_INDEX_ORDER_H

#include <stddef.h>
#include <stdint.h>

#define KV_ORDER_NONE UINT32_MAX

typedef struct {
    uint64_t *places;
    uint32_t count, capacity;
    uint32_t *starts; /* [65537]: of each segment's places */
} kv_order_t;

void kv_order_add(kv_order_t *order, uint16_t segment, uint32_t offset_pages);
void kv_order_sort(kv_order_t *order);

/* KV_ORDER_NONE: the place was not added. */
uint32_t kv_order_rank(const kv_order_t *order, uint16_t segment, uint32_t offset_pages);
void kv_order_release(kv_order_t *order);

#endif
