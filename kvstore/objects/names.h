/* A set of short byte strings, each known by a small number: namespaces, arithmetic ids, origins,
 * tenants; and families, which name one of each of them.
 *
 * Entries in the object table keep their family's number. Names are never forgotten while the store
 * is open.
 * Owns: copies of the names.
 * Threads: the store's. */
#ifndef KV_KVSTORE_OBJECTS_NAMES_H
#define KV_KVSTORE_OBJECTS_NAMES_H

#include <stddef.h>
#include <stdint.h>

enum { KV_NAMES_FULL = -1 };

typedef struct {
    char *bytes;       /* [capacity][name_bytes] */
    uint32_t *index;   /* linear probing over numbers + 1; at most half full */
    size_t name_bytes; /* every name has this length; shorter text is padded with zeros */
    uint32_t count, capacity, count_max;
    uint32_t last; /* found most recently: the usual answer */
} kv_names_t;

/* What objects that were stored alike have in common: numbers of names, and small numbers. */
typedef struct {
    uint16_t name_space, tenant;
    uint8_t arithmetic, origin, priority, group;
} kv_family_t;

void kv_names_init(kv_names_t *names, size_t name_bytes, uint32_t count_max);
void kv_names_destroy(kv_names_t *names);

/* The name's number, given now if it is new; KV_NAMES_FULL when count_max others are known. */
int kv_names_number(kv_names_t *names, const void *name);
int kv_names_find(const kv_names_t *names, const void *name); /* KV_NAMES_FULL: it is not there */
const char *kv_names_at(const kv_names_t *names, uint32_t number);

#endif
