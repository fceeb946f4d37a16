#include "tools/kvist/bench/fio.h"

#include "tools/kvist/program.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OPTION_COUNT_MAX = 24, OPTION_BYTES = KV_FIO_PATH_BYTES + 32, LIMIT_MS = 300000 };

/* A command line in the making. */
typedef struct {
    char texts[OPTION_COUNT_MAX][OPTION_BYTES];
    char *argv[OPTION_COUNT_MAX + 1];
    int count;
} words_t;

__attribute__((format(printf, 2, 3))) static void add(words_t *words, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text = words->texts[words->count];
    vsnprintf(text, OPTION_BYTES, format, arguments);
    va_end(arguments);
    words->argv[words->count++] = text;
    words->argv[words->count] = NULL;
}

static void add_common(words_t *words, const kv_fio_t *fio, size_t block_bytes, uint32_t depth)
{
    add(words, "fio");
    add(words, "--name=kvist");
    add(words, "--output-format=json");
    add(words, "--filename=%s", fio->path);
    add(words, "--size=%llu", (unsigned long long)fio->file_bytes);
    add(words, "--bs=%zu", block_bytes);
    add(words, "--iodepth=%u", depth);
    add(words, "--ioengine=io_uring");
    add(words, "--direct=1");
    add(words, "--registerfiles=1");
    add(words, "--fixedbufs=%d", fio->fixed_buffers);
    add(words, "--thread");
    add(words, "--randseed=%u", fio->run_count + 1);
}

/* Runs it; the rate of the direction ("read" or "write"). */
static kv_status_t run(
    const words_t *words, const char *direction, double *bytes_per_s_out, kv_error_t *error)
{
    kv_program_t program;
    kv_status_t status = kv_program_start(words->argv, &program, error);
    if (status != KV_OK) {
        return status;
    }
    char *text = NULL;
    status = kv_program_hear_all(&program, LIMIT_MS, &text, error);
    int code = kv_program_end(&program, status == KV_OK ? LIMIT_MS : 0);
    if (status != KV_OK) {
        return status;
    }
    json_t *answer = json_loads(text, 0, NULL);
    json_t *job = json_array_get(json_object_get(answer, "jobs"), 0);
    double rate = json_number_value(json_object_get(json_object_get(job, direction), "bw_bytes"));
    json_decref(answer);
    free(text);
    if (code != 0 || rate <= 0) {
        return kv_fail(error, KV_IO, "fio ended with %d and a rate of %.0f bytes/s", code, rate);
    }
    *bytes_per_s_out = rate;
    return KV_OK;
}

static kv_status_t ask_version(kv_fio_t *fio, kv_error_t *error)
{
    char *const argv[] = {"fio", "--version", NULL};
    kv_program_t program;
    char line[KV_PROGRAM_LINE_BYTES];
    kv_status_t status = kv_program_start(argv, &program, error);
    if (status == KV_OK) {
        status = kv_program_hear(&program, LIMIT_MS, line, error);
        kv_program_end(&program, 1000);
    }
    if (status == KV_OK) {
        snprintf(fio->version, sizeof fio->version, "%.*s", (int)sizeof fio->version - 1, line);
    }
    return status;
}

static kv_status_t lay_out(const kv_fio_t *fio, kv_error_t *error)
{
    words_t words = {.count = 0};
    double rate;
    add_common(&words, fio, 1 << 20, 8);
    add(&words, "--rw=write");
    add(&words, "--fallocate=native");
    add(&words, "--end_fsync=1");
    return run(&words, "write", &rate, error);
}

kv_status_t kv_fio_open(
    const char *folder, uint64_t file_bytes, kv_fio_t *fio_out, kv_error_t *error)
{
    kv_fio_t fio = {.file_bytes = file_bytes, .fixed_buffers = true};
    int length = snprintf(fio.path, sizeof fio.path, "%s/fio.data", folder);
    if (length < 0 || length >= (int)sizeof fio.path) {
        return kv_fail(
            error, KV_INVALID, "the folder's name is longer than %d bytes", KV_FIO_PATH_BYTES);
    }
    kv_status_t status = ask_version(&fio, error);
    if (status == KV_OK) {
        status = lay_out(&fio, error);
    }
    if (status == KV_IO) {
        /* Registered buffers are locked memory, of which an ordinary user has little. */
        fio.fixed_buffers = false;
        status = lay_out(&fio, error);
    }
    if (status == KV_OK) {
        *fio_out = fio;
    } else {
        unlink(fio.path);
    }
    return status;
}

void kv_fio_close(kv_fio_t *fio)
{
    unlink(fio->path);
}

kv_status_t kv_fio_read(kv_fio_t *fio, size_t block_bytes, uint32_t depth, uint64_t sample_bytes,
    double *bytes_per_s_out, kv_error_t *error)
{
    words_t words = {.count = 0};
    fio->run_count++;
    add_common(&words, fio, block_bytes, depth);
    add(&words, "--rw=randread");
    add(&words, "--io_size=%llu", (unsigned long long)sample_bytes);
    return run(&words, "read", bytes_per_s_out, error);
}

kv_status_t kv_fio_write(kv_fio_t *fio, size_t block_bytes, uint32_t depth, uint64_t sample_bytes,
    uint64_t barrier_bytes, double *bytes_per_s_out, kv_error_t *error)
{
    words_t words = {.count = 0};
    const uint64_t blocks = barrier_bytes / block_bytes;
    fio->run_count++;
    add_common(&words, fio, block_bytes, depth);
    add(&words, "--rw=write");
    add(&words, "--overwrite=1");
    add(&words, "--io_size=%llu", (unsigned long long)sample_bytes);
    add(&words, "--fdatasync=%llu", (unsigned long long)(blocks > 0 ? blocks : 1));
    add(&words, "--end_fsync=1");
    return run(&words, "write", bytes_per_s_out, error);
}
