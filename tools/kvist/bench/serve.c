/* `kvist bench serve`: a load against any OpenAI-compatible endpoint; what hit, beside what could
 * have, and what clients waited for. */
#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/bench/serve/asked.h"
#include "tools/kvist/bench/serve/drive.h"
#include "tools/kvist/bench/serve/outcome.h"
#include "tools/kvist/bench/serve/parts.h"
#include "tools/kvist/bench/serve/report.h"
#include "tools/kvist/bench/serve/workloads.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/command.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

enum {
    LIST_MAX = 16,
    CONTEXT_TOKENS_DEFAULT = 8192,
    TERMINAL_PROGRESS_MS = 1000,
    FILE_PROGRESS_MS = 5000,
    FORM_VERSION = 1,
};

static const char KEY_VARIABLE[] = "KVIST_API_KEY";

typedef struct {
    const char *workload, *folder, *endpoint, *key, *ca_file, *model, *fields, *prompts, *name;
    const char *concurrency, *rate, *shared, *slo, *trace, *stretch, *json, *html, *figures;
    uint64_t seed, context_tokens, block_tokens, duration_s, limit_s;
    uint64_t prompt_tokens, answer_tokens, turn_tokens, sessions, requests, kinds, turns, pause_ms;
    uint64_t branches, depth, beam, questions, scale_percent;
    bool shuffled;
} options_t;

typedef struct {
    double values[LIST_MAX];
    size_t count;
} list_t;

typedef struct {
    const options_t *options;
    kv_workload_t workload; /* of every phase, but for seed and share */
    kv_trace_t trace;
    list_t concurrency, rates, shares;
    double stretch;
    kv_slo_t slo;
    kv_asked_t asked;
    json_t *run;
    char label[96]; /* of the phase */
    bool interrupted;
    bool adds_up; /* the gateway's parts, of all phases */
} bench_t;

/* ---- options ---- */

/* "1,4,16": numbers in [least, most], as many as a list may have. */
static kv_status_t parse_list(const char *name, const char *text, double least, double most,
    bool whole, list_t *list, kv_error_t *error)
{
    list->count = 0;
    for (const char *at = text; at != NULL && *at != '\0';) {
        char *end;
        double value = strtod(at, &end);
        bool good = end != at && (*end == ',' || *end == '\0') && value >= least && value <= most &&
                    (!whole || value == floor(value));
        if (!good || list->count == LIST_MAX) {
            return kv_fail(error, KV_INVALID,
                "%s '%.80s': it must be up to %d%s numbers from %g to %g with commas between them",
                name, text, LIST_MAX, whole ? " whole" : "", least, most);
        }
        list->values[list->count++] = value;
        at = *end == ',' ? end + 1 : end;
    }
    return KV_OK;
}

static kv_status_t parse_workload(
    const options_t *options, kv_workload_t *workload_out, kv_error_t *error)
{
    for (int kind = 0; kind < KV_WORKLOAD_COUNT; kind++) {
        if (options->workload != NULL && strcmp(options->workload, KV_WORKLOAD_NAMES[kind]) == 0) {
            *workload_out = kv_workload_defaults((kv_workload_kind_t)kind);
            return KV_OK;
        }
    }
    return kv_fail(error, KV_INVALID,
        "%s%s%s: the workload must be agents, sweep, tree, batch or trace",
        options->workload != NULL ? "'" : "none is named",
        options->workload != NULL ? options->workload : "", options->workload != NULL ? "'" : "");
}

static void take_number(uint64_t told, uint32_t *target)
{
    if (told != UINT64_MAX) {
        *target = (uint32_t)told;
    }
}

static void take_sizes(const options_t *options, kv_workload_t *workload)
{
    take_number(options->prompt_tokens, &workload->prompt_tokens);
    take_number(options->answer_tokens, &workload->answer_tokens);
    take_number(options->turn_tokens, &workload->turn_tokens);
    take_number(options->sessions, &workload->sessions);
    take_number(options->requests, &workload->requests);
    take_number(options->kinds, &workload->kinds);
    take_number(options->turns, &workload->turns);
    take_number(options->branches, &workload->branches);
    take_number(options->depth, &workload->depth);
    take_number(options->beam, &workload->beam);
    take_number(options->questions, &workload->questions);
    take_number(options->scale_percent, &workload->scale_percent);
    workload->pause_ms = options->pause_ms != UINT64_MAX ? options->pause_ms : workload->pause_ms;
    workload->shuffled = options->shuffled;
}

/* What belongs together, and what excludes each other. */
static kv_status_t check(const bench_t *bench, kv_error_t *error)
{
    kv_workload_kind_t kind = bench->workload.kind;
    const options_t *options = bench->options;
    if (bench->rates.count > 0 && bench->concurrency.count > 0) {
        return kv_fail(error, KV_INVALID,
            "--rate (an open loop) and --concurrency (a closed one) exclude each other");
    }
    if ((kind == KV_WORKLOAD_TRACE) != (options->trace != NULL)) {
        return kv_fail(error, KV_INVALID,
            kind == KV_WORKLOAD_TRACE ? "the workload trace needs --trace FILE"
                                      : "--trace is for the workload trace");
    }
    if (kind != KV_WORKLOAD_SWEEP && options->shared != NULL) {
        return kv_fail(error, KV_INVALID, "--shared is for the workload sweep");
    }
    for (const char *at = options->key; at != NULL && *at != '\0'; at++) {
        if (*at <= ' ' || *at > '~') {
            return kv_fail(error, KV_INVALID, "--key must have printable ASCII characters only");
        }
    }
    return KV_OK;
}

static kv_status_t parse_ways(bench_t *bench, kv_error_t *error)
{
    const options_t *options = bench->options;
    kv_status_t status =
        parse_list("--concurrency", options->concurrency != NULL ? options->concurrency : "", 1,
            65536, true, &bench->concurrency, error);
    if (status == KV_OK) {
        status = parse_list("--rate", options->rate != NULL ? options->rate : "", 0.001, 1e6, false,
            &bench->rates, error);
    }
    if (status == KV_OK) {
        status =
            parse_list("--shared", options->shared != NULL ? options->shared : "0,25,50,75,100", 0,
                100, true, &bench->shares, error);
    }
    list_t stretch = {.values = {1}};
    if (status == KV_OK) {
        status = parse_list("--stretch", options->stretch != NULL ? options->stretch : "1", 0.0001,
            10000, false, &stretch, error);
        bench->stretch = stretch.values[0];
    }
    if (status == KV_OK && options->slo != NULL) {
        status = kv_slo_parse(options->slo, &bench->slo, error);
    }
    return status;
}

static kv_status_t parse(bench_t *bench, kv_error_t *error)
{
    kv_status_t status = parse_workload(bench->options, &bench->workload, error);
    if (status == KV_OK) {
        take_sizes(bench->options, &bench->workload);
        status = parse_ways(bench, error);
    }
    if (status == KV_OK) {
        status = check(bench, error);
    }
    if (status == KV_OK && bench->rates.count + bench->concurrency.count == 0 &&
        bench->workload.kind != KV_WORKLOAD_TRACE) { /* a trace has times of its own */
        bench->concurrency = (list_t){.values = {8}, .count = 1};
    }
    return status;
}

/* Extra fields of bodies, as the compact JSON of an object. */
static kv_status_t parse_fields(const char *text, char **fields_out, kv_error_t *error)
{
    json_error_t reason;
    json_t *fields = json_loads(text != NULL ? text : "{}", 0, &reason);
    if (!json_is_object(fields)) {
        json_decref(fields);
        return kv_fail(error, KV_INVALID, "--fields '%.80s': it must be a JSON object", text);
    }
    *fields_out = json_dumps(fields, JSON_COMPACT);
    json_decref(fields);
    return KV_OK;
}

static kv_status_t parse_prompts(const char *text, kv_prompts_t *prompts_out, kv_error_t *error)
{
    *prompts_out = KV_PROMPTS_COUNT;
    for (int i = 0; text != NULL && i < KV_PROMPTS_COUNT; i++) {
        if (strcmp(text, KV_PROMPTS_NAMES[i]) == 0) {
            *prompts_out = (kv_prompts_t)i;
        }
    }
    return text == NULL || *prompts_out != KV_PROMPTS_COUNT
               ? KV_OK
               : kv_fail(error, KV_INVALID, "--prompts must be ids, text or chat");
}

/* ---- the run's facts ---- */

static json_t *pack_machine(void)
{
    char *text = NULL;
    size_t bytes;
    FILE *file = open_memstream(&text, &bytes);
    kv_machine_print(file, NULL);
    fclose(file);
    json_t *lines = json_array();
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        json_array_append_new(lines, json_string(line[0] == '#' ? line + 2 : line));
    }
    free(text);
    return lines;
}

static json_t *pack_workload(const kv_workload_t *workload, const options_t *options)
{
    json_t *packed = json_pack("{s:s, s:I, s:I}", "kind", KV_WORKLOAD_NAMES[workload->kind],
        "context_tokens", (json_int_t)workload->context_tokens, "seed", (json_int_t)workload->seed);
    const struct {
        const char *name;
        uint32_t value;
        unsigned kinds; /* that have it */
    } rows[] = {
        {"prompt_tokens", workload->prompt_tokens, 0x0f},
        {"answer_tokens", workload->answer_tokens, 0x0f},
        {"turn_tokens", workload->turn_tokens, 0x0d},
        {"sessions", workload->sessions, 0x0d},
        {"requests", workload->requests, 0x12},
        {"kinds", workload->kinds, 0x01},
        {"turns", workload->turns, 0x01},
        {"pause_ms", (uint32_t)workload->pause_ms, 0x01},
        {"branches", workload->branches, 0x04},
        {"depth", workload->depth, 0x04},
        {"beam", workload->beam, 0x04},
        {"questions", workload->questions, 0x08},
        {"scale_percent", workload->scale_percent, 0x10},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if ((rows[i].kinds >> workload->kind & 1) != 0) {
            json_object_set_new(packed, rows[i].name, json_integer(rows[i].value));
        }
    }
    if (options->trace != NULL) {
        json_object_set_new(packed, "trace", json_string(options->trace));
    }
    return packed;
}

static json_t *pack_run(const bench_t *bench)
{
    const options_t *options = bench->options;
    json_t *slo = json_object();
    const struct {
        const char *name;
        double value;
    } targets[] = {{"ttft_ms", bench->slo.ttft_ms}, {"tpot_ms", bench->slo.tpot_ms},
        {"e2e_ms", bench->slo.e2e_ms}};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        if (targets[i].value > 0) {
            json_object_set_new(slo, targets[i].name, json_real(targets[i].value));
        }
    }
    json_t *run = json_pack("{s:s, s:i, s:s, s:I, s:o, s:s, s:s, s:s, s:I, s:o, s:o, s:o}", "bench",
        "serve", "version", FORM_VERSION, "name",
        options->name != NULL ? options->name : KV_WORKLOAD_NAMES[bench->workload.kind],
        "unix_time", (json_int_t)time(NULL), "machine", pack_machine(), "endpoint",
        bench->asked.params.url, "model", bench->asked.model, "prompts",
        KV_PROMPTS_NAMES[bench->asked.prompts], "block_tokens", (json_int_t)options->block_tokens,
        "workload", pack_workload(&bench->workload, options), "slo", slo, "phases", json_array());
    return run;
}

/* ---- phases ---- */

typedef struct {
    double shared_percent;    /* negative: no sweep */
    double concurrency, rate; /* 0: not this */
} phase_t;

static void name_phase(bench_t *bench, const phase_t *phase)
{
    char shared[32] = "", load[48] = "at its own times";
    if (phase->shared_percent >= 0) {
        snprintf(shared, sizeof shared, "%g %% shared, ", phase->shared_percent);
    }
    if (phase->concurrency > 0) {
        snprintf(load, sizeof load, "%g at once", phase->concurrency);
    } else if (phase->rate > 0) {
        snprintf(load, sizeof load, "%g/s", phase->rate);
    }
    snprintf(bench->label, sizeof bench->label, "%s%s", shared, load);
}

static void show_progress(void *context, const kv_drive_progress_t *progress)
{
    bench_t *bench = context;
    kv_serve_say_progress(stderr, bench->label, progress);
}

static json_t *number_or_null(double value, bool there)
{
    return there ? json_real(value) : json_null();
}

/* All that was answered, what warmed included. */
static uint64_t prompt_tokens_of(const kv_script_t *script, const kv_drive_result_t *result)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < script->request_count; i++) {
        const kv_sent_record_t *record = &result->records[i];
        tokens += record->state == KV_SENT_DONE ? record->prompt_tokens : 0;
    }
    return tokens;
}

/* before: NULL where the endpoint is no Kvist gateway, or its figures cannot be read. */
static json_t *read_parts(bench_t *bench, const json_t *before, uint64_t prompt_tokens)
{
    json_t *parts;
    if (before == NULL ||
        kv_parts_since(&bench->asked, before, prompt_tokens, &parts, NULL) != KV_OK) {
        return json_null();
    }
    bench->adds_up &= json_is_true(json_object_get(parts, "adds_up"));
    return parts;
}

static void add_phase(bench_t *bench, const phase_t *phase, const kv_script_t *script,
    kv_drive_result_t *result, const json_t *before)
{
    json_t *packed = json_pack("{s:s, s:o, s:o, s:o}", "label", bench->label, "shared_percent",
        number_or_null(phase->shared_percent, phase->shared_percent >= 0), "concurrency",
        number_or_null(phase->concurrency, phase->concurrency > 0), "rate",
        number_or_null(phase->rate, phase->rate > 0));
    json_t *outcome = kv_outcome_pack(script, result, &bench->slo);
    json_object_update(packed, outcome);
    json_decref(outcome);
    json_object_set_new(
        packed, "answers", json_string(result->has_answer_ids ? "as they came" : "stood in for"));
    json_object_set_new(
        packed, "gateway", read_parts(bench, before, prompt_tokens_of(script, result)));
    json_array_append_new(json_object_get(bench->run, "phases"), packed);
}

/* Each phase asks what none before it has asked. */
static kv_status_t run_phase(
    bench_t *bench, const phase_t *phase, uint64_t number, kv_error_t *error)
{
    kv_workload_t workload = bench->workload;
    kv_script_t script;
    kv_drive_result_t result;
    workload.seed = kv_seed_mix(bench->options->seed, number, 0);
    workload.shared_percent = phase->shared_percent >= 0 ? (uint32_t)phase->shared_percent : 0;
    kv_status_t status = kv_workload_make(&workload, &script, error);
    if (status != KV_OK) {
        return status;
    }
    name_phase(bench, phase);
    kv_known_t *known = kv_known_create((uint32_t)bench->options->block_tokens);
    const kv_drive_params_t params = {.asked = &bench->asked,
        .script = &script,
        .known = known,
        .seed = workload.seed,
        .concurrency = (uint32_t)phase->concurrency,
        .rate = phase->rate,
        .stretch = bench->stretch,
        .duration_ms = bench->options->duration_s * 1000,
        .progress_ms = isatty(STDERR_FILENO) ? TERMINAL_PROGRESS_MS : FILE_PROGRESS_MS,
        .progress = show_progress,
        .context = bench};
    json_t *before = NULL;
    if (kv_parts_read(&bench->asked, &before, NULL) != KV_OK) {
        before = NULL;
    }
    kv_drive(&params, &result);
    kv_serve_end_progress(stderr);
    add_phase(bench, phase, &script, &result, before);
    json_decref(before);
    bench->interrupted = result.interrupted;
    kv_drive_result_release(&result);
    kv_known_destroy(known);
    kv_script_release(&script);
    return KV_OK;
}

/* Every load with every share. */
static kv_status_t run_phases(bench_t *bench, kv_error_t *error)
{
    bool open = bench->rates.count > 0, sweep = bench->workload.kind == KV_WORKLOAD_SWEEP;
    const list_t *loads = open ? &bench->rates : &bench->concurrency;
    size_t load_count = loads->count > 0 ? loads->count : 1;
    size_t share_count = sweep ? bench->shares.count : 1;
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < load_count * share_count && status == KV_OK && !bench->interrupted;
         i++) {
        double load = loads->count > 0 ? loads->values[i / share_count] : 0;
        const phase_t phase = {.shared_percent = sweep ? bench->shares.values[i % share_count] : -1,
            .concurrency = open ? 0 : load,
            .rate = open ? load : 0};
        status = run_phase(bench, &phase, i, error);
    }
    return status;
}

/* ---- results ---- */

static kv_status_t write_json(const json_t *run, const char *path, kv_error_t *error)
{
    bool plain = strcmp(path, "-") == 0;
    FILE *file = plain ? stdout : fopen(path, "we");
    if (file == NULL) {
        return kv_fail_errno(error, errno, "%s cannot be written", path);
    }
    json_dumpf(run, file, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    fputc('\n', file);
    bool failed = ferror(file) != 0 || fflush(file) != 0;
    failed |= !plain && fclose(file) != 0;
    return failed ? kv_fail(error, KV_IO, "%s cannot be written", path) : KV_OK;
}

static kv_status_t deliver(bench_t *bench, kv_error_t *error)
{
    const options_t *options = bench->options;
    kv_status_t status = KV_OK;
    if (options->json == NULL || strcmp(options->json, "-") != 0) {
        kv_serve_print_table(stdout, bench->run);
    }
    if (options->json != NULL) {
        status = write_json(bench->run, options->json, error);
    }
    if (status == KV_OK && (options->html != NULL || options->figures != NULL)) {
        json_t *runs = json_pack("[O]", bench->run);
        status = kv_serve_write_report(runs, options->html, options->figures, error);
        json_decref(runs);
    }
    return status;
}

static kv_status_t run_against(bench_t *bench, const char *url, kv_error_t *error)
{
    const options_t *options = bench->options;
    kv_asked_params_t params = {.url = url,
        .key = options->key,
        .ca_file = options->ca_file,
        .model = options->model,
        .limit_ms = options->limit_s * 1000};
    uv_loop_t loop;
    char *fields = NULL;
    kv_status_t status = parse_fields(options->fields, &fields, error);
    if (status == KV_OK) {
        status = parse_prompts(options->prompts, &params.prompts, error);
    }
    if (status != KV_OK) {
        free(fields);
        return status;
    }
    params.fields = fields;
    uv_loop_init(&loop);
    status = kv_asked_open(&params, &loop, &bench->asked, error);
    if (status == KV_OK) {
        uint32_t told = bench->asked.context_tokens;
        bench->workload.context_tokens = options->context_tokens > 0
                                             ? (uint32_t)options->context_tokens
                                         : told > 0 ? told
                                                    : CONTEXT_TOKENS_DEFAULT;
        bench->workload.seed = options->seed;
        bench->run = pack_run(bench);
        status = run_phases(bench, error);
        if (status == KV_OK) {
            status = deliver(bench, error);
        }
        if (status == KV_OK && !bench->adds_up) {
            status = kv_fail(error, KV_FATAL,
                "the gateway's hit, gap and unseen tokens do not add up to its prompt tokens");
        }
        json_decref(bench->run);
        kv_asked_close(&bench->asked);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    free(fields);
    return status;
}

/* As many connections as the system lets one process have. */
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static kv_status_t find_url(const options_t *options, char **url_out, kv_error_t *error)
{
    if (options->endpoint != NULL) {
        *url_out = kv_duplicate_string(options->endpoint);
        size_t bytes = strlen(*url_out);
        while (bytes > 0 && (*url_out)[bytes - 1] == '/') {
            (*url_out)[--bytes] = '\0';
        }
        if (bytes >= 3 && strcmp(*url_out + bytes - 3, "/v1") == 0) {
            (*url_out)[bytes - 3] = '\0';
        }
        return KV_OK;
    }
    kv_cluster_t cluster;
    kv_status_t status = kv_cluster_load(options->folder, &cluster, error);
    if (status == KV_OK) {
        *url_out = kv_duplicate_string(cluster.endpoint);
        kv_cluster_clear(&cluster);
    }
    return status;
}

static int run(const options_t *options)
{
    bench_t bench = {.options = options, .adds_up = true};
    kv_error_t error;
    if (parse(&bench, &error) != KV_OK) {
        return kv_command_misuse("bench", error.text, "kvist bench serve --help");
    }
    kv_status_t status = KV_OK;
    char *url = NULL;
    if (options->trace != NULL) {
        status = kv_trace_read(options->trace, &bench.trace, &error);
        bench.workload.trace = &bench.trace;
    }
    if (status == KV_OK) {
        status = find_url(options, &url, &error);
    }
    if (status == KV_OK) {
        raise_descriptors();
        status = run_against(&bench, url, &error);
    }
    free(url);
    kv_trace_release(&bench.trace);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("bench", error.text, NULL);
}

/* Of the time, so that another run finds nothing of this one; JSON's integers hold it exactly. */
static uint64_t seed_of_now(void)
{
    return kv_clock_real()->unix_ns(kv_clock_real()) >> 12;
}

int kv_bench_serve(int argc, char **argv)
{
    const uint64_t none = UINT64_MAX;
    options_t options = {.folder = kv_cluster_default_folder(),
        .key = getenv(KEY_VARIABLE),
        .seed = seed_of_now(),
        .block_tokens = 16,
        .limit_s = 600,
        .prompt_tokens = none,
        .answer_tokens = none,
        .turn_tokens = none,
        .sessions = none,
        .requests = none,
        .kinds = none,
        .turns = none,
        .pause_ms = none,
        .branches = none,
        .depth = none,
        .beam = none,
        .questions = none,
        .scale_percent = none};
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster that is asked (default: ~/.local/state/kvist/default)", &options.folder, 0,
            0},
        {"--endpoint", KV_ARGUMENT_TEXT, "URL", "another endpoint, http or https",
            &options.endpoint, 0, 0},
        {"--key", KV_ARGUMENT_TEXT, "KEY", "an API key (default: $KVIST_API_KEY)", &options.key, 0,
            0},
        {"--ca", KV_ARGUMENT_TEXT, "FILE", "certificates that are trusted (default: the system's)",
            &options.ca_file, 0, 0},
        {"--model", KV_ARGUMENT_TEXT, "NAME", "the model (default: the first one served)",
            &options.model, 0, 0},
        {"--prompts", KV_ARGUMENT_TEXT, "HOW",
            "ids, text or chat (default: the first of them that it takes)", &options.prompts, 0, 0},
        {"--fields", KV_ARGUMENT_TEXT, "JSON",
            "an object whose fields every request has, as {\"kvist\":{\"cache_mode\":\"bypass\"}}",
            &options.fields, 0, 0},
        {"--concurrency", KV_ARGUMENT_TEXT, "N,...",
            "closed loop: so many clients, one session each (default: 8)", &options.concurrency, 0,
            0},
        {"--rate", KV_ARGUMENT_TEXT, "X,...",
            "open loop: so many sessions a second begin, at Poisson times", &options.rate, 0, 0},
        {"--slo", KV_ARGUMENT_TEXT, "TARGETS", "what counts as good, as ttft=2s,tpot=80ms,e2e=30s",
            &options.slo, 0, 0},
        {"--duration", KV_ARGUMENT_NUMBER, "S",
            "of a phase: later nothing begins (default: no limit)", &options.duration_s, 1, 864000},
        {"--limit", KV_ARGUMENT_NUMBER, "S", "of a request (default: 600)", &options.limit_s, 1,
            86400},
        {"--seed", KV_ARGUMENT_NUMBER, "N",
            "of all that is drawn (default: of the time, so that nothing is cached)", &options.seed,
            0, INT64_MAX},
        {"--context-tokens", KV_ARGUMENT_NUMBER, "N",
            "of a prompt and its answer (default: the endpoint's, or 8192)",
            &options.context_tokens, 32, 1 << 24},
        {"--block-tokens", KV_ARGUMENT_NUMBER, "N",
            "the ideal is counted in whole blocks of so many (default: 16)", &options.block_tokens,
            1, 4096},
        {"--prompt-tokens", KV_ARGUMENT_NUMBER, "N",
            "of a prompt, or of what sessions begin with (agents: 1500 around, sweep: 7680, tree: "
            "1500, batch: 3000)",
            &options.prompt_tokens, 16, 1 << 24},
        {"--answer-tokens", KV_ARGUMENT_NUMBER, "N",
            "(agents: 100 around, sweep: 16, tree: 60, batch: 40; trace: at most)",
            &options.answer_tokens, 1, 1 << 20},
        {"--turn-tokens", KV_ARGUMENT_NUMBER, "N",
            "said in a turn, put to a try, of a question (agents: 200 around, tree, batch: 40)",
            &options.turn_tokens, 1, 1 << 20},
        {"--sessions", KV_ARGUMENT_NUMBER, "N",
            "sessions, trees or documents (agents: 32, tree: 8, batch: 16)", &options.sessions, 1,
            1 << 17},
        {"--requests", KV_ARGUMENT_NUMBER, "N", "sweep: of each phase (64); trace: at most (all)",
            &options.requests, 1, 1 << 19},
        {"--kinds", KV_ARGUMENT_NUMBER, "N", "agents: different system prompts (4)", &options.kinds,
            1, 1 << 16},
        {"--turns", KV_ARGUMENT_NUMBER, "N",
            "agents: of a session, half to one and a half of it (8)", &options.turns, 1, 4096},
        {"--pause-ms", KV_ARGUMENT_NUMBER, "N", "agents: between turns, exponential (4000)",
            &options.pause_ms, 0, 86400000},
        {"--shared", KV_ARGUMENT_TEXT, "P,...",
            "sweep: percents of the prompt that all share (0,25,50,75,100)", &options.shared, 0, 0},
        {"--branches", KV_ARGUMENT_NUMBER, "N", "tree: tries of each answer (4)", &options.branches,
            1, 1024},
        {"--depth", KV_ARGUMENT_NUMBER, "N", "tree: tries that follow each other (3)",
            &options.depth, 1, 1024},
        {"--beam", KV_ARGUMENT_NUMBER, "N", "tree: tries of a level that are extended (2)",
            &options.beam, 1, 1024},
        {"--questions", KV_ARGUMENT_NUMBER, "N", "batch: to each document (8)", &options.questions,
            1, 1 << 16},
        {"--shuffled", KV_ARGUMENT_FLAG, NULL, "batch: in any order, not document by document",
            &options.shuffled, 0, 0},
        {"--trace", KV_ARGUMENT_TEXT, "FILE", "trace: as kvist sim takes it", &options.trace, 0, 0},
        {"--stretch", KV_ARGUMENT_TEXT, "X", "trace: its times become so many times as long (1)",
            &options.stretch, 0, 0},
        {"--scale", KV_ARGUMENT_NUMBER, "PERCENT", "trace: of all lengths (100)",
            &options.scale_percent, 1, 100},
        {"--name", KV_ARGUMENT_TEXT, "NAME", "of the run, for comparisons", &options.name, 0, 0},
        {"--json", KV_ARGUMENT_TEXT, "FILE", "writes the run there (-: standard output, no table)",
            &options.json, 0, 0},
        {"--html", KV_ARGUMENT_TEXT, "FILE", "writes a report with figures there", &options.html, 0,
            0},
        {"--figures", KV_ARGUMENT_TEXT, "FOLDER", "writes each figure there (SVG)",
            &options.figures, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench serve WORKLOAD [OPTIONS]",
        .summary =
            "A load against an OpenAI-compatible endpoint: hit rate beside the ideal, times to "
            "first token and\nbetween tokens, goodput. WORKLOAD: agents, sweep, tree, batch or "
            "trace. Several loads (--rate 1,2,4)\nare measured one after the other; kvist bench "
            "report puts runs beside each other.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &options.workload,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    return run(&options);
}
