#include "audit/order.h"

#include "base/checksum.h"
#include "base/memory.h"

#include <ctype.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOOK_BACK_BYTES = 64 << 10, /* a value that covers the place begins at most so far before */
    GAP_BYTES_MAX = 64,         /* between two tools: line breaks, tags */
    FAILURES_MAX = 64,          /* brackets that begin no JSON, before that is given up */
    NESTING_MAX = 64,
};

/* What is put in order before two values are compared. */
typedef enum { SORT_KEYS, SORT_NAMED, SORT_LISTS } sorting_t;

/* ---- a value's text whatever its order ---- */

static uint64_t sum_of(const json_t *value, sorting_t sorting);

static bool is_named(const json_t *value)
{
    const json_t *function = json_object_get(value, "function");
    const json_t *object = json_is_object(function) ? function : value;
    return json_is_string(json_object_get(object, "name"));
}

/* Whether a list's order is left out of account. */
static bool is_sorted(const json_t *list, sorting_t sorting)
{
    bool named = json_array_size(list) > 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        named &= is_named(json_array_get(list, i));
    }
    return sorting == SORT_LISTS || (sorting == SORT_NAMED && named);
}

static uint64_t pair_sum(uint64_t one, uint64_t other)
{
    const uint64_t both[] = {one, other};
    return kv_checksum(both, sizeof both);
}

static uint64_t object_sum(const json_t *value, sorting_t sorting)
{
    const char *key;
    json_t *item;
    uint64_t sum = 1;
    json_object_foreach((json_t *)(uintptr_t)value, key, item)
    {
        sum += pair_sum(kv_checksum(key, strlen(key)), sum_of(item, sorting));
    }
    return pair_sum(sum, 1);
}

static uint64_t list_sum(const json_t *value, sorting_t sorting)
{
    bool sorted = is_sorted(value, sorting);
    uint64_t sum = 2;
    for (size_t i = 0; i < json_array_size(value); i++) {
        uint64_t item = sum_of(json_array_get(value, i), sorting);
        sum = sorted ? sum + pair_sum(item, 2) : pair_sum(sum, item);
    }
    return pair_sum(sum, 2);
}

static uint64_t sum_of(const json_t *value, sorting_t sorting)
{
    if (json_is_object(value)) {
        return object_sum(value, sorting);
    }
    if (json_is_array(value)) {
        return list_sum(value, sorting);
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    uint64_t sum = text != NULL ? kv_checksum(text, strlen(text)) : 0;
    free(text);
    return sum;
}

/* ---- JSON values in a text ---- */

typedef struct {
    const char *text;
    uint32_t bytes, at;
    uint32_t failures;
} scanner_t;

typedef struct {
    uint32_t from, end;
    json_t *value;
} found_t;

/* Where the bracket at `at` is closed, or 0. */
static uint32_t closing(const scanner_t *scanner, uint32_t at)
{
    uint32_t depth = 0, limit = scanner->bytes;
    if (limit - at > KV_AUDIT_JSON_BYTES_MAX) {
        limit = at + KV_AUDIT_JSON_BYTES_MAX;
    }
    bool quoted = false;
    for (uint32_t i = at; i < limit; i++) {
        char byte = scanner->text[i];
        if (quoted) {
            i += byte == '\\';
            quoted = byte != '"';
        } else if (byte == '"') {
            quoted = true;
        } else if (byte == '{' || byte == '[') {
            if (++depth > NESTING_MAX) {
                return 0;
            }
        } else if ((byte == '}' || byte == ']') && --depth == 0) {
            return i + 1;
        }
    }
    return 0;
}

/* The next value that ends after `past`; false: there is none. value: json_decref() by the caller.
 */
static bool next_value(scanner_t *scanner, uint32_t past, found_t *found_out)
{
    for (; scanner->at < scanner->bytes && scanner->failures < FAILURES_MAX; scanner->at++) {
        uint32_t from = scanner->at;
        char byte = scanner->text[from];
        if (byte != '{' && byte != '[') {
            continue;
        }
        uint32_t end = closing(scanner, from);
        json_t *value =
            end > 0 ? json_loadb(scanner->text + from, end - from, JSON_ALLOW_NUL, NULL) : NULL;
        if (value == NULL) {
            scanner->failures++;
            continue;
        }
        scanner->at = end;
        if (end > past) {
            *found_out = (found_t){from, end, value};
            return true;
        }
        json_decref(value);
        scanner->at--;
    }
    return false;
}

/* One value each: is it the same but for its order? */
static kv_order_t compare_values(const json_t *was, const json_t *is)
{
    if (sum_of(was, SORT_KEYS) == sum_of(is, SORT_KEYS)) {
        return KV_ORDER_KEYS;
    }
    if (sum_of(was, SORT_NAMED) == sum_of(is, SORT_NAMED)) {
        return KV_ORDER_TOOLS;
    }
    return sum_of(was, SORT_LISTS) == sum_of(is, SORT_LISTS) ? KV_ORDER_KEYS : KV_ORDER_OTHER;
}

/* Values one after the other on both sides, until those so far are the same ones. */
static kv_reordering_t compare_json(scanner_t *was, scanner_t *is, uint32_t at)
{
    kv_reordering_t result = {0};
    uint64_t was_sum = 0, is_sum = 0;
    uint32_t was_before = at, is_before = at;
    found_t one = {0}, other = {0};
    for (int count = 1; count <= KV_AUDIT_ITEMS_MAX && result.order == KV_ORDER_OTHER; count++) {
        if (!next_value(was, was_before, &one) || one.from > was_before + GAP_BYTES_MAX) {
            break;
        }
        if (!next_value(is, is_before, &other) || other.from > is_before + GAP_BYTES_MAX) {
            break;
        }
        was_sum += pair_sum(sum_of(one.value, SORT_LISTS), 3);
        is_sum += pair_sum(sum_of(other.value, SORT_LISTS), 3);
        if (was_sum == is_sum && count == 1 && (one.from > at || other.from > at)) {
            break; /* what differs stands before it */
        }
        if (was_sum == is_sum) {
            bool named = is_named(one.value);
            kv_order_t many = named ? KV_ORDER_TOOLS : KV_ORDER_ITEMS;
            result.order = count == 1 ? compare_values(one.value, other.value) : many;
            result.was_end = one.end;
            result.is_end = other.end;
        }
        was_before = one.end;
        is_before = other.end;
        json_decref(one.value);
        json_decref(other.value);
        one.value = other.value = NULL;
    }
    json_decref(one.value);
    json_decref(other.value);
    return result;
}

/* ---- lines, and items between commas ---- */

/* The item from here to one of the separators: its sum without blanks around it; its end. */
static uint64_t item_sum(
    const char *text, uint32_t bytes, uint32_t from, const char *separators, uint32_t *end_out)
{
    uint32_t end = from;
    while (end < bytes && strchr(separators, text[end]) == NULL) {
        end++;
    }
    *end_out = end;
    while (from < end && isspace((unsigned char)text[from])) {
        from++;
    }
    while (end > from && isspace((unsigned char)text[end - 1])) {
        end--;
    }
    return end > from ? kv_checksum(text + from, end - from) : 0;
}

/* Items from the one that the place is in, until those so far are the same ones. */
static kv_reordering_t compare_items(const char *was, uint32_t was_bytes, const char *is,
    uint32_t is_bytes, uint32_t from, uint32_t at, const char *separators)
{
    uint32_t one = at, end;
    while (one > from && strchr(separators, was[one - 1]) == NULL) {
        one--;
    }
    uint32_t other = one;
    uint64_t sum = 0;
    for (int count = 1; count <= KV_AUDIT_ITEMS_MAX && one < was_bytes && other < is_bytes;
         count++) {
        sum += pair_sum(item_sum(was, was_bytes, one, separators, &end), 4);
        one = end + 1;
        sum -= pair_sum(item_sum(is, is_bytes, other, separators, &end), 4);
        other = end + 1;
        if (sum == 0 && count > 1) {
            uint32_t was_end = one < was_bytes ? one : was_bytes;
            return (kv_reordering_t){KV_ORDER_ITEMS, was_end, other < is_bytes ? other : is_bytes};
        }
    }
    return (kv_reordering_t){0};
}

kv_reordering_t kv_reordering_at(const char *was, uint32_t was_bytes, const char *is,
    uint32_t is_bytes, uint32_t from, uint32_t at)
{
    uint32_t begin = at - from > LOOK_BACK_BYTES ? at - LOOK_BACK_BYTES : from;
    scanner_t one = {.text = was, .bytes = was_bytes, .at = begin};
    scanner_t other = {.text = is, .bytes = is_bytes, .at = begin};
    kv_reordering_t result = compare_json(&one, &other, at);
    if (result.order == KV_ORDER_OTHER) {
        result = compare_items(was, was_bytes, is, is_bytes, from, at, "\n");
    }
    return result.order == KV_ORDER_OTHER
               ? compare_items(was, was_bytes, is, is_bytes, from, at, ",;|\n")
               : result;
}
