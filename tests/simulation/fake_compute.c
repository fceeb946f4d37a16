#include "simulation/fake_compute.h"

#include "base/memory.h"
#include "engine/engine.h"
#include "simulation/mailboxes.h"
#include "simulation/model.h"
#include "simulation/ownership.h"
#include "simulation/process.h"

#include <stdlib.h>
#include <string.h>

typedef struct sequence sequence_t;
struct sequence {
    sequence_t *next;
    kv_compute_sequence_t params;
    uint32_t *tokens, *slots;
    uint32_t token_count, computed_count, generated_count, slot_count;
    uint32_t chunk_count, layer; /* of the chunk under way; 0: none is */
    uint32_t layers_there;       /* of what was computed elsewhere */
    kv_status_t layers_status;
    bool cancelled;
    kv_compute_t *compute;
};

typedef struct queued queued_t;
struct queued {
    queued_t *next;
    kv_compute_event_t event;
};

struct kv_engine {
    kv_device_t *device;
    kv_engine_info_t info;
    void *arena;
};

struct kv_compute {
    kv_engine_t *engine;
    uint32_t chunk_tokens, batch_rows;
    int fd;
    sequence_t *prompts, *generating; /* in order */
    queued_t *events, **events_tail;
    uint32_t known_count;
};

static uint32_t busy_chance, fail_chance;

void compute_set_failures(uint32_t busy, uint32_t fails)
{
    busy_chance = busy;
    fail_chance = fails;
}

/* ---- engine ---- */

kv_status_t kv_engine_open(kv_device_t *device, const kv_engine_params_t *params,
    kv_engine_t **engine_out, kv_error_t *error)
{
    (void)error;
    kv_engine_t *engine = kv_allocate(sizeof *engine);
    engine->device = device;
    engine->info = (kv_engine_info_t){
        .architecture = "simulated",
        .name = "simulated",
        .vocabulary_count = MODEL_VOCABULARY,
        .context_tokens_max = MODEL_CONTEXT_TOKENS,
        .end_token = MODEL_END_TOKEN,
        .shape = MODEL_SHAPE,
        .slot_count = params->slot_count,
        .prefill_arithmetic = "simulated/prefill/v1",
        .decode_arithmetic = "simulated/decode/v1",
    };
    engine->arena = kv_allocate_array(params->slot_count, kv_block_bytes(&MODEL_SHAPE));
    ownership_open(process_current(), engine->arena, params->slot_count);
    *engine_out = engine;
    return KV_OK;
}

void kv_engine_close(kv_engine_t *engine)
{
    ownership_close(process_current());
    free(engine->arena);
    free(engine);
}

const kv_engine_info_t *kv_engine_info(const kv_engine_t *engine)
{
    return &engine->info;
}

void *kv_engine_arena(kv_engine_t *engine)
{
    return engine->arena;
}

/* ---- owner's calls ---- */

kv_compute_t *kv_compute_create(kv_engine_t *engine, uint32_t chunk_tokens, uint32_t batch_rows_max)
{
    kv_compute_t *compute = kv_allocate(sizeof *compute);
    compute->engine = engine;
    compute->chunk_tokens = chunk_tokens;
    compute->batch_rows = batch_rows_max;
    compute->events_tail = &compute->events;
    compute->fd = mailbox_new_descriptor();
    process_current()->compute = compute;
    return compute;
}

void kv_compute_destroy(kv_compute_t *compute)
{
    if (compute == NULL) {
        return;
    }
    if (compute->known_count > 0) {
        violation("compute is destroyed with %u sequences", compute->known_count);
    }
    process_current()->compute = NULL;
    free(compute);
}

int kv_compute_fd(const kv_compute_t *compute)
{
    return compute->fd;
}

static void append(sequence_t **list, sequence_t *sequence)
{
    while (*list != NULL) {
        list = &(*list)->next;
    }
    sequence->next = NULL;
    *list = sequence;
}

/* Tokens before this one are the prompt's. */
static uint32_t prompt_count(const sequence_t *sequence)
{
    return sequence->params.token_count - sequence->params.generated_count;
}

/* What the sequence says is computed has to be there, now. */
static void check_computed(const sequence_t *sequence, const char *when)
{
    uint32_t layer, position;
    if (!model_check(sequence->compute->engine->arena, sequence->slots, sequence->tokens,
            sequence->computed_count, sequence->layers_there, &layer, &position)) {
        violation("%s sequence %llu: the KV of layer %u, position %u of %u (slot %u) is wrong",
            when, (unsigned long long)sequence->params.id, layer, position,
            sequence->computed_count, sequence->slots[position / MODEL_BLOCK_TOKENS]);
    }
}

kv_status_t kv_compute_submit(
    kv_compute_t *compute, const kv_compute_sequence_t *params, kv_error_t *error)
{
    if (chance(busy_chance)) {
        return kv_fail(error, KV_BUSY, "simulated: too many sequences");
    }
    if (params->computed_count >= params->token_count || params->generate_max == 0 ||
        params->generated_count >= params->token_count) {
        violation("submit of %u tokens, %u computed, %u to generate", params->token_count,
            params->computed_count, params->generate_max);
    }
    uint32_t total = params->token_count + params->generate_max;
    sequence_t *sequence = kv_allocate(sizeof *sequence);
    sequence->params = *params;
    sequence->compute = compute;
    sequence->token_count = params->token_count;
    sequence->computed_count = params->computed_count;
    sequence->layers_there = params->layers_come ? 0 : MODEL_LAYERS;
    if (params->layers_come &&
        params->computed_count >= params->token_count - params->generated_count) {
        violation("layers come of a sequence without a prompt");
    }
    sequence->tokens = kv_allocate_array(total, sizeof *sequence->tokens);
    memcpy(sequence->tokens, params->tokens, params->token_count * sizeof *sequence->tokens);
    sequence->slot_count = (total - 2) / MODEL_BLOCK_TOKENS + 1;
    sequence->slots = kv_allocate_array(sequence->slot_count, sizeof *sequence->slots);
    memcpy(sequence->slots, params->slots, sequence->slot_count * sizeof *sequence->slots);
    compute->known_count++;
    ownership_compute(process_current(), params->slots, params->computed_count / MODEL_BLOCK_TOKENS,
        sequence->slot_count, true);
    check_computed(sequence, "submitted");
    bool prompt = sequence->computed_count < prompt_count(sequence);
    append(prompt ? &compute->prompts : &compute->generating, sequence);
    trace("compute: sequence %llu, %u tokens, %u computed, %u to generate",
        (unsigned long long)params->id, params->token_count, params->computed_count,
        params->generate_max);
    return KV_OK;
}

static void cancel_in(sequence_t *list, uint64_t id)
{
    for (; list != NULL; list = list->next) {
        list->cancelled |= list->params.id == id;
    }
}

void kv_compute_cancel(kv_compute_t *compute, uint64_t id)
{
    cancel_in(compute->prompts, id);
    cancel_in(compute->generating, id);
}

void kv_compute_layers(kv_compute_t *compute, uint64_t id, kv_status_t status, uint32_t layer_count)
{
    for (sequence_t *at = compute->prompts; at != NULL; at = at->next) {
        if (at->params.id == id) {
            at->layers_there = status == KV_OK ? layer_count : at->layers_there;
            at->layers_status = status;
            check_computed(at, "layers came of");
        }
    }
}

/* The first that need not wait for a layer. */
static sequence_t **first_prompt(kv_compute_t *compute)
{
    sequence_t **at = &compute->prompts;
    while (*at != NULL && (*at)->layers_status == KV_OK && (*at)->layers_there < MODEL_LAYERS &&
           ((*at)->chunk_count > 0 ? (*at)->layer : 0) >= (*at)->layers_there) {
        at = &(*at)->next;
    }
    return at;
}

kv_status_t kv_compute_poll(kv_compute_t *compute, kv_compute_event_t *event_out)
{
    queued_t *queued = compute->events;
    if (queued == NULL) {
        return KV_MISSING;
    }
    compute->events = queued->next;
    if (compute->events == NULL) {
        compute->events_tail = &compute->events;
    }
    *event_out = queued->event;
    free(queued);
    compute->known_count -= event_out->type == KV_COMPUTE_ENDED;
    return KV_OK;
}

bool compute_has_events(const kv_compute_t *compute)
{
    return compute->events != NULL;
}

static bool has_cancelled(const sequence_t *list)
{
    while (list != NULL && !list->cancelled) {
        list = list->next;
    }
    return list != NULL;
}

bool compute_has_work(const kv_compute_t *compute)
{
    return *first_prompt((kv_compute_t *)(uintptr_t)compute) != NULL ||
           compute->generating != NULL || has_cancelled(compute->prompts);
}

uint32_t compute_sequence_count(const kv_compute_t *compute)
{
    return compute->known_count;
}

/* ---- its turns ---- */

static void emit(const sequence_t *sequence, kv_compute_event_t event)
{
    kv_compute_t *compute = sequence->compute;
    queued_t *queued = kv_allocate(sizeof *queued);
    queued->event = event;
    queued->event.id = sequence->params.id;
    queued->event.at_ns = world_now_ns();
    *compute->events_tail = queued;
    compute->events_tail = &queued->next;
}

/* The sequence is in no list. Its last access to the slots is over. */
static void end(sequence_t *sequence, kv_status_t status, bool end_token)
{
    ownership_compute(process_current(), sequence->params.slots,
        sequence->params.computed_count / MODEL_BLOCK_TOKENS, sequence->slot_count, false);
    emit(sequence, (kv_compute_event_t){.type = KV_COMPUTE_ENDED,
                       .status = status,
                       .error = kv_status_name(status),
                       .end_token = end_token});
    free(sequence->tokens);
    free(sequence->slots);
    free(sequence);
}

static void write_row(const sequence_t *sequence, uint32_t layer, uint32_t position)
{
    void *arena = sequence->compute->engine->arena;
    uint64_t *row = model_row_at(arena, sequence->slots, layer, position);
    const uint64_t *before =
        position > 0 ? model_row_at(arena, sequence->slots, layer, position - 1) : NULL;
    ownership_written(process_current(), sequence->slots[position / MODEL_BLOCK_TOKENS], "compute");
    model_row(layer, before, sequence->tokens[position], row);
}

/* The sequence is in no list; it goes on generating, or ends. */
static void take_token(sequence_t *sequence)
{
    check_computed(sequence, "drawing");
    uint32_t token =
        model_draw(sequence->compute->engine->arena, sequence->slots, sequence->computed_count);
    sequence->tokens[sequence->token_count++] = token;
    sequence->generated_count++;
    emit(sequence, (kv_compute_event_t){.type = KV_COMPUTE_TOKEN, .token = token});
    bool ends = token == MODEL_END_TOKEN && !sequence->params.ignore_end;
    if (ends || sequence->generated_count == sequence->params.generate_max) {
        end(sequence, KV_OK, ends);
    } else {
        append(&sequence->compute->generating, sequence);
    }
}

static sequence_t *take_first(sequence_t **list)
{
    sequence_t *first = *list;
    *list = first->next;
    return first;
}

static void run_step(kv_compute_t *compute)
{
    sequence_t *rows[64];
    uint32_t count = 0;
    while (compute->generating != NULL && count < compute->batch_rows && count < 64) {
        rows[count++] = take_first(&compute->generating);
    }
    for (uint32_t i = 0; i < count; i++) {
        sequence_t *sequence = rows[i];
        if (chance(fail_chance)) {
            end(sequence, KV_FATAL, false);
            continue;
        }
        for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++) {
            write_row(sequence, layer, sequence->computed_count);
        }
        if (++sequence->computed_count < sequence->token_count) { /* generated elsewhere */
            append(&compute->generating, sequence);
        } else {
            take_token(sequence);
        }
    }
}

/* One layer of the chunk of the oldest prompt that need not wait. */
static void run_layer(kv_compute_t *compute)
{
    sequence_t **at = first_prompt(compute), *sequence = *at;
    if (sequence == NULL) {
        return;
    }
    if (sequence->layers_status != KV_OK) {
        end(take_first(at), sequence->layers_status, false);
        return;
    }
    uint32_t first = sequence->computed_count;
    if (sequence->chunk_count == 0) {
        uint32_t boundary = (first / compute->chunk_tokens + 1) * compute->chunk_tokens;
        uint32_t prompt = prompt_count(sequence);
        uint32_t last = boundary < prompt ? boundary : prompt;
        sequence->chunk_count = last - first;
        sequence->layer = 0;
    }
    if (chance(fail_chance)) {
        end(take_first(at), KV_FATAL, false);
        return;
    }
    uint32_t count = sequence->chunk_count, layer = sequence->layer++;
    for (uint32_t i = 0; i < count; i++) {
        write_row(sequence, layer, first + i);
    }
    if (sequence->params.report_layers) {
        emit(sequence,
            (kv_compute_event_t){
                .type = KV_COMPUTE_LAYER, .layer = layer, .first = first, .count = count});
    }
    if (sequence->layer < MODEL_LAYERS) {
        return;
    }
    sequence->computed_count += count;
    sequence->chunk_count = 0;
    emit(sequence, (kv_compute_event_t){.type = KV_COMPUTE_CHUNK, .first = first, .count = count});
    if (sequence->computed_count == sequence->token_count) {
        take_token(take_first(at));
    } else if (sequence->computed_count == prompt_count(sequence)) {
        append(&compute->generating, take_first(at));
    }
}

static void end_cancelled(sequence_t **list)
{
    while (*list != NULL) {
        if ((*list)->cancelled) {
            end(take_first(list), KV_CANCELLED, false);
        } else {
            list = &(*list)->next;
        }
    }
}

void compute_turn(void *subject, uint64_t detail)
{
    process_t *process = subject;
    kv_compute_t *compute = process->compute;
    (void)detail;
    process->compute_due = false;
    if (compute == NULL) {
        return;
    }
    end_cancelled(&compute->prompts);
    end_cancelled(&compute->generating);
    if (compute->generating != NULL) {
        run_step(compute);
    }
    if (compute->prompts != NULL) {
        run_layer(compute);
    }
}
