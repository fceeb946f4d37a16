/* Memory of the device that CUDA's kernels are tested on, a GPU or its stand-in, for tests in C.
 *
 * Owns: what on_device returned, until off_device. Each array lies alone, so that what is read or
 * written beyond it shows; `skew` bytes from a 256-byte boundary.
 * Errors: any ends the test, and so does whatever the stand-in has found in a kernel. */
#ifndef KV_TESTS_KERNELS_CUDA_ON_DEVICE_H
#define KV_TESTS_KERNELS_CUDA_ON_DEVICE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A copy of the bytes in device memory; from NULL: every byte is 0x5a. */
void *on_device(const void *from, size_t bytes, size_t skew);
void off_device(void *memory);

/* Waits for what was launched before, then copies. */
void from_device(void *to, const void *device_from, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
