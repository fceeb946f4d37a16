#include "gateway/keeping/promises.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

#define NOWHERE UINT32_MAX

typedef struct {
    kvist_key_t key; /* of the last of its blocks */
    kv_promise_entry_t said;
    uint32_t next; /* in its bucket, or of the free ones */
    bool used;
} entry_t;

struct kv_promise_table {
    kv_promise_table_params_t params;
    entry_t *entries; /* [room] */
    uint32_t room, free_head, used_count;
    uint32_t *buckets; /* [entry_count_max] */
};

static uint64_t now_ms(const kv_promise_table_t *table)
{
    return table->params.clock->unix_ns(table->params.clock) / KV_NS_PER_MS;
}

kv_promise_table_t *kv_promise_table_create(const kv_promise_table_params_t *params)
{
    kv_promise_table_t *table = kv_allocate(sizeof *table);
    *table = (kv_promise_table_t){.params = *params, .free_head = NOWHERE};
    KV_CHECK(params->block_tokens > 0 && params->entry_count_max > 0);
    if (table->params.clock == NULL) {
        table->params.clock = kv_clock_real();
    }
    table->buckets = kv_allocate_array(params->entry_count_max, sizeof *table->buckets);
    memset(table->buckets, 0xff, params->entry_count_max * sizeof *table->buckets);
    return table;
}

void kv_promise_table_destroy(kv_promise_table_t *table)
{
    if (table != NULL) {
        free(table->entries);
        free(table->buckets);
        free(table);
    }
}

bool kv_promise_table_is_empty(const kv_promise_table_t *table)
{
    return table->used_count == 0;
}

/* Of a salt, as if it were one block of tokens. */
static kvist_key_t root_of(const void *salt, size_t salt_bytes)
{
    static const kvist_key_t NONE;
    size_t count = 1 + (salt_bytes + 3) / 4;
    uint32_t *words = kv_allocate_array(count, sizeof *words);
    kvist_key_t root;
    words[0] = (uint32_t)salt_bytes;
    if (salt_bytes > 0) {
        memcpy(words + 1, salt, salt_bytes);
    }
    kvist_keys(&NONE, words, NULL, count, (uint32_t)count, &root);
    free(words);
    return root;
}

kvist_key_t *kv_promise_keys(const kv_promise_table_t *table, const void *salt, size_t salt_bytes,
    const uint32_t *tokens, size_t token_count, size_t *count_out)
{
    kvist_key_t root = root_of(salt, salt_bytes);
    *count_out = token_count / table->params.block_tokens;
    kvist_key_t *keys = kv_allocate_array(*count_out + 1, sizeof *keys);
    kvist_keys(&root, tokens, NULL, token_count, table->params.block_tokens, keys);
    return keys;
}

/* ---- entries ---- */

static bool same_key(const kvist_key_t *left, const kvist_key_t *right)
{
    return memcmp(left->bytes, right->bytes, KVIST_KEY_BYTES) == 0;
}

static uint32_t *bucket_of(const kv_promise_table_t *table, const kvist_key_t *key)
{
    return &table->buckets[kv_get_u32(key->bytes) % table->params.entry_count_max];
}

static entry_t *find(const kv_promise_table_t *table, uint64_t node, const kvist_key_t *key)
{
    for (uint32_t at = *bucket_of(table, key); at != NOWHERE; at = table->entries[at].next) {
        entry_t *entry = &table->entries[at];
        if (entry->said.node == node && same_key(&entry->key, key)) {
            return entry;
        }
    }
    return NULL;
}

static void forget(kv_promise_table_t *table, entry_t *entry)
{
    uint32_t number = (uint32_t)(entry - table->entries), *link = bucket_of(table, &entry->key);
    while (*link != number) {
        link = &table->entries[*link].next;
    }
    *link = entry->next;
    *entry = (entry_t){.next = table->free_head};
    table->free_head = number;
    table->used_count--;
}

/* All that have ended; where none has, the one that ends first. */
static void make_room(kv_promise_table_t *table)
{
    uint64_t now = now_ms(table);
    entry_t *first = NULL;
    for (uint32_t i = 0; i < table->room; i++) {
        entry_t *entry = &table->entries[i];
        if (!entry->used) {
            continue;
        }
        if (entry->said.until_unix_ms <= now) {
            forget(table, entry);
        } else if (first == NULL || entry->said.until_unix_ms < first->said.until_unix_ms) {
            first = entry;
        }
    }
    if (table->free_head == NOWHERE) {
        forget(table, first);
    }
}

static void grow(kv_promise_table_t *table)
{
    uint32_t room = 2 * table->room + 64;
    room = room < table->params.entry_count_max ? room : table->params.entry_count_max;
    table->entries = kv_reallocate(table->entries, room, sizeof *table->entries);
    for (uint32_t i = table->room; i < room; i++) {
        table->entries[i] = (entry_t){.next = table->free_head};
        table->free_head = i;
    }
    table->room = room;
}

static entry_t *add(kv_promise_table_t *table, const kvist_key_t *key)
{
    if (table->free_head == NOWHERE && table->room < table->params.entry_count_max) {
        grow(table);
    } else if (table->free_head == NOWHERE) {
        make_room(table);
    }
    uint32_t number = table->free_head, *bucket = bucket_of(table, key);
    entry_t *entry = &table->entries[number];
    table->free_head = entry->next;
    *entry = (entry_t){.key = *key, .next = *bucket, .used = true};
    *bucket = number;
    table->used_count++;
    return entry;
}

/* ---- the table ---- */

void kv_promise_table_note(kv_promise_table_t *table, const kvist_key_t *keys, size_t key_count,
    const kv_promise_entry_t *said)
{
    size_t blocks = said->token_count / table->params.block_tokens;
    if (blocks == 0 || blocks > key_count || said->token_count % table->params.block_tokens != 0) {
        return; /* the node has other blocks: it keeps the promise, nobody renews it */
    }
    entry_t *entry = find(table, said->node, &keys[blocks - 1]);
    if (entry != NULL && entry->said.until_unix_ms > now_ms(table)) {
        kv_promise_entry_t *had = &entry->said;
        if (said->owner != KV_PROMISE_OWNER_AS_IT_IS && had->owner != said->owner) {
            had->owner = 0;
        }
        had->ttl_ns = had->ttl_ns > said->ttl_ns ? had->ttl_ns : said->ttl_ns;
        if (said->until_unix_ms > had->until_unix_ms) {
            had->until_unix_ms = said->until_unix_ms;
        }
        return;
    }
    if (entry == NULL) {
        entry = add(table, &keys[blocks - 1]);
    }
    entry->said = *said;
    if (said->owner == KV_PROMISE_OWNER_AS_IT_IS) {
        entry->said.owner = 0;
    }
}

size_t kv_promise_table_read(kv_promise_table_t *table, uint64_t node, const kvist_key_t *keys,
    size_t key_count, kv_promise_entry_t *entries_out, size_t count_max)
{
    uint64_t now = now_ms(table), covered_ns = 0;
    size_t count = 0;
    for (size_t block = key_count; block-- > 0 && count < count_max;) {
        const entry_t *entry = find(table, node, &keys[block]);
        if (entry != NULL && entry->said.until_unix_ms > now && entry->said.ttl_ns > covered_ns) {
            entries_out[count++] = entry->said;
            covered_ns = entry->said.ttl_ns;
        }
    }
    return count;
}

kv_promise_sums_t kv_promise_table_sums(const kv_promise_table_t *table)
{
    uint64_t now = now_ms(table);
    kv_promise_sums_t sums = {0};
    for (uint32_t i = 0; i < table->room; i++) {
        const entry_t *entry = &table->entries[i];
        if (entry->used && entry->said.until_unix_ms > now) {
            sums.promise_count++;
            sums.token_count += entry->said.token_count;
        }
    }
    return sums;
}

void kv_promise_table_let_go(kv_promise_table_t *table, uint64_t owner)
{
    for (uint32_t i = 0; i < table->room; i++) {
        if (table->entries[i].used && table->entries[i].said.owner == owner) {
            forget(table, &table->entries[i]);
        }
    }
}

void kv_promise_table_forget_node(kv_promise_table_t *table, uint64_t node)
{
    for (uint32_t i = 0; i < table->room; i++) {
        if (table->entries[i].used && table->entries[i].said.node == node) {
            forget(table, &table->entries[i]);
        }
    }
}
