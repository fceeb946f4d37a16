/* The further disks of a disk tier: folders of segments beside the directory's own.
 *
 *   disk            "kvist-disk 1", whose it is and which one
 *   segment-NNNNN   records
 *
 * Rules:
 *  1. A folder says which disk of which store it is; one that says another is refused. The
 *     directory's format says how many there ever were: of those, one that says nothing is missing
 *     (its file system is not mounted, the disk is broken). An empty file `disk` begins it anew.
 *  2. The store's id is durable in the format before a folder says it; the count after that.
 *  3. While a disk is missing its numbers stay its own, entries and notes of its segments stay in
 *     the index, the records of what goes on from its blocks stay unmarked, and the index is not
 *     complete: the opening that finds all disks again reads all records. */
#include "kvstore/store_internal.h"

#include "base/checksum.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { FILE_BYTES = 64 + KV_STORE_ID_BYTES, PATH_BYTES = KV_FOLDER_BYTES + 16 };
_Static_assert((int)KVIST_DISKS_MAX == (int)KV_VOLUMES_MAX - 1, "each has its numbers");

/* ---- bounds ---- */

static kv_status_t check_one(
    const kvist_store_params_t *params, uint32_t i, uint64_t segment_bytes, kv_error_t *error)
{
    const kvist_disk_params_t *disk = &params->disks[i];
    if (disk->folder == NULL || disk->folder[0] == '\0' ||
        strlen(disk->folder) >= KV_FOLDER_BYTES) {
        return kv_fail(
            error, KV_INVALID, "disks[%u].folder must have 1 to %d bytes", i, KV_FOLDER_BYTES - 1);
    }
    if (disk->bytes < 2 * segment_bytes || disk->bytes / segment_bytes > KV_VOLUME_SEGMENTS_MAX) {
        return kv_fail(error, KV_INVALID,
            "disks[%u].bytes is %ju: it must be %ju (2 segments) to %ju (%d segments)", i,
            (uintmax_t)disk->bytes, (uintmax_t)(2 * segment_bytes),
            (uintmax_t)(segment_bytes * KV_VOLUME_SEGMENTS_MAX), KV_VOLUME_SEGMENTS_MAX);
    }
    return KV_OK;
}

kv_status_t kv_disks_check(
    const kvist_store_params_t *params, uint64_t segment_bytes, kv_error_t *error)
{
    if (params->disk_count > KVIST_DISKS_MAX) {
        return kv_fail(error, KV_INVALID, "disk_count is %u: it must be at most %d",
            params->disk_count, KVIST_DISKS_MAX);
    }
    uint32_t first_max = (KV_VOLUMES_MAX - params->disk_count) * KV_VOLUME_SEGMENTS_MAX;
    if (params->disk_count > 0 && params->disk_bytes / segment_bytes > first_max) {
        return kv_fail(error, KV_INVALID,
            "disk_bytes is %ju: with %u further disks it must be at most %ju (%u segments)",
            (uintmax_t)params->disk_bytes, params->disk_count,
            (uintmax_t)(segment_bytes * first_max), first_max);
    }
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; i < params->disk_count && status == KV_OK; i++) {
        status = check_one(params, i, segment_bytes, error);
    }
    return status;
}

/* ---- which one a folder is ---- */

typedef enum { DISK_THERE, DISK_NEW, DISK_MISSING } found_t;

static kv_status_t read_identity(
    const kv_disk_t *disk, uint32_t number, const char *folder, const char *text, kv_error_t *error)
{
    unsigned version = 0, stored_number = 0;
    char id[KV_STORE_ID_BYTES] = "";
    int fields =
        sscanf(text, "kvist-disk %u\nstore %32[0-9a-f]\ndisk %u\n", &version, id, &stored_number);
    if (fields != 3 || version != 1) {
        return kv_fail(error, KV_REFUSED,
            "%s/disk does not say whose the folder is: it is damaged, or of another program",
            folder);
    }
    if (strcmp(id, disk->id) != 0) {
        return kv_fail(error, KV_REFUSED,
            "the folder %s is a disk of another store (%s), not of the one in %s (%s)", folder, id,
            disk->folder, disk->id[0] != '\0' ? disk->id : "which never had several");
    }
    if (stored_number != number) {
        return kv_fail(error, KV_REFUSED,
            "the folder %s is disk %u of this store and is given as disk %u: keep their order",
            folder, stored_number, number);
    }
    return KV_OK;
}

static kv_status_t lock_folder(
    const kv_disk_t *disk, int file, const char *folder, kv_error_t *error)
{
    int locked = disk->files->ops->lock(disk->files, file);
    if (locked == -EWOULDBLOCK) {
        return kv_fail(error, KV_BUSY, "the folder %s is in use by another process", folder);
    }
    return locked == 0 ? KV_OK
                       : kv_fail_errno(error, -locked, "cannot lock the file disk in %s", folder);
}

/* Opens the file by which the folder is known, and locks it if it says so. */
static kv_status_t identify(
    kv_disk_t *disk, uint32_t number, const char *folder, found_t *found_out, kv_error_t *error)
{
    char path[PATH_BYTES], text[FILE_BYTES] = {0};
    kv_files_t *files = disk->files;
    snprintf(path, sizeof path, "%s/disk", folder);
    int fd = files->ops->open(files, path, KV_FILES_WRITE);
    int64_t got = fd;
    if (fd >= 0) {
        disk->disk_files[number] = fd;
        got = files->ops->read(files, fd, text, sizeof text - 1, 0);
    }
    bool known = number < disk->known_count, gone = got == -ENOENT || got == -ENOTDIR;
    if (got < 0 && known && (gone || got == -EIO)) {
        *found_out = DISK_MISSING;
        return KV_OK;
    }
    if (got < 0 && !gone) {
        return kv_fail_errno(error, (int)-got, "cannot open %s", path);
    }
    bool says = got > 0 && text[0] != '\0'; /* else it was being made, or is to be */
    *found_out = says ? DISK_THERE : DISK_NEW;
    kv_status_t status = says ? read_identity(disk, number, folder, text, error) : KV_OK;
    return status == KV_OK && says ? lock_folder(disk, fd, folder, error) : status;
}

/* ---- a new one ---- */

static void note_others(void *context, const char *name)
{
    bool *others = context;
    *others = *others || strcmp(name, "format") == 0 || strncmp(name, "segment-", 8) == 0;
}

static kv_status_t make_id(kvist_store_t *store, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    if (disk->id[0] != '\0') {
        return KV_OK;
    }
    uint64_t place = kv_checksum(disk->folder, strlen(disk->folder)) ^ (uint64_t)getpid();
    snprintf(disk->id, sizeof disk->id, "%016jx%016jx",
        (uintmax_t)store->clock->unix_ns(store->clock), (uintmax_t)place);
    kv_status_t status = kv_directory_write_format(disk, disk->segments.segment_bytes, error);
    int synced =
        disk->files->ops->sync_folder(disk->files, disk->folder); /* the file's name, too */
    return status == KV_OK && synced < 0
               ? kv_fail_errno(error, -synced, "cannot sync the folder %s", disk->folder)
               : status;
}

static kv_status_t write_identity(
    kv_disk_t *disk, uint32_t number, const char *folder, kv_error_t *error)
{
    char path[PATH_BYTES], text[FILE_BYTES];
    kv_files_t *files = disk->files;
    snprintf(path, sizeof path, "%s/disk", folder);
    int length = snprintf(text, sizeof text, "kvist-disk 1\nstore %s\ndisk %u\n", disk->id, number);
    if (disk->disk_files[number] < 0) {
        disk->disk_files[number] = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    }
    int fd = disk->disk_files[number];
    int64_t result = fd < 0 ? fd : files->ops->write(files, fd, text, (size_t)length, 0);
    if (result >= 0) {
        result = files->ops->sync(files, fd);
    }
    if (result >= 0) {
        result = files->ops->sync_folder(files, folder);
    }
    return result >= 0 ? lock_folder(disk, fd, folder, error)
                       : kv_fail_errno(error, (int)-result, "cannot write %s", path);
}

static kv_status_t begin_disk(
    kvist_store_t *store, uint32_t number, const char *folder, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    bool others = false;
    kv_status_t status = kv_directory_make(disk->files, folder, error);
    if (status != KV_OK) {
        return status;
    }
    int listed = disk->files->ops->list(disk->files, folder, note_others, &others);
    if (listed < 0) {
        return kv_fail_errno(error, -listed, "cannot read the folder %s", folder);
    }
    if (others) {
        return kv_fail(error, KV_REFUSED,
            "the folder %s holds a store, or segments of one: a new disk begins in an empty folder",
            folder);
    }
    status = make_id(store, error);
    return status == KV_OK ? write_identity(disk, number, folder, error) : status;
}

/* ---- all of them ---- */

static void note_missing(kv_disk_t *disk, uint32_t number, const char *folder)
{
    disk->missing |= 1u << number;
    kv_log_warn("store",
        "disk %u of the store in %s is missing (%s): its blocks, and those that go on from them, "
        "are not found until a start that finds it",
        number, disk->folder, folder);
}

static kv_status_t open_disk(
    kvist_store_t *store, uint32_t number, const kvist_disk_params_t *params, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    found_t found = DISK_MISSING;
    kv_status_t status = identify(disk, number, params->folder, &found, error);
    if (status == KV_OK && found == DISK_NEW) {
        status = begin_disk(store, number, params->folder, error);
    }
    if (status != KV_OK) {
        return status;
    }
    if (found == DISK_MISSING) {
        note_missing(disk, number, params->folder);
        kv_segments_add_missing(&disk->segments, params->folder);
        disk->lanes[number].offline = true;
        return KV_OK;
    }
    return kv_segments_add_volume(&disk->segments, params->folder,
        (uint32_t)(params->bytes / disk->segments.segment_bytes), error);
}

kv_status_t kv_disks_open(
    kvist_store_t *store, const kvist_store_params_t *params, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    kv_status_t status = KV_OK;
    uint32_t count = params->disk_count + 1;
    for (uint32_t number = 1; number < count && status == KV_OK; number++) {
        status = open_disk(store, number, &params->disks[number - 1], error);
    }
    for (uint32_t number = count; number < disk->known_count && status == KV_OK; number++) {
        note_missing(disk, number, "no folder is given");
    }
    if (status == KV_OK && count > disk->known_count) {
        disk->known_count = count;
        status = kv_directory_write_format(disk, disk->segments.segment_bytes, error);
    }
    disk->segments.known_count = disk->known_count;
    return status;
}

void kv_disks_close(kv_disk_t *disk)
{
    for (uint32_t i = 0; i < KV_VOLUMES_MAX; i++) {
        if (disk->disk_files[i] >= 0) {
            disk->files->ops->close(disk->files, disk->disk_files[i]);
        }
    }
}

bool kv_disks_away(const kv_disk_t *disk, uint32_t segment)
{
    const kv_segments_t *segments = &disk->segments;
    bool there = segment < segments->count && segments->items[segment].state != KV_SEGMENT_ABSENT;
    return !there && (disk->missing & 1u << kv_segments_owner(segments, segment)) != 0;
}
