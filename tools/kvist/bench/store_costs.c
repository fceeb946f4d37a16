/* What the store costs beside time for bytes: memory, and the bookkeeping for a token. */
#include "tools/kvist/bench/store.h"

#include "tools/kvist/bench/machine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const double TARGET_MEMORY = 1.05, TARGET_FLAT = 1.10, TARGET_MATCH_MS = 2;

enum {
    MIB = 1 << 20,
    INDEX_BYTES = 96, /* that an object may take beside the configured sizes */
};

/* ---- memory ---- */

typedef struct {
    kv_bench_t *bench;
    size_t object_bytes;
    uint64_t host_bytes, object_count; /* more objects than memory holds: they are on disk */
    const char *directory;
} memory_t;

/* In a process that has done nothing else: by how much it grows. */
static kv_status_t grow(const memory_t *memory, double *mib_out, kv_error_t *error)
{
    kv_bench_t *bench = memory->bench;
    const kv_subject_params_t params = {.object_bytes = memory->object_bytes,
        .run_blocks = 16,
        .run_count = (uint32_t)(memory->object_count / 16),
        .host_bytes = memory->host_bytes,
        .directory = memory->directory,
        .disk_bytes = 2 * memory->object_count * (memory->object_bytes + 4096) + (256ull << 20),
        .source = &bench->source,
        .destination = &bench->destination};
    /* The source is touched before it is counted, not by the store. */
    memset(bench->source.base, 1, bench->source.bytes);
    const uint64_t before = kv_machine_resident_bytes();
    kv_subject_t *subject;
    kv_status_t status = kv_subject_open(&params, kvist_store_open, &subject, error);
    if (status != KV_OK) {
        return status;
    }
    uint64_t ns;
    status = kv_subject_put(subject, params.run_count, 8, memory->directory != NULL, &ns, error);
    const uint64_t grown = kv_machine_resident_bytes() - before;
    *mib_out = ((double)grown - (double)INDEX_BYTES * (double)memory->object_count) / MIB;
    kv_subject_close(subject);
    return status;
}

/* A child's answer. */
typedef struct {
    kv_status_t status;
    double mib;
    kv_error_t error;
} answer_t;

static kv_status_t sample_memory(void *context, double *value_out, kv_error_t *error)
{
    const memory_t *memory = context;
    answer_t answer = {.status = KV_FATAL};
    int channel[2];
    if (pipe(channel) != 0) {
        return kv_fail_errno(error, errno, "no pipe");
    }
    /* This process has one thread: the stores of earlier measures are closed. */
    pid_t pid = fork();
    if (pid == 0) {
        answer.status = grow(memory, &answer.mib, &answer.error);
        ssize_t written = write(channel[1], &answer, sizeof answer);
        _exit(written == sizeof answer ? 0 : 1);
    }
    int cause = errno;
    close(channel[1]);
    ssize_t bytes = pid > 0 ? read(channel[0], &answer, sizeof answer) : 0;
    close(channel[0]);
    if (pid < 0) {
        return kv_fail_errno(error, cause, "no process can be started");
    }
    waitpid(pid, NULL, 0);
    kv_bench_folder_clear(memory->bench->folder);
    if (bytes != sizeof answer) {
        return kv_fail(error, KV_PEER_LOST, "the process whose memory is counted ended");
    }
    if (answer.status != KV_OK) {
        return kv_fail(error, answer.status, "%s", answer.error.text);
    }
    *value_out = answer.mib;
    return KV_OK;
}

static kv_status_t sample_configured(void *context, double *value_out, kv_error_t *error)
{
    (void)error;
    *value_out = (double)((const memory_t *)context)->host_bytes / MIB;
    return KV_OK;
}

static kv_status_t measure_memory(const char *name, memory_t *memory, kv_error_t *error)
{
    if (!kv_bench_wants(memory->bench, name)) {
        return KV_OK;
    }
    const kv_measure_t measure = {.name = name,
        .unit = "MiB",
        .against = "configured (ours is less 96 B for each object)",
        .target = TARGET_MEMORY};
    return kv_report_pairs(&memory->bench->report, &measure,
        &(kv_side_t){sample_configured, memory}, &(kv_side_t){sample_memory, memory}, error);
}

kv_status_t kv_bench_memory(kv_bench_t *bench, kv_error_t *error)
{
    char directory[KV_BENCH_FOLDER_BYTES + 16];
    snprintf(directory, sizeof directory, "%s/store", bench->folder);
    const uint64_t host_bytes = bench->quick ? 128 * MIB : 1024 * MIB;
    memory_t ram = {bench, 64 << 10, host_bytes, host_bytes >> 16, NULL};
    memory_t disk = {bench, 4 << 10, host_bytes, host_bytes >> 11, directory};
    kv_status_t status = measure_memory("memory used, ram tier full", &ram, error);
    return status == KV_OK ? measure_memory("memory used, and as much on disk", &disk, error)
                           : status;
}

/* ---- tokens ---- */

enum {
    TOKEN_OBJECT_BYTES = 4 << 10, /* small: what a token costs beside its bytes */
    CONTEXT_TOKENS_MIN = 1024,
    CONTEXT_TOKENS_MAX = 128 << 10,
};

typedef enum { MATCH, PUT, GET } call_t;
static const char *const CALLS[] = {"match", "put", "get"};

typedef struct {
    kv_subject_t *subject;
    call_t call;
    uint32_t context_tokens;
    double ns_per_unit; /* of the measure: a token's nanoseconds, or a context's milliseconds */
} tokens_side_t;

/* As many contexts as make up the longest one. */
static kv_status_t sample_tokens(void *context, double *value_out, kv_error_t *error)
{
    const tokens_side_t *side = context;
    const uint32_t count = CONTEXT_TOKENS_MAX / side->context_tokens;
    uint64_t ns = 0;
    kv_status_t status = KV_OK;
    switch (side->call) {
    case MATCH:
        status = kv_subject_match(side->subject, count, &ns, error);
        break;
    case PUT:
        status = kv_subject_put(side->subject, count, 1, false, &ns, error);
        break;
    case GET:
        status = kv_subject_get(side->subject, count, 1, &ns, error);
        break;
    }
    *value_out = (double)ns / side->ns_per_unit;
    return status;
}

static kv_status_t open_contexts(
    kv_bench_t *bench, uint32_t context_tokens, kv_subject_t **subject_out, kv_error_t *error)
{
    const uint64_t context_bytes =
        (uint64_t)context_tokens / KV_SUBJECT_BLOCK_TOKENS * TOKEN_OBJECT_BYTES;
    /* Each side has the same bytes in all, in contexts of its own length; the longest is 32 MiB. */
    const uint64_t all_bytes =
        bench->working_bytes / 2 > 128 * MIB ? bench->working_bytes / 2 : 128 * MIB;
    const kv_subject_params_t params = {.object_bytes = TOKEN_OBJECT_BYTES,
        .run_blocks = context_tokens / KV_SUBJECT_BLOCK_TOKENS,
        .run_count = (uint32_t)(all_bytes / context_bytes) - 1,
        .host_bytes = all_bytes + context_bytes,
        .source = &bench->source,
        .destination = &bench->destination};
    kv_status_t status = kv_subject_open(&params, kvist_store_open, subject_out, error);
    if (status == KV_OK && (status = kv_subject_fill(*subject_out, error)) != KV_OK) {
        kv_subject_close(*subject_out);
    }
    return status;
}

/* Matches first: they change nothing. Then what is there is got, then put over. */
static const call_t ORDER[] = {MATCH, GET, PUT};
static const char MATCH_NAME[] = "match of 8192 blocks";

static char *name_of(char *name_out, call_t call, uint32_t context_tokens)
{
    snprintf(
        name_out, KV_BENCH_NAME_BYTES, "%s, context of %u tokens", CALLS[call], context_tokens);
    return name_out;
}

static bool wants_length(const kv_bench_t *bench, uint32_t context_tokens)
{
    char name[KV_BENCH_NAME_BYTES];
    bool wanted = context_tokens == CONTEXT_TOKENS_MAX && kv_bench_wants(bench, MATCH_NAME);
    for (size_t i = 0; i < 3; i++) {
        wanted |= kv_bench_wants(bench, name_of(name, ORDER[i], context_tokens));
    }
    return wanted;
}

static kv_status_t compare_lengths(kv_bench_t *bench, kv_subject_t *shortest, kv_subject_t *subject,
    uint32_t context_tokens, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < 3 && status == KV_OK; i++) {
        char name[KV_BENCH_NAME_BYTES];
        name_of(name, ORDER[i], context_tokens);
        if (!kv_bench_wants(bench, name)) {
            continue;
        }
        const kv_measure_t measure = {.name = name,
            .unit = "ns/token",
            .against = "contexts of 1024 tokens, as many in all",
            .target = TARGET_FLAT};
        tokens_side_t ours = {subject, ORDER[i], context_tokens, CONTEXT_TOKENS_MAX};
        tokens_side_t theirs = {shortest, ORDER[i], CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX};
        status = kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_tokens, &theirs},
            &(kv_side_t){sample_tokens, &ours}, error);
    }
    return status;
}

static kv_status_t measure_match(kv_bench_t *bench, kv_subject_t *subject, kv_error_t *error)
{
    if (!kv_bench_wants(bench, MATCH_NAME)) {
        return KV_OK;
    }
    const kv_measure_t measure = {.name = MATCH_NAME, .unit = "ms", .target = TARGET_MATCH_MS};
    tokens_side_t ours = {subject, MATCH, CONTEXT_TOKENS_MAX, KV_NS_PER_MS};
    return kv_report_pairs(
        &bench->report, &measure, NULL, &(kv_side_t){sample_tokens, &ours}, error);
}

/* Both sides anew for each length: puts leave other contexts in memory than gets ask for. */
static kv_status_t measure_length(kv_bench_t *bench, uint32_t context_tokens, kv_error_t *error)
{
    kv_subject_t *shortest, *subject;
    kv_status_t status = open_contexts(bench, CONTEXT_TOKENS_MIN, &shortest, error);
    if (status != KV_OK) {
        return status;
    }
    status = open_contexts(bench, context_tokens, &subject, error);
    if (status == KV_OK) {
        if (context_tokens == CONTEXT_TOKENS_MAX) {
            status = measure_match(bench, subject, error);
        }
        if (status == KV_OK) {
            status = compare_lengths(bench, shortest, subject, context_tokens, error);
        }
        kv_subject_close(subject);
    }
    kv_subject_close(shortest);
    return status;
}

kv_status_t kv_bench_tokens(kv_bench_t *bench, kv_error_t *error)
{
    static const uint32_t lengths[] = {2048, 16384, CONTEXT_TOKENS_MAX};
    kv_status_t status = KV_OK;
    for (size_t i = bench->quick ? 2 : 0; i < 3 && status == KV_OK; i++) {
        if (wants_length(bench, lengths[i])) {
            status = measure_length(bench, lengths[i], error);
        }
    }
    return status;
}
