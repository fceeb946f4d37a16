/* Promises of a request: what its Generate or Prefill asks to be kept, asked of this node's store
 * once the blocks are sealed, and what became of each, for the gateway.
 *
 * Pins are kept at the decode node (or the kvist-store that it is attached to): it has all of the
 * prompt and the answer, and is the node that the gateway asks again. A limit holds for every copy
 * that the request makes, so that nothing outlives it: at the prefill node too.
 *
 * Owns: nothing. Borrows: the store, until every outcome is known.
 * Threads: the reactor's.
 * Errors: kv_promises_check says which field is out of bounds; what cannot be promised is said in
 * why_not, and ends no request. */
#ifndef KV_RUNTIME_PROMISES_H
#define KV_RUNTIME_PROMISES_H

#include "kvstore/kvist.h"
#include "proto/wire.pb-c.h"
#include "runtime/core.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_PROMISES_MAX = 16 };

typedef struct kv_promises kv_promises_t;

typedef struct {
    kv_promises_t *of;
    kvist_terms_t terms;
    Kvist__Wire__Granted granted;
} kv_promise_t;

struct kv_promises {
    kvist_terms_t terms; /* of what is stored of the request: no promise is in there */
    char tenant[KVIST_TENANT_BYTES_MAX + 1];
    Kvist__Wire__Promise asked[KV_PROMISES_MAX], *asked_list[KV_PROMISES_MAX];
    kv_promise_t items[KV_PROMISES_MAX];
    Kvist__Wire__Granted *granted_list[KV_PROMISES_MAX];
    uint32_t count, open_count; /* open: asked of the store, whose answer has not come */
    bool limits_only, were_asked;
    void (*known)(void *context); /* the last outcome came, in a later poll; may be NULL */
    void *context;
};

/* The fields that Generate and Prefill share. */
typedef struct {
    Kvist__Wire__Priority priority;
    const char *tenant;
    uint64_t expected_next_use_unix_ms;
    size_t promise_count;
    Kvist__Wire__Promise *const *promises;
} kv_kept_fields_t;

/* prompt_count: tokens that may be promised. */
kv_status_t kv_promises_check(
    const kv_kept_fields_t *fields, size_t prompt_count, kv_error_t *error);

/* Takes them from a message that was checked; *promises is zeros, and stays where it is.
 * limits_only: pins are another node's. */
void kv_promises_take(kv_promises_t *promises, const kv_kept_fields_t *fields, bool limits_only);

/* Asks for all of them, once: token_count leading tokens are sealed now. known() runs if not all
 * outcomes are known at once. */
void kv_promises_ask(kv_promises_t *promises, const kv_core_t *core, const kvist_key_t *name_space,
    const uint32_t *tokens, uint32_t token_count);

/* Into a usage, if every outcome is known. */
void kv_promises_tell(kv_promises_t *promises, Kvist__Wire__Usage *usage);

#endif
