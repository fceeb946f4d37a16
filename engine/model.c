#include "engine/model.h"

#include "base/memory.h"
#include "engine/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)KV_TENSOR_F32 == (int)KV_WEIGHT_F32 && (int)KV_TENSOR_F16 == (int)KV_WEIGHT_F16,
    "one numbering");
_Static_assert((int)KV_TENSOR_Q4_0 == (int)KV_WEIGHT_Q4_0 &&
                   (int)KV_TENSOR_Q4_1 == (int)KV_WEIGHT_Q4_1 &&
                   (int)KV_TENSOR_Q8_0 == (int)KV_WEIGHT_Q8_0,
    "one numbering");
_Static_assert((int)KV_TENSOR_Q4_K == (int)KV_WEIGHT_Q4_K &&
                   (int)KV_TENSOR_Q6_K == (int)KV_WEIGHT_Q6_K &&
                   (int)KV_TENSOR_BF16 == (int)KV_WEIGHT_BF16,
    "one numbering");

enum {
    LAYERS_MAX = 1024,
    EMBEDDING_MAX = 65536,
    FEED_FORWARD_MAX = 1 << 19,
    HEADS_MAX = 1024,
    HEAD_DIM_MAX = 256,
    GROUP_MAX = 64,
    VOCABULARY_MAX = 1 << 21,
    CONTEXT_MAX = 1 << 20,
    COLUMNS_STEP = 32, /* every width is a multiple: the kernels' vectors have no tails */
};

/* An open of a model: the file, where the first error goes. */
typedef struct {
    kv_gguf_t *gguf;
    kv_model_t *model;
    bool f32, fp8;
    kv_error_t *error;
} loader_t;

/* An integer of the file from low to high. */
static kv_status_t read_u32(
    const loader_t *loader, const char *key, uint32_t low, uint32_t high, uint32_t *value_out)
{
    uint32_t value;
    kv_status_t status = kv_gguf_u32(loader->gguf, key, &value, loader->error);
    if (status == KV_MISSING) {
        return kv_fail(loader->error, KV_INVALID, "the model has no field %s", key);
    }
    if (status != KV_OK) {
        return status;
    }
    if (value < low || value > high) {
        return kv_fail(loader->error, KV_INVALID, "the model's %s is %u; %u to %u are supported",
            key, value, low, high);
    }
    *value_out = value;
    return KV_OK;
}

static kv_status_t read_optional_u32(const loader_t *loader, const char *key, uint32_t low,
    uint32_t high, uint32_t absent, uint32_t *value_out)
{
    uint32_t value;
    if (kv_gguf_u32(loader->gguf, key, &value, NULL) == KV_MISSING) {
        *value_out = absent;
        return KV_OK;
    }
    return read_u32(loader, key, low, high, value_out);
}

static kv_status_t read_f32(
    const loader_t *loader, const char *key, float low, float high, float *value_out)
{
    float value;
    kv_status_t status = kv_gguf_f32(loader->gguf, key, &value, loader->error);
    if (status == KV_MISSING) {
        return kv_fail(loader->error, KV_INVALID, "the model has no field %s", key);
    }
    if (status != KV_OK) {
        return status;
    }
    if (!(value >= low && value <= high)) {
        return kv_fail(loader->error, KV_INVALID, "the model's %s is %g; %g to %g are supported",
            key, (double)value, (double)low, (double)high);
    }
    *value_out = value;
    return KV_OK;
}

static kv_status_t read_text(
    const loader_t *loader, const char *key, char *text_out, size_t text_bytes)
{
    kv_gguf_string_t value;
    kv_status_t status = kv_gguf_string(loader->gguf, key, &value, loader->error);
    if (status != KV_OK) {
        return status == KV_MISSING
                   ? kv_fail(loader->error, KV_INVALID, "the model has no field %s", key)
                   : status;
    }
    snprintf(text_out, text_bytes, "%.*s",
        (int)(value.bytes < text_bytes ? value.bytes : text_bytes - 1), value.text);
    return KV_OK;
}

static kv_status_t read_heads(const loader_t *loader, kv_model_shape_t *shape)
{
    kv_status_t status =
        read_u32(loader, "llama.attention.head_count", 1, HEADS_MAX, &shape->head_count);
    if (status == KV_OK) {
        status = read_optional_u32(loader, "llama.attention.head_count_kv", 1, shape->head_count,
            shape->head_count, &shape->kv_head_count);
    }
    if (status != KV_OK) {
        return status;
    }
    if (shape->head_count % shape->kv_head_count != 0 ||
        shape->head_count / shape->kv_head_count > GROUP_MAX) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's llama.attention.head_count %u is no multiple (at most %u) of "
            "llama.attention.head_count_kv %u",
            shape->head_count, GROUP_MAX, shape->kv_head_count);
    }
    if (shape->embedding % shape->head_count != 0) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's llama.embedding_length %u does not divide by "
            "llama.attention.head_count %u",
            shape->embedding, shape->head_count);
    }
    shape->head_dim = shape->embedding / shape->head_count;
    if (shape->head_dim % COLUMNS_STEP != 0 || shape->head_dim > HEAD_DIM_MAX) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's heads have %u dimensions; multiples of %u up to %u are supported",
            shape->head_dim, COLUMNS_STEP, HEAD_DIM_MAX);
    }
    return KV_OK;
}

/* A window that no context outgrows is none. */
static kv_status_t read_window(const loader_t *loader, kv_model_shape_t *shape)
{
    kv_status_t status = read_optional_u32(
        loader, "llama.attention.sliding_window", 0, UINT32_MAX, 0, &shape->window_tokens);
    if (status == KV_OK && shape->window_tokens >= shape->context_tokens_max) {
        shape->window_tokens = 0;
    }
    const char *const pattern = "llama.attention.sliding_window_pattern";
    if (status == KV_OK && kv_gguf_u32(loader->gguf, pattern, &(uint32_t){0}, NULL) != KV_MISSING) {
        return kv_fail(loader->error, KV_INVALID,
            "the model has a field %s; windows of some layers only are not supported", pattern);
    }
    return status;
}

/* What would change the arithmetic and is not implemented is refused, not ignored. */
static kv_status_t refuse_unsupported(const loader_t *loader, const kv_model_shape_t *shape)
{
    const char *const same[] = {
        "llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"};
    for (size_t at = 0; at < sizeof same / sizeof *same; at++) {
        uint32_t value;
        kv_status_t status =
            read_optional_u32(loader, same[at], 1, UINT32_MAX, shape->head_dim, &value);
        if (status != KV_OK) {
            return status;
        }
        if (value != shape->head_dim) {
            return kv_fail(loader->error, KV_INVALID,
                "the model's %s is %u; only the head's %u is supported", same[at], value,
                shape->head_dim);
        }
    }
    uint32_t experts;
    kv_status_t status =
        read_optional_u32(loader, "llama.expert_count", 0, UINT32_MAX, 0, &experts);
    if (status != KV_OK) {
        return status;
    }
    if (experts != 0) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's llama.expert_count is %u; mixtures of experts are not supported", experts);
    }
    kv_gguf_string_t scaling;
    if (kv_gguf_string(loader->gguf, "llama.rope.scaling.type", &scaling, NULL) != KV_MISSING &&
        (kv_gguf_string(loader->gguf, "llama.rope.scaling.type", &scaling, loader->error) !=
                KV_OK ||
            scaling.bytes != 4 || memcmp(scaling.text, "none", 4) != 0)) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's llama.rope.scaling.type is not \"none\"; scaled positions are not "
            "supported");
    }
    const char *const absent[] = {"rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.attn_k.bias",
        "blk.0.attn_v.bias", "blk.0.attn_output.bias", "blk.0.ffn_gate.bias"};
    for (size_t at = 0; at < sizeof absent / sizeof *absent; at++) {
        const kv_gguf_tensor_t *tensor;
        if (kv_gguf_tensor(loader->gguf, absent[at], &tensor, NULL) != KV_MISSING) {
            return kv_fail(loader->error, KV_INVALID,
                "the model has a tensor %s, which this engine does not support", absent[at]);
        }
    }
    return KV_OK;
}

static kv_status_t read_shape(const loader_t *loader, kv_model_shape_t *shape)
{
    kv_status_t status =
        read_text(loader, "general.architecture", shape->architecture, sizeof shape->architecture);
    if (status == KV_OK && strcmp(shape->architecture, "llama") != 0) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's general.architecture is \"%s\"; only llama is supported",
            shape->architecture);
    }
    if (status == KV_OK &&
        kv_gguf_string(loader->gguf, "general.name", &(kv_gguf_string_t){0}, NULL) == KV_OK) {
        status = read_text(loader, "general.name", shape->name, sizeof shape->name);
    }
    if (status == KV_OK) {
        status = read_u32(loader, "llama.block_count", 1, LAYERS_MAX, &shape->layer_count);
    }
    if (status == KV_OK) {
        status =
            read_u32(loader, "llama.context_length", 1, CONTEXT_MAX, &shape->context_tokens_max);
    }
    if (status == KV_OK) {
        status = read_u32(loader, "llama.embedding_length", 1, EMBEDDING_MAX, &shape->embedding);
    }
    if (status == KV_OK) {
        status = read_u32(
            loader, "llama.feed_forward_length", 1, FEED_FORWARD_MAX, &shape->feed_forward);
    }
    if (status == KV_OK && shape->feed_forward % COLUMNS_STEP != 0) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's llama.feed_forward_length is %u; multiples of %u are supported",
            shape->feed_forward, COLUMNS_STEP);
    }
    if (status == KV_OK) {
        status = read_heads(loader, shape);
    }
    if (status == KV_OK) {
        status = read_window(loader, shape);
    }
    if (status == KV_OK) {
        status = read_f32(
            loader, "llama.attention.layer_norm_rms_epsilon", 1e-12f, 1.0f, &shape->norm_epsilon);
    }
    if (status == KV_OK) {
        shape->rotation_base = 10000.0f; /* the format's default */
        if (kv_gguf_f32(loader->gguf, "llama.rope.freq_base", &shape->rotation_base, NULL) !=
            KV_MISSING) {
            status = read_f32(loader, "llama.rope.freq_base", 1.0f, 1e12f, &shape->rotation_base);
        }
    }
    return status == KV_OK ? refuse_unsupported(loader, shape) : status;
}

/* The tensor of that name, which must be [rows][columns] (rows 1: a vector). */
static kv_status_t find_tensor(const loader_t *loader, const char *name, uint64_t rows,
    uint64_t columns, const kv_gguf_tensor_t **tensor_out)
{
    const kv_gguf_tensor_t *tensor;
    kv_status_t status = kv_gguf_tensor(loader->gguf, name, &tensor, loader->error);
    if (status == KV_MISSING) {
        return kv_fail(loader->error, KV_INVALID, "the model has no tensor %s", name);
    }
    if (status != KV_OK) {
        return status;
    }
    if (tensor->dimensions[0] != columns || tensor->dimensions[1] != rows ||
        tensor->dimensions[2] != 1 || tensor->dimensions[3] != 1) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's tensor %s is %llu x %llu; its fields ask for %llu x %llu", name,
            (unsigned long long)tensor->dimensions[0], (unsigned long long)tensor->dimensions[1],
            (unsigned long long)columns, (unsigned long long)rows);
    }
    const kv_weight_type_t type = (kv_weight_type_t)tensor->type;
    const uint32_t elements = kv_weight_block_elements(type);
    if (elements == 0 || columns % elements != 0) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's tensor %s of type %d has rows of %llu elements, no multiple of %u", name,
            (int)tensor->type, (unsigned long long)columns, elements);
    }
    if (tensor->bytes != rows * (columns / elements) * kv_weight_block_bytes(type)) {
        return kv_fail(
            loader->error, KV_INVALID, "the model's tensor %s has %zu bytes", name, tensor->bytes);
    }
    *tensor_out = tensor;
    return KV_OK;
}

typedef struct {
    const char *name;
    uint32_t rows;
} part_t;

/* One matrix of up to three tensors below each other; their names follow "blk.LAYER.". */
static kv_status_t load_matrix(const loader_t *loader, uint32_t layer, const part_t *parts,
    uint32_t part_count, uint32_t columns, kv_matrix_t **matrix_out)
{
    kv_matrix_params_t params = {.part_count = part_count,
        .columns = columns,
        .f32 = loader->f32,
        .fp8 = loader->fp8,
        .prefill = true,
        .decode = true};
    for (uint32_t part = 0; part < part_count; part++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight", layer, parts[part].name);
        const kv_gguf_tensor_t *tensor;
        kv_status_t status = find_tensor(loader, name, parts[part].rows, columns, &tensor);
        if (status != KV_OK) {
            return status;
        }
        params.parts[part] =
            (kv_matrix_part_t){(kv_weight_type_t)tensor->type, parts[part].rows, tensor->data};
    }
    kv_device_t *device = loader->model->device;
    return device->ops->matrix_create(device, &params, matrix_out, loader->error);
}

/* A norm's weights into the vectors' memory. Files hold them in f32. */
static kv_status_t load_norm(const loader_t *loader, const char *name, float *to)
{
    const uint32_t embedding = loader->model->shape.embedding;
    const kv_gguf_tensor_t *tensor;
    kv_status_t status = find_tensor(loader, name, 1, embedding, &tensor);
    if (status != KV_OK) {
        return status;
    }
    if (tensor->type != KV_TENSOR_F32) {
        return kv_fail(loader->error, KV_INVALID, "the model's tensor %s has type %d, not f32 (%d)",
            name, (int)tensor->type, (int)KV_TENSOR_F32);
    }
    return loader->model->device->ops->copy_in(
        loader->model->device, to, tensor->data, embedding * sizeof(float), loader->error);
}

static kv_status_t load_layer(const loader_t *loader, uint32_t at)
{
    kv_model_layer_t *layer = &loader->model->layers[at];
    const kv_model_shape_t *shape = &loader->model->shape;
    const uint32_t queries = shape->head_count * shape->head_dim,
                   keys = shape->kv_head_count * shape->head_dim;
    const part_t projection[] = {{"attn_q", queries}, {"attn_k", keys}, {"attn_v", keys}},
                 output[] = {{"attn_output", shape->embedding}},
                 gate_up[] = {{"ffn_gate", shape->feed_forward}, {"ffn_up", shape->feed_forward}},
                 down[] = {{"ffn_down", shape->embedding}};
    char name[64];
    snprintf(name, sizeof name, "blk.%u.attn_norm.weight", at);
    kv_status_t status = load_norm(loader, name, layer->attention_norm);
    if (status == KV_OK) {
        snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", at);
        status = load_norm(loader, name, layer->feed_forward_norm);
    }
    if (status == KV_OK) {
        status = load_matrix(loader, at, projection, 3, shape->embedding, &layer->projection);
    }
    if (status == KV_OK) {
        status = load_matrix(loader, at, output, 1, queries, &layer->output);
    }
    if (status == KV_OK) {
        status = load_matrix(loader, at, gate_up, 2, shape->embedding, &layer->gate_up);
    }
    if (status == KV_OK) {
        status = load_matrix(loader, at, down, 1, shape->feed_forward, &layer->down);
    }
    return status;
}

/* A matrix over the vocabulary: read by single rows only. */
static kv_status_t load_vocabulary(const loader_t *loader, const char *name, kv_matrix_t **out)
{
    kv_model_t *model = loader->model;
    const kv_gguf_tensor_t *tensor;
    kv_status_t status =
        find_tensor(loader, name, model->shape.vocabulary_count, model->shape.embedding, &tensor);
    if (status != KV_OK) {
        return status;
    }
    const kv_matrix_params_t params = {
        .parts = {{(kv_weight_type_t)tensor->type, model->shape.vocabulary_count, tensor->data}},
        .part_count = 1,
        .columns = model->shape.embedding,
        .f32 = loader->f32,
        .decode = true,
    };
    return model->device->ops->matrix_create(model->device, &params, out, loader->error);
}

/* The vocabulary's size is the embedding's; other fields must agree. */
static kv_status_t read_vocabulary(const loader_t *loader)
{
    kv_model_shape_t *shape = &loader->model->shape;
    const kv_gguf_tensor_t *tensor;
    kv_status_t status = kv_gguf_tensor(loader->gguf, "token_embd.weight", &tensor, loader->error);
    if (status != KV_OK) {
        return status == KV_MISSING
                   ? kv_fail(loader->error, KV_INVALID, "the model has no tensor token_embd.weight")
                   : status;
    }
    if (tensor->dimensions[1] < 1 || tensor->dimensions[1] > VOCABULARY_MAX) {
        return kv_fail(loader->error, KV_INVALID,
            "the model's vocabulary (rows of token_embd.weight) has %llu tokens; 1 to %d are "
            "supported",
            (unsigned long long)tensor->dimensions[1], VOCABULARY_MAX);
    }
    shape->vocabulary_count = (uint32_t)tensor->dimensions[1];
    uint32_t stated;
    status = read_optional_u32(loader, "llama.vocab_size", shape->vocabulary_count,
        shape->vocabulary_count, shape->vocabulary_count, &stated);
    if (status == KV_OK) {
        status = read_u32(loader, "tokenizer.ggml.eos_token_id", 0, shape->vocabulary_count - 1,
            &shape->end_token);
    }
    return status;
}

static kv_status_t load_vocabularies(const loader_t *loader)
{
    kv_model_t *model = loader->model;
    kv_status_t status = load_vocabulary(loader, "token_embd.weight", &model->embedding);
    if (status != KV_OK) {
        return status;
    }
    const kv_gguf_tensor_t *tensor;
    if (kv_gguf_tensor(loader->gguf, "output.weight", &tensor, NULL) == KV_MISSING) {
        model->logits = model->embedding;
        return KV_OK;
    }
    return load_vocabulary(loader, "output.weight", &model->logits);
}

/* cos and sin of position x base^(-2 i / head_dim), in double before they are rounded. */
static kv_status_t load_rotation(const loader_t *loader)
{
    enum { LINES = 256 }; /* positions of one copy */
    kv_model_t *model = loader->model;
    const uint32_t head_dim = model->shape.head_dim, count = model->shape.context_tokens_max;
    float *lines = kv_allocate_array((size_t)LINES * head_dim, sizeof(float));
    kv_status_t status = KV_OK;
    for (uint32_t first = 0; first < count && status == KV_OK; first += LINES) {
        const uint32_t end = count - first < LINES ? count : first + LINES;
        for (uint32_t position = first; position < end; position++) {
            float *line = lines + (size_t)(position - first) * head_dim;
            for (uint32_t i = 0; i < head_dim; i += 2) {
                double angle =
                    position * pow(model->shape.rotation_base, -(double)i / (double)head_dim);
                line[i] = (float)cos(angle);
                line[i + 1] = (float)sin(angle);
            }
        }
        status =
            model->device->ops->copy_in(model->device, model->rotation + (size_t)first * head_dim,
                lines, (size_t)(end - first) * head_dim * sizeof(float), loader->error);
    }
    free(lines);
    return status;
}

/* One allocation holds all norms and the rotation table. */
static kv_status_t allocate_vectors(const loader_t *loader)
{
    kv_model_t *model = loader->model;
    const kv_model_shape_t *shape = &model->shape;
    const size_t norms = (size_t)(2 * shape->layer_count + 1) * shape->embedding,
                 rotation = (size_t)shape->context_tokens_max * shape->head_dim;
    model->vectors_bytes = (norms + rotation) * sizeof(float);
    void *memory;
    kv_status_t status =
        model->device->ops->allocate(model->device, model->vectors_bytes, &memory, loader->error);
    if (status != KV_OK) {
        return status;
    }
    model->vectors = memory;
    model->layers = kv_allocate_array(shape->layer_count, sizeof *model->layers);
    for (uint32_t at = 0; at < shape->layer_count; at++) {
        model->layers[at].attention_norm = model->vectors + (size_t)2 * at * shape->embedding;
        model->layers[at].feed_forward_norm = model->layers[at].attention_norm + shape->embedding;
    }
    model->norm = model->vectors + (size_t)2 * shape->layer_count * shape->embedding;
    model->rotation = model->vectors + norms;
    return KV_OK;
}

static kv_status_t load(const loader_t *loader)
{
    kv_model_t *model = loader->model;
    kv_status_t status = read_shape(loader, &model->shape);
    if (status == KV_OK) {
        status = read_vocabulary(loader);
    }
    if (status == KV_OK) {
        status = allocate_vectors(loader);
    }
    if (status == KV_OK) {
        status = load_rotation(loader);
    }
    if (status == KV_OK) {
        status = load_norm(loader, "output_norm.weight", model->norm);
    }
    if (status == KV_OK) {
        status = load_vocabularies(loader);
    }
    for (uint32_t at = 0; at < model->shape.layer_count && status == KV_OK; at++) {
        status = load_layer(loader, at);
    }
    return status;
}

kv_status_t kv_model_open(kv_device_t *device, const char *path, bool f32, bool fp8,
    kv_model_t **model_out, kv_error_t *error)
{
    loader_t loader = {.f32 = f32, .fp8 = fp8, .error = error};
    kv_status_t status = kv_gguf_open(path, &loader.gguf, error);
    if (status != KV_OK) {
        return status;
    }
    loader.model = kv_allocate(sizeof *loader.model);
    loader.model->device = device;
    status = load(&loader);
    kv_gguf_close(loader.gguf);
    if (status != KV_OK) {
        kv_model_close(loader.model);
        return status;
    }
    *model_out = loader.model;
    return KV_OK;
}

void kv_model_close(kv_model_t *model)
{
    if (model == NULL) {
        return;
    }
    kv_device_t *device = model->device;
    for (uint32_t at = 0; model->layers != NULL && at < model->shape.layer_count; at++) {
        kv_model_layer_t *layer = &model->layers[at];
        device->ops->matrix_destroy(device, layer->projection);
        device->ops->matrix_destroy(device, layer->output);
        device->ops->matrix_destroy(device, layer->gate_up);
        device->ops->matrix_destroy(device, layer->down);
    }
    if (model->logits != model->embedding) {
        device->ops->matrix_destroy(device, model->logits);
    }
    device->ops->matrix_destroy(device, model->embedding);
    device->ops->release(device, model->vectors, model->vectors_bytes);
    free(model->layers);
    free(model);
}

size_t kv_model_bytes(const kv_model_t *model)
{
    const kv_device_ops_t *ops = model->device->ops;
    size_t bytes = model->vectors_bytes + ops->matrix_bytes(model->embedding);
    if (model->logits != model->embedding) {
        bytes += ops->matrix_bytes(model->logits);
    }
    for (uint32_t at = 0; at < model->shape.layer_count; at++) {
        const kv_model_layer_t *layer = &model->layers[at];
        bytes += ops->matrix_bytes(layer->projection) + ops->matrix_bytes(layer->output) +
                 ops->matrix_bytes(layer->gate_up) + ops->matrix_bytes(layer->down);
    }
    return bytes;
}
