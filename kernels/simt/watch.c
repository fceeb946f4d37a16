/* A record for each byte that a kernel touched, and the rules by which two accesses are ordered.
 *
 * Time is a count of intervals: one begins with each launch, block and barrier. An access is
 * ordered before the present one if
 *   1. it belongs to an earlier launch, or, in shared memory, to an earlier block;
 *   2. it belongs to an earlier interval of this block;
 *   3. the same lane made it; or
 *   4. a lane of the same warp made it in this interval, and the two synchronised since, directly
 *      or by way of others: known[a][b] is how much of lane b's past lane a has been told.
 * Two that are not ordered race if one of them writes and not both are atomic. */
#include "kernels/simt/watch.h"

#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/block_internal.h"
#include "kernels/simt/memory.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { LANES = KV_SIMT_WARP_LANES, NOBODY = UINT16_MAX, IMAGES_MAX = 1024, RACES_MAX = 4 };

/* One byte's past. Two readers of the last interval are enough to find a writer that is neither. */
typedef struct {
    uint32_t write_interval, read_interval;
    uint16_t writer, readers[2];
    uint16_t write_clock, read_clocks[2];
    bool write_atomic;
    bool read_by_other_block; /* in the launch of read_interval */
} record_t;

typedef struct {
    uintptr_t begin;
    size_t bytes;
    record_t *records; /* NULL: not written by any kernel so far */
    bool writable;
} image_t;

static bool watching;

/* The allocation that the last access was in; nothing is freed while a kernel runs. */
static uintptr_t near_begin;
static size_t near_bytes;

static uint32_t interval, launch_began, block_began;
static uint32_t races; /* of this launch; those past RACES_MAX are not told */

/* Rule 4: clocks of the lanes of each warp in this interval. */
static uint16_t known[KV_SIMT_WARPS_MAX][LANES][LANES];

static record_t *shared_records;   /* [KV_SIMT_SHARED_BYTES_MAX] */
static record_t *device_records;   /* [KV_SIMT_WATCHED_BYTES], touched where used */
static image_t images[IMAGES_MAX]; /* what this process loaded: constants, static shared memory */
static size_t image_count, near_image; /* near_image: where the last access was */

bool kv_simt_watching(void)
{
    return watching;
}

void kv_simt_watch_begin(void)
{
    watching = true;
}

static record_t *map_records(size_t count)
{
    void *mapping = mmap(NULL, count * sizeof(record_t), PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    KV_CHECK(mapping != MAP_FAILED);
    return mapping;
}

static int note_image(struct dl_phdr_info *info, size_t info_bytes, void *argument)
{
    (void)info_bytes;
    (void)argument;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && image_count < IMAGES_MAX) {
            images[image_count++] = (image_t){
                .begin = info->dlpi_addr + segment->p_vaddr,
                .bytes = segment->p_memsz,
                .writable = (segment->p_flags & PF_W) != 0,
            };
        }
    }
    return 0;
}

static image_t *image_of(uintptr_t address)
{
    if (near_image < image_count && address - images[near_image].begin < images[near_image].bytes) {
        return &images[near_image];
    }
    for (size_t i = 0; i < image_count; i++) {
        if (address - images[i].begin < images[i].bytes) {
            near_image = i;
            return &images[i];
        }
    }
    return NULL;
}

/* Images come and go with plug-ins: they are listed again for each launch. Records stay with the
 * image that still lies where it did. */
static void list_images(void)
{
    image_t before[IMAGES_MAX];
    size_t before_count = image_count;
    memcpy(before, images, sizeof before);
    image_count = 0;
    dl_iterate_phdr(note_image, NULL);
    for (size_t i = 0; i < before_count; i++) {
        image_t *same = image_of(before[i].begin);
        if (same != NULL && same->begin == before[i].begin && same->bytes == before[i].bytes) {
            same->records = before[i].records;
        } else if (before[i].records != NULL) {
            munmap(before[i].records, before[i].bytes * sizeof(record_t));
        }
    }
}

void kv_simt_watch_launch(void)
{
    near_bytes = 0;
    if (!watching) {
        return;
    }
    if (shared_records == NULL) {
        shared_records = map_records(KV_SIMT_SHARED_BYTES_MAX);
        device_records = map_records(KV_SIMT_WATCHED_BYTES);
    }
    list_images();
    launch_began = ++interval;
    races = 0;
}

/* A new interval: what lanes knew of each other is past. */
static void next_interval(void)
{
    interval++;
    memset(known, 0, kv_simt_block.warp_count * sizeof known[0]);
}

void kv_simt_watch_block(void)
{
    if (watching) {
        next_interval();
        block_began = interval;
    }
}

void kv_simt_watch_barrier(void)
{
    if (watching) {
        next_interval();
    }
}

void kv_simt_watch_warp(uint32_t warp, uint32_t lanes)
{
    if (!watching) {
        return;
    }
    uint16_t(*clocks)[LANES] = known[warp];
    uint16_t joined[LANES] = {0};
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        uint32_t lane = (uint32_t)__builtin_ctz(left);
        clocks[lane][lane]++;
        for (uint32_t i = 0; i < LANES; i++) {
            joined[i] = joined[i] > clocks[lane][i] ? joined[i] : clocks[lane][i];
        }
    }
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        memcpy(clocks[__builtin_ctz(left)], joined, sizeof joined);
    }
}

void kv_simt_watch_forget(const void *memory, size_t bytes)
{
    size_t offset = kv_simt_memory_offset(memory);
    if (device_records == NULL || offset >= KV_SIMT_WATCHED_BYTES) {
        return;
    }
    size_t end = offset + bytes < KV_SIMT_WATCHED_BYTES ? offset + bytes : KV_SIMT_WATCHED_BYTES;
    memset(&device_records[offset], 0, (end - offset) * sizeof(record_t));
}

/* Rules 2 to 4 for an access of this block at the time. */
static bool ordered(const kv_simt_lane_t *self, uint32_t when, uint16_t who, uint16_t clock)
{
    if (when < interval || who == self->index) {
        return true;
    }
    return who / LANES == self->warp && known[self->warp][self->lane][who % LANES] > clock;
}

static void report_race(const kv_simt_lane_t *self, const void *address, const char *what,
    const char *before, uint16_t who, const void *site)
{
    if (races++ >= RACES_MAX) {
        return;
    }
    Dl_info info = {0};
    char other[32] = "another block";
    bool found = dladdr(site, &info) != 0, named = found && info.dli_sname != NULL;
    const char *from = named ? info.dli_saddr : info.dli_fbase;
    if (who != NOBODY) {
        snprintf(other, sizeof other, "thread %u", who);
    }
    kv_simt_find(KV_SIMT_RACE, "thread %u's %s of %p at %s+%#tx, %s by %s with no barrier between",
        self->index, what, address, named ? info.dli_sname : "code", (const char *)site - from,
        before, other);
}

/* Who wrote the byte and is not ordered before self; -1: nobody. device: rule 1. */
static int unordered_writer(const kv_simt_lane_t *self, const record_t *record, bool device)
{
    if (record->write_interval < launch_began || record->write_interval == 0) {
        return -1;
    }
    if (record->write_interval < block_began) {
        return device ? NOBODY : -1;
    }
    bool known_before = ordered(self, record->write_interval, record->writer, record->write_clock);
    return known_before ? -1 : record->writer;
}

static int unordered_reader(const kv_simt_lane_t *self, const record_t *record, bool device)
{
    if (record->read_interval < launch_began || record->read_interval == 0) {
        return -1;
    }
    if (device && (record->read_by_other_block || record->read_interval < block_began)) {
        return NOBODY;
    }
    if (record->read_interval < block_began) {
        return -1;
    }
    for (size_t i = 0; i < 2; i++) {
        uint16_t reader = record->readers[i];
        if (reader != NOBODY &&
            !ordered(self, record->read_interval, reader, record->read_clocks[i])) {
            return reader;
        }
    }
    return -1;
}

static uint16_t own_clock(const kv_simt_lane_t *self)
{
    return known[self->warp][self->lane][self->lane];
}

static void note_read(const kv_simt_lane_t *self, record_t *record)
{
    uint16_t index = (uint16_t)self->index;
    if (record->read_interval != interval) {
        bool other = record->read_interval >= launch_began && record->read_interval < block_began;
        bool same_launch = record->read_interval >= launch_began;
        record->read_by_other_block = other || (same_launch && record->read_by_other_block);
        record->read_interval = interval;
        record->readers[0] = index;
        record->readers[1] = NOBODY;
    } else if (record->readers[0] != index) {
        record->readers[1] = record->readers[0];
        record->read_clocks[1] = record->read_clocks[0];
        record->readers[0] = index;
    }
    record->read_clocks[0] = own_clock(self);
}

static void note_write(const kv_simt_lane_t *self, record_t *record, bool atomic)
{
    record->write_interval = interval;
    record->writer = (uint16_t)self->index;
    record->write_clock = own_clock(self);
    record->write_atomic = atomic;
}

/* One byte; true if it raced, so that one access is reported once. */
static bool judge(const kv_simt_lane_t *self, record_t *record, bool device,
    kv_simt_access_kind_t kind, const void *address, const void *site)
{
    int writer = unordered_writer(self, record, device);
    if (writer >= 0 && kind == KV_SIMT_ATOMIC && record->write_atomic) {
        writer = -1;
    }
    int reader = kind == KV_SIMT_READ ? -1 : unordered_reader(self, record, device);
    if (writer >= 0) {
        report_race(self, address, kind == KV_SIMT_READ ? "read" : "write", "written",
            (uint16_t)writer, site);
    } else if (reader >= 0) {
        report_race(self, address, "write", "read", (uint16_t)reader, site);
    }
    if (kind == KV_SIMT_READ) {
        note_read(self, record);
    } else {
        note_write(self, record, kind == KV_SIMT_ATOMIC);
    }
    return writer >= 0 || reader >= 0;
}

static void judge_all(record_t *records, size_t bytes, bool device, kv_simt_access_kind_t kind,
    const void *address, const void *site)
{
    const kv_simt_lane_t *self = kv_simt_block.current;
    bool raced = false;
    for (size_t i = 0; i < bytes; i++) {
        if (!device && kind == KV_SIMT_READ && records[i].write_interval < block_began) {
            kv_simt_find(KV_SIMT_UNWRITTEN, "shared memory at %p is read before it is written",
                (const void *)((const char *)address + i));
            kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
        }
        if (!raced) {
            raced = judge(self, &records[i], device, kind, (const char *)address + i, site);
        } else if (kind == KV_SIMT_READ) {
            note_read(self, &records[i]);
        } else {
            note_write(self, &records[i], kind == KV_SIMT_ATOMIC);
        }
    }
}

static bool on_stack_of(const kv_simt_lane_t *lane, uintptr_t address)
{
    if (lane->fiber == NULL) {
        return false; /* it has not begun */
    }
    size_t bytes;
    uintptr_t stack = (uintptr_t)kv_fiber_stack(lane->fiber, &bytes);
    return address - stack < bytes;
}

static _Noreturn void refuse(const void *address, size_t bytes, const char *what, const void *site)
{
    Dl_info info;
    bool named = dladdr(site, &info) != 0 && info.dli_sname != NULL;
    kv_simt_find(KV_SIMT_OUT_OF_BOUNDS, "%zu bytes at %p at %s: %s", bytes, address,
        named ? info.dli_sname : "code", what);
    kv_simt_abandon(KV_SIMT_ILLEGAL_ADDRESS);
}

/* Static memory: constants may be read by all; what a kernel writes there is its static shared
 * memory, and what a block reads of that it must have written itself. */
static void access_image(
    image_t *image, const void *address, size_t bytes, kv_simt_access_kind_t kind, const void *site)
{
    size_t offset = (uintptr_t)address - image->begin;
    if (kind != KV_SIMT_READ && !image->writable) {
        refuse(address, bytes, "a write to constant memory", site);
    }
    if (bytes > image->bytes - offset) {
        refuse(address, bytes, "past the end of static memory", site);
    }
    if (kind != KV_SIMT_READ && image->records == NULL) {
        image->records = map_records(image->bytes);
    }
    if (image->records == NULL) {
        return;
    }
    record_t *records = &image->records[offset];
    if (kind == KV_SIMT_READ && records->write_interval == 0) {
        for (size_t i = 0; i < bytes; i++) {
            note_read(kv_simt_block.current, &records[i]); /* a constant, as far as one knows */
        }
        return;
    }
    judge_all(records, bytes, false, kind, address, site);
}

/* Whatever is neither shared nor device memory. */
static void access_other(
    const void *address, size_t bytes, kv_simt_access_kind_t kind, const void *site)
{
    const kv_simt_block_t *block = &kv_simt_block;
    uintptr_t at = (uintptr_t)address;
    if (on_stack_of(block->current, at) ||
        at - (uintptr_t)block->lanes < KV_SIMT_THREADS_MAX * sizeof *block->lanes ||
        at - (uintptr_t)block->launch->body < block->launch->body_bytes ||
        kv_simt_memory_is_pinned(address, bytes)) {
        return;
    }
    image_t *image = image_of(at);
    if (image != NULL) {
        access_image(image, address, bytes, kind, site);
        return;
    }
    for (uint32_t i = 0; i < block->thread_count; i++) {
        if (on_stack_of(&block->lanes[i], at)) {
            refuse(address, bytes, "another thread's own memory", site);
        }
    }
    refuse(address, bytes, "memory of the host", site);
}

static bool in_allocation(const void *address, size_t bytes)
{
    uintptr_t at = (uintptr_t)address;
    if (at - near_begin >= near_bytes && !kv_simt_memory_find(address, &near_begin, &near_bytes)) {
        near_bytes = 0;
        return false;
    }
    return bytes <= near_bytes - (at - near_begin);
}

void kv_simt_access(const void *address, size_t bytes, kv_simt_access_kind_t kind, const void *site)
{
    const kv_simt_block_t *block = &kv_simt_block;
    uintptr_t shared = (uintptr_t)address - (uintptr_t)block->shared;
    if (shared < KV_SIMT_SHARED_BYTES_MAX) {
        size_t shared_bytes = block->launch->shared_bytes;
        if (shared >= shared_bytes || bytes > shared_bytes - shared) {
            refuse(address, bytes, "past the block's shared memory", site);
        }
        if (watching) {
            judge_all(&shared_records[shared], bytes, false, kind, address, site);
        }
    } else if (kv_simt_memory_is_device(address)) {
        if (!in_allocation(address, bytes)) {
            refuse(address, bytes, "outside every allocation", site);
        }
        size_t offset = kv_simt_memory_offset(address);
        if (watching && offset + bytes <= KV_SIMT_WATCHED_BYTES) {
            judge_all(&device_records[offset], bytes, true, kind, address, site);
        }
    } else if (watching) {
        access_other(address, bytes, kind, site);
    }
}
