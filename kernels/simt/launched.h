/* Which kernels a program has, and which of them have run: every place that launches one, with each
 * variant of a template that the program instantiates, notes its kernel before main.
 *
 * At exit the list goes to the file that KVIST_SIMT_LAUNCHED names: a line each, "COUNT NAME". Of a
 * kernel that a program has and never runs the count is 0, so that a test of all kernels can say
 * what is missing.
 *
 * Owns: nothing; the entries are static, those of a library end with the process.
 * Threads: noting from initialisers alone, counting from any. */
#ifndef KV_KERNELS_SIMT_LAUNCHED_H
#define KV_KERNELS_SIMT_LAUNCHED_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kv_simt_kernel {
    const char *name;    /* a compiler's __PRETTY_FUNCTION__, which holds "launched = NAME" */
    uint64_t grid_count; /* that ran to their end */
    struct kv_simt_kernel *next;
} kv_simt_kernel_t;

/* Gives the entry that the kernel's is to be initialised with. */
kv_simt_kernel_t kv_simt_kernel_note(kv_simt_kernel_t *kernel, const char *name);
void kv_simt_kernel_count(kv_simt_kernel_t *kernel);

#ifdef __cplusplus
}
#endif

#endif
