/* What a node consists of and the simulation does without, or makes its own way: the process' begin
 * and end, device, model file, admin socket; and where the real store and mover get their seams. */
#include "base/check.h"
#include "base/memory.h"
#include "kernels/plugin.h"
#include "kvstore/store_internal.h"
#include "node/admin.h"
#include "node/process.h"
#include "runtime/rates.h"
#include "simulation/fake_wire.h"
#include "simulation/model.h"
#include "simulation/network.h"
#include "simulation/ownership.h"
#include "transport/mover/mover_internal.h"

#include <stdio.h>
#include <string.h>

/* ---- the process ---- */

static void add_target(kv_string_list_t *list, uint32_t node)
{
    char text[32];
    snprintf(text, sizeof text, "127.0.0.1:%u", CONTROL_PORT + node);
    list->items = kv_reallocate(list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = kv_duplicate_string(text);
}

bool kv_process_begin(const kv_options_program_t *program, int argc, char **argv,
    kv_options_t *options_out, int *code_out)
{
    kv_options_action_t action;
    kv_error_t error;
    if (kv_options_load(program, argc, argv, options_out, &action, &error) != KV_OK) {
        violation("options: %s", error.text);
    }
    const node_t *node = process_current()->node;
    options_out->node.port = CONTROL_PORT + node->number;
    options_out->node.wire = node->wire;
    options_out->node.drain_limit_ns = node->drain_limit_ns;
    options_out->model.chunk_tokens = 32;
    options_out->store.device_slots = node->slot_count;
    options_out->store.host_bytes = node->host_slot_count * kv_block_bytes(&MODEL_SHAPE);
    options_out->store.directory[0] = '\0';
    options_out->store.events_bytes = options_out->store.remote_bytes = 1 << 16;
    options_out->prefill.queue_max = options_out->decode.queue_max = node->queue_max;
    options_out->prefill.request_limit_ns = node->request_limit_ns;
    options_out->decode.batch_rows = node->batch_rows;
    options_out->decode.reserve_limit_ns = node->reserve_limit_ns;
    options_out->decode.transfer_limit_ns = node->transfer_limit_ns;
    for (uint32_t i = 0; i < node_count; i++) {
        if (nodes[i].role == KVIST__WIRE__ROLE__ROLE_PREFILL) {
            add_target(&options_out->decode.prefill_nodes, i);
        }
        if (node->meshed && nodes[i].role != KVIST__WIRE__ROLE__ROLE_GATEWAY) {
            add_target(&options_out->cluster.nodes, i);
        }
    }
    *code_out = 0;
    return true;
}

int kv_process_end(kv_options_t *options, kv_status_t status, const kv_error_t *error)
{
    if (status != KV_OK) {
        trace("ended: %s", error->text);
    }
    kv_options_clear(options);
    return status != KV_OK;
}

/* ---- requests, counted ---- */

enum { ROLES = 2 };

static struct {
    kv_core_params_t params;
    kv_request_ops_t ops;
    void (*destroy)(void *request);
    kv_accept_t accept;
} roles[ROLES];

static void destroyed(uint32_t role, void *request)
{
    process_t *process = process_current();
    process->request_count--;
    request_note_t **at = &process->requests;
    while ((*at)->request != request) {
        at = &(*at)->next;
    }
    *at = (*at)->next;
    roles[role].destroy(request);
}

static void destroyed_prefill(void *request)
{
    destroyed(0, request);
}

static void destroyed_decode(void *request)
{
    destroyed(1, request);
}

static void *accepted(uint32_t role, kv_core_t *core, uint64_t id, kv_peer_t *peer,
    const Kvist__Wire__Envelope *message)
{
    process_t *process = process_current();
    void *request = roles[role].accept(core, id, peer, message);
    if (request != NULL) {
        const char *name = message->body_case == KVIST__WIRE__ENVELOPE__BODY_PREFILL
                               ? message->prefill->request_id
                               : message->generate->request_id;
        process->request_count++;
        request_note_t *note = world_allocate(sizeof *note);
        *note = (request_note_t){process->requests, request, world_allocate(strlen(name) + 1)};
        memcpy(note->id, name, strlen(name));
        process->requests = note;
    }
    return request;
}

static void *accepted_prefill(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    return accepted(0, core, id, peer, message);
}

static void *accepted_decode(
    kv_core_t *core, uint64_t id, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    return accepted(1, core, id, peer, message);
}

/* What main() calls in kv_core_run's place (CMakeLists.txt). */
kv_status_t simulated_core_run(
    const kv_options_t *options, const kv_core_params_t *params, kv_error_t *error);
kv_status_t simulated_core_run(
    const kv_options_t *options, const kv_core_params_t *params, kv_error_t *error)
{
    uint32_t role = params->role == KVIST__WIRE__ROLE__ROLE_DECODE;
    roles[role].params = *params;
    roles[role].ops = *params->ops;
    roles[role].destroy = params->ops->destroy;
    roles[role].accept = params->accept;
    roles[role].ops.destroy = role == 0 ? destroyed_prefill : destroyed_decode;
    kv_core_params_t own = *params;
    own.ops = &roles[role].ops;
    own.accept = role == 0 ? accepted_prefill : accepted_decode;
    return kv_core_run(options, &own, error);
}

/* ---- device and model ---- */

kv_status_t kv_device_open(const char *name, uint32_t thread_count, kv_device_t **device_out,
    kv_error_t *passed_over_out, kv_error_t *error)
{
    (void)name;
    (void)thread_count;
    (void)passed_over_out;
    (void)error;
    static kv_device_t devices[] = {
        {&OWNED_DEVICE}, {&OWNED_HOST_DEVICE}, {&OWNED_MOVING_DEVICE}, {&OWNED_MOVING_DEVICE}};
    *device_out = &devices[pick(4)];
    return KV_OK;
}

void kv_device_close(kv_device_t *device)
{
    (void)device;
}

kv_status_t __wrap_kvist_fingerprint_file(
    const char *path, const char *folder, kvist_key_t *fingerprint_out, kv_error_t *error);
kv_status_t __wrap_kvist_fingerprint_file(
    const char *path, const char *folder, kvist_key_t *fingerprint_out, kv_error_t *error)
{
    (void)path;
    (void)folder;
    (void)error;
    memset(fingerprint_out, 0x11, sizeof *fingerprint_out);
    return KV_OK;
}

/* Fetches pay more often than the rates of a simulated machine say. */
bool __real_kv_rates_fetch_pays(
    kv_rates_t *rates, uint32_t block_count, uint32_t block_tokens, uint64_t block_bytes);
bool __wrap_kv_rates_fetch_pays(
    kv_rates_t *rates, uint32_t block_count, uint32_t block_tokens, uint64_t block_bytes);
bool __wrap_kv_rates_fetch_pays(
    kv_rates_t *rates, uint32_t block_count, uint32_t block_tokens, uint64_t block_bytes)
{
    return chance(700) || __real_kv_rates_fetch_pays(rates, block_count, block_tokens, block_bytes);
}

/* ---- store and mover ---- */

kv_status_t __wrap_kvist_store_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error);
kv_status_t __wrap_kvist_store_open(
    const kvist_store_params_t *params, kvist_store_t **store_out, kv_error_t *error)
{
    const kv_store_seams_t seams = {.threadless = true, .layer_step_bytes = 1};
    kv_status_t status = kv_store_open_with(params, &seams, store_out, error);
    process_current()->store = status == KV_OK ? *store_out : NULL;
    return status;
}

/* What the store gives to its workers is done after a while, in its order; what is left when the
 * store closes, then. */
typedef struct job job_t;
struct job {
    job_t *next;
    kv_job_t job;
};

static void run_job(void *subject, uint64_t detail)
{
    process_t *process = subject;
    (void)detail;
    job_t *job = process->jobs;
    if (job != NULL) { /* else it was done when the store closed */
        process->jobs = job->next;
        job->job.run(job->job.argument);
    }
}

kv_status_t __wrap_kv_workers_submit(kv_workers_t *workers, kv_job_t job);
kv_status_t __wrap_kv_workers_submit(kv_workers_t *workers, kv_job_t job)
{
    process_t *process = process_current();
    (void)workers;
    if (process->store == NULL) { /* it opens or closes: nobody takes turns */
        job.run(job.argument);
        return KV_OK;
    }
    job_t **end = &process->jobs;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = world_allocate(sizeof **end);
    (*end)->job = job;
    world_after(
        process_delay(process, process->node->store_delay_ns), process, run_job, process, 0);
    return KV_OK;
}

void __real_kvist_store_close(kvist_store_t *store);
void __wrap_kvist_store_close(kvist_store_t *store);
void __wrap_kvist_store_close(kvist_store_t *store)
{
    process_current()->store = NULL;
    while (process_current()->jobs != NULL) {
        run_job(process_current(), 0);
    }
    __real_kvist_store_close(store);
}

kv_status_t __wrap_kv_mover_create(
    const kv_mover_params_t *params, kv_mover_t **mover_out, kv_error_t *error);
kv_status_t __wrap_kv_mover_create(
    const kv_mover_params_t *params, kv_mover_t **mover_out, kv_error_t *error)
{
    kv_mover_params_t own = *params;
    own.driver = &FAKE_WIRE;
    kv_status_t status = mover_create_threadless(&own, mover_out, error);
    if (status == KV_OK) {
        (*mover_out)->message_bytes = process_current()->node->message_bytes;
    }
    process_current()->mover = status == KV_OK ? *mover_out : NULL;
    return status;
}

void __real_kv_mover_destroy(kv_mover_t *mover);
void __wrap_kv_mover_destroy(kv_mover_t *mover);
void __wrap_kv_mover_destroy(kv_mover_t *mover)
{
    process_current()->mover = NULL;
    __real_kv_mover_destroy(mover);
}

/* ---- the admin socket: nobody calls ---- */

kv_status_t kv_admin_open(kv_reactor_t *reactor, const char *path,
    const kv_admin_handlers_t *handlers, void *context, kv_admin_t **admin_out, kv_error_t *error)
{
    (void)reactor;
    (void)path;
    (void)handlers;
    (void)context;
    (void)error;
    *admin_out = NULL;
    return KV_OK;
}

void kv_admin_answer(kv_admin_t *admin, const Kvist__Admin__Request *request,
    void (*told)(void *context, const Kvist__Admin__Reply *reply), void *context)
{
    (void)admin;
    (void)request;
    (void)told;
    (void)context;
}

void kv_admin_close(kv_admin_t *admin)
{
    (void)admin;
}

void kv_admin_reply(kv_admin_call_t *call, const Kvist__Admin__Reply *reply)
{
    (void)call;
    (void)reply;
}

void kv_admin_reply_status(kv_admin_call_t *call, Kvist__Admin__Status *status)
{
    (void)call;
    (void)status;
}

void kv_admin_reply_list(kv_admin_call_t *call, Kvist__Admin__List *list)
{
    (void)call;
    (void)list;
}

void kv_admin_reply_done(kv_admin_call_t *call)
{
    (void)call;
}

void kv_admin_fail(kv_admin_call_t *call, kv_status_t status, const char *text)
{
    (void)call;
    (void)status;
    (void)text;
}
