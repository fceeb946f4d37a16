#include "audit/ledger.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CANDIDATES_MAX = 16,
    NEAR_BYTES = 256,     /* prefixes that differ by less are as long as each other */
    BEFORE_BYTES = 96,    /* of the text around a difference that is kept to be shown */
    SIDE_BYTES = 240,     /* of each side; */
    AFTER_BYTES = 64,     /* behind it */
    TEXT_BYTES_MAX = 260, /* the longest of these, with what says that it was cut */
};

static const double LIKENESS_MIN = 0.25;

struct kv_ledger_prompt {
    kv_audit_prompt_t prompt;
    uint64_t scope;
    char tenant[KV_LEDGER_NAME_BYTES], session[KV_LEDGER_NAME_BYTES];
    char template_name[KV_LEDGER_NAME_BYTES], id[KV_LEDGER_NAME_BYTES];
    uint32_t holds; /* the ledger's list and those who compare with it */
    kv_audit_finding_t finding;
    kv_ledger_prompt_t *predecessor; /* held, until it is kept or forgotten */
};

typedef struct {
    kv_audit_kind_t kind;
    uint32_t place, token;
    uint64_t scope, count, cost;
    double cost_ns;
    bool priced, in_tokens;
    uint64_t first_unix_ms, last_unix_ms, turn;
    char tenant[KV_LEDGER_NAME_BYTES], session[KV_LEDGER_NAME_BYTES];
    char template_name[KV_LEDGER_NAME_BYTES];
    char was_id[KV_LEDGER_NAME_BYTES], is_id[KV_LEDGER_NAME_BYTES];
    char before[TEXT_BYTES_MAX], was[TEXT_BYTES_MAX], is[TEXT_BYTES_MAX], after[TEXT_BYTES_MAX];
} row_t;

struct kv_ledger {
    pthread_mutex_t mutex;
    uint64_t bytes_max, bytes, turn;
    kv_ledger_prompt_t *prompts[KV_LEDGER_PROMPTS_MAX]; /* a ring, oldest at `oldest` */
    uint32_t oldest, count;
    row_t *rows;
    uint32_t row_count;
    kv_ledger_totals_t totals;
};

kv_ledger_t *kv_ledger_create(uint64_t bytes_max)
{
    kv_ledger_t *ledger = kv_allocate(sizeof *ledger);
    pthread_mutex_init(&ledger->mutex, NULL);
    ledger->bytes_max = bytes_max;
    ledger->rows = kv_allocate_array(KV_LEDGER_FINDINGS_MAX, sizeof *ledger->rows);
    return ledger;
}

static void release(kv_ledger_prompt_t *prompt)
{
    if (prompt != NULL && --prompt->holds == 0) {
        kv_audit_prompt_clear(&prompt->prompt);
        free(prompt);
    }
}

static uint64_t size_of(const kv_ledger_prompt_t *prompt)
{
    return sizeof *prompt + prompt->prompt.text_capacity +
           prompt->prompt.token_capacity * sizeof(uint32_t) +
           prompt->prompt.part_capacity * sizeof(kv_audit_part_t);
}

static void drop_oldest(kv_ledger_t *ledger)
{
    kv_ledger_prompt_t *prompt = ledger->prompts[ledger->oldest];
    ledger->bytes -= size_of(prompt);
    ledger->oldest = (ledger->oldest + 1) % KV_LEDGER_PROMPTS_MAX;
    ledger->count--;
    release(prompt);
}

void kv_ledger_destroy(kv_ledger_t *ledger)
{
    if (ledger == NULL) {
        return;
    }
    while (ledger->count > 0) {
        drop_oldest(ledger);
    }
    pthread_mutex_destroy(&ledger->mutex);
    free(ledger->rows);
    free(ledger);
}

/* ---- the predecessor ---- */

/* Those that may be it: the latest of the same session, else of the same template, else of the same
 * names as far as it has any. */
typedef struct {
    kv_ledger_prompt_t *items[CANDIDATES_MAX];
    uint32_t count;
    kv_audit_relation_t relation;
} candidates_t;

typedef bool (*belongs_t)(const kv_ledger_prompt_t *earlier, const kv_ledger_prompt_t *prompt);

static bool same_session(const kv_ledger_prompt_t *earlier, const kv_ledger_prompt_t *prompt)
{
    return prompt->session[0] != '\0' && strcmp(earlier->session, prompt->session) == 0;
}

static bool same_template(const kv_ledger_prompt_t *earlier, const kv_ledger_prompt_t *prompt)
{
    return prompt->template_name[0] != '\0' &&
           strcmp(earlier->template_name, prompt->template_name) == 0;
}

static bool alike(const kv_ledger_prompt_t *earlier, const kv_ledger_prompt_t *prompt)
{
    return prompt->template_name[0] == '\0' && earlier->template_name[0] == '\0' &&
           kv_audit_likeness(&earlier->prompt, &prompt->prompt) >= LIKENESS_MIN;
}

static void collect(const kv_ledger_t *ledger, const kv_ledger_prompt_t *prompt, belongs_t belongs,
    candidates_t *candidates)
{
    for (uint32_t i = ledger->count; i-- > 0 && candidates->count < CANDIDATES_MAX;) {
        kv_ledger_prompt_t *earlier = ledger->prompts[(ledger->oldest + i) % KV_LEDGER_PROMPTS_MAX];
        if (earlier->scope == prompt->scope && belongs(earlier, prompt)) {
            earlier->holds++;
            candidates->items[candidates->count++] = earlier;
        }
    }
}

static void choose_candidates(
    kv_ledger_t *ledger, const kv_ledger_prompt_t *prompt, candidates_t *candidates)
{
    static const belongs_t WAYS[] = {same_session, same_template, alike};
    bool named = prompt->session[0] != '\0';
    const kv_audit_relation_t relations[] = {KV_AUDIT_SAME_SESSION,
        named ? KV_AUDIT_SAME_TEMPLATE : KV_AUDIT_LIKENESS,
        named ? KV_AUDIT_SAME_TEMPLATE : KV_AUDIT_LIKENESS};
    pthread_mutex_lock(&ledger->mutex);
    for (int i = 0; i < 3 && candidates->count == 0; i++) {
        candidates->relation = relations[i];
        collect(ledger, prompt, WAYS[i], candidates);
    }
    pthread_mutex_unlock(&ledger->mutex);
}

/* The longest prefix; among those near it the most alike, and then the latest. */
static uint32_t choose(const candidates_t *candidates, const kv_ledger_prompt_t *prompt)
{
    uint32_t shared[CANDIDATES_MAX], most = 0, best = 0;
    double best_likeness = -1.0;
    for (uint32_t i = 0; i < candidates->count; i++) {
        shared[i] = kv_audit_shared_bytes(&candidates->items[i]->prompt, &prompt->prompt);
        most = shared[i] > most ? shared[i] : most;
    }
    for (uint32_t i = 0; i < candidates->count; i++) {
        double likeness = kv_audit_likeness(&candidates->items[i]->prompt, &prompt->prompt);
        if (shared[i] + NEAR_BYTES > most && likeness > best_likeness) {
            best = i;
            best_likeness = likeness;
        }
    }
    return best;
}

kv_ledger_prompt_t *kv_ledger_look(
    kv_ledger_t *ledger, const kv_ledger_names_t *names, kv_audit_prompt_t *prompt)
{
    kv_ledger_prompt_t *looked = kv_allocate(sizeof *looked);
    looked->prompt = *prompt;
    *prompt = (kv_audit_prompt_t){0};
    looked->scope = names->scope;
    looked->holds = 1;
    snprintf(looked->tenant, sizeof looked->tenant, "%s", names->tenant);
    snprintf(looked->session, sizeof looked->session, "%s", names->session);
    snprintf(looked->template_name, sizeof looked->template_name, "%s", names->template_name);
    snprintf(looked->id, sizeof looked->id, "%s", names->id);
    candidates_t candidates = {0};
    choose_candidates(ledger, looked, &candidates);
    if (candidates.count == 0) {
        return looked;
    }
    uint32_t best = choose(&candidates, looked);
    kv_ledger_prompt_t *predecessor = candidates.items[best];
    kv_audit_compare(&predecessor->prompt, &looked->prompt, candidates.relation, &looked->finding);
    looked->predecessor = predecessor;
    pthread_mutex_lock(&ledger->mutex);
    for (uint32_t i = 0; i < candidates.count; i++) {
        if (i != best) {
            release(candidates.items[i]);
        }
    }
    pthread_mutex_unlock(&ledger->mutex);
    return looked;
}

const kv_audit_finding_t *kv_ledger_finding(const kv_ledger_prompt_t *prompt)
{
    return prompt != NULL && prompt->finding.kind != KV_AUDIT_NONE ? &prompt->finding : NULL;
}

/* ---- rows ---- */

/* What a prompt says from here to there, as text that is shown: whole characters, valid UTF-8. */
static void excerpt(const kv_audit_prompt_t *prompt, uint32_t from, uint32_t end,
    uint32_t bytes_max, char text_out[TEXT_BYTES_MAX])
{
    bool cut = end - from > bytes_max;
    end = cut ? from + bytes_max : end;
    size_t bytes = 0;
    for (uint32_t i = from; i < end;) {
        size_t length = kv_utf8_length(prompt->text + i, end - i);
        if (length == 0 && end - i < 4 && cut) {
            break; /* the character that the cut goes through */
        }
        if (length == 0 || prompt->text[i] == '\0') {
            text_out[bytes++] = '?';
            i++;
            continue;
        }
        memcpy(text_out + bytes, prompt->text + i, length);
        bytes += length;
        i += (uint32_t)length;
    }
    snprintf(text_out + bytes, TEXT_BYTES_MAX - bytes, "%s", cut ? "..." : "");
}

static uint32_t character_start(const kv_audit_prompt_t *prompt, uint32_t at)
{
    while (at < prompt->bytes && ((uint8_t)prompt->text[at] & 0xc0) == 0x80) {
        at++;
    }
    return at;
}

static void show(row_t *row, const kv_ledger_prompt_t *prompt)
{
    const kv_audit_finding_t *finding = &prompt->finding;
    const kv_audit_prompt_t *was = &prompt->predecessor->prompt, *is = &prompt->prompt;
    uint32_t from = finding->is.from > BEFORE_BYTES ? finding->is.from - BEFORE_BYTES : 0;
    from = character_start(is, from);
    excerpt(is, from, finding->is.from, BEFORE_BYTES, row->before);
    excerpt(was, finding->was.from, finding->was.end, SIDE_BYTES, row->was);
    excerpt(is, finding->is.from, finding->is.end, SIDE_BYTES, row->is);
    uint32_t after = finding->is.end + AFTER_BYTES;
    after = after < is->bytes ? character_start(is, after) : is->bytes;
    excerpt(is, finding->is.end, after, AFTER_BYTES + 4, row->after);
    row->token = finding->token;
    row->in_tokens = is->token_count > 0;
    memcpy(row->session, prompt->session, sizeof row->session);
    memcpy(row->was_id, prompt->predecessor->id, sizeof row->was_id);
    memcpy(row->is_id, prompt->id, sizeof row->is_id);
}

/* The finding's row: the same kind at the same place of the same template. */
static row_t *row_of(kv_ledger_t *ledger, const kv_ledger_prompt_t *prompt)
{
    row_t *oldest = ledger->rows;
    for (uint32_t i = 0; i < ledger->row_count; i++) {
        row_t *row = &ledger->rows[i];
        if (row->kind == prompt->finding.kind && row->place == prompt->finding.place &&
            row->scope == prompt->scope && strcmp(row->template_name, prompt->template_name) == 0) {
            return row;
        }
        oldest = row->turn < oldest->turn ? row : oldest;
    }
    row_t *row =
        ledger->row_count < KV_LEDGER_FINDINGS_MAX ? &ledger->rows[ledger->row_count++] : oldest;
    *row = (row_t){.kind = prompt->finding.kind,
        .place = prompt->finding.place,
        .scope = prompt->scope,
        .priced = true};
    memcpy(row->tenant, prompt->tenant, sizeof row->tenant);
    memcpy(row->template_name, prompt->template_name, sizeof row->template_name);
    return row;
}

static void count_finding(kv_ledger_t *ledger, const kv_ledger_prompt_t *prompt, uint64_t cost,
    double ns_per_unit, uint64_t unix_ms)
{
    row_t *row = row_of(ledger, prompt);
    show(row, prompt);
    row->first_unix_ms = row->count == 0 ? unix_ms : row->first_unix_ms;
    row->last_unix_ms = unix_ms;
    row->count++;
    row->cost += cost;
    row->cost_ns += (double)cost * ns_per_unit;
    row->priced &= ns_per_unit > 0.0;
    row->turn = ++ledger->turn;
    ledger->totals.findings++;
    ledger->totals.cost += cost;
}

/* ---- prompts come and go ---- */

static void add(kv_ledger_t *ledger, kv_ledger_prompt_t *prompt)
{
    uint64_t bytes = size_of(prompt);
    if (bytes > ledger->bytes_max) {
        release(prompt);
        return;
    }
    while (ledger->count == KV_LEDGER_PROMPTS_MAX || ledger->bytes + bytes > ledger->bytes_max) {
        drop_oldest(ledger);
    }
    ledger->prompts[(ledger->oldest + ledger->count++) % KV_LEDGER_PROMPTS_MAX] = prompt;
    ledger->bytes += bytes;
}

void kv_ledger_keep(kv_ledger_t *ledger, kv_ledger_prompt_t *prompt, uint64_t units_max,
    double ns_per_unit, uint64_t unix_ms)
{
    pthread_mutex_lock(&ledger->mutex);
    uint64_t cost = prompt->finding.cost < units_max ? prompt->finding.cost : units_max;
    if (prompt->finding.kind != KV_AUDIT_NONE && cost > 0) {
        count_finding(ledger, prompt, cost, ns_per_unit, unix_ms);
    }
    ledger->totals.prompts++;
    ledger->totals.compared += prompt->predecessor != NULL;
    release(prompt->predecessor);
    prompt->predecessor = NULL;
    add(ledger, prompt);
    pthread_mutex_unlock(&ledger->mutex);
}

void kv_ledger_forget(kv_ledger_t *ledger, kv_ledger_prompt_t *prompt)
{
    if (prompt == NULL) {
        return;
    }
    pthread_mutex_lock(&ledger->mutex);
    release(prompt->predecessor);
    release(prompt);
    pthread_mutex_unlock(&ledger->mutex);
}

/* ---- told ---- */

kv_ledger_totals_t kv_ledger_totals(kv_ledger_t *ledger)
{
    pthread_mutex_lock(&ledger->mutex);
    kv_ledger_totals_t totals = ledger->totals;
    pthread_mutex_unlock(&ledger->mutex);
    return totals;
}

static json_t *text_or_null(const char *text)
{
    return text[0] != '\0' ? json_string(text) : json_null();
}

static json_t *tell(const row_t *row)
{
    json_t *told = json_pack("{s:s, s:o, s:o, s:o, s:s, s:I, s:I, s:I, s:o}", "kind",
        kv_audit_kind_name(row->kind), "tenant", text_or_null(row->tenant), "template",
        text_or_null(row->template_name), "session", text_or_null(row->session), "unit",
        row->in_tokens ? "tokens" : "bytes", "at", (json_int_t)row->token, "count",
        (json_int_t)row->count, "cost", (json_int_t)row->cost, "cost_seconds",
        row->priced ? json_real(row->cost_ns / 1e9) : json_null());
    json_t *shown = json_pack("{s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "first_unix_ms",
        (json_int_t)row->first_unix_ms, "last_unix_ms", (json_int_t)row->last_unix_ms, "before",
        row->before, "was", row->was, "is", row->is, "after", row->after, "was_request",
        row->was_id, "is_request", row->is_id, "do", kv_audit_advice(row->kind));
    json_object_update_missing(told, shown);
    json_decref(shown);
    return told;
}

static int dearer(const void *one, const void *other)
{
    const row_t *left = *(row_t *const *)one, *right = *(row_t *const *)other;
    return left->cost == right->cost ? 0 : left->cost < right->cost ? 1 : -1;
}

json_t *kv_ledger_rows(kv_ledger_t *ledger, uint32_t count_max,
    bool (*may_see)(void *context, const char *tenant), void *context)
{
    json_t *told = json_array();
    const row_t *seen[KV_LEDGER_FINDINGS_MAX];
    uint32_t count = 0;
    pthread_mutex_lock(&ledger->mutex);
    for (uint32_t i = 0; i < ledger->row_count; i++) {
        if (may_see(context, ledger->rows[i].tenant)) {
            seen[count++] = &ledger->rows[i];
        }
    }
    qsort(seen, count, sizeof seen[0], dearer);
    for (uint32_t i = 0; i < count && i < count_max; i++) {
        json_array_append_new(told, tell(seen[i]));
    }
    pthread_mutex_unlock(&ledger->mutex);
    return told;
}
