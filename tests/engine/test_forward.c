/* The forward pass on small models: what its numbers must not depend on, and what it refuses. */
#include "engine/engine.h"

#include "base/memory.h"
#include "testing/testing.h"
#include "testing/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 400, SLOTS = 96, BATCH_MAX = 8, THREADS = 2 };

static kv_device_t *device;

static int open_device(void **state)
{
    (void)state;
    kv_error_t error;
    return kv_device_cpu_open(THREADS, &device, &error) == KV_OK ? 0 : -1;
}

static int close_device(void **state)
{
    (void)state;
    kv_device_close(device);
    return 0;
}

/* An engine, a shuffled block table and what the last call gave. */
typedef struct {
    kv_engine_t *engine;
    const kv_engine_info_t *info;
    uint32_t slots[SLOTS];
    float logits[BATCH_MAX][KV_TINY_MODEL_VOCABULARY];
} subject_t;

static void open_subject(
    subject_t *subject, const char *path, uint32_t block_tokens, bool f32, uint64_t *random)
{
    const kv_engine_params_t params = {.model_path = path,
        .f32 = f32,
        .block_tokens = block_tokens,
        .chunk_tokens_max = TOKENS_MAX,
        .batch_rows_max = BATCH_MAX,
        .slot_count = SLOTS};
    kv_error_t error;
    if (kv_engine_open(device, &params, &subject->engine, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    subject->info = kv_engine_info(subject->engine);
    for (uint32_t i = 0; i < SLOTS; i++) {
        subject->slots[i] = i;
    }
    for (uint32_t i = SLOTS - 1; i > 0; i--) {
        uint32_t other = (uint32_t)(kv_test_random(random) % (i + 1)), kept = subject->slots[i];
        subject->slots[i] = subject->slots[other];
        subject->slots[other] = kept;
    }
    /* A used arena: whatever an earlier sequence left, not-a-number too, must not be seen. */
    memset(kv_engine_arena(subject->engine), 0xff, SLOTS * kv_block_bytes(&subject->info->shape));
}

static void prefill(subject_t *subject, const uint32_t *tokens, uint32_t position, uint32_t count)
{
    const kv_engine_chunk_t chunk = {.tokens = tokens + position,
        .token_count = count,
        .position = position,
        .slots = subject->slots};
    kv_error_t error;
    if (kv_engine_prefill(subject->engine, &chunk, subject->logits[0], &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
}

/* The vector of a layer's K (kind 0) or V (kind 1). */
static const void *vector(
    subject_t *subject, uint32_t layer, uint32_t kind, uint32_t head, uint32_t position)
{
    const kv_block_shape_t *shape = &subject->info->shape;
    const size_t in_layer = (size_t)(kind * shape->kv_head_count + head) * shape->block_tokens +
                            position % shape->block_tokens;
    return (const char *)kv_engine_arena(subject->engine) +
           subject->slots[position / shape->block_tokens] * kv_block_bytes(shape) +
           layer * kv_block_layer_bytes(shape) + in_layer * shape->head_dim * shape->element_bytes;
}

static void assert_same_kv(
    subject_t *a, subject_t *b, uint32_t first, uint32_t last, const char *what)
{
    const kv_block_shape_t *shape = &a->info->shape;
    const size_t bytes = (size_t)shape->head_dim * shape->element_bytes;
    for (uint32_t position = first; position < last; position++) {
        for (uint32_t i = 0; i < shape->layer_count * 2 * shape->kv_head_count; i++) {
            const uint32_t head = i % shape->kv_head_count, kind = i / shape->kv_head_count % 2,
                           layer = i / shape->kv_head_count / 2;
            if (memcmp(vector(a, layer, kind, head, position),
                    vector(b, layer, kind, head, position), bytes) != 0) {
                fail_msg("%s: layer %u, %s, head %u, position %u differs (seed %llu)", what, layer,
                    kind == 0 ? "K" : "V", head, position, (unsigned long long)kv_test_seed());
            }
        }
    }
}

static void fill_tokens(uint32_t *tokens, uint64_t *random)
{
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
        tokens[i] = (uint32_t)(kv_test_random(random) % KV_TINY_MODEL_VOCABULARY);
    }
}

/* Computes the tokens in random chunks with random block sizes; every K, V and the last logits must
 * be those of one chunk. */
static void check_splits(const kv_tiny_model_t *model, bool f32, int rounds)
{
    static subject_t whole, split;
    static uint32_t tokens[TOKENS_MAX];
    uint64_t random = kv_test_seed();
    const char *path = kv_tiny_model_write(model, "forward.gguf");
    fill_tokens(tokens, &random);
    for (int round = 0; round < rounds; round++) {
        const uint32_t blocks[] = {16, 32, 64, 128},
                       count = 1 + (uint32_t)(kv_test_random(&random) % TOKENS_MAX);
        open_subject(&whole, path, blocks[kv_test_random(&random) % 4], f32, &random);
        prefill(&whole, tokens, 0, count);
        open_subject(&split, path, blocks[round % 4], f32, &random);
        for (uint32_t at = 0; at < count;) {
            const uint32_t wide = kv_test_random(&random) % 2 == 0 ? 9 : 150;
            uint32_t chunk = 1 + (uint32_t)(kv_test_random(&random) % wide);
            chunk = chunk < count - at ? chunk : count - at;
            prefill(&split, tokens, at, chunk);
            at += chunk;
        }
        assert_same_kv(&whole, &split, 0, count, "split");
        assert_memory_equal(whole.logits[0], split.logits[0], sizeof whole.logits[0]);
        kv_engine_close(whole.engine);
        kv_engine_close(split.engine);
    }
}

static void prefill_does_not_depend_on_chunks_or_blocks(void **state)
{
    (void)state;
    const int rounds = kv_test_long() ? 200 : 12;
    check_splits(&(kv_tiny_model_t){.seed = 1}, false, rounds);
    check_splits(&(kv_tiny_model_t){.seed = 2}, true, rounds);
    check_splits(
        &(kv_tiny_model_t){
            .seed = 3, .embedding = 192, .head_count = 3, .kv_head_count = 1, .untied = true},
        false, rounds);
    check_splits(&(kv_tiny_model_t){.seed = 11, .window = 50}, false, rounds);
    check_splits(&(kv_tiny_model_t){.seed = 12, .window = 129}, true, rounds);
}

/* A token's row stands once at every place of a tile: before it, all that changes is where the
 * chunk begins. */
static void a_row_moves_through_its_tile(void **state)
{
    (void)state;
    static subject_t whole, moved;
    static uint32_t tokens[TOKENS_MAX];
    uint64_t random = kv_test_seed();
    const char *path = kv_tiny_model_write(&(kv_tiny_model_t){.seed = 4}, "forward.gguf");
    fill_tokens(tokens, &random);
    const uint32_t count = 200;
    open_subject(&whole, path, 16, false, &random);
    open_subject(&moved, path, 32, false, &random);
    prefill(&whole, tokens, 0, count);
    for (uint32_t start = 64; start < 64 + 130; start++) {
        /* The row at start is the first of its chunk, at place start % 64 of its tile. */
        prefill(&moved, tokens, 0, start);
        prefill(&moved, tokens, start, count - start);
        assert_same_kv(&whole, &moved, 0, count, "moved");
        assert_memory_equal(whole.logits[0], moved.logits[0], sizeof whole.logits[0]);
    }
    kv_engine_close(whole.engine);
    kv_engine_close(moved.engine);
}

/* What earlier positions have comes layer by layer: it lies aside, and in its place lies what must
 * not be seen. */
typedef struct {
    subject_t *subject;
    char *aside; /* [block_count][block bytes] */
    uint32_t block_count;
    uint32_t done, needed; /* layers */
    uint32_t failing;      /* this layer does not come */
} coming_t;

/* A layer of the leading blocks, to aside or from there. */
static void move_layer(coming_t *coming, uint32_t layer, bool in)
{
    const kv_block_shape_t *shape = &coming->subject->info->shape;
    const size_t bytes = kv_block_layer_bytes(shape);
    for (uint32_t block = 0; block < coming->block_count; block++) {
        char *slot = (char *)kv_engine_arena(coming->subject->engine) +
                     coming->subject->slots[block] * kv_block_bytes(shape) + layer * bytes,
             *aside = coming->aside + block * kv_block_bytes(shape) + layer * bytes;
        memcpy(in ? slot : aside, in ? aside : slot, bytes);
        if (!in) {
            memset(slot, 0xff, bytes);
        }
    }
}

static void note_done(void *context, uint32_t layer)
{
    coming_t *coming = context;
    assert_int_equal(layer, coming->done++);
}

static kv_status_t bring_layer(void *context, uint32_t layer, kv_error_t *error)
{
    coming_t *coming = context;
    assert_int_equal(layer, coming->needed++);
    if (layer == coming->failing) {
        return kv_fail(error, KV_IO, "it does not come");
    }
    move_layer(coming, layer, true);
    return KV_OK;
}

/* The second chunk, of tokens 64 to 149, over a first one of which nothing is there yet. */
static kv_status_t prefill_coming(coming_t *coming, const uint32_t *tokens, float *logits_out)
{
    const uint32_t layer_count = coming->subject->info->shape.layer_count;
    coming->done = coming->needed = 0;
    for (uint32_t layer = 0; layer < layer_count; layer++) {
        move_layer(coming, layer, false);
    }
    const kv_engine_chunk_t chunk = {.tokens = tokens + 64,
        .token_count = 150 - 64,
        .position = 64,
        .slots = coming->subject->slots,
        .layer_done = note_done,
        .layer_needed = bring_layer,
        .context = coming};
    kv_error_t error;
    return kv_engine_prefill(coming->subject->engine, &chunk, logits_out, &error);
}

static void a_layer_is_read_when_it_was_asked_for(void **state)
{
    (void)state;
    enum { LAYERS = 4 };
    static subject_t whole, split;
    static uint32_t tokens[TOKENS_MAX];
    uint64_t random = kv_test_seed();
    const char *path =
        kv_tiny_model_write(&(kv_tiny_model_t){.seed = 6, .layer_count = LAYERS}, "forward.gguf");
    fill_tokens(tokens, &random);
    open_subject(&whole, path, 16, false, &random);
    open_subject(&split, path, 16, false, &random);
    prefill(&whole, tokens, 0, 150);
    prefill(&split, tokens, 0, 64);
    coming_t coming = {.subject = &split, .block_count = 64 / 16, .failing = LAYERS};
    coming.aside = malloc(coming.block_count * kv_block_bytes(&split.info->shape));
    for (int logits = 0; logits < 2; logits++) {
        assert_int_equal(
            prefill_coming(&coming, tokens, logits == 1 ? split.logits[0] : NULL), KV_OK);
        assert_int_equal(coming.done, LAYERS);
        assert_int_equal(coming.needed, LAYERS); /* without logits, too: the chunk's end says so */
        assert_same_kv(&whole, &split, 0, 150, "coming");
    }
    assert_memory_equal(whole.logits[0], split.logits[0], sizeof whole.logits[0]);
    for (coming.failing = 0; coming.failing < LAYERS; coming.failing++) {
        assert_int_equal(prefill_coming(&coming, tokens, split.logits[0]), KV_IO);
        assert_int_equal(coming.needed, coming.failing + 1);
        assert_true(coming.done <= coming.failing + 1);
        for (uint32_t layer = coming.failing; layer < LAYERS; layer++) {
            move_layer(&coming, layer, true);
        }
    }
    free(coming.aside);
    kv_engine_close(whole.engine);
    kv_engine_close(split.engine);
}

static void decode_one(subject_t *subject, const uint32_t *tokens, uint32_t position)
{
    const kv_engine_row_t row = {tokens[position], position, subject->slots};
    kv_error_t error;
    assert_int_equal(kv_engine_decode(subject->engine, &row, 1, subject->logits[0], &error), KV_OK);
}

static void decode_follows_prefill(void **state)
{
    (void)state;
    static subject_t prefilled, decoded;
    static uint32_t tokens[TOKENS_MAX];
    uint64_t random = kv_test_seed();
    const char *path = kv_tiny_model_write(&(kv_tiny_model_t){.seed = 5}, "forward.gguf");
    fill_tokens(tokens, &random);
    for (int f32 = 0; f32 < 2; f32++) {
        open_subject(&prefilled, path, 16, f32, &random);
        open_subject(&decoded, path, 64, f32, &random);
        prefill(&prefilled, tokens, 0, 150);
        prefill(&decoded, tokens, 0, 100);
        for (uint32_t position = 100; position < 150; position++) {
            decode_one(&decoded, tokens, position);
        }
        const float tolerance = f32 ? 1e-4f : 0.1f;
        for (int i = 0; i < KV_TINY_MODEL_VOCABULARY; i++) {
            assert_float_equal(prefilled.logits[0][i], decoded.logits[0][i], tolerance);
        }
        kv_engine_close(prefilled.engine);
        kv_engine_close(decoded.engine);
    }
}

/* What a window hides is not seen, the last that it shows is: with one layer, by the bit. */
static void check_window(uint32_t window, uint32_t count, uint32_t tail, bool f32)
{
    static subject_t subject;
    static uint32_t tokens[TOKENS_MAX];
    static float wanted[KV_TINY_MODEL_VOCABULARY];
    uint64_t random = kv_test_seed();
    const char *path = kv_tiny_model_write(
        &(kv_tiny_model_t){.seed = 13, .layer_count = 1, .window = window}, "window.gguf");
    fill_tokens(tokens, &random);
    open_subject(&subject, path, 16, f32, &random);
    for (uint32_t round = 0; round < 3; round++) {
        if (round > 0) {
            /* First the last hidden one, then the first seen one. */
            const uint32_t changed = count - 1 - window + round - 1;
            tokens[changed] = (tokens[changed] + 1) % KV_TINY_MODEL_VOCABULARY;
        }
        prefill(&subject, tokens, 0, tail);
        for (uint32_t position = tail; position < count; position++) {
            decode_one(&subject, tokens, position);
        }
        if (round == 0) {
            memcpy(wanted, subject.logits[0], sizeof wanted);
        }
        const bool same = memcmp(wanted, subject.logits[0], sizeof wanted) == 0;
        assert_true(same == (round < 2));
    }
    kv_engine_close(subject.engine);
}

static void a_window_hides_what_is_before_it(void **state)
{
    (void)state;
    static const struct {
        uint32_t window, count;
    } cases[] = {{1, 2}, {16, 65}, {64, 128}, {65, 200}, {300, 390}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int f32 = 0; f32 < 2; f32++) {
            check_window(cases[i].window, cases[i].count, cases[i].count, f32);
            check_window(cases[i].window, cases[i].count, cases[i].count - 1, f32);
        }
    }
}

/* KV of another window is other KV; one as long as the context is none. */
static void a_window_is_part_of_the_arithmetic(void **state)
{
    (void)state;
    static subject_t plain, windowed, wide;
    uint64_t random = kv_test_seed();
    open_subject(&plain, kv_tiny_model_write(&(kv_tiny_model_t){.seed = 13}, "plain.gguf"), 16,
        false, &random);
    open_subject(&windowed,
        kv_tiny_model_write(&(kv_tiny_model_t){.seed = 13, .window = 80}, "window.gguf"), 16, false,
        &random);
    open_subject(&wide,
        kv_tiny_model_write(&(kv_tiny_model_t){.seed = 13, .window = 512}, "wide.gguf"), 16, false,
        &random);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "%s/w50", plain.info->prefill_arithmetic);
    assert_string_equal(windowed.info->prefill_arithmetic, wanted);
    snprintf(wanted, sizeof wanted, "%s/w50", plain.info->decode_arithmetic);
    assert_string_equal(windowed.info->decode_arithmetic, wanted);
    assert_string_equal(wide.info->prefill_arithmetic, plain.info->prefill_arithmetic);
    assert_string_equal(wide.info->decode_arithmetic, plain.info->decode_arithmetic);
    kv_engine_close(plain.engine);
    kv_engine_close(windowed.engine);
    kv_engine_close(wide.engine);
}

/* Rows of different lengths decoded one by one and in batches of every size: the same bits. */
static void decode_does_not_depend_on_the_batch(void **state)
{
    (void)state;
    static subject_t subject;
    static uint32_t tokens[TOKENS_MAX];
    static float alone[BATCH_MAX][KV_TINY_MODEL_VOCABULARY];
    uint64_t random = kv_test_seed();
    const char *path = kv_tiny_model_write(&(kv_tiny_model_t){.seed = 6}, "forward.gguf");
    fill_tokens(tokens, &random);
    for (int f32 = 0; f32 < 2; f32++) {
        open_subject(&subject, path, 16, f32, &random);
        uint32_t tables[BATCH_MAX][8];
        kv_engine_row_t rows[BATCH_MAX];
        kv_error_t error;
        for (uint32_t row = 0; row < BATCH_MAX; row++) {
            memcpy(tables[row], subject.slots + row * 8, sizeof tables[row]);
            const uint32_t position = 5 + row * 15;
            const kv_engine_chunk_t chunk = {
                .tokens = tokens + row, .token_count = position, .slots = tables[row]};
            assert_int_equal(kv_engine_prefill(subject.engine, &chunk, NULL, &error), KV_OK);
            rows[row] = (kv_engine_row_t){tokens[row + position], position, tables[row]};
            assert_int_equal(
                kv_engine_decode(subject.engine, &rows[row], 1, alone[row], &error), KV_OK);
        }
        for (uint32_t first = 0; first < BATCH_MAX; first++) {
            for (uint32_t count = 1; first + count <= BATCH_MAX; count++) {
                assert_int_equal(kv_engine_decode(subject.engine, rows + first, count,
                                     subject.logits[0], &error),
                    KV_OK);
                assert_memory_equal(alone[first], subject.logits, count * sizeof alone[0]);
            }
        }
        kv_engine_close(subject.engine);
    }
}

/* A sequence that was generated one token a step, made again with several of its tokens in a step:
 * the same KV, the same logits. A request that moves to another node goes on by this. */
static void rows_of_one_sequence_are_as_one_by_one(void **state)
{
    (void)state;
    enum { PROMPT = 37, COUNT = 45 };
    static subject_t slow, quick;
    static uint32_t tokens[TOKENS_MAX];
    uint64_t random = kv_test_seed();
    const char *path = kv_tiny_model_write(&(kv_tiny_model_t){.seed = 7}, "forward.gguf");
    fill_tokens(tokens, &random);
    for (int f32 = 0; f32 < 2; f32++) {
        open_subject(&slow, path, 16, f32, &random);
        open_subject(&quick, path, 16, f32, &random);
        prefill(&slow, tokens, 0, PROMPT);
        prefill(&quick, tokens, 0, PROMPT);
        kv_engine_row_t rows[BATCH_MAX];
        kv_error_t error;
        for (uint32_t position = PROMPT, count; position < PROMPT + COUNT; position += count) {
            count = 1 + (uint32_t)(kv_test_random(&random) % BATCH_MAX);
            count = position + count > PROMPT + COUNT ? PROMPT + COUNT - position : count;
            for (uint32_t i = 0; i < count; i++) {
                rows[i] = (kv_engine_row_t){tokens[position + i], position + i, quick.slots};
            }
            assert_int_equal(
                kv_engine_decode(quick.engine, rows, count, quick.logits[0], &error), KV_OK);
            for (uint32_t i = 0; i < count; i++) {
                decode_one(&slow, tokens, position + i);
                assert_memory_equal(slow.logits[0], quick.logits[i], sizeof slow.logits[0]);
            }
        }
        assert_same_kv(&slow, &quick, 0, PROMPT + COUNT, "several rows in a step");
        kv_engine_close(slow.engine);
        kv_engine_close(quick.engine);
    }
}

typedef struct {
    uint32_t layers, cancel_at;
    bool cancelled;
} progress_t;

static void count_layer(void *context, uint32_t layer)
{
    progress_t *progress = context;
    assert_int_equal(layer, progress->layers);
    progress->layers++;
    progress->cancelled = progress->layers == progress->cancel_at;
}

static void layers_are_announced_in_order_and_cancelled(void **state)
{
    (void)state;
    static subject_t subject;
    static uint32_t tokens[TOKENS_MAX];
    uint64_t random = kv_test_seed();
    const char *path =
        kv_tiny_model_write(&(kv_tiny_model_t){.seed = 7, .layer_count = 5}, "forward.gguf");
    fill_tokens(tokens, &random);
    open_subject(&subject, path, 16, false, &random);
    progress_t progress = {.cancel_at = UINT32_MAX};
    kv_engine_chunk_t chunk = {.tokens = tokens,
        .token_count = 20,
        .slots = subject.slots,
        .layer_done = count_layer,
        .context = &progress,
        .cancelled = &progress.cancelled};
    kv_error_t error;
    assert_int_equal(kv_engine_prefill(subject.engine, &chunk, NULL, &error), KV_OK);
    assert_int_equal(progress.layers, 5);
    progress = (progress_t){.cancel_at = 3};
    assert_int_equal(kv_engine_prefill(subject.engine, &chunk, NULL, &error), KV_CANCELLED);
    assert_int_equal(progress.layers, 3);
    kv_engine_close(subject.engine);
}

static void assert_text(const kv_error_t *error, const char *word)
{
    if (strstr(error->text, word) == NULL) {
        fail_msg("\"%s\" does not name %s", error->text, word);
    }
}

static void calls_out_of_bounds_are_refused(void **state)
{
    (void)state;
    static subject_t subject;
    static uint32_t tokens[TOKENS_MAX + 1];
    uint64_t random = kv_test_seed();
    const char *path =
        kv_tiny_model_write(&(kv_tiny_model_t){.seed = 8, .context = 300}, "forward.gguf");
    open_subject(&subject, path, 16, false, &random);
    const uint32_t wild[] = {0, SLOTS};
    const uint32_t huge = KV_TINY_MODEL_VOCABULARY;
    const struct {
        kv_engine_chunk_t chunk;
        const char *word;
    } chunks[] = {
        {{.tokens = tokens, .token_count = 0, .slots = subject.slots}, "chunk of 0"},
        {{.tokens = tokens, .token_count = TOKENS_MAX + 1, .slots = subject.slots}, "chunk of"},
        {{.tokens = tokens, .token_count = 301, .slots = subject.slots}, "context is 300"},
        {{.tokens = tokens, .token_count = 1, .position = 300, .slots = subject.slots}, "301"},
        {{.tokens = tokens, .token_count = 2, .position = UINT32_MAX, .slots = subject.slots},
            "context"},
        {{.tokens = &huge, .token_count = 1, .slots = subject.slots}, "token at position 0"},
        {{.tokens = tokens, .token_count = 17, .slots = wild}, "block 1 is in slot 96"},
    };
    kv_error_t error;
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        assert_int_equal(
            kv_engine_prefill(subject.engine, &chunks[i].chunk, subject.logits[0], &error),
            KV_INVALID);
        assert_text(&error, chunks[i].word);
    }
    const kv_engine_row_t rows[] = {
        {0, 0, subject.slots}, {huge, 0, subject.slots}, {0, 300, subject.slots}, {0, 16, wild}};
    const char *const words[] = {NULL, "row 0: the token", "context", "slot 96"};
    for (size_t i = 1; i < 4; i++) {
        assert_int_equal(
            kv_engine_decode(subject.engine, &rows[i], 1, subject.logits[0], &error), KV_INVALID);
        assert_text(&error, words[i]);
    }
    assert_int_equal(
        kv_engine_decode(subject.engine, rows, 0, subject.logits[0], &error), KV_INVALID);
    assert_int_equal(
        kv_engine_decode(subject.engine, rows, BATCH_MAX + 1, subject.logits[0], &error),
        KV_INVALID);
    kv_engine_close(subject.engine);
}

static void assert_model_refused(const kv_tiny_model_t *model, const char *word)
{
    const kv_engine_params_t params = {
        .model_path = kv_tiny_model_write(model, "refused.gguf"),
        .block_tokens = 16,
        .chunk_tokens_max = 64,
        .batch_rows_max = 1,
    };
    kv_engine_t *engine = NULL;
    kv_error_t error = {0};
    assert_int_equal(kv_engine_open(device, &params, &engine, &error), KV_INVALID);
    assert_null(engine);
    assert_text(&error, word);
}

static void models_that_lie_are_refused(void **state)
{
    (void)state;
    static const char *const keys[] = {"general.architecture", "llama.block_count",
        "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.eos_token_id"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        assert_model_refused(&(kv_tiny_model_t){.without_key = keys[i]}, keys[i]);
    }
    static const char *const tensors[] = {"token_embd.weight", "output_norm.weight",
        "blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.1.attn_k.weight",
        "blk.1.attn_v.weight", "blk.0.attn_output.weight", "blk.1.ffn_norm.weight",
        "blk.0.ffn_gate.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        assert_model_refused(&(kv_tiny_model_t){.without_tensor = tensors[i]}, tensors[i]);
        if (i > 0) {
            assert_model_refused(&(kv_tiny_model_t){.misshapen_tensor = tensors[i]}, tensors[i]);
        }
    }
    assert_model_refused(&(kv_tiny_model_t){.mistyped_tensor = "blk.0.attn_norm.weight"}, "f32");
    assert_model_refused(&(kv_tiny_model_t){.architecture = "mamba"}, "mamba");
    assert_model_refused(&(kv_tiny_model_t){.head_count = 4, .kv_head_count = 3}, "head_count_kv");
    assert_model_refused(&(kv_tiny_model_t){.head_count = 2, .kv_head_count = 4}, "head_count_kv");
    assert_model_refused(&(kv_tiny_model_t){.embedding = 160, .head_count = 8}, "dimensions");
    assert_model_refused(&(kv_tiny_model_t){.feed_forward = 200}, "feed_forward_length");
    assert_model_refused(&(kv_tiny_model_t){.end_token = 259}, "eos_token_id");
    assert_model_refused(&(kv_tiny_model_t){.vocabulary_field = 300}, "vocab_size");
    assert_model_refused(
        &(kv_tiny_model_t){.extra_tensor = "rope_freqs.weight"}, "rope_freqs.weight");
    assert_model_refused(
        &(kv_tiny_model_t){.extra_tensor = "blk.0.attn_q.bias"}, "blk.0.attn_q.bias");
    assert_model_refused(&(kv_tiny_model_t){.context = 1 << 21}, "context_length");
    assert_model_refused(&(kv_tiny_model_t){.window_pattern = 2}, "sliding_window_pattern");
}

static void params_out_of_bounds_are_refused(void **state)
{
    (void)state;
    const char *path = kv_tiny_model_write(&(kv_tiny_model_t){.seed = 9}, "forward.gguf");
    const kv_engine_params_t good = {.model_path = path,
        .block_tokens = 16,
        .chunk_tokens_max = 64,
        .batch_rows_max = 1,
        .slot_count = 4};
    kv_engine_params_t bad[6] = {good, good, good, good, good, good};
    bad[0].block_tokens = 24;
    bad[1].chunk_tokens_max = 63;
    bad[2].chunk_tokens_max = 8193;
    bad[3].batch_rows_max = 0;
    bad[4].batch_rows_max = 257;
    bad[5].model_path = "no-such-file.gguf";
    for (int i = 0; i < 6; i++) {
        kv_engine_t *engine = NULL;
        kv_error_t error;
        assert_int_equal(
            kv_engine_open(device, &bad[i], &engine, &error), i < 5 ? KV_INVALID : KV_MISSING);
        assert_null(engine);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_does_not_depend_on_chunks_or_blocks),
        cmocka_unit_test(a_row_moves_through_its_tile),
        cmocka_unit_test(a_layer_is_read_when_it_was_asked_for),
        cmocka_unit_test(decode_follows_prefill),
        cmocka_unit_test(a_window_hides_what_is_before_it),
        cmocka_unit_test(a_window_is_part_of_the_arithmetic),
        cmocka_unit_test(decode_does_not_depend_on_the_batch),
        cmocka_unit_test(rows_of_one_sequence_are_as_one_by_one),
        cmocka_unit_test(layers_are_announced_in_order_and_cancelled),
        cmocka_unit_test(calls_out_of_bounds_are_refused),
        cmocka_unit_test(models_that_lie_are_refused),
        cmocka_unit_test(params_out_of_bounds_are_refused),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
