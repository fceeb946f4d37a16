/* Devices by name: which names there are, and what is said of plug-ins that are not there or not
 * ours. */
#include "kernels/plugin.h"

#include "testing/testing.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void other_names_are_refused(void **state)
{
    (void)state;
    static const char *const NAMES[] = {
        "", "gpu", "cuda:", "cuda:x", "cuda:1024", "cuda:1 ", "cuda0", "CPU", "simt:0", "cpu:1"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        kv_device_t *device = NULL;
        kv_error_t error;
        assert_int_equal(kv_device_open(NAMES[i], 1, &device, NULL, &error), KV_INVALID);
        assert_null(device);
        assert_non_null(strstr(error.text, "cuda:N"));
    }
}

static void the_cpu_is_always_there(void **state)
{
    (void)state;
    kv_device_t *device;
    kv_error_t passed_over, error;
    char title[KV_DEVICE_TITLE_BYTES], cut[4];
    assert_int_equal(kv_device_open("cpu", 3, &device, &passed_over, &error), KV_OK);
    assert_string_equal(device->ops->name, "cpu");
    assert_int_equal(passed_over.status, KV_OK);
    device->ops->title(device, title, sizeof title);
    assert_non_null(strstr(title, ", threads 3"));
    device->ops->title(device, cut, sizeof cut);
    assert_int_equal(strlen(cut), sizeof cut - 1);
    kv_device_close(device);
}

/* A file under a plug-in's name that is no library. */
static void what_is_no_library_is_told(void **state)
{
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s/libkvist-cuda.so", kv_test_folder());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("not a library", file);
    fclose(file);
    setenv("KVIST_PLUGINS", kv_test_folder(), 1);
    kv_device_t *device = NULL;
    kv_error_t passed_over, error;
    kv_status_t status = kv_device_open("cuda:1023", 1, &device, NULL, &error);
    assert_int_equal(status, KV_MISSING); /* ours lies beside: it has no such GPU */
    assert_null(device);
    assert_int_equal(kv_device_open("auto", 1, &device, &passed_over, &error), KV_OK);
    const bool gpu = strcmp(device->ops->name, "cpu") != 0;
    assert_int_equal(gpu, passed_over.status == KV_OK);
    assert_int_equal(gpu, passed_over.text[0] == '\0');
    kv_device_close(device);
    setenv("KVIST_DEVICE", "cpu", 1);
    assert_int_equal(kv_device_open("auto", 1, &device, &passed_over, &error), KV_OK);
    assert_string_equal(device->ops->name, "cpu");
    assert_int_equal(passed_over.status, KV_OK);
    kv_device_close(device);
    setenv("KVIST_DEVICE", "gpu", 1);
    assert_int_equal(kv_device_open("auto", 1, &device, NULL, &error), KV_INVALID);
    unsetenv("KVIST_DEVICE");
    unsetenv("KVIST_PLUGINS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_names_are_refused),
        cmocka_unit_test(the_cpu_is_always_there),
        cmocka_unit_test(what_is_no_library_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
