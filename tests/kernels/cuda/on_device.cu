#include "on_device.h"

#include "kernels/cuda/runtime.h"
#ifdef KVIST_SIMT
#include "kernels/simt/finding.h"
#endif

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { BOUNDARY = 256, FILL = 0x5a };

static void check(cudaError_t code, const char *what)
{
    if (code != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
        abort();
    }
}

extern "C" void *on_device(const void *from, size_t bytes, size_t skew)
{
    uint8_t *memory = nullptr;
    check(cudaMalloc((void **)&memory, skew + bytes > 0 ? skew + bytes : 1), "cudaMalloc");
    memory += skew;
    check(from != nullptr ? cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice)
                          : cudaMemset(memory, FILL, bytes),
        "filling device memory");
    return memory;
}

extern "C" void off_device(void *memory)
{
    check(cudaFree((void *)((uintptr_t)memory / BOUNDARY * BOUNDARY)), "cudaFree");
}

extern "C" void from_device(void *to, const void *device_from, size_t bytes)
{
    check(cudaDeviceSynchronize(), "waiting for the device");
#ifdef KVIST_SIMT
    if (kv_simt_finding_count(KV_SIMT_FINDING_KINDS) > 0) {
        fprintf(stderr, "the stand-in found mistakes in a kernel (above)\n");
        abort();
    }
#endif
    check(cudaMemcpy(to, device_from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}
