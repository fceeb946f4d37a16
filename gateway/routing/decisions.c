#include "gateway/routing/decisions.h"

#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char name[KV_DECISION_NAME_BYTES];
    kv_router_node_t node;
    kv_router_score_t score;
} candidate_t;

typedef struct {
    char request_id[KV_DECISION_NAME_BYTES], words[KV_DECISION_WORDS_BYTES];
    uint32_t choice_index, attempt, generated_tokens, node_count, candidate_count;
    uint64_t unix_ns;
    kv_router_request_t request;
    kv_router_choice_t choice; /* node: a candidate's number, or -1 */
    candidate_t candidates[KV_DECISION_CANDIDATES_MAX];
} decision_t;

struct kv_decisions {
    uint64_t count; /* ever; number n is at n % KV_DECISIONS_MAX */
    decision_t ring[KV_DECISIONS_MAX];
};

kv_decisions_t *kv_decisions_create(void)
{
    return kv_allocate(sizeof(kv_decisions_t));
}

void kv_decisions_destroy(kv_decisions_t *decisions)
{
    free(decisions);
}

/* ---- in words ---- */

static void say_held(const kv_decision_params_t *params, char *words_out)
{
    int node = params->choice.node, holder = params->choice.holder;
    const kv_router_score_t *chosen = &params->scores[node];
    if (params->choice.reason == KV_CHOICE_OVERLOADED) {
        snprintf(words_out, KV_DECISION_WORDS_BYTES,
            "%.63s holds more of it (%u tokens against %u), but %" PRIu64
            " tokens wait there: it costs less here, and is copied",
            params->names[holder], params->scores[holder].run_tokens, chosen->run_tokens,
            params->nodes[holder].waiting_tokens);
        return;
    }
    snprintf(words_out, KV_DECISION_WORDS_BYTES,
        "it holds %u of the %u tokens, and nowhere does the prompt cost less", chosen->run_tokens,
        params->request->prompt_tokens);
}

static void say_placed(const kv_decision_params_t *params, char *words_out)
{
    const kv_router_choice_t *choice = &params->choice;
    const char *whose = params->request->has_session ? "the session" : "the text";
    if (choice->reason == KV_CHOICE_SPREAD) {
        snprintf(words_out, KV_DECISION_WORDS_BYTES,
            "many go on from the %u tokens that %.63s holds (%" PRIu64
            " tokens were added after them): a copy pays, and %s decides where",
            params->scores[choice->holder].run_tokens, params->names[choice->holder],
            params->request->branched_tokens, whose);
        return;
    }
    snprintf(words_out, KV_DECISION_WORDS_BYTES, "%u nodes are equals for it; %s decides%s%s",
        choice->equal_count, whose,
        choice->reason == KV_CHOICE_BOUND ? ", and the first of its order has its share of requests"
                                          : "",
        choice->holder < 0 ? "; nobody holds any of it" : "");
}

void kv_decision_words(const kv_decision_params_t *params, char words_out[KV_DECISION_WORDS_BYTES])
{
    static const char *const PLAIN[] = {
        [KV_CHOICE_NONE] = "no node takes it now",
        [KV_CHOICE_ONLY] = "no other node takes it",
        [KV_CHOICE_LEAST] = "every node has its share of requests: the prompt costs least here",
        [KV_CHOICE_ROUND_ROBIN] = "gateway.routing is round-robin: it is this node's turn",
        [KV_CHOICE_RANDOM] = "gateway.routing is random",
    };
    switch (params->choice.reason) {
    case KV_CHOICE_PREFIX:
    case KV_CHOICE_OVERLOADED:
        say_held(params, words_out);
        break;
    case KV_CHOICE_SESSION:
    case KV_CHOICE_HASH:
    case KV_CHOICE_BOUND:
    case KV_CHOICE_SPREAD:
        say_placed(params, words_out);
        break;
    default:
        snprintf(words_out, KV_DECISION_WORDS_BYTES, "%s", PLAIN[params->choice.reason]);
    }
}

/* ---- keeping ---- */

/* The chosen one has the last place where it would not be kept otherwise. */
static void keep_candidates(decision_t *decision, const kv_decision_params_t *params)
{
    size_t kept =
        params->count < KV_DECISION_CANDIDATES_MAX ? params->count : KV_DECISION_CANDIDATES_MAX;
    decision->candidate_count = (uint32_t)kept;
    for (size_t i = 0; i < kept; i++) {
        size_t from = i;
        if (i + 1 == kept && params->choice.node >= (int)kept) {
            from = (size_t)params->choice.node;
        }
        candidate_t *candidate = &decision->candidates[i];
        snprintf(candidate->name, sizeof candidate->name, "%s", params->names[from]);
        candidate->node = params->nodes[from];
        candidate->score = params->scores[from];
        if ((int)from == params->choice.node) {
            decision->choice.node = (int)i;
        }
    }
}

void kv_decisions_add(kv_decisions_t *decisions, const kv_decision_params_t *params)
{
    decision_t *decision = &decisions->ring[decisions->count++ % KV_DECISIONS_MAX];
    *decision = (decision_t){.choice_index = params->choice_index,
        .attempt = params->attempt,
        .generated_tokens = params->generated_tokens,
        .node_count = (uint32_t)params->count,
        .unix_ns = params->unix_ns,
        .request = *params->request,
        .choice = params->choice};
    snprintf(decision->request_id, sizeof decision->request_id, "%s", params->request_id);
    kv_decision_words(params, decision->words);
    keep_candidates(decision, params);
}

/* ---- explaining ---- */

/* An answer in the making, and what it points to. */
typedef struct {
    Kvist__Admin__Decision body;
    Kvist__Admin__Candidate candidates[KV_DECISION_CANDIDATES_MAX];
    Kvist__Admin__Candidate *pointers[KV_DECISION_CANDIDATES_MAX];
} told_t;

static void tell_candidate(const candidate_t *candidate, Kvist__Admin__Candidate *body)
{
    const kv_router_node_t *node = &candidate->node;
    kvist__admin__candidate__init(body);
    body->name = (char *)(uintptr_t)candidate->name;
    body->device_tokens = node->run_tokens[0];
    body->host_tokens = node->run_tokens[1];
    body->disk_tokens = node->run_tokens[2];
    body->coming_tokens = node->coming_tokens;
    body->waiting_tokens = node->waiting_tokens;
    body->taken_tokens = node->taken_tokens;
    body->requests = kv_router_load(node);
    body->warm_requests = node->warm;
    body->bring_tokens = candidate->score.bring_tokens;
    body->cost_tokens = candidate->score.cost_tokens;
    body->full = candidate->score.full;
    body->unfit = node->unfit;
    body->tried = node->tried;
}

static void tell(const decision_t *decision, told_t *told)
{
    static const char *const ROUTINGS[] = {"prefix", "round-robin", "random"};
    Kvist__Admin__Decision *body = &told->body;
    kvist__admin__decision__init(body);
    body->unix_ns = decision->unix_ns;
    body->choice_index = decision->choice_index;
    body->attempt = decision->attempt;
    body->generated_tokens = decision->generated_tokens;
    body->routing = (char *)(uintptr_t)ROUTINGS[decision->request.routing];
    body->prompt_tokens = decision->request.prompt_tokens;
    body->has_session = decision->request.has_session;
    body->branched_tokens = decision->request.branched_tokens;
    body->bound = decision->choice.bound;
    body->reason = (char *)(uintptr_t)kv_choice_name(decision->choice.reason);
    body->words = (char *)(uintptr_t)decision->words;
    body->node_count = decision->node_count;
    if (decision->choice.node >= 0) {
        body->node = (char *)(uintptr_t)decision->candidates[decision->choice.node].name;
    }
    body->candidates = told->pointers;
    body->n_candidates = decision->candidate_count;
    for (uint32_t i = 0; i < decision->candidate_count; i++) {
        tell_candidate(&decision->candidates[i], &told->candidates[i]);
        told->pointers[i] = &told->candidates[i];
    }
}

void kv_decisions_explain(
    const kv_decisions_t *decisions, const char *request_id, kv_admin_call_t *call)
{
    uint64_t first = decisions->count > KV_DECISIONS_MAX ? decisions->count - KV_DECISIONS_MAX : 0;
    uint64_t kept = decisions->count - first;
    told_t *told = kv_allocate_array(kept + 1, sizeof *told);
    Kvist__Admin__Decision **pointers = kv_allocate_array(kept + 1, sizeof *pointers);
    Kvist__Admin__Explanation explanation = KVIST__ADMIN__EXPLANATION__INIT;
    for (uint64_t number = first; number < decisions->count; number++) {
        const decision_t *decision = &decisions->ring[number % KV_DECISIONS_MAX];
        if (strcmp(decision->request_id, request_id) == 0) {
            size_t at = explanation.n_decisions++;
            tell(decision, &told[at]);
            pointers[at] = &told[at].body;
        }
    }
    explanation.decisions = pointers;
    if (explanation.n_decisions == 0) {
        kv_admin_fail(call, KV_MISSING,
            "the gateway knows no request of that id, or has decided about too many since");
    } else {
        Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
        reply.body_case = KVIST__ADMIN__REPLY__BODY_EXPLANATION;
        reply.explanation = &explanation;
        kv_admin_reply(call, &reply);
    }
    free(told);
    free(pointers);
}
