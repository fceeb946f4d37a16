/* What the two halves of reading an Anthropic body share: parse.c (the body's options) and
 * content.c (tools, system and messages, with the breakpoints in them).
 *
 * A place in a body is named as that API names it: "messages.3.content.0.text". */
#ifndef KV_GATEWAY_ANTHROPIC_PARSE_INTERNAL_H
#define KV_GATEWAY_ANTHROPIC_PARSE_INTERNAL_H

#include "gateway/api.h"
#include "gateway/json.h"

/* Tools, system and messages into the request, with their breakpoints and the body's own
 * cache_control. false: *error says why. */
bool kv_anthropic_take_content(
    kv_api_request_t *request, const json_t *document, kv_api_error_t *error);

#endif
