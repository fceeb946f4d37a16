/* Which prompt is compared with which, what is counted, and within what bounds. */
#include "audit/ledger.h"
#include "tests/audit/talk.h"

static const char RULES[] =
    "Answer in one sentence. Name the file that you changed. Never guess a path: look for it "
    "first. When a test fails, say which one and why before you mend anything. Leave what works "
    "as it is. Ask when two readings are possible. Keep to the style of what is there already.";

/* A head with this in front of the rules, and a question. */
static kv_audit_prompt_t prompt_of(const char *front, const char *question)
{
    kv_audit_prompt_t prompt = {0};
    kv_audit_prompt_part(&prompt, KV_AUDIT_HEAD);
    say(&prompt, front);
    say(&prompt, RULES);
    kv_audit_prompt_part(&prompt, KV_AUDIT_USER);
    say(&prompt, question);
    kv_audit_prompt_finish(&prompt);
    return prompt;
}

/* What came of it; it is kept. */
static kv_audit_kind_t see(
    kv_ledger_t *ledger, kv_ledger_names_t names, const char *front, const char *question)
{
    kv_audit_prompt_t prompt = prompt_of(front, question);
    names.tenant = names.tenant != NULL ? names.tenant : "";
    names.session = names.session != NULL ? names.session : "";
    names.template_name = names.template_name != NULL ? names.template_name : "";
    names.id = names.id != NULL ? names.id : "";
    kv_ledger_prompt_t *looked = kv_ledger_look(ledger, &names, &prompt);
    const kv_audit_finding_t *finding = kv_ledger_finding(looked);
    kv_audit_kind_t kind = finding != NULL ? finding->kind : KV_AUDIT_NONE;
    kv_ledger_keep(ledger, looked, UINT64_MAX, 1000.0, 1760000000000);
    return kind;
}

#define SEE(ledger, front, question, ...)                                                          \
    see(ledger, (kv_ledger_names_t){__VA_ARGS__}, front, question)

static bool all(void *context, const char *tenant)
{
    (void)context;
    (void)tenant;
    return true;
}

static bool only(void *context, const char *tenant)
{
    return strcmp(context, tenant) == 0;
}

static const json_t *in_row(const json_t *rows, size_t row, const char *name)
{
    const json_t *value = json_object_get(json_array_get(rows, row), name);
    assert_non_null(value);
    return value;
}

static void the_predecessor_is_of_the_session_or_the_template_or_alike(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(1 << 20);
    assert_int_equal(SEE(ledger, "Time: 10:05\n", "a?", .session = "s"), KV_AUDIT_NONE);
    assert_int_equal(SEE(ledger, "Time: 10:06\n", "b?", .session = "s"), KV_AUDIT_TIMESTAMP);
    /* Another session: no template, but alike. */
    assert_int_equal(SEE(ledger, "Time: 10:07\n", "c?", .session = "t"), KV_AUDIT_TIMESTAMP);
    /* With a name of a template it belongs to those. */
    assert_int_equal(SEE(ledger, "Time: 10:08\n", "d?", .template_name = "x"), KV_AUDIT_NONE);
    assert_int_equal(SEE(ledger, "Time: 10:09\n", "e?", .template_name = "x", .session = "u"),
        KV_AUDIT_TIMESTAMP);
    assert_int_equal(SEE(ledger, "Time: 10:09\n", "f?", .template_name = "y"), KV_AUDIT_NONE);
    /* Without names. */
    assert_int_equal(SEE(ledger, "Time: 10:10\n", "g?"), KV_AUDIT_TIMESTAMP);
    kv_ledger_totals_t totals = kv_ledger_totals(ledger);
    assert_int_equal(totals.prompts, 7);
    assert_int_equal(totals.compared, 4);
    assert_int_equal(totals.findings, 4);
    kv_ledger_destroy(ledger);
}

static void what_some_earlier_prompt_has_as_its_prefix_is_no_finding(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(1 << 20);
    SEE(ledger, "Time: 10:05\n", "a?", .session = "s");
    SEE(ledger, "Another agent of the session. ", "b?", .session = "s");
    assert_int_equal(SEE(ledger, "Time: 10:05\n", "a? Because. c?", .session = "s"), KV_AUDIT_NONE);
    kv_ledger_destroy(ledger);
}

static void scopes_never_meet(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(1 << 20);
    SEE(ledger, "Time: 10:05\n", "a?", .scope = 1, .session = "s", .tenant = "alpha");
    assert_int_equal(
        SEE(ledger, "Time: 10:06\n", "a?", .scope = 2, .session = "s", .tenant = "beta"),
        KV_AUDIT_NONE);
    SEE(ledger, "Time: 10:07\n", "a?", .scope = 2, .session = "s", .tenant = "beta");
    json_t *rows = kv_ledger_rows(ledger, 1000, only, "alpha");
    assert_int_equal(json_array_size(rows), 0);
    json_decref(rows);
    rows = kv_ledger_rows(ledger, 1000, only, "beta");
    assert_int_equal(json_array_size(rows), 1);
    assert_string_equal(json_string_value(in_row(rows, 0, "tenant")), "beta");
    json_decref(rows);
    kv_ledger_destroy(ledger);
}

static void the_same_place_is_one_row_with_both_sides(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(1 << 20);
    char front[64];
    for (int i = 0; i < 6; i++) {
        snprintf(front, sizeof front, "Turn %d of many.\n", 8 + i);
        SEE(ledger, front, "a?", .session = "s", .template_name = "x", .id = i == 4 ? "r4" : "r5");
    }
    SEE(ledger, "Turn 13 of many.\nToday is 2026-11-23.\n", "a?", .session = "q");
    SEE(ledger, "Turn 13 of many.\nToday is 2026-11-24.\n", "a?", .session = "q");
    json_t *rows = kv_ledger_rows(ledger, 1000, all, NULL);
    assert_int_equal(json_array_size(rows), 2);
    assert_string_equal(json_string_value(in_row(rows, 0, "kind")), "counter");
    assert_int_equal(json_integer_value(in_row(rows, 0, "count")), 5);
    assert_int_equal(json_integer_value(in_row(rows, 0, "at")), 6);
    assert_string_equal(json_string_value(in_row(rows, 0, "before")), "Turn ");
    assert_string_equal(json_string_value(in_row(rows, 0, "was")), "12");
    assert_string_equal(json_string_value(in_row(rows, 0, "is")), "13");
    assert_string_equal(json_string_value(in_row(rows, 0, "was_request")), "r4");
    assert_string_equal(json_string_value(in_row(rows, 0, "unit")), "bytes");
    json_int_t cost = json_integer_value(in_row(rows, 0, "cost"));
    assert_true(cost >= 5 * (json_int_t)strlen(RULES) &&
                cost <= 5 * (json_int_t)(strlen(RULES) + strlen(front)));
    assert_true(json_real_value(in_row(rows, 0, "cost_seconds")) == (double)cost * 1000.0 / 1e9);
    assert_string_equal(json_string_value(in_row(rows, 1, "kind")), "timestamp");
    json_decref(rows);
    kv_ledger_destroy(ledger);
}

static void no_more_is_counted_than_was_computed(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(1 << 20);
    const kv_ledger_names_t names = {.tenant = "", .session = "s", .template_name = "", .id = "r"};
    SEE(ledger, "Time: 10:05\n", "a?", .session = "s");
    kv_audit_prompt_t prompt = prompt_of("Time: 10:06\n", "b?");
    kv_ledger_prompt_t *looked = kv_ledger_look(ledger, &names, &prompt);
    assert_non_null(kv_ledger_finding(looked));
    kv_ledger_forget(ledger, looked); /* it failed: no predecessor, no finding */
    prompt = prompt_of("Time: 10:07\n", "b?");
    looked = kv_ledger_look(ledger, &names, &prompt);
    assert_non_null(kv_ledger_finding(looked));
    kv_ledger_keep(ledger, looked, 100, 0.0, 0);
    prompt = prompt_of("Time: 10:08\n", "b?");
    looked = kv_ledger_look(ledger, &names, &prompt);
    kv_ledger_keep(ledger, looked, 0, 0.0, 0); /* another node had it all */
    json_t *rows = kv_ledger_rows(ledger, 1000, all, NULL);
    assert_int_equal(json_array_size(rows), 1);
    assert_int_equal(json_integer_value(in_row(rows, 0, "cost")), 100);
    assert_true(json_is_null(in_row(rows, 0, "cost_seconds")));
    json_decref(rows);
    kv_ledger_forget(ledger, NULL);
    kv_ledger_destroy(ledger);
}

static void memory_and_rows_have_bounds(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(64 << 10);
    char front[64], template_name[32];
    for (int i = 0; i < 2000; i++) {
        snprintf(front, sizeof front, "Time: 10:%02d\n", i % 60);
        snprintf(template_name, sizeof template_name, "template %d", i / 2 % 400);
        SEE(ledger, front, "a?", .template_name = template_name);
    }
    json_t *rows = kv_ledger_rows(ledger, 1000, all, NULL);
    assert_int_equal(json_array_size(rows), KV_LEDGER_FINDINGS_MAX);
    json_decref(rows);
    rows = kv_ledger_rows(ledger, 3, all, NULL);
    assert_int_equal(json_array_size(rows), 3);
    json_decref(rows);
    kv_ledger_destroy(ledger);
    ledger = kv_ledger_create(100); /* room for none */
    assert_int_equal(SEE(ledger, "Time: 10:05\n", "a?", .session = "s"), KV_AUDIT_NONE);
    assert_int_equal(SEE(ledger, "Time: 10:06\n", "a?", .session = "s"), KV_AUDIT_NONE);
    kv_ledger_destroy(ledger);
}

/* What is shown is text, whatever the prompt was. */
static void bytes_that_are_no_text_are_shown_as_such(void **state)
{
    (void)state;
    kv_ledger_t *ledger = kv_ledger_create(1 << 20);
    char front[2][260];
    for (int i = 0; i < 2; i++) {
        memset(front[i], i == 0 ? 0xff : 0xc3, sizeof front[i] - 1);
        front[i][sizeof front[i] - 1] = '\0';
    }
    SEE(ledger, front[0], "a?", .session = "s");
    assert_int_equal(SEE(ledger, front[1], "a?", .session = "s"), KV_AUDIT_TEMPLATE);
    json_t *rows = kv_ledger_rows(ledger, 1000, all, NULL);
    const char *is = json_string_value(in_row(rows, 0, "is"));
    assert_int_equal(strspn(is, "?"), strlen(is) - 3);
    json_decref(rows);
    kv_ledger_destroy(ledger);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_predecessor_is_of_the_session_or_the_template_or_alike),
        cmocka_unit_test(what_some_earlier_prompt_has_as_its_prefix_is_no_finding),
        cmocka_unit_test(scopes_never_meet),
        cmocka_unit_test(the_same_place_is_one_row_with_both_sides),
        cmocka_unit_test(no_more_is_counted_than_was_computed),
        cmocka_unit_test(memory_and_rows_have_bounds),
        cmocka_unit_test(bytes_that_are_no_text_are_shown_as_such),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
