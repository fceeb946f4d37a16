#include "simulation/version.h"

#include "transport/peers.h"

static bool keeps_to_old;

void version_begin(bool old)
{
    keeps_to_old = old;
}

uint32_t __real_kv_peer_version(const kv_peer_t *peer);
uint32_t __wrap_kv_peer_version(const kv_peer_t *peer);
uint32_t __wrap_kv_peer_version(const kv_peer_t *peer)
{
    return keeps_to_old ? KV_WIRE_VERSION_MIN : __real_kv_peer_version(peer);
}
