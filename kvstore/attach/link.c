/* The connection to the service: its lives, requests and their answers.
 *
 *   down --(retry_ms)--> attaching --Attached--> up
 *     ^                      |                    |
 *     +----------------------+--------------------+  ended, refused, or silent for lost_ms while
 *                                                    something is asked
 *
 * A service that has not answered a match in time is *silent* until it says anything: requests are
 * not waited for meanwhile. Where something is asked and nothing comes it is asked for its figures
 * too, which it can always tell: what takes long is told apart from what is dead. */
#include "kvstore/attach/attached_internal.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/local_socket.h"
#include "base/log.h"
#include "kvstore/attach/told.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

_Static_assert(
    (int)KV_CHANNEL_FDS_MAX >= (int)KVIST_GROUPS_MAX, "an answer brings an arena of each group");

enum { PING_MS = 500, RECEIVES_AT_ONCE = 8 };
#define NO_REQUEST UINT32_MAX

/* ---- lives ---- */

void kv_life_hold(kv_life_t *life)
{
    life->references++;
}

void kv_life_release(kv_life_t *life)
{
    if (--life->references > 0) {
        return;
    }
    for (int i = 0; i < KVIST_GROUPS_MAX; i++) {
        kv_arena_close(&life->arenas[i]);
    }
    kv_region_unmap(&life->staging);
    if (life->staging_fd >= 0) {
        close(life->staging_fd);
    }
    free(life->leases_free);
    free(life);
}

bool kv_life_holds(const kv_attached_t *attached, const kv_life_t *life)
{
    if (!life->up) {
        return false;
    }
    /* The service closes the socket before it lets go of anything. */
    struct pollfd gone = {.fd = attached->link.channel.fd, .events = POLLRDHUP};
    return poll(&gone, 1, 0) == 0;
}

uint32_t kv_life_take_lease(kv_life_t *life)
{
    return life->leases_free_count > 0 ? life->leases_free[--life->leases_free_count] : UINT32_MAX;
}

void kv_life_give_lease(kv_life_t *life, uint32_t number)
{
    life->leases_free[life->leases_free_count++] = number;
}

/* Staging memory whose size nobody can change, cut into windows. */
static kv_status_t make_staging(const kv_attached_t *attached, kv_life_t *life, kv_error_t *error)
{
    size_t least = 0;
    for (uint32_t i = 0; i < attached->inner->group_count; i++) {
        const kv_layout_t *layout = &attached->inner->groups[i].layout;
        size_t bytes = layout->object_bytes + 8 + layout->unit_count * sizeof(uint64_t);
        least = bytes > least ? bytes : least;
    }
    least = least > KV_ATTACH_WINDOW_BYTES ? least : KV_ATTACH_WINDOW_BYTES;
    life->window_bytes = kv_round_up(least, 4096);
    size_t count = KV_ATTACH_STAGING_BYTES / life->window_bytes;
    count = count < KV_ATTACH_WINDOWS_MIN ? KV_ATTACH_WINDOWS_MIN : count;
    life->window_count = (uint32_t)(count < KV_ATTACH_WINDOWS_MAX ? count : KV_ATTACH_WINDOWS_MAX);
    life->staging_bytes = life->window_count * life->window_bytes;
    life->staging_fd = memfd_create("kvist-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (life->staging_fd < 0 || ftruncate(life->staging_fd, (off_t)life->staging_bytes) != 0 ||
        fcntl(life->staging_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return kv_fail_errno(
            error, errno, "no %ju bytes of staging memory", (uintmax_t)life->staging_bytes);
    }
    while (life->windows_free_count < life->window_count) {
        life->windows_free[life->windows_free_count] =
            life->window_count - 1 - life->windows_free_count;
        life->windows_free_count++;
    }
    return kv_region_map_file(life->staging_fd, life->staging_bytes, true, &life->staging, error);
}

/* ---- requests ---- */

static void reset_requests(kv_link_t *link)
{
    for (uint32_t i = 0; i < KV_ATTACH_REQUESTS_MAX; i++) {
        link->requests[i] =
            (kv_attach_request_t){.next_free = i + 1 < KV_ATTACH_REQUESTS_MAX ? i + 1 : NO_REQUEST};
    }
    link->first_free = 0;
    link->request_count = 0;
}

static kv_attach_request_t *add_request(kv_link_t *link, kv_answered_t answered, void *owner)
{
    uint32_t index = link->first_free;
    if (index == NO_REQUEST) {
        return NULL;
    }
    kv_attach_request_t *request = &link->requests[index];
    link->first_free = request->next_free;
    link->request_count++;
    *request = (kv_attach_request_t){
        .id = ++link->serial * KV_ATTACH_REQUESTS_MAX + index,
        .answered = answered,
        .owner = owner,
    };
    return request;
}

static kv_attach_request_t *find_request(kv_link_t *link, uint64_t id)
{
    kv_attach_request_t *request = &link->requests[id % KV_ATTACH_REQUESTS_MAX];
    return id != 0 && request->id == id ? request : NULL;
}

static kv_attach_request_t take_request(kv_link_t *link, kv_attach_request_t *request)
{
    kv_attach_request_t taken = *request;
    request->id = 0;
    request->next_free = link->first_free;
    link->first_free = (uint32_t)(request - link->requests);
    link->request_count--;
    return taken;
}

/* ---- the end of a life ---- */

static void free_backlog(kv_link_t *link)
{
    while (link->first_backlog != NULL) {
        kv_backlog_t *item = link->first_backlog;
        link->first_backlog = item->next;
        kvist__store__answer__free_unpacked(item->answer, NULL);
        free(item);
    }
    link->last_backlog = NULL;
}

static void end_life(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    kv_life_t *life = attached->life;
    if (link->channel.fd >= 0) { /* a child of this process may have it open too */
        epoll_ctl(attached->epoll_fd, EPOLL_CTL_DEL, link->channel.fd, NULL);
        shutdown(link->channel.fd, SHUT_RDWR);
    }
    kv_channel_clear(&link->channel);
    free_backlog(link);
    link->state = KV_LINK_DOWN;
    link->silent = link->pinged = link->wants_out = false;
    attached->telling = false;
    if (life != NULL) {
        life->up = false;
        attached->life = NULL;
    }
    for (uint32_t i = 0; i < KV_ATTACH_REQUESTS_MAX; i++) {
        if (link->requests[i].id != 0) {
            kv_attach_request_t request = take_request(link, &link->requests[i]);
            request.answered(request.owner, NULL);
        }
    }
    kv_windows_advance(attached); /* who waits for one learns that there are none */
    if (life != NULL) {
        kv_life_release(life);
    }
}

void kv_link_lose(kv_attached_t *attached, kv_status_t status, const char *format, ...)
{
    kv_link_t *link = &attached->link;
    char text[KV_ERROR_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    kv_fail(&link->error, status, "attach: %s: %s", attached->path, text);
    if (!link->warned) { /* once for each time without it */
        kv_log_warn("store", "%s: going on without it", link->error.text);
        link->warned = true;
    }
    end_life(attached);
    link->retry_ns =
        kv_attached_now_ns(attached) + (uint64_t)attached->bounds.retry_ms * KV_NS_PER_MS;
    kv_attached_set_timer(attached, link->retry_ns);
}

void kv_link_close(kv_attached_t *attached)
{
    end_life(attached);
}

/* ---- out ---- */

/* true: the connection is still there. */
static bool send_out(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    kv_status_t status = kv_channel_send(&link->channel);
    if (status == KV_PEER_LOST) {
        return false; /* what came before it is read first */
    }
    bool wants_out = status == KV_BUSY;
    if (wants_out != link->wants_out) {
        struct epoll_event event = {
            .events = EPOLLIN | (wants_out ? (uint32_t)EPOLLOUT : 0), .data.ptr = link};
        KV_CHECK(epoll_ctl(attached->epoll_fd, EPOLL_CTL_MOD, link->channel.fd, &event) == 0);
        link->wants_out = wants_out;
    }
    return true;
}

static kv_status_t queue_request(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind,
    void *body, const int *fds, uint32_t fd_count)
{
    Kvist__Store__Request request = KVIST__STORE__REQUEST__INIT;
    kv_error_t error;
    request.body_case = kind;
    request.attach = body; /* every member of the union is a pointer to its message */
    kv_status_t status =
        kv_channel_queue(&attached->link.channel, &request.base, fds, fd_count, &error);
    if (status != KV_OK) {
        kv_log_warn("store", "attach: %s", error.text);
    }
    return status;
}

static kv_status_t send_request(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind,
    void *body, const int *fds, uint32_t fd_count)
{
    kv_status_t status = queue_request(attached, kind, body, fds, fd_count);
    if (status == KV_OK) {
        send_out(attached);
    }
    return status;
}

bool kv_link_has_room(const kv_attached_t *attached)
{
    return attached->link.request_count < KV_ATTACH_REQUESTS_MAX - KV_ATTACH_REQUESTS_KEPT;
}

bool kv_link_usable(const kv_attached_t *attached)
{
    return attached->link.state == KV_LINK_UP && !attached->link.silent;
}

kv_status_t kv_link_ask(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind, void *body,
    uint64_t *id, kv_answered_t answered, void *owner)
{
    kv_link_t *link = &attached->link;
    if (link->state != KV_LINK_UP) {
        return KV_PEER_LOST;
    }
    kv_attach_request_t *request = add_request(link, answered, owner);
    if (request == NULL) {
        return KV_BUSY;
    }
    if (link->request_count == 1) {
        link->asked_ns = kv_attached_now_ns(attached);
        kv_attached_set_timer(attached, link->asked_ns + (uint64_t)PING_MS * KV_NS_PER_MS);
    }
    *id = request->id;
    kv_status_t status = send_request(attached, kind, body, NULL, 0);
    if (status != KV_OK) {
        take_request(link, request);
    }
    return status;
}

void kv_link_say(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind, void *body)
{
    if (attached->link.state == KV_LINK_UP) {
        queue_request(attached, kind, body, NULL, 0);
        kv_attached_kick(attached);
    }
}

void kv_link_send(kv_attached_t *attached)
{
    if (attached->link.state != KV_LINK_DOWN && attached->link.channel.out_bytes > 0) {
        send_out(attached);
    }
}

/* ---- in ---- */

static void attach_ended(kv_attached_t *attached, const Kvist__Store__Attached *said);

static uint64_t id_of(const Kvist__Store__Answer *answer)
{
    switch (answer->body_case) {
    case KVIST__STORE__ANSWER__BODY_MATCHED:
        return answer->matched->id;
    case KVIST__STORE__ANSWER__BODY_LOADED:
        return answer->loaded->id;
    case KVIST__STORE__ANSWER__BODY_DONE:
        return answer->done->id;
    case KVIST__STORE__ANSWER__BODY_VERIFIED:
        return answer->verified->id;
    case KVIST__STORE__ANSWER__BODY_FOUND:
        return answer->found->id;
    case KVIST__STORE__ANSWER__BODY_LISTED:
        return answer->listed->id;
    case KVIST__STORE__ANSWER__BODY_STATS:
        return answer->stats->id;
    case KVIST__STORE__ANSWER__BODY_KNOWN:
        return answer->known->id;
    default:
        return 0;
    }
}

static void take_answer(kv_attached_t *attached, const Kvist__Store__Answer *answer)
{
    kv_link_t *link = &attached->link;
    kv_attach_request_t *request = find_request(link, id_of(answer));
    if (answer->body_case == KVIST__STORE__ANSWER__BODY_ENDED) {
        kv_link_lose(attached,
            answer->ended->code <= KV_FATAL ? (kv_status_t)answer->ended->code : KV_FATAL, "%s",
            answer->ended->text);
    } else if (answer->body_case == KVIST__STORE__ANSWER__BODY_ATTACHED) {
        attach_ended(attached, answer->attached);
    } else if (request != NULL) {
        bool goes_on =
            answer->body_case == KVIST__STORE__ANSWER__BODY_VERIFIED && !answer->verified->ended;
        kv_attach_request_t of = goes_on ? *request : take_request(link, request);
        of.answered(of.owner, answer);
    }
    /* else: of a kind that this side does not know, or nobody's any more */
}

/* The next answer that has come, released by the caller; NULL: none has. */
static Kvist__Store__Answer *next_answer(kv_attached_t *attached)
{
    const uint8_t *message;
    size_t bytes;
    kv_error_t error;
    kv_status_t status = kv_channel_next(&attached->link.channel, &message, &bytes, &error);
    Kvist__Store__Answer *answer =
        status == KV_OK ? kvist__store__answer__unpack(NULL, bytes, message) : NULL;
    if (status == KV_OK && answer == NULL) {
        status = kv_fail(&error, KV_INVALID, "an answer is no kvist.store.Answer");
    }
    if (status != KV_OK && status != KV_MISSING) {
        kv_link_lose(attached, status, "%s", error.text);
    }
    return answer;
}

/* Takes in one portion of what has come; false: nothing has, or the connection has ended. */
static bool receive(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    kv_error_t error;
    kv_status_t status = kv_channel_receive(&link->channel, &error);
    if (status == KV_BUSY) {
        return false;
    }
    if (status != KV_OK) {
        kv_link_lose(attached, status, "%s", error.text);
        return false;
    }
    link->heard_ns = kv_attached_now_ns(attached);
    link->asked_ns = link->heard_ns;
    link->silent = link->pinged = false;
    return true;
}

static void take_backlog(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    while (link->first_backlog != NULL) {
        kv_backlog_t *item = link->first_backlog;
        link->first_backlog = item->next;
        if (link->first_backlog == NULL) {
            link->last_backlog = NULL;
        }
        take_answer(attached, item->answer);
        kvist__store__answer__free_unpacked(item->answer, NULL);
        free(item);
    }
}

static void take_answers(kv_attached_t *attached)
{
    Kvist__Store__Answer *answer;
    take_backlog(attached);
    while (attached->link.state != KV_LINK_DOWN && (answer = next_answer(attached)) != NULL) {
        take_answer(attached, answer);
        kvist__store__answer__free_unpacked(answer, NULL);
    }
}

/* ---- asking and waiting ---- */

/* For a poll; answers stay in their order. */
static void keep_answer(kv_attached_t *attached, Kvist__Store__Answer *answer)
{
    kv_link_t *link = &attached->link;
    kv_backlog_t *item = kv_allocate(sizeof *item);
    *item = (kv_backlog_t){.answer = answer};
    if (link->last_backlog != NULL) {
        link->last_backlog->next = item;
    } else {
        link->first_backlog = item;
    }
    link->last_backlog = item;
    kv_attached_kick(attached);
}

/* Until the socket can be read; false: not in time. Also sends what waits. */
static bool wait_readable(kv_attached_t *attached, uint64_t deadline_ns)
{
    kv_link_t *link = &attached->link;
    for (;;) {
        uint64_t now_ns = kv_clock_now_ns();
        if (now_ns >= deadline_ns) {
            return false;
        }
        struct pollfd wanted = {.fd = link->channel.fd,
            .events = (short)(POLLIN | (link->channel.out_bytes > 0 ? POLLOUT : 0))};
        int count = poll(&wanted, 1, (int)((deadline_ns - now_ns) / KV_NS_PER_MS + 1));
        if (count < 0 && errno != EINTR) {
            return false;
        }
        if (count > 0 && (wanted.revents & POLLOUT) != 0) {
            send_out(attached);
        }
        if (count > 0 && (wanted.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
            return true;
        }
    }
}

/* The answer with this id; NULL: it did not come in time, or the connection has ended. */
static Kvist__Store__Answer *wait_answer(kv_attached_t *attached, uint64_t id, uint64_t deadline_ns)
{
    kv_link_t *link = &attached->link;
    for (;;) {
        Kvist__Store__Answer *answer;
        while (link->state == KV_LINK_UP && (answer = next_answer(attached)) != NULL) {
            if (id_of(answer) == id) {
                return answer;
            }
            keep_answer(attached, answer);
        }
        if (link->state != KV_LINK_UP || !wait_readable(attached, deadline_ns)) {
            return NULL;
        }
        receive(attached);
    }
}

/* Nobody waits for it any more, and nothing is to be done when it comes. */
static void ignore(void *owner, const Kvist__Store__Answer *answer)
{
    (void)owner;
    (void)answer;
}

kv_status_t kv_link_ask_now(kv_attached_t *attached, Kvist__Store__Request__BodyCase kind,
    void *body, uint64_t *id, uint32_t wait_ms, kv_answered_t late, void *owner,
    Kvist__Store__Answer **answer_out)
{
    kv_link_t *link = &attached->link;
    if (!kv_link_usable(attached)) {
        return KV_PEER_LOST;
    }
    kv_status_t status = kv_link_ask(attached, kind, body, id, late != NULL ? late : ignore, owner);
    if (status != KV_OK) {
        return status;
    }
    uint64_t asked = *id;
    Kvist__Store__Answer *answer =
        wait_answer(attached, asked, kv_clock_now_ns() + (uint64_t)wait_ms * KV_NS_PER_MS);
    if (answer != NULL) {
        take_request(link, find_request(link, asked));
        *answer_out = answer;
        return KV_OK;
    }
    if (link->state == KV_LINK_UP) {
        link->silent = true; /* until it says anything */
    }
    return KV_PEER_LOST;
}

/* ---- attaching ---- */

static kv_status_t map_arenas(
    kv_attached_t *attached, const Kvist__Store__Attached *said, kv_error_t *error)
{
    const kvist_store_t *inner = attached->inner;
    if (said->n_arenas != inner->group_count) {
        return kv_fail(error, KV_INVALID, "%zu arenas for %u layer groups", said->n_arenas,
            inner->group_count);
    }
    for (uint32_t i = 0; i < inner->group_count; i++) {
        if (said->arenas[i]->slot_count == 0) {
            continue;
        }
        kv_arena_plan_t plan = {
            .slot_count = said->arenas[i]->slot_count,
            .unit_count = inner->groups[i].layout.unit_count,
            .block_words = inner->block_words,
            .object_bytes = inner->groups[i].layout.object_bytes,
        };
        int fd = kv_channel_take_fd(&attached->link.channel);
        kv_status_t status = fd < 0 ? kv_fail(error, KV_INVALID, "an arena came without memory")
                                    : kv_arena_plan(&plan, error);
        if (status == KV_OK) {
            status = kv_arena_map(&plan, fd, &attached->life->arenas[i], error);
        }
        if (fd >= 0) {
            close(fd);
        }
        if (status != KV_OK) {
            return status;
        }
    }
    return KV_OK;
}

static void attach_ended(kv_attached_t *attached, const Kvist__Store__Attached *said)
{
    kv_link_t *link = &attached->link;
    kv_life_t *life = attached->life;
    kv_error_t error;
    if (link->state != KV_LINK_ATTACHING || said->version < KV_ATTACH_VERSION_MIN ||
        said->version > KV_ATTACH_VERSION || said->instance.len != KV_ATTACH_INSTANCE_BYTES ||
        said->leases_max < 1 || said->leases_max > KV_LEASES_MAX) {
        kv_link_lose(attached, KV_INVALID, "it answers attach with numbers out of bounds");
        return;
    }
    if (map_arenas(attached, said, &error) != KV_OK) {
        kv_link_lose(attached, error.status, "%s", error.text);
        return;
    }
    life->version = said->version;
    memcpy(life->instance, said->instance.data, KV_ATTACH_INSTANCE_BYTES);
    bool has_name = kv_text_is_plain(said->name, '!', sizeof life->store_name - 1);
    snprintf(life->store_name, sizeof life->store_name, "%s", has_name ? said->name : "unnamed");
    close(life->staging_fd);
    life->staging_fd = -1;
    life->leases_max = said->leases_max;
    life->leases_free = kv_allocate_array(life->leases_max, sizeof *life->leases_free);
    while (life->leases_free_count < life->leases_max) {
        life->leases_free[life->leases_free_count] = life->leases_max - 1 - life->leases_free_count;
        life->leases_free_count++;
    }
    life->up = true;
    link->state = KV_LINK_UP;
    link->error = (kv_error_t){0};
    kv_log_info("store", "attached to %s domain %s", attached->path, attached->domain);
    link->warned = false;
    kv_attached_describe_all(attached);
}

static kv_status_t connect_to(const char *path, int *fd_out, kv_error_t *error)
{
    struct sockaddr_un address;
    kv_status_t status = kv_local_address(path, "attach", &address, error);
    if (status != KV_OK) {
        return status;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        int code = errno;
        if (fd >= 0) {
            close(fd);
        }
        return kv_fail(error, KV_PEER_LOST, "no kvist-store serves there: %s", strerror(code));
    }
    *fd_out = fd;
    return KV_OK;
}

static kv_status_t say_attach(kv_attached_t *attached)
{
    Kvist__Store__Attach attach = KVIST__STORE__ATTACH__INIT;
    uint8_t encoded[KV_LAYOUT_ENCODED_BYTES_MAX];
    attach.version = KV_ATTACH_VERSION;
    attach.version_min = KV_ATTACH_VERSION_MIN;
    attach.domain = attached->domain;
    attach.layout.data = encoded;
    attach.layout.len = kv_layout_encode(&attached->layout, encoded);
    attach.name = attached->origin;
    attach.staging_bytes = attached->life->staging_bytes;
    return send_request(
        attached, KVIST__STORE__REQUEST__BODY_ATTACH, &attach, &attached->life->staging_fd, 1);
}

void kv_link_begin(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    kv_error_t error;
    int fd = -1;
    kv_status_t status = connect_to(attached->path, &fd, &error);
    if (status != KV_OK) {
        kv_link_lose(attached, status, "%s", error.text);
        return;
    }
    kv_channel_init(&link->channel, fd, KVIST_GROUPS_MAX);
    reset_requests(link);
    link->state = KV_LINK_ATTACHING;
    link->heard_ns = link->asked_ns = kv_attached_now_ns(attached);
    kv_life_t *life = kv_allocate(sizeof *life);
    *life = (kv_life_t){.references = 1, .staging_fd = -1};
    attached->life = life;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = link};
    status = make_staging(attached, life, &error);
    if (status == KV_OK && epoll_ctl(attached->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        status = kv_fail_errno(&error, errno, "no descriptor can be watched");
    }
    if (status == KV_OK) {
        status = say_attach(attached);
    }
    if (status != KV_OK) {
        kv_link_lose(attached, status, "%s", error.text);
        return;
    }
    kv_attached_set_timer(
        attached, link->asked_ns + (uint64_t)attached->bounds.lost_ms * KV_NS_PER_MS);
}

/* ---- time ---- */

static void note_told(void *owner, const Kvist__Store__Answer *answer)
{
    kv_attached_t *attached = owner;
    if (answer != NULL && answer->body_case == KVIST__STORE__ANSWER__BODY_STATS) {
        kv_told_stats_unpack(answer->stats, &attached->told);
    }
    attached->telling = false;
}

void kv_link_ask_stats(kv_attached_t *attached)
{
    Kvist__Store__GetStats stats = KVIST__STORE__GET_STATS__INIT;
    if (!attached->telling && kv_link_ask(attached, KVIST__STORE__REQUEST__BODY_STATS, &stats,
                                  &stats.id, note_told, attached) == KV_OK) {
        attached->telling = true;
        attached->told_ns = kv_attached_now_ns(attached);
    }
}

/* Something is asked, and nothing has come for a while. */
static void check_silence(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    bool waiting = link->state == KV_LINK_ATTACHING || link->request_count > 0;
    uint64_t lost_ns = (uint64_t)attached->bounds.lost_ms * KV_NS_PER_MS;
    uint64_t ping_ns = (uint64_t)PING_MS * KV_NS_PER_MS;
    if (!waiting) {
        return;
    }
    uint64_t silent_ns = kv_attached_now_ns(attached) - link->asked_ns;
    if (silent_ns >= lost_ns) {
        kv_link_lose(
            attached, KV_PEER_LOST, "it has said nothing for %u ms", attached->bounds.lost_ms);
        return;
    }
    if (link->state == KV_LINK_UP && silent_ns >= ping_ns && !link->pinged) {
        link->pinged = true;
        kv_link_ask_stats(attached);
    }
    uint64_t due_ns = link->asked_ns + (link->pinged || ping_ns > lost_ns ? lost_ns : ping_ns);
    kv_attached_set_timer(attached, due_ns);
}

void kv_link_poll(kv_attached_t *attached)
{
    kv_link_t *link = &attached->link;
    if (link->state == KV_LINK_DOWN && !attached->closing) {
        if (kv_attached_now_ns(attached) >= link->retry_ns) {
            kv_link_begin(attached);
        } else {
            kv_attached_set_timer(attached, link->retry_ns);
        }
    }
    for (int i = 0; i < RECEIVES_AT_ONCE && link->state != KV_LINK_DOWN; i++) {
        bool more = receive(attached);
        take_answers(attached);
        if (!more) {
            break;
        }
    }
    if (link->state != KV_LINK_DOWN) {
        send_out(attached);
        check_silence(attached);
    }
}
