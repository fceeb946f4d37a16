/* The client socket of a host's store as it is: kv_service_open on a real Unix socket. The first
 * byte says whether the client attaches well first, then how many bytes of the input go between two
 * polls. Unattached the rest is bytes; attached it is messages (u16 length, bytes), which are put
 * into frames. Every answer is a whole frame with a kvist.store.Answer; when the client has hung
 * up, nothing of it is left. */
#include "fuzz.h"

#include "base/log.h"
#include "kvstore/attach/channel.h"
#include "kvstore/layout.h"
#include "kvstore/service/service.h"
#include "proto/store.pb-c.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { STAGING_BYTES = 64 << 10, TURNS_MAX = 10000 };

static kv_service_t *service;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static kvist_layout_t layout;
static int staging_fd;

static void remove_socket(void)
{
    kv_service_close(service);
    *strrchr(address.sun_path, '/') = '\0';
    rmdir(address.sun_path);
}

static void open_service(void)
{
    static kv_service_domain_t domain = {.name = "default"};
    char folder[] = "/tmp/kvist-fuzz-XXXXXX";
    kv_block_shape_t shape = {2, 2, 8, 16, 2};
    kv_error_t error = {0};
    kv_log_setup("fuzz", KV_LOG_ERROR);
    FUZZ_CHECK(mkdtemp(folder) != NULL);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/store", folder);
    layout = kvist_layout_plain(&shape);
    domain.store.host_bytes = 16 * kvist_layout_object_bytes(&layout, 0);
    const kv_service_params_t params = {
        .path = address.sun_path,
        .domains = &domain,
        .domain_count = 1,
        .limits = {.still_ms = 1},
    };
    FUZZ_CHECK(kv_service_open(&params, &service, &error) == KV_OK);
    staging_fd = memfd_create("fuzz-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    FUZZ_CHECK(staging_fd >= 0 && ftruncate(staging_fd, STAGING_BYTES) == 0);
    FUZZ_CHECK(fcntl(staging_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
    FUZZ_CHECK(atexit(remove_socket) == 0);
}

/* Takes what the service said; false: it hung up. */
static bool take_answers(kv_channel_t *channel)
{
    const uint8_t *message;
    size_t bytes;
    kv_error_t error;
    kv_status_t status = kv_channel_receive(channel, &error);
    if (status != KV_OK && status != KV_BUSY) {
        FUZZ_CHECK(status == KV_PEER_LOST);
        return false;
    }
    while ((status = kv_channel_next(channel, &message, &bytes, &error)) == KV_OK) {
        Kvist__Store__Answer *answer = kvist__store__answer__unpack(NULL, bytes, message);
        FUZZ_CHECK(answer != NULL && answer->body_case != KVIST__STORE__ANSWER__BODY__NOT_SET);
        kvist__store__answer__free_unpacked(answer, NULL);
    }
    FUZZ_CHECK(status == KV_MISSING);
    return true;
}

static void send_bytes(kv_channel_t *channel, const uint8_t *bytes, size_t count, size_t step)
{
    for (int turns = 0; count > 0 && turns < TURNS_MAX; turns++) {
        ssize_t sent =
            send(channel->fd, bytes, count < step ? count : step, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            return;
        }
        bytes += sent > 0 ? sent : 0;
        count -= sent > 0 ? (size_t)sent : 0;
        kv_service_poll(service);
        if (!take_answers(channel)) {
            return;
        }
    }
}

static void attach(kv_channel_t *channel)
{
    Kvist__Store__Attach attach = KVIST__STORE__ATTACH__INIT;
    Kvist__Store__Request request = KVIST__STORE__REQUEST__INIT;
    uint8_t encoded[KV_LAYOUT_ENCODED_BYTES_MAX];
    attach.version = 3;
    attach.version_min = 2;
    attach.domain = (char *)"default";
    attach.layout.data = encoded;
    attach.layout.len = kv_layout_encode(&layout, encoded);
    attach.name = (char *)"fuzz";
    attach.staging_bytes = STAGING_BYTES;
    request.body_case = KVIST__STORE__REQUEST__BODY_ATTACH;
    request.attach = &attach;
    FUZZ_CHECK(kv_channel_queue(channel, &request.base, &staging_fd, 1, NULL) == KV_OK &&
               kv_channel_send(channel) == KV_OK);
    kv_service_poll(service);
    FUZZ_CHECK(take_answers(channel));
}

static void send_messages(kv_channel_t *channel, fuzz_input_t *input, size_t step)
{
    while (input->count > 0) {
        size_t count;
        uint8_t *message = fuzz_take(input, fuzz_u16(input), &count);
        uint8_t head[4];
        kv_put_u32(head, (uint32_t)count);
        send_bytes(channel, head, sizeof head, step);
        send_bytes(channel, message, count, step);
        free(message);
    }
}

/* Until the service has noticed that the client is gone, and nothing of it is under way. */
static void settle(void)
{
    kv_service_stats_t stats;
    int turns = 0;
    do {
        struct pollfd ready = {.fd = kv_service_fd(service), .events = POLLIN};
        poll(&ready, 1, 10);
        kv_service_poll(service);
        kv_service_stats(service, &stats);
        FUZZ_CHECK(++turns < TURNS_MAX);
    } while (stats.clients + stats.mapped > 0);
    FUZZ_CHECK(stats.leases == 0 && stats.staging_bytes == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (service == NULL) {
        open_service();
    }
    fuzz_input_t input = {bytes, count};
    bool attached = (fuzz_u8(&input) & 1) != 0;
    size_t step = 1 + (size_t)fuzz_u8(&input) * 64;
    kv_channel_t channel;
    kv_channel_init(&channel, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), KV_CHANNEL_FDS_MAX);
    FUZZ_CHECK(
        channel.fd >= 0 && connect(channel.fd, (struct sockaddr *)&address, sizeof address) == 0);
    kv_service_poll(service);
    if (attached) {
        attach(&channel);
        send_messages(&channel, &input, step);
    } else {
        send_bytes(&channel, input.bytes, input.count, step);
    }
    kv_channel_clear(&channel);
    settle();
    return 0;
}
