/* Puts and gets of a store on disk that encodes, beside one that does not. */
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

static kv_status_t open_side(const kv_bench_codec_t *bench, const char *folder, const char *name,
    kvist_codec_t codec, side_t *side_out, kv_error_t *error)
{
    char directory[KV_BENCH_FOLDER_BYTES + 16];
    const uint64_t run_bytes = (uint64_t)OBJECT_BYTES * RUN_BLOCKS;
    snprintf(directory, sizeof directory, "%s/%s", folder, name);
    const kv_subject_params_t params = {.object_bytes = OBJECT_BYTES,
        .run_blocks = RUN_BLOCKS,
        .run_count = (uint32_t)(bench->source.bytes / run_bytes),
        .host_bytes = bench->source.bytes / 8,
        .directory = directory,
        .disk_bytes = 2 * bench->source.bytes + EXTRA_BYTES,
        .codec = codec,
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

static kv_status_t measure(kv_bench_codec_t *bench, side_t *ours, side_t *theirs, kv_error_t *error)
{
    static const struct {
        const char *name;
        kv_status_t (*sample)(void *context, double *value_out, kv_error_t *error);
    } rows[] = {{"disk get, chain 8 x 256 KiB, depth 8", sample_get},
        {"disk put, chain 8 x 256 KiB, depth 8", sample_put}};
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && status == KV_OK; i++) {
        const kv_measure_t of = {
            .name = rows[i].name, .unit = "GB/s", .against = "codec none", .target = NAN};
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
    kv_status_t status = open_side(bench, folder, "none", KVIST_CODEC_NONE, &theirs, error);
    if (status != KV_OK) {
        return status;
    }
    status = open_side(bench, folder, "bf16", KVIST_CODEC_BF16, &ours, error);
    if (status == KV_OK) {
        status = measure(bench, &ours, &theirs, error);
        kv_subject_close(ours.subject);
    }
    kv_subject_close(theirs.subject);
    return status;
}
