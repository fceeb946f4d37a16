/* Batches of records on their way to the disk: what persist.c shares with survive.c. */
#ifndef KV_KVSTORE_DISK_PERSIST_INTERNAL_H
#define KV_KVSTORE_DISK_PERSIST_INTERNAL_H

#include "kvstore/store_internal.h"

typedef struct {
    uint32_t object;
    const char *host_bytes;         /* or NULL: */
    uint32_t device_slot;           /* in device memory; or, of a survivor, on disk */
    const uint64_t *host_checksums; /* of its units: what changed there is not written */
    bool damaged, unread, packed_on_device;
    const uint32_t *words;
    kv_record_t record;
    size_t offset; /* in the run */
} kv_write_item_t;

typedef enum {
    KV_WRITE_ENCODING,
    KV_WRITE_WRITING, /* encoded; to the ring as soon as it has a place */
    KV_WRITE_WRITTEN,
    KV_WRITE_SYNCING,
    KV_WRITE_INDEXING,
    KV_WRITE_FAILED,
} kv_write_stage_t;

struct kv_write_batch {
    kv_task_t task;
    kv_ring_request_t request, sync;
    kvist_store_t *store;
    kv_write_stage_t stage;
    kv_write_item_t *items;
    uint32_t count;
    uint64_t queue_first; /* number of its first queue entry; UINT64_MAX: of survivors */
    int staging;          /* -1: given back */
    size_t bytes;
    uint32_t segment; /* KV_SEGMENT_NONE: no place yet */
    uint64_t offset;
    uint32_t moved_from; /* segment of survivors; KV_SEGMENT_NONE: none are these */
    kv_status_t status;
    kv_error_t error;               /* of a key, or a format's version, that could not be written */
    kv_write_batch_t *next;         /* under way, or encoding: in order */
    kv_write_batch_t *next_indexed; /* made durable by the same index batch */
};

static inline bool kv_write_batch_is_moved(const kv_write_batch_t *batch)
{
    return batch->moved_from != KV_SEGMENT_NONE;
}

static inline char *kv_staging_bytes(const kv_disk_t *disk, int staging)
{
    return (char *)disk->staging_region.base + (size_t)staging * disk->staging_bytes;
}

/* An empty batch with a staging buffer; there is one. */
kv_write_batch_t *kv_persist_make_batch(kvist_store_t *store);
void kv_persist_give_staging(kv_write_batch_t *batch);

/* Survivors, encoded: into the room that is reserved for them. */
void kv_persist_write_moved(kv_write_batch_t *batch);

/* The batch is over; its objects are on disk (durable) or are not. Frees it. */
void kv_persist_end_batch(kv_write_batch_t *batch, bool durable);

#endif
