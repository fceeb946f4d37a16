#include "tools/kvist/bench/subject.h"

#include "base/check.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYER_BYTES = 64 << 10, /* K and V of 8 heads of 128 bf16, 16 tokens: a common model's layer */
    LAYER_HEADS = 8,
    WAIT_MS_MAX = 60000, /* without any completion: the store hangs */
};

typedef enum { PUT, GET } kind_t;

/* One run under way. */
typedef struct {
    kv_subject_t *subject;
    kvist_lease_t *lease;
    uint64_t run;
    char *place; /* of a get: where it lands */
    bool busy, done;
    kv_status_t status;
    uint32_t block_count; /* that were stored or loaded */
} operation_t;

struct kv_subject {
    kv_subject_params_t params;
    kvist_layout_t layout;
    kvist_store_t *store;
    kvist_key_t name_space;
    size_t run_bytes;
    uint64_t next_run; /* to be put */
    uint64_t
        kept_back; /* the newest runs, which may lie in memory: gets from disk leave them out */
    uint64_t step; /* of the order of gets; shares no factor with run_count */
    uint64_t get_count; /* so far */
    size_t destination_offset;
    uint32_t *tokens; /* of the run that is being started */
    operation_t operations[KV_SUBJECT_DEPTH_MAX];
    bool flushed;
    kv_status_t flush_status;
};

/* ---- runs ---- */

static uint64_t common_factor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* About the golden section of count: neighbours in the order lie far apart. */
static uint64_t jumping_step(uint64_t count)
{
    uint64_t step = count * 618 / 1000;
    while (step > 1 && common_factor(step, count) != 1) {
        step--;
    }
    return step > 0 ? step : 1;
}

static char *source_of(const kv_subject_t *subject, uint64_t run)
{
    const uint64_t places = subject->params.source->bytes / subject->run_bytes;
    return (char *)subject->params.source->base + run % places * subject->run_bytes;
}

static char *next_place(kv_subject_t *subject)
{
    if (subject->destination_offset + subject->run_bytes > subject->params.destination->bytes) {
        subject->destination_offset = 0;
    }
    char *place = (char *)subject->params.destination->base + subject->destination_offset;
    subject->destination_offset += subject->run_bytes;
    return place;
}

/* Of the last run_count runs that are not kept back, the next in the order. */
static uint64_t next_to_get(kv_subject_t *subject)
{
    const uint64_t count = subject->params.run_count;
    const uint64_t first = subject->next_run - subject->kept_back - count;
    return first + subject->get_count++ * subject->step % count;
}

static kvist_query_t query_of(kv_subject_t *subject, uint64_t run, kvist_mode_t mode)
{
    const size_t token_count = (size_t)subject->params.run_blocks * KV_SUBJECT_BLOCK_TOKENS;
    for (size_t i = 0; i < token_count; i++) {
        subject->tokens[i] = (uint32_t)(run * 7 + i);
    }
    subject->tokens[0] = (uint32_t)run;
    return (kvist_query_t){.name_space = subject->name_space,
        .tokens = subject->tokens,
        .token_count = token_count,
        .mode = mode};
}

/* ---- one operation ---- */

static void stored(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    operation_t *operation = context;
    (void)lease;
    operation->status = status;
    operation->block_count = block_count;
    operation->done = true;
}

static void loaded(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count,
    kvist_miss_t miss)
{
    (void)miss;
    stored(context, lease, status, block_count);
}

static kv_status_t start_put(kv_subject_t *subject, operation_t *operation)
{
    kvist_match_t match;
    operation->run = subject->next_run++;
    const kvist_query_t query = query_of(subject, operation->run, KVIST_MODE_READWRITE);
    kv_status_t status = kvist_match(subject->store, &query, &operation->lease, &match);
    if (status != KV_OK) {
        return status;
    }
    const kvist_put_t put = {.block_count = subject->params.run_blocks,
        .tokens = subject->tokens,
        .arithmetic = "bench",
        .deadline_ns = kv_clock_now_ns() + (uint64_t)WAIT_MS_MAX * KV_NS_PER_MS};
    const kvist_piece_t piece = {source_of(subject, operation->run), subject->run_bytes};
    return kvist_lease_store(operation->lease, &put, &piece, 1, stored, operation);
}

/* The next run that lies where gets are measured from, held by a lease. */
static kv_status_t match_next(
    kv_subject_t *subject, operation_t *operation, kvist_lease_t **lease_out)
{
    const kvist_tier_t tier = subject->params.directory != NULL ? KVIST_TIER_DISK : KVIST_TIER_HOST;
    for (uint32_t i = 0; i < subject->params.run_count; i++) {
        kvist_match_t match;
        operation->run = next_to_get(subject);
        const kvist_query_t query = query_of(subject, operation->run, KVIST_MODE_READ);
        kv_status_t status = kvist_match(subject->store, &query, lease_out, &match);
        if (status != KV_OK) {
            return status;
        }
        if (match.tier_blocks[tier] == subject->params.run_blocks) {
            return KV_OK;
        }
        kvist_lease_release(*lease_out);
        if (match.block_count != subject->params.run_blocks) {
            return KV_MISSING;
        }
    }
    return KV_MISSING;
}

static kv_status_t start_get(kv_subject_t *subject, operation_t *operation)
{
    kv_status_t status = match_next(subject, operation, &operation->lease);
    if (status != KV_OK) {
        return status;
    }
    operation->place = next_place(subject);
    const kvist_selection_t selection = {.block_count = subject->params.run_blocks};
    const kvist_piece_t piece = {operation->place, subject->run_bytes};
    return kvist_lease_load(operation->lease, &selection, &piece, 1, loaded, operation);
}

/* ---- many of them ---- */

static void wait_for(kv_subject_t *subject, int limit_ms)
{
    struct pollfd descriptor = {.fd = kvist_store_fd(subject->store), .events = POLLIN};
    poll(&descriptor, 1, limit_ms);
}

/* Ends what is done; how many. *status_out: the first failure. */
static uint32_t reap(kv_subject_t *subject, kv_status_t *status_out)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < KV_SUBJECT_DEPTH_MAX; i++) {
        operation_t *operation = &subject->operations[i];
        if (!operation->busy || !operation->done) {
            continue;
        }
        bool whole = operation->block_count == subject->params.run_blocks;
        kv_status_t status = operation->status == KV_OK && !whole ? KV_MISSING : operation->status;
        *status_out = *status_out == KV_OK ? status : *status_out;
        kvist_lease_release(operation->lease);
        operation->busy = false;
        count++;
    }
    return count;
}

static operation_t *free_operation(kv_subject_t *subject, uint32_t depth)
{
    for (uint32_t i = 0; i < depth; i++) {
        if (!subject->operations[i].busy) {
            return &subject->operations[i];
        }
    }
    return NULL;
}

/* What is under way is cancelled, so that the store can be closed. */
static void give_up(kv_subject_t *subject)
{
    for (uint32_t i = 0; i < KV_SUBJECT_DEPTH_MAX; i++) {
        if (subject->operations[i].busy) {
            kvist_lease_release(subject->operations[i].lease);
        }
    }
}

/* count operations, depth of them in flight; returns when all have ended. */
static kv_status_t carry_out(
    kv_subject_t *subject, kind_t kind, uint32_t count, uint32_t depth, kv_error_t *error)
{
    KV_CHECK(depth > 0 && depth <= KV_SUBJECT_DEPTH_MAX);
    kv_status_t status = KV_OK;
    uint32_t started = 0, ended = 0;
    uint64_t idle_since_ns = kv_clock_now_ns();
    while (ended < started || (status == KV_OK && started < count)) {
        operation_t *operation;
        while (status == KV_OK && started < count &&
               (operation = free_operation(subject, depth)) != NULL) {
            *operation = (operation_t){.subject = subject};
            status = kind == PUT ? start_put(subject, operation) : start_get(subject, operation);
            operation->busy = status == KV_OK;
            started += status == KV_OK;
        }
        kvist_store_poll(subject->store);
        uint32_t reaped = reap(subject, &status);
        ended += reaped;
        if (reaped > 0) {
            idle_since_ns = kv_clock_now_ns();
        } else if (ended < started) {
            wait_for(subject, 1000);
        }
        if (kv_clock_now_ns() - idle_since_ns > (uint64_t)WAIT_MS_MAX * KV_NS_PER_MS) {
            give_up(subject);
            return kv_fail(error, KV_FATAL, "the store has not ended any of %u operations in %d s",
                started - ended, WAIT_MS_MAX / 1000);
        }
    }
    return status == KV_OK
               ? KV_OK
               : kv_fail(error, status, "operation %u of %u, a %s of %zu bytes, failed: %s", ended,
                     count, kind == PUT ? "put" : "get", subject->run_bytes,
                     kv_status_name(status));
}

static void flush_done(void *context, kv_status_t status)
{
    kv_subject_t *subject = context;
    subject->flushed = true;
    subject->flush_status = status;
}

static kv_status_t flush(kv_subject_t *subject, kv_error_t *error)
{
    const uint64_t begun_ns = kv_clock_now_ns();
    subject->flushed = false;
    kvist_store_flush(subject->store, flush_done, subject);
    kvist_store_poll(subject->store);
    while (!subject->flushed) {
        wait_for(subject, 1000);
        kvist_store_poll(subject->store);
        if (kv_clock_now_ns() - begun_ns > (uint64_t)WAIT_MS_MAX * KV_NS_PER_MS) {
            return kv_fail(
                error, KV_FATAL, "the store has not flushed in %d s", WAIT_MS_MAX / 1000);
        }
    }
    return subject->flush_status == KV_OK
               ? KV_OK
               : kv_fail(error, subject->flush_status, "the flush failed: %s",
                     kv_status_name(subject->flush_status));
}

kv_status_t kv_subject_put(kv_subject_t *subject, uint32_t count, uint32_t depth, bool durable,
    uint64_t *ns_out, kv_error_t *error)
{
    const uint64_t begun_ns = kv_clock_now_ns();
    kv_status_t status = carry_out(subject, PUT, count, depth, error);
    if (status == KV_OK && durable) {
        status = flush(subject, error);
    }
    *ns_out = kv_clock_now_ns() - begun_ns;
    return status;
}

/* Of what is in place, the last run: another may have landed over an earlier one's place. */
static kv_status_t compare(const kv_subject_t *subject, kv_error_t *error)
{
    const operation_t *last = &subject->operations[0];
    if (memcmp(last->place, source_of(subject, last->run), subject->run_bytes) != 0) {
        return kv_fail(error, KV_FATAL, "run %llu came back with other bytes than were put",
            (unsigned long long)last->run);
    }
    return KV_OK;
}

kv_status_t kv_subject_get(
    kv_subject_t *subject, uint32_t count, uint32_t depth, uint64_t *ns_out, kv_error_t *error)
{
    const uint64_t begun_ns = kv_clock_now_ns();
    kv_status_t status = carry_out(subject, GET, count, depth, error);
    *ns_out = kv_clock_now_ns() - begun_ns;
    return status == KV_OK ? compare(subject, error) : status;
}

kv_status_t kv_subject_match(
    kv_subject_t *subject, uint32_t count, uint64_t *ns_out, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    *ns_out = 0;
    for (uint32_t i = 0; i < count && status == KV_OK; i++) {
        kvist_lease_t *lease;
        kvist_match_t match;
        const kvist_query_t query = query_of(subject, next_to_get(subject), KVIST_MODE_READ);
        const uint64_t begun_ns = kv_clock_now_ns();
        status = kvist_match(subject->store, &query, &lease, &match);
        *ns_out += kv_clock_now_ns() - begun_ns;
        if (status == KV_OK) {
            kvist_lease_release(lease);
            status = match.block_count == subject->params.run_blocks ? KV_OK : KV_MISSING;
        }
    }
    return status == KV_OK ? KV_OK
                           : kv_fail(error, status, "a match of %u blocks failed: %s",
                                 subject->params.run_blocks, kv_status_name(status));
}

kv_status_t kv_subject_fill(kv_subject_t *subject, kv_error_t *error)
{
    uint64_t ns;
    const uint32_t count = subject->params.run_count + (uint32_t)subject->kept_back;
    return kv_subject_put(subject, count, 4, subject->params.directory != NULL, &ns, error);
}

kvist_stats_t kv_subject_stats(const kv_subject_t *subject)
{
    kvist_stats_t stats;
    kvist_store_stats(subject->store, &stats);
    return stats;
}

/* ---- open and close ---- */

/* Layers of a common model where the size is a multiple of one, else one layer of one head. */
static kvist_layout_t layout_of(size_t object_bytes)
{
    const bool whole = object_bytes % LAYER_BYTES == 0;
    const uint32_t layers = whole ? (uint32_t)(object_bytes / LAYER_BYTES) : 1;
    const uint32_t heads = whole ? LAYER_HEADS : 1, element_bytes = 2, kinds = 2;
    const kvist_part_t part = {.kind = KVIST_PART_K,
        .heads = heads,
        .dims = (uint32_t)(object_bytes / layers / kinds / heads / KV_SUBJECT_BLOCK_TOKENS /
                           element_bytes),
        .element_bytes = element_bytes};
    kvist_layout_t layout = {.block_tokens = KV_SUBJECT_BLOCK_TOKENS,
        .group_count = 1,
        .groups = {{.kind = KVIST_GROUP_FULL, .part_count = kinds, .parts = {part, part}}}};
    layout.groups[0].parts[1].kind = KVIST_PART_V;
    for (uint32_t layer = 0; layer < layers; layer++) {
        layout.groups[0].layers[layer / 64] |= UINT64_C(1) << layer % 64;
    }
    return layout;
}

kv_status_t kv_subject_open(const kv_subject_params_t *params, kv_subject_opener_t opener,
    kv_subject_t **subject_out, kv_error_t *error)
{
    kv_subject_t *subject = kv_allocate(sizeof *subject);
    subject->params = *params;
    subject->layout = layout_of(params->object_bytes);
    subject->run_bytes = params->object_bytes * params->run_blocks;
    subject->step = jumping_step(params->run_count);
    subject->kept_back =
        params->directory != NULL ? params->host_bytes / subject->run_bytes + 1 : 0;
    subject->next_run = params->filled ? params->run_count + subject->kept_back : 0;
    subject->get_count = params->first_get;
    KV_CHECK(kvist_layout_object_bytes(&subject->layout, 0) == params->object_bytes);
    KV_CHECK(params->source->bytes >= subject->run_bytes);
    KV_CHECK(params->destination->bytes >= subject->run_bytes);
    const kvist_namespace_params_t identity = {
        .layout = &subject->layout, .salt = "", .adapter = ""};
    subject->name_space = kvist_namespace(&identity);
    subject->tokens = kv_allocate_array(
        (size_t)params->run_blocks * KV_SUBJECT_BLOCK_TOKENS, sizeof *subject->tokens);
    const kvist_store_params_t store_params = {.layout = &subject->layout,
        .host_bytes = params->host_bytes,
        .directory = params->directory,
        .disk_bytes = params->disk_bytes,
        .codec = params->codec,
        .key_file = params->key_file,
        .persist = KVIST_PERSIST_EAGER,
        .origin = "bench"};
    kv_status_t status = opener(&store_params, &subject->store, error);
    if (status != KV_OK) {
        free(subject->tokens);
        free(subject);
        return status;
    }
    *subject_out = subject;
    return KV_OK;
}

void kv_subject_close(kv_subject_t *subject)
{
    kvist_store_close(subject->store);
    free(subject->tokens);
    free(subject);
}
