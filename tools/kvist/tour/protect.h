/* What separate prefill protects: the pace of a running decode while a long prompt comes in.
 *
 * Threads: one; it starts one more for the running decode and joins it. */
#ifndef KV_TOOLS_TOUR_PROTECT_H
#define KV_TOOLS_TOUR_PROTECT_H

#include "tools/kvist/tour/report.h"

/* Measures at an endpoint; fills the figures of *layout and leaves its names. session: a new one.
 * KV_FATAL when the running decode ended before the prefill did. */
kv_status_t kv_tour_protect(const char *endpoint, const char *model, const char *session,
    kv_tour_layout_t *layout, kv_error_t *error);

#endif
