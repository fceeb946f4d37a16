#include "base/clock.h"
#include "byte_model.h"
#include "engine/tokenize.h"
#include "engine/tokenizer.h"

#include <jansson.h>
#include <pthread.h>

static kv_tokenizer_t *open_real(void)
{
    kv_error_t error;
    kv_tokenizer_t *tokenizer = NULL;
    if (kv_tokenizer_open(kv_test_model(), &tokenizer, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    return tokenizer;
}

static kv_tokenizer_t *open_bytes(const byte_model_t *model)
{
    kv_error_t error;
    kv_tokenizer_t *tokenizer = NULL;
    if (kv_tokenizer_open(byte_model_write(model), &tokenizer, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    return tokenizer;
}

static void assert_open_refused(const byte_model_t *model, const char *word)
{
    kv_error_t error = {0};
    kv_tokenizer_t *tokenizer;
    assert_int_equal(kv_tokenizer_open(byte_model_write(model), &tokenizer, &error), KV_INVALID);
    if (strstr(error.text, word) == NULL) {
        fail_msg("\"%s\" does not name %s", error.text, word);
    }
}

static void assert_tokens(const kv_tokenizer_t *tokenizer, const char *text, size_t bytes,
    kv_tokenizer_mode_t mode, const uint32_t *wanted, size_t wanted_count)
{
    kv_error_t error;
    uint32_t *tokens;
    size_t count;
    if (kv_tokenizer_encode(tokenizer, text, bytes, mode, &tokens, &count, &error) != KV_OK) {
        fail_msg("\"%.*s\": %s", (int)bytes, text, error.text);
    }
    if (count != wanted_count || (count > 0 && memcmp(tokens, wanted, count * 4) != 0)) {
        fail_msg("\"%.*s\": %zu tokens differ from the %zu wanted", (int)bytes, text, count,
            wanted_count);
    }
    free(tokens);
}

static void assert_round_trip(const kv_tokenizer_t *tokenizer, const char *text, size_t bytes)
{
    kv_error_t error;
    kv_tokenizer_mode_t plain = {false, false};
    uint32_t *tokens;
    size_t count, at = 0;
    assert_int_equal(
        kv_tokenizer_encode(tokenizer, text, bytes, plain, &tokens, &count, &error), KV_OK);
    for (size_t i = 0; i < count; i++) {
        const char *piece;
        size_t piece_bytes;
        assert_int_equal(
            kv_tokenizer_piece(tokenizer, tokens[i], true, &piece, &piece_bytes), KV_OK);
        assert_true(at + piece_bytes <= bytes);
        assert_memory_equal(text + at, piece, piece_bytes);
        at += piece_bytes;
    }
    assert_int_equal(at, bytes);
    free(tokens);
}

static void check_reference_case(const kv_tokenizer_t *tokenizer, const json_t *object)
{
    uint32_t wanted[4096];
    const json_t *ids = json_object_get(object, "ids"), *text = json_object_get(object, "text");
    size_t count = json_array_size(ids), bytes = json_string_length(text);
    assert_true(count <= 4096);
    for (size_t i = 0; i < count; i++) {
        wanted[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
    }
    kv_tokenizer_mode_t mode = {json_is_true(json_object_get(object, "add_special")),
        json_is_true(json_object_get(object, "parse_special"))};
    assert_tokens(tokenizer, json_string_value(text), bytes, mode, wanted, count);
    if (json_is_true(json_object_get(object, "roundtrip"))) {
        assert_round_trip(tokenizer, json_string_value(text), bytes);
    }
}

static void ids_are_the_reference_s(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer = open_real();
    FILE *file = fopen("tests/data/smol_tokenizer_public.jsonl", "r");
    assert_non_null(file);
    char *line = NULL;
    size_t capacity = 0, cases = 0;
    while (getline(&line, &capacity, file) > 0) {
        json_t *object = json_loads(line, JSON_ALLOW_NUL, NULL);
        assert_non_null(object);
        check_reference_case(tokenizer, object);
        json_decref(object);
        cases++;
    }
    assert_int_equal(cases, 151);
    free(line);
    fclose(file);
    kv_tokenizer_close(tokenizer);
}

static void the_model_s_facts_are_told(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer = open_real();
    const char *piece;
    size_t bytes;
    uint32_t token = 0;
    assert_int_equal(kv_tokenizer_vocabulary_count(tokenizer), 49152);
    assert_int_equal(kv_tokenizer_end_token(tokenizer), 2);
    assert_int_equal(kv_tokenizer_context_tokens_max(tokenizer), 8192);
    assert_string_equal(kv_tokenizer_model_name(tokenizer), "Smollm2 135M 8k Lc100K Mix1 Ep2");
    assert_non_null(strstr(kv_tokenizer_chat_template(tokenizer), "<|im_start|>"));
    assert_int_equal(kv_tokenizer_special(tokenizer, "<|im_end|>", &token), KV_OK);
    assert_int_equal(token, 2);
    assert_int_equal(kv_tokenizer_special(tokenizer, "<|im_end|", &token), KV_MISSING);
    assert_int_equal(kv_tokenizer_special(tokenizer, "<|im_end|>x", &token), KV_MISSING);
    assert_int_equal(kv_tokenizer_piece(tokenizer, 2, false, &piece, &bytes), KV_OK);
    assert_int_equal(bytes, 0);
    assert_int_equal(kv_tokenizer_piece(tokenizer, 2, true, &piece, &bytes), KV_OK);
    assert_int_equal(bytes, 10);
    assert_int_equal(kv_tokenizer_piece(tokenizer, 49152, true, &piece, &bytes), KV_INVALID);
    kv_tokenizer_close(tokenizer);
}

static void merges_go_by_rank_and_from_the_left(void **state)
{
    (void)state;
    static const char *const EXTRA[] = {"aa", "ab", "aab", "bb"};
    static const char *const MERGES[] = {"a b", "a a", "a ab", "b b"};
    enum { A = BYTE_MODEL_SPECIALS + 'a', AA = BYTE_MODEL_PLAIN, AB, AAB, BB };
    byte_model_t model = {.extra = EXTRA, .extra_count = 4, .merges = MERGES, .merge_count = 4};
    kv_tokenizer_t *tokenizer = open_bytes(&model);
    kv_tokenizer_mode_t plain = {false, false};
    assert_tokens(tokenizer, "aab", 3, plain, (uint32_t[]){AAB}, 1);
    assert_tokens(tokenizer, "aaa", 3, plain, (uint32_t[]){AA, A}, 2);
    assert_tokens(tokenizer, "aaaab", 5, plain, (uint32_t[]){AA, AAB}, 2);
    assert_tokens(tokenizer, "abbb", 4, plain, (uint32_t[]){AB, BB}, 2);
    assert_tokens(tokenizer, "", 0, plain, NULL, 0);
    kv_tokenizer_close(tokenizer);
}

static void the_longest_special_wins_and_only_when_asked(void **state)
{
    (void)state;
    byte_model_t model = {.third_special = "<|im_start|><|x|>", .add_begin = true, .pre = "gpt-2"};
    kv_tokenizer_t *tokenizer = open_bytes(&model);
    enum { BYTE = BYTE_MODEL_SPECIALS };
    kv_tokenizer_mode_t parse = {false, true}, both = {true, true};
    assert_tokens(
        tokenizer, "a<|im_start|><|x|>b", 19, parse, (uint32_t[]){BYTE + 'a', 2, BYTE + 'b'}, 3);
    assert_tokens(tokenizer, "<|im_start|><|y", 15, both,
        (uint32_t[]){1, 1, BYTE + '<', BYTE + '|', BYTE + 'y'}, 5);
    assert_tokens(tokenizer, "<|im_start|", 11, parse,
        (uint32_t[]){BYTE + '<', BYTE + '|', BYTE + 'i', BYTE + 'm', BYTE + '_', BYTE + 's',
            BYTE + 't', BYTE + 'a', BYTE + 'r', BYTE + 't', BYTE + '|'},
        11);
    kv_tokenizer_close(tokenizer);
}

/* Words are seen by a merge that would cross their border. */
static void digits_stand_alone_in_smollm_only(void **state)
{
    (void)state;
    static const char *const EXTRA[] = {"12", "  "};
    static const char *const MERGES[] = {"1 2", "\xc4\xa0 \xc4\xa0"};
    enum { ONE = BYTE_MODEL_SPECIALS + '1', TWO, TWELVE = BYTE_MODEL_PLAIN, SPACES };
    enum { SPACE = BYTE_MODEL_SPECIALS + ' ', X = BYTE_MODEL_SPECIALS + 'x' };
    byte_model_t model = {.extra = EXTRA, .extra_count = 2, .merges = MERGES, .merge_count = 2};
    kv_tokenizer_mode_t plain = {false, false};
    kv_tokenizer_t *tokenizer = open_bytes(&model);
    assert_tokens(tokenizer, "12", 2, plain, (uint32_t[]){ONE, TWO}, 2);
    assert_tokens(tokenizer, "  1", 3, plain, (uint32_t[]){SPACES, ONE}, 2);
    assert_tokens(tokenizer, "  x", 3, plain, (uint32_t[]){SPACE, SPACE, X}, 3);
    kv_tokenizer_close(tokenizer);
    model.pre = "gpt-2";
    tokenizer = open_bytes(&model);
    assert_tokens(tokenizer, "12", 2, plain, (uint32_t[]){TWELVE}, 1);
    assert_tokens(tokenizer, "  1", 3, plain, (uint32_t[]){SPACE, SPACE, ONE}, 3);
    kv_tokenizer_close(tokenizer);
}

static void a_file_that_lies_is_refused(void **state)
{
    (void)state;
    static const char *const UNKNOWN[] = {"a b"}, *const NO_SPACE[] = {"ab"};
    assert_open_refused(&(byte_model_t){.model = "llama"}, "tokenizer.ggml.model");
    assert_open_refused(&(byte_model_t){.pre = "qwen2"}, "tokenizer.ggml.pre is \"qwen2\"");
    assert_open_refused(&(byte_model_t){.types_short_by = 1}, "tokenizer.ggml.token_type");
    assert_open_refused(&(byte_model_t){.end_token = 9999}, "tokenizer.ggml.eos_token_id is 9999");
    assert_open_refused(&(byte_model_t){.merges = UNKNOWN, .merge_count = 1}, "merges[0]");
    assert_open_refused(&(byte_model_t){.merges = NO_SPACE, .merge_count = 1}, "merges[0]");
    assert_open_refused(&(byte_model_t){.third_special = ""}, "tokens[2]");
    assert_open_refused(&(byte_model_t){.third_special = "\xc3"}, "tokens[2]");
}

static void text_that_is_no_utf8_names_its_byte(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer = open_bytes(&(byte_model_t){0});
    kv_tokenizer_mode_t plain = {false, false};
    kv_error_t error;
    uint32_t *tokens;
    size_t count;
    assert_int_equal(
        kv_tokenizer_encode(tokenizer, "abc\xff", 4, plain, &tokens, &count, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "byte 3"));
    assert_int_equal(
        kv_tokenizer_encode(tokenizer, "\xe2\x82", 2, plain, &tokens, &count, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "byte 0"));
    size_t bytes = KV_TOKENIZER_TEXT_BYTES_MAX + 1;
    assert_int_equal(
        kv_tokenizer_encode(tokenizer, "", bytes, plain, &tokens, &count, &error), KV_INVALID);
    kv_tokenizer_close(tokenizer);
}

/* Long runs of one kind, which an O(n^2) merge or a backtracking pattern would not survive. */
static void hostile_texts_take_no_time(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer = open_real();
    static const char *const RUNS[] = {"a", " ", "!", "1", "\n", "\xe4\xb8\xad", "'s", "<|im_",
        "ab", " \n", "\xcc\x81", "a ", "  a", "\t1"};
    size_t bytes = 400000;
    char *text = malloc(bytes + 8);
    for (size_t i = 0; i < sizeof RUNS / sizeof RUNS[0]; i++) {
        size_t length = strlen(RUNS[i]), count, total = bytes / length * length;
        for (size_t at = 0; at < total; at += length) {
            memcpy(text + at, RUNS[i], length);
        }
        kv_error_t error;
        uint32_t *tokens;
        kv_tokenizer_mode_t parse = {false, true};
        uint64_t start_ns = kv_clock_now_ns();
        if (kv_tokenizer_encode(tokenizer, text, total, parse, &tokens, &count, &error) != KV_OK) {
            fail_msg("%zu: %s", i, error.text);
        }
        uint64_t took_ns = kv_clock_now_ns() - start_ns;
        free(tokens);
        assert_true(took_ns < 10ull * KV_NS_PER_S);
        assert_round_trip(tokenizer, text, total);
    }
    free(text);
    kv_tokenizer_close(tokenizer);
}

static void random_texts_round_trip(void **state)
{
    (void)state;
    static const char *const PARTS[] = {" ", "  ", "\n", "\t", "a", "word", "The", "'ll", "7",
        "2026", "\xc3\xa5", "\xe2\x80\x99", "\xe4\xb8\xad\xe6\x96\x87", "\xf0\x9f\x8c\xbf",
        "!=", "<|im_end|>", "\xc2\xa0", "\xc2\xb2", "\xd9\xa3", "\xcc\x81", "{\"k\": [1, 2]}",
        "\r\n"};
    kv_tokenizer_t *tokenizer = open_real();
    uint64_t random = kv_test_seed();
    int rounds = kv_test_long() ? 50000 : 1000;
    for (int round = 0; round < rounds; round++) {
        char text[1024];
        size_t bytes = 0, parts = kv_test_random(&random) % 40;
        for (size_t i = 0; i < parts; i++) {
            const char *part = PARTS[kv_test_random(&random) % (sizeof PARTS / sizeof PARTS[0])];
            memcpy(text + bytes, part, strlen(part));
            bytes += strlen(part);
        }
        assert_round_trip(tokenizer, text, bytes);
    }
    kv_tokenizer_close(tokenizer);
}

typedef struct {
    const kv_tokenizer_t *tokenizer;
    bool right;
} reader_t;

static void *encode_many(void *argument)
{
    reader_t *reader = argument;
    reader->right = true;
    for (int i = 0; i < 200; i++) {
        kv_error_t error;
        kv_tokenizer_mode_t plain = {false, false};
        uint32_t *tokens = NULL;
        size_t count = 0;
        kv_status_t status = kv_tokenizer_encode(
            reader->tokenizer, "Hello   world", 13, plain, &tokens, &count, &error);
        reader->right &= status == KV_OK && count == 3 && tokens[0] == 19556 && tokens[2] == 905;
        free(tokens);
    }
    return NULL;
}

static void threads_share_one_tokenizer(void **state)
{
    (void)state;
    kv_tokenizer_t *tokenizer = open_real();
    pthread_t threads[4];
    reader_t readers[4];
    for (int i = 0; i < 4; i++) {
        readers[i] = (reader_t){tokenizer, false};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &readers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(readers[i].right);
    }
    kv_tokenizer_close(tokenizer);
}

static kv_status_t run_lines(const char *lines, size_t bytes, char **answer, kv_error_t *error)
{
    size_t answer_bytes;
    FILE *in = fmemopen((void *)lines, bytes, "r"), *out = open_memstream(answer, &answer_bytes);
    assert_non_null(in);
    assert_non_null(out);
    kv_status_t status = kv_tokenize_run(in, out, byte_model_write(&(byte_model_t){0}), error);
    fclose(in);
    fclose(out);
    return status;
}

static void lines_are_answered(void **state)
{
    (void)state;
    static const char LINES[] =
        "{\"id\":\"a\",\"text\":\"\\u0000\",\"add_special\":false,\"parse_special\":true}\n\n"
        "{\"id\":7,\"text\":\"<|im_end|>\",\"parse_special\":true}\n"
        "{\"id\":null,\"text\":\"\"}"; /* without a line end */
    char *answer;
    kv_error_t error;
    assert_int_equal(run_lines(LINES, sizeof LINES - 1, &answer, &error), KV_OK);
    assert_string_equal(
        answer, "{\"id\":\"a\",\"ids\":[3]}\n{\"id\":7,\"ids\":[2]}\n{\"id\":null,\"ids\":[]}\n");
    free(answer);
}

static void wrong_lines_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *line, *word;
    } CASES[] = {
        {"{\"id\":1,\"text\":\"a\"}\n{", "line 2, column"},
        {"[]", "line 1 is no JSON object"},
        {"{\"text\":\"a\"}", "line 1: id is missing"},
        {"{\"id\":1}", "line 1: text is missing"},
        {"{\"id\":1,\"text\":5}", "line 1: text is not a string"},
        {"{\"id\":1,\"text\":\"a\",\"add_special\":1}", "line 1: add_special"},
        {"{\"id\":1,\"text\":\"a\",\"parse_special\":\"no\"}", "line 1: parse_special"},
        {"\n\n{\"id\":1,\"text\":\"\xff\"}", "line 3, column"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        char *answer;
        kv_error_t error = {0};
        assert_int_equal(
            run_lines(CASES[i].line, strlen(CASES[i].line), &answer, &error), KV_INVALID);
        if (strstr(error.text, CASES[i].word) == NULL) {
            fail_msg("\"%s\" does not say %s", error.text, CASES[i].word);
        }
        free(answer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_go_by_rank_and_from_the_left),
        cmocka_unit_test(the_longest_special_wins_and_only_when_asked),
        cmocka_unit_test(digits_stand_alone_in_smollm_only),
        cmocka_unit_test(a_file_that_lies_is_refused),
        cmocka_unit_test(text_that_is_no_utf8_names_its_byte),
        cmocka_unit_test(lines_are_answered),
        cmocka_unit_test(wrong_lines_are_named),
        cmocka_unit_test(ids_are_the_reference_s),
        cmocka_unit_test(the_model_s_facts_are_told),
        cmocka_unit_test(hostile_texts_take_no_time),
        cmocka_unit_test(random_texts_round_trip),
        cmocka_unit_test(threads_share_one_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
