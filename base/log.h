/* The log: one line an event, on standard error.
 *
 *   2026-11-22T06:10:11.123Z info  prefill-0 transport: peer connected name decode-0 rtt_us 31
 *
 * Lower case, the value after its name, the exact cause, the remedy where one is known. An error is
 * logged once, where it is named. Nothing is logged per block above trace. Secrets and prompts are
 * never logged.
 *
 * Threads: any; a line is written whole. Lines over KV_LOG_LINE_BYTES are cut; control characters
 * become "?". */
#ifndef KV_BASE_LOG_H
#define KV_BASE_LOG_H

#include <stdbool.h>

typedef enum { KV_LOG_TRACE, KV_LOG_DEBUG, KV_LOG_INFO, KV_LOG_WARN, KV_LOG_ERROR } kv_log_level_t;

enum { KV_LOG_LINE_BYTES = 1024 };

/* Before other threads start: who speaks (copied, at most 31 bytes) and the lowest level that is
 * written. */
void kv_log_setup(const char *process_name, kv_log_level_t level);

bool kv_log_enabled(kv_log_level_t level);

void kv_log_write(kv_log_level_t level, const char *module, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define KV_LOG_AT(level, module, ...)                                                              \
    (kv_log_enabled(level) ? kv_log_write(level, module, __VA_ARGS__) : (void)0)
#define kv_log_trace(module, ...) KV_LOG_AT(KV_LOG_TRACE, module, __VA_ARGS__)
#define kv_log_debug(module, ...) KV_LOG_AT(KV_LOG_DEBUG, module, __VA_ARGS__)
#define kv_log_info(module, ...) KV_LOG_AT(KV_LOG_INFO, module, __VA_ARGS__)
#define kv_log_warn(module, ...) KV_LOG_AT(KV_LOG_WARN, module, __VA_ARGS__)
#define kv_log_error(module, ...) KV_LOG_AT(KV_LOG_ERROR, module, __VA_ARGS__)

#endif
