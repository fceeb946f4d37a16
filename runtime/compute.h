/* The compute thread: runs the engine for every sequence of a node, prompts in chunks and
 * generation in batches.
 *
 *   submitted --> prompt, chunk by chunk --> first token --> generating, a token a step -> ended
 *        \                                                       ^
 *         +--- KV came from elsewhere, tokens were generated ----+
 *
 * Tokens that were generated before the sequence came here are computed by decode kernels too, as
 * many in a step as the batch has rows for.
 *
 * Each turn of the loop takes one decode step for all generating sequences, then one chunk of the
 * oldest prompt: a long prompt delays running decodes by a chunk at a time. On a prefill node
 * nothing generates beyond the first token, on a decode node with prefill nodes no prompt comes:
 * the loop is the same.
 *
 * Owns: the thread, a copy of each sequence's tokens.
 * Borrows: the engine (no one else may call it while the thread lives); each block table and its
 * slots from submit until the sequence's ENDED event: the last access to them is before it.
 * Threads: submit, cancel and poll belong to the owner thread (the reactor). Events come through a
 * queue whose descriptor is kv_compute_fd.
 * Errors: submit answers KV_BUSY at KV_COMPUTE_SEQUENCES_MAX and KV_INVALID for tokens or lengths
 * out of bounds. A failure of the engine ends the sequence with its status. */
#ifndef KV_RUNTIME_COMPUTE_H
#define KV_RUNTIME_COMPUTE_H

#include "base/status.h"
#include "engine/engine.h"
#include "engine/sampler.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_COMPUTE_SEQUENCES_MAX = 1024 };

typedef struct kv_compute kv_compute_t;

typedef struct {
    uint64_t id;            /* the owner's; unique among living sequences */
    const uint32_t *tokens; /* [token_count], copied */
    uint32_t token_count;
    uint32_t computed_count; /* leading tokens whose KV is in the slots already; fewer than all */
    const uint32_t *slots;   /* the block table, for token_count + generate_max - 1 tokens */
    uint32_t generate_max;   /* tokens to generate, at least 1 */
    uint32_t
        generated_count; /* the last so many tokens were generated, elsewhere or earlier: decode
                                 kernels make their KV, as they do when they generate, so that what
                                 follows is what would have followed there */
    bool ignore_end;     /* go on past the model's end token */
    bool report_layers;  /* LAYER events for the prompt's chunks */
    bool layers_come;    /* the computed tokens' KV comes layer by layer: kv_compute_layers says how
                              far it is. There are tokens of the prompt left to compute */
    uint32_t top_logprobs; /* TOKEN events have so many alternatives */
    kv_sampling_t sampling;
} kv_compute_sequence_t;

typedef enum {
    KV_COMPUTE_LAYER, /* the KV of one layer of tokens first .. first + count - 1 is in the slots */
    KV_COMPUTE_CHUNK, /* the KV of every layer of those tokens is */
    KV_COMPUTE_TOKEN, /* a token was drawn; the KV of all tokens before it is in the slots */
    KV_COMPUTE_ENDED, /* nothing touches the sequence's slots any more */
} kv_compute_event_type_t;

typedef struct kv_compute_event {
    kv_compute_event_type_t type;
    uint64_t id;
    uint32_t layer;         /* LAYER */
    uint32_t first, count;  /* LAYER, CHUNK: token positions */
    uint32_t token;         /* TOKEN */
    float logprob;          /* TOKEN */
    kv_sampler_tops_t tops; /* TOKEN */
    bool end_token;     /* ENDED: the model's end token was drawn (its TOKEN event came before) */
    kv_status_t status; /* ENDED: KV_OK, KV_CANCELLED or the engine's */
    const char *error;  /* ENDED, of the engine's status: the cause, until the next poll */
    uint64_t at_ns;     /* monotonic, on the compute thread */
} kv_compute_event_t;

kv_compute_t *kv_compute_create(
    kv_engine_t *engine, uint32_t chunk_tokens, uint32_t batch_rows_max);

/* Every sequence must have ended. */
void kv_compute_destroy(kv_compute_t *compute);

kv_status_t kv_compute_submit(
    kv_compute_t *compute, const kv_compute_sequence_t *sequence, kv_error_t *error);

/* The sequence ends soon with KV_CANCELLED (or as it would have: whichever is first). Unknown ids
 * are ignored. */
void kv_compute_cancel(kv_compute_t *compute, uint64_t id);

/* Of a sequence whose layers come: the first layer_count of them are in the slots. Not KV_OK: the
 * others do not come, and the sequence ends with this status. Other
 * prompts that need not wait go first; where there is none, the thread waits for the next layer.
 * Unknown ids are ignored. */
void kv_compute_layers(
    kv_compute_t *compute, uint64_t id, kv_status_t status, uint32_t layer_count);

int kv_compute_fd(const kv_compute_t *compute);

/* KV_MISSING when there is none. */
kv_status_t kv_compute_poll(kv_compute_t *compute, kv_compute_event_t *event_out);

#endif
