/* The table filling while the store is in use: what is found meanwhile, what comes back and what
 * does not, and what a process that ends in the middle leaves. */
#include "harness.h"

#include <dirent.h>
#include <sys/wait.h>

enum { CONTEXTS = 12, BLOCKS = 6 };

/* A directory with CONTEXTS contexts in it; the store is closed. */
static void make_directory(bench_t *bench, const char *name, uint32_t segments)
{
    bench_init(bench, name, 16);
    bench_with_disk(bench, segments);
    bench_open(bench);
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        request_context(bench, context, BLOCKS);
    }
    bench_close(bench);
}

static void reopen(bench_t *bench, uint32_t at_once)
{
    bench->seams.fill_at_once = at_once;
    bench_open_filling(bench);
    assert_true(kv_fill_busy(bench->store));
}

static void expect_all(bench_t *bench, uint32_t contexts)
{
    for (uint32_t context = 0; context < contexts; context++) {
        assert_int_equal(request_context(bench, context, BLOCKS).block_count, BLOCKS);
    }
    assert_int_equal(bench_stats(bench).damaged_objects, 0);
}

/* What a match finds of the context's blocks, without loading. */
static uint32_t matched(bench_t *bench, uint32_t context)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_release(match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match));
    return match.block_count;
}

/* The number of the context's block, which was looked up. */
static uint32_t number_of(bench_t *bench, uint32_t context, uint32_t block)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t keys[BLOCKS];
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_keys(&bench->name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    uint32_t number = kv_fill_find(bench->store, &keys[block]);
    assert_int_not_equal(number, KV_OBJECT_NONE);
    return number;
}

static void settle(bench_t *bench)
{
    bench_fill(bench);
    kvist_stats_t stats = bench_stats(bench);
    assert_false(stats.index_loading);
    assert_int_equal(stats.index_loaded, stats.index_total);
    check_accounts(bench);
}

static void matches_are_complete_before_the_table_is(void **state)
{
    (void)state;
    for (uint32_t at_once = 1; at_once <= 64; at_once *= 8) {
        bench_t bench;
        make_directory(&bench, "before", 16);
        reopen(&bench, at_once);
        for (uint32_t context = 0; context < CONTEXTS; context++) { /* no poll yet */
            assert_int_equal(matched(&bench, context), BLOCKS);
        }
        assert_int_equal(matched(&bench, CONTEXTS), 0);
        kvist_stats_t stats = bench_stats(&bench);
        assert_true(stats.index_loading);
        assert_int_equal(stats.index_loaded, CONTEXTS * BLOCKS);
        expect_all(&bench, CONTEXTS);
        settle(&bench);
        expect_all(&bench, CONTEXTS);
        bench_end(&bench);
    }
}

static void what_nobody_asks_for_comes_too(void **state)
{
    (void)state;
    bench_t bench;
    make_directory(&bench, "unasked", 16);
    reopen(&bench, 5);
    settle(&bench);
    assert_int_equal(bench_stats(&bench).index_loaded, CONTEXTS * BLOCKS);
    expect_all(&bench, CONTEXTS);
    bench_end(&bench);
}

/* As after damage: what descends from the block goes too, though the table does not know it yet;
 * and what is stored anew at its place does not bring it back. */
static void what_is_dropped_meanwhile_stays_dropped(void **state)
{
    (void)state;
    for (uint32_t polls = 0; polls < 60; polls += 7) {
        bench_t bench;
        make_directory(&bench, "dropped", 16);
        reopen(&bench, 1);
        for (uint32_t i = 0; i < polls; i++) {
            bench_turn(&bench);
        }
        kv_object_drop(
            bench.store, number_of(&bench, 0, 2), KV_GONE_DROPPED); /* only it was looked up */
        kv_object_drop(bench.store, number_of(&bench, 1, 0), KV_GONE_DROPPED);
        assert_int_equal(matched(&bench, 0), 2);
        assert_int_equal(matched(&bench, 1), 0);
        /* Block 2 of context 0 anew; what came after it is not computed again. */
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        make_tokens(0, 0, tokens, BLOCKS * BLOCK_TOKENS);
        assert_int_equal(request(&bench, tokens, 3).block_count, 2);
        assert_int_equal(matched(&bench, 0), 3);
        settle(&bench);
        assert_int_equal(matched(&bench, 0), 3);
        assert_int_equal(matched(&bench, 1), 0);
        for (uint32_t context = 2; context < CONTEXTS; context++) {
            assert_int_equal(request_context(&bench, context, BLOCKS).block_count, BLOCKS);
        }
        bench_close(&bench);
        bench_open(&bench);
        assert_int_equal(matched(&bench, 0), 3);
        assert_int_equal(matched(&bench, 1), 0);
        expect_all(&bench, 0);
        bench_end(&bench);
    }
}

static void note_count(void *context, kv_status_t status, uint64_t object_count)
{
    assert_int_equal(status, KV_OK);
    *(uint64_t *)context = object_count;
}

static void a_drop_waits_for_all_that_descends_from_the_block(void **state)
{
    (void)state;
    bench_t bench;
    make_directory(&bench, "drop", 16);
    for (int closing = 0; closing < 2; closing++) {
        reopen(&bench, 1);
        uint64_t dropped = 0;
        kvist_key_t key =
            kv_table_at(bench.store->table, number_of(&bench, (uint32_t)closing, 1))->key;
        assert_int_equal(kvist_store_drop(bench.store, &key, false, note_count, &dropped), KV_OK);
        if (closing == 1) {
            bench_close(&bench);
        } else {
            int turn = 0;
            while (dropped == 0) {
                assert_true(turn++ < 10000);
                bench_turn(&bench);
            }
            assert_false(kv_fill_busy(bench.store));
            assert_int_equal(matched(&bench, 0), 1);
            settle(&bench);
            bench_close(&bench);
        }
        assert_int_equal(dropped, BLOCKS - 1);
    }
    bench_open(&bench);
    assert_int_equal(matched(&bench, 0), 1);
    assert_int_equal(matched(&bench, 1), 1);
    bench_end(&bench);
}

/* Stores the context's blocks without looking for them. */
static void store_blindly(bench_t *bench, uint32_t context, const char *arithmetic)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t keys[BLOCKS];
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_keys(&bench->name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .mode = KVIST_MODE_WRITE};
    kvist_lease_t *lease;
    kvist_match_t match;
    assert_int_equal(kvist_match(bench->store, &query, &lease, &match), KV_OK);
    assert_int_equal(prepare(bench, lease, BLOCKS).status, KV_OK);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        fill_block(
            &keys[block], slot_bytes(bench, kvist_lease_slots(lease)[block]), block_bytes(bench));
        assert_int_equal(
            kvist_lease_seal(lease, tokens + (size_t)block * BLOCK_TOKENS, NULL, arithmetic),
            KV_OK);
    }
    kvist_lease_release(lease);
}

static void what_is_stored_again_meanwhile_has_one_place(void **state)
{
    (void)state;
    for (int way = 0; way < 4; way++) {
        bench_t bench;
        make_directory(&bench, "again", 16);
        bench.params.persist = way % 2 == 0 ? KVIST_PERSIST_EAGER : KVIST_PERSIST_SPILL;
        reopen(&bench, 1);
        for (uint32_t context = 0; context < 4; context++) {
            store_blindly(&bench, context, way < 2 ? "test/plain" : "test/other");
        }
        if (way == 0) {
            assert_int_equal(flush(&bench), KV_OK);
        }
        settle(&bench);
        expect_all(&bench, CONTEXTS);
        check_accounts(&bench);
        bench_close(&bench);
        bench_open(&bench);
        expect_all(&bench, CONTEXTS);
        check_accounts(&bench);
        bench_end(&bench);
    }
}

/* Segments begin new lives while the entries of their old ones are still being read. */
static void segments_that_are_reclaimed_meanwhile_are_gone(void **state)
{
    (void)state;
    bench_t bench;
    make_directory(&bench, "reclaim", 3);
    reopen(&bench, 1);
    for (uint32_t context = 100; context < 120; context++) {
        request_context(&bench, context, BLOCKS);
        if (context % 4 == 0) {
            assert_int_equal(flush(&bench), KV_OK);
        }
    }
    settle(&bench);
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        request_context(&bench, context, BLOCKS); /* checks the bytes of what it finds */
    }
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    check_accounts(&bench);
    bench_end(&bench);
}

static void a_store_that_closes_in_between_lost_nothing(void **state)
{
    (void)state;
    bench_t bench;
    make_directory(&bench, "closed", 16);
    for (uint32_t polls = 0; polls < 100; polls += 9) {
        reopen(&bench, 1);
        for (uint32_t i = 0; i < polls && kv_fill_busy(bench.store); i++) {
            bench_turn(&bench);
        }
        bench_close(&bench);
    }
    bench_open(&bench);
    expect_all(&bench, CONTEXTS);
    bench_end(&bench);
}

static void remove_index(const bench_t *bench)
{
    char path[600], name[1200];
    snprintf(path, sizeof path, "%s/index", bench->folder);
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        unlink(name);
    }
    closedir(folder);
    assert_int_equal(rmdir(path), 0);
}

/* A process that opens the store, stores a context, and ends without a word: this program, started
 * anew. */
static int live(const char *folder, uint32_t segments, uint32_t polls, uint32_t context)
{
    bench_t bench;
    bench_init(&bench, "ended", 16);
    snprintf(bench.folder, sizeof bench.folder, "%s", folder);
    bench_with_disk(&bench, segments);
    reopen(&bench, 1);
    request_context(&bench, context, BLOCKS);
    bool durable = flush(&bench) == KV_OK;
    for (uint32_t i = 0; i < polls; i++) {
        bench_turn(&bench);
    }
    _exit(durable ? 0 : 1);
}

static void end_in_between(
    const bench_t *bench, uint32_t segments, uint32_t polls, uint32_t context)
{
    char texts[3][16];
    const uint32_t numbers[] = {segments, polls, context};
    for (int i = 0; i < 3; i++) {
        snprintf(texts[i], sizeof texts[i], "%u", numbers[i]);
    }
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        execl("/proc/self/exe", "ended", bench->folder, texts[0], texts[1], texts[2], (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_process_that_ends_in_between_lost_nothing(void **state)
{
    (void)state;
    for (int rebuild = 0; rebuild < 2; rebuild++) {
        bench_t bench;
        make_directory(&bench, "ended", 32);
        for (uint32_t life = 0; life < 6; life++) {
            if (rebuild && life % 2 == 0) {
                remove_index(&bench);
            }
            end_in_between(&bench, 32, life * 6, CONTEXTS + life);
        }
        reopen(&bench, 3);
        settle(&bench);
        expect_all(&bench, CONTEXTS + 6);
        bench_end(&bench);
    }
}

static void a_lost_index_is_made_anew_while_the_store_is_in_use(void **state)
{
    (void)state;
    bench_t bench;
    make_directory(&bench, "rebuilt", 16);
    remove_index(&bench);
    reopen(&bench, 1);
    uint32_t found = 0;
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        found += matched(&bench, context);
    }
    assert_true(found < CONTEXTS * BLOCKS); /* what was not read yet is not found yet */
    assert_true(bench_stats(&bench).index_loading);
    for (uint32_t context = 100; context < 106; context++) {
        request_context(&bench, context, BLOCKS);
    }
    settle(&bench);
    expect_all(&bench, CONTEXTS);
    for (uint32_t context = 100; context < 106; context++) {
        assert_int_equal(matched(&bench, context), BLOCKS);
    }
    bench_close(&bench);
    bench_open(&bench);
    expect_all(&bench, CONTEXTS);
    bench_end(&bench);
}

/* After a restart the blocks of a chain lie side by side, though the index has them in the order of
 * their keys. */
static void chains_lie_side_by_side_after_a_restart(void **state)
{
    (void)state;
    bench_t bench;
    make_directory(&bench, "side", 16);
    reopen(&bench, 7);
    settle(&bench);
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        for (uint32_t block = 1; block < BLOCKS; block++) {
            assert_int_equal(
                number_of(&bench, context, block), number_of(&bench, context, block - 1) + 1);
        }
    }
    bench_end(&bench);
}

/* Everything at once, against what must hold whatever happens: chains without holes, right bytes,
 * and nothing that was flushed is missing where nothing was dropped or reclaimed. */
static void anything_may_happen_meanwhile(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    uint32_t lives = kv_test_long() ? 400 : 40;
    bench_t bench;
    make_directory(&bench, "anything", 8);
    for (uint32_t life = 0; life < lives; life++) {
        if (kv_test_random(&random) % 8 == 0) {
            remove_index(&bench);
        }
        reopen(&bench, 1 + (uint32_t)(kv_test_random(&random) % 9));
        uint32_t steps = (uint32_t)(kv_test_random(&random) % 30);
        for (uint32_t step = 0; step < steps; step++) {
            uint32_t context = (uint32_t)(kv_test_random(&random) % (2 * CONTEXTS));
            switch (kv_test_random(&random) % 6) {
            case 0:
                store_blindly(
                    &bench, context, kv_test_random(&random) % 2 == 0 ? "test/plain" : "other");
                break;
            case 1:
                if (matched(&bench, context) == BLOCKS) {
                    kv_object_drop(bench.store, number_of(&bench, context, 3), KV_GONE_DROPPED);
                    assert_int_equal(matched(&bench, context), 3);
                }
                break;
            case 2:
                bench_turn(&bench);
                break;
            default:
                request_context(&bench, context, BLOCKS);
                assert_int_equal(matched(&bench, context), BLOCKS);
                break;
            }
        }
        if (kv_test_random(&random) % 2 == 0) {
            settle(&bench);
        }
        assert_int_equal(bench_stats(&bench).damaged_objects, 0);
        bench_close(&bench);
    }
    free(bench.params.device_arena);
}

int main(int argument_count, char **arguments)
{
    if (argument_count == 5 && strcmp(arguments[0], "ended") == 0) {
        return live(arguments[1], (uint32_t)strtoul(arguments[2], NULL, 10),
            (uint32_t)strtoul(arguments[3], NULL, 10), (uint32_t)strtoul(arguments[4], NULL, 10));
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_are_complete_before_the_table_is),
        cmocka_unit_test(what_nobody_asks_for_comes_too),
        cmocka_unit_test(what_is_dropped_meanwhile_stays_dropped),
        cmocka_unit_test(a_drop_waits_for_all_that_descends_from_the_block),
        cmocka_unit_test(what_is_stored_again_meanwhile_has_one_place),
        cmocka_unit_test(segments_that_are_reclaimed_meanwhile_are_gone),
        cmocka_unit_test(a_store_that_closes_in_between_lost_nothing),
        cmocka_unit_test(a_process_that_ends_in_between_lost_nothing),
        cmocka_unit_test(a_lost_index_is_made_anew_while_the_store_is_in_use),
        cmocka_unit_test(chains_lie_side_by_side_after_a_restart),
        cmocka_unit_test(anything_may_happen_meanwhile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
