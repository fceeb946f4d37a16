/* Matching: the longest stored prefix that all layer groups can serve.
 *
 * The spine (group 0) is walked block by block; where there are other groups, the end then moves
 * back to where each of them has what a hit there needs. */
#include "kvstore/lease/lease_internal.h"

#include "base/memory.h"
#include "kvstore/embedded.h"
#include "kvstore/terms.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCKS_AT_FIRST = 4, BLOCKS_AT_ONCE = KV_FILL_LOOK_UP_MAX };

bool kv_match_words(const kvist_store_t *store, const kv_object_t *object, const uint32_t *words)
{
    const uint32_t *stored = kv_object_words(store, object);
    size_t bytes = store->block_words * sizeof *words;
    return stored == NULL || memcmp(stored, words, bytes) == 0;
}

static bool expired(const kvist_store_t *store, const kv_object_t *object)
{
    return kv_object_expired(object, kv_store_now_s(store));
}

uint32_t kv_match_live(kvist_store_t *store, const kvist_key_t *key)
{
    uint32_t number = kv_fill_find(store, key);
    if (number != KV_OBJECT_NONE && expired(store, kv_table_at(store->table, number))) {
        kv_object_drop(store, number, KV_GONE_EXPIRED);
        return KV_OBJECT_NONE;
    }
    return number;
}

/* ---- the spine ---- */

/* Blocks are looked for some at a time: what the search waits for is memory, and it can wait for
 * many at once. */
typedef struct {
    kvist_key_t keys[BLOCKS_AT_ONCE];
    uint32_t numbers[BLOCKS_AT_ONCE];
    bool scattered; /* the last ones did not lie side by side */
} search_t;

/* While the table fills: what of these blocks only the index knows yet, of every group. */
static void look_up_blocks(kvist_store_t *store, const kvist_key_t *keys, uint32_t count)
{
    kvist_key_t group_keys[BLOCKS_AT_ONCE];
    kv_fill_look_up(store, keys, count);
    for (uint32_t group = 1; group < store->group_count; group++) {
        for (uint32_t i = 0; i < count; i++) {
            group_keys[i] = kv_identity_group_key(&keys[i], group);
        }
        kv_fill_look_up(store, group_keys, count);
    }
}

/* Numbers of the first of these blocks that are stored, and how many those are. */
static uint32_t find_blocks(kvist_store_t *store, search_t *search, uint32_t parent, uint32_t count)
{
    const kv_table_t *table = store->table;
    if (kv_fill_busy(store)) {
        look_up_blocks(store, search->keys, count);
    }
    for (uint32_t i = 0; search->scattered && i < count; i++) {
        kv_table_approach(table, &search->keys[i]);
    }
    for (uint32_t i = 0; search->scattered && i < count; i++) {
        kv_table_approach_object(table, &search->keys[i]);
    }
    uint32_t found = 0, neighbours = 0;
    while (found < count) {
        uint32_t number = kv_table_find_child(table, parent, &search->keys[found]);
        if (number == KV_OBJECT_NONE) {
            break;
        }
        const kv_object_t *object = kv_table_at(table, number);
        if (object->device_slot != KV_SLOT_NONE) {
            kv_pool_approach(&store->device_pool, object->device_slot);
        } else if (kv_object_on_host(object)) {
            kv_pool_approach(&store->groups[0].host_pool, object->host_slot);
        }
        neighbours += number - parent < BLOCKS_AT_ONCE;
        search->numbers[found++] = parent = number;
    }
    search->scattered = neighbours < found / 2;
    if (!search->scattered && found == count) {
        kv_table_approach_next(table, parent, BLOCKS_AT_ONCE);
    }
    return found;
}

/* What the write budget refused may be let in now. */
static void note_asked(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    object->disk_flags |= KV_DISK_ASKED;
    object->disk_flags &= ~KV_DISK_GIVEN_UP;
    if ((object->disk_flags & KV_DISK_REFUSED) != 0) {
        kv_seal_queue(store, number);
    }
}

static void hold(const kvist_lease_t *lease, uint32_t number)
{
    if (!lease->quiet) {
        kv_object_hold(lease->store, number);
        note_asked(lease->store, number);
    }
}

/* A found block that cannot be used ends the match. */
static void drop_found(kvist_lease_t *lease, uint32_t number, kv_gone_t gone)
{
    kvist_key_t key = kv_table_at(lease->store->table, number)->key;
    if (!lease->quiet) {
        lease->store->stats.damaged_objects += gone == KV_GONE_DAMAGED;
        kv_object_drop(lease->store, number, gone);
    }
    kv_why_ended(lease->store, &key, lease->found_count, &lease->match.detail);
}

/* Takes a block that was found into the lease; or says why it cannot be used. */
static kvist_miss_t take_block(kvist_store_t *store, kvist_lease_t *lease, const kvist_key_t *key,
    uint32_t number, const uint32_t *words)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if (expired(store, object)) {
        drop_found(lease, number, KV_GONE_EXPIRED);
        return KVIST_MISS_EXPIRED;
    }
    if (!kv_match_words(store, object, words)) {
        /* Two contexts with one key, or bytes of ours gone wrong: nothing here may be used. */
        drop_found(lease, number, KV_GONE_DAMAGED);
        return KVIST_MISS_DAMAGED;
    }
    uint32_t block = lease->found_count++;
    lease->last_key = *key;
    lease->objects[block] = number;
    lease->tiers[block] = (uint8_t)kv_object_tier(store, object);
    hold(lease, number);
    return KVIST_MISS_NONE;
}

bool kv_match_is_pending(const kvist_store_t *store, const kvist_key_t *key, uint64_t request)
{
    for (const kvist_lease_t *lease = store->newest_announced; lease != NULL;
         lease = lease->older_announced) {
        bool own = request != 0 && lease->request == request;
        if (!own && kv_key_equal(&lease->next_key, key)) {
            return true;
        }
    }
    return false;
}

static kvist_miss_t find_spine(kvist_lease_t *lease, uint32_t block_count)
{
    kvist_store_t *store = lease->store;
    uint32_t block_words = store->block_words, parent = KV_OBJECT_NONE;
    search_t search;
    search.scattered = true;
    for (uint32_t block = 0; block < block_count; block = lease->found_count) {
        const uint32_t *words = lease->words + (size_t)block * block_words;
        uint32_t count = block_count - block,
                 at_once = block == 0 ? BLOCKS_AT_FIRST : BLOCKS_AT_ONCE;
        count = count < at_once ? count : at_once;
        kv_identity_keys(&lease->last_key, words, count, store->block_tokens, search.keys);
        uint32_t found = find_blocks(store, &search, parent, count);
        for (uint32_t i = 0; i < found; i++) {
            kvist_miss_t miss = take_block(
                store, lease, &search.keys[i], search.numbers[i], words + (size_t)i * block_words);
            if (miss != KVIST_MISS_NONE) {
                return miss;
            }
        }
        if (found < count) {
            const kv_why_end_t end = {
                .name_space = &lease->like.name_space,
                .key = &search.keys[found],
                .parent = found > 0 ? search.numbers[found - 1] : parent,
                .block = lease->found_count,
                .words = words + (size_t)found * block_words,
                .request = lease->request,
            };
            return kv_why_absent(store, &end, &lease->match.detail);
        }
        parent = search.numbers[found - 1];
    }
    return KVIST_MISS_NONE;
}

/* ---- the other groups ---- */

/* The group's object of a found block, if it can be used. */
static uint32_t other_object(const kvist_lease_t *lease, uint32_t block, uint32_t group)
{
    const kvist_store_t *store = lease->store;
    const kv_object_t *spine = kv_table_at(store->table, lease->objects[block]);
    kvist_key_t key = kv_identity_group_key(&spine->key, group);
    uint32_t number = kv_table_find(store->table, &key);
    bool usable = number != KV_OBJECT_NONE && !expired(store, kv_table_at(store->table, number));
    return usable ? number : KV_OBJECT_NONE;
}

uint32_t kv_match_first_needed(const kvist_store_t *store, uint32_t group, uint32_t block_count)
{
    const kvist_group_t *of = &store->groups[group].layout.group;
    uint64_t tokens = (uint64_t)block_count * store->block_tokens;
    switch (of->kind) {
    case KVIST_GROUP_WINDOW:
        return tokens < of->window_tokens
                   ? 0
                   : (uint32_t)((tokens - (of->window_tokens - 1)) / store->block_tokens);
    case KVIST_GROUP_STATE:
        return block_count - 1;
    case KVIST_GROUP_FULL:
        break;
    }
    return 0;
}

/* An object of another group that a longer hit would have needed. */
typedef struct {
    uint32_t group, block;
} lack_t;

/* The longest hit of at most block_count blocks that may be possible, as far as this group goes. */
static uint32_t served_by(
    const kvist_lease_t *lease, uint32_t group, uint32_t block_count, lack_t *lack)
{
    while (block_count > 0) {
        uint32_t first = kv_match_first_needed(lease->store, group, block_count),
                 block = block_count;
        while (block > first && other_object(lease, block - 1, group) != KV_OBJECT_NONE) {
            block--;
        }
        if (block == first) {
            return block_count;
        }
        *lack = (lack_t){group, block - 1};
        block_count = block - 1; /* without the block that lacks its object */
    }
    return 0;
}

static void hold_others(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    uint32_t count = 0;
    for (uint32_t group = 1; group < store->group_count && lease->found_count > 0; group++) {
        count += lease->found_count - kv_match_first_needed(store, group, lease->found_count);
    }
    lease->others = kv_reallocate(lease->others, count + 1, sizeof *lease->others);
    for (uint32_t group = 1; group < store->group_count && lease->found_count > 0; group++) {
        for (uint32_t block = kv_match_first_needed(store, group, lease->found_count);
             block < lease->found_count; block++) {
            uint32_t number = other_object(lease, block, group);
            uint8_t tier = (uint8_t)kv_object_tier(store, kv_table_at(store->table, number));
            lease->tiers[block] = tier > lease->tiers[block] ? tier : lease->tiers[block];
            lease->others[lease->other_count++] = number;
            hold(lease, number);
        }
    }
}

/* Why the object is not there. */
static kvist_miss_t tell_lack(kvist_lease_t *lease, const lack_t *lack)
{
    const kvist_store_t *store = lease->store;
    const kv_object_t *spine = kv_table_at(store->table, lease->objects[lack->block]);
    kvist_key_t key = kv_identity_group_key(&spine->key, lack->group);
    const kv_why_end_t end = {
        &lease->like.name_space, &key, KV_OBJECT_NONE, lack->block, NULL, lease->request};
    return kv_why_absent(store, &end, &lease->match.detail);
}

/* Moves the end back to where every group can serve it. */
static void agree_on_end(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    uint32_t end = lease->found_count, before;
    lack_t lack = {0};
    do {
        before = end;
        for (uint32_t group = 1; group < store->group_count; group++) {
            end = served_by(lease, group, end, &lack);
        }
    } while (end != before);
    if (end == lease->found_count) {
        return;
    }
    lease->match.miss = tell_lack(lease, &lack);
    while (lease->found_count > end) {
        uint32_t number = lease->objects[--lease->found_count];
        lease->objects[lease->found_count] = KV_OBJECT_NONE;
        if (!lease->quiet) {
            kv_object_release(store, number);
        }
    }
    lease->last_key =
        end > 0 ? kv_table_at(store->table, lease->objects[end - 1])->key : lease->like.name_space;
}

/* ---- together ---- */

void kv_match_prefix(kvist_lease_t *lease, uint32_t block_count)
{
    lease->match = (kvist_match_t){0};
    lease->last_key = lease->like.name_space;
    lease->match.miss = find_spine(lease, block_count);
    if (lease->store->group_count > 1) {
        agree_on_end(lease);
        hold_others(lease);
    }
    for (uint32_t block = 0; block < lease->found_count; block++) {
        lease->match.tier_blocks[lease->tiers[block]]++;
    }
    lease->match.block_count = lease->sealed_count = lease->held_count = lease->found_count;
}

static bool terms_are_good(const kvist_terms_t *terms)
{
    return (unsigned)terms->priority < KVIST_PRIORITY_COUNT &&
           (terms->expires_unix_ns == 0 || terms->pin_until_unix_ns <= terms->expires_unix_ns) &&
           (terms->tenant == NULL || strlen(terms->tenant) <= KVIST_TENANT_BYTES_MAX);
}

bool kv_match_asks_well(const kvist_query_t *query)
{
    return (unsigned)query->mode <= KVIST_MODE_BYPASS && terms_are_good(&query->terms);
}

/* What its objects will have in common. */
static kv_record_t like_of(const kvist_store_t *store, const kvist_query_t *query)
{
    kv_record_t like = {
        .name_space = query->name_space,
        .priority = (uint8_t)query->terms.priority,
        .expires_s = kv_terms_expiry_s(query->terms.expires_unix_ns),
        .pin_until_s = kv_terms_pin_s(query->terms.pin_until_unix_ns),
    };
    memcpy(like.origin, store->origin, sizeof like.origin);
    strncpy(like.tenant, query->terms.tenant != NULL ? query->terms.tenant : "",
        sizeof like.tenant - 1);
    return like;
}

static kvist_lease_t *make_lease(kvist_store_t *store, const kvist_query_t *query)
{
    uint32_t block_count = (uint32_t)(query->token_count / store->block_tokens);
    kvist_lease_t *lease = kv_allocate(sizeof *lease);
    *lease = (kvist_lease_t){
        .store = store,
        .mode = query->mode,
        .storing = query->mode == KVIST_MODE_READWRITE || query->mode == KVIST_MODE_WRITE,
        .like = like_of(store, query),
        .renew = query->renew,
        .expected_s = kv_terms_expiry_s(query->terms.expected_next_use_unix_ns),
        .request = query->request,
        .last_key = query->name_space,
        .query_blocks = block_count,
        .block_max = block_count,
        .words = kv_allocate_array((size_t)block_count * store->block_words, sizeof(uint32_t)),
        .objects = kv_allocate_array(block_count, sizeof(uint32_t)),
        .tiers = kv_allocate(block_count),
    };
    kv_identity_words(query->tokens, query->extras, block_count, store->block_tokens, lease->words);
    memset(lease->objects, 0xff, block_count * sizeof *lease->objects);
    store->lease_count++;
    return lease;
}

static void look(kvist_lease_t *lease, size_t token_count)
{
    kv_match_prefix(lease, lease->query_blocks);
    if (lease->match.miss == KVIST_MISS_NONE && token_count % lease->store->block_tokens != 0) {
        lease->match.miss = KVIST_MISS_SHORT;
    }
}

kv_status_t kv_embedded_match(kvist_store_t *store, const kvist_query_t *query,
    kvist_lease_t **lease_out, kvist_match_t *match_out)
{
    if (query->token_count / store->block_tokens > KVIST_CHAIN_BLOCKS_MAX ||
        !kv_match_asks_well(query)) {
        return KV_INVALID;
    }
    if (store->lease_count >= KV_LEASES_MAX) {
        return KV_BUSY;
    }
    kvist_lease_t *lease = make_lease(store, query);
    if (query->mode == KVIST_MODE_READWRITE || query->mode == KVIST_MODE_READ) {
        look(lease, query->token_count);
    } else {
        lease->match.miss = KVIST_MISS_BYPASSED;
    }
    for (uint32_t block = 0; lease->renew && block < lease->found_count; block++) {
        kv_terms_renew(store, lease->objects[block], &lease->like);
    }
    kv_match_announce(lease);
    store->stats.miss_count[lease->match.miss] += !query->uncounted;
    *lease_out = lease;
    *match_out = lease->match;
    return KV_OK;
}

void kv_lease_set_origin(kvist_lease_t *lease, const char *origin)
{
    memset(lease->like.origin, 0, sizeof lease->like.origin);
    strncpy(lease->like.origin, origin, sizeof lease->like.origin - 1);
}

kvist_match_t kv_match_quietly(kvist_store_t *store, const kvist_why_query_t *asked)
{
    const kvist_query_t query = {.name_space = asked->name_space,
        .tokens = asked->tokens,
        .extras = asked->extras,
        .token_count = asked->token_count};
    kvist_lease_t *lease = make_lease(store, &query);
    lease->quiet = true;
    look(lease, query.token_count);
    kvist_match_t match = lease->match;
    kv_lease_free(lease);
    return match;
}

/* ---- pending ---- */

void kv_match_withdraw(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    if (!lease->announced) {
        return;
    }
    lease->announced = false;
    if (lease->newer_announced != NULL) {
        lease->newer_announced->older_announced = lease->older_announced;
    } else {
        store->newest_announced = lease->older_announced;
    }
    if (lease->older_announced != NULL) {
        lease->older_announced->newer_announced = lease->newer_announced;
    }
}

void kv_match_announce(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    uint32_t block = lease->sealed_count;
    if (!lease->storing || block >= lease->query_blocks) {
        kv_match_withdraw(lease);
        return;
    }
    lease->next_key = kv_identity_block_key(
        &lease->last_key, lease->words + (size_t)block * store->block_words, store->block_tokens);
    if (lease->announced) {
        return;
    }
    lease->announced = true;
    lease->newer_announced = NULL;
    lease->older_announced = store->newest_announced;
    if (store->newest_announced != NULL) {
        store->newest_announced->newer_announced = lease;
    }
    store->newest_announced = lease;
}

/* ---- runs ---- */

static uint64_t block_bytes(const kvist_lease_t *lease, uint32_t block)
{
    const kvist_store_t *store = lease->store;
    uint64_t bytes = store->groups[0].layout.object_bytes;
    for (uint32_t group = 1; group < store->group_count; group++) {
        if (block >= kv_match_first_needed(store, group, lease->match.block_count)) {
            bytes += store->groups[group].layout.object_bytes;
        }
    }
    return bytes;
}

size_t kv_embedded_lease_runs(const kvist_lease_t *lease, kvist_run_t *runs_out, size_t count_max)
{
    size_t count = 0;
    for (uint32_t block = 0; block < lease->match.block_count;) {
        kvist_run_t run = {.first_block = block, .tier = (kvist_tier_t)lease->tiers[block]};
        for (; block < lease->match.block_count && lease->tiers[block] == run.tier; block++) {
            run.block_count++;
            run.bytes += block_bytes(lease, block);
        }
        run.cost_ns = (uint64_t)((double)run.bytes * lease->store->load_ns_per_byte[run.tier]);
        if (count < count_max) {
            runs_out[count] = run;
        }
        count++;
    }
    return count;
}
