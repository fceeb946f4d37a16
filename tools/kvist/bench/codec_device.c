/* Blocks between a device and a record's buffer: packed where they lie, beside the host's codec
 * before or after a move. Both sides prove what arrived, as the store does. */
#include "tools/kvist/bench/codec.h"

#include "base/checksum.h"
#include "base/clock.h"
#include "kernels/moves.h"
#include "kernels/plugin.h"
#include "kvstore/codec/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_MAX = 32 };

/* Slots full of KV, and what the host makes of them. */
typedef struct {
    const kv_bench_codec_t *bench;
    kv_device_t *device;
    char *arena;
    uint32_t slot_count, unit_count;
    uint32_t next;          /* slot that the next sample begins with */
    kv_region_t buffer;     /* pinned: a packed block, and one as it is */
    uint32_t *lengths;      /* [slot_count][unit_count], by the host */
    uint8_t *packed;        /* [slot_count][block_bytes], by the host */
    uint32_t *told_lengths; /* [unit_count], of the slot at hand */
    uint64_t *sums;         /* [unit_count] */
} shelf_t;

/* ---- one block ---- */

typedef kv_status_t (*pass_t)(shelf_t *shelf, uint32_t slot, kv_error_t *error);

static char *packed_at(const shelf_t *shelf)
{
    return shelf->buffer.base;
}

static char *plain_at(const shelf_t *shelf)
{
    return (char *)shelf->buffer.base + shelf->bench->block_bytes;
}

static kv_pack_t pack_of(const shelf_t *shelf, uint32_t slot, const kv_unit_run_t *run)
{
    return (kv_pack_t){.arena = shelf->arena,
        .slot_bytes = shelf->bench->block_bytes,
        .slot = slot,
        .layer_count = shelf->unit_count,
        .runs = run,
        .run_count = 1,
        .packed = packed_at(shelf),
        .lengths = shelf->told_lengths,
        .checksums = shelf->sums};
}

static kv_status_t pack_there(shelf_t *shelf, uint32_t slot, kv_error_t *error)
{
    const kv_unit_run_t run = {1, shelf->bench->unit_bytes, KV_BENCH_CODEC_ELEMENT_BYTES};
    const kv_pack_t pack = pack_of(shelf, slot, &run);
    size_t bytes;
    return shelf->device->ops->pack(shelf->device, &pack, &bytes, error);
}

static kv_status_t move(
    shelf_t *shelf, kv_move_direction_t direction, uint32_t slot, kv_error_t *error)
{
    const kv_move_one_t one = {.direction = direction,
        .arena = shelf->arena,
        .slot_bytes = shelf->bench->block_bytes,
        .slot = slot,
        .outside = plain_at(shelf),
        .unit_bytes = shelf->bench->unit_bytes,
        .checksums = shelf->sums};
    return kv_move_one(shelf->device, &one, error);
}

static kv_status_t pack_here(shelf_t *shelf, uint32_t slot, kv_error_t *error)
{
    const uint32_t unit_bytes = shelf->bench->unit_bytes;
    kv_status_t status = move(shelf, KV_MOVE_OUT, slot, error);
    size_t used = 0;
    for (uint32_t i = 0; i < shelf->unit_count && status == KV_OK; i++) {
        const char *unit = plain_at(shelf) + (size_t)i * unit_bytes;
        if (kv_checksum(unit, unit_bytes) != shelf->sums[i]) {
            return kv_fail(error, KV_IO, "a block was damaged on its way from the device");
        }
        shelf->told_lengths[i] = (uint32_t)kv_codec_encode(KVIST_CODEC_BF16, unit, unit_bytes,
            KV_BENCH_CODEC_ELEMENT_BYTES, packed_at(shelf) + used);
        used += shelf->told_lengths[i];
    }
    return status;
}

static kv_status_t unpack_there(shelf_t *shelf, uint32_t slot, kv_error_t *error)
{
    const kv_unit_run_t run = {1, shelf->bench->unit_bytes, KV_BENCH_CODEC_ELEMENT_BYTES};
    const kv_pack_t pack = pack_of(shelf, slot, &run);
    return shelf->device->ops->unpack(shelf->device, &pack, error);
}

static kv_status_t unpack_here(shelf_t *shelf, uint32_t slot, kv_error_t *error)
{
    const uint32_t unit_bytes = shelf->bench->unit_bytes;
    size_t used = 0;
    for (uint32_t i = 0; i < shelf->unit_count; i++) {
        if (kv_codec_decode(KVIST_CODEC_BF16, packed_at(shelf) + used, shelf->told_lengths[i],
                plain_at(shelf) + (size_t)i * unit_bytes, unit_bytes) != KV_OK) {
            return kv_fail(error, KV_FATAL, "no encoder made what was packed");
        }
        used += shelf->told_lengths[i];
    }
    return move(shelf, KV_MOVE_IN, slot, error);
}

/* ---- samples ---- */

static const uint8_t *block_of(const shelf_t *shelf, uint32_t slot)
{
    return (const uint8_t *)shelf->bench->source.base + (size_t)slot * shelf->bench->block_bytes;
}

/* What the slot's block is packed lies where it is unpacked from. */
static void lay_packed(shelf_t *shelf, uint32_t slot)
{
    memcpy(packed_at(shelf), shelf->packed + (size_t)slot * shelf->bench->block_bytes,
        shelf->bench->block_bytes);
    memcpy(shelf->told_lengths, shelf->lengths + (size_t)slot * shelf->unit_count,
        shelf->unit_count * sizeof *shelf->lengths);
}

static bool is_packed(const shelf_t *shelf, uint32_t slot)
{
    const uint32_t *lengths = shelf->lengths + (size_t)slot * shelf->unit_count;
    size_t bytes = 0;
    for (uint32_t i = 0; i < shelf->unit_count; i++) {
        bytes += lengths[i];
    }
    return memcmp(lengths, shelf->told_lengths, shelf->unit_count * sizeof *lengths) == 0 &&
           memcmp(shelf->packed + (size_t)slot * shelf->bench->block_bytes, packed_at(shelf),
               bytes) == 0;
}

static bool is_sealed(const shelf_t *shelf, uint32_t slot)
{
    const uint32_t unit_bytes = shelf->bench->unit_bytes;
    bool good = true;
    for (uint32_t i = 0; i < shelf->unit_count; i++) {
        good = good && shelf->sums[i] ==
                           kv_checksum(block_of(shelf, slot) + (size_t)i * unit_bytes, unit_bytes);
    }
    return good;
}

/* Blocks one after the other; each is compared, off the clock. */
static kv_status_t sample(
    shelf_t *shelf, pass_t pass, bool out, double *value_out, kv_error_t *error)
{
    const uint32_t block_bytes = shelf->bench->block_bytes;
    uint64_t count = shelf->bench->sample_bytes / block_bytes, ns = 0;
    count = count > 0 ? count : 1;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t slot = shelf->next++ % shelf->slot_count;
        if (!out) {
            lay_packed(shelf, slot);
        }
        const uint64_t begun_ns = kv_clock_now_ns();
        kv_status_t status = pass(shelf, slot, error);
        ns += kv_clock_now_ns() - begun_ns;
        if (status != KV_OK) {
            return status;
        }
        if (!is_sealed(shelf, slot) || (out && !is_packed(shelf, slot))) {
            return kv_fail(error, KV_FATAL, "the device's block is not the host's");
        }
    }
    *value_out = (double)(count * block_bytes) / (double)ns;
    return KV_OK;
}

static kv_status_t sample_pack_there(void *context, double *value_out, kv_error_t *error)
{
    return sample(context, pack_there, true, value_out, error);
}

static kv_status_t sample_pack_here(void *context, double *value_out, kv_error_t *error)
{
    return sample(context, pack_here, true, value_out, error);
}

static kv_status_t sample_unpack_there(void *context, double *value_out, kv_error_t *error)
{
    return sample(context, unpack_there, false, value_out, error);
}

static kv_status_t sample_unpack_here(void *context, double *value_out, kv_error_t *error)
{
    return sample(context, unpack_here, false, value_out, error);
}

/* ---- a shelf ---- */

static void close_shelf(shelf_t *shelf)
{
    const size_t arena_bytes = (size_t)shelf->slot_count * shelf->bench->block_bytes;
    if (shelf->buffer.base != NULL) {
        kv_region_unmap(&shelf->buffer);
    }
    if (shelf->arena != NULL) {
        shelf->device->ops->release(shelf->device, shelf->arena, arena_bytes);
    }
    free(shelf->lengths);
    free(shelf->packed);
    free(shelf->told_lengths);
    free(shelf->sums);
}

static void pack_all(shelf_t *shelf)
{
    const uint32_t unit_bytes = shelf->bench->unit_bytes;
    for (uint32_t slot = 0; slot < shelf->slot_count; slot++) {
        uint8_t *to = shelf->packed + (size_t)slot * shelf->bench->block_bytes;
        for (uint32_t i = 0; i < shelf->unit_count; i++) {
            const size_t got =
                kv_codec_encode(KVIST_CODEC_BF16, block_of(shelf, slot) + (size_t)i * unit_bytes,
                    unit_bytes, KV_BENCH_CODEC_ELEMENT_BYTES, to);
            shelf->lengths[(size_t)slot * shelf->unit_count + i] = (uint32_t)got;
            to += got;
        }
    }
}

static kv_status_t open_shelf(shelf_t *shelf, kv_error_t *error)
{
    const kv_bench_codec_t *bench = shelf->bench;
    const uint64_t blocks = bench->source.bytes / bench->block_bytes;
    shelf->slot_count = blocks < SLOTS_MAX ? (uint32_t)blocks : (uint32_t)SLOTS_MAX;
    shelf->unit_count = bench->block_bytes / bench->unit_bytes;
    const size_t arena_bytes = (size_t)shelf->slot_count * bench->block_bytes;
    shelf->lengths =
        kv_allocate_array((size_t)shelf->slot_count * shelf->unit_count, sizeof *shelf->lengths);
    shelf->packed = kv_allocate(arena_bytes);
    shelf->told_lengths = kv_allocate_array(shelf->unit_count, sizeof *shelf->told_lengths);
    shelf->sums = kv_allocate_array(shelf->unit_count, sizeof *shelf->sums);
    void *arena;
    kv_status_t status = kv_region_map(2 * (size_t)bench->block_bytes, &shelf->buffer, error);
    if (status == KV_OK) {
        status = shelf->device->ops->allocate(shelf->device, arena_bytes, &arena, error);
    }
    if (status != KV_OK) {
        return status;
    }
    shelf->arena = arena;
    pack_all(shelf);
    return shelf->device->ops->copy_in(
        shelf->device, shelf->arena, bench->source.base, arena_bytes, error);
}

static kv_status_t measure(kv_bench_codec_t *bench, shelf_t *shelf, kv_error_t *error)
{
    shelf_t theirs = *shelf; /* in turns of its own through the slots */
    const struct {
        const char *name;
        kv_side_t ours, theirs;
    } rows[] = {
        {"from the device, packed there", {sample_pack_there, shelf}, {sample_pack_here, &theirs}},
        {"to the device, unpacked there", {sample_unpack_there, shelf},
            {sample_unpack_here, &theirs}},
    };
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && status == KV_OK; i++) {
        const kv_measure_t of = {
            .name = rows[i].name, .unit = "GB/s", .against = "by one core", .target = NAN};
        if (kv_bench_codec_wants(bench, of.name)) {
            status = kv_report_pairs(&bench->report, &of, &rows[i].theirs, &rows[i].ours, error);
        }
    }
    return status;
}

kv_status_t kv_bench_codec_device(kv_bench_codec_t *bench, const char *name, kv_error_t *error)
{
    shelf_t shelf = {.bench = bench};
    kv_status_t status = kv_device_open(name, 1, &shelf.device, NULL, error);
    if (status != KV_OK) {
        return status;
    }
    if (shelf.device->ops->pack == NULL || bench->unit_bytes > KV_PACK_LAYER_BYTES_MAX) {
        status = kv_fail(error, KV_INVALID, "--device %s: it packs no units of %u bytes", name,
            bench->unit_bytes);
    } else {
        status = open_shelf(&shelf, error);
        kv_error_t unpinned;
        const bool pinned = status == KV_OK && kv_device_pin(shelf.device, shelf.buffer.base,
                                                   shelf.buffer.bytes, &unpinned) == KV_OK;
        if (status == KV_OK) {
            fprintf(bench->notes, "# device %s, memory %spinned, one thread; wall-clock time\n",
                name, pinned ? "" : "not ");
            status = measure(bench, &shelf, error);
        }
        if (pinned) {
            kv_device_unpin(shelf.device, shelf.buffer.base, shelf.buffer.bytes);
        }
        close_shelf(&shelf);
    }
    kv_device_close(shelf.device);
    return status;
}
