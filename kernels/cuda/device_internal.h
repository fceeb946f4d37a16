/* What the files of the CUDA device share.
 *
 *   device_cuda.cu  open, close, the table           calls.cu    the table's kernels
 *   health.cu       what failed, and whether for good matrix.cu   weights
 *   memory.cu       allocation, copies, pinning       uploads.cu  small arrays that kernels read
 *   draw.cu         tokens from logits                packing.cu slots through KV's codec
 *   lanes.cu        streams for copies and moves      products.h  matrix products
 *
 * Threads: everything but lanes, pins and health belongs to the compute thread. Entries of the
 * table begin with cuda_enter: which GPU a call means is a state of the calling thread. */
#ifndef KV_KERNELS_CUDA_DEVICE_INTERNAL_H
#define KV_KERNELS_CUDA_DEVICE_INTERNAL_H

#include "base/status.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/stream.h"
#include "kernels/device.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* Rows of a tile of prefill, and of one product of single rows: the number of rows that a
     * product computes never changes, so that a row's numbers do not depend on who is beside it. */
    CUDA_PRODUCT_ROWS = 128,
    CUDA_PRODUCT_TILES = 16, /* of prefill, computed at once */
    CUDA_DECODE_ROWS = 64,
    CUDA_LANES = 8,
    CUDA_PINS_MAX = 4096,
    CUDA_TABLES_MAX = 4,
    CUDA_ALIGNMENT_BYTES = 256, /* of every matrix */
    CUDA_FP8_CHIP = 89,         /* the first that multiplies e4m3 */
};
#define CUDA_LANE_BYTES ((size_t)8 << 20)        /* of device memory, to gather in */
#define CUDA_PIN_CHUNK_BYTES ((size_t)256 << 20) /* registered at once */

typedef struct cuda_device cuda_device_t;

/* ---- health.cu ---- */

/* The first cause of a device that is lost. A code that CUDA keeps giving ("sticky") loses it: the
 * context is gone until the process ends. Any other fails the call alone. */
typedef struct {
    pthread_mutex_t lock;
    bool lost;
    kv_error_t cause;
} cuda_health_t;

/* KV_OK, or what the runtime's code comes to, named after the call; the code is cleared. */
kv_status_t cuda_check(cuda_device_t *cuda, cudaError_t code, const char *call, kv_error_t *error);

/* KV_FATAL with the first cause where the device is lost. */
kv_status_t cuda_health(kv_device_t *device, kv_error_t *error);

/* The same; else makes it the thread's. */
kv_status_t cuda_enter(cuda_device_t *cuda, kv_error_t *error);

/* ---- lanes.cu ---- */

/* A stream of copies, with device memory to gather in. */
typedef struct kv_move {
    cudaStream_t stream;
    cudaEvent_t done;
    char *staging;  /* device: [CUDA_LANE_BYTES] */
    uint64_t *sums; /* device: [CUDA_SUMS_MAX] */
    /* Host, pinned: [CUDA_TOLD_BYTES] of what a kernel told in sums. A caller's array is not, and a
     * copy to it would hold the thread up until the whole move has ended. */
    char *told;
    uint64_t *checksums; /* the caller's: [checksum_count] come to it when the move has ended */
    size_t checksum_count;
    bool busy;
} cuda_lane_t;

enum {
    CUDA_SUMS_MAX = 1 << 16, /* checksums of one run of slots, at least of one slot */
    CUDA_TOLD_BYTES = CUDA_SUMS_MAX * 8,
};

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t given;
    cuda_lane_t items[CUDA_LANES];
} cuda_lanes_t;

kv_status_t cuda_lanes_open(cuda_device_t *cuda, kv_error_t *error);
void cuda_lanes_close(cuda_device_t *cuda);

/* Waits for a free one. */
cuda_lane_t *cuda_lane_take(cuda_device_t *cuda);
void cuda_lane_give(cuda_device_t *cuda, cuda_lane_t *lane);

/* Waits for all that is on the lane. */
kv_status_t cuda_lane_drain(cuda_device_t *cuda, cuda_lane_t *lane, kv_error_t *error);

kv_status_t cuda_move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error);
kv_status_t cuda_move_poll(kv_device_t *device, kv_move_t *move, kv_error_t *error);
kv_status_t cuda_move_wait(kv_device_t *device, kv_move_t *move, kv_error_t *error);

/* ---- packing.cu ---- */

kv_status_t cuda_slot_pack(
    kv_device_t *device, const kv_pack_t *pack, size_t *packed_bytes_out, kv_error_t *error);
kv_status_t cuda_slot_unpack(kv_device_t *device, const kv_pack_t *pack, kv_error_t *error);

/* ---- memory.cu ---- */

/* Ranges of this process's memory that are registered, in the order of their addresses. CUDA takes
 * no copy across the border of two. */
typedef struct {
    pthread_mutex_t lock;
    struct {
        char *base;
        size_t bytes;
    } items[CUDA_PINS_MAX];
    uint32_t count;
} cuda_pins_t;

kv_status_t cuda_allocate(kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error);
void cuda_release(kv_device_t *device, void *memory, size_t bytes);
kv_status_t cuda_copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error);
kv_status_t cuda_copy_out(
    kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error);
kv_status_t cuda_pin(kv_device_t *device, void *memory, size_t bytes, kv_error_t *error);
void cuda_unpin(kv_device_t *device, void *memory, size_t bytes);
void cuda_pins_close(cuda_device_t *cuda);

/* Enqueues a copy between the device (inside) and this process's memory (outside), cut where a
 * registered range begins or ends. */
kv_status_t cuda_copy_async(cuda_device_t *cuda, cudaStream_t stream, kv_move_direction_t direction,
    char *inside, char *outside, size_t bytes, kv_error_t *error);

/* ---- uploads.cu ---- */

/* What a call's host arrays become on the device. They lie in a ring of pinned memory and its twin
 * on the device, which is empty again at every finish. */
typedef struct {
    char *host, *device;
    size_t bytes, used;
    struct {
        const kv_sequence_t *key; /* the caller's array: unchanged until finish */
        uint32_t count, block_tokens;
        const kv_sequence_t *device; /* [count], their slots on the device too */
    } tables[CUDA_TABLES_MAX];
    uint32_t table_count;
} cuda_uploads_t;

void cuda_uploads_close(cuda_device_t *cuda);
void cuda_uploads_reset(cuda_uploads_t *uploads);

/* Room for so many bytes at *at_out of the ring, here and on the device, until the next call. */
kv_status_t cuda_upload_reserve(
    cuda_device_t *cuda, size_t bytes, size_t *at_out, kv_error_t *error);

/* What was written to the ring's memory here goes to the device. */
kv_status_t cuda_upload_send(cuda_device_t *cuda, size_t at, size_t bytes, kv_error_t *error);

/* [count] on the device, for the kernel that is enqueued next. */
kv_status_t cuda_upload_tokens(cuda_device_t *cuda, const uint32_t *tokens, uint32_t count,
    const uint32_t **device_out, kv_error_t *error);
kv_status_t cuda_upload_sequences(cuda_device_t *cuda, const kv_sequence_t *sequences,
    uint32_t count, uint32_t block_tokens, const kv_sequence_t **device_out, kv_error_t *error);

/* ---- matrix.cu ---- */

static inline size_t cuda_element_bytes(kv_element_t element)
{
    return element == KV_ELEMENT_E4M3 ? 1 : element == KV_ELEMENT_BF16 ? 2 : 4;
}

/* Bytes of rows of e4m3, behind which their scales begin, and of both. */
static inline size_t cuda_scales_at(size_t rows, size_t columns)
{
    return (rows * columns + CUDA_ALIGNMENT_BYTES - 1) / CUDA_ALIGNMENT_BYTES *
           CUDA_ALIGNMENT_BYTES;
}

static inline size_t cuda_e4m3_bytes(size_t rows, size_t columns)
{
    return cuda_scales_at(rows, columns) + rows * sizeof(float);
}

struct kv_matrix {
    uint32_t rows, columns;
    kv_element_t element;
    void *weights; /* device: [rows][columns] */
    float *scales; /* device: [rows] behind the weights; of e4m3 alone */
    size_t bytes;
};

kv_status_t cuda_matrix_create(kv_device_t *device, const kv_matrix_params_t *params,
    kv_matrix_t **matrix_out, kv_error_t *error);
void cuda_matrix_destroy(kv_device_t *device, kv_matrix_t *matrix);
size_t cuda_matrix_bytes(const kv_matrix_t *matrix);

/* ---- calls.cu, draw.cu ---- */

void cuda_calls_fill(kv_device_ops_t *ops);

/* KV_INVALID: what the chip lacks for products of e4m3. */
kv_status_t cuda_refuse_fp8(const cuda_device_t *cuda, kv_error_t *error);

/* true: the pass goes on. */
bool cuda_pass_begin(cuda_device_t *cuda);
/* What a call came to; the first failure of a pass is what it is known by. */
void cuda_pass_end(cuda_device_t *cuda, kv_status_t status, const kv_error_t *error);
kv_status_t cuda_pass_finish(kv_device_t *device, kv_error_t *error);

kv_status_t cuda_pass_draw(kv_device_t *device, const float *logits, uint32_t vocabulary_count,
    const kv_draw_t *draws, uint32_t row_count, uint32_t *tokens_out, float *logprobs_out,
    kv_error_t *error);

/* Device memory that grows while the device is idle, at set-up. */
typedef struct {
    void *memory;
    size_t bytes;
} cuda_scratch_t;

kv_status_t cuda_scratch_reserve(
    cuda_device_t *cuda, cuda_scratch_t *scratch, size_t bytes, kv_error_t *error);

struct cuda_device {
    kv_device_t device; /* first */
    kv_device_ops_t ops;
    int ordinal, sm; /* sm: 90 for compute capability 9.0 */
    int processors;
    size_t memory_bytes;
    char model[64];
    bool failing; /* the runtime refused a kernel of this pass: its numbers are worth nothing */
    kv_error_t failure;
    cuda_health_t health;
    cudaStream_t compute;
    cudaEvent_t marks[KV_DEVICE_MARKS_MAX];
    uint32_t mark_count; /* ever made */
    cuda_lanes_t lanes;
    cuda_pins_t pins;
    cuda_uploads_t uploads;
    const cuda_products_ops_t *products_ops;
    cuda_products_t *products;
    cuda_scratch_t rows_in, rows_out; /* of products over single rows; rows_in: of all of e4m3 */
    cuda_scratch_t partial;           /* of attention by segments */
};

static inline cuda_device_t *cuda_of(kv_device_t *device)
{
    return (cuda_device_t *)device;
}

static inline cuda_stream_t *cuda_opaque(cudaStream_t stream)
{
    return (cuda_stream_t *)stream;
}

#endif
