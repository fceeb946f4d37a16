#include "kvstore/policy/ranking.h"

#include "base/check.h"

/* Parents have the larger height. A bijection: no two slots are equal. */
static uint32_t height_of(uint32_t slot)
{
    slot ^= slot >> 16;
    slot *= 0x7feb352du;
    slot ^= slot >> 15;
    slot *= 0x846ca68bu;
    return slot ^ slot >> 16;
}

static bool is_before(kv_rank_t left, uint32_t left_slot, kv_rank_t right, uint32_t right_slot)
{
    if (left.rank != right.rank) {
        return left.rank < right.rank;
    }
    return left.used != right.used ? left.used < right.used : left_slot < right_slot;
}

void kv_ranking_add(const kv_ranking_memory_t *memory, uint32_t *root, uint32_t slot)
{
    kv_rank_t key = memory->keys[slot];
    uint32_t height = height_of(slot), *link = root;
    while (*link != KV_RANKING_NONE && height_of(*link) > height) {
        kv_ranking_node_t *node = &memory->nodes[*link];
        link = is_before(key, slot, memory->keys[*link], *link) ? &node->left : &node->right;
    }
    /* What is lower than it is split into what comes before it and what comes behind. */
    uint32_t at = *link, *before = &memory->nodes[slot].left, *behind = &memory->nodes[slot].right;
    *link = slot;
    while (at != KV_RANKING_NONE) {
        if (is_before(memory->keys[at], at, key, slot)) {
            *before = at;
            before = &memory->nodes[at].right;
            at = *before;
        } else {
            *behind = at;
            behind = &memory->nodes[at].left;
            at = *behind;
        }
    }
    *before = *behind = KV_RANKING_NONE;
}

void kv_ranking_remove(const kv_ranking_memory_t *memory, uint32_t *root, uint32_t slot)
{
    kv_rank_t key = memory->keys[slot];
    uint32_t *link = root;
    while (*link != slot) {
        KV_CHECK(*link != KV_RANKING_NONE);
        kv_ranking_node_t *node = &memory->nodes[*link];
        link = is_before(key, slot, memory->keys[*link], *link) ? &node->left : &node->right;
    }
    uint32_t left = memory->nodes[slot].left, right = memory->nodes[slot].right;
    while (left != KV_RANKING_NONE && right != KV_RANKING_NONE) {
        if (height_of(left) > height_of(right)) {
            *link = left;
            link = &memory->nodes[left].right;
            left = *link;
        } else {
            *link = right;
            link = &memory->nodes[right].left;
            right = *link;
        }
    }
    *link = left != KV_RANKING_NONE ? left : right;
}

uint32_t kv_ranking_first(const kv_ranking_memory_t *memory, uint32_t root)
{
    while (root != KV_RANKING_NONE && memory->nodes[root].left != KV_RANKING_NONE) {
        root = memory->nodes[root].left;
    }
    return root;
}

uint32_t kv_ranking_after(
    const kv_ranking_memory_t *memory, uint32_t root, kv_rank_t key, uint32_t slot)
{
    uint32_t found = KV_RANKING_NONE;
    while (root != KV_RANKING_NONE) {
        if (is_before(key, slot, memory->keys[root], root)) {
            found = root;
            root = memory->nodes[root].left;
        } else {
            root = memory->nodes[root].right;
        }
    }
    return found;
}
