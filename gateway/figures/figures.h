/* The gateway's figures under the one definition of hit rate: prompt tokens not recomputed / prompt
 * tokens; with the rate of an ideal cache beside it (gap.h). In all, and split by route, model,
 * tenant, agent, template, tool mode, step and release; by tier where they came from; by reason
 * where they did not come. Goodput: answers that met the targets.
 *
 * Each split stands alone (no products of two): its size is bounded by label_values_max values,
 * whatever clients send; later ones count as "other". What a request does not say is "none".
 *
 * Owns: its tables. Threads: one at a time.
 * Limits: a label's value has KV_LABEL_BYTES_MAX bytes of letters, digits and ". _ - : / @ +". */
#ifndef KV_GATEWAY_FIGURES_H
#define KV_GATEWAY_FIGURES_H

#include "gateway/figures/gap.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { KV_LABEL_BYTES_MAX = 63 };

/* What answers are split by. */
typedef enum {
    KV_BY_ROUTE,
    KV_BY_MODEL,
    KV_BY_TENANT,
    KV_BY_AGENT,
    KV_BY_TEMPLATE,
    KV_BY_TOOL_MODE,
    KV_BY_STEP,
    KV_BY_RELEASE,
    KV_BY_COUNT,
} kv_by_t;

/* One answer. */
typedef struct {
    const char *labels[KV_BY_COUNT]; /* NULL or "": not said */
    kv_partition_t parts;            /* of its prompts */
    uint32_t generated_tokens;
    const char *miss;    /* why no more was cached, as the node says it; NULL */
    uint64_t compute_ns; /* of what was computed of the prompt; 0: not known */
    uint64_t decode_ns;  /* first token to the last, of all choices */
    uint64_t ttft_ns;    /* arrival to the first token */
    uint64_t tpot_ns;    /* per token after the first: of the slowest choice */
} kv_figure_t;

/* Since the start. */
typedef struct {
    kv_partition_t parts;
    uint64_t answers, generated_tokens;
    uint64_t good_answers; /* met every target that is set */
} kv_totals_t;

/* Since the start: computing prompts, generating, and what computing what was hit had taken. */
typedef struct {
    double compute, decode, avoided;
} kv_figures_seconds_t;

typedef struct {
    uint32_t label_values_max;
    uint64_t slo_ttft_ns, slo_tpot_ns; /* targets; 0: none */
} kv_figures_params_t;

typedef struct kv_figures kv_figures_t;

kv_figures_t *kv_figures_create(const kv_figures_params_t *params);
void kv_figures_destroy(kv_figures_t *figures); /* NULL is fine */

void kv_figures_count(kv_figures_t *figures, const kv_figure_t *answer);
const kv_totals_t *kv_figures_totals(const kv_figures_t *figures);
const kv_figures_seconds_t *kv_figures_seconds(const kv_figures_t *figures);

/* A request that was refused before it began: by whom it was asked and why ("key", "requests",
 * "tokens", "queue", ...: literals). */
void kv_figures_refused(kv_figures_t *figures, const char *tenant, const char *why);

/* Adds them to a page in Prometheus' text format. */
void kv_figures_render(const kv_figures_t *figures, FILE *page);

/* A header's text as a label's value: what is no plain character becomes '_', what is too long is
 * cut. text: NULL is "". */
void kv_label_clean(const char *text, char label_out[KV_LABEL_BYTES_MAX + 1]);

#endif
