/* Texts that nobody writes: whatever clients send is compared, in bounds and in time. */
#include "audit/ledger.h"
#include "tests/testing/testing.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAIRS = 3000, TEXT_BYTES_MAX = 1200, THREADS = 4, TURNS = 150 };

static kv_audit_prompt_t prompt_of(const char *text, size_t bytes, size_t head)
{
    kv_audit_prompt_t prompt = {0};
    if (head > 0) {
        kv_audit_prompt_part(&prompt, KV_AUDIT_HEAD);
        kv_audit_prompt_add(&prompt, text, head);
        kv_audit_prompt_part(&prompt, KV_AUDIT_USER);
    }
    kv_audit_prompt_add(&prompt, text + head, bytes - head);
    kv_audit_prompt_finish(&prompt);
    return prompt;
}

static void expect_in_bounds(const kv_audit_prompt_t *was, const kv_audit_prompt_t *is)
{
    for (int relation = 0; relation <= KV_AUDIT_LIKENESS; relation++) {
        kv_audit_finding_t found;
        if (kv_audit_compare(was, is, (kv_audit_relation_t)relation, &found)) {
            assert_true(found.kind > KV_AUDIT_NONE && found.kind < KV_AUDIT_KINDS);
            assert_true(found.was.from <= found.was.end && found.was.end <= was->bytes);
            assert_true(found.is.from <= found.is.end && found.is.end <= is->bytes);
            assert_true(found.byte < is->bytes && found.cost <= is->bytes - found.byte);
        }
    }
}

/* Pieces that the judges look for, in any order, cut anywhere. */
static size_t scramble(char *text, uint64_t *seed)
{
    static const char *const PIECES[] = {"{", "}", "[", "]", "\"", "\\", ":", ",", "\n", "\r\n",
        " ", "2026-11-23", "10:05", "T", "Z", "17", "1763862322", "a1b2c3d4e5f6", "uuid-",
        "Summary: ", "# ", "<", ">", "\xc3\xa4", "\xff", "tool", "{\"name\": \"a\"}",
        "[{\"name\":\"a\"},{\"name\":\"b\"}]", "the same words again and again, as they were. ",
        "99999999999999999999", "1.", ".", "ago", "5 minutes"};
    size_t bytes = 0;
    while (bytes < TEXT_BYTES_MAX - 64) {
        const char *piece = PIECES[kv_test_random(seed) % (sizeof PIECES / sizeof PIECES[0])];
        memcpy(text + bytes, piece, strlen(piece));
        bytes += strlen(piece);
        if (kv_test_random(seed) % 400 == 0) {
            break;
        }
    }
    return bytes;
}

static void any_two_texts_are_compared_in_bounds(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed();
    char one[TEXT_BYTES_MAX], other[TEXT_BYTES_MAX];
    for (int i = 0; i < PAIRS; i++) {
        size_t bytes = scramble(one, &seed), other_bytes = bytes;
        memcpy(other, one, bytes);
        size_t at = kv_test_random(&seed) % bytes, left_out = kv_test_random(&seed) % 40;
        if (i % 3 == 0) {
            other[at] ^= (char)(1 << kv_test_random(&seed) % 7);
        } else if (at + left_out < bytes) {
            memmove(other + at, other + at + left_out, bytes - at - left_out);
            other_bytes -= left_out;
        }
        size_t head = i % 2 == 0 ? 0 : other_bytes / 2;
        kv_audit_prompt_t was = prompt_of(one, bytes, head);
        kv_audit_prompt_t is = prompt_of(other, other_bytes, head);
        expect_in_bounds(&was, &is);
        expect_in_bounds(&is, &was);
        kv_audit_prompt_clear(&was);
        kv_audit_prompt_clear(&is);
    }
}

/* The longest texts, of one thing over and over: work stays in proportion. */
static void long_texts_of_one_thing_take_no_time(void **state)
{
    (void)state;
    static const char *const THINGS[] = {
        "[", "{\"", "\"\\", "1", "a", "\n", "a,", "10:05 ", "{\"a\":1}", "same, but for a while. "};
    enum { BYTES = KV_AUDIT_BYTES_MAX - 64 };
    char *one = malloc(BYTES), *other = malloc(BYTES);
    for (size_t i = 0; i < sizeof THINGS / sizeof THINGS[0]; i++) {
        size_t length = strlen(THINGS[i]);
        for (size_t at = 0; at < BYTES; at++) {
            one[at] = THINGS[i][at % length];
            other[at] = THINGS[i][(at + 1) % length];
        }
        one[0] = 'x';
        other[0] = 'y';
        for (size_t at = 100; at < BYTES; at += 150) {
            other[at] = 'z'; /* no run is long */
        }
        kv_audit_prompt_t was = prompt_of(one, BYTES, 0), is = prompt_of(other, BYTES, 0);
        expect_in_bounds(&was, &is);
        kv_audit_prompt_clear(&was);
        kv_audit_prompt_clear(&is);
    }
    free(one);
    free(other);
}

static bool all(void *context, const char *tenant)
{
    (void)context;
    (void)tenant;
    return true;
}

static void *work(void *argument)
{
    kv_ledger_t *ledger = argument;
    static const char RULES[] =
        "Answer in one sentence. Name the file that you changed. Never guess a path: look for it "
        "first. When a test fails, say which one and why before you mend anything. Leave what "
        "works as it is. Ask when two readings are possible. Keep to the style of the house.";
    char text[512];
    for (int i = 0; i < TURNS; i++) {
        int bytes = snprintf(text, sizeof text, "Turn %d. %s", i, RULES);
        kv_audit_prompt_t prompt = prompt_of(text, (size_t)bytes, (size_t)bytes / 2);
        const kv_ledger_names_t names = {
            .tenant = "", .session = i % 2 == 0 ? "s" : "", .template_name = "", .id = "r"};
        kv_ledger_prompt_t *looked = kv_ledger_look(ledger, &names, &prompt);
        if (i % 5 == 0) {
            kv_ledger_forget(ledger, looked);
        } else {
            kv_ledger_keep(ledger, looked, UINT64_MAX, 1.0, 0);
        }
        json_decref(kv_ledger_rows(ledger, 10, all, NULL));
    }
    return NULL;
}

static void threads_look_keep_and_ask_at_once(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(16 << 10); /* prompts leave all the time */
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, work, ledger), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(kv_ledger_totals(ledger).prompts, THREADS * (TURNS - TURNS / 5));
    kv_ledger_destroy(ledger);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_two_texts_are_compared_in_bounds),
        cmocka_unit_test(long_texts_of_one_thing_take_no_time),
        cmocka_unit_test(threads_look_keep_and_ask_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
