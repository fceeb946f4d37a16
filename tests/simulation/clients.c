#include "simulation/clients.h"

#include "base/memory.h"
#include "simulation/model.h"
#include "simulation/network.h"
#include "transport/peers.h"

#include <stdio.h>
#include <string.h>

enum {
    ID_BYTES = 32,
    TOKENS_MAX = 400,
    FAMILIES = 3, /* of prompts that begin alike */
    OUTCOME_LIMIT_S = 60,
    ANSWER_LIMIT_S = 240,
};

typedef struct conversation conversation_t;

typedef struct {
    node_t *node;
    process_t *process;
    uv_loop_t uv;
    kv_peers_t *peers;
} gateway_t;

/* One turn at a time; tokens are the whole context, prompt and answer. */
struct conversation {
    conversation_t *next;
    gateway_t *gateway;
    uint32_t number, turn, turn_count, attempt;
    uint32_t tokens[TOKENS_MAX];
    uint32_t prompt_count, answer_count, answer_max;
    bool ignore_end, done;
    uint64_t begun_ns, asked_ns;
    /* of the attempt */
    char id[ID_BYTES];
    kv_peer_t *peer; /* who was asked; NULL: nobody now */
    char node[NODE_NAME_BYTES];
    uint32_t received_count;
    bool cancelled;
};

clients_figures_t clients_figures;

static struct {
    clients_params_t params;
    gateway_t gateways[NODES_MAX];
    uint32_t gateway_count;
    conversation_t *conversations;
    uint32_t open_count;
} clients;

static void ask(void *subject, uint64_t detail);

/* ---- turns ---- */

static void add_words(conversation_t *conversation, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        conversation->tokens[conversation->prompt_count++] = pick(MODEL_VOCABULARY);
    }
}

static void begin_turn(conversation_t *conversation)
{
    clients_figures.requests++;
    conversation->begun_ns = world_now_ns();
    conversation->answer_max = 1 + pick(clients.params.answer_tokens_max);
    conversation->ignore_end = false;
    conversation->answer_count =
        model_answer(conversation->tokens, conversation->prompt_count, conversation->answer_max);
    ask(conversation, 0);
}

static void next_turn(void *subject, uint64_t detail)
{
    conversation_t *conversation = subject;
    (void)detail;
    conversation->prompt_count += conversation->answer_count;
    add_words(conversation, 1 + pick(12));
    begin_turn(conversation);
}

static void end_turn(conversation_t *conversation)
{
    uint32_t room = conversation->prompt_count + conversation->answer_count + 16 +
                    clients.params.answer_tokens_max;
    if (++conversation->turn < conversation->turn_count && room < TOKENS_MAX &&
        room < MODEL_CONTEXT_TOKENS) {
        world_after(
            between(0, 500 * MS), conversation->gateway->process, next_turn, conversation, 0);
        return;
    }
    conversation->done = true;
    clients.open_count--;
}

static void try_again(conversation_t *conversation)
{
    world_after(between(20 * MS, 400 * MS), conversation->gateway->process, ask, conversation, 0);
}

/* ---- asking ---- */

typedef struct {
    const char *node; /* that had the turn before; "": any */
    kv_peer_t *chosen;
    uint32_t count;
} choice_t;

static void choose(void *context, kv_peer_t *peer)
{
    choice_t *choice = context;
    if (kv_peer_draining(peer)) {
        return;
    }
    bool same = choice->node[0] != '\0' && strcmp(kv_peer_name(peer), choice->node) == 0;
    if (pick(++choice->count) == 0 || same) {
        choice->chosen = peer;
    }
}

/* Whoever cancels is answered at once, whatever the request waits for. */
static void check_answered(void *subject, uint64_t attempt)
{
    const conversation_t *conversation = subject;
    if (conversation->peer != NULL && conversation->attempt == attempt && conversation->cancelled) {
        violation("request %s was cancelled, and has no outcome yet", conversation->id);
    }
}

static void cancel(void *subject, uint64_t attempt)
{
    conversation_t *conversation = subject;
    if (conversation->peer == NULL || conversation->attempt != attempt || conversation->cancelled) {
        return;
    }
    conversation->cancelled = true;
    trace("client cancels %s", conversation->id);
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Cancel message = KVIST__WIRE__CANCEL__INIT;
    message.request_id = conversation->id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &message;
    (void)kv_peer_send(conversation->peer, &envelope);
    if (clients.params.faultless) {
        world_after(clients.params.cancel_limit_ns, conversation->gateway->process, check_answered,
            conversation, attempt);
    }
}

static void ask(void *subject, uint64_t detail)
{
    conversation_t *conversation = subject;
    (void)detail;
    choice_t choice = {chance(700) ? conversation->node : "", NULL, 0};
    kv_peers_visit(conversation->gateway->peers, choose, &choice);
    if (choice.chosen == NULL) {
        try_again(conversation);
        return;
    }
    conversation->peer = choice.chosen;
    snprintf(conversation->node, sizeof conversation->node, "%s", kv_peer_name(choice.chosen));
    conversation->attempt++;
    conversation->received_count = 0;
    conversation->cancelled = false;
    conversation->asked_ns = world_now_ns();
    clients_figures.attempts++;
    snprintf(conversation->id, sizeof conversation->id, "c%u.%u.%u", conversation->number,
        conversation->turn, conversation->attempt);
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    sampling.top_p = 1;
    Kvist__Wire__Generate generate = KVIST__WIRE__GENERATE__INIT;
    generate.request_id = conversation->id;
    generate.n_tokens = conversation->prompt_count;
    generate.tokens = conversation->tokens;
    generate.max_tokens = conversation->answer_max;
    generate.sampling = &sampling;
    generate.cache_mode =
        chance(900) ? KVIST__WIRE__CACHE_MODE__CACHE_READWRITE : (Kvist__Wire__CacheMode)pick(4);
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = &generate;
    trace("client asks %s of %s: %u tokens, at most %u to generate", conversation->id,
        kv_peer_name(conversation->peer), conversation->prompt_count, conversation->answer_max);
    kv_status_t status = kv_peer_send(conversation->peer, &envelope);
    if (status != KV_OK) {
        conversation->peer = NULL;
        try_again(conversation);
    } else if (chance(clients.params.cancel_chance)) {
        world_after(between(0, chance(500) ? 20 * MS : 2 * SECOND), conversation->gateway->process,
            cancel, conversation, conversation->attempt);
    }
}

/* ---- answers ---- */

static conversation_t *find(const gateway_t *gateway, const kv_peer_t *peer, const char *id)
{
    conversation_t *at = clients.conversations;
    while (at != NULL && (at->gateway != gateway || at->peer != peer || strcmp(at->id, id) != 0)) {
        at = at->next;
    }
    if (at == NULL) {
        violation("a message for request %s, which has its outcome already", id);
    }
    return at;
}

static void take_tokens(conversation_t *conversation, const Kvist__Wire__Tokens *tokens)
{
    for (size_t i = 0; i < tokens->n_tokens; i++) {
        uint32_t at = conversation->received_count++;
        if (at >= conversation->answer_count ||
            tokens->tokens[i] != conversation->tokens[conversation->prompt_count + at]) {
            violation("request %s: token %u of the answer is wrong", conversation->id, at);
        }
        clients_figures.tokens++;
    }
}

static void check_whole(const conversation_t *conversation, Kvist__Wire__FinishReason reason)
{
    bool stops =
        conversation->tokens[conversation->prompt_count + conversation->answer_count - 1] ==
        MODEL_END_TOKEN;
    bool says_stop = reason == KVIST__WIRE__FINISH_REASON__FINISH_STOP;
    if (conversation->received_count != conversation->answer_count || stops != says_stop) {
        violation("request %s: finished (reason %d) after %u of %u tokens", conversation->id,
            (int)reason, conversation->received_count, conversation->answer_count);
    }
}

static void take_error(conversation_t *conversation, const Kvist__Wire__Finished *finished)
{
    kv_status_t status = (kv_status_t)finished->status;
    if (status == KV_OK || finished->error[0] == '\0') {
        violation("request %s: an error without a reason", conversation->id);
    }
    if (status == KV_INVALID) {
        violation("request %s: refused as invalid: %s", conversation->id, finished->error);
    }
    if (clients.params.faultless && status != KV_BUSY) {
        violation("request %s: failed without a fault: %s (%s)", conversation->id,
            kv_status_name(status), finished->error);
    }
    if (status == KV_BUSY) {
        clients_figures.busy++;
    } else {
        clients_figures.failed++;
    }
    trace("client: %s failed: %s (%s)", conversation->id, kv_status_name(status), finished->error);
}

/* A cancelled request has left all nodes: who still worked on it was told. */
static void check_cancelled(void *subject, uint64_t detail)
{
    const char *id = subject;
    (void)detail;
    for (uint32_t i = 0; i < node_count; i++) {
        if (nodes[i].process != NULL && process_has_request(nodes[i].process, id)) {
            violation("%s still has request %s, which was cancelled", nodes[i].process->name, id);
        }
    }
}

static void expect_gone(const conversation_t *conversation)
{
    if (clients.params.faultless) {
        char *id = world_allocate(ID_BYTES);
        memcpy(id, conversation->id, ID_BYTES);
        world_after(clients.params.cancel_limit_ns, NULL, check_cancelled, id, 0);
    }
}

static void take_finished(conversation_t *conversation, const Kvist__Wire__Finished *finished)
{
    conversation->peer = NULL;
    switch (finished->reason) {
    case KVIST__WIRE__FINISH_REASON__FINISH_STOP:
    case KVIST__WIRE__FINISH_REASON__FINISH_LENGTH:
        check_whole(conversation, finished->reason);
        clients_figures.answered++;
        trace("client: %s is answered", conversation->id);
        end_turn(conversation);
        return;
    case KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED:
        if (!conversation->cancelled) {
            violation("request %s: cancelled, and nobody asked for it", conversation->id);
        }
        clients_figures.cancelled++;
        expect_gone(conversation);
        end_turn(conversation);
        return;
    default:
        take_error(conversation, finished);
        if (conversation->cancelled) {
            end_turn(conversation);
        } else {
            try_again(conversation);
        }
        return;
    }
}

static void message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *envelope)
{
    gateway_t *gateway = context;
    if (envelope->body_case == KVIST__WIRE__ENVELOPE__BODY_TOKENS) {
        take_tokens(find(gateway, peer, envelope->tokens->request_id), envelope->tokens);
    } else if (envelope->body_case == KVIST__WIRE__ENVELOPE__BODY_FINISHED) {
        take_finished(find(gateway, peer, envelope->finished->request_id), envelope->finished);
    }
}

static void up(void *context, kv_peer_t *peer)
{
    (void)context;
    (void)peer;
}

static void down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)status;
    (void)reason;
    for (conversation_t *at = clients.conversations; at != NULL; at = at->next) {
        if (at->gateway == context && at->peer == peer) {
            at->peer = NULL;
            clients_figures.lost++;
            if (clients.params.faultless) {
                violation("request %s: its connection is lost, and there was no fault", at->id);
            }
            if (at->cancelled) {
                end_turn(at);
            } else {
                try_again(at);
            }
        }
    }
}

/* ---- begin and end ---- */

static void open_gateway(void *subject, uint64_t detail)
{
    gateway_t *gateway = subject;
    (void)detail;
    uv_loop_init(&gateway->uv);
    static const char KEY[] = "a simulated cluster's key";
    kv_peers_params_t params = {
        .loop = &gateway->uv,
        .name = gateway->node->name,
        .role = KVIST__WIRE__ROLE__ROLE_GATEWAY,
        .cluster_key = KEY,
        .cluster_key_bytes = sizeof KEY - 1,
        .callbacks = {gateway, up, down, message},
    };
    kv_error_t error;
    if (kv_peers_create(&params, &gateway->peers, &error) != KV_OK) {
        violation("a gateway cannot begin: %s", error.text);
    }
    for (uint32_t i = 0; i < node_count; i++) {
        if (nodes[i].role == KVIST__WIRE__ROLE__ROLE_DECODE) {
            char address[32];
            snprintf(address, sizeof address, "127.0.0.1:%u", CONTROL_PORT + i);
            kv_peers_connect(gateway->peers, address, &error);
        }
    }
}

static void begin_conversation(void *subject, uint64_t detail)
{
    conversation_t *conversation = subject;
    (void)detail;
    uint32_t family = pick(FAMILIES), shared = pick(clients.params.prompt_tokens_max);
    for (uint32_t i = 0; i < shared; i++) { /* the same for all of the family */
        conversation->tokens[conversation->prompt_count++] = (family + 5 * i) % MODEL_VOCABULARY;
    }
    uint32_t own_max = clients.params.prompt_tokens_max - shared;
    add_words(conversation, 1 + pick(own_max < 20 ? own_max : 20));
    begin_turn(conversation);
}

void clients_begin(const clients_params_t *params)
{
    memset(&clients, 0, sizeof clients);
    clients.params = *params;
    for (uint32_t i = 0; i < node_count; i++) {
        if (nodes[i].role == KVIST__WIRE__ROLE__ROLE_GATEWAY) {
            gateway_t *gateway = &clients.gateways[clients.gateway_count++];
            gateway->node = &nodes[i];
            gateway->process = process_adopt(&nodes[i]);
            process_run(gateway->process, open_gateway, gateway, 0);
        }
    }
    for (uint32_t i = 0; i < params->conversation_count; i++) {
        conversation_t *conversation = world_allocate(sizeof *conversation);
        conversation->number = i;
        conversation->turn_count = 1 + pick(params->turns_max);
        conversation->gateway = &clients.gateways[pick(clients.gateway_count)];
        conversation->next = clients.conversations;
        clients.conversations = conversation;
        clients.open_count++;
        world_after(between(0, params->begin_within_ns), conversation->gateway->process,
            begin_conversation, conversation, 0);
    }
}

bool clients_are_done(void)
{
    return clients.open_count == 0;
}

void clients_check_waiting(uint64_t calm_ns)
{
    uint64_t now_ns = world_now_ns();
    for (const conversation_t *at = clients.conversations; at != NULL; at = at->next) {
        uint64_t asked_ns = at->asked_ns > calm_ns ? at->asked_ns : calm_ns;
        if (at->peer != NULL && now_ns > asked_ns + OUTCOME_LIMIT_S * SECOND) {
            violation("request %s of %s has no outcome after %d s", at->id, kv_peer_name(at->peer),
                OUTCOME_LIMIT_S);
        }
        uint64_t begun_ns = at->begun_ns > calm_ns ? at->begun_ns : calm_ns;
        if (!at->done && at->begun_ns != 0 && now_ns > begun_ns + ANSWER_LIMIT_S * SECOND) {
            violation("request %s was refused for %d s", at->id, ANSWER_LIMIT_S);
        }
    }
}

static void close_gateway(void *subject, uint64_t detail)
{
    gateway_t *gateway = subject;
    (void)detail;
    kv_peers_destroy(gateway->peers);
    while (uv_run(&gateway->uv, UV_RUN_NOWAIT) != 0) {
    }
    uv_loop_close(&gateway->uv);
}

void clients_end(void)
{
    for (uint32_t i = 0; i < clients.gateway_count; i++) {
        gateway_t *gateway = &clients.gateways[i];
        process_run(gateway->process, close_gateway, gateway, 0);
        gateway->process->state = PROCESS_GONE;
        gateway->node->process = NULL;
    }
}
