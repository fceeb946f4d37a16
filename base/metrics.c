#include "base/metrics.h"

#include "base/check.h"
#include "base/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef enum { COUNTER, GAUGE, HISTOGRAM } metric_type_t;

static const char *const TYPE_NAMES[] = {"counter", "gauge", "histogram"};
static const double BUCKETS[] = {.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 60};
enum { BUCKET_COUNT = sizeof BUCKETS / sizeof BUCKETS[0] };

struct kv_metric {
    const char *name, *labels, *help;
    metric_type_t type;
    _Atomic double value;                       /* of a histogram: the sum */
    _Atomic uint64_t buckets[BUCKET_COUNT + 1]; /* not cumulative; the last is above all bounds */
};

static pthread_mutex_t registry_mutex =
    PTHREAD_MUTEX_INITIALIZER; /* guards registration and rendering */
static kv_metric_t registry[KV_METRICS_MAX];
static size_t registry_count;

static kv_metric_t *find_or_add(
    const char *name, const char *labels, const char *help, metric_type_t type)
{
    kv_metric_t *found = NULL;
    pthread_mutex_lock(&registry_mutex);
    for (size_t i = 0; i < registry_count && found == NULL; i++) {
        if (strcmp(registry[i].name, name) == 0 && strcmp(registry[i].labels, labels) == 0) {
            found = &registry[i];
        }
    }
    if (found == NULL) {
        KV_CHECK(registry_count < KV_METRICS_MAX);
        found = &registry[registry_count++];
        found->name = kv_duplicate_string(name);
        found->labels = kv_duplicate_string(labels);
        found->help = kv_duplicate_string(help);
        found->type = type;
    }
    pthread_mutex_unlock(&registry_mutex);
    KV_CHECK(found->type == type);
    return found;
}

kv_metric_t *kv_metric_counter(const char *name, const char *labels, const char *help)
{
    return find_or_add(name, labels, help, COUNTER);
}

kv_metric_t *kv_metric_gauge(const char *name, const char *labels, const char *help)
{
    return find_or_add(name, labels, help, GAUGE);
}

kv_metric_t *kv_metric_histogram(const char *name, const char *labels, const char *help)
{
    return find_or_add(name, labels, help, HISTOGRAM);
}

void kv_metric_add(kv_metric_t *metric, double amount)
{
    double seen = atomic_load_explicit(&metric->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&metric->value, &seen, seen + amount)) {
    }
}

void kv_metric_set(kv_metric_t *metric, double value)
{
    atomic_store_explicit(&metric->value, value, memory_order_relaxed);
}

void kv_metric_observe(kv_metric_t *metric, double seconds)
{
    size_t bucket = 0;
    while (bucket < BUCKET_COUNT && seconds > BUCKETS[bucket]) {
        bucket++;
    }
    atomic_fetch_add_explicit(&metric->buckets[bucket], 1, memory_order_relaxed);
    kv_metric_add(metric, seconds);
}

double kv_metric_value(const kv_metric_t *metric)
{
    if (metric->type != HISTOGRAM) {
        return atomic_load_explicit(&metric->value, memory_order_relaxed);
    }
    uint64_t count = 0;
    for (size_t i = 0; i <= BUCKET_COUNT; i++) {
        count += atomic_load_explicit(&metric->buckets[i], memory_order_relaxed);
    }
    return (double)count;
}

static void render_histogram(FILE *page, const kv_metric_t *metric)
{
    const char *comma = metric->labels[0] != '\0' ? "," : "";
    uint64_t count = 0;
    for (size_t i = 0; i < BUCKET_COUNT; i++) {
        count += atomic_load_explicit(&metric->buckets[i], memory_order_relaxed);
        fprintf(page, "%s_bucket{%s%sle=\"%g\"} %llu\n", metric->name, metric->labels, comma,
            BUCKETS[i], (unsigned long long)count);
    }
    count += atomic_load_explicit(&metric->buckets[BUCKET_COUNT], memory_order_relaxed);
    fprintf(page, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", metric->name, metric->labels, comma,
        (unsigned long long)count);
    const char *open = metric->labels[0] != '\0' ? "{" : "", *close = *open ? "}" : "";
    fprintf(page, "%s_sum%s%s%s %.17g\n", metric->name, open, metric->labels, close,
        atomic_load_explicit(&metric->value, memory_order_relaxed));
    fprintf(page, "%s_count%s%s%s %llu\n", metric->name, open, metric->labels, close,
        (unsigned long long)count);
}

static void render_metric(FILE *page, const kv_metric_t *metric)
{
    if (metric->type == HISTOGRAM) {
        render_histogram(page, metric);
    } else {
        const char *open = metric->labels[0] != '\0' ? "{" : "", *close = *open ? "}" : "";
        fprintf(page, "%s%s%s%s %.17g\n", metric->name, open, metric->labels, close,
            atomic_load_explicit(&metric->value, memory_order_relaxed));
    }
}

char *kv_metrics_render(size_t *bytes_out)
{
    char *text = NULL;
    FILE *page = open_memstream(&text, bytes_out);
    KV_CHECK(page != NULL);
    pthread_mutex_lock(&registry_mutex);
    bool done[KV_METRICS_MAX] = {false};
    for (size_t i = 0; i < registry_count; i++) {
        if (done[i]) {
            continue;
        }
        const kv_metric_t *first = &registry[i];
        fprintf(page, "# HELP %s %s\n# TYPE %s %s\n", first->name, first->help, first->name,
            TYPE_NAMES[first->type]);
        for (size_t j = i; j < registry_count; j++) {
            if (strcmp(registry[j].name, first->name) == 0) {
                render_metric(page, &registry[j]);
                done[j] = true;
            }
        }
    }
    pthread_mutex_unlock(&registry_mutex);
    fclose(page);
    return text;
}
