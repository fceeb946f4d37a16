/* Where two texts say the same again after they parted: runs of equal bytes, in the order of both.
 *
 * Blocks of one text are found in the other by a rolling hash and grow from there: the work is
 * proportional to the texts. Runs shorter than KV_AUDIT_RUN_MIN are chance (markers between
 * messages, common phrases) and are not told; runs of twice that are always found where their order
 * is the same in both.
 *
 * Owns: the runs, until free().
 * Threads: any; pure. Errors: none. */
#ifndef KV_AUDIT_ALIGN_H
#define KV_AUDIT_ALIGN_H

#include "audit/prompt.h"

enum { KV_AUDIT_RUN_MIN = 32 };

typedef struct {
    uint32_t was, is, bytes;
} kv_audit_run_t;

/* Of all that comes at and after `from` in both. runs_out: free() by the caller; NULL for none. */
uint32_t kv_audit_align(const kv_audit_prompt_t *was, const kv_audit_prompt_t *is, uint32_t from,
    kv_audit_run_t **runs_out);

#endif
