#include "tools/kvist/bench/cores.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

uint32_t kv_cores_count(void)
{
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? (uint32_t)CPU_COUNT(&allowed) : 1;
}

/* Calls visit for each thread of the process. */
static kv_status_t visit_threads(const kv_child_t *child,
    kv_status_t (*visit)(void *context, pid_t process, pid_t thread, kv_error_t *error),
    void *context, kv_error_t *error)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/task", (long)child->pid);
    DIR *folder = kv_child_alive(child) ? opendir(path) : NULL;
    if (folder == NULL) {
        return kv_fail(error, KV_MISSING, "process %ld has ended", (long)child->pid);
    }
    kv_status_t status = KV_OK;
    const struct dirent *entry;
    while (status == KV_OK && (entry = readdir(folder)) != NULL) {
        pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
        if (thread > 0) {
            status = visit(context, child->pid, thread, error);
        }
    }
    closedir(folder);
    return status;
}

static kv_status_t pin_thread(void *context, pid_t process, pid_t thread, kv_error_t *error)
{
    (void)process;
    if (sched_setaffinity(thread, sizeof(cpu_set_t), context) != 0 && errno != ESRCH) {
        return kv_fail_errno(error, errno, "thread %ld cannot be kept on its cores", (long)thread);
    }
    return KV_OK;
}

kv_status_t kv_child_pin(
    const kv_child_t *child, uint32_t first_core, uint32_t count, kv_error_t *error)
{
    cpu_set_t allowed, chosen;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return kv_fail_errno(error, errno, "this process' own cores cannot be read");
    }
    CPU_ZERO(&chosen);
    uint32_t place = 0;
    for (int core = 0; core < CPU_SETSIZE; core++) {
        if (CPU_ISSET(core, &allowed)) {
            if (place >= first_core && place - first_core < count) {
                CPU_SET(core, &chosen);
            }
            place++;
        }
    }
    return visit_threads(child, pin_thread, &chosen, error);
}

static kv_status_t add_time(void *context, pid_t process, pid_t thread, kv_error_t *error)
{
    (void)error;
    char path[96];
    unsigned long long ns = 0;
    snprintf(path, sizeof path, "/proc/%ld/task/%ld/schedstat", (long)process, (long)thread);
    FILE *file = fopen(path, "re");
    if (file != NULL) { /* a thread may end meanwhile */
        if (fscanf(file, "%llu", &ns) == 1) {
            *(uint64_t *)context += ns;
        }
        fclose(file);
    }
    return KV_OK;
}

kv_status_t kv_child_cpu_ns(const kv_child_t *child, uint64_t *cpu_ns_out, kv_error_t *error)
{
    uint64_t sum = 0;
    kv_status_t status = visit_threads(child, add_time, &sum, error);
    if (status == KV_OK) {
        *cpu_ns_out = sum;
    }
    return status;
}
