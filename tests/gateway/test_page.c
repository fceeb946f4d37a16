/* The page and its doors: what they show, to whom, and what they refuse. */
#include "played.h"

#include "base/memory.h"
#include "gateway/figures/history.h"
#include "gateway/figures/recent.h"
#include "gateway/page/told.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- asking ---- */

/* The answer's body; the caller's. */
static json_t *look_with(const fixture_t *fixture, const char *path, const char *headers)
{
    unsigned code;
    json_error_t error;
    char *answer = ask_with(fixture, path, headers, NULL, &code);
    const char *body = strstr(answer, "\r\n\r\n");
    assert_non_null(body);
    if (code != 200) {
        fail_msg("%s: %u: %s", path, code, answer);
    }
    json_t *document = json_loads(body, 0, &error);
    if (document == NULL) {
        fail_msg("%s: %s in %s", path, error.text, body);
    }
    free(answer);
    return document;
}

static json_t *look(const fixture_t *fixture, const char *path)
{
    return look_with(fixture, path, "");
}

/* A number inside, by the names on the way there. */
static json_int_t number_at(const json_t *document, const char *const *way)
{
    for (; *way != NULL; way++) {
        const json_t *inside = json_object_get(document, *way);
        if (inside == NULL) {
            fail_msg("no %s in %s", *way, json_dumps(document, 0));
        }
        document = inside;
    }
    assert_true(json_is_integer(document));
    return json_integer_value(document);
}

#define NUMBER(document, ...) number_at(document, (const char *const[]){__VA_ARGS__, NULL})

static size_t rows_of(const json_t *document)
{
    return json_array_size(json_object_get(document, "data"));
}

static const char *text_at(const json_t *document, size_t row, const char *name)
{
    const json_t *data = json_object_get(document, "data");
    return json_string_value(json_object_get(json_array_get(data, row), name));
}

/* Until the nodes have told what they store; the caller's. */
static json_t *wait_for_contexts(const fixture_t *fixture, const char *path, const char *headers)
{
    for (int i = 0; i < 2000; i++) {
        json_t *found = look_with(fixture, path, headers);
        json_int_t count = NUMBER(found, "nodes");
        if (count == 3 && NUMBER(found, "nodes_told") == count) {
            return found;
        }
        json_decref(found);
        usleep(5000);
    }
    fail_msg("the nodes never told what they store");
    return NULL;
}

/* ---- the page's files ---- */

static void test_the_page(void **state)
{
    (void)state;
    static const struct {
        const char *path, *type;
    } FILES[] = {{"/", "text/html"}, {"/page.css", "text/css"}, {"/page.js", "text/javascript"},
        {"/icon.svg", "image/svg+xml"}};
    fixture_t fixture;
    size_t bytes = 0;
    start_with(&fixture, 1, NULL);
    for (size_t i = 0; i < sizeof FILES / sizeof FILES[0]; i++) {
        unsigned code;
        char *answer = ask(&fixture, "GET", FILES[i].path, NULL, &code);
        assert_int_equal(code, 200);
        assert_non_null(strstr(answer, FILES[i].type));
        assert_non_null(strstr(answer, "Content-Security-Policy: default-src 'none';"));
        assert_non_null(strstr(answer, "frame-ancestors 'none'\r\n"));
        assert_null(strstr(answer, "unsafe-inline"));
        bytes += strlen(answer);
        free(answer);
        free(ask(&fixture, "POST", FILES[i].path, "{}", &code));
        assert_int_equal(code, 405);
    }
    assert_true(bytes < 60000); /* of the 100 KB that a first look may load */
    expect(&fixture, "/page.html", NULL, 404, "no such path", NULL);
    stop(&fixture);
}

/* ---- figures ---- */

static void test_overview(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    json_t *empty = look(&fixture, "/v1/overview");
    assert_int_equal(NUMBER(empty, "windows", "start", "answers"), 0);
    json_decref(empty);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    json_t *found = look(&fixture, "/v1/overview");
    json_int_t prompt = NUMBER(found, "windows", "now", "tokens", "prompt");
    assert_int_equal(NUMBER(found, "windows", "start", "answers"), 2);
    assert_int_equal(NUMBER(found, "windows", "start", "tokens", "prompt"), prompt);
    assert_int_equal(NUMBER(found, "windows", "hour", "tokens", "hit", "host"), 32);
    assert_int_equal(NUMBER(found, "latency", "answers"), 2);
    assert_true(NUMBER(found, "latency", "good") <= 2);
    assert_int_equal(NUMBER(found, "totals", "answers"), 2);
    assert_true(NUMBER(found, "totals", "generated") > 0);
    const json_t *points = json_object_get(json_object_get(found, "history"), "points");
    json_int_t of_points = 0;
    for (size_t i = 0; i < json_array_size(points); i++) {
        of_points += json_integer_value(json_array_get(json_array_get(points, i), 1));
    }
    assert_int_equal(of_points, prompt);
    json_decref(found);
    found = look(&fixture, "/v1/overview?span=week");
    assert_int_equal(NUMBER(found, "history", "step_s"), KV_HISTORY_COARSE_S);
    json_decref(found);
    expect(&fixture, "/v1/overview?span=year", NULL, 400, "span: must be one of hour, week", NULL);
    stop(&fixture);
}

static void test_requests(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    expect_with(&fixture, CHAT, "x-kvist-agent: planner\r\n", PLAIN, 200, STORY);
    play(0, PLAY_INVALID);
    unsigned refused;
    free(ask(&fixture, "POST", CHAT, PLAIN, &refused));
    assert_true(refused >= 400);
    json_t *found = look(&fixture, "/v1/requests");
    assert_int_equal(rows_of(found), 2);
    const json_t *failed = json_array_get(json_object_get(found, "data"), 0);
    const json_t *good = json_array_get(json_object_get(found, "data"), 1);
    assert_int_equal(NUMBER(failed, "code"), refused);
    assert_int_equal(NUMBER(good, "code"), 200);
    assert_int_equal(NUMBER(good, "tokens", "hit", "host"), 16);
    assert_string_equal(text_at(found, 1, "agent"), "planner");
    assert_string_equal(text_at(found, 1, "reason"), "short");
    assert_string_equal(text_at(found, 1, "node"), "decode-0");
    assert_string_equal(text_at(found, 1, "prefilled_by"), "prefill-0");
    json_decref(found);
    found = look(&fixture, "/v1/requests?limit=1");
    assert_int_equal(rows_of(found), 1);
    json_decref(found);
    found = look(&fixture, "/v1/requests?after=1");
    assert_int_equal(rows_of(found), 1);
    json_decref(found);
    found = look(&fixture, "/v1/requests?after=2");
    assert_int_equal(rows_of(found), 0);
    json_decref(found);
    static const char *const WRONG[] = {"limit=0", "limit=501", "limit=-1", "limit=1x",
        "limit=", "limit=99999999999999999999", "after=-1"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        char path[64];
        snprintf(path, sizeof path, "/v1/requests?%s", WRONG[i]);
        expect(&fixture, path, NULL, 400, "must be a whole number", "invalid_request_error");
    }
    stop(&fixture);
}

/* ---- nodes ---- */

static void test_contexts(void **state)
{
    (void)state;
    fixture_t fixture;
    atomic_store(&contexts_told, 10);
    start_with(&fixture, 2, NULL);
    json_t *found = wait_for_contexts(&fixture, "/v1/contexts?limit=7&sort=tokens", "");
    assert_int_equal(NUMBER(found, "total"), 30); /* two decode nodes, and the prefill node */
    assert_int_equal(rows_of(found), 7);
    assert_int_equal(NUMBER(json_array_get(json_object_get(found, "data"), 0), "tokens"), 160);
    assert_int_equal(NUMBER(found, "tiers", "device", "contexts"), 18);
    json_decref(found);
    found = look(&fixture, "/v1/contexts?offset=28&sort=tier");
    assert_int_equal(rows_of(found), 2);
    assert_string_equal(text_at(found, 0, "tier"), "disk");
    json_decref(found);
    json_int_t before = 1 << 20;
    for (unsigned offset = 0; offset < 30; offset += 4) { /* its pages are one list */
        char path[64];
        snprintf(path, sizeof path, "/v1/contexts?sort=tokens&limit=4&offset=%u", offset);
        found = look(&fixture, path);
        assert_int_equal(rows_of(found), offset + 4 <= 30 ? 4 : 30 - offset);
        for (size_t i = 0; i < rows_of(found); i++) {
            const json_t *row = json_array_get(json_object_get(found, "data"), i);
            assert_true(NUMBER(row, "tokens") == before || (offset + i) % 3 == 0);
            assert_true(NUMBER(row, "tokens") <= before);
            before = NUMBER(row, "tokens");
        }
        json_decref(found);
    }
    found = look(&fixture, "/v1/contexts?tier=disk&node=prefill-0&tenant=beta");
    assert_int_equal(NUMBER(found, "total"), 2);
    assert_string_equal(text_at(found, 0, "node"), "prefill-0");
    json_decref(found);
    found = look(&fixture, "/v1/contexts?offset=1000");
    assert_int_equal(rows_of(found), 0);
    json_decref(found);
    expect(&fixture, "/v1/contexts?sort=size", NULL, 400, "sort: must be one of used", NULL);
    expect(&fixture, "/v1/contexts?tier=tape", NULL, 400, "tier: must be one of device", NULL);
    found = look(&fixture, "/v1/overview");
    const json_t *shown = json_object_get(found, "nodes");
    assert_int_equal(json_array_size(shown), 3);
    for (size_t i = 0; i < 3; i++) {
        const json_t *tiers = json_object_get(json_array_get(shown, i), "tiers");
        assert_int_equal(json_array_size(tiers), 2);
        assert_int_equal(NUMBER(json_array_get(tiers, 0), "used_bytes"), 500);
    }
    json_decref(found);
    stop(&fixture);
}

/* What a node has at a store is told by that alone. */
static void test_what_is_shared_is_told_once(void **state)
{
    (void)state;
    fixture_t fixture;
    atomic_store(&contexts_told, 10);
    atomic_store(&prefill_attached, true);
    start_with(&fixture, 2, NULL);
    json_t *found = NULL;
    for (int i = 0; i < 2000 && found == NULL; i++) {
        json_t *overview = look(&fixture, "/v1/overview");
        const json_t *last = json_array_get(json_object_get(overview, "nodes"), 2);
        if (json_is_integer(json_object_get(last, "told_ms_ago"))) { /* prefill-0, known last */
            found = look(&fixture, "/v1/contexts");
        }
        if (found != NULL && NUMBER(found, "nodes_told") < 2) {
            json_decref(found);
            found = NULL;
        }
        json_decref(overview);
        usleep(5000);
    }
    assert_non_null(found);
    assert_int_equal(NUMBER(found, "nodes"), 2);
    assert_int_equal(NUMBER(found, "total"), 20);
    json_decref(found);
    found = look(&fixture, "/v1/overview");
    const json_t *shown = json_object_get(found, "nodes");
    for (size_t i = 0; i < 3; i++) {
        const json_t *node = json_array_get(shown, i);
        const char *role = json_string_value(json_object_get(node, "role"));
        assert_int_equal(
            json_array_size(json_object_get(node, "tiers")), strcmp(role, "prefill") == 0 ? 1 : 2);
    }
    json_decref(found);
    atomic_store(&prefill_attached, false);
    stop(&fixture);
}

/* As many as a node tells; and no node, with which everything still answers. */
static void test_many_contexts_and_none(void **state)
{
    (void)state;
    fixture_t fixture;
    atomic_store(&contexts_told, KV_TOLD_CONTEXTS_MAX);
    start_with(&fixture, 2, NULL);
    json_t *found = wait_for_contexts(&fixture, "/v1/contexts?limit=500&offset=15000", "");
    assert_int_equal(NUMBER(found, "total"), 3 * KV_TOLD_CONTEXTS_MAX);
    assert_int_equal(rows_of(found), 500);
    json_decref(found);
    atomic_store(&wanted_up[0], false);
    atomic_store(&wanted_up[1], false);
    wait_for_health(&fixture, "no decode node is up");
    found = look(&fixture, "/v1/contexts");
    assert_int_equal(NUMBER(found, "total"), 0);
    assert_int_equal(NUMBER(found, "nodes"), 0);
    json_decref(found);
    found = look(&fixture, "/v1/overview");
    assert_int_equal(json_array_size(json_object_get(found, "nodes")), 0);
    json_decref(found);
    stop(&fixture);
}

/* A node of a version that cannot be asked is shown, with why it has nothing to show. */
static void test_an_older_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    atomic_store(&nodes[0].version, 2);
    json_t *found = look(&fixture, "/v1/overview");
    const json_t *node = json_array_get(json_object_get(found, "nodes"), 0);
    assert_non_null(strstr(json_string_value(json_object_get(node, "error")), "version"));
    json_decref(found);
    stop(&fixture);
}

/* ---- who sees what ---- */

static void test_each_tenant_sees_its_own(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("    operator: yes\n");
    atomic_store(&contexts_told, 10);
    start_with(&fixture, 2, (const char *[]){tenants_option, NULL});
    expect_with(&fixture, CHAT, ALPHA, PLAIN, 200, STORY);
    expect_with(&fixture, CHAT, BETA, PLAIN, 200, STORY);
    expect_with(&fixture, CHAT, BETA, PLAIN, 200, STORY);
    static const char *const DOORS[] = {"/v1/overview", "/v1/requests", "/v1/contexts"};
    for (size_t i = 0; i < sizeof DOORS / sizeof DOORS[0]; i++) {
        expect_with(&fixture, DOORS[i], "", NULL, 401, "an API key is needed");
        expect_with(&fixture, DOORS[i], "x-api-key: wrong\r\n", NULL, 401, "is wrong");
    }
    expect_with(&fixture, "/", "", NULL, 200, "<title>Kvist</title>"); /* it asks for the key */
    json_t *all = look_with(&fixture, "/v1/requests", ALPHA);
    assert_int_equal(rows_of(all), 3);
    json_t *own = look_with(&fixture, "/v1/requests", BETA);
    assert_int_equal(rows_of(own), 2);
    assert_string_equal(text_at(own, 0, "tenant"), "beta");
    assert_string_equal(text_at(own, 1, "tenant"), "beta");
    json_decref(all);
    json_decref(own);
    all = look_with(&fixture, "/v1/overview", ALPHA);
    own = look_with(&fixture, "/v1/overview", BETA);
    assert_int_equal(NUMBER(all, "windows", "start", "answers"), 3);
    assert_int_equal(NUMBER(own, "windows", "start", "answers"), 2);
    assert_int_equal(NUMBER(own, "latency", "answers"), 2);
    assert_string_equal(json_string_value(json_object_get(own, "scope")), "tenant");
    assert_non_null(json_object_get(all, "nodes"));
    assert_null(json_object_get(own, "nodes"));
    json_decref(all);
    json_decref(own);
    all = wait_for_contexts(&fixture, "/v1/contexts", ALPHA);
    own = look_with(&fixture, "/v1/contexts", BETA);
    assert_int_equal(NUMBER(all, "total"), 30);
    assert_int_equal(NUMBER(own, "total"), 15);
    for (size_t i = 0; i < rows_of(own); i++) {
        assert_string_equal(text_at(own, i, "tenant"), "beta");
        assert_null(text_at(own, i, "node"));
    }
    json_decref(all);
    json_decref(own);
    stop(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_page),
        cmocka_unit_test(test_overview),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_what_is_shared_is_told_once),
        cmocka_unit_test(test_many_contexts_and_none),
        cmocka_unit_test(test_an_older_node),
        cmocka_unit_test(test_each_tenant_sees_its_own),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
