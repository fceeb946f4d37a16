#include "runtime/recorder.h"

#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "base/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Every line begins with it: whether a file is one of ours, of such blocks, is seen at once. */
#define LINE_BEGIN "{\"block_tokens\": %" PRIu32 ", "

enum {
    BEGIN_BYTES = 48,
    FIELDS_BYTES = 192,
    ID_BYTES = 21, /* 19 digits, comma, space */
    LOCK_TRIES = 2000,
    LOCK_PAUSE_NS = 1000000,
};

struct kv_recorder {
    int file;
    uint64_t bytes_max;
    uint32_t block_tokens;
    char *path;
    kv_workers_t *worker;
    bool ended; /* the worker's: full, or failed */
};

/* What waits for the worker. */
typedef struct {
    kv_recorder_t *recorder;
    kv_recorded_t request;
    uint32_t tokens[];
} job_t;

static kv_metric_t *written_metric(void)
{
    return kv_metric_counter(
        "kvist_trace_lines_total", "", "requests that were recorded (store.trace_file)");
}

static kv_metric_t *dropped_metric(void)
{
    return kv_metric_counter("kvist_trace_lines_dropped_total", "",
        "requests that were not recorded: too many waited, or the file is full or failed");
}

/* ---- the line ---- */

/* 63 bits: what JSON readers take for a whole number. */
static uint64_t id_of(const kvist_key_t *key)
{
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) {
        bits = bits << 8 | key->bytes[i];
    }
    return bits >> 1;
}

/* Release with free(). */
static char *make_line(const job_t *job, size_t *bytes_out)
{
    const kv_recorded_t *request = &job->request;
    uint32_t block_tokens = job->recorder->block_tokens;
    uint32_t block_count = request->prompt_count / block_tokens;
    kvist_key_t *keys = kv_allocate_array(block_count + 1, sizeof *keys);
    kvist_keys(&request->name_space, job->tokens, NULL, request->prompt_count, block_tokens, keys);
    size_t capacity = FIELDS_BYTES + (size_t)block_count * ID_BYTES;
    char *line = kv_allocate(capacity);
    size_t bytes = (size_t)snprintf(line, capacity,
        LINE_BEGIN "\"timestamp\": %" PRIu64 ", \"input_length\": %" PRIu32
                   ", \"output_length\": %" PRIu32 ", \"hash_ids\": [",
        block_tokens, request->arrived_unix_ms, request->prompt_count, request->answer_count);
    for (uint32_t i = 0; i < block_count; i++) {
        bytes += (size_t)snprintf(
            line + bytes, capacity - bytes, "%s%" PRIu64, i > 0 ? ", " : "", id_of(&keys[i]));
    }
    bytes += (size_t)snprintf(line + bytes, capacity - bytes, "]}\n");
    free(keys);
    *bytes_out = bytes;
    return line;
}

/* ---- the file ---- */

/* Others hold it for one write; who was stopped while holding it costs lines, not the node. */
static bool lock(int file)
{
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(file, LOCK_EX | LOCK_NB) == 0) {
            return true;
        }
        nanosleep(&(struct timespec){.tv_nsec = LOCK_PAUSE_NS}, NULL);
    }
    return false;
}

/* Where the last whole line ends; -1: it cannot be read. */
static off_t end_of_lines(int file, off_t end)
{
    char chunk[4096];
    while (end > 0) {
        size_t wanted = end < (off_t)sizeof chunk ? (size_t)end : sizeof chunk;
        if (pread(file, chunk, wanted, end - (off_t)wanted) != (ssize_t)wanted) {
            return -1;
        }
        for (size_t i = wanted; i > 0; i--) {
            if (chunk[i - 1] == '\n') {
                return end - (off_t)(wanted - i);
            }
        }
        end -= (off_t)wanted;
    }
    return 0;
}

/* With the lock. Afterwards the file ends with a whole line, or recording has ended. */
static bool append(kv_recorder_t *recorder, const char *line, size_t bytes)
{
    struct stat facts;
    off_t end = -1;
    errno = EIO; /* of a read that is short */
    if (fstat(recorder->file, &facts) == 0) {
        end = end_of_lines(recorder->file, facts.st_size);
    }
    if (end >= 0 && (uint64_t)end + bytes > recorder->bytes_max) {
        recorder->ended = true;
        kv_log_warn("runtime",
            "%s has reached store.trace_bytes (%" PRIu64 "): requests are no longer recorded",
            recorder->path, recorder->bytes_max);
        return false;
    }
    if (end >= 0 && (end == facts.st_size || ftruncate(recorder->file, end) == 0)) {
        ssize_t written = write(recorder->file, line, bytes);
        if (written == (ssize_t)bytes) {
            return true;
        }
        int reason = written >= 0 ? ENOSPC : errno;
        if (written > 0 && ftruncate(recorder->file, end) != 0) {
            reason = errno; /* the next recorder cuts it */
        }
        errno = reason;
    }
    recorder->ended = true;
    kv_log_warn("runtime", "%s cannot be written (%s): requests are no longer recorded",
        recorder->path, strerror(errno));
    return false;
}

static void run(void *argument)
{
    job_t *job = argument;
    kv_recorder_t *recorder = job->recorder;
    bool done = false;
    if (!recorder->ended) {
        size_t bytes;
        char *line = make_line(job, &bytes);
        if (lock(recorder->file)) {
            done = append(recorder, line, bytes);
            flock(recorder->file, LOCK_UN);
        }
        free(line);
    }
    kv_metric_add(done ? written_metric() : dropped_metric(), 1);
    free(job);
}

/* ---- life ---- */

/* A file of something else is left alone. */
static kv_status_t check_file(int file, const char *path, uint32_t block_tokens, kv_error_t *error)
{
    struct stat facts;
    char wanted[BEGIN_BYTES], found[BEGIN_BYTES];
    if (fstat(file, &facts) != 0) {
        return kv_fail_errno(error, errno, "store.trace_file: %s cannot be looked at", path);
    }
    if (!S_ISREG(facts.st_mode)) {
        return kv_fail(error, KV_INVALID, "store.trace_file: %s is no plain file", path);
    }
    int bytes = snprintf(wanted, sizeof wanted, LINE_BEGIN, block_tokens);
    ssize_t read_bytes = pread(file, found, (size_t)bytes, 0);
    if (read_bytes < 0) {
        return kv_fail_errno(error, errno, "store.trace_file: %s cannot be read", path);
    }
    if (memcmp(wanted, found, (size_t)read_bytes) != 0) {
        return kv_fail(error, KV_INVALID,
            "store.trace_file: %s is not a node's trace of blocks of %" PRIu32
            " tokens: name another file",
            path, block_tokens);
    }
    return KV_OK;
}

kv_status_t kv_recorder_open(const char *path, uint64_t bytes_max, uint32_t block_tokens,
    kv_recorder_t **recorder_out, kv_error_t *error)
{
    /* Not to wait for whoever reads a pipe. */
    int file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0600);
    if (file < 0) {
        return kv_fail_errno(error, errno, "store.trace_file: %s cannot be opened", path);
    }
    kv_status_t status = check_file(file, path, block_tokens, error);
    if (status != KV_OK) {
        close(file);
        return status;
    }
    kv_recorder_t *recorder = kv_allocate(sizeof *recorder);
    *recorder = (kv_recorder_t){
        .file = file,
        .bytes_max = bytes_max,
        .block_tokens = block_tokens,
        .path = kv_duplicate_string(path),
        .worker = kv_workers_create("recorder", 1, KV_RECORDER_WAITING_MAX),
    };
    kv_log_info("runtime", "recording requests in %s", path);
    *recorder_out = recorder;
    return KV_OK;
}

void kv_recorder_add(kv_recorder_t *recorder, const kv_recorded_t *request)
{
    if (recorder == NULL) {
        return;
    }
    job_t *job = kv_allocate(sizeof *job + request->prompt_count * sizeof *job->tokens);
    job->recorder = recorder;
    job->request = *request;
    job->request.tokens = NULL;
    memcpy(job->tokens, request->tokens, request->prompt_count * sizeof *job->tokens);
    if (kv_workers_submit(recorder->worker, (kv_job_t){run, job}) != KV_OK) {
        kv_metric_add(dropped_metric(), 1);
        free(job);
    }
}

void kv_recorder_close(kv_recorder_t *recorder)
{
    if (recorder == NULL) {
        return;
    }
    kv_workers_destroy(recorder->worker);
    close(recorder->file);
    free(recorder->path);
    free(recorder);
}
