/* A model's tokenizer without a model: three special tokens, all bytes, and what a test adds. */
#ifndef KV_TEST_BYTE_MODEL_H
#define KV_TEST_BYTE_MODEL_H

#include "gguf_writer.h"

#include <stdlib.h>

enum { BYTE_MODEL_SPECIALS = 3, BYTE_MODEL_PLAIN = BYTE_MODEL_SPECIALS + 256 };

/* What a test may change; zero is a sound file. */
typedef struct {
    const char *model, *pre, *chat_template; /* NULL: "gpt2", "smollm", none */
    const char *const *extra;                /* further plain tokens, as bytes, terminated */
    size_t extra_count;
    const char *const *merges;
    size_t merge_count;
    size_t types_short_by;
    uint32_t end_token;
    bool add_begin;
    const char *third_special; /* NULL: "<|im_end|>" */
} byte_model_t;

/* One character for each byte; out holds 2 x bytes + 1. */
static inline void byte_model_spell(const char *bytes, char *out)
{
    for (; *bytes != '\0'; bytes++) {
        unsigned byte = (unsigned char)*bytes, character = byte;
        if (byte <= 0x20) {
            character = 0x100 + byte;
        } else if (byte >= 0x7f && byte <= 0xa0) {
            character = 0x121 + byte - 0x7f;
        } else if (byte == 0xad) {
            character = 0x143;
        }
        if (character < 0x80) {
            *out++ = (char)character;
        } else {
            *out++ = (char)(0xc0 | character >> 6);
            *out++ = (char)(0x80 | (character & 0x3f));
        }
    }
    *out = '\0';
}

static inline void byte_model_tokens(gguf_writer_t *writer, const byte_model_t *model)
{
    char spelled[1024];
    size_t count = BYTE_MODEL_PLAIN + model->extra_count;
    gguf_key(writer, "tokenizer.ggml.tokens", GGUF_ARRAY);
    gguf_u32(writer, GGUF_STRING);
    gguf_u64(writer, count);
    gguf_text(writer, "<|endoftext|>");
    gguf_text(writer, "<|im_start|>");
    gguf_text(writer, model->third_special != NULL ? model->third_special : "<|im_end|>");
    gguf_text(writer, "\xc4\x80"); /* byte 0 */
    for (int byte = 1; byte < 256; byte++) {
        char text[2] = {(char)byte, '\0'};
        byte_model_spell(text, spelled);
        gguf_text(writer, spelled);
    }
    for (size_t i = 0; i < model->extra_count; i++) {
        byte_model_spell(model->extra[i], spelled);
        gguf_text(writer, spelled);
    }
    gguf_key(writer, "tokenizer.ggml.token_type", GGUF_ARRAY);
    gguf_u32(writer, GGUF_I32);
    gguf_u64(writer, count - model->types_short_by);
    for (size_t i = 0; i < count - model->types_short_by; i++) {
        gguf_u32(writer, i < BYTE_MODEL_SPECIALS ? 3 : 1);
    }
}

/* Writes the file; returns its path. */
static inline const char *byte_model_write(const byte_model_t *model)
{
    static gguf_writer_t writer;
    bool chat = model->chat_template != NULL;
    gguf_header(&writer, 0, chat ? 12 : 11);
    gguf_key_text(&writer, "general.architecture", "llama");
    gguf_key_text(&writer, "general.name", "bytes");
    gguf_key_u32(&writer, "llama.context_length", 128);
    gguf_key_text(&writer, "tokenizer.ggml.model", model->model != NULL ? model->model : "gpt2");
    gguf_key_text(&writer, "tokenizer.ggml.pre", model->pre != NULL ? model->pre : "smollm");
    byte_model_tokens(&writer, model);
    gguf_key_texts(&writer, "tokenizer.ggml.merges", model->merges, model->merge_count);
    gguf_key_u32(&writer, "tokenizer.ggml.eos_token_id", model->end_token);
    gguf_key_u32(&writer, "tokenizer.ggml.bos_token_id", 1);
    gguf_key(&writer, "tokenizer.ggml.add_bos_token", GGUF_BOOL);
    gguf_raw(&writer, model->add_begin ? "\1" : "\0", 1);
    if (chat) {
        gguf_key_text(&writer, "tokenizer.chat_template", model->chat_template);
    }
    return gguf_write(&writer, writer.count);
}

#endif
