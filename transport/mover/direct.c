/* Direct messages: from this device's memory to the peer's, past the memory of both processes.
 *
 *   sender    slots --move, sealed--> buffer      the receiver's wire reads it
 *   receiver                                      buffer --move, proved--> slots
 *
 * Buffers instead of the slots themselves: a layer's blocks are a few KiB each, a network wants one
 * long read; a few MiB are registered instead of all that the device has; and a slot is written to
 * on this thread alone, after its bytes have come, so that the fence of receive.c holds here too.
 * Within the device the extra copy costs a hundredth of the way.
 *
 * Whatever is missing (a device that a network reaches, memory, a wire that can, a peer with the
 * same), messages pass through this process's memory. */
#include "base/log.h"
#include "base/memory.h"
#include "transport/mover/mover_internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    /* Of data; a unit, where that is larger. A move takes some tens of microseconds, whatever it
     * moves. */
    BUFFER_BYTES = 4 << 20,
    POOL_BYTES_MAX = 64 << 20, /* in either direction: more is not worth it */
    BUFFERS_MIN = 2,
    FAILURES_MAX = 3, /* links in a row that broke while they were read */
};

/* ---- life ---- */

static kv_status_t open_pool(kv_mover_t *mover, kv_error_t *error)
{
    direct_t *direct = &mover->direct;
    const kv_device_ops_t *ops = mover->device->ops;
    void *memory;
    kv_status_t status = ops->allocate(mover->device, direct->bytes, &memory, error);
    if (status != KV_OK) {
        return status;
    }
    status = mover->driver->map(mover->side, memory, direct->bytes, error);
    if (status != KV_OK) {
        ops->release(mover->device, memory, direct->bytes);
        return status;
    }
    direct->memory = memory;
    return KV_OK;
}

void direct_setup(kv_mover_t *mover)
{
    direct_t *direct = &mover->direct;
    if (mover->driver->map == NULL || mover->device->ops->network == KV_NETWORK_NONE) {
        return;
    }
    direct->buffer_bytes = mover->unit_bytes > BUFFER_BYTES ? mover->unit_bytes : BUFFER_BYTES;
    const size_t count = POOL_BYTES_MAX / direct->buffer_bytes;
    direct->count = count < DIRECT_BUFFERS_MAX ? (uint32_t)count : (uint32_t)DIRECT_BUFFERS_MAX;
    kv_error_t error;
    if (direct->count < BUFFERS_MIN) {
        kv_log_info("transport",
            "kv passes through this process's memory: a unit of %zu bytes is too large for "
            "messages between devices",
            mover->unit_bytes);
        return;
    }
    direct->bytes = 2 * (size_t)direct->count * direct->buffer_bytes;
    if (open_pool(mover, &error) != KV_OK) {
        kv_log_info("transport", "kv passes through this process's memory: %s", error.text);
        return;
    }
    kv_log_info("transport", "kv goes from device to device where peers can buffers %u bytes %zu",
        2 * direct->count, direct->bytes);
}

void direct_teardown(kv_mover_t *mover)
{
    if (mover->direct.memory != NULL) {
        mover->device->ops->release(mover->device, mover->direct.memory, mover->direct.bytes);
    }
}

void direct_offer_link(link_t *link)
{
    kv_mover_t *mover = link->mover;
    if (mover->direct.memory != NULL && mover->direct.failures < FAILURES_MAX) {
        mover->driver->reach(link->pipe);
    }
}

bool direct_possible(const link_t *link)
{
    const kv_mover_t *mover = link->mover;
    return mover->direct.memory != NULL && mover->driver->reaches(link->pipe);
}

/* ---- sending ---- */

uint8_t *direct_take(kv_mover_t *mover)
{
    direct_t *direct = &mover->direct;
    for (uint32_t i = 0; i < direct->count; i++) {
        if (!direct->sending[i]) {
            direct->sending[i] = true;
            return direct->memory + i * direct->buffer_bytes;
        }
    }
    return NULL;
}

void direct_give(kv_mover_t *mover, const uint8_t *buffer)
{
    direct_t *direct = &mover->direct;
    direct->sending[(size_t)(buffer - direct->memory) / direct->buffer_bytes] = false;
}

/* ---- receiving ---- */

static uint8_t *buffer_of(const direct_t *direct, uint32_t arrival)
{
    return direct->memory + (direct->count + arrival) * direct->buffer_bytes;
}

static kv_status_t take_arrival(
    link_t *link, const void *head, size_t head_bytes, size_t bytes, void **to_out)
{
    direct_t *direct = &link->mover->direct;
    uint32_t at = 0;
    while (at < direct->count && direct->arrivals[at].link != NULL) {
        at++;
    }
    if (at == direct->count) {
        return KV_BUSY;
    }
    direct->arrivals[at] = (arrival_t){link, kv_allocate(head_bytes), head_bytes, bytes};
    memcpy(direct->arrivals[at].head, head, head_bytes);
    *to_out = buffer_of(direct, at);
    return KV_OK;
}

kv_status_t direct_offered(
    void *owner, const void *head, size_t head_bytes, size_t count, void **to_out)
{
    link_t *link = owner;
    kv_data_blocks_t blocks;
    kv_error_t error;
    if (link->state != LINK_UP) {
        return KV_REFUSED;
    }
    if (link->mover->direct.memory == NULL || count > link->mover->direct.buffer_bytes) {
        link_fail(link, KV_INVALID, "the peer sent a message of %zu bytes to a device", count);
        return KV_INVALID;
    }
    if (kv_data_head_decode(head, head_bytes, count, &blocks, &error) != KV_OK) {
        link_fail(link, KV_INVALID, "%s", error.text);
        return KV_INVALID;
    }
    return receive_admit(link, &blocks) != NULL
               ? take_arrival(link, head, head_bytes, count, to_out)
               : KV_MISSING;
}

/* What was admitted when it was offered is admitted again: its slots may have got another life
 * while it was read. */
static void write_arrival(link_t *link, const arrival_t *arrival, const uint8_t *data)
{
    incoming_t incoming;
    kv_error_t error;
    if (kv_data_head_decode(arrival->head, arrival->head_bytes, arrival->bytes, &incoming.blocks,
            &error) != KV_OK) {
        link_fail(link, KV_INVALID, "%s", error.text);
        return;
    }
    incoming.checksums = arrival->head + kv_data_checksum_at(&incoming.blocks, 0);
    incoming.data = data;
    incoming.beside = true;
    expectation_t **at = receive_admit(link, &incoming.blocks);
    if (at != NULL) {
        receive_write(link, at, &incoming);
    }
}

static void count_failure(kv_mover_t *mover)
{
    if (++mover->direct.failures == FAILURES_MAX) {
        kv_log_warn("transport",
            "peers' device memory could not be read on %d links in a row; kv passes through this "
            "process's memory from now on, until the node is started again",
            FAILURES_MAX);
    }
}

void direct_arrived(void *owner, void *to, kv_status_t status)
{
    link_t *link = owner;
    kv_mover_t *mover = link->mover;
    direct_t *direct = &mover->direct;
    const size_t at = (size_t)((uint8_t *)to - buffer_of(direct, 0)) / direct->buffer_bytes;
    arrival_t arrival = direct->arrivals[at];
    if (link->state == LINK_UP && status == KV_OK) {
        direct->failures = 0;
        atomic_fetch_add(&mover->received_messages, 1);
        atomic_fetch_add(&mover->received_direct_messages, 1);
        write_arrival(link, &arrival, to);
    } else if (link->state == LINK_UP) {
        count_failure(mover);
        link_fail(link, KV_PEER_LOST, "the peer's device memory could not be read: %s",
            kv_status_name(status));
    }
    free(arrival.head);
    direct->arrivals[at] = (arrival_t){.link = NULL};
}
