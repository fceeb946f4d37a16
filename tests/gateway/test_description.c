/* docs/openapi.json as the program has it, beside the routes that there are: each says what the
 * other does. tests/clients holds the fields to it. */
#include "testing/testing.h"

#include "gateway/anthropic/anthropic.h"
#include "gateway/description.h"
#include "gateway/figures/audits.h"
#include "gateway/gemini/gemini.h"
#include "gateway/keeping/session_doors.h"
#include "gateway/openai/openai.h"
#include "gateway/page/page.h"

#include <ctype.h>
#include <jansson.h>
#include <string.h>

/* gateway.c's own three, /healthz, /metrics and /openapi.json, are in no table that can be seen. */
static const kv_route_table_t *const TABLES[] = {&kv_session_routes, &kv_anthropic_routes,
    &kv_gemini_routes, &kv_openai_routes, &kv_page_routes, &kv_audit_routes};
enum { TABLE_COUNT = sizeof TABLES / sizeof TABLES[0] };

static json_t *load(void)
{
    size_t bytes;
    const char *text = kv_description(&bytes);
    json_t *document = json_loadb(text, bytes, 0, NULL);
    assert_non_null(document);
    return document;
}

/* Whether the route is the described path's: what stands in braces there is the route's "*". */
static bool is_path_of(const kv_route_t *route, const char *path)
{
    size_t bytes = strlen(route->path);
    bool open = route->path[bytes - 1] == '*';
    return open ? strncmp(route->path, path, bytes - 1) == 0 && path[bytes - 1] != '\0'
                : strcmp(route->path, path) == 0;
}

/* The next of "GET, HEAD" in small letters; false: there is none. */
static bool next_method(const char **methods, char method_out[16])
{
    *methods += strspn(*methods, ", ");
    size_t bytes = strcspn(*methods, ",");
    for (size_t i = 0; i < bytes; i++) {
        method_out[i] = (char)tolower((unsigned char)(*methods)[i]);
    }
    method_out[bytes] = '\0';
    *methods += bytes;
    return bytes > 0;
}

static bool is_described(json_t *paths, const kv_route_t *route, const char *method)
{
    const char *path;
    json_t *item;
    json_object_foreach(paths, path, item)
    {
        if (is_path_of(route, path) && json_object_get(item, method) != NULL) {
            return true;
        }
    }
    return false;
}

/* HEAD is GET's; what only says that there is no such path, and the page's parts, need no words. */
static void test_each_route_is_described(void **state)
{
    (void)state;
    json_t *document = load(), *paths = json_object_get(document, "paths");
    size_t count = 0;
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        for (size_t k = 0; k < TABLES[i]->count; k++) {
            const kv_route_t *route = &TABLES[i]->routes[k];
            const char *methods = route->methods;
            char method[16];
            bool silent = strcmp(route->name, "other") == 0 ||
                          strcmp(route->name, "messages_other") == 0 ||
                          (strcmp(route->name, "page") == 0 && strcmp(route->path, "/") != 0);
            while (!silent && next_method(&methods, method)) {
                count++;
                if (strcmp(method, "head") != 0 && !is_described(paths, route, method)) {
                    fail_msg("%s %s is not in docs/openapi.json", method, route->path);
                }
            }
        }
    }
    assert_true(count > 20);
    json_decref(document);
}

static bool is_served(const char *path, const char *wanted)
{
    char method[16];
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        for (size_t k = 0; k < TABLES[i]->count; k++) {
            const kv_route_t *route = &TABLES[i]->routes[k];
            const char *methods = route->methods;
            while (is_path_of(route, path) && strcmp(route->name, "other") != 0 &&
                   next_method(&methods, method)) {
                if (strcmp(method, wanted) == 0) {
                    return true;
                }
            }
        }
    }
    return false;
}

static void test_what_is_described_is_served(void **state)
{
    (void)state;
    static const char *const OWN[] = {"/healthz", "/metrics", "/openapi.json"};
    json_t *document = load(), *item, *operation;
    const char *path, *method;
    size_t own_count = 0;
    json_object_foreach(json_object_get(document, "paths"), path, item)
    {
        bool own = false;
        for (size_t i = 0; i < sizeof OWN / sizeof OWN[0]; i++) {
            own |= strcmp(path, OWN[i]) == 0;
        }
        own_count += own;
        json_object_foreach(item, method, operation)
        {
            if (!own && strcmp(method, "parameters") != 0 && !is_served(path, method)) {
                fail_msg("%s %s is described, and nothing serves it", method, path);
            }
        }
    }
    assert_int_equal(own_count, 3);
    json_decref(document);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_route_is_described),
        cmocka_unit_test(test_what_is_described_is_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
