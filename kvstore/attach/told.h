/* What a store tells of itself, as messages of proto/store.proto and back: figures, objects,
 * contexts, terms.
 *
 * Threads: any; free of state.
 * Errors: what a message has beyond a bound is cut, what it lacks is 0. */
#ifndef KV_KVSTORE_ATTACH_TOLD_H
#define KV_KVSTORE_ATTACH_TOLD_H

#include "kvstore/kvist.h"
#include "proto/store.pb-c.h"

enum { KV_TOLD_STATS_MAX = 32, KV_TOLD_VERIFY_COUNT = 6 };

/* The figures of the store that has host and disk tier. The message borrows both arrays:
 * [KV_TOLD_STATS_MAX] and the struct's own. */
void kv_told_stats_pack(
    const kvist_stats_t *stats, uint64_t *numbers_out, Kvist__Store__Stats *message_out);
void kv_told_stats_unpack(const Kvist__Store__Stats *message, kvist_stats_t *stats_out);

/* [KV_TOLD_VERIFY_COUNT] */
void kv_told_verify_pack(const kvist_verify_t *state, uint64_t *numbers_out);
void kv_told_verify_unpack(const uint64_t *numbers, size_t count, kvist_verify_t *state_out);

/* The message borrows from the struct. */
void kv_told_object_pack(const kvist_object_t *object, Kvist__Store__Object *message_out);
void kv_told_object_unpack(const Kvist__Store__Object *message, kvist_object_t *object_out);
void kv_told_context_pack(const kvist_context_t *context, Kvist__Store__Context *message_out);
void kv_told_context_unpack(const Kvist__Store__Context *message, kvist_context_t *context_out);
void kv_told_detail_pack(const kvist_miss_detail_t *detail, Kvist__Store__Detail *message_out);
void kv_told_detail_unpack(const Kvist__Store__Detail *message, kvist_miss_detail_t *detail_out);
void kv_told_terms_pack(const kvist_terms_t *terms, Kvist__Store__Terms *message_out);

#endif
