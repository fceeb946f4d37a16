#include "node/process.h"

#include "base/log.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* A handler, not the default: as a container's first process it would not be asked at all. */
static void end_at_once(int signal_number)
{
    (void)signal_number;
    _exit(EXIT_SUCCESS);
}

bool kv_process_begin(const kv_options_program_t *program, int argc, char **argv,
    kv_options_t *options_out, int *code_out)
{
    kv_error_t error;
    kv_options_action_t action;
    if (kv_options_load(program, argc, argv, options_out, &action, &error) != KV_OK) {
        fprintf(stderr, "%s: %s\n", program->binary, error.text);
        *code_out = 2;
        return false;
    }
    if (action != KV_OPTIONS_RUN) {
        if (action == KV_OPTIONS_HELP) {
            kv_options_print_help(program, stdout);
        } else {
            printf("%s %s\n", program->binary, KVIST_VERSION);
        }
        *code_out = 0;
        return false;
    }
    kv_log_setup(options_out->node.name, (kv_log_level_t)options_out->node.log_level);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    struct sigaction ending = {.sa_handler = end_at_once};
    sigaction(SIGTERM, &ending, NULL);
    sigaction(SIGINT, &ending, NULL);
    kv_log_info("node", "start %s %s pid %d", program->binary, KVIST_VERSION, (int)getpid());
    return true;
}

int kv_process_end(kv_options_t *options, kv_status_t status, const kv_error_t *error)
{
    if (status != KV_OK) {
        kv_log_error("node", "%s", error->text);
    } else {
        kv_log_info("node", "stopped");
    }
    kv_options_clear(options);
    return status == KV_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
