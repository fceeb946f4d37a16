/* Writes the first inputs of each fuzzer, made with the real encoders: what a node says when all is
 * well, from which the fuzzers go on.
 *
 * usage: fuzz_seeds FOLDER */
#include "fuzz.h"

#include "base/check.h"
#include "cluster/members.h"
#include "kvstore/codec/codec.h"
#include "proto/admin.pb-c.h"
#include "proto/frame.h"
#include "proto/store.pb-c.h"
#include "proto/wire.pb-c.h"
#include "transport/mover/data_message.h"

#include <errno.h>
#include <openssl/evp.h>
#include <sys/stat.h>

typedef struct {
    uint8_t bytes[16384];
    size_t count;
} seed_t;

static void add(seed_t *seed, const void *bytes, size_t count)
{
    KV_CHECK(count <= sizeof seed->bytes - seed->count);
    memcpy(seed->bytes + seed->count, bytes, count);
    seed->count += count;
}

static void add_u8(seed_t *seed, uint8_t value)
{
    add(seed, &value, 1);
}

static void add_u16(seed_t *seed, uint16_t value)
{
    uint8_t bytes[2];
    kv_put_u16(bytes, value);
    add(seed, bytes, sizeof bytes);
}

static void add_frame(seed_t *seed, const ProtobufCMessage *message)
{
    uint8_t *frame;
    size_t count;
    KV_CHECK(kv_frame_pack(message, &frame, &count, NULL) == KV_OK);
    add(seed, frame, count);
    free(frame);
}

static void write_seed(const char *folder, const char *fuzzer, const char *name, const seed_t *seed)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, fuzzer);
    KV_CHECK(mkdir(path, 0755) == 0 || errno == EEXIST);
    snprintf(path, sizeof path, "%s/%s/%s", folder, fuzzer, name);
    FILE *file = fopen(path, "wbe");
    KV_CHECK(file != NULL && fwrite(seed->bytes, 1, seed->count, file) == seed->count);
    KV_CHECK(fclose(file) == 0);
}

/* ---- control messages ---- */

static uint32_t tokens[] = {1, 49151, 300};
static char *arithmetic[] = {(char *)"cpu/bf16/prefill/1", (char *)"cpu/bf16/decode/1"};
static uint8_t digest[32] = {7};

static void add_generate(seed_t *seed)
{
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    sampling.temperature = 0.5f;
    sampling.top_p = 1;
    Kvist__Wire__Generate generate = KVIST__WIRE__GENERATE__INIT;
    generate.request_id = (char *)"request-1";
    generate.n_tokens = 3;
    generate.tokens = tokens;
    generate.max_tokens = 5;
    generate.sampling = &sampling;
    generate.salt = (ProtobufCBinaryData){4, (uint8_t *)"salt"};
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = &generate;
    add_frame(seed, &envelope.base);
}

static void add_prefill(seed_t *seed)
{
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    Kvist__Wire__Prefill prefill = KVIST__WIRE__PREFILL__INIT;
    prefill.request_id = (char *)"request-1";
    prefill.transfer_id = UINT64_MAX / 3;
    prefill.n_tokens = 3;
    prefill.tokens = tokens;
    prefill.held_blocks = 1;
    prefill.sampling = &sampling;
    prefill.name_space = (ProtobufCBinaryData){sizeof digest, digest};
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILL;
    envelope.prefill = &prefill;
    add_frame(seed, &envelope.base);
}

static void add_prefilled(seed_t *seed)
{
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    cached.host = 16;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    usage.cached = &cached;
    usage.miss = (char *)"no such block";
    Kvist__Wire__Prefilled prefilled = KVIST__WIRE__PREFILLED__INIT;
    prefilled.request_id = (char *)"request-1";
    prefilled.transfer_id = 1;
    prefilled.usage = &usage;
    prefilled.n_block_arithmetic = 2;
    prefilled.block_arithmetic = arithmetic;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PREFILLED;
    envelope.prefilled = &prefilled;
    add_frame(seed, &envelope.base);
}

static void add_small_ones(seed_t *seed)
{
    Kvist__Wire__Heartbeat heartbeat = KVIST__WIRE__HEARTBEAT__INIT;
    heartbeat.sequence = 1;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_HEARTBEAT;
    envelope.heartbeat = &heartbeat;
    add_frame(seed, &envelope.base);
    Kvist__Wire__Fetch fetch = KVIST__WIRE__FETCH__INIT;
    fetch.request_id = (char *)"request-1";
    fetch.block_count = 2;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FETCH;
    envelope.fetch = &fetch;
    add_frame(seed, &envelope.base);
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    cancel.request_id = (char *)"request-1";
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    add_frame(seed, &envelope.base);
}

static void add_hello(seed_t *seed)
{
    Kvist__Wire__Hello hello = KVIST__WIRE__HELLO__INIT;
    hello.version = hello.version_min = 1;
    hello.name = (char *)"stranger";
    hello.role = KVIST__WIRE__ROLE__ROLE_DECODE;
    hello.challenge = hello.host_id = (ProtobufCBinaryData){sizeof digest, digest};
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_HELLO;
    envelope.hello = &hello;
    add_frame(seed, &envelope.base);
}

static void add_proof(seed_t *seed)
{
    Kvist__Wire__Proof proof = KVIST__WIRE__PROOF__INIT;
    proof.mac = (ProtobufCBinaryData){sizeof digest, digest};
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PROOF;
    envelope.proof = &proof;
    add_frame(seed, &envelope.base);
}

static void write_control(const char *folder)
{
    static void (*const ADD[])(seed_t *) = {
        add_generate, add_prefill, add_prefilled, add_small_ones, add_hello};
    static const char *const NAMES[] = {"generate", "prefill", "prefilled", "small", "hello"};
    for (size_t i = 0; i < sizeof ADD / sizeof ADD[0]; i++) {
        seed_t seed = {.count = 0};
        add_u8(&seed, 15); /* peers: with the key */
        ADD[i](&seed);
        add_small_ones(&seed);
        write_seed(folder, "peers", NAMES[i], &seed);
        write_seed(folder, "frame", NAMES[i], &seed);
    }
    seed_t seed = {.count = 0};
    add_u8(&seed, 30); /* without */
    add_hello(&seed);
    add_proof(&seed);
    write_seed(folder, "peers", "stranger", &seed);
}

/* ---- handshake ---- */

static void write_handshake(const char *folder)
{
    for (uint8_t opener = 0; opener < 2; opener++) {
        seed_t frames = {.count = 0}, seed = {.count = 0};
        add_hello(&frames);
        size_t hello_bytes = frames.count;
        add_proof(&frames);
        add_u8(&seed, 0); /* a stranger */
        add_u8(&seed, opener);
        add_u8(&seed, 0);
        add_u16(&seed, (uint16_t)(hello_bytes - KV_FRAME_HEADER_BYTES));
        add(&seed, frames.bytes + KV_FRAME_HEADER_BYTES, hello_bytes - KV_FRAME_HEADER_BYTES);
        size_t proof_bytes = frames.count - hello_bytes - KV_FRAME_HEADER_BYTES;
        add_u16(&seed, (uint16_t)proof_bytes);
        add(&seed, frames.bytes + hello_bytes + KV_FRAME_HEADER_BYTES, proof_bytes);
        write_seed(folder, "handshake", opener ? "stranger-opener" : "stranger-acceptor", &seed);
    }
    for (uint8_t message = 0; message < 5; message++) { /* 4: nothing is altered */
        char name[] = "between-0";
        name[8] = (char)('0' + message);
        seed_t seed = {.count = 0};
        add_u8(&seed, 1);
        add_u8(&seed, 0x31);
        add_u8(&seed, 0x32);
        add_u8(&seed, message < 4);
        add_u8(&seed, 0);
        add_u8(&seed, message);
        add_u8(&seed, 0x10);
        add_u16(&seed, 20);
        write_seed(folder, "handshake", name, &seed);
    }
}

/* ---- data connection ---- */

static void write_data(const char *folder)
{
    seed_t seed = {.count = KV_DATA_FRONT_BYTES + 32};
    kv_data_front_encode(seed.bytes, 0x0123456789abcdef, 32);
    write_seed(folder, "data", "front", &seed);
    seed = (seed_t){.count = KV_DATA_OPEN_BYTES};
    kv_data_open_encode(seed.bytes, digest);
    write_seed(folder, "data", "open", &seed);
    seed = (seed_t){.count = KV_DATA_WELCOME_BYTES};
    kv_data_welcome_encode(seed.bytes);
    write_seed(folder, "data", "welcome", &seed);
    kv_data_blocks_t blocks = {.transfer_id = 1, .first_block = 1, .block_count = 2};
    kv_data_blocks_add(&blocks, 32, 32);
    seed = (seed_t){.count = kv_data_blocks_bytes(&blocks)};
    kv_data_blocks_encode(seed.bytes, &blocks);
    write_seed(folder, "data", "blocks", &seed);
    kv_data_blocks_add(&blocks, 96, 16);
    kv_data_blocks_add(&blocks, 112, 32);
    seed = (seed_t){.count = kv_data_blocks_bytes(&blocks)};
    kv_data_blocks_encode(seed.bytes, &blocks);
    write_seed(folder, "data", "ranges", &seed);
}

/* The things of fuzz_mover.c: a pipe, the token, blocks, a revoke, the end. */
static void write_mover(const char *folder)
{
    static const uint8_t WHOLE[] = {0, 1, 2, 0, 0, 4, 0, 0, 2, 0, 0, 2, 9, 4, 0, 0, 2, 0, 1, 0, 7};
    static const uint8_t REVOKED[] = {
        0, 1, 2, 0, 0, 4, 0, 1, 0, 0, 1, 1, 3, 6, 4, 0, 0, 0, 0, 0, 0, 1};
    static const uint8_t DAMAGED[] = {0, 1, 2, 0, 0, 4, 32, 0, 2, 0, 0, 2, 9, 44, 0, 1, 7, 0, 8};
    static const uint8_t CONNECTS[] = {
        1, 8, 8, 3, 4, 0, 'K', 'V', 'W', '1', 4, 0, 0, 0, 0, 0, 0, 1};
    static const uint8_t PARTS[] = {2, 1, 2, 0, 0, 4, 0, 0, 2, 1, 0, 0, 1, 0, 5};
    static const struct {
        const char *name;
        const uint8_t *bytes;
        size_t count;
    } SEEDS[] = {{"whole", WHOLE, sizeof WHOLE}, {"revoked", REVOKED, sizeof REVOKED},
        {"damaged", DAMAGED, sizeof DAMAGED}, {"connects", CONNECTS, sizeof CONNECTS},
        {"parts", PARTS, sizeof PARTS}};
    for (size_t i = 0; i < sizeof SEEDS / sizeof SEEDS[0]; i++) {
        seed_t seed = {.count = 0};
        add(&seed, SEEDS[i].bytes, SEEDS[i].count);
        write_seed(folder, "mover", SEEDS[i].name, &seed);
    }
}

/* ---- the client socket of a host's store ---- */

static void add_request(seed_t *seed, Kvist__Store__Request__BodyCase kind, void *body)
{
    Kvist__Store__Request request = KVIST__STORE__REQUEST__INIT;
    uint8_t packed[2048];
    request.body_case = kind;
    request.attach = body; /* every member of the union is a pointer to its message */
    size_t count = kvist__store__request__get_packed_size(&request);
    KV_CHECK(count <= sizeof packed);
    kvist__store__request__pack(&request, packed);
    add_u16(seed, (uint16_t)count);
    add(seed, packed, count);
}

static void write_store(const char *folder)
{
    static uint8_t key[32], tokens[4 * 16 * 4], extras[4 * 32] = {1}, sums[4 * 8];
    Kvist__Store__Match match = KVIST__STORE__MATCH__INIT;
    Kvist__Store__Put put = KVIST__STORE__PUT__INIT;
    Kvist__Store__Load load = KVIST__STORE__LOAD__INIT;
    Kvist__Store__Release release = KVIST__STORE__RELEASE__INIT;
    Kvist__Store__Drop drop = KVIST__STORE__DROP__INIT;
    Kvist__Store__Promise promise = KVIST__STORE__PROMISE__INIT;
    Kvist__Store__Spill spill = KVIST__STORE__SPILL__INIT;
    Kvist__Store__List list = KVIST__STORE__LIST__INIT;
    Kvist__Store__Flush flush = KVIST__STORE__FLUSH__INIT;
    match.id = put.id = load.id = drop.id = list.id = flush.id = 1;
    promise.id = spill.id = 1;
    match.name_space = drop.key = promise.key = spill.key = (ProtobufCBinaryData){sizeof key, key};
    match.tokens = (ProtobufCBinaryData){sizeof tokens, tokens};
    put.block_count = load.block_count = 4;
    load.layer_count = 2;
    put.arithmetic = (char *)"a";
    list.count_max = 10;
    seed_t seed = {.count = 0};
    add_u8(&seed, 1);
    add_u8(&seed, 16);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_MATCH, &match);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_PUT, &put);
    put.checksums = (ProtobufCBinaryData){sizeof sums, sums};
    add_request(&seed, KVIST__STORE__REQUEST__BODY_PUT, &put);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_LOAD, &load);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_RELEASE, &release);
    write_seed(folder, "store", "lease", &seed);
    seed.count = 2;
    match.extras = put.extras = (ProtobufCBinaryData){sizeof extras, extras};
    put.tokens = match.tokens;
    add_request(&seed, KVIST__STORE__REQUEST__BODY_MATCH, &match);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_PUT, &put);
    put.checksums.len = 0;
    add_request(&seed, KVIST__STORE__REQUEST__BODY_PUT, &put);
    write_seed(folder, "store", "extras", &seed);
    seed.count = 2;
    add_request(&seed, KVIST__STORE__REQUEST__BODY_LIST, &list);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_FLUSH, &flush);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_PROMISE, &promise);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_SPILL, &spill);
    add_request(&seed, KVIST__STORE__REQUEST__BODY_DROP, &drop);
    write_seed(folder, "store", "ask", &seed);
    Kvist__Store__Attach attach = KVIST__STORE__ATTACH__INIT;
    Kvist__Store__Request request = KVIST__STORE__REQUEST__INIT;
    attach.version = 2;
    attach.domain = (char *)"default";
    request.body_case = KVIST__STORE__REQUEST__BODY_ATTACH;
    request.attach = &attach;
    seed = (seed_t){.bytes = {0, 16}, .count = 2};
    add_frame(&seed, &request.base);
    write_seed(folder, "store", "attach", &seed);
}

/* ---- admin socket ---- */

static void write_admin(const char *folder)
{
    Kvist__Admin__ShowRequest show = KVIST__ADMIN__SHOW_REQUEST__INIT;
    show.key = (char *)"00112233";
    Kvist__Admin__ListRequest list = KVIST__ADMIN__LIST_REQUEST__INIT;
    list.count_max = 10;
    Kvist__Admin__StopRequest stop = KVIST__ADMIN__STOP_REQUEST__INIT;
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    seed_t seed = {.count = 0};
    add_u8(&seed, 1);
    request.body_case = KVIST__ADMIN__REQUEST__BODY_SHOW;
    request.show = &show;
    add_frame(&seed, &request.base);
    request.body_case = KVIST__ADMIN__REQUEST__BODY_LIST;
    request.list = &list;
    add_frame(&seed, &request.base);
    write_seed(folder, "admin", "show-list", &seed);
    request.body_case = KVIST__ADMIN__REQUEST__BODY_STOP;
    request.stop = &stop;
    add_frame(&seed, &request.base);
    write_seed(folder, "admin", "show-list-stop", &seed);
}

/* ---- KV events ---- */

static void add_message(seed_t *seed, uint8_t how, const ProtobufCMessage *message)
{
    uint8_t bytes[2048];
    size_t count = protobuf_c_message_get_packed_size(message);
    KV_CHECK(count <= sizeof bytes);
    protobuf_c_message_pack(message, bytes);
    add_u8(seed, how);
    add_u16(seed, (uint16_t)count);
    add(seed, bytes, count);
}

/* A whole snapshot, an event that follows it, a subscription. */
static void write_events(const char *folder)
{
    seed_t seed = {.count = 0};
    uint8_t keys[64] = {1, 2, 3};
    Kvist__Events__Cleared cleared = KVIST__EVENTS__CLEARED__INIT;
    Kvist__Events__Stored stored = KVIST__EVENTS__STORED__INIT;
    Kvist__Events__Removed removed = KVIST__EVENTS__REMOVED__INIT;
    Kvist__Events__Event events[3] = {
        KVIST__EVENTS__EVENT__INIT, KVIST__EVENTS__EVENT__INIT, KVIST__EVENTS__EVENT__INIT};
    Kvist__Events__Event *pointers[] = {&events[0], &events[1], &events[2]};
    Kvist__Events__Batch batch = KVIST__EVENTS__BATCH__INIT;
    Kvist__Events__Subscribe subscribe = KVIST__EVENTS__SUBSCRIBE__INIT;
    stored.keys = (ProtobufCBinaryData){sizeof keys, keys};
    stored.name_space = stored.parent = (ProtobufCBinaryData){sizeof digest, digest};
    removed.keys = (ProtobufCBinaryData){32, keys};
    events[0].body_case = KVIST__EVENTS__EVENT__BODY_CLEARED;
    events[0].cleared = &cleared;
    events[1].body_case = KVIST__EVENTS__EVENT__BODY_STORED;
    events[1].stored = &stored;
    events[2].body_case = KVIST__EVENTS__EVENT__BODY_REMOVED;
    events[2].removed = &removed;
    batch.instance = subscribe.instance = (ProtobufCBinaryData){16, digest};
    batch.node = (char *)"prefill-0";
    batch.first_sequence = subscribe.next_sequence = 1;
    batch.events = pointers;
    batch.n_events = 2;
    batch.part = KVIST__EVENTS__PART__PART_ONLY;
    add_message(&seed, 0, &batch.base);
    batch.part = KVIST__EVENTS__PART__PART_NONE;
    batch.events = pointers + 1;
    add_message(&seed, 2, &batch.base);
    add_message(&seed, 3, &subscribe.base);
    write_seed(folder, "events", "whole", &seed);
}

static void add_text(seed_t *seed, uint8_t kind, const char *text)
{
    add_u8(seed, kind);
    add_u16(seed, (uint16_t)strlen(text));
    add(seed, text, strlen(text));
}

/* A list of two nodes, one of which goes, then a lease and an error. */
static void write_etcd(const char *folder)
{
    seed_t seed = {.count = 0};
    char keys[2][128], values[2][256], text[1024];
    for (int i = 0; i < 2; i++) {
        kv_member_t member = {.role = KVIST__WIRE__ROLE__ROLE_DECODE, .version = "1"};
        snprintf(member.name, sizeof member.name, "decode-%d", i);
        snprintf(member.address, sizeof member.address, "10.0.0.%d:7000", i);
        snprintf(text, sizeof text, "/kvist/kvist/nodes/%s", member.name);
        EVP_EncodeBlock((uint8_t *)keys[i], (const uint8_t *)text, (int)strlen(text));
        char *value = kv_member_write(&member);
        EVP_EncodeBlock((uint8_t *)values[i], (const uint8_t *)value, (int)strlen(value));
        free(value);
    }
    snprintf(text, sizeof text,
        "{\"header\":{\"revision\":\"9\"},\"kvs\":[{\"key\":\"%s\",\"value\":\"%s\","
        "\"mod_revision\":\"7\"},{\"key\":\"%s\",\"value\":\"%s\",\"mod_revision\":\"8\"}]}",
        keys[0], values[0], keys[1], values[1]);
    add_text(&seed, 0, text);
    snprintf(text, sizeof text,
        "{\"result\":{\"events\":[{\"type\":\"DELETE\",\"kv\":{\"key\":\"%s\"}},{\"kv\":{"
        "\"key\":\"%s\",\"value\":\"%s\",\"mod_revision\":\"10\"}}]}}",
        keys[0], keys[1], values[0]);
    add_text(&seed, 1, text);
    add_text(&seed, 1, "{\"result\":{\"canceled\":true,\"compact_revision\":\"5\"}}");
    add_text(&seed, 2, "{\"result\":{\"ID\":\"7587848390\",\"TTL\":\"10\"}}");
    add_text(&seed, 3, "{\"error\":\"etcdserver: requested lease not found\",\"code\":5}");
    write_seed(folder, "etcd", "whole", &seed);
}

/* A unit as it is and as each codec makes it; the first byte says what is done with it. */
static void write_codec(const char *folder)
{
    enum { UNIT_BYTES = 2048, DECODE = 0, DECODE_CHUNK = 2, ROUND_TRIP = 3 };
    static uint8_t unit[UNIT_BYTES], encoded[UNIT_BYTES];
    for (uint32_t i = 0; i < UNIT_BYTES; i += 2) {
        uint32_t exponent = 126 - (uint32_t)__builtin_ctz(i * 2654435761u >> 12 | 1u << 19);
        kv_put_u16(unit + i, (uint16_t)((i * 40503u & 0x807f) | exponent << 7));
    }
    for (int codec = 0; codec < KVIST_CODEC_COUNT; codec++) {
        char name[32];
        size_t length = kv_codec_encode((kvist_codec_t)codec, unit, UNIT_BYTES, 2, encoded);
        for (int how = DECODE; how <= ROUND_TRIP; how++) {
            seed_t seed = {.count = 0};
            add_u8(&seed, (uint8_t)(codec * 4 + how));
            add_u16(&seed, how == DECODE_CHUNK ? 15 : UNIT_BYTES);
            add(&seed, how == ROUND_TRIP ? unit : encoded, how == ROUND_TRIP ? UNIT_BYTES : length);
            snprintf(name, sizeof name, "%s-%d", kv_codec_name((kvist_codec_t)codec), how);
            write_seed(folder, "codec", name, &seed);
        }
    }
}

/* How it is answered, how many bytes are sent at once, and what a client says. */
static void write_http(const char *folder)
{
    static const struct {
        const char *name, *text;
    } REQUESTS[] = {
        {"get", "GET /v1/models?limit=3&after=x%20y HTTP/1.1\r\nHost: x\r\nx-api-key: k\r\n\r\n"},
        {"post", "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 "Authorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}"},
        {"chunked", "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                    "\r\n2\r\n{}\r\n0\r\n\r\n"},
        {"two", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nHEAD /metrics HTTP/1.1\r\nHost: x\r\n"
                "Connection: close\r\n\r\n"},
        {"waits", "PATCH /v1beta/cachedContents/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                  "Content-Length: 3\r\n\r\nabc"},
        {"large", "POST / HTTP/1.0\r\nContent-Length: 4000\r\n\r\nx"},
    };
    for (size_t i = 0; i < sizeof REQUESTS / sizeof REQUESTS[0]; i++) {
        seed_t seed = {.count = 0};
        add_u8(&seed, (uint8_t)i);
        add_u8(&seed, i % 2 == 0 ? 255 : 1);
        add(&seed, REQUESTS[i].text, strlen(REQUESTS[i].text));
        write_seed(folder, "http", REQUESTS[i].name, &seed);
    }
}

/* Every body at every route: which is whose is the fuzzer's business. */
static void write_dialects(const char *folder)
{
    enum { ROUTES = 16 };
    static const char CHAT[] =
        "{\"model\":\"tiny\",\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Hi\"}]},{\"role\":"
        "\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\","
        "\"function\":{\"name\":\"look\",\"arguments\":\"{\\\"x\\\":1}\"}}]},{\"role\":\"tool\","
        "\"tool_call_id\":\"c1\",\"content\":\"2\"}],\"tools\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"look\",\"description\":\"d\",\"parameters\":{\"type\":"
        "\"object\"}}}],\"tool_choice\":\"auto\",\"n\":2,\"logprobs\":true,\"top_logprobs\":3,"
        "\"stop\":[\"x\",\"yy\"],\"seed\":-5,\"temperature\":0.5,\"top_p\":0.9,\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true},\"prompt_cache_key\":\"k\","
        "\"prompt_cache_retention\":\"24h\",\"kvist\":{\"cache_mode\":\"read\",\"salt\":\"s\"}}";
    static const char COMPLETION[] =
        "{\"prompt\":[\"once upon\",[1,2,3]],\"max_tokens\":5,\"logprobs\":2,\"echo\":false,"
        "\"best_of\":1,\"top_k\":4,\"ignore_eos\":true}";
    static const char MESSAGES[] =
        "{\"model\":\"tiny\",\"max_tokens\":9,\"system\":[{\"type\":\"text\",\"text\":\"Be\","
        "\"cache_control\":{\"type\":\"ephemeral\",\"ttl\":\"1h\"}}],\"messages\":[{\"role\":"
        "\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Hi\",\"cache_control\":{\"type\":"
        "\"ephemeral\"}}]},{\"role\":\"assistant\",\"content\":[{\"type\":\"tool_use\",\"id\":"
        "\"t1\",\"name\":\"look\",\"input\":{\"x\":1}}]},{\"role\":\"user\",\"content\":[{"
        "\"type\":\"tool_result\",\"tool_use_id\":\"t1\",\"content\":\"2\"}]}],\"tools\":[{"
        "\"name\":\"look\",\"input_schema\":{\"type\":\"object\"}}],\"stop_sequences\":[\"x\"],"
        "\"metadata\":{\"user_id\":\"u\"},\"stream\":true}";
    static const char GENERATE[] =
        "{\"contents\":[{\"role\":\"user\",\"parts\":[{\"text\":\"Hi\"}]},{\"role\":\"model\","
        "\"parts\":[{\"functionCall\":{\"name\":\"look\",\"args\":{\"x\":1}}}]},{\"role\":"
        "\"user\",\"parts\":[{\"functionResponse\":{\"name\":\"look\",\"response\":{\"y\":2}}}]}"
        "],\"systemInstruction\":{\"parts\":[{\"text\":\"Be\"}]},\"tools\":[{"
        "\"functionDeclarations\":[{\"name\":\"look\",\"parameters\":{\"type\":\"OBJECT\"}}]}],"
        "\"generationConfig\":{\"maxOutputTokens\":5,\"stopSequences\":[\"x\"],\"topK\":3,"
        "\"candidateCount\":2},\"cachedContent\":\"cachedContents/x\"}";
    static const char CONTENT[] =
        "{\"model\":\"models/tiny\",\"displayName\":\"d\",\"ttl\":\"60.5s\",\"contents\":[{"
        "\"parts\":[{\"text\":\"Hi\"}],\"role\":\"user\"}]}";
    static const char *const BODIES[] = {CHAT, COMPLETION, MESSAGES, GENERATE, CONTENT};
    for (size_t i = 0; i < ROUTES * sizeof BODIES / sizeof BODIES[0]; i++) {
        char name[32];
        seed_t seed = {.count = 0};
        add_u8(&seed, (uint8_t)(i % ROUTES));
        add(&seed,
            "\x01\x05"
            "agent\x06\x04"
            "sess\x07\x05"
            "batch\0",
            20);
        add(&seed, BODIES[i / ROUTES], strlen(BODIES[i / ROUTES]));
        snprintf(name, sizeof name, "%zu-%zu", i / ROUTES, i % ROUTES);
        write_seed(folder, "dialects", name, &seed);
    }
}

/* How it is cut, and an answer that calls tools. */
static void write_tool_calls(const char *folder)
{
    static const char LOOK[] =
        "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"x\": [1, \"\\u00e5\"]}}\n"
        "</tool_call>\n<tool_call>{\"name\":\"go\",\"arguments\":{}}</tool_call> done";
    static const char *const ANSWERS[] = {LOOK,
        "<tool_call>\n{\"name\": \"look\", \"arguments\": \"{}\"}",
        "a <tool_ca ll> <tool_call> no </tool_call> <tool_call><tool_call>{}"};
    for (size_t i = 0; i < sizeof ANSWERS / sizeof ANSWERS[0]; i++) {
        char name[32];
        seed_t seed = {.count = 0};
        add_u8(&seed, (uint8_t)(i + 1));
        add(&seed, ANSWERS[i], strlen(ANSWERS[i]));
        snprintf(name, sizeof name, "%zu", i);
        write_seed(folder, "tool_calls", name, &seed);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2 || (mkdir(argv[1], 0755) != 0 && errno != EEXIST)) {
        fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
        return 2;
    }
    write_control(argv[1]);
    write_handshake(argv[1]);
    write_data(argv[1]);
    write_mover(argv[1]);
    write_admin(argv[1]);
    write_store(argv[1]);
    write_events(argv[1]);
    write_etcd(argv[1]);
    write_codec(argv[1]);
    write_http(argv[1]);
    write_dialects(argv[1]);
    write_tool_calls(argv[1]);
    return 0;
}
