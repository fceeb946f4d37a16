/* The control network: connections that carry bytes in order, between processes.
 *
 * Bytes take their time, and wait while their direction is stalled. A connection may be cut so that
 * both ends hear of it, or one, or none (half open: what is sent then is answered by a reset, or
 * never). A process that is killed leaves ends that its kernel resets; one that dies with its
 * host leaves silence. The data network (fake_wire.c) has its own messages, and the same stalls.
 *
 * Owns: connections, until the world's end. */
#ifndef KV_TESTS_SIMULATION_NETWORK_H
#define KV_TESTS_SIMULATION_NETWORK_H

#include "simulation/process.h"

enum { CONTROL_PORT = 7000, DATA_PORT = 20000 }; /* plus the node's number; the process' */

/* One end of a connection. */
typedef struct stream stream_t;

/* The run's speed: no message arrives earlier than this after it was sent, jitter comes on top. */
void network_begin(uint64_t latency_ns, uint64_t jitter_ns);

/* From now on until then nothing that one node sends arrives at the other. */
void network_stall(uint32_t from_node, uint32_t to_node, uint64_t until_ns);

/* When something that is sent now arrives. */
uint64_t network_arrival_ns(const process_t *from, const process_t *to);
/* The stall that stands in its way; now or earlier: none. */
uint64_t network_stalled_until_ns(uint32_t from_node, uint32_t to_node);

/* ---- for loop.c: its upcalls run as the process' events ---- */

stream_t *network_connect(process_t *process, uint16_t port, void *handle);
void network_close(stream_t *stream);
void network_send(stream_t *stream, const void *bytes, size_t count);
/* Takes up to count bytes: how many. 0: none are there, or *end_out says that no more will come. */
size_t network_receive(stream_t *stream, void *bytes_out, size_t count, int *end_out);
void network_set_handle(stream_t *stream, void *handle);
uint32_t network_other_node(const stream_t *stream);

void loop_connected(void *handle, uint64_t result); /* negated, as uv's */
void loop_readable(void *handle, uint64_t detail);
/* Where the process listens there: keeps the stream for uv_accept. */
bool loop_offer(process_t *process, uint16_t port, stream_t *stream);
bool loop_listens(const process_t *process, uint16_t port);

/* ---- faults ---- */

typedef enum { CUT_BOTH, CUT_ONE, CUT_NONE, CUTS } cut_t; /* who hears of it */

/* A connection that is up; false: there is none. */
bool network_cut_any(cut_t cut);

#endif
