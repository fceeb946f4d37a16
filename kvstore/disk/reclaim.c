/* Room on disk: the open segment, then one that was made ready, and emptying old ones for that.
 *
 *   nothing --(no spare, quota reached)--> victim chosen --> survivors moved on --> rest forgotten
 *                                              ^                    |                   |
 *                                              +--(held again)------+                   +--> ready
 *
 * Rules:
 *  1. The victim is the oldest segment that can be had. What is pinned or only there for a lease
 *     must survive; of the rest what was asked for since it was written, as far as the victim's
 *     half, newest use first. Everything else dies with it, with its descendants.
 *  2. A chain has no hole: whatever survives, its ancestors in the victim do.
 *  3. The victim's survivors have their room in the open segment before anything is moved: the
 *     victim is needed for the next one, so that nothing else could take them.
 *  4. A survivor's new place is durable, in the index too, before the victim's next life begins. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>

enum {
    LOOK_AT_MAX = 8,       /* segments looked at for one victim */
    FEW_SEGMENTS_MAX = 8,  /* with so few, one emptied too early is a loss that shows */
    BLOCKED_S_MAX = 1,     /* then pins may have passed */
    READ_FAILURES_MAX = 3, /* of one victim; then what cannot be read dies with it */
};

static kv_volume_t *volume_at(const kvist_store_t *store, uint32_t volume)
{
    return store->disk->segments.volumes[volume];
}

/* ---- who survives ---- */

/* One object of a segment that may be emptied. */
typedef struct {
    uint32_t object;
    uint32_t used_s, position;
    uint64_t bytes;
    bool must;
} candidate_t;

static bool only_on_disk(const kvist_store_t *store, const kv_object_t *object)
{
    return !kv_object_on_device(store, object) && !kv_object_on_host(object);
}

static bool expired(const kv_object_t *object, uint32_t now_s)
{
    return object->expires_s != 0 && object->expires_s <= now_s;
}

static bool must_survive(const kvist_store_t *store, const kv_object_t *object, uint32_t now_s)
{
    return object->pin_until_s > now_s ||
           (object->reference_count > 0 && only_on_disk(store, object));
}

/* Asked for since it was written; or a faster tier has it and the disk would get it again. */
static bool may_survive(const kvist_store_t *store, const kv_object_t *object, uint32_t now_s)
{
    if (expired(object, now_s)) {
        return false;
    }
    if ((object->disk_flags & KV_DISK_ASKED) != 0) {
        return true;
    }
    return !only_on_disk(store, object) &&
           (store->persist == KVIST_PERSIST_EAGER || object->first_child != KV_OBJECT_NONE);
}

/* Those that must first; then by last use, a parent before its children. */
static int by_worth(const void *left, const void *right)
{
    const candidate_t *a = left, *b = right;
    if (a->must != b->must) {
        return a->must ? -1 : 1;
    }
    if (a->used_s != b->used_s) {
        return a->used_s > b->used_s ? -1 : 1;
    }
    return a->position < b->position ? -1 : a->position > b->position;
}

/* Its ancestors in the segment survive with it: they are at the front of their chain's part. */
static bool parent_stays(const kvist_store_t *store, const kv_object_t *object, uint32_t segment)
{
    if (object->parent == KV_OBJECT_NONE) {
        return true;
    }
    const kv_object_t *parent = kv_table_at(store->table, object->parent);
    return parent->segment != segment || (parent->disk_flags & KV_DISK_STAYS) != 0;
}

/* Marks an object and its ancestors in the segment; answers the bytes that this adds. */
static uint64_t mark(const kvist_store_t *store, uint32_t number, uint32_t segment)
{
    uint64_t bytes = 0;
    for (uint32_t at = number; at != KV_OBJECT_NONE;) {
        kv_object_t *object = kv_table_at(store->table, at);
        if (object->segment != segment || (object->disk_flags & KV_DISK_STAYS) != 0) {
            break;
        }
        object->disk_flags |= KV_DISK_STAYS;
        bytes += (uint64_t)object->length_pages * KV_PAGE_BYTES;
        at = object->parent;
    }
    return bytes;
}

static candidate_t *list_candidates(
    const kvist_store_t *store, const kv_victim_t *victim, uint32_t *count_out)
{
    uint32_t now_s = kv_store_now_s(store), count = 0;
    candidate_t *candidates = kv_allocate_array(victim->count + 1, sizeof *candidates);
    for (uint32_t i = 0; i < victim->count; i++) {
        const kv_object_t *object = kv_table_at(store->table, victim->objects[i].object);
        bool must = object->segment == victim->segment && must_survive(store, object, now_s);
        if (must || (object->segment == victim->segment && victim->rounds == 0 &&
                        may_survive(store, object, now_s))) {
            candidates[count++] = (candidate_t){victim->objects[i].object, object->used_s,
                object->position, (uint64_t)object->length_pages * KV_PAGE_BYTES, must};
        }
    }
    qsort(candidates, count, sizeof *candidates, by_worth);
    *count_out = count;
    return candidates;
}

/* Of those that are still there. */
static void clear_choice(const kvist_store_t *store, const kv_victim_t *victim)
{
    for (uint32_t i = 0; i < victim->count; i++) {
        kv_object_t *object = kv_table_at(store->table, victim->objects[i].object);
        if (object->segment == victim->segment) {
            object->disk_flags &= ~KV_DISK_STAYS;
        }
    }
}

/* Marks those of the victim that survive. UINT64_MAX: those that must need more than `room`, and
 * nothing is marked; else the bytes of all. */
static uint64_t choose(kvist_store_t *store, const kv_victim_t *victim, uint64_t room)
{
    uint32_t count;
    clear_choice(store, victim);
    candidate_t *candidates = list_candidates(store, victim, &count);
    uint64_t half = store->disk->segments.segment_bytes / 2, bytes = 0;
    uint32_t at = 0;
    for (; at < count && candidates[at].must; at++) {
        bytes += mark(store, candidates[at].object, victim->segment);
    }
    bool fits = bytes <= room;
    for (uint64_t bound = half < room ? half : room; fits && at < count; at++) {
        const kv_object_t *object = kv_table_at(store->table, candidates[at].object);
        if (bytes + candidates[at].bytes <= bound && parent_stays(store, object, victim->segment)) {
            bytes += mark(store, candidates[at].object, victim->segment);
        }
    }
    free(candidates);
    if (!fits) {
        clear_choice(store, victim);
    }
    return fits ? bytes : UINT64_MAX;
}

/* ---- the victim ---- */

static int by_place(const void *left, const void *right, void *context)
{
    const kvist_store_t *store = context;
    uint32_t a = kv_table_at(store->table, *(const uint32_t *)left)->offset_pages;
    uint32_t b = kv_table_at(store->table, *(const uint32_t *)right)->offset_pages;
    return a < b ? -1 : a > b;
}

static uint32_t *list_victim(
    const kvist_store_t *store, const kv_victim_t *victim, uint32_t *count_out)
{
    uint32_t *objects = kv_allocate_array(victim->count + 1, sizeof *objects), count = 0;
    for (uint32_t i = 0; i < victim->count; i++) {
        if (kv_table_at(store->table, victim->objects[i].object)->segment == victim->segment) {
            objects[count++] = victim->objects[i].object;
        }
    }
    *count_out = count;
    return objects;
}

static uint32_t *list_segment(const kvist_store_t *store, uint32_t number, uint32_t *count_out)
{
    const kv_segment_t *segment = &store->disk->segments.items[number];
    uint32_t *objects = kv_allocate_array(segment->listed_count + 1, sizeof *objects), count = 0;
    for (uint32_t at = segment->first_object; at != KV_OBJECT_NONE;
         at = kv_table_at(store->table, at)->segment_next) {
        if (kv_table_at(store->table, at)->segment == number) { /* else it has left */
            objects[count++] = at;
        }
    }
    qsort_r(objects, count, sizeof *objects, by_place, (void *)(uintptr_t)store);
    *count_out = count;
    return objects;
}

uint32_t *kv_reclaim_list(const kvist_store_t *store, uint32_t number, uint32_t *count_out)
{
    const kv_segments_t *segments = &store->disk->segments;
    *count_out = 0;
    if (number >= segments->count) {
        return NULL;
    }
    const kv_victim_t *victim = &store->disk->lanes[segments->items[number].volume].victim;
    return victim->segment == number ? list_victim(store, victim, count_out)
                                     : list_segment(store, number, count_out);
}

static uint64_t open_room(const kvist_store_t *store, uint32_t volume)
{
    uint32_t open = volume_at(store, volume)->open;
    const kv_segments_t *segments = &store->disk->segments;
    return open == KV_SEGMENT_NONE ? 0
                                   : segments->segment_bytes - segments->items[open].append_bytes;
}

/* Bytes that must survive, roughly: ancestors are not looked for. */
static uint64_t must_bytes(const kvist_store_t *store, uint32_t number)
{
    uint32_t now_s = kv_store_now_s(store);
    uint64_t bytes = 0;
    for (uint32_t at = store->disk->segments.items[number].first_object; at != KV_OBJECT_NONE;) {
        const kv_object_t *object = kv_table_at(store->table, at);
        if (object->segment == number && must_survive(store, object, now_s)) {
            bytes += (uint64_t)object->length_pages * KV_PAGE_BYTES;
        }
        at = object->segment_next;
    }
    return bytes;
}

/* The oldest of which at least half is won; else the one of which most is; KV_SEGMENT_NONE: there
 * is no room for what must survive. One that is in use is passed over: records may still be on
 * their way into it. *busy_out: there are such. */
static uint32_t find_victim(const kvist_store_t *store, uint32_t volume, bool *busy_out)
{
    const kv_segments_t *segments = &store->disk->segments;
    uint64_t room = open_room(store, volume), least = segments->segment_bytes;
    uint32_t best = KV_SEGMENT_NONE, at = volume_at(store, volume)->first_full;
    *busy_out = false;
    for (uint32_t i = 0; i < LOOK_AT_MAX && at != KV_SEGMENT_NONE; i++) {
        bool in_use = segments->items[at].in_use > 0;
        uint64_t bytes = in_use ? UINT64_MAX : must_bytes(store, at);
        *busy_out |= in_use;
        if (bytes <= room && bytes < least) {
            best = at;
            least = bytes;
        }
        if (best != KV_SEGMENT_NONE && least <= segments->segment_bytes / 2) {
            break;
        }
        at = segments->items[at].next;
    }
    return best;
}

static bool is_blocked(const kvist_store_t *store, kv_lane_t *lane)
{
    if (lane->blocked && kv_store_now_s(store) - lane->blocked_s > BLOCKED_S_MAX) {
        lane->blocked = false;
    }
    return lane->blocked;
}

/* What waits for room is to learn of it. */
static void block(kvist_store_t *store, kv_lane_t *lane)
{
    lane->blocked = true;
    lane->blocked_s = kv_store_now_s(store);
    kv_store_kick(store);
}

static void start_round(kvist_store_t *store, uint32_t volume)
{
    kv_victim_t *victim = &store->disk->lanes[volume].victim;
    uint64_t bytes = choose(store, victim, open_room(store, volume));
    if (bytes != UINT64_MAX) {
        victim->reserved_bytes = bytes;
        victim->next = 0;
        victim->rounds++;
    }
}

/* The objects on the segment's list are the victim's: at first, and those that came to be known
 * later, while the index is read. */
static void take_listed(kvist_store_t *store, kv_victim_t *victim)
{
    uint32_t count, *numbers = list_segment(store, victim->segment, &count);
    kv_object_clear_list(store, victim->segment);
    victim->objects =
        kv_reallocate(victim->objects, victim->count + count + 1, sizeof *victim->objects);
    for (uint32_t i = 0; i < count; i++) {
        const kv_object_t *object = kv_table_at(store->table, numbers[i]);
        victim->objects[victim->count++] =
            (kv_emptied_t){numbers[i], object->offset_pages, object->length_pages};
    }
    victim->next = victim->count;
    free(numbers);
}

static void choose_victim(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_victim_t *victim = &disk->lanes[volume].victim;
    bool busy;
    uint32_t number = find_victim(store, volume, &busy);
    if (number == KV_SEGMENT_NONE) {
        if (!busy) {
            block(store, &disk->lanes[volume]);
        }
        return;
    }
    kv_segments_leave_full(&disk->segments, number);
    *victim = (kv_victim_t){.segment = number};
    take_listed(store, victim);
    start_round(store, volume);
}

/* What is left dies with the segment: objects that another tier has stay there, the others go, with
 * their descendants, so that no chain has a hole. */
static void forget_records(kvist_store_t *store, const kv_victim_t *victim)
{
    for (uint32_t i = 0; i < victim->count; i++) {
        uint32_t number = victim->objects[i].object;
        kv_object_t *object = kv_table_at(store->table, number);
        object->disk_flags &= ~KV_DISK_STAYS;
        if (object->segment != victim->segment) {
            continue;
        }
        store->stats.tiers[KVIST_TIER_DISK].evicted_objects++;
        if (only_on_disk(store, object)) {
            kv_object_drop(store, number, KV_GONE_FROM_DISK);
        } else {
            kv_object_leave_disk(store, number);
        }
    }
}

/* Somebody took a lease on, or pinned, what was to die. */
static bool any_must(const kvist_store_t *store, const kv_victim_t *victim)
{
    uint32_t now_s = kv_store_now_s(store);
    for (uint32_t i = 0; i < victim->count; i++) {
        const kv_object_t *object = kv_table_at(store->table, victim->objects[i].object);
        if (object->segment == victim->segment && must_survive(store, object, now_s)) {
            return true;
        }
    }
    return false;
}

/* Where survivors are now is durable in the index: their old places may go. */
static bool moves_durable(kvist_store_t *store, kv_victim_t *victim)
{
    kv_disk_t *disk = store->disk;
    if (victim->moved) {
        victim->moved = false;
        kv_persist_put_segment(store, victim->segment); /* there is something to be written */
        disk->sync_index = true;
        victim->sync_number = disk->syncs_begun + 1;
        kv_store_kick(store);
    }
    return disk->syncs_done >= victim->sync_number;
}

/* There is no room for what must survive, after all: the segment lives on, until another time. */
static void spare_victim(kvist_store_t *store, uint32_t volume)
{
    kv_victim_t *victim = &store->disk->lanes[volume].victim;
    for (uint32_t i = 0; i < victim->count; i++) {
        const kv_emptied_t *emptied = &victim->objects[i];
        kv_object_t *object = kv_table_at(store->table, emptied->object);
        if (object->segment == victim->segment) {
            kv_object_enter_list(store, emptied->object);
        }
        object->disk_flags &= ~KV_DISK_STAYS;
    }
    kv_segments_return_full(&store->disk->segments, victim->segment);
    free(victim->objects);
    *victim = (kv_victim_t){.segment = KV_SEGMENT_NONE};
    block(store, &store->disk->lanes[volume]);
}

static void advance_victim(kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    kv_victim_t *victim = &lane->victim;
    while (victim->next < victim->count && kv_survive_start(store, volume)) {
    }
    if (victim->next < victim->count || victim->moves_out > 0 || !moves_durable(store, victim) ||
        disk->segments.items[victim->segment].in_use > 0) {
        return;
    }
    victim->reserved_bytes = 0;
    take_listed(store, victim);
    if (any_must(store, victim) && victim->failures < READ_FAILURES_MAX) {
        start_round(store, volume);
        if (victim->next == victim->count) {
            spare_victim(store, volume);
        }
        return;
    }
    uint32_t number = victim->segment;
    disk->segments.items[number].state = KV_SEGMENT_BEGINNING; /* no marks: the life ends */
    forget_records(store, victim);
    free(victim->objects);
    *victim = (kv_victim_t){.segment = KV_SEGMENT_NONE};
    if (kv_quota_exceeded(store, volume)) {
        kv_quota_remove(store, volume, number);
    } else {
        kv_ready_begin(store, volume, number);
    }
}

/* Whether anything of the oldest segment was asked for or is pinned. */
static bool oldest_has_survivors(const kvist_store_t *store, uint32_t volume)
{
    uint32_t oldest = volume_at(store, volume)->first_full, now_s = kv_store_now_s(store);
    if (oldest == KV_SEGMENT_NONE) {
        return false;
    }
    for (uint32_t at = store->disk->segments.items[oldest].first_object; at != KV_OBJECT_NONE;) {
        const kv_object_t *object = kv_table_at(store->table, at);
        if (object->segment == oldest &&
            ((object->disk_flags & KV_DISK_ASKED) != 0 || object->pin_until_s > now_s)) {
            return true;
        }
        at = object->segment_next;
    }
    return false;
}

/* Whether it is time for another one: the next segment should be ready when the open one is full.
 * Where there are few, each counts: the oldest is kept until the last moment if nothing is to be
 * moved out of it, else until the open one is half full. */
static bool needs_victim(const kvist_store_t *store, uint32_t volume)
{
    kv_disk_t *disk = store->disk;
    const kv_volume_t *at = volume_at(store, volume);
    kv_lane_t *lane = &disk->lanes[volume];
    if (disk->fill != NULL && at->open != KV_SEGMENT_NONE) {
        return false; /* what is to survive is not all known yet */
    }
    if (kv_quota_exceeded(store, volume)) {
        return !lane->beginning;
    }
    if (!lane->wanted || at->ready != KV_SEGMENT_NONE || at->first_spare != KV_SEGMENT_NONE ||
        lane->beginning || at->present_count < at->segments_max) {
        return false;
    }
    uint64_t room = open_room(store, volume);
    if (at->open == KV_SEGMENT_NONE || at->segments_max > FEW_SEGMENTS_MAX) {
        return true;
    }
    if (room >= disk->segments.segment_bytes / 2 || room == lane->looked_room_bytes) {
        return false;
    }
    lane->looked_room_bytes = room; /* not looked at again before something was written */
    return oldest_has_survivors(store, volume);
}

void kv_reclaim_advance(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        kv_lane_t *lane = &disk->lanes[i];
        if (lane->offline || disk->offline) {
            continue;
        }
        disk->stuck &= is_blocked(store, lane);
        kv_quota_advance(store, i);
        kv_ready_advance(store, i);
        if (disk->closing || is_blocked(store, lane)) {
            continue; /* what a victim still holds stays where it is */
        }
        if (lane->victim.segment == KV_SEGMENT_NONE && needs_victim(store, i)) {
            choose_victim(store, i);
        }
        if (lane->victim.segment != KV_SEGMENT_NONE) {
            advance_victim(store, i);
        }
    }
}

void kv_reclaim_unblock(kvist_store_t *store)
{
    store->disk->stuck = false;
    for (uint32_t i = 0; i < store->disk->segments.volume_count; i++) {
        store->disk->lanes[i].blocked = false;
    }
}

bool kv_reclaim_idle(const kvist_store_t *store)
{
    for (uint32_t i = 0; i < store->disk->segments.volume_count; i++) {
        const kv_lane_t *lane = &store->disk->lanes[i];
        if (lane->beginning || lane->fill_out || lane->victim.moves_out > 0) {
            return false;
        }
    }
    return true;
}

bool kv_reclaim_between_lives(const kvist_store_t *store)
{
    for (uint32_t i = 0; i < store->disk->segments.volume_count; i++) {
        if (store->disk->lanes[i].beginning) {
            return true;
        }
    }
    return false;
}

void kv_reclaim_erase(kvist_store_t *store, uint32_t number)
{
    kv_disk_t *disk = store->disk;
    kv_object_t *object = kv_table_at(store->table, number);
    uint32_t volume = disk->segments.items[object->segment].volume;
    const kv_victim_t *victim = &disk->lanes[volume].victim;
    object->disk_flags &= ~KV_DISK_STAYS;
    if (victim->segment == KV_SEGMENT_NONE || victim->segment == object->segment ||
        (object->flags & KV_OBJECT_ERASE) == 0) {
        return; /* a mark for it was queued when it was moved */
    }
    for (uint32_t i = 0; i < victim->count; i++) {
        const kv_emptied_t *emptied = &victim->objects[i];
        if (emptied->object == number) {
            kv_mark_queue(store, (uint16_t)victim->segment, emptied->offset_pages,
                emptied->length_pages, true);
        }
    }
}

/* ---- room ---- */

static void take_room(kvist_store_t *store, uint32_t number, size_t bytes, uint32_t *segment_out,
    uint64_t *offset_out)
{
    kv_segments_t *segments = &store->disk->segments;
    *segment_out = number;
    *offset_out = segments->items[number].append_bytes;
    segments->items[number].append_bytes += bytes;
    store->disk->lanes[segments->items[number].volume].placed_bytes += bytes;
    kv_segments_hold(segments, number);
}

/* The ready segment is the open one from now on, unless a write that fills it is under way. */
static bool open_ready(kvist_store_t *store, uint32_t volume)
{
    kv_segments_t *segments = &store->disk->segments;
    kv_lane_t *lane = &store->disk->lanes[volume];
    kv_volume_t *at = volume_at(store, volume);
    lane->wanted = true;
    if (at->ready == KV_SEGMENT_NONE) {
        return false;
    }
    if (lane->filling == at->ready) {
        if (lane->fill_out) {
            return false;
        }
        lane->filling = KV_SEGMENT_NONE;
    }
    at->open = at->ready;
    at->ready = KV_SEGMENT_NONE;
    segments->items[at->open].state = KV_SEGMENT_OPEN;
    return true;
}

static kv_status_t reserve_in(kvist_store_t *store, uint32_t volume, size_t bytes,
    uint32_t *segment_out, uint64_t *offset_out)
{
    kv_disk_t *disk = store->disk;
    kv_lane_t *lane = &disk->lanes[volume];
    kv_volume_t *at = volume_at(store, volume);
    if (lane->offline) {
        return KV_NO_SPACE;
    }
    if (at->open != KV_SEGMENT_NONE) {
        uint64_t room = open_room(store, volume);
        if (bytes + lane->victim.reserved_bytes <= room) {
            take_room(store, at->open, bytes, segment_out, offset_out);
            return KV_OK;
        }
        if (lane->victim.reserved_bytes > 0) {
            return is_blocked(store, lane) ? KV_NO_SPACE : KV_BUSY;
        }
        kv_segments_enter_full(&disk->segments, at->open);
        at->open = KV_SEGMENT_NONE;
    }
    if (open_ready(store, volume)) {
        take_room(store, at->open, bytes, segment_out, offset_out);
        return KV_OK;
    }
    return is_blocked(store, lane) && !lane->beginning ? KV_NO_SPACE : KV_BUSY;
}

/* The volume that got least for its size goes first, so that they fill alike; but for one that is
 * behind with half of what can be under way, so that their rates add up. */
static bool goes_first(const kv_disk_t *disk, uint32_t volume, uint32_t other)
{
    const kv_lane_t *a = &disk->lanes[volume], *b = &disk->lanes[other];
    uint64_t much = (KV_STAGING_COUNT - KV_STAGING_FOR_READS) / 2 * disk->staging_bytes;
    if ((a->writing_bytes >= much) != (b->writing_bytes >= much)) {
        return a->writing_bytes < much;
    }
    return (double)a->placed_bytes * disk->segments.volumes[other]->segments_max <
           (double)b->placed_bytes * disk->segments.volumes[volume]->segments_max;
}

static uint32_t next_volume(const kv_disk_t *disk, uint32_t tried)
{
    uint32_t best = KV_VOLUMES_MAX;
    for (uint32_t i = 0; i < disk->segments.volume_count; i++) {
        if ((tried & 1u << i) == 0 && (best == KV_VOLUMES_MAX || goes_first(disk, i, best))) {
            best = i;
        }
    }
    return best;
}

kv_status_t kv_reclaim_reserve(
    kvist_store_t *store, size_t bytes, uint32_t *segment_out, uint64_t *offset_out)
{
    kv_disk_t *disk = store->disk;
    bool busy = false;
    if (disk->offline) {
        return KV_NO_SPACE;
    }
    uint32_t volume, tried = 0;
    while ((volume = next_volume(disk, tried)) != KV_VOLUMES_MAX) {
        kv_status_t status = reserve_in(store, volume, bytes, segment_out, offset_out);
        if (status == KV_OK) {
            return KV_OK;
        }
        busy |= status == KV_BUSY;
        tried |= 1u << volume;
    }
    if (busy || disk->segments.in_use_count > 0) {
        return KV_BUSY;
    }
    disk->stuck = true;
    return KV_NO_SPACE;
}

kv_status_t kv_reclaim_reserve_moved(kvist_store_t *store, uint32_t volume, size_t bytes,
    uint32_t *segment_out, uint64_t *offset_out)
{
    kv_disk_t *disk = store->disk;
    kv_victim_t *victim = &disk->lanes[volume].victim;
    uint32_t open = volume_at(store, volume)->open;
    victim->reserved_bytes -= victim->reserved_bytes < bytes ? victim->reserved_bytes : bytes;
    if (disk->offline || disk->lanes[volume].offline || open_room(store, volume) < bytes) {
        return KV_NO_SPACE;
    }
    take_room(store, open, bytes, segment_out, offset_out);
    return KV_OK;
}
