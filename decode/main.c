/* kvist-decode: generates. This file checks what a gateway sent and makes a request of it
 * (request.c). */
#include "decode/request.h"
#include "node/process.h"
#include "runtime/message.h"

#include <inttypes.h>

/* What a peer sent is checked before anything is made of it. */
static kv_status_t validate(
    kv_core_t *core, const Kvist__Wire__Generate *message, kv_error_t *error)
{
    uint32_t context_tokens_max = core->info->context_tokens_max;
    kv_message_prompt_t prompt = {message->request_id, message->salt.len, message->tokens,
        message->n_tokens, message->sampling, message->cache_mode};
    kv_status_t status = kv_message_check_room(
        core, core->holder.options->decode.queue_max, "decode.queue_max", error);
    if (status == KV_OK) {
        status = kv_message_check_prompt(core, &prompt, error);
    }
    if (status != KV_OK) {
        return status;
    }
    if (message->generated_count >= message->n_tokens) {
        return kv_fail(error, KV_INVALID,
            "generated_count is %u of %zu tokens (at least one is "
            "the prompt's)",
            message->generated_count, message->n_tokens);
    }
    const kv_kept_fields_t kept = kv_decode_kept_fields(message);
    status = kv_promises_check(&kept, message->n_tokens - message->generated_count, error);
    if (status != KV_OK) {
        return status;
    }
    if (message->max_tokens == 0 || message->max_tokens > core->holder.options->decode.max_tokens) {
        return kv_fail(error, KV_INVALID, "max_tokens is %u (1 to %u, decode.max_tokens)",
            message->max_tokens, core->holder.options->decode.max_tokens);
    }
    if (message->n_tokens + message->max_tokens > context_tokens_max) {
        return kv_fail(error, KV_INVALID,
            "%zu prompt tokens and %u to generate do not fit the model's context of %u tokens",
            message->n_tokens, message->max_tokens, context_tokens_max);
    }
    return KV_OK;
}

static void *accept_message(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (message->body_case != KVIST__WIRE__ENVELOPE__BODY_GENERATE) {
        return NULL;
    }
    kv_error_t error;
    kv_status_t status = validate(core, message->generate, &error);
    if (status != KV_OK) {
        kv_decode_refuse(peer, message->generate, status, error.text);
        return NULL;
    }
    return kv_decode_request_create(core, id, peer, message->generate);
}

int main(int argc, char **argv)
{
    static const kv_options_program_t PROGRAM = {
        .binary = "kvist-decode",
        .default_name = "decode",
        .summary = "Generates: lets a prefill node compute each prompt, receives its KV, decodes "
                   "in batches and "
                   "stores what it generated.",
        .sections = KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_STORE |
                    KV_SECTION_DECODE,
    };
    kv_options_t options;
    int code;
    if (!kv_process_begin(&PROGRAM, argc, argv, &options, &code)) {
        return code;
    }
    kv_core_params_t params = {
        .role = KVIST__WIRE__ROLE__ROLE_DECODE,
        .compute_rows_max = options.decode.batch_rows,
        .connect = &options.decode.prefill_nodes,
        .accept = accept_message,
        .ops = &KV_DECODE_REQUEST_OPS,
    };
    kv_error_t error;
    kv_status_t status = kv_core_run(&options, &params, &error);
    return kv_process_end(&options, status, &error);
}
