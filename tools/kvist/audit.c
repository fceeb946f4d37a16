/* `kvist audit`: what of a log's prompts was computed twice, and why, without a server. */
#include "audit/bodies.h"
#include "audit/ledger.h"
#include "base/checksum.h"
#include "engine/json_lines.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"
#include "tools/kvist/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES_MAX = 64 << 20, RATE_MAX = 100000000 };

static const uint64_t LEDGER_BYTES = UINT64_C(512) << 20;

typedef struct {
    const char *path, *model;
    uint64_t tokens_per_second;
    bool json;
} asked_t;

typedef struct {
    const asked_t *asked;
    const kv_tokenizer_t *tokenizer; /* or NULL */
    kv_ledger_t *ledger;
    uint64_t units; /* tokens of all prompts, or bytes */
} audit_t;

/* ---- reading ---- */

static kv_status_t take_line(void *context, json_t *line, size_t number, kv_error_t *error)
{
    audit_t *audit = context;
    kv_error_t cause;
    kv_audit_body_t body;
    kv_audit_prompt_t prompt = {0};
    kv_status_t status = kv_audit_body_read(line, &body, &cause);
    if (status != KV_OK) {
        return kv_fail(error, status, "line %zu %s", number, cause.text);
    }
    if (audit->tokenizer == NULL) {
        kv_audit_body_text(&body, &prompt);
    } else {
        status = kv_audit_body_tokens(&body, audit->tokenizer, &prompt, &cause);
    }
    if (status == KV_OK) {
        char id[32];
        snprintf(id, sizeof id, "line %zu", number);
        const kv_ledger_names_t names = {.scope = kv_checksum(body.tenant, strlen(body.tenant)),
            .tenant = body.tenant,
            .session = body.session,
            .template_name = body.template_name,
            .id = body.id[0] != '\0' ? body.id : id};
        uint64_t rate = audit->asked->tokens_per_second;
        bool priced = rate > 0 && audit->tokenizer != NULL;
        audit->units += prompt.token_count > 0 ? prompt.token_count : prompt.bytes;
        kv_ledger_prompt_t *looked = kv_ledger_look(audit->ledger, &names, &prompt);
        kv_ledger_keep(
            audit->ledger, looked, UINT64_MAX, priced ? 1e9 / (double)rate : 0.0, body.unix_ms);
    } else {
        kv_fail(error, status, "line %zu: %s", number, cause.text);
    }
    kv_audit_body_clear(&body);
    return status;
}

/* ---- telling ---- */

static bool see_all(void *context, const char *tenant)
{
    (void)context;
    (void)tenant;
    return true;
}

static const char *told(const json_t *row, const char *name)
{
    const char *text = json_string_value(json_object_get(row, name));
    return text != NULL ? text : "";
}

static uint64_t counted(const json_t *row, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(row, name));
}

/* One line of text: line breaks are shown, not made. */
static void print_side(const char *name, const char *text, const char *mark)
{
    printf("  %-4s ", name);
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '\n' || byte == '\r' || byte == '\t') {
            printf("\\%c", byte == '\n' ? 'n' : byte == '\r' ? 'r' : 't');
        } else if (byte < ' ' || byte == 0x7f) {
            printf("\\x%02x", byte);
        } else {
            putchar(byte);
        }
    }
    printf("%s\n", mark);
}

static void print_row(const json_t *row)
{
    char at[KV_TEXT_BYTES], count[KV_TEXT_BYTES], cost[KV_TEXT_BYTES], time[KV_TEXT_BYTES];
    const char *unit = told(row, "unit"), *of = told(row, "template");
    const json_t *seconds = json_object_get(row, "cost_seconds");
    printf("%s at %.*s %s%s%s: %s times, %s %s computed again", told(row, "kind"),
        (int)strlen(unit) - 1, unit, kv_text_count(counted(row, "at"), at),
        of[0] != '\0' ? ", template " : "", of, kv_text_count(counted(row, "count"), count),
        kv_text_count(counted(row, "cost"), cost), unit);
    if (json_is_real(seconds)) {
        printf(", %s", kv_text_duration((uint64_t)(json_real_value(seconds) * 1e9), time));
    }
    printf(" (last: %s after %s)\n", told(row, "is_request"), told(row, "was_request"));
    print_side("", told(row, "before"), "");
    print_side("was", told(row, "was"), "");
    print_side("is", told(row, "is"), "");
    print_side("", told(row, "after"), "");
    printf("  do   %s\n\n", told(row, "do"));
}

static void print_all(const audit_t *audit, const json_t *rows)
{
    kv_ledger_totals_t totals = kv_ledger_totals(audit->ledger);
    const char *unit = audit->tokenizer != NULL ? "tokens" : "bytes";
    char prompts[KV_TEXT_BYTES], units[KV_TEXT_BYTES], cost[KV_TEXT_BYTES], share[KV_TEXT_BYTES];
    for (size_t i = 0; i < json_array_size(rows); i++) {
        print_row(json_array_get(rows, i));
    }
    printf("%s prompts of %s %s, %" PRIu64 " with a predecessor; %" PRIu64 " parted from it early\n"
           "%s %s were computed again for that: %s\n",
        kv_text_count(totals.prompts, prompts), kv_text_count(audit->units, units), unit,
        totals.compared, totals.findings, kv_text_count(totals.cost, cost), unit,
        kv_text_percent(totals.cost, audit->units, share));
    if (audit->tokenizer == NULL) {
        printf("places and costs are bytes of the text; --model FILE counts tokens\n");
    }
}

static void dump_all(const audit_t *audit, json_t *rows)
{
    kv_ledger_totals_t totals = kv_ledger_totals(audit->ledger);
    json_t *all = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:O}", "unit",
        audit->tokenizer != NULL ? "tokens" : "bytes", "prompts", (json_int_t)totals.prompts,
        "compared", (json_int_t)totals.compared, "size", (json_int_t)audit->units, "parted",
        (json_int_t)totals.findings, "cost", (json_int_t)totals.cost, "findings", rows);
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

/* ---- the command ---- */

static kv_status_t read_file(audit_t *audit, kv_error_t *error)
{
    FILE *file = fopen(audit->asked->path, "re");
    if (file == NULL) {
        return kv_fail(error, KV_MISSING, "cannot open %s", audit->asked->path);
    }
    kv_status_t status = kv_json_lines_read(file, LINE_BYTES_MAX, take_line, audit, error);
    fclose(file);
    return status;
}

static int run(const asked_t *asked)
{
    kv_error_t error;
    kv_tokenizer_t *tokenizer = NULL;
    if (asked->model != NULL && kv_tokenizer_open(asked->model, &tokenizer, &error) != KV_OK) {
        return kv_command_fail("audit", error.text, NULL);
    }
    audit_t audit = {
        .asked = asked, .tokenizer = tokenizer, .ledger = kv_ledger_create(LEDGER_BYTES)};
    int code = KV_EXIT_DONE;
    if (read_file(&audit, &error) != KV_OK) {
        code = kv_command_fail("audit", error.text,
            "one JSON object a line: a request's body, or an object with \"body\" in it");
    } else {
        json_t *rows = kv_ledger_rows(audit.ledger, KV_LEDGER_FINDINGS_MAX, see_all, NULL);
        if (asked->json) {
            dump_all(&audit, rows);
        } else {
            print_all(&audit, rows);
        }
        json_decref(rows);
    }
    kv_ledger_destroy(audit.ledger);
    kv_tokenizer_close(tokenizer);
    return code;
}

int kv_command_audit(int argc, char **argv)
{
    asked_t asked = {0};
    const kv_argument_t rows[] = {
        {"--model", KV_ARGUMENT_TEXT, "FILE",
            "the GGUF file whose chat template and tokenizer are used (default: none; bytes)",
            &asked.model, 0, 0},
        {"--tokens-per-second", KV_ARGUMENT_NUMBER, "RATE",
            "how fast prompts are computed: costs are told as time too (with --model)",
            &asked.tokens_per_second, 1, RATE_MAX},
        {"--json", KV_ARGUMENT_FLAG, NULL, "as JSON", &asked.json, 0, 0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist audit FILE.jsonl [OPTIONS]",
        .summary =
            "Compares each prompt of a log with the one before it, of its session, of its "
            "template or else\nthe one most like it: where they part early, what kind of "
            "difference that is, what it cost, what to do.\nA line is the body of a request (chat "
            "or text completions, Responses, Anthropic's messages, Gemini's\ngenerateContent), or "
            "{\"body\": ..., \"session\", \"template\", \"tenant\", \"id\", \"timestamp\"}.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
        .word = &asked.path,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    if (asked.path == NULL) {
        return kv_command_misuse("audit", "FILE.jsonl is missing", "kvist audit --help");
    }
    if (asked.tokens_per_second > 0 && asked.model == NULL) {
        return kv_command_misuse(
            "audit", "--tokens-per-second needs tokens", "name the model: --model FILE");
    }
    return run(&asked);
}
