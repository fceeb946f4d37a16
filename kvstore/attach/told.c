#include "kvstore/attach/told.h"

#include <stddef.h>
#include <string.h>

/* ---- figures ---- */

#define AT(field) offsetof(kvist_stats_t, field)
#define TIER(tier)                                                                                 \
    AT(tiers[tier].capacity_bytes), AT(tiers[tier].used_bytes), AT(tiers[tier].object_count),      \
        AT(tiers[tier].hit_blocks), AT(tiers[tier].read_bytes), AT(tiers[tier].written_bytes),     \
        AT(tiers[tier].evicted_objects)

static const size_t NUMBERS[] = {
    TIER(KVIST_TIER_HOST),
    TIER(KVIST_TIER_DISK),
    AT(leases),
    AT(unsaved_objects),
    AT(barriers),
    AT(damaged_objects),
    AT(failed_reads),
    AT(failed_writes),
    AT(moved_objects),
    AT(write_budget_bytes),
    AT(write_left_bytes),
    AT(segment_written_bytes),
    AT(not_admitted_objects),
    AT(pinned_bytes),
    AT(index_loaded),
    AT(index_total),
};
enum { NUMBER_COUNT = sizeof NUMBERS / sizeof NUMBERS[0] };
_Static_assert((int)NUMBER_COUNT <= (int)KV_TOLD_STATS_MAX, "all figures fit");

void kv_told_stats_pack(
    const kvist_stats_t *stats, uint64_t *numbers_out, Kvist__Store__Stats *message_out)
{
    for (int i = 0; i < NUMBER_COUNT; i++) {
        memcpy(&numbers_out[i], (const char *)stats + NUMBERS[i], sizeof *numbers_out);
    }
    message_out->n_numbers = NUMBER_COUNT;
    message_out->numbers = numbers_out;
    message_out->n_misses = KVIST_MISS_COUNT;
    message_out->misses = (uint64_t *)stats->miss_count;
    message_out->index_loading = stats->index_loading;
    message_out->disk_offline = stats->disk_offline;
    message_out->io = (char *)stats->io;
}

void kv_told_stats_unpack(const Kvist__Store__Stats *message, kvist_stats_t *stats_out)
{
    *stats_out = (kvist_stats_t){
        .index_loading = message->index_loading,
        .disk_offline = message->disk_offline,
    };
    for (size_t i = 0; i < message->n_numbers && i < NUMBER_COUNT; i++) {
        memcpy((char *)stats_out + NUMBERS[i], &message->numbers[i], sizeof(uint64_t));
    }
    for (size_t i = 0; i < message->n_misses && i < KVIST_MISS_COUNT; i++) {
        stats_out->miss_count[i] = message->misses[i];
    }
    /* The struct's text outlives the message. */
    static const char *const NAMES[] = {"io_uring", "threads"};
    stats_out->io = "none";
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        if (strcmp(message->io, NAMES[i]) == 0) {
            stats_out->io = NAMES[i];
        }
    }
}

void kv_told_verify_pack(const kvist_verify_t *state, uint64_t *numbers_out)
{
    const uint64_t numbers[KV_TOLD_VERIFY_COUNT] = {state->object_count, state->object_total,
        state->bytes, state->bytes_total, state->damaged_objects, state->failed_objects};
    memcpy(numbers_out, numbers, sizeof numbers);
}

void kv_told_verify_unpack(const uint64_t *numbers, size_t count, kvist_verify_t *state_out)
{
    uint64_t all[KV_TOLD_VERIFY_COUNT] = {0};
    count = count < KV_TOLD_VERIFY_COUNT ? count : KV_TOLD_VERIFY_COUNT;
    memcpy(all, numbers, count * sizeof *numbers);
    *state_out = (kvist_verify_t){all[0], all[1], all[2], all[3], all[4], all[5]};
}

/* ---- what is stored ---- */

static ProtobufCBinaryData pack_key(const kvist_key_t *key)
{
    return (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)key->bytes};
}

static kvist_key_t unpack_key(const ProtobufCBinaryData *from)
{
    kvist_key_t key = {{0}};
    memcpy(key.bytes, from->data, from->len < KVIST_KEY_BYTES ? from->len : KVIST_KEY_BYTES);
    return key;
}

static kvist_priority_t unpack_priority(uint32_t priority)
{
    return priority < KVIST_PRIORITY_COUNT ? (kvist_priority_t)priority : KVIST_PRIORITY_BACKGROUND;
}

static kvist_tier_t unpack_tier(uint32_t tier)
{
    return tier < KVIST_TIER_COUNT ? (kvist_tier_t)tier : KVIST_TIER_DISK;
}

void kv_told_object_pack(const kvist_object_t *object, Kvist__Store__Object *message_out)
{
    kvist__store__object__init(message_out);
    message_out->key = pack_key(&object->key);
    message_out->parent = pack_key(&object->parent);
    message_out->name_space = pack_key(&object->name_space);
    message_out->position = object->position;
    message_out->token_count = object->token_count;
    message_out->children = object->children;
    message_out->groups = object->groups;
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        message_out->tiers |= object->tiers[tier] ? 1u << tier : 0;
    }
    message_out->bytes = object->bytes;
    message_out->segment = object->segment;
    message_out->segment_offset = object->segment_offset;
    message_out->stored_bytes = object->stored_bytes;
    message_out->created_unix_ns = object->created_unix_ns;
    message_out->used_unix_ns = object->used_unix_ns;
    message_out->expires_unix_ns = object->expires_unix_ns;
    message_out->pin_until_unix_ns = object->pin_until_unix_ns;
    message_out->priority = object->priority;
    message_out->leases = object->leases;
    message_out->origin = (char *)object->origin;
    message_out->tenant = (char *)object->tenant;
    message_out->arithmetic = (char *)object->arithmetic;
}

void kv_told_object_unpack(const Kvist__Store__Object *message, kvist_object_t *object_out)
{
    *object_out = (kvist_object_t){
        .key = unpack_key(&message->key),
        .parent = unpack_key(&message->parent),
        .name_space = unpack_key(&message->name_space),
        .position = message->position,
        .token_count = message->token_count,
        .children = message->children,
        .groups = message->groups,
        .bytes = message->bytes,
        .segment = message->segment,
        .segment_offset = message->segment_offset,
        .stored_bytes = message->stored_bytes,
        .created_unix_ns = message->created_unix_ns,
        .used_unix_ns = message->used_unix_ns,
        .expires_unix_ns = message->expires_unix_ns,
        .pin_until_unix_ns = message->pin_until_unix_ns,
        .priority = unpack_priority(message->priority),
        .leases = message->leases,
    };
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        object_out->tiers[tier] = (message->tiers >> tier & 1) != 0;
    }
    strncpy(object_out->origin, message->origin, sizeof object_out->origin - 1);
    strncpy(object_out->tenant, message->tenant, sizeof object_out->tenant - 1);
    strncpy(object_out->arithmetic, message->arithmetic, sizeof object_out->arithmetic - 1);
}

void kv_told_context_pack(const kvist_context_t *context, Kvist__Store__Context *message_out)
{
    kvist__store__context__init(message_out);
    message_out->key = pack_key(&context->key);
    message_out->name_space = pack_key(&context->name_space);
    message_out->token_count = context->token_count;
    message_out->bytes = context->bytes;
    message_out->tier = context->tier;
    message_out->used_unix_ns = context->used_unix_ns;
    message_out->expires_unix_ns = context->expires_unix_ns;
    message_out->pin_until_unix_ns = context->pin_until_unix_ns;
    message_out->priority = context->priority;
    message_out->origin = (char *)context->origin;
    message_out->tenant = (char *)context->tenant;
}

void kv_told_context_unpack(const Kvist__Store__Context *message, kvist_context_t *context_out)
{
    *context_out = (kvist_context_t){
        .key = unpack_key(&message->key),
        .name_space = unpack_key(&message->name_space),
        .token_count = message->token_count,
        .bytes = message->bytes,
        .tier = unpack_tier(message->tier),
        .used_unix_ns = message->used_unix_ns,
        .expires_unix_ns = message->expires_unix_ns,
        .pin_until_unix_ns = message->pin_until_unix_ns,
        .priority = unpack_priority(message->priority),
    };
    strncpy(context_out->origin, message->origin, sizeof context_out->origin - 1);
    strncpy(context_out->tenant, message->tenant, sizeof context_out->tenant - 1);
}

void kv_told_detail_pack(const kvist_miss_detail_t *detail, Kvist__Store__Detail *message_out)
{
    kvist__store__detail__init(message_out);
    message_out->block = detail->block;
    message_out->tier = detail->tier;
    message_out->dropped = detail->dropped;
    message_out->when_unix_ns = detail->when_unix_ns;
    message_out->maker_known = detail->maker_known;
    message_out->priority = detail->priority;
    message_out->request = detail->request;
    message_out->tenant = (char *)detail->tenant;
    message_out->origin = (char *)detail->origin;
    message_out->token_known = detail->token_known;
    message_out->token = detail->token;
    message_out->extra_differs = detail->extra_differs;
    message_out->other = pack_key(&detail->other);
}

void kv_told_detail_unpack(const Kvist__Store__Detail *message, kvist_miss_detail_t *detail_out)
{
    *detail_out = (kvist_miss_detail_t){
        .block = message->block,
        .tier = unpack_tier(message->tier),
        .dropped = message->dropped,
        .when_unix_ns = message->when_unix_ns,
        .maker_known = message->maker_known,
        .priority = unpack_priority(message->priority),
        .request = message->request,
        .token_known = message->token_known,
        .token = message->token,
        .extra_differs = message->extra_differs,
        .other = unpack_key(&message->other),
    };
    strncpy(detail_out->tenant, message->tenant, sizeof detail_out->tenant - 1);
    strncpy(detail_out->origin, message->origin, sizeof detail_out->origin - 1);
}

void kv_told_terms_pack(const kvist_terms_t *terms, Kvist__Store__Terms *message_out)
{
    kvist__store__terms__init(message_out);
    message_out->priority = terms->priority;
    message_out->expires_unix_ns = terms->expires_unix_ns;
    message_out->pin_until_unix_ns = terms->pin_until_unix_ns;
    message_out->tenant = (char *)(terms->tenant != NULL ? terms->tenant : "");
    message_out->expected_next_use_unix_ns = terms->expected_next_use_unix_ns;
}
