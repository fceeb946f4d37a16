#include "tools/kvist/cluster_plan.h"

#include "base/check.h"
#include "base/memory.h"
#include "tools/kvist/arguments.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libgen.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { DEFAULT_HTTP_PORT = 8080, WORDS_MAX = 16 + KV_EXTRA_ARGUMENTS_MAX };

/* A node's kind: its program and the sections of options that the program knows. */
typedef struct {
    const char *program, *role;
    const char *sections[6];
} kind_t;

static const kind_t STORE = {"kvist-store", "store", {"cluster", "node", "store"}};
static const kind_t PREFILL = {
    "kvist-prefill", "prefill", {"cluster", "node", "model", "store", "prefill"}};
static const kind_t DECODE = {
    "kvist-decode", "decode", {"cluster", "node", "model", "store", "decode"}};
static const kind_t GATEWAY = {"kvist-gateway", "gateway", {"cluster", "node", "model", "gateway"}};

/* What the plan sets itself: nodes could not find each other if it were set otherwise. */
static const char *const SET_BY_PLAN[] = {"cluster.key", "cluster.key_file", "node.name",
    "node.host", "node.port", "node.admin", "model.path", "model.threads", "cluster.nodes",
    "decode.prefill_nodes", "gateway.decode_nodes", "gateway.http_host", "gateway.http_port",
    "store.attach", "store.socket"};

typedef struct {
    const kv_cluster_params_t *params;
    const char *folder;
    char clients[KV_PATH_BYTES];  /* the store's client socket; "": every node has its own tiers */
    char programs[KV_PATH_BYTES]; /* the folder of this program and of the nodes' */
    const char *model;
    kv_cluster_t *cluster;
} plan_t;

static bool knows_section(const kind_t *kind, const char *section, size_t bytes)
{
    for (size_t i = 0; i < sizeof kind->sections / sizeof *kind->sections; i++) {
        const char *own = kind->sections[i];
        if (own != NULL && strlen(own) == bytes && memcmp(own, section, bytes) == 0) {
            return true;
        }
    }
    return false;
}

/* extra is "--section.name=value". */
static bool same_option(const char *extra, const char *name)
{
    size_t bytes = strlen(name);
    return strncmp(extra + 2, name, bytes) == 0 && extra[2 + bytes] == '=';
}

static kv_status_t check_extras(const kv_cluster_params_t *params, kv_error_t *error)
{
    for (size_t i = 0; i < params->extra_count; i++) {
        const char *extra = params->extras[i];
        if (strncmp(extra, "--", 2) != 0) {
            return kv_fail(error, KV_INVALID, "%s: write --section.name=value", extra);
        }
        size_t section_bytes = strcspn(extra + 2, ".");
        if (!knows_section(&PREFILL, extra + 2, section_bytes) &&
            !knows_section(&DECODE, extra + 2, section_bytes) &&
            !knows_section(&GATEWAY, extra + 2, section_bytes)) {
            return kv_fail(error, KV_INVALID,
                "%s: no node has a section %.*s; kvist-decode --help lists them", extra,
                (int)section_bytes, extra + 2);
        }
        for (size_t j = 0; j < sizeof SET_BY_PLAN / sizeof *SET_BY_PLAN; j++) {
            if (same_option(extra, SET_BY_PLAN[j])) {
                return kv_fail(error, KV_INVALID,
                    "%s: kvist up sets %s itself (see kvist up --help)", extra, SET_BY_PLAN[j]);
            }
        }
    }
    return KV_OK;
}

static char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *text(const char *format, ...)
{
    char buffer[KV_PATH_BYTES + 256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return kv_duplicate_string(buffer);
}

/* Binds to see whether the port is free; port 0 finds one. Returns 0 when it is taken. */
static uint16_t probe_port(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    uint16_t found = 0;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    /* As servers do: a port in TIME_WAIT is free to listen on. */
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
        bind(fd, (struct sockaddr *)&address, bytes) == 0 && listen(fd, 1) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &bytes) == 0) {
        found = ntohs(address.sin_port);
    }
    if (fd >= 0) {
        close(fd);
    }
    return found;
}

static kv_status_t choose_http_port(
    uint64_t told, uint16_t before, uint16_t *port_out, kv_error_t *error)
{
    if (told != 0) {
        *port_out = probe_port((uint16_t)told);
        return *port_out != 0
                   ? KV_OK
                   : kv_fail(error, KV_BUSY,
                         "port %u is taken; choose another with --port, or none", (unsigned)told);
    }
    uint16_t wishes[] = {before != 0 ? before : DEFAULT_HTTP_PORT, DEFAULT_HTTP_PORT, 0};
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
        *port_out = probe_port(wishes[i]);
        if (*port_out != 0) {
            return KV_OK;
        }
    }
    return kv_fail(error, KV_NO_SPACE, "no TCP port is free on 127.0.0.1");
}

/* Adds "--NAME=VALUE" unless the user's own options have that name. */
static void add(
    const plan_t *plan, kv_member_t *member, size_t *count, const char *name, const char *value)
{
    for (size_t i = 0; i < plan->params->extra_count; i++) {
        if (same_option(plan->params->extras[i], name)) {
            return;
        }
    }
    member->argv[(*count)++] = text("--%s=%s", name, value);
}

static void add_number(
    const plan_t *plan, kv_member_t *member, size_t *count, const char *name, uint64_t value)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    add(plan, member, count, name, digits);
}

/* A member with what all nodes have in common; its command line has room for WORDS_MAX words. */
static kv_member_t *add_member(
    const plan_t *plan, const kind_t *kind, uint64_t index, size_t *count)
{
    kv_member_t *member = &plan->cluster->members[plan->cluster->member_count++];
    const kv_cluster_params_t *params = plan->params;
    char path[KV_PATH_BYTES];
    member->name = text("%s-%llu", kind->role, (unsigned long long)index);
    member->admin = text("%s/run/%s.sock", plan->folder, member->name);
    member->log = text("%s/logs/%s.log", plan->folder, member->name);
    bool has_tiers = knows_section(kind, "store", strlen("store"));
    bool attaches = has_tiers && kind != &STORE && plan->clients[0] != '\0';
    member->stores = has_tiers && !attaches;
    member->engine = kind == &PREFILL || kind == &DECODE;
    member->argv = kv_allocate_array(WORDS_MAX + 1, sizeof(char *));
    member->argv[(*count)++] = text("%s/%s", plan->programs, kind->program);
    if (params->config != NULL) {
        member->argv[(*count)++] = text("--config");
        member->argv[(*count)++] = kv_duplicate_string(params->config);
    }
    snprintf(path, sizeof path, "%s/cluster.key", plan->folder);
    add(plan, member, count, "cluster.key_file", path);
    add(plan, member, count, "node.name", member->name);
    add(plan, member, count, "node.admin", member->admin);
    if (knows_section(kind, "model", strlen("model"))) {
        add(plan, member, count, "model.path", plan->model);
    }
    if (has_tiers) {
        snprintf(path, sizeof path, "%s/store/%s", plan->folder, member->name);
        add(plan, member, count, "store.directory", path);
    }
    if (kind == &GATEWAY) {
        snprintf(path, sizeof path, "%s/contents/%s", plan->folder, member->name);
        add(plan, member, count, "gateway.contents_directory", path);
    }
    if (attaches || kind == &STORE) {
        add(plan, member, count, attaches ? "store.attach" : "store.socket", plan->clients);
    }
    for (size_t i = 0; i < params->extra_count; i++) {
        const char *extra = params->extras[i];
        if (knows_section(kind, extra + 2, strcspn(extra + 2, "."))) {
            member->argv[(*count)++] = kv_duplicate_string(extra);
        }
    }
    return member;
}

/* Of each of a role's nodes, which together have half of the cores. */
static uint64_t default_threads(uint64_t node_count)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t threads = cores > 0 ? (uint64_t)cores / 2 / node_count : 1;
    return threads > 0 ? threads : 1;
}

/* A free port outside of the range that the kernel gives to whoever connects: what is free now is
 * still free when the node starts. Any other where none is found; 0 where there is none at all. */
static uint16_t find_port(void)
{
    enum { LEAST = 20000, MOST = 32000, ATTEMPTS = 64 };
    for (int i = 0; i < ATTEMPTS; i++) {
        uint16_t wish;
        KV_CHECK(getrandom(&wish, sizeof wish, 0) == sizeof wish);
        uint16_t port = probe_port((uint16_t)(LEAST + wish % (MOST - LEAST)));
        if (port != 0) {
            return port;
        }
    }
    return probe_port(0);
}

/* Ports of all prefill and decode nodes: each once. */
static kv_status_t choose_ports(uint16_t *ports_out, uint64_t count, kv_error_t *error)
{
    for (uint64_t i = 0; i < count;) {
        uint16_t port = find_port();
        bool twice = false;
        for (uint64_t j = 0; j < i; j++) {
            twice = twice || ports_out[j] == port;
        }
        if (port == 0) {
            return kv_fail(error, KV_NO_SPACE, "no TCP port is free on 127.0.0.1");
        }
        ports_out[i] = port;
        i += !twice;
    }
    return KV_OK;
}

enum { ADDRESS_BYTES = 16 };

/* How nodes find one another: of one each the two roles' own lists, of more one list for all. The
 * gateway is told of the store too, whose KV events say what it holds for the decode nodes. */
typedef struct {
    uint64_t prefill_count, decode_count;
    uint16_t ports[2 * KV_CLUSTER_NODES_MAX + 1]; /* of prefill, then decode nodes; of the store */
    char list[2 * KV_CLUSTER_NODES_MAX * ADDRESS_BYTES]; /* of all engine nodes, between commas */
    char store[ADDRESS_BYTES + 1];                       /* "": there is none */
} nodes_t;

static void add_engine_nodes(plan_t *plan, const nodes_t *nodes)
{
    const kv_cluster_params_t *params = plan->params;
    for (uint64_t i = 0; i < nodes->prefill_count + nodes->decode_count; i++) {
        bool prefill = i < nodes->prefill_count;
        uint64_t index = prefill ? i : i - nodes->prefill_count;
        uint64_t threads = prefill ? params->prefill_threads : params->decode_threads;
        uint64_t role_count = prefill ? nodes->prefill_count : nodes->decode_count;
        size_t count = 0;
        kv_member_t *member = add_member(plan, prefill ? &PREFILL : &DECODE, index, &count);
        add_number(plan, member, &count, "node.port", nodes->ports[i]);
        add_number(plan, member, &count, "model.threads",
            threads != 0 ? threads : default_threads(role_count));
        if (nodes->prefill_count + nodes->decode_count > 2) {
            add(plan, member, &count, "cluster.nodes", nodes->list);
        } else if (!prefill && nodes->prefill_count == 1) {
            char address[32];
            snprintf(address, sizeof address, "127.0.0.1:%u", nodes->ports[0]);
            add(plan, member, &count, "decode.prefill_nodes", address);
        }
    }
}

static void add_store(plan_t *plan, nodes_t *nodes, uint16_t port)
{
    size_t count = 0;
    kv_member_t *member = add_member(plan, &STORE, 0, &count);
    add_number(plan, member, &count, "node.port", port);
    snprintf(nodes->store, sizeof nodes->store, "127.0.0.1:%u", port);
}

static void add_gateway(plan_t *plan, const nodes_t *nodes, uint16_t http_port)
{
    char list[sizeof nodes->list + sizeof nodes->store + 1];
    size_t count = 0;
    kv_member_t *gateway = add_member(plan, &GATEWAY, 0, &count);
    bool one = nodes->decode_count == 1 && nodes->prefill_count <= 1;
    const char *decode = strrchr(nodes->list, ',');
    if (one) {
        add(plan, gateway, &count, "gateway.decode_nodes",
            decode != NULL ? decode + 1 : nodes->list);
    }
    snprintf(list, sizeof list, "%s%s%s", one ? "" : nodes->list,
        !one && nodes->store[0] != '\0' ? "," : "", nodes->store);
    if (list[0] != '\0') {
        add(plan, gateway, &count, "cluster.nodes", list);
    }
    add_number(plan, gateway, &count, "gateway.http_port", http_port);
}

static kv_status_t add_members(plan_t *plan, uint16_t http_port, kv_error_t *error)
{
    const kv_cluster_params_t *params = plan->params;
    if (params->colocated && params->prefill_count > 0) {
        return kv_fail(error, KV_INVALID, "--prefill and --colocated exclude each other");
    }
    nodes_t nodes = {.prefill_count = params->prefill_count, .decode_count = params->decode_count};
    nodes.prefill_count += nodes.prefill_count == 0 && !params->colocated;
    nodes.decode_count += nodes.decode_count == 0;
    uint64_t node_count = nodes.prefill_count + nodes.decode_count;
    bool has_store = plan->clients[0] != '\0';
    kv_status_t status = choose_ports(nodes.ports, node_count + has_store, error);
    if (status != KV_OK) {
        return status;
    }
    for (uint64_t i = 0; i < node_count; i++) {
        size_t used = strlen(nodes.list);
        snprintf(nodes.list + used, sizeof nodes.list - used, "%s127.0.0.1:%u", i > 0 ? "," : "",
            nodes.ports[i]);
    }
    if (has_store) {
        add_store(plan, &nodes, nodes.ports[node_count]);
    }
    add_engine_nodes(plan, &nodes);
    add_gateway(plan, &nodes, http_port);
    return KV_OK;
}

static kv_status_t find_programs(plan_t *plan, kv_error_t *error)
{
    ssize_t bytes = readlink("/proc/self/exe", plan->programs, sizeof plan->programs - 1);
    if (bytes <= 0) {
        return kv_fail_errno(error, errno, "this program's own path cannot be read");
    }
    plan->programs[bytes] = '\0';
    dirname(plan->programs);
    static const kind_t *const kinds[] = {&STORE, &PREFILL, &DECODE, &GATEWAY};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[KV_PATH_BYTES + 32];
        snprintf(path, sizeof path, "%s/%s", plan->programs, kinds[i]->program);
        if (access(path, X_OK) != 0) {
            return kv_fail_errno(
                error, errno, "%s is not beside kvist; build it (tools/build)", path);
        }
    }
    return KV_OK;
}

/* The model's absolute path, allocated. */
static kv_status_t find_model(const char *told, char **model_out, kv_error_t *error)
{
    char path[KV_PATH_BYTES];
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (told != NULL) {
        snprintf(path, sizeof path, "%s", told);
    } else {
        bool cache_set = cache != NULL && cache[0] != '\0';
        snprintf(path, sizeof path, "%s%s/kvist/models/SmolLM2-135M-Instruct.Q4_1.gguf",
            cache_set      ? cache
            : home != NULL ? home
                           : "",
            cache_set ? "" : "/.cache");
    }
    *model_out = realpath(path, NULL);
    return *model_out != NULL
               ? KV_OK
               : kv_fail_errno(error, errno,
                     "no model at %s; name one with --model, or fetch it with tools/fetch-model",
                     path);
}

kv_status_t kv_cluster_plan(const kv_cluster_params_t *params, const char *folder,
    uint16_t port_before, kv_cluster_t *cluster_out, kv_error_t *error)
{
    kv_cluster_t cluster = {0};
    plan_t plan = {.params = params, .folder = folder, .cluster = &cluster};
    uint16_t http_port = 0;
    size_t socket_bytes = strlen(folder) + strlen("/run/prefill-15.sock") + 1;
    if (socket_bytes > sizeof((struct sockaddr_un *)0)->sun_path) {
        return kv_fail(error, KV_INVALID,
            "the folder %s is too long for a Unix socket in it by %zu bytes; choose a shorter "
            "--dir",
            folder, socket_bytes - sizeof((struct sockaddr_un *)0)->sun_path);
    }
    kv_status_t status = check_extras(params, error);
    status = status == KV_OK ? find_programs(&plan, error) : status;
    status = status == KV_OK ? find_model(params->model, &cluster.model, error) : status;
    status = status == KV_OK ? choose_http_port(params->http_port, port_before, &http_port, error)
                             : status;
    if (status == KV_OK) {
        plan.model = cluster.model;
        if (!params->embedded) {
            snprintf(plan.clients, sizeof plan.clients, "%s/run/clients.sock", folder);
        }
        cluster.folder = kv_duplicate_string(folder);
        cluster.endpoint = text("http://127.0.0.1:%u", http_port);
        status = add_members(&plan, http_port, error);
    }
    if (status == KV_OK) {
        *cluster_out = cluster;
    } else {
        kv_cluster_clear(&cluster);
    }
    return status;
}
