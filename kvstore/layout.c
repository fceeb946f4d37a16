#include "kvstore/layout.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "kvstore/identity.h"

#include <stdio.h>
#include <string.h>

enum {
    BLOCK_TOKENS_MAX = 1024,
    HEADS_MAX = 1024,
    ELEMENT_BYTES_MAX = 8,
    PLAIN_VERSION = 1,
    GROUPS_VERSION = 2,
    PLAIN_ENCODED_BYTES = 20,
    LAYER_WORDS = KVIST_LAYERS_MAX / 64,
};
#define DIMS_MAX ((uint32_t)KV_LAYOUT_OBJECT_BYTES_MAX)

/* ---- bounds ---- */

static kv_status_t check_field(
    const char *field, uint64_t value, uint64_t value_max, kv_error_t *error)
{
    if (value < 1 || value > value_max) {
        return kv_fail(error, KV_INVALID, "layout.%s is %ju: it must be 1 to %ju", field,
            (uintmax_t)value, (uintmax_t)value_max);
    }
    return KV_OK;
}

static uint32_t layer_count(const kvist_group_t *group)
{
    uint32_t count = 0;
    for (int word = 0; word < LAYER_WORDS; word++) {
        count += (uint32_t)__builtin_popcountll(group->layers[word]);
    }
    return count;
}

static bool has_tokens(const kvist_part_t *part)
{
    return part->kind != KVIST_PART_STATE && part->kind != KVIST_PART_OPAQUE;
}

static kv_status_t check_part(const kvist_part_t *part, kv_error_t *error)
{
    if ((unsigned)part->kind > KVIST_PART_OPAQUE) {
        return kv_fail(error, KV_INVALID, "layout.groups.parts.kind is %d: it must be 0 to %d",
            (int)part->kind, KVIST_PART_OPAQUE);
    }
    kv_status_t status = check_field("groups.parts.heads", part->heads, HEADS_MAX, error);
    if (status == KV_OK) {
        status = check_field("groups.parts.dims", part->dims, DIMS_MAX, error);
    }
    return status == KV_OK ? check_field("groups.parts.element_bytes", part->element_bytes,
                                 ELEMENT_BYTES_MAX, error)
                           : status;
}

static kv_status_t check_group(
    const kvist_layout_t *layout, uint32_t number, const kvist_group_t *group, kv_error_t *error)
{
    if ((unsigned)group->kind > KVIST_GROUP_STATE ||
        (number == 0 && group->kind != KVIST_GROUP_FULL)) {
        return kv_fail(error, KV_INVALID,
            "layout.groups[%u].kind is %d: it must be 0 to %d, and 0 (full) in the first group",
            number, (int)group->kind, KVIST_GROUP_STATE);
    }
    if ((group->kind == KVIST_GROUP_WINDOW) != (group->window_tokens > 0)) {
        return kv_fail(error, KV_INVALID,
            "layout.groups[%u].window_tokens is %u: a windowed group needs one, others have 0",
            number, group->window_tokens);
    }
    kv_status_t status = check_field("groups.layers", layer_count(group), KVIST_LAYERS_MAX, error);
    if (status == KV_OK) {
        status = check_field("groups.part_count", group->part_count, KVIST_PARTS_MAX, error);
    }
    uint64_t units = 0, bytes = 0;
    for (uint32_t i = 0; status == KV_OK && i < group->part_count; i++) {
        const kvist_part_t *part = &group->parts[i];
        status = check_part(part, error);
        units += part->heads;
        bytes += (uint64_t)part->heads * part->dims * part->element_bytes *
                 (has_tokens(part) ? layout->block_tokens : 1);
    }
    if (status == KV_OK) {
        status = check_field(
            "groups (units in an object)", units * layer_count(group), KV_LAYOUT_UNITS_MAX, error);
    }
    return status == KV_OK ? check_field("groups (bytes in an object)", bytes * layer_count(group),
                                 KV_LAYOUT_OBJECT_BYTES_MAX, error)
                           : status;
}

kv_status_t kvist_layout_check(const kvist_layout_t *layout, kv_error_t *error)
{
    kv_status_t status = check_field("block_tokens", layout->block_tokens, BLOCK_TOKENS_MAX, error);
    if (status == KV_OK) {
        status = check_field("group_count", layout->group_count, KVIST_GROUPS_MAX, error);
    }
    for (uint32_t i = 0; status == KV_OK && i < layout->group_count; i++) {
        status = check_group(layout, i, &layout->groups[i], error);
    }
    return status;
}

/* ---- identity ---- */

kvist_layout_t kvist_layout_plain(const kv_block_shape_t *shape)
{
    kvist_part_t part = {KVIST_PART_K, shape->kv_head_count, shape->head_dim, shape->element_bytes};
    kvist_layout_t layout = {.block_tokens = shape->block_tokens, .group_count = 1};
    kvist_group_t *group = &layout.groups[0];
    group->kind = KVIST_GROUP_FULL;
    group->part_count = 2;
    group->parts[0] = group->parts[1] = part;
    group->parts[1].kind = KVIST_PART_V;
    uint32_t count =
        shape->layer_count < KVIST_LAYERS_MAX ? shape->layer_count : (uint32_t)KVIST_LAYERS_MAX;
    for (uint32_t layer = 0; layer < count; layer++) {
        group->layers[layer / 64] |= (uint64_t)1 << layer % 64;
    }
    return layout;
}

/* Whether kvist_layout_plain could have made it. */
static bool is_plain(const kvist_layout_t *layout)
{
    const kvist_group_t *group = &layout->groups[0];
    const kvist_part_t *k = &group->parts[0], *v = &group->parts[1];
    if (layout->group_count != 1 || group->part_count != 2 || k->kind != KVIST_PART_K ||
        v->kind != KVIST_PART_V || k->heads != v->heads || k->dims != v->dims ||
        k->element_bytes != v->element_bytes) {
        return false;
    }
    uint32_t count = layer_count(group);
    return count == KVIST_LAYERS_MAX ||
           (group->layers[count / 64] >> count % 64 == 0 &&
               (count == 0 || (group->layers[(count - 1) / 64] >> (count - 1) % 64 & 1) != 0));
}

size_t kv_layout_encode(const kvist_layout_t *layout, uint8_t *encoded_out)
{
    uint8_t *at = encoded_out;
    const kvist_group_t *groups = layout->groups;
    if (is_plain(layout)) {
        kv_put_u32(at, layer_count(&groups[0]));
        kv_put_u32(at + 4, groups[0].parts[0].heads);
        kv_put_u32(at + 8, groups[0].parts[0].dims);
        kv_put_u32(at + 12, layout->block_tokens);
        kv_put_u32(at + 16, groups[0].parts[0].element_bytes);
        return PLAIN_ENCODED_BYTES;
    }
    kv_put_u32(at, GROUPS_VERSION);
    kv_put_u32(at + 4, layout->block_tokens);
    kv_put_u32(at + 8, layout->group_count);
    at += 12;
    for (uint32_t i = 0; i < layout->group_count; i++) {
        kv_put_u32(at, (uint32_t)groups[i].kind);
        kv_put_u32(at + 4, groups[i].window_tokens);
        kv_put_u32(at + 8, groups[i].part_count);
        at += 12;
        for (int word = 0; word < LAYER_WORDS; word++, at += 8) {
            kv_put_u64(at, groups[i].layers[word]);
        }
        for (uint32_t j = 0; j < groups[i].part_count; j++, at += 16) {
            const kvist_part_t *part = &groups[i].parts[j];
            kv_put_u32(at, (uint32_t)part->kind);
            kv_put_u32(at + 4, part->heads);
            kv_put_u32(at + 8, part->dims);
            kv_put_u32(at + 12, part->element_bytes);
        }
    }
    return (size_t)(at - encoded_out);
}

/* Reads numbers one after the other; what lies behind the end reads as 0. */
typedef struct {
    const uint8_t *at, *end;
    bool short_of;
} decoder_t;

static uint32_t next_u32(decoder_t *from)
{
    if (from->end - from->at < 4) {
        from->short_of = true;
        return 0;
    }
    uint32_t value = kv_get_u32(from->at);
    from->at += 4;
    return value;
}

static void decode_group(decoder_t *from, kvist_group_t *group)
{
    group->kind = (kvist_group_kind_t)next_u32(from);
    group->window_tokens = next_u32(from);
    group->part_count = next_u32(from);
    for (int word = 0; word < LAYER_WORDS; word++) {
        uint64_t low = next_u32(from);
        group->layers[word] = low | (uint64_t)next_u32(from) << 32;
    }
    for (uint32_t i = 0; i < group->part_count && i < KVIST_PARTS_MAX; i++) {
        group->parts[i].kind = (kvist_part_kind_t)next_u32(from);
        group->parts[i].heads = next_u32(from);
        group->parts[i].dims = next_u32(from);
        group->parts[i].element_bytes = next_u32(from);
    }
}

kv_status_t kv_layout_decode(
    const uint8_t *encoded, size_t bytes, kvist_layout_t *layout_out, kv_error_t *error)
{
    decoder_t from = {encoded, bytes > 0 ? encoded + bytes : encoded, false};
    kvist_layout_t layout = {0};
    if (bytes == PLAIN_ENCODED_BYTES) {
        kv_block_shape_t shape = {.layer_count = next_u32(&from)};
        shape.kv_head_count = next_u32(&from);
        shape.head_dim = next_u32(&from);
        shape.block_tokens = next_u32(&from);
        shape.element_bytes = next_u32(&from);
        layout = kvist_layout_plain(&shape);
    } else if (next_u32(&from) == GROUPS_VERSION) {
        layout.block_tokens = next_u32(&from);
        layout.group_count = next_u32(&from);
        for (uint32_t i = 0; i < layout.group_count && i < KVIST_GROUPS_MAX; i++) {
            decode_group(&from, &layout.groups[i]);
        }
    } else {
        from.short_of = true;
    }
    if (from.short_of || from.at != from.end) {
        return kv_fail(error, KV_INVALID, "layout: these %zu bytes are no layout's", bytes);
    }
    kv_status_t status = kvist_layout_check(&layout, error);
    if (status == KV_OK) {
        *layout_out = layout;
    }
    return status;
}

static bool differs(
    const char *field, uint64_t mine, uint64_t other, char *text_out, size_t text_bytes)
{
    if (mine != other) {
        snprintf(
            text_out, text_bytes, "%s is %ju, not %ju", field, (uintmax_t)other, (uintmax_t)mine);
    }
    return mine != other;
}

static bool group_differs(
    const kvist_group_t *mine, const kvist_group_t *other, char *text_out, size_t text_bytes)
{
    if (differs("groups.kind", mine->kind, other->kind, text_out, text_bytes) ||
        differs("groups.window_tokens", mine->window_tokens, other->window_tokens, text_out,
            text_bytes) ||
        differs("groups.layers", layer_count(mine), layer_count(other), text_out, text_bytes) ||
        differs("groups.part_count", mine->part_count, other->part_count, text_out, text_bytes)) {
        return true;
    }
    if (memcmp(mine->layers, other->layers, sizeof mine->layers) != 0) {
        snprintf(text_out, text_bytes, "groups.layers are others");
        return true;
    }
    for (uint32_t i = 0; i < mine->part_count; i++) {
        const kvist_part_t *a = &mine->parts[i], *b = &other->parts[i];
        if (differs("groups.parts.kind", a->kind, b->kind, text_out, text_bytes) ||
            differs("groups.parts.heads", a->heads, b->heads, text_out, text_bytes) ||
            differs("groups.parts.dims", a->dims, b->dims, text_out, text_bytes) ||
            differs("groups.parts.element_bytes", a->element_bytes, b->element_bytes, text_out,
                text_bytes)) {
            return true;
        }
    }
    return false;
}

bool kv_layout_differs(
    const kvist_layout_t *mine, const kvist_layout_t *other, char *text_out, size_t text_bytes)
{
    if (differs("block_tokens", mine->block_tokens, other->block_tokens, text_out, text_bytes) ||
        differs("group_count", mine->group_count, other->group_count, text_out, text_bytes)) {
        return true;
    }
    for (uint32_t i = 0; i < mine->group_count; i++) {
        if (group_differs(&mine->groups[i], &other->groups[i], text_out, text_bytes)) {
            return true;
        }
    }
    return false;
}

static kvist_key_t digest_of(const kvist_layout_t *layout, uint32_t group)
{
    uint8_t encoded[8 + KV_LAYOUT_ENCODED_BYTES_MAX];
    if (is_plain(layout)) {
        kv_put_u32(encoded, PLAIN_VERSION);
        return kv_identity_digest(encoded, 4 + kv_layout_encode(layout, encoded + 4));
    }
    kv_put_u32(encoded, GROUPS_VERSION);
    kv_put_u32(encoded + 4, group);
    return kv_identity_digest(encoded, 8 + kv_layout_encode(layout, encoded + 8));
}

/* ---- units ---- */

static void work_out(const kvist_layout_t *from, uint32_t number, kv_layout_t *layout)
{
    const kvist_group_t *group = &from->groups[number];
    *layout = (kv_layout_t){.group = *group,
        .block_tokens = from->block_tokens,
        .block_words = kv_identity_word_count(from->block_tokens),
        .layer_count = layer_count(group)};
    for (uint32_t i = 0; i < group->part_count; i++) {
        const kvist_part_t *part = &group->parts[i];
        size_t bytes =
            (size_t)part->dims * part->element_bytes * (has_tokens(part) ? from->block_tokens : 1);
        layout->part_unit_bytes[i] = bytes;
        layout->unit_bytes_max = bytes > layout->unit_bytes_max ? bytes : layout->unit_bytes_max;
        layout->layer_units += part->heads;
        layout->layer_bytes += part->heads * bytes;
    }
    layout->unit_count = layout->layer_count * layout->layer_units;
    layout->object_bytes = layout->layer_count * layout->layer_bytes;
}

kv_status_t kv_layout_init(
    const kvist_layout_t *from, uint32_t group, kv_layout_t *layout_out, kv_error_t *error)
{
    kv_status_t status = kvist_layout_check(from, error);
    if (status == KV_OK) {
        work_out(from, group, layout_out);
        layout_out->digest = digest_of(from, group);
    }
    return status;
}

size_t kvist_layout_object_bytes(const kvist_layout_t *layout, uint32_t group)
{
    kv_error_t error;
    kv_layout_t worked_out;
    if (kvist_layout_check(layout, &error) != KV_OK || group >= layout->group_count) {
        return 0;
    }
    work_out(layout, group, &worked_out);
    return worked_out.object_bytes;
}

/* The part that a unit is of, and its head there. */
static uint32_t part_of(const kv_layout_t *layout, uint32_t unit, uint32_t *head_out)
{
    uint32_t head = unit % layout->layer_units, part = 0;
    for (; head >= layout->group.parts[part].heads; part++) {
        head -= layout->group.parts[part].heads;
    }
    *head_out = head;
    return part;
}

size_t kv_layout_unit(const kv_layout_t *layout, uint32_t unit, size_t *bytes_out)
{
    size_t offset = unit / layout->layer_units * layout->layer_bytes;
    uint32_t head, part = part_of(layout, unit, &head);
    for (uint32_t i = 0; i < part; i++) {
        offset += layout->group.parts[i].heads * layout->part_unit_bytes[i];
    }
    *bytes_out = layout->part_unit_bytes[part];
    return offset + head * layout->part_unit_bytes[part];
}

uint32_t kv_layout_element_bytes(const kv_layout_t *layout, uint32_t unit)
{
    uint32_t head;
    return layout->group.parts[part_of(layout, unit, &head)].element_bytes;
}

/* ---- selections ---- */

static bool resolve_range(uint32_t first, uint32_t *count, uint32_t limit)
{
    if (*count == 0 && first == 0) {
        *count = limit;
    }
    return *count > 0 && first < limit && *count <= limit - first;
}

bool kv_layout_resolve(const kv_layout_t *layout, kvist_selection_t *selection)
{
    bool all_heads = selection->head_count == 0 && selection->first_head == 0;
    for (uint32_t i = 0; i < layout->group.part_count && !all_heads; i++) {
        uint32_t count = selection->head_count;
        if (count == 0 ||
            !resolve_range(selection->first_head, &count, layout->group.parts[i].heads)) {
            return false;
        }
    }
    return resolve_range(selection->first_layer, &selection->layer_count, layout->layer_count);
}

static bool selected(const kv_layout_t *layout, const kvist_selection_t *selection, uint32_t unit)
{
    if (selection->head_count == 0) {
        return true;
    }
    uint32_t head;
    part_of(layout, unit, &head);
    return head >= selection->first_head && head - selection->first_head < selection->head_count;
}

uint32_t kv_layout_next_selected(
    const kv_layout_t *layout, const kvist_selection_t *selection, uint32_t *cursor)
{
    uint32_t first = selection->first_layer * layout->layer_units;
    uint32_t end = first + selection->layer_count * layout->layer_units;
    uint32_t unit = *cursor > first ? *cursor : first;
    while (unit < end && !selected(layout, selection, unit)) {
        unit++;
    }
    *cursor = unit + 1;
    return unit < end ? unit : UINT32_MAX;
}

size_t kvist_selection_bytes(const kvist_layout_t *layout, const kvist_selection_t *selection)
{
    kv_error_t error;
    kv_layout_t worked_out;
    kvist_selection_t resolved = *selection;
    if (kvist_layout_check(layout, &error) != KV_OK || selection->group >= layout->group_count) {
        return 0;
    }
    work_out(layout, selection->group, &worked_out);
    return kv_layout_resolve(&worked_out, &resolved)
               ? selection->block_count * kv_layout_selected_bytes(&worked_out, &resolved)
               : 0;
}

size_t kv_layout_selected_bytes(const kv_layout_t *layout, const kvist_selection_t *selection)
{
    size_t layer_bytes = 0;
    for (uint32_t i = 0; i < layout->group.part_count; i++) {
        uint32_t heads =
            selection->head_count > 0 ? selection->head_count : layout->group.parts[i].heads;
        layer_bytes += heads * layout->part_unit_bytes[i];
    }
    return selection->layer_count * layer_bytes;
}

uint32_t kv_layout_selected_units(const kv_layout_t *layout, const kvist_selection_t *selection)
{
    uint32_t layer_units = selection->head_count > 0
                               ? selection->head_count * layout->group.part_count
                               : layout->layer_units;
    return selection->layer_count * layer_units;
}

/* ---- checksums ---- */

void kv_layout_unit_checksums(
    const kv_layout_t *layout, const void *object, uint64_t *checksums_out)
{
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, offset = kv_layout_unit(layout, i, &bytes);
        checksums_out[i] = kv_checksum((const char *)object + offset, bytes);
    }
}

bool kv_layout_units_agree(const kv_layout_t *layout, const void *object, const uint64_t *checksums)
{
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        size_t bytes, offset = kv_layout_unit(layout, i, &bytes);
        if (kv_checksum((const char *)object + offset, bytes) != checksums[i]) {
            return false;
        }
    }
    return true;
}

uint64_t kv_layout_object_checksum(
    const kv_layout_t *layout, const kvist_key_t *key, const uint64_t *unit_checksums)
{
    uint64_t seed = kv_checksum(key->bytes, KVIST_KEY_BYTES);
    seed = kv_checksum_seeded(layout->digest.bytes, KVIST_KEY_BYTES, seed);
    return kv_checksum_seeded(unit_checksums, layout->unit_count * sizeof *unit_checksums, seed);
}
