#include "runtime/promises.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define UNIX_MS_MAX ((uint64_t)UINT32_MAX * 1000)

/* ---- what a message may say ---- */

static kv_status_t check_promise(
    const Kvist__Wire__Promise *promise, size_t prompt_count, kv_error_t *error)
{
    if (promise->token_count == 0 || promise->token_count > prompt_count) {
        return kv_fail(error, KV_INVALID, "promises.token_count is %u (1 to %zu)",
            promise->token_count, prompt_count);
    }
    if (promise->pin_until_unix_ms > UNIX_MS_MAX || promise->expires_unix_ms > UNIX_MS_MAX) {
        return kv_fail(error, KV_INVALID,
            "promises: pin_until_unix_ms %" PRIu64 ", expires_unix_ms %" PRIu64 " (at most %" PRIu64
            ")",
            promise->pin_until_unix_ms, promise->expires_unix_ms, UNIX_MS_MAX);
    }
    return KV_OK;
}

kv_status_t kv_promises_check(
    const kv_kept_fields_t *fields, size_t prompt_count, kv_error_t *error)
{
    if ((unsigned)fields->priority >= KVIST_PRIORITY_COUNT) {
        return kv_fail(error, KV_INVALID, "priority is %d (0 to %d)", (int)fields->priority,
            KVIST_PRIORITY_COUNT - 1);
    }
    if (fields->tenant[0] != '\0' &&
        !kv_text_is_plain(fields->tenant, '!', KVIST_TENANT_BYTES_MAX)) {
        return kv_fail(error, KV_INVALID, "tenant is not at most %d printable characters",
            KVIST_TENANT_BYTES_MAX);
    }
    if (fields->expected_next_use_unix_ms > UNIX_MS_MAX) {
        return kv_fail(
            error, KV_INVALID, "expected_next_use_unix_ms is above %" PRIu64, UNIX_MS_MAX);
    }
    if (fields->promise_count > KV_PROMISES_MAX) {
        return kv_fail(error, KV_INVALID, "promises: %zu of them (at most %d)",
            fields->promise_count, KV_PROMISES_MAX);
    }
    kv_status_t status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < fields->promise_count; i++) {
        status = check_promise(fields->promises[i], prompt_count, error);
    }
    return status;
}

static void take_one(kv_promises_t *promises, const Kvist__Wire__Promise *message)
{
    uint32_t at = promises->count++;
    kv_promise_t *promise = &promises->items[at];
    promises->asked[at] = *message;
    promises->asked_list[at] = &promises->asked[at];
    *promise = (kv_promise_t){
        .of = promises,
        .terms.expires_unix_ns = message->expires_unix_ms * KV_NS_PER_MS,
    };
    if (!promises->limits_only) {
        promise->terms.pin_until_unix_ns = message->pin_until_unix_ms * KV_NS_PER_MS;
    }
    kvist__wire__granted__init(&promise->granted);
    promises->granted_list[at] = &promise->granted;
}

void kv_promises_take(kv_promises_t *promises, const kv_kept_fields_t *fields, bool limits_only)
{
    promises->limits_only = limits_only;
    snprintf(promises->tenant, sizeof promises->tenant, "%s", fields->tenant);
    promises->terms = (kvist_terms_t){
        .priority = (kvist_priority_t)fields->priority,
        .tenant = promises->tenant,
        .expected_next_use_unix_ns = fields->expected_next_use_unix_ms * KV_NS_PER_MS,
    };
    for (size_t i = 0; i < fields->promise_count; i++) {
        if (!limits_only || fields->promises[i]->expires_unix_ms > 0) {
            take_one(promises, fields->promises[i]);
        }
    }
}

/* ---- asking ---- */

static const char *why_not(kv_status_t status)
{
    switch (status) {
    case KV_OK:
        return "";
    case KV_NO_SPACE:
        return "pins take all the room that they may";
    case KV_MISSING:
        return "it is not stored";
    case KV_INVALID:
        return "it is over already, or a limit ends before it, or what goes on from it is "
               "promised for longer";
    case KV_BUSY:
        return "the node has just started";
    case KV_PEER_LOST:
        return "kvist-store does not answer";
    case KV_REFUSED:
        return "kvist-store is of a version that knows no promises";
    default:
        return kv_status_name(status);
    }
}

static void take_outcome(kv_promise_t *promise, const kvist_promise_t *outcome)
{
    Kvist__Wire__Granted *granted = &promise->granted;
    granted->why_not = (char *)why_not(outcome->status);
    if (outcome->status == KV_OK) {
        granted->pin_until_unix_ms = outcome->pin_until_unix_ns / KV_NS_PER_MS;
        granted->expires_unix_ms = outcome->expires_unix_ns / KV_NS_PER_MS;
    } else {
        granted->token_count = 0;
    }
}

static void promised(void *context, const kvist_promise_t *outcome)
{
    kv_promise_t *promise = context;
    kv_promises_t *promises = promise->of;
    take_outcome(promise, outcome);
    if (--promises->open_count == 0 && promises->known != NULL) {
        promises->known(promises->context);
    }
}

void kv_promises_ask(kv_promises_t *promises, const kv_core_t *core, const kvist_key_t *name_space,
    const uint32_t *tokens, uint32_t token_count)
{
    uint32_t block_tokens = core->info->shape.block_tokens;
    if (promises->were_asked || promises->count == 0) {
        return;
    }
    promises->were_asked = true;
    kvist_key_t *keys = kv_allocate_array(token_count / block_tokens + 1, sizeof *keys);
    kvist_keys(name_space, tokens, NULL, token_count, block_tokens, keys);
    for (uint32_t i = 0; i < promises->count; i++) {
        kv_promise_t *promise = &promises->items[i];
        uint32_t blocks = promises->asked[i].token_count / block_tokens;
        kvist_promise_t outcome;
        promise->granted.token_count = blocks * block_tokens;
        if (blocks == 0) {
            promise->granted.why_not = (char *)"it is less than a block";
        } else if (kvist_store_promise(core->holder.store, &keys[blocks - 1], &promise->terms,
                       promised, promise, &outcome)) {
            take_outcome(promise, &outcome);
        } else {
            promises->open_count++;
        }
    }
    free(keys);
}

void kv_promises_tell(kv_promises_t *promises, Kvist__Wire__Usage *usage)
{
    bool known = promises->were_asked && promises->open_count == 0;
    usage->n_granted = known ? promises->count : 0;
    usage->granted = known ? promises->granted_list : NULL;
}
