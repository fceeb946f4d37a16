#include "kvstore/crypt/key_file.h"

#include "base/bytes.h"
#include "kvstore/disk/segment.h"
#include "kvstore/kvist.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static const char HEAD[] = "kvist-key 1\n";
enum {
    HEAD_BYTES = sizeof HEAD - 1,
    LINE_BYTES = 2 * KV_SECRET_BYTES + 1,
    FILE_BYTES_MAX = HEAD_BYTES + KV_MASTERS_MAX * LINE_BYTES,
    PATH_BYTES = KV_FOLDER_BYTES + 32,
};

/* ---- reading ---- */

static kv_status_t parse(
    const char *path, char *text, size_t bytes, kv_masters_t *masters_out, kv_error_t *error)
{
    if (bytes < HEAD_BYTES || memcmp(text, HEAD, HEAD_BYTES) != 0) {
        return kv_fail(error, KV_INVALID,
            "key_file %s is no key file: one begins with `kvist-key 1`, and is made by `kvist keys "
            "new`",
            path);
    }
    size_t at = HEAD_BYTES;
    for (; at < bytes && masters_out->count < KV_MASTERS_MAX; masters_out->count++) {
        bool whole = bytes - at >= LINE_BYTES && text[at + LINE_BYTES - 1] == '\n';
        text[at + LINE_BYTES - 1] = '\0';
        if (!whole || kv_hex_decode(text + at, masters_out->keys[masters_out->count].bytes,
                          KV_SECRET_BYTES) != KV_OK) {
            return kv_fail(error, KV_INVALID,
                "key_file %s: line %u is not %d hexadecimal digits: the file was cut off or "
                "changed, restore it from a copy",
                path, masters_out->count + 2, 2 * KV_SECRET_BYTES);
        }
        at += LINE_BYTES;
    }
    if (masters_out->count == 0 || at < bytes) {
        return kv_fail(error, KV_INVALID, "key_file %s has %s: it must have 1 to %d", path,
            at < bytes ? "more keys" : "no key", KV_MASTERS_MAX);
    }
    return KV_OK;
}

kv_status_t kv_key_file_read(
    kv_files_t *files, const char *path, kv_masters_t *masters_out, kv_error_t *error)
{
    char text[FILE_BYTES_MAX + LINE_BYTES];
    kv_masters_t masters = {.count = 0};
    if (strlen(path) >= KV_FOLDER_BYTES) {
        return kv_fail(error, KV_INVALID, "key_file is longer than %d bytes", KV_FOLDER_BYTES - 1);
    }
    int file = files->ops->open(files, path, KV_FILES_READ);
    if (file == -ENOENT) {
        return kv_fail(error, KV_MISSING,
            "key_file %s does not exist: restore it from a copy; for a new store `kvist keys new "
            "%s` makes one",
            path, path);
    }
    if (file < 0) {
        return kv_fail_errno(error, -file, "key_file %s cannot be read", path);
    }
    int mode = files->ops->mode(files, file);
    int64_t got = files->ops->read(files, file, text, FILE_BYTES_MAX + 1, 0);
    files->ops->close(files, file);
    kv_status_t status;
    if (mode < 0 || got < 0) {
        status = kv_fail_errno(error, (int)(mode < 0 ? -mode : -got), "key_file %s", path);
    } else if ((mode & 077) != 0) {
        status = kv_fail(error, KV_REFUSED,
            "key_file %s: mode %03o lets others read it: chmod 600 %s", path, (unsigned)mode, path);
    } else {
        status = parse(path, text, (size_t)got, &masters, error);
    }
    if (status == KV_OK) {
        *masters_out = masters;
    }
    kv_wipe(text, sizeof text);
    kv_wipe(&masters, sizeof masters);
    return status;
}

/* ---- making ---- */

static kv_status_t sync_folder_of(const char *path, kv_error_t *error)
{
    char folder[PATH_BYTES] = ".";
    const char *slash = strrchr(path, '/');
    if (slash != NULL) {
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    }
    kv_files_t *files = kv_files_posix();
    int synced = files->ops->sync_folder(files, folder);
    return synced == 0 ? KV_OK : kv_fail_errno(error, -synced, "cannot sync the folder %s", folder);
}

static kv_status_t write_new(const char *path, const kv_masters_t *masters, kv_error_t *error)
{
    char text[FILE_BYTES_MAX + 1];
    memcpy(text, HEAD, HEAD_BYTES);
    size_t bytes = HEAD_BYTES;
    for (uint32_t i = 0; i < masters->count; i++, bytes += LINE_BYTES) {
        kv_hex_encode(masters->keys[i].bytes, KV_SECRET_BYTES, text + bytes);
        text[bytes + LINE_BYTES - 1] = '\n';
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int code = fd < 0 ? errno : 0;
    if (fd >= 0) {
        kv_files_t *files = kv_files_posix();
        int64_t result = files->ops->write(files, fd, text, bytes, 0);
        result = result < 0 ? result : files->ops->sync(files, fd);
        code = result < 0 ? (int)-result : 0;
        close(fd);
        if (code != 0) {
            unlink(path);
        }
    }
    kv_wipe(text, sizeof text);
    if (code == EEXIST) {
        return kv_fail(error, KV_REFUSED, "%s is there already: it is left as it is", path);
    }
    return code == 0 ? KV_OK : kv_fail_errno(error, code, "cannot write %s", path);
}

static kv_status_t check_path(const char *path, kv_error_t *error)
{
    if (strlen(path) >= KV_FOLDER_BYTES) {
        return kv_fail(error, KV_INVALID, "the path is longer than %d bytes", KV_FOLDER_BYTES - 1);
    }
    return kv_cipher_check(error);
}

static kv_status_t add_random_key(kv_masters_t *masters, kv_error_t *error)
{
    return kv_random(masters->keys[0].bytes, KV_SECRET_BYTES) == KV_OK
               ? KV_OK
               : kv_fail(error, KV_IO, "no random bytes are to be had");
}

kv_status_t kvist_key_file_new(const char *path, kv_error_t *error)
{
    kv_masters_t masters = {.count = 1};
    kv_status_t status = check_path(path, error);
    if (status == KV_OK) {
        status = add_random_key(&masters, error);
    }
    if (status == KV_OK) {
        status = write_new(path, &masters, error);
    }
    if (status == KV_OK) {
        status = sync_folder_of(path, error);
    }
    kv_wipe(&masters, sizeof masters);
    return status;
}

kv_status_t kvist_key_file_rotate(const char *path, kv_error_t *error)
{
    kv_masters_t masters = {.count = 0};
    char temporary[PATH_BYTES];
    kv_status_t status = check_path(path, error);
    if (status == KV_OK) {
        status = kv_key_file_read(kv_files_posix(), path, &masters, error);
    }
    if (status == KV_OK && masters.count == KV_MASTERS_MAX) {
        status = kv_fail(error, KV_REFUSED,
            "%s has %d keys: start every store that uses it, then delete all lines after the first "
            "key",
            path, KV_MASTERS_MAX);
    }
    if (status == KV_OK) {
        memmove(&masters.keys[1], &masters.keys[0], masters.count++ * sizeof masters.keys[0]);
        status = add_random_key(&masters, error);
    }
    if (status == KV_OK) {
        snprintf(temporary, sizeof temporary, "%s.new", path);
        status = write_new(temporary, &masters, error);
    }
    if (status == KV_OK && rename(temporary, path) != 0) {
        status = kv_fail_errno(error, errno, "cannot rename %s to %s", temporary, path);
        unlink(temporary);
    }
    if (status == KV_OK) {
        status = sync_folder_of(path, error);
    }
    kv_wipe(&masters, sizeof masters);
    return status;
}
