#include "kvstore/index/scan.h"

#include <errno.h>
#include <stdlib.h>

#define WINDOW_BYTES ((size_t)1 << 20)
enum {
    SMALL_RECORD_BYTES = 64 << 10, /* up to here reading everything is faster than headers alone */
    PAUSE_AFTER_PAGES = 4096,
};

kv_status_t kv_scan_init(const kvist_store_t *store, kv_scan_t *scan_out, kv_error_t *error)
{
    size_t record_bytes = store->record_bytes_max;
    kv_scan_t scan = {.store = store, .file = -1};
    kv_status_t status = kv_region_map(
        record_bytes > WINDOW_BYTES ? record_bytes : WINDOW_BYTES, &scan.region, error);
    if (status != KV_OK) {
        return status;
    }
    for (uint32_t i = 0; i < store->group_count; i++) {
        size_t bytes = kv_record_header_bytes_max(&store->groups[i].layout);
        scan.header_bytes = bytes > scan.header_bytes ? bytes : scan.header_bytes;
    }
    scan.scratch = kv_allocate(store->scratch_bytes_max);
    scan.words = kv_allocate_array(store->block_words, sizeof(uint32_t));
    *scan_out = scan;
    return KV_OK;
}

static void close_file(kv_scan_t *scan)
{
    kv_files_t *files = scan->store->disk->files;
    if (scan->file >= 0) {
        files->ops->close(files, scan->file);
    }
    scan->file = -1;
}

void kv_scan_release(kv_scan_t *scan)
{
    close_file(scan);
    kv_region_unmap(&scan->region);
    free(scan->scratch);
    free(scan->words);
}

void kv_scan_begin(
    kv_scan_t *scan, uint32_t segment, uint64_t generation, uint64_t offset, bool whole)
{
    kv_files_t *files = scan->store->disk->files;
    char path[KV_SEGMENT_PATH_BYTES];
    close_file(scan);
    kv_segments_path(&scan->store->disk->segments, segment, path);
    scan->file = files->ops->open(files, path, KV_FILES_READ | KV_FILES_DIRECT);
    if (scan->file == -EINVAL) {
        scan->file = files->ops->open(files, path, KV_FILES_READ);
    }
    scan->segment = segment;
    scan->generation = generation;
    scan->offset = scan->known_to = offset;
    scan->read_from = scan->read_to = 0;
    scan->step_bytes = 0;
    scan->errno_value = scan->file < 0 ? -scan->file : 0;
    scan->whole = whole;
}

static void read_window(kv_scan_t *scan, size_t bytes)
{
    kv_files_t *files = scan->store->disk->files;
    int64_t got = files->ops->read(files, scan->file, scan->region.base, bytes, scan->offset);
    scan->failed = got < 0;
    scan->errno_value = got < 0 ? (int)-got : scan->errno_value;
    scan->read_from = scan->offset;
    scan->read_to = scan->offset + (uint64_t)(got > 0 ? got : 0);
}

/* The bytes at the scan's offset, at least `bytes` of them where the file has them. */
static const char *look_at(kv_scan_t *scan, size_t bytes, size_t *got_out)
{
    uint64_t left = scan->store->disk->segments.segment_bytes - scan->offset;
    bytes = bytes < left ? bytes : (size_t)left;
    if (scan->offset < scan->read_from || scan->offset + bytes > scan->read_to) {
        bool small = scan->step_bytes <= SMALL_RECORD_BYTES;
        size_t wanted = small && bytes < WINDOW_BYTES ? WINDOW_BYTES : bytes;
        int errno_before = scan->errno_value;
        read_window(scan, wanted < left ? wanted : (size_t)left);
        if (scan->read_to == scan->read_from && wanted > bytes) {
            scan->errno_value = errno_before; /* one bad place must not hide what lies before it */
            read_window(scan, bytes);
        }
    }
    *got_out = (size_t)(scan->read_to - scan->offset);
    return (const char *)scan->region.base + (scan->offset - scan->read_from);
}

/* Whether all of the record is what its header says. KV_IO: it cannot be read. */
static kv_status_t prove_whole(kv_scan_t *scan, const kv_record_t *record)
{
    if (record->group >= scan->store->group_count || record->stored_bytes > scan->region.bytes) {
        return KV_OK; /* of another layout: its header was proved */
    }
    const kv_layout_t *layout = &scan->store->groups[record->group].layout;
    size_t got;
    const char *at = look_at(scan, record->stored_bytes, &got);
    if (got < record->stored_bytes) {
        return scan->failed ? KV_IO : KV_CORRUPT;
    }
    const void *object;
    const kv_record_reader_t reader = {scan->store->disk->keys, scan->scratch};
    return !kv_record_fits(layout, at) ? KV_OK
                                       : kv_record_verify(layout, &reader, record, at,
                                             record->stored_bytes, &object, scan->words);
}

/* Whether it can be read: its tenant may have been dropped. It is then passed like a marker. */
static bool has_key(const kv_scan_t *scan, const kv_record_t *record)
{
    kv_keyring_t *keys = scan->store->disk->keys;
    return !record->sealed || (keys != NULL && kv_keyring_find(keys, &record->key_id, NULL));
}

typedef enum { NOTHING, RECORD, MARKER, TORN } kind_t;

/* What stands at the scan's offset. Its length: in *bytes_out. */
static kind_t read_place(kv_scan_t *scan, kv_record_t *record_out, uint64_t *bytes_out)
{
    size_t got;
    const char *at = look_at(scan, scan->header_bytes, &got);
    uint64_t left = scan->store->disk->segments.segment_bytes - scan->offset;
    *bytes_out = KV_PAGE_BYTES;
    if (got < KV_PAGE_BYTES) {
        return NOTHING;
    }
    uint64_t marker_bytes;
    if (kv_record_read_marker(at, scan->generation, &marker_bytes) == KV_OK &&
        marker_bytes <= left) {
        *bytes_out = marker_bytes;
        return MARKER;
    }
    if (kv_record_read(at, got, record_out) != KV_OK ||
        record_out->generation != scan->generation || record_out->stored_bytes > left) {
        return NOTHING;
    }
    if (!has_key(scan, record_out)) {
        *bytes_out = record_out->stored_bytes;
        return MARKER;
    }
    kv_status_t status = scan->whole ? prove_whole(scan, record_out) : KV_OK;
    if (status == KV_IO) {
        return NOTHING;
    }
    *bytes_out = record_out->stored_bytes;
    return status == KV_OK ? RECORD : TORN;
}

kv_scan_outcome_t kv_scan_next(kv_scan_t *scan, kv_entry_t *entry_out)
{
    uint64_t end = scan->store->disk->segments.segment_bytes;
    for (int pages = 0; scan->file >= 0 && scan->offset + KV_PAGE_BYTES <= end; pages++) {
        if (pages == PAUSE_AFTER_PAGES) {
            return KV_SCAN_PAUSE;
        }
        kv_record_t record;
        uint64_t bytes, offset = scan->offset;
        kind_t kind = read_place(scan, &record, &bytes);
        scan->offset += bytes;
        scan->step_bytes = bytes;
        if (kind != NOTHING) {
            scan->known_to = scan->offset;
        }
        if (kind == RECORD || kind == TORN) {
            *entry_out = (kv_entry_t){record, (uint16_t)scan->segment, offset, false};
            return kind == RECORD ? KV_SCAN_RECORD : KV_SCAN_TORN;
        }
    }
    close_file(scan);
    return KV_SCAN_END;
}
