#include "gateway/figures/history.h"

#include "base/memory.h"

#include <stdbool.h>
#include <stdlib.h>

struct kv_history {
    kv_history_slot_t fine[KV_HISTORY_FINE], coarse[KV_HISTORY_COARSE], total;
};

typedef struct {
    uint64_t count, step_s;
} ring_t;

/* In the order of kv_history_span_t. */
static const ring_t RINGS[KV_HISTORY_SPANS] = {
    {KV_HISTORY_FINE, KV_HISTORY_FINE_S}, {KV_HISTORY_COARSE, KV_HISTORY_COARSE_S}};

static const kv_history_slot_t *slots_of(const kv_history_t *history, kv_history_span_t span)
{
    return span == KV_HISTORY_HOUR ? history->fine : history->coarse;
}

kv_history_t *kv_history_create(void)
{
    return kv_allocate(sizeof(kv_history_t));
}

void kv_history_destroy(kv_history_t *history)
{
    free(history);
}

static void count(kv_history_slot_t *slot, const kv_partition_t *parts)
{
    slot->answers++;
    kv_partition_add(&slot->parts, parts);
}

static void count_at(
    kv_history_slot_t *slots, const ring_t *ring, uint64_t unix_s, const kv_partition_t *parts)
{
    kv_history_slot_t *slot = &slots[unix_s / ring->step_s % ring->count];
    uint64_t begins_unix_s = unix_s - unix_s % ring->step_s;
    if (slot->begins_unix_s < begins_unix_s) {
        *slot = (kv_history_slot_t){.begins_unix_s = begins_unix_s};
    }
    if (slot->begins_unix_s == begins_unix_s) {
        count(slot, parts);
    }
}

void kv_history_add(kv_history_t *history, uint64_t unix_s, const kv_partition_t *parts)
{
    count_at(history->fine, &RINGS[KV_HISTORY_HOUR], unix_s, parts);
    count_at(history->coarse, &RINGS[KV_HISTORY_WEEK], unix_s, parts);
    count(&history->total, parts);
}

const kv_history_slot_t *kv_history_total(const kv_history_t *history)
{
    return &history->total;
}

void kv_history_visit(const kv_history_t *history, kv_history_span_t span, uint64_t unix_s,
    void (*visit)(void *context, const kv_history_slot_t *slot), void *context)
{
    const ring_t *ring = &RINGS[span];
    uint64_t newest = unix_s / ring->step_s;
    for (uint64_t back = ring->count; back-- > 0;) {
        uint64_t number = newest >= back ? newest - back : 0;
        const kv_history_slot_t *slot = &slots_of(history, span)[number % ring->count];
        if (slot->answers > 0 && slot->begins_unix_s == number * ring->step_s) {
            visit(context, slot);
        }
    }
}

typedef struct {
    uint64_t from_unix_s;
    kv_history_slot_t sum;
} window_t;

static void add_to_window(void *context, const kv_history_slot_t *slot)
{
    window_t *window = context;
    if (slot->begins_unix_s + KV_HISTORY_FINE_S > window->from_unix_s) {
        window->sum.answers += slot->answers;
        kv_partition_add(&window->sum.parts, &slot->parts);
    }
}

kv_history_slot_t kv_history_last(const kv_history_t *history, uint64_t unix_s, uint64_t seconds)
{
    window_t window = {.from_unix_s = unix_s > seconds ? unix_s - seconds : 0};
    window.sum.begins_unix_s = window.from_unix_s;
    kv_history_visit(history, KV_HISTORY_HOUR, unix_s, add_to_window, &window);
    return window.sum;
}
