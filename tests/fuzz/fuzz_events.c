/* KV events as a peer sends them: batches to a reader and the map behind it, subscriptions to a
 * log. The harness gives some batches the instance and the number that fit, which an input would
 * hardly guess. What is refused changes nothing; the map keeps to its bound. */
#include "cluster/events_log.h"
#include "cluster/events_reader.h"
#include "cluster/holdings.h"
#include "fuzz.h"

enum { MESSAGES_MAX = 16, CAPACITY = 64, HOLDER = 7 };

typedef struct {
    kv_holdings_t *holdings;
    size_t told;
} map_t;

static void cleared(void *context)
{
    map_t *map = context;
    kv_holdings_forget(map->holdings, HOLDER);
    map->told++;
}

static void changed(void *context, const kv_event_t *event)
{
    map_t *map = context;
    FUZZ_CHECK(event->key_count >= 1 && event->key_count <= KV_EVENT_KEYS_MAX);
    map->told++;
    if (event->stored) {
        FUZZ_CHECK(event->first_block + event->key_count <= KV_EVENT_POSITION_MAX);
        kv_holdings_stored(map->holdings, HOLDER, event->keys, event->key_count, event->tier);
    } else {
        kv_holdings_removed(map->holdings, HOLDER, event->keys, event->key_count, event->tier);
    }
    FUZZ_CHECK(kv_holdings_count(map->holdings) <= CAPACITY);
    kv_holding_t holding;
    kv_holdings_find(map->holdings, event->keys, event->key_count, &holding, 1);
}

static void take_batch(
    kv_events_reader_t *reader, map_t *map, const uint8_t *bytes, size_t count, bool fits)
{
    Kvist__Events__Batch *batch = kvist__events__batch__unpack(NULL, count, bytes);
    if (batch == NULL) {
        return;
    }
    if (fits && batch->instance.len == KV_EVENT_INSTANCE_BYTES) {
        memcpy(batch->instance.data, reader->instance, KV_EVENT_INSTANCE_BYTES);
        batch->first_sequence = reader->next_sequence;
    }
    const kv_events_sink_t sink = {map, cleared, changed};
    kv_events_reader_t before = *reader;
    kv_error_t error = {0};
    size_t taken;
    map->told = 0;
    kv_status_t status = kv_events_reader_take(reader, batch, &sink, &taken, &error);
    FUZZ_CHECK(status == KV_OK || error.text[0] != '\0');
    FUZZ_CHECK(map->told <= taken);
    FUZZ_CHECK(status == KV_OK || taken == 0);
    FUZZ_CHECK(status != KV_INVALID || memcmp(&before, reader, sizeof before) == 0);
    if (status == KV_MISSING) {
        Kvist__Events__Subscribe message;
        kv_events_reader_subscribe(reader, &message);
        FUZZ_CHECK((message.instance.len == 0) == (message.next_sequence == 0));
    }
    kvist__events__batch__free_unpacked(batch, NULL);
}

static void take_subscription(
    const kv_events_log_t *log, const uint8_t *bytes, size_t count, bool fits)
{
    Kvist__Events__Subscribe *message = kvist__events__subscribe__unpack(NULL, count, bytes);
    kv_events_place_t place;
    kv_error_t error = {0};
    if (message == NULL) {
        return;
    }
    if (fits && message->instance.len == KV_EVENT_INSTANCE_BYTES) {
        memcpy(message->instance.data, kv_events_log_instance(log), KV_EVENT_INSTANCE_BYTES);
    }
    kv_status_t status = kv_events_log_subscribe(log, message, &place, &error);
    FUZZ_CHECK(status == KV_OK || error.text[0] != '\0');
    FUZZ_CHECK(status != KV_OK || place.snapshot ||
               place.next_sequence <= kv_events_log_next_sequence(log));
    kvist__events__subscribe__free_unpacked(message, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_input_t input = {bytes, count};
    kv_events_reader_t reader = {0};
    kv_events_log_params_t params = {.node = "fuzz", .log_bytes = KV_EVENTS_LOG_BYTES_MIN};
    kv_events_log_t *log = kv_events_log_create(&params);
    map_t map = {kv_holdings_create(CAPACITY), 0};
    for (int i = 0; i < MESSAGES_MAX && input.count > 0; i++) {
        uint8_t how = fuzz_u8(&input);
        size_t held;
        uint8_t *message = fuzz_take(&input, fuzz_u16(&input), &held);
        if ((how & 1) == 0) {
            take_batch(&reader, &map, message, held, (how & 2) != 0);
        } else {
            take_subscription(log, message, held, (how & 2) != 0);
        }
        free(message);
    }
    kv_holdings_destroy(map.holdings);
    kv_events_log_destroy(log);
    return 0;
}
