/* RocksDB's BlobDB as a store of blocks, timed as README.md says.
 *
 * disk: puts go through the write-ahead log, and a flush at the end makes blob files of them; reads
 * are direct. ram: reads that hit the blob cache. tools/peers/run builds it. */
#include <rocksdb/c.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { KEY_BYTES = 16, PATH_BYTES_MAX = 512, MIB = 1 << 20 };

static rocksdb_t *database;
static rocksdb_options_t *options;
static rocksdb_cache_t *cache;
static rocksdb_readoptions_t *read_options;
static rocksdb_writeoptions_t *write_options;
static char *source, *landing, path[PATH_BYTES_MAX];
static size_t object_bytes, object_count, put_count, get_count, step;

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* An answer to the one question of a failed call; true when it failed. */
static bool failed(char *error)
{
    if (error != NULL) {
        error[strcspn(error, "\"\n")] = '\0';
        printf("{\"error\": \"%.900s\"}\n", error);
        rocksdb_free(error);
    }
    return error != NULL;
}

static char *map(size_t bytes)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void fill(char *memory, size_t bytes)
{
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i + sizeof state <= bytes; i += sizeof state) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(memory + i, &state, sizeof state);
    }
}

static void key_of(size_t number, char *key_out)
{
    char text[KEY_BYTES + 1];
    snprintf(text, sizeof text, "%016zx", number);
    memcpy(key_out, text, KEY_BYTES);
}

static bool put(size_t number)
{
    char key[KEY_BYTES], *error = NULL;
    key_of(number, key);
    rocksdb_put(database, write_options, key, KEY_BYTES, source + number * object_bytes,
        object_bytes, &error);
    return !failed(error);
}

static bool flush(void)
{
    char *error = NULL;
    rocksdb_flushoptions_t *flush_options = rocksdb_flushoptions_create();
    rocksdb_flush(database, flush_options, &error);
    rocksdb_flushoptions_destroy(flush_options);
    return !failed(error);
}

static bool get(size_t number, char *place)
{
    char key[KEY_BYTES], *error = NULL;
    size_t bytes = 0;
    key_of(number, key);
    rocksdb_pinnableslice_t *slice =
        rocksdb_get_pinned(database, read_options, key, KEY_BYTES, &error);
    if (failed(error)) {
        return false;
    }
    const char *value = slice != NULL ? rocksdb_pinnableslice_value(slice, &bytes) : NULL;
    if (bytes == object_bytes) {
        memcpy(place, value, bytes);
    } else {
        puts("{\"error\": \"an object is not there\"}");
    }
    if (slice != NULL) {
        rocksdb_pinnableslice_destroy(slice);
    }
    return bytes == object_bytes;
}

static bool open_database(bool ram)
{
    char *error = NULL;
    options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, 1);
    rocksdb_options_set_enable_blob_files(options, 1);
    rocksdb_options_set_min_blob_size(options, 4096);
    rocksdb_options_set_blob_file_size(options, 256 * MIB);
    rocksdb_options_set_compression(options, rocksdb_no_compression);
    rocksdb_options_set_write_buffer_size(options, 128 * MIB);
    rocksdb_options_set_max_write_buffer_number(options, 3);
    rocksdb_options_set_max_background_jobs(options, 2);
    rocksdb_options_set_enable_blob_gc(options, 1);
    rocksdb_options_set_use_direct_reads(options, 1);
    rocksdb_options_set_use_direct_io_for_flush_and_compaction(options, 1);
    if (ram) {
        /* Its shards fill unevenly: with room for all in each, none is ever put out. */
        cache = rocksdb_cache_create_lru(8 * object_bytes * object_count);
        rocksdb_options_set_blob_cache(options, cache);
    }
    database = rocksdb_open(options, path, &error);
    return !failed(error);
}

static void close_database(void)
{
    char *error = NULL;
    if (database == NULL) {
        return;
    }
    rocksdb_close(database);
    database = NULL;
    rocksdb_destroy_db(options, path, &error);
    rocksdb_free(error);
    rocksdb_options_destroy(options);
    if (cache != NULL) {
        rocksdb_cache_destroy(cache);
        cache = NULL;
    }
}

static bool put_many(size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!put(put_count++ % object_count)) {
            return false;
        }
    }
    return flush();
}

static bool get_many(size_t count)
{
    for (size_t i = 0; i < count; i++, get_count++) {
        if (!get(get_count * step % object_count,
                landing + get_count % object_count * object_bytes)) {
            return false;
        }
    }
    return true;
}

static size_t common_factor(size_t a, size_t b)
{
    return b == 0 ? a : common_factor(b, a % b);
}

static void prepare(const char *tier, size_t bytes, size_t count)
{
    close_database();
    if (source != NULL) {
        munmap(source, object_bytes * object_count);
        munmap(landing, object_bytes * object_count);
    }
    object_bytes = bytes;
    object_count = count;
    put_count = get_count = 0;
    for (step = count * 618 / 1000; step > 1 && common_factor(step, count) != 1; step--) {
    }
    step = step > 0 ? step : 1;
    source = map(bytes * count);
    landing = map(bytes * count);
    if (source == NULL || landing == NULL) {
        puts("{\"error\": \"no memory\"}");
        return;
    }
    fill(source, bytes * count);
    memset(landing, 1, bytes * count);
    const bool ram = strcmp(tier, "ram") == 0;
    /* Once through all: what is in the cache, in memory, and warm in the files' index. */
    if (open_database(ram) && put_many(count) && get_many(ram ? count : 1)) {
        puts("{}");
    }
}

static void answer_time(bool (*many)(size_t count), size_t count)
{
    const double begun_s = now_s();
    if (!many(count)) {
        return;
    }
    const double seconds = now_s() - begun_s;
    const size_t last = get_count == 0 ? 0 : (get_count - 1) % object_count;
    if (many == get_many &&
        memcmp(landing + last * object_bytes,
            source + (get_count - 1) * step % object_count * object_bytes, object_bytes) != 0) {
        puts("{\"error\": \"an object came back with other bytes\"}");
        return;
    }
    printf("{\"seconds\": %.9f}\n", seconds);
}

int main(void)
{
    char line[256], tier[16];
    size_t bytes, count;
    const char *folder = getenv("KVIST_PEER_FOLDER");
    if (folder == NULL) {
        fputs("KVIST_PEER_FOLDER is not set: run tools/peers/run\n", stderr);
        return 1;
    }
    snprintf(path, sizeof path, "%s/rocksdb", folder);
    setvbuf(stdout, NULL, _IOLBF, 0);
    read_options = rocksdb_readoptions_create();
    write_options = rocksdb_writeoptions_create();
    printf("{\"name\": \"RocksDB %s BlobDB\", \"can\": \"ram-get disk-put disk-get\"}\n",
        ROCKSDB_VERSION);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "prepare %15s %zu %zu", tier, &bytes, &count) == 3 && bytes >= 4096 &&
            count > 0) {
            prepare(tier, bytes, count);
        } else if (sscanf(line, "put %zu", &count) == 1) {
            answer_time(put_many, count);
        } else if (sscanf(line, "get %zu", &count) == 1) {
            answer_time(get_many, count);
        } else {
            puts("{\"error\": \"unknown call\"}");
        }
    }
    close_database();
    return 0;
}
