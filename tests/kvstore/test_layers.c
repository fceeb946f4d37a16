/* Found blocks that come to the device layer by layer: who asked for that has his lease before the
 * last layer, never reads one too early, and learns of what does not come. The device is one whose
 * moves into it go on when the test says so: nothing here depends on how fast anything is. */
#include "harness.h"

#include "base/checksum.h"
#include "kernels/moves.h"

#include <pthread.h>
#include <stdatomic.h>

enum { LAYERS = 4, BLOCKS = 6, SLOTS = 8 };

struct kv_move {
    char *arena;
    size_t bytes, slot_bytes;
    uint32_t slot_count, slots[SLOTS];
    char *outside[SLOTS];
    size_t offset_bytes, unit_bytes;
    uint64_t *checksums;
    bool in;
    uint32_t number; /* of those that come in */
};

/* What the device does. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t permitted;       /* moves in of layers before this one go on */
    uint32_t permitted_moves; /* and of them the first so many */
    uint32_t failing_layer;   /* from here on moves in fail; LAYERS: none does */
    uint32_t bent_layer;  /* the first byte of this one is damaged on its way; LAYERS: of none */
    atomic_uint moves_in; /* begun so far */
    size_t layer_bytes;
} device = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static kv_status_t move_start(
    kv_device_t *of, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error)
{
    (void)of;
    (void)error;
    assert_int_equal(params->part_count, 1);
    assert_true(params->slot_count <= SLOTS);
    kv_move_t *move = calloc(1, sizeof *move);
    *move = (kv_move_t){
        .arena = params->arena,
        .bytes = params->parts[0].bytes,
        .slot_bytes = params->slot_bytes,
        .slot_count = params->slot_count,
        .offset_bytes = params->parts[0].offset_bytes,
        .unit_bytes = params->unit_bytes,
        .checksums = params->checksums,
        .in = params->direction == KV_MOVE_IN,
    };
    memcpy(move->slots, params->slots, params->slot_count * sizeof *params->slots);
    memcpy(move->outside, params->outside, params->slot_count * sizeof *params->outside);
    pthread_mutex_lock(&device.lock);
    move->number = device.moves_in;
    device.moves_in += move->in;
    pthread_mutex_unlock(&device.lock);
    *move_out = move;
    return KV_OK;
}

/* A whole slot counts as its last layer. */
static uint32_t last_layer(const kv_move_t *move)
{
    return (uint32_t)((move->offset_bytes + move->bytes) / device.layer_bytes) - 1;
}

static kv_status_t move_wait(kv_device_t *of, kv_move_t *move, kv_error_t *error)
{
    (void)of;
    pthread_mutex_lock(&device.lock);
    while (move->in &&
           (last_layer(move) >= device.permitted || move->number >= device.permitted_moves)) {
        pthread_cond_wait(&device.changed, &device.lock);
    }
    bool fails = move->in && last_layer(move) >= device.failing_layer;
    bool bends = move->in && last_layer(move) == device.bent_layer;
    pthread_mutex_unlock(&device.lock);
    for (uint32_t i = 0; i < move->slot_count && !fails; i++) {
        char *slot = move->arena + move->slots[i] * move->slot_bytes + move->offset_bytes;
        memcpy(move->in ? slot : move->outside[i], move->in ? move->outside[i] : slot, move->bytes);
        if (bends && i == 0) {
            slot[0] ^= 1;
        }
        size_t units = move->unit_bytes > 0 ? move->bytes / move->unit_bytes : 0;
        for (size_t unit = 0; unit < units; unit++) {
            move->checksums[i * units + unit] =
                kv_checksum(slot + unit * move->unit_bytes, move->unit_bytes);
        }
    }
    free(move);
    return fails ? kv_fail(error, KV_FATAL, "the test lets it fail") : KV_OK;
}

static void permit(uint32_t layer_count)
{
    pthread_mutex_lock(&device.lock);
    device.permitted = layer_count;
    pthread_cond_broadcast(&device.changed);
    pthread_mutex_unlock(&device.lock);
}

static void permit_moves(uint32_t count)
{
    pthread_mutex_lock(&device.lock);
    device.permitted_moves = count;
    pthread_cond_broadcast(&device.changed);
    pthread_mutex_unlock(&device.lock);
}

static uint32_t moves_in(void)
{
    pthread_mutex_lock(&device.lock);
    uint32_t count = device.moves_in;
    pthread_mutex_unlock(&device.lock);
    return count;
}

/* ---- a request whose layers come ---- */

typedef struct {
    outcome_t prepared;
    uint32_t layers;
    uint32_t calls_before_prepared;
    kv_status_t status; /* of layers */
} heard_t;

static void note_layers(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count)
{
    heard_t *heard = context;
    (void)lease;
    heard->calls_before_prepared += !heard->prepared.ended;
    assert_true(layer_count >= heard->layers && layer_count <= LAYERS);
    heard->layers = layer_count;
    heard->status = status;
}

static void note_early(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    note_prepared(&((heard_t *)context)->prepared, lease, status, match);
}

static const kv_object_t *object_at(const bench_t *bench, uint32_t context, uint32_t block)
{
    kvist_key_t key = block_key(bench, context, block);
    uint32_t number = kv_table_find(bench->store->table, &key);
    assert_int_not_equal(number, KV_OBJECT_NONE);
    return kv_table_at(bench->store->table, number);
}

/* Context 0 is in host memory alone (and on disk, where there is one). */
static void begin(bench_t *bench, const char *name, bool disk)
{
    bench_init(bench, name, SLOTS);
    bench_with_large_blocks(bench);
    bench_with_host(bench, 64);
    if (disk) {
        bench_with_disk(bench, 8);
    }
    bench->ops.move_start = move_start;
    bench->ops.move_poll = move_wait;
    bench->ops.move_wait = move_wait;
    bench->seams.layer_step_bytes = 1; /* a layer at a time */
    device.layer_bytes = block_bytes(bench) / LAYERS;
    device.failing_layer = device.bent_layer = LAYERS;
    permit(LAYERS);
    permit_moves(UINT32_MAX);
    bench_open(bench);
    request_context(bench, 0, BLOCKS);
    request_context(bench, 1, SLOTS);
    request_context(bench, 2, SLOTS);
    if (disk) {
        assert_int_equal(flush(bench), KV_OK);
    }
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_int_equal(object_at(bench, 0, block)->device_slot, KV_SLOT_NONE);
        assert_true(kv_object_on_host(object_at(bench, 0, block)));
    }
    permit(0);
    device.moves_in = 0;
}

static kvist_lease_t *ask(bench_t *bench, heard_t *heard)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    make_tokens(0, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *lease = match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    *heard = (heard_t){.status = KV_OK};
    assert_int_equal(kvist_lease_prepare_layers(lease, SLOTS,
                         kv_clock_now_ns() + 200ull * KV_NS_PER_S, note_early, note_layers, heard),
        KV_OK);
    return lease;
}

static kvist_lease_t *ask_and_wait(bench_t *bench, heard_t *heard)
{
    kvist_lease_t *lease = ask(bench, heard);
    wait_for(bench, &heard->prepared);
    assert_int_equal(heard->prepared.status, KV_OK);
    return lease;
}

static void wait_for_layers(bench_t *bench, const heard_t *heard, uint32_t layer_count)
{
    uint64_t end_ns = patience_ns();
    while (heard->layers < layer_count && heard->status == KV_OK) {
        bench_wait(bench, end_ns);
    }
}

static void wait_for_failure(bench_t *bench, const heard_t *heard)
{
    uint64_t end_ns = patience_ns();
    while (heard->status == KV_OK) {
        bench_wait(bench, end_ns);
    }
}

/* All that was asked of the device has ended, and nothing is held any more. */
static void settle(bench_t *bench)
{
    uint64_t end_ns = patience_ns();
    permit(LAYERS);
    permit_moves(UINT32_MAX);
    while (bench->store->lease_count > 0) {
        bench_wait(bench, end_ns);
    }
    const kv_pool_t *pool = &bench->store->device_pool;
    assert_int_equal(pool->free_count + pool->object_count, SLOTS);
    check_accounts(bench);
}

static bool layer_is_there(
    const bench_t *bench, const kvist_lease_t *lease, uint32_t block, uint32_t layer)
{
    char *expected = malloc(block_bytes(bench));
    kvist_key_t key = block_key(bench, 0, block);
    fill_block(&key, expected, block_bytes(bench));
    bool there =
        memcmp(expected + layer * device.layer_bytes,
            slot_bytes(bench, kvist_lease_slots(lease)[block]) + layer * device.layer_bytes,
            device.layer_bytes) == 0;
    free(expected);
    return there;
}

/* Just the first layer_count layers of every block. */
static void check_layers(const bench_t *bench, const kvist_lease_t *lease, uint32_t layer_count)
{
    for (uint32_t block = 0; block < BLOCKS; block++) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            assert_int_equal(layer_is_there(bench, lease, block, layer), layer < layer_count);
        }
    }
}

/* ---- what is to be shown ---- */

static void a_lease_is_ready_before_its_last_layer(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "early", false);
    kvist_lease_t *lease = ask_and_wait(&bench, &heard);
    assert_int_equal(heard.prepared.match.block_count, BLOCKS);
    assert_int_equal(kvist_lease_sealed_count(lease), BLOCKS);
    assert_int_equal(heard.layers, 0);
    uint32_t tokens[BLOCK_TOKENS] = {1};
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        assert_true(kvist_lease_is_loading(lease));
        assert_int_equal(kvist_lease_seal(lease, tokens, NULL, "test"), KV_INVALID);
        check_layers(&bench, lease, layer);
        permit(layer + 1);
        wait_for_layers(&bench, &heard, layer + 1);
        assert_int_equal(heard.layers, layer + 1);
    }
    assert_int_equal(heard.status, KV_OK);
    assert_int_equal(heard.calls_before_prepared, 0);
    assert_int_equal(moves_in(), LAYERS); /* of all blocks together */
    assert_false(kvist_lease_is_loading(lease));
    check_layers(&bench, lease, LAYERS);
    assert_int_equal(kvist_lease_seal(lease, tokens, NULL, "test"), KV_OK);
    kvist_lease_release(lease);
    settle(&bench);
    assert_int_equal(request_context(&bench, 0, BLOCKS).tier_blocks[KVIST_TIER_DEVICE], BLOCKS);
    bench_end(&bench);
}

/* Others that want the same blocks are not told before all of them are there. */
static void others_wait_for_all_of_it(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "others", false);
    kvist_lease_t *lease = ask_and_wait(&bench, &heard);
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_match_t match;
    outcome_t whole = {0};
    make_tokens(0, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kvist_lease_t *waiting = match_tokens(&bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    assert_int_equal(kvist_lease_prepare(waiting, BLOCKS, kv_clock_now_ns() + 200ull * KV_NS_PER_S,
                         note_prepared, &whole),
        KV_OK);
    permit(LAYERS - 1);
    wait_for_layers(&bench, &heard, LAYERS - 1);
    assert_false(whole.ended);
    permit(LAYERS);
    wait_for(&bench, &whole);
    assert_int_equal(whole.status, KV_OK);
    check_layers(&bench, waiting, LAYERS);
    kvist_lease_release(lease);
    kvist_lease_release(waiting);
    settle(&bench);
    bench_end(&bench);
}

/* The bytes of a later layer are damaged in host memory: its owner learns of it and keeps the slots
 * to itself until it lets go; nobody is given that block again, but from the disk, if there is one.
 */
static void a_damaged_layer_is_told(void **state)
{
    (void)state;
    for (int disk = 0; disk < 2; disk++) {
        bench_t bench;
        heard_t heard;
        begin(&bench, "damaged", disk == 1);
        const kv_object_t *object = object_at(&bench, 0, 3);
        kv_group_host_bytes(&bench.store->groups[0], object->host_slot)[2 * device.layer_bytes] ^=
            1;
        kvist_lease_t *lease = ask_and_wait(&bench, &heard);
        permit(LAYERS);
        wait_for_failure(&bench, &heard);
        assert_int_equal(heard.status, KV_CORRUPT);
        /* Until the last move is through, and then until the release. */
        uint64_t end_ns = patience_ns();
        while (moves_in() < LAYERS || bench.store->tasks_out > 0) {
            bench_wait(&bench, end_ns);
        }
        assert_true(kvist_lease_is_loading(lease));
        assert_int_equal(
            kvist_lease_seal(lease, (uint32_t[BLOCK_TOKENS]){1}, NULL, "test"), KV_INVALID);
        assert_int_equal(bench.store->device_pool.free_count, 0);
        kvist_lease_release(lease);
        settle(&bench);
        assert_int_equal(found_blocks(&bench, 0, BLOCKS), disk == 1 ? BLOCKS : 3);
        assert_int_equal(request_context(&bench, 0, BLOCKS).block_count, disk == 1 ? BLOCKS : 3);
        bench_end(&bench);
    }
}

/* Damaged on the way, or the device fails: nothing is forgotten. */
static void what_the_device_spoils_stays_stored(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        bench_t bench;
        heard_t heard;
        begin(&bench, "spoilt", false);
        *(fails == 1 ? &device.failing_layer : &device.bent_layer) = 2;
        kvist_lease_t *lease = ask_and_wait(&bench, &heard);
        permit(2);
        wait_for_layers(&bench, &heard, 2);
        check_layers(&bench, lease, 2);
        permit(LAYERS);
        wait_for_failure(&bench, &heard);
        assert_int_equal(heard.status, KV_IO);
        kvist_lease_release(lease);
        settle(&bench);
        device.failing_layer = device.bent_layer = LAYERS;
        assert_int_equal(found_blocks(&bench, 0, BLOCKS), BLOCKS);
        assert_int_equal(request_context(&bench, 0, BLOCKS).block_count, BLOCKS);
        bench_end(&bench);
    }
}

/* What fails before anybody was told ends the match there, as ever: a block on disk has to come
 * first, and meanwhile a layer of the others proves damaged. */
static void a_failure_before_the_answer_shortens_the_match(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "before", true);
    kvist_key_t last = block_key(&bench, 0, BLOCKS - 1);
    uint32_t number = kv_table_find(bench.store->table, &last);
    kv_object_leave_host(bench.store, number);
    damage_record(&bench, 0, BLOCKS - 1, 5000);
    kvist_lease_t *lease = ask(&bench, &heard);
    permit(LAYERS);
    wait_for(&bench, &heard.prepared);
    assert_int_equal(heard.prepared.status, KV_OK);
    assert_int_equal(heard.prepared.match.block_count, BLOCKS - 1);
    assert_int_equal(heard.prepared.match.miss, KVIST_MISS_DAMAGED);
    assert_false(kvist_lease_is_loading(lease));
    kvist_lease_release(lease);
    settle(&bench);
    bench_end(&bench);
}

/* Released at any time: before it is told, between two layers, after the last; and dropped. */
static void a_release_at_any_time_leaves_nothing_behind(void **state)
{
    (void)state;
    for (uint32_t layer_count = 0; layer_count <= LAYERS + 1; layer_count++) {
        bench_t bench;
        heard_t heard;
        begin(&bench, "release", false);
        kvist_lease_t *lease;
        if (layer_count > LAYERS) { /* at once */
            lease = ask(&bench, &heard);
        } else {
            lease = ask_and_wait(&bench, &heard);
            permit(layer_count);
            wait_for_layers(&bench, &heard, layer_count);
        }
        kvist_lease_release(lease);
        uint32_t heard_layers = heard.layers;
        settle(&bench);
        assert_int_equal(heard.layers, heard_layers); /* never after the release */
        assert_true(heard.prepared.ended);
        assert_int_equal(heard.prepared.status, layer_count > LAYERS ? KV_CANCELLED : KV_OK);
        assert_int_equal(request_context(&bench, 0, BLOCKS).block_count, BLOCKS);
        bench_end(&bench);
    }
}

static void a_block_that_is_dropped_meanwhile_ends_it(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "dropped", false);
    kvist_lease_t *lease = ask_and_wait(&bench, &heard);
    outcome_t dropped = {0};
    kvist_key_t key = block_key(&bench, 0, 2);
    assert_int_equal(kvist_store_drop(bench.store, &key, false, note_dropped, &dropped), KV_OK);
    permit(LAYERS);
    wait_for_failure(&bench, &heard);
    kvist_lease_release(lease);
    settle(&bench);
    wait_for(&bench, &dropped);
    assert_int_equal(found_blocks(&bench, 0, BLOCKS), 2);
    bench_end(&bench);
}

/* Somebody else finds the copy in host memory damaged and lets it go: what is read there from then
 * on may be another block's, with checksums that fit it. */
static void a_copy_that_goes_meanwhile_ends_it(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "gone", true);
    kvist_lease_t *lease = ask_and_wait(&bench, &heard);
    permit(1);
    wait_for_layers(&bench, &heard, 1);
    kvist_key_t key = block_key(&bench, 0, 2);
    kv_object_forget_copy(bench.store, kv_table_find(bench.store->table, &key), KVIST_TIER_HOST);
    permit(LAYERS);
    wait_for_failure(&bench, &heard);
    assert_int_equal(heard.status, KV_IO);
    kvist_lease_release(lease);
    settle(&bench);
    assert_int_equal(request_context(&bench, 0, BLOCKS).block_count, BLOCKS); /* from disk */
    bench_end(&bench);
}

/* The block's copy on disk is read, and comes to host memory meanwhile by somebody else's load. */
static void put_on_host(bench_t *bench, uint32_t block)
{
    kvist_key_t key = block_key(bench, 0, block);
    kv_store_group_t *group = &bench->store->groups[0];
    const uint32_t slot = kv_pool_take(&group->host_pool);
    assert_int_not_equal(slot, KV_SLOT_NONE);
    fill_block(&key, kv_group_host_bytes(group, slot), block_bytes(bench));
    kv_layout_unit_checksums(&group->layout, kv_group_host_bytes(group, slot),
        kv_pool_checksums(&group->host_pool, slot));
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    make_tokens(0, 0, tokens, BLOCKS * BLOCK_TOKENS);
    kv_identity_words(tokens + (size_t)block * BLOCK_TOKENS, NULL, 1, BLOCK_TOKENS,
        kv_pool_words(&group->host_pool, slot));
    kv_object_enter_host(bench->store, kv_table_find(bench->store->table, &key), slot);
}

/* Layers came, but not early, since a block on disk had to come too; that proves damaged and is
 * loaded again, by layers: those of the first time say nothing of it. */
static void what_is_loaded_again_begins_at_its_first_layer(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "again", true);
    kvist_key_t last = block_key(&bench, 0, BLOCKS - 1);
    kv_object_leave_host(bench.store, kv_table_find(bench.store->table, &last));
    damage_record(&bench, 0, BLOCKS - 1, 5000);
    kvist_lease_t *lease = ask(&bench, &heard);
    permit(LAYERS - 1);
    uint64_t end_ns = patience_ns();
    while (moves_in() < LAYERS + 1) { /* the block's, and the others' last layer, wait */
        bench_wait(&bench, end_ns);
    }
    put_on_host(&bench, BLOCKS - 1);
    permit_moves(LAYERS + 1);
    permit(LAYERS);
    wait_for(&bench, &heard.prepared);
    assert_int_equal(heard.prepared.status, KV_OK);
    assert_int_equal(heard.prepared.match.block_count, BLOCKS);
    assert_true(kvist_lease_is_loading(lease));
    assert_int_equal(heard.layers, 0);
    assert_false(layer_is_there(&bench, lease, BLOCKS - 1, 0));
    permit_moves(UINT32_MAX);
    wait_for_layers(&bench, &heard, LAYERS);
    assert_int_equal(heard.status, KV_OK);
    check_layers(&bench, lease, LAYERS);
    kvist_lease_release(lease);
    settle(&bench);
    bench_end(&bench);
}

/* A device whose memory is this process's own: the lease is ready when all is there, as ever. */
static void a_device_that_does_not_move_gains_nothing(void **state)
{
    bench_t bench;
    heard_t heard;
    (void)state;
    begin(&bench, "whole", false);
    bench.ops.move_start = NULL;
    kvist_lease_t *lease = ask_and_wait(&bench, &heard);
    assert_false(kvist_lease_is_loading(lease));
    assert_int_equal(heard.layers, 0);
    check_layers(&bench, lease, LAYERS);
    kvist_lease_release(lease);
    settle(&bench);
    bench_end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lease_is_ready_before_its_last_layer),
        cmocka_unit_test(others_wait_for_all_of_it),
        cmocka_unit_test(a_damaged_layer_is_told),
        cmocka_unit_test(what_the_device_spoils_stays_stored),
        cmocka_unit_test(a_failure_before_the_answer_shortens_the_match),
        cmocka_unit_test(a_release_at_any_time_leaves_nothing_behind),
        cmocka_unit_test(a_block_that_is_dropped_meanwhile_ends_it),
        cmocka_unit_test(a_copy_that_goes_meanwhile_ends_it),
        cmocka_unit_test(what_is_loaded_again_begins_at_its_first_layer),
        cmocka_unit_test(a_device_that_does_not_move_gains_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
