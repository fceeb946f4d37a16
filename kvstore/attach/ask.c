/* What is about the store as a whole: asked of the service, which has host and disk tier, and of
 * the inner store, which has the device. */
#include "kvstore/attach/attached_internal.h"

#include "kvstore/attach/attached_ops.h"
#include "kvstore/attach/told.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

enum { STATS_MS = 250 };

static kv_status_t status_of(uint32_t code)
{
    return code <= KV_FATAL ? (kv_status_t)code : KV_FATAL;
}

/* Asked for with a bounded wait: the answer of that kind, or NULL with the status. */
static Kvist__Store__Answer *ask_now(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind,
    void *body, uint64_t *id, Kvist__Store__Answer__BodyCase wanted, kv_status_t *status_out)
{
    Kvist__Store__Answer *answer = NULL;
    *status_out =
        kv_link_ask_now(attached, kind, body, id, attached->bounds.call_ms, NULL, NULL, &answer);
    if (*status_out == KV_OK && answer->body_case != wanted) {
        kvist__store__answer__free_unpacked(answer, NULL);
        answer = NULL;
        *status_out = KV_PEER_LOST;
    }
    return answer;
}

static kv_status_t away(const kv_attached_t *attached, kv_error_t *error)
{
    return kv_fail(error, KV_PEER_LOST, "attach: %s: kvist-store does not answer", attached->path);
}

/* ---- flush ---- */

typedef struct kv_attached_flush {
    kv_attached_t *attached;
    uint64_t serial; /* what is to be written through before */
    bool asked, ended;
    kv_status_t status;
    void (*done)(void *context, kv_status_t status);
    void *context;
    struct kv_attached_flush *next;
} flush_t;

static void flush_answered(void *owner, const Kvist__Store__Answer *answer)
{
    flush_t *flush = owner;
    flush->ended = true;
    flush->status = answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_DONE
                        ? status_of(answer->done->code)
                        : KV_PEER_LOST;
    kv_attached_kick(flush->attached);
}

void kv_attached_store_flush(
    kvist_store_t *store, void (*done)(void *context, kv_status_t status), void *context)
{
    kv_attached_t *attached = kv_attached_of(store);
    flush_t *flush = kv_allocate(sizeof *flush), **link = &attached->first_flush;
    *flush = (flush_t){
        .attached = attached,
        .serial = attached->through_serial,
        .done = done,
        .context = context,
    };
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = flush;
    kv_attached_kick(attached);
}

static void ask_flush(flush_t *flush)
{
    Kvist__Store__Flush asked = KVIST__STORE__FLUSH__INIT;
    kv_status_t status = kv_link_ask(flush->attached, KVIST__STORE__REQUEST__BODY_FLUSH, &asked,
        &asked.id, flush_answered, flush);
    flush->asked = true;
    if (status != KV_OK) {
        flush->ended = true;
        flush->status = status;
    }
}

void kv_flushes_advance(kv_attached_t *attached)
{
    for (flush_t *flush = attached->first_flush; flush != NULL; flush = flush->next) {
        if (!flush->asked && !kv_through_before(attached, flush->serial)) {
            ask_flush(flush);
        }
    }
    while (attached->first_flush != NULL && attached->first_flush->ended) {
        flush_t *flush = attached->first_flush;
        attached->first_flush = flush->next;
        flush->done(flush->context, flush->status);
        free(flush);
    }
}

/* ---- keep, drop ---- */

kv_status_t kv_attached_store_keep(
    kvist_store_t *store, const kvist_key_t *key, const kvist_terms_t *terms)
{
    kv_attached_t *attached = kv_attached_of(store);
    Kvist__Store__Keep asked = KVIST__STORE__KEEP__INIT;
    Kvist__Store__Terms message;
    kv_told_terms_pack(terms, &message);
    asked.key = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)key->bytes};
    asked.terms = &message;
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_KEEP, &asked,
        &asked.id, KVIST__STORE__ANSWER__BODY_DONE, &status);
    if (answer != NULL) {
        status = status_of(answer->done->code);
        kvist__store__answer__free_unpacked(answer, NULL);
    }
    if (status == KV_OK) { /* the device's copy, where there is one, goes no later; its pin is
                              the service's affair */
        const kvist_terms_t expiry = {
            .priority = terms->priority, .expires_unix_ns = terms->expires_unix_ns};
        kv_embedded_store_keep(attached->inner, key, &expiry);
    }
    return status;
}

typedef struct {
    kv_attached_t *attached;
    kvist_dropped_t done;
    void *context;
    kv_status_t status;        /* the service's */
    kv_status_t device_status; /* KV_MISSING: there is no copy */
    uint64_t object_count, device_count;
    uint32_t parts_out;
} drop_t;

/* What the service does not have, or no longer has, may still be on the device: then that is what
 * was dropped. */
static void drop_ended(drop_t *drop)
{
    if (--drop->parts_out > 0) {
        return;
    }
    bool here_alone = drop->status == KV_MISSING && drop->device_status == KV_OK;
    kv_status_t status = here_alone ? KV_OK : drop->status;
    if (drop->device_status == KV_BUSY && (status == KV_OK || status == KV_MISSING)) {
        status = KV_BUSY; /* its bytes are still there */
    }
    drop->attached->calls_out--;
    drop->done(drop->context, status, here_alone ? drop->device_count : drop->object_count);
    free(drop);
}

static void drop_answered(void *owner, const Kvist__Store__Answer *answer)
{
    drop_t *drop = owner;
    bool good = answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_DONE;
    drop->status = good ? status_of(answer->done->code) : KV_PEER_LOST;
    drop->object_count = good ? answer->done->count : 0;
    drop_ended(drop);
}

static void inner_dropped(void *context, kv_status_t status, uint64_t object_count)
{
    drop_t *drop = context;
    drop->device_status = status;
    drop->device_count = object_count;
    drop_ended(drop);
}

/* Tiers of the service are dropped by whoever runs it. */
kv_status_t kv_attached_store_drop_tenant(
    kvist_store_t *store, const char *tenant, kvist_dropped_t done, void *context)
{
    return kv_embedded_store_drop_tenant(((kv_attached_t *)store)->inner, tenant, done, context);
}

kv_status_t kv_attached_store_drop(
    kvist_store_t *store, const kvist_key_t *key, bool erase, kvist_dropped_t done, void *context)
{
    kv_attached_t *attached = kv_attached_of(store);
    drop_t *drop = kv_allocate(sizeof *drop);
    *drop = (drop_t){.attached = attached, .done = done, .context = context, .parts_out = 1};
    Kvist__Store__Drop asked = KVIST__STORE__DROP__INIT;
    asked.key = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)key->bytes};
    asked.erase = erase;
    kv_status_t status = kv_link_ask(
        attached, KVIST__STORE__REQUEST__BODY_DROP, &asked, &asked.id, drop_answered, drop);
    if (status != KV_OK) {
        free(drop);
        return status;
    }
    attached->calls_out++;
    drop->device_status = kv_embedded_store_drop(attached->inner, key, erase, inner_dropped, drop);
    drop->parts_out += drop->device_status == KV_OK;
    return KV_OK;
}

/* ---- verify, quota ---- */

typedef struct {
    kv_attached_t *attached;
    void (*progress)(void *context, const kvist_verify_t *state);
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state);
    void *context;
} verify_t;

static void verify_answered(void *owner, const Kvist__Store__Answer *answer)
{
    verify_t *verify = owner;
    kvist_verify_t state = {0};
    bool good = answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_VERIFIED;
    if (good) {
        kv_told_verify_unpack(answer->verified->numbers, answer->verified->n_numbers, &state);
    }
    if (good && !answer->verified->ended) {
        if (verify->progress != NULL) {
            verify->progress(verify->context, &state);
        }
        return;
    }
    verify->attached->calls_out--;
    verify->done(verify->context, good ? status_of(answer->verified->code) : KV_PEER_LOST, &state);
    free(verify);
}

kv_status_t kv_attached_store_verify(kvist_store_t *store,
    void (*progress)(void *context, const kvist_verify_t *state),
    void (*done)(void *context, kv_status_t status, const kvist_verify_t *state), void *context)
{
    kv_attached_t *attached = kv_attached_of(store);
    verify_t *verify = kv_allocate(sizeof *verify);
    *verify = (verify_t){attached, progress, done, context};
    Kvist__Store__Verify asked = KVIST__STORE__VERIFY__INIT;
    kv_status_t status = kv_link_ask(
        attached, KVIST__STORE__REQUEST__BODY_VERIFY, &asked, &asked.id, verify_answered, verify);
    if (status != KV_OK) {
        free(verify);
        return status;
    }
    attached->calls_out++;
    return KV_OK;
}

kv_status_t kv_attached_store_set_disk_bytes(
    kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error)
{
    kv_attached_t *attached = kv_attached_of(store);
    Kvist__Store__SetDiskBytes asked = KVIST__STORE__SET_DISK_BYTES__INIT;
    asked.bytes = disk_bytes;
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_SET_DISK_BYTES,
        &asked, &asked.id, KVIST__STORE__ANSWER__BODY_DONE, &status);
    if (answer == NULL) {
        return away(attached, error);
    }
    status = status_of(answer->done->code);
    if (status != KV_OK) {
        kv_fail(error, status, "%s", answer->done->text);
    }
    kvist__store__answer__free_unpacked(answer, NULL);
    return status;
}

/* A client has no say in what other clients' tenants may have. */
kv_status_t kv_attached_store_set_quota(
    kvist_store_t *store, const kvist_quota_t *quota, kv_error_t *error)
{
    (void)store;
    (void)quota;
    return kv_fail(error, KV_REFUSED,
        "tenants' quotas are the kvist-store's that this store is attached to: its option "
        "store.tenants, or kvist quota --tenant there");
}

/* Of the device tier, which is this store's own. */
void kv_attached_store_tenants(const kvist_store_t *store,
    void (*visit)(void *context, const kvist_tenant_t *tenant), void *context)
{
    kvist_store_tenants(kv_attached_of(store)->inner, visit, context);
}

/* ---- looking in ---- */

void kv_attached_store_stats(const kvist_store_t *store, kvist_stats_t *stats_out)
{
    kv_attached_t *attached = kv_attached_of(store);
    kvist_stats_t inner, told = attached->told;
    kv_embedded_store_stats(attached->inner, &inner);
    told.tiers[KVIST_TIER_DEVICE] = inner.tiers[KVIST_TIER_DEVICE];
    for (int tier = KVIST_TIER_HOST; tier <= KVIST_TIER_DISK; tier++) {
        told.tiers[tier].hit_blocks = attached->loaded[tier].hit_blocks;
        told.tiers[tier].read_bytes = attached->loaded[tier].read_bytes;
    }
    told.slots_free = inner.slots_free;
    told.slots_private = inner.slots_private;
    told.leases = 0;
    for (const kv_attached_lease_t *lease = attached->leases; lease != NULL; lease = lease->next) {
        told.leases++;
    }
    memcpy(told.miss_count, attached->miss_count, sizeof told.miss_count);
    told.io = told.io != NULL ? told.io : "none";
    *stats_out = told;
    if (attached->told_ns == 0 ||
        kv_attached_now_ns(attached) - attached->told_ns > (uint64_t)STATS_MS * KV_NS_PER_MS) {
        kv_link_ask_stats(attached); /* for the next time */
    }
}

static kv_status_t find_served(
    kv_attached_t *attached, const char *digits, kvist_key_t *key_out, kv_error_t *error)
{
    Kvist__Store__Find asked = KVIST__STORE__FIND__INIT;
    asked.digits = (char *)digits;
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_FIND, &asked,
        &asked.id, KVIST__STORE__ANSWER__BODY_FOUND, &status);
    if (answer == NULL) {
        return away(attached, error);
    }
    status = status_of(answer->found->code);
    if (status == KV_OK && answer->found->key.len == KVIST_KEY_BYTES) {
        memcpy(key_out->bytes, answer->found->key.data, KVIST_KEY_BYTES);
    } else {
        status = kv_fail(error, status != KV_OK ? status : KV_FATAL, "%s", answer->found->text);
    }
    kvist__store__answer__free_unpacked(answer, NULL);
    return status;
}

/* What the service lacks may be on the device. */
kv_status_t kv_attached_store_find(
    const kvist_store_t *store, const char *digits, kvist_key_t *key_out, kv_error_t *error)
{
    kv_attached_t *attached = kv_attached_of(store);
    kv_status_t status = find_served(attached, digits, key_out, error);
    kv_error_t unused;
    if (status == KV_OK || status == KV_INVALID) {
        return status;
    }
    return kv_embedded_store_find(attached->inner, digits, key_out, &unused) == KV_OK ? KV_OK
                                                                                      : status;
}

kv_status_t kv_attached_store_show(
    const kvist_store_t *store, const kvist_key_t *key, kvist_object_t *object_out)
{
    kv_attached_t *attached = kv_attached_of(store);
    kvist_object_t inner;
    bool on_device = kv_embedded_store_show(attached->inner, key, &inner) == KV_OK;
    Kvist__Store__Show asked = KVIST__STORE__SHOW__INIT;
    asked.key = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)key->bytes};
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_SHOW, &asked,
        &asked.id, KVIST__STORE__ANSWER__BODY_FOUND, &status);
    if (answer != NULL) {
        status = status_of(answer->found->code);
        if (status == KV_OK && answer->found->object != NULL) {
            kv_told_object_unpack(answer->found->object, object_out);
            object_out->tiers[KVIST_TIER_DEVICE] = on_device;
        } else if (status == KV_OK) {
            status = KV_FATAL;
        }
        kvist__store__answer__free_unpacked(answer, NULL);
    }
    if (status != KV_OK && on_device) {
        *object_out = inner;
        status = KV_OK;
    }
    return status;
}

void kv_attached_store_list(const kvist_store_t *store, size_t count_max,
    void (*visit)(void *context, const kvist_context_t *entry), void *context)
{
    kv_attached_t *attached = kv_attached_of(store);
    Kvist__Store__List asked = KVIST__STORE__LIST__INIT;
    asked.count_max = count_max < UINT32_MAX ? (uint32_t)count_max : UINT32_MAX;
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_LIST, &asked,
        &asked.id, KVIST__STORE__ANSWER__BODY_LISTED, &status);
    for (size_t i = 0; answer != NULL && i < answer->listed->n_contexts && i < count_max; i++) {
        kvist_context_t entry;
        kv_told_context_unpack(answer->listed->contexts[i], &entry);
        visit(context, &entry);
    }
    if (answer != NULL) {
        kvist__store__answer__free_unpacked(answer, NULL);
    }
}

/* ---- namespaces ---- */

static void say_described(kv_attached_t *attached, const kv_described_t *described)
{
    Kvist__Store__Describe said = KVIST__STORE__DESCRIBE__INIT;
    const struct {
        ProtobufCBinaryData *field;
        const kvist_key_t *key;
    } keys[] = {
        {&said.name_space, &described->name_space},
        {&said.model, &described->model},
        {&said.layout, &described->layout},
        {&said.salt, &described->salt},
        {&said.adapter, &described->adapter},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        *keys[i].field = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)keys[i].key->bytes};
    }
    said.dtype = described->dtype;
    said.codec_class = described->codec_class;
    kv_link_say(attached, KVIST__STORE__REQUEST__BODY_DESCRIBE, &said);
}

void kv_attached_store_describe(kvist_store_t *store, const kvist_namespace_params_t *params)
{
    kv_attached_t *attached = kv_attached_of(store);
    const kv_described_t described = kv_why_digests(params);
    if (kv_why_describe(attached->inner, &described) && attached->link.state == KV_LINK_UP) {
        say_described(attached, &described);
    }
}

void kv_attached_describe_all(kv_attached_t *attached)
{
    uint32_t count = kv_why_described_count(attached->inner);
    for (uint32_t i = 0; i < count && attached->link.state == KV_LINK_UP; i++) {
        say_described(attached, &attached->inner->described[i]);
    }
}

/* ---- why, tokens ---- */

/* What the service finds; it answers for the query's own namespace alone. */
static kv_status_t ask_why(
    kv_attached_t *attached, const kvist_why_query_t *query, kvist_match_t *match_out)
{
    Kvist__Store__Why asked = KVIST__STORE__WHY__INIT;
    asked.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)query->name_space.bytes};
    asked.tokens = (ProtobufCBinaryData){
        query->token_count * sizeof *query->tokens, (uint8_t *)(void *)query->tokens};
    asked.extras =
        kv_attached_pack_extras(query->extras, query->token_count / attached->layout.block_tokens);
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_WHY, &asked,
        &asked.id, KVIST__STORE__ANSWER__BODY_KNOWN, &status);
    if (answer == NULL) {
        return status;
    }
    const Kvist__Store__Known *known = answer->known;
    status = status_of(known->code);
    if (status == KV_OK) {
        *match_out = (kvist_match_t){
            .block_count = known->block_count,
            .miss = known->miss < KVIST_MISS_COUNT ? (kvist_miss_t)known->miss : KVIST_MISS_FAILED,
        };
        match_out->tier_blocks[KVIST_TIER_HOST] = known->host_blocks;
        match_out->tier_blocks[KVIST_TIER_DISK] = known->disk_blocks;
        if (known->detail != NULL) {
            kv_told_detail_unpack(known->detail, &match_out->detail);
        }
    }
    kvist__store__answer__free_unpacked(answer, NULL);
    return status;
}

/* The service counts by its tiers; what the device has too counts as the device's. */
static void count_device(kv_attached_t *attached, const kvist_why_query_t *query,
    uint32_t device_blocks, kvist_match_t *match)
{
    kvist_why_query_t first = *query;
    first.token_count = (size_t)device_blocks * attached->layout.block_tokens;
    kvist_match_t there = {0};
    if (device_blocks > 0 && ask_why(attached, &first, &there) == KV_OK) {
        match->tier_blocks[KVIST_TIER_DEVICE] = device_blocks;
        for (int tier = KVIST_TIER_HOST; tier <= KVIST_TIER_DISK; tier++) {
            uint32_t less = there.tier_blocks[tier], all = match->tier_blocks[tier];
            match->tier_blocks[tier] = less < all ? all - less : 0;
        }
    }
}

/* Whichever found more also knows why it is not more, as for a match. */
kv_status_t kv_attached_why(
    kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why_out)
{
    kv_attached_t *attached = kv_attached_of(store);
    kvist_why_t why;
    kvist_match_t served;
    if (!kv_attached_asks_well(attached, query->token_count, query->extras)) {
        return KV_INVALID;
    }
    kv_status_t status = kv_embedded_why(attached->inner, query, &why);
    if (status != KV_OK) {
        return status;
    }
    kvist_match_t *match = &why.match;
    bool all = match->miss == KVIST_MISS_NONE || match->miss == KVIST_MISS_SHORT;
    status = ask_why(attached, query, &served);
    if (status == KV_OK && served.block_count >= match->block_count) {
        count_device(attached, query, match->block_count, &served);
        why = (kvist_why_t){.match = served, .block_tokens = why.block_tokens};
    } else if (status != KV_OK && !all) { /* the service is away */
        match->miss = KVIST_MISS_FAILED;
        match->detail = (kvist_miss_detail_t){.block = match->block_count};
    }
    *why_out = why;
    return KV_OK;
}

kv_status_t kv_attached_store_tokens(
    kvist_store_t *store, const kvist_key_t *key, uint32_t *tokens_out, kvist_key_t *extra_out)
{
    kv_attached_t *attached = kv_attached_of(store);
    size_t bytes = attached->layout.block_tokens * sizeof *tokens_out;
    if (kv_embedded_store_tokens(attached->inner, key, tokens_out, extra_out) == KV_OK) {
        return KV_OK;
    }
    Kvist__Store__GetTokens asked = KVIST__STORE__GET_TOKENS__INIT;
    asked.key = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)key->bytes};
    kv_status_t status;
    Kvist__Store__Answer *answer = ask_now(attached, KVIST__STORE__REQUEST__BODY_TOKENS, &asked,
        &asked.id, KVIST__STORE__ANSWER__BODY_FOUND, &status);
    if (answer == NULL) {
        return status;
    }
    status = status_of(answer->found->code);
    const Kvist__Store__Found *found = answer->found;
    if (status == KV_OK &&
        (found->tokens.len != bytes || found->extra.len != sizeof extra_out->bytes)) {
        status = KV_FATAL;
    }
    if (status == KV_OK) {
        memcpy(tokens_out, found->tokens.data, bytes);
    }
    if (status == KV_OK && extra_out != NULL) {
        memcpy(extra_out->bytes, found->extra.data, sizeof extra_out->bytes);
    }
    kvist__store__answer__free_unpacked(answer, NULL);
    return status;
}

/* ---- what the device tier alone can tell ---- */

void kv_attached_store_listen(kvist_store_t *store, kvist_changed_t changed, void *context)
{
    kv_embedded_store_listen(kv_attached_of(store)->inner, changed, context);
}

bool kv_attached_store_held(kvist_store_t *store, uint32_t *cursor, uint32_t object_count_max,
    kvist_changed_t visit, void *context)
{
    return kv_embedded_store_held(
        kv_attached_of(store)->inner, cursor, object_count_max, visit, context);
}
