/* Ratio, encode and decode of the bf16 codec, beside other codecs on the same KV. */
#include "tools/kvist/bench/codec.h"

#include "base/checksum.h"
#include "kvstore/codec/codec.h"
#include "tools/kvist/bench/zstd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TARGET_RATIO 1.3
#define TARGET_DECODE 2.0 /* GB/s */

/* What stands in a record for each item beside its bytes: its length. */
enum { LENGTH_BYTES = 4 };

/* A codec, in pieces of one size. A length that equals the item's: it is kept as it is. */
typedef struct {
    const char *name;
    kvist_codec_t codec;
    int level;   /* of zstd; 0: it is one of Kvist's codecs */
    bool blocks; /* whole blocks at once; else units */
} coder_t;

static const coder_t OURS = {"bf16", KVIST_CODEC_BF16, 0, false};
static const coder_t OTHERS[] = {
    {"lz4 on units", KVIST_CODEC_LZ4, 0, false},
    {"lz4 on blocks", KVIST_CODEC_LZ4, 0, true},
    {"zstd 1 on units", KVIST_CODEC_NONE, 1, false},
    {"zstd 1 on blocks", KVIST_CODEC_NONE, 1, true},
    {"zstd 3 on units", KVIST_CODEC_NONE, 3, false},
    {"zstd 3 on blocks", KVIST_CODEC_NONE, 3, true},
};
enum { OTHER_COUNT = sizeof OTHERS / sizeof OTHERS[0] };

/* All of the source as one codec keeps it. */
typedef struct {
    const kv_bench_codec_t *bench;
    const coder_t *coder;
    kv_zstd_t *zstd;
    size_t item_bytes, item_count;
    uint8_t *bytes; /* one item after the other */
    uint32_t *lengths;
    size_t *places;
    size_t next; /* item that the next sample begins with; samples rotate */
} coded_t;

static size_t encode(const coded_t *coded, const uint8_t *item, uint8_t *encoded_out)
{
    const coder_t *coder = coded->coder;
    if (coder->level == 0) {
        return kv_codec_encode(
            coder->codec, item, coded->item_bytes, KV_BENCH_CODEC_ELEMENT_BYTES, encoded_out);
    }
    size_t got = kv_zstd_encode(
        coded->zstd, coder->level, item, coded->item_bytes, encoded_out, coded->item_bytes - 1);
    if (got > 0) {
        return got;
    }
    memcpy(encoded_out, item, coded->item_bytes);
    return coded->item_bytes;
}

static bool decode(const coded_t *coded, size_t item, uint8_t *out)
{
    const coder_t *coder = coded->coder;
    const uint8_t *encoded = coded->bytes + coded->places[item];
    const size_t length = coded->lengths[item];
    if (coder->level == 0 || length == coded->item_bytes) {
        return kv_codec_decode(coder->codec, encoded, length, out, coded->item_bytes) == KV_OK;
    }
    return kv_zstd_decode(coded->zstd, encoded, length, out, coded->item_bytes);
}

static void open_coded(const kv_bench_codec_t *bench, const coder_t *coder, coded_t *coded_out)
{
    coded_t coded = {.bench = bench, .coder = coder, .zstd = kv_zstd_create()};
    coded.item_bytes = coder->blocks ? bench->block_bytes : bench->unit_bytes;
    coded.item_count = bench->source.bytes / coded.item_bytes;
    coded.bytes = kv_allocate(bench->source.bytes);
    coded.lengths = kv_allocate_array(coded.item_count, sizeof *coded.lengths);
    coded.places = kv_allocate_array(coded.item_count, sizeof *coded.places);
    size_t used = 0;
    for (size_t i = 0; i < coded.item_count; i++) {
        const uint8_t *item = (const uint8_t *)bench->source.base + i * coded.item_bytes;
        coded.places[i] = used;
        coded.lengths[i] = (uint32_t)encode(&coded, item, coded.bytes + used);
        used += coded.lengths[i];
    }
    *coded_out = coded;
}

static void close_coded(coded_t *coded)
{
    kv_zstd_destroy(coded->zstd);
    free(coded->bytes);
    free(coded->lengths);
    free(coded->places);
}

/* ---- samples ---- */

/* The next items, at least one and at most the source's end. */
static size_t take_items(coded_t *coded, size_t *first_out)
{
    size_t count = coded->bench->sample_bytes / coded->item_bytes;
    count = count > 0 ? count : 1;
    count = count < coded->item_count ? count : coded->item_count;
    if (coded->next + count > coded->item_count) {
        coded->next = 0;
    }
    *first_out = coded->next;
    coded->next += count;
    return count;
}

/* Of this thread: what others do on the core does not count. */
static uint64_t thread_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static uint8_t *place_of(const coded_t *coded, const kv_region_t *region, size_t item)
{
    return (uint8_t *)region->base + item * coded->item_bytes;
}

static kv_status_t sample_ratio(void *context, double *value_out, kv_error_t *error)
{
    (void)error;
    coded_t *coded = context;
    size_t first, count = take_items(coded, &first), stored = 0;
    for (size_t i = first; i < first + count; i++) {
        stored += coded->lengths[i] + LENGTH_BYTES;
    }
    *value_out = (double)(count * coded->item_bytes) / (double)stored;
    return KV_OK;
}

static kv_status_t sample_encode(void *context, double *value_out, kv_error_t *error)
{
    coded_t *coded = context;
    size_t first, count = take_items(coded, &first), lengths = 0, expected = 0;
    const uint64_t begun_ns = thread_ns();
    for (size_t i = first; i < first + count; i++) {
        lengths += encode(coded, place_of(coded, &coded->bench->source, i),
            place_of(coded, &coded->bench->destination, i));
    }
    const uint64_t ns = thread_ns() - begun_ns;
    for (size_t i = first; i < first + count; i++) {
        expected += coded->lengths[i];
    }
    *value_out = (double)(count * coded->item_bytes) / (double)ns;
    return lengths == expected ? KV_OK
                               : kv_fail(error, KV_FATAL,
                                     "%s: the same bytes came out longer or shorter the "
                                     "second time",
                                     coded->coder->name);
}

static kv_status_t sample_decode(void *context, double *value_out, kv_error_t *error)
{
    coded_t *coded = context;
    size_t first, count = take_items(coded, &first);
    bool good = true;
    const uint64_t begun_ns = thread_ns();
    for (size_t i = first; i < first + count; i++) {
        good &= decode(coded, i, place_of(coded, &coded->bench->destination, i));
    }
    const uint64_t ns = thread_ns() - begun_ns;
    *value_out = (double)(count * coded->item_bytes) / (double)ns;
    good =
        good && memcmp(place_of(coded, &coded->bench->destination, first),
                    place_of(coded, &coded->bench->source, first), count * coded->item_bytes) == 0;
    return good ? KV_OK
                : kv_fail(
                      error, KV_FATAL, "%s: other bytes came out than went in", coded->coder->name);
}

/* What a load from memory would be if that held encoded units: each is decoded into the processor's
 * cache, and copied and verified from there. */
static kv_status_t sample_load(void *context, double *value_out, kv_error_t *error)
{
    coded_t *coded = context;
    size_t first, count = take_items(coded, &first);
    uint8_t *unit = kv_allocate(coded->item_bytes);
    uint64_t sums = 0;
    bool good = true;
    const uint64_t begun_ns = thread_ns();
    for (size_t i = first; i < first + count; i++) {
        good &= decode(coded, i, unit);
        sums ^= kv_checksum_copy(
            place_of(coded, &coded->bench->destination, i), unit, coded->item_bytes);
    }
    kv_checksum_copy_fence();
    const uint64_t ns = thread_ns() - begun_ns;
    free(unit);
    *value_out = (double)(count * coded->item_bytes) / (double)ns;
    for (size_t i = first; i < first + count; i++) {
        sums ^= kv_checksum(place_of(coded, &coded->bench->source, i), coded->item_bytes);
    }
    return good && sums == 0 ? KV_OK
                             : kv_fail(error, KV_FATAL, "%s: other bytes came out than went in",
                                   coded->coder->name);
}

/* What it is. */
static kv_status_t sample_plain_load(void *context, double *value_out, kv_error_t *error)
{
    (void)error;
    coded_t *coded = context;
    size_t first, count = take_items(coded, &first);
    const uint64_t begun_ns = thread_ns();
    for (size_t i = first; i < first + count; i++) {
        (void)kv_checksum_copy(place_of(coded, &coded->bench->destination, i),
            place_of(coded, &coded->bench->source, i), coded->item_bytes);
    }
    kv_checksum_copy_fence();
    const uint64_t ns = thread_ns() - begun_ns;
    *value_out = (double)(count * coded->item_bytes) / (double)ns;
    return KV_OK;
}

/* ---- measures ---- */

typedef struct {
    const char *name, *unit;
    kv_status_t (*sample)(void *context, double *value_out, kv_error_t *error);
    double target; /* of ours alone */
} aspect_t;

static const aspect_t ASPECTS[] = {
    {"ratio", "x", sample_ratio, TARGET_RATIO},
    {"encode", "GB/s", sample_encode, NAN},
    {"decode", "GB/s", sample_decode, TARGET_DECODE},
};
enum { ASPECT_COUNT = sizeof ASPECTS / sizeof ASPECTS[0] };

static char *name_of(const aspect_t *aspect, const coder_t *theirs, char *name_out)
{
    snprintf(name_out, KV_BENCH_CODEC_NAME_BYTES, "%s%s%s", aspect->name,
        theirs != NULL ? ", beside " : "", theirs != NULL ? theirs->name : "");
    return name_out;
}

static bool wants_any(const kv_bench_codec_t *bench, const coder_t *theirs)
{
    char name[KV_BENCH_CODEC_NAME_BYTES];
    for (size_t i = 0; i < ASPECT_COUNT; i++) {
        if (kv_bench_codec_wants(bench, name_of(&ASPECTS[i], theirs, name))) {
            return true;
        }
    }
    return false;
}

/* All aspects of ours, beside another codec or alone. */
static kv_status_t measure(
    kv_bench_codec_t *bench, coded_t *ours, const coder_t *other, kv_error_t *error)
{
    coded_t theirs;
    if (!wants_any(bench, other)) {
        return KV_OK; /* encoding all of it takes a while */
    }
    if (other != NULL) {
        open_coded(bench, other, &theirs);
    }
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < ASPECT_COUNT && status == KV_OK; i++) {
        char name[KV_BENCH_CODEC_NAME_BYTES];
        const aspect_t *aspect = &ASPECTS[i];
        const kv_measure_t of = {.name = name_of(aspect, other, name),
            .unit = aspect->unit,
            .against = other != NULL ? other->name : NULL,
            .target = other == NULL ? aspect->target : NAN};
        const kv_side_t our_side = {aspect->sample, ours}, their_side = {aspect->sample, &theirs};
        if (kv_bench_codec_wants(bench, name)) {
            status = kv_report_pairs(
                &bench->report, &of, other != NULL ? &their_side : NULL, &our_side, error);
        }
    }
    if (other != NULL) {
        close_coded(&theirs);
    }
    return status;
}

/* A verified copy out of memory, units encoded beside units as they are. */
static kv_status_t measure_load(kv_bench_codec_t *bench, coded_t *ours, kv_error_t *error)
{
    const kv_measure_t of = {.name = "verified copy out of memory",
        .unit = "GB/s",
        .against = "units as they are",
        .target = NAN};
    coded_t theirs = *ours; /* on a course of its own through the source */
    const kv_side_t our_side = {sample_load, ours}, their_side = {sample_plain_load, &theirs};
    return kv_bench_codec_wants(bench, of.name)
               ? kv_report_pairs(&bench->report, &of, &their_side, &our_side, error)
               : KV_OK;
}

kv_status_t kv_bench_codec_code(kv_bench_codec_t *bench, kv_error_t *error)
{
    coded_t ours;
    open_coded(bench, &OURS, &ours);
    kv_status_t status = measure(bench, &ours, NULL, error);
    if (status == KV_OK) {
        status = measure_load(bench, &ours, error);
    }
    for (size_t other = 0; other < OTHER_COUNT && status == KV_OK; other++) {
        status = measure(bench, &ours, &OTHERS[other], error);
    }
    close_coded(&ours);
    return status;
}
