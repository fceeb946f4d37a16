/* A layout, worked out for one of its groups: how an object's bytes divide into units, and the
 * checksums over them.
 *
 * A unit is the smallest part that can be verified alone: one (layer, part, head) of a block. Units
 * stand in the object in that order without gaps. The store moves units and never looks inside.
 *
 * Threads: any; a layout does not change after kv_layout_init. */
#ifndef KV_KVSTORE_LAYOUT_H
#define KV_KVSTORE_LAYOUT_H

#include "kvstore/kvist.h"

enum { KV_LAYOUT_UNITS_MAX = 1 << 16, KV_LAYOUT_ENCODED_BYTES_MAX = 2048 };
#define KV_LAYOUT_OBJECT_BYTES_MAX ((size_t)64 << 20)

typedef struct {
    kvist_group_t group;
    uint32_t block_tokens, layer_count;
    uint32_t block_words; /* kv_identity_word_count(block_tokens) */
    uint32_t layer_units; /* units of one layer */
    uint32_t unit_count;
    size_t part_unit_bytes[KVIST_PARTS_MAX];
    size_t unit_bytes_max, layer_bytes, object_bytes;
    kvist_key_t digest; /* of the group's encoding: records of another layout never agree */
} kv_layout_t;

/* KV_INVALID with the field and its bound. */
kv_status_t kv_layout_init(
    const kvist_layout_t *from, uint32_t group, kv_layout_t *layout_out, kv_error_t *error);

/* What identifies the layout, in bytes (docs/formats.md). Returns how many. */
size_t kv_layout_encode(const kvist_layout_t *layout, uint8_t *encoded_out);

/* The inverse. KV_INVALID: these bytes are no layout's, or one that is out of bounds. */
kv_status_t kv_layout_decode(
    const uint8_t *encoded, size_t bytes, kvist_layout_t *layout_out, kv_error_t *error);

/* The first field in which two layouts differ, with both values, into text_out; false: none. */
bool kv_layout_differs(
    const kvist_layout_t *mine, const kvist_layout_t *other, char *text_out, size_t text_bytes);

/* The unit's place in the object, and its size. */
size_t kv_layout_unit(const kv_layout_t *layout, uint32_t unit, size_t *bytes_out);

uint32_t kv_layout_element_bytes(const kv_layout_t *layout, uint32_t unit);

/* Units of a selection in one object, in order: a cursor starts at 0 and is moved on by each call;
 * UINT32_MAX: there are no more. */
uint32_t kv_layout_next_selected(
    const kv_layout_t *layout, const kvist_selection_t *selection, uint32_t *cursor);

/* false: the selection is not one of this group's. Fills in counts that were 0. */
bool kv_layout_resolve(const kv_layout_t *layout, kvist_selection_t *selection);

/* Bytes, and units, of a resolved selection in one object. */
size_t kv_layout_selected_bytes(const kv_layout_t *layout, const kvist_selection_t *selection);
uint32_t kv_layout_selected_units(const kv_layout_t *layout, const kvist_selection_t *selection);

/* checksums_out: [unit_count] */
void kv_layout_unit_checksums(
    const kv_layout_t *layout, const void *object, uint64_t *checksums_out);

/* Whether all units have the checksums. */
bool kv_layout_units_agree(
    const kv_layout_t *layout, const void *object, const uint64_t *checksums);

/* The object's checksum: over its units' checksums, bound to the key and to the layout. */
uint64_t kv_layout_object_checksum(
    const kv_layout_t *layout, const kvist_key_t *key, const uint64_t *unit_checksums);

#endif
