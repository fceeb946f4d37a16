#include "simulation/ownership.h"

#include "base/checksum.h"
#include "base/memory.h"
#include "kernels/moves.h"
#include "simulation/model.h"
#include "transport/mover/mover_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const kvist_lease_t *owner; /* NULL: none that this account knows of */
    bool sealed;
    uint64_t transfer_id; /* that may be written into it; 0: none */
    uint32_t reading;     /* pieces */
    uint32_t computing;
} slot_t;

typedef struct lease_note lease_note_t;
struct lease_note {
    lease_note_t *next;
    process_t *process;
    kvist_lease_t *lease;
    bool prepared, released;
    uint32_t slot_count, *slots;
    uint32_t reading, computing; /* pieces and computations that were given its block table */
    kvist_prepared_t done;
    kvist_layers_t layers;
    uint32_t layer_count; /* told so far */
    void *context;
};

typedef struct expected expected_t;
struct expected {
    expected_t *next;
    uint64_t transfer_id;
    bool ended;
    uint32_t block_count, *slots;
};

typedef struct piece_note piece_note_t;
struct piece_note {
    piece_note_t *next;
    lease_note_t *lease;
    kv_link_t link;
    uint64_t transfer_id, tag;
    uint32_t block_count, *slots;
};

struct ownership {
    char *arena;
    uint32_t slot_count;
    slot_t *slots;
    bool mover_runs;
    lease_note_t *leases;
    expected_t *expected; /* every one that ever was: an id is not used twice */
    piece_note_t *pieces;
};

static uint32_t refusal_chance;

void ownership_set_refusals(uint32_t per_mille)
{
    refusal_chance = per_mille;
}

void ownership_open(process_t *process, void *arena, uint32_t slot_count)
{
    ownership_t *ownership = world_allocate(sizeof *ownership);
    ownership->arena = arena;
    ownership->slot_count = slot_count;
    ownership->slots = world_allocate(slot_count * sizeof *ownership->slots);
    process->ownership = ownership;
}

void ownership_close(process_t *process)
{
    ownership_check_quiet(process);
    process->ownership = NULL;
}

static ownership_t *here(void)
{
    return process_current()->ownership;
}

/* ---- leases ---- */

/* A slot begins a new life. */
static void own(ownership_t *ownership, uint32_t number, const kvist_lease_t *lease)
{
    slot_t *slot = &ownership->slots[number];
    if (slot->owner != NULL && !slot->sealed) {
        violation("slot %u has two owners", number);
    }
    if (slot->transfer_id != 0 || slot->reading != 0 || slot->computing != 0) {
        violation("slot %u gets a new owner while transfer %llu may write it, %u pieces and %u "
                  "computations use it",
            number, (unsigned long long)slot->transfer_id, slot->reading, slot->computing);
    }
    slot->owner = lease;
    slot->sealed = false;
    memset(ownership->arena + number * kv_block_bytes(&MODEL_SHAPE), 0x5a,
        kv_block_bytes(&MODEL_SHAPE));
}

static lease_note_t **find_lease(ownership_t *ownership, const kvist_lease_t *lease)
{
    lease_note_t **at = &ownership->leases;
    while (*at != NULL && ((*at)->lease != lease || (*at)->released)) {
        at = &(*at)->next;
    }
    return at;
}

static void forget_lease(ownership_t *ownership, const lease_note_t *note)
{
    lease_note_t **at = &ownership->leases;
    while (*at != note) {
        at = &(*at)->next;
    }
    *at = note->next;
}

static void prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    lease_note_t *note = context;
    ownership_t *ownership = note->process->ownership;
    if (status == KV_OK && note->released) {
        violation("a lease that was released is prepared");
    }
    if (status == KV_OK) {
        note->prepared = true;
        const uint32_t *slots = kvist_lease_slots(lease);
        note->slots = world_allocate(note->slot_count * sizeof *note->slots);
        memcpy(note->slots, slots, note->slot_count * sizeof *note->slots);
        for (uint32_t block = match->block_count; block < note->slot_count; block++) {
            own(ownership, slots[block], lease);
        }
    } else {
        forget_lease(ownership, note);
    }
    note->done(note->context, lease, status, match);
}

static void layers_came(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t layer_count)
{
    lease_note_t *note = context;
    if (!note->prepared || *find_lease(note->process->ownership, lease) != note) {
        violation("a lease hears of layers that is not prepared, or released");
    }
    if (layer_count < note->layer_count || layer_count > MODEL_LAYERS) {
        violation("%u layers after %u", layer_count, note->layer_count);
    }
    trace("store: %u layers of a lease are there, status %s", layer_count, kv_status_name(status));
    note->layer_count = layer_count;
    note->layers(note->context, lease, status, layer_count);
}

static kv_status_t note_lease(lease_note_t *note, kv_status_t status)
{
    if (status == KV_OK) {
        note->next = here()->leases;
        here()->leases = note;
    }
    return status;
}

kv_status_t __real_kvist_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context);
kv_status_t __wrap_kvist_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context);
kv_status_t __wrap_kvist_lease_prepare_layers(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, kvist_layers_t layers, void *context)
{
    lease_note_t *note = world_allocate(sizeof *note);
    *note = (lease_note_t){.process = process_current(),
        .lease = lease,
        .slot_count = slot_count,
        .done = done,
        .layers = layers,
        .context = context};
    return note_lease(note, __real_kvist_lease_prepare_layers(
                                lease, slot_count, deadline_ns, prepared, layers_came, note));
}

kv_status_t __real_kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, void *context);
kv_status_t __wrap_kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, void *context);
kv_status_t __wrap_kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count,
    uint64_t deadline_ns, kvist_prepared_t done, void *context)
{
    lease_note_t *note = world_allocate(sizeof *note);
    *note = (lease_note_t){.process = process_current(),
        .lease = lease,
        .slot_count = slot_count,
        .done = done,
        .context = context};
    return note_lease(
        note, __real_kvist_lease_prepare(lease, slot_count, deadline_ns, prepared, note));
}

kv_status_t __real_kvist_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic);
kv_status_t __wrap_kvist_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic);
kv_status_t __wrap_kvist_lease_seal(
    kvist_lease_t *lease, const uint32_t *tokens, const kvist_key_t *extra, const char *arithmetic)
{
    ownership_t *ownership = here();
    const lease_note_t *note = *find_lease(ownership, lease);
    uint32_t block = kvist_lease_sealed_count(lease);
    if (note == NULL || !note->prepared || block >= note->slot_count) {
        violation("block %u is sealed through a lease that does not have it", block);
    }
    slot_t *slot = &ownership->slots[note->slots[block]];
    if (slot->transfer_id != 0) {
        violation("slot %u is sealed while transfer %llu may write it", note->slots[block],
            (unsigned long long)slot->transfer_id);
    }
    slot->sealed = true;
    return __real_kvist_lease_seal(lease, tokens, extra, arithmetic);
}

/* Whose block table that is. */
static lease_note_t *lease_of(const ownership_t *ownership, const uint32_t *slots)
{
    lease_note_t *at = ownership->leases;
    while (at != NULL && (!at->prepared || slots < kvist_lease_slots(at->lease) ||
                             slots >= kvist_lease_slots(at->lease) + at->slot_count)) {
        at = at->next;
    }
    if (at == NULL) {
        violation("a block table that is no lease's");
    }
    return at;
}

static void disown(ownership_t *ownership, const lease_note_t *note)
{
    if (note->reading != 0 || note->computing != 0) {
        violation("a lease is released while %u pieces and %u computations use its slots",
            note->reading, note->computing);
    }
    for (uint32_t block = 0; block < note->slot_count; block++) {
        slot_t *slot = &ownership->slots[note->slots[block]];
        if (slot->owner != note->lease) {
            continue; /* found, not made by this one */
        }
        if (slot->transfer_id != 0) {
            violation("slot %u is released while transfer %llu may write it", note->slots[block],
                (unsigned long long)slot->transfer_id);
        }
        slot->owner = NULL;
    }
}

void __real_kvist_lease_release(kvist_lease_t *lease);
void __wrap_kvist_lease_release(kvist_lease_t *lease);
void __wrap_kvist_lease_release(kvist_lease_t *lease)
{
    lease_note_t *note = *find_lease(here(), lease);
    if (note != NULL && note->prepared) {
        disown(here(), note);
        forget_lease(here(), note);
    } else if (note != NULL) {
        note->released = true; /* its callback is still to come */
    }
    __real_kvist_lease_release(lease);
}

/* ---- the mover ---- */

kv_status_t __real_kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *wanted, kv_error_t *error);
kv_status_t __wrap_kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *wanted, kv_error_t *error);
kv_status_t __wrap_kv_mover_expect(
    kv_mover_t *mover, kv_link_t link, const kv_expectation_t *wanted, kv_error_t *error)
{
    if (chance(refusal_chance)) {
        return kv_fail(error, KV_BUSY, "simulated: too many transfers are expected");
    }
    ownership_t *ownership = here();
    const uint64_t transfer_id = wanted->transfer_id;
    const uint32_t *slots = wanted->slots;
    for (const expected_t *at = ownership->expected; at != NULL; at = at->next) {
        if (at->transfer_id == transfer_id) {
            violation("transfer id %llu is used twice", (unsigned long long)transfer_id);
        }
    }
    kv_status_t status = __real_kv_mover_expect(mover, link, wanted, error);
    if (status != KV_OK) {
        return status;
    }
    expected_t *expected = world_allocate(sizeof *expected);
    *expected = (expected_t){.next = ownership->expected,
        .transfer_id = transfer_id,
        .block_count = wanted->block_count,
        .slots = world_allocate(wanted->block_count * sizeof *expected->slots)};
    ownership->expected = expected;
    for (uint32_t i = 0; i < wanted->block_count; i++) {
        slot_t *slot = &ownership->slots[slots[i]];
        expected->slots[i] = slots[i];
        if (slot->owner == NULL || slot->sealed || slot->transfer_id != 0 || slot->computing != 0) {
            violation("transfer %llu is expected into slot %u, which is not its to write",
                (unsigned long long)transfer_id, slots[i]);
        }
        slot->transfer_id = transfer_id;
    }
    trace("expects transfer %llu: %u blocks", (unsigned long long)transfer_id, wanted->block_count);
    return KV_OK;
}

static void expectation_ends(ownership_t *ownership, uint64_t transfer_id)
{
    for (expected_t *at = ownership->expected; at != NULL; at = at->next) {
        if (at->transfer_id == transfer_id && !at->ended) {
            at->ended = true;
            for (uint32_t i = 0; i < at->block_count; i++) {
                ownership->slots[at->slots[i]].transfer_id = 0;
            }
        }
    }
}

kv_status_t __real_kv_mover_send(
    kv_mover_t *mover, kv_link_t link, const kv_piece_t *piece, kv_error_t *error);
kv_status_t __wrap_kv_mover_send(
    kv_mover_t *mover, kv_link_t link, const kv_piece_t *piece, kv_error_t *error);
kv_status_t __wrap_kv_mover_send(
    kv_mover_t *mover, kv_link_t link, const kv_piece_t *piece, kv_error_t *error)
{
    if (chance(refusal_chance)) {
        return kv_fail(error, KV_BUSY, "simulated: too many pieces wait");
    }
    kv_status_t status = __real_kv_mover_send(mover, link, piece, error);
    if (status != KV_OK) {
        return status;
    }
    ownership_t *ownership = here();
    piece_note_t *note = world_allocate(sizeof *note);
    *note = (piece_note_t){ownership->pieces, lease_of(ownership, piece->slots), link,
        piece->transfer_id, piece->tag, piece->block_count,
        world_allocate(piece->block_count * sizeof *note->slots)};
    ownership->pieces = note;
    note->lease->reading++;
    for (uint32_t i = 0; i < piece->block_count; i++) {
        note->slots[i] = piece->slots[i];
        ownership->slots[piece->slots[i]].reading++;
    }
    return KV_OK;
}

static void piece_ends(ownership_t *ownership, const kv_mover_event_t *event)
{
    piece_note_t **at = &ownership->pieces;
    while (*at != NULL && ((*at)->transfer_id != event->transfer_id || (*at)->tag != event->tag ||
                              (*at)->link != event->link)) {
        at = &(*at)->next;
    }
    piece_note_t *note = *at;
    if (note == NULL) {
        violation(
            "a SENT of transfer %llu without a piece", (unsigned long long)event->transfer_id);
    }
    *at = note->next;
    note->lease->reading--;
    for (uint32_t i = 0; i < note->block_count; i++) {
        ownership->slots[note->slots[i]].reading--;
    }
}

/* LINK_DOWN is a link's last event: what was expected of it has failed. */
static void check_failed(const kv_mover_t *mover, kv_link_t link)
{
    for (size_t i = 0; i < EXPECTATION_BUCKETS; i++) {
        for (const expectation_t *at = mover->expectations[i]; at != NULL; at = at->next) {
            if (at->link == link && !at->failed) {
                violation("transfer %llu is expected of a link that is down",
                    (unsigned long long)at->transfer_id);
            }
        }
    }
}

bool __real_kv_mover_poll(kv_mover_t *mover, kv_mover_event_t *event_out);
bool __wrap_kv_mover_poll(kv_mover_t *mover, kv_mover_event_t *event_out);
bool __wrap_kv_mover_poll(kv_mover_t *mover, kv_mover_event_t *event_out)
{
    static const char *const NAMES[] = {
        "link up", "link down", "sent", "landed", "failed", "revoked"};
    if (!__real_kv_mover_poll(mover, event_out)) {
        return false;
    }
    trace("mover: %s transfer %llu status %s %s", NAMES[event_out->kind],
        (unsigned long long)event_out->transfer_id, kv_status_name(event_out->status),
        event_out->text);
    if (event_out->kind == KV_MOVED_LINK_DOWN) {
        check_failed(mover, event_out->link);
    } else if (event_out->kind == KV_MOVED_SENT) {
        piece_ends(here(), event_out);
    } else if (event_out->kind == KV_MOVED_LANDED || event_out->kind == KV_MOVED_REVOKED) {
        expectation_ends(here(), event_out->transfer_id);
    }
    return true;
}

void ownership_enter_mover(process_t *process, bool enter)
{
    process->ownership->mover_runs = enter;
}

/* ---- computations and writes ---- */

void ownership_compute(process_t *process, const uint32_t *slots, uint32_t first_block,
    uint32_t slot_count, bool begins)
{
    lease_of(process->ownership, slots)->computing += begins ? 1 : -1;
    for (uint32_t block = first_block; block < slot_count; block++) {
        slot_t *slot = &process->ownership->slots[slots[block]];
        if (begins && (slot->owner == NULL || slot->transfer_id != 0 || slot->computing != 0)) {
            violation("compute begins in slot %u, which is not its to write", slots[block]);
        }
        slot->computing += begins ? 1 : -1;
    }
}

void ownership_written(process_t *process, uint32_t number, const char *who)
{
    const slot_t *slot = &process->ownership->slots[number];
    if (slot->owner == NULL || slot->sealed) {
        violation("%s writes slot %u, which is %s", who, number, slot->sealed ? "sealed" : "free");
    }
}

static void written(process_t *process, const void *to, bool may_be_read)
{
    ownership_t *ownership = process->ownership;
    uint32_t number =
        (uint32_t)(((const char *)to - ownership->arena) / kv_block_bytes(&MODEL_SHAPE));
    slot_t *slot = &ownership->slots[number];
    if (number >= ownership->slot_count) {
        violation("a write outside of the arena");
    }
    if (ownership->mover_runs) {
        ownership_written(process, number, "the mover");
        if (slot->transfer_id == 0) {
            violation("the mover writes slot %u, where nothing is expected", number);
        }
        return;
    }
    if (slot->transfer_id != 0 || slot->computing != 0 || (slot->reading != 0 && !may_be_read)) {
        violation("the store writes slot %u, which is in use", number);
    }
}

static kv_status_t copy_in(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    written(process_current(), to, false);
    memcpy(to, from, bytes);
    return KV_OK;
}

static kv_status_t copy_out(
    kv_device_t *device, void *to, const void *from, size_t bytes, kv_error_t *error)
{
    (void)device;
    (void)error;
    memcpy(to, from, bytes);
    return KV_OK;
}

/* The mover's own way into memory that is the host's. */
uint64_t __real_kv_checksum_copy_seeded(void *to, const void *from, size_t bytes, uint64_t seed);
uint64_t __wrap_kv_checksum_copy_seeded(void *to, const void *from, size_t bytes, uint64_t seed);
uint64_t __wrap_kv_checksum_copy_seeded(void *to, const void *from, size_t bytes, uint64_t seed)
{
    if (process_current()->ownership->mover_runs) {
        written(process_current(), to, false);
    }
    return __real_kv_checksum_copy_seeded(to, from, bytes, seed);
}

/* ---- moves by the device ---- */

static uint32_t move_failure_chance;

void ownership_set_move_failures(uint32_t per_mille)
{
    move_failure_chance = per_mille;
}

/* Of a slot whose first layers are there already, those may be on their way to a peer. */
static void move_part(const kv_move_params_t *params, uint32_t at, const kv_slot_part_t *part,
    char *outside, bool bends)
{
    char *slot = params->arena + params->slots[at] * params->slot_bytes + part->offset_bytes;
    if (params->direction == KV_MOVE_OUT) {
        memcpy(outside, slot, part->bytes);
        return;
    }
    written(process_current(), slot, part->bytes < params->slot_bytes);
    memcpy(slot, outside, part->bytes);
    slot[part->bytes - 1] ^= bends;
}

/* Of what is outside, where a slot's parts lie together: nothing of that is bent. Else of the units
 * in the slot. */
static void seal_slot(const kv_move_params_t *params, uint32_t at)
{
    if (params->seeds != NULL) {
        params->checksums[at] =
            kv_checksum_seeded(params->outside[at], kv_move_slot_bytes(params), params->seeds[at]);
        return;
    }
    const char *slot =
        params->arena + params->slots[at] * params->slot_bytes + params->parts[0].offset_bytes;
    const uint32_t units = kv_move_slot_units(params);
    for (uint32_t unit = 0; unit < units; unit++) {
        params->checksums[at * units + unit] =
            kv_checksum(slot + unit * params->unit_bytes, params->unit_bytes);
    }
}

/* Done when it is started, in the event of the job or of the mover that asked for it. */
static kv_status_t move_start(
    kv_device_t *device, const kv_move_params_t *params, kv_move_t **move_out, kv_error_t *error)
{
    (void)device;
    const bool fails = !here()->mover_runs && chance(move_failure_chance);
    const bool bends = fails && params->unit_bytes > 0 && params->direction == KV_MOVE_IN;
    const uint32_t bent = bends ? pick(params->slot_count) : UINT32_MAX;
    if (fails && !bends) {
        return kv_fail(error, KV_FATAL, "simulated: a move fails");
    }
    for (uint32_t at = 0; at < params->slot_count; at++) {
        char *outside = params->outside[at];
        for (uint32_t i = 0; i < params->part_count; i++) {
            move_part(params, at, &params->parts[i], outside, at == bent);
            outside += params->parts[i].bytes;
        }
        seal_slot(params, at);
    }
    *move_out = NULL;
    return KV_OK;
}

const kv_device_ops_t OWNED_MOVING_DEVICE = {
    .name = "simulated", .copy_in = copy_in, .copy_out = copy_out, .move_start = move_start};
const kv_device_ops_t OWNED_DEVICE = {
    .name = "simulated", .copy_in = copy_in, .copy_out = copy_out};
const kv_device_ops_t OWNED_HOST_DEVICE = {
    .name = "simulated", .copy_in = copy_in, .copy_out = copy_out, .host = true};

/* ---- the end ---- */

void ownership_check_quiet(const process_t *process)
{
    const ownership_t *ownership = process->ownership;
    if (ownership->leases != NULL) {
        violation("%s: a lease is left", process->name);
    }
    if (ownership->pieces != NULL) {
        violation("%s: a piece of transfer %llu had no SENT", process->name,
            (unsigned long long)ownership->pieces->transfer_id);
    }
    for (const expected_t *at = ownership->expected; at != NULL; at = at->next) {
        if (!at->ended) {
            violation("%s: transfer %llu has neither LANDED nor REVOKED", process->name,
                (unsigned long long)at->transfer_id);
        }
    }
    for (uint32_t i = 0; i < ownership->slot_count; i++) {
        const slot_t *slot = &ownership->slots[i];
        if (slot->owner != NULL || slot->reading != 0 || slot->computing != 0) {
            violation("%s: slot %u is still in use", process->name, i);
        }
    }
}
