#include "kernels/simt/control_socket.h"

#include "kernels/simt/block_internal.h"
#include "kernels/simt/control.h"
#include "kernels/simt/finding.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LINE_BYTES = 256, WAITING_MAX = 8 };

/* One line asks, one line answers. */
static void answer(const char *line, char *answer_out, size_t bytes)
{
    char name[48];
    uint64_t nth;
    int error;
    if (sscanf(line, "fail %47[^:]:%" SCNu64 ":%d", name, &nth, &error) == 3 && nth > 0) {
        snprintf(answer_out, bytes, "%s", kv_simt_fail(name, nth, error) ? "planned" : "too many");
    } else if (strcmp(line, "fail none") == 0) {
        kv_simt_fail_none();
        snprintf(answer_out, bytes, "forgotten");
    } else if (strcmp(line, "waiting") == 0) {
        snprintf(answer_out, bytes, "%zu", kv_simt_failures_waiting());
    } else if (sscanf(line, "calls %47[^\n]", name) == 1) {
        snprintf(answer_out, bytes, "%" PRIu64, kv_simt_call_count(name));
    } else if (strcmp(line, "held") == 0) {
        kv_simt_held_t held;
        kv_simt_held(&held);
        snprintf(answer_out, bytes, "%zu %zu %zu %zu", held.device_bytes, held.pinned_ranges,
            held.streams, held.events);
    } else {
        snprintf(answer_out, bytes, "not understood");
    }
}

static void serve(int connection)
{
    char line[LINE_BYTES], text[LINE_BYTES];
    ssize_t length;
    while ((length = recv(connection, line, sizeof line - 1, 0)) > 0) {
        line[length] = '\0';
        answer(line, text, sizeof text);
        if (send(connection, text, strlen(text), MSG_NOSIGNAL) < 0) {
            return;
        }
    }
}

static void *run(void *argument)
{
    const int listener = *(int *)argument;
    free(argument);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection >= 0) {
            serve(connection);
            close(connection);
        }
    }
    return NULL;
}

void kv_simt_control_socket_open(const char *folder)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/%d.sock", folder, (int)getpid());
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), *argument = NULL;
    pthread_t thread;
    if (listener >= 0 && length > 0 && (size_t)length < sizeof address.sun_path &&
        bind(listener, (const struct sockaddr *)&address, sizeof address) == 0 &&
        listen(listener, WAITING_MAX) == 0 && (argument = malloc(sizeof *argument)) != NULL) {
        *argument = listener;
        if (pthread_create(&thread, NULL, run, argument) == 0) {
            pthread_detach(thread);
            return;
        }
    }
    free(argument);
    if (listener >= 0) {
        close(listener);
    }
    kv_simt_find(KV_SIMT_MISUSE, "KVIST_SIMT_CONTROL: cannot listen in \"%s\"", folder);
}
