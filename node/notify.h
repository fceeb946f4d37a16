/* What the service manager is told (systemd's sd_notify protocol: a datagram to $NOTIFY_SOCKET).
 *
 * Threads: any.
 * Errors: without the variable nothing happens; a socket that cannot be reached is logged. */
#ifndef KV_NODE_NOTIFY_H
#define KV_NODE_NOTIFY_H

/* The node serves. */
void kv_notify_ready(void);

/* It is about to end: it drains, or stops. */
void kv_notify_stopping(void);

#endif
