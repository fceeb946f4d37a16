/* What the store's tests share: a device of plain memory, a store of tiny blocks, chains whose
 * bytes follow from their keys, and calls that poll until something has happened. */
#ifndef KV_TESTS_KVSTORE_HARNESS_H
#define KV_TESTS_KVSTORE_HARNESS_H

#include "kvstore/attach/attach.h"
#include "kvstore/store_internal.h"
#include "testing/testing.h"

#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_TOKENS = 16 };

/* ---- a device ---- */

static inline kv_status_t plain_allocate(
    kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error)
{
    (void)device;
    (void)error;
    *memory_out = calloc(1, bytes);
    return KV_OK;
}

static inline void plain_release(kv_device_t *device, void *memory, size_t bytes)
{
    (void)device;
    (void)bytes;
    free(memory);
}

static inline kv_status_t plain_copy_in(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, from, bytes);
    return KV_OK;
}

static inline kv_status_t plain_copy_out(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, from, bytes);
    return KV_OK;
}

/* ---- a bench: parameters, device, store ---- */

typedef struct {
    kv_device_ops_t ops;
    kv_device_t device;
    kvist_layout_t layout;
    kvist_store_params_t params;
    kv_store_seams_t seams;
    kv_attach_bounds_t bounds; /* attached: none that a busy machine exceeds */
    kvist_key_t name_space;
    const char *tenant; /* of what is stored; NULL: nobody */
    bool extras;        /* half of the blocks have extra keys: bench_extras */
    kvist_store_t *store;
    int64_t told[KVIST_TIER_REMOTE]; /* objects that each tier holds, as the store told it */
    char folder[512];
} bench_t;

static inline size_t block_bytes(const bench_t *bench)
{
    return kvist_layout_object_bytes(&bench->layout, 0);
}

/* Blocks of 2 layers, 2 heads, 8 dimensions, 16 tokens, bf16: 2 KiB; a record is 8 KiB, whatever
 * the codec. */
static inline void bench_init(bench_t *bench, const char *name, uint32_t device_slots)
{
    static uint32_t benches;
    memset(bench, 0, sizeof *bench);
    bench->ops = (kv_device_ops_t){.name = "plain",
        .allocate = plain_allocate,
        .release = plain_release,
        .copy_in = plain_copy_in,
        .copy_out = plain_copy_out};
    bench->device.ops = &bench->ops;
    bench->bounds = (kv_attach_bounds_t){20000, 20000, 20000, 100, 20000};
    snprintf(bench->folder, sizeof bench->folder, "%s/%s-%u", kv_test_folder(), name, benches++);
    kv_block_shape_t shape = {2, 2, 8, BLOCK_TOKENS, 2};
    bench->layout = kvist_layout_plain(&shape);
    bench->params = (kvist_store_params_t){
        .layout = &bench->layout,
        .device = &bench->device,
        .device_slot_count = device_slots,
        .origin = "test-node",
    };
    bench->params.device_arena = calloc(device_slots, block_bytes(bench));
    kvist_namespace_params_t identity = {
        .layout = &bench->layout, .salt = "", .salt_bytes = 0, .adapter = ""};
    bench->name_space = kvist_namespace(&identity);
}

/* Blocks of 16 KiB: a record is 20 KiB, and 16 KiB where a codec has made it smaller. Before all
 * that counts in blocks. */
#define LARGE_RECORD_BYTES(codec) ((codec) == KVIST_CODEC_NONE ? 20480u : 16384u)

static inline void bench_with_large_blocks(bench_t *bench)
{
    kv_block_shape_t shape = {4, 2, 32, BLOCK_TOKENS, 2};
    bench->layout = kvist_layout_plain(&shape);
    free(bench->params.device_arena);
    bench->params.device_arena = calloc(bench->params.device_slot_count, block_bytes(bench));
}

static inline void bench_with_host(bench_t *bench, uint32_t slots)
{
    bench->params.host_bytes = slots * block_bytes(bench);
}

static inline void bench_with_disk(bench_t *bench, uint32_t segments)
{
    bench->params.directory = bench->folder;
    bench->params.segment_bytes = 256 << 10;
    bench->params.disk_bytes = segments * bench->params.segment_bytes;
}

static inline void bench_note_change(void *context, const kvist_change_t *change)
{
    bench_t *bench = (bench_t *)context;
    bench->told[change->tier] +=
        change->stored ? change->block_count : -(int64_t)change->block_count;
}

/* So that check_accounts can hold what is told against what is there. */
static inline void bench_listen(bench_t *bench)
{
    uint32_t cursor = 0;
    memset(bench->told, 0, sizeof bench->told);
    kvist_store_listen(bench->store, bench_note_change, bench);
    while (kvist_store_held(bench->store, &cursor, 100, bench_note_change, bench)) {
    }
}

/* The table fills while the store is polled. */
static inline void bench_open_filling(bench_t *bench)
{
    kv_error_t error = {0};
    kv_status_t status =
        bench->params.attach != NULL
            ? kv_attached_open(&bench->params, &bench->bounds, &bench->store, &error)
            : kv_store_open_with(&bench->params, &bench->seams, &bench->store, &error);
    if (status != KV_OK) {
        print_message("open: %s\n", error.text);
    }
    assert_int_equal(status, KV_OK);
    bench_listen(bench);
}

/* One round: waits for the store's descriptor (without threads everything is in the store's own
 * hands), polls. */
static inline void bench_turn(bench_t *bench)
{
    if (!bench->seams.threadless) {
        struct pollfd poll_fd = {.fd = kvist_store_fd(bench->store), .events = POLLIN};
        poll(&poll_fd, 1, 20);
    }
    kvist_store_poll(bench->store);
}

/* When a wait that begins now is in vain: a machine with other things to do is slow. */
static inline uint64_t patience_ns(void)
{
    return kv_clock_now_ns() + 300ull * KV_NS_PER_S;
}

/* A round of a wait. */
static inline void bench_wait(bench_t *bench, uint64_t patience_end_ns)
{
    assert_true(kv_clock_now_ns() < patience_end_ns);
    bench_turn(bench);
}

static inline void bench_fill(bench_t *bench)
{
    uint64_t end_ns = patience_ns();
    while (bench->params.attach == NULL && kv_fill_busy(bench->store)) {
        bench_wait(bench, end_ns);
    }
}

static inline void bench_open(bench_t *bench)
{
    bench_open_filling(bench);
    bench_fill(bench);
}

static inline void bench_close(bench_t *bench)
{
    kvist_store_close(bench->store);
    bench->store = NULL;
}

static inline int bench_remove_one(
    const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

/* Of a store that is closed. */
static inline void bench_lose_index(const bench_t *bench)
{
    char path[600];
    snprintf(path, sizeof path, "%s/index", bench->folder);
    assert_int_equal(nftw(path, bench_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static inline void bench_end(bench_t *bench)
{
    if (bench->store != NULL) {
        bench_close(bench);
    }
    free(bench->params.device_arena);
}

static inline kvist_stats_t bench_stats(const bench_t *bench)
{
    kvist_stats_t stats;
    kvist_store_stats(bench->store, &stats);
    return stats;
}

/* ---- prepare, flush, as calls that wait ---- */

typedef struct {
    bool ended;
    kv_status_t status;
    kvist_match_t match;
} outcome_t;

static inline void note_prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    (void)lease;
    *(outcome_t *)context = (outcome_t){true, status, *match};
}

static inline void note_flushed(void *context, kv_status_t status)
{
    *(outcome_t *)context = (outcome_t){.ended = true, .status = status};
}

static inline void wait_for(bench_t *bench, const outcome_t *outcome)
{
    uint64_t end_ns = patience_ns();
    while (!outcome->ended) {
        bench_wait(bench, end_ns);
    }
}

static inline outcome_t prepare(bench_t *bench, kvist_lease_t *lease, uint32_t slots)
{
    outcome_t outcome = {0};
    const kv_clock_t *clock = bench->params.clock != NULL ? bench->params.clock : kv_clock_real();
    uint64_t deadline_ns = clock->monotonic_ns(clock) + 200ull * KV_NS_PER_S;
    assert_int_equal(
        kvist_lease_prepare(lease, slots, deadline_ns, note_prepared, &outcome), KV_OK);
    assert_false(outcome.ended); /* never before the call returns */
    wait_for(bench, &outcome);
    return outcome;
}

static inline kv_status_t flush(bench_t *bench)
{
    outcome_t outcome = {0};
    kvist_store_flush(bench->store, note_flushed, &outcome);
    assert_false(outcome.ended);
    wait_for(bench, &outcome);
    return outcome.status;
}

/* ---- chains ---- */

/* Tokens of context number `context`: the first `shared` are those of context 0. */
static inline void make_tokens(uint32_t context, uint32_t shared, uint32_t *tokens, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t state = i < shared ? i : ((uint64_t)context << 32) + i;
        tokens[i] = (uint32_t)kv_test_random(&state) % 50000;
    }
}

/* The bytes that the block with this key must have: bf16 of the size that KV has, and at the end
 * something that repeats, so that every codec has work. */
static inline void fill_block(const kvist_key_t *key, char *bytes, size_t count)
{
    uint64_t state;
    memcpy(&state, key->bytes, sizeof state);
    for (size_t i = 0; i + 8 <= count; i += 8) {
        uint64_t value = kv_test_random(&state), exponents = kv_test_random(&state);
        exponents = 0x3c003c003c003c00 + (exponents & exponents >> 1 & 0x0380038003800380);
        value = (value & 0x807f807f807f807f) + exponents;
        if (i < count - count / 3) {
            memcpy(bytes + i, &value, 8);
        } else {
            memcpy(bytes + i, key->bytes, 8);
        }
    }
}

static inline char *slot_bytes(const bench_t *bench, uint32_t slot)
{
    return (char *)bench->params.device_arena + slot * block_bytes(bench);
}

static inline void check_block(const bench_t *bench, const kvist_key_t *key, uint32_t slot)
{
    char *expected = malloc(block_bytes(bench));
    fill_block(key, expected, block_bytes(bench));
    assert_memory_equal(expected, slot_bytes(bench, slot), block_bytes(bench));
    free(expected);
}

/* The blocks' extra keys: of a block whose first token is odd one that follows from it. NULL: the
 * bench has none. Released with free(). */
static inline kvist_key_t *bench_extras(const bench_t *bench, const uint32_t *tokens, size_t count)
{
    kvist_key_t *extras = bench->extras ? calloc(count / BLOCK_TOKENS + 1, sizeof *extras) : NULL;
    for (size_t i = 0; bench->extras && i < count / BLOCK_TOKENS; i++) {
        if (tokens[i * BLOCK_TOKENS] % 2 == 1) {
            extras[i] = kv_identity_digest(&tokens[i * BLOCK_TOKENS], sizeof *tokens);
        }
    }
    return extras;
}

static inline void bench_keys(
    const bench_t *bench, const uint32_t *tokens, size_t count, kvist_key_t *keys_out)
{
    kvist_key_t *extras = bench_extras(bench, tokens, count);
    kvist_keys(&bench->name_space, tokens, extras, count, BLOCK_TOKENS, keys_out);
    free(extras);
}

static inline kvist_lease_t *match_tokens(
    bench_t *bench, const uint32_t *tokens, size_t count, kvist_match_t *match_out)
{
    kvist_lease_t *lease;
    kvist_key_t *extras = bench_extras(bench, tokens, count);
    kvist_query_t query = {.name_space = bench->name_space,
        .tokens = tokens,
        .extras = extras,
        .token_count = count,
        .mode = KVIST_MODE_READWRITE,
        .terms.tenant = bench->tenant};
    assert_int_equal(kvist_match(bench->store, &query, &lease, match_out), KV_OK);
    free(extras);
    return lease;
}

/* A whole request: match, prepare, check what was found, compute and seal the rest. Leaves the
 * lease to the caller; answers what was found. */
static inline kvist_lease_t *serve(
    bench_t *bench, const uint32_t *tokens, uint32_t blocks, kvist_match_t *match_out)
{
    size_t count = (size_t)blocks * BLOCK_TOKENS;
    kvist_key_t *keys = calloc(blocks + 1, sizeof *keys);
    kvist_key_t *extras = bench_extras(bench, tokens, count);
    bench_keys(bench, tokens, count, keys);
    kvist_lease_t *lease = match_tokens(bench, tokens, count, match_out);
    outcome_t outcome = prepare(bench, lease, blocks);
    assert_int_equal(outcome.status, KV_OK);
    *match_out = outcome.match;
    const uint32_t *slots = kvist_lease_slots(lease);
    for (uint32_t block = 0; block < outcome.match.block_count; block++) {
        check_block(bench, &keys[block], slots[block]);
    }
    for (uint32_t block = outcome.match.block_count; block < blocks; block++) {
        fill_block(&keys[block], slot_bytes(bench, slots[block]), block_bytes(bench));
        assert_int_equal(kvist_lease_seal(lease, tokens + (size_t)block * BLOCK_TOKENS,
                             extras != NULL ? &extras[block] : NULL, "test/plain"),
            KV_OK);
    }
    free(extras);
    free(keys);
    return lease;
}

/* As serve, and the lease is released. */
static inline kvist_match_t request(bench_t *bench, const uint32_t *tokens, uint32_t blocks)
{
    kvist_match_t match;
    kvist_lease_release(serve(bench, tokens, blocks, &match));
    return match;
}

static inline kvist_match_t request_context(bench_t *bench, uint32_t context, uint32_t blocks)
{
    uint32_t *tokens = calloc((size_t)blocks * BLOCK_TOKENS, sizeof *tokens);
    make_tokens(context, 0, tokens, (size_t)blocks * BLOCK_TOKENS);
    kvist_match_t match = request(bench, tokens, blocks);
    free(tokens);
    return match;
}

static inline kvist_key_t block_key(const bench_t *bench, uint32_t context, uint32_t block)
{
    uint32_t tokens[16 * BLOCK_TOKENS];
    kvist_key_t keys[16];
    make_tokens(context, 0, tokens, 16 * BLOCK_TOKENS);
    bench_keys(bench, tokens, 16 * BLOCK_TOKENS, keys);
    return keys[block];
}

/* How many of the context's first blocks are stored; nothing is stored by asking. */
static inline uint32_t found_blocks(bench_t *bench, uint32_t context, uint32_t blocks)
{
    uint32_t tokens[16 * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(context, 0, tokens, (size_t)blocks * BLOCK_TOKENS);
    kvist_lease_release(match_tokens(bench, tokens, (size_t)blocks * BLOCK_TOKENS, &match));
    return match.block_count;
}

/* Changes a byte of the block's record on disk. */
static inline void damage_record(const bench_t *bench, uint32_t context, uint32_t block, off_t at)
{
    kvist_key_t key = block_key(bench, context, block);
    const kv_object_t *object =
        kv_table_at(bench->store->table, kv_table_find(bench->store->table, &key));
    char path[KV_FOLDER_BYTES + 64];
    kv_segment_path(bench->folder, object->segment, path, sizeof path);
    int fd = open(path, O_RDWR);
    uint8_t byte;
    off_t offset = (off_t)object->offset_pages * KV_PAGE_BYTES + at;
    assert_int_equal(pread(fd, &byte, 1, offset), 1);
    byte ^= 0x20;
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    fsync(fd);
    close(fd);
}

/* ---- drop, as a call that waits ---- */

static inline void note_dropped(void *context, kv_status_t status, uint64_t object_count)
{
    *(outcome_t *)context =
        (outcome_t){.ended = true, .status = status, .match.block_count = (uint32_t)object_count};
}

static inline outcome_t drop(bench_t *bench, uint32_t context, uint32_t block, bool erase)
{
    outcome_t outcome = {0};
    kvist_key_t key = block_key(bench, context, block);
    outcome.status = kvist_store_drop(bench->store, &key, erase, note_dropped, &outcome);
    if (outcome.status == KV_OK) {
        assert_false(outcome.ended); /* never before the call returns */
        wait_for(bench, &outcome);
    }
    return outcome;
}

/* The slot that the object has in the pool; KV_SLOT_NONE: none. */
static inline uint32_t pool_slot(
    const bench_t *bench, const kv_pool_t *pool, const kv_object_t *object)
{
    const kvist_store_t *store = bench->store;
    if (pool == &store->device_pool) {
        return kv_object_on_device(store, object) ? object->device_slot : KV_SLOT_NONE;
    }
    bool here = pool == &store->groups[kv_object_family(store, object)->group].host_pool;
    return here ? object->host_slot : KV_SLOT_NONE;
}

/* Candidates are the slots of objects that nobody holds and from which nothing in the pool goes on,
 * all of them and nothing else; and the pool's counts are right. */
static inline void check_pool(const bench_t *bench, const kv_pool_t *pool)
{
    const kvist_store_t *store = bench->store;
    uint32_t *children = calloc(pool->slot_count + 1, sizeof *children), listed = 0, walked = 0;
    uint32_t classes[KVIST_PRIORITY_COUNT] = {0}, of_tenants = 0, reserved = 0;
    for (uint32_t slot = 0; slot < pool->slot_count; slot++) {
        const kv_slot_t *entry = &pool->slots[slot];
        if (entry->state != KV_SLOT_OBJECT) {
            reserved += (entry->flags & KV_SLOT_RESERVED) != 0;
            continue;
        }
        const kv_object_t *object = kv_table_at(store->table, entry->object);
        assert_int_equal(entry->tenant, kv_object_family(store, object)->tenant);
        classes[entry->priority]++;
        if ((object->flags & KV_OBJECT_DEAD) == 0 && object->parent != KV_OBJECT_NONE &&
            (entry->flags & KV_SLOT_GOING) == 0) {
            uint32_t parent = pool_slot(bench, pool, kv_table_at(store->table, object->parent));
            children[parent != KV_SLOT_NONE ? parent : pool->slot_count]++;
        }
    }
    for (uint32_t slot = 0; slot < pool->slot_count; slot++) {
        const kv_slot_t *entry = &pool->slots[slot];
        if (entry->state == KV_SLOT_OBJECT) {
            const kv_object_t *object = kv_table_at(store->table, entry->object);
            bool is_dead = (object->flags & KV_OBJECT_DEAD) != 0;
            bool is_candidate = !is_dead && object->reference_count == 0 && children[slot] == 0;
            assert_int_equal(entry->children, children[slot]);
            assert_int_equal((entry->flags & KV_SLOT_LISTED) != 0, is_candidate);
            listed += is_candidate && (entry->flags & KV_SLOT_PROMISED) == 0;
        }
    }
    kv_pool_walk_t walk = kv_pool_walk((kv_pool_t *)(uintptr_t)pool, KV_TENANT_ANY, 0);
    while (kv_pool_step(&walk) != KV_SLOT_NONE) {
        walked++;
    }
    assert_int_equal(walked, listed);
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        assert_int_equal(pool->class_counts[i], classes[i]);
    }
    for (uint32_t i = 0; i < pool->tenant_count; i++) {
        of_tenants += pool->tenants[i].object_count;
    }
    assert_int_equal(of_tenants, pool->object_count + reserved);
    free(children);
}

/* Everything that must hold between two calls, from the store's own structures. */
static inline void check_accounts(const bench_t *bench)
{
    const kvist_store_t *store = bench->store;
    uint64_t device = 0, host = 0, disk = 0, disk_bytes = 0, linked = 0, unsaved = 0;
    uint64_t class_bytes[KVIST_PRIORITY_COUNT] = {0};
    int64_t held[KVIST_TIER_REMOTE] = {0};
    for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if ((object->flags & KV_OBJECT_USED) == 0) {
            continue;
        }
        if ((object->flags & KV_OBJECT_DEAD) != 0) { /* dropped, not yet let go */
            device += kv_object_on_device(store, object);
            host += kv_object_on_host(object);
            continue;
        }
        linked++;
        assert_int_equal(kv_table_find(store->table, &object->key), number);
        bool on_device = kv_object_on_device(store, object);
        device += on_device;
        host += kv_object_on_host(object);
        disk += kv_object_on_disk(object);
        unsaved += !kv_object_on_disk(object);
        held[KVIST_TIER_DEVICE] += on_device;
        held[KVIST_TIER_HOST] += kv_object_on_host(object);
        held[KVIST_TIER_DISK] += kv_object_on_disk(object);
        disk_bytes +=
            kv_object_on_disk(object) ? (uint64_t)object->length_pages * KV_PAGE_BYTES : 0;
        class_bytes[kv_object_family(store, object)->priority] +=
            kv_object_on_disk(object) ? (uint64_t)object->length_pages * KV_PAGE_BYTES : 0;
        assert_true(on_device || kv_object_on_host(object) || kv_object_on_disk(object));
        bool spine = kv_object_family(store, object)->group == 0;
        if (object->position > 0 || !spine) { /* the chain has no hole */
            assert_int_not_equal(object->parent, KV_OBJECT_NONE);
            const kv_object_t *parent = kv_table_at(store->table, object->parent);
            assert_true((parent->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) == KV_OBJECT_USED);
            assert_int_equal(parent->position + spine, object->position);
        }
    }
    kvist_stats_t stats = bench_stats(bench);
    assert_int_equal(linked, kv_table_count(store->table));
    assert_int_equal(device, stats.tiers[KVIST_TIER_DEVICE].object_count);
    assert_int_equal(host, stats.tiers[KVIST_TIER_HOST].object_count);
    assert_int_equal(disk, stats.tiers[KVIST_TIER_DISK].object_count);
    assert_int_equal(disk_bytes, stats.tiers[KVIST_TIER_DISK].used_bytes);
    assert_int_equal(unsaved, stats.unsaved_objects);
    if (store->disk != NULL) {
        assert_memory_equal(class_bytes, store->disk->class_bytes, sizeof class_bytes);
    }
    if (store->changes != NULL) {
        kv_changes_tell(bench->store);
        assert_memory_equal(held, bench->told, sizeof held);
    }
    check_pool(bench, &store->device_pool);
    for (uint32_t i = 0; i < store->group_count && bench->params.host_bytes > 0; i++) {
        check_pool(bench, &store->groups[i].host_pool);
    }
    uint64_t quota_bytes = bench->params.disk_bytes;
    for (uint32_t i = 0; i < bench->params.disk_count; i++) {
        quota_bytes += bench->params.disks[i].bytes;
    }
    assert_true(disk_bytes <= quota_bytes);
}

#endif
