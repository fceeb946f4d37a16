#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const LEVEL_NAMES[] = {"trace", "debug", "info ", "warn ", "error"};

static char process_name[32] = "kvist";
static kv_log_level_t level_min = KV_LOG_INFO;

void kv_log_setup(const char *name, kv_log_level_t level)
{
    snprintf(process_name, sizeof process_name, "%s", name);
    level_min = level;
}

bool kv_log_enabled(kv_log_level_t level)
{
    return level >= level_min;
}

void kv_log_write(kv_log_level_t level, const char *module, const char *format, ...)
{
    char line[KV_LOG_LINE_BYTES];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &utc);
    used += (size_t)snprintf(line + used, sizeof line - used,
        ".%03ldZ %s %s %s: ", now.tv_nsec / 1000000, LEVEL_NAMES[level], process_name, module);
    va_list arguments;
    va_start(arguments, format);
    int body = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    used += body < 0 ? 0 : (size_t)body;
    if (used > sizeof line - 2) {
        used = sizeof line - 2;
    }
    /* What others said is in it: no line break to forge a line with, no escape for a terminal. */
    for (size_t i = 0; i < used; i++) {
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f) {
            line[i] = '?';
        }
    }
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* a log that cannot be written is nobody's error */
}
