#include "tools/kvist/cluster.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/http_client.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/cluster_file.h"
#include "tools/kvist/cluster_plan.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    HEALTH_LIMIT_MS = 120000,
    DRAIN_LIMIT_MS = 35000, /* somewhat more than node.drain_limit is where nobody set it */
    STOP_LIMIT_MS = 30000,  /* everything unsaved goes to disk in this time */
    TERM_LIMIT_MS = 20000,
    KILL_LIMIT_MS = 5000,
    LOG_LINES_SHOWN = 12,
};

const char *kv_cluster_default_folder(void)
{
    static char folder[KV_PATH_BYTES];
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (state != NULL && state[0] != '\0') {
        snprintf(folder, sizeof folder, "%s/kvist/default", state);
    } else if (home != NULL && home[0] != '\0') {
        snprintf(folder, sizeof folder, "%s/.local/state/kvist/default", home);
    }
    return folder;
}

size_t kv_cluster_alive_count(const kv_cluster_t *cluster)
{
    size_t count = 0;
    for (size_t i = 0; i < cluster->member_count; i++) {
        count += kv_child_alive(&cluster->members[i].child);
    }
    return count;
}

/* mkdir -p. */
static kv_status_t make_folder(const char *path, mode_t mode, kv_error_t *error)
{
    char parent[KV_PATH_BYTES];
    snprintf(parent, sizeof parent, "%s", path);
    for (char *at = strchr(parent + 1, '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(parent, 0755);
        *at = '/';
    }
    if (mkdir(path, mode) != 0 && errno != EEXIST) {
        return kv_fail_errno(error, errno, "the folder %s cannot be made", path);
    }
    return KV_OK;
}

/* The key is random, made once, never shown; it comes into place whole or not at all. */
static kv_status_t make_key(const char *folder, kv_error_t *error)
{
    enum { KEY_BYTES = 32 };
    char path[KV_PATH_BYTES], scratch[KV_PATH_BYTES], digits[2 * KEY_BYTES + 2];
    uint8_t key[KEY_BYTES];
    snprintf(path, sizeof path, "%s/cluster.key", folder);
    snprintf(scratch, sizeof scratch, "%s/cluster.key.new", folder);
    if (access(path, F_OK) == 0) {
        return KV_OK;
    }
    if (getrandom(key, sizeof key, 0) != sizeof key) {
        return kv_fail_errno(error, errno, "no random bytes for the cluster's key");
    }
    kv_hex_encode(key, sizeof key, digits);
    digits[2 * KEY_BYTES] = '\n';
    unlink(scratch);
    int fd = open(scratch, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool written = fd >= 0 && write(fd, digits, sizeof digits - 1) == sizeof digits - 1;
    if (fd >= 0) {
        written = close(fd) == 0 && written;
    }
    if (!written || rename(scratch, path) != 0) {
        return kv_fail_errno(error, errno, "%s cannot be written", path);
    }
    return KV_OK;
}

/* Makes and locks the folder; *folder_out is its absolute path, allocated. */
static kv_status_t enter_folder(
    const char *folder, char **folder_out, int *lock_out, kv_error_t *error)
{
    char path[KV_PATH_BYTES];
    if (folder[0] == '\0' || strlen(folder) > KV_PATH_BYTES / 2) {
        return kv_fail(error, KV_INVALID, "no usable folder '%s'; name one with --dir", folder);
    }
    kv_status_t status = make_folder(folder, 0700, error);
    char *absolute = status == KV_OK ? realpath(folder, NULL) : NULL;
    if (status == KV_OK && absolute == NULL) {
        status = kv_fail_errno(error, errno, "the folder %s cannot be entered", folder);
    }
    static const char *const inner[] = {"logs", "run", "store"};
    for (size_t i = 0; status == KV_OK && i < sizeof inner / sizeof *inner; i++) {
        snprintf(path, sizeof path, "%s/%s", absolute, inner[i]);
        status = make_folder(path, 0700, error);
    }
    int lock = -1;
    if (status == KV_OK) {
        snprintf(path, sizeof path, "%s/lock", absolute);
        lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0) {
            status = kv_fail_errno(error, errno,
                "another kvist up or down is at work in %s (its lock is held)", folder);
        }
    }
    status = status == KV_OK ? make_key(absolute, error) : status;
    if (status == KV_OK) {
        *folder_out = absolute;
        *lock_out = lock;
        return KV_OK;
    }
    if (lock >= 0) {
        close(lock);
    }
    free(absolute);
    return status;
}

/* Whether the node is connected to all members of the role. */
static bool sees_all(
    const kv_cluster_t *cluster, const Kvist__Admin__Status *status, const char *role)
{
    size_t seen = 0, wanted = 0;
    for (size_t i = 0; i < status->n_peers; i++) {
        seen += strcmp(status->peers[i]->role, role) == 0 && status->peers[i]->up;
    }
    for (size_t i = 0; i < cluster->member_count; i++) {
        const char *name = cluster->members[i].name;
        wanted += strncmp(name, role, strlen(role)) == 0 && name[strlen(role)] == '-';
    }
    return seen >= wanted;
}

/* The member answers on its admin socket, it is the process that we started, and it is connected to
 * the nodes that it sends requests to: a gateway to the decode nodes, those to the prefill nodes;
 * and attached, where it is to be. */
static bool is_healthy(const kv_cluster_t *cluster, const kv_member_t *member)
{
    Kvist__Admin__Reply *reply;
    if (access(member->admin, F_OK) != 0 || kv_ask_status(member->admin, &reply, NULL) != KV_OK) {
        return false;
    }
    const Kvist__Admin__Status *status = reply->status;
    bool healthy = status->pid == (uint64_t)member->child.pid;
    if (strcmp(status->role, "gateway") == 0) {
        healthy = healthy && sees_all(cluster, status, "decode");
    } else if (strcmp(status->role, "decode") == 0) {
        healthy = healthy && sees_all(cluster, status, "prefill");
    }
    healthy = healthy && (status->attach[0] == '\0' || status->attached_to[0] != '\0');
    kvist__admin__reply__free_unpacked(reply, NULL);
    return healthy;
}

static bool endpoint_answers(const kv_cluster_t *cluster)
{
    char url[KV_PATH_BYTES], *answer;
    long code;
    snprintf(url, sizeof url, "%s/healthz", cluster->endpoint);
    if (kv_http_fetch(url, NULL, NULL, KV_ADMIN_LIMIT_MS, &answer, &code, NULL) != KV_OK) {
        return false;
    }
    free(answer);
    return code == 200;
}

static kv_status_t fail_with_log(const kv_member_t *member, const char *what, kv_error_t *error)
{
    fprintf(stderr, "  %s %s; its last words (%s):\n", member->name, what, member->log);
    kv_print_tail(stderr, member->log, LOG_LINES_SHOWN);
    return kv_fail(error, KV_FATAL, "%s %s; all of its log: %s", member->name, what, member->log);
}

/* Waits until every node is healthy and the endpoint answers. */
static kv_status_t wait_for_health(const kv_cluster_t *cluster, kv_error_t *error)
{
    bool healthy[KV_CLUSTER_MEMBERS_MAX] = {false};
    uint64_t begun_ns = kv_clock_now_ns();
    for (;;) {
        size_t healthy_count = 0;
        uint64_t waited_ms = (kv_clock_now_ns() - begun_ns) / KV_NS_PER_MS;
        for (size_t i = 0; i < cluster->member_count; i++) {
            const kv_member_t *member = &cluster->members[i];
            if (!kv_child_alive(&member->child)) {
                return fail_with_log(member, "ended while it started", error);
            }
            if (!healthy[i] && is_healthy(cluster, member)) {
                healthy[i] = true;
                fprintf(stderr, "  %-10s up after %.1f s (pid %ld)\n", member->name,
                    (double)waited_ms / 1000, (long)member->child.pid);
            }
            healthy_count += healthy[i];
            if (!healthy[i] && waited_ms > HEALTH_LIMIT_MS) {
                return fail_with_log(member, "is not healthy after two minutes", error);
            }
        }
        if (healthy_count == cluster->member_count && endpoint_answers(cluster)) {
            return KV_OK;
        }
        if (waited_ms > HEALTH_LIMIT_MS) {
            return fail_with_log(&cluster->members[cluster->member_count - 1],
                "does not answer at /healthz after two minutes", error);
        }
        nanosleep(&(struct timespec){.tv_nsec = 50 * KV_NS_PER_MS}, NULL);
    }
}

/* Starts the members that do not live and writes down that they do. */
static kv_status_t start_members(kv_cluster_t *cluster, kv_error_t *error)
{
    /* Nodes share the cores: a team that waits must sleep, not spin. */
    setenv("OMP_WAIT_POLICY", "passive", 0);
    kv_status_t status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < cluster->member_count; i++) {
        kv_member_t *member = &cluster->members[i];
        if (!kv_child_alive(&member->child)) {
            status = kv_child_start(member->argv, member->log, &member->child, error);
        }
        kv_status_t saved = status == KV_OK ? kv_cluster_save(cluster, error) : KV_OK;
        status = status == KV_OK ? saved : status;
    }
    return status;
}

/* A gateway finishes what it has; false: it did not answer, or takes longer than its own limit. */
static bool drain_gateway(const kv_member_t *member)
{
    Kvist__Admin__Reply *reply;
    if (kv_ask_status(member->admin, &reply, NULL) != KV_OK) {
        return false;
    }
    bool gateway = strcmp(reply->status->role, "gateway") == 0;
    uint32_t running = reply->status->running_requests;
    kvist__admin__reply__free_unpacked(reply, NULL);
    if (!gateway || kv_ask_drain(member->admin, NULL) != KV_OK) {
        return false;
    }
    if (running > 0) {
        fprintf(stderr, "  %-10s finishes %u requests (kvist down --now does not wait)\n",
            member->name, running);
    }
    return kv_child_wait(&member->child, DRAIN_LIMIT_MS);
}

/* Asks, then insists. The gateway goes first, so that no request meets a missing node, and the
 * store last: what the others still have goes to it. */
static kv_status_t stop_members(kv_cluster_t *cluster, bool now, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t i = cluster->member_count; i-- > 0;) {
        kv_member_t *member = &cluster->members[i];
        if (!kv_child_alive(&member->child)) {
            continue;
        }
        const char *how = "stopped";
        if (!now && drain_gateway(member)) {
            fprintf(stderr, "  %-10s %s\n", member->name, how);
            continue;
        }
        bool asked = kv_ask_stop(member->admin, NULL) == KV_OK;
        if (!asked || !kv_child_wait(&member->child, STOP_LIMIT_MS)) {
            how = "stopped by SIGTERM";
            kv_child_signal(&member->child, SIGTERM);
            if (!kv_child_wait(&member->child, TERM_LIMIT_MS)) {
                how = "killed: it did not stop when asked";
                kv_child_signal(&member->child, SIGKILL);
            }
        }
        if (!kv_child_wait(&member->child, KILL_LIMIT_MS)) {
            status = kv_fail(error, KV_FATAL, "%s (pid %ld) does not end even when killed",
                member->name, (long)member->child.pid);
        } else {
            fprintf(stderr, "  %-10s %s\n", member->name, how);
        }
    }
    return status;
}

/* What is there already, or a new plan. *alive_out: nodes that live before the start. */
static kv_status_t prepare(const kv_cluster_params_t *params, const char *folder,
    kv_cluster_t *cluster_out, size_t *alive_out, kv_error_t *error)
{
    kv_cluster_t before;
    uint16_t port_before = 0;
    *alive_out = 0;
    kv_status_t status = kv_cluster_load(folder, &before, error);
    if (status == KV_OK) {
        *alive_out = kv_cluster_alive_count(&before);
        if (*alive_out > 0) {
            *cluster_out = before;
            return KV_OK;
        }
        const char *colon = strrchr(before.endpoint, ':');
        port_before = colon != NULL ? (uint16_t)strtoul(colon + 1, NULL, 10) : 0;
        kv_cluster_clear(&before);
    } else if (status != KV_MISSING) {
        return status;
    }
    return kv_cluster_plan(params, folder, port_before, cluster_out, error);
}

/* What only a new plan would take up. */
static bool asks_for_change(const kv_cluster_params_t *params)
{
    return params->model != NULL || params->config != NULL || params->http_port != 0 ||
           params->prefill_count != 0 || params->decode_count != 0 ||
           params->prefill_threads != 0 || params->decode_threads != 0 || params->colocated ||
           params->embedded || params->extra_count != 0;
}

kv_status_t kv_cluster_start(
    const kv_cluster_params_t *params, kv_cluster_t *cluster_out, kv_error_t *error)
{
    char *folder;
    int lock;
    kv_status_t status = enter_folder(params->folder, &folder, &lock, error);
    if (status != KV_OK) {
        return status;
    }
    kv_cluster_t cluster;
    size_t alive;
    status = prepare(params, folder, &cluster, &alive, error);
    if (status == KV_OK && alive > 0 && asks_for_change(params)) {
        fprintf(stderr, "options change nothing while it runs: 'kvist down' first\n");
    }
    if (status == KV_OK) {
        if (alive == cluster.member_count) {
            fprintf(stderr, "already up (%zu nodes)\n", alive);
        } else {
            fprintf(stderr, "starting %zu of %zu nodes\n", cluster.member_count - alive,
                cluster.member_count);
            status = start_members(&cluster, error);
            status = status == KV_OK ? wait_for_health(&cluster, error) : status;
            if (status != KV_OK && alive == 0) {
                stop_members(&cluster, true, NULL);
            }
        }
        if (status == KV_OK) {
            *cluster_out = cluster;
        } else {
            kv_cluster_clear(&cluster);
        }
    }
    close(lock);
    free(folder);
    return status;
}

static kv_status_t stop_and_start(kv_cluster_t *cluster, bool now, bool start, kv_error_t *error)
{
    char *folder;
    int lock;
    kv_status_t status = enter_folder(cluster->folder, &folder, &lock, error);
    if (status != KV_OK) {
        return status;
    }
    status = stop_members(cluster, now, error);
    if (start) {
        status = status == KV_OK ? start_members(cluster, error) : status;
        status = status == KV_OK ? wait_for_health(cluster, error) : status;
    }
    close(lock);
    free(folder);
    return status;
}

kv_status_t kv_cluster_stop(kv_cluster_t *cluster, bool now, kv_error_t *error)
{
    return stop_and_start(cluster, now, false, error);
}

kv_status_t kv_cluster_restart(kv_cluster_t *cluster, kv_error_t *error)
{
    return stop_and_start(cluster, false, true, error);
}
