/* KV events as the log and the reader handle them: proto/events.proto without its encoding.
 *
 * The sequence's rules are in docs/formats.md ("KV events"). */
#ifndef KV_CLUSTER_EVENTS_H
#define KV_CLUSTER_EVENTS_H

#include "proto/events.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_EVENT_KEY_BYTES = 32,  /* a key's, and a namespace's */
    KV_EVENT_KEYS_MAX = 1024, /* of one event */
    KV_EVENT_INSTANCE_BYTES = 16,
    KV_EVENT_GROUPS_MAX = 256,
    KV_EVENT_POSITION_MAX = 1 << 20, /* a chain is no longer */
};

/* Blocks that a tier holds from now on, or no longer. Bytes are the caller's. */
typedef struct {
    Kvist__Events__Tier tier;
    bool stored;
    uint32_t group;
    uint32_t key_count;  /* 1 to KV_EVENT_KEYS_MAX */
    const uint8_t *keys; /* [key_count][KV_EVENT_KEY_BYTES] */
    /* Of stored blocks only. */
    uint32_t first_block;
    const uint8_t *name_space; /* [KV_EVENT_KEY_BYTES] */
    const uint8_t *parent;     /* [KV_EVENT_KEY_BYTES]; NULL: not told (another group than 0) */
} kv_event_t;

typedef void (*kv_event_visit_t)(void *context, const kv_event_t *event);

#endif
