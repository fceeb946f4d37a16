/* A GGUF file, mapped read-only: metadata by key, tensors by name.
 *
 * Owns: the mapping. Strings and arrays that it hands out point into it and are not terminated.
 * Threads: immutable after open.
 * Errors: everything in the file is checked before use: magic and version (2, 3), counts, lengths,
 * types, alignment, a tensor's dimensions and extent; a file that lies is KV_INVALID with the
 * field, its value and the bound.
 * Limits: little-endian; at most 65,536 metadata keys, 65,536 tensors, 4 dimensions. */
#ifndef KV_ENGINE_GGUF_H
#define KV_ENGINE_GGUF_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_gguf kv_gguf_t;

/* The tensor types that the engine reads; numbers are the file format's. */
typedef enum {
    KV_TENSOR_F32 = 0,
    KV_TENSOR_F16 = 1,
    KV_TENSOR_Q4_0 = 2,
    KV_TENSOR_Q4_1 = 3,
    KV_TENSOR_Q8_0 = 8,
    KV_TENSOR_Q4_K = 12,
    KV_TENSOR_Q6_K = 14,
    KV_TENSOR_BF16 = 30,
} kv_tensor_type_t;

typedef struct {
    const char *name; /* terminated, owned by the kv_gguf_t */
    kv_tensor_type_t type;
    uint32_t dimension_count;
    uint64_t dimensions[4]; /* dimensions[0] is contiguous: a matrix' columns; absent ones are 1 */
    const void *data;       /* in the mapping */
    size_t bytes;
} kv_gguf_tensor_t;

typedef struct {
    const char *text;
    size_t bytes;
} kv_gguf_string_t;

kv_status_t kv_gguf_open(const char *path, kv_gguf_t **gguf_out, kv_error_t *error);
void kv_gguf_close(kv_gguf_t *gguf);

/* KV_MISSING when the key is absent, KV_INVALID when it is of another type; both fill the error.
 * Integers of any width and sign are accepted where their value fits. */
kv_status_t kv_gguf_u32(
    const kv_gguf_t *gguf, const char *key, uint32_t *value_out, kv_error_t *error);
kv_status_t kv_gguf_f32(
    const kv_gguf_t *gguf, const char *key, float *value_out, kv_error_t *error);
kv_status_t kv_gguf_bool(
    const kv_gguf_t *gguf, const char *key, bool *value_out, kv_error_t *error);
kv_status_t kv_gguf_string(
    const kv_gguf_t *gguf, const char *key, kv_gguf_string_t *value_out, kv_error_t *error);

/* Arrays. strings_out: allocated, free() by the caller; the texts point into the mapping. */
kv_status_t kv_gguf_strings(const kv_gguf_t *gguf, const char *key, kv_gguf_string_t **strings_out,
    size_t *count_out, kv_error_t *error);
/* An array of 32-bit integers, in the mapping (perhaps unaligned: read it with kv_get_u32). */
kv_status_t kv_gguf_integers(const kv_gguf_t *gguf, const char *key, const void **integers_out,
    size_t *count_out, kv_error_t *error);

/* KV_MISSING when there is no such tensor; a type that the engine does not read is KV_INVALID, here
 * and not at open. */
kv_status_t kv_gguf_tensor(const kv_gguf_t *gguf, const char *name,
    const kv_gguf_tensor_t **tensor_out, kv_error_t *error);

#endif
