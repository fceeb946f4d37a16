#include "runtime/message.h"

#include "base/bytes.h"

kv_status_t kv_message_check_room(
    const kv_core_t *core, uint32_t queue_max, const char *option, kv_error_t *error)
{
    if (core->holder.stopping) {
        return kv_fail(error, KV_BUSY, "the node is stopping");
    }
    if (core->holder.draining) {
        return kv_fail(error, KV_BUSY, "the node is draining");
    }
    uint32_t room = queue_max < KV_REQUESTS_MAX ? queue_max : KV_REQUESTS_MAX;
    if (core->request_count >= room) {
        return kv_fail(
            error, KV_BUSY, "%u requests wait already (%s)", core->request_count, option);
    }
    uint32_t share = core->asker_count > 1 ? room / core->asker_count : room;
    if (core->request_count >= room / 2 && core->asker_request_count > 0 &&
        core->asker_request_count >= share) {
        return kv_fail(error, KV_BUSY,
            "%u requests wait already, %u of them this peer's, whose share is %u (%s)",
            core->request_count, core->asker_request_count, share, option);
    }
    return KV_OK;
}

const char *kv_message_client_id(const char *client_id, const char *request_id)
{
    return kv_text_is_plain(client_id, '!', KV_MESSAGE_ID_BYTES_MAX) ? client_id : request_id;
}

kv_sampling_t kv_message_sampling(const Kvist__Wire__Sampling *sampling)
{
    return (kv_sampling_t){
        .temperature = sampling->temperature,
        .top_k = sampling->top_k,
        .top_p = sampling->top_p,
        .seed = sampling->seed,
    };
}

uint32_t kv_message_top_logprobs(const Kvist__Wire__Sampling *sampling)
{
    return sampling->top_logprobs < KV_SAMPLER_TOPS_MAX ? sampling->top_logprobs
                                                        : KV_SAMPLER_TOPS_MAX;
}

Kvist__Wire__TopLogprobs kv_message_tops(kv_sampler_tops_t *tops)
{
    Kvist__Wire__TopLogprobs message = KVIST__WIRE__TOP_LOGPROBS__INIT;
    message.n_tokens = message.n_logprobs = tops->count;
    message.tokens = tops->tokens;
    message.logprobs = tops->logprobs;
    return message;
}

kv_status_t kv_message_check_prompt(
    const kv_core_t *core, const kv_message_prompt_t *prompt, kv_error_t *error)
{
    const kv_engine_info_t *info = core->info;
    if (!kv_text_is_plain(prompt->request_id, '!', KV_MESSAGE_ID_BYTES_MAX)) {
        return kv_fail(error, KV_INVALID, "request_id is not 1 to %d printable characters",
            KV_MESSAGE_ID_BYTES_MAX);
    }
    if (prompt->salt_bytes > KV_MESSAGE_SALT_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "salt: %zu bytes (at most %d)", prompt->salt_bytes,
            KV_MESSAGE_SALT_BYTES_MAX);
    }
    if (prompt->token_count == 0 || prompt->token_count >= info->context_tokens_max) {
        return kv_fail(error, KV_INVALID, "tokens: %zu of them (1 to %u)", prompt->token_count,
            info->context_tokens_max - 1);
    }
    kv_status_t status =
        kv_message_check_tokens(prompt->tokens, prompt->token_count, info->vocabulary_count, error);
    if (status != KV_OK) {
        return status;
    }
    if (prompt->sampling == NULL) {
        return kv_fail(error, KV_INVALID, "sampling is required");
    }
    if (prompt->cache_mode > KVIST__WIRE__CACHE_MODE__CACHE_BYPASS) {
        return kv_fail(error, KV_INVALID, "cache_mode is %d (0 to 3)", (int)prompt->cache_mode);
    }
    kv_sampling_t sampling = kv_message_sampling(prompt->sampling);
    return kv_sampling_validate(&sampling, error);
}
