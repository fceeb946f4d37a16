#include "kvstore/layout.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "kvstore/identity.h"

static kv_status_t check_field(
    const char *field, uint32_t value, uint32_t value_max, kv_error_t *error)
{
    if (value < 1 || value > value_max) {
        return kv_fail(
            error, KV_INVALID, "shape.%s is %u: it must be 1 to %u", field, value, value_max);
    }
    return KV_OK;
}

static kv_status_t check_shape(const kv_block_shape_t *shape, kv_error_t *error)
{
    kv_status_t status = check_field("layer_count", shape->layer_count, 1024, error);
    if (status == KV_OK) {
        status = check_field("kv_head_count", shape->kv_head_count, 1024, error);
    }
    if (status == KV_OK) {
        status = check_field("head_dim", shape->head_dim, 4096, error);
    }
    if (status == KV_OK) {
        status = check_field("block_tokens", shape->block_tokens, 1024, error);
    }
    if (status == KV_OK) {
        status = check_field("element_bytes", shape->element_bytes, 8, error);
    }
    return status;
}

kv_status_t kv_layout_init(
    const kv_block_shape_t *shape, kv_layout_t *layout_out, kv_error_t *error)
{
    kv_status_t status = check_shape(shape, error);
    if (status != KV_OK) {
        return status;
    }
    uint64_t unit_count = (uint64_t)shape->layer_count * 2 * shape->kv_head_count;
    uint64_t unit_bytes = (uint64_t)shape->block_tokens * shape->head_dim * shape->element_bytes;
    if (unit_count > KV_LAYOUT_UNITS_MAX) {
        return kv_fail(error, KV_INVALID,
            "shape has %ju units (layers x 2 x kv heads): at most %d are possible",
            (uintmax_t)unit_count, KV_LAYOUT_UNITS_MAX);
    }
    if (unit_count * unit_bytes > KV_LAYOUT_OBJECT_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "a block of this shape has %ju bytes: at most %zu",
            (uintmax_t)(unit_count * unit_bytes), KV_LAYOUT_OBJECT_BYTES_MAX);
    }
    uint8_t encoded[24];
    kv_put_u32(encoded, 1); /* version of this encoding */
    kv_put_u32(encoded + 4, shape->layer_count);
    kv_put_u32(encoded + 8, shape->kv_head_count);
    kv_put_u32(encoded + 12, shape->head_dim);
    kv_put_u32(encoded + 16, shape->block_tokens);
    kv_put_u32(encoded + 20, shape->element_bytes);
    *layout_out = (kv_layout_t){
        .shape = *shape,
        .unit_bytes = unit_bytes,
        .object_bytes = unit_count * unit_bytes,
        .unit_count = (uint32_t)unit_count,
        .digest = kv_identity_digest(encoded, sizeof encoded),
    };
    return KV_OK;
}

void kv_layout_unit_checksums(
    const kv_layout_t *layout, const void *object, uint64_t *checksums_out)
{
    const char *unit = object;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        checksums_out[i] = kv_checksum(unit + i * layout->unit_bytes, layout->unit_bytes);
    }
}

uint64_t kv_layout_object_checksum(
    const kv_layout_t *layout, const kvist_key_t *key, const uint64_t *unit_checksums)
{
    uint64_t seed = kv_checksum(key->bytes, KVIST_KEY_BYTES);
    seed = kv_checksum_seeded(layout->digest.bytes, KVIST_KEY_BYTES, seed);
    return kv_checksum_seeded(unit_checksums, layout->unit_count * sizeof *unit_checksums, seed);
}
