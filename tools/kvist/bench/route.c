/* `kvist bench route`: how much of a load hits when several nodes share it, by how it is routed,
 * beside one node that has all their memory. A replay: it depends on no machine. */
#include "base/memory.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/command.h"
#include "tools/kvist/sim/agents.h"
#include "tools/kvist/sim/fleet.h"
#include "tools/kvist/sim/outcome.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCKS_MAX = 1 << 26, ROWS = 4, TARGET_POINTS = -2 };

typedef struct {
    const char *trace;
    uint64_t nodes, device, host, disk, agents, requests, seed, prompt_rate, answer_rate;
    bool json;
} options_t;

/* The first one is what the others are held against. */
static const struct {
    const char *name;
    bool one; /* node, that has all */
    kv_routing_t routing;
} WAYS[ROWS] = {
    {"one node", true, KV_ROUTING_PREFIX},
    {"prefix", false, KV_ROUTING_PREFIX},
    {"round-robin", false, KV_ROUTING_ROUND_ROBIN},
    {"random", false, KV_ROUTING_RANDOM},
};

typedef struct {
    double hit_rate, points; /* of tokens; points: against one node */
    double busiest;          /* node's requests, against the average */
    kv_fleet_totals_t totals;
} row_t;

static double token_rate(const kv_trace_t *trace, const uint32_t *hits)
{
    const kv_outcome_t outcome = kv_outcome_of(trace, (kv_window_t){0, trace->request_count}, hits);
    return outcome.asked_tokens > 0 ? (double)outcome.hit_tokens / (double)outcome.asked_tokens : 0;
}

static kv_status_t run_way(const options_t *options, const kv_trace_t *trace, size_t way,
    uint32_t *hits, row_t *row, kv_error_t *error)
{
    uint32_t nodes = WAYS[way].one ? 1 : (uint32_t)options->nodes;
    const kv_fleet_params_t params = {.node_count = nodes,
        .routing = WAYS[way].routing,
        .node = {.device_blocks = (uint32_t)options->device / nodes,
            .host_blocks = (uint32_t)options->host / nodes,
            .disk_blocks = (uint32_t)options->disk / nodes,
            .segment_blocks = 128,
            .persist = KVIST_PERSIST_SPILL,
            .policy = KVIST_POLICY_LRU},
        .prompt_tokens_per_s = (double)options->prompt_rate,
        .answer_tokens_per_s = (double)options->answer_rate};
    kv_status_t status = kv_fleet_run(trace, &params, hits, &row->totals, error);
    if (status != KV_OK) {
        return status;
    }
    uint32_t most = 0;
    for (uint32_t i = 0; i < nodes; i++) {
        uint32_t count = row->totals.node_requests[i];
        most = count > most ? count : most;
    }
    row->hit_rate = token_rate(trace, hits);
    row->busiest = (double)most * nodes / trace->request_count;
    return KV_OK;
}

static void print_row(const options_t *options, size_t way, const row_t *row)
{
    uint32_t nodes = WAYS[way].one ? 1 : (uint32_t)options->nodes;
    printf("%-12s %5u %9.2f %+9.2f %9.2f ", WAYS[way].name, nodes, 100 * row->hit_rate, row->points,
        row->busiest);
    if (WAYS[way].one) { /* with one node's compute for all: no time to compare */
        printf("%9s %9s", "-", "-");
    } else {
        printf("%9.0f %9.0f", row->totals.first_ms_median, row->totals.first_ms_p90);
    }
    if (way == 1) {
        printf(
            "   %s (at least %d)", row->points >= TARGET_POINTS ? "met" : "missed", TARGET_POINTS);
    }
    for (int reason = 0; reason <= KV_CHOICE_RANDOM && way == 1; reason++) {
        if (row->totals.reasons[reason] > 0) {
            printf(
                " %s %u", kv_choice_name((kv_choice_reason_t)reason), row->totals.reasons[reason]);
        }
    }
    putchar('\n');
    fflush(stdout);
}

static json_t *pack_row(const options_t *options, size_t way, const row_t *row)
{
    json_t *reasons = json_object();
    for (int reason = 0; reason <= KV_CHOICE_RANDOM; reason++) {
        if (row->totals.reasons[reason] > 0) {
            json_object_set_new(reasons, kv_choice_name((kv_choice_reason_t)reason),
                json_integer(row->totals.reasons[reason]));
        }
    }
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:o}", "routing", WAYS[way].name, "nodes",
        (json_int_t)(WAYS[way].one ? 1 : options->nodes), "token_hit_rate", row->hit_rate, "points",
        row->points, "busiest", row->busiest, "first_ms_median", row->totals.first_ms_median,
        "first_ms_p90", row->totals.first_ms_p90, "reasons", reasons);
}

static kv_status_t run_ways(const options_t *options, const kv_trace_t *trace, kv_error_t *error)
{
    uint32_t *hits = kv_allocate_array(trace->request_count, sizeof *hits);
    json_t *rows = json_array();
    kv_status_t status = KV_OK;
    double base = 0;
    if (!options->json) {
        printf("%-12s %5s %9s %9s %9s %9s %9s\n", "routing", "nodes", "hits (%)", "points",
            "busiest", "TTFT p50", "p90 (ms)");
    }
    for (size_t way = 0; status == KV_OK && way < ROWS; way++) {
        row_t row = {0};
        status = run_way(options, trace, way, hits, &row, error);
        base = way == 0 ? row.hit_rate : base;
        row.points = 100 * (row.hit_rate - base);
        if (status == KV_OK && options->json) {
            json_array_append_new(rows, pack_row(options, way, &row));
        } else if (status == KV_OK) {
            print_row(options, way, &row);
        }
    }
    if (status == KV_OK && options->json) {
        json_dumpf(rows, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(rows);
    free(hits);
    return status;
}

static int run(const options_t *options)
{
    kv_trace_t trace;
    kv_error_t error;
    kv_status_t status = KV_OK;
    if (options->trace != NULL) {
        status = kv_trace_read(options->trace, &trace, &error);
    } else {
        const kv_agents_params_t params = {.seed = options->seed,
            .agent_count = (uint32_t)options->agents,
            .request_count = (uint32_t)options->requests};
        kv_agents_make(&params, &trace);
    }
    if (status != KV_OK) {
        return kv_command_fail("bench", error.text, NULL);
    }
    fprintf(options->json ? stderr : stdout,
        "# %s: %u requests, %zu blocks of %u tokens asked for, %u different, %u the longest\n"
        "# in all: device %" PRIu64 ", host %" PRIu64 ", disk %" PRIu64 " blocks\n",
        options->trace != NULL ? options->trace : "agents", trace.request_count, trace.asked_count,
        trace.block_tokens, trace.block_count, trace.longest_blocks, options->device, options->host,
        options->disk);
    status = run_ways(options, &trace, &error);
    kv_trace_release(&trace);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("bench", error.text, NULL);
}

int kv_bench_route(int argc, char **argv)
{
    options_t options = {.nodes = 4,
        .device = 40000,
        .agents = 64,
        .requests = 6000,
        .seed = 1,
        .prompt_rate = 10000,
        .answer_rate = 50};
    const kv_argument_t rows[] = {
        {"--trace", KV_ARGUMENT_TEXT, "FILE",
            "this trace of requests (as kvist sim takes it) instead of the agents", &options.trace,
            0, 0},
        {"--nodes", KV_ARGUMENT_NUMBER, "N", "that share the load (default: 4)", &options.nodes, 2,
            KV_FLEET_NODES_MAX},
        {"--device", KV_ARGUMENT_NUMBER, "N",
            "blocks in device memory, of all nodes together (default: 40000)", &options.device, 0,
            BLOCKS_MAX},
        {"--host", KV_ARGUMENT_NUMBER, "N", "in host memory (default: 0)", &options.host, 0,
            BLOCKS_MAX},
        {"--disk", KV_ARGUMENT_NUMBER, "N", "on disk (default: 0)", &options.disk, 0, BLOCKS_MAX},
        {"--agents", KV_ARGUMENT_NUMBER, "N", "agents at work at once (default: 64)",
            &options.agents, 1, 65536},
        {"--requests", KV_ARGUMENT_NUMBER, "N", "that they make (default: 6000)", &options.requests,
            1, 1 << 22},
        {"--seed", KV_ARGUMENT_NUMBER, "N", "of the agents (default: 1)", &options.seed, 0,
            INT64_MAX},
        {"--prompt-rate", KV_ARGUMENT_NUMBER, "N",
            "prompt tokens that a node computes a second (default: 10000)", &options.prompt_rate, 1,
            INT32_MAX},
        {"--answer-rate", KV_ARGUMENT_NUMBER, "N", "tokens a second of each answer (default: 50)",
            &options.answer_rate, 1, INT32_MAX},
        {"--json", KV_ARGUMENT_FLAG, NULL, "JSON", &options.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench route [OPTIONS]",
        .summary = "What share of prompt tokens hits when several nodes share a load of agents, by "
                   "how the gateway routes it,\nbeside one node that has all their memory. The "
                   "stores and the router are those that serve; time is a model:\nthe same options "
                   "print the same digits on any machine.",
        .rows = rows,
        .row_count = sizeof rows / sizeof rows[0],
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    return run(&options);
}
