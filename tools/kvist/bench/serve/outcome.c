#include "tools/kvist/bench/serve/outcome.h"

#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CURVE_STEPS = 50, SECONDS_MAX = 240 };

/* ---- targets ---- */

static bool take_target(const char *text, size_t bytes, kv_slo_t *slo)
{
    static const char *const NAMES[] = {"ttft=", "tpot=", "e2e="};
    double *const targets[] = {&slo->ttft_ms, &slo->tpot_ms, &slo->e2e_ms};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        size_t name_bytes = strlen(NAMES[i]);
        if (bytes <= name_bytes || strncmp(text, NAMES[i], name_bytes) != 0) {
            continue;
        }
        char *end;
        double value = strtod(text + name_bytes, &end);
        size_t unit_bytes = (size_t)(text + bytes - end);
        bool seconds = unit_bytes == 1 && end[0] == 's';
        bool milliseconds = unit_bytes == 2 && strncmp(end, "ms", 2) == 0;
        if (end > text + bytes || !(seconds || milliseconds) || !(value > 0) || value > 1e9) {
            return false;
        }
        *targets[i] = seconds ? value * 1000 : value;
        return true;
    }
    return false;
}

kv_status_t kv_slo_parse(const char *text, kv_slo_t *slo_out, kv_error_t *error)
{
    kv_slo_t slo = {0};
    for (const char *at = text; at != NULL;) {
        size_t bytes = strcspn(at, ",");
        if (!take_target(at, bytes, &slo)) {
            return kv_fail(error, KV_INVALID,
                "--slo '%.80s': it must be like ttft=2s,tpot=80ms,e2e=30s, each above 0 and with s "
                "or ms behind it",
                text);
        }
        at = at[bytes] == ',' ? at + bytes + 1 : NULL;
    }
    *slo_out = slo;
    return KV_OK;
}

/* ---- times ---- */

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / KV_NS_PER_MS : 0;
}

static double ttft_ms(const kv_sent_record_t *record)
{
    return ms_between(record->sent_ns, record->first_ns);
}

static double e2e_ms(const kv_sent_record_t *record)
{
    return ms_between(record->sent_ns, record->ended_ns);
}

/* Time for a token after the first; 0 where there is no other. */
static double tpot_ms(const kv_sent_record_t *record)
{
    return record->answer_tokens > 1
               ? ms_between(record->first_ns, record->last_ns) / (record->answer_tokens - 1)
               : 0;
}

static bool meets(const kv_sent_record_t *record, const kv_slo_t *slo)
{
    return (slo->ttft_ms == 0 || ttft_ms(record) <= slo->ttft_ms) &&
           (slo->tpot_ms == 0 || tpot_ms(record) <= slo->tpot_ms) &&
           (slo->e2e_ms == 0 || e2e_ms(record) <= slo->e2e_ms);
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

double kv_quantile_of(const double *sorted, size_t count, double quantile)
{
    if (count == 0) {
        return 0;
    }
    double rank = ceil(quantile * (double)count);
    size_t at = rank < 1 ? 0 : (size_t)rank - 1;
    return sorted[at < count ? at : count - 1];
}

static double rounded(double value)
{
    return round(value * 1000) / 1000;
}

/* Percentiles, and the curve of all quantiles in steps of 2 %; the values are sorted. */
static json_t *pack_times(double *values, size_t count)
{
    double sum = 0;
    json_t *curve = json_array();
    qsort(values, count, sizeof *values, compare);
    for (size_t i = 0; i < count; i++) {
        sum += values[i];
    }
    for (int i = 0; i <= CURVE_STEPS && count > 0; i++) {
        double value = kv_quantile_of(values, count, (double)i / CURVE_STEPS);
        json_array_append_new(curve, json_real(rounded(value)));
    }
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "count", (json_int_t)count, "mean",
        rounded(count > 0 ? sum / (double)count : 0), "p50",
        rounded(kv_quantile_of(values, count, 0.5)), "p90",
        rounded(kv_quantile_of(values, count, 0.9)), "p95",
        rounded(kv_quantile_of(values, count, 0.95)), "p99",
        rounded(kv_quantile_of(values, count, 0.99)), "max",
        rounded(kv_quantile_of(values, count, 1)), "curve", curve);
}

/* ---- the phase ---- */

typedef struct {
    const kv_script_t *script;
    kv_drive_result_t *result;
    const kv_slo_t *slo;
    double seconds;
} phase_t;

static bool counts(const kv_sent_record_t *record)
{
    return !record->warming && record->state == KV_SENT_DONE;
}

static void add_times(const phase_t *phase, json_t *object)
{
    static const char *const NAMES[] = {"ttft_ms", "tpot_ms", "e2e_ms"};
    double (*const times[])(const kv_sent_record_t *) = {ttft_ms, tpot_ms, e2e_ms};
    size_t most = phase->script->request_count > phase->result->gap_count
                      ? phase->script->request_count
                      : phase->result->gap_count;
    double *values = kv_allocate_array(most + 1, sizeof *values);
    for (int kind = 0; kind < 3; kind++) {
        size_t count = 0;
        for (uint32_t i = 0; i < phase->script->request_count; i++) {
            const kv_sent_record_t *record = &phase->result->records[i];
            if (counts(record) && (times[kind] != tpot_ms || record->answer_tokens > 1)) {
                values[count++] = times[kind](record);
            }
        }
        json_object_set_new(object, NAMES[kind], pack_times(values, count));
    }
    for (size_t i = 0; i < phase->result->gap_count; i++) {
        values[i] = phase->result->gaps_us[i] / 1000.0;
    }
    json_object_set_new(object, "gap_ms", pack_times(values, phase->result->gap_count));
    free(values);
}

static json_t *pack_requests(const phase_t *phase)
{
    uint32_t done = 0, failed = 0, sent = 0, warming = 0;
    for (uint32_t i = 0; i < phase->script->request_count; i++) {
        const kv_sent_record_t *record = &phase->result->records[i];
        warming += record->warming;
        done += counts(record);
        failed += !record->warming && record->state == KV_SENT_FAILED;
        sent += !record->warming && record->state != KV_SENT_NOT;
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "sent", (json_int_t)sent, "done",
        (json_int_t)done, "failed", (json_int_t)failed, "not_sent",
        (json_int_t)(phase->script->request_count - warming - sent), "warming", (json_int_t)warming,
        "made_shorter", (json_int_t)phase->script->cut_count);
}

typedef struct {
    uint64_t prompt, answer, cached, ideal, in_work, foreign, seen[KV_SEEN_COUNT], done, good, told;
} totals_t;

static totals_t add_up(const phase_t *phase)
{
    totals_t totals = {0};
    for (uint32_t i = 0; i < phase->script->request_count; i++) {
        const kv_sent_record_t *record = &phase->result->records[i];
        if (!counts(record)) {
            continue;
        }
        totals.done++;
        totals.told += record->has_cached;
        totals.good += meets(record, phase->slo);
        totals.prompt += record->prompt_tokens;
        totals.answer += record->answer_tokens;
        totals.cached += record->cached_tokens;
        totals.ideal += kv_sent_ideal_tokens(record);
        totals.in_work += kv_sent_in_work_tokens(record);
        totals.foreign += kv_sent_foreign_tokens(record);
        for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
            totals.seen[tier] += record->seen_tokens[tier];
        }
    }
    return totals;
}

static json_t *share_of(uint64_t part, uint64_t whole)
{
    return whole > 0 ? json_real(rounded((double)part / (double)whole)) : json_null();
}

static json_t *pack_tokens(const totals_t *totals)
{
    json_t *tokens = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "prompt",
        (json_int_t)totals->prompt, "answer", (json_int_t)totals->answer, "hit",
        (json_int_t)totals->cached, "ideal", (json_int_t)totals->ideal, "in_work",
        (json_int_t)totals->in_work, "foreign", (json_int_t)totals->foreign);
    json_t *tiers = json_object();
    for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
        json_object_set_new(
            tiers, KV_SEEN_NAMES[tier], json_integer((json_int_t)totals->seen[tier]));
    }
    json_object_set_new(tokens, "hit_by_tier", tiers);
    return tokens;
}

static void add_rates(const phase_t *phase, const totals_t *totals, json_t *object)
{
    double seconds = phase->seconds > 0 ? phase->seconds : 1;
    /* Where the endpoint never says what was cached, a rate of 0 would be a lie. */
    bool told = totals->told > 0 || totals->done == 0;
    json_object_set_new(
        object, "hit_rate", told ? share_of(totals->cached, totals->prompt) : json_null());
    json_object_set_new(object, "ideal_hit_rate", share_of(totals->ideal, totals->prompt));
    json_object_set_new(
        object, "hit_of_ideal", told ? share_of(totals->cached, totals->ideal) : json_null());
    json_object_set_new(
        object, "requests_per_s", json_real(rounded((double)totals->done / seconds)));
    json_object_set_new(
        object, "prompt_tokens_per_s", json_real(rounded((double)totals->prompt / seconds)));
    json_object_set_new(
        object, "answer_tokens_per_s", json_real(rounded((double)totals->answer / seconds)));
    bool has_slo = phase->slo->ttft_ms + phase->slo->tpot_ms + phase->slo->e2e_ms > 0;
    json_object_set_new(object, "goodput",
        has_slo ? json_pack("{s:f, s:o}", "requests_per_s", rounded((double)totals->good / seconds),
                      "share", share_of(totals->good, totals->done))
                : json_null());
}

/* What ended in each stretch of time: at most SECONDS_MAX of them, a whole number of seconds each.
 */
static json_t *pack_over_time(const phase_t *phase)
{
    uint32_t step = (uint32_t)(phase->seconds / SECONDS_MAX) + 1;
    uint32_t count = (uint32_t)(phase->seconds / step) + 1;
    totals_t *stretches = kv_allocate_array(count, sizeof *stretches);
    json_t *rows = json_array();
    for (uint32_t i = 0; i < phase->script->request_count; i++) {
        const kv_sent_record_t *record = &phase->result->records[i];
        if (counts(record)) {
            uint32_t at = (uint32_t)(record->ended_ns / KV_NS_PER_S / step);
            totals_t *stretch = &stretches[at < count ? at : count - 1];
            stretch->done++;
            stretch->prompt += record->prompt_tokens;
            stretch->cached += record->cached_tokens;
            stretch->ideal += kv_sent_ideal_tokens(record);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        json_array_append_new(rows,
            json_pack("{s:I, s:I, s:I, s:I, s:I}", "s", (json_int_t)((i + 1) * step), "done",
                (json_int_t)stretches[i].done, "prompt", (json_int_t)stretches[i].prompt, "hit",
                (json_int_t)stretches[i].cached, "ideal", (json_int_t)stretches[i].ideal));
    }
    free(stretches);
    return rows;
}

static json_t *pack_failures(const kv_drive_result_t *result)
{
    json_t *failures = json_array();
    for (uint32_t i = 0; i < result->failure_count; i++) {
        json_array_append_new(failures, json_pack("{s:s, s:I}", "text", result->failures[i].text,
                                            "count", (json_int_t)result->failures[i].count));
    }
    return failures;
}

json_t *kv_outcome_pack(const kv_script_t *script, kv_drive_result_t *result, const kv_slo_t *slo)
{
    const phase_t phase = {script, result, slo, (double)result->took_ns / KV_NS_PER_S};
    const totals_t totals = add_up(&phase);
    json_t *object = json_object();
    json_object_set_new(object, "requests", pack_requests(&phase));
    json_object_set_new(object, "seconds", json_real(rounded(phase.seconds)));
    json_object_set_new(object, "interrupted", json_boolean(result->interrupted));
    json_object_set_new(object, "tokens", pack_tokens(&totals));
    add_rates(&phase, &totals, object);
    add_times(&phase, object);
    json_object_set_new(
        object, "late_ms_max", json_real(rounded((double)result->late_ns_max / KV_NS_PER_MS)));
    json_object_set_new(object, "over_time", pack_over_time(&phase));
    json_object_set_new(object, "failures", pack_failures(result));
    return object;
}
