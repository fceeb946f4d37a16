#include "kvstore/figures.h"

#include "base/memory.h"
#include "kvstore/disk/budget.h"
#include "kvstore/embedded.h"
#include "kvstore/tenants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- stats ---- */

static void add_pool(kvist_tier_stats_t *tier, const kv_pool_t *pool, size_t object_bytes)
{
    tier->capacity_bytes += (uint64_t)pool->ready_count * object_bytes;
    tier->object_count += pool->object_count;
    tier->used_bytes += (uint64_t)pool->object_count * object_bytes;
}

void kv_embedded_store_stats(const kvist_store_t *store, kvist_stats_t *stats_out)
{
    *stats_out = store->stats;
    add_pool(&stats_out->tiers[KVIST_TIER_DEVICE], &store->device_pool,
        store->groups[0].layout.object_bytes);
    for (uint32_t i = 0; i < store->group_count; i++) {
        const kv_store_group_t *group = &store->groups[i];
        add_pool(&stats_out->tiers[KVIST_TIER_HOST], &group->host_pool, group->layout.object_bytes);
    }
    stats_out->host_coming_bytes = kv_populate_coming_bytes(store);
    stats_out->leases = store->lease_count;
    stats_out->history_entries = kv_history_count(store->history);
    stats_out->history_forgotten = kv_history_forgotten(store->history);
    stats_out->slots_free = store->device_pool.free_count;
    stats_out->slots_private = store->device_pool.slot_count - store->device_pool.free_count -
                               store->device_pool.object_count;
    stats_out->io = store->disk != NULL ? kv_ring_name(store->disk->ring) : "none";
    stats_out->index_loading = kv_fill_busy(store);
    kv_fill_progress(store, &stats_out->index_loaded, &stats_out->index_total);
    if (store->disk != NULL) {
        stats_out->disk_offline = store->disk->offline;
        stats_out->encrypting = store->disk->keys != NULL;
        kv_budget_stats(store, stats_out);
        const kv_segments_t *segments = &store->disk->segments;
        for (uint32_t i = 0; i < segments->volume_count; i++) {
            stats_out->tiers[KVIST_TIER_DISK].capacity_bytes +=
                segments->volumes[i]->segments_max * segments->segment_bytes;
        }
    }
}

/* ---- metrics ---- */

typedef enum { COUNTER, GAUGE } kind_t;

/* One figure of a tier, or of the store. */
typedef struct {
    kind_t kind;
    const char *name, *help;
    size_t offset; /* in kvist_tier_stats_t or kvist_stats_t */
} figure_t;

#define TIER(member) offsetof(kvist_tier_stats_t, member)
static const figure_t TIER_FIGURES[] = {
    {GAUGE, "kvist_store_capacity_bytes", "Size of the tier.", TIER(capacity_bytes)},
    {GAUGE, "kvist_store_used_bytes", "Bytes of objects in the tier.", TIER(used_bytes)},
    {GAUGE, "kvist_store_objects", "Objects in the tier.", TIER(object_count)},
    {COUNTER, "kvist_store_hit_blocks_total", "Blocks served from the tier.", TIER(hit_blocks)},
    {COUNTER, "kvist_store_read_bytes_total", "Bytes loaded from the tier.", TIER(read_bytes)},
    {COUNTER, "kvist_store_written_bytes_total", "Bytes stored in the tier.", TIER(written_bytes)},
    {COUNTER, "kvist_store_evicted_objects_total", "Objects that left the tier for want of room.",
        TIER(evicted_objects)},
};

#define STORE(member) offsetof(kvist_stats_t, member)
static const figure_t STORE_FIGURES[] = {
    {GAUGE, "kvist_store_leases", "Leases held.", STORE(leases)},
    {GAUGE, "kvist_store_slots_free", "Free device slots.", STORE(slots_free)},
    {GAUGE, "kvist_store_slots_private", "Device slots being computed into.", STORE(slots_private)},
    {GAUGE, "kvist_store_pinned_bytes", "Bytes of pinned objects.", STORE(pinned_bytes)},
    {GAUGE, "kvist_store_host_coming_bytes", "Size of the host tier that is not ready yet.",
        STORE(host_coming_bytes)},
    {GAUGE, "kvist_store_host_locked_bytes", "Size of the host tier that is locked in memory.",
        STORE(host_locked_bytes)},
    {GAUGE, "kvist_store_history_entries", "Blocks that went and of which is known why.",
        STORE(history_entries)},
    {COUNTER, "kvist_store_history_forgotten_total", "Blocks of which that is known no longer.",
        STORE(history_forgotten)},
    {GAUGE, "kvist_store_unsaved_objects", "Objects that are not durable.", STORE(unsaved_objects)},
    {GAUGE, "kvist_store_index_loaded_objects",
        "Objects that are known: all of them once the index "
        "has been read.",
        STORE(index_loaded)},
    {GAUGE, "kvist_store_index_objects", "About how many objects there are.", STORE(index_total)},
    {COUNTER, "kvist_store_moved_objects_total",
        "Records that were moved on when their segment was reclaimed.", STORE(moved_objects)},
    {COUNTER, "kvist_store_device_packed_objects_total",
        "Objects whose records the device packed, not the host.", STORE(device_packed_objects)},
    {COUNTER, "kvist_store_device_unpacked_objects_total",
        "Objects from disk that the device unpacked, not the host.",
        STORE(device_unpacked_objects)},
    {GAUGE, "kvist_store_write_budget_bytes", "Bytes that may be written to disk in a day; 0: any.",
        STORE(write_budget_bytes)},
    {GAUGE, "kvist_store_write_left_bytes", "What is left of the write budget.",
        STORE(write_left_bytes)},
    {COUNTER, "kvist_store_segment_written_bytes_total",
        "Bytes written to segment files: records, moved ones, markers, headers.",
        STORE(segment_written_bytes)},
    {COUNTER, "kvist_store_not_admitted_objects_total",
        "Objects that the write budget kept off the disk.", STORE(not_admitted_objects)},
    {COUNTER, "kvist_store_damaged_objects_total", "Stored bytes that proved wrong.",
        STORE(damaged_objects)},
    {COUNTER, "kvist_store_keyless_objects_total",
        "Blocks on disk that were met without their tenant's key.", STORE(keyless_objects)},
    {GAUGE, "kvist_store_encrypted_objects", "Objects on disk that are encrypted.",
        STORE(encrypted_objects)},
    {COUNTER, "kvist_store_failed_reads_total", "Reads that failed for now.", STORE(failed_reads)},
    {COUNTER, "kvist_store_failed_writes_total", "Writes that failed.", STORE(failed_writes)},
};

enum {
    LOCAL_TIERS = 3,
    TIER_FIGURE_COUNT = sizeof TIER_FIGURES / sizeof TIER_FIGURES[0],
    STORE_FIGURE_COUNT = sizeof STORE_FIGURES / sizeof STORE_FIGURES[0],
};

struct kv_store_metrics {
    kv_metric_t *tiers[LOCAL_TIERS][TIER_FIGURE_COUNT];
    kv_metric_t *store[STORE_FIGURE_COUNT];
    kv_metric_t *misses[KVIST_MISS_COUNT];
};

static kv_metric_t *register_figure(const figure_t *figure, const char *labels)
{
    return figure->kind == COUNTER ? kv_metric_counter(figure->name, labels, figure->help)
                                   : kv_metric_gauge(figure->name, labels, figure->help);
}

void kv_figures_open(kvist_store_t *store)
{
    struct kv_store_metrics *metrics = kv_allocate(sizeof *metrics);
    char labels[64];
    for (int tier = 0; tier < LOCAL_TIERS; tier++) {
        snprintf(labels, sizeof labels, "tier=\"%s\"", kvist_tier_name((kvist_tier_t)tier));
        for (int i = 0; i < TIER_FIGURE_COUNT; i++) {
            metrics->tiers[tier][i] = register_figure(&TIER_FIGURES[i], labels);
        }
    }
    for (int i = 0; i < STORE_FIGURE_COUNT; i++) {
        metrics->store[i] = register_figure(&STORE_FIGURES[i], "");
    }
    for (int miss = 0; miss < KVIST_MISS_COUNT; miss++) {
        snprintf(labels, sizeof labels, "reason=\"%s\"", kvist_miss_name((kvist_miss_t)miss));
        metrics->misses[miss] = kv_metric_counter(
            "kvist_store_matches_total", labels, "Matches, by why they found no more.");
    }
    store->metrics = metrics;
    kv_figures_publish(store);
}

/* Gauges are sums as well: of all stores of the process. */
static void tell(kv_metric_t *metric, uint64_t now, uint64_t before)
{
    if (now != before) {
        kv_metric_add(metric, (double)now - (double)before);
    }
}

static uint64_t value_at(const void *stats, size_t offset)
{
    uint64_t value;
    memcpy(&value, (const char *)stats + offset, sizeof value);
    return value;
}

void kv_figures_publish(kvist_store_t *store)
{
    const struct kv_store_metrics *metrics = store->metrics;
    kvist_stats_t now, *before = &store->published;
    kv_embedded_store_stats(store, &now);
    for (int tier = 0; tier < LOCAL_TIERS; tier++) {
        for (int i = 0; i < TIER_FIGURE_COUNT; i++) {
            const figure_t *figure = &TIER_FIGURES[i];
            tell(metrics->tiers[tier][i], value_at(&now.tiers[tier], figure->offset),
                value_at(&before->tiers[tier], figure->offset));
        }
    }
    for (int i = 0; i < STORE_FIGURE_COUNT; i++) {
        const figure_t *figure = &STORE_FIGURES[i];
        tell(metrics->store[i], value_at(&now, figure->offset), value_at(before, figure->offset));
    }
    for (int miss = 0; miss < KVIST_MISS_COUNT; miss++) {
        tell(metrics->misses[miss], now.miss_count[miss], before->miss_count[miss]);
    }
    *before = now;
    kv_tenants_publish(store);
}

/* What a store had it has no longer; what it counted stays. */
void kv_figures_close(kvist_store_t *store)
{
    const struct kv_store_metrics *metrics = store->metrics;
    const kvist_stats_t *last = &store->published;
    for (int i = 0; metrics != NULL && i < LOCAL_TIERS * TIER_FIGURE_COUNT; i++) {
        const figure_t *figure = &TIER_FIGURES[i % TIER_FIGURE_COUNT];
        int tier = i / TIER_FIGURE_COUNT;
        if (figure->kind == GAUGE) {
            tell(metrics->tiers[tier][i % TIER_FIGURE_COUNT], 0,
                value_at(&last->tiers[tier], figure->offset));
        }
    }
    for (int i = 0; metrics != NULL && i < STORE_FIGURE_COUNT; i++) {
        if (STORE_FIGURES[i].kind == GAUGE) {
            tell(metrics->store[i], 0, value_at(last, STORE_FIGURES[i].offset));
        }
    }
    free(store->metrics);
    store->metrics = NULL;
}
