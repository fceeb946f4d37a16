/* Gemini's API: generateContent, streamGenerateContent, countTokens, models, cachedContents.
 *
 * Behind the table of functions, which are pure but for one thing: a request that creates a
 * cachedContent, moves its end or deletes it does so when the rest is done (commit).
 * Threads: parse and commit on a parse thread, the others on the reactor's.
 * Errors: in Google's shape. Names may be written in lowerCamelCase or snake_case; one that the API
 * does not know is refused, as there; one that would change the answer and is not supported is
 * refused, unless it asks for what happens anyway (presencePenalty: 0). */
#ifndef KV_GATEWAY_GEMINI_H
#define KV_GATEWAY_GEMINI_H

#include "gateway/dialect.h"
#include "gateway/gemini/contents.h"

extern const kv_dialect_t kv_gemini;
extern const kv_route_table_t kv_gemini_routes;

#endif
