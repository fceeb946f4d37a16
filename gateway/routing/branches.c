#include "gateway/routing/branches.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <stdlib.h>

enum {
    PLACES = 1 << 13,
    GROWTH = 1, /* what a branch comes to, in terms of what it begins with */
};

typedef struct {
    uint64_t key; /* its first 8 bytes; 0: none */
    uint64_t token_count;
} branch_t;

struct kv_branches {
    branch_t places[PLACES];
};

kv_branches_t *kv_branches_create(void)
{
    return kv_allocate(sizeof(kv_branches_t));
}

void kv_branches_destroy(kv_branches_t *branches)
{
    free(branches);
}

uint64_t kv_branches_tokens(
    const kv_branches_t *branches, const kvist_key_t *keys, uint32_t held_blocks)
{
    if (held_blocks == 0) {
        return 0;
    }
    uint64_t key = kv_get_u64(keys[held_blocks - 1].bytes);
    const branch_t *branch = &branches->places[key % PLACES];
    return branch->key == key ? branch->token_count : 0;
}

void kv_branches_add(
    kv_branches_t *branches, const kvist_key_t *keys, uint32_t held_blocks, uint32_t new_tokens)
{
    if (held_blocks == 0) {
        return;
    }
    uint64_t key = kv_get_u64(keys[held_blocks - 1].bytes);
    branch_t *branch = &branches->places[key % PLACES];
    if (branch->key != key) {
        *branch = (branch_t){.key = key};
    }
    branch->token_count += (uint64_t)GROWTH * new_tokens;
}
