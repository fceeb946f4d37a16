/* What `kvist sim` is made of: the trace's reader, the bound, hints, spread, and the replay through
 * a real store. */
#include "testing/testing.h"

#include "tools/kvist/sim/chart.h"
#include "tools/kvist/sim/hints.h"
#include "tools/kvist/sim/outcome.h"
#include "tools/kvist/sim/reference.h"
#include "tools/kvist/sim/replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 512, BLOCK_TOKENS = 4 };

static const char *write_trace(const char *text)
{
    static char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/trace.jsonl", kv_test_folder());
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
    return path;
}

static kv_trace_t read_trace(const char *text)
{
    kv_trace_t trace;
    kv_error_t error = {0};
    kv_status_t status = kv_trace_read(write_trace(text), &trace, &error);
    if (status != KV_OK) {
        print_message("%s\n", error.text);
    }
    assert_int_equal(status, KV_OK);
    return trace;
}

/* ---- the reader ---- */

static void test_a_trace_is_read(void **state)
{
    (void)state;
    kv_trace_t trace = read_trace(
        "{\"timestamp\": 5, \"input_length\": 1100, \"output_length\": 9, \"hash_ids\": [70, 8, "
        "9]}\n"
        "\n"
        "{\"timestamp\": 5, \"input_length\": 1030, \"output_length\": 0, \"hash_ids\": [70, 8],"
        " \"class\": \"batch\", \"who\": \"not asked for\"}\n"
        "{\"timestamp\": 90, \"input_length\": 0, \"output_length\": 0, \"hash_ids\": []}\n"
        "{\"timestamp\": 91, \"input_length\": 512, \"output_length\": 1,"
        " \"hash_ids\": [9223372036854775807]}");
    assert_int_equal(trace.request_count, 4);
    assert_int_equal(trace.block_tokens, 512);
    assert_int_equal(trace.asked_count, 6);
    assert_int_equal(trace.block_count, 4);
    assert_int_equal(trace.longest_blocks, 3);
    const uint32_t blocks[] = {0, 1, 2, 0, 1, 3};
    const uint32_t parents[] = {KV_TRACE_NONE, 0, 1, KV_TRACE_NONE};
    assert_memory_equal(trace.blocks, blocks, sizeof blocks);
    assert_memory_equal(trace.parents, parents, sizeof parents);
    assert_int_equal(trace.requests[1].priority, KVIST_PRIORITY_BATCH);
    assert_int_equal(trace.requests[0].priority, KVIST_PRIORITY_INTERACTIVE);
    assert_int_equal(kv_trace_tokens(&trace, &trace.requests[0], 1), 512);
    assert_int_equal(kv_trace_tokens(&trace, &trace.requests[0], 2), 76);
    kv_trace_stretch(&trace, 10);
    assert_int_equal(trace.requests[2].at_ms, 900);
    kv_trace_release(&trace);
}

static void test_lines_come_in_any_order(void **state)
{
    (void)state;
    kv_trace_t trace = read_trace(
        "{\"timestamp\": 70, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [4]}\n"
        "{\"timestamp\": 5, \"input_length\": 1100, \"output_length\": 2, \"hash_ids\": [8, 9]}\n"
        "{\"timestamp\": 70, \"input_length\": 1024, \"output_length\": 3, \"hash_ids\": [4, 6]}\n"
        "{\"timestamp\": 6, \"input_length\": 5, \"output_length\": 4, \"hash_ids\": []}\n");
    const uint32_t blocks[] = {1, 2, 0, 0, 3}, answers[] = {2, 4, 1, 3};
    const size_t firsts[] = {0, 2, 2, 3};
    assert_int_equal(trace.request_count, 4);
    assert_memory_equal(trace.blocks, blocks, sizeof blocks);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(trace.requests[i].output_tokens, answers[i]);
        assert_int_equal(trace.requests[i].first_block, firsts[i]);
    }
    kv_trace_release(&trace);
}

static void test_bad_lines_are_named(void **state)
{
    (void)state;
    static const char GOOD[] =
        "{\"timestamp\": 7, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, 2]}\n";
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"nonsense", ":2: not a JSON object"},
        {"[1]", ":2: not a JSON object"},
        {"{\"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}",
            ":2: timestamp is missing"},
        {"{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}",
            ":2: timestamp is something else: it must be a whole number from 0"},
        {"{\"timestamp\": 8, \"input_length\": 3000000000, \"output_length\": 1, \"hash_ids\": "
         "[1]}",
            ":2: input_length"},
        {"{\"timestamp\": 8, \"input_length\": 1, \"output_length\": \"x\", \"hash_ids\": [1]}",
            ":2: output_length"},
        {"{\"timestamp\": 8, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, 2, 3]}",
            ":2: hash_ids must be a list of 1 or 2 ids"},
        {"{\"timestamp\": 8, \"input_length\": 600, \"output_length\": 1}",
            ":2: hash_ids must be a"},
        {"{\"timestamp\": 8, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, -2]}",
            ":2: hash_ids must hold whole numbers"},
        {"{\"timestamp\": 8, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [2, 1]}",
            ":2: hash_ids has 2, which came after another block before"},
        {"{\"timestamp\": 8, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1],"
         " \"block_tokens\": 16}",
            ":2: block_tokens is not what the first line says"},
        {"{\"timestamp\": 8, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1],"
         " \"class\": \"vip\"}",
            ":2: class must be"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[1024];
        kv_trace_t trace;
        kv_error_t error = {0};
        snprintf(text, sizeof text, "%s%s", GOOD, cases[i].line);
        assert_int_equal(kv_trace_read(write_trace(text), &trace, &error), KV_INVALID);
        if (strstr(error.text, cases[i].says) == NULL) {
            fail_msg("'%s' does not say '%s'", error.text, cases[i].says);
        }
    }
    kv_trace_t trace;
    kv_error_t error = {0};
    assert_int_equal(kv_trace_read("/nowhere/trace", &trace, &error), KV_MISSING);
    assert_int_equal(kv_trace_read(write_trace("\n"), &trace, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "has no requests"));
}

/* ---- made-up traces ---- */

/* Contexts that grow, come back and share their beginnings. */
static kv_trace_t make_trace(uint64_t seed, uint32_t request_count, uint32_t context_count)
{
    kv_trace_t trace = {.block_tokens = BLOCK_TOKENS};
    trace.requests = calloc(request_count, sizeof *trace.requests);
    trace.blocks = calloc((size_t)request_count * 64, sizeof *trace.blocks);
    trace.parents = calloc((size_t)request_count * 64, sizeof *trace.parents);
    uint32_t(*contexts)[64] = calloc(context_count, sizeof *contexts);
    uint32_t *lengths = calloc(context_count, sizeof *lengths);
    trace.parents[trace.block_count++] = KV_TRACE_NONE; /* begins all of them */
    for (uint32_t i = 0; i < request_count; i++) {
        uint32_t context = (uint32_t)(kv_test_random(&seed) % context_count);
        uint32_t more = 1 + (uint32_t)(kv_test_random(&seed) % 4);
        if (lengths[context] == 0 || lengths[context] + more > 20) {
            lengths[context] = 1;
            contexts[context][0] = 0;
        }
        for (; more > 0; more--) {
            trace.parents[trace.block_count] = contexts[context][lengths[context] - 1];
            contexts[context][lengths[context]++] = trace.block_count++;
        }
        trace.requests[i] = (kv_trace_request_t){.at_ms = i * 700,
            .input_tokens = lengths[context] * BLOCK_TOKENS,
            .first_block = trace.asked_count,
            .block_count = lengths[context]};
        memcpy(trace.blocks + trace.asked_count, contexts[context],
            lengths[context] * sizeof(uint32_t));
        trace.asked_count += lengths[context];
        if (lengths[context] > trace.longest_blocks) {
            trace.longest_blocks = lengths[context];
        }
    }
    trace.request_count = request_count;
    free(contexts);
    free(lengths);
    return trace;
}

static uint64_t total(const kv_trace_t *trace, const uint32_t *hits)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < trace->request_count; i++) {
        sum += hits[i];
    }
    return sum;
}

/* ---- the references ---- */

/* The most that any sequence of decisions hits: held is a set of blocks (bits); after each block
 * that is asked for, it may be taken, for any other one, or not. */
static uint32_t best_hits(
    const kv_trace_t *trace, uint32_t capacity, size_t at, uint32_t held, int32_t *known)
{
    if (at == trace->asked_count) {
        return 0;
    }
    int32_t *memory = &known[at << trace->block_count | held];
    if (*memory >= 0) {
        return (uint32_t)*memory;
    }
    uint32_t bit = 1u << trace->blocks[at], best = 0;
    bool hit = (held & bit) != 0;
    best = best_hits(trace, capacity, at + 1, held, known) + hit;
    if (!hit && (uint32_t)__builtin_popcount(held) < capacity) {
        uint32_t taken = best_hits(trace, capacity, at + 1, held | bit, known);
        best = taken > best ? taken : best;
    }
    for (uint32_t other = 0; !hit && other < trace->block_count; other++) {
        if ((held >> other & 1) != 0) {
            uint32_t taken =
                best_hits(trace, capacity, at + 1, (held & ~(1u << other)) | bit, known);
            best = taken > best ? taken : best;
        }
    }
    *memory = (int32_t)best;
    return best;
}

/* On small traces, against everything that could be done. */
static void test_belady_is_the_bound(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        uint64_t random = seed;
        char text[4096] = "";
        for (int i = 0; i < 8; i++) { /* prompts of up to 3 blocks in a tree of 9 */
            static const int CHAINS[6][3] = {
                {1, 2, 3}, {1, 2, 4}, {1, 5, 6}, {7, 8, 9}, {7, 8, 9}, {1, 2, 3}};
            const int *chain = CHAINS[kv_test_random(&random) % 6];
            int count = 1 + (int)(kv_test_random(&random) % 3);
            size_t used = strlen(text);
            snprintf(text + used, sizeof text - used,
                "{\"timestamp\": %d, \"input_length\": %d, \"output_length\": 0, "
                "\"block_tokens\": 1, \"hash_ids\": [%d",
                i, count, chain[0]);
            for (int j = 1; j < count; j++) {
                used = strlen(text);
                snprintf(text + used, sizeof text - used, ", %d", chain[j]);
            }
            used = strlen(text);
            snprintf(text + used, sizeof text - used, "]}\n");
        }
        kv_trace_t trace = read_trace(text);
        uint32_t capacity = 1 + (uint32_t)(seed % 4), hits[8], lru[8];
        size_t states = (trace.asked_count + 1) << trace.block_count;
        int32_t *known = malloc(states * sizeof *known);
        memset(known, 0xff, states * sizeof *known);
        kv_reference_replay(&trace, KV_REFERENCE_BELADY, capacity, hits);
        kv_reference_replay(&trace, KV_REFERENCE_LRU, capacity, lru);
        assert_int_equal(total(&trace, hits), best_hits(&trace, capacity, 0, 0, known));
        assert_true(total(&trace, lru) <= total(&trace, hits));
        free(known);
        kv_trace_release(&trace);
    }
}

static void test_flat_references(void **state)
{
    (void)state;
    /* a b c, a b d, with room for three: fifo and lru both let a go for d, but lru saw a again. */
    kv_trace_t trace = read_trace(
        "{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 0, \"block_tokens\": 1,"
        " \"hash_ids\": [1, 2, 3]}\n"
        "{\"timestamp\": 1, \"input_length\": 3, \"output_length\": 0, \"hash_ids\": [1, 2, 4]"
        ", \"block_tokens\": 1}\n"
        "{\"timestamp\": 2, \"input_length\": 2, \"output_length\": 0, \"hash_ids\": [1, 2]"
        ", \"block_tokens\": 1}\n");
    uint32_t hits[3];
    kv_reference_replay(&trace, KV_REFERENCE_LRU, 3, hits);
    assert_int_equal(hits[1], 2);
    assert_int_equal(hits[2], 2);
    kv_reference_replay(&trace, KV_REFERENCE_FIFO, 3, hits);
    assert_int_equal(hits[1], 2);
    assert_int_equal(hits[2], 0);
    kv_trace_release(&trace);
}

/* ---- hints, spread ---- */

static void test_hints_are_as_bad_as_asked_for(void **state)
{
    (void)state;
    kv_trace_t trace = make_trace(kv_test_seed(), 2000, 40);
    uint64_t *expected_ms = calloc(trace.request_count, sizeof *expected_ms);
    const kv_hints_params_t perfect = {.seed = 1};
    kv_hints_counts_t counts = kv_hints_make(&trace, &perfect, expected_ms);
    assert_int_equal(counts.true_count, counts.coming_count);
    assert_int_equal(counts.false_count, 0);
    for (uint32_t i = 0; i < trace.request_count; i++) {
        if (expected_ms[i] == 0) {
            continue;
        }
        uint32_t last =
            trace.blocks[trace.requests[i].first_block + trace.requests[i].block_count - 1];
        uint32_t next = i + (uint32_t)(expected_ms[i] / 700), found = 0;
        for (uint32_t j = 0; j < trace.requests[next].block_count; j++) {
            found += trace.blocks[trace.requests[next].first_block + j] == last;
        }
        assert_int_equal(found, 1);
    }
    const kv_hints_params_t bad = {
        .seed = 1, .missing_share = 0.5, .error_sigma = 1, .false_share = 0.1};
    counts = kv_hints_make(&trace, &bad, expected_ms);
    assert_true(fabs((double)counts.true_count / counts.coming_count - 0.5) < 0.06);
    uint32_t given = counts.true_count + counts.false_count;
    assert_true(counts.false_count <= 0.11 * given);
    assert_true(counts.false_count >= 0.09 * given);
    free(expected_ms);
    kv_trace_release(&trace);
}

static void test_spread_of_a_difference(void **state)
{
    (void)state;
    kv_trace_t trace = make_trace(3, 2000, 40);
    uint32_t *hits = calloc(trace.request_count, sizeof *hits);
    uint32_t *base = calloc(trace.request_count, sizeof *base);
    kv_window_t window = {500, 1500};
    kv_spread_t spread = kv_outcome_spread(&trace, window, hits, base);
    assert_true(spread.low == 0 && spread.high == 0);
    for (uint32_t i = 0; i < trace.request_count; i++) {
        hits[i] =
            i < 500 ? 1000000 : i / 100 % 2; /* what is not in the window counts for nothing */
    }
    spread = kv_outcome_spread(&trace, window, hits, base);
    kv_outcome_t outcome = kv_outcome_of(&trace, window, hits);
    double rate = kv_outcome_rate(&outcome);
    assert_true(spread.low > 0 && spread.low < rate && rate < spread.high);
    assert_int_equal(outcome.hit_blocks, 800);
    assert_int_equal(outcome.hit_tokens, 800 * BLOCK_TOKENS);
    free(hits);
    free(base);
    kv_trace_release(&trace);
}

/* ---- the replay ---- */

static kv_replay_totals_t replay(const kv_trace_t *trace, const kv_replay_t *how, uint32_t *hits)
{
    kv_replay_totals_t totals;
    kv_error_t error = {0};
    kv_status_t status = kv_replay_run(trace, how, 0, hits, &totals, &error);
    if (status != KV_OK) {
        print_message("%s\n", error.text);
    }
    assert_int_equal(status, KV_OK);
    return totals;
}

/* Under every policy and in every tier the store hits what it may, and the same every time. */
static void test_replays_repeat(void **state)
{
    (void)state;
    kv_trace_t trace = make_trace(kv_test_seed(), 1200, 60);
    uint32_t *hits = calloc(trace.request_count, sizeof *hits);
    uint32_t *again = calloc(trace.request_count, sizeof *again);
    uint32_t *bound = calloc(trace.request_count, sizeof *bound);
    const kv_replay_t tiers[] = {{.device_blocks = 200}, {.host_blocks = 200},
        {.device_blocks = 64, .host_blocks = 100, .disk_blocks = 128, .segment_blocks = 16},
        {.host_blocks = 64,
            .disk_blocks = 128,
            .segment_blocks = 16,
            .persist = KVIST_PERSIST_SPILL}};
    for (size_t i = 0; i < sizeof tiers / sizeof tiers[0]; i++) {
        uint32_t blocks = tiers[i].device_blocks + tiers[i].host_blocks + tiers[i].disk_blocks;
        kv_reference_replay(&trace, KV_REFERENCE_BELADY, blocks, bound);
        for (unsigned policy = 0; policy < KVIST_POLICY_COUNT; policy++) {
            kv_replay_t how = tiers[i];
            how.policy = (kvist_policy_t)policy;
            kv_replay_totals_t totals = replay(&trace, &how, hits);
            kv_replay_totals_t repeated = replay(&trace, &how, again);
            assert_memory_equal(hits, again, trace.request_count * sizeof *hits);
            assert_memory_equal(&totals, &repeated, sizeof totals);
            assert_true(total(&trace, hits) > 0);
            assert_true(total(&trace, hits) <= total(&trace, bound));
            uint64_t by_tier = 0;
            for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
                by_tier += totals.hit_blocks[tier];
            }
            assert_int_equal(by_tier, total(&trace, hits));
            assert_int_equal(totals.written_blocks[KVIST_TIER_DISK] > 0, how.disk_blocks > 0);
        }
    }
    free(hits);
    free(again);
    free(bound);
    kv_trace_release(&trace);
}

/* The store's LRU, which goes leaf first, is the textbook's where that leaves no holes: with blocks
 * of one prompt used from its end, as a lease gives them back. */
static void test_lru_is_near_the_textbook(void **state)
{
    (void)state;
    kv_trace_t trace = make_trace(5, 3000, 60);
    uint32_t *hits = calloc(trace.request_count, sizeof *hits);
    uint32_t *flat = calloc(trace.request_count, sizeof *flat);
    const kv_replay_t how = {.device_blocks = 300};
    replay(&trace, &how, hits);
    kv_reference_replay(&trace, KV_REFERENCE_LRU, 300, flat);
    kv_window_t all = {0, trace.request_count};
    kv_outcome_t real = kv_outcome_of(&trace, all, hits),
                 textbook = kv_outcome_of(&trace, all, flat);
    double difference = kv_outcome_rate(&real) - kv_outcome_rate(&textbook);
    assert_true(kv_outcome_rate(&real) > 0.2);
    assert_true(difference > -0.005 && difference < 0.02);
    free(hits);
    free(flat);
    kv_trace_release(&trace);
}

static void test_a_tier_too_small_is_refused(void **state)
{
    (void)state;
    kv_trace_t trace = make_trace(5, 300, 6);
    uint32_t *hits = calloc(trace.request_count, sizeof *hits);
    kv_replay_totals_t totals;
    kv_error_t error = {0};
    const kv_replay_t small = {.device_blocks = 10}, none = {.disk_blocks = 10};
    const kv_replay_t segments = {.host_blocks = 10, .disk_blocks = 10, .segment_blocks = 6};
    assert_int_equal(kv_replay_run(&trace, &small, 0, hits, &totals, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "longest request"));
    assert_int_equal(kv_replay_run(&trace, &none, 0, hits, &totals, &error), KV_INVALID);
    assert_int_equal(kv_replay_run(&trace, &segments, 0, hits, &totals, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "segment_blocks is 6"));
    free(hits);
    kv_trace_release(&trace);
}

/* ---- the figure ---- */

static void test_a_chart_is_drawn(void **state)
{
    (void)state;
    const double sizes[] = {1000, 30000}, lru[] = {0.04, 0.33}, best[] = {0.19, 0.37};
    const kv_chart_line_t lines[] = {{"lru", lru, false}, {"bound <", best, true}};
    const kv_chart_t chart = {"title & more", "size", sizes, 2, lines, 2};
    char path[PATH_BYTES], text[16384] = {0};
    kv_error_t error = {0};
    snprintf(path, sizeof path, "%s/chart.svg", kv_test_folder());
    assert_int_equal(kv_chart_write(&chart, path, &error), KV_OK);
    FILE *file = fopen(path, "re");
    assert_true(fread(text, 1, sizeof text - 1, file) > 0);
    fclose(file);
    assert_non_null(strstr(text, "title &amp; more"));
    assert_non_null(strstr(text, "bound &lt;"));
    assert_non_null(strstr(text, "stroke-dasharray"));
    assert_non_null(strstr(text, "</svg>"));
    assert_int_not_equal(kv_chart_write(&chart, "/nowhere/chart.svg", &error), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_trace_is_read),
        cmocka_unit_test(test_lines_come_in_any_order),
        cmocka_unit_test(test_bad_lines_are_named),
        cmocka_unit_test(test_belady_is_the_bound),
        cmocka_unit_test(test_flat_references),
        cmocka_unit_test(test_hints_are_as_bad_as_asked_for),
        cmocka_unit_test(test_spread_of_a_difference),
        cmocka_unit_test(test_replays_repeat),
        cmocka_unit_test(test_lru_is_near_the_textbook),
        cmocka_unit_test(test_a_tier_too_small_is_refused),
        cmocka_unit_test(test_a_chart_is_drawn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
