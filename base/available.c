#include "base/available.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const kv_available_places_t MACHINE = {"/proc", "/sys/fs/cgroup"};

/* What the versions call things. */
typedef struct {
    const char *controller, *folder, *limit, *usage, *inactive, *active;
} version_t;

static const version_t VERSIONS[] = {
    {"", "", "memory.max", "memory.current", "inactive_file ", "active_file "},
    {"memory", "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ",
        "total_active_file "},
};

/* The number behind `field` at the start of a line; a file of one number has the field "". */
static bool read_number(const char *path, const char *field, uint64_t *value_out)
{
    FILE *file = fopen(path, "re");
    char line[256];
    bool found = false;
    const size_t length = strlen(field);
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        char *end;
        if (strncmp(line, field, length) == 0) {
            uint64_t value = strtoull(line + length, &end, 10);
            found = end != line + length; /* not "max" */
            *value_out = found ? value : *value_out;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

static void bound(kv_available_t *left, uint64_t available_bytes, uint64_t total_bytes)
{
    if (available_bytes < left->available_bytes) {
        *left = (kv_available_t){available_bytes, total_bytes};
    }
}

static void look_at_machine(const char *proc, kv_available_t *left)
{
    char path[PATH_MAX];
    uint64_t total_kib, available_kib;
    snprintf(path, sizeof path, "%s/meminfo", proc);
    if (read_number(path, "MemTotal:", &total_kib) &&
        read_number(path, "MemAvailable:", &available_kib)) {
        bound(left, available_kib << 10, total_kib << 10);
    }
}

static void look_at_group(const version_t *version, const char *folder, kv_available_t *left)
{
    char path[PATH_MAX + 32];
    uint64_t limit, usage, inactive = 0, active = 0;
    snprintf(path, sizeof path, "%s/%s", folder, version->limit);
    if (!read_number(path, "", &limit)) {
        return;
    }
    snprintf(path, sizeof path, "%s/%s", folder, version->usage);
    if (!read_number(path, "", &usage)) {
        return;
    }
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    read_number(path, version->inactive, &inactive);
    read_number(path, version->active, &active);
    const uint64_t files = inactive + active, held = usage > files ? usage - files : 0;
    bound(left, limit > held ? limit - held : 0, limit);
}

/* The group of that path and all above it. Inside a container the path may be the host's: then only
 * the mount's own root is there. */
static void look_at_groups(
    const version_t *version, const char *cgroup, const char *path, kv_available_t *left)
{
    char folder[PATH_MAX];
    const size_t root = strlen(cgroup) + strlen(version->folder);
    if (snprintf(folder, sizeof folder, "%s%s%s", cgroup, version->folder, path) >= PATH_MAX) {
        return;
    }
    for (char *end = folder + strlen(folder); end != NULL; end = strrchr(folder + root, '/')) {
        *end = '\0';
        look_at_group(version, folder, left);
    }
}

/* Whether the list of controllers, "a,b,c", has that one; version 2 lists none. */
static bool lists(const char *controllers, const char *wanted)
{
    const char *at = wanted[0] == '\0' ? NULL : strstr(controllers, wanted);
    const size_t length = strlen(wanted);
    return at == NULL
               ? strcmp(controllers, wanted) == 0
               : (at == controllers || at[-1] == ',') && (at[length] == '\0' || at[length] == ',');
}

kv_available_t kv_available_memory(const kv_available_places_t *places)
{
    kv_available_t left = {UINT64_MAX, UINT64_MAX};
    const kv_available_places_t *at = places != NULL ? places : &MACHINE;
    look_at_machine(at->proc, &left);
    char path[PATH_MAX], line[PATH_MAX];
    snprintf(path, sizeof path, "%s/self/cgroup", at->proc);
    FILE *file = fopen(path, "re");
    /* Its lines are "number:controllers:path". */
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) {
            continue;
        }
        *group = '\0';
        for (size_t i = 0; i < sizeof VERSIONS / sizeof VERSIONS[0]; i++) {
            if (lists(controllers + 1, VERSIONS[i].controller)) {
                look_at_groups(&VERSIONS[i], at->cgroup, group + 1, &left);
            }
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return left;
}
