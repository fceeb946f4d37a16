#include "kvstore/crypt/keyring.h"

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/crypt/key_file.h"
#include "kvstore/disk/record.h"
#include "kvstore/disk/segment.h"
#include "kvstore/objects/names.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    SECTOR_BYTES = 512,
    CHUNK_SECTORS = 64, /* the file grows by these: so a part of one is a file that was cut off */
    CHUNK_BYTES = CHUNK_SECTORS * SECTOR_BYTES,
    RING_ID_BYTES = 16,
    CHECK_BYTES = 16,
    PATH_BYTES = KV_FOLDER_BYTES + 64,
    NOTE_BYTES_MAX = 256, /* of the folder's file `keys`: in one sector */
    VERSION = 1,
};
_Static_assert((KV_KEYS_MAX + 1) % CHUNK_SECTORS == 0, "a full file is whole chunks");

/* "KVISTRNG", "KVISTTEN" */
#define RING_MAGIC 0x474e52545349564bull
#define ENTRY_MAGIC 0x4e4554545349564bull

/* Offsets in a sector: of the ring, which is the first, and of a tenant's. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_SLOT = 12,
    AT_ID = 16, /* the ring's, or the secret's */
    AT_CHECK = 32,
    AT_TENANT = 32,
    AT_WRAPPED = 64,
    AT_TAG = 96,
    AT_CHECKSUM = 504,
};

typedef struct {
    uint8_t id[KV_KEY_ID_BYTES];
    kv_secret_t secret;
    bool taken, retired; /* taken: the sector holds it, or may */
    uint16_t tenant;     /* number of its name */
} entry_t;

/* What must not be in a core dump. */
typedef struct {
    kv_masters_t masters;
    entry_t entries[KV_KEYS_MAX];
} secrets_t;

struct kv_keyring {
    kv_files_t *files;
    int file;
    uint8_t id[RING_ID_BYTES];
    char path[PATH_BYTES];
    pthread_mutex_t making;  /* of the file */
    pthread_mutex_t looking; /* of all that follows */
    secrets_t *secrets;
    uint32_t slot_count; /* the file has; those from it on are free */
    kv_names_t names;
    uint32_t *slots; /* [KV_KEYS_MAX] by number of name: 1 + the slot of its key; 0: it has none */
};

/* ---- sectors ---- */

static void end_sector(uint8_t *sector)
{
    kv_put_u64(sector + AT_CHECKSUM, kv_checksum(sector, AT_CHECKSUM));
}

static bool sector_is(const uint8_t *sector, uint64_t magic)
{
    return kv_get_u64(sector + AT_MAGIC) == magic && kv_get_u32(sector + AT_VERSION) == VERSION &&
           kv_get_u64(sector + AT_CHECKSUM) == kv_checksum(sector, AT_CHECKSUM);
}

static bool is_free(const uint8_t *sector)
{
    static const uint8_t ZEROS[SECTOR_BYTES];
    return memcmp(sector, ZEROS, SECTOR_BYTES) == 0;
}

/* By which a master key is known to be the one that a ring is wrapped with. */
static void check_of(const kv_secret_t *master, const uint8_t *ring_id, uint8_t *check_out)
{
    kv_secret_t check = kv_secret_derive(master, ring_id, RING_ID_BYTES, "kvist check 1");
    memcpy(check_out, check.bytes, CHECK_BYTES);
}

/* The number of the master key that has this check; KV_MASTERS_MAX: none of them. */
static uint32_t find_master(
    const kv_masters_t *masters, const uint8_t *ring_id, const uint8_t *check)
{
    uint8_t own[CHECK_BYTES];
    for (uint32_t i = 0; i < masters->count; i++) {
        check_of(&masters->keys[i], ring_id, own);
        if (kv_bytes_equal(own, check, CHECK_BYTES)) {
            return i;
        }
    }
    return KV_MASTERS_MAX;
}

static kv_cipher_t *wrapping_cipher(const kv_secret_t *master, const uint8_t *sector, bool encrypts)
{
    kv_secret_t key =
        kv_secret_derive(master, sector + AT_ID, KV_KEY_ID_BYTES, "kvist tenant key 1");
    kv_cipher_t *cipher = kv_cipher_create(&key, encrypts);
    kv_wipe(&key, sizeof key);
    return cipher;
}

/* The ring, the slot, the secret's id and its tenant. */
enum { BOUND_BYTES = RING_ID_BYTES + AT_WRAPPED - AT_SLOT };
static kv_associated_t bound_to(
    const kv_keyring_t *ring, const uint8_t *sector, uint8_t bound[BOUND_BYTES])
{
    memcpy(bound, ring->id, RING_ID_BYTES);
    memcpy(bound + RING_ID_BYTES, sector + AT_SLOT, AT_WRAPPED - AT_SLOT);
    return (kv_associated_t){bound, BOUND_BYTES};
}

static void fill_sector(const kv_keyring_t *ring, uint32_t slot, const uint8_t *id,
    const char *tenant, const kv_secret_t *secret, uint8_t *sector)
{
    uint8_t bound[BOUND_BYTES];
    memset(sector, 0, SECTOR_BYTES);
    kv_put_u64(sector + AT_MAGIC, ENTRY_MAGIC);
    kv_put_u32(sector + AT_VERSION, VERSION);
    kv_put_u32(sector + AT_SLOT, slot);
    memcpy(sector + AT_ID, id, KV_KEY_ID_BYTES);
    memcpy(sector + AT_TENANT, tenant, KV_TENANT_BYTES);
    kv_cipher_t *cipher = wrapping_cipher(&ring->secrets->masters.keys[0], sector, true);
    kv_cipher_seal(cipher, 0, bound_to(ring, sector, bound), secret->bytes, KV_SECRET_BYTES,
        sector + AT_WRAPPED, sector + AT_TAG);
    kv_cipher_destroy(cipher);
    end_sector(sector);
}

/* While the master key is replaced, sectors may be wrapped with either. */
static bool unwrap(
    const kv_keyring_t *ring, const uint8_t *sector, kv_secret_t *secret_out, uint32_t *master_out)
{
    uint8_t bound[BOUND_BYTES];
    bool good = false;
    for (uint32_t i = 0; i < ring->secrets->masters.count && !good; i++) {
        kv_cipher_t *cipher = wrapping_cipher(&ring->secrets->masters.keys[i], sector, false);
        good = kv_cipher_open(cipher, 0, bound_to(ring, sector, bound), sector + AT_WRAPPED,
            KV_SECRET_BYTES, sector + AT_TAG, secret_out->bytes);
        kv_cipher_destroy(cipher);
        *master_out = i;
    }
    return good;
}

static uint64_t sector_at(uint32_t slot)
{
    return ((uint64_t)slot + 1) * SECTOR_BYTES;
}

static kv_status_t write_durably(
    const kv_keyring_t *ring, uint64_t at, const uint8_t *sector, kv_error_t *error)
{
    kv_files_t *files = ring->files;
    int64_t result = files->ops->write(files, ring->file, sector, SECTOR_BYTES, at);
    if (result >= 0) {
        result = files->ops->sync(files, ring->file);
    }
    return result >= 0 ? KV_OK : kv_fail_errno(error, (int)-result, "cannot write %s", ring->path);
}

/* ---- the folder's note: which ring, and which key ---- */

typedef struct {
    bool there;
    uint8_t ring_id[RING_ID_BYTES], check[CHECK_BYTES];
} note_t;

static kv_status_t read_note(
    kv_files_t *files, const char *folder, note_t *note_out, kv_error_t *error)
{
    char path[PATH_BYTES], text[NOTE_BYTES_MAX], ring[2 * RING_ID_BYTES + 1];
    char check[2 * CHECK_BYTES + 1];
    *note_out = (note_t){.there = false};
    snprintf(path, sizeof path, "%s/keys", folder);
    int file = files->ops->open(files, path, KV_FILES_READ);
    if (file == -ENOENT) {
        return KV_OK;
    }
    int64_t got = file < 0 ? file : files->ops->read(files, file, text, sizeof text - 1, 0);
    if (file >= 0) {
        files->ops->close(files, file);
    }
    if (got < 0) {
        return kv_fail_errno(error, (int)-got, "cannot read %s", path);
    }
    text[got] = '\0';
    if (text[0] == '\0') { /* it was being made: nothing needed it yet */
        return KV_OK;
    }
    if (sscanf(text, "kvist-keys 1\nring %32[0-9a-f]\ncheck %32[0-9a-f]\n", ring, check) != 2 ||
        kv_hex_decode(ring, note_out->ring_id, RING_ID_BYTES) != KV_OK ||
        kv_hex_decode(check, note_out->check, CHECK_BYTES) != KV_OK) {
        return kv_fail(error, KV_CORRUPT,
            "%s is damaged: it says which keys the blocks there are encrypted with; restore it "
            "from a copy, or use another directory",
            path);
    }
    note_out->there = true;
    return KV_OK;
}

/* In place: what is written again keeps its length. */
static kv_status_t write_note(const kv_keyring_t *ring, const char *folder, kv_error_t *error)
{
    kv_files_t *files = ring->files;
    char path[PATH_BYTES], text[NOTE_BYTES_MAX];
    char id[2 * RING_ID_BYTES + 1], check_text[2 * CHECK_BYTES + 1];
    uint8_t check[CHECK_BYTES];
    check_of(&ring->secrets->masters.keys[0], ring->id, check);
    kv_hex_encode(ring->id, RING_ID_BYTES, id);
    kv_hex_encode(check, CHECK_BYTES, check_text);
    int length = snprintf(text, sizeof text, "kvist-keys 1\nring %s\ncheck %s\n", id, check_text);
    snprintf(path, sizeof path, "%s/keys", folder);
    int file = files->ops->open(files, path, KV_FILES_WRITE | KV_FILES_CREATE);
    int64_t result = file;
    if (file >= 0) {
        result = files->ops->write(files, file, text, (size_t)length, 0);
        result = result < 0 ? result : files->ops->sync(files, file);
        files->ops->close(files, file);
    }
    result = result < 0 ? result : files->ops->sync_folder(files, folder);
    return result >= 0 ? KV_OK : kv_fail_errno(error, (int)-result, "cannot write %s", path);
}

/* ---- opening ---- */

static kv_keyring_t *create(kv_files_t *files, const kv_masters_t *masters, kv_error_t *error)
{
    size_t bytes = sizeof(secrets_t);
    void *memory = mmap(
        NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        kv_fail_errno(error, errno, "no memory for keys");
        return NULL;
    }
    madvise(memory, bytes, MADV_DONTDUMP); /* a help, no promise: nothing depends on it */
    kv_keyring_t *ring = kv_allocate(sizeof *ring);
    *ring = (kv_keyring_t){.files = files, .file = -1, .secrets = memory};
    ring->secrets->masters = *masters;
    pthread_mutex_init(&ring->making, NULL);
    pthread_mutex_init(&ring->looking, NULL);
    kv_names_init(&ring->names, KV_TENANT_BYTES, KV_KEYS_MAX);
    ring->slots = kv_allocate_array(KV_KEYS_MAX, sizeof *ring->slots);
    return ring;
}

void kv_keyring_close(kv_keyring_t *ring)
{
    if (ring == NULL) {
        return;
    }
    if (ring->file >= 0) {
        ring->files->ops->close(ring->files, ring->file);
    }
    kv_wipe(&ring->secrets->masters, sizeof ring->secrets->masters);
    kv_wipe(ring->secrets->entries, ring->slot_count * sizeof ring->secrets->entries[0]);
    munmap(ring->secrets, sizeof *ring->secrets);
    kv_names_destroy(&ring->names);
    pthread_mutex_destroy(&ring->looking);
    pthread_mutex_destroy(&ring->making);
    free(ring->slots);
    free(ring);
}

static kv_status_t open_file(kv_keyring_t *ring, const char *key_file, bool make, kv_error_t *error)
{
    kv_files_t *files = ring->files;
    char id[2 * RING_ID_BYTES + 1];
    kv_hex_encode(ring->id, RING_ID_BYTES, id);
    snprintf(ring->path, sizeof ring->path, "%s.%s", key_file, id);
    ring->file = files->ops->open(files, ring->path, KV_FILES_WRITE | (make ? KV_FILES_CREATE : 0));
    if (ring->file == -ENOENT) {
        return kv_fail(error, KV_MISSING,
            "%s is missing: it holds the keys of this store's blocks; put it back beside the key "
            "file, or use another directory",
            ring->path);
    }
    if (ring->file < 0) {
        return kv_fail_errno(error, -ring->file, "cannot open %s", ring->path);
    }
    int locked = files->ops->lock(files, ring->file);
    if (locked == -EWOULDBLOCK) {
        return kv_fail(error, KV_BUSY,
            "%s is in use by another process: the directory was copied, and each store needs keys "
            "of its own",
            ring->path);
    }
    return locked == 0 ? KV_OK : kv_fail_errno(error, -locked, "cannot lock %s", ring->path);
}

static kv_status_t write_head(kv_keyring_t *ring, kv_error_t *error)
{
    uint8_t sector[SECTOR_BYTES] = {0};
    kv_put_u64(sector + AT_MAGIC, RING_MAGIC);
    kv_put_u32(sector + AT_VERSION, VERSION);
    memcpy(sector + AT_ID, ring->id, RING_ID_BYTES);
    check_of(&ring->secrets->masters.keys[0], ring->id, sector + AT_CHECK);
    end_sector(sector);
    return write_durably(ring, 0, sector, error);
}

static kv_status_t grow(kv_keyring_t *ring, uint64_t bytes, kv_error_t *error)
{
    kv_files_t *files = ring->files;
    int result = files->ops->allocate(files, ring->file, bytes);
    if (result == 0) {
        result = files->ops->sync(files, ring->file);
    }
    if (result != 0) {
        return kv_fail_errno(error, -result, "cannot grow %s", ring->path);
    }
    pthread_mutex_lock(&ring->looking);
    ring->slot_count = (uint32_t)(bytes / SECTOR_BYTES - 1);
    pthread_mutex_unlock(&ring->looking);
    return KV_OK;
}

/* The folder learns of the ring when that is durable: what a crash leaves of an earlier one has no
 * keys and is nobody's. */
static kv_status_t make_ring(
    kv_keyring_t *ring, const char *key_file, const char *folder, kv_error_t *error)
{
    kv_files_t *files = ring->files;
    if (kv_random(ring->id, RING_ID_BYTES) != KV_OK) {
        return kv_fail(error, KV_IO, "no random bytes are to be had");
    }
    kv_status_t status = open_file(ring, key_file, true, error);
    if (status == KV_OK) {
        status = grow(ring, CHUNK_BYTES, error);
    }
    if (status == KV_OK) {
        status = write_head(ring, error);
    }
    if (status == KV_OK) {
        char parent[PATH_BYTES] = ".";
        const char *slash = strrchr(key_file, '/');
        if (slash != NULL) {
            int length = slash == key_file ? 1 : (int)(slash - key_file);
            snprintf(parent, sizeof parent, "%.*s", length, key_file);
        }
        int synced = files->ops->sync_folder(files, parent);
        status = synced == 0 ? KV_OK
                             : kv_fail_errno(error, -synced, "cannot sync the folder %s", parent);
    }
    return status == KV_OK ? write_note(ring, folder, error) : status;
}

static kv_status_t damaged(const kv_keyring_t *ring, const char *what, kv_error_t *error)
{
    return kv_fail(error, KV_CORRUPT,
        "%s %s: it holds the keys of this store's blocks; restore it from a copy, or use another "
        "directory",
        ring->path, what);
}

static kv_status_t take_entry(
    kv_keyring_t *ring, uint32_t slot, const uint8_t *sector, uint32_t *master_out)
{
    entry_t *entry = &ring->secrets->entries[slot];
    if (!sector_is(sector, ENTRY_MAGIC) || kv_get_u32(sector + AT_SLOT) != slot ||
        sector[AT_TENANT + KV_TENANT_BYTES - 1] != 0 ||
        !unwrap(ring, sector, &entry->secret, master_out)) {
        return KV_CORRUPT;
    }
    int name = kv_names_number(&ring->names, sector + AT_TENANT);
    if (name == KV_NAMES_FULL) {
        return KV_CORRUPT;
    }
    memcpy(entry->id, sector + AT_ID, KV_KEY_ID_BYTES);
    entry->taken = true;
    entry->tenant = (uint16_t)name;
    ring->slots[name] = 1 + slot;
    return KV_OK;
}

/* *rewrap_out: not everything is wrapped with the key in force. */
static kv_status_t take_sectors(
    kv_keyring_t *ring, const uint8_t *bytes, bool *rewrap_out, kv_error_t *error)
{
    uint32_t master = 0;
    if (!sector_is(bytes, RING_MAGIC) || memcmp(bytes + AT_ID, ring->id, RING_ID_BYTES) != 0) {
        return damaged(ring, "is damaged, or another store's", error);
    }
    if (find_master(&ring->secrets->masters, ring->id, bytes + AT_CHECK) != 0) {
        *rewrap_out = true;
    }
    for (uint32_t slot = 0; slot < ring->slot_count; slot++) {
        const uint8_t *sector = bytes + sector_at(slot);
        if (!is_free(sector) && take_entry(ring, slot, sector, &master) != KV_OK) {
            return damaged(ring, "has damaged entries", error);
        }
        *rewrap_out = *rewrap_out || master != 0;
    }
    return KV_OK;
}

static kv_status_t load(kv_keyring_t *ring, bool *rewrap_out, kv_error_t *error)
{
    kv_files_t *files = ring->files;
    int64_t size = files->ops->size(files, ring->file);
    if (size < 0) {
        return kv_fail_errno(error, (int)-size, "cannot read %s", ring->path);
    }
    if (size == 0 || size % CHUNK_BYTES != 0 || size > (int64_t)sector_at(KV_KEYS_MAX)) {
        return damaged(ring, "was cut off", error);
    }
    uint8_t *bytes = kv_allocate((size_t)size);
    int64_t got = files->ops->read(files, ring->file, bytes, (size_t)size, 0);
    ring->slot_count = (uint32_t)(size / SECTOR_BYTES - 1);
    kv_status_t status = got == size ? take_sectors(ring, bytes, rewrap_out, error)
                         : got < 0   ? kv_fail_errno(error, (int)-got, "cannot read %s", ring->path)
                                     : damaged(ring, "was cut off", error);
    free(bytes);
    return status;
}

/* Under the key in force, one sector after the other; the ring's own says so last. Until the folder
 * does, the old key is still needed: a crash is mended by the next opening. */
static kv_status_t rewrap(kv_keyring_t *ring, const char *folder, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (uint32_t slot = 0; slot < ring->slot_count && status == KV_OK; slot++) {
        const entry_t *entry = &ring->secrets->entries[slot];
        uint8_t sector[SECTOR_BYTES];
        if (entry->taken) {
            fill_sector(ring, slot, entry->id, kv_names_at(&ring->names, entry->tenant),
                &entry->secret, sector);
            status = write_durably(ring, sector_at(slot), sector, error);
        }
    }
    if (status == KV_OK) {
        status = write_head(ring, error);
    }
    if (status == KV_OK) {
        status = write_note(ring, folder, error);
    }
    if (status == KV_OK) {
        kv_log_info("store", "%s: its keys are wrapped with the new key now", ring->path);
    }
    return status;
}

static kv_status_t open_ring(kv_keyring_t *ring, const char *key_file, const char *folder,
    const note_t *note, kv_error_t *error)
{
    memcpy(ring->id, note->ring_id, RING_ID_BYTES);
    uint32_t master = find_master(&ring->secrets->masters, ring->id, note->check);
    if (master == KV_MASTERS_MAX) {
        return kv_fail(error, KV_REFUSED,
            "key_file %s is not the key that the blocks in %s were encrypted with: name the file "
            "that is, or use another directory",
            key_file, folder);
    }
    bool old = master > 0;
    kv_status_t status = open_file(ring, key_file, false, error);
    if (status == KV_OK) {
        status = load(ring, &old, error);
    }
    return status == KV_OK && old ? rewrap(ring, folder, error) : status;
}

kv_status_t kv_keyring_open(kv_files_t *files, const char *key_file, const char *folder,
    kv_keyring_t **ring_out, kv_error_t *error)
{
    note_t note;
    kv_status_t status = read_note(files, folder, &note, error);
    if (status == KV_OK && key_file == NULL) {
        *ring_out = NULL;
        return !note.there ? KV_OK
                           : kv_fail(error, KV_REFUSED,
                                 "the blocks in %s are encrypted: key_file must name their key "
                                 "file; or use another directory",
                                 folder);
    }
    if (status == KV_OK) {
        status = kv_cipher_check(error);
    }
    kv_masters_t masters;
    if (status == KV_OK) {
        status = kv_key_file_read(files, key_file, &masters, error);
    }
    if (status != KV_OK) {
        return status;
    }
    kv_keyring_t *ring = create(files, &masters, error);
    kv_wipe(&masters, sizeof masters);
    if (ring == NULL) {
        return KV_NO_SPACE;
    }
    status = note.there ? open_ring(ring, key_file, folder, &note, error)
                        : make_ring(ring, key_file, folder, error);
    if (status != KV_OK) {
        kv_keyring_close(ring);
        return status;
    }
    *ring_out = ring;
    return KV_OK;
}

/* ---- using ---- */

/* What is wanted of a tenant's key, under the lock. false: it has none. */
static bool look(kv_keyring_t *ring, const char *tenant, kv_key_id_t *id_out, kv_secret_t *out)
{
    pthread_mutex_lock(&ring->looking);
    int name = kv_names_find(&ring->names, tenant);
    uint32_t found = name != KV_NAMES_FULL ? ring->slots[name] : 0;
    if (found != 0 && out != NULL) {
        const entry_t *entry = &ring->secrets->entries[found - 1];
        id_out->slot = found - 1;
        memcpy(id_out->bytes, entry->id, KV_KEY_ID_BYTES);
        *out = entry->secret;
    }
    pthread_mutex_unlock(&ring->looking);
    return found != 0;
}

bool kv_keyring_has(kv_keyring_t *ring, const char *tenant)
{
    char name[KV_TENANT_BYTES] = {0};
    memcpy(name, tenant, strnlen(tenant, KV_TENANT_BYTES - 1));
    return look(ring, name, NULL, NULL);
}

bool kv_keyring_find(kv_keyring_t *ring, const kv_key_id_t *id, kv_secret_t *secret_out)
{
    bool found = false;
    pthread_mutex_lock(&ring->looking);
    if (id->slot < ring->slot_count) {
        const entry_t *entry = &ring->secrets->entries[id->slot];
        found =
            entry->taken && !entry->retired && memcmp(entry->id, id->bytes, KV_KEY_ID_BYTES) == 0;
        if (found && secret_out != NULL) {
            *secret_out = entry->secret;
        }
    }
    pthread_mutex_unlock(&ring->looking);
    return found;
}

static uint32_t free_slot(const kv_keyring_t *ring)
{
    uint32_t slot = 0;
    while (slot < ring->slot_count && ring->secrets->entries[slot].taken) {
        slot++;
    }
    return slot;
}

/* `making` is held. Where its sector could not be made durable nobody knows what is there: the slot
 * stays taken, and nothing uses it. */
static kv_status_t make_key(kv_keyring_t *ring, const char *tenant, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    uint32_t slot = free_slot(ring);
    if (slot == KV_KEYS_MAX) {
        return kv_fail(
            error, KV_NO_SPACE, "%s has keys of %d tenants: no more fit", ring->path, KV_KEYS_MAX);
    }
    if (slot == ring->slot_count) {
        status = grow(ring, sector_at(slot) + CHUNK_BYTES, error);
    }
    entry_t *entry = &ring->secrets->entries[slot];
    uint8_t id[KV_KEY_ID_BYTES], sector[SECTOR_BYTES];
    kv_secret_t secret;
    if (status == KV_OK && (kv_random(id, sizeof id) != KV_OK ||
                               kv_random(secret.bytes, sizeof secret.bytes) != KV_OK)) {
        status = kv_fail(error, KV_IO, "no random bytes are to be had");
    }
    if (status != KV_OK) {
        return status;
    }
    fill_sector(ring, slot, id, tenant, &secret, sector);
    status = write_durably(ring, sector_at(slot), sector, error);
    pthread_mutex_lock(&ring->looking);
    int name = kv_names_number(&ring->names, tenant);
    entry->taken = true;
    if (status == KV_OK && name == KV_NAMES_FULL) {
        status = kv_fail(error, KV_NO_SPACE, "too many tenants were known since the start");
    }
    if (status == KV_OK) {
        memcpy(entry->id, id, sizeof id);
        entry->secret = secret;
        entry->tenant = (uint16_t)name;
        ring->slots[name] = 1 + slot;
    } else {
        entry->retired = true; /* destroyed with the next that is dropped */
    }
    pthread_mutex_unlock(&ring->looking);
    kv_wipe(&secret, sizeof secret);
    return status;
}

kv_status_t kv_keyring_take(kv_keyring_t *ring, const char *tenant, kv_key_id_t *id_out,
    kv_secret_t *secret_out, kv_error_t *error)
{
    if (look(ring, tenant, id_out, secret_out)) {
        return KV_OK;
    }
    pthread_mutex_lock(&ring->making);
    kv_status_t status = KV_OK;
    while (status == KV_OK && !look(ring, tenant, id_out, secret_out)) {
        status = make_key(ring, tenant, error);
    }
    pthread_mutex_unlock(&ring->making);
    return status;
}

/* ---- dropping ---- */

void kv_keyring_retire(kv_keyring_t *ring, const char *tenant)
{
    char padded[KV_TENANT_BYTES] = {0};
    memcpy(padded, tenant, strnlen(tenant, KV_TENANT_BYTES - 1));
    pthread_mutex_lock(&ring->looking);
    int name = kv_names_find(&ring->names, padded);
    for (uint32_t slot = 0; name != KV_NAMES_FULL && slot < ring->slot_count; slot++) {
        entry_t *entry = &ring->secrets->entries[slot];
        entry->retired = entry->retired || (entry->taken && entry->tenant == name);
    }
    if (name != KV_NAMES_FULL) {
        ring->slots[name] = 0;
    }
    pthread_mutex_unlock(&ring->looking);
}

kv_status_t kv_keyring_destroy_retired(kv_keyring_t *ring, kv_error_t *error)
{
    static const uint8_t ZEROS[SECTOR_BYTES];
    kv_status_t status = KV_OK;
    pthread_mutex_lock(&ring->making);
    for (uint32_t slot = 0; slot < ring->slot_count && status == KV_OK; slot++) {
        entry_t *entry = &ring->secrets->entries[slot];
        pthread_mutex_lock(&ring->looking);
        bool retired = entry->retired;
        pthread_mutex_unlock(&ring->looking);
        if (!retired) {
            continue;
        }
        status = write_durably(ring, sector_at(slot), ZEROS, error);
        if (status == KV_OK) {
            pthread_mutex_lock(&ring->looking);
            kv_wipe(entry, sizeof *entry); /* all zero: free */
            pthread_mutex_unlock(&ring->looking);
        }
    }
    pthread_mutex_unlock(&ring->making);
    return status;
}
