/* The pace of running decodes: so many are read at once, first undisturbed, then while long prompts
 * arrive one after the other (in every other round the other way round, since contexts grow
 * meanwhile). Samples of a round are the percentiles of all gaps between tokens in each of the two
 * windows. */
#include "tools/kvist/bench/pd.h"

#include "base/clock.h"
#include "base/memory.h"
#include "tools/kvist/bench/plot.h"
#include "tools/kvist/running.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    DECODES = 4,
    LAYOUTS_MAX = 2,
    PERCENTILES = 2,
    PLOT_MS_MIN =
        1, /* tokens that arrive together: drawn there, so that the scale serves the rest */
};

static const unsigned PERCENT[PERCENTILES] = {50, 99};

typedef struct {
    uint64_t from_ns, to_ns;
} window_t;

/* Of one layout: percentiles in ms of each round, and the first round's points for the plot. */
typedef struct {
    double idle[PERCENTILES][KV_PAIRS_MAX], busy[PERCENTILES][KV_PAIRS_MAX];
    kv_plot_point_t *points;
    size_t point_count;
    kv_plot_band_t band;
    double prompts; /* that arrived */
} pace_t;

typedef struct {
    const kv_bench_pd_t *bench;
    const kv_pace_layout_t *layout;
    pace_t *pace;
    FILE *series; /* NULL: not wanted */
    uint32_t round;
    uint64_t seed;
    kv_running_t *decodes[DECODES];
} round_t;

static void sleep_ms(uint64_t ms)
{
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000),
                  .tv_nsec = (long)(ms % 1000 * KV_NS_PER_MS)},
        NULL);
}

/* ---- one round ---- */

static kv_status_t start_decodes(round_t *round, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (int i = 0; status == KV_OK && i < DECODES; i++) {
        status = kv_running_start(
            round->layout->layout.endpoint, round->bench->model_id, &round->decodes[i], error);
    }
    for (int i = 0; status == KV_OK && i < DECODES; i++) {
        status = kv_running_await_pace(round->decodes[i], error);
    }
    return status;
}

static kv_status_t watch_idle(round_t *round, window_t *window_out, kv_error_t *error)
{
    (void)error;
    window_out->from_ns = kv_clock_now_ns();
    sleep_ms(round->bench->window_ms);
    window_out->to_ns = kv_clock_now_ns();
    return KV_OK;
}

/* Long prompts one after the other, until the window's time is over; the last one is waited for. */
static kv_status_t watch_busy(round_t *round, window_t *window_out, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    uint64_t end_ns = kv_clock_now_ns() + round->bench->window_ms * KV_NS_PER_MS;
    window_out->from_ns = kv_clock_now_ns();
    do {
        kv_answer_t answer;
        status = kv_bench_pd_ask(round->bench, &round->layout->layout, round->seed++,
            round->bench->prompt_tokens, 1, &answer, error);
        kv_answer_clear(&answer);
        round->pace->prompts++;
    } while (status == KV_OK && kv_clock_now_ns() < end_ns);
    window_out->to_ns = kv_clock_now_ns();
    return status;
}

static void take_percentiles(
    const round_t *round, const window_t *window, double values[PERCENTILES][KV_PAIRS_MAX])
{
    kv_gaps_t gaps = {0};
    for (int i = 0; i < DECODES; i++) {
        kv_gaps_add(&gaps, kv_running_answer(round->decodes[i]), window->from_ns, window->to_ns);
    }
    for (int i = 0; i < PERCENTILES; i++) {
        values[i][round->round] = (double)kv_gaps_quantile(&gaps, PERCENT[i]) / KV_NS_PER_MS;
    }
    kv_gaps_clear(&gaps);
}

/* Every gap of both windows, by the time at which it ended since the first window began. */
static void keep_series(const round_t *round, const window_t *idle, const window_t *busy)
{
    uint64_t from_ns = idle->from_ns < busy->from_ns ? idle->from_ns : busy->from_ns;
    uint64_t to_ns = idle->to_ns > busy->to_ns ? idle->to_ns : busy->to_ns;
    pace_t *pace = round->pace;
    for (int i = 0; i < DECODES; i++) {
        const kv_answer_t *answer = kv_running_answer(round->decodes[i]);
        if (round->round == 0) {
            pace->points = kv_reallocate(
                pace->points, pace->point_count + answer->arrival_count, sizeof *pace->points);
        }
        for (size_t j = 1; j < answer->arrival_count; j++) {
            uint64_t at_ns = answer->arrivals_ns[j];
            if (at_ns < from_ns || at_ns > to_ns) {
                continue;
            }
            double at_s = (double)(at_ns - from_ns) / KV_NS_PER_S;
            double gap_ms = (double)(at_ns - answer->arrivals_ns[j - 1]) / KV_NS_PER_MS;
            if (round->series != NULL) {
                fprintf(round->series, "%s,%u,%d,%s,%.6f,%.3f\n", round->layout->layout.name,
                    round->round, i,
                    at_ns >= busy->from_ns && at_ns <= busy->to_ns ? "busy" : "idle", at_s, gap_ms);
            }
            if (round->round == 0) {
                pace->points[pace->point_count++] =
                    (kv_plot_point_t){at_s, fmax(gap_ms, PLOT_MS_MIN)};
            }
        }
    }
    if (round->round == 0) {
        pace->band = (kv_plot_band_t){(double)(busy->from_ns - from_ns) / KV_NS_PER_S,
            (double)(busy->to_ns - from_ns) / KV_NS_PER_S};
    }
}

static kv_status_t run_round(round_t *round, kv_error_t *error)
{
    window_t idle = {0}, busy = {0};
    bool idle_first = round->round % 2 == 0;
    kv_status_t status = start_decodes(round, error);
    if (status == KV_OK) {
        status = idle_first ? watch_idle(round, &idle, error) : watch_busy(round, &busy, error);
    }
    if (status == KV_OK) {
        status = idle_first ? watch_busy(round, &busy, error) : watch_idle(round, &idle, error);
    }
    for (int i = 0; i < DECODES; i++) {
        if (round->decodes[i] != NULL) {
            kv_status_t ended = kv_running_end(round->decodes[i], status == KV_OK ? error : NULL);
            status = status == KV_OK ? ended : status;
        }
    }
    if (status == KV_OK) {
        take_percentiles(round, &idle, round->pace->idle);
        take_percentiles(round, &busy, round->pace->busy);
        keep_series(round, &idle, &busy);
    }
    for (int i = 0; i < DECODES; i++) {
        kv_running_free(round->decodes[i]);
        round->decodes[i] = NULL;
    }
    return status;
}

/* ---- what comes of it ---- */

static void report_pace(
    const kv_bench_pd_t *bench, kv_report_t *report, const kv_pace_layout_t *layout, pace_t *pace)
{
    for (int i = 0; i < PERCENTILES; i++) {
        char name[96];
        snprintf(name, sizeof name, "TPOT p%u, %d decodes, %s", PERCENT[i], DECODES,
            layout->layout.name);
        kv_measure_t measure = {.name = name,
            .unit = "ms",
            .against = "without prefills",
            .target = PERCENT[i] == 99 ? layout->target : NAN};
        kv_report_samples(report, &measure, pace->busy[i], pace->idle[i], report->pairs);
    }
    fprintf(bench->notes, "# %s: %.0f prompts of %llu tokens arrived\n", layout->layout.name,
        pace->prompts, (unsigned long long)bench->prompt_tokens);
}

static kv_status_t draw(const kv_bench_pd_t *bench, const kv_pace_layout_t *layouts,
    const pace_t *paces, uint32_t layout_count, kv_error_t *error)
{
    char title[96], band[64];
    kv_plot_panel_t panels[LAYOUTS_MAX];
    for (uint32_t i = 0; i < layout_count; i++) {
        panels[i] = (kv_plot_panel_t){
            layouts[i].layout.name, paces[i].points, paces[i].point_count, paces[i].band};
    }
    snprintf(
        title, sizeof title, "Time between tokens of %d running decodes, equal cores", DECODES);
    snprintf(band, sizeof band, "prompts of %llu tokens", (unsigned long long)bench->prompt_tokens);
    kv_plot_t plot = {.title = title,
        .x_title = "seconds",
        .y_title = "milliseconds",
        .band_title = band,
        .panels = panels,
        .panel_count = layout_count};
    return kv_plot_write(&plot, bench->figure, error);
}

static kv_status_t open_series(const kv_bench_pd_t *bench, FILE **file_out, kv_error_t *error)
{
    *file_out = NULL;
    if (bench->series == NULL) {
        return KV_OK;
    }
    *file_out = fopen(bench->series, "we");
    if (*file_out == NULL) {
        return kv_fail_errno(error, errno, "--series: %s cannot be written", bench->series);
    }
    fprintf(*file_out, "layout,round,decode,window,at_s,gap_ms\n");
    return KV_OK;
}

kv_status_t kv_bench_pd_pace(const kv_bench_pd_t *bench, kv_report_t *report,
    const kv_pace_layout_t *layouts, uint32_t layout_count, kv_error_t *error)
{
    FILE *series;
    kv_status_t status = open_series(bench, &series, error);
    if (status != KV_OK) {
        return status;
    }
    pace_t *paces = kv_allocate_array(layout_count, sizeof *paces);
    for (uint32_t i = 0; i < report->pairs * layout_count && status == KV_OK; i++) {
        uint32_t which = i % layout_count;
        round_t round = {.bench = bench,
            .layout = &layouts[which],
            .pace = &paces[which],
            .series = series,
            .round = i / layout_count,
            .seed = UINT64_C(1) << 32 | i << 8};
        fprintf(bench->notes, "# round %u of %u, %s\n", round.round + 1, report->pairs,
            layouts[which].layout.name);
        status = run_round(&round, error);
    }
    for (uint32_t i = 0; i < layout_count && status == KV_OK; i++) {
        report_pace(bench, report, &layouts[i], &paces[i]);
    }
    if (status == KV_OK && bench->figure != NULL) {
        status = draw(bench, layouts, paces, layout_count, error);
    }
    if (series != NULL && (ferror(series) || fclose(series) != 0) && status == KV_OK) {
        status = kv_fail(error, KV_IO, "--series: %s cannot be written", bench->series);
    }
    for (uint32_t i = 0; i < layout_count; i++) {
        free(paces[i].points);
    }
    free(paces);
    return status;
}
