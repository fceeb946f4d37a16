/* An engine of another make keeps its KV in Kvist: the whole way, in plain C.
 *
 *   cc -I PREFIX/include/kvist docs/example.c -L PREFIX/lib -lkvist -o example
 *   ./example FOLDER
 *
 * It opens a store in FOLDER, "computes" the KV of a context of 64 blocks into memory of its own,
 * stores it from there, makes it durable and closes; then it opens the store again, as after a
 * restart, finds the context, loads it into other memory, and compares. Run twice on one folder, it
 * finds everything the first time it looks.
 *
 * A store belongs to one thread and never blocks it: calls that take time say so by a callback,
 * which runs inside kvist_store_poll. kvist_store_fd is readable when a poll has something to do,
 * so that a store fits into any event loop. */
#include "kvstore/kvist.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK_TOKENS = 16,
    LAYERS = 4,
    HEADS = 2, /* of K and of V */
    DIMS = 64, /* of one head */
    ELEMENT_BYTES = 2,
    UNIT_BYTES = BLOCK_TOKENS * DIMS * ELEMENT_BYTES,
    BLOCK_BYTES = LAYERS * 2 * HEADS * UNIT_BYTES,
    LAYER_BYTES = BLOCK_BYTES / LAYERS,
    BLOCKS = 64,
    PAGES = 2 * BLOCKS, /* of the engine's own paged memory */
};

/* ---- the engine ---- */

typedef struct {
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    uint32_t table[BLOCKS];            /* the page that each block lies in */
    uint8_t pages[PAGES][BLOCK_BYTES]; /* [layer][K, V][head][token][dim] in each */
} engine_t;

/* A context, and a block table in no order, as engines have them. */
static engine_t *make_engine(void)
{
    engine_t *engine = calloc(1, sizeof *engine);
    for (uint32_t i = 0; engine != NULL && i < BLOCKS * BLOCK_TOKENS; i++) {
        engine->tokens[i] = i * 2654435761u % 50000;
    }
    for (uint32_t block = 0; engine != NULL && block < BLOCKS; block++) {
        engine->table[block] = block * 37 % PAGES;
    }
    return engine;
}

/* Stands for the prefill: bytes that depend on the tokens alone. */
static void compute(engine_t *engine, uint32_t block)
{
    uint32_t state = engine->tokens[block * BLOCK_TOKENS] + block;
    for (uint32_t i = 0; i < BLOCK_BYTES; i++) {
        state = state * 1664525u + 1013904223u;
        engine->pages[engine->table[block]][i] = (uint8_t)(state >> 24);
    }
}

/* The layout says how a block's bytes lie, and what of them can be read alone: one group of layers
 * whose blocks live and die alike, with K and V in each. */
static kvist_layout_t layout_of_engine(void)
{
    return (kvist_layout_t){
        .block_tokens = BLOCK_TOKENS,
        .group_count = 1,
        .groups = {{
            .kind = KVIST_GROUP_FULL,
            .layers = {(1u << LAYERS) - 1},
            .part_count = 2,
            .parts = {{KVIST_PART_K, HEADS, DIMS, ELEMENT_BYTES},
                {KVIST_PART_V, HEADS, DIMS, ELEMENT_BYTES}},
        }},
    };
}

/* What must be equal before two blocks may be compared at all: the model (here a digest that we
 * make up; kvist_fingerprint_file makes one of a file), the layout, the tenant's salt. */
static kvist_key_t name_space_of_engine(const kvist_layout_t *layout)
{
    kvist_namespace_params_t params = {
        .model = {{'e', 'x', 'a', 'm', 'p', 'l', 'e'}},
        .layout = layout,
        .dtype = KVIST_DTYPE_BF16,
        .salt = "",
        .adapter = "",
    };
    return kvist_namespace(&params);
}

/* ---- waiting ---- */

/* What a callback told. */
typedef struct {
    bool ended;
    kv_status_t status;
    uint32_t block_count;
} outcome_t;

/* An engine would go on with other work; an example may wait. */
static void wait_for(kvist_store_t *store, const outcome_t *outcome)
{
    while (!outcome->ended) {
        struct pollfd ready = {.fd = kvist_store_fd(store), .events = POLLIN};
        poll(&ready, 1, -1);
        kvist_store_poll(store);
    }
}

static void on_stored(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    (void)lease;
    *(outcome_t *)context = (outcome_t){true, status, block_count};
}

static void on_loaded(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count,
    kvist_miss_t miss)
{
    (void)lease;
    (void)miss; /* why it is fewer than asked for, where it is */
    *(outcome_t *)context = (outcome_t){true, status, block_count};
}

static void on_flushed(void *context, kv_status_t status)
{
    *(outcome_t *)context = (outcome_t){.ended = true, .status = status};
}

/* ---- the store ---- */

static kvist_store_t *open_store(const char *folder, const kvist_layout_t *layout)
{
    kvist_store_params_t params = {
        .layout = layout,
        .host_bytes =
            16 << 20, /* the tier in memory; KV passes through it on its way to the disk */
        .directory = folder,
        .disk_bytes = 64 << 20,
        .segment_bytes = 8 << 20,
        .persist = KVIST_PERSIST_EAGER, /* written behind, as soon as it is stored */
        .origin = "example",
    };
    kvist_store_t *store;
    kv_error_t error;
    if (kvist_store_open(&params, &store, &error) != KV_OK) {
        fprintf(stderr, "cannot open the store: %s\n", error.text);
        return NULL;
    }
    return store;
}

/* The longest stored prefix, and a lease that keeps it in place until it is released. */
static kvist_lease_t *match(kvist_store_t *store, const kvist_key_t *name_space,
    const engine_t *engine, kvist_match_t *match_out)
{
    kvist_query_t query = {
        .name_space = *name_space,
        .tokens = engine->tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .mode = KVIST_MODE_READWRITE,
    };
    kvist_lease_t *lease;
    if (kvist_match(store, &query, &lease, match_out) != KV_OK) {
        return NULL;
    }
    printf("found %u of %d blocks (miss: %s)\n", match_out->block_count, BLOCKS,
        kvist_miss_name(match_out->miss));
    return lease;
}

/* A piece for each block: where the engine's block table says that it lies. */
static void make_pieces(
    engine_t *engine, uint32_t first_block, uint32_t block_count, kvist_piece_t *pieces_out)
{
    for (uint32_t i = 0; i < block_count; i++) {
        uint8_t *page = engine->pages[engine->table[first_block + i]];
        pieces_out[i] = (kvist_piece_t){.base = page, .bytes = BLOCK_BYTES};
    }
}

/* Computes what was not found and stores it. */
static bool store_rest(kvist_store_t *store, kvist_lease_t *lease, engine_t *engine, uint32_t found)
{
    kvist_piece_t pieces[BLOCKS];
    for (uint32_t block = found; block < BLOCKS; block++) {
        compute(engine, block);
    }
    make_pieces(engine, found, BLOCKS - found, pieces);
    kvist_put_t put = {
        .first_block = found,
        .block_count = BLOCKS - found,
        .arithmetic = "example/v1", /* which kernels made it */
        .deadline_ns = UINT64_MAX,  /* to wait for room */
    };
    outcome_t outcome = {0};
    if (kvist_lease_store(lease, &put, pieces, BLOCKS - found, on_stored, &outcome) != KV_OK) {
        return false;
    }
    wait_for(store, &outcome); /* until then the pages belong to the store */
    printf("stored %u blocks: %s\n", outcome.block_count, kv_status_name(outcome.status));
    return outcome.status == KV_OK;
}

/* Loads all blocks into the engine's pages. What it gets is verified: a block is as it was stored,
 * or it is not there. */
static bool load_all(kvist_store_t *store, kvist_lease_t *lease, engine_t *engine)
{
    kvist_piece_t pieces[BLOCKS];
    kvist_selection_t all = {.first_block = 0, .block_count = BLOCKS};
    outcome_t outcome = {0};
    make_pieces(engine, 0, BLOCKS, pieces);
    if (kvist_lease_load(lease, &all, pieces, BLOCKS, on_loaded, &outcome) != KV_OK) {
        return false;
    }
    wait_for(store, &outcome);
    printf("loaded %u blocks: %s\n", outcome.block_count, kv_status_name(outcome.status));
    return outcome.status == KV_OK && outcome.block_count == BLOCKS;
}

/* Loads one layer of all blocks, one after the other, as an engine does that computes with the
 * first layers while the next ones are on their way. */
static bool load_layer(
    kvist_store_t *store, kvist_lease_t *lease, uint32_t layer, uint8_t bytes_out[])
{
    kvist_piece_t piece = {.base = bytes_out, .bytes = (size_t)BLOCKS * LAYER_BYTES};
    kvist_selection_t selection = {.block_count = BLOCKS, .first_layer = layer, .layer_count = 1};
    outcome_t outcome = {0};
    if (kvist_lease_load(lease, &selection, &piece, 1, on_loaded, &outcome) != KV_OK) {
        return false;
    }
    wait_for(store, &outcome);
    return outcome.status == KV_OK && outcome.block_count == BLOCKS;
}

/* Durable is what was stored before a flush that ended well, or before the store was closed. */
static bool flush(kvist_store_t *store)
{
    outcome_t outcome = {0};
    kvist_store_flush(store, on_flushed, &outcome);
    wait_for(store, &outcome);
    return outcome.status == KV_OK;
}

/* ---- both lives ---- */

static bool first_life(const char *folder, const kvist_layout_t *layout, engine_t *engine)
{
    kvist_key_t name_space = name_space_of_engine(layout);
    kvist_store_t *store = open_store(folder, layout);
    kvist_match_t found;
    if (store == NULL) {
        return false;
    }
    kvist_lease_t *lease = match(store, &name_space, engine, &found);
    bool good = lease != NULL;
    if (good && found.block_count < BLOCKS) {
        good = store_rest(store, lease, engine, found.block_count);
    }
    if (lease != NULL) {
        kvist_lease_release(lease);
    }
    good = good && flush(store);
    kvist_store_close(store);
    return good;
}

/* Another engine, whose pages are empty, and the expected bytes beside it. */
static bool compare(engine_t *loaded, const uint8_t *layer, uint32_t layer_number)
{
    engine_t *expected = make_engine();
    bool same = expected != NULL;
    for (uint32_t block = 0; same && block < BLOCKS; block++) {
        compute(expected, block);
        const uint8_t *page = expected->pages[expected->table[block]];
        same = memcmp(page, loaded->pages[loaded->table[block]], BLOCK_BYTES) == 0 &&
               memcmp(page + layer_number * LAYER_BYTES, layer + (size_t)block * LAYER_BYTES,
                   LAYER_BYTES) == 0;
    }
    free(expected);
    return same;
}

static bool second_life(const char *folder, const kvist_layout_t *layout, engine_t *engine)
{
    static uint8_t layer[BLOCKS * LAYER_BYTES];
    kvist_key_t name_space = name_space_of_engine(layout);
    kvist_store_t *store = open_store(folder, layout);
    kvist_match_t found;
    if (store == NULL) {
        return false;
    }
    kvist_lease_t *lease = match(store, &name_space, engine, &found);
    bool good = lease != NULL && found.block_count == BLOCKS && load_all(store, lease, engine) &&
                load_layer(store, lease, LAYERS - 1, layer);
    if (lease != NULL) {
        kvist_lease_release(lease);
    }
    kvist_store_close(store);
    return good && compare(engine, layer, LAYERS - 1);
}

int main(int argument_count, char **arguments)
{
    if (argument_count != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", arguments[0]);
        return 2;
    }
    kvist_layout_t layout = layout_of_engine();
    kv_error_t error;
    if (kvist_layout_check(&layout, &error) != KV_OK) {
        fprintf(stderr, "layout: %s\n", error.text);
        return 1;
    }
    engine_t *writer = make_engine(), *reader = make_engine();
    bool good = writer != NULL && reader != NULL && first_life(arguments[1], &layout, writer) &&
                second_life(arguments[1], &layout, reader);
    printf(good ? "after the restart every byte is as it was stored\n" : "failed\n");
    free(writer);
    free(reader);
    return good ? 0 : 1;
}
