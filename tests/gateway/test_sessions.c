/* The table of sessions, with a virtual clock. */
#include "gateway/keeping/sessions.h"
#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

enum {
    COUNT_MAX = 3,
    TOKENS_MAX = 1000,
    TOKENS = 300,
    TENANT_COUNT_MAX = 2,
    TENANT_TOKENS_MAX = 700
};

static kv_virtual_clock_t hands;
static kv_sessions_t *sessions;
static uint32_t tokens[TOKENS];

static int begin(void **state)
{
    (void)state;
    kv_virtual_clock_init(&hands, 1800000000ull * KV_NS_PER_S);
    kv_sessions_params_t params = {.clock = &hands.clock,
        .count_max = COUNT_MAX,
        .token_count_max = TOKENS_MAX,
        .tenant_count_max = TENANT_COUNT_MAX,
        .tenant_token_count_max = TENANT_TOKENS_MAX};
    sessions = kv_sessions_create(&params);
    for (uint32_t i = 0; i < TOKENS; i++) {
        tokens[i] = i;
    }
    return 0;
}

static int end(void **state)
{
    (void)state;
    kv_sessions_destroy(sessions);
    return 0;
}

static void pass_ms(uint64_t ms)
{
    kv_virtual_clock_advance(&hands, ms * KV_NS_PER_MS);
}

static bool note(kv_session_t *session, const char *salt)
{
    return kv_sessions_note(sessions, session, 7, salt, strlen(salt), tokens, TOKENS);
}

static void a_session_is_its_tenant_s(void **state)
{
    (void)state;
    kv_session_t *session = kv_sessions_open(sessions, "one");
    assert_ptr_equal(kv_sessions_find(sessions, session->id, "one"), session);
    assert_null(kv_sessions_find(sessions, session->id, "two"));
    assert_null(kv_sessions_find(sessions, session->id, ""));
    assert_true(note(session, "salt"));
    assert_false(note(session, "tlas"));
    assert_false(note(session, ""));
    assert_int_equal(session->request_count, 1);
}

static void a_fork_goes_on_from_its_parent(void **state)
{
    (void)state;
    kv_session_t *parent = kv_sessions_open(sessions, "one");
    parent->ttl_ns = 60 * (uint64_t)KV_NS_PER_S;
    note(parent, "salt");
    kv_session_t *fork = kv_sessions_fork(sessions, parent);
    assert_string_equal(fork->parent, parent->id);
    assert_string_not_equal(fork->id, parent->id);
    assert_true(fork->number != parent->number);
    assert_int_equal(fork->token_count, TOKENS);
    assert_memory_equal(fork->tokens, tokens, sizeof tokens);
    assert_true(fork->node == 7 && fork->ttl_ns == parent->ttl_ns);
    assert_false(note(fork, "tlas"));
    kv_sessions_close(sessions, parent);
    assert_memory_equal(fork->tokens, tokens, sizeof tokens);
}

static void there_is_an_end_to_room(void **state)
{
    (void)state;
    kv_session_t *opened[COUNT_MAX];
    for (int i = 0; i < COUNT_MAX; i++) {
        opened[i] = kv_sessions_open(sessions, "");
        note(opened[i], "");
    }
    assert_null(kv_sessions_open(sessions, ""));
    assert_null(kv_sessions_fork(sessions, opened[0]));
    kv_sessions_close(sessions, opened[0]);
    kv_session_t *again = kv_sessions_fork(sessions, opened[1]);
    assert_non_null(again);
    kv_sessions_close(sessions, again);
    /* 400 tokens are left: a context that does not fit is not taken, and what there was stays. */
    uint32_t *many = calloc(TOKENS_MAX, sizeof *many);
    assert_true(kv_sessions_note(sessions, opened[1], 7, "", 0, many, TOKENS_MAX - TOKENS + 1));
    assert_int_equal(opened[1]->token_count, TOKENS);
    assert_true(kv_sessions_note(sessions, opened[1], 7, "", 0, many, TOKENS_MAX - TOKENS));
    assert_int_equal(opened[1]->token_count, TOKENS_MAX - TOKENS);
    free(many);
}

static void a_tenant_keeps_no_other_one_out(void **state)
{
    (void)state;
    uint32_t *many = calloc(TENANT_TOKENS_MAX, sizeof *many);
    kv_session_t *first = kv_sessions_open(sessions, "one"),
                 *second = kv_sessions_fork(sessions, first);
    assert_non_null(second);
    assert_null(kv_sessions_open(sessions, "one"));
    assert_null(kv_sessions_fork(sessions, first));
    assert_true(note(first, "salt") && note(second, "salt"));
    assert_true(
        kv_sessions_note(sessions, first, 7, "salt", 4, many, TENANT_TOKENS_MAX - TOKENS + 1));
    assert_int_equal(first->token_count, TOKENS);
    assert_true(kv_sessions_note(sessions, first, 7, "salt", 4, many, TENANT_TOKENS_MAX - TOKENS));
    assert_int_equal(first->token_count, TENANT_TOKENS_MAX - TOKENS);
    kv_session_t *other = kv_sessions_open(sessions, "two");
    assert_true(note(other, "tlas"));
    assert_int_equal(other->token_count, TOKENS);
    kv_sessions_close(sessions, second);
    assert_non_null(kv_sessions_open(sessions, "one"));
    free(many);
}

static void a_suspended_one_is_due_before_its_time(void **state)
{
    (void)state;
    kv_session_t *session = kv_sessions_open(sessions, "");
    note(session, "");
    session->state = KV_SESSION_SUSPENDED;
    assert_null(kv_sessions_due(sessions));
    assert_false(kv_sessions_any_waits(sessions));
    session->resume_by_unix_ms = hands.unix_ns / KV_NS_PER_MS + 10000;
    session->load_ns = 250 * KV_NS_PER_MS;
    assert_true(kv_sessions_any_waits(sessions));
    pass_ms(8499);
    assert_null(kv_sessions_due(sessions));
    pass_ms(1); /* half a second, and four times what loading takes, are left */
    assert_ptr_equal(kv_sessions_due(sessions), session);
    session->state = KV_SESSION_SUSPENDING; /* not spilled yet */
    assert_null(kv_sessions_due(sessions));
    note(session, ""); /* a request wakes it */
    assert_int_equal(session->state, KV_SESSION_OPEN);
    assert_false(kv_sessions_any_waits(sessions));
}

static void what_was_idle_for_too_long_is_named(void **state)
{
    (void)state;
    kv_session_t *session = kv_sessions_open(sessions, "");
    pass_ms(KV_SESSION_IDLE_S * 1000ull);
    assert_null(kv_sessions_idle(sessions));
    pass_ms(1);
    assert_ptr_equal(kv_sessions_idle(sessions), session);
    session->ttl_ns = 2 * (uint64_t)KV_SESSION_IDLE_S * KV_NS_PER_S;
    assert_null(kv_sessions_idle(sessions));
    pass_ms(KV_SESSION_IDLE_S * 1000ull);
    assert_ptr_equal(kv_sessions_idle(sessions), session);
    session->resume_by_unix_ms = UINT64_MAX; /* it is waited for */
    assert_null(kv_sessions_idle(sessions));
}

static void a_node_that_is_gone_has_no_sessions(void **state)
{
    (void)state;
    kv_session_t *session = kv_sessions_open(sessions, "");
    note(session, "");
    session->state = KV_SESSION_SUSPENDING;
    session->operation = 5;
    assert_ptr_equal(kv_sessions_of_operation(sessions, 5), session);
    assert_null(kv_sessions_of_operation(sessions, 0));
    kv_sessions_forget_node(sessions, 8);
    assert_true(session->node == 7);
    kv_sessions_forget_node(sessions, 7);
    assert_true(session->node == 0 && session->state == KV_SESSION_OPEN);
    assert_null(kv_sessions_of_operation(sessions, 5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_session_is_its_tenant_s, begin, end),
        cmocka_unit_test_setup_teardown(a_fork_goes_on_from_its_parent, begin, end),
        cmocka_unit_test_setup_teardown(there_is_an_end_to_room, begin, end),
        cmocka_unit_test_setup_teardown(a_tenant_keeps_no_other_one_out, begin, end),
        cmocka_unit_test_setup_teardown(a_suspended_one_is_due_before_its_time, begin, end),
        cmocka_unit_test_setup_teardown(what_was_idle_for_too_long_is_named, begin, end),
        cmocka_unit_test_setup_teardown(a_node_that_is_gone_has_no_sessions, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
