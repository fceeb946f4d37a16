/* Time. Code that waits or ages takes a kv_clock_t, so that tests and simulations can turn the
 * hands.
 *
 * Threads: kv_clock_real() is safe anywhere; a virtual clock belongs to the thread that steps it.
 */
#ifndef KV_BASE_CLOCK_H
#define KV_BASE_CLOCK_H

#include <stdint.h>

enum { KV_NS_PER_US = 1000, KV_NS_PER_MS = 1000000, KV_NS_PER_S = 1000000000 };

typedef struct kv_clock kv_clock_t;
struct kv_clock {
    uint64_t (*monotonic_ns)(
        const kv_clock_t *clock);                 /* from an arbitrary start; never goes back */
    uint64_t (*unix_ns)(const kv_clock_t *clock); /* since 1970, as the machine believes */
};

/* The machine's clock. */
const kv_clock_t *kv_clock_real(void);

/* Short for kv_clock_real()->monotonic_ns: for measurements. */
uint64_t kv_clock_now_ns(void);

/* A clock that moves when told to. The first member is the clock to pass on. */
typedef struct {
    kv_clock_t clock;
    uint64_t monotonic_ns;
    uint64_t unix_ns;
} kv_virtual_clock_t;

void kv_virtual_clock_init(kv_virtual_clock_t *clock, uint64_t unix_ns);
void kv_virtual_clock_advance(kv_virtual_clock_t *clock, uint64_t duration_ns);

#endif
