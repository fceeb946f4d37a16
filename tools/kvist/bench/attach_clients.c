/* Many clients of one host's store at once, beside one of them alone; and how soon a store serves
 * whose host tier is large. */
#include "tools/kvist/bench/attach.h"

#include "base/clock.h"
#include "tools/kvist/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double TARGET_SUM = 0.9, TARGET_FAIR = 0.8, TARGET_FIRST_MS = 1000;

static const kv_attach_shape_t SHAPES[] = {
    {64 << 10, 64, false},
    {256 << 10, 16, true},
    {1 << 20, 16, false},
};

enum {
    CLIENTS_MAX = 32,
    DEPTH = 4,                 /* of each client */
    BYTES_AT_ONCE = 256 << 20, /* between two comparisons, which then take no time worth telling */
    ANSWER_LIMIT_MS = 60000,
};

/* ---- a client ---- */

typedef struct {
    const kv_bench_attach_t *bench;
    const kv_attach_shape_t *shape;
    uint32_t number;
} client_t;

/* What a client is told, and what it says: at first that it is ready. */
typedef struct {
    uint64_t window_ns;
} order_t;

typedef struct {
    kv_status_t status;
    kv_error_t error;
    uint64_t bytes, ns;
} answer_t;

static answer_t get_for(kv_subject_t *subject, uint64_t window_ns, size_t run_bytes)
{
    answer_t answer = {.status = KV_OK};
    const uint64_t begun_ns = kv_clock_now_ns();
    const uint32_t runs = (uint32_t)(BYTES_AT_ONCE / run_bytes);
    while (answer.status == KV_OK && answer.ns < window_ns) {
        uint64_t ns;
        answer.status = kv_subject_get(subject, runs, DEPTH, &ns, &answer.error);
        answer.bytes += runs * run_bytes;
        answer.ns = kv_clock_now_ns() - begun_ns;
    }
    return answer;
}

/* In a process of its own: gets for as long as it is told to, again and again. The first client put
 * what all of them get. */
static void be_client(const void *context, int channel)
{
    const client_t *client = context;
    const uint32_t run_count = kv_attach_subject(client->bench, client->shape).run_count;
    kv_subject_params_t params = kv_attach_subject(client->bench, client->shape);
    kv_region_t destination;
    kv_subject_t *subject;
    answer_t answer = {.status = KV_OK};
    order_t order;
    params.filled = client->number > 0;
    params.first_get = (uint64_t)client->number * run_count / client->bench->client_count;
    answer.status = kv_region_map(client->bench->working_bytes, &destination, &answer.error);
    if (answer.status == KV_OK) {
        memset(destination.base, 1, destination.bytes);
        params.destination = &destination;
        answer.status = kv_subject_open(&params, kv_attach_open, &subject, &answer.error);
    }
    if (answer.status == KV_OK && !params.filled) {
        answer.status = kv_subject_fill(subject, &answer.error);
    }
    while (kv_fork_tell(channel, &answer, sizeof answer, NULL) == KV_OK && answer.status == KV_OK &&
           kv_fork_hear(channel, &order, sizeof order, 10 * ANSWER_LIMIT_MS, NULL) == KV_OK) {
        answer = get_for(subject, order.window_ns, client->shape->object_bytes * params.run_blocks);
    }
}

/* ---- all of them ---- */

typedef struct {
    const kv_bench_attach_t *bench;
    kv_fork_t forks[CLIENTS_MAX];
    uint32_t count;   /* that are there */
    uint32_t at_once; /* of those: that one side runs */
    double *evenness; /* of each sample: slowest / fastest; NULL: not wanted */
    uint32_t sample_count;
} crowd_t;

static kv_status_t hear(const crowd_t *crowd, uint32_t number, answer_t *answer, kv_error_t *error)
{
    kv_status_t status =
        kv_fork_hear(crowd->forks[number].channel, answer, sizeof *answer, ANSWER_LIMIT_MS, error);
    return status == KV_OK && answer->status != KV_OK
               ? kv_fail(error, answer->status, "client %u: %s", number, answer->error.text)
               : status;
}

static kv_status_t start_crowd(crowd_t *crowd, const kv_attach_shape_t *shape, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    while (crowd->count < crowd->bench->client_count && status == KV_OK) {
        const client_t client = {crowd->bench, shape, crowd->count};
        answer_t answer;
        status = kv_fork_start(be_client, &client, &crowd->forks[crowd->count], error);
        if (status == KV_OK) {
            status = hear(crowd, crowd->count++, &answer, error);
        }
    }
    return status;
}

/* GB/s of all that run, together. */
static kv_status_t sample_crowd(void *context, double *value_out, kv_error_t *error)
{
    crowd_t *crowd = context;
    const order_t order = {crowd->bench->window_ms * KV_NS_PER_MS};
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; i < crowd->at_once && status == KV_OK; i++) {
        status = kv_fork_tell(crowd->forks[i].channel, &order, sizeof order, error);
    }
    double sum = 0, fastest = 0, slowest = INFINITY;
    for (uint32_t i = 0; i < crowd->at_once && status == KV_OK; i++) {
        answer_t answer;
        status = hear(crowd, i, &answer, error);
        if (status == KV_OK) {
            const double rate = (double)answer.bytes / (double)answer.ns;
            sum += rate;
            fastest = fmax(fastest, rate);
            slowest = fmin(slowest, rate);
        }
    }
    if (crowd->evenness != NULL && status == KV_OK) {
        crowd->evenness[crowd->sample_count++] = slowest / fastest;
    }
    *value_out = sum;
    return status;
}

static int compare_doubles(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static kv_status_t measure_crowd(kv_bench_attach_t *bench, crowd_t *crowd,
    const kv_attach_shape_t *shape, const char *name, kv_error_t *error)
{
    double evenness[KV_PAIRS_MAX + 1];
    const kv_measure_t measure = {
        .name = name, .unit = "GB/s", .against = "one of them alone", .target = TARGET_SUM};
    crowd_t all = *crowd, one = *crowd;
    all.at_once = crowd->count;
    all.evenness = evenness;
    one.at_once = 1;
    kv_status_t status = kv_report_pairs(&bench->report, &measure, &(kv_side_t){sample_crowd, &one},
        &(kv_side_t){sample_crowd, &all}, error);
    if (status == KV_OK) { /* the first pair does not count */
        char fair[KV_ATTACH_NAME_BYTES], what[48];
        snprintf(what, sizeof what, "%u clients, slowest / fastest", crowd->count);
        kv_attach_name(fair, what, shape, DEPTH);
        const kv_measure_t fairness = {.name = fair, .unit = "x", .target = TARGET_FAIR};
        qsort(evenness + 1, bench->report.pairs, sizeof *evenness, compare_doubles);
        kv_report_samples(&bench->report, &fairness, evenness + 1, NULL, bench->report.pairs);
    }
    return status;
}

static kv_status_t run_crowd(
    kv_bench_attach_t *bench, const kv_attach_shape_t *shape, kv_error_t *error)
{
    char name[KV_ATTACH_NAME_BYTES], what[48];
    snprintf(what, sizeof what, "%u clients, get", (uint32_t)bench->client_count);
    kv_attach_name(name, what, shape, DEPTH);
    if (!kv_attach_wants(bench, name) || !kv_attach_wants_shape(bench, shape)) {
        return KV_OK;
    }
    crowd_t crowd = {.bench = bench};
    kv_fork_t store = {0, -1};
    const kv_subject_params_t params = kv_attach_subject(bench, shape);
    kv_status_t status = kv_attach_serve(bench, params.host_bytes, &store, error);
    if (status == KV_OK) {
        status = start_crowd(&crowd, shape, error);
    }
    if (status == KV_OK) {
        status = measure_crowd(bench, &crowd, shape, name, error);
    }
    for (uint32_t i = 0; i < crowd.count; i++) {
        kv_fork_end(&crowd.forks[i]);
    }
    kv_attach_stop(&store);
    return status;
}

kv_status_t kv_attach_clients(kv_bench_attach_t *bench, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES && status == KV_OK; i++) {
        status = run_crowd(bench, &SHAPES[i], error);
    }
    return status;
}

/* ---- first service ---- */

enum { FIRST_OBJECT_BYTES = 64 << 10, FIRST_BLOCKS = 16, FIRST_LIMIT_MS = 60000 };

/* A context put and got, as soon as that can be. */
static kv_status_t put_and_get(const kv_bench_attach_t *bench, kv_error_t *error)
{
    const kv_subject_params_t params = {.object_bytes = FIRST_OBJECT_BYTES,
        .run_blocks = FIRST_BLOCKS,
        .run_count = 1,
        .host_bytes = bench->host_bytes,
        .source = &bench->source,
        .destination = &bench->destination};
    kv_subject_t *subject;
    kv_status_t status = kv_subject_open(&params, kv_attach_open, &subject, error);
    if (status == KV_OK) {
        uint64_t ns;
        status = kv_subject_put(subject, 1, 1, false, &ns, error);
        if (status == KV_OK) {
            status = kv_subject_get(subject, 1, 1, &ns, error);
        }
        kv_subject_close(subject);
    }
    return status;
}

static kv_status_t sample_first_service(void *context, double *value_out, kv_error_t *error)
{
    const kv_bench_attach_t *bench = context;
    const uint64_t begun_ns = kv_clock_now_ns();
    kv_fork_t store;
    kv_status_t status = kv_attach_start(bench, bench->host_bytes, &store, error);
    if (status != KV_OK) {
        return status;
    }
    uint64_t ns;
    do { /* a client goes on without a store that is not there yet; here it is waited for */
        status = access(bench->socket, F_OK) == 0
                     ? put_and_get(bench, error)
                     : kv_fail(error, KV_MISSING, "kvist-store does not serve");
        ns = kv_clock_now_ns() - begun_ns;
        nanosleep(&(struct timespec){.tv_nsec = status == KV_OK ? 0 : KV_NS_PER_MS}, NULL);
    } while (
        status != KV_OK && kv_fork_alive(&store) && ns < (uint64_t)FIRST_LIMIT_MS * KV_NS_PER_MS);
    *value_out = (double)ns / KV_NS_PER_MS;
    kv_attach_stop(&store);
    return status;
}

kv_status_t kv_attach_first_service(kv_bench_attach_t *bench, kv_error_t *error)
{
    char name[KV_ATTACH_NAME_BYTES], size[KV_TEXT_BYTES];
    snprintf(
        name, sizeof name, "first service, host tier of %s", kv_text_size(bench->host_bytes, size));
    const kv_measure_t measure = {.name = name, .unit = "ms", .target = TARGET_FIRST_MS};
    return kv_attach_wants(bench, name) ? kv_report_pairs(&bench->report, &measure, NULL,
                                              &(kv_side_t){sample_first_service, bench}, error)
                                        : KV_OK;
}
