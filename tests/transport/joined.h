/* The P/D machines of one request, joined by a toy cluster: nodes, their stores and movers as their
 * headers promise them. A test is the wire, the clock and the faults between them.
 *
 * Owns: the world.
 * Borrows: nothing.
 * Threads: one.
 * Errors: what may never be fails the test. */
#ifndef KV_TESTS_TRANSPORT_JOINED_H
#define KV_TESTS_TRANSPORT_JOINED_H

#include "testing/testing.h"
#include "transport/pd.h"

enum {
    DECODE = 0,
    PREFILLS = 2, /* nodes 1 .. */
    HOLDERS = 2,
    NODES = 1 + PREFILLS + HOLDERS,
    SOURCES_MAX = PREFILLS * KV_PD_FETCHES_MAX,
    BLOCKS_MAX = 8,
    QUEUE = 128,
    STEPS_MAX = 4000,
};

typedef enum {
    SAYS_PREFILL,
    SAYS_PREFILLING,
    SAYS_PREFILLED,
    SAYS_CANCEL,
    SAYS_FETCH,
    SAYS_BEGINS,
    SAYS_FETCHED,
    SAYS_UNFETCH,
} says_t;

typedef struct {
    int from, to;
    says_t says;
    uint64_t id;
    uint32_t first, count;
    kv_status_t status;
} message_t;

/* A block on the wire. */
typedef struct {
    int from, to;
    uint64_t id;
    uint32_t index;
    int value;
} data_t;

/* Accepted by the mover, not SENT: its slots are being read. */
typedef struct {
    int from, to, source; /* source: index, or -1: of the prefill request of that node */
    uint64_t id;
    uint32_t index, first, count;
    bool cancelled;
} piece_t;

/* A mover's reservation, as mover.h promises it; of the one request of a node. */
typedef struct {
    bool active, failed;
    int link; /* with that node */
    uint64_t id;
    uint32_t first, count, mask;
} expected_t;

typedef struct {
    bool shorten; /* else revoke */
    uint64_t id;
    uint32_t count;
} command_t;

/* What happens to a node's machine, in order. */
typedef struct {
    bool of_mover;
    kv_pd_decode_event_t decode;
    kv_pd_prefill_event_t prefill;
} happening_t;

typedef struct {
    bool dead;
    uint32_t store; /* leading blocks that it holds when it is asked as a source */
    int slots[BLOCKS_MAX];
    bool leased; /* the request's slots */
    expected_t expected;
    command_t commands[QUEUE];
    happening_t happenings[QUEUE];
    int command_count, happening_count;

    kv_pd_prefill_t prefill;
    bool matching, computing, stop;
    uint32_t next_block, matched;
    int source;     /* node of the fetch that runs, or -1 */
    uint32_t known; /* blocks of that fetch whose makers were named */
    bool asked[NODES];
} node_t;

typedef struct {
    kv_pd_source_t machine;
    int node, asker;
    bool matching, leased;
    uint32_t held;
} source_t;

typedef struct {
    uint64_t random;
    int fault; /* 1 in that many steps */
    uint64_t last_id;
    uint32_t blocks;
    bool up[NODES][NODES];
    node_t nodes[NODES];
    source_t sources[SOURCES_MAX];
    int source_count;

    kv_pd_decode_t decode;
    bool reserving;
    int chosen;    /* node, or -1 */
    uint64_t told; /* the transfer whose blocks' makers were named */
    bool tried[NODES];
    uint32_t held; /* by the decode node, what it kept included */
    int outcomes;
    kv_pd_decode_action_kind_t outcome;

    message_t messages[QUEUE];
    data_t data[QUEUE];
    piece_t pieces[QUEUE];
    int message_count, data_count, piece_count;
} world_t;

typedef struct {
    int ready, fell_back, cancelled, failed, died;
    int again; /* ready by the second prefill node or the third */
    uint32_t kept, fetched, fetched_in_part;
} tally_t;

extern tally_t tally; /* of all worlds */

int value_of(uint32_t block);
uint32_t pick(world_t *world, uint32_t count);
uint32_t leading(const expected_t *expected);
void happen(world_t *world, int node, happening_t happening);
void moved(world_t *world, int node, kv_pd_decode_event_kind_t decode,
    kv_pd_prefill_event_kind_t prefill, uint64_t id, uint32_t landed);
void fail_receive(world_t *world, int node);
void step_decode(world_t *world, kv_pd_decode_event_t event);
void store_answers_decode(world_t *world);
void step_prefill(world_t *world, int node, kv_pd_prefill_event_t event);
void store_answers_prefill(world_t *world, int node);
void compute_one(world_t *world, int node);
void step_source(world_t *world, int index, kv_pd_source_event_t event);
void store_answers_source(world_t *world, int index);
void serve(world_t *world, const message_t *message);
void unfetch(world_t *world, const message_t *message);

#endif
