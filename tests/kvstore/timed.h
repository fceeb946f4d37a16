/* A bench of harness.h whose time passes only when the test says so.
 *
 * Owns, Borrows, Threads: as the bench.
 * Errors: fails the test. */
#ifndef KV_TESTS_KVSTORE_TIMED_H
#define KV_TESTS_KVSTORE_TIMED_H

#include "harness.h"

#define NOW_S 1800000000ull

typedef struct {
    bench_t bench;
    kv_virtual_clock_t clock;
} timed_t;

static inline void timed_init(timed_t *timed, const char *name, uint32_t device_slots)
{
    bench_init(&timed->bench, name, device_slots);
    kv_virtual_clock_init(&timed->clock, NOW_S * KV_NS_PER_S);
    timed->bench.params.clock = &timed->clock.clock;
}

/* Answers the time that it is then. */
static inline uint64_t pass_s(timed_t *timed, uint64_t seconds)
{
    kv_virtual_clock_advance(&timed->clock, seconds * KV_NS_PER_S);
    return timed->clock.unix_ns;
}

static inline uint64_t from_now_ns(const timed_t *timed, uint64_t seconds)
{
    return timed->clock.unix_ns + seconds * KV_NS_PER_S;
}

#endif
