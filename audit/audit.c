#include "audit/audit.h"

#include "audit/align.h"
#include "audit/order.h"
#include "audit/summary.h"
#include "audit/values.h"
#include "base/checksum.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    COUNTED_RUN_BYTES = 64, /* what is the same again counts from this length on */
    VALUES_MAX = 32,        /* in a row, before a text counts as another one */
    MARKER_BYTES_MAX = 64,  /* of a chat template, before a part's text */
};

/* Where prompts part (audit.h). A text that is no conversation has an early and a last half. */
typedef enum {
    PLACE_HEAD,
    PLACE_TEXT,
    PLACE_MIDDLE,
    PLACE_ANSWER,
    PLACE_LAST,
    PLACE_ELSEWHERE, /* a fork, or what sessions of one template need not share */
} place_t;

typedef struct {
    const kv_audit_prompt_t *was, *is;
    kv_audit_relation_t relation;
    uint32_t at;
    uint32_t from; /* of the part, or of the text: up to `at` both are equal */
    kv_audit_run_t *runs;
    uint32_t run_count;
    place_t place;
} parting_t;

/* ---- what is the same again ---- */

static uint32_t units(const kv_audit_prompt_t *prompt, uint32_t from, uint32_t end)
{
    return kv_audit_tokens_before(prompt, end) - kv_audit_tokens_before(prompt, from);
}

/* In tokens of the later prompt, from this byte of it on. */
static uint32_t repeated_units(const parting_t *parting, uint32_t from)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < parting->run_count; i++) {
        const kv_audit_run_t *run = &parting->runs[i];
        uint32_t end = run->is + run->bytes, begin = run->is > from ? run->is : from;
        if (run->bytes >= COUNTED_RUN_BYTES && begin < end) {
            count += units(parting->is, begin, end);
        }
    }
    return count;
}

static uint32_t repeated_bytes(const parting_t *parting)
{
    uint32_t bytes = 0;
    for (uint32_t i = 0; i < parting->run_count; i++) {
        bytes += parting->runs[i].bytes >= COUNTED_RUN_BYTES ? parting->runs[i].bytes : 0;
    }
    return bytes;
}

/* ---- the place ---- */

static bool parts_equal(
    const kv_audit_prompt_t *was, uint32_t one, const kv_audit_prompt_t *is, uint32_t other)
{
    uint32_t one_from = was->parts[one].at, other_from = is->parts[other].at;
    uint32_t bytes = kv_audit_part_end(was, one) - one_from;
    return bytes == kv_audit_part_end(is, other) - other_from &&
           memcmp(was->text + one_from, is->text + other_from, bytes) == 0;
}

/* A part of the earlier prompt, from this one on, that says what this one of the later does;
 * part_count: none. */
static uint32_t find_part(const parting_t *parting, uint32_t from, uint32_t other)
{
    uint32_t i = from;
    while (i < parting->was->part_count && !parts_equal(parting->was, i, parting->is, other)) {
        i++;
    }
    return i;
}

static uint32_t next_answer(const kv_audit_prompt_t *prompt, uint32_t part)
{
    while (part < prompt->part_count && prompt->parts[part].role != KV_AUDIT_ASSISTANT) {
        part++;
    }
    return part;
}

static place_t place_of(const parting_t *parting)
{
    const kv_audit_prompt_t *was = parting->was, *is = parting->is;
    if (was->part_count == 0 || is->part_count == 0) {
        return parting->at < was->bytes / 2 ? PLACE_TEXT : PLACE_LAST;
    }
    if (parting->at < kv_audit_head_bytes(was) || parting->at < kv_audit_head_bytes(is)) {
        return PLACE_HEAD;
    }
    if (parting->relation == KV_AUDIT_SAME_TEMPLATE) {
        return PLACE_ELSEWHERE;
    }
    uint32_t one = kv_audit_part_of(was, parting->at), other = kv_audit_part_of(is, parting->at);
    if (next_answer(was, one) == was->part_count) {
        return PLACE_LAST;
    }
    if (was->parts[one].role == KV_AUDIT_ASSISTANT) {
        return PLACE_ANSWER;
    }
    uint32_t answer = next_answer(is, other);
    bool kept = answer < is->part_count && find_part(parting, one, answer) < was->part_count;
    return kept ? PLACE_MIDDLE : PLACE_ELSEWHERE;
}

/* ---- kinds of differences ---- */

static bool is_blank(char byte)
{
    return isspace((unsigned char)byte) != 0;
}

/* Equal but for blanks, until both go on alike. */
static bool is_whitespace(const parting_t *parting, kv_audit_finding_t *finding)
{
    const kv_audit_prompt_t *was = parting->was, *is = parting->is;
    uint32_t one = parting->at, other = parting->at, alike = 0;
    while (alike < KV_AUDIT_RUN_MIN && one < was->bytes && other < is->bytes) {
        char left = was->text[one], right = is->text[other];
        if (left == right) {
            alike++;
            one++;
            other++;
        } else if (is_blank(left)) {
            one++;
            alike = 0;
        } else if (is_blank(right)) {
            other++;
            alike = 0;
        } else {
            return false;
        }
    }
    if (alike < KV_AUDIT_RUN_MIN) {
        return false;
    }
    finding->was = (kv_audit_span_t){parting->at, one - alike};
    finding->is = (kv_audit_span_t){parting->at, other - alike};
    return true;
}

static bool says_tools(const parting_t *parting)
{
    uint32_t from = parting->at - parting->from > 4096 ? parting->at - 4096 : parting->from;
    for (uint32_t i = from; i + 4 < parting->at; i++) {
        if (strncasecmp(parting->was->text + i, "tool", 4) == 0 ||
            strncasecmp(parting->was->text + i, "func", 4) == 0) {
            return true;
        }
    }
    return false;
}

static kv_audit_kind_t order_kind(const parting_t *parting, kv_audit_finding_t *finding)
{
    kv_reordering_t found = kv_reordering_at(parting->was->text, parting->was->bytes,
        parting->is->text, parting->is->bytes, parting->from, parting->at);
    if (found.order == KV_ORDER_OTHER) {
        return KV_AUDIT_NONE;
    }
    finding->was.end = found.was_end;
    finding->is.end = found.is_end;
    if (found.order == KV_ORDER_KEYS) {
        return KV_AUDIT_JSON_KEYS;
    }
    return found.order == KV_ORDER_TOOLS || says_tools(parting) ? KV_AUDIT_TOOLS : KV_AUDIT_OTHER;
}

static kv_value_pair_t value_at(
    const parting_t *parting, uint32_t was_at, uint32_t is_at, uint32_t back)
{
    return kv_values_at(parting->was->text, parting->was->bytes, was_at, parting->is->text,
        parting->is->bytes, is_at, back);
}

static kv_audit_kind_t value_kind(const kv_value_pair_t *value)
{
    return value->kind == KV_VALUE_TIME    ? KV_AUDIT_TIMESTAMP
           : value->kind == KV_VALUE_ID    ? KV_AUDIT_UUID
           : value->kind == KV_VALUE_COUNT ? KV_AUDIT_COUNTER
                                           : KV_AUDIT_NONE;
}

/* After this value nothing differs but values, until both go on alike. */
static bool only_values_differ(const parting_t *parting, kv_value_pair_t value)
{
    const kv_audit_prompt_t *was = parting->was, *is = parting->is;
    for (int i = 0; i < VALUES_MAX && value.kind != KV_VALUE_NONE; i++) {
        uint32_t one = value.was_end, other = value.is_end, alike = 0;
        while (alike < KV_AUDIT_RUN_MIN && one < was->bytes && other < is->bytes &&
               was->text[one] == is->text[other]) {
            alike++;
            one++;
            other++;
        }
        if (alike == KV_AUDIT_RUN_MIN) {
            return true;
        }
        value = value_at(parting, one, other, alike);
    }
    return false;
}

/* The difference's spans, where nothing better is known: from the word that it is in to where both
 * go on alike. */
static void widen(const parting_t *parting, kv_audit_finding_t *finding)
{
    const kv_audit_prompt_t *was = parting->was, *is = parting->is;
    uint32_t from = parting->at;
    while (from > parting->from && parting->at - from < 40 && !is_blank(was->text[from - 1])) {
        from--;
    }
    bool again = parting->run_count > 0;
    finding->was = (kv_audit_span_t){from, again ? parting->runs[0].was : was->bytes};
    finding->is = (kv_audit_span_t){from, again ? parting->runs[0].is : is->bytes};
}

/* ---- turns that were left out, summaries ---- */

/* The later prompt has a turn here that the earlier one has further on. */
static bool is_trimmed(const parting_t *parting)
{
    if (parting->was->part_count == 0 || parting->relation == KV_AUDIT_SAME_TEMPLATE) {
        return false;
    }
    uint32_t one = kv_audit_part_of(parting->was, parting->at);
    uint32_t other = kv_audit_part_of(parting->is, parting->at);
    return parting->was->parts[one].role != KV_AUDIT_HEAD &&
           find_part(parting, one + 1, other) < parting->was->part_count;
}

/* What a part's text is introduced by says that it sums up what was before. */
static bool is_summary(const parting_t *parting)
{
    const kv_audit_prompt_t *was = parting->was, *is = parting->is;
    if (kv_summary_governs(was->text + parting->from, parting->at - parting->from)) {
        return true;
    }
    /* It begins here: in the place of turns that are gone, or of another one. */
    if (is->part_count == 0 || parting->relation == KV_AUDIT_SAME_TEMPLATE) {
        return false;
    }
    uint32_t other = kv_audit_part_of(is, parting->at), end = kv_audit_part_end(is, other);
    uint32_t most = parting->at - parting->from < MARKER_BYTES_MAX ? 3 * MARKER_BYTES_MAX : 0;
    uint32_t look = parting->from + most < end ? most : end - parting->from;
    bool kept = other + 1 < is->part_count && find_part(parting, 0, other + 1) < was->part_count;
    return kept && most > 0 && kv_summary_opens(is->text + parting->from, look);
}

/* ---- the judgement ---- */

/* Which kinds count at a place. */
static bool counts(place_t place, kv_audit_kind_t kind)
{
    switch (place) {
    case PLACE_HEAD:
    case PLACE_TEXT:
    case PLACE_MIDDLE:
        return kind != KV_AUDIT_NONE;
    case PLACE_ANSWER:
        return kind == KV_AUDIT_UUID || kind == KV_AUDIT_WHITESPACE || kind == KV_AUDIT_JSON_KEYS;
    case PLACE_LAST:
        return kind == KV_AUDIT_TIMESTAMP || kind == KV_AUDIT_UUID || kind == KV_AUDIT_JSON_KEYS ||
               kind == KV_AUDIT_TOOLS;
    case PLACE_ELSEWHERE:
        break;
    }
    return false;
}

/* Half of what the shorter head has left comes again: not another template altogether. */
static bool is_same_head(const parting_t *parting)
{
    uint32_t one = kv_audit_head_bytes(parting->was), other = kv_audit_head_bytes(parting->is);
    uint32_t end = one < other ? one : other;
    return end <= parting->at || repeated_bytes(parting) >= (end - parting->at) / 2;
}

/* Words differ, and no value or order explains it. */
static kv_audit_kind_t words_kind(const parting_t *parting)
{
    if (parting->place == PLACE_MIDDLE) {
        return KV_AUDIT_OTHER;
    }
    if (parting->place == PLACE_HEAD) {
        return is_same_head(parting) ? KV_AUDIT_TEMPLATE : KV_AUDIT_NONE;
    }
    const kv_audit_run_t *again = &parting->runs[0];
    uint32_t least = repeated_bytes(parting) / 4;
    bool small = again->was - parting->at <= least && again->is - parting->at <= least;
    return parting->place == PLACE_TEXT && small ? KV_AUDIT_TEMPLATE : KV_AUDIT_NONE;
}

static kv_audit_kind_t judge(parting_t *parting, kv_audit_finding_t *finding)
{
    if (is_whitespace(parting, finding)) {
        parting->place = parting->was->part_count == 0 ? PLACE_TEXT : parting->place;
        return KV_AUDIT_WHITESPACE;
    }
    widen(parting, finding);
    kv_audit_kind_t kind = order_kind(parting, finding);
    if (kind != KV_AUDIT_NONE) {
        return kind;
    }
    kv_value_pair_t value =
        value_at(parting, parting->at, parting->at, parting->at - parting->from);
    kind = value_kind(&value);
    /* A number that words follow is part of another text. */
    bool loose = parting->place == PLACE_HEAD && kind != KV_AUDIT_COUNTER;
    bool only_values = kind != KV_AUDIT_NONE && only_values_differ(parting, value);
    if (!only_values && is_trimmed(parting)) {
        parting->place = PLACE_MIDDLE;
        return KV_AUDIT_HISTORY;
    }
    bool asked = parting->place == PLACE_LAST && parting->was->part_count > 0;
    if (!only_values && !asked && is_summary(parting)) {
        parting->place = PLACE_MIDDLE;
        return KV_AUDIT_SUMMARY;
    }
    if (only_values || (loose && kind != KV_AUDIT_NONE)) {
        finding->was = (kv_audit_span_t){value.was_from, value.was_end};
        finding->is = (kv_audit_span_t){value.is_from, value.is_end};
        return kind;
    }
    return words_kind(parting);
}

/* The words before it, digits aside. */
static uint32_t place_hash(const parting_t *parting, uint32_t at)
{
    char text[24];
    uint32_t count = 0;
    for (uint32_t i = at; i > parting->from && count < sizeof text; i--) {
        char byte = parting->is->text[i - 1];
        if (!isdigit((unsigned char)byte)) {
            text[count++] = byte;
        }
    }
    return (uint32_t)kv_checksum(text, count);
}

/* By what they say: one conversation if most of what follows the head is in both. */
static kv_audit_relation_t relation_of(const parting_t *parting)
{
    uint32_t head = kv_audit_head_bytes(parting->was), shared = 0;
    for (uint32_t i = 0; i < parting->run_count; i++) {
        const kv_audit_run_t *run = &parting->runs[i];
        shared += run->was >= head ? run->bytes : 0;
    }
    shared += parting->at > head ? parting->at - head : 0;
    return 2 * shared > parting->was->bytes - head ? KV_AUDIT_SAME_SESSION : KV_AUDIT_SAME_TEMPLATE;
}

static bool finish(parting_t *parting, kv_audit_finding_t *finding)
{
    const kv_audit_prompt_t *is = parting->is;
    if (parting->relation == KV_AUDIT_LIKENESS) {
        parting->relation = relation_of(parting);
    }
    parting->place = place_of(parting);
    finding->kind = judge(parting, finding);
    if (!counts(parting->place, finding->kind)) {
        return false;
    }
    bool moved = finding->kind == KV_AUDIT_JSON_KEYS || finding->kind == KV_AUDIT_TOOLS;
    uint32_t from = moved ? finding->is.end : parting->at;
    finding->cost = repeated_units(parting, from) + (moved ? units(is, parting->at, from) : 0);
    finding->byte = parting->at;
    finding->token = kv_audit_tokens_before(is, parting->at);
    finding->place = place_hash(parting, finding->is.from);
    return finding->cost >=
           (is->token_count > 0 ? KV_AUDIT_COST_TOKENS_MIN : KV_AUDIT_COST_BYTES_MIN);
}

bool kv_audit_compare(const kv_audit_prompt_t *was, const kv_audit_prompt_t *is,
    kv_audit_relation_t relation, kv_audit_finding_t *finding_out)
{
    uint32_t at = kv_audit_shared_bytes(was, is);
    if (at == was->bytes || at == is->bytes) {
        return false;
    }
    while (at > 0 && ((uint8_t)is->text[at] & 0xc0) == 0x80) {
        at--; /* not inside of a character */
    }
    parting_t parting = {.was = was, .is = is, .relation = relation, .at = at};
    if (was->part_count > 0) {
        parting.from = was->parts[kv_audit_part_of(was, at)].at;
    }
    kv_audit_finding_t finding = {0};
    parting.run_count = kv_audit_align(was, is, at, &parting.runs);
    bool found = parting.run_count > 0 && finish(&parting, &finding);
    free(parting.runs);
    if (found) {
        *finding_out = finding;
    }
    return found;
}
