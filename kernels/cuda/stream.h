/* A stream as C sees it: kernels and copies enqueued to one run in order. It stands for CUDA's own
 * handle, which is cast on the way; NULL is the default stream.
 *
 * Threads: one thread enqueues to a stream. */
#ifndef KV_KERNELS_CUDA_STREAM_H
#define KV_KERNELS_CUDA_STREAM_H

typedef struct cuda_stream cuda_stream_t;

#endif
