/* Puts and gets: how near the store comes to the disk and to memory, and whether it is faster than
 * its peers. */
#include "tools/kvist/bench/store.h"

#include "kvstore/unverified.h"
#include "tools/kvist/bench/peer.h"
#include "tools/kvist/text.h"

#include <math.h>
#include <string.h>

static const double TARGET_DISK_GET = 0.95, TARGET_DISK_PUT = 0.90, TARGET_RAM_GET = 1.2,
                    TARGET_VERIFIED = 0.97, TARGET_PEER = 1.0;
static const size_t TARGET_DISK_GET_BYTES_MIN = 1 << 20; /* of a run */

/* What one operation moves. */
typedef struct {
    size_t object_bytes;
    uint32_t run_blocks; /* 1: random objects; else chains */
    bool quick;          /* part of a quick run */
} shape_t;

static const shape_t SHAPES[] = {
    {64 << 10, 1, false},
    {256 << 10, 1, true},
    {1 << 20, 1, true},
    {4 << 20, 1, false},
    {64 << 10, 16, true},
    {256 << 10, 8, false},
    {1 << 20, 4, false},
};

static const uint32_t GET_DEPTHS[] = {1, 8, 32}, PUT_DEPTHS[] = {8},
                      MIDDLE_PUT_DEPTHS[] = {1, 8, 32};
static const uint32_t RAM_DEPTHS[] = {1, 8};

enum {
    SHAPE_COUNT = sizeof SHAPES / sizeof SHAPES[0],
    MIDDLE_OBJECT_BYTES = 1 << 20, /* whose puts are measured at all depths */
};

typedef enum { PUT, GET } operation_t;
static const char *const OPERATIONS[] = {"put", "get"};

static size_t run_bytes(const shape_t *shape)
{
    return shape->object_bytes * shape->run_blocks;
}

/* "disk get, random 1.0 MiB, depth 8"; "ram put, chain 16 x 64 KiB, depth 1". */
static char *name_of(
    char *name_out, const char *tier, operation_t operation, const shape_t *shape, uint32_t depth)
{
    char size[KV_TEXT_BYTES], chain[32] = "random";
    if (shape->run_blocks > 1) {
        snprintf(chain, sizeof chain, "chain %u x", shape->run_blocks);
    }
    if (shape->object_bytes < 1 << 20) {
        snprintf(size, sizeof size, "%zu KiB", shape->object_bytes >> 10);
    } else {
        snprintf(size, sizeof size, "%zu MiB", shape->object_bytes >> 20);
    }
    snprintf(name_out, KV_BENCH_NAME_BYTES, "%s %s, %s %s, depth %u", tier, OPERATIONS[operation],
        chain, size, depth);
    return name_out;
}

/* ---- sides ---- */

/* A sample of the store. */
typedef struct {
    kv_subject_t *subject;
    operation_t operation;
    uint32_t run_count, depth;
    size_t run_bytes;
    bool durable;
    uint64_t barrier_bytes; /* of the last sample: what it put for each barrier; 0: none yet */
} store_side_t;

static kv_status_t sample_store(void *context, double *value_out, kv_error_t *error)
{
    store_side_t *side = context;
    uint64_t ns;
    const uint64_t barriers = kv_subject_stats(side->subject).barriers;
    kv_status_t status =
        side->operation == PUT
            ? kv_subject_put(side->subject, side->run_count, side->depth, side->durable, &ns, error)
            : kv_subject_get(side->subject, side->run_count, side->depth, &ns, error);
    const uint64_t more = kv_subject_stats(side->subject).barriers - barriers;
    side->barrier_bytes = (uint64_t)side->run_count * side->run_bytes / (more > 0 ? more : 1);
    /* Bytes in a nanosecond are gigabytes in a second. */
    *value_out = (double)side->run_count * (double)side->run_bytes / (double)ns;
    return status;
}

typedef struct {
    kv_bench_t *bench;
    const store_side_t *ours; /* its operation, size and depth, and its barriers */
} fio_side_t;

static kv_status_t sample_fio(void *context, double *value_out, kv_error_t *error)
{
    const fio_side_t *side = context;
    const store_side_t *ours = side->ours;
    kv_bench_t *bench = side->bench;
    /* Before the first sample of ours: one barrier at the end. */
    const uint64_t barrier_bytes =
        ours->barrier_bytes > 0 ? ours->barrier_bytes : bench->sample_bytes;
    double bytes_per_s = 0;
    kv_status_t status = ours->operation == PUT
                             ? kv_fio_write(&bench->fio, ours->run_bytes, ours->depth,
                                   bench->sample_bytes, barrier_bytes, &bytes_per_s, error)
                             : kv_fio_read(&bench->fio, ours->run_bytes, ours->depth,
                                   bench->sample_bytes, &bytes_per_s, error);
    *value_out = bytes_per_s / 1e9;
    return status;
}

/* One thread's memcpy, from places that jump to places that follow each other, as gets do. */
typedef struct {
    const kv_bench_t *bench;
    size_t run_bytes;
    uint32_t run_count;
    uint64_t at;
} copy_side_t;

static kv_status_t sample_copy(void *context, double *value_out, kv_error_t *error)
{
    copy_side_t *side = context;
    (void)error;
    const uint64_t places = side->bench->source.bytes / side->run_bytes;
    const uint64_t step = places * 618 / 1000 | 1;
    const uint64_t begun_ns = kv_clock_now_ns();
    for (uint32_t i = 0; i < side->run_count; i++, side->at++) {
        memcpy((char *)side->bench->destination.base + side->at % places * side->run_bytes,
            (const char *)side->bench->source.base + side->at * step % places * side->run_bytes,
            side->run_bytes);
    }
    const uint64_t ns = kv_clock_now_ns() - begun_ns;
    *value_out = (double)side->run_count * (double)side->run_bytes / (double)ns;
    return KV_OK;
}

/* ---- a store for a shape ---- */

static uint32_t runs_of(const kv_bench_t *bench, const shape_t *shape)
{
    const uint64_t count = bench->sample_bytes / run_bytes(shape);
    return count > 0 ? (uint32_t)count : 1;
}

/* In memory all of the working set has room; on disk memory holds an eighth of it, and the disk
 * twice as much. */
static kv_status_t open_subject(kv_bench_t *bench, const shape_t *shape, const char *directory,
    kv_subject_opener_t opener, kv_subject_t **subject_out, kv_error_t *error)
{
    const kv_subject_params_t params = {.object_bytes = shape->object_bytes,
        .run_blocks = shape->run_blocks,
        .run_count = (uint32_t)(bench->working_bytes / run_bytes(shape)),
        .host_bytes =
            directory == NULL ? bench->working_bytes + (64 << 20) : bench->working_bytes / 8,
        .directory = directory,
        .disk_bytes = directory == NULL ? 0 : 2 * bench->working_bytes + (256 << 20),
        .source = &bench->source,
        .destination = &bench->destination};
    kv_status_t status = kv_subject_open(&params, opener, subject_out, error);
    if (status == KV_OK && (status = kv_subject_fill(*subject_out, error)) != KV_OK) {
        kv_subject_close(*subject_out);
    }
    return status;
}

/* ---- disk ---- */

static kv_status_t measure_disk(kv_bench_t *bench, kv_subject_t *subject, const shape_t *shape,
    operation_t operation, uint32_t depth, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES], against[128];
    name_of(name, "disk", operation, shape, depth);
    if (!kv_bench_wants(bench, name)) {
        return KV_OK;
    }
    kv_measure_t measure = {.name = name, .unit = "GB/s", .target = NAN};
    if (operation == PUT) {
        measure.target = TARGET_DISK_PUT;
    } else if (run_bytes(shape) >= TARGET_DISK_GET_BYTES_MIN) {
        measure.target = TARGET_DISK_GET;
    }
    snprintf(against, sizeof against, "%s %s, same size, depth%s", bench->fio.version,
        operation == PUT ? "write" : "randread", operation == PUT ? ", barriers" : "");
    store_side_t ours = {
        subject, operation, runs_of(bench, shape), depth, run_bytes(shape), true, 0};
    fio_side_t theirs = {bench, &ours};
    if (!bench->has_fio) {
        measure.target = NAN;
    } else {
        measure.against = against;
    }
    const kv_side_t our_side = {sample_store, &ours}, their_side = {sample_fio, &theirs};
    return kv_report_pairs(
        &bench->report, &measure, bench->has_fio ? &their_side : NULL, &our_side, error);
}

static bool wants_depth(const kv_bench_t *bench, uint32_t depth)
{
    return bench->depth == 0 ? !bench->quick || depth == 8 : bench->depth == depth;
}

static bool wants_shape(const kv_bench_t *bench, const shape_t *shape)
{
    return bench->object_bytes == 0 ? !bench->quick || shape->quick
                                    : bench->object_bytes == shape->object_bytes;
}

static bool wants_any(const kv_bench_t *bench, const char *tier, operation_t operation,
    const shape_t *shape, const uint32_t *depths, size_t depth_count)
{
    char name[KV_BENCH_NAME_BYTES];
    for (size_t i = 0; i < depth_count; i++) {
        if (wants_depth(bench, depths[i]) &&
            kv_bench_wants(bench, name_of(name, tier, operation, shape, depths[i]))) {
            return true;
        }
    }
    return false;
}

static kv_status_t run_disk_shape(kv_bench_t *bench, const shape_t *shape, kv_error_t *error)
{
    const bool middle = shape->object_bytes == MIDDLE_OBJECT_BYTES && shape->run_blocks == 1;
    const uint32_t *put_depths = middle ? MIDDLE_PUT_DEPTHS : PUT_DEPTHS;
    const size_t put_count = middle ? 3 : 1, get_count = 3;
    const bool gets = wants_any(bench, "disk", GET, shape, GET_DEPTHS, get_count);
    const bool puts = wants_any(bench, "disk", PUT, shape, put_depths, put_count);
    if (!gets && !puts) {
        return KV_OK;
    }
    kv_subject_t *subject;
    char directory[KV_BENCH_FOLDER_BYTES + 16];
    snprintf(directory, sizeof directory, "%s/store", bench->folder);
    kv_status_t status = open_subject(bench, shape, directory, kvist_store_open, &subject, error);
    if (status != KV_OK) {
        return status;
    }
    for (size_t i = 0; i < get_count && gets && status == KV_OK; i++) {
        if (wants_depth(bench, GET_DEPTHS[i])) {
            status = measure_disk(bench, subject, shape, GET, GET_DEPTHS[i], error);
        }
    }
    if (puts && status == KV_OK) {
        /* Once through all segments: from then on puts write over what was written, as fio does. */
        uint64_t ns;
        const uint64_t rest = (bench->working_bytes + (256 << 20)) / run_bytes(shape);
        status = kv_subject_put(subject, (uint32_t)rest, 8, true, &ns, error);
    }
    for (size_t i = 0; i < put_count && puts && status == KV_OK; i++) {
        if (wants_depth(bench, put_depths[i])) {
            status = measure_disk(bench, subject, shape, PUT, put_depths[i], error);
        }
    }
    kv_subject_close(subject);
    kv_bench_folder_clear(bench->folder);
    return status;
}

/* ---- memory ---- */

static kv_status_t measure_ram(kv_bench_t *bench, kv_subject_t *subject, const shape_t *shape,
    operation_t operation, uint32_t depth, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES];
    name_of(name, "ram", operation, shape, depth);
    if (!wants_depth(bench, depth) || !kv_bench_wants(bench, name)) {
        return KV_OK;
    }
    const kv_measure_t measure = {.name = name,
        .unit = "GB/s",
        .against = "one memcpy of the same cold bytes",
        .target = operation == GET ? TARGET_RAM_GET : NAN};
    const uint32_t count = runs_of(bench, shape);
    store_side_t ours = {subject, operation, count, depth, run_bytes(shape), false, 0};
    copy_side_t theirs = {bench, run_bytes(shape), count, 0};
    return kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_copy, &theirs},
        &(kv_side_t){sample_store, &ours}, error);
}

static kv_status_t run_ram_shape(kv_bench_t *bench, const shape_t *shape, kv_error_t *error)
{
    const size_t depth_count = sizeof RAM_DEPTHS / sizeof RAM_DEPTHS[0];
    if (!wants_any(bench, "ram", GET, shape, RAM_DEPTHS, depth_count) &&
        !wants_any(bench, "ram", PUT, shape, RAM_DEPTHS, depth_count)) {
        return KV_OK;
    }
    kv_subject_t *subject;
    kv_status_t status = open_subject(bench, shape, NULL, kvist_store_open, &subject, error);
    if (status != KV_OK) {
        return status;
    }
    for (size_t i = 0; i < depth_count && status == KV_OK; i++) {
        status = measure_ram(bench, subject, shape, GET, RAM_DEPTHS[i], error);
    }
    for (size_t i = 0; i < depth_count && status == KV_OK; i++) {
        status = measure_ram(bench, subject, shape, PUT, RAM_DEPTHS[i], error);
    }
    kv_subject_close(subject);
    return status;
}

kv_status_t kv_bench_moves(kv_bench_t *bench, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < SHAPE_COUNT && status == KV_OK; i++) {
        if (wants_shape(bench, &SHAPES[i])) {
            status = run_disk_shape(bench, &SHAPES[i], error);
        }
    }
    for (size_t i = 0; i < SHAPE_COUNT && status == KV_OK; i++) {
        if (wants_shape(bench, &SHAPES[i])) {
            status = run_ram_shape(bench, &SHAPES[i], error);
        }
    }
    return status;
}

/* ---- what verifying costs ---- */

static kv_status_t compare_verification(
    kv_bench_t *bench, const shape_t *shape, uint32_t depth, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES], directories[2][KV_BENCH_FOLDER_BYTES + 16];
    name_of(name, "verified disk", GET, shape, depth);
    if (!wants_shape(bench, shape) || !kv_bench_wants(bench, name)) {
        return KV_OK;
    }
    const kv_subject_opener_t openers[2] = {kvist_store_open, kv_store_open_unverified};
    kv_subject_t *subjects[2] = {NULL, NULL};
    kv_status_t status = KV_OK;
    for (int i = 0; i < 2 && status == KV_OK; i++) {
        snprintf(directories[i], sizeof directories[i], "%s/store-%d", bench->folder, i);
        status = open_subject(bench, shape, directories[i], openers[i], &subjects[i], error);
    }
    if (status == KV_OK) {
        const kv_measure_t measure = {.name = name,
            .unit = "GB/s",
            .against = "the same store, not verifying",
            .target = TARGET_VERIFIED};
        const uint32_t count = runs_of(bench, shape);
        store_side_t ours = {subjects[0], GET, count, depth, run_bytes(shape), false, 0};
        store_side_t theirs = {subjects[1], GET, count, depth, run_bytes(shape), false, 0};
        status = kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_store, &theirs},
            &(kv_side_t){sample_store, &ours}, error);
    }
    for (int i = 0; i < 2; i++) {
        if (subjects[i] != NULL) {
            kv_subject_close(subjects[i]);
        }
    }
    kv_bench_folder_clear(bench->folder);
    return status;
}

kv_status_t kv_bench_verification(kv_bench_t *bench, kv_error_t *error)
{
    static const shape_t shapes[] = {{1 << 20, 1, true}, {64 << 10, 16, false}};
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && status == KV_OK; i++) {
        status = compare_verification(bench, &shapes[i], 8, error);
    }
    return status;
}

/* ---- against a peer ---- */

typedef struct {
    kv_peer_t *peer;
    operation_t operation;
    uint32_t count;
    size_t object_bytes;
} peer_side_t;

static kv_status_t sample_peer(void *context, double *value_out, kv_error_t *error)
{
    const peer_side_t *side = context;
    double seconds = 1;
    kv_status_t status =
        kv_peer_time(side->peer, OPERATIONS[side->operation], side->count, &seconds, error);
    *value_out = (double)side->count * (double)side->object_bytes / seconds / 1e9;
    return status;
}

static kv_status_t measure_peer(kv_bench_t *bench, kv_peer_t *peer, kv_subject_t *subject,
    const char *tier, operation_t operation, const shape_t *shape, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES];
    name_of(name, tier, operation, shape, 1);
    if (!kv_peer_can(peer, tier, OPERATIONS[operation]) || !kv_bench_wants(bench, name)) {
        return KV_OK;
    }
    const kv_measure_t measure = {
        .name = name, .unit = "GB/s", .against = peer->name, .target = TARGET_PEER};
    const uint32_t count = runs_of(bench, shape);
    const bool durable = strcmp(tier, "disk") == 0;
    store_side_t ours = {subject, operation, count, 1, shape->object_bytes, durable, 0};
    peer_side_t theirs = {peer, operation, count, shape->object_bytes};
    return kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_peer, &theirs},
        &(kv_side_t){sample_store, &ours}, error);
}

static kv_status_t run_peer_shape(
    kv_bench_t *bench, kv_peer_t *peer, const char *tier, const shape_t *shape, kv_error_t *error)
{
    char directory[KV_BENCH_FOLDER_BYTES + 16];
    char name[KV_BENCH_NAME_BYTES];
    bool wanted = false;
    for (int operation = PUT; operation <= GET; operation++) {
        wanted |= kv_peer_can(peer, tier, OPERATIONS[operation]) &&
                  kv_bench_wants(bench, name_of(name, tier, (operation_t)operation, shape, 1));
    }
    if (!wanted) {
        return KV_OK;
    }
    const bool disk = strcmp(tier, "disk") == 0;
    snprintf(directory, sizeof directory, "%s/store", bench->folder);
    kv_status_t status = kv_peer_prepare(
        peer, tier, shape->object_bytes, bench->working_bytes / shape->object_bytes, error);
    if (status != KV_OK) {
        return status;
    }
    kv_subject_t *subject;
    status = open_subject(bench, shape, disk ? directory : NULL, kvist_store_open, &subject, error);
    if (status != KV_OK) {
        return status;
    }
    for (int operation = GET; operation >= PUT && status == KV_OK; operation--) {
        status = measure_peer(bench, peer, subject, tier, (operation_t)operation, shape, error);
    }
    kv_subject_close(subject);
    kv_bench_folder_clear(bench->folder);
    return status;
}

kv_status_t kv_bench_against(kv_bench_t *bench, const char *driver, kv_error_t *error)
{
    static const char *const tiers[] = {"ram", "disk"};
    kv_peer_t peer;
    kv_status_t status = kv_peer_open(driver, &peer, error);
    if (status != KV_OK) {
        return status;
    }
    for (size_t tier = 0; tier < 2; tier++) {
        for (size_t i = 0; i < SHAPE_COUNT && status == KV_OK; i++) {
            if (SHAPES[i].run_blocks == 1 && wants_shape(bench, &SHAPES[i])) {
                status = run_peer_shape(bench, &peer, tiers[tier], &SHAPES[i], error);
            }
        }
    }
    kv_peer_close(&peer);
    return status;
}
