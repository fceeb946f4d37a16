/* The commands of `kvist`: one file each, one row each in main.c's table.
 *
 * A command gets its own arguments (argv[0] is its name) and answers with the exit code: 0 done,
 * 1 it failed (said on standard error, with what to do), 2 it was called wrongly. */
#ifndef KV_TOOLS_COMMAND_H
#define KV_TOOLS_COMMAND_H

#include "base/status.h"

enum { KV_EXIT_DONE = 0, KV_EXIT_FAILED = 1, KV_EXIT_USAGE = 2 };

typedef struct {
    const char *name;
    const char *summary; /* one line for `kvist --help` */
    int (*run)(int argc, char **argv);
} kv_command_t;

int kv_command_up(int argc, char **argv);
int kv_command_down(int argc, char **argv);
int kv_command_drain(int argc, char **argv);
int kv_command_status(int argc, char **argv);
int kv_command_metrics(int argc, char **argv);
int kv_command_list(int argc, char **argv);
int kv_command_show(int argc, char **argv);
int kv_command_verify(int argc, char **argv);
int kv_command_pin(int argc, char **argv);
int kv_command_drop(int argc, char **argv);
int kv_command_keys(int argc, char **argv);
int kv_command_tenant(int argc, char **argv);
int kv_command_quota(int argc, char **argv);
int kv_command_why(int argc, char **argv);
int kv_command_explain(int argc, char **argv);
int kv_command_audit(int argc, char **argv);
int kv_command_events(int argc, char **argv);
int kv_command_chat(int argc, char **argv);
int kv_command_tour(int argc, char **argv);
int kv_command_tokenize(int argc, char **argv);
int kv_command_score(int argc, char **argv);
int kv_command_bench(int argc, char **argv);
int kv_command_sim(int argc, char **argv);

/* "kvist NAME: text" on standard error and, where it is not NULL, the remedy on a line of its own;
 * KV_EXIT_FAILED. */
int kv_command_fail(const char *name, const char *text, const char *remedy);

/* The same for a command that was called wrongly; KV_EXIT_USAGE. */
int kv_command_misuse(const char *name, const char *text, const char *remedy);

#endif
