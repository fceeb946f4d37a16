/* Members: the nodes of the cluster, as a source of discovery tells them.
 *
 * A source says what it has under which name; this table checks it, keeps it, and says who came and
 * who went. A member whose address changes goes and comes. What cannot be used (no JSON, a wrong
 * field, another name than its key's) is no member, and is logged once, with its key.
 *
 * Owns: copies of all texts.
 * Threads: one; callbacks run inside the calls.
 * Errors: none to the caller: a directory's content is input.
 * Limits: KV_MEMBERS_MAX members, KV_MEMBER_VALUE_BYTES_MAX of a value. */
#ifndef KV_CLUSTER_MEMBERS_H
#define KV_CLUSTER_MEMBERS_H

#include "base/address.h"
#include "base/status.h"
#include "proto/wire.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_MEMBERS_MAX = 255,
    KV_MEMBER_NAME_BYTES = 64,
    KV_MEMBER_VERSION_BYTES = 32,
    KV_MEMBER_VALUE_BYTES_MAX = 4096,
};

typedef struct {
    char name[KV_MEMBER_NAME_BYTES];
    Kvist__Wire__Role role;
    char address[KV_ADDRESS_TEXT_BYTES];   /* where its peers connect to */
    char version[KV_MEMBER_VERSION_BYTES]; /* of its program; for people */
} kv_member_t;

/* {"name":"decode-1","role":"decode","address":"10.0.0.2:7001","version":"0.1.0"}; allocated. */
char *kv_member_write(const kv_member_t *member);

/* KV_INVALID names the field. key: the name under which the value stands. */
kv_status_t kv_member_read(const char *key, const char *value, size_t value_bytes,
    kv_member_t *member_out, kv_error_t *error);

typedef struct kv_members kv_members_t;

/* The member is valid during the call. */
typedef struct {
    void *context;
    void (*came)(void *context, const kv_member_t *member);
    void (*went)(void *context, const kv_member_t *member);
} kv_members_callbacks_t;

/* own_name: of this node, which is no member to itself. */
kv_members_t *kv_members_create(const char *own_name, const kv_members_callbacks_t *callbacks);
void kv_members_destroy(kv_members_t *members); /* nobody goes */

/* One entry. revision: another one with each change; what is wrong with one is logged once. */
void kv_members_put(kv_members_t *members, const char *name, const char *value, size_t value_bytes,
    int64_t revision);
void kv_members_remove(kv_members_t *members, const char *name);

/* Between begin and end everything is put; who was not, goes at the end. */
void kv_members_list_begin(kv_members_t *members);
void kv_members_list_end(kv_members_t *members);

uint32_t kv_members_count(const kv_members_t *members);

#endif
