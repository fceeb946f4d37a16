/* What clients ask of the domain's store as a whole: flush, keep, promise, spill, drop, verify, the
 * quota, and what is in it. */
#include "kvstore/service/service_internal.h"

#include "base/check.h"
#include "kvstore/attach/told.h"
#include "kvstore/store_internal.h"

#include <stdlib.h>
#include <unistd.h>

enum { CONTEXTS_MAX = 16384, TOKENS_MAX = 1024 /* of a block */ };

/* ---- flush, keep, drop, quota ---- */

static void note_flushed(void *context, kv_status_t status)
{
    uint64_t id;
    kv_service_conn_t *client = kv_conn_end_call(context, &id);
    if (client != NULL) {
        kv_conn_done(client, id, status, 0, "");
    }
}

static void note_dropped(void *context, kv_status_t status, uint64_t object_count)
{
    uint64_t id;
    kv_service_conn_t *client = kv_conn_end_call(context, &id);
    if (client != NULL) {
        kv_conn_done(client, id, status, object_count, "");
    }
}

static void keep(kv_service_conn_t *client, const Kvist__Store__Keep *asked)
{
    kvist_key_t key;
    kvist_terms_t terms;
    if (kv_conn_key(client, &asked->key, &key) && kv_conn_terms(client, asked->terms, &terms)) {
        kv_conn_done(
            client, asked->id, kvist_store_keep(client->domain->store, &key, &terms), 0, "");
    }
}

static void answer_done(kv_service_conn_t *client, Kvist__Store__Done *done)
{
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    done->text = "";
    answer.body_case = KVIST__STORE__ANSWER__BODY_DONE;
    answer.done = done;
    kv_conn_answer(client, &answer);
}

/* The domain's store is an embedded one: it answers at once. */
static void promise(kv_service_conn_t *client, const Kvist__Store__Promise *asked)
{
    Kvist__Store__Done done = KVIST__STORE__DONE__INIT;
    kvist_promise_t outcome;
    kvist_key_t key;
    kvist_terms_t terms;
    if (!kv_conn_key(client, &asked->key, &key) || !kv_conn_terms(client, asked->terms, &terms)) {
        return;
    }
    KV_CHECK(kvist_store_promise(client->domain->store, &key, &terms, NULL, NULL, &outcome));
    done.id = asked->id;
    done.code = outcome.status;
    done.expires_unix_ns = outcome.expires_unix_ns;
    done.pin_until_unix_ns = outcome.pin_until_unix_ns;
    answer_done(client, &done);
}

static void note_spilled(void *context, kv_status_t status, uint64_t object_count, uint64_t bytes)
{
    Kvist__Store__Done done = KVIST__STORE__DONE__INIT;
    kv_service_conn_t *client = kv_conn_end_call(context, &done.id);
    if (client != NULL) {
        done.code = status;
        done.count = object_count;
        done.bytes = bytes;
        answer_done(client, &done);
    }
}

static void spill(kv_service_conn_t *client, const Kvist__Store__Spill *asked)
{
    kvist_key_t key;
    if (kv_conn_key(client, &asked->key, &key)) {
        kvist_store_spill(
            client->domain->store, &key, note_spilled, kv_conn_begin_call(client, asked->id));
    }
}

static void drop(kv_service_conn_t *client, const Kvist__Store__Drop *asked)
{
    kvist_key_t key;
    if (!kv_conn_key(client, &asked->key, &key)) {
        return;
    }
    kv_service_call_t *call = kv_conn_begin_call(client, asked->id);
    kv_status_t status =
        kvist_store_drop(client->domain->store, &key, asked->erase, note_dropped, call);
    if (status != KV_OK) {
        note_dropped(call, status, 0);
    }
}

/* How much of the disk a domain may take is said by whoever runs the store, not by its users. */
static void set_disk_bytes(kv_service_conn_t *client, const Kvist__Store__SetDiskBytes *asked)
{
    kv_error_t error = {0};
    if (client->user != 0 && client->user != geteuid()) {
        kv_conn_done(client, asked->id, KV_REFUSED, 0,
            "the disk's quota is set by root and the user of kvist-store alone");
        return;
    }
    kv_status_t status = kvist_store_set_disk_bytes(client->domain->store, asked->bytes, &error);
    kv_conn_done(client, asked->id, status, 0, status == KV_OK ? "" : error.text);
}

/* ---- verify ---- */

static void answer_verified(kv_service_conn_t *client, uint64_t id, kv_status_t status, bool ended,
    const kvist_verify_t *state)
{
    Kvist__Store__Verified verified = KVIST__STORE__VERIFIED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    uint64_t numbers[KV_TOLD_VERIFY_COUNT];
    kv_told_verify_pack(state, numbers);
    verified.id = id;
    verified.code = status;
    verified.ended = ended;
    verified.n_numbers = KV_TOLD_VERIFY_COUNT;
    verified.numbers = numbers;
    answer.body_case = KVIST__STORE__ANSWER__BODY_VERIFIED;
    answer.verified = &verified;
    kv_conn_answer(client, &answer);
}

static void note_progress(void *context, const kvist_verify_t *state)
{
    const kv_service_call_t *call = context;
    if (!call->client->ended) {
        answer_verified(call->client, call->id, KV_OK, false, state);
    }
}

static void note_verified(void *context, kv_status_t status, const kvist_verify_t *state)
{
    uint64_t id;
    kv_service_conn_t *client = kv_conn_end_call(context, &id);
    if (client != NULL) {
        answer_verified(client, id, status, true, state);
    }
}

static void verify(kv_service_conn_t *client, uint64_t id)
{
    kv_service_call_t *call = kv_conn_begin_call(client, id);
    kv_status_t status =
        kvist_store_verify(client->domain->store, note_progress, note_verified, call);
    if (status != KV_OK) {
        note_verified(call, status, &(kvist_verify_t){0});
    }
}

/* ---- looking in ---- */

static void answer_found(kv_service_conn_t *client, Kvist__Store__Found *found)
{
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    answer.body_case = KVIST__STORE__ANSWER__BODY_FOUND;
    answer.found = found;
    kv_conn_answer(client, &answer);
}

static void find(kv_service_conn_t *client, const Kvist__Store__Find *asked)
{
    Kvist__Store__Found found = KVIST__STORE__FOUND__INIT;
    kv_error_t error = {0};
    kvist_key_t key;
    kv_status_t status = kvist_store_find(client->domain->store, asked->digits, &key, &error);
    found.id = asked->id;
    found.code = status;
    if (status == KV_OK) {
        found.key = (ProtobufCBinaryData){sizeof key.bytes, key.bytes};
    } else {
        found.text = error.text;
    }
    answer_found(client, &found);
}

static void show(kv_service_conn_t *client, const Kvist__Store__Show *asked)
{
    Kvist__Store__Found found = KVIST__STORE__FOUND__INIT;
    Kvist__Store__Object message;
    kvist_object_t object;
    kvist_key_t key;
    if (!kv_conn_key(client, &asked->key, &key)) {
        return;
    }
    kv_status_t status = kvist_store_show(client->domain->store, &key, &object);
    found.id = asked->id;
    found.code = status;
    if (status == KV_OK) {
        kv_told_object_pack(&object, &message);
        found.object = &message;
    }
    answer_found(client, &found);
}

static void tell_tokens(kv_service_conn_t *client, const Kvist__Store__GetTokens *asked)
{
    Kvist__Store__Found found = KVIST__STORE__FOUND__INIT;
    uint32_t tokens[TOKENS_MAX];
    kvist_key_t key, extra;
    if (!kv_conn_key(client, &asked->key, &key)) {
        return;
    }
    found.id = asked->id;
    found.code = kvist_store_tokens(client->domain->store, &key, tokens, &extra);
    if (found.code == KV_OK) {
        found.tokens = (ProtobufCBinaryData){
            client->domain->layout.block_tokens * sizeof *tokens, (uint8_t *)(void *)tokens};
        found.extra = (ProtobufCBinaryData){sizeof extra.bytes, extra.bytes};
    }
    answer_found(client, &found);
}

/* For the store's own administrator. */
static void describe(kv_service_conn_t *client, const Kvist__Store__Describe *asked)
{
    kv_described_t described = {
        .dtype = (kvist_dtype_t)asked->dtype,
        .codec_class = (kvist_codec_class_t)asked->codec_class,
    };
    if (kv_conn_key(client, &asked->name_space, &described.name_space) &&
        kv_conn_key(client, &asked->model, &described.model) &&
        kv_conn_key(client, &asked->layout, &described.layout) &&
        kv_conn_key(client, &asked->salt, &described.salt) &&
        kv_conn_key(client, &asked->adapter, &described.adapter)) {
        kv_why_describe(client->domain->store, &described);
    }
}

/* Other namespaces are none of a client's business. */
static void why(kv_service_conn_t *client, const Kvist__Store__Why *asked)
{
    Kvist__Store__Known known = KVIST__STORE__KNOWN__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    Kvist__Store__Detail detail;
    kvist_why_t said;
    kvist_why_query_t query = {
        .tokens = (const uint32_t *)(const void *)asked->tokens.data,
        .extras = kv_conn_extras(&asked->extras),
        .token_count = asked->tokens.len / sizeof(uint32_t),
    };
    if (!kv_conn_tokens(client, &asked->tokens, &asked->extras) ||
        !kv_conn_key(client, &asked->name_space, &query.name_space)) {
        return;
    }
    known.id = asked->id;
    known.code = kvist_why(client->domain->store, &query, &said);
    if (known.code == KV_OK) {
        known.block_count = said.match.block_count;
        known.host_blocks = said.match.tier_blocks[KVIST_TIER_HOST];
        known.disk_blocks = said.match.tier_blocks[KVIST_TIER_DISK];
        known.miss = said.match.miss;
        kv_told_detail_pack(&said.match.detail, &detail);
        known.detail = &detail;
    }
    answer.body_case = KVIST__STORE__ANSWER__BODY_KNOWN;
    answer.known = &known;
    kv_conn_answer(client, &answer);
}

typedef struct {
    kvist_context_t *contexts;
    size_t count, room;
} contexts_t;

static void note_context(void *context, const kvist_context_t *entry)
{
    contexts_t *contexts = context;
    if (contexts->count == contexts->room) {
        contexts->room = 2 * contexts->room + 16;
        contexts->contexts =
            kv_reallocate(contexts->contexts, contexts->room, sizeof *contexts->contexts);
    }
    contexts->contexts[contexts->count++] = *entry;
}

static void list(kv_service_conn_t *client, const Kvist__Store__List *asked)
{
    Kvist__Store__Listed listed = KVIST__STORE__LISTED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    contexts_t contexts = {0};
    kvist_store_list(client->domain->store,
        asked->count_max < CONTEXTS_MAX ? asked->count_max : CONTEXTS_MAX, note_context, &contexts);
    Kvist__Store__Context *messages = kv_allocate_array(contexts.count + 1, sizeof *messages);
    Kvist__Store__Context **items = kv_allocate_array(contexts.count + 1, sizeof *items);
    for (size_t i = 0; i < contexts.count; i++) {
        kv_told_context_pack(&contexts.contexts[i], &messages[i]);
        items[i] = &messages[i];
    }
    listed.id = asked->id;
    listed.n_contexts = contexts.count;
    listed.contexts = items;
    answer.body_case = KVIST__STORE__ANSWER__BODY_LISTED;
    answer.listed = &listed;
    kv_conn_answer(client, &answer);
    free(items);
    free(messages);
    free(contexts.contexts);
}

void kv_conn_tell_stats(kv_service_conn_t *client, uint64_t id)
{
    Kvist__Store__Stats message = KVIST__STORE__STATS__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    uint64_t numbers[KV_TOLD_STATS_MAX];
    kvist_stats_t stats;
    kvist_store_stats(client->domain->store, &stats);
    kv_told_stats_pack(&stats, numbers, &message);
    message.id = id;
    answer.body_case = KVIST__STORE__ANSWER__BODY_STATS;
    answer.stats = &message;
    kv_conn_answer(client, &answer);
}

/* ---- together ---- */

void kv_conn_forward(kv_service_conn_t *client, const Kvist__Store__Request *request)
{
    kvist_store_t *store = client->domain->store;
    switch (request->body_case) {
    case KVIST__STORE__REQUEST__BODY_FLUSH:
        kvist_store_flush(store, note_flushed, kv_conn_begin_call(client, request->flush->id));
        break;
    case KVIST__STORE__REQUEST__BODY_KEEP:
        keep(client, request->keep);
        break;
    case KVIST__STORE__REQUEST__BODY_PROMISE:
        promise(client, request->promise);
        break;
    case KVIST__STORE__REQUEST__BODY_SPILL:
        spill(client, request->spill);
        break;
    case KVIST__STORE__REQUEST__BODY_DROP:
        drop(client, request->drop);
        break;
    case KVIST__STORE__REQUEST__BODY_VERIFY:
        verify(client, request->verify->id);
        break;
    case KVIST__STORE__REQUEST__BODY_SET_DISK_BYTES:
        set_disk_bytes(client, request->set_disk_bytes);
        break;
    case KVIST__STORE__REQUEST__BODY_FIND:
        find(client, request->find);
        break;
    case KVIST__STORE__REQUEST__BODY_SHOW:
        show(client, request->show);
        break;
    case KVIST__STORE__REQUEST__BODY_LIST:
        list(client, request->list);
        break;
    case KVIST__STORE__REQUEST__BODY_STATS:
        kv_conn_tell_stats(client, request->stats->id);
        break;
    case KVIST__STORE__REQUEST__BODY_WHY:
        why(client, request->why);
        break;
    case KVIST__STORE__REQUEST__BODY_DESCRIBE:
        describe(client, request->describe);
        break;
    case KVIST__STORE__REQUEST__BODY_TOKENS:
        tell_tokens(client, request->tokens);
        break;
    default:
        kv_conn_end(client, KV_INVALID, "request: this store knows none of its kind");
        break;
    }
}
