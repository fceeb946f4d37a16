/* Traces of requests: what was asked for, when. A JSON object a line:
 *
 *   {"timestamp": 1500, "input_length": 1100, "output_length": 80, "hash_ids": [7, 12, 40]}
 *
 *   timestamp      ms from any start; lines may come in any order
 *   input_length   tokens of the prompt; output_length: of the answer
 *   hash_ids       one for each block of the prompt, the last one perhaps not full (it may be left
 *                  off); equal ids mean equal prefixes up to there: 0 to 2^63 - 1
 *   block_tokens   (optional, in the first line) tokens of a block; 512 where it is not given
 *   class          (optional) "interactive" (the default), "batch" or "background"
 *
 * Anything else in a line is passed over. It is the form of the Mooncake traces, and of what a
 * node records (store.trace_file; docs/formats.md).
 *
 * Owns: all that is read.
 * Threads: one.
 * Errors: KV_INVALID with file, line, field and bound. */
#ifndef KV_TOOLS_SIM_TRACE_H
#define KV_TOOLS_SIM_TRACE_H

#include "kvstore/kvist.h"

#define KV_TRACE_NONE UINT32_MAX

enum { KV_TRACE_BLOCK_TOKENS_DEFAULT = 512 };

typedef struct {
    uint64_t at_ms;
    uint32_t input_tokens, output_tokens;
    size_t first_block; /* in kv_trace_t.blocks */
    uint32_t block_count;
    kvist_priority_t priority;
} kv_trace_request_t;

/* Requests are in the order of time, blocks numbered from 0 as they come in the file. */
typedef struct {
    kv_trace_request_t *requests; /* [request_count] */
    uint32_t request_count;
    uint32_t *blocks; /* [asked_count] of all requests, one after the other */
    size_t asked_count;
    uint32_t *parents; /* [block_count] KV_TRACE_NONE: it begins a prompt */
    uint32_t block_count;
    uint32_t block_tokens;
    uint32_t longest_blocks; /* of any request */
} kv_trace_t;

kv_status_t kv_trace_read(const char *path, kv_trace_t *trace_out, kv_error_t *error);
void kv_trace_release(kv_trace_t *trace);

/* Every gap between two requests becomes so many times as long. */
void kv_trace_stretch(kv_trace_t *trace, double factor);

/* Tokens of a request's block `number` (of the last one, those that there are). */
static inline uint32_t kv_trace_tokens(
    const kv_trace_t *trace, const kv_trace_request_t *request, uint32_t number)
{
    uint64_t before = (uint64_t)number * trace->block_tokens;
    uint64_t left = request->input_tokens > before ? request->input_tokens - before : 0;
    return (uint32_t)(left < trace->block_tokens ? left : trace->block_tokens);
}

#endif
