/* Device memory for the tests of CUDA kernels: buffers, copies and the wait, so that the tests
 * themselves are plain C and run the same on a GPU and on the emulation.
 *
 * Threads: the test's own. Errors: a failure of the runtime fails the test. */
#ifndef KV_TESTS_DEVICE_MEMORY_H
#define KV_TESTS_DEVICE_MEMORY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A copy of bytes on the device; from NULL: filled with 0xff, which is not-a-number. */
void *cuda_test_copy_in(const void *from, size_t bytes);

/* Waits for the default stream, copies out and frees the memory on the device. to: bytes, or NULL
 * to free only. */
void cuda_test_copy_out(void *to, void *device_from, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
