#include "tools/kvist/tour/report.h"

#include "base/clock.h"
#include "tools/kvist/text.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

bool kv_tour_step_in_time(const kv_tour_report_t *report, const kv_tour_step_t *step)
{
    return step->target_divisor == 0 ||
           step->first_ns * step->target_divisor <= report->steps[0].first_ns;
}

bool kv_tour_holds(const kv_tour_report_t *report)
{
    for (unsigned i = 0; i < report->step_count; i++) {
        if (report->steps[i].same == KV_SAME_NO && !report->steps[i].decode_kv_reused) {
            return false;
        }
    }
    return true;
}

/* "device", "device+disk", "-". */
static char *tiers_of(const kv_tour_step_t *step, char *text_out)
{
    size_t used = 0;
    snprintf(text_out, KV_TEXT_BYTES, "-");
    for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
        if (step->seen_tokens[tier] > 0) {
            used += (size_t)snprintf(text_out + used, KV_TEXT_BYTES - used, "%s%s",
                used > 0 ? "+" : "", KV_SEEN_NAMES[tier]);
        }
    }
    return text_out;
}

static const char *describe_same(const kv_tour_step_t *step)
{
    switch (step->same) {
    case KV_SAME_REFERENCE:
        return "computed anew";
    case KV_SAME_YES:
        return "identical";
    default:
        return step->decode_kv_reused ? "differs (decode's KV)" : "DIFFERS";
    }
}

static void print_step(const kv_tour_report_t *report, const kv_tour_step_t *step)
{
    char prompt[KV_TEXT_BYTES], cached[KV_TEXT_BYTES], tiers[KV_TEXT_BYTES], loaded[KV_TEXT_BYTES],
        sent[KV_TEXT_BYTES], first[KV_TEXT_BYTES], anew[KV_TEXT_BYTES] = "-",
                                                   ratio[KV_TEXT_BYTES] = "1";
    double times =
        step->first_ns > 0 ? (double)report->steps[0].first_ns / (double)step->first_ns : 0;
    if (step->same != KV_SAME_REFERENCE) {
        snprintf(ratio, sizeof ratio, "1/%.1f", times);
        if (step->target_divisor != 0) {
            size_t used = strlen(ratio);
            snprintf(ratio + used, sizeof ratio - used, " (1/%u: %s)", step->target_divisor,
                kv_tour_step_in_time(report, step) ? "ok" : "missed");
        }
    }
    if (step->recomputed_ns > 0) {
        kv_text_duration(step->recomputed_ns, anew);
    }
    printf("%-28s %7s %7s  %-13s %8s %8s %8s  %-16s %8s  %s\n", step->title,
        kv_text_count(step->prompt_tokens, prompt), kv_text_count(step->cached_tokens, cached),
        tiers_of(step, tiers), kv_text_size(step->loaded_bytes, loaded),
        kv_text_size(step->streamed_bytes, sent), kv_text_duration(step->first_ns, first), ratio,
        anew, describe_same(step));
}

static void print_layouts(const kv_tour_report_t *report)
{
    char alone[KV_TEXT_BYTES], p50[KV_TEXT_BYTES], p99[KV_TEXT_BYTES], max[KV_TEXT_BYTES],
        prefill[KV_TEXT_BYTES];
    printf("\nA running decode while a prompt of about 6,000 tokens is computed: time per token\n\n"
           "%-44s %8s  %8s  %8s  %8s  %9s  %6s\n",
        "", "alone", "p50", "p99", "max", "prefill", "tokens");
    for (unsigned i = 0; i < report->layout_count; i++) {
        const kv_tour_layout_t *layout = &report->layouts[i];
        printf("%-44s %8s  %8s  %8s  %8s  %9s  %6llu\n", layout->title,
            kv_text_duration(layout->alone_p50_ns, alone), kv_text_duration(layout->p50_ns, p50),
            kv_text_duration(layout->p99_ns, p99), kv_text_duration(layout->max_ns, max),
            kv_text_duration(layout->prefill_ns, prefill), (unsigned long long)layout->token_count);
    }
    printf(
        "\n  Apart: the prompt is computed by another process, so a user who is reading an answer\n"
        "  hardly notices it. Together: each piece of the prompt makes every running answer "
        "wait.\n");
}

void kv_tour_print(const kv_tour_report_t *report)
{
    printf("\nOne long context, sent again (model %s)\n\n"
           "%-28s %7s %7s  %-13s %8s %8s %8s  %-16s %8s  %s\n",
        report->model, "", "prompt", "cached", "from", "read", "sent", "TTFT", "of cold", "anew",
        "greedy answer");
    for (unsigned i = 0; i < report->step_count; i++) {
        print_step(report, &report->steps[i]);
    }
    putchar('\n');
    for (unsigned i = 0; i < report->step_count; i++) {
        printf("  %s: %s\n", report->steps[i].title, report->steps[i].meaning);
    }
    puts("  prompt, cached: tokens. read: KV that a tier or another node gave. sent: KV that went\n"
         "  from the prefill node to the decode node. TTFT: time to first token, at the client.\n"
         "  anew: TTFT of the very same request with the cache bypassed; its answer is compared.");
    if (report->layout_count > 0) {
        print_layouts(report);
    }
}

static json_t *pack_step(const kv_tour_report_t *report, const kv_tour_step_t *step)
{
    json_t *tiers = json_object();
    for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
        json_object_set_new(
            tiers, KV_SEEN_NAMES[tier], json_integer((json_int_t)step->seen_tokens[tier]));
    }
    json_t *packed = json_pack("{s:s, s:I, s:I, s:o, s:I, s:I, s:f, s:b}", "row", step->name,
        "prompt_tokens", (json_int_t)step->prompt_tokens, "hit_tokens",
        (json_int_t)step->cached_tokens, "hit_tokens_by_tier", tiers, "read_bytes",
        (json_int_t)step->loaded_bytes, "sent_bytes", (json_int_t)step->streamed_bytes, "ttft_ms",
        (double)step->first_ns / KV_NS_PER_MS, "decode_kv_reused", step->decode_kv_reused);
    if (step->recomputed_ns > 0) {
        json_object_set_new(
            packed, "recomputed_ttft_ms", json_real((double)step->recomputed_ns / KV_NS_PER_MS));
    }
    if (step->same != KV_SAME_REFERENCE) {
        json_object_set_new(packed, "identical", json_boolean(step->same == KV_SAME_YES));
    }
    if (step->target_divisor != 0) {
        json_object_set_new(
            packed, "target_of_cold", json_real(1.0 / (double)step->target_divisor));
        json_object_set_new(packed, "target_met", json_boolean(kv_tour_step_in_time(report, step)));
    }
    return packed;
}

static json_t *pack_layout(const kv_tour_layout_t *layout)
{
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:I}", "row", layout->name, "threads",
        (json_int_t)layout->threads, "tpot_alone_p50_ms",
        (double)layout->alone_p50_ns / KV_NS_PER_MS, "tpot_p50_ms",
        (double)layout->p50_ns / KV_NS_PER_MS, "tpot_p99_ms", (double)layout->p99_ns / KV_NS_PER_MS,
        "tpot_max_ms", (double)layout->max_ns / KV_NS_PER_MS, "prefill_ms",
        (double)layout->prefill_ns / KV_NS_PER_MS, "tokens", (json_int_t)layout->token_count);
}

kv_status_t kv_tour_write_json(const kv_tour_report_t *report, const char *path, kv_error_t *error)
{
    json_t *rows = json_array();
    for (unsigned i = 0; i < report->step_count; i++) {
        json_array_append_new(rows, pack_step(report, &report->steps[i]));
    }
    for (unsigned i = 0; i < report->layout_count; i++) {
        json_array_append_new(rows, pack_layout(&report->layouts[i]));
    }
    json_t *page =
        json_pack("{s:s, s:s, s:s, s:b, s:o}", "version", KVIST_VERSION, "model", report->model,
            "session", report->session, "equalities_hold", kv_tour_holds(report), "rows", rows);
    int failed = json_dump_file(page, path, JSON_INDENT(2));
    int cause = errno;
    json_decref(page);
    return failed ? kv_fail_errno(error, cause, "%s cannot be written", path) : KV_OK;
}
