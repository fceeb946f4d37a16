/* The events log and its readers: whatever is lost, doubled, late, slow or restarted, a reader that
 * has caught up knows what the store holds. And what is malformed is refused. */
#include "cluster/events_log.h"
#include "cluster/events_reader.h"

#include "testing/testing.h"

#include <stdlib.h>
#include <string.h>

enum {
    CHAINS = 24,
    BLOCKS = 16,
    TIERS = 3,
    READERS = 4,
    IN_FLIGHT_MAX = 64,
    HELD_AT_ONCE = 40,
};

/* ---- a store: what each tier holds ---- */

typedef bool tiers_t[CHAINS][BLOCKS][TIERS];

static const uint8_t NAME_SPACE[KV_EVENT_KEY_BYTES] = {7};

static void key_of(uint32_t chain, uint32_t block, uint8_t *key_out)
{
    memset(key_out, 0, KV_EVENT_KEY_BYTES);
    key_out[0] = (uint8_t)chain;
    key_out[1] = (uint8_t)block;
}

static void make_event(uint32_t chain, uint32_t first, uint32_t count, unsigned tier, bool stored,
    uint8_t *keys, uint8_t *parent, kv_event_t *event_out)
{
    for (uint32_t i = 0; i < count; i++) {
        key_of(chain, first + i, keys + (size_t)i * KV_EVENT_KEY_BYTES);
    }
    if (first > 0) {
        key_of(chain, first - 1, parent);
    } else {
        memcpy(parent, NAME_SPACE, KV_EVENT_KEY_BYTES);
    }
    *event_out = (kv_event_t){(Kvist__Events__Tier)tier, stored, 0, count, keys, first,
        stored ? NAME_SPACE : NULL, stored ? parent : NULL};
}

static bool held(void *context, uint32_t *cursor, kv_event_visit_t visit, void *visit_context)
{
    const tiers_t *tiers = context;
    for (int looked = 0; looked < HELD_AT_ONCE && *cursor < CHAINS * BLOCKS; looked++, ++*cursor) {
        uint32_t chain = *cursor / BLOCKS, block = *cursor % BLOCKS;
        for (unsigned tier = 0; tier < TIERS; tier++) {
            uint8_t key[KV_EVENT_KEY_BYTES], parent[KV_EVENT_KEY_BYTES];
            kv_event_t event;
            if ((*tiers)[chain][block][tier]) {
                make_event(chain, block, 1, tier, true, key, parent, &event);
                visit(visit_context, &event);
            }
        }
    }
    return *cursor < CHAINS * BLOCKS;
}

/* ---- the world ---- */

typedef struct {
    uint8_t *bytes;
    size_t count;
} packed_t;

typedef struct {
    kv_events_reader_t reader;
    kv_events_place_t place; /* the node's side */
    tiers_t known;
    packed_t in_flight[IN_FLIGHT_MAX];
    size_t in_flight_count;
    packed_t wanted; /* a subscription under way; bytes NULL: none */
    uint32_t gaps, snapshots;
} follower_t;

typedef struct {
    kv_events_log_t *log;
    tiers_t tiers;
    follower_t followers[READERS];
    uint64_t random;
    bool faulty;
} world_t;

static world_t world;

static uint32_t dice(uint32_t sides)
{
    return (uint32_t)(kv_test_random(&world.random) % sides);
}

static void cleared(void *context)
{
    follower_t *follower = context;
    memset(follower->known, 0, sizeof follower->known);
    follower->snapshots++;
}

static void heard(void *context, const kv_event_t *event)
{
    follower_t *follower = context;
    for (uint32_t i = 0; i < event->key_count; i++) {
        const uint8_t *key = event->keys + (size_t)i * KV_EVENT_KEY_BYTES;
        assert_true(key[0] < CHAINS && key[1] < BLOCKS);
        follower->known[key[0]][key[1]][event->tier] = event->stored;
        if (event->stored) {
            assert_int_equal(key[1], event->first_block + i);
            assert_memory_equal(event->name_space, NAME_SPACE, KV_EVENT_KEY_BYTES);
            assert_int_equal(event->parent[0], event->first_block > 0 ? key[0] : NAME_SPACE[0]);
        }
    }
}

static void open_log(size_t bytes)
{
    kv_events_log_destroy(world.log);
    kv_events_log_params_t params = {"test", bytes, held, &world.tiers};
    world.log = kv_events_log_create(&params);
}

static void subscribe(follower_t *follower)
{
    Kvist__Events__Subscribe message;
    kv_events_reader_subscribe(&follower->reader, &message);
    free(follower->wanted.bytes);
    follower->wanted.count = kvist__events__subscribe__get_packed_size(&message);
    follower->wanted.bytes = malloc(follower->wanted.count + 1);
    kvist__events__subscribe__pack(&message, follower->wanted.bytes);
}

static void accept_subscription(follower_t *follower)
{
    if (follower->wanted.bytes == NULL) {
        return;
    }
    Kvist__Events__Subscribe *message =
        kvist__events__subscribe__unpack(NULL, follower->wanted.count, follower->wanted.bytes);
    kv_error_t error;
    assert_int_equal(kv_events_log_subscribe(world.log, message, &follower->place, &error), KV_OK);
    kvist__events__subscribe__free_unpacked(message, NULL);
    free(follower->wanted.bytes);
    follower->wanted.bytes = NULL;
}

static void push(follower_t *follower, const Kvist__Events__Batch *batch)
{
    packed_t *packed = &follower->in_flight[follower->in_flight_count++];
    packed->count = kvist__events__batch__get_packed_size(batch);
    packed->bytes = malloc(packed->count + 1);
    kvist__events__batch__pack(batch, packed->bytes);
}

static void send_next(follower_t *follower)
{
    if (follower->in_flight_count + 2 > IN_FLIGHT_MAX) {
        return; /* it is slow */
    }
    bool some = kv_events_log_has(world.log, &follower->place);
    const Kvist__Events__Batch *batch = kv_events_log_take(world.log, &follower->place);
    assert_int_equal(batch != NULL, some);
    if (batch == NULL) {
        return;
    }
    /* Batches of the sequence may be lost or doubled; what answers a subscription may not. */
    bool spared = batch->part != KVIST__EVENTS__PART__PART_NONE || follower->reader.asked;
    uint32_t fate = world.faulty && !spared ? dice(20) : 19;
    if (fate > 0) {
        push(follower, batch);
    }
    if (fate == 1) {
        push(follower, batch);
    }
}

static void deliver(follower_t *follower)
{
    if (follower->in_flight_count == 0) {
        return;
    }
    packed_t packed = follower->in_flight[0];
    memmove(
        follower->in_flight, follower->in_flight + 1, --follower->in_flight_count * sizeof packed);
    Kvist__Events__Batch *batch = kvist__events__batch__unpack(NULL, packed.count, packed.bytes);
    kv_events_sink_t sink = {follower, cleared, heard};
    kv_error_t error;
    size_t count;
    kv_status_t status = kv_events_reader_take(&follower->reader, batch, &sink, &count, &error);
    assert_true(status == KV_OK || status == KV_MISSING);
    if (status == KV_MISSING) {
        follower->gaps++;
        subscribe(follower);
    }
    kvist__events__batch__free_unpacked(batch, NULL);
    free(packed.bytes);
}

static void change(void)
{
    uint32_t chain = dice(CHAINS), first = dice(BLOCKS), count = 1 + dice(BLOCKS - first);
    unsigned tier = dice(TIERS);
    bool stored = dice(2) == 0;
    for (uint32_t block = first; block < first + count; block++) {
        world.tiers[chain][block][tier] = stored;
    }
    uint8_t keys[BLOCKS * KV_EVENT_KEY_BYTES], parent[KV_EVENT_KEY_BYTES];
    kv_event_t event;
    make_event(chain, first, count, tier, stored, keys, parent, &event);
    kv_events_log_add(world.log, &event);
}

/* The connection ended: what was under way is gone, the reader subscribes from where it is. */
static void reconnect(follower_t *follower)
{
    while (follower->in_flight_count > 0) {
        free(follower->in_flight[--follower->in_flight_count].bytes);
    }
    subscribe(follower);
    accept_subscription(follower);
}

static void restart(size_t log_bytes)
{
    open_log(log_bytes);
    for (int i = 0; i < READERS; i++) {
        reconnect(&world.followers[i]);
    }
}

static void step(size_t log_bytes)
{
    follower_t *follower = &world.followers[dice(READERS)];
    uint32_t choice = dice(1000);
    if (choice < 400) {
        change();
    } else if (choice < 650) {
        send_next(follower);
    } else if (choice < 950) {
        deliver(follower == &world.followers[0] && dice(4) > 0 ? &world.followers[1] : follower);
    } else if (choice < 995) {
        accept_subscription(follower);
    } else if (choice < 999) {
        reconnect(follower);
    } else {
        restart(log_bytes);
    }
}

static void catch_up(void)
{
    world.faulty = false;
    change(); /* whatever was lost before it shows */
    for (int i = 0; i < READERS; i++) {
        follower_t *follower = &world.followers[i];
        do {
            accept_subscription(follower);
            send_next(follower);
            deliver(follower);
        } while (follower->wanted.bytes != NULL || follower->in_flight_count > 0 ||
                 kv_events_log_has(world.log, &follower->place));
        assert_true(follower->reader.whole);
        assert_memory_equal(follower->known, world.tiers, sizeof world.tiers);
    }
    world.faulty = true;
}

static void follow(uint64_t seed, size_t log_bytes)
{
    memset(&world, 0, sizeof world);
    world.random = seed;
    world.faulty = true;
    restart(log_bytes);
    uint32_t gaps = 0, snapshots = 0;
    for (int round = 0; round < (kv_test_long() ? 400 : 40); round++) {
        for (int i = 0; i < 2000; i++) {
            step(log_bytes);
        }
        catch_up();
    }
    for (int i = 0; i < READERS; i++) {
        reconnect(&world.followers[i]);
        gaps += world.followers[i].gaps;
        snapshots += world.followers[i].snapshots;
    }
    print_message("log of %zu bytes: %u gaps, %u snapshots\n", log_bytes, gaps, snapshots);
    assert_true(gaps > 0 && snapshots > READERS);
    kv_events_log_destroy(world.log);
    world.log = NULL;
}

static void readers_that_caught_up_know_what_is_held(void **state)
{
    (void)state;
    uint64_t seed = kv_test_seed();
    print_message("seed %ju (KVIST_SEED replays it)\n", (uintmax_t)seed);
    follow(seed, KV_EVENTS_LOG_BYTES_MIN); /* some fall behind */
    follow(seed + 1, 16 << 20);
}

/* ---- replay ---- */

static void a_reader_goes_on_where_it_was(void **state)
{
    (void)state;
    memset(&world, 0, sizeof world);
    open_log(KV_EVENTS_LOG_BYTES_MIN);
    for (int i = 0; i < 10; i++) {
        change();
    }
    kv_error_t error;
    kv_events_place_t place;
    Kvist__Events__Subscribe message = KVIST__EVENTS__SUBSCRIBE__INIT;
    message.instance = (ProtobufCBinaryData){
        KV_EVENT_INSTANCE_BYTES, (uint8_t *)(uintptr_t)kv_events_log_instance(world.log)};
    message.next_sequence = 4;
    assert_int_equal(kv_events_log_subscribe(world.log, &message, &place, &error), KV_OK);
    const Kvist__Events__Batch *batch = kv_events_log_take(world.log, &place);
    assert_int_equal(batch->part, KVIST__EVENTS__PART__PART_NONE);
    assert_int_equal(batch->first_sequence, 4);
    assert_int_equal(batch->n_events, 7);
    assert_null(kv_events_log_take(world.log, &place));
    message.next_sequence = 12; /* of no event yet, nor the next one */
    assert_int_equal(kv_events_log_subscribe(world.log, &message, &place, &error), KV_OK);
    assert_int_equal(kv_events_log_take(world.log, &place)->part, KVIST__EVENTS__PART__PART_FIRST);
    message.next_sequence = 0;
    assert_int_equal(kv_events_log_subscribe(world.log, &message, &place, &error), KV_INVALID);
    message.instance.len = 3;
    assert_int_equal(kv_events_log_subscribe(world.log, &message, &place, &error), KV_INVALID);
    kv_events_log_destroy(world.log);
    world.log = NULL;
}

/* ---- malformed ---- */

typedef struct {
    uint8_t instance[KV_EVENT_INSTANCE_BYTES], keys[2 * KV_EVENT_KEY_BYTES];
    Kvist__Events__Cleared cleared;
    Kvist__Events__Stored stored;
    Kvist__Events__Removed removed;
    Kvist__Events__Event events[2];
    Kvist__Events__Event *pointers[2];
    Kvist__Events__Batch batch;
} sample_t;

/* A whole snapshot of one event. */
static void make_sample(sample_t *sample)
{
    memset(sample, 0, sizeof *sample);
    kvist__events__cleared__init(&sample->cleared);
    kvist__events__stored__init(&sample->stored);
    kvist__events__removed__init(&sample->removed);
    kvist__events__batch__init(&sample->batch);
    sample->stored.keys = (ProtobufCBinaryData){sizeof sample->keys, sample->keys};
    sample->stored.parent = sample->stored.name_space =
        (ProtobufCBinaryData){KV_EVENT_KEY_BYTES, sample->keys};
    sample->removed.keys = sample->stored.keys;
    for (int i = 0; i < 2; i++) {
        kvist__events__event__init(&sample->events[i]);
        sample->pointers[i] = &sample->events[i];
    }
    sample->events[0].body_case = KVIST__EVENTS__EVENT__BODY_CLEARED;
    sample->events[0].cleared = &sample->cleared;
    sample->events[1].body_case = KVIST__EVENTS__EVENT__BODY_STORED;
    sample->events[1].stored = &sample->stored;
    sample->batch.instance = (ProtobufCBinaryData){KV_EVENT_INSTANCE_BYTES, sample->instance};
    sample->batch.node = "n";
    sample->batch.first_sequence = 5;
    sample->batch.events = sample->pointers;
    sample->batch.n_events = 2;
    sample->batch.part = KVIST__EVENTS__PART__PART_ONLY;
}

static uint32_t applied;

static void note_cleared(void *context)
{
    (void)context;
    applied++;
}

static void note_event(void *context, const kv_event_t *event)
{
    (void)context;
    (void)event;
    applied++;
}

static kv_status_t take(const sample_t *sample, kv_error_t *error)
{
    kv_events_reader_t reader = {0};
    kv_events_sink_t sink = {NULL, note_cleared, note_event};
    size_t count;
    applied = 0;
    return kv_events_reader_take(&reader, &sample->batch, &sink, &count, error);
}

static void refuse(const sample_t *sample, const char *field)
{
    kv_error_t error = {0};
    assert_int_equal(take(sample, &error), KV_INVALID);
    assert_int_equal(applied, 0); /* nothing of a bad batch is believed */
    if (strstr(error.text, field) == NULL) {
        fail_msg("'%s' does not name %s", error.text, field);
    }
}

#define REFUSE(field_name, ...)                                                                    \
    do {                                                                                           \
        make_sample(&sample);                                                                      \
        __VA_ARGS__;                                                                               \
        refuse(&sample, field_name);                                                               \
    } while (0)

static void malformed_batches_are_refused(void **state)
{
    (void)state;
    sample_t sample;
    kv_error_t error;
    make_sample(&sample);
    assert_int_equal(take(&sample, &error), KV_OK);
    assert_int_equal(applied, 2);
    REFUSE("keys", sample.stored.keys.len = 33);
    REFUSE("keys", sample.stored.keys.len = 0);
    REFUSE("keys", sample.stored.keys.len = (KV_EVENT_KEYS_MAX + 1) * KV_EVENT_KEY_BYTES);
    REFUSE("first_sequence", sample.batch.first_sequence = 0);
    REFUSE("first_sequence", sample.batch.first_sequence = UINT64_MAX);
    REFUSE("instance", sample.batch.instance.len = 15);
    REFUSE("part", sample.batch.part = (Kvist__Events__Part)9);
    REFUSE("events has 0", sample.batch.n_events = 0);
    REFUSE("name_space", sample.stored.name_space.len = 31);
    REFUSE("parent", sample.stored.parent.len = 0);
    REFUSE("parent", sample.stored.group = 1);
    REFUSE("group", sample.stored.group = KV_EVENT_GROUPS_MAX);
    REFUSE("first_block", sample.stored.first_block = KV_EVENT_POSITION_MAX - 1);
    REFUSE("first_block", sample.stored.first_block = UINT32_MAX);
    REFUSE("cleared", sample.batch.part = KVIST__EVENTS__PART__PART_NEXT);
    REFUSE("cleared", sample.events[0] = sample.events[1]);
    REFUSE("removed", sample.events[1].body_case = KVIST__EVENTS__EVENT__BODY_REMOVED;
           sample.events[1].removed = &sample.removed);
    REFUSE("keys", sample.batch.part = KVIST__EVENTS__PART__PART_NONE;
           sample.events[0] = sample.events[1];
           sample.events[1].body_case = KVIST__EVENTS__EVENT__BODY_REMOVED;
           sample.events[1].removed = &sample.removed; sample.removed.keys.len = 31);
    make_sample(&sample); /* of a newer version: they count, and change nothing */
    sample.stored.tier = (Kvist__Events__Tier)9;
    assert_int_equal(take(&sample, &error), KV_OK);
    assert_int_equal(applied, 1);
    sample.events[1].body_case = KVIST__EVENTS__EVENT__BODY__NOT_SET;
    assert_int_equal(take(&sample, &error), KV_OK);
    assert_int_equal(applied, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_that_caught_up_know_what_is_held),
        cmocka_unit_test(a_reader_goes_on_where_it_was),
        cmocka_unit_test(malformed_batches_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
