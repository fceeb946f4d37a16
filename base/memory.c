#include "base/memory.h"

#include "base/check.h"
#include "base/log.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE_BYTES = 2 * 1024 * 1024 };

static void *checked(void *memory, size_t bytes)
{
    if (memory == NULL) {
        kv_log_error("base", "out of memory asking for %zu bytes: stopping", bytes);
        abort();
    }
    return memory;
}

void *kv_allocate(size_t bytes)
{
    return checked(calloc(1, bytes > 0 ? bytes : 1), bytes);
}

void *kv_allocate_array(size_t count, size_t bytes)
{
    KV_CHECK(bytes == 0 || count <= SIZE_MAX / bytes);
    return kv_allocate(count * bytes);
}

void *kv_reallocate(void *memory, size_t count, size_t bytes)
{
    KV_CHECK(bytes == 0 || count <= SIZE_MAX / bytes);
    size_t total = count * bytes;
    return checked(realloc(memory, total > 0 ? total : 1), total);
}

char *kv_duplicate_string(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(kv_allocate(bytes), text, bytes);
}

/* Addresses without memory: over-allocated by one huge page, then trimmed to an aligned range. */
static kv_status_t reserve(size_t bytes, kv_region_t *region_out, kv_error_t *error)
{
    if (bytes == 0 || bytes > SIZE_MAX - 2 * (size_t)HUGE_PAGE_BYTES) {
        return kv_fail(error, KV_INVALID, "cannot map %zu bytes", bytes);
    }
    size_t wanted = (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    size_t mapped = wanted + HUGE_PAGE_BYTES;
    char *base = mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return kv_fail_errno(error, errno, "cannot map %zu bytes of memory", bytes);
    }
    size_t head = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (head > 0) {
        munmap(base, head);
    }
    if (mapped - head - wanted > 0) {
        munmap(base + head + wanted, mapped - head - wanted);
    }
    *region_out = (kv_region_t){base + head, wanted};
    return KV_OK;
}

/* What lies behind the addresses from now on. */
static kv_status_t back(kv_region_t *region, int protection, int flags, int fd, kv_error_t *error)
{
    if (mmap(region->base, region->bytes, protection, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int cause = errno;
        size_t bytes = region->bytes;
        kv_region_unmap(region);
        return kv_fail_errno(error, cause, "cannot map %zu bytes of memory", bytes);
    }
    /* Advice: without it the pages are small and slower. */
    madvise(region->base, region->bytes, MADV_HUGEPAGE);
    return KV_OK;
}

kv_status_t kv_region_map(size_t bytes, kv_region_t *region_out, kv_error_t *error)
{
    kv_region_t region;
    kv_status_t status = reserve(bytes, &region, error);
    if (status == KV_OK) {
        status = back(&region, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, error);
    }
    if (status == KV_OK) {
        *region_out = region;
    }
    return status;
}

kv_status_t kv_region_map_file(
    int fd, size_t bytes, bool writable, kv_region_t *region_out, kv_error_t *error)
{
    kv_region_t region;
    kv_status_t status = reserve(bytes, &region, error);
    if (status == KV_OK) {
        status = back(&region, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, error);
    }
    if (status == KV_OK) {
        *region_out = region;
    }
    return status;
}

void kv_region_unmap(kv_region_t *region)
{
    if (region->base != NULL) {
        munmap(region->base, region->bytes);
        *region = (kv_region_t){NULL, 0};
    }
}
