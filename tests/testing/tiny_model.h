/* A small llama model with random weights and a byte-level tokenizer, as a GGUF file: for tests
 * that need some model, fast. Its vocabulary is tests/engine/byte_model.h's: three special tokens
 * (0 ends), then all bytes. */
#ifndef KV_TESTING_TINY_MODEL_H
#define KV_TESTING_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* Zero is the default named behind each field; the strings let a file lie. */
typedef struct {
    uint32_t layer_count;      /* 2 */
    uint32_t embedding;        /* 128 */
    uint32_t head_count;       /* 4 */
    uint32_t kv_head_count;    /* 2 */
    uint32_t feed_forward;     /* 192 */
    uint32_t context;          /* 512 */
    uint32_t end_token;        /* 0 */
    uint32_t window;           /* llama.attention.sliding_window: left out */
    uint32_t window_pattern;   /* llama.attention.sliding_window_pattern: left out */
    uint32_t vocabulary_field; /* llama.vocab_size: left out */
    uint64_t seed;
    bool untied; /* has an output matrix of its own */
    const char *architecture, *chat_template;
    const char *without_key;      /* leaves this field out */
    const char *without_tensor;   /* leaves this tensor out */
    const char *misshapen_tensor; /* this one has a row more than it should */
    const char *mistyped_tensor;  /* this one claims to be f16 (its bytes would not suffice) */
    const char *extra_tensor;     /* this one is there too: one row of 32 */
} kv_tiny_model_t;

enum { KV_TINY_MODEL_VOCABULARY = 259 };

/* Writes the model under this name to the test's folder; returns its path, which the next call
 * overwrites. */
const char *kv_tiny_model_write(const kv_tiny_model_t *model, const char *name);

#endif
