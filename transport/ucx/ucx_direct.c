/* Direct messages: the data lies in a device's memory on both ends, and no processor of a host
 * touches it. They are UCX's active messages by rendezvous: the sender offers, the receiver says
 * where the data goes, and *reads* it from there (RNDV_SCHEME=get_zcopy, ucx_wire.c). UCX chooses
 * how by what the memory is: between two GPUs of a host by CUDA's handles (cuda_ipc), between two
 * processes whose device is this host's memory after all by cma.
 *
 *   both, once the endpoint is there    REACH  how my memory is reached  ->
 *   sender                              DIRECT head; data: an offer      ->
 *   receiver, when there is room        reads; tells UCX's sender that it has
 *
 * Why the receiver reads: memory that a peer writes to would have to be fenced off from that peer
 * before it could be used again; memory that only this side's requests write to is safe once they
 * have ended, and they end with the worker. A sender's buffer that is used again too early gives
 * its reader bytes that their checksums do not fit.
 *
 * In error mode NONE, which shared memory needs, requests that are out when a worker is destroyed
 * may never be heard of again: so every one is in a list, and those that are left when the worker
 * is gone are ended here. */
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "transport/ucx/ucx_internal.h"

#include <stdlib.h>
#include <string.h>

enum { OFFERS_MAX = KV_WIRE_BUFFERS }; /* of a pipe: more than a peer has in flight */

/* That a read of a few MiB takes; it needs nothing of the peer's threads. */
#define READS_LIMIT_NS (2ull * KV_NS_PER_S)

/* A message in UCX's hands. */
struct flight {
    flight_t *next;
    kv_wire_pipe_t *pipe;
    void *tag; /* a sender's */
    void *to;  /* a receiver's; NULL: it is sent */
    size_t count;
};

/* A message that waits for memory to go to. */
struct offer {
    offer_t *next;
    void *descriptor; /* UCX's */
    size_t count, head_bytes;
    uint8_t head[];
};

ucs_memory_type_t direct_memory_type(kv_network_t network)
{
    return network == KV_NETWORK_CUDA ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
}

/* ---- memory ---- */

kv_status_t direct_map(kv_wire_side_t *side, void *memory, size_t bytes, kv_error_t *error)
{
    const ucs_memory_type_t type = direct_memory_type(side->params.network);
    ucp_context_attr_t known = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    ucs_status_t status = ucp_context_query(side->context, &known);
    if (status == UCS_OK && (known.memory_types & UCS_BIT(type)) == 0) {
        return kv_fail(error, KV_MISSING,
            "this UCX knows no %s memory: it was built, or is installed, without its CUDA modules",
            ucs_memory_type_names[type]);
    }
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        .address = memory,
        .length = bytes,
        .memory_type = type,
    };
    if (status == UCS_OK) {
        status = ucp_mem_map(side->context, &params, &side->mapped);
    }
    return status == UCS_OK ? KV_OK
                            : kv_fail(error, status_from_ucs(status),
                                  "UCX cannot register %zu bytes of %s memory: %s", bytes,
                                  ucs_memory_type_names[type], ucs_status_string(status));
}

void direct_unmap(kv_wire_side_t *side)
{
    if (side->mapped != NULL) {
        ucp_mem_unmap(side->context, side->mapped);
        side->mapped = NULL;
    }
}

/* ---- in flight ---- */

static flight_t *take_off(kv_wire_pipe_t *pipe, void *tag, void *to, size_t count)
{
    flight_t *flight = kv_allocate(sizeof *flight);
    *flight = (flight_t){pipe->direct.flights, pipe, tag, to, count};
    pipe->direct.flights = flight;
    return flight;
}

/* Gives what the flight was about back to its owner. */
static void land(flight_t *flight, kv_status_t status)
{
    kv_wire_pipe_t *pipe = flight->pipe;
    const kv_wire_upcalls_t *upcalls = &pipe->side->params.upcalls;
    flight_t **at = &pipe->direct.flights;
    while (*at != flight) {
        at = &(*at)->next;
    }
    *at = flight->next;
    if (flight->to != NULL) {
        upcalls->arrived(pipe->owner, flight->to, status);
    } else {
        upcalls->sent(pipe->owner, flight->tag, status);
    }
    free(flight);
}

static ucp_request_param_t request_params(const kv_wire_pipe_t *pipe, flight_t *flight)
{
    return (ucp_request_param_t){
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .user_data = flight,
        .memory_type = direct_memory_type(pipe->side->params.network),
    };
}

/* ---- the sender ---- */

static void on_direct_sent(void *request, ucs_status_t status, void *user_data)
{
    ucp_request_free(request);
    land(user_data, status_from_ucs(status));
}

bool direct_reaches(const kv_wire_pipe_t *pipe)
{
    return pipe->side->mapped != NULL && pipe->direct.there && !pipe->broken;
}

kv_status_t direct_send(kv_wire_pipe_t *pipe, const void *head, size_t head_bytes, const void *data,
    size_t count, void *tag)
{
    if (!direct_reaches(pipe)) {
        return KV_PEER_LOST;
    }
    flight_t *flight = take_off(pipe, tag, NULL, count);
    ucp_request_param_t params = request_params(pipe, flight);
    params.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    params.cb.send = on_direct_sent;
    params.flags = UCP_AM_SEND_FLAG_RNDV;
    ucs_status_ptr_t request =
        ucp_am_send_nbx(pipe->endpoint, DIRECT_ID, head, head_bytes, data, count, &params);
    if (UCS_PTR_IS_PTR(request)) {
        return KV_BUSY;
    }
    pipe->direct.flights = flight->next; /* the newest */
    free(flight);
    return UCS_PTR_IS_ERR(request) ? status_from_ucs(UCS_PTR_STATUS(request)) : KV_OK;
}

/* ---- the receiver ---- */

static void on_direct_received(void *request, ucs_status_t status, size_t count, void *user_data)
{
    flight_t *flight = user_data;
    if (request != NULL) {
        ucp_request_free(request);
    }
    const bool whole = status != UCS_OK || count == flight->count;
    land(flight, whole ? status_from_ucs(status) : KV_CORRUPT);
}

static void begin_reading(kv_wire_pipe_t *pipe, void *descriptor, void *to, size_t count)
{
    flight_t *flight = take_off(pipe, NULL, to, count);
    ucp_request_param_t params = request_params(pipe, flight);
    params.op_attr_mask |= UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    params.cb.recv_am = on_direct_received;
    ucs_status_ptr_t request = ucp_am_recv_data_nbx(pipe->worker, descriptor, to, count, &params);
    if (!UCS_PTR_IS_PTR(request)) {
        land(flight, status_from_ucs(UCS_PTR_RAW_STATUS(request)));
    }
}

static kv_status_t ask(
    kv_wire_pipe_t *pipe, const void *head, size_t head_bytes, size_t count, void **to_out)
{
    return pipe->side->params.upcalls.offered(pipe->owner, head, head_bytes, count, to_out);
}

static ucs_status_t wait_for_room(
    kv_wire_pipe_t *pipe, const void *head, size_t head_bytes, void *descriptor, size_t count)
{
    direct_t *direct = &pipe->direct;
    if (direct->offer_count == OFFERS_MAX) {
        pipe_break(pipe, KV_INVALID, "it offers more messages at once than it may");
        return UCS_OK;
    }
    offer_t *offer = kv_allocate(sizeof *offer + head_bytes);
    *offer = (offer_t){.descriptor = descriptor, .count = count, .head_bytes = head_bytes};
    memcpy(offer->head, head, head_bytes);
    *direct->offers_tail = offer;
    direct->offers_tail = &offer->next;
    direct->offer_count++;
    return UCS_INPROGRESS;
}

/* UCS_OK to an offer that is not taken drops it. */
static ucs_status_t on_direct(void *argument, const void *head, size_t head_bytes, void *data,
    size_t count, const ucp_am_recv_param_t *params)
{
    kv_wire_pipe_t *pipe = argument;
    if (pipe->broken || pipe->owner == NULL) {
        return UCS_OK;
    }
    if (!pipe->direct.here || (params->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) {
        pipe_break(
            pipe, KV_INVALID, "it sends from a device's memory, unasked or without offering");
        return UCS_OK;
    }
    void *to;
    const kv_status_t status =
        pipe->direct.offers != NULL ? KV_BUSY : ask(pipe, head, head_bytes, count, &to);
    if (status == KV_BUSY) {
        return wait_for_room(pipe, head, head_bytes, data, count);
    }
    if (status != KV_OK) {
        return UCS_OK;
    }
    begin_reading(pipe, data, to, count);
    return UCS_INPROGRESS;
}

static void forget_offer(direct_t *direct)
{
    offer_t *offer = direct->offers;
    direct->offers = offer->next;
    direct->offer_count--;
    if (direct->offers == NULL) {
        direct->offers_tail = &direct->offers;
    }
    free(offer);
}

unsigned direct_progress(kv_wire_pipe_t *pipe)
{
    direct_t *direct = &pipe->direct;
    unsigned happened = 0;
    void *to;
    while (direct->offers != NULL && !pipe->broken) {
        offer_t *offer = direct->offers;
        const kv_status_t status = ask(pipe, offer->head, offer->head_bytes, offer->count, &to);
        if (status == KV_BUSY) {
            break;
        }
        if (status == KV_OK) {
            begin_reading(pipe, offer->descriptor, to, offer->count);
        } else {
            ucp_am_data_release(pipe->worker, offer->descriptor);
        }
        forget_offer(direct);
        happened++;
    }
    return happened;
}

/* ---- life ---- */

kv_status_t direct_open(kv_wire_pipe_t *pipe, kv_error_t *error)
{
    pipe->direct.offers_tail = &pipe->direct.offers;
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = DIRECT_ID,
        .cb = on_direct,
        .arg = pipe,
    };
    ucs_status_t status = ucp_worker_set_am_recv_handler(pipe->worker, &handler);
    return status == UCS_OK ? KV_OK
                            : kv_fail(error, status_from_ucs(status),
                                  "cannot receive UCX messages: %s", ucs_status_string(status));
}

/* The head goes whole in UCX's offer, beside what UCX itself has to say. */
static bool heads_fit(const kv_wire_pipe_t *pipe)
{
    ucp_worker_attr_t attributes = {.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER};
    return ucp_worker_query(pipe->worker, &attributes) == UCS_OK &&
           attributes.max_am_header >= KV_WIRE_HEAD_BYTES;
}

void direct_reach(kv_wire_pipe_t *pipe)
{
    if (pipe->side->mapped == NULL || !pipe->shm || pipe->direct.here) {
        return;
    }
    if (!heads_fit(pipe)) {
        kv_log_info("transport",
            "messages to this peer pass through this process's memory: UCX "
            "takes shorter heads than %d bytes",
            KV_WIRE_HEAD_BYTES);
        return;
    }
    pipe->direct.here = true;
    if (pipe->endpoint != NULL) {
        share_say_reach(pipe);
    }
}

static bool is_reading(const kv_wire_pipe_t *pipe)
{
    const flight_t *flight = pipe->direct.flights;
    while (flight != NULL && flight->to == NULL) {
        flight = flight->next;
    }
    return flight != NULL;
}

/* UCX's single-copy transports stop the process (an assertion of theirs) when an endpoint goes
 * while a read is in its queue. Who was stopped can still be read, and reading who is gone fails.
 */
bool direct_end_reads(kv_wire_pipe_t *pipe)
{
    const uint64_t end_ns = kv_clock_now_ns() + READS_LIMIT_NS;
    pipe->broken = true; /* nothing begins any more */
    while (is_reading(pipe) && kv_clock_now_ns() < end_ns) {
        ucp_worker_progress(pipe->worker);
    }
    return !is_reading(pipe);
}

void direct_close(kv_wire_pipe_t *pipe)
{
    while (pipe->direct.flights != NULL) {
        land(pipe->direct.flights, KV_CANCELLED);
    }
    while (pipe->direct.offers != NULL) { /* UCX's side of them went with the worker */
        forget_offer(&pipe->direct);
    }
}
