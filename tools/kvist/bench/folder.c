#include "tools/kvist/bench/folder.h"

#include "tools/kvist/cluster.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WALK_DESCRIPTORS = 8 };

static int remove_entry(const char *path, const struct stat *state, int type, struct FTW *walk)
{
    (void)state;
    (void)type;
    return walk->level == 0 ? 0 : remove(path);
}

/* Everything but fio's file, which serves all samples. */
static int remove_store(const char *path, const struct stat *state, int type, struct FTW *walk)
{
    return walk->level == 1 && type == FTW_F && strstr(path, "/fio.data") != NULL
               ? 0
               : remove_entry(path, state, type, walk);
}

void kv_bench_folder_clear(const char *folder)
{
    nftw(folder, remove_store, WALK_DESCRIPTORS, FTW_DEPTH | FTW_PHYS);
}

/* The folder with its parents. */
static kv_status_t make_folder(const char *path, kv_error_t *error)
{
    char parent[KV_BENCH_FOLDER_BYTES];
    for (const char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
        mkdir(parent, 0755);
    }
    return mkdir(path, 0755) == 0 || errno == EEXIST
               ? KV_OK
               : kv_fail_errno(error, errno, "--dir: the folder %s cannot be made", path);
}

kv_status_t kv_bench_folder_make(const char *asked, char *folder_out, kv_error_t *error)
{
    char parent[KV_BENCH_FOLDER_BYTES / 2];
    int length;
    if (asked != NULL) {
        length = snprintf(parent, sizeof parent, "%s", asked);
    } else {
        const char *state = kv_cluster_default_folder(), *slash = strrchr(state, '/');
        length = slash != NULL
                     ? snprintf(parent, sizeof parent, "%.*s/bench", (int)(slash - state), state)
                     : 0;
    }
    if (length <= 0 || length >= (int)sizeof parent) {
        return kv_fail(error, KV_INVALID, "--dir must have 1 to %zu bytes", sizeof parent - 1);
    }
    kv_status_t status = make_folder(parent, error);
    if (status != KV_OK) {
        return status;
    }
    snprintf(folder_out, KV_BENCH_FOLDER_BYTES, "%s/run-XXXXXX", parent);
    return mkdtemp(folder_out) != NULL
               ? KV_OK
               : kv_fail_errno(error, errno, "no folder can be made in %s", parent);
}

void kv_bench_folder_remove(const char *folder)
{
    nftw(folder, remove_entry, WALK_DESCRIPTORS, FTW_DEPTH | FTW_PHYS);
    rmdir(folder);
}
