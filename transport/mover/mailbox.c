#include "transport/mover/mailbox.h"

#include "base/check.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

void kv_mailbox_init(kv_mailbox_t *mailbox)
{
    pthread_mutex_init(&mailbox->mutex, NULL);
    mailbox->head = NULL;
    mailbox->tail = &mailbox->head;
    mailbox->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    KV_CHECK(mailbox->event_fd >= 0);
}

void kv_mailbox_clear(kv_mailbox_t *mailbox)
{
    kv_mail_t *mail;
    while ((mail = kv_mailbox_pop(mailbox)) != NULL) {
        free(mail);
    }
    close(mailbox->event_fd);
    pthread_mutex_destroy(&mailbox->mutex);
}

void kv_mailbox_push(kv_mailbox_t *mailbox, kv_mail_t *mail)
{
    mail->next = NULL;
    pthread_mutex_lock(&mailbox->mutex);
    bool was_empty = mailbox->head == NULL;
    *mailbox->tail = mail;
    mailbox->tail = &mail->next;
    pthread_mutex_unlock(&mailbox->mutex);
    uint64_t one = 1;
    while (was_empty && write(mailbox->event_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

kv_mail_t *kv_mailbox_pop(kv_mailbox_t *mailbox)
{
    pthread_mutex_lock(&mailbox->mutex);
    kv_mail_t *mail = mailbox->head;
    if (mail != NULL) {
        mailbox->head = mail->next;
        if (mailbox->head == NULL) {
            mailbox->tail = &mailbox->head;
        }
    } else {
        /* Under the mutex: a push between looking and clearing would be slept through. */
        uint64_t count;
        while (read(mailbox->event_fd, &count, sizeof count) < 0 && errno == EINTR) {
        }
    }
    pthread_mutex_unlock(&mailbox->mutex);
    return mail;
}
