/* A call: what a client asked over HTTP, as plain texts, so that who reads it needs no server.
 *
 * Borrows: everything, from the exchange (or, in tests, from wherever).
 * Threads: any; read only. */
#ifndef KV_GATEWAY_CALL_H
#define KV_GATEWAY_CALL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *name, *value; /* value: "" where there is none */
} kv_field_t;

typedef struct {
    const kv_field_t *items;
    size_t count;
} kv_fields_t;

typedef struct {
    const char *method, *path; /* the path decoded, without its query */
    const char *rest;          /* of a route that ends in "*": what the path has in its place */
    unsigned variant;          /* of the route */
    const char *tenant;        /* whose key it came with; NULL or "": nobody's */
    bool is_operator;          /* a tenant that sees what others do */
    kv_fields_t headers, query;
    const char *body;
    size_t body_bytes;
} kv_call_t;

/* The first one of that name, or NULL. Names of headers have no case. */
const char *kv_call_header(const kv_call_t *call, const char *name);
const char *kv_call_query(const kv_call_t *call, const char *name);

#endif
