/* kvist-prefill: computes prompts for decode nodes. This file checks what a decode node sent and
 * makes a request of it (request.c). */
#include "node/process.h"
#include "prefill/request.h"
#include "runtime/message.h"

#include <string.h>

/* What a peer sent is checked before anything is made of it. */
static kv_status_t validate(kv_core_t *core, const Kvist__Wire__Prefill *message, kv_error_t *error)
{
    uint32_t block_tokens = core->info->shape.block_tokens;
    kv_message_prompt_t prompt = {message->request_id, message->salt.len, message->tokens,
        message->n_tokens, message->sampling, message->cache_mode};
    kv_status_t status = kv_message_check_room(
        core, core->holder.options->prefill.queue_max, "prefill.queue_max", error);
    if (status == KV_OK) {
        status = kv_message_check_prompt(core, &prompt, error);
    }
    if (status == KV_OK) {
        const kv_kept_fields_t kept = kv_prefill_kept_fields(message);
        status = kv_promises_check(&kept, message->n_tokens, error);
    }
    if (status != KV_OK) {
        return status;
    }
    if (message->held_blocks > (message->n_tokens - 1) / block_tokens) {
        return kv_fail(error, KV_INVALID,
            "held_blocks is %u, the prompt has %zu whole ones before its last token",
            message->held_blocks, (message->n_tokens - 1) / block_tokens);
    }
    if (message->transfer_id == 0) {
        return kv_fail(error, KV_INVALID, "transfer_id is 0 (at least 1)");
    }
    kvist_key_t name_space = kv_core_namespace(core, message->salt.data, message->salt.len);
    if (message->name_space.len != KVIST_KEY_BYTES ||
        memcmp(message->name_space.data, name_space.bytes, KVIST_KEY_BYTES) != 0) {
        return kv_fail(error, KV_REFUSED,
            "name_space is not this node's for that salt: model, layout, dtype or block size "
            "differ");
    }
    return KV_OK;
}

static void *accept_prefill(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (message->body_case != KVIST__WIRE__ENVELOPE__BODY_PREFILL) {
        return NULL;
    }
    kv_error_t error;
    kv_status_t status = validate(core, message->prefill, &error);
    if (status != KV_OK) {
        kv_prefill_refuse(peer, message->prefill, status, error.text);
        return NULL;
    }
    return kv_prefill_request_create(core, id, peer, message->prefill);
}

int main(int argc, char **argv)
{
    static const kv_options_program_t PROGRAM = {
        .binary = "kvist-prefill",
        .default_name = "prefill",
        .summary = "Computes prompts: finds their longest stored prefix, computes the rest and "
                   "streams the KV to a decode node.",
        .sections = KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_STORE |
                    KV_SECTION_PREFILL,
    };
    kv_options_t options;
    int code;
    if (!kv_process_begin(&PROGRAM, argc, argv, &options, &code)) {
        return code;
    }
    kv_core_params_t params = {
        .role = KVIST__WIRE__ROLE__ROLE_PREFILL,
        .compute_rows_max = 1,
        .accept = accept_prefill,
        .ops = &KV_PREFILL_REQUEST_OPS,
    };
    kv_error_t error;
    kv_status_t status = kv_core_run(&options, &params, &error);
    return kv_process_end(&options, status, &error);
}
