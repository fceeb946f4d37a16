/* What an ideal cache would have had: which prefixes were sent, and which of them were computed.
 *
 * A table of the blocks of prompts and answers, each by a number that stands for it and all that
 * lies before it (64 bits: of 10^7 blocks two are taken for one with a probability of 3 in 10^6).
 * A prompt's blocks are computed once its first token has come, an answer's once it has ended; only
 * then could a request that is sent later have found them for certain.
 *
 * Owns: the table. Threads: one. */
#ifndef KV_TOOLS_SERVE_KNOWN_H
#define KV_TOOLS_SERVE_KNOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_known kv_known_t;

kv_known_t *kv_known_create(uint32_t block_tokens);
void kv_known_destroy(kv_known_t *known);

/* The row's whole blocks are known from now on, as sent or as computed. */
void kv_known_add(kv_known_t *known, const uint32_t *symbols, size_t count, bool computed);

/* How many leading symbols of the row, in whole blocks, were computed; were sent at all. */
typedef struct {
    uint32_t computed, sent;
} kv_known_run_t;

kv_known_run_t kv_known_look(const kv_known_t *known, const uint32_t *symbols, size_t count);

#endif
