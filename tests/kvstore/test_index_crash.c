/* RocksDB through power losses. Its C API takes no file system of ours, so this program stands
 * between it and libc: what it does to the files of its folder is recorded, then played to a
 * simulated disk, operation by operation; what a power loss leaves at each of them is laid out in a
 * fresh folder and opened.
 *
 * Each time: it opens, or is reported KV_CORRUPT (the store then rebuilds it); what it holds is
 * what the first m batches made, for one m; m is not before the last batch that was acknowledged as
 * synced. */
#include "harness.h"

#include "simulated_disk.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

enum {
    BATCHES = 160,
    CHANGES = 6, /* of one batch */
    KEYS = 96,
    VALUE_BYTES = 180,
    SYNC_ONE_IN = 5,
    REOPEN_AT = 90,
    DESCRIPTORS_MAX = 1024,
    LOG_BYTES = 24 << 10, /* the log changes, and its buffer is flushed, several times */
};

/* ---- the recording ---- */

typedef enum {
    OPENED, /* and made, where it was absent */
    CLOSED,
    WRITTEN,
    RESIZED,
    SYNCED,
    FOLDER_SYNCED,
    FOLDER_MADE,
    RENAMED,
    REMOVED,
    BEGUN, /* a batch is about to be written */
    ACKNOWLEDGED,
} kind_t;

typedef struct {
    kind_t kind;
    int file;
    char path[64], new_path[64]; /* on the simulated disk */
    uint64_t offset;             /* or the size */
    char *data;
    size_t bytes;
    uint32_t batch;
} operation_t;

static struct {
    pthread_mutex_t lock; /* over each operation and its record: the order is the true one */
    char folder[512];
    bool on, syncs_skipped;
    operation_t *operations;
    size_t count, capacity;
    char paths[DESCRIPTORS_MAX][64]; /* of recorded descriptors; "": others */
    bool folders[DESCRIPTORS_MAX];
} recording = {.lock = PTHREAD_MUTEX_INITIALIZER};

static operation_t *record(kind_t kind, int file)
{
    if (recording.count == recording.capacity) {
        recording.capacity = recording.capacity > 0 ? 2 * recording.capacity : 256;
        recording.operations =
            realloc(recording.operations, recording.capacity * sizeof *recording.operations);
    }
    operation_t *operation = &recording.operations[recording.count++];
    *operation = (operation_t){.kind = kind, .file = file};
    return operation;
}

/* The path on the simulated disk; false: none of ours. */
static bool translate(const char *path, char path_out[64])
{
    size_t length = strlen(recording.folder);
    if (!recording.on || length == 0 || strncmp(path, recording.folder, length) != 0) {
        return false;
    }
    snprintf(path_out, 64, "/disk%s", path + length);
    return true;
}

static bool is_recorded(int fd)
{
    return recording.on && fd >= 0 && fd < DESCRIPTORS_MAX && recording.paths[fd][0] != '\0';
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int open_recorded(const char *path, int flags, mode_t mode)
{
    pthread_mutex_lock(&recording.lock);
    int fd = NEXT(open)(path, flags, mode);
    int reason = errno;
    char ours[64];
    if (fd >= 0 && translate(path, ours)) {
        KV_CHECK(fd < DESCRIPTORS_MAX);
        snprintf(recording.paths[fd], 64, "%s", ours);
        recording.folders[fd] = (flags & O_DIRECTORY) != 0;
        struct stat status;
        if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
            recording.folders[fd] = true;
        } else {
            operation_t *opened = record(OPENED, fd);
            snprintf(opened->path, 64, "%s", ours);
            if ((flags & O_TRUNC) != 0) {
                record(RESIZED, fd)->offset = 0;
            }
        }
    }
    pthread_mutex_unlock(&recording.lock);
    errno = reason;
    return fd;
}

/* What stands in for libc's: the same declarations, so the same symbols. */
int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_recorded(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_recorded(path, flags, mode);
}

int close(int fd)
{
    pthread_mutex_lock(&recording.lock);
    if (is_recorded(fd)) {
        if (!recording.folders[fd]) {
            record(CLOSED, fd);
        }
        recording.paths[fd][0] = '\0';
    }
    int result = NEXT(close)(fd);
    pthread_mutex_unlock(&recording.lock);
    return result;
}

static void record_write(int fd, const void *buffer, size_t bytes, off_t offset)
{
    operation_t *operation = record(WRITTEN, fd);
    operation->offset = (uint64_t)offset;
    operation->bytes = bytes;
    operation->data = malloc(bytes);
    memcpy(operation->data, buffer, bytes);
}

ssize_t write(int fd, const void *buffer, size_t bytes)
{
    pthread_mutex_lock(&recording.lock);
    ssize_t put = NEXT(write)(fd, buffer, bytes);
    if (put > 0 && is_recorded(fd)) {
        record_write(fd, buffer, (size_t)put, lseek(fd, 0, SEEK_CUR) - put);
    }
    pthread_mutex_unlock(&recording.lock);
    return put;
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    pthread_mutex_lock(&recording.lock);
    ssize_t put = NEXT(pwrite)(fd, buffer, bytes, offset);
    if (put > 0 && is_recorded(fd)) {
        record_write(fd, buffer, (size_t)put, offset);
    }
    pthread_mutex_unlock(&recording.lock);
    return put;
}

/* What is only laid out to be looked at needs no barrier. */
static int sync_recorded(int fd)
{
    pthread_mutex_lock(&recording.lock);
    if (is_recorded(fd)) {
        bool folder = recording.folders[fd];
        operation_t *operation = record(folder ? FOLDER_SYNCED : SYNCED, fd);
        snprintf(operation->path, 64, "%s", recording.paths[fd]);
    }
    pthread_mutex_unlock(&recording.lock);
    return 0;
}

int fsync(int fd)
{
    return sync_recorded(fd);
}

int fdatasync(int fd)
{
    return sync_recorded(fd);
}

int ftruncate(int fd, off_t bytes)
{
    pthread_mutex_lock(&recording.lock);
    int result = NEXT(ftruncate)(fd, bytes);
    if (result == 0 && is_recorded(fd)) {
        record(RESIZED, fd)->offset = (uint64_t)bytes;
    }
    pthread_mutex_unlock(&recording.lock);
    return result;
}

int rename(const char *from, const char *to)
{
    pthread_mutex_lock(&recording.lock);
    int result = NEXT(rename)(from, to);
    char ours[64], ours_to[64];
    if (result == 0 && translate(from, ours) && translate(to, ours_to)) {
        operation_t *operation = record(RENAMED, -1);
        snprintf(operation->path, 64, "%s", ours);
        snprintf(operation->new_path, 64, "%s", ours_to);
    }
    pthread_mutex_unlock(&recording.lock);
    return result;
}

static int change_name(kind_t kind, const char *path, int result)
{
    char ours[64];
    if (result == 0 && translate(path, ours)) {
        snprintf(record(kind, -1)->path, 64, "%s", ours);
    }
    return result;
}

int unlink(const char *path)
{
    pthread_mutex_lock(&recording.lock);
    int result = change_name(REMOVED, path, NEXT(unlink)(path));
    pthread_mutex_unlock(&recording.lock);
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    pthread_mutex_lock(&recording.lock);
    int result = change_name(FOLDER_MADE, path, NEXT(mkdir)(path, mode));
    pthread_mutex_unlock(&recording.lock);
    return result;
}

/* ---- the workload and what it makes ---- */

/* Of batch n (from 1): change j puts value (n, j) at a key, or deletes the key (0). */
static uint32_t change_of(uint32_t batch, uint32_t change, uint32_t *value_out)
{
    uint64_t state = (uint64_t)batch * CHANGES + change;
    uint64_t random = kv_test_random(&state);
    *value_out = random % 4 == 0 ? 0 : batch * CHANGES + change;
    return (uint32_t)(random >> 8) % KEYS;
}

static void fill_value(uint32_t value, uint8_t bytes[VALUE_BYTES])
{
    uint64_t state = value;
    kv_put_u32(bytes, value);
    for (size_t i = 4; i < VALUE_BYTES; i++) {
        bytes[i] = (uint8_t)kv_test_random(&state);
    }
}

static kv_status_t write_batch(kv_index_t *index, uint32_t number, bool sync)
{
    kv_index_batch_t batch = {0};
    uint8_t counter[4], bytes[VALUE_BYTES];
    kv_put_u32(counter, number);
    kv_index_batch_put(&batch, "n", 1, counter, sizeof counter);
    for (uint32_t change = 0; change < CHANGES; change++) {
        uint32_t value, key = change_of(number, change, &value);
        uint8_t name[3] = {'k', (uint8_t)key, (uint8_t)(key >> 8)};
        if (value == 0) {
            kv_index_batch_delete(&batch, name, sizeof name);
        } else {
            fill_value(value, bytes);
            kv_index_batch_put(&batch, name, sizeof name, bytes, sizeof bytes);
        }
    }
    kv_error_t error;
    kv_status_t status = index->ops->write(index, &batch, sync, &error);
    kv_index_batch_release(&batch);
    return status;
}

static void note_batch(kind_t kind, uint32_t batch)
{
    pthread_mutex_lock(&recording.lock);
    record(kind, -1)->batch = batch;
    pthread_mutex_unlock(&recording.lock);
}

static kv_index_t *open_index(const char *path)
{
    kv_index_t *index;
    bool made;
    kv_error_t error;
    assert_int_equal(kv_index_rocksdb_open(path, LOG_BYTES, &index, &made, &error), KV_OK);
    return index;
}

static void record_a_run(void)
{
    char path[600];
    snprintf(recording.folder, sizeof recording.folder, "%s", kv_test_folder());
    snprintf(path, sizeof path, "%s/index", recording.folder);
    recording.on = true;
    kv_index_t *index = open_index(path);
    for (uint32_t number = 1; number <= BATCHES; number++) {
        bool sync = number % SYNC_ONE_IN == 0;
        note_batch(BEGUN, number);
        assert_int_equal(write_batch(index, number, sync), KV_OK);
        if (sync) {
            note_batch(ACKNOWLEDGED, number);
        }
        if (number == REOPEN_AT) {
            index->ops->close(index);
            index = open_index(path);
        }
    }
    index->ops->close(index);
    recording.on = false;
}

/* ---- what a power loss leaves ---- */

typedef struct {
    uint32_t counter, values[KEYS];
    bool wrong;
} content_t;

static void note_entry(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
    content_t *content = context;
    uint8_t expected[VALUE_BYTES];
    if (key_bytes == 1 && value_bytes == 4) {
        content->counter = kv_get_u32(value);
        return;
    }
    uint32_t number = kv_get_u32(value);
    fill_value(number, expected);
    bool good = key_bytes == 3 && kv_get_u16(key + 1) < KEYS && value_bytes == VALUE_BYTES &&
                memcmp(value, expected, VALUE_BYTES) == 0;
    if (good) {
        content->values[kv_get_u16(key + 1)] = number;
    }
    content->wrong = content->wrong || !good;
}

static void check_content(const content_t *content, uint32_t acknowledged, uint32_t begun)
{
    uint32_t expected[KEYS] = {0};
    for (uint32_t number = 1; number <= content->counter; number++) {
        for (uint32_t change = 0; change < CHANGES; change++) {
            uint32_t value, key = change_of(number, change, &value);
            expected[key] = value;
        }
    }
    assert_false(content->wrong);
    assert_in_range(content->counter, acknowledged, begun);
    assert_memory_equal(content->values, expected, sizeof expected);
}

typedef struct {
    kv_files_t *from;
    const char *folder;
} layout_t;

static void lay_out_file(void *context, const char *name)
{
    const layout_t *layout = context;
    char path[700];
    snprintf(path, sizeof path, "/disk/index/%s", name);
    int file = layout->from->ops->open(layout->from, path, KV_FILES_READ);
    size_t bytes = (size_t)layout->from->ops->size(layout->from, file);
    char *data = malloc(bytes + 1);
    assert_int_equal(layout->from->ops->read(layout->from, file, data, bytes, 0), bytes);
    layout->from->ops->close(layout->from, file);
    snprintf(path, sizeof path, "%s/%s", layout->folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), bytes);
    close(fd);
    free(data);
}

static void remove_folder(const char *path)
{
    DIR *folder = opendir(path);
    struct dirent *entry;
    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        char inside[1200];
        snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name);
        unlink(inside);
    }
    if (folder != NULL) {
        closedir(folder);
        rmdir(path);
    }
}

/* false: the index is reported as damaged. */
static bool check_left(simulated_disk_t *left, uint32_t acknowledged, uint32_t begun)
{
    char path[600];
    snprintf(path, sizeof path, "%s/left", kv_test_folder());
    remove_folder(path);
    layout_t layout = {simulated_disk_files(left), path};
    if (mkdir(path, 0700) != 0 ||
        layout.from->ops->list(layout.from, "/disk/index", lay_out_file, &layout) != 0) {
        assert_int_equal(acknowledged, 0); /* not even its folder is there */
        return true;
    }
    kv_index_t *index;
    bool made;
    kv_error_t error = {0};
    kv_status_t status = kv_index_rocksdb_open(path, LOG_BYTES, &index, &made, &error);
    if (status == KV_OK) {
        content_t content = {0};
        status = kv_index_read_all(index, 'n', note_entry, &content, &error);
        if (status == KV_OK) {
            status = kv_index_read_all(index, 'k', note_entry, &content, &error);
        }
        if (status == KV_OK) {
            check_content(&content, acknowledged, begun);
            assert_int_equal(write_batch(index, content.counter + 1, true), KV_OK);
        }
        index->ops->close(index);
    }
    if (status != KV_OK && status != KV_CORRUPT) {
        print_message("%s\n", error.text);
    }
    assert_true(status == KV_OK || status == KV_CORRUPT);
    return status == KV_OK;
}

static void play(simulated_disk_t *disk, const operation_t *operation, int handles[])
{
    kv_files_t *files = simulated_disk_files(disk);
    switch (operation->kind) {
    case OPENED:
        handles[operation->file] =
            files->ops->open(files, operation->path, KV_FILES_WRITE | KV_FILES_CREATE);
        assert_true(handles[operation->file] >= 0);
        break;
    case CLOSED:
        files->ops->close(files, handles[operation->file]);
        break;
    case WRITTEN:
        files->ops->write(
            files, handles[operation->file], operation->data, operation->bytes, operation->offset);
        break;
    case RESIZED:
        files->ops->allocate(files, handles[operation->file], operation->offset);
        break;
    case SYNCED:
        files->ops->sync(files, handles[operation->file]);
        break;
    case FOLDER_SYNCED:
        files->ops->sync_folder(files, operation->path);
        break;
    case FOLDER_MADE:
        files->ops->make_folder(files, operation->path);
        files->ops->sync_folder(files, "/disk"); /* the store's, when it made its directory */
        break;
    case RENAMED:
        simulated_disk_rename(disk, operation->path, operation->new_path);
        break;
    case REMOVED:
        files->ops->remove(files, operation->path);
        break;
    default:
        break;
    }
}

static void every_power_loss_leaves_whole_batches(void **state)
{
    (void)state;
    kv_log_setup("index-crash", KV_LOG_ERROR);
    record_a_run();
    simulated_disk_t *disk = simulated_disk_create(1);
    int handles[DESCRIPTORS_MAX];
    uint32_t begun = 0, acknowledged = 0, points = 0, damaged = 0;
    uint32_t losses = kv_test_long() ? 20 : 3; /* ways to lose at each point */
    for (size_t i = 0; i <= recording.count; i++) {
        const operation_t *operation = &recording.operations[i];
        if (i < recording.count && operation->kind == BEGUN) {
            begun = operation->batch;
            continue;
        }
        if (i < recording.count && operation->kind == ACKNOWLEDGED) {
            acknowledged = operation->batch;
            continue;
        }
        for (uint32_t loss = 0; loss < losses; loss++) {
            uint64_t seed = kv_test_seed() + i * 1000 + loss;
            simulated_disk_t *left = simulated_disk_after_loss(disk, seed);
            damaged += !check_left(left, acknowledged, begun);
            simulated_disk_destroy(left);
            points++;
        }
        if (i < recording.count) {
            play(disk, operation, handles);
        }
    }
    simulated_disk_destroy(disk);
    print_message("%zu operations, %u power losses, %u left a damaged index\n", recording.count,
        points, damaged);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_power_loss_leaves_whole_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
