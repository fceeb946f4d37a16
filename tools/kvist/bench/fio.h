/* fio: what the disk does when nothing but reads or writes are asked of it.
 *
 * One file, preallocated and written once; each sample is one run of fio over it with io_uring,
 * O_DIRECT, registered files and, where the machine lets it, registered buffers.
 *
 * Owns: the file, until kv_fio_close.
 * Threads: one.
 * Errors: KV_MISSING: fio is not installed; KV_IO: it failed. */
#ifndef KV_TOOLS_FIO_H
#define KV_TOOLS_FIO_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_FIO_PATH_BYTES = 512 };

typedef struct {
    char path[KV_FIO_PATH_BYTES];
    uint64_t file_bytes;
    bool fixed_buffers;
    uint32_t run_count; /* so far: each reads in another order */
    char version[64];
} kv_fio_t;

/* Writes the file into the folder. */
kv_status_t kv_fio_open(
    const char *folder, uint64_t file_bytes, kv_fio_t *fio_out, kv_error_t *error);
void kv_fio_close(kv_fio_t *fio);

/* Random reads of block_bytes, sample_bytes in all. */
kv_status_t kv_fio_read(kv_fio_t *fio, size_t block_bytes, uint32_t depth, uint64_t sample_bytes,
    double *bytes_per_s_out, kv_error_t *error);

/* Sequential writes over what was written before, with an fdatasync after each barrier_bytes and
 * one at the end. */
kv_status_t kv_fio_write(kv_fio_t *fio, size_t block_bytes, uint32_t depth, uint64_t sample_bytes,
    uint64_t barrier_bytes, double *bytes_per_s_out, kv_error_t *error);

#endif
