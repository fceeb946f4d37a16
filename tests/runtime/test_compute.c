/* The compute thread against an engine of our own: the linker takes these functions instead of
 * engine.c's. The engine draws token (position + 1) % VOCABULARY after every position, and
 * remembers what it was asked. */
#include "runtime/compute.h"

#include "base/clock.h"
#include "testing/testing.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VOCABULARY = 50, END_TOKEN = 49, CHUNK = 64, ROWS = 2, LAYERS = 3, CALLS_MAX = 256 };

typedef struct {
    uint32_t position, count; /* of a chunk; of a decode step: 0 and the rows */
    bool decode;
} call_t;

static call_t calls[CALLS_MAX];
static uint32_t call_count;
static uint32_t fail_at_position = UINT32_MAX;
static bool wait_for_cancel;
static uint32_t drawn_count;         /* rows whose token the engine drew */
static _Atomic uint32_t layers_told; /* of the sequence whose layers come */
static kv_engine_info_t info = {.vocabulary_count = VOCABULARY,
    .context_tokens_max = 1000,
    .end_token = END_TOKEN,
    .shape = {LAYERS, 1, 8, 16, 2}};

const kv_engine_info_t *kv_engine_info(const kv_engine_t *engine)
{
    (void)engine;
    return &info;
}

static void answer(uint32_t position, float *logits)
{
    memset(logits, 0, VOCABULARY * sizeof *logits);
    logits[(position + 1) % VOCABULARY] = 9;
}

kv_status_t kv_engine_prefill(
    kv_engine_t *engine, const kv_engine_chunk_t *chunk, float *logits_out, kv_error_t *error)
{
    (void)engine;
    while (wait_for_cancel && !__atomic_load_n(chunk->cancelled, __ATOMIC_RELAXED)) {
        nanosleep(&(struct timespec){0, KV_NS_PER_MS}, NULL);
    }
    if (wait_for_cancel) {
        return kv_fail(error, KV_CANCELLED, "cancelled");
    }
    if (chunk->position == fail_at_position) {
        return kv_fail(error, KV_FATAL, "told to fail");
    }
    calls[call_count++] = (call_t){chunk->position, chunk->token_count, false};
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        if (chunk->layer_done != NULL) {
            chunk->layer_done(chunk->context, layer);
        }
        kv_status_t status =
            chunk->layer_needed != NULL ? chunk->layer_needed(chunk->context, layer, error) : KV_OK;
        if (status != KV_OK) {
            return status;
        }
        assert_true(chunk->layer_needed == NULL || layers_told > layer);
    }
    if (logits_out != NULL) {
        answer(chunk->position + chunk->token_count - 1, logits_out);
    }
    return KV_OK;
}

kv_status_t kv_engine_decode(kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count,
    float *logits_out, kv_error_t *error)
{
    (void)engine;
    (void)error;
    calls[call_count++] = (call_t){0, row_count, true};
    for (uint32_t i = 0; i < row_count; i++) {
        assert_int_equal(rows[i].token, rows[i].position % VOCABULARY);
        answer(rows[i].position, logits_out + (size_t)i * VOCABULARY);
    }
    return KV_OK;
}

kv_status_t kv_engine_draw(kv_engine_t *engine, const kv_engine_row_t *rows, uint32_t row_count,
    const kv_draw_t *draws, uint32_t *tokens_out, float *logprobs_out, kv_error_t *error)
{
    (void)engine;
    (void)error;
    calls[call_count++] = (call_t){0, row_count, true};
    drawn_count += row_count;
    for (uint32_t i = 0; i < row_count; i++) {
        assert_int_equal(rows[i].token, rows[i].position % VOCABULARY);
        assert_int_equal(draws[i].position, rows[i].position + 1);
        assert_true(draws[i].top_p == 1);
        tokens_out[i] = (rows[i].position + 1) % VOCABULARY;
        logprobs_out[i] = -0.5f;
    }
    return KV_OK;
}

static uint32_t tokens[1000];
static const uint32_t SLOTS[100];

static kv_compute_t *begin(void)
{
    call_count = 0;
    fail_at_position = UINT32_MAX;
    wait_for_cancel = false;
    drawn_count = 0;
    info.draws = false;
    for (uint32_t i = 0; i < 1000; i++) {
        tokens[i] = i % VOCABULARY;
    }
    return kv_compute_create(NULL, CHUNK, ROWS);
}

static kv_compute_sequence_t sequence(uint64_t id, uint32_t token_count, uint32_t generate_max)
{
    return (kv_compute_sequence_t){.id = id,
        .tokens = tokens,
        .token_count = token_count,
        .slots = SLOTS,
        .generate_max = generate_max,
        .sampling = {.top_p = 1}};
}

static kv_compute_event_t next_event(kv_compute_t *compute)
{
    kv_compute_event_t event;
    struct pollfd poll_fd = {.fd = kv_compute_fd(compute), .events = POLLIN};
    while (kv_compute_poll(compute, &event) != KV_OK) {
        assert_int_equal(poll(&poll_fd, 1, 5000), 1);
    }
    return event;
}

static void prompt_runs_in_aligned_chunks_then_generates(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t params = sequence(7, 150, 3);
    params.computed_count = 32;
    params.report_layers = true;
    assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    static const uint32_t FIRSTS[] = {32, 64, 128}, COUNTS[] = {32, 64, 22};
    for (int chunk = 0; chunk < 3; chunk++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            kv_compute_event_t event = next_event(compute);
            assert_int_equal(event.type, KV_COMPUTE_LAYER);
            assert_int_equal(event.layer, layer);
            assert_int_equal(event.first, FIRSTS[chunk]);
            assert_int_equal(event.count, COUNTS[chunk]);
        }
        kv_compute_event_t event = next_event(compute);
        assert_int_equal(event.type, KV_COMPUTE_CHUNK);
        assert_int_equal(event.first, FIRSTS[chunk]);
        assert_int_equal(event.count, COUNTS[chunk]);
    }
    for (uint32_t i = 0; i < 3; i++) {
        kv_compute_event_t event = next_event(compute);
        assert_int_equal(event.type, KV_COMPUTE_TOKEN);
        assert_int_equal(event.token, (150 + i) % VOCABULARY);
    }
    kv_compute_event_t event = next_event(compute);
    assert_int_equal(event.type, KV_COMPUTE_ENDED);
    assert_int_equal(event.status, KV_OK);
    assert_false(event.end_token);
    kv_compute_destroy(compute);
}

static void sequence_from_elsewhere_goes_straight_to_decoding(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t params = sequence(1, 48, 5); /* draws 48 % 50, then the end token */
    params.computed_count = 47;
    params.generated_count = 1;
    assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    assert_int_equal(next_event(compute).token, 48);
    assert_int_equal(next_event(compute).token, END_TOKEN);
    kv_compute_event_t event = next_event(compute);
    assert_int_equal(event.type, KV_COMPUTE_ENDED);
    assert_true(event.end_token);
    assert_true(calls[0].decode && calls[1].decode);
    kv_compute_destroy(compute);
}

/* The first token comes from the prompt's logits; those of a sequence that shows its alternatives
 * from logits always. */
static void what_a_device_draws_is_taken(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    info.draws = true;
    for (uint32_t tops = 0; tops <= 2; tops += 2) {
        kv_compute_sequence_t params = sequence(1 + tops, 20, 4);
        params.top_logprobs = tops;
        assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
        assert_int_equal(next_event(compute).type, KV_COMPUTE_CHUNK);
        for (uint32_t i = 0; i < 4; i++) {
            kv_compute_event_t event = next_event(compute);
            assert_int_equal(event.token, 20 + i);
            assert_int_equal(event.tops.count, tops);
            assert_true((event.logprob == -0.5f) == (tops == 0 && i > 0));
        }
        assert_int_equal(next_event(compute).type, KV_COMPUTE_ENDED);
        assert_int_equal(drawn_count, 3);
    }
    kv_compute_destroy(compute);
}

/* A prompt of 38 tokens, 10 that were generated elsewhere: the prompt by prefill, those in steps of
 * as many rows as there are, then it goes on. */
static void what_was_generated_elsewhere_is_decoded_again(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t params = sequence(1, 48, 5);
    params.computed_count = 16;
    params.generated_count = 10;
    assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    kv_compute_event_t event = next_event(compute);
    assert_int_equal(event.type, KV_COMPUTE_CHUNK);
    assert_int_equal(event.first + event.count, 38);
    event = next_event(compute);
    assert_int_equal(event.type, KV_COMPUTE_TOKEN);
    assert_int_equal(event.token, 48);
    assert_int_equal(next_event(compute).token, END_TOKEN);
    assert_true(next_event(compute).end_token);
    assert_int_equal(call_count, 1 + 10 / ROWS + 1);
    for (uint32_t i = 1; i <= 10 / ROWS; i++) {
        assert_true(calls[i].decode);
        assert_int_equal(calls[i].count, ROWS);
    }
    kv_compute_destroy(compute);
}

/* Decoding again takes what rows are left; the others have theirs in every step. */
static void decoding_again_holds_nobody_up(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t other = sequence(1, 5, 30), again = sequence(2, 45, 2);
    other.computed_count = 4;
    other.generated_count = 1;
    again.computed_count = 5;
    again.generated_count = 40;
    assert_int_equal(kv_compute_submit(compute, &other, NULL), KV_OK);
    assert_int_equal(kv_compute_submit(compute, &again, NULL), KV_OK);
    uint32_t ended = 0, counts[3] = {0};
    while (ended < 2) {
        kv_compute_event_t event = next_event(compute);
        if (event.type == KV_COMPUTE_TOKEN) {
            assert_int_equal(event.token, (event.id == 1 ? 5 : 45) + counts[event.id]++);
        }
        ended += event.type == KV_COMPUTE_ENDED;
    }
    assert_int_equal(counts[1], 30);
    assert_int_equal(counts[2], 2);
    uint32_t alone = 0; /* calls before both were there */
    while (alone < call_count && calls[alone].count < 2) {
        alone++;
    }
    assert_true(call_count - alone <= 44); /* 40 + 2 - 1 alone; the other's 30 beside them */
    kv_compute_destroy(compute);
}

static void end_token_is_passed_over_when_told(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t params = sequence(1, 48, 4);
    params.ignore_end = true;
    assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    uint32_t token_count = 0;
    kv_compute_event_t event;
    while ((event = next_event(compute)).type != KV_COMPUTE_ENDED) {
        token_count += event.type == KV_COMPUTE_TOKEN;
    }
    assert_int_equal(token_count, 4);
    assert_false(event.end_token);
    kv_compute_destroy(compute);
}

static void more_sequences_than_rows_all_get_their_turns(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    for (uint64_t id = 1; id <= 5; id++) {
        kv_compute_sequence_t params = sequence(id, 10 + (uint32_t)id, 6);
        assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    }
    uint32_t token_counts[6] = {0}, ended = 0;
    while (ended < 5) {
        kv_compute_event_t event = next_event(compute);
        if (event.type == KV_COMPUTE_TOKEN) {
            assert_int_equal(event.token, (10 + event.id + token_counts[event.id]) % VOCABULARY);
            token_counts[event.id]++;
        }
        ended += event.type == KV_COMPUTE_ENDED;
    }
    for (int id = 1; id <= 5; id++) {
        assert_int_equal(token_counts[id], 6);
    }
    for (uint32_t i = 0; i < call_count; i++) {
        assert_true(!calls[i].decode || calls[i].count <= ROWS);
    }
    kv_compute_destroy(compute);
}

static void cancel_reaches_a_chunk_that_is_running(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    wait_for_cancel = true;
    kv_compute_sequence_t params = sequence(3, 100, 2);
    assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    kv_compute_cancel(compute, 99); /* unknown: ignored */
    kv_compute_cancel(compute, 3);
    kv_compute_event_t event = next_event(compute);
    assert_int_equal(event.type, KV_COMPUTE_ENDED);
    assert_int_equal(event.status, KV_CANCELLED);
    kv_compute_cancel(compute, 3); /* ended: ignored */
    kv_compute_destroy(compute);
}

static void tell_layers(kv_compute_t *compute, uint64_t id, uint32_t layer_count)
{
    layers_told = layer_count;
    kv_compute_layers(compute, id, KV_OK, layer_count);
}

static kv_compute_sequence_t sequence_of_layers(uint64_t id)
{
    kv_compute_sequence_t params = sequence(id, 40, 1);
    params.computed_count = 16;
    params.layers_come = params.report_layers = true;
    return params;
}

static void no_layer_is_read_before_it_came(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t params = sequence_of_layers(1);
    layers_told = 0;
    assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
    kv_compute_layers(compute, 99, KV_OK, LAYERS); /* unknown: ignored */
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        kv_compute_event_t event = next_event(compute); /* computed before it is read */
        assert_int_equal(event.type, KV_COMPUTE_LAYER);
        assert_int_equal(event.layer, layer);
        tell_layers(compute, 1, layer + 1);
    }
    assert_int_equal(next_event(compute).type, KV_COMPUTE_CHUNK);
    assert_int_equal(next_event(compute).type, KV_COMPUTE_TOKEN);
    kv_compute_event_t event = next_event(compute);
    assert_int_equal(event.type, KV_COMPUTE_ENDED);
    assert_int_equal(event.status, KV_OK);
    kv_compute_destroy(compute);
}

/* The first one may be waited for already; the second one is not before the third had its turn. */
static void prompts_that_need_not_wait_go_first(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_compute_sequence_t first = sequence_of_layers(1), second = sequence_of_layers(2),
                          third = sequence(3, 40, 1);
    layers_told = 0;
    assert_int_equal(kv_compute_submit(compute, &first, NULL), KV_OK);
    assert_int_equal(kv_compute_submit(compute, &second, NULL), KV_OK);
    assert_int_equal(kv_compute_submit(compute, &third, NULL), KV_OK);
    tell_layers(compute, 1, LAYERS);
    for (uint32_t ended = 0; ended < 2;) {
        kv_compute_event_t event = next_event(compute);
        assert_true(event.id != 2 || event.type == KV_COMPUTE_LAYER);
        ended += event.type == KV_COMPUTE_ENDED;
    }
    tell_layers(compute, 2, LAYERS);
    kv_compute_event_t event;
    while ((event = next_event(compute)).type != KV_COMPUTE_ENDED) {
    }
    assert_int_equal(event.id, 2);
    assert_int_equal(event.status, KV_OK);
    kv_compute_destroy(compute);
}

/* After the first layer, or before the sequence has its turn at all. */
static void a_layer_that_does_not_come_ends_the_sequence(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 4; round++) {
        kv_compute_t *compute = begin();
        kv_compute_sequence_t params = sequence_of_layers(1);
        const bool cancelled = round % 2 == 1;
        layers_told = 0;
        assert_int_equal(kv_compute_submit(compute, &params, NULL), KV_OK);
        if (round < 2) {
            tell_layers(compute, 1, 1);
            assert_int_equal(next_event(compute).layer, 0);
            assert_int_equal(next_event(compute).layer, 1);
        }
        if (cancelled) {
            kv_compute_cancel(compute, 1);
        } else {
            kv_compute_layers(compute, 1, KV_IO, 1);
        }
        kv_compute_event_t event;
        while ((event = next_event(compute)).type == KV_COMPUTE_LAYER) {
        }
        assert_int_equal(event.type, KV_COMPUTE_ENDED);
        assert_int_equal(event.status, cancelled ? KV_CANCELLED : KV_IO);
        kv_compute_destroy(compute);
    }
}

static void failure_of_the_engine_ends_its_sequence_alone(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    fail_at_position = 64;
    kv_compute_sequence_t bad = sequence(1, 100, 2), good = sequence(2, 20, 2);
    assert_int_equal(kv_compute_submit(compute, &bad, NULL), KV_OK);
    assert_int_equal(kv_compute_submit(compute, &good, NULL), KV_OK);
    kv_status_t ends[3] = {KV_BUSY, KV_BUSY, KV_BUSY};
    for (int ended = 0; ended < 2;) {
        kv_compute_event_t event = next_event(compute);
        if (event.type == KV_COMPUTE_ENDED) {
            ends[event.id] = event.status;
            ended++;
            assert_string_equal(event.error, event.id == 1 ? "told to fail" : "");
        }
    }
    assert_int_equal(ends[1], KV_FATAL);
    assert_int_equal(ends[2], KV_OK);
    kv_compute_destroy(compute);
}

static void what_is_out_of_bounds_is_refused_with_its_name(void **state)
{
    (void)state;
    kv_compute_t *compute = begin();
    kv_error_t error;
    kv_compute_sequence_t params = sequence(1, 999, 2);
    assert_int_equal(kv_compute_submit(compute, &params, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "context of 1000"));
    params = sequence(1, 20, 2);
    tokens[11] = VOCABULARY;
    assert_int_equal(kv_compute_submit(compute, &params, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "token 11 is 50"));
    tokens[11] = 11;
    params.sampling.temperature = -1;
    assert_int_equal(kv_compute_submit(compute, &params, &error), KV_INVALID);
    params = sequence(1, 20, 0);
    assert_int_equal(kv_compute_submit(compute, &params, &error), KV_INVALID);
    kv_compute_destroy(compute);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_runs_in_aligned_chunks_then_generates),
        cmocka_unit_test(sequence_from_elsewhere_goes_straight_to_decoding),
        cmocka_unit_test(what_a_device_draws_is_taken),
        cmocka_unit_test(what_was_generated_elsewhere_is_decoded_again),
        cmocka_unit_test(decoding_again_holds_nobody_up),
        cmocka_unit_test(end_token_is_passed_over_when_told),
        cmocka_unit_test(more_sequences_than_rows_all_get_their_turns),
        cmocka_unit_test(cancel_reaches_a_chunk_that_is_running),
        cmocka_unit_test(no_layer_is_read_before_it_came),
        cmocka_unit_test(prompts_that_need_not_wait_go_first),
        cmocka_unit_test(a_layer_that_does_not_come_ends_the_sequence),
        cmocka_unit_test(failure_of_the_engine_ends_its_sequence_alone),
        cmocka_unit_test(what_is_out_of_bounds_is_refused_with_its_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
