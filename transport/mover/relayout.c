#include "transport/relayout.h"

/* The heads of one part that a shard holds: consecutive ones. */
typedef struct {
    uint32_t first, count;
    uint32_t copies; /* ranks that hold the same */
    uint32_t copy;   /* which of them this is */
} span_t;

static span_t span_of(uint32_t heads, kv_relayout_shard_t shard)
{
    if (heads >= shard.degree) {
        uint32_t count = heads / shard.degree;
        return (span_t){.first = shard.rank * count, .count = count, .copies = 1};
    }
    uint32_t copies = shard.degree / heads;
    return (span_t){
        .first = shard.rank / copies, .count = 1, .copies = copies, .copy = shard.rank % copies};
}

/* The heads that go from one shard to the other; count 0: none. Spans of equal length either agree
 * or are apart, and one of several copies is a single head. */
static span_t shared(span_t sender, span_t receiver)
{
    span_t none = {0};
    if (sender.copy != (uint64_t)receiver.copy * sender.copies / receiver.copies) {
        return none;
    }
    uint32_t first = sender.first > receiver.first ? sender.first : receiver.first;
    uint32_t sender_end = sender.first + sender.count;
    uint32_t receiver_end = receiver.first + receiver.count;
    uint32_t end = sender_end < receiver_end ? sender_end : receiver_end;
    return first < end ? (span_t){.first = first, .count = end - first} : none;
}

/* ---- checks ---- */

static kv_status_t check_bound(
    const char *field, uint32_t value, uint32_t minimum, uint32_t maximum, kv_error_t *error)
{
    if (value < minimum || value > maximum) {
        return kv_fail(
            error, KV_INVALID, "%s %u is not in %u to %u", field, value, minimum, maximum);
    }
    return KV_OK;
}

static kv_status_t check_geometry(const kv_relayout_geometry_t *geometry, kv_error_t *error)
{
    kv_status_t status =
        check_bound("layer count", geometry->layer_count, 1, KV_RELAYOUT_LAYERS_MAX, error);
    if (status == KV_OK) {
        status = check_bound("part count", geometry->part_count, 1, KV_RELAYOUT_PARTS_MAX, error);
    }
    for (uint32_t i = 0; status == KV_OK && i < geometry->part_count; i++) {
        status =
            check_bound("head count", geometry->parts[i].heads, 1, KV_RELAYOUT_HEADS_MAX, error);
        if (status == KV_OK) {
            status = check_bound(
                "unit bytes", geometry->parts[i].unit_bytes, 1, KV_RELAYOUT_UNIT_BYTES_MAX, error);
        }
    }
    return status;
}

static kv_status_t check_shard(
    const kv_relayout_geometry_t *geometry, kv_relayout_shard_t shard, kv_error_t *error)
{
    kv_status_t status =
        check_bound("tensor-parallel degree", shard.degree, 1, KV_RELAYOUT_DEGREE_MAX, error);
    if (status == KV_OK) {
        status = check_bound("tensor-parallel rank", shard.rank, 0, shard.degree - 1, error);
    }
    for (uint32_t i = 0; status == KV_OK && i < geometry->part_count; i++) {
        uint32_t heads = geometry->parts[i].heads;
        uint32_t rest = heads >= shard.degree ? heads % shard.degree : shard.degree % heads;
        if (rest != 0) {
            status = kv_fail(error, KV_INVALID,
                "tensor-parallel degree %u neither divides the %u heads of part %u nor is a "
                "multiple of them",
                shard.degree, heads, i);
        }
    }
    return status;
}

static kv_status_t check(
    const kv_relayout_geometry_t *geometry, kv_relayout_shard_t shard, kv_error_t *error)
{
    kv_status_t status = check_geometry(geometry, error);
    return status == KV_OK ? check_shard(geometry, shard, error) : status;
}

/* ---- sizes and ranges ---- */

static size_t layer_bytes(const kv_relayout_geometry_t *geometry, kv_relayout_shard_t shard)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < geometry->part_count; i++) {
        bytes +=
            (size_t)span_of(geometry->parts[i].heads, shard).count * geometry->parts[i].unit_bytes;
    }
    return bytes;
}

kv_status_t kv_relayout_block_bytes(const kv_relayout_geometry_t *geometry,
    kv_relayout_shard_t shard, size_t *block_bytes_out, size_t *unit_bytes_out, kv_error_t *error)
{
    kv_status_t status = check(geometry, shard, error);
    if (status != KV_OK) {
        return status;
    }
    size_t unit_bytes = geometry->parts[0].unit_bytes;
    for (uint32_t i = 1; i < geometry->part_count; i++) {
        size_t other = geometry->parts[i].unit_bytes;
        while (other != 0) { /* the greatest common divisor */
            size_t rest = unit_bytes % other;
            unit_bytes = other;
            other = rest;
        }
    }
    *block_bytes_out = geometry->layer_count * layer_bytes(geometry, shard);
    *unit_bytes_out = unit_bytes;
    return KV_OK;
}

/* Appends, or lengthens the last one where both sides go on without a gap. */
static void add(kv_range_t *ranges, uint32_t *count, kv_range_t range)
{
    kv_range_t *last = *count > 0 ? &ranges[*count - 1] : NULL;
    if (last != NULL && last->source_offset_bytes + last->bytes == range.source_offset_bytes &&
        last->target_offset_bytes + last->bytes == range.target_offset_bytes) {
        last->bytes += range.bytes;
    } else {
        ranges[(*count)++] = range;
    }
}

kv_status_t kv_relayout_ranges(const kv_relayout_geometry_t *geometry, kv_relayout_shard_t sender,
    kv_relayout_shard_t receiver, uint32_t first_layer, uint32_t layer_count,
    kv_range_t *ranges_out, uint32_t *range_count_out, kv_error_t *error)
{
    kv_status_t status = check(geometry, sender, error);
    if (status == KV_OK) {
        status = check_shard(geometry, receiver, error);
    }
    if (status == KV_OK && (first_layer > geometry->layer_count ||
                               layer_count > geometry->layer_count - first_layer)) {
        status = kv_fail(error, KV_INVALID, "layers %u and %u on are not below the model's %u",
            first_layer, layer_count, geometry->layer_count);
    }
    if (status != KV_OK) {
        return status;
    }
    size_t source = first_layer * layer_bytes(geometry, sender);
    size_t target = first_layer * layer_bytes(geometry, receiver);
    uint32_t count = 0;
    for (uint32_t i = 0; i < layer_count * geometry->part_count; i++) {
        uint32_t part = i % geometry->part_count;
        size_t unit_bytes = geometry->parts[part].unit_bytes;
        span_t from = span_of(geometry->parts[part].heads, sender);
        span_t to = span_of(geometry->parts[part].heads, receiver);
        span_t both = shared(from, to);
        if (both.count > 0) {
            add(ranges_out, &count,
                (kv_range_t){
                    .source_offset_bytes = source + (both.first - from.first) * unit_bytes,
                    .target_offset_bytes = target + (both.first - to.first) * unit_bytes,
                    .bytes = both.count * unit_bytes,
                });
        }
        source += from.count * unit_bytes;
        target += to.count * unit_bytes;
    }
    *range_count_out = count;
    return KV_OK;
}
