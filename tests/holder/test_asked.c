/* Ask and Told: what is answered, what is refused, and what is asked of a peer in turn. The test
 * stands for the admin server and the peers. */
#include "testing/testing.h"

#include "holder/asked.h"

#include <string.h>

/* Handles that nothing looks into. */
static char peer_memory[3], admin_memory;
static kv_peer_t *const GATEWAY = (kv_peer_t *)&peer_memory[0];
static kv_peer_t *const PREFILL = (kv_peer_t *)&peer_memory[1];
static kv_peer_t *const OLD = (kv_peer_t *)&peer_memory[2];
static kv_admin_t *const ADMIN = (kv_admin_t *)&admin_memory;

static kv_asked_t asked;
static kv_status_t send_status;

/* What was said last, and how often since the last look. */
static struct {
    kv_peer_t *to;
    Kvist__Wire__Envelope__BodyCase what;
    uint64_t id;
    uint32_t code, count, admin_calls;
    char name[32], node[32];
    Kvist__Admin__Request__BodyCase kind;
} said;

kv_status_t kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (send_status != KV_OK) {
        return send_status;
    }
    said.to = peer;
    said.what = message->body_case;
    said.count++;
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_TOLD) {
        const Kvist__Admin__Reply *reply = message->told->reply;
        bool has_status = reply->body_case == KVIST__ADMIN__REPLY__BODY_STATUS;
        said.id = message->told->id;
        said.code = reply->code;
        assert_int_equal(reply->error[0] == '\0', reply->code == KV_OK);
        snprintf(said.name, sizeof said.name, "%s", has_status ? reply->status->name : "");
    } else {
        said.id = message->ask->id;
        said.kind = message->ask->request->body_case;
        snprintf(said.node, sizeof said.node, "%s", message->ask->node);
    }
    return KV_OK;
}

kv_peer_t *kv_peers_find(kv_peers_t *peers, const char *name)
{
    (void)peers;
    return strcmp(name, "prefill-0") == 0 ? PREFILL : strcmp(name, "old-0") == 0 ? OLD : NULL;
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    return peer == OLD ? 2 : 3;
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    (void)peer;
    return "gateway";
}

void kv_admin_answer(kv_admin_t *admin, const Kvist__Admin__Request *request,
    void (*told)(void *context, const Kvist__Admin__Reply *reply), void *context)
{
    assert_ptr_equal(admin, ADMIN);
    said.kind = request->body_case;
    said.admin_calls++;
    Kvist__Admin__Status status = KVIST__ADMIN__STATUS__INIT;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    status.name = (char *)"this-one";
    reply.body_case = KVIST__ADMIN__REPLY__BODY_STATUS;
    reply.status = &status;
    told(context, &reply);
}

static void ask(
    uint64_t id, const char *node, Kvist__Admin__Request__BodyCase kind, kv_admin_t *admin)
{
    Kvist__Admin__StatusRequest body = KVIST__ADMIN__STATUS_REQUEST__INIT;
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    Kvist__Wire__Ask message = KVIST__WIRE__ASK__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    request.body_case = kind;
    request.status = &body;
    message.id = id;
    message.node = (char *)node;
    message.request = kind != KVIST__ADMIN__REQUEST__BODY__NOT_SET ? &request : NULL;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_ASK;
    envelope.ask = &message;
    memset(&said, 0, sizeof said);
    assert_true(kv_asked_message(&asked, admin, NULL, GATEWAY, &envelope));
}

static void ask_status(uint64_t id, const char *node)
{
    ask(id, node, KVIST__ADMIN__REQUEST__BODY_STATUS, ADMIN);
}

static void tell(kv_peer_t *peer, uint64_t id, bool has_reply)
{
    Kvist__Admin__Status status = KVIST__ADMIN__STATUS__INIT;
    Kvist__Admin__Reply reply = KVIST__ADMIN__REPLY__INIT;
    Kvist__Wire__Told message = KVIST__WIRE__TOLD__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    status.name = (char *)"prefill-0";
    reply.body_case = KVIST__ADMIN__REPLY__BODY_STATUS;
    reply.status = &status;
    message.id = id;
    message.reply = has_reply ? &reply : NULL;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOLD;
    envelope.told = &message;
    memset(&said, 0, sizeof said);
    assert_true(kv_asked_message(&asked, ADMIN, NULL, peer, &envelope));
}

static void expect_told(uint64_t id, kv_status_t code)
{
    assert_int_equal(said.count, 1);
    assert_ptr_equal(said.to, GATEWAY);
    assert_int_equal(said.what, KVIST__WIRE__ENVELOPE__BODY_TOLD);
    assert_true(said.id == id);
    assert_int_equal(said.code, code);
}

static int reset(void **state)
{
    (void)state;
    memset(&asked, 0, sizeof asked);
    send_status = KV_OK;
    return 0;
}

/* ---- tests ---- */

static void what_reads_is_answered(void **state)
{
    (void)state;
    ask_status(7, "");
    expect_told(7, KV_OK);
    assert_string_equal(said.name, "this-one");
    ask(8, "", KVIST__ADMIN__REQUEST__BODY_LIST, ADMIN);
    expect_told(8, KV_OK);
    assert_int_equal(said.kind, KVIST__ADMIN__REQUEST__BODY_LIST);
    ask(9, "", KVIST__ADMIN__REQUEST__BODY_STATUS, NULL); /* no admin socket yet */
    expect_told(9, KV_BUSY);
}

static void what_changes_something_is_not(void **state)
{
    (void)state;
    for (int kind = KVIST__ADMIN__REQUEST__BODY__NOT_SET;
         kind <= KVIST__ADMIN__REQUEST__BODY_EXPLAIN; kind++) {
        if (kind == KVIST__ADMIN__REQUEST__BODY_STATUS ||
            kind == KVIST__ADMIN__REQUEST__BODY_LIST) {
            continue;
        }
        ask(1, "", (Kvist__Admin__Request__BodyCase)kind, ADMIN);
        expect_told(1, KV_INVALID);
        assert_int_equal(said.admin_calls, 0);
        ask(2, "prefill-0", (Kvist__Admin__Request__BodyCase)kind, ADMIN);
        expect_told(2, KV_INVALID); /* nothing goes on to the peer either */
    }
}

static void a_peer_is_asked_in_turn(void **state)
{
    (void)state;
    ask_status(7, "prefill-0");
    assert_int_equal(said.admin_calls, 0);
    assert_ptr_equal(said.to, PREFILL);
    assert_int_equal(said.what, KVIST__WIRE__ENVELOPE__BODY_ASK);
    assert_string_equal(said.node, ""); /* it goes no further */
    uint64_t id = said.id;
    tell(GATEWAY, id, true); /* from somebody else */
    assert_int_equal(said.count, 0);
    tell(PREFILL, id + 1, true); /* to nothing that was asked */
    assert_int_equal(said.count, 0);
    tell(PREFILL, id, true);
    expect_told(7, KV_OK);
    assert_string_equal(said.name, "prefill-0");
    tell(PREFILL, id, true); /* once more */
    assert_int_equal(said.count, 0);
    ask_status(8, "prefill-0");
    tell(PREFILL, said.id, false);
    expect_told(8, KV_INVALID);
}

static void a_peer_that_cannot_be_asked(void **state)
{
    (void)state;
    ask_status(1, "nobody");
    expect_told(1, KV_MISSING);
    ask_status(2, "old-0");
    expect_told(2, KV_REFUSED);
    for (uint64_t i = 0; i < KV_ASKED_MAX; i++) {
        ask_status(10 + i, "prefill-0");
        assert_ptr_equal(said.to, PREFILL);
    }
    ask_status(3, "prefill-0");
    expect_told(3, KV_BUSY);
    send_status = KV_BUSY; /* the gateway hears nothing, and asks again */
    ask_status(4, "");
    assert_int_equal(said.count, 0);
}

static void peers_go(void **state)
{
    (void)state;
    ask_status(7, "prefill-0");
    memset(&said, 0, sizeof said);
    kv_asked_peer_down(&asked, PREFILL);
    expect_told(7, KV_PEER_LOST);
    memset(&said, 0, sizeof said);
    kv_asked_peer_down(&asked, PREFILL);
    assert_int_equal(said.count, 0);
    ask_status(8, "prefill-0");
    uint64_t id = said.id;
    kv_asked_peer_down(&asked, GATEWAY);
    tell(PREFILL, id, true);
    assert_int_equal(said.count, 0);
}

static void other_messages_are_not_its_own(void **state)
{
    (void)state;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    assert_false(kv_asked_message(&asked, ADMIN, NULL, GATEWAY, &envelope));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_reads_is_answered, reset),
        cmocka_unit_test_setup(what_changes_something_is_not, reset),
        cmocka_unit_test_setup(a_peer_is_asked_in_turn, reset),
        cmocka_unit_test_setup(a_peer_that_cannot_be_asked, reset),
        cmocka_unit_test_setup(peers_go, reset),
        cmocka_unit_test_setup(other_messages_are_not_its_own, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
