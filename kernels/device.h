/* The device: where KV and weights live and where kernels run, behind one table of functions.
 *
 * A device is the CPU or one GPU. Callers hold device pointers and never dereference them: on a GPU
 * they are not addresses of this process. The engine calls compute kernels, the store and the
 * transport memory, copies, moves (kernels/moves.h) and the codec, only through the table.
 *
 * Kernels are enqueued and run in order, at the latest when finish returns; every array that a call
 * names (device or host) belongs to the device until then, the call's own struct does not. Copies
 * and moves run beside the kernels and know nothing of them: who moves what a kernel writes or
 * reads waits for that kernel first (reach or finish), or enqueues it after the move has ended.
 *
 * Owns: the memory that it allocated, its matrices, its thread team or streams.
 * Threads: memory, pinning, copies, moves and the codec may be called from any thread; matrices,
 * kernels, marks and finish only from the thread that leads the device's team (the node's compute
 * thread), in order.
 * Errors: KV_NO_SPACE from allocation and pinning; KV_FATAL from a device that failed, of which
 * every later call says the first cause. Copies and moves cannot fail on the CPU. Kernels check
 * nothing that a user sent: the engine has. */
#ifndef KV_KERNELS_DEVICE_H
#define KV_KERNELS_DEVICE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The geometry of paged KV. One block holds block_tokens positions of every layer; inside a block
 * the order is [layer][K, V][kv_head][token][head_dim], so that a layer is one range and a head
 * range is one range of it. A block table is an array of slot numbers; slot s starts at arena + s x
 * kv_block_bytes(). */
typedef struct {
    uint32_t layer_count;
    uint32_t kv_head_count;
    uint32_t head_dim;
    uint32_t block_tokens;  /* 16, 32, 64 or 128 */
    uint32_t element_bytes; /* 2: bf16; 4: f32 */
} kv_block_shape_t;

/* Bytes of K and V of one layer in one block. */
static inline size_t kv_block_layer_bytes(const kv_block_shape_t *shape)
{
    return (size_t)2 * shape->kv_head_count * shape->block_tokens * shape->head_dim *
           shape->element_bytes;
}

static inline size_t kv_block_bytes(const kv_block_shape_t *shape)
{
    return shape->layer_count * kv_block_layer_bytes(shape);
}

typedef struct kv_device kv_device_t;

/* How weights are written in a model's file; the numbers are GGUF's tensor types. */
typedef enum {
    KV_WEIGHT_F32 = 0,
    KV_WEIGHT_F16 = 1,
    KV_WEIGHT_Q4_0 = 2,
    KV_WEIGHT_Q4_1 = 3,
    KV_WEIGHT_Q8_0 = 8,
    KV_WEIGHT_Q4_K = 12,
    KV_WEIGHT_Q6_K = 14,
    KV_WEIGHT_BF16 = 30,
} kv_weight_type_t;

/* Elements of one block of the type, and the block's bytes; 0 for an unknown type. A matrix' row is
 * a whole number of blocks. */
uint32_t kv_weight_block_elements(kv_weight_type_t type);
uint32_t kv_weight_block_bytes(kv_weight_type_t type);

/* Rows of a weight matrix as the file holds them, in host memory. */
typedef struct {
    kv_weight_type_t type;
    uint32_t row_count;
    const void *data; /* [row_count][columns] */
} kv_matrix_part_t;

enum { KV_MATRIX_PARTS_MAX = 3 };

/* A weight matrix to prepare: its parts lie below each other (fused products). */
typedef struct {
    kv_matrix_part_t parts[KV_MATRIX_PARTS_MAX];
    uint32_t part_count;
    uint32_t columns; /* a multiple of 32 */
    bool f32;         /* f32 products; else the device's 16-bit form where it has one */
    bool fp8;         /* e4m3 products, not f32: where describe knows them; cannot embed */
    bool prefill;     /* will be used in products over row tiles */
    bool decode;      /* will be used in products over single rows, or to embed */
} kv_matrix_params_t;

/* A weight matrix in the forms that the device's kernels read; belongs to the device. */
typedef struct kv_matrix kv_matrix_t;

/* e4m3 stays within a device: its rows have scales beside them. */
typedef enum { KV_ELEMENT_F32 = 0, KV_ELEMENT_BF16 = 1, KV_ELEMENT_E4M3 = 2 } kv_element_t;

/* Rows first to first + count - 1 of a buffer whose row 0 lies on a tile's boundary. */
typedef struct {
    uint32_t first, count;
} kv_rows_t;

/* Consecutive new tokens of one sequence: row_count rows of the buffers from row on hold the tokens
 * at position, position + 1, ... */
typedef struct {
    const uint32_t *slots; /* host: the block table, covers position + row_count tokens */
    uint32_t position;
    uint32_t row, row_count;
} kv_sequence_t;

/* The paged KV of one layer, and the heads that read it. Query rows hold head_count x head_dim; the
 * rows of a fused projection hold queries, keys and values beside each other. */
typedef struct {
    const kv_block_shape_t *shape;
    void *arena;
    uint32_t layer;
    uint32_t head_count;    /* a multiple of shape->kv_head_count */
    uint32_t window_tokens; /* a token sees so many, itself among them; 0: all before it */
} kv_paged_t;

typedef struct {
    /* Rows of one tile of prefill; buffers of prefill hold whole tiles. */
    uint32_t tile_rows;
    /* What products over tiles read; products over single rows read f32. */
    kv_element_t operand;
    /* "cpu/prefill/amx+amx/bf16/v1": instructions of products and of attention */
    char prefill[48], decode[48];
} kv_arithmetic_t;

/* How a row's token is drawn: engine/sampler.h has the rules. */
typedef struct {
    float temperature; /* 0: the likeliest, of equals the lowest */
    uint32_t top_k;    /* 0: no limit */
    float top_p;       /* above 0, at most 1 */
    uint64_t seed, position;
} kv_draw_t;

/* A part of every slot that a move touches. */
typedef struct {
    size_t offset_bytes, bytes;
} kv_slot_part_t;

typedef enum { KV_MOVE_OUT, KV_MOVE_IN } kv_move_direction_t;

/* How a network may reach memory that the device allocated, beside copies and moves. */
typedef enum {
    KV_NETWORK_NONE, /* not at all */
    KV_NETWORK_HOST, /* as this process's memory, which it is for a network alone */
    KV_NETWORK_CUDA, /* as a GPU's, by a network that knows CUDA */
} kv_network_t;

/* Bytes on their way between slots and memory of this process, or beside the slots: memory of the
 * device that a network reads or has written. Of each slot move the same parts, in their order;
 * outside they lie one after the other. */
typedef struct {
    kv_move_direction_t direction;
    char *arena;                 /* device: slot s starts at arena + s x slot_bytes */
    size_t slot_bytes;           /* a multiple of 16 */
    const uint32_t *slots;       /* [slot_count]; moving in: each once */
    uint32_t slot_count;         /* 1 to KV_MOVE_SLOTS_MAX */
    const kv_slot_part_t *parts; /* [part_count], disjoint, multiples of 4 bytes */
    uint32_t part_count;         /* 1 to KV_MOVE_PARTS_MAX */
    char *const *outside;        /* [slot_count]: host memory of a slot's parts; pinned or not */
    bool beside;                 /* outside is memory of the device, one slot's parts behind the
                                    other's; only where a network reaches the device */
    size_t unit_bytes;           /* the one part is so many whole units; 0: none are sealed */
    const uint64_t *seeds;       /* [slot_count]: all that moves of a slot is sealed at once, with a
                                    seed of its own; unit_bytes is 0. NULL: not so */
    uint64_t *checksums;         /* [slot_count][units of the part]: kv_checksum of each unit,
                                    taken where the bytes are when they move out and where they
                                    have come to when they move in. With seeds [slot_count]:
                                    kv_checksum_seeded of a slot's parts, one after the other; of
                                    one part taken there too, of several where they lie together */
} kv_move_params_t;

enum {
    KV_MOVE_SLOTS_MAX = 1024,
    KV_MOVE_PARTS_MAX = 128,
    KV_MOVE_SEALED_PARTS_BYTES_MAX = 8 << 20, /* of a slot, where several parts have one seed */
};

typedef struct kv_move kv_move_t; /* one that was started; belongs to the device */

/* Units that lie one behind the other in each layer of a slot. */
typedef struct {
    uint32_t unit_count, unit_bytes;
    uint32_t element_bytes; /* 2: bf16, which gets smaller; units of others stay as they are */
} kv_unit_run_t;

/* A slot's object as KV's codec (kvstore/codec, "bf16") stores it: each unit encoded, or as it is
 * where that is no longer, one after the other, byte by byte as on the host. */
typedef struct {
    char *arena; /* device */
    size_t slot_bytes;
    uint32_t slot;
    uint32_t layer_count;
    const kv_unit_run_t *runs; /* [run_count], of every layer; together at most
                                  KV_PACK_LAYER_BYTES_MAX and KV_PACK_LAYER_UNITS_MAX */
    uint32_t run_count;        /* 1 to KV_PACK_RUNS_MAX */
    char *packed;              /* host: [slot_bytes]; pinned or not */
    uint32_t *lengths;         /* host: [units of the slot], as stored */
    uint64_t *checksums;       /* host: [units of the slot]: kv_checksum of each as it lies in the
                                  slot, taken there */
} kv_pack_t;

enum { KV_PACK_RUNS_MAX = 4, KV_PACK_LAYER_UNITS_MAX = 4096 };
#define KV_PACK_LAYER_BYTES_MAX ((size_t)4 << 20)

/* How many marks can stand behind kernels that have not run. */
enum { KV_DEVICE_MARKS_MAX = 4 };

typedef struct {
    const char *name; /* "cpu" */
    bool host;        /* its pointers are addresses of this process after all: who copies may do so
                         without it, and do more on the way */
    bool ahead;       /* kernels run while more are enqueued; else all wait for reach or finish, and
                         what is enqueued too early is in the way */
    kv_network_t network;

    /* What it is, for people: "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB"; cut where
     * there is no room. NULL: its name is all. */
    void (*title)(const kv_device_t *device, char *text_out, size_t bytes);

    /* KV_FATAL with the first cause once the device is lost to this process. Asks nobody: any
     * thread. NULL: it cannot be lost. */
    kv_status_t (*health)(kv_device_t *device, kv_error_t *error);

    void (*close)(kv_device_t *device);

    /* Memory of the device, zeroed, aligned to 2 MiB (on a GPU to 256 bytes). */
    kv_status_t (*allocate)(
        kv_device_t *device, size_t bytes, void **memory_out, kv_error_t *error);
    void (*release)(kv_device_t *device, void *memory, size_t bytes);

    /* Copies between this process's memory and the device's; complete when the call returns. On an
     * error the destination may hold anything. */
    kv_status_t (*copy_in)(
        kv_device_t *device, void *device_to, const void *from, size_t bytes, kv_error_t *error);
    kv_status_t (*copy_out)(
        kv_device_t *device, void *to, const void *device_from, size_t bytes, kv_error_t *error);

    /* Makes moves from and to this memory run by themselves at full speed, until unpin or close;
     * without, they are right but slower. NULL: there is nothing to gain. The memory is there and
     * stays; no part of it is pinned already. KV_NO_SPACE: not so much; as before the call. */
    kv_status_t (*pin)(kv_device_t *device, void *memory, size_t bytes, kv_error_t *error);
    void (*unpin)(kv_device_t *device, void *memory, size_t bytes);

    /* Moves, for kernels/moves.h; NULL: they are made of copies. start waits where as many moves
     * are under way as can be: a thread has one at a time. It may end the move at once, which a
     * *move_out of NULL tells; where it always does, poll and wait are NULL. The parameters' arrays
     * are the caller's again when start returns, the memory outside and the checksums when the move
     * has ended. poll: KV_BUSY while it is under way; every other answer of poll and wait ends it,
     * and frees it. On an error the destination may hold anything. */
    kv_status_t (*move_start)(kv_device_t *device, const kv_move_params_t *params,
        kv_move_t **move_out, kv_error_t *error);
    kv_status_t (*move_poll)(kv_device_t *device, kv_move_t *move, kv_error_t *error);
    kv_status_t (*move_wait)(kv_device_t *device, kv_move_t *move, kv_error_t *error);

    /* The codec of KV where the slots are; complete when the call returns; NULL: the host's is all
     * there is. pack fills in packed (so many bytes are what it gives), lengths and checksums; what
     * arrived is proved to be what left. unpack reads packed and lengths, and fills in the slot and
     * the checksums of what is there then, which its caller compares: KV_CORRUPT where no encoder
     * made these bytes, and KV_IO where they changed on their way. On an error whatever was to be
     * filled in may hold anything. */
    kv_status_t (*pack)(
        kv_device_t *device, const kv_pack_t *pack, size_t *packed_bytes_out, kv_error_t *error);
    kv_status_t (*unpack)(kv_device_t *device, const kv_pack_t *pack, kv_error_t *error);

    /* How the device computes, with f32 products, with e4m3's, or with neither. KV_INVALID: it has
     * no such products. */
    kv_status_t (*describe)(const kv_device_t *device, bool f32, bool fp8,
        kv_arithmetic_t *arithmetic_out, kv_error_t *error);

    kv_status_t (*matrix_create)(kv_device_t *device, const kv_matrix_params_t *params,
        kv_matrix_t **matrix_out, kv_error_t *error);
    void (*matrix_destroy)(kv_device_t *device, kv_matrix_t *matrix);
    size_t (*matrix_bytes)(const kv_matrix_t *matrix);

    /* out[row][columns] = matrix[tokens[i]], for the rows in order. tokens: host. */
    void (*embed)(kv_device_t *device, const kv_matrix_t *matrix, const uint32_t *tokens,
        kv_rows_t rows, float *out);

    /* out[row][columns] = x / sqrt(mean(x^2) + epsilon) x weight[columns]. */
    void (*norm)(kv_device_t *device, const float *x, const float *weight, float epsilon,
        uint32_t columns, kv_rows_t rows, void *out, kv_element_t out_element);

    /* out[row][matrix rows] = in[row][columns] x matrix^T, or += with accumulate. Over tiles the
     * tiles that the rows touch are computed whole. */
    void (*product_tiles)(kv_device_t *device, const kv_matrix_t *matrix, const void *in,
        kv_rows_t rows, bool accumulate, float *out);
    void (*product_rows)(kv_device_t *device, const kv_matrix_t *matrix, const float *in,
        kv_rows_t rows, bool accumulate, float *out);

    /* Rotates the queries (in place) and keys of projected[row][(heads + 2 kv_heads) x head_dim]
     * by adjacent pairs (rotation[position][head_dim / 2][cos, sin]) and writes keys and values to
     * the arena. */
    void (*rotate_store)(kv_device_t *device, const kv_paged_t *paged,
        const kv_sequence_t *sequences, uint32_t sequence_count, const float *rotation,
        float *projected);

    /* out[row][heads x head_dim]: causal attention, scaled by 1 / sqrt(head_dim), of the rotated
     * queries in projected over the arena. tiles: one sequence whose row 0 of the buffers lies on
     * an absolute tile boundary; rows: sequences of one row each, out in f32. */
    void (*attend_tiles)(kv_device_t *device, const kv_paged_t *paged,
        const kv_sequence_t *sequence, const float *projected, void *out, kv_element_t out_element);
    void (*attend_rows)(kv_device_t *device, const kv_paged_t *paged,
        const kv_sequence_t *sequences, uint32_t sequence_count, const float *projected,
        float *out);

    /* out[row][columns] = silu(in[row][0..columns)) x in[row][columns..2 columns). */
    void (*gate)(kv_device_t *device, const float *in, uint32_t columns, kv_rows_t rows, void *out,
        kv_element_t out_element);

    /* Draws a token from each of the first row_count rows of logits[row][vocabulary_count], and
     * the natural logarithm of its probability in the unmodified distribution; finishes. Outputs:
     * host, [row_count]. NULL: who wants tokens copies the logits out. */
    kv_status_t (*draw)(kv_device_t *device, const float *logits, uint32_t vocabulary_count,
        const kv_draw_t *draws, uint32_t row_count, uint32_t *tokens_out, float *logprobs_out,
        kv_error_t *error);

    /* A mark behind what was enqueued so far, and the wait until all before it has run. Marks are
     * reached in their order; finish forgets them. At most KV_DEVICE_MARKS_MAX stand at once. */
    uint32_t (*mark)(kv_device_t *device);
    kv_status_t (*reach)(kv_device_t *device, uint32_t mark, kv_error_t *error);

    /* Returns when everything that was enqueued has run. */
    kv_status_t (*finish)(kv_device_t *device, kv_error_t *error);
} kv_device_ops_t;

struct kv_device {
    const kv_device_ops_t *ops;
};

/* The CPU of this machine. thread_count: of the compute team, 1 to 256. The best instruction set
 * that the machine has is used; the environment's KVIST_ISA (plain, avx2, avx512, amx) caps it. */
kv_status_t kv_device_cpu_open(uint32_t thread_count, kv_device_t **device_out, kv_error_t *error);
void kv_device_close(kv_device_t *device);

#ifdef __cplusplus
}
#endif

#endif
