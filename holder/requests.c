#include "holder/requests.h"

#include "base/check.h"

static void destroy_done(kv_requests_t *requests)
{
    for (uint32_t i = 0; i < requests->count;) {
        if (requests->item_ops[i]->is_done(requests->items[i])) {
            requests->item_ops[i]->destroy(requests->items[i]);
            requests->items[i] = requests->items[--requests->count];
            requests->item_ops[i] = requests->item_ops[requests->count];
        } else {
            i++;
        }
    }
}

void kv_requests_add_as(kv_requests_t *requests, const kv_request_ops_t *ops, void *request)
{
    KV_CHECK(requests->count < KV_REQUESTS_MAX);
    requests->item_ops[requests->count] = ops;
    requests->items[requests->count++] = request;
    destroy_done(requests);
}

void kv_requests_add(kv_requests_t *requests, void *request)
{
    kv_requests_add_as(requests, requests->ops, request);
}

void kv_requests_message(
    kv_requests_t *requests, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        const kv_request_ops_t *ops = requests->item_ops[i];
        if (ops->message != NULL && ops->message(requests->items[i], peer, message)) {
            break;
        }
    }
    destroy_done(requests);
}

bool kv_requests_moved(kv_requests_t *requests, const kv_mover_event_t *event)
{
    bool taken = false;
    for (uint32_t i = 0; i < requests->count && !taken; i++) {
        const kv_request_ops_t *ops = requests->item_ops[i];
        taken = ops->moved != NULL && ops->moved(requests->items[i], event);
    }
    destroy_done(requests);
    return taken;
}

bool kv_requests_context(const kv_requests_t *requests, const kv_peer_t *peer,
    const char *request_id, kv_request_context_t *context_out)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        const kv_request_ops_t *ops = requests->item_ops[i];
        if (ops->context != NULL &&
            ops->context(requests->items[i], peer, request_id, context_out)) {
            return true;
        }
    }
    return false;
}

void kv_requests_computed(kv_requests_t *requests, const struct kv_compute_event *event)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        const kv_request_ops_t *ops = requests->item_ops[i];
        if (ops->computed != NULL && ops->computed(requests->items[i], event)) {
            break;
        }
    }
    destroy_done(requests);
}

void kv_requests_peer_down(kv_requests_t *requests, kv_peer_t *peer)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        requests->item_ops[i]->peer_down(requests->items[i], peer);
    }
    destroy_done(requests);
}

void kv_requests_tick(kv_requests_t *requests, uint64_t now_ns)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        if (requests->item_ops[i]->tick != NULL) {
            requests->item_ops[i]->tick(requests->items[i], now_ns);
        }
    }
    destroy_done(requests);
}

void kv_requests_stop(kv_requests_t *requests)
{
    for (uint32_t i = 0; i < requests->count; i++) {
        requests->item_ops[i]->stop(requests->items[i]);
    }
    destroy_done(requests);
}

uint32_t kv_requests_from(const kv_requests_t *requests, const kv_peer_t *peer)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < requests->count; i++) {
        count += requests->item_ops[i]->is_from(requests->items[i], peer);
    }
    return count;
}

uint32_t kv_requests_running(const kv_requests_t *requests)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < requests->count; i++) {
        const kv_request_ops_t *ops = requests->item_ops[i];
        running += ops->is_running != NULL && ops->is_running(requests->items[i]);
    }
    return running;
}
