/* A peer: another store, timed by a driver program of its own (tools/peers).
 *
 * The driver holds the peer and times it from inside, over its standard input and output, a line a
 * message: tools/peers/README.md has the protocol.
 *
 * Owns: the driver, until kv_peer_close.
 * Threads: one.
 * Errors: KV_PEER_LOST: the driver ended or hangs; KV_REFUSED: it said what does not work. */
#ifndef KV_TOOLS_PEER_H
#define KV_TOOLS_PEER_H

#include "tools/kvist/program.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    kv_program_t program;
    char name[128]; /* as it is shown: "Redis 7.0.15, unix socket" */
    char can[128];  /* what it does: "ram-put ram-get disk-put" */
} kv_peer_t;

kv_status_t kv_peer_open(const char *driver, kv_peer_t *peer_out, kv_error_t *error);
void kv_peer_close(kv_peer_t *peer);

bool kv_peer_can(const kv_peer_t *peer, const char *tier, const char *operation);

/* Empties the peer and puts object_count objects of that size into the tier. */
kv_status_t kv_peer_prepare(kv_peer_t *peer, const char *tier, uint64_t object_bytes,
    uint64_t object_count, kv_error_t *error);

/* Puts or gets ("put", "get") count objects, one after the other. */
kv_status_t kv_peer_time(
    kv_peer_t *peer, const char *operation, uint64_t count, double *seconds_out, kv_error_t *error);

#endif
