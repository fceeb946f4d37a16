#include "kvstore/segment.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/log.h"
#include "kvstore/table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

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
    kv_files_t *files = segments->files;
    kv_segment_path(segments->folder, number, path, sizeof path);
    int fd = files->ops->open(files, path, KV_FILES_READ);
    if (fd < 0) {
        return kv_fail_errno(error, -fd, "cannot open %s", path);
    }
    int64_t got = files->ops->read(files, fd, header, sizeof header, 0);
    int64_t size = got < 0 ? got : files->ops->size(files, fd);
    files->ops->close(files, fd);
    if (size < 0) {
        return kv_fail_errno(error, (int)-size, "cannot read %s", path);
    }
    kv_segment_t *segment = &segments->items[number];
    uint64_t generation = decode_header(header, number, segments->segment_bytes);
    if ((uint64_t)size != segments->segment_bytes || generation == 0) {
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

typedef struct {
    kv_segments_t *segments;
    bool removed;
    kv_status_t status;
    kv_error_t *error;
} taking_up_t;

static void take_up(void *context, const char *name)
{
    taking_up_t *taking = context;
    kv_segments_t *segments = taking->segments;
    uint32_t number;
    char rest, path[KV_FOLDER_BYTES + 64];
    if (taking->status != KV_OK || sscanf(name, "segment-%5u%c", &number, &rest) != 1) {
        return;
    }
    if (number < segments->count_max) {
        taking->status = read_segment(segments, number, taking->error);
        return;
    }
    kv_segment_path(segments->folder, number, path, sizeof path);
    kv_log_info("store", "quota is smaller than before: removing file %s", path);
    segments->files->ops->remove(segments->files, path);
    taking->removed = true;
}

kv_status_t kv_segments_open(kv_segments_t *segments, kv_files_t *files, const char *folder,
    uint64_t segment_bytes, uint32_t count_max, kv_error_t *error)
{
    *segments =
        (kv_segments_t){.files = files, .segment_bytes = segment_bytes, .count_max = count_max};
    snprintf(segments->folder, sizeof segments->folder, "%s", folder);
    segments->items = kv_allocate_array(count_max, sizeof *segments->items);
    for (uint32_t i = 0; i < count_max; i++) {
        segments->items[i].fd = segments->items[i].file = -1;
        segments->items[i].first_object = KV_OBJECT_NONE;
    }
    taking_up_t taking = {.segments = segments, .status = KV_OK, .error = error};
    int listed = files->ops->list(files, folder, take_up, &taking);
    if (listed < 0) {
        taking.status = kv_fail_errno(error, -listed, "cannot read the folder %s", folder);
    }
    /* A removed file that comes back would bring back what was dropped since. */
    int synced =
        taking.status == KV_OK && taking.removed ? files->ops->sync_folder(files, folder) : 0;
    if (synced < 0) {
        taking.status = kv_fail_errno(error, -synced, "cannot sync the folder %s", folder);
    }
    if (taking.status != KV_OK) {
        free(segments->items);
        segments->items = NULL;
    }
    return taking.status;
}

static void close_file(kv_segments_t *segments, kv_segment_t *segment)
{
    if (segment->file >= 0) {
        kv_ring_remove_file(segments->ring, segment->file);
    }
    if (segment->fd >= 0) {
        segments->files->ops->close(segments->files, segment->fd);
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
    kv_files_t *files = segments->files;
    int fd = -EINVAL;
    if (!segments->buffered) {
        fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_DIRECT);
    }
    if (fd == -EINVAL) {
        if (!segments->buffered) {
            kv_log_info("store", "the file system takes no O_DIRECT: using its page cache");
            segments->buffered = true;
        }
        fd = files->ops->open(files, path, KV_FILES_WRITE);
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
        int fd = open_file(segments, path);
        if ((fd == -EMFILE || fd == -ENFILE) && close_one(segments)) {
            fd = open_file(segments, path);
        }
        if (fd < 0) {
            return kv_fail_errno(error, -fd, "cannot open %s", path);
        }
        segment->fd = fd;
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

/* The index lives on the same file system and must be able to write: its share stays free. */
static bool room_for(kv_files_t *files, int fd, uint64_t bytes)
{
    uint64_t total, available;
    if (files->ops->space(files, fd, &total, &available) < 0) {
        return true; /* the allocation itself will tell */
    }
    uint64_t share = total / 8 < INDEX_SHARE_BYTES_MAX ? total / 8 : INDEX_SHARE_BYTES_MAX;
    return available >= bytes + share;
}

static int allocate_file(kv_files_t *files, int fd, uint64_t bytes)
{
    int64_t size = files->ops->size(files, fd);
    if (size < 0 || ((uint64_t)size != bytes && !room_for(files, fd, bytes))) {
        return size < 0 ? (int)size : -ENOSPC;
    }
    return files->ops->allocate(files, fd, bytes);
}

static int make_segment(const kv_segments_t *segments, int fd, uint32_t number, uint64_t generation)
{
    kv_files_t *files = segments->files;
    uint8_t header[KV_SEGMENT_HEADER_BYTES];
    encode_header(header, number, segments->segment_bytes, generation);
    int result = allocate_file(files, fd, segments->segment_bytes);
    if (result < 0) {
        return result;
    }
    int64_t put = files->ops->write(files, fd, header, sizeof header, 0);
    return put < 0 ? (int)put : files->ops->sync(files, fd);
}

/* Want of descriptors or memory passes: it must not be taken for a full disk. */
static kv_status_t fail_prepare(int errno_value, const char *path, kv_error_t *error)
{
    kv_status_t status = kv_fail_errno(error, errno_value, "cannot prepare %s", path);
    bool full = errno_value == ENOSPC || errno_value == EDQUOT;
    return status == KV_NO_SPACE && !full ? KV_BUSY : status;
}

kv_status_t kv_segment_prepare(
    const kv_segments_t *segments, uint32_t number, uint64_t generation, kv_error_t *error)
{
    char path[KV_FOLDER_BYTES + 64];
    kv_files_t *files = segments->files;
    kv_segment_path(segments->folder, number, path, sizeof path);
    int fd = files->ops->open(files, path, KV_FILES_WRITE);
    bool existed = fd != -ENOENT;
    if (!existed) {
        fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    }
    if (fd < 0) {
        return fail_prepare(-fd, path, error);
    }
    int result = make_segment(segments, fd, number, generation);
    files->ops->close(files, fd);
    if (result < 0 && !existed) {
        files->ops->remove(files, path); /* gives back what it took of a full disk */
    }
    if (result == 0) {
        result = files->ops->sync_folder(files, segments->folder);
    }
    return result == 0 ? KV_OK : fail_prepare(-result, path, error);
}
