/* Re-layout between tensor-parallel degrees: which bytes of one shard's block go where in
 * another's.
 *
 * A block of a model is [layer][part][head], a head's unit being the smallest thing that moves. A
 * shard of degree d holds, of every part, the heads of its rank:
 *
 *     heads >= d, a multiple of it   heads / d consecutive ones
 *     heads <  d, which is one       one head, which d / heads consecutive ranks hold alike
 *
 * so that few KV heads (GQA, MQA) and what is not divided at all (the latent of MLA: a part of one
 * head) need no other rule. Its block is [layer][part][its heads] without gaps.
 *
 * Where several senders hold a head, a receiver takes it from exactly one: the receivers of a head
 * are dealt out over its senders in order. So, over all senders, every byte of a receiver's block
 * comes exactly once.
 *
 * Owns: nothing. Threads: any, free of state.
 * Errors: KV_INVALID names the field and its bound; outputs are set on success only.
 * Limits: KV_RELAYOUT_* below. */
#ifndef KV_TRANSPORT_RELAYOUT_H
#define KV_TRANSPORT_RELAYOUT_H

#include "base/status.h"
#include "transport/mover.h"

enum {
    KV_RELAYOUT_PARTS_MAX = 4,
    KV_RELAYOUT_LAYERS_MAX = 4096,
    KV_RELAYOUT_HEADS_MAX = 4096,
    KV_RELAYOUT_DEGREE_MAX = 4096,
    KV_RELAYOUT_UNIT_BYTES_MAX = 64 << 20,
};

/* Of the whole model, undivided. */
typedef struct {
    uint32_t layer_count;
    uint32_t part_count;
    struct {
        uint32_t heads;
        uint32_t unit_bytes; /* of one head: [token][dim] */
    } parts[KV_RELAYOUT_PARTS_MAX];
} kv_relayout_geometry_t;

typedef struct {
    uint32_t degree; /* 1: undivided */
    uint32_t rank;   /* below degree */
} kv_relayout_shard_t;

/* A shard's block. unit_bytes_out: the largest unit that every range is made of, for the mover
 * (the same for all degrees). */
kv_status_t kv_relayout_block_bytes(const kv_relayout_geometry_t *geometry,
    kv_relayout_shard_t shard, size_t *block_bytes_out, size_t *unit_bytes_out, kv_error_t *error);

/* The ranges of layers first_layer .. + layer_count that the sender's shard gives to the
 * receiver's, in ascending order, coalesced. ranges_out: room for layer_count * part_count.
 * range_count_out may be 0: the receiver has everything from others. */
kv_status_t kv_relayout_ranges(const kv_relayout_geometry_t *geometry, kv_relayout_shard_t sender,
    kv_relayout_shard_t receiver, uint32_t first_layer, uint32_t layer_count,
    kv_range_t *ranges_out, uint32_t *range_count_out, kv_error_t *error);

#endif
