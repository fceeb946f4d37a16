/* Reading a GGUF file.
 *
 *   magic "GGUF" | version u32 | tensor count u64 | key count u64
 *   keys:    name string | type u32 | value
 *   tensors: name string | dimension count u32 | dimensions u64[] | type u32 | offset u64
 *   padding to the alignment | tensor data; offsets count from here
 *
 * A string is a u64 length and its bytes; an array a u32 element type, a u64 count and its
 * elements.
 *
 * 1. Every read goes through the cursor, which knows how many bytes are left; no length of the file
 *    is added to a pointer or multiplied before it was compared with what is left.
 * 2. What open has walked once is trusted afterwards: a value's bytes all lie in the mapping. (A
 *    file that is cut while it is mapped kills the reader; models are replaced by rename.)
 * 3. Keys and tensors are sorted by name after the walk; a name that comes twice is refused. */
#include "engine/gguf.h"

#include "base/bytes.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    KEYS_MAX = 65536,
    TENSORS_MAX = 65536,
    NAME_BYTES_MAX = 255,
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 1 << 20,
};

typedef enum {
    VALUE_U8 = 0,
    VALUE_I8 = 1,
    VALUE_U16 = 2,
    VALUE_I16 = 3,
    VALUE_U32 = 4,
    VALUE_I32 = 5,
    VALUE_F32 = 6,
    VALUE_BOOL = 7,
    VALUE_STRING = 8,
    VALUE_ARRAY = 9,
    VALUE_U64 = 10,
    VALUE_I64 = 11,
    VALUE_F64 = 12,
    VALUE_TYPE_COUNT = 13,
} value_type_t;

static const struct {
    const char *name;
    size_t bytes; /* of one element; 0 where it varies */
} VALUE_TYPES[VALUE_TYPE_COUNT] = {{"u8", 1}, {"i8", 1}, {"u16", 2}, {"i16", 2}, {"u32", 4},
    {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8},
    {"f64", 8}};

static const struct {
    kv_tensor_type_t type;
    uint32_t block_elements, block_bytes;
} TENSOR_TYPES[] = {
    {KV_TENSOR_F32, 1, 4},
    {KV_TENSOR_F16, 1, 2},
    {KV_TENSOR_BF16, 1, 2},
    {KV_TENSOR_Q4_0, 32, 18},
    {KV_TENSOR_Q4_1, 32, 20},
    {KV_TENSOR_Q8_0, 32, 34},
    {KV_TENSOR_Q4_K, 256, 144},
    {KV_TENSOR_Q6_K, 256, 210},
};

typedef struct {
    char *name;
    value_type_t type; /* of the value; of the elements where is_array */
    bool is_array;
    uint64_t count;       /* elements; 1 for a plain value */
    const uint8_t *value; /* the first element */
} entry_t;

typedef struct {
    kv_gguf_tensor_t public; /* the first member: sorted and found as such */
    bool readable;           /* type is one of the engine's; else data and bytes are unset */
} tensor_t;

struct kv_gguf {
    char *path;
    const uint8_t *base;
    size_t bytes;
    entry_t *entries;
    size_t entry_count;
    tensor_t *tensors;
    size_t tensor_count;
};

typedef struct {
    const uint8_t *at;
    size_t left;
    const kv_gguf_t *gguf;
    kv_error_t *error;
} cursor_t;

static kv_status_t cut(cursor_t *cursor, const char *owner, const char *field, uint64_t wanted)
{
    return kv_fail(cursor->error, KV_INVALID,
        "%s: %s of %s needs %llu bytes at offset %zu, the file has %zu left", cursor->gguf->path,
        field, owner, (unsigned long long)wanted, (size_t)(cursor->at - cursor->gguf->base),
        cursor->left);
}

static kv_status_t take(
    cursor_t *cursor, const char *owner, const char *field, uint64_t bytes, const uint8_t **at_out)
{
    if (bytes > cursor->left) {
        return cut(cursor, owner, field, bytes);
    }
    *at_out = cursor->at;
    cursor->at += bytes;
    cursor->left -= (size_t)bytes;
    return KV_OK;
}

static kv_status_t take_u32(
    cursor_t *cursor, const char *owner, const char *field, uint32_t *value_out)
{
    const uint8_t *at = NULL;
    kv_status_t status = take(cursor, owner, field, 4, &at);
    if (status == KV_OK) {
        *value_out = kv_get_u32(at);
    }
    return status;
}

static kv_status_t take_u64(
    cursor_t *cursor, const char *owner, const char *field, uint64_t *value_out)
{
    const uint8_t *at = NULL;
    kv_status_t status = take(cursor, owner, field, 8, &at);
    if (status == KV_OK) {
        *value_out = kv_get_u64(at);
    }
    return status;
}

static kv_status_t take_string(
    cursor_t *cursor, const char *owner, const char *field, kv_gguf_string_t *string_out)
{
    uint64_t bytes;
    const uint8_t *at = NULL;
    kv_status_t status = take_u64(cursor, owner, field, &bytes);
    if (status == KV_OK) {
        status = take(cursor, owner, field, bytes, &at);
    }
    if (status == KV_OK) {
        *string_out = (kv_gguf_string_t){(const char *)at, (size_t)bytes};
    }
    return status;
}

/* The name of a key or tensor: printable, so that it may stand in an error or a log as it is. */
static kv_status_t take_name(cursor_t *cursor, const char *kind, uint64_t index, char **name_out)
{
    char owner[64];
    kv_gguf_string_t name;
    snprintf(owner, sizeof owner, "%s %llu", kind, (unsigned long long)index);
    kv_status_t status = take_string(cursor, owner, "the name", &name);
    if (status != KV_OK) {
        return status;
    }
    if (name.bytes == 0 || name.bytes > NAME_BYTES_MAX) {
        return kv_fail(cursor->error, KV_INVALID, "%s: the name of %s has %zu bytes, not 1 to %d",
            cursor->gguf->path, owner, name.bytes, NAME_BYTES_MAX);
    }
    for (size_t i = 0; i < name.bytes; i++) {
        if (name.text[i] < 0x21 || name.text[i] > 0x7e) {
            return kv_fail(cursor->error, KV_INVALID,
                "%s: the name of %s has the byte 0x%02x, not printable ASCII", cursor->gguf->path,
                owner, (unsigned char)name.text[i]);
        }
    }
    *name_out = memcpy(kv_allocate(name.bytes + 1), name.text, name.bytes);
    return KV_OK;
}

static kv_status_t take_type(cursor_t *cursor, const char *owner, value_type_t *type_out)
{
    uint32_t type;
    kv_status_t status = take_u32(cursor, owner, "the type", &type);
    if (status != KV_OK) {
        return status;
    }
    if (type >= VALUE_TYPE_COUNT) {
        return kv_fail(cursor->error, KV_INVALID, "%s: the type of %s is %u, not below %d",
            cursor->gguf->path, owner, type, VALUE_TYPE_COUNT);
    }
    *type_out = (value_type_t)type;
    return KV_OK;
}

static kv_status_t take_elements(cursor_t *cursor, const entry_t *entry)
{
    kv_gguf_string_t string;
    const uint8_t *at = NULL;
    size_t each = VALUE_TYPES[entry->type].bytes;
    if (each > 0) {
        /* Divide, as count x each may overflow. */
        if (entry->count > cursor->left / each) {
            return kv_fail(cursor->error, KV_INVALID,
                "%s: %s has %llu elements of %zu bytes, the file has %zu bytes left",
                cursor->gguf->path, entry->name, (unsigned long long)entry->count, each,
                cursor->left);
        }
        return take(cursor, entry->name, "the value", entry->count * each, &at);
    }
    for (uint64_t i = 0; i < entry->count; i++) {
        kv_status_t status = take_string(cursor, entry->name, "a string", &string);
        if (status != KV_OK) {
            return status;
        }
    }
    return KV_OK;
}

static kv_status_t take_entry(cursor_t *cursor, uint64_t index, entry_t *entry)
{
    kv_status_t status = take_name(cursor, "key", index, &entry->name);
    if (status == KV_OK) {
        status = take_type(cursor, entry->name, &entry->type);
    }
    if (status != KV_OK) {
        return status;
    }
    entry->count = 1;
    if (entry->type == VALUE_ARRAY) {
        entry->is_array = true;
        status = take_type(cursor, entry->name, &entry->type);
        if (status == KV_OK) {
            status = take_u64(cursor, entry->name, "the count", &entry->count);
        }
        if (status == KV_OK && entry->type == VALUE_ARRAY) {
            status = kv_fail(cursor->error, KV_INVALID, "%s: %s is an array of arrays, not read",
                cursor->gguf->path, entry->name);
        }
        if (status != KV_OK) {
            return status;
        }
    }
    entry->value = cursor->at;
    status = take_elements(cursor, entry);
    if (status == KV_OK && entry->type == VALUE_BOOL && !entry->is_array && *entry->value > 1) {
        status = kv_fail(cursor->error, KV_INVALID, "%s: %s is %u, not 0 or 1 (bool)",
            cursor->gguf->path, entry->name, *entry->value);
    }
    return status;
}

/* Offsets are left in bytes until the start of the data is known. */
static kv_status_t take_tensor(
    cursor_t *cursor, uint64_t index, kv_gguf_tensor_t *tensor, uint64_t *offset_out)
{
    char *name = NULL;
    uint32_t type = 0;
    kv_status_t status = take_name(cursor, "tensor", index, &name);
    if (status != KV_OK) {
        return status;
    }
    tensor->name = name;
    status = take_u32(cursor, name, "the dimension count", &tensor->dimension_count);
    if (status == KV_OK && (tensor->dimension_count < 1 || tensor->dimension_count > 4)) {
        status = kv_fail(cursor->error, KV_INVALID, "%s: tensor %s has %u dimensions, not 1 to 4",
            cursor->gguf->path, name, tensor->dimension_count);
    }
    for (uint32_t i = 0; i < 4 && status == KV_OK; i++) {
        tensor->dimensions[i] = 1;
        if (i < tensor->dimension_count) {
            status = take_u64(cursor, name, "a dimension", &tensor->dimensions[i]);
        }
        if (status == KV_OK && tensor->dimensions[i] == 0) {
            status = kv_fail(cursor->error, KV_INVALID, "%s: dimension %u of tensor %s is 0",
                cursor->gguf->path, i, name);
        }
    }
    if (status == KV_OK) {
        status = take_u32(cursor, name, "the type", &type);
    }
    if (status == KV_OK) {
        status = take_u64(cursor, name, "the offset", offset_out);
    }
    tensor->type = (kv_tensor_type_t)type;
    return status;
}

/* The tensor's bytes by its dimensions, for the types that the engine reads. */
static kv_status_t measure_tensor(const kv_gguf_t *gguf, tensor_t *tensor, kv_error_t *error)
{
    kv_gguf_tensor_t *public = &tensor->public;
    for (size_t i = 0; i < sizeof TENSOR_TYPES / sizeof TENSOR_TYPES[0]; i++) {
        if (TENSOR_TYPES[i].type != public->type) {
            continue;
        }
        uint64_t bytes = public->dimensions[0] / TENSOR_TYPES[i].block_elements;
        if (public->dimensions[0] % TENSOR_TYPES[i].block_elements != 0) {
            return kv_fail(error, KV_INVALID,
                "%s: dimension 0 of tensor %s is %llu, no multiple of its type's %u", gguf->path,
                public->name, (unsigned long long)public->dimensions[0],
                TENSOR_TYPES[i].block_elements);
        }
        bool over = __builtin_mul_overflow(bytes, TENSOR_TYPES[i].block_bytes, &bytes);
        for (size_t k = 1; k < 4; k++) {
            over |= __builtin_mul_overflow(bytes, public->dimensions[k], &bytes);
        }
        if (over || bytes > gguf->bytes) {
            return kv_fail(error, KV_INVALID,
                "%s: tensor %s of %llu x %llu x %llu x %llu is larger than the file (%zu bytes)",
                gguf->path, public->name, (unsigned long long)public->dimensions[0],
                (unsigned long long)public->dimensions[1],
                (unsigned long long)public->dimensions[2],
                (unsigned long long)public->dimensions[3], gguf->bytes);
        }
        public->bytes = (size_t)bytes;
        tensor->readable = true;
    }
    return KV_OK;
}

static kv_status_t place_tensor(const kv_gguf_t *gguf, tensor_t *tensor, uint64_t data_start,
    uint64_t offset, uint32_t alignment, kv_error_t *error)
{
    kv_status_t status = measure_tensor(gguf, tensor, error);
    if (status != KV_OK) {
        return status;
    }
    if (offset % alignment != 0) {
        return kv_fail(error, KV_INVALID,
            "%s: the offset of tensor %s is %llu, no multiple of the alignment %u", gguf->path,
            tensor->public.name, (unsigned long long)offset, alignment);
    }
    uint64_t room = data_start <= gguf->bytes ? gguf->bytes - data_start : 0;
    if (offset > room || tensor->public.bytes > room - offset) {
        return kv_fail(error, KV_INVALID,
            "%s: tensor %s of %zu bytes at offset %llu ends beyond the data (%llu bytes)",
            gguf->path, tensor->public.name, tensor->public.bytes, (unsigned long long)offset,
            (unsigned long long)room);
    }
    tensor->public.data = gguf->base + data_start + offset;
    return KV_OK;
}

static int compare_entries(const void *left, const void *right)
{
    return strcmp(((const entry_t *)left)->name, ((const entry_t *)right)->name);
}

static int compare_tensors(const void *left, const void *right)
{
    return strcmp(((const tensor_t *)left)->public.name, ((const tensor_t *)right)->public.name);
}

static const entry_t *find_entry(const kv_gguf_t *gguf, const char *key)
{
    entry_t wanted = {.name = (char *)key};
    return bsearch(
        &wanted, gguf->entries, gguf->entry_count, sizeof *gguf->entries, compare_entries);
}

static kv_status_t read_entries(kv_gguf_t *gguf, cursor_t *cursor)
{
    for (size_t i = 0; i < gguf->entry_count; i++) {
        kv_status_t status = take_entry(cursor, i, &gguf->entries[i]);
        if (status != KV_OK) {
            return status;
        }
    }
    qsort(gguf->entries, gguf->entry_count, sizeof *gguf->entries, compare_entries);
    for (size_t i = 1; i < gguf->entry_count; i++) {
        if (strcmp(gguf->entries[i - 1].name, gguf->entries[i].name) == 0) {
            return kv_fail(cursor->error, KV_INVALID, "%s: the key %s is there twice", gguf->path,
                gguf->entries[i].name);
        }
    }
    return KV_OK;
}

static kv_status_t read_alignment(const kv_gguf_t *gguf, uint32_t *alignment_out, kv_error_t *error)
{
    uint32_t alignment = ALIGNMENT_DEFAULT;
    kv_status_t status = KV_OK;
    if (find_entry(gguf, "general.alignment") != NULL) {
        status = kv_gguf_u32(gguf, "general.alignment", &alignment, error);
    }
    if (status != KV_OK) {
        return status;
    }
    if (alignment == 0 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0) {
        return kv_fail(error, KV_INVALID,
            "%s: general.alignment is %u, not a power of two up to %d", gguf->path, alignment,
            ALIGNMENT_MAX);
    }
    *alignment_out = alignment;
    return KV_OK;
}

static kv_status_t read_tensors(kv_gguf_t *gguf, cursor_t *cursor)
{
    uint32_t alignment = ALIGNMENT_DEFAULT;
    uint64_t *offsets = kv_allocate_array(gguf->tensor_count, sizeof *offsets);
    kv_status_t status = read_alignment(gguf, &alignment, cursor->error);
    for (size_t i = 0; i < gguf->tensor_count && status == KV_OK; i++) {
        status = take_tensor(cursor, i, &gguf->tensors[i].public, &offsets[i]);
    }
    uint64_t data_start = kv_round_up((uint64_t)(cursor->at - gguf->base), alignment);
    for (size_t i = 0; i < gguf->tensor_count && status == KV_OK; i++) {
        status =
            place_tensor(gguf, &gguf->tensors[i], data_start, offsets[i], alignment, cursor->error);
    }
    free(offsets);
    if (status != KV_OK) {
        return status;
    }
    qsort(gguf->tensors, gguf->tensor_count, sizeof *gguf->tensors, compare_tensors);
    for (size_t i = 1; i < gguf->tensor_count; i++) {
        if (compare_tensors(&gguf->tensors[i - 1], &gguf->tensors[i]) == 0) {
            return kv_fail(cursor->error, KV_INVALID, "%s: the tensor %s is there twice",
                gguf->path, gguf->tensors[i].public.name);
        }
    }
    return KV_OK;
}

static kv_status_t read_file(kv_gguf_t *gguf, kv_error_t *error)
{
    cursor_t cursor = {gguf->base, gguf->bytes, gguf, error};
    const uint8_t *magic = NULL;
    uint32_t version = 0;
    uint64_t tensor_count = 0, key_count = 0;
    kv_status_t status = take(&cursor, "the header", "the magic", 4, &magic);
    if (status == KV_OK && memcmp(magic, "GGUF", 4) != 0) {
        status =
            kv_fail(error, KV_INVALID, "%s: the file does not begin with \"GGUF\"", gguf->path);
    }
    if (status == KV_OK) {
        status = take_u32(&cursor, "the header", "the version", &version);
    }
    if (status == KV_OK && version != 2 && version != 3) {
        status = kv_fail(error, KV_INVALID, "%s: GGUF version is %u, not 2 or 3 (little-endian)",
            gguf->path, version);
    }
    if (status == KV_OK) {
        status = take_u64(&cursor, "the header", "the tensor count", &tensor_count);
    }
    if (status == KV_OK) {
        status = take_u64(&cursor, "the header", "the key count", &key_count);
    }
    if (status != KV_OK) {
        return status;
    }
    if (tensor_count > TENSORS_MAX || key_count > KEYS_MAX) {
        return kv_fail(error, KV_INVALID,
            "%s: %llu tensors and %llu keys, at most %d and %d are read", gguf->path,
            (unsigned long long)tensor_count, (unsigned long long)key_count, TENSORS_MAX, KEYS_MAX);
    }
    gguf->entry_count = (size_t)key_count;
    gguf->entries = kv_allocate_array(gguf->entry_count, sizeof *gguf->entries);
    gguf->tensor_count = (size_t)tensor_count;
    gguf->tensors = kv_allocate_array(gguf->tensor_count, sizeof *gguf->tensors);
    status = read_entries(gguf, &cursor);
    return status == KV_OK ? read_tensors(gguf, &cursor) : status;
}

static kv_status_t map_file(kv_gguf_t *gguf, kv_error_t *error)
{
    struct stat state;
    int fd = open(gguf->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return kv_fail_errno(error, errno, "cannot open the model %s", gguf->path);
    }
    kv_status_t status = KV_OK;
    if (fstat(fd, &state) != 0) {
        status = kv_fail_errno(error, errno, "cannot stat the model %s", gguf->path);
    } else if (!S_ISREG(state.st_mode)) {
        status = kv_fail(error, KV_INVALID, "the model %s is no regular file", gguf->path);
    } else if (state.st_size < 4) {
        status = kv_fail(error, KV_INVALID, "%s: %lld bytes are too short for the magic of a GGUF",
            gguf->path, (long long)state.st_size);
    } else {
        void *base = mmap(NULL, (size_t)state.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (base == MAP_FAILED) {
            status = kv_fail_errno(error, errno, "cannot map the model %s", gguf->path);
        } else {
            gguf->base = base;
            gguf->bytes = (size_t)state.st_size;
        }
    }
    close(fd);
    return status;
}

kv_status_t kv_gguf_open(const char *path, kv_gguf_t **gguf_out, kv_error_t *error)
{
    kv_gguf_t *gguf = kv_allocate(sizeof *gguf);
    gguf->path = kv_duplicate_string(path);
    kv_status_t status = map_file(gguf, error);
    if (status == KV_OK) {
        status = read_file(gguf, error);
    }
    if (status != KV_OK) {
        kv_gguf_close(gguf);
        return status;
    }
    *gguf_out = gguf;
    return KV_OK;
}

void kv_gguf_close(kv_gguf_t *gguf)
{
    if (gguf == NULL) {
        return;
    }
    for (size_t i = 0; i < gguf->entry_count; i++) {
        free(gguf->entries[i].name);
    }
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        free((char *)gguf->tensors[i].public.name);
    }
    free(gguf->entries);
    free(gguf->tensors);
    if (gguf->base != NULL) {
        munmap((void *)gguf->base, gguf->bytes);
    }
    free(gguf->path);
    free(gguf);
}

static kv_status_t find(const kv_gguf_t *gguf, const char *key, bool is_array,
    const entry_t **entry_out, kv_error_t *error)
{
    const entry_t *entry = find_entry(gguf, key);
    if (entry == NULL) {
        return kv_fail(error, KV_MISSING, "%s: the key %s is missing", gguf->path, key);
    }
    if (entry->is_array != is_array) {
        return kv_fail(error, KV_INVALID, "%s: %s is %s, not %s", gguf->path, key,
            is_array ? VALUE_TYPES[entry->type].name : "an array",
            is_array ? "an array" : "a plain value");
    }
    *entry_out = entry;
    return KV_OK;
}

static kv_status_t wrong_type(
    const kv_gguf_t *gguf, const entry_t *entry, const char *wanted, kv_error_t *error)
{
    return kv_fail(error, KV_INVALID, "%s: %s is of type %s, not %s", gguf->path, entry->name,
        VALUE_TYPES[entry->type].name, wanted);
}

kv_status_t kv_gguf_u32(
    const kv_gguf_t *gguf, const char *key, uint32_t *value_out, kv_error_t *error)
{
    const entry_t *entry = NULL;
    kv_status_t status = find(gguf, key, false, &entry, error);
    if (status != KV_OK) {
        return status;
    }
    const uint8_t *at = entry->value;
    int64_t value = -1;
    switch (entry->type) {
    case VALUE_U8:
        value = at[0];
        break;
    case VALUE_I8:
        value = (int8_t)at[0];
        break;
    case VALUE_U16:
        value = kv_get_u16(at);
        break;
    case VALUE_I16:
        value = (int16_t)kv_get_u16(at);
        break;
    case VALUE_U32:
        value = kv_get_u32(at);
        break;
    case VALUE_I32:
        value = (int32_t)kv_get_u32(at);
        break;
    case VALUE_U64:
    case VALUE_I64:
        value = (int64_t)kv_get_u64(at); /* above 2^63: negative, refused below */
        break;
    default:
        return wrong_type(gguf, entry, "an integer", error);
    }
    if (value < 0 || value > UINT32_MAX) {
        return kv_fail(error, KV_INVALID, "%s: %s is %lld, not 0 to %u", gguf->path, key,
            (long long)value, UINT32_MAX);
    }
    *value_out = (uint32_t)value;
    return KV_OK;
}

kv_status_t kv_gguf_f32(const kv_gguf_t *gguf, const char *key, float *value_out, kv_error_t *error)
{
    const entry_t *entry = NULL;
    kv_status_t status = find(gguf, key, false, &entry, error);
    if (status != KV_OK) {
        return status;
    }
    float value;
    if (entry->type == VALUE_F32) {
        uint32_t bits = kv_get_u32(entry->value);
        memcpy(&value, &bits, sizeof value);
    } else if (entry->type == VALUE_F64) {
        uint64_t bits = kv_get_u64(entry->value);
        double wide;
        memcpy(&wide, &bits, sizeof wide);
        value = fabs(wide) <= 0x1.fffffep127 ? (float)wide : INFINITY;
    } else {
        return wrong_type(gguf, entry, "f32 or f64", error);
    }
    if (!isfinite(value)) {
        return kv_fail(error, KV_INVALID, "%s: %s is no finite 32-bit number", gguf->path, key);
    }
    *value_out = value;
    return KV_OK;
}

kv_status_t kv_gguf_bool(const kv_gguf_t *gguf, const char *key, bool *value_out, kv_error_t *error)
{
    const entry_t *entry = NULL;
    kv_status_t status = find(gguf, key, false, &entry, error);
    if (status != KV_OK) {
        return status;
    }
    if (entry->type != VALUE_BOOL) {
        return wrong_type(gguf, entry, "bool", error);
    }
    *value_out = *entry->value != 0;
    return KV_OK;
}

kv_status_t kv_gguf_string(
    const kv_gguf_t *gguf, const char *key, kv_gguf_string_t *value_out, kv_error_t *error)
{
    const entry_t *entry = NULL;
    kv_status_t status = find(gguf, key, false, &entry, error);
    if (status != KV_OK) {
        return status;
    }
    if (entry->type != VALUE_STRING) {
        return wrong_type(gguf, entry, "string", error);
    }
    *value_out =
        (kv_gguf_string_t){(const char *)entry->value + 8, (size_t)kv_get_u64(entry->value)};
    return KV_OK;
}

kv_status_t kv_gguf_strings(const kv_gguf_t *gguf, const char *key, kv_gguf_string_t **strings_out,
    size_t *count_out, kv_error_t *error)
{
    const entry_t *entry = NULL;
    kv_status_t status = find(gguf, key, true, &entry, error);
    if (status != KV_OK) {
        return status;
    }
    if (entry->type != VALUE_STRING) {
        return wrong_type(gguf, entry, "string", error);
    }
    /* The count is bounded by the file: each string takes 8 bytes of it at least. */
    kv_gguf_string_t *strings = kv_allocate_array((size_t)entry->count, sizeof *strings);
    const uint8_t *at = entry->value;
    for (size_t i = 0; i < entry->count; i++) {
        strings[i] = (kv_gguf_string_t){(const char *)at + 8, (size_t)kv_get_u64(at)};
        at += 8 + strings[i].bytes;
    }
    *strings_out = strings;
    *count_out = (size_t)entry->count;
    return KV_OK;
}

kv_status_t kv_gguf_integers(const kv_gguf_t *gguf, const char *key, const void **integers_out,
    size_t *count_out, kv_error_t *error)
{
    const entry_t *entry = NULL;
    kv_status_t status = find(gguf, key, true, &entry, error);
    if (status != KV_OK) {
        return status;
    }
    if (entry->type != VALUE_U32 && entry->type != VALUE_I32) {
        return wrong_type(gguf, entry, "u32 or i32", error);
    }
    *integers_out = entry->value;
    *count_out = (size_t)entry->count;
    return KV_OK;
}

kv_status_t kv_gguf_tensor(
    const kv_gguf_t *gguf, const char *name, const kv_gguf_tensor_t **tensor_out, kv_error_t *error)
{
    tensor_t wanted = {.public = {.name = name}};
    const tensor_t *tensor =
        bsearch(&wanted, gguf->tensors, gguf->tensor_count, sizeof *gguf->tensors, compare_tensors);
    if (tensor == NULL) {
        return kv_fail(error, KV_MISSING, "%s: the tensor %s is missing", gguf->path, name);
    }
    if (!tensor->readable) {
        return kv_fail(error, KV_INVALID,
            "%s: the type of tensor %s is %d, none that the engine reads", gguf->path, name,
            (int)tensor->public.type);
    }
    *tensor_out = &tensor->public;
    return KV_OK;
}
