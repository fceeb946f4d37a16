/* The CUDA device: opening, closing, the table, and the plug-in that exports it. With KVIST_SIMT
 * the same source makes the device of libkvist-simt.so. */
#include "kernels/cuda/device_internal.h"
#include "kernels/cuda/rows.h"

#include "kernels/plugin.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef KVIST_SIMT
#define DEVICE_NAME "simt"
#else
#define DEVICE_NAME "cuda"
#endif

enum { SM_MIN = 80 };

kv_status_t cuda_refuse_fp8(const cuda_device_t *cuda, kv_error_t *error)
{
    return kv_fail(error, KV_INVALID,
        "gpu %d is of compute capability %d.%d and has no fp8 products, which 8.9 is the least "
        "for: turn model.fp8 off",
        cuda->ordinal, cuda->sm / 10, cuda->sm % 10);
}

static kv_status_t device_describe(const kv_device_t *device, bool f32, bool fp8,
    kv_arithmetic_t *arithmetic_out, kv_error_t *error)
{
    const cuda_device_t *cuda = (const cuda_device_t *)device;
    if (fp8 && cuda->sm < CUDA_FP8_CHIP) {
        return cuda_refuse_fp8(cuda, error);
    }
    const char *products = cuda->products_ops->name(
                   cuda->products, fp8 ? KV_ELEMENT_E4M3 : KV_ELEMENT_BF16),
               *type = f32   ? "f32"
                       : fp8 ? "fp8"
                             : "bf16";
    kv_arithmetic_t arithmetic = {};
    arithmetic.tile_rows = CUDA_PRODUCT_ROWS;
    arithmetic.operand = f32 ? KV_ELEMENT_F32 : KV_ELEMENT_BF16;
    /* family / phase / products / type / chip x processors / version: the library chooses its
     * instructions by its version, the chip, and how many processors that has; ours by the type,
     * and the version moves when a kernel's arithmetic does. Seven bytes are left for a window. */
    snprintf(arithmetic.prefill, sizeof arithmetic.prefill, DEVICE_NAME "/prefill/%s/%s/sm%dx%d/v1",
        products, type, cuda->sm, cuda->processors);
    snprintf(arithmetic.decode, sizeof arithmetic.decode, DEVICE_NAME "/decode/%s/%s/sm%dx%d/v1",
        f32 ? "rows" : products, type, cuda->sm, cuda->processors);
    *arithmetic_out = arithmetic;
    return KV_OK;
}

static void device_title(const kv_device_t *device, char *text_out, size_t bytes)
{
    const cuda_device_t *cuda = (const cuda_device_t *)device;
    snprintf(text_out, bytes, "gpu %d, %s, compute capability %d.%d, %.1f GiB", cuda->ordinal,
        cuda->model, cuda->sm / 10, cuda->sm % 10,
        (double)cuda->memory_bytes / (double)((size_t)1 << 30));
}

static void device_close(kv_device_t *device)
{
    cuda_device_t *cuda = cuda_of(device);
    (void)cudaSetDevice(cuda->ordinal);
    if (cuda->compute != nullptr) {
        (void)cuda_check(
            cuda, cudaStreamSynchronize(cuda->compute), "cudaStreamSynchronize", nullptr);
    }
    if (cuda->products != nullptr) {
        cuda->products_ops->close(cuda->products);
    }
    cuda_uploads_close(cuda);
    cuda_release(device, cuda->rows_in.memory, cuda->rows_in.bytes);
    cuda_release(device, cuda->rows_out.memory, cuda->rows_out.bytes);
    cuda_release(device, cuda->partial.memory, cuda->partial.bytes);
    cuda_lanes_close(cuda);
    cuda_pins_close(cuda);
    for (uint32_t i = 0; i < KV_DEVICE_MARKS_MAX; i++) {
        if (cuda->marks[i] != nullptr) {
            (void)cuda_check(cuda, cudaEventDestroy(cuda->marks[i]), "cudaEventDestroy", nullptr);
        }
    }
    if (cuda->compute != nullptr) {
        (void)cuda_check(cuda, cudaStreamDestroy(cuda->compute), "cudaStreamDestroy", nullptr);
    }
    pthread_mutex_destroy(&cuda->health.lock);
    free(cuda);
}

static void fill_table(kv_device_ops_t *ops)
{
    ops->name = DEVICE_NAME;
    ops->ahead = true;
#ifdef KVIST_SIMT
    ops->network = KV_NETWORK_HOST;
#else
    ops->network = KV_NETWORK_CUDA;
#endif
    ops->title = device_title;
    ops->health = cuda_health;
    ops->close = device_close;
    ops->allocate = cuda_allocate;
    ops->release = cuda_release;
    ops->copy_in = cuda_copy_in;
    ops->copy_out = cuda_copy_out;
    ops->pin = cuda_pin;
    ops->unpin = cuda_unpin;
    ops->move_start = cuda_move_start;
    ops->move_poll = cuda_move_poll;
    ops->move_wait = cuda_move_wait;
    ops->pack = cuda_slot_pack;
    ops->unpack = cuda_slot_unpack;
    ops->describe = device_describe;
    ops->matrix_create = cuda_matrix_create;
    ops->matrix_destroy = cuda_matrix_destroy;
    ops->matrix_bytes = cuda_matrix_bytes;
    cuda_calls_fill(ops);
}

/* KV_MISSING where there is no such GPU, or none at all: no driver is one of the causes. */
static kv_status_t find_gpu(cuda_device_t *cuda, kv_error_t *error)
{
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        return kv_fail(error, KV_MISSING, "no gpu: %s (%d)", cudaGetErrorString(code), (int)code);
    }
    if (cuda->ordinal >= count) {
        return kv_fail(
            error, KV_MISSING, "there is no gpu %d: this machine has %d", cuda->ordinal, count);
    }
    cudaDeviceProp properties;
    kv_status_t status = cuda_check(cuda, cudaGetDeviceProperties(&properties, cuda->ordinal),
        "cudaGetDeviceProperties", error);
    if (status != KV_OK) {
        return status;
    }
    cuda->sm = properties.major * 10 + properties.minor;
    cuda->processors = properties.multiProcessorCount;
    cuda->memory_bytes = properties.totalGlobalMem;
    snprintf(cuda->model, sizeof cuda->model, "%.63s", properties.name);
    if (cuda->sm < SM_MIN) {
        return kv_fail(error, KV_MISSING, "gpu %d is of compute capability %d.%d; 8.0 is the least",
            cuda->ordinal, properties.major, properties.minor);
    }
    return KV_OK;
}

/* Also what a driver says that is too old for what was compiled, or cannot compile it. */
static kv_status_t find_code(const cuda_device_t *cuda, kv_error_t *error)
{
    kv_error_t cause;
    if (cuda_rows_built(&cause) == KV_OK) {
        return KV_OK;
    }
    return kv_fail(error, KV_MISSING,
        "this build's kernels do not run on gpu %d, of compute capability %d.%d: %s", cuda->ordinal,
        cuda->sm / 10, cuda->sm % 10, cause.text);
}

static kv_status_t open_streams(cuda_device_t *cuda, kv_error_t *error)
{
    kv_status_t status =
        cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->compute, cudaStreamNonBlocking),
            "cudaStreamCreateWithFlags", error);
    for (uint32_t i = 0; i < KV_DEVICE_MARKS_MAX && status == KV_OK; i++) {
        status = cuda_check(cuda,
            cudaEventCreateWithFlags(
                &cuda->marks[i], cudaEventBlockingSync | cudaEventDisableTiming),
            "cudaEventCreateWithFlags", error);
    }
    kv_status_t lanes = cuda_lanes_open(cuda, status == KV_OK ? error : nullptr);
    return status != KV_OK ? status : lanes;
}

/* The environment's KVIST_PRODUCTS (lt, plain) chooses, for comparisons. */
static kv_status_t open_products(cuda_device_t *cuda, kv_error_t *error)
{
    const char *wanted = getenv("KVIST_PRODUCTS");
    if (wanted != nullptr && strcmp(wanted, "lt") != 0 && strcmp(wanted, "plain") != 0) {
        return kv_fail(
            error, KV_INVALID, "KVIST_PRODUCTS is \"%s\"; lt and plain are possible", wanted);
    }
    cuda->products_ops = wanted != nullptr && strcmp(wanted, "plain") == 0 ? &cuda_products_plain
                                                                           : &cuda_products_lt;
    return cuda->products_ops->open(cuda->sm, &cuda->products, error);
}

static kv_status_t open_device(uint32_t number, kv_device_t **device_out, kv_error_t *error)
{
    cuda_device_t *cuda = (cuda_device_t *)kv_allocate(sizeof *cuda);
    pthread_mutex_init(&cuda->health.lock, nullptr);
    pthread_mutex_init(&cuda->pins.lock, nullptr);
    fill_table(&cuda->ops);
    cuda->device.ops = &cuda->ops;
    cuda->ordinal = (int)number;
    kv_status_t status = find_gpu(cuda, error);
    if (status == KV_OK) {
        status = cuda_enter(cuda, error);
    }
    if (status == KV_OK) {
        status = find_code(cuda, error);
    }
    if (status != KV_OK) {
        pthread_mutex_destroy(&cuda->pins.lock);
        pthread_mutex_destroy(&cuda->health.lock);
        free(cuda);
        return status;
    }
    status = open_streams(cuda, error);
    if (status == KV_OK) {
        status = open_products(cuda, error);
    }
    if (status != KV_OK) {
        device_close(&cuda->device);
        return status;
    }
    *device_out = &cuda->device;
    return KV_OK;
}

extern "C" __attribute__((visibility("default"))) const kv_device_plugin_t kv_device_plugin = {
    KV_PLUGIN_VERSION, (uint32_t)sizeof(kv_device_ops_t), KVIST_VERSION, DEVICE_NAME, open_device};
