/* The disk tier's quota while the store runs: more makes room at once; of less, what is too much is
 * given back as soon as nobody needs it: spares first, then the oldest segments, whose survivors
 * are moved on as when they are reclaimed. One file at a time. */
#include "kvstore/store_internal.h"

#include "base/log.h"
#include "base/memory.h"

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

/* What the file system has for the disk tier: what is free, and what the tier has already. */
static uint64_t available_bytes(const kv_disk_t *disk)
{
    const kv_segments_t *segments = &disk->segments;
    uint64_t total_bytes, free_bytes;
    if (disk->files->ops->space(disk->files, disk->lock_fd, &total_bytes, &free_bytes) != 0) {
        return UINT64_MAX; /* making a file will tell */
    }
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        free_bytes += segments->volumes[i]->present_count * segments->segment_bytes;
    }
    return free_bytes;
}

kv_status_t kvist_store_set_disk_bytes(kvist_store_t *store, uint64_t disk_bytes, kv_error_t *error)
{
    kv_disk_t *disk = store->disk;
    if (disk == NULL) {
        return kv_fail(error, KV_INVALID, "this store has no disk tier");
    }
    const kv_segments_t *segments = &disk->segments;
    uint64_t least_bytes = 2 * segments->segment_bytes * segments->volume_count;
    uint64_t most_bytes = segments->segment_bytes * KV_SEGMENTS_MAX;
    uint64_t room_bytes = available_bytes(disk);
    most_bytes = room_bytes < most_bytes ? room_bytes : most_bytes;
    if (disk_bytes < least_bytes || disk_bytes > most_bytes) {
        return kv_fail(error, KV_INVALID,
            "disk_bytes is %ju: it must be %ju (2 segments) to %ju (what fits)",
            (uintmax_t)disk_bytes, (uintmax_t)least_bytes, (uintmax_t)most_bytes);
    }
    for (uint32_t i = 0; i < segments->volume_count; i++) {
        segments->volumes[i]->segments_max =
            (uint32_t)(disk_bytes / segments->volume_count / segments->segment_bytes);
    }
    kv_reclaim_unblock(store);
    kv_store_kick(store);
    return KV_OK;
}
