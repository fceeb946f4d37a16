#include "kvstore/index/fill.h"

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "kvstore/index/order.h"
#include "kvstore/index/take.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    INDEX_BATCHES = 4,
    SCAN_BATCHES = 8, /* each with a thread: so many reads are under way */
    ENTRIES_AT_ONCE = 1024,
    PLACES_AT_ONCE = 16384,
    NUMBERS_AT_ONCE = 16384, /* given back in one poll, in the end */
    ORPHANS_AT_ONCE = 256,
};
_Static_assert(
    (int)SCAN_BATCHES <= (int)KV_FILL_TASKS_MAX && (int)INDEX_BATCHES <= (int)KV_FILL_TASKS_MAX,
    "the queue of finished tasks has room for each");

typedef enum { PLACING, SORTING, TAKING, SCANNING, ENDING } stage_t;

typedef struct {
    kv_task_t task;
    kv_entry_t *entries;
    uint32_t *ranks;
    kvist_key_t *unreadable;  /* keys of entries that cannot be read */
    kvist_key_t *stray_terms; /* keys that have terms, but no entry */
    uint32_t count, taken, unreadable_count, stray_count;
    bool out;   /* at a thread */
    bool ended; /* its source has no more */
    kv_status_t status;
    kv_error_t error;
    kv_scan_t scan;        /* while scanning */
    uint32_t segment;      /* KV_SEGMENT_NONE: none */
    uint64_t scanned_from; /* what of it is counted */
} batch_t;

struct kv_fill {
    kvist_store_t *store;
    stage_t stage;
    bool rebuild, stopping;
    bool unread; /* something could not be read now: what it misses may be there again */
    uint32_t at_once;
    batch_t batches[SCAN_BATCHES];
    uint32_t batch_count, scan_count; /* scan_count: of them have a scan */

    kv_index_cursor_t *cursor;
    bool cursor_ended;
    kv_index_cursor_t *place_cursor;
    kv_index_cursor_t *terms_cursor; /* goes along with `cursor`: both are in the order of keys */
    kv_terms_entry_t terms;          /* the next of it, if terms_there */
    bool terms_there;
    kv_task_t order_task;
    bool order_out, order_ended;
    kv_order_t order;
    uint32_t first_number; /* set apart, in order; KV_OBJECT_NONE: none are */

    kv_workers_t *scanners;
    uint32_t segment_count;  /* at the opening */
    bool *scanned, *to_scan; /* [segment_count] */
    uint64_t *generations, scan_bytes, scanned_bytes, told_ns;
    uint32_t next_segment;

    uint32_t given_back; /* of the numbers that were set apart */
    uint64_t started_ns, total, loaded;
    kv_taking_t taking;
};

/* ---- what others see ---- */

void kv_fill_take_record(kvist_store_t *store, const kv_entry_t *entry)
{
    kv_take_record(&store->disk->fill->taking, entry);
}

void kv_fill_mark_torn(kvist_store_t *store, const kv_entry_t *entry)
{
    if (!kv_mark_pending(store, entry->segment, entry->offset)) {
        kv_mark_queue(store, entry->segment, (uint32_t)(entry->offset / KV_PAGE_BYTES),
            (uint32_t)(entry->record.stored_bytes / KV_PAGE_BYTES), false);
    }
}

void kv_fill_end_scan(kvist_store_t *store, const kv_scan_t *scan)
{
    kv_segment_t *segment = &store->disk->segments.items[scan->segment];
    uint64_t marked_to = kv_mark_end(store, scan->segment);
    uint64_t known_to = marked_to > scan->known_to ? marked_to : scan->known_to;
    store->disk->fill->scanned[scan->segment] = true;
    segment->indexed_bytes = known_to;
    kv_persist_put_segment(store, scan->segment);
    if (scan->errno_value == 0) {
        segment->append_bytes = known_to;
    } else { /* nothing is written over it, and the next opening reads it */
        kv_log_warn("store", "records cannot be read now, and are not found: %s segment %u",
            strerror(scan->errno_value), scan->segment);
        store->disk->fill->unread = true;
    }
}

void kv_fill_spare(kvist_store_t *store)
{
    store->disk->fill->unread = true;
}

bool kv_fill_unread(const kvist_store_t *store)
{
    return store->disk->fill->unread;
}

void kv_fill_note_dropped(kvist_store_t *store, const kvist_key_t *key)
{
    if (store->disk != NULL && store->disk->fill != NULL) {
        kv_take_note_dropped(&store->disk->fill->taking, key);
    }
}

bool kv_fill_look_up(kvist_store_t *store, const kvist_key_t *keys, uint32_t count)
{
    kv_fill_t *fill = store->disk != NULL ? store->disk->fill : NULL;
    if (fill == NULL || fill->rebuild) {
        return false;
    }
    kv_take_look_up(&fill->taking, keys, count);
    return true;
}

uint32_t kv_fill_find(kvist_store_t *store, const kvist_key_t *key)
{
    uint32_t number = kv_table_find(store->table, key);
    if (number == KV_OBJECT_NONE && kv_fill_look_up(store, key, 1)) {
        number = kv_table_find(store->table, key);
    }
    return number;
}

/* ---- reading, on other threads ---- */

static void visit_terms(
    void *context, const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes)
{
    kv_fill_t *fill = context;
    fill->terms_there = kv_terms_entry_read(name, name_bytes, value, value_bytes, &fill->terms);
}

static void next_terms(kv_fill_t *fill)
{
    kv_index_t *index = fill->store->disk->index;
    kv_error_t error;
    bool ended = false;
    fill->terms_there = false;
    while (!fill->terms_there && !ended &&
           index->ops->read(index, fill->terms_cursor, 1, visit_terms, fill, &ended, &error) ==
               KV_OK) {
    }
}

/* Terms come along with the entry that they belong to. */
static void join_terms(kv_fill_t *fill, batch_t *batch, kv_entry_t *entry)
{
    int order = -1;
    while (fill->terms_there &&
           (order = memcmp(fill->terms.key.bytes, entry->record.key.bytes, KVIST_KEY_BYTES)) < 0) {
        if (batch->stray_count < fill->at_once) { /* else they are found by another start */
            batch->stray_terms[batch->stray_count++] = fill->terms.key;
        }
        next_terms(fill);
    }
    if (fill->terms_there && order == 0) {
        kv_take_renew(entry, &fill->terms);
        next_terms(fill);
    }
}

static void visit_entry(
    void *context, const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes)
{
    batch_t *batch = context;
    kv_fill_t *fill = batch->task.store->disk->fill;
    kv_entry_t *entry = &batch->entries[batch->count];
    if (!kv_entry_is_object(name, name_bytes)) {
        return;
    }
    if (kv_entry_read(name, value, value_bytes, entry) != KV_OK) {
        memcpy(batch->unreadable[batch->unreadable_count++].bytes, name + 1, KVIST_KEY_BYTES);
        return;
    }
    join_terms(fill, batch, entry);
    batch->ranks[batch->count++] =
        kv_order_rank(&fill->order, entry->segment, (uint32_t)(entry->offset / KV_PAGE_BYTES));
}

static void read_entries(void *argument)
{
    batch_t *batch = argument;
    kv_fill_t *fill = batch->task.store->disk->fill;
    kv_index_t *index = fill->store->disk->index;
    batch->status = index->ops->read(
        index, fill->cursor, fill->at_once, visit_entry, batch, &batch->ended, &batch->error);
    kv_store_finish(&batch->task);
}

static void visit_place(
    void *context, const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes)
{
    uint16_t segment;
    uint32_t offset_pages;
    if (kv_entry_is_object(name, name_bytes) &&
        kv_entry_place(value, value_bytes, &segment, &offset_pages)) {
        kv_order_add(context, segment, offset_pages);
    }
}

static void read_places(void *argument)
{
    kv_fill_t *fill = argument;
    kv_index_t *index = fill->store->disk->index;
    kv_error_t error;
    if (index->ops->read(index, fill->place_cursor, PLACES_AT_ONCE, visit_place, &fill->order,
            &fill->order_ended, &error) != KV_OK) {
        fill->order_ended = true; /* the entries will tell, too */
    }
    kv_store_finish(&fill->order_task);
}

static void sort_places(kv_task_t *task)
{
    kv_fill_t *fill = task->store->disk->fill;
    kv_order_sort(&fill->order);
    if (fill->first_number != KV_OBJECT_NONE) {
        kv_table_touch(task->store->table, fill->first_number, fill->order.count);
    }
    kv_store_finish(task);
}

static void read_records(void *argument)
{
    batch_t *batch = argument;
    kv_fill_t *fill = batch->task.store->disk->fill;
    while (batch->count < fill->at_once && !batch->ended) {
        kv_scan_outcome_t outcome = kv_scan_next(&batch->scan, &batch->entries[batch->count]);
        batch->count += outcome == KV_SCAN_RECORD;
        batch->ended = outcome == KV_SCAN_END;
        if (outcome == KV_SCAN_PAUSE) {
            break;
        }
    }
    kv_store_finish(&batch->task);
}

/* ---- going on ---- */

static void batch_back(kv_task_t *task)
{
    batch_t *batch = (batch_t *)task;
    batch->out = false;
    batch->taken = 0;
    kv_store_kick(task->store);
}

static void send_out(kv_fill_t *fill, batch_t *batch, void (*run)(void *), kv_workers_t *to)
{
    batch->task = (kv_task_t){.done = batch_back, .store = fill->store};
    batch->out = true;
    batch->count = batch->taken = batch->unreadable_count = batch->stray_count = 0;
    KV_CHECK(kv_workers_submit(to, (kv_job_t){run, batch}) == KV_OK);
}

static void make_batches(kv_fill_t *fill, uint32_t count)
{
    for (; fill->batch_count < count; fill->batch_count++) {
        batch_t *batch = &fill->batches[fill->batch_count];
        batch->entries = kv_allocate_array(fill->at_once, sizeof *batch->entries);
        batch->ranks = kv_allocate_array(fill->at_once, sizeof *batch->ranks);
        batch->unreadable = kv_allocate_array(fill->at_once, sizeof *batch->unreadable);
        batch->stray_terms = kv_allocate_array(fill->at_once, sizeof *batch->stray_terms);
        batch->segment = KV_SEGMENT_NONE;
    }
}

static void order_back(kv_task_t *task)
{
    task->store->disk->fill->order_out = false;
    kv_store_kick(task->store);
}

static void read_more_places(kv_fill_t *fill)
{
    fill->order_out = true;
    fill->order_task = (kv_task_t){.done = order_back, .store = fill->store};
    KV_CHECK(
        kv_workers_submit(fill->store->disk->index_writer, (kv_job_t){read_places, fill}) == KV_OK);
}

static void close_cursor(kv_fill_t *fill, kv_index_cursor_t **cursor)
{
    kv_index_t *index = fill->store->disk->index;
    if (*cursor != NULL) {
        index->ops->close_cursor(index, *cursor);
    }
    *cursor = NULL;
}

static void advance_order(kv_fill_t *fill)
{
    kvist_store_t *store = fill->store;
    if (fill->order_out) {
        return;
    }
    if (fill->stage == PLACING && !fill->order_ended) {
        read_more_places(fill);
    } else if (fill->stage == PLACING) {
        close_cursor(fill, &fill->place_cursor);
        fill->total = fill->order.count;
        fill->first_number = kv_table_set_apart(store->table, fill->order.count);
        fill->stage = SORTING;
        fill->order_out = true;
        fill->order_task = (kv_task_t){.work = sort_places, .done = order_back, .store = store};
        kv_store_submit(store, &fill->order_task);
    } else {
        kv_table_reserve(store->table, kv_table_count(store->table) + fill->order.count);
        fill->stage = TAKING;
        make_batches(fill, INDEX_BATCHES);
    }
}

static uint32_t wanted_number(const kv_fill_t *fill, uint32_t rank)
{
    return rank == KV_ORDER_NONE || fill->first_number == KV_OBJECT_NONE
               ? KV_OBJECT_NONE
               : fill->first_number + rank;
}

static void approach(const kv_fill_t *fill, const batch_t *batch, uint32_t at)
{
    if (at < batch->count) {
        kv_table_approach(fill->store->table, &batch->entries[at].record.key);
        kv_table_approach(fill->store->table, &batch->entries[at].record.parent);
    }
}

static void forget_useless(kv_fill_t *fill, batch_t *batch)
{
    kvist_store_t *store = fill->store;
    while (batch->unreadable_count > 0) {
        const kvist_key_t *key = &batch->unreadable[--batch->unreadable_count];
        if (kv_table_find(store->table, key) == KV_OBJECT_NONE) {
            kv_entry_delete(&store->disk->filling, key);
            fill->taking.discarded++;
        }
    }
    while (batch->stray_count > 0) {
        const kvist_key_t *key = &batch->stray_terms[--batch->stray_count];
        uint32_t number = kv_table_find(store->table, key);
        if (number == KV_OBJECT_NONE ||
            (kv_table_at(store->table, number)->flags & KV_OBJECT_RENEWED) == 0) {
            kv_terms_entry_delete(&store->disk->filling, key);
        }
    }
}

/* Takes what the batch brought, as far as the budget goes. */
static void take_batch(kv_fill_t *fill, batch_t *batch, uint32_t *budget)
{
    enum { AHEAD = 16 };
    while (*budget > 0 && batch->taken < batch->count) {
        uint32_t at = batch->taken++;
        approach(fill, batch, at + AHEAD);
        if (fill->stage == TAKING) {
            kv_take_entry(
                &fill->taking, &batch->entries[at], wanted_number(fill, batch->ranks[at]));
        } else {
            kv_take_record(&fill->taking, &batch->entries[at]);
        }
        fill->loaded++;
        (*budget)--;
    }
    if (batch->taken == batch->count) {
        forget_useless(fill, batch);
    }
}

/* ---- from the index ---- */

static void start_scanning(kv_fill_t *fill);

static bool any_out(const kv_fill_t *fill)
{
    bool out = fill->order_out;
    for (uint32_t i = 0; i < fill->batch_count; i++) {
        out = out || fill->batches[i].out;
    }
    return out;
}

static void advance_taking(kv_fill_t *fill, uint32_t *budget)
{
    kvist_store_t *store = fill->store;
    bool failed = false;
    for (uint32_t i = 0; i < fill->batch_count; i++) {
        batch_t *batch = &fill->batches[i];
        if (batch->out) {
            continue;
        }
        take_batch(fill, batch, budget);
        if (batch->status != KV_OK && !fill->cursor_ended) {
            kv_log_warn("store", "%s: completed from the records", batch->error.text);
            failed = true;
        }
        fill->cursor_ended = fill->cursor_ended || batch->ended || failed;
        if (batch->taken == batch->count && !fill->cursor_ended && !fill->stopping) {
            send_out(fill, batch, read_entries, store->disk->index_writer);
        }
    }
    if (failed) {
        fill->rebuild = true; /* from here on nothing more is looked up in it */
    }
    bool all_taken = fill->cursor_ended && !any_out(fill);
    for (uint32_t i = 0; i < fill->batch_count; i++) {
        all_taken = all_taken && fill->batches[i].taken == fill->batches[i].count;
    }
    if (all_taken) {
        close_cursor(fill, &fill->cursor);
        if (fill->rebuild) {
            kv_complete_entry_delete(&store->disk->filling);
            start_scanning(fill);
        } else {
            fill->stage = ENDING;
        }
    }
}

/* ---- from the records ---- */

static void start_scanning(kv_fill_t *fill)
{
    kvist_store_t *store = fill->store;
    kv_segments_t *segments = &store->disk->segments;
    kv_error_t error;
    fill->stage = SCANNING;
    fill->loaded = 0;
    for (uint32_t i = 0; i < fill->segment_count; i++) {
        fill->scan_bytes += fill->to_scan[i] ? segments->segment_bytes : 0;
    }
    make_batches(fill, SCAN_BATCHES);
    while (fill->scan_count < SCAN_BATCHES &&
           kv_scan_init(store, &fill->batches[fill->scan_count].scan, &error) == KV_OK) {
        fill->scan_count++;
    }
    if (fill->scan_count == 0) {
        kv_log_warn("store", "%s: records stay unread until the next start", error.text);
        fill->unread = true;
    }
    fill->scanners =
        kv_workers_create("kv-scan", store->threadless ? 0 : SCAN_BATCHES, SCAN_BATCHES);
}

/* The next segment for a batch whose one is through; false: there is none. */
static bool begin_segment(kv_fill_t *fill, batch_t *batch)
{
    kv_segments_t *segments = &fill->store->disk->segments;
    while (fill->next_segment < fill->segment_count) {
        uint32_t number = fill->next_segment++;
        const kv_segment_t *segment = &segments->items[number];
        if (fill->to_scan[number] && segment->generation == fill->generations[number] &&
            segment->state == KV_SEGMENT_FULL) {
            batch->segment = number;
            batch->scanned_from = KV_SEGMENT_HEADER_BYTES;
            batch->ended = false;
            kv_scan_begin(
                &batch->scan, number, segment->generation, KV_SEGMENT_HEADER_BYTES, false);
            return true;
        }
        fill->scanned_bytes += fill->to_scan[number] ? segments->segment_bytes : 0;
    }
    return false;
}

static void end_segment(kv_fill_t *fill, batch_t *batch)
{
    kv_disk_t *disk = fill->store->disk;
    kv_segment_t *segment = &disk->segments.items[batch->segment];
    if (segment->generation == batch->scan.generation && segment->state == KV_SEGMENT_FULL) {
        kv_fill_end_scan(fill->store, &batch->scan);
    }
    fill->scanned_bytes += disk->segments.segment_bytes - batch->scanned_from;
    batch->segment = KV_SEGMENT_NONE;
}

static void tell_progress(kv_fill_t *fill)
{
    kvist_store_t *store = fill->store;
    uint64_t now_ns = store->clock->monotonic_ns(store->clock);
    if (fill->scan_bytes == 0 || now_ns - fill->told_ns < KV_NS_PER_S) {
        return;
    }
    fill->told_ns = now_ns;
    double seconds = (double)(now_ns - fill->started_ns) / KV_NS_PER_S;
    double done = (double)fill->scanned_bytes / (double)fill->scan_bytes;
    kv_log_info("store",
        "making the index anew percent %.0f segment_bytes %ju of %ju objects %ju MB_per_s %.0f",
        100 * done, (uintmax_t)fill->scanned_bytes, (uintmax_t)fill->scan_bytes,
        (uintmax_t)fill->loaded, (double)fill->scanned_bytes / 1e6 / seconds);
}

static void advance_scanning(kv_fill_t *fill, uint32_t *budget)
{
    bool all_through = true;
    for (uint32_t i = 0; i < fill->scan_count; i++) {
        batch_t *batch = &fill->batches[i];
        if (batch->out) {
            all_through = false;
            continue;
        }
        take_batch(fill, batch, budget);
        if (batch->taken < batch->count || fill->stopping) {
            all_through = false;
            continue;
        }
        if (batch->segment != KV_SEGMENT_NONE) {
            fill->scanned_bytes += batch->scan.offset - batch->scanned_from;
            batch->scanned_from = batch->scan.offset;
            if (batch->ended) {
                end_segment(fill, batch);
            }
        }
        if (batch->segment != KV_SEGMENT_NONE || begin_segment(fill, batch)) {
            send_out(fill, batch, read_records, fill->scanners);
            all_through = false;
        }
    }
    tell_progress(fill);
    if (all_through) {
        fill->stage = ENDING;
    }
}

/* ---- the end ---- */

/* Drops what has no parent; a share of it. true: that was all. */
static bool drop_orphans(kv_fill_t *fill)
{
    kvist_store_t *store = fill->store;
    uint32_t number = KV_OBJECT_NONE;
    for (int count = 0; count < ORPHANS_AT_ONCE; count++) {
        number = kv_table_next_absent(store->table, number);
        if (number == KV_OBJECT_NONE) {
            kv_table_release_absent(store->table);
            return true;
        }
        uint64_t before = kv_table_count(store->table);
        store->disk->spare_records = fill->unread;
        kv_take_drop_children(store, number);
        store->disk->spare_records = false;
        kv_table_forget_absent(store->table, number);
        fill->taking.discarded += before - kv_table_count(store->table);
    }
    return false;
}

/* Numbers that were set apart and not used; a share of them. */
static bool give_back_numbers(kv_fill_t *fill)
{
    uint32_t count = fill->first_number != KV_OBJECT_NONE ? fill->order.count : 0;
    uint32_t left = count - fill->given_back;
    uint32_t share = left < NUMBERS_AT_ONCE ? left : NUMBERS_AT_ONCE;
    kv_table_give_back(fill->store->table, fill->first_number + fill->given_back, share);
    fill->given_back += share;
    return fill->given_back == count;
}

static void tell_end(const kv_fill_t *fill)
{
    const kvist_store_t *store = fill->store;
    uint64_t now_ns = store->clock->monotonic_ns(store->clock);
    if (fill->taking.discarded > 0) {
        kv_log_info("store", "dropped %ju index entries that point nowhere or have no parent",
            (uintmax_t)fill->taking.discarded);
    }
    if (fill->rebuild && fill->scan_bytes == 0) {
        return; /* a new directory */
    }
    kv_log_info("store", "%s objects %u seconds %.2f",
        fill->rebuild ? "made the index anew from the records" : "read the index",
        kv_table_count(store->table), (double)(now_ns - fill->started_ns) / KV_NS_PER_S);
}

static void advance_ending(kv_fill_t *fill)
{
    kvist_store_t *store = fill->store;
    if (!kv_take_later(&fill->taking)) {
        return; /* the end of those writes comes here again */
    }
    if (!drop_orphans(fill) || !give_back_numbers(fill)) {
        kv_store_kick(store);
        return;
    }
    if (fill->rebuild && !fill->unread) { /* after the entries: the index keeps the order */
        kv_complete_entry_put(&store->disk->filling);
    }
    tell_end(fill);
    kv_fill_close(store);
    kv_store_kick(store);
}

/* ---- together ---- */

void kv_fill_advance(kvist_store_t *store)
{
    kv_fill_t *fill = store->disk != NULL ? store->disk->fill : NULL;
    if (fill == NULL || (fill->stopping && any_out(fill))) {
        return;
    }
    if (fill->stopping) {
        kv_fill_close(store);
        return;
    }
    uint32_t budget = fill->at_once;
    switch (fill->stage) {
    case PLACING:
    case SORTING:
        advance_order(fill);
        break;
    case TAKING:
        advance_taking(fill, &budget);
        break;
    case SCANNING:
        advance_scanning(fill, &budget);
        break;
    case ENDING:
        advance_ending(fill);
        return;
    }
    if (budget < fill->at_once || !any_out(fill)) {
        kv_store_kick(store);
    }
}

void kv_fill_open(kvist_store_t *store, bool rebuild, uint32_t at_once)
{
    kv_disk_t *disk = store->disk;
    kv_fill_t *fill = kv_allocate(sizeof *fill);
    *fill = (kv_fill_t){
        .store = store,
        .rebuild = rebuild,
        .at_once = at_once > 0 ? at_once : ENTRIES_AT_ONCE,
        .first_number = KV_OBJECT_NONE,
        .started_ns = store->clock->monotonic_ns(store->clock),
        .segment_count = disk->segments.count,
        .scanned = kv_allocate_array(disk->segments.count + 1, sizeof(bool)),
        .to_scan = kv_allocate_array(disk->segments.count + 1, sizeof(bool)),
        .generations = kv_allocate_array(disk->segments.count + 1, sizeof(uint64_t)),
    };
    kv_take_init(store, &fill->taking);
    if (!rebuild) {
        fill->cursor = disk->index->ops->open_cursor(disk->index, 'o');
        fill->place_cursor = disk->index->ops->open_cursor(disk->index, 'o');
        fill->total = disk->index->ops->estimate(disk->index);
    }
    disk->fill = fill;
    fill->terms_cursor = disk->index->ops->open_cursor(disk->index, 't');
    next_terms(fill);
    fill->taking.any_terms = fill->terms_there;
}

void kv_fill_start(kvist_store_t *store)
{
    kv_fill_t *fill = store->disk->fill;
    const kv_segments_t *segments = &store->disk->segments;
    for (uint32_t i = 0; i < fill->segment_count; i++) {
        fill->to_scan[i] = segments->items[i].state == KV_SEGMENT_FULL && !fill->scanned[i];
        fill->generations[i] = segments->items[i].generation;
    }
    if (fill->rebuild) {
        start_scanning(fill);
    }
    kv_fill_advance(store);
}

bool kv_fill_stop(kvist_store_t *store)
{
    kv_fill_t *fill = store->disk != NULL ? store->disk->fill : NULL;
    if (fill != NULL) {
        fill->stopping = true;
        kv_store_kick(store);
    }
    return fill == NULL;
}

void kv_fill_progress(const kvist_store_t *store, uint64_t *loaded_out, uint64_t *total_out)
{
    const kv_fill_t *fill = store->disk != NULL ? store->disk->fill : NULL;
    *loaded_out = *total_out = kv_table_count(store->table);
    if (fill != NULL && fill->stage != ENDING) {
        uint64_t total = fill->total;
        if (fill->stage == SCANNING && fill->scanned_bytes > 0) {
            total = (uint64_t)((double)fill->loaded * (double)fill->scan_bytes /
                               (double)fill->scanned_bytes);
        }
        *total_out = total > *loaded_out ? total : *loaded_out;
    }
}

void kv_fill_close(kvist_store_t *store)
{
    kv_disk_t *disk = store->disk;
    kv_fill_t *fill = disk->fill;
    if (fill == NULL) {
        return;
    }
    kv_workers_destroy(fill->scanners);
    close_cursor(fill, &fill->cursor);
    close_cursor(fill, &fill->place_cursor);
    close_cursor(fill, &fill->terms_cursor);
    for (uint32_t i = 0; i < fill->scan_count; i++) {
        kv_scan_release(&fill->batches[i].scan);
    }
    for (uint32_t i = 0; i < fill->batch_count; i++) {
        free(fill->batches[i].entries);
        free(fill->batches[i].ranks);
        free(fill->batches[i].unreadable);
        free(fill->batches[i].stray_terms);
    }
    kv_order_release(&fill->order);
    kv_take_release(&fill->taking);
    free(fill->scanned);
    free(fill->to_scan);
    free(fill->generations);
    free(fill);
    disk->fill = NULL;
}
