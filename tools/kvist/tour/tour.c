/* `kvist tour`: what the cache is worth on this machine, measured with a context like an agent's.
 * */
#include "base/bytes.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/http_client.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/command.h"
#include "tools/kvist/completion.h"
#include "tools/kvist/text.h"
#include "tools/kvist/tour/protect.h"
#include "tools/kvist/tour/report.h"
#include "tools/kvist/tour/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    LIMIT_MS = 600000,
    ANSWER_TOKENS = 64,
    WARM_DIVISOR = 5,    /* warm TTFT is to be at most a fifth of cold */
    RESTART_DIVISOR = 3, /* after the restart at most a third */
};

static const char FIRST_QUESTION[] = "Which host is at fault, and how do we know?";
static const char OTHER_QUESTION[] = "Which bookings have to be repaired before midnight?";
static const char NEXT_QUESTION[] = "What do we do next, and in which order?";

/* One tour. first: the cold run's conversation and answer, compared with after the restart. */
typedef struct {
    kv_cluster_t *cluster;
    kv_tour_report_t report;
    json_t *first;
    char *first_answer;
    uint64_t begun_ns;
} tour_t;

static void progress(const tour_t *tour, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void progress(const tour_t *tour, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "[%5.1f s] ", (double)(kv_clock_now_ns() - tour->begun_ns) / KV_NS_PER_S);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

static kv_status_t ask(
    const tour_t *tour, json_t *messages, bool bypass, kv_answer_t *answer_out, kv_error_t *error)
{
    json_t *request = json_pack("{s:s, s:O, s:i, s:i, s:{s:s}}", "model", tour->report.model,
        "messages", messages, "max_tokens", ANSWER_TOKENS, "temperature", 0, "kvist", "cache_mode",
        bypass ? "bypass" : "readwrite");
    const kv_endpoint_t endpoint = {.url = tour->cluster->endpoint};
    kv_status_t status = kv_complete(
        &endpoint, "/v1/chat/completions", request, LIMIT_MS, NULL, NULL, answer_out, error);
    json_decref(request);
    if (status == KV_OK && !answer_out->has_usage) {
        status = kv_fail(error, KV_FATAL, "the endpoint told no usage");
    }
    return status;
}

/* Sends the conversation through the cache and keeps the figures as the report's next row. */
static kv_status_t take_step(
    tour_t *tour, kv_tour_step_t step, json_t *messages, kv_answer_t *answer, kv_error_t *error)
{
    char cache[256], first[KV_TEXT_BYTES];
    progress(tour, "%s ...", step.title);
    kv_status_t status = ask(tour, messages, false, answer, error);
    if (status != KV_OK) {
        return status;
    }
    step.prompt_tokens = answer->prompt_tokens;
    step.cached_tokens = answer->cached_tokens;
    memcpy(step.seen_tokens, answer->seen_tokens, sizeof step.seen_tokens);
    step.loaded_bytes = answer->loaded_bytes;
    step.streamed_bytes = answer->streamed_bytes;
    step.first_ns = answer->first_ns;
    step.decode_kv_reused = answer->decode_kv_reused;
    tour->report.steps[tour->report.step_count++] = step;
    progress(tour, "    prompt tokens: %s; first token after %s",
        kv_describe_cache(answer, cache, sizeof cache), kv_text_duration(answer->first_ns, first));
    return KV_OK;
}

/* The same conversation with the cache bypassed: is the greedy answer the same? */
static kv_status_t compare_with_recomputed(
    tour_t *tour, json_t *messages, const kv_answer_t *answer, kv_error_t *error)
{
    kv_tour_step_t *step = &tour->report.steps[tour->report.step_count - 1];
    char first[KV_TEXT_BYTES];
    kv_answer_t recomputed;
    progress(tour, "    the same, all computed anew, to compare ...");
    kv_status_t status = ask(tour, messages, true, &recomputed, error);
    if (status == KV_OK && recomputed.cached_tokens != 0) {
        status = kv_fail(error, KV_FATAL, "a request that bypasses the cache was answered from it");
    }
    if (status == KV_OK) {
        step->recomputed_ns = recomputed.first_ns;
        step->same = strcmp(answer->text, recomputed.text) == 0 ? KV_SAME_YES : KV_SAME_NO;
        progress(tour, "    first token after %s, the answer %s",
            kv_text_duration(recomputed.first_ns, first),
            step->same == KV_SAME_YES ? "is identical" : "differs");
    }
    kv_answer_clear(&recomputed);
    return status;
}

static kv_status_t run_cold(tour_t *tour, kv_error_t *error)
{
    kv_answer_t answer = {0};
    tour->first = kv_tour_messages(tour->report.session, FIRST_QUESTION);
    kv_tour_step_t step = {.name = "cold",
        .title = "cold",
        .meaning = "nothing of it was ever seen; the prefill node computes all of it.",
        .same = KV_SAME_REFERENCE};
    kv_status_t status = take_step(tour, step, tour->first, &answer, error);
    if (status == KV_OK) {
        tour->first_answer = kv_duplicate_string(answer.text);
    }
    kv_answer_clear(&answer);
    return status;
}

static kv_status_t run_other_question(tour_t *tour, kv_error_t *error)
{
    kv_answer_t answer = {0};
    json_t *messages = kv_tour_messages(tour->report.session, OTHER_QUESTION);
    kv_tour_step_t step = {.name = "other_question",
        .title = "same context, other question",
        .meaning = "only the question is computed; the context's KV is reused from memory.",
        .target_divisor = WARM_DIVISOR};
    kv_status_t status = take_step(tour, step, messages, &answer, error);
    if (status == KV_OK) {
        status = compare_with_recomputed(tour, messages, &answer, error);
    }
    kv_answer_clear(&answer);
    json_decref(messages);
    return status;
}

static kv_status_t run_second_turn(tour_t *tour, kv_error_t *error)
{
    kv_answer_t answer = {0};
    json_t *messages = json_deep_copy(tour->first);
    json_array_append_new(
        messages, json_pack("{s:s, s:s}", "role", "assistant", "content", tour->first_answer));
    json_array_append_new(
        messages, json_pack("{s:s, s:s}", "role", "user", "content", NEXT_QUESTION));
    kv_tour_step_t step = {.name = "second_turn",
        .title = "second turn",
        .meaning = "the first answer is part of the prefix now; its KV comes from the decode node "
                   "that wrote it."};
    kv_status_t status = take_step(tour, step, messages, &answer, error);
    if (status == KV_OK) {
        status = compare_with_recomputed(tour, messages, &answer, error);
    }
    kv_answer_clear(&answer);
    json_decref(messages);
    return status;
}

static kv_status_t run_after_restart(tour_t *tour, kv_error_t *error)
{
    progress(tour, "stopping and starting all nodes ...");
    kv_status_t status = kv_cluster_restart(tour->cluster, error);
    if (status != KV_OK) {
        return status;
    }
    kv_answer_t answer = {0};
    kv_tour_step_t step = {.name = "after_restart",
        .title = "after a restart of all nodes",
        .meaning = "the context comes back from disk, verified; the answer is the cold run's.",
        .target_divisor = RESTART_DIVISOR};
    status = take_step(tour, step, tour->first, &answer, error);
    if (status == KV_OK) {
        kv_tour_step_t *row = &tour->report.steps[tour->report.step_count - 1];
        row->same = strcmp(answer.text, tour->first_answer) == 0 ? KV_SAME_YES : KV_SAME_NO;
        progress(tour, "    the answer %s the cold run's",
            row->same == KV_SAME_YES ? "is identical to" : "differs from");
    }
    kv_answer_clear(&answer);
    return status;
}

/* The threads that a cluster's nodes compute with, from their command lines. */
static unsigned count_threads(const kv_cluster_t *cluster)
{
    static const char option[] = "--model.threads=";
    unsigned count = 0;
    for (size_t i = 0; i < cluster->member_count; i++) {
        for (char **word = cluster->members[i].argv; *word != NULL; word++) {
            if (strncmp(*word, option, sizeof option - 1) == 0) {
                count += (unsigned)strtoul(*word + sizeof option - 1, NULL, 10);
            }
        }
    }
    return count;
}

static kv_status_t measure_layout(
    tour_t *tour, const char *endpoint, kv_tour_layout_t layout, kv_error_t *error)
{
    char session[KV_TEXT_BYTES], max[KV_TEXT_BYTES];
    snprintf(session, sizeof session, "%s-%s", tour->report.session, layout.name);
    progress(tour, "an answer is being read when a long prompt comes: %s ...", layout.title);
    kv_status_t status = kv_tour_protect(endpoint, tour->report.model, session, &layout, error);
    if (status == KV_OK) {
        tour->report.layouts[tour->report.layout_count++] = layout;
        progress(
            tour, "    the longest wait for a token was %s", kv_text_duration(layout.max_ns, max));
    }
    return status;
}

/* The tour's own cluster for the comparison: one node that does both, without a disk tier. */
static kv_status_t run_colocated(tour_t *tour, kv_tour_layout_t layout, kv_error_t *error)
{
    char folder[KV_PATH_BYTES];
    const char *extras[] = {"--store.directory=none", "--store.host_bytes=0"};
    snprintf(folder, sizeof folder, "%s/tour", tour->cluster->folder);
    kv_cluster_params_t params = {.folder = folder,
        .model = tour->cluster->model,
        .decode_threads = layout.threads,
        .colocated = true,
        .extras = extras,
        .extra_count = sizeof extras / sizeof *extras};
    kv_cluster_t cluster;
    progress(tour, "starting a node that prefills and decodes, to compare ...");
    kv_status_t status = kv_cluster_start(&params, &cluster, error);
    if (status != KV_OK) {
        return status;
    }
    status = measure_layout(tour, cluster.endpoint, layout, error);
    kv_error_t stop_error;
    if (kv_cluster_stop(&cluster, true, &stop_error) != KV_OK) {
        fprintf(stderr, "kvist tour: %s\n", stop_error.text);
    }
    kv_cluster_clear(&cluster);
    return status;
}

static kv_status_t run_protection(tour_t *tour, kv_error_t *error)
{
    static char apart[64], together[64];
    unsigned threads = count_threads(tour->cluster);
    snprintf(apart, sizeof apart, "apart: prefill and decode nodes, %u threads", threads);
    snprintf(together, sizeof together, "together: one node, %u threads", threads);
    kv_status_t status = measure_layout(tour, tour->cluster->endpoint,
        (kv_tour_layout_t){.name = "disaggregated", .title = apart, .threads = threads}, error);
    if (status == KV_OK) {
        status = run_colocated(tour,
            (kv_tour_layout_t){.name = "colocated", .title = together, .threads = threads}, error);
    }
    return status;
}

/* A session id that was never used: random, so that the cold run is cold. */
static kv_status_t make_session(char *session_out, kv_error_t *error)
{
    uint8_t bytes[8];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) {
        return kv_fail(error, KV_IO, "no random bytes for a session id");
    }
    kv_hex_encode(bytes, sizeof bytes, session_out);
    return KV_OK;
}

static kv_status_t run(tour_t *tour, bool skip_protection, kv_error_t *error)
{
    kv_status_t (*const parts[])(tour_t *, kv_error_t *) = {run_cold, run_other_question,
        run_second_turn, run_after_restart, skip_protection ? NULL : run_protection};
    kv_status_t status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < sizeof parts / sizeof *parts; i++) {
        status = parts[i] != NULL ? parts[i](tour, error) : KV_OK;
    }
    return status;
}

/* Plays the tour in a cluster that is up; says what it found. */
static int play(kv_cluster_t *cluster, const char *json_path, bool skip_protection)
{
    char session[KV_TEXT_BYTES], *model = NULL;
    kv_error_t error;
    tour_t tour = {.cluster = cluster, .begun_ns = kv_clock_now_ns()};
    kv_status_t status = make_session(session, &error);
    const kv_endpoint_t endpoint = {.url = cluster->endpoint};
    status = status == KV_OK ? kv_first_model(&endpoint, &model, &error) : status;
    if (status == KV_OK) {
        tour.report.session = session;
        tour.report.model = model;
        status = run(&tour, skip_protection, &error);
    }
    if (tour.report.step_count > 0) {
        kv_tour_print(&tour.report);
    }
    int code = KV_EXIT_DONE;
    if (status != KV_OK) {
        code = kv_command_fail("tour", error.text, "kvist status; the nodes' logs say more");
    } else if (!kv_tour_holds(&tour.report)) {
        code = kv_command_fail("tour",
            "an answer from the cache differs from the recomputed one: that must never be",
            "please report it with the table above");
    }
    if (json_path != NULL && tour.report.step_count > 0 &&
        kv_tour_write_json(&tour.report, json_path, &error) != KV_OK) {
        code = kv_command_fail("tour", error.text, NULL);
    }
    json_decref(tour.first);
    free(tour.first_answer);
    free(model);
    return code;
}

int kv_command_tour(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *json_path = NULL;
    bool skip_protection = false;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--json", KV_ARGUMENT_TEXT, "FILE", "writes the rows there as well", &json_path, 0, 0},
        {"--no-protection", KV_ARGUMENT_FLAG, NULL,
            "without the last part (a running decode while a long prompt comes)", &skip_protection,
            0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist tour [OPTIONS]",
        .summary = "Sends one long context again and again and measures: cold, another question, a "
                   "second turn,\nafter a restart of all nodes; and a running decode while a long "
                   "prompt comes in. Needs a\ncluster that is up; restarts its nodes once.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_http_setup();
    kv_cluster_t cluster;
    kv_error_t error;
    if (kv_cluster_load(folder, &cluster, &error) != KV_OK) {
        return kv_command_fail("tour", error.text, "kvist up");
    }
    if (kv_cluster_alive_count(&cluster) < cluster.member_count) {
        code = kv_command_fail("tour", "not all nodes are running", "kvist up");
    } else {
        code = play(&cluster, json_path, skip_protection);
    }
    kv_cluster_clear(&cluster);
    return code;
}
