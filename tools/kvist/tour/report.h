/* What the tour measured, and how it is shown: as a table for people, as JSON for programs.
 *
 * Threads: one. */
#ifndef KV_TOOLS_TOUR_REPORT_H
#define KV_TOOLS_TOUR_REPORT_H

#include "base/status.h"
#include "tools/kvist/completion.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_TOUR_STEPS_MAX = 4, KV_TOUR_LAYOUTS_MAX = 2 };

typedef enum {
    KV_SAME_REFERENCE, /* computed anew: what others are compared with */
    KV_SAME_YES,
    KV_SAME_NO,
} kv_same_t;

/* One request with a long context. */
typedef struct {
    const char *name, *title, *meaning;
    uint64_t prompt_tokens, cached_tokens, seen_tokens[KV_SEEN_COUNT];
    uint64_t loaded_bytes, streamed_bytes;
    uint64_t first_ns;       /* TTFT */
    uint64_t recomputed_ns;  /* TTFT of the same request with the cache bypassed; 0: not measured */
    unsigned target_divisor; /* TTFT is to be at most cold / this; 0: no target */
    kv_same_t same;          /* the greedy answer against the recomputed one */
    bool decode_kv_reused;   /* KV made by decode kernels was reused: equality is not claimed */
} kv_tour_step_t;

/* A running decode while a long prefill comes in. */
typedef struct {
    const char *name, *title;
    unsigned threads;
    uint64_t alone_p50_ns;           /* time per token before the prefill came */
    uint64_t p50_ns, p99_ns, max_ns; /* while it ran */
    uint64_t prefill_ns;             /* how long it ran: its TTFT */
    uint64_t token_count;            /* tokens of the running decode meanwhile */
} kv_tour_layout_t;

typedef struct {
    const char *session, *model;
    kv_tour_step_t steps[KV_TOUR_STEPS_MAX];
    unsigned step_count;
    kv_tour_layout_t layouts[KV_TOUR_LAYOUTS_MAX];
    unsigned layout_count;
} kv_tour_report_t;

void kv_tour_print(const kv_tour_report_t *report);
kv_status_t kv_tour_write_json(const kv_tour_report_t *report, const char *path, kv_error_t *error);

/* false when an answer differs that had to be the same. */
bool kv_tour_holds(const kv_tour_report_t *report);

/* A step's TTFT is within its target. */
bool kv_tour_step_in_time(const kv_tour_report_t *report, const kv_tour_step_t *step);

#endif
