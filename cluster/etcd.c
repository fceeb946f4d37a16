/* A session with one endpoint, step by step; one call at a time, but for the watch and the lease's
 * heartbeat beside it:
 *
 *   PAUSE --> GRANT --> PUT --> RANGE --> FOLLOW --(the watch ended, or is a minute old)--> RANGE
 *               ^                            |
 *               +---(the lease or our own key is gone)
 *   a call that fails, anywhere: all calls are given up, PAUSE, then the next endpoint
 *
 * A node that only reads begins with RANGE. The watch begins behind the revision that the range was
 * read at, so that nothing falls between the two. It is begun anew each minute: what a proxy or a
 * half-open connection swallowed is repaired by then. */
#include "cluster/etcd.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "cluster/etcd_message.h"
#include "node/http_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TICK_MS = 250,
    CALL_LIMIT_MS = 3000,
    LEAVE_LIMIT_MS = 1000,
    PAUSE_MS_MIN = 250,
    PAUSE_MS_MAX = 2000,
    WATCH_LIFE_MS = 60000,
    ANSWER_BYTES_MAX = 4 << 20,
    URL_BYTES = 512,
};

typedef enum { STEP_PAUSE, STEP_GRANT, STEP_PUT, STEP_RANGE, STEP_FOLLOW, STEP_LEFT } step_t;

struct kv_etcd {
    char **endpoints;
    uint32_t endpoint_count, endpoint;
    char *ca_file, *prefix, *key, *value,
        *name; /* key and value: NULL where this node only reads */
    uint64_t ttl_ns;
    kv_members_t *members;
    kv_http_client_t *http;
    uv_timer_t timer;
    kv_http_call_t *call, *watch, *heartbeat;
    step_t step;
    int64_t lease, revision;
    uint64_t granted_ns, pause_until_ns, heartbeat_at_ns, watch_until_ns, watch_limit_ns;
    bool watch_confirmed;
    uint32_t pause_ms;
    bool up; /* as was logged last */
    char last_reason[256];
    kv_metric_t *up_metric, *member_metric;
};

static void take_step(kv_etcd_t *etcd, step_t step);

/* ---- failure ---- */

static void cancel(kv_http_call_t **call)
{
    if (*call != NULL) {
        kv_http_cancel(*call);
        *call = NULL;
    }
}

static void cancel_all(kv_etcd_t *etcd)
{
    cancel(&etcd->call);
    cancel(&etcd->watch);
    cancel(&etcd->heartbeat);
}

static void fail(kv_etcd_t *etcd, const char *what, const char *reason)
{
    char text[256];
    snprintf(text, sizeof text, "%s: %.200s", what, reason);
    if (etcd->up || strcmp(text, etcd->last_reason) != 0) {
        kv_log_warn("cluster",
            "etcd at %s: %s (tried again; members known so far stay, connections too)",
            etcd->endpoints[etcd->endpoint], text);
        snprintf(etcd->last_reason, sizeof etcd->last_reason, "%s", text);
    }
    etcd->up = false;
    kv_metric_set(etcd->up_metric, 0);
    cancel_all(etcd);
    etcd->endpoint = (etcd->endpoint + 1) % etcd->endpoint_count;
    etcd->step = STEP_PAUSE;
    etcd->pause_until_ns = kv_clock_now_ns() + (uint64_t)etcd->pause_ms * KV_NS_PER_MS;
    etcd->pause_ms = 2 * etcd->pause_ms > PAUSE_MS_MAX ? PAUSE_MS_MAX : 2 * etcd->pause_ms;
}

/* ---- calls ---- */

/* Takes the body. */
static void start(kv_etcd_t *etcd, kv_http_call_t **call, const char *path, char *body,
    kv_http_call_params_t params)
{
    char url[URL_BYTES];
    kv_error_t error;
    snprintf(url, sizeof url, "%s%s", etcd->endpoints[etcd->endpoint], path);
    params.url = url;
    params.body = body;
    params.ca_file = etcd->ca_file;
    params.context = etcd;
    params.answer_bytes_max = ANSWER_BYTES_MAX;
    kv_status_t status = kv_http_start(etcd->http, &params, call, &error);
    free(body);
    if (status != KV_OK) {
        *call = NULL;
        fail(etcd, path, error.text);
    }
}

/* Whether the call was answered with success; otherwise the session has failed, or, where what it
 * spoke of is not there, begins with a new lease. */
static bool is_answer(kv_etcd_t *etcd, const char *what, kv_status_t status, long code,
    const char *text, size_t bytes)
{
    if (status == KV_OK && code == 200) {
        return true;
    }
    if (status != KV_OK) {
        fail(etcd, what, text);
        return false;
    }
    char reason[256];
    bool missing;
    char *said = kv_etcd_error(text, bytes, &missing);
    snprintf(reason, sizeof reason, "HTTP %ld: %.200s", code, said != NULL ? said : "no etcd?");
    free(said);
    bool lately = kv_clock_now_ns() < etcd->granted_ns + KV_NS_PER_S;
    if (missing && etcd->key != NULL && etcd->step != STEP_GRANT && !lately) {
        kv_log_warn("cluster", "etcd: %s: %s: registering again", what, reason);
        take_step(etcd, STEP_GRANT);
    } else {
        fail(etcd, what, reason);
    }
    return false;
}

/* ---- what is followed ---- */

static const char *name_of(const kv_etcd_t *etcd, const kv_etcd_entry_t *entry)
{
    size_t bytes = strlen(etcd->prefix);
    return strncmp(entry->key, etcd->prefix, bytes) == 0 && entry->key[bytes] != '\0'
               ? entry->key + bytes
               : NULL;
}

static void put_entry(void *context, const kv_etcd_entry_t *entry)
{
    kv_etcd_t *etcd = context;
    const char *name = name_of(etcd, entry);
    if (name != NULL) {
        kv_members_put(etcd->members, name, entry->value, entry->value_bytes, entry->revision);
    }
}

typedef struct {
    kv_etcd_t *etcd;
    bool own_is_gone;
} events_t;

static void take_event(void *context, const kv_etcd_entry_t *entry)
{
    events_t *events = context;
    kv_etcd_t *etcd = events->etcd;
    const char *name = name_of(etcd, entry);
    if (name == NULL) {
        return;
    }
    if (etcd->key != NULL && strcmp(entry->key, etcd->key) == 0) {
        events->own_is_gone = entry->deleted;
        if (!entry->deleted && strcmp(entry->value, etcd->value) != 0) {
            kv_log_warn("cluster",
                "etcd: another node registered as '%s': %.200s: names are unique", name,
                entry->value);
        }
    } else if (entry->deleted) {
        kv_members_remove(etcd->members, name);
    } else {
        put_entry(etcd, entry);
    }
    kv_metric_set(etcd->member_metric, kv_members_count(etcd->members));
}

static void come_up(kv_etcd_t *etcd)
{
    etcd->pause_ms = PAUSE_MS_MIN;
    etcd->last_reason[0] = '\0';
    if (!etcd->up) {
        etcd->up = true;
        kv_metric_set(etcd->up_metric, 1);
        kv_log_info("cluster", "etcd at %s up: %u other nodes under %s",
            etcd->endpoints[etcd->endpoint], kv_members_count(etcd->members), etcd->prefix);
    }
}

static void on_watch_line(void *context, const char *text, size_t bytes)
{
    kv_etcd_t *etcd = context;
    events_t events = {etcd, false};
    kv_error_t error;
    bool created = false;
    if (bytes == 0) {
        return;
    }
    kv_status_t status = kv_etcd_read_watch(text, bytes, take_event, &events, &created, &error);
    if (status == KV_CANCELLED) {
        kv_log_info("cluster", "etcd: %s: everything is read again", error.text);
        take_step(etcd, STEP_RANGE);
    } else if (status != KV_OK) {
        fail(etcd, "watch", error.text);
    } else if (events.own_is_gone) {
        kv_log_warn("cluster", "etcd: this node's key is gone: registering again");
        take_step(etcd, STEP_GRANT);
    } else if (created) {
        etcd->watch_confirmed = true;
        come_up(etcd);
    }
}

static void on_watch_ended(
    void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_etcd_t *etcd = context;
    etcd->watch = NULL;
    if (is_answer(etcd, "watch", status, code, text, bytes)) {
        fail(etcd, "watch", "it ended the stream");
    }
}

/* ---- steps ---- */

static void on_granted(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_etcd_t *etcd = context;
    int64_t ttl_s;
    kv_error_t error;
    etcd->call = NULL;
    if (!is_answer(etcd, "lease/grant", status, code, text, bytes)) {
        return;
    }
    if (kv_etcd_read_lease(text, bytes, &etcd->lease, &ttl_s, &error) != KV_OK) {
        fail(etcd, "lease/grant", error.text);
        return;
    }
    etcd->granted_ns = kv_clock_now_ns();
    take_step(etcd, STEP_PUT);
}

static void on_put(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_etcd_t *etcd = context;
    etcd->call = NULL;
    if (is_answer(etcd, "kv/put", status, code, text, bytes)) {
        etcd->heartbeat_at_ns = kv_clock_now_ns() + etcd->ttl_ns / 3;
        take_step(etcd, etcd->watch != NULL ? STEP_FOLLOW : STEP_RANGE);
    }
}

static void on_listed(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_etcd_t *etcd = context;
    kv_error_t error;
    bool more = false;
    etcd->call = NULL;
    if (!is_answer(etcd, "kv/range", status, code, text, bytes)) {
        return;
    }
    kv_members_list_begin(etcd->members);
    status = kv_etcd_read_range(text, bytes, put_entry, etcd, &etcd->revision, &more, &error);
    if (status != KV_OK) {
        fail(etcd, "kv/range", error.text);
        return;
    }
    if (!more) {
        kv_members_list_end(etcd->members);
    } else {
        kv_log_warn("cluster", "etcd: more than %d keys under %s: the others are not seen",
            KV_ETCD_LIST_MAX, etcd->prefix);
    }
    kv_metric_set(etcd->member_metric, kv_members_count(etcd->members));
    uint64_t now_ns = kv_clock_now_ns();
    etcd->watch_until_ns = now_ns + (uint64_t)WATCH_LIFE_MS * KV_NS_PER_MS;
    etcd->watch_limit_ns = now_ns + (uint64_t)CALL_LIMIT_MS * KV_NS_PER_MS;
    etcd->watch_confirmed = false;
    etcd->step = STEP_FOLLOW;
    start(etcd, &etcd->watch, "/v3/watch", kv_etcd_watch(etcd->prefix, etcd->revision + 1),
        (kv_http_call_params_t){.line = on_watch_line, .ended = on_watch_ended});
}

static void on_kept(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    kv_etcd_t *etcd = context;
    int64_t lease, ttl_s;
    kv_error_t error;
    etcd->heartbeat = NULL;
    if (!is_answer(etcd, "lease/keepalive", status, code, text, bytes)) {
        return;
    }
    if (kv_etcd_read_lease(text, bytes, &lease, &ttl_s, &error) != KV_OK) {
        fail(etcd, "lease/keepalive", error.text);
    } else if (ttl_s == 0) {
        kv_log_warn("cluster", "etcd: this node's lease has ended: registering again");
        take_step(etcd, STEP_GRANT);
    } else {
        etcd->heartbeat_at_ns = kv_clock_now_ns() + etcd->ttl_ns / 3;
    }
}

static void on_revoked(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    (void)status; /* otherwise the lease ends by itself */
    (void)code;
    (void)text;
    (void)bytes;
    ((kv_etcd_t *)context)->call = NULL;
}

static void take_step(kv_etcd_t *etcd, step_t step)
{
    kv_http_call_params_t call = {.limit_ms = CALL_LIMIT_MS};
    cancel(&etcd->call);
    if (etcd->key == NULL && (step == STEP_GRANT || step == STEP_PUT)) {
        step = STEP_RANGE;
    }
    etcd->step = step;
    switch (step) {
    case STEP_GRANT:
        cancel(&etcd->heartbeat);
        call.ended = on_granted;
        start(
            etcd, &etcd->call, "/v3/lease/grant", kv_etcd_grant(etcd->ttl_ns / KV_NS_PER_S), call);
        break;
    case STEP_PUT:
        call.ended = on_put;
        start(etcd, &etcd->call, "/v3/kv/put", kv_etcd_put(etcd->key, etcd->value, etcd->lease),
            call);
        break;
    case STEP_RANGE:
        cancel(&etcd->watch);
        call.ended = on_listed;
        start(etcd, &etcd->call, "/v3/kv/range", kv_etcd_range(etcd->prefix), call);
        break;
    default:
        break;
    }
}

static void on_tick(uv_timer_t *timer)
{
    kv_etcd_t *etcd = timer->data;
    uint64_t now_ns = kv_clock_now_ns();
    if (etcd->step == STEP_PAUSE && now_ns >= etcd->pause_until_ns) {
        take_step(etcd, STEP_GRANT);
    } else if (etcd->step == STEP_FOLLOW && now_ns >= etcd->watch_until_ns) {
        take_step(etcd, STEP_RANGE);
    } else if (etcd->watch != NULL && !etcd->watch_confirmed && now_ns >= etcd->watch_limit_ns) {
        fail(etcd, "watch", "not confirmed in time");
    }
    if (etcd->key != NULL && (etcd->step == STEP_FOLLOW || etcd->step == STEP_RANGE) &&
        etcd->heartbeat == NULL && now_ns >= etcd->heartbeat_at_ns) {
        start(etcd, &etcd->heartbeat, "/v3/lease/keepalive", kv_etcd_lease(etcd->lease),
            (kv_http_call_params_t){.limit_ms = CALL_LIMIT_MS, .ended = on_kept});
    }
}

/* ---- life ---- */

static char *join(const char *one, const char *two, const char *three, const char *four)
{
    size_t bytes = strlen(one) + strlen(two) + strlen(three) + strlen(four) + 1;
    char *text = kv_allocate(bytes);
    snprintf(text, bytes, "%s%s%s%s", one, two, three, four);
    return text;
}

kv_status_t kv_etcd_open(const kv_etcd_params_t *params, kv_etcd_t **etcd_out, kv_error_t *error)
{
    kv_http_client_t *http;
    kv_status_t status = kv_http_client_create(params->loop, &http, error);
    if (status != KV_OK) {
        return status;
    }
    KV_CHECK(params->endpoint_count > 0);
    kv_etcd_t *etcd = kv_allocate(sizeof *etcd);
    etcd->http = http;
    etcd->endpoints = kv_allocate_array(params->endpoint_count, sizeof *etcd->endpoints);
    for (; etcd->endpoint_count < params->endpoint_count; etcd->endpoint_count++) {
        etcd->endpoints[etcd->endpoint_count] =
            kv_duplicate_string(params->endpoints[etcd->endpoint_count]);
    }
    etcd->ca_file = params->ca_file != NULL ? kv_duplicate_string(params->ca_file) : NULL;
    etcd->prefix = join(params->prefix, "/", params->cluster, "/nodes/");
    if (params->self != NULL) {
        etcd->key = join(etcd->prefix, params->self->name, "", "");
        etcd->value = kv_member_write(params->self);
    }
    etcd->ttl_ns = params->ttl_ns;
    etcd->members = kv_members_create(params->name, &params->callbacks);
    etcd->pause_ms = PAUSE_MS_MIN;
    etcd->up_metric = kv_metric_gauge(
        "kvist_etcd_up", "", "1 while members are followed in etcd; 0 while it is away");
    etcd->member_metric =
        kv_metric_gauge("kvist_etcd_members", "", "other nodes that etcd has told of");
    KV_CHECK(uv_timer_init(params->loop, &etcd->timer) == 0);
    etcd->timer.data = etcd;
    KV_CHECK(uv_timer_start(&etcd->timer, on_tick, TICK_MS, TICK_MS) == 0);
    take_step(etcd, STEP_GRANT);
    *etcd_out = etcd;
    return KV_OK;
}

void kv_etcd_leave(kv_etcd_t *etcd)
{
    if (etcd->step == STEP_LEFT) {
        return;
    }
    bool registered = etcd->lease != 0 && etcd->step != STEP_PAUSE;
    cancel_all(etcd);
    etcd->step = STEP_LEFT;
    uv_timer_stop(&etcd->timer);
    if (registered) {
        start(etcd, &etcd->call, "/v3/lease/revoke", kv_etcd_lease(etcd->lease),
            (kv_http_call_params_t){.limit_ms = LEAVE_LIMIT_MS, .ended = on_revoked});
    }
}

bool kv_etcd_has_left(const kv_etcd_t *etcd)
{
    return etcd->call == NULL;
}

static void on_timer_closed(uv_handle_t *handle)
{
    kv_etcd_t *etcd = handle->data;
    for (uint32_t i = 0; i < etcd->endpoint_count; i++) {
        free(etcd->endpoints[i]);
    }
    free(etcd->endpoints);
    free(etcd->ca_file);
    free(etcd->prefix);
    free(etcd->key);
    free(etcd->value);
    free(etcd);
}

void kv_etcd_close(kv_etcd_t *etcd)
{
    if (etcd == NULL) {
        return;
    }
    cancel_all(etcd);
    kv_http_client_destroy(etcd->http);
    kv_members_destroy(etcd->members);
    uv_close((uv_handle_t *)&etcd->timer, on_timer_closed);
}

bool kv_etcd_is_up(const kv_etcd_t *etcd)
{
    return etcd->up;
}
