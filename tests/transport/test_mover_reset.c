/* What UCX asks of the kernel, seen from between the two: it must not wait for a peer that does not
 * answer, and must survive one that resets its connection between the two halves of one send, a
 * moment that a kill hits rarely. */
#include "toy.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/uio.h>

enum { SLOTS = 64, UNIT_BYTES = 64 << 10, SLOT_BYTES = 4 * UNIT_BYTES, PIECES = 4 };
enum { LARGE_BYTES = 16 << 10 }; /* KV; what is smaller passes */

static atomic_bool armed;
static atomic_int reset_fd = -1;
static atomic_int waiting_connects;

/* Half of the first large send passes; the next one on that socket finds it reset. */
static bool is_reset(int fd, size_t *count)
{
    if (fd == atomic_load(&reset_fd)) {
        errno = ECONNRESET;
        return true;
    }
    if (*count >= LARGE_BYTES && atomic_exchange(&armed, false)) {
        atomic_store(&reset_fd, fd);
        *count /= 2;
    }
    return false;
}

/* UCX finds these before libc's. */
ssize_t send(int fd, const void *bytes, size_t count, int flags);
ssize_t sendmsg(int fd, const struct msghdr *message, int flags);

ssize_t send(int fd, const void *bytes, size_t count, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    return is_reset(fd, &count) ? -1 : real(fd, bytes, count, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    struct iovec vectors[16];
    struct msghdr copy = *message;
    size_t all = 0;
    assert_true(message->msg_iovlen <= 16);
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        vectors[i] = message->msg_iov[i];
        all += vectors[i].iov_len;
    }
    size_t count = all;
    if (is_reset(fd, &count)) {
        return -1;
    }
    if (count < all) {
        copy.msg_iov = vectors;
        for (size_t i = 0; i < copy.msg_iovlen; i++) {
            vectors[i].iov_len = vectors[i].iov_len < count ? vectors[i].iov_len : count;
            count -= vectors[i].iov_len;
        }
    }
    return real(fd, &copy, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t bytes);

int connect(int fd, const struct sockaddr *address, socklen_t bytes)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (address->sa_family == AF_INET && (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0) {
        atomic_fetch_add(&waiting_connects, 1);
    }
    return real(fd, address, bytes);
}

/* Forked before UCX is touched; it connects to the port that it is told. */
static pid_t start_receiver(int *tell_out)
{
    int pair[2];
    assert_int_equal(pipe(pair), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        uint16_t port;
        assert_int_equal(read(pair[0], &port, sizeof port), sizeof port);
        toy_node_t node;
        assert_int_equal(toy_open(&node, KV_WIRE_TCP, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
        toy_link(&node, port, true, 0x5a);
        pause();
    }
    close(pair[0]);
    *tell_out = pair[1];
    return pid;
}

static void nobody_waits_and_a_reset_ends_the_link_alone(void **state)
{
    (void)state;
    int tell;
    pid_t pid = start_receiver(&tell);
    toy_node_t node;
    assert_int_equal(toy_open(&node, KV_WIRE_TCP, NULL, SLOTS, SLOT_BYTES, UNIT_BYTES), KV_OK);
    kv_link_t link = toy_link(&node, 0, false, 0x5a); /* who accepts is the one that UCX connects */
    uint16_t port = kv_mover_port(node.mover);
    assert_int_equal(write(tell, &port, sizeof port), sizeof port);
    toy_expect_event(&node, KV_MOVED_LINK_UP);
    assert_int_equal(atomic_load(&waiting_connects), 0);
    uint32_t slots[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++) {
        slots[i] = i;
    }
    kv_range_t whole = kv_range_alike(0, SLOT_BYTES);
    atomic_store(&armed, true);
    for (uint32_t i = 0; i < PIECES; i++) {
        kv_piece_t piece = {.transfer_id = 1,
            .tag = i,
            .block_count = SLOTS,
            .ranges = &whole,
            .range_count = 1,
            .slots = slots};
        assert_int_equal(kv_mover_send(node.mover, link, &piece, NULL), KV_OK);
    }
    int lost = 0, down = 0;
    for (int i = 0; i < PIECES + 1;
         i++) { /* the link may end before all of them are sent into it */
        kv_mover_event_t event;
        assert_true(toy_wait(&node, &event, 10000));
        lost += event.kind == KV_MOVED_SENT && event.status == KV_PEER_LOST;
        down += event.kind == KV_MOVED_LINK_DOWN;
    }
    assert_int_equal(lost, PIECES);
    assert_int_equal(down, 1);
    assert_true(atomic_load(&reset_fd) >= 0);
    toy_close(&node);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(tell);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_waits_and_a_reset_ends_the_link_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
