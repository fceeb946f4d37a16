/* Who gets the next place at a node. */
#include "testing/testing.h"

#include "base/clock.h"
#include "gateway/access/admission.h"

#include <string.h>

enum { MANY = 400 };

#define SECOND ((uint64_t)KV_NS_PER_S)

static void enter(kv_admission_t *admission, kv_ticket_t *ticket, kv_share_t *share,
    kvist_priority_t priority, uint64_t cost)
{
    kv_admission_enter(admission, ticket, share, priority, cost, ticket);
}

/* The next one, with one place more than are taken. */
static kv_ticket_t *next(kv_admission_t *admission)
{
    return kv_admission_next(admission, admission->place_count + 1, SECOND);
}

static void test_places_and_order(void **state)
{
    (void)state;
    kv_admission_t admission = {0};
    kv_share_t share = {0};
    kv_ticket_t tickets[3] = {0};
    for (int i = 0; i < 3; i++) {
        enter(&admission, &tickets[i], &share, KVIST_PRIORITY_INTERACTIVE, 100000);
    }
    assert_ptr_equal(kv_admission_next(&admission, 2, 1), &tickets[0]);
    assert_ptr_equal(kv_admission_next(&admission, 2, 2), &tickets[1]);
    assert_null(kv_admission_next(&admission, 2, 3));
    kv_admission_leave(&admission, &tickets[0]);
    kv_admission_leave(&admission, &tickets[0]); /* once more is no harm */
    assert_ptr_equal(kv_admission_next(&admission, 2, 4), &tickets[2]);
    kv_admission_leave(&admission, &tickets[1]);
    kv_admission_leave(&admission, &tickets[2]);
    assert_int_equal(admission.place_count, 0);
    assert_int_equal(share.place_count, 0);
    assert_null(kv_admission_next(&admission, 2, 5));
}

static void test_classes_in_order(void **state)
{
    (void)state;
    kv_admission_t admission = {0};
    kv_share_t share = {0}, other = {0};
    kv_ticket_t background = {0}, batch = {0}, interactive = {0};
    enter(&admission, &background, &other, KVIST_PRIORITY_BACKGROUND, 1);
    enter(&admission, &batch, &share, KVIST_PRIORITY_BATCH, 50000);
    enter(&admission, &interactive, &share, KVIST_PRIORITY_INTERACTIVE, 100000);
    assert_ptr_equal(next(&admission), &interactive);
    assert_ptr_equal(next(&admission), &batch);
    /* The interactive one waits at its node for its first token: its queue is not empty. */
    assert_null(next(&admission));
    kv_admission_started(&admission, &interactive);
    assert_ptr_equal(next(&admission), &background);
    kv_admission_leave(&admission, &interactive);
    kv_admission_leave(&admission, &batch);
    kv_admission_leave(&admission, &background);
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        assert_int_equal(admission.starting_counts[i], 0);
        assert_int_equal(admission.waiting_counts[i], 0);
    }
}

/* One tenant floods, another asks now and then: the other's requests come in turn, and over time
 * each gets the same number of tokens, however they are cut. */
static void test_fair_among_tenants(void **state)
{
    (void)state;
    static kv_ticket_t small[MANY], large[MANY / 10];
    kv_admission_t admission = {0};
    kv_share_t many = {0}, few = {0};
    for (int i = 0; i < MANY; i++) {
        small[i] = (kv_ticket_t){0};
        enter(&admission, &small[i], &many, KVIST_PRIORITY_BATCH, 300);
    }
    for (int i = 0; i < MANY / 10; i++) {
        large[i] = (kv_ticket_t){0};
        enter(&admission, &large[i], &few, KVIST_PRIORITY_BATCH, 3000);
    }
    uint64_t spent_many = 0, spent_few = 0;
    for (int i = 0; i < MANY; i++) {
        kv_ticket_t *ticket = next(&admission);
        assert_non_null(ticket);
        *(ticket->share == &many ? &spent_many : &spent_few) += ticket->cost;
        kv_admission_leave(&admission, ticket);
        uint64_t apart = spent_many > spent_few ? spent_many - spent_few : spent_few - spent_many;
        if (many.lanes[KVIST_PRIORITY_BATCH].count > 0 &&
            few.lanes[KVIST_PRIORITY_BATCH].count > 0) {
            assert_true(apart <= 3000 + 2 * 1024);
        }
    }
    assert_true(spent_few >= 90000);
}

static void test_a_newcomer_need_not_wait_for_a_flood(void **state)
{
    (void)state;
    static kv_ticket_t flood[MANY];
    kv_admission_t admission = {0};
    kv_share_t many = {0}, one = {0};
    kv_ticket_t ticket = {0};
    for (int i = 0; i < MANY; i++) {
        flood[i] = (kv_ticket_t){0};
        enter(&admission, &flood[i], &many, KVIST_PRIORITY_INTERACTIVE, 500);
    }
    assert_non_null(next(&admission));
    enter(&admission, &ticket, &one, KVIST_PRIORITY_INTERACTIVE, 500);
    int before = 0;
    while (next(&admission) != &ticket) {
        before++;
    }
    assert_true(before <= 4);
}

static void test_a_tenant_at_its_bound_is_passed_over(void **state)
{
    (void)state;
    kv_admission_t admission = {0};
    kv_share_t bounded = {.places_max = 1}, free = {0};
    kv_ticket_t mine[2] = {0}, theirs = {0};
    enter(&admission, &mine[0], &bounded, KVIST_PRIORITY_INTERACTIVE, 10);
    enter(&admission, &mine[1], &bounded, KVIST_PRIORITY_INTERACTIVE, 10);
    enter(&admission, &theirs, &free, KVIST_PRIORITY_BATCH, 10);
    assert_ptr_equal(next(&admission), &mine[0]);
    assert_ptr_equal(next(&admission), &theirs);
    assert_null(next(&admission));
    kv_admission_leave(&admission, &mine[0]);
    assert_ptr_equal(next(&admission), &mine[1]);
}

static void test_who_goes_for_a_newcomer(void **state)
{
    (void)state;
    kv_admission_t admission = {0};
    kv_share_t a = {0}, b = {0};
    kv_ticket_t tickets[4] = {0}, late = {0};
    assert_null(kv_admission_displace(&admission, &b, KVIST_PRIORITY_INTERACTIVE));
    for (int i = 0; i < 3; i++) {
        enter(&admission, &tickets[i], &a, KVIST_PRIORITY_INTERACTIVE, 10);
    }
    /* The last one of who has most; but a newcomer of the same tenant gains nothing. */
    assert_ptr_equal(
        kv_admission_displace(&admission, &b, KVIST_PRIORITY_INTERACTIVE), &tickets[2]);
    assert_null(kv_admission_displace(&admission, &a, KVIST_PRIORITY_INTERACTIVE));
    assert_null(kv_admission_displace(&admission, &b, KVIST_PRIORITY_BATCH));
    /* A worse class first. */
    enter(&admission, &tickets[3], &b, KVIST_PRIORITY_BATCH, 10);
    enter(&admission, &late, &b, KVIST_PRIORITY_BACKGROUND, 10);
    assert_ptr_equal(kv_admission_displace(&admission, &a, KVIST_PRIORITY_INTERACTIVE), &late);
    kv_admission_leave(&admission, &late);
    assert_ptr_equal(
        kv_admission_displace(&admission, &a, KVIST_PRIORITY_INTERACTIVE), &tickets[3]);
}

static void test_the_estimate_follows_the_pace(void **state)
{
    (void)state;
    static kv_ticket_t tickets[MANY];
    kv_admission_t admission = {0};
    kv_share_t share = {0};
    assert_true(kv_admission_wait_ns(&admission, KVIST_PRIORITY_BATCH) == SECOND);
    for (int i = 0; i < MANY; i++) {
        tickets[i] = (kv_ticket_t){0};
        enter(&admission, &tickets[i], &share, KVIST_PRIORITY_INTERACTIVE, 10);
    }
    for (uint64_t i = 1; i <= MANY - 19; i++) {
        assert_non_null(kv_admission_next(&admission, MANY, i * SECOND / 2));
    }
    /* 19 wait and one comes: half a second each. */
    uint64_t wait_ns = kv_admission_wait_ns(&admission, KVIST_PRIORITY_INTERACTIVE);
    assert_true(wait_ns > 9 * SECOND && wait_ns < 11 * SECOND);
}

/* Any order of calls leaves the counts right, and everybody comes out. */
static void test_at_random(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed(), now_ns = 0;
    static kv_ticket_t tickets[MANY];
    memset(tickets, 0, sizeof tickets);
    kv_admission_t admission = {0};
    kv_share_t shares[5] = {{0}, {.places_max = 2}, {.places_max = 7}, {0}, {0}};
    for (int step = 0; step < 20000; step++) {
        kv_ticket_t *ticket = &tickets[kv_test_random(&seed) % MANY];
        switch (kv_test_random(&seed) % 4) {
        case 0:
            if (ticket->state == KV_TICKET_OUTSIDE) {
                enter(&admission, ticket, &shares[kv_test_random(&seed) % 5],
                    (kvist_priority_t)(kv_test_random(&seed) % 3), kv_test_random(&seed) % 9000);
            }
            break;
        case 1:
            kv_admission_leave(&admission, ticket);
            break;
        case 2:
            kv_admission_started(&admission, ticket);
            break;
        default:
            kv_admission_next(&admission, 40, now_ns += 1000);
        }
        assert_true(admission.place_count <= 40);
        assert_true(shares[1].place_count <= 2 && shares[2].place_count <= 7);
    }
    for (int round = 0; round < MANY; round++) {
        for (int i = 0; i < MANY; i++) {
            if (tickets[i].state > KV_TICKET_WAITING) {
                kv_admission_leave(&admission, &tickets[i]);
            }
        }
        while (kv_admission_next(&admission, 40, now_ns += 1000) != NULL) {
        }
    }
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(tickets[i].state, KV_TICKET_OUTSIDE);
    }
    assert_int_equal(admission.place_count, 0);
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        assert_int_equal(admission.starting_counts[i] + admission.waiting_counts[i], 0);
        assert_null(admission.turns[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places_and_order),
        cmocka_unit_test(test_classes_in_order),
        cmocka_unit_test(test_fair_among_tenants),
        cmocka_unit_test(test_a_newcomer_need_not_wait_for_a_flood),
        cmocka_unit_test(test_a_tenant_at_its_bound_is_passed_over),
        cmocka_unit_test(test_who_goes_for_a_newcomer),
        cmocka_unit_test(test_the_estimate_follows_the_pace),
        cmocka_unit_test(test_at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
