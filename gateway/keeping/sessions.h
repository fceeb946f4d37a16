/* Sessions: a context that an agent comes back to, between its requests. The table knows the tokens
 * that each has so far and where their KV is; what nodes are told is session_doors.c's.
 *
 *           open                 suspend              spilled
 *   (none) -----> OPEN ---------------------> SUSPENDING ----> SUSPENDED
 *                  ^  \                                           |
 *                  |   +--- close ---> (none)                     | resume, its time, or a request
 *                  +------------- RESUMING <----------------------+
 *
 * A fork begins with its parent's tokens: what the two share is stored once, since blocks are known
 * by their content. A request that names a suspended session wakes it.
 *
 * Owns: copies of everything. Borrows: the clock.
 * Threads: one.
 * Errors: NULL where there is no such session, or no room.
 * Limits: count_max sessions, token_count_max tokens in all of them, and the same for each named
 * tenant, so that none keeps the others out; one that was idle for its ttl (an hour without one) is
 * forgotten. They are memory: a gateway that starts has none. */
#ifndef KV_GATEWAY_SESSIONS_H
#define KV_GATEWAY_SESSIONS_H

#include "base/clock.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_SESSION_ID_BYTES = 41, /* "session-", 32 hexadecimal digits */
    KV_SESSION_AGENT_BYTES_MAX = 64,
    KV_SESSION_TENANT_BYTES_MAX = 63,
    KV_SESSION_SALT_BYTES_MAX = 256,
    KV_SESSION_IDLE_S = 3600,
    KV_SESSION_TTL_S_MAX = 30 * 86400,
    KV_SESSION_RESUME_S_MAX = 7 * 86400,
};

typedef enum {
    KV_SESSION_OPEN,
    KV_SESSION_SUSPENDING,
    KV_SESSION_SUSPENDED,
    KV_SESSION_RESUMING,
} kv_session_state_t;

const char *kv_session_state_name(kv_session_state_t state); /* "open", "suspending", ... */

typedef struct {
    char id[KV_SESSION_ID_BYTES], parent[KV_SESSION_ID_BYTES];
    uint64_t number; /* never reused */
    char agent[KV_SESSION_AGENT_BYTES_MAX + 1], tenant[KV_SESSION_TENANT_BYTES_MAX + 1];
    uint32_t priority; /* kv_api_priority_t */
    uint64_t ttl_ns;   /* its context is pinned for so long after each request; 0: it is not */
    uint64_t created_unix_s, used_ns;
    kv_session_state_t state;

    uint64_t node; /* kv_node_t.id: who served it last; 0: nobody, or it is gone */
    uint8_t salt[KV_SESSION_SALT_BYTES_MAX];
    size_t salt_bytes;
    uint32_t *tokens; /* prompt and answer of the last request */
    uint32_t token_count, request_count;

    uint64_t resume_by_unix_ms; /* 0: when somebody comes */
    uint64_t operation;     /* that the node was asked for last, and has not answered; 0: none */
    uint32_t stored_tokens; /* as the node said last */
    uint64_t spilled_bytes, load_ns;
    char error[200]; /* why the last operation was not done; "" */
} kv_session_t;

typedef struct kv_sessions kv_sessions_t;

typedef struct {
    const kv_clock_t *clock; /* NULL: the machine's */
    uint32_t count_max;
    uint64_t token_count_max;
    uint32_t tenant_count_max; /* of these, each named tenant's */
    uint64_t tenant_token_count_max;
} kv_sessions_params_t;

kv_sessions_t *kv_sessions_create(const kv_sessions_params_t *params);
void kv_sessions_destroy(kv_sessions_t *sessions);

/* tenant: "" for nobody's. NULL: there are as many as there, or as the tenant, may be. */
kv_session_t *kv_sessions_open(kv_sessions_t *sessions, const char *tenant);
kv_session_t *kv_sessions_fork(kv_sessions_t *sessions, const kv_session_t *parent);

/* NULL: there is none of that name, or it is another tenant's. */
kv_session_t *kv_sessions_find(kv_sessions_t *sessions, const char *id, const char *tenant);
kv_session_t *kv_sessions_of_operation(kv_sessions_t *sessions, uint64_t operation);
void kv_sessions_close(kv_sessions_t *sessions, kv_session_t *session);

/* A request of it has ended with these tokens, its answer's included. Without room for them the
 * session keeps what it had. A session has the salt of its first request; false: not this one. */
bool kv_sessions_note(kv_sessions_t *sessions, kv_session_t *session, uint64_t node,
    const void *salt, size_t salt_bytes, const uint32_t *tokens, size_t token_count);

/* The node is gone: its sessions are nowhere, what it was asked for is not answered. */
void kv_sessions_forget_node(kv_sessions_t *sessions, uint64_t node);

/* A suspended session whose time to be brought back has come, or NULL. It has when half a second,
 * and four times what loading takes, are left. */
kv_session_t *kv_sessions_due(kv_sessions_t *sessions);

/* Whether any is suspended until a time. */
bool kv_sessions_any_waits(const kv_sessions_t *sessions);

/* The next session that was idle for too long, or NULL. */
kv_session_t *kv_sessions_idle(kv_sessions_t *sessions);

size_t kv_sessions_count(const kv_sessions_t *sessions);

#endif
