/* `kvist chat`: a conversation over the HTTP endpoint; after each answer, what the cache did. */
#include "base/clock.h"
#include "base/memory.h"
#include "node/http_client.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/cluster.h"
#include "tools/kvist/command.h"
#include "tools/kvist/completion.h"
#include "tools/kvist/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LIMIT_MS = 600000 };

static bool print_piece(void *context, const char *text)
{
    (void)context;
    fputs(text, stdout);
    fflush(stdout);
    return true;
}

static void print_figures(const kv_answer_t *answer)
{
    char cache[256], first[KV_TEXT_BYTES];
    double seconds = (double)(answer->total_ns - answer->first_ns) / KV_NS_PER_S;
    printf("[prompt tokens: %s, TTFT %s",
        answer->has_usage ? kv_describe_cache(answer, cache, sizeof cache) : "not told",
        kv_text_duration(answer->first_ns, first));
    if (answer->answer_tokens > 1 && seconds > 0) {
        printf(", %llu tokens at %.1f tokens/s", (unsigned long long)answer->answer_tokens,
            (double)(answer->answer_tokens - 1) / seconds);
    }
    printf("]\n");
}

/* Sends the conversation, adds the answer to it. */
static kv_status_t take_turn(const char *endpoint, const char *model, json_t *messages,
    uint64_t max_tokens, double temperature, kv_error_t *error)
{
    json_t *request = json_pack("{s:s, s:O, s:I, s:f}", "model", model, "messages", messages,
        "max_tokens", (json_int_t)max_tokens, "temperature", temperature);
    kv_answer_t answer;
    kv_status_t status = kv_complete(
        endpoint, "/v1/chat/completions", request, LIMIT_MS, print_piece, NULL, &answer, error);
    putchar('\n');
    if (status == KV_OK) {
        print_figures(&answer);
        json_array_append_new(
            messages, json_pack("{s:s, s:s}", "role", "assistant", "content", answer.text));
    }
    kv_answer_clear(&answer);
    json_decref(request);
    return status;
}

/* Reads lines until the end; each is one turn. A turn that fails is taken back. */
static int converse(const char *endpoint, const char *model, const char *system,
    uint64_t max_tokens, double temperature)
{
    bool person = isatty(STDIN_FILENO) != 0;
    json_t *messages = json_array();
    char *line = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    int code = KV_EXIT_DONE;
    if (system != NULL) {
        json_array_append_new(
            messages, json_pack("{s:s, s:s}", "role", "system", "content", system));
    }
    if (person) {
        printf("%s at %s. An empty line or Ctrl-D ends it.\n", model, endpoint);
    }
    for (;;) {
        if (person) {
            fputs("\n> ", stdout);
            fflush(stdout);
        }
        bytes = getline(&line, &capacity, stdin);
        while (bytes > 0 && (line[bytes - 1] == '\n' || line[bytes - 1] == '\r')) {
            line[--bytes] = '\0';
        }
        if (bytes < 0 || (person && bytes == 0)) {
            break;
        }
        if (bytes == 0) {
            continue;
        }
        json_t *content = json_stringn(line, (size_t)bytes);
        if (content == NULL) {
            code = kv_command_fail("chat", "the line is no valid UTF-8", NULL);
            continue;
        }
        json_array_append_new(
            messages, json_pack("{s:s, s:o}", "role", "user", "content", content));
        kv_error_t error;
        code = KV_EXIT_DONE;
        if (take_turn(endpoint, model, messages, max_tokens, temperature, &error) != KV_OK) {
            code = kv_command_fail("chat", error.text, "kvist status shows how the nodes are");
            json_array_remove(messages, json_array_size(messages) - 1);
        }
    }
    free(line);
    json_decref(messages);
    return code;
}

/* The endpoint that was told, or the cluster's; allocated. */
static kv_status_t find_endpoint(
    const char *told, const char *folder, char **endpoint_out, kv_error_t *error)
{
    if (told != NULL) {
        *endpoint_out = kv_duplicate_string(told);
        return KV_OK;
    }
    kv_cluster_t cluster;
    kv_status_t status = kv_cluster_load(folder, &cluster, error);
    if (status == KV_OK) {
        *endpoint_out = kv_duplicate_string(cluster.endpoint);
        kv_cluster_clear(&cluster);
    }
    return status;
}

int kv_command_chat(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *told = NULL, *system = NULL,
               *temperature = "0";
    uint64_t max_tokens = 256;
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--endpoint", KV_ARGUMENT_TEXT, "URL", "another endpoint than the cluster's", &told, 0, 0},
        {"--system", KV_ARGUMENT_TEXT, "TEXT", "a system message", &system, 0, 0},
        {"--max-tokens", KV_ARGUMENT_NUMBER, "N", "of an answer (default: 256)", &max_tokens, 1,
            1 << 20},
        {"--temperature", KV_ARGUMENT_TEXT, "X", "0 to 100 (default: 0, greedy)", &temperature, 0,
            0},
    };
    const kv_arguments_t arguments = {
        .usage = "kvist chat [OPTIONS]",
        .summary = "Talks to the model; lines from a pipe are turns as well. After each answer: "
                   "prompt tokens,\nhow many came from which tier, time to first token, tokens per "
                   "second.",
        .rows = rows,
        .row_count = sizeof rows / sizeof *rows,
    };
    int code;
    if (!kv_arguments_parse(&arguments, argc, argv, &code)) {
        return code;
    }
    char *end;
    double heat = strtod(temperature, &end);
    if (*end != '\0' || !(heat >= 0 && heat <= 100)) {
        kv_command_fail("chat", "--temperature must be a number from 0 to 100", NULL);
        return KV_EXIT_USAGE;
    }
    kv_http_setup();
    kv_error_t error;
    char *endpoint, *model;
    if (find_endpoint(told, folder, &endpoint, &error) != KV_OK) {
        return kv_command_fail("chat", error.text, "kvist up");
    }
    if (kv_first_model(endpoint, &model, &error) != KV_OK) {
        code = kv_command_fail("chat", error.text, "kvist up, or kvist status to see what is down");
    } else {
        code = converse(endpoint, model, system, max_tokens, heat);
        free(model);
    }
    free(endpoint);
    return code;
}
