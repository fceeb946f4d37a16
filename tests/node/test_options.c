/* Options: defaults, file, command line; every error with its place, field and bound. */
#include "testing/testing.h"

#include "node/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const kv_options_program_t DECODE = {"kvist-decode", "decode", "decodes",
    KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_STORE | KV_SECTION_DECODE};

static char path[512];

static const char *write_file(const char *text, size_t bytes)
{
    snprintf(path, sizeof path, "%s/kvist.yaml", kv_test_folder());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
    return path;
}

/* Loads with the file's text (NULL: none) and up to three arguments. */
static kv_status_t load(
    const char *text, const char *const *more, kv_options_t *options, kv_error_t *error)
{
    char *arguments[8] = {(char *)"kvist-decode"};
    int count = 1;
    kv_options_action_t action;
    for (; more != NULL && more[count - 1] != NULL; count++) {
        arguments[count] = (char *)more[count - 1];
    }
    if (text != NULL) {
        arguments[count++] = (char *)"--config";
        arguments[count++] = (char *)write_file(text, strlen(text));
    }
    memset(error, 0, sizeof *error);
    return kv_options_load(&DECODE, count, arguments, options, &action, error);
}

/* FILE in the expected text stands for the file's path. */
static void expect_file_error(const char *text, const char *expected)
{
    kv_options_t options;
    kv_error_t error;
    char whole[1024];
    kv_status_t status = load(text, NULL, &options, &error);
    snprintf(whole, sizeof whole, "%s%s", path, expected);
    if (status != KV_INVALID || strncmp(error.text, whole, strlen(whole)) != 0) {
        fail_msg("%s\n  gave %s: %s\n  not %s", text, kv_status_name(status), error.text, whole);
    }
}

static void expect_argument_error(const char *argument, const char *expected)
{
    kv_options_t options;
    kv_error_t error;
    const char *const more[] = {argument, NULL};
    kv_status_t status = load(NULL, more, &options, &error);
    if (status != KV_INVALID || strstr(error.text, expected) == NULL) {
        fail_msg("%s gave %s: %s", argument, kv_status_name(status), error.text);
    }
}

static void test_defaults(void **state)
{
    (void)state;
    kv_options_t options;
    kv_error_t error;
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    setenv("XDG_DATA_HOME", "/data", 1);
    assert_int_equal(load(NULL, NULL, &options, &error), KV_OK);
    assert_string_equal(options.node.name, "decode");
    assert_string_equal(options.node.admin, "/run/user/7/kvist/decode.sock");
    assert_string_equal(options.store.directory, "/data/kvist/decode");
    assert_int_equal(options.store.host_bytes, 1ull << 30);
    assert_int_equal(options.decode.reserve_limit_ns, 2000000000);
    assert_int_equal(options.node.log_level, KV_LOG_INFO);
    assert_int_equal(options.decode.prefill_nodes.count, 0);
    assert_true(options.model.threads >= 1);
    kv_options_clear(&options);
    /* An empty file and empty sections change nothing. */
    assert_int_equal(load("# nothing\n", NULL, &options, &error), KV_OK);
    kv_options_clear(&options);
    assert_int_equal(load("store:\nnode:\n  port: 5\n", NULL, &options, &error), KV_OK);
    assert_int_equal(options.node.port, 5);
    kv_options_clear(&options);
}

static void test_precedence(void **state)
{
    (void)state;
    kv_options_t options;
    kv_error_t error;
    const char *const more[] = {"--store.disk_bytes=3GiB", "--decode.prefill_nodes",
        "127.0.0.1:1,[::1]:2", "--store.directory=none", "--store.disks=/a=2GiB,/b=c=1MiB", NULL};
    const char *text =
        "store:\n  disk_bytes: 5GiB\n  host_bytes: 1.5 GiB\n  persist: spill\n"
        "decode:\n  prefill_nodes: ['10.0.0.1:9', 'localhost:10']\n  transfer_limit: 250ms\n"
        "gateway:\n  decode_nodes:\n    - 10.0.0.2:1\n"
        "model:\n  f32: yes\n  block_tokens: 64\n";
    assert_int_equal(load(text, more, &options, &error), KV_OK);
    assert_int_equal(options.store.disk_bytes, 3ull << 30);
    assert_int_equal(options.store.host_bytes, 3ull << 29);
    assert_int_equal(options.store.persist, 1);
    assert_string_equal(options.store.directory, "");
    assert_int_equal(options.decode.prefill_nodes.count, 2);
    assert_string_equal(options.decode.prefill_nodes.items[1], "[::1]:2");
    assert_int_equal(options.store.disks.count, 2);
    char *folder;
    uint64_t bytes;
    assert_int_equal(kv_options_disk(options.store.disks.items[1], &folder, &bytes), KV_OK);
    assert_string_equal(folder, "/b=c");
    assert_int_equal(bytes, 1 << 20);
    free(folder);
    assert_int_equal(options.decode.transfer_limit_ns, 250000000);
    assert_string_equal(options.gateway.decode_nodes.items[0], "10.0.0.2:1");
    assert_true(options.model.f32);
    assert_int_equal(options.model.block_tokens, 64);
    kv_options_clear(&options);
}

static void test_file_errors(void **state)
{
    (void)state;
    expect_file_error("node:\n  host: h\n  port: 65536\n",
        ":3: node.port: \"65536\" is wrong: must be a whole number, 0 to 65535");
    expect_file_error("\n\nnode:\n  port: -1\n", ":4: node.port: \"-1\"");
    expect_file_error("node:\n  port: 0x10\n", ":2: node.port: \"0x10\"");
    expect_file_error("node:\n  port:\n", ":2: node.port: \"\"");
    expect_file_error("cluster:\n  etcd:\n  - http://a:1\n  - http://u@b:2\n",
        ":4: cluster.etcd: \"http://u@b:2\" is wrong: must be at most 64 of http://host:port");
    expect_file_error("cluster:\n  nodes: ['127.0.0.1:0']\n", ":2: cluster.nodes: \"127.0.0.1:0\"");
    expect_file_error("node:\n  port: [1]\n", ":2: port: wrong type: Expecting STRING");
    expect_file_error("node:\n  port: {a: 1}\n", ":2: port: wrong type");
    expect_file_error("node: 5\n", ":1: node: wrong type: Expecting MAPPING");
    expect_file_error("[1, 2]\n", ":0: the file: wrong type: Expecting MAPPING");
    expect_file_error("node:\n  host: h\n  prot: 7\n", ":3: prot: no such option");
    expect_file_error("node:\n  host: h\n\n\nnod:\n  prot: 7\n", ":6: nod: no such option");
    expect_file_error("node:\n  port: 1\n  port: 2\n", ": port is set twice");
    expect_file_error("node:\n  port: 1\nnode:\n  host: a\n", ": node is set twice");
    expect_file_error("node:\n  wire: rdma\n", ":2: node.wire: \"rdma\" is wrong: must be one of "
                                               "auto|shm|tcp");
    expect_file_error("node:\n  wire: auto|shm\n", ":2: node.wire");
    expect_file_error("model:\n  f32: maybe\n", ":2: model.f32: \"maybe\" is wrong: must be true");
    expect_file_error("model:\n  block_tokens: 48\n",
        ":2: model.block_tokens: \"48\" is wrong: must be a whole number, 16 to 128, a power of");
    expect_file_error("store:\n  host_bytes: 2XB\n", ":2: store.host_bytes: \"2XB\"");
    expect_file_error("store:\n  disk_bytes: 1\n",
        ":2: store.disk_bytes: \"1\" is wrong: must be a size such as 2GiB, 1MiB to 1024TiB");
    expect_file_error("store:\n  disks:\n    - /a=1GiB\n    - /b\n",
        ":4: store.disks: \"/b\" is wrong: must be at most 7 of FOLDER=SIZE, without commas, of "
        "1MiB or more");
    expect_file_error("store:\n  disks: ['/a=1KiB']\n", ":2: store.disks: \"/a=1KiB\"");
    expect_file_error("decode:\n  reserve_limit: 5\n", ":2: decode.reserve_limit: \"5\" is wrong: "
                                                       "must be a duration");
    expect_file_error("decode:\n  reserve_limit: 2h\n", ":2: decode.reserve_limit: \"2h\"");
    expect_file_error("decode:\n  prefill_nodes:\n    - 10.0.0.1:1\n    - b\n    - 10.0.0.3:3\n",
        ":4: decode.prefill_nodes: \"b\" is wrong: must be at most 64 of host:port with a numeric "
        "host");
    expect_file_error("decode:\n  prefill_nodes:\n    - 127.0.0.1:0\n    - 127.0.0.1:3\n",
        ":3: decode.prefill_nodes: \"127.0.0.1:0\"");
    expect_file_error("decode:\n  prefill_nodes: 127.0.0.1:1\n",
        ":2: prefill_nodes: wrong type: Expecting "
        "SEQUENCE");
    expect_file_error("decode:\n  prefill_nodes: [[x]]\n", ":2: ");
    expect_file_error("node:\n\tport: 1\n", ": not YAML near line 1");
    expect_file_error("node:\n  host: \"open\n", ": not YAML near line 2");
    expect_file_error("node:\n  host: \xff\n", ": not YAML");
    expect_file_error("node:\n  host: &x a\n  name: *x\n", ": ");
    expect_file_error(
        "node:\n  name: a/b\n", ":2: node.name: \"a/b\" is wrong: must be 0 to 31 letters");
}

static void test_file_itself(void **state)
{
    (void)state;
    kv_options_t options;
    kv_error_t error;
    const char *const absent[] = {"--config=/nowhere/kvist.yaml", NULL};
    assert_int_equal(load(NULL, absent, &options, &error), KV_MISSING);
    assert_non_null(strstr(error.text, "/nowhere/kvist.yaml"));
    const char *const folder[] = {"--config", "/tmp", NULL};
    assert_int_equal(load(NULL, folder, &options, &error), KV_INVALID);
    size_t bytes = (1 << 20) + 1;
    char *large = malloc(bytes);
    memset(large, '#', bytes);
    const char *const too_large[] = {"--config", write_file(large, bytes), NULL};
    free(large);
    assert_int_equal(load(NULL, too_large, &options, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "1048577 bytes, at most 1048576"));
}

static void test_argument_errors(void **state)
{
    (void)state;
    expect_argument_error("--node.port=99999", "command line: node.port: \"99999\" is wrong: must "
                                               "be a whole number, 0 to 65535");
    expect_argument_error("--node.prt=1", "command line: --node.prt=1: no such option");
    expect_argument_error("node.port=1", "no such option");
    expect_argument_error("-v", "no such option");
    expect_argument_error("--", "no such option");
    expect_argument_error("", "no such option");
    expect_argument_error("--node.port", "command line: node.port: no value");
    expect_argument_error("--config", "no file");
    expect_argument_error("--prefill.queue_max=1", "kvist-decode has no such section");
    expect_argument_error(
        "--decode.prefill_nodes=localhost:1,", "decode.prefill_nodes: \"\" is wrong");
    expect_argument_error("--node.name=../x", "node.name: \"../x\" is wrong");
    expect_argument_error("--node.name=..", "node.name");
    static const char *const WRONG_URLS[] = {"etcd:2379", "http://", "http://a", "http://a:0",
        "http://a:65536", "http://a:1/", "http://a b:1", "ftp://a:1", "http://:1", "http://a:1?x"};
    for (size_t i = 0; i < sizeof WRONG_URLS / sizeof WRONG_URLS[0]; i++) {
        char argument[64];
        snprintf(argument, sizeof argument, "--cluster.etcd=%s", WRONG_URLS[i]);
        expect_argument_error(argument, "cluster.etcd: \"");
    }
    expect_argument_error("--cluster.etcd_prefix=kvist", "cluster.etcd_prefix: \"kvist\" is wrong");
    expect_argument_error("--cluster.etcd_prefix=/kvist/", "without '/' at the end");
    expect_argument_error("--cluster.etcd_ttl=1s", "cluster.etcd_ttl: \"1s\" is wrong");
    expect_argument_error("--node.advertise=host:1", "node.advertise: \"host:1\" is wrong");
    expect_argument_error("--node.advertise=10.0.0.1", "node.advertise");
    expect_argument_error("--store.disk_bytes=1MiB", "store.disk_bytes: 1048576 is wrong: must be "
                                                     "at least two of store.segment_bytes");
    expect_argument_error("--cluster.key=\xff", "cluster.key: \"(not shown)\" is wrong");
}

static void test_random_files(void **state)
{
    (void)state;
    static const char *const PIECES[] = {"node", "port", "store", ":", " ", "\n", "  ", "- ", "[",
        "]", "{", "}", "\"", "'", "1", "GiB", "#", "&a", "*a", "!!int", "\t", "|", ">", "?", ",",
        "decode", "prefill_nodes", "10.0.0.1:1", "\xff", "\n  "};
    uint64_t seed = kv_test_seed();
    for (int round = 0; round < (kv_test_long() ? 20000 : 1500); round++) {
        char text[512] = "";
        for (uint64_t i = kv_test_random(&seed) % 30; i > 0; i--) {
            strcat(text, PIECES[kv_test_random(&seed) % (sizeof PIECES / sizeof PIECES[0])]);
        }
        kv_options_t options;
        kv_error_t error;
        if (load(text, NULL, &options, &error) == KV_OK) {
            kv_options_clear(&options);
        } else {
            assert_true(error.text[0] != '\0');
        }
    }
}

static void test_help(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    kv_options_print_help(&DECODE, stream);
    fclose(stream);
    assert_non_null(strstr(text, "--decode.batch_rows=8\n"));
    assert_non_null(strstr(text, "a whole number, 1 to 256"));
    assert_non_null(strstr(text, "one of auto|shm|tcp"));
    assert_null(strstr(text, "--gateway."));
    free(text);
    kv_options_t options;
    kv_options_action_t action;
    kv_error_t error;
    char *arguments[] = {(char *)"x", (char *)"--bad", (char *)"--help"};
    assert_int_equal(kv_options_load(&DECODE, 3, arguments, &options, &action, &error), KV_OK);
    assert_int_equal(action, KV_OPTIONS_HELP);
}

static void test_cluster_key(void **state)
{
    (void)state;
    kv_options_t options;
    kv_error_t error;
    char key[KV_CLUSTER_KEY_BYTES_MAX], argument[600];
    size_t bytes;
    assert_int_equal(load(NULL, NULL, &options, &error), KV_OK);
    assert_int_equal(kv_options_cluster_key(&options, key, &bytes, &error), KV_MISSING);
    kv_options_clear(&options);

    const char *file = write_file("  0123456789abcdef\n", 19);
    snprintf(argument, sizeof argument, "--cluster.key_file=%s", file);
    const char *const more[] = {argument, NULL};
    assert_int_equal(load(NULL, more, &options, &error), KV_OK);
    chmod(file, 0644);
    assert_int_equal(kv_options_cluster_key(&options, key, &bytes, &error), KV_REFUSED);
    chmod(file, 0600);
    assert_int_equal(kv_options_cluster_key(&options, key, &bytes, &error), KV_OK);
    assert_int_equal(bytes, 16);
    assert_memory_equal(key, "0123456789abcdef", 16);
    write_file("short\n", 6);
    assert_int_equal(kv_options_cluster_key(&options, key, &bytes, &error), KV_INVALID);
    kv_options_clear(&options);
}

static void test_tenants(void **state)
{
    (void)state;
    static const char *const BAD[] = {"", "a", "a:", ":host_bytes=1GiB", "a:host_bytes=0",
        "a:host_bytes=1GiB:host_bytes=2GiB", "a:disk_bytes=much", "a:users=1",
        "a b:disk_bytes=1GiB", "12345678901234567890123456789012:disk_bytes=1GiB"};
    kv_option_tenant_t tenant;
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        assert_int_equal(kv_options_tenant(BAD[i], &tenant), KV_INVALID);
    }
    assert_int_equal(kv_options_tenant("ann:disk_bytes=2GiB:host_bytes=1MiB", &tenant), KV_OK);
    assert_string_equal(tenant.name, "ann");
    assert_int_equal(tenant.host_bytes, 1 << 20);
    assert_int_equal(tenant.disk_bytes, 2ull << 30);
    assert_int_equal(kv_options_tenant("b.c:host_bytes=1GiB", &tenant), KV_OK);
    assert_int_equal(tenant.disk_bytes, 0);
    expect_file_error("store:\n  tenants:\n    - a:disk_bytes=1GiB\n    - b\n",
        ":4: store.tenants: \"b\" is wrong: must be at most 64 of NAME:host_bytes=SIZE");
}

static void test_domains(void **state)
{
    (void)state;
    kv_error_t error;
    kv_option_domain_t domain;
    assert_int_equal(
        kv_options_domain("team-a:users=alice+1001:host_bytes=2GiB:disk_bytes=8GiB:directory=/a b",
            &domain, &error),
        KV_OK);
    assert_string_equal(domain.name, "team-a");
    assert_int_equal(domain.user_count, 2);
    assert_string_equal(domain.users[1], "1001");
    assert_int_equal(domain.host_bytes, 2ull << 30);
    assert_int_equal(domain.disk_bytes, 8ull << 30);
    assert_string_equal(domain.directory, "/a b");
    kv_options_domain_clear(&domain);
    assert_int_equal(kv_options_domain("b", &domain, &error), KV_OK);
    assert_int_equal(domain.user_count, 0);
    assert_int_equal(domain.host_bytes, UINT64_MAX);
    assert_null(domain.directory);
    static const struct {
        const char *item, *told;
    } BAD[] = {{"", "the name"}, {"a b", "the name"}, {":users=a", "the name"},
        {"a:users=", "\"users=\""}, {"a:users=a++b", "no user's name"}, {"a:users", "NAME=VALUE"},
        {"a:users=a/b", "no user's name"}, {"a:host_bytes=many", "no size"},
        {"a:host_bytes=1GiB:host_bytes=1GiB", "no size"}, {"a:quota=1GiB", "none of users"},
        {"a:directory=/a:directory=/b", "said twice"},
        {"a:users=1+2+3+4+5+6+7+8+9+10+11+12+13+14+15+16+17", "at most 16"}};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_int_equal(kv_options_domain(BAD[i].item, &domain, &error), KV_INVALID);
        if (strstr(error.text, BAD[i].told) == NULL) {
            fail_msg("%s: %s", BAD[i].item, error.text);
        }
    }
    expect_file_error("store:\n  domains:\n    - a:users=1\n    - b:users\n",
        ":4: store.domains: \"b:users\" is wrong: must be at most 64 of NAME:users=A+B:");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_file_errors),
        cmocka_unit_test(test_file_itself),
        cmocka_unit_test(test_argument_errors),
        cmocka_unit_test(test_random_files),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_cluster_key),
        cmocka_unit_test(test_domains),
        cmocka_unit_test(test_tenants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
