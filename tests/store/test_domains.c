/* What store.domains becomes for the service. */
#include "store/domains.h"
#include "testing/testing.h"

#include <string.h>
#include <unistd.h>

static const kv_options_program_t PROGRAM = {.binary = "test",
    .default_name = "here",
    .summary = "",
    .sections = KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_STORE};

static kv_status_t read_domains(const char *const *arguments, int count, kv_options_t *options,
    kv_domains_t *domains, kv_error_t *error)
{
    char *argv[8] = {"test"};
    for (int i = 0; i < count; i++) {
        argv[1 + i] = (char *)(uintptr_t)arguments[i];
    }
    kv_options_action_t action;
    if (kv_options_load(&PROGRAM, 1 + count, argv, options, &action, error) != KV_OK) {
        fail_msg("%s", error->text);
    }
    return kv_domains_read(options, domains, error);
}

static void without_the_option_there_is_one(void **state)
{
    (void)state;
    static const char *const ARGUMENTS[] = {"--store.directory=/data", "--store.host_bytes=3MiB"};
    kv_options_t options;
    kv_domains_t domains;
    kv_error_t error;
    assert_int_equal(read_domains(ARGUMENTS, 2, &options, &domains, &error), KV_OK);
    assert_int_equal(domains.count, 1);
    assert_string_equal(domains.items[0].name, "default");
    assert_int_equal(domains.items[0].user_count, 0);
    assert_string_equal(domains.items[0].store.directory, "/data");
    assert_int_equal(domains.items[0].store.host_bytes, 3 << 20);
    assert_string_equal(domains.items[0].store.origin, "here");
    kv_domains_clear(&domains);
    kv_options_clear(&options);
}

static void each_has_its_own(void **state)
{
    (void)state;
    static const char *const ARGUMENTS[] = {"--store.directory=/data",
        "--store.domains=a:users=root+4711:host_bytes=5MiB,b:directory=/b:disk_bytes=1GiB",
        "--store.disks=/disk=2GiB"};
    kv_options_t options;
    kv_domains_t domains;
    kv_error_t error;
    assert_int_equal(read_domains(ARGUMENTS, 3, &options, &domains, &error), KV_OK);
    assert_int_equal(domains.count, 2);
    const kv_service_domain_t *a = &domains.items[0], *b = &domains.items[1];
    assert_int_equal(a->user_count, 2);
    assert_int_equal(a->users[0], 0);
    assert_int_equal(a->users[1], 4711);
    assert_int_equal(a->store.host_bytes, 5 << 20);
    assert_string_equal(a->store.directory, "/data/a");
    assert_int_equal(b->store.host_bytes, options.store.host_bytes);
    assert_string_equal(b->store.directory, "/b");
    assert_int_equal(b->store.disk_bytes, 1 << 30);
    assert_int_equal(b->store.disk_count, 1);
    assert_string_equal(a->store.disks[0].folder, "/disk/here-a");
    assert_string_equal(b->store.disks[0].folder, "/disk/here-b");
    kv_domains_clear(&domains);
    kv_options_clear(&options);
}

static void memory_alone_has_no_folder(void **state)
{
    (void)state;
    static const char *const ARGUMENTS[] = {"--store.directory=none", "--store.disks=/disk=2GiB"};
    kv_options_t options;
    kv_domains_t domains;
    kv_error_t error;
    assert_int_equal(read_domains(ARGUMENTS, 2, &options, &domains, &error), KV_OK);
    assert_null(domains.items[0].store.directory);
    assert_int_equal(domains.items[0].store.disk_count, 0);
    kv_domains_clear(&domains);
    kv_options_clear(&options);
}

static void what_cannot_be_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *option, *told;
    } BAD[] = {
        {"--store.domains=a,a", "there are two of the name a"},
        {"--store.domains=a:users=nobody-of-this-name", "a: there is no user nobody-of-this-name"},
        {"--store.domains=a:users=4294967295", "a: there is no user 4294967295"},
        {"--store.domains=a:disk_bytes=1MiB", "a: disk_bytes is 1048576: must be at least two"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        kv_options_t options;
        kv_domains_t domains;
        kv_error_t error;
        assert_int_equal(read_domains(&BAD[i].option, 1, &options, &domains, &error), KV_INVALID);
        if (strstr(error.text, BAD[i].told) == NULL) {
            fail_msg("%s: %s", BAD[i].option, error.text);
        }
        kv_options_clear(&options);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_the_option_there_is_one),
        cmocka_unit_test(each_has_its_own),
        cmocka_unit_test(memory_alone_has_no_folder),
        cmocka_unit_test(what_cannot_be_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
