#include "tools/kvist/bench/fork.h"

#include "base/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

kv_status_t kv_fork_start(void (*body)(const void *context, int channel), const void *context,
    kv_fork_t *fork_out, kv_error_t *error)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        return kv_fail_errno(error, errno, "no socket pair");
    }
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        /* Whatever ends the benchmark ends its processes. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        if (getppid() == parent) {
            body(context, ends[1]);
        }
        _exit(0);
    }
    int cause = errno;
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return kv_fail_errno(error, cause, "no process can be started");
    }
    *fork_out = (kv_fork_t){pid, ends[0]};
    return KV_OK;
}

kv_status_t kv_fork_tell(int channel, const void *message, size_t bytes, kv_error_t *error)
{
    const ssize_t sent = send(channel, message, bytes, MSG_NOSIGNAL);
    return sent == (ssize_t)bytes
               ? KV_OK
               : kv_fail(error, KV_PEER_LOST, "a process of the benchmark ended");
}

kv_status_t kv_fork_hear(
    int channel, void *message_out, size_t bytes, uint64_t limit_ms, kv_error_t *error)
{
    const uint64_t deadline_ns = kv_clock_now_ns() + limit_ms * KV_NS_PER_MS;
    size_t heard = 0;
    while (heard < bytes) {
        const uint64_t now_ns = kv_clock_now_ns();
        struct pollfd descriptor = {.fd = channel, .events = POLLIN};
        const int wait_ms = now_ns < deadline_ns ? (int)((deadline_ns - now_ns) / KV_NS_PER_MS) : 0;
        if (poll(&descriptor, 1, wait_ms) == 0) {
            return kv_fail(error, KV_PEER_LOST,
                "a process of the benchmark has not answered in %ju s", (uintmax_t)limit_ms / 1000);
        }
        const ssize_t count = recv(channel, (char *)message_out + heard, bytes - heard, 0);
        if (count == 0 || (count < 0 && errno != EINTR)) {
            return kv_fail(error, KV_PEER_LOST, "a process of the benchmark ended");
        }
        heard += count > 0 ? (size_t)count : 0;
    }
    return KV_OK;
}

bool kv_fork_alive(const kv_fork_t *child)
{
    siginfo_t end = {.si_pid = 0};
    return waitid(P_PID, (id_t)child->pid, &end, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           end.si_pid == 0;
}

void kv_fork_end(kv_fork_t *child)
{
    if (child->pid > 0) {
        /* Later copies of this process have the descriptor too: closing would tell nobody. */
        shutdown(child->channel, SHUT_RDWR);
        close(child->channel);
        waitpid(child->pid, NULL, 0);
    }
    *child = (kv_fork_t){0, -1};
}
