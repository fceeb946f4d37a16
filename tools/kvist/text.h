/* Figures as people read them. Each writes into the caller's buffer (KV_TEXT_BYTES) and returns it.
 * Threads: any. */
#ifndef KV_TOOLS_TEXT_H
#define KV_TOOLS_TEXT_H

#include "base/status.h"

#include <stdint.h>
#include <stdio.h>

enum { KV_TEXT_BYTES = 64 };

char *kv_text_size(uint64_t bytes, char *text_out);  /* "512 B", "1.4 MiB" */
char *kv_text_count(uint64_t count, char *text_out); /* "6,012" */
char *kv_text_duration(uint64_t ns, char *text_out); /* "3.1 ms", "2.5 s", "4 min", "3 d" */
char *kv_text_bar(double fraction, char *text_out);  /* "[####......]"; 0 to 1 */
char *kv_text_percent(uint64_t part, uint64_t whole, char *text_out); /* "87.5 %", "-" of nothing */

char *kv_text_time(uint64_t unix_ns, char *text_out); /* "2026-12-24 18:30:00", local time */

/* "90s", "15m", "2h", "7d", "4w": a whole number and its unit. KV_INVALID: anything else. */
kv_status_t kv_duration_parse(const char *text, uint64_t *ns_out);

/* "2026-12-24", "2026-12-24T18:30", "2026-12-24T18:30:00" in local time, with a Z at the end in
 * UTC. KV_INVALID: anything else. */
kv_status_t kv_time_parse(const char *text, uint64_t *unix_ns_out);

/* The column's width is counted in bytes: the texts above are ASCII. */

#endif
