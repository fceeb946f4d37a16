#include "runtime/relayed.h"

#include "base/log.h"
#include "base/memory.h"
#include "runtime/context.h"
#include "runtime/core.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { RELAY_VERSION = 3 };

static const char *module_of(const kv_core_t *core)
{
    return core->holder.role == KVIST__WIRE__ROLE__ROLE_PREFILL ? "prefill" : "decode";
}

/* ---- passing on ---- */

static bool is_told(const kv_core_t *core, const kv_peer_t *peer)
{
    return core->holder.role == KVIST__WIRE__ROLE__ROLE_DECODE &&
           kv_peer_role(peer) == KVIST__WIRE__ROLE__ROLE_PREFILL &&
           kv_peer_version(peer) >= RELAY_VERSION;
}

typedef struct {
    const kv_core_t *core;
    const Kvist__Wire__Envelope *message;
} relay_t;

static void send_to(void *context, kv_peer_t *peer)
{
    const relay_t *relay = context;
    if (is_told(relay->core, peer) && kv_peer_send(peer, relay->message) != KV_OK) {
        kv_log_warn(
            "decode", "prefill node %s was not told what the gateway said", kv_peer_name(peer));
    }
}

static void pass_on(const kv_core_t *core, const Kvist__Wire__Envelope *message)
{
    relay_t relay = {core, message};
    kv_peers_visit(core->holder.peers, send_to, &relay);
}

/* ---- quotas ---- */

static void note_quota(kv_relayed_t *relayed, const Kvist__Wire__Quota *quota)
{
    uint32_t at = 0;
    while (at < relayed->count && strcmp(relayed->quotas[at].tenant, quota->tenant) != 0) {
        at++;
    }
    if (at == KV_RELAYED_QUOTAS_MAX || strlen(quota->tenant) > KVIST_TENANT_BYTES_MAX) {
        return; /* told once; who comes later is told by the gateway's next word of it */
    }
    if (at == relayed->count) {
        relayed->quotas =
            kv_reallocate(relayed->quotas, relayed->count + 1, sizeof *relayed->quotas);
        relayed->quotas[at] = (kv_relayed_quota_t){0};
        memcpy(relayed->quotas[at].tenant, quota->tenant, strlen(quota->tenant));
        relayed->count++;
    }
    relayed->quotas[at].host_bytes = quota->host_bytes;
    relayed->quotas[at].disk_bytes = quota->disk_bytes;
}

/* The store checks what it says. */
static void take_quota(kv_core_t *core, const kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    const Kvist__Wire__Quota *told = message->quota;
    const kvist_quota_t quota = {
        .tenant = told->tenant, .host_bytes = told->host_bytes, .disk_bytes = told->disk_bytes};
    kv_error_t error;
    if (kvist_store_set_quota(core->holder.store, &quota, &error) != KV_OK) {
        kv_log_warn(module_of(core), "quota from %s: %s", kv_peer_name(peer), error.text);
    } else {
        kv_log_info(module_of(core), "quota of %s host_bytes %" PRIu64 " disk_bytes %" PRIu64,
            quota.tenant, quota.host_bytes, quota.disk_bytes);
    }
    if (core->holder.role == KVIST__WIRE__ROLE__ROLE_DECODE) {
        note_quota(&core->relayed, told);
        pass_on(core, message);
    }
}

void kv_relayed_greet(const kv_core_t *core, kv_peer_t *peer)
{
    if (!is_told(core, peer)) {
        return;
    }
    relay_t relay = {.core = core};
    for (uint32_t i = 0; i < core->relayed.count; i++) {
        kv_relayed_quota_t *known = &core->relayed.quotas[i];
        Kvist__Wire__Quota quota = KVIST__WIRE__QUOTA__INIT;
        Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
        quota.tenant = known->tenant;
        quota.host_bytes = known->host_bytes;
        quota.disk_bytes = known->disk_bytes;
        envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_QUOTA;
        envelope.quota = &quota;
        relay.message = &envelope;
        send_to(&relay, peer);
    }
}

/* ---- messages ---- */

/* Gateways say it to decode nodes, those to prefill nodes. */
static bool is_from_above(const kv_core_t *core, const kv_peer_t *peer)
{
    return kv_peer_role(peer) == KVIST__WIRE__ROLE__ROLE_GATEWAY ||
           (core->holder.role == KVIST__WIRE__ROLE__ROLE_PREFILL &&
               kv_peer_role(peer) == KVIST__WIRE__ROLE__ROLE_DECODE);
}

static bool concerns_copies(const Kvist__Wire__Context *asked)
{
    return asked->action == KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL ||
           asked->action == KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMISE;
}

bool kv_relayed_message(kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    bool above = is_from_above(core, peer);
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_QUOTA) {
        if (above) {
            take_quota(core, peer, message);
        }
        return true;
    }
    if (message->body_case != KVIST__WIRE__ENVELOPE__BODY_CONTEXT) {
        return false;
    }
    if (above && concerns_copies(message->context)) {
        pass_on(core, message);
    }
    kv_context_accept(core, peer, message->context);
    return true;
}

void kv_relayed_clear(kv_relayed_t *relayed)
{
    free(relayed->quotas);
    *relayed = (kv_relayed_t){0};
}
