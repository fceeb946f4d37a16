/* A llama model's weights on the device, read and validated from a GGUF file.
 *
 * Owns: the matrices and vectors.
 * Borrows: the device.
 * Threads: opened, used and closed by the compute thread.
 * Errors: KV_INVALID names the file's field or tensor and what was expected. */
#ifndef KV_ENGINE_MODEL_H
#define KV_ENGINE_MODEL_H

#include "kernels/device.h"

typedef struct {
    uint32_t layer_count, embedding, head_count, kv_head_count, head_dim, feed_forward;
    uint32_t vocabulary_count, context_tokens_max, end_token;
    uint32_t window_tokens; /* a token sees so many, itself among them; 0: all before it */
    float norm_epsilon, rotation_base;
    char architecture[32], name[128];
} kv_model_shape_t;

typedef struct {
    float *attention_norm, *feed_forward_norm; /* [embedding], on the device */
    kv_matrix_t *projection;                   /* queries, keys, values below each other */
    kv_matrix_t *output, *gate_up, *down;
} kv_model_layer_t;

typedef struct {
    kv_device_t *device;
    kv_model_shape_t shape;
    kv_model_layer_t *layers;
    kv_matrix_t *embedding;
    kv_matrix_t *logits; /* the embedding itself where the file ties them */
    float *norm;
    float *rotation; /* [context_tokens_max][head_dim / 2][cos, sin] */
    float *vectors;  /* what the norms and the rotation lie in */
    size_t vectors_bytes;
} kv_model_t;

/* f32, fp8: of the layers' products; those over the vocabulary are never in fp8. */
kv_status_t kv_model_open(kv_device_t *device, const char *path, bool f32, bool fp8,
    kv_model_t **model_out, kv_error_t *error);
void kv_model_close(kv_model_t *model);

/* Device memory of all weights, in every form that is held. */
size_t kv_model_bytes(const kv_model_t *model);

#endif
