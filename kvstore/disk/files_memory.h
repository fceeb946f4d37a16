/* Files in this process's memory: a disk tier for replays (simulated.h), which leaves nothing
 * behind and takes no time. Nothing of it is durable.
 *
 * Owns: the files, until kv_files_memory_destroy. Threads: one. Errors: files.h.
 * Limits: KV_FILES_MEMORY_HANDLES_MAX open files; paths of KV_FILES_MEMORY_PATH_BYTES. */
#ifndef KV_KVSTORE_DISK_FILES_MEMORY_H
#define KV_KVSTORE_DISK_FILES_MEMORY_H

#include "kvstore/disk/files.h"

enum { KV_FILES_MEMORY_HANDLES_MAX = 512, KV_FILES_MEMORY_PATH_BYTES = 64 };

/* One empty folder: "/". */
kv_files_t *kv_files_memory_create(void);

/* Nothing of it may be open. */
void kv_files_memory_destroy(kv_files_t *files);

#endif
