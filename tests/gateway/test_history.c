/* Figures over time, and where a request's time went: pure, with times of the test's own. */
#include "testing/testing.h"

#include "gateway/figures/history.h"
#include "gateway/figures/recent.h"

#include <string.h>

enum { BEGIN = 1700000000 - 1700000000 % KV_HISTORY_COARSE_S };

static kv_partition_t parts_of(uint64_t hit, uint64_t gap, uint64_t fresh)
{
    kv_partition_t parts = {.prompt = hit + gap + fresh, .fresh = fresh};
    parts.hit[1] = hit;
    parts.gap[KV_GAP_EXPIRED] = gap;
    return parts;
}

static void add(kv_history_t *history, uint64_t unix_s, uint64_t hit)
{
    const kv_partition_t parts = parts_of(hit, 10, 1);
    kv_history_add(history, unix_s, &parts);
}

typedef struct {
    uint64_t begins[KV_HISTORY_COARSE], hits[KV_HISTORY_COARSE];
    size_t count;
} seen_t;

static void see(void *context, const kv_history_slot_t *slot)
{
    seen_t *seen = context;
    seen->begins[seen->count] = slot->begins_unix_s;
    seen->hits[seen->count++] = kv_partition_hit(&slot->parts);
}

static void slots_are_sums(void **state)
{
    (void)state;
    static seen_t seen;
    kv_history_t *history = kv_history_create();
    add(history, BEGIN, 100);
    add(history, BEGIN + 9, 50);
    add(history, BEGIN + 10, 7);
    add(history, BEGIN + 3000, 1000);
    kv_history_visit(history, KV_HISTORY_HOUR, BEGIN + 3000, see, &seen);
    assert_int_equal(seen.count, 3);
    assert_int_equal(seen.begins[0], BEGIN);
    assert_int_equal(seen.hits[0], 150);
    assert_int_equal(seen.begins[1], BEGIN + 10);
    assert_int_equal(seen.hits[2], 1000);
    seen.count = 0;
    kv_history_visit(history, KV_HISTORY_WEEK, BEGIN + 3000, see, &seen);
    assert_int_equal(seen.count, 2);
    assert_int_equal(seen.hits[0], 157);
    kv_history_slot_t last = kv_history_last(history, BEGIN + 3000, 300);
    assert_int_equal(last.answers, 1);
    last = kv_history_last(history, BEGIN + 3000, 3600);
    assert_int_equal(last.answers, 4);
    assert_int_equal(kv_partition_hit(&last.parts), 1157);
    assert_int_equal(last.parts.gap[KV_GAP_EXPIRED], 40);
    kv_history_destroy(history);
}

/* An hour later the fine ones are gone, a week later the coarse ones; the sum stays. */
static void what_is_old_leaves(void **state)
{
    (void)state;
    static seen_t seen;
    kv_history_t *history = kv_history_create();
    add(history, BEGIN, 100);
    add(history, BEGIN + 3600, 5); /* in the first one's place */
    kv_history_visit(history, KV_HISTORY_HOUR, BEGIN + 3600, see, &seen);
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.hits[0], 5);
    seen.count = 0;
    kv_history_visit(history, KV_HISTORY_HOUR, BEGIN + 20000, see, &seen);
    assert_int_equal(seen.count, 0);
    kv_history_visit(history, KV_HISTORY_WEEK, BEGIN + 20000, see, &seen);
    assert_int_equal(seen.count, 2);
    seen.count = 0;
    kv_history_visit(history, KV_HISTORY_WEEK, BEGIN + 8 * 86400, see, &seen);
    assert_int_equal(seen.count, 0);
    assert_int_equal(kv_history_total(history)->answers, 2);
    assert_int_equal(kv_partition_hit(&kv_history_total(history)->parts), 105);
    kv_history_destroy(history);
}

/* The newest first: what is older than an hour takes no newer one's place. */
static void times_come_in_any_order(void **state)
{
    (void)state;
    static seen_t seen;
    kv_history_t *history = kv_history_create();
    add(history, BEGIN + 3600, 5);
    add(history, BEGIN + 3590, 6);
    add(history, BEGIN, 100); /* where the first one is */
    kv_history_visit(history, KV_HISTORY_HOUR, BEGIN + 3600, see, &seen);
    assert_int_equal(seen.count, 2);
    assert_int_equal(seen.hits[0], 6);
    assert_int_equal(seen.hits[1], 5);
    seen.count = 0;
    kv_history_visit(history, KV_HISTORY_WEEK, BEGIN + 3600, see, &seen);
    assert_int_equal(seen.count, 3);
    assert_int_equal(kv_history_total(history)->answers, 3);
    kv_history_destroy(history);
}

/* A clock that goes back counts where it is. */
static void a_clock_goes_back(void **state)
{
    (void)state;
    static seen_t seen;
    kv_history_t *history = kv_history_create();
    add(history, 100, 3); /* soon after 1970 */
    kv_history_visit(history, KV_HISTORY_HOUR, 100, see, &seen);
    assert_int_equal(seen.count, 1);
    add(history, BEGIN, 7);
    add(history, BEGIN - 50, 9);
    seen.count = 0;
    kv_history_visit(history, KV_HISTORY_HOUR, BEGIN - 50, see, &seen);
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.hits[0], 9);
    seen.count = 0;
    kv_history_visit(history, KV_HISTORY_HOUR, BEGIN, see, &seen);
    assert_int_equal(seen.count, 2);
    kv_history_destroy(history);
}

/* ---- requests ---- */

static void spans_add_up(void **state)
{
    (void)state;
    uint64_t spans[KV_SPAN_COUNT];
    kv_recent_times_t times = {.queue_ns = 10,
        .first_token_ns = 100,
        .match_ns = 5,
        .load_ns = 15,
        .compute_ns = 40,
        .decode_ns = 77};
    kv_recent_span(&times, spans);
    static const uint64_t EXPECTED[KV_SPAN_COUNT] = {10, 5, 15, 40, 30, 77};
    assert_memory_equal(spans, EXPECTED, sizeof spans);
    times.compute_ns = UINT64_MAX; /* nodes may say anything */
    times.match_ns = 85;
    kv_recent_span(&times, spans);
    static const uint64_t CUT[KV_SPAN_COUNT] = {10, 85, 5, 0, 0, 77};
    assert_memory_equal(spans, CUT, sizeof spans);
}

typedef struct {
    uint64_t numbers[KV_RECENT_MAX], most;
    size_t count;
} numbers_t;

static bool take(void *context, const kv_recent_t *request)
{
    numbers_t *numbers = context;
    assert_int_equal(request->generated_tokens, request->number);
    numbers->numbers[numbers->count++] = request->number;
    return numbers->count < numbers->most;
}

static void the_latest_first(void **state)
{
    (void)state;
    static numbers_t numbers;
    kv_recents_t *recents = kv_recents_create();
    numbers.most = KV_RECENT_MAX;
    kv_recents_visit(recents, take, &numbers);
    assert_int_equal(numbers.count, 0);
    for (uint32_t i = 1; i <= 3 * KV_RECENT_MAX / 2; i++) {
        const kv_recent_t request = {.generated_tokens = i};
        kv_recents_add(recents, &request);
    }
    kv_recents_visit(recents, take, &numbers);
    assert_int_equal(numbers.count, KV_RECENT_MAX);
    assert_int_equal(numbers.numbers[0], 3 * KV_RECENT_MAX / 2);
    assert_int_equal(numbers.numbers[KV_RECENT_MAX - 1], KV_RECENT_MAX / 2 + 1);
    numbers = (numbers_t){.most = 3};
    kv_recents_visit(recents, take, &numbers);
    assert_int_equal(numbers.count, 3);
    kv_recents_destroy(recents);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_are_sums),
        cmocka_unit_test(what_is_old_leaves),
        cmocka_unit_test(times_come_in_any_order),
        cmocka_unit_test(a_clock_goes_back),
        cmocka_unit_test(spans_add_up),
        cmocka_unit_test(the_latest_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
