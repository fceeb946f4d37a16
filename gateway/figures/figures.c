#include "gateway/figures/figures.h"

#include "base/clock.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* A prompt of which less was computed says little of what a token costs: starting does. */
enum { LEARNT_TOKENS_MIN = 64 };

enum { REASONS_MAX = 32 };

typedef struct {
    char label[KV_LABEL_BYTES_MAX + 1];
    uint64_t requests, prompt_tokens, generated_tokens;
    uint64_t cached[KV_FIGURE_TIERS];
} row_t;

typedef struct {
    row_t *rows; /* [label_values_max + 1]: the last is "other" */
    uint32_t count;
    bool overflown;
} table_t;

/* Counters by names that the code knows, or a node says. */
typedef struct {
    char label[KV_LABEL_BYTES_MAX + 1];
    uint64_t count;
} reason_t;

struct kv_figures {
    uint32_t label_values_max;
    table_t tables[KV_BY_COUNT];
    reason_t missed[REASONS_MAX + 1];
    uint32_t missed_count;
    struct {
        const char *why;
        table_t tenants; /* requests alone */
    } refused[8];
    uint32_t refused_count;
    double compute_seconds, decode_seconds, avoided_seconds;
    double learnt_seconds; /* of learnt_tokens, computed */
    uint64_t learnt_tokens;
};

static const char *const TIERS[KV_FIGURE_TIERS] = {"device", "host", "disk", "remote"};
static const char *const NAMES[KV_BY_COUNT] = {
    "route", "model", "tenant", "agent", "template", "tool_mode", "step", "release"};
static const char OTHER[] = "other", NONE[] = "none";

void kv_label_clean(const char *text, char label_out[KV_LABEL_BYTES_MAX + 1])
{
    size_t bytes = 0;
    for (; text != NULL && text[bytes] != '\0' && bytes < KV_LABEL_BYTES_MAX; bytes++) {
        char byte = text[bytes];
        bool plain = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                     (byte >= '0' && byte <= '9') || strchr("._-:/@+", byte) != NULL;
        label_out[bytes] = plain ? byte : '_';
    }
    label_out[bytes] = '\0';
}

static row_t *row_of(table_t *table, const char *label, uint32_t rows_max)
{
    const char *name = label == NULL || label[0] == '\0' ? NONE : label;
    if (table->rows == NULL) {
        table->rows = kv_allocate_array(rows_max + 1, sizeof *table->rows);
        memcpy(table->rows[rows_max].label, OTHER, sizeof OTHER);
    }
    for (uint32_t i = 0; i < table->count; i++) {
        if (strcmp(table->rows[i].label, name) == 0) {
            return &table->rows[i];
        }
    }
    if (table->count == rows_max || strcmp(name, OTHER) == 0) {
        table->overflown = true;
        return &table->rows[rows_max];
    }
    row_t *row = &table->rows[table->count++];
    snprintf(row->label, sizeof row->label, "%s", name);
    return row;
}

kv_figures_t *kv_figures_create(uint32_t label_values_max)
{
    kv_figures_t *figures = kv_allocate(sizeof *figures);
    figures->label_values_max = label_values_max;
    return figures;
}

void kv_figures_destroy(kv_figures_t *figures)
{
    if (figures == NULL) {
        return;
    }
    for (int i = 0; i < KV_BY_COUNT; i++) {
        free(figures->tables[i].rows);
    }
    for (uint32_t i = 0; i < figures->refused_count; i++) {
        free(figures->refused[i].tenants.rows);
    }
    free(figures);
}

/* The reason without what it is about: "diverged@17" is "diverged", "evicted:disk" stays. */
static void count_missed(kv_figures_t *figures, const char *miss, uint64_t tokens)
{
    char label[KV_LABEL_BYTES_MAX + 1];
    kv_label_clean(miss, label);
    label[strcspn(label, "@")] = '\0';
    const char *name = label[0] == '\0' ? NONE : label;
    uint32_t at = 0;
    while (at < figures->missed_count && strcmp(figures->missed[at].label, name) != 0) {
        at++;
    }
    if (at == figures->missed_count) {
        at = at < REASONS_MAX ? figures->missed_count++ : REASONS_MAX;
        snprintf(figures->missed[at].label, sizeof figures->missed[at].label, "%s",
            at < REASONS_MAX ? name : OTHER);
    }
    figures->missed[at].count += tokens;
}

/* What was not computed, at the price of what was: learnt from prompts of which enough was computed
 * to tell. */
static void count_seconds(kv_figures_t *figures, const kv_figure_t *answer, uint64_t cached_tokens)
{
    double seconds = (double)answer->compute_ns / KV_NS_PER_S;
    uint64_t computed_tokens = answer->prompt_tokens - cached_tokens;
    figures->compute_seconds += seconds;
    figures->decode_seconds += (double)answer->decode_ns / KV_NS_PER_S;
    if (answer->compute_ns > 0 && computed_tokens >= LEARNT_TOKENS_MIN) {
        figures->learnt_seconds += seconds;
        figures->learnt_tokens += computed_tokens;
    }
    if (figures->learnt_tokens > 0) {
        figures->avoided_seconds +=
            (double)cached_tokens * figures->learnt_seconds / (double)figures->learnt_tokens;
    }
}

void kv_figures_count(kv_figures_t *figures, const kv_figure_t *answer)
{
    uint64_t cached_tokens = 0;
    for (int tier = 0; tier < KV_FIGURE_TIERS; tier++) {
        cached_tokens += answer->cached[tier];
    }
    if (cached_tokens > answer->prompt_tokens) {
        return; /* a node that says so says nothing */
    }
    for (int by = 0; by < KV_BY_COUNT; by++) {
        row_t *row = row_of(&figures->tables[by], answer->labels[by], figures->label_values_max);
        row->requests++;
        row->prompt_tokens += answer->prompt_tokens;
        row->generated_tokens += answer->generated_tokens;
        for (int tier = 0; tier < KV_FIGURE_TIERS; tier++) {
            row->cached[tier] += answer->cached[tier];
        }
    }
    if (cached_tokens < answer->prompt_tokens) {
        count_missed(figures, answer->miss, answer->prompt_tokens - cached_tokens);
    }
    count_seconds(figures, answer, cached_tokens);
}

void kv_figures_refused(kv_figures_t *figures, const char *tenant, const char *why)
{
    uint32_t at = 0, most = sizeof figures->refused / sizeof figures->refused[0];
    while (at < figures->refused_count && strcmp(figures->refused[at].why, why) != 0) {
        at++;
    }
    if (at == most) {
        return;
    }
    figures->refused_count += at == figures->refused_count;
    figures->refused[at].why = why;
    row_of(&figures->refused[at].tenants, tenant, figures->label_values_max)->requests++;
}

/* ---- the page ---- */

/* The row of this index, "other" as the last one where it is used; NULL: no more. */
static const row_t *row_at(const kv_figures_t *figures, const table_t *table, uint32_t index)
{
    if (index < table->count) {
        return &table->rows[index];
    }
    return index == table->count && table->overflown ? &table->rows[figures->label_values_max]
                                                     : NULL;
}

static void head(FILE *page, const char *by, const char *what, const char *help)
{
    fprintf(page, "# HELP kvist_gateway_%s_%s %s\n# TYPE kvist_gateway_%s_%s counter\n", by, what,
        help, by, what);
}

static void render_counter(const kv_figures_t *figures, FILE *page, int by, const char *what,
    const char *help, size_t offset)
{
    const row_t *row;
    head(page, NAMES[by], what, help);
    for (uint32_t i = 0; (row = row_at(figures, &figures->tables[by], i)) != NULL; i++) {
        uint64_t value;
        memcpy(&value, (const char *)row + offset, sizeof value);
        fprintf(page, "kvist_gateway_%s_%s{%s=\"%s\"} %" PRIu64 "\n", NAMES[by], what, NAMES[by],
            row->label, value);
    }
}

static void render_table(const kv_figures_t *figures, FILE *page, int by)
{
    const row_t *row;
    render_counter(figures, page, by, "answers_total", "answers", offsetof(row_t, requests));
    render_counter(figures, page, by, "prompt_tokens_total", "prompt tokens of answers",
        offsetof(row_t, prompt_tokens));
    render_counter(figures, page, by, "completion_tokens_total", "tokens that were generated",
        offsetof(row_t, generated_tokens));
    head(page, NAMES[by], "cached_tokens_total",
        "prompt tokens that were not recomputed, by the tier they came from");
    for (uint32_t i = 0; (row = row_at(figures, &figures->tables[by], i)) != NULL; i++) {
        for (int tier = 0; tier < KV_FIGURE_TIERS; tier++) {
            fprintf(page,
                "kvist_gateway_%s_cached_tokens_total{%s=\"%s\",tier=\"%s\"} %" PRIu64 "\n",
                NAMES[by], NAMES[by], row->label, TIERS[tier], row->cached[tier]);
        }
    }
}

static void render_seconds(const kv_figures_t *figures, FILE *page)
{
    head(page, "compute", "seconds_total",
        "prefill: computing prompts, as nodes say; decode: first token to the last");
    fprintf(page,
        "kvist_gateway_compute_seconds_total{phase=\"prefill\"} %.17g\n"
        "kvist_gateway_compute_seconds_total{phase=\"decode\"} %.17g\n",
        figures->compute_seconds, figures->decode_seconds);
    head(page, "prefill", "avoided_seconds_total",
        "prompt tokens that were not recomputed, at the mean price of those that were");
    fprintf(page, "kvist_gateway_prefill_avoided_seconds_total %.17g\n", figures->avoided_seconds);
}

void kv_figures_render(const kv_figures_t *figures, FILE *page)
{
    for (int by = 0; by < KV_BY_COUNT; by++) {
        render_table(figures, page, by);
    }
    head(page, "missed", "tokens_total", "prompt tokens that were recomputed, and why");
    for (uint32_t i = 0; i <= REASONS_MAX && figures->missed[i].label[0] != '\0'; i++) {
        fprintf(page, "kvist_gateway_missed_tokens_total{reason=\"%s\"} %" PRIu64 "\n",
            figures->missed[i].label, figures->missed[i].count);
    }
    head(page, "refused", "total", "requests that were refused before they began, and why");
    for (uint32_t i = 0; i < figures->refused_count; i++) {
        const table_t *tenants = &figures->refused[i].tenants;
        const row_t *row;
        for (uint32_t j = 0; (row = row_at(figures, tenants, j)) != NULL; j++) {
            fprintf(page, "kvist_gateway_refused_total{why=\"%s\",tenant=\"%s\"} %" PRIu64 "\n",
                figures->refused[i].why, row->label, row->requests);
        }
    }
    render_seconds(figures, page);
}
