/* Memory that a peer reads: only what was named is mapped, and nobody else writes to it. */
#include "testing/testing.h"
#include "transport/ucx/segment.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BYTES = 3 << 12 };

static void a_reader_sees_what_its_owner_writes(void **state)
{
    (void)state;
    kv_segment_t segment;
    kv_segment_name_t name;
    const uint8_t *theirs = NULL;
    assert_int_equal(kv_segment_create(BYTES, &segment, NULL), KV_OK);
    assert_int_equal(kv_segment_name(&segment, &name, NULL), KV_OK);
    assert_int_equal(kv_segment_map(&name, &theirs, NULL), KV_OK);
    memset(segment.base, 0x5a, BYTES);
    assert_memory_equal(theirs, segment.base, BYTES);
    kv_segment_destroy(&segment);
    assert_int_equal(theirs[BYTES - 1], 0x5a); /* the reader's map outlives its owner */
    munmap((void *)theirs, BYTES);
}

static void nobody_else_writes_or_shortens(void **state)
{
    (void)state;
    kv_segment_t segment;
    assert_int_equal(kv_segment_create(BYTES, &segment, NULL), KV_OK);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", segment.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(mmap(NULL, BYTES, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    assert_int_equal(write(fd, "x", 1), -1);
    assert_int_equal(ftruncate(fd, 0), -1);
    close(fd);
    kv_segment_destroy(&segment);
}

static void only_what_was_named_is_mapped(void **state)
{
    (void)state;
    kv_segment_t segment;
    kv_segment_name_t right;
    const uint8_t *theirs = NULL;
    kv_error_t error;
    assert_int_equal(kv_segment_create(BYTES, &segment, NULL), KV_OK);
    assert_int_equal(kv_segment_name(&segment, &right, NULL), KV_OK);
    int other = memfd_create("another", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int unsealed = memfd_create("kvist-wire", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(other >= 0 && unsealed >= 0 && ftruncate(unsealed, BYTES) == 0);
    kv_segment_name_t wrong[7] = {right, right, right, right, right, right, right};
    wrong[0].inode++;
    wrong[1].bytes -= 4096;
    wrong[2].bytes += 4096;
    wrong[3].fd = (uint32_t)other;
    wrong[4].fd = 1u << 30;
    wrong[5].pid = 0;
    kv_segment_t alike = {unsealed, NULL, BYTES};
    assert_int_equal(kv_segment_name(&alike, &wrong[6], NULL), KV_OK); /* it may be cut short */
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_not_equal(kv_segment_map(&wrong[i], &theirs, &error), KV_OK);
        assert_null(theirs);
        assert_true(strlen(error.text) > 0);
    }
    close(other);
    close(unsealed);
    kv_segment_destroy(&segment);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_sees_what_its_owner_writes),
        cmocka_unit_test(nobody_else_writes_or_shortens),
        cmocka_unit_test(only_what_was_named_is_mapped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
