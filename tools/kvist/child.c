#include "tools/kvist/child.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Field 22 of /proc/PID/stat (start time) and field 3 (state); false when there is no process. */
static bool read_stat(pid_t pid, char *state_out, uint64_t *start_ticks_out)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = '\0';
    /* The name (field 2) may hold anything but ends at the last parenthesis. */
    char *at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ') {
        return false;
    }
    *state_out = at[2];
    at += 2;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (at == NULL) {
            return false;
        }
        at++;
        /* A process whose first thread ended before the others has its sockets and files still. */
        if (field + 1 == 20 && *state_out == 'Z' && strtoul(at, NULL, 10) > 1) {
            *state_out = 'R';
        }
    }
    *start_ticks_out = strtoull(at, NULL, 10);
    return true;
}

/* In the child, between fork and exec: only calls that are safe there. */
static _Noreturn void become(char *const *argv, int log_fd, int report_fd)
{
    setsid();
    int null_fd = open("/dev/null", O_RDONLY);
    dup2(null_fd, 0);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    execv(argv[0], argv);
    int cause = errno;
    ssize_t written = write(report_fd, &cause, sizeof cause);
    _exit(written == sizeof cause ? 127 : 126);
}

kv_status_t kv_child_start(
    char *const *argv, const char *log_path, kv_child_t *child_out, kv_error_t *error)
{
    int log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log_fd < 0) {
        return kv_fail_errno(error, errno, "the log %s cannot be opened", log_path);
    }
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0) {
        int cause = errno;
        close(log_fd);
        return kv_fail_errno(error, cause, "no pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        become(argv, log_fd, report[1]);
    }
    int cause = errno;
    close(log_fd);
    close(report[1]);
    if (pid < 0) {
        close(report[0]);
        return kv_fail_errno(error, cause, "no process can be started");
    }
    /* The pipe closes without a word when exec succeeds. */
    ssize_t count = read(report[0], &cause, sizeof cause);
    close(report[0]);
    char state;
    kv_child_t child = {.pid = pid};
    if (count == sizeof cause) {
        waitpid(pid, NULL, 0);
        return kv_fail_errno(error, cause, "%s cannot be executed", argv[0]);
    }
    if (!read_stat(pid, &state, &child.start_ticks)) {
        return kv_fail(error, KV_IO, "/proc does not show process %ld", (long)pid);
    }
    *child_out = child;
    return KV_OK;
}

kv_child_t kv_child_of(pid_t pid)
{
    char state;
    kv_child_t child = {.pid = pid};
    return read_stat(pid, &state, &child.start_ticks) ? child : (kv_child_t){0};
}

bool kv_child_alive(const kv_child_t *child)
{
    char state;
    uint64_t start_ticks;
    if (child->pid <= 0 || !read_stat(child->pid, &state, &start_ticks) ||
        start_ticks != child->start_ticks) {
        return false;
    }
    if (state == 'Z' || state == 'X') {
        waitpid(child->pid, NULL, WNOHANG);
        return false;
    }
    return true;
}

bool kv_child_wait(const kv_child_t *child, uint64_t limit_ms)
{
    uint64_t deadline_ns = kv_clock_now_ns() + limit_ms * KV_NS_PER_MS;
    while (kv_child_alive(child)) {
        if (kv_clock_now_ns() >= deadline_ns) {
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20 * KV_NS_PER_MS}, NULL);
    }
    return true;
}

void kv_child_signal(const kv_child_t *child, int signal_number)
{
    if (kv_child_alive(child)) {
        kill(child->pid, signal_number);
    }
}

void kv_print_tail(FILE *stream, const char *path, size_t line_count)
{
    enum { TAIL_BYTES = 8192 };
    char text[TAIL_BYTES + 1];
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return;
    }
    if (fseek(file, -TAIL_BYTES, SEEK_END) != 0) {
        rewind(file);
    }
    size_t bytes = fread(text, 1, TAIL_BYTES, file);
    fclose(file);
    while (bytes > 0 && text[bytes - 1] == '\n') {
        bytes--;
    }
    text[bytes] = '\0';
    size_t begin = bytes;
    for (size_t lines = 0; begin > 0; begin--) {
        if (text[begin - 1] == '\n' && ++lines == line_count) {
            break;
        }
    }
    for (char *line = text + begin; line != NULL;) {
        char *end = strchr(line, '\n');
        fprintf(stream, "    | %.*s\n", end != NULL ? (int)(end - line) : (int)strlen(line), line);
        line = end != NULL ? end + 1 : NULL;
    }
}
