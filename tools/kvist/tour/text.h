/* The tour's context: what an agent would send, from the texts of tools/tour.
 *
 * Threads: any. */
#ifndef KV_TOOLS_TOUR_TEXT_H
#define KV_TOOLS_TOUR_TEXT_H

#include <jansson.h>

/* A conversation: a system message (instructions, tools, handbook), then the log and the question.
 * session comes first of all: with a new one nothing of it was ever computed. New reference. */
json_t *kv_tour_messages(const char *session, const char *question);

#endif
