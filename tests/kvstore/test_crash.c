/* kill -9 in a loop, against real files: what was flushed is found, what is found is right, and the
 * next life goes on where the last one was cut off: also one that was killed while it opened, one
 * whose index is lost, and on a disk that is reclaimed all the time (there what was flushed may be
 * gone). The victim is this program, started anew. */
#include "harness.h"

#include <signal.h>
#include <sys/wait.h>

enum {
    PER_LIFE = 100,
    BLOCKS = 6,
    SHARED = 2,
    DEVICE_SLOTS = 24,
    SEGMENTS_FOR_ALL = 600,
    SEGMENTS_FEW = 4,
    LIVES_MAX = 100,
};

static void bench_for(bench_t *bench, const char *folder, bool spill, uint32_t segments)
{
    bench_init(bench, "crash", DEVICE_SLOTS);
    snprintf(bench->folder, sizeof bench->folder, "%s", folder);
    bench_with_host(bench, 8);
    bench_with_disk(bench, segments);
    bench->params.persist = spill ? KVIST_PERSIST_SPILL : KVIST_PERSIST_EAGER;
}

static void tokens_of(uint32_t context, uint32_t *tokens)
{
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    make_tokens(context / 8 * 8, 0, tokens, SHARED * BLOCK_TOKENS);
}

/* The victim: stores contexts first .. first + PER_LIFE - 1, and writes to its standard output the
 * number up to which they are durable. Goes on with old ones until it is killed. */
static int live(const char *folder, uint32_t first, bool spill, uint32_t segments)
{
    bench_t bench;
    bench_for(&bench, folder, spill, segments);
    bench_open(&bench);
    uint64_t random = first;
    for (uint32_t context = first;; context++) {
        uint32_t tokens[BLOCKS * BLOCK_TOKENS];
        bool old = context >= first + PER_LIFE;
        tokens_of(old ? kv_test_random(&random) % context : context, tokens);
        request(&bench, tokens, BLOCKS);
        if (!old && context % 5 == 4) {
            uint32_t durable = context + 1;
            if (flush(&bench) != KV_OK ||
                write(STDOUT_FILENO, &durable, sizeof durable) != sizeof durable) {
                return 1;
            }
        }
    }
}

/* Runs a victim for a while (early: from its start, else from when it is at work) and kills it;
 * returns up to where it said that contexts are durable. */
static uint32_t run_victim(
    const char *folder, uint32_t first, bool spill, uint32_t segments, bool early, uint32_t wait_us)
{
    int channel[2];
    char first_text[16], segments_text[16];
    assert_int_equal(pipe(channel), 0);
    snprintf(first_text, sizeof first_text, "%u", first);
    snprintf(segments_text, sizeof segments_text, "%u", segments);
    pid_t victim = fork();
    assert_true(victim >= 0);
    if (victim == 0) {
        dup2(channel[1], STDOUT_FILENO);
        close(channel[0]);
        close(channel[1]);
        execl("/proc/self/exe", "victim", folder, first_text, spill ? "spill" : "eager",
            segments_text, (char *)NULL);
        _exit(127);
    }
    close(channel[1]);
    uint32_t durable = first, word;
    if (!early) {
        assert_int_equal(read(channel[0], &word, sizeof word), sizeof word);
        durable = word;
    }
    usleep(wait_us);
    assert_int_equal(kill(victim, SIGKILL), 0);
    while (read(channel[0], &word, sizeof word) == sizeof word) {
        durable = word;
    }
    close(channel[0]);
    int status;
    assert_int_equal(waitpid(victim, &status, 0), victim);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return durable;
}

static void lose_index(const char *folder)
{
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s/index'", folder);
    assert_int_equal(system(command), 0);
}

/* What is found of a context; nothing is stored by asking. */
static uint32_t look_for(bench_t *bench, const uint32_t *tokens)
{
    kvist_key_t keys[BLOCKS];
    kvist_match_t match;
    kvist_keys(&bench->name_space, tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    kvist_lease_t *lease = match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    outcome_t outcome = prepare(bench, lease, match.block_count);
    for (uint32_t block = 0; block < outcome.match.block_count; block++) {
        check_block(bench, &keys[block], kvist_lease_slots(lease)[block]);
    }
    kvist_lease_release(lease);
    return outcome.match.block_count;
}

/* Looks for what the last lives stored; where the disk has room for all of it, it is there as far
 * as it was durable, and the rest is stored now. */
static uint32_t check_lives(bench_t *bench, uint32_t life, uint32_t *durable_to, bool all)
{
    uint32_t found = 0, checked_from = life > 3 ? life - 3 : 0;
    for (uint32_t of = checked_from; of <= life; of++) {
        for (uint32_t context = of * PER_LIFE; context < (of + 1) * PER_LIFE; context++) {
            uint32_t tokens[BLOCKS * BLOCK_TOKENS];
            tokens_of(context, tokens);
            uint32_t blocks = look_for(bench, tokens);
            if (all && context < durable_to[of]) {
                assert_int_equal(blocks, BLOCKS);
            }
            if (all) {
                request(bench, tokens, BLOCKS);
            }
            found += blocks == BLOCKS;
        }
        durable_to[of] = (of + 1) * PER_LIFE; /* stored now, and durable after close */
    }
    print_message("life %u: %u contexts found\n", life, found);
    return found;
}

static void kill_lives(uint32_t lives, uint32_t segments)
{
    char folder[512];
    snprintf(folder, sizeof folder, "%s/victim-%u", kv_test_folder(), segments);
    uint64_t random = kv_test_seed();
    uint32_t durable_to[LIVES_MAX], found = 0;
    for (uint32_t life = 0; life < lives; life++) {
        bool early = life % 4 == 3, loses_index = life % 5 == 4;
        uint32_t wait_us = (uint32_t)(kv_test_random(&random) % 60000);
        durable_to[life] =
            run_victim(folder, life * PER_LIFE, life % 3 == 2, segments, early, wait_us);
        if (loses_index) {
            lose_index(folder);
        }
        bench_t bench;
        bench_for(&bench, folder, false, segments);
        bench_open(&bench);
        found += check_lives(&bench, life, durable_to, segments == SEGMENTS_FOR_ALL);
        if (!loses_index) { /* else headers alone were read */
            assert_int_equal(bench_stats(&bench).damaged_objects, 0);
        }
        check_accounts(&bench);
        bench_end(&bench);
    }
    assert_true(found > 0);
}

static void everything_flushed_survives_kill_9(void **state)
{
    (void)state;
    kill_lives(kv_test_long() ? LIVES_MAX : 12, SEGMENTS_FOR_ALL);
}

static void a_disk_that_is_reclaimed_all_the_time_survives_kill_9(void **state)
{
    (void)state;
    kill_lives(kv_test_long() ? LIVES_MAX : 8, SEGMENTS_FEW);
}

int main(int argument_count, char **arguments)
{
    if (argument_count == 5 && strcmp(arguments[0], "victim") == 0) {
        return live(arguments[1], (uint32_t)strtoul(arguments[2], NULL, 10),
            strcmp(arguments[3], "spill") == 0, (uint32_t)strtoul(arguments[4], NULL, 10));
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_flushed_survives_kill_9),
        cmocka_unit_test(a_disk_that_is_reclaimed_all_the_time_survives_kill_9),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
