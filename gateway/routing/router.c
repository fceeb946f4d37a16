#include "gateway/routing/router.h"

#include "base/check.h"

enum {
    PERCENT = 100,
    HOST_PERCENT = 20,
    DISK_PERCENT = 40,
    REMOTE_PERCENT = 70,
    ALIKE_SHARE = 8,   /* an eighth of the prompt */
    ALIKE_TOKENS = 64, /* at least: short prompts are not worth a difference */
};

/* What a run's token costs, by tier. */
static const uint32_t TIER_PERCENT[KV_ROUTER_TIERS] = {0, HOST_PERCENT, DISK_PERCENT};

/* What is known of the nodes together. */
typedef struct {
    const kv_router_request_t *request;
    const kv_router_node_t *nodes;
    kv_router_score_t *scores;
    size_t count;
    uint32_t fit_count, longest_tokens;
    uint64_t load, waiting_tokens, taken_tokens; /* of all fit ones */
    uint64_t least_tokens;                       /* cost */
    uint32_t bound;
    int holder, cheapest;
} field_t;

/* ---- hashing ---- */

static uint64_t mix(uint64_t bits)
{
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
}

uint64_t kv_router_hash(const void *bytes, size_t count)
{
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a, mixed */
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3;
    }
    return mix(hash);
}

/* ---- scores ---- */

uint32_t kv_router_load(const kv_router_node_t *node)
{
    return node->outstanding > node->reported ? node->outstanding : node->reported;
}

static uint32_t less(uint32_t left, uint32_t right)
{
    return left < right ? left : right;
}

static uint32_t held_tokens(const kv_router_node_t *node)
{
    return node->run_tokens[0] + node->run_tokens[1] + node->run_tokens[2];
}

static uint32_t run_of(const kv_router_node_t *node, uint32_t prompt_tokens)
{
    uint32_t held = held_tokens(node);
    return less(held > node->coming_tokens ? held : node->coming_tokens, prompt_tokens);
}

/* What is coming lies in device memory when it is there. */
static uint64_t bring(const field_t *field, const kv_router_node_t *node, uint32_t run_tokens)
{
    uint32_t prompt_tokens = field->request->prompt_tokens;
    uint32_t longest = field->longest_tokens;
    uint64_t hundredths = 0;
    uint32_t held = 0;
    for (int tier = 0; tier < KV_ROUTER_TIERS; tier++) {
        uint32_t tokens = less(node->run_tokens[tier], prompt_tokens - held);
        hundredths += (uint64_t)tokens * TIER_PERCENT[tier];
        held += tokens;
    }
    hundredths += (uint64_t)(longest - run_tokens) * REMOTE_PERCENT;
    hundredths += (uint64_t)(prompt_tokens - longest) * PERCENT;
    return (hundredths + PERCENT - 1) / PERCENT;
}

static bool is_fit(const kv_router_node_t *node)
{
    return !node->unfit && !node->tried;
}

static uint64_t bound_of(uint64_t load, uint64_t count)
{
    uint64_t share = KV_ROUTER_BOUND_PERCENT * (load + 1);
    uint64_t bound = (share + PERCENT * count - 1) / (PERCENT * count);
    return bound > KV_ROUTER_BOUND_LEAST ? bound : KV_ROUTER_BOUND_LEAST;
}

/* No place of its own left: a request more would be above the bound, or much waits. */
static bool is_full(const field_t *field, const kv_router_node_t *node)
{
    uint64_t average_percent = KV_ROUTER_BOUND_PERCENT * field->waiting_tokens / field->fit_count;
    return kv_router_load(node) + (uint64_t)1 > field->bound ||
           node->waiting_tokens > average_percent / PERCENT + field->request->prompt_tokens;
}

static void survey(field_t *field)
{
    for (size_t i = 0; i < field->count; i++) {
        const kv_router_node_t *node = &field->nodes[i];
        field->scores[i] = (kv_router_score_t){.fit = is_fit(node)};
        if (!is_fit(node)) {
            continue;
        }
        uint32_t run_tokens = run_of(node, field->request->prompt_tokens);
        field->scores[i].run_tokens = run_tokens;
        field->fit_count++;
        field->load += kv_router_load(node);
        field->waiting_tokens += node->waiting_tokens;
        field->taken_tokens += node->taken_tokens;
        if (run_tokens > field->longest_tokens) {
            field->longest_tokens = run_tokens;
            field->holder = (int)i;
        }
    }
}

static void score(field_t *field)
{
    field->bound = (uint32_t)bound_of(field->load, field->fit_count);
    for (size_t i = 0; i < field->count; i++) {
        kv_router_score_t *at = &field->scores[i];
        if (!at->fit) {
            continue;
        }
        at->bring_tokens = bring(field, &field->nodes[i], at->run_tokens);
        at->cost_tokens = at->bring_tokens + field->nodes[i].waiting_tokens;
        at->full = is_full(field, &field->nodes[i]);
        if (field->cheapest < 0 || at->cost_tokens < field->least_tokens) {
            field->cheapest = (int)i;
            field->least_tokens = at->cost_tokens;
        }
    }
}

/* ---- who may have it ---- */

static uint64_t alike_tokens(const field_t *field)
{
    uint32_t share = field->request->prompt_tokens / ALIKE_SHARE;
    return share > ALIKE_TOKENS ? share : ALIKE_TOKENS;
}

static bool is_cold(const field_t *field)
{
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < field->count; i++) {
        if (field->scores[i].fit && field->scores[i].bring_tokens < least) {
            least = field->scores[i].bring_tokens;
        }
    }
    return field->request->prompt_tokens - least < ALIKE_TOKENS;
}

/* A copy of what it goes on from pays by now. */
static bool is_branch(const field_t *field)
{
    return field->holder >= 0 && field->request->branched_tokens > 0 &&
           field->request->branched_tokens >= field->longest_tokens;
}

/* It has taken in no more than its share lately. */
static bool has_room(const field_t *field, const kv_router_node_t *node)
{
    return node->taken_tokens * PERCENT * field->fit_count <=
           field->taken_tokens * KV_ROUTER_BOUND_PERCENT;
}

/* Nodes where nobody came for what is held, and which have room: where there is one, and nodes are
 * enough, a cold prompt disturbs no other. */
static bool any_undisturbed(const field_t *field)
{
    bool any = false;
    for (size_t i = 0; i < field->count; i++) {
        any |= field->scores[i].fit && !field->scores[i].full && field->nodes[i].warm == 0;
    }
    return any && field->fit_count >= KV_ROUTER_ENOUGH_NODES;
}

/* As much of the prompt is there as at the cheapest one, and about as little waits. */
static bool is_alike(const field_t *field, size_t number)
{
    const kv_router_score_t *at = &field->scores[number];
    uint64_t bring_tokens = field->scores[field->cheapest].bring_tokens;
    return at->bring_tokens <= bring_tokens + ALIKE_TOKENS &&
           at->cost_tokens - field->least_tokens < alike_tokens(field);
}

/* Of a branch the equals that have room; where none has, whoever has. */
static bool mark_branch(const field_t *field, bool *equals)
{
    bool any = false, room[KV_ROUTER_NODES_MAX];
    for (size_t i = 0; i < field->count; i++) {
        room[i] = field->scores[i].fit && has_room(field, &field->nodes[i]);
        any |= room[i] && equals[i];
    }
    for (size_t i = 0; i < field->count; i++) {
        equals[i] = room[i] && (equals[i] || !any);
    }
    return !any;
}

/* cold: any node, but for those that would be disturbed. spread_out: a branch, to be copied. */
static size_t mark_equals(const field_t *field, bool cold, bool *equals_out, bool *spread_out)
{
    bool spared = cold && any_undisturbed(field);
    size_t count = 0;
    for (size_t i = 0; i < field->count; i++) {
        equals_out[i] = field->scores[i].fit && (cold || is_alike(field, i)) &&
                        !(spared && field->nodes[i].warm > 0);
    }
    *spread_out = !cold && is_branch(field) && mark_branch(field, equals_out);
    for (size_t i = 0; i < field->count; i++) {
        count += equals_out[i];
    }
    return count;
}

/* The rendezvous order of the affinity: the first node of it, and the first that is not full. */
static void find_places(const field_t *field, const bool *equals, int *first_out, int *free_out)
{
    uint64_t first_weight = 0, free_weight = 0;
    *first_out = *free_out = -1;
    for (size_t i = 0; i < field->count; i++) {
        if (!equals[i]) {
            continue;
        }
        uint64_t weight = mix(field->request->affinity ^ field->nodes[i].name_hash);
        if (*first_out < 0 || weight > first_weight) {
            *first_out = (int)i;
            first_weight = weight;
        }
        if (!field->scores[i].full && (*free_out < 0 || weight > free_weight)) {
            *free_out = (int)i;
            free_weight = weight;
        }
    }
}

/* Of one node alone: why it costs least. */
static kv_choice_reason_t reason_of_cheapest(const field_t *field, bool cold)
{
    const kv_router_score_t *chosen = &field->scores[field->cheapest];
    uint32_t behind_tokens = field->longest_tokens - chosen->run_tokens;
    if (!cold && behind_tokens >= alike_tokens(field)) {
        return KV_CHOICE_OVERLOADED;
    }
    return cold || chosen->run_tokens == 0 ? KV_CHOICE_LEAST : KV_CHOICE_PREFIX;
}

static void choose_by_prefix(const field_t *field, kv_router_choice_t *choice)
{
    bool cold = is_cold(field), spread, equals[KV_ROUTER_NODES_MAX];
    size_t equal_count = mark_equals(field, cold, equals, &spread);
    int first, place;
    find_places(field, equals, &first, &place);
    choice->equal_count = (uint32_t)equal_count;
    choice->node = place;
    if (place < 0 || (equals[field->cheapest] && equal_count == 1 && !cold)) {
        choice->node = field->cheapest;
        choice->reason = equal_count == 1 ? reason_of_cheapest(field, cold) : KV_CHOICE_LEAST;
    } else if (spread) {
        choice->reason = KV_CHOICE_SPREAD;
    } else if (place != first) {
        choice->reason = KV_CHOICE_BOUND;
    } else {
        choice->reason = field->request->has_session ? KV_CHOICE_SESSION : KV_CHOICE_HASH;
    }
}

/* ---- to compare ---- */

static int nth_fit(const field_t *field, uint64_t number)
{
    uint64_t left = number % field->fit_count;
    size_t i = 0;
    while (!field->scores[i].fit || left-- > 0) {
        i++;
    }
    return (int)i;
}

kv_router_choice_t kv_router_choose(const kv_router_request_t *request,
    const kv_router_node_t *nodes, size_t count, kv_router_score_t *scores_out)
{
    KV_CHECK(count <= KV_ROUTER_NODES_MAX);
    field_t field = {.request = request,
        .nodes = nodes,
        .scores = scores_out,
        .count = count,
        .holder = -1,
        .cheapest = -1};
    survey(&field);
    kv_router_choice_t choice = {.node = -1, .holder = field.holder};
    if (field.fit_count == 0) {
        return choice;
    }
    score(&field);
    choice.bound = field.bound;
    if (field.fit_count == 1) {
        choice.node = field.cheapest;
        choice.reason = KV_CHOICE_ONLY;
    } else if (request->routing == KV_ROUTING_PREFIX) {
        choose_by_prefix(&field, &choice);
    } else if (request->routing == KV_ROUTING_ROUND_ROBIN) {
        choice.node = nth_fit(&field, request->turn);
        choice.reason = KV_CHOICE_ROUND_ROBIN;
    } else {
        choice.node = nth_fit(&field, mix(request->turn));
        choice.reason = KV_CHOICE_RANDOM;
    }
    return choice;
}

const char *kv_choice_name(kv_choice_reason_t reason)
{
    static const char *const NAMES[] = {
        [KV_CHOICE_NONE] = "none",
        [KV_CHOICE_ONLY] = "only",
        [KV_CHOICE_PREFIX] = "prefix",
        [KV_CHOICE_OVERLOADED] = "overloaded",
        [KV_CHOICE_SESSION] = "session",
        [KV_CHOICE_HASH] = "hash",
        [KV_CHOICE_BOUND] = "bound",
        [KV_CHOICE_SPREAD] = "spread",
        [KV_CHOICE_LEAST] = "least",
        [KV_CHOICE_ROUND_ROBIN] = "round-robin",
        [KV_CHOICE_RANDOM] = "random",
    };
    return NAMES[reason];
}
