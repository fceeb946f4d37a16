/* Broken invariants stop the process: an answer from a state that cannot be is worse than none.
 *
 * KV_CHECK stays in release builds and guards ownership and state transitions; KV_DCHECK is for
 * inner loops and exists in debug builds only. Neither is ever used on what a peer, a disk or a
 * user sent: that is validated and answered. */
#ifndef KV_BASE_CHECK_H
#define KV_BASE_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Prints the expression and its place, flushes the log and aborts. */
__attribute__((noreturn)) void kv_check_failed(const char *expression, const char *file, int line);

#ifdef __cplusplus
}
#endif

#define KV_CHECK(expression)                                                                       \
    ((expression) ? (void)0 : kv_check_failed(#expression, __FILE__, __LINE__))

#ifdef NDEBUG
#define KV_DCHECK(expression) ((void)sizeof(expression))
#else
#define KV_DCHECK(expression) KV_CHECK(expression)
#endif

#endif
