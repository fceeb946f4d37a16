/* A prompt as the audit reads it: its text, where its tokens end, where its parts begin.
 *
 * Owns: copies of all that it was given, until it is cleared.
 * Threads: any; one at a time while it is built, read only after that.
 * Errors: none.
 * Limits: KV_AUDIT_BYTES_MAX of text; what comes after is left out, and so never compared. */
#ifndef KV_AUDIT_PROMPT_H
#define KV_AUDIT_PROMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_AUDIT_BYTES_MAX = 4 << 20, KV_AUDIT_SKETCH = 32 };

/* Whose text a part is. The head: what a template says before the conversation begins, its system
 * message and its tools. */
typedef enum { KV_AUDIT_HEAD, KV_AUDIT_USER, KV_AUDIT_ASSISTANT, KV_AUDIT_TOOL } kv_audit_role_t;

typedef struct {
    uint32_t at; /* byte; it ends where the next one begins */
    kv_audit_role_t role;
} kv_audit_part_t;

/* The smallest hashes of short pieces of a text: texts that say the same have many of them in
 * common, wherever it stands. */
typedef struct {
    uint64_t hashes[KV_AUDIT_SKETCH];
    uint32_t count;
} kv_audit_sketch_t;

typedef struct {
    char *text; /* not terminated */
    uint32_t *token_ends;
    kv_audit_part_t *parts; /* none: a text that is no conversation */
    uint32_t bytes, token_count, part_count;
    uint32_t text_capacity, token_capacity, part_capacity;
    bool full;
    kv_audit_sketch_t whole, head;
} kv_audit_prompt_t;

/* What is added from here on is a part of its own. */
void kv_audit_prompt_part(kv_audit_prompt_t *prompt, kv_audit_role_t role);
void kv_audit_prompt_add(kv_audit_prompt_t *prompt, const char *text, size_t bytes);

/* The same, and a token ends there. A prompt is added token by token or not at all so. */
void kv_audit_prompt_token(kv_audit_prompt_t *prompt, const char *text, size_t bytes);

/* All was added: makes the sketches. */
void kv_audit_prompt_finish(kv_audit_prompt_t *prompt);
void kv_audit_prompt_clear(kv_audit_prompt_t *prompt);

/* How much of one's sketch the other has, 0 to 1: of their heads or of all, whichever is more. */
double kv_audit_likeness(const kv_audit_prompt_t *one, const kv_audit_prompt_t *other);

/* Leading bytes that both have. */
uint32_t kv_audit_shared_bytes(const kv_audit_prompt_t *one, const kv_audit_prompt_t *other);

/* The part that this byte is in; part_count must not be 0. */
uint32_t kv_audit_part_of(const kv_audit_prompt_t *prompt, uint32_t byte);
uint32_t kv_audit_part_end(const kv_audit_prompt_t *prompt, uint32_t part);

/* Where the head ends: 0 where there is none. */
uint32_t kv_audit_head_bytes(const kv_audit_prompt_t *prompt);

/* Tokens that end at or before this byte; without tokens the byte itself. */
uint32_t kv_audit_tokens_before(const kv_audit_prompt_t *prompt, uint32_t byte);

#endif
