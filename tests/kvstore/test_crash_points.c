/* The store's real code on a simulated disk, stopped at every write and every barrier of a seeded
 * workload. What a power loss at that moment leaves (simulated_disk.h; of the index a suffix of
 * its unsynced batches goes, now and then all of it) is opened by a second store, while
 * the first one waits: a stop costs a copy of the disk, not a run up to it.
 *
 * After each stop:
 *  - the store opens, whatever is left;
 *  - all that it matches is bit-exact (the bytes follow from the key);
 *  - what a flush has acknowledged is there, as far as the first store had not itself given up the
 *    record since (its segment was reclaimed);
 *  - what a drop has acknowledged is not, unless it was stored again since;
 *  - the store stores, flushes, closes, opens and finds again; and at one write or barrier of all
 *    that it is stopped a second time, with the same demands.
 *
 * KVIST_SEED and KVIST_STOP replay one run, one stop. */
#include "harness.h"

#include "base/log.h"
#include "simulated_disk.h"

#include <errno.h>

enum {
    CONTEXTS = 15, /* the last three are left to the stores that come after a stop */
    CONTEXTS_USED = 12,
    BLOCKS_MAX = 6,
    SHARED = 2, /* leading blocks that contexts 3n, 3n+1, 3n+2 have in common */
    HELD_MAX = 2,
    FLUSHES_MAX = 4,
    DROPS_MAX = 3,
    TENANTS = 3,
    BLOCK_BYTES_MAX = 16 << 10,
    STEPS = 40,
    OPERATIONS_AFTER = 40, /* about as many writes and barriers does a store make after a stop */
    INDEX_LOST_ONE_IN = 8,
};

typedef struct {
    uint32_t device_slots, host_slots, segments;
    kvist_persist_t persist;
    kvist_codec_t codec;
    bool complete;    /* the disk holds all contexts: nothing may be forgotten */
    uint32_t failing; /* one in so many writes and syncs fails; 0: none */
    uint32_t groups;
    uint32_t second_segments; /* of a second disk; 0: none */
    bool encrypted;
} setting_t;

static const setting_t SETTINGS[] = {
    {16, 0, 8, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, true, 0, 1, 0, false},
    {14, 6, 8, KVIST_PERSIST_SPILL, KVIST_CODEC_NONE, true, 0, 1, 0, false},
    {16, 8, 10, KVIST_PERSIST_EAGER, KVIST_CODEC_LZ4, true, 0, 1, 0, false},
    {14, 6, 10, KVIST_PERSIST_SPILL, KVIST_CODEC_BF16, true, 0, 1, 0, false},
    {16, 0, 2, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, false, 0, 1, 0, false},
    {14, 6, 3, KVIST_PERSIST_SPILL, KVIST_CODEC_NONE, false, 0, 1, 0, false},
    {16, 6, 8, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, false, 8, 1, 0, false},
    {14, 0, 3, KVIST_PERSIST_SPILL, KVIST_CODEC_NONE, false, 20, 1, 0, false},
    {1, 48, 16, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, true, 0, 2, 0, false},
    {1, 48, 3, KVIST_PERSIST_SPILL, KVIST_CODEC_BF16, false, 0, 2, 0, false},
    {16, 0, 6, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, true, 0, 1, 6, false},
    {14, 6, 2, KVIST_PERSIST_SPILL, KVIST_CODEC_NONE, false, 20, 1, 2, false},
    {16, 0, 8, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, true, 0, 1, 0, true},
    {14, 6, 3, KVIST_PERSIST_SPILL, KVIST_CODEC_LZ4, false, 0, 1, 0, true},
    {16, 6, 8, KVIST_PERSIST_EAGER, KVIST_CODEC_NONE, false, 20, 1, 0, true},
};

typedef struct world world_t;

typedef struct {
    world_t *world; /* NULL: free */
    uint32_t sealed[CONTEXTS];
} flush_t;

/* A number for each block, by its context (of shared ones the first that has them) and place. */
typedef uint32_t counts_t[CONTEXTS][BLOCKS_MAX];

typedef struct {
    world_t *world;  /* NULL: free */
    counts_t counts; /* of the blocks that are dropped, when that began; 0: others */
    bool of_tenant;
} drop_t;

struct world {
    const setting_t *setting;
    bench_t bench;
    simulated_disk_t *disk;
    kv_index_kept_t *index;
    uint64_t random;
    uint32_t depth; /* how many stops lie before it */
    uint64_t operation, stop_at;
    uint32_t sealed[CONTEXTS];       /* blocks that were sealed in this world */
    uint32_t acknowledged[CONTEXTS]; /* blocks that must be found */
    counts_t seal_counts;            /* how often was it sealed, + 1 */
    counts_t gone;                   /* 1: must not be found */
    kvist_lease_t *held[HELD_MAX];
    drop_t drops[DROPS_MAX];
    flush_t flushes[FLUSHES_MAX];
};

static const char *const tenants[TENANTS] = {"", "first", "second"};
static uint32_t context_tokens[CONTEXTS][BLOCKS_MAX * BLOCK_TOKENS];
static kvist_key_t context_keys[CONTEXTS][BLOCKS_MAX];
static uint64_t stop_count;

/* What is being tried, for the message of a failure. */
static struct {
    uint64_t seed, stop;
    size_t setting;
    bool good;
} trying;

/* Twice, or 66 times, each setting. */
enum { RUNS = 30, RUNS_LONG = 1000, SANITIZED_FEWER = 5 };

#define EVERY_STOP UINT64_MAX
#define NO_STOP (UINT64_MAX - 1)

/* ---- what must be there ---- */

static uint32_t choose(world_t *world, uint32_t count)
{
    return (uint32_t)(kv_test_random(&world->random) % count);
}

/* Leading blocks of the context that this store has on disk. */
static uint32_t blocks_on_disk(const world_t *world, uint32_t context)
{
    const kvist_store_t *store = world->bench.store;
    uint32_t count = 0;
    while (count < BLOCKS_MAX) {
        for (uint32_t group = 0; group < world->setting->groups; group++) {
            kvist_key_t key = kv_identity_group_key(&context_keys[context][count], group);
            uint32_t number = kv_table_find(store->table, &key);
            if (number == KV_OBJECT_NONE || !kv_object_on_disk(kv_table_at(store->table, number))) {
                return count;
            }
        }
        count++;
    }
    return count;
}

/* A record that the store gave up itself needs not be there any more. */
static void note_given_up(world_t *world)
{
    if (world->setting->complete || world->bench.store == NULL ||
        kv_fill_busy(world->bench.store)) { /* the table says nothing yet */
        return;
    }
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        uint32_t count = blocks_on_disk(world, context);
        if (world->acknowledged[context] > count) {
            world->acknowledged[context] = count;
        }
    }
}

static void flush_ended(void *context, kv_status_t status)
{
    flush_t *flush = context;
    world_t *world = flush->world;
    flush->world = NULL;
    if (status != KV_OK) { /* leases may hold every segment of a small disk */
        bool failing = world->setting->failing > 0 && world->depth == 0;
        assert_true(failing || (status == KV_NO_SPACE && !world->setting->complete));
        return;
    }
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        if (world->setting->complete) {
            assert_true(blocks_on_disk(world, i) >= flush->sealed[i]);
        }
        if (flush->sealed[i] > world->acknowledged[i]) {
            world->acknowledged[i] = flush->sealed[i];
        }
    }
    note_given_up(world);
}

/* The context that counts for the block. */
static uint32_t owner_of(uint32_t context, uint32_t block)
{
    return block < SHARED ? context / 3 * 3 : context;
}

static void drop_ended(void *context, kv_status_t status, uint64_t object_count)
{
    drop_t *drop = context;
    world_t *world = drop->world;
    drop->world = NULL;
    assert_true(object_count > 0 || drop->of_tenant);
    if (status != KV_OK) {
        assert_true(world->setting->failing > 0 && world->depth == 0);
        return;
    }
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        for (uint32_t block = 0; block < BLOCKS_MAX; block++) {
            if (drop->counts[i][block] > 0) {
                world->gone[i][block] = drop->counts[i][block] == world->seal_counts[i][block];
            }
        }
    }
}

/* The context's blocks from `block` on are being dropped. */
static void note_drop(world_t *world, drop_t *drop, uint32_t context, uint32_t block)
{
    for (uint32_t at = block; at < BLOCKS_MAX; at++) {
        uint32_t owner = owner_of(context, at);
        drop->counts[owner][at] = world->seal_counts[owner][at];
    }
    uint32_t *known[2 + FLUSHES_MAX] = {world->sealed, world->acknowledged};
    for (uint32_t i = 0; i < FLUSHES_MAX; i++) {
        known[2 + i] = world->flushes[i].sealed;
    }
    for (uint32_t i = 0; i < 2 + FLUSHES_MAX; i++) {
        known[i][context] = known[i][context] < block ? known[i][context] : block;
    }
}

static drop_t *free_drop(world_t *world)
{
    for (uint32_t i = 0; i < DROPS_MAX; i++) {
        if (world->drops[i].world == NULL) {
            world->drops[i] = (drop_t){.world = world};
            return &world->drops[i];
        }
    }
    return NULL;
}

/* Contexts that share blocks are of one tenant. */
static uint32_t tenant_of(uint32_t context)
{
    return context / 3 % TENANTS;
}

static drop_t *start_tenant_drop(world_t *world, uint32_t tenant)
{
    drop_t *drop = free_drop(world);
    if (drop == NULL) {
        return NULL;
    }
    drop->of_tenant = true;
    kv_status_t status =
        kvist_store_drop_tenant(world->bench.store, tenants[tenant], drop_ended, drop);
    if (status != KV_OK) {
        assert_int_equal(status, KV_MISSING);
        drop->world = NULL;
        return NULL;
    }
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        if (tenant_of(i) == tenant) {
            note_drop(world, drop, i, 0);
        }
    }
    return drop;
}

static drop_t *start_drop(world_t *world, uint32_t context, uint32_t block, bool erase)
{
    drop_t *drop = free_drop(world);
    if (drop == NULL) {
        return NULL;
    }
    kv_status_t status = kvist_store_drop(
        world->bench.store, &context_keys[context][block], erase, drop_ended, drop);
    if (status != KV_OK) { /* not stored, or to be erased while a lease holds it */
        assert_true(status == KV_MISSING || (status == KV_BUSY && erase));
        drop->world = NULL;
        return NULL;
    }
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        if (memcmp(&context_keys[i][block], &context_keys[context][block], KVIST_KEY_BYTES) == 0) {
            note_drop(world, drop, i, block);
        }
    }
    return drop;
}

/* ---- a world: a disk, an index and a store on them ---- */

static void before_operation(world_t *world);

static int before_disk(void *context, simulated_operation_t operation)
{
    world_t *world = context;
    if (operation >= SIMULATED_WRITE) {
        before_operation(world);
    }
    bool may_fail = world->setting->failing > 0 && world->depth == 0 &&
                    world->bench.store != NULL &&
                    (operation == SIMULATED_WRITE || operation == SIMULATED_SYNC);
    return may_fail && choose(world, world->setting->failing) == 0 ? -EIO : 0;
}

static kv_status_t before_index(void *context, bool sync)
{
    (void)sync;
    before_operation(context);
    return KV_OK;
}

static void world_init(world_t *world, const setting_t *setting, uint64_t seed)
{
    *world = (world_t){.setting = setting, .random = seed};
    for (uint32_t i = 0; i < CONTEXTS * BLOCKS_MAX; i++) {
        world->seal_counts[i / BLOCKS_MAX][i % BLOCKS_MAX] = 1;
    }
    bench_init(&world->bench, "simulated", setting->device_slots);
    world->bench.extras = true;
    bool large = setting->codec != KVIST_CODEC_NONE; /* only then it saves a page */
    if (large) {
        bench_with_large_blocks(&world->bench);
    }
    bench_with_host(&world->bench, setting->host_slots);
    if (setting->groups > 1) {
        kvist_layout_t *layout = &world->bench.layout;
        layout->group_count = setting->groups;
        layout->groups[1] = layout->groups[0];
        layout->groups[1].layers[0] = layout->groups[0].layers[0] << 4; /* layers of its own */
        world->bench.params.device = NULL;
        world->bench.params.device_slot_count = 0;
    }
    world->bench.params.directory = "/disk/store";
    world->bench.params.segment_bytes = (large ? 256 : 128) << 10;
    world->bench.params.disk_bytes = setting->segments * world->bench.params.segment_bytes;
    static kvist_disk_params_t second;
    second = (kvist_disk_params_t){
        "/disk/second", setting->second_segments * world->bench.params.segment_bytes};
    world->bench.params.disks = &second;
    world->bench.params.disk_count = setting->second_segments > 0 ? 1 : 0;
    world->bench.params.persist = setting->persist;
    world->bench.params.codec = setting->codec;
    world->bench.params.key_file = setting->encrypted ? "/disk/key" : NULL;
    world->bench.seams.memory_index = &world->index;
    world->bench.seams.threadless = true;
}

/* Durable: it was there before the store. */
static void make_key_file(world_t *world)
{
    static const char KEY[] = "kvist-key 1\n"
                              "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
    kv_files_t *files = simulated_disk_files(world->disk);
    int file = files->ops->open(files, "/disk/key", KV_FILES_WRITE | KV_FILES_CREATE);
    assert_int_equal(files->ops->write(files, file, KEY, sizeof KEY - 1, 0), sizeof KEY - 1);
    assert_int_equal(files->ops->sync(files, file), 0);
    files->ops->close(files, file);
    assert_int_equal(files->ops->sync_folder(files, "/disk"), 0);
}

static void world_open(world_t *world)
{
    world->bench.seams.files = simulated_disk_files(world->disk);
    simulated_disk_watch(world->disk, (simulated_watch_t){before_disk, world});
    bench_open_filling(&world->bench);
    kv_index_memory_watch(world->index, (kv_index_watch_t){before_index, world});
}

/* Reads the index, or the records, to the end. */
static void world_fill(world_t *world)
{
    bench_fill(&world->bench);
    for (uint32_t i = 0; i < CONTEXTS; i++) {
        uint32_t count = blocks_on_disk(world, i);
        assert_true(count >= world->acknowledged[i]);
        for (uint32_t block = 0; block < count; block++) {
            assert_int_equal(world->gone[owner_of(i, block)][block], 0);
        }
    }
}

static void world_end(world_t *world)
{
    world->stop_at = NO_STOP;
    bench_end(&world->bench);
    simulated_disk_destroy(world->disk);
    kv_index_memory_forget(&world->index);
}

/* Blocks before `found` were there, those from it on are made (before the store is polled). */
static void note_sealing(world_t *world, uint32_t context, uint32_t found, uint32_t blocks)
{
    for (uint32_t block = 0; block < blocks; block++) {
        uint32_t owner = owner_of(context, block);
        if (block < found) {
            assert_int_equal(world->gone[owner][block], 0);
        } else {
            world->seal_counts[owner][block]++;
            world->gone[owner][block] = 0;
        }
    }
}

/* ---- two groups: without a device, through the caller's memory ---- */

static void fill_group(const world_t *world, uint32_t context, uint32_t group, uint32_t first,
    uint32_t count, char *bytes)
{
    size_t each = block_bytes(&world->bench); /* of either group */
    for (uint32_t i = 0; i < count; i++) {
        kvist_key_t key = kv_identity_group_key(&context_keys[context][first + i], group);
        fill_block(&key, bytes + i * each, each);
    }
}

static void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(outcome_t *)context =
        (outcome_t){.ended = true, .status = status, .match.block_count = block_count};
}

/* Stores the group's blocks from `first` to before `end`; answers where it came to. */
static uint32_t store_group(world_t *world, kvist_lease_t *lease, uint32_t context, uint32_t group,
    uint32_t first, uint32_t end)
{
    if (first >= end) {
        return first;
    }
    char bytes[BLOCKS_MAX * BLOCK_BYTES_MAX];
    outcome_t outcome = {0};
    kvist_piece_t piece = {bytes, (end - first) * block_bytes(&world->bench)};
    kvist_put_t put = {.group = group,
        .first_block = first,
        .block_count = end - first,
        .arithmetic = "test/plain",
        .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
    fill_group(world, context, group, first, end - first, bytes);
    assert_int_equal(kvist_lease_store(lease, &put, &piece, 1, note_stored, &outcome), KV_OK);
    wait_for(&world->bench, &outcome);
    assert_true(outcome.status == KV_OK || outcome.status == KV_NO_SPACE);
    return first + outcome.match.block_count;
}

static void note_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    *(outcome_t *)context = (outcome_t){
        .ended = true, .status = status, .match = {.block_count = block_count, .miss = miss}};
}

/* Of `count` found blocks those that are whole in both groups. */
static uint32_t check_groups(world_t *world, kvist_lease_t *lease, uint32_t context, uint32_t count)
{
    for (uint32_t group = 0; group < 2 && count > 0; group++) {
        char bytes[BLOCKS_MAX * BLOCK_BYTES_MAX], expected[BLOCKS_MAX * BLOCK_BYTES_MAX];
        outcome_t outcome = {0};
        kvist_piece_t piece = {bytes, count * block_bytes(&world->bench)};
        kvist_selection_t selection = {.group = group, .block_count = count};
        assert_int_equal(
            kvist_lease_load(lease, &selection, &piece, 1, note_loaded, &outcome), KV_OK);
        wait_for(&world->bench, &outcome);
        assert_int_equal(outcome.status, KV_OK);
        count = outcome.match.block_count;
        fill_group(world, context, group, 0, count, expected);
        assert_memory_equal(bytes, expected, count * block_bytes(&world->bench));
    }
    return count;
}

/* As serve() does with slots; *stored_out: how many blocks have both objects then. */
static kvist_lease_t *serve_groups(
    world_t *world, uint32_t context, uint32_t blocks, uint32_t *stored_out)
{
    kvist_lease_t *lease;
    kvist_match_t match;
    bool damaged;
    do {
        lease = match_tokens(&world->bench, context_tokens[context], blocks * BLOCK_TOKENS, &match);
        damaged = check_groups(world, lease, context, match.block_count) < match.block_count;
        if (damaged) { /* and forgotten: it is not found again */
            kvist_lease_release(lease);
        }
    } while (damaged);
    note_sealing(world, context, match.block_count, blocks);
    *stored_out = store_group(world, lease, context, 0, kvist_lease_sealed_count(lease), blocks);
    *stored_out = store_group(world, lease, context, 1, match.block_count, *stored_out);
    return lease;
}

/* ---- the stop ---- */

/* How many blocks of the context are found; each has the bytes of its key. */
static uint32_t count_found(world_t *world, uint32_t context)
{
    bench_t *bench = &world->bench;
    kvist_match_t match;
    kvist_lease_t *lease =
        match_tokens(bench, context_tokens[context], BLOCKS_MAX * BLOCK_TOKENS, &match);
    uint32_t count;
    if (world->setting->groups > 1) {
        count = check_groups(world, lease, context, match.block_count);
    } else {
        outcome_t outcome = prepare(bench, lease, match.block_count);
        assert_int_equal(outcome.status, KV_OK);
        count = outcome.match.block_count;
        for (uint32_t block = 0; block < count; block++) {
            check_block(bench, &context_keys[context][block], kvist_lease_slots(lease)[block]);
        }
    }
    kvist_lease_release(lease);
    return count;
}

/* Right, but perhaps not complete: the table may be filling. */
static uint32_t check_context(world_t *world, uint32_t context)
{
    uint32_t count = count_found(world, context);
    for (uint32_t block = 0; block < count; block++) {
        assert_int_equal(world->gone[owner_of(context, block)][block], 0);
    }
    return count;
}

static void check_matches(world_t *world)
{
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        assert_true(check_context(world, context) >= world->acknowledged[context]);
    }
    check_accounts(&world->bench);
}

/* Asks for the context, makes what is missing. */
static kvist_lease_t *serve_context(world_t *world, uint32_t context, uint32_t blocks)
{
    world->bench.tenant = tenants[tenant_of(context)];
    kvist_match_t match;
    uint32_t stored = blocks;
    kvist_lease_t *lease;
    if (world->setting->groups > 1) {
        lease = serve_groups(world, context, blocks, &stored);
    } else {
        lease = serve(&world->bench, context_tokens[context], blocks, &match);
        note_sealing(world, context, match.block_count, blocks);
    }
    if (world->sealed[context] < stored) {
        world->sealed[context] = stored;
    }
    return lease;
}

static flush_t *start_flush(world_t *world)
{
    for (uint32_t i = 0; i < FLUSHES_MAX; i++) {
        flush_t *flush = &world->flushes[i];
        if (flush->world == NULL) {
            flush->world = world;
            memcpy(flush->sealed, world->sealed, sizeof flush->sealed);
            kvist_store_flush(world->bench.store, flush_ended, flush);
            return flush;
        }
    }
    return NULL;
}

static void flush_and_wait(world_t *world)
{
    flush_t *flush;
    while ((flush = start_flush(world)) == NULL) {
        bench_turn(&world->bench);
    }
    uint64_t end_ns = patience_ns();
    while (flush->world != NULL) {
        bench_wait(&world->bench, end_ns);
    }
}

static void drop_and_wait(world_t *world, uint32_t context, uint32_t block)
{
    drop_t *drop = start_drop(world, context, block, choose(world, 2) == 0);
    uint64_t end_ns = patience_ns();
    while (drop != NULL && drop->world != NULL) {
        bench_wait(&world->bench, end_ns);
    }
}

/* What a lease holds is waited for: none may. */
static void drop_tenant_and_wait(world_t *world, uint32_t tenant)
{
    drop_t *drop = start_tenant_drop(world, tenant);
    uint64_t end_ns = patience_ns();
    while (drop != NULL && drop->world != NULL) {
        bench_wait(&world->bench, end_ns);
    }
}

static void reopen(world_t *world)
{
    flush_and_wait(world);
    bench_close(&world->bench);
    simulated_disk_watch(world->disk, (simulated_watch_t){0});
    if (choose(world, INDEX_LOST_ONE_IN) == 0) {
        kv_index_memory_forget(&world->index);
    }
    world_open(world);
    world_fill(world);
}

/* A store on what was left goes on as if nothing had been. */
static void live_on(world_t *world)
{
    world_open(world);
    for (uint32_t i = choose(world, 3); i > 0; i--) {
        check_context(world, choose(world, CONTEXTS));
    }
    world_fill(world);
    check_matches(world);
    for (uint32_t context = CONTEXTS_USED; context < CONTEXTS; context++) {
        kvist_lease_release(serve_context(world, context, BLOCKS_MAX / 2));
    }
    flush_and_wait(world);
    if (world->setting->complete) { /* a small disk may be moving them on just now */
        assert_true(world->acknowledged[CONTEXTS - 1] == BLOCKS_MAX / 2);
    }
    if (world->setting->encrypted && choose(world, 2) == 0) {
        drop_tenant_and_wait(world, choose(world, TENANTS));
    } else {
        drop_and_wait(world, choose(world, CONTEXTS), choose(world, BLOCKS_MAX));
    }
    reopen(world);
    check_matches(world);
}

static void stop(const world_t *world)
{
    world_t *left = malloc(sizeof *left);
    uint64_t seed = trying.seed ^ (world->operation << 20) ^ ((uint64_t)world->depth << 60);
    world_init(left, world->setting, seed);
    left->depth = world->depth + 1;
    memcpy(left->acknowledged, world->acknowledged, sizeof left->acknowledged);
    memcpy(left->gone, world->gone, sizeof left->gone);
    left->stop_at = left->depth == 1 ? choose(left, OPERATIONS_AFTER) : NO_STOP;
    left->disk = simulated_disk_after_loss(world->disk, kv_test_random(&left->random));
    if (world->index != NULL && choose(left, INDEX_LOST_ONE_IN) > 0) {
        uint32_t kept = choose(left, kv_index_memory_unsynced(world->index) + 1);
        left->index = kv_index_memory_after_loss(world->index, kept);
    }
    live_on(left);
    world_end(left);
    free(left);
    stop_count++;
}

static void before_operation(world_t *world)
{
    uint64_t operation = world->operation++;
    note_given_up(world);
    if (world->stop_at == EVERY_STOP || world->stop_at == operation) {
        if (world->depth == 0) {
            trying.stop = operation;
        }
        stop(world);
    }
}

/* ---- the workload ---- */

static void release_one(world_t *world, uint32_t which)
{
    if (world->held[which] != NULL) {
        kvist_lease_release(world->held[which]);
        world->held[which] = NULL;
    }
}

static void release_all(world_t *world)
{
    for (uint32_t i = 0; i < HELD_MAX; i++) {
        release_one(world, i);
    }
}

static void step_request(world_t *world)
{
    uint32_t context = choose(world, CONTEXTS_USED), blocks = 1 + choose(world, BLOCKS_MAX);
    uint32_t which = choose(world, HELD_MAX);
    release_one(world, which);
    kvist_lease_t *lease = serve_context(world, context, blocks);
    if (choose(world, 3) == 0) {
        world->held[which] = lease;
    } else {
        kvist_lease_release(lease);
    }
}

static void step(world_t *world)
{
    uint32_t choice = choose(world, 100);
    if (choice < 60) {
        step_request(world);
    } else if (choice < 70) {
        release_all(world);
    } else if (choice < 78) {
        start_flush(world); /* goes on behind the next steps, as does the next */
    } else if (choice < 80 && world->setting->encrypted) {
        start_tenant_drop(world, choose(world, TENANTS));
    } else if (choice < 82 && world->setting->encrypted) {
        release_all(world);
        drop_tenant_and_wait(world, choose(world, TENANTS));
    } else if (choice < 83) {
        start_drop(
            world, choose(world, CONTEXTS_USED), choose(world, BLOCKS_MAX), choose(world, 2) == 0);
    } else if (choice < 88) {
        drop_and_wait(world, choose(world, CONTEXTS_USED), choose(world, BLOCKS_MAX));
    } else if (choice < 94) {
        flush_and_wait(world);
    } else {
        release_all(world);
        reopen(world);
    }
    check_accounts(&world->bench);
}

static void run(size_t setting, uint64_t seed, uint64_t stop_at)
{
    trying.seed = seed;
    trying.setting = setting;
    world_t world;
    world_init(&world, &SETTINGS[setting], seed);
    world.stop_at = stop_at;
    world.disk = simulated_disk_create(seed);
    make_key_file(&world);
    world_open(&world);
    world_fill(&world);
    for (uint32_t i = 0; i < STEPS; i++) {
        step(&world);
    }
    release_all(&world);
    flush_and_wait(&world);
    world_end(&world);
}

static void make_contexts(void)
{
    bench_t bench;
    bench_init(&bench, "keys", 1);
    bench.extras = true;
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        make_tokens(context, 0, context_tokens[context], BLOCKS_MAX * BLOCK_TOKENS);
        make_tokens(context / 3 * 3, 0, context_tokens[context], SHARED * BLOCK_TOKENS);
        bench_keys(
            &bench, context_tokens[context], BLOCKS_MAX * BLOCK_TOKENS, context_keys[context]);
    }
    bench_end(&bench);
}

static void every_stop_leaves_a_store_that_is_right(void **state)
{
    (void)state;
    make_contexts();
    kv_log_setup("crash-points", (kv_log_level_t)(KV_LOG_ERROR + 1));
    const char *only = getenv("KVIST_STOP");
    uint64_t stop_at = only != NULL ? strtoull(only, NULL, 10) : EVERY_STOP;
    uint32_t runs = kv_test_long() ? RUNS_LONG : RUNS;
    runs = only != NULL ? 1 : kv_test_sanitized() ? runs / SANITIZED_FEWER : runs;
    trying.good = false;
    for (uint32_t i = 0; i < runs; i++) {
        uint64_t seed = kv_test_seed() + i;
        run(seed % (sizeof SETTINGS / sizeof SETTINGS[0]), seed, stop_at);
    }
    trying.good = true;
    print_message("%u runs, %ju stops\n", runs, (uintmax_t)stop_count);
}

static int say_how_to_replay(void **state)
{
    (void)state;
    if (!trying.good) {
        print_message("setting %zu: KVIST_SEED=%ju KVIST_STOP=%ju %s replays it\n", trying.setting,
            (uintmax_t)trying.seed, (uintmax_t)trying.stop, "tests/kvstore_test_crash_points");
    }
    return 0;
}

int main(void)
{
    kv_test_reuse_memory();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_stop_leaves_a_store_that_is_right, say_how_to_replay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
