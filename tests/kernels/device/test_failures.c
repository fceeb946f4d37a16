/* "Fail the Nth call of NAME", for every function of the runtime that the device uses, until a
 * whole life of it goes through: each failure is told with a sentence, nothing is left behind, and
 * the next life is as if nothing had been. Operations under way that fail lose the device, which
 * says so from then on.
 *
 * The names are those that stand in the device's sources: one that is in no list here fails.
 *
 * For the stand-in alone: it counts its calls, and says what is held. */
#include "kernels/device/bench.h"

#include "kernels/moves.h"
#include "kernels/simt/control.h"

#include <ctype.h>
#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>

enum {
    COLUMNS = 64,
    ROWS = 128,
    HEAD_DIM = 256, /* whose attention asks for more shared memory than every kernel has */
    BLOCK_TOKENS = 16,
    TOKENS = 3,
    SLOTS = 4,
    SLOT_BYTES = 2 * BLOCK_TOKENS * HEAD_DIM * 2,
    NTH_MAX = 4096,
    NAME_ROOM = 64,
};

/* A life in which one of these fails ends with a status. */
static const char *const ASKED[] = {"cudaGetDeviceCount", "cudaGetDeviceProperties",
    "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMemcpyAsync", "cudaMemsetAsync",
    "cudaEventRecord", "cudaEventSynchronize", "cudaEventQuery", "cudaHostRegister",
    "cudaFuncGetAttributes", "cudaFuncSetAttribute", "launch"};
static const char *const ASKED_FOR_MEMORY[] = {"cudaMalloc", "cudaHostAlloc"};
static const char *const ASKED_OF_CUBLASLT[] = {"cublasLtCreate", "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescSetAttribute", "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceSetAttribute", "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutSetAttribute", "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmulAlgoCheck",
    "cublasLtMatmul"};

/* These give back, or are made on both ways. */
static const char *const GIVEN_BACK[] = {"cudaSetDevice", "cudaStreamSynchronize", "cudaFree",
    "cudaFreeHost", "cudaHostUnregister", "cudaStreamDestroy", "cudaEventDestroy",
    "cublasLtMatrixLayoutDestroy", "cublasLtMatmulPreferenceDestroy", "cublasLtMatmulDescDestroy",
    "cublasLtDestroy"};

/* Made after another call's failure alone: each has a test of its own. */
static const char *const AFTERWARDS[] = {"cudaMemGetInfo", "cudaStreamQuery"};

/* Whose answer is no status. */
static const char *const TOLD[] = {"cudaGetErrorString", "cudaGetLastError", "cudaPeekAtLastError",
    "cublasLtGetStatusName", "cublasLtGetVersion"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The stand-in's controls, from the plug-in. */
static struct {
    bool (*fail_call)(const char *name, uint64_t nth, int error);
    void (*fail_none)(void);
    void (*held)(kv_simt_held_t *held_out);
    void (*reset)(void);
    uint64_t (*call_count)(const char *name);
} simt;

static void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);
    if (found == NULL) {
        fail_msg("the plug-in does not export %s", name);
    }
    return found;
}

static int find_controls(void **state)
{
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s/libkvist-simt.so", getenv("KVIST_PLUGINS"));
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return -1;
    }
    *(void **)&simt.fail_call = symbol(library, "kv_simt_fail");
    *(void **)&simt.fail_none = symbol(library, "kv_simt_fail_none");
    *(void **)&simt.held = symbol(library, "kv_simt_held");
    *(void **)&simt.reset = symbol(library, "kv_simt_reset");
    *(void **)&simt.call_count = symbol(library, "kv_simt_call_count");
    return 0;
}

/* ---- one life ---- */

typedef struct {
    kv_device_t *device;
    float *x, *weight, *out;
    char *arena;
    kv_matrix_t *matrix;
    void *host;
    bool pinned;
} life_t;

static const size_t X_BYTES = (size_t)ROWS * 3 * HEAD_DIM * sizeof(float);

static kv_status_t allocate_all(life_t *life, kv_error_t *error)
{
    kv_device_t *device = life->device;
    void *memory[4] = {0};
    const size_t bytes[4] = {X_BYTES, COLUMNS * sizeof(float), X_BYTES, SLOTS * SLOT_BYTES};
    kv_status_t status = KV_OK;
    for (int i = 0; i < 4 && status == KV_OK; i++) {
        status = device->ops->allocate(device, bytes[i], &memory[i], error);
    }
    life->x = memory[0];
    life->weight = memory[1];
    life->out = memory[2];
    life->arena = memory[3];
    return status;
}

static kv_status_t make_matrix(life_t *life, kv_error_t *error)
{
    static float weights[COLUMNS * COLUMNS];
    const kv_matrix_params_t params = {
        .parts = {{KV_WEIGHT_F32, COLUMNS, weights}},
        .part_count = 1,
        .columns = COLUMNS,
        .f32 = true,
        .prefill = true,
        .decode = true,
    };
    return life->device->ops->matrix_create(life->device, &params, &life->matrix, error);
}

/* Rows to products, and a prompt of three tokens to the arena and through attention. */
static kv_status_t compute(life_t *life, kv_error_t *error)
{
    static const uint32_t IDS[TOKENS] = {1, 2, 3}, TABLE[] = {2};
    const kv_block_shape_t shape = {1, 1, HEAD_DIM, BLOCK_TOKENS, 2};
    const kv_paged_t paged = {.shape = &shape, .arena = life->arena, .head_count = 1};
    const kv_sequence_t sequence = {TABLE, 0, 0, TOKENS};
    kv_device_t *device = life->device;
    const kv_device_ops_t *ops = device->ops;
    const kv_rows_t rows = {0, TOKENS};
    ops->embed(device, life->matrix, IDS, rows, life->x);
    ops->norm(device, life->x, life->weight, 1e-5f, COLUMNS, rows, life->out, KV_ELEMENT_F32);
    ops->product_tiles(device, life->matrix, life->out, rows, false, life->x);
    kv_status_t status = ops->reach(device, ops->mark(device), error);
    ops->product_rows(device, life->matrix, life->out, rows, true, life->x);
    ops->rotate_store(device, &paged, &sequence, 1, life->out, life->x);
    ops->attend_tiles(device, &paged, &sequence, life->x, life->out, KV_ELEMENT_F32);
    kv_status_t finished = ops->finish(device, status == KV_OK ? error : NULL);
    return status != KV_OK ? status : finished;
}

static kv_status_t draw(life_t *life, kv_error_t *error)
{
    const kv_draw_t greedy = {.top_p = 1};
    uint32_t token;
    float logprob;
    return life->device->ops->draw(
        life->device, life->x, COLUMNS, &greedy, 1, &token, &logprob, error);
}

/* Out and waited for, then in and asked once before that. */
static kv_status_t move_all(life_t *life, kv_error_t *error)
{
    static const uint32_t SOME[] = {2, 0};
    static const kv_slot_part_t PART = {512, 1024};
    uint64_t checksums[8];
    char *places[] = {life->host, (char *)life->host + 4096};
    kv_move_params_t params = {
        .arena = life->arena,
        .slot_bytes = SLOT_BYTES,
        .slots = SOME,
        .slot_count = 2,
        .parts = &PART,
        .part_count = 1,
        .outside = places,
        .unit_bytes = 256,
        .checksums = checksums,
    };
    kv_status_t status = kv_move(life->device, &params, error);
    if (status != KV_OK) {
        return status;
    }
    kv_move_t *move = NULL;
    params.direction = KV_MOVE_IN;
    status = kv_move_start(life->device, &params, &move, error);
    if (status != KV_OK) {
        return status;
    }
    status = kv_move_poll(life->device, move, error);
    return status == KV_BUSY ? kv_move_wait(life->device, move, error) : status;
}

static kv_status_t pack_one(life_t *life, kv_error_t *error)
{
    static const kv_unit_run_t RUN = {2, 1024, 2};
    uint32_t lengths[4];
    uint64_t checksums[4];
    size_t bytes;
    const kv_pack_t pack = {
        .arena = life->arena,
        .slot_bytes = SLOT_BYTES,
        .slot = 1,
        .layer_count = 2,
        .runs = &RUN,
        .run_count = 1,
        .packed = life->host,
        .lengths = lengths,
        .checksums = checksums,
    };
    kv_status_t status = life->device->ops->pack(life->device, &pack, &bytes, error);
    return status == KV_OK ? life->device->ops->unpack(life->device, &pack, error) : status;
}

static kv_status_t live(life_t *life, kv_error_t *error)
{
    kv_status_t status = allocate_all(life, error);
    if (status == KV_OK) {
        status = kv_device_pin(life->device, life->host, 8192, error);
        life->pinned = status == KV_OK;
    }
    if (status == KV_OK) {
        status = make_matrix(life, error);
    }
    if (status == KV_OK) {
        status = compute(life, error);
    }
    if (status == KV_OK) {
        status = draw(life, error);
    }
    if (status == KV_OK) {
        status = move_all(life, error);
    }
    return status == KV_OK ? pack_one(life, error) : status;
}

static void die(life_t *life)
{
    kv_device_t *device = life->device;
    if (life->pinned) {
        kv_device_unpin(device, life->host, 8192);
    }
    device->ops->matrix_destroy(device, life->matrix);
    device->ops->release(device, life->x, X_BYTES);
    device->ops->release(device, life->weight, COLUMNS * sizeof(float));
    device->ops->release(device, life->out, X_BYTES);
    device->ops->release(device, life->arena, SLOTS * SLOT_BYTES);
    kv_device_close(device);
}

/* KV_OK: nothing failed. lost_out: the device answered as one that is lost. */
static kv_status_t whole_life(bool *lost_out, kv_error_t *error)
{
    life_t life = {0};
    kv_status_t status = kv_device_open("simt", 1, &life.device, NULL, error);
    *lost_out = false;
    if (status != KV_OK) {
        return status;
    }
    life.host = aligned_alloc(4096, 8192);
    memset(life.host, 0, 8192);
    status = live(&life, error);
    if (status != KV_OK) {
        kv_error_t again = {0};
        void *memory = NULL;
        *lost_out = life.device->ops->allocate(life.device, 64, &memory, &again) == KV_FATAL &&
                    strstr(again.text, "is lost") != NULL;
        life.device->ops->release(life.device, memory, 64);
    }
    die(&life);
    free(life.host);
    return status;
}

static void assert_nothing_held(const char *name, uint64_t nth)
{
    kv_simt_held_t held;
    simt.held(&held);
    if (held.device_bytes + held.pinned_ranges + held.streams + held.events > 0) {
        fail_msg("%s %llu left behind: bytes %zu pinned %zu streams %zu events %zu", name,
            (unsigned long long)nth, held.device_bytes, held.pinned_ranges, held.streams,
            held.events);
    }
}

/* ---- sweeps ---- */

enum { ERROR_MEMORY = 2, ERROR_INVALID = 1, ERROR_ILLEGAL_ADDRESS = 700 };

/* Each call of the name in turn, until a life goes by in which there is none left to fail.
 * ends_badly: a life in which it failed ends with a status; else the call is one that only gives
 * back. */
static void sweep(const char *name, int code, bool ends_badly)
{
    for (uint64_t nth = 1; nth <= NTH_MAX; nth++) {
        kv_error_t error = {0};
        bool lost;
        simt.reset();
        assert_true(simt.fail_call(name, nth, code));
        kv_status_t status = whole_life(&lost, &error);
        const bool happened = simt.call_count(name) >= nth;
        simt.fail_none();
        if (!happened) {
            assert_int_equal(status, KV_OK);
            if (nth == 1) {
                fail_msg("%s is never called", name);
            }
            return;
        }
        if (ends_badly && (status == KV_OK || error.text[0] == '\0')) {
            fail_msg("%s %llu: %s \"%s\"", name, (unsigned long long)nth, kv_status_name(status),
                error.text);
        }
        if (status != KV_OK && lost != (code == ERROR_ILLEGAL_ADDRESS)) {
            fail_msg("%s %llu: the device is %s", name, (unsigned long long)nth,
                lost ? "lost" : "not lost");
        }
        assert_nothing_held(name, nth);
    }
    fail_msg("%s was called more than %d times", name, NTH_MAX);
}

static void calls_that_ask(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ASKED); i++) {
        sweep(ASKED[i], ERROR_INVALID, true);
    }
    for (size_t i = 0; i < COUNT(ASKED_FOR_MEMORY); i++) {
        sweep(ASKED_FOR_MEMORY[i], ERROR_MEMORY, true);
    }
    for (size_t i = 0; i < COUNT(ASKED_OF_CUBLASLT); i++) {
        sweep(ASKED_OF_CUBLASLT[i], ERROR_INVALID, true);
    }
}

static void calls_that_give_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(GIVEN_BACK); i++) {
        sweep(GIVEN_BACK[i], ERROR_INVALID, false);
    }
}

/* Memory that ran out is told with what is free; where that cannot be asked, without. */
static void asking_how_much_is_left(void **state)
{
    (void)state;
    simt.reset();
    kv_device_t *device;
    kv_error_t error = {0};
    void *memory;
    assert_int_equal(kv_device_open("simt", 1, &device, NULL, &error), KV_OK);
    for (int fails = 0; fails < 2; fails++) {
        assert_true(simt.fail_call("cudaMalloc", 1, ERROR_MEMORY));
        assert_true(fails == 0 || simt.fail_call("cudaMemGetInfo", 1, ERROR_INVALID));
        assert_int_equal(device->ops->allocate(device, 64, &memory, &error), KV_NO_SPACE);
        assert_non_null(strstr(error.text, "has no 64 bytes of memory left"));
        assert_int_equal(device->ops->allocate(device, 64, &memory, &error), KV_OK);
        device->ops->release(device, memory, 64);
    }
    kv_device_close(device);
    assert_nothing_held("cudaMemGetInfo", 1);
}

/* Whether an error stays is asked of the stream: one that fails twice loses the device. */
static void asking_whether_an_error_stays(void **state)
{
    (void)state;
    simt.reset();
    kv_device_t *device;
    kv_error_t error = {0}, again = {0};
    char byte = 0;
    void *memory;
    assert_int_equal(kv_device_open("simt", 1, &device, NULL, &error), KV_OK);
    assert_int_equal(device->ops->allocate(device, 64, &memory, &error), KV_OK);
    assert_true(simt.fail_call("cudaMemcpyAsync", 1, ERROR_INVALID));
    assert_true(simt.fail_call("cudaStreamQuery", 1, ERROR_ILLEGAL_ADDRESS));
    assert_int_equal(device->ops->copy_in(device, memory, &byte, 1, &error), KV_FATAL);
    assert_non_null(strstr(error.text, "is lost to this process: restart it"));
    assert_int_equal(device->ops->copy_in(device, memory, &byte, 1, &again), KV_FATAL);
    assert_string_equal(again.text, error.text);
    device->ops->release(device, memory, 64);
    kv_device_close(device);
    assert_nothing_held("cudaStreamQuery", 1);
}

static void operations_under_way(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"run copy", "run launch", "run set", "run work"};
    for (size_t i = 0; i < COUNT(NAMES); i++) {
        sweep(NAMES[i], ERROR_ILLEGAL_ADDRESS, true);
    }
}

/* ---- the lists ---- */

static bool is_in(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_listed(const char *name)
{
    return is_in(name, ASKED, COUNT(ASKED)) ||
           is_in(name, ASKED_FOR_MEMORY, COUNT(ASKED_FOR_MEMORY)) ||
           is_in(name, ASKED_OF_CUBLASLT, COUNT(ASKED_OF_CUBLASLT)) ||
           is_in(name, GIVEN_BACK, COUNT(GIVEN_BACK)) ||
           is_in(name, AFTERWARDS, COUNT(AFTERWARDS)) || is_in(name, TOLD, COUNT(TOLD));
}

/* "cudaMalloc(" and the like, not "cudaStream_t", which no bracket follows. Returns how many. */
static size_t check_calls(const char *path, const char *text)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, "cu")) != NULL;) {
        const char *end = at;
        while (isalnum((unsigned char)*end)) {
            end++;
        }
        const bool begins = at == text || (!isalnum((unsigned char)at[-1]) && at[-1] != '_');
        const bool cuda = strncmp(at, "cuda", 4) == 0 && isupper((unsigned char)at[4]),
                   cublas = strncmp(at, "cublasLt", 8) == 0;
        if (begins && *end == '(' && (cuda || cublas)) {
            char name[NAME_ROOM];
            snprintf(name, sizeof name, "%.*s", (int)(end - at), at);
            if (!is_listed(name)) {
                fail_msg("%s calls %s, which no list of this test has", path, name);
            }
            count++;
        }
        at = end > at ? end : at + 1;
    }
    return count;
}

static char *text_of(const char *path)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const long bytes = ftell(file);
    assert_true(bytes >= 0);
    rewind(file);
    char *text = malloc((size_t)bytes + 1);
    assert_int_equal(fread(text, 1, (size_t)bytes, file), (size_t)bytes);
    text[bytes] = '\0';
    fclose(file);
    return text;
}

static void every_call_of_the_sources_is_listed(void **state)
{
    (void)state;
    glob_t found;
    size_t calls = 0;
    assert_int_equal(glob("kernels/cuda/*.cu", 0, NULL, &found), 0);
    assert_int_equal(glob("kernels/cuda/*.h", GLOB_APPEND, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *text = text_of(found.gl_pathv[i]);
        calls += check_calls(found.gl_pathv[i], text);
        free(text);
    }
    globfree(&found);
    assert_true(calls > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_that_ask),
        cmocka_unit_test(calls_that_give_back),
        cmocka_unit_test(asking_how_much_is_left),
        cmocka_unit_test(asking_whether_an_error_stays),
        cmocka_unit_test(operations_under_way),
        cmocka_unit_test(every_call_of_the_sources_is_listed),
    };
    return cmocka_run_group_tests(tests, find_controls, NULL);
}
