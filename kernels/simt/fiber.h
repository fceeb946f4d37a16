/* Fibers: stacks that one thread switches between.
 *
 * A fiber begins at its entry when it is first switched to, and never returns from it: it leaves by
 * switching away. Restarting a fiber forgets whatever it was doing.
 *
 * Owns: its stack, with a page below it that traps an overflow.
 * Threads: a fiber belongs to the thread that first switches to it, until it is restarted.
 * Errors: running out of memory stops the process. */
#ifndef KV_KERNELS_SIMT_FIBER_H
#define KV_KERNELS_SIMT_FIBER_H

#include <stddef.h>

typedef void kv_fiber_entry_t(void *argument);

typedef struct kv_fiber kv_fiber_t;

/* number: of the fiber among those that take turns; spreads their stacks over the caches. Up to 4
 * KiB of the stack go to that. */
kv_fiber_t *kv_fiber_create(size_t stack_bytes, size_t number);
void kv_fiber_destroy(kv_fiber_t *fiber);

/* Makes the next switch to it call entry(argument) on an empty stack. */
void kv_fiber_restart(kv_fiber_t *fiber, kv_fiber_entry_t *entry, void *argument);

/* A fiber without a stack of its own: the thread that called, as it is switched away from. */
kv_fiber_t *kv_fiber_create_for_thread(void);

/* Goes on in to; returns when somebody switches to from again. */
void kv_fiber_switch(kv_fiber_t *from, kv_fiber_t *to);

/* The stack's lowest address and its bytes; 0 bytes for a thread's own. */
const void *kv_fiber_stack(const kv_fiber_t *fiber, size_t *bytes_out);

#endif
