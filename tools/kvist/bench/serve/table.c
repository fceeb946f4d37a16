#include "tools/kvist/bench/serve/report.h"

#include "base/clock.h"
#include "tools/kvist/bench/serve/parts.h"
#include "tools/kvist/text.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* ---- while it runs ---- */

void kv_serve_say_progress(FILE *out, const char *label, const kv_drive_progress_t *progress)
{
    char hit[KV_TEXT_BYTES], ideal[KV_TEXT_BYTES];
    double seconds = (double)progress->now_ns / KV_NS_PER_S;
    fprintf(out, "%s%s: %.0f s, %u of %u done (%.1f/s), %u in work, %u failed, hit %s of ideal %s",
        isatty(fileno(out)) ? "\r\033[K" : "", label, seconds, progress->done, progress->total,
        seconds > 0 ? progress->done / seconds : 0, progress->in_flight, progress->failed,
        kv_text_percent(progress->cached_tokens, progress->prompt_tokens, hit),
        kv_text_percent(progress->ideal_tokens, progress->prompt_tokens, ideal));
    if (!isatty(fileno(out))) {
        fputc('\n', out);
    }
    fflush(out);
}

void kv_serve_end_progress(FILE *out)
{
    if (isatty(fileno(out))) {
        fputs("\r\033[K", out);
        fflush(out);
    }
}

/* ---- the table ---- */

static const char *percent_of(const json_t *rate, char *text)
{
    if (!json_is_number(rate)) {
        return "-";
    }
    snprintf(text, KV_TEXT_BYTES, "%.1f", 100 * json_number_value(rate));
    return text;
}

static double number(const json_t *object, const char *outer, const char *inner)
{
    return json_number_value(json_object_get(json_object_get(object, outer), inner));
}

static void print_phase(FILE *out, const json_t *phase)
{
    char hit[KV_TEXT_BYTES], ideal[KV_TEXT_BYTES], good[KV_TEXT_BYTES] = "-";
    const json_t *goodput = json_object_get(phase, "goodput");
    if (json_is_object(goodput)) {
        snprintf(good, sizeof good, "%.2f", number(phase, "goodput", "requests_per_s"));
    }
    fprintf(out, "%-28s %6s %6s %6.0f %5.0f %8.2f %8s %8.0f %8.0f %8.1f %8.1f %8.0f %8.0f\n",
        json_string_value(json_object_get(phase, "label")),
        percent_of(json_object_get(phase, "hit_rate"), hit),
        percent_of(json_object_get(phase, "ideal_hit_rate"), ideal),
        number(phase, "requests", "done"), number(phase, "requests", "failed"),
        json_number_value(json_object_get(phase, "requests_per_s")), good,
        number(phase, "ttft_ms", "p50"), number(phase, "ttft_ms", "p99"),
        number(phase, "tpot_ms", "p50"), number(phase, "tpot_ms", "p99"),
        number(phase, "e2e_ms", "p50"), number(phase, "e2e_ms", "p99"));
}

/* What a reader of the figures must know. */
static void print_remarks(FILE *out, const json_t *run, const json_t *phase)
{
    const char *label = json_string_value(json_object_get(phase, "label"));
    double foreign = number(phase, "tokens", "foreign"), hit = number(phase, "tokens", "hit");
    size_t at;
    json_t *failure;
    /* Of words only so much is known: a chat's template is the same in all of them, for one. */
    bool exact = strcmp(json_string_value(json_object_get(run, "prompts")), "ids") == 0;
    if (foreign > 0 && exact) {
        fprintf(out,
            "%s: of %.0f tokens that hit, %.0f had not been sent before in this phase: the cache "
            "was warm, or the endpoint counts otherwise (--block-tokens)\n",
            label, hit, foreign);
    }
    if (json_is_null(json_object_get(phase, "hit_rate")) && number(phase, "requests", "done") > 0) {
        fprintf(out,
            "%s: the endpoint does not say what hit (vLLM: --enable-prompt-tokens-details)\n",
            label);
    }
    if (number(phase, "requests", "made_shorter") > 0) {
        fprintf(out, "%s: %.0f prompts were cut to fit the context\n", label,
            number(phase, "requests", "made_shorter"));
    }
    if (number(phase, "requests", "not_sent") > 0) {
        fprintf(
            out, "%s: %.0f requests were not sent\n", label, number(phase, "requests", "not_sent"));
    }
    json_array_foreach(json_object_get(phase, "failures"), at, failure)
    {
        fprintf(out, "%s: %.0f failed: %s\n", label,
            json_number_value(json_object_get(failure, "count")),
            json_string_value(json_object_get(failure, "text")));
    }
}

/* ", NAME 12.3 %" of each part that is there. */
static void print_parts(FILE *out, const json_t *family, double prompt)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)family, name, value)
    {
        if (json_integer_value(value) > 0) {
            fprintf(out, ", %s %.1f", name, 100 * json_number_value(value) / prompt);
        }
    }
}

/* Where prompt tokens went, as the gateway says. */
static void print_gateway(FILE *out, const json_t *phase)
{
    const json_t *parts = json_object_get(phase, "gateway");
    double prompt = number(phase, "gateway", "prompt");
    if (prompt <= 0) {
        return;
    }
    double hit = (double)kv_parts_sum(json_object_get(parts, "hit"));
    double gap = (double)kv_parts_sum(json_object_get(parts, "gap"));
    fprintf(out, "%s: of %.0f prompt tokens at the gateway, in %%: hit %.1f",
        json_string_value(json_object_get(phase, "label")), prompt, 100 * hit / prompt);
    print_parts(out, json_object_get(parts, "hit"), prompt);
    fprintf(out, "; gap %.1f", 100 * gap / prompt);
    print_parts(out, json_object_get(parts, "gap"), prompt);
    fputs("; unseen", out);
    print_parts(out, json_object_get(parts, "unseen"), prompt);
    fprintf(out, "%s%s\n",
        json_is_true(json_object_get(parts, "adds_up")) ? "" : " - IT DOES NOT ADD UP",
        prompt != number(phase, "gateway", "asked") ? " (others asked it as well)" : "");
}

void kv_serve_print_table(FILE *out, const json_t *run)
{
    size_t at;
    json_t *line, *phase;
    json_array_foreach(json_object_get(run, "machine"), at, line)
    {
        fprintf(out, "# %s\n", json_string_value(line));
    }
    fprintf(out, "# %s at %s: %s, prompts as %s, seed %.0f\n",
        json_string_value(json_object_get(run, "model")),
        json_string_value(json_object_get(run, "endpoint")),
        json_string_value(json_object_get(json_object_get(run, "workload"), "kind")),
        json_string_value(json_object_get(run, "prompts")), number(run, "workload", "seed"));
    fprintf(out, "%-28s %6s %6s %6s %5s %8s %8s %8s %8s %8s %8s %8s %8s\n", "", "hit", "ideal", "",
        "", "", "good", "TTFT ms", "", "TPOT ms", "", "e2e ms", "");
    fprintf(out, "%-28s %6s %6s %6s %5s %8s %8s %8s %8s %8s %8s %8s %8s\n", "load", "%", "%",
        "done", "fail", "req/s", "req/s", "p50", "p99", "p50", "p99", "p50", "p99");
    json_array_foreach(json_object_get(run, "phases"), at, phase)
    {
        print_phase(out, phase);
    }
    json_array_foreach(json_object_get(run, "phases"), at, phase)
    {
        print_gateway(out, phase);
        print_remarks(out, run, phase);
    }
}
