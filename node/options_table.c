#include "node/options_internal.h"

static const struct {
    const char *name, *help;
} SECTIONS[KV_SECTION_COUNT] = {
    {"cluster", "who belongs together"},
    {"node", "this process"},
    {"model", "the model file and how it is computed"},
    {"store", "the tiers that keep KV"},
    {"prefill", "kvist-prefill"},
    {"decode", "kvist-decode"},
    {"gateway", "kvist-gateway"},
};

#define GIB ((uint64_t)1 << 30)
#define TIB ((uint64_t)1 << 40)
#define MS ((uint64_t)1000000)
#define SECOND (1000 * MS)
#define HOUR (3600 * SECOND)

/* What the macros take are initialisers and names of members. */
/* NOLINTBEGIN(bugprone-macro-parentheses) */
#define AT(group, member) offsetof(kv_options_t, group.member)

#define TEXT(SECTION, group, member, kind, initial_text, length_min, length_max, help_text)        \
    {                                                                                              \
        .section = KV_SECTION_##SECTION, .name = #member, .type = kind,                            \
        .offset = AT(group, member), .initial = initial_text, .min = length_min,                   \
        .max = length_max, .help = help_text                                                       \
    }
#define NUMBER(SECTION, group, member, initial_text, least, most, help_text)                       \
    {                                                                                              \
        .section = KV_SECTION_##SECTION, .name = #member, .type = KV_OPTION_U32,                   \
        .offset = AT(group, member), .initial = initial_text, .min = least, .max = most,           \
        .help = help_text                                                                          \
    }
#define SIZE(SECTION, group, member, initial_text, least, most, help_text)                         \
    {                                                                                              \
        .section = KV_SECTION_##SECTION, .name = #member, .type = KV_OPTION_SIZE,                  \
        .offset = AT(group, member), .initial = initial_text, .min = least, .max = most,           \
        .help = help_text                                                                          \
    }
#define DURATION(SECTION, group, member, initial_text, least, most, help_text)                     \
    {                                                                                              \
        .section = KV_SECTION_##SECTION, .name = #member, .type = KV_OPTION_DURATION,              \
        .offset = AT(group, member##_ns), .initial = initial_text, .min = least, .max = most,      \
        .help = help_text                                                                          \
    }
#define CHOICE(SECTION, group, member, initial_text, name_list, help_text)                         \
    {                                                                                              \
        .section = KV_SECTION_##SECTION, .name = #member, .type = KV_OPTION_ENUM,                  \
        .offset = AT(group, member), .initial = initial_text, .names = name_list,                  \
        .help = help_text                                                                          \
    }
#define LIST(SECTION, group, member, kind, help_text)                                              \
    {                                                                                              \
        .section = KV_SECTION_##SECTION, .name = #member, .type = kind,                            \
        .offset = AT(group, member), .initial = "", .max = KV_OPTION_LIST_MAX, .help = help_text   \
    }
/* NOLINTEND(bugprone-macro-parentheses) */

/* Defaults suit one machine with 2 cores and 8 GiB. SmolLM2-135M's KV is 23,040 bytes a token: the
 * device tier below holds 23,000 tokens, the host tier 46,000. */
const kv_option_t KV_OPTIONS[] = {
    TEXT(CLUSTER, cluster, name, KV_OPTION_NAME, "kvist", 1, 63,
        "the cluster's name, in logs and metrics"),
    TEXT(CLUSTER, cluster, key_file, KV_OPTION_PATH, "", 0, 4096,
        "file that holds the cluster's key, which peers prove to each other; readable by its owner "
        "only"),
    TEXT(CLUSTER, cluster, key, KV_OPTION_STRING, "", 0, KV_CLUSTER_KEY_BYTES_MAX,
        "the key itself instead of a file; on a command line every user of the machine can see it"),
    LIST(CLUSTER, cluster, nodes, KV_OPTION_ADDRESSES,
        "all prefill, decode and store nodes as host:port, the same list for every node: engine "
        "nodes connect to each other and to stores, gateways to decode nodes and stores; a node "
        "leaves itself out"),
    LIST(CLUSTER, cluster, etcd, KV_OPTION_URLS,
        "etcd's endpoints, tried in turn: nodes register there and find each other; none: not "
        "used"),
    TEXT(CLUSTER, cluster, etcd_prefix, KV_OPTION_STRING, "/kvist", 2, 128,
        "where in etcd: nodes stand under PREFIX/CLUSTER/nodes"),
    DURATION(CLUSTER, cluster, etcd_ttl, "10s", 2 * SECOND, HOUR,
        "a node that has not been heard by etcd for so long is forgotten there; whole seconds"),
    TEXT(CLUSTER, cluster, etcd_ca_file, KV_OPTION_PATH, "", 0, 4096,
        "certificates that an https endpoint's is checked with, in PEM; empty: the system's"),

    TEXT(NODE, node, name, KV_OPTION_NAME, "", 0, 31,
        "unique in the cluster; empty: the program's role"),
    TEXT(NODE, node, host, KV_OPTION_STRING, "127.0.0.1", 1, 255,
        "address on which peers are accepted"),
    NUMBER(NODE, node, port, "0", 0, 65535, "port for peers; 0: any free one, which the log names"),
    TEXT(NODE, node, advertise, KV_OPTION_STRING, "", 0, 63,
        "host:port that other nodes are told to reach this one at; empty: node.host and its port"),
    CHOICE(NODE, node, wire, "auto", "auto|shm|tcp",
        "how KV travels; auto: shared memory between processes of one machine, TCP otherwise"),
    DURATION(NODE, node, busy_poll, "0us", 0, SECOND,
        "how long the thread that moves KV looks for more before it sleeps: quicker while KV "
        "moves, for a core of its own; 0: sleeps at once"),
    TEXT(NODE, node, admin, KV_OPTION_PATH, "", 0, 107,
        "path of the admin socket; empty: kvist/NAME.sock in $XDG_RUNTIME_DIR, or in "
        "/tmp/kvist-UID"),
    DURATION(NODE, node, drain_limit, "30s", 0, 24 * HOUR,
        "how long the node, when it is told to stop, takes nothing new and finishes what it has; "
        "0: "
        "requests end at once"),
    CHOICE(NODE, node, log_level, "info", "trace|debug|info|warn|error",
        "the lowest level that is logged"),

    TEXT(MODEL, model, path, KV_OPTION_PATH, "", 0, 4096, "the model, a GGUF file"),
    TEXT(MODEL, model, device, KV_OPTION_STRING, "auto", 1, 15,
        "what computes and holds KV: cpu, cuda:N (a GPU), simt (a GPU's kernels on the CPU, for "
        "tests); auto: the first GPU, without one the CPU"),
    {.section = KV_SECTION_MODEL,
        .name = "f32",
        .type = KV_OPTION_BOOL,
        .offset = AT(model, f32),
        .initial = "false",
        .help = "f32 products and f32 KV instead of bf16: slower, twice the size, for comparisons"},
    {.section = KV_SECTION_MODEL,
        .name = "fp8",
        .type = KV_OPTION_BOOL,
        .offset = AT(model, fp8),
        .initial = "false",
        .help = "fp8 products (e4m3, a scale for each row) instead of bf16, on a GPU of compute "
                "capability 8.9 or more: half the weights, less exact; KV stays in bf16"},
    NUMBER(MODEL, model, threads, "0", 0, 1024, "threads that compute; 0: one for each core"),
    {.section = KV_SECTION_MODEL,
        .name = "block_tokens",
        .type = KV_OPTION_U32,
        .offset = AT(model, block_tokens),
        .initial = "16",
        .min = 16,
        .max = 128,
        .power_of_two = true,
        .help = "tokens of one block: the grain of reuse, equal in a cluster"},
    NUMBER(MODEL, model, chunk_tokens, "512", 64, 8192,
        "prompt tokens computed in one pass; between passes a request can be cancelled"),

    SIZE(STORE, store, device_bytes, "512MiB", 1 << 20, TIB,
        "KV in device memory (without a GPU: a bounded arena of host memory)"),
    NUMBER(STORE, store, device_slots, "0", 0, 1 << 24,
        "the same in blocks; 0: as many as device_bytes holds"),
    TEXT(STORE, store, attach, KV_OPTION_PATH, "", 0, 4096,
        "client socket of this host's kvist-store, which then holds the host and disk tiers in "
        "this node's place; empty or none: this node has them itself"),
    TEXT(STORE, store, domain, KV_OPTION_NAME, "default", 1, 63,
        "which of that kvist-store's domains this node belongs to"),
    TEXT(STORE, store, socket, KV_OPTION_PATH, "", 0, 4096,
        "of kvist-store: where clients attach; empty: kvist/NAME-clients.sock in $XDG_RUNTIME_DIR, "
        "or in /tmp/kvist-UID"),
    LIST(STORE, store, domains, KV_OPTION_DOMAINS,
        "of kvist-store: who may share what is cached, each domain with memory, disk and users of "
        "its own, as NAME:users=A+B:host_bytes=SIZE:disk_bytes=SIZE:directory=FOLDER; what is not "
        "said is store.host_bytes, store.disk_bytes, a folder NAME in store.directory, and root "
        "and "
        "the user of kvist-store alone; none: one, default"),
    SIZE(STORE, store, host_bytes, "1GiB", 0, TIB, "KV in host memory; 0: none"),
    TEXT(STORE, store, directory, KV_OPTION_PATH, "", 0, 4096,
        "folder of the disk tier, one process at a time; empty: kvist/NAME in $XDG_DATA_HOME or "
        "~/.local/share; none: no disk tier"),
    SIZE(STORE, store, disk_bytes, "8GiB", 1 << 20, 1024 * TIB,
        "quota of the disk tier, in that folder"),
    {.section = KV_SECTION_STORE,
        .name = "disks",
        .type = KV_OPTION_DISKS,
        .offset = AT(store, disks),
        .initial = "",
        .max = KV_OPTION_DISKS_MAX,
        .help =
            "further disks as FOLDER=SIZE, each with its quota; the store makes a folder NAME in "
            "FOLDER; always in the same order, new ones at the end"},
    SIZE(STORE, store, segment_bytes, "64MiB", 1 << 20, 4 * GIB, "size of one segment file"),
    SIZE(STORE, store, write_bytes_per_day, "0", 0, 1024 * TIB,
        "most that is written to the disk tier in a day, for the drive's endurance: when it is "
        "low, "
        "what was asked for again goes first; 0: any"),
    CHOICE(STORE, store, persist, "eager", "eager|spill",
        "eager: written to disk in the background as it is made; spill: when it leaves host "
        "memory"),
    CHOICE(
        STORE, store, codec, "none", "none|lz4|bf16", "codec of new records on disk; all are read"),
    LIST(STORE, store, tenants, KV_OPTION_TENANTS,
        "quotas of tenants, as NAME:host_bytes=SIZE:disk_bytes=SIZE: whoever is at one gives up "
        "blocks of its own, nobody else's; of each domain of a kvist-store"),
    CHOICE(STORE, store, policy, "lru", "lru|s3-fifo|gdsf|forecast",
        "which blocks leave memory first: those used longest ago, those not used again soon after "
        "they came, those that are worth least (uses x cost of having them again), or those least "
        "likely to be used soon, as others like them tell (kvist sim compares them on your load)"),
    TEXT(STORE, store, key_file, KV_OPTION_PATH, "", 0, 4096,
        "encrypt what is written to disk with keys that this file protects (kvist keys new makes "
        "one); beside it the store keeps a file of its own; empty: in clear"),
    CHOICE(STORE, store, io, "auto", "auto|uring|threads",
        "disk I/O; auto: io_uring, or threads where the kernel forbids it"),
    {.section = KV_SECTION_STORE,
        .name = "remote",
        .type = KV_OPTION_BOOL,
        .offset = AT(store, remote),
        .initial = "true",
        .help = "other nodes are asked for blocks that they hold and this one lacks"},
    SIZE(STORE, store, remote_bytes, "32MiB", 64 << 10, GIB,
        "memory for what is known of them: 22 bytes for each block that each node holds; what was "
        "heard of longest ago is forgotten first"),
    SIZE(STORE, store, events_bytes, "8MiB", 64 << 10, GIB,
        "memory for this node's latest KV events; who has missed more is told everything anew"),
    SIZE(STORE, store, history_bytes, "4MiB", 64 << 10, GIB,
        "memory for what is no longer stored, and why: 40 bytes a block; what went longest ago is "
        "forgotten first"),
    TEXT(STORE, store, trace_file, KV_OPTION_PATH, "", 0, 4096,
        "of decode nodes: a file to which a line is added for each request, for kvist sim; those "
        "of one machine may share it; empty: none"),
    SIZE(STORE, store, trace_bytes, "256MiB", 1 << 10, TIB,
        "where that file ends: what comes later is not recorded"),

    NUMBER(PREFILL, prefill, queue_max, "64", 1, 65536,
        "prompts that may wait; one more is refused as busy"),
    DURATION(PREFILL, prefill, request_limit, "120s", 100 * MS, 24 * HOUR,
        "longest life of a request here"),

    LIST(DECODE, decode, prefill_nodes, KV_OPTION_ADDRESSES,
        "prefill nodes as host:port (numeric, or localhost), beside those of the cluster section; "
        "while none is up this node computes prompts itself"),
    NUMBER(DECODE, decode, batch_rows, "8", 1, 256, "sequences decoded in one step"),
    NUMBER(DECODE, decode, queue_max, "64", 1, 65536,
        "requests that may wait; one more is refused as busy"),
    NUMBER(DECODE, decode, max_tokens, "4096", 1, 1 << 20, "most tokens that one request may get"),
    DURATION(DECODE, decode, reserve_limit, "2s", 10 * MS, HOUR,
        "longest wait for free slots before a request is refused as busy"),
    DURATION(DECODE, decode, transfer_limit, "120s", 100 * MS, 24 * HOUR,
        "longest wait for a prefill node's KV before the node computes the prompt itself"),

    TEXT(GATEWAY, gateway, http_host, KV_OPTION_STRING, "127.0.0.1", 1, 255,
        "address of the HTTP server"),
    NUMBER(GATEWAY, gateway, http_port, "8080", 0, 65535,
        "its port; 0: any free one, which the log names"),
    TEXT(GATEWAY, gateway, model_name, KV_OPTION_STRING, "", 0, 100,
        "the model's name in requests; empty: the name of its file without .gguf"),
    LIST(GATEWAY, gateway, decode_nodes, KV_OPTION_ADDRESSES,
        "decode nodes as host:port (numeric, or localhost), beside those of the cluster section"),
    LIST(GATEWAY, gateway, vllm_nodes, KV_OPTION_ADDRESSES,
        "vLLM servers as host:port (numeric, or localhost; http), in place of decode nodes: all "
        "serve the model of model.path by one name"),
    DURATION(GATEWAY, gateway, vllm_limit, "10s", 100 * MS, HOUR,
        "a vLLM server that does not answer /health for so long is lost"),
    SIZE(GATEWAY, gateway, body_bytes_max, "4MiB", 1024, 64 << 20,
        "largest HTTP body; a larger one is answered with 413"),
    NUMBER(GATEWAY, gateway, queue_max, "256", 1, 65536,
        "requests in the gateway at once, those that wait for a place included; one more is "
        "answered with 429"),
    NUMBER(GATEWAY, gateway, connections_max, "1024", 1, 65536, "HTTP connections at once"),
    NUMBER(GATEWAY, gateway, default_max_tokens, "512", 1, 1 << 20,
        "tokens to generate where a request does not say"),
    DURATION(GATEWAY, gateway, node_wait, "5s", 0, HOUR,
        "how long a request waits while no decode node is up (all restart, say); then 503"),
    DURATION(GATEWAY, gateway, request_limit, "600s", 100 * MS, 24 * HOUR,
        "arrival to the last token; then the request is cancelled"),
    DURATION(GATEWAY, gateway, first_token_limit, "300s", 100 * MS, 24 * HOUR,
        "arrival to the first token; then 504"),
    DURATION(GATEWAY, gateway, connection_limit, "60s", SECOND, 24 * HOUR,
        "a connection on which nothing moves for so long is closed, and one whose request's head "
        "or "
        "body takes twice as long"),
    SIZE(GATEWAY, gateway, stream_buffer_bytes, "256KiB", 4096, 64 << 20,
        "answer that may wait for one slow reader; beyond it the request is cancelled"),
    TEXT(GATEWAY, gateway, contents_directory, KV_OPTION_PATH, "", 0, 4096,
        "folder of Gemini's cachedContents (prompts in clear), so that they outlive a restart; "
        "empty: kvist/NAME/contents in $XDG_DATA_HOME or ~/.local/share; none: in memory only"),
    NUMBER(GATEWAY, gateway, contents_max, "4096", 1, 65536,
        "cachedContents at once; a named tenant may have a quarter"),
    SIZE(GATEWAY, gateway, contents_bytes, "256MiB", 4096, 16ULL << 30,
        "JSON of all cachedContents together, held in memory; a named tenant may have a quarter"),
    CHOICE(GATEWAY, gateway, routing, "prefix", "prefix|round-robin|random",
        "to the node where the prompt costs least, by what it holds and what waits there "
        "(prefix); the others are there to compare"),
    SIZE(GATEWAY, gateway, prefix_bytes, "64MiB", 64 << 10, GIB,
        "memory for what is known of the nodes' blocks: 22 bytes for each block that each node "
        "holds; what was heard of longest ago is forgotten first"),
    SIZE(GATEWAY, gateway, ghost_bytes, "64MiB", 64 << 10, GIB,
        "memory for which blocks were ever seen, whoever holds them now, so that the hit rate of "
        "an "
        "ideal cache is known: 22 bytes a block; what was seen longest ago is forgotten first"),
    SIZE(GATEWAY, gateway, audit_bytes, "64MiB", 0, 16ULL << 30,
        "memory for the latest prompts, with which later ones are compared: /v1/audit tells where "
        "they part early, and why; 0: prompts are not kept or compared"),
    DURATION(GATEWAY, gateway, slo_ttft, "2s", 0, HOUR,
        "target for goodput: arrival of a request to its first token; 0: none"),
    DURATION(GATEWAY, gateway, slo_tpot, "80ms", 0, HOUR,
        "target for goodput: time per token after the first, mean of an answer; 0: none"),
    TEXT(GATEWAY, gateway, tenants_file, KV_OPTION_PATH, "", 0, 4096,
        "who may ask, by API key, and how much: a YAML file that its owner alone may read (kvist "
        "tenant new makes records); read again on SIGHUP; empty: anybody may ask"),
    NUMBER(GATEWAY, gateway, node_requests, "64", 1, 65536,
        "requests of this gateway at one decode node at once; more wait in the gateway, by "
        "priority and in turn by tenant"),
    DURATION(GATEWAY, gateway, queue_wait, "60s", 0, 24 * HOUR,
        "how long a request waits for a place at a node; then 429"),
    NUMBER(GATEWAY, gateway, label_values_max, "32", 1, 1024,
        "values of one label in metrics (agent, tenant, ...); later ones count as other"),
    {.section = KV_SECTION_GATEWAY,
        .name = "log_prompts",
        .type = KV_OPTION_BOOL,
        .offset = AT(gateway, log_prompts),
        .initial = "false",
        .help = "prompts are logged, as far as a line holds them; for finding a fault"},
    TEXT(GATEWAY, gateway, tls_certificate, KV_OPTION_PATH, "", 0, 4096,
        "serve HTTPS with this certificate (PEM, with its chain), read again on SIGHUP; empty: "
        "plain HTTP"),
    TEXT(GATEWAY, gateway, tls_key, KV_OPTION_PATH, "", 0, 4096,
        "its private key (PEM), a file that its owner alone may read"),
};

const uint32_t KV_OPTION_COUNT = sizeof KV_OPTIONS / sizeof KV_OPTIONS[0];

const char *kv_section_name(unsigned index)
{
    return SECTIONS[index].name;
}

const char *kv_section_help(unsigned index)
{
    return SECTIONS[index].help;
}
