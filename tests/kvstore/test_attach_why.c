/* Why something is not found, asked of an attached store: the service knows what other clients did.
 */
#include "attach_bench.h"

static kvist_why_t why_tokens(bench_t *bench, const uint32_t *tokens, uint32_t blocks)
{
    const kvist_why_query_t query = {
        .name_space = bench->name_space,
        .tokens = tokens,
        .token_count = (size_t)blocks * BLOCK_TOKENS,
        .all_name_spaces = true,
    };
    kvist_why_t why;
    assert_int_equal(kvist_why(bench->store, &query, &why), KV_OK);
    assert_int_equal(why.block_tokens, BLOCK_TOKENS);
    return why;
}

static void another_clients_context_is_told(void **state)
{
    (void)state;
    service_t service;
    bench_t one, two;
    context_t context;
    begin_service(&service, "told", 64, 0);
    open_client(&one, &service, "one", 0);
    open_client(&two, &service, "two", 4 * BLOCKS);
    make_context(&one, 1, &context);
    store_context(&one, &context, 8);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    request(&two, tokens, 3); /* its device has three of them */
    kvist_why_t why = why_tokens(&two, tokens, 8);
    assert_int_equal(why.match.miss, KVIST_MISS_NONE);
    assert_int_equal(why.match.tier_blocks[KVIST_TIER_DEVICE], 3);
    assert_int_equal(why.match.tier_blocks[KVIST_TIER_HOST], 5);
    tokens[5 * BLOCK_TOKENS + 7]++;
    why = why_tokens(&two, tokens, 8);
    assert_int_equal(why.match.miss, KVIST_MISS_DIVERGED);
    assert_int_equal(why.match.block_count, 5);
    assert_int_equal(why.match.detail.token, 5 * BLOCK_TOKENS + 7);
    uint32_t stored[BLOCK_TOKENS];
    assert_int_equal(kvist_store_tokens(two.store, &why.match.detail.other, stored, NULL), KV_OK);
    tokens[5 * BLOCK_TOKENS + 7]--;
    assert_memory_equal(stored, tokens + 5 * BLOCK_TOKENS, sizeof stored);
    kvist_key_t nobodys = {{1}};
    assert_int_equal(kvist_store_tokens(two.store, &nobodys, stored, NULL), KV_MISSING);
    bench_end(&one);
    bench_end(&two);
    end_service(&service);
}

/* What a salt is apart from is told to whoever runs the service, not to its clients. */
static void namespaces_are_described_to_the_service(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    context_t context;
    begin_service(&service, "described", 64, 0);
    open_client(&one, &service, "one", 0);
    kvist_namespace_params_t params = {.layout = &one.layout, .salt = "", .adapter = ""};
    kvist_store_describe(one.store, &params);
    make_context(&one, 1, &context);
    store_context(&one, &context, 4);
    params.salt = "another";
    params.salt_bytes = 7;
    one.name_space = kvist_namespace(&params);
    kvist_store_describe(one.store, &params);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_why_t why = why_tokens(&one, tokens, 4);
    assert_int_equal(why.match.miss, KVIST_MISS_NEW);
    served_pause(&service.served);
    bench_t host = {
        .store = kv_service_store(service.served.service, 0), .name_space = one.name_space};
    why = why_tokens(&host, tokens, 4);
    assert_int_equal(why.match.miss, KVIST_MISS_NAMESPACE);
    assert_int_equal(why.other_block_count, 4);
    assert_string_equal(why.fields, "salt");
    served_resume(&service.served);
    bench_end(&one);
    end_service(&service);
}

static void a_service_that_is_away_is_a_failure(void **state)
{
    (void)state;
    service_t service;
    bench_t one;
    begin_service(&service, "away", 64, 0);
    open_client(&one, &service, "one", 4 * BLOCKS);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(1, 0, tokens, BLOCKS * BLOCK_TOKENS);
    request(&one, tokens, 4);
    wait_written(&one);
    served_end(&service.served);
    kvist_why_t why = why_tokens(&one, tokens, 6);
    assert_int_equal(why.match.block_count, 4); /* of the device */
    assert_int_equal(why.match.miss, KVIST_MISS_FAILED);
    assert_int_equal(why_tokens(&one, tokens, 4).match.miss, KVIST_MISS_NONE);
    bench_end(&one);
    bench_end(&service.host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_clients_context_is_told),
        cmocka_unit_test(namespaces_are_described_to_the_service),
        cmocka_unit_test(a_service_that_is_away_is_a_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
