#include "holder/holder.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "cluster/discovery.h"
#include "holder/asked.h"
#include "holder/bounce.h"
#include "holder/remote.h"
#include "holder/source.h"
#include "holder/store_admin.h"
#include "holder/why_admin.h"

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

struct kv_holder_state {
    kv_admin_t *admin;
    kv_asked_t asked;
    kv_discovery_t *discovery;
    kv_watch_t *store_watch, *mover_watch;
    kv_timer_t *tick;
    bool ticking; /* only while there are requests: an idle node sleeps */
    kv_requests_t sources;
    peer_link_t *links;
    uint64_t last_request_id, started_ns;
};

/* ---- for requests ---- */

uint64_t kv_holder_new_id(kv_holder_t *holder)
{
    return ++holder->state->last_request_id;
}

kv_link_t kv_holder_link(const kv_peer_t *peer)
{
    const peer_link_t *link = kv_peer_context(peer);
    return link != NULL ? link->link : 0;
}

bool kv_holder_link_up(const kv_peer_t *peer)
{
    const peer_link_t *link = kv_peer_context(peer);
    return link != NULL && link->wire[0] != '\0';
}

void kv_holder_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_status_t status = kv_peer_send(peer, message);
    if (status != KV_OK && status != KV_PEER_LOST) {
        kv_peer_close(peer, status, "a message could not be queued: the peer does not read");
    }
}

bool kv_holder_send_piece(kv_holder_t *holder, kv_peer_t *peer, const kv_piece_t *piece)
{
    kv_error_t error;
    kv_status_t status = kv_mover_send(holder->mover, kv_holder_link(peer), piece, &error);
    if (status != KV_OK) {
        kv_peer_close(peer, status, error.text);
    }
    return status == KV_OK;
}

/* ---- peers and links ---- */

static void peer_up(void *context, kv_peer_t *peer)
{
    kv_holder_t *holder = context;
    kv_link_params_t params;
    kv_remote_peer_up(holder->remote, peer);
    if (holder->owner.greet != NULL) {
        holder->owner.greet(holder->owner.context, peer);
    }
    if (!kv_peer_link_params(peer, &params)) {
        return; /* a gateway: no KV */
    }
    peer_link_t *link = kv_allocate(sizeof *link);
    kv_error_t error;
    kv_status_t status = kv_mover_link_open(holder->mover, &params, &link->link, &error);
    if (status != KV_OK) {
        free(link);
        kv_peer_close(peer, status, error.text);
        return;
    }
    kv_peer_set_context(peer, link);
    link->next = holder->state->links;
    holder->state->links = link;
}

static void forget_link(kv_holder_t *holder, peer_link_t *link)
{
    peer_link_t **at = &holder->state->links;
    while (*at != link) {
        at = &(*at)->next;
    }
    *at = link->next;
    free(link);
}

static void peer_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    kv_holder_t *holder = context;
    (void)status;
    (void)reason; /* logged by peers */
    kv_asked_peer_down(&holder->state->asked, peer);
    kv_requests_peer_down(&holder->requests, peer);
    kv_remote_peer_down(holder->remote, peer);
    kv_requests_peer_down(&holder->state->sources, peer);
    peer_link_t *link = kv_peer_context(peer);
    if (link != NULL) {
        kv_mover_link_close(holder->mover, link->link);
        kv_peer_set_context(peer, NULL);
        forget_link(holder, link);
    }
}

void kv_holder_keep_ticking(kv_holder_t *holder)
{
    if (!holder->state->ticking) {
        holder->state->ticking = true;
        kv_timer_start(holder->state->tick, KV_HOLDER_TICK_MS, KV_HOLDER_TICK_MS);
    }
}

static void serve_fetch(kv_holder_t *holder, kv_peer_t *peer, const Kvist__Wire__Fetch *message)
{
    kv_holder_state_t *state = holder->state;
    kv_request_context_t context;
    bool known = kv_requests_context(&holder->requests, peer, message->request_id, &context);
    kv_source_t *source = kv_source_create(
        holder, kv_holder_new_id(holder), peer, message, known ? &context : NULL, &state->sources);
    if (source != NULL) {
        kv_requests_add(&state->sources, source);
        kv_holder_keep_ticking(holder);
    }
}

static void peer_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_holder_t *holder = context;
    kv_holder_state_t *state = holder->state;
    if (kv_remote_message(holder->remote, peer, message) ||
        kv_asked_message(&state->asked, state->admin, holder->peers, peer, message)) {
        return;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_FETCH) {
        serve_fetch(holder, peer, message->fetch);
        return;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_UNFETCH) {
        kv_requests_message(&state->sources, peer, message);
        return;
    }
    const kv_holder_owner_t *owner = &holder->owner;
    void *request = owner->accept != NULL
                        ? owner->accept(owner->context, kv_holder_new_id(holder), peer, message)
                        : NULL;
    if (request != NULL) {
        kv_requests_add(&holder->requests, request);
        kv_holder_keep_ticking(holder);
    } else {
        kv_requests_message(&holder->requests, peer, message);
    }
}

typedef struct {
    kv_link_t link;
    kv_peer_t *found;
} link_search_t;

static void match_link(void *context, kv_peer_t *peer)
{
    link_search_t *search = context;
    if (kv_holder_link(peer) == search->link) {
        search->found = peer;
    }
}

static void link_changed(kv_holder_t *holder, const kv_mover_event_t *event)
{
    link_search_t search = {event->link, NULL};
    kv_peers_visit(holder->peers, match_link, &search);
    if (search.found == NULL) {
        return; /* its control connection ended first */
    }
    if (event->kind == KV_MOVED_LINK_UP) {
        peer_link_t *link = kv_peer_context(search.found);
        snprintf(link->wire, sizeof link->wire, "%.7s", event->text);
        kv_log_info(
            "holder", "data link up peer %s wire %s", kv_peer_name(search.found), event->text);
    } else {
        /* Control without data is of no use: both start again. */
        kv_peer_close(search.found, event->status, event->text);
    }
}

/* ---- what wakes the reactor ---- */

static void say_attached(kv_holder_t *holder)
{
    const char *name = kvist_store_attached_to(holder->store);
    kv_peers_set_attached_to(holder->peers, name != NULL ? name : "");
}

static void store_ready(void *context)
{
    kv_holder_t *holder = context;
    kvist_store_poll(holder->store);
    say_attached(holder);
}

static void mover_ready(void *context)
{
    kv_holder_t *holder = context;
    kv_mover_event_t event;
    while (kv_mover_poll(holder->mover, &event)) {
        if (event.kind == KV_MOVED_LINK_UP || event.kind == KV_MOVED_LINK_DOWN) {
            link_changed(holder, &event);
        } else if (!kv_requests_moved(&holder->requests, &event)) {
            kv_requests_moved(&holder->state->sources, &event);
        }
    }
}

static void ticked(void *context)
{
    kv_holder_t *holder = context;
    kv_holder_state_t *state = holder->state;
    kv_requests_tick(&holder->requests, kv_clock_now_ns());
    kv_requests_tick(&state->sources, kv_clock_now_ns());
    uint32_t running = kv_requests_running(&holder->requests);
    if (holder->peers != NULL) {
        kv_peers_set_load(holder->peers, holder->requests.count - running, running);
    }
    if (holder->requests.count > 0 || state->sources.count > 0 ||
        (holder->stopping && !kv_discovery_has_left(state->discovery))) {
        return;
    }
    kv_timer_stop(state->tick);
    state->ticking = false;
    if (holder->stopping) {
        kv_reactor_end(holder->reactor);
    } else if (holder->draining) {
        kv_log_info("holder", "drained: nothing is left to finish");
        kv_reactor_begin_stop(holder->reactor);
    }
}

/* Peers hear it at once: they send nothing new, and a gateway takes back what it can go on with
 * elsewhere. */
static void drain(void *context)
{
    kv_holder_t *holder = context;
    kv_log_info("holder", "draining: takes nothing new, finishes %u requests, within %llu ms",
        holder->requests.count,
        (unsigned long long)(holder->options->node.drain_limit_ns / KV_NS_PER_MS));
    holder->draining = true;
    kv_discovery_leave(holder->state->discovery);
    if (holder->peers != NULL) {
        kv_peers_set_draining(holder->peers, true);
    }
    kv_holder_keep_ticking(holder);
}

static void stop(void *context)
{
    kv_holder_t *holder = context;
    kv_log_info("holder", "stopping: requests end, then the store is made durable");
    holder->stopping = true;
    kv_discovery_leave(holder->state->discovery);
    kv_holder_keep_ticking(holder);
    kv_requests_stop(&holder->requests);
    kv_requests_stop(&holder->state->sources);
}

/* ---- admin socket ---- */

typedef struct {
    Kvist__Admin__Peer *peers;
    Kvist__Admin__Peer **pointers;
    size_t count;
} peer_listing_t;

static const char *role_name(Kvist__Wire__Role role)
{
    static const char *const ROLES[] = {"unknown", "prefill", "decode", "gateway", "store"};
    return ROLES[role < sizeof ROLES / sizeof *ROLES ? role : 0];
}

static void list_peer(void *context, kv_peer_t *peer)
{
    peer_listing_t *listing = context;
    if (listing->count == KV_PEERS_MAX) {
        return;
    }
    Kvist__Admin__Peer *entry = &listing->peers[listing->count];
    kvist__admin__peer__init(entry);
    const peer_link_t *link = kv_peer_context(peer);
    entry->name = (char *)kv_peer_name(peer);
    entry->role = (char *)role_name(kv_peer_role(peer));
    entry->address = (char *)kv_peer_address(peer);
    entry->up = true;
    entry->draining = kv_peer_draining(peer);
    entry->wire = link != NULL ? (char *)link->wire : "";
    listing->pointers[listing->count++] = entry;
}

void kv_holder_fill_tiers(
    const kvist_stats_t *stats, Kvist__Admin__Tier *tiers_out, Kvist__Admin__Tier **pointers_out)
{
    for (int i = 0; i < KVIST_TIER_REMOTE; i++) {
        const kvist_tier_stats_t *from = &stats->tiers[i];
        kvist__admin__tier__init(&tiers_out[i]);
        tiers_out[i].name = (char *)kvist_tier_name((kvist_tier_t)i);
        tiers_out[i].capacity_bytes = from->capacity_bytes;
        tiers_out[i].used_bytes = from->used_bytes;
        tiers_out[i].object_count = from->object_count;
        tiers_out[i].hit_blocks = from->hit_blocks;
        tiers_out[i].read_bytes = from->read_bytes;
        tiers_out[i].written_bytes = from->written_bytes;
        tiers_out[i].evicted_objects = from->evicted_objects;
        pointers_out[i] = &tiers_out[i];
    }
}

static void fill_store(const kvist_stats_t *stats, Kvist__Admin__Status *status)
{
    status->unsaved_objects = stats->unsaved_objects;
    status->io = (char *)stats->io;
    status->leases = stats->leases;
    status->slots_free = stats->slots_free;
    status->slots_private = stats->slots_private;
    status->disk_offline = stats->disk_offline;
    status->encrypting = stats->encrypting;
    status->encrypted_objects = stats->encrypted_objects;
    status->damaged_objects = stats->damaged_objects;
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
    status->direct_messages = moved.sent_direct_messages + moved.received_direct_messages;
}

static void fill_node(const kv_holder_t *holder, Kvist__Admin__Status *status)
{
    uint32_t running = kv_requests_running(&holder->requests);
    status->name = holder->options->node.name;
    status->role = (char *)role_name(holder->role);
    status->version = KVIST_VERSION;
    status->pid = (uint64_t)getpid();
    status->uptime_ns = kv_clock_now_ns() - holder->state->started_ns;
    status->queued_requests = holder->requests.count - running;
    status->running_requests = running;
    status->draining = holder->draining;
}

static void admin_status(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    (void)request;
    kv_holder_t *holder = context;
    Kvist__Admin__Tier tiers[KVIST_TIER_REMOTE], *tier_pointers[KVIST_TIER_REMOTE];
    peer_listing_t listing = {kv_allocate_array(KV_PEERS_MAX, sizeof(Kvist__Admin__Peer)),
        kv_allocate_array(KV_PEERS_MAX, sizeof(Kvist__Admin__Peer *)), 0};
    Kvist__Admin__Status status;
    kvist__admin__status__init(&status);
    fill_node(holder, &status);
    if (holder->store != NULL) {
        kvist_stats_t stats;
        kvist_store_stats(holder->store, &stats);
        fill_store(&stats, &status);
        const char *attached_to = kvist_store_attached_to(holder->store);
        status.attached_to = (char *)(uintptr_t)(attached_to != NULL ? attached_to : "");
        status.attach = holder->options->store.attach;
        kv_holder_fill_tiers(&stats, tiers, tier_pointers);
        status.n_tiers = KVIST_TIER_REMOTE;
        status.tiers = tier_pointers;
    }
    if (holder->peers != NULL) {
        kv_peers_visit(holder->peers, list_peer, &listing);
        status.n_peers = listing.count;
        status.peers = listing.pointers;
    }
    if (holder->mover != NULL) {
        fill_moved(holder->mover, &status);
    }
    if (holder->owner.describe != NULL) {
        holder->owner.describe(holder->owner.context, &status);
    }
    kv_admin_reply_status(call, &status);
    free(listing.peers);
    free(listing.pointers);
}

kv_status_t kv_holder_serve(kv_holder_t *holder, kv_error_t *error)
{
    kv_admin_handlers_t handlers = kv_store_admin_handlers();
    handlers.status = admin_status;
    handlers.events = kv_remote_admin_events;
    handlers.why = kv_why_admin;
    return kv_admin_open(holder->reactor, holder->options->node.admin, &handlers, holder,
        &holder->state->admin, error);
}

/* ---- joining and leaving ---- */

static kv_status_t open_mover(
    kv_holder_t *holder, const kv_holding_params_t *params, kv_error_t *error)
{
    const kv_options_t *options = holder->options;
    kv_mover_params_t mover = {
        .slot_bytes = params->block_bytes,
        .unit_bytes = params->unit_bytes,
        .host = options->node.host,
        .wire = (kv_wire_t)options->node.wire,
        .busy_poll_ns = options->node.busy_poll_ns,
    };
    if (params->bounce != NULL) {
        mover.device = kv_bounce_device(params->bounce);
        mover.arena = kv_bounce_block(params->bounce, 0);
        mover.slot_count = kv_bounce_count(params->bounce);
    } else {
        mover.device = params->device;
        mover.arena = params->arena;
        mover.slot_count = params->slot_count;
    }
    return kv_mover_create(&mover, &holder->mover, error);
}

static kv_status_t open_peers(
    kv_holder_t *holder, const kv_holding_params_t *params, kv_error_t *error)
{
    const kv_options_t *options = holder->options;
    uint8_t key[KV_CLUSTER_KEY_BYTES_MAX];
    size_t key_bytes;
    kv_status_t status = kv_options_cluster_key(options, key, &key_bytes, error);
    if (status != KV_OK) {
        return status;
    }
    kv_peers_params_t peers = {
        .loop = kv_reactor_loop(holder->reactor),
        .name = options->node.name,
        .role = holder->role,
        .listen_host = options->node.host,
        .listen_port = (uint16_t)options->node.port,
        .cluster_key = key,
        .cluster_key_bytes = key_bytes,
        .data_port = kv_mover_port(holder->mover),
        .model = params->model,
        .layout = params->layout,
        .layout_text = params->layout_text,
        .useful_roles = kv_discovery_useful_roles(holder->role),
        .callbacks = {holder, peer_up, peer_down, peer_message},
    };
    status = kv_peers_create(&peers, &holder->peers, error);
    explicit_bzero(key, sizeof key);
    return status;
}

static kv_status_t open_discovery(kv_holder_t *holder, kv_error_t *error)
{
    kv_discovery_params_t discovery = {
        .loop = kv_reactor_loop(holder->reactor),
        .peers = holder->peers,
        .options = holder->options,
        .role = holder->role,
        .list = holder->connect,
    };
    return kv_discovery_open(&discovery, &holder->state->discovery, error);
}

kv_status_t kv_holder_join(
    kv_holder_t *holder, const kv_holding_params_t *params, kv_error_t *error)
{
    holder->bounce = params->bounce;
    holder->slot_count = params->slot_count;
    holder->block_bytes = params->block_bytes;
    holder->layer_bytes = params->layer_bytes;
    holder->block_tokens = params->block_tokens;
    holder->context_tokens_max = params->context_tokens_max;
    holder->vocabulary_count = params->vocabulary_count;
    holder->remote = kv_remote_create(holder);
    kv_status_t status = open_mover(holder, params, error);
    if (status == KV_OK) {
        status = open_peers(holder, params, error);
    }
    if (status == KV_OK) {
        status = open_discovery(holder, error);
    }
    if (status == KV_OK) {
        say_attached(holder);
        if (params->polls) {
            holder->state->store_watch = kv_reactor_attach(
                holder->reactor, kvist_store_fd(holder->store), store_ready, holder);
        }
        holder->state->mover_watch =
            kv_reactor_attach(holder->reactor, kv_mover_fd(holder->mover), mover_ready, holder);
    }
    return status;
}

static void detach(kv_watch_t **watch)
{
    if (*watch != NULL) {
        kv_watch_detach(*watch);
        *watch = NULL;
    }
}

void kv_holder_leave(kv_holder_t *holder)
{
    kv_holder_state_t *state = holder->state;
    if (state == NULL) {
        return;
    }
    detach(&state->mover_watch);
    detach(&state->store_watch);
    if (state->admin != NULL) { /* its answers are about the store */
        kv_admin_close(state->admin);
        state->admin = NULL;
    }
    kv_discovery_close(state->discovery);
    state->discovery = NULL;
    if (holder->peers != NULL) {
        kv_peers_destroy(holder->peers);
        holder->peers = NULL;
    }
    while (state->links != NULL) { /* of peers whose down() does not come any more */
        forget_link(holder, state->links);
    }
    if (holder->mover != NULL) {
        kv_mover_destroy(holder->mover);
        holder->mover = NULL;
    }
    kv_remote_destroy(holder->remote);
    holder->remote = NULL;
    holder->bounce = NULL;
}

/* ---- life ---- */

kv_status_t kv_holder_begin(kv_holder_t *holder, kv_error_t *error)
{
    kv_status_t status = kv_reactor_create(&holder->reactor, error);
    if (status != KV_OK) {
        return status;
    }
    holder->state = kv_allocate(sizeof *holder->state);
    holder->state->started_ns = kv_clock_now_ns();
    holder->state->sources.ops = &KV_SOURCE_OPS;
    holder->state->tick = kv_timer_create(holder->reactor, ticked, holder);
    kv_reactor_on_stop(holder->reactor, stop, holder);
    kv_reactor_on_drain(holder->reactor, drain, holder, holder->options->node.drain_limit_ns);
    return KV_OK;
}

void kv_holder_run(kv_holder_t *holder)
{
    kv_reactor_run(holder->reactor);
}

void kv_holder_end(kv_holder_t *holder)
{
    kv_holder_leave(holder);
    kv_outcomes_clear(&holder->outcomes);
    if (holder->state != NULL) {
        kv_timer_destroy(holder->state->tick);
        free(holder->state);
        holder->state = NULL;
    }
    if (holder->reactor != NULL) {
        kv_reactor_destroy(holder->reactor);
        holder->reactor = NULL;
    }
}
