/* Segments: preallocated files of records, written once from front to back in each of their lives.
 *
 *   absent --prepare--> preparing --> open --(full)--> full --reclaim--> preparing --> open ...
 *                          |
 *                          +-- failed --> absent
 *
 *   | 4 KiB header: number, generation | record | record | ... |
 *
 * Rules:
 *  1. A life has a generation, greater than every earlier one in the directory; it is in the
 *     header, durable before the life's first record is written. Records and index entries carry
 *     it.
 *  2. Records are appended; no byte of a life is written twice.
 *  3. A segment is reclaimed whole: its objects' places are forgotten, the next prepare gives it a
 *     new generation. Nothing is read or erased for that.
 *  4. A segment that is in use (a read, a write or an index entry under way) is not reclaimed.
 *
 * Owns: the files' descriptors (at most KV_RING_FILES_MAX are open; the rest is opened on demand).
 * Threads: the store's, but for kv_segment_prepare (blocking; a worker's).
 * Errors: KV_NO_SPACE when the disk has no room, KV_BUSY for want of descriptors or memory,
 * KV_IO. */
#ifndef KV_KVSTORE_SEGMENT_H
#define KV_KVSTORE_SEGMENT_H

#include "kvstore/files.h"

enum { KV_SEGMENT_HEADER_BYTES = 4096, KV_SEGMENTS_MAX = 65534, KV_FOLDER_BYTES = 3072 };

typedef enum {
    KV_SEGMENT_ABSENT,
    KV_SEGMENT_PREPARING,
    KV_SEGMENT_OPEN,
    KV_SEGMENT_FULL,
} kv_segment_state_t;

typedef struct {
    uint64_t generation;
    uint64_t append_bytes;  /* where the next record goes */
    uint64_t indexed_bytes; /* every record below this was handed to the index */
    uint64_t opened;        /* order of last use of the descriptor */
    uint32_t first_object;  /* list through the table's segment_next */
    uint32_t in_use;
    int fd, file; /* -1: not open */
    uint8_t state;
} kv_segment_t;

typedef struct {
    kv_files_t *files;
    char folder[KV_FOLDER_BYTES];
    uint64_t segment_bytes;
    uint32_t count_max; /* the quota in segments */
    kv_segment_t *items;
    kv_ring_t *ring;
    uint64_t generation_last, opens;
    uint32_t present_count; /* not absent */
    bool buffered;          /* the file system refuses O_DIRECT */
} kv_segments_t;

/* Reads the headers in the folder. Files beyond the quota are removed. */
kv_status_t kv_segments_open(kv_segments_t *segments, kv_files_t *files, const char *folder,
    uint64_t segment_bytes, uint32_t count_max, kv_error_t *error);
void kv_segments_close(kv_segments_t *segments);

/* The ring's number of the segment's file, opened if need be. */
kv_status_t kv_segments_file(
    kv_segments_t *segments, uint32_t number, int *file_out, kv_error_t *error);

/* A generation that no record in the directory has. */
uint64_t kv_segments_next_generation(kv_segments_t *segments, uint64_t unix_ns);

/* Makes the file where it is absent and its header durable. Blocks. */
kv_status_t kv_segment_prepare(
    const kv_segments_t *segments, uint32_t number, uint64_t generation, kv_error_t *error);

void kv_segment_path(const char *folder, uint32_t number, char *path_out, size_t path_bytes);

#endif
