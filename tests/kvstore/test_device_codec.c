/* Records that a device packs and unpacks: the same bytes as the host's, read by either; what the
 * device cannot do the host does; and bits that flip between the two are never served. */
#include "harness.h"

#include "kernels/plugin.h"

#include <dlfcn.h>
#include <stdatomic.h>

enum { BLOCKS = 6, CONTEXTS = 3, SLOTS = 8, SEGMENTS = 16 };

/* A store with a GPU's table, or with the plain one; of large blocks, in bf16. */
typedef struct {
    bench_t bench;
    kv_virtual_clock_t clock;
    kv_device_t *gpu;    /* NULL: plain */
    kv_device_t *passed; /* what the store was given */
    size_t arena_bytes;
} place_t;

static kv_device_t *open_gpu(void)
{
    kv_device_t *gpu;
    kv_error_t error = {0};
    if (kv_device_open("simt", 1, &gpu, NULL, &error) != KV_OK) {
        fail_msg("no device: %s", error.text);
    }
    return gpu;
}

static void use_gpu(place_t *place, kv_device_t *passed)
{
    kv_error_t error;
    place->gpu = open_gpu();
    place->passed = passed != NULL ? passed : place->gpu;
    place->arena_bytes = SLOTS * block_bytes(&place->bench);
    free(place->bench.params.device_arena);
    assert_int_equal(place->gpu->ops->allocate(
                         place->gpu, place->arena_bytes, &place->bench.params.device_arena, &error),
        KV_OK);
    place->bench.params.device = place->passed;
}

static void make_place(place_t *place, const char *name, bool gpu)
{
    memset(place, 0, sizeof *place);
    bench_init(&place->bench, name, SLOTS);
    bench_with_large_blocks(&place->bench);
    bench_with_disk(&place->bench, SEGMENTS);
    kv_virtual_clock_init(&place->clock, 1700000000ull * KV_NS_PER_S);
    place->bench.params.clock = &place->clock.clock;
    place->bench.params.codec = KVIST_CODEC_BF16;
    place->bench.params.persist = KVIST_PERSIST_EAGER;
    if (gpu) {
        use_gpu(place, NULL);
    }
}

static void end_place(place_t *place)
{
    if (place->bench.store != NULL) {
        bench_close(&place->bench);
    }
    if (place->gpu != NULL) {
        place->gpu->ops->release(place->gpu, place->bench.params.device_arena, place->arena_bytes);
        place->bench.params.device_arena = NULL;
        kv_device_close(place->gpu);
    }
    bench_end(&place->bench);
}

static void store_contexts(bench_t *bench)
{
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        assert_int_equal(request_context(bench, context, BLOCKS).block_count, 0);
        assert_int_equal(flush(bench), KV_OK);
    }
}

/* All of them are found, in few slots: each is loaded from disk and compared. Returns how many
 * blocks came from there. */
static uint64_t load_contexts(bench_t *bench)
{
    const uint64_t before = bench_stats(bench).tiers[KVIST_TIER_DISK].read_bytes;
    for (uint32_t context = 0; context < CONTEXTS; context++) {
        assert_int_equal(request_context(bench, context, BLOCKS).block_count, BLOCKS);
    }
    return (bench_stats(bench).tiers[KVIST_TIER_DISK].read_bytes - before) / block_bytes(bench);
}

/* ---- the same bytes ---- */

/* The block's record as it lies on disk, signed as of generation 1. Released with free(). */
static char *record_of(const bench_t *bench, uint32_t context, uint32_t block, size_t *bytes_out)
{
    kvist_key_t key = block_key(bench, context, block);
    const kv_object_t *object =
        kv_table_at(bench->store->table, kv_table_find(bench->store->table, &key));
    char path[KV_FOLDER_BYTES + 64];
    kv_segment_path(bench->folder, object->segment, path, sizeof path);
    *bytes_out = (size_t)object->length_pages * KV_PAGE_BYTES;
    char *record = aligned_alloc(KV_PAGE_BYTES, *bytes_out);
    int file = open(path, O_RDONLY);
    assert_int_equal(
        pread(file, record, *bytes_out, (off_t)object->offset_pages * KV_PAGE_BYTES), *bytes_out);
    close(file);
    kv_record_sign(record, 1);
    return record;
}

static void compare_records(const bench_t *a, const bench_t *b, bool *smaller_out)
{
    *smaller_out = true;
    for (uint32_t i = 0; i < CONTEXTS * BLOCKS; i++) {
        size_t a_bytes, b_bytes;
        char *of_a = record_of(a, i / BLOCKS, i % BLOCKS, &a_bytes);
        char *of_b = record_of(b, i / BLOCKS, i % BLOCKS, &b_bytes);
        assert_int_equal(a_bytes, b_bytes);
        assert_memory_equal(of_a, of_b, a_bytes);
        *smaller_out = *smaller_out && a_bytes == LARGE_RECORD_BYTES(KVIST_CODEC_BF16);
        free(of_a);
        free(of_b);
    }
}

static void records_are_the_hosts(void **state)
{
    (void)state;
    place_t gpu, plain;
    bool smaller;
    make_place(&gpu, "gpu", true);
    make_place(&plain, "plain", false);
    bench_open(&gpu.bench);
    bench_open(&plain.bench);
    store_contexts(&gpu.bench);
    store_contexts(&plain.bench);
    compare_records(&gpu.bench, &plain.bench, &smaller);
    assert_true(smaller);
    assert_int_equal(bench_stats(&gpu.bench).device_packed_objects, CONTEXTS * BLOCKS);
    assert_int_equal(bench_stats(&plain.bench).device_packed_objects, 0);
    const uint64_t loaded = load_contexts(&gpu.bench);
    assert_true(loaded >= (CONTEXTS - 1) * BLOCKS);
    assert_int_equal(bench_stats(&gpu.bench).device_unpacked_objects, loaded);
    load_contexts(&plain.bench);
    assert_int_equal(bench_stats(&plain.bench).device_unpacked_objects, 0);
    check_accounts(&gpu.bench);
    end_place(&gpu);
    end_place(&plain);
}

/* Blocks that no codec makes smaller. */
static void fill_randomly(const kvist_key_t *key, char *bytes, size_t count)
{
    uint64_t random;
    memcpy(&random, key->bytes, sizeof random);
    for (size_t i = 0; i < count; i += 8) {
        uint64_t word = kv_test_random(&random);
        memcpy(bytes + i, &word, 8);
    }
}

static void store_random(bench_t *bench)
{
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t keys[BLOCKS];
    kvist_match_t match;
    make_tokens(9, 0, tokens, BLOCKS * BLOCK_TOKENS);
    bench_keys(bench, tokens, BLOCKS * BLOCK_TOKENS, keys);
    kvist_lease_t *lease = match_tokens(bench, tokens, BLOCKS * BLOCK_TOKENS, &match);
    assert_int_equal(prepare(bench, lease, BLOCKS).status, KV_OK);
    const uint32_t *slots = kvist_lease_slots(lease);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        fill_randomly(&keys[i], slot_bytes(bench, slots[i]), block_bytes(bench));
        assert_int_equal(
            kvist_lease_seal(lease, tokens + i * BLOCK_TOKENS, NULL, "test/plain"), KV_OK);
    }
    kvist_lease_release(lease);
    assert_int_equal(flush(bench), KV_OK);
}

static void what_gets_no_smaller_is_the_hosts_too(void **state)
{
    (void)state;
    place_t places[2];
    char *records[2];
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        make_place(&places[i], "random", i == 0);
        bench_open(&places[i].bench);
        store_random(&places[i].bench);
        records[i] = record_of(&places[i].bench, 9, BLOCKS - 1, &bytes[i]);
        assert_int_equal(bytes[i], LARGE_RECORD_BYTES(KVIST_CODEC_NONE));
        assert_int_equal(bench_stats(&places[i].bench).device_packed_objects, 0);
    }
    assert_memory_equal(records[0], records[1], bytes[0]);
    for (int i = 0; i < 2; i++) {
        free(records[i]);
        end_place(&places[i]);
    }
}

/* ---- read by either ---- */

/* What one has written the other one reads: the store of `to` opens the folder of `from`. */
static void hand_over(bool from_gpu, bool encrypted)
{
    place_t from, to;
    char key_file[600];
    kv_error_t error;
    make_place(&from, "handed", from_gpu);
    make_place(&to, "taken", !from_gpu);
    snprintf(key_file, sizeof key_file, "%s.key", from.bench.folder);
    if (encrypted) {
        assert_int_equal(kvist_key_file_new(key_file, &error), KV_OK);
        from.bench.params.key_file = to.bench.params.key_file = key_file;
    }
    bench_open(&from.bench);
    store_contexts(&from.bench);
    load_contexts(&from.bench);
    const kvist_stats_t stored = bench_stats(&from.bench);
    assert_int_equal(stored.device_packed_objects, from_gpu ? CONTEXTS * BLOCKS : 0);
    assert_true((stored.device_unpacked_objects > 0) == from_gpu);
    assert_int_equal(stored.encrypted_objects, encrypted ? CONTEXTS * BLOCKS : 0);
    bench_close(&from.bench);
    to.bench.params.directory = from.bench.folder;
    bench_open(&to.bench);
    const uint64_t loaded = load_contexts(&to.bench);
    assert_int_equal(loaded, CONTEXTS * BLOCKS);
    assert_int_equal(bench_stats(&to.bench).device_unpacked_objects, from_gpu ? 0 : loaded);
    assert_int_equal(bench_stats(&to.bench).damaged_objects, 0);
    end_place(&to);
    end_place(&from);
}

static void either_reads_what_the_other_wrote(void **state)
{
    (void)state;
    hand_over(true, false);
    hand_over(false, false);
    hand_over(true, true);
    hand_over(false, true);
}

/* ---- damage, and devices that fail ---- */

/* A record that was damaged on disk is found out by the device, and judged by the host. */
static void damaged_records_are_forgotten(void **state)
{
    (void)state;
    place_t place;
    make_place(&place, "damaged", true);
    bench_open(&place.bench);
    store_contexts(&place.bench);
    damage_record(&place.bench, 0, 2, KV_PAGE_BYTES + 1000);
    assert_int_equal(request_context(&place.bench, 0, BLOCKS).block_count, 2);
    assert_int_equal(bench_stats(&place.bench).damaged_objects, 1);
    assert_int_equal(flush(&place.bench), KV_OK);
    load_contexts(&place.bench);
    check_accounts(&place.bench);
    end_place(&place);
}

/* A device before the real one, whose codec answers as it is told. */
typedef struct {
    kv_device_t device; /* first */
    kv_device_ops_t ops;
    kv_device_t *behind;
    kv_status_t pack_status, unpack_status;
    bool wrong;                 /* unpacks, and gives something else, of which it tells honestly */
    atomic_uint packs, unpacks; /* by workers */
} liar_t;

static kv_device_t *behind(kv_device_t *device)
{
    return ((liar_t *)device)->behind;
}

static kv_status_t copy_in(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    return behind(device)->ops->copy_in(behind(device), to, from, bytes, error);
}

static kv_status_t copy_out(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    return behind(device)->ops->copy_out(behind(device), to, from, bytes, error);
}

static kv_status_t pack(
    kv_device_t *device, const kv_pack_t *pack, size_t *packed_bytes_out, kv_error_t *error)
{
    liar_t *liar = (liar_t *)device;
    liar->packs++;
    kv_status_t status = liar->behind->ops->pack(liar->behind, pack, packed_bytes_out, error);
    return liar->pack_status != KV_OK ? kv_fail(error, liar->pack_status, "as told") : status;
}

static kv_status_t unpack(kv_device_t *device, const kv_pack_t *pack, kv_error_t *error)
{
    liar_t *liar = (liar_t *)device;
    liar->unpacks++;
    kv_status_t status = liar->behind->ops->unpack(liar->behind, pack, error);
    if (liar->wrong) {
        char *slot = pack->arena + pack->slot * pack->slot_bytes;
        slot[1025] ^= 1;
        pack->checksums[1] ^= 1;
    }
    return liar->unpack_status != KV_OK ? kv_fail(error, liar->unpack_status, "as told") : status;
}

static void check_liar(kv_status_t pack_status, kv_status_t unpack_status, bool wrong)
{
    static liar_t liar;
    place_t place;
    make_place(&place, "liar", false);
    memset(&liar, 0, sizeof liar);
    liar.ops = (kv_device_ops_t){
        .name = "liar", .copy_in = copy_in, .copy_out = copy_out, .pack = pack, .unpack = unpack};
    liar.pack_status = pack_status;
    liar.unpack_status = unpack_status;
    liar.wrong = wrong;
    liar.device.ops = &liar.ops;
    use_gpu(&place, &liar.device);
    liar.behind = place.gpu;
    bench_open(&place.bench);
    store_contexts(&place.bench);
    const uint64_t loaded = load_contexts(&place.bench);
    const kvist_stats_t stats = bench_stats(&place.bench);
    assert_int_equal(liar.packs, CONTEXTS * BLOCKS);
    assert_int_equal(liar.unpacks, loaded);
    assert_int_equal(stats.device_packed_objects, pack_status == KV_OK ? CONTEXTS * BLOCKS : 0);
    assert_int_equal(stats.device_unpacked_objects, unpack_status == KV_OK && !wrong ? loaded : 0);
    assert_int_equal(stats.damaged_objects + stats.failed_reads + stats.failed_writes, 0);
    assert_int_equal(stats.tiers[KVIST_TIER_DISK].used_bytes,
        CONTEXTS * BLOCKS * LARGE_RECORD_BYTES(KVIST_CODEC_BF16));
    end_place(&place);
}

static void the_host_goes_on_where_the_device_fails(void **state)
{
    (void)state;
    check_liar(KV_OK, KV_OK, false);
    check_liar(KV_IO, KV_OK, false);
    check_liar(KV_FATAL, KV_FATAL, false);
    check_liar(KV_OK, KV_CORRUPT, false);
    check_liar(KV_OK, KV_OK, true);
}

/* ---- bits that flip ---- */

static bool (*simt_fail)(const char *name, uint64_t nth, int error);
static size_t (*simt_failures_waiting)(void);

static void find_controls(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/libkvist-simt.so", getenv("KVIST_PLUGINS"));
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    *(void **)&simt_fail = dlsym(library, "kv_simt_fail");
    *(void **)&simt_failures_waiting = dlsym(library, "kv_simt_failures_waiting");
    assert_true(simt_fail != NULL && simt_failures_waiting != NULL);
}

/* Any one copy between the host and the device arrives with a wrong bit: whatever is found is
 * right (request compares it), and the store goes on. */
static void flipped_bits_are_never_served(void **state)
{
    (void)state;
    enum { ROUNDS = 40 };
    place_t place;
    uint32_t happened = 0;
    find_controls();
    make_place(&place, "flipped", true);
    bench_open(&place.bench);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        assert_true(simt_fail("damage", 1 + round, 1));
        request_context(&place.bench, round % 5, BLOCKS);
        flush(&place.bench);
        request_context(&place.bench, (round + 3) % 5, BLOCKS);
        happened += simt_failures_waiting() == 0;
        check_accounts(&place.bench);
    }
    assert_true(happened > ROUNDS / 4);
    end_place(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_the_hosts),
        cmocka_unit_test(what_gets_no_smaller_is_the_hosts_too),
        cmocka_unit_test(either_reads_what_the_other_wrote),
        cmocka_unit_test(damaged_records_are_forgotten),
        cmocka_unit_test(the_host_goes_on_where_the_device_fails),
        cmocka_unit_test(flipped_bits_are_never_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
