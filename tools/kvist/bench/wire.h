/* What the files of `kvist bench wire` share: two processes with an arena of slots each, between
 * which batches of runs move, by the mover or by something to compare it with.
 *
 *   wire.c         options, the measures and their order
 *   wire_ends.c    the two processes, the slots that runs rotate over, the proof of the bytes
 *   wire_mover.c   the mover as a carrier
 *   wire_plain.c   bare UCX and a plain socket as carriers; ucx_perftest
 *
 * This process receives; the other one, a fork of it, sends. Both do the same steps, each on its
 * end, at a word from this one. A run is the same byte range of run_blocks slots; consecutive runs
 * of a batch are the ranges of one group of slots, then of the next group.
 *
 * Owns: the other process, arenas, carriers.
 * Threads: one in each process, beside the mover's.
 * Errors: either end's; what did not arrive as it was sent is KV_FATAL. */
#ifndef KV_TOOLS_BENCH_WIRE_H
#define KV_TOOLS_BENCH_WIRE_H

#include "kernels/device.h"
#include "tools/kvist/bench/measure.h"

#include <sys/types.h>

enum { KV_BENCH_RUNS_MAX = 1 << 16, KV_BENCH_NAME_BYTES_MAX = 96 };

typedef struct {
    size_t range_bytes; /* of each block in a run */
    uint32_t run_blocks;
    uint32_t ranges; /* of a slot: 1 for whole objects, the layers where runs are layer by layer */
} kv_shape_t;

static inline size_t kv_shape_run_bytes(const kv_shape_t *shape)
{
    return shape->range_bytes * shape->run_blocks;
}

typedef enum { KV_CARRIER_MOVER, KV_CARRIER_BARE, KV_CARRIER_SOCKET, KV_CARRIERS } kv_carrier_t;

/* What carries, and what is carried. */
typedef struct {
    kv_carrier_t carrier;
    int operation; /* kv_bare_operation_t, where the carrier is bare UCX */
    bool shm;
    uint64_t busy_poll_ns; /* of the mover */
    kv_shape_t shape;
} kv_route_t;

typedef struct {
    uint32_t run_count; /* a multiple of shape.ranges; at most KV_BENCH_RUNS_MAX */
    uint32_t depth;     /* runs in flight, by the sender's completions */
    bool turns;         /* each is sent when the one before has landed */
    uint64_t pace_ns;   /* a run becomes available so long after the one before; 0: all at once */
    bool last_alone;    /* of each group only the last run is expected and sent (the mover alone) */
} kv_batch_t;

typedef struct kv_end kv_end_t;

/* A route that is open, seen from one end. */
typedef struct {
    kv_end_t *end;
    kv_route_t route;
    uint32_t slot_count, stride;
    uint32_t *slots;  /* of the run that was asked for last */
    uint8_t *landing; /* where runs land: the arena, unless the carrier says otherwise */
    void *state;      /* the carrier's */
} kv_lane_t;

enum { KV_LANES_MAX = 4 };

/* One of the two processes. */
struct kv_end {
    bool sends;
    int fd; /* to the other end */
    kv_device_t *device;
    uint8_t *arena;
    size_t arena_bytes;
    uint64_t block; /* the batch's first: batches rotate over the arena */
    kv_lane_t lanes[KV_LANES_MAX];
};

/* A carrier's part on one end; both ends call the same. */
typedef struct {
    kv_status_t (*open)(kv_lane_t *lane, kv_error_t *error);
    /* times_ns: [run_count] when each was begun, or landed. */
    kv_status_t (*move)(
        kv_lane_t *lane, const kv_batch_t *batch, uint64_t *times_ns, kv_error_t *error);
    void (*close)(kv_lane_t *lane);
} kv_carrier_ops_t;

extern const kv_carrier_ops_t kv_carrier_mover, kv_carrier_bare, kv_carrier_socket;

static inline size_t kv_lane_slot_bytes(const kv_lane_t *lane)
{
    return lane->route.shape.range_bytes * lane->route.shape.ranges;
}

/* The slots of a run (until the next call) and where its range begins in each. */
const uint32_t *kv_lane_run(kv_lane_t *lane, uint32_t run, size_t *offset_out);

kv_status_t kv_end_say(const kv_end_t *end, const void *bytes, size_t count, kv_error_t *error);
kv_status_t kv_end_hear(const kv_end_t *end, void *bytes, size_t count, kv_error_t *error);

/* Both processes, seen from this one. */
typedef struct {
    kv_end_t end;
    pid_t child;
    uint64_t *sent_ns, *landed_ns; /* [KV_BENCH_RUNS_MAX] of the last batch; shared memory */
    uint64_t cpu_ns;               /* of both processes, for the last batch */
    bool opened[KV_LANES_MAX], failed;
} kv_ends_t;

/* First of all: it forks. */
kv_status_t kv_ends_start(size_t arena_bytes, kv_ends_t *ends, kv_error_t *error);
void kv_ends_stop(kv_ends_t *ends);

/* Lanes have numbers below KV_LANES_MAX; one that is open is closed first. */
kv_status_t kv_ends_open(
    kv_ends_t *ends, uint32_t lane, const kv_route_t *route, kv_error_t *error);
kv_status_t kv_ends_move(
    kv_ends_t *ends, uint32_t lane, const kv_batch_t *batch, kv_error_t *error);
void kv_ends_close(kv_ends_t *ends, uint32_t lane);

/* ucx_perftest's own bandwidth with active messages of that size, over one hot buffer. KV_MISSING:
 * the program is not installed. */
kv_status_t kv_perftest_run(
    bool shm, size_t message_bytes, double *gb_per_s_out, kv_error_t *error);

#endif
