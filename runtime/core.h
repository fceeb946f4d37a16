/* The core of an engine node: what a prefill node and a decode node have in common, opened in
 * order and closed in reverse.
 *
 *   holder's reactor -> device -> engine (weights, KV arena) -> store (over the arena)
 *                    -> compute thread -> holder: mover, peers, remote tier, admin socket
 *
 * A binary's main gives its role: how a message becomes a request, and what a request does. The
 * core counts tokens and stops in order; what every node that holds KV does is its holder's.
 *
 * Owns: all of the above.
 * Borrows: the options.
 * Threads: the reactor's; callbacks run there.
 * Errors: kv_core_run returns what failed to open, named; afterwards KV_OK at an orderly stop. */
#ifndef KV_RUNTIME_CORE_H
#define KV_RUNTIME_CORE_H

#include "base/status.h"
#include "engine/engine.h"
#include "holder/holder.h"
#include "kvstore/kvist.h"
#include "node/options.h"
#include "runtime/compute.h"
#include "runtime/rates.h"
#include "runtime/recorder.h"
#include "runtime/relayed.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_core {
    kv_holder_t holder; /* first: a kv_core_t * is a kv_holder_t * */
    kv_engine_t *engine;
    const kv_engine_info_t *info;
    kv_compute_t *compute;
    kv_rates_t rates;
    kv_recorder_t *recorder; /* a decode node's; NULL: requests are not recorded */
    kv_relayed_t relayed;
    uint32_t request_count; /* living ones */
    /* Of the peer whose message is being accepted: its requests, and the peers of its role. */
    uint32_t asker_request_count, asker_count;
} kv_core_t;

/* Makes a request of a message, or refuses it with an answer, or returns NULL where the message
 * begins none. id: for compute sequences and piece tags; never reused. */
typedef void *(*kv_accept_t)(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message);

/* compute_rows_max: of a decode step. connect: the role's own list of peers, or NULL. */
typedef struct {
    Kvist__Wire__Role role;
    uint32_t compute_rows_max;
    const kv_string_list_t *connect;
    kv_accept_t accept;
    const kv_request_ops_t *ops;
} kv_core_params_t;

/* Opens, runs until the orderly stop, closes. */
kv_status_t kv_core_run(
    const kv_options_t *options, const kv_core_params_t *params, kv_error_t *error);

/* The namespace of a tenant's salt on this node's model; the store knows what it is made of from
 * then on. */
kvist_key_t kv_core_namespace(const kv_core_t *core, const void *salt, size_t salt_bytes);

/* Seals the private blocks that tokens [0, computed_count) complete. arithmetic: who made them. */
void kv_core_seal(const kv_core_t *core, kvist_lease_t *lease, const uint32_t *tokens,
    uint32_t computed_count, const char *arithmetic);

/* A peer's list of arithmetic ids, one for each of `wanted` blocks, copied; NULL where it is none:
 * another count, or an id that is not printable or longer than a store keeps. Release with
 * kv_core_free_arithmetic. */
char **kv_core_copy_arithmetic(char *const *ids, size_t count, uint32_t wanted);
void kv_core_free_arithmetic(char **ids, uint32_t count);

/* Whether any of the first block_count blocks was made by decode kernels. */
bool kv_core_has_decode_blocks(const kvist_lease_t *lease, uint32_t block_count);

/* Counts a finished request: metrics and the admin socket's figures. */
void kv_core_count(const Kvist__Wire__Usage *usage);

/* Prompt tokens of a usage that were not recomputed. */
uint32_t kv_core_cached_tokens(const Kvist__Wire__Usage *usage);

/* Fills a usage's cached tokens and miss from a match on this node. */
void kv_core_usage_from_match(
    const kv_core_t *core, const kvist_match_t *match, Kvist__Wire__Usage *usage);

#endif
