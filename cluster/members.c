#include "cluster/members.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/memory.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry entry_t;
struct entry {
    entry_t *next;
    kv_member_t member;
    int64_t revision;
    bool usable; /* otherwise only remembered, so that it is not logged again */
    bool listed;
};

struct kv_members {
    char own_name[KV_MEMBER_NAME_BYTES];
    kv_members_callbacks_t callbacks;
    entry_t *entries;
    uint32_t count; /* of all entries */
    bool full_logged;
};

static const struct {
    const char *name;
    Kvist__Wire__Role role;
} ROLES[] = {
    {"prefill", KVIST__WIRE__ROLE__ROLE_PREFILL},
    {"decode", KVIST__WIRE__ROLE__ROLE_DECODE},
    {"store", KVIST__WIRE__ROLE__ROLE_STORE},
};

enum { ROLE_COUNT = sizeof ROLES / sizeof ROLES[0] };

/* ---- one member as JSON ---- */

char *kv_member_write(const kv_member_t *member)
{
    const char *role = "";
    for (size_t i = 0; i < ROLE_COUNT; i++) {
        role = ROLES[i].role == member->role ? ROLES[i].name : role;
    }
    json_t *object = json_pack("{s:s, s:s, s:s, s:s}", "name", member->name, "role", role,
        "address", member->address, "version", member->version);
    char *text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    return text;
}

static kv_status_t read_fields(
    const char *key, json_t *object, kv_member_t *member_out, kv_error_t *error)
{
    const char *name = json_string_value(json_object_get(object, "name"));
    const char *role = json_string_value(json_object_get(object, "role"));
    const char *address = json_string_value(json_object_get(object, "address"));
    const char *version = json_string_value(json_object_get(object, "version"));
    struct sockaddr_storage parsed;
    kv_member_t member = {.role = KVIST__WIRE__ROLE__ROLE_UNKNOWN};
    if (name == NULL || strcmp(name, key) != 0) {
        return kv_fail(error, KV_INVALID, "\"name\" is '%.63s', not its key's",
            name != NULL ? name : "(no text)");
    }
    for (size_t i = 0; i < ROLE_COUNT; i++) {
        if (role != NULL && strcmp(role, ROLES[i].name) == 0) {
            member.role = ROLES[i].role;
        }
    }
    if (member.role == KVIST__WIRE__ROLE__ROLE_UNKNOWN) {
        return kv_fail(error, KV_INVALID, "\"role\" is '%.32s', not prefill, decode or store",
            role != NULL ? role : "(no text)");
    }
    if (address == NULL) {
        return kv_fail(error, KV_INVALID, "\"address\" is no text");
    }
    kv_error_t cause;
    if (kv_address_parse(address, &parsed, &cause) != KV_OK) {
        return kv_fail(error, KV_INVALID, "\"address\": %.200s", cause.text);
    }
    if (version != NULL && !kv_text_is_plain(version, '!', KV_MEMBER_VERSION_BYTES - 1)) {
        return kv_fail(error, KV_INVALID, "\"version\" is not 1 to %d printable characters",
            KV_MEMBER_VERSION_BYTES - 1);
    }
    snprintf(member.name, sizeof member.name, "%s", name);
    kv_address_text(&parsed, member.address);
    snprintf(member.version, sizeof member.version, "%s", version != NULL ? version : "");
    *member_out = member;
    return KV_OK;
}

kv_status_t kv_member_read(const char *key, const char *value, size_t value_bytes,
    kv_member_t *member_out, kv_error_t *error)
{
    if (!kv_text_is_plain(key, '!', KV_MEMBER_NAME_BYTES - 1)) {
        return kv_fail(error, KV_INVALID, "the key's last part is not 1 to %d printable characters",
            KV_MEMBER_NAME_BYTES - 1);
    }
    if (value_bytes > KV_MEMBER_VALUE_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "the value has %zu bytes, at most %d", value_bytes,
            KV_MEMBER_VALUE_BYTES_MAX);
    }
    json_error_t cause;
    json_t *object = json_loadb(value, value_bytes, JSON_REJECT_DUPLICATES, &cause);
    if (!json_is_object(object)) {
        json_decref(object);
        return kv_fail(error, KV_INVALID, "the value is no JSON object: %.100s",
            object == NULL ? cause.text : "another type");
    }
    kv_status_t status = read_fields(key, object, member_out, error);
    json_decref(object);
    return status;
}

/* ---- the table ---- */

kv_members_t *kv_members_create(const char *own_name, const kv_members_callbacks_t *callbacks)
{
    kv_members_t *members = kv_allocate(sizeof *members);
    members->callbacks = *callbacks;
    snprintf(members->own_name, sizeof members->own_name, "%s", own_name);
    return members;
}

void kv_members_destroy(kv_members_t *members)
{
    while (members != NULL && members->entries != NULL) {
        entry_t *next = members->entries->next;
        free(members->entries);
        members->entries = next;
    }
    free(members);
}

static entry_t **find(kv_members_t *members, const char *name)
{
    entry_t **at = &members->entries;
    while (*at != NULL && strcmp((*at)->member.name, name) != 0) {
        at = &(*at)->next;
    }
    return at;
}

/* A new entry, or NULL where there is no room, or the name is none to keep. */
static entry_t *add(kv_members_t *members, const char *name)
{
    if (members->count == KV_MEMBERS_MAX) {
        if (!members->full_logged) {
            kv_log_warn(
                "cluster", "member %.63s is one more than %d: not used", name, KV_MEMBERS_MAX);
        }
        members->full_logged = true;
        return NULL;
    }
    entry_t *entry = kv_allocate(sizeof *entry);
    snprintf(entry->member.name, sizeof entry->member.name, "%s", name);
    entry->revision = INT64_MIN;
    entry->next = members->entries;
    members->entries = entry;
    members->count++;
    return entry;
}

static void leave(kv_members_t *members, entry_t *entry)
{
    if (entry->usable) {
        entry->usable = false;
        members->callbacks.went(members->callbacks.context, &entry->member);
    }
}

void kv_members_put(kv_members_t *members, const char *name, const char *value, size_t value_bytes,
    int64_t revision)
{
    if (strcmp(name, members->own_name) == 0) {
        return;
    }
    if (strlen(name) >= KV_MEMBER_NAME_BYTES) {
        kv_log_warn("cluster", "member key %.63s... ignored: longer than %d bytes", name,
            KV_MEMBER_NAME_BYTES - 1);
        return;
    }
    entry_t *entry = *find(members, name);
    if (entry == NULL) {
        entry = add(members, name);
    }
    if (entry == NULL) {
        return;
    }
    entry->listed = true;
    bool news = revision != entry->revision;
    entry->revision = revision;
    kv_member_t member;
    kv_error_t error;
    if (kv_member_read(name, value, value_bytes, &member, &error) != KV_OK) {
        if (news) {
            kv_log_warn("cluster", "member key %s ignored: %s", name, error.text);
        }
        leave(members, entry);
    } else if (!entry->usable || strcmp(member.address, entry->member.address) != 0 ||
               member.role != entry->member.role) {
        leave(members, entry);
        entry->member = member;
        entry->usable = true;
        members->callbacks.came(members->callbacks.context, &entry->member);
    }
}

void kv_members_remove(kv_members_t *members, const char *name)
{
    entry_t **at = find(members, name);
    entry_t *entry = *at;
    if (entry != NULL) {
        leave(members, entry);
        *at = entry->next;
        members->count--;
        members->full_logged = false;
        free(entry);
    }
}

void kv_members_list_begin(kv_members_t *members)
{
    for (entry_t *entry = members->entries; entry != NULL; entry = entry->next) {
        entry->listed = false;
    }
}

void kv_members_list_end(kv_members_t *members)
{
    for (entry_t *entry = members->entries; entry != NULL;) {
        entry_t *next = entry->next;
        if (!entry->listed) {
            kv_members_remove(members, entry->member.name);
        }
        entry = next;
    }
}

uint32_t kv_members_count(const kv_members_t *members)
{
    uint32_t count = 0;
    for (const entry_t *entry = members->entries; entry != NULL; entry = entry->next) {
        count += entry->usable;
    }
    return count;
}
