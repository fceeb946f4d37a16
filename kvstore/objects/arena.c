#include "kvstore/objects/arena.h"

#include "base/available.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE /* since Linux 6.1; newer than some C libraries */
#define MADV_COLLAPSE 25
#endif

enum {
    PAGE_BYTES = 4096,
    HUGE_PAGE_BYTES = 2 << 20,
    STEP_BYTES = 16 << 20, /* made ready at one go: some ms, as fast as at longer ones */
    LEFT_SHARE = 32,       /* of all memory this part stays for everybody else */
    SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE,
};

/* ---- the plan ---- */

/* Behind `at`: count things of that many bytes, up to a whole number of `unit`. false: there are no
 * such numbers. */
static bool add(uint64_t *at, uint64_t count, uint64_t bytes, uint64_t unit)
{
    uint64_t sum;
    if (__builtin_mul_overflow(count, bytes, &sum) || __builtin_add_overflow(sum, *at, &sum) ||
        sum > UINT64_MAX / 2) {
        return false;
    }
    *at = (sum + unit - 1) / unit * unit;
    return true;
}

kv_status_t kv_arena_plan(kv_arena_plan_t *plan, kv_error_t *error)
{
    const uint64_t unit_bytes = plan->unit_count * sizeof(uint64_t);
    const uint64_t word_bytes = plan->block_words * sizeof(uint32_t);
    uint64_t at = 0;
    bool good = plan->slot_count > 0 && plan->object_bytes > 0;
    good = good && add(&at, plan->slot_count, plan->object_bytes, PAGE_BYTES);
    const uint64_t checksums_at = at;
    good = good && add(&at, plan->slot_count, unit_bytes, PAGE_BYTES);
    const uint64_t words_at = at;
    good = good && add(&at, plan->slot_count, word_bytes, HUGE_PAGE_BYTES) && at <= SIZE_MAX;
    if (!good) {
        return kv_fail(error, KV_INVALID, "no memory can hold %u slots of %ju bytes",
            plan->slot_count, (uintmax_t)plan->object_bytes);
    }
    plan->checksums_at = checksums_at;
    plan->words_at = words_at;
    plan->total_bytes = at;
    return KV_OK;
}

/* ---- open, close ---- */

/* Maps it to write, then makes sure that nobody else ever does. */
static kv_status_t map_and_seal(int fd, kv_arena_t *arena, kv_error_t *error)
{
    kv_status_t status =
        kv_region_map_file(fd, arena->plan.total_bytes, true, &arena->region, error);
    if (status != KV_OK) {
        return status;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fchmod(fd, S_IRUSR) == 0 && fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) == 0) {
        arena->fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (arena->fd < 0) {
        status = kv_fail_errno(error, errno, "cannot seal the host tier's memory");
        kv_region_unmap(&arena->region);
    }
    return status;
}

static kv_status_t open_shared(kv_arena_t *arena, kv_error_t *error)
{
    const uint64_t bytes = arena->plan.total_bytes;
    int fd = memfd_create("kvist-host", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return kv_fail_errno(error, errno, "no shared memory for the host tier");
    }
    kv_status_t status =
        ftruncate(fd, (off_t)bytes) != 0
            ? kv_fail_errno(error, errno, "no %ju bytes of shared memory", (uintmax_t)bytes)
            : map_and_seal(fd, arena, error);
    close(fd);
    return status;
}

kv_status_t kv_arena_open(
    const kv_arena_plan_t *plan, bool shared, kv_arena_t *arena_out, kv_error_t *error)
{
    kv_arena_t arena = {.plan = *plan, .fd = -1};
    kv_status_t status = shared ? open_shared(&arena, error)
                                : kv_region_map(plan->total_bytes, &arena.region, error);
    if (status == KV_OK) {
        *arena_out = arena;
    }
    return status;
}

kv_status_t kv_arena_map(
    const kv_arena_plan_t *plan, int fd, kv_arena_t *arena_out, kv_error_t *error)
{
    struct stat about;
    if (fstat(fd, &about) != 0 || (uint64_t)about.st_size != plan->total_bytes) {
        return kv_fail(error, KV_REFUSED,
            "the shared memory that was handed over is not the %ju bytes that its plan says",
            (uintmax_t)plan->total_bytes);
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) {
        return kv_fail(error, KV_REFUSED,
            "the shared memory that was handed over is not sealed as it must be");
    }
    kv_arena_t arena = {.plan = *plan, .fd = -1};
    kv_status_t status = kv_region_map_file(fd, plan->total_bytes, false, &arena.region, error);
    if (status == KV_OK) {
        *arena_out = arena;
    }
    return status;
}

void kv_arena_close(kv_arena_t *arena)
{
    if (arena->region.base != NULL) {
        kv_region_unmap(&arena->region);
        if (arena->fd >= 0) {
            close(arena->fd);
        }
    }
    *arena = (kv_arena_t){.fd = -1};
}

/* ---- making it ready ---- */

/* Asked for before, because the kernel answers a shortage that it meets on the way by ending a
 * process. */
static kv_status_t check_left(uint64_t bytes, kv_error_t *error)
{
    const kv_available_t left = kv_available_memory(NULL);
    const uint64_t kept = left.total_bytes / LEFT_SHARE;
    if (left.available_bytes < kept + bytes) {
        return kv_fail(error, KV_NO_SPACE,
            "%ju MiB of memory are left of %ju, of which %ju stay for others",
            (uintmax_t)left.available_bytes >> 20, (uintmax_t)left.total_bytes >> 20,
            (uintmax_t)kept >> 20);
    }
    return KV_OK;
}

static kv_status_t populate_range(void *base, size_t bytes, kv_error_t *error)
{
    int result;
    do {
        result = madvise(base, bytes, MADV_POPULATE_WRITE);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? KV_OK
                       : kv_fail_errno(error, errno, "no %zu bytes more of shared memory", bytes);
}

/* Shared memory gets huge pages only where the machine's settings say so, which by default they do
 * not; but one small page in each can be made a huge one on request, which costs no more than to
 * get a huge one at once (0.16 s a GiB; small ones take 0.37). Where that fails they are small. */
static kv_status_t machine_populate(void *base, size_t bytes, kv_error_t *error)
{
    kv_status_t status = check_left(bytes, error);
    for (size_t at = 0; at < bytes && status == KV_OK; at += HUGE_PAGE_BYTES) {
        status = populate_range((char *)base + at, PAGE_BYTES, error);
    }
    if (status == KV_OK) {
        madvise(base, bytes, MADV_COLLAPSE);
        status = populate_range(base, bytes, error);
    }
    return status;
}

static bool machine_lock(void *base, size_t bytes)
{
    return mlock(base, bytes) == 0;
}

const kv_arena_memory_t KV_ARENA_MACHINE = {machine_populate, machine_lock};

/* The huge pages that the range touches. */
static kv_status_t make_range_ready(const kv_arena_t *arena, const kv_arena_memory_t *memory,
    uint64_t from, uint64_t bytes, const atomic_bool *stop, bool *locked, kv_error_t *error)
{
    uint64_t at = from / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    const uint64_t end = (from + bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    kv_status_t status = KV_OK;
    while (at < end && status == KV_OK) {
        const size_t step = end - at < STEP_BYTES ? end - at : STEP_BYTES;
        char *base = (char *)arena->region.base + at;
        status = atomic_load(stop) ? KV_CANCELLED : KV_OK;
        if (status == KV_OK) {
            status = memory->populate(base, step, error);
        }
        if (status == KV_OK && *locked) {
            *locked = memory->lock(base, step);
        }
        at += step;
    }
    return status;
}

kv_status_t kv_arena_make_ready(const kv_arena_t *arena, const kv_arena_memory_t *memory,
    uint32_t first_slot, uint32_t slot_count, const atomic_bool *stop, bool *locked,
    kv_error_t *error)
{
    const kv_arena_plan_t *plan = &arena->plan;
    const struct {
        uint64_t at, bytes; /* of one slot */
    } PARTS[] = {{plan->checksums_at, plan->unit_count * sizeof(uint64_t)},
        {plan->words_at, plan->block_words * sizeof(uint32_t)}, {0, plan->object_bytes}};
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < sizeof PARTS / sizeof PARTS[0] && status == KV_OK; i++) {
        status = make_range_ready(arena, memory, PARTS[i].at + first_slot * PARTS[i].bytes,
            slot_count * PARTS[i].bytes, stop, locked, error);
    }
    return status;
}
