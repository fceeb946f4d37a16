/* The disk tier's quota while the store runs: more makes room at once; of less, what is too much is
 * given back as soon as nobody needs it: spares first, then the oldest segments, whose survivors
 * are moved on as when they are reclaimed. One file at a time. */
#include "kvstore/store_internal.h"

#include "base/log.h"
#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdlib.h>

typedef struct {
    kv_task_t task;
    uint32_t number, volume;
    char path[KV_SEGMENT_PATH_BYTES];
    kv_status_t status;
    kv_error_t error;
} removal_t;

static void remove_file(kv_task_t *task)
{
    removal_t *removal = (removal_t *)task;
    const kv_segments_t *segments = &task->store->disk->segments;
    removal->status = kv_segment_remove_file(segments->files,
        segments->volumes[removal->volume]->folder, removal->path, &removal->error);
    kv_store_finish(task);
}

/* A file that cannot be removed is used on: the volume keeps what it has. */
static void file_removed(kv_task_t *task)
{
    removal_t *removal = (removal_t *)task;
    kvist_store_t *store = task->store;
    kv_segments_t *segments = &store->disk->segments;
    kv_volume_t *volume = segments->volumes[removal->volume];
    store->disk->lanes[removal->volume].beginning = false;
    if (removal->status == KV_OK) {
        kv_segments_forget(segments, removal->number);
    } else {
        kv_log_warn("store", "%s: working with the %u segments there are", removal->error.text,
            volume->present_count);
        kv_segments_add_spare(segments, removal->number);
        volume->segments_max = volume->present_count;
        store->stats.failed_writes++;
    }
    free(removal);
}

void kv_quota_remove(kvist_store_t *store, uint32_t volume, uint32_t number)
{
    kv_disk_t *disk = store->disk;
    removal_t *removal = kv_allocate(sizeof *removal);
    *removal = (removal_t){
        .task = {.work = remove_file, .done = file_removed, .store = store},
        .number = number,
        .volume = volume,
    };
    kv_segments_path(&disk->segments, number, removal->path);
    kv_segments_close_file(&disk->segments, number);
    disk->segments.items[number].state = KV_SEGMENT_BEGINNING;
    disk->lanes[volume].beginning = true;
    kv_store_submit(store, &removal->task);
}

void kv_quota_advance(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    uint32_t spare = disk->segments.volumes[volume]->first_spare;
    if (!kv_quota_exceeded(store, volume) || lane->beginning || lane->fill_out ||
        lane->victim.segment != KV_SEGMENT_NONE || spare == KV_SEGMENT_NONE) {
        return;
    }
    if (lane->filling == spare) {
        lane->filling = KV_SEGMENT_NONE;
    }
    kv_segments_leave_spare(&disk->segments, spare);
    kv_quota_remove(store, volume, spare);
}

/* What the volume's file system has for it: what is free, and what it has already. */
static uint64_t room_of(const kv_disk_t *disk, uint32_t volume)
{
    int file = volume == 0 ? disk->lock_fd : disk->disk_files[volume];
    uint64_t total_bytes, free_bytes;
    if (disk->files->ops->space(disk->files, file, &total_bytes, &free_bytes) != 0) {
        return UINT64_MAX; /* making a file will tell */
    }
    return free_bytes +
           disk->segments.volumes[volume]->present_count * disk->segments.segment_bytes;
}

/* Segments that the volume has of `all`: as of those that the store was opened with. */
static uint64_t share_of(const kv_segments_t *segments, uint32_t volume, uint64_t all)
{
    uint64_t asked = 0;
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        asked += segments->volumes[i]->segments_asked;
    }
    double share = (double)segments->volumes[volume]->segments_asked / (double)asked;
    return share < 1 ? (uint64_t)((double)all * share) : all;
}

kv_status_t kv_embedded_store_set_disk_bytes(
    kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    if (disk == NULL) {
        return kv_fail(error, KV_INVALID, "this store has no disk tier");
    }
    const kv_segments_t *segments = &disk->segments;
    uint64_t all = disk_bytes / segments->segment_bytes;
    uint64_t before = 0;
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        before += segments->volumes[i]->segments_max;
        uint64_t numbers =
            segments->known_count == 1 ? KV_SEGMENTS_MAX
            : i > 0                    ? KV_VOLUME_SEGMENTS_MAX
                    : (KV_VOLUMES_MAX + 1 - segments->known_count) * KV_VOLUME_SEGMENTS_MAX;
        uint64_t most = room_of(disk, i) / segments->segment_bytes;
        uint64_t share = share_of(segments, i, all);
        most = most < numbers ? most : numbers;
        if ((disk->missing & 1u << i) == 0 && (share < 2 || share > most)) {
            return kv_fail(error, KV_INVALID,
                "disk_bytes is %ju, which gives %s %ju segments of %ju bytes: they must be 2 to "
                "%ju (what fits)",
                (uintmax_t)disk_bytes, segments->volumes[i]->folder, (uintmax_t)share,
                (uintmax_t)segments->segment_bytes, (uintmax_t)most);
        }
    }
    if (all < before && disk_bytes < kv_keep_disk_bytes_min(store)) {
        return kv_fail(error, KV_INVALID,
            "disk_bytes is %ju: %ju bytes are pinned, and pins may take nine tenths; take pins "
            "away first",
            (uintmax_t)disk_bytes, (uintmax_t)store->stats.pinned_bytes);
    }
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        segments->volumes[i]->segments_max = (uint32_t)share_of(segments, i, all);
    }
    kv_reclaim_unblock(store);
    kv_store_kick(store);
    return KV_OK;
}
