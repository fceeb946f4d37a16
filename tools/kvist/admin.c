#include "tools/kvist/admin.h"

#include "node/admin_client.h"

static const char *about = NULL; /* a command is about one domain */

void kv_ask_about(const char *domain)
{
    about = domain;
}

/* Asks, and refuses an answer of another kind (0: any kind will do). */
static kv_status_t ask(const char *admin, Kvist__Admin__Request__BodyCase question,
    void *question_body, Kvist__Admin__Reply__BodyCase answer, uint64_t limit_ms,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    request.body_case = question;
    request.domain = (char *)(uintptr_t)(about != NULL ? about : "");
    request.status = question_body; /* the members of the union are all pointers to messages */
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_admin_ask(admin, &request, limit_ms, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    if (answer != KVIST__ADMIN__REPLY__BODY__NOT_SET && reply->body_case != answer) {
        kvist__admin__reply__free_unpacked(reply, NULL);
        return kv_fail(error, KV_INVALID, "the node at %s answered something else", admin);
    }
    *reply_out = reply;
    return KV_OK;
}

kv_status_t kv_ask_status(const char *admin, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__StatusRequest body = KVIST__ADMIN__STATUS_REQUEST__INIT;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_STATUS, &body, KVIST__ADMIN__REPLY__BODY_STATUS,
        KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_list(
    const char *admin, uint32_t count_max, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__ListRequest body = KVIST__ADMIN__LIST_REQUEST__INIT;
    body.count_max = count_max;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_LIST, &body, KVIST__ADMIN__REPLY__BODY_LIST,
        KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_show(
    const char *admin, const char *key, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__ShowRequest body = KVIST__ADMIN__SHOW_REQUEST__INIT;
    body.key = (char *)key;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_SHOW, &body, KVIST__ADMIN__REPLY__BODY_OBJECT,
        KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_drop(const char *admin, const char *key, bool erase,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__DropRequest body = KVIST__ADMIN__DROP_REQUEST__INIT;
    body.key = (char *)key;
    body.erase = erase;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_DROP, &body, KVIST__ADMIN__REPLY__BODY_DROPPED,
        KV_ADMIN_DISK_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_drop_tenant(
    const char *admin, const char *tenant, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__DropRequest body = KVIST__ADMIN__DROP_REQUEST__INIT;
    body.of_tenant = true;
    body.tenant = (char *)tenant;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_DROP, &body, KVIST__ADMIN__REPLY__BODY_DROPPED,
        KV_ADMIN_DISK_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_pin(const char *admin, const char *key, uint64_t until_unix_ns,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__PinRequest body = KVIST__ADMIN__PIN_REQUEST__INIT;
    body.key = (char *)key;
    body.until_unix_ns = until_unix_ns;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_PIN, &body, KVIST__ADMIN__REPLY__BODY_OBJECT,
        KV_ADMIN_DISK_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_verify(
    const char *admin, bool start, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__VerifyRequest body = KVIST__ADMIN__VERIFY_REQUEST__INIT;
    body.start = start;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_VERIFY, &body,
        KVIST__ADMIN__REPLY__BODY_VERIFICATION, KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_events(const char *admin, const Kvist__Admin__EventsRequest *question,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_EVENTS, (void *)(uintptr_t)question,
        KVIST__ADMIN__REPLY__BODY_EVENTS, KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_explain(
    const char *admin, const char *request_id, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__ExplainRequest body = KVIST__ADMIN__EXPLAIN_REQUEST__INIT;
    body.request_id = (char *)(uintptr_t)request_id;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_EXPLAIN, &body,
        KVIST__ADMIN__REPLY__BODY_EXPLANATION, KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_why(const char *admin, const Kvist__Admin__WhyRequest *question,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_WHY, (void *)(uintptr_t)question,
        KVIST__ADMIN__REPLY__BODY_WHY, KV_ADMIN_DISK_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_quota(const char *admin, const Kvist__Admin__QuotaRequest *question,
    Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_QUOTA, (void *)(uintptr_t)question,
        KVIST__ADMIN__REPLY__BODY_QUOTA, KV_ADMIN_LIMIT_MS, reply_out, error);
}

kv_status_t kv_ask_metrics(const char *admin, Kvist__Admin__Reply **reply_out, kv_error_t *error)
{
    Kvist__Admin__MetricsRequest body = KVIST__ADMIN__METRICS_REQUEST__INIT;
    return ask(admin, KVIST__ADMIN__REQUEST__BODY_METRICS, &body, KVIST__ADMIN__REPLY__BODY_METRICS,
        KV_ADMIN_LIMIT_MS, reply_out, error);
}

/* A question that is answered with "done". */
static kv_status_t tell(const char *admin, Kvist__Admin__Request__BodyCase question, void *body,
    uint64_t limit_ms, kv_error_t *error)
{
    Kvist__Admin__Reply *reply;
    kv_status_t status =
        ask(admin, question, body, KVIST__ADMIN__REPLY__BODY__NOT_SET, limit_ms, &reply, error);
    if (status == KV_OK) {
        kvist__admin__reply__free_unpacked(reply, NULL);
    }
    return status;
}

kv_status_t kv_ask_flush(const char *admin, uint64_t limit_ms, kv_error_t *error)
{
    Kvist__Admin__FlushRequest body = KVIST__ADMIN__FLUSH_REQUEST__INIT;
    return tell(admin, KVIST__ADMIN__REQUEST__BODY_FLUSH, &body, limit_ms, error);
}

kv_status_t kv_ask_stop(const char *admin, kv_error_t *error)
{
    Kvist__Admin__StopRequest body = KVIST__ADMIN__STOP_REQUEST__INIT;
    return tell(admin, KVIST__ADMIN__REQUEST__BODY_STOP, &body, KV_ADMIN_LIMIT_MS, error);
}

kv_status_t kv_ask_drain(const char *admin, kv_error_t *error)
{
    Kvist__Admin__DrainRequest body = KVIST__ADMIN__DRAIN_REQUEST__INIT;
    return tell(admin, KVIST__ADMIN__REQUEST__BODY_DRAIN, &body, KV_ADMIN_LIMIT_MS, error);
}
