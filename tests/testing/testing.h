/* What Kvist's unit tests share: cmocka, a folder of one's own, the real model, seeds and budgets.
 */
#ifndef KV_TESTING_H
#define KV_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* A new empty folder, removed with all that is in it when the program ends. */
const char *kv_test_folder(void);

/* The small model's path: $KVIST_MODEL, or the cache that tools/fetch-model fills. Skips the test
 * (with the reason) where it was not fetched; under tools/test it always is. */
const char *kv_test_model(void);

/* true under tools/test --long: full budgets. */
bool kv_test_long(void);

/* true where a sanitizer watches: it looks for other things than a test does, and takes ten times
 * as long. What the plain run tries in full, it tries in part. */
bool kv_test_sanitized(void);

/* For a test that makes thousands of stores or engines: freed memory is kept and used again, huge
 * pages are left to others. */
void kv_test_reuse_memory(void);

/* The seed of this run: $KVIST_SEED or a fixed default; print it with a failure. */
uint64_t kv_test_seed(void);

/* A small generator for tests (splitmix64). */
uint64_t kv_test_random(uint64_t *state);

#endif
