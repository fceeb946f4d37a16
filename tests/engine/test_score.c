/* The real model against an exact f32 reference, through the same door that people use. */
#include "engine/score.h"

#include "testing/testing.h"
#include "testing/tiny_model.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char REFERENCE[] = "tests/data/smol_teacher_f32_public.jsonl";

typedef struct {
    double difference_max; /* of any logit that both lists name, and of lse */
    double margin;         /* where the reference's first is ahead by more, it must be ours */
    double agreement_min;  /* share of steps with the same first */
} tolerance_t;

typedef struct {
    size_t step_count, same_count;
    double worst;
} tally_t;

static double number(const json_t *list, size_t at, size_t field)
{
    return json_number_value(json_array_get(json_array_get(list, at), field));
}

static void compare_step(const json_t *ours, const json_t *exact, const char *id, size_t step,
    const tolerance_t *tolerance, tally_t *tally)
{
    const json_t *top = json_object_get(ours, "top5"), *wanted = json_object_get(exact, "top5");
    assert_int_equal(json_array_size(top), 5);
    assert_int_equal(json_array_size(wanted), 5);
    double worst = fabs(json_number_value(json_object_get(ours, "lse")) -
                        json_number_value(json_object_get(exact, "lse")));
    for (size_t i = 0; i < 5; i++) {
        for (size_t j = 0; j < 5; j++) {
            if (number(top, i, 0) == number(wanted, j, 0)) {
                worst = fmax(worst, fabs(number(top, i, 1) - number(wanted, j, 1)));
            }
        }
    }
    const bool same = number(top, 0, 0) == number(wanted, 0, 0);
    tally->step_count++;
    tally->same_count += same;
    tally->worst = fmax(tally->worst, worst);
    if (worst > tolerance->difference_max) {
        fail_msg("%s step %zu: a logit is off by %g", id, step, worst);
    }
    if (!same && number(wanted, 0, 1) - number(wanted, 1, 1) > tolerance->margin) {
        fail_msg("%s step %zu: token %g comes first instead of %g", id, step, number(top, 0, 0),
            number(wanted, 0, 0));
    }
}

static void compare_files(FILE *ours, FILE *exact, const tolerance_t *tolerance, tally_t *tally)
{
    json_error_t problem;
    for (;;) {
        json_t *mine = json_loadf(ours, JSON_DISABLE_EOF_CHECK, &problem);
        if (mine == NULL) {
            return;
        }
        json_t *wanted = json_loadf(exact, JSON_DISABLE_EOF_CHECK, &problem);
        assert_non_null(wanted);
        const char *id = json_string_value(json_object_get(wanted, "id"));
        assert_string_equal(json_string_value(json_object_get(mine, "id")), id);
        const json_t *steps = json_object_get(mine, "steps"),
                     *wanted_steps = json_object_get(wanted, "steps");
        assert_int_equal(json_array_size(steps), json_array_size(wanted_steps));
        for (size_t step = 0; step < json_array_size(steps); step++) {
            compare_step(json_array_get(steps, step), json_array_get(wanted_steps, step), id, step,
                tolerance, tally);
        }
        json_decref(mine);
        json_decref(wanted);
    }
}

/* Lines of the reference up to a number of prompt tokens; 0: all. */
static FILE *open_cases(size_t prompt_max)
{
    FILE *all = fopen(REFERENCE, "r"), *some = tmpfile();
    assert_non_null(all);
    assert_non_null(some);
    json_error_t problem;
    json_t *one;
    while ((one = json_loadf(all, JSON_DISABLE_EOF_CHECK, &problem)) != NULL) {
        if (prompt_max == 0 || json_array_size(json_object_get(one, "prompt_ids")) <= prompt_max) {
            assert_int_equal(json_dumpf(one, some, JSON_COMPACT), 0);
            fputc('\n', some);
        }
        json_decref(one);
    }
    fclose(all);
    rewind(some);
    return some;
}

static void check_reference(bool f32, size_t prompt_max, const tolerance_t *tolerance)
{
    const char *model = kv_test_model();
    FILE *cases = open_cases(prompt_max), *answers = tmpfile();
    assert_non_null(answers);
    kv_error_t error;
    if (kv_score_run(cases, answers, model, f32, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    rewind(cases);
    rewind(answers);
    tally_t tally = {0};
    compare_files(answers, cases, tolerance, &tally);
    print_message("%zu steps, %zu with the same first token, worst difference %.5f\n",
        tally.step_count, tally.same_count, tally.worst);
    assert_true(tally.step_count >= 64 * 4);
    assert_true((double)tally.same_count >= tolerance->agreement_min * (double)tally.step_count);
    fclose(cases);
    fclose(answers);
}

static size_t prompt_max(size_t plain)
{
    return kv_test_long() ? 0 : kv_test_sanitized() ? 100 : plain;
}

static void f32_equals_the_reference(void **state)
{
    (void)state;
    check_reference(true, prompt_max(100), &(tolerance_t){0.02, 0.05, 0.99});
}

static void bf16_is_near_the_reference(void **state)
{
    (void)state;
    check_reference(false, prompt_max(600), &(tolerance_t){1.0, 0.5, 0.95});
}

static void bad_lines_are_named(void **state)
{
    (void)state;
    const char *model = kv_tiny_model_write(&(kv_tiny_model_t){.context = 64}, "score.gguf");
    char many[1024] = "{\"id\":1,\"prompt_ids\":[0";
    for (int i = 0; i < 64; i++) {
        strcat(many, ",0");
    }
    strcat(many, "],\"forced_ids\":[1]}");
    const struct {
        const char *line, *word;
    } cases[] = {
        {"{", "line 2"},
        {"[1]", "line 2 is no JSON object"},
        {"{\"prompt_ids\":[1],\"forced_ids\":[1]}", "line 2: id is missing"},
        {"{\"id\":1,\"forced_ids\":[1]}", "line 2: prompt_ids is missing"},
        {"{\"id\":1,\"prompt_ids\":[],\"forced_ids\":[1]}", "line 2: prompt_ids has 0"},
        {"{\"id\":1,\"prompt_ids\":7,\"forced_ids\":[1]}", "line 2: prompt_ids is no list"},
        {"{\"id\":1,\"prompt_ids\":[1,259],\"forced_ids\":[1]}", "line 2: prompt_ids[1]"},
        {"{\"id\":1,\"prompt_ids\":[1],\"forced_ids\":[-1]}", "line 2: forced_ids[0]"},
        {"{\"id\":1,\"prompt_ids\":[1],\"forced_ids\":[1.5]}", "line 2: forced_ids[0]"},
        {"{\"id\":1,\"prompt_ids\":[1],\"forced_ids\":[\"a\"]}", "line 2: forced_ids[0]"},
        {"{\"id\":1,\"prompt_ids\":[1],\"forced_ids\":[]}", "line 2: forced_ids has 0"},
        {many, "line 2: prompt_ids has 65 ids"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FILE *in = tmpfile(), *out = tmpfile();
        fprintf(
            in, "{\"id\":\"good\",\"prompt_ids\":[1,2],\"forced_ids\":[3]}\n%s\n", cases[i].line);
        rewind(in);
        kv_error_t error;
        assert_int_equal(kv_score_run(in, out, model, false, &error), KV_INVALID);
        if (strstr(error.text, cases[i].word) == NULL) {
            fail_msg("\"%s\" does not say %s", error.text, cases[i].word);
        }
        assert_true(ftell(out) > 0); /* the good line before it was answered */
        fclose(in);
        fclose(out);
    }
}

static void a_context_can_be_filled_to_its_end(void **state)
{
    (void)state;
    const char *model = kv_tiny_model_write(&(kv_tiny_model_t){.context = 64}, "score.gguf");
    FILE *in = tmpfile(), *out = tmpfile();
    fprintf(in, "{\"id\":1,\"prompt_ids\":[1],\"forced_ids\":[0");
    for (int i = 1; i < 64; i++) {
        fprintf(in, ",%d", i);
    }
    fprintf(in, "]}\n");
    rewind(in);
    kv_error_t error;
    if (kv_score_run(in, out, model, true, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    rewind(out);
    json_t *answer = json_loadf(out, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(answer, "steps")), 64);
    json_decref(answer);
    fclose(in);
    fclose(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_equals_the_reference),
        cmocka_unit_test(bf16_is_near_the_reference),
        cmocka_unit_test(bad_lines_are_named),
        cmocka_unit_test(a_context_can_be_filled_to_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
