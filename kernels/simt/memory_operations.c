/* What a single lane does to memory through an instruction of its own: asynchronous copies and
 * atomics.
 *
 * A copy may land at any time between its start and its wait. So the start counts as a write and
 * leaves not-a-number in its place, and the bytes move when the group is waited for and not before:
 * who reads in between, the old bytes or the new ones, is found by the numbers. Atomics are plain
 * here: lanes never run at the same time. */
#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/watch.h"

#include <string.h>

/* Both sides, at the copy's start and at its end. */
static void judge(const kv_simt_copy_t *copy, const void *site)
{
    if (copy->source_bytes > 0) {
        kv_simt_access(copy->global, copy->source_bytes, KV_SIMT_READ, site);
    }
    kv_simt_access(copy->shared, copy->bytes, KV_SIMT_WRITE, site);
}

static void finish(const kv_simt_copy_t *copy, const void *site)
{
    judge(copy, site);
    memcpy(copy->shared, copy->global, copy->source_bytes);
    memset((char *)copy->shared + copy->source_bytes, 0, copy->bytes - copy->source_bytes);
}

void kv_simt_copy_async(void *shared, const void *global, uint32_t bytes, uint32_t source_bytes)
{
    kv_simt_lane_t *self = kv_simt_block.current;
    if ((uintptr_t)shared % bytes != 0 || (uintptr_t)global % bytes != 0) {
        kv_simt_find(
            KV_SIMT_MISALIGNED, "cp.async of %u bytes from or to less aligned addresses", bytes);
        kv_simt_abandon(KV_SIMT_MISALIGNED_ADDRESS);
    }
    if (source_bytes > bytes || self->copy_count == KV_SIMT_COPIES_MAX) {
        kv_simt_find(KV_SIMT_MISUSE, "cp.async: %u of %u bytes, %u copies under way", source_bytes,
            bytes, self->copy_count);
        kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
    }
    if (self->copies == NULL) {
        self->copies = kv_allocate_array(KV_SIMT_COPIES_MAX, sizeof *self->copies);
    }
    self->copies[self->copy_count++] = (kv_simt_copy_t){
        .shared = shared,
        .global = global,
        .bytes = bytes,
        .source_bytes = source_bytes,
        .group = self->group,
    };
    judge(&self->copies[self->copy_count - 1], __builtin_return_address(0));
    memset(shared, 0xff, bytes);
}

void kv_simt_copy_async_commit(void)
{
    kv_simt_block.current->group++;
}

void kv_simt_copy_async_wait(uint32_t pending_max)
{
    kv_simt_lane_t *self = kv_simt_block.current;
    uint32_t done = 0;
    /* Groups count up; those before the youngest pending_max of the committed ones are due. */
    while (done < self->copy_count && self->copies[done].group + pending_max < self->group) {
        finish(&self->copies[done], __builtin_return_address(0));
        done++;
    }
    self->copy_count -= done;
    memmove(self->copies, self->copies + done, self->copy_count * sizeof self->copies[0]);
}

static uint64_t combine(kv_simt_atomic_t operation, uint64_t old, uint64_t value, uint64_t expected)
{
    switch (operation) {
    case KV_SIMT_ATOMIC_ADD:
        return old + value;
    case KV_SIMT_ATOMIC_EXCHANGE:
        return value;
    case KV_SIMT_ATOMIC_COMPARE:
        return old == expected ? value : old;
    case KV_SIMT_ATOMIC_MIN:
        return value < old ? value : old;
    case KV_SIMT_ATOMIC_MAX:
        return value > old ? value : old;
    case KV_SIMT_ATOMIC_MIN_SIGNED:
        return (int64_t)value < (int64_t)old ? value : old;
    case KV_SIMT_ATOMIC_MAX_SIGNED:
        return (int64_t)value > (int64_t)old ? value : old;
    case KV_SIMT_ATOMIC_AND:
        return old & value;
    case KV_SIMT_ATOMIC_OR:
        return old | value;
    case KV_SIMT_ATOMIC_XOR:
        return old ^ value;
    case KV_SIMT_ATOMIC_ADD_F32:
        break; /* 32 bits only */
    }
    KV_CHECK(!"an atomic operation of 64 bits");
    return 0;
}

static void check_alignment(const void *address, size_t bytes)
{
    if ((uintptr_t)address % bytes != 0) {
        kv_simt_find(KV_SIMT_MISALIGNED, "an atomic of %zu bytes at a less aligned address", bytes);
        kv_simt_abandon(KV_SIMT_MISALIGNED_ADDRESS);
    }
}

uint32_t kv_simt_atomic_32(
    kv_simt_atomic_t operation, void *address, uint32_t value, uint32_t expected)
{
    check_alignment(address, sizeof(uint32_t));
    kv_simt_access(address, sizeof(uint32_t), KV_SIMT_ATOMIC, __builtin_return_address(0));
    uint32_t old, new;
    memcpy(&old, address, sizeof old);
    if (operation == KV_SIMT_ATOMIC_ADD_F32) {
        float sum, addend;
        memcpy(&sum, &old, sizeof sum);
        memcpy(&addend, &value, sizeof addend);
        sum += addend;
        memcpy(&new, &sum, sizeof new);
    } else if (operation == KV_SIMT_ATOMIC_MIN_SIGNED || operation == KV_SIMT_ATOMIC_MAX_SIGNED) {
        new = (uint32_t)combine(
            operation, (uint64_t)(int64_t)(int32_t)old, (uint64_t)(int64_t)(int32_t)value, 0);
    } else {
        new = (uint32_t)combine(operation, old, value, expected);
    }
    memcpy(address, &new, sizeof new);
    return old;
}

uint64_t kv_simt_atomic_64(
    kv_simt_atomic_t operation, void *address, uint64_t value, uint64_t expected)
{
    check_alignment(address, sizeof(uint64_t));
    kv_simt_access(address, sizeof(uint64_t), KV_SIMT_ATOMIC, __builtin_return_address(0));
    uint64_t old;
    memcpy(&old, address, sizeof old);
    uint64_t new = combine(operation, old, value, expected);
    memcpy(address, &new, sizeof new);
    return old;
}
