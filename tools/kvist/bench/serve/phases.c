#include "tools/kvist/bench/serve/phases.h"

#include "tools/kvist/bench/machine.h"
#include "tools/kvist/bench/serve/drive.h"
#include "tools/kvist/bench/serve/parts.h"
#include "tools/kvist/bench/serve/report.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

enum {
    CONTEXT_TOKENS_DEFAULT = 8192,
    TERMINAL_PROGRESS_MS = 1000,
    FILE_PROGRESS_MS = 5000,
    FORM_VERSION = 1,
};

typedef struct {
    const kv_serve_settings_t *settings;
    kv_workload_t workload; /* with the context that there is */
    kv_asked_t asked;
    json_t *packed;
    char label[96]; /* of the phase */
    bool interrupted;
} run_t;

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

static json_t *pack_workload(const kv_workload_t *workload, const char *trace_path)
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
    if (trace_path != NULL) {
        json_object_set_new(packed, "trace", json_string(trace_path));
    }
    return packed;
}

static json_t *pack_run(const run_t *run)
{
    const kv_serve_settings_t *settings = run->settings;
    json_t *slo = json_object();
    const struct {
        const char *name;
        double value;
    } targets[] = {{"ttft_ms", settings->slo.ttft_ms}, {"tpot_ms", settings->slo.tpot_ms},
        {"e2e_ms", settings->slo.e2e_ms}};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        if (targets[i].value > 0) {
            json_object_set_new(slo, targets[i].name, json_real(targets[i].value));
        }
    }
    return json_pack("{s:s, s:i, s:s, s:I, s:o, s:s, s:s, s:s, s:I, s:o, s:o, s:o}", "bench",
        "serve", "version", FORM_VERSION, "name", settings->name, "unix_time",
        (json_int_t)time(NULL), "machine", pack_machine(), "endpoint", run->asked.params.url,
        "model", run->asked.model, "prompts", KV_PROMPTS_NAMES[run->asked.prompts], "block_tokens",
        (json_int_t)settings->block_tokens, "workload",
        pack_workload(&run->workload, settings->trace_path), "slo", slo, "phases", json_array());
}

/* ---- phases ---- */

typedef struct {
    double shared_percent;    /* negative: no sweep */
    double concurrency, rate; /* 0: not this */
} phase_t;

static void name_phase(run_t *run, const phase_t *phase)
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
    snprintf(run->label, sizeof run->label, "%s%s", shared, load);
}

static void show_progress(void *context, const kv_drive_progress_t *progress)
{
    run_t *run = context;
    kv_serve_say_progress(stderr, run->label, progress);
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
static json_t *read_parts(run_t *run, const json_t *before, uint64_t prompt_tokens)
{
    json_t *parts;
    if (before == NULL ||
        kv_parts_since(&run->asked, before, prompt_tokens, &parts, NULL) != KV_OK) {
        return json_null();
    }
    return parts;
}

static void add_phase(run_t *run, const phase_t *phase, const kv_script_t *script,
    kv_drive_result_t *result, const json_t *before)
{
    json_t *packed = json_pack("{s:s, s:o, s:o, s:o}", "label", run->label, "shared_percent",
        number_or_null(phase->shared_percent, phase->shared_percent >= 0), "concurrency",
        number_or_null(phase->concurrency, phase->concurrency > 0), "rate",
        number_or_null(phase->rate, phase->rate > 0));
    json_t *outcome = kv_outcome_pack(script, result, &run->settings->slo);
    json_object_update(packed, outcome);
    json_decref(outcome);
    json_object_set_new(
        packed, "answers", json_string(result->has_answer_ids ? "as they came" : "stood in for"));
    json_object_set_new(
        packed, "gateway", read_parts(run, before, prompt_tokens_of(script, result)));
    json_array_append_new(json_object_get(run->packed, "phases"), packed);
}

/* Each phase asks what none before it has asked. */
static kv_status_t run_phase(run_t *run, const phase_t *phase, uint64_t number, kv_error_t *error)
{
    kv_workload_t workload = run->workload;
    kv_script_t script;
    kv_drive_result_t result;
    workload.seed = kv_seed_mix(run->workload.seed, number, 0);
    workload.shared_percent = phase->shared_percent >= 0 ? (uint32_t)phase->shared_percent : 0;
    kv_status_t status = kv_workload_make(&workload, &script, error);
    if (status != KV_OK) {
        return status;
    }
    name_phase(run, phase);
    kv_known_t *known = kv_known_create(run->settings->block_tokens);
    const kv_drive_params_t params = {.asked = &run->asked,
        .script = &script,
        .known = known,
        .seed = workload.seed,
        .concurrency = (uint32_t)phase->concurrency,
        .rate = phase->rate,
        .stretch = run->settings->stretch,
        .duration_ms = run->settings->duration_ms,
        .progress_ms = isatty(STDERR_FILENO) ? TERMINAL_PROGRESS_MS : FILE_PROGRESS_MS,
        .progress = show_progress,
        .context = run};
    json_t *before = NULL;
    if (kv_parts_read(&run->asked, &before, NULL) != KV_OK) {
        before = NULL;
    }
    kv_drive(&params, &result);
    kv_serve_end_progress(stderr);
    add_phase(run, phase, &script, &result, before);
    json_decref(before);
    run->interrupted = result.interrupted;
    kv_drive_result_release(&result);
    kv_known_destroy(known);
    kv_script_release(&script);
    return KV_OK;
}

/* Every load with every share. */
static kv_status_t run_phases(run_t *run, kv_error_t *error)
{
    bool open = run->settings->rates.count > 0, sweep = run->workload.kind == KV_WORKLOAD_SWEEP;
    const kv_serve_numbers_t *loads = open ? &run->settings->rates : &run->settings->concurrency;
    size_t load_count = loads->count > 0 ? loads->count : 1;
    size_t share_count = sweep ? run->settings->shares.count : 1;
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < load_count * share_count && status == KV_OK && !run->interrupted; i++) {
        double load = loads->count > 0 ? loads->values[i / share_count] : 0;
        const phase_t phase = {
            .shared_percent = sweep ? run->settings->shares.values[i % share_count] : -1,
            .concurrency = open ? 0 : load,
            .rate = open ? load : 0};
        status = run_phase(run, &phase, i, error);
    }
    return status;
}

kv_status_t kv_serve_run(const kv_serve_settings_t *settings, json_t **run_out, kv_error_t *error)
{
    run_t run = {.settings = settings, .workload = settings->workload};
    uv_loop_t loop;
    uv_loop_init(&loop);
    kv_status_t status = kv_asked_open(&settings->asked, &loop, &run.asked, error);
    if (status == KV_OK) {
        uint32_t told = run.asked.context_tokens;
        if (run.workload.context_tokens == 0) {
            run.workload.context_tokens = told > 0 ? told : CONTEXT_TOKENS_DEFAULT;
        }
        run.packed = pack_run(&run);
        status = run_phases(&run, error);
        kv_asked_close(&run.asked);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    if (status == KV_OK) {
        *run_out = run.packed;
    } else {
        json_decref(run.packed);
    }
    return status;
}
