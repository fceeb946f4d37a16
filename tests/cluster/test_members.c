/* What a directory says of nodes: checked, kept, told. */
#include "cluster/members.h"
#include "testing/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char log[512]; /* "+name@address" and "-name@address" */
} told_t;

static void told(told_t *all, char sign, const kv_member_t *member)
{
    size_t used = strlen(all->log);
    snprintf(
        all->log + used, sizeof all->log - used, "%c%s@%s ", sign, member->name, member->address);
}

static void came(void *context, const kv_member_t *member)
{
    told(context, '+', member);
}

static void went(void *context, const kv_member_t *member)
{
    told(context, '-', member);
}

static void expect(told_t *all, const char *expected)
{
    assert_string_equal(all->log, expected);
    all->log[0] = '\0';
}

static void put(kv_members_t *members, const char *name, const char *address, int64_t revision)
{
    kv_member_t member = {.role = KVIST__WIRE__ROLE__ROLE_DECODE, .version = "1"};
    snprintf(member.name, sizeof member.name, "%s", name);
    snprintf(member.address, sizeof member.address, "%s", address);
    char *value = kv_member_write(&member);
    kv_members_put(members, name, value, strlen(value), revision);
    free(value);
}

static void members_come_and_go(void **state)
{
    (void)state;
    told_t all = {""};
    kv_members_t *members = kv_members_create("me", &(kv_members_callbacks_t){&all, came, went});
    put(members, "me", "10.0.0.1:1", 1);
    put(members, "a", "10.0.0.2:1", 2);
    put(members, "b", "[::1]:2", 3);
    expect(&all, "+a@10.0.0.2:1 +b@[::1]:2 ");
    put(members, "a", "10.0.0.2:1", 4); /* registered again: the same node */
    expect(&all, "");
    put(members, "a", "10.0.0.9:1", 5); /* elsewhere */
    expect(&all, "-a@10.0.0.2:1 +a@10.0.0.9:1 ");
    assert_int_equal(kv_members_count(members), 2);

    kv_members_list_begin(members);
    put(members, "a", "10.0.0.9:1", 5);
    put(members, "c", "10.0.0.3:1", 6);
    kv_members_list_end(members);
    expect(&all, "+c@10.0.0.3:1 -b@[::1]:2 ");
    kv_members_remove(members, "c");
    kv_members_remove(members, "nobody");
    expect(&all, "-c@10.0.0.3:1 ");
    /* A directory that begins anew counts from 1 again. */
    kv_members_list_begin(members);
    put(members, "a", "10.0.0.4:1", 1);
    kv_members_list_end(members);
    expect(&all, "-a@10.0.0.9:1 +a@10.0.0.4:1 ");
    kv_members_destroy(members);
    expect(&all, "");
}

static void what_is_wrong_is_no_member(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *told;
    } CASES[] = {
        {"a", "", "no JSON object"},
        {"a", "{", "no JSON object"},
        {"a", "[1]", "no JSON object"},
        {"a", "{\"name\":\"b\",\"role\":\"decode\",\"address\":\"1.2.3.4:5\"}", "\"name\" is 'b'"},
        {"a", "{\"role\":\"decode\",\"address\":\"1.2.3.4:5\"}", "\"name\""},
        {"a", "{\"name\":\"a\",\"address\":\"1.2.3.4:5\"}", "\"role\""},
        {"a", "{\"name\":\"a\",\"role\":7,\"address\":\"1.2.3.4:5\"}", "\"role\""},
        {"a", "{\"name\":\"a\",\"role\":\"cook\",\"address\":\"1.2.3.4:5\"}", "'cook'"},
        {"a", "{\"name\":\"a\",\"role\":\"decode\"}", "\"address\""},
        {"a", "{\"name\":\"a\",\"role\":\"decode\",\"address\":\"1.2.3.4\"}", "\"address\""},
        {"a", "{\"name\":\"a\",\"role\":\"decode\",\"address\":\"1.2.3.4:0\"}", "\"address\""},
        {"a", "{\"name\":\"a\",\"role\":\"decode\",\"address\":\"host:1\"}", "\"address\""},
        {"a", "{\"name\":\"a\",\"role\":\"decode\",\"address\":\"1.2.3.4:5\",\"version\":\"\"}",
            "\"version\""},
        {"a b", "{}", "the key"},
    };
    told_t all = {""};
    kv_members_t *members = kv_members_create("me", &(kv_members_callbacks_t){&all, came, went});
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        kv_member_t member;
        kv_error_t error;
        size_t bytes = strlen(CASES[i].value);
        assert_int_equal(
            kv_member_read(CASES[i].key, CASES[i].value, bytes, &member, &error), KV_INVALID);
        if (strstr(error.text, CASES[i].told) == NULL) {
            fail_msg("%s: %s", CASES[i].value, error.text);
        }
        kv_members_put(members, CASES[i].key, CASES[i].value, bytes, (int64_t)i);
    }
    expect(&all, "");
    assert_int_equal(kv_members_count(members), 0);
    /* A good one that turns bad goes; a bad one that turns good comes. */
    put(members, "a", "10.0.0.2:1", 100);
    kv_members_put(members, "a", "{}", 2, 101);
    put(members, "a", "10.0.0.2:1", 102);
    expect(&all, "+a@10.0.0.2:1 -a@10.0.0.2:1 +a@10.0.0.2:1 ");

    char *large = calloc(1, KV_MEMBER_VALUE_BYTES_MAX + 1);
    memset(large, ' ', KV_MEMBER_VALUE_BYTES_MAX + 1);
    kv_members_put(members, "a", large, KV_MEMBER_VALUE_BYTES_MAX + 1, 103);
    expect(&all, "-a@10.0.0.2:1 ");
    free(large);
    kv_members_destroy(members);
}

static void there_is_a_bound(void **state)
{
    (void)state;
    told_t all = {""};
    kv_members_t *members = kv_members_create("me", &(kv_members_callbacks_t){&all, came, went});
    char name[100];
    for (int i = 0; i < KV_MEMBERS_MAX + 10; i++) {
        snprintf(name, sizeof name, "node-%d", i);
        put(members, name, "10.0.0.2:1", i);
    }
    assert_int_equal(kv_members_count(members), KV_MEMBERS_MAX);
    kv_members_remove(members, "node-0");
    put(members, "late", "10.0.0.2:1", 1000); /* there is room again */
    assert_int_equal(kv_members_count(members), KV_MEMBERS_MAX);
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    kv_members_remove(members, "late");
    kv_members_put(members, name, "{}", 2, 1001);
    assert_int_equal(kv_members_count(members), KV_MEMBERS_MAX - 1);
    kv_members_destroy(members);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(members_come_and_go),
        cmocka_unit_test(what_is_wrong_is_no_member),
        cmocka_unit_test(there_is_a_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
