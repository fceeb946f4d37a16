/* Texts that sum up what went before: known by what introduces them.
 *
 * Threads: any; pure. Errors: none. */
#ifndef KV_AUDIT_SUMMARY_H
#define KV_AUDIT_SUMMARY_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the text that goes on after these bytes stands under a heading that names a summary. */
bool kv_summary_governs(const char *text, uint32_t bytes);

/* Whether these bytes, the beginning of a message, name one. */
bool kv_summary_opens(const char *text, uint32_t bytes);

#endif
