/* Open, poll, close. */
#include "kvstore/attach/attached_internal.h"

#include "base/check.h"
#include "base/local_socket.h"
#include "base/log.h"
#include "kvstore/attach/attached_ops.h"
#include "kvstore/embedded.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { ROUNDS_MAX = 4, CLOSE_TURN_MS = 50, DOMAIN_BYTES_MAX = 63 };

const kv_attach_bounds_t KV_ATTACH_BOUNDS = {
    .match_ms = 250,
    .call_ms = 2000,
    .lost_ms = 2500,
    .retry_ms = 250,
    .close_ms = 5000,
};

/* ---- time ---- */

uint64_t kv_attached_now_ns(const kv_attached_t *attached)
{
    (void)attached;
    return kv_clock_now_ns(); /* the service's silence is real, whatever clock the store has */
}

void kv_attached_set_timer(kv_attached_t *attached, uint64_t due_ns)
{
    if (attached->timer_ns != 0 && attached->timer_ns <= due_ns) {
        return;
    }
    uint64_t now_ns = kv_clock_now_ns(), wait_ns = due_ns > now_ns ? due_ns - now_ns : 1;
    struct itimerspec timer = {.it_value = {.tv_sec = (time_t)(wait_ns / KV_NS_PER_S),
                                   .tv_nsec = (long)(wait_ns % KV_NS_PER_S)}};
    timerfd_settime(attached->timer_fd, 0, &timer, NULL);
    attached->timer_ns = due_ns;
}

static void take_timer(kv_attached_t *attached)
{
    uint64_t count;
    if (attached->timer_ns != 0 && kv_clock_now_ns() >= attached->timer_ns) {
        ssize_t ignored = read(attached->timer_fd, &count, sizeof count);
        (void)ignored; /* it may be a little late */
        attached->timer_ns = 0;
    }
}

/* ---- polling ---- */

void kv_attached_kick(kv_attached_t *attached)
{
    kv_store_kick(attached->inner);
}

void kv_attached_transfer_end(kv_attached_transfer_t *transfer)
{
    kv_attached_t *attached = kv_lease_attached(transfer->lease);
    transfer->next = NULL;
    if (attached->last_ended != NULL) {
        attached->last_ended->next = transfer;
    } else {
        attached->first_ended = transfer;
    }
    attached->last_ended = transfer;
    kv_attached_kick(attached);
}

static void run_ended(kv_attached_t *attached)
{
    while (attached->first_ended != NULL) {
        kv_attached_transfer_t *transfer = attached->first_ended;
        kv_attached_lease_t *lease = transfer->lease;
        bool counted = transfer->counted;
        attached->first_ended = transfer->next;
        if (attached->first_ended == NULL) {
            attached->last_ended = NULL;
        }
        /* Its callback may release the lease, which then goes below. */
        transfer->tell(transfer);
        lease->transfers_out -= counted;
        kv_attached_settle(lease);
    }
}

static void poll_store(kvist_store_t *store)
{
    kv_attached_t *attached = kv_attached_of(store);
    take_timer(attached);
    for (int round = 0; round < ROUNDS_MAX; round++) {
        kv_link_poll(attached);
        kv_embedded_store_poll(attached->inner);
        kv_windows_advance(attached);
        kv_through_advance(attached);
        bool ended = attached->first_ended != NULL;
        run_ended(attached);
        kv_flushes_advance(attached);
        kv_calls_advance(attached);
        if (!ended) {
            break;
        }
    }
    kv_link_send(attached); /* what callbacks said */
}

static const char *store_attached_to(const kvist_store_t *store)
{
    const kv_attached_t *attached = (const kv_attached_t *)store;
    return attached->link.state == KV_LINK_UP ? attached->life->store_name : NULL;
}

static int store_fd(const kvist_store_t *store)
{
    return ((const kv_attached_t *)store)->epoll_fd;
}

/* ---- open ---- */

static kv_status_t check_params(const kvist_store_params_t *params, kv_error_t *error)
{
    const struct {
        const char *name;
        bool given;
    } not_here[] = {
        {"host_bytes", params->host_bytes > 0},
        {"host_shared", params->host_shared},
        {"directory", params->directory != NULL},
        {"disk_bytes", params->disk_bytes > 0},
        {"disk_count", params->disk_count > 0},
        {"segment_bytes", params->segment_bytes > 0},
        {"write_bytes_per_day", params->write_bytes_per_day > 0},
        {"key_file", params->key_file != NULL},
    };
    for (size_t i = 0; i < sizeof not_here / sizeof not_here[0]; i++) {
        if (not_here[i].given) {
            return kv_fail(error, KV_INVALID,
                "%s: an attached store has none: host and disk tier are kvist-store's",
                not_here[i].name);
        }
    }
    size_t bytes = params->domain != NULL ? strlen(params->domain) : 0;
    if (bytes > DOMAIN_BYTES_MAX) {
        return kv_fail(
            error, KV_INVALID, "domain has %zu bytes: at most %d", bytes, DOMAIN_BYTES_MAX);
    }
    struct sockaddr_un address;
    return kv_local_address(params->attach, "attach", &address, error);
}

static kv_status_t watch(kv_attached_t *attached, int fd, kv_error_t *error)
{
    struct epoll_event event = {.events = EPOLLIN};
    if (fd < 0 || epoll_ctl(attached->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        return kv_fail(error, KV_NO_SPACE, "no descriptors are left for the store");
    }
    return KV_OK;
}

static void release_store(kv_attached_t *attached)
{
    if (attached->inner != NULL) {
        kvist_store_close(attached->inner);
    }
    if (attached->timer_fd >= 0) {
        close(attached->timer_fd);
    }
    if (attached->epoll_fd >= 0) {
        close(attached->epoll_fd);
    }
    free(attached->path);
    free(attached->domain);
    free(attached);
}

static kv_status_t open_inner(
    kv_attached_t *attached, const kvist_store_params_t *params, kv_error_t *error)
{
    kvist_store_params_t inner = *params;
    inner.attach = inner.domain = NULL;
    inner.quota_count = 0; /* they are the service's to keep */
    kv_status_t status = kv_store_open_with(&inner, NULL, &attached->inner, error);
    if (status != KV_OK) {
        return status;
    }
    attached->has_device = params->device != NULL;
    attached->layout = *params->layout;
    attached->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    attached->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    status = watch(attached, attached->timer_fd, error);
    return status == KV_OK ? watch(attached, kvist_store_fd(attached->inner), error) : status;
}

/* The first attempt is waited for: who may not attach, or has another layout, learns of it now.
 * Without the service the store opens, and attaches when that comes. */
static kv_status_t attach_first(kv_attached_t *attached, kv_error_t *error)
{
    uint64_t deadline_ns = kv_clock_now_ns() + (uint64_t)attached->bounds.lost_ms * KV_NS_PER_MS;
    attached->link.warned = true; /* what is wrong is said below */
    kv_link_begin(attached);
    while (attached->link.state == KV_LINK_ATTACHING && kv_clock_now_ns() < deadline_ns) {
        struct pollfd ready = {.fd = attached->epoll_fd, .events = POLLIN};
        poll(&ready, 1, CLOSE_TURN_MS);
        kv_link_poll(attached);
    }
    kv_status_t status = attached->link.state == KV_LINK_UP ? KV_OK : attached->link.error.status;
    if (status == KV_REFUSED || status == KV_INVALID) {
        *error = attached->link.error;
        kv_link_close(attached);
        return status;
    }
    if (status != KV_OK) {
        kv_log_warn("store", "%s: going on without it", attached->link.error.text);
    }
    return KV_OK;
}

kv_status_t kv_attached_open(const kvist_store_params_t *params, const kv_attach_bounds_t *bounds,
    kvist_store_t **store_out, kv_error_t *error)
{
    kv_error_t why;
    error = error != NULL ? error : &why;
    kv_status_t status = check_params(params, error);
    if (status != KV_OK) {
        return status;
    }
    kv_attached_t *attached = kv_allocate(sizeof *attached);
    *attached = (kv_attached_t){
        .ops = &KV_ATTACHED_OPS,
        .path = kv_duplicate_string(params->attach),
        .domain = kv_duplicate_string(params->domain != NULL ? params->domain : "default"),
        .bounds = bounds != NULL ? *bounds : KV_ATTACH_BOUNDS,
        .epoll_fd = -1,
        .timer_fd = -1,
        .link = {.channel = {.fd = -1}},
        .host_ns_per_byte = 0.2, /* 5 and 1 GB/s, until they are measured */
        .disk_ns_per_byte = 1,
    };
    if (params->origin != NULL) {
        strncpy(attached->origin, params->origin, sizeof attached->origin - 1);
    }
    status = open_inner(attached, params, error);
    if (status == KV_OK) {
        status = attach_first(attached, error);
    }
    if (status != KV_OK) {
        release_store(attached);
        return status;
    }
    *store_out = (kvist_store_t *)attached;
    return KV_OK;
}

/* ---- close ---- */

/* What is sealed goes to the service, as long as that takes it. */
static void finish_through(kv_attached_t *attached)
{
    uint64_t deadline_ns = kv_clock_now_ns() + (uint64_t)attached->bounds.close_ms * KV_NS_PER_MS;
    while (kv_through_before(attached, UINT64_MAX) && attached->link.state == KV_LINK_UP &&
           kv_clock_now_ns() < deadline_ns) {
        struct pollfd ready = {.fd = attached->epoll_fd, .events = POLLIN};
        poll(&ready, 1, CLOSE_TURN_MS);
        poll_store((kvist_store_t *)attached);
    }
    if (kv_through_before(attached, UINT64_MAX)) {
        kv_log_warn("store", "attach: %s: not everything could be written through", attached->path);
    }
}

static void close_store(kvist_store_t *store)
{
    kv_attached_t *attached = kv_attached_of(store);
    finish_through(attached);
    attached->closing = true;
    kv_link_close(attached);
    for (int turn = 0;
         attached->leases != NULL || attached->first_flush != NULL ||
         attached->first_call != NULL || attached->first_ended != NULL || attached->calls_out > 0;
         turn++) {
        poll_store(store);
        struct pollfd ready = {.fd = attached->epoll_fd, .events = POLLIN};
        poll(&ready, 1, turn < ROUNDS_MAX ? 0 : CLOSE_TURN_MS);
    }
    release_store(attached);
}

/* ---- the table ---- */

const kv_store_ops_t KV_ATTACHED_OPS = {
    .close = close_store,
    .fd = store_fd,
    .poll = poll_store,
    .flush = kv_attached_store_flush,
    .match = kv_attached_match,
    .runs = kv_attached_lease_runs,
    .load = kv_attached_lease_load,
    .store = kv_attached_lease_store,
    .prepare = kv_attached_lease_prepare,
    .slots = kv_attached_lease_slots,
    .sealed_count = kv_attached_lease_sealed_count,
    .seal = kv_attached_lease_seal,
    .arithmetic = kv_attached_lease_arithmetic,
    .release = kv_attached_lease_release,
    .keep = kv_attached_store_keep,
    .promise = kv_attached_store_promise,
    .spill = kv_attached_store_spill,
    .drop = kv_attached_store_drop,
    .drop_tenant = kv_attached_store_drop_tenant,
    .verify = kv_attached_store_verify,
    .set_disk_bytes = kv_attached_store_set_disk_bytes,
    .set_quota = kv_attached_store_set_quota,
    .tenants = kv_attached_store_tenants,
    .stats = kv_attached_store_stats,
    .attached_to = store_attached_to,
    .find = kv_attached_store_find,
    .show = kv_attached_store_show,
    .list = kv_attached_store_list,
    .describe = kv_attached_store_describe,
    .why = kv_attached_why,
    .tokens = kv_attached_store_tokens,
    .listen = kv_attached_store_listen,
    .held = kv_attached_store_held,
};
