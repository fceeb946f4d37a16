#include "testing/testing.h"

#include "base/memory.h"

#include <ftw.h>
#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static char folder[256];

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static void remove_folder(void)
{
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* $KVIST_TEST_CASES is a pattern ("pack*") of the cases to run; without it all are. */
__attribute__((constructor)) static void choose_cases(void)
{
    cmocka_set_test_filter(getenv("KVIST_TEST_CASES"));
}

const char *kv_test_folder(void)
{
    if (folder[0] == '\0') {
        const char *parent = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%s/kvist-test-XXXXXX", parent != NULL ? parent : "/tmp");
        assert_non_null(mkdtemp(folder));
        atexit(remove_folder);
    }
    return folder;
}

const char *kv_test_model(void)
{
    static char path[512];
    const char *chosen = getenv("KVIST_MODEL");
    if (chosen != NULL) {
        snprintf(path, sizeof path, "%s", chosen);
    } else {
        const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
        snprintf(path, sizeof path, "%s%s/kvist/models/SmolLM2-135M-Instruct.Q4_1.gguf",
            cache != NULL  ? cache
            : home != NULL ? home
                           : "/root",
            cache != NULL ? "" : "/.cache");
    }
    if (access(path, R_OK) != 0) {
        print_message("skipped: no model at %s; run tools/fetch-model\n", path);
        skip();
    }
    return path;
}

bool kv_test_long(void)
{
    const char *value = getenv("KVIST_TEST_LONG");
    return value != NULL && strcmp(value, "1") == 0;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = true };
#elif defined(__has_feature)
enum { SANITIZED = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) };
#else
enum { SANITIZED = false };
#endif

bool kv_test_sanitized(void)
{
    return SANITIZED;
}

void kv_test_reuse_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that glibc takes */
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    mallopt(M_TOP_PAD, 16 << 20);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

uint64_t kv_test_seed(void)
{
    const char *value = getenv("KVIST_SEED");
    return value != NULL ? strtoull(value, NULL, 10) : 20261122;
}

uint64_t kv_test_random(uint64_t *state)
{
    uint64_t mixed = *state += 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}
