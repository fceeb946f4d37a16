/* That loading and computing overlap, both ways: engine, store and compute thread as a node has
 * them, over the GPU's stand-in (or, KVIST_DEVICE, a GPU). Each move into the device waits until
 * the compute thread has told of a layer that it can only have made of the layers before. Whoever
 * waited for all layers first, or sent none before the last, would wait for ever; and every byte
 * must be the one that a computation without all this makes. */
#include "kernels/plugin.h"
#include "kvstore/store_internal.h"
#include "runtime/compute.h"
#include "testing/testing.h"
#include "testing/tiny_model.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 8,
    BLOCK_TOKENS = 16,
    SLOTS = 8,
    CACHED_BLOCKS = 4,
    CACHED = CACHED_BLOCKS * BLOCK_TOKENS,
    TOKENS = CACHED + 37,
    ALL = UINT32_MAX,
};

/* ---- a device whose moves in wait ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t permitted; /* layers that may come in */
    uint32_t failing;   /* this layer fails; ALL: none */
    size_t layer_bytes;
    kv_device_ops_t ops;
    const kv_device_ops_t *real;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static kv_status_t start_at_gate(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error)
{
    const kv_slot_part_t *part = &params->parts[0];
    const uint32_t layer = (uint32_t)(part->offset_bytes / gate.layer_bytes);
    bool fails = false;
    if (params->direction == KV_MOVE_IN && part->bytes == gate.layer_bytes) {
        pthread_mutex_lock(&gate.lock);
        while (layer >= gate.permitted) {
            pthread_cond_wait(&gate.changed, &gate.lock);
        }
        fails = layer == gate.failing;
        pthread_mutex_unlock(&gate.lock);
    }
    return fails ? kv_fail(error, KV_FATAL, "the test lets layer %u fail", layer)
                 : gate.real->move_start(device, params, move_out, error);
}

static void permit(uint32_t layer_count)
{
    pthread_mutex_lock(&gate.lock);
    gate.permitted = layer_count;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

/* ---- a node without its network ---- */

typedef struct {
    kv_device_t *device;
    kv_engine_t *engine;
    const kv_engine_info_t *info;
    kvist_layout_t layout;
    kvist_store_t *store;
    kv_compute_t *compute;
    kvist_key_t name_space;
    uint32_t tokens[TOKENS];
} node_t;

static void open_device(node_t *node)
{
    const char *name = getenv("KVIST_DEVICE");
    kv_error_t error;
    if (kv_device_open(name != NULL ? name : "simt", 1, &node->device, NULL, &error) != KV_OK) {
        fail_msg("no device: %s", error.text);
    }
    gate.real = node->device->ops;
    gate.ops = *gate.real;
    gate.ops.move_start = start_at_gate;
    node->device->ops = &gate.ops;
}

static void open_node(node_t *node)
{
    static const kv_tiny_model_t MODEL = {
        .seed = 7, .layer_count = LAYERS, .head_count = 2, .kv_head_count = 1};
    kv_error_t error;
    uint64_t random = kv_test_seed();
    memset(node, 0, sizeof *node);
    open_device(node);
    const kv_engine_params_t params = {.model_path = kv_tiny_model_write(&MODEL, "layers.gguf"),
        .block_tokens = BLOCK_TOKENS,
        .chunk_tokens_max = 128,
        .batch_rows_max = 2,
        .slot_count = SLOTS};
    if (kv_engine_open(node->device, &params, &node->engine, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    node->info = kv_engine_info(node->engine);
    node->layout = kvist_layout_plain(&node->info->shape);
    gate.layer_bytes = kv_block_layer_bytes(&node->info->shape);
    gate.failing = ALL;
    permit(ALL);
    const kvist_store_params_t store = {.layout = &node->layout,
        .device = node->device,
        .device_arena = kv_engine_arena(node->engine),
        .device_slot_count = SLOTS,
        .host_bytes = 64 * kv_block_bytes(&node->info->shape),
        .origin = "test"};
    const kv_store_seams_t seams = {.layer_step_bytes = 1}; /* a layer at a time */
    assert_int_equal(kv_store_open_with(&store, &seams, &node->store, &error), KV_OK);
    node->compute = kv_compute_create(node->engine, 128, 2);
    const kvist_namespace_params_t identity = {
        .layout = &node->layout, .salt = "", .salt_bytes = 0, .adapter = ""};
    node->name_space = kvist_namespace(&identity);
    for (uint32_t i = 0; i < TOKENS; i++) {
        node->tokens[i] = 3 + (uint32_t)(kv_test_random(&random) % 256);
    }
}

static void close_node(node_t *node)
{
    kv_compute_destroy(node->compute);
    kvist_store_close(node->store);
    kv_engine_close(node->engine);
    node->device->ops = gate.real;
    kv_device_close(node->device);
}

/* ---- a request ---- */

typedef struct {
    node_t *node;
    const uint32_t *tokens;
    kvist_mode_t mode;
    kvist_lease_t *lease;
    bool prepared, layered, ended;
    uint32_t found_blocks, layers_there;
    uint32_t there_at[LAYERS]; /* layers that were there when this one of the chunk was made */
    kv_status_t status;
    uint32_t token;
    float logprob;
} request_t;

static void submit(request_t *request)
{
    const kv_compute_sequence_t sequence = {.id = 1,
        .tokens = request->tokens,
        .token_count = TOKENS,
        .computed_count = request->found_blocks * BLOCK_TOKENS,
        .slots = kvist_lease_slots(request->lease),
        .generate_max = 1,
        .report_layers = true,
        .layers_come = request->layered,
        .sampling = {.top_p = 1}};
    assert_int_equal(kv_compute_submit(request->node->compute, &sequence, NULL), KV_OK);
}

static void prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    request_t *request = context;
    assert_int_equal(status, KV_OK);
    request->prepared = true;
    request->layered = kvist_lease_is_loading(lease);
    request->found_blocks = match->block_count;
    submit(request);
}

static void layers_came(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count)
{
    request_t *request = context;
    (void)lease;
    request->layers_there = status == KV_OK ? layer_count : request->layers_there;
    kv_compute_layers(request->node->compute, 1, status, layer_count);
}

static void seal(const request_t *request, uint32_t end)
{
    for (uint32_t block = kvist_lease_sealed_count(request->lease);
         (block + 1) * BLOCK_TOKENS <= end; block++) {
        assert_int_equal(kvist_lease_seal(request->lease, request->tokens + block * BLOCK_TOKENS,
                             NULL, request->node->info->prefill_arithmetic),
            KV_OK);
    }
}

static void take_event(request_t *request, const kv_compute_event_t *event)
{
    switch (event->type) {
    case KV_COMPUTE_LAYER:
        request->there_at[event->layer] = request->layers_there;
        pthread_mutex_lock(&gate.lock); /* one more may come: not before this one was made */
        gate.permitted += gate.permitted < LAYERS;
        pthread_cond_broadcast(&gate.changed);
        pthread_mutex_unlock(&gate.lock);
        break;
    case KV_COMPUTE_CHUNK:
        seal(request, event->first + event->count);
        break;
    case KV_COMPUTE_TOKEN:
        request->token = event->token;
        request->logprob = event->logprob;
        break;
    case KV_COMPUTE_ENDED:
        request->status = event->status;
        request->ended = true;
        break;
    }
}

/* The whole of it; the lease stays, to be looked at. */
static void serve(request_t *request)
{
    node_t *node = request->node;
    const uint64_t limit_ns = kv_clock_now_ns() + 600ull * KV_NS_PER_S;
    const kvist_query_t query = {.name_space = node->name_space,
        .tokens = request->tokens,
        .token_count = CACHED,
        .mode = request->mode};
    kvist_match_t match;
    assert_int_equal(kvist_match(node->store, &query, &request->lease, &match), KV_OK);
    assert_int_equal(kvist_lease_prepare_layers(request->lease, (TOKENS - 1) / BLOCK_TOKENS + 1,
                         limit_ns, prepared, layers_came, request),
        KV_OK);
    while (!request->ended) {
        assert_true(kv_clock_now_ns() < limit_ns);
        struct pollfd fds[] = {{.fd = kvist_store_fd(node->store), .events = POLLIN},
            {.fd = kv_compute_fd(node->compute), .events = POLLIN}};
        poll(fds, 2, 100);
        kvist_store_poll(node->store);
        kv_compute_event_t event;
        while (kv_compute_poll(node->compute, &event) == KV_OK) {
            take_event(request, &event);
        }
    }
}

static void release(request_t *request)
{
    kvist_store_t *store = request->node->store;
    const uint64_t limit_ns = kv_clock_now_ns() + 600ull * KV_NS_PER_S;
    permit(ALL);
    kvist_lease_release(request->lease);
    while (store->lease_count > 0) {
        assert_true(kv_clock_now_ns() < limit_ns);
        struct pollfd fd = {.fd = kvist_store_fd(store), .events = POLLIN};
        poll(&fd, 1, 100);
        kvist_store_poll(store);
    }
}

/* The KV of a request's tokens, out of its slots. Release with free(). */
static char *copy_kv(const request_t *request)
{
    const size_t block_bytes = kv_block_bytes(&request->node->info->shape);
    const uint32_t count = TOKENS / BLOCK_TOKENS; /* whole ones */
    char *copy = malloc(count * block_bytes);
    kv_error_t error;
    for (uint32_t block = 0; block < count; block++) {
        const char *slot = (const char *)kv_engine_arena(request->node->engine) +
                           kvist_lease_slots(request->lease)[block] * block_bytes;
        assert_int_equal(gate.real->copy_out(request->node->device, copy + block * block_bytes,
                             slot, block_bytes, &error),
            KV_OK);
    }
    return copy;
}

/* Another context, so that the first one leaves the device. */
static void push_out(node_t *node)
{
    uint32_t tokens[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++) {
        tokens[i] = node->tokens[TOKENS - 1 - i];
    }
    request_t other = {.node = node, .tokens = tokens, .mode = KVIST_MODE_READWRITE};
    serve(&other);
    assert_int_equal(other.status, KV_OK);
    release(&other);
}

/* ---- what is to be shown ---- */

static void layers_come_while_others_are_computed(void **state)
{
    node_t node;
    (void)state;
    open_node(&node);
    request_t first = {.node = &node, .tokens = node.tokens, .mode = KVIST_MODE_READWRITE};
    serve(&first);
    assert_int_equal(first.status, KV_OK);
    assert_int_equal(first.found_blocks, 0);
    char *wanted = copy_kv(&first);
    release(&first);
    push_out(&node);
    const size_t bytes = (size_t)(TOKENS / BLOCK_TOKENS) * kv_block_bytes(&node.info->shape);

    /* A device that runs ahead tells of a layer with so many enqueued behind it. */
    const uint32_t ahead = node.device->ops->ahead ? KV_DEVICE_MARKS_MAX - 1 : 0;
    request_t second = {.node = &node, .tokens = node.tokens, .mode = KVIST_MODE_READWRITE};
    permit(ahead);
    serve(&second);
    assert_int_equal(second.status, KV_OK);
    assert_int_equal(second.found_blocks, CACHED_BLOCKS);
    assert_true(second.layered);
    assert_int_equal(second.layers_there, LAYERS);
    for (uint32_t layer = 0; layer + ahead < LAYERS; layer++) {
        assert_true(second.there_at[layer] <= layer + ahead); /* it leaves before the others come */
    }
    assert_int_equal(second.token, first.token);
    assert_true(second.logprob == first.logprob);
    char *made = copy_kv(&second);
    assert_memory_equal(wanted, made, bytes);
    release(&second);
    free(made);
    free(wanted);
    close_node(&node);
}

/* Each layer in turn does not come: the sequence ends, and the next request has what the first one
 * had. */
static void a_layer_that_fails_costs_a_computation(void **state)
{
    static const uint32_t FAILING[] = {0, LAYERS / 2, LAYERS - 1};
    node_t node;
    (void)state;
    open_node(&node);
    request_t first = {.node = &node, .tokens = node.tokens, .mode = KVIST_MODE_READWRITE};
    serve(&first);
    release(&first);
    for (size_t i = 0; i < sizeof FAILING / sizeof *FAILING; i++) {
        push_out(&node);
        gate.failing = FAILING[i];
        request_t second = {.node = &node, .tokens = node.tokens, .mode = KVIST_MODE_READWRITE};
        serve(&second);
        assert_int_equal(second.status, KV_IO);
        assert_int_equal(kvist_lease_sealed_count(second.lease), CACHED_BLOCKS);
        release(&second);
        gate.failing = ALL;
        request_t third = {.node = &node, .tokens = node.tokens, .mode = KVIST_MODE_READWRITE};
        serve(&third);
        assert_int_equal(third.status, KV_OK);
        assert_int_equal(third.found_blocks, CACHED_BLOCKS);
        assert_int_equal(third.token, first.token);
        assert_true(third.logprob == first.logprob);
        release(&third);
    }
    close_node(&node);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_come_while_others_are_computed),
        cmocka_unit_test(a_layer_that_fails_costs_a_computation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
