/* XXH3, 64 bit: the checksum of every unit, record and wire fragment. It detects damage, not
 * malice. */
#ifndef KV_BASE_CHECKSUM_H
#define KV_BASE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

uint64_t kv_checksum(const void *bytes, size_t count);

/* The checksum bound to what the bytes are: a value made with another seed never agrees. */
uint64_t kv_checksum_seeded(const void *bytes, size_t count, uint64_t seed);

#endif
