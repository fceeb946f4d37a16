#include "audit/values.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

typedef struct {
    const char *text;
    uint32_t bytes;
} text_t;

static bool is_digit(const text_t *text, uint32_t at)
{
    return at < text->bytes && text->text[at] >= '0' && text->text[at] <= '9';
}

static bool is_letter(const text_t *text, uint32_t at)
{
    return at < text->bytes && isalpha((unsigned char)text->text[at]);
}

static char byte_at(const text_t *text, uint32_t at)
{
    return at < text->bytes ? text->text[at] : '\0';
}

/* ---- times: a row of numbers, names and what stands between them, judged as a whole ---- */

/* What such a row has shown so far. */
typedef struct {
    uint32_t numbers;     /* of at most four digits, in a row with one separator */
    uint32_t last_digits; /* digits of the latest number */
    uint64_t last_value;
    char last_separator;
    bool clock;              /* 10:05 */
    bool date;               /* 2026-11-23, 23/11/2026, 23.11.2026 */
    bool epoch, compact;     /* 1763862322, 20261123T010522Z */
    bool month, day_or_year; /* a month's name; a number beside it */
    bool unit, ago;          /* minutes; ago */
    bool number;
} row_t;

static const char *const MONTHS[] = {"january", "february", "march", "april", "may", "june", "july",
    "august", "september", "october", "november", "december", "jan", "feb", "mar", "apr", "jun",
    "jul", "aug", "sep", "sept", "oct", "nov", "dec"};
static const char *const DAYS[] = {"monday", "tuesday", "wednesday", "thursday", "friday",
    "saturday", "sunday", "mon", "tue", "tues", "wed", "thu", "thur", "thurs", "fri", "sat", "sun"};
static const char *const ZONES[] = {"am", "pm", "utc", "gmt", "cet", "cest", "est", "edt", "cst",
    "cdt", "mst", "mdt", "pst", "pdt", "bst", "ist", "jst", "z", "t", "at", "th", "st", "nd", "rd"};
static const char *const UNITS[] = {"seconds", "second", "secs", "sec", "minutes", "minute", "mins",
    "min", "hours", "hour", "hrs", "hr", "days", "day", "weeks", "week", "ms", "s", "m", "h", "d"};

static bool is_one_of(const char *word, uint32_t bytes, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(list[i]) == bytes && strncasecmp(word, list[i], bytes) == 0) {
            return true;
        }
    }
    return false;
}

#define IS_ONE_OF(word, bytes, list) is_one_of(word, bytes, list, sizeof(list) / sizeof(list)[0])

static bool take_word(const text_t *text, uint32_t *at, row_t *row)
{
    uint32_t end = *at;
    while (is_letter(text, end)) {
        end++;
    }
    const char *word = text->text + *at;
    uint32_t bytes = end - *at;
    if (IS_ONE_OF(word, bytes, MONTHS)) {
        row->month = true;
        row->day_or_year |= row->number;
    } else if (bytes == 3 && strncasecmp(word, "ago", 3) == 0) {
        row->ago = true;
    } else if (row->number && IS_ONE_OF(word, bytes, UNITS)) {
        row->unit = true;
    } else if (!IS_ONE_OF(word, bytes, DAYS) && !IS_ONE_OF(word, bytes, ZONES)) {
        return false;
    }
    *at = end;
    return true;
}

/* Seconds, milli-, micro- or nanoseconds since 1970, of the years 2014 to 2039. */
static bool is_epoch(uint64_t value, uint32_t digits)
{
    uint64_t scale = digits == 10 ? 1 : digits == 13 ? 1000 : digits == 16 ? 1000000 : 0;
    scale = digits == 19 ? 1000000000 : scale;
    return scale > 0 && value / scale >= 1400000000 && value / scale < 2200000000;
}

static bool is_day_of_calendar(uint64_t year, uint64_t month, uint64_t day)
{
    return year >= 1970 && year < 2100 && month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

/* 20261123, 202611230105, 20261123010522 */
static bool is_compact(uint64_t value, uint32_t digits)
{
    for (; digits > 8; digits -= 2) {
        value /= 100;
    }
    return digits == 8 && is_day_of_calendar(value / 10000, value / 100 % 100, value % 100);
}

static void judge_number(row_t *row, uint64_t value, uint32_t digits, char before)
{
    bool follows = row->numbers > 0 && before != '\0' && strchr("-/.:", before) != NULL;
    row->numbers =
        follows && (row->numbers == 1 || before == row->last_separator) ? row->numbers + 1 : 1;
    row->clock |= follows && before == ':' && digits == 2 && value < 60 && row->last_value < 60 &&
                  row->last_digits <= 2;
    bool triple = row->numbers == 3 && before != ':';
    row->date |= triple && (digits == 4 || row->last_digits == 4 || before == '-' || before == '/');
    row->epoch |= is_epoch(value, digits);
    row->compact |= (digits == 8 || digits == 12 || digits == 14) && is_compact(value, digits);
    row->day_or_year |= row->month;
    row->number = true;
    row->last_separator = before;
    row->last_value = value;
    row->last_digits = digits;
}

static bool take_number(const text_t *text, uint32_t *at, row_t *row, char before)
{
    uint32_t end = *at;
    uint64_t value = 0;
    for (; is_digit(text, end) && end - *at < 19; end++) {
        value = value * 10 + (uint64_t)(text->text[end] - '0');
    }
    if (is_digit(text, end)) {
        return false;
    }
    judge_number(row, value, end - *at, before);
    *at = end;
    return true;
}

static bool is_time(const row_t *row)
{
    return row->clock || row->date || row->epoch || row->compact ||
           (row->month && row->day_or_year) || (row->unit && row->ago);
}

/* Where the time that begins here ends, or 0. */
static uint32_t time_end(const text_t *text, uint32_t from)
{
    row_t row = {0};
    uint32_t end = 0;
    char before = '\0';
    for (uint32_t at = from; at < text->bytes && at - from < 48;) {
        bool taken = is_digit(text, at)    ? take_number(text, &at, &row, before)
                     : is_letter(text, at) ? take_word(text, &at, &row)
                                           : false;
        if (!taken) {
            break;
        }
        end = is_time(&row) ? at : end;
        before = byte_at(text, at);
        if (before != '\0' && strchr("-/.:, _+", before) != NULL) {
            at++;
            /* "23, 2026", "10:05 (UTC" and "01:05 - 01:10" have more than one between them. */
            while (byte_at(text, at) == ' ' || byte_at(text, at) == '(') {
                at++;
            }
        }
    }
    return end;
}

/* ---- ids ---- */

static bool is_id_byte(char byte)
{
    return isalnum((unsigned char)byte) || byte == '-' || byte == '_';
}

typedef struct {
    uint32_t letters, digits, uppers, lowers, hexes, changes, vowels;
} makeup_t;

static makeup_t makeup_of(const char *text, uint32_t bytes)
{
    makeup_t makeup = {0};
    int before = -1;
    for (uint32_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        int kind = isdigit(byte) ? 0 : isupper(byte) ? 1 : 2;
        makeup.digits += kind == 0;
        makeup.uppers += kind == 1;
        makeup.lowers += kind == 2;
        makeup.letters += kind != 0;
        makeup.hexes += isxdigit(byte) != 0;
        makeup.vowels += strchr("aeiouAEIOU", byte) != NULL;
        makeup.changes += before >= 0 && kind != before;
        before = kind;
    }
    return makeup;
}

/* Letters and digits as nobody writes words. */
static bool is_random(const char *text, uint32_t bytes)
{
    makeup_t makeup = makeup_of(text, bytes);
    if (bytes < 6) {
        return false;
    }
    if (makeup.letters == 0) {
        return bytes >= 15;
    }
    if (makeup.hexes == bytes && (makeup.uppers == 0 || makeup.lowers == 0)) {
        return makeup.digits > 0 || bytes >= 16;
    }
    return makeup.changes >= 3 || (makeup.changes >= 2 && makeup.digits > 0 && bytes >= 8);
}

/* The groups that - and _ divide a word in: is one of them, from the difference on, random? */
static bool is_id(const text_t *text, uint32_t from, uint32_t end, uint32_t at)
{
    for (uint32_t begin = from, i = from; i <= end; i++) {
        if (i < end && text->text[i] != '-' && text->text[i] != '_') {
            continue;
        }
        if (i > at && is_random(text->text + begin, i - begin)) {
            return true;
        }
        begin = i + 1;
    }
    return false;
}

/* ---- what is at a place ---- */

static void word_around(
    const text_t *text, uint32_t at, uint32_t least, uint32_t *from_out, uint32_t *end_out)
{
    uint32_t from = at, end = at;
    while (from > least && is_id_byte(text->text[from - 1])) {
        from--;
    }
    while (end < text->bytes && end - from < 256 && is_id_byte(text->text[end])) {
        end++;
    }
    *from_out = from;
    *end_out = end;
}

static bool is_boundary(const text_t *text, uint32_t at, uint32_t least)
{
    if (at == least) {
        return true;
    }
    bool before_digit = is_digit(text, at - 1), before_letter = is_letter(text, at - 1);
    return !(before_digit && is_digit(text, at)) && !(before_letter && is_letter(text, at));
}

/* The longest time that covers the place. */
static bool time_around(
    const text_t *text, uint32_t at, uint32_t least, uint32_t *from_out, uint32_t *end_out)
{
    for (uint32_t from = least; from <= at && from < text->bytes; from++) {
        if (!is_boundary(text, from, least) || !(is_digit(text, from) || is_letter(text, from))) {
            continue;
        }
        uint32_t end = time_end(text, from);
        if (end >= at && end > from) {
            *from_out = from;
            *end_out = end;
            return true;
        }
    }
    return false;
}

/* The number that covers the place or ends there. */
static bool number_around(
    const text_t *text, uint32_t at, uint32_t least, uint32_t *from_out, uint32_t *end_out)
{
    uint32_t from = at, end = at;
    while (from > least && (is_digit(text, from - 1) ||
                               (from - 1 > least && strchr(".,", text->text[from - 1]) != NULL &&
                                   is_digit(text, from) && is_digit(text, from - 2)))) {
        from--;
    }
    while (is_digit(text, end) ||
           (end > from && end < text->bytes && strchr(".,", text->text[end]) != NULL &&
               is_digit(text, end + 1) && is_digit(text, end - 1))) {
        end++;
    }
    *from_out = from;
    *end_out = end;
    return end > from && is_digit(text, from);
}

kv_value_pair_t kv_values_at(const char *was, uint32_t was_bytes, uint32_t was_at, const char *is,
    uint32_t is_bytes, uint32_t is_at, uint32_t back)
{
    const text_t one = {was, was_bytes}, other = {is, is_bytes};
    back = back < KV_AUDIT_VALUE_BACK ? back : KV_AUDIT_VALUE_BACK;
    back = back < was_at ? back : was_at;
    back = back < is_at ? back : is_at;
    uint32_t was_least = was_at - back, is_least = is_at - back;
    kv_value_pair_t pair = {0};
    if (time_around(&one, was_at, was_least, &pair.was_from, &pair.was_end) &&
        time_around(&other, is_at, is_least, &pair.is_from, &pair.is_end) &&
        (pair.was_end > was_at || pair.is_end > is_at)) {
        pair.kind = KV_VALUE_TIME;
        return pair;
    }
    word_around(&one, was_at, was_least, &pair.was_from, &pair.was_end);
    word_around(&other, is_at, is_least, &pair.is_from, &pair.is_end);
    /* One that happens to have digits alone is known by the other. */
    bool alike = pair.was_end - pair.was_from == pair.is_end - pair.is_from;
    bool was_id = is_id(&one, pair.was_from, pair.was_end, was_at);
    bool is_id_too = is_id(&other, pair.is_from, pair.is_end, is_at);
    if ((was_id && is_id_too) || (alike && (was_id || is_id_too))) {
        pair.kind = KV_VALUE_ID;
        return pair;
    }
    if (number_around(&one, was_at, was_least, &pair.was_from, &pair.was_end) &&
        number_around(&other, is_at, is_least, &pair.is_from, &pair.is_end)) {
        pair.kind = KV_VALUE_COUNT;
        return pair;
    }
    return (kv_value_pair_t){0};
}
