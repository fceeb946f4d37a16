/* What a client is told of what was promised: from a node's answer, as pure functions. */
#include "gateway/keeping/keeping.h"
#include "gateway/request.h"
#include "testing/testing.h"

#include <string.h>

#define NOW_MS 1800000000000ull

static Kvist__Wire__Granted granted(uint32_t token_count, uint64_t pin_ms, uint64_t expires_ms)
{
    Kvist__Wire__Granted answer = KVIST__WIRE__GRANTED__INIT;
    answer.token_count = token_count;
    answer.pin_until_unix_ms = pin_ms;
    answer.expires_unix_ms = expires_ms;
    answer.why_not = token_count > 0 ? "" : "pins take all the room that they may";
    return answer;
}

/* Four breakpoints: before everything, granted, refused, a limit. */
static void each_breakpoint_is_answered(void **state)
{
    (void)state;
    kv_request_t request = {.api.breakpoint_count = 4};
    request.api.breakpoints[1].token_count = 100;
    request.api.breakpoints[2].token_count = 200;
    request.api.breakpoints[3].token_count = 300;
    Kvist__Wire__Granted answers[] = {
        granted(96, NOW_MS + 300500, 0), granted(0, 0, 0), granted(288, 0, NOW_MS + 60000)};
    Kvist__Wire__Granted *list[] = {&answers[0], &answers[1], &answers[2]};
    Kvist__Wire__Usage told = KVIST__WIRE__USAGE__INIT;
    told.n_granted = 3;
    told.granted = list;
    kv_usage_t usage = {.cached_tokens = {[KV_TIER_HOST] = 64}};
    kv_keeping_grants(&request, &told, &usage);
    assert_non_null(usage.grants[0].why_not);
    assert_int_equal(usage.grants[0].token_count, 0);
    assert_null(usage.grants[1].why_not);
    assert_int_equal(usage.grants[1].token_count, 96);
    assert_int_equal(usage.grants[1].created_tokens, 32);
    assert_true(usage.grants[1].until_unix_ms == NOW_MS + 300500);
    assert_string_equal(usage.grants[2].why_not, answers[1].why_not);
    assert_int_equal(usage.grants[2].created_tokens, 0);
    assert_int_equal(usage.grants[3].created_tokens, 224);
    assert_true(usage.grants[3].until_unix_ms == NOW_MS + 60000);
}

static void a_node_that_says_nothing_promised_nothing(void **state)
{
    (void)state;
    kv_request_t request = {.api.breakpoint_count = 1};
    request.api.breakpoints[0].token_count = 100;
    Kvist__Wire__Usage told = KVIST__WIRE__USAGE__INIT;
    kv_usage_t usage = {0};
    kv_keeping_grants(&request, &told, &usage);
    assert_non_null(usage.grants[0].why_not);
    usage = (kv_usage_t){0};
    kv_keeping_grants(&request, NULL, &usage);
    assert_non_null(usage.grants[0].why_not);
    assert_int_equal(kv_keeping_least_ttl_s(&usage, 1, NOW_MS), 0);
}

static void the_least_of_several_is_told(void **state)
{
    (void)state;
    kv_usage_t usage = {0};
    usage.grants[0] = (kv_grant_t){.token_count = 16, .until_unix_ms = NOW_MS + 3600000};
    usage.grants[1] = (kv_grant_t){.token_count = 32, .until_unix_ms = NOW_MS + 300999};
    assert_int_equal(kv_keeping_least_ttl_s(&usage, 1, NOW_MS), 3600);
    assert_int_equal(kv_keeping_least_ttl_s(&usage, 2, NOW_MS), 300);
    assert_int_equal(kv_keeping_least_ttl_s(&usage, 2, NOW_MS + 301000), 0); /* over */
    usage.grants[2].why_not = "no";
    assert_int_equal(kv_keeping_least_ttl_s(&usage, 3, NOW_MS), 0);
    assert_int_equal(kv_keeping_least_ttl_s(&usage, 0, NOW_MS), 0);
}

static void the_slowest_tier_is_told(void **state)
{
    (void)state;
    kv_usage_t usage = {0};
    assert_string_equal(kv_keeping_slowest_tier(&usage), "none");
    usage.cached_tokens[KV_TIER_DEVICE] = 32;
    assert_string_equal(kv_keeping_slowest_tier(&usage), "device");
    usage.cached_tokens[KV_TIER_DISK] = 16;
    assert_string_equal(kv_keeping_slowest_tier(&usage), "disk");
    usage.cached_tokens[KV_TIER_REMOTE] = 16;
    assert_string_equal(kv_keeping_slowest_tier(&usage), "remote");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_breakpoint_is_answered),
        cmocka_unit_test(a_node_that_says_nothing_promised_nothing),
        cmocka_unit_test(the_least_of_several_is_told),
        cmocka_unit_test(the_slowest_tier_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
