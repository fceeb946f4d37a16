/* The files of the disk tier: what the store asks of a file system, as one table, so that its real
 * code also runs on a simulated disk (tests/kvstore/simulated_disk.h). RocksDB's own files and the
 * fingerprint notes go past it.
 *
 * A file is known by a descriptor that only the table that gave it understands; the table's ring
 * takes the same descriptors.
 * Durability, the only promises that the store builds on:
 *   bytes and size of a file            when sync of that file has returned
 *   a name made, renamed or removed     when sync_folder of its folder has returned
 * Owns: nothing; the caller closes what it opened.
 * Threads: any.
 * Errors: a negative errno value, in every answer. */
#ifndef KV_KVSTORE_DISK_FILES_H
#define KV_KVSTORE_DISK_FILES_H

#include "kvstore/disk/ring.h"

typedef enum {
    KV_FILES_READ = 0,
    KV_FILES_WRITE = 1,  /* and read */
    KV_FILES_CREATE = 2, /* where it is absent; with KV_FILES_WRITE */
    KV_FILES_DIRECT = 4, /* past the page cache; -EINVAL where the file system cannot */
} kv_files_how_t;

typedef void (*kv_files_visit_t)(void *context, const char *name);

typedef struct kv_files kv_files_t;
typedef struct {
    int (*open)(kv_files_t *files, const char *path, unsigned how);
    void (*close)(kv_files_t *files, int file);

    /* Bytes moved: fewer than asked for only at the file's end. */
    int64_t (*read)(kv_files_t *files, int file, void *buffer, size_t bytes, uint64_t offset);
    int64_t (*write)(
        kv_files_t *files, int file, const void *buffer, size_t bytes, uint64_t offset);

    int64_t (*size)(kv_files_t *files, int file);
    int (*mode)(kv_files_t *files, int file); /* who may do what: the nine permission bits */
    int (*allocate)(kv_files_t *files, int file, uint64_t bytes); /* its size; has its room */
    int (*truncate)(kv_files_t *files, int file);                 /* to nothing */
    int (*sync)(kv_files_t *files, int file);

    /* Held until the file is closed; -EWOULDBLOCK: another process has it. */
    int (*lock)(kv_files_t *files, int file);

    /* Of the file system that the file lies in. */
    int (*space)(kv_files_t *files, int file, uint64_t *total_bytes_out, uint64_t *free_bytes_out);

    int (*make_folder)(kv_files_t *files, const char *path); /* -EEXIST: it is there */
    int (*sync_folder)(kv_files_t *files, const char *path);
    int (*list)(kv_files_t *files, const char *path, kv_files_visit_t visit, void *context);
    int (*remove)(kv_files_t *files, const char *path);

    /* What is left to do on it is kv_ring_open's. */
    kv_status_t (*open_ring)(kv_files_t *files, kvist_io_t io, const kv_region_t *region,
        kv_ring_t **ring_out, kv_error_t *error);
} kv_files_ops_t;

struct kv_files {
    const kv_files_ops_t *ops;
};

/* The machine's own; needs no release. */
kv_files_t *kv_files_posix(void);

#endif
