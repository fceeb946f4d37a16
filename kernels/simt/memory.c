#include "kernels/simt/memory.h"

#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/asan.h"
#include "kernels/simt/watch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Between allocations; an index that runs off an array by less finds nobody's memory. */
#define GAP_BYTES ((size_t)64 << 10)
#define ALIGNMENT ((size_t)512)

typedef struct {
    uintptr_t begin;
    size_t bytes;
    bool owned; /* host memory that was allocated here */
} span_t;

/* Ranges in the order of their addresses. */
typedef struct {
    span_t *spans;
    size_t count, room;
} spans_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uintptr_t base; /* of the device's range; 0 before the first use */
static spans_t allocations, pins;
static size_t used_bytes, bound_bytes;

/* The first span that begins above the address. */
static size_t spans_above(const spans_t *spans, uintptr_t address)
{
    size_t low = 0, high = spans->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (spans->spans[middle].begin > address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static bool spans_cover(const spans_t *spans, uintptr_t address, size_t bytes)
{
    size_t above = spans_above(spans, address);
    if (above == 0) {
        return false;
    }
    const span_t *span = &spans->spans[above - 1];
    size_t offset = address - span->begin;
    return offset <= span->bytes && bytes <= span->bytes - offset;
}

static void spans_insert(spans_t *spans, size_t at, span_t span)
{
    if (spans->count == spans->room) {
        spans->room = spans->room == 0 ? 64 : 2 * spans->room;
        spans->spans = kv_reallocate(spans->spans, spans->room, sizeof *spans->spans);
    }
    memmove(&spans->spans[at + 1], &spans->spans[at], (spans->count - at) * sizeof span);
    spans->spans[at] = span;
    spans->count++;
}

/* The span that begins at the address, taken out; 0 bytes: none does. */
static span_t spans_remove(spans_t *spans, uintptr_t address)
{
    size_t above = spans_above(spans, address);
    if (above == 0 || spans->spans[above - 1].begin != address) {
        return (span_t){0};
    }
    span_t span = spans->spans[above - 1];
    memmove(&spans->spans[above - 1], &spans->spans[above], (spans->count - above) * sizeof span);
    spans->count--;
    return span;
}

static void open_range(void)
{
    if (base != 0) {
        return;
    }
    void *mapping = mmap(
        NULL, KV_SIMT_DEVICE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    KV_CHECK(mapping != MAP_FAILED);
    (void)madvise(mapping, KV_SIMT_DEVICE_BYTES, MADV_HUGEPAGE); /* a wish: it makes it fast */
    base = (uintptr_t)mapping;
    const char *bound = getenv("KVIST_SIMT_MEMORY");
    unsigned long long mebibytes = bound == NULL ? 0 : strtoull(bound, NULL, 10);
    if (bound_bytes == 0) {
        bound_bytes = mebibytes == 0 ? (size_t)8 << 30 : (size_t)mebibytes << 20;
    }
}

/* The lowest address with room for the bytes and a gap on both sides; 0: none. */
static uintptr_t find_room(size_t bytes)
{
    uintptr_t begin = base + GAP_BYTES;
    for (size_t i = 0; i < allocations.count; i++) {
        const span_t *next = &allocations.spans[i];
        if (next->begin >= begin && next->begin - begin >= bytes + GAP_BYTES) {
            return begin;
        }
        uintptr_t end = next->begin + next->bytes + GAP_BYTES;
        begin = (end + GAP_BYTES - 1) / GAP_BYTES * GAP_BYTES;
    }
    return begin + bytes + GAP_BYTES <= base + KV_SIMT_DEVICE_BYTES ? begin : 0;
}

static size_t to_pages(size_t bytes)
{
    return (bytes + GAP_BYTES - 1) / GAP_BYTES * GAP_BYTES;
}

void *kv_simt_memory_allocate(size_t bytes)
{
    _Static_assert(GAP_BYTES % ALIGNMENT == 0, "allocations begin on a gap's boundary");
    void *memory = NULL;
    pthread_mutex_lock(&lock);
    open_range();
    if (bytes <= bound_bytes - used_bytes) {
        uintptr_t begin = find_room(bytes);
        if (begin != 0 && mprotect((void *)begin, to_pages(bytes), PROT_READ | PROT_WRITE) == 0) {
            memory = (void *)begin;
            spans_insert(
                &allocations, spans_above(&allocations, begin), (span_t){begin, bytes, false});
            used_bytes += bytes;
        }
    }
    pthread_mutex_unlock(&lock);
    if (memory != NULL) {
        memset(memory, 0xff, bytes);
        /* What follows on the last page is nobody's, for AddressSanitizer too. */
        KV_SIMT_POISON((char *)memory + bytes, to_pages(bytes) - bytes);
        kv_simt_watch_forget(memory, bytes);
    }
    return memory;
}

static void give_back(span_t span)
{
    used_bytes -= span.bytes;
    void *memory = (void *)span.begin;
    KV_SIMT_UNPOISON(memory, to_pages(span.bytes));
    (void)madvise(memory, to_pages(span.bytes), MADV_DONTNEED);
    KV_CHECK(mprotect(memory, to_pages(span.bytes), PROT_NONE) == 0);
}

bool kv_simt_memory_release(void *memory)
{
    pthread_mutex_lock(&lock);
    span_t span = spans_remove(&allocations, (uintptr_t)memory);
    bool found = span.begin != 0;
    if (found) {
        give_back(span);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void kv_simt_memory_release_all(void)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < allocations.count; i++) {
        give_back(allocations.spans[i]);
    }
    for (size_t i = 0; i < pins.count; i++) {
        free(pins.spans[i].owned ? (void *)pins.spans[i].begin : NULL);
    }
    free(allocations.spans);
    free(pins.spans);
    allocations = pins = (spans_t){0};
    pthread_mutex_unlock(&lock);
}

size_t kv_simt_memory_used(void)
{
    pthread_mutex_lock(&lock);
    size_t bytes = used_bytes;
    pthread_mutex_unlock(&lock);
    return bytes;
}

size_t kv_simt_memory_bound(void)
{
    pthread_mutex_lock(&lock);
    open_range();
    size_t bytes = bound_bytes;
    pthread_mutex_unlock(&lock);
    return bytes;
}

void kv_simt_memory_set_bound(size_t bytes)
{
    pthread_mutex_lock(&lock);
    open_range();
    bound_bytes = bytes > used_bytes ? bytes : used_bytes;
    pthread_mutex_unlock(&lock);
}

bool kv_simt_memory_is_device(const void *address)
{
    return base != 0 && (uintptr_t)address - base < KV_SIMT_DEVICE_BYTES;
}

size_t kv_simt_memory_offset(const void *address)
{
    return (uintptr_t)address - base;
}

bool kv_simt_memory_covers(const void *address, size_t bytes)
{
    pthread_mutex_lock(&lock);
    bool covered = spans_cover(&allocations, (uintptr_t)address, bytes);
    pthread_mutex_unlock(&lock);
    return covered;
}

bool kv_simt_memory_find(const void *address, uintptr_t *begin_out, size_t *bytes_out)
{
    pthread_mutex_lock(&lock);
    bool found = spans_cover(&allocations, (uintptr_t)address, 1);
    if (found) {
        const span_t *span = &allocations.spans[spans_above(&allocations, (uintptr_t)address) - 1];
        *begin_out = span->begin;
        *bytes_out = span->bytes;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

bool kv_simt_memory_is_pinned(const void *address, size_t bytes)
{
    pthread_mutex_lock(&lock);
    bool pinned = spans_cover(&pins, (uintptr_t)address, bytes);
    pthread_mutex_unlock(&lock);
    return pinned;
}

/* Does any span hold a byte of the range? */
static bool spans_touch(const spans_t *spans, uintptr_t begin, size_t bytes)
{
    size_t above = spans_above(spans, begin);
    bool after = above > 0 && begin - spans->spans[above - 1].begin < spans->spans[above - 1].bytes;
    bool before = above < spans->count && spans->spans[above].begin - begin < bytes;
    return after || before;
}

bool kv_simt_memory_is_cut(const void *address, size_t bytes)
{
    uintptr_t begin = (uintptr_t)address;
    pthread_mutex_lock(&lock);
    bool cut = spans_touch(&pins, begin, bytes) && !spans_cover(&pins, begin, bytes);
    pthread_mutex_unlock(&lock);
    return cut;
}

bool kv_simt_memory_pin(void *address, size_t bytes, bool owned)
{
    uintptr_t begin = (uintptr_t)address;
    pthread_mutex_lock(&lock);
    bool free_of_pins = bytes > 0 && !spans_touch(&pins, begin, bytes);
    if (free_of_pins) {
        spans_insert(&pins, spans_above(&pins, begin), (span_t){begin, bytes, owned});
    }
    pthread_mutex_unlock(&lock);
    return free_of_pins;
}

bool kv_simt_memory_unpin(void *address)
{
    pthread_mutex_lock(&lock);
    bool found = spans_remove(&pins, (uintptr_t)address).begin != 0;
    pthread_mutex_unlock(&lock);
    return found;
}

size_t kv_simt_memory_pinned_count(void)
{
    pthread_mutex_lock(&lock);
    size_t count = pins.count;
    pthread_mutex_unlock(&lock);
    return count;
}
