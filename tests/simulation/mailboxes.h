/* transport/mover/mailbox.h without its descriptor: who reads one is woken by the world. */
#ifndef KV_TESTS_SIMULATION_MAILBOXES_H
#define KV_TESTS_SIMULATION_MAILBOXES_H

#include <stdbool.h>

/* A number that is no descriptor of the machine, and nobody else's. */
int mailbox_new_descriptor(void);

#endif
