#include "tools/kvist/why_text.h"

#include "base/memory.h"
#include "tools/kvist/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_BEFORE = 6, TOKENS_AFTER = 10, SENTENCE_BYTES = 640 };

/* ---- the reason ---- */

static bool is(const char *reason, const char *name)
{
    size_t bytes = strcspn(reason, ":");
    return strlen(name) == bytes && memcmp(reason, name, bytes) == 0;
}

char *kv_why_reason(const Kvist__Admin__Why *why, char reason_out[KV_WHY_REASON_BYTES])
{
    if (is(why->reason, "diverged")) {
        snprintf(reason_out, KV_WHY_REASON_BYTES, "diverged@%u", why->token);
    } else if (is(why->reason, "namespace")) {
        snprintf(reason_out, KV_WHY_REASON_BYTES, "namespace:%s", why->fields);
    } else {
        snprintf(reason_out, KV_WHY_REASON_BYTES, "%s", why->reason);
    }
    return reason_out;
}

/* ---- in words ---- */

static void say_maker(const Kvist__Admin__Why *why, char *text_out)
{
    char tenant[80] = "";
    if (!why->maker_known && why->by_request[0] == '\0') {
        snprintf(text_out, SENTENCE_BYTES, "for whom is not known");
        return;
    }
    if (why->by_tenant[0] != '\0') {
        snprintf(tenant, sizeof tenant, " of tenant %.40s", why->by_tenant);
    }
    if (why->by_request[0] != '\0') {
        snprintf(text_out, SENTENCE_BYTES, "to make room for request %.80s%s%s%.40s",
            why->by_request, tenant, why->by_class[0] != '\0' ? ", class " : "", why->by_class);
    } else {
        snprintf(text_out, SENTENCE_BYTES, "to make room for what %.40s%s wrote last, class %.40s",
            why->by_origin, tenant, why->by_class);
    }
}

static void say_evicted(const Kvist__Admin__Why *why, const char *reason, char *means, char *todo)
{
    char when[KV_TEXT_BYTES], maker[SENTENCE_BYTES];
    kv_text_time(why->when_unix_ns, when);
    if (why->dropped) {
        snprintf(means, SENTENCE_BYTES, "Block %u was stored; it was dropped on request at %s.",
            why->block, when);
        snprintf(todo, SENTENCE_BYTES, "nothing: somebody asked for that (kvist drop)");
        return;
    }
    const char *tier = strchr(reason, ':') != NULL ? strchr(reason, ':') + 1 : "its last tier";
    say_maker(why, maker);
    snprintf(means, SENTENCE_BYTES,
        "Block %u was stored; its last copy left the %s tier at %s, %.400s.", why->block, tier,
        when, maker);
    snprintf(todo, SENTENCE_BYTES,
        "more room there (store.%s_bytes), a promise (kvist pin), a better class, or a quota for "
        "who took the room",
        strcmp(tier, "device") == 0 || strcmp(tier, "host") == 0 ? tier : "disk");
}

static void say_diverged(const Kvist__Admin__Why *why, char *means, char *todo)
{
    if (why->extra_differs) {
        snprintf(means, SENTENCE_BYTES,
            "Block %u is stored with the same tokens and another extra key: block %.16s.",
            why->block, why->other_key);
        snprintf(todo, SENTENCE_BYTES,
            "nothing: what the extra key stands for (an image, say) is another one");
        return;
    }
    snprintf(means, SENTENCE_BYTES,
        "%s token %u (block %u) a stored context goes on otherwise: block %.16s.",
        why->token_known ? "The prompt is as one that is stored up to there; at"
                         : "Not all that is stored there was compared; at the earliest at",
        why->token, why->block, why->other_key);
    snprintf(todo, SENTENCE_BYTES,
        "look at what differs: a time or an id early in the prompt, keys or tools in another "
        "order, a rewritten summary; what changes belongs at the end");
}

static void say_namespace(const Kvist__Admin__Why *why, char *means, char *todo)
{
    bool unknown = strcmp(why->fields, "unknown") == 0;
    snprintf(means, SENTENCE_BYTES,
        "%u blocks of it are stored under another namespace, %.16s; what differs: %s.",
        why->other_blocks, why->other_name_space,
        unknown ? "not known (it was not asked for since the node started)" : why->fields);
    snprintf(todo, SENTENCE_BYTES,
        "send the same salt (kvist.salt) and model if the two may share; else nothing: that is "
        "what they are apart for");
}

/* Reasons whose words are always the same. */
static const struct {
    const char *reason, *means, *todo;
} PLAIN[] = {
    {"none", "All that could be found was; the last token is always computed.", "nothing"},
    {"short", "What is left is less than a block.", "nothing"},
    {"pending", "Another request was storing the next block just then.",
        "nothing: the next one finds it"},
    {"bypassed", "The request did not want the cache.", "leave out its cache mode"},
    {"failed", "It is held, but could not be read, or another node did not send it, then.",
        "see the node's log; it stays stored"},
    {"cancelled", "The request ended before that was known.", "nothing"},
};

static bool say_plain(const char *reason, char *means, char *todo)
{
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++) {
        if (is(reason, PLAIN[i].reason)) {
            snprintf(means, SENTENCE_BYTES, "%s", PLAIN[i].means);
            snprintf(todo, SENTENCE_BYTES, "%s", PLAIN[i].todo);
            return true;
        }
    }
    return false;
}

/* Reasons that name a time. */
static void say_gone(const Kvist__Admin__Why *why, const char *reason, char *means, char *todo)
{
    char when[KV_TEXT_BYTES] = "a time that is not known";
    if (why->when_unix_ns != 0) {
        kv_text_time(why->when_unix_ns, when);
    }
    if (is(reason, "new")) {
        snprintf(means, SENTENCE_BYTES,
            "Block %u was never stored here, or went before %s: of that nothing is known.",
            why->block, when);
        snprintf(todo, SENTENCE_BYTES, "nothing: the next request with this prompt finds it");
    } else if (is(reason, "expired")) {
        snprintf(means, SENTENCE_BYTES, "Block %u was stored until its limit; it went at %s.",
            why->block, when);
        snprintf(todo, SENTENCE_BYTES, "a later expiry when it is stored");
    } else if (is(reason, "damaged")) {
        snprintf(means, SENTENCE_BYTES,
            "Block %u was stored; its bytes proved wrong at %s, and it was forgotten with what "
            "goes on from it.",
            why->block, when);
        snprintf(todo, SENTENCE_BYTES, "look after the drive (kvist verify reads everything)");
    } else {
        snprintf(means, SENTENCE_BYTES,
            "Block %u was stored, kept off the disk by its write budget, and gone from memory at "
            "%s.",
            why->block, when);
        snprintf(todo, SENTENCE_BYTES,
            "a larger budget (store.write_bytes_per_day), or ask for it a second time");
    }
}

static void say_other_node(
    const Kvist__Admin__Why *why, const char *reason, char *means, char *todo)
{
    bool cheaper = is(reason, "cheaper");
    snprintf(means, SENTENCE_BYTES, "%s %s %u more blocks; %s.", why->holder,
        cheaper ? "held" : "was thought to hold", why->holder_blocks,
        cheaper ? "computing them was thought to be quicker than fetching"
                : "it was not asked: it drains, or has no data link");
    snprintf(todo, SENTENCE_BYTES,
        cheaper ? "nothing, or a faster network" : "kvist status shows links and draining nodes");
}

static void say(const Kvist__Admin__Why *why, const char *reason, char *means, char *todo)
{
    if (say_plain(reason, means, todo)) {
        return;
    }
    if (is(reason, "evicted")) {
        say_evicted(why, reason, means, todo);
    } else if (is(reason, "diverged")) {
        say_diverged(why, means, todo);
    } else if (is(reason, "namespace")) {
        say_namespace(why, means, todo);
    } else if (is(reason, "elsewhere") || is(reason, "cheaper")) {
        say_other_node(why, reason, means, todo);
    } else {
        say_gone(why, reason, means, todo);
    }
}

/* ---- both sides ---- */

/* The text of tokens first .. end - 1; what is no UTF-8 alone is left out by the printer. */
static char *text_of(
    const kv_tokenizer_t *tokenizer, const uint32_t *tokens, uint32_t first, uint32_t end)
{
    size_t used = 0;
    char *text = kv_allocate(1);
    for (uint32_t i = first; tokenizer != NULL && i < end; i++) {
        const char *bytes;
        size_t count;
        if (kv_tokenizer_piece(tokenizer, tokens[i], true, &bytes, &count) == KV_OK) {
            text = kv_reallocate(text, used + count + 1, 1);
            memcpy(text + used, bytes, count);
            used += count;
        }
    }
    text[used] = '\0';
    return text;
}

static void print_side(const char *name, const Kvist__Admin__Why *why, const uint32_t *tokens,
    size_t count, const kv_tokenizer_t *tokenizer)
{
    uint32_t parts = why->token - why->block * why->block_tokens;
    uint32_t first = parts > TOKENS_BEFORE ? parts - TOKENS_BEFORE : 0;
    uint32_t end = parts + TOKENS_AFTER < count ? parts + TOKENS_AFTER : (uint32_t)count;
    printf("    %-10s", name);
    for (uint32_t i = first; i < end; i++) {
        printf("%s%u", i == parts ? " | " : " ", tokens[i]);
    }
    putchar('\n');
    if (tokenizer != NULL) {
        char *before = text_of(tokenizer, tokens, first, parts);
        char *after = text_of(tokenizer, tokens, parts, end);
        json_t *left = json_string(before), *right = json_string(after); /* NULL: no UTF-8 */
        char *left_text = left != NULL ? json_dumps(left, JSON_ENCODE_ANY) : NULL;
        char *right_text = right != NULL ? json_dumps(right, JSON_ENCODE_ANY) : NULL;
        printf("    %-10s %s | %s\n", "", left_text != NULL ? left_text : "(bytes)",
            right_text != NULL ? right_text : "(bytes)");
        free(left_text);
        free(right_text);
        json_decref(left);
        json_decref(right);
        free(before);
        free(after);
    }
}

/* ---- whole answers ---- */

static uint32_t cached(const Kvist__Admin__Why *why)
{
    return why->device_tokens + why->host_tokens + why->disk_tokens + why->remote_tokens;
}

void kv_why_print(const char *node, const Kvist__Admin__Why *why, const kv_tokenizer_t *tokenizer)
{
    char reason[KV_WHY_REASON_BYTES], means[SENTENCE_BYTES], todo[SENTENCE_BYTES];
    char ended[KV_TEXT_BYTES];
    if (why->request_id[0] != '\0') {
        printf("%s: request %s, %s at %s\n", node, why->request_id, why->outcome,
            kv_text_time(why->ended_unix_ns, ended));
    } else {
        printf("%s: now\n", node);
    }
    printf("  cached     %u of %u tokens: device %u, host %u, disk %u, remote %u\n", cached(why),
        why->token_count, why->device_tokens, why->host_tokens, why->disk_tokens,
        why->remote_tokens);
    printf("  miss       %s\n", kv_why_reason(why, reason));
    say(why, why->reason, means, todo);
    if (why->said[0] != '\0') {
        printf("  by         %s, which computed the prompt: ask it (--node)\n", why->prefilled_by);
    } else {
        printf("  means      %s\n  what to do %s\n", means, todo);
    }
    if (strcmp(why->here, why->reason) != 0 && why->here[0] != '\0') {
        say(why, why->here, means, todo);
        printf("  here       %s: %s\n", why->here, means);
    }
    if (why->n_own_tokens > 0) {
        print_side("asked", why, why->own_tokens, why->n_own_tokens, tokenizer);
        print_side("stored", why, why->other_tokens, why->n_other_tokens, tokenizer);
    }
    if (why->request_id[0] == '\0' && why->holder[0] != '\0') {
        printf("  elsewhere  %s is thought to hold %u of the blocks that follow\n", why->holder,
            why->holder_blocks);
    }
}

static json_t *pack_tokens(const uint32_t *tokens, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(array, json_integer(tokens[i]));
    }
    return array;
}

static void pack_parting(json_t *row, const Kvist__Admin__Why *why, const kv_tokenizer_t *tokenizer)
{
    uint32_t parts = why->token - why->block * why->block_tokens;
    json_object_set_new(row, "token", json_integer(why->token));
    json_object_set_new(row, "token_known", json_boolean(why->token_known));
    json_object_set_new(row, "extra_differs", json_boolean(why->extra_differs));
    json_object_set_new(row, "other_key", json_string(why->other_key));
    json_object_set_new(row, "tokens", pack_tokens(why->own_tokens, why->n_own_tokens));
    json_object_set_new(row, "other_tokens", pack_tokens(why->other_tokens, why->n_other_tokens));
    if (tokenizer != NULL && why->n_own_tokens > 0) {
        char *own = text_of(tokenizer, why->own_tokens, parts, (uint32_t)why->n_own_tokens);
        char *other = text_of(tokenizer, why->other_tokens, parts, (uint32_t)why->n_other_tokens);
        json_object_set_new(row, "text", json_string(own));
        json_object_set_new(row, "other_text", json_string(other));
        free(own);
        free(other);
    }
}

static void pack_maker(json_t *row, const Kvist__Admin__Why *why)
{
    json_object_set_new(row, "dropped", json_boolean(why->dropped));
    json_object_set_new(row, "by",
        json_pack("{s:s, s:s, s:s, s:s}", "request", why->by_request, "tenant", why->by_tenant,
            "class", why->by_class, "origin", why->by_origin));
}

json_t *kv_why_pack(const char *node, const Kvist__Admin__Why *why, const kv_tokenizer_t *tokenizer)
{
    char reason[KV_WHY_REASON_BYTES], means[SENTENCE_BYTES], todo[SENTENCE_BYTES];
    say(why, why->reason, means, todo);
    json_t *row = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:{s:i, s:i, s:i, s:i}, s:i, "
                            "s:I, s:s, s:s}",
        "node", node, "request", why->request_id, "outcome", why->outcome, "name_space",
        why->name_space, "miss", kv_why_reason(why, reason), "here", why->here, "prompt_tokens",
        (int)why->token_count, "cached_tokens", (int)cached(why), "cached", "device",
        (int)why->device_tokens, "host", (int)why->host_tokens, "disk", (int)why->disk_tokens,
        "remote", (int)why->remote_tokens, "block", (int)why->block, "when_unix_ns",
        (json_int_t)why->when_unix_ns, "means", means, "what_to_do", todo);
    if (is(why->here, "diverged")) {
        pack_parting(row, why, tokenizer);
    }
    if (is(why->here, "evicted") || is(why->here, "not-admitted")) {
        pack_maker(row, why);
    }
    if (is(why->reason, "namespace")) {
        json_object_set_new(row, "other_name_space", json_string(why->other_name_space));
        json_object_set_new(row, "other_blocks", json_integer(why->other_blocks));
    }
    if (why->holder[0] != '\0') {
        json_object_set_new(row, "holder", json_string(why->holder));
        json_object_set_new(row, "holder_blocks", json_integer(why->holder_blocks));
    }
    if (why->said[0] != '\0') {
        json_object_set_new(row, "prefilled_by", json_string(why->prefilled_by));
    }
    return row;
}
