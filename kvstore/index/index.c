#include "kvstore/index/index.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>

enum { CHANGE_HEAD_BYTES = 4, READ_AT_ONCE = 1024 };

static void append(kv_index_batch_t *batch, bool is_put, const void *key, size_t key_bytes,
    const void *value, size_t value_bytes)
{
    KV_CHECK(key_bytes <= UINT8_MAX && value_bytes <= UINT16_MAX);
    size_t needed = batch->used + CHANGE_HEAD_BYTES + key_bytes + value_bytes;
    if (needed > batch->capacity) {
        batch->capacity = needed * 2;
        batch->bytes = kv_reallocate(batch->bytes, batch->capacity, 1);
    }
    uint8_t *at = batch->bytes + batch->used;
    at[0] = is_put;
    at[1] = (uint8_t)key_bytes;
    kv_put_u16(at + 2, (uint16_t)value_bytes);
    memcpy(at + CHANGE_HEAD_BYTES, key, key_bytes);
    if (value_bytes > 0) {
        memcpy(at + CHANGE_HEAD_BYTES + key_bytes, value, value_bytes);
    }
    batch->used = needed;
    batch->count++;
}

void kv_index_batch_put(kv_index_batch_t *batch, const void *key, size_t key_bytes,
    const void *value, size_t value_bytes)
{
    append(batch, true, key, key_bytes, value, value_bytes);
}

void kv_index_batch_delete(kv_index_batch_t *batch, const void *key, size_t key_bytes)
{
    append(batch, false, key, key_bytes, NULL, 0);
}

void kv_index_batch_clear(kv_index_batch_t *batch)
{
    batch->used = 0;
    batch->count = 0;
}

void kv_index_batch_release(kv_index_batch_t *batch)
{
    free(batch->bytes);
    *batch = (kv_index_batch_t){0};
}

bool kv_index_batch_next(
    const kv_index_batch_t *batch, size_t *cursor, kv_index_change_t *change_out)
{
    if (*cursor >= batch->used) {
        return false;
    }
    const uint8_t *at = batch->bytes + *cursor;
    change_out->is_put = at[0] != 0;
    change_out->key_bytes = at[1];
    change_out->value_bytes = kv_get_u16(at + 2);
    change_out->key = at + CHANGE_HEAD_BYTES;
    change_out->value = change_out->key + change_out->key_bytes;
    *cursor += CHANGE_HEAD_BYTES + change_out->key_bytes + change_out->value_bytes;
    return true;
}

kv_status_t kv_index_read_all(
    kv_index_t *index, uint8_t first, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    kv_index_cursor_t *cursor = index->ops->open_cursor(index, first);
    kv_status_t status = KV_OK;
    for (bool ended = false; status == KV_OK && !ended;) {
        status = index->ops->read(index, cursor, READ_AT_ONCE, visit, context, &ended, error);
    }
    index->ops->close_cursor(index, cursor);
    return status;
}
