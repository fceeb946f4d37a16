/* Measures: figures of two sides taken in alternating pairs, and what may be said about them.
 *
 * A machine that others share runs faster and slower by the minute. So every measure takes its
 * samples in pairs, theirs and then ours right after it, and judges the ratios of the pairs: what
 * slowed both cancels out. Said of each side is the median and the quartiles of its samples; of the
 * ratios the median and an interval that holds the true median with 95 % probability or more, from
 * the order statistics of the ratios (no distribution is assumed; below 6 pairs it is the extremes,
 * and the probability is less). A target is met where the median meets it, missed where the
 * interval excludes it, and between the two nobody knows.
 *
 * Owns: nothing. Borrows: texts of a measure while it is reported.
 * Threads: one.
 * Errors: a sample's, passed on; nothing is reported for that measure then.
 * Limits: KV_PAIRS_MAX pairs. */
#ifndef KV_TOOLS_MEASURE_H
#define KV_TOOLS_MEASURE_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { KV_PAIRS_MAX = 99 };

typedef struct {
    const char *name;
    const char *unit; /* "x" (a factor), or one that ends in "/s", is a rate: more is better; others
                            are costs */
    const char *against; /* what theirs is; NULL: ours stands alone, and is what is judged */
    double target; /* of the ratio ours / theirs, or of ours alone: a rate must reach it, a cost
                            must not pass it; NAN: none */
} kv_measure_t;

typedef struct {
    double low, median, high;
} kv_spread_t;

typedef enum { KV_VERDICT_NONE, KV_VERDICT_MET, KV_VERDICT_UNSURE, KV_VERDICT_MISSED } kv_verdict_t;

typedef struct {
    kv_spread_t ours, theirs; /* quartiles; theirs is 0 where nothing stands against ours */
    kv_spread_t judged;       /* the ratio, or ours alone; with the interval of its median */
    kv_verdict_t verdict;
} kv_finding_t;

/* Median with quartiles, and median with the interval of the median; values are sorted. */
kv_spread_t kv_quartiles(double *values, uint32_t count);
kv_spread_t kv_median_interval(double *values, uint32_t count);

/* ours[i] and theirs[i] are one pair, in units of the measure; both are sorted. theirs: NULL where
 * the measure stands alone. */
kv_finding_t kv_find(
    const kv_measure_t *measure, double *ours, double *theirs, uint32_t pair_count);

/* One side: takes a sample, in the measure's unit, more than 0. */
typedef struct {
    kv_status_t (*sample)(void *context, double *value_out, kv_error_t *error);
    void *context;
} kv_side_t;

/* Where findings go. */
typedef struct {
    FILE *out;
    FILE *progress;    /* what is being measured; NULL: not said */
    bool json;         /* a line an object, else a table */
    uint32_t pairs;    /* of each measure */
    uint32_t measured; /* so far, and how their targets fared: */
    uint32_t met, unsure, missed;
} kv_report_t;

/* Takes report->pairs pairs of samples, after one pair that does not count, and reports them.
 * theirs: NULL where the measure stands alone. */
kv_status_t kv_report_pairs(kv_report_t *report, const kv_measure_t *measure,
    const kv_side_t *theirs, const kv_side_t *ours, kv_error_t *error);

/* Reports samples that were taken elsewhere; they are sorted. */
void kv_report_samples(
    kv_report_t *report, const kv_measure_t *measure, double *ours, double *theirs, uint32_t count);

/* The table's last line: how many targets were met. */
void kv_report_end(const kv_report_t *report);

#endif
