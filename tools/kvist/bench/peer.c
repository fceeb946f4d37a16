#include "tools/kvist/bench/peer.h"

#include <jansson.h>
#include <string.h>

enum { LIMIT_MS = 180000, END_LIMIT_MS = 20000 };

/* Tells a line, hears one: a JSON object, which may be {"error": text}. */
static kv_status_t ask(kv_peer_t *peer, const char *line, json_t **answer_out, kv_error_t *error)
{
    char text[KV_PROGRAM_LINE_BYTES];
    kv_status_t status = line != NULL ? kv_program_tell(&peer->program, line, error) : KV_OK;
    if (status == KV_OK) {
        status = kv_program_hear(&peer->program, LIMIT_MS, text, error);
    }
    if (status != KV_OK) {
        return status;
    }
    json_t *answer = json_loads(text, 0, NULL);
    if (!json_is_object(answer)) {
        json_decref(answer);
        return kv_fail(error, KV_INVALID, "the driver answered '%.200s'", text);
    }
    const char *refusal = json_string_value(json_object_get(answer, "error"));
    if (refusal != NULL) {
        status = kv_fail(error, KV_REFUSED, "%s", refusal);
        json_decref(answer);
        return status;
    }
    *answer_out = answer;
    return KV_OK;
}

kv_status_t kv_peer_open(const char *driver, kv_peer_t *peer_out, kv_error_t *error)
{
    char *const argv[] = {(char *)driver, NULL};
    kv_peer_t peer;
    kv_status_t status = kv_program_start(argv, &peer.program, error);
    if (status != KV_OK) {
        return status;
    }
    json_t *answer;
    status = ask(&peer, NULL, &answer, error);
    if (status == KV_OK) {
        const char *name = json_string_value(json_object_get(answer, "name"));
        const char *can = json_string_value(json_object_get(answer, "can"));
        snprintf(peer.name, sizeof peer.name, "%s", name != NULL ? name : driver);
        snprintf(peer.can, sizeof peer.can, " %s ", can != NULL ? can : "");
        json_decref(answer);
        *peer_out = peer;
    } else {
        kv_program_end(&peer.program, END_LIMIT_MS);
    }
    return status;
}

void kv_peer_close(kv_peer_t *peer)
{
    kv_program_end(&peer->program, END_LIMIT_MS);
}

bool kv_peer_can(const kv_peer_t *peer, const char *tier, const char *operation)
{
    char word[64];
    snprintf(word, sizeof word, " %s-%s ", tier, operation);
    return strstr(peer->can, word) != NULL;
}

kv_status_t kv_peer_prepare(kv_peer_t *peer, const char *tier, uint64_t object_bytes,
    uint64_t object_count, kv_error_t *error)
{
    char line[128];
    json_t *answer;
    snprintf(line, sizeof line, "prepare %s %llu %llu", tier, (unsigned long long)object_bytes,
        (unsigned long long)object_count);
    kv_status_t status = ask(peer, line, &answer, error);
    if (status == KV_OK) {
        json_decref(answer);
    }
    return status;
}

kv_status_t kv_peer_time(
    kv_peer_t *peer, const char *operation, uint64_t count, double *seconds_out, kv_error_t *error)
{
    char line[128];
    json_t *answer;
    snprintf(line, sizeof line, "%s %llu", operation, (unsigned long long)count);
    kv_status_t status = ask(peer, line, &answer, error);
    if (status != KV_OK) {
        return status;
    }
    json_t *seconds = json_object_get(answer, "seconds");
    bool given = json_is_number(seconds) && json_number_value(seconds) > 0;
    *seconds_out = json_number_value(seconds);
    json_decref(answer);
    return given ? KV_OK
                 : kv_fail(error, KV_INVALID, "the driver's answer to '%s' has no seconds", line);
}
