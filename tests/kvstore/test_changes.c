/* What the store tells of its tiers, against its own table: after every step of a random workload,
 * a reader that heard everything and one that began in the middle, part by part, know just what the
 * table says; across evictions, drops, damage, reclaimed segments, restarts and layer groups. */
#include "harness.h"

enum { CONTEXTS = 24, BLOCKS_MAX = 8, HELD_MAX = 4, ENTRIES = 8192, TIERS = KVIST_TIER_REMOTE };

/* ---- a reader ---- */

typedef struct {
    bool used;
    kvist_key_t key;
    uint32_t group;
    bool tiers[TIERS];
} entry_t;

typedef struct {
    bench_t *bench;
    bool strict; /* heard everything: a change changes something */
    uint64_t changes, blocks;
    entry_t entries[ENTRIES]; /* open addressing; an entry stays where it is */
} reader_t;

static entry_t *entry_of(reader_t *reader, const kvist_key_t *key, uint32_t group)
{
    uint64_t at;
    memcpy(&at, key->bytes, sizeof at);
    for (at = (at + group) % ENTRIES;; at = (at + 1) % ENTRIES) {
        entry_t *entry = &reader->entries[at];
        if (!entry->used) {
            *entry = (entry_t){.used = true, .key = *key, .group = group};
            return entry;
        }
        if (kv_key_equal(&entry->key, key) && entry->group == group) {
            return entry;
        }
    }
}

/* What a change says of the chain is what the table says. */
static void check_chain(reader_t *reader, const kvist_change_t *change, uint32_t block)
{
    const kvist_store_t *store = reader->bench->store;
    kvist_key_t key = kv_identity_group_key(&change->keys[block], change->group);
    uint32_t number = kv_table_find(store->table, &key);
    if (number == KV_OBJECT_NONE) {
        return; /* gone since */
    }
    const kv_object_t *object = kv_table_at(store->table, number);
    assert_int_equal(object->position, change->first_block + block);
    assert_memory_equal(&change->name_space, &reader->bench->name_space, sizeof(kvist_key_t));
    if (change->group == 0) {
        const kvist_key_t *parent = block > 0 ? &change->keys[block - 1] : &change->parent;
        assert_memory_equal(parent, kv_object_parent_key(store, object), sizeof *parent);
    }
}

static void hear(void *context, const kvist_change_t *change)
{
    reader_t *reader = context;
    assert_true((int)change->tier < TIERS);
    assert_in_range(change->block_count, 1, KVIST_CHANGE_BLOCKS_MAX);
    reader->changes++;
    reader->blocks += change->block_count;
    for (uint32_t block = 0; block < change->block_count; block++) {
        entry_t *entry = entry_of(reader, &change->keys[block], change->group);
        if (reader->strict) {
            assert_int_equal(entry->tiers[change->tier], !change->stored);
        }
        entry->tiers[change->tier] = change->stored;
        if (change->stored) {
            check_chain(reader, change, block);
        }
    }
}

static void check_reader(reader_t *reader)
{
    const kvist_store_t *store = reader->bench->store;
    uint64_t held[TIERS] = {0}, known[TIERS] = {0};
    for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) != KV_OBJECT_USED) {
            continue;
        }
        uint32_t group = kv_object_family(store, object)->group;
        kvist_key_t key = kv_identity_group_key(&object->key, group);
        const entry_t *entry = entry_of(reader, &key, group);
        const bool tiers[TIERS] = {kv_object_on_device(store, object), kv_object_on_host(object),
            kv_object_on_disk(object)};
        for (int tier = 0; tier < TIERS; tier++) {
            assert_int_equal(entry->tiers[tier], tiers[tier]);
            held[tier] += tiers[tier];
        }
    }
    for (uint32_t i = 0; i < ENTRIES; i++) {
        for (int tier = 0; tier < TIERS; tier++) {
            known[tier] += reader->entries[i].tiers[tier];
        }
    }
    for (int tier = 0; tier < TIERS; tier++) {
        assert_int_equal(known[tier], held[tier]); /* and nothing more */
    }
}

static void begin(reader_t *reader, bench_t *bench, bool strict)
{
    memset(reader, 0, sizeof *reader);
    reader->bench = bench;
    reader->strict = strict;
}

/* ---- a workload ---- */

typedef struct {
    uint32_t device_slots, host_slots, segments; /* 0 device slots: through the caller's memory */
    kvist_persist_t persist;
    uint32_t groups;
} setting_t;

typedef struct {
    const setting_t *setting;
    bench_t bench;
    uint64_t random;
    kvist_lease_t *held[HELD_MAX];
    reader_t always, late;
    uint32_t cursor; /* of the late one */
    bool late_begun, late_whole;
} world_t;

static world_t world;

static uint32_t dice(uint32_t sides)
{
    return (uint32_t)(kv_test_random(&world.random) % sides);
}

static void hear_both(void *context, const kvist_change_t *change)
{
    (void)context;
    hear(&world.always, change);
    if (world.late_begun) {
        hear(&world.late, change);
    }
}

static void release_one(uint32_t which)
{
    if (world.held[which] != NULL) {
        kvist_lease_release(world.held[which]);
        world.held[which] = NULL;
    }
}

static void note_stored(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(outcome_t *)context =
        (outcome_t){.ended = true, .status = status, .match.block_count = block_count};
}

static outcome_t put(kvist_lease_t *lease, uint32_t group, uint32_t first, uint32_t count)
{
    static char bytes[BLOCKS_MAX * 4096];
    outcome_t outcome = {0};
    kvist_piece_t piece = {bytes, count * kvist_layout_object_bytes(&world.bench.layout, group)};
    kvist_put_t asked = {.group = group,
        .first_block = first,
        .block_count = count,
        .arithmetic = "t",
        .deadline_ns = kv_clock_now_ns() + 20ull * KV_NS_PER_S};
    assert_true(piece.bytes <= sizeof bytes);
    assert_int_equal(kvist_lease_store(lease, &asked, &piece, 1, note_stored, &outcome), KV_OK);
    wait_for(&world.bench, &outcome);
    return outcome;
}

static void note_loaded(void *context, kvist_lease_t *lease, kv_status_t status,
    uint32_t block_count, kvist_miss_t miss)
{
    (void)lease;
    (void)miss;
    *(outcome_t *)context =
        (outcome_t){.ended = true, .status = status, .match.block_count = block_count};
}

/* Stores and loads through the caller's memory, in all groups. */
static void step_transfer(const uint32_t *tokens, uint32_t blocks)
{
    static char bytes[BLOCKS_MAX * 4096];
    kvist_match_t match;
    kvist_lease_t *lease =
        match_tokens(&world.bench, tokens, (size_t)blocks * BLOCK_TOKENS, &match);
    uint32_t found = match.block_count;
    if (found > 0 && dice(2) == 0) {
        outcome_t outcome = {0};
        kvist_selection_t selection = {.block_count = found};
        kvist_piece_t piece = {bytes, found * block_bytes(&world.bench)};
        assert_int_equal(
            kvist_lease_load(lease, &selection, &piece, 1, note_loaded, &outcome), KV_OK);
        wait_for(&world.bench, &outcome);
    } else if (found < blocks) {
        outcome_t stored = put(lease, 0, found, blocks - found);
        for (uint32_t group = 1; group < world.setting->groups; group++) {
            if (stored.match.block_count > 0) {
                put(lease, group, found, stored.match.block_count);
            }
        }
    }
    kvist_lease_release(lease);
}

static void step_request(void)
{
    uint32_t context = dice(CONTEXTS), blocks = 1 + dice(BLOCKS_MAX), which = dice(HELD_MAX);
    uint32_t tokens[BLOCKS_MAX * BLOCK_TOKENS];
    make_tokens(context, 0, tokens, BLOCKS_MAX * BLOCK_TOKENS);
    make_tokens(context / 3 * 3, 0, tokens, 3 * BLOCK_TOKENS); /* three share three blocks */
    release_one(which);
    if (world.setting->device_slots == 0) {
        step_transfer(tokens, blocks);
        return;
    }
    kvist_match_t match;
    kvist_lease_t *lease =
        match_tokens(&world.bench, tokens, (size_t)blocks * BLOCK_TOKENS, &match);
    outcome_t outcome = prepare(&world.bench, lease, blocks);
    assert_int_equal(outcome.status, KV_OK);
    const char *arithmetic = dice(8) == 0 ? "test/other" : "test/plain"; /* replaces copies */
    for (uint32_t block = outcome.match.block_count; block < blocks; block++) {
        assert_int_equal(
            kvist_lease_seal(lease, tokens + (size_t)block * BLOCK_TOKENS, NULL, arithmetic),
            KV_OK);
    }
    if (dice(3) == 0) {
        world.held[which] = lease;
    } else {
        kvist_lease_release(lease);
    }
}

static void step_drop(void)
{
    kvist_key_t key = block_key(&world.bench, dice(CONTEXTS), dice(BLOCKS_MAX));
    outcome_t outcome = {0};
    if (kvist_store_drop(world.bench.store, &key, false, note_dropped, &outcome) == KV_OK) {
        wait_for(&world.bench, &outcome);
    }
}

static void step_damage(void)
{
    uint32_t context = dice(CONTEXTS) / 3 * 3, block = dice(BLOCKS_MAX);
    kvist_key_t key = block_key(&world.bench, context, block);
    uint32_t number = kv_table_find(world.bench.store->table, &key);
    if (number != KV_OBJECT_NONE &&
        kv_object_on_disk(kv_table_at(world.bench.store->table, number))) {
        damage_record(&world.bench, context, block, KV_PAGE_BYTES + 5);
    }
}

static void step_restart(void)
{
    for (uint32_t i = 0; i < HELD_MAX; i++) {
        release_one(i);
    }
    bench_close(&world.bench);
    bench_open_filling(&world.bench);
    world.late_begun = world.late_whole = false;
    begin(&world.always, &world.bench, true);
    kvist_store_listen(world.bench.store, hear_both, NULL);
    if (dice(2) == 0) {
        bench_fill(&world.bench);
    }
}

/* The late reader begins, or goes on. */
static void step_late(void)
{
    if (!world.late_begun) {
        begin(&world.late, &world.bench, false);
        world.late_begun = true;
        world.cursor = 0;
    }
    if (!world.late_whole) {
        world.late_whole =
            !kvist_store_held(world.bench.store, &world.cursor, 1 + dice(20), hear, &world.late);
    } else if (dice(4) == 0) {
        world.late_begun = world.late_whole = false;
    }
}

static void step(void)
{
    uint32_t choice = dice(100);
    if (choice < 70) {
        step_request();
    } else if (choice < 75) {
        release_one(dice(HELD_MAX));
    } else if (choice < 80) {
        step_drop();
    } else if (choice < 82 && world.setting->segments > 0) {
        step_damage();
    } else if (choice < 85) {
        flush(&world.bench);
    } else if (choice < 87 && world.setting->segments > 0) {
        step_restart();
    } else {
        step_late();
    }
    kvist_store_poll(world.bench.store);
    check_reader(&world.always);
    if (world.late_whole) {
        check_reader(&world.late);
    }
}

/* A second group, of a window of three blocks. */
static void with_window(bench_t *bench)
{
    bench->layout.group_count = 2;
    bench->layout.groups[1] = bench->layout.groups[0];
    bench->layout.groups[1].kind = KVIST_GROUP_WINDOW;
    bench->layout.groups[1].window_tokens = 3 * BLOCK_TOKENS;
    bench->layout.groups[0].layers[0] = 1;
    bench->layout.groups[1].layers[0] = 2;
    kvist_namespace_params_t identity = {.layout = &bench->layout, .salt = "", .adapter = ""};
    bench->name_space = kvist_namespace(&identity);
}

static void run(const setting_t *setting, uint64_t seed, uint32_t steps)
{
    memset(&world, 0, sizeof world);
    world.random = seed;
    world.setting = setting;
    bench_init(&world.bench, "changes", setting->device_slots > 0 ? setting->device_slots : 1);
    if (setting->groups > 1) {
        with_window(&world.bench);
    }
    if (setting->device_slots == 0) {
        world.bench.params.device = NULL;
        world.bench.params.device_slot_count = 0;
    }
    bench_with_host(&world.bench, setting->host_slots);
    if (setting->segments > 0) {
        bench_with_disk(&world.bench, setting->segments);
    }
    world.bench.params.persist = setting->persist;
    bench_open(&world.bench);
    begin(&world.always, &world.bench, true);
    kvist_store_listen(world.bench.store, hear_both, NULL);
    for (uint32_t i = 0; i < steps; i++) {
        step();
    }
    print_message("%ju blocks in %ju changes since the last start\n",
        (uintmax_t)world.always.blocks, (uintmax_t)world.always.changes);
    for (uint32_t i = 0; i < HELD_MAX; i++) {
        release_one(i);
    }
    bench_end(&world.bench);
}

static void readers_know_what_the_table_says(void **state)
{
    (void)state;
    static const setting_t SETTINGS[] = {
        {40, 0, 0, KVIST_PERSIST_EAGER, 1},
        {40, 24, 0, KVIST_PERSIST_EAGER, 1},
        {40, 16, 16, KVIST_PERSIST_SPILL, 1},
        {40, 16, 2, KVIST_PERSIST_EAGER, 1},
        {40, 0, 3, KVIST_PERSIST_SPILL, 1},
        {0, 24, 16, KVIST_PERSIST_EAGER, 1},
        {0, 24, 16, KVIST_PERSIST_EAGER, 2},
        {0, 16, 3, KVIST_PERSIST_SPILL, 2},
    };
    uint64_t seed = kv_test_seed();
    uint32_t runs = kv_test_long() ? 8 : 2;
    for (uint32_t run_number = 0; run_number < runs; run_number++, seed++) {
        for (size_t i = 0; i < sizeof SETTINGS / sizeof SETTINGS[0]; i++) {
            print_message("setting %zu seed %ju (KVIST_SEED replays it)\n", i, (uintmax_t)seed);
            run(&SETTINGS[i], seed, kv_test_long() ? 2000 : 300);
        }
    }
}

/* ---- how it is told ---- */

typedef struct {
    uint32_t count;
    kvist_change_t last;
    kvist_key_t first_key;
} told_t;

static void note_told(void *context, const kvist_change_t *change)
{
    told_t *told = context;
    told->count++;
    told->last = *change;
    told->first_key = change->keys[0];
}

static void a_chain_is_told_as_one_run(void **state)
{
    (void)state;
    bench_t bench;
    bench_init(&bench, "runs", 400);
    bench_open(&bench);
    told_t told = {0};
    kvist_store_listen(bench.store, note_told, &told);
    request_context(&bench, 1, 16);
    assert_int_equal(told.count, 0); /* not before a poll */
    kvist_store_poll(bench.store);
    assert_int_equal(told.count, 1);
    assert_int_equal(told.last.block_count, 16);
    assert_true(told.last.stored);
    assert_int_equal(told.last.tier, KVIST_TIER_DEVICE);
    assert_memory_equal(&told.last.parent, &bench.name_space, sizeof bench.name_space);
    kvist_store_poll(bench.store);
    assert_int_equal(told.count, 1);
    request_context(&bench, 2, KVIST_CHANGE_BLOCKS_MAX + 1); /* a run has a bound */
    kvist_store_poll(bench.store);
    assert_int_equal(told.count, 3);
    assert_int_equal(told.last.block_count, 1);
    assert_int_equal(told.last.first_block, KVIST_CHANGE_BLOCKS_MAX);
    assert_int_equal(drop(&bench, 1, 4, false).status, KV_OK);
    assert_int_equal(told.count, 4);
    assert_false(told.last.stored);
    assert_int_equal(told.last.block_count, 12);
    kvist_store_listen(bench.store, NULL, NULL);
    request_context(&bench, 3, 4);
    kvist_store_poll(bench.store);
    assert_int_equal(told.count, 4);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_know_what_the_table_says),
        cmocka_unit_test(a_chain_is_told_as_one_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
