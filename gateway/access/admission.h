/* Admission: who waits for a place at nodes, and who gets the next one.
 *
 *   classes      interactive before batch before background
 *   tenants      within a class by deficit round robin: each in turn may spend so many tokens
 *   background   only while no interactive request waits: neither here nor, as `starting`, at a
 *                node for its first token
 *   concurrency  a tenant that has its share of places is passed over
 *
 * A *ticket* stands for a request and is a part of it; a *share* for a tenant, and is a part of
 * that.
 *
 *   OUTSIDE --enter--> WAITING --next--> STARTING --started--> RUNNING
 *      ^                  |                 |                     |
 *      +------ leave -----+-----------------+---------------------+
 *
 * Borrows: tickets from enter to leave; shares while a ticket of theirs is in here.
 * Threads: one at a time.
 * Limits: what waits is bounded by who enters: kv_admission_displace finds who should go for a
 * newcomer.
 * Source of the algorithm: Shreedhar and Varghese, "Efficient fair queueing using deficit round
 * robin", SIGCOMM 1995. */
#ifndef KV_GATEWAY_ADMISSION_H
#define KV_GATEWAY_ADMISSION_H

#include "kvstore/kvist.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_ticket kv_ticket_t;
typedef struct kv_share kv_share_t;

typedef enum {
    KV_TICKET_OUTSIDE,
    KV_TICKET_WAITING,
    KV_TICKET_STARTING,
    KV_TICKET_RUNNING
} kv_ticket_state_t;

struct kv_ticket {
    kv_ticket_state_t state;
    kvist_priority_t priority;
    uint64_t cost; /* tokens: of the prompt and at most to be generated */
    kv_share_t *share;
    void *owner; /* the caller's */
    kv_ticket_t *next, *previous;
};

/* A tenant's tickets of one class, first come first. */
typedef struct kv_lane {
    kv_share_t *share;
    kv_ticket_t *first, *last;
    uint32_t count;
    uint64_t deficit;
    struct kv_lane *next, *previous; /* the ring of lanes in which tickets wait */
} kv_lane_t;

struct kv_share {
    uint32_t places_max; /* 0: no bound */
    uint32_t place_count;
    kv_lane_t lanes[KVIST_PRIORITY_COUNT];
};

typedef struct {
    kv_lane_t *turns[KVIST_PRIORITY_COUNT]; /* whose turn it is; NULL: nobody waits */
    uint32_t waiting_counts[KVIST_PRIORITY_COUNT];
    uint32_t starting_counts[KVIST_PRIORITY_COUNT];
    uint32_t place_count; /* STARTING and RUNNING */
    uint64_t granted_ns;  /* when a place was given last; 0: never */
    double interval_ns;   /* between two of them while others waited, smoothed; 0: not known */
} kv_admission_t;

/* Zeroed memory is an admission, and a share without a bound. */

/* The ticket waits, at the end of its lane. */
void kv_admission_enter(kv_admission_t *admission, kv_ticket_t *ticket, kv_share_t *share,
    kvist_priority_t priority, uint64_t cost, void *owner);

/* The ticket that gets one of `places` places at nodes, or NULL: none waits, none may go, or all
 * places are taken. It is STARTING. */
kv_ticket_t *kv_admission_next(kv_admission_t *admission, uint32_t places, uint64_t now_ns);

/* Its first token came. */
void kv_admission_started(kv_admission_t *admission, kv_ticket_t *ticket);

/* From whatever state; a ticket that is outside stays so. */
void kv_admission_leave(kv_admission_t *admission, kv_ticket_t *ticket);

/* Who should go so that a newcomer of this share and class can wait, where there is no room for
 * both: the last one of the longest lane of the worst class behind it; or, in its own class, of a
 * lane that is longer by two than the newcomer's. NULL: nobody, refuse the newcomer. The ticket
 * still waits: its owner ends it. */
kv_ticket_t *kv_admission_displace(
    kv_admission_t *admission, const kv_share_t *share, kvist_priority_t priority);

/* How long what came now would wait behind its class and the better ones, as places were given
 * lately: an estimate, at least a second. */
uint64_t kv_admission_wait_ns(const kv_admission_t *admission, kvist_priority_t priority);

#endif
