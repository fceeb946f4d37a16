/* `kvist events`: what the stores hold, as it changes: a JSON object a line (docs/formats.md, "KV
 * events"). */
#include "base/bytes.h"
#include "base/memory.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEY_BYTES = 32, PAUSE_US = 200000 };

/* Where the command is in one node's sequence: what its last answer said. */
typedef struct {
    uint8_t instance[64];
    size_t instance_bytes;
    uint64_t next_sequence;
    uint32_t snapshot_cursor;
} place_t;

static json_t *hex(const void *bytes, size_t count)
{
    char *text = kv_allocate(2 * count + 1);
    kv_hex_encode(bytes, count, text);
    json_t *value = json_string(text);
    free(text);
    return value;
}

static json_t *pack_keys(const ProtobufCBinaryData *keys)
{
    json_t *list = json_array();
    for (size_t at = 0; at + KEY_BYTES <= keys->len; at += KEY_BYTES) {
        json_array_append_new(list, hex(keys->data + at, KEY_BYTES));
    }
    return list;
}

static const char *tier_name(Kvist__Events__Tier tier)
{
    static const char *const NAMES[] = {"device", "host", "disk"};
    return (unsigned)tier < sizeof NAMES / sizeof NAMES[0] ? NAMES[tier] : "unknown";
}

static json_t *pack_event(const Kvist__Events__Event *event)
{
    if (event->body_case == KVIST__EVENTS__EVENT__BODY_STORED) {
        const Kvist__Events__Stored *stored = event->stored;
        return json_pack("{s:s, s:s, s:I, s:I, s:o, s:o, s:o}", "event", "stored", "tier",
            tier_name(stored->tier), "group", (json_int_t)stored->group, "first_block",
            (json_int_t)stored->first_block, "name_space",
            hex(stored->name_space.data, stored->name_space.len), "parent",
            hex(stored->parent.data, stored->parent.len), "keys", pack_keys(&stored->keys));
    }
    if (event->body_case == KVIST__EVENTS__EVENT__BODY_REMOVED) {
        const Kvist__Events__Removed *removed = event->removed;
        return json_pack("{s:s, s:s, s:I, s:o}", "event", "removed", "tier",
            tier_name(removed->tier), "group", (json_int_t)removed->group, "keys",
            pack_keys(&removed->keys));
    }
    return json_pack("{s:s}", "event",
        event->body_case == KVIST__EVENTS__EVENT__BODY_CLEARED ? "cleared" : "unknown");
}

/* What is of a snapshot has no number of its own. */
static void print_batch(const Kvist__Events__Batch *batch)
{
    bool numbered = batch->part == KVIST__EVENTS__PART__PART_NONE;
    for (size_t i = 0; i < batch->n_events; i++) {
        json_t *line = pack_event(batch->events[i]);
        json_object_set_new(line, "node", json_string(batch->node));
        json_object_set_new(line, "instance", hex(batch->instance.data, batch->instance.len));
        if (numbered) {
            json_object_set_new(
                line, "sequence", json_integer((json_int_t)(batch->first_sequence + i)));
        }
        json_dumpf(line, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(line);
    }
    if (batch->part == KVIST__EVENTS__PART__PART_LAST ||
        batch->part == KVIST__EVENTS__PART__PART_ONLY) {
        printf("{\"event\":\"whole\",\"node\":\"%s\",\"next_sequence\":%llu}\n", batch->node,
            (unsigned long long)batch->first_sequence);
    }
}

/* Asks for the next batch and prints it. *more_out: there was one, or a snapshot goes on. */
static kv_status_t step(const char *admin, place_t *place, bool *more_out, kv_error_t *error)
{
    Kvist__Events__Subscribe from = KVIST__EVENTS__SUBSCRIBE__INIT;
    Kvist__Admin__EventsRequest question = KVIST__ADMIN__EVENTS_REQUEST__INIT;
    from.instance = (ProtobufCBinaryData){place->instance_bytes, place->instance};
    from.next_sequence = place->next_sequence;
    question.from = &from;
    question.snapshot_cursor = place->snapshot_cursor;
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_ask_events(admin, &question, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    const Kvist__Admin__Events *events = reply->events;
    if (events->batch != NULL) {
        print_batch(events->batch);
    }
    place->instance_bytes = events->instance.len < sizeof place->instance ? events->instance.len
                                                                          : sizeof place->instance;
    memcpy(place->instance, events->instance.data, place->instance_bytes);
    place->next_sequence = events->next_sequence;
    place->snapshot_cursor = events->snapshot_cursor;
    *more_out = events->batch != NULL || events->snapshot_cursor != 0;
    kvist__admin__reply__free_unpacked(reply, NULL);
    return KV_OK;
}

/* Until nothing is new anywhere, or for ever. */
static int print_all(const kv_stores_t *stores, uint64_t from, bool follow)
{
    place_t places[KV_CLUSTER_MEMBERS_MAX] = {0};
    for (size_t i = 0; i < stores->count; i++) {
        places[i].next_sequence = from;
    }
    for (;;) {
        bool more = false;
        for (size_t i = 0; i < stores->count; i++) {
            kv_error_t error;
            bool some;
            if (step(stores->members[i]->admin, &places[i], &some, &error) != KV_OK) {
                return kv_command_fail("events", error.text, "kvist status says which nodes live");
            }
            more = more || some;
        }
        fflush(stdout);
        if (!more && !follow) {
            return KV_EXIT_DONE;
        }
        if (!more) {
            usleep(PAUSE_US);
        }
    }
}

int kv_command_events(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *node = NULL;
    uint64_t from = 0;
    bool follow = false;
    const kv_argument_t rows[] = {
        {"--node", KV_ARGUMENT_TEXT, "NAME", "this node only (default: all)", &node, 0, 0},
        {"--from", KV_ARGUMENT_NUMBER, "N",
            "from this event on, if the node still has it (default: what is held, then all that "
            "follows); with --node",
            &from, 1, INT64_MAX},
        {"--follow", KV_ARGUMENT_FLAG, NULL, "go on as events come, until interrupted", &follow, 0,
            0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist events [OPTIONS]",
        .summary = "What the nodes' stores hold, as it changes: a JSON object a line. First all "
                   "that is held, which ends\nwith \"whole\", then numbered events. Routers and "
                   "engines get the same from a node's control connection:\ndocs/formats.md, \"KV "
                   "events\".",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (from > 0 && node == NULL) {
        return kv_command_misuse(
            "events", "whose event?", "numbers are one node's: name it with --node");
    }
    kv_stores_t stores;
    code = kv_stores_open("events", folder, node, &stores);
    if (code == KV_EXIT_DONE) {
        code = print_all(&stores, from, follow);
        kv_stores_close(&stores);
    }
    return code;
}
