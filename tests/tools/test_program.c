/* Programs that are asked and answer: lines, whole outputs, and those that do not answer. */
#include "testing/testing.h"

#include "tools/kvist/bench/fio.h"
#include "tools/kvist/bench/peer.h"
#include "tools/kvist/program.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void test_lines(void **state)
{
    (void)state;
    char *const argv[] = {"cat", NULL};
    kv_program_t program;
    kv_error_t error;
    char line[KV_PROGRAM_LINE_BYTES];
    assert_int_equal(kv_program_start(argv, &program, &error), KV_OK);
    assert_int_equal(kv_program_tell(&program, "one\ntwo", &error), KV_OK);
    assert_int_equal(kv_program_hear(&program, 10000, line, &error), KV_OK);
    assert_string_equal(line, "one");
    assert_int_equal(kv_program_hear(&program, 10000, line, &error), KV_OK);
    assert_string_equal(line, "two");
    assert_int_equal(kv_program_hear(&program, 20, line, &error), KV_PEER_LOST);
    assert_int_equal(kv_program_end(&program, 10000), 0);
}

static void test_all_of_it(void **state)
{
    (void)state;
    char *const argv[] = {"seq", "30000", NULL};
    kv_program_t program;
    kv_error_t error;
    char *text;
    assert_int_equal(kv_program_start(argv, &program, &error), KV_OK);
    assert_int_equal(kv_program_hear_all(&program, 20000, &text, &error), KV_OK);
    assert_int_equal(strlen(text), 168894);
    assert_string_equal(text + 168894 - 12, "29999\n30000\n");
    free(text);
    assert_int_equal(kv_program_end(&program, 10000), 0);
}

static void test_those_that_fail(void **state)
{
    (void)state;
    kv_program_t program;
    kv_error_t error;
    char line[KV_PROGRAM_LINE_BYTES];
    char *const missing[] = {"kvist-there-is-no-such-program", NULL};
    assert_int_equal(kv_program_start(missing, &program, &error), KV_MISSING);
    assert_non_null(strstr(error.text, missing[0]));
    char *const silent[] = {"false", NULL};
    assert_int_equal(kv_program_start(silent, &program, &error), KV_OK);
    assert_int_equal(kv_program_hear(&program, 10000, line, &error), KV_PEER_LOST);
    assert_int_equal(kv_program_end(&program, 10000), 1);
    char *const endless[] = {"sleep", "1000", NULL};
    assert_int_equal(kv_program_start(endless, &program, &error), KV_OK);
    assert_int_equal(kv_program_end(&program, 20), -1);
}

/* A driver as a shell script. */
static const char *write_driver(const char *name, const char *body)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", kv_test_folder(), name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", body);
    fclose(file);
    assert_int_equal(chmod(path, 0755), 0);
    return path;
}

static void test_peer(void **state)
{
    (void)state;
    const char *driver =
        write_driver("good", "echo '{\"name\": \"Toy 1\", \"can\": \"ram-put ram-get disk-put\"}'\n"
                             "while read -r call a b c; do case \"$call $a\" in\n"
                             "'prepare ram') echo '{}' ;;\n"
                             "'prepare disk') echo '{\"error\": \"no disk here\"}' ;;\n"
                             "'get 7') echo '{\"seconds\": 0.5}' ;;\n"
                             "*) echo '{\"seconds\": \"soon\"}' ;;\n"
                             "esac; done");
    kv_peer_t peer;
    kv_error_t error;
    double seconds;
    assert_int_equal(kv_peer_open(driver, &peer, &error), KV_OK);
    assert_string_equal(peer.name, "Toy 1");
    assert_true(kv_peer_can(&peer, "ram", "get"));
    assert_true(kv_peer_can(&peer, "disk", "put"));
    assert_false(kv_peer_can(&peer, "disk", "get"));
    assert_int_equal(kv_peer_prepare(&peer, "ram", 65536, 10, &error), KV_OK);
    assert_int_equal(kv_peer_prepare(&peer, "disk", 65536, 10, &error), KV_REFUSED);
    assert_string_equal(error.text, "no disk here");
    assert_int_equal(kv_peer_time(&peer, "get", 7, &seconds, &error), KV_OK);
    assert_true(seconds == 0.5);
    assert_int_equal(kv_peer_time(&peer, "get", 8, &seconds, &error), KV_INVALID);
    kv_peer_close(&peer);
    assert_int_equal(kv_peer_open(write_driver("bad", "echo hello"), &peer, &error), KV_INVALID);
    assert_int_equal(kv_peer_open(write_driver("dead", "exit 3"), &peer, &error), KV_PEER_LOST);
}

static void test_fio(void **state)
{
    (void)state;
    kv_fio_t fio;
    kv_error_t error;
    double rate = 0;
    kv_status_t status = kv_fio_open(kv_test_folder(), 4 << 20, &fio, &error);
    if (status == KV_MISSING) {
        print_message("fio is not installed\n");
        skip();
    }
    assert_int_equal(status, KV_OK);
    struct stat state_of_file;
    assert_int_equal(stat(fio.path, &state_of_file), 0);
    assert_int_equal(state_of_file.st_size, 4 << 20);
    assert_int_equal(kv_fio_read(&fio, 64 << 10, 4, 2 << 20, &rate, &error), KV_OK);
    assert_true(rate > 0);
    assert_int_equal(kv_fio_write(&fio, 64 << 10, 4, 2 << 20, 1 << 20, &rate, &error), KV_OK);
    assert_true(rate > 0);
    kv_fio_close(&fio);
    assert_int_not_equal(stat(fio.path, &state_of_file), 0);
    assert_int_not_equal(kv_fio_open("/dev/null", 1 << 20, &fio, &error), KV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_all_of_it),
        cmocka_unit_test(test_those_that_fail),
        cmocka_unit_test(test_peer),
        cmocka_unit_test(test_fio),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
