/* The wire over UCX 1.13: eager active messages on listener endpoints.
 *
 * Every pipe has a ucp_worker of its own. Destroying the worker is the only thing that ends an
 * endpoint in every state: UCX refuses a forced close in error mode NONE, which shared memory
 * needs, and a flush waits for a peer that may be stopped. Once ucp_worker_destroy returned, every
 * request's callback has fired and no message can arrive: that is the fence.
 *
 * The connecting side names the pipe in its client id, so that the accepting one knows the error
 * mode before it makes the endpoint: PEER puts every lane on TCP, NONE lets posix shared memory in.
 */
#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/address.h"
#include "transport/wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

enum { MESSAGE_ID = 1, REQUESTS_MAX = 64, PROGRESS_ROUNDS = 16 };

struct kv_wire_request {
    ucp_conn_request_h handle;
};

struct kv_wire_pipe {
    kv_wire_side_t *side;
    ucp_worker_h worker;
    ucp_ep_h endpoint;
    int worker_fd;
    void *owner;
    bool shm;
    bool broken, reported;
    ucs_status_t broken_status;
    kv_wire_pipe_t *next;
};

struct kv_wire_side {
    kv_wire_params_t params;
    ucp_context_h context;
    ucp_worker_h worker; /* of the listener */
    ucp_listener_h listener;
    int epoll_fd;
    uint16_t port;
    kv_wire_pipe_t *pipes;
    kv_wire_request_t requests[REQUESTS_MAX];
    uint32_t request_count;
    uint64_t rendezvous_count;
};

/* A message that came as a rendezvous, on its way into memory of its own. */
typedef struct {
    kv_wire_pipe_t *pipe;
    size_t count;
    uint8_t bytes[];
} rendezvous_t;

static kv_status_t status_from_ucs(ucs_status_t status)
{
    switch (status) {
    case UCS_OK:
        return KV_OK;
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
        return KV_NO_SPACE;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
        return KV_INVALID;
    case UCS_ERR_CANCELED:
        return KV_CANCELLED;
    case UCS_ERR_REJECTED:
        return KV_REFUSED;
    case UCS_ERR_IO_ERROR:
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_BUSY:
        return KV_IO;
    default:
        return KV_PEER_LOST;
    }
}

static kv_status_t fail_ucs(kv_error_t *error, ucs_status_t status, const char *what)
{
    return kv_fail(error, status_from_ucs(status), "%s: %s", what, ucs_status_string(status));
}

/* ---- workers ---- */

static kv_status_t worker_open(kv_wire_side_t *side, uint64_t client_id, ucp_worker_h *worker_out,
    int *fd_out, kv_error_t *error)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CLIENT_ID,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
        .client_id = client_id,
    };
    ucp_worker_h worker;
    ucs_status_t status = ucp_worker_create(side->context, &params, &worker);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot make a UCX worker");
    }
    int fd;
    status = ucp_worker_get_efd(worker, &fd);
    if (status != UCS_OK) {
        fail_ucs(error, status, "cannot wait on a UCX worker");
        goto destroy;
    }
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(side->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        kv_fail_errno(error, errno, "cannot wait on a UCX worker");
        status = UCS_ERR_IO_ERROR;
        goto destroy;
    }
    *worker_out = worker;
    *fd_out = fd;
    return KV_OK;

destroy:
    ucp_worker_destroy(worker);
    return status_from_ucs(status);
}

static void rendezvous_done(void *request, ucs_status_t status, size_t count, void *user_data)
{
    rendezvous_t *message = user_data;
    kv_wire_pipe_t *pipe = message->pipe;
    if (status == UCS_OK && !pipe->broken && pipe->owner != NULL) {
        pipe->side->params.upcalls.received(pipe->owner, message->bytes, count);
    }
    free(message);
    if (request != NULL) {
        ucp_request_free(request);
    }
}

/* Kvist's own senders never offer a rendezvous; one that comes all the same is received beside the
 * slots, so that what is written into a slot was always validated first. */
static ucs_status_t rendezvous_begin(kv_wire_pipe_t *pipe, void *descriptor, size_t count)
{
    pipe->side->rendezvous_count++;
    if (count > pipe->side->params.message_bytes_max) {
        return UCS_OK; /* refuses the offer */
    }
    rendezvous_t *message = kv_allocate(sizeof *message + count);
    *message = (rendezvous_t){.pipe = pipe, .count = count};
    ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .cb.recv_am = rendezvous_done,
        .user_data = message,
    };
    ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(pipe->worker, descriptor, message->bytes, count, &params);
    if (UCS_PTR_IS_ERR(request)) {
        free(message);
        return UCS_OK;
    }
    return UCS_INPROGRESS;
}

static ucs_status_t on_message(void *argument, const void *header, size_t header_bytes, void *data,
    size_t count, const ucp_am_recv_param_t *params)
{
    (void)header;
    (void)header_bytes;
    kv_wire_pipe_t *pipe = argument;
    if (pipe->broken || pipe->owner == NULL) {
        return UCS_OK;
    }
    if (params->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) {
        return rendezvous_begin(pipe, data, count);
    }
    pipe->side->params.upcalls.received(pipe->owner, data, count);
    return UCS_OK;
}

static void on_endpoint_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    kv_wire_pipe_t *pipe = argument;
    if (!pipe->broken) {
        pipe->broken = true;
        pipe->broken_status = status;
    }
}

/* ---- pipes ---- */

static void pipe_destroy(kv_wire_pipe_t *pipe)
{
    if (pipe->worker != NULL) {
        epoll_ctl(pipe->side->epoll_fd, EPOLL_CTL_DEL, pipe->worker_fd, NULL);
        ucp_worker_destroy(pipe->worker);
    }
    free(pipe);
}

static kv_status_t pipe_open(kv_wire_side_t *side, uint64_t client_id, bool shm, void *owner,
    ucp_ep_params_t *params, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    kv_wire_pipe_t *pipe = kv_allocate(sizeof *pipe);
    *pipe = (kv_wire_pipe_t){.side = side, .owner = owner, .shm = shm};
    kv_status_t result = worker_open(side, client_id, &pipe->worker, &pipe->worker_fd, error);
    if (result != KV_OK) {
        goto destroy;
    }
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
        .id = MESSAGE_ID,
        .cb = on_message,
        .arg = pipe,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
    };
    ucs_status_t status = ucp_worker_set_am_recv_handler(pipe->worker, &handler);
    if (status != UCS_OK) {
        result = fail_ucs(error, status, "cannot receive UCX messages");
        goto destroy;
    }
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params->err_mode = shm ? UCP_ERR_HANDLING_MODE_NONE : UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = on_endpoint_error;
    params->err_handler.arg = pipe;
    status = ucp_ep_create(pipe->worker, params, &pipe->endpoint);
    if (status != UCS_OK) {
        result = fail_ucs(error, status, "cannot make a UCX endpoint");
        goto destroy;
    }
    pipe->next = side->pipes;
    side->pipes = pipe;
    *pipe_out = pipe;
    return KV_OK;

destroy:
    pipe_destroy(pipe);
    return result;
}

static kv_status_t ucx_connect(kv_wire_side_t *side, const char *host, uint16_t port, uint64_t id,
    bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    struct sockaddr_storage address;
    kv_status_t status = kv_address_from_parts(host, port, &address, error);
    if (status != KV_OK) {
        return status;
    }
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_SOCK_ADDR | UCP_EP_PARAM_FIELD_FLAGS,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_SEND_CLIENT_ID,
        .sockaddr = {(struct sockaddr *)&address, kv_address_bytes(&address)},
    };
    return pipe_open(side, id, shm, owner, &params, pipe_out, error);
}

static kv_status_t ucx_accept(kv_wire_side_t *side, kv_wire_request_t *request, bool shm,
    void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
        .conn_request = request->handle,
    };
    return pipe_open(side, 0, shm, owner, &params, pipe_out, error);
}

static void ucx_reject(kv_wire_side_t *side, kv_wire_request_t *request)
{
    ucs_status_t status = ucp_listener_reject(side->listener, request->handle);
    if (status != UCS_OK) {
        kv_log_debug("transport", "rejecting a UCX connection: %s", ucs_status_string(status));
    }
}

static void ucx_drop(kv_wire_pipe_t *pipe)
{
    kv_wire_pipe_t **link = &pipe->side->pipes;
    while (*link != pipe) {
        link = &(*link)->next;
    }
    *link = pipe->next;
    /* Requests that are still out complete inside and reach their owner; messages do not. */
    pipe->broken = true;
    pipe_destroy(pipe);
}

/* ---- messages ---- */

typedef struct {
    kv_wire_pipe_t *pipe;
    void *tag;
} sending_t;

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    sending_t sending = *(sending_t *)user_data;
    free(user_data);
    ucp_request_free(request);
    sending.pipe->side->params.upcalls.sent(
        sending.pipe->owner, sending.tag, status_from_ucs(status));
}

static kv_status_t ucx_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag)
{
    if (pipe->broken) {
        return KV_PEER_LOST;
    }
    sending_t *sending = kv_allocate(sizeof *sending);
    *sending = (sending_t){pipe, tag};
    ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_sent,
        .user_data = sending,
        .flags = UCP_AM_SEND_FLAG_EAGER,
    };
    ucs_status_ptr_t request =
        ucp_am_send_nbx(pipe->endpoint, MESSAGE_ID, NULL, 0, bytes, count, &params);
    if (UCS_PTR_IS_PTR(request)) {
        return KV_BUSY;
    }
    free(sending);
    return status_from_ucs(UCS_PTR_RAW_STATUS(request));
}

/* UCX 1.13 has no call that names an endpoint's lanes; what it prints does:
 *     "#   lane[1]:  2:posix/memory.0 md[1]   -> md[1]/posix/sysdev[255] am am_bw#0"
 * The lane with the word "am" carries eager active messages. */
static kv_status_t ucx_describe(
    kv_wire_pipe_t *pipe, kv_wire_t *wire_out, char *text_out, size_t text_bytes)
{
    char *page = NULL;
    size_t page_bytes = 0;
    FILE *stream = open_memstream(&page, &page_bytes);
    if (stream == NULL) {
        return KV_NO_SPACE;
    }
    ucp_ep_print_info(pipe->endpoint, stream);
    fclose(stream);
    kv_status_t status = KV_MISSING;
    char *rest = page, *line;
    while (status != KV_OK && (line = strsep(&rest, "\n")) != NULL) {
        char name[64];
        size_t length = strlen(line);
        bool carries =
            strstr(line, " am ") != NULL || (length >= 3 && strcmp(line + length - 3, " am") == 0);
        if (carries && sscanf(line, "# lane[%*d]: %*d:%63s", name) == 1) {
            *wire_out = strncmp(name, "tcp/", 4) == 0 ? KV_WIRE_TCP : KV_WIRE_SHM;
            snprintf(text_out, text_bytes, "%s", name);
            status = KV_OK;
        }
    }
    free(page);
    return status;
}

/* ---- the side ---- */

static void on_connection(ucp_conn_request_h handle, void *argument)
{
    kv_wire_side_t *side = argument;
    if (side->request_count == REQUESTS_MAX) {
        kv_wire_request_t request = {handle};
        ucx_reject(side, &request);
        return;
    }
    side->requests[side->request_count++] = (kv_wire_request_t){handle};
}

static void answer_requests(kv_wire_side_t *side)
{
    for (uint32_t i = 0; i < side->request_count; i++) {
        kv_wire_request_t request = side->requests[i];
        ucp_conn_request_attr_t attributes = {
            .field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ID,
        };
        if (ucp_conn_request_query(request.handle, &attributes) != UCS_OK) {
            attributes.client_id = 0; /* no id: nobody is expected under it */
        }
        side->params.upcalls.requested(
            side->params.upcalls.context, &request, attributes.client_id);
    }
    side->request_count = 0;
}

static unsigned worker_progress(ucp_worker_h worker)
{
    unsigned happened = 0;
    for (int round = 0; round < PROGRESS_ROUNDS; round++) {
        unsigned now = ucp_worker_progress(worker);
        if (now == 0) {
            break;
        }
        happened += now;
    }
    return happened;
}

static unsigned ucx_progress(kv_wire_side_t *side)
{
    unsigned happened = worker_progress(side->worker);
    for (kv_wire_pipe_t *pipe = side->pipes; pipe != NULL; pipe = pipe->next) {
        happened += worker_progress(pipe->worker);
        if (pipe->broken && !pipe->reported) {
            pipe->reported = true;
            happened++;
            side->params.upcalls.lost(pipe->owner, status_from_ucs(pipe->broken_status),
                ucs_status_string(pipe->broken_status));
        }
    }
    if (side->request_count > 0) {
        happened += side->request_count;
        answer_requests(side);
    }
    return happened;
}

static bool worker_arm(ucp_worker_h worker)
{
    return ucp_worker_arm(worker) == UCS_OK;
}

static bool ucx_arm(kv_wire_side_t *side)
{
    if (!worker_arm(side->worker)) {
        return false;
    }
    for (kv_wire_pipe_t *pipe = side->pipes; pipe != NULL; pipe = pipe->next) {
        if (!worker_arm(pipe->worker)) {
            return false;
        }
    }
    return true;
}

/* What UCX shall use, whatever its environment says: eager messages alone move KV, so large TCP
 * segments matter (8 KiB is its default; the names carry no "TCP_" here), and the plain TCP
 * connection manager stands in for RDMA's. */
static kv_status_t context_open(bool shm, ucp_context_h *context_out, kv_error_t *error)
{
    const char *const settings[][2] = {
        {"TLS", shm ? "posix,cma,tcp" : "tcp"},
        {"SOCKADDR_TLS_PRIORITY", "tcp"},
        {"TX_SEG_SIZE", "64K"},
        {"RX_SEG_SIZE", "256K"},
    };
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot read UCX's configuration");
    }
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        status = ucp_config_modify(config, settings[i][0], settings[i][1]);
        if (status != UCS_OK) {
            ucp_config_release(config);
            return fail_ucs(error, status, settings[i][0]);
        }
    }
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .name = "kvist",
    };
    status = ucp_init(&params, config, context_out);
    ucp_config_release(config);
    return status == UCS_OK ? KV_OK : fail_ucs(error, status, "cannot start UCX");
}

static kv_status_t listener_open(kv_wire_side_t *side, kv_error_t *error)
{
    struct sockaddr_storage address;
    kv_status_t result =
        kv_address_from_parts(side->params.host, side->params.port, &address, error);
    if (result != KV_OK) {
        return result;
    }
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {(struct sockaddr *)&address, kv_address_bytes(&address)},
        .conn_handler = {on_connection, side},
    };
    ucs_status_t status = ucp_listener_create(side->worker, &params, &side->listener);
    if (status != UCS_OK) {
        return kv_fail(error, KV_IO, "cannot listen for data on %s port %u: %s", side->params.host,
            side->params.port, ucs_status_string(status));
    }
    ucp_listener_attr_t attributes = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    status = ucp_listener_query(side->listener, &attributes);
    if (status != UCS_OK) {
        return fail_ucs(error, status, "cannot ask for the data listener's port");
    }
    side->port = kv_address_port(&attributes.sockaddr);
    return KV_OK;
}

static void ucx_close(kv_wire_side_t *side)
{
    while (side->pipes != NULL) {
        ucx_drop(side->pipes);
    }
    for (uint32_t i = 0; i < side->request_count; i++) {
        ucx_reject(side, &side->requests[i]);
    }
    if (side->listener != NULL) {
        ucp_listener_destroy(side->listener);
    }
    if (side->worker != NULL) {
        ucp_worker_destroy(side->worker);
    }
    if (side->context != NULL) {
        ucp_cleanup(side->context);
    }
    if (side->epoll_fd >= 0) {
        close(side->epoll_fd);
    }
    free(side);
}

static kv_status_t ucx_open(
    const kv_wire_params_t *params, kv_wire_side_t **side_out, kv_error_t *error)
{
    kv_wire_side_t *side = kv_allocate(sizeof *side);
    side->params = *params;
    side->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    kv_status_t status;
    int worker_fd;
    if (side->epoll_fd < 0) {
        status = kv_fail_errno(error, errno, "cannot make an epoll descriptor");
    } else {
        status = context_open(params->shm, &side->context, error);
    }
    if (status == KV_OK) {
        status = worker_open(side, 0, &side->worker, &worker_fd, error);
    }
    if (status == KV_OK) {
        status = listener_open(side, error);
    }
    if (status != KV_OK) {
        ucx_close(side);
        return status;
    }
    side->params.host = NULL; /* borrowed for the call alone */
    *side_out = side;
    return KV_OK;
}

static uint16_t ucx_port(const kv_wire_side_t *side)
{
    return side->port;
}

static int ucx_fd(const kv_wire_side_t *side)
{
    return side->epoll_fd;
}

static uint64_t ucx_rendezvous_count(const kv_wire_side_t *side)
{
    return side->rendezvous_count;
}

const kv_wire_driver_t kv_wire_ucx = {
    .name = "ucx",
    .open = ucx_open,
    .close = ucx_close,
    .port = ucx_port,
    .connect = ucx_connect,
    .accept = ucx_accept,
    .reject = ucx_reject,
    .send = ucx_send,
    .describe = ucx_describe,
    .drop = ucx_drop,
    .progress = ucx_progress,
    .arm = ucx_arm,
    .fd = ucx_fd,
    .rendezvous_count = ucx_rendezvous_count,
};
