/* The disk tier's directory: its lock, its format, and reading in what is there.
 *
 *   lock            who has the directory (the process id, for people)
 *   format          "kvist-store 1", and what cannot change once records are there
 *   index/          RocksDB
 *   segment-NNNNN   records
 *
 * Opening: lock, format, segment headers, index entries into the table (those of another life of
 * their segment are dropped), then forward from where the index knows a segment to the first place
 * without a whole record: what was written before a crash and had not reached the index. What has
 * no parent in the end is dropped. An index that will not open is made anew from the records; until
 * that is done it lacks the mark `m` `c`, and whoever opens it then begins again. */
#include "kvstore/store_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"
#include "kvstore/entry.h"
#include "kvstore/terms.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { DIRECTORY_FORMAT = 2, DIRECTORY_FORMAT_MIN = 1, FORMAT_BYTES_MAX = 256 };
static const uint8_t COMPLETE_MARK[] = {'m', 'c'};
#define SEGMENT_BYTES_DEFAULT ((uint64_t)64 << 20)
#define SEGMENT_BYTES_MAX ((uint64_t)4 << 30)
#define RUN_BYTES ((size_t)2 << 20) /* the largest single read or write */

/* ---- lock and format ---- */

static kv_status_t lock_directory(kv_disk_t *disk, kv_error_t *error)
{
    char path[KV_FOLDER_BYTES + 16], holder[32] = {0};
    snprintf(path, sizeof path, "%s/lock", disk->folder);
    kv_files_t *files = disk->files;
    int fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    if (fd < 0) {
        return kv_fail_errno(error, -fd, "cannot make %s", path);
    }
    disk->lock_fd = fd;
    int locked = files->ops->lock(files, fd);
    if (locked < 0 && locked != -EWOULDBLOCK) {
        return kv_fail_errno(error, -locked, "cannot lock %s", path);
    }
    if (locked < 0) {
        int64_t got = files->ops->read(files, fd, holder, sizeof holder - 1, 0);
        holder[got > 0 ? strcspn(holder, "\n") : 0] = '\0';
        return kv_fail(error, KV_BUSY, "the directory %s is in use by process %s", disk->folder,
            holder[0] != '\0' ? holder : "(unknown)");
    }
    int length = snprintf(holder, sizeof holder, "%ld\n", (long)getpid());
    if (files->ops->truncate(files, fd) < 0 ||
        files->ops->write(files, fd, holder, (size_t)length, 0) != length) {
        kv_log_warn("store", "cannot write the process id to %s", path); /* it is for people */
    }
    return KV_OK;
}

static kv_status_t write_format(
    kv_files_t *files, const char *path, uint64_t segment_bytes, kv_error_t *error)
{
    char text[FORMAT_BYTES_MAX];
    int length = snprintf(text, sizeof text, "kvist-store %d\nsegment_bytes %ju\n",
        DIRECTORY_FORMAT, (uintmax_t)segment_bytes);
    int fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    if (fd < 0) {
        return kv_fail_errno(error, -fd, "cannot make %s", path);
    }
    /* In place, since another version's text has the same length: no crash leaves half of it. */
    int64_t result = files->ops->write(files, fd, text, (size_t)length, 0);
    if (result >= 0) {
        result = files->ops->sync(files, fd);
    }
    files->ops->close(files, fd);
    return result >= 0 ? KV_OK : kv_fail_errno(error, (int)-result, "cannot write %s", path);
}

/* The file's text, "" where there is none yet. */
static kv_status_t load_format(
    kv_files_t *files, const char *path, char text_out[FORMAT_BYTES_MAX], kv_error_t *error)
{
    text_out[0] = '\0';
    int fd = files->ops->open(files, path, KV_FILES_READ);
    if (fd == -ENOENT) {
        return KV_OK;
    }
    int64_t got = fd < 0 ? fd : files->ops->read(files, fd, text_out, FORMAT_BYTES_MAX - 1, 0);
    if (fd >= 0) {
        files->ops->close(files, fd);
    }
    if (got < 0) {
        return kv_fail_errno(error, (int)-got, "cannot read %s", path);
    }
    text_out[got] = '\0';
    return KV_OK;
}

/* The version before this one is read, and its successor written from now on: the file says so
 * first. A newer one is refused. A file that says nothing is written anew: each segment's header
 * holds its size too, and those that disagree are not used. */
static kv_status_t read_format(kv_disk_t *disk, uint64_t *segment_bytes, kv_error_t *error)
{
    char path[KV_FOLDER_BYTES + 16];
    snprintf(path, sizeof path, "%s/format", disk->folder);
    char text[FORMAT_BYTES_MAX];
    kv_status_t status = load_format(disk->files, path, text, error);
    if (status != KV_OK) {
        return status;
    }
    unsigned version = 0;
    uintmax_t stored_bytes = 0;
    int fields = sscanf(text, "kvist-store %u\nsegment_bytes %ju\n", &version, &stored_bytes);
    if (fields >= 1 && version > DIRECTORY_FORMAT && version < 1000) {
        return kv_fail(error, KV_REFUSED,
            "%s has format %u, this program reads %d and %d: use another directory or the program "
            "that wrote it",
            disk->folder, version, DIRECTORY_FORMAT_MIN, DIRECTORY_FORMAT);
    }
    bool usable = fields == 2 && version >= DIRECTORY_FORMAT_MIN &&
                  stored_bytes % KV_PAGE_BYTES == 0 && stored_bytes > 0 &&
                  stored_bytes <= SEGMENT_BYTES_MAX;
    if (usable) {
        if (stored_bytes != *segment_bytes) {
            kv_log_info("store", "keeping the directory's segment_bytes %ju", stored_bytes);
        }
        *segment_bytes = stored_bytes;
        if (version == DIRECTORY_FORMAT) {
            return KV_OK;
        }
        kv_log_info("store", "%s: from now on in format %d", disk->folder, DIRECTORY_FORMAT);
        return write_format(disk->files, path, *segment_bytes, error);
    }
    if (text[0] != '\0') {
        kv_log_warn("store", "%s is damaged: written anew", path);
    }
    return write_format(disk->files, path, *segment_bytes, error);
}

/* ---- bounds ---- */

static kv_status_t check_sizes(
    const kvist_store_t *store, uint64_t segment_bytes, uint64_t disk_bytes, kv_error_t *error)
{
    uint64_t segment_min = KV_SEGMENT_HEADER_BYTES + 2 * store->record_bytes_max;
    if (segment_bytes < segment_min || segment_bytes > SEGMENT_BYTES_MAX ||
        segment_bytes % KV_PAGE_BYTES != 0) {
        return kv_fail(error, KV_INVALID,
            "segment_bytes is %ju: it must be a multiple of %d from %ju (two records of this "
            "model) to %ju",
            (uintmax_t)segment_bytes, KV_PAGE_BYTES, (uintmax_t)segment_min,
            (uintmax_t)SEGMENT_BYTES_MAX);
    }
    if (disk_bytes < 2 * segment_bytes || disk_bytes / segment_bytes > KV_SEGMENTS_MAX) {
        return kv_fail(error, KV_INVALID, "disk_bytes is %ju: it must be %ju (2 segments) to %ju",
            (uintmax_t)disk_bytes, (uintmax_t)(2 * segment_bytes),
            (uintmax_t)(segment_bytes * KV_SEGMENTS_MAX));
    }
    return KV_OK;
}

/* ---- index entries into the table ---- */

/* While the table fills, parents are known by key only. */
typedef struct {
    uint32_t object;
    kvist_key_t parent;
} orphan_t;

typedef struct {
    kvist_store_t *store;
    orphan_t *orphans;
    size_t count, capacity;
    uint64_t dropped, scanned;
    bool complete; /* the index has its mark */
    bool unread;   /* a segment could not be read to its end now */
} fill_t;

/* What the object descends from: the previous block, or its own block on the spine. */
static kvist_key_t parent_object_key(const kv_record_t *record)
{
    return record->group > 0 ? kv_identity_group_key(&record->key, record->group) : record->parent;
}

/* Takes an object in from an index entry or a record; of two places the newer wins. true: this one
 * is the object's place now. */
static bool take_in(fill_t *fill, const kv_record_t *record, uint16_t segment, uint64_t offset)
{
    kvist_store_t *store = fill->store;
    int family = kv_family_number(store, record);
    if (family == KV_NAMES_FULL || record->group >= store->group_count) {
        fill->dropped++;
        return false;
    }
    uint32_t number = kv_table_find(store->table, &record->key);
    if (number != KV_OBJECT_NONE) {
        const kv_object_t *known = kv_table_at(store->table, number);
        if (known->segment == segment && known->offset_pages == offset / KV_PAGE_BYTES) {
            return true;
        }
        if (store->disk->segments.items[known->segment].generation > record->generation) {
            kv_mark_queue(store, segment, (uint32_t)(offset / KV_PAGE_BYTES),
                (uint32_t)(record->stored_bytes / KV_PAGE_BYTES), false);
            return false;
        }
        kv_object_leave_disk(store, number); /* the caller puts its entry anew */
    } else {
        number = kv_table_insert(store->table, &record->key, KV_OBJECT_NONE);
        if (number == KV_OBJECT_NONE) {
            fill->dropped++;
            return false;
        }
        store->stats.unsaved_objects++;
        if (fill->count == fill->capacity) {
            fill->capacity = fill->capacity > 0 ? 2 * fill->capacity : 1024;
            fill->orphans = kv_reallocate(fill->orphans, fill->capacity, sizeof(orphan_t));
        }
        fill->orphans[fill->count++] = (orphan_t){number, parent_object_key(record)};
    }
    kv_object_t *object = kv_table_at(store->table, number);
    object->position = record->position;
    object->family = (uint16_t)family;
    object->used_s = (uint32_t)(record->used_unix_ns / KV_NS_PER_S);
    object->expires_s = record->expires_s;
    object->pin_until_s = record->pin_until_s;
    kv_sweep_note(store, record->expires_s, record->pin_until_s);
    kv_object_enter_disk(store, number, segment, (uint32_t)(offset / KV_PAGE_BYTES),
        (uint16_t)(record->stored_bytes / KV_PAGE_BYTES));
    return true;
}

static void visit_segment(fill_t *fill, const kv_segment_entry_t *entry)
{
    kv_segments_t *segments = &fill->store->disk->segments;
    if (entry->generation > segments->generation_last) {
        segments->generation_last = entry->generation; /* its header may be lost */
    }
    if (entry->number < segments->count_max) {
        kv_segment_t *segment = &segments->items[entry->number];
        if (segment->state == KV_SEGMENT_FULL && segment->generation == entry->generation &&
            entry->indexed_bytes <= segments->segment_bytes) {
            segment->indexed_bytes = entry->indexed_bytes;
        }
    }
}

/* Whether the entry points into the present life of a segment. */
static bool place_is_good(const kv_segments_t *segments, const kv_entry_t *entry)
{
    return entry->segment < segments->count_max &&
           segments->items[entry->segment].state == KV_SEGMENT_FULL &&
           segments->items[entry->segment].generation == entry->record.generation &&
           entry->offset >= KV_SEGMENT_HEADER_BYTES &&
           entry->offset + entry->record.stored_bytes <= segments->segment_bytes;
}

static void visit_entry(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
    fill_t *fill = context;
    kv_disk_t *disk = fill->store->disk;
    kv_segment_entry_t segment;
    kv_note_entry_t note;
    kv_terms_entry_t terms;
    kv_entry_t entry;
    if (kv_segment_entry_read(key, key_bytes, value, value_bytes, &segment)) {
        visit_segment(fill, &segment);
    } else if (kv_terms_entry_read(key, key_bytes, value, value_bytes, &terms)) {
        kv_terms_restore(fill->store, &terms);
    } else if (key_bytes == sizeof COMPLETE_MARK && memcmp(key, COMPLETE_MARK, key_bytes) == 0) {
        fill->complete = true;
    } else if (kv_note_entry_read(key, key_bytes, value, value_bytes, &note)) {
        if (!kv_mark_restore(fill->store, &note)) {
            kv_index_batch_delete(&disk->filling, key, key_bytes);
        }
    } else if (!kv_entry_is_object(key, key_bytes)) {
        return;
    } else if (kv_entry_read(key, value, value_bytes, &entry) == KV_OK &&
               place_is_good(&disk->segments, &entry)) {
        take_in(fill, &entry.record, entry.segment, entry.offset);
    } else {
        kv_index_batch_delete(&disk->filling, key, key_bytes);
        fill->dropped++;
    }
}

/* ---- scanning records ---- */

typedef struct {
    int fd;
    char *buffer;                      /* page-aligned */
    size_t buffer_bytes, header_bytes; /* of any group's record, of its header */
    char *scratch;
    uint32_t *tokens;
} scan_t;

/* What stands at a place of a segment. */
typedef enum { SCAN_NOTHING, SCAN_RECORD, SCAN_MARKER, SCAN_TORN } scan_kind_t;

static int64_t scan_read(
    const kvist_store_t *store, const scan_t *scan, uint64_t offset, uint64_t bytes)
{
    kv_files_t *files = store->disk->files;
    uint64_t left = store->disk->segments.segment_bytes - offset;
    return files->ops->read(files, scan->fd, scan->buffer, bytes < left ? bytes : left, offset);
}

/* Whether the whole record is what its header, which is in the buffer, says; a negative errno
 * value: it cannot be read. */
static int64_t scan_whole(
    const kvist_store_t *store, const scan_t *scan, uint64_t offset, const kv_record_t *record)
{
    if (record->group >= store->group_count || record->stored_bytes > scan->buffer_bytes) {
        return 1; /* of another layout: its header was proved */
    }
    const kv_layout_t *layout = &store->groups[record->group].layout;
    if (!kv_record_fits(layout, scan->buffer)) {
        return 1;
    }
    const void *object;
    int64_t got = scan_read(store, scan, offset, record->stored_bytes);
    if (got < 0) {
        return got;
    }
    return got == (int64_t)record->stored_bytes &&
           kv_record_verify(layout, record, scan->buffer, record->stored_bytes, scan->scratch,
               &object, scan->tokens) == KV_OK;
}

/* Reads what stands at the offset, all of it if `whole`. Its length; 0: nothing; a negative errno
 * value: it cannot be read. */
static int64_t scan_place(const kvist_store_t *store, const scan_t *scan, uint64_t offset,
    uint64_t generation, bool whole, kv_record_t *record_out, scan_kind_t *kind_out)
{
    uint64_t left = store->disk->segments.segment_bytes - offset, marker_bytes;
    int64_t got = scan_read(store, scan, offset, scan->header_bytes);
    *kind_out = SCAN_NOTHING;
    if (got < KV_PAGE_BYTES) {
        return got < 0 ? got : 0;
    }
    if (kv_record_read_marker(scan->buffer, generation, &marker_bytes) == KV_OK &&
        marker_bytes <= left) {
        *kind_out = SCAN_MARKER;
        return (int64_t)marker_bytes;
    }
    if (kv_record_read(scan->buffer, (size_t)got, record_out) != KV_OK ||
        record_out->generation != generation || record_out->stored_bytes > left) {
        return 0;
    }
    int64_t good = whole ? scan_whole(store, scan, offset, record_out) : 1;
    if (good < 0) {
        return good;
    }
    *kind_out = good > 0 ? SCAN_RECORD : SCAN_TORN;
    return (int64_t)record_out->stored_bytes;
}

/* What cannot be read now is not lost: nothing is written over it, the next opening reads it. */
static void leave_unread(fill_t *fill, uint32_t number, int errno_value)
{
    kv_log_warn("store", "records cannot be read now, and are not found: %s segment %u",
        strerror(errno_value), number);
    fill->unread = true;
}

/* Takes in the record at a place, or marks what a crash left of one: it must not be taken for one
 * later, when headers alone are read. */
static void scan_take(
    fill_t *fill, const kv_record_t *record, uint32_t number, uint64_t offset, scan_kind_t kind)
{
    kvist_store_t *store = fill->store;
    if (kv_mark_pending(store, number, offset)) {
        return;
    }
    if (kind == SCAN_TORN) {
        kv_mark_queue(store, (uint16_t)number, (uint32_t)(offset / KV_PAGE_BYTES),
            (uint32_t)(record->stored_bytes / KV_PAGE_BYTES), false);
        return;
    }
    if (take_in(fill, record, (uint16_t)number, offset)) {
        kv_entry_put(&store->disk->filling, &(kv_entry_t){*record, (uint16_t)number, offset});
    }
    fill->scanned++;
}

/* What the index does not know of the segment, to its end: a crash may have left records behind one
 * that it lost, and a damaged header costs its own record alone. */
static void scan_segment(fill_t *fill, scan_t *scan, uint32_t number, bool whole)
{
    kvist_store_t *store = fill->store;
    kv_disk_t *disk = store->disk;
    kv_segment_t *segment = &disk->segments.items[number];
    char path[KV_FOLDER_BYTES + 64];
    kv_segment_path(disk->folder, number, path, sizeof path);
    scan->fd = disk->files->ops->open(disk->files, path, KV_FILES_READ);
    if (scan->fd < 0) {
        leave_unread(fill, number, -scan->fd);
        return;
    }
    uint64_t known_to =
        segment->indexed_bytes > 0 ? segment->indexed_bytes : KV_SEGMENT_HEADER_BYTES;
    int reason = 0;
    for (uint64_t offset = known_to; offset + KV_PAGE_BYTES <= disk->segments.segment_bytes;) {
        kv_record_t record;
        scan_kind_t kind;
        int64_t bytes = scan_place(store, scan, offset, segment->generation, whole, &record, &kind);
        reason = bytes < 0 ? (int)-bytes : reason;
        if (kind == SCAN_RECORD || kind == SCAN_TORN) {
            scan_take(fill, &record, number, offset, kind);
        }
        offset += bytes > 0 ? (uint64_t)bytes : KV_PAGE_BYTES;
        known_to = bytes > 0 ? offset : known_to;
    }
    disk->files->ops->close(disk->files, scan->fd);
    uint64_t marked_to = kv_mark_end(store, number);
    known_to = marked_to > known_to ? marked_to : known_to;
    segment->indexed_bytes = known_to;
    kv_persist_put_segment(store, number);
    if (reason != 0) {
        leave_unread(fill, number, reason);
    } else {
        segment->append_bytes = known_to;
    }
}

static uint32_t newest_segment(const kv_segments_t *segments, uint64_t below)
{
    uint32_t newest = KV_SEGMENT_NONE;
    for (uint32_t i = 0; i < segments->count_max; i++) {
        const kv_segment_t *segment = &segments->items[i];
        if (segment->state == KV_SEGMENT_FULL && segment->generation < below &&
            (newest == KV_SEGMENT_NONE ||
                segment->generation > segments->items[newest].generation)) {
            newest = i;
        }
    }
    return newest;
}

/* The records that the index does not know: in the two youngest segments after a crash, in all of
 * them when the index is new. The youngest is then open again, if all could be read. */
static kv_status_t scan_segments(fill_t *fill, bool rebuild, kv_error_t *error)
{
    kvist_store_t *store = fill->store;
    kv_disk_t *disk = store->disk;
    kv_segments_t *segments = &disk->segments;
    kv_region_t region;
    kv_status_t status = kv_region_map(store->record_bytes_max, &region, error);
    if (status != KV_OK) {
        return status;
    }
    scan_t scan = {
        .buffer = region.base,
        .buffer_bytes = store->record_bytes_max,
        .scratch = kv_allocate(store->object_bytes_max),
        .tokens = kv_allocate_array(store->block_tokens, sizeof(uint32_t)),
    };
    for (uint32_t i = 0; i < store->group_count; i++) {
        size_t bytes = kv_record_header_bytes(&store->groups[i].layout);
        scan.header_bytes = bytes > scan.header_bytes ? bytes : scan.header_bytes;
    }
    uint32_t youngest = newest_segment(segments, UINT64_MAX), before = KV_SEGMENT_NONE;
    if (youngest != KV_SEGMENT_NONE) {
        before = newest_segment(segments, segments->items[youngest].generation);
    }
    for (uint32_t i = 0; i < segments->count_max; i++) {
        bool last = i == youngest || i == before;
        if (segments->items[i].state == KV_SEGMENT_FULL && (rebuild || last)) {
            scan_segment(fill, &scan, i, last);
        }
    }
    if (youngest != KV_SEGMENT_NONE && !fill->unread) {
        segments->items[youngest].state = KV_SEGMENT_OPEN;
        disk->open_segment = youngest;
    }
    if (fill->scanned > 0) {
        kv_log_info(
            "store", "found %ju records that the index did not know", (uintmax_t)fill->scanned);
    }
    free(scan.scratch);
    free(scan.tokens);
    kv_region_unmap(&region);
    return KV_OK;
}

/* Links children to parents; what has none, or one at a wrong position, is dropped. */
static void link_chains(fill_t *fill)
{
    kvist_store_t *store = fill->store;
    for (size_t i = 0; i < fill->count; i++) {
        const orphan_t *orphan = &fill->orphans[i];
        kv_object_t *object = kv_table_at(store->table, orphan->object);
        uint32_t parent = kv_table_find(store->table, &orphan->parent);
        uint32_t steps = kv_object_family(store, object)->group > 0 ? 0 : 1;
        if (parent != KV_OBJECT_NONE && parent != orphan->object &&
            kv_table_at(store->table, parent)->position + steps == object->position) {
            kv_table_adopt(store->table, parent, orphan->object);
        }
    }
    store->disk->spare_records = fill->unread;
    for (size_t i = 0; i < fill->count; i++) {
        uint32_t number = fill->orphans[i].object;
        kv_object_t *object = kv_table_at(store->table, number);
        if ((object->flags & KV_OBJECT_USED) != 0 && object->parent == KV_OBJECT_NONE &&
            (object->position > 0 || kv_object_family(store, object)->group > 0)) {
            kv_object_drop(store, number);
            fill->dropped++;
        }
    }
    store->disk->spare_records = false;
    free(fill->orphans);
}

/* ---- open and close ---- */

static kv_status_t open_index(
    kv_disk_t *disk, const kv_store_seams_t *seams, bool *rebuild_out, kv_error_t *error)
{
    if (seams != NULL && seams->memory_index != NULL) {
        disk->index = kv_index_memory_open(seams->memory_index, rebuild_out);
        return KV_OK;
    }
    char path[KV_FOLDER_BYTES + 16], aside[KV_FOLDER_BYTES + 32];
    snprintf(path, sizeof path, "%s/index", disk->folder);
    snprintf(aside, sizeof aside, "%s/index.damaged", disk->folder);
    kv_status_t status = kv_index_rocksdb_open(path, &disk->index, rebuild_out, error);
    if (status != KV_CORRUPT) {
        return status;
    }
    kv_log_warn("store", "%s: made anew from the records", error->text);
    kv_index_rocksdb_set_aside(path, aside);
    return kv_index_rocksdb_open(path, &disk->index, rebuild_out, error);
}

static kv_status_t open_staging(kvist_store_t *store, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    size_t record_bytes = store->record_bytes_max;
    size_t run_bytes = disk->segments.segment_bytes / 8 / KV_PAGE_BYTES * KV_PAGE_BYTES;
    run_bytes = run_bytes < RUN_BYTES ? run_bytes : RUN_BYTES;
    disk->staging_bytes = run_bytes > record_bytes ? run_bytes : record_bytes;
    for (int i = 0; i < KV_STAGING_COUNT; i++) {
        disk->staging_free[disk->staging_free_count++] = i;
    }
    return kv_region_map(KV_STAGING_COUNT * disk->staging_bytes, &disk->staging_region, error);
}

static kv_status_t read_directory(
    kvist_store_t *store, const kv_store_seams_t *seams, kv_error_t *error)
{
    fill_t fill = {.store = store};
    kv_disk_t *disk = store->disk;
    bool rebuild;
    kv_error_t reason;
    kv_status_t status = open_index(disk, seams, &rebuild, &reason);
    if (status == KV_OK) {
        status = disk->index->ops->iterate(disk->index, visit_entry, &fill, &reason);
        if (status == KV_CORRUPT) {
            /* What was read is good; the records tell the rest. */
            kv_log_warn("store", "%s: completed from the records", reason.text);
            fill.complete = false;
            status = KV_OK;
        }
        rebuild = rebuild || !fill.complete;
    }
    for (uint32_t i = 0; rebuild && i < disk->segments.count_max; i++) {
        disk->segments.items[i].indexed_bytes = 0; /* such an index' marks prove nothing */
    }
    if (status == KV_OK) {
        status = scan_segments(&fill, rebuild, &reason);
    }
    if (status != KV_OK) {
        free(fill.orphans);
        return kv_fail(error, status, "%s", reason.text);
    }
    link_chains(&fill);
    if (rebuild && !fill.unread) { /* after the entries: the index keeps the order */
        kv_index_batch_put(&disk->filling, COMPLETE_MARK, sizeof COMPLETE_MARK, NULL, 0);
    }
    if (fill.dropped > 0) {
        kv_log_info("store", "dropped %ju index entries that point nowhere or have no parent",
            (uintmax_t)fill.dropped);
    }
    return KV_OK;
}

/* Its name is durable before anything in it is said to be. */
static kv_status_t make_directory(kv_files_t *files, const char *path, kv_error_t *error)
{
    int made = files->ops->make_folder(files, path);
    if (made == -EEXIST) {
        return KV_OK;
    }
    if (made < 0) {
        return kv_fail_errno(error, -made, "cannot make the directory %s", path);
    }
    char parent[KV_FOLDER_BYTES] = ".";
    const char *slash = strrchr(path, '/');
    if (slash != NULL) {
        snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    }
    int synced = files->ops->sync_folder(files, parent);
    return synced == 0 ? KV_OK : kv_fail_errno(error, -synced, "cannot sync the folder %s", parent);
}

kv_status_t kv_directory_open(kvist_store_t *store, const kvist_store_params_t *params,
    const kv_store_seams_t *seams, kv_error_t *error)
{
    if (strlen(params->directory) >= KV_FOLDER_BYTES) {
        return kv_fail(error, KV_INVALID, "directory is longer than %d bytes", KV_FOLDER_BYTES - 1);
    }
    uint64_t segment_bytes =
        params->segment_bytes != 0 ? params->segment_bytes : SEGMENT_BYTES_DEFAULT;
    kv_status_t status = check_sizes(store, segment_bytes, params->disk_bytes, error);
    if (status != KV_OK) {
        return status;
    }
    kv_files_t *files = seams != NULL && seams->files != NULL ? seams->files : kv_files_posix();
    status = make_directory(files, params->directory, error);
    if (status != KV_OK) {
        return status;
    }
    kv_disk_t *disk = kv_allocate(sizeof *disk);
    store->disk = disk;
    disk->files = files;
    disk->lock_fd = -1;
    disk->open_segment = KV_SEGMENT_NONE;
    snprintf(disk->folder, sizeof disk->folder, "%s", params->directory);
    status = lock_directory(disk, error);
    if (status == KV_OK) {
        status = read_format(disk, &segment_bytes, error);
    }
    if (status == KV_OK) {
        status = check_sizes(store, segment_bytes, params->disk_bytes, error);
    }
    if (status == KV_OK) {
        disk->segments_max = (uint32_t)(params->disk_bytes / segment_bytes);
        status = kv_segments_open(
            &disk->segments, files, disk->folder, segment_bytes, disk->segments_max, error);
    }
    if (status == KV_OK) {
        status = open_staging(store, error);
    }
    if (status == KV_OK) {
        status = kv_ring_open(files, params->io, &disk->staging_region,
            seams != NULL ? &seams->faults : NULL, &disk->ring, error);
        disk->segments.ring = disk->ring;
    }
    if (status == KV_OK) {
        status = read_directory(store, seams, error);
    }
    if (status != KV_OK) {
        kv_directory_close(store);
        return status;
    }
    disk->index_writer = kv_workers_create("kv-index", store->threadless ? 0 : 1, 2);
    kv_store_kick(store); /* the first poll writes what opening changed in the index */
    return KV_OK;
}

void kv_directory_close(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_workers_destroy(disk->index_writer);
    if (disk->index != NULL) {
        disk->index->ops->close(disk->index);
    }
    kv_segments_close(&disk->segments);
    kv_ring_close(disk->ring);
    kv_region_unmap(&disk->staging_region);
    kv_index_batch_release(&disk->filling);
    kv_mark_close(store);
    free(disk->queue);
    if (disk->lock_fd >= 0) {
        disk->files->ops->close(disk->files, disk->lock_fd);
    }
    free(disk);
    store->disk = NULL;
}
