/* Connections whose request's head does not come. */
#include "testing/testing.h"

#include "gateway/http/heads.h"

#include <sys/socket.h>
#include <unistd.h>

enum { LIMIT_NS = 1000 };

/* A socket pair: what is done to the first end is seen at the second. */
typedef struct {
    int ends[2];
    kv_head_wait_t *connection;
} line_t;

static void open_line(kv_heads_t *heads, line_t *line, uint64_t now_ns)
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, line->ends), 0);
    line->connection = kv_heads_open(heads, line->ends[0], now_ns);
}

static bool is_shut(const line_t *line)
{
    char byte;
    return recv(line->ends[1], &byte, 1, MSG_PEEK) == 0;
}

static void close_line(kv_heads_t *heads, line_t *line)
{
    kv_heads_close(heads, line->connection);
    close(line->ends[0]);
    close(line->ends[1]);
}

static void test_who_waits_too_long(void **state)
{
    (void)state;
    kv_heads_t *heads = kv_heads_create(LIMIT_NS);
    line_t old, young, busy;
    open_line(heads, &old, 0);
    open_line(heads, &busy, 0);
    open_line(heads, &young, LIMIT_NS);
    kv_heads_arrived(heads, busy.connection);
    assert_int_equal(kv_heads_sweep(heads, LIMIT_NS), 0);
    assert_false(is_shut(&old));
    assert_int_equal(kv_heads_sweep(heads, LIMIT_NS + 1), 1);
    assert_true(is_shut(&old));
    assert_false(is_shut(&young));
    assert_false(is_shut(&busy));
    /* It is not shut twice, and a clock that stands behind shuts nobody. */
    assert_int_equal(kv_heads_sweep(heads, LIMIT_NS + 2), 0);
    assert_int_equal(kv_heads_sweep(heads, 0), 0);
    close_line(heads, &busy);
    close_line(heads, &old);
    close_line(heads, &young);
    kv_heads_destroy(heads);
}

/* A request may take as long as it likes; the head after it may not. */
static void test_the_next_head(void **state)
{
    (void)state;
    kv_heads_t *heads = kv_heads_create(LIMIT_NS);
    line_t line;
    open_line(heads, &line, 0);
    kv_heads_arrived(heads, line.connection);
    assert_int_equal(kv_heads_sweep(heads, 50 * LIMIT_NS), 0);
    kv_heads_await(heads, line.connection, 50 * LIMIT_NS);
    assert_int_equal(kv_heads_sweep(heads, 51 * LIMIT_NS), 0);
    assert_int_equal(kv_heads_sweep(heads, 51 * LIMIT_NS + 1), 1);
    assert_true(is_shut(&line));
    close_line(heads, &line);
    kv_heads_destroy(heads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_waits_too_long),
        cmocka_unit_test(test_the_next_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
