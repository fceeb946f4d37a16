/* generationConfig: how the answer is drawn. */
#include "gateway/gemini/gemini_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const kv_gemini_field_t FIELDS[] = {{"temperature", KV_GEMINI_TAKEN},
    {"topP", KV_GEMINI_TAKEN}, {"topK", KV_GEMINI_TAKEN}, {"maxOutputTokens", KV_GEMINI_TAKEN},
    {"stopSequences", KV_GEMINI_TAKEN}, {"candidateCount", KV_GEMINI_TAKEN},
    {"seed", KV_GEMINI_TAKEN}, {"responseLogprobs", KV_GEMINI_TAKEN}, {"logprobs", KV_GEMINI_TAKEN},
    {"responseMimeType", KV_GEMINI_TAKEN}, {"responseModalities", KV_GEMINI_TAKEN},
    {"thinkingConfig", KV_GEMINI_TAKEN}, {"mediaResolution", KV_GEMINI_IGNORED},
    {"enableEnhancedCivicAnswers", KV_GEMINI_IGNORED}, {"presencePenalty", KV_GEMINI_REFUSED},
    {"frequencyPenalty", KV_GEMINI_REFUSED}, {"responseSchema", KV_GEMINI_REFUSED},
    {"responseJsonSchema", KV_GEMINI_REFUSED}, {"_responseJsonSchema", KV_GEMINI_REFUSED},
    {"responseFormat", KV_GEMINI_REFUSED}, {"speechConfig", KV_GEMINI_REFUSED},
    {"imageConfig", KV_GEMINI_REFUSED}, {"audioTimestamp", KV_GEMINI_REFUSED},
    {"audioTranscriptionConfig", KV_GEMINI_REFUSED}, {"translationConfig", KV_GEMINI_REFUSED},
    {"routingConfig", KV_GEMINI_REFUSED}, {"modelSelectionConfig", KV_GEMINI_REFUSED},
    {"enableAffectiveDialog", KV_GEMINI_REFUSED}};

static const kv_gemini_field_t THINKING_FIELDS[] = {{"thinkingBudget", KV_GEMINI_TAKEN},
    {"includeThoughts", KV_GEMINI_REFUSED}, {"thinkingLevel", KV_GEMINI_TAKEN}};

#define WHERE "generationConfig."

/* A whole number, which clients may write as 40.0. */
static bool take_top_k(kv_api_request_t *request, const json_t *config, kv_api_error_t *error)
{
    const json_t *value = kv_json_field(config, "topK");
    double number = json_number_value(value);
    if (value == NULL) {
        return true;
    }
    if (!json_is_number(value) || !(number >= 0 && number <= KV_API_TOP_K_MAX) ||
        number != floor(number)) {
        return KV_API_REFUSE(
            error, WHERE "topK", WHERE "topK: must be a whole number, 0 to %d", KV_API_TOP_K_MAX);
    }
    request->top_k = (uint32_t)number;
    return true;
}

static bool take_stops(kv_api_request_t *request, const json_t *config, kv_api_error_t *error)
{
    const json_t *stops = kv_json_field(config, "stopSequences");
    if (stops != NULL && !json_is_array(stops)) {
        return kv_json_wrong_type(WHERE "stopSequences", "an array", stops, error);
    }
    if (json_array_size(stops) > KV_GEMINI_STOPS_MAX) {
        return KV_API_REFUSE(error, WHERE "stopSequences",
            WHERE "stopSequences: %zu of them: at most %d", json_array_size(stops),
            KV_GEMINI_STOPS_MAX);
    }
    for (size_t i = 0; i < json_array_size(stops); i++) {
        char param[64];
        snprintf(param, sizeof param, WHERE "stopSequences[%zu]", i);
        if (!kv_json_take_stop(request, json_array_get(stops, i), param, error)) {
            return false;
        }
    }
    return true;
}

static bool take_logprobs(kv_api_request_t *request, const json_t *config, kv_api_error_t *error)
{
    json_int_t count = 0;
    if (!kv_json_take_bool(
            config, "responseLogprobs", WHERE "responseLogprobs", &request->has_logprobs, error) ||
        !kv_json_take_integer(
            config, "logprobs", WHERE "logprobs", 0, KV_API_TOP_LOGPROBS_MAX, &count, error)) {
        return false;
    }
    if (kv_json_field(config, "logprobs") != NULL && !request->has_logprobs) {
        return KV_API_REFUSE(
            error, WHERE "logprobs", WHERE "logprobs: only with \"responseLogprobs\": true");
    }
    request->top_logprobs = (uint32_t)count;
    return true;
}

/* Text is what there is. */
static bool check_form(const json_t *config, kv_api_error_t *error)
{
    const json_t *type = kv_json_field(config, "responseMimeType");
    const json_t *modalities = kv_json_field(config, "responseModalities");
    const json_t *modality;
    size_t index;
    if (type != NULL && !kv_json_is_nothing(type) &&
        (!json_is_string(type) || strcmp(json_string_value(type), "text/plain") != 0)) {
        return KV_API_REFUSE(error, WHERE "responseMimeType",
            WHERE "responseMimeType: only text/plain is supported");
    }
    if (modalities != NULL && !json_is_array(modalities)) {
        return kv_json_wrong_type(WHERE "responseModalities", "an array", modalities, error);
    }
    json_array_foreach(modalities, index, modality)
    {
        if (!json_is_string(modality) || strcmp(json_string_value(modality), "TEXT") != 0) {
            return KV_API_REFUSE(error, WHERE "responseModalities",
                WHERE "responseModalities: only TEXT is supported");
        }
    }
    return true;
}

/* Asking for no thoughts, or leaving it to the model, is what happens. */
static bool check_thinking(const json_t *config, kv_api_error_t *error)
{
    json_t *thinking = kv_json_field(config, "thinkingConfig");
    json_int_t budget = 0;
    if (thinking == NULL) {
        return true;
    }
    if (!KV_GEMINI_CHECK_FIELDS(thinking, THINKING_FIELDS, WHERE "thinkingConfig", error) ||
        !kv_json_take_integer(thinking, "thinkingBudget", WHERE "thinkingConfig.thinkingBudget", -1,
            INT32_MAX, &budget, error)) {
        return false;
    }
    const json_t *level = kv_json_field(thinking, "thinkingLevel");
    bool none = level == NULL ||
                (json_is_string(level) &&
                    (strcmp(json_string_value(level), "MINIMAL") == 0 ||
                        strcmp(json_string_value(level), "THINKING_LEVEL_UNSPECIFIED") == 0));
    return (budget <= 0 && none) ||
           KV_API_REFUSE(error, WHERE "thinkingConfig",
               WHERE "thinkingConfig: this model has no thoughts of its own: budget 0 or -1, level "
                     "MINIMAL");
}

bool kv_gemini_take_config(kv_api_request_t *request, json_t *document,
    const kv_api_limits_t *limits, kv_api_error_t *error)
{
    json_t *config = kv_json_field(document, "generationConfig");
    json_int_t tokens = 0, choices = 1, seed = 0;
    request->temperature = 1;
    request->top_p = 1;
    request->choice_count = 1;
    if (config == NULL) {
        return true;
    }
    bool good =
        KV_GEMINI_CHECK_FIELDS(config, FIELDS, "generationConfig", error) &&
        kv_json_take_number(config, "temperature", WHERE "temperature", 0, false, 2,
            &request->temperature, error) &&
        kv_json_take_number(config, "topP", WHERE "topP", 0, true, 1, &request->top_p, error) &&
        take_top_k(request, config, error) &&
        kv_json_take_integer(config, "maxOutputTokens", WHERE "maxOutputTokens", 1,
            limits->context_tokens_max, &tokens, error) &&
        kv_json_take_integer(config, "candidateCount", WHERE "candidateCount", 1,
            KV_GEMINI_CHOICES_MAX, &choices, error) &&
        kv_json_take_integer(config, "seed", WHERE "seed", INT64_MIN, INT64_MAX, &seed, error) &&
        take_stops(request, config, error) && take_logprobs(request, config, error) &&
        check_form(config, error) && check_thinking(config, error);
    request->max_tokens = (uint32_t)tokens;
    request->choice_count = (uint32_t)choices;
    request->has_seed = kv_json_field(config, "seed") != NULL;
    request->seed = (uint64_t)seed;
    return good;
}
