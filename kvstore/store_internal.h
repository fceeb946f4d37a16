/* What the files of the store share: its state, and what each of them does for the others.
 *
 *   lease.c    match, prepare, seal, release     persist.c  objects -> records on disk, flush
 *   load.c     host, disk -> device              reclaim.c  room on disk, whole segments
 *   load_layers.c  the same, layer by layer
 *   read.c     out of any tier, verified         survive.c  records moved out of a segment
 *   evict.c    device -> host -> disk            ready.c    segments made ready ahead of time
 *   object.c   where an object is, who holds it  mark.c     records that are nobody's
 *   drop.c     objects that go for good          directory.c the directory: lock, index, scan
 *   list.c     what is stored                    store.c    open, poll, close
 *   verify.c   reads everything                  show.c     one block
 *   disks.c    further folders of segments
 *   keep.c     terms by key, the sweep           fill.c, take.c  the disk -> the table
 *   budget.c   bytes written in a day            changes.c  who is told of what the tiers hold
 *   populate.c the host tier's memory, in chunks pin.c      and what the device knows of it
 *   history.c  what went, why, for whom          why.c      why something is not found
 *   spill.c    a context to disk, on request     device_slot.c  to and from the device
 *
 * The rules that hold between them are numbered in kvstore/README.md. */
#ifndef KV_KVSTORE_STORE_INTERNAL_H
#define KV_KVSTORE_STORE_INTERNAL_H

#include "base/metrics.h"
#include "base/queue.h"
#include "base/worker.h"
#include "kvstore/disk/record.h"
#include "kvstore/disk/ring.h"
#include "kvstore/disk/segment.h"
#include "kvstore/history.h"
#include "kvstore/identity.h"
#include "kvstore/index/entry.h"
#include "kvstore/index/index.h"
#include "kvstore/kvist.h"
#include "kvstore/layout.h"
#include "kvstore/objects/arena.h"
#include "kvstore/objects/names.h"
#include "kvstore/objects/pool.h"
#include "kvstore/objects/table.h"
#include "kvstore/store_ops.h"

#include <pthread.h>

_Static_assert(KV_ARITHMETIC_BYTES == KVIST_ARITHMETIC_BYTES_MAX + 1, "a record holds any id");

#define KV_OBJECT_BUSY (KV_OBJECT_WRITING | KV_OBJECT_MOVING | KV_OBJECT_CHECKING)

enum {
    KV_TASKS_MAX = 64,         /* jobs at the workers at one time */
    KV_STAGING_COUNT = 12,     /* buffers for disk I/O */
    KV_STAGING_FOR_READS = 4,  /* of those, not to be taken by writes */
    KV_WRITE_FAILURES_MAX = 3, /* in a row, then the disk takes nothing more */
    KV_FILL_BYTES = 1 << 20,   /* of one write into a new segment */
    KV_LEASES_MAX = UINT16_MAX - 1,
    KV_FILL_TASKS_MAX = 8, /* of fill.c, not at the workers */
    KV_FILL_LOOK_UP_MAX = 32,
    KV_STORE_ID_BYTES = 33,
    KV_ROOTS_KEPT = 16,
};

/* Work for a worker thread; done() runs on the store's thread, inside a poll. */
typedef struct kv_task kv_task_t;
struct kv_task {
    void (*work)(kv_task_t *task);
    void (*done)(kv_task_t *task);
    kvist_store_t *store;
    kv_task_t *next;
};

typedef struct kv_load kv_load_t;
typedef struct kv_read_batch kv_read_batch_t;
typedef struct kv_transfer kv_transfer_t;
typedef struct kv_put kv_put_t;
typedef struct kv_write_batch kv_write_batch_t;
typedef struct kv_marks kv_marks_t;
typedef struct kv_drop kv_drop_t;
typedef struct kv_spill kv_spill_t;
typedef struct kv_verify kv_verify_t;
typedef struct kv_fill kv_fill_t;
typedef struct kv_budget kv_budget_t;
typedef struct kv_changes kv_changes_t;
typedef struct kv_tenants kv_tenants_t;
typedef struct kv_populate kv_populate_t;
typedef struct kv_pinning kv_pinning_t;
typedef struct kv_described kv_described_t;

typedef struct kv_flush kv_flush_t;
struct kv_flush {
    uint64_t target; /* number of the last queued object that it waits for */
    kv_status_t status;
    void (*done)(void *context, kv_status_t status);
    void *context;
    kv_flush_t *next;
};

/* An object of a segment that is being emptied, and where its record lies there, though it may have
 * another place by now. */
typedef struct {
    uint32_t object, offset_pages;
    uint16_t length_pages;
} kv_emptied_t;

/* A segment that is being emptied: its survivors (KV_OBJECT_STAYS) are moved on, then it begins a
 * new life. Its objects are on this list instead of the segment's. */
typedef struct {
    uint32_t segment;        /* KV_SEGMENT_NONE: none */
    kv_emptied_t *objects;   /* [count] in the order of their places; some are there no more */
    uint32_t count, next;    /* survivors before `next` are under way or moved */
    uint64_t reserved_bytes; /* of the open segment, for survivors that have no place there yet */
    uint32_t moves_out;      /* batches of them under way */
    uint32_t rounds;         /* of choosing survivors; after the first, only what must survive */
    bool moved;              /* some survivors' entries were written since the last sync of those */
    uint64_t sync_number;    /* of the index write that makes them durable; 0: none was asked for */
    uint32_t failures;       /* batches of survivors that could not be read */
} kv_victim_t;

/* What is under way at one volume. */
typedef struct {
    kvist_store_t *store;
    kv_write_batch_t *first_batch, *last_batch; /* in order of their places on disk */
    uint64_t writing_bytes;                     /* handed to the ring */
    uint64_t placed_bytes;                      /* ever, since the start */
    bool syncing;
    bool offline;
    uint32_t write_failures; /* in a row */
    bool wanted;             /* somebody wrote since the store was opened */
    bool beginning;          /* a worker writes a header */
    bool blocked; /* leases and pins hold every segment: no victim can be had until one goes */
    uint32_t blocked_s; /* since when */
    kv_victim_t victim;
    uint64_t looked_room_bytes; /* of the open segment, when the oldest was looked at */
    uint32_t filling;           /* segment; KV_SEGMENT_NONE */
    uint64_t filled_bytes;
    bool fill_out;   /* a write into it is under way */
    bool unfillable; /* one failed */
    kv_ring_request_t fill;
} kv_lane_t;

/* What classes better than one need of the disk: persist.c. */
typedef struct {
    uint64_t bytes;
    uint32_t since_s;
} kv_class_need_t;

/* The disk tier. */
typedef struct {
    kv_files_t *files;
    char folder[KV_FOLDER_BYTES];
    int lock_fd;
    kv_ring_t *ring;
    kv_segments_t segments;
    kv_lane_t lanes[KV_VOLUMES_MAX]; /* of its volumes */
    unsigned format;                 /* that the directory has; 0: it says none */
    char id[KV_STORE_ID_BYTES];      /* of the store, hexadecimal; "": it never had several disks */
    uint32_t known_count;            /* disks that it ever had, the first one included */
    unsigned missing;                /* bit n: disk n has been there, and is not now */
    int disk_files[KV_VOLUMES_MAX];  /* by which further disks are known, locked; -1: none */
    bool offline;                    /* every lane is, or the index */
    bool stuck;   /* nothing can be written until a lease is released or a pin has passed */
    bool closing; /* nothing is done ahead of time any more */

    kv_region_t staging_region;
    bool staging_pinned;  /* the device knows it */
    size_t staging_bytes; /* of one buffer */
    char *fill_bytes; /* [KV_FILL_BYTES] behind the buffers: what new segments are filled with */
    int staging_free[KV_STAGING_COUNT];
    int staging_free_count;

    kv_keyring_t *keys; /* NULL: nothing is encrypted */
    bool has_extras;    /* the format says that records may have extra keys */
    pthread_mutex_t noting_extras;
    kv_index_t *index;
    kv_workers_t *index_writer;
    kv_index_batch_t filling;      /* changes that wait for the writer */
    kv_write_batch_t *filling_for; /* batches that are durable once `filling` is written */
    bool indexing;                 /* a batch of changes is at the writer */
    bool index_failed;             /* a write to it failed: it gets no more */
    bool sync_index; /* the next write to it must be durable at once: it forgets damage */
    uint64_t syncs_begun, syncs_done; /* writes to it that are durable when they end: numbered */
    kv_read_batch_t *first_read, *last_read; /* wait for a staging buffer */
    uint32_t reads_out;                      /* batches at the ring */

    uint32_t *queue; /* objects to be written: a ring of queue_capacity */
    uint32_t queue_capacity, queue_first, queue_count;
    uint64_t queued_total; /* numbers of queue entries ever made: the last one's number */
    kv_write_batch_t *first_encoding;           /* in order */
    kv_flush_t *first_flush;                    /* in order */
    kv_marks_t *marks;                          /* NULL: none were ever queued */
    bool spare_records;                         /* no marks are queued */
    kv_fill_t *fill;                            /* NULL: the table knows all that is on disk */
    kv_budget_t *budget;                        /* NULL: what is written has no bound */
    uint64_t class_bytes[KVIST_PRIORITY_COUNT]; /* of records, by their objects' class */
    kv_class_need_t needs[KVIST_PRIORITY_COUNT];
} kv_disk_t;

/* What the store has for each layer group. */
typedef struct {
    kv_layout_t layout;
    kv_pool_t host_pool;
    kv_arena_t host_arena;
} kv_store_group_t;

/* Where the search for what has expired is: keep.c. */
typedef struct {
    uint64_t due_ns; /* of the next part; 0: no block has an expiry or a pin */
    uint32_t next;   /* number of the object that it goes on with */
    bool noted;      /* something was found, or set, since the pass began */
    uint64_t pinned_bytes;
} kv_sweep_t;

struct kvist_store {
    const kv_store_ops_t *ops; /* first: KV_EMBEDDED_OPS */
    uint32_t block_tokens, group_count;
    uint32_t block_words; /* kv_identity_word_count(block_tokens) */
    kv_store_group_t groups[KVIST_GROUPS_MAX];
    size_t object_bytes_max, record_bytes_max, scratch_bytes_max; /* of all groups */
    kv_device_t *device;
    char *arena;
    const kv_clock_t *clock;
    kvist_persist_t persist;
    kvist_codec_t codec;
    const kv_policy_ops_t *policy;
    char origin[KV_ORIGIN_BYTES];
    bool threadless;         /* jobs run where they are submitted */
    bool unverified;         /* loads prove nothing: for a benchmark */
    size_t layer_step_bytes; /* what is loaded layer by layer comes in so much at a time */

    kv_table_t *table;
    kv_pool_t device_pool; /* of group 0's objects */
    uint32_t *device_words;
    kv_names_t namespaces, arithmetics, origins, tenants, families;
    kv_tenants_t *accounts;                    /* of tenants */
    kv_load_t **loads;                         /* [device slots]: the load that fills the slot */
    double load_ns_per_byte[KVIST_TIER_COUNT]; /* measured */

    kv_workers_t *workers;
    kv_queue_t *finished; /* kv_task_t * */
    uint32_t tasks_out;
    kv_task_t *first_task, *last_task; /* waiting for a worker's queue */

    kvist_lease_t *first_waiting;            /* prepares, first come first served */
    kvist_lease_t *first_ready, *last_ready; /* callbacks to be run by the next poll */
    kvist_lease_t *first_news;               /* likewise: of layers that came */
    kv_flush_t *first_flushed;               /* likewise */
    kv_drop_t *first_drop, *first_dropped;   /* under way; likewise */
    kv_spill_t *first_spill;                 /* under way, or ended: callbacks to be run */
    kv_verify_t *verify;                     /* NULL: none is under way */
    kv_sweep_t sweep;
    uint32_t lease_count, leases_ending; /* ending: released, and something is under way still */
    kvist_lease_t *newest_announced;     /* leases that say what they store next */
    kv_transfer_t *first_transfer, *last_transfer; /* ended; callbacks to be run */
    kv_put_t *first_put_waiting;                   /* stores that wait for host slots */
    uint32_t moves_out; /* device slots that copies under way will free */

    kv_disk_t *disk; /* NULL: none */
    int epoll_fd, timer_fd, kick_fd;
    bool polling, kicked;    /* kicked: the next poll, or round of a poll, has something to do */
    uint64_t timer_ns;       /* what the timer is set to, by the store's clock; 0: nothing */
    uint64_t timer_fires_ns; /* when that will be, by the machine's */

    kv_changes_t *changes;   /* NULL: nobody listens */
    kv_populate_t *populate; /* NULL: the host tier's memory is there */
    kv_pinning_t *pinning;   /* NULL: the device pins none of it */

    kv_history_t *history;
    kv_maker_t maker, disk_maker;     /* for whom room is made: in memory; on disk */
    kvist_key_t roots[KV_ROOTS_KEPT]; /* of the contexts that began last, over and over */
    uint32_t root_next;
    kv_described_t *described; /* [described_count]: namespaces */
    uint32_t described_count;

    kvist_stats_t stats;     /* counters; gauges are filled in when asked */
    kvist_stats_t published; /* what the metrics were told */
    struct kv_store_metrics *metrics;
};

/* Seams that tests and simulated.c reach through. */
typedef struct {
    kv_ring_faults_t faults;
    kv_index_kept_t **memory_index;  /* NULL: RocksDB, or: */
    kv_index_t *index;               /* a new and empty one */
    kv_files_t *files;               /* NULL: the machine's */
    bool threadless;                 /* jobs run where they are submitted: deterministic */
    bool unverified;                 /* loads copy and prove nothing: kvstore/unverified.h */
    const kv_arena_memory_t *memory; /* NULL: the machine's */
    uint32_t fill_at_once;           /* entries that one poll takes in while the table fills */
    size_t layer_step_bytes;         /* 0: the usual */
} kv_store_seams_t;

kv_status_t kv_store_open_with(const kvist_store_params_t *params, const kv_store_seams_t *seams,
    kvist_store_t **store_out, kv_error_t *error);

/* ---- store.c ---- */

void kv_store_submit(kvist_store_t *store, kv_task_t *task);
/* As kv_store_submit, for work that copies so many bytes: few are copied here and now, which takes
 * less time than to wake a worker. done() still runs in a poll. */
void kv_store_submit_sized(kvist_store_t *store, kv_task_t *task, size_t bytes);
/* Its work is done here and now, beside what the workers do; done() still runs in a poll. */
void kv_store_work(kvist_store_t *store, kv_task_t *task);
void kv_store_finish(kv_task_t *task);       /* a worker's last act for the task */
void kv_store_kick(kvist_store_t *store);    /* the next poll has something to do */
void kv_store_advance(kvist_store_t *store); /* everything that can go on goes on */
uint32_t kv_store_now_s(const kvist_store_t *store);

static inline char *kv_store_device_bytes(const kvist_store_t *store, uint32_t slot)
{
    return store->arena + slot * store->groups[0].layout.object_bytes;
}

/* ---- device_slot.c: on a worker; KV_IO: the device failed, which is logged ---- */

/* The size of every unit of the device tier's objects; 0: they differ, and the device takes no
 * checksums of them. */
size_t kv_device_unit_bytes(const kv_layout_t *layout);

/* A device slot's object to or from memory of this process; checksums_out: [unit_count], of what
 * left the device or of what has come there, or NULL. */
kv_status_t kv_device_slot_out(
    const kvist_store_t *store, uint32_t slot, void *to, uint64_t *checksums_out);
kv_status_t kv_device_slot_in(
    const kvist_store_t *store, uint32_t slot, const void *from, uint64_t *checksums_out);

/* Out, for who keeps no checksums: KV_IO also where what arrived is not what left. */
kv_status_t kv_device_slot_out_proved(const kvist_store_t *store, uint32_t slot, void *to);

/* Whether the device has this codec, for group 0's objects. */
bool kv_device_packs(const kvist_store_t *store, kvist_codec_t codec);

/* The slot's object as a record has it: the host's codec would make the same bytes. packed:
 * [object_bytes]; lengths_out, checksums_out: [unit_count]. A failure is logged: the host goes on.
 */
kv_status_t kv_device_slot_pack(const kvist_store_t *store, uint32_t slot, char *packed,
    uint32_t *lengths_out, uint64_t *checksums_out, size_t *packed_bytes_out);

/* And back; checksums_out: [unit_count], of what is in the slot then. KV_CORRUPT: no encoder made
 * this, as far as the device can tell. */
kv_status_t kv_device_slot_unpack(const kvist_store_t *store, uint32_t slot, const char *packed,
    const uint32_t *lengths, uint64_t *checksums_out);

static inline char *kv_group_host_bytes(const kv_store_group_t *group, uint32_t slot)
{
    return kv_arena_slot(&group->host_arena, slot);
}

/* ---- object.c ---- */

static inline const kv_family_t *kv_object_family(
    const kvist_store_t *store, const kv_object_t *object)
{
    return (const kv_family_t *)(const void *)kv_names_at(&store->families, object->family);
}
static inline kv_store_group_t *kv_object_group(kvist_store_t *store, const kv_object_t *object)
{
    return &store->groups[store->group_count > 1 ? kv_object_family(store, object)->group : 0];
}

bool kv_object_on_device(const kvist_store_t *store, const kv_object_t *object);
static inline bool kv_object_on_host(const kv_object_t *object)
{
    return object->host_slot != KV_SLOT_NONE;
}
static inline bool kv_object_on_disk(const kv_object_t *object)
{
    return object->segment != KV_SEGMENT_NONE;
}

static inline bool kv_object_expired(const kv_object_t *object, uint32_t now_s)
{
    return object->expires_s != 0 && object->expires_s <= now_s;
}

/* Its block's words, where they are in memory; else NULL. Of group 0. */
const uint32_t *kv_object_words(const kvist_store_t *store, const kv_object_t *object);

/* The fastest tier that has it; disk where none does yet. */
kvist_tier_t kv_object_tier(const kvist_store_t *store, const kv_object_t *object);

void kv_object_hold(kvist_store_t *store, uint32_t number);
void kv_object_release(kvist_store_t *store, uint32_t number);

/* The tiers that have it may evict it from now on, if nothing there goes on from it; nobody holds
 * it, and a use of it has ended. */
void kv_object_list(kvist_store_t *store, uint32_t number);

/* Somebody said when it will be used next (unix). */
void kv_object_expect(kvist_store_t *store, uint32_t number, uint32_t expected_s);

/* The slot, private or loading until now, has the object's bytes. As long as nobody lists it it
 * counts as held. */
void kv_object_enter_device(kvist_store_t *store, uint32_t number, uint32_t slot);
void kv_object_enter_host(kvist_store_t *store, uint32_t number, uint32_t slot);

/* Of what it goes on from, in the same pool; KV_SLOT_NONE: that is not there. */
uint32_t kv_object_parent_slot(const kvist_store_t *store, uint32_t number, kvist_tier_t tier);

/* It is on its way out of the tier, unless it is held again before it has gone: what it goes on
 * from need not wait for it. */
void kv_object_set_going(kvist_store_t *store, uint32_t number, kvist_tier_t tier);

/* Its pin is another one now: it is judged anew. */
void kv_object_end_promise(kvist_store_t *store, uint32_t number);

/* It leaves the tier, now, for want of room: counts, and lets the policy know. */
void kv_object_note_victim(kvist_store_t *store, uint32_t number, kvist_tier_t tier);

/* Frees the object's slot in that tier; another tier must hold it, or it is dead. */
void kv_object_leave_device(kvist_store_t *store, uint32_t number);
void kv_object_leave_host(kvist_store_t *store, uint32_t number);

/* Forgets the record; durably, by the next batch of index changes. */
void kv_object_leave_disk(kvist_store_t *store, uint32_t number);

/* Places the object on disk (its index entry is written). */
void kv_object_enter_disk(kvist_store_t *store, uint32_t number, uint16_t segment,
    uint32_t offset_pages, uint16_t length_pages, bool sealed);

/* From one place on disk to another (its index entry says the new one already). */
void kv_object_move_disk(kvist_store_t *store, uint32_t number, uint16_t segment,
    uint32_t offset_pages, uint16_t length_pages);

/* Something on disk, or on its way there, goes on from it. */
bool kv_object_has_child_on_disk(const kvist_store_t *store, const kv_object_t *object);

/* The segment's objects are on no list from now on: it is being emptied. */
void kv_object_clear_list(kvist_store_t *store, uint32_t segment);
void kv_object_enter_list(kvist_store_t *store, uint32_t number);

/* Drops an object and all its descendants from every tier, for a reason that the history keeps.
 * Those that are held stay as dead numbers until released. */
void kv_object_drop(kvist_store_t *store, uint32_t number, kv_gone_t gone);

/* The bytes in host memory or on disk proved wrong: that copy goes; without another copy the object
 * with all its descendants, durably. How many were dropped or lost their copy; 0: it is dead. A
 * copy in host memory that is being written or moved stays until the next proof. */
uint32_t kv_object_forget_copy(kvist_store_t *store, uint32_t number, kvist_tier_t tier);

/* Its record cannot be decrypted any more: that copy goes, as a damaged one. */
uint32_t kv_object_forget_keyless(kvist_store_t *store, uint32_t number);

/* After a flag or a hold went: frees a dead object that nobody needs any more. */
void kv_object_settle(kvist_store_t *store, uint32_t number);

/* Of every group's object: the previous block's key, or the namespace for a context's first. */
const kvist_key_t *kv_object_parent_key(const kvist_store_t *store, const kv_object_t *object);

/* What a record says of the object, but for its place, its times and what only the record knows. */
void kv_object_describe(const kvist_store_t *store, const kv_object_t *object, kv_record_t *record);

/* The family of objects that are stored like this; KV_NAMES_FULL: too many names are known. */
int kv_family_number(kvist_store_t *store, const kv_record_t *like);

/* ---- load.c ---- */

/* Starts what the lease needs loaded: its found blocks that are not on the device. Each joins a
 * load that is under way or takes a free slot (there are enough). */
void kv_load_start(kvist_store_t *store, kvist_lease_t *lease);

/* Whether the slot is being loaded for this lease, layer by layer. */
bool kv_load_is_layered(const kvist_store_t *store, uint32_t slot, const kvist_lease_t *lease);

/* ---- load_layers.c ---- */

/* A block of them. */
typedef struct {
    struct kv_read *read; /* planned, from host memory */
    uint32_t slot;        /* on the device */
} kv_layered_t;

/* Whether it is worth it, and the device can. */
bool kv_load_layers_pay(const kvist_store_t *store, uint32_t block_count);

/* Brings them in, layer by layer; the array is copied. The lease hears of it:
 * kv_lease_layers_came. The reads end together. */
void kv_load_layers(kvist_lease_t *lease, const kv_layered_t *blocks, uint32_t count);

/* ---- evict.c ---- */

/* Works towards `wanted` more free device slots; some come at once, some when copies end (true:
 * some are yet to come). */
bool kv_evict_device(kvist_store_t *store, uint32_t wanted);

/* A free host slot for an object of the family, made by evicting if need be; KV_SLOT_NONE: there is
 * none now. *coming_out: writes under way will make one. */
uint32_t kv_evict_host(kvist_store_t *store, const kv_family_t *family, bool *coming_out);

/* Evicts the tenant's own blocks of the group until it is within its quota of host memory, as many
 * as may go now. true: it is not yet. */
bool kv_evict_own(kvist_store_t *store, uint32_t group, uint32_t tenant);

/* ---- populate.c ---- */

/* Makes the first chunk of the shared host tier ready, and the others behind. KV_NO_SPACE: not even
 * the first. */
kv_status_t kv_populate_open(
    kvist_store_t *store, const kv_arena_memory_t *memory, kv_error_t *error);

/* Makes no more ready. true: nothing is under way. */
bool kv_populate_stop(kvist_store_t *store);
void kv_populate_close(kvist_store_t *store);

/* Of slots of the group that are not there yet. */
static inline bool kv_populate_coming(const kv_store_group_t *group)
{
    return group->host_pool.ready_count < group->host_pool.slot_count;
}
uint64_t kv_populate_coming_bytes(const kvist_store_t *store);

/* ---- pin.c ---- */

/* Begins to pin the host tier for the device, where it can; close ends that and undoes it. */
void kv_pin_open(kvist_store_t *store);
void kv_pin_close(kvist_store_t *store);

/* The disk's buffers, from and to which objects on the device are read and written. */
void kv_pin_staging(kvist_store_t *store);
void kv_unpin_staging(kvist_store_t *store);

/* ---- persist.c ---- */

bool kv_persist_usable(const kvist_store_t *store);

/* false: the write budget, or its tenant's quota, has no room for it. Else it is on its way to the
 * disk, or there. */
bool kv_persist_queue(kvist_store_t *store, uint32_t number);
void kv_persist_advance(kvist_store_t *store);
void kv_persist_failed(
    kvist_store_t *store, uint32_t volume, uint32_t object_count, const char *reason);
bool kv_persist_idle(const kvist_store_t *store);
void kv_persist_put_segment(kvist_store_t *store, uint32_t number);

/* ---- mark.c ---- */

/* The record at that place is no object's any more. erase: its bytes are to be overwritten too. */
void kv_mark_queue(kvist_store_t *store, uint16_t segment, uint32_t offset_pages,
    uint32_t length_pages, bool erase);

/* A note that an earlier life left in the index; false: it is of no use any more. */
bool kv_mark_restore(kvist_store_t *store, const kv_note_entry_t *note);
void kv_mark_advance(kvist_store_t *store);
bool kv_mark_pending(const kvist_store_t *store, uint32_t segment, uint64_t offset);

/* Behind the segment's last place that waits for its marker; 0: none does. */
uint64_t kv_mark_end(const kvist_store_t *store, uint32_t segment);
uint64_t kv_mark_last(const kvist_store_t *store); /* number of the one queued last; 0: none */
bool kv_mark_ended(const kvist_store_t *store, uint64_t number); /* it and all before it */
uint64_t kv_mark_failures(const kvist_store_t *store);
bool kv_mark_idle(const kvist_store_t *store);
void kv_mark_close(kvist_store_t *store);

/* ---- fill.c ---- */

void kv_fill_advance(kvist_store_t *store);
static inline bool kv_fill_busy(const kvist_store_t *store)
{
    return store->disk != NULL && store->disk->fill != NULL;
}

/* Takes in what the index has of these keys, KV_FILL_LOOK_UP_MAX at most, parents first. false:
 * there is nothing to look up any more. */
bool kv_fill_look_up(kvist_store_t *store, const kvist_key_t *keys, uint32_t count);

/* As kv_table_find, also for what the table does not know yet. */
uint32_t kv_fill_find(kvist_store_t *store, const kvist_key_t *key);

/* The object with this key is dropped: nothing that is read later may bring it back. */
void kv_fill_note_dropped(kvist_store_t *store, const kvist_key_t *key);

/* Objects that the table knows, and about how many there are. */
void kv_fill_progress(const kvist_store_t *store, uint64_t *loaded_out, uint64_t *total_out);

/* Reads no more. true: nothing is under way. */
bool kv_fill_stop(kvist_store_t *store);
void kv_fill_close(kvist_store_t *store);

/* ---- drop.c ---- */

void kv_drop_advance(kvist_store_t *store);
void kv_drop_run_callbacks(kvist_store_t *store);

/* Overwrites a dead object's bytes in memory; kv_object_settle goes on when that is done. */
void kv_drop_erase_memory(kvist_store_t *store, uint32_t number);

/* ---- spill.c ---- */

void kv_spill_advance(kvist_store_t *store);
void kv_spill_run_callbacks(kvist_store_t *store);

/* ---- keep.c ---- */

/* A block has got these times: the sweep has something to do. */
void kv_sweep_note(kvist_store_t *store, uint32_t expires_s, uint32_t pin_until_s);
void kv_sweep_advance(kvist_store_t *store);
uint64_t kv_sweep_due(const kvist_store_t *store); /* monotonic; UINT64_MAX: never */

/* The least quota of the disk tier that what is pinned now leaves room in. */
uint64_t kv_keep_disk_bytes_min(kvist_store_t *store);

/* ---- verify.c ---- */

void kv_verify_advance(kvist_store_t *store);
void kv_verify_cancel(kvist_store_t *store);
void kv_verify_run_callbacks(kvist_store_t *store);

/* ---- reclaim.c ---- */

/* Room for a run of `bytes` in an open segment, which is then held. KV_BUSY: a segment is being
 * made ready or emptied; KV_NO_SPACE: there is no segment to be had. */
kv_status_t kv_reclaim_reserve(
    kvist_store_t *store, size_t bytes, uint32_t *segment_out, uint64_t *offset_out);

/* The same for survivors, from what is reserved for them. */
kv_status_t kv_reclaim_reserve_moved(kvist_store_t *store, uint32_t volume, size_t bytes,
    uint32_t *segment_out, uint64_t *offset_out);

void kv_reclaim_advance(kvist_store_t *store);
void kv_reclaim_unblock(kvist_store_t *store); /* a lease let go, or a pin */
bool kv_reclaim_idle(const kvist_store_t *store);

/* The objects whose records lie in the segment now, in the order of their places. Released with
 * free(). */
uint32_t *kv_reclaim_list(const kvist_store_t *store, uint32_t segment, uint32_t *count_out);

/* Whether a segment's records are forgotten while its header still speaks for them. */
bool kv_reclaim_between_lives(const kvist_store_t *store);

/* An object that survived leaves the disk: where it is to be erased, so is what is left of it in
 * the victim. */
void kv_reclaim_erase(kvist_store_t *store, uint32_t number);

/* ---- survive.c ---- */

/* Starts moving the victim's next survivors as one run; false: no buffer is free. */
bool kv_survive_start(kvist_store_t *store, uint32_t volume);

/* ---- changes.c ---- */

void kv_changes_add(
    kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier, bool stored);
void kv_changes_tell(kvist_store_t *store); /* what is noted so far */
void kv_changes_close(kvist_store_t *store);

/* The tier holds the object from now on, or no longer. */
static inline void kv_changes_note(
    kvist_store_t *store, const kv_object_t *object, kvist_tier_t tier, bool stored)
{
    if (store->changes != NULL) {
        kv_changes_add(store, object, tier, stored);
    }
}

/* ---- show.c ---- */

/* The header of a record of group 0, as it is on disk now: not proved. NULL: it cannot be read.
 * Released with free(). */
void *kv_show_header(const kvist_store_t *store, const kv_object_t *object, size_t *bytes_out);

/* ---- why.c ---- */

/* What a namespace is made of: digests, but for the model, which is one. */
struct kv_described {
    kvist_key_t name_space, model, layout, salt, adapter;
    kvist_dtype_t dtype;
    kvist_codec_class_t codec_class;
};

/* false: it is known already. */
bool kv_why_describe(kvist_store_t *store, const kv_described_t *described);

/* Of kvist_store_describe. */
kv_described_t kv_why_digests(const kvist_namespace_params_t *params);

/* How many are known: store->described[0 ..]. */
uint32_t kv_why_described_count(const kvist_store_t *store);

void kv_why_open(kvist_store_t *store, uint64_t history_bytes);
void kv_why_close(kvist_store_t *store);

/* The object goes for good, and the history knows. */
void kv_why_gone(kvist_store_t *store, const kv_object_t *object, kv_gone_t gone);

/* Whatever goes out of memory from now on goes for the sake of this lease. */
void kv_why_make_room(const kvist_lease_t *lease);

/* Whatever goes from the disk from now on goes for the sake of this object's record. */
void kv_why_make_room_on_disk(kvist_store_t *store, uint32_t number);

/* A context begins with this block. */
void kv_why_note_root(kvist_store_t *store, const kvist_key_t *key);

/* Where a search ended. */
typedef struct {
    const kvist_key_t *name_space;
    const kvist_key_t *key; /* of the block that was not found; of its group's object */
    uint32_t parent;        /* the block before it, KV_OBJECT_NONE before the first */
    uint32_t block;
    const uint32_t *words; /* of that block; NULL: of another group's object */
    uint64_t request;      /* that searched; 0: who knows */
} kv_why_end_t;

/* Why that block is not stored, from what is in memory. */
kvist_miss_t kv_why_absent(
    const kvist_store_t *store, const kv_why_end_t *end, kvist_miss_detail_t *detail_out);

/* What the history says of the key, for a search that ended for this reason at that block. */
void kv_why_ended(const kvist_store_t *store, const kvist_key_t *key, uint32_t block,
    kvist_miss_detail_t *detail_out);

/* ---- quota.c ---- */

static inline bool kv_quota_exceeded(const kvist_store_t *store, uint32_t volume)
{
    const kv_volume_t *at = store->disk->segments.volumes[volume];
    return at->present_count > at->segments_max;
}

/* Removes spares that are too many. */
void kv_quota_advance(kvist_store_t *store, uint32_t volume);

/* Removes a segment that holds nothing any more; the lane is beginning until it is gone. */
void kv_quota_remove(kvist_store_t *store, uint32_t volume, uint32_t number);

/* ---- ready.c ---- */

void kv_ready_advance(kvist_store_t *store, uint32_t volume);

/* A segment begins a new life (or is made) and is the next to be opened. */
void kv_ready_begin(kvist_store_t *store, uint32_t volume, uint32_t number);

/* ---- directory.c ---- */

kv_status_t kv_directory_open(kvist_store_t *store, const kvist_store_params_t *params,
    const kv_store_seams_t *seams, kv_error_t *error);
void kv_directory_close(kvist_store_t *store);

/* Made where it is absent, its name durable. */
kv_status_t kv_directory_make(kv_files_t *files, const char *path, kv_error_t *error);
kv_status_t kv_directory_write_format(
    const kv_disk_t *disk, uint64_t segment_bytes, kv_error_t *error);

/* Before a record with an extra key is written: older programs must not take it for damaged. Any
 * thread. */
kv_status_t kv_directory_note_extras(kv_disk_t *disk, kv_error_t *error);

/* ---- disks.c ---- */

kv_status_t kv_disks_check(
    const kvist_store_params_t *params, uint64_t segment_bytes, kv_error_t *error);
kv_status_t kv_disks_open(
    kvist_store_t *store, const kvist_store_params_t *params, kv_error_t *error);
void kv_disks_close(kv_disk_t *disk);

/* Whether the segment lies on a disk that is missing. */
bool kv_disks_away(const kv_disk_t *disk, uint32_t segment);

/* ---- lease_store.c ---- */

void kv_puts_advance(kvist_store_t *store);                 /* stores that wait for host slots */
uint64_t kv_puts_next_deadline(const kvist_store_t *store); /* UINT64_MAX: none */

/* ---- lease.c ---- */

void kv_lease_pump(kvist_store_t *store);
void kv_lease_load_ended(kvist_lease_t *lease, bool try_again);
uint64_t kv_lease_next_deadline(const kvist_store_t *store); /* UINT64_MAX: none */
void kv_lease_run_callbacks(kvist_store_t *store);

/* What load.c sees of a lease. */
uint32_t kv_lease_found_count(const kvist_lease_t *lease);
uint32_t kv_lease_object(const kvist_lease_t *lease, uint32_t block);
void kv_lease_load_started(kvist_lease_t *lease);
bool kv_lease_wants_layers(const kvist_lease_t *lease);

/* The lease's owner has the block table, and may use the slots of loads that fail. */
bool kv_lease_keeps_slots(const kvist_lease_t *lease);

/* So many of its loads come layer by layer; 0: they are about to end. */
void kv_lease_set_layered(kvist_lease_t *lease, uint32_t load_count);

/* The first layer_count layers of those are there; not KV_OK: one of them is damaged, or did not
 * come. */
void kv_lease_layers_came(kvist_lease_t *lease, uint32_t layer_count, kv_status_t status);

#endif
