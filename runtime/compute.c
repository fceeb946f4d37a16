#include "runtime/compute.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/queue.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Events wait here until the owner takes them; LAYER events of long prompts are the many. */
enum { EVENT_QUEUE_LENGTH = 1 << 14, EVENT_RETRY_NS = 100 * KV_NS_PER_US };

typedef struct sequence sequence_t;
struct sequence {
    kv_compute_sequence_t params;
    uint32_t *tokens; /* prompt and generated; room for generate_max more */
    uint32_t token_count, computed_count, generated_count;
    bool cancelled;            /* set by the owner, read by the compute thread: relaxed atomic */
    uint32_t layers_there;     /* under the lock: leading layers of what was computed elsewhere */
    kv_status_t layers_status; /* likewise: of the others */
    uint32_t chunk_count;      /* of the chunk in the engine now */
    kv_error_t failure;        /* that it ended with */
    kv_compute_t *compute;
    sequence_t *next;       /* in one of the compute thread's lists */
    sequence_t *known_next; /* in the owner's list */
};

struct kv_compute {
    kv_engine_t *engine;
    const kv_engine_info_t *info;
    uint32_t chunk_tokens, batch_rows_max;
    kv_queue_t *submitted; /* sequence_t *, to the compute thread */
    kv_queue_t *events;    /* kv_compute_event_t, to the owner */
    pthread_t thread;
    pthread_mutex_t lock; /* of the sequences' layers, and their cancelled flags where one waits */
    pthread_cond_t layers_came;

    /* The owner's: every sequence from submit until its ENDED event was polled. */
    sequence_t *known;
    uint32_t known_count;
    kv_error_t ended; /* what the last event that was polled says of a failure */

    /* The compute thread's. */
    sequence_t *prompts;    /* first submitted first */
    sequence_t *generating; /* a ring by re-insertion: rows beyond the batch take the next turn */
    kv_sampler_t *sampler;
    float *logits; /* [batch_rows_max][vocabulary_count] */
    kv_engine_row_t *rows;
    sequence_t **row_sequences;
    kv_draw_t *draws;       /* of a step whose tokens the device draws: [batch_rows_max] */
    uint32_t *drawn_tokens; /* likewise */
    float *drawn_logprobs;
};

/* ---- the compute thread ---- */

static void emit(kv_compute_t *compute, kv_compute_event_t event)
{
    event.at_ns = kv_clock_now_ns();
    while (kv_queue_push(compute->events, &event) != KV_OK) {
        /* The owner is far behind; computing on would only add to the heap. */
        nanosleep(&(struct timespec){0, EVENT_RETRY_NS}, NULL);
    }
}

static void end(sequence_t *sequence, kv_status_t status, bool end_token)
{
    emit(sequence->compute, (kv_compute_event_t){.type = KV_COMPUTE_ENDED,
                                .id = sequence->params.id,
                                .status = status,
                                .end_token = end_token});
}

static void end_failed(sequence_t *sequence, kv_status_t status, const kv_error_t *error)
{
    if (status != KV_CANCELLED) {
        sequence->failure = *error;
    }
    end(sequence, status, false);
}

static void append(sequence_t **list, sequence_t *sequence)
{
    while (*list != NULL) {
        list = &(*list)->next;
    }
    sequence->next = NULL;
    *list = sequence;
}

static sequence_t *take_first(sequence_t **list)
{
    sequence_t *first = *list;
    *list = first->next;
    return first;
}

/* Tokens before this one are the prompt's: prefill kernels make their KV. */
static uint32_t prompt_count(const sequence_t *sequence)
{
    return sequence->params.token_count - sequence->params.generated_count;
}

static bool is_cancelled(const sequence_t *sequence)
{
    return __atomic_load_n(&sequence->cancelled, __ATOMIC_RELAXED);
}

/* The event's token is the sequence's next, which goes on generating or ends. */
static void take_drawn(sequence_t *sequence, const kv_compute_event_t *event)
{
    kv_compute_t *compute = sequence->compute;
    sequence->tokens[sequence->token_count++] = event->token;
    sequence->generated_count++;
    emit(compute, *event);
    bool end_token = event->token == compute->info->end_token && !sequence->params.ignore_end;
    if (end_token || sequence->generated_count == sequence->params.generate_max) {
        end(sequence, KV_OK, end_token);
    } else {
        append(&compute->generating, sequence);
    }
}

/* Draws the next token from its logits. */
static void take_token(sequence_t *sequence, const float *logits)
{
    kv_compute_t *compute = sequence->compute;
    kv_compute_event_t event = {.type = KV_COMPUTE_TOKEN, .id = sequence->params.id};
    event.token = kv_sampler_draw(compute->sampler, &sequence->params.sampling,
        sequence->token_count, logits, &event.logprob);
    if (sequence->params.top_logprobs > 0) {
        kv_sampler_tops(compute->sampler, logits, sequence->params.top_logprobs, &event.tops);
    }
    take_drawn(sequence, &event);
}

static void layer_done(void *context, uint32_t layer)
{
    sequence_t *sequence = context;
    emit(sequence->compute, (kv_compute_event_t){.type = KV_COMPUTE_LAYER,
                                .id = sequence->params.id,
                                .layer = layer,
                                .first = sequence->computed_count,
                                .count = sequence->chunk_count});
}

static kv_status_t layer_needed(void *context, uint32_t layer, kv_error_t *error)
{
    sequence_t *sequence = context;
    kv_compute_t *compute = sequence->compute;
    pthread_mutex_lock(&compute->lock);
    while (sequence->layers_there <= layer && sequence->layers_status == KV_OK &&
           !is_cancelled(sequence)) {
        pthread_cond_wait(&compute->layers_came, &compute->lock);
    }
    kv_status_t status = sequence->layers_status;
    pthread_mutex_unlock(&compute->lock);
    if (status != KV_OK) {
        return kv_fail(error, status, "layer %u of what was stored did not come", layer);
    }
    return is_cancelled(sequence)
               ? kv_fail(error, KV_CANCELLED, "prefill was cancelled before layer %u", layer)
               : KV_OK;
}

/* The oldest prompt that need not wait; where all have to, the oldest. */
static sequence_t *take_prompt(kv_compute_t *compute)
{
    sequence_t **at = &compute->prompts;
    pthread_mutex_lock(&compute->lock);
    while (*at != NULL && (*at)->layers_there < compute->info->shape.layer_count &&
           (*at)->layers_status == KV_OK) {
        at = &(*at)->next;
    }
    pthread_mutex_unlock(&compute->lock);
    return take_first(*at != NULL ? at : &compute->prompts);
}

/* One chunk of a prompt. Chunks end at multiples of chunk_tokens, so that blocks are completed
 * whole. */
static void run_chunk(kv_compute_t *compute)
{
    sequence_t *sequence = take_prompt(compute);
    uint32_t first = sequence->computed_count;
    uint32_t boundary = (first / compute->chunk_tokens + 1) * compute->chunk_tokens;
    uint32_t last = boundary < prompt_count(sequence) ? boundary : prompt_count(sequence);
    sequence->chunk_count = last - first;
    kv_engine_chunk_t chunk = {
        .tokens = sequence->tokens + first,
        .token_count = last - first,
        .position = first,
        .slots = sequence->params.slots,
        .layer_done = sequence->params.report_layers ? layer_done : NULL,
        .layer_needed = sequence->params.layers_come ? layer_needed : NULL,
        .context = sequence,
        .cancelled = &sequence->cancelled,
    };
    kv_error_t error;
    bool draws = last == sequence->token_count;
    kv_status_t status =
        kv_engine_prefill(compute->engine, &chunk, draws ? compute->logits : NULL, &error);
    if (status != KV_OK) {
        if (status != KV_CANCELLED) {
            kv_log_error("runtime", "prefill failed at token %u: %s", first, error.text);
        }
        end_failed(sequence, status, &error);
        return;
    }
    sequence->computed_count = last;
    emit(compute, (kv_compute_event_t){.type = KV_COMPUTE_CHUNK,
                      .id = sequence->params.id,
                      .first = first,
                      .count = last - first});
    if (draws) {
        take_token(sequence, compute->logits);
    } else if (last == prompt_count(sequence)) {
        append(&compute->generating, sequence);
    } else {
        sequence->next = compute->prompts;
        compute->prompts = sequence;
    }
}

static uint32_t count_list(const sequence_t *list)
{
    uint32_t count = 0;
    for (; list != NULL; list = list->next) {
        count++;
    }
    return count;
}

/* Fills the rows of a step: one for each generating sequence, more for those with several tokens to
 * compute where others leave room. Returns their number. */
static uint32_t fill_rows(kv_compute_t *compute)
{
    uint32_t row_count = 0, waiting = count_list(compute->generating);
    while (waiting > 0 && row_count < compute->batch_rows_max) {
        sequence_t *sequence = take_first(&compute->generating);
        uint32_t room = compute->batch_rows_max - row_count;
        uint32_t count = sequence->token_count - sequence->computed_count;
        waiting--;
        if (count > 1 && count + waiting > room) {
            count = room > waiting ? room - waiting : 1;
        }
        for (uint32_t i = 0; i < count; i++) {
            uint32_t position = sequence->computed_count++;
            compute->row_sequences[row_count] = sequence;
            compute->rows[row_count++] = (kv_engine_row_t){
                .token = sequence->tokens[position],
                .position = position,
                .slots = sequence->params.slots,
            };
        }
    }
    return row_count;
}

/* Whether the step's tokens are drawn where its logits are: nobody wants to see these. */
static bool device_draws(const kv_compute_t *compute, uint32_t row_count)
{
    bool draws = compute->info->draws;
    for (uint32_t i = 0; i < row_count && draws; i++) {
        draws = compute->row_sequences[i]->params.top_logprobs == 0;
    }
    return draws;
}

/* What the sampler would be asked. A row whose sequence has more to compute is drawn too, for
 * nothing. */
static kv_status_t decode_drawn(kv_compute_t *compute, uint32_t row_count, kv_error_t *error)
{
    for (uint32_t i = 0; i < row_count; i++) {
        const kv_sampling_t *sampling = &compute->row_sequences[i]->params.sampling;
        compute->draws[i] = (kv_draw_t){
            .temperature = sampling->temperature,
            .top_k = sampling->top_k,
            .top_p = sampling->top_p,
            .seed = sampling->seed,
            .position = (uint64_t)compute->rows[i].position + 1,
        };
    }
    return kv_engine_draw(compute->engine, compute->rows, row_count, compute->draws,
        compute->drawn_tokens, compute->drawn_logprobs, error);
}

/* The token of a row of the step. */
static void take_row(kv_compute_t *compute, uint32_t row, bool drawn)
{
    sequence_t *sequence = compute->row_sequences[row];
    if (drawn) {
        take_drawn(sequence, &(kv_compute_event_t){.type = KV_COMPUTE_TOKEN,
                                 .id = sequence->params.id,
                                 .token = compute->drawn_tokens[row],
                                 .logprob = compute->drawn_logprobs[row]});
    } else {
        take_token(sequence, compute->logits + (size_t)row * compute->info->vocabulary_count);
    }
}

/* One decode step for up to batch_rows_max tokens of generating sequences. */
static void run_step(kv_compute_t *compute)
{
    uint32_t row_count = fill_rows(compute);
    const bool drawn = device_draws(compute, row_count);
    kv_error_t error;
    kv_status_t status = drawn ? decode_drawn(compute, row_count, &error)
                               : kv_engine_decode(compute->engine, compute->rows, row_count,
                                     compute->logits, &error);
    if (status != KV_OK) {
        kv_log_error("runtime", "decode of %u rows failed: %s", row_count, error.text);
    }
    for (uint32_t i = 0; i < row_count; i++) {
        sequence_t *sequence = compute->row_sequences[i];
        if (i + 1 < row_count && compute->row_sequences[i + 1] == sequence) {
            continue; /* its last row speaks for it */
        }
        if (status != KV_OK) {
            end_failed(sequence, status, &error);
        } else if (sequence->computed_count < sequence->token_count) {
            append(&compute->generating, sequence);
        } else {
            take_row(compute, i, drawn);
        }
    }
}

static void end_cancelled(sequence_t **list)
{
    while (*list != NULL) {
        sequence_t *sequence = *list;
        if (is_cancelled(sequence)) {
            *list = sequence->next;
            end(sequence, KV_CANCELLED, false);
        } else {
            list = &sequence->next;
        }
    }
}

static void accept(kv_compute_t *compute, sequence_t *sequence)
{
    bool prompt = sequence->computed_count < prompt_count(sequence);
    append(prompt ? &compute->prompts : &compute->generating, sequence);
}

static void *run(void *argument)
{
    kv_compute_t *compute = argument;
    sequence_t *sequence;
    for (;;) {
        bool idle = compute->prompts == NULL && compute->generating == NULL;
        if (idle) {
            if (kv_queue_pop_wait(compute->submitted, &sequence) != KV_OK) {
                return NULL;
            }
            accept(compute, sequence);
        }
        while (kv_queue_pop(compute->submitted, &sequence) == KV_OK) {
            accept(compute, sequence);
        }
        end_cancelled(&compute->prompts);
        end_cancelled(&compute->generating);
        if (compute->generating != NULL) {
            run_step(compute);
        }
        if (compute->prompts != NULL) {
            run_chunk(compute);
        }
    }
}

/* ---- the owner thread ---- */

kv_compute_t *kv_compute_create(kv_engine_t *engine, uint32_t chunk_tokens, uint32_t batch_rows_max)
{
    kv_compute_t *compute = kv_allocate(sizeof *compute);
    compute->engine = engine;
    compute->info = kv_engine_info(engine);
    compute->chunk_tokens = chunk_tokens;
    compute->batch_rows_max = batch_rows_max;
    compute->submitted = kv_queue_create(KV_COMPUTE_SEQUENCES_MAX, sizeof(sequence_t *));
    compute->events = kv_queue_create(EVENT_QUEUE_LENGTH, sizeof(kv_compute_event_t));
    compute->sampler = kv_sampler_create(compute->info->vocabulary_count);
    compute->logits = kv_allocate_array(
        batch_rows_max, compute->info->vocabulary_count * sizeof *compute->logits);
    compute->rows = kv_allocate_array(batch_rows_max, sizeof *compute->rows);
    compute->row_sequences = kv_allocate_array(batch_rows_max, sizeof(sequence_t *));
    compute->draws = kv_allocate_array(batch_rows_max, sizeof *compute->draws);
    compute->drawn_tokens = kv_allocate_array(batch_rows_max, sizeof *compute->drawn_tokens);
    compute->drawn_logprobs = kv_allocate_array(batch_rows_max, sizeof *compute->drawn_logprobs);
    pthread_mutex_init(&compute->lock, NULL);
    pthread_cond_init(&compute->layers_came, NULL);
    KV_CHECK(pthread_create(&compute->thread, NULL, run, compute) == 0);
    pthread_setname_np(compute->thread, "compute");
    return compute;
}

void kv_compute_destroy(kv_compute_t *compute)
{
    if (compute == NULL) {
        return;
    }
    KV_CHECK(compute->known == NULL);
    kv_queue_close(compute->submitted);
    pthread_join(compute->thread, NULL);
    kv_queue_destroy(compute->submitted);
    kv_queue_destroy(compute->events);
    kv_sampler_destroy(compute->sampler);
    free(compute->logits);
    free(compute->rows);
    free(compute->row_sequences);
    free(compute->draws);
    free(compute->drawn_tokens);
    free(compute->drawn_logprobs);
    pthread_cond_destroy(&compute->layers_came);
    pthread_mutex_destroy(&compute->lock);
    free(compute);
}

static kv_status_t validate(
    const kv_compute_t *compute, const kv_compute_sequence_t *sequence, kv_error_t *error)
{
    uint64_t total = (uint64_t)sequence->token_count + sequence->generate_max;
    if (sequence->token_count == 0 || sequence->generate_max == 0) {
        return kv_fail(error, KV_INVALID,
            "a sequence of %u tokens, %u to generate (both at least 1)", sequence->token_count,
            sequence->generate_max);
    }
    if (total > compute->info->context_tokens_max) {
        return kv_fail(error, KV_INVALID,
            "%u prompt tokens and %u to generate do not fit the model's context of %u tokens",
            sequence->token_count, sequence->generate_max, compute->info->context_tokens_max);
    }
    for (uint32_t i = 0; i < sequence->token_count; i++) {
        if (sequence->tokens[i] >= compute->info->vocabulary_count) {
            return kv_fail(error, KV_INVALID, "token %u is %u, the vocabulary has %u", i,
                sequence->tokens[i], compute->info->vocabulary_count);
        }
    }
    return kv_sampling_validate(&sequence->sampling, error);
}

kv_status_t kv_compute_submit(
    kv_compute_t *compute, const kv_compute_sequence_t *params, kv_error_t *error)
{
    KV_CHECK(params->computed_count < params->token_count);
    KV_CHECK(params->generated_count < params->token_count);
    KV_CHECK(!params->layers_come ||
             params->computed_count < params->token_count - params->generated_count);
    kv_status_t status = validate(compute, params, error);
    if (status != KV_OK) {
        return status;
    }
    if (compute->known_count == KV_COMPUTE_SEQUENCES_MAX) {
        return kv_fail(
            error, KV_BUSY, "%d sequences are running already", KV_COMPUTE_SEQUENCES_MAX);
    }
    sequence_t *sequence = kv_allocate(sizeof *sequence);
    sequence->params = *params;
    sequence->compute = compute;
    sequence->tokens =
        kv_allocate_array(params->token_count + params->generate_max, sizeof *sequence->tokens);
    memcpy(sequence->tokens, params->tokens, params->token_count * sizeof *sequence->tokens);
    sequence->params.tokens = NULL;
    sequence->token_count = params->token_count;
    sequence->computed_count = params->computed_count;
    sequence->layers_there = params->layers_come ? 0 : compute->info->shape.layer_count;
    sequence->known_next = compute->known;
    compute->known = sequence;
    compute->known_count++;
    KV_CHECK(
        kv_queue_push(compute->submitted, &sequence) == KV_OK); /* it holds all that may live */
    return KV_OK;
}

static sequence_t **find(kv_compute_t *compute, uint64_t id)
{
    sequence_t **at = &compute->known;
    while (*at != NULL && (*at)->params.id != id) {
        at = &(*at)->known_next;
    }
    return at;
}

void kv_compute_cancel(kv_compute_t *compute, uint64_t id)
{
    sequence_t *sequence = *find(compute, id);
    if (sequence != NULL) {
        pthread_mutex_lock(&compute->lock);
        __atomic_store_n(&sequence->cancelled, true, __ATOMIC_RELAXED);
        pthread_cond_signal(&compute->layers_came);
        pthread_mutex_unlock(&compute->lock);
    }
}

void kv_compute_layers(kv_compute_t *compute, uint64_t id, kv_status_t status, uint32_t layer_count)
{
    sequence_t *sequence = *find(compute, id);
    if (sequence != NULL) {
        pthread_mutex_lock(&compute->lock);
        sequence->layers_there = status == KV_OK ? layer_count : sequence->layers_there;
        sequence->layers_status = status;
        pthread_cond_signal(&compute->layers_came);
        pthread_mutex_unlock(&compute->lock);
    }
}

int kv_compute_fd(const kv_compute_t *compute)
{
    return kv_queue_fd(compute->events);
}

kv_status_t kv_compute_poll(kv_compute_t *compute, kv_compute_event_t *event_out)
{
    kv_status_t status = kv_queue_pop(compute->events, event_out);
    if (status == KV_OK && event_out->type == KV_COMPUTE_ENDED) {
        /* The compute thread let go of the sequence when it emitted this. */
        sequence_t **at = find(compute, event_out->id);
        sequence_t *sequence = *at;
        *at = sequence->known_next;
        compute->known_count--;
        compute->ended = sequence->failure;
        event_out->error = compute->ended.text;
        free(sequence->tokens);
        free(sequence);
    }
    return status;
}
