#include "holder/asked.h"

#include "base/check.h"
#include "base/log.h"

#include <string.h>

enum { ASK_VERSION = 3 };

/* ---- answers ---- */

static void tell(kv_peer_t *peer, uint64_t id, const Kvist__Admin__Reply *reply)
{
    Kvist__Wire__Told told = KVIST__WIRE__TOLD__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    told.id = id;
    told.reply = (Kvist__Admin__Reply *)(uintptr_t)reply;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOLD;
    envelope.told = &told;
    if (kv_peer_send(peer, &envelope) != KV_OK) {
        kv_log_debug("holder", "%s is not told what it asked for", kv_peer_name(peer));
    }
}

static void refuse(kv_peer_t *peer, uint64_t id, kv_status_t status, const char *text)
{
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    reply.code = status;
    reply.error = (char *)(uintptr_t)text;
    tell(peer, id, &reply);
}

/* ---- what is asked of this node ---- */

typedef struct {
    kv_peer_t *peer;
    uint64_t id;
    bool told;
} asker_t;

static void told_by_admin(void *context, const Kvist__Admin__Reply *reply)
{
    asker_t *asker = context;
    asker->told = true;
    tell(asker->peer, asker->id, reply);
}

/* What only reads, and is answered before kv_admin_answer returns: while the asker is there. */
static bool is_served(const Kvist__Admin__Request *request)
{
    return request->body_case == KVIST__ADMIN__REQUEST__BODY_STATUS ||
           request->body_case == KVIST__ADMIN__REQUEST__BODY_LIST;
}

/* ---- what is asked of a peer ---- */

static void relay(
    kv_asked_t *asked, kv_peers_t *peers, kv_peer_t *asker, const Kvist__Wire__Ask *ask)
{
    kv_peer_t *node = kv_peers_find(peers, ask->node);
    kv_relay_t *relay = asked->relays;
    while (relay < asked->relays + KV_ASKED_MAX && relay->asker != NULL) {
        relay++;
    }
    if (node == NULL) {
        refuse(asker, ask->id, KV_MISSING, "node: no peer of that name is up");
    } else if (kv_peer_version(node) < ASK_VERSION) {
        refuse(asker, ask->id, KV_REFUSED, "node: of a version that cannot be asked");
    } else if (relay == asked->relays + KV_ASKED_MAX) {
        refuse(asker, ask->id, KV_BUSY, "too many questions wait for an answer: ask again later");
    } else {
        Kvist__Wire__Ask own = KVIST__WIRE__ASK__INIT;
        Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
        own.id = ++asked->last_id;
        own.request = ask->request;
        envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_ASK;
        envelope.ask = &own;
        if (kv_peer_send(node, &envelope) != KV_OK) {
            refuse(asker, ask->id, KV_BUSY, "node: it takes no messages now");
            return;
        }
        *relay = (kv_relay_t){asker, node, own.id, ask->id};
    }
}

static void take_told(kv_asked_t *asked, const kv_peer_t *node, const Kvist__Wire__Told *told)
{
    for (kv_relay_t *relay = asked->relays; relay < asked->relays + KV_ASKED_MAX; relay++) {
        if (relay->asker != NULL && relay->node == node && relay->id == told->id) {
            kv_peer_t *asker = relay->asker;
            relay->asker = NULL;
            if (told->reply != NULL) {
                tell(asker, relay->asker_id, told->reply);
            } else {
                refuse(asker, relay->asker_id, KV_INVALID, "node: its answer has no reply");
            }
            return;
        }
    }
}

/* ---- messages ---- */

static void take_ask(kv_asked_t *asked, kv_admin_t *admin, kv_peers_t *peers, kv_peer_t *peer,
    const Kvist__Wire__Ask *ask)
{
    if (ask->request == NULL || !is_served(ask->request)) {
        refuse(peer, ask->id, KV_INVALID, "request: status and list are answered here");
    } else if (ask->node[0] != '\0') {
        relay(asked, peers, peer, ask);
    } else if (admin == NULL) {
        refuse(peer, ask->id, KV_BUSY, "the node is starting or stopping");
    } else {
        asker_t asker = {.peer = peer, .id = ask->id};
        kv_admin_answer(admin, ask->request, told_by_admin, &asker);
        KV_CHECK(asker.told);
    }
}

bool kv_asked_message(kv_asked_t *asked, kv_admin_t *admin, kv_peers_t *peers, kv_peer_t *peer,
    const Kvist__Wire__Envelope *message)
{
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_ASK) {
        take_ask(asked, admin, peers, peer, message->ask);
        return true;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_TOLD) {
        take_told(asked, peer, message->told);
        return true;
    }
    return false;
}

void kv_asked_peer_down(kv_asked_t *asked, const kv_peer_t *peer)
{
    for (kv_relay_t *relay = asked->relays; relay < asked->relays + KV_ASKED_MAX; relay++) {
        if (relay->asker == peer) {
            relay->asker = NULL;
        } else if (relay->asker != NULL && relay->node == peer) {
            refuse(relay->asker, relay->asker_id, KV_PEER_LOST, "node: lost before it answered");
            relay->asker = NULL;
        }
    }
}
