#include "decode/choose.h"

#include "base/memory.h"
#include "decode/request.h"
#include "holder/remote.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    kv_core_t *core;
    const kv_decode_choice_t *choice;
    kv_peer_t *best; /* the first of the least loaded */
    uint32_t load, equals;
    kv_peer_t *least[KV_PEERS_MAX]; /* all of the least loaded */
    size_t least_count;
    uint64_t others[KV_PEERS_MAX]; /* kv_peer_id of all peers but those and their stores */
    size_t other_count;
} search_t;

/* Behind all whose data link is up: that one may lead nowhere. */
enum { LOAD_WITHOUT_LINK = 1 << 24 };

static uint32_t load_of(const kv_core_t *core, const kv_peer_t *peer)
{
    uint32_t told = kv_peer_queued_requests(peer) + kv_peer_running_requests(peer);
    uint32_t sent = 0;
    const kv_requests_t *requests = &core->holder.requests;
    for (uint32_t i = 0; i < requests->count; i++) {
        sent += requests->item_ops[i] == &KV_DECODE_REQUEST_OPS &&
                kv_decode_request_waits_for(requests->items[i], peer);
    }
    return (told > sent ? told : sent) + (kv_holder_link_up(peer) ? 0 : LOAD_WITHOUT_LINK);
}

static bool will_do(const kv_decode_choice_t *choice, const kv_peer_t *peer)
{
    for (size_t i = 0; i < choice->tried_count; i++) {
        if (choice->tried[i] == kv_peer_id(peer)) {
            return false;
        }
    }
    return kv_peer_role(peer) == KVIST__WIRE__ROLE__ROLE_PREFILL && !kv_peer_draining(peer);
}

static void consider(void *context, kv_peer_t *peer)
{
    search_t *search = context;
    if (!will_do(search->choice, peer)) {
        return;
    }
    uint32_t load = load_of(search->core, peer);
    if (search->best == NULL || load < search->load) {
        search->best = peer;
        search->load = load;
        search->equals = 0;
    }
    search->equals += load == search->load;
}

static bool is_least(const search_t *search, const kv_peer_t *peer)
{
    return will_do(search->choice, peer) && load_of(search->core, peer) == search->load;
}

static void note_least(void *context, kv_peer_t *peer)
{
    search_t *search = context;
    if (is_least(search, peer)) {
        search->least[search->least_count++] = peer;
    }
}

/* Of the least loaded, the first one whose host and disk tiers that kvist-store has; or NULL. */
static kv_peer_t *attached_to(const search_t *search, const kv_peer_t *store)
{
    for (size_t i = 0; i < search->least_count; i++) {
        if (strcmp(kv_peer_attached_to(search->least[i]), kv_peer_name(store)) == 0) {
            return search->least[i];
        }
    }
    return NULL;
}

static void note_other(void *context, kv_peer_t *peer)
{
    search_t *search = context;
    bool counts = kv_peer_role(peer) == KVIST__WIRE__ROLE__ROLE_STORE
                      ? attached_to(search, peer) != NULL
                      : is_least(search, peer);
    if (!counts && search->other_count < KV_PEERS_MAX) {
        search->others[search->other_count++] = kv_peer_id(peer);
    }
}

/* Of the least loaded, the one that is thought to hold most, by itself or in the store that it is
 * attached to. */
static kv_peer_t *holder(search_t *search)
{
    const kv_decode_choice_t *choice = search->choice;
    uint32_t block_count = choice->token_count / search->core->info->shape.block_tokens;
    if (choice->held_blocks >= block_count) {
        return NULL;
    }
    kv_peers_visit(search->core->holder.peers, note_least, search);
    kv_peers_visit(search->core->holder.peers, note_other, search);
    kvist_key_t *keys = kv_allocate_array(block_count, sizeof *keys);
    kvist_keys(choice->name_space, choice->tokens, NULL, choice->token_count,
        search->core->info->shape.block_tokens, keys);
    kv_peer_t *found = NULL;
    uint32_t found_blocks;
    if (!kv_remote_find(&search->core->holder, keys + choice->held_blocks,
            block_count - choice->held_blocks, search->others, search->other_count, &found,
            &found_blocks)) {
        found = NULL;
    } else if (kv_peer_role(found) == KVIST__WIRE__ROLE__ROLE_STORE) {
        found = attached_to(search, found);
    }
    free(keys);
    return found;
}

kv_peer_t *kv_decode_choose(kv_core_t *core, const kv_decode_choice_t *choice, uint32_t *ahead_out)
{
    search_t search = {.core = core, .choice = choice};
    kv_peers_visit(core->holder.peers, consider, &search);
    if (search.equals > 1) {
        kv_peer_t *found = holder(&search);
        search.best = found != NULL ? found : search.best;
    }
    *ahead_out = search.load % LOAD_WITHOUT_LINK;
    return search.best;
}
