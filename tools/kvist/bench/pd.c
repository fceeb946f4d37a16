/* `kvist bench pd`: prefill and decode apart, end to end, beside one node that does both. */
#include "tools/kvist/bench/pd.h"

#include "base/clock.h"
#include "base/memory.h"
#include "node/http_client.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/cores.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/command.h"

#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    FIRST_TARGET_PERCENT = 105,
    PACE_TARGET_PERCENT = 120,
    ANSWER_TOKENS = 4, /* of a prompt whose first token is timed: enough to compare answers */
    TOKEN_LOWEST = 256,
    TOKEN_COUNT = 16384, /* ids from the lowest on: every vocabulary has more */
    SHORT_TOKENS = 2000,
    LONG_TOKENS = 8000,
    OWN_EXTRAS = 3,
};

typedef struct {
    const char *model, *only;
    uint64_t threads, prompt_tokens, pairs, window_ms, idle_s;
    const char *series, *figure;
    bool json;
    const char *extras[KV_EXTRA_ARGUMENTS_MAX];
    size_t extra_count;
} options_t;

/* The run: two clusters in a folder of its own. */
typedef struct {
    const options_t *options;
    kv_bench_pd_t bench;
    char folder[64], *model_id;
    kv_cluster_t apart, together;
    bool apart_up, together_up;
} run_t;

/* ---- clusters ---- */

static kv_status_t start_cluster(const run_t *run, const char *name, bool colocated,
    uint64_t threads, kv_cluster_t *cluster_out, kv_error_t *error)
{
    char folder[96];
    /* Nothing but the device: room for the running decodes to their ends and two long prompts. */
    const char *extras[KV_EXTRA_ARGUMENTS_MAX] = {
        "--store.directory=none", "--store.host_bytes=0", "--store.device_bytes=1GiB"};
    size_t count = OWN_EXTRAS;
    for (size_t i = 0; i < run->options->extra_count; i++) {
        extras[count++] = run->options->extras[i]; /* later ones win */
    }
    snprintf(folder, sizeof folder, "%s/%s", run->folder, name);
    kv_cluster_params_t params = {.folder = folder,
        .embedded = true, /* what is compared is where prompts are computed, not where KV is kept */
        .model = run->options->model,
        .prefill_threads = threads,
        .decode_threads = threads,
        .colocated = colocated,
        .extras = extras,
        .extra_count = count};
    return kv_cluster_start(&params, cluster_out, error);
}

static void stop_cluster(kv_cluster_t *cluster, bool *up)
{
    kv_error_t error;
    if (*up && kv_cluster_stop(cluster, true, &error) != KV_OK) {
        fprintf(stderr, "kvist bench pd: %s\n", error.text);
    }
    if (*up) {
        kv_cluster_clear(cluster);
    }
    *up = false;
}

static kv_status_t start_together(run_t *run, uint64_t threads, kv_error_t *error)
{
    kv_status_t status = start_cluster(run, "together", true, threads, &run->together, error);
    run->together_up = status == KV_OK;
    return status;
}

static kv_bench_pd_layout_t apart_layout(const run_t *run)
{
    return (kv_bench_pd_layout_t){"apart", run->apart.endpoint, "prefill"};
}

static kv_bench_pd_layout_t together_layout(const run_t *run)
{
    return (kv_bench_pd_layout_t){"together", run->together.endpoint, "decode"};
}

/* ---- time to first token ---- */

kv_status_t kv_bench_pd_ask(const kv_bench_pd_t *bench, const kv_bench_pd_layout_t *layout,
    uint64_t seed, uint64_t prompt_tokens, uint32_t answer_tokens, kv_answer_t *answer_out,
    kv_error_t *error)
{
    json_t *prompt = json_array();
    uint64_t state = (seed + 1) * 0x9e3779b97f4a7c15u;
    for (uint64_t i = 0; i < prompt_tokens; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        json_array_append_new(
            prompt, json_integer((json_int_t)(TOKEN_LOWEST + (state >> 32) % TOKEN_COUNT)));
    }
    json_t *request = json_pack("{s:s, s:o, s:i, s:i, s:b, s:{s:s}}", "model", bench->model_id,
        "prompt", prompt, "max_tokens", (int)answer_tokens, "temperature", 0, "ignore_eos", 1,
        "kvist", "cache_mode", "bypass");
    const kv_endpoint_t endpoint = {.url = layout->endpoint};
    kv_status_t status = kv_complete(
        &endpoint, "/v1/completions", request, KV_BENCH_PD_LIMIT_MS, NULL, NULL, answer_out, error);
    json_decref(request);
    if (status == KV_OK && answer_out->arrival_count == 0) {
        status = kv_fail(error, KV_FATAL, "an answer came without text: nothing can be timed");
    }
    if (status == KV_OK && strncmp(answer_out->prefilled_by, layout->prefill_role,
                               strlen(layout->prefill_role)) != 0) {
        status = kv_fail(error, KV_FATAL, "%s: '%s' computed a prompt, not a %s node", layout->name,
            answer_out->prefilled_by, layout->prefill_role);
    }
    return status;
}

typedef struct {
    const kv_bench_pd_t *bench;
    kv_bench_pd_layout_t layout;
    uint64_t prompt_tokens, samples;
    char *text;                          /* of the last answer; allocated */
    double exposed_ms[KV_PAIRS_MAX + 1]; /* of each sample */
} first_t;

static kv_status_t sample_first(void *context, double *value_out, kv_error_t *error)
{
    first_t *first = context;
    kv_answer_t answer;
    uint64_t sample = first->samples++;
    kv_status_t status = kv_bench_pd_ask(first->bench, &first->layout,
        first->prompt_tokens << 20 | sample, first->prompt_tokens, ANSWER_TOKENS, &answer, error);
    if (status == KV_OK) {
        first->exposed_ms[sample] = answer.node_first_ms - answer.compute_ms;
        *value_out = (double)answer.first_ns / KV_NS_PER_MS;
        free(first->text);
        first->text = kv_duplicate_string(answer.text);
    }
    kv_answer_clear(&answer);
    return status;
}

/* Ours after theirs: the same prompt, so the same answer. */
static kv_status_t sample_apart(void *context, double *value_out, kv_error_t *error)
{
    first_t *sides = context; /* [apart, together] */
    kv_status_t status = sample_first(&sides[0], value_out, error);
    if (status == KV_OK && strcmp(sides[0].text, sides[1].text) != 0) {
        status = kv_fail(error, KV_FATAL,
            "apart and together answer differently: that must never be; '%.40s' and '%.40s'",
            sides[0].text, sides[1].text);
    }
    return status;
}

static kv_status_t measure_first(run_t *run, uint64_t prompt_tokens, kv_error_t *error)
{
    char name[96];
    snprintf(name, sizeof name, "TTFT, %llu tokens", (unsigned long long)prompt_tokens);
    first_t sides[2] = {
        {.bench = &run->bench, .layout = apart_layout(run), .prompt_tokens = prompt_tokens},
        {.bench = &run->bench, .layout = together_layout(run), .prompt_tokens = prompt_tokens}};
    kv_measure_t measure = {.name = name,
        .unit = "ms",
        .against = "one node, as many threads",
        .target = FIRST_TARGET_PERCENT / 100.0};
    kv_side_t theirs = {sample_first, &sides[1]}, ours = {sample_apart, sides};
    kv_status_t status = kv_report_pairs(&run->bench.report, &measure, &theirs, &ours, error);
    if (status == KV_OK) { /* the first pair does not count */
        snprintf(
            name, sizeof name, "exposed transfer, %llu tokens", (unsigned long long)prompt_tokens);
        measure = (kv_measure_t){.name = name, .unit = "ms", .target = NAN};
        kv_report_samples(
            &run->bench.report, &measure, sides[0].exposed_ms + 1, NULL, run->bench.report.pairs);
    }
    free(sides[0].text);
    free(sides[1].text);
    return status;
}

/* ---- idle nodes ---- */

static kv_status_t measure_idle(run_t *run, kv_error_t *error)
{
    uint64_t before[KV_CLUSTER_MEMBERS_MAX], after;
    kv_status_t status = KV_OK;
    const kv_cluster_t *cluster = &run->apart;
    uint64_t begun_ns = kv_clock_now_ns();
    for (size_t i = 0; i < cluster->member_count && status == KV_OK; i++) {
        status = kv_child_cpu_ns(&cluster->members[i].child, &before[i], error);
    }
    nanosleep(&(struct timespec){.tv_sec = (time_t)run->options->idle_s}, NULL);
    for (size_t i = 0; i < cluster->member_count && status == KV_OK; i++) {
        status = kv_child_cpu_ns(&cluster->members[i].child, &after, error);
        double share = 100 * (double)(after - before[i]) / (double)(kv_clock_now_ns() - begun_ns);
        char name[96];
        snprintf(name, sizeof name, "idle, %s", cluster->members[i].name);
        kv_measure_t measure = {.name = name, .unit = "% core", .target = 1};
        if (status == KV_OK) {
            kv_report_samples(&run->bench.report, &measure, &share, NULL, 1);
        }
    }
    return status;
}

/* ---- the order of things ---- */

static bool wants(const run_t *run, const char *part)
{
    return run->options->only == NULL || strcmp(run->options->only, part) == 0;
}

static kv_status_t run_first(run_t *run, kv_error_t *error)
{
    uint64_t told = run->options->prompt_tokens;
    kv_status_t status = start_together(run, run->options->threads, error);
    if (status == KV_OK && told == 0) {
        status = measure_first(run, SHORT_TOKENS, error);
    }
    if (status == KV_OK) {
        status = measure_first(run, told != 0 ? told : LONG_TOKENS, error);
    }
    stop_cluster(&run->together, &run->together_up);
    return status;
}

/* Equal cores: a half for the prefill node and one for the decode node; or all for the one that
 * does both, with as many threads together. The gateway is not bound: it is the same in both. */
static kv_status_t run_pace(run_t *run, kv_error_t *error)
{
    uint32_t cores = kv_cores_count(), half = cores / 2;
    if (half == 0) {
        return kv_fail(error, KV_INVALID, "two cores are needed to compare");
    }
    kv_status_t status = start_together(run, 2 * run->options->threads, error);
    if (status == KV_OK) {
        status = kv_child_pin(&run->apart.members[0].child, 0, half, error);
    }
    if (status == KV_OK) {
        status = kv_child_pin(&run->apart.members[1].child, half, cores - half, error);
    }
    const kv_pace_layout_t layouts[] = {
        {apart_layout(run), PACE_TARGET_PERCENT / 100.0}, {together_layout(run), NAN}};
    if (status == KV_OK) {
        status = kv_bench_pd_pace(&run->bench, &run->bench.report, layouts, 2, error);
    }
    stop_cluster(&run->together, &run->together_up);
    return status;
}

static kv_status_t run_parts(run_t *run, kv_error_t *error)
{
    kv_status_t status =
        start_cluster(run, "apart", false, run->options->threads, &run->apart, error);
    run->apart_up = status == KV_OK;
    if (status == KV_OK) {
        const kv_endpoint_t endpoint = {.url = run->apart.endpoint};
        status = kv_first_model(&endpoint, &run->model_id, error);
        run->bench.model_id = run->model_id;
    }
    if (status == KV_OK && wants(run, "idle")) {
        status = measure_idle(run, error);
    }
    if (status == KV_OK && wants(run, "first")) {
        status = run_first(run, error);
    }
    if (status == KV_OK && wants(run, "pace")) {
        status = run_pace(run, error);
    }
    stop_cluster(&run->apart, &run->apart_up);
    free(run->model_id);
    return status;
}

static int remove_entry(const char *path, const struct stat *state, int type, struct FTW *walk)
{
    (void)state, (void)type, (void)walk;
    return remove(path);
}

static int run_in_folder(const options_t *options)
{
    run_t run = {.options = options,
        .folder = "/tmp/kvist-bench-XXXXXX", /* short: Unix sockets lie in it */
        .bench = {.report = {.out = stdout,
                      .progress = stderr,
                      .json = options->json,
                      .pairs = (uint32_t)options->pairs},
            .notes = options->json ? stderr : stdout,
            .prompt_tokens = options->prompt_tokens != 0 ? options->prompt_tokens : LONG_TOKENS,
            .window_ms = options->window_ms,
            .series = options->series,
            .figure = options->figure}};
    kv_error_t error;
    if (mkdtemp(run.folder) == NULL) {
        kv_fail_errno(&error, errno, "no folder can be made in /tmp");
        return kv_command_fail("bench", error.text, NULL);
    }
    kv_machine_print(run.bench.notes, NULL);
    fprintf(run.bench.notes, "# %llu threads for each node that computes\n",
        (unsigned long long)options->threads);
    kv_status_t status = run_parts(&run, &error);
    if (status != KV_OK) {
        char remedy[128];
        snprintf(remedy, sizeof remedy, "the nodes' logs: %s/*/logs", run.folder);
        return kv_command_fail("bench", error.text, remedy);
    }
    nftw(run.folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    kv_report_end(&run.bench.report);
    return KV_EXIT_DONE;
}

int kv_bench_pd(int argc, char **argv)
{
    uint32_t half = kv_cores_count() / 2;
    options_t options = {
        .threads = half > 0 ? half : 1, .pairs = 9, .window_ms = 5000, .idle_s = 20};
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE",
            "a GGUF file (default: the one that tools/fetch-model fetched)", &options.model, 0, 0},
        {"--only", KV_ARGUMENT_TEXT, "PART",
            "first (time to first token), pace (of running decodes) or idle", &options.only, 0, 0},
        {"--threads", KV_ARGUMENT_NUMBER, "N",
            "of the prefill node and of the decode node (default: half of the cores)",
            &options.threads, 1, 512},
        {"--prompt-tokens", KV_ARGUMENT_NUMBER, "N", "only this length (default: 2000 and 8000)",
            &options.prompt_tokens, 16, 1 << 20},
        {"--pairs", KV_ARGUMENT_NUMBER, "N", "of each measure (default: 9)", &options.pairs, 1,
            KV_PAIRS_MAX},
        {"--window-ms", KV_ARGUMENT_NUMBER, "N",
            "with and without prefills, in each round of the pace (default: 5000)",
            &options.window_ms, 100, 600000},
        {"--idle-s", KV_ARGUMENT_NUMBER, "N", "how long idle nodes are watched (default: 20)",
            &options.idle_s, 1, 3600},
        {"--series", KV_ARGUMENT_TEXT, "FILE", "writes every gap between tokens there (CSV)",
            &options.series, 0, 0},
        {"--figure", KV_ARGUMENT_TEXT, "FILE", "draws the first round's gaps there (SVG)",
            &options.figure, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &options.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench pd [OPTIONS]",
        .summary = "Prefill and decode nodes end to end, beside one node that does both: time to "
                   "first token of\nlong prompts, the pace of running decodes while long prompts "
                   "arrive, what idle nodes cost.\nStarts clusters of its own, without tiers below "
                   "the device, and stops them.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .extras = options.extras,
        .extra_count = &options.extra_count,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    static const char *const PARTS[] = {"first", "pace", "idle"};
    bool known = options.only == NULL;
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++) {
        known |= options.only != NULL && strcmp(options.only, PARTS[i]) == 0;
    }
    if (!known) {
        return kv_command_misuse(
            "bench", "--only must be first, pace or idle", "kvist bench pd --help");
    }
    if (options.extra_count > KV_EXTRA_ARGUMENTS_MAX - OWN_EXTRAS) {
        return kv_command_misuse("bench", "too many options for the nodes", NULL);
    }
    kv_http_setup();
    return run_in_folder(&options);
}
