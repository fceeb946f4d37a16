/* `kvist bench store`: the store beside the limits of its machine, or beside a peer. */
#include "tools/kvist/bench/store.h"

#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <string.h>

enum {
    MIB = 1 << 20,
    QUICK_WORKING_MIB = 64,
    QUICK_SAMPLE_MIB = 16,
    QUICK_PAIRS = 3,
};

typedef struct {
    const char *folder, *only, *driver;
    uint64_t pairs, sample_mib, object_kib, depth;
    bool quick, json;
} options_t;

bool kv_bench_wants(const kv_bench_t *bench, const char *name)
{
    return bench->only == NULL || strstr(name, bench->only) != NULL;
}

/* ---- sizes ---- */

static uint64_t choose_working_bytes(const kv_bench_t *bench)
{
    if (bench->quick) {
        return (uint64_t)QUICK_WORKING_MIB * MIB;
    }
    return kv_machine_working_bytes();
}

/* Bytes that no device or file system makes smaller. */
static void fill_region(const kv_region_t *region)
{
    uint64_t *words = region->base, state = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < region->bytes / sizeof *words; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words[i] = state;
    }
}

static kv_status_t map_regions(kv_bench_t *bench, kv_error_t *error)
{
    kv_status_t status = kv_region_map(bench->working_bytes, &bench->source, error);
    if (status != KV_OK) {
        return status;
    }
    status = kv_region_map(bench->working_bytes, &bench->destination, error);
    if (status != KV_OK) {
        kv_region_unmap(&bench->source);
        return status;
    }
    fill_region(&bench->source);
    memset(bench->destination.base, 1, bench->destination.bytes);
    return KV_OK;
}

static void print_notes(const kv_bench_t *bench)
{
    char working[KV_TEXT_BYTES], sample[KV_TEXT_BYTES];
    kv_machine_print(bench->notes, bench->folder);
    fprintf(bench->notes,
        "# working set, sources and destinations: %s each; a sample moves %s; reads from disk are "
        "cold (O_DIRECT)\n",
        kv_text_size(bench->working_bytes, working), kv_text_size(bench->sample_bytes, sample));
    if (bench->working_bytes < kv_machine_cache_bytes()) {
        fprintf(bench->notes, "# that is less than the largest cache: figures of memory flatter\n");
    }
    if (bench->quick) {
        fprintf(bench->notes, "# --quick: shows that everything runs; the figures mean little\n");
    }
}

/* ---- the run ---- */

static kv_status_t open_fio(kv_bench_t *bench, kv_error_t *error)
{
    kv_status_t status = kv_fio_open(bench->folder, bench->working_bytes, &bench->fio, error);
    bench->has_fio = status == KV_OK;
    if (status == KV_MISSING) {
        fprintf(stderr, "kvist bench: %s: the disk is measured alone\n  do: install fio\n",
            error->text);
        return KV_OK;
    }
    if (bench->has_fio) {
        fprintf(bench->notes, "# %s: io_uring, O_DIRECT, registered file%s\n", bench->fio.version,
            bench->fio.fixed_buffers ? " and buffers" : "; its buffers could not be registered");
    }
    return status;
}

static kv_status_t run(kv_bench_t *bench, const char *driver, kv_error_t *error)
{
    /* Memory is counted before anything else has been done. */
    kv_status_t status = driver == NULL ? kv_bench_memory(bench, error) : KV_OK;
    if (status != KV_OK) {
        return status;
    }
    if (driver != NULL) {
        return kv_bench_against(bench, driver, error);
    }
    status = open_fio(bench, error);
    if (status == KV_OK) {
        status = kv_bench_moves(bench, error);
    }
    if (bench->has_fio) {
        kv_fio_close(&bench->fio);
    }
    if (status == KV_OK) {
        status = kv_bench_verification(bench, error);
    }
    return status == KV_OK ? kv_bench_tokens(bench, error) : status;
}

static int run_in_folder(const options_t *options)
{
    kv_error_t error;
    kv_bench_t bench = {.report = {.out = stdout,
                            .progress = stderr,
                            .json = options->json,
                            .pairs = (uint32_t)options->pairs},
        .notes = options->json ? stderr : stdout,
        .only = options->only,
        .object_bytes = options->object_kib << 10,
        .depth = options->depth,
        .sample_bytes = options->sample_mib * MIB,
        .quick = options->quick};
    bench.working_bytes = choose_working_bytes(&bench);
    kv_status_t status = kv_bench_folder_make(options->folder, bench.folder, &error);
    if (status != KV_OK) {
        return kv_command_fail("bench", error.text, "kvist bench store --dir FOLDER");
    }
    status = map_regions(&bench, &error);
    if (status == KV_OK) {
        print_notes(&bench);
        status = run(&bench, options->driver, &error);
        kv_report_end(&bench.report);
        kv_region_unmap(&bench.source);
        kv_region_unmap(&bench.destination);
    }
    kv_bench_folder_remove(bench.folder);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("bench", error.text, NULL);
}

int kv_bench_store(int argc, char **argv)
{
    options_t options = {.pairs = 0};
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "on the disk to measure (default: ~/.local/state/kvist/bench)", &options.folder, 0, 0},
        {"--only", KV_ARGUMENT_TEXT, "TEXT", "measures that have this in their name", &options.only,
            0, 0},
        {"--object-kib", KV_ARGUMENT_NUMBER, "N", "only objects of this size", &options.object_kib,
            64, 4096},
        {"--depth", KV_ARGUMENT_NUMBER, "N", "only with so many in flight", &options.depth, 1,
            KV_SUBJECT_DEPTH_MAX},
        {"--pairs", KV_ARGUMENT_NUMBER, "N", "of each measure (default: 9)", &options.pairs, 1,
            KV_PAIRS_MAX},
        {"--sample-mib", KV_ARGUMENT_NUMBER, "N", "that a sample moves (default: 512)",
            &options.sample_mib, 1, 65536},
        {"--quick", KV_ARGUMENT_FLAG, NULL, "few and small samples: does everything run?",
            &options.quick, 0, 0},
        {"--against", KV_ARGUMENT_TEXT, "DRIVER", "a peer's driver program (tools/peers), instead",
            &options.driver, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &options.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench store [OPTIONS]",
        .summary =
            "Puts and gets in alternating pairs with fio, memcpy, the store without verification, "
            "or a\npeer: medians, quartiles, and an interval of the ratio's median (95 % or more). "
            "A target is\nmissed where that interval excludes it, unsure where the median misses "
            "it.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (options.pairs == 0) {
        options.pairs = options.quick ? QUICK_PAIRS : 9;
    }
    if (options.sample_mib == 0) {
        options.sample_mib = options.quick ? QUICK_SAMPLE_MIB : 512;
    }
    return run_in_folder(&options);
}
