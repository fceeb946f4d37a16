#include "gateway/figures/seen.h"

#include "base/memory.h"
#include "gateway/figures/audits.h"
#include "gateway/figures/ghost.h"
#include "gateway/request.h"

#include <stdlib.h>

static uint32_t larger(uint32_t one, uint32_t other)
{
    return one > other ? one : other;
}

static const kv_prompt_keys_t *keys_of(const kv_generation_t *choice)
{
    const kv_request_t *request = choice->request;
    return &request->keys[choice->index / request->api.choice_count];
}

/* Whether its prompt's keys were made; not, where the node came after the prompt. */
static bool has_keys(const kv_generation_t *choice)
{
    return choice->naming >= 0 && (uint32_t)choice->naming < keys_of(choice)->naming_count;
}

static bool is_first(const kv_generation_t *choice)
{
    return choice->index % choice->request->api.choice_count == 0;
}

/* ---- before ---- */

void kv_seen_look(kv_generation_t *choice, const kv_found_t *found)
{
    choice->naming = found->naming;
    if (choice->sent_count > 0 || !is_first(choice)) {
        return;
    }
    kv_seen_t *seen = &choice->seen;
    kv_ghost_run_t run = {0};
    seen->block_tokens = choice->request->gateway->limits.block_tokens;
    if (has_keys(choice)) {
        const kv_prompt_keys_t *keys = keys_of(choice);
        seen->block_tokens = keys->of[choice->naming].block_tokens;
        run = kv_ghost_look(choice->request->gateway->ghost, keys->of[choice->naming].keys,
            keys->of[choice->naming].block_count);
    }
    seen->kept_tokens = run.kept_count * seen->block_tokens;
    seen->held_tokens = found->held_tokens;
    seen->at_node_tokens = found->at_node_tokens;
    seen->coming_tokens = found->coming_tokens;
    seen->seen_tokens = larger(
        run.block_count * seen->block_tokens, larger(found->held_tokens, found->coming_tokens));
}

/* ---- what it adds ---- */

void kv_seen_note_prompt(const kv_generation_t *choice)
{
    if (is_first(choice) && has_keys(choice)) {
        const kv_prompt_keys_t *keys = keys_of(choice);
        kv_ghost_note(choice->request->gateway->ghost, keys->of[choice->naming].keys,
            keys->of[choice->naming].block_count, kv_api_writes(&choice->request->api));
    }
}

/* The whole blocks that the answer added, and the prompt's again: they are not to leave before what
 * goes on from them. The last token's KV is never made. */
void kv_seen_note_answer(const kv_generation_t *choice)
{
    const kv_request_t *request = choice->request;
    kv_gateway_t *gateway = request->gateway;
    if (choice->token_count == 0 || choice->naming < 0) {
        return;
    }
    const kv_naming_t *naming =
        &kv_prefixes_namings(gateway->prefixes)->items[(uint32_t)choice->naming];
    uint32_t block_tokens = naming->shape.block_tokens;
    uint32_t count =
        ((uint32_t)choice->prompt->token_count + choice->token_count - 1) / block_tokens;
    uint32_t begin = has_keys(choice) ? keys_of(choice)->of[choice->naming].block_count : 0;
    if (count > begin) {
        kvist_key_t parent =
            begin > 0 ? keys_of(choice)->of[choice->naming].keys[begin - 1]
                      : kv_naming_name_space(naming, request->api.salt, request->api.salt_bytes);
        kvist_key_t *keys = kv_allocate_array(count - begin, sizeof *keys);
        kvist_keys(&parent, choice->tokens + (size_t)begin * block_tokens, NULL,
            (size_t)(count - begin) * block_tokens, block_tokens, keys);
        kv_ghost_note(gateway->ghost, keys, count - begin, kv_api_writes(&choice->request->api));
        free(keys);
    }
    if (begin > 0) {
        kv_ghost_note(gateway->ghost, keys_of(choice)->of[choice->naming].keys, begin,
            kv_api_writes(&choice->request->api));
    }
}

/* ---- after ---- */

/* What a request that does not read misses it does not miss for want of anything. */
static const char *reason_of(const kv_generation_t *choice, const Kvist__Wire__Usage *told)
{
    bool reads = kv_api_reads(&choice->request->api);
    bool says = told != NULL && told->miss != NULL && told->miss[0] != '\0';
    return says ? told->miss : reads ? "" : kv_gap_name(KV_GAP_BYPASSED);
}

void kv_seen_settle(const kv_request_t *request, kv_partition_t *parts_out)
{
    *parts_out = (kv_partition_t){0};
    for (size_t i = 0; i < request->choice_count; i += request->api.choice_count) {
        const kv_generation_t *choice = &request->choices[i];
        const Kvist__Wire__Usage *told =
            choice->usage != NULL ? choice->usage : choice->first_usage;
        uint32_t hit[KV_PARTITION_TIERS] = {0};
        if (told != NULL && told->cached != NULL) {
            hit[KV_TIER_DEVICE] = told->cached->device;
            hit[KV_TIER_HOST] = told->cached->host;
            hit[KV_TIER_DISK] = told->cached->disk;
            hit[KV_TIER_REMOTE] = told->cached->remote;
        }
        kv_seen_t seen = choice->seen;
        seen.diverged_tokens = i == 0 ? kv_audits_diverged_tokens(request) : 0;
        kv_partition_t part;
        kv_partition_make(
            (uint32_t)choice->prompt->token_count, hit, reason_of(choice, told), &seen, &part);
        kv_partition_add(parts_out, &part);
    }
}
