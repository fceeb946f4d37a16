/* `kvist score`: the engine's logits for given texts, as JSON lines, to be compared with a
 * reference. */
#ifndef KV_ENGINE_SCORE_H
#define KV_ENGINE_SCORE_H

#include "base/status.h"
#include "kernels/device.h"

#include <stdbool.h>
#include <stdio.h>

/* Reads {"id": any, "prompt_ids": [token, ...], "forced_ids": [token, ...]} per line (other fields
 * are ignored) and writes {"id", "steps": [{"top5": [[token, logit], ...], "lse": x}, ...]}: step i
 * tells of the logits after the prompt and the first i forced ids. The prompt goes through prefill,
 * the forced ids through decode, as a request does. lse is the natural logarithm of the sum of
 * e^logit. KV_INVALID names the line and the field; what came before it was written. */
kv_status_t kv_score_run(FILE *in, FILE *out, const char *model_path, bool f32, kv_error_t *error);

/* The same with a device of the caller's, or one by its name (kernels/plugin.h): the CPU has as
 * many threads as the process may use, at most 16. */
kv_status_t kv_score_run_on(kv_device_t *device, FILE *in, FILE *out, const char *model_path,
    bool f32, bool fp8, kv_error_t *error);
kv_status_t kv_score_run_named(const char *device, FILE *in, FILE *out, const char *model_path,
    bool f32, bool fp8, kv_error_t *error);

#endif
