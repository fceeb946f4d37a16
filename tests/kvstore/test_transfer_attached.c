/* The tests of loading and storing through the caller's memory, over an attached store: each bench
 * is a client of a service of its own, which has the host and disk tier. Left out is what looks
 * into the store's own structures or turns its clock. */
#include "kvstore/attach/attached_internal.h"
#include "service_bench.h"

/* The benches that are open, and what they said before they were attached. */
static struct {
    const bench_t *bench;
    kvist_store_params_t params;
    served_t served;
} open_benches[4];

static int find_bench(const bench_t *bench)
{
    for (int i = 0; i < 4; i++) {
        if (open_benches[i].bench == bench) {
            return i;
        }
    }
    fail_msg("no place for another bench");
    return -1;
}

static void attached_open(bench_t *bench)
{
    int at = find_bench(NULL);
    open_benches[at].bench = bench;
    open_benches[at].params = bench->params;
    served_init(&open_benches[at].served, &bench->params);
    served_start(&open_benches[at].served);
    bench->params = (kvist_store_params_t){
        .layout = bench->params.layout,
        .device = bench->params.device,
        .device_arena = bench->params.device_arena,
        .device_slot_count = bench->params.device_slot_count,
        .origin = bench->params.origin,
        .attach = open_benches[at].served.path,
    };
    bench_open(bench);
}

static void attached_close(bench_t *bench)
{
    int at = find_bench(bench);
    bench_close(bench);
    served_end(&open_benches[at].served);
    bench->params = open_benches[at].params;
    open_benches[at].bench = NULL;
}

static void attached_end(bench_t *bench)
{
    if (bench->store != NULL) {
        attached_close(bench);
    }
    free(bench->params.device_arena);
}

/* Figures as they are now. */
static kvist_stats_t attached_stats(bench_t *bench)
{
    kv_attached_t *attached = kv_attached_of(bench->store);
    uint64_t end_ns = patience_ns();
    while (attached->telling) {
        bench_wait(bench, end_ns);
    }
    attached->told_ns = 0;
    bench_stats(bench);
    while (attached->telling) {
        bench_wait(bench, end_ns);
    }
    return bench_stats(bench);
}

/* The service's own structures are its thread's: what must hold of them is seen when it ends. */
static void attached_accounts(const bench_t *bench)
{
    assert_non_null(bench->params.attach);
}

int transfer_main(void);

#define bench_open attached_open
#define bench_close attached_close
#define bench_end attached_end
#define bench_stats attached_stats
#define check_accounts attached_accounts
#define main transfer_main
#include "test_transfer.c"
#undef main

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_stored_is_loaded_from_every_tier),
        cmocka_unit_test(pieces_may_have_any_sizes),
        cmocka_unit_test(one_layer_or_head_is_loaded_alone),
        cmocka_unit_test(what_is_asked_wrongly_is_refused),
        cmocka_unit_test(a_context_may_be_larger_than_host_memory),
        cmocka_unit_test(what_another_lease_stores_is_pending),
        cmocka_unit_test(two_leases_may_store_the_same_blocks),
        cmocka_unit_test(a_release_cancels_what_is_under_way),
        cmocka_unit_test(a_close_waits_for_what_a_released_lease_has_under_way),
        cmocka_unit_test(what_is_read_again_comes_up_to_host_memory),
        cmocka_unit_test(a_hit_is_what_all_groups_can_serve),
        cmocka_unit_test(background_goes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
