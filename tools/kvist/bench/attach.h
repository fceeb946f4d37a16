/* What the files of `kvist bench attach` share.
 *
 *   attach.c          options, the store's process, attached beside embedded
 *   attach_clients.c  many clients at once; how soon a large host tier serves */
#ifndef KV_TOOLS_BENCH_ATTACH_H
#define KV_TOOLS_BENCH_ATTACH_H

#include "base/memory.h"
#include "tools/kvist/bench/fork.h"
#include "tools/kvist/bench/measure.h"
#include "tools/kvist/bench/subject.h"

enum { KV_ATTACH_PATH_BYTES = 96, KV_ATTACH_NAME_BYTES = 96 };

/* What one operation moves. */
typedef struct {
    size_t object_bytes;
    uint32_t run_blocks;
    bool quick; /* part of a quick run */
} kv_attach_shape_t;

typedef struct {
    kv_report_t report;
    FILE *notes;
    char folder[64], socket[KV_ATTACH_PATH_BYTES];
    const char *only;
    uint64_t object_bytes; /* only these; 0: all */
    uint64_t sample_bytes, working_bytes;
    uint64_t client_count, window_ms; /* of many clients */
    uint64_t host_bytes;              /* of the large host tier */
    bool quick;
    kv_region_t source, destination;
} kv_bench_attach_t;

bool kv_attach_wants(const kv_bench_attach_t *bench, const char *name);
bool kv_attach_wants_shape(const kv_bench_attach_t *bench, const kv_attach_shape_t *shape);

/* "get, chain 64 x 64 KiB, depth 8", behind what. */
void kv_attach_name(
    char *name_out, const char *what, const kv_attach_shape_t *shape, uint32_t depth);

/* Starts kvist-store with a host tier of that size, to serve at bench->socket; _serve waits until
 * it does. */
kv_status_t kv_attach_start(
    const kv_bench_attach_t *bench, uint64_t host_bytes, kv_fork_t *store_out, kv_error_t *error);
kv_status_t kv_attach_serve(
    const kv_bench_attach_t *bench, uint64_t host_bytes, kv_fork_t *store_out, kv_error_t *error);
void kv_attach_stop(kv_fork_t *store);

/* Opens a store that is attached to what bench->socket serves. */
kv_status_t kv_attach_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error);
void kv_attach_set_socket(const char *path); /* which kv_attach_open uses from now on */

kv_subject_params_t kv_attach_subject(
    const kv_bench_attach_t *bench, const kv_attach_shape_t *shape);

kv_status_t kv_attach_clients(kv_bench_attach_t *bench, kv_error_t *error);
kv_status_t kv_attach_first_service(kv_bench_attach_t *bench, kv_error_t *error);

#endif
