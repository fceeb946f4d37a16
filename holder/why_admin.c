#include "holder/why_admin.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "holder/holder.h"
#include "holder/remote.h"
#include "holder/store_admin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_TEXT_BYTES = 2 * KVIST_KEY_BYTES + 1, REQUEST_TEXT_BYTES = 17 };

/* An answer in the making: the message and what it points to. */
typedef struct {
    const kv_holder_t *holder;
    kvist_store_t *store;
    uint32_t block_tokens;
    Kvist__Admin__Why body;
    kvist_match_t match;
    char name_space[KEY_TEXT_BYTES], other[KEY_TEXT_BYTES], other_name_space[KEY_TEXT_BYTES];
    char request[REQUEST_TEXT_BYTES];
    kvist_why_t why;
    uint32_t *other_tokens; /* [block_tokens] */
} answer_t;

/* Both sides of the block where contexts part; own: the asked one's. */
static void tell_parting(answer_t *answer, const uint32_t *own)
{
    const kvist_miss_detail_t *detail = &answer->match.detail;
    Kvist__Admin__Why *body = &answer->body;
    uint32_t block_tokens = answer->block_tokens;
    body->token = detail->token;
    body->token_known = detail->token_known;
    body->extra_differs = detail->extra_differs;
    kv_hex_encode(detail->other.bytes, KVIST_KEY_BYTES, answer->other);
    body->other_key = answer->other;
    answer->other_tokens = kv_allocate_array(block_tokens, sizeof *answer->other_tokens);
    if (own != NULL && kvist_store_tokens(answer->store, &detail->other, answer->other_tokens,
                           NULL) == KV_OK) { /* else it is gone by now */
        body->n_own_tokens = body->n_other_tokens = block_tokens;
        body->own_tokens = (uint32_t *)(uintptr_t)own;
        body->other_tokens = answer->other_tokens;
    }
}

static void tell_maker(answer_t *answer)
{
    const kvist_miss_detail_t *detail = &answer->match.detail;
    Kvist__Admin__Why *body = &answer->body;
    body->dropped = detail->dropped;
    body->maker_known = detail->maker_known;
    body->by_tenant = (char *)detail->tenant;
    body->by_origin = (char *)detail->origin;
    body->by_class = detail->maker_known ? (char *)kv_priority_name(detail->priority) : "";
    const char *id = kv_outcomes_id(&answer->holder->outcomes, detail->request);
    if (id == NULL && detail->request != 0) { /* another node may know it */
        snprintf(answer->request, sizeof answer->request, "%016llx",
            (unsigned long long)detail->request);
        id = answer->request;
    }
    body->by_request = id != NULL ? (char *)id : "";
}

/* What the store said. own: tokens of the block where it ended, or NULL. */
static void tell_match(answer_t *answer, const kvist_match_t *match, const uint32_t *own)
{
    uint32_t block_tokens = answer->block_tokens;
    Kvist__Admin__Why *body = &answer->body;
    answer->match = *match;
    body->block_tokens = block_tokens;
    body->here = (char *)kv_outcome_miss_text(match->miss, &match->detail);
    body->found_blocks = match->block_count;
    body->block = match->detail.block;
    body->when_unix_ns = match->detail.when_unix_ns;
    if (match->miss == KVIST_MISS_DIVERGED) {
        tell_parting(answer, own);
    } else if (match->miss == KVIST_MISS_EVICTED || match->miss == KVIST_MISS_NOT_ADMITTED) {
        tell_maker(answer);
    }
}

static void reply(answer_t *answer, const kvist_key_t *name_space, kv_admin_call_t *call)
{
    kv_hex_encode(name_space->bytes, KVIST_KEY_BYTES, answer->name_space);
    answer->body.name_space = answer->name_space;
    Kvist__Admin__Reply message = KVIST__ADMIN__REPLY__INIT;
    message.body_case = KVIST__ADMIN__REPLY__BODY_WHY;
    message.why = &answer->body;
    kv_admin_reply(call, &message);
    free(answer->other_tokens);
}

/* ---- a request ---- */

static void reply_request(answer_t *answer, const char *id, kv_admin_call_t *call)
{
    const kv_outcome_t *outcome = kv_outcomes_find(&answer->holder->outcomes, id);
    if (outcome == NULL) {
        kv_admin_fail(call, KV_MISSING,
            "the node had no such request, or too many since: ask with its prompt's tokens");
        return;
    }
    Kvist__Admin__Why *body = &answer->body;
    body->request_id = (char *)outcome->id;
    body->outcome = outcome->status == KV_OK ? "done" : (char *)kv_status_name(outcome->status);
    body->ended_unix_ns = outcome->ended_unix_ns;
    body->token_count = outcome->prompt_tokens;
    body->device_tokens = outcome->cached_tokens[KVIST_TIER_DEVICE];
    body->host_tokens = outcome->cached_tokens[KVIST_TIER_HOST];
    body->disk_tokens = outcome->cached_tokens[KVIST_TIER_DISK];
    body->remote_tokens = outcome->cached_tokens[KVIST_TIER_REMOTE];
    tell_match(answer, &outcome->match, outcome->tokens);
    body->reason = outcome->said[0] != '\0'
                       ? (char *)outcome->said
                       : (char *)kv_outcome_miss_text(outcome->miss, &outcome->match.detail);
    body->holder = (char *)outcome->holder;
    body->holder_blocks = outcome->holder_blocks;
    body->prefilled_by = (char *)outcome->prefilled_by;
    body->said = (char *)outcome->said;
    reply(answer, &outcome->name_space, call);
}

/* ---- a prompt ---- */

/* false: the call has been answered with why there is none. */
static bool find_name_space(const kv_holder_t *holder, const Kvist__Admin__WhyRequest *asked,
    kv_admin_call_t *call, kvist_key_t *name_space_out)
{
    const kv_holder_owner_t *owner = &holder->owner;
    if (owner->name_space != NULL) { /* and the store knows it from then on */
        *name_space_out = owner->name_space(owner->context, asked->salt.data, asked->salt.len);
    } else if (asked->name_space[0] == '\0') {
        kv_admin_fail(call, KV_INVALID,
            "this node has no model, and does not know what namespace a salt belongs to: name it "
            "(kvist show tells it of a block)");
        return false;
    }
    if (asked->name_space[0] != '\0' &&
        (strlen(asked->name_space) != KEY_TEXT_BYTES - 1 ||
            kv_hex_decode(asked->name_space, name_space_out->bytes, KVIST_KEY_BYTES) != KV_OK)) {
        kv_admin_fail(
            call, KV_INVALID, "name_space is not 64 hexadecimal digits, as kvist show tells them");
        return false;
    }
    return true;
}

/* Who else is thought to hold what comes next. */
static void tell_holder(
    answer_t *answer, const kvist_key_t *name_space, const Kvist__Admin__WhyRequest *asked)
{
    uint32_t block_tokens = answer->block_tokens;
    uint32_t whole = (uint32_t)(asked->n_tokens / block_tokens);
    uint32_t found = answer->match.block_count;
    if (answer->holder->remote == NULL || block_tokens != answer->holder->block_tokens ||
        found >= whole) {
        return;
    }
    kvist_key_t *keys = kv_allocate_array(whole, sizeof *keys);
    kvist_keys(name_space, asked->tokens, NULL, asked->n_tokens, block_tokens, keys);
    const char *name;
    if (kv_remote_holder(
            answer->holder, keys + found, whole - found, &name, &answer->body.holder_blocks)) {
        answer->body.holder = (char *)name;
    }
    free(keys);
}

static void reply_prompt(
    answer_t *answer, const Kvist__Admin__WhyRequest *asked, kv_admin_call_t *call)
{
    kvist_key_t name_space;
    if (!find_name_space(answer->holder, asked, call, &name_space)) {
        return;
    }
    const kvist_why_query_t query = {
        .name_space = name_space,
        .tokens = asked->tokens,
        .token_count = asked->n_tokens,
        .all_name_spaces = true,
    };
    kvist_why_t *why = &answer->why;
    kv_status_t status = kvist_why(answer->store, &query, why);
    if (status != KV_OK) {
        kv_admin_fail(call, status,
            status == KV_INVALID ? "tokens: too many of them" : "the store cannot be asked now");
        return;
    }
    Kvist__Admin__Why *body = &answer->body;
    uint32_t block_tokens = answer->block_tokens = why->block_tokens;
    size_t first = (size_t)why->match.detail.block * block_tokens;
    bool whole = first + block_tokens <= asked->n_tokens;
    body->token_count = (uint32_t)asked->n_tokens;
    body->device_tokens = why->match.tier_blocks[KVIST_TIER_DEVICE] * block_tokens;
    body->host_tokens = why->match.tier_blocks[KVIST_TIER_HOST] * block_tokens;
    body->disk_tokens = why->match.tier_blocks[KVIST_TIER_DISK] * block_tokens;
    tell_match(answer, &why->match, whole ? asked->tokens + first : NULL);
    body->reason = body->here;
    if (why->match.miss == KVIST_MISS_NAMESPACE) {
        kv_hex_encode(why->other_name_space.bytes, KVIST_KEY_BYTES, answer->other_name_space);
        body->other_name_space = answer->other_name_space;
        body->other_blocks = why->other_block_count;
        body->fields = why->fields;
    }
    tell_holder(answer, &name_space, asked);
    reply(answer, &name_space, call);
}

void kv_why_admin(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call)
{
    const Kvist__Admin__WhyRequest *asked = request->why;
    answer_t *answer = kv_allocate(sizeof *answer);
    answer->holder = context;
    kvist__admin__why__init(&answer->body);
    answer->store = kv_store_admin_store(context, request, call);
    if (answer->store == NULL) {
        free(answer); /* answered */
        return;
    }
    answer->block_tokens = answer->holder->block_tokens;
    if (asked->request_id[0] != '\0') {
        reply_request(answer, asked->request_id, call);
    } else {
        reply_prompt(answer, asked, call);
    }
    free(answer);
}
