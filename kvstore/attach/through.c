/* Writing through: what is sealed on the device goes to the service, behind.
 *
 * A block that is to go is held in the inner store, whatever becomes of its lease, so that its slot
 * stays as it is. What cannot go (the service is away, or has no room) is let go: it stays on the
 * device as long as it does there, and the next lease that finds it there takes it up again. */
#include "kvstore/attach/attached_internal.h"

#include "base/check.h"
#include "kvstore/embedded.h"
#include "kvstore/lease/lease_internal.h"

#include <stdlib.h>
#include <string.h>

enum { WAIT_S = 10 };

static void mark(kv_attached_lease_t *lease)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    if (!lease->dirty) {
        lease->dirty = true;
        lease->next_dirty = attached->first_dirty;
        attached->first_dirty = lease;
        kv_attached_kick(attached);
    }
}

static void note(kv_attached_lease_t *lease, uint32_t block, uint32_t object)
{
    kv_attached_t *attached = kv_lease_attached(lease);
    if (lease->through_count == 0) {
        lease->through_first = block;
    }
    KV_CHECK(block == lease->through_first + lease->through_count);
    if (lease->through_count == lease->through_room) {
        lease->through_room = 2 * lease->through_room + 16;
        lease->through = kv_reallocate(lease->through, lease->through_room, sizeof *lease->through);
    }
    kv_object_hold(attached->inner, object);
    lease->through[lease->through_count++] = (kv_through_t){object, ++attached->through_serial};
}

bool kv_through_catch_up(kv_attached_lease_t *lease)
{
    if (!lease->storing || lease->through_stopped || lease->inner == NULL || lease->life == NULL ||
        !lease->life->up) {
        return false;
    }
    const kvist_lease_t *inner = lease->inner;
    uint32_t end = kv_embedded_lease_sealed_count(inner);
    uint32_t block = lease->through_count > 0 ? lease->through_first + lease->through_count
                                              : lease->service_count;
    for (; block < end && !lease->through_stopped; block++) {
        if (inner->objects[block] == KV_OBJECT_NONE || kv_lease_gone(inner, block)) {
            lease->through_stopped = true; /* what goes on from it would never be found */
        } else {
            note(lease, block, inner->objects[block]);
        }
    }
    if (lease->through_count > 0) {
        mark(lease);
    }
    return lease->through_count > 0;
}

static void let_go(kv_attached_lease_t *lease, uint32_t count)
{
    kvist_store_t *inner = kv_lease_attached(lease)->inner;
    for (uint32_t i = count; i-- > 0;) { /* leaf first */
        kv_object_release(inner, lease->through[i].object);
    }
    lease->through_count -= count;
    lease->through_first += count;
    memmove(lease->through, lease->through + count, lease->through_count * sizeof *lease->through);
}

void kv_through_drop(kv_attached_lease_t *lease)
{
    lease->through_stopped = true;
    if (lease->through_count > 0) {
        let_go(lease, lease->through_count);
    }
}

static void written(kv_attached_lease_t *lease, kv_status_t status, uint32_t count)
{
    lease->through_put = NULL;
    let_go(lease, count);
    if (status != KV_OK) {
        kv_through_drop(lease);
    } else if (lease->through_count > 0) {
        mark(lease);
    }
    if (lease->through_count == 0) {
        kv_attached_put_go_on(lease);
    }
    kv_attached_kick(kv_lease_attached(lease));
}

static const char *arithmetic_of(const kvist_store_t *inner, uint32_t object)
{
    const kv_family_t *family = kv_object_family(inner, kv_table_at(inner->table, object));
    return kv_names_at(&inner->arithmetics, family->arithmetic);
}

/* Blocks in a row that the same kernels made, and that lie on the device. */
static uint32_t take_slots(const kv_attached_lease_t *lease, uint32_t *slots)
{
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    uint32_t count = 0;
    for (; count < lease->through_count; count++) {
        uint32_t number = lease->through[count].object;
        const kv_object_t *object = kv_table_at(inner->table, number);
        if ((object->flags & KV_OBJECT_DEAD) != 0 || !kv_object_on_device(inner, object) ||
            strcmp(arithmetic_of(inner, number), arithmetic_of(inner, lease->through[0].object)) !=
                0) {
            break;
        }
        slots[count] = object->device_slot;
    }
    return count;
}

static void start(kv_attached_lease_t *lease)
{
    const kvist_store_t *inner = kv_lease_attached(lease)->inner;
    uint32_t *slots = kv_allocate_array(lease->through_count + 1, sizeof *slots);
    uint32_t count = take_slots(lease, slots);
    if (count == 0 || !lease->life->up) { /* dropped meanwhile, or the service is away */
        free(slots);
        kv_through_drop(lease);
        kv_attached_put_go_on(lease);
        return;
    }
    uint64_t deadline_ns =
        inner->clock->monotonic_ns(inner->clock) + (uint64_t)WAIT_S * KV_NS_PER_S;
    kv_attached_put_slots(lease, lease->through_first, count, slots,
        arithmetic_of(inner, lease->through[0].object), deadline_ns, written);
}

void kv_through_advance(kv_attached_t *attached)
{
    while (attached->first_dirty != NULL) {
        kv_attached_lease_t *lease = attached->first_dirty;
        attached->first_dirty = lease->next_dirty;
        lease->dirty = false;
        if (lease->through_put == NULL && lease->through_count > 0) {
            start(lease);
        }
        kv_attached_settle(lease);
    }
}

bool kv_through_before(const kv_attached_t *attached, uint64_t serial)
{
    for (const kv_attached_lease_t *lease = attached->leases; lease != NULL; lease = lease->next) {
        if (lease->through_count > 0 && lease->through[0].serial <= serial) {
            return true;
        }
    }
    return false;
}
