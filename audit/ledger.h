/* The prompts that were seen lately, for the next one to be compared with, and what was found.
 *
 *   look: which of them is its predecessor? --> compared --> a finding, or none
 *   keep: it was computed: a predecessor from now on; its finding counts
 *
 * The predecessor is, of the same scope (who may share KV), one of the same session; where there is
 * none, one of the same template; for a prompt with neither name one that says much the same. Of
 * several it is the one with the longest prefix in common, and of those the most alike.
 *
 * Owns: copies of all it is told; prompts while they are kept or compared.
 * Threads: any; a mutex guards the lists, and is never held while prompts are compared.
 * Errors: none.
 * Limits: bytes_max of prompts and KV_LEDGER_PROMPTS_MAX of them, the oldest leave;
 * KV_LEDGER_FINDINGS_MAX rows, the one that was seen longest ago leaves. */
#ifndef KV_AUDIT_LEDGER_H
#define KV_AUDIT_LEDGER_H

#include "audit/audit.h"

#include <jansson.h>

enum {
    KV_LEDGER_PROMPTS_MAX = 1024,
    KV_LEDGER_FINDINGS_MAX = 256,
    KV_LEDGER_NAME_BYTES = 129,
};

typedef struct kv_ledger kv_ledger_t;

/* A prompt that is being looked at: kv_ledger_keep or kv_ledger_forget takes it back. */
typedef struct kv_ledger_prompt kv_ledger_prompt_t;

/* "" where there is no name. */
typedef struct {
    uint64_t scope; /* only prompts of one scope are compared */
    const char *tenant, *session, *template_name;
    const char *id; /* of the request, or the line */
} kv_ledger_names_t;

typedef struct {
    uint64_t prompts;  /* kept */
    uint64_t compared; /* of those that had a predecessor */
    uint64_t findings;
    uint64_t cost; /* of all findings: tokens (bytes where there is no tokenizer) */
} kv_ledger_totals_t;

kv_ledger_t *kv_ledger_create(uint64_t bytes_max);
void kv_ledger_destroy(kv_ledger_t *ledger);

/* Takes the prompt's memory. */
kv_ledger_prompt_t *kv_ledger_look(
    kv_ledger_t *ledger, const kv_ledger_names_t *names, kv_audit_prompt_t *prompt);

/* NULL: there was none. */
const kv_audit_finding_t *kv_ledger_finding(const kv_ledger_prompt_t *prompt);

/* units_max: no more was computed than this, so that no finding cost more. ns_per_unit: what one
 * took to compute; 0: not known. unix_ms: when the prompt came. */
void kv_ledger_keep(kv_ledger_t *ledger, kv_ledger_prompt_t *prompt, uint64_t units_max,
    double ns_per_unit, uint64_t unix_ms);

/* It was not computed. NULL is allowed. */
void kv_ledger_forget(kv_ledger_t *ledger, kv_ledger_prompt_t *prompt);

kv_ledger_totals_t kv_ledger_totals(kv_ledger_t *ledger);

/* The findings of the tenants that may be seen, the dearest first, so many at most: an array. */
json_t *kv_ledger_rows(kv_ledger_t *ledger, uint32_t count_max,
    bool (*may_see)(void *context, const char *tenant), void *context);

#endif
