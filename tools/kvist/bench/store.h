/* What the files of `kvist bench store` share.
 *
 *   store.c        options, folder, the order of things
 *   store_moves.c  puts and gets, against fio, memcpy, the unverified store, a peer
 *   store_costs.c  memory, and what a token costs */
#ifndef KV_TOOLS_BENCH_STORE_H
#define KV_TOOLS_BENCH_STORE_H

#include "base/memory.h"
#include "tools/kvist/bench/fio.h"
#include "tools/kvist/bench/folder.h"
#include "tools/kvist/bench/measure.h"
#include "tools/kvist/bench/subject.h"

enum { KV_BENCH_NAME_BYTES = 96 };

typedef struct {
    kv_report_t report;
    FILE *notes;                        /* where lines that are no measures go */
    char folder[KV_BENCH_FOLDER_BYTES]; /* of our own, empty at the start, removed at the end */
    const char *only;                   /* measures whose name has this in it; NULL: all */
    uint64_t object_bytes, depth;       /* only these; 0: all */
    uint64_t sample_bytes;
    uint64_t working_bytes; /* of each tier; sources and destinations rotate over as much */
    bool quick;             /* fewer shapes */
    kv_region_t source, destination;
    bool has_fio;
    kv_fio_t fio;
} kv_bench_t;

bool kv_bench_wants(const kv_bench_t *bench, const char *name);

kv_status_t kv_bench_moves(kv_bench_t *bench, kv_error_t *error);
kv_status_t kv_bench_verification(kv_bench_t *bench, kv_error_t *error);
kv_status_t kv_bench_against(kv_bench_t *bench, const char *driver, kv_error_t *error);

/* First of all: it counts the memory of a process that has done nothing yet. */
kv_status_t kv_bench_memory(kv_bench_t *bench, kv_error_t *error);
kv_status_t kv_bench_tokens(kv_bench_t *bench, kv_error_t *error);

#endif
