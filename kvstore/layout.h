/* A layout: how one object's bytes divide into units, and the checksums over them.
 *
 * A unit is the smallest part that can be verified alone: one (layer, k or v, kv head) of a block,
 * [token][head_dim] elements. Units stand in the object in that order without gaps
 * (kernels/device.h). The store moves units and never looks inside.
 *
 * Threads: any; a layout does not change after kv_layout_init. */
#ifndef KV_KVSTORE_LAYOUT_H
#define KV_KVSTORE_LAYOUT_H

#include "kvstore/kvist.h"

enum { KV_LAYOUT_UNITS_MAX = 1 << 16 };
#define KV_LAYOUT_OBJECT_BYTES_MAX ((size_t)64 << 20)

typedef struct {
    kv_block_shape_t shape;
    size_t unit_bytes, object_bytes;
    uint32_t unit_count;
    kvist_key_t digest; /* SHA-256 of the shape's encoding: records of another layout never agree */
} kv_layout_t;

/* KV_INVALID with the field and its bound. */
kv_status_t kv_layout_init(
    const kv_block_shape_t *shape, kv_layout_t *layout_out, kv_error_t *error);

/* checksums_out: [unit_count] */
void kv_layout_unit_checksums(
    const kv_layout_t *layout, const void *object, uint64_t *checksums_out);

/* The object's checksum: over its units' checksums, bound to the key and to the layout. */
uint64_t kv_layout_object_checksum(
    const kv_layout_t *layout, const kvist_key_t *key, const uint64_t *unit_checksums);

#endif
