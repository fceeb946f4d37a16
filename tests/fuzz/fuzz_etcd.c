/* What etcd's gateway may answer: a program of answers, each taken as a list, a line of a watch, a
 * lease or an error, and what they say of nodes put into a table of members. Whoever goes had come,
 * under the same address; the table's count is who came and did not go; addresses are numeric. */
#include "base/log.h"
#include "cluster/etcd_message.h"
#include "cluster/members.h"
#include "fuzz.h"

#include <string.h>

static const char PREFIX[] = "/kvist/kvist/nodes/";

typedef struct {
    kv_members_t *members;
    kv_member_t here[KV_MEMBERS_MAX];
    uint32_t count;
} model_t;

static void came(void *context, const kv_member_t *member)
{
    model_t *model = context;
    struct sockaddr_storage address;
    FUZZ_CHECK(model->count < KV_MEMBERS_MAX);
    FUZZ_CHECK(kv_address_parse(member->address, &address, NULL) == KV_OK);
    FUZZ_CHECK(kv_text_is_plain(member->name, '!', KV_MEMBER_NAME_BYTES - 1));
    FUZZ_CHECK(strcmp(member->name, "prefill-0") != 0); /* this node itself */
    for (uint32_t i = 0; i < model->count; i++) {
        FUZZ_CHECK(strcmp(model->here[i].name, member->name) != 0);
    }
    model->here[model->count++] = *member;
}

static void went(void *context, const kv_member_t *member)
{
    model_t *model = context;
    uint32_t at = 0;
    while (at < model->count && strcmp(model->here[at].name, member->name) != 0) {
        at++;
    }
    FUZZ_CHECK(at < model->count && strcmp(model->here[at].address, member->address) == 0);
    model->here[at] = model->here[--model->count];
}

static void take_entry(void *context, const kv_etcd_entry_t *entry)
{
    model_t *model = context;
    FUZZ_CHECK(entry->value_bytes <= KV_ETCD_VALUE_BYTES_MAX);
    FUZZ_CHECK(entry->key[0] != '\0' && entry->value[entry->value_bytes] == '\0');
    if (strncmp(entry->key, PREFIX, sizeof PREFIX - 1) != 0) {
        return;
    }
    const char *name = entry->key + sizeof PREFIX - 1;
    if (entry->deleted) {
        kv_members_remove(model->members, name);
    } else {
        kv_members_put(model->members, name, entry->value, entry->value_bytes, entry->revision);
    }
}

static void take_answer(model_t *model, uint8_t kind, const char *text, size_t bytes)
{
    int64_t lease = 0, number = -1;
    bool flag = false;
    kv_error_t error;
    if (kind == 0) {
        kv_members_list_begin(model->members);
        if (kv_etcd_read_range(text, bytes, take_entry, model, &number, &flag, &error) == KV_OK) {
            FUZZ_CHECK(number > 0);
            kv_members_list_end(model->members);
        }
    } else if (kind == 1) {
        kv_etcd_read_watch(text, bytes, take_entry, model, &flag, &error);
    } else if (kind == 2) {
        if (kv_etcd_read_lease(text, bytes, &lease, &number, &error) == KV_OK) {
            FUZZ_CHECK(lease != 0 && number >= 0);
        }
    } else {
        free(kv_etcd_error(text, bytes, &flag));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kv_log_setup("fuzz", KV_LOG_ERROR);
    fuzz_input_t input = {bytes, count};
    model_t *model = calloc(1, sizeof *model);
    FUZZ_CHECK(model != NULL);
    model->members = kv_members_create("prefill-0", &(kv_members_callbacks_t){model, came, went});
    while (input.count > 0) {
        uint8_t kind = fuzz_u8(&input) % 4;
        size_t wanted = fuzz_u16(&input), taken;
        uint8_t *text = fuzz_take(&input, wanted, &taken);
        take_answer(model, kind, (const char *)text, taken);
        free(text);
        FUZZ_CHECK(kv_members_count(model->members) == model->count);
    }
    kv_members_destroy(model->members);
    free(model);
    return 0;
}
