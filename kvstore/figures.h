/* The store's figures: for kvist_store_stats, for the metrics page, and the list of contexts.
 *
 * Threads: the store's. */
#ifndef KV_KVSTORE_FIGURES_H
#define KV_KVSTORE_FIGURES_H

#include "kvstore/store_internal.h"

void kv_figures_open(kvist_store_t *store);
void kv_figures_close(kvist_store_t *store);

/* Tells the metrics what changed since it last told them. */
void kv_figures_publish(kvist_store_t *store);

#endif
