/* Background work beside interactive work, over the same store: what it takes from the latter. */
#include "harness.h"

enum {
    HOST_SLOTS = 512,
    DEVICE_SLOTS = 64,
    CONTEXTS = 120,
    BLOCKS = 8,
    REQUESTS = 3000,
    WARM_UP = 1000,
    BACKGROUND_CONTEXT = 1 << 20, /* number of the first: each comes once */
};

typedef struct {
    kvist_policy_t policy;
    bool device; /* an engine's slots in front of the host tier; else through the caller's memory */
    bool beside; /* other work runs beside what is counted */
    kvist_priority_t priority; /* of that */
} setting_t;

typedef struct {
    bool ended;
} ended_t;

static void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    (void)status;
    (void)block_count;
    ((ended_t *)context)->ended = true;
}

static void put(bench_t *bench, kvist_lease_t *lease, uint32_t found)
{
    static char bytes[BLOCKS * 2048];
    kvist_piece_t piece = {bytes, (BLOCKS - found) * block_bytes(bench)};
    kvist_put_t asked = {
        .first_block = found, .block_count = BLOCKS - found, .deadline_ns = kv_clock_now_ns()};
    ended_t ended = {0};
    assert_int_equal(kvist_lease_store(lease, &asked, &piece, 1, note_stored, &ended), KV_OK);
    uint64_t end_ns = patience_ns();
    while (!ended.ended) {
        bench_wait(bench, end_ns);
    }
}

/* One context is asked for, and what is missing is stored; the blocks that were found. */
static uint32_t ask(
    bench_t *bench, const setting_t *setting, uint32_t context, kvist_priority_t priority)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    kvist_lease_t *lease;
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .terms.priority = priority};
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    if (setting->device) {
        outcome_t outcome = prepare(bench, lease, BLOCKS);
        assert_int_equal(outcome.status, KV_OK);
        for (uint32_t block = outcome.match.block_count; block < BLOCKS; block++) {
            kvist_lease_seal(lease, tokens + (size_t)block * BLOCK_TOKENS, NULL, "t");
        }
    } else {
        put(bench, lease, match.block_count);
    }
    kvist_lease_release(lease);
    return match.block_count;
}

/* A few contexts are asked for often, most of them seldom. */
static uint32_t next_context(uint64_t *random)
{
    uint32_t value = kv_test_random(random) % CONTEXTS;
    return kv_test_random(random) % 2 == 0 ? value % 12 : value;
}

static double interactive_hit_rate(const setting_t *setting)
{
    bench_t bench;
    bench_init(&bench, "classes", setting->device ? DEVICE_SLOTS : 0);
    bench_with_host(&bench, HOST_SLOTS);
    if (!setting->device) {
        bench.params.device = NULL;
    }
    bench.params.policy = setting->policy;
    bench.seams.threadless = true;
    bench_open(&bench);
    uint64_t random = 1;
    uint32_t found = 0, beside = 0;
    for (uint32_t i = 0; i < REQUESTS; i++) {
        found += ask(&bench, setting, next_context(&random), KVIST_PRIORITY_INTERACTIVE) *
                 (i >= WARM_UP);
        /* Twice the capacity comes once, while what is counted is asked for. */
        if (i >= WARM_UP && setting->beside &&
            i % ((REQUESTS - WARM_UP) * BLOCKS / (2 * HOST_SLOTS)) == 0) {
            ask(&bench, setting, BACKGROUND_CONTEXT + beside++, setting->priority);
        }
    }
    check_accounts(&bench);
    bench_end(&bench);
    return (double)found / ((REQUESTS - WARM_UP) * BLOCKS);
}

static void background_work_takes_less_than_a_point(void **state)
{
    (void)state;
    for (int policy = 0; policy < KVIST_POLICY_COUNT; policy++) {
        for (int device = 0; device < 2; device++) {
            setting_t setting = {.policy = (kvist_policy_t)policy, .device = device != 0};
            double alone = interactive_hit_rate(&setting);
            for (int beside = KVIST_PRIORITY_BATCH; beside < KVIST_PRIORITY_COUNT; beside++) {
                setting.beside = true;
                setting.priority = (kvist_priority_t)beside;
                double rate = interactive_hit_rate(&setting);
                print_message("%s %s class %d: %.4f alone, %.4f beside it\n",
                    kvist_policy_name(setting.policy), device != 0 ? "device" : "host", beside,
                    alone, rate);
                assert_true(alone > 0.5 && alone < 0.95);
                assert_true(rate > alone - 0.01);
            }
        }
    }
}

/* The check can fail: as much work of the same class takes far more. */
static void as_much_interactive_work_takes_more(void **state)
{
    (void)state;
    setting_t setting = {.policy = KVIST_POLICY_LRU};
    double alone = interactive_hit_rate(&setting);
    setting.beside = true;
    assert_true(interactive_hit_rate(&setting) < alone - 0.02);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(background_work_takes_less_than_a_point),
        cmocka_unit_test(as_much_interactive_work_takes_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
