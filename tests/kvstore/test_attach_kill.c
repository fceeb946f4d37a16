/* kill -9 of clients of a host's store in every phase of what they do, and kill -9 and SIGSTOP of
 * the store under load. The store has nothing of a dead client left: no lease, slot, request,
 * mapping, descriptor; what survives goes on, is attached again soon, and whatever bytes anybody
 * ever loads are those that were stored.
 *
 * The store and each client are processes of their own, forked before anything has threads; this
 * one only directs. A victim ends itself at an exact place (a phase, and so many polls after it
 * began), or is killed from outside at any instant. KVIST_SEED replays what is random. */
#include "harness.h"
#include "kvstore/service/service.h"

#include "base/log.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum {
    SURVIVORS = 2,
    BLOCKS = 8,    /* of a context */
    CONTEXTS = 64, /* that all clients share: more than host memory has room for */
    HOST_SLOTS = 128,
    DEVICE_SLOTS = 16,
    SEGMENTS = 40,
    STEPS_MAX = 5, /* polls after a phase began */
    LIMIT_MS = 30000,
    ATTACHED_AGAIN_MS = 2000, /* what is promised, on a machine that has time */
};

/* ---- what the processes share ---- */

typedef enum {
    PHASE_ATTACH,
    PHASE_MATCH,
    PHASE_LEASES_HELD,
    PHASE_LOAD,
    PHASE_LOAD_FROM_DISK,
    PHASE_STORE,
    PHASE_STORED,
    PHASE_PREPARE,
    PHASE_SEAL,
    PHASE_WRITE_THROUGH,
    PHASE_FLUSH,
    PHASE_COUNT,
} phase_t;

static const char *const PHASES[PHASE_COUNT] = {"attach", "match", "leases held", "load",
    "load from disk", "store", "stored", "prepare", "seal", "write-through", "flush"};

typedef struct {
    atomic_bool resting;               /* it holds nothing, and waits */
    atomic_uint descriptors, mappings; /* while it rests */
    atomic_ullong contexts, loaded_blocks, refused;
    atomic_ullong stored_ns;  /* when the store last took what it stored */
    atomic_ullong longest_ns; /* of its calls that may wait for the store */
} survivor_t;

typedef struct {
    atomic_bool rest;        /* survivors are to */
    atomic_uint phase, step; /* where the victim ends itself; PHASE_COUNT: nowhere */
    atomic_uint reached;     /* phases that victims were in, as bits */
    survivor_t survivors[SURVIVORS];
} shared_t;

static shared_t *shared;

/* In a child there is no test to fail: it says why and ends, and its parent notices. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

/* ---- descriptors and mappings of a process ---- */

/* Of those that clients and the store exchange or hold for one another; files come and go. */
static uint32_t count_descriptors(void)
{
    uint32_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    REQUIRE(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char path[300], target[300];
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t bytes = readlink(path, target, sizeof target - 1);
        target[bytes > 0 ? bytes : 0] = '\0';
        count += strncmp(target, "socket:", 7) == 0 || strncmp(target, "/memfd:", 7) == 0 ||
                 strstr(target, "pidfd") != NULL;
    }
    closedir(folder);
    return count;
}

static uint32_t count_mappings(void)
{
    uint32_t count = 0;
    char line[512];
    FILE *file = fopen("/proc/self/maps", "re");
    REQUIRE(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        count += strstr(line, "/memfd:") != NULL;
    }
    fclose(file);
    return count;
}

/* ---- processes ---- */

typedef struct {
    pid_t pid;
    int channel; /* the director's end */
} process_t;

static process_t start(void (*body)(uint32_t number, int channel), uint32_t number)
{
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        static const int FAULTS[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE};
        for (size_t i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++) {
            signal(FAULTS[i], SIG_DFL); /* not the test's: it would go on with the next one here */
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* The others' channels are not this one's to keep open, nor to be counted. */
        close_range(STDERR_FILENO + 1, (unsigned)ends[1] - 1, 0);
        close_range((unsigned)ends[1] + 1, ~0u, 0);
        body(number, ends[1]);
        _exit(0);
    }
    close(ends[1]);
    return (process_t){pid, ends[0]};
}

static void hear(const process_t *process, void *message, size_t bytes)
{
    struct pollfd ready = {.fd = process->channel, .events = POLLIN};
    assert_int_equal(poll(&ready, 1, LIMIT_MS), 1);
    assert_int_equal(recv(process->channel, message, bytes, 0), bytes);
}

static void reap_killed(process_t *process)
{
    int status = 0;
    close(process->channel);
    for (int ms = 0; waitpid(process->pid, &status, WNOHANG) != process->pid; ms++) {
        if (ms == LIMIT_MS) {
            const uint32_t phase = atomic_load(&shared->phase);
            kill(process->pid, SIGKILL);
            fail_msg("a victim never came to the phase '%s'",
                phase < PHASE_COUNT ? PHASES[phase] : "killed");
        }
        usleep(1000);
    }
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    process->pid = 0;
}

static void kill_now(process_t *process)
{
    assert_int_equal(kill(process->pid, SIGKILL), 0);
    reap_killed(process);
}

static void assert_alive(const process_t *process)
{
    int status;
    assert_int_equal(waitpid(process->pid, &status, WNOHANG), 0);
}

/* ---- the store's process ---- */

static char store_folder[400], socket_path[100];

/* Blocks of 32 KiB: copying them takes a moment. */
static void bench_for(bench_t *bench, const char *name)
{
    bench_init(bench, name, 0);
    const kv_block_shape_t shape = {4, 4, 32, BLOCK_TOKENS, 2};
    bench->layout = kvist_layout_plain(&shape);
    const kvist_namespace_params_t identity = {.layout = &bench->layout, .salt = "", .adapter = ""};
    bench->name_space = kvist_namespace(&identity);
    free(bench->params.device_arena);
    bench->params.device_arena = NULL;
}

static kvist_store_params_t store_params(void)
{
    return (kvist_store_params_t){.host_bytes = HOST_SLOTS * (32ull << 10),
        .directory = store_folder,
        .segment_bytes = 1 << 20,
        .disk_bytes = (uint64_t)SEGMENTS << 20};
}

typedef struct {
    kv_service_stats_t service;
    uint64_t requests, store_leases, private_slots;
    uint32_t descriptors, mappings;
} account_t;

static void add_requests(void *context, const kv_service_client_t *client)
{
    ((account_t *)context)->requests += client->requests;
}

static account_t account_of(const kv_service_t *service)
{
    account_t account = {.descriptors = count_descriptors(), .mappings = count_mappings()};
    kv_service_stats(service, &account.service);
    kv_service_visit(service, add_requests, &account);
    const kvist_store_t *store = kv_service_store(service, 0);
    if (store != NULL) {
        const kv_pool_t *pool = &store->groups[0].host_pool;
        account.store_leases = store->lease_count + store->leases_ending;
        account.private_slots = pool->ready_count - pool->free_count - pool->object_count;
    }
    return account;
}

/* Serves until it is killed; answers each byte on the channel with its account. */
static void be_store(uint32_t number, int channel)
{
    (void)number;
    const kv_service_domain_t domain = {.name = "default", .store = store_params()};
    const kv_service_params_t params = {.path = socket_path, .domains = &domain, .domain_count = 1};
    kv_service_t *service;
    kv_error_t error = {0};
    kv_status_t status = kv_service_open(&params, &service, &error);
    if (status != KV_OK) {
        fprintf(stderr, "service: %s\n", error.text);
    }
    REQUIRE(status == KV_OK);
    uint64_t ready_ns = kv_clock_now_ns();
    REQUIRE(send(channel, &ready_ns, sizeof ready_ns, 0) == sizeof ready_ns);
    struct pollfd descriptors[] = {
        {.fd = kv_service_fd(service), .events = POLLIN}, {.fd = channel, .events = POLLIN}};
    for (;;) {
        poll(descriptors, 2, 50);
        kv_service_poll(service);
        char asked;
        if (recv(channel, &asked, 1, MSG_DONTWAIT) == 1) {
            account_t account = account_of(service);
            REQUIRE(send(channel, &account, sizeof account, 0) == sizeof account);
        }
    }
}

static process_t start_store(uint64_t *ready_ns_out)
{
    process_t process = start(be_store, 0);
    hear(&process, ready_ns_out, sizeof *ready_ns_out);
    return process;
}

static account_t ask_account(const process_t *store)
{
    account_t account;
    assert_int_equal(send(store->channel, "?", 1, MSG_NOSIGNAL), 1);
    hear(store, &account, sizeof account);
    return account;
}

/* ---- a client ---- */

typedef struct {
    bench_t bench;
    char *bytes, *expected; /* of a context */
    bool ended;             /* the call under way: its callback ran */
    kv_status_t status;
    uint32_t block_count;
    kvist_match_t match;
    uint32_t tokens[BLOCKS * BLOCK_TOKENS];
    kvist_key_t keys[BLOCKS];
    survivor_t *survivor; /* NULL: a victim */
} client_t;

static void client_open(client_t *client, survivor_t *survivor, const char *name)
{
    memset(client, 0, sizeof *client);
    bench_for(&client->bench, "client");
    client->survivor = survivor;
    client->bytes = malloc(BLOCKS * block_bytes(&client->bench));
    client->expected = malloc(BLOCKS * block_bytes(&client->bench));
    kvist_store_params_t *params = &client->bench.params;
    params->device = &client->bench.device;
    params->device_slot_count = DEVICE_SLOTS;
    params->device_arena = calloc(DEVICE_SLOTS, block_bytes(&client->bench));
    params->origin = name;
    params->attach = socket_path;
    REQUIRE(params->device_arena != NULL && client->bytes != NULL && client->expected != NULL);
    kv_error_t error = {0};
    kv_status_t status = kvist_store_open(params, &client->bench.store, &error);
    if (status != KV_OK) {
        fprintf(stderr, "client: %s\n", error.text);
    }
    REQUIRE(status == KV_OK);
}

static void client_close(client_t *client)
{
    kvist_store_close(client->bench.store);
    free(client->bench.params.device_arena);
    free(client->bytes);
    free(client->expected);
}

/* The victim's place to die. */
static void at(const client_t *client, phase_t phase, uint32_t step)
{
    if (client->survivor != NULL) {
        return;
    }
    atomic_fetch_or(&shared->reached, 1u << phase);
    if (atomic_load(&shared->phase) == phase && atomic_load(&shared->step) <= step) {
        raise(SIGKILL);
    }
}

static void turn(client_t *client)
{
    struct pollfd ready = {.fd = kvist_store_fd(client->bench.store), .events = POLLIN};
    poll(&ready, 1, 20);
    kvist_store_poll(client->bench.store);
}

/* Polls until the call's callback ran. */
static void finish(client_t *client, phase_t phase)
{
    const uint64_t begun_ns = kv_clock_now_ns();
    at(client, phase, 0);
    for (uint32_t step = 1; !client->ended; step++) {
        turn(client);
        at(client, phase, step);
        if (kv_clock_now_ns() - begun_ns > (uint64_t)LIMIT_MS * KV_NS_PER_MS) {
            fprintf(stderr, "no end in the phase '%s'\n", PHASES[phase]);
            _exit(3);
        }
    }
    at(client, phase, UINT32_MAX);
    client->ended = false;
    if (client->survivor != NULL) {
        const uint64_t ns = kv_clock_now_ns() - begun_ns;
        if (ns > atomic_load(&client->survivor->longest_ns)) {
            atomic_store(&client->survivor->longest_ns, ns);
        }
    }
}

static void on_loaded(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count,
    kvist_miss_t miss)
{
    client_t *client = context;
    (void)lease;
    (void)miss;
    client->status = status;
    client->block_count = block_count;
    client->ended = true;
}

static void on_stored(void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    on_loaded(context, lease, status, block_count, KVIST_MISS_NONE);
}

static void on_prepared(
    void *context, kvist_lease_t *lease, kv_status_t status, const kvist_match_t *match)
{
    ((client_t *)context)->match = *match;
    on_loaded(context, lease, status, 0, KVIST_MISS_NONE);
}

static void on_flushed(void *context, kv_status_t status)
{
    on_loaded(context, NULL, status, 0, KVIST_MISS_NONE);
}

/* ---- what a client does ---- */

static void choose_context(client_t *client, uint32_t context)
{
    make_tokens(context, 0, client->tokens, BLOCKS * BLOCK_TOKENS);
    make_tokens(context / 4 * 4, 0, client->tokens, 2 * BLOCK_TOKENS); /* four begin alike */
    kvist_keys(&client->bench.name_space, client->tokens, NULL, BLOCKS * BLOCK_TOKENS, BLOCK_TOKENS,
        client->keys);
    const size_t bytes = block_bytes(&client->bench);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        fill_block(&client->keys[block], client->expected + block * bytes, bytes);
    }
}

static kvist_lease_t *match_chosen(client_t *client)
{
    kvist_lease_t *lease;
    const kvist_query_t query = {.name_space = client->bench.name_space,
        .tokens = client->tokens,
        .token_count = BLOCKS * BLOCK_TOKENS,
        .mode = KVIST_MODE_READWRITE};
    const uint64_t begun_ns = kv_clock_now_ns();
    at(client, PHASE_MATCH, 0);
    REQUIRE(kvist_match(client->bench.store, &query, &lease, &client->match) == KV_OK);
    at(client, PHASE_MATCH, UINT32_MAX);
    const uint64_t ns = kv_clock_now_ns() - begun_ns;
    if (client->survivor != NULL && ns > atomic_load(&client->survivor->longest_ns)) {
        atomic_store(&client->survivor->longest_ns, ns);
    }
    return lease;
}

/* Loads what was found, and compares it all. */
static void load_found(client_t *client, kvist_lease_t *lease)
{
    const size_t bytes = block_bytes(&client->bench);
    const uint32_t found = client->match.block_count;
    const kvist_selection_t selection = {.block_count = found};
    const kvist_piece_t piece = {client->bytes, found * bytes};
    if (found == 0) {
        return;
    }
    memset(client->bytes, 0xee, found * bytes);
    const bool from_disk = client->match.tier_blocks[KVIST_TIER_DISK] > 0;
    REQUIRE(kvist_lease_load(lease, &selection, &piece, 1, on_loaded, client) == KV_OK);
    finish(client, from_disk ? PHASE_LOAD_FROM_DISK : PHASE_LOAD);
    REQUIRE(client->block_count <= found);
    REQUIRE(memcmp(client->bytes, client->expected, client->block_count * bytes) == 0);
    if (client->survivor != NULL) {
        atomic_fetch_add(&client->survivor->loaded_blocks, client->block_count);
    }
}

static void store_rest(client_t *client, kvist_lease_t *lease)
{
    const size_t bytes = block_bytes(&client->bench);
    const uint32_t found = client->match.block_count;
    const kvist_put_t put = {.first_block = found,
        .block_count = BLOCKS - found,
        .arithmetic = "test/plain",
        .deadline_ns = kv_clock_now_ns() + 5ull * KV_NS_PER_S};
    const kvist_piece_t piece = {client->expected + found * bytes, (BLOCKS - found) * bytes};
    if (found == BLOCKS) {
        return;
    }
    const uint64_t asked_ns = kv_clock_now_ns();
    REQUIRE(kvist_lease_store(lease, &put, &piece, 1, on_stored, client) == KV_OK);
    finish(client, PHASE_STORE);
    at(client, PHASE_STORED, UINT32_MAX);
    if (client->survivor != NULL && client->status == KV_OK) {
        atomic_store(&client->survivor->stored_ns, asked_ns);
    } else if (client->survivor != NULL) {
        atomic_fetch_add(&client->survivor->refused, 1);
    }
}

/* Through the caller's memory. */
static void move_bytes(client_t *client, uint32_t context)
{
    choose_context(client, context);
    kvist_lease_t *lease = match_chosen(client);
    at(client, PHASE_LEASES_HELD, 0);
    load_found(client, lease);
    store_rest(client, lease);
    kvist_lease_release(lease);
}

/* Through slots of the client's own device tier. */
static void use_slots(client_t *client, uint32_t context)
{
    const bench_t *bench = &client->bench;
    const size_t bytes = block_bytes(bench);
    choose_context(client, context);
    kvist_lease_t *lease = match_chosen(client);
    REQUIRE(kvist_lease_prepare(lease, BLOCKS, kv_clock_now_ns() + 20ull * KV_NS_PER_S, on_prepared,
                client) == KV_OK);
    finish(client, PHASE_PREPARE);
    if (client->status == KV_OK) {
        const uint32_t *slots = kvist_lease_slots(lease);
        for (uint32_t block = 0; block < BLOCKS; block++) {
            const char *expected = client->expected + block * bytes;
            if (block < client->match.block_count) {
                REQUIRE(memcmp(slot_bytes(bench, slots[block]), expected, bytes) == 0);
                continue;
            }
            memcpy(slot_bytes(bench, slots[block]), expected, bytes);
            REQUIRE(kvist_lease_seal(lease, client->tokens + (size_t)block * BLOCK_TOKENS, NULL,
                        "test/plain") == KV_OK);
            at(client, PHASE_SEAL, block);
        }
    }
    kvist_lease_release(lease);
    for (uint32_t step = 0; step < STEPS_MAX; step++) {
        at(client, PHASE_WRITE_THROUGH, step);
        if (client->survivor == NULL) {
            turn(client);
        }
    }
}

static void flush_all(client_t *client)
{
    kvist_store_flush(client->bench.store, on_flushed, client);
    finish(client, PHASE_FLUSH);
}

/* Many leases at once, of the same contexts and of others. */
static void hold_leases(client_t *client, uint64_t *random)
{
    kvist_lease_t *leases[12];
    for (size_t i = 0; i < 12; i++) {
        choose_context(client, (uint32_t)(kv_test_random(random) % CONTEXTS));
        leases[i] = match_chosen(client);
        at(client, PHASE_LEASES_HELD, (uint32_t)i);
    }
    for (size_t i = 0; i < 12; i++) {
        kvist_lease_release(leases[i]);
    }
}

/* Goes through all phases, again and again, until it is killed. */
static void be_victim(uint32_t seed, int channel)
{
    (void)channel;
    uint64_t random = seed;
    uint32_t fresh = CONTEXTS + seed % 100000 * 100;
    for (;;) {
        client_t client;
        client_open(&client, NULL, "victim");
        at(&client, PHASE_ATTACH, UINT32_MAX);
        for (int i = 0; i < 6; i++) {
            const uint32_t known = (uint32_t)(kv_test_random(&random) % CONTEXTS);
            move_bytes(&client, known);
            hold_leases(&client, &random);
            use_slots(&client, i % 2 == 0 ? known : fresh++);
            move_bytes(&client, fresh++);
            flush_all(&client);
        }
        client_close(&client);
    }
}

/* Comes and goes. */
static void be_visitor(uint32_t number, int channel)
{
    (void)number;
    (void)channel;
    for (;;) {
        client_t client;
        client_open(&client, NULL, "visitor");
        client_close(&client);
    }
}

static void rest(client_t *client)
{
    survivor_t *survivor = client->survivor;
    if (!atomic_load(&shared->rest)) {
        return;
    }
    /* What it sealed is on its way still: the store's to count. */
    flush_all(client);
    atomic_store(&survivor->descriptors, count_descriptors());
    atomic_store(&survivor->mappings, count_mappings());
    atomic_store(&survivor->resting, true);
    while (atomic_load(&shared->rest)) {
        turn(client);
    }
    atomic_store(&survivor->resting, false);
}

/* Works until it is killed at the end. */
static void be_survivor(uint32_t number, int channel)
{
    client_t client;
    char name[16];
    uint64_t random = kv_test_seed() + number;
    uint32_t fresh = 1 << 30 | number << 24;
    snprintf(name, sizeof name, "survivor-%u", number);
    client_open(&client, &shared->survivors[number], name);
    REQUIRE(send(channel, "!", 1, 0) == 1);
    for (;;) {
        move_bytes(&client, (uint32_t)(kv_test_random(&random) % CONTEXTS));
        use_slots(&client, (uint32_t)(kv_test_random(&random) % CONTEXTS));
        move_bytes(&client, fresh++);
        atomic_fetch_add(&client.survivor->contexts, 3);
        rest(&client);
    }
}

/* ---- directing ---- */

typedef struct {
    process_t store, survivors[SURVIVORS];
    account_t before; /* with all survivors at rest */
    uint32_t descriptors[SURVIVORS], mappings[SURVIVORS];
    uint64_t random;
} stage_t;

static void rest_survivors(const stage_t *stage)
{
    atomic_store(&shared->rest, true);
    for (int i = 0; i < SURVIVORS; i++) {
        for (int ms = 0; !atomic_load(&shared->survivors[i].resting); ms++) {
            assert_true(ms < 2 * LIMIT_MS);
            assert_alive(&stage->survivors[i]);
            usleep(1000);
        }
    }
}

static void wake_survivors(void)
{
    atomic_store(&shared->rest, false);
    for (int i = 0; i < SURVIVORS; i++) {
        while (atomic_load(&shared->survivors[i].resting)) {
            usleep(1000);
        }
    }
}

static bool same_account(const account_t *now, const account_t *before)
{
    return now->service.clients == before->service.clients &&
           now->service.leases == before->service.leases &&
           now->service.mapped == before->service.mapped &&
           now->service.staging_bytes == before->service.staging_bytes &&
           now->requests == before->requests && now->store_leases == before->store_leases &&
           now->private_slots == before->private_slots && now->descriptors == before->descriptors &&
           now->mappings == before->mappings;
}

static void print_account(const char *title, const account_t *account)
{
    print_message(
        "%s: clients %u leases %u mapped %u staging %ju requests %ju, store's leases %ju, "
        "private slots %ju, descriptors %u, mappings %u\n",
        title, account->service.clients, account->service.leases, account->service.mapped,
        (uintmax_t)account->service.staging_bytes, (uintmax_t)account->requests,
        (uintmax_t)account->store_leases, (uintmax_t)account->private_slots, account->descriptors,
        account->mappings);
}

/* The store has nothing of the dead left. */
static void check_nothing_is_left(stage_t *stage)
{
    account_t now;
    rest_survivors(stage);
    for (int ms = 0;; ms += 5) {
        now = ask_account(&stage->store);
        if (same_account(&now, &stage->before)) {
            break;
        }
        if (ms >= LIMIT_MS) {
            print_account("before", &stage->before);
            print_account("now", &now);
            fail_msg("the store still has something of a client that is dead");
        }
        usleep(5000);
    }
    wake_survivors();
}

static void stage_open(stage_t *stage, const char *name)
{
    uint64_t ready_ns;
    memset(stage, 0, sizeof *stage);
    stage->random = kv_test_seed();
    snprintf(store_folder, sizeof store_folder, "%s/%s", kv_test_folder(), name);
    snprintf(socket_path, sizeof socket_path, "%s/%s.sock", kv_test_folder(), name);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
    atomic_store(&shared->phase, PHASE_COUNT);
    stage->store = start_store(&ready_ns);
    for (uint32_t i = 0; i < SURVIVORS; i++) {
        char ready;
        stage->survivors[i] = start(be_survivor, i);
        hear(&stage->survivors[i], &ready, 1);
    }
    rest_survivors(stage);
    stage->before = ask_account(&stage->store);
    print_account("at rest", &stage->before);
    assert_int_equal(stage->before.service.clients, SURVIVORS);
    assert_int_equal(stage->before.service.leases + stage->before.requests, 0);
    assert_int_equal(stage->before.store_leases + stage->before.private_slots, 0);
    for (int i = 0; i < SURVIVORS; i++) {
        stage->descriptors[i] = atomic_load(&shared->survivors[i].descriptors);
        stage->mappings[i] = atomic_load(&shared->survivors[i].mappings);
    }
    wake_survivors();
}

/* What is on disk in the end is whole. */
static void check_disk(const char *name)
{
    bench_t bench;
    bench_for(&bench, "after");
    snprintf(store_folder, sizeof store_folder, "%s/%s", kv_test_folder(), name);
    bench.params = store_params();
    bench.params.layout = &bench.layout;
    bench_open(&bench);
    check_accounts(&bench);
    assert_int_equal(bench_stats(&bench).damaged_objects, 0);
    bench_end(&bench);
}

static void stage_end(stage_t *stage)
{
    uint64_t contexts = 0, loaded = 0, refused = 0, longest_ns = 0;
    for (int i = 0; i < SURVIVORS; i++) {
        const survivor_t *survivor = &shared->survivors[i];
        assert_alive(&stage->survivors[i]);
        contexts += atomic_load(&survivor->contexts);
        loaded += atomic_load(&survivor->loaded_blocks);
        refused += atomic_load(&survivor->refused);
        longest_ns = atomic_load(&survivor->longest_ns) > longest_ns
                         ? atomic_load(&survivor->longest_ns)
                         : longest_ns;
        kill_now(&stage->survivors[i]);
    }
    kill_now(&stage->store);
    print_message(
        "survivors: %ju contexts, %ju blocks loaded and compared, %ju stores refused, the "
        "longest call %ju ms\n",
        (uintmax_t)contexts, (uintmax_t)loaded, (uintmax_t)refused,
        (uintmax_t)(longest_ns / KV_NS_PER_MS));
    assert_true(contexts > 0 && loaded > 0);
    munmap(shared, sizeof *shared);
}

/* ---- clients die ---- */

/* One that ends itself at that place. */
static void kill_at(stage_t *stage, phase_t phase, uint32_t step, uint32_t seed)
{
    atomic_store(&shared->step, step);
    atomic_store(&shared->phase, phase);
    process_t victim = start(be_victim, seed);
    reap_killed(&victim);
    atomic_store(&shared->phase, PHASE_COUNT);
    check_nothing_is_left(stage);
}

/* One that is killed from outside at any instant; every third only comes and goes. */
static void kill_anywhere(stage_t *stage, uint32_t wait_us, uint32_t seed)
{
    process_t victim = start(seed % 3 == 0 ? be_visitor : be_victim, seed);
    usleep(wait_us);
    kill_now(&victim);
    check_nothing_is_left(stage);
}

static void a_dead_client_leaves_nothing(void **state)
{
    (void)state;
    stage_t stage;
    const uint32_t rounds = kv_test_long() ? 6 : 1, anywhere = kv_test_long() ? 120 : 12;
    uint32_t kills = 0;
    stage_open(&stage, "clients");
    for (uint32_t round = 0; round < rounds; round++) {
        for (phase_t phase = 0; phase < PHASE_COUNT; phase++) {
            for (uint32_t i = 0; i < (kv_test_long() ? 3 : 1); i++) {
                const uint32_t step = (uint32_t)(kv_test_random(&stage.random) % STEPS_MAX);
                kill_at(&stage, phase, step, ++kills);
            }
        }
    }
    for (uint32_t i = 0; i < anywhere; i++) {
        kill_anywhere(&stage, (uint32_t)(kv_test_random(&stage.random) % 60000), ++kills);
    }
    assert_int_equal(atomic_load(&shared->reached), (1u << PHASE_COUNT) - 1);
    print_message("%u clients killed, %u of them in a named phase\n", kills, kills - anywhere);
    stage_end(&stage);
}

/* ---- the store dies, or stops ---- */

typedef struct {
    uint32_t count, late;
    uint64_t longest_ns;
} again_t;

/* Until each survivor has stored something that it began to store after that. */
static void wait_attached_again(stage_t *stage, uint64_t since_ns, again_t *again)
{
    for (int i = 0; i < SURVIVORS; i++) {
        while (atomic_load(&shared->survivors[i].stored_ns) < since_ns) {
            assert_alive(&stage->survivors[i]);
            if (kv_clock_now_ns() - since_ns > (uint64_t)LIMIT_MS * KV_NS_PER_MS) {
                fail_msg("survivor %d is not attached again after %d s", i, LIMIT_MS / 1000);
            }
            usleep(1000);
        }
        const uint64_t ns = atomic_load(&shared->survivors[i].stored_ns) - since_ns;
        again->count++;
        again->late += ns > (uint64_t)ATTACHED_AGAIN_MS * KV_NS_PER_MS;
        again->longest_ns = ns > again->longest_ns ? ns : again->longest_ns;
    }
}

static void print_again(const char *what, const again_t *again)
{
    print_message(
        "%s: attached again %u times, the longest after %ju ms, %u after more than %d ms\n", what,
        again->count, (uintmax_t)(again->longest_ns / KV_NS_PER_MS), again->late,
        ATTACHED_AGAIN_MS);
}

/* Nothing of the lives before is left, in the store or in the survivors. */
static void check_all_as_before(stage_t *stage)
{
    check_nothing_is_left(stage);
    for (int i = 0; i < SURVIVORS; i++) {
        assert_int_equal(atomic_load(&shared->survivors[i].descriptors), stage->descriptors[i]);
        assert_int_equal(atomic_load(&shared->survivors[i].mappings), stage->mappings[i]);
    }
}

static void clients_outlive_their_store(void **state)
{
    (void)state;
    stage_t stage;
    again_t again = {0};
    stage_open(&stage, "store");
    const uint32_t kills = kv_test_long() ? 60 : 4;
    for (uint32_t i = 0; i < kills; i++) {
        uint64_t ready_ns;
        usleep((uint32_t)(kv_test_random(&stage.random) % 200000));
        kill_now(&stage.store);
        usleep((uint32_t)(kv_test_random(&stage.random) % 100000));
        stage.store = start_store(&ready_ns);
        wait_attached_again(&stage, ready_ns, &again);
        check_all_as_before(&stage);
    }
    print_again("store killed", &again);
    stage_end(&stage);
}

static void clients_outlive_a_store_that_stops(void **state)
{
    (void)state;
    stage_t stage;
    again_t again = {0};
    stage_open(&stage, "stopped");
    const uint32_t stops = kv_test_long() ? 20 : 2;
    for (uint32_t i = 0; i < stops; i++) {
        const uint32_t stopped_ms = (uint32_t)(kv_test_random(&stage.random) % 2500) + 100;
        usleep((uint32_t)(kv_test_random(&stage.random) % 100000));
        assert_int_equal(kill(stage.store.pid, SIGSTOP), 0);
        usleep(stopped_ms * 1000);
        for (int survivor = 0; survivor < SURVIVORS; survivor++) {
            assert_alive(&stage.survivors[survivor]);
        }
        const uint64_t since_ns = kv_clock_now_ns();
        assert_int_equal(kill(stage.store.pid, SIGCONT), 0);
        wait_attached_again(&stage, since_ns, &again);
        check_all_as_before(&stage);
    }
    print_again("store stopped", &again);
    stage_end(&stage);
}

/* Last: from then on this process has threads, RocksDB's among them, that no copy of it would. */
static void what_is_on_disk_is_whole(void **state)
{
    (void)state;
    check_disk("clients");
    check_disk("store");
    check_disk("stopped");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dead_client_leaves_nothing),
        cmocka_unit_test(clients_outlive_their_store),
        cmocka_unit_test(clients_outlive_a_store_that_stops),
        cmocka_unit_test(what_is_on_disk_is_whole),
    };
    kv_test_folder(); /* this process', before it is copied */
    kv_log_setup("test", KV_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
