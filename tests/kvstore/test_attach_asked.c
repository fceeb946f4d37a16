/* What is kept, dropped, verified and listed through an attached store: it is done at the service,
 * and what is told is what the service's own store tells. */
#include "attach_bench.h"

enum { DEVICE_SLOTS = 32, LISTED_MAX = 16 };

/* A service with a disk, one client with a device, one without. */
typedef struct {
    service_t service;
    bench_t one, two;
} world_t;

static uint64_t unix_now_ns(void)
{
    const kv_clock_t *clock = kv_clock_real();
    return clock->unix_ns(clock);
}

static void begin_world(world_t *world, const char *name)
{
    memset(world, 0, sizeof *world);
    begin_service(&world->service, name, 64, 8);
    open_client(&world->one, &world->service, "one", DEVICE_SLOTS);
    open_client(&world->two, &world->service, "two", 0);
}

static void end_world(world_t *world)
{
    bench_end(&world->one);
    bench_end(&world->two);
    end_service(&world->service);
}

/* The service's own store, while its thread stands still. */
static kvist_store_t *stop_service(world_t *world)
{
    served_pause(&world->service.served);
    return kv_service_store(world->service.served.service, 0);
}

static void resume_service(world_t *world)
{
    served_resume(&world->service.served);
}

static kv_status_t show_served(world_t *world, const kvist_key_t *key, kvist_object_t *object_out)
{
    kv_status_t status = kvist_store_show(stop_service(world), key, object_out);
    resume_service(world);
    return status;
}

static void expect_same_object(world_t *world, const kvist_key_t *key, bool on_device)
{
    kvist_object_t told, served;
    assert_int_equal(kvist_store_show(world->one.store, key, &told), KV_OK);
    assert_int_equal(show_served(world, key, &served), KV_OK);
    assert_int_equal(told.tiers[KVIST_TIER_DEVICE], on_device);
    assert_false(served.tiers[KVIST_TIER_DEVICE]);
    for (int tier = KVIST_TIER_HOST; tier < KVIST_TIER_COUNT; tier++) {
        assert_int_equal(told.tiers[tier], served.tiers[tier]);
    }
    assert_memory_equal(&told.key, &served.key, sizeof told.key);
    assert_memory_equal(&told.parent, &served.parent, sizeof told.parent);
    assert_memory_equal(&told.name_space, &served.name_space, sizeof told.name_space);
    assert_int_equal(told.position, served.position);
    assert_int_equal(told.token_count, served.token_count);
    assert_int_equal(told.children, served.children);
    assert_int_equal(told.groups, served.groups);
    assert_int_equal(told.bytes, served.bytes);
    assert_int_equal(told.segment, served.segment);
    assert_int_equal(told.segment_offset, served.segment_offset);
    assert_int_equal(told.stored_bytes, served.stored_bytes);
    assert_int_equal(told.created_unix_ns, served.created_unix_ns);
    assert_int_equal(told.used_unix_ns, served.used_unix_ns);
    assert_int_equal(told.expires_unix_ns, served.expires_unix_ns);
    assert_int_equal(told.pin_until_unix_ns, served.pin_until_unix_ns);
    assert_int_equal(told.priority, served.priority);
    assert_int_equal(told.leases, served.leases);
    assert_string_equal(told.origin, served.origin);
    assert_string_equal(told.tenant, served.tenant);
    assert_string_equal(told.arithmetic, served.arithmetic);
}

/* Context 1 by the client with a device, and context 2 by the other; both durable. */
static void store_both(world_t *world)
{
    context_t context;
    request_context(&world->one, 1, 8);
    wait_written(&world->one);
    make_context(&world->two, 2, &context);
    assert_int_equal(store_context(&world->two, &context, 6), 0);
    assert_int_equal(flush(&world->one), KV_OK);
}

static void shown_and_found_as_the_service_does(void **state)
{
    (void)state;
    world_t world;
    kv_error_t error;
    kvist_object_t object;
    begin_world(&world, "shown");
    store_both(&world);
    for (uint32_t context = 1; context <= 2; context++) {
        for (uint32_t block = 0; block < 6; block++) {
            kvist_key_t key = block_key(&world.one, context, block), found;
            char digits[2 * KVIST_KEY_BYTES + 1];
            for (int i = 0; i < KVIST_KEY_BYTES; i++) {
                snprintf(digits + (size_t)2 * i, 3, "%02x", key.bytes[i]);
            }
            expect_same_object(&world, &key, context == 1);
            assert_int_equal(kvist_store_find(world.one.store, digits, &found, &error), KV_OK);
            assert_memory_equal(&found, &key, sizeof key);
            digits[12] = '\0';
            assert_int_equal(kvist_store_find(world.two.store, digits, &found, &error), KV_OK);
            assert_memory_equal(&found, &key, sizeof key);
        }
    }
    kvist_key_t nobodys = block_key(&world.one, 3, 0), found;
    assert_int_equal(kvist_store_show(world.one.store, &nobodys, &object), KV_MISSING);
    assert_int_equal(
        kvist_store_find(world.one.store, "00000000000000000000", &found, &error), KV_MISSING);
    assert_non_null(strstr(error.text, "no stored block"));
    assert_int_equal(kvist_store_find(world.one.store, "short", &found, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "8 to 64"));
    end_world(&world);
}

/* ---- list ---- */

typedef struct {
    kvist_context_t entries[LISTED_MAX];
    size_t count;
} listed_t;

static void note_listed(void *context, const kvist_context_t *entry)
{
    listed_t *listed = context;
    assert_true(listed->count < LISTED_MAX);
    listed->entries[listed->count++] = *entry;
}

static void expect_same_entry(const kvist_context_t *told, const kvist_context_t *served)
{
    assert_memory_equal(&told->key, &served->key, sizeof told->key);
    assert_memory_equal(&told->name_space, &served->name_space, sizeof told->name_space);
    assert_int_equal(told->token_count, served->token_count);
    assert_int_equal(told->bytes, served->bytes);
    assert_int_equal(told->tier, served->tier);
    assert_int_equal(told->used_unix_ns, served->used_unix_ns);
    assert_int_equal(told->expires_unix_ns, served->expires_unix_ns);
    assert_int_equal(told->pin_until_unix_ns, served->pin_until_unix_ns);
    assert_int_equal(told->priority, served->priority);
    assert_string_equal(told->origin, served->origin);
    assert_string_equal(told->tenant, served->tenant);
}

static void listed_as_the_service_does(void **state)
{
    (void)state;
    world_t world;
    begin_world(&world, "listed");
    store_both(&world);
    listed_t told = {.count = 0}, served = {.count = 0};
    kvist_store_list(world.one.store, LISTED_MAX, note_listed, &told);
    kvist_store_list(stop_service(&world), LISTED_MAX, note_listed, &served);
    resume_service(&world);
    assert_int_equal(told.count, 2);
    assert_int_equal(served.count, 2);
    for (size_t i = 0; i < 2; i++) {
        expect_same_entry(&told.entries[i], &served.entries[i]);
    }
    listed_t one = {.count = 0};
    kvist_store_list(world.two.store, 1, note_listed, &one);
    assert_int_equal(one.count, 1);
    expect_same_entry(&one.entries[0], &served.entries[0]);
    listed_t none = {.count = 0};
    kvist_store_list(world.two.store, 0, note_listed, &none);
    assert_int_equal(none.count, 0);
    end_world(&world);
}

/* ---- keep ---- */

static void kept_at_the_service(void **state)
{
    (void)state;
    world_t world;
    kvist_object_t object;
    begin_world(&world, "kept");
    store_both(&world);
    kvist_key_t key = block_key(&world.one, 1, 5), nobodys = block_key(&world.one, 3, 0);
    uint64_t now_ns = unix_now_ns();
    kvist_terms_t terms = {.pin_until_unix_ns = now_ns + 3600ull * KV_NS_PER_S};
    assert_int_equal(kvist_store_keep(world.one.store, &key, &terms), KV_OK);
    assert_int_equal(show_served(&world, &key, &object), KV_OK);
    assert_in_range(object.pin_until_unix_ns, terms.pin_until_unix_ns,
        terms.pin_until_unix_ns + KV_NS_PER_S); /* whole seconds are kept */
    expect_same_object(&world, &key, true);
    terms.pin_until_unix_ns = now_ns - KV_NS_PER_S;
    assert_int_equal(kvist_store_keep(world.one.store, &key, &terms), KV_INVALID);
    terms.pin_until_unix_ns = now_ns + 3600ull * KV_NS_PER_S;
    assert_int_equal(kvist_store_keep(world.one.store, &nobodys, &terms), KV_MISSING);
    expect_same_object(&world, &key, true);
    end_world(&world);
}

/* ---- drop ---- */

static void dropped_here_and_at_the_service(void **state)
{
    (void)state;
    world_t world;
    kvist_object_t object;
    begin_world(&world, "dropped");
    store_both(&world);
    outcome_t outcome = drop(&world.one, 1, 3, true);
    assert_int_equal(outcome.status, KV_OK);
    assert_int_equal(outcome.match.block_count, 5); /* blocks 3 to 7 */
    kvist_key_t key = block_key(&world.one, 1, 3);
    assert_int_equal(show_served(&world, &key, &object), KV_MISSING);
    assert_int_equal(kvist_store_show(world.one.store, &key, &object), KV_MISSING);
    assert_int_equal(found_blocks(&world.one, 1, 8), 3);
    assert_int_equal(drop(&world.one, 1, 3, false).status, KV_MISSING);
    assert_int_equal(drop(&world.two, 1, 3, false).status, KV_MISSING);
    end_world(&world);
}

/* Another client dropped it: this one's copy is found by its key, and dropped, like any other. */
static void what_the_service_lost_is_dropped_from_the_device(void **state)
{
    (void)state;
    world_t world;
    kv_error_t error;
    kvist_key_t found;
    begin_world(&world, "device");
    store_both(&world);
    assert_int_equal(drop(&world.two, 1, 3, false).match.block_count, 5);
    assert_int_equal(found_blocks(&world.two, 1, 8), 3);
    kvist_key_t key = block_key(&world.one, 1, 3);
    char digits[2 * 8 + 1];
    for (int i = 0; i < 8; i++) {
        snprintf(digits + (size_t)2 * i, 3, "%02x", key.bytes[i]);
    }
    assert_int_equal(kvist_store_find(world.two.store, digits, &found, &error), KV_MISSING);
    assert_int_equal(kvist_store_find(world.one.store, digits, &found, &error), KV_OK);
    assert_memory_equal(&found, &key, sizeof key);
    outcome_t outcome = drop(&world.one, 1, 3, true);
    assert_int_equal(outcome.status, KV_OK);
    assert_int_equal(outcome.match.block_count, 5);
    assert_int_equal(kvist_store_find(world.one.store, digits, &found, &error), KV_MISSING);
    assert_int_equal(found_blocks(&world.one, 1, 8), 3);
    end_world(&world);
}

/* Bytes that a lease holds on the device are not said to be overwritten. */
static void what_a_lease_holds_is_not_erased(void **state)
{
    (void)state;
    world_t world;
    kvist_match_t match;
    uint32_t tokens[8 * BLOCK_TOKENS];
    begin_world(&world, "held");
    store_both(&world);
    make_tokens(1, 0, tokens, 8 * BLOCK_TOKENS);
    kvist_lease_t *lease = serve(&world.one, tokens, 8, &match);
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 8);
    assert_int_equal(drop(&world.one, 1, 3, true).status, KV_BUSY);
    kvist_lease_release(lease);
    assert_int_equal(drop(&world.one, 1, 3, true).status, KV_OK);
    assert_int_equal(found_blocks(&world.one, 1, 8), 3);
    end_world(&world);
}

/* A tenant's blocks leave the device; what the service has is not a client's to drop. */
static void a_tenant_is_dropped_from_the_device_alone(void **state)
{
    (void)state;
    world_t world;
    outcome_t outcome = {0};
    begin_world(&world, "tenant");
    world.one.tenant = "ann";
    store_both(&world);
    assert_int_equal(
        kvist_store_drop_tenant(world.one.store, "bob", note_dropped, &outcome), KV_MISSING);
    assert_int_equal(
        kvist_store_drop_tenant(world.one.store, "ann", note_dropped, &outcome), KV_OK);
    assert_false(outcome.ended);
    wait_for(&world.one, &outcome);
    assert_int_equal(outcome.status, KV_OK);
    assert_int_equal(outcome.match.block_count, 8);
    kvist_match_t match;
    uint32_t tokens[8 * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, 8 * BLOCK_TOKENS);
    kvist_lease_release(match_tokens(&world.one, tokens, 8 * BLOCK_TOKENS, &match));
    assert_int_equal(match.tier_blocks[KVIST_TIER_DEVICE], 0);
    assert_int_equal(match.tier_blocks[KVIST_TIER_HOST], 8);
    end_world(&world);
}

/* ---- verify, quota ---- */

typedef struct {
    bool ended;
    kv_status_t status;
    kvist_verify_t state;
    uint32_t progress_count;
} verified_t;

static void note_progress(void *context, const kvist_verify_t *state)
{
    verified_t *verified = context;
    assert_false(verified->ended);
    assert_true(state->object_count <= state->object_total);
    verified->progress_count++;
}

static void note_verified(void *context, kv_status_t status, const kvist_verify_t *state)
{
    verified_t *verified = context;
    assert_false(verified->ended);
    verified->ended = true;
    verified->status = status;
    verified->state = *state;
}

static verified_t verify(bench_t *bench)
{
    verified_t verified = {0};
    assert_int_equal(
        kvist_store_verify(bench->store, note_progress, note_verified, &verified), KV_OK);
    assert_false(verified.ended);
    uint64_t end_ns = patience_ns();
    while (!verified.ended) {
        bench_wait(bench, end_ns);
    }
    return verified;
}

static void verified_at_the_service(void **state)
{
    (void)state;
    world_t world;
    begin_world(&world, "verified");
    store_both(&world);
    verified_t verified = verify(&world.one);
    assert_int_equal(verified.status, KV_OK);
    assert_int_equal(verified.state.damaged_objects + verified.state.failed_objects, 0);
    kvist_stats_t stats;
    kvist_store_stats(stop_service(&world), &stats);
    resume_service(&world);
    uint64_t count =
        stats.tiers[KVIST_TIER_HOST].object_count + stats.tiers[KVIST_TIER_DISK].object_count;
    assert_int_equal(count, 28); /* 14 in each */
    assert_int_equal(verified.state.object_count, count);
    assert_int_equal(verified.state.object_total, count);
    verified_t again = verify(&world.two);
    assert_int_equal(again.status, KV_OK);
    assert_int_equal(again.state.object_count, count);
    assert_int_equal(again.state.bytes, verified.state.bytes);
    end_world(&world);
}

/* Without the service each call ends, with an error that says so, and the device goes on. */
static void asked_while_the_service_is_away(void **state)
{
    (void)state;
    world_t world;
    kv_error_t error;
    kvist_object_t object;
    kvist_key_t found;
    listed_t listed = {.count = 0};
    verified_t verified = {0};
    outcome_t outcome = {0};
    begin_world(&world, "away");
    store_both(&world);
    served_end(&world.service.served);
    kvist_key_t key = block_key(&world.one, 1, 3), other = block_key(&world.one, 2, 3);
    kvist_terms_t terms = {.expires_unix_ns = unix_now_ns() + 3600ull * KV_NS_PER_S};
    uint64_t end_ns = patience_ns();
    while (kvist_store_attached_to(world.one.store) != NULL) {
        bench_wait(&world.one, end_ns);
    }
    assert_int_equal(kvist_store_keep(world.one.store, &key, &terms), KV_PEER_LOST);
    assert_int_equal(
        kvist_store_drop(world.one.store, &key, false, note_dropped, &outcome), KV_PEER_LOST);
    assert_int_equal(
        kvist_store_verify(world.one.store, NULL, note_verified, &verified), KV_PEER_LOST);
    assert_int_equal(kvist_store_set_disk_bytes(world.one.store, 64 << 20, &error), KV_PEER_LOST);
    assert_non_null(strstr(error.text, "does not answer"));
    assert_int_equal(kvist_store_find(world.one.store, "0123456789", &found, &error), KV_PEER_LOST);
    assert_non_null(strstr(error.text, "does not answer"));
    assert_int_equal(kvist_store_show(world.one.store, &key, &object), KV_OK);
    assert_true(object.tiers[KVIST_TIER_DEVICE]);
    assert_int_equal(kvist_store_show(world.one.store, &other, &object), KV_PEER_LOST);
    kvist_store_list(world.one.store, LISTED_MAX, note_listed, &listed);
    assert_int_equal(listed.count, 0);
    assert_false(outcome.ended || verified.ended);
    served_start(&world.service.served);
    end_world(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shown_and_found_as_the_service_does),
        cmocka_unit_test(listed_as_the_service_does),
        cmocka_unit_test(kept_at_the_service),
        cmocka_unit_test(dropped_here_and_at_the_service),
        cmocka_unit_test(what_the_service_lost_is_dropped_from_the_device),
        cmocka_unit_test(what_a_lease_holds_is_not_erased),
        cmocka_unit_test(a_tenant_is_dropped_from_the_device_alone),
        cmocka_unit_test(verified_at_the_service),
        cmocka_unit_test(asked_while_the_service_is_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
