#include "simulation/world.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "simulation/process.h"
#include "testing/testing.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { TRACE_BYTES = 1024, AT_ONCE_MAX = 100000 };

typedef struct {
    uint64_t at_ns, number; /* events of one moment run in the order in which they were made */
    process_t *process;
    happening_t run;
    void *subject;
    uint64_t detail;
} event_t;

typedef struct block block_t;
struct block {
    block_t *next;
    max_align_t bytes[];
};

static struct {
    uint64_t seed, random, now_ns, event_count, made_count, at_once_count;
    event_t *heap; /* [count], the earliest first */
    size_t count, capacity;
    block_t *blocks;
} world;

/* ---- time ---- */

void world_begin(uint64_t seed)
{
    world.seed = world.random = seed;
    world.now_ns = SECOND; /* 0 means "never" in places */
    world.event_count = world.made_count = 0;
}

void world_end(void)
{
    world.count = 0;
    while (world.blocks != NULL) {
        block_t *next = world.blocks->next;
        free(world.blocks);
        world.blocks = next;
    }
}

uint64_t world_now_ns(void)
{
    return world.now_ns;
}

uint64_t world_event_count(void)
{
    return world.event_count;
}

static bool before(const event_t *a, const event_t *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static void sift_up(size_t at)
{
    event_t event = world.heap[at];
    while (at > 0 && before(&event, &world.heap[(at - 1) / 2])) {
        world.heap[at] = world.heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    world.heap[at] = event;
}

static void sift_down(event_t event)
{
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < world.count && before(&world.heap[child + 1], &world.heap[child])) {
            child++;
        }
        if (child >= world.count || !before(&world.heap[child], &event)) {
            break;
        }
        world.heap[at] = world.heap[child];
        at = child;
    }
    world.heap[at] = event;
}

void world_after(
    uint64_t delay_ns, process_t *process, happening_t run, void *subject, uint64_t detail)
{
    if (world.count == world.capacity) {
        world.capacity = world.capacity == 0 ? 256 : 2 * world.capacity;
        world.heap = kv_reallocate(world.heap, world.capacity, sizeof *world.heap);
    }
    world.heap[world.count] =
        (event_t){world.now_ns + delay_ns, world.made_count++, process, run, subject, detail};
    sift_up(world.count++);
}

bool world_turn(void)
{
    if (world.count == 0) {
        return false;
    }
    event_t event = world.heap[0];
    event_t last = world.heap[--world.count];
    if (world.count > 0) {
        sift_down(last);
    }
    if (event.at_ns > world.now_ns) {
        world.at_once_count = 0;
    } else if (++world.at_once_count > AT_ONCE_MAX) {
        violation("%d events, and no time passes", AT_ONCE_MAX);
    }
    world.now_ns = event.at_ns;
    world.event_count++;
    process_run(event.process, event.run, event.subject, event.detail);
    return true;
}

void *world_allocate(size_t bytes)
{
    block_t *block = kv_allocate(sizeof *block + bytes);
    block->next = world.blocks;
    world.blocks = block;
    return block->bytes;
}

/* ---- chance ---- */

uint64_t world_random(void)
{
    return kv_test_random(&world.random);
}

uint32_t pick(uint32_t count)
{
    return (uint32_t)(world_random() % count);
}

bool chance(uint32_t per_mille)
{
    return pick(1000) < per_mille;
}

uint64_t between(uint64_t least, uint64_t most)
{
    return least + world_random() % (most - least + 1);
}

/* ---- words ---- */

bool world_traces(void)
{
    static int traces = -1;
    if (traces < 0) {
        const char *wanted = getenv("KVIST_TRACE");
        traces = wanted != NULL && strcmp(wanted, "0") != 0;
    }
    return traces != 0;
}

static void say(const char *kind, const char *format, va_list arguments)
{
    char text[TRACE_BYTES];
    vsnprintf(text, sizeof text, format, arguments);
    printf("%4llu.%06llu %-10s %s%s\n", (unsigned long long)(world.now_ns / SECOND),
        (unsigned long long)(world.now_ns / US % 1000000),
        process_current() != NULL ? process_current()->name : "world", kind, text);
}

void trace(const char *format, ...)
{
    if (world_traces()) {
        va_list arguments;
        va_start(arguments, format);
        say("", format, arguments);
        va_end(arguments);
    }
}

_Noreturn static void end_program(void)
{
    printf("replay: KVIST_SEED=%llu KVIST_TRACE=1 %s\n", (unsigned long long)world.seed,
        program_invocation_name);
    fflush(stdout);
    abort();
}

_Noreturn void violation(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say("VIOLATION: ", format, arguments);
    va_end(arguments);
    end_program();
}

/* ---- what the code under test sees of time, chance and the log ---- */

uint64_t kv_clock_now_ns(void)
{
    return world.now_ns;
}

static uint64_t monotonic_ns(const kv_clock_t *clock)
{
    (void)clock;
    return world.now_ns;
}

static uint64_t unix_ns(const kv_clock_t *clock)
{
    (void)clock;
    return world.now_ns + UINT64_C(1700000000) * SECOND;
}

const kv_clock_t *kv_clock_real(void)
{
    static const kv_clock_t SIMULATED = {monotonic_ns, unix_ns};
    return &SIMULATED;
}

ssize_t getrandom(void *bytes, size_t count, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < count; i++) {
        ((uint8_t *)bytes)[i] = (uint8_t)world_random();
    }
    return (ssize_t)count;
}

int RAND_bytes(unsigned char *bytes, int count);
int RAND_bytes(unsigned char *bytes, int count)
{
    return getrandom(bytes, (size_t)count, 0) == count;
}

void kv_log_setup(const char *process_name, kv_log_level_t level)
{
    (void)process_name;
    (void)level;
}

bool kv_log_enabled(kv_log_level_t level)
{
    return world_traces() && level >= KV_LOG_DEBUG;
}

void kv_log_write(kv_log_level_t level, const char *module, const char *format, ...)
{
    char text[KV_LOG_LINE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    trace("log %s: %s%s", module, level >= KV_LOG_WARN ? "(warning) " : "", text);
}

_Noreturn void kv_check_failed(const char *expression, const char *file, int line)
{
    violation("%s:%d: KV_CHECK(%s)", file, line, expression);
}
