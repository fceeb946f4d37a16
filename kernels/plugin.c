#include "kernels/plugin.h"

#include "base/log.h"

#include <ctype.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NUMBER_MAX = 1023 };

/* ---- names ---- */

typedef enum { NAME_AUTO, NAME_CPU, NAME_CUDA, NAME_SIMT } name_kind_t;

/* "cuda" or "cuda:N". */
static bool read_number(const char *text, uint32_t *number_out)
{
    *number_out = 0;
    if (text[0] == '\0') {
        return true;
    }
    if (text[0] != ':' || !isdigit((unsigned char)text[1])) {
        return false;
    }
    char *end;
    unsigned long number = strtoul(text + 1, &end, 10);
    *number_out = number <= NUMBER_MAX ? (uint32_t)number : 0;
    return *end == '\0' && number <= NUMBER_MAX;
}

static kv_status_t read_name(
    const char *name, name_kind_t *kind_out, uint32_t *number_out, kv_error_t *error)
{
    static const char *const WHOLE[] = {
        [NAME_AUTO] = "auto", [NAME_CPU] = "cpu", [NAME_SIMT] = "simt"};
    *number_out = 0;
    for (name_kind_t kind = NAME_AUTO; kind <= NAME_SIMT; kind++) {
        if (WHOLE[kind] != NULL && strcmp(name, WHOLE[kind]) == 0) {
            *kind_out = kind;
            return KV_OK;
        }
    }
    *kind_out = NAME_CUDA;
    if (strncmp(name, "cuda", 4) != 0 || !read_number(name + 4, number_out)) {
        return kv_fail(error, KV_INVALID,
            "the device is \"%s\"; auto, cpu, cuda, cuda:N (N up to %d) and simt are possible",
            name, NUMBER_MAX);
    }
    return KV_OK;
}

/* What auto stands for in this environment; itself, where nobody said. */
static const char *meant(const char *name)
{
    const char *wanted = getenv("KVIST_DEVICE");
    return strcmp(name, "auto") == 0 && wanted != NULL && wanted[0] != '\0' ? wanted : name;
}

/* ---- where plug-ins lie ---- */

/* The program's folder, without the slash at its end; empty: unknown. */
static void program_folder(char *folder_out, size_t bytes)
{
    ssize_t length = readlink("/proc/self/exe", folder_out, bytes - 1);
    folder_out[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(folder_out, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
}

static void *load_from(const char *folder, const char *below, const char *file)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s%s/%s", folder, below, file);
    if (length < 0 || (size_t)length >= sizeof path || access(path, R_OK) != 0) {
        return NULL;
    }
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *load(const char *file)
{
    char folder[PATH_MAX];
    const char *named = getenv("KVIST_PLUGINS");
    void *library = named != NULL && named[0] == '/' ? load_from(named, "", file) : NULL;
    program_folder(folder, sizeof folder);
    if (library == NULL && folder[0] != '\0') {
        library = load_from(folder, "", file);
    }
    if (library == NULL && folder[0] != '\0') {
        library = load_from(folder, "/../lib/kvist", file);
    }
    return library;
}

/* ---- plug-ins ---- */

static kv_status_t check_build(
    const kv_device_plugin_t *plugin, const char *file, kv_error_t *error)
{
    if (plugin->version != KV_PLUGIN_VERSION || plugin->ops_bytes != sizeof(kv_device_ops_t) ||
        strcmp(plugin->build, KVIST_VERSION) != 0) {
        return kv_fail(
            error, KV_REFUSED, "%s is of another build than this program, " KVIST_VERSION, file);
    }
    return KV_OK;
}

static kv_status_t open_from(
    const char *file, uint32_t number, kv_device_t **device_out, kv_error_t *error)
{
    (void)dlerror();
    void *library = load(file);
    if (library == NULL) {
        const char *cause = dlerror();
        return kv_fail(error, KV_MISSING, "%s cannot be loaded: %s", file,
            cause != NULL ? cause : "it lies neither beside the program nor in ../lib/kvist");
    }
    const kv_device_plugin_t *plugin = dlsym(library, KV_PLUGIN_SYMBOL);
    if (plugin == NULL) {
        dlclose(library);
        return kv_fail(error, KV_REFUSED, "%s is no plug-in of Kvist", file);
    }
    kv_status_t status = check_build(plugin, file, error);
    if (status != KV_OK) {
        dlclose(library);
        return status;
    }
    return plugin->open(number, device_out, error);
}

/* What its plug-in is compiled for (cmake/Cuda.cmake). */
static bool stand_in_runs(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

kv_status_t kv_device_open(const char *name, uint32_t thread_count, kv_device_t **device_out,
    kv_error_t *passed_over_out, kv_error_t *error)
{
    name_kind_t kind;
    uint32_t number;
    kv_error_t unheard, *cause = passed_over_out != NULL ? passed_over_out : &unheard;
    *cause = (kv_error_t){.status = KV_OK};
    kv_status_t status = read_name(meant(name), &kind, &number, error);
    if (status != KV_OK) {
        return status;
    }
    if (kind == NAME_SIMT) {
        if (!stand_in_runs()) {
            return kv_fail(
                error, KV_MISSING, "the device simt needs a processor with AVX2 and FMA; use cpu");
        }
        return open_from("libkvist-simt.so", 0, device_out, error);
    }
    if (kind == NAME_CUDA) {
        return open_from("libkvist-cuda.so", number, device_out, error);
    }
    if (kind == NAME_AUTO) {
        status = open_from("libkvist-cuda.so", 0, device_out, cause);
        if (status == KV_OK) {
            return KV_OK;
        }
        if (status != KV_MISSING) {
            kv_log_warn("kernels", "gpu not used, computing on the cpu cause %s", cause->text);
        }
    }
    return kv_device_cpu_open(thread_count, device_out, error);
}
