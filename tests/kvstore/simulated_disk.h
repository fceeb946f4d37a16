/* A disk in memory under the store's real code, from which a power loss takes what it may take.
 *
 * The model:
 *  - A file is its durable bytes and size, and the changes since: sectors written, a new size. The
 *    sector is 512 bytes, the smallest unit that drives write whole: whatever a drive with larger
 *    ones can leave is among what this one can.
 *  - After a power loss each sector holds its durable bytes or those of any change since, each on
 *    its own: writes are lost, kept, reordered and torn. The size is the durable one or the newest.
 *  - A write may reach the disk from the moment that the ring has it; a sync covers what had ended
 *    when it was handed over. A write that fails leaves all, some or nothing of itself.
 *  - A name (made, removed or renamed; of a file or a folder) is durable after a sync of its
 *    folder. Before that any of the changes to names may be lost, each on its own or from one on; a
 *    rename is one change. What lies in a lost folder is lost.
 *  - Operations of the ring end in any order, some polls later. Reads see what has ended.
 *  - O_DIRECT refuses what is not aligned to 512 bytes.
 * Not modelled: sectors torn inside, syncs that lie, bytes that rot (test_damage.c has those).
 *
 * Everything follows from the seed.
 * Owns: all of it. Threads: one. */
#ifndef KV_TESTS_KVSTORE_SIMULATED_DISK_H
#define KV_TESTS_KVSTORE_SIMULATED_DISK_H

#include "kvstore/disk/files.h"

typedef enum {
    SIMULATED_OPEN,
    SIMULATED_READ,
    SIMULATED_LIST,
    SIMULATED_WRITE, /* from here on: what changes the disk, or makes changes durable */
    SIMULATED_RESIZE,
    SIMULATED_SYNC,
    SIMULATED_NAME,
    SIMULATED_SYNC_FOLDER,
} simulated_operation_t;

/* Asked before each operation: 0, or the negative errno value that it is to fail with. */
typedef struct {
    int (*before)(void *context, simulated_operation_t operation);
    void *context;
} simulated_watch_t;

typedef struct simulated_disk simulated_disk_t;

/* Empty, but for its folder "/disk". */
simulated_disk_t *simulated_disk_create(uint64_t seed);
void simulated_disk_destroy(simulated_disk_t *disk);

/* What a power loss at this moment leaves, one of the ways that the seed may choose. No file of it
 * is open or locked, nothing watches it. */
simulated_disk_t *simulated_disk_after_loss(const simulated_disk_t *disk, uint64_t seed);

kv_files_t *simulated_disk_files(simulated_disk_t *disk);
/* -ENOENT: there is no such file. */
int simulated_disk_rename(simulated_disk_t *disk, const char *from, const char *to);
void simulated_disk_watch(simulated_disk_t *disk, simulated_watch_t watch);

/* While held, nothing ends that the ring has. */
void simulated_disk_hold(simulated_disk_t *disk, bool held);

#endif
