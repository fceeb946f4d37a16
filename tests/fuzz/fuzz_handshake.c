/* The handshake, both roles. First byte, its lowest bit:
 *
 *   0  a stranger without the key: whatever it sends, to either role, it never gets through
 *   1  two nodes with one key and somebody between them who alters messages (a list of edits):
 *      both get through where nothing was altered, and nobody does where a Hello was */
#include "fuzz.h"
#include "transport/peers/handshake.h"

enum { MESSAGES = 4, OPENER_HELLO = 0, ACCEPTOR_HELLO, OPENER_PROOF, ACCEPTOR_PROOF };

static const char KEY[] = "a key that only this fuzzer has";
static const uint8_t DIGESTS[2][KV_PEER_DIGEST_BYTES] = {{1}, {2}};

/* Of one byte: versions, role, digests. */
static kv_identity_t identity_of(const char *name, uint8_t choice)
{
    return (kv_identity_t){
        .name = name,
        .role = (Kvist__Wire__Role)(1 + choice % 3),
        .version = 2u + (choice >> 2 & 1),
        .version_min = 1u + (choice >> 3 & 1),
        .model = choice & 16 ? DIGESTS[0] : NULL,
        .layout = choice & 32 ? DIGESTS[choice >> 6 & 1] : NULL,
        .layout_text = choice & 32 ? "blocks of 16 tokens" : NULL,
        .cluster_key = KEY,
        .cluster_key_bytes = sizeof KEY,
    };
}

static kv_status_t feed(
    kv_handshake_t *to, const uint8_t *message, size_t count, uint8_t *reply, size_t *reply_bytes)
{
    kv_error_t error = {0};
    kv_status_t status = kv_handshake_receive(to, message, count, reply, reply_bytes, &error);
    FUZZ_CHECK(*reply_bytes <= KV_HELLO_BYTES_MAX);
    FUZZ_CHECK((status == KV_OK) == (to->state != KV_HANDSHAKE_FAILED));
    FUZZ_CHECK(status == KV_OK || (*reply_bytes == 0 && error.text[0] != '\0'));
    return status;
}

static void be_a_stranger(fuzz_input_t *input)
{
    uint8_t choice = fuzz_u8(input), reply[KV_HELLO_BYTES_MAX];
    kv_identity_t self = identity_of("self", fuzz_u8(input));
    kv_handshake_t handshake;
    FUZZ_CHECK(kv_handshake_begin(&handshake, &self, choice & 1, NULL) == KV_OK);
    kv_status_t status = KV_OK;
    for (int i = 0; i < 3 && status == KV_OK; i++) {
        size_t count, reply_bytes;
        uint8_t *message = fuzz_take(input, fuzz_u16(input), &count);
        status = feed(&handshake, message, count, reply, &reply_bytes);
        free(message);
    }
    FUZZ_CHECK(handshake.state != KV_HANDSHAKE_DONE);
}

typedef struct {
    uint8_t kind, message, value;
    uint16_t at;
} edit_t;

/* true: the message is not what it was. */
static bool alter(const edit_t *edit, uint8_t *message, size_t *count)
{
    size_t at = *count > 0 ? edit->at % *count : 0;
    switch (edit->kind % 4) {
    case 0:
        message[at] ^= edit->value;
        return edit->value != 0 && *count > 0;
    case 1:
        if (*count == KV_HELLO_BYTES_MAX) {
            return false;
        }
        memmove(message + at + 1, message + at, *count - at);
        message[at] = edit->value;
        ++*count;
        return true;
    case 2:
        memmove(message + at, message + at + 1, *count > 0 ? *count - at - 1 : 0);
        *count -= *count > 0;
        return true;
    default:
        *count = at;
        return true;
    }
}

typedef struct {
    edit_t edits[4];
    uint32_t edit_count;
    uint8_t original[KV_HELLO_BYTES_MAX];
    bool altered[MESSAGES];
} road_t;

/* On its way from one to the other. */
static kv_status_t carry(road_t *road, uint8_t which, kv_handshake_t *to, uint8_t *message,
    size_t count, uint8_t *reply, size_t *reply_bytes)
{
    size_t original_count = count;
    memcpy(road->original, message, count);
    for (uint32_t i = 0; i < road->edit_count; i++) {
        if (road->edits[i].message % MESSAGES == which) {
            alter(&road->edits[i], message, &count);
        }
    }
    road->altered[which] = count != original_count || memcmp(message, road->original, count) != 0;
    return feed(to, message, count, reply, reply_bytes);
}

/* Whether one lets the other in, where nobody alters anything. */
static bool accepts(const kv_identity_t *one, const kv_identity_t *other)
{
    bool computes = other->role != KVIST__WIRE__ROLE__ROLE_GATEWAY;
    bool model = one->model == NULL || (other->model == NULL ? !computes : true);
    bool layout =
        one->layout == NULL || (other->layout == NULL ? !computes : one->layout == other->layout);
    return other->version >= one->version_min && model && layout;
}

static void be_between(fuzz_input_t *input)
{
    static kv_handshake_t opener, acceptor;
    static road_t road;
    kv_identity_t self = identity_of("opener", fuzz_u8(input));
    kv_identity_t other = identity_of("acceptor", fuzz_u8(input));
    memset(&road, 0, sizeof road);
    road.edit_count = fuzz_u8(input) % 5;
    for (uint32_t i = 0; i < road.edit_count; i++) {
        road.edits[i] = (edit_t){fuzz_u8(input), fuzz_u8(input), fuzz_u8(input), fuzz_u16(input)};
    }
    uint8_t hello[KV_HELLO_BYTES_MAX], proof[KV_HELLO_BYTES_MAX], answer[KV_HELLO_BYTES_MAX];
    size_t none, proof_bytes = 0, answer_bytes = 0;
    FUZZ_CHECK(kv_handshake_begin(&opener, &self, true, NULL) == KV_OK);
    FUZZ_CHECK(kv_handshake_begin(&acceptor, &other, false, NULL) == KV_OK);
    size_t opener_bytes = opener.own_hello_bytes, acceptor_bytes = acceptor.own_hello_bytes;
    memcpy(hello, opener.own_hello, opener_bytes);
    kv_status_t status = carry(&road, OPENER_HELLO, &acceptor, hello, opener_bytes, answer, &none);
    memcpy(hello, acceptor.own_hello, acceptor_bytes);
    kv_status_t other_status =
        carry(&road, ACCEPTOR_HELLO, &opener, hello, acceptor_bytes, proof, &proof_bytes);
    if (status == KV_OK && other_status == KV_OK) {
        FUZZ_CHECK(none == 0 && proof_bytes > 0);
        status = carry(&road, OPENER_PROOF, &acceptor, proof, proof_bytes, answer, &answer_bytes);
    }
    if (status == KV_OK && other_status == KV_OK) {
        FUZZ_CHECK(acceptor.state == KV_HANDSHAKE_DONE && answer_bytes > 0);
        carry(&road, ACCEPTOR_PROOF, &opener, answer, answer_bytes, proof, &proof_bytes);
    }
    bool alike = accepts(&self, &other) && accepts(&other, &self);
    bool hello_altered = road.altered[OPENER_HELLO] || road.altered[ACCEPTOR_HELLO];
    bool proof_altered = road.altered[OPENER_PROOF] || road.altered[ACCEPTOR_PROOF];
    bool both = opener.state == KV_HANDSHAKE_DONE && acceptor.state == KV_HANDSHAKE_DONE;
    if (hello_altered || !alike) {
        FUZZ_CHECK(opener.state != KV_HANDSHAKE_DONE && acceptor.state != KV_HANDSHAKE_DONE);
    } else if (!proof_altered) {
        FUZZ_CHECK(both);
    }
    if (both) { /* a Proof may have grown fields of a newer version: mac and token are the same */
        FUZZ_CHECK(opener.facts.version == acceptor.facts.version);
        FUZZ_CHECK(
            memcmp(opener.facts.data_token, acceptor.facts.data_token, KV_DATA_TOKEN_BYTES) == 0);
        FUZZ_CHECK(strcmp(opener.facts.name, "acceptor") == 0);
        FUZZ_CHECK(strcmp(acceptor.facts.name, "opener") == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    fuzz_input_t input = {bytes, count};
    if (fuzz_u8(&input) & 1) {
        be_between(&input);
    } else {
        be_a_stranger(&input);
    }
    return 0;
}
