/* `kvist bench wire`: the mover between two processes, beside UCX alone. */
#include "tools/kvist/bench/wire.h"

#include "base/clock.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/bench/bench.h"
#include "tools/kvist/bench/machine.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"
#include "transport/mover.h"
#include "transport/ucx/ucx_bare.h"

#include <math.h>
#include <string.h>

static const double TARGET_BANDWIDTH = 0.95; /* of runs of a MiB */

enum {
    MIB = 1 << 20,
    LAYERS = 30, /* the small model's: 12 KiB a layer and block */
    LAYER_BYTES = 12 << 10,
    QUICK_ARENA_MIB = 128,
    QUICK_SAMPLE_MIB = 24,
    QUICK_PAIRS = 3,
    OPERATION_SAMPLES = 3, /* of each operation of bare UCX, to find the one to compare with */
    LATENCY_RUNS = 50,
    PROMPT_BLOCKS = 512, /* of 16 tokens: a prompt of 8k */
    PACE_MS = 20,        /* a layer of it takes longer to compute on any machine without a GPU */
    WORD_BYTES = 64,
    LANE_OURS = 0,
    LANE_THEIRS = 1,
    LANE_WORDS = 2,
};

static const struct {
    kv_shape_t shape;
    bool quick;
    bool beside; /* also beside everything else */
    bool latency;
} SHAPES[] = {
    {{64 << 10, 1, 1}, true, false, true},
    {{64 << 10, 16, 1}, false, false, false},
    {{256 << 10, 1, 1}, false, false, true},
    {{256 << 10, 4, 1}, false, false, false},
    {{1 << 20, 1, 1}, true, true, true},
    {{1 << 20, 4, 1}, false, false, false},
    {{4 << 20, 1, 1}, false, false, true},
    {{LAYER_BYTES, 32, LAYERS}, false, false, false},
    {{LAYER_BYTES, 86, LAYERS}, true, true, false},
    {{LAYER_BYTES, 512, LAYERS}, false, false, false},
};

enum { SHAPE_COUNT = sizeof SHAPES / sizeof SHAPES[0] };

typedef struct {
    kv_report_t report;
    FILE *notes;
    const char *only;
    size_t arena_bytes, sample_bytes;
    uint32_t depth;
    uint64_t pace_ns, busy_poll_ns;
    bool quick;
    kv_ends_t ends;
} bench_t;

typedef struct {
    const char *wire, *only;
    uint64_t pairs, sample_mib, depth, pace_ms, busy_poll_us;
    bool quick, json;
} options_t;

/* "shm, run of 16 x 64 KiB", "tcp, layer of 86 x 12 KiB"; what: "", ", one at a time". */
static const char *name_of(char *name_out, bool shm, const kv_shape_t *shape, const char *what)
{
    size_t size = shape->range_bytes;
    bool large = size >= MIB;
    snprintf(name_out, KV_BENCH_NAME_BYTES_MAX, "%s, %s of %u x %zu %s%s", shm ? "shm" : "tcp",
        shape->ranges > 1 ? "layer" : "run", shape->run_blocks, large ? size / MIB : size >> 10,
        large ? "MiB" : "KiB", what);
    return name_out;
}

static bool wants(const bench_t *bench, const char *name)
{
    return bench->only == NULL || strstr(name, bench->only) != NULL;
}

/* ---- samples ---- */

typedef struct {
    bench_t *bench;
    uint32_t lane;
    kv_batch_t batch;
} side_t;

static kv_batch_t batch_of(const bench_t *bench, const kv_shape_t *shape)
{
    size_t group_bytes = kv_shape_run_bytes(shape) * shape->ranges;
    size_t groups = bench->sample_bytes / group_bytes;
    groups = groups < KV_MOVER_EXPECTATIONS_MAX ? groups : KV_MOVER_EXPECTATIONS_MAX;
    return (kv_batch_t){
        .run_count = (uint32_t)(groups > 0 ? groups : 1) * shape->ranges, .depth = bench->depth};
}

/* From the first run's begin to the last one's landing. */
static kv_status_t sample_rate(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    kv_ends_t *ends = &side->bench->ends;
    kv_status_t status = kv_ends_move(ends, side->lane, &side->batch, error);
    if (status == KV_OK) {
        uint64_t bytes =
            side->batch.run_count * kv_shape_run_bytes(&ends->end.lanes[side->lane].route.shape);
        uint64_t last_ns = 0;
        for (uint32_t run = 0; run < side->batch.run_count; run++) {
            last_ns = ends->landed_ns[run] > last_ns ? ends->landed_ns[run] : last_ns;
        }
        *value_out = (double)bytes / (double)(last_ns - ends->sent_ns[0]);
    }
    return status;
}

/* What both processes' cores did for a gigabyte. */
static kv_status_t sample_cpu(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    kv_ends_t *ends = &side->bench->ends;
    kv_status_t status = kv_ends_move(ends, side->lane, &side->batch, error);
    if (status == KV_OK) {
        *value_out =
            (double)ends->cpu_ns / 1e6 /
            ((double)side->batch.run_count *
                (double)kv_shape_run_bytes(&ends->end.lanes[side->lane].route.shape) / 1e9);
    }
    return status;
}

/* The median of the runs, from begin to landing. */
static kv_status_t sample_latency(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    kv_ends_t *ends = &side->bench->ends;
    kv_status_t status = kv_ends_move(ends, side->lane, &side->batch, error);
    if (status == KV_OK) {
        double values_us[LATENCY_RUNS];
        for (uint32_t run = 0; run < LATENCY_RUNS; run++) {
            values_us[run] = (double)(ends->landed_ns[run] - ends->sent_ns[run]) / 1e3;
        }
        *value_out = kv_quartiles(values_us, LATENCY_RUNS).median;
    }
    return status;
}

static kv_status_t sample_perftest(void *context, double *value_out, kv_error_t *error)
{
    const kv_route_t *route = context;
    return kv_perftest_run(route->shm, kv_shape_run_bytes(&route->shape), value_out, error);
}

/* ---- measures ---- */

static kv_route_t route_of(
    const bench_t *bench, bool shm, const kv_shape_t *shape, kv_carrier_t carrier, int operation)
{
    return (kv_route_t){.carrier = carrier,
        .operation = operation,
        .shm = shm,
        .busy_poll_ns = bench->busy_poll_ns,
        .shape = *shape};
}

/* The operation of bare UCX that is fastest for this wire and shape. */
static kv_status_t find_best(
    bench_t *bench, bool shm, const kv_shape_t *shape, int *operation_out, kv_error_t *error)
{
    double best = 0;
    kv_status_t status = KV_OK;
    for (int operation = KV_BARE_EAGER; operation <= KV_BARE_RENDEZVOUS && status == KV_OK;
         operation++) {
        const kv_route_t route = route_of(bench, shm, shape, KV_CARRIER_BARE, operation);
        side_t side = {bench, LANE_THEIRS, batch_of(bench, shape)};
        double values[OPERATION_SAMPLES];
        status = kv_ends_open(&bench->ends, LANE_THEIRS, &route, error);
        for (int i = 0; i < OPERATION_SAMPLES && status == KV_OK; i++) {
            status = sample_rate(&side, &values[i], error);
        }
        double median = status == KV_OK ? kv_quartiles(values, OPERATION_SAMPLES).median : 0;
        if (median > best) {
            best = median;
            *operation_out = operation;
        }
    }
    return status;
}

static kv_status_t measure_latency(
    bench_t *bench, bool shm, const kv_shape_t *shape, int operation, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES_MAX], against[80];
    name_of(name, shm, shape, ", alone");
    if (!wants(bench, name)) {
        return KV_OK;
    }
    snprintf(against, sizeof against, "bare UCX, %s", KV_BARE_NAMES[operation]);
    const kv_measure_t measure = {name, "us", against, NAN};
    side_t ours = {bench, LANE_OURS, {.run_count = LATENCY_RUNS, .depth = 1, .turns = true}};
    side_t theirs = {bench, LANE_THEIRS, ours.batch};
    return kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_latency, &theirs},
        &(kv_side_t){sample_latency, &ours}, error);
}

/* The bandwidth, or the CPU time that it costs. */
static kv_status_t measure_stream(
    bench_t *bench, bool shm, const kv_shape_t *shape, bool cpu, int operation, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES_MAX], against[80];
    name_of(name, shm, shape, cpu ? ", CPU" : "");
    if (!wants(bench, name)) {
        return KV_OK;
    }
    size_t run_bytes = kv_shape_run_bytes(shape);
    snprintf(against, sizeof against, "bare UCX, %s", KV_BARE_NAMES[operation]);
    const bool judged = !cpu && run_bytes >= MIB && run_bytes < MIB + MIB / 16;
    const kv_measure_t measure = {.name = name,
        .unit = cpu ? "ms/GB" : "GB/s",
        .against = against,
        .target = judged ? TARGET_BANDWIDTH : NAN};
    side_t ours = {bench, LANE_OURS, batch_of(bench, shape)};
    side_t theirs = {bench, LANE_THEIRS, ours.batch};
    kv_status_t (*sample)(void *, double *, kv_error_t *) = cpu ? sample_cpu : sample_rate;
    return kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample, &theirs},
        &(kv_side_t){sample, &ours}, error);
}

/* ---- beside what no target is set against ---- */

enum { BESIDE_SOCKET = KV_BARE_OPERATIONS, BESIDE_PERFTEST, BESIDE_COUNT };

static const char *const BESIDE[BESIDE_COUNT] = {", beside eager", ", beside rendezvous",
    ", beside get", ", beside socket", ", beside ucx_perftest"};

static bool wants_beside(const bench_t *bench, bool shm, const kv_shape_t *shape)
{
    char name[KV_BENCH_NAME_BYTES_MAX];
    bool wanted = false;
    for (int i = 0; i < BESIDE_COUNT; i++) {
        wanted |= wants(bench, name_of(name, shm, shape, BESIDE[i]));
    }
    return wanted;
}

static kv_status_t measure_beside(bench_t *bench, const kv_route_t *route, const char *what,
    const char *against, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES_MAX];
    const kv_measure_t measure = {.name = name_of(name, route->shm, &route->shape, what),
        .unit = "GB/s",
        .against = against,
        .target = NAN};
    if (!wants(bench, name)) {
        return KV_OK;
    }
    side_t ours = {bench, LANE_OURS, batch_of(bench, &route->shape)};
    side_t theirs = {bench, LANE_THEIRS, ours.batch};
    kv_status_t status = kv_ends_open(&bench->ends, LANE_THEIRS, route, error);
    if (status == KV_OK) {
        status = kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_rate, &theirs},
            &(kv_side_t){sample_rate, &ours}, error);
    }
    return status;
}

static kv_status_t measure_perftest(bench_t *bench, const kv_route_t *route, kv_error_t *error)
{
    char name[KV_BENCH_NAME_BYTES_MAX];
    name_of(name, route->shm, &route->shape, BESIDE[BESIDE_PERFTEST]);
    if (!wants(bench, name)) {
        return KV_OK;
    }
    const kv_measure_t measure = {.name = name,
        .unit = "GB/s",
        .against = "ucx_perftest, messages out of one hot buffer, spinning",
        .target = NAN};
    side_t ours = {bench, LANE_OURS, batch_of(bench, &route->shape)};
    kv_route_t theirs = *route;
    kv_status_t status = kv_report_pairs(&bench->report, &measure,
        &(kv_side_t){sample_perftest, &theirs}, &(kv_side_t){sample_rate, &ours}, error);
    if (status == KV_MISSING) {
        fprintf(bench->notes, "# %s: left out\n", error->text);
        status = KV_OK;
    }
    return status;
}

static kv_status_t measure_all_beside(
    bench_t *bench, bool shm, const kv_shape_t *shape, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    char against[80];
    for (int operation = 0; operation < KV_BARE_OPERATIONS && status == KV_OK; operation++) {
        const kv_route_t route = route_of(bench, shm, shape, KV_CARRIER_BARE, operation);
        if (operation == KV_BARE_GET && !shm) {
            continue; /* nobody would have to be asked, but over TCP it is slow */
        }
        snprintf(against, sizeof against, "bare UCX, %s", KV_BARE_NAMES[operation]);
        status = measure_beside(bench, &route, BESIDE[operation], against, error);
    }
    const kv_route_t route = route_of(bench, shm, shape, KV_CARRIER_SOCKET, 0);
    if (status == KV_OK) {
        status = measure_beside(bench, &route, BESIDE[BESIDE_SOCKET],
            shm ? "a Unix socket" : "a plain TCP socket", error);
    }
    kv_ends_close(&bench->ends, LANE_THEIRS);
    return status == KV_OK ? measure_perftest(bench, &route, error) : status;
}

/* ---- a prompt's layers, one after the other ---- */

/* From the last layer's being there to LANDED, while all layers become available at a pace. */
static kv_status_t sample_exposed(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    kv_ends_t *ends = &side->bench->ends;
    kv_status_t status = kv_ends_move(ends, side->lane, &side->batch, error);
    if (status == KV_OK) {
        const uint32_t last = side->batch.run_count - 1;
        *value_out = (double)(ends->landed_ns[last] - ends->sent_ns[last]) / 1e3;
    }
    return status;
}

/* The last layer's transfer with nothing before it, and a round trip of UCX alone. */
static kv_status_t sample_unhidden(void *context, double *value_out, kv_error_t *error)
{
    const side_t *side = context;
    const kv_batch_t turns = {.run_count = LATENCY_RUNS, .depth = 1, .turns = true};
    side_t words = {side->bench, LANE_WORDS, turns}, layer = *side;
    double one_way_us = 0, layer_us = 0;
    layer.batch.last_alone = true;
    layer.batch.pace_ns = 0;
    kv_status_t status = sample_latency(&words, &one_way_us, error);
    if (status == KV_OK) {
        status = sample_exposed(&layer, &layer_us, error);
    }
    *value_out = layer_us + 2 * one_way_us;
    return status;
}

static kv_status_t measure_exposed(bench_t *bench, bool shm, kv_error_t *error)
{
    static const kv_shape_t layers = {LAYER_BYTES, PROMPT_BLOCKS, LAYERS},
                            word = {WORD_BYTES, 1, 1};
    char name[KV_BENCH_NAME_BYTES_MAX];
    const kv_measure_t measure = {.name = name_of(name, shm, &layers, ", exposed"),
        .unit = "us",
        .against = "the last layer's transfer alone and one round trip",
        .target = 1};
    if (!wants(bench, name)) {
        return KV_OK;
    }
    const kv_route_t ours = route_of(bench, shm, &layers, KV_CARRIER_MOVER, 0);
    const kv_route_t words = route_of(bench, shm, &word, KV_CARRIER_BARE, KV_BARE_EAGER);
    kv_status_t status = kv_ends_open(&bench->ends, LANE_OURS, &ours, error);
    if (status == KV_OK) {
        status = kv_ends_open(&bench->ends, LANE_WORDS, &words, error);
    }
    if (status == KV_OK) {
        side_t side = {
            bench, LANE_OURS, {.run_count = LAYERS, .depth = LAYERS, .pace_ns = bench->pace_ns}};
        status = kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_unhidden, &side},
            &(kv_side_t){sample_exposed, &side}, error);
    }
    kv_ends_close(&bench->ends, LANE_OURS);
    kv_ends_close(&bench->ends, LANE_WORDS);
    return status;
}

static kv_status_t run_shape(bench_t *bench, bool shm, size_t index, kv_error_t *error)
{
    const kv_shape_t *shape = &SHAPES[index].shape;
    char name[KV_BENCH_NAME_BYTES_MAX];
    const bool rate = wants(bench, name_of(name, shm, shape, "")) ||
                      (SHAPES[index].beside && wants(bench, name_of(name, shm, shape, ", CPU")));
    const bool latency =
        SHAPES[index].latency && wants(bench, name_of(name, shm, shape, ", alone"));
    const bool beside = SHAPES[index].beside && wants_beside(bench, shm, shape);
    if ((bench->quick && !SHAPES[index].quick) || !(rate || latency || beside)) {
        return KV_OK;
    }
    const kv_route_t ours = route_of(bench, shm, shape, KV_CARRIER_MOVER, 0);
    kv_status_t status = kv_ends_open(&bench->ends, LANE_OURS, &ours, error);
    int best = KV_BARE_EAGER;
    if (status == KV_OK && (rate || latency)) {
        status = find_best(bench, shm, shape, &best, error);
    }
    if (status == KV_OK && (rate || latency)) {
        const kv_route_t theirs = route_of(bench, shm, shape, KV_CARRIER_BARE, best);
        status = kv_ends_open(&bench->ends, LANE_THEIRS, &theirs, error);
    }
    for (int cpu = 0; cpu <= SHAPES[index].beside && status == KV_OK && rate; cpu++) {
        status = measure_stream(bench, shm, shape, cpu, best, error);
    }
    if (status == KV_OK && latency) {
        status = measure_latency(bench, shm, shape, best, error);
    }
    if (status == KV_OK && beside) {
        status = measure_all_beside(bench, shm, shape, error);
    }
    kv_ends_close(&bench->ends, LANE_OURS);
    kv_ends_close(&bench->ends, LANE_THEIRS);
    return status;
}

/* ---- the run ---- */

static void print_notes(const bench_t *bench)
{
    char arena[KV_TEXT_BYTES], sample[KV_TEXT_BYTES];
    kv_machine_print(bench->notes, NULL);
    fprintf(bench->notes,
        "# slots on either side: %s; a sample moves %s, %u runs in flight; all sleep when idle%s\n",
        kv_text_size(bench->arena_bytes, arena), kv_text_size(bench->sample_bytes, sample),
        bench->depth, bench->busy_poll_ns > 0 ? ", the mover a little later" : "");
    if (bench->arena_bytes < kv_machine_cache_bytes()) {
        fprintf(bench->notes, "# that is less than the largest cache: the figures flatter\n");
    }
    if (bench->quick) {
        fprintf(bench->notes, "# --quick: shows that everything runs; the figures mean little\n");
    }
}

static int run(bench_t *bench, const options_t *options)
{
    kv_error_t error;
    print_notes(bench);
    kv_status_t status = kv_ends_start(bench->arena_bytes, &bench->ends, &error);
    if (status != KV_OK) {
        return kv_command_fail("bench", error.text, NULL);
    }
    for (int wire = 0; wire < 2; wire++) {
        const bool shm = wire == 0;
        if (options->wire != NULL && strcmp(options->wire, shm ? "shm" : "tcp") != 0) {
            continue;
        }
        for (size_t i = 0; i < SHAPE_COUNT && status == KV_OK; i++) {
            status = run_shape(bench, shm, i, &error);
        }
        if (status == KV_OK) {
            status = measure_exposed(bench, shm, &error);
        }
    }
    kv_report_end(&bench->report);
    kv_ends_stop(&bench->ends);
    return status == KV_OK ? KV_EXIT_DONE : kv_command_fail("bench", error.text, NULL);
}

int kv_bench_wire(int argc, char **argv)
{
    options_t options = {.depth = 4, .pace_ms = PACE_MS};
    const kv_argument_t rows[] = {
        {"--wire", KV_ARGUMENT_TEXT, "WIRE", "only shm or tcp", &options.wire, 0, 0},
        {"--only", KV_ARGUMENT_TEXT, "TEXT", "measures that have this in their name", &options.only,
            0, 0},
        {"--depth", KV_ARGUMENT_NUMBER, "N", "runs in flight (default: 4)", &options.depth, 1, 64},
        {"--pairs", KV_ARGUMENT_NUMBER, "N", "of each measure (default: 9)", &options.pairs, 1,
            KV_PAIRS_MAX},
        {"--sample-mib", KV_ARGUMENT_NUMBER, "N", "that a sample moves (default: 192)",
            &options.sample_mib, 1, 1024},
        {"--pace-ms", KV_ARGUMENT_NUMBER, "N",
            "between two layers of the prompt whose last one's time is exposed (default: 20)",
            &options.pace_ms, 1, 10000},
        {"--busy-poll-us", KV_ARGUMENT_NUMBER, "N",
            "the mover looks for more so long before it sleeps, as node.busy_poll (default: 0)",
            &options.busy_poll_us, 0, 1000000},
        {"--quick", KV_ARGUMENT_FLAG, NULL, "few and small samples: does everything run?",
            &options.quick, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "one JSON object a line", &options.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist bench wire [OPTIONS]",
        .summary = "KV between two processes by object size, run length and wire, in alternating "
                   "pairs with UCX alone\nover the same rotating slots (no checksums), by the "
                   "operation that is fastest there.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (options.wire != NULL && strcmp(options.wire, "shm") != 0 &&
        strcmp(options.wire, "tcp") != 0) {
        kv_command_fail("bench", "--wire: shm or tcp", "kvist bench wire --help");
        return KV_EXIT_USAGE;
    }
    if (options.pairs == 0) {
        options.pairs = options.quick ? QUICK_PAIRS : 9;
    }
    if (options.sample_mib == 0) {
        options.sample_mib = options.quick ? QUICK_SAMPLE_MIB : 192;
    }
    bench_t bench = {.report = {.out = stdout,
                         .progress = stderr,
                         .json = options.json,
                         .pairs = (uint32_t)options.pairs},
        .notes = options.json ? stderr : stdout,
        .only = options.only,
        .arena_bytes = options.quick ? (size_t)QUICK_ARENA_MIB * MIB : kv_machine_working_bytes(),
        .sample_bytes = options.sample_mib * MIB,
        .depth = (uint32_t)options.depth,
        .pace_ns = options.pace_ms * KV_NS_PER_MS,
        .busy_poll_ns = options.busy_poll_us * KV_NS_PER_US,
        .quick = options.quick};
    if (bench.sample_bytes > bench.arena_bytes / 2) {
        bench.sample_bytes = bench.arena_bytes / 2; /* no slot twice in a sample */
    }
    return run(&bench, &options);
}
