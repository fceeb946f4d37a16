/* Checksums: values that never change, and the fused copy against hashing and copying apart. */
#include "base/checksum.h"
#include "base/checksum_kernel.h"
#include "base/memory.h"
#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 64, BYTES_MAX = 1 << 20 };

static void fill(char *bytes, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (char)kv_test_random(&seed);
    }
}

/* What is on disks and wires was made with these values. */
static void values_never_change(void **state)
{
    (void)state;
    assert_true(kv_checksum("", 0) == 0x2d06800538d394c2ull);
    assert_true(kv_checksum("kvist", 5) == 0xacff963bae33cadeull);
    assert_true(kv_checksum_seeded("kvist", 5, 7) == 0x73b71f0705efdfbfull);
}

static const kv_checksum_kernel_t *const KERNELS[] = {
    &kv_checksum_plain, &kv_checksum_avx2, &kv_checksum_avx512};

static bool kernel_runs_here(size_t kernel)
{
    return kernel == 0 || (kernel == 1 && __builtin_cpu_supports("avx2")) ||
           (kernel == 2 && __builtin_cpu_supports("avx512f"));
}

/* One copy by each of the two: the bytes, the checksum, and not a byte around them. */
static void check_copy(const kv_checksum_kernel_t *kernel, const char *from, char *room,
    size_t to_offset, size_t bytes)
{
    size_t room_bytes = to_offset + bytes + GUARD_BYTES;
    for (int near = 0; near < 2; near++) {
        const uint64_t seed = near ? 0x1234567 + bytes : 0;
        memset(room, 0x5a, room_bytes);
        uint64_t sum = near ? kernel->copy_near(room + to_offset, from, bytes, seed)
                            : kernel->copy(room + to_offset, from, bytes, seed);
        kv_checksum_copy_fence();
        assert_true(sum == XXH3_64bits_withSeed(from, bytes, seed));
        assert_memory_equal(room + to_offset, from, bytes);
        for (size_t i = 0; i < to_offset; i++) {
            assert_int_equal(room[i], 0x5a);
        }
        for (size_t i = to_offset + bytes; i < room_bytes; i++) {
            assert_int_equal(room[i], 0x5a);
        }
    }
    assert_true(kernel->copy(room, from, bytes, 9) == XXH3_64bits_withSeed(from, bytes, 9));
}

static void fused_copy_agrees_at_every_size_and_alignment(void **state)
{
    (void)state;
    char *from = kv_allocate(BYTES_MAX + GUARD_BYTES);
    char *room = kv_allocate(BYTES_MAX + 3 * GUARD_BYTES);
    fill(from, BYTES_MAX + GUARD_BYTES, 1);
    static const size_t SIZES[] = {511, 512, 513, 576, 1024, 2048, 4095, 4096, 4097, 8191, 8192,
        8193, 12345, 65536, 368640, BYTES_MAX - 1, BYTES_MAX};
    for (size_t kernel = 0; kernel < sizeof KERNELS / sizeof KERNELS[0]; kernel++) {
        if (!kernel_runs_here(kernel)) {
            continue;
        }
        for (size_t bytes = 0; bytes <= 300; bytes++) {
            check_copy(KERNELS[kernel], from + bytes % 7, room, bytes % 67, bytes);
        }
        for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; i++) {
            check_copy(KERNELS[kernel], from, room, 0, SIZES[i]);
            check_copy(KERNELS[kernel], from + 1, room, 63, SIZES[i]);
            check_copy(KERNELS[kernel], from + 33, room, 17, SIZES[i]);
        }
        for (size_t offset = 0; offset < GUARD_BYTES; offset++) {
            check_copy(KERNELS[kernel], from + 5, room, offset, 4096 + offset);
        }
    }
    free(from);
    free(room);
}

static void every_instruction_set_gives_one_value(void **state)
{
    (void)state;
    char *bytes = kv_allocate(70000), *copy = kv_allocate(70000);
    fill(bytes, 70000, 2);
    for (size_t count = 0; count <= 70000; count += count < 600 ? 1 : 997) {
        uint64_t sum = kv_checksum(bytes, count), seeded = kv_checksum_seeded(bytes, count, 77);
        for (size_t kernel = 0; kernel < sizeof KERNELS / sizeof KERNELS[0]; kernel++) {
            if (kernel_runs_here(kernel)) {
                assert_true(KERNELS[kernel]->sum(bytes, count) == sum);
                assert_true(KERNELS[kernel]->sum_seeded(bytes, count, 77) == seeded);
                assert_true(KERNELS[kernel]->copy(copy, bytes, count, 77) == seeded);
                assert_true(KERNELS[kernel]->copy_near(copy, bytes, count, 0) == sum);
            }
        }
    }
    free(bytes);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_never_change),
        cmocka_unit_test(fused_copy_agrees_at_every_size_and_alignment),
        cmocka_unit_test(every_instruction_set_gives_one_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
