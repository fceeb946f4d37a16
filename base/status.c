#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *kv_status_name(kv_status_t status)
{
    switch (status) {
    case KV_OK:
        return "ok";
    case KV_BUSY:
        return "busy";
    case KV_MISSING:
        return "missing";
    case KV_CORRUPT:
        return "corrupt";
    case KV_PEER_LOST:
        return "peer lost";
    case KV_REFUSED:
        return "refused";
    case KV_INVALID:
        return "invalid";
    case KV_CANCELLED:
        return "cancelled";
    case KV_IO:
        return "i/o error";
    case KV_NO_SPACE:
        return "no space";
    case KV_FATAL:
        return "fatal";
    }
    return "unknown status";
}

kv_status_t kv_fail(kv_error_t *error, kv_status_t status, const char *format, ...)
{
    if (error != NULL) {
        va_list arguments;
        error->status = status;
        va_start(arguments, format);
        vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
    }
    return status;
}

kv_status_t kv_fail_errno(kv_error_t *error, int errno_value, const char *format, ...)
{
    kv_status_t status = kv_status_from_errno(errno_value);
    if (error != NULL) {
        va_list arguments;
        error->status = status;
        va_start(arguments, format);
        int used = vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
        if (used >= 0 && (size_t)used < sizeof error->text) {
            snprintf(error->text + used, sizeof error->text - (size_t)used, ": %s",
                strerror(errno_value));
        }
    }
    return status;
}

kv_status_t kv_status_from_errno(int errno_value)
{
    switch (errno_value) {
    case 0:
        return KV_OK;
    case ENOENT:
        return KV_MISSING;
    case EAGAIN:
    case EBUSY:
    case EINTR:
        return KV_BUSY;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return KV_NO_SPACE;
    case EPERM:
    case EACCES:
        return KV_REFUSED;
    case EINVAL:
    case ENAMETOOLONG:
    case ENOTDIR:
    case EISDIR:
        return KV_INVALID;
    case ECONNRESET:
    case ECONNREFUSED:
    case EPIPE:
    case ETIMEDOUT:
    case EHOSTUNREACH:
        return KV_PEER_LOST;
    case ECANCELED:
        return KV_CANCELLED;
    default:
        return KV_IO;
    }
}
