/* `kvist bench`: how fast a part of Kvist is, on this machine. */
#include "tools/kvist/bench/bench.h"

#include "tools/kvist/arguments.h"
#include "tools/kvist/command.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} part_t;

static const part_t parts[] = {
    {"engine", "load, cold prefill and decode of a model", kv_bench_engine},
    {"store", "puts and gets against the limits of the machine, or against a peer", kv_bench_store},
    {"codec", "the codec of KV on disk: ratio and speed, beside LZ4 and zstd", kv_bench_codec},
    {"attach", "a host's store that many processes use, beside one of their own", kv_bench_attach},
    {"wire", "KV between two processes, against UCX alone", kv_bench_wire},
    {"pd", "prefill and decode nodes end to end, beside one node that does both", kv_bench_pd},
    {"serve", "a load against any OpenAI endpoint: hit rate, waiting times, goodput",
        kv_bench_serve},
    {"report", "runs of serve beside each other: tables and figures", kv_bench_report},
    {"route", "what hits when nodes share a load, by how it is routed (a replay)", kv_bench_route},
};

enum { PART_COUNT = sizeof parts / sizeof parts[0] };

static void print_help(FILE *stream)
{
    fprintf(stream, "usage: kvist bench PART [OPTIONS]      kvist bench PART --help says more\n\n");
    for (size_t i = 0; i < PART_COUNT; i++) {
        fprintf(stream, "  %-9s %s\n", parts[i].name, parts[i].summary);
    }
}

int kv_command_bench(int argc, char **argv)
{
    const char *names[PART_COUNT];
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_help(stdout);
        return KV_EXIT_DONE;
    }
    for (size_t i = 0; i < PART_COUNT; i++) {
        if (argc > 1 && strcmp(argv[1], parts[i].name) == 0) {
            return parts[i].run(argc - 1, argv + 1);
        }
        names[i] = parts[i].name;
    }
    if (argc > 1) {
        const char *nearest = kv_nearest(argv[1], names, PART_COUNT);
        fprintf(stderr, "kvist bench: '%s' cannot be measured", argv[1]);
        fprintf(stderr, nearest != NULL ? "; did you mean '%s'?\n" : "\n", nearest);
    }
    print_help(stderr);
    return KV_EXIT_USAGE;
}
