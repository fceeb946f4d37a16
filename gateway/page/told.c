#include "gateway/page/told.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ASK_VERSION = 3, AGE_PER_TIME = 100 };

static const uint64_t LOST_AFTER_NS = (uint64_t)10 * KV_NS_PER_S;

struct kv_told {
    kv_told_node_t nodes[KV_TOLD_NODES_MAX];
    size_t count;
    uint64_t last_id;
};

kv_told_t *kv_told_create(void)
{
    return kv_allocate(sizeof(kv_told_t));
}

/* ---- the nodes ---- */

static void remove_at(kv_told_t *told, size_t index)
{
    for (int kind = 0; kind < KV_TOLD_KINDS; kind++) {
        if (told->nodes[index].replies[kind] != NULL) {
            kvist__admin__reply__free_unpacked(told->nodes[index].replies[kind], NULL);
        }
    }
    told->nodes[index] = told->nodes[--told->count];
}

void kv_told_destroy(kv_told_t *told)
{
    while (told != NULL && told->count > 0) {
        remove_at(told, told->count - 1);
    }
    free(told);
}

static const kv_told_node_t *find(const kv_told_t *told, const char *name)
{
    for (size_t i = 0; i < told->count; i++) {
        if (strcmp(told->nodes[i].name, name) == 0) {
            return &told->nodes[i];
        }
    }
    return NULL;
}

static void add(
    kv_told_t *told, const char *name, const char *role, kv_peer_t *peer, bool is_relayed)
{
    if (told->count == KV_TOLD_NODES_MAX || strlen(name) >= KV_TOLD_NAME_BYTES) {
        return;
    }
    kv_told_node_t *node = &told->nodes[told->count++];
    *node = (kv_told_node_t){.role = role, .peer = peer, .is_relayed = is_relayed};
    snprintf(node->name, sizeof node->name, "%s", name);
}

void kv_told_peer_up(kv_told_t *told, kv_peer_t *peer)
{
    Kvist__Wire__Role role = kv_peer_role(peer);
    if (role == KVIST__WIRE__ROLE__ROLE_DECODE || role == KVIST__WIRE__ROLE__ROLE_STORE) {
        add(told, kv_peer_name(peer), role == KVIST__WIRE__ROLE__ROLE_DECODE ? "decode" : "store",
            peer, false);
    }
}

void kv_told_peer_down(kv_told_t *told, const kv_peer_t *peer)
{
    for (size_t i = told->count; i-- > 0;) {
        if (told->nodes[i].peer == peer) {
            remove_at(told, i);
        }
    }
}

/* The prefill nodes that it knows, and no longer those that it does not. */
static void follow_peers(kv_told_t *told, kv_peer_t *peer, const Kvist__Admin__Status *status)
{
    for (size_t i = told->count; i-- > 0;) {
        const kv_told_node_t *node = &told->nodes[i];
        bool named = !node->is_relayed || node->peer != peer;
        for (size_t k = 0; !named && k < status->n_peers; k++) {
            named = strcmp(status->peers[k]->name, node->name) == 0;
        }
        if (!named) {
            remove_at(told, i);
        }
    }
    for (size_t k = 0; k < status->n_peers; k++) {
        const Kvist__Admin__Peer *other = status->peers[k];
        if (strcmp(other->role, "prefill") == 0 && other->up && find(told, other->name) == NULL) {
            add(told, other->name, "prefill", peer, true);
        }
    }
}

const kv_told_node_t *kv_told_store_of(const kv_told_t *told, const kv_told_node_t *node)
{
    const Kvist__Admin__Status *status = kv_told_status(node);
    return status != NULL && status->attached_to[0] != '\0' ? find(told, status->attached_to)
                                                            : NULL;
}

/* ---- asking ---- */

static void ask(kv_told_t *told, kv_told_node_t *node, kv_told_kind_t kind, uint64_t now_ns)
{
    Kvist__Admin__StatusRequest status = KVIST__ADMIN__STATUS_REQUEST__INIT;
    Kvist__Admin__ListRequest list = KVIST__ADMIN__LIST_REQUEST__INIT;
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    Kvist__Wire__Ask message = KVIST__WIRE__ASK__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    if (kv_peer_version(node->peer) < ASK_VERSION) {
        snprintf(node->error[kind], sizeof node->error[kind],
            "the node is of a version that cannot be asked");
        return;
    }
    if (kind == KV_TOLD_STATUS) {
        request.body_case = KVIST__ADMIN__REQUEST__BODY_STATUS;
        request.status = &status;
    } else {
        list.count_max = KV_TOLD_CONTEXTS_MAX;
        request.body_case = KVIST__ADMIN__REQUEST__BODY_LIST;
        request.list = &list;
    }
    message.id = ++told->last_id;
    message.node = node->is_relayed ? node->name : (char *)"";
    message.request = &request;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_ASK;
    envelope.ask = &message;
    if (kv_peer_send(node->peer, &envelope) == KV_OK) {
        node->asked_ids[kind] = message.id;
        node->asked_ns[kind] = now_ns;
    }
}

void kv_told_look(kv_told_t *told, kv_told_kind_t kind, uint64_t age_ns, uint64_t now_ns)
{
    for (size_t i = 0; i < told->count; i++) {
        kv_told_node_t *node = &told->nodes[i];
        uint64_t asked_ns = node->asked_ns[kind], told_ns = node->told_ns[kind];
        bool waits = asked_ns != 0 && now_ns - asked_ns < LOST_AFTER_NS;
        uint64_t least_ns = AGE_PER_TIME * node->took_ns[kind];
        uint64_t wanted_ns = age_ns > least_ns ? age_ns : least_ns;
        if (kind == KV_TOLD_LIST && kv_told_store_of(told, node) != NULL) {
            continue;
        }
        if (!waits && (told_ns == 0 || now_ns - told_ns >= wanted_ns)) {
            ask(told, node, kind, now_ns);
        }
    }
}

/* ---- answers ---- */

/* A copy; NULL where it is not what was asked for. */
static Kvist__Admin__Reply *copy_of(const Kvist__Admin__Reply *reply, kv_told_kind_t kind)
{
    bool fits = kind == KV_TOLD_STATUS ? reply->body_case == KVIST__ADMIN__REPLY__BODY_STATUS
                                       : reply->body_case == KVIST__ADMIN__REPLY__BODY_LIST &&
                                             reply->list->n_contexts <= KV_TOLD_CONTEXTS_MAX;
    if (!fits) {
        return NULL;
    }
    size_t bytes = kvist__admin__reply__get_packed_size(reply);
    uint8_t *packed = kv_allocate(bytes);
    kvist__admin__reply__pack(reply, packed);
    Kvist__Admin__Reply *copy = kvist__admin__reply__unpack(NULL, bytes, packed);
    free(packed);
    return copy;
}

static void take(kv_told_t *told, kv_told_node_t *node, kv_told_kind_t kind,
    const Kvist__Admin__Reply *reply, uint64_t now_ns)
{
    char *error = node->error[kind];
    Kvist__Admin__Reply *copy = reply != NULL && reply->code == KV_OK ? copy_of(reply, kind) : NULL;
    node->took_ns[kind] = now_ns - node->asked_ns[kind];
    node->asked_ns[kind] = 0;
    node->told_ns[kind] = now_ns;
    error[0] = '\0';
    if (copy == NULL) {
        bool said = reply != NULL && reply->error[0] != '\0';
        snprintf(error, sizeof node->error[kind], "%.120s",
            said ? reply->error : "the node's answer is not what was asked for");
        kv_log_debug("gateway", "%s: %s", node->name, error);
        return;
    }
    if (node->replies[kind] != NULL) {
        kvist__admin__reply__free_unpacked(node->replies[kind], NULL);
    }
    node->replies[kind] = copy;
    if (kind == KV_TOLD_STATUS && !node->is_relayed) {
        follow_peers(told, node->peer, copy->status);
    }
}

bool kv_told_message(
    kv_told_t *told, kv_peer_t *peer, const Kvist__Wire__Envelope *message, uint64_t now_ns)
{
    if (message->body_case != KVIST__WIRE__ENVELOPE__BODY_TOLD) {
        return false;
    }
    for (size_t i = 0; i < told->count; i++) {
        kv_told_node_t *node = &told->nodes[i];
        for (int kind = 0; kind < KV_TOLD_KINDS; kind++) {
            if (node->peer == peer && node->asked_ns[kind] != 0 &&
                node->asked_ids[kind] == message->told->id) {
                take(told, node, (kv_told_kind_t)kind, message->told->reply, now_ns);
                return true;
            }
        }
    }
    return true;
}

const kv_told_node_t *kv_told_nodes(const kv_told_t *told, size_t *count_out)
{
    *count_out = told->count;
    return told->nodes;
}
