/* `kvist bench attach`: a host's store, used by several processes, beside one of this process. */
#include "tools/kvist/bench/attach.h"

#include "base/available.h"
#include "base/clock.h"
#include "base/log.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const double TARGET_GET = 0.95;

static const kv_attach_shape_t SHAPES[] = {
    {64 << 10, 64, true},
    {64 << 10, 256, false},
    {256 << 10, 16, false},
    {256 << 10, 64, false},
    {1 << 20, 4, false},
    {1 << 20, 16, true},
};
static const uint32_t DEPTHS[] = {1, 8};

enum {
    MIB = 1 << 20,
    GIB_SHIFT = 30,
    SPARE_BYTES = 64 << 20, /* of a host tier, beyond the working set */
    ANSWER_LIMIT_MS = 60000,
    CLIENTS = 8,
    HOST_GIB = 16,
    PAIRS = 9,
    QUICK_PAIRS = 3,
    QUICK_WORKING_MIB = 64,
};

/* ---- shapes ---- */

bool kv_attach_wants(const kv_bench_attach_t *bench, const char *name)
{
    return bench->only == NULL || strstr(name, bench->only) != NULL;
}

bool kv_attach_wants_shape(const kv_bench_attach_t *bench, const kv_attach_shape_t *shape)
{
    return bench->object_bytes == 0 ? !bench->quick || shape->quick
                                    : bench->object_bytes == shape->object_bytes;
}

void kv_attach_name(
    char *name_out, const char *what, const kv_attach_shape_t *shape, uint32_t depth)
{
    snprintf(name_out, KV_ATTACH_NAME_BYTES, "%s, chain %u x %zu KiB, depth %u", what,
        shape->run_blocks, shape->object_bytes >> 10, depth);
}

kv_subject_params_t kv_attach_subject(
    const kv_bench_attach_t *bench, const kv_attach_shape_t *shape)
{
    const uint64_t run_bytes = shape->object_bytes * shape->run_blocks;
    return (kv_subject_params_t){.object_bytes = shape->object_bytes,
        .run_blocks = shape->run_blocks,
        .run_count = (uint32_t)(bench->working_bytes / run_bytes),
        .host_bytes = bench->working_bytes + SPARE_BYTES,
        .source = &bench->source,
        .destination = &bench->destination};
}

/* ---- the store ---- */

typedef struct {
    char program[KV_ATTACH_PATH_BYTES + 256], log[KV_ATTACH_PATH_BYTES];
    char socket[KV_ATTACH_PATH_BYTES + 32], admin[KV_ATTACH_PATH_BYTES + 32], bytes[64];
} command_t;

/* kvist-store beside this program, with nothing but a host tier. */
static kv_status_t make_command(
    const kv_bench_attach_t *bench, uint64_t host_bytes, command_t *command, kv_error_t *error)
{
    const size_t room = sizeof command->program - sizeof "/kvist-store";
    const ssize_t length = readlink("/proc/self/exe", command->program, room);
    command->program[length > 0 ? length : 0] = '\0';
    char *name = strrchr(command->program, '/');
    if (name == NULL) {
        return kv_fail(error, KV_MISSING, "this program's own path cannot be read");
    }
    snprintf(name, sizeof "/kvist-store", "/kvist-store");
    snprintf(command->log, sizeof command->log, "%s/log", bench->folder);
    snprintf(command->socket, sizeof command->socket, "--store.socket=%s", bench->socket);
    snprintf(command->admin, sizeof command->admin, "--node.admin=%s/admin", bench->folder);
    snprintf(
        command->bytes, sizeof command->bytes, "--store.host_bytes=%ju", (uintmax_t)host_bytes);
    return access(command->program, X_OK) == 0
               ? KV_OK
               : kv_fail_errno(error, errno, "%s is not beside kvist; build it (tools/build)",
                     command->program);
}

/* It ends with this process, as what is copied from it does. */
static void become_store(const void *context, int channel)
{
    command_t command = *(const command_t *)context;
    char *const argv[] = {command.program, command.socket, command.admin, command.bytes,
        "--store.directory=none", NULL};
    const int log = open(command.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    (void)channel;
    if (log >= 0) {
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
    }
    execv(command.program, argv);
    kv_log_error("bench", "%s cannot be executed: %s", command.program, strerror(errno));
}

kv_status_t kv_attach_start(
    const kv_bench_attach_t *bench, uint64_t host_bytes, kv_fork_t *store_out, kv_error_t *error)
{
    command_t command;
    unlink(bench->socket); /* of a store that was killed */
    kv_status_t status = make_command(bench, host_bytes, &command, error);
    return status == KV_OK ? kv_fork_start(become_store, &command, store_out, error) : status;
}

void kv_attach_stop(kv_fork_t *store)
{
    if (store->pid > 0) {
        kill(store->pid, SIGKILL);
    }
    kv_fork_end(store);
}

kv_status_t kv_attach_serve(
    const kv_bench_attach_t *bench, uint64_t host_bytes, kv_fork_t *store_out, kv_error_t *error)
{
    kv_status_t status = kv_attach_start(bench, host_bytes, store_out, error);
    for (int ms = 0; status == KV_OK && access(bench->socket, F_OK) != 0; ms++) {
        if (ms == ANSWER_LIMIT_MS || !kv_fork_alive(store_out)) {
            kv_attach_stop(store_out);
            status = kv_fail(error, KV_PEER_LOST, "kvist-store ended, or does not serve after %d s",
                ANSWER_LIMIT_MS / 1000);
        }
        nanosleep(&(struct timespec){.tv_nsec = KV_NS_PER_MS}, NULL);
    }
    return status;
}

static const char *attached_to;

void kv_attach_set_socket(const char *path)
{
    attached_to = path;
}

kv_status_t kv_attach_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error)
{
    kvist_store_params_t attached = *params;
    attached.host_bytes = 0; /* the service's */
    attached.attach = attached_to;
    return kvist_store_open(&attached, store_out, error);
}

/* ---- attached beside embedded ---- */

typedef struct {
    kv_subject_t *subject;
    bool put;
    uint32_t run_count, depth;
    size_t run_bytes;
} side_t;

static kv_status_t sample(void *context, double *value_out, kv_error_t *error)
{
    side_t *side = context;
    uint64_t ns;
    kv_status_t status =
        side->put ? kv_subject_put(side->subject, side->run_count, side->depth, false, &ns, error)
                  : kv_subject_get(side->subject, side->run_count, side->depth, &ns, error);
    /* Bytes in a nanosecond are gigabytes in a second. */
    *value_out = (double)side->run_count * (double)side->run_bytes / (double)ns;
    return status;
}

static kv_status_t compare(kv_bench_attach_t *bench, const kv_attach_shape_t *shape,
    kv_subject_t *const subjects[2], bool put, uint32_t depth, kv_error_t *error)
{
    char name[KV_ATTACH_NAME_BYTES];
    kv_attach_name(name, put ? "put" : "get", shape, depth);
    if (!kv_attach_wants(bench, name)) {
        return KV_OK;
    }
    const kv_measure_t measure = {
        .name = name, .unit = "GB/s", .against = "embedded", .target = put ? NAN : TARGET_GET};
    const size_t run_bytes = shape->object_bytes * shape->run_blocks;
    const uint32_t count = (uint32_t)(bench->sample_bytes / run_bytes);
    side_t ours = {subjects[1], put, count > 0 ? count : 1, depth, run_bytes};
    side_t theirs = ours;
    theirs.subject = subjects[0];
    return kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample, &theirs},
        &(kv_side_t){sample, &ours}, error);
}

static bool wants_any(const kv_bench_attach_t *bench, const kv_attach_shape_t *shape)
{
    bool wanted = false;
    for (int i = 0; i < 4; i++) {
        char name[KV_ATTACH_NAME_BYTES];
        kv_attach_name(name, i % 2 == 0 ? "get" : "put", shape, DEPTHS[i / 2]);
        wanted |= kv_attach_wants(bench, name);
    }
    return wanted && kv_attach_wants_shape(bench, shape);
}

static kv_status_t run_shape(
    kv_bench_attach_t *bench, const kv_attach_shape_t *shape, kv_error_t *error)
{
    const kv_subject_params_t params = kv_attach_subject(bench, shape);
    const kv_subject_opener_t openers[2] = {kvist_store_open, kv_attach_open};
    kv_subject_t *subjects[2] = {NULL, NULL};
    kv_fork_t store = {0, -1};
    kv_status_t status = kv_attach_serve(bench, params.host_bytes, &store, error);
    for (int i = 0; i < 2 && status == KV_OK; i++) {
        status = kv_subject_open(&params, openers[i], &subjects[i], error);
        if (status == KV_OK) {
            status = kv_subject_fill(subjects[i], error);
        }
    }
    for (int put = 0; put < 2; put++) {
        for (int i = 0; i < 2 && status == KV_OK; i++) {
            status = compare(bench, shape, subjects, put != 0, DEPTHS[i], error);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (subjects[i] != NULL) {
            kv_subject_close(subjects[i]);
        }
    }
    kv_attach_stop(&store);
    return status;
}

static kv_status_t run_shapes(kv_bench_attach_t *bench, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES && status == KV_OK; i++) {
        if (wants_any(bench, &SHAPES[i])) {
            status = run_shape(bench, &SHAPES[i], error);
        }
    }
    return status;
}

/* ---- the run ---- */

typedef struct {
    const char *only;
    uint64_t pairs, sample_mib, object_kib, clients, window_ms, host_gib;
    bool quick, json;
} options_t;

/* Bytes that a wrong place would show in. Not copied into the processes that are forked: what this
 * one writes there costs it no copies. */
static kv_status_t map_regions(kv_bench_attach_t *bench, kv_error_t *error)
{
    kv_status_t status = kv_region_map(bench->working_bytes, &bench->source, error);
    if (status == KV_OK) {
        status = kv_region_map(bench->working_bytes, &bench->destination, error);
    }
    if (status != KV_OK) {
        return status;
    }
    uint64_t *words = bench->source.base;
    for (size_t i = 0; i < bench->source.bytes / sizeof *words; i++) {
        words[i] = i * 0x9e3779b97f4a7c15u;
    }
    madvise(bench->destination.base, bench->destination.bytes, MADV_DONTFORK);
    memset(bench->destination.base, 1, bench->destination.bytes);
    return KV_OK;
}

/* As large as was asked for; not asked, as fits in half of what is free, and it says so. */
static uint64_t choose_host_bytes(const options_t *options, FILE *notes)
{
    const uint64_t asked = (options->host_gib > 0 ? options->host_gib : HOST_GIB) << GIB_SHIFT;
    const uint64_t half = kv_available_memory(NULL).available_bytes / 2;
    if (options->host_gib > 0 || asked <= half) {
        return asked;
    }
    char size[KV_TEXT_BYTES];
    const uint64_t bytes = half / SPARE_BYTES * SPARE_BYTES;
    fprintf(notes,
        "# first service: a host tier of %s, half of the memory that is free, not %d GiB\n",
        kv_text_size(bytes, size), HOST_GIB);
    return bytes;
}

static kv_status_t run(kv_bench_attach_t *bench, kv_error_t *error)
{
    kv_status_t status = map_regions(bench, error);
    if (status == KV_OK) {
        status = kv_attach_first_service(bench, error);
    }
    if (status == KV_OK) {
        status = run_shapes(bench, error);
    }
    if (status == KV_OK) {
        status = kv_attach_clients(bench, error);
    }
    kv_region_unmap(&bench->source);
    kv_region_unmap(&bench->destination);
    return status;
}

static int remove_entry(const char *path, const struct stat *state, int type, struct FTW *walk)
{
    (void)state, (void)type, (void)walk;
    return remove(path);
}

static int run_in_folder(const options_t *options)
{
    kv_error_t error;
    kv_bench_attach_t bench = {.report = {.out = stdout,
                                   .progress = stderr,
                                   .json = options->json,
                                   .pairs = (uint32_t)options->pairs},
        .notes = options->json ? stderr : stdout,
        .folder = "/tmp/kvist-bench-XXXXXX", /* short: a Unix socket lies in it */
        .only = options->only,
        .object_bytes = options->object_kib << 10,
        .sample_bytes = options->sample_mib * MIB,
        .working_bytes =
            options->quick ? (uint64_t)QUICK_WORKING_MIB * MIB : kv_machine_working_bytes(),
        .client_count = options->clients,
        .window_ms = options->window_ms,
        .quick = options->quick};
    if (mkdtemp(bench.folder) == NULL) {
        kv_fail_errno(&error, errno, "no folder can be made in /tmp");
        return kv_command_fail("bench", error.text, NULL);
    }
    snprintf(bench.socket, sizeof bench.socket, "%s/store.sock", bench.folder);
    kv_attach_set_socket(bench.socket);
    kv_machine_print(bench.notes, NULL);
    bench.host_bytes = choose_host_bytes(options, bench.notes);
    kv_status_t status = run(&bench, &error);
    kv_report_end(&bench.report);
    if (status != KV_OK) {
        char remedy[128];
        snprintf(remedy, sizeof remedy, "the store's log: %s/log", bench.folder);
        return kv_command_fail("bench", error.text, remedy);
    }
    nftw(bench.folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return KV_EXIT_DONE;
}

int kv_bench_attach(int argc, char **argv)
{
    options_t options = {.clients = CLIENTS};
    const kv_argument_t rows[] = {
        {"--only", KV_ARGUMENT_TEXT, "TEXT", "measures that have this in their name", &options.only,
            0, 0},
        {"--object-kib", KV_ARGUMENT_NUMBER, "N", "only objects of this size (64, 256, 1024)",
            &options.object_kib, 64, 1024},
        {"--pairs", KV_ARGUMENT_NUMBER, "N", "of each measure (default: 9)", &options.pairs, 1,
            KV_PAIRS_MAX},
        {"--sample-mib", KV_ARGUMENT_NUMBER, "N", "that a sample moves (default: 512)",
            &options.sample_mib, 1, 65536},
        {"--clients", KV_ARGUMENT_NUMBER, "N", "processes at once (default: 8)", &options.clients,
            2, 32},
        {"--window-ms", KV_ARGUMENT_NUMBER, "N", "that they run for a sample (default: 3000)",
            &options.window_ms, 10, 60000},
        {"--host-gib", KV_ARGUMENT_NUMBER, "N",
            "of the host tier that is waited for (default: 16, at most half of what is free)",
            &options.host_gib, 1, 65536},
        {"--quick", KV_ARGUMENT_FLAG, NULL, "few and small samples: does everything run?",
            &options.quick, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &options.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench attach [OPTIONS]",
        .summary =
            "A host's store that other processes attach to: hits beside the embedded store's, in "
            "alternating\npairs; many clients at once beside one; how soon a large host tier "
            "serves.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    options.pairs = options.pairs > 0 ? options.pairs : options.quick ? QUICK_PAIRS : PAIRS;
    if (options.sample_mib == 0) {
        options.sample_mib = options.quick ? 16 : 512;
    }
    if (options.window_ms == 0) {
        options.window_ms = options.quick ? 50 : 3000;
    }
    return run_in_folder(&options);
}
