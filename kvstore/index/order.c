#include "kvstore/index/order.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>

enum { CAPACITY_MIN = 1024, SEGMENTS = 1 << 16 };

static uint64_t place_of(uint16_t segment, uint32_t offset_pages)
{
    return (uint64_t)segment << 32 | offset_pages;
}

void kv_order_add(kv_order_t *order, uint16_t segment, uint32_t offset_pages)
{
    if (order->count == order->capacity) {
        KV_CHECK(order->capacity <= UINT32_MAX / 2);
        order->capacity = order->capacity > 0 ? order->capacity * 2 : CAPACITY_MIN;
        order->places = kv_reallocate(order->places, order->capacity, sizeof *order->places);
    }
    order->places[order->count++] = place_of(segment, offset_pages);
}

static int by_place(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

void kv_order_sort(kv_order_t *order)
{
    if (order->count > 0) {
        qsort(order->places, order->count, sizeof *order->places, by_place);
    }
    order->starts = kv_allocate_array(SEGMENTS + 1, sizeof *order->starts);
    uint32_t at = 0;
    for (uint32_t segment = 0; segment <= SEGMENTS; segment++) {
        while (at < order->count && order->places[at] >> 32 < segment) {
            at++;
        }
        order->starts[segment] = at;
    }
}

uint32_t kv_order_rank(const kv_order_t *order, uint16_t segment, uint32_t offset_pages)
{
    if (order->starts == NULL) {
        return KV_ORDER_NONE;
    }
    uint64_t wanted = place_of(segment, offset_pages);
    uint32_t low = order->starts[segment], high = order->starts[segment + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (order->places[middle] < wanted) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < order->count && order->places[low] == wanted ? low : KV_ORDER_NONE;
}

void kv_order_release(kv_order_t *order)
{
    free(order->places);
    free(order->starts);
    *order = (kv_order_t){0};
}
