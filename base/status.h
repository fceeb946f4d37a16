/* Status codes and errors: what every function of Kvist answers with.
 *
 * One enumeration serves the program, its libraries (only the files at a seam translate foreign
 * codes) and the wire; the numbers are part of the wire format and never change. A status says what
 * the caller should do, an error adds the sentence for a person. The first function that can name
 * the cause fills the error; callers pass it on.
 *
 * Threads: free of state. */
#ifndef KV_BASE_STATUS_H
#define KV_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    KV_OK = 0,
    KV_BUSY = 1,      /* a bound was reached; nothing changed: try again later */
    KV_MISSING = 2,   /* not held here: recompute, or ask elsewhere */
    KV_CORRUPT = 3,   /* held but damaged: drop it and recompute */
    KV_PEER_LOST = 4, /* the other process is gone or silent */
    KV_REFUSED = 5,   /* not permitted: wrong key, wrong version, wrong tenant */
    KV_INVALID = 6,   /* the caller's input is out of bounds; the error names the field */
    KV_CANCELLED = 7, /* given up on request */
    KV_IO = 8,        /* a device failed; what is stored may be whole: never taken for damage */
    KV_NO_SPACE = 9,  /* no memory, no disk space, no descriptor */
    KV_FATAL = 10,    /* this process cannot go on with the object */
} kv_status_t;

enum { KV_ERROR_TEXT_BYTES = 512 };

/* A failure in words: exact cause, the field and bound where there is one, the remedy where one is
 * known. */
typedef struct {
    kv_status_t status;
    char text[KV_ERROR_TEXT_BYTES];
} kv_error_t;

/* The status' name in lower case ("peer lost"); "unknown status" for a number outside the
 * enumeration. */
const char *kv_status_name(kv_status_t status);

/* Fills *error (which may be NULL) with the status and the formatted sentence; returns the status.
 */
kv_status_t kv_fail(kv_error_t *error, kv_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As kv_fail, with ": " and the text of errno's value appended; maps the value to a status. */
kv_status_t kv_fail_errno(kv_error_t *error, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The status that an errno value stands for: ENOENT is missing, EAGAIN busy, ENOSPC/ENOMEM/EMFILE
 * no space, ... */
kv_status_t kv_status_from_errno(int errno_value);

#ifdef __cplusplus
}
#endif

#endif
