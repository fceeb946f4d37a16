#include "kvstore/identity.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "kvstore/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* OpenSSL's low-level interface, which it calls deprecated, in this file only: a digest context
 * costs more than the hash itself for a message as short as a block's, and a long prompt has
 * thousands of them. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>

static const char NAMESPACE_LABEL[] = "kvist.namespace.1";
enum {
    KEY_VERSION = 1,
    HEAD_BYTES = 40,        /* of a key's message: version, parent, token_count */
    SHORT_TOKENS_MAX = 128, /* larger blocks are hashed piece by piece */
    EXTRA_BYTES_MAX = 4 + KVIST_KEY_BYTES,
    PADDING_BYTES_MIN = 9, /* SHA-256's: a mark and the length */
    READ_BYTES = 1 << 20,
};

/* A length (u64) and the bytes: no two lists of fields have one encoding. */
static void hash_field(SHA256_CTX *context, const void *bytes, size_t count)
{
    uint8_t length[8];
    kv_put_u64(length, count);
    SHA256_Update(context, length, sizeof length);
    SHA256_Update(context, bytes, count);
}

kvist_key_t kvist_namespace(const kvist_namespace_params_t *params)
{
    uint8_t layout[KV_LAYOUT_ENCODED_BYTES_MAX], dtype[4], codec_class[4];
    size_t layout_bytes = kv_layout_encode(params->layout, layout);
    kv_put_u32(dtype, (uint32_t)params->dtype);
    kv_put_u32(codec_class, (uint32_t)params->codec_class);
    const char *adapter = params->adapter != NULL ? params->adapter : "";

    SHA256_CTX context;
    kvist_key_t key;
    SHA256_Init(&context);
    hash_field(&context, NAMESPACE_LABEL, sizeof NAMESPACE_LABEL - 1);
    hash_field(&context, params->model.bytes, sizeof params->model.bytes);
    hash_field(&context, layout, layout_bytes);
    hash_field(&context, dtype, sizeof dtype);
    hash_field(&context, codec_class, sizeof codec_class);
    hash_field(&context, params->salt, params->salt_bytes);
    hash_field(&context, adapter, strlen(adapter));
    SHA256_Final(key.bytes, &context);
    return key;
}

/* A short message, which ends in room for the padding, in one call: its padding is written here and
 * the state read from the context, which spares the three calls that collect, pad and serialise. */
static kvist_key_t digest_short(uint8_t *message, size_t bytes)
{
    size_t padded_bytes = kv_round_up(bytes + PADDING_BYTES_MIN, SHA256_CBLOCK);
    memset(message + bytes, 0, padded_bytes - bytes);
    message[bytes] = 0x80;
    for (int i = 0; i < 8; i++) { /* the length in bits */
        message[padded_bytes - 1 - (size_t)i] = (uint8_t)((uint64_t)bytes * 8 >> 8 * i);
    }
    SHA256_CTX context;
    kvist_key_t key;
    SHA256_Init(&context);
    SHA256_Update(&context, message, padded_bytes);
    for (size_t i = 0; i < KVIST_KEY_BYTES; i += 4) { /* big-endian, as SHA-256 is */
        uint32_t word = context.h[i / 4];
        key.bytes[i] = (uint8_t)(word >> 24);
        key.bytes[i + 1] = (uint8_t)(word >> 16);
        key.bytes[i + 2] = (uint8_t)(word >> 8);
        key.bytes[i + 3] = (uint8_t)word;
    }
    return key;
}

/* The end of a key's message: the length of the extra key (NULL, or zeros: none), and that. Returns
 * how long it is. */
static size_t put_extra(const void *extra, uint8_t *at)
{
    static const uint8_t NONE[KVIST_KEY_BYTES];
    bool has = extra != NULL && memcmp(extra, NONE, sizeof NONE) != 0;
    kv_put_u32(at, has ? KVIST_KEY_BYTES : 0);
    if (has) {
        memcpy(at + 4, extra, KVIST_KEY_BYTES);
    }
    return has ? EXTRA_BYTES_MAX : 4;
}

static kvist_key_t digest_long(
    const uint8_t *head, const uint32_t *tokens, const void *extra, uint32_t token_count)
{
    SHA256_CTX context;
    kvist_key_t key;
    uint8_t word[4], end[EXTRA_BYTES_MAX];
    SHA256_Init(&context);
    SHA256_Update(&context, head, HEAD_BYTES);
    for (uint32_t i = 0; i < token_count; i++) {
        kv_put_u32(word, tokens[i]);
        SHA256_Update(&context, word, sizeof word);
    }
    SHA256_Update(&context, end, put_extra(extra, end));
    SHA256_Final(key.bytes, &context);
    return key;
}

static kvist_key_t block_key(
    const kvist_key_t *parent, const uint32_t *tokens, const void *extra, uint32_t token_count)
{
    uint8_t message[HEAD_BYTES + SHORT_TOKENS_MAX * 4 + EXTRA_BYTES_MAX + PADDING_BYTES_MIN +
                    SHA256_CBLOCK];
    kv_put_u32(message, KEY_VERSION);
    memcpy(message + 4, parent->bytes, KVIST_KEY_BYTES);
    kv_put_u32(message + 36, token_count);
    if (token_count > SHORT_TOKENS_MAX) {
        return digest_long(message, tokens, extra, token_count);
    }
    uint8_t *at = message + HEAD_BYTES;
    for (uint32_t i = 0; i < token_count; i++) {
        kv_put_u32(at + (size_t)4 * i, tokens[i]);
    }
    at += (size_t)4 * token_count;
    at += put_extra(extra, at);
    return digest_short(message, (size_t)(at - message));
}

kvist_key_t kv_identity_block_key(
    const kvist_key_t *parent, const uint32_t *words, uint32_t block_tokens)
{
    return block_key(parent, words, words + block_tokens, block_tokens);
}

void kv_identity_words(const uint32_t *tokens, const kvist_key_t *extras, size_t block_count,
    uint32_t block_tokens, uint32_t *words_out)
{
    for (size_t block = 0; block < block_count; block++) {
        uint32_t *words = words_out + block * kv_identity_word_count(block_tokens);
        memcpy(words, tokens + block * block_tokens, block_tokens * sizeof *words);
        if (extras != NULL) {
            memcpy(words + block_tokens, extras[block].bytes, KVIST_KEY_BYTES);
        } else {
            memset(words + block_tokens, 0, KVIST_KEY_BYTES);
        }
    }
}

void kv_identity_keys(const kvist_key_t *parent, const uint32_t *words, size_t block_count,
    uint32_t block_tokens, kvist_key_t *keys_out)
{
    for (size_t block = 0; block < block_count; block++) {
        const uint32_t *of = words + block * kv_identity_word_count(block_tokens);
        keys_out[block] = kv_identity_block_key(parent, of, block_tokens);
        parent = &keys_out[block];
    }
}

void kvist_keys(const kvist_key_t *name_space, const uint32_t *tokens, const kvist_key_t *extras,
    size_t token_count, uint32_t block_tokens, kvist_key_t *keys_out)
{
    const kvist_key_t *parent = name_space;
    for (size_t block = 0; block < token_count / block_tokens; block++) {
        keys_out[block] = block_key(parent, tokens + block * block_tokens,
            extras != NULL ? &extras[block] : NULL, block_tokens);
        parent = &keys_out[block];
    }
}

kvist_key_t kv_identity_digest(const void *bytes, size_t count)
{
    kvist_key_t key;
    SHA256(bytes, count, key.bytes);
    return key;
}

/* ---- fingerprints ---- */

/* What tells one state of a file from another without reading it. */
static void describe_file(const struct stat *status, char *text_out, size_t bytes)
{
    snprintf(text_out, bytes, "kvist-fingerprint 1 %ju %ju %jd %jd.%09ld",
        (uintmax_t)status->st_dev, (uintmax_t)status->st_ino, (intmax_t)status->st_size,
        (intmax_t)status->st_mtim.tv_sec, status->st_mtim.tv_nsec);
}

static void cache_path(
    const char *folder, const struct stat *status, char *path_out, size_t path_bytes)
{
    snprintf(path_out, path_bytes, "%s/fingerprint-%ju-%ju", folder, (uintmax_t)status->st_dev,
        (uintmax_t)status->st_ino);
}

/* The remembered digest, if it is of this very state of the file. A damaged note is no note. */
static bool recall(const char *path, const char *description, kvist_key_t *key_out)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    char line[256], digest[256];
    bool same =
        fgets(line, sizeof line, file) != NULL && fgets(digest, sizeof digest, file) != NULL;
    fclose(file);
    if (!same) {
        return false;
    }
    line[strcspn(line, "\n")] = '\0';
    digest[strcspn(digest, "\n")] = '\0';
    /* The digest of the digest's text guards the note itself. */
    char *check = strchr(digest, ' ');
    if (check == NULL) {
        return false;
    }
    *check++ = '\0';
    kvist_key_t guard = kv_identity_digest(digest, strlen(digest));
    char guard_text[17];
    kv_hex_encode(guard.bytes, 8, guard_text);
    return strcmp(line, description) == 0 && strcmp(check, guard_text) == 0 &&
           kv_hex_decode(digest, key_out->bytes, KVIST_KEY_BYTES) == KV_OK;
}

/* A note that cannot be written costs a second reading later, nothing else. */
static void remember(const char *path, const char *description, const kvist_key_t *key)
{
    char digest[2 * KVIST_KEY_BYTES + 1], guard_text[17], temporary[4200];
    kv_hex_encode(key->bytes, KVIST_KEY_BYTES, digest);
    kvist_key_t guard = kv_identity_digest(digest, strlen(digest));
    kv_hex_encode(guard.bytes, 8, guard_text);
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "we");
    if (file == NULL) {
        return;
    }
    bool written = fprintf(file, "%s\n%s %s\n", description, digest, guard_text) > 0;
    written = fclose(file) == 0 && written;
    if (!written || rename(temporary, path) != 0) {
        unlink(temporary);
    }
}

static kv_status_t digest_file(int fd, const char *path, kvist_key_t *key_out, kv_error_t *error)
{
    SHA256_CTX context;
    SHA256_Init(&context);
    char *buffer = kv_allocate(READ_BYTES);
    ssize_t got;
    while ((got = read(fd, buffer, READ_BYTES)) != 0) {
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            int reason = errno;
            free(buffer);
            return kv_fail_errno(error, reason, "cannot read %s", path);
        }
        SHA256_Update(&context, buffer, (size_t)got);
    }
    free(buffer);
    SHA256_Final(key_out->bytes, &context);
    return KV_OK;
}

kv_status_t kvist_fingerprint_file(
    const char *path, const char *cache_folder, kvist_key_t *key_out, kv_error_t *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return kv_fail_errno(error, errno, "cannot open %s", path);
    }
    struct stat before, after;
    if (fstat(fd, &before) != 0 || !S_ISREG(before.st_mode)) {
        close(fd);
        return kv_fail(error, KV_INVALID, "%s is not a regular file", path);
    }
    char description[256], note[4160], description_after[256];
    describe_file(&before, description, sizeof description);
    cache_path(cache_folder != NULL ? cache_folder : "", &before, note, sizeof note);
    kvist_key_t key;
    if (cache_folder != NULL && recall(note, description, &key)) {
        close(fd);
        *key_out = key;
        return KV_OK;
    }
    kv_status_t status = digest_file(fd, path, &key, error);
    bool unchanged = status == KV_OK && fstat(fd, &after) == 0;
    close(fd);
    if (status != KV_OK) {
        return status;
    }
    if (unchanged) {
        describe_file(&after, description_after, sizeof description_after);
        unchanged = strcmp(description, description_after) == 0;
    }
    if (!unchanged) {
        return kv_fail(error, KV_BUSY, "%s changed while it was read", path);
    }
    if (cache_folder != NULL) {
        remember(note, description, &key);
    }
    *key_out = key;
    return KV_OK;
}
