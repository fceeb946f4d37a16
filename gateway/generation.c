/* A choice's life, on the reactor's thread.
 *
 *              first choice's     Generate sent          first Tokens
 *               first token
 *          HELD ----> SEEKING ---------> WAITING -------------> RUNNING ----> DONE
 *                      ^  |  ^              |                      |   Finished
 *                      |  |  | node lost, busy, draining, failed:  |
 *                     tick|  | on with what was generated          | stop string: Cancel
 *                         |  +--------------+----------------------+     |
 *                         v                                        v     v
 *                  (the request ends:                    DONE <--- STOPPING
 *                   no node in time)
 *
 * The first choice of a prompt begins at SEEKING; the others are held until it has a token, since
 * by then the prompt's KV is there for all of them.
 *
 * Invariants:
 * 1. A choice in WAITING, RUNNING or STOPPING has a node, and counts in its `outstanding`.
 * 2. Each Generate has a wire id of its own (slot and sequence); messages with another sequence are
 *    of an attempt that is over, and are dropped.
 * 3. Leaving those states before Finished sends Cancel, unless the node is gone.
 * 4. What came of the answer stays: the tokens, the text, what was sent to the client. */
#include "gateway/generation.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/figures/seen.h"
#include "gateway/keeping/keeping.h"
#include "gateway/request.h"
#include "gateway/routing/route.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { STOPPING_LIMIT_NS = 2 * KV_NS_PER_S }; /* for a cancelled choice's usage to arrive */

/* ---- open and clear ---- */

bool kv_generation_open(
    kv_generation_t *choice, kv_request_t *request, uint32_t index, kv_api_error_t *error)
{
    const kv_api_request_t *api = &request->api;
    const char *stops[KV_API_STOPS_MAX];
    for (size_t i = 0; i < api->stop_count; i++) {
        stops[i] = api->stops[i];
    }
    uint32_t of_prompt = index % api->choice_count;
    *choice = (kv_generation_t){.request = request,
        .index = index,
        .prompt = &api->prompts[index / api->choice_count],
        .naming = KV_NAMING_NONE,
        /* A prompt's first answer is the one that it would have alone. */
        .seed = api->seed + of_prompt * UINT64_C(0x9e3779b97f4a7c15)};
    choice->tools = api->has_tools ? kv_tool_parser_create() : NULL;
    choice->logprobs = api->has_logprobs
                           ? kv_logprobs_create(request->gateway->tokenizer, api->top_logprobs)
                           : NULL;
    kv_error_t cause;
    return kv_detokenizer_create(request->gateway->tokenizer, stops, api->stop_count,
               &choice->detokenizer, &cause) == KV_OK ||
           KV_API_REFUSE(error, "stop", "%s", cause.text);
}

void kv_generation_clear(kv_generation_t *choice)
{
    kv_route_left(choice);
    kv_seen_note_answer(choice);
    kv_keeping_clear(choice);
    kv_detokenizer_destroy(choice->detokenizer);
    kv_tool_parser_destroy(choice->tools);
    kv_logprobs_destroy(choice->logprobs);
    if (choice->first_usage != NULL) {
        kvist__wire__usage__free_unpacked(choice->first_usage, NULL);
    }
    if (choice->usage != NULL) {
        kvist__wire__usage__free_unpacked(choice->usage, NULL);
    }
    free(choice->tokens);
    free(choice->text);
}

void kv_generation_begin(kv_generation_t *choice)
{
    KV_CHECK(choice->state == GENERATION_HELD);
    choice->begun_ns = kv_clock_now_ns();
    choice->displaced = choice->index > 0; /* what the request has by now is not thrown away */
    kv_generation_route(choice);
}

/* ---- what it is made of ---- */

static void keep_token(kv_generation_t *choice, uint32_t token)
{
    size_t before = choice->prompt->token_count;
    if (choice->token_count == choice->token_capacity) {
        bool first = choice->token_capacity == 0;
        choice->token_capacity = first ? 64 : 2 * choice->token_capacity;
        choice->tokens =
            kv_reallocate(choice->tokens, before + choice->token_capacity, sizeof *choice->tokens);
        if (first) {
            memcpy(choice->tokens, choice->prompt->tokens, before * sizeof *choice->tokens);
        }
    }
    choice->tokens[before + choice->token_count++] = token;
}

static void append_text(kv_generation_t *choice, const char *text, size_t bytes)
{
    if (choice->text == NULL || choice->text_bytes + bytes > choice->text_capacity) {
        choice->text_capacity = 2 * (choice->text_bytes + bytes) + 64;
        choice->text = kv_reallocate(choice->text, choice->text_capacity, 1);
    }
    if (bytes > 0) {
        memcpy(choice->text + choice->text_bytes, text, bytes);
    }
    choice->text_bytes += bytes;
}

/* The answer's text, of which calls of tools are not told as text. */
static void take_text(kv_generation_t *choice, const char *text, size_t bytes)
{
    if (choice->tools != NULL) {
        kv_tool_parser_push(choice->tools, text, bytes, &text, &bytes);
    }
    append_text(choice, text, bytes);
}

size_t kv_generation_call_count(const kv_generation_t *choice)
{
    size_t count = 0;
    if (choice->tools != NULL) {
        kv_tool_parser_calls(choice->tools, &count);
    }
    return count;
}

uint64_t kv_generation_tpot_ns(const kv_generation_t *choice)
{
    return choice->token_count < 2
               ? 0
               : (choice->last_token_ns - choice->first_token_ns) / (choice->token_count - 1);
}

/* Nodes and servers are not ours: more cached tokens than the choice's prompt has are none. */
static bool is_cached_credible(const kv_generation_t *choice, const Kvist__Wire__CachedTokens *told)
{
    uint64_t cached = (uint64_t)told->device + told->host + told->disk + told->remote;
    bool credible = cached <= choice->prompt->token_count;
    if (!credible) {
        kv_log_warn("gateway",
            "request %s: a node says that %" PRIu64 " of %zu prompt tokens were cached: taken for "
            "none",
            choice->request->id, cached, choice->prompt->token_count);
    }
    return credible;
}

static Kvist__Wire__Usage *copy_usage(const kv_generation_t *choice, const Kvist__Wire__Usage *told)
{
    Kvist__Wire__Usage shown = *told, *usage = &shown;
    if (told->cached != NULL && !is_cached_credible(choice, told->cached)) {
        shown.cached = NULL;
    }
    size_t bytes = kvist__wire__usage__get_packed_size(usage);
    uint8_t *packed = kv_allocate(bytes + 1);
    kvist__wire__usage__pack(usage, packed);
    Kvist__Wire__Usage *copy = kvist__wire__usage__unpack(NULL, bytes, packed);
    KV_CHECK(copy != NULL);
    free(packed);
    return copy;
}

/* What the choice cost: as its node says, or as the first node said it with the first token where
 * it went on at another, or where nobody says more. */
static void settle_usage(kv_generation_t *choice, const Kvist__Wire__Usage *finished)
{
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    if (finished != NULL && !choice->continued) {
        usage = *finished;
    } else if (choice->first_usage != NULL) {
        usage = *choice->first_usage;
    } else if (finished != NULL) {
        usage = *finished;
        if (usage.prompt_tokens > choice->prompt->token_count) {
            usage.cached = NULL; /* an older node: it took what was generated for the prompt */
        }
    }
    usage.prompt_tokens = (uint32_t)choice->prompt->token_count;
    usage.generated_tokens = choice->token_count;
    choice->usage = copy_usage(choice, &usage);
}

/* ---- the end ---- */

/* What the detokenizer held back, and the rest. finished: the node's usage, or NULL where it did
 * not say in time. */
static void end_choice(
    kv_generation_t *choice, kv_finish_t finish, const Kvist__Wire__Usage *finished)
{
    const char *text;
    size_t bytes;
    settle_usage(choice, finished);
    kv_route_left(choice);
    if (choice->state != GENERATION_STOPPING) {
        kv_detokenizer_finish(choice->detokenizer, &text, &bytes);
        take_text(choice, text, bytes);
    }
    if (choice->tools != NULL) {
        kv_tool_parser_finish(choice->tools, &text, &bytes);
        append_text(choice, text, bytes);
    }
    choice->state = GENERATION_DONE;
    size_t calls = kv_generation_call_count(choice);
    bool untold = choice->text_bytes > 0 || calls > choice->told_calls;
    if (choice->request->api.stream && untold && !kv_request_text(choice)) {
        return;
    }
    choice->finish = calls > 0 && finish != KV_FINISH_LENGTH ? KV_FINISH_TOOL_CALLS : finish;
    kv_request_choice_done(choice);
}

/* Why the choice is complete although its node never said so; NONE: it is not. */
static kv_finish_t finish_without_finished(const kv_generation_t *choice)
{
    const kv_api_request_t *api = &choice->request->api;
    uint32_t count = choice->token_count;
    if (choice->state == GENERATION_STOPPING) {
        return KV_FINISH_STOP_STRING;
    }
    if (count > 0 && !api->ignore_eos &&
        choice->tokens[choice->prompt->token_count + count - 1] ==
            kv_tokenizer_end_token(choice->request->gateway->tokenizer)) {
        return KV_FINISH_STOP;
    }
    return count > 0 && count == api->max_tokens ? KV_FINISH_LENGTH : KV_FINISH_NONE;
}

/* The attempt ended without an answer; the choice goes on elsewhere. failed: it counts as one of
 * the few that may go wrong, since the request itself may be what breaks nodes. */
static void retry_choice(kv_generation_t *choice, const kv_api_error_t *error, bool failed)
{
    kv_route_left(choice);
    choice->error = *error;
    choice->failed_count += failed;
    kv_finish_t finish = finish_without_finished(choice);
    if (finish != KV_FINISH_NONE) {
        end_choice(choice, finish, NULL);
    } else if (choice->failed_count == KV_ATTEMPTS_MAX || choice->request->gateway->stopping) {
        kv_request_fail(choice->request, error);
    } else {
        kv_generation_route(choice);
    }
}

/* ---- messages of a node ---- */

/* One token's text; false: the request has ended. */
static bool take_token(kv_generation_t *choice, uint32_t token, bool *stopped_out)
{
    const char *text;
    size_t bytes;
    uint32_t tokens_max = choice->request->api.max_tokens;
    if (choice->token_count == tokens_max ||
        kv_detokenizer_push(choice->detokenizer, token, &text, &bytes, stopped_out) != KV_OK) {
        kv_api_error_t error;
        kv_api_fail(&error, 502, "", "bad_node",
            "decode node %s sent token %u, the %uth of %u: the vocabulary has %u",
            choice->node->node->name, token, choice->token_count + 1, tokens_max,
            choice->request->gateway->limits.vocabulary_count);
        kv_request_fail(choice->request, &error);
        return false;
    }
    keep_token(choice, token);
    take_text(choice, text, bytes);
    *stopped_out |= choice->request->api.single_tool_call && kv_generation_call_count(choice) > 0;
    return true;
}

/* The end token is none of the answer's. */
static void take_logprob(kv_generation_t *choice, const Kvist__Wire__Tokens *tokens, size_t index)
{
    const kv_request_t *request = choice->request;
    uint32_t token = tokens->tokens[index];
    bool is_end =
        !request->api.ignore_eos && token == kv_tokenizer_end_token(request->gateway->tokenizer);
    if (choice->logprobs != NULL && index < tokens->n_logprobs && !is_end) {
        kv_logprobs_add(choice->logprobs, token, tokens->logprobs[index],
            index < tokens->n_tops ? tokens->tops[index] : NULL);
    }
}

void kv_generation_take_tokens(kv_generation_t *choice, const Kvist__Wire__Tokens *tokens)
{
    if (choice->state == GENERATION_STOPPING || tokens->n_tokens == 0) {
        return;
    }
    if (choice->first_usage == NULL && tokens->usage != NULL) {
        choice->first_usage = copy_usage(choice, tokens->usage);
    }
    choice->last_token_ns = kv_clock_now_ns();
    if (choice->first_token_ns == 0) {
        choice->first_token_ns = choice->last_token_ns;
        kv_seen_note_prompt(choice);
    }
    choice->state = GENERATION_RUNNING;
    kv_route_began(choice);
    bool stopped = false;
    for (size_t i = 0; i < tokens->n_tokens && !stopped; i++) {
        if (!take_token(choice, tokens->tokens[i], &stopped)) {
            return;
        }
        take_logprob(choice, tokens, i);
    }
    if (!kv_request_text(choice)) {
        return;
    }
    if (stopped) {
        kv_generation_cancel_at_node(choice, true);
        choice->state = GENERATION_STOPPING;
        choice->stopping_ns = choice->last_token_ns;
    }
}

static void fail_from_node(kv_generation_t *choice, const Kvist__Wire__Finished *finished)
{
    kv_api_error_t error;
    const char *name = choice->node->node->name;
    bool again = true, failed = false;
    switch (finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED ? KV_CANCELLED
                                                                             : finished->status) {
    case KV_INVALID:
    case KV_REFUSED:
        again = false;
        kv_api_fail(&error, 400, "", NULL, "%s", finished->error);
        break;
    case KV_BUSY:
    case KV_NO_SPACE:
        kv_api_fail(
            &error, 429, "", "overloaded", "decode node %s is busy: %s", name, finished->error);
        break;
    case KV_CANCELLED:
    case KV_PEER_LOST:
        choice->displaced = true;
        kv_api_fail(&error, 503, "", "node_stopping", "decode node %s gave the request up: %s",
            name, finished->error);
        break;
    default:
        failed = true;
        kv_api_fail(&error, 500, "", NULL, "decode node %s: %s: %s", name,
            kv_status_name((kv_status_t)finished->status), finished->error);
    }
    if (again) {
        retry_choice(choice, &error, failed);
    } else {
        kv_route_left(choice);
        kv_request_fail(choice->request, &error);
    }
}

void kv_generation_take_finished(kv_generation_t *choice, const Kvist__Wire__Finished *finished)
{
    if (choice->state == GENERATION_STOPPING) {
        end_choice(choice, KV_FINISH_STOP_STRING, finished->usage);
    } else if (finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_STOP) {
        end_choice(choice, KV_FINISH_STOP, finished->usage);
    } else if (finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_LENGTH) {
        end_choice(choice, KV_FINISH_LENGTH, finished->usage);
    } else {
        fail_from_node(choice, finished);
    }
}

void kv_generation_node_lost(kv_generation_t *choice)
{
    kv_api_error_t error;
    kv_api_fail(&error, 502, "", "node_lost",
        "decode node %s was lost while it worked on the request", choice->node->node->name);
    choice->displaced = true;
    retry_choice(choice, &error, true);
}

/* ---- time ---- */

void kv_generation_check(kv_generation_t *choice, uint64_t now_ns)
{
    kv_request_t *request = choice->request;
    uint64_t limit_ns = request->gateway->options->gateway.first_token_limit_ns;
    if (choice->state == GENERATION_HELD || choice->state == GENERATION_DONE) {
        return;
    }
    if (choice->state == GENERATION_STOPPING) {
        if (now_ns - choice->stopping_ns > STOPPING_LIMIT_NS) {
            end_choice(choice, KV_FINISH_STOP_STRING, NULL);
        }
    } else if (choice->first_token_ns == 0 && now_ns - choice->begun_ns > limit_ns) {
        kv_api_error_t error;
        kv_api_fail(&error, 504, "", "timeout",
            "the request took longer than %" PRIu64 " ms to its first token",
            limit_ns / KV_NS_PER_MS);
        kv_request_fail(request, &error);
    } else {
        kv_generation_seek(choice);
    }
}
