/* A decode in progress: a request that is read on a thread of its own until it is told to end; and
 * the gaps between the tokens that it got.
 *
 * Owns: the thread and its answer.
 * Borrows: endpoint and model until kv_running_free.
 * Threads: the caller's; start several for several decodes. */
#ifndef KV_TOOLS_RUNNING_H
#define KV_TOOLS_RUNNING_H

#include "tools/kvist/completion.h"

enum { KV_RUNNING_TOKENS_MAX = 4096 };

typedef struct kv_running kv_running_t;

/* The request bypasses the cache and goes on whatever the model says. */
kv_status_t kv_running_start(
    const char *endpoint, const char *model, kv_running_t **running_out, kv_error_t *error);

/* Until it has its pace, within a minute; KV_FATAL says what happened instead. */
kv_status_t kv_running_await_pace(kv_running_t *running, kv_error_t *error);

/* Tells it to end and waits until it has. KV_OK: it ran until then; else why it did not. */
kv_status_t kv_running_end(kv_running_t *running, kv_error_t *error);

/* What it got; after kv_running_end. */
const kv_answer_t *kv_running_answer(const kv_running_t *running);

/* Ends it if it was not; NULL is allowed. */
void kv_running_free(kv_running_t *running);

/* ---- gaps ---- */

typedef struct {
    uint64_t *ns;
    size_t count;
} kv_gaps_t;

/* Adds the gaps between tokens that touch [from_ns, to_ns]. */
void kv_gaps_add(kv_gaps_t *gaps, const kv_answer_t *answer, uint64_t from_ns, uint64_t to_ns);

/* Sorts them; 0 where there are none. */
uint64_t kv_gaps_quantile(kv_gaps_t *gaps, unsigned percent);
void kv_gaps_clear(kv_gaps_t *gaps);

#endif
