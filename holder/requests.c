#include "holder/requests.h"

#include "base/check.h"

static void destroy_done(kv_requests_t *requests)
{
    for (uint32_t i = 0; i < requests->count;) {
        if (requests->ops->is_done(requests->items[i])) {
            requests->ops->destroy(requests->items[i]);
            requests->items[i] = requests->items[--requests->count];
        } else {
            i++;
        }
    }
}

void kv_requests_add(kv_requests_t *requests, void *request)
{
    KV_CHECK(requests->count < KV_REQUESTS_MAX);
    requests->items[requests->count++] = request;
    destroy_done(requests);
}

void kv_requests_message(
    kv_requests_t *requests, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        if (requests->ops->message(requests->items[i], peer, message)) {
            break;
        }
    }
    destroy_done(requests);
}

bool kv_requests_moved(kv_requests_t *requests, const kv_mover_event_t *event)
{
    bool taken = false;
    for (uint32_t i = 0; i < requests->count && !taken; i++) {
        taken = requests->ops->moved(requests->items[i], event);
    }
    destroy_done(requests);
    return taken;
}

bool kv_requests_context(const kv_requests_t *requests, const kv_peer_t *peer,
    const char *request_id, kv_request_context_t *context_out)
{
    for (uint32_t i = 0; i < requests->count && requests->ops->context != NULL; i++) {
        if (requests->ops->context(requests->items[i], peer, request_id, context_out)) {
            return true;
        }
    }
    return false;
}

void kv_requests_computed(kv_requests_t *requests, const struct kv_compute_event *event)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        if (requests->ops->computed(requests->items[i], event)) {
            break;
        }
    }
    destroy_done(requests);
}

void kv_requests_peer_down(kv_requests_t *requests, kv_peer_t *peer)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        requests->ops->peer_down(requests->items[i], peer);
    }
    destroy_done(requests);
}

void kv_requests_tick(kv_requests_t *requests, uint64_t now_ns)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        requests->ops->tick(requests->items[i], now_ns);
    }
    destroy_done(requests);
}

void kv_requests_stop(kv_requests_t *requests)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        requests->ops->stop(requests->items[i]);
    }
    destroy_done(requests);
}

uint32_t kv_requests_from(const kv_requests_t *requests, const kv_peer_t *peer)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < requests->count; i++) {
        count += requests->ops->is_from(requests->items[i], peer);
    }
    return count;
}

uint32_t kv_requests_running(const kv_requests_t *requests)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < requests->count; i++) {
        running += requests->ops->is_running(requests->items[i]);
    }
    return running;
}
