/* The table of options and the reader of the file, between the files of options. */
#ifndef KV_NODE_OPTIONS_INTERNAL_H
#define KV_NODE_OPTIONS_INTERNAL_H

#include "node/options.h"

typedef enum {
    KV_OPTION_STRING,
    KV_OPTION_PATH,
    KV_OPTION_NAME, /* letters, digits, '-', '_' and '.': it becomes part of paths and labels */
    KV_OPTION_U32,
    KV_OPTION_SIZE,     /* bytes: "2GiB" */
    KV_OPTION_DURATION, /* nanoseconds: "500ms", "10s", "2m", "1h" */
    KV_OPTION_BOOL,
    KV_OPTION_ENUM,
    KV_OPTION_ADDRESSES, /* list of "host:port" */
    KV_OPTION_URLS,      /* list of "http://host:port" or https */
    KV_OPTION_DISKS,     /* list of "FOLDER=SIZE" */
    KV_OPTION_DOMAINS,   /* list of "NAME:users=A+B:host_bytes=1GiB:..." */
    KV_OPTION_TENANTS,   /* list of "NAME:host_bytes=1GiB:disk_bytes=8GiB" */
} kv_option_type_t;

typedef struct {
    const char *name, *initial, *help;
    const char *names; /* of an enumeration: "auto|shm|tcp" */
    uint64_t min, max; /* of the number; of a string: its length; of a list: its count */
    size_t offset;     /* in kv_options_t */
    kv_section_t section;
    kv_option_type_t type;
    bool power_of_two;
} kv_option_t;

static inline bool kv_option_is_list(const kv_option_t *option)
{
    return option->type == KV_OPTION_ADDRESSES || option->type == KV_OPTION_URLS ||
           option->type == KV_OPTION_DISKS || option->type == KV_OPTION_DOMAINS ||
           option->type == KV_OPTION_TENANTS;
}

extern const kv_option_t KV_OPTIONS[];
extern const uint32_t KV_OPTION_COUNT;

enum { KV_SECTION_COUNT = 7 };
const char *kv_section_name(unsigned index); /* of section 1 << index */
const char *kv_section_help(unsigned index);

/* What a file said: for each option of the table, in its order, NULL items where it said nothing.
 * A scalar is a list of one. */
typedef struct {
    kv_string_list_t *values; /* [KV_OPTION_COUNT]; release with kv_options_file_clear */
} kv_options_file_t;

kv_status_t kv_options_file_read(const char *path, kv_options_file_t *file_out, kv_error_t *error);
void kv_options_file_clear(kv_options_file_t *file);

/* The line on which the file sets the option (in a list: its item of that index); 0 where that
 * cannot be told. */
unsigned kv_options_file_line(const char *path, uint32_t option, uint32_t item);

#endif
