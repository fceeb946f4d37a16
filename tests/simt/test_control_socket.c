/* The stand-in's control from outside: what is asked of it happens to the next calls, and what is
 * not understood changes nothing. */
#include "kernels/simt/api.h"
#include "kernels/simt/control.h"
#include "kernels/simt/control_socket.h"
#include "kernels/simt/finding.h"

#include "testing/testing.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connected(const char *folder)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/%d.sock", folder, (int)getpid());
    assert_in_range(length, 1, sizeof address.sun_path - 1);
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(connection, (const struct sockaddr *)&address, sizeof address), 0);
    return connection;
}

static void ask(int connection, const char *line, const char *wanted)
{
    char answer[256] = "";
    assert_int_equal(send(connection, line, strlen(line), 0), strlen(line));
    assert_true(recv(connection, answer, sizeof answer - 1, 0) > 0);
    assert_string_equal(answer, wanted);
}

static void failures_are_planned_counted_and_forgotten(void **state)
{
    (void)state;
    int connection = connected(kv_test_folder());
    void *memory = NULL;
    kv_simt_reset();
    ask(connection, "fail cudaMalloc:2:2", "planned");
    ask(connection, "waiting", "1");
    assert_int_equal(cudaMalloc(&memory, 4096), cudaSuccess);
    ask(connection, "held", "4096 0 0 0");
    void *refused = NULL;
    assert_int_equal(cudaMalloc(&refused, 4096), cudaErrorMemoryAllocation);
    ask(connection, "calls cudaMalloc", "2");
    ask(connection, "waiting", "0");
    assert_int_equal(cudaFree(memory), cudaSuccess);
    ask(connection, "held", "0 0 0 0");
    ask(connection, "fail run launch:1:700", "planned");
    ask(connection, "fail none", "forgotten");
    ask(connection, "waiting", "0");
    close(connection);
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    static const char *const LINES[] = {
        "x", "fail", "fail cudaMalloc", "fail cudaMalloc:0:2", "fail :1:2", "calls", "held all"};
    int connection = connected(kv_test_folder());
    for (size_t i = 0; i < sizeof LINES / sizeof *LINES; i++) {
        ask(connection, LINES[i], "not understood");
    }
    for (int i = 0; i < KV_SIMT_FAILURES_MAX; i++) {
        ask(connection, "fail cudaFree:1000:1", "planned");
    }
    ask(connection, "fail cudaFree:1000:1", "too many");
    ask(connection, "fail none", "forgotten");
    close(connection);
}

static void a_folder_that_is_none_is_found(void **state)
{
    (void)state;
    kv_simt_findings_clear();
    kv_simt_control_socket_open("/nowhere/at/all");
    assert_int_equal(kv_simt_finding_count(KV_SIMT_FINDING_KINDS), 1);
    kv_simt_findings_clear();
}

static int open_socket(void **state)
{
    (void)state;
    kv_simt_control_socket_open(kv_test_folder());
    return kv_simt_finding_count(KV_SIMT_FINDING_KINDS) == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failures_are_planned_counted_and_forgotten),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(a_folder_that_is_none_is_found),
    };
    return cmocka_run_group_tests(tests, open_socket, NULL);
}
