#include "simulation/mailboxes.h"

#include "simulation/process.h"
#include "transport/mover/mailbox.h"

#include <stdlib.h>

int mailbox_new_descriptor(void)
{
    static int last = 1 << 24;
    return ++last;
}

bool mailbox_is_empty(const void *mailbox)
{
    return ((const kv_mailbox_t *)mailbox)->head == NULL;
}

void kv_mailbox_init(kv_mailbox_t *mailbox)
{
    mailbox->head = NULL;
    mailbox->tail = &mailbox->head;
    mailbox->event_fd = mailbox_new_descriptor();
}

void kv_mailbox_clear(kv_mailbox_t *mailbox)
{
    kv_mail_t *mail;
    while ((mail = kv_mailbox_pop(mailbox)) != NULL) {
        free(mail);
    }
}

void kv_mailbox_push(kv_mailbox_t *mailbox, kv_mail_t *mail)
{
    mail->next = NULL;
    *mailbox->tail = mail;
    mailbox->tail = &mail->next;
}

kv_mail_t *kv_mailbox_pop(kv_mailbox_t *mailbox)
{
    kv_mail_t *mail = mailbox->head;
    if (mail != NULL) {
        mailbox->head = mail->next;
        if (mailbox->head == NULL) {
            mailbox->tail = &mailbox->head;
        }
    }
    return mail;
}
