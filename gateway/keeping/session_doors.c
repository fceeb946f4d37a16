#include "gateway/keeping/session_doors.h"

#include "base/log.h"
#include "base/memory.h"
#include "gateway/json.h"
#include "gateway/keeping/keeping.h"
#include "gateway/openai/openai.h"
#include "gateway/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TICK_MS = 200, UNIX_FROM = 1000000000 };

static const char *tenant_of(const kv_call_t *call)
{
    return call->tenant != NULL ? call->tenant : "";
}

static uint64_t now_unix_ms(void)
{
    return kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_MS;
}

/* ---- what nodes are told ---- */

static kv_peer_t *peer_of(const kv_gateway_t *gateway, const kv_session_t *session)
{
    for (size_t i = 0; session->node != 0 && i < gateway->node_count; i++) {
        const kv_node_t *node = gateway->nodes[i]->node;
        if (node->id == session->node) {
            return node->peer;
        }
    }
    return NULL;
}

static kv_status_t send_context(kv_gateway_t *gateway, kv_peer_t *peer, const kv_session_t *session,
    Kvist__Wire__Context *context)
{
    return kv_keeping_send_context(gateway, peer, session->salt, session->salt_bytes,
        session->tokens, session->token_count, context);
}

/* Asks the session's node; false: *error says why it cannot be. A session without a request so far
 * has nothing to be moved. */
static bool ask_node(kv_gateway_t *gateway, kv_session_t *session,
    Kvist__Wire__ContextAction action, kv_api_error_t *error)
{
    kv_peer_t *peer = peer_of(gateway, session);
    if (session->token_count == 0) {
        return kv_api_fail(error, 409, "", NULL, "%s has no context yet", session->id);
    }
    if (gateway->engine->block_tokens > 0) {
        return kv_api_fail(error, 409, "", NULL,
            "%s: the nodes are vLLM servers, which move no contexts on request", session->id);
    }
    if (peer == NULL) {
        return kv_api_fail(error, 503, "", NULL,
            "the node that served %s is gone: its next request goes to another", session->id);
    }
    if (kv_peer_version(peer) < KV_CONTEXT_VERSION) {
        return kv_api_fail(error, 409, "", NULL, "node %s is of a version that knows no sessions",
            kv_peer_name(peer));
    }
    Kvist__Wire__Context context = KVIST__WIRE__CONTEXT__INIT;
    context.action = action;
    context.expected_next_use_unix_ms = session->resume_by_unix_ms;
    if (send_context(gateway, peer, session, &context) != KV_OK) {
        return kv_api_fail(
            error, 503, "", "overloaded", "node %s takes no messages now", kv_peer_name(peer));
    }
    session->operation = context.id;
    session->error[0] = '\0';
    return true;
}

/* Its pins end, but for those that others asked for too; then it leaves memory. Nobody waits for
 * the answers. */
static void let_go(kv_gateway_t *gateway, const kv_session_t *session)
{
    kv_peer_t *peer = peer_of(gateway, session);
    kv_promise_entry_t entries[KV_KEEPING_MAX];
    Kvist__Wire__Promise promises[KV_KEEPING_MAX], *list[KV_KEEPING_MAX];
    kv_promise_table_let_go(gateway->promises, session->number);
    if (peer == NULL || session->token_count == 0 || kv_peer_version(peer) < KV_CONTEXT_VERSION) {
        return;
    }
    size_t key_count;
    kvist_key_t *keys = kv_promise_keys(gateway->promises, session->salt, session->salt_bytes,
        session->tokens, session->token_count, &key_count);
    size_t count = kv_promise_table_read(
        gateway->promises, session->node, keys, key_count, entries, KV_KEEPING_MAX);
    free(keys);
    for (size_t i = 0; i < count; i++) {
        kvist__wire__promise__init(&promises[i]);
        promises[i].token_count = entries[i].token_count;
        promises[i].pin_until_unix_ms = entries[i].until_unix_ms;
        list[i] = &promises[i];
    }
    Kvist__Wire__Context context = KVIST__WIRE__CONTEXT__INIT;
    if (session->ttl_ns > 0) {
        context.action = KVIST__WIRE__CONTEXT_ACTION__CONTEXT_KEEP;
        context.n_promises = count;
        context.promises = list;
        send_context(gateway, peer, session, &context);
    }
    kvist__wire__context__init(&context);
    context.action = KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL;
    send_context(gateway, peer, session, &context);
}

/* ---- answers ---- */

static json_t *describe(const kv_session_t *session)
{
    static const char *const PRIORITIES[] = {"interactive", "batch", "background"};
    json_t *body = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:I, s:I, s:I, s:I}", "id",
        session->id, "object", "session", "state", kv_session_state_name(session->state), "created",
        (json_int_t)session->created_unix_s, "ttl", (json_int_t)(session->ttl_ns / KV_NS_PER_S),
        "agent", session->agent, "priority", PRIORITIES[session->priority], "requests",
        (json_int_t)session->request_count, "tokens", (json_int_t)session->token_count,
        "stored_tokens", (json_int_t)session->stored_tokens, "spilled_bytes",
        (json_int_t)session->spilled_bytes);
    json_object_set_new(
        body, "parent", session->parent[0] != '\0' ? json_string(session->parent) : json_null());
    json_object_set_new(body, "resume_by",
        session->resume_by_unix_ms != 0
            ? json_integer((json_int_t)(session->resume_by_unix_ms / 1000))
            : json_null());
    json_object_set_new(body, "error",
        session->error[0] != '\0' ? kv_json_text_or_null(session->error, strlen(session->error))
                                  : json_null());
    return body;
}

static void reply(kv_exchange_t *exchange, json_t *body)
{
    size_t bytes;
    char *text = kv_json_dump(body, &bytes);
    kv_gateway_reply(exchange, "sessions", 200, "application/json", text, bytes);
}

/* ---- what a body says ---- */

/* An empty body says nothing. */
static bool parse(const kv_call_t *call, json_t **body_out, kv_api_error_t *error)
{
    *body_out = call->body_bytes > 0 ? kv_json_parse_body(call, error) : json_object();
    return *body_out != NULL;
}

static bool only_fields(const json_t *body, const char *const *names, kv_api_error_t *error)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)body, name, value)
    {
        size_t i = 0;
        while (names[i] != NULL && strcmp(names[i], name) != 0) {
            i++;
        }
        if (names[i] == NULL) {
            return kv_api_fail(
                error, 400, name, "unknown_field", "\"%.64s\": there is no such field", name);
        }
    }
    return true;
}

static bool take_priority(const char *name, uint32_t *priority_out, kv_api_error_t *error)
{
    static const char *const NAMES[] = {"interactive", "batch", "background"};
    for (uint32_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        if (strcmp(NAMES[i], name) == 0) {
            *priority_out = i;
            return true;
        }
    }
    return kv_api_fail(error, 400, "priority", NULL,
        "priority: must be interactive, batch or background, but is %.32s", name);
}

/* ttl, agent, priority: of a session that is opened or forked. */
static bool take_settings(const json_t *body, kv_session_t *session, kv_api_error_t *error)
{
    static const char *const FIELDS[] = {"ttl", "agent", "priority", NULL};
    json_int_t ttl_s = (json_int_t)(session->ttl_ns / KV_NS_PER_S);
    const char *agent = session->agent, *priority = NULL;
    if (!only_fields(body, FIELDS, error) ||
        !kv_json_take_integer(body, "ttl", "ttl", 0, KV_SESSION_TTL_S_MAX, &ttl_s, error) ||
        !kv_json_take_string(body, "agent", "agent", KV_SESSION_AGENT_BYTES_MAX, &agent, error) ||
        !kv_json_take_string(body, "priority", "priority", 16, &priority, error) ||
        (priority != NULL && !take_priority(priority, &session->priority, error))) {
        return false;
    }
    session->ttl_ns = (uint64_t)ttl_s * KV_NS_PER_S;
    if (agent != session->agent) {
        snprintf(session->agent, sizeof session->agent, "%s", agent);
    }
    return true;
}

/* A unix time, or seconds from now. */
static bool take_resume_by(const json_t *body, uint64_t *until_out, kv_api_error_t *error)
{
    static const char *const FIELDS[] = {"resume_by", NULL};
    json_int_t asked = 0, now_s = (json_int_t)(now_unix_ms() / 1000);
    *until_out = 0;
    if (!only_fields(body, FIELDS, error) ||
        !kv_json_take_integer(body, "resume_by", "resume_by", 0, UINT32_MAX, &asked, error)) {
        return false;
    }
    if (asked == 0) {
        return true;
    }
    json_int_t until_s = asked >= UNIX_FROM ? asked : now_s + asked;
    if (until_s <= now_s || until_s - now_s > KV_SESSION_RESUME_S_MAX) {
        return kv_api_fail(error, 400, "resume_by", NULL,
            "resume_by: must be a unix time, or seconds from now, of at most %d seconds from now",
            KV_SESSION_RESUME_S_MAX);
    }
    *until_out = (uint64_t)until_s * 1000;
    return true;
}

/* ---- the calls ---- */

static bool no_room(kv_api_error_t *error)
{
    return kv_api_fail(error, 429, "", "overloaded",
        "there are %d sessions, or %d tokens in them, or this API key's tenant has one in %d of "
        "those: close one",
        KV_SESSIONS_MAX, KV_SESSION_TOKENS_MAX, KV_SESSION_TENANT_PART);
}

static bool serve_new(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call,
    const kv_session_t *parent, kv_api_error_t *error)
{
    json_t *body;
    if (!parse(call, &body, error)) {
        return false;
    }
    kv_session_t *session = parent != NULL ? kv_sessions_fork(gateway->sessions, parent)
                                           : kv_sessions_open(gateway->sessions, tenant_of(call));
    bool good = session != NULL ? take_settings(body, session, error) : no_room(error);
    json_decref(body);
    if (good) {
        reply(exchange, describe(session));
    } else if (session != NULL) {
        kv_sessions_close(gateway->sessions, session);
    }
    return good;
}

static bool suspend(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call,
    kv_session_t *session, kv_api_error_t *error)
{
    json_t *body;
    uint64_t until_ms;
    if (!parse(call, &body, error)) {
        return false;
    }
    bool good = take_resume_by(body, &until_ms, error);
    json_decref(body);
    if (!good || !ask_node(gateway, session, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_SPILL, error)) {
        return false;
    }
    session->state = KV_SESSION_SUSPENDING;
    session->resume_by_unix_ms = until_ms;
    if (until_ms != 0) {
        kv_timer_start(gateway->session_timer, TICK_MS, TICK_MS);
    }
    reply(exchange, describe(session));
    return true;
}

static bool resume(
    kv_gateway_t *gateway, kv_exchange_t *exchange, kv_session_t *session, kv_api_error_t *error)
{
    if (!ask_node(gateway, session, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMOTE, error)) {
        return false;
    }
    session->state = KV_SESSION_RESUMING;
    session->resume_by_unix_ms = 0;
    reply(exchange, describe(session));
    return true;
}

static void close_session(kv_gateway_t *gateway, kv_exchange_t *exchange, kv_session_t *session)
{
    let_go(gateway, session);
    reply(exchange,
        json_pack("{s:s, s:s, s:b}", "id", session->id, "object", "session.deleted", "deleted", 1));
    kv_sessions_close(gateway->sessions, session);
}

static void serve_open(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    kv_api_error_t error;
    if (!serve_new(gateway, exchange, call, NULL, &error)) {
        kv_gateway_reply_error(exchange, &kv_session_routes.routes[0], NULL, &error);
    }
}

/* The session that the path names, or NULL: *error. */
static kv_session_t *find(kv_gateway_t *gateway, const kv_call_t *call, kv_api_error_t *error)
{
    char id[KV_SESSION_ID_BYTES];
    size_t id_bytes = strcspn(call->rest, "/");
    kv_session_t *session = NULL;
    if (id_bytes < sizeof id) {
        memcpy(id, call->rest, id_bytes);
        id[id_bytes] = '\0';
        session = kv_sessions_find(gateway->sessions, id, tenant_of(call));
    }
    if (session == NULL) {
        kv_api_fail(error, 404, "", "not_found", "%.*s: there is no such session (any more)",
            id_bytes > 64 ? 64 : (int)id_bytes, call->rest);
    }
    return session;
}

static void serve_one(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    kv_api_error_t error;
    kv_session_t *session = find(gateway, call, &error);
    if (session == NULL) {
        kv_gateway_reply_error(exchange, &kv_session_routes.routes[1], NULL, &error);
    } else if (strcmp(call->method, "DELETE") == 0) {
        close_session(gateway, exchange, session);
    } else {
        reply(exchange, describe(session));
    }
}

/* What stands behind the session's name, "/" and all; "": nothing. */
static const char *action_of(const kv_call_t *call)
{
    static const char PREFIX[] = "/v1/sessions/";
    return strchrnul(call->path + sizeof PREFIX - 1, '/');
}

static void serve_action(kv_gateway_t *gateway, kv_exchange_t *exchange, const kv_call_t *call)
{
    kv_api_error_t error;
    kv_session_t *session = find(gateway, call, &error);
    const char *action = action_of(call);
    bool good = session != NULL;
    if (good && strcmp(action, "/fork") == 0) {
        good = serve_new(gateway, exchange, call, session, &error);
    } else if (good && strcmp(action, "/suspend") == 0) {
        good = suspend(gateway, exchange, call, session, &error);
    } else if (good) {
        good = resume(gateway, exchange, session, &error);
    }
    if (!good) {
        kv_gateway_reply_error(exchange, &kv_session_routes.routes[2], NULL, &error);
    }
}

static bool wants_session(const kv_call_t *call)
{
    return action_of(call)[0] == '\0';
}

static bool wants_action(const kv_call_t *call)
{
    const char *action = action_of(call);
    return strcmp(action, "/fork") == 0 || strcmp(action, "/suspend") == 0 ||
           strcmp(action, "/resume") == 0;
}

static const kv_route_t ROUTES[] = {
    {.path = "/v1/sessions",
        .methods = "POST",
        .name = "sessions",
        .dialect = &kv_openai,
        .serve = serve_open},
    {.path = "/v1/sessions/*",
        .methods = "GET, HEAD, DELETE",
        .name = "sessions",
        .dialect = &kv_openai,
        .serve = serve_one,
        .wants = wants_session},
    {.path = "/v1/sessions/*",
        .methods = "POST",
        .name = "sessions",
        .dialect = &kv_openai,
        .serve = serve_action,
        .wants = wants_action},
};
const kv_route_table_t kv_session_routes = {ROUTES, sizeof ROUTES / sizeof ROUTES[0]};

/* ---- requests ---- */

kv_session_t *kv_session_of_request(const kv_request_t *request)
{
    return request->api.session[0] == '\0' ? NULL
                                           : kv_sessions_find(request->gateway->sessions,
                                                 request->api.session, tenant_of(&request->call));
}

void kv_session_served(const kv_generation_t *choice)
{
    const kv_request_t *request = choice->request;
    kv_session_t *session = choice->index == 0 ? kv_session_of_request(request) : NULL;
    if (session == NULL) {
        return;
    }
    const uint32_t *tokens = choice->tokens != NULL ? choice->tokens : choice->prompt->tokens;
    kv_sessions_note(request->gateway->sessions, session, choice->promise_node, request->api.salt,
        request->api.salt_bytes, tokens, choice->prompt->token_count + choice->token_count);
}

/* ---- nodes ---- */

void kv_session_done(kv_gateway_t *gateway, const Kvist__Wire__ContextDone *done)
{
    kv_session_t *session = kv_sessions_of_operation(gateway->sessions, done->id);
    if (session == NULL) {
        return; /* closed, or a request has come meanwhile */
    }
    bool spilled = session->state == KV_SESSION_SUSPENDING;
    session->operation = 0;
    session->stored_tokens = done->token_count;
    if (done->status != KV_OK) {
        snprintf(session->error, sizeof session->error, "%s", done->error);
        session->resume_by_unix_ms = 0;
    }
    if (spilled) {
        session->spilled_bytes = done->bytes;
        session->load_ns = done->load_ns;
    }
    session->state = spilled && done->status == KV_OK ? KV_SESSION_SUSPENDED : KV_SESSION_OPEN;
    kv_log_info("gateway", "session %s is %s stored_tokens %u bytes %" PRIu64 "%s%s", session->id,
        kv_session_state_name(session->state), done->token_count, done->bytes,
        done->status != KV_OK ? ": " : "", session->error);
}

void kv_session_tick(kv_gateway_t *gateway)
{
    kv_session_t *session;
    kv_api_error_t error;
    while ((session = kv_sessions_due(gateway->sessions)) != NULL) {
        if (ask_node(gateway, session, KVIST__WIRE__CONTEXT_ACTION__CONTEXT_PROMOTE, &error)) {
            session->state = KV_SESSION_RESUMING;
        } else {
            snprintf(session->error, sizeof session->error, "%.199s", error.message);
        }
        session->resume_by_unix_ms = 0;
    }
    while ((session = kv_sessions_idle(gateway->sessions)) != NULL) {
        kv_sessions_close(gateway->sessions, session);
    }
    if (!kv_sessions_any_waits(gateway->sessions)) {
        kv_timer_stop(gateway->session_timer);
    }
}
