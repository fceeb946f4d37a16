/* The device: where KV and weights live and where kernels run, behind one table of functions.
 *
 * A device is the CPU or one GPU. Callers hold device pointers and never dereference them: on a GPU
 * they are not addresses of this process. The engine calls compute kernels, the store and the
 * transport memory and copies, only through the table.
 *
 * Owns: the memory that it allocated, its thread team.
 * Threads: memory and copies may be called from any thread; compute kernels only from the thread
 * that leads the device's team (the node's compute thread), in order. Errors: KV_NO_SPACE from
 * allocation, KV_FATAL from a device that failed; a copy cannot fail on the CPU. */
#ifndef KV_KERNELS_DEVICE_H
#define KV_KERNELS_DEVICE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

/* The geometry of paged KV. One block holds block_tokens positions of every layer; inside a block
 * the order is [layer][K, V][kv_head][token][head_dim], so that a layer is one range and a head
 * range is one range of it. A block table is an array of slot numbers; slot s starts at arena + s x
 * kv_block_shape_bytes(). */
typedef struct {
    uint32_t layer_count;
    uint32_t kv_head_count;
    uint32_t head_dim;
    uint32_t block_tokens;  /* 16, 32, 64 or 128 */
    uint32_t element_bytes; /* 2: bf16; 4: f32 */
} kv_block_shape_t;

/* Bytes of K and V of one layer in one block. */
static inline size_t kv_block_layer_bytes(const kv_block_shape_t *shape)
{
    return (size_t)2 * shape->kv_head_count * shape->block_tokens * shape->head_dim *
           shape->element_bytes;
}

static inline size_t kv_block_bytes(const kv_block_shape_t *shape)
{
    return shape->layer_count * kv_block_layer_bytes(shape);
}

typedef struct kv_device kv_device_t;

typedef struct {
    const char *name; /* "cpu" */

    /* Memory of the device, 2 MiB aligned, zeroed. */
    kv_status_t (*allocate)(
        kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error);
    void (*release)(kv_device_t *device, void *memory, size_t bytes);

    /* Copies between this process's memory and the device's; complete when the call returns. */
    void (*copy_in)(kv_device_t *device, void *device_to, const void *from, size_t bytes);
    void (*copy_out)(kv_device_t *device, void *to, const void *device_from, size_t bytes);
} kv_device_ops_t;

struct kv_device {
    const kv_device_ops_t *ops;
};

/* The CPU of this machine. thread_count: of the compute team, 1 to 256. */
kv_status_t kv_device_cpu_open(uint32_t thread_count, kv_device_t **device_out, kv_error_t *error);
void kv_device_close(kv_device_t *device);

#endif
