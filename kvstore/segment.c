#include "kvstore/segment.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/log.h"
#include "kvstore/table.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* "KVISTSEG" */
#define SEGMENT_MAGIC 0x474553545349564bull
enum { SEGMENT_VERSION = 1 };
#define INDEX_SHARE_BYTES_MAX ((uint64_t)64 << 20)

/* Offsets in the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_NUMBER = 12,
    AT_GENERATION = 16,
    AT_SEGMENT_BYTES = 24,
    AT_CHECKSUM = KV_SEGMENT_HEADER_BYTES - 8,
};

void kv_segment_path(const char *folder, uint32_t number, char *path_out, size_t path_bytes)
{
    snprintf(path_out, path_bytes, "%s/segment-%05u", folder, number);
}

static void encode_header(
    uint8_t *header, uint32_t number, uint64_t segment_bytes, uint64_t generation)
{
    memset(header, 0, KV_SEGMENT_HEADER_BYTES);
    kv_put_u64(header + AT_MAGIC, SEGMENT_MAGIC);
    kv_put_u32(header + AT_VERSION, SEGMENT_VERSION);
    kv_put_u32(header + AT_NUMBER, number);
    kv_put_u64(header + AT_GENERATION, generation);
    kv_put_u64(header + AT_SEGMENT_BYTES, segment_bytes);
    kv_put_u64(header + AT_CHECKSUM, kv_checksum(header, AT_CHECKSUM));
}

/* The generation of a whole header of this segment, or 0. */
static uint64_t decode_header(const uint8_t *header, uint32_t number, uint64_t segment_bytes)
{
    bool good = kv_get_u64(header + AT_MAGIC) == SEGMENT_MAGIC &&
                kv_get_u32(header + AT_VERSION) == SEGMENT_VERSION &&
                kv_get_u32(header + AT_NUMBER) == number &&
                kv_get_u64(header + AT_SEGMENT_BYTES) == segment_bytes &&
                kv_get_u64(header + AT_CHECKSUM) == kv_checksum(header, AT_CHECKSUM);
    return good ? kv_get_u64(header + AT_GENERATION) : 0;
}

/* Takes up one file of the folder. A header that cannot be read now (as opposed to a damaged one)
 * fails the opening: forgetting a whole segment for want of a descriptor would be a loss. */
static kv_status_t read_segment(kv_segments_t *segments, uint32_t number, kv_error_t *error)
{
    char path[KV_FOLDER_BYTES + 64];
    uint8_t header[KV_SEGMENT_HEADER_BYTES] = {0};
    struct stat status;
    kv_segment_path(segments->folder, number, path, sizeof path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return kv_fail_errno(error, errno, "cannot open %s", path);
    }
    ssize_t got = pread(fd, header, sizeof header, 0);
    int reason = errno;
    bool whole = fstat(fd, &status) == 0 && (uint64_t)status.st_size == segments->segment_bytes;
    close(fd);
    if (got < 0) {
        return kv_fail_errno(error, reason, "cannot read %s", path);
    }
    kv_segment_t *segment = &segments->items[number];
    uint64_t generation = decode_header(header, number, segments->segment_bytes);
    if (!whole || generation == 0) {
        kv_log_warn("store", "segment header damaged: its records are forgotten file %s", path);
        return KV_OK;
    }
    segment->generation = generation;
    segment->state = KV_SEGMENT_FULL;
    segment->append_bytes = segments->segment_bytes;
    segments->present_count++;
    if (generation > segments->generation_last) {
        segments->generation_last = generation;
    }
    return KV_OK;
}

kv_status_t kv_segments_open(kv_segments_t *segments, const char *folder, uint64_t segment_bytes,
    uint32_t count_max, kv_error_t *error)
{
    *segments = (kv_segments_t){.segment_bytes = segment_bytes, .count_max = count_max};
    snprintf(segments->folder, sizeof segments->folder, "%s", folder);
    DIR *directory = opendir(folder);
    if (directory == NULL) {
        return kv_fail_errno(error, errno, "cannot read the folder %s", folder);
    }
    segments->items = kv_allocate_array(count_max, sizeof *segments->items);
    for (uint32_t i = 0; i < count_max; i++) {
        segments->items[i].fd = segments->items[i].file = -1;
        segments->items[i].first_object = KV_OBJECT_NONE;
    }
    kv_status_t status = KV_OK;
    struct dirent *entry;
    while (status == KV_OK && (entry = readdir(directory)) != NULL) {
        uint32_t number;
        char rest;
        if (sscanf(entry->d_name, "segment-%5u%c", &number, &rest) != 1) {
            continue;
        }
        if (number < count_max) {
            status = read_segment(segments, number, error);
        } else {
            char path[KV_FOLDER_BYTES + 64];
            kv_segment_path(folder, number, path, sizeof path);
            kv_log_info("store", "quota is smaller than before: removing file %s", path);
            unlink(path);
        }
    }
    closedir(directory);
    if (status != KV_OK) {
        free(segments->items);
        segments->items = NULL;
    }
    return status;
}

static void close_file(kv_segments_t *segments, kv_segment_t *segment)
{
    if (segment->file >= 0) {
        kv_ring_remove_file(segments->ring, segment->file);
    }
    if (segment->fd >= 0) {
        close(segment->fd);
    }
    segment->fd = segment->file = -1;
}

void kv_segments_close(kv_segments_t *segments)
{
    for (uint32_t i = 0; segments->items != NULL && i < segments->count_max; i++) {
        close_file(segments, &segments->items[i]);
    }
    free(segments->items);
    segments->items = NULL;
}

/* Closes the file that was used longest ago and is not in use; false when all are. */
static bool close_one(kv_segments_t *segments)
{
    kv_segment_t *oldest = NULL;
    for (uint32_t i = 0; i < segments->count_max; i++) {
        kv_segment_t *segment = &segments->items[i];
        if (segment->file >= 0 && segment->in_use == 0 &&
            (oldest == NULL || segment->opened < oldest->opened)) {
            oldest = segment;
        }
    }
    if (oldest != NULL) {
        close_file(segments, oldest);
    }
    return oldest != NULL;
}

static int open_file(kv_segments_t *segments, const char *path)
{
    int flags = O_RDWR | O_CLOEXEC;
    int fd = segments->buffered ? -1 : open(path, flags | O_DIRECT);
    if (fd < 0 && (segments->buffered || errno == EINVAL)) {
        if (!segments->buffered) {
            kv_log_info("store", "the file system takes no O_DIRECT: using its page cache");
            segments->buffered = true;
        }
        fd = open(path, flags);
    }
    return fd;
}

kv_status_t kv_segments_file(
    kv_segments_t *segments, uint32_t number, int *file_out, kv_error_t *error)
{
    kv_segment_t *segment = &segments->items[number];
    if (segment->file < 0) {
        char path[KV_FOLDER_BYTES + 64];
        kv_segment_path(segments->folder, number, path, sizeof path);
        segment->fd = open_file(segments, path);
        if (segment->fd < 0 && (errno == EMFILE || errno == ENFILE) && close_one(segments)) {
            segment->fd = open_file(segments, path);
        }
        if (segment->fd < 0) {
            return kv_fail_errno(error, errno, "cannot open %s", path);
        }
        segment->file = kv_ring_add_file(segments->ring, segment->fd);
        if (segment->file < 0 && close_one(segments)) {
            segment->file = kv_ring_add_file(segments->ring, segment->fd);
        }
        if (segment->file < 0) {
            close_file(segments, segment);
            return kv_fail(error, KV_BUSY, "all %d open segments are in use", KV_RING_FILES_MAX);
        }
    }
    segment->opened = ++segments->opens;
    *file_out = segment->file;
    return KV_OK;
}

uint64_t kv_segments_next_generation(kv_segments_t *segments, uint64_t unix_ns)
{
    /* The clock keeps generations apart even from lives whose header was lost. */
    uint64_t next = segments->generation_last + 1;
    segments->generation_last = unix_ns > next ? unix_ns : next;
    return segments->generation_last;
}

static kv_status_t sync_folder(const char *folder, kv_error_t *error)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        int reason = errno;
        if (fd >= 0) {
            close(fd);
        }
        return kv_fail_errno(error, reason, "cannot sync the folder %s", folder);
    }
    close(fd);
    return KV_OK;
}

/* The index lives on the same file system and must be able to write: its share stays free. */
static bool room_for(int fd, uint64_t bytes)
{
    struct statvfs status;
    if (fstatvfs(fd, &status) != 0) {
        return true; /* the allocation itself will tell */
    }
    uint64_t total = (uint64_t)status.f_blocks * status.f_frsize;
    uint64_t share = total / 8 < INDEX_SHARE_BYTES_MAX ? total / 8 : INDEX_SHARE_BYTES_MAX;
    return (uint64_t)status.f_bavail * status.f_frsize >= bytes + share;
}

static int allocate_file(int fd, uint64_t bytes)
{
    struct stat status;
    bool allocated = fstat(fd, &status) == 0 && (uint64_t)status.st_size == bytes;
    if (!allocated && !room_for(fd, bytes)) {
        return ENOSPC;
    }
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0) {
        return ftruncate(fd, (off_t)bytes) == 0 ? 0 : errno;
    }
    if (errno != EOPNOTSUPP) {
        return errno;
    }
    return ftruncate(fd, (off_t)bytes) == 0 ? 0 : errno;
}

kv_status_t kv_segment_prepare(const char *folder, uint32_t number, uint64_t segment_bytes,
    uint64_t generation, kv_error_t *error)
{
    char path[KV_FOLDER_BYTES + 64];
    uint8_t header[KV_SEGMENT_HEADER_BYTES];
    kv_segment_path(folder, number, path, sizeof path);
    bool existed = access(path, F_OK) == 0;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return kv_fail_errno(error, errno, "cannot make %s", path);
    }
    encode_header(header, number, segment_bytes, generation);
    int reason = allocate_file(fd, segment_bytes);
    if (reason == 0 && pwrite(fd, header, sizeof header, 0) != (ssize_t)sizeof header) {
        reason = errno != 0 ? errno : EIO;
    }
    if (reason == 0 && fdatasync(fd) != 0) {
        reason = errno;
    }
    close(fd);
    if (reason != 0) {
        if (!existed) {
            unlink(path); /* gives back what it took of a full disk */
        }
        return kv_fail_errno(error, reason, "cannot prepare %s", path);
    }
    return sync_folder(folder, error);
}
