/* Gateways' worth of requests: conversations whose prompts share their beginnings, and go on from
 * their own answers. Every attempt has exactly one outcome, in time, and every token is the model's
 * own (model.h); what was refused or lost is asked again, until it is answered. */
#ifndef KV_TESTS_SIMULATION_CLIENTS_H
#define KV_TESTS_SIMULATION_CLIENTS_H

#include "simulation/process.h"

typedef struct {
    uint32_t conversation_count, turns_max;
    uint32_t prompt_tokens_max; /* of a conversation's first turn */
    uint32_t answer_tokens_max;
    uint32_t cancel_chance;   /* per mille: the client goes away */
    uint64_t begin_within_ns; /* of each conversation */
    bool faultless;           /* nothing but KV_BUSY is an excuse */
    uint64_t cancel_limit_ns; /* faultless: a cancel is answered, and then has reached all nodes */
} clients_params_t;

typedef struct {
    uint64_t requests, attempts, answered, cancelled, busy, lost, failed, tokens, cached_tokens;
} clients_figures_t;

/* Gateways are the nodes of that role. */
void clients_begin(const clients_params_t *params);
bool clients_are_done(void);

/* Checks the bounds on waiting; calm_ns: since when nothing went wrong any more. */
void clients_check_waiting(uint64_t calm_ns);

/* Closes the gateways' connections. */
void clients_end(void);

extern clients_figures_t clients_figures; /* of all runs */

#endif
