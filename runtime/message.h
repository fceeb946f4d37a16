/* What both roles check in a peer's prompt before anything is made of it.
 *
 * Threads: any; free of state.
 * Errors: KV_BUSY where the node takes no more, KV_INVALID with the field and its bound. */
#ifndef KV_RUNTIME_MESSAGE_H
#define KV_RUNTIME_MESSAGE_H

#include "holder/message.h"
#include "runtime/core.h"

enum { KV_MESSAGE_SALT_BYTES_MAX = 256 };

/* The fields that Generate and Prefill share. */
typedef struct {
    const char *request_id; /* printable, without blanks: it is in logs */
    size_t salt_bytes;
    const uint32_t *tokens; /* [token_count] */
    size_t token_count;
    const Kvist__Wire__Sampling *sampling;
    Kvist__Wire__CacheMode cache_mode;
} kv_message_prompt_t;

/* Whether the node takes another request of the peer that asks. One peer may fill half of the
 * queue; beyond that each has its share, so that a busy one does not shut the others out. option:
 * the name of the option that limits the queue. */
kv_status_t kv_message_check_room(
    const kv_core_t *core, uint32_t queue_max, const char *option, kv_error_t *error);

kv_status_t kv_message_check_prompt(
    const kv_core_t *core, const kv_message_prompt_t *prompt, kv_error_t *error);

/* What people call the request: as the client was told, where the peer says so. */
const char *kv_message_client_id(const char *client_id, const char *request_id);

kv_sampling_t kv_message_sampling(const Kvist__Wire__Sampling *sampling);

/* Bounded: what is asked for beyond KV_SAMPLER_TOPS_MAX is not told. */
uint32_t kv_message_top_logprobs(const Kvist__Wire__Sampling *sampling);

/* A token's alternatives as the wire has them; they point into tops. */
Kvist__Wire__TopLogprobs kv_message_tops(kv_sampler_tops_t *tops);

#endif
