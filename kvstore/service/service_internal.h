/* What the files of the service share.
 *
 *   service.c   the listening socket, polling, who is there     client.c    one connection
 *   domain.c    a domain's store, and the layout it has         attach.c    how it begins
 *   leases.c    match, load, store, release                     forward.c   everything else
 *   offers.c    what others are storing */
#ifndef KV_KVSTORE_SERVICE_SERVICE_INTERNAL_H
#define KV_KVSTORE_SERVICE_SERVICE_INTERNAL_H

#include "base/memory.h"
#include "kvstore/attach/channel.h"
#include "kvstore/service/service.h"
#include "proto/store.pb-c.h"

enum {
    KV_SERVICE_VERSION = 3,
    KV_SERVICE_VERSION_MIN = 2,
    KV_SERVICE_TOKENS_MAX = 1 << 20, /* of a query */
    KV_SERVICE_BLOCKS_MAX = 1 << 17, /* of a query */
    KV_SERVICE_EXTRAS_MAX = 1 << 16, /* blocks of one that has extra keys */
    KV_SERVICE_WINDOW_ALIGNMENT = 64,
    KV_SERVICE_INSTANCE_BYTES = 16,
};

typedef struct kv_service_conn kv_service_conn_t;

/* What a descriptor of the service's epoll stands for. */
typedef enum {
    KV_WATCH_LISTENER,
    KV_WATCH_TIMER,
    KV_WATCH_STORE,
    KV_WATCH_SOCKET,
    KV_WATCH_PROCESS
} kv_service_kind_t;
typedef struct {
    kv_service_kind_t kind;
    void *owner;
} kv_service_watch_t;

typedef struct kv_offer kv_offer_t;

/* A lease of a client. It is storing from the answer to an offer until what was offered is stored,
 * or it gives up. */
typedef struct kv_service_lease kv_service_lease_t;
struct kv_service_lease {
    kvist_lease_t *lease;
    uint32_t storing_until; /* behind the last block that was offered; 0: it is not storing */
    uint64_t progress_ns;   /* while it is storing: when a block came last */
    kv_service_lease_t *next_storing;
};

typedef struct {
    kv_service_t *service;
    const kv_service_domain_t *params;
    uint32_t number;
    kvist_layout_t layout; /* once the store is open */
    kvist_store_t *store;  /* NULL: no layout is known */
    kv_service_lease_t *first_storing;
    kv_offer_t *waiting; /* for another lease to store */
    kv_offer_t *looking; /* of those, that are to look again */
    kv_service_watch_t watch;
} kv_domain_t;

/* One client. It ends when it is told to, and goes when nothing of it is under way any more. */
struct kv_service_conn {
    kv_service_t *service;
    kv_domain_t *domain; /* NULL: not attached yet */
    kv_channel_t channel;
    kv_service_watch_t watch, process_watch;
    uint32_t events; /* that the socket is watched for */
    int process_fd;  /* -1: it is not known */
    pid_t process;
    uid_t user;
    char name[KVIST_ORIGIN_BYTES_MAX + 1];
    uint32_t version;  /* that both speak */
    uint64_t since_ns; /* not attached: of the connection; else of the oldest unread answer */
    kv_service_lease_t **leases; /* [limits.leases]; NULL: not in use */
    uint32_t lease_count;
    kv_region_t staging;
    uint64_t staging_bytes; /* of the file: the region may reach beyond its end */
    uint32_t requests;      /* under way */
    bool ended;
    kv_service_conn_t *next, *previous;
};

struct kv_service {
    kv_service_limits_t limits;
    uint8_t instance[KV_SERVICE_INSTANCE_BYTES]; /* of this life of the service */
    char *path;
    int epoll_fd, listen_fd, timer_fd;
    kv_service_watch_t listen_watch, timer_watch;
    bool timer_set;
    kv_domain_t *domains; /* [domain_count] */
    uint32_t domain_count;
    kv_service_conn_t *clients, *ended; /* ended: something of them is under way */
    kv_service_stats_t stats;
    void (*opened)(void *context, uint32_t domain, kvist_store_t *store);
    void *context;
};

/* A request that is answered later. Goes with its answer. */
typedef struct {
    kv_service_conn_t *client;
    uint64_t id;
} kv_service_call_t;

/* ---- service.c ---- */

kv_status_t kv_service_watch(
    kv_service_t *service, int fd, uint32_t events, kv_service_watch_t *watch, kv_error_t *error);
void kv_service_set_timer(kv_service_t *service);

/* ---- domain.c ---- */

kv_status_t kv_domain_init(kv_service_t *service, const kv_service_domain_t *params,
    uint32_t number, kv_domain_t *domain, kv_error_t *error);

/* Opens the store where it is not, or says how the layout differs. */
kv_status_t kv_domain_need(kv_domain_t *domain, const kvist_layout_t *layout, kv_error_t *error);
void kv_domain_close(kv_domain_t *domain);

/* ---- client.c ---- */

void kv_conn_accept(kv_service_t *service, int fd);
void kv_conn_ready(kv_service_conn_t *client, uint32_t events);
void kv_conn_check_time(kv_service_conn_t *client, uint64_t now_ns);

/* The connection ends; the client is told why (status KV_OK: it need not be). */
void kv_conn_end(kv_service_conn_t *client, kv_status_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Frees an ended client of which nothing is under way; true: it did. */
bool kv_conn_reap(kv_service_conn_t *client);

void kv_conn_answer(kv_service_conn_t *client, const Kvist__Store__Answer *answer);
void kv_conn_answer_fds(kv_service_conn_t *client, const Kvist__Store__Answer *answer,
    const int *fds, uint32_t fd_count);
void kv_conn_done(
    kv_service_conn_t *client, uint64_t id, kv_status_t status, uint64_t count, const char *text);

/* A call under way, and its end: the client, or NULL where it has ended. */
kv_service_call_t *kv_conn_begin_call(kv_service_conn_t *client, uint64_t id);
kv_service_conn_t *kv_conn_end_call(kv_service_call_t *call, uint64_t *id_out);

/* ---- attach.c ---- */

void kv_conn_attach(kv_service_conn_t *client, const Kvist__Store__Attach *asked);
void kv_conn_unmap(kv_service_conn_t *client);

/* ---- leases.c: each may end the client ---- */

void kv_conn_match(kv_service_conn_t *client, const Kvist__Store__Match *asked);
void kv_conn_release(kv_service_conn_t *client, const Kvist__Store__Release *asked);
void kv_conn_cancel_puts(kv_service_conn_t *client, const Kvist__Store__CancelPuts *asked);
void kv_conn_load(kv_service_conn_t *client, const Kvist__Store__Load *asked);
void kv_conn_put(kv_service_conn_t *client, const Kvist__Store__Put *asked);
void kv_conn_release_all(kv_service_conn_t *client);

/* Terms that a client sent; false: out of bounds, and the client has ended. */
bool kv_conn_terms(
    kv_service_conn_t *client, const Kvist__Store__Terms *asked, kvist_terms_t *terms_out);

/* Whether a query's tokens and extra keys are within bounds; false likewise. */
bool kv_conn_tokens(
    kv_service_conn_t *client, const ProtobufCBinaryData *asked, const ProtobufCBinaryData *extras);

/* Extra keys that were sent; NULL: none were. */
static inline const kvist_key_t *kv_conn_extras(const ProtobufCBinaryData *asked)
{
    return asked->len > 0 ? (const kvist_key_t *)(const void *)asked->data : NULL;
}

/* A key that a client sent; false likewise. */
bool kv_conn_key(kv_service_conn_t *client, const ProtobufCBinaryData *asked, kvist_key_t *key_out);

/* ---- offers.c ---- */

/* Takes what is stored already of these blocks; answers when nobody else is storing the next one.
 * The put's arrays are copied. */
void kv_offer_begin(
    kv_service_conn_t *client, uint64_t id, kv_service_lease_t *lease, const kvist_put_t *put);

/* The lease has stored something, or has failed to. */
void kv_offer_progress(kv_domain_t *domain, kv_service_lease_t *lease, kv_status_t status);

/* The lease is about to go. */
void kv_offer_forget(kv_domain_t *domain, kv_service_lease_t *lease);

/* Who waited long enough for others. */
void kv_offers_check_time(kv_domain_t *domain);

/* ---- forward.c ---- */

/* What is about the domain's store as a whole. */
void kv_conn_tell_stats(kv_service_conn_t *client, uint64_t id);
void kv_conn_forward(kv_service_conn_t *client, const Kvist__Store__Request *request);

#endif
