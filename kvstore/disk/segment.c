#include "kvstore/disk/segment.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "kvstore/objects/table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* "KVISTSEG" */
#define SEGMENT_MAGIC 0x474553545349564bull
enum { SEGMENT_VERSION = 2, SEGMENT_VERSION_MIN = 1, FILLED = 1, COUNT_MIN = 16 };
#define INDEX_SHARE_BYTES_MAX ((uint64_t)64 << 20)

/* Offsets in the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_NUMBER = 12,
    AT_GENERATION = 16,
    AT_SEGMENT_BYTES = 24,
    AT_FLAGS = 32, /* since version 2 */
    AT_CHECKSUM = KV_SEGMENT_HEADER_BYTES - 8,
};

void kv_segment_path(const char *folder, uint32_t number, char *path_out, size_t path_bytes)
{
    snprintf(path_out, path_bytes, "%s/segment-%05u", folder, number);
}

void kv_segments_path(const kv_segments_t *segments, uint32_t number, char *path_out)
{
    const kv_volume_t *volume = segments->volumes[segments->items[number].volume];
    kv_segment_path(volume->folder, number, path_out, KV_SEGMENT_PATH_BYTES);
}

/* ---- headers ---- */

static void encode_header(uint8_t *header, const kv_segment_begin_t *begin, uint64_t segment_bytes)
{
    memset(header, 0, KV_SEGMENT_HEADER_BYTES);
    kv_put_u64(header + AT_MAGIC, SEGMENT_MAGIC);
    kv_put_u32(header + AT_VERSION, SEGMENT_VERSION);
    kv_put_u32(header + AT_NUMBER, begin->number);
    kv_put_u64(header + AT_GENERATION, begin->generation);
    kv_put_u64(header + AT_SEGMENT_BYTES, segment_bytes);
    kv_put_u32(header + AT_FLAGS, begin->filled ? FILLED : 0);
    kv_put_u64(header + AT_CHECKSUM, kv_checksum(header, AT_CHECKSUM));
}

static bool decode_header(
    const uint8_t *header, uint64_t segment_bytes, uint32_t number, kv_segment_begin_t *begin_out)
{
    uint32_t version = kv_get_u32(header + AT_VERSION);
    if (kv_get_u64(header + AT_MAGIC) != SEGMENT_MAGIC || version < SEGMENT_VERSION_MIN ||
        version > SEGMENT_VERSION || kv_get_u32(header + AT_NUMBER) != number ||
        kv_get_u64(header + AT_SEGMENT_BYTES) != segment_bytes ||
        kv_get_u64(header + AT_CHECKSUM) != kv_checksum(header, AT_CHECKSUM)) {
        return false;
    }
    begin_out->generation = kv_get_u64(header + AT_GENERATION);
    begin_out->filled = (kv_get_u32(header + AT_FLAGS) & FILLED) != 0;
    return true;
}

/* ---- numbers and lists ---- */

void kv_segments_init(kv_segments_t *segments, kv_files_t *files, uint64_t segment_bytes)
{
    *segments = (kv_segments_t){.files = files, .segment_bytes = segment_bytes, .known_count = 1};
}

/* Numbers up to this one exist from now on. */
static void extend(kv_segments_t *segments, uint32_t number)
{
    if (number >= segments->capacity) {
        uint32_t capacity = segments->capacity > 0 ? 2 * segments->capacity : COUNT_MIN;
        capacity = capacity > number ? capacity : number + 1;
        segments->items = kv_reallocate(segments->items, capacity, sizeof *segments->items);
        segments->capacity = capacity;
    }
    while (segments->count <= number) {
        segments->items[segments->count++] = (kv_segment_t){
            .fd = -1, .file = -1, .first_object = KV_OBJECT_NONE, .next = KV_SEGMENT_NONE};
    }
}

uint32_t kv_segments_owner(const kv_segments_t *segments, uint32_t number)
{
    uint32_t owner = number % KV_VOLUMES_MAX;
    return owner < segments->known_count ? owner : 0;
}

static bool is_absent(const kv_segments_t *segments, uint32_t number)
{
    return number >= segments->count || segments->items[number].state == KV_SEGMENT_ABSENT;
}

uint32_t kv_segments_absent(kv_segments_t *segments, uint32_t volume)
{
    while (!is_absent(segments, segments->first_absent)) {
        segments->first_absent++;
    }
    uint32_t number = segments->first_absent;
    while (!is_absent(segments, number) || kv_segments_owner(segments, number) != volume) {
        number++;
    }
    if (number >= KV_SEGMENTS_MAX) {
        return KV_SEGMENT_NONE;
    }
    extend(segments, number);
    return number;
}

void kv_segments_enter_full(kv_segments_t *segments, uint32_t number)
{
    kv_segment_t *segment = &segments->items[number];
    kv_volume_t *volume = segments->volumes[segment->volume];
    segment->state = KV_SEGMENT_FULL;
    segment->next = KV_SEGMENT_NONE;
    if (volume->last_full != KV_SEGMENT_NONE) {
        segments->items[volume->last_full].next = number;
    } else {
        volume->first_full = number;
    }
    volume->last_full = number;
}

void kv_segments_return_full(kv_segments_t *segments, uint32_t number)
{
    kv_segment_t *segment = &segments->items[number];
    kv_volume_t *volume = segments->volumes[segment->volume];
    segment->next = volume->first_full;
    volume->first_full = number;
    if (volume->last_full == KV_SEGMENT_NONE) {
        volume->last_full = number;
    }
}

void kv_segments_leave_full(kv_segments_t *segments, uint32_t number)
{
    kv_segment_t *segment = &segments->items[number];
    kv_volume_t *volume = segments->volumes[segment->volume];
    uint32_t before = KV_SEGMENT_NONE, at = volume->first_full;
    while (at != number) {
        KV_CHECK(at != KV_SEGMENT_NONE);
        before = at;
        at = segments->items[at].next;
    }
    if (before != KV_SEGMENT_NONE) {
        segments->items[before].next = segment->next;
    } else {
        volume->first_full = segment->next;
    }
    if (volume->last_full == number) {
        volume->last_full = before;
    }
    segment->next = KV_SEGMENT_NONE;
}

void kv_segments_add_spare(kv_segments_t *segments, uint32_t number)
{
    kv_segment_t *segment = &segments->items[number];
    uint32_t *link = &segments->volumes[segment->volume]->first_spare;
    segment->state = KV_SEGMENT_SPARE;
    segment->generation = 0;
    while (!segment->filled && *link != KV_SEGMENT_NONE && segments->items[*link].filled) {
        link = &segments->items[*link].next;
    }
    segment->next = *link;
    *link = number;
}

void kv_segments_leave_spare(kv_segments_t *segments, uint32_t number)
{
    uint32_t *link = &segments->volumes[segments->items[number].volume]->first_spare;
    while (*link != number) {
        KV_CHECK(*link != KV_SEGMENT_NONE);
        link = &segments->items[*link].next;
    }
    *link = segments->items[number].next;
    segments->items[number].next = KV_SEGMENT_NONE;
}

uint32_t kv_segments_take_spare(kv_segments_t *segments, uint32_t volume)
{
    uint32_t number = segments->volumes[volume]->first_spare;
    if (number != KV_SEGMENT_NONE) {
        kv_segments_leave_spare(segments, number);
    }
    return number;
}

void kv_segments_hold(kv_segments_t *segments, uint32_t number)
{
    segments->in_use_count += segments->items[number].in_use++ == 0;
}

void kv_segments_release(kv_segments_t *segments, uint32_t number)
{
    KV_CHECK(segments->items[number].in_use > 0);
    segments->in_use_count -= --segments->items[number].in_use == 0;
}

uint64_t kv_segments_next_generation(kv_segments_t *segments, uint64_t unix_ns)
{
    /* The clock keeps generations apart even from lives whose header was lost. */
    uint64_t next = segments->generation_last + 1;
    segments->generation_last = unix_ns > next ? unix_ns : next;
    return segments->generation_last;
}

/* ---- files made and removed ---- */

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

static int write_file(const kv_segments_t *segments, int fd, const kv_segment_begin_t *begin)
{
    kv_files_t *files = segments->files;
    int64_t size = files->ops->size(files, fd);
    if (size >= 0 && (uint64_t)size != segments->segment_bytes) {
        size = room_for(files, fd, segments->segment_bytes)
                   ? files->ops->allocate(files, fd, segments->segment_bytes)
                   : -ENOSPC;
    }
    if (size < 0) {
        return (int)size;
    }
    uint8_t header[KV_SEGMENT_HEADER_BYTES];
    encode_header(header, begin, segments->segment_bytes);
    int64_t put = files->ops->write(files, fd, header, sizeof header, 0);
    return put < 0 ? (int)put : files->ops->sync(files, fd);
}

/* Want of descriptors or memory passes: it must not be taken for a full disk. */
static kv_status_t fail_begin(int errno_value, const char *path, kv_error_t *error)
{
    kv_status_t status = kv_fail_errno(error, errno_value, "cannot prepare %s", path);
    bool full = errno_value == ENOSPC || errno_value == EDQUOT;
    return status == KV_NO_SPACE && !full ? KV_BUSY : status;
}

kv_status_t kv_segment_begin(
    const kv_segments_t *segments, const kv_segment_begin_t *begin, kv_error_t *error)
{
    char path[KV_SEGMENT_PATH_BYTES];
    kv_files_t *files = segments->files;
    kv_segment_path(segments->volumes[begin->volume]->folder, begin->number, path, sizeof path);
    int fd = files->ops->open(files, path, KV_FILES_WRITE);
    bool existed = fd != -ENOENT;
    if (!existed) {
        fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    }
    if (fd < 0) {
        return fail_begin(-fd, path, error);
    }
    int result = write_file(segments, fd, begin);
    files->ops->close(files, fd);
    if (result < 0 && !existed) {
        files->ops->remove(files, path); /* gives back what it took of a full disk */
    }
    if (result == 0 && !existed) {
        result = files->ops->sync_folder(files, segments->volumes[begin->volume]->folder);
    }
    return result == 0 ? KV_OK : fail_begin(-result, path, error);
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

void kv_segments_close_file(kv_segments_t *segments, uint32_t number)
{
    close_file(segments, &segments->items[number]);
}

kv_status_t kv_segment_remove_file(
    kv_files_t *files, const char *folder, const char *path, kv_error_t *error)
{
    int result = files->ops->remove(files, path);
    if (result < 0 && result != -ENOENT) {
        return kv_fail_errno(error, -result, "cannot remove %s", path);
    }
    /* A removed file that comes back would bring back what was dropped since. */
    result = files->ops->sync_folder(files, folder);
    return result == 0 ? KV_OK : kv_fail_errno(error, -result, "cannot sync the folder %s", folder);
}

void kv_segments_forget(kv_segments_t *segments, uint32_t number)
{
    kv_segment_t *segment = &segments->items[number];
    segments->volumes[segment->volume]->present_count--;
    segment->state = KV_SEGMENT_ABSENT;
    segment->generation = 0;
    segment->filled = false;
    if (number < segments->first_absent) {
        segments->first_absent = number;
    }
}

kv_status_t kv_segments_remove(kv_segments_t *segments, uint32_t number, kv_error_t *error)
{
    char path[KV_SEGMENT_PATH_BYTES];
    const char *folder = segments->volumes[segments->items[number].volume]->folder;
    kv_segments_path(segments, number, path);
    kv_segments_close_file(segments, number);
    kv_status_t status = kv_segment_remove_file(segments->files, folder, path, error);
    if (status == KV_OK) {
        kv_segments_forget(segments, number);
    }
    return status;
}

/* ---- taking in a folder ---- */

typedef struct {
    kv_segments_t *segments;
    uint32_t volume;
    kv_status_t status;
    kv_error_t *error;
} taking_t;

/* Bytes of the file; its header, as far as it goes. A header that cannot be read now (as opposed
 * to a damaged one) fails the opening: forgetting a whole segment for want of a descriptor would be
 * a loss. */
static kv_status_t read_header(
    kv_files_t *files, const char *path, uint8_t *header, uint64_t *size_out, kv_error_t *error)
{
    int fd = files->ops->open(files, path, KV_FILES_READ);
    if (fd < 0) {
        return kv_fail_errno(error, -fd, "cannot open %s", path);
    }
    int64_t got = files->ops->read(files, fd, header, KV_SEGMENT_HEADER_BYTES, 0);
    int64_t size = got < 0 ? got : files->ops->size(files, fd);
    files->ops->close(files, fd);
    if (size < 0) {
        return kv_fail_errno(error, (int)-size, "cannot read %s", path);
    }
    *size_out = (uint64_t)size;
    return KV_OK;
}

/* A file without a whole header is a spare from now on, and says so: what was in it is forgotten
 * once, not at every start. */
static void make_spare(kv_segments_t *segments, uint32_t number)
{
    kv_segment_t *segment = &segments->items[number];
    kv_segment_begin_t begin = {.number = number, .volume = segment->volume};
    kv_segments_add_spare(segments, number);
    kv_error_t error;
    if (kv_segment_begin(segments, &begin, &error) != KV_OK) {
        kv_log_warn("store", "%s", error.text); /* the next life may write it */
    }
}

static kv_status_t take_in(taking_t *taking, uint32_t number)
{
    kv_segments_t *segments = taking->segments;
    char path[KV_SEGMENT_PATH_BYTES];
    uint8_t header[KV_SEGMENT_HEADER_BYTES] = {0};
    kv_segment_begin_t found = {0};
    uint64_t size = 0;
    kv_segment_path(segments->volumes[taking->volume]->folder, number, path, sizeof path);
    kv_status_t status = read_header(segments->files, path, header, &size, taking->error);
    if (status != KV_OK) {
        return status;
    }
    extend(segments, number);
    kv_segment_t *segment = &segments->items[number];
    if (segment->state != KV_SEGMENT_ABSENT) {
        return kv_fail(taking->error, KV_INVALID, "segment %u lies in %s and in %s: remove one",
            number, segments->volumes[segment->volume]->folder,
            segments->volumes[taking->volume]->folder);
    }
    segment->volume = (uint8_t)taking->volume;
    segments->volumes[taking->volume]->present_count++;
    bool good = decode_header(header, segments->segment_bytes, number, &found);
    if (!good || size != segments->segment_bytes) {
        if (kv_get_u64(header + AT_MAGIC) != 0) { /* else it was being made */
            kv_log_warn("store", "segment header damaged: its records are forgotten file %s", path);
        }
        make_spare(segments, number);
        return KV_OK;
    }
    segment->filled = found.filled;
    segment->generation = found.generation;
    if (found.generation == 0) {
        kv_segments_add_spare(segments, number);
        return KV_OK;
    }
    segment->state = KV_SEGMENT_FULL; /* listed when all are known */
    segment->append_bytes = segments->segment_bytes;
    if (found.generation > segments->generation_last) {
        segments->generation_last = found.generation;
    }
    return KV_OK;
}

static void visit_file(void *context, const char *name)
{
    taking_t *taking = context;
    uint32_t number;
    char rest;
    if (taking->status == KV_OK && sscanf(name, "segment-%5u%c", &number, &rest) == 1 &&
        number < KV_SEGMENTS_MAX) {
        taking->status = take_in(taking, number);
    }
}

typedef struct {
    uint64_t generation;
    uint32_t number;
} aged_t;

static int by_generation(const void *left, const void *right)
{
    const aged_t *a = left, *b = right;
    return a->generation < b->generation ? -1 : a->generation > b->generation;
}

static void list_full(kv_segments_t *segments, uint32_t volume)
{
    aged_t *aged = kv_allocate_array(segments->count + 1, sizeof *aged);
    uint32_t count = 0;
    for (uint32_t i = 0; i < segments->count; i++) {
        if (segments->items[i].state == KV_SEGMENT_FULL && segments->items[i].volume == volume) {
            aged[count++] = (aged_t){segments->items[i].generation, i};
        }
    }
    qsort(aged, count, sizeof *aged, by_generation);
    for (uint32_t i = 0; i < count; i++) {
        kv_segments_enter_full(segments, aged[i].number);
    }
    free(aged);
}

static kv_status_t keep_quota(kv_segments_t *segments, uint32_t number, kv_error_t *error)
{
    kv_volume_t *volume = segments->volumes[number];
    kv_status_t status = KV_OK;
    if (volume->present_count > volume->segments_max) {
        kv_log_info("store", "quota is smaller than before: removing %u segments from %s",
            volume->present_count - volume->segments_max, volume->folder);
    }
    while (status == KV_OK && volume->present_count > volume->segments_max) {
        uint32_t goes = kv_segments_take_spare(segments, number);
        if (goes == KV_SEGMENT_NONE) {
            goes = volume->first_full;
            kv_segments_leave_full(segments, goes);
        }
        status = kv_segments_remove(segments, goes, error);
    }
    return status;
}

static uint32_t add_volume(kv_segments_t *segments, const char *folder, uint32_t segments_max)
{
    KV_CHECK(segments->volume_count < KV_VOLUMES_MAX);
    uint32_t number = segments->volume_count++;
    kv_volume_t *volume = kv_allocate(sizeof *volume);
    segments->volumes[number] = volume;
    *volume = (kv_volume_t){
        .segments_max = segments_max,
        .segments_asked = segments_max,
        .open = KV_SEGMENT_NONE,
        .ready = KV_SEGMENT_NONE,
        .first_spare = KV_SEGMENT_NONE,
        .first_full = KV_SEGMENT_NONE,
        .last_full = KV_SEGMENT_NONE,
    };
    snprintf(volume->folder, sizeof volume->folder, "%s", folder);
    return number;
}

void kv_segments_add_missing(kv_segments_t *segments, const char *folder)
{
    add_volume(segments, folder, 0);
}

kv_status_t kv_segments_add_volume(
    kv_segments_t *segments, const char *folder, uint32_t segments_max, kv_error_t *error)
{
    uint32_t number = add_volume(segments, folder, segments_max);
    taking_t taking = {.segments = segments, .volume = number, .error = error};
    int listed = segments->files->ops->list(segments->files, folder, visit_file, &taking);
    if (listed < 0) {
        return kv_fail_errno(error, -listed, "cannot read the folder %s", folder);
    }
    list_full(segments, number);
    return taking.status == KV_OK ? keep_quota(segments, number, error) : taking.status;
}

void kv_segments_close(kv_segments_t *segments)
{
    for (uint32_t i = 0; i < segments->count; i++) {
        close_file(segments, &segments->items[i]);
    }
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        free(segments->volumes[i]);
    }
    free(segments->items);
    *segments = (kv_segments_t){0};
}

/* ---- descriptors ---- */

/* Closes the file that was used longest ago and is not in use; false when all are. */
static bool close_one(kv_segments_t *segments)
{
    kv_segment_t *oldest = NULL;
    for (uint32_t file = 0; file < KV_RING_FILES_MAX; file++) {
        uint32_t number = segments->file_segments[file];
        kv_segment_t *segment = number < segments->count ? &segments->items[number] : NULL;
        if (segment != NULL && segment->file == (int)file && segment->in_use == 0 &&
            (oldest == NULL || segment->opened < oldest->opened)) {
            oldest = segment;
        }
    }
    if (oldest != NULL) {
        close_file(segments, oldest);
    }
    return oldest != NULL;
}

static int open_file(kv_segments_t *segments, kv_volume_t *volume, const char *path)
{
    kv_files_t *files = segments->files;
    int fd = -EINVAL;
    if (!volume->buffered) {
        fd = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_DIRECT);
    }
    if (fd == -EINVAL) {
        if (!volume->buffered) {
            kv_log_info("store", "the file system of %s takes no O_DIRECT: using its page cache",
                volume->folder);
            volume->buffered = true;
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
        char path[KV_SEGMENT_PATH_BYTES];
        kv_volume_t *volume = segments->volumes[segment->volume];
        kv_segments_path(segments, number, path);
        int fd = open_file(segments, volume, path);
        if ((fd == -EMFILE || fd == -ENFILE) && close_one(segments)) {
            fd = open_file(segments, volume, path);
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
        segments->file_segments[segment->file] = number;
    }
    segment->opened = ++segments->opens;
    *file_out = segment->file;
    return KV_OK;
}
