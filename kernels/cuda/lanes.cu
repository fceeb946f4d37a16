/* Lanes: streams on which copies and moves run beside the kernels.
 *
 *   out   slots --seal--> sums, --gather--> staging --copy--> memory outside
 *   in    memory outside --copy--> staging --scatter--> slots --seal--> sums
 *
 * Checksums come to pinned memory of the lane, and from there to the caller when the move is found
 * to have ended; those of a move with more than that holds go to the caller's array at once, for
 * which its start waits.
 *
 * Large parts go between slot and memory by the copy engine alone; small ones are gathered first,
 * since an engine needs as long for a fragment of 4 KiB as for one of 64. A move that does not fit
 * the staging goes in runs of slots, which the stream keeps apart. What lies beside the slots, in
 * memory that a network reads, is gathered there and copied no further. Several parts that have
 * one checksum are sealed where they lie together, in the staging or beside. */
#include "kernels/cuda/blocks.h"
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/seal.h"

#include "base/check.h"

#include <string.h>

enum {
    DIRECT_PART_BYTES = 64 << 10, /* from here on a copy engine loses nothing */
    THREAD_BLOCKS_MAX = 16,       /* of kernels beside the compute stream's */
};

/* ---- lanes ---- */

static kv_status_t open_lane(cuda_device_t *cuda, cuda_lane_t *lane, kv_error_t *error)
{
    kv_status_t status =
        cuda_check(cuda, cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking),
            "cudaStreamCreateWithFlags", error);
    if (status == KV_OK) {
        status = cuda_check(cuda,
            cudaEventCreateWithFlags(&lane->done, cudaEventBlockingSync | cudaEventDisableTiming),
            "cudaEventCreateWithFlags", error);
    }
    if (status == KV_OK) {
        status = cuda_check(
            cuda, cudaMalloc((void **)&lane->staging, CUDA_LANE_BYTES), "cudaMalloc", error);
    }
    if (status == KV_OK) {
        status =
            cuda_check(cuda, cudaMalloc((void **)&lane->sums, CUDA_SUMS_MAX * sizeof *lane->sums),
                "cudaMalloc", error);
    }
    if (status == KV_OK) {
        status = cuda_check(cuda,
            cudaHostAlloc((void **)&lane->told, CUDA_TOLD_BYTES, cudaHostAllocPortable),
            "cudaHostAlloc", error);
    }
    return status;
}

kv_status_t cuda_lanes_open(cuda_device_t *cuda, kv_error_t *error)
{
    pthread_mutex_init(&cuda->lanes.lock, nullptr);
    pthread_cond_init(&cuda->lanes.given, nullptr);
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; i < CUDA_LANES && status == KV_OK; i++) {
        status = open_lane(cuda, &cuda->lanes.items[i], error);
    }
    return status;
}

void cuda_lanes_close(cuda_device_t *cuda)
{
    for (uint32_t i = 0; i < CUDA_LANES; i++) {
        cuda_lane_t *lane = &cuda->lanes.items[i];
        KV_CHECK(!lane->busy);
        if (lane->stream != nullptr) {
            (void)cuda_check(cuda, cudaStreamDestroy(lane->stream), "cudaStreamDestroy", nullptr);
        }
        if (lane->done != nullptr) {
            (void)cuda_check(cuda, cudaEventDestroy(lane->done), "cudaEventDestroy", nullptr);
        }
        cuda_release(&cuda->device, lane->staging, CUDA_LANE_BYTES);
        cuda_release(&cuda->device, lane->sums, CUDA_SUMS_MAX * sizeof *lane->sums);
        if (lane->told != nullptr) {
            (void)cuda_check(cuda, cudaFreeHost(lane->told), "cudaFreeHost", nullptr);
        }
    }
    pthread_cond_destroy(&cuda->lanes.given);
    pthread_mutex_destroy(&cuda->lanes.lock);
}

static cuda_lane_t *free_lane(cuda_lanes_t *lanes)
{
    for (uint32_t i = 0; i < CUDA_LANES; i++) {
        if (!lanes->items[i].busy) {
            return &lanes->items[i];
        }
    }
    return nullptr;
}

cuda_lane_t *cuda_lane_take(cuda_device_t *cuda)
{
    cuda_lanes_t *lanes = &cuda->lanes;
    pthread_mutex_lock(&lanes->lock);
    cuda_lane_t *lane = free_lane(lanes);
    while (lane == nullptr) {
        pthread_cond_wait(&lanes->given, &lanes->lock);
        lane = free_lane(lanes);
    }
    lane->busy = true;
    pthread_mutex_unlock(&lanes->lock);
    return lane;
}

void cuda_lane_give(cuda_device_t *cuda, cuda_lane_t *lane)
{
    pthread_mutex_lock(&cuda->lanes.lock);
    lane->busy = false;
    pthread_cond_signal(&cuda->lanes.given);
    pthread_mutex_unlock(&cuda->lanes.lock);
}

kv_status_t cuda_lane_drain(cuda_device_t *cuda, cuda_lane_t *lane, kv_error_t *error)
{
    kv_status_t status =
        cuda_check(cuda, cudaEventRecord(lane->done, lane->stream), "cudaEventRecord", error);
    if (status == KV_OK) {
        return cuda_check(cuda, cudaEventSynchronize(lane->done), "cudaEventSynchronize", error);
    }
    /* Without an event the stream itself is waited for: nothing may be under way afterwards. */
    (void)cuda_check(cuda, cudaStreamSynchronize(lane->stream), "cudaStreamSynchronize", nullptr);
    return status;
}

/* ---- a run of slots ---- */

/* Slots first to first + count - 1 of a move. */
typedef struct {
    cuda_device_t *cuda;
    cuda_lane_t *lane;
    const kv_move_params_t *params;
    size_t slot_bytes; /* of one slot's parts */
    size_t unit_bytes; /* sealed at once; 0: nothing is */
    uint32_t slot_units;
    bool direct;   /* without the staging */
    bool together; /* several parts, sealed where they lie together */
    uint32_t first, count;
} run_t;

static cuda_blocks_t slots_of(const run_t *run, size_t offset_bytes)
{
    cuda_blocks_t blocks = {};
    blocks.base = (uint8_t *)run->params->arena + offset_bytes;
    blocks.stride_bytes = run->params->slot_bytes;
    blocks.slots = run->params->slots + run->first;
    return blocks;
}

/* Where the run's parts lie together: in the staging, or where a network reaches them. */
static cuda_blocks_t together_of(const run_t *run)
{
    cuda_blocks_t blocks = {};
    blocks.base =
        (uint8_t *)(run->params->beside ? run->params->outside[run->first] : run->lane->staging);
    blocks.stride_bytes = run->slot_bytes;
    return blocks;
}

/* Gathers the parts to where they lie together, or scatters them from there. */
static kv_status_t gather(const run_t *run, kv_error_t *error)
{
    const kv_move_params_t *params = run->params;
    const bool out = params->direction == KV_MOVE_OUT;
    const cuda_blocks_t slots = slots_of(run, 0);
    const cuda_blocks_t staging = together_of(run);
    cuda_range_t ranges[KV_MOVE_PARTS_MAX];
    size_t at = 0;
    for (uint32_t i = 0; i < params->part_count; i++) {
        const kv_slot_part_t *part = &params->parts[i];
        ranges[i].from_offset = out ? part->offset_bytes : at;
        ranges[i].to_offset = out ? at : part->offset_bytes;
        ranges[i].bytes = (uint32_t)part->bytes;
        at += part->bytes;
    }
    cuda_copy_t copy = {};
    copy.to = out ? &staging : &slots;
    copy.from = out ? &slots : &staging;
    copy.block_count = run->count;
    copy.ranges = ranges;
    copy.range_count = params->part_count;
    copy.thread_blocks_max = THREAD_BLOCKS_MAX;
    return cuda_copy_blocks(cuda_opaque(run->lane->stream), &copy, error);
}

/* Staging and memory outside: slots whose memory lies one behind the other are one copy. */
static kv_status_t copy_staging(const run_t *run, kv_error_t *error)
{
    char *const *outside = run->params->outside + run->first;
    kv_status_t status = KV_OK;
    if (run->params->beside) {
        return KV_OK; /* there already */
    }
    for (uint32_t at = 0; at < run->count && status == KV_OK;) {
        uint32_t end = at + 1;
        while (end < run->count && outside[end] == outside[end - 1] + run->slot_bytes) {
            end++;
        }
        status = cuda_copy_async(run->cuda, run->lane->stream, run->params->direction,
            run->lane->staging + at * run->slot_bytes, outside[at], (end - at) * run->slot_bytes,
            error);
        at = end;
    }
    return status;
}

static kv_status_t copy_slots(const run_t *run, kv_error_t *error)
{
    const kv_move_params_t *params = run->params;
    kv_status_t status = KV_OK;
    for (uint32_t at = run->first; at < run->first + run->count; at++) {
        char *slot = params->arena + params->slots[at] * params->slot_bytes,
             *outside = params->outside[at];
        for (uint32_t i = 0; i < params->part_count && status == KV_OK; i++) {
            const kv_slot_part_t *part = &params->parts[i];
            status = cuda_copy_async(run->cuda, run->lane->stream, params->direction,
                slot + part->offset_bytes, outside, part->bytes, error);
            outside += part->bytes;
        }
    }
    return status;
}

/* Checksums of the units where they lie, to the lane's array or to the caller's. */
static kv_status_t seal(const run_t *run, kv_error_t *error)
{
    const kv_move_params_t *params = run->params;
    const cuda_blocks_t slots =
        run->together ? together_of(run) : slots_of(run, params->parts[0].offset_bytes);
    cuda_units_t units = {};
    units.parts[0].unit_bytes = (uint32_t)run->unit_bytes;
    units.part_count = 1;
    units.layer_units = units.unit_count = run->slot_units;
    units.layer_bytes = run->slot_bytes;
    cuda_seal_t sealing = {};
    sealing.units = &units;
    sealing.from = &slots;
    sealing.block_count = run->count;
    sealing.thread_blocks_max = THREAD_BLOCKS_MAX;
    sealing.seeds = params->seeds != nullptr ? params->seeds + run->first : nullptr;
    sealing.checksums_out = run->lane->sums;
    kv_status_t status = cuda_seal(cuda_opaque(run->lane->stream), &sealing, error);
    if (status != KV_OK) {
        return status;
    }
    uint64_t *to = run->lane->checksum_count > 0 ? (uint64_t *)run->lane->told : params->checksums;
    return cuda_copy_async(run->cuda, run->lane->stream, KV_MOVE_OUT, (char *)run->lane->sums,
        (char *)(to + (size_t)run->first * run->slot_units),
        (size_t)run->count * run->slot_units * sizeof *to, error);
}

static kv_status_t enqueue_out(const run_t *run, kv_error_t *error)
{
    const bool seals = run->unit_bytes > 0;
    kv_status_t status = seals && !run->together ? seal(run, error) : KV_OK;
    if (status == KV_OK) {
        status = run->direct ? copy_slots(run, error) : gather(run, error);
    }
    if (status == KV_OK && seals && run->together) {
        status = seal(run, error);
    }
    return status == KV_OK && !run->direct ? copy_staging(run, error) : status;
}

static kv_status_t enqueue_in(const run_t *run, kv_error_t *error)
{
    const bool seals = run->unit_bytes > 0;
    kv_status_t status = run->direct ? copy_slots(run, error) : copy_staging(run, error);
    if (status == KV_OK && seals && run->together) {
        status = seal(run, error);
    }
    if (status == KV_OK && !run->direct) {
        status = gather(run, error);
    }
    return status == KV_OK && seals && !run->together ? seal(run, error) : status;
}

/* ---- a move ---- */

static uint32_t slots_in_run(const run_t *run, uint32_t left)
{
    if (!run->direct && !run->params->beside && left > CUDA_LANE_BYTES / run->slot_bytes) {
        left = (uint32_t)(CUDA_LANE_BYTES / run->slot_bytes);
    }
    if (run->slot_units > 0 && left > CUDA_SUMS_MAX / run->slot_units) {
        left = CUDA_SUMS_MAX / run->slot_units;
    }
    return left;
}

static kv_status_t enqueue_move(
    cuda_device_t *cuda, cuda_lane_t *lane, const kv_move_params_t *params, kv_error_t *error)
{
    run_t run = {};
    run.cuda = cuda;
    run.lane = lane;
    run.params = params;
    for (uint32_t i = 0; i < params->part_count; i++) {
        run.slot_bytes += params->parts[i].bytes;
    }
    run.unit_bytes = params->seeds != nullptr ? run.slot_bytes : params->unit_bytes;
    run.slot_units = run.unit_bytes > 0 ? (uint32_t)(run.slot_bytes / run.unit_bytes) : 0;
    KV_CHECK(run.slot_units <= CUDA_SUMS_MAX);
    run.together = params->seeds != nullptr && params->part_count > 1;
    run.direct = !params->beside && !run.together &&
                 (run.slot_bytes / params->part_count >= DIRECT_PART_BYTES ||
                     run.slot_bytes > CUDA_LANE_BYTES);
    const size_t sum_count = (size_t)params->slot_count * run.slot_units;
    lane->checksums = params->checksums;
    lane->checksum_count = sum_count <= CUDA_SUMS_MAX ? sum_count : 0;
    kv_status_t status = KV_OK;
    while (run.first < params->slot_count && status == KV_OK) {
        run.count = slots_in_run(&run, params->slot_count - run.first);
        status =
            params->direction == KV_MOVE_OUT ? enqueue_out(&run, error) : enqueue_in(&run, error);
        run.first += run.count;
    }
    if (status == KV_OK) {
        status =
            cuda_check(cuda, cudaEventRecord(lane->done, lane->stream), "cudaEventRecord", error);
    }
    return status;
}

kv_status_t cuda_move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_status_t status = cuda_enter(cuda, error);
    if (status != KV_OK) {
        return status;
    }
    cuda_lane_t *lane = cuda_lane_take(cuda);
    status = enqueue_move(cuda, lane, params, error);
    if (status != KV_OK) {
        (void)cuda_lane_drain(cuda, lane, nullptr);
        cuda_lane_give(cuda, lane);
        return status;
    }
    *move_out = lane;
    return KV_OK;
}

/* Ends the move unless the event is still to come. */
static kv_status_t end_move(
    cuda_device_t *cuda, cuda_lane_t *lane, cudaError_t code, const char *call, kv_error_t *error)
{
    if (code == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return KV_BUSY;
    }
    kv_status_t status = cuda_check(cuda, code, call, error);
    if (status != KV_OK) {
        (void)cuda_lane_drain(cuda, lane, nullptr);
    } else if (lane->checksum_count > 0) {
        memcpy(lane->checksums, lane->told, lane->checksum_count * sizeof *lane->checksums);
    }
    cuda_lane_give(cuda, lane);
    return status;
}

/* A thread that never named a GPU would open another one's context with its first call. */
kv_status_t cuda_move_poll(kv_device_t *device, kv_move_t *move, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    (void)cudaSetDevice(cuda->ordinal);
    return end_move(cuda, move, cudaEventQuery(move->done), "cudaEventQuery", error);
}

kv_status_t cuda_move_wait(kv_device_t *device, kv_move_t *move, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    (void)cudaSetDevice(cuda->ordinal);
    return end_move(cuda, move, cudaEventSynchronize(move->done), "cudaEventSynchronize", error);
}
