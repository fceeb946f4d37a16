/* What had been seen of a request's prompts: looked up when a prompt is sent, noted once it has
 * begun and when it ends, and put together with what its nodes say once the answer is complete
 * (gap.h).
 *
 * A prompt has been seen once its first token came: what fails before computes nothing that would
 * be kept. What was in work when it was sent, and what KV events say of the nodes, counts as seen
 * too: after the gateway's restart nodes may hold what the ghost does not know.
 *
 * Borrows: choices and requests, during the call. Threads: the reactor's. Errors: none. */
#ifndef KV_GATEWAY_SEEN_H
#define KV_GATEWAY_SEEN_H

#include "gateway/figures/gap.h"
#include "gateway/generation.h"

/* What routing found of a prompt, in leading tokens. naming: of the node's blocks. */
typedef struct {
    int naming;
    uint32_t held_tokens, at_node_tokens, coming_tokens;
} kv_found_t;

/* The choice goes to a node. */
void kv_seen_look(kv_generation_t *choice, const kv_found_t *found);

/* Its first token came; it ends, with however much of an answer. */
void kv_seen_note_prompt(const kv_generation_t *choice);
void kv_seen_note_answer(const kv_generation_t *choice);

/* Of a complete answer: all its prompts, of which one with several answers counts once. */
void kv_seen_settle(const kv_request_t *request, kv_partition_t *parts_out);

#endif
