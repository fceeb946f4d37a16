/* A script: requests that extend one another, made from a seed before any of them is sent.
 *
 * A prompt is a row of symbols. Each is drawn from the seed of its part, so that none is stored
 * anywhere: equal parts at equal places are equal prefixes. A request may extend another one: its
 * prompt begins with that one's prompt and answer, and it begins a pause after that one's end. One
 * that extends nothing is a root; a root and all that hangs on it is a session.
 *
 * Owns: the requests and their parts.
 * Threads: one makes it, then any.
 * Limits: KV_SCRIPT_REQUESTS_MAX requests. */
#ifndef KV_TOOLS_SERVE_SCRIPT_H
#define KV_TOOLS_SERVE_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_SCRIPT_NONE UINT32_MAX

enum { KV_SCRIPT_REQUESTS_MAX = 1 << 20 };

typedef struct {
    uint64_t seed;
    uint32_t count; /* of symbols */
} kv_script_part_t;

typedef struct {
    uint32_t parent;       /* which it extends; KV_SCRIPT_NONE: a root */
    uint32_t session;      /* number of its root in kv_script_t.roots */
    uint32_t first_child;  /* KV_SCRIPT_NONE: none */
    uint32_t next_sibling; /* the same */
    size_t first_part;     /* of its own, behind what it extends */
    uint32_t part_count;
    uint32_t prompt_tokens; /* in all, where answers have as many tokens as they should */
    uint32_t answer_tokens;
    uint64_t
        delay_ms; /* after the parent's end; of a root in a script with times, from the start */
} kv_script_request_t;

typedef struct {
    kv_script_request_t *requests;
    uint32_t request_count;
    kv_script_part_t *parts;
    size_t part_count;
    uint32_t *roots; /* in the order in which they begin */
    uint32_t root_count;
    bool has_times;         /* roots say when they begin */
    uint32_t warming_count; /* the first roots: they are sent and over before the others begin */
    uint32_t cut_count;     /* of requests that were made shorter to fit the context */
    size_t request_capacity, part_capacity, root_capacity;
} kv_script_t;

void kv_script_release(kv_script_t *script);

/* Adds a request without parts; its number. */
uint32_t kv_script_add(
    kv_script_t *script, uint32_t parent, uint32_t answer_tokens, uint64_t delay_ms);

/* Adds a part to the request that was added last. */
void kv_script_add_part(kv_script_t *script, uint64_t seed, uint32_t count);

/* Of a request's own parts: so many symbols in all. */
uint32_t kv_script_own_count(const kv_script_t *script, const kv_script_request_t *request);

/* Draws a request's own parts, one after the other; each symbol is in [lowest, lowest + range). */
void kv_script_draw(const kv_script_t *script, const kv_script_request_t *request, uint32_t lowest,
    uint32_t range, uint32_t *symbols_out);

/* Draws symbols of any seed. */
void kv_symbols_draw(
    uint64_t seed, uint32_t count, uint32_t lowest, uint32_t range, uint32_t *symbols_out);

/* One number of several, for seeds. */
uint64_t kv_seed_mix(uint64_t seed, uint64_t kind, uint64_t number);

/* A generator (splitmix64) and what scripts draw from it. */
uint64_t kv_draw_bits(uint64_t *state);
double kv_draw_share(uint64_t *state); /* [0, 1) */
uint32_t kv_draw_between(uint64_t *state, uint32_t least, uint32_t most);
double kv_draw_exponential(uint64_t *state, double mean);

#endif
