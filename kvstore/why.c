/* Why something is not found: from the history, from what is stored beside it, and (kvist_why
 * alone) from records and other namespaces. */
#include "kvstore/store_internal.h"

#include "base/memory.h"
#include "kvstore/disk/budget.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/lease_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HISTORY_BYTES_DEFAULT = 4 << 20,
    SIBLINGS_LOOKED_AT = 16, /* by a match; by kvist_why all of them, */
    RECORDS_READ = 32,       /* and so many that are on disk alone */
    NAME_SPACES_TRIED = 4096,
};

void kv_why_open(kvist_store_t *store, uint64_t history_bytes)
{
    uint64_t bytes = history_bytes > 0 ? history_bytes : (uint64_t)HISTORY_BYTES_DEFAULT;
    store->history = kv_history_create(bytes, kv_store_now_s(store));
    store->maker.tenant = store->disk_maker.tenant = KV_HISTORY_NOBODY;
}

void kv_why_close(kvist_store_t *store)
{
    kv_history_destroy(store->history);
    free(store->described);
}

/* ---- what goes ---- */

void kv_why_gone(kvist_store_t *store, const kv_object_t *object, kv_gone_t gone)
{
    bool for_room = gone <= KV_GONE_FROM_DISK;
    const kv_maker_t *maker = gone == KV_GONE_FROM_DISK ? &store->disk_maker : &store->maker;
    const kv_maker_t nobody = {.tenant = KV_HISTORY_NOBODY};
    if (for_room && (object->disk_flags & KV_DISK_REFUSED) != 0) {
        gone = KV_GONE_NOT_ADMITTED;
    }
    kv_history_note(
        store->history, &object->key, gone, for_room ? maker : &nobody, kv_store_now_s(store));
}

/* The names of who only reads are looked for, not kept: they would take the place of others. */
void kv_why_make_room(const kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    const kv_record_t *like = &lease->like;
    int tenant = lease->storing ? kv_names_number(&store->tenants, like->tenant)
                                : kv_names_find(&store->tenants, like->tenant);
    int origin = lease->storing ? kv_names_number(&store->origins, like->origin)
                                : kv_names_find(&store->origins, like->origin);
    bool known = tenant != KV_NAMES_FULL && origin != KV_NAMES_FULL;
    store->maker = (kv_maker_t){
        .request = lease->request,
        .tenant = known ? (uint16_t)tenant : KV_HISTORY_NOBODY,
        .origin = known ? (uint8_t)origin : 0,
        .priority = like->priority,
    };
}

void kv_why_make_room_on_disk(kvist_store_t *store, uint32_t number)
{
    const kv_family_t *family = kv_object_family(store, kv_table_at(store->table, number));
    store->disk_maker = (kv_maker_t){
        .tenant = family->tenant, .origin = family->origin, .priority = family->priority};
}

void kv_why_note_root(kvist_store_t *store, const kvist_key_t *key)
{
    store->roots[store->root_next] = *key;
    store->root_next = (store->root_next + 1) % KV_ROOTS_KEPT;
}

/* ---- what the history says ---- */

static void tell_maker(
    const kvist_store_t *store, const kv_history_entry_t *entry, kvist_miss_detail_t *detail)
{
    detail->request = entry->request;
    detail->maker_known = entry->tenant != KV_HISTORY_NOBODY;
    if (detail->maker_known) {
        detail->priority = (kvist_priority_t)entry->priority;
        memcpy(detail->tenant, kv_names_at(&store->tenants, entry->tenant), KV_TENANT_BYTES);
        memcpy(detail->origin, kv_names_at(&store->origins, entry->origin), KV_ORIGIN_BYTES);
    }
}

static kvist_miss_t tell_gone(
    const kvist_store_t *store, const kv_history_entry_t *entry, kvist_miss_detail_t *detail)
{
    detail->when_unix_ns = (uint64_t)entry->gone_s * KV_NS_PER_S;
    switch ((kv_gone_t)entry->gone) {
    case KV_GONE_EXPIRED:
        return KVIST_MISS_EXPIRED;
    case KV_GONE_DAMAGED:
        return KVIST_MISS_DAMAGED;
    case KV_GONE_NOT_ADMITTED:
        tell_maker(store, entry, detail);
        return KVIST_MISS_NOT_ADMITTED;
    case KV_GONE_DROPPED:
        detail->dropped = true;
        break;
    case KV_GONE_FROM_DEVICE:
        detail->tier = KVIST_TIER_DEVICE;
        break;
    case KV_GONE_FROM_HOST:
        detail->tier = KVIST_TIER_HOST;
        break;
    case KV_GONE_FROM_DISK:
        detail->tier = KVIST_TIER_DISK;
        break;
    }
    tell_maker(store, entry, detail);
    return KVIST_MISS_EVICTED;
}

void kv_why_ended(const kvist_store_t *store, const kvist_key_t *key, uint32_t block,
    kvist_miss_detail_t *detail_out)
{
    const kv_history_entry_t *entry = kv_history_find(store->history, key);
    *detail_out = (kvist_miss_detail_t){.block = block};
    if (entry != NULL) {
        detail_out->when_unix_ns = (uint64_t)entry->gone_s * KV_NS_PER_S;
    }
}

/* ---- what is stored beside it ---- */

static uint32_t common_tokens(const uint32_t *left, const uint32_t *right, uint32_t count)
{
    uint32_t common = 0;
    while (common < count && left[common] == right[common]) {
        common++;
    }
    return common;
}

/* Whether it is a context's block that a search could find. */
static bool is_block(const kvist_store_t *store, const kv_object_t *object)
{
    return (object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED &&
           kv_object_family(store, object)->group == 0 &&
           !kv_object_expired(object, kv_store_now_s(store));
}

/* The stored block that shares most with one that is not stored. */
typedef struct {
    const kvist_store_t *store;
    const kv_why_end_t *end;
    uint32_t best, best_common;    /* KV_OBJECT_NONE: none was compared */
    uint32_t unread[RECORDS_READ]; /* on disk alone: the first of them */
    uint32_t unread_count;         /* all of them, and what was not looked at */
} nearest_t;

static nearest_t nothing_near(const kvist_store_t *store, const kv_why_end_t *end)
{
    return (nearest_t){.store = store, .end = end, .best = KV_OBJECT_NONE};
}

static void compare(nearest_t *nearest, uint32_t number, const uint32_t *words)
{
    uint32_t common = common_tokens(words, nearest->end->words, nearest->store->block_tokens);
    if (nearest->best == KV_OBJECT_NONE || common > nearest->best_common) {
        nearest->best = number;
        nearest->best_common = common;
    }
}

static void look_at(nearest_t *nearest, uint32_t number)
{
    const kvist_store_t *store = nearest->store;
    const kv_object_t *object = kv_table_at(store->table, number);
    if (!is_block(store, object) || kv_key_equal(&object->key, nearest->end->key)) {
        return;
    }
    const uint32_t *words = kv_object_words(store, object);
    if (words != NULL) {
        compare(nearest, number, words);
    } else {
        if (nearest->unread_count < RECORDS_READ) {
            nearest->unread[nearest->unread_count] = number;
        }
        nearest->unread_count++;
    }
}

static bool in_name_space(
    const kvist_store_t *store, const kv_object_t *object, const kvist_key_t *name_space)
{
    uint16_t number = kv_object_family(store, object)->name_space;
    return memcmp(kv_names_at(&store->namespaces, number), name_space, KVIST_KEY_BYTES) == 0;
}

/* The contexts that began last. */
static void look_at_roots(nearest_t *nearest)
{
    const kvist_store_t *store = nearest->store;
    for (uint32_t i = 0; i < KV_ROOTS_KEPT; i++) {
        uint32_t number = kv_table_find(store->table, &store->roots[i]);
        if (number != KV_OBJECT_NONE &&
            in_name_space(store, kv_table_at(store->table, number), nearest->end->name_space)) {
            look_at(nearest, number);
        }
    }
}

static void look_at_children(nearest_t *nearest, uint32_t count_max)
{
    const kv_table_t *table = nearest->store->table;
    uint32_t at = kv_table_at(table, nearest->end->parent)->first_child;
    for (; at != KV_OBJECT_NONE && count_max > 0; count_max--) {
        look_at(nearest, at);
        at = kv_table_at(table, at)->next_sibling;
    }
    nearest->unread_count += at != KV_OBJECT_NONE && nearest->unread_count == 0;
}

/* Contexts that begin otherwise are no news: only what shares a token with one parts from it. */
static kvist_miss_t tell_nearest(const nearest_t *nearest, kvist_miss_detail_t *detail)
{
    const kvist_store_t *store = nearest->store;
    const kv_why_end_t *end = nearest->end;
    bool compared = nearest->best != KV_OBJECT_NONE;
    bool begins = end->parent == KV_OBJECT_NONE;
    if ((!compared && nearest->unread_count == 0) ||
        (begins && (!compared || nearest->best_common == 0))) {
        return KVIST_MISS_NEW;
    }
    uint32_t number = compared ? nearest->best : nearest->unread[0];
    detail->token_known = nearest->unread_count == 0;
    /* Equal tokens under another key: the extra keys differ. */
    detail->extra_differs = compared && nearest->best_common == store->block_tokens;
    detail->token = end->block * store->block_tokens +
                    (compared && !detail->extra_differs ? nearest->best_common : 0);
    detail->other = kv_table_at(store->table, number)->key;
    return KVIST_MISS_DIVERGED;
}

kvist_miss_t kv_why_absent(
    const kvist_store_t *store, const kv_why_end_t *end, kvist_miss_detail_t *detail_out)
{
    *detail_out = (kvist_miss_detail_t){.block = end->block};
    if (kv_match_is_pending(store, end->key, end->request)) {
        return KVIST_MISS_PENDING;
    }
    const kv_history_entry_t *entry = kv_history_find(store->history, end->key);
    if (entry != NULL) {
        return tell_gone(store, entry, detail_out);
    }
    if (kv_budget_remembers(store, end->key)) {
        return KVIST_MISS_NOT_ADMITTED;
    }
    detail_out->when_unix_ns = (uint64_t)kv_history_since(store->history) * KV_NS_PER_S;
    if (end->words == NULL) {
        return KVIST_MISS_NEW;
    }
    nearest_t nearest = nothing_near(store, end);
    if (end->parent == KV_OBJECT_NONE) {
        look_at_roots(&nearest);
    } else {
        look_at_children(&nearest, SIBLINGS_LOOKED_AT);
    }
    return tell_nearest(&nearest, detail_out);
}

/* ---- kvist_why: what is on disk ---- */

/* Out of memory, or out of the record. */
static kv_status_t read_words(
    const kvist_store_t *store, const kv_object_t *object, uint32_t *words_out)
{
    size_t word_bytes = store->block_words * sizeof(uint32_t);
    const uint32_t *words = kv_object_words(store, object);
    if (words != NULL) {
        memcpy(words_out, words, word_bytes);
        return KV_OK;
    }
    if (!kv_object_on_disk(object)) {
        return KV_IO; /* a load fills its slot */
    }
    kv_record_t expected;
    kv_object_describe(store, object, &expected);
    expected.generation = store->disk->segments.items[object->segment].generation;
    size_t bytes;
    void *header = kv_show_header(store, object, &bytes);
    const kv_record_reader_t reader = {store->disk->keys, kv_allocate(store->scratch_bytes_max)};
    kv_record_view_t view;
    bool proved = header != NULL && kv_record_open(&store->groups[0].layout, &reader, &expected,
                                        header, bytes, &view) == KV_OK;
    if (proved) {
        memcpy(words_out, view.words, word_bytes);
        kv_record_close(&view);
    }
    free(reader.scratch);
    free(header);
    return proved ? KV_OK : KV_IO;
}

kv_status_t kv_embedded_store_tokens(
    kvist_store_t *store, const kvist_key_t *key, uint32_t *tokens_out, kvist_key_t *extra_out)
{
    uint32_t number = kv_fill_find(store, key);
    if (number == KV_OBJECT_NONE || !is_block(store, kv_table_at(store->table, number))) {
        return KV_MISSING;
    }
    uint32_t *words = kv_allocate_array(store->block_words, sizeof *words);
    kv_status_t status = read_words(store, kv_table_at(store->table, number), words);
    if (status == KV_OK) {
        memcpy(tokens_out, words, store->block_tokens * sizeof *tokens_out);
    }
    if (status == KV_OK && extra_out != NULL) {
        *extra_out = kv_identity_extra(words, store->block_tokens);
    }
    free(words);
    return status;
}

static void look_at_records(nearest_t *nearest)
{
    const kvist_store_t *store = nearest->store;
    uint32_t *words = kv_allocate_array(store->block_words, sizeof *words);
    uint32_t count = nearest->unread_count < RECORDS_READ ? nearest->unread_count : RECORDS_READ;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = nearest->unread[i];
        if (read_words(store, kv_table_at(store->table, number), words) == KV_OK) {
            compare(nearest, number, words);
            nearest->unread_count--;
        }
    }
    free(words);
}

static void look_at_all_roots(nearest_t *nearest)
{
    const kvist_store_t *store = nearest->store;
    for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if (object->position == 0 && is_block(store, object) &&
            in_name_space(store, object, nearest->end->name_space)) {
            look_at(nearest, number);
        }
    }
}

/* The words of one of the query's blocks. */
static void words_of(
    const kvist_store_t *store, const kvist_why_query_t *query, uint32_t block, uint32_t *words_out)
{
    kv_identity_words(query->tokens + (size_t)block * store->block_tokens,
        query->extras != NULL ? &query->extras[block] : NULL, 1, store->block_tokens, words_out);
}

/* At all that is stored beside it, and into records. */
static void look_around(kvist_store_t *store, const kv_why_end_t *end, kvist_match_t *match)
{
    nearest_t nearest = nothing_near(store, end);
    if (end->parent == KV_OBJECT_NONE) {
        look_at_all_roots(&nearest);
    } else {
        look_at_children(&nearest, UINT32_MAX);
    }
    look_at_records(&nearest);
    match->miss = tell_nearest(&nearest, &match->detail);
}

/* The match has looked at a few. */
static void look_closely(kvist_store_t *store, const kvist_why_query_t *query, kvist_match_t *match)
{
    uint32_t block = match->detail.block, parent = KV_OBJECT_NONE;
    uint32_t *words = kv_allocate_array(store->block_words, sizeof *words);
    kvist_key_t key = query->name_space;
    for (uint32_t i = 0; i <= block; i++) {
        parent = i > 0 ? kv_table_find(store->table, &key) : KV_OBJECT_NONE;
        words_of(store, query, i, words);
        key = kv_identity_block_key(&key, words, store->block_tokens);
    }
    bool stored = kv_table_find(store->table, &key) != KV_OBJECT_NONE; /* another group lacks it */
    if (!stored && (block == 0 || parent != KV_OBJECT_NONE)) {
        const kv_why_end_t end = {&query->name_space, &key, parent, block, words, 0};
        look_around(store, &end, match);
    }
    free(words);
}

/* ---- kvist_why: other namespaces ---- */

uint32_t kv_why_described_count(const kvist_store_t *store)
{
    const uint32_t max = KVIST_NAMESPACES_MAX;
    return store->described_count < max ? store->described_count : max;
}

static const kv_described_t *find_described(
    const kvist_store_t *store, const kvist_key_t *name_space)
{
    uint32_t count = kv_why_described_count(store);
    for (uint32_t i = 0; i < count; i++) {
        if (kv_key_equal(&store->described[i].name_space, name_space)) {
            return &store->described[i];
        }
    }
    return NULL;
}

kv_described_t kv_why_digests(const kvist_namespace_params_t *params)
{
    uint8_t layout[KV_LAYOUT_ENCODED_BYTES_MAX];
    const char *adapter = params->adapter != NULL ? params->adapter : "";
    return (kv_described_t){
        .name_space = kvist_namespace(params),
        .model = params->model,
        .layout = kv_identity_digest(layout, kv_layout_encode(params->layout, layout)),
        .salt = kv_identity_digest(params->salt, params->salt_bytes),
        .adapter = kv_identity_digest(adapter, strlen(adapter)),
        .dtype = params->dtype,
        .codec_class = params->codec_class,
    };
}

bool kv_why_describe(kvist_store_t *store, const kv_described_t *described)
{
    if (find_described(store, &described->name_space) != NULL) {
        return false;
    }
    if (store->described == NULL) {
        store->described = kv_allocate_array(KVIST_NAMESPACES_MAX, sizeof *store->described);
    }
    store->described[store->described_count++ % KVIST_NAMESPACES_MAX] = *described;
    return true;
}

void kv_embedded_store_describe(kvist_store_t *store, const kvist_namespace_params_t *params)
{
    const kv_described_t described = kv_why_digests(params);
    kv_why_describe(store, &described);
}

/* What two namespaces differ in. */
static void tell_fields(
    const kvist_store_t *store, const kvist_key_t *left, const kvist_key_t *right, char *fields_out)
{
    const kv_described_t *a = find_described(store, left), *b = find_described(store, right);
    if (a == NULL || b == NULL) {
        snprintf(fields_out, KVIST_FIELDS_BYTES_MAX + 1, "unknown");
        return;
    }
    const struct {
        const char *name;
        bool differs;
    } fields[] = {
        {"model", !kv_key_equal(&a->model, &b->model)},
        {"layout", !kv_key_equal(&a->layout, &b->layout)},
        {"dtype", a->dtype != b->dtype},
        {"codec", a->codec_class != b->codec_class},
        {"salt", !kv_key_equal(&a->salt, &b->salt)},
        {"adapter", !kv_key_equal(&a->adapter, &b->adapter)},
    };
    int bytes = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].differs) {
            bytes += snprintf(fields_out + bytes, (size_t)(KVIST_FIELDS_BYTES_MAX + 1 - bytes),
                "%s%s", bytes > 0 ? "," : "", fields[i].name);
        }
    }
}

/* Blocks of the query that are stored under this namespace, from the first on. */
static uint32_t count_stored(
    kvist_store_t *store, const kvist_why_query_t *query, const kvist_key_t *name_space)
{
    uint32_t *words = kv_allocate_array(store->block_words, sizeof *words), count = 0;
    kvist_key_t key = *name_space;
    for (; count < query->token_count / store->block_tokens; count++) {
        words_of(store, query, count, words);
        key = kv_identity_block_key(&key, words, store->block_tokens);
        uint32_t number = kv_fill_find(store, &key);
        if (number == KV_OBJECT_NONE || !is_block(store, kv_table_at(store->table, number)) ||
            !kv_match_words(store, kv_table_at(store->table, number), words)) {
            break;
        }
    }
    free(words);
    return count;
}

static void look_elsewhere(kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why)
{
    uint32_t count = store->namespaces.count;
    count = count < NAME_SPACES_TRIED ? count : NAME_SPACES_TRIED;
    why->other_block_count = why->match.block_count;
    for (uint32_t number = 0; number < count; number++) {
        kvist_key_t name_space;
        memcpy(name_space.bytes, kv_names_at(&store->namespaces, number), KVIST_KEY_BYTES);
        uint32_t stored = kv_key_equal(&name_space, &query->name_space)
                              ? 0
                              : count_stored(store, query, &name_space);
        if (stored > why->other_block_count) {
            why->other_block_count = stored;
            why->other_name_space = name_space;
            why->match.miss = KVIST_MISS_NAMESPACE;
        }
    }
    if (why->match.miss == KVIST_MISS_NAMESPACE) {
        tell_fields(store, &query->name_space, &why->other_name_space, why->fields);
    } else {
        why->other_block_count = 0;
    }
}

/* ---- kvist_why ---- */

static bool never_stored(kvist_miss_t miss)
{
    return miss == KVIST_MISS_NEW || miss == KVIST_MISS_DIVERGED;
}

kv_status_t kv_embedded_why(
    kvist_store_t *store, const kvist_why_query_t *query, kvist_why_t *why_out)
{
    if (query->token_count / store->block_tokens > KVIST_CHAIN_BLOCKS_MAX) {
        return KV_INVALID;
    }
    kvist_why_t why = {.match = kv_match_quietly(store, query)};
    why.block_tokens = store->block_tokens;
    if (never_stored(why.match.miss)) {
        look_closely(store, query, &why.match);
    }
    if (never_stored(why.match.miss) && query->all_name_spaces) {
        look_elsewhere(store, query, &why);
    }
    *why_out = why;
    return KV_OK;
}
