#include "tools/kvist/program.h"

#include "base/clock.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

kv_status_t kv_program_start(char *const *argv, kv_program_t *program_out, kv_error_t *error)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0) {
        return kv_fail_errno(error, errno, "no pipe for %s", argv[0]);
    }
    if (pipe2(from, O_CLOEXEC) != 0) {
        int cause = errno;
        close(to[0]);
        close(to[1]);
        return kv_fail_errno(error, cause, "no pipe for %s", argv[0]);
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, from[1], STDOUT_FILENO);
    pid_t pid;
    int cause = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    if (cause != 0) {
        close(to[1]);
        close(from[0]);
        return kv_fail_errno(error, cause, "%s cannot be started", argv[0]);
    }
    *program_out = (kv_program_t){.pid = pid, .output = to[1], .input = from[0]};
    return KV_OK;
}

kv_status_t kv_program_tell(kv_program_t *program, const char *line, kv_error_t *error)
{
    char text[KV_PROGRAM_LINE_BYTES];
    size_t bytes = (size_t)snprintf(text, sizeof text, "%s\n", line), written = 0;
    while (written < bytes) {
        ssize_t moved = write(program->output, text + written, bytes - written);
        if (moved < 0 && errno != EINTR) {
            return kv_fail(
                error, KV_PEER_LOST, "the program does not listen any more: %s", strerror(errno));
        }
        written += moved > 0 ? (size_t)moved : 0;
    }
    return KV_OK;
}

/* Reads what is there, once something is; *bytes_out 0: its output ended. */
static kv_status_t read_some(
    int input, uint64_t deadline_ns, char *bytes, size_t room, size_t *bytes_out, kv_error_t *error)
{
    for (;;) {
        uint64_t now_ns = kv_clock_now_ns();
        struct pollfd descriptor = {.fd = input, .events = POLLIN};
        int left_ms = now_ns < deadline_ns
                          ? (int)((deadline_ns - now_ns + KV_NS_PER_MS - 1) / KV_NS_PER_MS)
                          : 0;
        int ready = poll(&descriptor, 1, left_ms);
        if (ready == 0) {
            return kv_fail(error, KV_PEER_LOST, "the program does not answer");
        }
        ssize_t moved = ready > 0 ? read(input, bytes, room) : -1;
        if (moved >= 0) {
            *bytes_out = (size_t)moved;
            return KV_OK;
        }
        if (errno != EINTR) {
            return kv_fail_errno(error, errno, "the program's output cannot be read");
        }
    }
}

static uint64_t deadline(uint64_t limit_ms)
{
    return kv_clock_now_ns() + limit_ms * KV_NS_PER_MS;
}

kv_status_t kv_program_hear(
    kv_program_t *program, uint64_t limit_ms, char *line_out, kv_error_t *error)
{
    const uint64_t deadline_ns = deadline(limit_ms);
    char *end;
    while ((end = memchr(program->kept, '\n', program->kept_bytes)) == NULL) {
        if (program->kept_bytes == sizeof program->kept) {
            return kv_fail(error, KV_INVALID, "a line of the program is longer than %d bytes",
                KV_PROGRAM_LINE_BYTES);
        }
        size_t bytes;
        kv_status_t status =
            read_some(program->input, deadline_ns, program->kept + program->kept_bytes,
                sizeof program->kept - program->kept_bytes, &bytes, error);
        if (status != KV_OK) {
            return status;
        }
        if (bytes == 0) {
            return kv_fail(error, KV_PEER_LOST, "the program ended without an answer");
        }
        program->kept_bytes += bytes;
    }
    size_t line_bytes = (size_t)(end - program->kept);
    memcpy(line_out, program->kept, line_bytes);
    line_out[line_bytes] = '\0';
    program->kept_bytes -= line_bytes + 1;
    memmove(program->kept, end + 1, program->kept_bytes);
    return KV_OK;
}

kv_status_t kv_program_hear_all(
    kv_program_t *program, uint64_t limit_ms, char **text_out, kv_error_t *error)
{
    const uint64_t deadline_ns = deadline(limit_ms);
    size_t room = 64 << 10, bytes = 0, moved;
    char *text = kv_allocate(room);
    kv_status_t status;
    do {
        if (bytes + 1 == room) {
            room *= 2;
            text = kv_reallocate(text, room, 1);
        }
        status =
            read_some(program->input, deadline_ns, text + bytes, room - bytes - 1, &moved, error);
        bytes += status == KV_OK ? moved : 0;
    } while (status == KV_OK && moved > 0);
    if (status != KV_OK) {
        free(text);
        return status;
    }
    text[bytes] = '\0';
    *text_out = text;
    return KV_OK;
}

int kv_program_end(kv_program_t *program, uint64_t limit_ms)
{
    const uint64_t deadline_ns = deadline(limit_ms);
    const struct timespec pause = {.tv_nsec = 5 * KV_NS_PER_MS};
    int state = 0;
    close(program->output);
    close(program->input);
    while (waitpid(program->pid, &state, WNOHANG) == 0) {
        if (kv_clock_now_ns() >= deadline_ns) {
            kill(program->pid, SIGKILL);
            waitpid(program->pid, &state, 0);
            break;
        }
        nanosleep(&pause, NULL);
    }
    return WIFEXITED(state) ? WEXITSTATUS(state) : -1;
}
