/* The gap as a gateway counts it, over real connections: what a node says of each prompt beside
 * what was seen of it before. */
#include "wired.h"

#include "gateway/routing/prompt_keys.h"

enum { BLOCK_TOKENS = 16, PROMPT_TOKENS = 100, PAGE_BYTES = 1 << 18 };

static decode_t decode;

/* ---- a node that says how it names its blocks ---- */

static void on_heard(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    static const kv_naming_t NAMING = {.shape = {2, 2, 8, BLOCK_TOKENS, 2}};
    if (message->body_case != KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE) {
        return;
    }
    kvist_key_t name_space = kv_naming_name_space(&NAMING, NULL, 0);
    Kvist__Wire__Naming naming = KVIST__WIRE__NAMING__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    naming.model = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)NAMING.model.bytes};
    naming.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, name_space.bytes};
    naming.layer_count = NAMING.shape.layer_count;
    naming.kv_head_count = NAMING.shape.kv_head_count;
    naming.head_dim = NAMING.shape.head_dim;
    naming.block_tokens = NAMING.shape.block_tokens;
    naming.element_bytes = NAMING.shape.element_bytes;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_NAMING;
    envelope.naming = &naming;
    kv_peer_send(peer, &envelope);
}

static void says(uint32_t host_tokens, const char *miss)
{
    atomic_store(&decode.host_tokens, host_tokens);
    atomic_store(&decode.miss, miss);
}

/* ---- the client ---- */

/* A prompt of tokens that begins with this one; `more` goes into the body. */
static void complete(const fixture_t *fixture, uint32_t first, uint32_t count, const char *more)
{
    char body[4096], answer[8192];
    int bytes = snprintf(body, sizeof body, "{\"max_tokens\":33%s,\"prompt\":[%u", more, first);
    for (uint32_t i = 1; i < count; i++) {
        bytes += snprintf(
            body + bytes, sizeof body - (size_t)bytes, ",%u", i < PROMPT_TOKENS ? 7 : decode.token);
    }
    snprintf(body + bytes, sizeof body - (size_t)bytes, "]}");
    if (ask(fixture, "POST", "/v1/completions", body, answer) != 200) {
        fail_msg("%s: %s", body, answer);
    }
}

typedef struct {
    uint64_t prompt, hit, gap, fresh, tail, diverged;
    uint64_t evicted, forgotten, bypassed, untold; /* of the gap */
} counts_t;

static uint64_t value_of(const char *page, const char *name)
{
    char start[128];
    snprintf(start, sizeof start, "\n%s ", name);
    const char *at = strstr(page, start);
    if (at == NULL) {
        fail_msg("%s is not in\n%s", name, page);
    }
    return strtoull(at + strlen(start), NULL, 10);
}

/* All lines that begin so. */
static uint64_t sum_of(const char *page, const char *name)
{
    char start[128];
    uint64_t sum = 0;
    snprintf(start, sizeof start, "\n%s{", name);
    for (const char *at = page; (at = strstr(at, start)) != NULL; at++) {
        sum += strtoull(strchr(at, ' ') + 1, NULL, 10);
    }
    return sum;
}

static counts_t look(const fixture_t *fixture)
{
    char *page = malloc(PAGE_BYTES);
    assert_int_equal(ask_all(fixture, "GET", "/metrics", "", page, PAGE_BYTES), 200);
    counts_t counts = {.prompt = value_of(page, "kvist_gateway_prompt_tokens_total"),
        .hit = sum_of(page, "kvist_gateway_cached_tokens_total"),
        .gap = sum_of(page, "kvist_gateway_gap_tokens_total"),
        .fresh = value_of(page, "kvist_gateway_unseen_tokens_total{kind=\"new\"}"),
        .tail = value_of(page, "kvist_gateway_unseen_tokens_total{kind=\"short\"}"),
        .diverged = value_of(page, "kvist_gateway_unseen_tokens_total{kind=\"diverged\"}"),
        .evicted = value_of(page, "kvist_gateway_gap_tokens_total{reason=\"evicted:disk\"}"),
        .forgotten = value_of(page, "kvist_gateway_gap_tokens_total{reason=\"forgotten\"}"),
        .bypassed = value_of(page, "kvist_gateway_gap_tokens_total{reason=\"bypassed\"}"),
        .untold = value_of(page, "kvist_gateway_gap_tokens_total{reason=\"untold\"}")};
    assert_int_equal(
        counts.hit + counts.gap + counts.fresh + counts.tail + counts.diverged, counts.prompt);
    assert_int_equal(sum_of(page, "kvist_gateway_route_gap_tokens_total"), counts.gap);
    assert_int_equal(sum_of(page, "kvist_gateway_slo_answers_total"),
        sum_of(page, "kvist_gateway_route_answers_total"));
    free(page);
    return counts;
}

/* What one more answer adds. */
static counts_t added(const fixture_t *fixture, uint32_t first, uint32_t count, const char *more)
{
    counts_t before = look(fixture);
    complete(fixture, first, count, more);
    counts_t now = look(fixture);
    return (counts_t){.prompt = now.prompt - before.prompt,
        .hit = now.hit - before.hit,
        .gap = now.gap - before.gap,
        .fresh = now.fresh - before.fresh,
        .tail = now.tail - before.tail,
        .evicted = now.evicted - before.evicted,
        .forgotten = now.forgotten - before.forgotten,
        .bypassed = now.bypassed - before.bypassed,
        .untold = now.untold - before.untold};
}

/* Until prompts are named: before, nothing is known of what was seen. */
static void wait_for_naming(const fixture_t *fixture)
{
    char *page = malloc(PAGE_BYTES);
    uint64_t blocks = 0;
    for (int i = 0; i < 3000 && blocks == 0; i++) {
        complete(fixture, 1, BLOCK_TOKENS, "");
        ask_all(fixture, "GET", "/metrics", "", page, PAGE_BYTES);
        blocks = value_of(page, "kvist_gateway_ghost_blocks");
    }
    assert_true(blocks > 0);
    free(page);
}

static void start(fixture_t *fixture)
{
    decode.token = token_of(" tree");
    decode.heard = on_heard;
    says(0, "new");
    gateway_start(fixture, decode_start(&decode, KEY, 0));
    assert_true(becomes(fixture, 200, 30000));
    wait_for_naming(fixture);
}

static void stop(fixture_t *fixture)
{
    gateway_end(fixture);
    decode_end(&decode);
}

/* ---- tests ---- */

static void what_was_seen_is_the_gap(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture);
    counts_t one = added(&fixture, 2, PROMPT_TOKENS, "");
    assert_int_equal(one.fresh, 96);
    assert_int_equal(one.tail, 4);
    assert_int_equal(one.gap, 0);
    says(32, "evicted:disk");
    one = added(&fixture, 2, PROMPT_TOKENS, "");
    assert_int_equal(one.hit, 32);
    assert_int_equal(one.evicted, 64);
    assert_int_equal(one.gap, 64);
    assert_int_equal(one.fresh, 0);
    says(96, "short");
    one = added(&fixture, 2, PROMPT_TOKENS, "");
    assert_int_equal(one.hit, 96);
    assert_int_equal(one.gap, 0);
    /* The answer was seen too, but for its last token: 100 + 32 tokens are 8 blocks. */
    says(0, "new");
    one = added(&fixture, 2, PROMPT_TOKENS + 33 + 16, "");
    assert_int_equal(one.forgotten, 128);
    assert_int_equal(one.fresh, 16);
    assert_int_equal(one.tail, 5);
    /* A node that gives no reason, and one that says what cannot be. */
    says(0, NULL);
    assert_int_equal(added(&fixture, 2, PROMPT_TOKENS, "").untold, 96);
    says(PROMPT_TOKENS + 1, "short");
    one = added(&fixture, 2, PROMPT_TOKENS, "");
    assert_int_equal(one.hit, 0);
    assert_int_equal(one.gap, 96);
    stop(&fixture);
}

static void who_asks_and_how(void **state)
{
    (void)state;
    fixture_t fixture;
    start(&fixture);
    complete(&fixture, 2, PROMPT_TOKENS, "");
    /* Another namespace has seen nothing. */
    counts_t one = added(&fixture, 2, PROMPT_TOKENS, ",\"kvist\":{\"salt\":\"other\"}");
    assert_int_equal(one.gap, 0);
    assert_int_equal(one.fresh, 96);
    /* What came only in requests that kept nothing. */
    one = added(&fixture, 3, PROMPT_TOKENS, ",\"kvist\":{\"cache_mode\":\"bypass\"}");
    assert_int_equal(one.fresh, 96);
    assert_int_equal(added(&fixture, 3, PROMPT_TOKENS, "").bypassed, 96);
    assert_int_equal(added(&fixture, 3, PROMPT_TOKENS, "").forgotten, 96);
    /* And one that does not want what is there, whatever its node says. */
    says(0, NULL);
    one = added(&fixture, 3, PROMPT_TOKENS, ",\"kvist\":{\"cache_mode\":\"bypass\"}");
    assert_int_equal(one.bypassed, 96);
    /* A prompt with several answers counts once. */
    says(16, "evicted:disk");
    one = added(&fixture, 3, PROMPT_TOKENS, ",\"n\":3");
    assert_int_equal(one.prompt, PROMPT_TOKENS);
    assert_int_equal(one.hit, 16);
    assert_int_equal(one.evicted, 80);
    stop(&fixture);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_seen_is_the_gap),
        cmocka_unit_test(who_asks_and_how),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
