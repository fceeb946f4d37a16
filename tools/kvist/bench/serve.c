/* `kvist bench serve`: a load against any OpenAI-compatible endpoint; what hit, beside what could
 * have, and what clients waited for. */
#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/serve/phases.h"
#include "tools/kvist/bench/serve/report.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/command.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

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
    const options_t *options;
    kv_trace_t trace;
    char *url, *fields;
    kv_serve_settings_t settings;
} bench_t;

/* ---- options ---- */

/* "1,4,16": numbers in [least, most], as many as a list may have. */
static kv_status_t parse_list(const char *name, const char *text, double least, double most,
    bool whole, kv_serve_numbers_t *list, kv_error_t *error)
{
    list->count = 0;
    for (const char *at = text; at != NULL && *at != '\0';) {
        char *end;
        double value = strtod(at, &end);
        bool good = end != at && (*end == ',' || *end == '\0') && value >= least && value <= most &&
                    (!whole || value == floor(value));
        if (!good || list->count == KV_SERVE_NUMBERS_MAX) {
            return kv_fail(error, KV_INVALID,
                "%s '%.80s': it must be up to %d%s numbers from %g to %g with commas between them",
                name, text, KV_SERVE_NUMBERS_MAX, whole ? " whole" : "", least, most);
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
    kv_workload_kind_t kind = bench->settings.workload.kind;
    const options_t *options = bench->options;
    if (bench->settings.rates.count > 0 && bench->settings.concurrency.count > 0) {
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
            65536, true, &bench->settings.concurrency, error);
    if (status == KV_OK) {
        status = parse_list("--rate", options->rate != NULL ? options->rate : "", 0.001, 1e6, false,
            &bench->settings.rates, error);
    }
    if (status == KV_OK) {
        status =
            parse_list("--shared", options->shared != NULL ? options->shared : "0,25,50,75,100", 0,
                100, true, &bench->settings.shares, error);
    }
    kv_serve_numbers_t stretch = {.values = {1}};
    if (status == KV_OK) {
        status = parse_list("--stretch", options->stretch != NULL ? options->stretch : "1", 0.0001,
            10000, false, &stretch, error);
        bench->settings.stretch = stretch.values[0];
    }
    if (status == KV_OK && stretch.count != 1) {
        status = kv_fail(error, KV_INVALID, "--stretch must be one number");
    }
    if (status == KV_OK && options->slo != NULL) {
        status = kv_slo_parse(options->slo, &bench->settings.slo, error);
    }
    return status;
}

/* Extra fields of bodies, as the compact JSON of an object. */
static kv_status_t parse_fields(const char *text, char **fields_out, kv_error_t *error)
{
    static const char *const OWN[] = {"model", "prompt", "messages", "max_tokens", "temperature",
        "stream", "stream_options", "ignore_eos", "return_token_ids"};
    json_t *fields = json_loads(text != NULL ? text : "{}", 0, NULL);
    if (!json_is_object(fields)) {
        json_decref(fields);
        return kv_fail(error, KV_INVALID, "--fields '%.80s': it must be a JSON object", text);
    }
    for (size_t i = 0; i < sizeof OWN / sizeof *OWN; i++) {
        if (json_object_get(fields, OWN[i]) != NULL) {
            json_decref(fields);
            return kv_fail(
                error, KV_INVALID, "--fields: \"%s\" is what the load itself says", OWN[i]);
        }
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

/* What needs no parsing of its own. */
static void take_plain(bench_t *bench)
{
    const options_t *options = bench->options;
    kv_serve_settings_t *settings = &bench->settings;
    settings->name =
        options->name != NULL ? options->name : KV_WORKLOAD_NAMES[settings->workload.kind];
    settings->trace_path = options->trace;
    settings->duration_ms = options->duration_s * 1000;
    settings->block_tokens = (uint32_t)options->block_tokens;
    settings->workload.seed = options->seed;
    settings->workload.context_tokens = (uint32_t)options->context_tokens;
    settings->asked = (kv_asked_params_t){.key = options->key,
        .ca_file = options->ca_file,
        .model = options->model,
        .limit_ms = options->limit_s * 1000};
}

static kv_status_t parse(bench_t *bench, kv_error_t *error)
{
    kv_status_t status = parse_workload(bench->options, &bench->settings.workload, error);
    if (status == KV_OK) {
        take_sizes(bench->options, &bench->settings.workload);
        take_plain(bench);
        status = parse_ways(bench, error);
    }
    if (status == KV_OK) {
        status = check(bench, error);
    }
    if (status == KV_OK) {
        status = parse_fields(bench->options->fields, &bench->fields, error);
        bench->settings.asked.fields = bench->fields;
    }
    if (status == KV_OK) {
        status = parse_prompts(bench->options->prompts, &bench->settings.asked.prompts, error);
    }
    if (status == KV_OK && bench->settings.rates.count + bench->settings.concurrency.count == 0 &&
        bench->settings.workload.kind != KV_WORKLOAD_TRACE) { /* a trace has times of its own */
        bench->settings.concurrency = (kv_serve_numbers_t){.values = {8}, .count = 1};
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

static kv_status_t deliver(const options_t *options, const json_t *run, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    if (options->json == NULL || strcmp(options->json, "-") != 0) {
        kv_serve_print_table(stdout, run);
    }
    if (options->json != NULL) {
        status = write_json(run, options->json, error);
    }
    if (status == KV_OK && (options->html != NULL || options->figures != NULL)) {
        json_t *runs = json_pack("[O]", run);
        status = kv_serve_write_report(runs, options->html, options->figures, error);
        json_decref(runs);
    }
    return status;
}

/* What makes a run one that says nothing, or that cannot be. */
static kv_status_t judge(const json_t *run, kv_error_t *error)
{
    size_t at;
    json_t *phase;
    json_array_foreach(json_object_get(run, "phases"), at, phase)
    {
        const json_t *requests = json_object_get(phase, "requests");
        if (json_is_false(json_object_get(json_object_get(phase, "gateway"), "adds_up"))) {
            return kv_fail(error, KV_FATAL,
                "the gateway's hit, gap and unseen tokens do not add up to its prompt tokens");
        }
        if (json_integer_value(json_object_get(requests, "done")) == 0 &&
            json_integer_value(json_object_get(requests, "failed")) > 0) {
            return kv_fail(error, KV_FATAL, "%s: not one request was answered",
                json_string_value(json_object_get(phase, "label")));
        }
    }
    return KV_OK;
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

static kv_status_t run(bench_t *bench, kv_error_t *error)
{
    kv_serve_settings_t *settings = &bench->settings;
    const char *trace = bench->options->trace;
    kv_status_t status = trace != NULL ? kv_trace_read(trace, &bench->trace, error) : KV_OK;
    settings->workload.trace = &bench->trace;
    if (status == KV_OK) {
        status = find_url(bench->options, &bench->url, error);
        settings->asked.url = bench->url;
    }
    if (status != KV_OK) {
        return status;
    }
    json_t *packed;
    raise_descriptors();
    status = kv_serve_run(settings, &packed, error);
    if (status == KV_OK) {
        status = deliver(bench->options, packed, error);
        if (status == KV_OK) {
            status = judge(packed, error);
        }
        json_decref(packed);
    }
    return status;
}

static int parse_and_run(const options_t *options)
{
    bench_t bench = {.options = options};
    kv_error_t error;
    int code = KV_EXIT_DONE;
    if (parse(&bench, &error) != KV_OK) {
        code = kv_command_misuse("bench", error.text, "kvist bench serve --help");
    } else if (run(&bench, &error) != KV_OK) {
        code = kv_command_fail("bench", error.text, NULL);
    }
    free(bench.url);
    free(bench.fields);
    kv_trace_release(&bench.trace);
    return code;
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
    return parse_and_run(&options);
}
