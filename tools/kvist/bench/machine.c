#include "tools/kvist/bench/machine.h"

#include "tools/kvist/text.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_BYTES = 1024,
    WORD_BYTES = 256,
    MEMORY_SHARE = 8, /* one of some five regions may have so much of the machine's memory */
    WORKING_BYTES_MIN = 256 << 20,
    WORKING_BYTES_STEP = 64 << 20,
};

/* The first line of a small file, without its newline; false where there is none. */
static bool read_line(const char *path, char *line_out)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    bool read = fgets(line_out, LINE_BYTES, file) != NULL;
    fclose(file);
    if (read) {
        line_out[strcspn(line_out, "\n")] = '\0';
    }
    return read;
}

/* The text after "NAME:" in a file of such lines. */
static bool find_field(const char *path, const char *name, char *value_out)
{
    char line[LINE_BYTES];
    FILE *file = fopen(path, "re");
    bool found = false;
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (colon != NULL && strncmp(line, name, strlen(name)) == 0) {
            colon += 1 + strspn(colon + 1, " \t");
            snprintf(value_out, WORD_BYTES, "%.*s", (int)strcspn(colon, "\n"), colon);
            found = true;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

uint64_t kv_machine_cache_bytes(void)
{
    uint64_t most = 0;
    for (int index = 0;; index++) {
        char path[WORD_BYTES], line[LINE_BYTES], *end;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        if (!read_line(path, line)) {
            return most;
        }
        uint64_t bytes = strtoull(line, &end, 10);
        bytes <<= *end == 'K' ? 10 : *end == 'M' ? 20 : 0;
        most = bytes > most ? bytes : most;
    }
}

uint64_t kv_machine_memory_bytes(void)
{
    char value[WORD_BYTES];
    return find_field("/proc/meminfo", "MemTotal", value) ? strtoull(value, NULL, 10) << 10 : 0;
}

uint64_t kv_machine_working_bytes(void)
{
    const uint64_t cache = kv_machine_cache_bytes(), memory = kv_machine_memory_bytes();
    uint64_t bytes = cache + cache / 4;
    if (memory > 0 && bytes > memory / MEMORY_SHARE) {
        bytes = memory / MEMORY_SHARE;
    }
    bytes = bytes < WORKING_BYTES_MIN ? WORKING_BYTES_MIN : bytes;
    return bytes / WORKING_BYTES_STEP * WORKING_BYTES_STEP;
}

uint64_t kv_machine_resident_bytes(void)
{
    char value[WORD_BYTES];
    return find_field("/proc/self/status", "VmRSS", value) ? strtoull(value, NULL, 10) << 10 : 0;
}

/* The type of the file system with that device number, from the table of mounts: its lines are
 * "id parent MAJOR:MINOR root mount-point options ... - TYPE source options". */
static void find_file_system(dev_t device, char *type_out)
{
    char line[LINE_BYTES], wanted[64];
    snprintf(wanted, sizeof wanted, " %u:%u ", major(device), minor(device));
    snprintf(type_out, WORD_BYTES, "unknown");
    FILE *file = fopen("/proc/self/mountinfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *type = strstr(line, " - ");
        if (strstr(line, wanted) != NULL && type != NULL) {
            snprintf(type_out, WORD_BYTES, "%.*s", (int)strcspn(type + 3, " "), type + 3);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

/* A property of the block device with that number; a partition has those of its disk. */
static bool find_disk_property(dev_t device, const char *name, char *line_out)
{
    char path[WORD_BYTES];
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s", major(device), minor(device), name);
    if (read_line(path, line_out)) {
        return true;
    }
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/../%s", major(device), minor(device), name);
    return read_line(path, line_out);
}

static void print_folder(FILE *out, const char *folder)
{
    struct stat state;
    struct statvfs space;
    if (stat(folder, &state) != 0 || statvfs(folder, &space) != 0) {
        return;
    }
    char type[WORD_BYTES], free_text[KV_TEXT_BYTES], model[LINE_BYTES];
    char link[WORD_BYTES], name[LINE_BYTES];
    find_file_system(state.st_dev, type);
    snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(state.st_dev), minor(state.st_dev));
    ssize_t bytes = readlink(link, name, sizeof name - 1);
    name[bytes > 0 ? bytes : 0] = '\0';
    const char *slash = strrchr(name, '/');
    if (!find_disk_property(state.st_dev, "device/model", model)) {
        model[0] = '\0';
    }
    fprintf(out, "# disk: %s on %s%s%s, %s free\n", type,
        slash != NULL ? slash + 1 : "no block device", model[0] != '\0' ? " " : "", model,
        kv_text_size((uint64_t)space.f_bavail * space.f_frsize, free_text));
}

void kv_machine_print(FILE *out, const char *folder)
{
    char processor[WORD_BYTES], cache[KV_TEXT_BYTES], memory[KV_TEXT_BYTES], date[64];
    char huge[LINE_BYTES], load[LINE_BYTES];
    struct utsname kernel;
    struct tm when;
    time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", gmtime_r(&now, &when));
    if (!find_field("/proc/cpuinfo", "model name", processor)) {
        snprintf(processor, sizeof processor, "unknown processor");
    }
    if (!read_line("/sys/kernel/mm/transparent_hugepage/enabled", huge)) {
        snprintf(huge, sizeof huge, "unknown");
    }
    if (!read_line("/proc/loadavg", load)) {
        snprintf(load, sizeof load, "unknown");
    }
    fprintf(out, "# kvist %s, %s\n", KVIST_VERSION, date);
    fprintf(out, "# processor: %s, %ld cores, largest cache %s\n", processor,
        sysconf(_SC_NPROCESSORS_ONLN), kv_text_size(kv_machine_cache_bytes(), cache));
    fprintf(out, "# memory: %s, transparent huge pages: %s\n",
        kv_text_size(kv_machine_memory_bytes(), memory), huge);
    if (uname(&kernel) == 0) {
        fprintf(
            out, "# kernel: %s %s; load at the start: %s\n", kernel.sysname, kernel.release, load);
    }
    if (folder != NULL) {
        print_folder(out, folder);
    }
}
