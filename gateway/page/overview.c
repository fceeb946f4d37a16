/* /v1/overview: what the page shows at first sight. */
#include "gateway/page/page_internal.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { NOW_S = 300, HOUR_S = 3600, STATUS_AGE_NS = KV_NS_PER_S };

/* ---- what became of prompt tokens ---- */

json_t *kv_page_parts(const kv_partition_t *parts)
{
    json_t *gap = json_object();
    for (int i = 0; i < KV_GAP_COUNT; i++) {
        if (parts->gap[i] > 0) {
            json_object_set_new(
                gap, kv_gap_name((kv_gap_t)i), json_integer((json_int_t)parts->gap[i]));
        }
    }
    return json_pack("{s:I,s:{s:I,s:I,s:I,s:I},s:o,s:I,s:I,s:I}", "prompt",
        (json_int_t)parts->prompt, "hit", "device", (json_int_t)parts->hit[KV_TIER_DEVICE], "host",
        (json_int_t)parts->hit[KV_TIER_HOST], "disk", (json_int_t)parts->hit[KV_TIER_DISK],
        "remote", (json_int_t)parts->hit[KV_TIER_REMOTE], "gap", gap, "diverged",
        (json_int_t)parts->diverged, "new", (json_int_t)parts->fresh, "short",
        (json_int_t)parts->tail);
}

static json_t *window(const kv_history_slot_t *slot)
{
    return json_pack(
        "{s:I,s:o}", "answers", (json_int_t)slot->answers, "tokens", kv_page_parts(&slot->parts));
}

typedef struct {
    json_t *points;
    uint64_t begins_unix_s, step_s; /* of the first slot; of each */
} points_t;

/* Which slot, prompt tokens, of those hit, what an ideal cache had hit, answers. */
static void add_point(void *context, const kv_history_slot_t *slot)
{
    points_t *points = context;
    uint64_t hit = kv_partition_hit(&slot->parts);
    if (json_array_size(points->points) == 0) {
        points->begins_unix_s = slot->begins_unix_s;
    }
    uint64_t place = (slot->begins_unix_s - points->begins_unix_s) / points->step_s;
    json_array_append_new(points->points,
        json_pack("[I,I,I,I,I]", (json_int_t)place, (json_int_t)slot->parts.prompt, (json_int_t)hit,
            (json_int_t)(hit + kv_partition_gap(&slot->parts)), (json_int_t)slot->answers));
}

static json_t *history_of(const kv_history_t *history, kv_history_span_t span, uint64_t unix_s)
{
    bool is_hour = span == KV_HISTORY_HOUR;
    points_t points = {
        .points = json_array(), .step_s = is_hour ? KV_HISTORY_FINE_S : KV_HISTORY_COARSE_S};
    kv_history_visit(history, span, unix_s, add_point, &points);
    return json_pack("{s:s,s:I,s:I,s:o}", "span", is_hour ? "hour" : "week", "begins",
        (json_int_t)points.begins_unix_s, "step_s", (json_int_t)points.step_s, "points",
        points.points);
}

/* ---- the latest requests ---- */

/* Of those that the caller may see, complete ones. */
typedef struct {
    const kv_gateway_t *gateway;
    const kv_call_t *call;
    kv_history_t *history; /* NULL: not wanted */
    uint64_t from_unix_ms;
    double *first_ms, *token_ms, *queue_ms;
    size_t count, token_count, good_count;
    uint64_t spans_ns[KV_SPAN_COUNT];
} sample_t;

static bool take_sample(void *context, const kv_recent_t *request)
{
    sample_t *sample = context;
    if (request->code != 200 ||
        !kv_access_may_see(&sample->gateway->access, sample->call, request->tenant)) {
        return true;
    }
    if (sample->history != NULL) {
        kv_history_add(sample->history, request->ended_unix_ms / 1000, &request->parts);
    }
    if (request->ended_unix_ms < sample->from_unix_ms) {
        return true;
    }
    uint64_t first_ns = 0;
    for (int i = 0; i < KV_SPAN_COUNT; i++) {
        sample->spans_ns[i] += request->spans_ns[i];
        first_ns += i < KV_SPAN_DECODE ? request->spans_ns[i] : 0;
    }
    const kv_options_t *options = sample->gateway->options;
    uint64_t ttft_ns = options->gateway.slo_ttft_ns, tpot_ns = options->gateway.slo_tpot_ns;
    sample->good_count +=
        (ttft_ns == 0 || first_ns <= ttft_ns) && (tpot_ns == 0 || request->tpot_ns <= tpot_ns);
    sample->queue_ms[sample->count] = (double)request->spans_ns[KV_SPAN_QUEUE] / KV_NS_PER_MS;
    sample->first_ms[sample->count++] = (double)first_ns / KV_NS_PER_MS;
    if (request->tpot_ns > 0) {
        sample->token_ms[sample->token_count++] = (double)request->tpot_ns / KV_NS_PER_MS;
    }
    return true;
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The value that so many of them do not exceed: nearest rank. */
static json_t *percentiles(double *values, size_t count)
{
    static const struct {
        const char *name;
        unsigned percent;
    } RANKS[] = {{"p50", 50}, {"p90", 90}, {"p99", 99}};
    json_t *object = json_object();
    if (count > 0) {
        qsort(values, count, sizeof *values, ascending);
    }
    for (size_t i = 0; i < sizeof RANKS / sizeof RANKS[0]; i++) {
        size_t rank = (count * RANKS[i].percent + 99) / 100;
        json_object_set_new(
            object, RANKS[i].name, count > 0 ? json_real(values[rank - 1]) : json_null());
    }
    return object;
}

static json_t *latency_of(sample_t *sample)
{
    json_t *spans = json_object();
    for (int i = 0; i < KV_SPAN_COUNT && sample->count > 0; i++) {
        json_object_set_new(spans, kv_span_name((kv_span_t)i),
            json_real((double)sample->spans_ns[i] / KV_NS_PER_MS / (double)sample->count));
    }
    return json_pack("{s:b,s:I,s:I,s:o,s:o,s:o,s:o}", "recent", (int)(sample->from_unix_ms > 0),
        "answers", (json_int_t)sample->count, "good", (json_int_t)sample->good_count, "ttft_ms",
        percentiles(sample->first_ms, sample->count), "tpot_ms",
        percentiles(sample->token_ms, sample->token_count), "queue_ms",
        percentiles(sample->queue_ms, sample->count), "mean_ms", spans);
}

/* ---- nodes ---- */

static json_t *tier_of(const Kvist__Admin__Tier *tier)
{
    return json_pack("{s:o,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "name",
        kv_json_text_or_null(tier->name, strlen(tier->name)), "capacity_bytes",
        (json_int_t)tier->capacity_bytes, "used_bytes", (json_int_t)tier->used_bytes, "objects",
        (json_int_t)tier->object_count, "hit_blocks", (json_int_t)tier->hit_blocks, "read_bytes",
        (json_int_t)tier->read_bytes, "written_bytes", (json_int_t)tier->written_bytes, "evicted",
        (json_int_t)tier->evicted_objects);
}

static json_t *told_node(const kv_told_t *told, const kv_told_node_t *node, uint64_t now_ns)
{
    const Kvist__Admin__Status *status = kv_told_status(node);
    const char *error = node->error[KV_TOLD_STATUS];
    json_t *tiers = json_array();
    json_t *body =
        json_pack("{s:s,s:s,s:o,s:o}", "name", node->name, "role", node->role, "tiers", tiers,
            "error", error[0] != '\0' ? kv_json_text_or_null(error, strlen(error)) : json_null());
    json_object_set_new(body, "told_ms_ago",
        status != NULL
            ? json_integer((json_int_t)((now_ns - node->told_ns[KV_TOLD_STATUS]) / KV_NS_PER_MS))
            : json_null());
    if (status == NULL) {
        return body;
    }
    bool shares = kv_told_store_of(told, node) != NULL;
    for (size_t i = 0; i < status->n_tiers; i++) {
        bool is_own = strcmp(status->tiers[i]->name, "device") == 0 || !shares;
        if (status->tiers[i]->capacity_bytes > 0 && is_own) {
            json_array_append_new(tiers, tier_of(status->tiers[i]));
        }
    }
    json_object_set_new(body, "attached_to",
        kv_json_text_or_null(status->attached_to, strlen(status->attached_to)));
    json_object_set_new(
        body, "uptime_s", json_integer((json_int_t)(status->uptime_ns / KV_NS_PER_S)));
    json_object_set_new(body, "draining", json_boolean(status->draining));
    json_object_set_new(body, "disk_offline", json_boolean(status->disk_offline));
    json_object_set_new(body, "running", json_integer(status->running_requests));
    json_object_set_new(body, "queued", json_integer(status->queued_requests));
    json_object_set_new(body, "sent_bytes", json_integer((json_int_t)status->sent_bytes));
    json_object_set_new(body, "received_bytes", json_integer((json_int_t)status->received_bytes));
    return body;
}

/* Of vLLM servers the gateway knows no more than this. */
static json_t *other_node(const kv_node_t *node)
{
    kv_node_state_t state = kv_node_look(node);
    return json_pack("{s:o,s:s,s:[],s:n,s:I,s:b,s:I,s:I}", "name",
        kv_json_text_or_null(node->name, strlen(node->name)), "role", "vllm", "tiers", "error",
        "told_ms_ago", (json_int_t)0, "draining", (int)state.draining, "running",
        (json_int_t)state.running_requests, "queued", (json_int_t)state.queued_requests);
}

static json_t *nodes_of(kv_gateway_t *gateway)
{
    size_t count;
    uint64_t now_ns = kv_clock_now_ns();
    json_t *nodes = json_array();
    kv_told_look(gateway->page.told, KV_TOLD_STATUS, STATUS_AGE_NS, now_ns);
    const kv_told_t *told = gateway->page.told;
    const kv_told_node_t *each = kv_told_nodes(told, &count);
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(nodes, told_node(told, &each[i], now_ns));
    }
    for (size_t i = 0; i < gateway->node_count; i++) {
        if (gateway->nodes[i]->node->peer == NULL) {
            json_array_append_new(nodes, other_node(gateway->nodes[i]->node));
        }
    }
    return nodes;
}

/* ---- since the start ---- */

static json_t *totals_of(const kv_figures_t *figures)
{
    const kv_totals_t *totals = kv_figures_totals(figures);
    const kv_figures_seconds_t *seconds = kv_figures_seconds(figures);
    return json_pack("{s:I,s:I,s:I,s:f,s:f,s:f}", "answers", (json_int_t)totals->answers,
        "good_answers", (json_int_t)totals->good_answers, "generated",
        (json_int_t)totals->generated_tokens, "compute_s", seconds->compute, "decode_s",
        seconds->decode, "avoided_s", seconds->avoided);
}

/* ---- the whole ---- */

static void add_figures(
    const kv_gateway_t *gateway, const kv_history_t *history, kv_history_span_t span, json_t *body)
{
    const kv_options_t *options = gateway->options;
    uint64_t unix_s = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_S;
    kv_history_slot_t now = kv_history_last(history, unix_s, NOW_S);
    kv_history_slot_t hour = kv_history_last(history, unix_s, HOUR_S);
    json_object_set_new(body, "targets",
        json_pack("{s:f,s:f}", "ttft_ms", (double)options->gateway.slo_ttft_ns / KV_NS_PER_MS,
            "tpot_ms", (double)options->gateway.slo_tpot_ns / KV_NS_PER_MS));
    json_object_set_new(body, "windows",
        json_pack("{s:o,s:o,s:o}", "now", window(&now), "hour", window(&hour), "start",
            window(kv_history_total(history))));
    json_object_set_new(body, "history", history_of(history, span, unix_s));
}

json_t *kv_page_overview(kv_gateway_t *gateway, const kv_call_t *call, kv_history_span_t span)
{
    bool sees_all = kv_page_sees_all(gateway, call);
    uint64_t unix_ms = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_MS;
    double *values = kv_allocate_array(3 * KV_RECENT_MAX, sizeof *values);
    sample_t sample = {.gateway = gateway,
        .call = call,
        .history = sees_all ? NULL : kv_history_create(),
        .from_unix_ms = unix_ms - NOW_S * 1000,
        .first_ms = values,
        .token_ms = values + KV_RECENT_MAX,
        .queue_ms = values + 2 * KV_RECENT_MAX};
    kv_recents_visit(gateway->page.recents, take_sample, &sample);
    kv_history_t *own = sample.history;
    if (sample.count == 0) { /* nothing of late: of what is kept */
        sample.history = NULL;
        sample.from_unix_ms = 0;
        kv_recents_visit(gateway->page.recents, take_sample, &sample);
    }
    json_t *body = json_pack("{s:s,s:s,s:o,s:s,s:o,s:I,s:I,s:I,s:i,s:o}", "object", "overview",
        "scope", sees_all ? "all" : "tenant", "tenant",
        sees_all ? json_null() : json_string(call->tenant), "version", KVIST_VERSION, "model",
        kv_json_text_or_null(gateway->model_name, strlen(gateway->model_name)), "now_ms",
        (json_int_t)unix_ms, "started", (json_int_t)gateway->started_unix_s, "running",
        (json_int_t)gateway->active_count, "window_s", NOW_S, "latency", latency_of(&sample));
    add_figures(gateway, sees_all ? gateway->page.history : own, span, body);
    if (sees_all) {
        json_object_set_new(body, "totals", totals_of(gateway->access.figures));
        json_object_set_new(body, "nodes", nodes_of(gateway));
    }
    kv_history_destroy(own);
    free(values);
    return body;
}
