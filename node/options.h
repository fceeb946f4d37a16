/* Options: one table for all binaries, one YAML file with a default for everything, each value also
 * settable on the command line as --section.name=value.
 *
 * The command line wins over the file, the file over the default. Every value goes through the same
 * parser and the same bounds wherever it came from.
 * Owns: every string in a kv_options_t, until kv_options_clear.
 * Threads: set-up only; a loaded kv_options_t is read-only.
 * Errors: KV_INVALID with file and line (or "command line"), field, value and bound; KV_MISSING or
 * KV_REFUSED for a file that cannot be read.
 * Limits: a file of 1 MiB; lists of KV_OPTION_LIST_MAX. */
#ifndef KV_NODE_OPTIONS_H
#define KV_NODE_OPTIONS_H

#include "base/log.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    KV_OPTION_LIST_MAX = 64,
    KV_OPTION_DISKS_MAX = 7,
    KV_OPTION_DOMAINS_MAX = 64,
    KV_OPTION_TENANT_NAME_BYTES_MAX = 31,
    KV_OPTION_DOMAIN_NAME_BYTES_MAX = 63,
    KV_OPTION_DOMAIN_USERS_MAX = 16,
    KV_OPTION_KEY_BYTES_MIN = 16,
    KV_CLUSTER_KEY_BYTES_MAX = 1024,
};

typedef struct {
    char **items;
    uint32_t count;
} kv_string_list_t;

/* Enumerations are kept as int in the order of their names in the table; those of the store are
 * kvist.h's, the wire is transport/mover.h's. Strings are never NULL. */
typedef struct {
    struct {
        char *name;
        char *key_file;
        char *key;
        kv_string_list_t nodes; /* "host:port" */
        kv_string_list_t etcd;  /* "http://host:port" */
        char *etcd_prefix;      /* without '/' at its end */
        uint64_t etcd_ttl_ns;
        char *etcd_ca_file; /* empty: the system's */
    } cluster;
    struct {
        char *name;
        char *host;
        uint32_t port;   /* 0: any */
        char *advertise; /* "host:port", or empty: host and port */
        int wire;        /* kv_wire_t */
        uint64_t busy_poll_ns;
        char *admin; /* path of the admin socket, never empty after kv_options_load */
        uint64_t drain_limit_ns;
        int log_level; /* kv_log_level_t */
    } node;
    struct {
        char *path;
        char *device; /* "auto", "cpu", "cuda:N", "simt" */
        bool f32, fp8;
        uint32_t threads; /* never 0 after kv_options_load */
        uint32_t block_tokens;
        uint32_t chunk_tokens;
    } model;
    struct {
        uint64_t device_bytes;
        uint32_t device_slots; /* 0: as many as fit in device_bytes */
        uint64_t host_bytes;
        char *attach; /* path of a kvist-store's client socket; empty after kv_options_load: none */
        char *domain; /* of that store, to which the node belongs */
        char *socket; /* of kvist-store: where clients attach; never empty after kv_options_load */
        kv_string_list_t domains; /* of kvist-store: kv_options_domain; none: one, of store.* */
        char *directory;          /* empty after kv_options_load: no disk tier */
        uint64_t disk_bytes;
        kv_string_list_t disks; /* "FOLDER=SIZE": kv_options_disk */
        uint64_t segment_bytes;
        uint64_t write_bytes_per_day; /* 0: any */
        int persist;                  /* kvist_persist_t */
        int codec;                    /* kvist_codec_t */
        int policy;                   /* kvist_policy_t */
        kv_string_list_t tenants;     /* kv_options_tenant */
        char *key_file;               /* empty after kv_options_load: nothing is encrypted */
        int io;                       /* kvist_io_t */
        bool remote;                  /* other nodes are asked for what they hold */
        uint64_t remote_bytes;        /* of the map of what they hold */
        uint64_t events_bytes;        /* of the log of this node's own changes */
        uint64_t history_bytes;       /* of what went and why */
        char *trace_file;             /* of a decode node's requests; empty: not recorded */
        uint64_t trace_bytes;         /* of that file */
    } store;
    struct {
        uint32_t queue_max;
        uint64_t request_limit_ns;
    } prefill;
    struct {
        kv_string_list_t prefill_nodes; /* "host:port" */
        uint32_t batch_rows;
        uint32_t queue_max;
        uint32_t max_tokens;
        uint64_t reserve_limit_ns;
        uint64_t transfer_limit_ns;
    } decode;
    struct {
        char *http_host;
        uint32_t http_port;            /* 0: any */
        char *model_name;              /* empty: the file\'s */
        kv_string_list_t decode_nodes; /* "host:port" */
        kv_string_list_t vllm_nodes;   /* "host:port"; in place of decode nodes */
        uint64_t vllm_limit_ns;        /* for such a node to say that it is there */
        uint64_t body_bytes_max;       /* of one HTTP request */
        uint32_t queue_max;            /* requests in the gateway at once */
        uint32_t connections_max;      /* HTTP connections at once */
        uint32_t default_max_tokens;   /* where a request names none */
        uint64_t node_wait_ns;         /* while no decode node is up */
        uint64_t request_limit_ns;     /* arrival to the last token */
        uint64_t first_token_limit_ns; /* arrival to the first */
        uint64_t connection_limit_ns;  /* of a connection on which nothing moves */
        uint64_t stream_buffer_bytes;  /* text that waits for one slow reader */
        char *contents_directory;      /* empty after kv_options_load: cachedContents in memory */
        uint32_t contents_max;         /* cachedContents at once */
        uint64_t contents_bytes;       /* of all of them, as JSON */
        int routing;                   /* kv_routing_t */
        uint64_t prefix_bytes;         /* for what nodes are known to hold */
        uint64_t ghost_bytes;          /* for which blocks were ever seen */
        uint64_t audit_bytes;          /* for prompts that later ones are compared with; 0: none */
        uint64_t slo_ttft_ns;          /* targets of goodput; 0: none */
        uint64_t slo_tpot_ns;          /* per token */
        char *tenants_file;            /* empty: anybody may ask */
        uint32_t node_requests;        /* of this gateway at one decode node at once */
        uint64_t queue_wait_ns;        /* for a place at a node */
        uint32_t label_values_max;     /* of one label in metrics */
        bool log_prompts;
        char *tls_certificate; /* both empty: plain HTTP */
        char *tls_key;
    } gateway;
} kv_options_t;

/* Sections, as bits: those that a binary uses. */
typedef enum {
    KV_SECTION_CLUSTER = 1 << 0,
    KV_SECTION_NODE = 1 << 1,
    KV_SECTION_MODEL = 1 << 2,
    KV_SECTION_STORE = 1 << 3,
    KV_SECTION_PREFILL = 1 << 4,
    KV_SECTION_DECODE = 1 << 5,
    KV_SECTION_GATEWAY = 1 << 6,
} kv_section_t;

typedef struct {
    const char *binary;       /* "kvist-prefill" */
    const char *default_name; /* node.name where none is given: "prefill" */
    const char *summary;      /* one sentence for --help */
    unsigned sections;        /* bits of kv_section_t */
} kv_options_program_t;

typedef enum { KV_OPTIONS_RUN, KV_OPTIONS_HELP, KV_OPTIONS_VERSION } kv_options_action_t;

/* Reads --config FILE, then the command line. The file may hold sections of other binaries: they
 * are checked as well. options_out is valid (and to be cleared) only with KV_OK and KV_OPTIONS_RUN.
 */
kv_status_t kv_options_load(const kv_options_program_t *program, int argc, char **argv,
    kv_options_t *options_out, kv_options_action_t *action_out, kv_error_t *error);
void kv_options_clear(kv_options_t *options);

/* An item of store.disks; folder_out is released with free(). */
kv_status_t kv_options_disk(const char *item, char **folder_out, uint64_t *bytes_out);

/* An item of store.domains: NAME, then what differs from store.*, each after a colon. */
typedef struct {
    char name[KV_OPTION_DOMAIN_NAME_BYTES_MAX + 1];
    char *users[KV_OPTION_DOMAIN_USERS_MAX]; /* names or numbers */
    uint32_t user_count;
    uint64_t host_bytes, disk_bytes; /* UINT64_MAX: not said */
    char *directory;                 /* NULL: not said */
} kv_option_domain_t;

/* KV_INVALID with what is wrong. */
kv_status_t kv_options_domain(const char *item, kv_option_domain_t *domain_out, kv_error_t *error);
void kv_options_domain_clear(kv_option_domain_t *domain);

/* An item of store.tenants: NAME, then host_bytes=SIZE or disk_bytes=SIZE or both, each after a
 * colon. KV_INVALID: it is none. */
typedef struct {
    char name[KV_OPTION_TENANT_NAME_BYTES_MAX + 1];
    uint64_t host_bytes, disk_bytes; /* 0: not said */
} kv_option_tenant_t;

kv_status_t kv_options_tenant(const char *item, kv_option_tenant_t *tenant_out);

/* Letters, digits and inner '-', '_' and '.', of nodes and tenants. */
bool kv_option_is_name(const char *text);

/* Every option of the program's sections with default, bounds and meaning. */
void kv_options_print_help(const kv_options_program_t *program, FILE *stream);

/* The cluster's key: cluster.key, or the content of cluster.key_file without white space around it.
 * KV_MISSING when neither is set. key_out holds KV_CLUSTER_KEY_BYTES_MAX. A file that others than
 * its owner may read is refused. */
kv_status_t kv_options_cluster_key(
    const kv_options_t *options, void *key_out, size_t *bytes_out, kv_error_t *error);

#endif
