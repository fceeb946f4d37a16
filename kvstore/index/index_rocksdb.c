/* The index in RocksDB. The log of changes is written without a sync unless asked: what a power
 * loss takes from it is found again in the records. */
#include "kvstore/index/index.h"

#include "base/memory.h"

#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A small buffer: after a kill the log is replayed, and that time is bounded by it. */
#define WRITE_BUFFER_BYTES ((size_t)16 << 20)
#define LOG_BYTES ((size_t)4 << 20) /* so that no buffer becomes full by itself */
#define BLOCK_CACHE_BYTES ((size_t)8 << 20)
#define READAHEAD_BYTES ((size_t)4 << 20)
enum { OPEN_FILES_MAX = 128, GET_AT_ONCE = 32, FILTER_BITS_PER_KEY = 8 };
enum { LOG_NOTHING = 5 }; /* HEADER_LEVEL: headers themselves are of a lower one */

typedef struct {
    kv_index_t index; /* first: the public object */
    rocksdb_t *database;
    rocksdb_writeoptions_t *write_options;
    rocksdb_flushoptions_t *flush_options;
    size_t log_bytes_max, log_bytes; /* since the log began */
    bool failed;                     /* a write: there are no more */
    rocksdb_readoptions_t *read_options;
    rocksdb_writebatch_t *batch;
} rocksdb_index_t;

/* RocksDB tells its errors apart in words only. */
static kv_status_t fail(kv_error_t *error, char *reason, const char *doing)
{
    bool corrupt = strncmp(reason, "Corruption", 10) == 0 ||
                   strncmp(reason, "Invalid argument", 16) == 0 ||
                   strstr(reason, "No such file") != NULL;
    kv_status_t status =
        kv_fail(error, corrupt ? KV_CORRUPT : KV_IO, "cannot %s the index: %s", doing, reason);
    rocksdb_free(reason);
    return status;
}

/* RocksDB begins a new log with a new buffer, and does not sync the old one first: a power loss
 * could then take the end of the old one and leave the beginning of the new one, batches from
 * before others. So the log is changed here, while everything in it is durable. */
static void change_log(rocksdb_index_t *index, char **reason)
{
    rocksdb_flush_wal(index->database, 1, reason);
    if (*reason == NULL) {
        rocksdb_flush(index->database, index->flush_options, reason);
    }
    index->log_bytes = 0;
}

static kv_status_t rocksdb_index_write(
    kv_index_t *base, const kv_index_batch_t *batch, bool sync, kv_error_t *error)
{
    rocksdb_index_t *index = (rocksdb_index_t *)base;
    kv_index_change_t change;
    /* RocksDB asserts that nobody writes to a log, or syncs one, after an error in it, and its own
     * recovery does not always begin a new one first. */
    if (index->failed) {
        return kv_fail(error, KV_IO, "cannot write the index: an earlier write failed");
    }
    rocksdb_writebatch_clear(index->batch);
    for (size_t cursor = 0; kv_index_batch_next(batch, &cursor, &change);) {
        const char *key = (const char *)change.key;
        if (change.is_put) {
            rocksdb_writebatch_put(index->batch, key, change.key_bytes, (const char *)change.value,
                change.value_bytes);
        } else {
            rocksdb_writebatch_delete(index->batch, key, change.key_bytes);
        }
    }
    char *reason = NULL;
    if (index->log_bytes > 0 && index->log_bytes + batch->used > index->log_bytes_max) {
        change_log(index, &reason);
    }
    index->log_bytes += batch->used;
    if (reason == NULL) {
        rocksdb_writeoptions_set_sync(index->write_options, sync);
        rocksdb_write(index->database, index->write_options, index->batch, &reason);
    }
    index->failed = reason != NULL;
    return reason == NULL ? KV_OK : fail(error, reason, "write");
}

struct kv_index_cursor {
    rocksdb_readoptions_t *options;
    rocksdb_iterator_t *iterator;
    uint8_t first;
};

static kv_index_cursor_t *rocksdb_index_open_cursor(kv_index_t *base, uint8_t first)
{
    rocksdb_index_t *index = (rocksdb_index_t *)base;
    kv_index_cursor_t *cursor = kv_allocate(sizeof *cursor);
    cursor->first = first;
    cursor->options = rocksdb_readoptions_create();
    rocksdb_readoptions_set_readahead_size(cursor->options, READAHEAD_BYTES);
    rocksdb_readoptions_set_fill_cache(cursor->options, 0);
    cursor->iterator = rocksdb_create_iterator(index->database, cursor->options);
    rocksdb_iter_seek(cursor->iterator, (const char *)&cursor->first, 1);
    return cursor;
}

static kv_status_t rocksdb_index_read(kv_index_t *base, kv_index_cursor_t *cursor, size_t count_max,
    kv_index_visit_t visit, void *context, bool *ended_out, kv_error_t *error)
{
    (void)base;
    rocksdb_iterator_t *iterator = cursor->iterator;
    *ended_out = false;
    for (size_t count = 0; count < count_max; count++) {
        size_t key_bytes, value_bytes;
        const char *key =
            rocksdb_iter_valid(iterator) ? rocksdb_iter_key(iterator, &key_bytes) : NULL;
        if (key == NULL || key_bytes == 0 || (uint8_t)key[0] != cursor->first) {
            *ended_out = true;
            break;
        }
        const char *value = rocksdb_iter_value(iterator, &value_bytes);
        visit(context, (const uint8_t *)key, key_bytes, (const uint8_t *)value, value_bytes);
        rocksdb_iter_next(iterator);
    }
    char *reason = NULL;
    rocksdb_iter_get_error(iterator, &reason);
    return reason == NULL ? KV_OK : fail(error, reason, "read");
}

static void rocksdb_index_close_cursor(kv_index_t *base, kv_index_cursor_t *cursor)
{
    (void)base;
    rocksdb_iter_destroy(cursor->iterator);
    rocksdb_readoptions_destroy(cursor->options);
    free(cursor);
}

/* The first error, of which the others are then repetitions. */
static char *first_of(char **reasons, size_t count)
{
    char *first = NULL;
    for (size_t i = 0; i < count; i++) {
        if (reasons[i] != NULL && first == NULL) {
            first = reasons[i];
        } else {
            rocksdb_free(reasons[i]);
        }
    }
    return first;
}

static kv_status_t get_some(rocksdb_index_t *index, const uint8_t *keys, size_t key_bytes,
    size_t count, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    const char *key_list[GET_AT_ONCE];
    size_t key_sizes[GET_AT_ONCE], value_sizes[GET_AT_ONCE];
    char *values[GET_AT_ONCE], *reasons[GET_AT_ONCE];
    for (size_t i = 0; i < count; i++) {
        key_list[i] = (const char *)keys + i * key_bytes;
        key_sizes[i] = key_bytes;
    }
    rocksdb_multi_get(index->database, index->read_options, count, key_list, key_sizes, values,
        value_sizes, reasons);
    for (size_t i = 0; i < count; i++) {
        if (reasons[i] == NULL && values[i] != NULL) {
            visit(context, keys + i * key_bytes, key_bytes, (const uint8_t *)values[i],
                value_sizes[i]);
        }
        rocksdb_free(reasons[i] == NULL ? values[i] : NULL);
    }
    char *reason = first_of(reasons, count);
    return reason == NULL ? KV_OK : fail(error, reason, "read");
}

static kv_status_t rocksdb_index_get(kv_index_t *base, const uint8_t *keys, size_t key_bytes,
    size_t count, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t at = 0; status == KV_OK && at < count; at += GET_AT_ONCE) {
        size_t some = count - at < GET_AT_ONCE ? count - at : GET_AT_ONCE;
        status = get_some(
            (rocksdb_index_t *)base, keys + at * key_bytes, key_bytes, some, visit, context, error);
    }
    return status;
}

static uint64_t rocksdb_index_estimate(kv_index_t *base)
{
    uint64_t count = 0;
    rocksdb_property_int(((rocksdb_index_t *)base)->database, "rocksdb.estimate-num-keys", &count);
    return count;
}

static void rocksdb_index_close(kv_index_t *base)
{
    rocksdb_index_t *index = (rocksdb_index_t *)base;
    rocksdb_writebatch_destroy(index->batch);
    rocksdb_writeoptions_destroy(index->write_options);
    rocksdb_flushoptions_destroy(index->flush_options);
    rocksdb_readoptions_destroy(index->read_options);
    rocksdb_close(index->database);
    free(index);
}

static const kv_index_ops_t ROCKSDB_OPS = {
    .write = rocksdb_index_write,
    .open_cursor = rocksdb_index_open_cursor,
    .read = rocksdb_index_read,
    .close_cursor = rocksdb_index_close_cursor,
    .get = rocksdb_index_get,
    .estimate = rocksdb_index_estimate,
    .close = rocksdb_index_close,
};

static rocksdb_options_t *make_options(void)
{
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_set_write_buffer_size(options, WRITE_BUFFER_BYTES);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_set_max_open_files(options, OPEN_FILES_MAX);
    rocksdb_options_set_skip_stats_update_on_db_open(options, 1);
    rocksdb_options_set_keep_log_file_num(options, 2);
    rocksdb_options_set_paranoid_checks(options, 1);
    /* RocksDB asserts that each line of its own log is written: a disk that is full would end the
     * process. What went wrong is told by its calls. */
    rocksdb_options_set_info_log_level(options, LOG_NOTHING);
    rocksdb_options_set_manifest_preallocation_size(options, (size_t)64 << 10);
    rocksdb_block_based_table_options_t *tables = rocksdb_block_based_options_create();
    rocksdb_cache_t *cache = rocksdb_cache_create_lru(BLOCK_CACHE_BYTES);
    rocksdb_block_based_options_set_block_cache(tables, cache);
    rocksdb_block_based_options_set_block_size(tables, (size_t)16 << 10);
    rocksdb_block_based_options_set_filter_policy(
        tables, rocksdb_filterpolicy_create_bloom(FILTER_BITS_PER_KEY)); /* which owns it then */
    rocksdb_options_set_block_based_table_factory(options, tables);
    rocksdb_block_based_options_destroy(tables);
    rocksdb_cache_destroy(cache);
    return options;
}

kv_status_t kv_index_rocksdb_open(
    const char *path, size_t log_bytes, kv_index_t **index_out, bool *made_out, kv_error_t *error)
{
    struct stat status;
    bool existed = stat(path, &status) == 0;
    char *reason = NULL;
    rocksdb_options_t *options = make_options();
    rocksdb_t *database = rocksdb_open(options, path, &reason);
    rocksdb_options_destroy(options);
    if (reason != NULL) {
        return fail(error, reason, "open");
    }
    rocksdb_index_t *index = kv_allocate(sizeof *index);
    index->index.ops = &ROCKSDB_OPS;
    index->database = database;
    index->write_options = rocksdb_writeoptions_create();
    index->flush_options = rocksdb_flushoptions_create();
    rocksdb_flushoptions_set_wait(index->flush_options, 0);
    index->log_bytes_max = log_bytes > 0 ? log_bytes : LOG_BYTES;
    index->read_options = rocksdb_readoptions_create();
    index->batch = rocksdb_writebatch_create();
    *index_out = &index->index;
    *made_out = !existed;
    return KV_OK;
}

static void destroy(const char *path)
{
    char *reason = NULL;
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_destroy_db(options, path, &reason);
    rocksdb_options_destroy(options);
    rocksdb_free(reason); /* a damaged database may not be removable as one */
}

void kv_index_rocksdb_set_aside(const char *path, const char *aside)
{
    destroy(aside);
    if (rename(path, aside) != 0) {
        destroy(path);
    }
}
