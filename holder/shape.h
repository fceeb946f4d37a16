/* The geometry that peers agree on before KV moves between them.
 *
 * Threads: any; pure functions. */
#ifndef KV_HOLDER_SHAPE_H
#define KV_HOLDER_SHAPE_H

#include "kernels/device.h"
#include "kvstore/kvist.h"

#include <stdbool.h>

enum { KV_SHAPE_TEXT_BYTES = 128 };

/* A namespace without model and salt: all else that must be equal. */
kvist_key_t kv_shape_digest(const kv_block_shape_t *shape);

void kv_shape_text(const kv_block_shape_t *shape, char text_out[KV_SHAPE_TEXT_BYTES]);

/* The shape whose plain layout this is; false: it is of another kind (several groups, other parts),
 * whose blocks engine nodes do not exchange. */
bool kv_shape_of_layout(const kvist_layout_t *layout, kv_block_shape_t *shape_out);

/* What KV of this shape is made of. */
kvist_dtype_t kv_shape_dtype(const kv_block_shape_t *shape);

#endif
