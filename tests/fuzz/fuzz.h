/* What the fuzzers share: taking an input apart, and a check that libFuzzer sees as a crash.
 *
 * A fuzzer is one file with LLVMFuzzerTestOneInput. Its input is a program of the harness (which
 * role, which message, what is altered in it) rather than bare bytes, so that what a key or a
 * checksum guards is reached as well. Beside crashes each looks at what must stay true. */
#ifndef KV_TESTS_FUZZ_FUZZ_H
#define KV_TESTS_FUZZ_FUZZ_H

#include "base/bytes.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* What is left of the input. Beyond its end there are zeros. */
typedef struct {
    const uint8_t *bytes;
    size_t count;
} fuzz_input_t;

static inline uint8_t fuzz_u8(fuzz_input_t *input)
{
    if (input->count == 0) {
        return 0;
    }
    input->count--;
    return *input->bytes++;
}

static inline uint16_t fuzz_u16(fuzz_input_t *input)
{
    uint8_t low = fuzz_u8(input);
    return (uint16_t)(low | fuzz_u8(input) << 8);
}

static inline uint32_t fuzz_u32(fuzz_input_t *input)
{
    uint16_t low = fuzz_u16(input);
    return low | (uint32_t)fuzz_u16(input) << 16;
}

static inline uint64_t fuzz_u64(fuzz_input_t *input)
{
    uint32_t low = fuzz_u32(input);
    return low | (uint64_t)fuzz_u32(input) << 32;
}

/* Up to wanted bytes, in memory of exactly their size, so that a read beyond them is seen; release
 * with free(). */
static inline uint8_t *fuzz_take(fuzz_input_t *input, size_t wanted, size_t *count_out)
{
    size_t count = wanted < input->count ? wanted : input->count;
    uint8_t *copy = malloc(count > 0 ? count : 1);
    FUZZ_CHECK(copy != NULL);
    if (count > 0) {
        memcpy(copy, input->bytes, count);
    }
    input->bytes += count;
    input->count -= count;
    *count_out = count;
    return copy;
}

#endif
