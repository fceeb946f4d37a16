#include "decode/choose.h"

typedef struct {
    const uint64_t *tried;
    size_t tried_count;
    kv_peer_t *best;
    uint32_t best_load;
} choice_t;

static bool was_tried(const choice_t *choice, const kv_peer_t *peer)
{
    for (size_t i = 0; i < choice->tried_count; i++) {
        if (choice->tried[i] == kv_peer_id(peer)) {
            return true;
        }
    }
    return false;
}

static void consider(void *context, kv_peer_t *peer)
{
    choice_t *choice = context;
    if (kv_peer_role(peer) != KVIST__WIRE__ROLE__ROLE_PREFILL || kv_peer_draining(peer) ||
        was_tried(choice, peer)) {
        return;
    }
    uint32_t load = kv_peer_queued_requests(peer) + kv_peer_running_requests(peer);
    if (choice->best == NULL || load < choice->best_load) {
        choice->best = peer;
        choice->best_load = load;
    }
}

kv_peer_t *kv_decode_choose(kv_core_t *core, const uint64_t *tried, size_t tried_count)
{
    choice_t choice = {.tried = tried, .tried_count = tried_count};
    kv_peers_visit(core->peers, consider, &choice);
    return choice.best;
}
