/* What clients do with leases: match, load, store, release. */
#include "kvstore/service/service_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "kvstore/attach/told.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/lease_internal.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed numbers are used as they came");

enum { WAIT_S_MAX = 60 };

/* ---- what a client sent ---- */

bool kv_conn_key(kv_service_conn_t *client, const ProtobufCBinaryData *asked, kvist_key_t *key_out)
{
    if (asked->len != KVIST_KEY_BYTES) {
        kv_conn_end(
            client, KV_INVALID, "key: %zu bytes, it must be %d", asked->len, KVIST_KEY_BYTES);
        return false;
    }
    memcpy(key_out->bytes, asked->data, KVIST_KEY_BYTES);
    return true;
}

bool kv_conn_terms(
    kv_service_conn_t *client, const Kvist__Store__Terms *asked, kvist_terms_t *terms_out)
{
    *terms_out = (kvist_terms_t){0};
    if (asked == NULL) {
        return true;
    }
    if (asked->priority >= KVIST_PRIORITY_COUNT || strlen(asked->tenant) > KVIST_TENANT_BYTES_MAX) {
        kv_conn_end(client, KV_INVALID,
            "terms: priority %u must be less than %d, tenant have at most %d bytes",
            asked->priority, KVIST_PRIORITY_COUNT, KVIST_TENANT_BYTES_MAX);
        return false;
    }
    *terms_out = (kvist_terms_t){
        .priority = (kvist_priority_t)asked->priority,
        .expires_unix_ns = asked->expires_unix_ns,
        .pin_until_unix_ns = asked->pin_until_unix_ns,
        .tenant = asked->tenant[0] != '\0' ? asked->tenant : NULL,
        .expected_next_use_unix_ns = asked->expected_next_use_unix_ns,
    };
    return true;
}

bool kv_conn_tokens(
    kv_service_conn_t *client, const ProtobufCBinaryData *asked, const ProtobufCBinaryData *extras)
{
    size_t count = asked->len / sizeof(uint32_t);
    if (asked->len % sizeof(uint32_t) != 0 || count > KV_SERVICE_TOKENS_MAX ||
        count / client->domain->layout.block_tokens > KV_SERVICE_BLOCKS_MAX) {
        kv_conn_end(client, KV_INVALID,
            "tokens: %zu bytes, they must be at most %d numbers, and %d blocks", asked->len,
            KV_SERVICE_TOKENS_MAX, KV_SERVICE_BLOCKS_MAX);
        return false;
    }
    size_t blocks = count / client->domain->layout.block_tokens;
    if (extras->len != 0 &&
        (extras->len != blocks * KVIST_KEY_BYTES || blocks > KV_SERVICE_EXTRAS_MAX)) {
        kv_conn_end(client, KV_INVALID,
            "extras: %zu bytes, they must be none, or %d for each of at most %d whole blocks",
            extras->len, KVIST_KEY_BYTES, KV_SERVICE_EXTRAS_MAX);
        return false;
    }
    return true;
}

/* The lease that a message names; NULL: there is none, and the client has ended. */
static kv_service_lease_t *find_lease(kv_service_conn_t *client, uint32_t number)
{
    kv_service_lease_t *lease =
        number < client->service->limits.leases ? client->leases[number] : NULL;
    if (lease == NULL) {
        kv_conn_end(client, KV_INVALID, "lease %u: the client has none of that number", number);
    }
    return lease;
}

/* Staging memory that a message names; NULL: it is not all there, and the client has ended. */
static char *find_window(kv_service_conn_t *client, uint64_t offset, uint64_t bytes)
{
    uint64_t have = client->staging_bytes;
    if (offset % KV_SERVICE_WINDOW_ALIGNMENT != 0 || offset > have || bytes > have - offset) {
        kv_conn_end(client, KV_INVALID,
            "offset %ju, %ju bytes: it must be a multiple of %d, and all lie in the %ju bytes of "
            "staging memory",
            (uintmax_t)offset, (uintmax_t)bytes, KV_SERVICE_WINDOW_ALIGNMENT, (uintmax_t)have);
        return NULL;
    }
    return (char *)client->staging.base + offset;
}

/* ---- match ---- */

/* The lease's object of a group for a found block. */
static const kv_object_t *object_of(const kvist_lease_t *lease, uint32_t group, uint32_t block)
{
    const kvist_store_t *store = lease->store;
    const kv_object_t *spine = kv_table_at(store->table, lease->objects[block]);
    if (group == 0) {
        return spine;
    }
    kvist_key_t key = kv_identity_group_key(&spine->key, group);
    uint32_t number = kv_table_find(store->table, &key);
    KV_CHECK(number != KV_OBJECT_NONE); /* the lease has held it since the match, just now */
    return kv_table_at(store->table, number);
}

/* Where the found blocks' objects of a group lie. Released with free(places->slots.data). */
static void fill_places(const kvist_lease_t *lease, uint32_t group, Kvist__Store__Places *places)
{
    const kvist_store_t *store = lease->store;
    const kv_store_group_t *of = &store->groups[group];
    uint32_t found = lease->match.block_count;
    uint32_t first = group == 0 ? 0 : kv_match_first_needed(store, group, found);
    size_t count = found - first;
    uint8_t *slots = kv_allocate(count * 12 + 1), *checksums = slots + count * 4;
    for (uint32_t i = 0; i < count; i++) {
        const kv_object_t *object = object_of(lease, group, first + i);
        uint64_t checksum = 0;
        if (kv_object_on_host(object)) {
            checksum = kv_layout_object_checksum(
                &of->layout, &object->key, kv_pool_checksums(&of->host_pool, object->host_slot));
        }
        kv_put_u32(slots + (size_t)i * 4, object->host_slot);
        kv_put_u64(checksums + (size_t)i * 8, checksum);
    }
    kvist__store__places__init(places);
    places->first_block = first;
    places->slots = (ProtobufCBinaryData){count * 4, slots};
    places->checksums = (ProtobufCBinaryData){count * 8, checksums};
}

/* Runs of blocks that are stored alike. Both arrays are released with free(). */
static size_t find_alike(const kvist_lease_t *lease, Kvist__Store__Alike **alike_out)
{
    const kvist_store_t *store = lease->store;
    uint32_t found = lease->match.block_count;
    Kvist__Store__Alike *alike = NULL;
    size_t count = 0, room = 0;
    const kv_object_t *before = NULL;
    for (uint32_t block = 0; block < found; block++) {
        const kv_object_t *object = kv_table_at(store->table, lease->objects[block]);
        if (before == NULL || object->family != before->family ||
            object->expires_s != before->expires_s) {
            if (count == room) {
                room = 2 * room + 4;
                alike = kv_reallocate(alike, room, sizeof *alike);
            }
            const kv_family_t *family = kv_object_family(store, object);
            Kvist__Store__Alike *run = &alike[count++];
            kvist__store__alike__init(run);
            run->arithmetic = (char *)kv_names_at(&store->arithmetics, family->arithmetic);
            run->priority = family->priority;
            run->expires_unix_s = object->expires_s;
        }
        alike[count - 1].block_count++;
        before = object;
    }
    *alike_out = alike;
    return count;
}

static void answer_matched(
    kv_service_conn_t *client, uint64_t id, const kvist_lease_t *lease, const kvist_match_t *match)
{
    const kvist_store_t *store = lease->store;
    Kvist__Store__Matched matched = KVIST__STORE__MATCHED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    Kvist__Store__Places places[KVIST_GROUPS_MAX], *place_list[KVIST_GROUPS_MAX];
    Kvist__Store__Alike *alike;
    matched.id = id;
    matched.block_count = match->block_count;
    matched.miss = match->miss;
    Kvist__Store__Detail detail;
    if (match->miss != KVIST_MISS_NONE && match->miss != KVIST_MISS_SHORT) {
        kv_told_detail_pack(&match->detail, &detail);
        matched.detail = &detail;
    }
    matched.disk_ps_per_byte = (uint64_t)(store->load_ns_per_byte[KVIST_TIER_DISK] * 1000);
    for (uint32_t i = 0; match->block_count > 0 && i < store->group_count; i++) {
        fill_places(lease, i, &places[i]);
        place_list[matched.n_groups++] = &places[i];
    }
    matched.groups = place_list;
    matched.n_alike = find_alike(lease, &alike);
    Kvist__Store__Alike **alike_list = kv_allocate_array(matched.n_alike + 1, sizeof *alike_list);
    for (size_t i = 0; i < matched.n_alike; i++) {
        alike_list[i] = &alike[i];
    }
    matched.alike = alike_list;
    answer.body_case = KVIST__STORE__ANSWER__BODY_MATCHED;
    answer.matched = &matched;
    kv_conn_answer(client, &answer);
    for (size_t i = 0; i < matched.n_groups; i++) {
        free(places[i].slots.data);
    }
    free(alike_list);
    free(alike);
}

static void answer_no_match(kv_service_conn_t *client, uint64_t id, kv_status_t status)
{
    Kvist__Store__Matched matched = KVIST__STORE__MATCHED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    matched.id = id;
    matched.code = status;
    answer.body_case = KVIST__STORE__ANSWER__BODY_MATCHED;
    answer.matched = &matched;
    kv_conn_answer(client, &answer);
}

static bool check_query(kv_service_conn_t *client, const Kvist__Store__Match *asked)
{
    uint32_t lease_count = client->service->limits.leases;
    if (asked->lease >= lease_count || client->leases[asked->lease] != NULL) {
        kv_conn_end(client, KV_INVALID, "lease %u: it must be less than %u, and not in use",
            asked->lease, lease_count);
        return false;
    }
    if (asked->mode > KVIST_MODE_BYPASS) {
        kv_conn_end(
            client, KV_INVALID, "mode is %u: it must be 0 to %d", asked->mode, KVIST_MODE_BYPASS);
        return false;
    }
    return true;
}

void kv_conn_match(kv_service_conn_t *client, const Kvist__Store__Match *asked)
{
    kvist_query_t query = {
        .tokens = (const uint32_t *)(const void *)asked->tokens.data,
        .extras = kv_conn_extras(&asked->extras),
        .token_count = asked->tokens.len / sizeof(uint32_t),
        .mode = (kvist_mode_t)asked->mode,
        .renew = asked->renew,
        .request = asked->request,
        .uncounted = asked->uncounted,
    };
    if (!check_query(client, asked) || !kv_conn_tokens(client, &asked->tokens, &asked->extras) ||
        !kv_conn_key(client, &asked->name_space, &query.name_space) ||
        !kv_conn_terms(client, asked->terms, &query.terms)) {
        return;
    }
    kvist_lease_t *lease;
    kvist_match_t match;
    kv_status_t status = kvist_match(client->domain->store, &query, &lease, &match);
    if (status != KV_OK) {
        answer_no_match(client, asked->id, status);
        return;
    }
    kv_lease_set_origin(lease, client->name);
    kv_service_lease_t *of = kv_allocate(sizeof *of);
    of->lease = lease;
    client->leases[asked->lease] = of;
    client->lease_count++;
    answer_matched(client, asked->id, lease, &match);
}

/* ---- release ---- */

static void release(kv_service_conn_t *client, uint32_t number)
{
    kv_service_lease_t *lease = client->leases[number];
    client->leases[number] = NULL;
    client->lease_count--;
    kv_offer_forget(client->domain, lease);
    kvist_lease_release(lease->lease);
    free(lease);
}

void kv_conn_release(kv_service_conn_t *client, const Kvist__Store__Release *asked)
{
    if (find_lease(client, asked->lease) != NULL) {
        release(client, asked->lease);
    }
}

void kv_conn_cancel_puts(kv_service_conn_t *client, const Kvist__Store__CancelPuts *asked)
{
    kv_service_lease_t *lease = find_lease(client, asked->lease);
    if (lease != NULL) {
        kv_put_cancel(lease->lease);
        kv_offer_forget(client->domain, lease); /* last: it may end the client, and the lease */
    }
}

void kv_conn_release_all(kv_service_conn_t *client)
{
    for (uint32_t i = 0; client->lease_count > 0; i++) {
        if (client->leases[i] != NULL) {
            release(client, i);
        }
    }
}

/* ---- load ---- */

static void answer_loaded(kv_service_conn_t *client, uint64_t id, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    Kvist__Store__Loaded loaded = KVIST__STORE__LOADED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    loaded.id = id;
    loaded.code = status;
    loaded.block_count = block_count;
    loaded.miss = miss;
    answer.body_case = KVIST__STORE__ANSWER__BODY_LOADED;
    answer.loaded = &loaded;
    kv_conn_answer(client, &answer);
}

static void note_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    uint64_t id;
    kv_service_conn_t *client = kv_conn_end_call(context, &id);
    if (client != NULL) {
        answer_loaded(client, id, status, block_count, miss);
    }
}

/* The layout of the group that a message names; NULL: there is none, and the client has ended. */
static const kv_layout_t *find_group(
    kv_service_conn_t *client, uint32_t group, uint32_t first_block, uint32_t block_count)
{
    const kvist_store_t *store = client->domain->store;
    if (group >= store->group_count || first_block > KVIST_CHAIN_BLOCKS_MAX || block_count < 1 ||
        block_count > KVIST_CHAIN_BLOCKS_MAX) {
        kv_conn_end(client, KV_INVALID,
            "group %u must be less than %u, first_block %u and block_count %u at most %d", group,
            store->group_count, first_block, block_count, KVIST_CHAIN_BLOCKS_MAX);
        return NULL;
    }
    return &store->groups[group].layout;
}

void kv_conn_load(kv_service_conn_t *client, const Kvist__Store__Load *asked)
{
    const kv_service_lease_t *lease = find_lease(client, asked->lease);
    const kv_layout_t *layout =
        lease == NULL ? NULL
                      : find_group(client, asked->group, asked->first_block, asked->block_count);
    if (layout == NULL) {
        return;
    }
    kvist_selection_t selection = {
        .group = asked->group,
        .first_block = asked->first_block,
        .block_count = asked->block_count,
        .first_layer = asked->first_layer,
        .layer_count = asked->layer_count,
        .first_head = asked->first_head,
        .head_count = asked->head_count,
    };
    if (!kv_layout_resolve(layout, &selection)) {
        kv_conn_end(client, KV_INVALID, "layers and heads: they are not the layout's");
        return;
    }
    uint64_t units = (uint64_t)selection.block_count * kv_layout_selected_units(layout, &selection);
    uint64_t bytes = selection.block_count * kv_layout_selected_bytes(layout, &selection);
    uint64_t sums_at = kv_round_up(bytes, sizeof(uint64_t));
    char *window = find_window(client, asked->offset, sums_at + units * sizeof(uint64_t));
    if (window == NULL) {
        return;
    }
    kvist_piece_t piece = {window, bytes};
    kv_service_call_t *call = kv_conn_begin_call(client, asked->id);
    kv_status_t status = kv_lease_load_summed(lease->lease, &selection, &piece, 1,
        (uint64_t *)(void *)(window + sums_at), note_loaded, call);
    if (status != KV_OK) {
        uint64_t id;
        kv_conn_end_call(call, &id);
        answer_loaded(client, id, status, 0, KVIST_MISS_NONE);
    }
}

/* ---- store ---- */

/* Bytes on their way out of staging memory. */
typedef struct {
    kv_service_call_t *call;
    uint32_t lease; /* number */
    uint64_t bytes; /* of a block */
} put_t;

static void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    put_t *put = context;
    uint64_t id;
    kv_service_conn_t *client = kv_conn_end_call(put->call, &id);
    if (client != NULL) {
        kv_service_lease_t *of = client->leases[put->lease];
        client->service->stats.staged_bytes += block_count * put->bytes;
        if (of != NULL && of->lease == lease) {
            kv_offer_progress(client->domain, of, status);
        }
        kv_conn_done(client, id, status, block_count, "");
    }
    free(put);
}

/* Whether its arrays have the lengths that they must have. */
static bool check_put(
    kv_service_conn_t *client, const Kvist__Store__Put *asked, const kv_layout_t *layout)
{
    uint64_t token_bytes = (uint64_t)asked->block_count * layout->block_tokens * sizeof(uint32_t);
    uint64_t extra_bytes = asked->tokens.len != 0 ? asked->block_count * KVIST_KEY_BYTES : 0;
    if ((asked->tokens.len != 0 && asked->tokens.len != token_bytes) ||
        (asked->extras.len != 0 && asked->extras.len != extra_bytes) ||
        (asked->checksums.len != 0 &&
            asked->checksums.len != asked->block_count * sizeof(uint64_t))) {
        kv_conn_end(client, KV_INVALID,
            "tokens, extras and checksums: %zu, %zu and %zu bytes do not fit %u blocks",
            asked->tokens.len, asked->extras.len, asked->checksums.len, asked->block_count);
        return false;
    }
    if (strlen(asked->arithmetic) > KVIST_ARITHMETIC_BYTES_MAX) {
        kv_conn_end(client, KV_INVALID, "arithmetic: at most %d bytes", KVIST_ARITHMETIC_BYTES_MAX);
        return false;
    }
    return true;
}

static kvist_put_t put_of(const Kvist__Store__Put *asked, const kv_clock_t *clock)
{
    uint64_t wait_ns = (uint64_t)WAIT_S_MAX * KV_NS_PER_S;
    return (kvist_put_t){
        .group = asked->group,
        .first_block = asked->first_block,
        .block_count = asked->block_count,
        .tokens = asked->tokens.len > 0 ? (const uint32_t *)(const void *)asked->tokens.data : NULL,
        .extras = kv_conn_extras(&asked->extras),
        .arithmetic = asked->arithmetic,
        .deadline_ns =
            clock->monotonic_ns(clock) + (asked->wait_ns < wait_ns ? asked->wait_ns : wait_ns),
    };
}

/* Bytes out of the window. */
static void begin_put(kv_service_conn_t *client, const Kvist__Store__Put *asked,
    const kv_layout_t *layout, kvist_lease_t *lease)
{
    uint64_t bytes = asked->block_count * layout->object_bytes;
    char *window = find_window(client, asked->offset, bytes);
    if (window == NULL) {
        return;
    }
    const kvist_put_t of = put_of(asked, lease->store->clock);
    kvist_piece_t piece = {window, bytes};
    put_t *put = kv_allocate(sizeof *put);
    *put = (put_t){kv_conn_begin_call(client, asked->id), asked->lease, layout->object_bytes};
    kv_status_t status = kv_lease_store_summed(lease, &of, &piece, 1,
        (const uint64_t *)(const void *)asked->checksums.data, note_stored, put);
    if (status != KV_OK) {
        note_stored(put, lease, status, 0);
    }
}

void kv_conn_put(kv_service_conn_t *client, const Kvist__Store__Put *asked)
{
    kv_service_lease_t *lease = find_lease(client, asked->lease);
    const kv_layout_t *layout =
        lease == NULL ? NULL
                      : find_group(client, asked->group, asked->first_block, asked->block_count);
    if (layout == NULL || !check_put(client, asked, layout)) {
        return;
    }
    if (asked->checksums.len > 0) {
        begin_put(client, asked, layout, lease->lease);
    } else {
        const kvist_put_t put = put_of(asked, lease->lease->store->clock);
        kv_offer_begin(client, asked->id, lease, &put);
    }
}
