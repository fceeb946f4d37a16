/* What a gateway says of stored KV beside its requests: tenants' quotas, and what is to happen to a
 * context (context.h). No gateway is connected to prefill nodes: a decode node passes on to them
 * what holds for their copies too, quotas also to those that come up later.
 *
 * Owns: the quotas.
 * Threads: the reactor's.
 * Errors: a Context is answered; a quota that the store refuses is logged, and passed on.
 * Limits: quotas of KV_RELAYED_QUOTAS_MAX tenants are kept for prefill nodes that come later. */
#ifndef KV_RUNTIME_RELAYED_H
#define KV_RUNTIME_RELAYED_H

#include "kvstore/kvist.h"
#include "proto/wire.pb-c.h"
#include "transport/peers.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_RELAYED_QUOTAS_MAX = 4096 };

typedef struct kv_core kv_core_t;

typedef struct {
    char tenant[KVIST_TENANT_BYTES_MAX + 1];
    uint64_t host_bytes, disk_bytes;
} kv_relayed_quota_t;

/* Part of a core; zeros at first. */
typedef struct {
    kv_relayed_quota_t *quotas;
    uint32_t count;
} kv_relayed_t;

/* Whether the message was one of these. */
bool kv_relayed_message(kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Envelope *message);

/* A peer has come up. */
void kv_relayed_greet(const kv_core_t *core, kv_peer_t *peer);

void kv_relayed_clear(kv_relayed_t *relayed);

#endif
