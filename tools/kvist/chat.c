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

static const char KEY_VARIABLE[] = "KVIST_API_KEY";

typedef struct {
    kv_endpoint_t endpoint;
    char *model;
    json_t *messages; /* so far */
    uint64_t max_tokens;
    double temperature;
} chat_t;

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
static kv_status_t take_turn(const chat_t *chat, kv_error_t *error)
{
    json_t *request =
        json_pack("{s:s, s:O, s:I, s:f}", "model", chat->model, "messages", chat->messages,
            "max_tokens", (json_int_t)chat->max_tokens, "temperature", chat->temperature);
    kv_answer_t answer;
    kv_status_t status = kv_complete(&chat->endpoint, "/v1/chat/completions", request, LIMIT_MS,
        print_piece, NULL, &answer, error);
    putchar('\n');
    if (status == KV_OK) {
        print_figures(&answer);
        json_array_append_new(
            chat->messages, json_pack("{s:s, s:s}", "role", "assistant", "content", answer.text));
    }
    kv_answer_clear(&answer);
    json_decref(request);
    return status;
}

/* Reads lines until the end; each is one turn. A turn that fails is taken back. */
static int converse(const chat_t *chat)
{
    bool person = isatty(STDIN_FILENO) != 0;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    int code = KV_EXIT_DONE;
    if (person) {
        printf("%s at %s. An empty line or Ctrl-D ends it.\n", chat->model, chat->endpoint.url);
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
            chat->messages, json_pack("{s:s, s:o}", "role", "user", "content", content));
        kv_error_t error;
        code = KV_EXIT_DONE;
        if (take_turn(chat, &error) != KV_OK) {
            code = kv_command_fail("chat", error.text, "kvist status shows how the nodes are");
            json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
        }
    }
    free(line);
    return code;
}

/* The endpoint that was told, or the cluster's, without a "/" at its end; allocated. */
static kv_status_t find_endpoint(
    const char *told, const char *folder, char **endpoint_out, kv_error_t *error)
{
    if (told != NULL) {
        *endpoint_out = kv_duplicate_string(told);
    } else {
        kv_cluster_t cluster;
        kv_status_t status = kv_cluster_load(folder, &cluster, error);
        if (status != KV_OK) {
            return status;
        }
        *endpoint_out = kv_duplicate_string(cluster.endpoint);
        kv_cluster_clear(&cluster);
    }
    size_t bytes = strlen(*endpoint_out);
    while (bytes > 0 && (*endpoint_out)[bytes - 1] == '/') {
        (*endpoint_out)[--bytes] = '\0';
    }
    return KV_OK;
}

/* The key that was told, or the variable's; allocated, or NULL where there is none. What was told
 * goes from the command line, which others can read. false: it cannot be one. */
static bool find_key(const char *told, char **key_out)
{
    const char *key = told != NULL ? told : getenv(KEY_VARIABLE);
    *key_out = NULL;
    if (key == NULL || (told == NULL && key[0] == '\0')) {
        return true;
    }
    bool good = key[0] != '\0';
    for (const char *at = key; *at != '\0'; at++) {
        good = good && *at > ' ' && *at <= '~';
    }
    if (!good) {
        kv_command_fail("chat", "an API key is printable ASCII without spaces",
            told != NULL ? "--key KEY" : KEY_VARIABLE);
        return false;
    }
    *key_out = kv_duplicate_string(key);
    if (told != NULL) {
        memset((char *)told, '*', strlen(told));
    }
    return true;
}

/* With a key that is settled: asks what there is, and talks. */
static int begin(chat_t *chat, const char *told, const char *folder, const char *system)
{
    kv_error_t error;
    char *url;
    int code;
    if (find_endpoint(told, folder, &url, &error) != KV_OK) {
        return kv_command_fail("chat", error.text, "kvist up");
    }
    chat->endpoint.url = url;
    kv_status_t status = kv_first_model(&chat->endpoint, &chat->model, &error);
    if (status != KV_OK) {
        code = kv_command_fail("chat", error.text,
            status == KV_REFUSED ? "--key KEY, or the variable KVIST_API_KEY"
            : told == NULL       ? "kvist up, or kvist status to see what is down"
                                 : "--endpoint http://HOST:PORT or https://HOST:PORT, --key, --ca");
    } else {
        chat->messages = json_array();
        if (system != NULL) {
            json_array_append_new(
                chat->messages, json_pack("{s:s, s:s}", "role", "system", "content", system));
        }
        code = converse(chat);
        json_decref(chat->messages);
        free(chat->model);
    }
    free(url);
    return code;
}

int kv_command_chat(int argc, char **argv)
{
    const char *folder = kv_cluster_default_folder(), *told = NULL, *system = NULL,
               *temperature = "0", *key = NULL;
    chat_t chat = {.max_tokens = 256};
    const kv_argument_t rows[] = {
        {"--dir", KV_ARGUMENT_TEXT, "FOLDER",
            "the cluster's state (default: ~/.local/state/kvist/default)", &folder, 0, 0},
        {"--endpoint", KV_ARGUMENT_TEXT, "URL",
            "another endpoint than the cluster's, http or https", &told, 0, 0},
        {"--key", KV_ARGUMENT_TEXT, "KEY",
            "an API key, where the gateway has tenants (default: the variable KVIST_API_KEY)", &key,
            0, 0},
        {"--ca", KV_ARGUMENT_TEXT, "FILE",
            "PEM certificates that an https endpoint's is checked against (default: the system's)",
            &chat.endpoint.credentials.ca_file, 0, 0},
        {"--system", KV_ARGUMENT_TEXT, "TEXT", "a system message", &system, 0, 0},
        {"--max-tokens", KV_ARGUMENT_NUMBER, "N", "of an answer (default: 256)", &chat.max_tokens,
            1, 1 << 20},
        {"--temperature", KV_ARGUMENT_TEXT, "X", "0 to 2 (default: 0, greedy)", &temperature, 0, 0},
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
    char *end, *own_key;
    chat.temperature = strtod(temperature, &end);
    if (end == temperature || *end != '\0' || !(chat.temperature >= 0 && chat.temperature <= 2)) {
        kv_command_fail("chat", "--temperature must be a number from 0 to 2", NULL);
        return KV_EXIT_USAGE;
    }
    if (!find_key(key, &own_key)) {
        return KV_EXIT_USAGE;
    }
    kv_http_setup();
    chat.endpoint.credentials.key = own_key;
    code = begin(&chat, told, folder, system);
    free(own_key);
    return code;
}
