/* The gateway and a decode node over real control connections: handshake, a request, a wrong key, a
 * node that goes and comes back. */
#include "wired.h"

#include "base/clock.h"

static decode_t decode;

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void test_request_over_the_wire(void **state)
{
    (void)state;
    enum { REQUESTS = 200 };
    fixture_t fixture;
    char text[8192];
    double times_ms[REQUESTS];
    decode.token = token_of(" tree");
    uint16_t port = decode_start(&decode, KEY, 0);
    gateway_start(&fixture, port);
    assert_true(becomes(&fixture, 200, 5000));
    for (int i = 0; i < REQUESTS; i++) {
        uint64_t start_ns = kv_clock_now_ns();
        assert_int_equal(
            ask(&fixture, "POST", "/v1/completions", "{\"prompt\":[1,2,3],\"max_tokens\":1}", text),
            200);
        times_ms[i] = (double)(kv_clock_now_ns() - start_ns) / KV_NS_PER_MS;
        assert_non_null(strstr(text, "\"text\":\" tree\""));
        assert_non_null(strstr(text, "\"prompt_tokens\":3"));
    }
    qsort(times_ms, REQUESTS, sizeof times_ms[0], compare);
    print_message(
        "a request with a new connection and a node that takes 2 ms: median %.2f ms, p99 %.2f ms\n",
        times_ms[REQUESTS / 2], times_ms[REQUESTS * 99 / 100]);

    /* Gone, and back at the same port. */
    decode_end(&decode);
    assert_true(becomes(&fixture, 503, 3000));
    decode_start(&decode, KEY, port);
    assert_true(becomes(&fixture, 200, 10000));
    gateway_end(&fixture);
    decode_end(&decode);
}

static void test_wrong_key(void **state)
{
    (void)state;
    fixture_t fixture;
    uint16_t port = decode_start(&decode, "fedcba9876543210", 0);
    gateway_start(&fixture, port);
    assert_false(becomes(&fixture, 200, 1000));
    gateway_end(&fixture);
    decode_end(&decode);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_over_the_wire),
        cmocka_unit_test(test_wrong_key),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
