/* Points in time and durations as Google's JSON writes them: RFC 3339 ("2026-11-22T06:10:11.5Z",
 * any offset) and seconds ("3600s", "0.5s").
 *
 * Pure. Threads: any.
 * Limits: years 1970 to 2100; durations of KV_GEMINI_DURATION_S_MAX; parts of a second below a
 * microsecond are dropped. */
#ifndef KV_GATEWAY_GEMINI_TIMES_H
#define KV_GATEWAY_GEMINI_TIMES_H

#include <stdbool.h>
#include <stdint.h>

enum { KV_GEMINI_TIME_BYTES = 32, KV_GEMINI_DURATION_S_MAX = 10 * 365 * 86400 };

bool kv_gemini_time_parse(const char *text, uint64_t *unix_ns_out);

/* In UTC, with 0, 3 or 6 digits after the point. */
void kv_gemini_time_format(uint64_t unix_ns, char text_out[KV_GEMINI_TIME_BYTES]);

bool kv_gemini_duration_parse(const char *text, uint64_t *duration_ns_out);

#endif
