/* The file of tenants: what it says, what is refused and how, whose key is whose. */
#include "testing/testing.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "gateway/access/access.h"
#include "gateway/access/tenants.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char SALT_A[] = "a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0";
static const char SALT_B[] = "b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1";

static char path[300];

static void hash_of(const char *key, char text_out[65])
{
    uint8_t hash[32];
    assert_int_equal(EVP_Digest(key, strlen(key), hash, NULL, EVP_sha256(), NULL), 1);
    kv_hex_encode(hash, sizeof hash, text_out);
}

static void write_file(const char *text)
{
    snprintf(path, sizeof path, "%s/tenants.yaml", kv_test_folder());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs(text, file) >= 0, 1);
    fclose(file);
    assert_int_equal(chmod(path, 0600), 0);
}

/* Two tenants: alpha with two keys and everything said, beta with a key and nothing else. */
static void write_both(void)
{
    char one[65], two[65], three[65], text[2048];
    hash_of("key-one", one);
    hash_of("key-two", two);
    hash_of("key-three", three);
    snprintf(text, sizeof text,
        "tenants:\n"
        "  - name: alpha\n    salt: %s\n    key_sha256: [%s, %s]\n    priority: batch\n"
        "    cache_modes: [read, bypass]\n    requests_per_minute: 600\n"
        "    tokens_per_minute: 100000\n    concurrent: 3\n    host_bytes: 4GiB\n"
        "    disk_bytes: 1TiB\n"
        "  - name: beta\n    salt: %s\n    key_sha256: [%s]\n    operator: yes\n",
        SALT_A, one, two, SALT_B, three);
    write_file(text);
}

static kv_tenants_t *open_file(void)
{
    kv_tenants_t *tenants;
    kv_error_t error;
    if (kv_tenants_open(path, &tenants, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    return tenants;
}

static void test_what_the_file_says(void **state)
{
    (void)state;
    write_both();
    kv_tenants_t *tenants = open_file();
    assert_true(kv_tenants_named(tenants));
    kv_tenant_t *alpha = kv_tenants_find(tenants, "key-one");
    assert_non_null(alpha);
    assert_string_equal(alpha->name, "alpha");
    assert_int_equal(alpha->salt[31], 0xa0);
    assert_int_equal(alpha->priority_best, KVIST_PRIORITY_BATCH);
    assert_int_equal(alpha->cache_modes, 1 << KVIST_MODE_READ | 1 << KVIST_MODE_BYPASS);
    assert_int_equal(alpha->requests.per_minute, 600);
    assert_int_equal(alpha->tokens.per_minute, 100000);
    assert_int_equal(alpha->share.places_max, 3);
    assert_true(alpha->host_bytes == (uint64_t)4 << 30 && alpha->disk_bytes == (uint64_t)1 << 40);
    kv_tenant_t *same = kv_tenants_find(tenants, "key-two");
    assert_ptr_equal(same, alpha);
    kv_tenant_t *beta = kv_tenants_find(tenants, "key-three");
    assert_string_equal(beta->name, "beta");
    assert_true(beta->is_operator && !alpha->is_operator);
    assert_int_equal(beta->priority_best, KVIST_PRIORITY_INTERACTIVE);
    assert_int_equal(beta->cache_modes, 15);
    assert_int_equal(beta->requests.per_minute + beta->tokens.per_minute + beta->host_bytes, 0);
    static const char *const WRONG[] = {NULL, "", "key-on", "key-onee", "KEY-ONE", "alpha", SALT_A};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        assert_null(kv_tenants_find(tenants, WRONG[i]));
    }
    char *long_key = kv_allocate(100001);
    memset(long_key, 'k', 100000);
    assert_null(kv_tenants_find(tenants, long_key));
    free(long_key);
    kv_tenant_release(alpha);
    kv_tenant_release(same);
    kv_tenant_release(beta);
    kv_tenants_close(tenants);
}

static void test_without_a_file(void **state)
{
    (void)state;
    kv_tenants_t *tenants;
    kv_error_t error;
    assert_int_equal(kv_tenants_open("", &tenants, &error), KV_OK);
    assert_false(kv_tenants_named(tenants));
    kv_tenant_t *tenant = kv_tenants_find(tenants, NULL);
    assert_string_equal(tenant->name, "");
    assert_int_equal(tenant->cache_modes, 15);
    kv_tenant_t *again = kv_tenants_find(tenants, "whatever");
    assert_ptr_equal(again, tenant);
    assert_int_equal(kv_tenants_reload(tenants, &error), KV_OK);
    kv_tenant_release(tenant);
    kv_tenant_release(again);
    kv_tenants_close(tenants);
}

/* The file is refused with an error that names `expected`, and tells no secret. */
static void refuse(const char *text, const char *expected)
{
    kv_tenants_t *tenants;
    kv_error_t error;
    write_file(text);
    if (kv_tenants_open(path, &tenants, &error) == KV_OK) {
        fail_msg("was taken: %s", text);
    }
    if (strstr(error.text, expected) == NULL || strstr(error.text, path) == NULL) {
        fail_msg("%s\n does not name %s, of\n%s", error.text, expected, text);
    }
    assert_null(strstr(error.text, SALT_A));
    assert_null(strstr(error.text, "5ec2e7"));
}

#define RECORD(fields) "tenants:\n  - name: alpha\n    salt: " TEXT_A "\n" fields
#define TEXT_A "a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0"

static void test_wrong_files(void **state)
{
    (void)state;
    refuse("tenants: [", "not YAML");
    refuse("tenants: 5ec2e7\n", "tenants");
    refuse("- name: alpha\n", "line");
    refuse("tenant:\n  - name: alpha\n", "tenant");
    refuse("tenants:\n  - salt: " TEXT_A "\n", "name");
    refuse("tenants:\n  - name: al pha\n    salt: " TEXT_A "\n", "name");
    refuse("tenants:\n  - name: " TEXT_A "\n    salt: " TEXT_A "\n", "name");
    refuse("tenants:\n  - name: alpha\n", "salt");
    refuse("tenants:\n  - name: alpha\n    salt: 5ec2e7\n", "salt");
    refuse("tenants:\n  - name: alpha\n    salt: [5ec2e7]\n", "wrong type");
    refuse(RECORD("    key_sha256: [5ec2e7]\n"), "key_sha256");
    refuse(RECORD("    key_sha256: 5ec2e7\n"), "key_sha256");
    refuse(RECORD("    priority: urgent\n"), "priority");
    refuse(RECORD("    cache_modes: [readwrite, all]\n"), "cache_modes");
    refuse(RECORD("    requests_per_minute: 0\n"), "requests_per_minute");
    refuse(RECORD("    requests_per_minute: -1\n"), "requests_per_minute");
    refuse(RECORD("    tokens_per_minute: 99999999999999999999\n"), "tokens_per_minute");
    refuse(RECORD("    tokens_per_minute: 1e6\n"), "tokens_per_minute");
    refuse(RECORD("    concurrent: many\n"), "concurrent");
    refuse(RECORD("    host_bytes: 4 apples\n"), "host_bytes");
    refuse(RECORD("    disk_bytes: 0\n"), "disk_bytes");
    refuse(RECORD("    operator: perhaps\n"), "operator");
    refuse(RECORD("    quota: 1\n"), "quota");
    refuse(RECORD("    concurrent: 1\n    concurrent: 2\n"), "twice");
    refuse(RECORD("") "  - name: alpha\n    salt: " TEXT_A "\n", "another record");
    refuse(RECORD("") "  - name: beta\n    salt: " TEXT_A "\n", "share");
}

static void test_a_key_of_two(void **state)
{
    (void)state;
    char hash[65], text[1024];
    hash_of("key-one", hash);
    snprintf(text, sizeof text,
        "tenants:\n  - name: alpha\n    salt: %s\n    key_sha256: [%s]\n"
        "  - name: beta\n    salt: %s\n    key_sha256: [%s]\n",
        SALT_A, hash, SALT_B, hash);
    refuse(text, "key_sha256");
}

static void test_others_may_not_read_it(void **state)
{
    (void)state;
    kv_tenants_t *tenants;
    kv_error_t error;
    write_both();
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(kv_tenants_open(path, &tenants, &error), KV_REFUSED);
    assert_non_null(strstr(error.text, "chmod 600"));
    assert_int_equal(kv_tenants_open("/nonexistent/tenants", &tenants, &error), KV_MISSING);
    assert_non_null(strstr(error.text, "gateway.tenants_file"));
}

static void test_empty_files_let_nobody_in(void **state)
{
    (void)state;
    static const char *const TEXTS[] = {"tenants: []\n", "tenants:\n", "{}\n"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        write_file(TEXTS[i]);
        kv_tenants_t *tenants = open_file();
        assert_null(kv_tenants_find(tenants, "key-one"));
        assert_null(kv_tenants_find(tenants, NULL));
        kv_tenants_close(tenants);
    }
}

/* A key is replaced, a tenant goes, its request is still there; then the file is broken. */
static void test_read_again(void **state)
{
    (void)state;
    kv_error_t error;
    uint64_t wait_ns;
    char hash[65], text[512];
    write_both();
    kv_tenants_t *tenants = open_file();
    kv_tenant_t *alpha = kv_tenants_find(tenants, "key-one");
    kv_tenant_t *beta = kv_tenants_find(tenants, "key-three");
    assert_true(kv_bucket_take(&alpha->requests, 300, 1, &wait_ns));
    hash_of("key-four", hash);
    snprintf(text, sizeof text,
        "tenants:\n  - name: alpha\n    salt: %s\n    key_sha256: [%s]\n"
        "    requests_per_minute: 60\n",
        SALT_A, hash);
    write_file(text);
    assert_int_equal(kv_tenants_reload(tenants, &error), KV_OK);
    assert_null(kv_tenants_find(tenants, "key-one"));
    assert_null(kv_tenants_find(tenants, "key-three"));
    kv_tenant_t *same = kv_tenants_find(tenants, "key-four");
    assert_ptr_equal(same, alpha);
    assert_int_equal(kv_bucket_left(&alpha->requests, 1), 30); /* half of it was taken */
    assert_string_equal(beta->name, "beta");
    write_file("tenants: nothing\n");
    assert_int_equal(kv_tenants_reload(tenants, &error), KV_INVALID);
    kv_tenant_t *still = kv_tenants_find(tenants, "key-four");
    assert_ptr_equal(still, alpha);
    kv_tenant_release(still);
    kv_tenant_release(same);
    kv_tenant_release(alpha);
    kv_tenants_close(tenants);
    kv_tenant_release(beta); /* after all */
}

/* Each sees its own, an operator all, who has no key nothing; without tenants everybody all. */
static void test_who_may_see_what(void **state)
{
    (void)state;
    static const char *const WHOSE[] = {"alpha", "beta", "", "*"};
    kv_access_t access = {0}, open = {0};
    kv_error_t error;
    write_both();
    access.tenants = open_file();
    assert_int_equal(kv_tenants_open("", &open.tenants, &error), KV_OK);
    const kv_call_t alpha = {.tenant = "alpha"}, nobody = {0};
    const kv_call_t operator= {.tenant = "beta", .is_operator = true};
    for (size_t i = 0; i < sizeof WHOSE / sizeof WHOSE[0]; i++) {
        assert_int_equal(kv_access_may_see(&access, &alpha, WHOSE[i]), i == 0);
        assert_true(kv_access_may_see(&access, &operator, WHOSE[i]));
        assert_false(kv_access_may_see(&access, &nobody, WHOSE[i]));
        assert_true(kv_access_may_see(&open, &nobody, WHOSE[i]));
    }
    kv_tenants_close(access.tenants);
    kv_tenants_close(open.tenants);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_the_file_says),
        cmocka_unit_test(test_without_a_file),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_a_key_of_two),
        cmocka_unit_test(test_others_may_not_read_it),
        cmocka_unit_test(test_empty_files_let_nobody_in),
        cmocka_unit_test(test_read_again),
        cmocka_unit_test(test_who_may_see_what),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
