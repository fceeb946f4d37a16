/* Slots through KV's codec: packed where they lie, so that what leaves for a disk crosses the bus
 * small and costs no processor of the host; and back.
 *
 *   out   slot --seal--> sums, --pack--> packed, lengths --seal--> stored sums; these come first,
 *         since they say how much of packed there is; then that, proved by the stored sums
 *   in    lengths, packed --unpack--> slot --seal--> sums
 *
 * It goes by slices, as many whole layers as the lane's memory holds: half of it to encode in, half
 * for what is packed. All that is small lies together in the lane's sums, in one form on the device
 * and in the lane's pinned memory, so that one copy each way brings it:
 *
 *   | stored sums, u64 each | sums, u64 each | damaged, u32 | lengths, u32 each | offsets, u32 |
 */
#include "kernels/cuda/codec.h"
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/seal.h"

#include "base/check.h"
#include "base/checksum.h"

#include <string.h>

enum {
    SLICE_UNITS_MAX = 16384,
    THREAD_BLOCKS_MAX = 16, /* as moves: kernels beside the compute stream's */
};

#define SLICE_BYTES_MAX (CUDA_LANE_BYTES / 2)

static_assert(KV_PACK_LAYER_BYTES_MAX <= SLICE_BYTES_MAX, "a slice has a layer at least");
static_assert((int)KV_PACK_LAYER_UNITS_MAX <= (int)SLICE_UNITS_MAX, "a slice has a layer at least");
static_assert((int)KV_PACK_RUNS_MAX <= (int)CUDA_PARTS_MAX, "the units of a layer");
static_assert((2 * 8 + 2 * 4) * SLICE_UNITS_MAX + 2 * 4 <= CUDA_TOLD_BYTES, "a slice's sums");

/* Layers first to first + count - 1 of a slot. */
typedef struct {
    cuda_device_t *cuda;
    cuda_lane_t *lane;
    const kv_pack_t *pack;
    cuda_units_t units; /* of the slice */
    uint32_t first;     /* layer */
    uint32_t unit_first;
    size_t bytes;
    size_t packed_at; /* the slice's place in what is packed */
} slice_t;

/* Where the small arrays of a slice lie, on the device or in pinned memory. */
typedef struct {
    char *base;
    uint64_t *stored_sums, *sums;
    uint32_t *damaged, *lengths, *offsets;
} told_t;

static told_t told_at(void *base, uint32_t unit_count)
{
    told_t told;
    told.base = (char *)base;
    told.stored_sums = (uint64_t *)base;
    told.sums = told.stored_sums + unit_count;
    told.damaged = (uint32_t *)(told.sums + unit_count);
    told.lengths = told.damaged + 1;
    told.offsets = told.lengths + unit_count;
    return told;
}

static told_t told_on_device(const slice_t *slice)
{
    return told_at(slice->lane->sums, slice->units.unit_count);
}

static told_t told_here(const slice_t *slice)
{
    return told_at(slice->lane->told, slice->units.unit_count);
}

/* The part of the small arrays between the two places here, to or from the device. */
static kv_status_t copy_told(const slice_t *slice, kv_move_direction_t direction, const void *from,
    const void *end, kv_error_t *error)
{
    const told_t here = told_here(slice), there = told_on_device(slice);
    const size_t at = (size_t)((const char *)from - here.base);
    return cuda_copy_async(slice->cuda, slice->lane->stream, direction, there.base + at,
        here.base + at, (size_t)((const char *)end - (const char *)from), error);
}

/* ---- slices ---- */

static slice_t first_slice(cuda_device_t *cuda, cuda_lane_t *lane, const kv_pack_t *pack)
{
    slice_t slice = {};
    slice.cuda = cuda;
    slice.lane = lane;
    slice.pack = pack;
    KV_CHECK(pack->run_count >= 1 && pack->run_count <= KV_PACK_RUNS_MAX);
    slice.units.part_count = pack->run_count;
    for (uint32_t i = 0; i < pack->run_count; i++) {
        const kv_unit_run_t *run = &pack->runs[i];
        cuda_part_t *part = &slice.units.parts[i];
        part->unit_first = slice.units.layer_units;
        part->offset_bytes = (uint32_t)slice.units.layer_bytes;
        part->unit_bytes = run->unit_bytes;
        part->element_bytes = run->element_bytes;
        slice.units.layer_units += run->unit_count;
        slice.units.layer_bytes += (uint64_t)run->unit_count * run->unit_bytes;
    }
    KV_CHECK(slice.units.layer_bytes >= 1 && slice.units.layer_bytes <= KV_PACK_LAYER_BYTES_MAX);
    KV_CHECK(slice.units.layer_units <= KV_PACK_LAYER_UNITS_MAX);
    KV_CHECK(slice.units.layer_bytes * pack->layer_count <= pack->slot_bytes);
    return slice;
}

/* As many of the layers that are left as fit. false: none are. */
static bool cut_slice(slice_t *slice)
{
    const cuda_units_t *units = &slice->units;
    uint32_t count = slice->pack->layer_count - slice->first;
    if (count > SLICE_BYTES_MAX / units->layer_bytes) {
        count = (uint32_t)(SLICE_BYTES_MAX / units->layer_bytes);
    }
    if (count > SLICE_UNITS_MAX / units->layer_units) {
        count = SLICE_UNITS_MAX / units->layer_units;
    }
    slice->units.unit_count = count * units->layer_units;
    slice->bytes = count * units->layer_bytes;
    return count > 0;
}

static void pass_slice(slice_t *slice, size_t packed_bytes)
{
    slice->packed_at += packed_bytes;
    slice->first += slice->units.unit_count / slice->units.layer_units;
    slice->unit_first += slice->units.unit_count;
}

static cuda_blocks_t slot_of(const slice_t *slice)
{
    const kv_pack_t *pack = slice->pack;
    cuda_blocks_t blocks = {};
    blocks.base = (uint8_t *)pack->arena + pack->slot * pack->slot_bytes +
                  slice->first * slice->units.layer_bytes;
    blocks.stride_bytes = pack->slot_bytes;
    return blocks;
}

static uint8_t *packed_on_device(const slice_t *slice)
{
    return (uint8_t *)slice->lane->staging + SLICE_BYTES_MAX;
}

static kv_status_t seal_slot(const slice_t *slice, kv_error_t *error)
{
    const cuda_blocks_t slot = slot_of(slice);
    cuda_seal_t seal = {};
    seal.units = &slice->units;
    seal.from = &slot;
    seal.block_count = 1;
    seal.thread_blocks_max = THREAD_BLOCKS_MAX;
    seal.checksums_out = told_on_device(slice).sums;
    return cuda_seal(cuda_opaque(slice->lane->stream), &seal, error);
}

/* ---- out ---- */

static kv_status_t seal_packed(const slice_t *slice, kv_error_t *error)
{
    const told_t there = told_on_device(slice);
    cuda_blocks_t packed = {};
    packed.base = packed_on_device(slice);
    packed.stride_bytes = SLICE_BYTES_MAX;
    cuda_seal_t seal = {};
    seal.units = &slice->units;
    seal.from = &packed;
    seal.block_count = 1;
    seal.thread_blocks_max = THREAD_BLOCKS_MAX;
    seal.offsets = there.offsets;
    seal.checksums_out = there.stored_sums;
    return cuda_seal(cuda_opaque(slice->lane->stream), &seal, error);
}

static kv_status_t enqueue_pack(const slice_t *slice, kv_error_t *error)
{
    const told_t there = told_on_device(slice), here = told_here(slice);
    const cuda_blocks_t slot = slot_of(slice);
    cuda_pack_t pack = {};
    pack.units = &slice->units;
    pack.from = &slot;
    pack.block_count = 1;
    pack.thread_blocks_max = THREAD_BLOCKS_MAX;
    pack.scratch = (uint8_t *)slice->lane->staging;
    pack.packed_out = packed_on_device(slice);
    pack.object_bytes = pack.packed_stride_bytes = SLICE_BYTES_MAX;
    pack.lengths_out = there.lengths;
    pack.offsets_out = there.offsets;
    kv_status_t status = seal_slot(slice, error);
    if (status == KV_OK) {
        status = cuda_pack(cuda_opaque(slice->lane->stream), &pack, error);
    }
    if (status == KV_OK) {
        status = seal_packed(slice, error);
    }
    if (status == KV_OK) {
        status = copy_told(slice, KV_MOVE_OUT, here.base, here.offsets, error);
    }
    return status;
}

/* What the slice takes packed, from the lengths that came. */
static kv_status_t packed_bytes_of(const slice_t *slice, size_t *bytes_out, kv_error_t *error)
{
    const told_t here = told_here(slice);
    size_t bytes = 0;
    for (uint32_t i = 0; i < slice->units.unit_count; i++) {
        bytes += here.lengths[i];
    }
    if (bytes > slice->bytes) {
        return kv_fail(error, KV_IO, "the gpu packed %zu bytes to %zu", slice->bytes, bytes);
    }
    *bytes_out = bytes;
    return KV_OK;
}

/* Whether what has come is what the device sealed. */
static kv_status_t prove_packed(const slice_t *slice, kv_error_t *error)
{
    const told_t here = told_here(slice);
    const char *at = slice->pack->packed + slice->packed_at;
    for (uint32_t i = 0; i < slice->units.unit_count; i++) {
        if (kv_checksum(at, here.lengths[i]) != here.stored_sums[i]) {
            return kv_fail(error, KV_IO,
                "unit %u changed between gpu %d and the host's memory: its bus is not to be "
                "trusted",
                slice->unit_first + i, slice->cuda->ordinal);
        }
        at += here.lengths[i];
    }
    return KV_OK;
}

static kv_status_t pack_slice(const slice_t *slice, size_t *bytes_out, kv_error_t *error)
{
    const kv_pack_t *pack = slice->pack;
    kv_status_t status = enqueue_pack(slice, error);
    /* Nothing may be under way when a call has failed. */
    kv_status_t drained =
        cuda_lane_drain(slice->cuda, slice->lane, status == KV_OK ? error : nullptr);
    status = status == KV_OK ? drained : status;
    size_t bytes = 0;
    if (status == KV_OK) {
        status = packed_bytes_of(slice, &bytes, error);
    }
    if (status != KV_OK) {
        return status;
    }
    status = cuda_copy_async(slice->cuda, slice->lane->stream, KV_MOVE_OUT,
        (char *)packed_on_device(slice), pack->packed + slice->packed_at, bytes, error);
    drained = cuda_lane_drain(slice->cuda, slice->lane, status == KV_OK ? error : nullptr);
    status = status == KV_OK ? drained : status;
    if (status == KV_OK) {
        status = prove_packed(slice, error);
    }
    if (status == KV_OK) {
        const told_t here = told_here(slice);
        const uint32_t count = slice->units.unit_count;
        memcpy(pack->lengths + slice->unit_first, here.lengths, count * sizeof *here.lengths);
        memcpy(pack->checksums + slice->unit_first, here.sums, count * sizeof *here.sums);
        *bytes_out = bytes;
    }
    return status;
}

kv_status_t cuda_slot_pack(
    kv_device_t *device, const kv_pack_t *pack, size_t *packed_bytes_out, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_status_t status = cuda_enter(cuda, error);
    if (status != KV_OK) {
        return status;
    }
    cuda_lane_t *lane = cuda_lane_take(cuda);
    slice_t slice = first_slice(cuda, lane, pack);
    while (status == KV_OK && cut_slice(&slice)) {
        size_t bytes = 0;
        status = pack_slice(&slice, &bytes, error);
        pass_slice(&slice, bytes);
    }
    cuda_lane_give(cuda, lane);
    if (status == KV_OK) {
        *packed_bytes_out = slice.packed_at;
    }
    return status;
}

/* ---- in ---- */

/* The slice's lengths where they can be copied from; KV_CORRUPT: one that no encoder said. */
static kv_status_t lengths_of(const slice_t *slice, size_t *bytes_out, kv_error_t *error)
{
    const told_t here = told_here(slice);
    const kv_pack_t *pack = slice->pack;
    size_t bytes = 0;
    for (uint32_t i = 0; i < slice->units.unit_count; i++) {
        here.lengths[i] = pack->lengths[slice->unit_first + i];
        bytes += here.lengths[i];
    }
    if (bytes > slice->bytes) {
        return kv_fail(
            error, KV_CORRUPT, "%zu bytes are said to be packed in %zu", slice->bytes, bytes);
    }
    *here.damaged = 0;
    *bytes_out = bytes;
    return KV_OK;
}

static kv_status_t enqueue_unpack(const slice_t *slice, size_t bytes, kv_error_t *error)
{
    const told_t there = told_on_device(slice), here = told_here(slice);
    const cuda_blocks_t slot = slot_of(slice);
    cuda_unpack_t unpack = {};
    unpack.units = &slice->units;
    unpack.to = &slot;
    unpack.block_count = 1;
    unpack.thread_blocks_max = THREAD_BLOCKS_MAX;
    unpack.packed = packed_on_device(slice);
    unpack.object_bytes = unpack.packed_stride_bytes = SLICE_BYTES_MAX;
    unpack.lengths = there.lengths;
    unpack.offsets = there.offsets;
    unpack.damaged = there.damaged;
    kv_status_t status = copy_told(slice, KV_MOVE_IN, here.damaged, here.offsets, error);
    if (status == KV_OK) {
        status = cuda_copy_async(slice->cuda, slice->lane->stream, KV_MOVE_IN,
            (char *)packed_on_device(slice), slice->pack->packed + slice->packed_at, bytes, error);
    }
    if (status == KV_OK) {
        status = cuda_unpack(cuda_opaque(slice->lane->stream), &unpack, error);
    }
    if (status == KV_OK) {
        status = seal_slot(slice, error);
    }
    if (status == KV_OK) {
        status = copy_told(slice, KV_MOVE_OUT, here.sums, here.lengths, error);
    }
    return status;
}

static kv_status_t unpack_slice(const slice_t *slice, size_t *bytes_out, kv_error_t *error)
{
    const told_t here = told_here(slice);
    size_t bytes = 0;
    kv_status_t status = lengths_of(slice, &bytes, error);
    if (status != KV_OK) {
        return status;
    }
    status = enqueue_unpack(slice, bytes, error);
    kv_status_t drained =
        cuda_lane_drain(slice->cuda, slice->lane, status == KV_OK ? error : nullptr);
    status = status == KV_OK ? drained : status;
    if (status == KV_OK && *here.damaged > 0) {
        status = kv_fail(error, KV_CORRUPT, "no encoder made %u units of what was to be unpacked",
            *here.damaged);
    }
    if (status == KV_OK) {
        memcpy(slice->pack->checksums + slice->unit_first, here.sums,
            slice->units.unit_count * sizeof *here.sums);
        *bytes_out = bytes;
    }
    return status;
}

kv_status_t cuda_slot_unpack(kv_device_t *device, const kv_pack_t *pack, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_status_t status = cuda_enter(cuda, error);
    if (status != KV_OK) {
        return status;
    }
    cuda_lane_t *lane = cuda_lane_take(cuda);
    slice_t slice = first_slice(cuda, lane, pack);
    while (status == KV_OK && cut_slice(&slice)) {
        size_t bytes = 0;
        status = unpack_slice(&slice, &bytes, error);
        pass_slice(&slice, bytes);
    }
    cuda_lane_give(cuda, lane);
    return status;
}
