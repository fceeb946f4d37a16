/* What the audit says of prompts that were changed on purpose, and of prompts that were not.
 *
 * Each case is made from a seed: a conversation (talk.h) in the chat template of a model, and its
 * successor, into which one kind of difference was put, or one of the things that are none. Prompts
 * are judged as `kvist audit` and the gateway do. A case that was judged wrongly is printed with
 * its seed: KVIST_SEED=SEED runs from that one on. */
#include "audit/audit.h"
#include "tests/audit/talk.h"

#include <time.h>

enum { CASES = 300, CASES_LONG = 5000, TIMES_MIN = 1600000000, TIMES_RANGE = 180000000 };

typedef struct {
    talk_t was, is;
    kv_audit_relation_t relation;
    bool as_json; /* the difference is one of JSON: not for templates that write tools otherwise */
} pair_t;

/* ---- the two prompts before they are made different ---- */

/* The later prompt goes on with the session, or is another one of the same template. There is more
 * behind the first turn than what a finding has to cost. */
static void make_pair(pair_t *pair, uint64_t *seed, bool with_tools, bool same_session)
{
    make_talk(&pair->was, seed, with_tools);
    int exchanges = same_session ? 3 + (int)below(seed, 5) : (int)below(seed, 3);
    for (int i = 0; i < exchanges; i++) {
        add_exchange(&pair->was, seed, true);
    }
    copy_talk(&pair->was, &pair->is);
    pair->relation = KV_AUDIT_SAME_SESSION;
    if (same_session) {
        add_exchange(&pair->was, seed, false);
        talk_t *is = &pair->is;
        add_turn(
            is, KV_AUDIT_USER, kv_duplicate_string(pair->was.turns[pair->was.turn_count - 1].text));
        add_turn(is, KV_AUDIT_ASSISTANT, sentences(seed, 1 + (int)below(seed, 6)));
        add_exchange(is, seed, false);
        pair->relation = below(seed, 3) == 0 ? KV_AUDIT_LIKENESS : KV_AUDIT_SAME_SESSION;
        return;
    }
    cut_turns(&pair->was, 0);
    cut_turns(&pair->is, 0);
    for (int i = 0; i <= exchanges; i++) {
        add_exchange(&pair->was, seed, i < exchanges);
        add_exchange(&pair->is, seed, i < exchanges);
    }
    pair->relation = below(seed, 3) == 0 ? KV_AUDIT_LIKENESS : KV_AUDIT_SAME_TEMPLATE;
}

static bool flip(uint64_t *seed)
{
    return below(seed, 2) == 0;
}

/* A text with a value each into both, at the same place: a line in the first half of the system
 * prompt, or the beginning of the first message. */
static void put_values(pair_t *pair, uint64_t *seed, const char *before, const char *was,
    const char *is, const char *after)
{
    char line[2][400];
    snprintf(line[0], sizeof line[0], "%s%s%s", before, was, after);
    snprintf(line[1], sizeof line[1], "%s%s%s", before, is, after);
    bool in_message = pair->relation == KV_AUDIT_SAME_SESSION && below(seed, 4) == 0;
    talk_t *talks[] = {&pair->was, &pair->is};
    int at = (int)below(seed, (uint64_t)pair->was.line_count / 2);
    for (int i = 0; i < 2; i++) {
        if (!in_message) {
            put_line(talks[i], at, kv_duplicate_string(line[i]));
            continue;
        }
        char **text = &talks[i]->turns[0].text, *made = kv_allocate(strlen(*text) + 402);
        sprintf(made, "%s\n%s", line[i], *text);
        set_text(text, made);
    }
}

/* ---- the kinds ---- */

static void write_time(char *text, size_t bytes, time_t at, int form, unsigned fraction)
{
    static const char *const FORMS[] = {"%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M",
        "%d/%m/%Y %H:%M", "%A, %B %d, %Y", "%a, %d %b %Y %H:%M:%S GMT", "%B %d, %Y at %I:%M %p",
        "%d.%m.%Y, %H:%M:%S", "%H:%M:%S", "%m/%d/%y", "%Y%m%dT%H%M%SZ", "%d %B %Y", "%I:%M %p",
        "%Y-%m-%dT%H:%M:%S+02:00", "%c"};
    enum { COUNT = sizeof FORMS / sizeof FORMS[0] };
    struct tm parts;
    gmtime_r(&at, &parts);
    switch (form) {
    case COUNT:
        snprintf(text, bytes, "%lld", (long long)at);
        break;
    case COUNT + 1:
        snprintf(text, bytes, "%lld%03u", (long long)at, fraction % 1000);
        break;
    case COUNT + 2:
        snprintf(text, bytes, "%lld.%06u", (long long)at, fraction);
        break;
    case COUNT + 3: {
        strftime(text, bytes, "%Y-%m-%d %H:%M:%S", &parts);
        snprintf(text + strlen(text), bytes - strlen(text), ".%06u", fraction);
        break;
    }
    default:
        strftime(text, bytes, FORMS[form], &parts);
        break;
    }
}

static void put_timestamp(pair_t *pair, uint64_t *seed)
{
    static const char *const BEFORE[] = {"Current time: ", "Today is ", "The date is ",
        "Now: ", "<time>", "[", "- Session started ",
        "current_datetime=", "Time (UTC): ", "It is now ", "{\"now\": \"", "As of "};
    static const char *const AFTER[] = {"", ".", "</time>", "]", " (local)", "\"}", ", a workday."};
    static const uint64_t STEPS[] = {1, 30, 600, 7200, 86400, 900000, 40000000};
    make_pair(pair, seed, flip(seed), flip(seed));
    time_t first = TIMES_MIN + (time_t)below(seed, TIMES_RANGE);
    char was[96], is[96];
    int form = (int)below(seed, 19);
    uint64_t step = PICK(seed, STEPS);
    time_t second = first + (time_t)(step + below(seed, step));
    write_time(was, sizeof was, first, form, (unsigned)below(seed, 1000000));
    write_time(is, sizeof is, second, form, (unsigned)below(seed, 1000000));
    if (strcmp(was, is) == 0) {
        write_time(is, sizeof is, second + 190000, form, (unsigned)below(seed, 1000000));
    }
    put_values(pair, seed, PICK(seed, BEFORE), was, is, PICK(seed, AFTER));
}

static void write_id(char *text, uint64_t *seed, int form)
{
    static const char HEX[] = "0123456789abcdef", MANY[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghi"
                                                           "jklmnopqrstuvwxyz0123456789";
    static const char CROCKFORD[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    static const struct {
        const char *form; /* x: hexadecimal; m: letters and digits; c: Crockford's; others stay */
    } FORMS[] = {{"xxxxxxxx-xxxx-4xxx-axxx-xxxxxxxxxxxx"}, {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},
        {"xxxxxxxxxxxx"}, {"req_mmmmmmmmmmmmmmmmmmmmmm"}, {"call_mmmmmmmmmmmmmmmmmmmmmmmm"},
        {"01Jcccccccccccccccccccccccc"}, {"mmmmmmmmmmmmmmmmmmmmm"}, {"trace-xxxxxxxxxxxxxxxx"},
        {"toolu_01mmmmmmmmmmmmmmmmmmmmmm"}, {"sess-xxxxxxxx-xxxx"},
        {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}};
    const char *form_text = FORMS[form].form;
    size_t i = 0;
    for (; form_text[i] != '\0'; i++) {
        bool made = strchr("xmc", form_text[i]) != NULL;
        bool prefix = strchr(form_text + i, '_') != NULL || strncmp(form_text + i, "ce-", 3) == 0;
        made = made && !prefix;
        text[i] = !made                 ? form_text[i]
                  : form_text[i] == 'x' ? HEX[below(seed, 16)]
                  : form_text[i] == 'm' ? MANY[below(seed, sizeof MANY - 1)]
                                        : CROCKFORD[below(seed, 32)];
    }
    text[i] = '\0';
}

static void put_uuid(pair_t *pair, uint64_t *seed)
{
    static const char *const BEFORE[] = {"Request id: ", "Session: ", "trace_id=", "<id>",
        "Conversation ", "user: ", "{\"request_id\": \"", "X-Trace ", "(ref ", "Workspace /tmp/"};
    static const char *const AFTER[] = {"", ".", "</id>", "\"}", ")", "/files", ", keep it."};
    make_pair(pair, seed, flip(seed), flip(seed));
    char was[96], is[96];
    int form = (int)below(seed, 11);
    write_id(was, seed, form);
    write_id(is, seed, form);
    put_values(pair, seed, PICK(seed, BEFORE), was, is, PICK(seed, AFTER));
}

static void put_counter(pair_t *pair, uint64_t *seed)
{
    static const struct {
        const char *before, *after;
    } TEXTS[] = {{"Turn ", ""}, {"This is step ", " of 40."}, {"Remaining budget: ", " tokens."},
        {"Message #", ""}, {"You have ", " attempts left."}, {"Iteration ", "/20"},
        {"Queue position: ", "."}, {"<turn>", "</turn>"}, {"There are ", " open tickets."},
        {"{\"attempt\": ", "}"}, {"Progress: ", "%"}, {"Cost so far: $", ""}, {"round_", ":"},
        {"Users online: ", " (all regions)"}};
    make_pair(pair, seed, flip(seed), flip(seed));
    static const uint64_t RANGES[] = {9, 99, 999, 20000};
    uint64_t range = PICK(seed, RANGES);
    unsigned long long first = 1 + below(seed, range), second = first + 1 + below(seed, 5);
    char was[32], is[32];
    int form = (int)below(seed, 4);
    const char *format = form == 0 ? "%03llu" : form == 1 ? "%llu.75" : "%llu";
    snprintf(was, sizeof was, format, first);
    snprintf(is, sizeof is, format, second);
    size_t text = below(seed, sizeof TEXTS / sizeof TEXTS[0]);
    put_values(pair, seed, TEXTS[text].before, was, is, TEXTS[text].after);
}

/* An object of an application: its fields in one order or another. */
static char *context_object(uint64_t made_from, uint64_t order, int style)
{
    static const char *const KEYS[] = {
        "customer", "region", "open_items", "plan", "notes", "history"};
    char *values[6];
    for (int i = 0; i < 6; i++) {
        char *text = sentences(&made_from, 1);
        values[i] = quoted(text);
        free(text);
    }
    char *made = object_text(KEYS, (const char *const *)values, 6, order, style, 0);
    for (int i = 0; i < 6; i++) {
        free(values[i]);
    }
    return made;
}

/* Two orders that differ. */
static void two_objects(uint64_t *seed, char **was_out, char **is_out)
{
    uint64_t made_from = kv_test_random(seed);
    int style = (int)below(seed, 3);
    *was_out = context_object(made_from, flip(seed) ? 0 : 1 + below(seed, 1000), style);
    *is_out = context_object(made_from, 2000 + below(seed, 1000), style);
    while (strcmp(*was_out, *is_out) == 0) {
        set_text(is_out, context_object(made_from, 2000 + below(seed, 1000), style));
    }
}

static void put_json_keys(pair_t *pair, uint64_t *seed)
{
    uint64_t where = below(seed, 3);
    make_pair(pair, seed, where == 0 || flip(seed), where == 2 || flip(seed));
    pair->as_json = where == 0;
    if (where == 0) {
        pair->is.key_order = 1 + kv_test_random(seed) / 2;
        char *was, *is;
        do {
            pair->is.key_order++;
            was = tool_json(&pair->was, &pair->was.tools[0]);
            is = tool_json(&pair->is, &pair->is.tools[0]);
        } while (strcmp(was, is) == 0 && (free(was), free(is), true));
        free(was);
        free(is);
        return;
    }
    char *was, *is;
    two_objects(seed, &was, &is);
    if (where == 1) {
        int at = (int)below(seed, (uint64_t)pair->was.line_count / 2);
        put_line(&pair->was, at, was);
        put_line(&pair->is, at, is);
        return;
    }
    /* What a tool answered, or the call that an answer made, written again by the client. */
    int at = (int)below(seed, 2);
    set_text(&pair->was.turns[at].text, was);
    set_text(&pair->is.turns[at].text, is);
}

static void shuffle_tools(talk_t *talk, uint64_t *seed)
{
    for (int i = talk->tool_count - 1; i > 0; i--) {
        int k = (int)below(seed, (uint64_t)i + 1), kept = talk->tool_order[i];
        talk->tool_order[i] = talk->tool_order[k];
        talk->tool_order[k] = kept;
    }
}

static void put_tools(pair_t *pair, uint64_t *seed)
{
    bool listed = below(seed, 4) == 0;
    make_pair(pair, seed, true, flip(seed));
    while (memcmp(pair->was.tool_order, pair->is.tool_order, sizeof pair->is.tool_order) == 0) {
        shuffle_tools(&pair->is, seed);
    }
    if (!listed) {
        return;
    }
    /* As lines of the system prompt instead. */
    talk_t *talks[] = {&pair->was, &pair->is};
    for (int k = 0; k < 2; k++) {
        put_line(talks[k], 1, kv_duplicate_string("Tools that you have:"));
        for (int i = 0; i < talks[k]->tool_count; i++) {
            const tool_t *tool = &talks[k]->tools[talks[k]->tool_order[i]];
            char line[256];
            snprintf(line, sizeof line, "- %s: %s", tool->name, tool->description);
            put_line(talks[k], 2 + i, kv_duplicate_string(line));
        }
        talks[k]->tool_count = 0;
    }
}

static char *with_text(const char *text, size_t at, const char *added, size_t left_out)
{
    char *made = kv_allocate(strlen(text) + strlen(added) + 1);
    sprintf(made, "%.*s%s%s", (int)at, text, added, text + at + left_out);
    return made;
}

static void put_whitespace(pair_t *pair, uint64_t *seed)
{
    uint64_t form = below(seed, 6);
    make_pair(pair, seed, form == 5 || flip(seed), form == 4 || flip(seed));
    talk_t *changed = flip(seed) ? &pair->was : &pair->is;
    int at = (int)below(seed, (uint64_t)changed->line_count / 2);
    char **line = &changed->lines[at];
    size_t bytes = strlen(*line);
    switch (form) {
    case 0:
        set_text(line, with_text(*line, bytes, flip(seed) ? " " : "  \t", 0));
        break;
    case 1: {
        const char *blank = strchr(*line, ' ');
        size_t place = blank != NULL ? (size_t)(blank - *line) : bytes;
        set_text(line, with_text(*line, place, flip(seed) ? " " : "\n", 0));
        break;
    }
    case 2:
        changed->line_end = "\r\n";
        break;
    case 3:
        put_line(changed, at, kv_duplicate_string(""));
        break;
    case 4: {
        /* A client that trims what it sends back, or does not. */
        char **text = &changed->turns[below(seed, 2)].text;
        set_text(text, with_text(*text, strlen(*text), flip(seed) ? "\n" : " ", 0));
        break;
    }
    default:
        changed->json_style = (changed->json_style + 1) % 3;
        pair->as_json = true;
        break;
    }
}

/* A summary of what was before, and another one of the same. */
static void put_summary(pair_t *pair, uint64_t *seed)
{
    static const char *const HEADINGS[] = {"## Conversation summary\n", "Summary so far:\n",
        "<summary>\n", "Summary of the earlier conversation: ", "# Memory\n",
        "[Recap of previous turns]\n", "**Summary**\n", "Here is what happened so far:\n"};
    make_pair(pair, seed, flip(seed), true);
    const char *heading = PICK(seed, HEADINGS);
    int shared = (int)below(seed, 3);
    uint64_t start = kv_test_random(seed);
    char text[2][2400];
    for (int i = 0; i < 2; i++) {
        uint64_t same = start;
        char *first = sentences(&same, shared);
        char *rest = sentences(seed, 2 + (int)below(seed, 6));
        snprintf(text[i], sizeof text[i], "%s%s%s%s%s", heading, first, shared > 0 ? " " : "", rest,
            heading[0] == '<' ? "\n</summary>" : "");
        free(first);
        free(rest);
    }
    talk_t *talks[] = {&pair->was, &pair->is};
    uint64_t where = below(seed, 3);
    for (int i = 0; i < 2; i++) {
        talk_t *talk = talks[i];
        if (where == 0) {
            put_line(talk, talk->line_count, kv_duplicate_string(text[i]));
            continue;
        }
        if (where == 1 && talk->turn_count + 2 < TURNS_MAX) { /* a message of its own */
            memmove(
                &talk->turns[1], &talk->turns[0], (size_t)talk->turn_count * sizeof talk->turns[0]);
            talk->turn_count++;
            talk->turns[0] = (turn_t){KV_AUDIT_USER, kv_duplicate_string(text[i])};
            continue;
        }
        char *made = kv_allocate(strlen(text[i]) + strlen(talk->turns[0].text) + 4);
        sprintf(made, "%s\n\n%s", text[i], talk->turns[0].text);
        set_text(&talk->turns[0].text, made);
    }
}

static void put_template(pair_t *pair, uint64_t *seed)
{
    uint64_t form = below(seed, 6);
    make_pair(pair, seed, form >= 4 || flip(seed), flip(seed));
    talk_t *is = &pair->is;
    int at = (int)below(seed, (uint64_t)is->line_count / 2);
    while (form == 0 && strchr(is->lines[at], ' ') == NULL) {
        at--; /* a line with words */
    }
    switch (form) {
    case 0: {
        const char *blank = strchr(is->lines[at], ' ');
        set_text(&is->lines[at],
            with_text(is->lines[at], (size_t)(blank - is->lines[at]), " always", 0));
        break;
    }
    case 1:
        put_line(is, at, sentences(seed, 1 + (int)below(seed, 3)));
        break;
    case 2:
        set_text(&is->lines[at], sentences(seed, 1 + (int)below(seed, 2)));
        break;
    case 3: {
        char *text = sentences(seed, 2);
        put_line(is, at, with_text(text, strlen(text), " Answer in English.", 0));
        free(text);
        break;
    }
    case 4: { /* a tool that is there no longer */
        int gone = (int)below(seed, (uint64_t)is->tool_count - 2);
        memmove(&is->tool_order[gone], &is->tool_order[gone + 1],
            (size_t)(is->tool_count - gone - 1) * sizeof is->tool_order[0]);
        is->tool_count--;
        break;
    }
    default: {
        tool_t *tool = &is->tools[0];
        char *text = sentences(seed, 1);
        snprintf(tool->description, sizeof tool->description, "%.140s", text);
        free(text);
        break;
    }
    }
}

/* ---- what is no finding ---- */

static void control_append(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), true);
}

static void control_again(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), true);
    clear_talk(&pair->is);
    copy_talk(&pair->was, &pair->is);
    if (flip(seed)) {
        cut_turns(&pair->is, pair->is.turn_count - (int)below(seed, 2));
    }
}

/* The last message says something else: a word, a number, a sentence, all of it. */
static void control_edited(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), true);
    char *last = sentences(seed, 2 + (int)below(seed, 20));
    talk_t *was = &pair->was;
    set_text(&was->turns[was->turn_count - 1].text, with_text(last, 4, "17 ", 0));
    clear_talk(&pair->is);
    copy_talk(was, &pair->is);
    char **text = &pair->is.turns[was->turn_count - 1].text;
    switch (below(seed, 5)) {
    case 0:
        set_text(text, with_text(last, 4, "18 ", 0));
        break;
    case 1:
        set_text(text, with_text(last, 0, "Please: ", 0));
        break;
    case 2:
        set_text(text, sentences(seed, 6));
        break;
    case 3:
        set_text(text, with_text(*text, strlen(*text) / 2, " indeed ", 0));
        break;
    default:
        set_text(text, with_text(*text, 0, "", strlen(*text) / 2));
        break;
    }
    free(last);
    if (flip(seed)) { /* and the conversation went on from there */
        add_turn(&pair->is, KV_AUDIT_ASSISTANT, sentences(seed, 4));
        add_exchange(&pair->is, seed, false);
    }
}

/* It goes on otherwise from an earlier turn; a tool may answer the same again. */
static void control_fork(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), true);
    int at = (int)below(seed, (uint64_t)pair->was.turn_count);
    cut_turns(&pair->is, at);
    bool user = at == 0 || pair->was.turns[at - 1].role == KV_AUDIT_ASSISTANT;
    if (user && pair->was.turns[at].role != KV_AUDIT_TOOL) {
        add_turn(&pair->is, KV_AUDIT_USER, sentences(seed, 1 + (int)below(seed, 5)));
    }
    for (int i = 0; i < 3; i++) {
        add_turn(&pair->is, KV_AUDIT_ASSISTANT, sentences(seed, 1 + (int)below(seed, 4)));
        if (i == 0 && flip(seed)) {
            for (int k = at + 1; k < pair->was.turn_count; k++) {
                if (pair->was.turns[k].role == KV_AUDIT_TOOL) {
                    add_turn(
                        &pair->is, KV_AUDIT_TOOL, kv_duplicate_string(pair->was.turns[k].text));
                    add_turn(&pair->is, KV_AUDIT_ASSISTANT, sentences(seed, 2));
                    break;
                }
            }
        }
        add_exchange(&pair->is, seed, false);
    }
}

/* Another session of the template: other documents and questions, perhaps in the same form. */
static void control_context(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), false);
    if (flip(seed)) {
        uint64_t form = kv_test_random(seed);
        talk_t *talks[] = {&pair->was, &pair->is};
        char *rules = sentences(&form, 6);
        for (int i = 0; i < 2; i++) {
            char *document = sentences(seed, 4 + (int)below(seed, 12));
            char *made = kv_allocate(strlen(document) + strlen(rules) + 64);
            sprintf(made, "Document %d:\n%s\n\nQuestion:\n%s", 10 + (int)below(seed, 80), document,
                rules);
            set_text(&talks[i]->turns[0].text, made);
            free(document);
        }
        free(rules);
    }
}

/* Another application altogether. */
static void control_other(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), flip(seed));
    clear_talk(&pair->is);
    make_talk(&pair->is, seed, flip(seed));
    for (int i = 0; i < 3; i++) {
        add_exchange(&pair->is, seed, i < 2);
    }
}

/* The time stands in the last message, where it belongs. */
static void control_late_time(pair_t *pair, uint64_t *seed)
{
    make_pair(pair, seed, flip(seed), true);
    char time_text[96];
    time_t at = TIMES_MIN + (time_t)below(seed, TIMES_RANGE);
    int form = (int)below(seed, 19), last = pair->is.turn_count - 1;
    write_time(time_text, sizeof time_text, at, form, 17);
    int before = pair->was.turn_count - 1;
    char *text = with_text(pair->was.turns[before].text, 0, time_text, 0);
    set_text(&pair->was.turns[before].text, text);
    set_text(&pair->is.turns[before].text, kv_duplicate_string(text));
    write_time(time_text, sizeof time_text, at + 60, form, 18);
    set_text(&pair->is.turns[last].text, with_text(pair->is.turns[last].text, 0, time_text, 0));
}

/* ---- judging ---- */

typedef struct {
    const char *name;
    kv_audit_kind_t kind;
    void (*make)(pair_t *pair, uint64_t *seed);
} recipe_t;

static const recipe_t MUTATIONS[] = {{"timestamp", KV_AUDIT_TIMESTAMP, put_timestamp},
    {"uuid", KV_AUDIT_UUID, put_uuid}, {"counter", KV_AUDIT_COUNTER, put_counter},
    {"reordered JSON keys", KV_AUDIT_JSON_KEYS, put_json_keys},
    {"reordered tools", KV_AUDIT_TOOLS, put_tools},
    {"whitespace", KV_AUDIT_WHITESPACE, put_whitespace},
    {"rewritten summary", KV_AUDIT_SUMMARY, put_summary},
    {"template change", KV_AUDIT_TEMPLATE, put_template}};

static const recipe_t CONTROLS[] = {{"appended", KV_AUDIT_NONE, control_append},
    {"sent again", KV_AUDIT_NONE, control_again}, {"edited last", KV_AUDIT_NONE, control_edited},
    {"fork", KV_AUDIT_NONE, control_fork}, {"new context", KV_AUDIT_NONE, control_context},
    {"other template", KV_AUDIT_NONE, control_other},
    {"time in the last", KV_AUDIT_NONE, control_late_time}};

static void show(const char *name, const kv_audit_prompt_t *prompt, uint32_t at)
{
    uint32_t from = at > 60 ? at - 60 : 0,
             end = at + 100 < prompt->bytes ? at + 100 : prompt->bytes;
    printf("  %s: ...%.*s...\n", name, (int)(end - from), prompt->text + from);
}

/* Whether the kind is the right one; KV_AUDIT_NONE: nothing was found. */
static bool judge_one(const recipe_t *recipe, uint64_t seed)
{
    uint64_t state = seed;
    pair_t pair = {0};
    recipe->make(&pair, &state);
    format_t format = (format_t)below(&state, FORMATS);
    format = format == FORMAT_HARMONY && pair.as_json ? FORMAT_CHATML : format;
    kv_audit_prompt_t was, is;
    render(&pair.was, format, &was);
    render(&pair.is, format, &is);
    kv_audit_finding_t finding = {0};
    bool found = kv_audit_compare(&was, &is, pair.relation, &finding);
    kv_audit_kind_t kind = found ? finding.kind : KV_AUDIT_NONE;
    if (kind != recipe->kind) {
        uint32_t at = kv_audit_shared_bytes(&was, &is);
        printf("%s, format %d, relation %d: %s, seed %llu\n", recipe->name, format, pair.relation,
            kv_audit_kind_name(kind), (unsigned long long)seed);
        show("was", &was, at);
        show("is ", &is, at);
    }
    if (found) {
        assert_true(finding.byte == kv_audit_shared_bytes(&was, &is) || is.text[finding.byte] < 0);
        assert_true(finding.cost <= is.bytes - finding.byte);
        assert_true(finding.was.from <= finding.was.end && finding.was.end <= was.bytes);
        assert_true(finding.is.from <= finding.is.end && finding.is.end <= is.bytes);
    }
    kv_audit_prompt_clear(&was);
    kv_audit_prompt_clear(&is);
    clear_talk(&pair.was);
    clear_talk(&pair.is);
    return kind == recipe->kind;
}

static uint64_t case_count(void)
{
    return kv_test_long() ? CASES_LONG : CASES;
}

/* Of each recipe at least this share is judged rightly. */
static void judge_all(const recipe_t *recipes, size_t count, double share)
{
    uint64_t cases = case_count(), all_right = 0, worst = cases;
    for (size_t i = 0; i < count; i++) {
        uint64_t right = 0;
        for (uint64_t k = 0; k < cases; k++) {
            right += judge_one(&recipes[i], kv_test_seed() + k * 64 + i);
        }
        all_right += right;
        printf("%-20s %5.1f %% of %llu\n", recipes[i].name, 100.0 * (double)right / (double)cases,
            (unsigned long long)cases);
        worst = right < worst ? right : worst;
    }
    printf("%-20s %5.2f %%\n", "all", 100.0 * (double)all_right / (double)(cases * count));
    assert_true((double)worst >= share * (double)cases);
}

static void at_least_95_of_100_changes_are_found_with_their_kind(void **state)
{
    (void)state;
    judge_all(MUTATIONS, sizeof MUTATIONS / sizeof MUTATIONS[0], 0.95);
}

static void at_least_99_of_100_clean_prompts_are_no_finding(void **state)
{
    (void)state;
    judge_all(CONTROLS, sizeof CONTROLS / sizeof CONTROLS[0], 0.99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(at_least_95_of_100_changes_are_found_with_their_kind),
        cmocka_unit_test(at_least_99_of_100_clean_prompts_are_no_finding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
