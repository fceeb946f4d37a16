/* Metrics of one process, in Prometheus' text format.
 *
 * A metric is registered once by name and label set and lives as long as the process; asking again
 * for the same pair returns the same metric. The name's unit comes last
 * (kvist_disk_read_bytes_total). Help texts come from the first registration. The table has a bound
 * (KV_METRICS_MAX): labels must be of bounded cardinality.
 *
 * Threads: add, set and observe are atomic and may run anywhere; registration takes a lock. */
#ifndef KV_BASE_METRICS_H
#define KV_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

enum { KV_METRICS_MAX = 1024 };

typedef struct kv_metric kv_metric_t;

/* labels: `tier="disk",reason="new"` without braces, or "". */
kv_metric_t *kv_metric_counter(const char *name, const char *labels, const char *help);
kv_metric_t *kv_metric_gauge(const char *name, const char *labels, const char *help);

/* Seconds, in buckets from 1 ms to 60 s. */
kv_metric_t *kv_metric_histogram(const char *name, const char *labels, const char *help);

void kv_metric_add(kv_metric_t *metric, double amount);
void kv_metric_set(kv_metric_t *metric, double value);
void kv_metric_observe(kv_metric_t *metric, double seconds);
double kv_metric_value(const kv_metric_t *metric); /* of a histogram: the number of observations */

/* The whole page; release with free(). Metrics of one name stand together under one HELP and TYPE
 * line. */
char *kv_metrics_render(size_t *bytes_out);

#endif
