/* Streams: threads that do what was enqueued to them, in order; and events, which mark how far one
 * came.
 *
 * Each operation is delayed first where delays are on. When an operation fails the device is
 * broken: what was enqueued behind it, on every stream, is dropped, and every wait ends.
 *
 * Owns: an enqueued operation, until it is done. Borrows: the memory that it names, until then.
 * Threads: any. */
#ifndef KV_KERNELS_SIMT_STREAM_H
#define KV_KERNELS_SIMT_STREAM_H

#include "kernels/simt/api.h"

#include <stdbool.h>

/* A copy of height rows; a plain one is one row. */
typedef struct {
    void *to;
    const void *from;
    size_t to_pitch, from_pitch, width, height;
    bool host_to, host_from; /* that side is host memory, which has to stay pinned */
} kv_simt_moved_t;

typedef enum {
    KV_SIMT_RUN_LAUNCH,
    KV_SIMT_RUN_COPY,
    KV_SIMT_RUN_SET,
    KV_SIMT_RUN_RECORD,
    KV_SIMT_RUN_WAIT,
    KV_SIMT_RUN_HOST,
    KV_SIMT_RUN_WORK,
} kv_simt_operation_kind_t;

typedef struct kv_simt_operation kv_simt_operation_t;

struct kv_simt_operation {
    kv_simt_operation_t *next;
    kv_simt_operation_kind_t kind;
    union {
        kv_simt_launch_t launch;
        kv_simt_moved_t copy;
        struct {
            void *memory;
            size_t bytes;
            int value;
        } set;
        struct {
            cudaEvent_t event;
            uint64_t number; /* of its records: the one made, or the one waited for */
        } mark;
        struct {
            cudaHostFn_t function;
            void *argument;
        } host;
        kv_simt_work_t *work;
    } of;
    _Alignas(16) unsigned char body[]; /* of a launch, or of work */
};

/* An operation with room for a body; enqueue takes it over. stream NULL: the default one. */
kv_simt_operation_t *kv_simt_operation_create(kv_simt_operation_kind_t kind, size_t body_bytes);
cudaError_t kv_simt_stream_enqueue(cudaStream_t stream, kv_simt_operation_t *operation);

/* Returns when everything that was enqueued is done or dropped, to one stream or to all. */
cudaError_t kv_simt_stream_finish(cudaStream_t stream);
void kv_simt_streams_finish(void);

/* Ends all streams and forgets all events; how many there are. */
void kv_simt_streams_reset(void);
void kv_simt_streams_count(size_t *streams_out, size_t *events_out);

#endif
