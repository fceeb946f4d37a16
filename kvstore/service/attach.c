/* How a connection begins: the client's domain, layout and staging memory are checked, then it is
 * told where the host tier lies. */
#include "kvstore/service/service_internal.h"

#include "base/bytes.h"
#include "base/log.h"
#include "kvstore/embedded.h"
#include "kvstore/layout.h"
#include "kvstore/store_internal.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* ---- who may ---- */

static bool may_attach(const kv_domain_t *domain, uid_t user)
{
    bool allowed = user == 0 || user == geteuid();
    for (uint32_t i = 0; !allowed && i < domain->params->user_count; i++) {
        allowed = domain->params->users[i] == user;
    }
    return allowed;
}

/* A user learns nothing of domains that are not his. */
static kv_domain_t *find_domain(kv_service_conn_t *client, const char *name)
{
    kv_service_t *service = client->service;
    for (uint32_t i = 0; i < service->domain_count; i++) {
        kv_domain_t *domain = &service->domains[i];
        if (strcmp(domain->params->name, name) == 0 && may_attach(domain, client->user)) {
            return domain;
        }
    }
    kv_conn_end(client, KV_REFUSED, "domain: there is none of that name for user %u",
        (unsigned)client->user);
    return NULL;
}

static bool check_version(kv_service_conn_t *client, const Kvist__Store__Attach *asked)
{
    if (asked->version < KV_SERVICE_VERSION_MIN || asked->version_min > KV_SERVICE_VERSION) {
        kv_conn_end(client, KV_REFUSED, "version: the client speaks %u to %u, this store %d to %d",
            asked->version_min, asked->version, KV_SERVICE_VERSION_MIN, KV_SERVICE_VERSION);
        return false;
    }
    if (strlen(asked->name) > KVIST_ORIGIN_BYTES_MAX ||
        !kv_utf8_valid(asked->name, strlen(asked->name))) {
        kv_conn_end(client, KV_INVALID, "name: at most %d bytes of UTF-8", KVIST_ORIGIN_BYTES_MAX);
        return false;
    }
    return true;
}

/* ---- staging memory ---- */

/* Memory that can shrink, or whose pages may not be had, would end whoever touches it. */
static kv_status_t check_staging(
    const kv_service_t *service, int fd, uint64_t said_bytes, kv_error_t *error)
{
    enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };
    struct stat about;
    struct statfs system;
    if (fd < 0) {
        return kv_fail(error, KV_INVALID, "staging memory: no descriptor came with attach");
    }
    if (fstat(fd, &about) != 0 || fstatfs(fd, &system) != 0 || !S_ISREG(about.st_mode) ||
        system.f_type != TMPFS_MAGIC) {
        return kv_fail(error, KV_INVALID, "staging memory: not a memfd of small pages");
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) {
        return kv_fail(error, KV_INVALID,
            "staging memory: its size is not sealed (F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL)");
    }
    if ((uint64_t)about.st_size != said_bytes || said_bytes < 1 ||
        said_bytes > service->limits.staging_bytes) {
        return kv_fail(error, KV_INVALID,
            "staging memory: %ju bytes, said to be %ju: it must be 1 to %ju",
            (uintmax_t)about.st_size, (uintmax_t)said_bytes,
            (uintmax_t)service->limits.staging_bytes);
    }
    return KV_OK;
}

static kv_status_t map_staging(kv_service_conn_t *client, uint64_t said_bytes, kv_error_t *error)
{
    kv_service_t *service = client->service;
    int fd = kv_channel_take_fd(&client->channel);
    client->channel.fds_max = 0; /* no more may come */
    kv_status_t status = check_staging(service, fd, said_bytes, error);
    if (status == KV_OK) {
        status = kv_region_map_file(fd, said_bytes, true, &client->staging, error);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (status == KV_OK) {
        service->stats.mapped++;
        service->stats.staging_bytes += said_bytes;
        client->staging_bytes = said_bytes;
    }
    return status;
}

void kv_conn_unmap(kv_service_conn_t *client)
{
    if (client->staging.base != NULL) {
        client->service->stats.mapped--;
        client->service->stats.staging_bytes -= client->staging_bytes;
        kv_region_unmap(&client->staging);
    }
}

/* ---- the answer ---- */

static void answer_attached(kv_service_conn_t *client)
{
    const kvist_store_t *store = client->domain->store;
    Kvist__Store__Attached attached = KVIST__STORE__ATTACHED__INIT;
    Kvist__Store__Answer answer = KVIST__STORE__ANSWER__INIT;
    Kvist__Store__Arena arenas[KVIST_GROUPS_MAX], *arena_list[KVIST_GROUPS_MAX];
    int fds[KVIST_GROUPS_MAX];
    uint32_t fd_count = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        const kv_arena_t *arena = kv_embedded_store_arena(store, i);
        kvist__store__arena__init(&arenas[i]);
        arena_list[i] = &arenas[i];
        if (arena != NULL) {
            arenas[i].slot_count = arena->plan.slot_count;
            fds[fd_count++] = arena->fd;
        }
    }
    attached.version = client->version;
    attached.instance.data = client->service->instance;
    attached.instance.len = sizeof client->service->instance;
    attached.n_arenas = store->group_count;
    attached.arenas = arena_list;
    attached.leases_max = client->service->limits.leases;
    const char *name = client->domain->params->store.origin;
    attached.name = (char *)(uintptr_t)(name != NULL ? name : "");
    answer.body_case = KVIST__STORE__ANSWER__BODY_ATTACHED;
    answer.attached = &attached;
    kv_conn_answer_fds(client, &answer, fds, fd_count);
}

void kv_conn_attach(kv_service_conn_t *client, const Kvist__Store__Attach *asked)
{
    kvist_layout_t layout;
    kv_error_t error = {0};
    if (!check_version(client, asked)) {
        return;
    }
    kv_domain_t *domain = find_domain(client, asked->domain);
    if (domain == NULL) {
        return;
    }
    kv_status_t status = kv_layout_decode(asked->layout.data, asked->layout.len, &layout, &error);
    if (status == KV_OK) {
        status = map_staging(client, asked->staging_bytes, &error);
    }
    if (status == KV_OK) {
        status = kv_domain_need(domain, &layout, &error);
    }
    if (status != KV_OK) {
        kv_conn_end(client, status, "%s", error.text);
        return;
    }
    client->domain = domain;
    client->version = asked->version < KV_SERVICE_VERSION ? asked->version : KV_SERVICE_VERSION;
    client->leases = kv_allocate_array(client->service->limits.leases, sizeof *client->leases);
    memcpy(client->name, asked->name, strlen(asked->name));
    kv_log_info("service", "client attached: name %s domain %s process %d user %u", client->name,
        domain->params->name, (int)client->process, (unsigned)client->user);
    answer_attached(client);
}
