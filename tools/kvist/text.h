/* Figures as people read them. Each writes into the caller's buffer (KV_TEXT_BYTES) and returns it.
 * Threads: any. */
#ifndef KV_TOOLS_TEXT_H
#define KV_TOOLS_TEXT_H

#include <stdint.h>
#include <stdio.h>

enum { KV_TEXT_BYTES = 64 };

char *kv_text_size(uint64_t bytes, char *text_out);  /* "512 B", "1.4 MiB" */
char *kv_text_count(uint64_t count, char *text_out); /* "6,012" */
char *kv_text_duration(uint64_t ns, char *text_out); /* "3.1 ms", "2.5 s", "4 min", "3 d" */
char *kv_text_bar(double fraction, char *text_out);  /* "[####......]"; 0 to 1 */
char *kv_text_percent(uint64_t part, uint64_t whole, char *text_out); /* "87.5 %", "-" of nothing */

/* The column's width is counted in bytes: the texts above are ASCII. */

#endif
