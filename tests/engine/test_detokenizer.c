#include "byte_model.h"
#include "engine/detokenizer.h"

enum { TEXT_MAX = 512, BYTE = BYTE_MODEL_SPECIALS };

/* Tokens that cut characters and stop strings anywhere. (\x61 is an a that a hexadecimal escape
 * does not swallow.) */
static const char *const EXTRA[] = {"ab", "bc", "abc", "\xc3\xa5", "\xa5", "\xe2\x82", "\xac\x61",
    "\xf0\x9f", "\x8c\xbf", "b\xe2", "\xff\xc3", "STOP", "OP", "aa", "aaaa", "\xef\xbf\xbd"};
enum { EXTRA_COUNT = sizeof EXTRA / sizeof EXTRA[0] };

static kv_tokenizer_t *tokenizer;

static int open_tokenizer(void **state)
{
    (void)state;
    kv_error_t error;
    byte_model_t model = {.extra = EXTRA, .extra_count = EXTRA_COUNT};
    return kv_tokenizer_open(byte_model_write(&model), &tokenizer, &error) == KV_OK ? 0 : -1;
}

static int close_tokenizer(void **state)
{
    (void)state;
    kv_tokenizer_close(tokenizer);
    return 0;
}

typedef struct {
    char text[4 * TEXT_MAX];
    size_t bytes;
    bool stopped;
} result_t;

static kv_detokenizer_t *create(const char *const *stops, size_t stop_count)
{
    kv_detokenizer_t *detokenizer = NULL;
    assert_int_equal(
        kv_detokenizer_create(tokenizer, stops, stop_count, &detokenizer, NULL), KV_OK);
    return detokenizer;
}

static void append(result_t *result, const char *text, size_t bytes)
{
    assert_true(kv_utf8_valid(text, bytes));
    assert_true(result->bytes + bytes < sizeof result->text);
    memcpy(result->text + result->bytes, text, bytes);
    result->bytes += bytes;
}

static void push(kv_detokenizer_t *detokenizer, uint32_t token, result_t *result)
{
    const char *text;
    size_t bytes;
    assert_int_equal(
        kv_detokenizer_push(detokenizer, token, &text, &bytes, &result->stopped), KV_OK);
    append(result, text, bytes);
}

static void finish(kv_detokenizer_t *detokenizer, result_t *result)
{
    const char *text;
    size_t bytes;
    kv_detokenizer_finish(detokenizer, &text, &bytes);
    append(result, text, bytes);
    kv_detokenizer_destroy(detokenizer);
}

/* What a push says at once; the text is consumed. */
static void assert_pushed(
    kv_detokenizer_t *detokenizer, const char *piece, const char *wanted, bool stopped)
{
    const char *text;
    size_t bytes;
    bool has_stopped;
    uint32_t token = BYTE + (unsigned char)piece[0];
    for (uint32_t i = 0; i < EXTRA_COUNT; i++) {
        token = strcmp(EXTRA[i], piece) == 0 ? BYTE_MODEL_PLAIN + i : token;
    }
    assert_int_equal(kv_detokenizer_push(detokenizer, token, &text, &bytes, &has_stopped), KV_OK);
    assert_int_equal(bytes, strlen(wanted));
    assert_memory_equal(text, wanted, bytes);
    assert_int_equal(has_stopped, stopped);
}

static void characters_come_whole_and_at_once(void **state)
{
    (void)state;
    result_t result = {.bytes = 0};
    kv_detokenizer_t *detokenizer = create(NULL, 0);
    assert_pushed(detokenizer, "ab", "ab", false);
    assert_pushed(detokenizer, "\xe2\x82", "", false);
    assert_pushed(detokenizer, "\xac\x61", "\xe2\x82\xac\x61", false);
    assert_pushed(detokenizer, "\xf0\x9f", "", false);
    assert_pushed(detokenizer, "ab",
        "\xef\xbf\xbd"
        "ab",
        false);
    assert_pushed(detokenizer, "\xff\xc3", "\xef\xbf\xbd", false);
    assert_pushed(detokenizer, "\xa5", "\xc3\xa5", false);
    assert_pushed(detokenizer, "b\xe2", "b", false);
    finish(detokenizer, &result);
    assert_int_equal(result.bytes, 3);
    assert_memory_equal(result.text, "\xef\xbf\xbd", 3);
}

static void stop_strings_are_cut_out(void **state)
{
    (void)state;
    static const char *const STOPS[] = {"abcd", "STOP"};
    result_t result = {.bytes = 0};
    kv_detokenizer_t *detokenizer = create(STOPS, 2);
    assert_pushed(detokenizer, "ab", "", false);
    assert_pushed(detokenizer, "ab", "ab", false);
    assert_pushed(detokenizer, "c", "", false);
    assert_pushed(detokenizer, "a", "abc", false);
    assert_pushed(detokenizer, "bc", "", false);
    assert_pushed(detokenizer, "d", "", true);
    assert_pushed(detokenizer, "aa", "", true); /* nothing comes after */
    finish(detokenizer, &result);
    assert_int_equal(result.bytes, 0);

    detokenizer = create(STOPS, 2);
    assert_pushed(detokenizer, "aa", "a", false);
    assert_pushed(detokenizer, "b", "", false);
    finish(detokenizer, &result);
    assert_int_equal(result.bytes, 2);
    assert_memory_equal(result.text, "ab", 2);
}

static void special_tokens_are_silent(void **state)
{
    (void)state;
    const char *text;
    size_t bytes;
    bool stopped;
    kv_detokenizer_t *detokenizer = create(NULL, 0);
    for (uint32_t token = 0; token < BYTE_MODEL_SPECIALS; token++) {
        assert_int_equal(kv_detokenizer_push(detokenizer, token, &text, &bytes, &stopped), KV_OK);
        assert_int_equal(bytes, 0);
    }
    assert_int_equal(
        kv_detokenizer_push(detokenizer, UINT32_MAX, &text, &bytes, &stopped), KV_INVALID);
    kv_detokenizer_destroy(detokenizer);
}

static void wrong_stops_are_named(void **state)
{
    (void)state;
    static char long_stop[KV_STOP_BYTES_MAX + 2];
    memset(long_stop, 'x', sizeof long_stop - 1);
    const char *many[KV_STOPS_MAX + 1];
    const char *const empty[] = {"a", ""}, *const broken[] = {"\xc3"},
                      *const longer[] = {long_stop};
    for (size_t i = 0; i <= KV_STOPS_MAX; i++) {
        many[i] = "x";
    }
    const struct {
        const char *const *stops;
        size_t count;
        const char *word;
    } cases[] = {{many, KV_STOPS_MAX + 1, "17"}, {empty, 2, "stop[1] has 0"},
        {broken, 1, "stop[0] is no UTF-8"}, {longer, 1, "stop[0] has 257"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kv_error_t error = {0};
        kv_detokenizer_t *detokenizer;
        assert_int_equal(
            kv_detokenizer_create(tokenizer, cases[i].stops, cases[i].count, &detokenizer, &error),
            KV_INVALID);
        assert_non_null(strstr(error.text, cases[i].word));
    }
}

/* A token that the bytes begin with, at random. */
static uint32_t cut_token(const char *bytes, size_t count, uint64_t *random, size_t *length_out)
{
    for (int tries = 0; tries < 40; tries++) {
        uint32_t extra = (uint32_t)(kv_test_random(random) % EXTRA_COUNT);
        size_t length = strlen(EXTRA[extra]);
        if (length <= count && memcmp(EXTRA[extra], bytes, length) == 0) {
            *length_out = length;
            return BYTE_MODEL_PLAIN + extra;
        }
    }
    *length_out = 1;
    return BYTE + (unsigned char)bytes[0];
}

static void run_divided(const char *bytes, size_t count, const char *const *stops,
    size_t stop_count, uint64_t *random, result_t *result)
{
    kv_detokenizer_t *detokenizer = create(stops, stop_count);
    *result = (result_t){.bytes = 0};
    for (size_t at = 0, length; at < count && !result->stopped; at += length) {
        push(detokenizer, cut_token(bytes + at, count - at, random, &length), result);
    }
    finish(detokenizer, result);
}

/* How many of the bytes, which are no character, one U+FFFD stands for: the longest beginning of
 * some character, at least one byte. */
static size_t broken_bytes(const char *bytes, size_t count)
{
    size_t longest = 1;
    for (unsigned tail = 0; tail < 1u << 12; tail++) {
        char whole[4] = {
            bytes[0], (char)(0x80 | (tail & 63)), (char)(0x80 | tail >> 6), (char)0x80};
        size_t shared = 1;
        while (shared < 4 && shared < count && whole[shared] == bytes[shared]) {
            shared++;
        }
        if (kv_utf8_length(whole, 4) > shared && shared > longest) {
            longest = shared;
        }
    }
    return longest;
}

/* Cuts the longest stop string off the end. */
static void cut_stop(result_t *result, const char *const *stops, size_t stop_count)
{
    size_t cut = 0;
    for (size_t i = 0; i < stop_count; i++) {
        size_t length = strlen(stops[i]);
        if (length > cut && length <= result->bytes &&
            memcmp(result->text + result->bytes - length, stops[i], length) == 0) {
            cut = length;
        }
    }
    result->bytes -= cut;
    result->stopped = cut > 0;
}

/* The same by definition: replace what is no UTF-8, end at the first stop to be complete. */
static void run_plainly(
    const char *bytes, size_t count, const char *const *stops, size_t stop_count, result_t *result)
{
    *result = (result_t){.bytes = 0};
    for (size_t at = 0; at < count && !result->stopped;) {
        size_t length = kv_utf8_length(bytes + at, count - at);
        if (length > 0) {
            append(result, bytes + at, length);
            at += length;
        } else {
            append(result, "\xef\xbf\xbd", 3);
            at += broken_bytes(bytes + at, count - at);
        }
        cut_stop(result, stops, stop_count);
    }
}

static void any_division_gives_the_same_text(void **state)
{
    (void)state;
    static const char *const PARTS[] = {"a", "ab", "abc", "aaaa", "\xc3\xa5", "\xe2\x82\xac",
        "\xf0\x9f\x8c\xbf", "\xe2\x82", "\xc3", "\xff", "\xf0\x9f\x8c", "\xed\xa0\x80", "ST",
        "STOP", "\xef\xbf\xbd", "\x80", "b", " "};
    static const char *const STOPS[] = {
        "STOP", "aab", "aaaab", "\xe2\x82\xac\x61", "bc\xc3\xa5", "abab", "\xef\xbf\xbd\x61"};
    uint64_t random = kv_test_seed();
    int rounds = kv_test_long() ? 200000 : 3000;
    size_t stopped = 0;
    for (int round = 0; round < rounds; round++) {
        char bytes[TEXT_MAX];
        size_t count = 0, parts = kv_test_random(&random) % 24;
        for (size_t i = 0; i < parts; i++) {
            const char *part = PARTS[kv_test_random(&random) % (sizeof PARTS / sizeof PARTS[0])];
            memcpy(bytes + count, part, strlen(part));
            count += strlen(part);
        }
        const char *stops[3];
        size_t stop_count = kv_test_random(&random) % 4;
        for (size_t i = 0; i < stop_count; i++) {
            stops[i] = STOPS[kv_test_random(&random) % (sizeof STOPS / sizeof STOPS[0])];
        }
        result_t wanted, divided;
        run_plainly(bytes, count, stops, stop_count, &wanted);
        stopped += wanted.stopped;
        for (int division = 0; division < 3; division++) {
            run_divided(bytes, count, stops, stop_count, &random, &divided);
            if (divided.bytes != wanted.bytes ||
                memcmp(divided.text, wanted.text, wanted.bytes) != 0) {
                fail_msg("round %d, KVIST_SEED=%llu: \"%.*s\", not \"%.*s\"", round,
                    (unsigned long long)kv_test_seed(), (int)divided.bytes, divided.text,
                    (int)wanted.bytes, wanted.text);
            }
        }
    }
    assert_true(stopped > (size_t)rounds / 10 && stopped < (size_t)rounds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_come_whole_and_at_once),
        cmocka_unit_test(stop_strings_are_cut_out),
        cmocka_unit_test(special_tokens_are_silent),
        cmocka_unit_test(wrong_stops_are_named),
        cmocka_unit_test(any_division_gives_the_same_text),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
