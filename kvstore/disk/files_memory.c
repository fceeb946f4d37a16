#include "kvstore/disk/files_memory.h"

#include "base/check.h"
#include "base/memory.h"
#include "kvstore/disk/ring_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SPACE_BYTES ((uint64_t)1 << 50)

typedef struct {
    char path[KV_FILES_MEMORY_PATH_BYTES]; /* "": free */
    char *bytes;
    uint64_t size, capacity;
    bool folder;
} file_t;

typedef struct {
    kv_files_t files; /* first: what the store sees */
    file_t *items;
    uint32_t count;
    uint32_t handles[KV_FILES_MEMORY_HANDLES_MAX]; /* number of the file + 1; 0: free */
} memory_t;

static memory_t *memory_of(kv_files_t *files)
{
    return (memory_t *)files;
}

static file_t *at_handle(kv_files_t *files, int file)
{
    memory_t *memory = memory_of(files);
    KV_CHECK(file >= 0 && file < KV_FILES_MEMORY_HANDLES_MAX && memory->handles[file] > 0);
    return &memory->items[memory->handles[file] - 1];
}

/* ---- names ---- */

static file_t *find(memory_t *memory, const char *path)
{
    for (uint32_t i = 0; i < memory->count; i++) {
        if (strcmp(memory->items[i].path, path) == 0) {
            return &memory->items[i];
        }
    }
    return NULL;
}

static file_t *add(memory_t *memory, const char *path, bool folder)
{
    file_t *file = find(memory, "");
    if (file == NULL) {
        memory->items = kv_reallocate(memory->items, memory->count + 1, sizeof *memory->items);
        file = &memory->items[memory->count++];
    }
    *file = (file_t){.folder = folder};
    memcpy(file->path, path, strlen(path) + 1);
    return file;
}

static bool too_long(const char *path)
{
    return strlen(path) >= KV_FILES_MEMORY_PATH_BYTES;
}

static int memory_open(kv_files_t *files, const char *path, unsigned how)
{
    memory_t *memory = memory_of(files);
    if (too_long(path)) {
        return -ENAMETOOLONG;
    }
    file_t *file = find(memory, path);
    if (file == NULL && (how & KV_FILES_CREATE) == 0) {
        return -ENOENT;
    }
    if (file == NULL) {
        file = add(memory, path, false);
    }
    if (file->folder) {
        return -EISDIR;
    }
    for (int i = 0; i < KV_FILES_MEMORY_HANDLES_MAX; i++) {
        if (memory->handles[i] == 0) {
            memory->handles[i] = (uint32_t)(file - memory->items) + 1;
            return i;
        }
    }
    return -EMFILE;
}

static void memory_close(kv_files_t *files, int file)
{
    memory_of(files)->handles[file] = 0;
}

static int memory_make_folder(kv_files_t *files, const char *path)
{
    if (too_long(path)) {
        return -ENAMETOOLONG;
    }
    if (find(memory_of(files), path) != NULL) {
        return -EEXIST;
    }
    add(memory_of(files), path, true);
    return 0;
}

static int memory_sync_folder(kv_files_t *files, const char *path)
{
    return find(memory_of(files), path) != NULL ? 0 : -ENOENT;
}

static int memory_list(kv_files_t *files, const char *path, kv_files_visit_t visit, void *context)
{
    memory_t *memory = memory_of(files);
    size_t length = strlen(path);
    for (uint32_t i = 0; i < memory->count; i++) {
        const char *other = memory->items[i].path;
        if (strncmp(other, path, length) == 0 && other[length] == '/' &&
            strchr(other + length + 1, '/') == NULL) {
            visit(context, other + length + 1);
        }
    }
    return 0;
}

static int memory_remove(kv_files_t *files, const char *path)
{
    file_t *file = find(memory_of(files), path);
    if (file == NULL || path[0] == '\0') {
        return -ENOENT;
    }
    free(file->bytes);
    *file = (file_t){0};
    return 0;
}

/* ---- bytes ---- */

static int64_t memory_read(
    kv_files_t *files, int number, void *buffer, size_t bytes, uint64_t offset)
{
    const file_t *file = at_handle(files, number);
    uint64_t there = offset < file->size ? file->size - offset : 0;
    size_t count = there < bytes ? (size_t)there : bytes;
    if (count > 0) {
        memcpy(buffer, file->bytes + offset, count);
    }
    return (int64_t)count;
}

static void grow(file_t *file, uint64_t bytes)
{
    if (bytes > file->capacity) {
        file->bytes = kv_reallocate(file->bytes, bytes, 1);
        memset(file->bytes + file->capacity, 0, bytes - file->capacity);
        file->capacity = bytes;
    }
    file->size = bytes > file->size ? bytes : file->size;
}

static int64_t memory_write(
    kv_files_t *files, int number, const void *buffer, size_t bytes, uint64_t offset)
{
    file_t *file = at_handle(files, number);
    grow(file, offset + bytes);
    memcpy(file->bytes + offset, buffer, bytes);
    return (int64_t)bytes;
}

static int64_t memory_size(kv_files_t *files, int number)
{
    return (int64_t)at_handle(files, number)->size;
}

static int memory_allocate(kv_files_t *files, int number, uint64_t bytes)
{
    grow(at_handle(files, number), bytes);
    return 0;
}

static int memory_truncate(kv_files_t *files, int number)
{
    file_t *file = at_handle(files, number);
    free(file->bytes);
    file->bytes = NULL;
    file->size = file->capacity = 0;
    return 0;
}

static int memory_sync(kv_files_t *files, int number)
{
    (void)at_handle(files, number);
    return 0;
}

static int memory_space(
    kv_files_t *files, int number, uint64_t *total_bytes_out, uint64_t *free_bytes_out)
{
    (void)at_handle(files, number);
    *total_bytes_out = *free_bytes_out = SPACE_BYTES;
    return 0;
}

/* ---- the ring: what was started is done when it is reaped ---- */

typedef struct {
    kv_ring_t ring; /* first */
    kv_files_t *files;
    int event_fd; /* readable while something is under way */
    kv_ring_request_t *started[KV_RING_DEPTH];
    uint32_t first, count;
} memory_ring_t;

static int ring_fd(const kv_ring_t *ring)
{
    return ((const memory_ring_t *)ring)->event_fd;
}

static void ring_start(kv_ring_t *ring, kv_ring_request_t *request)
{
    memory_ring_t *memory = (memory_ring_t *)ring;
    uint64_t one = 1;
    KV_CHECK(memory->count < KV_RING_DEPTH);
    memory->started[(memory->first + memory->count++) % KV_RING_DEPTH] = request;
    KV_CHECK(write(memory->event_fd, &one, sizeof one) == sizeof one);
}

static void ring_kick(kv_ring_t *ring)
{
    (void)ring;
}

static kv_ring_request_t *ring_reap(kv_ring_t *ring)
{
    memory_ring_t *memory = (memory_ring_t *)ring;
    if (memory->count == 0) {
        uint64_t value;
        ssize_t ignored = read(memory->event_fd, &value, sizeof value);
        (void)ignored; /* EAGAIN: it was not readable */
        return NULL;
    }
    kv_ring_request_t *request = memory->started[memory->first];
    memory->first = (memory->first + 1) % KV_RING_DEPTH;
    memory->count--;
    int file = ring->files[request->file];
    char *buffer = request->buffer + request->moved;
    size_t bytes = request->bytes - request->moved;
    uint64_t offset = request->offset + request->moved;
    switch (request->kind) {
    case KV_RING_READ:
        request->result = memory_read(memory->files, file, buffer, bytes, offset);
        break;
    case KV_RING_WRITE:
        request->result = memory_write(memory->files, file, buffer, bytes, offset);
        break;
    case KV_RING_SYNC:
        request->result = 0;
        break;
    }
    return request;
}

static void ring_file_changed(kv_ring_t *ring, int file)
{
    (void)ring;
    (void)file;
}

static void ring_close(kv_ring_t *ring)
{
    close(((memory_ring_t *)ring)->event_fd);
    free(ring);
}

static const kv_ring_ops_t RING_OPS = {
    .name = "memory",
    .fd = ring_fd,
    .start = ring_start,
    .kick = ring_kick,
    .reap = ring_reap,
    .file_changed = ring_file_changed,
    .close = ring_close,
};

static kv_status_t memory_open_ring(kv_files_t *files, kvist_io_t io, const kv_region_t *region,
    kv_ring_t **ring_out, kv_error_t *error)
{
    (void)io;
    (void)region;
    int event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (event_fd < 0) {
        return kv_fail_errno(error, errno, "no descriptor is left for the ring");
    }
    memory_ring_t *ring = kv_allocate(sizeof *ring);
    ring->ring.ops = &RING_OPS;
    ring->files = files;
    ring->event_fd = event_fd;
    *ring_out = &ring->ring;
    return KV_OK;
}

static const kv_files_ops_t MEMORY_OPS = {
    .open = memory_open,
    .close = memory_close,
    .read = memory_read,
    .write = memory_write,
    .size = memory_size,
    .allocate = memory_allocate,
    .truncate = memory_truncate,
    .sync = memory_sync,
    .lock = memory_sync, /* nobody else can reach it */
    .space = memory_space,
    .make_folder = memory_make_folder,
    .sync_folder = memory_sync_folder,
    .list = memory_list,
    .remove = memory_remove,
    .open_ring = memory_open_ring,
};

kv_files_t *kv_files_memory_create(void)
{
    memory_t *memory = kv_allocate(sizeof *memory);
    memory->files.ops = &MEMORY_OPS;
    add(memory, "/", true);
    return &memory->files;
}

void kv_files_memory_destroy(kv_files_t *files)
{
    memory_t *memory = memory_of(files);
    for (uint32_t i = 0; i < memory->count; i++) {
        free(memory->items[i].bytes);
    }
    free(memory->items);
    free(memory);
}
