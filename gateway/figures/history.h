/* The figures over time: what became of prompt tokens (gap.h), in slots of time. Fine ones for the
 * last hour, coarse ones for the last week, and the sum since the start.
 *
 * Times may come in any order; what is older than a newer slot in its place is in the sum alone.
 *
 * Owns: its slots. Threads: one at a time. Errors: none.
 * Limits: KV_HISTORY_FINE and KV_HISTORY_COARSE slots. */
#ifndef KV_GATEWAY_HISTORY_H
#define KV_GATEWAY_HISTORY_H

#include "gateway/figures/gap.h"

#include <stddef.h>
#include <stdint.h>

enum {
    KV_HISTORY_FINE = 360, /* an hour */
    KV_HISTORY_FINE_S = 10,
    KV_HISTORY_COARSE = 1008, /* a week */
    KV_HISTORY_COARSE_S = 600,
};

typedef enum { KV_HISTORY_HOUR, KV_HISTORY_WEEK, KV_HISTORY_SPANS } kv_history_span_t;

typedef struct {
    uint64_t begins_unix_s; /* 0: nothing was ever counted here */
    uint64_t answers;
    kv_partition_t parts;
} kv_history_slot_t;

typedef struct kv_history kv_history_t;

kv_history_t *kv_history_create(void);
void kv_history_destroy(kv_history_t *history); /* NULL is fine */

void kv_history_add(kv_history_t *history, uint64_t unix_s, const kv_partition_t *parts);

/* Everything since the start; what was counted in the last seconds, in whole slots. */
const kv_history_slot_t *kv_history_total(const kv_history_t *history);
kv_history_slot_t kv_history_last(const kv_history_t *history, uint64_t unix_s, uint64_t seconds);

/* Calls visit for each slot of the span in which something was counted, the oldest first. */
void kv_history_visit(const kv_history_t *history, kv_history_span_t span, uint64_t unix_s,
    void (*visit)(void *context, const kv_history_slot_t *slot), void *context);

#endif
