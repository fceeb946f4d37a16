#include "tools/kvist/bench/serve/parts.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LABEL_BYTES = 64, AWAIT_MS = 5000, AGAIN_MS = 50 };

static const char PROMPT[] = "kvist_gateway_prompt_tokens_total ";

static const struct {
    const char *name, *begin; /* of a line, up to the label's value */
} FAMILIES[] = {
    {"hit", "kvist_gateway_cached_tokens_total{tier=\""},
    {"gap", "kvist_gateway_gap_tokens_total{reason=\""},
    {"unseen", "kvist_gateway_unseen_tokens_total{kind=\""},
};
enum { FAMILY_COUNT = sizeof FAMILIES / sizeof *FAMILIES };

uint64_t kv_parts_sum(const json_t *parts)
{
    uint64_t sum = 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)parts, name, value)
    {
        sum += (uint64_t)json_integer_value(value);
    }
    return sum;
}

/* LABEL"} NUMBER */
static void take_line(json_t *family, const char *line)
{
    char label[LABEL_BYTES];
    size_t bytes = strcspn(line, "\"");
    if (bytes == 0 || bytes >= sizeof label || strncmp(line + bytes, "\"} ", 3) != 0) {
        return;
    }
    memcpy(label, line, bytes);
    label[bytes] = '\0';
    json_object_set_new(
        family, label, json_integer((json_int_t)strtoull(line + bytes + 3, NULL, 10)));
}

kv_status_t kv_parts_parse(const char *metrics, json_t **parts_out, kv_error_t *error)
{
    json_t *parts = json_pack("{s:n, s:{}, s:{}, s:{}}", "prompt", "hit", "gap", "unseen");
    for (const char *line = metrics; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, PROMPT, strlen(PROMPT)) == 0) {
            json_object_set_new(parts, "prompt",
                json_integer((json_int_t)strtoull(line + strlen(PROMPT), NULL, 10)));
        }
        for (int i = 0; i < FAMILY_COUNT; i++) {
            if (strncmp(line, FAMILIES[i].begin, strlen(FAMILIES[i].begin)) == 0) {
                take_line(
                    json_object_get(parts, FAMILIES[i].name), line + strlen(FAMILIES[i].begin));
            }
        }
    }
    bool whole = json_is_integer(json_object_get(parts, "prompt"));
    for (int i = 0; i < FAMILY_COUNT; i++) {
        whole &= json_object_size(json_object_get(parts, FAMILIES[i].name)) > 0;
    }
    if (!whole) {
        json_decref(parts);
        return kv_fail(error, KV_MISSING, "the metrics are no Kvist gateway's");
    }
    *parts_out = parts;
    return KV_OK;
}

kv_status_t kv_parts_read(kv_asked_t *asked, json_t **parts_out, kv_error_t *error)
{
    char *text;
    long code;
    kv_status_t status = kv_asked_fetch(asked, "/metrics", NULL, &text, &code, error);
    if (status != KV_OK) {
        return status;
    }
    status = code == 200 ? kv_parts_parse(text, parts_out, error)
                         : kv_fail(error, KV_MISSING, "/metrics: HTTP %ld", code);
    free(text);
    return status;
}

static json_t *subtract(const json_t *before, const json_t *after)
{
    json_t *difference = json_object(), *value;
    const char *name;
    json_object_foreach((json_t *)after, name, value)
    {
        json_int_t less = json_integer_value(json_object_get(before, name));
        json_object_set_new(difference, name, json_integer(json_integer_value(value) - less));
    }
    return difference;
}

static json_t *rate_of(uint64_t part, uint64_t whole)
{
    return whole > 0 ? json_real((double)part / (double)whole) : json_null();
}

json_t *kv_parts_between(const json_t *before, const json_t *after, uint64_t asked_tokens)
{
    uint64_t sums[FAMILY_COUNT], all = 0;
    uint64_t prompt = (uint64_t)(json_integer_value(json_object_get(after, "prompt")) -
                                 json_integer_value(json_object_get(before, "prompt")));
    json_t *parts =
        json_pack("{s:I, s:I}", "prompt", (json_int_t)prompt, "asked", (json_int_t)asked_tokens);
    for (int i = 0; i < FAMILY_COUNT; i++) {
        json_t *family = subtract(
            json_object_get(before, FAMILIES[i].name), json_object_get(after, FAMILIES[i].name));
        sums[i] = kv_parts_sum(family);
        all += sums[i];
        json_object_set_new(parts, FAMILIES[i].name, family);
    }
    json_object_set_new(parts, "adds_up", json_boolean(all == prompt));
    json_object_set_new(parts, "hit_rate", rate_of(sums[0], prompt));
    json_object_set_new(parts, "ideal_hit_rate", rate_of(sums[0] + sums[1], prompt));
    return parts;
}

kv_status_t kv_parts_since(kv_asked_t *asked, const json_t *before, uint64_t asked_tokens,
    json_t **parts_out, kv_error_t *error)
{
    uint64_t deadline_ns = kv_clock_now_ns() + (uint64_t)AWAIT_MS * KV_NS_PER_MS;
    for (;;) {
        json_t *after;
        kv_status_t status = kv_parts_read(asked, &after, error);
        if (status != KV_OK) {
            return status;
        }
        json_t *parts = kv_parts_between(before, after, asked_tokens);
        json_decref(after);
        uint64_t prompt = (uint64_t)json_integer_value(json_object_get(parts, "prompt"));
        if (prompt >= asked_tokens || kv_clock_now_ns() > deadline_ns) {
            *parts_out = parts;
            return KV_OK;
        }
        json_decref(parts);
        nanosleep(&(struct timespec){.tv_nsec = AGAIN_MS * KV_NS_PER_MS}, NULL);
    }
}
