/* What the files of `kvist bench codec` share.
 *
 *   codec.c         options, the order of things
 *   codec_kv.c      KV to encode: computed from real text, or out of a file
 *   codec_code.c    ratio, encode and decode, beside other codecs
 *   codec_device.c  to and from a GPU, packed there
 *   codec_disk.c    a store that encodes beside one that does not */
#ifndef KV_TOOLS_BENCH_CODEC_H
#define KV_TOOLS_BENCH_CODEC_H

#include "base/memory.h"
#include "tools/kvist/bench/measure.h"

enum { KV_BENCH_CODEC_ELEMENT_BYTES = 2, KV_BENCH_CODEC_NAME_BYTES = 96 };

typedef struct {
    kv_report_t report;
    FILE *notes;
    const char *only; /* NULL: all */
    uint64_t sample_bytes;
    uint64_t working_bytes; /* of source and destination */
    uint32_t unit_bytes, block_bytes;
    kv_region_t source; /* KV, over and over: block after block, and no part of one at the end */
    kv_region_t destination;
} kv_bench_codec_t;

bool kv_bench_codec_wants(const kv_bench_codec_t *bench, const char *name);

/* KV for a source: both make an array of bf16, free() by the caller, and say what a unit and a
 * block are. */
typedef struct {
    uint8_t *bytes;
    size_t count;
    uint32_t unit_bytes, block_bytes;
} kv_bench_kv_t;

/* Of a text (NULL: one that comes with the program), at most that many tokens, computed in bf16. */
kv_status_t kv_bench_kv_compute(const char *model_path, const char *text_path, uint32_t token_count,
    kv_bench_kv_t *kv_out, kv_error_t *error);

kv_status_t kv_bench_kv_read(const char *path, uint32_t unit_bytes, uint32_t block_bytes,
    kv_bench_kv_t *kv_out, kv_error_t *error);

kv_status_t kv_bench_codec_code(kv_bench_codec_t *bench, kv_error_t *error);

/* name: a device that packs, as kernels/plugin.h has them. */
kv_status_t kv_bench_codec_device(kv_bench_codec_t *bench, const char *name, kv_error_t *error);

/* folder: of the bench's own. */
kv_status_t kv_bench_codec_disk(kv_bench_codec_t *bench, const char *folder, kv_error_t *error);

#endif
