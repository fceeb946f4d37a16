#include "device_memory.h"

#include "kernels/cuda/runtime.h"

#include <stdio.h>
#include <stdlib.h>

static void expect(cudaError_t code, const char *what)
{
    if (code != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
        abort();
    }
}

void *cuda_test_copy_in(const void *from, size_t bytes)
{
    void *memory = NULL;
    expect(cudaMalloc(&memory, bytes), "cudaMalloc");
    if (from != NULL) {
        expect(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy in");
    } else {
        expect(cudaMemset(memory, 0xff, bytes), "cudaMemset");
    }
    return memory;
}

void cuda_test_copy_out(void *to, void *device_from, size_t bytes)
{
    expect(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (to != NULL) {
        expect(cudaMemcpy(to, device_from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy out");
    }
    expect(cudaFree(device_from), "cudaFree");
}
