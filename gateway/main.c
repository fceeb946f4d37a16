/* kvist-gateway: options, tokenizer, reactor, gateway; closed in reverse. */
#include "engine/tokenizer.h"
#include "gateway/gateway.h"
#include "node/notify.h"
#include "node/process.h"
#include "node/reactor.h"

static const kv_options_program_t PROGRAM = {"kvist-gateway", "gateway",
    "serves OpenAI's HTTP API in front of decode nodes",
    KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_GATEWAY};

typedef struct {
    kv_reactor_t *reactor;
    kv_gateway_t *gateway;
} gateway_process_t;

static void on_stopped(void *context)
{
    kv_reactor_end(((gateway_process_t *)context)->reactor);
}

static void on_stop(void *context)
{
    kv_gateway_begin_stop(((gateway_process_t *)context)->gateway, on_stopped, context);
}

static void on_drain(void *context)
{
    kv_gateway_begin_drain(((gateway_process_t *)context)->gateway);
}

static void on_reload(void *context)
{
    kv_gateway_reload(((gateway_process_t *)context)->gateway);
}

static kv_status_t run(const kv_options_t *options, kv_error_t *error)
{
    gateway_process_t process = {0};
    kv_tokenizer_t *tokenizer = NULL;
    if (options->model.path[0] == '\0') {
        return kv_fail(error, KV_INVALID, "model.path: is empty: name the model's GGUF file");
    }
    kv_status_t status = kv_tokenizer_open(options->model.path, &tokenizer, error);
    if (status != KV_OK) {
        return status;
    }
    status = kv_reactor_create(&process.reactor, error);
    if (status != KV_OK) {
        goto close_tokenizer;
    }
    status = kv_gateway_open(process.reactor, options, tokenizer, &process.gateway, error);
    if (status == KV_OK) {
        kv_reactor_on_reload(process.reactor, on_reload, &process);
        kv_reactor_on_stop(process.reactor, on_stop, &process);
        kv_reactor_on_drain(process.reactor, on_drain, &process, options->node.drain_limit_ns);
        kv_notify_ready();
        kv_reactor_run(process.reactor);
        kv_gateway_close(process.gateway);
    }
    kv_reactor_destroy(process.reactor);
close_tokenizer:
    kv_tokenizer_close(tokenizer);
    return status;
}

int main(int argc, char **argv)
{
    kv_options_t options;
    int code;
    if (!kv_process_begin(&PROGRAM, argc, argv, &options, &code)) {
        return code;
    }
    kv_error_t error;
    kv_status_t status = run(&options, &error);
    return kv_process_end(&options, status, &error);
}
