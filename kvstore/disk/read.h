/* Reads: one object on its way out of the tier that has it, verified.
 *
 *   planned --memory--> moving (worker) -------------------------------------> ended
 *      \-----disk-----> waiting for a buffer -> reading (ring) -> moving (worker) -> ended
 *
 * Whoever wants the bytes puts a kv_read_t at the head of a structure of its own and says how they
 * are moved on. Reads that are started together travel in batches: neighbours in memory, or one
 * contiguous range of a segment. What proves damaged is forgotten (that copy; without another one
 * the object, with its descendants); what could not be read stays.
 *
 * Owns: buffers and batches while reads are under way.
 * Borrows: a read, from kv_reads_start until its ended() ran. The object must be held until then,
 * but for one whose record is read: that may go meanwhile.
 * Threads: the store's; move() runs on a worker.
 * Errors: in a read's status: KV_OK; KV_CORRUPT: damaged, and forgotten; KV_IO: not now. */
#ifndef KV_KVSTORE_DISK_READ_H
#define KV_KVSTORE_DISK_READ_H

#include "kvstore/disk/record.h"

typedef struct kv_read kv_read_t;

/* The object's bytes, as they lie in memory or in a buffer. */
typedef struct {
    const kv_layout_t *layout;
    const void *object;
    const uint64_t *checksums; /* [unit_count]; NULL: from device memory, which keeps none */
    const uint32_t *words;     /* [block_words] */
} kv_read_bytes_t;

/* The object as its record has it packed. */
typedef struct {
    const kv_layout_t *layout;
    const char *payload;
    const uint32_t *lengths;   /* [unit_count] */
    const uint64_t *checksums; /* [unit_count], of the units as they were */
    const uint32_t *words;     /* [block_words] */
} kv_read_packed_t;

struct kv_read {
    /* Moves on what it wants and proves it against the checksums: KV_OK or KV_CORRUPT. */
    kv_status_t (*move)(kv_read_t *read, const kv_read_bytes_t *bytes);

    /* The same with an object that is packed as the device's codec takes it. Whatever it answers
     * but KV_OK, the host unpacks the object and move has the last word. NULL: no need of it. */
    kv_status_t (*move_packed)(kv_read_t *read, const kv_read_packed_t *packed);

    /* try_again: these bytes are damaged, and another tier has the object still. */
    void (*ended)(kv_read_t *read, bool try_again);

    uint32_t object; /* its number */
    kv_status_t status;
    uint32_t forgotten_count; /* KV_CORRUPT: what kv_object_forget_copy did */
    bool unpacked_there;      /* by move_packed */
    bool keyless;             /* KV_CORRUPT: its key is gone, and with it what it says */

    /* filled in by kv_read_plan: */
    kvist_tier_t tier;
    uint32_t slot; /* on the device or the host */
    uint16_t segment, length_pages;
    uint32_t offset_pages;
    kv_record_t expected; /* of the object, and what its record must say */
};

/* Where the object is read from: host memory, else the device, else disk. */
void kv_read_plan(kvist_store_t *store, uint32_t object, kv_read_t *read);

/* From disk, wherever else it is. */
void kv_read_plan_record(kvist_store_t *store, uint32_t object, kv_read_t *read);

/* Starts planned reads, in an order and in batches of its own; the array is only looked at (and
 * sorted) during the call. Some may end before it returns. */
void kv_reads_start(kvist_store_t *store, kv_read_t **reads, uint32_t count);

/* Whether the host memory that was read is the object's still. A copy goes though the object is
 * held, where somebody else found it damaged or other kernels' bytes came in its place; its slot is
 * then another object's, whose checksums its bytes agree with. */
bool kv_read_is_current(const kvist_store_t *store, const kv_read_t *read);

/* For whoever moves what was planned from memory himself: what loading cost (of the reads together,
 * from a tier), and the end of a read, whose status says how it went. */
void kv_read_note_rate(kvist_store_t *store, kvist_tier_t tier, uint64_t started_ns, size_t bytes);
void kv_read_end(kvist_store_t *store, kv_read_t *read);

/* Reads that wait for a buffer, as far as there are some. */
void kv_reads_advance(kvist_store_t *store);

#endif
