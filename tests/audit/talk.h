/* Conversations to audit, made from a seed: a system prompt of an application, tools, turns; and
 * how the chat templates of models put them into one text. The templates' markers and the places of
 * tools are the models' own (ChatML with Hermes' tools, Llama 3.1, Mistral, Gemma 3, Phi-4,
 * DeepSeek V3, Command R, gpt-oss), beside a plain instruction prompt without roles.
 *
 * Nothing here knows how the audit judges. */
#ifndef KV_TESTS_AUDIT_TALK_H
#define KV_TESTS_AUDIT_TALK_H

#include "audit/prompt.h"
#include "base/memory.h"
#include "tests/testing/testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINES_MAX = 48, TURNS_MAX = 40, TOOLS_MAX = 10, PARAMETERS_MAX = 4 };

typedef enum {
    FORMAT_CHATML,
    FORMAT_LLAMA,
    FORMAT_MISTRAL,
    FORMAT_GEMMA,
    FORMAT_PHI,
    FORMAT_DEEPSEEK,
    FORMAT_COMMAND,
    FORMAT_HARMONY,
    FORMAT_PLAIN,
    FORMATS,
} format_t;

typedef struct {
    char name[32], description[160];
    struct {
        char name[24], type[12], description[96];
    } parameters[PARAMETERS_MAX];
    int parameter_count;
} tool_t;

typedef struct {
    kv_audit_role_t role;
    char *text;
} turn_t;

typedef struct {
    char *lines[LINES_MAX]; /* of the system prompt */
    int line_count;
    const char *line_end;
    tool_t tools[TOOLS_MAX];
    int tool_count, tool_order[TOOLS_MAX];
    uint64_t key_order; /* of the tools' JSON; 0: as it is written here */
    int json_style;     /* 0 spaced, 1 compact, 2 indented */
    turn_t turns[TURNS_MAX];
    int turn_count;
} talk_t;

/* ---- words ---- */

static inline uint64_t below(uint64_t *seed, uint64_t bound)
{
    return kv_test_random(seed) % bound;
}

#define PICK(seed, list) ((list)[below(seed, sizeof(list) / sizeof(list)[0])])

static const char *const NOUNS[] = {"invoice", "harbour", "ledger", "customer", "shipment",
    "function", "module", "ticket", "patient", "contract", "sensor", "warehouse", "report",
    "parser", "meeting", "budget", "server", "window", "article", "river", "engine", "garden",
    "teacher", "signal", "cluster", "bridge", "account", "folder", "package", "question", "answer",
    "schedule", "driver", "recipe", "museum", "forest", "packet", "buffer", "letter", "market"};
static const char *const VERBS[] = {"checks", "moves", "reads", "compares", "explains", "returns",
    "collects", "replaces", "describes", "opens", "closes", "measures", "renames", "orders",
    "confirms", "writes", "plans", "tests", "prints", "repairs", "follows", "sorts", "stores"};
static const char *const ADJECTIVES[] = {"old", "quiet", "shared", "early", "broken", "local",
    "clear", "narrow", "useful", "recent", "formal", "simple", "remote", "yellow", "stable",
    "careful", "missing", "second", "empty", "public", "heavy", "familiar", "plain", "steep"};

static inline void write_sentence(FILE *out, uint64_t *seed)
{
    fprintf(out, "The %s %s %s the %s %s ", PICK(seed, ADJECTIVES), PICK(seed, NOUNS),
        PICK(seed, VERBS), PICK(seed, ADJECTIVES), PICK(seed, NOUNS));
    const char *noun = PICK(seed, NOUNS), *verb = PICK(seed, VERBS), *other = PICK(seed, NOUNS);
    switch (below(seed, 5)) {
    case 0:
        fprintf(out, "before the %s %s %s.", noun, verb, other);
        break;
    case 1:
        fprintf(out, "because no %s %s it.", noun, verb);
        break;
    case 2:
        fprintf(out, "and the %s %s the %s.", noun, verb, other);
        break;
    case 3:
        fprintf(out, "while every %s %s something.", noun, verb);
        break;
    default:
        fprintf(out, "unless a %s %s the %s.", noun, verb, other);
        break;
    }
}

static inline char *sentences(uint64_t *seed, int count)
{
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    for (int i = 0; i < count; i++) {
        fputs(i > 0 ? " " : "", out);
        write_sentence(out, seed);
    }
    fclose(out);
    return text;
}

/* ---- conversations ---- */

static inline void put_line(talk_t *talk, int at, char *line)
{
    memmove(&talk->lines[at + 1], &talk->lines[at],
        (size_t)(talk->line_count - at) * sizeof talk->lines[0]);
    talk->lines[at] = line;
    talk->line_count++;
}

static inline void set_text(char **text, char *made)
{
    free(*text);
    *text = made;
}

static inline void add_turn(talk_t *talk, kv_audit_role_t role, char *text)
{
    talk->turns[talk->turn_count++] = (turn_t){role, text};
}

/* A user's question, perhaps tools' answers, the model's answer. */
static inline void add_exchange(talk_t *talk, uint64_t *seed, bool answered)
{
    add_turn(talk, KV_AUDIT_USER, sentences(seed, 1 + (int)below(seed, 5)));
    if (answered && talk->tool_count > 0 && below(seed, 2) == 0) {
        add_turn(talk, KV_AUDIT_ASSISTANT, sentences(seed, 1));
        add_turn(talk, KV_AUDIT_TOOL, sentences(seed, 3 + (int)below(seed, 12)));
    }
    if (answered) {
        add_turn(talk, KV_AUDIT_ASSISTANT, sentences(seed, 1 + (int)below(seed, 8)));
    }
}

static inline void make_tool(tool_t *tool, uint64_t *seed, int number)
{
    static const char *const TYPES[] = {"string", "integer", "boolean", "number"};
    char *text = sentences(seed, 1);
    snprintf(tool->name, sizeof tool->name, "%.8s_%.8s_%c", PICK(seed, VERBS), PICK(seed, NOUNS),
        'a' + number);
    snprintf(tool->description, sizeof tool->description, "%.150s", text);
    free(text);
    tool->parameter_count = 1 + (int)below(seed, PARAMETERS_MAX);
    for (int i = 0; i < tool->parameter_count; i++) {
        text = sentences(seed, 1);
        snprintf(tool->parameters[i].name, sizeof tool->parameters[i].name, "%.12s_%c",
            PICK(seed, NOUNS), 'p' + i);
        snprintf(
            tool->parameters[i].type, sizeof tool->parameters[i].type, "%s", PICK(seed, TYPES));
        snprintf(
            tool->parameters[i].description, sizeof tool->parameters[i].description, "%.90s", text);
        free(text);
    }
}

/* An application's prompt: its role, rules in sections, examples, the form of answers. */
static inline void make_talk(talk_t *talk, uint64_t *seed, bool with_tools)
{
    static const char *const ROLES[] = {"You are a coding agent that works in a repository of %s.",
        "You are the support desk of a %s company; be brief and correct.",
        "You extract fields of each %s and answer with JSON only.",
        "You write SQL for the %s database. Explain nothing.",
        "Act as a careful reviewer of every %s that you are given.",
        "You plan the work of a %s team, step by step."};
    static const char *const HEADINGS[] = {"# Rules", "## Style", "<rules>", "**Limits**",
        "Answer like this:", "## Examples", "# Safety", "Background:"};
    *talk = (talk_t){.line_end = "\n"};
    char line[200];
    static const char *const DOMAINS[] = {"shipping", "medical", "museum", "payment", "garden"};
    const char *role = PICK(seed, ROLES), *slot = strstr(role, "%s");
    snprintf(
        line, sizeof line, "%.*s%s%s", (int)(slot - role), role, PICK(seed, DOMAINS), slot + 2);
    talk->lines[talk->line_count++] = kv_duplicate_string(line);
    int sections = 3 + (int)below(seed, 3);
    for (int i = 0; i < sections; i++) {
        talk->lines[talk->line_count++] = kv_duplicate_string("");
        talk->lines[talk->line_count++] = kv_duplicate_string(PICK(seed, HEADINGS));
        int rules = 2 + (int)below(seed, 4);
        bool bullets = below(seed, 2) == 0;
        for (int k = 0; k < rules; k++) {
            char *text = sentences(seed, 1 + (int)below(seed, 2));
            snprintf(line, sizeof line, "%s%.190s", bullets ? "- " : "", text);
            free(text);
            talk->lines[talk->line_count++] = kv_duplicate_string(line);
        }
    }
    talk->tool_count = with_tools ? 3 + (int)below(seed, TOOLS_MAX - 3) : 0;
    for (int i = 0; i < talk->tool_count; i++) {
        make_tool(&talk->tools[i], seed, i);
        talk->tool_order[i] = i;
    }
    talk->json_style = (int)below(seed, 3);
}

static inline void copy_talk(const talk_t *from, talk_t *to)
{
    *to = *from;
    for (int i = 0; i < from->line_count; i++) {
        to->lines[i] = kv_duplicate_string(from->lines[i]);
    }
    for (int i = 0; i < from->turn_count; i++) {
        to->turns[i].text = kv_duplicate_string(from->turns[i].text);
    }
}

static inline void cut_turns(talk_t *talk, int count)
{
    while (talk->turn_count > count) {
        free(talk->turns[--talk->turn_count].text);
    }
}

static inline void clear_talk(talk_t *talk)
{
    cut_turns(talk, 0);
    for (int i = 0; i < talk->line_count; i++) {
        free(talk->lines[i]);
    }
}

/* ---- JSON ---- */

/* Writes {"key": value, ...} with the keys in an order made from `order`. */
static inline void write_object(FILE *out, const char *const *keys, const char *const *values,
    int count, uint64_t order, int style, int depth)
{
    int places[8];
    for (int i = 0; i < count; i++) {
        places[i] = i;
    }
    for (int i = count - 1; order != 0 && i > 0; i--) {
        int k = (int)(kv_test_random(&order) % (uint64_t)(i + 1)), kept = places[i];
        places[i] = places[k];
        places[k] = kept;
    }
    fputc('{', out);
    for (int i = 0; i < count; i++) {
        fputs(i == 0 ? "" : style == 1 ? "," : style == 0 ? ", " : ",", out);
        if (style == 2) {
            fprintf(out, "\n%*s", 4 * (depth + 1), "");
        }
        fprintf(out, "\"%s\":%s%s", keys[places[i]], style == 1 ? "" : " ", values[places[i]]);
    }
    if (style == 2) {
        fprintf(out, "\n%*s", 4 * depth, "");
    }
    fputc('}', out);
}

static inline char *object_text(const char *const *keys, const char *const *values, int count,
    uint64_t order, int style, int depth)
{
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    write_object(out, keys, values, count, order, style, depth);
    fclose(out);
    return text;
}

static inline char *quoted(const char *text)
{
    char *made = kv_allocate(strlen(text) + 3);
    sprintf(made, "\"%s\"", text);
    return made;
}

static inline char *tool_json(const talk_t *talk, const tool_t *tool)
{
    uint64_t order = talk->key_order;
    int style = talk->json_style;
    const char *names[PARAMETERS_MAX];
    char *schemas[PARAMETERS_MAX];
    for (int i = 0; i < tool->parameter_count; i++) {
        char *type = quoted(tool->parameters[i].type);
        char *description = quoted(tool->parameters[i].description);
        const char *values[] = {type, description};
        names[i] = tool->parameters[i].name;
        schemas[i] =
            object_text((const char *const[]){"type", "description"}, values, 2, order, style, 4);
        free(type);
        free(description);
    }
    char *properties =
        object_text(names, (const char *const *)schemas, tool->parameter_count, order, style, 3);
    const char *schema_values[] = {"\"object\"", properties};
    char *schema =
        object_text((const char *const[]){"type", "properties"}, schema_values, 2, order, style, 2);
    char *name = quoted(tool->name), *description = quoted(tool->description);
    const char *values[] = {name, description, schema};
    char *function = object_text(
        (const char *const[]){"name", "description", "parameters"}, values, 3, order, style, 1);
    const char *outer[] = {"\"function\"", function};
    char *text = object_text((const char *const[]){"type", "function"}, outer, 2, order, style, 0);
    for (int i = 0; i < tool->parameter_count; i++) {
        free(schemas[i]);
    }
    free(properties);
    free(schema);
    free(name);
    free(description);
    free(function);
    return text;
}

/* ---- the models' templates ---- */

static inline void say(kv_audit_prompt_t *prompt, const char *text)
{
    kv_audit_prompt_add(prompt, text, strlen(text));
}

static inline void say_lines(kv_audit_prompt_t *prompt, const talk_t *talk)
{
    for (int i = 0; i < talk->line_count; i++) {
        say(prompt, talk->lines[i]);
        say(prompt, i + 1 < talk->line_count ? talk->line_end : "");
    }
}

static inline void say_tools(
    kv_audit_prompt_t *prompt, const talk_t *talk, const char *before, const char *after)
{
    for (int i = 0; i < talk->tool_count; i++) {
        char *text = tool_json(talk, &talk->tools[talk->tool_order[i]]);
        say(prompt, i > 0 ? after : before);
        say(prompt, text);
        free(text);
    }
}

/* Of gpt-oss: tools are types. */
static inline void say_types(kv_audit_prompt_t *prompt, const talk_t *talk)
{
    say(prompt, "\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for (int i = 0; i < talk->tool_count; i++) {
        const tool_t *tool = &talk->tools[talk->tool_order[i]];
        char line[300];
        snprintf(line, sizeof line, "// %s\ntype %s = (_: {\n", tool->description, tool->name);
        say(prompt, line);
        for (int k = 0; k < tool->parameter_count; k++) {
            snprintf(line, sizeof line, "// %s\n%s?: %s,\n", tool->parameters[k].description,
                tool->parameters[k].name, tool->parameters[k].type);
            say(prompt, line);
        }
        say(prompt, "}) => any;\n\n");
    }
    say(prompt, "} // namespace functions");
}

/* What stands before and after a text of each role: system, user, assistant, tool. */
typedef struct {
    const char *start, *before[4], *after[4], *ask;
    const char *tools_head, *tools_before, *tools_between, *tools_tail;
} markers_t;

static const markers_t MARKERS[FORMATS] = {
    [FORMAT_CHATML] = {"",
        {"<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n",
            "<|im_start|>user\n<tool_response>\n"},
        {"<|im_end|>\n", "<|im_end|>\n", "<|im_end|>\n", "\n</tool_response><|im_end|>\n"},
        "<|im_start|>assistant\n", "\n\n# Tools\n\nYou may call functions.\n<tools>\n", "", "\n",
        "\n</tools>\n\nAnswer with a call in <tool_call></tool_call> to call one."},
    [FORMAT_LLAMA] = {"<|begin_of_text|>",
        {"<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge "
         "Date: December 2023\nToday Date: 26 Jul 2024\n\n",
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|start_header_id|>ipython<|end_header_id|>\n\n"},
        {"<|eot_id|>", "<|eot_id|>", "<|eot_id|>", "<|eot_id|>"},
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "\n\nYou can call these functions, as JSON.\n\n", "", "\n\n", "\n\n"},
    [FORMAT_MISTRAL] = {"<s>", {"[SYSTEM_PROMPT]", "[INST]", "", "[TOOL_RESULTS]"},
        {"[/SYSTEM_PROMPT]", "[/INST]", "</s>", "[/TOOL_RESULTS]"}, "",
        "[/SYSTEM_PROMPT][AVAILABLE_TOOLS][", "", ", ", "][/AVAILABLE_TOOLS]"},
    [FORMAT_GEMMA] = {"<bos>",
        {"<start_of_turn>user\n", "<start_of_turn>user\n", "<start_of_turn>model\n",
            "<start_of_turn>user\n"},
        {"\n\n", "<end_of_turn>\n", "<end_of_turn>\n", "<end_of_turn>\n"}, "<start_of_turn>model\n",
        "\nFunctions that you may call:\n[", "", ", ", "]"},
    [FORMAT_PHI] = {"",
        {"<|im_start|>system<|im_sep|>", "<|im_start|>user<|im_sep|>",
            "<|im_start|>assistant<|im_sep|>", "<|im_start|>tool<|im_sep|>"},
        {"<|im_end|>", "<|im_end|>", "<|im_end|>", "<|im_end|>"}, "<|im_start|>assistant<|im_sep|>",
        "<|tool|>[", "", ", ", "]<|/tool|>"},
    [FORMAT_DEEPSEEK] = {"<｜begin▁of▁sentence｜>",
        {"", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁output▁begin｜>"},
        {"", "", "<｜end▁of▁sentence｜>", "<｜tool▁output▁end｜>"}, "<｜Assistant｜>",
        "\n\n## Tools\n\n### Function\n\n", "", "\n\n", "\n"},
    [FORMAT_COMMAND] = {"<BOS_TOKEN>",
        {"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>"},
        {"<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>"},
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "\n\n## Available Tools\n```json\n[\n    ", "",
        ",\n    ", "\n]\n```"},
    [FORMAT_HARMONY] = {"",
        {"<|start|>developer<|message|># Instructions\n\n", "<|start|>user<|message|>",
            "<|start|>assistant<|channel|>final<|message|>",
            "<|start|>functions to=assistant<|channel|>commentary<|message|>"},
        {"<|end|>", "<|end|>", "<|end|>", "<|end|>"}, "<|start|>assistant", "", "", "", ""},
    [FORMAT_PLAIN] = {"",
        {"", "\n\n### Instruction:\n", "\n\n### Response:\n", "\n\n### Result:\n"},
        {"", "", "", ""}, "\n\n### Response:\n", "\n\nTools:\n", "", "\n", "\n"},
};

static inline void render(const talk_t *talk, format_t format, kv_audit_prompt_t *prompt)
{
    const markers_t *markers = &MARKERS[format];
    *prompt = (kv_audit_prompt_t){0};
    if (format != FORMAT_PLAIN) {
        kv_audit_prompt_part(prompt, KV_AUDIT_HEAD);
    }
    say(prompt, markers->start);
    say(prompt, markers->before[0]);
    say_lines(prompt, talk);
    if (format == FORMAT_HARMONY && talk->tool_count > 0) {
        say_types(prompt, talk);
    } else if (talk->tool_count > 0) {
        say(prompt, markers->tools_head);
        say_tools(prompt, talk, markers->tools_before, markers->tools_between);
        say(prompt, markers->tools_tail);
    }
    say(prompt, markers->after[0]);
    for (int i = 0; i < talk->turn_count; i++) {
        const turn_t *turn = &talk->turns[i];
        if (format != FORMAT_PLAIN) {
            kv_audit_prompt_part(prompt, turn->role);
        }
        say(prompt, markers->before[turn->role]);
        say(prompt, turn->text);
        say(prompt, markers->after[turn->role]);
    }
    say(prompt, markers->ask);
    kv_audit_prompt_finish(prompt);
}

#endif
