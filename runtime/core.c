#include "runtime/core.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "holder/quotas.h"
#include "holder/shape.h"
#include "kernels/plugin.h"
#include "node/notify.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How long a GPU may be lost before its node says so; requests fail at once. */
enum { DEVICE_LOOK_MS = 250 };

_Static_assert((int)KV_REQUESTS_MAX == (int)KV_COMPUTE_SEQUENCES_MAX, "a request is a sequence");

/* The core and what only this file uses. The public part is first, so that a kv_core_t * is a
 * core_t *. */
typedef struct {
    kv_core_t public;
    const kv_core_params_t *params;
    kv_device_t *device;
    char device_title[KV_DEVICE_TITLE_BYTES];
    kv_error_t passed_over; /* why auto took no GPU */
    kv_timer_t *device_look;
    kv_error_t lost; /* the device; status KV_OK: it is not */
    kvist_key_t model;
    kv_watch_t *compute_watch;
} core_t;

/* Since the start of the process; the admin socket shows them, /metrics too. */
static struct {
    uint64_t requests, prompt_tokens, cached_tokens, generated_tokens;
} counted;

/* ---- helpers for roles ---- */

kvist_key_t kv_core_namespace(const kv_core_t *core, const void *salt, size_t salt_bytes)
{
    const kv_block_shape_t *shape = &core->info->shape;
    kvist_layout_t layout = kvist_layout_plain(shape);
    kvist_namespace_params_t params = {
        .model = ((const core_t *)core)->model,
        .layout = &layout,
        .dtype = kv_shape_dtype(shape),
        .codec_class = KVIST_CODEC_CLASS_LOSSLESS,
        .salt = salt,
        .salt_bytes = salt_bytes,
        .adapter = "",
    };
    kvist_store_describe(core->holder.store, &params);
    return kvist_namespace(&params);
}

void kv_core_seal(const kv_core_t *core, kvist_lease_t *lease, const uint32_t *tokens,
    uint32_t computed_count, const char *arithmetic)
{
    uint32_t block_tokens = core->info->shape.block_tokens;
    for (uint32_t block = kvist_lease_sealed_count(lease);
         (block + 1) * block_tokens <= computed_count; block++) {
        KV_CHECK(kvist_lease_seal(lease, tokens + (size_t)block * block_tokens, NULL, arithmetic) ==
                 KV_OK);
    }
}

char **kv_core_copy_arithmetic(char *const *ids, size_t count, uint32_t wanted)
{
    bool valid = count == wanted;
    for (size_t i = 0; valid && i < count; i++) {
        valid = ids[i][0] == '\0' || kv_text_is_plain(ids[i], ' ', KVIST_ARITHMETIC_BYTES_MAX);
    }
    if (!valid) {
        return NULL;
    }
    char **copies = kv_allocate_array(count, sizeof *copies);
    for (size_t i = 0; i < count; i++) {
        copies[i] = kv_duplicate_string(ids[i]);
    }
    return copies;
}

void kv_core_free_arithmetic(char **ids, uint32_t count)
{
    for (uint32_t i = 0; ids != NULL && i < count; i++) {
        free(ids[i]);
    }
    free(ids);
}

bool kv_core_has_decode_blocks(const kvist_lease_t *lease, uint32_t block_count)
{
    for (uint32_t block = 0; block < block_count; block++) {
        if (strstr(kvist_lease_arithmetic(lease, block), "/decode/") != NULL) {
            return true;
        }
    }
    return false;
}

uint32_t kv_core_cached_tokens(const Kvist__Wire__Usage *usage)
{
    const Kvist__Wire__CachedTokens *cached = usage->cached;
    return cached == NULL ? 0 : cached->device + cached->host + cached->disk + cached->remote;
}

void kv_core_usage_from_match(
    const kv_core_t *core, const kvist_match_t *match, Kvist__Wire__Usage *usage)
{
    uint32_t block_tokens = core->info->shape.block_tokens;
    usage->cached->device = match->tier_blocks[KVIST_TIER_DEVICE] * block_tokens;
    usage->cached->host = match->tier_blocks[KVIST_TIER_HOST] * block_tokens;
    usage->cached->disk = match->tier_blocks[KVIST_TIER_DISK] * block_tokens;
    usage->loaded_bytes =
        (match->tier_blocks[KVIST_TIER_HOST] + match->tier_blocks[KVIST_TIER_DISK]) *
        (uint64_t)kv_block_bytes(&core->info->shape);
    usage->miss = (char *)kv_outcome_miss_told(match->miss, &match->detail);
}

static void count(const char *name, const char *labels, const char *help, double amount)
{
    kv_metric_add(kv_metric_counter(name, labels, help), amount);
}

void kv_core_count(const Kvist__Wire__Usage *usage)
{
    static const char CACHED[] = "kvist_cached_tokens_total";
    static const char CACHED_HELP[] =
        "prompt tokens that were not recomputed, by the tier they came from";
    counted.requests++;
    counted.prompt_tokens += usage->prompt_tokens;
    counted.cached_tokens += kv_core_cached_tokens(usage);
    counted.generated_tokens += usage->generated_tokens;
    count("kvist_requests_total", "", "requests that ended with an answer", 1);
    count("kvist_prompt_tokens_total", "", "prompt tokens of those requests", usage->prompt_tokens);
    count("kvist_generated_tokens_total", "", "tokens generated", usage->generated_tokens);
    if (usage->cached != NULL) {
        count(CACHED, "tier=\"device\"", CACHED_HELP, usage->cached->device);
        count(CACHED, "tier=\"host\"", CACHED_HELP, usage->cached->host);
        count(CACHED, "tier=\"disk\"", CACHED_HELP, usage->cached->disk);
        count(CACHED, "tier=\"remote\"", CACHED_HELP, usage->cached->remote);
    }
    count("kvist_compute_seconds_total", "phase=\"prefill\"", "time in the engine",
        (double)usage->compute_ns / KV_NS_PER_S);
}

/* ---- what the holder asks ---- */

typedef struct {
    Kvist__Wire__Role role;
    uint32_t count;
} role_count_t;

static void count_role(void *context, kv_peer_t *peer)
{
    role_count_t *wanted = context;
    wanted->count += kv_peer_role(peer) == wanted->role;
}

static void *accept_message(
    void *context, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    core_t *core = context;
    kv_holder_t *holder = &core->public.holder;
    role_count_t askers = {kv_peer_role(peer), 0};
    kv_peers_visit(holder->peers, count_role, &askers);
    core->public.request_count = holder->requests.count;
    core->public.asker_request_count = kv_requests_from(&holder->requests, peer);
    core->public.asker_count = askers.count;
    if (kv_relayed_message(&core->public, peer, message)) {
        return NULL;
    }
    return core->params->accept(&core->public, id, peer, message);
}

static void describe(void *context, Kvist__Admin__Status *status)
{
    const core_t *core = context;
    const kv_engine_info_t *info = core->public.info;
    bool prefill = core->params->role == KVIST__WIRE__ROLE__ROLE_PREFILL;
    status->model = (char *)info->name;
    status->prompt_tokens = counted.prompt_tokens;
    status->cached_tokens = counted.cached_tokens;
    status->generated_tokens = counted.generated_tokens;
    status->requests = counted.requests;
    status->device = (char *)core->device->ops->name;
    status->device_title = (char *)core->device_title;
    status->no_gpu = (char *)core->passed_over.text;
    status->arithmetic = (char *)(prefill ? info->prefill_arithmetic : info->decode_arithmetic);
}

/* Prefill nodes are told what gateways say, these what keys are made of here. */
static void greet(void *context, kv_peer_t *peer)
{
    core_t *core = context;
    const kv_block_shape_t *shape = &core->public.info->shape;
    kv_relayed_greet(&core->public, peer);
    if (kv_peer_role(peer) != KVIST__WIRE__ROLE__ROLE_GATEWAY || kv_peer_version(peer) < 2) {
        return;
    }
    kvist_key_t without_salt = kv_core_namespace(&core->public, NULL, 0);
    Kvist__Wire__Naming naming = KVIST__WIRE__NAMING__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    naming.model = (ProtobufCBinaryData){KVIST_KEY_BYTES, core->model.bytes};
    naming.layer_count = shape->layer_count;
    naming.kv_head_count = shape->kv_head_count;
    naming.head_dim = shape->head_dim;
    naming.block_tokens = shape->block_tokens;
    naming.element_bytes = shape->element_bytes;
    naming.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, without_salt.bytes};
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_NAMING;
    envelope.naming = &naming;
    kv_holder_send(peer, &envelope);
}

static kvist_key_t name_space(const void *context, const void *salt, size_t salt_bytes)
{
    return kv_core_namespace(&((const core_t *)context)->public, salt, salt_bytes);
}

static void compute_ready(void *context)
{
    core_t *core = context;
    kv_compute_event_t event;
    while (kv_compute_poll(core->public.compute, &event) == KV_OK) {
        kv_requests_computed(&core->public.holder.requests, &event);
    }
}

/* ---- the device ---- */

/* A process that has lost its GPU cannot get it back. What is in host memory and on disk is whole,
 * and others take the requests over: the sooner this one ends, the sooner it is there again. */
static void look_at_device(void *context)
{
    core_t *core = context;
    kv_reactor_t *reactor = core->public.holder.reactor;
    if (core->lost.status != KV_OK ||
        core->device->ops->health(core->device, &core->lost) == KV_OK) {
        return;
    }
    kv_log_error("runtime", "stopping: %s", core->lost.text);
    kv_timer_stop(core->device_look);
    kv_reactor_begin_stop(reactor);
}

/* What the node computes on, where people look for it: log, status, metrics. */
static void tell_device(core_t *core)
{
    const kv_device_ops_t *ops = core->device->ops;
    char labels[KV_DEVICE_TITLE_BYTES + 64];
    if (ops->title != NULL) {
        ops->title(core->device, core->device_title, sizeof core->device_title);
    }
    kv_log_info("runtime", "device %s: %s", ops->name, core->device_title);
    if (core->passed_over.status != KV_OK) {
        kv_log_info("runtime", "no gpu: %s", core->passed_over.text);
    }
    snprintf(labels, sizeof labels, "device=\"%s\",title=\"%s\"", ops->name, core->device_title);
    kv_metric_set(
        kv_metric_gauge("kvist_device_info", labels, "what the node computes on; always 1"), 1);
}

static void watch_device(core_t *core)
{
    if (core->device->ops->health != NULL) {
        core->device_look = kv_timer_create(core->public.holder.reactor, look_at_device, core);
        kv_timer_start(core->device_look, DEVICE_LOOK_MS, DEVICE_LOOK_MS);
    }
}

/* ---- opening and closing ---- */

static kv_status_t open_engine(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.holder.options;
    kv_status_t status = kv_device_open(
        options->model.device, options->model.threads, &core->device, &core->passed_over, error);
    if (status != KV_OK) {
        return status;
    }
    tell_device(core);
    /* The digest is remembered beside the store; a folder that is not there yet costs a second. */
    const char *folder = options->store.directory[0] != '\0' ? options->store.directory : NULL;
    status = kvist_fingerprint_file(options->model.path, folder, &core->model, error);
    if (status != KV_OK) {
        return status;
    }
    kv_engine_params_t params = {
        .model_path = options->model.path,
        .f32 = options->model.f32,
        .fp8 = options->model.fp8,
        .block_tokens = options->model.block_tokens,
        .chunk_tokens_max = options->model.chunk_tokens,
        .batch_rows_max = core->params->compute_rows_max,
        .slot_count = options->store.device_slots,
        .arena_bytes = options->store.device_bytes,
    };
    status = kv_engine_open(core->device, &params, &core->public.engine, error);
    if (status == KV_OK) {
        core->public.info = kv_engine_info(core->public.engine);
    }
    return status;
}

static kvist_store_params_t device_tier(const core_t *core, const kvist_layout_t *layout)
{
    const kv_options_t *options = core->public.holder.options;
    return (kvist_store_params_t){
        .layout = layout,
        .device = core->device,
        .device_arena = kv_engine_arena(core->public.engine),
        .device_slot_count = core->public.info->slot_count,
        .policy = (kvist_policy_t)options->store.policy,
        .origin = options->node.name,
        .history_bytes = options->store.history_bytes,
    };
}

/* Host and disk tier are those of this machine's kvist-store. */
static kv_status_t open_attached(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.holder.options;
    kvist_layout_t layout = kvist_layout_plain(&core->public.info->shape);
    kvist_store_params_t params = device_tier(core, &layout);
    params.attach = options->store.attach;
    params.domain = options->store.domain;
    return kvist_store_open(&params, &core->public.holder.store, error);
}

static kv_status_t open_embedded(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.holder.options;
    kvist_layout_t layout = kvist_layout_plain(&core->public.info->shape);
    char folders[KV_OPTION_DISKS_MAX][4096];
    kvist_disk_params_t disks[KV_OPTION_DISKS_MAX];
    uint32_t disk_count = options->store.directory[0] != '\0' ? options->store.disks.count : 0;
    for (uint32_t i = 0; i < disk_count; i++) { /* which the options have checked */
        char *folder = NULL;
        KV_CHECK(kv_options_disk(options->store.disks.items[i], &folder, &disks[i].bytes) == KV_OK);
        snprintf(folders[i], sizeof folders[i], "%s/%s", folder, options->node.name);
        disks[i].folder = folders[i]; /* nodes of one file share the disk */
        free(folder);
    }
    kvist_store_params_t params = device_tier(core, &layout);
    params.host_bytes = options->store.host_bytes;
    params.directory = options->store.directory[0] != '\0' ? options->store.directory : NULL;
    params.disk_bytes = options->store.disk_bytes;
    params.disks = disks;
    params.disk_count = disk_count;
    params.segment_bytes = options->store.segment_bytes;
    params.write_bytes_per_day = options->store.write_bytes_per_day;
    params.persist = (kvist_persist_t)options->store.persist;
    params.codec = (kvist_codec_t)options->store.codec;
    params.key_file = options->store.key_file[0] != '\0' ? options->store.key_file : NULL;
    params.io = (kvist_io_t)options->store.io;
    uint32_t quota_count;
    kvist_quota_t *quotas = kv_quotas_read(options, &quota_count);
    params.quotas = quotas;
    params.quota_count = quota_count;
    kv_status_t status = kvist_store_open(&params, &core->public.holder.store, error);
    kv_quotas_clear(quotas, quota_count);
    return status;
}

static kv_status_t join(core_t *core, kv_error_t *error)
{
    const kv_engine_info_t *info = core->public.info;
    const kv_block_shape_t *shape = &info->shape;
    kvist_key_t layout = kv_shape_digest(shape);
    char layout_text[KV_SHAPE_TEXT_BYTES];
    kv_shape_text(shape, layout_text);
    kv_holding_params_t params = {
        .polls = true,
        .device = core->device,
        .arena = kv_engine_arena(core->public.engine),
        .slot_count = info->slot_count,
        .block_bytes = kv_block_bytes(shape),
        .layer_bytes = kv_block_layer_bytes(shape),
        .unit_bytes = kv_block_layer_bytes(shape),
        .block_tokens = shape->block_tokens,
        .context_tokens_max = info->context_tokens_max,
        .vocabulary_count = info->vocabulary_count,
        .model = core->model.bytes,
        .layout = layout.bytes,
        .layout_text = layout_text,
    };
    return kv_holder_join(&core->public.holder, &params, error);
}

/* A decode node sees each of the clients' requests once, with all of its prompt. */
static kv_status_t open_recorder(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.holder.options;
    if (options->store.trace_file[0] == '\0' ||
        core->params->role != KVIST__WIRE__ROLE__ROLE_DECODE) {
        return KV_OK;
    }
    return kv_recorder_open(options->store.trace_file, options->store.trace_bytes,
        core->public.info->shape.block_tokens, &core->public.recorder, error);
}

static kv_status_t open_all(core_t *core, kv_error_t *error)
{
    kv_core_t *public = &core->public;
    kv_status_t status = kv_holder_begin(&public->holder, error);
    if (status == KV_OK) {
        status = open_engine(core, error);
    }
    if (status == KV_OK) {
        status = open_recorder(core, error);
    }
    if (status == KV_OK) {
        bool attaches = public->holder.options->store.attach[0] != '\0';
        status = attaches ? open_attached(core, error) : open_embedded(core, error);
    }
    if (status == KV_OK) {
        public->compute = kv_compute_create(public->engine,
            public->holder.options->model.chunk_tokens, core->params->compute_rows_max);
        status = join(core, error);
    }
    if (status == KV_OK) {
        status = kv_holder_serve(&public->holder, error);
    }
    if (status == KV_OK) {
        core->compute_watch = kv_reactor_attach(
            public->holder.reactor, kv_compute_fd(public->compute), compute_ready, core);
        watch_device(core);
    }
    return status;
}

static void close_all(core_t *core)
{
    kv_core_t *public = &core->public;
    kv_timer_destroy(core->device_look);
    kv_watch_detach(core->compute_watch);
    kv_holder_leave(&public->holder);
    kv_compute_destroy(public->compute);
    kv_recorder_close(public->recorder);
    kv_relayed_clear(&public->relayed);
    if (public->holder.store != NULL) {
        kvist_store_close(public->holder.store);
    }
    if (public->engine != NULL) {
        kv_engine_close(public->engine);
    }
    if (core->device != NULL) {
        kv_device_close(core->device);
    }
    kv_holder_end(&public->holder);
}

kv_status_t kv_core_run(
    const kv_options_t *options, const kv_core_params_t *params, kv_error_t *error)
{
    core_t core = {.params = params};
    kv_holder_t *holder = &core.public.holder;
    holder->options = options;
    holder->role = params->role;
    holder->connect = params->connect;
    holder->owner = (kv_holder_owner_t){.context = &core,
        .accept = accept_message,
        .describe = describe,
        .greet = greet,
        .name_space = name_space};
    holder->requests.ops = params->ops;
    kv_status_t status = open_all(&core, error);
    if (status == KV_OK) {
        kv_log_info("runtime",
            "ready: %s, %u slots of %zu bytes, listening on %s:%u, arithmetic %s",
            core.public.info->name, core.public.info->slot_count,
            kv_block_bytes(&core.public.info->shape), options->node.host,
            kv_peers_port(holder->peers), core.public.info->prefill_arithmetic);
        kv_notify_ready();
        kv_holder_run(holder);
        if (core.lost.status != KV_OK) {
            *error = core.lost;
            status = core.lost.status;
        }
    }
    close_all(&core);
    return status;
}
