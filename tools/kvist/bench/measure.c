#include "tools/kvist/bench/measure.h"

#include "base/check.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- statistics ---- */

static int ascending(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Between the two nearest of sorted values. */
static double quantile(const double *values, uint32_t count, double fraction)
{
    const double place = fraction * (count - 1);
    const uint32_t below = (uint32_t)place;
    const double part = place - below;
    return below + 1 < count ? values[below] * (1 - part) + values[below + 1] * part
                             : values[count - 1];
}

kv_spread_t kv_quartiles(double *values, uint32_t count)
{
    KV_CHECK(count > 0);
    qsort(values, count, sizeof *values, ascending);
    return (kv_spread_t){
        quantile(values, count, 0.25), quantile(values, count, 0.5), quantile(values, count, 0.75)};
}

/* How many values may be left off at each end so that what remains still spans the median with 95 %
 * probability: the median lies outside when at most that many of count fair coins fall one way. */
static uint32_t trimmed(uint32_t count)
{
    double term = pow(0.5, count), below = 0;
    uint32_t trim = 0;
    while (2 * (below + term) <= 0.05) {
        below += term;
        term *= (double)(count - trim) / (trim + 1);
        trim++;
    }
    return trim > 0 ? trim - 1 : 0;
}

kv_spread_t kv_median_interval(double *values, uint32_t count)
{
    KV_CHECK(count > 0);
    qsort(values, count, sizeof *values, ascending);
    const uint32_t trim = trimmed(count);
    return (kv_spread_t){values[trim], quantile(values, count, 0.5), values[count - 1 - trim]};
}

/* Of which more is better. */
static bool is_rate(const char *unit)
{
    const size_t length = strlen(unit);
    return strcmp(unit, "x") == 0 || (length >= 2 && strcmp(unit + length - 2, "/s") == 0);
}

static kv_verdict_t judge(const kv_measure_t *measure, const kv_spread_t *judged)
{
    if (isnan(measure->target)) {
        return KV_VERDICT_NONE;
    }
    const bool rate = is_rate(measure->unit);
    if (rate ? judged->median >= measure->target : judged->median <= measure->target) {
        return KV_VERDICT_MET;
    }
    const bool reachable = rate ? judged->high >= measure->target : judged->low <= measure->target;
    return reachable ? KV_VERDICT_UNSURE : KV_VERDICT_MISSED;
}

kv_finding_t kv_find(const kv_measure_t *measure, double *ours, double *theirs, uint32_t pair_count)
{
    KV_CHECK(pair_count > 0 && pair_count <= KV_PAIRS_MAX);
    double judged[KV_PAIRS_MAX];
    for (uint32_t i = 0; i < pair_count; i++) {
        judged[i] = theirs != NULL ? ours[i] / theirs[i] : ours[i];
    }
    kv_finding_t finding = {
        .ours = kv_quartiles(ours, pair_count), .judged = kv_median_interval(judged, pair_count)};
    if (theirs != NULL) {
        finding.theirs = kv_quartiles(theirs, pair_count);
    }
    finding.verdict = judge(measure, &finding.judged);
    return finding;
}

/* ---- one line for each ---- */

static json_t *number_or_null(bool given, double value)
{
    return given && isfinite(value) ? json_real(value) : json_null();
}

static void print_json(FILE *out, const kv_measure_t *measure, const kv_finding_t *finding)
{
    const bool paired = measure->against != NULL;
    json_t *ok = finding->verdict == KV_VERDICT_NONE || finding->verdict == KV_VERDICT_UNSURE
                     ? json_null()
                     : json_boolean(finding->verdict == KV_VERDICT_MET);
    json_t *line = json_pack("{s:s, s:f, s:s, s:o, s:o, s:o, s:[f, f], s:o, s:o}", "measure",
        measure->name, "ours", finding->ours.median, "unit", measure->unit, "against",
        paired ? json_string(measure->against) : json_null(), "theirs",
        number_or_null(paired, finding->theirs.median), "ratio",
        number_or_null(paired, finding->judged.median), "spread", finding->judged.low,
        finding->judged.high, "target", number_or_null(true, measure->target), "ok", ok);
    KV_CHECK(line != NULL);
    json_dumpf(line, out, JSON_REAL_PRECISION(6));
    fputc('\n', out);
    json_decref(line);
}

/* Three or four digits that count, however large. */
static const char *figure(double value, char *text_out, size_t text_bytes)
{
    const int decimals = value >= 100 ? 0 : value >= 10 ? 1 : value >= 0.1 ? 2 : 4;
    snprintf(text_out, text_bytes, "%.*f", decimals, value);
    return text_out;
}

static void print_side(FILE *out, const kv_spread_t *side)
{
    char median[32], low[32], high[32], range[80];
    snprintf(range, sizeof range, "%s-%s", figure(side->low, low, sizeof low),
        figure(side->high, high, sizeof high));
    fprintf(out, " %8s %-13s", figure(side->median, median, sizeof median), range);
}

static void print_row(FILE *out, const kv_measure_t *measure, const kv_finding_t *finding)
{
    static const char *const verdicts[] = {"", "met", "unsure", "MISSED"};
    char low[32], high[32], range[80], target[40] = "";
    fprintf(out, "%-37s %-8s", measure->name, measure->unit);
    print_side(out, &finding->ours);
    if (measure->against != NULL) {
        print_side(out, &finding->theirs);
        fprintf(out, " %6.3f", finding->judged.median);
    } else {
        fprintf(out, " %22s %6s", "", "");
    }
    snprintf(range, sizeof range, "%s-%s", figure(finding->judged.low, low, sizeof low),
        figure(finding->judged.high, high, sizeof high));
    if (!isnan(measure->target)) {
        snprintf(target, sizeof target, "%s %.4g",
            is_rate(measure->unit) ? ">=" : "<=", measure->target);
    }
    fprintf(out, " %-13s %-8s %-6s %s\n", range, target, verdicts[finding->verdict],
        measure->against != NULL ? measure->against : "");
}

static void print_head(FILE *out)
{
    fprintf(out, "%-37s %-8s %8s %-13s %8s %-13s %6s %-13s %-8s %-6s %s\n", "measure", "unit",
        "ours", "quartiles", "theirs", "quartiles", "ratio", "interval", "target", "", "against");
}

void kv_report_samples(
    kv_report_t *report, const kv_measure_t *measure, double *ours, double *theirs, uint32_t count)
{
    const kv_finding_t finding = kv_find(measure, ours, theirs, count);
    if (report->json) {
        print_json(report->out, measure, &finding);
    } else {
        if (report->measured == 0) {
            print_head(report->out);
        }
        print_row(report->out, measure, &finding);
    }
    fflush(report->out);
    report->measured++;
    report->met += finding.verdict == KV_VERDICT_MET;
    report->unsure += finding.verdict == KV_VERDICT_UNSURE;
    report->missed += finding.verdict == KV_VERDICT_MISSED;
}

/* ---- pairs ---- */

/* On a terminal one line that is written over, elsewhere a line for each measure. */
static void say_progress(const kv_report_t *report, const kv_measure_t *measure, uint32_t pair)
{
    if (report->progress == NULL) {
        return;
    }
    if (isatty(fileno(report->progress))) {
        fprintf(report->progress, "\r\033[K%s: pair %u of %u", measure->name, pair, report->pairs);
    } else if (pair == 0) {
        fprintf(report->progress, "measuring %s, %u pairs\n", measure->name, report->pairs);
    }
    fflush(report->progress);
}

static void end_progress(const kv_report_t *report)
{
    if (report->progress != NULL && isatty(fileno(report->progress))) {
        fprintf(report->progress, "\r\033[K");
        fflush(report->progress);
    }
}

static kv_status_t take(
    const kv_side_t *side, const kv_measure_t *measure, double *value_out, kv_error_t *error)
{
    kv_status_t status = side->sample(side->context, value_out, error);
    if (status == KV_OK && !(*value_out > 0 && isfinite(*value_out))) {
        return kv_fail(error, KV_FATAL, "%s: a sample came out as %g %s", measure->name, *value_out,
            measure->unit);
    }
    return status;
}

kv_status_t kv_report_pairs(kv_report_t *report, const kv_measure_t *measure,
    const kv_side_t *theirs, const kv_side_t *ours, kv_error_t *error)
{
    KV_CHECK(report->pairs > 0 && report->pairs <= KV_PAIRS_MAX);
    KV_CHECK((theirs != NULL) == (measure->against != NULL));
    double our_values[KV_PAIRS_MAX + 1], their_values[KV_PAIRS_MAX + 1];
    kv_status_t status = KV_OK;
    /* Pair 0 does not count: caches, files and processes warm up. */
    for (uint32_t pair = 0; pair <= report->pairs && status == KV_OK; pair++) {
        say_progress(report, measure, pair);
        if (theirs != NULL) {
            status = take(theirs, measure, &their_values[pair], error);
        }
        if (status == KV_OK) {
            status = take(ours, measure, &our_values[pair], error);
        }
    }
    end_progress(report);
    if (status == KV_OK) {
        kv_report_samples(report, measure, our_values + 1, theirs != NULL ? their_values + 1 : NULL,
            report->pairs);
    }
    return status;
}

void kv_report_end(const kv_report_t *report)
{
    if (!report->json && report->measured > 0) {
        fprintf(report->out,
            "\n%u measures of %u pairs; of %u targets %u met, %u unsure (the median misses it, its "
            "interval does not), %u missed\n",
            report->measured, report->pairs, report->met + report->unsure + report->missed,
            report->met, report->unsure, report->missed);
    }
}
