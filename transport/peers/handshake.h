/* The handshake of a control connection, without I/O: who is allowed to talk, decided from bytes.
 *
 *   opener                                acceptor
 *     Hello  --------------------------->
 *            <---------------------------  Hello            (both at once)
 *     Proof  --------------------------->                   the opener proves itself first,
 *            <---------------------------  Proof            then the acceptor, with the data token
 *
 * A Proof's mac is HMAC-SHA-256 with the cluster key over the prover's role in the connection, both
 * Hellos as they were on the wire, and the data token (docs/formats.md). Each Hello holds a fresh
 * challenge, so that nothing of another connection serves again; the role keeps a side from being
 * answered with its own proof; the bytes as they were leave nothing to interpretation.
 *
 * Owns: nothing but its state; the key is borrowed.
 * Threads: any.
 * Errors: KV_REFUSED with the field that differs. */
#ifndef KV_TRANSPORT_HANDSHAKE_H
#define KV_TRANSPORT_HANDSHAKE_H

#include "base/status.h"
#include "proto/wire.pb-c.h"
#include "transport/mover.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_CHALLENGE_BYTES = 32,
    KV_HOST_ID_BYTES = 32,
    KV_MAC_BYTES = 32,
    KV_HELLO_BYTES_MAX = 4096, /* a frame before authentication */
    KV_PEER_NAME_BYTES = 64,
    KV_PEER_DIGEST_BYTES = 32,
    KV_LAYOUT_TEXT_BYTES = 128,
};

/* What this node says of itself; strings and digests are borrowed. */
typedef struct {
    const char *name;
    Kvist__Wire__Role role;
    uint32_t version, version_min;
    uint16_t data_port;
    const uint8_t *model, *layout; /* [KV_PEER_DIGEST_BYTES] or NULL */
    const char *layout_text;       /* the layout in words, or NULL */
    const void *cluster_key;
    size_t cluster_key_bytes;
} kv_identity_t;

/* What the peer said, checked. */
typedef struct {
    char name[KV_PEER_NAME_BYTES];
    Kvist__Wire__Role role;
    uint32_t version; /* that both speak */
    uint16_t data_port;
    bool same_host;
    uint8_t data_token[KV_DATA_TOKEN_BYTES];
} kv_peer_facts_t;

typedef enum {
    KV_HANDSHAKE_HELLO, /* the peer's Hello is next */
    KV_HANDSHAKE_PROOF, /* the peer's Proof is next */
    KV_HANDSHAKE_DONE,
    KV_HANDSHAKE_FAILED,
} kv_handshake_state_t;

typedef struct {
    const kv_identity_t *self;
    bool opener;
    kv_handshake_state_t state;
    uint8_t own_hello[KV_HELLO_BYTES_MAX], peer_hello[KV_HELLO_BYTES_MAX]; /* packed Envelopes */
    size_t own_hello_bytes, peer_hello_bytes;
    kv_peer_facts_t facts; /* complete when done */
} kv_handshake_t;

/* Makes the Hello; own_hello is what goes into the first frame. KV_NO_SPACE where there is no
 * randomness. */
kv_status_t kv_handshake_begin(
    kv_handshake_t *handshake, const kv_identity_t *self, bool opener, kv_error_t *error);

/* Takes the peer's next message. Where reply_bytes_out is not 0, reply_out (KV_HELLO_BYTES_MAX) is
 * what goes into the next frame: with KV_OK and state DONE on the accepting side too. After an
 * error the connection is to be closed. */
kv_status_t kv_handshake_receive(kv_handshake_t *handshake, const uint8_t *message, size_t bytes,
    uint8_t *reply_out, size_t *reply_bytes_out, kv_error_t *error);

/* Equal in all processes that can share memory: of one boot, IPC and PID namespace. */
void kv_host_id(uint8_t *id_out);

#endif
