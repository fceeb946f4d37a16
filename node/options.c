#include "node/options.h"

#include "base/address.h"
#include "base/bytes.h"
#include "base/check.h"
#include "base/memory.h"
#include "node/options_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PLACE_BYTES = 256, TEXT_BYTES = 160, URL_BYTES_MAX = 255 };

static void *member_of(kv_options_t *options, const kv_option_t *option)
{
    return (char *)options + option->offset;
}

static const char *section_of(const kv_option_t *option)
{
    return kv_section_name((unsigned)__builtin_ctz(option->section));
}

/* ---- values ---- */

static const struct {
    const char *name;
    double ns;
} DURATIONS[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};

static bool parse_duration(const char *text, uint64_t *ns_out)
{
    char *end;
    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    double number = strtod(text, &end);
    for (size_t i = 0; i < sizeof DURATIONS / sizeof DURATIONS[0]; i++) {
        if (strcmp(end, DURATIONS[i].name) == 0 && number * DURATIONS[i].ns < 0x1p63) {
            *ns_out = (uint64_t)llround(number * DURATIONS[i].ns);
            return true;
        }
    }
    return false;
}

/* A number as people write it in the option's unit. */
static void format_number(const kv_option_t *option, uint64_t value, char *text_out, size_t bytes)
{
    static const char *const SIZES[] = {"", "KiB", "MiB", "GiB", "TiB"};
    if (option->type == KV_OPTION_SIZE) {
        int unit = 0;
        while (unit < 4 && value != 0 && value % 1024 == 0) {
            value /= 1024;
            unit++;
        }
        snprintf(text_out, bytes, "%llu%s", (unsigned long long)value, SIZES[unit]);
    } else if (option->type == KV_OPTION_DURATION) {
        int unit = 4;
        while (unit > 0 && value % (uint64_t)DURATIONS[unit].ns != 0) {
            unit--;
        }
        snprintf(text_out, bytes, "%llu%s",
            (unsigned long long)(value / (uint64_t)DURATIONS[unit].ns), DURATIONS[unit].name);
    } else {
        snprintf(text_out, bytes, "%llu", (unsigned long long)value);
    }
}

/* What a value may be, for errors and for --help. */
static void describe_bounds(const kv_option_t *option, char *text_out, size_t bytes)
{
    static const char *const UNITS[] = {[KV_OPTION_SIZE] = "a size such as 2GiB, ",
        [KV_OPTION_DURATION] = "a duration such as 500ms, 10s or 2m, ",
        [KV_OPTION_U32] = "a whole number, "};
    char least[32], most[32];
    format_number(option, option->min, least, sizeof least);
    format_number(option, option->max, most, sizeof most);
    switch (option->type) {
    case KV_OPTION_STRING:
    case KV_OPTION_PATH:
        snprintf(text_out, bytes, "%s to %s bytes of text", least, most);
        break;
    case KV_OPTION_NAME:
        snprintf(text_out, bytes, "%s to %s letters, digits, '-', '_' and '.'", least, most);
        break;
    case KV_OPTION_BOOL:
        snprintf(text_out, bytes, "true or false");
        break;
    case KV_OPTION_ENUM:
        snprintf(text_out, bytes, "one of %s", option->names);
        break;
    case KV_OPTION_DISKS:
        snprintf(
            text_out, bytes, "at most %s of FOLDER=SIZE, without commas, of 1MiB or more", most);
        break;
    case KV_OPTION_DOMAINS:
        snprintf(text_out, bytes,
            "at most %s of NAME:users=A+B:host_bytes=SIZE:disk_bytes=SIZE:directory=FOLDER, all "
            "but the name as wanted",
            most);
        break;
    case KV_OPTION_TENANTS:
        snprintf(text_out, bytes,
            "at most %s of NAME:host_bytes=SIZE:disk_bytes=SIZE, one of the two or both, the name "
            "of 1 to %d letters, digits, '-', '_' and '.'",
            most, KV_OPTION_TENANT_NAME_BYTES_MAX);
        break;
    case KV_OPTION_ADDRESSES:
        snprintf(
            text_out, bytes, "at most %s of host:port with a numeric host, or localhost", most);
        break;
    case KV_OPTION_URLS:
        snprintf(text_out, bytes, "at most %s of http://host:port or https://host:port", most);
        break;
    default:
        snprintf(text_out, bytes, "%s%s to %s%s", UNITS[option->type], least, most,
            option->power_of_two ? ", a power of two" : "");
    }
}

static bool parse_u32(const char *text, uint64_t *value_out)
{
    char *end;
    if (!isdigit((unsigned char)text[0]) || strlen(text) > 10) {
        return false;
    }
    *value_out = strtoull(text, &end, 10);
    return *end == '\0';
}

static bool parse_bool(const char *text, bool *value_out)
{
    static const char *const NAMES[] = {"false", "no", "off", "0", "true", "yes", "on", "1"};
    for (size_t i = 0; i < 8; i++) {
        if (strcasecmp(text, NAMES[i]) == 0) {
            *value_out = i >= 4;
            return true;
        }
    }
    return false;
}

static bool parse_enum(const char *names, const char *text, int *value_out)
{
    size_t bytes = strlen(text);
    for (int index = 0;; index++) {
        size_t length = strcspn(names, "|");
        if (length == bytes && bytes > 0 && memcmp(names, text, bytes) == 0) {
            *value_out = index;
            return true;
        }
        if (names[length] == '\0') {
            return false;
        }
        names += length + 1;
    }
}

bool kv_option_is_name(const char *text)
{
    for (const char *at = text; *at != '\0'; at++) {
        if (!isalnum((unsigned char)*at) && (at == text || strchr("-_.", *at) == NULL)) {
            return false;
        }
    }
    return true;
}

static bool store_number(kv_options_t *options, const kv_option_t *option, uint64_t value)
{
    if (value < option->min || value > option->max ||
        (option->power_of_two && (value & (value - 1)) != 0)) {
        return false;
    }
    if (option->type == KV_OPTION_U32) {
        *(uint32_t *)member_of(options, option) = (uint32_t)value;
    } else {
        *(uint64_t *)member_of(options, option) = value;
    }
    return true;
}

static bool store_scalar(kv_options_t *options, const kv_option_t *option, const char *text)
{
    uint64_t value = 0;
    switch (option->type) {
    case KV_OPTION_STRING:
    case KV_OPTION_PATH:
    case KV_OPTION_NAME: {
        char **member = member_of(options, option);
        if (strlen(text) < option->min || strlen(text) > option->max ||
            !kv_utf8_valid(text, strlen(text)) ||
            (option->type == KV_OPTION_NAME && !kv_option_is_name(text))) {
            return false;
        }
        free(*member);
        *member = kv_duplicate_string(text);
        return true;
    }
    case KV_OPTION_BOOL:
        return parse_bool(text, member_of(options, option));
    case KV_OPTION_ENUM:
        return parse_enum(option->names, text, member_of(options, option));
    case KV_OPTION_U32:
        return parse_u32(text, &value) && store_number(options, option, value);
    case KV_OPTION_SIZE:
        return kv_size_parse(text, &value) == KV_OK && store_number(options, option, value);
    default:
        return parse_duration(text, &value) && store_number(options, option, value);
    }
}

static void clear_list(kv_string_list_t *list)
{
    for (uint32_t i = 0; i < list->count; i++) {
        free(list->items[i]);
    }
    free(list->items);
    *list = (kv_string_list_t){0};
}

kv_status_t kv_options_disk(const char *item, char **folder_out, uint64_t *bytes_out)
{
    const char *size = strrchr(item, '=');
    if (size == NULL || size == item || kv_size_parse(size + 1, bytes_out) != KV_OK ||
        *bytes_out < 1 << 20 || !kv_utf8_valid(item, strlen(item))) {
        return KV_INVALID;
    }
    *folder_out = kv_duplicate_string(item);
    (*folder_out)[size - item] = '\0';
    return KV_OK;
}

static bool take_quota(kv_option_tenant_t *tenant, const char *field)
{
    static const char HOST[] = "host_bytes=", DISK[] = "disk_bytes=";
    bool host = strncmp(field, HOST, strlen(HOST)) == 0;
    uint64_t *bytes = host ? &tenant->host_bytes : &tenant->disk_bytes;
    return (host || strncmp(field, DISK, strlen(DISK)) == 0) && *bytes == 0 &&
           kv_size_parse(field + strlen(HOST), bytes) == KV_OK && *bytes > 0;
}

kv_status_t kv_options_tenant(const char *item, kv_option_tenant_t *tenant_out)
{
    kv_option_tenant_t tenant = {0};
    char *copy = kv_duplicate_string(item), *rest = copy, *field;
    const char *name = strsep(&rest, ":");
    bool good = name[0] != '\0' && strlen(name) <= KV_OPTION_TENANT_NAME_BYTES_MAX &&
                kv_option_is_name(name) && rest != NULL;
    if (good) {
        memcpy(tenant.name, name, strlen(name));
    }
    while (good && (field = strsep(&rest, ":")) != NULL) {
        good = take_quota(&tenant, field);
    }
    free(copy);
    if (!good) {
        return KV_INVALID;
    }
    *tenant_out = tenant;
    return KV_OK;
}

/* Scheme, host and port alone: no user, no path. */
static bool is_url(const char *text)
{
    const char *host = strncmp(text, "http://", 7) == 0    ? text + 7
                       : strncmp(text, "https://", 8) == 0 ? text + 8
                                                           : "";
    const char *colon = strrchr(host, ':');
    uint64_t port;
    return kv_text_is_plain(text, '!', URL_BYTES_MAX) && strpbrk(host, "/@?#\\") == NULL &&
           colon != NULL && colon > host && parse_u32(colon + 1, &port) && port >= 1 &&
           port <= UINT16_MAX;
}

static bool item_is_good(const kv_option_t *option, const char *item)
{
    struct sockaddr_storage address;
    uint64_t bytes;
    char *folder = NULL;
    bool good = false;
    if (option->type == KV_OPTION_DISKS) {
        good = kv_options_disk(item, &folder, &bytes) == KV_OK;
    } else if (option->type == KV_OPTION_DOMAINS) {
        kv_option_domain_t domain;
        good = kv_options_domain(item, &domain, NULL) == KV_OK;
        if (good) {
            kv_options_domain_clear(&domain);
        }
    } else if (option->type == KV_OPTION_TENANTS) {
        kv_option_tenant_t tenant;
        good = kv_options_tenant(item, &tenant) == KV_OK;
    } else if (option->type == KV_OPTION_URLS) {
        good = is_url(item);
    } else {
        good = kv_address_parse(item, &address, NULL) == KV_OK;
    }
    free(folder);
    return good;
}

/* Sets one option. place: "command line", "FILE:12"; values of a list are its items. */
static kv_status_t store_value(kv_options_t *options, const kv_option_t *option,
    const kv_string_list_t *values, const char *place, kv_error_t *error)
{
    char bounds[TEXT_BYTES];
    const char *wrong = NULL;
    if (kv_option_is_list(option)) {
        for (uint32_t i = 0; i < values->count && wrong == NULL; i++) {
            if (!item_is_good(option, values->items[i]) || i >= option->max) {
                wrong = values->items[i];
            }
        }
        if (wrong == NULL) {
            kv_string_list_t *list = member_of(options, option);
            clear_list(list);
            list->items = kv_allocate_array(values->count + 1, sizeof *list->items);
            for (; list->count < values->count; list->count++) {
                list->items[list->count] = kv_duplicate_string(values->items[list->count]);
            }
        }
    } else if (!store_scalar(options, option, values->items[0])) {
        wrong = values->items[0];
    }
    if (wrong == NULL) {
        return KV_OK;
    }
    describe_bounds(option, bounds, sizeof bounds);
    bool secret = option->offset == offsetof(kv_options_t, cluster.key);
    return kv_fail(error, KV_INVALID, "%s: %s.%s: \"%.100s\" is wrong: must be %s", place,
        section_of(option), option->name, secret ? "(not shown)" : wrong, bounds);
}

/* As store_value, from text as a command line or a default has it: items of a list between commas.
 */
static kv_status_t store_text(kv_options_t *options, const kv_option_t *option, const char *text,
    const char *place, kv_error_t *error)
{
    char *copy = kv_duplicate_string(text);
    char *items[KV_OPTION_LIST_MAX + 1] = {copy};
    kv_string_list_t values = {.items = items, .count = 1};
    if (kv_option_is_list(option)) {
        values.count = 0;
        char *rest = copy, *item;
        while (values.count <= KV_OPTION_LIST_MAX && (item = strsep(&rest, ",")) != NULL) {
            if (*item != '\0' || rest != NULL || values.count > 0) {
                items[values.count++] = item;
            }
        }
    }
    kv_status_t status = store_value(options, option, &values, place, error);
    free(copy);
    return status;
}

/* ---- sources ---- */

static kv_status_t take_file(kv_options_t *options, const char *path, kv_error_t *error)
{
    kv_options_file_t file = {0};
    kv_status_t status = kv_options_file_read(path, &file, error);
    for (uint32_t i = 0; status == KV_OK && i < KV_OPTION_COUNT; i++) {
        if (file.values[i].items == NULL) {
            continue;
        }
        status = store_value(options, &KV_OPTIONS[i], &file.values[i], path, error);
        if (status != KV_OK) {
            uint32_t item = 0;
            char place[PLACE_BYTES];
            while (kv_option_is_list(&KV_OPTIONS[i]) && item + 1 < file.values[i].count &&
                   item_is_good(&KV_OPTIONS[i], file.values[i].items[item])) {
                item++;
            }
            snprintf(place, sizeof place, "%s:%u", path, kv_options_file_line(path, i, item));
            store_value(options, &KV_OPTIONS[i], &file.values[i], place, error);
        }
    }
    kv_options_file_clear(&file);
    return status;
}

static const kv_option_t *find_option(const char *name, size_t bytes)
{
    for (uint32_t i = 0; i < KV_OPTION_COUNT; i++) {
        const char *section = section_of(&KV_OPTIONS[i]);
        size_t length = strlen(section);
        if (bytes == length + 1 + strlen(KV_OPTIONS[i].name) &&
            memcmp(name, section, length) == 0 && name[length] == '.' &&
            memcmp(name + length + 1, KV_OPTIONS[i].name, bytes - length - 1) == 0) {
            return &KV_OPTIONS[i];
        }
    }
    return NULL;
}

/* The value of argument index, written as --name=value or --name value; *used_out counts the
 * arguments. */
static const char *value_of(int argc, char **argv, int index, int *used_out)
{
    const char *equals = strchr(argv[index], '=');
    *used_out = equals != NULL || index + 1 >= argc ? 1 : 2;
    return equals != NULL ? equals + 1 : index + 1 < argc ? argv[index + 1] : NULL;
}

static kv_status_t take_argument(const kv_options_program_t *program, kv_options_t *options,
    const char *argument, const char *value, kv_error_t *error)
{
    bool dashes = strncmp(argument, "--", 2) == 0;
    const kv_option_t *option =
        dashes ? find_option(argument + 2, strcspn(argument + 2, "=")) : NULL;
    if (option == NULL) {
        return kv_fail(
            error, KV_INVALID, "command line: %.100s: no such option (--help lists all)", argument);
    }
    if ((option->section & program->sections) == 0) {
        return kv_fail(error, KV_INVALID, "command line: %s.%s: %s has no such section",
            section_of(option), option->name, program->binary);
    }
    if (value == NULL) {
        return kv_fail(error, KV_INVALID, "command line: %s.%s: no value (--%s.%s=VALUE)",
            section_of(option), option->name, section_of(option), option->name);
    }
    return store_text(options, option, value, "command line", error);
}

/* ---- what is derived when everything was read ---- */

static void replace(char **text, char *by)
{
    free(*text);
    *text = by;
}

static char *join(const char *format, const char *folder, const char *name)
{
    char text[8192];
    snprintf(text, sizeof text, format, folder, name);
    return kv_duplicate_string(text);
}

/* format: of folder and name. */
static void derive_socket(char **path, const char *format, const char *name)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    char folder[4096];
    if ((*path)[0] == '\0') {
        if (runtime != NULL && runtime[0] != '\0') {
            snprintf(folder, sizeof folder, "%s/kvist", runtime);
        } else {
            snprintf(folder, sizeof folder, "/tmp/kvist-%u", (unsigned)getuid());
        }
        replace(path, join(format, folder, name));
    }
}

/* "none" is none; where nothing is said it is the node's own folder, with this ending. */
static void derive_directory(char **path, const char *ending, const char *name)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char below[4096];
    if (strcmp(*path, "none") == 0) {
        (*path)[0] = '\0';
    } else if ((*path)[0] == '\0') {
        snprintf(below, sizeof below, "%s%s", name, ending);
        replace(path, data != NULL && data[0] != '\0'
                          ? join("%s/kvist/%s", data, below)
                          : join("%s/.local/share/kvist/%s", home != NULL ? home : ".", below));
    }
}

static void derive(const kv_options_program_t *program, kv_options_t *options)
{
    /* The table has a default for each. */
    KV_CHECK(options->node.name != NULL && options->node.admin != NULL);
    KV_CHECK(options->store.directory != NULL && options->store.socket != NULL);
    if (options->node.name[0] == '\0') {
        replace(&options->node.name, kv_duplicate_string(program->default_name));
    }
    derive_socket(&options->node.admin, "%s/%s.sock", options->node.name);
    derive_socket(&options->store.socket, "%s/%s-clients.sock", options->node.name);
    if (strcmp(options->store.attach, "none") == 0) {
        options->store.attach[0] = '\0';
    }
    derive_directory(&options->store.directory, "", options->node.name);
    derive_directory(&options->gateway.contents_directory, "/contents", options->node.name);
    if (options->model.threads == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        options->model.threads = cores < 1 ? 1 : cores > 1024 ? 1024 : (uint32_t)cores;
    }
}

/* Bounds between options, and of texts that have a form. */
static kv_status_t check_together(const kv_options_t *options, kv_error_t *error)
{
    struct sockaddr_storage address;
    const char *prefix = options->cluster.etcd_prefix;
    if (prefix[0] != '/' || prefix[strlen(prefix) - 1] == '/' ||
        !kv_text_is_plain(prefix, '!', strlen(prefix))) {
        return kv_fail(error, KV_INVALID,
            "cluster.etcd_prefix: \"%s\" is wrong: must be printable characters from '/' on, "
            "without '/' at the end",
            prefix);
    }
    if (options->node.advertise[0] != '\0' &&
        kv_address_parse(options->node.advertise, &address, NULL) != KV_OK) {
        return kv_fail(error, KV_INVALID,
            "node.advertise: \"%s\" is wrong: must be host:port with a numeric host, or localhost",
            options->node.advertise);
    }
    const struct {
        const char *name, *path;
    } sockets[] = {{"node.admin", options->node.admin}, {"store.socket", options->store.socket},
        {"store.attach", options->store.attach}};
    for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++) {
        if (strlen(sockets[i].path) > 107) {
            return kv_fail(error, KV_INVALID, "%s: %zu bytes, at most 107: %s", sockets[i].name,
                strlen(sockets[i].path), sockets[i].path);
        }
    }
    if (options->store.disk_bytes < 2 * options->store.segment_bytes) {
        return kv_fail(error, KV_INVALID,
            "store.disk_bytes: %llu is wrong: must be at least two of store.segment_bytes (%llu)",
            (unsigned long long)options->store.disk_bytes,
            (unsigned long long)options->store.segment_bytes);
    }
    return KV_OK;
}

static kv_status_t take_defaults(kv_options_t *options, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; status == KV_OK && i < KV_OPTION_COUNT; i++) {
        status = store_text(options, &KV_OPTIONS[i], KV_OPTIONS[i].initial, "default", error);
    }
    return status;
}

static bool is_config(const char *argument)
{
    return strcmp(argument, "--config") == 0 || strncmp(argument, "--config=", 9) == 0;
}

/* The file first, wherever it stands on the command line; then the other arguments in their order.
 */
static kv_status_t take_sources(const kv_options_program_t *program, int argc, char **argv,
    kv_options_t *options, kv_error_t *error)
{
    kv_status_t status = take_defaults(options, error);
    for (int pass = 0; pass < 2; pass++) {
        int used;
        for (int i = 1; status == KV_OK && i < argc; i += used) {
            const char *value = value_of(argc, argv, i, &used);
            if (is_config(argv[i]) && value == NULL) {
                return kv_fail(error, KV_INVALID, "command line: --config: no file is named");
            }
            if (is_config(argv[i]) && pass == 0) {
                status = take_file(options, value, error);
            } else if (!is_config(argv[i]) && pass == 1) {
                status = take_argument(program, options, argv[i], value, error);
            }
        }
    }
    return status;
}

kv_status_t kv_options_load(const kv_options_program_t *program, int argc, char **argv,
    kv_options_t *options_out, kv_options_action_t *action_out, kv_error_t *error)
{
    *action_out = KV_OPTIONS_RUN;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "--version") == 0) {
            *action_out = argv[i][2] == 'h' ? KV_OPTIONS_HELP : KV_OPTIONS_VERSION;
            return KV_OK;
        }
    }
    kv_options_t options = {0};
    kv_status_t status = take_sources(program, argc, argv, &options, error);
    if (status == KV_OK) {
        derive(program, &options);
        status = check_together(&options, error);
    }
    if (status != KV_OK) {
        kv_options_clear(&options);
        return status;
    }
    *options_out = options;
    return KV_OK;
}

static bool is_text(const kv_option_t *option)
{
    return option->type == KV_OPTION_STRING || option->type == KV_OPTION_PATH ||
           option->type == KV_OPTION_NAME;
}

void kv_options_clear(kv_options_t *options)
{
    for (uint32_t i = 0; i < KV_OPTION_COUNT; i++) {
        if (kv_option_is_list(&KV_OPTIONS[i])) {
            clear_list(member_of(options, &KV_OPTIONS[i]));
        } else if (is_text(&KV_OPTIONS[i])) {
            replace(member_of(options, &KV_OPTIONS[i]), NULL);
        }
    }
}

/* ---- help ---- */

static void print_wrapped(FILE *stream, const char *text, int indent, int width)
{
    int column = indent;
    fprintf(stream, "%*s", indent, "");
    while (*text != '\0') {
        int word = (int)strcspn(text, " ");
        if (column + word > width && column > indent) {
            fprintf(stream, "\n%*s", indent, "");
            column = indent;
        }
        fprintf(stream, "%s%.*s", column > indent ? " " : "", word, text);
        column += word + 1;
        text += word;
        text += *text == ' ';
    }
    fputc('\n', stream);
}

void kv_options_print_help(const kv_options_program_t *program, FILE *stream)
{
    fprintf(stream, "%s: %s\n\nusage: %s [--config FILE] [--SECTION.NAME=VALUE ...]\n\n",
        program->binary, program->summary, program->binary);
    print_wrapped(stream,
        "--config FILE reads a YAML file of sections, each a mapping of name to value. It may hold "
        "the sections of all nodes; the command line wins over it. --help, --version.",
        0, 98);
    for (unsigned section = 0; section < KV_SECTION_COUNT; section++) {
        if ((program->sections & 1u << section) == 0) {
            continue;
        }
        fprintf(stream, "\n%s: %s\n", kv_section_name(section), kv_section_help(section));
        for (uint32_t i = 0; i < KV_OPTION_COUNT; i++) {
            const kv_option_t *option = &KV_OPTIONS[i];
            if (option->section == (kv_section_t)(1u << section)) {
                char bounds[TEXT_BYTES];
                describe_bounds(option, bounds, sizeof bounds);
                fprintf(stream, "  --%s.%s=%s\n", kv_section_name(section), option->name,
                    option->initial[0] != '\0' ? option->initial : "\"\"");
                print_wrapped(stream, option->help, 6, 98);
                print_wrapped(stream, bounds, 6, 98);
            }
        }
    }
}

/* ---- the key ---- */

static kv_status_t read_key_file(
    const char *path, char *text_out, size_t capacity, kv_error_t *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        int code = errno;
        if (fd >= 0) {
            close(fd);
        }
        return kv_fail_errno(error, code, "cluster.key_file: %s", path);
    }
    ssize_t bytes = S_ISREG(info.st_mode) ? read(fd, text_out, capacity - 1) : 0;
    close(fd);
    if ((info.st_mode & 077) != 0) {
        return kv_fail(error, KV_REFUSED,
            "cluster.key_file: %s: mode %03o lets others read it: chmod 600", path,
            (unsigned)info.st_mode & 0777);
    }
    text_out[bytes < 0 ? 0 : bytes] = '\0';
    return KV_OK;
}

kv_status_t kv_options_cluster_key(
    const kv_options_t *options, void *key_out, size_t *bytes_out, kv_error_t *error)
{
    char text[KV_CLUSTER_KEY_BYTES_MAX + 64];
    const char *field = "cluster.key";
    if (options->cluster.key[0] != '\0') {
        snprintf(text, sizeof text, "%s", options->cluster.key);
    } else if (options->cluster.key_file[0] != '\0') {
        field = "cluster.key_file";
        kv_status_t status = read_key_file(options->cluster.key_file, text, sizeof text, error);
        if (status != KV_OK) {
            return status;
        }
    } else {
        return kv_fail(error, KV_MISSING,
            "cluster.key_file: not set: nodes of a cluster prove a shared key to each other");
    }
    const char *start = text + strspn(text, " \t\r\n");
    size_t bytes = strlen(start);
    while (bytes > 0 && strchr(" \t\r\n", start[bytes - 1]) != NULL) {
        bytes--;
    }
    kv_status_t status = KV_OK;
    if (bytes < KV_OPTION_KEY_BYTES_MIN || bytes > KV_CLUSTER_KEY_BYTES_MAX) {
        status = kv_fail(error, KV_INVALID, "%s: %zu bytes, must be %d to %d", field, bytes,
            KV_OPTION_KEY_BYTES_MIN, KV_CLUSTER_KEY_BYTES_MAX);
    } else {
        memcpy(key_out, start, bytes);
        *bytes_out = bytes;
    }
    explicit_bzero(text, sizeof text);
    return status;
}
