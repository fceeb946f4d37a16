/* Promises and spills through an attached store: they hold at the kvist-store, which other clients
 * ask too, and are asked for once what was sealed has been written through. */
#include "attach_bench.h"

enum { DEVICE_SLOTS = 32, CONTEXT_BLOCKS = 8 };

typedef struct {
    bool ended;
    kvist_promise_t promise;
} promised_t;

typedef struct {
    bool ended;
    kv_status_t status;
    uint64_t object_count, bytes;
} spilled_t;

static void note_promised(void *context, const kvist_promise_t *promise)
{
    *(promised_t *)context = (promised_t){true, *promise};
}

static void note_spilled(void *context, kv_status_t status, uint64_t object_count, uint64_t bytes)
{
    *(spilled_t *)context = (spilled_t){true, status, object_count, bytes};
}

static uint64_t in_s(uint64_t seconds)
{
    const kv_clock_t *clock = kv_clock_real();
    return (clock->unix_ns(clock) / KV_NS_PER_S + seconds) * KV_NS_PER_S;
}

static void wait_until(bench_t *bench, const bool *ended)
{
    uint64_t end_ns = patience_ns();
    while (!*ended) {
        bench_wait(bench, end_ns);
    }
}

static kvist_promise_t promise(bench_t *bench, uint32_t context, uint32_t block, uint64_t pin_ns)
{
    promised_t promised = {0};
    kvist_promise_t unused;
    kvist_key_t key = block_key(bench, context, block);
    kvist_terms_t terms = {.pin_until_unix_ns = pin_ns};
    assert_false(
        kvist_store_promise(bench->store, &key, &terms, note_promised, &promised, &unused));
    assert_false(promised.ended);
    wait_until(bench, &promised.ended);
    return promised.promise;
}

static void a_promise_of_what_was_just_sealed_holds_for_all_clients(void **state)
{
    (void)state;
    service_t service;
    bench_t one, two;
    kvist_object_t object;
    begin_service(&service, "promised", 64, 8);
    open_client(&one, &service, "one", DEVICE_SLOTS);
    open_client(&two, &service, "two", DEVICE_SLOTS);
    uint64_t hour_ns = in_s(3600), soon_ns = in_s(300);
    request_context(&one, 1, CONTEXT_BLOCKS); /* on its way */
    kvist_promise_t held = promise(&one, 1, CONTEXT_BLOCKS - 1, hour_ns);
    assert_int_equal(held.status, KV_OK);
    assert_int_equal(held.pin_until_unix_ns, hour_ns);
    held = promise(&two, 1, CONTEXT_BLOCKS - 1, soon_ns);
    assert_int_equal(held.status, KV_OK);
    assert_int_equal(held.pin_until_unix_ns, hour_ns);
    kvist_key_t key = block_key(&two, 1, 0);
    assert_int_equal(kvist_store_show(two.store, &key, &object), KV_OK);
    assert_int_equal(object.pin_until_unix_ns, hour_ns);
    assert_int_equal(promise(&two, 2, 0, hour_ns).status, KV_MISSING);
    bench_end(&one);
    bench_end(&two);
    end_service(&service);
}

static void a_spill_leaves_the_device_and_the_service_s_memory(void **state)
{
    (void)state;
    service_t service;
    bench_t bench;
    spilled_t spilled = {0};
    uint32_t tokens[CONTEXT_BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    begin_service(&service, "spilled", 64, 8);
    open_client(&bench, &service, "one", DEVICE_SLOTS);
    make_tokens(1, 0, tokens, CONTEXT_BLOCKS * BLOCK_TOKENS);
    request(&bench, tokens, CONTEXT_BLOCKS);
    kvist_key_t key = block_key(&bench, 1, CONTEXT_BLOCKS - 1);
    kvist_store_spill(bench.store, &key, note_spilled, &spilled);
    wait_until(&bench, &spilled.ended);
    assert_int_equal(spilled.status, KV_OK);
    assert_int_equal(spilled.object_count, CONTEXT_BLOCKS);
    assert_int_equal(bench_stats(&bench).tiers[KVIST_TIER_DEVICE].object_count, 0);
    kvist_lease_release(match_tokens(&bench, tokens, CONTEXT_BLOCKS * BLOCK_TOKENS, &match));
    assert_int_equal(match.tier_blocks[KVIST_TIER_DISK], CONTEXT_BLOCKS);
    match = request(&bench, tokens, CONTEXT_BLOCKS); /* proves the bytes */
    assert_int_equal(match.block_count, CONTEXT_BLOCKS);
    bench_end(&bench);
    end_service(&service);
}

/* Nobody is there to ask: said, not waited for. */
static void without_the_service_they_are_refused(void **state)
{
    (void)state;
    service_t service;
    bench_t bench;
    spilled_t spilled = {0};
    begin_service(&service, "alone", 64, 8);
    open_client(&bench, &service, "one", DEVICE_SLOTS);
    request_context(&bench, 1, CONTEXT_BLOCKS);
    wait_written(&bench);
    served_pause(&service.served);
    kv_link_lose(kv_attached_of(bench.store), KV_PEER_LOST, "for the test");
    assert_int_equal(promise(&bench, 1, CONTEXT_BLOCKS - 1, in_s(300)).status, KV_PEER_LOST);
    kvist_key_t key = block_key(&bench, 1, CONTEXT_BLOCKS - 1);
    kvist_store_spill(bench.store, &key, note_spilled, &spilled);
    wait_until(&bench, &spilled.ended);
    assert_int_equal(spilled.status, KV_PEER_LOST);
    served_resume(&service.served);
    bench_end(&bench);
    end_service(&service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_promise_of_what_was_just_sealed_holds_for_all_clients),
        cmocka_unit_test(a_spill_leaves_the_device_and_the_service_s_memory),
        cmocka_unit_test(without_the_service_they_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
