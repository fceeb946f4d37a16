/* The gateway as its tests over real HTTP have it: on a thread of its own, in front of decode nodes
 * that are played (played_peers.c defines transport/peers.h itself, so that nodes can be slow,
 * busy, wrong or lost at the moment that a test wants), and a client.
 *
 * Owns: the nodes and what is known of what they were asked for: one gateway runs at a time.
 * Borrows: nothing.
 * Threads: nodes are played on the gateway's thread; tests set and read what is atomic.
 * Errors: a wait that is in vain fails the test. */
#ifndef KV_TESTS_GATEWAY_PLAYED_H
#define KV_TESTS_GATEWAY_PLAYED_H

#include "testing/testing.h"

#include "base/queue.h"
#include "gateway/gateway.h"
#include "transport/peers.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- decode nodes ---- */

typedef enum {
    PLAY_ANSWER,     /* tokens one by one, then Finished */
    PLAY_SILENT,     /* nothing, ever */
    PLAY_BUSY,       /* refuses */
    PLAY_LOST,       /* lost before the first token */
    PLAY_LOST_LATER, /* lost after two tokens */
    PLAY_WRONG_TOKEN,
    PLAY_INVALID,
    PLAY_FLOOD, /* as fast as it goes, then silence */
    PLAY_TOO_MANY,
    PLAY_SLOW,        /* two tokens; once slow_goes_on, one each 20 steps */
    PLAY_FAILS_LATER, /* an error of the engine after two tokens */
    PLAY_GIVES_UP,    /* stops after two tokens: Finished says so */
    PLAY_END_LOST,    /* lost between its last token and Finished */
} play_t;

enum { NODES = 2, JOBS_MAX = 256, TOKENS_MAX = 512 };

typedef struct {
    char id[80];
    uint32_t sent, max_tokens, prompt_tokens, steps, top_logprobs;
    play_t play;
    bool used, cancelled, first;
} job_t;

struct kv_peer {
    kv_peers_t *peers;
    const char *name;
    uint64_t id;
    bool up, wanted;
    void *context;
    atomic_int play;
    atomic_bool draining;
    atomic_uint version;
    job_t jobs[JOBS_MAX];
    struct {
        uint64_t id; /* 0: free */
        bool list, relayed;
    } asked[8]; /* to be told at the next step */
};

extern struct kv_peer nodes[NODES];
extern uint32_t story[TOKENS_MAX]; /* what they answer */
extern uint32_t story_count;
extern atomic_int generates, cancels, last_cache_mode, last_generated_count, last_priority;
extern atomic_int tokens_said;              /* since the start */
extern atomic_ullong last_quota_bytes;      /* of host memory, told for alpha */
extern atomic_ullong seeds[JOBS_MAX];       /* of the Generates since the start */
extern char last_tenant[64], last_salt[64]; /* of the Generate that was counted last */
extern atomic_bool story_went_wrong;        /* a Generate's generated tokens were not the story's */
extern atomic_bool wanted_up[NODES];
extern atomic_bool prefill_attached; /* the prefill node to decode-0, as if that were a store */
extern atomic_int contexts_told;     /* that each node stores: in turn alpha's and beta's */
extern atomic_bool returning;        /* nodes that were lost come back by themselves */
extern atomic_bool slow_goes_on;     /* not when a gateway is started */

void play(int node, play_t how);

/* ---- the gateway on a thread ---- */

typedef struct {
    kv_options_t options;
    kv_reactor_t *reactor;
    kv_gateway_t *gateway;
    kv_queue_t *stop_queue;
    kv_watch_t *watch;
    pthread_t thread;
    uint16_t port;
} fixture_t;

static const char STORY[] = "The quick brown fox jumps over the lazy d\xc3\xb6g.";

/* For a group of tests: the tokenizer is there, and nodes answer STORY. */
int open_model(void **state);
int close_model(void **state);

/* What nodes answer, while no gateway runs. */
void tell(const char *text);

/* more: options, ended by NULL; NULL: none. */
void start_with(fixture_t *fixture, int node_count, const char *const *more);

enum { STOP, DRAIN };
void ask_to(fixture_t *fixture, int what);
/* Waits until the loop has ended, which somebody asked for. */
void finish(fixture_t *fixture);
void stop(fixture_t *fixture);

/* ---- a client ---- */

static const char CHAT[] = "/v1/chat/completions";
static const char PLAIN[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
static const char STREAM[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                             "\"stream\":true,\"stream_options\":{\"include_usage\":true}}";

int connect_client(const fixture_t *fixture);
void send_request(int fd, const char *method, const char *path, const char *body, size_t bytes);
/* Everything until the server closes; terminated, the caller's. */
char *receive_all(int fd, unsigned *code_out);

/* The whole answer, the caller's. body NULL: none. */
char *ask(const fixture_t *fixture, const char *method, const char *path, const char *body,
    unsigned *code_out);
/* headers: each ended by its line break. */
char *ask_with(const fixture_t *fixture, const char *path, const char *headers, const char *body,
    unsigned *code_out);

/* Asks and checks the code and that the answer holds each of the texts. */
void expect(const fixture_t *fixture, const char *path, const char *body, unsigned code,
    const char *first, const char *second);
void expect_with(const fixture_t *fixture, const char *path, const char *headers, const char *body,
    unsigned code, const char *text);

size_t count_of(const char *answer, const char *text);

/* ---- two tenants ---- */

/* alpha: what `fields` say; beta: no bounds. Their salts are texts, "alphaalpha..."; the option
 * names their file. */
void write_tenants(const char *fields);
extern char tenants_option[400];

static const char ALPHA[] = "Authorization: Bearer key-alpha\r\n";
static const char BETA[] = "x-api-key: key-beta\r\n";

/* ---- what is waited for ---- */

void wait_for_health(const fixture_t *fixture, const char *expected);
void wait_for_nodes(const fixture_t *fixture, int count);
void wait_for_generates(int count);
void wait_for_cancel(int count);
void wait_for_tokens(int count); /* at least so many were said */
/* Until the page of metrics has the line. */
void wait_for_line(const fixture_t *fixture, const char *line);

#endif
