#include "base/clock.h"

#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * KV_NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t real_monotonic_ns(const kv_clock_t *clock)
{
    (void)clock;
    return read_clock(CLOCK_MONOTONIC);
}

static uint64_t real_unix_ns(const kv_clock_t *clock)
{
    (void)clock;
    return read_clock(CLOCK_REALTIME);
}

const kv_clock_t *kv_clock_real(void)
{
    static const kv_clock_t REAL = {real_monotonic_ns, real_unix_ns};
    return &REAL;
}

uint64_t kv_clock_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

static uint64_t virtual_monotonic_ns(const kv_clock_t *clock)
{
    return ((const kv_virtual_clock_t *)clock)->monotonic_ns;
}

static uint64_t virtual_unix_ns(const kv_clock_t *clock)
{
    return ((const kv_virtual_clock_t *)clock)->unix_ns;
}

void kv_virtual_clock_init(kv_virtual_clock_t *clock, uint64_t unix_ns)
{
    *clock = (kv_virtual_clock_t){{virtual_monotonic_ns, virtual_unix_ns}, 1, unix_ns};
}

void kv_virtual_clock_advance(kv_virtual_clock_t *clock, uint64_t duration_ns)
{
    clock->monotonic_ns += duration_ns;
    clock->unix_ns += duration_ns;
}
