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
    kv_totals_t totals;
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

/* Which of the targets an answer met. */
enum { MET_NONE, MET_TTFT, MET_TPOT, MET_BOTH, MET_COUNT };

struct kv_figures {
    uint32_t label_values_max;
    uint64_t slo_ttft_ns, slo_tpot_ns;
    kv_totals_t totals;
    uint64_t met[MET_COUNT]; /* answers */
    table_t tables[KV_BY_COUNT];
    reason_t missed[REASONS_MAX + 1];
    uint32_t missed_count;
    struct {
        const char *why;
        table_t tenants; /* requests alone */
    } refused[8];
    uint32_t refused_count;
    kv_figures_seconds_t seconds;
    double learnt_seconds; /* of learnt_tokens, computed */
    uint64_t learnt_tokens;
};

static const char *const TIERS[KV_PARTITION_TIERS] = {"device", "host", "disk", "remote"};
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

kv_figures_t *kv_figures_create(const kv_figures_params_t *params)
{
    kv_figures_t *figures = kv_allocate(sizeof *figures);
    figures->label_values_max = params->label_values_max;
    figures->slo_ttft_ns = params->slo_ttft_ns;
    figures->slo_tpot_ns = params->slo_tpot_ns;
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
static void count_seconds(kv_figures_t *figures, const kv_figure_t *answer)
{
    double seconds = (double)answer->compute_ns / KV_NS_PER_S;
    uint64_t cached_tokens = kv_partition_hit(&answer->parts);
    uint64_t computed_tokens = answer->parts.prompt - cached_tokens;
    figures->seconds.compute += seconds;
    figures->seconds.decode += (double)answer->decode_ns / KV_NS_PER_S;
    if (answer->compute_ns > 0 && computed_tokens >= LEARNT_TOKENS_MIN) {
        figures->learnt_seconds += seconds;
        figures->learnt_tokens += computed_tokens;
    }
    if (figures->learnt_tokens > 0) {
        figures->seconds.avoided +=
            (double)cached_tokens * figures->learnt_seconds / (double)figures->learnt_tokens;
    }
}

static bool within(uint64_t value_ns, uint64_t target_ns)
{
    return target_ns == 0 || value_ns <= target_ns;
}

static void add_answer(kv_totals_t *totals, const kv_figure_t *answer, bool good)
{
    kv_partition_add(&totals->parts, &answer->parts);
    totals->answers++;
    totals->generated_tokens += answer->generated_tokens;
    totals->good_answers += good;
}

void kv_figures_count(kv_figures_t *figures, const kv_figure_t *answer)
{
    int met = within(answer->ttft_ns, figures->slo_ttft_ns) ? MET_TTFT : MET_NONE;
    met |= within(answer->tpot_ns, figures->slo_tpot_ns) ? MET_TPOT : MET_NONE;
    figures->met[met]++;
    add_answer(&figures->totals, answer, met == MET_BOTH);
    for (int by = 0; by < KV_BY_COUNT; by++) {
        row_t *row = row_of(&figures->tables[by], answer->labels[by], figures->label_values_max);
        add_answer(&row->totals, answer, met == MET_BOTH);
    }
    uint64_t cached_tokens = kv_partition_hit(&answer->parts);
    if (cached_tokens < answer->parts.prompt) {
        count_missed(figures, answer->miss, answer->parts.prompt - cached_tokens);
    }
    count_seconds(figures, answer);
}

const kv_totals_t *kv_figures_totals(const kv_figures_t *figures)
{
    return &figures->totals;
}

const kv_figures_seconds_t *kv_figures_seconds(const kv_figures_t *figures)
{
    return &figures->seconds;
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
    row_of(&figures->refused[at].tenants, tenant, figures->label_values_max)->totals.answers++;
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

static void head(FILE *page, const char *name, const char *type, const char *help)
{
    fprintf(
        page, "# HELP kvist_gateway_%s %s\n# TYPE kvist_gateway_%s %s\n", name, help, name, type);
}

/* A split's: NAME_what. */
static void head_of(FILE *page, int by, const char *what, const char *help)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%s", NAMES[by], what);
    head(page, name, "counter", help);
}

static uint64_t answers_of(const kv_totals_t *totals)
{
    return totals->answers;
}

static uint64_t good_answers_of(const kv_totals_t *totals)
{
    return totals->good_answers;
}

static uint64_t prompt_tokens_of(const kv_totals_t *totals)
{
    return totals->parts.prompt;
}

static uint64_t gap_tokens_of(const kv_totals_t *totals)
{
    return kv_partition_gap(&totals->parts);
}

static uint64_t generated_tokens_of(const kv_totals_t *totals)
{
    return totals->generated_tokens;
}

/* What every split has, one value a row. */
static const struct {
    const char *what, *help;
    uint64_t (*of)(const kv_totals_t *totals);
} COUNTERS[] = {
    {"answers_total", "answers", answers_of},
    {"good_answers_total", "answers that met the targets of gateway.slo_ttft and gateway.slo_tpot",
        good_answers_of},
    {"prompt_tokens_total", "prompt tokens of answers", prompt_tokens_of},
    {"completion_tokens_total", "tokens that were generated for answers", generated_tokens_of},
    {"gap_tokens_total", "prompt tokens that were recomputed though they had been seen before",
        gap_tokens_of},
};
static const char CACHED_HELP[] =
    "prompt tokens that were not recomputed, by the tier they came from";

static void render_table(const kv_figures_t *figures, FILE *page, int by)
{
    const row_t *row;
    for (size_t what = 0; what < sizeof COUNTERS / sizeof COUNTERS[0]; what++) {
        head_of(page, by, COUNTERS[what].what, COUNTERS[what].help);
        for (uint32_t i = 0; (row = row_at(figures, &figures->tables[by], i)) != NULL; i++) {
            fprintf(page, "kvist_gateway_%s_%s{%s=\"%s\"} %" PRIu64 "\n", NAMES[by],
                COUNTERS[what].what, NAMES[by], row->label, COUNTERS[what].of(&row->totals));
        }
    }
    head_of(page, by, "cached_tokens_total", CACHED_HELP);
    for (uint32_t i = 0; (row = row_at(figures, &figures->tables[by], i)) != NULL; i++) {
        for (int tier = 0; tier < KV_PARTITION_TIERS; tier++) {
            fprintf(page,
                "kvist_gateway_%s_cached_tokens_total{%s=\"%s\",tier=\"%s\"} %" PRIu64 "\n",
                NAMES[by], NAMES[by], row->label, TIERS[tier], row->totals.parts.hit[tier]);
        }
    }
}

/* The prompts of all answers: cached, gap and unseen add up to prompt tokens. */
static void render_parts(const kv_totals_t *totals, FILE *page)
{
    const kv_partition_t *parts = &totals->parts;
    head(page, "prompt_tokens_total", "counter", "prompt tokens of answers");
    fprintf(page, "kvist_gateway_prompt_tokens_total %" PRIu64 "\n", parts->prompt);
    head(page, "cached_tokens_total", "counter", CACHED_HELP);
    for (int tier = 0; tier < KV_PARTITION_TIERS; tier++) {
        fprintf(page, "kvist_gateway_cached_tokens_total{tier=\"%s\"} %" PRIu64 "\n", TIERS[tier],
            parts->hit[tier]);
    }
    head(page, "gap_tokens_total", "counter",
        "prompt tokens that were recomputed though they had been seen before, and why");
    for (int reason = 0; reason < KV_GAP_COUNT; reason++) {
        fprintf(page, "kvist_gateway_gap_tokens_total{reason=\"%s\"} %" PRIu64 "\n",
            kv_gap_name((kv_gap_t)reason), parts->gap[reason]);
    }
    head(page, "unseen_tokens_total", "counter",
        "prompt tokens that no cache could have had: new, short (less than a block), diverged (the "
        "prompt parted early from its predecessor)");
    fprintf(page,
        "kvist_gateway_unseen_tokens_total{kind=\"new\"} %" PRIu64 "\n"
        "kvist_gateway_unseen_tokens_total{kind=\"short\"} %" PRIu64 "\n"
        "kvist_gateway_unseen_tokens_total{kind=\"diverged\"} %" PRIu64 "\n",
        parts->fresh, parts->tail, parts->diverged);
    head(page, "completion_tokens_total", "counter", "tokens that were generated for answers");
    fprintf(page, "kvist_gateway_completion_tokens_total %" PRIu64 "\n", totals->generated_tokens);
}

static void render_rates(const kv_totals_t *totals, FILE *page)
{
    head(
        page, "hit_rate", "gauge", "prompt tokens not recomputed / prompt tokens, since the start");
    fprintf(page, "kvist_gateway_hit_rate %.17g\n", kv_partition_rate(&totals->parts));
    head(page, "ideal_hit_rate", "gauge",
        "the same, had a cache without bounds been there: tokens seen before / prompt tokens");
    fprintf(page, "kvist_gateway_ideal_hit_rate %.17g\n", kv_partition_ideal(&totals->parts));
    head(page, "input_output_ratio", "gauge", "prompt tokens / tokens generated, since the start");
    fprintf(page, "kvist_gateway_input_output_ratio %.17g\n",
        totals->generated_tokens == 0
            ? 0
            : (double)totals->parts.prompt / (double)totals->generated_tokens);
}

static void render_goodput(const kv_figures_t *figures, FILE *page)
{
    static const char *const MET[MET_COUNT] = {"none", "ttft", "tpot", "both"};
    head(page, "slo_answers_total", "counter",
        "answers, by which of the targets they met; goodput is the rate of both");
    for (int met = 0; met < MET_COUNT; met++) {
        fprintf(page, "kvist_gateway_slo_answers_total{met=\"%s\"} %" PRIu64 "\n", MET[met],
            figures->met[met]);
    }
    head(page, "slo_seconds", "gauge", "the targets; 0: none");
    fprintf(page,
        "kvist_gateway_slo_seconds{target=\"ttft\"} %.17g\n"
        "kvist_gateway_slo_seconds{target=\"tpot\"} %.17g\n",
        (double)figures->slo_ttft_ns / KV_NS_PER_S, (double)figures->slo_tpot_ns / KV_NS_PER_S);
}

static void render_seconds(const kv_figures_t *figures, FILE *page)
{
    head(page, "compute_seconds_total", "counter",
        "prefill: computing prompts, as nodes say; decode: first token to the last");
    fprintf(page,
        "kvist_gateway_compute_seconds_total{phase=\"prefill\"} %.17g\n"
        "kvist_gateway_compute_seconds_total{phase=\"decode\"} %.17g\n",
        figures->seconds.compute, figures->seconds.decode);
    head(page, "prefill_avoided_seconds_total", "counter",
        "prompt tokens that were not recomputed, at the mean price of those that were");
    fprintf(page, "kvist_gateway_prefill_avoided_seconds_total %.17g\n", figures->seconds.avoided);
}

static void render_refused(const kv_figures_t *figures, FILE *page)
{
    head(page, "refused_total", "counter", "requests that were refused before they began, and why");
    for (uint32_t i = 0; i < figures->refused_count; i++) {
        const table_t *tenants = &figures->refused[i].tenants;
        const row_t *row;
        for (uint32_t j = 0; (row = row_at(figures, tenants, j)) != NULL; j++) {
            fprintf(page, "kvist_gateway_refused_total{why=\"%s\",tenant=\"%s\"} %" PRIu64 "\n",
                figures->refused[i].why, row->label, row->totals.answers);
        }
    }
}

void kv_figures_render(const kv_figures_t *figures, FILE *page)
{
    render_parts(&figures->totals, page);
    render_rates(&figures->totals, page);
    render_goodput(figures, page);
    for (int by = 0; by < KV_BY_COUNT; by++) {
        render_table(figures, page, by);
    }
    head(page, "missed_tokens_total", "counter",
        "prompt tokens that were recomputed, by what their node says of it");
    for (uint32_t i = 0; i <= REASONS_MAX && figures->missed[i].label[0] != '\0'; i++) {
        fprintf(page, "kvist_gateway_missed_tokens_total{reason=\"%s\"} %" PRIu64 "\n",
            figures->missed[i].label, figures->missed[i].count);
    }
    render_refused(figures, page);
    render_seconds(figures, page);
}
