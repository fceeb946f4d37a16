/* The table of objects: what the store knows about each block it holds, found by key.
 *
 * An object has a number (stable for its life; numbers are reused after it). Objects form a tree by
 * parent; the table links parents, children and siblings, so that a chain can be walked both ways
 * and a subtree can be dropped.
 *
 *   find by key -> number -> 88 bytes:  key, parent, first child, siblings, device slot, host slot,
 *                                       place on disk, last use, terms, holds, family
 *
 * A number costs 88 bytes and 6.1 to 6.9 bytes of the index; memory is taken in pages of 2 MiB. A
 * *dead* object is out of the index and of the tree; it waits until nobody holds it.
 *
 * Owns: everything in it.
 * Threads: the store's.
 * Limits: 2^31 objects. */
#ifndef KV_KVSTORE_OBJECTS_TABLE_H
#define KV_KVSTORE_OBJECTS_TABLE_H

#include "kvstore/kvist.h"

#define KV_OBJECT_NONE UINT32_MAX
#define KV_SEGMENT_NONE UINT16_MAX

enum {
    KV_OBJECT_USED = 1,      /* the number is taken */
    KV_OBJECT_DEAD = 2,      /* dropped; waits for its last holder */
    KV_OBJECT_QUEUED = 4,    /* in the queue of records to write */
    KV_OBJECT_WRITING = 8,   /* its record is on its way to the disk */
    KV_OBJECT_MOVING = 16,   /* being copied from device to host */
    KV_OBJECT_ERASE = 32,    /* dead: its bytes in memory are to be overwritten */
    KV_OBJECT_CHECKING = 64, /* its copy in host memory is being verified */
    KV_OBJECT_RENEWED = 128, /* the index has terms of it that its record does not */
    KV_OBJECT_READ = 256,    /* loaded from disk since the start */
    KV_OBJECT_ABSENT = 512,  /* with dead: not known yet, but others descend from it */
    KV_OBJECT_FREE = 1024,   /* alone: in the list of free numbers */
};

/* kv_object_t.disk_flags */
enum {
    KV_DISK_ASKED = 1,  /* found by a match since its record was written, or since it was stored */
    KV_DISK_LISTED = 2, /* on a segment's list, perhaps though it is there no more */
    KV_DISK_STAYS = 4,  /* of a segment that is being emptied: survives, or did already */
    KV_DISK_ADMITTED = 8,  /* on disk, or the write budget has room for it */
    KV_DISK_REFUSED = 16,  /* the write budget had none, the last time that was asked */
    KV_DISK_GIVEN_UP = 32, /* it left the disk for its tenant's quota; not asked for since */
    KV_DISK_SEALED = 64,   /* on disk, encrypted */
    KV_DISK_KEYLESS = 128, /* its tenant's key is about to be destroyed */
};

typedef struct {
    kvist_key_t key; /* of the block, marked with the group (kv_identity_group_key) */
    uint32_t used_s; /* last use, unix */
    uint32_t expires_s, pin_until_s; /* unix; 0: none */
    uint32_t position : 20;
    uint32_t flags : 12;
    /* Of the spine, the previous block; of another group's object, its block on the spine. */
    uint32_t parent, first_child, next_sibling, previous_sibling;
    uint32_t device_slot, host_slot;
    uint32_t
        segment_next; /* the next object in its segment's list; also the list of free numbers */
    uint32_t offset_pages : 20; /* of its record in the segment */
    uint32_t disk_flags : 12;
    uint16_t segment; /* KV_SEGMENT_NONE: not on disk */
    uint16_t length_pages;
    uint16_t reference_count;
    uint16_t family; /* number in the store's table of families */
} kv_object_t;

typedef struct kv_table kv_table_t;

kv_table_t *kv_table_create(void);
void kv_table_destroy(kv_table_t *table);

/* The object's number, or KV_OBJECT_NONE. */
uint32_t kv_table_find(const kv_table_t *table, const kvist_key_t *key);

/* As kv_table_find, where the object is most likely the parent's child (KV_OBJECT_NONE: a root):
 * the objects of a chain lie side by side as a rule, and then nothing else is read. */
uint32_t kv_table_find_child(const kv_table_t *table, uint32_t parent, const kvist_key_t *key);

/* What a search waits for is memory. These ask for it ahead, so that many can wait at one time:
 * first for where the key is noted, then, some keys later, for its object. */
void kv_table_approach(const kv_table_t *table, const kvist_key_t *key);
void kv_table_approach_object(const kv_table_t *table, const kvist_key_t *key);

/* For the objects that have the next numbers. */
void kv_table_approach_next(const kv_table_t *table, uint32_t number, uint32_t count);

/* Makes room for so many objects at once: the index need not grow while they come. */
void kv_table_reserve(kv_table_t *table, uint32_t object_count);

/* A new object that is in no tier yet; the key must not be there. parent: KV_OBJECT_NONE for a root
 * (or for one that kv_table_adopt will link). KV_OBJECT_NONE when all numbers are taken. */
uint32_t kv_table_insert(kv_table_t *table, const kvist_key_t *key, uint32_t parent);
void kv_table_adopt(kv_table_t *table, uint32_t parent, uint32_t child);

/* While a table fills, a child may come before its parent. The object with this key, or where there
 * is none an *absent* one, which only keeps its children together: no search finds it; an insert of
 * its key makes it an object. KV_OBJECT_NONE: as for insert. Absent ones have numbers of their own,
 * beyond kv_table_bound. */
uint32_t kv_table_expect(kv_table_t *table, const kvist_key_t *key);
void kv_table_forget_absent(kv_table_t *table, uint32_t number); /* without children */
void kv_table_release_absent(kv_table_t *table); /* there are none: gives back their memory */

/* The first absent one from this number on (KV_OBJECT_NONE: of all), or KV_OBJECT_NONE. */
uint32_t kv_table_next_absent(const kv_table_t *table, uint32_t from);

/* Numbers in a row for objects that will be inserted by number, so that those of a chain can lie
 * side by side whatever order they come in; the first, or KV_OBJECT_NONE. What is not used is given
 * back. */
uint32_t kv_table_set_apart(kv_table_t *table, uint32_t count);
void kv_table_give_back(kv_table_t *table, uint32_t first, uint32_t count);

/* Makes the kernel find the memory of numbers that are set apart, which takes long; on any thread,
 * before one of them is used. */
void kv_table_touch(kv_table_t *table, uint32_t first, uint32_t count);

/* As insert, without a parent yet; under the wanted number, where that is set apart and free. */
uint32_t kv_table_insert_at(kv_table_t *table, const kvist_key_t *key, uint32_t wanted);

/* Out of the index and from its parent; it must have no children. The number stays taken. */
void kv_table_unlink(kv_table_t *table, uint32_t number);
void kv_table_free(kv_table_t *table, uint32_t number);

/* Valid for the object's life: entries do not move. */
kv_object_t *kv_table_at(const kv_table_t *table, uint32_t number);

/* Numbers are below this bound; those whose flags lack KV_OBJECT_USED are free. */
uint32_t kv_table_bound(const kv_table_t *table);
uint32_t kv_table_count(const kv_table_t *table); /* objects that are not dead */

/* Bytes of memory that the table takes now. */
size_t kv_table_memory_bytes(const kv_table_t *table);

#endif
