#include "kernels/simt/launched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kv_simt_kernel_t *kernels;

kv_simt_kernel_t kv_simt_kernel_note(kv_simt_kernel_t *kernel, const char *name)
{
    kv_simt_kernel_t noted = {name, 0, kernels};
    kernels = kernel;
    return noted;
}

void kv_simt_kernel_count(kv_simt_kernel_t *kernel)
{
    __atomic_fetch_add(&kernel->grid_count, 1, __ATOMIC_RELAXED);
}

/* gcc writes "launched = NAME<...>; ...]", clang "launched = &NAME]". */
static void print_name(FILE *file, const char *name)
{
    static const char BEFORE[] = "launched = ";
    const char *from = strstr(name, BEFORE);
    from = from == NULL ? name : from + strlen(BEFORE);
    from += *from == '&';
    fprintf(file, "%.*s", (int)strcspn(from, ";]"), from);
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("KVIST_SIMT_LAUNCHED");
    if (path == NULL || kernels == NULL) {
        return;
    }
    FILE *file = fopen(path, "w");
    for (const kv_simt_kernel_t *kernel = kernels; file != NULL && kernel != NULL;
         kernel = kernel->next) {
        fprintf(file, "%llu ", (unsigned long long)kernel->grid_count);
        print_name(file, kernel->name);
        fputc('\n', file);
    }
    if (file == NULL || fclose(file) != 0) {
        fprintf(stderr, "KVIST_SIMT_LAUNCHED: cannot write %s\n", path);
    }
}
