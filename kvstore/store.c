/* Open, poll, close, and the figures. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/attach/attach.h"
#include "kvstore/disk/read.h"
#include "kvstore/embedded.h"
#include "kvstore/figures.h"
#include "kvstore/store_ops.h"
#include "kvstore/tenants.h"
#include "kvstore/unverified.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    WORKER_COUNT = 2,
    CLOSE_WAIT_MS = 100,
    POLL_ROUNDS_MAX = 4,
    /* Copied in 10 and 150 us; to wake a worker and hear of it takes 30, on busy cores 100. */
    SHORT_BYTES_MAX = 64 << 10,
    SHORT_ALONE_BYTES_MAX = 1 << 20, /* where no other copy is under way */
    HISTORY_BYTES_MAX = 1 << 30,
};

const char *kvist_tier_name(kvist_tier_t tier)
{
    static const char *const NAMES[KVIST_TIER_COUNT] = {"device", "host", "disk", "remote"};
    return (unsigned)tier < KVIST_TIER_COUNT ? NAMES[tier] : "unknown";
}

const char *kvist_miss_name(kvist_miss_t miss)
{
    static const char *const NAMES[KVIST_MISS_COUNT] = {"none", "new", "short", "expired",
        "not-admitted", "pending", "damaged", "failed", "bypassed", "evicted", "diverged",
        "namespace", "elsewhere", "cheaper", "cancelled"};
    return (unsigned)miss < KVIST_MISS_COUNT ? NAMES[miss] : "unknown";
}

uint32_t kv_store_now_s(const kvist_store_t *store)
{
    return (uint32_t)(store->clock->unix_ns(store->clock) / KV_NS_PER_S);
}

/* ---- tasks ---- */

static void run_task(void *argument)
{
    kv_task_t *task = argument;
    task->work(task);
}

void kv_store_finish(kv_task_t *task)
{
    KV_CHECK(kv_queue_push(task->store->finished, &task) == KV_OK);
}

static void start_tasks(kvist_store_t *store)
{
    while (store->first_task != NULL && store->tasks_out < KV_TASKS_MAX) {
        kv_task_t *task = store->first_task;
        store->first_task = task->next;
        if (store->first_task == NULL) {
            store->last_task = NULL;
        }
        store->tasks_out++;
        KV_CHECK(kv_workers_submit(store->workers, (kv_job_t){run_task, task}) == KV_OK);
    }
}

void kv_store_submit(kvist_store_t *store, kv_task_t *task)
{
    task->next = NULL;
    if (store->last_task != NULL) {
        store->last_task->next = task;
    } else {
        store->first_task = task;
    }
    store->last_task = task;
    start_tasks(store);
}

/* A device that moves by itself makes who asks it wait, for a lane or for the bytes. */
static bool device_waits(const kvist_store_t *store)
{
    return store->device != NULL && !store->device->ops->host &&
           store->device->ops->move_start != NULL;
}

void kv_store_submit_sized(kvist_store_t *store, kv_task_t *task, size_t bytes)
{
    const size_t limit = store->tasks_out == 0 ? SHORT_ALONE_BYTES_MAX : SHORT_BYTES_MAX;
    if (bytes > limit || device_waits(store) || store->first_task != NULL ||
        store->tasks_out == KV_TASKS_MAX) {
        kv_store_submit(store, task);
        return;
    }
    kv_store_work(store, task);
}

void kv_store_work(kvist_store_t *store, kv_task_t *task)
{
    if (store->tasks_out == KV_TASKS_MAX) { /* the queue of what is finished holds no more */
        kv_store_submit(store, task);
        return;
    }
    store->tasks_out++;
    task->work(task);
}

static void end_tasks(kvist_store_t *store)
{
    kv_task_t *task;
    while (kv_queue_pop(store->finished, &task) == KV_OK) {
        if (task->work != NULL) { /* some are none of the workers' */
            store->tasks_out--;
        }
        task->done(task);
        start_tasks(store);
    }
}

/* ---- polling ---- */

/* A poll under way looks for itself; else the descriptor becomes readable, once. */
void kv_store_kick(kvist_store_t *store)
{
    if (!store->kicked && !store->polling) {
        uint64_t one = 1;
        ssize_t ignored = write(store->kick_fd, &one, sizeof one);
        (void)ignored; /* it can only fail by being readable already */
    }
    store->kicked = true;
}

/* The timer wakes the poll that answers the next prepare whose deadline passed, or that sweeps. */
static void set_timer(kvist_store_t *store)
{
    uint64_t deadline_ns = kv_lease_next_deadline(store), sweep_ns = kv_sweep_due(store);
    deadline_ns = deadline_ns < sweep_ns ? deadline_ns : sweep_ns;
    if (deadline_ns == UINT64_MAX || deadline_ns == store->timer_ns) {
        return; /* a timer that nobody needs any more wakes one poll for nothing */
    }
    uint64_t now_ns = store->clock->monotonic_ns(store->clock);
    uint64_t wait_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 1;
    struct itimerspec timer = {.it_value = {.tv_sec = (time_t)(wait_ns / KV_NS_PER_S),
                                   .tv_nsec = (long)(wait_ns % KV_NS_PER_S)}};
    timerfd_settime(store->timer_fd, 0, &timer, NULL);
    store->timer_ns = deadline_ns;
    store->timer_fires_ns = kv_clock_now_ns() + wait_ns;
}

static void clear_descriptor(int fd)
{
    uint64_t value;
    ssize_t ignored = read(fd, &value, sizeof value);
    (void)ignored; /* EAGAIN: it was not readable */
}

void kv_store_advance(kvist_store_t *store)
{
    kv_reads_advance(store);
    kv_lease_pump(store);
    kv_puts_advance(store);
    if (store->disk != NULL) {
        kv_persist_advance(store);
    }
    kv_drop_advance(store);
    kv_spill_advance(store);
    kv_verify_advance(store);
    kv_sweep_advance(store);
    kv_tenants_advance(store);
    set_timer(store);
}

static void run_flush_callbacks(kvist_store_t *store)
{
    while (store->first_flushed != NULL) {
        kv_flush_t *flush = store->first_flushed;
        store->first_flushed = flush->next;
        flush->done(flush->context, flush->status);
        free(flush);
    }
}

/* What woke this poll is not readable any more. */
static void take_wakes(kvist_store_t *store)
{
    if (store->kicked) {
        clear_descriptor(store->kick_fd);
    }
    if (store->timer_ns != 0 && kv_clock_now_ns() >= store->timer_fires_ns) {
        clear_descriptor(store->timer_fd);
        store->timer_ns = 0;
    }
}

static void poll_once(kvist_store_t *store)
{
    store->kicked = false;
    end_tasks(store);
    if (store->disk != NULL) {
        kv_ring_poll(store->disk->ring);
    }
    kv_store_advance(store);
    kv_lease_run_callbacks(store);
    run_flush_callbacks(store);
    kv_drop_run_callbacks(store);
    kv_spill_run_callbacks(store);
    kv_verify_run_callbacks(store);
}

void kv_embedded_store_poll(kvist_store_t *store)
{
    take_wakes(store);
    store->polling = true;
    int rounds = 0;
    do {
        poll_once(store);
    } while (store->kicked && ++rounds < POLL_ROUNDS_MAX);
    kv_fill_advance(store); /* a portion for each poll */
    if (store->changes != NULL) {
        kv_changes_tell(store);
    }
    store->polling = false;
    if (store->kicked) { /* the rest is for the next poll */
        store->kicked = false;
        kv_store_kick(store);
    }
    kv_figures_publish(store);
}

int kv_embedded_store_fd(const kvist_store_t *store)
{
    return store->epoll_fd;
}

/* ---- the table ---- */

const kv_store_ops_t KV_EMBEDDED_OPS = {
    .close = kv_embedded_store_close,
    .fd = kv_embedded_store_fd,
    .poll = kv_embedded_store_poll,
    .flush = kv_embedded_store_flush,
    .match = kv_embedded_match,
    .runs = kv_embedded_lease_runs,
    .load = kv_embedded_lease_load,
    .store = kv_embedded_lease_store,
    .prepare = kv_embedded_lease_prepare,
    .prepare_layers = kv_embedded_lease_prepare_layers,
    .is_loading = kv_embedded_lease_is_loading,
    .slots = kv_embedded_lease_slots,
    .sealed_count = kv_embedded_lease_sealed_count,
    .seal = kv_embedded_lease_seal,
    .arithmetic = kv_embedded_lease_arithmetic,
    .release = kv_embedded_lease_release,
    .keep = kv_embedded_store_keep,
    .promise = kv_embedded_store_promise,
    .spill = kv_embedded_store_spill,
    .drop = kv_embedded_store_drop,
    .drop_tenant = kv_embedded_store_drop_tenant,
    .verify = kv_embedded_store_verify,
    .set_disk_bytes = kv_embedded_store_set_disk_bytes,
    .set_quota = kv_embedded_store_set_quota,
    .tenants = kv_embedded_store_tenants,
    .stats = kv_embedded_store_stats,
    .find = kv_embedded_store_find,
    .show = kv_embedded_store_show,
    .list = kv_embedded_store_list,
    .describe = kv_embedded_store_describe,
    .why = kv_embedded_why,
    .tokens = kv_embedded_store_tokens,
    .listen = kv_embedded_store_listen,
    .held = kv_embedded_store_held,
};

/* ---- open ---- */

/* 16 GFLOP, and 0.52 MFLOP more for each token before it, at 400 TFLOP/s. */
static const double COMPUTE_TOKEN_NS = 40e3, COMPUTE_DISTANCE_NS = 1.3;

static kv_status_t check_device(const kvist_store_params_t *params, kv_error_t *error)
{
    if (params->device == NULL && params->device_slot_count == 0) {
        return KV_OK;
    }
    if (params->device == NULL || params->device_arena == NULL) {
        return kv_fail(error, KV_INVALID, "device, device_arena and device_slot_count go together");
    }
    if (params->device_slot_count < 1 || params->device_slot_count > INT32_MAX) {
        return kv_fail(error, KV_INVALID, "device_slot_count is %u: it must be 1 to %d",
            params->device_slot_count, INT32_MAX);
    }
    if (params->layout->group_count != 1) {
        return kv_fail(error, KV_INVALID,
            "layout.group_count is %u: the device tier holds layouts of one group",
            params->layout->group_count);
    }
    return KV_OK;
}

static kv_status_t check_params(const kvist_store_params_t *params, kv_error_t *error)
{
    if (params->layout == NULL) {
        return kv_fail(error, KV_INVALID, "layout must be given");
    }
    if (params->origin != NULL && strlen(params->origin) >= KV_ORIGIN_BYTES) {
        return kv_fail(error, KV_INVALID, "origin has %zu bytes: at most %d",
            strlen(params->origin), KV_ORIGIN_BYTES - 1);
    }
    if ((unsigned)params->persist > KVIST_PERSIST_SPILL ||
        (unsigned)params->codec >= KVIST_CODEC_COUNT || (unsigned)params->io > KVIST_IO_THREADS ||
        (unsigned)params->policy >= KVIST_POLICY_COUNT) {
        return kv_fail(
            error, KV_INVALID, "persist, codec, io or policy is none of its enumeration");
    }
    if (!(params->compute_token_ns >= 0) || !(params->compute_distance_ns >= 0)) {
        return kv_fail(error, KV_INVALID,
            "compute_token_ns is %g and compute_distance_ns %g: they must be 0 or more",
            params->compute_token_ns, params->compute_distance_ns);
    }
    if (params->history_bytes > HISTORY_BYTES_MAX) {
        return kv_fail(error, KV_INVALID, "history_bytes is %ju: it must be 0 to %ju",
            (uintmax_t)params->history_bytes, (uintmax_t)HISTORY_BYTES_MAX);
    }
    if (params->key_file != NULL && params->directory == NULL) {
        return kv_fail(error, KV_INVALID, "key_file is of no use without a directory");
    }
    return check_device(params, error);
}

static kv_status_t work_out_groups(
    kvist_store_t *store, const kvist_layout_t *layout, kv_error_t *error)
{
    kv_status_t status = kvist_layout_check(layout, error);
    store->block_tokens = status == KV_OK ? layout->block_tokens : 0;
    store->block_words = kv_identity_word_count(store->block_tokens);
    for (uint32_t i = 0; status == KV_OK && i < layout->group_count; i++) {
        kv_layout_t *of_group = &store->groups[i].layout;
        status = kv_layout_init(layout, i, of_group, error);
        if (status == KV_OK) {
            size_t record_bytes = kv_record_bytes_max(of_group);
            size_t scratch_bytes = kv_record_scratch_bytes(of_group);
            store->scratch_bytes_max =
                scratch_bytes > store->scratch_bytes_max ? scratch_bytes : store->scratch_bytes_max;
            store->object_bytes_max = of_group->object_bytes > store->object_bytes_max
                                          ? of_group->object_bytes
                                          : store->object_bytes_max;
            store->record_bytes_max =
                record_bytes > store->record_bytes_max ? record_bytes : store->record_bytes_max;
            store->group_count++;
        }
    }
    return status;
}

static kv_status_t open_arena(kv_store_group_t *group, uint32_t slot_count, uint32_t block_words,
    bool shared, const kv_policy_ops_t *policy, kv_error_t *error)
{
    kv_arena_t *arena = &group->host_arena;
    kv_arena_plan_t plan = {
        .slot_count = slot_count,
        .unit_count = group->layout.unit_count,
        .block_words = block_words,
        .object_bytes = group->layout.object_bytes,
    };
    kv_status_t status = kv_arena_plan(&plan, error);
    if (status == KV_OK) {
        status = kv_arena_open(&plan, shared, arena, error);
    }
    if (status == KV_OK) { /* last: it stops the process where memory is out */
        kv_pool_init(&group->host_pool, slot_count, block_words, plan.unit_count,
            kv_arena_words(arena), kv_arena_checksums(arena), policy);
        kv_pool_extend(&group->host_pool, shared ? 0 : slot_count);
    }
    return status;
}

/* Each group gets as many slots as the others: one block needs one of each. */
static kv_status_t open_host(kvist_store_t *store, const kvist_store_params_t *params,
    const kv_store_seams_t *seams, kv_error_t *error)
{
    uint64_t block_bytes = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        block_bytes += store->groups[i].layout.object_bytes;
    }
    uint64_t slot_count = params->host_bytes / block_bytes;
    if (params->host_bytes > 0 && (slot_count < 1 || slot_count > INT32_MAX)) {
        return kv_fail(error, KV_INVALID,
            "host_bytes is %ju: it must be 0, or 1 to %d blocks of %ju bytes",
            (uintmax_t)params->host_bytes, INT32_MAX, (uintmax_t)block_bytes);
    }
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; status == KV_OK && slot_count > 0 && i < store->group_count; i++) {
        status = open_arena(&store->groups[i], (uint32_t)slot_count, store->block_words,
            params->host_shared, store->policy, error);
    }
    if (status == KV_OK && slot_count > 0 && params->host_shared) {
        const bool machine = seams == NULL || seams->memory == NULL;
        status = kv_populate_open(store, machine ? &KV_ARENA_MACHINE : seams->memory, error);
    }
    if (status == KV_OK && !store->threadless) {
        kv_pin_open(store);
    }
    return status;
}

static kv_status_t watch(kvist_store_t *store, int fd, kv_error_t *error)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd < 0 || epoll_ctl(store->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        return kv_fail(error, KV_NO_SPACE, "no descriptors are left for the store");
    }
    return KV_OK;
}

static kv_status_t open_descriptors(kvist_store_t *store, kv_error_t *error)
{
    store->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    store->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    store->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    kv_status_t status = watch(store, store->timer_fd, error);
    if (status == KV_OK) {
        status = watch(store, store->kick_fd, error);
    }
    return status == KV_OK ? watch(store, kv_queue_fd(store->finished), error) : status;
}

/* What it takes to have a block of the pool again, where the tier below (if any) has this rate. */
static void set_costs(const kvist_store_t *store, const kvist_store_params_t *params,
    kv_pool_t *pool, uint32_t group, const double *reload_ns_per_byte)
{
    bool given = params->compute_token_ns > 0 || params->compute_distance_ns > 0;
    double token_ns = given ? params->compute_token_ns : COMPUTE_TOKEN_NS;
    double distance_ns = given ? params->compute_distance_ns : COMPUTE_DISTANCE_NS;
    if (pool->slot_count > 0) {
        pool->clock = store->clock;
        *pool->costs = (kv_policy_costs_t){
            .bytes = store->groups[group].layout.object_bytes,
            .block_ns = token_ns * store->block_tokens,
            .distance_ns = distance_ns * store->block_tokens * store->block_tokens,
            .reload_ns_per_byte = reload_ns_per_byte,
        };
    }
}

static void set_all_costs(kvist_store_t *store, const kvist_store_params_t *params)
{
    const double *host = params->host_bytes > 0 ? &store->load_ns_per_byte[KVIST_TIER_HOST] : NULL;
    const double *disk = store->disk != NULL ? &store->load_ns_per_byte[KVIST_TIER_DISK] : NULL;
    set_costs(store, params, &store->device_pool, 0, host != NULL ? host : disk);
    for (uint32_t i = 0; i < store->group_count; i++) {
        set_costs(store, params, &store->groups[i].host_pool, i, disk);
    }
}

static void release_store(kvist_store_t *store)
{
    kv_workers_destroy(store->workers);
    kv_populate_close(store);
    kv_pin_close(store);
    kv_queue_destroy(store->finished);
    int fds[] = {store->epoll_fd, store->timer_fd, store->kick_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    for (uint32_t i = 0; i < store->group_count; i++) {
        kv_arena_close(&store->groups[i].host_arena);
        kv_pool_destroy(&store->groups[i].host_pool);
    }
    kv_pool_destroy(&store->device_pool);
    free(store->device_words);
    kv_names_t *names[] = {&store->namespaces, &store->arithmetics, &store->origins,
        &store->tenants, &store->families};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kv_names_destroy(names[i]);
    }
    kv_table_destroy(store->table);
    kv_why_close(store);
    kv_tenants_close(store);
    free(store->loads);
    free(store);
}

kv_status_t kv_store_open_with(const kvist_store_params_t *params, const kv_store_seams_t *seams,
    kvist_store_t **store_out, kv_error_t *error)
{
    kv_status_t status = check_params(params, error);
    if (status != KV_OK) {
        return status;
    }
    kvist_store_t *store = kv_allocate(sizeof *store);
    *store = (kvist_store_t){
        .ops = &KV_EMBEDDED_OPS,
        .device = params->device,
        .arena = params->device_arena,
        .clock = params->clock != NULL ? params->clock : kv_clock_real(),
        .persist = params->persist,
        .codec = params->codec,
        .policy = kv_policy_at(params->policy),
        /* 5, 5 and 1 GB/s, until they are measured */
        .load_ns_per_byte = {0.2, 0.2, 1.0},
        .epoll_fd = -1,
        .timer_fd = -1,
        .kick_fd = -1,
    };
    store->table = kv_table_create();
    kv_why_open(store, params->history_bytes);
    status = work_out_groups(store, params->layout, error);
    store->device_words = kv_allocate_array(
        (size_t)params->device_slot_count * store->block_words, sizeof *store->device_words);
    kv_pool_init(&store->device_pool, params->device_slot_count, store->block_words, 0,
        store->device_words, NULL, store->policy);
    kv_pool_extend(&store->device_pool, params->device_slot_count);
    store->loads = kv_allocate_array(params->device_slot_count, sizeof(kv_load_t *));
    kv_names_init(&store->namespaces, KVIST_KEY_BYTES, UINT16_MAX);
    kv_names_init(&store->arithmetics, KV_ARITHMETIC_BYTES, UINT8_MAX);
    kv_names_init(&store->origins, KV_ORIGIN_BYTES, UINT8_MAX);
    kv_names_init(&store->tenants, KV_TENANT_BYTES, UINT16_MAX);
    kv_names_init(&store->families, sizeof(kv_family_t), UINT16_MAX);
    strncpy(store->origin, params->origin != NULL ? params->origin : "", KV_ORIGIN_BYTES - 1);
    store->finished = kv_queue_create(KV_TASKS_MAX + 2 + KV_FILL_TASKS_MAX, sizeof(kv_task_t *));
    store->threadless = seams != NULL && seams->threadless;
    store->unverified = seams != NULL && seams->unverified;
    store->layer_step_bytes = seams != NULL ? seams->layer_step_bytes : 0;
    store->workers =
        kv_workers_create("kv-store", store->threadless ? 0 : WORKER_COUNT, KV_TASKS_MAX);
    if (status == KV_OK) {
        status = kv_tenants_open(store, params, error);
    }
    if (status == KV_OK) {
        status = open_host(store, params, seams, error);
    }
    if (status == KV_OK) {
        status = open_descriptors(store, error);
    }
    if (status == KV_OK && params->directory != NULL) {
        status = kv_directory_open(store, params, seams, error);
        if (status == KV_OK) {
            status = watch(store, kv_ring_fd(store->disk->ring), error);
            if (status != KV_OK) {
                kv_directory_close(store);
            }
        }
    }
    if (status != KV_OK) {
        release_store(store);
        return status;
    }
    set_all_costs(store, params);
    kv_figures_open(store);
    *store_out = store;
    return KV_OK;
}

kv_status_t kvist_store_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error)
{
    if (params->attach != NULL) {
        return kv_attached_open(params, NULL, store_out, error);
    }
    return kv_store_open_with(params, NULL, store_out, error);
}

kv_status_t kv_store_open_unverified(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error)
{
    const kv_store_seams_t seams = {.unverified = true};
    return kv_store_open_with(params, &seams, store_out, error);
}

const kv_arena_t *kv_embedded_store_arena(const kvist_store_t *store, uint32_t group)
{
    const kv_arena_t *arena = &store->groups[group].host_arena;
    return arena->region.base != NULL && arena->fd >= 0 ? arena : NULL;
}

/* ---- close ---- */

static void note_end(void *context, kv_status_t status)
{
    if (status != KV_OK && status != KV_MISSING) {
        kv_log_warn("store", "not everything could be made durable: %s", kv_status_name(status));
    }
    *(bool *)context = true;
}

static bool idle(const kvist_store_t *store)
{
    return store->leases_ending == 0 && store->tasks_out == 0 && store->first_task == NULL &&
           store->first_ready == NULL && store->first_transfer == NULL &&
           store->first_flushed == NULL && store->first_drop == NULL &&
           store->first_dropped == NULL && store->first_spill == NULL && store->verify == NULL &&
           !kv_fill_busy(store) && store->populate == NULL &&
           (store->disk == NULL || kv_persist_idle(store));
}

void kv_embedded_store_close(kvist_store_t *store)
{
    bool flushed = false;
    kv_verify_cancel(store);
    kv_populate_stop(store);
    kv_embedded_store_flush(store, note_end, &flushed);
    while (!flushed || !idle(store)) {
        if (store->first_drop == NULL) { /* a drop waits for all that descends from its block */
            kv_fill_stop(store);
        }
        if (flushed && store->disk != NULL) {
            store->disk->closing = true;
        }
        struct epoll_event event;
        epoll_wait(store->epoll_fd, &event, 1, CLOSE_WAIT_MS);
        kv_embedded_store_poll(store);
    }
    KV_CHECK(store->lease_count == 0);
    if (store->disk != NULL) {
        kv_directory_close(store);
    }
    kv_figures_close(store);
    kv_changes_close(store);
    release_store(store);
}
