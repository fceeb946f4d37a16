/* A domain: its store, and the layout that it has.
 *
 * File `layout` in the domain's folder: u32 magic, u32 version 1, u32 length and the layout's
 * encoding, u64 XXH3 of all before it. One that does not agree is as none: the next client says the
 * layout. */
#include "kvstore/service/service_internal.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/log.h"
#include "kvstore/crypt/key_file.h"
#include "kvstore/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    LAYOUT_MAGIC = 0x594c564b, /* "KVLY" */
    LAYOUT_VERSION = 1,
    HEAD_BYTES = 12,
    FILE_BYTES_MAX = HEAD_BYTES + KV_LAYOUT_ENCODED_BYTES_MAX + 8,
    PATH_BYTES = 4096,
};

/* ---- the file ---- */

static bool path_of(const kv_domain_t *domain, const char *name, char *path_out)
{
    const char *folder = domain->params->store.directory;
    return folder != NULL &&
           snprintf(path_out, PATH_BYTES, "%s/%s", folder, name) < (int)PATH_BYTES;
}

static bool read_layout(const kv_domain_t *domain, kvist_layout_t *layout_out)
{
    char path[PATH_BYTES];
    uint8_t bytes[FILE_BYTES_MAX + 1];
    int fd = path_of(domain, "layout", path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return false;
    }
    ssize_t count = read(fd, bytes, sizeof bytes);
    close(fd);
    kv_error_t error = {0};
    bool good = count > HEAD_BYTES + 8 && count <= FILE_BYTES_MAX &&
                kv_get_u32(bytes) == LAYOUT_MAGIC && kv_get_u32(bytes + 4) == LAYOUT_VERSION &&
                kv_get_u32(bytes + 8) == (uint32_t)count - HEAD_BYTES - 8 &&
                kv_get_u64(bytes + count - 8) == kv_checksum(bytes, (size_t)count - 8) &&
                kv_layout_decode(bytes + HEAD_BYTES, (size_t)count - HEAD_BYTES - 8, layout_out,
                    &error) == KV_OK;
    if (!good) {
        kv_log_warn("service", "%s is damaged: the next client says the layout", path);
    }
    return good;
}

/* Durable and whole, or as it was before. */
static kv_status_t replace_file(const kv_domain_t *domain, const uint8_t *bytes, size_t count)
{
    char path[PATH_BYTES], made[PATH_BYTES];
    if (!path_of(domain, "layout", path) || !path_of(domain, "layout.new", made)) {
        return KV_INVALID;
    }
    int fd = open(made, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = fd >= 0 && write(fd, bytes, count) == (ssize_t)count && fsync(fd) == 0;
    int code = errno;
    if (fd >= 0) {
        close(fd);
    }
    if (good && rename(made, path) != 0) {
        good = false;
        code = errno;
    }
    if (!good) {
        return kv_status_from_errno(code);
    }
    int folder = open(domain->params->store.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        fsync(folder);
        close(folder);
    }
    return KV_OK;
}

static void remember_layout(const kv_domain_t *domain)
{
    uint8_t bytes[FILE_BYTES_MAX];
    if (domain->params->store.directory == NULL) {
        return;
    }
    size_t count = kv_layout_encode(&domain->layout, bytes + HEAD_BYTES);
    kv_put_u32(bytes, LAYOUT_MAGIC);
    kv_put_u32(bytes + 4, LAYOUT_VERSION);
    kv_put_u32(bytes + 8, (uint32_t)count);
    kv_put_u64(bytes + HEAD_BYTES + count, kv_checksum(bytes, HEAD_BYTES + count));
    kv_status_t status = replace_file(domain, bytes, HEAD_BYTES + count + 8);
    if (status != KV_OK) {
        kv_log_warn("service", "domain %s: its layout could not be remembered: %s",
            domain->params->name, kv_status_name(status));
    }
}

/* ---- the store ---- */

static kv_status_t open_store(kv_domain_t *domain, const kvist_layout_t *layout, kv_error_t *error)
{
    kv_service_t *service = domain->service;
    kvist_store_params_t params = domain->params->store;
    params.layout = layout;
    params.host_shared = true;
    kvist_store_t *store;
    kv_status_t status = kvist_store_open(&params, &store, error);
    if (status != KV_OK) {
        return status;
    }
    domain->watch = (kv_service_watch_t){KV_WATCH_STORE, domain};
    status = kv_service_watch(service, kvist_store_fd(store), EPOLLIN, &domain->watch, error);
    if (status != KV_OK) {
        kvist_store_close(store);
        return status;
    }
    domain->store = store;
    domain->layout = *layout;
    if (service->opened != NULL) {
        service->opened(service->context, domain->number, store);
    }
    return KV_OK;
}

/* The store is opened with the first client: what it will need is told missing before. */
static kv_status_t check_key_file(const char *path, kv_error_t *error)
{
    kv_masters_t masters = {0};
    kv_status_t status =
        path != NULL ? kv_key_file_read(kv_files_posix(), path, &masters, error) : KV_OK;
    kv_wipe(&masters, sizeof masters);
    return status;
}

static kv_status_t check_params(const kv_service_domain_t *params, kv_error_t *error)
{
    if (params->name == NULL ||
        !kv_text_is_plain(params->name, '!', KV_SERVICE_DOMAIN_NAME_BYTES_MAX)) {
        return kv_fail(error, KV_INVALID,
            "domains.name must be 1 to %d printable characters without spaces",
            KV_SERVICE_DOMAIN_NAME_BYTES_MAX);
    }
    if (params->store.device != NULL) {
        return kv_fail(error, KV_INVALID, "domains.store.device: a domain has none");
    }
    return check_key_file(params->store.key_file, error);
}

kv_status_t kv_domain_init(kv_service_t *service, const kv_service_domain_t *params,
    uint32_t number, kv_domain_t *domain, kv_error_t *error)
{
    *domain = (kv_domain_t){.service = service, .params = params, .number = number};
    kv_status_t status = check_params(params, error);
    if (status != KV_OK) {
        return status;
    }
    for (uint32_t i = 0; i < number; i++) {
        if (strcmp(service->domains[i].params->name, params->name) == 0) {
            return kv_fail(error, KV_INVALID, "domains.name: two are called %s", params->name);
        }
    }
    kvist_layout_t layout;
    if (params->store.layout != NULL) {
        return open_store(domain, params->store.layout, error);
    }
    return read_layout(domain, &layout) ? open_store(domain, &layout, error) : KV_OK;
}

kv_status_t kv_domain_need(kv_domain_t *domain, const kvist_layout_t *layout, kv_error_t *error)
{
    char text[128];
    if (domain->store == NULL) {
        kv_status_t status = open_store(domain, layout, error);
        if (status == KV_OK) {
            remember_layout(domain);
        }
        return status;
    }
    if (kv_layout_differs(&domain->layout, layout, text, sizeof text)) {
        return kv_fail(
            error, KV_REFUSED, "domain %s has another layout: %s", domain->params->name, text);
    }
    return KV_OK;
}

void kv_domain_close(kv_domain_t *domain)
{
    if (domain->store != NULL) {
        epoll_ctl(domain->service->epoll_fd, EPOLL_CTL_DEL, kvist_store_fd(domain->store), NULL);
        kvist_store_close(domain->store);
        domain->store = NULL;
    }
}
