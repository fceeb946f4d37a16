/* Segments: preallocated files of records, written once from front to back in each of their lives.
 * A volume is one disk's folder of them; segments are numbered over all volumes: of volume v (not
 * the first) are the numbers n with n % 8 == v, of the first all that no other has.
 *
 *   absent --make--> spare --begin--> ready --> open --(full)--> full --begin--> ready ...
 *              \______________________/                            |
 *                    in one go                                     +-- remove --> absent
 *
 *   | 4 KiB header: number, generation | record | record | ... |
 *
 * Rules:
 *  1. A life has a generation, greater than every earlier one in the directory; it is in the
 *     header, durable before the life's first record is written. Records and index entries carry
 *     it. A spare has none.
 *  2. Records are appended; no byte of a life is written twice.
 *  3. A segment is reclaimed whole: its objects' places are forgotten, the next life has a new
 *     generation. Nothing is erased for that.
 *  4. A segment that is in use (a read, a write or an index entry under way) begins no new life.
 *  5. Writing into blocks that were never written costs the file system a third of the rate: a file
 *     is *filled* (written once) before its first life where there is time, and says so in its
 *     header.
 *
 * Owns: the files' descriptors (at most KV_RING_FILES_MAX are open; the rest is opened on demand).
 * Threads: the store's, but for kv_segment_begin (blocking; a worker's).
 * Errors: KV_NO_SPACE when the disk has no room, KV_BUSY for want of descriptors or memory,
 * KV_IO. */
#ifndef KV_KVSTORE_DISK_SEGMENT_H
#define KV_KVSTORE_DISK_SEGMENT_H

#include "kvstore/disk/files.h"

enum {
    KV_SEGMENT_HEADER_BYTES = 4096,
    KV_SEGMENTS_MAX = 65534,
    KV_FOLDER_BYTES = 3072,
    KV_SEGMENT_PATH_BYTES = KV_FOLDER_BYTES + 64,
    KV_VOLUMES_MAX = 8,
    KV_VOLUME_SEGMENTS_MAX = KV_SEGMENTS_MAX / KV_VOLUMES_MAX, /* but for the first */
};

typedef enum {
    KV_SEGMENT_ABSENT,
    KV_SEGMENT_SPARE,
    KV_SEGMENT_BEGINNING, /* a worker writes its header */
    KV_SEGMENT_READY,
    KV_SEGMENT_OPEN,
    KV_SEGMENT_FULL,
} kv_segment_state_t;

typedef struct {
    uint64_t generation;
    uint64_t append_bytes;  /* where the next record goes */
    uint64_t indexed_bytes; /* every record below this was handed to the index */
    uint64_t opened;        /* order of last use of the descriptor */
    uint32_t first_object;  /* list through the table's segment_next */
    uint32_t listed_count;  /* objects on that list; */
    uint32_t left_count;    /* of those, the ones that are here no more */
    uint32_t next;          /* in its volume's list of spares, or of full ones */
    uint32_t in_use;
    int fd, file; /* -1: not open */
    uint8_t state, volume;
    bool filled;
} kv_segment_t;

typedef struct {
    char folder[KV_FOLDER_BYTES];
    uint32_t segments_max;          /* the quota, or less where the disk has no room for it */
    uint32_t segments_asked;        /* the quota that it was opened with */
    uint32_t present_count;         /* files */
    uint32_t open, ready;           /* KV_SEGMENT_NONE: none */
    uint32_t first_spare;           /* filled ones first */
    uint32_t first_full, last_full; /* by generation */
    bool buffered;                  /* the file system refuses O_DIRECT */
} kv_volume_t;

typedef struct {
    kv_files_t *files;
    uint64_t segment_bytes;
    kv_volume_t *volumes[KV_VOLUMES_MAX];
    uint32_t volume_count;
    uint32_t known_count; /* volumes that have numbers of their own: also those that are missing */
    kv_segment_t *items;
    uint32_t count, capacity;                  /* of items; numbers are below it */
    uint32_t first_absent;                     /* no number below this is absent */
    uint32_t in_use_count;                     /* segments that are in use */
    uint32_t file_segments[KV_RING_FILES_MAX]; /* whose file the ring's file is */
    kv_ring_t *ring;
    uint64_t generation_last, opens;
} kv_segments_t;

void kv_segments_init(kv_segments_t *segments, kv_files_t *files, uint64_t segment_bytes);

/* Takes in the folder's files: those with a life become full, those without spare. What is beyond
 * the quota is removed, the oldest first. */
kv_status_t kv_segments_add_volume(
    kv_segments_t *segments, const char *folder, uint32_t segments_max, kv_error_t *error);

/* One whose folder is not there: it has no segments, and its numbers are nobody else's. */
void kv_segments_add_missing(kv_segments_t *segments, const char *folder);
void kv_segments_close(kv_segments_t *segments);

/* Whose a number is, unless its file lies in the first volume from before there were others. */
uint32_t kv_segments_owner(const kv_segments_t *segments, uint32_t number);

/* The number of an absent segment of the volume's, or KV_SEGMENT_NONE. */
uint32_t kv_segments_absent(kv_segments_t *segments, uint32_t volume);

/* The ring's number of the segment's file, opened if need be. */
kv_status_t kv_segments_file(
    kv_segments_t *segments, uint32_t number, int *file_out, kv_error_t *error);

/* Holds the segment to its life. */
void kv_segments_hold(kv_segments_t *segments, uint32_t number);
void kv_segments_release(kv_segments_t *segments, uint32_t number);

/* Full lists are in order of generation: entering is at the end, leaving from anywhere. */
void kv_segments_enter_full(kv_segments_t *segments, uint32_t number);
void kv_segments_leave_full(kv_segments_t *segments, uint32_t number);
void kv_segments_return_full(kv_segments_t *segments, uint32_t number); /* to the front */

void kv_segments_add_spare(kv_segments_t *segments, uint32_t number);
void kv_segments_leave_spare(kv_segments_t *segments, uint32_t number);
uint32_t kv_segments_take_spare(kv_segments_t *segments, uint32_t volume);

/* A generation that no record in the directory has. */
uint64_t kv_segments_next_generation(kv_segments_t *segments, uint64_t unix_ns);

/* Makes the file where it is absent, and its header, durable. generation 0: a spare. Blocks. */
typedef struct {
    uint32_t number, volume;
    uint64_t generation;
    bool filled;
} kv_segment_begin_t;

kv_status_t kv_segment_begin(
    const kv_segments_t *segments, const kv_segment_begin_t *begin, kv_error_t *error);

/* Gives the file's room back: the segment is absent. Its three steps apart: the middle one blocks
 * and is any thread's. */
kv_status_t kv_segments_remove(kv_segments_t *segments, uint32_t number, kv_error_t *error);
void kv_segments_close_file(kv_segments_t *segments, uint32_t number);
kv_status_t kv_segment_remove_file(
    kv_files_t *files, const char *folder, const char *path, kv_error_t *error);
void kv_segments_forget(kv_segments_t *segments, uint32_t number);

/* path_out: [KV_SEGMENT_PATH_BYTES] */
void kv_segments_path(const kv_segments_t *segments, uint32_t number, char *path_out);
void kv_segment_path(const char *folder, uint32_t number, char *path_out, size_t path_bytes);

#endif
