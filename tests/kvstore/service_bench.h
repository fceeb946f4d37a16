/* What the tests of a host's store share: a service that runs on a thread of its own, or in another
 * process, over one domain; and a raw end of its socket. */
#ifndef KV_TESTS_KVSTORE_SERVICE_BENCH_H
#define KV_TESTS_KVSTORE_SERVICE_BENCH_H

#include "harness.h"
#include "kvstore/attach/channel.h"
#include "kvstore/service/service.h"
#include "proto/store.pb-c.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

typedef struct {
    char path[108];
    kv_service_domain_t domain;
    kv_service_params_t params;
    kv_service_t *service;
    pthread_t thread;
    atomic_bool stop;
    atomic_bool up;
    bool running;
} served_t;

/* Its socket lies in a folder of its own: paths of sockets are short. */
static inline void served_init(served_t *served, const kvist_store_params_t *store)
{
    static uint32_t count;
    memset(served, 0, sizeof *served);
    snprintf(served->path, sizeof served->path, "%s/s-%u", kv_test_folder(), count++);
    served->domain = (kv_service_domain_t){.name = "default", .store = *store};
    served->domain.store.device = NULL;
    served->domain.store.device_arena = NULL;
    served->domain.store.device_slot_count = 0;
    served->domain.store.origin = "the-host";
    served->params =
        (kv_service_params_t){.path = served->path, .domains = &served->domain, .domain_count = 1};
}

static inline void *served_run(void *argument)
{
    served_t *served = (served_t *)argument;
    while (!atomic_load(&served->stop)) {
        struct pollfd ready = {.fd = kv_service_fd(served->service), .events = POLLIN};
        poll(&ready, 1, 20);
        kv_service_poll(served->service);
    }
    return NULL;
}

static inline void served_open(served_t *served)
{
    kv_error_t error = {0};
    kv_status_t status = kv_service_open(&served->params, &served->service, &error);
    if (status != KV_OK) {
        print_message("service: %s\n", error.text);
    }
    assert_int_equal(status, KV_OK);
}

static inline void served_resume(served_t *served)
{
    atomic_store(&served->stop, false);
    assert_int_equal(pthread_create(&served->thread, NULL, served_run, served), 0);
    served->running = true;
}

static inline void served_start(served_t *served)
{
    served_open(served);
    served_resume(served);
}

/* The thread ends; the service is the caller's to look at. */
static inline void served_pause(served_t *served)
{
    atomic_store(&served->stop, true);
    pthread_join(served->thread, NULL);
    served->running = false;
}

static inline void served_end(served_t *served)
{
    if (served->running) {
        served_pause(served);
    }
    kv_service_close(served->service);
    served->service = NULL;
}

/* ---- a raw client ---- */

typedef struct {
    kv_channel_t channel;
    char *staging;
    size_t staging_bytes;
    int staging_fd;
} raw_t;

static inline int raw_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static inline int raw_memory(size_t bytes, int seals, unsigned flags)
{
    int fd = memfd_create("test-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static inline void raw_send(
    raw_t *raw, Kvist__Store__Request__BodyCase kind, void *body, const int *fds, uint32_t count)
{
    kv_error_t error = {0};
    Kvist__Store__Request request = KVIST__STORE__REQUEST__INIT;
    request.body_case = kind;
    request.attach = (Kvist__Store__Attach *)body; /* all of the union's members are pointers */
    assert_int_equal(kv_channel_queue(&raw->channel, &request.base, fds, count, &error), KV_OK);
    kv_channel_send(&raw->channel); /* the service may have ended it already */
}

/* The next answer, released with kvist__store__answer__free_unpacked; NULL: the service ended the
 * connection. */
static inline Kvist__Store__Answer *raw_receive(raw_t *raw)
{
    for (;;) {
        const uint8_t *message;
        size_t bytes;
        kv_error_t error = {0};
        kv_status_t status = kv_channel_next(&raw->channel, &message, &bytes, &error);
        if (status == KV_OK) {
            Kvist__Store__Answer *answer = kvist__store__answer__unpack(NULL, bytes, message);
            assert_non_null(answer);
            return answer;
        }
        assert_int_equal(status, KV_MISSING);
        struct pollfd ready = {.fd = raw->channel.fd, .events = POLLIN};
        assert_int_equal(poll(&ready, 1, 60000), 1);
        status = kv_channel_receive(&raw->channel, &error);
        if (status == KV_PEER_LOST) {
            return NULL;
        }
        assert_true(status == KV_OK || status == KV_BUSY);
    }
}

static inline void raw_open(raw_t *raw, const char *path)
{
    *raw = (raw_t){.staging_fd = -1};
    kv_channel_init(&raw->channel, raw_connect(path), KV_CHANNEL_FDS_MAX);
}

/* Says attach with this memory (-1: none). */
static inline void raw_attach(
    raw_t *raw, const kvist_layout_t *layout, const char *domain, int fd, uint64_t said_bytes)
{
    Kvist__Store__Attach attach = KVIST__STORE__ATTACH__INIT;
    uint8_t encoded[KV_LAYOUT_ENCODED_BYTES_MAX];
    attach.version = attach.version_min = 2;
    attach.domain = (char *)domain;
    attach.layout.data = encoded;
    attach.layout.len = kv_layout_encode(layout, encoded);
    attach.name = (char *)"raw";
    attach.staging_bytes = said_bytes;
    raw_send(raw, KVIST__STORE__REQUEST__BODY_ATTACH, &attach, &fd, fd >= 0 ? 1 : 0);
}

/* Attached, with 1 MiB of staging memory. */
static inline void raw_begin(raw_t *raw, const char *path, const kvist_layout_t *layout)
{
    raw_open(raw, path);
    raw->staging_bytes = 1 << 20;
    raw->staging_fd = raw_memory(raw->staging_bytes, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, 0);
    raw->staging = (char *)mmap(
        NULL, raw->staging_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, raw->staging_fd, 0);
    raw_attach(raw, layout, "default", raw->staging_fd, raw->staging_bytes);
    Kvist__Store__Answer *answer = raw_receive(raw);
    assert_non_null(answer);
    assert_int_equal(answer->body_case, KVIST__STORE__ANSWER__BODY_ATTACHED);
    kvist__store__answer__free_unpacked(answer, NULL);
}

static inline void raw_end(raw_t *raw)
{
    kv_channel_clear(&raw->channel);
    if (raw->staging != NULL) {
        munmap(raw->staging, raw->staging_bytes);
    }
    if (raw->staging_fd >= 0) {
        close(raw->staging_fd);
    }
}

static inline void raw_match(raw_t *raw, const bench_t *bench, uint32_t lease, uint32_t context,
    uint32_t blocks, uint32_t *tokens)
{
    make_tokens(context, 0, tokens, (size_t)blocks * BLOCK_TOKENS);
    Kvist__Store__Match asked = KVIST__STORE__MATCH__INIT;
    asked.id = lease + 1;
    asked.lease = lease;
    asked.name_space = (ProtobufCBinaryData){KVIST_KEY_BYTES, (uint8_t *)bench->name_space.bytes};
    asked.tokens =
        (ProtobufCBinaryData){(size_t)blocks * BLOCK_TOKENS * 4, (uint8_t *)(void *)tokens};
    raw_send(raw, KVIST__STORE__REQUEST__BODY_MATCH, &asked, NULL, 0);
}

static inline void raw_expect_matched(raw_t *raw, uint32_t lease, uint32_t blocks)
{
    Kvist__Store__Answer *answer = raw_receive(raw);
    assert_non_null(answer);
    assert_int_equal(answer->body_case, KVIST__STORE__ANSWER__BODY_MATCHED);
    assert_int_equal(answer->matched->id, lease + 1);
    assert_int_equal(answer->matched->code, KV_OK);
    assert_int_equal(answer->matched->block_count, blocks);
    kvist__store__answer__free_unpacked(answer, NULL);
}

static inline void raw_expect_done(raw_t *raw, uint64_t id, kv_status_t status, uint64_t count)
{
    Kvist__Store__Answer *answer = raw_receive(raw);
    assert_non_null(answer);
    assert_int_equal(answer->body_case, KVIST__STORE__ANSWER__BODY_DONE);
    assert_int_equal(answer->done->id, id);
    assert_int_equal(answer->done->code, status);
    assert_int_equal(answer->done->count, count);
    kvist__store__answer__free_unpacked(answer, NULL);
}

/* The first blocks of the context, in staging memory, and what is promised of them. */
static inline void raw_fill(raw_t *raw, const bench_t *bench, const uint32_t *tokens,
    uint32_t blocks, uint64_t *checksums_out)
{
    kvist_key_t keys[16];
    kv_layout_t layout;
    kv_error_t error;
    uint64_t units[8];
    kvist_keys(&bench->name_space, tokens, NULL, (size_t)blocks * BLOCK_TOKENS, BLOCK_TOKENS, keys);
    assert_int_equal(kv_layout_init(&bench->layout, 0, &layout, &error), KV_OK);
    assert_int_equal(layout.unit_count, 8);
    for (uint32_t i = 0; i < blocks; i++) {
        char *object = raw->staging + i * layout.object_bytes;
        fill_block(&keys[i], object, layout.object_bytes);
        kv_layout_unit_checksums(&layout, object, units);
        checksums_out[i] = kv_layout_object_checksum(&layout, &keys[i], units);
    }
}

/* checksums NULL: an offer. */
static inline void raw_put(
    raw_t *raw, uint64_t id, uint32_t lease, uint32_t first, uint32_t blocks, uint64_t *checksums)
{
    Kvist__Store__Put put = KVIST__STORE__PUT__INIT;
    put.id = id;
    put.lease = lease;
    put.first_block = first;
    put.block_count = blocks;
    put.arithmetic = (char *)"raw";
    put.offset = 0;
    put.checksums = (ProtobufCBinaryData){
        checksums != NULL ? blocks * sizeof *checksums : 0, (uint8_t *)(void *)checksums};
    raw_send(raw, KVIST__STORE__REQUEST__BODY_PUT, &put, NULL, 0);
}

/* The service ends the connection, and says so with this status and these words among its own. */
static inline void raw_expect_end(raw_t *raw, kv_status_t status, const char *words)
{
    Kvist__Store__Answer *answer = raw_receive(raw);
    while (answer != NULL && answer->body_case != KVIST__STORE__ANSWER__BODY_ENDED) {
        kvist__store__answer__free_unpacked(answer, NULL);
        answer = raw_receive(raw);
    }
    assert_non_null(answer);
    if (strstr(answer->ended->text, words) == NULL || answer->ended->code != status) {
        print_message("ended: %u %s\n", answer->ended->code, answer->ended->text);
    }
    assert_int_equal(answer->ended->code, status);
    assert_non_null(strstr(answer->ended->text, words));
    kvist__store__answer__free_unpacked(answer, NULL);
    assert_null(raw_receive(raw));
}

#endif
