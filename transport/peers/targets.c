/* Which connections this side opens, and which of two between the same nodes stays.
 *
 * Every node may be told of every other, so that two nodes open to each other at once. One
 * connection between two nodes is enough, and both must choose the same one without a word:
 *
 *   1. Who is up stays up. An opener that finds, by the name in the other's Hello, a node that it
 *      is connected to already closes before it proves itself, so the other side never came up.
 *   2. Where both are under way, the one that the smaller name opened wins. The acceptor of the
 *      other one (the smaller name) has sent its own proof and cannot tell yet whether it arrived:
 *      it holds the loser, proved but unanswered, until its own has come up (the loser is closed)
 *      or failed (the loser comes up). Whoever only claims that name delays its owner so by one
 *      handshake's time at most, never keeps it out.
 *
 * Between its opener's proof and the acceptor's nothing else can happen to a connection, so that
 * never both are up, and up() comes once. A target sleeps while the node found there is up and
 * wakes, without a pause, when that connection ends. Every half minute it looks whether the address
 * is another node's by now. */
#include "transport/peers/peers_internal.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

static bool is_useful(const kv_peers_t *peers, Kvist__Wire__Role role)
{
    return peers->params.useful_roles == 0 || (peers->params.useful_roles & 1u << role) != 0;
}

/* Has the other side's Hello, and so a name, but is not up yet. */
static bool is_named(const kv_peer_t *peer)
{
    return peer->state == PEER_HELD ||
           (peer->state == PEER_HANDSHAKE && peer->handshake->state >= KV_HANDSHAKE_PROOF);
}

/* Another connection that this side opens, in its handshake with a node of the same name. */
static const kv_peer_t *find_own_attempt(const kv_peer_t *than)
{
    const kv_peer_t *peer = than->peers->peers;
    while (peer != NULL && (peer == than || peer->target == NULL || !is_named(peer) ||
                               strcmp(peer->handshake->facts.name, than->handshake->facts.name))) {
        peer = peer->next;
    }
    return peer;
}

/* ---- one of two ---- */

bool kv_targets_met_self(kv_peer_t *peer, const uint8_t *hello, size_t hello_bytes)
{
    /* A Hello holds 32 fresh random bytes: whoever sent it is the one who made it. */
    for (kv_peer_t *other = peer->peers->peers; other != NULL; other = other->next) {
        if (other == peer || other->state != PEER_HANDSHAKE ||
            (other->target == NULL) == (peer->target == NULL) ||
            other->handshake->own_hello_bytes != hello_bytes ||
            memcmp(other->handshake->own_hello, hello, hello_bytes) != 0) {
            continue;
        }
        kv_target_t *target = peer->target != NULL ? peer->target : other->target;
        target->useless = true;
        kv_peer_end_quietly(other, "this node met itself");
        kv_peer_end_quietly(peer, "this node met itself");
        return true;
    }
    return false;
}

bool kv_targets_want(kv_peer_t *peer)
{
    const kv_peer_facts_t *facts = &peer->handshake->facts;
    kv_target_t *target = peer->target;
    memcpy(target->name, facts->name, sizeof target->name);
    target->useless = !is_useful(peer->peers, facts->role);
    if (target->useless) {
        kv_peer_end_quietly(peer, "this node has no use for that role");
    } else if (kv_peers_find(peer->peers, facts->name) != NULL || find_own_attempt(peer) != NULL) {
        kv_peer_end_quietly(peer, "this node is connected to that one already");
    }
    return peer->state == PEER_HANDSHAKE;
}

bool kv_targets_must_wait(const kv_peer_t *peer)
{
    return strcmp(peer->peers->name, peer->handshake->facts.name) < 0 &&
           find_own_attempt(peer) != NULL;
}

void kv_targets_came_up(kv_peer_t *peer)
{
    if (peer->target != NULL) {
        peer->target->pause_ms = KV_TARGET_PAUSE_MS_MIN;
        peer->target->last_reason[0] = '\0';
    }
    for (kv_peer_t *other = peer->peers->peers; other != NULL; other = other->next) {
        if (other != peer && is_named(other) &&
            strcmp(other->handshake->facts.name, peer->facts.name) == 0) {
            kv_peer_end_quietly(other, "another connection to that node is up");
        }
    }
}

bool kv_targets_crossed(const kv_peer_t *peer, const kv_peer_t *older)
{
    uint64_t until_ns = older->up_ns + (uint64_t)KV_PEER_HANDSHAKE_MS * KV_NS_PER_MS;
    return peer->target == NULL && older->target != NULL && kv_clock_now_ns() < until_ns;
}

bool kv_targets_expect_end(const kv_peer_t *peer)
{
    if (peer->target != NULL || !is_named(peer)) {
        return false;
    }
    /* A gateway or a store that was told of all nodes leaves those that it has no use for. */
    Kvist__Wire__Role role = peer->handshake->facts.role;
    return peer->state == PEER_HELD || role == KVIST__WIRE__ROLE__ROLE_GATEWAY ||
           role == KVIST__WIRE__ROLE__ROLE_STORE ||
           kv_peers_find(peer->peers, peer->handshake->facts.name) != NULL ||
           find_own_attempt(peer) != NULL;
}

/* ---- addresses ---- */

void kv_target_ended(kv_target_t *target, bool quiet)
{
    uint64_t pause_ms = target->useless ? KV_TARGET_USELESS_MS : target->pause_ms;
    uint64_t now_ns = kv_clock_now_ns();
    target->retry_at_ns = now_ns + pause_ms * KV_NS_PER_MS;
    target->look_at_ns = now_ns + (uint64_t)KV_TARGET_LOOK_MS * KV_NS_PER_MS;
    if (!quiet) {
        bool most = 2 * target->pause_ms > KV_TARGET_PAUSE_MS_MAX;
        target->pause_ms = most ? KV_TARGET_PAUSE_MS_MAX : 2 * target->pause_ms;
    }
    target->useless = false; /* until the next one is met */
}

static bool sleeps(kv_peers_t *peers, const kv_target_t *target)
{
    return target->name[0] != '\0' && kv_peers_find(peers, target->name) != NULL;
}

void kv_targets_tick(kv_peers_t *peers, uint64_t now_ns)
{
    for (kv_target_t **at = &peers->targets; *at != NULL;) {
        kv_target_t *target = *at;
        if (target->connection == NULL && target->wanted == 0) {
            *at = target->next;
            free(target);
            continue;
        }
        uint64_t next_ns = sleeps(peers, target) ? target->look_at_ns : target->retry_at_ns;
        if (target->connection == NULL && now_ns >= next_ns) {
            kv_peer_open(peers, target);
        }
        at = &target->next;
    }
}

void kv_targets_clear(kv_peers_t *peers)
{
    while (peers->targets != NULL) {
        kv_target_t *next = peers->targets->next;
        free(peers->targets);
        peers->targets = next;
    }
}

static kv_target_t *find_target(kv_peers_t *peers, const struct sockaddr_storage *address)
{
    char text[KV_ADDRESS_TEXT_BYTES];
    kv_address_text(address, text);
    kv_target_t *target = peers->targets;
    while (target != NULL && strcmp(target->text, text) != 0) {
        target = target->next;
    }
    return target;
}

kv_status_t kv_peers_connect(kv_peers_t *peers, const char *address, kv_error_t *error)
{
    struct sockaddr_storage parsed;
    kv_status_t status = kv_address_parse(address, &parsed, error);
    if (status != KV_OK) {
        return status;
    }
    kv_target_t *target = find_target(peers, &parsed);
    if (target == NULL) {
        target = kv_allocate(sizeof *target);
        target->address = parsed;
        kv_address_text(&parsed, target->text);
        target->next = peers->targets;
        peers->targets = target;
    }
    target->wanted++;
    target->pause_ms = KV_TARGET_PAUSE_MS_MIN;
    target->retry_at_ns = 0;
    if (target->connection == NULL) {
        target->name[0] = '\0'; /* whoever says that a node is there may mean another one */
        kv_peer_open(peers, target);
    }
    return KV_OK;
}

void kv_peers_disconnect(kv_peers_t *peers, const char *address)
{
    struct sockaddr_storage parsed;
    kv_target_t *target =
        kv_address_parse(address, &parsed, NULL) == KV_OK ? find_target(peers, &parsed) : NULL;
    if (target == NULL || target->wanted == 0 || --target->wanted > 0) {
        return;
    }
    kv_peer_t *connection = target->connection;
    if (connection != NULL && connection->state < PEER_UP) {
        kv_peer_end_quietly(connection, "nobody wants it any more");
    }
}
