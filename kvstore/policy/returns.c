#include "kvstore/policy/returns.h"

#include "base/memory.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    WATCHED = 1 << 14,
    BUCKET_PLACES = 8,
    SEEN_TIMES = 4,     /* of what fills the pool */
    FORETOLD_TIMES = 8, /* as many of those are watched: they are few */
    /* The values are worked out again after so many: soon at first, then each time later. */
    EVENTS_FIRST = 32,
    EVENTS_EACH = 500,
};
static const double FADING = 0.97;
static const double BORROWED = 5; /* blocks' worth of what is known of all kinds */

/* Its ages are in other units: it borrows nothing, and lends nothing. */
static bool is_alone(uint32_t kind)
{
    return kind == KV_RETURNS_FORETOLD;
}

/* Of those that count for the kinds. */
static bool is_sampled(const kv_returns_t *returns, uint32_t hash)
{
    return (hash & (returns->share - 1)) == 0;
}

/* ---- ages ---- */

static uint32_t age_class(double age)
{
    int number = (int)(2 * log2(age + 1));
    return number < KV_RETURNS_AGES ? (uint32_t)number : KV_RETURNS_AGES - 1;
}

/* Where the class begins. */
static double age_at(uint32_t number)
{
    return exp2(number / 2.0) - 1;
}

/* ---- values ---- */

/* Those that are watched still, by kind and age. */
typedef double counts_t[KV_RETURNS_KINDS][KV_RETURNS_AGES];

static void count_watched(const kv_returns_t *returns, uint32_t now_s, counts_t counts_out)
{
    memset(counts_out, 0, sizeof(counts_t));
    for (uint32_t i = 0; i < WATCHED; i++) {
        const kv_returns_watched_t *at = &returns->watched[i];
        double age_s = now_s - at->since_s;
        if (at->taken && is_sampled(returns, at->hash)) {
            counts_out[at->kind][age_class(age_s)]++;
        }
        if (at->taken && at->unit_s > 0) {
            counts_out[KV_RETURNS_FORETOLD][age_class(age_s / (double)at->unit_s)]++;
        }
    }
}

/* Of those that came to an age, how many came back at it: at[], of left[]. */
static void work_out_left(const kv_returns_kind_t *kind, const double *watched, double *left_out)
{
    double older = 0;
    for (uint32_t age = KV_RETURNS_AGES; age-- > 0;) {
        double lost = kind->ended[age] + watched[age]; /* at some time within it: half of it */
        left_out[age] = older + kind->came[age] + lost / 2;
        older += kind->came[age] + lost;
    }
}

static void work_out_value(kv_returns_kind_t *kind, const double *share)
{
    for (uint32_t from = 0; from < KV_RETURNS_AGES; from++) {
        double kept = 1, came = 0, time = 0, best = 0;
        for (uint32_t age = from; age + 1 < KV_RETURNS_AGES; age++) {
            came += kept * share[age];
            time += kept * (age_at(age + 1) - age_at(age)) * (1 - share[age] / 2);
            kept *= 1 - share[age];
            best = came / time > best ? came / time : best;
        }
        kind->value[from] = best;
    }
}

static void work_out(kv_returns_t *returns, uint32_t now_s)
{
    counts_t watched, left;
    double all_came[KV_RETURNS_AGES] = {0}, all_left[KV_RETURNS_AGES] = {0};
    count_watched(returns, now_s, watched);
    for (uint32_t kind = 0; kind < KV_RETURNS_KINDS; kind++) {
        work_out_left(&returns->kinds[kind], watched[kind], left[kind]);
        for (uint32_t age = 0; age < KV_RETURNS_AGES && !is_alone(kind); age++) {
            all_came[age] += returns->kinds[kind].came[age];
            all_left[age] += left[kind][age];
        }
    }
    for (uint32_t number = 0; number < KV_RETURNS_KINDS; number++) {
        kv_returns_kind_t *kind = &returns->kinds[number];
        double share[KV_RETURNS_AGES];
        for (uint32_t age = 0; age < KV_RETURNS_AGES; age++) {
            double usual = is_alone(number) ? 0 : all_came[age] / (all_left[age] + 1);
            share[age] = (kind->came[age] + BORROWED * usual) / (left[number][age] + BORROWED);
            kind->came[age] *= FADING;
            kind->ended[age] *= FADING;
        }
        work_out_value(kind, share);
    }
}

/* ---- what is watched ---- */

void kv_returns_init(kv_returns_t *returns, uint32_t slot_count)
{
    *returns = (kv_returns_t){.share = 1, .events_wanted = EVENTS_FIRST};
    while ((uint64_t)WATCHED * returns->share < (uint64_t)slot_count * SEEN_TIMES) {
        returns->share *= 2;
    }
}

void kv_returns_destroy(kv_returns_t *returns)
{
    free(returns->watched);
    returns->watched = NULL;
}

size_t kv_returns_bytes(const kv_returns_t *returns)
{
    return returns->watched != NULL ? WATCHED * sizeof *returns->watched : 0;
}

static void count(kv_returns_kind_t *kind, double age, bool came)
{
    double *counts = came ? kind->came : kind->ended;
    counts[age_class(age)]++;
}

static void end_watch(
    kv_returns_t *returns, const kv_returns_watched_t *at, bool came, uint32_t now_s)
{
    double age_s = now_s - at->since_s;
    if (is_sampled(returns, at->hash)) {
        count(&returns->kinds[at->kind], age_s, came);
    }
    if (at->unit_s > 0) {
        count(&returns->kinds[KV_RETURNS_FORETOLD], age_s / (double)at->unit_s, came);
    }
    returns->events++;
}

/* Where the hash is, or a free place, or the one that was used longest ago. */
static kv_returns_watched_t *place_of(const kv_returns_t *returns, uint32_t hash)
{
    uint32_t mixed = hash * UINT32_C(0x9e3779b1);
    kv_returns_watched_t *bucket =
        returns->watched + (mixed >> 16) % (WATCHED / BUCKET_PLACES) * BUCKET_PLACES;
    kv_returns_watched_t *best = bucket;
    for (int i = 0; i < BUCKET_PLACES; i++) {
        kv_returns_watched_t *at = &bucket[i];
        if (at->taken && at->hash == hash) {
            return at;
        }
        if (best->taken && (!at->taken || at->since_s < best->since_s)) {
            best = at;
        }
    }
    return best;
}

void kv_returns_use(
    kv_returns_t *returns, uint32_t hash, uint32_t kind, double unit_s, uint32_t now_s)
{
    uint32_t share = returns->share > FORETOLD_TIMES ? returns->share / FORETOLD_TIMES : 1;
    bool wanted = is_sampled(returns, hash) || (unit_s > 0 && (hash & (share - 1)) == 0);
    if (returns->watched == NULL) {
        returns->watched = kv_allocate_array(WATCHED, sizeof *returns->watched);
    }
    kv_returns_watched_t *at = place_of(returns, hash);
    bool known = at->taken && at->hash == hash;
    if (!wanted && !known) {
        return;
    }
    if (at->taken) {
        end_watch(returns, at, known, now_s);
    }
    at->taken = 0;
    if (wanted) {
        *at = (kv_returns_watched_t){hash, now_s, (float)unit_s, (uint8_t)kind, 1};
    }
    if (returns->events >= returns->events_wanted) {
        uint32_t later = 2 * returns->events_wanted;
        returns->events_wanted = later < EVENTS_EACH ? later : EVENTS_EACH;
        returns->events = 0;
        work_out(returns, now_s);
    }
}

double kv_returns_value(const kv_returns_t *returns, uint32_t kind, double age_s)
{
    return returns->kinds[kind].value[age_class(age_s)];
}

double kv_returns_value_foretold(const kv_returns_t *returns, double unit_s, double age_s)
{
    return returns->kinds[KV_RETURNS_FORETOLD].value[age_class(age_s / unit_s)] / unit_s;
}
