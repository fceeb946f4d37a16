#include "base/check.h"

#include "base/log.h"

#include <stdlib.h>

_Noreturn void kv_check_failed(const char *expression, const char *file, int line)
{
    kv_log_write(
        KV_LOG_ERROR, "base", "broken invariant '%s' at %s:%d: stopping", expression, file, line);
    abort();
}
