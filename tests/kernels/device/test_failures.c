/* "Fail the Nth call of NAME", for every function of the runtime that the device uses, until a
 * whole life of it goes through: each failure is told with a sentence, nothing is left behind, and
 * the next life is as if nothing had been. Operations under way that fail lose the device, which
 * says so from then on.
 *
 * For the stand-in alone: it counts its calls, and says what is held. */
#include "kernels/device/bench.h"

#include "kernels/moves.h"
#include "kernels/simt/control.h"

#include <dlfcn.h>
#include <stdio.h>

enum { COLUMNS = 64, ROWS = 128, SLOTS = 4, SLOT_BYTES = 4096, NTH_MAX = 4096 };

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

static kv_status_t allocate_all(life_t *life, kv_error_t *error)
{
    kv_device_t *device = life->device;
    void *memory[4] = {0};
    const size_t bytes[4] = {ROWS * COLUMNS * sizeof(float), COLUMNS * sizeof(float),
        ROWS * COLUMNS * sizeof(float), SLOTS * SLOT_BYTES};
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

static kv_status_t compute(life_t *life, kv_error_t *error)
{
    static const uint32_t TOKENS[] = {1, 2, 3};
    kv_device_t *device = life->device;
    const kv_rows_t rows = {0, 3};
    device->ops->embed(device, life->matrix, TOKENS, rows, life->x);
    device->ops->norm(
        device, life->x, life->weight, 1e-5f, COLUMNS, rows, life->out, KV_ELEMENT_F32);
    device->ops->product_tiles(device, life->matrix, life->out, rows, false, life->x);
    kv_status_t status = device->ops->reach(device, device->ops->mark(device), error);
    device->ops->product_rows(device, life->matrix, life->out, rows, true, life->x);
    kv_status_t finished = device->ops->finish(device, status == KV_OK ? error : NULL);
    return status != KV_OK ? status : finished;
}

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
    params.direction = KV_MOVE_IN;
    return status == KV_OK ? kv_move(life->device, &params, error) : status;
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
    return status == KV_OK ? move_all(life, error) : status;
}

static void die(life_t *life)
{
    kv_device_t *device = life->device;
    if (life->pinned) {
        kv_device_unpin(device, life->host, 8192);
    }
    device->ops->matrix_destroy(device, life->matrix);
    device->ops->release(device, life->x, ROWS * COLUMNS * sizeof(float));
    device->ops->release(device, life->weight, COLUMNS * sizeof(float));
    device->ops->release(device, life->out, ROWS * COLUMNS * sizeof(float));
    device->ops->release(device, life->arena, SLOTS * SLOT_BYTES);
    kv_device_close(device);
}

/* KV_OK: nothing failed. */
static kv_status_t whole_life(kv_error_t *error)
{
    life_t life = {0};
    kv_status_t status = kv_device_open("simt", 1, &life.device, error);
    if (status != KV_OK) {
        return status;
    }
    life.host = aligned_alloc(4096, 8192);
    memset(life.host, 0, 8192);
    status = live(&life, error);
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

/* Each call of the name in turn, until there is none left to fail. ends_badly: a life in which it
 * failed ends with a status; else the call is one that only gives back. */
static void sweep(const char *name, int code, bool ends_badly)
{
    for (uint64_t nth = 1; nth <= NTH_MAX; nth++) {
        kv_error_t error = {0};
        simt.reset();
        const uint64_t before = simt.call_count(name);
        assert_true(simt.fail_call(name, nth, code));
        kv_status_t status = whole_life(&error);
        const bool happened = simt.call_count(name) - before >= nth;
        simt.fail_none();
        if (!happened) {
            assert_int_equal(status, KV_OK);
            if (nth == 1) { fail_msg("%s is never called", name); }
            return;
        }
        if (ends_badly) {
            assert_int_not_equal(status, KV_OK);
            assert_true(error.text[0] != '\0');
        }
        if (code != ERROR_ILLEGAL_ADDRESS && ends_badly) {
            assert_nothing_held(name, nth);
        }
        simt.reset();
        assert_int_equal(whole_life(&error), KV_OK);
    }
    fail_msg("%s was called more than %d times", name, NTH_MAX);
}

static void calls_that_ask(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"cudaGetDeviceCount", "cudaDeviceGetAttribute",
        "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMemcpyAsync",
        "cudaMemsetAsync", "cudaEventRecord", "cudaEventSynchronize", "cudaHostRegister", "launch"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        sweep(NAMES[i], ERROR_INVALID, true);
    }
    sweep("cudaMalloc", ERROR_MEMORY, true);
    sweep("cudaHostAlloc", ERROR_MEMORY, true);
}

/* Or that are made on both ways. */
static void calls_that_give_back(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"cudaSetDevice", "cudaStreamSynchronize", "cudaFree",
        "cudaFreeHost", "cudaHostUnregister", "cudaStreamDestroy", "cudaEventDestroy"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        sweep(NAMES[i], ERROR_INVALID, false);
    }
}

static void calls_of_cublaslt(void **state)
{
    (void)state;
    enum { FAILED = 13 };
    static const char *const ASK[] = {"cublasLtCreate", "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescSetAttribute", "cublasLtMatmulPreferenceCreate",
        "cublasLtMatmulPreferenceSetAttribute", "cublasLtMatrixLayoutCreate",
        "cublasLtMatrixLayoutSetAttribute", "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmulAlgoCheck", "cublasLtMatmul"},
                             *const GIVE_BACK[] = {"cublasLtMatrixLayoutDestroy",
                                 "cublasLtMatmulPreferenceDestroy", "cublasLtMatmulDescDestroy",
                                 "cublasLtDestroy"};
    for (size_t i = 0; i < sizeof ASK / sizeof *ASK; i++) {
        sweep(ASK[i], FAILED, true);
    }
    for (size_t i = 0; i < sizeof GIVE_BACK / sizeof *GIVE_BACK; i++) {
        sweep(GIVE_BACK[i], FAILED, false);
    }
}

static void operations_under_way(void **state)
{
    (void)state;
    sweep("run copy", ERROR_ILLEGAL_ADDRESS, true);
    sweep("run launch", ERROR_ILLEGAL_ADDRESS, true);
    sweep("run set", ERROR_ILLEGAL_ADDRESS, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_that_ask),
        cmocka_unit_test(calls_that_give_back),
        cmocka_unit_test(calls_of_cublaslt),
        cmocka_unit_test(operations_under_way),
    };
    return cmocka_run_group_tests(tests, find_controls, NULL);
}
