/* Offers: what a client is about to store, before any byte of it moves.
 *
 *   begun -> what is stored already is the lease's -> answered
 *                        ^                       \\
 *                        |                        another lease is storing the next block: it waits
 *                        +-- that one has stored some, has given up, or has been still for a while
 *
 * So two clients that compute the same context do not both copy it. */
#include "kvstore/service/service_internal.h"

#include "base/clock.h"
#include "kvstore/lease/lease_internal.h"

#include <stdlib.h>
#include <string.h>

struct kv_offer {
    kv_service_call_t *call;
    kv_service_lease_t *lease; /* NULL: gone */
    kv_domain_t *domain;
    kvist_put_t put; /* what is left of it */
    uint32_t *tokens;
    kvist_key_t *extras;
    char arithmetic[KV_ARITHMETIC_BYTES];
    uint32_t taken;
    kv_offer_t *next; /* while it waits */
};

/* ---- who is storing ---- */

static void stop_storing(kv_domain_t *domain, kv_service_lease_t *lease)
{
    kv_service_lease_t **link = &domain->first_storing;
    if (lease->storing_until == 0) {
        return;
    }
    while (*link != lease) {
        link = &(*link)->next_storing;
    }
    *link = lease->next_storing;
    lease->storing_until = 0;
}

static void begin_storing(kv_domain_t *domain, kv_service_lease_t *lease, uint32_t until)
{
    if (lease->storing_until == 0) {
        lease->next_storing = domain->first_storing;
        domain->first_storing = lease;
    }
    lease->storing_until = until;
    lease->progress_ns = kv_clock_now_ns();
}

/* Whether another lease is storing the block that this one would store next. */
static bool is_being_stored(const kv_domain_t *domain, const kv_service_lease_t *lease)
{
    uint64_t now_ns = kv_clock_now_ns();
    uint64_t still_ns = (uint64_t)domain->service->limits.still_ms * KV_NS_PER_MS;
    for (const kv_service_lease_t *other = domain->first_storing; other != NULL;
         other = other->next_storing) {
        if (other != lease && other->lease->announced && lease->lease->announced &&
            kv_key_equal(&other->lease->next_key, &lease->lease->next_key) &&
            now_ns - other->progress_ns < still_ns) {
            return true;
        }
    }
    return false;
}

/* ---- an offer's way ---- */

static void answer(kv_offer_t *offer, kv_status_t status)
{
    uint64_t id;
    kv_service_conn_t *client = kv_conn_end_call(offer->call, &id);
    if (client != NULL) {
        kv_conn_done(client, id, status, offer->taken, "");
    }
    free(offer->tokens);
    free(offer->extras);
    free(offer);
}

static void note_taken(
    void *context, kvist_lease_t *lease, kv_status_t status, uint32_t block_count)
{
    kv_offer_t *offer = context;
    (void)lease;
    offer->taken += block_count;
    offer->put.first_block += block_count;
    offer->put.block_count -= block_count;
    if (offer->put.tokens != NULL) {
        offer->put.tokens += (size_t)block_count * offer->domain->layout.block_tokens;
    }
    if (offer->put.extras != NULL) {
        offer->put.extras += block_count;
    }
    if (status != KV_MISSING || offer->call->client->ended || offer->lease == NULL ||
        offer->put.group > 0) {
        answer(offer, status);
    } else if (is_being_stored(offer->domain, offer->lease)) {
        offer->next = offer->domain->waiting;
        offer->domain->waiting = offer;
        kv_service_set_timer(offer->domain->service);
    } else {
        begin_storing(offer->domain, offer->lease, offer->put.first_block + offer->put.block_count);
        answer(offer, status);
    }
}

static void look(kv_offer_t *offer)
{
    kv_status_t status = offer->lease == NULL ? KV_CANCELLED
                                              : kv_lease_store_present(offer->lease->lease,
                                                    &offer->put, note_taken, offer);
    if (status != KV_OK) {
        answer(offer, status);
    }
}

void kv_offer_begin(
    kv_service_conn_t *client, uint64_t id, kv_service_lease_t *lease, const kvist_put_t *put)
{
    kv_offer_t *offer = kv_allocate(sizeof *offer);
    *offer = (kv_offer_t){
        .call = kv_conn_begin_call(client, id),
        .lease = lease,
        .domain = client->domain,
        .put = *put,
    };
    memcpy(offer->arithmetic, put->arithmetic, strlen(put->arithmetic));
    offer->put.arithmetic = offer->arithmetic;
    if (put->tokens != NULL) {
        size_t count = (size_t)put->block_count * client->domain->layout.block_tokens;
        offer->tokens = kv_allocate_array(count, sizeof *offer->tokens);
        memcpy(offer->tokens, put->tokens, count * sizeof *offer->tokens);
        offer->put.tokens = offer->tokens;
    }
    if (put->extras != NULL) {
        offer->extras = kv_allocate_array(put->block_count, sizeof *offer->extras);
        memcpy(offer->extras, put->extras, put->block_count * sizeof *offer->extras);
        offer->put.extras = offer->extras;
    }
    look(offer);
}

/* ---- those that wait ---- */

/* Everyone looks again. What one of them learns may be the end of others' clients. */
static void wake(kv_domain_t *domain)
{
    while (domain->waiting != NULL) {
        kv_offer_t *offer = domain->waiting;
        domain->waiting = offer->next;
        offer->next = domain->looking;
        domain->looking = offer;
    }
    while (domain->looking != NULL) {
        kv_offer_t *offer = domain->looking;
        domain->looking = offer->next;
        look(offer);
    }
}

/* The lease's, out of the list; NULL: it has none there. */
static kv_offer_t *take_of(kv_offer_t **link, const kv_service_lease_t *lease)
{
    while (*link != NULL && (*link)->lease != lease) {
        link = &(*link)->next;
    }
    kv_offer_t *offer = *link;
    if (offer != NULL) {
        *link = offer->next;
    }
    return offer;
}

static void forget_in(kv_offer_t **list, const kv_service_lease_t *lease)
{
    kv_offer_t *offer;
    while ((offer = take_of(list, lease)) != NULL) {
        answer(offer, KV_CANCELLED);
    }
}

void kv_offer_progress(kv_domain_t *domain, kv_service_lease_t *lease, kv_status_t status)
{
    lease->progress_ns = kv_clock_now_ns();
    if (status != KV_OK || lease->lease->sealed_count >= lease->storing_until) {
        stop_storing(domain, lease);
    }
    wake(domain);
}

void kv_offer_forget(kv_domain_t *domain, kv_service_lease_t *lease)
{
    bool was_storing = lease->storing_until > 0;
    stop_storing(domain, lease);
    forget_in(&domain->waiting, lease);
    forget_in(&domain->looking, lease);
    if (was_storing) {
        wake(domain);
    }
}

void kv_offers_check_time(kv_domain_t *domain)
{
    if (domain->waiting != NULL) {
        wake(domain);
        kv_service_set_timer(domain->service);
    }
}
