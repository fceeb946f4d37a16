/* A folder of a benchmark's own, for stores and files: nothing else is ever removed.
 *
 * Threads: one.
 * Errors: the option (--dir) and what is wrong with it. */
#ifndef KV_TOOLS_BENCH_FOLDER_H
#define KV_TOOLS_BENCH_FOLDER_H

#include "base/status.h"

enum { KV_BENCH_FOLDER_BYTES = 400 };

/* Makes it, empty, in the folder that was asked for (NULL: where the user's state is), which is
 * made with its parents. folder_out: [KV_BENCH_FOLDER_BYTES]. */
kv_status_t kv_bench_folder_make(const char *asked, char *folder_out, kv_error_t *error);

/* Everything in it but fio's file, which serves all samples. */
void kv_bench_folder_clear(const char *folder);

void kv_bench_folder_remove(const char *folder);

#endif
