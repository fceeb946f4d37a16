#include "tools/kvist/http.h"

#include "base/memory.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

enum { FETCH_BYTES_MAX = 1 << 20 };

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

kv_status_t kv_http_request(const char *url, const char *body, uint64_t limit_ms,
    kv_http_sink_t sink, void *context, long *code_out, kv_error_t *error)
{
    CURL *curl = curl_easy_init();
    if (curl == NULL) {
        return kv_fail(error, KV_NO_SPACE, "libcurl gives no handle");
    }
    flow_t flow = {.sink = sink, .context = context};
    char text[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)limit_ms);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, text);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, arrive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &flow);
    if (body != NULL) {
        /* "Expect:" off: waiting for "100 Continue" would be measured as part of the answer. */
        headers = curl_slist_append(headers, "Content-Type: application/json");
        headers = curl_slist_append(headers, "Expect:");
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    }
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

kv_status_t kv_http_fetch(const char *url, const char *body, uint64_t limit_ms, char **text_out,
    long *code_out, kv_error_t *error)
{
    whole_t whole = {.text = kv_duplicate_string("")};
    kv_status_t status = kv_http_request(url, body, limit_ms, collect, &whole, code_out, error);
    if (status == KV_OK) {
        *text_out = whole.text;
    } else {
        free(whole.text);
    }
    return status;
}
