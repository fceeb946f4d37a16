#include "tools/kvist/bench/serve/drive.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum {
    EVENT_BYTES_MAX = 1 << 20,
    CONNECT_LIMIT_MS = 20000,
    URL_BYTES = 1024,
    SEED_ARRIVALS = 100, /* what seeds are made for, beside the workloads' */
    SEED_ANSWER,
};

typedef struct drive drive_t;

/* A request in work, or one whose row others still extend. */
typedef struct {
    drive_t *drive;
    uint32_t number;
    uint32_t children_left; /* to be sent */
    kv_http_call_t *call;   /* NULL: it is over */
    uint32_t *symbols;      /* prompt; once it is over, the answer behind it */
    size_t count;
    uint32_t *answer_ids;
    uint32_t answer_count, answer_capacity;
    bool has_done; /* "[DONE]" came */
    char failure[KV_FAILURE_BYTES];
    kv_answer_t answer;
} flight_t;

typedef struct {
    uint64_t at_ns;
    uint32_t number;
} due_t;

struct drive {
    const kv_drive_params_t *params;
    kv_drive_result_t *result;
    const kv_script_t *script;
    uv_loop_t *loop;
    flight_t **flights;     /* [request_count] */
    uint32_t *session_left; /* [root_count] requests of it that are due or in work */
    due_t *due;             /* a heap: the earliest first */
    size_t due_count, due_capacity;
    uint32_t next_root, last_root; /* the next one to begin, and where this stage ends */
    uint32_t sessions_running, in_flight;
    uint64_t begun_ns, next_arrival_ns, random;
    bool warming, closing;
    uv_timer_t timer, reporter;
    uv_signal_t interrupt;
    uint32_t handles;
    kv_drive_progress_t progress;
};

static void begin_sessions(drive_t *drive);
static void take_due(drive_t *drive);

static uint64_t now_ns(const drive_t *drive)
{
    return kv_clock_now_ns() - drive->begun_ns;
}

/* ---- what is due ---- */

static bool earlier(const due_t *left, const due_t *right)
{
    return left->at_ns != right->at_ns ? left->at_ns < right->at_ns : left->number < right->number;
}

static void push_due(drive_t *drive, uint64_t at_ns, uint32_t number)
{
    if (drive->due_count == drive->due_capacity) {
        drive->due_capacity = drive->due_capacity * 2 + 64;
        drive->due = kv_reallocate(drive->due, drive->due_capacity, sizeof *drive->due);
    }
    size_t at = drive->due_count++;
    const due_t entry = {at_ns, number};
    while (at > 0 && earlier(&entry, &drive->due[(at - 1) / 2])) {
        drive->due[at] = drive->due[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    drive->due[at] = entry;
}

static uint32_t pop_due(drive_t *drive)
{
    uint32_t number = drive->due[0].number;
    const due_t last = drive->due[--drive->due_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < drive->due_count; at = child) {
        if (child + 1 < drive->due_count && earlier(&drive->due[child + 1], &drive->due[child])) {
            child++;
        }
        if (!earlier(&drive->due[child], &last)) {
            break;
        }
        drive->due[at] = drive->due[child];
    }
    drive->due[at] = last;
    return number;
}

/* ---- rows ---- */

static void flight_release(flight_t *flight)
{
    flight->drive->flights[flight->number] = NULL;
    kv_answer_clear(&flight->answer);
    free(flight->symbols);
    free(flight->answer_ids);
    free(flight);
}

/* The row of a request: what it extends, and its own parts. */
static void build_row(drive_t *drive, flight_t *flight)
{
    const kv_script_request_t *request = &drive->script->requests[flight->number];
    const kv_asked_t *asked = drive->params->asked;
    uint32_t own = kv_script_own_count(drive->script, request);
    flight_t *parent = request->parent != KV_SCRIPT_NONE ? drive->flights[request->parent] : NULL;
    size_t before = parent != NULL ? parent->count : 0;
    flight->symbols = kv_allocate_array(before + own + 1, sizeof *flight->symbols);
    flight->count = before + own;
    if (parent != NULL) {
        memcpy(flight->symbols, parent->symbols, before * sizeof *flight->symbols);
        if (--parent->children_left == 0) {
            flight_release(parent);
        }
    }
    kv_script_draw(drive->script, request, asked->symbol_lowest, asked->symbol_range,
        flight->symbols + before);
}

/* Puts the answer behind the prompt: as it came, or so many symbols in its place. */
static void extend_row(flight_t *flight)
{
    drive_t *drive = flight->drive;
    const kv_asked_t *asked = drive->params->asked;
    bool said = flight->answer_count > 0;
    uint32_t count =
        said ? flight->answer_count : drive->script->requests[flight->number].answer_tokens;
    flight->symbols =
        kv_reallocate(flight->symbols, flight->count + count + 1, sizeof *flight->symbols);
    if (said) {
        memcpy(flight->symbols + flight->count, flight->answer_ids, count * sizeof(uint32_t));
        /* The last token's KV was never computed. */
        kv_known_add(drive->params->known, flight->symbols, flight->count + count - 1, true);
        drive->result->has_answer_ids = true;
    } else {
        kv_symbols_draw(kv_seed_mix(drive->params->seed, SEED_ANSWER, flight->number), count,
            asked->symbol_lowest, asked->symbol_range, flight->symbols + flight->count);
    }
    flight->count += count;
}

/* ---- ends ---- */

static void note_failure(drive_t *drive, const char *text)
{
    kv_drive_result_t *result = drive->result;
    uint32_t at = 0;
    while (at < result->failure_count && strcmp(result->failures[at].text, text) != 0) {
        at++;
    }
    if (at == KV_FAILURES_MAX) {
        at--;
    } else if (at == result->failure_count) {
        snprintf(result->failures[at].text, KV_FAILURE_BYTES, "%s", text);
        result->failure_count++;
    }
    result->failures[at].count++;
}

static bool is_over(const drive_t *drive)
{
    return drive->params->duration_ms > 0 && !drive->warming &&
           now_ns(drive) >= drive->params->duration_ms * KV_NS_PER_MS;
}

static void session_step(drive_t *drive, uint32_t session)
{
    if (--drive->session_left[session] == 0) {
        drive->sessions_running--;
    }
}

/* Its children become due; without any its row is not needed any more. */
static void release_children(flight_t *flight, uint64_t ended_ns)
{
    drive_t *drive = flight->drive;
    const kv_script_request_t *request = &drive->script->requests[flight->number];
    bool ok = drive->result->records[flight->number].state == KV_SENT_DONE;
    if (ok && !drive->result->interrupted && !is_over(drive)) {
        for (uint32_t child = request->first_child; child != KV_SCRIPT_NONE;
             child = drive->script->requests[child].next_sibling) {
            push_due(
                drive, ended_ns + drive->script->requests[child].delay_ms * KV_NS_PER_MS, child);
            drive->session_left[request->session]++;
            flight->children_left++;
        }
    }
    if (flight->children_left > 0) {
        extend_row(flight);
    } else {
        flight_release(flight);
    }
}

static void copy_usage(kv_sent_record_t *record, const kv_answer_t *answer)
{
    record->has_cached = answer->has_cached;
    record->prompt_tokens = (uint32_t)answer->prompt_tokens;
    record->answer_tokens = (uint32_t)answer->answer_tokens;
    record->cached_tokens = (uint32_t)answer->cached_tokens;
    for (int tier = 0; tier < KV_SEEN_COUNT; tier++) {
        record->seen_tokens[tier] = (uint32_t)answer->seen_tokens[tier];
    }
}

static void end_flight(flight_t *flight)
{
    drive_t *drive = flight->drive;
    kv_sent_record_t *record = &drive->result->records[flight->number];
    uint32_t session = drive->script->requests[flight->number].session;
    record->ended_ns = now_ns(drive);
    drive->in_flight--;
    flight->call = NULL;
    if (flight->failure[0] == '\0') {
        record->state = KV_SENT_DONE;
        copy_usage(record, &flight->answer);
        record->first_ns = record->first_ns != 0 ? record->first_ns : record->ended_ns;
        record->last_ns = record->last_ns != 0 ? record->last_ns : record->ended_ns;
        kv_known_add(drive->params->known, flight->symbols, flight->count, true);
    } else {
        record->state = KV_SENT_FAILED;
        note_failure(drive, flight->failure);
    }
    if (!record->warming) {
        drive->progress.done += record->state == KV_SENT_DONE;
        drive->progress.failed += record->state == KV_SENT_FAILED;
    }
    if (record->state == KV_SENT_DONE && !record->warming) {
        drive->progress.prompt_tokens += record->prompt_tokens;
        drive->progress.cached_tokens += record->cached_tokens;
        drive->progress.ideal_tokens += kv_sent_ideal_tokens(record);
    }
    release_children(flight, record->ended_ns);
    session_step(drive, session);
    begin_sessions(drive);
    take_due(drive);
}

/* ---- answers ---- */

static void take_piece(flight_t *flight, const kv_stream_event_t *event)
{
    drive_t *drive = flight->drive;
    kv_drive_result_t *result = drive->result;
    kv_sent_record_t *record = &result->records[flight->number];
    uint64_t now = now_ns(drive);
    if (record->first_ns == 0) {
        record->first_ns = now;
        kv_known_add(drive->params->known, flight->symbols, flight->count, true);
    } else if (!record->warming) {
        if (result->gap_count == result->gap_capacity) {
            result->gap_capacity = result->gap_capacity * 2 + 4096;
            result->gaps_us =
                kv_reallocate(result->gaps_us, result->gap_capacity, sizeof *result->gaps_us);
        }
        uint64_t gap_us = (now - record->last_ns) / KV_NS_PER_US;
        result->gaps_us[result->gap_count++] = gap_us < UINT32_MAX ? (uint32_t)gap_us : UINT32_MAX;
    }
    record->last_ns = now;
    for (size_t i = 0; i < json_array_size(event->token_ids); i++) {
        if (flight->answer_count == flight->answer_capacity) {
            flight->answer_capacity = flight->answer_capacity * 2 + 64;
            flight->answer_ids = kv_reallocate(
                flight->answer_ids, flight->answer_capacity, sizeof *flight->answer_ids);
        }
        flight->answer_ids[flight->answer_count++] =
            (uint32_t)json_integer_value(json_array_get(event->token_ids, i));
    }
}

static void on_line(void *context, const char *text, size_t bytes)
{
    flight_t *flight = context;
    kv_stream_event_t event;
    (void)bytes;
    if (strncmp(text, "data:", 5) != 0) {
        return;
    }
    kv_stream_event_parse(text + 5 + (text[5] == ' '), &event);
    flight->has_done |= event.is_done;
    if (event.failure[0] != '\0') {
        snprintf(flight->failure, sizeof flight->failure, "in a stream: %.180s", event.failure);
    }
    bool has_ids = json_array_size(event.token_ids) > 0;
    if (has_ids || (event.text != NULL && event.text[0] != '\0')) {
        take_piece(flight, &event);
    }
    if (event.usage != NULL) {
        kv_answer_take_usage(&flight->answer, event.usage);
    }
    kv_stream_event_clear(&event);
}

static void on_ended(void *context, kv_status_t status, long code, const char *text, size_t bytes)
{
    flight_t *flight = context;
    (void)bytes;
    if (status != KV_OK) {
        snprintf(flight->failure, sizeof flight->failure, "%.190s", text);
    } else if (code < 200 || code >= 300) {
        char words[KV_FAILURE_BYTES - 32];
        kv_describe_failure(text, words, sizeof words);
        snprintf(flight->failure, sizeof flight->failure, "HTTP %ld: %s", code, words);
    } else if (flight->failure[0] == '\0' && (!flight->has_done || !flight->answer.has_usage)) {
        snprintf(flight->failure, sizeof flight->failure, "an answer %s",
            flight->has_done ? "has no usage" : "broke off");
    }
    end_flight(flight);
}

/* ---- sending ---- */

static void send_request(drive_t *drive, uint32_t number)
{
    const kv_script_request_t *request = &drive->script->requests[number];
    kv_asked_t *asked = drive->params->asked;
    kv_sent_record_t *record = &drive->result->records[number];
    flight_t *flight = kv_allocate(sizeof *flight);
    char url[URL_BYTES];
    kv_error_t error;
    flight->drive = drive;
    flight->number = number;
    drive->flights[number] = flight;
    build_row(drive, flight);
    /* The last token is always computed, since its answer is what is wanted: and with it, in a
     * cache of whole blocks, its block. */
    record->known = kv_known_look(drive->params->known, flight->symbols, flight->count - 1);
    record->symbols = (uint32_t)flight->count;
    record->warming = drive->warming;
    record->state = KV_SENT_WAITS;
    kv_known_add(drive->params->known, flight->symbols, flight->count, false);
    char *body = kv_asked_body(asked, flight->symbols, flight->count, request->answer_tokens);
    snprintf(url, sizeof url, "%s%s", asked->params.url, kv_asked_path(asked));
    const kv_http_call_params_t params = {.url = url,
        .body = body,
        .ca_file = asked->params.ca_file,
        .key = asked->params.key,
        .limit_ms = asked->params.limit_ms,
        .connect_ms_max = CONNECT_LIMIT_MS,
        .answer_bytes_max = EVENT_BYTES_MAX,
        .context = flight,
        .line = on_line,
        .ended = on_ended};
    record->sent_ns = now_ns(drive);
    drive->in_flight++;
    if (kv_http_start(asked->client, &params, &flight->call, &error) != KV_OK) {
        snprintf(flight->failure, sizeof flight->failure, "%.190s", error.text);
        push_due(drive, 0, number); /* ended by take_due, never from within itself */
    }
    free(body);
}

/* A session begins: now, or at the time that is said. */
static void begin_session(drive_t *drive, uint64_t at_ns)
{
    uint32_t root = drive->next_root++;
    drive->sessions_running++;
    drive->session_left[root]++;
    push_due(drive, at_ns, drive->script->roots[root]);
}

/* When the next session of an open loop begins. */
static uint64_t draw_arrival(drive_t *drive)
{
    const kv_drive_params_t *params = drive->params;
    if (drive->script->has_times && params->rate == 0) {
        uint32_t root = drive->script->roots[drive->next_root];
        double at_ms = (double)drive->script->requests[root].delay_ms * params->stretch;
        return (uint64_t)(at_ms * KV_NS_PER_MS);
    }
    drive->next_arrival_ns +=
        (uint64_t)(kv_draw_exponential(&drive->random, 1 / params->rate) * KV_NS_PER_S);
    return drive->next_arrival_ns;
}

/* Those that may begin. In an open loop one is always waiting for its time. */
static void begin_sessions(drive_t *drive)
{
    if (drive->result->interrupted || is_over(drive)) {
        drive->next_root = drive->last_root;
        return;
    }
    uint32_t most = drive->warming ? UINT32_MAX : drive->params->concurrency;
    while (most > 0 && drive->next_root < drive->last_root && drive->sessions_running < most) {
        begin_session(drive, now_ns(drive));
    }
}

static void begin_next_arrival(drive_t *drive)
{
    if (drive->params->concurrency == 0 && !drive->warming && !drive->result->interrupted &&
        drive->next_root < drive->last_root) {
        begin_session(drive, draw_arrival(drive));
    }
}

/* What is due but will not be sent. */
static void drop_due(drive_t *drive)
{
    while (drive->due_count > 0) {
        uint32_t number = pop_due(drive);
        const kv_script_request_t *request = &drive->script->requests[number];
        flight_t *parent =
            request->parent != KV_SCRIPT_NONE ? drive->flights[request->parent] : NULL;
        if (drive->flights[number] != NULL) { /* it could not be started */
            end_flight(drive->flights[number]);
            continue;
        }
        if (parent != NULL && --parent->children_left == 0) {
            flight_release(parent);
        }
        session_step(drive, request->session);
    }
}

static void on_due(uv_timer_t *timer)
{
    take_due(timer->data);
}

static void close_handle(uv_handle_t *handle, uv_close_cb closed)
{
    if (!uv_is_closing(handle)) {
        uv_close(handle, closed);
    }
}

static void on_closed(uv_handle_t *handle)
{
    drive_t *drive = handle->data;
    drive->handles--;
}

/* The end of a stage: all that it had is over. */
static void end_stage(drive_t *drive)
{
    if (drive->warming) {
        drive->warming = false;
        drive->begun_ns = kv_clock_now_ns();
        drive->last_root = drive->script->root_count;
        begin_sessions(drive);
        begin_next_arrival(drive);
        if (drive->due_count > 0) {
            take_due(drive);
            return;
        }
    }
    drive->closing = true;
    drive->result->took_ns = now_ns(drive);
    close_handle((uv_handle_t *)&drive->timer, on_closed);
    close_handle((uv_handle_t *)&drive->reporter, on_closed);
    close_handle((uv_handle_t *)&drive->interrupt, on_closed);
}

/* Sends what is due, sets the timer for what comes next, and ends the stage where nothing does. */
static void take_due(drive_t *drive)
{
    if (drive->closing) {
        return;
    }
    while (drive->due_count > 0 && drive->due[0].at_ns <= now_ns(drive)) {
        if (is_over(drive) || drive->result->interrupted) {
            drop_due(drive);
            break;
        }
        uint64_t late_ns = now_ns(drive) - drive->due[0].at_ns;
        uint32_t number = pop_due(drive);
        if (drive->flights[number] != NULL) {
            end_flight(drive->flights[number]);
            return; /* which took what is due */
        }
        bool is_root = drive->script->requests[number].parent == KV_SCRIPT_NONE;
        if (late_ns > drive->result->late_ns_max) {
            drive->result->late_ns_max = late_ns;
        }
        send_request(drive, number);
        if (is_root) {
            begin_next_arrival(drive);
        }
    }
    if (drive->due_count > 0) {
        uint64_t now = now_ns(drive), at = drive->due[0].at_ns;
        uv_update_time(drive->loop);
        uv_timer_start(
            &drive->timer, on_due, at > now ? (at - now + KV_NS_PER_MS - 1) / KV_NS_PER_MS : 0, 0);
    } else if (drive->in_flight == 0) {
        end_stage(drive);
    }
}

/* ---- reports, interrupts ---- */

static void on_report(uv_timer_t *timer)
{
    drive_t *drive = timer->data;
    drive->progress.now_ns = now_ns(drive);
    drive->progress.in_flight = drive->in_flight;
    drive->params->progress(drive->params->context, &drive->progress);
}

/* What is in work is given up, and what is done reported; a second signal ends the process. */
static void on_interrupt(uv_signal_t *handle, int number)
{
    (void)number;
    drive_t *drive = handle->data;
    uv_signal_stop(handle);
    drive->result->interrupted = true;
    drive->next_root = drive->last_root;
    for (uint32_t i = 0; i < drive->script->request_count; i++) {
        flight_t *flight = drive->flights[i];
        if (flight != NULL && flight->call != NULL) {
            kv_http_cancel(flight->call);
            drive->in_flight--;
            drive->result->records[i].state = KV_SENT_NOT;
            session_step(drive, drive->script->requests[i].session);
            flight_release(flight);
        }
    }
    drop_due(drive);
    take_due(drive);
}

static void open_handles(drive_t *drive)
{
    KV_CHECK(uv_timer_init(drive->loop, &drive->timer) == 0);
    KV_CHECK(uv_timer_init(drive->loop, &drive->reporter) == 0);
    KV_CHECK(uv_signal_init(drive->loop, &drive->interrupt) == 0);
    drive->timer.data = drive->reporter.data = drive->interrupt.data = drive;
    drive->handles = 3;
    uv_signal_start(&drive->interrupt, on_interrupt, SIGINT);
    uint64_t between_ms = drive->params->progress_ms;
    if (drive->params->progress != NULL) {
        uv_timer_start(&drive->reporter, on_report, between_ms, between_ms);
    }
}

void kv_drive(const kv_drive_params_t *params, kv_drive_result_t *result_out)
{
    const kv_script_t *script = params->script;
    *result_out = (kv_drive_result_t){
        .records = kv_allocate_array(script->request_count, sizeof *result_out->records)};
    drive_t drive = {.params = params,
        .result = result_out,
        .script = script,
        .loop = params->asked->loop,
        .flights = kv_allocate_array(script->request_count, sizeof *drive.flights),
        .session_left = kv_allocate_array(script->root_count, sizeof *drive.session_left),
        .last_root = script->warming_count,
        .begun_ns = kv_clock_now_ns(),
        .random = kv_seed_mix(params->seed, SEED_ARRIVALS, 0),
        .warming = true,
        .progress.total = script->request_count - script->warming_count};
    open_handles(&drive);
    begin_sessions(&drive);
    take_due(&drive);
    while (drive.handles > 0) {
        uv_run(drive.loop, UV_RUN_ONCE);
    }
    free(drive.flights);
    free(drive.session_left);
    free(drive.due);
}

void kv_drive_result_release(kv_drive_result_t *result)
{
    free(result->records);
    free(result->gaps_us);
    *result = (kv_drive_result_t){0};
}

/* ---- what was found ---- */

/* Symbols are tokens where prompts are ids; else as many as the endpoint's count has for them. */
static uint32_t tokens_of(const kv_sent_record_t *record, uint32_t symbols)
{
    return record->symbols > 0
               ? (uint32_t)((uint64_t)symbols * record->prompt_tokens / record->symbols)
               : 0;
}

uint32_t kv_sent_ideal_tokens(const kv_sent_record_t *record)
{
    uint32_t ideal = tokens_of(record, record->known.computed);
    return ideal > record->cached_tokens ? ideal : record->cached_tokens;
}

uint32_t kv_sent_in_work_tokens(const kv_sent_record_t *record)
{
    uint32_t sent = tokens_of(record, record->known.sent), ideal = kv_sent_ideal_tokens(record);
    return sent > ideal ? sent - ideal : 0;
}

uint32_t kv_sent_foreign_tokens(const kv_sent_record_t *record)
{
    uint32_t sent = tokens_of(record, record->known.sent);
    return record->cached_tokens > sent ? record->cached_tokens - sent : 0;
}
