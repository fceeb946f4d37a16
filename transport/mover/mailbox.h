/* A list of messages between threads, with a descriptor to wait on. The nodes are the messages
 * themselves, so that handing one over can neither fail nor be refused: what bounds the list is the
 * bound on the operations that its nodes stand for.
 *
 * Owns: the descriptor; nodes belong to it between push and pop.
 * Threads: any; the mutex is held for a few instructions. */
#ifndef KV_TRANSPORT_MAILBOX_H
#define KV_TRANSPORT_MAILBOX_H

#include <pthread.h>

typedef struct kv_mail kv_mail_t;
struct kv_mail {
    kv_mail_t *next;
};

typedef struct {
    pthread_mutex_t mutex; /* guards the list */
    kv_mail_t *head, **tail;
    int event_fd;
} kv_mailbox_t;

void kv_mailbox_init(kv_mailbox_t *mailbox);
void kv_mailbox_clear(kv_mailbox_t *mailbox); /* frees the nodes that are left with free() */
void kv_mailbox_push(kv_mailbox_t *mailbox, kv_mail_t *mail);

/* NULL when empty, which clears the descriptor. */
kv_mail_t *kv_mailbox_pop(kv_mailbox_t *mailbox);

#endif
