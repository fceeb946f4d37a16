/* RocksDB on a disk that is full, or that fails. This program stands between it and libc: from some
 * byte on, every write fails with ENOSPC, or every sync with EIO, until that is over. From then on
 * writes are errors (KV_IO) until the index is opened again, nothing ends the process, not even
 * opening, and what was acknowledged as durable is there afterwards. */
#include "harness.h"

#include "base/bytes.h"
#include "kvstore/index/index.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>

enum {
    BEFORE = 40, /* batches */
    DURING = 120,
    SYNC_ONE_IN = 5,
    VALUE_BYTES = 180,
    LOG_BYTES = 8 << 10, /* the log changes several times */
};

/* ---- the disk ---- */

static atomic_bool limited;
static atomic_llong bytes_left;

/* Whether there is room for so much more; messages of the test always have. */
static bool has_room(int fd, size_t bytes)
{
    if (!atomic_load(&limited) || fd <= STDERR_FILENO) {
        return true;
    }
    if (atomic_fetch_sub(&bytes_left, (long long)bytes) >= (long long)bytes) {
        return true;
    }
    atomic_store(&bytes_left, 0);
    errno = ENOSPC;
    return false;
}

static atomic_bool syncs_fail;

static bool syncs(int fd)
{
    errno = EIO;
    return !atomic_load(&syncs_fail) || fd <= STDERR_FILENO;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *buffer, size_t bytes)
{
    return has_room(fd, bytes) ? NEXT(write)(fd, buffer, bytes) : -1;
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t offset)
{
    return has_room(fd, bytes) ? NEXT(pwrite)(fd, buffer, bytes, offset) : -1;
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off64_t offset)
{
    return has_room(fd, bytes) ? NEXT(pwrite64)(fd, buffer, bytes, offset) : -1;
}

int fsync(int fd)
{
    return syncs(fd) ? NEXT(fsync)(fd) : -1;
}

int fdatasync(int fd)
{
    return syncs(fd) ? NEXT(fdatasync)(fd) : -1;
}

static void fill_up(long long bytes)
{
    atomic_store(&bytes_left, bytes);
    atomic_store(&limited, true);
}

static void make_room(void)
{
    atomic_store(&limited, false);
}

/* ---- the index ---- */

static kv_status_t write_batch(kv_index_t *index, uint32_t number, bool sync)
{
    kv_index_batch_t batch = {0};
    uint8_t name[5] = {'k'}, value[VALUE_BYTES] = {0};
    kv_put_u32(name + 1, number);
    kv_put_u32(value, number);
    kv_index_batch_put(&batch, name, sizeof name, value, sizeof value);
    kv_error_t error;
    kv_status_t status = index->ops->write(index, &batch, sync, &error);
    kv_index_batch_release(&batch);
    return status;
}

static kv_status_t open_index(const char *path, kv_index_t **index_out)
{
    bool made;
    kv_error_t error;
    kv_status_t status = kv_index_rocksdb_open(path, LOG_BYTES, index_out, &made, &error);
    if (status != KV_OK) {
        print_message("%s\n", error.text);
    }
    return status;
}

typedef struct {
    uint32_t
        acknowledged; /* the last batch that is durable, with all before it that were written */
    uint32_t failed;
    bool written[BEFORE + DURING + 1];
} run_t;

static void write_some(kv_index_t *index, run_t *run, uint32_t first, uint32_t count)
{
    for (uint32_t number = first; number < first + count; number++) {
        bool sync = number % SYNC_ONE_IN == 0;
        kv_status_t status = write_batch(index, number, sync);
        assert_true(status == KV_OK || status == KV_IO);
        run->written[number] = status == KV_OK;
        run->failed += status != KV_OK;
        if (sync && status == KV_OK) {
            run->acknowledged = number;
        }
    }
}

static void note_entry(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
    bool *found = context;
    uint32_t number = kv_get_u32(key + 1);
    assert_int_equal(key_bytes, 5);
    assert_int_equal(value_bytes, VALUE_BYTES);
    assert_true(number <= BEFORE + DURING && kv_get_u32(value) == number);
    found[number] = true;
}

static void check_left(const char *path, const run_t *run)
{
    bool found[BEFORE + DURING + 1] = {false};
    kv_index_t *index;
    kv_error_t error;
    assert_int_equal(open_index(path, &index), KV_OK);
    assert_int_equal(kv_index_read_all(index, 'k', note_entry, found, &error), KV_OK);
    for (uint32_t number = 0; number <= run->acknowledged; number++) {
        assert_true(found[number] || !run->written[number]);
    }
    index->ops->close(index);
}

/* After an error an index takes nothing until it was opened again. */
static void check_no_more(kv_index_t *index)
{
    assert_int_equal(write_batch(index, BEFORE + DURING, true), KV_IO);
}

static void fill_while_it_is_written(long long bytes, bool room_before_close, uint32_t number)
{
    char path[600];
    snprintf(path, sizeof path, "%s/index-%u", kv_test_folder(), number);
    run_t run = {0};
    kv_index_t *index;
    assert_int_equal(open_index(path, &index), KV_OK);
    write_some(index, &run, 0, BEFORE);
    assert_int_equal(run.failed, 0);
    fill_up(bytes);
    write_some(index, &run, BEFORE, DURING);
    assert_true(run.failed > 0);
    if (room_before_close) {
        make_room();
        check_no_more(index);
    }
    index->ops->close(index);
    /* Opening may need to write; where it cannot, that is an error. */
    kv_index_t *again = NULL;
    if (open_index(path, &again) == KV_OK) {
        again->ops->close(again);
    }
    make_room();
    check_left(path, &run);
}

static void a_full_disk_is_an_error(void **state)
{
    (void)state;
    static const long long LEFT[] = {0, 1, 100, 5000, 20000};
    uint32_t number = 0;
    for (size_t i = 0; i < sizeof LEFT / sizeof LEFT[0]; i++) {
        fill_while_it_is_written(LEFT[i], true, number++);
        fill_while_it_is_written(LEFT[i], false, number++);
    }
}

static void a_failing_sync_is_an_error(void **state)
{
    (void)state;
    char path[600];
    snprintf(path, sizeof path, "%s/index-sync", kv_test_folder());
    run_t run = {0};
    kv_index_t *index;
    assert_int_equal(open_index(path, &index), KV_OK);
    write_some(index, &run, 0, BEFORE);
    atomic_store(&syncs_fail, true);
    write_some(index, &run, BEFORE, DURING);
    assert_true(run.failed > 0);
    atomic_store(&syncs_fail, false);
    check_no_more(index);
    index->ops->close(index);
    check_left(path, &run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_is_an_error),
        cmocka_unit_test(a_failing_sync_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
