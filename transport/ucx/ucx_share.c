/* Messages over shared memory that nobody carries: the sender builds them in its segment, the
 * receiver reads them there and writes them where they belong. UCX carries words alone:
 *
 *   both, once the endpoint is there    OFFER  name of my segment   ->
 *   who could map it                                                <-  MAPPED
 *   sender of a large message           NOTICE place and length     ->
 *   receiver, when it has read it                                   <-  TAKEN place
 *   who takes direct messages           REACH  of what memory       ->  (ucx_direct.c)
 *
 * Without MAPPED (another user, other process ids, no /proc) messages go eagerly, as over TCP. A
 * buffer is lent from its NOTICE to its TAKEN, or to the end of the pipe; its owner does not touch
 * it meanwhile. A receiver that is stopped in the middle reads rubbish when it goes on: what is in
 * it is proved by checksums, and its length is the NOTICE's, not the segment's.
 *
 * Why: UCX's own eager messages over shared memory go through a queue of 512 KiB (64 segments of
 * 8 KiB) and a buffer of the whole message, two copies and a wake-up on either side for each
 * 512 KiB; its rendezvous (cma) is one copy by the kernel at the rate of a cold memcpy, and what is
 * verified is read again. Here each side makes one pass, hashing and copying at once. */
#include "base/log.h"
#include "base/memory.h"
#include "transport/ucx/ucx_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    NOTICE_BYTES_MIN = 8 << 10, /* UCX's own segment: what fits there is as well carried */
    WORDS_MAX = 64,             /* a peer that reads has a few of ours to read at most */
};

typedef struct {
    uint64_t offset, bytes;
} notice_t;

/* A word in UCX's hands. */
typedef struct {
    kv_wire_pipe_t *pipe;
    union {
        kv_segment_name_t offer;
        notice_t notice;
        uint64_t taken;
        uint64_t network; /* REACH: a kv_network_t */
    };
} word_t;

static void on_word_sent(void *request, ucs_status_t status, void *user_data)
{
    word_t *word = user_data;
    word->pipe->share.words--;
    if (status != UCS_OK) {
        pipe_break(word->pipe, status_from_ucs(status), "a word about shared memory was lost");
    }
    free(word);
    ucp_request_free(request);
}

static void say(kv_wire_pipe_t *pipe, unsigned id, const word_t *what, size_t bytes)
{
    if (pipe->share.words == WORDS_MAX) {
        pipe_break(pipe, KV_PEER_LOST, "it does not read, and wants to be read");
        return;
    }
    word_t *word = kv_allocate(sizeof *word);
    *word = *what;
    word->pipe = pipe;
    pipe->share.words++;
    ucp_request_param_t params = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .cb.send = on_word_sent,
        .user_data = word,
        .flags = UCP_AM_SEND_FLAG_EAGER,
    };
    ucs_status_ptr_t request =
        ucp_am_send_nbx(pipe->endpoint, id, NULL, 0, &word->offer, bytes, &params);
    if (UCS_PTR_IS_PTR(request)) {
        return;
    }
    pipe->share.words--;
    free(word);
    if (UCS_PTR_IS_ERR(request)) {
        pipe_break(pipe, status_from_ucs(UCS_PTR_STATUS(request)), "cannot send");
    }
}

/* ---- the receiver ---- */

static void map_offer(kv_wire_pipe_t *pipe, const kv_segment_name_t *name)
{
    share_t *share = &pipe->share;
    kv_error_t error;
    kv_status_t status = KV_OK;
    if (share->theirs != NULL || name->bytes == 0 ||
        name->bytes > KV_WIRE_BUFFERS * pipe->side->params.message_bytes_max) {
        status = kv_fail(&error, KV_REFUSED, "an offer of %llu bytes that is not expected",
            (unsigned long long)name->bytes);
    } else {
        status = kv_segment_map(name, &share->theirs, &error);
    }
    if (status != KV_OK) {
        kv_log_info("transport", "messages of this peer are copied: %s", error.text);
        return;
    }
    share->theirs_bytes = name->bytes;
    say(pipe, MAPPED_ID, &(word_t){.taken = 0}, 0);
}

static void read_notice(kv_wire_pipe_t *pipe, const notice_t *notice)
{
    share_t *share = &pipe->share;
    if (notice->bytes > pipe->side->params.message_bytes_max ||
        notice->bytes > share->theirs_bytes ||
        notice->offset > share->theirs_bytes - notice->bytes) {
        pipe_break(pipe, KV_INVALID, "it names a message outside of its shared memory");
        return;
    }
    pipe->side->params.upcalls.received(pipe->owner, share->theirs + notice->offset, notice->bytes);
    say(pipe, TAKEN_ID, &(word_t){.taken = notice->offset}, sizeof notice->offset);
}

/* ---- the sender ---- */

static void take_back(kv_wire_pipe_t *pipe, uint64_t offset)
{
    const size_t buffer_bytes = pipe->side->params.message_bytes_max;
    const uint64_t index = offset / buffer_bytes;
    if (offset % buffer_bytes != 0 || index >= KV_WIRE_BUFFERS ||
        !pipe->share.buffers[index].lent) {
        pipe_break(pipe, KV_INVALID, "it gives back shared memory that it was not lent");
        return;
    }
    pipe->share.buffers[index].lent = false;
    pipe->side->params.upcalls.sent(pipe->owner, pipe->share.buffers[index].tag, KV_OK);
}

bool share_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag)
{
    share_t *share = &pipe->share;
    const size_t buffer_bytes = pipe->side->params.message_bytes_max;
    const uintptr_t from = (uintptr_t)bytes, base = (uintptr_t)share->own.base;
    if (!share->read || count < NOTICE_BYTES_MIN || from < base ||
        from - base >= share->own.bytes || (from - base) % buffer_bytes != 0) {
        return false;
    }
    const size_t index = (from - base) / buffer_bytes;
    share->buffers[index].lent = true;
    share->buffers[index].tag = tag;
    say(pipe, NOTICE_ID, &(word_t){.notice = {from - base, count}}, sizeof(notice_t));
    return true;
}

/* ---- words ---- */

static ucs_status_t on_word(void *argument, unsigned id, const void *data, size_t count)
{
    static const size_t BYTES[] = {[OFFER_ID] = sizeof(kv_segment_name_t),
        [MAPPED_ID] = 0,
        [NOTICE_ID] = sizeof(notice_t),
        [TAKEN_ID] = sizeof(uint64_t),
        [REACH_ID] = sizeof(uint64_t)};
    kv_wire_pipe_t *pipe = argument;
    if (pipe->broken || pipe->owner == NULL || pipe->endpoint == NULL) {
        return UCS_OK;
    }
    if (count != BYTES[id]) {
        pipe_break(pipe, KV_INVALID, "a word about shared memory of another length");
        return UCS_OK;
    }
    word_t word = {.pipe = NULL};
    memcpy(&word.offer, data, count);
    switch (id) {
    case OFFER_ID:
        map_offer(pipe, &word.offer);
        break;
    case MAPPED_ID:
        pipe->share.read = pipe->share.own.base != NULL;
        break;
    case NOTICE_ID:
        read_notice(pipe, &word.notice);
        break;
    case REACH_ID:
        pipe->direct.there = word.network == (uint64_t)pipe->side->params.network;
        break;
    default:
        take_back(pipe, word.taken);
        break;
    }
    return UCS_OK;
}

#define WORD_HANDLER(name, id)                                                                     \
    static ucs_status_t name(void *argument, const void *header, size_t header_bytes, void *data,  \
        size_t count, const ucp_am_recv_param_t *params)                                           \
    {                                                                                              \
        (void)header, (void)header_bytes;                                                          \
        return (params->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0                               \
                   ? on_word(argument, id, data, count)                                            \
                   : UCS_OK; /* refuses the offer */                                               \
    }

WORD_HANDLER(on_offer, OFFER_ID)
WORD_HANDLER(on_mapped, MAPPED_ID)
WORD_HANDLER(on_notice, NOTICE_ID)
WORD_HANDLER(on_taken, TAKEN_ID)
WORD_HANDLER(on_reach, REACH_ID)

/* ---- life ---- */

static ucs_status_t set_handlers(kv_wire_pipe_t *pipe)
{
    static const ucp_am_recv_callback_t HANDLERS[] = {[OFFER_ID] = on_offer,
        [MAPPED_ID] = on_mapped,
        [NOTICE_ID] = on_notice,
        [TAKEN_ID] = on_taken,
        [REACH_ID] = on_reach};
    ucs_status_t status = UCS_OK;
    for (unsigned id = OFFER_ID; id <= REACH_ID && status == UCS_OK; id++) {
        ucp_am_handler_param_t handler = {
            .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                          UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
            .id = id,
            .cb = HANDLERS[id],
            .arg = pipe,
            .flags = UCP_AM_FLAG_WHOLE_MSG,
        };
        status = ucp_worker_set_am_recv_handler(pipe->worker, &handler);
    }
    return status;
}

void share_open(kv_wire_pipe_t *pipe)
{
    kv_error_t error;
    const size_t bytes = KV_WIRE_BUFFERS * pipe->side->params.message_bytes_max;
    if (set_handlers(pipe) != UCS_OK ||
        kv_segment_create(bytes, &pipe->share.own, &error) != KV_OK) {
        kv_log_info("transport", "messages to this peer are copied: no memory to share");
    }
}

void share_offer(kv_wire_pipe_t *pipe)
{
    word_t word = {.pipe = NULL};
    if (pipe->share.own.base != NULL &&
        kv_segment_name(&pipe->share.own, &word.offer, NULL) == KV_OK) {
        say(pipe, OFFER_ID, &word, sizeof word.offer);
    }
    if (pipe->direct.here) {
        share_say_reach(pipe);
    }
}

void share_say_reach(kv_wire_pipe_t *pipe)
{
    const uint64_t network = (uint64_t)pipe->side->params.network;
    say(pipe, REACH_ID, &(word_t){.network = network}, sizeof network);
}

void *share_buffer(kv_wire_pipe_t *pipe, uint32_t index)
{
    return pipe->share.own.base != NULL
               ? pipe->share.own.base + index * pipe->side->params.message_bytes_max
               : NULL;
}

void share_close(kv_wire_pipe_t *pipe)
{
    share_t *share = &pipe->share;
    for (size_t i = 0; i < KV_WIRE_BUFFERS; i++) {
        if (share->buffers[i].lent) {
            share->buffers[i].lent = false;
            pipe->side->params.upcalls.sent(pipe->owner, share->buffers[i].tag, KV_CANCELLED);
        }
    }
    if (share->theirs != NULL) {
        munmap((void *)share->theirs, share->theirs_bytes);
    }
    kv_segment_destroy(&share->own);
}
