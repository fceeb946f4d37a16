/* Device memory, and this process's memory as the device sees it. */
#include "kernels/cuda/device_internal.h"

#include <unistd.h>

/* ---- device memory ---- */

kv_status_t cuda_allocate(kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_status_t status = cuda_enter(cuda, error);
    if (status != KV_OK) {
        return status;
    }
    void *memory = nullptr;
    status = cuda_check(cuda, cudaMalloc(&memory, bytes), "cudaMalloc", error);
    if (status == KV_NO_SPACE) {
        size_t free_bytes = 0, total_bytes = 0;
        (void)cudaMemGetInfo(&free_bytes, &total_bytes);
        return kv_fail(error, KV_NO_SPACE,
            "gpu %d has no %zu bytes of memory left: %zu of %zu are free", cuda->ordinal, bytes,
            free_bytes, total_bytes);
    }
    if (status != KV_OK) {
        return status;
    }
    cuda_lane_t *lane = cuda_lane_take(cuda);
    status =
        cuda_check(cuda, cudaMemsetAsync(memory, 0, bytes, lane->stream), "cudaMemsetAsync", error);
    if (status == KV_OK) {
        status = cuda_lane_drain(cuda, lane, error);
    }
    cuda_lane_give(cuda, lane);
    if (status != KV_OK) {
        (void)cudaFree(memory);
        return status;
    }
    *memory_out = memory;
    return KV_OK;
}

void cuda_release(kv_device_t *device, void *memory, size_t bytes)
{
    (void)bytes;
    cuda_device_t *cuda = cuda_of(device);
    if (memory != nullptr) {
        (void)cudaSetDevice(cuda->ordinal);
        (void)cuda_check(cuda, cudaFree(memory), "cudaFree", nullptr);
    }
}

kv_status_t cuda_scratch_reserve(
    cuda_device_t *cuda, cuda_scratch_t *scratch, size_t bytes, kv_error_t *error)
{
    if (bytes <= scratch->bytes) {
        return KV_OK;
    }
    kv_status_t status =
        cuda_check(cuda, cudaStreamSynchronize(cuda->compute), "cudaStreamSynchronize", error);
    if (status != KV_OK) {
        return status;
    }
    /* Half as much again: what grows with a sequence would otherwise be allocated anew for each few
     * tokens, and freeing waits for the whole device. */
    size_t wanted = scratch->bytes + scratch->bytes / 2;
    wanted = wanted > bytes ? wanted : bytes;
    cuda_release(&cuda->device, scratch->memory, scratch->bytes);
    *scratch = {};
    status = cuda_allocate(&cuda->device, wanted, &scratch->memory, error);
    if (status == KV_NO_SPACE && wanted > bytes) {
        wanted = bytes;
        status = cuda_allocate(&cuda->device, wanted, &scratch->memory, error);
    }
    if (status == KV_OK) {
        scratch->bytes = wanted;
    }
    return status;
}

/* ---- copies ---- */

/* How many bytes from here on lie on one side of every border of registered ranges. */
static size_t uncut_bytes(cuda_pins_t *pins, const char *outside, size_t bytes)
{
    pthread_mutex_lock(&pins->lock);
    uint32_t first = 0, end = pins->count; /* of the ranges that end behind `outside` the first */
    while (first < end) {
        const uint32_t middle = first + (end - first) / 2;
        if (outside < pins->items[middle].base + pins->items[middle].bytes) {
            end = middle;
        } else {
            first = middle + 1;
        }
    }
    if (first < pins->count) {
        const char *base = pins->items[first].base,
                   *border = outside < base ? base : base + pins->items[first].bytes;
        const size_t left = (size_t)(border - outside);
        bytes = left < bytes ? left : bytes;
    }
    pthread_mutex_unlock(&pins->lock);
    return bytes;
}

kv_status_t cuda_copy_async(cuda_device_t *cuda, cudaStream_t stream, kv_move_direction_t direction,
    char *inside, char *outside, size_t bytes, kv_error_t *error)
{
    const bool out = direction == KV_MOVE_OUT;
    for (size_t at = 0; at < bytes;) {
        const size_t piece = uncut_bytes(&cuda->pins, outside + at, bytes - at);
        const cudaError_t code =
            cudaMemcpyAsync(out ? outside + at : inside + at, out ? inside + at : outside + at,
                piece, out ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, stream);
        kv_status_t status = cuda_check(cuda, code, "cudaMemcpyAsync", error);
        if (status != KV_OK) {
            return status;
        }
        at += piece;
    }
    return KV_OK;
}

static kv_status_t copy(kv_device_t *device, kv_move_direction_t direction, char *inside,
    char *outside, size_t bytes, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    kv_status_t status = cuda_enter(cuda, error);
    if (status != KV_OK) {
        return status;
    }
    cuda_lane_t *lane = cuda_lane_take(cuda);
    status = cuda_copy_async(cuda, lane->stream, direction, inside, outside, bytes, error);
    /* What was enqueued before a failure still uses the caller's memory. */
    kv_status_t drained = cuda_lane_drain(cuda, lane, status == KV_OK ? error : nullptr);
    cuda_lane_give(cuda, lane);
    return status != KV_OK ? status : drained;
}

kv_status_t cuda_copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error)
{
    return copy(device, KV_MOVE_IN, (char *)device_to, (char *)(uintptr_t)from, bytes, error);
}

kv_status_t cuda_copy_out(
    kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error)
{
    return copy(device, KV_MOVE_OUT, (char *)(uintptr_t)device_from, (char *)to, bytes, error);
}

/* ---- pinning ---- */

/* Only whole pages are registered: a page that two ranges share could be in one of them only. */
static void whole_pages(void *memory, size_t bytes, char **base_out, size_t *bytes_out)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
                    first = ((uintptr_t)memory + page - 1) / page * page,
                    end = ((uintptr_t)memory + bytes) / page * page;
    *base_out = (char *)first;
    *bytes_out = end > first ? end - first : 0;
}

/* false: the table is full. */
static bool note_pin(cuda_pins_t *pins, char *base, size_t bytes)
{
    pthread_mutex_lock(&pins->lock);
    const bool room = pins->count < CUDA_PINS_MAX;
    if (room) {
        uint32_t at = pins->count;
        while (at > 0 && pins->items[at - 1].base > base) {
            pins->items[at] = pins->items[at - 1];
            at--;
        }
        pins->items[at].base = base;
        pins->items[at].bytes = bytes;
        pins->count++;
    }
    pthread_mutex_unlock(&pins->lock);
    return room;
}

static void forget_pin(cuda_pins_t *pins, const char *base)
{
    pthread_mutex_lock(&pins->lock);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < pins->count; i++) {
        if (pins->items[i].base != base) {
            pins->items[kept++] = pins->items[i];
        }
    }
    pins->count = kept;
    pthread_mutex_unlock(&pins->lock);
}

static kv_status_t pin_chunk(cuda_device_t *cuda, char *base, size_t bytes, kv_error_t *error)
{
    kv_status_t status = cuda_check(
        cuda, cudaHostRegister(base, bytes, cudaHostRegisterPortable), "cudaHostRegister", error);
    if (status != KV_OK) {
        return status == KV_FATAL ? KV_FATAL : KV_NO_SPACE;
    }
    if (!note_pin(&cuda->pins, base, bytes)) {
        (void)cuda_check(cuda, cudaHostUnregister(base), "cudaHostUnregister", nullptr);
        return kv_fail(error, KV_NO_SPACE, "more than %d ranges of pinned memory", CUDA_PINS_MAX);
    }
    return KV_OK;
}

kv_status_t cuda_pin(kv_device_t *device, void *memory, size_t bytes, kv_error_t *error)
{
    cuda_device_t *cuda = cuda_of(device);
    char *base;
    size_t whole, done = 0;
    whole_pages(memory, bytes, &base, &whole);
    kv_status_t status = cuda_enter(cuda, error);
    while (status == KV_OK && done < whole) {
        const size_t left = whole - done,
                     chunk = left < CUDA_PIN_CHUNK_BYTES ? left : CUDA_PIN_CHUNK_BYTES;
        status = pin_chunk(cuda, base + done, chunk, error);
        done += status == KV_OK ? chunk : 0;
    }
    if (status != KV_OK) {
        cuda_unpin(device, base, done);
    }
    return status;
}

/* A range is pinned and unpinned as a whole: its chunks begin where they began then. */
void cuda_unpin(kv_device_t *device, void *memory, size_t bytes)
{
    cuda_device_t *cuda = cuda_of(device);
    char *base;
    size_t whole;
    whole_pages(memory, bytes, &base, &whole);
    (void)cudaSetDevice(cuda->ordinal);
    for (size_t at = 0; at < whole; at += CUDA_PIN_CHUNK_BYTES) {
        forget_pin(&cuda->pins, base + at);
        (void)cuda_check(cuda, cudaHostUnregister(base + at), "cudaHostUnregister", nullptr);
    }
}

void cuda_pins_close(cuda_device_t *cuda)
{
    while (cuda->pins.count > 0) {
        char *base = cuda->pins.items[--cuda->pins.count].base;
        (void)cuda_check(cuda, cudaHostUnregister(base), "cudaHostUnregister", nullptr);
    }
    pthread_mutex_destroy(&cuda->pins.lock);
}
