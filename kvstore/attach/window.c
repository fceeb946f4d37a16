/* Windows of staging memory, and who waits for one, or for room for an offer: first come, first
 * served. A window is taken until the service has answered what was asked about it; its
 * connection's end ends it too. */
#include "kvstore/attach/attached_internal.h"

#include "base/check.h"

uint32_t kv_window_take(kv_attached_t *attached)
{
    kv_life_t *life = attached->life;
    if (attached->link.state != KV_LINK_UP || life->windows_free_count == 0) {
        return UINT32_MAX;
    }
    return life->windows_free[--life->windows_free_count];
}

void kv_window_give(kv_attached_t *attached, kv_life_t *life, uint32_t window)
{
    KV_CHECK(life->windows_free_count < life->window_count);
    life->windows_free[life->windows_free_count++] = window;
    if (life->up) {
        kv_attached_kick(attached);
    }
}

void kv_window_wait(kv_attached_t *attached, kv_window_wait_t *wait)
{
    if (wait->waiting) {
        return;
    }
    wait->waiting = true;
    wait->next = NULL;
    if (attached->last_wait != NULL) {
        attached->last_wait->next = wait;
    } else {
        attached->first_wait = wait;
    }
    attached->last_wait = wait;
}

void kv_window_wait_no_more(kv_attached_t *attached, kv_window_wait_t *wait)
{
    kv_window_wait_t **link = &attached->first_wait, *before = NULL;
    if (!wait->waiting) {
        return;
    }
    while (*link != wait) {
        before = *link;
        link = &before->next;
    }
    *link = wait->next;
    if (attached->last_wait == wait) {
        attached->last_wait = before;
    }
    wait->waiting = false;
}

void kv_windows_advance(kv_attached_t *attached)
{
    /* Where the connection is down everybody is told once, and waits no more. */
    while (attached->first_wait != NULL &&
           (attached->link.state != KV_LINK_UP ||
               (attached->life->windows_free_count > 0 && kv_link_has_room(attached)))) {
        kv_window_wait_t *wait = attached->first_wait;
        kv_window_wait_no_more(attached, wait);
        wait->ready(wait);
    }
}
