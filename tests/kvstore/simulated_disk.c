#include "simulated_disk.h"

#include "base/check.h"
#include "base/memory.h"
#include "kvstore/disk/ring_internal.h"
#include "testing/testing.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { SECTOR_BYTES = 512, HANDLES_MAX = 300, PATH_BYTES = 128 };
#define DISK_BYTES ((uint64_t)1 << 40)

typedef struct {
    uint64_t offset;
    size_t bytes;
    char *data;
    uint64_t ended; /* its number in the order of endings; 0: under way */
} change_t;

typedef struct {
    char *now, *durable;
    uint64_t now_bytes, durable_bytes, capacity;
    change_t *changes; /* not durable, in the order of their beginnings */
    uint32_t change_count;
    bool is_folder, locked;
} inode_t;

typedef struct {
    char path[PATH_BYTES];
    inode_t *now, *durable; /* NULL: no such name */
} name_t;

/* A name that is not durable. */
typedef struct {
    uint32_t name;
    inode_t *inode;
    uint64_t number; /* those of a rename share one */
} naming_t;

typedef struct {
    inode_t *inode; /* NULL: free */
    bool direct, holds_lock;
} handle_t;

struct simulated_disk {
    kv_files_t files; /* first: what the store sees */
    uint64_t random, endings;
    simulated_watch_t watch;
    inode_t **inodes;
    name_t *names;
    naming_t *namings; /* in order */
    uint32_t inode_count, name_count, naming_count;
    uint64_t naming_last;
    bool held;
    handle_t handles[HANDLES_MAX];
};

static simulated_disk_t *disk_of(kv_files_t *files)
{
    return (simulated_disk_t *)files;
}

static uint32_t choose(uint64_t *random, uint32_t count)
{
    return (uint32_t)(kv_test_random(random) % count);
}

static int ask(simulated_disk_t *disk, simulated_operation_t operation)
{
    return disk->watch.before != NULL ? disk->watch.before(disk->watch.context, operation) : 0;
}

/* ---- bytes ---- */

static void ensure_capacity(inode_t *inode, uint64_t bytes)
{
    if (bytes > inode->capacity) {
        inode->now = kv_reallocate(inode->now, bytes, 1);
        inode->durable = kv_reallocate(inode->durable, bytes, 1);
        memset(inode->now + inode->capacity, 0, bytes - inode->capacity);
        memset(inode->durable + inode->capacity, 0, bytes - inode->capacity);
        inode->capacity = bytes;
    }
}

static uint32_t begin_change(inode_t *inode, const void *data, size_t bytes, uint64_t offset)
{
    change_t change = {.offset = offset, .bytes = bytes, .data = kv_allocate(bytes)};
    memcpy(change.data, data, bytes);
    ensure_capacity(inode, offset + bytes);
    inode->changes = kv_reallocate(inode->changes, inode->change_count + 1, sizeof *inode->changes);
    inode->changes[inode->change_count] = change;
    return inode->change_count++;
}

static void end_change(simulated_disk_t *disk, inode_t *inode, change_t *change)
{
    memcpy(inode->now + change->offset, change->data, change->bytes);
    if (change->offset + change->bytes > inode->now_bytes) {
        inode->now_bytes = change->offset + change->bytes;
    }
    change->ended = ++disk->endings;
}

/* Of the change's bytes those of one sector, from `at` on. */
static size_t sector_bytes(const change_t *change, size_t at)
{
    size_t bytes = SECTOR_BYTES - (change->offset + at) % SECTOR_BYTES;
    return bytes < change->bytes - at ? bytes : change->bytes - at;
}

/* A write that failed: its first part may have been done. */
static void fail_change(simulated_disk_t *disk, inode_t *inode, change_t *change)
{
    change->bytes = change->bytes * choose(&disk->random, 5) / 4 / SECTOR_BYTES * SECTOR_BYTES;
    end_change(disk, inode, change);
}

/* Everything that had ended when the sync was handed over. */
static void sync_inode(inode_t *inode, uint64_t endings)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < inode->change_count; i++) {
        change_t *change = &inode->changes[i];
        if (change->ended == 0 || change->ended > endings) {
            inode->changes[kept++] = *change;
            continue;
        }
        memcpy(inode->durable + change->offset, change->data, change->bytes);
        free(change->data);
    }
    inode->change_count = kept;
    inode->durable_bytes = inode->now_bytes;
    if (kept == 0 && inode->capacity > 0) { /* what a truncation took goes too */
        memcpy(inode->durable, inode->now, inode->capacity);
    }
}

/* ---- names ---- */

static name_t *find_name(simulated_disk_t *disk, const char *path)
{
    for (uint32_t i = 0; i < disk->name_count; i++) {
        if (strcmp(disk->names[i].path, path) == 0) {
            return &disk->names[i];
        }
    }
    return NULL;
}

static inode_t *find_inode(simulated_disk_t *disk, const char *path)
{
    const name_t *name = find_name(disk, path);
    return name != NULL ? name->now : NULL;
}

static inode_t *add_inode(simulated_disk_t *disk, bool is_folder)
{
    inode_t *inode = kv_allocate(sizeof *inode);
    inode->is_folder = is_folder;
    disk->inodes = kv_reallocate(disk->inodes, disk->inode_count + 1, sizeof *disk->inodes);
    disk->inodes[disk->inode_count++] = inode;
    return inode;
}

static name_t *add_name(simulated_disk_t *disk, const char *path)
{
    name_t *name = find_name(disk, path);
    if (name == NULL) {
        disk->names = kv_reallocate(disk->names, disk->name_count + 1, sizeof *disk->names);
        name = &disk->names[disk->name_count++];
        *name = (name_t){0};
        KV_CHECK(snprintf(name->path, sizeof name->path, "%s", path) < PATH_BYTES);
    }
    return name;
}

static void set_name(simulated_disk_t *disk, const char *path, inode_t *inode, uint64_t number)
{
    name_t *name = add_name(disk, path);
    name->now = inode;
    disk->namings = kv_reallocate(disk->namings, disk->naming_count + 1, sizeof *disk->namings);
    disk->namings[disk->naming_count++] = (naming_t){(uint32_t)(name - disk->names), inode, number};
}

/* The name inside the folder, or NULL when the path is not directly in it. */
static const char *name_inside(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    bool inside = strncmp(path, folder, length) == 0 && path[length] == '/' &&
                  strchr(path + length + 1, '/') == NULL;
    return inside ? path + length + 1 : NULL;
}

static bool in_a_folder(simulated_disk_t *disk, const char *path)
{
    for (uint32_t i = 0; i < disk->name_count; i++) {
        const name_t *name = &disk->names[i];
        if (name->now != NULL && name->now->is_folder && name_inside(path, name->path) != NULL) {
            return true;
        }
    }
    return false;
}

/* ---- the table ---- */

static int simulated_open(kv_files_t *files, const char *path, unsigned how)
{
    simulated_disk_t *disk = disk_of(files);
    inode_t *inode = find_inode(disk, path);
    bool makes = inode == NULL && (how & KV_FILES_CREATE) != 0;
    int reason = ask(disk, makes ? SIMULATED_NAME : SIMULATED_OPEN);
    if (reason < 0) {
        return reason;
    }
    if (inode == NULL && (!makes || !in_a_folder(disk, path))) {
        return -ENOENT;
    }
    if (makes) {
        inode = add_inode(disk, false);
        set_name(disk, path, inode, ++disk->naming_last);
    }
    for (int i = 0; i < HANDLES_MAX; i++) {
        if (disk->handles[i].inode == NULL) {
            disk->handles[i] = (handle_t){.inode = inode, .direct = (how & KV_FILES_DIRECT) != 0};
            return i;
        }
    }
    return -EMFILE;
}

static void simulated_close(kv_files_t *files, int file)
{
    handle_t *handle = &disk_of(files)->handles[file];
    KV_CHECK(handle->inode != NULL);
    if (handle->holds_lock) {
        handle->inode->locked = false;
    }
    *handle = (handle_t){0};
}

static bool aligned(const handle_t *handle, const void *buffer, size_t bytes, uint64_t offset)
{
    return !handle->direct || ((uintptr_t)buffer % SECTOR_BYTES == 0 && bytes % SECTOR_BYTES == 0 &&
                                  offset % SECTOR_BYTES == 0);
}

static int64_t read_bytes(const handle_t *handle, void *buffer, size_t bytes, uint64_t offset)
{
    const inode_t *inode = handle->inode;
    if (!aligned(handle, buffer, bytes, offset)) {
        return -EINVAL;
    }
    if (offset >= inode->now_bytes) {
        return 0;
    }
    size_t left = inode->now_bytes - offset;
    size_t moved = bytes < left ? bytes : left;
    memcpy(buffer, inode->now + offset, moved);
    return (int64_t)moved;
}

static int64_t simulated_read(
    kv_files_t *files, int file, void *buffer, size_t bytes, uint64_t offset)
{
    simulated_disk_t *disk = disk_of(files);
    int reason = ask(disk, SIMULATED_READ);
    return reason < 0 ? reason : read_bytes(&disk->handles[file], buffer, bytes, offset);
}

static int64_t simulated_write(
    kv_files_t *files, int file, const void *buffer, size_t bytes, uint64_t offset)
{
    simulated_disk_t *disk = disk_of(files);
    const handle_t *handle = &disk->handles[file];
    if (!aligned(handle, buffer, bytes, offset)) {
        return -EINVAL;
    }
    int reason = ask(disk, SIMULATED_WRITE);
    uint32_t number = begin_change(handle->inode, buffer, bytes, offset);
    change_t *change = &handle->inode->changes[number];
    if (reason < 0) {
        fail_change(disk, handle->inode, change);
        return reason;
    }
    end_change(disk, handle->inode, change);
    return (int64_t)bytes;
}

static int64_t simulated_size(kv_files_t *files, int file)
{
    simulated_disk_t *disk = disk_of(files);
    int reason = ask(disk, SIMULATED_READ);
    return reason < 0 ? reason : (int64_t)disk->handles[file].inode->now_bytes;
}

/* The bytes that leave are gone at once; until a sync a power loss may bring the old size back, and
 * nulls with it. */
static int resize(simulated_disk_t *disk, int file, uint64_t bytes)
{
    int reason = ask(disk, SIMULATED_RESIZE);
    if (reason < 0) {
        return reason;
    }
    inode_t *inode = disk->handles[file].inode;
    ensure_capacity(inode, bytes);
    if (inode->capacity > bytes) {
        memset(inode->now + bytes, 0, inode->capacity - bytes);
    }
    inode->now_bytes = bytes;
    return 0;
}

static int simulated_mode(kv_files_t *files, int file)
{
    (void)files;
    (void)file;
    return 0600;
}

static int simulated_allocate(kv_files_t *files, int file, uint64_t bytes)
{
    return resize(disk_of(files), file, bytes);
}

static int simulated_truncate(kv_files_t *files, int file)
{
    return resize(disk_of(files), file, 0);
}

static int simulated_sync(kv_files_t *files, int file)
{
    simulated_disk_t *disk = disk_of(files);
    int reason = ask(disk, SIMULATED_SYNC);
    if (reason == 0) {
        sync_inode(disk->handles[file].inode, disk->endings);
    }
    return reason;
}

static int simulated_lock(kv_files_t *files, int file)
{
    handle_t *handle = &disk_of(files)->handles[file];
    if (handle->inode->locked) {
        return -EWOULDBLOCK;
    }
    handle->inode->locked = handle->holds_lock = true;
    return 0;
}

static int simulated_space(
    kv_files_t *files, int file, uint64_t *total_bytes_out, uint64_t *free_bytes_out)
{
    (void)files;
    (void)file;
    *total_bytes_out = *free_bytes_out = DISK_BYTES;
    return 0;
}

static int simulated_make_folder(kv_files_t *files, const char *path)
{
    simulated_disk_t *disk = disk_of(files);
    if (find_inode(disk, path) != NULL) {
        return -EEXIST;
    }
    int reason = ask(disk, SIMULATED_NAME);
    if (reason < 0 || !in_a_folder(disk, path)) {
        return reason < 0 ? reason : -ENOENT;
    }
    inode_t *inode = add_inode(disk, true);
    set_name(disk, path, inode, ++disk->naming_last);
    return 0;
}

static int simulated_sync_folder(kv_files_t *files, const char *path)
{
    simulated_disk_t *disk = disk_of(files);
    int reason = ask(disk, SIMULATED_SYNC_FOLDER);
    if (reason < 0 || find_inode(disk, path) == NULL) {
        return reason < 0 ? reason : -ENOENT;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < disk->naming_count; i++) {
        naming_t naming = disk->namings[i];
        name_t *name = &disk->names[naming.name];
        if (name_inside(name->path, path) != NULL) {
            name->durable = naming.inode;
        } else {
            disk->namings[kept++] = naming;
        }
    }
    disk->naming_count = kept;
    return 0;
}

static int simulated_list(
    kv_files_t *files, const char *path, kv_files_visit_t visit, void *context)
{
    simulated_disk_t *disk = disk_of(files);
    int reason = ask(disk, SIMULATED_LIST);
    if (reason < 0 || find_inode(disk, path) == NULL) {
        return reason < 0 ? reason : -ENOENT;
    }
    for (uint32_t i = 0; i < disk->name_count; i++) {
        const char *inside = name_inside(disk->names[i].path, path);
        if (inside != NULL && disk->names[i].now != NULL) {
            visit(context, inside);
        }
    }
    return 0;
}

static int simulated_remove(kv_files_t *files, const char *path)
{
    simulated_disk_t *disk = disk_of(files);
    if (find_inode(disk, path) == NULL) {
        return -ENOENT;
    }
    int reason = ask(disk, SIMULATED_NAME);
    if (reason == 0) {
        set_name(disk, path, NULL, ++disk->naming_last);
    }
    return reason;
}

/* ---- the ring ---- */

typedef struct {
    kv_ring_request_t *request;
    inode_t *inode;
    handle_t *handle;
    char *data; /* of a write: tells its change from others */
    uint64_t endings;
    int reason;
} started_t;

typedef struct {
    kv_ring_t ring; /* first: the public object */
    simulated_disk_t *disk;
    int event_fd; /* readable while something is under way */
    started_t started[KV_RING_DEPTH];
    uint32_t count;
} simulated_ring_t;

static int ring_fd(const kv_ring_t *ring)
{
    return ((const simulated_ring_t *)ring)->event_fd;
}

static void ring_start(kv_ring_t *ring, kv_ring_request_t *request)
{
    simulated_ring_t *simulated = (simulated_ring_t *)ring;
    simulated_disk_t *disk = simulated->disk;
    handle_t *handle = &disk->handles[ring->files[request->file]];
    started_t started = {.request = request,
        .handle = handle,
        .inode = handle->inode,
        .endings = disk->endings,
        .reason = request->kind == KV_RING_WRITE ? ask(disk, SIMULATED_WRITE) : 0};
    if (request->kind == KV_RING_WRITE) {
        KV_CHECK(request->moved == 0);
        if (!aligned(handle, request->buffer, request->bytes, request->offset)) {
            started.reason = -EINVAL;
        }
        uint32_t change =
            begin_change(handle->inode, request->buffer, request->bytes, request->offset);
        started.data = handle->inode->changes[change].data;
    }
    simulated->started[simulated->count++] = started;
    uint64_t one = 1;
    KV_CHECK(write(simulated->event_fd, &one, sizeof one) == sizeof one);
}

static void ring_kick(kv_ring_t *ring)
{
    (void)ring; /* a started operation is under way already */
}

static int64_t perform_write(simulated_disk_t *disk, const started_t *started)
{
    change_t *change = started->inode->changes;
    while (change->data != started->data) {
        change++;
    }
    if (started->reason < 0) {
        fail_change(disk, started->inode, change);
        return started->reason;
    }
    end_change(disk, started->inode, change);
    return (int64_t)started->request->bytes;
}

static int64_t perform(simulated_disk_t *disk, const started_t *started)
{
    kv_ring_request_t *request = started->request;
    int reason;
    switch (request->kind) {
    case KV_RING_READ:
        reason = ask(disk, SIMULATED_READ);
        return reason < 0 ? reason
                          : read_bytes(started->handle, request->buffer + request->moved,
                                request->bytes - request->moved, request->offset + request->moved);
    case KV_RING_WRITE:
        return perform_write(disk, started);
    case KV_RING_SYNC:
        reason = ask(disk, SIMULATED_SYNC);
        if (reason == 0) {
            sync_inode(started->inode, started->endings);
        }
        return reason;
    }
    return -EINVAL;
}

static kv_ring_request_t *ring_reap(kv_ring_t *ring)
{
    simulated_ring_t *simulated = (simulated_ring_t *)ring;
    if (simulated->count == 0) {
        uint64_t value;
        ssize_t ignored = read(simulated->event_fd, &value, sizeof value);
        (void)ignored; /* EAGAIN: it was not readable */
        return NULL;
    }
    uint32_t which = choose(&simulated->disk->random, 2 * simulated->count);
    if (which >= simulated->count || simulated->disk->held) {
        return NULL; /* not yet */
    }
    started_t started = simulated->started[which];
    simulated->started[which] = simulated->started[--simulated->count];
    started.request->result = perform(simulated->disk, &started);
    return started.request;
}

static void ring_file_changed(kv_ring_t *ring, int file)
{
    (void)ring;
    (void)file;
}

static void ring_close(kv_ring_t *ring)
{
    close(((simulated_ring_t *)ring)->event_fd);
    free(ring);
}

static const kv_ring_ops_t RING_OPS = {
    .name = "simulated",
    .fd = ring_fd,
    .start = ring_start,
    .kick = ring_kick,
    .reap = ring_reap,
    .file_changed = ring_file_changed,
    .close = ring_close,
};

static kv_status_t simulated_open_ring(kv_files_t *files, kvist_io_t io, const kv_region_t *region,
    kv_ring_t **ring_out, kv_error_t *error)
{
    (void)io;
    (void)region;
    int event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (event_fd < 0) {
        return kv_fail_errno(error, errno, "cannot make an eventfd");
    }
    simulated_ring_t *ring = kv_allocate(sizeof *ring);
    ring->ring.ops = &RING_OPS;
    ring->disk = disk_of(files);
    ring->event_fd = event_fd;
    *ring_out = &ring->ring;
    return KV_OK;
}

static const kv_files_ops_t FILES_OPS = {
    .open = simulated_open,
    .close = simulated_close,
    .read = simulated_read,
    .write = simulated_write,
    .size = simulated_size,
    .mode = simulated_mode,
    .allocate = simulated_allocate,
    .truncate = simulated_truncate,
    .sync = simulated_sync,
    .lock = simulated_lock,
    .space = simulated_space,
    .make_folder = simulated_make_folder,
    .sync_folder = simulated_sync_folder,
    .list = simulated_list,
    .remove = simulated_remove,
    .open_ring = simulated_open_ring,
};

/* ---- the disk ---- */

simulated_disk_t *simulated_disk_create(uint64_t seed)
{
    simulated_disk_t *disk = kv_allocate(sizeof *disk);
    disk->files.ops = &FILES_OPS;
    disk->random = seed;
    inode_t *root = add_inode(disk, true);
    name_t *name = add_name(disk, "/disk");
    name->now = name->durable = root;
    return disk;
}

void simulated_disk_destroy(simulated_disk_t *disk)
{
    for (uint32_t i = 0; i < disk->inode_count; i++) {
        inode_t *inode = disk->inodes[i];
        for (uint32_t change = 0; change < inode->change_count; change++) {
            free(inode->changes[change].data);
        }
        free(inode->changes);
        free(inode->now);
        free(inode->durable);
        free(inode);
    }
    free(disk->inodes);
    free(disk->names);
    free(disk->namings);
    free(disk);
}

kv_files_t *simulated_disk_files(simulated_disk_t *disk)
{
    return &disk->files;
}

int simulated_disk_rename(simulated_disk_t *disk, const char *from, const char *to)
{
    inode_t *inode = find_inode(disk, from);
    if (inode == NULL) {
        return -ENOENT;
    }
    set_name(disk, to, inode, ++disk->naming_last);
    set_name(disk, from, NULL, disk->naming_last);
    return 0;
}

void simulated_disk_watch(simulated_disk_t *disk, simulated_watch_t watch)
{
    disk->watch = watch;
}

void simulated_disk_hold(simulated_disk_t *disk, bool held)
{
    disk->held = held;
}

/* ---- power loss ---- */

/* How the changes of one file fare. */
typedef enum {
    LOSE_ALL,
    KEEP_ALL,
    KEEP_SOME,         /* whole writes, in any order */
    KEEP_SECTORS,      /* sectors, in any order */
    KEEP_UP_TO_A_TEAR, /* in order, the last one torn */
    LOSS_COUNT,
} loss_t;

/* Is the sector kept? `left`: sectors until the tear. */
static bool keeps(loss_t loss, bool keep_write, uint32_t *left, uint64_t *random)
{
    switch (loss) {
    case LOSE_ALL:
        return false;
    case KEEP_ALL:
        return true;
    case KEEP_SOME:
        return keep_write;
    case KEEP_SECTORS:
        return choose(random, 2) == 0;
    default:
        return *left > 0 && (*left)-- > 0;
    }
}

static void keep_changes(const inode_t *inode, inode_t *left, uint64_t *random)
{
    loss_t loss = choose(random, LOSS_COUNT);
    uint32_t sector_count = 0;
    for (uint32_t i = 0; i < inode->change_count; i++) {
        sector_count += (uint32_t)(inode->changes[i].bytes / SECTOR_BYTES + 1);
    }
    uint32_t until_tear = choose(random, sector_count + 1);
    for (uint32_t i = 0; i < inode->change_count; i++) {
        const change_t *change = &inode->changes[i];
        bool keep_write = choose(random, 2) == 0;
        size_t bytes;
        for (size_t at = 0; at < change->bytes; at += bytes) {
            bytes = sector_bytes(change, at);
            if (keeps(loss, keep_write, &until_tear, random)) {
                memcpy(left->durable + change->offset + at, change->data + at, bytes);
            }
        }
    }
}

static inode_t *inode_after_loss(simulated_disk_t *disk, const inode_t *inode, uint64_t *random)
{
    inode_t *left = add_inode(disk, inode->is_folder);
    if (inode->capacity == 0) {
        return left;
    }
    ensure_capacity(left, inode->capacity);
    memcpy(left->durable, inode->durable, inode->capacity);
    keep_changes(inode, left, random);
    left->durable_bytes = choose(random, 2) == 0 ? inode->durable_bytes : inode->now_bytes;
    memset(left->durable + left->durable_bytes, 0, left->capacity - left->durable_bytes);
    memcpy(left->now, left->durable, left->capacity);
    left->now_bytes = left->durable_bytes;
    return left;
}

/* The inode of each name: the durable one, or one of those that came after it. */
static inode_t **choose_names(const simulated_disk_t *disk, uint64_t *random)
{
    inode_t **chosen = kv_allocate_array(disk->name_count, sizeof(inode_t *));
    for (uint32_t i = 0; i < disk->name_count; i++) {
        chosen[i] = disk->names[i].durable;
    }
    bool in_order = choose(random, 2) == 0, keep = true;
    for (uint32_t i = 0; i < disk->naming_count; i++) {
        const naming_t *naming = &disk->namings[i];
        bool goes_on = i > 0 && naming->number == naming[-1].number;
        if (!goes_on && (keep || !in_order)) {
            keep = choose(random, in_order ? disk->naming_count + 1 : 2) > 0;
        }
        if (keep) {
            chosen[naming->name] = naming->inode;
        }
    }
    return chosen;
}

simulated_disk_t *simulated_disk_after_loss(const simulated_disk_t *disk, uint64_t seed)
{
    uint64_t random = seed;
    simulated_disk_t *left = kv_allocate(sizeof *left);
    left->files.ops = &FILES_OPS;
    left->random = kv_test_random(&random);
    inode_t **chosen = choose_names(disk, &random);
    for (uint32_t i = 0; i < disk->name_count; i++) { /* folders come before what lies in them */
        const char *path = disk->names[i].path;
        if (chosen[i] != NULL && (i == 0 || in_a_folder(left, path))) {
            inode_t *copy = inode_after_loss(left, chosen[i], &random);
            name_t *kept = add_name(left, path);
            kept->now = kept->durable = copy;
        }
    }
    free(chosen);
    return left;
}
