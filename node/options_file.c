/* The YAML files, through libcyaml: that of options, and those of records (node/records_file.h).
 * Every scalar is read as a string (its meaning and bounds are the table's), every list as a list
 * of strings. libcyaml 1.3 tells places only in its log, as a
 * backtrace of an error: "in mapping field 'port' (line: 3, column: 9)". The first line of the
 * backtrace is the innermost, and is exact where a value is wrong; for a key that it does not know
 * it names the value before. So a field's line is found by reading once more with a schema that
 * refuses that field's value. */
#include "node/options_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "node/records_file.h"

#include <cyaml/cyaml.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* FIELDS_MAX: of one section, with room for one that the table lacks. */
enum { FILE_BYTES_MAX = 1 << 20, FIELDS_MAX = 40, NAME_BYTES_MAX = 64 };

/* What libcyaml fills for one option: both forms begin with the pointer. */
typedef struct {
    union {
        char *text;
        char **items;
    };
    unsigned count;
} slot_t;

typedef struct {
    slot_t slots[FIELDS_MAX];
} section_t;

typedef struct {
    section_t *sections[KV_SECTION_COUNT];
    char *unknown;
} file_t;

/* A schema for the whole table, and room for one field that is not in it. */
typedef struct {
    cyaml_schema_field_t root_fields[KV_SECTION_COUNT + 2];
    cyaml_schema_field_t fields[KV_SECTION_COUNT][FIELDS_MAX + 1];
    cyaml_schema_value_t root;
    unsigned counts[KV_SECTION_COUNT];
} schema_t;

static const cyaml_schema_value_t ITEM = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, 4096)};
static const cyaml_schema_value_t REFUSED_ITEM = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, FILE_BYTES_MAX, CYAML_UNLIMITED)};

/* The log of one load: the first error, and the place of the innermost backtrace entry. */
typedef struct {
    char first[256];
    char field[NAME_BYTES_MAX];
    unsigned line;
    unsigned depth;
} log_t;

static void on_log(cyaml_log_t level, void *context, const char *format, va_list arguments)
{
    (void)level;
    log_t *log = context;
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\n")] = '\0';
    const char *line = strstr(text, "(line: ");
    if (line != NULL) {
        if (log->depth++ == 0) {
            log->line = (unsigned)strtoul(line + strlen("(line: "), NULL, 10);
            sscanf(text, " in mapping field '%63[^']'", log->field);
        }
    } else if (log->first[0] == '\0' && strstr(text, "Backtrace") == NULL) {
        const char *message = strncmp(text, "Load: ", 6) == 0 ? text + 6 : text;
        snprintf(log->first, sizeof log->first, "%s", message);
    }
}

static cyaml_config_t make_config(log_t *log)
{
    return (cyaml_config_t){.log_fn = on_log,
        .log_ctx = log,
        .mem_fn = cyaml_mem,
        .log_level = CYAML_LOG_ERROR,
        .flags = CYAML_CFG_NO_ALIAS};
}

static unsigned section_index(kv_section_t section)
{
    return (unsigned)__builtin_ctz(section);
}

static cyaml_schema_field_t make_scalar(const char *name, size_t offset, size_t length_min)
{
    return (cyaml_schema_field_t){.key = name,
        .data_offset = (uint32_t)offset,
        .value = {.type = CYAML_STRING,
            .flags = CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
            .data_size = sizeof(char),
            .string = {.min = (uint32_t)length_min, .max = CYAML_UNLIMITED}}};
}

/* A text or a list of texts, read into the slot at offset. */
static cyaml_schema_field_t make_field(const char *name, bool is_list, size_t offset)
{
    cyaml_schema_field_t field = make_scalar(name, offset, 0);
    if (is_list) {
        field.count_offset = (uint32_t)(offset + offsetof(slot_t, count));
        field.count_size = sizeof(unsigned);
        field.value = (cyaml_schema_value_t){.type = CYAML_SEQUENCE,
            .flags = CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
            .data_size = sizeof(char *),
            .sequence = {.entry = &ITEM, .min = 0, .max = KV_OPTION_LIST_MAX}};
    }
    return field;
}

static schema_t *make_schema(void)
{
    schema_t *schema = kv_allocate(sizeof *schema);
    for (uint32_t i = 0; i < KV_OPTION_COUNT; i++) {
        unsigned section = section_index(KV_OPTIONS[i].section);
        unsigned slot = schema->counts[section]++;
        KV_CHECK(slot + 1 < FIELDS_MAX);
        schema->fields[section][slot] = make_field(KV_OPTIONS[i].name,
            kv_option_is_list(&KV_OPTIONS[i]), offsetof(section_t, slots) + slot * sizeof(slot_t));
    }
    for (unsigned i = 0; i < KV_SECTION_COUNT; i++) {
        schema->root_fields[i] = (cyaml_schema_field_t){.key = kv_section_name(i),
            .data_offset = (uint32_t)(offsetof(file_t, sections) + i * sizeof(section_t *)),
            .value = {.type = CYAML_MAPPING,
                .flags = CYAML_FLAG_POINTER_NULL | CYAML_FLAG_OPTIONAL,
                .data_size = sizeof(section_t),
                .mapping = {.fields = schema->fields[i]}}};
    }
    schema->root = (cyaml_schema_value_t){.type = CYAML_MAPPING,
        .flags = CYAML_FLAG_POINTER,
        .data_size = sizeof(file_t),
        .mapping = {.fields = schema->root_fields}};
    return schema;
}

static unsigned load_line(const char *path, const schema_t *schema)
{
    log_t log = {0};
    cyaml_config_t config = make_config(&log);
    file_t *file = NULL;
    if (cyaml_load_file(path, &config, &schema->root, (cyaml_data_t **)&file, NULL) == CYAML_OK) {
        cyaml_free(&config, &schema->root, file, 0);
        return 0;
    }
    return log.line;
}

unsigned kv_options_file_line(const char *path, uint32_t option, uint32_t item)
{
    schema_t *schema = make_schema();
    unsigned section = section_index(KV_OPTIONS[option].section);
    cyaml_schema_field_t *field = schema->fields[section];
    while (strcmp(field->key, KV_OPTIONS[option].name) != 0) {
        field++;
    }
    if (field->value.type != CYAML_SEQUENCE) {
        field->value.string.min = FILE_BYTES_MAX;
    } else if (item == 0) {
        field->value.sequence.entry = &REFUSED_ITEM;
    } else {
        field->value.sequence.max = item;
    }
    unsigned line = load_line(path, schema);
    free(schema);
    return line;
}

/* The line of a key that no section has: the schema gets it, and refuses its value. */
static unsigned unknown_key_line(const char *path, const char *key, unsigned line_before)
{
    schema_t *schema = make_schema();
    for (unsigned i = 0; i < KV_SECTION_COUNT; i++) {
        schema->fields[i][schema->counts[i]] =
            make_scalar(key, schema->counts[i] * sizeof(slot_t), FILE_BYTES_MAX);
    }
    schema->root_fields[KV_SECTION_COUNT] =
        make_scalar(key, offsetof(file_t, unknown), FILE_BYTES_MAX);
    unsigned line = load_line(path, schema);
    free(schema);
    return line != 0 ? line : line_before;
}

static kv_status_t name_error(
    const char *path, cyaml_err_t code, const log_t *log, kv_error_t *error)
{
    const char *name = strrchr(log->first, ' ') != NULL ? strrchr(log->first, ' ') + 1 : "";
    switch (code) {
    case CYAML_ERR_INVALID_KEY:
        return kv_fail(error, KV_INVALID, "%s:%u: %s: no such option or section (--help lists all)",
            path, unknown_key_line(path, name, log->line), name);
    case CYAML_ERR_UNEXPECTED_EVENT: /* the only one that a document can cause */
        return kv_fail(
            error, KV_INVALID, "%s: %s is set twice (near line %u)", path, name, log->line);
    case CYAML_ERR_INVALID_VALUE:
        return kv_fail(error, KV_INVALID, "%s:%u: %s: wrong type: %s", path, log->line,
            log->field[0] != '\0' ? log->field : "the file", log->first);
    case CYAML_ERR_SEQUENCE_ENTRIES_MAX:
        return kv_fail(error, KV_INVALID, "%s:%u: a list holds at most %d values", path, log->line,
            KV_OPTION_LIST_MAX);
    case CYAML_ERR_STRING_LENGTH_MAX:
        return kv_fail(
            error, KV_INVALID, "%s:%u: a value of a list has at most 4096 bytes", path, log->line);
    default:
        return log->line == 0 ? kv_fail(error, KV_INVALID, "%s: not YAML: %s", path, log->first)
                              : kv_fail(error, KV_INVALID, "%s: not YAML near line %u: %s", path,
                                    log->line, log->first);
    }
}

/* libcyaml would allocate whatever a file holds: its size is bounded first. */
static kv_status_t check_file(const char *path, kv_error_t *error)
{
    struct stat info;
    if (stat(path, &info) != 0 || access(path, R_OK) != 0) {
        return kv_fail_errno(error, errno, "%s", path);
    }
    if (!S_ISREG(info.st_mode)) {
        return kv_fail(error, KV_INVALID, "%s: not a regular file", path);
    }
    if (info.st_size > FILE_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "%s: %lld bytes, at most %d", path,
            (long long)info.st_size, FILE_BYTES_MAX);
    }
    return KV_OK;
}

static void take_slot(bool is_list, const slot_t *slot, kv_string_list_t *list)
{
    if (slot->text == NULL) {
        return;
    }
    list->count = is_list ? slot->count : 1;
    list->items = kv_allocate_array(list->count + 1, sizeof *list->items);
    for (uint32_t i = 0; i < list->count; i++) {
        list->items[i] = kv_duplicate_string(is_list ? slot->items[i] : slot->text);
    }
}

kv_status_t kv_options_file_read(const char *path, kv_options_file_t *file_out, kv_error_t *error)
{
    kv_status_t status = check_file(path, error);
    if (status != KV_OK) {
        return status;
    }
    schema_t *schema = make_schema();
    log_t log = {0};
    cyaml_config_t config = make_config(&log);
    file_t *file = NULL;
    cyaml_err_t code = cyaml_load_file(path, &config, &schema->root, (cyaml_data_t **)&file, NULL);
    if (code != CYAML_OK) {
        status = name_error(path, code, &log, error);
    } else {
        file_out->values = kv_allocate_array(KV_OPTION_COUNT, sizeof *file_out->values);
        unsigned counts[KV_SECTION_COUNT] = {0};
        for (uint32_t i = 0; i < KV_OPTION_COUNT; i++) {
            unsigned index = section_index(KV_OPTIONS[i].section);
            unsigned slot = counts[index]++;
            if (file != NULL && file->sections[index] != NULL) {
                take_slot(kv_option_is_list(&KV_OPTIONS[i]), &file->sections[index]->slots[slot],
                    &file_out->values[i]);
            }
        }
        cyaml_free(&config, &schema->root, file, 0);
    }
    free(schema);
    return status;
}

void kv_options_file_clear(kv_options_file_t *file)
{
    for (uint32_t i = 0; file->values != NULL && i < KV_OPTION_COUNT; i++) {
        for (uint32_t j = 0; j < file->values[i].count; j++) {
            free(file->values[i].items[j]);
        }
        free(file->values[i].items);
    }
    free(file->values);
    file->values = NULL;
}

/* ---- records ---- */

typedef struct {
    slot_t slots[KV_RECORD_FIELDS_MAX];
} record_t;

typedef struct {
    record_t *records;
    unsigned count;
} list_t;

typedef struct {
    cyaml_schema_field_t fields[KV_RECORD_FIELDS_MAX + 1], root_fields[2];
    cyaml_schema_value_t record, root;
} record_schema_t;

static record_schema_t *make_record_schema(const kv_record_shape_t *shape)
{
    record_schema_t *schema = kv_allocate(sizeof *schema);
    KV_CHECK(shape->field_count <= KV_RECORD_FIELDS_MAX);
    for (uint32_t i = 0; i < shape->field_count; i++) {
        schema->fields[i] = make_field(shape->fields[i].name, shape->fields[i].is_list,
            offsetof(record_t, slots) + i * sizeof(slot_t));
    }
    schema->record = (cyaml_schema_value_t){.type = CYAML_MAPPING,
        .flags = CYAML_FLAG_DEFAULT,
        .data_size = sizeof(record_t),
        .mapping = {.fields = schema->fields}};
    schema->root_fields[0] = (cyaml_schema_field_t){.key = shape->name,
        .data_offset = offsetof(list_t, records),
        .count_offset = offsetof(list_t, count),
        .count_size = sizeof(unsigned),
        .value = {.type = CYAML_SEQUENCE,
            .flags = CYAML_FLAG_POINTER_NULL | CYAML_FLAG_OPTIONAL,
            .data_size = sizeof(record_t),
            .sequence = {.entry = &schema->record, .min = 0, .max = shape->record_count_max}}};
    schema->root = (cyaml_schema_value_t){.type = CYAML_MAPPING,
        .flags = CYAML_FLAG_POINTER,
        .data_size = sizeof(list_t),
        .mapping = {.fields = schema->root_fields}};
    return schema;
}

static kv_status_t name_record_error(const char *path, const kv_record_shape_t *shape,
    cyaml_err_t code, const log_t *log, kv_error_t *error)
{
    const char *name = strrchr(log->first, ' ') != NULL ? strrchr(log->first, ' ') + 1 : "";
    switch (code) {
    case CYAML_ERR_INVALID_KEY:
        return kv_fail(
            error, KV_INVALID, "%s: near line %u: %s: no such field", path, log->line, name);
    case CYAML_ERR_UNEXPECTED_EVENT:
        return kv_fail(
            error, KV_INVALID, "%s: near line %u: %s is set twice", path, log->line, name);
    case CYAML_ERR_SEQUENCE_ENTRIES_MAX:
        return kv_fail(error, KV_INVALID,
            "%s: near line %u: too long a list: at most %u of %s, and %d values of a field", path,
            log->line, shape->record_count_max, shape->name, KV_OPTION_LIST_MAX);
    case CYAML_ERR_INVALID_VALUE:
        return kv_fail(error, KV_INVALID, "%s: near line %u: %s: wrong type", path, log->line,
            log->field[0] != '\0' ? log->field : shape->name);
    case CYAML_ERR_LIBYAML_PARSER: /* its texts name what was expected, never what stands there */
        return kv_fail(error, KV_INVALID, "%s: not YAML: %s", path, log->first);
    default:
        return kv_fail(error, KV_INVALID, "%s: near line %u: not a list %s of records", path,
            log->line, shape->name);
    }
}

kv_status_t kv_records_read(
    const char *path, const kv_record_shape_t *shape, kv_records_t *records_out, kv_error_t *error)
{
    kv_status_t status = check_file(path, error);
    if (status != KV_OK) {
        return status;
    }
    record_schema_t *schema = make_record_schema(shape);
    log_t log = {0};
    cyaml_config_t config = make_config(&log);
    list_t *list = NULL;
    cyaml_err_t code = cyaml_load_file(path, &config, &schema->root, (cyaml_data_t **)&list, NULL);
    if (code != CYAML_OK) {
        status = name_record_error(path, shape, code, &log, error);
    } else {
        uint32_t count = list != NULL ? list->count : 0;
        *records_out = (kv_records_t){.record_count = count, .field_count = shape->field_count};
        records_out->values =
            kv_allocate_array((size_t)count * shape->field_count + 1, sizeof *records_out->values);
        for (uint32_t i = 0; i < count * shape->field_count; i++) {
            take_slot(shape->fields[i % shape->field_count].is_list,
                &list->records[i / shape->field_count].slots[i % shape->field_count],
                &records_out->values[i]);
        }
        cyaml_free(&config, &schema->root, list, 0);
    }
    free(schema);
    return status;
}

void kv_records_clear(kv_records_t *records)
{
    for (uint32_t i = 0; i < records->record_count * records->field_count; i++) {
        for (uint32_t j = 0; j < records->values[i].count; j++) {
            explicit_bzero(records->values[i].items[j], strlen(records->values[i].items[j]));
            free(records->values[i].items[j]);
        }
        free(records->values[i].items);
    }
    free(records->values);
    *records = (kv_records_t){0};
}
