/* `kvist pin`: promises to keep a context until a time. */
#include "base/clock.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/object_text.h"
#include "tools/kvist/stores.h"
#include "tools/kvist/text.h"

#include <jansson.h>
#include <stdio.h>
#include <time.h>

typedef struct {
    const char *until, *duration;
    bool remove;
} wish_t;

/* The time that was asked for; 0: no pin. KV_EXIT_USAGE: not just one, or not readable. */
static int read_wish(const wish_t *wish, uint64_t *until_ns_out)
{
    if ((wish->until != NULL) + (wish->duration != NULL) + wish->remove != 1) {
        return kv_command_misuse(
            "pin", "until when?", "give one of --until TIME, --for DURATION, --remove");
    }
    uint64_t now_ns = kv_clock_real()->unix_ns(kv_clock_real()), duration_ns;
    *until_ns_out = 0;
    if (wish->until != NULL && kv_time_parse(wish->until, until_ns_out) != KV_OK) {
        return kv_command_misuse("pin", "--until is no time",
            "2026-12-24, 2026-12-24T18:30 (local time) or 2026-12-24T18:30:00Z");
    }
    if (wish->duration != NULL) {
        if (kv_duration_parse(wish->duration, &duration_ns) != KV_OK) {
            return kv_command_misuse("pin", "--for is no duration", "90s, 15m, 2h, 7d or 4w");
        }
        *until_ns_out = now_ns + duration_ns;
    }
    return KV_EXIT_DONE;
}

static kv_status_t pin_at(const kv_member_t *member, const char *key, json_t *rows,
    const void *context, kv_error_t *error)
{
    Kvist__Admin__Reply *reply;
    kv_status_t status = kv_ask_pin(member->admin, key, *(const uint64_t *)context, &reply, error);
    if (status != KV_OK) {
        return status;
    }
    const Kvist__Admin__Object *object = reply->object;
    char time[KV_TEXT_BYTES], count[KV_TEXT_BYTES];
    if (rows != NULL) {
        json_array_append_new(rows, kv_object_pack(member->name, object));
    } else if (object->pin_until_unix_ns == 0) {
        printf("%s: no longer pinned\n", member->name);
    } else {
        printf("%s: the first %s tokens of the context are pinned until %s\n", member->name,
            kv_text_count(object->token_count, count),
            kv_text_time(object->pin_until_unix_ns, time));
    }
    kvist__admin__reply__free_unpacked(reply, NULL);
    return KV_OK;
}

int kv_command_pin(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *domain = NULL, *node = NULL, *key = NULL;
    wish_t wish = {0};
    bool json = false;
    const kv_argument_t rows[] = {
        {"--until", KV_ARGUMENT_TEXT, "TIME", "2026-12-24, 2026-12-24T18:30, with Z: UTC",
            &wish.until, 0, 0},
        {"--for", KV_ARGUMENT_TEXT, "DURATION", "from now on: 90s, 15m, 2h, 7d, 4w", &wish.duration,
            0, 0},
        {"--remove", KV_ARGUMENT_FLAG, NULL, "take the pin away", &wish.remove, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--domain", KV_ARGUMENT_TEXT, "NAME",
            "of a kvist-store: whose store is meant (default: its first domain's)", &domain, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "at this node only (default: at all)", &node, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist pin KEY --until TIME | --for DURATION | --remove [OPTIONS]",
        .summary =
            "Promises that a context, from its start to the block KEY, is not evicted before a "
            "time. It stays after that too,\nas long as there is room; a restart does not end the "
            "promise. KEY: the first 8 digits of the key or more.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &key,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    kv_ask_about(domain);
    uint64_t until_ns = 0;
    code = key != NULL ? read_wish(&wish, &until_ns) : KV_EXIT_DONE;
    if (code != KV_EXIT_DONE) {
        return code;
    }
    const kv_stores_request_t request = {"pin", folder, node, key, json, false};
    return kv_stores_visit_key(&request, pin_at, &until_ns);
}
