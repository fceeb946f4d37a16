/* Small kernels for the tests of the stand-in: what a kernel may do, and the mistakes that it must
 * not make. Pointers are device pointers; each launcher gives a cudaError_t. */
#ifndef KV_TESTS_SIMT_SAMPLES_H
#define KV_TESTS_SIMT_SAMPLES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    MISTAKE_NONE,
    MISTAKE_NO_BARRIER,        /* sum: the barrier before the last step is gone */
    MISTAKE_DIVERGENT_BARRIER, /* sum: only the lower half of the block waits */
    MISTAKE_EARLY_RETURN,      /* sum: the last warp returns before the barrier */
    MISTAKE_TWO_BARRIERS,      /* sum: half of the block waits at another line */
    MISTAKE_LANE_GONE,         /* sum: a lane leaves before the shuffle that names it */
    MISTAKE_LANE_OUTSIDE_MASK, /* sum: a shuffle reads a lane that the mask leaves out */
    MISTAKE_MASK_WITHOUT_SELF, /* sum: a mask leaves out its caller */
    MISTAKE_READ_PAST,         /* sum: one element past the input */
    MISTAKE_WRITE_PAST,        /* sum: one element past the output */
    MISTAKE_SHARED_PAST,       /* sum: one element past shared memory */
    MISTAKE_UNWRITTEN_SHARED,  /* sum: one warp's sum is never written */
    MISTAKE_HOST_POINTER,      /* sum: reads memory of the host */
    MISTAKE_NO_SYNCWARP,       /* turn: lanes exchange through shared memory unsynchronised */
    MISTAKE_BLOCKS_RACE,       /* count: blocks add without atomics */
    MISTAKE_LATE_WAIT,         /* stage: reads before the copy was waited for */
    MISTAKE_WAIT_ONE_LESS,     /* stage: leaves one group too many under way */
    MISTAKE_NO_STAGE_BARRIER,  /* stage: overwrites a buffer that others still read */
    MISTAKE_WRONG_FRAGMENT,    /* multiply: registers 1 and 2 of A change places */
    MISTAKE_NO_TENSOR_WAIT,    /* multiply: the sums are read at once */
    MISTAKE_LANE_WITHOUT,      /* multiply: one lane takes no part in the product */
    MISTAKE_MISALIGNED,        /* multiply: ldmatrix of rows of 24 bytes */
    MISTAKE_WRONG_LANE,        /* sum: the exchange starts at 8 instead of 16 */
    MISTAKES,
} sample_mistake_t;

/* sums[blocks] = the sums of values[count] by blocks of 128. host: any address of the host. */
int sample_sum(void *stream, const float *values, uint32_t count, float *sums, const float *host,
    sample_mistake_t mistake);

/* out[32] = in[32], each 8 lanes turned by one, through shared memory. */
int sample_turn(void *stream, const uint32_t *in, uint32_t *out, sample_mistake_t mistake);

/* counts[16] += how often each value of 0 to 15 occurs in values[count]. */
int sample_count(void *stream, const uint8_t *values, uint32_t count, uint32_t *counts,
    sample_mistake_t mistake);

/* out[128 x 4] = the sum over tiles of in[tiles][128 x 4], through two buffers filled ahead. */
int sample_stage(
    void *stream, const float *in, uint32_t tiles, float *out, sample_mistake_t mistake);

/* c[16][8] = a[16][16] x b[8][16] transposed, bf16 bits. */
int sample_multiply(
    void *stream, const uint16_t *a, const uint16_t *b, float *c, sample_mistake_t mistake);

/* votes[4]: how many of the threads' values (thread index) are below limit, by the barrier's three
 * votes and a ballot of warp 0. */
int sample_vote(void *stream, uint32_t threads, uint32_t limit, uint32_t *votes);

#ifdef __cplusplus
}
#endif

#endif
