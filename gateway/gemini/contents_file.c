#include "gateway/gemini/contents_file.h"

#include "base/check.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD "kvist-content 1 "

enum {
    HEAD_BYTES = sizeof HEAD - 1 + 16 + 1, /* with the checksum and the line's end */
    CONTENT_BYTES_MAX = 16 << 10,
    PATH_BYTES = 4096 + 64,
};

struct kv_contents_folder {
    char *path;
    uint64_t document_bytes_max;
    pthread_mutex_t mutex; /* guards the making of the folder */
    int lock;              /* -1: the folder is not there yet */
    int descriptor;        /* of the folder itself; with lock */
};

static void path_of(
    const kv_contents_folder_t *folder, const char *id, const char *ending, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%s%s", folder->path, id, ending);
}

/* ---- bytes ---- */

static bool write_all(int fd, const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t written = write(fd, bytes, count);
        if (written < 0 && errno != EINTR) {
            return false;
        }
        bytes += written > 0 ? written : 0;
        count -= written > 0 ? (size_t)written : 0;
    }
    return true;
}

static kv_status_t write_file(const char *path, const char *bytes, size_t count, kv_error_t *error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool good = fd >= 0 && write_all(fd, bytes, count) && fsync(fd) == 0;
    int code = errno;
    if (fd >= 0) {
        close(fd);
    }
    return good ? KV_OK : kv_fail_errno(error, code, "cannot write %s", path);
}

/* The whole file, terminated; NULL where it cannot be read or is larger. What is no file is not
 * waited for. */
static char *read_file(const char *path, uint64_t bytes_max, size_t *bytes_out)
{
    struct stat about;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    char *bytes = NULL;
    if (fd >= 0 && fstat(fd, &about) == 0 && S_ISREG(about.st_mode) &&
        (uint64_t)about.st_size <= bytes_max) {
        size_t size = (size_t)about.st_size, have = 0;
        ssize_t count = 1;
        bytes = kv_allocate(size + 1);
        while (have < size && count > 0) {
            count = read(fd, bytes + have, size - have);
            have += count > 0 ? (size_t)count : 0;
        }
        *bytes_out = have;
    }
    if (fd >= 0) {
        close(fd);
    }
    return bytes;
}

static bool is_whole(const char *bytes, size_t count, uint64_t checksum)
{
    return kv_checksum(bytes, count) == checksum;
}

/* ---- the form of ID.content ---- */

/* Times and checksums are texts: JSON's integers have a sign. */
static json_t *number_text(uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    return json_string(text);
}

static char *encode(const kv_content_record_t *record, size_t *bytes_out)
{
    const kv_content_t *content = &record->content;
    json_t *document = json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o}", "tenant", record->tenant,
        "model", content->model, "display_name", content->display_name, "created_unix_ns",
        number_text(content->created_unix_ns), "updated_unix_ns",
        number_text(content->updated_unix_ns), "expires_unix_ns",
        number_text(content->expires_unix_ns), "tokens", number_text(content->token_count),
        "document_bytes", number_text(record->document_bytes), "document_checksum",
        number_text(record->document_checksum));
    char *text = json_dumps(document, JSON_COMPACT), *whole;
    KV_CHECK(text != NULL);
    int bytes = asprintf(&whole, HEAD "%016" PRIx64 "\n%s", kv_checksum(text, strlen(text)), text);
    KV_CHECK(bytes > 0);
    json_decref(document);
    free(text);
    *bytes_out = (size_t)bytes;
    return whole;
}

static bool take_number(const json_t *document, const char *name, uint64_t *value_out)
{
    const char *text = json_string_value(json_object_get(document, name));
    char *end = NULL;
    *value_out = text != NULL ? strtoull(text, &end, 10) : 0;
    return text != NULL && end != text && *end == '\0';
}

static bool take_text(const json_t *document, const char *name, char *text_out, size_t bytes)
{
    const char *text = json_string_value(json_object_get(document, name));
    bool good = text != NULL && strlen(text) < bytes;
    snprintf(text_out, bytes, "%s", good ? text : "");
    return good;
}

static bool take_fields(const json_t *document, kv_content_record_t *record)
{
    kv_content_t *content = &record->content;
    uint64_t tokens, bytes;
    bool good =
        take_text(document, "tenant", record->tenant, sizeof record->tenant) &&
        take_text(document, "model", content->model, sizeof content->model) &&
        take_text(document, "display_name", content->display_name, sizeof content->display_name) &&
        take_number(document, "created_unix_ns", &content->created_unix_ns) &&
        take_number(document, "updated_unix_ns", &content->updated_unix_ns) &&
        take_number(document, "expires_unix_ns", &content->expires_unix_ns) &&
        take_number(document, "tokens", &tokens) &&
        take_number(document, "document_bytes", &bytes) &&
        take_number(document, "document_checksum", &record->document_checksum) &&
        tokens <= UINT32_MAX;
    content->token_count = good ? (uint32_t)tokens : 0;
    record->document_bytes = good ? bytes : 0;
    return good;
}

static bool decode(const char *bytes, size_t count, kv_content_record_t *record)
{
    if (count <= HEAD_BYTES || memcmp(bytes, HEAD, sizeof HEAD - 1) != 0 ||
        bytes[HEAD_BYTES - 1] != '\n' ||
        !is_whole(
            bytes + HEAD_BYTES, count - HEAD_BYTES, strtoull(bytes + sizeof HEAD - 1, NULL, 16))) {
        return false;
    }
    json_t *document = json_loadb(bytes + HEAD_BYTES, count - HEAD_BYTES, 0, NULL);
    bool good = take_fields(document, record);
    json_decref(document);
    return good;
}

/* ---- what a folder holds ---- */

/* The name is an id and this ending. */
static bool is_named(const char *name, const char *ending)
{
    return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789") == KV_CONTENT_ID_BYTES &&
           strcmp(name + KV_CONTENT_ID_BYTES, ending) == 0;
}

static bool read_record(
    const kv_contents_folder_t *folder, const char *id, kv_content_record_t *record_out)
{
    char path[PATH_BYTES];
    size_t bytes = 0, document_bytes = 0;
    kv_content_record_t record = {0};
    path_of(folder, id, ".content", path);
    char *text = read_file(path, CONTENT_BYTES_MAX, &bytes);
    bool good = text != NULL && decode(text, bytes, &record);
    free(text);
    if (!good) {
        return false;
    }
    path_of(folder, id, ".document", path);
    record.document = read_file(path, folder->document_bytes_max, &document_bytes);
    if (record.document == NULL || document_bytes != record.document_bytes ||
        !is_whole(record.document, document_bytes, record.document_checksum)) {
        free(record.document);
        return false;
    }
    snprintf(record.content.id, sizeof record.content.id, "%s", id);
    *record_out = record;
    return true;
}

/* The content first: a document alone is nobody's. */
static bool unlink_both(const kv_contents_folder_t *folder, const char *id)
{
    static const char *const ENDINGS[] = {".content", ".document"};
    char path[PATH_BYTES];
    for (int i = 0; i < 2; i++) {
        path_of(folder, id, ENDINGS[i], path);
        if (unlink(path) != 0 && errno != ENOENT) {
            return false;
        }
    }
    return true;
}

static void read_one(
    kv_contents_folder_t *folder, const char *id, kv_content_found_t found, void *context)
{
    kv_content_record_t record;
    if (read_record(folder, id, &record)) {
        found(context, &record);
        return;
    }
    kv_log_warn("gateway", "cached content %s in %s is damaged: dropped", id, folder->path);
    unlink_both(folder, id);
}

/* Two passes: a document is an orphan only where no content of its id was found. */
static void read_all(kv_contents_folder_t *folder, kv_content_found_t found, void *context)
{
    static const char *const ENDINGS[] = {".content", ".document", ".new"};
    for (int i = 0; i < 3; i++) {
        DIR *files = opendir(folder->path);
        struct dirent *file;
        char id[KV_CONTENT_ID_BYTES + 1], path[PATH_BYTES];
        while (files != NULL && (file = readdir(files)) != NULL) {
            if (!is_named(file->d_name, ENDINGS[i])) {
                continue;
            }
            snprintf(id, sizeof id, "%.*s", KV_CONTENT_ID_BYTES, file->d_name);
            path_of(folder, id, ".content", path);
            if (i == 0) {
                read_one(folder, id, found, context);
            } else if (i == 2 || access(path, F_OK) != 0) {
                path_of(folder, id, ENDINGS[i], path);
                unlink(path);
            }
        }
        if (files != NULL) {
            closedir(files);
        }
    }
}

/* ---- open and close ---- */

static kv_status_t lock_folder(kv_contents_folder_t *folder, kv_error_t *error)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/lock", folder->path);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0) {
        return kv_fail_errno(error, errno, "gateway.contents_directory: cannot open %s", path);
    }
    if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
        kv_status_t status =
            errno != EWOULDBLOCK
                ? kv_fail_errno(error, errno, "gateway.contents_directory: cannot lock %s", path)
                : kv_fail(error, KV_REFUSED,
                      "gateway.contents_directory: another gateway uses %s: name another folder",
                      folder->path);
        close(lock);
        return status;
    }
    folder->descriptor = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->descriptor < 0) {
        kv_status_t status =
            kv_fail_errno(error, errno, "gateway.contents_directory: cannot open %s", folder->path);
        close(lock);
        return status;
    }
    folder->lock = lock;
    return KV_OK;
}

/* That the folder at this path is there outlives a power cut. */
static bool sync_parent(const char *path)
{
    char parent[PATH_BYTES];
    const char *slash = strrchr(path, '/');
    snprintf(parent, sizeof parent, "%.*s", slash > path ? (int)(slash - path) : 1,
        slash != NULL ? path : ".");
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return good;
}

static kv_status_t make_folders(const char *path, kv_error_t *error)
{
    char part[PATH_BYTES];
    size_t bytes = strlen(path);
    for (size_t i = 1; i <= bytes; i++) {
        if (path[i] != '/' && path[i] != '\0') {
            continue;
        }
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        bool made = mkdir(part, 0700) == 0;
        if (made ? !sync_parent(part) : errno != EEXIST) {
            return kv_fail_errno(error, errno, "gateway.contents_directory: cannot make %s", part);
        }
    }
    return KV_OK;
}

static kv_status_t make_usable(kv_contents_folder_t *folder, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    pthread_mutex_lock(&folder->mutex);
    if (folder->lock < 0) {
        status = make_folders(folder->path, error);
        if (status == KV_OK) {
            status = lock_folder(folder, error);
        }
    }
    pthread_mutex_unlock(&folder->mutex);
    return status;
}

kv_status_t kv_contents_folder_open(const char *path, uint64_t document_bytes_max,
    kv_content_found_t found, void *context, kv_contents_folder_t **folder_out, kv_error_t *error)
{
    kv_contents_folder_t *folder = kv_allocate(sizeof *folder);
    *folder = (kv_contents_folder_t){.path = kv_duplicate_string(path),
        .document_bytes_max = document_bytes_max,
        .lock = -1,
        .descriptor = -1};
    pthread_mutex_init(&folder->mutex, NULL);
    if (access(path, F_OK) == 0) {
        kv_status_t status = lock_folder(folder, error);
        if (status != KV_OK) {
            kv_contents_folder_close(folder);
            return status;
        }
        read_all(folder, found, context);
    }
    *folder_out = folder;
    return KV_OK;
}

void kv_contents_folder_close(kv_contents_folder_t *folder)
{
    if (folder == NULL) {
        return;
    }
    if (folder->lock >= 0) {
        close(folder->descriptor);
        close(folder->lock);
    }
    pthread_mutex_destroy(&folder->mutex);
    free(folder->path);
    free(folder);
}

/* ---- writing ---- */

static kv_status_t sync_folder(const kv_contents_folder_t *folder, kv_error_t *error)
{
    return fsync(folder->descriptor) == 0
               ? KV_OK
               : kv_fail_errno(error, errno, "cannot sync %s", folder->path);
}

kv_status_t kv_contents_folder_write_document(
    kv_contents_folder_t *folder, const kv_content_record_t *record, kv_error_t *error)
{
    char path[PATH_BYTES];
    kv_status_t status = make_usable(folder, error);
    if (status != KV_OK) {
        return status;
    }
    path_of(folder, record->content.id, ".document", path);
    status = write_file(path, record->document, record->document_bytes, error);
    if (status != KV_OK) {
        unlink(path);
    }
    return status;
}

kv_status_t kv_contents_folder_write_content(
    kv_contents_folder_t *folder, const kv_content_record_t *record, kv_error_t *error)
{
    char path[PATH_BYTES], made[PATH_BYTES];
    size_t bytes;
    char *text = encode(record, &bytes);
    path_of(folder, record->content.id, ".new", made);
    path_of(folder, record->content.id, ".content", path);
    kv_status_t status = write_file(made, text, bytes, error);
    free(text);
    if (status == KV_OK && rename(made, path) != 0) {
        status = kv_fail_errno(error, errno, "cannot rename %s to %s", made, path);
    } else if (status == KV_OK) {
        return sync_folder(folder, error);
    }
    if (status != KV_OK) {
        unlink(made);
    }
    return status;
}

kv_status_t kv_contents_folder_remove(kv_contents_folder_t *folder,
    const char (*ids)[KV_CONTENT_ID_BYTES + 1], size_t count, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (size_t i = 0; i < count; i++) {
        if (!unlink_both(folder, ids[i]) && status == KV_OK) {
            status = kv_fail_errno(
                error, errno, "cannot remove cached content %s in %s", ids[i], folder->path);
        }
    }
    bool there = folder->descriptor >= 0; /* else nothing was ever written */
    return status == KV_OK && there ? sync_folder(folder, error) : status;
}
