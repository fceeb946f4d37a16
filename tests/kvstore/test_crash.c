/* kill -9 in a loop, against real files: what was flushed is found, what is found is right, and the
 * next life goes on where the last one was cut off. The victim is this program, started anew. */
#include "harness.h"

#include <signal.h>
#include <sys/wait.h>

enum { PER_LIFE = 100, BLOCKS = 6, SHARED = 2, DEVICE_SLOTS = 24 };

static void bench_for(bench_t *bench, const char *folder, bool spill)
{
    bench_init(bench, "crash", DEVICE_SLOTS);
    snprintf(bench->folder, sizeof bench->folder, "%s", folder);
    bench_with_host(bench, 8);
    bench_with_disk(bench, 600);
    bench->params.persist = spill ? KVIST_PERSIST_SPILL : KVIST_PERSIST_EAGER;
}

static void tokens_of(uint32_t context, uint32_t *tokens)
{
    make_tokens(context, 0, tokens, BLOCKS * BLOCK_TOKENS);
    make_tokens(context / 8 * 8, 0, tokens, SHARED * BLOCK_TOKENS);
}

/* The victim: stores contexts first .. first + PER_LIFE - 1, and writes to its standard output the
 * number up to which they are durable. Goes on with old ones until it is killed. */
static int live(const char *folder, uint32_t first, bool spill)
{
    bench_t bench;
    bench_for(&bench, folder, spill);
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

/* Runs a victim for a while and kills it; returns up to where it said that contexts are durable. */
static uint32_t run_victim(const char *folder, uint32_t first, bool spill, uint32_t wait_us)
{
    int channel[2];
    char first_text[16];
    assert_int_equal(pipe(channel), 0);
    snprintf(first_text, sizeof first_text, "%u", first);
    pid_t victim = fork();
    assert_true(victim >= 0);
    if (victim == 0) {
        dup2(channel[1], STDOUT_FILENO);
        close(channel[0]);
        close(channel[1]);
        execl("/proc/self/exe", "victim", folder, first_text, spill ? "spill" : "eager",
            (char *)NULL);
        _exit(127);
    }
    close(channel[1]);
    uint32_t durable = first, word;
    assert_int_equal(read(channel[0], &word, sizeof word), sizeof word); /* it is at work */
    durable = word;
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

static void everything_flushed_survives_kill_9(void **state)
{
    (void)state;
    char folder[512];
    snprintf(folder, sizeof folder, "%s/victim", kv_test_folder());
    uint64_t random = kv_test_seed();
    uint32_t lives = kv_test_long() ? 100 : 12, durable_to[100];
    for (uint32_t life = 0; life < lives; life++) {
        uint32_t wait_us = (uint32_t)(kv_test_random(&random) % 60000);
        durable_to[life] = run_victim(folder, life * PER_LIFE, life % 3 == 2, wait_us);
        bench_t bench;
        bench_for(&bench, folder, false);
        bench_open(&bench);
        uint32_t found = 0, checked_from = life > 3 ? life - 3 : 0;
        for (uint32_t of = checked_from; of <= life; of++) {
            for (uint32_t context = of * PER_LIFE; context < (of + 1) * PER_LIFE; context++) {
                uint32_t tokens[BLOCKS * BLOCK_TOKENS];
                tokens_of(context, tokens);
                kvist_match_t match = request(&bench, tokens, BLOCKS); /* checks the bytes */
                if (context < durable_to[of]) {
                    assert_int_equal(match.block_count, BLOCKS);
                }
                found += match.block_count == BLOCKS;
            }
            durable_to[of] = (of + 1) * PER_LIFE; /* stored now, and durable after close */
        }
        assert_int_equal(bench_stats(&bench).damaged_objects, 0);
        print_message("life %u: %u contexts found\n", life, found);
        bench_end(&bench);
    }
}

int main(int argument_count, char **arguments)
{
    if (argument_count == 4 && strcmp(arguments[0], "victim") == 0) {
        return live(arguments[1], (uint32_t)strtoul(arguments[2], NULL, 10),
            strcmp(arguments[3], "spill") == 0);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_flushed_survives_kill_9),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
