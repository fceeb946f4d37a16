/* `kvist tokenize`: JSON lines of texts in, JSON lines of token ids out. */
#ifndef KV_ENGINE_TOKENIZE_H
#define KV_ENGINE_TOKENIZE_H

#include "base/status.h"

#include <stdio.h>

/* Reads {"id": any, "text": string, "add_special": bool, "parse_special": bool} per line (the two
 * modes may be left out: false; other fields are ignored) and writes {"id", "ids"} per line, until
 * the end of in. KV_INVALID names the line and the field; what came before it was written. */
kv_status_t kv_tokenize_run(FILE *in, FILE *out, const char *model_path, kv_error_t *error);

#endif
