#include "tools/kvist/sim/trace.h"

#include "base/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    INDEX_BITS_FIRST = 12,
    BLOCK_TOKENS_MAX = 1 << 20,
    TOKENS_MAX = INT32_MAX,
};
#define TIMESTAMP_MS_MAX (INT64_C(1) << 53)

/* Where an id's block is found: linear probing, at most half full. */
typedef struct {
    int64_t *ids; /* -1: free */
    uint32_t *blocks;
    uint32_t bits;
} index_t;

typedef struct {
    const char *path;
    uint64_t line;
    kv_trace_t *trace;
    index_t index;
    size_t request_capacity, asked_capacity, block_capacity;
    kv_error_t *error;
} reader_t;

/* ---- ids ---- */

static void index_init(index_t *index, uint32_t bits)
{
    size_t count = (size_t)1 << bits;
    index->bits = bits;
    index->ids = kv_allocate_array(count, sizeof *index->ids);
    index->blocks = kv_allocate_array(count, sizeof *index->blocks);
    memset(index->ids, 0xff, count * sizeof *index->ids);
}

static void index_release(index_t *index)
{
    free(index->ids);
    free(index->blocks);
}

static size_t index_place(const index_t *index, int64_t id)
{
    size_t mask = ((size_t)1 << index->bits) - 1;
    size_t at = (size_t)((uint64_t)id * UINT64_C(0x9e3779b97f4a7c15) >> (64 - index->bits));
    while (index->ids[at] != -1 && index->ids[at] != id) {
        at = (at + 1) & mask;
    }
    return at;
}

static void index_grow(index_t *index)
{
    index_t larger;
    index_init(&larger, index->bits + 1);
    for (size_t i = 0; i < (size_t)1 << index->bits; i++) {
        if (index->ids[i] != -1) {
            size_t at = index_place(&larger, index->ids[i]);
            larger.ids[at] = index->ids[i];
            larger.blocks[at] = index->blocks[i];
        }
    }
    index_release(index);
    *index = larger;
}

/* ---- fields ---- */

static kv_status_t fail(const reader_t *reader, const char *field, const char *text)
{
    return kv_fail(reader->error, KV_INVALID, "%s:%" PRIu64 ": %s %s", reader->path, reader->line,
        field, text);
}

static kv_status_t take_number(const reader_t *reader, const json_t *line, const char *field,
    int64_t minimum, int64_t maximum, int64_t *value_out)
{
    const json_t *value = json_object_get(line, field);
    if (json_is_integer(value) && json_integer_value(value) >= minimum &&
        json_integer_value(value) <= maximum) {
        *value_out = json_integer_value(value);
        return KV_OK;
    }
    char text[96];
    snprintf(text, sizeof text, "%s: it must be a whole number from %" PRId64 " to %" PRId64,
        value == NULL ? "is missing" : "is something else", minimum, maximum);
    return fail(reader, field, text);
}

static kv_status_t take_class(
    const reader_t *reader, const json_t *line, kvist_priority_t *priority_out)
{
    static const char *const NAMES[KVIST_PRIORITY_COUNT] = {"interactive", "batch", "background"};
    const json_t *value = json_object_get(line, "class");
    *priority_out = KVIST_PRIORITY_INTERACTIVE;
    for (int i = 0; value != NULL && i < KVIST_PRIORITY_COUNT; i++) {
        if (json_is_string(value) && strcmp(json_string_value(value), NAMES[i]) == 0) {
            *priority_out = (kvist_priority_t)i;
            return KV_OK;
        }
    }
    return value == NULL
               ? KV_OK
               : fail(reader, "class", "must be \"interactive\", \"batch\" or \"background\"");
}

/* Only the first line sets how many tokens a block has. */
static kv_status_t take_block_tokens(const reader_t *reader, const json_t *line)
{
    kv_trace_t *trace = reader->trace;
    int64_t tokens = KV_TRACE_BLOCK_TOKENS_DEFAULT;
    if (json_object_get(line, "block_tokens") != NULL) {
        kv_status_t status =
            take_number(reader, line, "block_tokens", 1, BLOCK_TOKENS_MAX, &tokens);
        if (status != KV_OK) {
            return status;
        }
        if (trace->request_count > 0 && tokens != trace->block_tokens) {
            return fail(reader, "block_tokens", "is not what the first line says");
        }
    }
    if (trace->request_count == 0) {
        trace->block_tokens = (uint32_t)tokens;
    }
    return KV_OK;
}

/* ---- blocks ---- */

static uint32_t add_block(reader_t *reader, uint32_t parent)
{
    kv_trace_t *trace = reader->trace;
    if (trace->block_count == reader->block_capacity) {
        reader->block_capacity = reader->block_capacity * 2 + 1024;
        trace->parents =
            kv_reallocate(trace->parents, reader->block_capacity, sizeof *trace->parents);
    }
    trace->parents[trace->block_count] = parent;
    return trace->block_count++;
}

/* The id's block; it must go on from the same one as ever. */
static kv_status_t take_id(reader_t *reader, int64_t id, uint32_t parent, uint32_t *block_out)
{
    index_t *index = &reader->index;
    if (reader->trace->block_count >= (uint32_t)1 << (index->bits - 1)) {
        index_grow(index);
    }
    size_t at = index_place(index, id);
    if (index->ids[at] == -1) {
        index->ids[at] = id;
        index->blocks[at] = add_block(reader, parent);
    }
    *block_out = index->blocks[at];
    if (reader->trace->parents[*block_out] != parent) {
        char text[128];
        snprintf(text, sizeof text,
            "has %" PRId64 ", which came after another block before: equal ids must mean equal "
            "prefixes",
            id);
        return fail(reader, "hash_ids", text);
    }
    return KV_OK;
}

static kv_status_t take_ids(reader_t *reader, const json_t *line, kv_trace_request_t *request)
{
    kv_trace_t *trace = reader->trace;
    const json_t *ids = json_object_get(line, "hash_ids");
    uint32_t whole = request->input_tokens / trace->block_tokens;
    uint32_t begun = whole + (request->input_tokens % trace->block_tokens > 0);
    size_t count = json_array_size(ids);
    if (!json_is_array(ids) || (count != whole && count != begun)) {
        char text[128];
        snprintf(text, sizeof text,
            "must be a list of %u or %u ids: input_length has so many blocks of %u tokens", whole,
            begun, trace->block_tokens);
        return fail(reader, "hash_ids", text);
    }
    if (trace->asked_count + count > reader->asked_capacity) {
        reader->asked_capacity = reader->asked_capacity * 2 + count;
        trace->blocks = kv_reallocate(trace->blocks, reader->asked_capacity, sizeof *trace->blocks);
    }
    request->first_block = trace->asked_count;
    request->block_count = (uint32_t)count;
    uint32_t parent = KV_TRACE_NONE;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0) {
            return fail(reader, "hash_ids", "must hold whole numbers from 0 to 2^63 - 1");
        }
        kv_status_t status = take_id(reader, json_integer_value(id), parent, &parent);
        if (status != KV_OK) {
            return status;
        }
        trace->blocks[trace->asked_count++] = parent;
    }
    return KV_OK;
}

/* ---- lines ---- */

static kv_status_t take_request(reader_t *reader, const json_t *line)
{
    kv_trace_t *trace = reader->trace;
    kv_trace_request_t request = {0};
    int64_t at_ms = 0, input = 0, output = 0;
    kv_status_t status = take_number(reader, line, "timestamp", 0, TIMESTAMP_MS_MAX, &at_ms);
    if (status == KV_OK) {
        status = take_number(reader, line, "input_length", 0, TOKENS_MAX, &input);
    }
    if (status == KV_OK) {
        status = take_number(reader, line, "output_length", 0, TOKENS_MAX, &output);
    }
    if (status == KV_OK) {
        status = take_class(reader, line, &request.priority);
    }
    if (status == KV_OK) {
        status = take_block_tokens(reader, line);
    }
    if (status != KV_OK) {
        return status;
    }
    request.at_ms = (uint64_t)at_ms;
    request.input_tokens = (uint32_t)input;
    request.output_tokens = (uint32_t)output;
    status = take_ids(reader, line, &request);
    if (status != KV_OK) {
        return status;
    }
    if (trace->request_count == reader->request_capacity) {
        reader->request_capacity = reader->request_capacity * 2 + 1024;
        trace->requests =
            kv_reallocate(trace->requests, reader->request_capacity, sizeof *trace->requests);
    }
    trace->requests[trace->request_count++] = request;
    if (request.block_count > trace->longest_blocks) {
        trace->longest_blocks = request.block_count;
    }
    return KV_OK;
}

static int compare_requests(const void *left, const void *right)
{
    const kv_trace_request_t *a = left, *b = right;
    if (a->at_ms != b->at_ms) {
        return a->at_ms < b->at_ms ? -1 : 1;
    }
    return (a->first_block > b->first_block) - (a->first_block < b->first_block);
}

/* Nodes record requests as they end. Equal times stay in the order of their lines. */
static void order_by_time(kv_trace_t *trace)
{
    uint32_t *blocks = kv_allocate_array(trace->asked_count + 1, sizeof *blocks);
    size_t asked_count = 0;
    qsort(trace->requests, trace->request_count, sizeof *trace->requests, compare_requests);
    for (uint32_t i = 0; i < trace->request_count; i++) {
        kv_trace_request_t *request = &trace->requests[i];
        for (uint32_t j = 0; j < request->block_count; j++) {
            blocks[asked_count + j] = trace->blocks[request->first_block + j];
        }
        request->first_block = asked_count;
        asked_count += request->block_count;
    }
    free(trace->blocks);
    trace->blocks = blocks;
}

static kv_status_t take_line(reader_t *reader, const char *text, size_t bytes)
{
    json_error_t reason;
    json_t *line = json_loadb(text, bytes, 0, &reason);
    if (!json_is_object(line)) {
        json_decref(line);
        return kv_fail(reader->error, KV_INVALID, "%s:%" PRIu64 ": not a JSON object: %s",
            reader->path, reader->line, line == NULL ? reason.text : "something else");
    }
    kv_status_t status = take_request(reader, line);
    json_decref(line);
    return status;
}

static kv_status_t read_lines(reader_t *reader, FILE *file)
{
    char *text = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    kv_status_t status = KV_OK;
    while (status == KV_OK && (bytes = getline(&text, &capacity, file)) >= 0) {
        reader->line++;
        if (strspn(text, " \t\r\n") < (size_t)bytes) {
            status = take_line(reader, text, (size_t)bytes);
        }
    }
    free(text);
    if (status == KV_OK && ferror(file)) {
        return kv_fail_errno(reader->error, errno, "%s cannot be read", reader->path);
    }
    if (status == KV_OK && reader->trace->request_count == 0) {
        return kv_fail(reader->error, KV_INVALID, "%s has no requests", reader->path);
    }
    return status;
}

kv_status_t kv_trace_read(const char *path, kv_trace_t *trace_out, kv_error_t *error)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return kv_fail_errno(error, errno, "the trace %s cannot be opened", path);
    }
    kv_trace_t trace = {0};
    reader_t reader = {.path = path, .trace = &trace, .error = error};
    index_init(&reader.index, INDEX_BITS_FIRST);
    kv_status_t status = read_lines(&reader, file);
    index_release(&reader.index);
    fclose(file);
    if (status != KV_OK) {
        kv_trace_release(&trace);
        return status;
    }
    order_by_time(&trace);
    *trace_out = trace;
    return KV_OK;
}

void kv_trace_release(kv_trace_t *trace)
{
    free(trace->requests);
    free(trace->blocks);
    free(trace->parents);
    *trace = (kv_trace_t){0};
}

void kv_trace_stretch(kv_trace_t *trace, double factor)
{
    for (uint32_t i = 0; i < trace->request_count; i++) {
        trace->requests[i].at_ms = (uint64_t)llround((double)trace->requests[i].at_ms * factor);
    }
}
