/* What the main functions of all nodes share: options, log, limits of the process, the cluster's
 * key.
 *
 *   int main(int argc, char **argv)
 *   {
 *       kv_options_t options;
 *       int code;
 *       if (!kv_process_begin(&PROGRAM, argc, argv, &options, &code)) {
 *           return code;
 *       }
 *       kv_error_t error;
 *       kv_status_t status = run(&options, &error);
 *       return kv_process_end(&options, status, &error);
 *   }
 *
 * Threads: before any other is started. */
#ifndef KV_NODE_PROCESS_H
#define KV_NODE_PROCESS_H

#include "base/status.h"
#include "node/options.h"

#include <stdbool.h>

/* Parses, prints help or version, sets up the log, raises the descriptor limit. Until the reactor
 * runs SIGTERM and SIGINT end the process: nothing was promised to anybody yet.
 * false: the program is done and exits with *code_out (2 for wrong options, named on standard
 * error). */
bool kv_process_begin(const kv_options_program_t *program, int argc, char **argv,
    kv_options_t *options_out, int *code_out);

/* Logs the error where status is not KV_OK, clears the options; returns the exit code. */
int kv_process_end(kv_options_t *options, kv_status_t status, const kv_error_t *error);

#endif
