/* What both roles check in a peer's message, field by field. */
#include "runtime/message.h"

#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

static const kv_engine_info_t INFO = {.vocabulary_count = 50, .context_tokens_max = 100};
static const kv_core_t CORE = {.info = &INFO};

static void expect(const kv_message_prompt_t *prompt, kv_status_t wanted, const char *field)
{
    kv_error_t error = {.text = ""};
    assert_int_equal(kv_message_check_prompt(&CORE, prompt, &error), wanted);
    if (strstr(error.text, field) == NULL) {
        fail_msg("'%s' does not name %s", error.text, field);
    }
}

static void every_field_has_its_bounds(void **state)
{
    (void)state;
    uint32_t tokens[100] = {0};
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    sampling.top_p = 1;
    const kv_message_prompt_t good = {
        .request_id = "request-1", .tokens = tokens, .token_count = 99, .sampling = &sampling};
    expect(&good, KV_OK, "");
    kv_message_prompt_t prompt = good;
    prompt.token_count = 0;
    expect(&prompt, KV_INVALID, "tokens");
    prompt.token_count = 100;
    expect(&prompt, KV_INVALID, "tokens");
    prompt = good;
    tokens[7] = 50;
    expect(&prompt, KV_INVALID, "tokens[7]");
    tokens[7] = 0;
    prompt.sampling = NULL;
    expect(&prompt, KV_INVALID, "sampling");
    prompt = good;
    prompt.cache_mode = 4;
    expect(&prompt, KV_INVALID, "cache_mode");
    prompt = good;
    prompt.salt_bytes = KV_MESSAGE_SALT_BYTES_MAX;
    expect(&prompt, KV_OK, "");
    prompt.salt_bytes++;
    expect(&prompt, KV_INVALID, "salt");
}

static void a_request_id_is_short_and_plain(void **state)
{
    (void)state;
    uint32_t token = 1;
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    sampling.top_p = 1;
    kv_message_prompt_t prompt = {.tokens = &token, .token_count = 1, .sampling = &sampling};
    char longest[KV_MESSAGE_ID_BYTES_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[KV_MESSAGE_ID_BYTES_MAX + 1] = '\0';
    static const char *const WRONG[] = {"", "a\nb", "a b", "\x1b[2J", "\xc3\xa9"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        prompt.request_id = WRONG[i];
        expect(&prompt, KV_INVALID, "request_id");
    }
    prompt.request_id = longest;
    expect(&prompt, KV_INVALID, "request_id");
    prompt.request_id = longest + 1;
    expect(&prompt, KV_OK, "");
}

static void arithmetic_ids_are_short_and_plain(void **state)
{
    (void)state;
    char longest[KVIST_ARITHMETIC_BYTES_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[KVIST_ARITHMETIC_BYTES_MAX + 1] = '\0';
    char *good[] = {(char *)"cpu/prefill/amx+amx/bf16/v1", longest + 1};
    char **copies = kv_core_copy_arithmetic(good, 2, 2);
    assert_non_null(copies);
    assert_string_equal(copies[1], longest + 1);
    kv_core_free_arithmetic(copies, 2);
    assert_null(kv_core_copy_arithmetic(good, 2, 3));
    char *wrong[] = {longest, (char *)"cpu\n", (char *)"\x1b[2J"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_null(kv_core_copy_arithmetic(&wrong[i], 1, 1));
    }
}

static kv_status_t ask_room(uint32_t all, uint32_t own, uint32_t askers, const char *word)
{
    kv_core_t core = CORE;
    core.request_count = all;
    core.asker_request_count = own;
    core.asker_count = askers;
    kv_error_t error = {.text = ""};
    kv_status_t status = kv_message_check_room(&core, 64, "prefill.queue_max", &error);
    if (strstr(error.text, word) == NULL) {
        fail_msg("'%s' does not say %s", error.text, word);
    }
    return status;
}

static void one_peer_leaves_room_for_the_others(void **state)
{
    (void)state;
    assert_int_equal(ask_room(63, 63, 1, ""), KV_OK); /* alone: all of it */
    assert_int_equal(ask_room(64, 64, 1, "prefill.queue_max"), KV_BUSY);
    assert_int_equal(ask_room(31, 31, 4, ""), KV_OK); /* half of it is anybody's */
    assert_int_equal(ask_room(32, 32, 4, "prefill.queue_max"), KV_BUSY);
    assert_int_equal(ask_room(47, 15, 4, ""), KV_OK); /* the rest is shared */
    assert_int_equal(ask_room(48, 16, 4, "16 of them"), KV_BUSY);
    assert_int_equal(ask_room(64, 0, 4, "64 requests"), KV_BUSY);
    assert_int_equal(ask_room(40, 0, 200, ""), KV_OK); /* never less than one */
}

/* KV_BUSY makes whoever asks go elsewhere. */
static void a_draining_node_takes_nothing(void **state)
{
    (void)state;
    kv_core_t core = {.asker_count = 1, .holder.draining = true};
    kv_error_t error;
    assert_int_equal(kv_message_check_room(&core, 64, "decode.queue_max", &error), KV_BUSY);
    assert_non_null(strstr(error.text, "draining"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_draining_node_takes_nothing),
        cmocka_unit_test(every_field_has_its_bounds),
        cmocka_unit_test(a_request_id_is_short_and_plain),
        cmocka_unit_test(arithmetic_ids_are_short_and_plain),
        cmocka_unit_test(one_peer_leaves_room_for_the_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
