#include "played.h"

#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kv_peers {
    kv_peers_params_t params;
    uv_timer_t timer;
};

struct kv_peer nodes[NODES] = {{.name = "decode-0"}, {.name = "decode-1"}};
uint32_t story[TOKENS_MAX];
uint32_t story_count;
atomic_int generates, cancels, last_cache_mode, last_generated_count, last_priority;
atomic_int tokens_said;
atomic_ullong last_quota_bytes, seeds[JOBS_MAX];
char last_tenant[64], last_salt[64];
atomic_int contexts_told;
atomic_bool prefill_attached, story_went_wrong, wanted_up[NODES], returning, slow_goes_on;
static uint64_t next_peer_id;

static void say_tokens(struct kv_peer *peer, job_t *job, uint32_t *tokens, size_t count)
{
    Kvist__Wire__Tokens body = KVIST__WIRE__TOKENS__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    body.request_id = job->id;
    body.tokens = tokens;
    body.n_tokens = count;
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    cached.disk = peer == &nodes[0] ? 1 : 2;
    usage.prompt_tokens = job->prompt_tokens;
    usage.cached = &cached;
    body.usage = job->first ? &usage : NULL;
    /* Of one token: its logprob and so many alternatives, the first of which it is; one is none. */
    float chosen = -0.5f, logprobs[4] = {-0.5f, -INFINITY, -1, -2};
    uint32_t alternatives[4] = {tokens[0], 17, 4000000000u, 18};
    Kvist__Wire__TopLogprobs tops = KVIST__WIRE__TOP_LOGPROBS__INIT, *all[] = {&tops};
    tops.tokens = alternatives;
    tops.logprobs = logprobs;
    tops.n_tokens = tops.n_logprobs = job->top_logprobs < 4 ? job->top_logprobs : 4;
    body.logprobs = &chosen;
    body.n_logprobs = count == 1;
    body.tops = all;
    body.n_tops = count == 1 && job->top_logprobs > 0;
    job->first = false;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOKENS;
    envelope.tokens = &body;
    peer->peers->params.callbacks.message(peer->peers->params.callbacks.context, peer, &envelope);
    atomic_fetch_add(&tokens_said, (int)count);
}

static void say_finished(
    struct kv_peer *peer, job_t *job, Kvist__Wire__FinishReason reason, kv_status_t status)
{
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    Kvist__Wire__Finished body = KVIST__WIRE__FINISHED__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    cached.host = 16;
    usage.prompt_tokens = job->prompt_tokens;
    usage.cached = &cached;
    usage.miss = (char *)"short";
    usage.prefilled_by = (char *)"prefill-0";
    body.request_id = job->id;
    body.reason = reason;
    body.status = status;
    body.error = (char *)"as the test wants";
    body.usage = status == KV_OK ? &usage : NULL;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FINISHED;
    envelope.finished = &body;
    job->used = false;
    peer->peers->params.callbacks.message(peer->peers->params.callbacks.context, peer, &envelope);
}

static void lose(struct kv_peer *peer)
{
    peer->up = false;
    peer->wanted = false;
    memset(peer->jobs, 0, sizeof peer->jobs);
    peer->peers->params.callbacks.down(
        peer->peers->params.callbacks.context, peer, KV_PEER_LOST, "played");
}

static void step_job(struct kv_peer *peer, job_t *job)
{
    if (job->cancelled) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_OK);
    } else if (job->play == PLAY_BUSY || job->play == PLAY_INVALID) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_ERROR,
            job->play == PLAY_BUSY ? KV_BUSY : KV_INVALID);
    } else if (job->play == PLAY_LOST || (job->play == PLAY_LOST_LATER && job->sent == 2) ||
               (job->play == PLAY_END_LOST && job->sent == job->max_tokens)) {
        lose(peer);
    } else if (job->sent == 2 && (job->play == PLAY_FAILS_LATER || job->play == PLAY_GIVES_UP)) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_ERROR,
            job->play == PLAY_GIVES_UP ? KV_CANCELLED : KV_FATAL);
    } else if (job->play == PLAY_SLOW && job->sent >= 2 &&
               (!atomic_load(&slow_goes_on) || ++job->steps % 20 != 0)) {
        return;
    } else if (job->play == PLAY_WRONG_TOKEN) {
        say_tokens(peer, job, (uint32_t[]){4000000000u}, 1);
    } else if (job->play == PLAY_FLOOD) {
        for (int i = 0; i < 64 && job->used && job->sent < job->max_tokens; i++) {
            job->sent++;
            say_tokens(peer, job, story, 1);
        }
    } else if (job->play == PLAY_TOO_MANY) {
        say_tokens(peer, job, story, job->max_tokens + 1);
    } else if (job->play != PLAY_SILENT && job->sent == job->max_tokens) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_LENGTH, KV_OK);
    } else if (job->play != PLAY_SILENT && job->sent == story_count) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_STOP, KV_OK);
    } else if (job->play != PLAY_SILENT) {
        say_tokens(peer, job, &story[job->sent++], 1);
    }
}

/* ---- what they have ---- */

static void send_told(struct kv_peer *peer, uint64_t id, Kvist__Admin__Reply *reply)
{
    Kvist__Wire__Told told = KVIST__WIRE__TOLD__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    told.id = id;
    told.reply = reply;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOLD;
    envelope.told = &told;
    peer->peers->params.callbacks.message(peer->peers->params.callbacks.context, peer, &envelope);
}

/* A device tier that is half full; each node knows one prefill node. */
static void tell_status(struct kv_peer *peer, uint64_t id, bool relayed)
{
    Kvist__Admin__Tier tier = KVIST__ADMIN__TIER__INIT, host = tier, *tiers[] = {&tier, &host};
    Kvist__Admin__Peer prefill = KVIST__ADMIN__PEER__INIT, *peers[] = {&prefill};
    Kvist__Admin__Status status = KVIST__ADMIN__STATUS__INIT;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    tier.name = (char *)"device";
    tier.capacity_bytes = 1000;
    tier.used_bytes = 500;
    host = tier;
    host.name = (char *)"host";
    status.attached_to =
        relayed && atomic_load(&prefill_attached) ? (char *)"decode-0" : (char *)"";
    prefill.name = (char *)"prefill-0";
    prefill.role = (char *)"prefill";
    prefill.up = true;
    status.tiers = tiers;
    status.n_tiers = 2;
    status.peers = peers;
    status.n_peers = !relayed;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_STATUS;
    reply.status = &status;
    send_told(peer, id, &reply);
}

/* Later ones are longer, and were used longer ago. */
static void tell_list(struct kv_peer *peer, uint64_t id)
{
    size_t count = (size_t)atomic_load(&contexts_told);
    Kvist__Admin__Context *contexts = kv_allocate_array(count + 1, sizeof *contexts);
    Kvist__Admin__Context **pointers = kv_allocate_array(count + 1, sizeof *pointers);
    char(*keys)[65] = kv_allocate_array(count + 1, sizeof *keys);
    for (size_t i = 0; i < count; i++) {
        kvist__admin__context__init(&contexts[i]);
        snprintf(keys[i], sizeof keys[i], "%064zx", i);
        contexts[i].key = keys[i];
        contexts[i].token_count = 16 * (i + 1);
        contexts[i].bytes = 1024 * (i + 1);
        contexts[i].tier = (char *)(i % 4 < 2 ? "device" : "disk");
        contexts[i].tenant = (char *)(i % 2 == 0 ? "alpha" : "beta");
        contexts[i].used_unix_ns = (uint64_t)1700000000 * KV_NS_PER_S - i * KV_NS_PER_S;
        contexts[i].priority = (char *)"interactive";
        pointers[i] = &contexts[i];
    }
    Kvist__Admin__List list = KVIST__ADMIN__LIST__INIT;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    list.contexts = pointers;
    list.n_contexts = count;
    reply.body_case = KVIST__ADMIN__REPLY__BODY_LIST;
    reply.list = &list;
    send_told(peer, id, &reply);
    free(contexts);
    free(pointers);
    free(keys);
}

static void say_told(struct kv_peer *peer)
{
    for (size_t i = 0; peer->up && i < sizeof peer->asked / sizeof peer->asked[0]; i++) {
        uint64_t id = peer->asked[i].id;
        peer->asked[i].id = 0;
        if (id != 0 && peer->asked[i].list) {
            tell_list(peer, id);
        } else if (id != 0) {
            tell_status(peer, id, peer->asked[i].relayed);
        }
    }
}

static void on_step(uv_timer_t *timer)
{
    kv_peers_t *peers = timer->data;
    for (int i = 0; i < NODES; i++) {
        struct kv_peer *peer = &nodes[i];
        bool wanted = atomic_load(&wanted_up[i]);
        peer->wanted = peer->wanted || atomic_load(&returning);
        if (wanted && !peer->up && peer->wanted) {
            peer->up = true;
            peer->peers = peers;
            peer->context = NULL;
            peer->id = ++next_peer_id;
            peers->params.callbacks.up(peers->params.callbacks.context, peer);
        } else if (!wanted && peer->up) {
            lose(peer);
            peer->wanted = true;
        }
        for (int j = 0; peer->up && j < JOBS_MAX; j++) {
            if (peer->jobs[j].used) {
                step_job(peer, &peer->jobs[j]);
            }
        }
        say_told(peer);
    }
}

kv_status_t kv_peers_create(
    const kv_peers_params_t *params, kv_peers_t **peers_out, kv_error_t *error)
{
    (void)error;
    kv_peers_t *peers = kv_allocate(sizeof *peers);
    peers->params = *params;
    uv_timer_init(params->loop, &peers->timer);
    peers->timer.data = peers;
    uv_timer_start(&peers->timer, on_step, 2, 2);
    *peers_out = peers;
    return KV_OK;
}

static void free_peers(uv_handle_t *handle)
{
    free(handle->data);
}

void kv_peers_destroy(kv_peers_t *peers)
{
    for (int i = 0; i < NODES; i++) {
        nodes[i].up = false;
        memset(nodes[i].jobs, 0, sizeof nodes[i].jobs);
    }
    uv_close((uv_handle_t *)&peers->timer, free_peers);
}

kv_status_t kv_peers_connect(kv_peers_t *peers, const char *address, kv_error_t *error)
{
    (void)error;
    nodes[atoi(strchr(address, ':') + 1) - 1].peers = peers;
    return KV_OK;
}

void kv_peers_disconnect(kv_peers_t *peers, const char *address)
{
    (void)peers;
    (void)address;
}

kv_peer_t *kv_peers_find(kv_peers_t *peers, const char *name)
{
    (void)peers;
    (void)name;
    return NULL;
}

uint16_t kv_peers_port(const kv_peers_t *peers)
{
    (void)peers;
    return 0;
}

static kv_status_t note_ask(kv_peer_t *peer, const Kvist__Wire__Ask *ask)
{
    for (size_t i = 0; i < sizeof peer->asked / sizeof peer->asked[0]; i++) {
        if (peer->asked[i].id == 0) {
            peer->asked[i].id = ask->id;
            peer->asked[i].list = ask->request->body_case == KVIST__ADMIN__REQUEST__BODY_LIST;
            peer->asked[i].relayed = ask->node[0] != '\0';
            return KV_OK;
        }
    }
    return KV_BUSY;
}

kv_status_t kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (!peer->up) {
        return KV_PEER_LOST;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_CANCEL) {
        atomic_fetch_add(&cancels, 1);
        for (int i = 0; i < JOBS_MAX; i++) {
            if (peer->jobs[i].used && strcmp(peer->jobs[i].id, message->cancel->request_id) == 0) {
                peer->jobs[i].cancelled = true;
            }
        }
        return KV_OK;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_ASK) {
        return note_ask(peer, message->ask);
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE) {
        return KV_OK;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_QUOTA) {
        bool alpha = strcmp(message->quota->tenant, "alpha") == 0;
        atomic_store(&last_quota_bytes, alpha ? message->quota->host_bytes : UINT64_MAX);
        return KV_OK;
    }
    for (int i = 0; i < JOBS_MAX; i++) {
        if (!peer->jobs[i].used) {
            const Kvist__Wire__Generate *generate = message->generate;
            uint32_t before = generate->generated_count;
            size_t prompt_tokens = generate->n_tokens - before;
            atomic_store(&last_generated_count, (int)before);
            if (before > 0 &&
                memcmp(generate->tokens + prompt_tokens, story, before * sizeof *story) != 0) {
                atomic_store(&story_went_wrong, true);
            }
            peer->jobs[i] = (job_t){.used = true,
                .first = true,
                .sent = before,
                .max_tokens = before + generate->max_tokens,
                .prompt_tokens = (uint32_t)prompt_tokens,
                .top_logprobs = generate->sampling->top_logprobs,
                .play = atomic_load(&peer->play)};
            snprintf(peer->jobs[i].id, sizeof peer->jobs[i].id, "%s", generate->request_id);
            atomic_store(&last_priority, (int)generate->priority);
            snprintf(last_tenant, sizeof last_tenant, "%s", generate->tenant);
            snprintf(last_salt, sizeof last_salt, "%.*s", (int)generate->salt.len,
                (const char *)generate->salt.data);
            int before_this = atomic_fetch_add(&generates, 1);
            atomic_store(&seeds[before_this % JOBS_MAX], generate->sampling->seed);
            atomic_store(&last_cache_mode, (int)generate->cache_mode);
            return KV_OK;
        }
    }
    return KV_BUSY;
}

void kv_peer_close(kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)peer;
    (void)status;
    (void)reason;
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    return peer->name;
}

Kvist__Wire__Role kv_peer_role(const kv_peer_t *peer)
{
    (void)peer;
    return KVIST__WIRE__ROLE__ROLE_DECODE;
}

const char *kv_peer_address(const kv_peer_t *peer)
{
    (void)peer;
    return "127.0.0.1:1";
}

uint64_t kv_peer_id(const kv_peer_t *peer)
{
    return peer->id;
}

uint32_t kv_peer_queued_requests(const kv_peer_t *peer)
{
    (void)peer;
    return 0;
}

uint32_t kv_peer_running_requests(const kv_peer_t *peer)
{
    (void)peer;
    return 0;
}

const char *kv_peer_attached_to(const kv_peer_t *peer)
{
    (void)peer;
    return "";
}

bool kv_peer_draining(const kv_peer_t *peer)
{
    return atomic_load(&peer->draining);
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    return atomic_load(&peer->version);
}

void kv_peers_set_load(kv_peers_t *peers, uint32_t queued_requests, uint32_t running_requests)
{
    (void)peers;
    (void)queued_requests;
    (void)running_requests;
}

void kv_peer_set_context(kv_peer_t *peer, void *context)
{
    peer->context = context;
}

void *kv_peer_context(const kv_peer_t *peer)
{
    return peer->context;
}
