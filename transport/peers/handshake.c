#include "transport/peers/handshake.h"

#include "base/bytes.h"
#include "base/check.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

typedef Kvist__Wire__Envelope envelope_t;

static const char LABEL_OPENER[] = "kvist control 1 opener";
static const char LABEL_ACCEPTOR[] = "kvist control 1 acceptor";

void kv_host_id(uint8_t *id_out)
{
    char text[256] = "";
    FILE *boot = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (boot != NULL) {
        if (fgets(text, 64, boot) == NULL) {
            text[0] = '\0';
        }
        fclose(boot);
    }
    /* net: UCX wakes a sleeping receiver by an abstract Unix socket, which ends at its space. */
    static const char *const SPACES[] = {
        "/proc/self/ns/ipc", "/proc/self/ns/pid", "/proc/self/ns/net", "/proc/self/ns/user"};
    for (size_t i = 0; i < sizeof SPACES / sizeof SPACES[0]; i++) {
        struct stat status = {0};
        size_t used = strlen(text);
        if (stat(SPACES[i], &status) == 0) {
            snprintf(text + used, sizeof text - used, " %llu", (unsigned long long)status.st_ino);
        }
    }
    KV_CHECK(EVP_Digest(text, strlen(text), id_out, NULL, EVP_sha256(), NULL) == 1);
}

/* ---- the mac ---- */

typedef struct {
    uint8_t bytes[2 * KV_HELLO_BYTES_MAX + 256];
    size_t count;
} mac_input_t;

static void add_part(mac_input_t *input, const void *bytes, size_t count)
{
    KV_CHECK(sizeof input->bytes - input->count >= 4 + count); /* every part has its bound */
    kv_put_u32(input->bytes + input->count, (uint32_t)count);
    if (count > 0) {
        memcpy(input->bytes + input->count + 4, bytes, count);
    }
    input->count += 4 + count;
}

/* Of the side that proves: opener or not. The order of the Hellos is the connection's, not ours. */
static void compute_mac(
    const kv_handshake_t *handshake, bool prover_opens, const uint8_t *token, uint8_t *mac_out)
{
    mac_input_t input = {.count = 0};
    const char *label = prover_opens ? LABEL_OPENER : LABEL_ACCEPTOR;
    add_part(&input, label, strlen(label));
    if (handshake->opener) {
        add_part(&input, handshake->own_hello, handshake->own_hello_bytes);
        add_part(&input, handshake->peer_hello, handshake->peer_hello_bytes);
    } else {
        add_part(&input, handshake->peer_hello, handshake->peer_hello_bytes);
        add_part(&input, handshake->own_hello, handshake->own_hello_bytes);
    }
    add_part(&input, token, token != NULL ? KV_DATA_TOKEN_BYTES : 0);
    unsigned mac_bytes = 0;
    KV_CHECK(
        HMAC(EVP_sha256(), handshake->self->cluster_key, (int)handshake->self->cluster_key_bytes,
            input.bytes, input.count, mac_out, &mac_bytes) != NULL &&
        mac_bytes == KV_MAC_BYTES);
}

/* ---- ours ---- */

static size_t pack(const envelope_t *envelope, uint8_t *bytes_out)
{
    size_t bytes = kvist__wire__envelope__get_packed_size(envelope);
    KV_CHECK(bytes <= KV_HELLO_BYTES_MAX); /* names and digests have bounds */
    return kvist__wire__envelope__pack(envelope, bytes_out);
}

kv_status_t kv_handshake_begin(
    kv_handshake_t *handshake, const kv_identity_t *self, bool opener, kv_error_t *error)
{
    *handshake = (kv_handshake_t){.self = self, .opener = opener};
    uint8_t challenge[KV_CHALLENGE_BYTES], host_id[KV_HOST_ID_BYTES];
    if (RAND_bytes(challenge, sizeof challenge) != 1 ||
        RAND_bytes(handshake->facts.data_token, KV_DATA_TOKEN_BYTES) != 1) {
        return kv_fail(error, KV_NO_SPACE, "no randomness for a challenge");
    }
    kv_host_id(host_id);
    Kvist__Wire__Hello hello = KVIST__WIRE__HELLO__INIT;
    hello.version = self->version;
    hello.version_min = self->version_min;
    hello.name = (char *)self->name;
    hello.stores = self->role == KVIST__WIRE__ROLE__ROLE_STORE;
    hello.role = hello.stores ? KVIST__WIRE__ROLE__ROLE_GATEWAY : self->role;
    hello.challenge = (ProtobufCBinaryData){sizeof challenge, challenge};
    hello.data_port = self->data_port;
    hello.host_id = (ProtobufCBinaryData){sizeof host_id, host_id};
    hello.model =
        (ProtobufCBinaryData){self->model ? KV_PEER_DIGEST_BYTES : 0, (uint8_t *)self->model};
    hello.layout =
        (ProtobufCBinaryData){self->layout ? KV_PEER_DIGEST_BYTES : 0, (uint8_t *)self->layout};
    hello.layout_text = (char *)(self->layout_text != NULL ? self->layout_text : "");
    envelope_t envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_HELLO;
    envelope.hello = &hello;
    handshake->own_hello_bytes = pack(&envelope, handshake->own_hello);
    return KV_OK;
}

static size_t pack_proof(const kv_handshake_t *handshake, uint8_t *bytes_out)
{
    uint8_t mac[KV_MAC_BYTES];
    const uint8_t *token = handshake->opener ? NULL : handshake->facts.data_token;
    compute_mac(handshake, handshake->opener, token, mac);
    Kvist__Wire__Proof proof = KVIST__WIRE__PROOF__INIT;
    proof.mac = (ProtobufCBinaryData){sizeof mac, mac};
    proof.data_token = (ProtobufCBinaryData){token ? KV_DATA_TOKEN_BYTES : 0, (uint8_t *)token};
    envelope_t envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_PROOF;
    envelope.proof = &proof;
    return pack(&envelope, bytes_out);
}

/* ---- theirs ---- */

/* needed: the peer computes, and so must say with what. */
static kv_status_t check_digest(const char *field, bool needed, const uint8_t *ours,
    const ProtobufCBinaryData *theirs, kv_error_t *error)
{
    if (needed && ours != NULL && theirs->len == 0) {
        return kv_fail(error, KV_REFUSED, "it computes, and does not say its %s", field);
    }
    if (theirs->len != 0 && theirs->len != KV_PEER_DIGEST_BYTES) {
        return kv_fail(error, KV_REFUSED, "its %s digest has %zu bytes, not %d", field, theirs->len,
            KV_PEER_DIGEST_BYTES);
    }
    if (ours == NULL || theirs->len == 0 || memcmp(ours, theirs->data, theirs->len) == 0) {
        return KV_OK;
    }
    char our_text[17], their_text[17];
    kv_hex_encode(ours, 8, our_text);
    kv_hex_encode(theirs->data, 8, their_text);
    return kv_fail(error, KV_REFUSED, "the %s differs: %s here, %s there (first 8 bytes)", field,
        our_text, their_text);
}

/* A layout is of options, so that words tell more than a digest. */
static kv_status_t check_layout(
    const kv_identity_t *self, bool needed, const Kvist__Wire__Hello *hello, kv_error_t *error)
{
    kv_status_t status = check_digest("layout", needed, self->layout, &hello->layout, error);
    if (status != KV_OK && self->layout_text != NULL &&
        kv_text_is_plain(hello->layout_text, ' ', KV_LAYOUT_TEXT_BYTES - 1)) {
        return kv_fail(error, KV_REFUSED,
            "the layout differs: %s here, %s there: model.block_tokens and model.f32 are equal in "
            "a cluster",
            self->layout_text, hello->layout_text);
    }
    return status;
}

static kv_status_t check_hello(
    kv_handshake_t *handshake, const Kvist__Wire__Hello *hello, kv_error_t *error)
{
    const kv_identity_t *self = handshake->self;
    kv_peer_facts_t *facts = &handshake->facts;
    uint32_t common = hello->version < self->version ? hello->version : self->version;
    if (common < self->version_min || common < hello->version_min) {
        return kv_fail(error, KV_REFUSED,
            "versions do not meet: this node speaks %u to %u, the peer %u to %u: upgrade the older",
            self->version_min, self->version, hello->version_min, hello->version);
    }
    if (!kv_text_is_plain(hello->name, '!', KV_PEER_NAME_BYTES - 1)) {
        return kv_fail(error, KV_REFUSED, "its name is not 1 to %d printable characters",
            KV_PEER_NAME_BYTES - 1);
    }
    if (strcmp(hello->name, self->name) == 0) {
        return kv_fail(error, KV_REFUSED,
            "its name is this node's own, '%s': names are unique in a cluster", self->name);
    }
    if (hello->role < KVIST__WIRE__ROLE__ROLE_PREFILL ||
        hello->role > KVIST__WIRE__ROLE__ROLE_GATEWAY) {
        return kv_fail(error, KV_REFUSED, "its role is %d, which is none", (int)hello->role);
    }
    if (hello->challenge.len != KV_CHALLENGE_BYTES) {
        return kv_fail(error, KV_REFUSED, "its challenge has %zu bytes, not %d",
            hello->challenge.len, KV_CHALLENGE_BYTES);
    }
    if (hello->data_port > UINT16_MAX) {
        return kv_fail(error, KV_REFUSED, "its data port is %u", hello->data_port);
    }
    bool computes = hello->role == KVIST__WIRE__ROLE__ROLE_PREFILL ||
                    hello->role == KVIST__WIRE__ROLE__ROLE_DECODE;
    kv_status_t status = check_digest("model", computes, self->model, &hello->model, error);
    if (status == KV_OK) {
        status = check_layout(self, computes, hello, error);
    }
    if (status != KV_OK) {
        return status;
    }
    uint8_t host_id[KV_HOST_ID_BYTES];
    kv_host_id(host_id);
    snprintf(facts->name, sizeof facts->name, "%s", hello->name);
    bool stores = hello->stores && hello->role == KVIST__WIRE__ROLE__ROLE_GATEWAY;
    facts->role = stores ? KVIST__WIRE__ROLE__ROLE_STORE : hello->role;
    facts->version = common;
    facts->data_port = (uint16_t)hello->data_port;
    facts->same_host = hello->host_id.len == sizeof host_id &&
                       memcmp(hello->host_id.data, host_id, sizeof host_id) == 0;
    return KV_OK;
}

static kv_status_t check_proof(
    kv_handshake_t *handshake, const Kvist__Wire__Proof *proof, kv_error_t *error)
{
    size_t token_bytes = handshake->opener ? KV_DATA_TOKEN_BYTES : 0;
    if (proof->mac.len != KV_MAC_BYTES || proof->data_token.len != token_bytes) {
        return kv_fail(error, KV_REFUSED, "its proof has %zu and %zu bytes, not %d and %zu",
            proof->mac.len, proof->data_token.len, KV_MAC_BYTES, token_bytes);
    }
    uint8_t mac[KV_MAC_BYTES];
    compute_mac(
        handshake, !handshake->opener, token_bytes > 0 ? proof->data_token.data : NULL, mac);
    if (CRYPTO_memcmp(mac, proof->mac.data, sizeof mac) != 0) {
        return kv_fail(error, KV_REFUSED, "wrong cluster key");
    }
    if (token_bytes > 0) {
        memcpy(handshake->facts.data_token, proof->data_token.data, token_bytes);
    }
    return KV_OK;
}

static kv_status_t take_hello(kv_handshake_t *handshake, const uint8_t *message, size_t bytes,
    const envelope_t *envelope, uint8_t *reply_out, size_t *reply_bytes_out, kv_error_t *error)
{
    if (envelope->body_case != KVIST__WIRE__ENVELOPE__BODY_HELLO) {
        return kv_fail(error, KV_REFUSED, "its first message is not a Hello");
    }
    kv_status_t status = check_hello(handshake, envelope->hello, error);
    if (status != KV_OK) {
        return status;
    }
    memcpy(handshake->peer_hello, message, bytes);
    handshake->peer_hello_bytes = bytes;
    handshake->state = KV_HANDSHAKE_PROOF;
    if (handshake->opener) {
        *reply_bytes_out = pack_proof(handshake, reply_out);
    }
    return KV_OK;
}

static kv_status_t take_proof(kv_handshake_t *handshake, const envelope_t *envelope,
    uint8_t *reply_out, size_t *reply_bytes_out, kv_error_t *error)
{
    if (envelope->body_case != KVIST__WIRE__ENVELOPE__BODY_PROOF) {
        return kv_fail(error, KV_REFUSED, "its second message is not a Proof");
    }
    kv_status_t status = check_proof(handshake, envelope->proof, error);
    if (status != KV_OK) {
        return status;
    }
    handshake->state = KV_HANDSHAKE_DONE;
    if (!handshake->opener) {
        *reply_bytes_out = pack_proof(handshake, reply_out);
    }
    return KV_OK;
}

kv_status_t kv_handshake_receive(kv_handshake_t *handshake, const uint8_t *message, size_t bytes,
    uint8_t *reply_out, size_t *reply_bytes_out, kv_error_t *error)
{
    *reply_bytes_out = 0;
    if (handshake->state >= KV_HANDSHAKE_DONE || bytes > KV_HELLO_BYTES_MAX) {
        return kv_fail(error, KV_REFUSED, "a handshake message of %zu bytes (at most %d)", bytes,
            KV_HELLO_BYTES_MAX);
    }
    envelope_t *envelope = kvist__wire__envelope__unpack(NULL, bytes, message);
    kv_status_t status;
    if (envelope == NULL) {
        status = kv_fail(error, KV_REFUSED, "a handshake message that cannot be decoded");
    } else if (handshake->state == KV_HANDSHAKE_HELLO) {
        status = take_hello(handshake, message, bytes, envelope, reply_out, reply_bytes_out, error);
    } else {
        status = take_proof(handshake, envelope, reply_out, reply_bytes_out, error);
    }
    if (envelope != NULL) {
        kvist__wire__envelope__free_unpacked(envelope, NULL);
    }
    if (status != KV_OK) {
        handshake->state = KV_HANDSHAKE_FAILED;
    }
    return status;
}
