#include "node/http_client.h"

#include "base/check.h"
#include "base/memory.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum {
    FETCH_BYTES_MAX = 1 << 20,
    TURN_BYTES_MAX = 4 << 20, /* more than libcurl reads of one answer before it returns */
    CONNECT_LIMIT_MS = 2000,
    KEEPALIVE_S = 5,
};

/* ---- on the caller's thread ---- */

typedef struct {
    kv_http_sink_t sink;
    void *context;
    bool ended; /* by the sink */
} flow_t;

void kv_http_setup(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static size_t arrive(char *bytes, size_t size, size_t count, void *argument)
{
    flow_t *flow = argument;
    if (!flow->sink(flow->context, bytes, size * count)) {
        flow->ended = true;
        return 0;
    }
    return size * count;
}

/* What all requests have in common. */
static void prepare(CURL *curl, const char *url, uint64_t limit_ms, char *error_text)
{
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)limit_ms);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error_text);
}

/* The body is borrowed until the request ends; the result is freed then. */
static struct curl_slist *prepare_body(CURL *curl, const char *body)
{
    /* "Expect:" off: waiting for "100 Continue" would be measured as part of the answer. */
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = curl_slist_append(headers, "Expect:");
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    return headers;
}

/* The headers with the key's. */
static struct curl_slist *prepare_credentials(
    CURL *curl, const kv_http_credentials_t *credentials, struct curl_slist *headers)
{
    char *line;
    if (credentials->ca_file != NULL) {
        curl_easy_setopt(curl, CURLOPT_CAINFO, credentials->ca_file);
    }
    if (credentials->key == NULL) {
        return headers;
    }
    KV_CHECK(asprintf(&line, "Authorization: Bearer %s", credentials->key) > 0);
    headers = curl_slist_append(headers, line);
    free(line);
    return headers;
}

kv_status_t kv_http_request(const char *url, const kv_http_credentials_t *credentials,
    const char *body, uint64_t limit_ms, kv_http_sink_t sink, void *context, long *code_out,
    kv_error_t *error)
{
    CURL *curl = curl_easy_init();
    if (curl == NULL) {
        return kv_fail(error, KV_NO_SPACE, "libcurl gives no handle");
    }
    flow_t flow = {.sink = sink, .context = context};
    char text[CURL_ERROR_SIZE] = "";
    prepare(curl, url, limit_ms, text);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, arrive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &flow);
    struct curl_slist *headers = body != NULL ? prepare_body(curl, body) : NULL;
    if (credentials != NULL) {
        headers = prepare_credentials(curl, credentials, headers);
    }
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    CURLcode code = curl_easy_perform(curl);
    kv_status_t status = KV_OK;
    if (code == CURLE_OK) {
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, code_out);
    } else if (flow.ended) {
        status = kv_fail(error, KV_CANCELLED, "the request to %s was ended", url);
    } else {
        status = kv_fail(error, KV_PEER_LOST, "no answer from %s: %s", url,
            text[0] != '\0' ? text : curl_easy_strerror(code));
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return status;
}

typedef struct {
    char *text;
    size_t bytes;
} whole_t;

static bool collect(void *context, const char *bytes, size_t count)
{
    whole_t *whole = context;
    if (count > FETCH_BYTES_MAX - whole->bytes) {
        return false;
    }
    whole->text = kv_reallocate(whole->text, whole->bytes + count + 1, 1);
    memcpy(whole->text + whole->bytes, bytes, count);
    whole->bytes += count;
    whole->text[whole->bytes] = '\0';
    return true;
}

kv_status_t kv_http_fetch(const char *url, const kv_http_credentials_t *credentials,
    const char *body, uint64_t limit_ms, char **text_out, long *code_out, kv_error_t *error)
{
    whole_t whole = {.text = kv_duplicate_string("")};
    kv_status_t status =
        kv_http_request(url, credentials, body, limit_ms, collect, &whole, code_out, error);
    if (status == KV_OK) {
        *text_out = whole.text;
    } else {
        free(whole.text);
    }
    return status;
}

/* ---- on a loop ----
 *
 * libcurl says which descriptors it waits on and for how long; uv_poll and one timer tell it. It
 * must not be called from its own callbacks, so bytes are only gathered there, and the caller's
 * callbacks run when libcurl has returned (deliver). */

struct kv_http_client {
    uv_loop_t *loop;
    CURLM *multi;
    uv_timer_t timer;
    kv_http_call_t *calls;   /* all of them */
    kv_http_call_t *arrived; /* those that may have a line to deliver: of thousands a few */
    uint32_t handles;        /* open libuv handles: the last one to close frees this */
    bool destroyed;
};

struct kv_http_call {
    kv_http_call_t *next, *next_arrived;
    bool is_arrived;
    kv_http_client_t *client;
    CURL *easy;
    struct curl_slist *headers;
    char *body;
    kv_http_call_params_t params; /* its texts are not used after the start */
    /* What arrived, terminated: up to taken_bytes it was delivered, up to scanned_bytes no line
     * ends. Many short lines are taken one by one without moving what follows each time. */
    char *text;
    size_t text_bytes, taken_bytes, scanned_bytes;
    size_t line_bytes; /* of the line that has not ended */
    bool overflow;
    char reason[CURL_ERROR_SIZE];
};

typedef struct {
    uv_poll_t poll;
    kv_http_client_t *client;
    curl_socket_t socket;
} socket_watch_t;

static void release(kv_http_client_t *client)
{
    if (--client->handles == 0) {
        free(client);
    }
}

/* ---- calls ---- */

static void leave_arrived(kv_http_call_t *call)
{
    kv_http_call_t **at = &call->client->arrived;
    while (*at != call) {
        at = &(*at)->next_arrived;
    }
    *at = call->next_arrived;
    call->is_arrived = false;
}

static void call_free(kv_http_call_t *call)
{
    kv_http_call_t **at = &call->client->calls;
    while (*at != call) {
        at = &(*at)->next;
    }
    *at = call->next;
    if (call->is_arrived) {
        leave_arrived(call);
    }
    curl_multi_remove_handle(call->client->multi, call->easy);
    curl_easy_cleanup(call->easy);
    curl_slist_free_all(call->headers);
    free(call->body);
    free(call->text);
    free(call);
}

void kv_http_cancel(kv_http_call_t *call)
{
    call_free(call);
}

/* Whether what arrives is handed out line by line. */
static bool has_lines(const kv_http_call_t *call)
{
    long code = 0;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &code);
    return call->params.line != NULL && code >= 200 && code < 300;
}

/* Whether an answer is too long with these bytes; of one that is handed out by lines, a line. Whole
 * lines wait for the end of libcurl's turn only. */
static bool overflows(kv_http_call_t *call, const char *bytes, size_t count)
{
    size_t most = call->params.answer_bytes_max;
    if (!has_lines(call)) {
        return count > most - call->text_bytes;
    }
    const char *end = memrchr(bytes, '\n', count);
    call->line_bytes = end != NULL ? (size_t)(bytes + count - end - 1) : call->line_bytes + count;
    return call->line_bytes > most || count > most + TURN_BYTES_MAX - call->text_bytes;
}

/* What was delivered makes room. */
static void forget_taken(kv_http_call_t *call)
{
    if (call->taken_bytes > 0) {
        call->text_bytes -= call->taken_bytes;
        call->scanned_bytes -= call->taken_bytes;
        memmove(call->text, call->text + call->taken_bytes, call->text_bytes + 1);
        call->taken_bytes = 0;
    }
}

static size_t gather(char *bytes, size_t size, size_t count, void *argument)
{
    kv_http_call_t *call = argument;
    size_t more = size * count;
    forget_taken(call);
    if (overflows(call, bytes, more)) {
        call->overflow = true;
        return 0;
    }
    call->text = kv_reallocate(call->text, call->text_bytes + more + 1, 1);
    memcpy(call->text + call->text_bytes, bytes, more);
    call->text_bytes += more;
    call->text[call->text_bytes] = '\0';
    if (!call->is_arrived) {
        call->is_arrived = true;
        call->next_arrived = call->client->arrived;
        call->client->arrived = call;
    }
    return more;
}

/* Hands out one whole line; false where there is none. The call may be gone afterwards. */
static bool deliver_line(kv_http_call_t *call)
{
    size_t rest_bytes = call->text_bytes - call->scanned_bytes;
    char *end = rest_bytes > 0 ? memchr(call->text + call->scanned_bytes, '\n', rest_bytes) : NULL;
    if (end == NULL) {
        call->scanned_bytes = call->text_bytes;
        return false;
    }
    size_t bytes = (size_t)(end - call->text) - call->taken_bytes;
    char *line = kv_allocate(bytes + 1);
    memcpy(line, call->text + call->taken_bytes, bytes);
    call->taken_bytes += bytes + 1;
    call->scanned_bytes = call->taken_bytes;
    call->params.line(call->params.context, line, bytes);
    free(line);
    return true;
}

static bool deliver_lines(kv_http_client_t *client)
{
    kv_http_call_t *call = client->arrived;
    if (call == NULL) {
        return false;
    }
    if (!has_lines(call) || !deliver_line(call)) { /* until more comes */
        leave_arrived(call);
    }
    return true;
}

static bool deliver_end(kv_http_client_t *client)
{
    int left;
    CURLMsg *message;
    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        if (message->msg != CURLMSG_DONE) {
            continue;
        }
        CURLcode code = message->data.result;
        kv_http_call_t *call;
        long http_code = 0;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&call);
        curl_easy_getinfo(message->easy_handle, CURLINFO_RESPONSE_CODE, &http_code);
        kv_http_call_params_t params = call->params;
        char *text = call->text, reason[CURL_ERROR_SIZE];
        size_t taken = call->taken_bytes, bytes = call->text_bytes - taken;
        bool overflow = call->overflow;
        snprintf(reason, sizeof reason, "%s",
            call->reason[0] != '\0' ? call->reason : curl_easy_strerror(code));
        call->text = NULL;
        call_free(call);
        if (overflow) {
            snprintf(reason, sizeof reason, "an answer above %zu bytes", params.answer_bytes_max);
        }
        if (code == CURLE_OK) {
            params.ended(params.context, KV_OK, http_code, text != NULL ? text + taken : "", bytes);
        } else {
            params.ended(
                params.context, overflow ? KV_INVALID : KV_PEER_LOST, 0, reason, strlen(reason));
        }
        free(text);
        return true;
    }
    return false;
}

/* A callback may start and cancel calls: after each one the search begins anew. */
static void deliver(kv_http_client_t *client)
{
    while (deliver_lines(client) || deliver_end(client)) {
    }
}

/* ---- what libcurl waits on ---- */

static void on_watch_closed(uv_handle_t *handle)
{
    socket_watch_t *watch = handle->data;
    release(watch->client);
    free(watch);
}

static void on_ready(uv_poll_t *handle, int status, int events)
{
    socket_watch_t *watch = handle->data;
    kv_http_client_t *client = watch->client;
    int what = status < 0 ? CURL_CSELECT_ERR : 0, running;
    what |= (events & UV_READABLE) != 0 ? CURL_CSELECT_IN : 0;
    what |= (events & UV_WRITABLE) != 0 ? CURL_CSELECT_OUT : 0;
    curl_multi_socket_action(client->multi, watch->socket, what, &running);
    deliver(client);
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *argument, void *assigned)
{
    (void)easy;
    kv_http_client_t *client = argument;
    socket_watch_t *watch = assigned;
    if (what == CURL_POLL_REMOVE) {
        if (watch != NULL) {
            curl_multi_assign(client->multi, fd, NULL);
            uv_close((uv_handle_t *)&watch->poll, on_watch_closed);
        }
        return 0;
    }
    if (watch == NULL) {
        watch = kv_allocate(sizeof *watch);
        *watch = (socket_watch_t){.client = client, .socket = fd};
        if (uv_poll_init_socket(client->loop, &watch->poll, fd) != 0) {
            free(watch);
            return -1;
        }
        watch->poll.data = watch;
        client->handles++;
        curl_multi_assign(client->multi, fd, watch);
    }
    int events = what == CURL_POLL_IN    ? UV_READABLE
                 : what == CURL_POLL_OUT ? UV_WRITABLE
                                         : UV_READABLE | UV_WRITABLE;
    return uv_poll_start(&watch->poll, events, on_ready) == 0 ? 0 : -1;
}

static void on_timeout(uv_timer_t *timer)
{
    kv_http_client_t *client = timer->data;
    int running;
    curl_multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    deliver(client);
}

static int on_timer_wish(CURLM *multi, long delay_ms, void *argument)
{
    (void)multi;
    kv_http_client_t *client = argument;
    if (client->destroyed) {
        return 0;
    }
    if (delay_ms < 0) {
        uv_timer_stop(&client->timer);
    } else {
        uv_update_time(client->loop);
        uv_timer_start(&client->timer, on_timeout, (uint64_t)delay_ms, 0);
    }
    return 0;
}

/* ---- life ---- */

kv_status_t kv_http_client_create(uv_loop_t *loop, kv_http_client_t **client_out, kv_error_t *error)
{
    kv_http_setup();
    kv_http_client_t *client = kv_allocate(sizeof *client);
    client->loop = loop;
    client->multi = curl_multi_init();
    if (client->multi == NULL) {
        free(client);
        return kv_fail(error, KV_NO_SPACE, "libcurl gives no handle");
    }
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_timer_wish);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    KV_CHECK(uv_timer_init(loop, &client->timer) == 0);
    client->timer.data = client;
    client->handles = 1;
    *client_out = client;
    return KV_OK;
}

static void on_timer_closed(uv_handle_t *handle)
{
    release(handle->data);
}

void kv_http_client_destroy(kv_http_client_t *client)
{
    if (client == NULL) {
        return;
    }
    client->destroyed = true;
    while (client->calls != NULL) {
        call_free(client->calls);
    }
    curl_multi_cleanup(client->multi); /* closes idle connections, and with them their watches */
    uv_close((uv_handle_t *)&client->timer, on_timer_closed);
}

kv_status_t kv_http_start(kv_http_client_t *client, const kv_http_call_params_t *params,
    kv_http_call_t **call_out, kv_error_t *error)
{
    CURL *easy = curl_easy_init();
    if (easy == NULL) {
        return kv_fail(error, KV_NO_SPACE, "libcurl gives no handle");
    }
    kv_http_call_t *call = kv_allocate(sizeof *call);
    call->client = client;
    call->params = *params;
    call->easy = easy;
    prepare(easy, params->url, params->limit_ms, call->reason);
    if (params->body != NULL) {
        call->body = kv_duplicate_string(params->body);
        call->headers = prepare_body(easy, call->body);
    }
    const kv_http_credentials_t credentials = {params->key, params->ca_file};
    call->headers = prepare_credentials(easy, &credentials, call->headers);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, call->headers);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, call);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, gather);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, call);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
        params->connect_ms_max != 0 ? (long)params->connect_ms_max : (long)CONNECT_LIMIT_MS);
    /* A look-up runs on a thread; without this the loop would wait for it where a call ends first:
     * seconds, with a name server that does not answer. */
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, (long)KEEPALIVE_S);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, (long)KEEPALIVE_S);
    call->next = client->calls;
    client->calls = call;
    CURLMcode code = curl_multi_add_handle(client->multi, easy);
    if (code != CURLM_OK) {
        call_free(call);
        return kv_fail(error, KV_NO_SPACE, "libcurl: %s", curl_multi_strerror(code));
    }
    *call_out = call;
    return KV_OK;
}
