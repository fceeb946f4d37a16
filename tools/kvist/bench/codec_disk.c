/* Puts and gets of a store on disk that encodes, and of one that encrypts, beside one that does
 * neither. */
#include "tools/kvist/bench/codec.h"

#include "tools/kvist/bench/folder.h"
#include "tools/kvist/bench/subject.h"

#include <math.h>

enum {
    OBJECT_BYTES = 256 << 10, /* a run is a chain, as contexts come back */
    RUN_BLOCKS = 8,
    DEPTH = 8,
    EXTRA_BYTES = 256 << 20,
};

typedef struct {
    kv_subject_t *subject;
    uint32_t run_count;
} side_t;

static double rate_of(uint32_t run_count, uint64_t ns)
{
    return (double)run_count * OBJECT_BYTES * RUN_BLOCKS / (double)ns;
}

static kv_status_t sample_get(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    uint64_t ns = 1;
    kv_status_t status = kv_subject_get(side->subject, side->run_count, DEPTH, &ns, error);
    *value_out = rate_of(side->run_count, ns);
    return status;
}

static kv_status_t sample_put(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    uint64_t ns = 1;
    kv_status_t status = kv_subject_put(side->subject, side->run_count, DEPTH, true, &ns, error);
    *value_out = rate_of(side->run_count, ns);
    return status;
}

/* What is measured beside a store that writes KV as it is. */
typedef struct {
    const char *name, *against, *get, *put;
    kvist_codec_t codec;
    bool encrypts;
} kind_t;

static const kind_t PLAIN = {.name = "none"};
static const kind_t KINDS[] = {
    {"bf16", "codec none", "disk get, chain 8 x 256 KiB, depth 8",
        "disk put, chain 8 x 256 KiB, depth 8", KVIST_CODEC_BF16, false},
    {"encrypted", "in clear", "disk get, encrypted, chain 8 x 256 KiB, depth 8",
        "disk put, encrypted, chain 8 x 256 KiB, depth 8", KVIST_CODEC_NONE, true},
};

static kv_status_t open_side(const kv_bench_codec_t *bench, const char *folder, const kind_t *kind,
    side_t *side_out, kv_error_t *error)
{
    char directory[KV_BENCH_FOLDER_BYTES + 16], key_file[KV_BENCH_FOLDER_BYTES + 16];
    const uint64_t run_bytes = (uint64_t)OBJECT_BYTES * RUN_BLOCKS;
    snprintf(directory, sizeof directory, "%s/%s", folder, kind->name);
    snprintf(key_file, sizeof key_file, "%s/key", folder);
    if (kind->encrypts && kvist_key_file_new(key_file, error) != KV_OK) {
        return error->status;
    }
    const kv_subject_params_t params = {.object_bytes = OBJECT_BYTES,
        .run_blocks = RUN_BLOCKS,
        .run_count = (uint32_t)(bench->source.bytes / run_bytes),
        .host_bytes = bench->source.bytes / 8,
        .directory = directory,
        .disk_bytes = 2 * bench->source.bytes + EXTRA_BYTES,
        .codec = kind->codec,
        .key_file = kind->encrypts ? key_file : NULL,
        .source = &bench->source,
        .destination = &bench->destination};
    const uint64_t count = bench->sample_bytes / run_bytes;
    side_out->run_count = count > 0 ? (uint32_t)count : 1;
    kv_status_t status = kv_subject_open(&params, kvist_store_open, &side_out->subject, error);
    if (status == KV_OK && (status = kv_subject_fill(side_out->subject, error)) != KV_OK) {
        kv_subject_close(side_out->subject);
    }
    return status;
}

static kv_status_t measure(
    kv_bench_codec_t *bench, const kind_t *kind, side_t *ours, side_t *theirs, kv_error_t *error)
{
    const struct {
        const char *name;
        kv_status_t (*sample)(void *context, double *value_out, kv_error_t *error);
    } rows[] = {{kind->get, sample_get}, {kind->put, sample_put}};
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && status == KV_OK; i++) {
        const kv_measure_t of = {
            .name = rows[i].name, .unit = "GB/s", .against = kind->against, .target = NAN};
        const kv_side_t our_side = {rows[i].sample, ours}, their_side = {rows[i].sample, theirs};
        if (kv_bench_codec_wants(bench, rows[i].name)) {
            status = kv_report_pairs(&bench->report, &of, &their_side, &our_side, error);
        }
    }
    return status;
}

kv_status_t kv_bench_codec_disk(kv_bench_codec_t *bench, const char *folder, kv_error_t *error)
{
    side_t ours, theirs;
    kv_status_t status = open_side(bench, folder, &PLAIN, &theirs, error);
    if (status != KV_OK) {
        return status;
    }
    for (size_t i = 0; i < sizeof KINDS / sizeof KINDS[0] && status == KV_OK; i++) {
        const kind_t *kind = &KINDS[i];
        if (!kv_bench_codec_wants(bench, kind->get) && !kv_bench_codec_wants(bench, kind->put)) {
            continue;
        }
        status = open_side(bench, folder, kind, &ours, error);
        if (status == KV_OK) {
            status = measure(bench, kind, &ours, &theirs, error);
            kv_subject_close(ours.subject);
        }
    }
    kv_subject_close(theirs.subject);
    return status;
}
