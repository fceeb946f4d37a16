#include "tools/kvist/object_text.h"

#include "base/clock.h"
#include "tools/kvist/text.h"

#include <stdio.h>

/* "3 s ago (2026-11-22 18:00:00)", or what 0 means. */
static void print_past(const char *label, uint64_t unix_ns, uint64_t now_ns, const char *zero)
{
    char ago[KV_TEXT_BYTES], time[KV_TEXT_BYTES];
    if (unix_ns == 0) {
        printf("  %-10s %s\n", label, zero);
    } else {
        printf("  %-10s %s ago (%s)\n", label,
            kv_text_duration(now_ns > unix_ns ? now_ns - unix_ns : 0, ago),
            kv_text_time(unix_ns, time));
    }
}

static void print_limit(const char *label, uint64_t unix_ns, uint64_t now_ns, const char *zero)
{
    char left[KV_TEXT_BYTES], time[KV_TEXT_BYTES];
    if (unix_ns == 0) {
        printf("  %-10s %s\n", label, zero);
    } else if (unix_ns <= now_ns) {
        printf("  %-10s %s, passed\n", label, kv_text_time(unix_ns, time));
    } else {
        printf("  %-10s %s, in %s\n", label, kv_text_time(unix_ns, time),
            kv_text_duration(unix_ns - now_ns, left));
    }
}

void kv_object_print(const char *node, const Kvist__Admin__Object *object)
{
    uint64_t now_ns = kv_clock_real()->unix_ns(kv_clock_real());
    uint64_t block_tokens = object->token_count / ((uint64_t)object->position + 1);
    char size[KV_TEXT_BYTES], offset[KV_TEXT_BYTES], stored[KV_TEXT_BYTES];
    printf("%s\n  %-10s %s\n", object->key, "node", node);
    printf("  %-10s %llu to %llu of its context (block %u)\n", "tokens",
        (unsigned long long)(object->token_count - block_tokens + 1),
        (unsigned long long)object->token_count, object->position);
    printf("  %-10s %s, in", "size", kv_text_size(object->bytes, size));
    for (size_t i = 0; i < object->n_tiers; i++) {
        printf("%s %s", i > 0 ? "," : "", object->tiers[i]);
    }
    putchar('\n');
    if (object->stored_bytes > 0) {
        printf("  %-10s segment %u at %s, %s\n", "on disk", object->segment,
            kv_text_size(object->segment_offset, offset),
            kv_text_size(object->stored_bytes, stored));
    }
    printf("  %-10s %s, %s\n", "made by", object->origin, object->arithmetic);
    print_past("made", object->created_unix_ns, now_ns, "known once it is on disk");
    print_past("last use", object->used_unix_ns, now_ns, "never");
    print_limit("expires", object->expires_unix_ns, now_ns, "never");
    print_limit("pinned to", object->pin_until_unix_ns, now_ns, "not pinned");
    printf("  %-10s %s\n  %-10s %s\n", "priority", object->priority, "tenant",
        object->tenant[0] != '\0' ? object->tenant : "none");
    printf("  %-10s %u\n  %-10s %u\n", "leases", object->leases, "goes on in", object->children);
    printf("  %-10s %s\n  %-10s %s\n", "parent",
        object->position > 0 ? object->parent : "none: a context begins here", "namespace",
        object->name_space);
}

json_t *kv_object_pack(const char *node, const Kvist__Admin__Object *object)
{
    json_t *tiers = json_array();
    for (size_t i = 0; i < object->n_tiers; i++) {
        json_array_append_new(tiers, json_string(object->tiers[i]));
    }
    const struct {
        const char *name, *value;
    } texts[] = {
        {"node", node},
        {"key", object->key},
        {"parent", object->parent},
        {"namespace", object->name_space},
        {"priority", object->priority},
        {"origin", object->origin},
        {"tenant", object->tenant},
        {"arithmetic", object->arithmetic},
    };
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"position", object->position},
        {"token_count", object->token_count},
        {"children", object->children},
        {"groups", object->groups},
        {"bytes", object->bytes},
        {"segment", object->segment},
        {"segment_offset", object->segment_offset},
        {"stored_bytes", object->stored_bytes},
        {"created_unix_ns", object->created_unix_ns},
        {"used_unix_ns", object->used_unix_ns},
        {"expires_unix_ns", object->expires_unix_ns},
        {"pin_until_unix_ns", object->pin_until_unix_ns},
        {"leases", object->leases},
    };
    json_t *packed = json_object();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_object_set_new(packed, texts[i].name, json_string(texts[i].value));
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        json_object_set_new(packed, numbers[i].name, json_integer((json_int_t)numbers[i].value));
    }
    json_object_set_new(packed, "tiers", tiers);
    return packed;
}
