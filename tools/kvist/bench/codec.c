/* `kvist bench codec`: the codec of KV on disk, on real KV. */
#include "tools/kvist/bench/codec.h"

#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/folder.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20, QUICK_WORKING_MIB = 64, QUICK_PAIRS = 3, BLOCK_BYTES_MAX = 64 << 20 };

typedef struct {
    const char *model, *text, *file, *folder, *device, *only;
    uint64_t tokens, unit_bytes, block_bytes, pairs, sample_mib;
    bool quick, json;
} options_t;

bool kv_bench_codec_wants(const kv_bench_codec_t *bench, const char *name)
{
    return bench->only == NULL || strstr(name, bench->only) != NULL;
}

/* The KV over and over, as far as whole blocks go. */
static kv_status_t map_regions(kv_bench_codec_t *bench, const kv_bench_kv_t *kv, kv_error_t *error)
{
    uint64_t bytes = bench->working_bytes - bench->working_bytes % kv->block_bytes;
    bytes = bytes > 0 ? bytes : kv->block_bytes;
    kv_status_t status = kv_region_map(bytes, &bench->source, error);
    if (status == KV_OK && (status = kv_region_map(bytes, &bench->destination, error)) != KV_OK) {
        kv_region_unmap(&bench->source);
    }
    if (status != KV_OK) {
        return status;
    }
    bench->source.bytes = bench->destination.bytes = bytes;
    for (uint64_t at = 0; at < bytes; at += kv->count) {
        memcpy((char *)bench->source.base + at, kv->bytes,
            bytes - at < kv->count ? bytes - at : kv->count);
    }
    memset(bench->destination.base, 1, bytes);
    return KV_OK;
}

static void print_notes(const kv_bench_codec_t *bench, const options_t *options, size_t kv_bytes)
{
    char kv[KV_TEXT_BYTES], working[KV_TEXT_BYTES], sample[KV_TEXT_BYTES];
    kv_machine_print(bench->notes, options->folder != NULL ? options->folder : NULL);
    fprintf(bench->notes, "# KV: %s of %s, units of %u bytes, blocks of %u\n",
        kv_text_size(kv_bytes, kv), options->file != NULL ? options->file : options->model,
        bench->unit_bytes, bench->block_bytes);
    fprintf(bench->notes,
        "# over and over in %s each of source, destination and encoded, samples of %s; bf16 in "
        "units; speeds are decoded bytes in the thread's own processor time\n",
        kv_text_size(bench->source.bytes, working), kv_text_size(bench->sample_bytes, sample));
    if (options->quick) {
        fprintf(bench->notes, "# --quick: shows that everything runs; the figures mean little\n");
    }
}

static kv_status_t run_disk(kv_bench_codec_t *bench, const char *asked, kv_error_t *error)
{
    char folder[KV_BENCH_FOLDER_BYTES];
    kv_status_t status = kv_bench_folder_make(asked, folder, error);
    if (status == KV_OK) {
        status = kv_bench_codec_disk(bench, folder, error);
        kv_bench_folder_remove(folder);
    }
    return status;
}

static kv_status_t run(const options_t *options, const kv_bench_kv_t *kv, kv_error_t *error)
{
    kv_bench_codec_t bench = {.report = {.out = stdout,
                                  .progress = stderr,
                                  .json = options->json,
                                  .pairs = (uint32_t)options->pairs},
        .notes = options->json ? stderr : stdout,
        .only = options->only,
        .sample_bytes = options->sample_mib * MIB,
        .working_bytes =
            options->quick ? (uint64_t)QUICK_WORKING_MIB * MIB : kv_machine_working_bytes(),
        .unit_bytes = kv->unit_bytes,
        .block_bytes = kv->block_bytes};
    kv_status_t status = map_regions(&bench, kv, error);
    if (status != KV_OK) {
        return status;
    }
    print_notes(&bench, options, kv->count);
    if (options->device != NULL) {
        status = kv_bench_codec_device(&bench, options->device, error);
    }
    if (status == KV_OK) {
        status = kv_bench_codec_code(&bench, error);
    }
    if (status == KV_OK && options->folder != NULL) {
        status = run_disk(&bench, options->folder, error);
    }
    kv_report_end(&bench.report);
    kv_region_unmap(&bench.source);
    kv_region_unmap(&bench.destination);
    return status;
}

static int check(const options_t *options)
{
    const char *wrong = NULL;
    if ((options->model == NULL) == (options->file == NULL)) {
        wrong = "it takes either --model or --file";
    } else if (options->file != NULL && options->text != NULL) {
        wrong = "--text goes with --model";
    } else if (options->unit_bytes % 2 != 0 || options->block_bytes % options->unit_bytes != 0) {
        wrong = "--block-bytes must be a multiple of --unit-bytes, and that even";
    }
    return wrong == NULL
               ? KV_EXIT_DONE
               : (kv_command_fail("bench", wrong, "kvist bench codec --help"), KV_EXIT_USAGE);
}

int kv_bench_codec(int argc, char **argv)
{
    options_t options = {.tokens = 4096, .unit_bytes = 4096, .block_bytes = 1 << 20};
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE", "the GGUF file that computes the KV", &options.model,
            0, 0},
        {"--text", KV_ARGUMENT_TEXT, "FILE",
            "what it is computed from (default: an agent's conversation)", &options.text, 0, 0},
        {"--tokens", KV_ARGUMENT_NUMBER, "N", "of it at most (default: 4096)", &options.tokens, 16,
            1 << 20},
        {"--file", KV_ARGUMENT_TEXT, "FILE", "KV in bf16 as it is, instead", &options.file, 0, 0},
        {"--unit-bytes", KV_ARGUMENT_NUMBER, "N", "of --file (default: 4096)", &options.unit_bytes,
            2, BLOCK_BYTES_MAX},
        {"--block-bytes", KV_ARGUMENT_NUMBER, "N", "of --file (default: 1048576)",
            &options.block_bytes, 2, BLOCK_BYTES_MAX},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "on a disk: puts and gets of a store there as well: with the codec, and encrypted, "
            "beside neither",
            &options.folder, 0, 0},
        {"--device", KV_ARGUMENT_TEXT, "NAME",
            "between this device and memory as well: packed by the device (cuda:N, simt), beside "
            "the host",
            &options.device, 0, 0},
        {"--only", KV_ARGUMENT_TEXT, "TEXT", "measures that have this in their name", &options.only,
            0, 0},
        {"--pairs", KV_ARGUMENT_NUMBER, "N", "of each measure (default: 9)", &options.pairs, 1,
            KV_PAIRS_MAX},
        {"--sample-mib", KV_ARGUMENT_NUMBER, "N", "that a sample codes (default: 64)",
            &options.sample_mib, 1, 65536},
        {"--quick", KV_ARGUMENT_FLAG, NULL, "few and small samples: does everything run?",
            &options.quick, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &options.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench codec --model FILE [OPTIONS]",
        .summary = "How much smaller the codec bf16 makes KV, and how fast it encodes and decodes "
                   "on one core,\nin alternating pairs with LZ4 and zstd. Decoded bytes are "
                   "compared with what went in.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if ((code = check(&options)) != KV_EXIT_DONE) {
        return code;
    }
    options.pairs = options.pairs > 0 ? options.pairs : options.quick ? QUICK_PAIRS : 9;
    options.sample_mib = options.sample_mib > 0 ? options.sample_mib : options.quick ? 8 : 64;
    kv_error_t error;
    kv_bench_kv_t kv;
    kv_status_t status = options.file != NULL
                             ? kv_bench_kv_read(options.file, (uint32_t)options.unit_bytes,
                                   (uint32_t)options.block_bytes, &kv, &error)
                             : kv_bench_kv_compute(options.model, options.text,
                                   (uint32_t)options.tokens, &kv, &error);
    if (status == KV_OK) {
        status = run(&options, &kv, &error);
        free(kv.bytes);
    }
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("bench", error.text, NULL);
}
