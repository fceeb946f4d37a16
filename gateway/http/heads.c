#include "gateway/http/heads.h"

#include "base/check.h"
#include "base/memory.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>

struct kv_head_wait {
    kv_head_wait_t *next, *previous;
    int socket;
    bool waits;
    uint64_t since_ns;
};

struct kv_heads {
    uint64_t limit_ns;
    pthread_mutex_t mutex; /* guards what follows, and each connection */
    kv_head_wait_t *connections;
};

kv_heads_t *kv_heads_create(uint64_t limit_ns)
{
    kv_heads_t *heads = kv_allocate(sizeof *heads);
    heads->limit_ns = limit_ns;
    pthread_mutex_init(&heads->mutex, NULL);
    return heads;
}

void kv_heads_destroy(kv_heads_t *heads)
{
    KV_CHECK(heads->connections == NULL);
    pthread_mutex_destroy(&heads->mutex);
    free(heads);
}

kv_head_wait_t *kv_heads_open(kv_heads_t *heads, int socket, uint64_t now_ns)
{
    kv_head_wait_t *connection = kv_allocate(sizeof *connection);
    *connection = (kv_head_wait_t){.socket = socket, .waits = true, .since_ns = now_ns};
    pthread_mutex_lock(&heads->mutex);
    connection->next = heads->connections;
    if (connection->next != NULL) {
        connection->next->previous = connection;
    }
    heads->connections = connection;
    pthread_mutex_unlock(&heads->mutex);
    return connection;
}

void kv_heads_close(kv_heads_t *heads, kv_head_wait_t *connection)
{
    pthread_mutex_lock(&heads->mutex);
    *(connection->previous != NULL ? &connection->previous->next : &heads->connections) =
        connection->next;
    if (connection->next != NULL) {
        connection->next->previous = connection->previous;
    }
    pthread_mutex_unlock(&heads->mutex);
    free(connection);
}

void kv_heads_arrived(kv_heads_t *heads, kv_head_wait_t *connection)
{
    pthread_mutex_lock(&heads->mutex);
    connection->waits = false;
    pthread_mutex_unlock(&heads->mutex);
}

void kv_heads_await(kv_heads_t *heads, kv_head_wait_t *connection, uint64_t now_ns)
{
    pthread_mutex_lock(&heads->mutex);
    connection->waits = true;
    connection->since_ns = now_ns;
    pthread_mutex_unlock(&heads->mutex);
}

size_t kv_heads_sweep(kv_heads_t *heads, uint64_t now_ns)
{
    size_t count = 0;
    pthread_mutex_lock(&heads->mutex);
    for (kv_head_wait_t *at = heads->connections; at != NULL; at = at->next) {
        if (at->waits && now_ns > at->since_ns && now_ns - at->since_ns > heads->limit_ns) {
            shutdown(at->socket, SHUT_RDWR);
            at->waits = false; /* its end is on its way */
            count++;
        }
    }
    pthread_mutex_unlock(&heads->mutex);
    return count;
}
