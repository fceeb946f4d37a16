/* Promises and spills: about blocks that may still be on their way to the service. Each is asked
 * for once all that was sealed before it has been written through, and answered in a poll. */
#include "kvstore/attach/attached_internal.h"

#include "kvstore/attach/attached_ops.h"
#include "kvstore/attach/told.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

enum { CALLS_VERSION = 3 };

struct kv_attached_call {
    kv_attached_t *attached;
    kvist_key_t key;
    uint64_t serial; /* what is to be written through before */
    bool asked, ended;
    kv_status_t status;
    /* Of a promise: */
    kvist_promised_t promised; /* NULL: it is a spill */
    kvist_terms_t terms;
    uint64_t expires_unix_ns, pin_until_unix_ns;
    /* Of a spill: */
    kvist_spilled_t spilled;
    uint64_t object_count, bytes;
    void *context;
    kv_attached_call_t *next;
};

static void answered(void *owner, const Kvist__Store__Answer *answer)
{
    kv_attached_call_t *call = owner;
    call->ended = true;
    call->status = KV_PEER_LOST;
    if (answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_DONE) {
        const Kvist__Store__Done *done = answer->done;
        call->status = done->code <= KV_FATAL ? (kv_status_t)done->code : KV_FATAL;
        call->expires_unix_ns = done->expires_unix_ns;
        call->pin_until_unix_ns = done->pin_until_unix_ns;
        call->object_count = done->count;
        call->bytes = done->bytes;
    }
    kv_attached_kick(call->attached);
}

static kv_status_t send(kv_attached_call_t *call)
{
    ProtobufCBinaryData key = {KVIST_KEY_BYTES, call->key.bytes};
    if (call->attached->link.state != KV_LINK_UP) {
        return KV_PEER_LOST;
    }
    if (call->attached->life->version < CALLS_VERSION) {
        return KV_REFUSED;
    }
    if (call->promised == NULL) {
        Kvist__Store__Spill spill = KVIST__STORE__SPILL__INIT;
        spill.key = key;
        return kv_link_ask(
            call->attached, KVIST__STORE__REQUEST__BODY_SPILL, &spill, &spill.id, answered, call);
    }
    Kvist__Store__Promise promise = KVIST__STORE__PROMISE__INIT;
    Kvist__Store__Terms terms;
    kv_told_terms_pack(&call->terms, &terms);
    promise.key = key;
    promise.terms = &terms;
    return kv_link_ask(
        call->attached, KVIST__STORE__REQUEST__BODY_PROMISE, &promise, &promise.id, answered, call);
}

static void add(kv_attached_call_t *call)
{
    kv_attached_call_t **link = &call->attached->first_call;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = call;
    kv_attached_kick(call->attached);
}

bool kv_attached_store_promise(kvist_store_t *store, const kvist_key_t *key,
    const kvist_terms_t *terms, kvist_promised_t done, void *context, kvist_promise_t *promise_out)
{
    (void)promise_out;
    kv_attached_t *attached = kv_attached_of(store);
    kv_attached_call_t *call = kv_allocate(sizeof *call);
    *call = (kv_attached_call_t){
        .attached = attached,
        .key = *key,
        .serial = attached->through_serial,
        .promised = done,
        .terms = *terms,
        .context = context,
    };
    call->terms.tenant = NULL; /* whose they are is not changed */
    add(call);
    return false;
}

void kv_attached_store_spill(
    kvist_store_t *store, const kvist_key_t *key, kvist_spilled_t done, void *context)
{
    kv_attached_t *attached = kv_attached_of(store);
    kv_attached_call_t *call = kv_allocate(sizeof *call);
    *call = (kv_attached_call_t){
        .attached = attached,
        .key = *key,
        .serial = attached->through_serial,
        .spilled = done,
        .context = context,
    };
    add(call);
}

/* The service has the block, so the copies on the device go, leaf first: what nobody holds, and
 * nothing there goes on from. */
static void leave_device(kv_attached_call_t *call)
{
    kvist_store_t *inner = call->attached->inner;
    uint32_t at = kv_table_find(inner->table, &call->key);
    while (at != KV_OBJECT_NONE) {
        const kv_object_t *object = kv_table_at(inner->table, at);
        uint32_t parent = object->parent;
        if (object->reference_count > 0 || object->first_child != KV_OBJECT_NONE ||
            (object->flags & KV_OBJECT_BUSY) != 0) {
            break;
        }
        call->bytes += inner->groups[0].layout.object_bytes;
        kv_object_drop(inner, at, KV_GONE_FROM_DEVICE);
        at = parent;
    }
}

static void tell(kv_attached_call_t *call)
{
    if (call->promised != NULL) {
        const kvist_promise_t promise = {
            .status = call->status,
            .expires_unix_ns = call->expires_unix_ns,
            .pin_until_unix_ns = call->pin_until_unix_ns,
        };
        /* As kvist_store_keep: the device's copy goes no later. The service may have let go of its
         * own already: where another client asked for the same. */
        const kvist_terms_t expiry = {.expires_unix_ns = call->terms.expires_unix_ns};
        bool holds = call->status == KV_OK || call->status == KV_MISSING;
        if (holds && expiry.expires_unix_ns != 0) {
            kv_embedded_store_keep(call->attached->inner, &call->key, &expiry);
        }
        call->promised(call->context, &promise);
        return;
    }
    if (call->status == KV_OK || call->status == KV_NO_SPACE) { /* it is there, if not on disk */
        leave_device(call);
    }
    call->spilled(call->context, call->status, call->object_count, call->bytes);
}

void kv_calls_advance(kv_attached_t *attached)
{
    for (kv_attached_call_t *call = attached->first_call; call != NULL; call = call->next) {
        if (call->asked || kv_through_before(attached, call->serial)) {
            continue;
        }
        kv_status_t status = send(call);
        if (status == KV_BUSY) {
            break; /* too many are unanswered: their answers come, or the connection ends */
        }
        call->asked = true;
        call->ended = status != KV_OK;
        call->status = status;
    }
    for (kv_attached_call_t **link = &attached->first_call; *link != NULL;) {
        kv_attached_call_t *call = *link;
        if (!call->ended) {
            link = &call->next;
            continue;
        }
        *link = call->next;
        tell(call);
        free(call);
    }
}
