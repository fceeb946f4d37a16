#include "runtime/context.h"

#include "base/clock.h"
#include "base/memory.h"
#include "runtime/message.h"
#include "runtime/promises.h"

#include <stdlib.h>
#include <string.h>

enum { PROMOTE_LIMIT_S = 60, RUNS_MAX = 64 };

typedef struct {
    kv_core_t *core;
    kv_peer_t *peer; /* NULL once it is gone */
    uint64_t id;
    Kvist__Wire__ContextAction action;
    kvist_key_t name_space;
    uint32_t *tokens;
    uint32_t token_count, stored_blocks;
    uint32_t device_blocks; /* of a spill: that a second step is about; 0: there was none */
    uint64_t expected_next_use_unix_ns;
    kvist_lease_t *lease; /* while it is brought back */
    kv_promises_t promises;
    bool waiting; /* the store will call back */
    bool answered;
    uint64_t bytes, load_ns;
} context_t;

static uint32_t block_tokens(const context_t *context)
{
    return context->core->info->shape.block_tokens;
}

static void send_done(kv_peer_t *peer, Kvist__Wire__ContextDone *done)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CONTEXT_DONE;
    envelope.context_done = done;
    kv_holder_send(peer, &envelope);
}

static void answer(context_t *context, kv_status_t status, const char *text)
{
    Kvist__Wire__ContextDone done = KVIST__WIRE__CONTEXT_DONE__INIT;
    context->answered = true;
    if (context->peer == NULL) {
        return;
    }
    done.id = context->id;
    done.status = (uint32_t)status;
    done.error = (char *)(status == KV_OK ? "" : text != NULL ? text : kv_status_name(status));
    done.token_count = context->stored_blocks * block_tokens(context);
    done.bytes = context->bytes;
    done.load_ns = context->load_ns;
    send_done(context->peer, &done);
}

/* ---- what is stored of it ---- */

/* From where it lies now; also, how many leading blocks the last one in device memory ends. */
static void look_at_runs(context_t *context, const kvist_lease_t *lease)
{
    kvist_run_t runs[RUNS_MAX];
    size_t count = kvist_lease_runs(lease, runs, RUNS_MAX);
    context->load_ns = context->device_blocks = 0;
    for (size_t i = 0; i < count && i < RUNS_MAX; i++) {
        context->load_ns += runs[i].cost_ns;
        if (runs[i].tier == KVIST_TIER_DEVICE) {
            context->device_blocks = runs[i].first_block + runs[i].block_count;
        }
    }
}

/* Held, for the moment. */
static kv_status_t find(context_t *context, kvist_lease_t **lease_out)
{
    kvist_query_t query = {
        .name_space = context->name_space,
        .tokens = context->tokens,
        .token_count = context->token_count,
        .mode = KVIST_MODE_READ,
        .terms.expected_next_use_unix_ns = context->expected_next_use_unix_ns,
        .uncounted = true,
    };
    kvist_match_t match;
    kv_status_t status = kvist_match(context->core->holder.store, &query, lease_out, &match);
    if (status == KV_OK) {
        context->stored_blocks = match.block_count;
    }
    return status;
}

/* Of its leading blocks. */
static kvist_key_t last_key(const context_t *context, uint32_t count)
{
    kvist_key_t *keys = kv_allocate_array(count, sizeof *keys);
    kvist_keys(&context->name_space, context->tokens, NULL, (size_t)count * block_tokens(context),
        block_tokens(context), keys);
    kvist_key_t last = keys[count - 1];
    free(keys);
    return last;
}

/* ---- the actions ---- */

static void spilled(void *owner, kv_status_t status, uint64_t object_count, uint64_t bytes);

static void spill_up_to(context_t *context, uint32_t block_count)
{
    kvist_key_t key = last_key(context, block_count);
    context->waiting = true;
    kvist_store_spill(context->core->holder.store, &key, spilled, context);
}

/* The end of it may be with the kvist-store alone, where other nodes put it: what is before that in
 * device memory here leaves in a second step. */
static void spilled(void *owner, kv_status_t status, uint64_t object_count, uint64_t bytes)
{
    context_t *context = owner;
    kvist_lease_t *lease;
    (void)object_count;
    bool again = context->device_blocks > 0;
    context->waiting = false;
    context->bytes += bytes;
    if (!context->core->holder.stopping && find(context, &lease) == KV_OK) {
        look_at_runs(context, lease);
        kvist_lease_release(lease);
        if (!again && status == KV_OK && context->device_blocks > 0) {
            spill_up_to(context, context->device_blocks);
            return;
        }
    }
    answer(context, status,
        status == KV_NO_SPACE ? "the disk did not take all of it, or there is none" : NULL);
}

static void spill(context_t *context, kvist_lease_t *lease)
{
    kvist_lease_release(lease);
    spill_up_to(context, context->stored_blocks);
}

static void prepared(
    void *owner, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    context_t *context = owner;
    context->waiting = false;
    if (context->lease == NULL) { /* the node stops */
        answer(context, KV_CANCELLED, NULL);
        return;
    }
    context->lease = NULL;
    if (status == KV_OK) {
        context->stored_blocks = match->block_count;
    }
    kvist_lease_release(lease);
    answer(context, status, status == KV_BUSY ? "no room in device memory" : NULL);
}

static void promote(context_t *context, kvist_lease_t *lease)
{
    uint64_t deadline_ns = kv_clock_now_ns() + (uint64_t)PROMOTE_LIMIT_S * KV_NS_PER_S;
    kv_status_t status =
        kvist_lease_prepare(lease, context->stored_blocks, deadline_ns, prepared, context);
    if (status != KV_OK) {
        kvist_lease_release(lease);
        answer(context, status,
            status == KV_INVALID ? "device memory is smaller than the context" : NULL);
        return;
    }
    context->lease = lease;
    context->waiting = true;
}

static void keep(context_t *context, kvist_lease_t *lease)
{
    const kvist_terms_t none = {0};
    kvist_key_t key = last_key(context, context->stored_blocks);
    kvist_lease_release(lease);
    kv_status_t status = kvist_store_keep(context->core->holder.store, &key, &none);
    kv_promises_ask(&context->promises, context->core, &context->name_space, context->tokens,
        context->token_count);
    answer(context, status, NULL);
}

/* The first one that does not hold is why the whole is not done. */
static void promised(void *owner)
{
    context_t *context = owner;
    const kv_promises_t *promises = &context->promises;
    const char *why_not = "";
    for (uint32_t i = 0; i < promises->count && why_not[0] == '\0'; i++) {
        why_not = promises->items[i].granted.why_not;
    }
    answer(context, why_not[0] == '\0' ? KV_OK : KV_REFUSED, why_not);
}

static void promise(context_t *context, kvist_lease_t *lease)
{
    kv_promises_t *promises = &context->promises;
    uint32_t stored = context->stored_blocks * block_tokens(context);
    kvist_lease_release(lease);
    for (uint32_t i = 0; i < promises->count; i++) {
        Kvist__Wire__Promise *asked = &promises->asked[i];
        asked->token_count = asked->token_count < stored ? asked->token_count : stored;
    }
    promises->known = promised;
    promises->context = context;
    kv_promises_ask(promises, context->core, &context->name_space, context->tokens, stored);
    if (promises->open_count == 0) {
        promised(context);
    }
}

static void begin(context_t *context)
{
    kvist_lease_t *lease;
    kv_status_t status = find(context, &lease);
    if (status != KV_OK) {
        answer(context, status, NULL);
    } else if (context->stored_blocks == 0) {
        kvist_lease_release(lease);
        answer(context, KV_MISSING, "nothing of it is stored here");
    } else if (context->action == KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL) {
        spill(context, lease);
    } else if (context->action == KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMOTE) {
        promote(context, lease);
    } else if (context->action == KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMISE) {
        promise(context, lease);
    } else {
        keep(context, lease);
    }
}

/* ---- its life among the node's requests ---- */

static bool is_from(const void *owner, const kv_peer_t *peer)
{
    return ((const context_t *)owner)->peer == peer;
}

static void peer_down(void *owner, kv_peer_t *peer)
{
    context_t *context = owner;
    if (context->peer == peer) {
        context->peer = NULL;
    }
}

/* Its callback still runs, with KV_CANCELLED. */
static void stop(void *owner)
{
    context_t *context = owner;
    kvist_lease_t *lease = context->lease;
    if (lease != NULL) {
        context->lease = NULL;
        kvist_lease_release(lease);
    }
}

static bool is_done(const void *owner)
{
    const context_t *context = owner;
    return context->answered && !context->waiting && context->promises.open_count == 0;
}

static void destroy(void *owner)
{
    context_t *context = owner;
    free(context->tokens);
    free(context);
}

static const kv_request_ops_t CONTEXT_OPS = {
    .is_from = is_from,
    .peer_down = peer_down,
    .stop = stop,
    .is_done = is_done,
    .destroy = destroy,
};

static kv_kept_fields_t kept_fields(const Kvist__Wire__Context *asked)
{
    return (kv_kept_fields_t){.tenant = "",
        .expected_next_use_unix_ms = asked->expected_next_use_unix_ms,
        .promise_count = asked->n_promises,
        .promises = asked->promises};
}

static bool computes_prompts(const kv_core_t *core)
{
    return core->holder.role == KVIST__WIRE__ROLE__ROLE_PREFILL;
}

static kv_status_t check(
    const kv_core_t *core, const Kvist__Wire__Context *asked, kv_error_t *error)
{
    const kv_options_t *options = core->holder.options;
    const kv_kept_fields_t kept = kept_fields(asked);
    kv_status_t status =
        computes_prompts(core)
            ? kv_message_check_room(core, options->prefill.queue_max, "prefill.queue_max", error)
            : kv_message_check_room(core, options->decode.queue_max, "decode.queue_max", error);
    if (status == KV_OK && asked->salt.len > KV_MESSAGE_SALT_BYTES_MAX) {
        status = kv_fail(error, KV_INVALID, "salt: %zu bytes (at most %d)", asked->salt.len,
            KV_MESSAGE_SALT_BYTES_MAX);
    }
    if (status == KV_OK &&
        (asked->n_tokens == 0 || asked->n_tokens > core->info->context_tokens_max)) {
        status = kv_fail(error, KV_INVALID, "tokens: %zu of them (1 to %u)", asked->n_tokens,
            core->info->context_tokens_max);
    }
    if (status == KV_OK && (asked->action < KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL ||
                               asked->action > KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMISE)) {
        status = kv_fail(error, KV_INVALID, "action is %d (1 to 4)", (int)asked->action);
    }
    if (status == KV_OK) {
        status = kv_message_check_tokens(
            asked->tokens, asked->n_tokens, core->info->vocabulary_count, error);
    }
    return status == KV_OK ? kv_promises_check(&kept, asked->n_tokens, error) : status;
}

void kv_context_accept(kv_core_t *core, kv_peer_t *peer, const Kvist__Wire__Context *asked)
{
    kv_error_t error;
    kv_status_t status = check(core, asked, &error);
    if (status != KV_OK) {
        Kvist__Wire__ContextDone done = KVIST__WIRE__CONTEXT_DONE__INIT;
        done.id = asked->id;
        done.status = (uint32_t)status;
        done.error = error.text;
        send_done(peer, &done);
        return;
    }
    const kv_kept_fields_t kept = kept_fields(asked);
    context_t *context = kv_allocate(sizeof *context);
    *context = (context_t){
        .core = core,
        .peer = peer,
        .id = asked->id,
        .action = asked->action,
        .name_space = kv_core_namespace(core, asked->salt.data, asked->salt.len),
        .tokens = kv_allocate_array(asked->n_tokens, sizeof *context->tokens),
        .token_count = (uint32_t)asked->n_tokens,
        .expected_next_use_unix_ns = asked->expected_next_use_unix_ms * KV_NS_PER_MS,
    };
    memcpy(context->tokens, asked->tokens, asked->n_tokens * sizeof *context->tokens);
    kv_promises_take(&context->promises, &kept, computes_prompts(core));
    begin(context);
    kv_requests_add_as(&core->holder.requests, &CONTEXT_OPS, context);
    kv_holder_keep_ticking(&core->holder);
}
