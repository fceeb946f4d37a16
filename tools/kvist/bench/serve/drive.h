/* Plays a script against an endpoint: any number of requests at once on one loop, and a record of
 * each.
 *
 * Sessions begin at Poisson times (open loop: whether or not those before have been answered), at
 * the script's own times, or one after the other at each of so many clients (closed loop: the next
 * one begins when one has ended). Within a session each request begins its delay after the one that
 * it extends has ended. A session whose request fails ends there.
 *
 * The script's warming sessions go before, all at once; time counts from their end.
 *
 * Owns: what is in work. Borrows: endpoint, script, the records that it writes.
 * Threads: one.
 * Errors: a request's failure is in its record; none of this is an error of the drive. */
#ifndef KV_TOOLS_SERVE_DRIVE_H
#define KV_TOOLS_SERVE_DRIVE_H

#include "tools/kvist/bench/serve/asked.h"
#include "tools/kvist/bench/serve/known.h"
#include "tools/kvist/bench/serve/script.h"
#include "tools/kvist/completion.h"

typedef enum { KV_SENT_NOT, KV_SENT_WAITS, KV_SENT_DONE, KV_SENT_FAILED } kv_sent_t;

/* Times are ns from the begin of what counts; a warming one's mean nothing. */
typedef struct {
    kv_sent_t state;
    bool has_cached; /* the endpoint said what was cached */
    bool warming;
    uint64_t sent_ns, first_ns, last_ns, ended_ns; /* first, last: piece of the answer */
    uint32_t prompt_tokens, answer_tokens;         /* by the endpoint's count */
    uint32_t cached_tokens, seen_tokens[KV_SEEN_COUNT];
    kv_known_run_t known; /* when it was sent; of symbols */
    uint32_t symbols;     /* of its prompt */
} kv_sent_record_t;

/* What went wrong, in words, and how often. */
enum { KV_FAILURES_MAX = 8, KV_FAILURE_BYTES = 200 };

typedef struct {
    char text[KV_FAILURE_BYTES];
    uint32_t count;
} kv_failure_t;

typedef struct {
    kv_sent_record_t *records; /* [script's request_count] */
    uint32_t *gaps_us;         /* between the pieces of answers, of all that counts */
    size_t gap_count, gap_capacity;
    kv_failure_t failures[KV_FAILURES_MAX]; /* kinds that came later are under the last one */
    uint32_t failure_count;
    uint64_t took_ns;
    uint64_t late_ns_max; /* how long after its time a request was sent: this client's own delay */
    bool has_answer_ids;  /* answers came as token ids: the next turn has what was said */
    bool interrupted;     /* by the user */
} kv_drive_result_t;

void kv_drive_result_release(kv_drive_result_t *result);

/* How it stands. */
typedef struct {
    uint64_t now_ns;
    uint32_t total, done, failed, in_flight;
    uint64_t prompt_tokens, cached_tokens, ideal_tokens;
} kv_drive_progress_t;

typedef struct {
    kv_asked_t *asked;
    const kv_script_t *script;
    kv_known_t *known;
    uint64_t seed;
    uint32_t concurrency; /* closed loop; 0: open */
    double rate;          /* sessions a second, where the script has no times */
    double stretch;       /* of the script's times */
    uint64_t duration_ms; /* no session or turn begins later; 0: no such limit */
    uint64_t progress_ms; /* between two calls of: */
    void (*progress)(void *context, const kv_drive_progress_t *progress);
    void *context;
} kv_drive_params_t;

void kv_drive(const kv_drive_params_t *params, kv_drive_result_t *result_out);

/* Of a done request: tokens that an ideal cache would have had; never fewer than were found. */
uint32_t kv_sent_ideal_tokens(const kv_sent_record_t *record);

/* Beyond the ideal: tokens that another request was still computing when this one was sent. */
uint32_t kv_sent_in_work_tokens(const kv_sent_record_t *record);

/* Of those that were found, what this run had not sent before. */
uint32_t kv_sent_foreign_tokens(const kv_sent_record_t *record);

#endif
