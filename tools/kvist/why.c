/* `kvist why`: why no more of a prompt was found, or is. */
#include "base/bytes.h"
#include "base/memory.h"
#include "tools/kvist/admin.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/stores.h"
#include "tools/kvist/why_text.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 16 << 20 };

typedef struct {
    const char *folder, *node, *id, *tokens_path, *text_path, *salt, *name_space, *model;
    bool json;
} asked_t;

/* ---- the prompt ---- */

static kv_status_t read_whole(
    const char *path, char **bytes_out, size_t *count_out, kv_error_t *error)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (file == NULL) {
        return kv_fail(error, KV_MISSING, "cannot open %s", path);
    }
    char *bytes = kv_allocate(FILE_BYTES_MAX + 1);
    size_t count = fread(bytes, 1, FILE_BYTES_MAX + 1, file);
    bool failed = ferror(file) != 0;
    if (file != stdin) {
        fclose(file);
    }
    if (failed || count > FILE_BYTES_MAX) {
        free(bytes);
        return failed
                   ? kv_fail(error, KV_IO, "cannot read %s", path)
                   : kv_fail(error, KV_INVALID, "%s: more than %d MiB", path, FILE_BYTES_MAX >> 20);
    }
    bytes[count] = '\0';
    *bytes_out = bytes;
    *count_out = count;
    return KV_OK;
}

/* Ids with anything but digits between them: a JSON array, or lines. */
static kv_status_t read_ids(
    const char *path, const char *text, uint32_t **tokens_out, size_t *count_out, kv_error_t *error)
{
    size_t count = 0, capacity = 1024;
    uint32_t *tokens = kv_allocate_array(capacity, sizeof *tokens);
    for (const char *at = text; *at != '\0';) {
        if (strchr(" \t\r\n,[]", *at) != NULL) {
            at++;
            continue;
        }
        char *end;
        unsigned long long value = strtoull(at, &end, 10);
        if (*at < '0' || *at > '9' || value > UINT32_MAX) {
            free(tokens);
            return kv_fail(error, KV_INVALID,
                "%s: byte %zu: token ids are wanted, as a JSON array or one on each line", path,
                (size_t)(at - text));
        }
        if (count == capacity) {
            capacity *= 2;
            tokens = kv_reallocate(tokens, capacity, sizeof *tokens);
        }
        tokens[count++] = (uint32_t)value;
        at = end;
    }
    *tokens_out = tokens;
    *count_out = count;
    return KV_OK;
}

static kv_status_t read_prompt(const asked_t *asked, const kv_tokenizer_t *tokenizer,
    uint32_t **tokens_out, size_t *count_out, kv_error_t *error)
{
    const char *path = asked->text_path != NULL ? asked->text_path : asked->tokens_path;
    char *bytes = NULL;
    size_t count = 0;
    kv_status_t status = read_whole(path, &bytes, &count, error);
    if (status != KV_OK) {
        return status;
    }
    if (asked->text_path == NULL) {
        status = read_ids(path, bytes, tokens_out, count_out, error);
    } else if (tokenizer == NULL) {
        status = kv_fail(error, KV_MISSING,
            "--text needs the model's tokenizer, and its file cannot be read: name it (--model)");
    } else {
        const kv_tokenizer_mode_t mode = {.add_special = true, .parse_special = true};
        status = kv_tokenizer_encode(tokenizer, bytes, count, mode, tokens_out, count_out, error);
    }
    free(bytes);
    return status;
}

/* ---- asking ---- */

/* Each node that stores is asked; the namespace that one tells helps those that have no model. */
static int ask_all(const asked_t *asked, const kv_stores_t *stores, const kv_tokenizer_t *tokenizer,
    const uint32_t *tokens, size_t token_count)
{
    char name_space[65] = "";
    if (asked->name_space != NULL) {
        snprintf(name_space, sizeof name_space, "%s", asked->name_space);
    }
    kv_stores_tally_t tally = {0};
    json_t *rows = json_array();
    for (size_t i = 0; i < stores->count; i++) {
        Kvist__Admin__WhyRequest question = KVIST__ADMIN__WHY_REQUEST__INIT;
        question.request_id = asked->id != NULL ? (char *)asked->id : "";
        question.tokens = (uint32_t *)(uintptr_t)tokens;
        question.n_tokens = token_count;
        question.salt = (ProtobufCBinaryData){
            asked->salt != NULL ? strlen(asked->salt) : 0, (uint8_t *)(uintptr_t)asked->salt};
        question.name_space = name_space;
        Kvist__Admin__Reply *reply;
        kv_error_t error;
        const kv_member_t *member = stores->members[i];
        kv_status_t status = kv_ask_why(member->admin, &question, &reply, &error);
        kv_stores_tally(stores, member, status, error.text, &tally);
        if (status != KV_OK) {
            continue;
        }
        if (asked->json) {
            json_array_append_new(rows, kv_why_pack(member->name, reply->why, tokenizer));
        } else {
            kv_why_print(member->name, reply->why, tokenizer);
        }
        snprintf(name_space, sizeof name_space, "%s", reply->why->name_space);
        kvist__admin__reply__free_unpacked(reply, NULL);
    }
    if (asked->json) {
        json_dumpf(rows, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    json_decref(rows);
    if (tally.failed_count == 0 && tally.done_count == 0) {
        return kv_command_fail("why", "no node knows a request of that id",
            "nodes keep the latest 1024; ask with the prompt's tokens: --tokens FILE");
    }
    return tally.failed_count > 0 ? KV_EXIT_FAILED : KV_EXIT_DONE;
}

/* Engines first, attached ones too: they know what namespace a salt belongs to. */
static void choose_members(const char *node, kv_stores_t *stores)
{
    stores->count = 0;
    for (int engines = 1; engines >= 0; engines--) {
        for (size_t i = 0; i < stores->cluster.member_count; i++) {
            const kv_member_t *member = &stores->cluster.members[i];
            bool asked = node == NULL || strcmp(member->name, node) == 0;
            if (asked && member->engine == engines && (member->engine || member->stores)) {
                stores->members[stores->count++] = member;
            }
        }
    }
}

static int ask(const asked_t *asked)
{
    kv_stores_t stores;
    int code = kv_stores_open("why", asked->folder, NULL, &stores);
    if (code != KV_EXIT_DONE) {
        return code;
    }
    choose_members(asked->node, &stores);
    if (stores.count == 0) {
        kv_stores_close(&stores);
        return kv_command_fail("why", "no node of that name has KV", "kvist status names them");
    }
    kv_tokenizer_t *tokenizer = NULL; /* without one there are ids, no text */
    kv_error_t error;
    const char *model = asked->model != NULL ? asked->model : stores.cluster.model;
    kv_status_t status = kv_tokenizer_open(model, &tokenizer, &error);
    uint32_t *tokens = NULL;
    size_t token_count = 0;
    if (status == KV_OK || asked->model == NULL) {
        status = asked->id == NULL ? read_prompt(asked, tokenizer, &tokens, &token_count, &error)
                                   : KV_OK;
    }
    code = status == KV_OK ? ask_all(asked, &stores, tokenizer, tokens, token_count)
                           : kv_command_fail("why", error.text, NULL);
    free(tokens);
    kv_tokenizer_close(tokenizer);
    kv_stores_close(&stores);
    return code;
}

int kv_command_why(int argc, char **argv)
{
    asked_t asked = {.folder = kv_cluster_default_folder()};
    const kv_argument_t rows[] = {
        {"--tokens", KV_ARGUMENT_TEXT, "FILE",
            "a prompt's token ids, a JSON array or one on each line; -: from standard input",
            &asked.tokens_path, 0, 0},
        {"--text", KV_ARGUMENT_TEXT, "FILE",
            "a prompt's text, as /v1/completions takes it (no chat template)", &asked.text_path, 0,
            0},
        {"--salt", KV_ARGUMENT_TEXT, "TEXT", "the salt of its tenant (kvist.salt; default: none)",
            &asked.salt, 0, 0},
        {"--namespace", KV_ARGUMENT_TEXT, "DIGITS",
            "instead of the salt: 64 digits, as kvist show tells them", &asked.name_space, 0, 0},
        {"--node", KV_ARGUMENT_TEXT, "NAME", "ask this node only (default: all that store)",
            &asked.node, 0, 0},
        {"--model", KV_ARGUMENT_TEXT, "FILE",
            "whose tokenizer turns text into tokens and back (default: the cluster's)",
            &asked.model, 0, 0},
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &asked.folder, 0, 0},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &asked.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist why REQUEST | kvist why --tokens FILE | kvist why --text FILE [OPTIONS]",
        .summary = "Why no more of a prompt was cached when the request came (REQUEST: the id in "
                   "its answer), or is now:\nhow much is found in which tier, where that ends and "
                   "why, by whom and when, and what to do about it.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &asked.id,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    int ways = (asked.id != NULL) + (asked.tokens_path != NULL) + (asked.text_path != NULL);
    if (ways != 1) {
        return kv_command_misuse("why", "of what?",
            "a request's id, or a prompt: --tokens FILE or --text FILE (one of them)");
    }
    return ask(&asked);
}
