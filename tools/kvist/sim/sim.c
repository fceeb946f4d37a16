/* `kvist sim`: what would be hit, by policy and size, if a trace were served. */
#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/sim/chart.h"
#include "tools/kvist/sim/hints.h"
#include "tools/kvist/sim/reference.h"
#include "tools/kvist/sim/report.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SIZES_MAX = 16,
    BLOCKS_MAX = 1 << 26,
    LIST_BYTES_MAX = 512,
    HINT_SEED = 7,
    PERCENT = 100,
};
#define PROGRESS_NS (UINT64_C(2) * KV_NS_PER_S)
static const char HINTED[] = "+hints";

typedef struct {
    const char *trace, *policies, *device, *host, *disk, *half, *persist, *figure;
    uint64_t segment_blocks, stretch, token_bytes, hint_missing, hint_error, hint_false;
    bool hints, json, quiet;
} options_t;

typedef struct {
    uint32_t device[SIZES_MAX], host[SIZES_MAX], disk[SIZES_MAX];
    size_t count;
} sizes_t;

typedef struct {
    const options_t *options;
    kv_trace_t trace;
    sizes_t sizes;
    bool wanted[KVIST_POLICY_COUNT];
    kv_report_head_t head;
    uint64_t *expected_ms;         /* NULL: no hints */
    uint32_t *hits, *lru, *belady; /* [requests] of the row at hand, and of the size's */
    json_t *rows;                  /* NULL: text */
    double rates[KV_CHART_LINES_MAX][SIZES_MAX];
    char names[KV_CHART_LINES_MAX][KV_ROW_NAME_BYTES];
    bool references[KV_CHART_LINES_MAX];
    size_t line_count; /* of the first size; the others' are the same */
    kv_error_t error;
} sim_t;

/* ---- options ---- */

/* "1000,3000": numbers from 0; one alone stands for all sizes. */
static kv_status_t parse_list(
    const char *name, const char *text, uint32_t *values, size_t *count, kv_error_t *error)
{
    *count = 0;
    for (const char *at = text;; at++) {
        char *end;
        unsigned long long value = isdigit((unsigned char)*at) ? strtoull(at, &end, 10) : 0;
        if (!isdigit((unsigned char)*at) || (*end != ',' && *end != '\0') || value > BLOCKS_MAX ||
            *count == SIZES_MAX) {
            return kv_fail(error, KV_INVALID,
                "%s must be at most %d numbers of blocks from 0 to %d, with commas, not '%s'", name,
                SIZES_MAX, BLOCKS_MAX, text);
        }
        values[(*count)++] = (uint32_t)value;
        at = end;
        if (*at == '\0') {
            return KV_OK;
        }
    }
}

static kv_status_t take_sizes(const options_t *options, sizes_t *sizes, kv_error_t *error)
{
    struct {
        const char *name, *text;
        uint32_t *values;
        size_t count;
    } lists[] = {{"--device", options->device, sizes->device, 0},
        {"--host", options->host, sizes->host, 0}, {"--disk", options->disk, sizes->disk, 0}};
    sizes->count = 1;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        kv_status_t status =
            parse_list(lists[i].name, lists[i].text, lists[i].values, &lists[i].count, error);
        if (status != KV_OK) {
            return status;
        }
        if (lists[i].count > 1 && sizes->count > 1 && lists[i].count != sizes->count) {
            return kv_fail(error, KV_INVALID,
                "%s has %zu sizes, another tier has %zu: lists go together, so they must be of one "
                "length, or a single size",
                lists[i].name, lists[i].count, sizes->count);
        }
        sizes->count = lists[i].count > 1 ? lists[i].count : sizes->count;
    }
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        for (size_t j = lists[i].count; j < sizes->count; j++) {
            lists[i].values[j] = lists[i].values[0];
        }
    }
    return KV_OK;
}

static kv_status_t want_policy(const char *name, size_t bytes, bool *wanted, kv_error_t *error)
{
    char known[LIST_BYTES_MAX] = "";
    for (unsigned i = 0; i < KVIST_POLICY_COUNT; i++) {
        const char *other = kvist_policy_name((kvist_policy_t)i);
        if (strlen(other) == bytes && memcmp(other, name, bytes) == 0) {
            wanted[i] = true;
            return KV_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", used > 0 ? ", " : "", other);
    }
    return kv_fail(
        error, KV_INVALID, "--policy: there is no '%.*s', but %s", (int)bytes, name, known);
}

/* lru always comes along: the others are held against it. */
static kv_status_t take_policies(const char *text, bool *wanted, kv_error_t *error)
{
    wanted[KVIST_POLICY_LRU] = true;
    for (unsigned i = 0; text == NULL && i < KVIST_POLICY_COUNT; i++) {
        wanted[i] = true;
    }
    kv_status_t status = KV_OK;
    while (text != NULL && status == KV_OK) {
        size_t bytes = strcspn(text, ",");
        status = want_policy(text, bytes, wanted, error);
        text = text[bytes] == ',' ? text + bytes + 1 : NULL;
    }
    return status;
}

/* The first half is replayed alone; before the second half the first one is replayed too, so that
 * tiers and policies are warm. */
static kv_status_t take_half(sim_t *sim, kv_error_t *error)
{
    const char *half = sim->options->half;
    uint32_t count = sim->trace.request_count, middle = count / 2;
    if (half == NULL) {
        sim->head.part = "all";
        sim->head.window = (kv_window_t){0, count};
    } else if (strcmp(half, "first") == 0 && middle > 0) {
        sim->trace.request_count = middle;
        sim->trace.asked_count = sim->trace.requests[middle].first_block;
        sim->head.part = "first half";
        sim->head.window = (kv_window_t){0, middle};
    } else if (strcmp(half, "second") == 0 && middle > 0) {
        sim->head.part = "second half, after the first";
        sim->head.window = (kv_window_t){middle, count - middle};
    } else {
        return kv_fail(error, KV_INVALID,
            "--half must be first or second, of a trace of at least two requests, not '%s'", half);
    }
    return KV_OK;
}

static kv_status_t take_persist(const options_t *options, kv_error_t *error)
{
    if (strcmp(options->persist, "eager") != 0 && strcmp(options->persist, "spill") != 0) {
        return kv_fail(
            error, KV_INVALID, "--persist must be eager or spill, not '%s'", options->persist);
    }
    return KV_OK;
}

/* ---- rows ---- */

/* What is replayed now, and when that was last told. */
typedef struct {
    const sim_t *sim;
    const char *name;
    size_t size;
    uint64_t told_ns;
} progress_t;

static void tell_progress(void *context, uint32_t request_count)
{
    progress_t *progress = context;
    const sizes_t *sizes = &progress->sim->sizes;
    uint64_t now_ns = kv_clock_now_ns();
    if (now_ns - progress->told_ns >= PROGRESS_NS) {
        progress->told_ns = now_ns;
        fprintf(stderr, "# %s, device %u host %u disk %u: %u of %u requests\n", progress->name,
            sizes->device[progress->size], sizes->host[progress->size], sizes->disk[progress->size],
            request_count, progress->sim->trace.request_count);
    }
}

/* Prints the row whose hits are in sim->hits, and keeps it for the figure. */
static void add_row(sim_t *sim, kv_row_t *row, size_t size, size_t line)
{
    const kv_outcome_t lru = kv_outcome_of(&sim->trace, sim->head.window, sim->lru);
    const kv_outcome_t belady = kv_outcome_of(&sim->trace, sim->head.window, sim->belady);
    double base = kv_outcome_rate(&lru), best = kv_outcome_rate(&belady);
    row->device_blocks = sim->sizes.device[size];
    row->host_blocks = sim->sizes.host[size];
    row->disk_blocks = sim->sizes.disk[size];
    row->outcome = kv_outcome_of(&sim->trace, sim->head.window, sim->hits);
    double rate = kv_outcome_rate(&row->outcome);
    bool is_base = sim->hits == sim->lru;
    row->over_lru = is_base ? NAN : rate - base;
    row->spread = (kv_spread_t){NAN, NAN};
    if (!is_base) {
        row->spread = kv_outcome_spread(&sim->trace, sim->head.window, sim->hits, sim->lru);
    }
    row->gap_closed = is_base || !(best > base) ? NAN : (rate - base) / (best - base);
    if (sim->rows != NULL) {
        json_array_append_new(sim->rows, kv_report_row_json(&sim->head, row));
    } else {
        kv_report_row(stdout, &sim->head, row);
    }
    memcpy(sim->names[line], row->name, sizeof row->name);
    sim->references[line] = row->reference;
    sim->rates[line][size] = rate;
    sim->line_count = line + 1;
}

static kv_status_t run_policy(
    sim_t *sim, unsigned policy, bool hinted, size_t size, kv_row_t *row, uint32_t *hits)
{
    progress_t progress = {sim, row->name, size, kv_clock_now_ns()};
    const kv_replay_t replay = {
        .policy = (kvist_policy_t)policy,
        .device_blocks = sim->sizes.device[size],
        .host_blocks = sim->sizes.host[size],
        .disk_blocks = sim->sizes.disk[size],
        .segment_blocks = (uint32_t)sim->options->segment_blocks,
        .persist =
            strcmp(sim->options->persist, "eager") == 0 ? KVIST_PERSIST_EAGER : KVIST_PERSIST_SPILL,
        .expected_ms = hinted ? sim->expected_ms : NULL,
        .progress = sim->options->quiet ? NULL : tell_progress,
        .context = &progress,
    };
    *row = (kv_row_t){0};
    snprintf(row->name, sizeof row->name, "%s%s", kvist_policy_name((kvist_policy_t)policy),
        hinted ? HINTED : "");
    return kv_replay_run(
        &sim->trace, &replay, sim->head.window.first, hits, &row->totals, &sim->error);
}

static void run_reference(sim_t *sim, kv_reference_t kind, size_t size, uint32_t *hits)
{
    uint32_t blocks = sim->sizes.device[size] + sim->sizes.host[size] + sim->sizes.disk[size];
    kv_reference_replay(&sim->trace, kind, blocks, hits);
}

/* The others look at none. */
static bool uses_hints(unsigned policy)
{
    return policy == KVIST_POLICY_FORECAST;
}

/* lru and belady first: the others are told by them. */
static kv_status_t run_size(sim_t *sim, size_t size)
{
    kv_row_t row;
    size_t line = 0;
    run_reference(sim, KV_REFERENCE_BELADY, size, sim->belady);
    kv_status_t status = run_policy(sim, KVIST_POLICY_LRU, false, size, &row, sim->lru);
    uint32_t *own = sim->hits;
    if (status == KV_OK) {
        sim->hits = sim->lru;
        add_row(sim, &row, size, line++);
        sim->hits = own;
    }
    for (unsigned policy = 0; status == KV_OK && policy < KVIST_POLICY_COUNT; policy++) {
        bool wanted = sim->wanted[policy] && policy != KVIST_POLICY_LRU;
        int last = sim->expected_ms != NULL && uses_hints(policy);
        for (int hinted = 0; status == KV_OK && wanted && hinted <= last; hinted++) {
            status = run_policy(sim, policy, hinted, size, &row, sim->hits);
            if (status == KV_OK) {
                add_row(sim, &row, size, line++);
            }
        }
    }
    for (int kind = 0; status == KV_OK && kind < KV_REFERENCE_COUNT; kind++) {
        row = (kv_row_t){.reference = true};
        snprintf(row.name, sizeof row.name, "%s", kv_reference_name((kv_reference_t)kind));
        run_reference(sim, (kv_reference_t)kind, size, sim->hits);
        add_row(sim, &row, size, line++);
    }
    return status;
}

/* ---- all ---- */

static kv_status_t draw(sim_t *sim)
{
    double sizes[SIZES_MAX];
    char title[256];
    kv_chart_line_t lines[KV_CHART_LINES_MAX];
    for (size_t i = 0; i < sim->sizes.count; i++) {
        sizes[i] = (double)sim->sizes.device[i] + sim->sizes.host[i] + sim->sizes.disk[i];
        if (i > 0 && sizes[i] <= sizes[i - 1]) {
            return kv_fail(&sim->error, KV_INVALID, "--figure needs sizes in ascending order");
        }
    }
    size_t line_count = 0;
    for (size_t i = 0; i < sim->line_count; i++) {
        if (strcmp(sim->names[i], kv_reference_name(KV_REFERENCE_LRU)) != 0) { /* on lru's line */
            lines[line_count++] =
                (kv_chart_line_t){sim->names[i], sim->rates[i], sim->references[i]};
        }
    }
    const char *name = strrchr(sim->options->trace, '/');
    snprintf(title, sizeof title, "%s, %s", name != NULL ? name + 1 : sim->options->trace,
        sim->head.part);
    const kv_chart_t chart = {
        .title = title,
        .size_title = "size of the cache (blocks, all tiers)",
        .sizes = sizes,
        .size_count = sim->sizes.count,
        .lines = lines,
        .line_count = line_count,
    };
    return kv_chart_write(&chart, sim->options->figure, &sim->error);
}

static void make_hints(sim_t *sim)
{
    const options_t *options = sim->options;
    const kv_hints_params_t params = {
        .seed = HINT_SEED,
        .missing_share = (double)options->hint_missing / PERCENT,
        .error_sigma = (double)options->hint_error / PERCENT,
        .false_share = (double)options->hint_false / PERCENT,
    };
    sim->expected_ms = kv_allocate_array(sim->trace.request_count, sizeof *sim->expected_ms);
    kv_hints_counts_t counts = kv_hints_make(&sim->trace, &params, sim->expected_ms);
    if (!options->quiet) {
        fprintf(stderr, "# hints: %u contexts come back, %u hints are true, %u are false\n",
            counts.coming_count, counts.true_count, counts.false_count);
    }
}

static kv_status_t run_all(sim_t *sim)
{
    sim->hits = kv_allocate_array(sim->trace.request_count, sizeof *sim->hits);
    sim->lru = kv_allocate_array(sim->trace.request_count, sizeof *sim->lru);
    sim->belady = kv_allocate_array(sim->trace.request_count, sizeof *sim->belady);
    if (sim->options->json) {
        sim->rows = json_array();
    } else {
        kv_report_head(stdout, &sim->head);
    }
    kv_status_t status = KV_OK;
    for (size_t size = 0; status == KV_OK && size < sim->sizes.count; size++) {
        status = run_size(sim, size);
    }
    if (status == KV_OK && sim->options->json) {
        json_t *report = kv_report_json(&sim->head, json_incref(sim->rows));
        json_dumpf(report, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(report);
    }
    if (status == KV_OK && sim->options->figure != NULL) {
        status = draw(sim);
    }
    free(sim->hits);
    free(sim->lru);
    free(sim->belady);
    free(sim->expected_ms);
    json_decref(sim->rows);
    return status;
}

static int run(const options_t *options)
{
    sim_t sim = {.options = options};
    kv_status_t status = take_sizes(options, &sim.sizes, &sim.error);
    if (status == KV_OK) {
        status = take_policies(options->policies, sim.wanted, &sim.error);
    }
    if (status == KV_OK) {
        status = take_persist(options, &sim.error);
    }
    if (status != KV_OK) {
        return kv_command_misuse("sim", sim.error.text, "kvist sim --help");
    }
    status = kv_trace_read(options->trace, &sim.trace, &sim.error);
    if (status != KV_OK) {
        return kv_command_fail("sim", sim.error.text, NULL);
    }
    kv_trace_stretch(&sim.trace, (double)options->stretch);
    sim.head.path = options->trace;
    sim.head.trace = &sim.trace;
    sim.head.block_bytes = options->token_bytes * sim.trace.block_tokens;
    status = take_half(&sim, &sim.error);
    if (status == KV_OK && options->hints) {
        make_hints(&sim);
    }
    if (status == KV_OK) {
        status = run_all(&sim);
    }
    kv_trace_release(&sim.trace);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("sim", sim.error.text, NULL);
}

int kv_command_sim(int argc, char **argv)
{
    options_t options = {
        .device = "1000,3000,10000,30000",
        .host = "0",
        .disk = "0",
        .persist = "eager",
        .segment_blocks = 128,
        .stretch = 1,
        .token_bytes = 131072,
        .hint_missing = 50,
        .hint_error = 100,
        .hint_false = 10,
    };
    const kv_argument_t rows[] = {
        {"--device", KV_ARGUMENT_TEXT, "LIST",
            "blocks in device memory (default: 1000,3000,10000,30000)", &options.device, 0, 0},
        {"--host", KV_ARGUMENT_TEXT, "LIST", "blocks in host memory (default: 0)", &options.host, 0,
            0},
        {"--disk", KV_ARGUMENT_TEXT, "LIST", "blocks on disk (default: 0)", &options.disk, 0, 0},
        {"--segment", KV_ARGUMENT_NUMBER, "N", "blocks in a segment on disk (default: 128)",
            &options.segment_blocks, 2, 65536},
        {"--persist", KV_ARGUMENT_TEXT, "HOW",
            "to disk when stored (eager, the default) or when they leave memory (spill)",
            &options.persist, 0, 0},
        {"--policy", KV_ARGUMENT_TEXT, "LIST", "of these policies (default: all)",
            &options.policies, 0, 0},
        {"--half", KV_ARGUMENT_TEXT, "WHICH",
            "count the first half, or the second after the first (default: all)", &options.half, 0,
            0},
        {"--stretch", KV_ARGUMENT_NUMBER, "N", "make gaps between requests so many times as long",
            &options.stretch, 1, 1000000},
        {"--hints", KV_ARGUMENT_FLAG, NULL,
            "also with hints of when contexts come back, for policies that use them",
            &options.hints, 0, 0},
        {"--hint-missing", KV_ARGUMENT_NUMBER, "N",
            "percent of the returns without a hint (default: 50)", &options.hint_missing, 0, 100},
        {"--hint-error", KV_ARGUMENT_NUMBER, "N",
            "percent: sigma of the log-normal error of the times (default: 100)",
            &options.hint_error, 0, 1000},
        {"--hint-false", KV_ARGUMENT_NUMBER, "N",
            "percent of the hints for contexts that never come back (default: 10)",
            &options.hint_false, 0, 90},
        {"--token-bytes", KV_ARGUMENT_NUMBER, "N",
            "bytes of KV a token, to say what is written (default: 131072)", &options.token_bytes,
            1, INT32_MAX},
        {"--figure", KV_ARGUMENT_TEXT, "FILE", "draw hit rate against size as SVG", &options.figure,
            0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "JSON", &options.json, 0, 0},
        {"--quiet", KV_ARGUMENT_FLAG, NULL, "no word of progress", &options.quiet, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist sim [OPTIONS] TRACE",
        .summary =
            "What would have been hit, by policy and size: replays a trace of requests (JSON lines:"
            "\ntimestamp, input_length, output_length, hash_ids; docs/formats.md) through the store"
            "\nthat also serves, on a clock of its own. Lists (1000,3000) go together. Beside the"
            "\npolicies: a cache of single blocks by fifo and lru, and Belady's bound.",
        .rows = rows,
        .row_count = sizeof rows / sizeof rows[0],
        .word = &options.trace,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (options.trace == NULL) {
        return kv_command_misuse("sim", "a trace is missing", "kvist sim FILE");
    }
    return run(&options);
}
