/* The disk tier's directory: its lock, its format, and reading in what is there.
 *
 *   lock            who has the directory (the process id, for people)
 *   format          "kvist-store 2", and what cannot change once records are there
 *   keys            by which the keys of encrypted records are known (crypt/keyring.h)
 *   index/          RocksDB
 *   segment-NNNNN   records
 *
 * Opening: lock, format, segment headers, what the index says of the segments; then forward from
 * where it knows the two youngest to their ends: what was written before a crash and had not
 * reached the index. The store is then open; its table fills in the
 * background (fill.h), from the index or, where that is damaged or lacks its mark of completeness,
 * from all records. */
#include "kvstore/index/fill.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"
#include "kvstore/disk/budget.h"
#include "kvstore/index/entry.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    FORMAT_ONE_DISK = 2,
    FORMAT_DISKS = 3,
    FORMAT_ENCRYPTED = 4, /* with one disk or several */
    FORMAT_EXTRAS = 5,    /* encrypted or not */
    FORMAT_NEWEST = FORMAT_EXTRAS,
    FORMAT_MIN = 1,
    FORMAT_BYTES_MAX = 256,
};
enum {
    INDEX_JOBS_MAX = 1 + KV_FILL_TASKS_MAX,
    SCAN_KNOWN_COUNT = 2,
    BUDGET_RECORDS_MIN = 8, /* a quarter of them is kept for what is asked for again */
    INDEX_ROOM_BYTES = 4 << 20,
    FILL_BYTE = 0xa5, /* no record starts with it; disks may leave out zeros */
};
#define SEGMENT_BYTES_DEFAULT ((uint64_t)64 << 20)
#define SEGMENT_BYTES_MAX ((uint64_t)4 << 30)
#define BUDGET_BYTES_MAX ((uint64_t)1 << 50)
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

kv_status_t kv_directory_write_format(
    const kv_disk_t *disk, uint64_t segment_bytes, kv_error_t *error)
{
    kv_files_t *files = disk->files;
    char path[KV_FOLDER_BYTES + 16], text[FORMAT_BYTES_MAX];
    snprintf(path, sizeof path, "%s/format", disk->folder);
    bool disks = disk->id[0] != '\0';
    int length = snprintf(text, sizeof text, "kvist-store %d\nsegment_bytes %ju\n",
        disk->has_extras     ? FORMAT_EXTRAS
        : disk->keys != NULL ? FORMAT_ENCRYPTED
        : disks              ? FORMAT_DISKS
                             : FORMAT_ONE_DISK,
        (uintmax_t)segment_bytes);
    if (disks) {
        length += snprintf(text + length, sizeof text - (size_t)length, "id %s\ndisks %u\n",
            disk->id, disk->known_count);
    }
    int fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    if (fd < 0) {
        return kv_fail_errno(error, -fd, "cannot make %s", path);
    }
    /* In place: what changes keeps its length, or is added, and all is in one sector. */
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
    unsigned version = 0, known_count = 0;
    uintmax_t stored_bytes = 0;
    char id[KV_STORE_ID_BYTES];
    int fields = sscanf(text, "kvist-store %u\nsegment_bytes %ju\nid %32[0-9a-f]\ndisks %u\n",
        &version, &stored_bytes, id, &known_count);
    if (fields >= 1 && version > FORMAT_NEWEST && version < 1000) {
        return kv_fail(error, KV_REFUSED,
            "%s has format %u, this program reads %d to %d: use another directory or the program "
            "that wrote it",
            disk->folder, version, FORMAT_MIN, FORMAT_NEWEST);
    }
    if (fields == 4 && strlen(id) == sizeof id - 1 && known_count >= 1 &&
        known_count <= KV_VOLUMES_MAX) {
        memcpy(disk->id, id, sizeof id);
        disk->known_count = known_count;
    }
    disk->format = version;
    disk->has_extras = version == FORMAT_EXTRAS;
    bool usable = fields >= 2 && version >= FORMAT_MIN && stored_bytes % KV_PAGE_BYTES == 0 &&
                  stored_bytes > 0 && stored_bytes <= SEGMENT_BYTES_MAX;
    if (usable) {
        if (stored_bytes != *segment_bytes) {
            kv_log_info("store", "keeping the directory's segment_bytes %ju", stored_bytes);
        }
        *segment_bytes = stored_bytes;
        if (version >= FORMAT_ONE_DISK) {
            return KV_OK;
        }
        kv_log_info("store", "%s: from now on in format %d", disk->folder, FORMAT_ONE_DISK);
        return kv_directory_write_format(disk, *segment_bytes, error);
    }
    if (text[0] != '\0') {
        kv_log_warn("store", "%s is damaged: written anew", path);
    }
    return kv_directory_write_format(disk, *segment_bytes, error);
}

/* A program that cannot read encrypted records must not take them for damaged ones: the format says
 * so before the first is written. */
static kv_status_t open_keys(
    kv_disk_t *disk, const char *key_file, uint64_t segment_bytes, kv_error_t *error)
{
    kv_status_t status = kv_keyring_open(disk->files, key_file, disk->folder, &disk->keys, error);
    return status == KV_OK && disk->keys != NULL && disk->format < FORMAT_ENCRYPTED
               ? kv_directory_write_format(disk, segment_bytes, error)
               : status;
}

/* Likewise of records with an extra key. On a worker, when the first is to be written. */
kv_status_t kv_directory_note_extras(kv_disk_t *disk, kv_error_t *error)
{
    pthread_mutex_lock(&disk->noting_extras);
    kv_status_t status = KV_OK;
    if (!disk->has_extras) {
        disk->has_extras = true;
        status = kv_directory_write_format(disk, disk->segments.segment_bytes, error);
        disk->has_extras = status == KV_OK;
    }
    pthread_mutex_unlock(&disk->noting_extras);
    return status;
}

/* ---- bounds ---- */

static kv_status_t check_budget(
    const kvist_store_t *store, uint64_t bytes_per_day, kv_error_t *error)
{
    uint64_t least_bytes = BUDGET_RECORDS_MIN * store->record_bytes_max;
    if (bytes_per_day != 0 && (bytes_per_day < least_bytes || bytes_per_day > BUDGET_BYTES_MAX)) {
        return kv_fail(error, KV_INVALID,
            "write_bytes_per_day is %ju: it must be 0 (no bound), or %ju (%d records of this "
            "model) to %ju",
            (uintmax_t)bytes_per_day, (uintmax_t)least_bytes, BUDGET_RECORDS_MIN,
            (uintmax_t)BUDGET_BYTES_MAX);
    }
    return KV_OK;
}

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

/* ---- what the index says of the directory itself ---- */

typedef struct {
    kvist_store_t *store;
    bool complete; /* the index has its mark */
} marks_t;

static void visit_segment(kvist_store_t *store, const kv_segment_entry_t *entry)
{
    kv_segments_t *segments = &store->disk->segments;
    if (entry->generation > segments->generation_last) {
        segments->generation_last = entry->generation; /* its header may be lost */
    }
    if (entry->number < segments->count) {
        kv_segment_t *segment = &segments->items[entry->number];
        if (segment->state == KV_SEGMENT_FULL && segment->generation == entry->generation &&
            entry->indexed_bytes <= segments->segment_bytes) {
            segment->indexed_bytes = entry->indexed_bytes;
        }
    }
}

static void visit_mark(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
    marks_t *marks = context;
    kv_segment_entry_t segment;
    kv_note_entry_t note;
    kv_budget_entry_t budget;
    if (kv_segment_entry_read(key, key_bytes, value, value_bytes, &segment)) {
        visit_segment(marks->store, &segment);
    } else if (kv_complete_entry_is(key, key_bytes)) {
        marks->complete = true;
    } else if (kv_budget_entry_read(key, key_bytes, value, value_bytes, &budget)) {
        kv_budget_restore(marks->store, &budget);
    } else if (kv_note_entry_read(key, key_bytes, value, value_bytes, &note) &&
               !kv_mark_restore(marks->store, &note) &&
               !kv_disks_away(marks->store->disk, note.segment)) {
        kv_index_batch_delete(&marks->store->disk->filling, key, key_bytes);
    }
}

/* *rebuild_out: the index does not know, or cannot say, what there is. */
static kv_status_t read_marks(kvist_store_t *store, bool *rebuild_out, kv_error_t *error)
{
    marks_t marks = {.store = store};
    kv_disk_t *disk = store->disk;
    kv_status_t status = KV_OK;
    for (const char *first = "smx"; *first != '\0' && status == KV_OK; first++) {
        status = kv_index_read_all(disk->index, (uint8_t)*first, visit_mark, &marks, error);
    }
    if (status == KV_CORRUPT) {
        kv_log_warn("store", "%s: made anew from the records", error->text);
        marks.complete = false;
        status = KV_OK;
    }
    *rebuild_out = *rebuild_out || !marks.complete;
    for (uint32_t i = 0; *rebuild_out && i < disk->segments.count; i++) {
        disk->segments.items[i].indexed_bytes = 0; /* such an index' marks prove nothing */
    }
    return status;
}

/* ---- the records that the index does not know ---- */

/* From where the index knows the segment. How many records there are. */
static uint64_t scan_segment(kvist_store_t *store, kv_scan_t *scan, uint32_t number)
{
    const kv_segment_t *segment = &store->disk->segments.items[number];
    uint64_t from = segment->indexed_bytes > 0 ? segment->indexed_bytes : KV_SEGMENT_HEADER_BYTES;
    kv_scan_begin(scan, number, segment->generation, from, true);
    kv_entry_t entry;
    uint64_t count = 0;
    kv_scan_outcome_t outcome;
    while ((outcome = kv_scan_next(scan, &entry)) != KV_SCAN_END) {
        if (outcome == KV_SCAN_RECORD) {
            kv_fill_take_record(store, &entry);
            count++;
        } else if (outcome == KV_SCAN_TORN) {
            kv_fill_mark_torn(store, &entry);
        }
    }
    kv_fill_end_scan(store, scan);
    return count;
}

/* Segments of the volume with a life, youngest first. Released with free(). */
static uint32_t *list_lives(const kv_segments_t *segments, uint32_t volume, uint32_t *count_out)
{
    uint32_t *numbers = kv_allocate_array(segments->count + 1, sizeof *numbers), count = 0;
    for (uint32_t at = segments->volumes[volume]->first_full; at != KV_SEGMENT_NONE;
         at = segments->items[at].next) {
        numbers[count++] = at;
    }
    for (uint32_t i = 0; i < count / 2; i++) {
        uint32_t other = numbers[count - 1 - i];
        numbers[count - 1 - i] = numbers[i];
        numbers[i] = other;
    }
    *count_out = count;
    return numbers;
}

static bool is_empty(const kv_segment_t *segment)
{
    return segment->append_bytes == KV_SEGMENT_HEADER_BYTES;
}

/* The youngest life goes on where its records end. Those after it, without any, were made ready. */
static void resume_volume(
    kv_segments_t *segments, uint32_t volume, const uint32_t *youngest_first, uint32_t count)
{
    kv_volume_t *at = segments->volumes[volume];
    for (uint32_t i = 0; i < count && at->open == KV_SEGMENT_NONE; i++) {
        uint32_t number = youngest_first[i];
        kv_segment_t *segment = &segments->items[number];
        kv_segments_leave_full(segments, number);
        if (!is_empty(segment)) {
            segment->state = KV_SEGMENT_OPEN;
            at->open = number;
        } else if (at->ready == KV_SEGMENT_NONE) {
            segment->state = KV_SEGMENT_READY;
            at->ready = number;
        } else {
            kv_segments_add_spare(segments, number);
        }
    }
}

/* What the index lacks is the end of what was written: back from the youngest segment to two that
 * it knows all of; of an index to be made anew the others come later. The youngest is then open
 * again, if all could be read. */
static uint64_t scan_tail(kvist_store_t *store, kv_scan_t *scan, uint32_t volume, bool rebuild)
{
    kv_segments_t *segments = &store->disk->segments;
    uint32_t count, known = 0;
    uint64_t found = 0;
    uint32_t *youngest_first = list_lives(segments, volume, &count);
    for (uint32_t i = 0; i < count && known < SCAN_KNOWN_COUNT; i++) {
        const kv_segment_t *segment = &segments->items[youngest_first[i]];
        bool marked = segment->indexed_bytes > 0;
        uint64_t here = scan_segment(store, scan, youngest_first[i]);
        known += !is_empty(segment) && (rebuild || (marked && here == 0));
        found += here;
    }
    if (!kv_fill_unread(store)) {
        resume_volume(segments, volume, youngest_first, count);
    }
    free(youngest_first);
    return found;
}

static kv_status_t scan_tails(kvist_store_t *store, bool rebuild, kv_error_t *error)
{
    kv_scan_t scan;
    kv_status_t status = kv_scan_init(store, &scan, error);
    if (status != KV_OK) {
        return status;
    }
    uint64_t found = 0;
    for (uint32_t i = 0; i < store->disk->segments.volume_count; i++) {
        found += scan_tail(store, &scan, i, rebuild);
    }
    kv_scan_release(&scan);
    if (found > 0 && !rebuild) {
        kv_log_info("store", "found %ju records that the index did not know", (uintmax_t)found);
    }
    return KV_OK;
}

/* ---- open and close ---- */

/* RocksDB may stop the process where it cannot write what it must when it opens. */
static kv_status_t check_index_room(const kv_disk_t *disk, kv_error_t *error)
{
    uint64_t total_bytes, free_bytes;
    if (disk->files->ops->space(disk->files, disk->lock_fd, &total_bytes, &free_bytes) != 0) {
        return KV_OK; /* the opening itself will tell */
    }
    uint64_t needed = total_bytes / 16 < INDEX_ROOM_BYTES ? total_bytes / 16 : INDEX_ROOM_BYTES;
    if (free_bytes >= needed) {
        return KV_OK;
    }
    return kv_fail(error, KV_NO_SPACE,
        "%s has %ju bytes free: opening the index needs %ju; make room there", disk->folder,
        (uintmax_t)free_bytes, (uintmax_t)needed);
}

static kv_status_t open_index(
    kv_disk_t *disk, const kv_store_seams_t *seams, bool *rebuild_out, kv_error_t *error)
{
    if (seams != NULL && seams->index != NULL) {
        disk->index = seams->index;
        *rebuild_out = false;
        return KV_OK;
    }
    if (seams != NULL && seams->memory_index != NULL) {
        disk->index = kv_index_memory_open(seams->memory_index, rebuild_out);
        return KV_OK;
    }
    char path[KV_FOLDER_BYTES + 16], aside[KV_FOLDER_BYTES + 32];
    snprintf(path, sizeof path, "%s/index", disk->folder);
    snprintf(aside, sizeof aside, "%s/index.damaged", disk->folder);
    kv_status_t status = check_index_room(disk, error);
    if (status == KV_OK) {
        status = kv_index_rocksdb_open(path, 0, &disk->index, rebuild_out, error);
    }
    if (status != KV_CORRUPT) {
        return status;
    }
    kv_log_warn("store", "%s: made anew from the records", error->text);
    kv_index_rocksdb_set_aside(path, aside);
    return kv_index_rocksdb_open(path, 0, &disk->index, rebuild_out, error);
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
    size_t buffers_bytes = KV_STAGING_COUNT * disk->staging_bytes;
    kv_status_t status = kv_region_map(buffers_bytes + KV_FILL_BYTES, &disk->staging_region, error);
    if (status == KV_OK) {
        disk->fill_bytes = (char *)disk->staging_region.base + buffers_bytes;
        memset(disk->fill_bytes, FILL_BYTE, KV_FILL_BYTES);
        kv_pin_staging(store);
    }
    return status;
}

static void open_lanes(kvist_store_t *store)
{
    for (uint32_t i = 0; i < KV_VOLUMES_MAX; i++) {
        store->disk->lanes[i].store = store;
        store->disk->lanes[i].victim.segment = KV_SEGMENT_NONE;
        store->disk->lanes[i].filling = KV_SEGMENT_NONE;
        store->disk->disk_files[i] = -1;
    }
}

static kv_status_t read_directory(
    kvist_store_t *store, const kv_store_seams_t *seams, kv_error_t *error)
{
    bool rebuild;
    kv_status_t status = open_index(store->disk, seams, &rebuild, error);
    if (status == KV_OK) {
        status = read_marks(store, &rebuild, error);
    }
    if (status == KV_OK) {
        kv_fill_open(store, rebuild, seams != NULL ? seams->fill_at_once : 0);
        status = scan_tails(store, rebuild, error);
    }
    if (status == KV_OK && store->disk->missing != 0) {
        kv_complete_entry_delete(&store->disk->filling); /* until all are there again */
        kv_fill_spare(store);
    }
    return status;
}

/* Its name is durable before anything in it is said to be. */
kv_status_t kv_directory_make(kv_files_t *files, const char *path, kv_error_t *error)
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
    if (status == KV_OK) {
        status = kv_disks_check(params, segment_bytes, error);
    }
    if (status == KV_OK) {
        status = check_budget(store, params->write_bytes_per_day, error);
    }
    if (status != KV_OK) {
        return status;
    }
    kv_files_t *files = seams != NULL && seams->files != NULL ? seams->files : kv_files_posix();
    status = kv_directory_make(files, params->directory, error);
    if (status != KV_OK) {
        return status;
    }
    kv_disk_t *disk = kv_allocate(sizeof *disk);
    store->disk = disk;
    disk->files = files;
    disk->lock_fd = -1;
    disk->known_count = 1;
    pthread_mutex_init(&disk->noting_extras, NULL);
    open_lanes(store);
    kv_budget_open(store, params->write_bytes_per_day);
    snprintf(disk->folder, sizeof disk->folder, "%s", params->directory);
    status = lock_directory(disk, error);
    if (status == KV_OK) {
        status = read_format(disk, &segment_bytes, error);
    }
    if (status == KV_OK) {
        status = check_sizes(store, segment_bytes, params->disk_bytes, error);
    }
    if (status == KV_OK) {
        status = kv_disks_check(params, segment_bytes, error); /* the directory's segment_bytes */
    }
    if (status == KV_OK) {
        status = open_keys(disk, params->key_file, segment_bytes, error);
    }
    if (status == KV_OK) {
        kv_segments_init(&disk->segments, files, segment_bytes);
        status = kv_segments_add_volume(
            &disk->segments, disk->folder, (uint32_t)(params->disk_bytes / segment_bytes), error);
    }
    if (status == KV_OK) {
        status = kv_disks_open(store, params, error);
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
    disk->index_writer = kv_workers_create("kv-index", store->threadless ? 0 : 1, INDEX_JOBS_MAX);
    kv_fill_start(store);
    kv_store_kick(store); /* the first poll writes what opening changed in the index */
    return KV_OK;
}

void kv_directory_close(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_workers_destroy(disk->index_writer);
    kv_fill_close(store);
    if (disk->index != NULL) {
        disk->index->ops->close(disk->index);
    }
    for (uint32_t i = 0; i < KV_VOLUMES_MAX; i++) {
        free(disk->lanes[i].victim.objects);
    }
    kv_segments_close(&disk->segments);
    kv_ring_close(disk->ring);
    kv_unpin_staging(store);
    kv_region_unmap(&disk->staging_region);
    kv_index_batch_release(&disk->filling);
    kv_mark_close(store);
    kv_budget_close(store);
    free(disk->queue);
    kv_disks_close(disk);
    kv_keyring_close(disk->keys);
    if (disk->lock_fd >= 0) {
        disk->files->ops->close(disk->files, disk->lock_fd);
    }
    pthread_mutex_destroy(&disk->noting_extras);
    free(disk);
    store->disk = NULL;
}
