#include "testing/tiny_model.h"

#include "engine/byte_model.h"

#include <math.h>

enum { TENSORS_MAX = 128, TYPE_F32 = 0, TYPE_F16 = 1, ALIGNMENT = 32 };

typedef struct {
    char name[64];
    uint64_t columns, rows, offset;
    uint32_t type;
} tensor_t;

typedef struct {
    kv_tiny_model_t model;
    tensor_t tensors[TENSORS_MAX];
    uint32_t tensor_count, key_count;
    uint64_t data_bytes;
    gguf_writer_t keys; /* written first: their number stands before them */
} builder_t;

static uint32_t or_default(uint32_t value, uint32_t absent)
{
    return value != 0 ? value : absent;
}

static bool is(const char *wanted, const char *name)
{
    return wanted != NULL && strcmp(wanted, name) == 0;
}

static void key_u32(builder_t *builder, const char *name, uint32_t value)
{
    if (!is(builder->model.without_key, name)) {
        gguf_key_u32(&builder->keys, name, value);
        builder->key_count++;
    }
}

static void key_f32(builder_t *builder, const char *name, float value)
{
    if (!is(builder->model.without_key, name)) {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        gguf_key(&builder->keys, name, GGUF_F32);
        gguf_u32(&builder->keys, bits);
        builder->key_count++;
    }
}

static void key_text(builder_t *builder, const char *name, const char *value)
{
    if (!is(builder->model.without_key, name)) {
        gguf_key_text(&builder->keys, name, value);
        builder->key_count++;
    }
}

static void write_keys(builder_t *builder)
{
    const kv_tiny_model_t *model = &builder->model;
    key_text(builder, "general.architecture",
        model->architecture != NULL ? model->architecture : "llama");
    key_text(builder, "general.name", "tiny");
    key_u32(builder, "llama.block_count", model->layer_count);
    key_u32(builder, "llama.context_length", model->context);
    key_u32(builder, "llama.embedding_length", model->embedding);
    key_u32(builder, "llama.feed_forward_length", model->feed_forward);
    key_u32(builder, "llama.attention.head_count", model->head_count);
    key_u32(builder, "llama.attention.head_count_kv", model->kv_head_count);
    if (model->window != 0) {
        key_u32(builder, "llama.attention.sliding_window", model->window);
    }
    if (model->window_pattern != 0) {
        key_u32(builder, "llama.attention.sliding_window_pattern", model->window_pattern);
    }
    key_f32(builder, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    key_f32(builder, "llama.rope.freq_base", 10000.0f);
    if (model->vocabulary_field != 0) {
        key_u32(builder, "llama.vocab_size", model->vocabulary_field);
    }
    key_text(builder, "tokenizer.ggml.model", "gpt2");
    key_text(builder, "tokenizer.ggml.pre", "smollm");
    const byte_model_t vocabulary = {0};
    byte_model_tokens(&builder->keys, &vocabulary);
    builder->key_count += 2;
    gguf_key_texts(&builder->keys, "tokenizer.ggml.merges", NULL, 0);
    builder->key_count++;
    key_u32(builder, "tokenizer.ggml.eos_token_id", model->end_token);
    key_u32(builder, "tokenizer.ggml.bos_token_id", 1);
    if (model->chat_template != NULL) {
        key_text(builder, "tokenizer.chat_template", model->chat_template);
    }
}

static void add_tensor(builder_t *builder, uint64_t columns, uint64_t rows, const char *name)
{
    if (is(builder->model.without_tensor, name)) {
        return;
    }
    assert_true(builder->tensor_count < TENSORS_MAX);
    tensor_t *tensor = &builder->tensors[builder->tensor_count++];
    *tensor = (tensor_t){
        .columns = columns,
        .rows = rows + is(builder->model.misshapen_tensor, name),
        .offset = builder->data_bytes,
        .type = is(builder->model.mistyped_tensor, name) ? TYPE_F16 : TYPE_F32,
    };
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    builder->data_bytes += kv_round_up(tensor->columns * tensor->rows * 4, ALIGNMENT);
}

static void add_layer(builder_t *builder, uint32_t layer)
{
    const kv_tiny_model_t *model = &builder->model;
    const uint64_t embedding = model->embedding, wide = model->feed_forward,
                   keys = embedding / model->head_count * model->kv_head_count;
    const struct {
        const char *name;
        uint64_t columns, rows;
    } all[] = {
        {"attn_norm", embedding, 1},
        {"attn_q", embedding, embedding},
        {"attn_k", embedding, keys},
        {"attn_v", embedding, keys},
        {"attn_output", embedding, embedding},
        {"ffn_norm", embedding, 1},
        {"ffn_gate", embedding, wide},
        {"ffn_up", embedding, wide},
        {"ffn_down", wide, embedding},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight", layer, all[i].name);
        add_tensor(builder, all[i].columns, all[i].rows, name);
    }
}

/* Norms are 1; a matrix' elements are uniform with a variance of 1 / columns. */
static void write_data(const builder_t *builder, FILE *file)
{
    uint64_t random = builder->model.seed;
    for (uint32_t at = 0; at < builder->tensor_count; at++) {
        const tensor_t *tensor = &builder->tensors[at];
        const bool vector = tensor->rows == 1;
        const float width = sqrtf(3.0f / (float)tensor->columns);
        const uint64_t count = kv_round_up(tensor->columns * tensor->rows * 4, ALIGNMENT) / 4;
        for (uint64_t i = 0; i < count; i++) {
            float uniform = (float)(kv_test_random(&random) >> 40) / 8388608.0f - 1.0f,
                  value = vector ? 1.0f : uniform * width;
            assert_int_equal(fwrite(&value, sizeof value, 1, file), 1);
        }
    }
}

const char *kv_tiny_model_write(const kv_tiny_model_t *model, const char *name)
{
    static builder_t builder;
    static gguf_writer_t head;
    static char path[512];
    builder = (builder_t){.model = *model};
    kv_tiny_model_t *own = &builder.model;
    own->layer_count = or_default(model->layer_count, 2);
    own->embedding = or_default(model->embedding, 128);
    own->head_count = or_default(model->head_count, 4);
    own->kv_head_count = or_default(model->kv_head_count, 2);
    own->feed_forward = or_default(model->feed_forward, 192);
    own->context = or_default(model->context, 512);
    write_keys(&builder);
    add_tensor(&builder, own->embedding, KV_TINY_MODEL_VOCABULARY, "token_embd.weight");
    add_tensor(&builder, own->embedding, 1, "output_norm.weight");
    if (own->untied) {
        add_tensor(&builder, own->embedding, KV_TINY_MODEL_VOCABULARY, "output.weight");
    }
    if (own->extra_tensor != NULL) {
        add_tensor(&builder, 32, 1, own->extra_tensor);
    }
    for (uint32_t layer = 0; layer < own->layer_count; layer++) {
        add_layer(&builder, layer);
    }
    gguf_header(&head, builder.tensor_count, builder.key_count);
    gguf_raw(&head, builder.keys.bytes, builder.keys.count);
    for (uint32_t at = 0; at < builder.tensor_count; at++) {
        const tensor_t *tensor = &builder.tensors[at];
        gguf_tensor(
            &head, tensor->name, tensor->columns, tensor->rows, tensor->type, tensor->offset);
    }
    gguf_pad(&head, ALIGNMENT);
    snprintf(path, sizeof path, "%s/%s", kv_test_folder(), name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(head.bytes, 1, head.count, file), head.count);
    write_data(&builder, file);
    assert_int_equal(fclose(file), 0);
    return path;
}
