/* What a peer may do to this node's slots over the data connection: the mover's own code for links
 * and receiving, on one thread, over a wire that is nothing but this file. The input is a list of
 * things that happen (a request for a pipe, a message, a revoke, an end); a model beside it says
 * which bytes of which slot may have changed, and no other byte ever does. */
#include "base/checksum.h"
#include "base/memory.h"
#include "fuzz.h"
#include "transport/mover/mover_internal.h"

enum {
    SLOTS = 8,
    UNITS = 3,
    UNIT_BYTES = 32,
    SLOT_BYTES = UNITS * UNIT_BYTES,
    BLOCKS = 3, /* of the transfer: slots 2, 5, 6 */
    THINGS_MAX = 64,
};

static const uint64_t TRANSFER = 0x1122334455667788, OTHER_TRANSFER = 0x1122334455667789;
static const uint32_t TRANSFER_SLOTS[BLOCKS] = {2, 5, 6}, OTHER_SLOTS[1] = {3};
static const kv_range_t PARTS[] = {{0, 0, UNIT_BYTES}, {0, 2 * UNIT_BYTES, UNIT_BYTES}};

/* ---- a wire that goes nowhere ---- */

static kv_status_t wire_accept(kv_wire_side_t *side, kv_wire_request_t *request, bool shm,
    void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    (void)side, (void)request, (void)shm, (void)error;
    *pipe_out = owner;
    return KV_OK;
}

static kv_status_t wire_connect(kv_wire_side_t *side, const char *host, uint16_t port, uint64_t id,
    bool shm, void *owner, kv_wire_pipe_t **pipe_out, kv_error_t *error)
{
    (void)side, (void)host, (void)port, (void)id, (void)shm, (void)error;
    *pipe_out = owner;
    return KV_OK;
}

static void wire_reject(kv_wire_side_t *side, kv_wire_request_t *request)
{
    (void)side, (void)request;
}

static kv_status_t wire_send(kv_wire_pipe_t *pipe, const void *bytes, size_t count, void *tag)
{
    (void)pipe, (void)bytes, (void)count, (void)tag;
    return KV_OK;
}

static kv_status_t wire_describe(
    kv_wire_pipe_t *pipe, kv_wire_t *wire_out, char *text_out, size_t text_bytes)
{
    (void)pipe;
    *wire_out = KV_WIRE_TCP;
    snprintf(text_out, text_bytes, "tcp");
    return KV_OK;
}

static void wire_drop(kv_wire_pipe_t *pipe)
{
    (void)pipe;
}

static const kv_wire_driver_t WIRE = {
    .name = "fuzz",
    .accept = wire_accept,
    .connect = wire_connect,
    .reject = wire_reject,
    .send = wire_send,
    .describe = wire_describe,
    .drop = wire_drop,
};

static kv_status_t copy_in(
    kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(device_to, from, bytes);
    return KV_OK;
}

/* One whose memory is written to directly, and one that copies. */
static const kv_device_ops_t DEVICE_OPS[2] = {
    {.name = "fuzz", .copy_in = copy_in}, {.name = "fuzz, host", .copy_in = copy_in, .host = true}};
static kv_device_t device;

/* ---- the model ---- */

typedef struct {
    uint8_t arena[SLOTS * SLOT_BYTES];
    bool received[BLOCKS][UNITS];
    uint32_t left;
    bool expected, failed, landed;
    /* Damage lies in slots, unsaid: on the way there it is found. Where one range goes to memory of
     * this process nothing is written behind it; else a move has written the whole message. */
    bool host;
} model_t;

typedef struct {
    kv_mover_t mover;
    link_t *link; /* NULL once it ended */
    uint8_t arena[SLOTS * SLOT_BYTES];
    model_t model;
    uint32_t landed, failed, revoked, revokes;
} world_t;

/* The ranges of a message, as docs/formats.md says them. */
typedef struct {
    uint64_t count, sum, head;
    uint64_t offset[KV_DATA_RANGES_MAX], bytes[KV_DATA_RANGES_MAX];
} model_ranges_t;

/* false: ends the link. */
static bool model_ranges(const uint8_t *bytes, size_t count, model_ranges_t *ranges)
{
    uint64_t more = kv_get_u32(bytes + 32);
    *ranges = (model_ranges_t){.count = 1 + more, .head = 40 + 16 * more};
    if (more > 127 || count < ranges->head) {
        return false;
    }
    uint64_t end = 0;
    for (uint64_t i = 0; i < ranges->count; i++) {
        const uint8_t *at = bytes + 24 + 16 * i; /* of the table, where i > 0 */
        ranges->offset[i] = kv_get_u64(i == 0 ? bytes + 24 : at);
        ranges->bytes[i] = kv_get_u32(i == 0 ? bytes + 20 : at + 8);
        if ((i > 0 && kv_get_u32(at + 12) != 0) || ranges->bytes[i] == 0 ||
            ranges->offset[i] < end || ranges->offset[i] + ranges->bytes[i] < ranges->offset[i]) {
            return false;
        }
        end = ranges->offset[i] + ranges->bytes[i];
        ranges->sum += ranges->bytes[i];
    }
    return true;
}

/* The checksum of a block's data by the words of docs/formats.md. */
static uint64_t model_checksum(
    const uint8_t *bytes, uint64_t block, const model_ranges_t *ranges, const uint8_t *data)
{
    uint64_t place = ranges->count == 1 ? 0 : kv_checksum(bytes + 40, ranges->head - 40);
    uint8_t position[24];
    memcpy(position, bytes + 8, 8);
    kv_put_u64(position + 8, block);
    memcpy(position + 16, bytes + 24, 8);
    return kv_checksum_seeded(
        data, ranges->sum, kv_checksum_seeded(position, sizeof position, place));
}

/* Every unit of the block is open, and every range lies in the slot. */
static bool model_open(const model_t *model, uint64_t block, const model_ranges_t *ranges)
{
    for (uint64_t i = 0; i < ranges->count; i++) {
        if (ranges->offset[i] > SLOT_BYTES || ranges->bytes[i] > SLOT_BYTES - ranges->offset[i] ||
            ranges->offset[i] % UNIT_BYTES != 0 || ranges->bytes[i] % UNIT_BYTES != 0) {
            return false;
        }
        for (uint64_t at = 0; at < ranges->bytes[i]; at += UNIT_BYTES) {
            if (model->received[block][(ranges->offset[i] + at) / UNIT_BYTES]) {
                return false;
            }
        }
    }
    return true;
}

static void model_write(
    model_t *model, uint64_t block, const model_ranges_t *ranges, const uint8_t *data)
{
    for (uint64_t i = 0; i < ranges->count; i++) {
        memcpy(model->arena + TRANSFER_SLOTS[block] * SLOT_BYTES + ranges->offset[i], data,
            ranges->bytes[i]);
        data += ranges->bytes[i];
    }
}

static void model_receive(model_t *model, uint64_t block, const model_ranges_t *ranges)
{
    for (uint64_t i = 0; i < ranges->count; i++) {
        for (uint64_t at = 0; at < ranges->bytes[i]; at += UNIT_BYTES) {
            model->received[block][(ranges->offset[i] + at) / UNIT_BYTES] = true;
            model->left--;
        }
    }
}

/* As docs/formats.md says it, a unit at a time and without the decoder under test. */
static void model_message(model_t *model, const uint8_t *bytes, size_t count)
{
    if (count < 40 || memcmp(bytes, "KVB1", 4) != 0 || kv_get_u64(bytes + 8) != TRANSFER ||
        kv_get_u32(bytes + 36) != 0 || !model->expected || model->failed) {
        return;
    }
    uint64_t blocks = kv_get_u32(bytes + 4), first = kv_get_u32(bytes + 16);
    model_ranges_t ranges;
    if (!model_ranges(bytes, count, &ranges) || blocks == 0 || blocks > KV_MOVER_BLOCKS_MAX ||
        count != ranges.head + blocks * 8 + blocks * ranges.sum) {
        return; /* ends the link */
    }
    model->failed = true; /* until all of it was found good */
    const uint8_t *checksums = bytes + ranges.head, *data = checksums + blocks * 8;
    for (uint64_t i = 0; i < blocks; i++) {
        if (first >= BLOCKS || blocks > BLOCKS - first || !model_open(model, first + i, &ranges)) {
            return;
        }
    }
    const bool one_by_one = model->host && ranges.count == 1;
    bool good = true;
    for (uint64_t i = 0; i < blocks && (good || !one_by_one); i++) {
        const uint8_t *block = data + i * ranges.sum;
        model_write(model, first + i, &ranges, block);
        good = good &&
               kv_get_u64(checksums + i * 8) == model_checksum(bytes, first + i, &ranges, block);
        if (good) {
            model_receive(model, first + i, &ranges);
        }
    }
    if (!good) {
        return;
    }
    model->failed = false;
    if (model->left == 0) {
        model->landed = true;
        model->expected = false;
    }
}

/* ---- what happens ---- */

/* parts: the transfer covers the first and the last unit of its slots. */
static void begin(world_t *world, bool connects, bool parts)
{
    *world = (world_t){0};
    for (size_t i = 0; i < sizeof world->arena; i++) {
        world->arena[i] = (uint8_t)(i * 7 + 1);
    }
    memcpy(world->model.arena, world->arena, sizeof world->arena);
    world->model.expected = true;
    world->model.left = BLOCKS * (parts ? 2 : UNITS);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        world->model.received[block][1] = parts;
    }
    kv_mover_t *mover = &world->mover;
    mover->device = &device;
    mover->arena = world->arena;
    mover->slot_count = SLOTS;
    mover->slot_bytes = SLOT_BYTES;
    mover->unit_bytes = UNIT_BYTES;
    mover->units_per_block = UNITS;
    mover->message_bytes = 4096;
    mover->wire = KV_WIRE_TCP;
    mover->driver = &WIRE;
    mover->link_count = 1;
    mover->expectation_count = 2;
    kv_mailbox_init(&mover->commands);
    kv_mailbox_init(&mover->events);
    link_t *link = kv_allocate(sizeof *link);
    *link = (link_t){.mover = mover,
        .id = 1,
        .state = connects ? LINK_NEW : LINK_AWAITED,
        .name = "peer",
        .connects = connects,
        .token = "0123456789abcde"};
    link_adopt(mover, link);
    world->link = link;
    kv_range_t whole = kv_range_alike(0, SLOT_BYTES);
    kv_expectation_t wanted = {TRANSFER, BLOCKS, TRANSFER_SLOTS, &whole, 1};
    if (parts) {
        wanted.ranges = PARTS;
        wanted.range_count = 2;
    }
    receive_adopt(mover, receive_make(mover, 1, &wanted));
    wanted = (kv_expectation_t){OTHER_TRANSFER, 1, OTHER_SLOTS, &whole, 1};
    receive_adopt(mover, receive_make(mover, 1, &wanted));
    mover->expectations[OTHER_TRANSFER % EXPECTATION_BUCKETS]->link = 2; /* of another link */
}

static void deliver(world_t *world, const uint8_t *bytes, size_t count)
{
    if (world->link == NULL) {
        return;
    }
    if (world->link->state == LINK_UP) {
        model_message(&world->model, bytes, count);
    }
    link_received(world->link, bytes, count);
}

/* A message of blocks as the input describes it, with checksums that agree but for one choice. */
static void deliver_blocks(world_t *world, fuzz_input_t *input)
{
    uint8_t choice = fuzz_u8(input);
    kv_data_blocks_t blocks = {
        .transfer_id = choice & 1   ? OTHER_TRANSFER
                       : choice & 2 ? fuzz_u64(input)
                                    : TRANSFER,
        .first_block = choice & 4 ? fuzz_u32(input) : fuzz_u8(input) % (BLOCKS + 1),
        .block_count = 1u + fuzz_u8(input) % BLOCKS,
    };
    uint32_t range_count = 1u + fuzz_u8(input) % 3;
    for (uint32_t i = 0; i < range_count; i++) {
        uint64_t offset = choice & 8 ? fuzz_u64(input) : fuzz_u8(input) % (UNITS + 1) * UNIT_BYTES;
        kv_data_blocks_add(&blocks, offset,
            choice & 16 ? 1u + fuzz_u8(input)
                        : (1u + fuzz_u8(input) % UNITS) * (uint32_t)UNIT_BYTES);
    }
    size_t count = kv_data_blocks_bytes(&blocks);
    uint8_t *message = malloc(count), fill = fuzz_u8(input);
    FUZZ_CHECK(message != NULL);
    kv_data_blocks_encode(message, &blocks);
    for (uint32_t i = 0; i < blocks.block_count; i++) {
        uint8_t *data = message + kv_data_block_at(&blocks, i);
        memset(data, fill + (int)i, blocks.block_bytes);
        kv_put_u64(message + kv_data_checksum_at(&blocks, i),
            kv_checksum_seeded(
                data, blocks.block_bytes, kv_data_seed(&blocks, kv_data_place(&blocks), i)));
    }
    if (choice & 32) {
        message[fuzz_u16(input) % count] ^= fuzz_u8(input);
    }
    deliver(world, message, count);
    free(message);
}

static void revoke(world_t *world)
{
    world->model.expected = false;
    world->revokes++;
    receive_revoke(&world->mover, TRANSFER);
}

static void advance(world_t *world)
{
    bool ends = world->link != NULL && world->link->state == LINK_FAILED;
    links_advance(&world->mover, 0);
    if (ends) {
        world->link = NULL;
        world->model.failed |= world->model.expected;
    }
}

static void request_pipe(world_t *world, uint64_t id)
{
    bool known = world->link != NULL && world->link->state == LINK_AWAITED;
    uint64_t secret = kv_get_u64("0123456789abcde");
    link_requested(&world->mover, NULL, id);
    if (known && id >> 1 != secret >> 1) {
        FUZZ_CHECK(world->link->state == LINK_AWAITED);
    }
}

static void happen(world_t *world, fuzz_input_t *input)
{
    uint8_t open[KV_DATA_OPEN_BYTES], *message;
    size_t count;
    switch (fuzz_u8(input) % 9) {
    case 0:
        request_pipe(world, fuzz_u64(input));
        break;
    case 1:
        request_pipe(world, kv_get_u64("0123456789abcde") >> 1 << 1);
        break;
    case 2:
        kv_data_open_encode(open, (const uint8_t *)"0123456789abcde");
        open[fuzz_u8(input) % sizeof open] ^= fuzz_u8(input);
        deliver(world, open, sizeof open);
        break;
    case 3:
        message = fuzz_take(input, fuzz_u16(input), &count);
        deliver(world, message, count);
        free(message);
        break;
    case 4:
    case 5:
        deliver_blocks(world, input);
        break;
    case 6:
        revoke(world);
        break;
    case 7:
        if (world->link != NULL && fuzz_u8(input) % 8 == 0) {
            link_lost(world->link, KV_PEER_LOST, "lost");
        }
        break;
    default:
        if (world->link != NULL && world->link->connects) {
            link_opened(world->link);
        }
        advance(world);
        break;
    }
}

static void look(world_t *world)
{
    event_mail_t *mail;
    while ((mail = (event_mail_t *)kv_mailbox_pop(&world->mover.events)) != NULL) {
        bool ours = mail->event.transfer_id == TRANSFER;
        world->landed += ours && mail->event.kind == KV_MOVED_LANDED;
        world->failed += ours && mail->event.kind == KV_MOVED_FAILED;
        world->revoked += ours && mail->event.kind == KV_MOVED_REVOKED;
        FUZZ_CHECK(ours || mail->event.kind != KV_MOVED_LANDED);
        free(mail);
    }
    FUZZ_CHECK(memcmp(world->arena, world->model.arena, sizeof world->arena) == 0);
    FUZZ_CHECK(world->landed == world->model.landed);
    FUZZ_CHECK(world->failed == world->model.failed);
    FUZZ_CHECK(world->revoked == world->revokes);
}

static void end(world_t *world)
{
    kv_mover_t *mover = &world->mover;
    if (world->link != NULL) {
        link_fail(world->link, KV_CANCELLED, "the end");
    }
    links_advance(mover, 0);
    FUZZ_CHECK(mover->links == NULL && mover->link_count == 0 && mover->links_up == 0);
    for (size_t i = 0; i < EXPECTATION_BUCKETS; i++) {
        while (mover->expectations[i] != NULL) {
            expectation_t *next = mover->expectations[i]->next;
            receive_free(mover->expectations[i]);
            mover->expectations[i] = next;
        }
    }
    kv_mailbox_clear(&mover->commands);
    kv_mailbox_clear(&mover->events);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static world_t world;
    fuzz_input_t input = {bytes, count};
    uint8_t choice = fuzz_u8(&input);
    device.ops = &DEVICE_OPS[choice >> 2 & 1];
    begin(&world, choice & 1, choice & 2);
    world.model.host = device.ops->host;
    for (int i = 0; i < THINGS_MAX && input.count > 0; i++) {
        happen(&world, &input);
        look(&world);
    }
    end(&world);
    return 0;
}
