/* Leases: what is found on the device and at the service, and their end. */
#include "kvstore/attach/attached_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "kvstore/attach/attached_ops.h"
#include "kvstore/attach/told.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/lease_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- the lease ---- */

static kv_attached_lease_t *make_lease(kv_attached_t *attached, const kvist_query_t *query)
{
    uint32_t block_tokens = attached->layout.block_tokens;
    uint32_t blocks = (uint32_t)(query->token_count / block_tokens);
    kv_attached_lease_t *lease = kv_allocate(sizeof *lease);
    *lease = (kv_attached_lease_t){
        .store = (kvist_store_t *)attached,
        .next = attached->leases,
        .mode = query->mode,
        .storing = query->mode == KVIST_MODE_READWRITE || query->mode == KVIST_MODE_WRITE,
        .name_space = query->name_space,
        .query_blocks = blocks,
    };
    if (attached->leases != NULL) {
        attached->leases->previous = lease;
    }
    attached->leases = lease;
    kv_attached_note_tokens(lease, 0, query->tokens, query->extras, blocks);
    return lease;
}

static void free_lease(kv_attached_lease_t *lease)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    if (lease->previous != NULL) {
        lease->previous->next = lease->next;
    } else {
        attached->leases = lease->next;
    }
    if (lease->next != NULL) {
        lease->next->previous = lease->previous;
    }
    for (int i = 0; i < KVIST_GROUPS_MAX; i++) {
        free(lease->places[i].slots);
        free(lease->places[i].checksums);
    }
    free(lease->tokens);
    free(lease->extras);
    free(lease->keys);
    free(lease->alike);
    free(lease->through);
    free(lease);
}

void kv_attached_note_tokens(kv_attached_lease_t *lease, uint32_t block, const uint32_t *tokens,
    const kvist_key_t *extras, uint32_t block_count)
{
    size_t block_tokens = kv_lease_attached(lease)->layout.block_tokens;
    uint32_t end = block + block_count;
    if (end > lease->token_room) {
        lease->token_room = end + end / 2 + 4;
        lease->tokens =
            kv_reallocate(lease->tokens, lease->token_room, block_tokens * sizeof *lease->tokens);
        lease->extras = kv_reallocate(lease->extras, lease->token_room, sizeof *lease->extras);
    }
    if (block_count > 0) {
        memcpy(lease->tokens + block * block_tokens, tokens,
            block_count * block_tokens * sizeof *tokens);
        if (extras != NULL) {
            memcpy(lease->extras + block, extras, block_count * sizeof *extras);
        } else {
            memset(lease->extras + block, 0, block_count * sizeof *lease->extras);
        }
    }
    lease->token_blocks = end > lease->token_blocks ? end : lease->token_blocks;
}

ProtobufCBinaryData kv_attached_pack_extras(const kvist_key_t *extras, size_t block_count)
{
    static const kvist_key_t NONE;
    size_t block = 0;
    while (extras != NULL && block < block_count && kv_key_equal(&extras[block], &NONE)) {
        block++;
    }
    bool any = extras != NULL && block < block_count;
    return (ProtobufCBinaryData){
        any ? block_count * sizeof *extras : 0, any ? (uint8_t *)extras->bytes : NULL};
}

const kvist_key_t *kv_attached_keys(kv_attached_lease_t *lease, uint32_t block_count)
{
    uint32_t block_tokens = kv_lease_attached(lease)->layout.block_tokens;
    uint32_t first = lease->key_count;
    KV_CHECK(block_count <= lease->token_blocks);
    if (block_count > first) {
        lease->keys = kv_reallocate(lease->keys, block_count, sizeof *lease->keys);
        const kvist_key_t parent = first > 0 ? lease->keys[first - 1] : lease->name_space;
        kvist_keys(&parent, lease->tokens + (size_t)first * block_tokens, lease->extras + first,
            (size_t)(block_count - first) * block_tokens, block_tokens, lease->keys + first);
        lease->key_count = block_count;
    }
    return lease->keys;
}

/* ---- what the service has ---- */

/* Numbers out of bounds are as if nothing was found: the service is not believed blindly. */
static bool take_places(
    kv_attached_lease_t *lease, uint32_t group, const Kvist__Store__Places *said, uint32_t found)
{
    const kv_arena_t *arena = &lease->life->arenas[group];
    kv_places_t *places = &lease->places[group];
    size_t count = said->slots.len / sizeof(uint32_t);
    if (said->first_block > found || count != found - said->first_block ||
        said->slots.len % sizeof(uint32_t) != 0 ||
        said->checksums.len != count * sizeof(uint64_t)) {
        return false;
    }
    *places = (kv_places_t){
        .first_block = said->first_block,
        .count = (uint32_t)count,
        .slots = kv_allocate_array(count + 1, sizeof *places->slots),
        .checksums = kv_allocate_array(count + 1, sizeof *places->checksums),
    };
    for (size_t i = 0; i < count; i++) {
        places->slots[i] = kv_get_u32(said->slots.data + i * sizeof(uint32_t));
        places->checksums[i] = kv_get_u64(said->checksums.data + i * sizeof(uint64_t));
        if (places->slots[i] != KV_SLOT_NONE &&
            (arena->region.base == NULL || places->slots[i] >= arena->plan.slot_count)) {
            return false;
        }
    }
    return true;
}

static bool take_alike(kv_attached_lease_t *lease, const Kvist__Store__Matched *said)
{
    uint64_t end = 0;
    lease->alike = kv_allocate_array(said->n_alike + 1, sizeof *lease->alike);
    for (size_t i = 0; i < said->n_alike; i++) {
        const Kvist__Store__Alike *run = said->alike[i];
        end += run->block_count;
        if (end > said->block_count || run->priority >= KVIST_PRIORITY_COUNT ||
            strlen(run->arithmetic) > KVIST_ARITHMETIC_BYTES_MAX) {
            return false;
        }
        kv_alike_t *alike = &lease->alike[lease->alike_count++];
        alike->end_block = (uint32_t)end;
        alike->expires_s = run->expires_unix_s;
        alike->priority = (uint8_t)run->priority;
        memcpy(alike->arithmetic, run->arithmetic, strlen(run->arithmetic));
    }
    return end == said->block_count;
}

static bool take_matched(kv_attached_lease_t *lease, const Kvist__Store__Matched *said)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    uint32_t found = said->block_count;
    if (found > lease->query_blocks || said->miss >= KVIST_MISS_COUNT ||
        (found > 0 && said->n_groups != attached->layout.group_count)) {
        return false;
    }
    for (uint32_t i = 0; found > 0 && i < said->n_groups; i++) {
        if (!take_places(lease, i, said->groups[i], found)) {
            return false;
        }
    }
    if (!take_alike(lease, said)) {
        return false;
    }
    attached->disk_ns_per_byte = (double)said->disk_ps_per_byte / 1000;
    lease->served_count = lease->service_count = found;
    return true;
}

/* The answer came after all, when nobody waits for it any more: its lease is of no use. */
typedef struct {
    kv_attached_t *attached;
    kv_life_t *life;
    uint32_t number;
} late_t;

static void release_at_service(kv_attached_t *attached, kv_life_t *life, uint32_t number)
{
    if (life->up) {
        Kvist__Store__Release release = KVIST__STORE__RELEASE__INIT;
        release.lease = number;
        kv_link_say(attached, KVIST__STORE__REQUEST__BODY_RELEASE, &release);
        kv_life_give_lease(life, number);
    }
    kv_life_release(life);
}

static void matched_late(void *owner, const Kvist__Store__Answer *answer)
{
    late_t *late = owner;
    bool leased = answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_MATCHED &&
                  answer->matched->code == KV_OK;
    if (leased) {
        release_at_service(late->attached, late->life, late->number);
    } else {
        if (answer != NULL) {
            kv_life_give_lease(late->life, late->number);
        }
        kv_life_release(late->life);
    }
    free(late);
}

static Kvist__Store__Match ask_of(
    const kvist_query_t *query, uint32_t block_tokens, Kvist__Store__Terms *terms)
{
    Kvist__Store__Match match = KVIST__STORE__MATCH__INIT;
    kv_told_terms_pack(&query->terms, terms);
    match.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)query->name_space.bytes};
    match.tokens = (ProtobufCBinaryData){
        query->token_count * sizeof *query->tokens, (uint8_t *)(void *)query->tokens};
    match.extras = kv_attached_pack_extras(query->extras, query->token_count / block_tokens);
    match.mode = query->mode;
    match.terms = terms;
    match.renew = query->renew;
    match.request = query->request;
    match.uncounted = query->uncounted;
    return match;
}

/* The service's part of the lease. KV_OK: it has one; KV_PEER_LOST: the service is away. */
static kv_status_t match_at_service(
    kv_attached_lease_t *lease, const kvist_query_t *query, kvist_match_t *match_out)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    Kvist__Store__Terms terms;
    Kvist__Store__Match match = ask_of(query, attached->layout.block_tokens, &terms);
    Kvist__Store__Answer *answer;
    if (!kv_link_usable(attached)) {
        return KV_PEER_LOST;
    }
    kv_life_t *life = attached->life;
    match.lease = kv_life_take_lease(life);
    if (match.lease == UINT32_MAX) {
        return KV_BUSY;
    }
    late_t *late = kv_allocate(sizeof *late);
    *late = (late_t){attached, life, match.lease};
    kv_life_hold(life);
    kv_status_t status = kv_link_ask_now(attached, KVIST__STORE__REQUEST__BODY_MATCH, &match,
        &match.id, attached->bounds.match_ms, matched_late, late, &answer);
    if (status != KV_OK) {
        return status; /* late is released with the answer, or with the connection */
    }
    lease->life = life;
    lease->number = match.lease;
    free(late);
    status = answer->body_case == KVIST__STORE__ANSWER__BODY_MATCHED
                 ? (kv_status_t)answer->matched->code
                 : KV_FATAL;
    if (status == KV_OK && !take_matched(lease, answer->matched)) {
        kv_link_lose(attached, KV_INVALID, "it answers a match with numbers out of bounds");
        lease->served_count = lease->service_count = 0;
        kv_life_release(life);
        lease->life = NULL;
        status = KV_PEER_LOST;
    } else if (status == KV_OK) {
        match_out->miss = (kvist_miss_t)answer->matched->miss;
        if (answer->matched->detail != NULL) {
            kv_told_detail_unpack(answer->matched->detail, &match_out->detail);
        }
    } else {
        kv_life_give_lease(life, match.lease);
        kv_life_release(life);
        lease->life = NULL;
    }
    kvist__store__answer__free_unpacked(answer, NULL);
    return status;
}

/* ---- match ---- */

/* The tier that a found block comes from. */
static kvist_tier_t tier_of(const kv_attached_lease_t *lease, uint32_t block)
{
    if (block < lease->device_count) {
        return KVIST_TIER_DEVICE;
    }
    for (int group = 0; group < KVIST_GROUPS_MAX; group++) {
        const kv_places_t *places = &lease->places[group];
        if (block >= places->first_block && block - places->first_block < places->count &&
            places->slots[block - places->first_block] == KV_SLOT_NONE) {
            return KVIST_TIER_DISK;
        }
    }
    return KVIST_TIER_HOST;
}

/* Whichever found more also knows why it is not more. */
static void finish_match(kv_attached_lease_t *lease, bool counted, const kvist_match_t *inner,
    const kvist_match_t *served)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    bool all = inner->miss == KVIST_MISS_NONE || inner->miss == KVIST_MISS_SHORT ||
               inner->miss == KVIST_MISS_BYPASSED;
    bool device = lease->life != NULL ? inner->block_count > lease->served_count : all;
    lease->match.miss = device ? inner->miss : served->miss;
    lease->match.detail = device ? inner->detail : served->detail;
    lease->device_count = inner->block_count;
    lease->match.block_count =
        inner->block_count > lease->served_count ? inner->block_count : lease->served_count;
    for (uint32_t block = 0; block < lease->match.block_count; block++) {
        lease->match.tier_blocks[tier_of(lease, block)]++;
    }
    lease->sealed_count = lease->match.block_count;
    attached->miss_count[lease->match.miss] += counted;
}

/* Of the inner store, or nothing where there is no device. */
static kv_status_t match_inner(
    kv_attached_lease_t *lease, const kvist_query_t *query, kvist_match_t *match_out)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    if (attached->has_device) {
        return kv_embedded_match(attached->inner, query, &lease->inner, match_out);
    }
    bool looks = query->mode == KVIST_MODE_READWRITE || query->mode == KVIST_MODE_READ;
    *match_out = (kvist_match_t){.miss = !looks ? KVIST_MISS_BYPASSED
                                         : query->token_count >= attached->layout.block_tokens
                                             ? KVIST_MISS_FAILED
                                         : query->token_count > 0 ? KVIST_MISS_SHORT
                                                                  : KVIST_MISS_NONE};
    return KV_OK;
}

bool kv_attached_asks_well(
    const kv_attached_t *attached, size_t token_count, const kvist_key_t *extras)
{
    uint32_t blocks_max = extras != NULL ? KV_ATTACH_EXTRAS_MAX : KV_ATTACH_BLOCKS_MAX;
    return token_count <= KV_ATTACH_TOKENS_MAX &&
           token_count / attached->layout.block_tokens <= blocks_max;
}

kv_status_t kv_attached_match(kvist_store_t *store, const kvist_query_t *query,
    kvist_lease_t **lease_out, kvist_match_t *match_out)
{
    kv_attached_t *attached = kv_attached_of(store);
    if (!kv_attached_asks_well(attached, query->token_count, query->extras) ||
        !kv_match_asks_well(query)) {
        return KV_INVALID;
    }
    kv_attached_lease_t *lease = make_lease(attached, query);
    kvist_match_t inner, served = {.miss = KVIST_MISS_FAILED};
    kv_status_t status = match_inner(lease, query, &inner);
    if (status == KV_OK) {
        status = match_at_service(lease, query, &served);
        status = status == KV_PEER_LOST ? KV_OK : status; /* it goes on without */
    }
    if (status != KV_OK) {
        lease->released = true;
        kv_attached_settle(lease);
        return status;
    }
    finish_match(lease, !query->uncounted, &inner, &served);
    *lease_out = (kvist_lease_t *)lease;
    *match_out = lease->match;
    return KV_OK;
}

/* ---- what was found ---- */

static uint64_t block_bytes(const kv_attached_lease_t *lease, uint32_t block)
{
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    uint64_t bytes = inner->groups[0].layout.object_bytes;
    for (uint32_t group = 1; group < inner->group_count; group++) {
        const kv_places_t *places = &lease->places[group];
        if (block >= places->first_block && block - places->first_block < places->count) {
            bytes += inner->groups[group].layout.object_bytes;
        }
    }
    return bytes;
}

static double ns_per_byte(const kv_attached_t *attached, kvist_tier_t tier)
{
    switch (tier) {
    case KVIST_TIER_HOST:
        return attached->host_ns_per_byte;
    case KVIST_TIER_DISK:
        return attached->disk_ns_per_byte;
    default:
        return attached->inner->load_ns_per_byte[KVIST_TIER_DEVICE];
    }
}

size_t kv_attached_lease_runs(const kvist_lease_t *of, kvist_run_t *runs_out, size_t count_max)
{
    const kv_attached_lease_t *lease = (const kv_attached_lease_t *)of;
    size_t count = 0;
    for (uint32_t block = 0; block < lease->match.block_count;) {
        kvist_run_t run = {.first_block = block, .tier = tier_of(lease, block)};
        for (; block < lease->match.block_count && tier_of(lease, block) == run.tier; block++) {
            run.block_count++;
            run.bytes += block_bytes(lease, block);
        }
        run.cost_ns =
            (uint64_t)((double)run.bytes * ns_per_byte(kv_lease_attached(lease), run.tier));
        if (count < count_max) {
            runs_out[count] = run;
        }
        count++;
    }
    return count;
}

const char *kv_attached_lease_arithmetic(const kvist_lease_t *of, uint32_t block)
{
    const kv_attached_lease_t *lease = (const kv_attached_lease_t *)of;
    KV_CHECK(block < lease->sealed_count);
    if (lease->inner != NULL && block < kv_embedded_lease_sealed_count(lease->inner)) {
        return kv_embedded_lease_arithmetic(lease->inner, block);
    }
    for (uint32_t i = 0; i < lease->alike_count; i++) {
        if (block < lease->alike[i].end_block) {
            return lease->alike[i].arithmetic;
        }
    }
    return "";
}

uint32_t kv_attached_lease_sealed_count(const kvist_lease_t *lease)
{
    return ((const kv_attached_lease_t *)lease)->sealed_count;
}

/* ---- release ---- */

void kv_attached_settle(kv_attached_lease_t *lease)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    if (!lease->released || lease->transfers_out > 0 || lease->first_put != NULL ||
        lease->prepare != NULL) {
        return;
    }
    if (lease->inner != NULL) { /* what is still to be written through is held by itself */
        kv_embedded_lease_release(lease->inner);
        lease->inner = NULL;
    }
    if (lease->through_put != NULL || lease->dirty) {
        return;
    }
    kv_through_drop(lease);
    if (lease->life != NULL) {
        release_at_service(attached, lease->life, lease->number);
    }
    free_lease(lease);
}

void kv_attached_lease_release(kvist_lease_t *of)
{
    kv_attached_lease_t *lease = kv_attached_lease_of(of);
    kv_attached_t *attached = kv_lease_attached(lease);
    KV_CHECK(!lease->released);
    lease->released = true;
    kv_attached_put_cancel(lease);
    kv_attached_prepare_cancel(lease);
    kv_attached_settle(lease); /* which may be the end of it */
    kv_attached_kick(attached);
}
