#include "runtime/core.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "cluster/discovery.h"
#include "node/admin.h"
#include "node/notify.h"
#include "runtime/remote.h"
#include "runtime/source.h"
#include "runtime/store_admin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Beside each peer that is up. */
typedef struct peer_link peer_link_t;
struct peer_link {
    peer_link_t *next;
    kv_link_t link;
    char wire[8]; /* "shm", "tcp"; empty until the link is up */
};

/* The core and what only this file uses. The public part is first, so that a kv_core_t * is a
 * core_t *. */
typedef struct {
    kv_core_t public;
    const kv_core_params_t *params;
    kv_device_t *device;
    kvist_key_t model;
    kv_admin_t *admin;
    kv_discovery_t *discovery;
    kv_watch_t *store_watch, *compute_watch, *mover_watch;
    kv_timer_t *tick;
    bool ticking; /* only while there are requests: an idle node sleeps */
    kv_requests_t requests, sources;
    peer_link_t *links;
    uint64_t last_request_id, started_ns;
} core_t;

/* Since the start of the process; the admin socket shows them, /metrics too. */
static struct {
    uint64_t requests, prompt_tokens, cached_tokens, generated_tokens;
} counted;

/* ---- helpers for roles ---- */

kv_link_t kv_core_link(const kv_peer_t *peer)
{
    const peer_link_t *link = kv_peer_context(peer);
    return link != NULL ? link->link : 0;
}

bool kv_core_link_up(const kv_peer_t *peer)
{
    const peer_link_t *link = kv_peer_context(peer);
    return link != NULL && link->wire[0] != '\0';
}

void kv_core_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_status_t status = kv_peer_send(peer, message);
    if (status != KV_OK && status != KV_PEER_LOST) {
        kv_peer_close(peer, status, "a message could not be queued: the peer does not read");
    }
}

bool kv_core_send_piece(kv_core_t *core, kv_peer_t *peer, const kv_piece_t *piece)
{
    kv_error_t error;
    kv_status_t status = kv_mover_send(core->mover, kv_core_link(peer), piece, &error);
    if (status != KV_OK) {
        kv_peer_close(peer, status, error.text);
    }
    return status == KV_OK;
}

static kvist_key_t name_space(
    const kv_engine_info_t *info, const kvist_key_t *model, const void *salt, size_t salt_bytes)
{
    kvist_layout_t layout = kvist_layout_plain(&info->shape);
    kvist_namespace_params_t params = {
        .model = *model,
        .layout = &layout,
        .dtype = info->shape.element_bytes == 4 ? KVIST_DTYPE_F32 : KVIST_DTYPE_BF16,
        .codec_class = KVIST_CODEC_CLASS_LOSSLESS,
        .salt = salt,
        .salt_bytes = salt_bytes,
        .adapter = "",
    };
    return kvist_namespace(&params);
}

kvist_key_t kv_core_namespace(const kv_core_t *core, const void *salt, size_t salt_bytes)
{
    return name_space(core->info, &((const core_t *)core)->model, salt, salt_bytes);
}

void kv_core_seal(const kv_core_t *core, kvist_lease_t *lease, const uint32_t *tokens,
    uint32_t computed_count, const char *arithmetic)
{
    uint32_t block_tokens = core->info->shape.block_tokens;
    for (uint32_t block = kvist_lease_sealed_count(lease);
         (block + 1) * block_tokens <= computed_count; block++) {
        KV_CHECK(
            kvist_lease_seal(lease, tokens + (size_t)block * block_tokens, arithmetic) == KV_OK);
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
    usage->miss = (char *)kvist_miss_name(match->miss);
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

/* ---- peers and links ---- */

static void peer_up(void *context, kv_peer_t *peer)
{
    core_t *core = context;
    kv_link_params_t params;
    kv_remote_peer_up(core->public.remote, peer);
    if (!kv_peer_link_params(peer, &params)) {
        return; /* a gateway: no KV */
    }
    peer_link_t *link = kv_allocate(sizeof *link);
    kv_error_t error;
    kv_status_t status = kv_mover_link_open(core->public.mover, &params, &link->link, &error);
    if (status != KV_OK) {
        free(link);
        kv_peer_close(peer, status, error.text);
        return;
    }
    kv_peer_set_context(peer, link);
    link->next = core->links;
    core->links = link;
}

static void forget_link(core_t *core, peer_link_t *link)
{
    peer_link_t **at = &core->links;
    while (*at != link) {
        at = &(*at)->next;
    }
    *at = link->next;
    free(link);
}

static void peer_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    core_t *core = context;
    (void)status;
    (void)reason; /* logged by peers */
    kv_requests_peer_down(&core->requests, peer);
    kv_remote_peer_down(core->public.remote, peer);
    kv_requests_peer_down(&core->sources, peer);
    peer_link_t *link = kv_peer_context(peer);
    if (link != NULL) {
        kv_mover_link_close(core->public.mover, link->link);
        kv_peer_set_context(peer, NULL);
        forget_link(core, link);
    }
}

static void keep_ticking(core_t *core)
{
    if (!core->ticking) {
        core->ticking = true;
        kv_timer_start(core->tick, KV_CORE_TICK_MS, KV_CORE_TICK_MS);
    }
}

typedef struct {
    Kvist__Wire__Role role;
    uint32_t count;
} role_count_t;

static void count_role(void *context, kv_peer_t *peer)
{
    role_count_t *wanted = context;
    wanted->count += kv_peer_role(peer) == wanted->role;
}

static void serve_fetch(core_t *core, kv_peer_t *peer, const Kvist__Wire__Fetch *message)
{
    kv_request_context_t context;
    bool known = kv_requests_context(&core->requests, peer, message->request_id, &context);
    kv_source_t *source = kv_source_create(&core->public, core->last_request_id + 1, peer, message,
        known ? &context : NULL, &core->sources);
    if (source != NULL) {
        core->last_request_id++;
        kv_requests_add(&core->sources, source);
        keep_ticking(core);
    }
}

static void peer_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    core_t *core = context;
    if (kv_remote_message(core->public.remote, peer, message)) {
        return;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_FETCH) {
        serve_fetch(core, peer, message->fetch);
        return;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_UNFETCH) {
        kv_requests_message(&core->sources, peer, message);
        return;
    }
    role_count_t askers = {kv_peer_role(peer), 0};
    kv_peers_visit(core->public.peers, count_role, &askers);
    core->public.request_count = core->requests.count;
    core->public.asker_request_count = kv_requests_from(&core->requests, peer);
    core->public.asker_count = askers.count;
    void *request = core->params->accept(&core->public, core->last_request_id + 1, peer, message);
    if (request != NULL) {
        core->last_request_id++;
        kv_requests_add(&core->requests, request);
        keep_ticking(core);
    } else {
        kv_requests_message(&core->requests, peer, message);
    }
}

typedef struct {
    kv_link_t link;
    kv_peer_t *found;
} link_search_t;

static void match_link(void *context, kv_peer_t *peer)
{
    link_search_t *search = context;
    if (kv_core_link(peer) == search->link) {
        search->found = peer;
    }
}

static void link_changed(core_t *core, const kv_mover_event_t *event)
{
    link_search_t search = {event->link, NULL};
    kv_peers_visit(core->public.peers, match_link, &search);
    if (search.found == NULL) {
        return; /* its control connection ended first */
    }
    if (event->kind == KV_MOVED_LINK_UP) {
        peer_link_t *link = kv_peer_context(search.found);
        snprintf(link->wire, sizeof link->wire, "%.7s", event->text);
        kv_log_info(
            "runtime", "data link up peer %s wire %s", kv_peer_name(search.found), event->text);
    } else {
        /* Control without data is of no use: both start again. */
        kv_peer_close(search.found, event->status, event->text);
    }
}

/* ---- what wakes the reactor ---- */

static void store_ready(void *context)
{
    core_t *core = context;
    kvist_store_poll(core->public.store);
}

static void compute_ready(void *context)
{
    core_t *core = context;
    kv_compute_event_t event;
    while (kv_compute_poll(core->public.compute, &event) == KV_OK) {
        kv_requests_computed(&core->requests, &event);
    }
}

static void mover_ready(void *context)
{
    core_t *core = context;
    kv_mover_event_t event;
    while (kv_mover_poll(core->public.mover, &event)) {
        if (event.kind == KV_MOVED_LINK_UP || event.kind == KV_MOVED_LINK_DOWN) {
            link_changed(core, &event);
        } else {
            if (!kv_requests_moved(&core->requests, &event)) {
                kv_requests_moved(&core->sources, &event);
            }
        }
    }
}

static void ticked(void *context)
{
    core_t *core = context;
    kv_requests_tick(&core->requests, kv_clock_now_ns());
    kv_requests_tick(&core->sources, kv_clock_now_ns());
    uint32_t running = kv_requests_running(&core->requests);
    kv_peers_set_load(core->public.peers, core->requests.count - running, running);
    if (core->requests.count > 0 || core->sources.count > 0 ||
        (core->public.stopping && !kv_discovery_has_left(core->discovery))) {
        return;
    }
    kv_timer_stop(core->tick);
    core->ticking = false;
    if (core->public.stopping) {
        kv_reactor_end(core->public.reactor);
    } else if (core->public.draining) {
        kv_log_info("runtime", "drained: nothing is left to finish");
        kv_reactor_begin_stop(core->public.reactor);
    }
}

/* Peers hear it at once: they send nothing new, and a gateway takes back what it can go on with
 * elsewhere. */
static void drain(void *context)
{
    core_t *core = context;
    kv_log_info("runtime", "draining: takes nothing new, finishes %u requests, within %llu ms",
        core->requests.count,
        (unsigned long long)(core->public.options->node.drain_limit_ns / KV_NS_PER_MS));
    core->public.draining = true;
    kv_discovery_leave(core->discovery);
    kv_peers_set_draining(core->public.peers, true);
    keep_ticking(core);
}

static void stop(void *context)
{
    core_t *core = context;
    kv_log_info("runtime", "stopping: requests end, then the store is made durable");
    core->public.stopping = true;
    kv_discovery_leave(core->discovery);
    keep_ticking(core);
    kv_requests_stop(&core->requests);
    kv_requests_stop(&core->sources);
}

/* ---- admin socket ---- */

typedef struct {
    Kvist__Admin__Peer *peers;
    Kvist__Admin__Peer **pointers;
    size_t count;
} peer_listing_t;

static void list_peer(void *context, kv_peer_t *peer)
{
    static const char *const ROLES[] = {"unknown", "prefill", "decode", "gateway"};
    peer_listing_t *listing = context;
    if (listing->count == KV_PEERS_MAX) {
        return;
    }
    Kvist__Admin__Peer *entry = &listing->peers[listing->count];
    kvist__admin__peer__init(entry);
    const peer_link_t *link = kv_peer_context(peer);
    entry->name = (char *)kv_peer_name(peer);
    entry->role = (char *)ROLES[kv_peer_role(peer) < 4 ? kv_peer_role(peer) : 0];
    entry->address = (char *)kv_peer_address(peer);
    entry->up = true;
    entry->draining = kv_peer_draining(peer);
    entry->wire = link != NULL ? (char *)link->wire : "";
    listing->pointers[listing->count++] = entry;
}

static void fill_tiers(
    const kvist_stats_t *stats, Kvist__Admin__Tier *tiers, Kvist__Admin__Tier **pointers)
{
    for (int i = 0; i < KVIST_TIER_REMOTE; i++) {
        const kvist_tier_stats_t *from = &stats->tiers[i];
        kvist__admin__tier__init(&tiers[i]);
        tiers[i].name = (char *)kvist_tier_name((kvist_tier_t)i);
        tiers[i].capacity_bytes = from->capacity_bytes;
        tiers[i].used_bytes = from->used_bytes;
        tiers[i].object_count = from->object_count;
        tiers[i].hit_blocks = from->hit_blocks;
        tiers[i].read_bytes = from->read_bytes;
        tiers[i].written_bytes = from->written_bytes;
        tiers[i].evicted_objects = from->evicted_objects;
        pointers[i] = &tiers[i];
    }
}

static void fill_moved(kv_mover_t *mover, Kvist__Admin__Status *status)
{
    kv_mover_stats_t moved;
    kv_mover_stats(mover, &moved);
    status->links = moved.links;
    status->expectations = moved.expectations;
    status->pieces = moved.pieces;
    status->sent_bytes = moved.sent_bytes;
    status->received_bytes = moved.received_bytes;
    status->dropped_messages = moved.dropped_messages;
}

static void admin_status(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)request;
    core_t *core = context;
    const kv_engine_info_t *info = core->public.info;
    bool prefill = core->params->role == KVIST__WIRE__ROLE__ROLE_PREFILL;
    kvist_stats_t stats;
    kvist_store_stats(core->public.store, &stats);
    Kvist__Admin__Tier tiers[KVIST_TIER_REMOTE], *tier_pointers[KVIST_TIER_REMOTE];
    fill_tiers(&stats, tiers, tier_pointers);
    peer_listing_t listing = {kv_allocate_array(KV_PEERS_MAX, sizeof(Kvist__Admin__Peer)),
        kv_allocate_array(KV_PEERS_MAX, sizeof(Kvist__Admin__Peer *)), 0};
    kv_peers_visit(core->public.peers, list_peer, &listing);
    uint32_t running = kv_requests_running(&core->requests);

    Kvist__Admin__Status status;
    kvist__admin__status__init(&status);
    status.name = core->public.options->node.name;
    status.role = prefill ? "prefill" : "decode";
    status.version = KVIST_VERSION;
    status.pid = (uint64_t)getpid();
    status.uptime_ns = kv_clock_now_ns() - core->started_ns;
    status.model = (char *)info->name;
    status.n_tiers = KVIST_TIER_REMOTE;
    status.tiers = tier_pointers;
    status.n_peers = listing.count;
    status.peers = listing.pointers;
    status.prompt_tokens = counted.prompt_tokens;
    status.cached_tokens = counted.cached_tokens;
    status.generated_tokens = counted.generated_tokens;
    status.requests = counted.requests;
    status.queued_requests = core->requests.count - running;
    status.running_requests = running;
    status.unsaved_objects = stats.unsaved_objects;
    status.io = (char *)stats.io;
    status.device = (char *)core->device->ops->name;
    status.arithmetic = (char *)(prefill ? info->prefill_arithmetic : info->decode_arithmetic);
    status.leases = stats.leases;
    status.slots_free = stats.slots_free;
    status.slots_private = stats.slots_private;
    status.disk_offline = stats.disk_offline;
    status.damaged_objects = stats.damaged_objects;
    status.draining = core->public.draining;
    fill_moved(core->public.mover, &status);
    kv_admin_reply_status(call, &status);
    free(listing.peers);
    free(listing.pointers);
}

/* ---- opening and closing ---- */

static kv_status_t open_engine(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.options;
    kv_status_t status = kv_device_cpu_open(options->model.threads, &core->device, error);
    if (status != KV_OK) {
        return status;
    }
    /* The digest is remembered beside the store; a folder that is not there yet costs a second. */
    const char *folder = options->store.directory[0] != '\0' ? options->store.directory : NULL;
    status = kvist_fingerprint_file(options->model.path, folder, &core->model, error);
    if (status != KV_OK) {
        return status;
    }
    kv_engine_params_t params = {
        .model_path = options->model.path,
        .f32 = options->model.f32,
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

static kv_status_t open_store(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.options;
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
    kvist_store_params_t params = {
        .layout = &layout,
        .device = core->device,
        .device_arena = kv_engine_arena(core->public.engine),
        .device_slot_count = core->public.info->slot_count,
        .host_bytes = options->store.host_bytes,
        .directory = options->store.directory[0] != '\0' ? options->store.directory : NULL,
        .disk_bytes = options->store.disk_bytes,
        .disks = disks,
        .disk_count = disk_count,
        .segment_bytes = options->store.segment_bytes,
        .write_bytes_per_day = options->store.write_bytes_per_day,
        .persist = (kvist_persist_t)options->store.persist,
        .codec = (kvist_codec_t)options->store.codec,
        .io = (kvist_io_t)options->store.io,
        .origin = options->node.name,
    };
    return kvist_store_open(&params, &core->public.store, error);
}

static kv_status_t open_transport(core_t *core, kv_error_t *error)
{
    const kv_options_t *options = core->public.options;
    const kv_block_shape_t *shape = &core->public.info->shape;
    kv_mover_params_t mover = {
        .device = core->device,
        .arena = kv_engine_arena(core->public.engine),
        .slot_count = core->public.info->slot_count,
        .slot_bytes = kv_block_bytes(shape),
        .unit_bytes = kv_block_layer_bytes(shape),
        .host = options->node.host,
        .wire = (kv_wire_t)options->node.wire,
        .busy_poll_ns = options->node.busy_poll_ns,
    };
    kv_status_t status = kv_mover_create(&mover, &core->public.mover, error);
    if (status != KV_OK) {
        return status;
    }
    uint8_t key[KV_CLUSTER_KEY_BYTES_MAX];
    size_t key_bytes;
    status = kv_options_cluster_key(options, key, &key_bytes, error);
    if (status != KV_OK) {
        return status;
    }
    /* The layout's digest is a namespace without model and salt: all else that must be equal. */
    kvist_key_t layout = name_space(core->public.info, &(kvist_key_t){{0}}, NULL, 0);
    char layout_text[128];
    snprintf(layout_text, sizeof layout_text, "%u layers of %u x %u, blocks of %u tokens, %s",
        shape->layer_count, shape->kv_head_count, shape->head_dim, shape->block_tokens,
        shape->element_bytes == 4 ? "f32" : "bf16");
    kv_peers_params_t peers = {
        .loop = kv_reactor_loop(core->public.reactor),
        .name = options->node.name,
        .role = core->params->role,
        .listen_host = options->node.host,
        .listen_port = (uint16_t)options->node.port,
        .cluster_key = key,
        .cluster_key_bytes = key_bytes,
        .data_port = kv_mover_port(core->public.mover),
        .model = core->model.bytes,
        .layout = layout.bytes,
        .layout_text = layout_text,
        .callbacks = {core, peer_up, peer_down, peer_message},
    };
    status = kv_peers_create(&peers, &core->public.peers, error);
    explicit_bzero(key, sizeof key);
    if (status != KV_OK) {
        return status;
    }
    kv_discovery_params_t discovery = {.loop = peers.loop,
        .peers = core->public.peers,
        .options = options,
        .role = core->params->role,
        .list = core->params->connect};
    return kv_discovery_open(&discovery, &core->discovery, error);
}

static kv_status_t open_all(core_t *core, kv_error_t *error)
{
    kv_admin_handlers_t handlers = kv_store_admin_handlers();
    handlers.status = admin_status;
    handlers.events = kv_remote_admin_events;
    kv_core_t *public = &core->public;
    kv_status_t status = kv_reactor_create(&public->reactor, error);
    if (status == KV_OK) {
        status = open_engine(core, error);
    }
    if (status == KV_OK) {
        status = open_store(core, error);
    }
    if (status == KV_OK) {
        public->compute = kv_compute_create(
            public->engine, public->options->model.chunk_tokens, core->params->compute_rows_max);
        public->remote = kv_remote_create(public);
        status = open_transport(core, error);
    }
    if (status == KV_OK) {
        status = kv_admin_open(
            public->reactor, public->options->node.admin, &handlers, core, &core->admin, error);
    }
    if (status == KV_OK) {
        core->store_watch =
            kv_reactor_attach(public->reactor, kvist_store_fd(public->store), store_ready, core);
        core->compute_watch =
            kv_reactor_attach(public->reactor, kv_compute_fd(public->compute), compute_ready, core);
        core->mover_watch =
            kv_reactor_attach(public->reactor, kv_mover_fd(public->mover), mover_ready, core);
        core->tick = kv_timer_create(public->reactor, ticked, core);
        kv_reactor_on_stop(public->reactor, stop, core);
        kv_reactor_on_drain(public->reactor, drain, core, public->options->node.drain_limit_ns);
    }
    return status;
}

static void detach(kv_watch_t *watch)
{
    if (watch != NULL) {
        kv_watch_detach(watch);
    }
}

static void close_all(core_t *core)
{
    kv_core_t *public = &core->public;
    if (core->tick != NULL) {
        kv_timer_destroy(core->tick);
    }
    detach(core->mover_watch);
    detach(core->compute_watch);
    detach(core->store_watch);
    if (core->admin != NULL) {
        kv_admin_close(core->admin);
    }
    kv_discovery_close(core->discovery);
    if (public->peers != NULL) {
        kv_peers_destroy(public->peers);
    }
    while (core->links != NULL) { /* of peers whose down() does not come any more */
        forget_link(core, core->links);
    }
    if (public->mover != NULL) {
        kv_mover_destroy(public->mover);
    }
    kv_remote_destroy(public->remote);
    kv_compute_destroy(public->compute);
    if (public->store != NULL) {
        kvist_store_close(public->store);
    }
    if (public->engine != NULL) {
        kv_engine_close(public->engine);
    }
    if (core->device != NULL) {
        kv_device_close(core->device);
    }
    if (public->reactor != NULL) {
        kv_reactor_destroy(public->reactor);
    }
}

kv_status_t kv_core_run(
    const kv_options_t *options, const kv_core_params_t *params, kv_error_t *error)
{
    core_t core = {.public.options = options,
        .params = params,
        .requests.ops = params->ops,
        .sources.ops = &KV_SOURCE_OPS,
        .started_ns = kv_clock_now_ns()};
    core.public.requests = &core.requests;
    kv_status_t status = open_all(&core, error);
    if (status == KV_OK) {
        kv_log_info("runtime",
            "ready: %s, %u slots of %zu bytes, listening on %s:%u, arithmetic %s",
            core.public.info->name, core.public.info->slot_count,
            kv_block_bytes(&core.public.info->shape), options->node.host,
            kv_peers_port(core.public.peers), core.public.info->prefill_arithmetic);
        kv_notify_ready();
        kv_reactor_run(core.public.reactor);
    }
    close_all(&core);
    return status;
}
