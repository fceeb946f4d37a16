/* `kvist`, the one command for people and scripts. */
#include "base/log.h"
#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const kv_command_t commands[] = {
    {"up", "start a gateway, a prefill node and a decode node on this machine", kv_command_up},
    {"down", "stop them; what is cached stays on disk", kv_command_down},
    {"drain", "end one node without a request lost; kvist up starts it again", kv_command_drain},
    {"status", "hit rate, nodes, tiers, how full they are", kv_command_status},
    {"metrics", "a node's metrics, as Prometheus reads them", kv_command_metrics},
    {"ls", "the contexts that are stored", kv_command_list},
    {"show", "one stored block: where it is, who made it, until when it is kept", kv_command_show},
    {"verify", "read everything that is stored, drop what is damaged", kv_command_verify},
    {"pin", "promise to keep a context until a time", kv_command_pin},
    {"drop", "forget a block and all that goes on from it, for good", kv_command_drop},
    {"keys", "the keys that stores encrypt with: make, replace, destroy a tenant's",
        kv_command_keys},
    {"tenant", "API keys for the gateway: make a tenant, or another key", kv_command_tenant},
    {"quota", "how much the disk tiers may take, and do; set it", kv_command_quota},
    {"why", "why no more of a prompt was cached: by whom, when, what to do", kv_command_why},
    {"explain", "why the gateway sent a request to the node that it did", kv_command_explain},
    {"audit", "a log of prompts: where they part early, why, what it cost", kv_command_audit},
    {"events", "what the stores hold, as it changes, as JSON lines", kv_command_events},
    {"chat", "talk to the model; shows what came from the cache", kv_command_chat},
    {"tour", "what the cache is worth on this machine, measured", kv_command_tour},
    {"tokenize", "text to token ids, JSON lines (a check of the engine)", kv_command_tokenize},
    {"score", "logits of forced tokens, JSON lines (a check of the engine)", kv_command_score},
    {"bench", "how fast the engine or the store is here", kv_command_bench},
    {"sim", "what would have been hit: a trace replayed, by policy and size", kv_command_sim},
};

enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void print_help(FILE *stream)
{
    fprintf(stream,
        "kvist %s: a tiered KV cache with disaggregated prefill and decode\n\n"
        "usage: kvist COMMAND [OPTIONS]       kvist COMMAND --help says more\n\n",
        KVIST_VERSION);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        fprintf(stream, "  %-9s %s\n", commands[i].name, commands[i].summary);
    }
}

int main(int argc, char **argv)
{
    kv_log_setup("kvist", KV_LOG_WARN);
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_help(stderr);
        return KV_EXIT_USAGE;
    }
    const char *asked = argv[1];
    if (strcmp(asked, "--help") == 0 || strcmp(asked, "-h") == 0 || strcmp(asked, "help") == 0) {
        print_help(stdout);
        return KV_EXIT_DONE;
    }
    if (strcmp(asked, "--version") == 0) {
        puts("kvist " KVIST_VERSION);
        return KV_EXIT_DONE;
    }
    const char *names[COMMAND_COUNT];
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, asked) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
        names[i] = commands[i].name;
    }
    const char *nearest = kv_nearest(asked, names, COMMAND_COUNT);
    fprintf(stderr, "kvist: there is no command '%s'", asked);
    fprintf(stderr, nearest != NULL ? "; did you mean '%s'?\n" : "; see kvist --help\n", nearest);
    return KV_EXIT_USAGE;
}
