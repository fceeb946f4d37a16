#include "tools/kvist/sim/report.h"

#include <inttypes.h>
#include <math.h>

enum { GIB_SHIFT = 30 };

void kv_report_head(FILE *file, const kv_report_head_t *head)
{
    const kv_trace_t *trace = head->trace;
    double span_s =
        (double)(trace->requests[trace->request_count - 1].at_ms - trace->requests[0].at_ms) / 1000;
    fprintf(file, "# %s: %u requests in %.0f s, %zu blocks of %u tokens asked for, %u different\n",
        head->path, trace->request_count, span_s, trace->asked_count, trace->block_tokens,
        trace->block_count);
    fprintf(file, "# counted: %s (%u requests)\n", head->part, head->window.count);
    fprintf(file, "# written: to host memory and to disk, in GiB at %" PRIu64 " bytes a block\n",
        head->block_bytes);
    fprintf(file, "%7s %7s %7s  %-16s %8s %8s %10s %9s %8s %8s  %s\n", "device", "host", "disk",
        "policy", "hit rate", "tokens", "saved", "evicted", "to host", "to disk",
        "against lru (95 %), gap to belady closed");
}

static double to_gib(const kv_report_head_t *head, uint64_t blocks)
{
    return (double)blocks * (double)head->block_bytes / (double)(UINT64_C(1) << GIB_SHIFT);
}

static double token_rate(const kv_outcome_t *outcome)
{
    return outcome->asked_tokens > 0 ? (double)outcome->hit_tokens / (double)outcome->asked_tokens
                                     : 0;
}

static void print_count(FILE *file, uint32_t blocks)
{
    if (blocks > 0) {
        fprintf(file, "%7u ", blocks);
    } else {
        fprintf(file, "%7s ", "-");
    }
}

void kv_report_row(FILE *file, const kv_report_head_t *head, const kv_row_t *row)
{
    print_count(file, row->device_blocks);
    print_count(file, row->host_blocks);
    print_count(file, row->disk_blocks);
    fprintf(file, " %-16s %8.4f %8.4f %9.2fM ", row->name, kv_outcome_rate(&row->outcome),
        token_rate(&row->outcome), (double)row->outcome.hit_tokens / 1e6);
    if (row->reference) {
        fprintf(file, "%9s %8s %8s", "-", "-", "-");
    } else {
        const kv_replay_totals_t *totals = &row->totals;
        fprintf(file, "%9" PRIu64 " %8.2f %8.2f",
            totals->evicted_blocks[KVIST_TIER_DEVICE] + totals->evicted_blocks[KVIST_TIER_HOST],
            to_gib(head, totals->written_blocks[KVIST_TIER_HOST]),
            to_gib(head, totals->written_blocks[KVIST_TIER_DISK]));
    }
    if (!isnan(row->over_lru)) {
        fprintf(file, "  %+.4f [%+.4f, %+.4f]", row->over_lru, row->spread.low, row->spread.high);
    }
    if (!isnan(row->gap_closed)) {
        fprintf(file, " %.0f %%", 100 * row->gap_closed);
    }
    fputc('\n', file);
    fflush(file);
}

static json_t *number_or_null(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

/* In blocks, by tier. */
static json_t *by_tier(const uint64_t *blocks)
{
    json_t *object = json_object();
    for (int tier = 0; tier <= KVIST_TIER_DISK; tier++) {
        json_object_set_new(
            object, kvist_tier_name((kvist_tier_t)tier), json_integer((json_int_t)blocks[tier]));
    }
    return object;
}

json_t *kv_report_row_json(const kv_report_head_t *head, const kv_row_t *row)
{
    json_t *line = json_pack("{s:s, s:b, s:I, s:I, s:I, s:f, s:f, s:I, s:I}", "policy", row->name,
        "reference", row->reference, "device_blocks", (json_int_t)row->device_blocks, "host_blocks",
        (json_int_t)row->host_blocks, "disk_blocks", (json_int_t)row->disk_blocks, "hit_rate",
        kv_outcome_rate(&row->outcome), "token_hit_rate", token_rate(&row->outcome), "hit_blocks",
        (json_int_t)row->outcome.hit_blocks, "tokens_saved", (json_int_t)row->outcome.hit_tokens);
    json_object_set_new(line, "over_lru", number_or_null(row->over_lru));
    json_object_set_new(line, "over_lru_low", number_or_null(row->spread.low));
    json_object_set_new(line, "over_lru_high", number_or_null(row->spread.high));
    json_object_set_new(line, "gap_closed", number_or_null(row->gap_closed));
    if (!row->reference) {
        const kv_replay_totals_t *totals = &row->totals;
        uint64_t written_bytes[KVIST_TIER_COUNT];
        for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
            written_bytes[tier] = totals->written_blocks[tier] * head->block_bytes;
        }
        json_object_set_new(line, "hit_blocks_by_tier", by_tier(totals->hit_blocks));
        json_object_set_new(line, "evicted_blocks", by_tier(totals->evicted_blocks));
        json_object_set_new(line, "written_blocks", by_tier(totals->written_blocks));
        json_object_set_new(line, "written_bytes", by_tier(written_bytes));
        json_object_set_new(
            line, "moved_on_disk_blocks", json_integer((json_int_t)totals->disk_moved_blocks));
    }
    return line;
}

json_t *kv_report_json(const kv_report_head_t *head, json_t *rows)
{
    const kv_trace_t *trace = head->trace;
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:o}", "trace", head->path,
        "requests", (json_int_t)trace->request_count, "asked_blocks",
        (json_int_t)trace->asked_count, "different_blocks", (json_int_t)trace->block_count,
        "block_tokens", (json_int_t)trace->block_tokens, "counted", head->part, "counted_requests",
        (json_int_t)head->window.count, "block_bytes", (json_int_t)head->block_bytes, "runs", rows);
}
