/* What a decode node passes on to prefill nodes, and from whom who takes what. Peers and the store
 * are played. */
#include "runtime/relayed.h"

#include "testing/testing.h"

#include "base/log.h"
#include "runtime/core.h"

#include <string.h>

struct kv_peer {
    Kvist__Wire__Role role;
    uint32_t version;
    const char *name;
    unsigned contexts, quotas; /* that it was told */
    char last_tenant[64];
    uint64_t last_bytes;
};

static kv_peer_t gateway, prefill, old_prefill, decode, store;
static kv_peer_t *const PEERS[] = {&gateway, &prefill, &old_prefill, &decode, &store};
static unsigned accepted, set_count;
static kv_status_t set_status;

/* ---- what is played ---- */

void __wrap_kv_peers_visit(
    kv_peers_t *peers, void (*visit)(void *context, kv_peer_t *peer), void *context);
Kvist__Wire__Role __wrap_kv_peer_role(const kv_peer_t *peer);
uint32_t __wrap_kv_peer_version(const kv_peer_t *peer);
const char *__wrap_kv_peer_name(const kv_peer_t *peer);
kv_status_t __wrap_kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message);
kv_status_t __wrap_kvist_store_set_quota(
    kvist_store_t *of, const kvist_quota_t *quota, kv_error_t *error);
void __wrap_kv_context_accept(
    kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Context *message);

void __wrap_kv_peers_visit(
    kv_peers_t *peers, void (*visit)(void *context, kv_peer_t *peer), void *context)
{
    (void)peers;
    for (size_t i = 0; i < sizeof PEERS / sizeof PEERS[0]; i++) {
        visit(context, PEERS[i]);
    }
}

Kvist__Wire__Role __wrap_kv_peer_role(const kv_peer_t *peer)
{
    return peer->role;
}

uint32_t __wrap_kv_peer_version(const kv_peer_t *peer)
{
    return peer->version;
}

const char *__wrap_kv_peer_name(const kv_peer_t *peer)
{
    return peer->name;
}

kv_status_t __wrap_kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_QUOTA) {
        peer->quotas++;
        peer->last_bytes = message->quota->host_bytes;
        snprintf(peer->last_tenant, sizeof peer->last_tenant, "%s", message->quota->tenant);
    }
    peer->contexts += message->body_case == KVIST__WIRE__ENVELOPE__BODY_CONTEXT;
    return KV_OK;
}

kv_status_t __wrap_kvist_store_set_quota(
    kvist_store_t *of, const kvist_quota_t *quota, kv_error_t *error)
{
    (void)of;
    (void)quota;
    set_count++;
    return set_status == KV_OK ? KV_OK : kv_fail(error, set_status, "a client cannot");
}

void __wrap_kv_context_accept(kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Context *message)
{
    (void)core;
    (void)peer;
    (void)message;
    accepted++;
}

static int begin(void **state)
{
    (void)state;
    gateway = (kv_peer_t){KVIST__WIRE__ROLE__ROLE_GATEWAY, 3, "gateway", 0, 0, "", 0};
    prefill = (kv_peer_t){KVIST__WIRE__ROLE__ROLE_PREFILL, 3, "prefill", 0, 0, "", 0};
    old_prefill = (kv_peer_t){KVIST__WIRE__ROLE__ROLE_PREFILL, 2, "old", 0, 0, "", 0};
    decode = (kv_peer_t){KVIST__WIRE__ROLE__ROLE_DECODE, 3, "decode", 0, 0, "", 0};
    store = (kv_peer_t){KVIST__WIRE__ROLE__ROLE_STORE, 3, "store", 0, 0, "", 0};
    accepted = set_count = 0;
    set_status = KV_OK;
    return 0;
}

static bool tell_context(kv_core_t *core, kv_peer_t *from, Kvist__Wire__ContextAction action)
{
    Kvist__Wire__Context asked = KVIST__WIRE__CONTEXT__INIT;
    Kvist__Wire__Envelope message = KVIST__WIRE__ENVELOPE__INIT;
    asked.action = action;
    message.body_case = KVIST__WIRE__ENVELOPE__BODY_CONTEXT;
    message.context = &asked;
    return kv_relayed_message(core, from, &message);
}

static bool tell_quota(kv_core_t *core, kv_peer_t *from, const char *tenant, uint64_t host_bytes)
{
    Kvist__Wire__Quota quota = KVIST__WIRE__QUOTA__INIT;
    Kvist__Wire__Envelope message = KVIST__WIRE__ENVELOPE__INIT;
    quota.tenant = (char *)tenant;
    quota.host_bytes = host_bytes;
    message.body_case = KVIST__WIRE__ENVELOPE__BODY_QUOTA;
    message.quota = &quota;
    return kv_relayed_message(core, from, &message);
}

/* ---- tests ---- */

static void copies_of_prefill_nodes_are_spilled_and_limited_too(void **state)
{
    (void)state;
    kv_core_t core = {.holder.role = KVIST__WIRE__ROLE__ROLE_DECODE};
    assert_true(tell_context(&core, &gateway, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL));
    assert_true(tell_context(&core, &gateway, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMISE));
    assert_int_equal(prefill.contexts, 2);
    /* Pins, and being in this node's device memory, are this node's alone. */
    assert_true(tell_context(&core, &gateway, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_KEEP));
    assert_true(tell_context(&core, &gateway, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMOTE));
    assert_int_equal(prefill.contexts, 2);
    assert_int_equal(accepted, 4);
    assert_int_equal(old_prefill.contexts + decode.contexts + store.contexts + gateway.contexts, 0);
}

static void nobody_passes_on_what_was_passed_on(void **state)
{
    (void)state;
    kv_core_t core = {.holder.role = KVIST__WIRE__ROLE__ROLE_DECODE};
    assert_true(tell_context(&core, &decode, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL));
    assert_int_equal(prefill.contexts, 0);
    core.holder.role = KVIST__WIRE__ROLE__ROLE_PREFILL;
    assert_true(tell_context(&core, &decode, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL));
    assert_true(tell_quota(&core, &decode, "a", 5));
    assert_int_equal(prefill.contexts + prefill.quotas, 0);
    assert_int_equal(accepted, 2);
    assert_int_equal(set_count, 1);
    assert_int_equal(core.relayed.count, 0);
}

static void quotas_reach_prefill_nodes_that_come_later(void **state)
{
    (void)state;
    kv_core_t core = {.holder.role = KVIST__WIRE__ROLE__ROLE_DECODE};
    set_status = KV_REFUSED; /* this node's store is a client: a prefill node's may be none */
    assert_true(tell_quota(&core, &gateway, "a", 100));
    assert_true(tell_quota(&core, &gateway, "b", 200));
    assert_true(tell_quota(&core, &gateway, "a", 300));
    assert_int_equal(set_count, 3);
    assert_int_equal(prefill.quotas, 3);
    assert_int_equal(prefill.last_bytes, 300);
    prefill = (kv_peer_t){KVIST__WIRE__ROLE__ROLE_PREFILL, 3, "prefill", 0, 0, "", 0};
    kv_relayed_greet(&core, &prefill);
    assert_int_equal(prefill.quotas, 2);
    assert_string_equal(prefill.last_tenant, "b");
    kv_relayed_greet(&core, &old_prefill);
    kv_relayed_greet(&core, &gateway);
    assert_int_equal(old_prefill.quotas + gateway.quotas, 0);
    kv_relayed_clear(&core.relayed);
}

static void a_quota_of_anybody_else_is_no_word_of_a_gateway(void **state)
{
    (void)state;
    kv_core_t core = {.holder.role = KVIST__WIRE__ROLE__ROLE_DECODE};
    assert_true(tell_quota(&core, &prefill, "a", 1));
    assert_true(tell_quota(&core, &decode, "a", 1));
    assert_int_equal(set_count, 0);
    assert_int_equal(core.relayed.count, 0);
    char longest[KVIST_TENANT_BYTES_MAX + 2];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_true(tell_quota(&core, &gateway, longest, 1)); /* the store refuses it */
    assert_int_equal(core.relayed.count, 0);
    kv_relayed_clear(&core.relayed);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(copies_of_prefill_nodes_are_spilled_and_limited_too, begin),
        cmocka_unit_test_setup(nobody_passes_on_what_was_passed_on, begin),
        cmocka_unit_test_setup(quotas_reach_prefill_nodes_that_come_later, begin),
        cmocka_unit_test_setup(a_quota_of_anybody_else_is_no_word_of_a_gateway, begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
