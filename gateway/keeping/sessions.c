#include "gateway/keeping/sessions.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define LEAD_MS 500

struct kv_sessions {
    kv_sessions_params_t params;
    kv_session_t **items; /* [count_max] */
    uint32_t count;
    uint64_t token_count, last_number;
};

static uint64_t unix_ms(const kv_sessions_t *sessions)
{
    return sessions->params.clock->unix_ns(sessions->params.clock) / KV_NS_PER_MS;
}

static uint64_t now_ns(const kv_sessions_t *sessions)
{
    return sessions->params.clock->monotonic_ns(sessions->params.clock);
}

const char *kv_session_state_name(kv_session_state_t state)
{
    static const char *const NAMES[] = {"open", "suspending", "suspended", "resuming"};
    return NAMES[state];
}

kv_sessions_t *kv_sessions_create(const kv_sessions_params_t *params)
{
    kv_sessions_t *sessions = kv_allocate(sizeof *sessions);
    *sessions = (kv_sessions_t){.params = *params};
    if (params->clock == NULL) {
        sessions->params.clock = kv_clock_real();
    }
    sessions->items = kv_allocate_array(params->count_max, sizeof(kv_session_t *));
    return sessions;
}

void kv_sessions_destroy(kv_sessions_t *sessions)
{
    if (sessions == NULL) {
        return;
    }
    while (sessions->count > 0) {
        kv_sessions_close(sessions, sessions->items[0]);
    }
    free(sessions->items);
    free(sessions);
}

/* What a named tenant has; nobody's are not counted. */
static void count_of_tenant(const kv_sessions_t *sessions, const char *tenant, uint32_t *count_out,
    uint64_t *token_count_out)
{
    *count_out = 0;
    *token_count_out = 0;
    for (uint32_t i = 0; tenant[0] != '\0' && i < sessions->count; i++) {
        const kv_session_t *session = sessions->items[i];
        if (strcmp(session->tenant, tenant) == 0) {
            ++*count_out;
            *token_count_out += session->token_count;
        }
    }
}

static bool has_room_for_one(const kv_sessions_t *sessions, const char *tenant)
{
    uint32_t count;
    uint64_t token_count;
    count_of_tenant(sessions, tenant, &count, &token_count);
    return sessions->count < sessions->params.count_max &&
           (tenant[0] == '\0' || count < sessions->params.tenant_count_max);
}

kv_session_t *kv_sessions_open(kv_sessions_t *sessions, const char *tenant)
{
    uint8_t random[16];
    if (strlen(tenant) > KV_SESSION_TENANT_BYTES_MAX || !has_room_for_one(sessions, tenant)) {
        return NULL;
    }
    KV_CHECK(getrandom(random, sizeof random, 0) == (ssize_t)sizeof random);
    kv_session_t *session = kv_allocate(sizeof *session);
    *session = (kv_session_t){.number = ++sessions->last_number,
        .created_unix_s = unix_ms(sessions) / 1000,
        .used_ns = now_ns(sessions)};
    int at = snprintf(session->id, sizeof session->id, "session-");
    for (size_t i = 0; i < sizeof random; i++) {
        snprintf(session->id + at + 2 * i, 3, "%02x", random[i]);
    }
    snprintf(session->tenant, sizeof session->tenant, "%s", tenant);
    sessions->items[sessions->count++] = session;
    return session;
}

static bool set_tokens(
    kv_sessions_t *sessions, kv_session_t *session, const uint32_t *tokens, size_t count)
{
    uint64_t others = sessions->token_count - session->token_count, tenants;
    uint32_t sessions_of_tenant;
    count_of_tenant(sessions, session->tenant, &sessions_of_tenant, &tenants);
    if (others + count > sessions->params.token_count_max ||
        (session->tenant[0] != '\0' &&
            tenants - session->token_count + count > sessions->params.tenant_token_count_max)) {
        return false;
    }
    uint32_t *copy = kv_allocate_array(count + 1, sizeof *copy);
    if (count > 0) {
        memcpy(copy, tokens, count * sizeof *copy);
    }
    free(session->tokens);
    session->tokens = copy;
    session->token_count = (uint32_t)count;
    sessions->token_count = others + count;
    return true;
}

kv_session_t *kv_sessions_fork(kv_sessions_t *sessions, const kv_session_t *parent)
{
    kv_session_t *session = kv_sessions_open(sessions, parent->tenant);
    if (session == NULL) {
        return NULL;
    }
    if (!set_tokens(sessions, session, parent->tokens, parent->token_count)) {
        kv_sessions_close(sessions, session);
        return NULL;
    }
    memcpy(session->parent, parent->id, sizeof session->parent);
    memcpy(session->agent, parent->agent, sizeof session->agent);
    memcpy(session->salt, parent->salt, parent->salt_bytes);
    session->salt_bytes = parent->salt_bytes;
    session->request_count = parent->request_count;
    session->priority = parent->priority;
    session->ttl_ns = parent->ttl_ns;
    session->node = parent->node;
    return session;
}

kv_session_t *kv_sessions_find(kv_sessions_t *sessions, const char *id, const char *tenant)
{
    for (uint32_t i = 0; i < sessions->count; i++) {
        kv_session_t *session = sessions->items[i];
        if (strcmp(session->id, id) == 0 && strcmp(session->tenant, tenant) == 0) {
            return session;
        }
    }
    return NULL;
}

kv_session_t *kv_sessions_of_operation(kv_sessions_t *sessions, uint64_t operation)
{
    for (uint32_t i = 0; i < sessions->count; i++) {
        if (operation != 0 && sessions->items[i]->operation == operation) {
            return sessions->items[i];
        }
    }
    return NULL;
}

void kv_sessions_close(kv_sessions_t *sessions, kv_session_t *session)
{
    uint32_t at = 0;
    while (sessions->items[at] != session) {
        at++;
    }
    sessions->items[at] = sessions->items[--sessions->count];
    sessions->token_count -= session->token_count;
    free(session->tokens);
    free(session);
}

bool kv_sessions_note(kv_sessions_t *sessions, kv_session_t *session, uint64_t node,
    const void *salt, size_t salt_bytes, const uint32_t *tokens, size_t token_count)
{
    if (session->request_count > 0 &&
        (session->salt_bytes != salt_bytes || memcmp(session->salt, salt, salt_bytes) != 0)) {
        return false;
    }
    if (session->request_count == 0 && salt_bytes <= KV_SESSION_SALT_BYTES_MAX) {
        memcpy(session->salt, salt, salt_bytes);
        session->salt_bytes = salt_bytes;
    }
    session->request_count++;
    session->used_ns = now_ns(sessions);
    session->state = KV_SESSION_OPEN;
    session->operation = session->resume_by_unix_ms = 0;
    session->node = node;
    session->error[0] = '\0';
    set_tokens(sessions, session, tokens, token_count);
    return true;
}

void kv_sessions_forget_node(kv_sessions_t *sessions, uint64_t node)
{
    for (uint32_t i = 0; i < sessions->count; i++) {
        kv_session_t *session = sessions->items[i];
        if (session->node == node) {
            session->node = session->operation = session->resume_by_unix_ms = 0;
            session->state = KV_SESSION_OPEN;
        }
    }
}

kv_session_t *kv_sessions_due(kv_sessions_t *sessions)
{
    uint64_t now = unix_ms(sessions);
    for (uint32_t i = 0; i < sessions->count; i++) {
        kv_session_t *session = sessions->items[i];
        uint64_t lead_ms = LEAD_MS + 4 * session->load_ns / KV_NS_PER_MS;
        if (session->state == KV_SESSION_SUSPENDED && session->resume_by_unix_ms != 0 &&
            now + lead_ms >= session->resume_by_unix_ms) {
            return session;
        }
    }
    return NULL;
}

bool kv_sessions_any_waits(const kv_sessions_t *sessions)
{
    for (uint32_t i = 0; i < sessions->count; i++) {
        if (sessions->items[i]->resume_by_unix_ms != 0) {
            return true;
        }
    }
    return false;
}

kv_session_t *kv_sessions_idle(kv_sessions_t *sessions)
{
    uint64_t now = now_ns(sessions);
    for (uint32_t i = 0; i < sessions->count; i++) {
        kv_session_t *session = sessions->items[i];
        uint64_t limit_ns =
            session->ttl_ns > 0 ? session->ttl_ns : (uint64_t)KV_SESSION_IDLE_S * KV_NS_PER_S;
        if (session->resume_by_unix_ms == 0 && now - session->used_ns > limit_ns) {
            return session;
        }
    }
    return NULL;
}

size_t kv_sessions_count(const kv_sessions_t *sessions)
{
    return sessions->count;
}
