#include "transport/ucx/ucx_bare.h"

#include "base/clock.h"
#include "base/memory.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

enum { RUN_MESSAGE = 1, STALL_LIMIT_MS = 20000, OPENING_BYTES_MAX = 16 << 10 };

const char *const KV_BARE_NAMES[KV_BARE_OPERATIONS] = {
    "eager messages", "rendezvous messages", "get of memory that UCX allocated"};

struct kv_bare {
    kv_bare_params_t params;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_ep_h endpoint;
    int worker_fd;
    ucp_mem_h memory; /* KV_BARE_GET */
    uint8_t *arena;
    ucp_rkey_h rkey; /* KV_BARE_GET, the receiver: the sender's arena */
    uint64_t remote_arena;
    const kv_bare_batch_t *batch; /* that is being moved */
    uint32_t begun, done;
    ucs_status_t failure;
};

/* One run on its way. */
typedef struct {
    kv_bare_t *bare;
    uint32_t index, parts_left;
    ucp_dt_iov_t ranges[];
} moving_t;

static kv_status_t fail_ucs(kv_error_t *error, ucs_status_t status, const char *what)
{
    return kv_fail(error, KV_IO, "bare UCX: %s: %s", what, ucs_status_string(status));
}

/* ---- opening ---- */

static kv_status_t exchange(int fd, const void *bytes, size_t count, uint8_t *bytes_out,
    size_t *count_out, kv_error_t *error)
{
    uint64_t size = count;
    if (send(fd, &size, sizeof size, MSG_NOSIGNAL) != sizeof size ||
        send(fd, bytes, count, MSG_NOSIGNAL) != (ssize_t)count ||
        recv(fd, &size, sizeof size, MSG_WAITALL) != sizeof size || size > OPENING_BYTES_MAX ||
        recv(fd, bytes_out, size, MSG_WAITALL) != (ssize_t)size) {
        return kv_fail(error, KV_PEER_LOST, "bare UCX: the other side did not answer");
    }
    *count_out = size;
    return KV_OK;
}

static kv_status_t context_open(kv_bare_t *bare, kv_error_t *error)
{
    static const char *const shm[][2] = {{"TLS", "posix,cma"}};
    static const char *const tcp[][2] = {
        {"TLS", "tcp"},
        {"NET_DEVICES", "lo"},
        {"TX_SEG_SIZE", "64K"}, /* the size that is best for messages */
        {"RX_SEG_SIZE", "256K"},
    };
    const char *const(*settings)[2] = bare->params.shm ? shm : tcp;
    const size_t count = bare->params.shm ? sizeof shm / sizeof *shm : sizeof tcp / sizeof *tcp;
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    for (size_t i = 0; i < count && status == UCS_OK; i++) {
        status = ucp_config_modify(config, settings[i][0], settings[i][1]);
        if (status != UCS_OK) {
            ucp_config_release(config);
        }
    }
    if (status != UCS_OK) {
        return fail_ucs(error, status, "configuration");
    }
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES,
        .features = UCP_FEATURE_WAKEUP |
                    (bare->params.operation == KV_BARE_GET ? UCP_FEATURE_RMA | UCP_FEATURE_AM
                                                           : UCP_FEATURE_AM),
    };
    status = ucp_init(&params, config, &bare->context);
    ucp_config_release(config);
    return status == UCS_OK ? KV_OK : fail_ucs(error, status, "context");
}

static kv_status_t memory_open(kv_bare_t *bare, kv_error_t *error)
{
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS,
        .length = bare->params.arena_bytes,
        .flags = UCP_MEM_MAP_ALLOCATE,
    };
    ucs_status_t status = ucp_mem_map(bare->context, &params, &bare->memory);
    ucp_mem_attr_t memory = {.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS};
    if (status == UCS_OK) {
        status = ucp_mem_query(bare->memory, &memory);
    }
    if (status != UCS_OK) {
        return fail_ucs(error, status, "memory");
    }
    bare->arena = memory.address;
    memcpy(bare->arena, bare->params.arena, bare->params.arena_bytes); /* and touch all of it */
    return KV_OK;
}

/* What the other side reads from: its address and key. */
static kv_status_t memory_exchange(kv_bare_t *bare, kv_error_t *error)
{
    uint8_t other[OPENING_BYTES_MAX];
    size_t count;
    uint64_t address = (uintptr_t)bare->arena;
    kv_status_t result = exchange(bare->params.fd, &address, sizeof address, other, &count, error);
    if (result != KV_OK) {
        return result;
    }
    memcpy(&bare->remote_arena, other, sizeof bare->remote_arena);
    void *key;
    ucs_status_t status = ucp_rkey_pack(bare->context, bare->memory, &key, &count);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "remote key");
    }
    size_t other_count;
    result = exchange(bare->params.fd, key, count, other, &other_count, error);
    ucp_rkey_buffer_release(key);
    if (result != KV_OK) {
        return result;
    }
    status = ucp_ep_rkey_unpack(bare->endpoint, other, &bare->rkey);
    return status == UCS_OK ? KV_OK : fail_ucs(error, status, "remote key");
}

static void on_endpoint_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    ((kv_bare_t *)argument)->failure = status;
}

static ucs_status_t on_run(void *argument, const void *header, size_t header_bytes, void *data,
    size_t count, const ucp_am_recv_param_t *params);

static kv_status_t worker_open(kv_bare_t *bare, kv_error_t *error)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = RUN_MESSAGE,
        .cb = on_run,
        .arg = bare,
    };
    ucs_status_t status = ucp_worker_create(bare->context, &params, &bare->worker);
    if (status == UCS_OK) {
        status = ucp_worker_get_efd(bare->worker, &bare->worker_fd);
    }
    if (status == UCS_OK) {
        status = ucp_worker_set_am_recv_handler(bare->worker, &handler);
    }
    return status == UCS_OK ? KV_OK : fail_ucs(error, status, "worker");
}

static kv_status_t endpoint_open(kv_bare_t *bare, kv_error_t *error)
{
    ucp_address_t *address;
    size_t count;
    uint8_t other[OPENING_BYTES_MAX];
    ucs_status_t status = ucp_worker_get_address(bare->worker, &address, &count);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "address");
    }
    size_t other_count;
    kv_status_t result = exchange(bare->params.fd, address, count, other, &other_count, error);
    ucp_worker_release_address(bare->worker, address);
    if (result != KV_OK) {
        return result;
    }
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)other,
        .err_mode = bare->params.shm ? UCP_ERR_HANDLING_MODE_NONE : UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_endpoint_error, bare},
    };
    status = ucp_ep_create(bare->worker, &params, &bare->endpoint);
    return status == UCS_OK ? KV_OK : fail_ucs(error, status, "endpoint");
}

kv_status_t kv_bare_open(const kv_bare_params_t *params, kv_bare_t **bare_out, kv_error_t *error)
{
    kv_bare_t *bare = kv_allocate(sizeof *bare);
    bare->params = *params;
    bare->arena = params->arena;
    const bool maps = params->operation == KV_BARE_GET;
    kv_status_t status = context_open(bare, error);
    if (status == KV_OK && maps) {
        status = memory_open(bare, error);
    }
    if (status == KV_OK) {
        status = worker_open(bare, error);
    }
    if (status == KV_OK) {
        status = endpoint_open(bare, error);
    }
    if (status == KV_OK && maps) {
        status = memory_exchange(bare, error);
    }
    if (status != KV_OK) {
        kv_bare_close(bare);
        return status;
    }
    *bare_out = bare;
    return KV_OK;
}

void kv_bare_close(kv_bare_t *bare)
{
    if (bare->rkey != NULL) {
        ucp_rkey_destroy(bare->rkey);
    }
    if (bare->worker != NULL) {
        ucp_worker_destroy(bare->worker);
    }
    if (bare->memory != NULL) {
        ucp_mem_unmap(bare->context, bare->memory);
    }
    if (bare->context != NULL) {
        ucp_cleanup(bare->context);
    }
    free(bare);
}

uint8_t *kv_bare_arena(const kv_bare_t *bare)
{
    return bare->arena;
}

/* ---- runs ---- */

/* Something happens, or the thread sleeps until it does. */
static kv_status_t step(kv_bare_t *bare, kv_error_t *error)
{
    if (bare->failure != UCS_OK) {
        return fail_ucs(error, bare->failure, "moving");
    }
    if (ucp_worker_progress(bare->worker) > 0) {
        return KV_OK;
    }
    ucs_status_t status = ucp_worker_arm(bare->worker);
    if (status == UCS_ERR_BUSY) {
        return KV_OK;
    }
    struct pollfd fds[] = {{.fd = bare->worker_fd, .events = POLLIN}, {.fd = bare->params.fd}};
    int ready = poll(fds, 2, STALL_LIMIT_MS);
    if (ready == 0 || (fds[1].revents & POLLHUP) != 0) {
        return kv_fail(error, KV_PEER_LOST, "bare UCX: nothing came for %d ms", STALL_LIMIT_MS);
    }
    return KV_OK;
}

static moving_t *moving_make(kv_bare_t *bare, uint32_t index, const kv_bare_run_t *run)
{
    moving_t *moving = kv_allocate(sizeof *moving + run->block_count * sizeof moving->ranges[0]);
    *moving = (moving_t){bare, index, 0};
    for (uint32_t i = 0; i < run->block_count; i++) {
        moving->ranges[i] = (ucp_dt_iov_t){
            bare->arena + run->slots[i] * run->slot_bytes + run->offset_bytes, run->range_bytes};
    }
    return moving;
}

static void moving_end(moving_t *moving, ucs_status_t status)
{
    kv_bare_t *bare = moving->bare;
    if (status != UCS_OK) {
        bare->failure = status;
    }
    if (!bare->params.sends) {
        bare->batch->times_ns[moving->index] = kv_clock_now_ns();
    }
    bare->done++;
    free(moving);
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    ucp_request_free(request);
    moving_end(user_data, status);
}

static void on_received(void *request, ucs_status_t status, size_t count, void *user_data)
{
    (void)count;
    ucp_request_free(request);
    moving_end(user_data, status);
}

/* The buffer of a request: a range, or a list of them. */
static void *describe(
    moving_t *moving, const kv_bare_run_t *run, ucp_request_param_t *params, size_t *count_out)
{
    if (run->block_count == 1) {
        *count_out = run->range_bytes;
        return moving->ranges[0].buffer;
    }
    params->op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
    params->datatype = ucp_dt_make_iov();
    *count_out = run->block_count;
    return moving->ranges;
}

static ucs_status_t on_run(void *argument, const void *header, size_t header_bytes, void *data,
    size_t count, const ucp_am_recv_param_t *params)
{
    kv_bare_t *bare = argument;
    uint32_t index;
    kv_bare_run_t run;
    if (header_bytes != sizeof index || bare->batch == NULL) {
        bare->failure = UCS_ERR_INVALID_PARAM;
        return UCS_OK;
    }
    memcpy(&index, header, sizeof index);
    bare->batch->run_at(bare->batch->context, index, &run);
    moving_t *moving = moving_make(bare, index, &run);
    if ((params->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) {
        for (uint32_t i = 0; i < run.block_count; i++) {
            memcpy(
                moving->ranges[i].buffer, (uint8_t *)data + i * run.range_bytes, run.range_bytes);
        }
        moving_end(
            moving, count == run.block_count * run.range_bytes ? UCS_OK : UCS_ERR_INVALID_PARAM);
        return UCS_OK;
    }
    ucp_request_param_t receive = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .cb.recv_am = on_received,
        .user_data = moving,
    };
    size_t buffer_count;
    void *buffer = describe(moving, &run, &receive, &buffer_count);
    ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(bare->worker, data, buffer, buffer_count, &receive);
    if (UCS_PTR_IS_ERR(request)) {
        moving_end(moving, UCS_PTR_STATUS(request));
        return UCS_OK;
    }
    return UCS_INPROGRESS;
}

static void send_run(kv_bare_t *bare, uint32_t index)
{
    kv_bare_run_t run;
    bare->batch->run_at(bare->batch->context, index, &run);
    moving_t *moving = moving_make(bare, index, &run);
    ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_sent,
        .user_data = moving,
        .flags = bare->params.operation == KV_BARE_EAGER ? UCP_AM_SEND_FLAG_EAGER
                                                         : UCP_AM_SEND_FLAG_RNDV,
    };
    size_t count;
    void *buffer = describe(moving, &run, &params, &count);
    bare->batch->times_ns[index] = kv_clock_now_ns();
    /* UCX keeps the header until the message is out, and moving is as long there. */
    ucs_status_ptr_t request = ucp_am_send_nbx(
        bare->endpoint, RUN_MESSAGE, &moving->index, sizeof moving->index, buffer, count, &params);
    if (!UCS_PTR_IS_PTR(request)) {
        moving_end(moving, UCS_PTR_RAW_STATUS(request));
    }
}

static void on_got(void *request, ucs_status_t status, void *user_data)
{
    moving_t *moving = user_data;
    ucp_request_free(request);
    if (--moving->parts_left == 0) {
        moving_end(moving, status);
    }
}

static void get_run(kv_bare_t *bare, uint32_t index)
{
    kv_bare_run_t run;
    bare->batch->run_at(bare->batch->context, index, &run);
    moving_t *moving = moving_make(bare, index, &run);
    moving->parts_left = run.block_count + 1;
    ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = on_got,
        .user_data = moving,
    };
    ucs_status_t failure = UCS_OK;
    for (uint32_t i = 0; i < run.block_count; i++) {
        uint8_t *range = moving->ranges[i].buffer;
        ucs_status_ptr_t request = ucp_get_nbx(bare->endpoint, range, run.range_bytes,
            bare->remote_arena + (uint64_t)(range - bare->arena), bare->rkey, &params);
        if (!UCS_PTR_IS_PTR(request)) {
            moving->parts_left--;
            failure = failure == UCS_OK ? UCS_PTR_RAW_STATUS(request) : failure;
        }
    }
    if (--moving->parts_left == 0) {
        moving_end(moving, failure);
    }
}

/* One byte from one side to the other. */
static kv_status_t pass_word(kv_bare_t *bare, bool says, kv_error_t *error)
{
    uint8_t byte = 0;
    ssize_t count = says ? send(bare->params.fd, &byte, 1, MSG_NOSIGNAL)
                         : recv(bare->params.fd, &byte, 1, MSG_WAITALL);
    return count == 1 ? KV_OK : kv_fail(error, KV_PEER_LOST, "bare UCX: the other side ended");
}

kv_status_t kv_bare_move(kv_bare_t *bare, const kv_bare_batch_t *batch, kv_error_t *error)
{
    const bool gets = bare->params.operation == KV_BARE_GET;
    const bool begins = bare->params.sends != gets; /* who begins a run */
    bare->batch = batch;
    bare->begun = bare->done = 0;
    kv_status_t status = KV_OK;
    uint32_t turn = 0;
    if (gets) { /* the sender is read from, and has nothing to do but to say when */
        if (bare->params.sends) {
            batch->times_ns[0] = kv_clock_now_ns();
        }
        status = pass_word(bare, bare->params.sends, error);
        if (bare->params.sends) {
            return status;
        }
    }
    while (status == KV_OK && bare->done < batch->run_count) {
        while (
            begins && bare->begun < batch->run_count && bare->begun - bare->done < batch->depth) {
            bare->begun++;
            if (gets) {
                get_run(bare, bare->begun - 1);
            } else {
                send_run(bare, bare->begun - 1);
            }
        }
        if (bare->done < batch->run_count) {
            status = step(bare, error);
        }
        while (batch->turns && status == KV_OK && turn < bare->done) {
            turn++;
            status = pass_word(bare, !bare->params.sends, error);
        }
    }
    bare->batch = NULL;
    return status == KV_OK && bare->failure != UCS_OK ? fail_ucs(error, bare->failure, "moving")
                                                      : status;
}
