/* Processes: each runs a role's real main() until it waits in its event loop; from then on its
 * events are the world's.
 *
 *   running <----> stopped         SIGSTOP, SIGCONT: everything of it waits
 *     |  \            |
 *     |   kill -------+--> dying   for the others it is gone; by itself it is torn down like a node
 *     |                      |     whose peers have all gone, so that its end can be judged
 *     | SIGTERM              |
 *     +----------------------+---> gone      main() returned
 *
 * A node's next life is a new process. */
#ifndef KV_TESTS_SIMULATION_PROCESS_H
#define KV_TESTS_SIMULATION_PROCESS_H

#include "base/status.h"
#include "kvstore/kvist.h"
#include "node/options.h"
#include "proto/wire.pb-c.h"
#include "runtime/compute.h"
#include "runtime/core.h"
#include "simulation/world.h"
#include "transport/mover.h"

#include <ucontext.h>
#include <uv.h>

enum { NODES_MAX = 10, NODE_NAME_BYTES = 24, PROCESS_NAME_BYTES = 32 };

typedef enum { PROCESS_RUNNING, PROCESS_STOPPED, PROCESS_DYING, PROCESS_GONE } process_state_t;

typedef struct deferred deferred_t;
struct deferred {
    deferred_t *next;
    happening_t run;
    void *subject;
    uint64_t detail;
};

/* What a node is from one life to the next. */
typedef struct {
    uint32_t number;
    Kvist__Wire__Role role;
    char name[NODE_NAME_BYTES];
    uint32_t slot_count, host_slot_count, queue_max, batch_rows;
    uint64_t reserve_limit_ns, transfer_limit_ns, request_limit_ns, drain_limit_ns;
    int wire;                /* kv_wire_t */
    bool meshed;             /* each engine node is told of all others */
    uint32_t lives;          /* begun */
    process_t *process;      /* NULL: none now */
    uint64_t slowness;       /* 1, or how many times longer everything takes */
    uint64_t compute_ns;     /* at most, of a layer or a step */
    size_t message_bytes;    /* of the data wire: a few blocks, so that much is sent in parts */
    uint64_t store_delay_ns; /* at most, before the store's answers are looked at */
} node_t;

typedef struct loop loop_t;           /* loop.c */
typedef struct ownership ownership_t; /* ownership.c */

/* A living request of a node. */
typedef struct request_note request_note_t;
struct request_note {
    request_note_t *next;
    const void *request;
    char *id;
};

struct process {
    char name[PROCESS_NAME_BYTES];
    node_t *node;
    process_state_t state;
    deferred_t *deferred, **deferred_tail; /* stopped: what waits */
    ucontext_t context;
    bool returned, terminated; /* had its SIGTERM */
    int exit_code;

    loop_t *loop;
    kvist_store_t *store;
    struct job *jobs; /* of its workers, in order: fake_node.c */
    kv_mover_t *mover;
    kv_compute_t *compute;
    ownership_t *ownership;
    bool store_due, mover_due, compute_due; /* an event for it is in the queue */
    bool store_ready;                       /* its descriptor is readable */
    uint64_t store_due_ns, mover_due_ns;
    uint32_t request_count; /* living ones */
    request_note_t *requests;
};

extern node_t nodes[NODES_MAX];
extern uint32_t node_count;

process_t *process_current(void);

/* Begins the node's next life: its main() runs until it waits. */
void process_start(node_t *node);

/* A process without a main(): who calls runs it by events. Its loop is uv's as everybody's. */
process_t *process_adopt(node_t *node);

void process_stop(process_t *process);
void process_continue(process_t *process);
void process_kill(process_t *process, bool with_its_host);
void process_terminate(process_t *process); /* SIGTERM */

/* Inside of a process' event: it is the current one meanwhile. What this event set in motion is
 * put into the queue afterwards. */
void process_run(process_t *process, happening_t run, void *subject, uint64_t detail);

/* From uv_run: back to the world, until uv_stop. */
void process_wait(void);
void process_wake(process_t *process);

/* How long something of the process takes, by its slowness. */
uint64_t process_delay(const process_t *process, uint64_t most_ns);

/* Whether a request of that id lives there. */
bool process_has_request(const process_t *process, const char *id);

/* Killed, and not gone yet. */
uint32_t process_dying_count(void);

/* Nothing is left of any request in it, nor of any fetch that it served: so far; and a violation
 * that says what is. */
bool process_is_quiet(const process_t *process);
void process_check_quiet(const process_t *process);

/* ---- what the parts tell it ---- */

bool mailbox_is_empty(const void *mailbox);
void loop_look(process_t *process);   /* loop.c: descriptors that are readable now */
void loop_signal(process_t *process); /* SIGTERM's handler */
void network_process_ends(process_t *process, bool with_its_host); /* network.c */
void wire_process_ends(process_t *process, bool with_its_host);    /* fake_wire.c */
bool wire_is_ready(const process_t *process);
bool compute_has_events(const kv_compute_t *compute);
bool compute_has_work(const kv_compute_t *compute);
void compute_turn(void *process, uint64_t detail);
uint32_t compute_sequence_count(const kv_compute_t *compute);

#endif
