/* Tensor instructions. A lane notes what it asks for and goes on; when all lanes of the warp wait
 * for the results, the notes are worked off in their order, each for the whole warp at once.
 *
 * Until then what was loaded has no value yet: in its place stands a mark (a not-a-number that
 * names the load and the word of it), and a product finds by the marks which fragments it is of. So
 * fragments may be handed on, in any order, but what is computed from them is wrong. A product's
 * sums are read and written when the notes are worked off: they stay where they are until then.
 *
 * A product's sums: 16 products of a row and a column are added up in their order, each product and
 * each sum rounded, then the sum is added to what was there: the same on every machine. */
#include "kernels/simt/tensor.h"

#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/numbers.h"
#include "kernels/simt/watch.h"

#include <string.h>

enum {
    LANES = KV_SIMT_WARP_LANES,
    NOTES_MAX = 512, /* of a lane, between two waits */
    OWN_MAX = 256,   /* operands that are a lane's own words */
    SUMS_MAX = 64,   /* accumulators in use at once */
    MARK_BITS = 11,  /* 4 x the note's number + the word */
    OWN = 1 << 15,   /* + the place among the lane's own words */
};

#define MARK 0xffe00000u
#define MARK_MASK ((1u << MARK_BITS) - 1)

typedef enum { LOAD, LOAD_TRANSPOSED, PRODUCT_BF16, PRODUCT_F16 } kind_t;

/* left, right: of a product's words the first one's mark, where the others follow it. */
typedef struct {
    union {
        float *sums;
        const void *row;
    };
    uint16_t left, right;
    uint16_t kind, count; /* count: of matrices loaded */
} note_t;
_Static_assert(sizeof(note_t) == 16, "eight bytes of it are the same in all lanes");

struct kv_simt_notes {
    uint32_t left_count, right_count;
    note_t notes[NOTES_MAX];
    uint32_t lefts[OWN_MAX][4], rights[OWN_MAX][2];
};

/* ---- what a lane notes ---- */

static struct kv_simt_notes *notes_of(kv_simt_lane_t *self)
{
    if (self->notes == NULL) {
        self->notes = kv_allocate(sizeof *self->notes);
    }
    return self->notes;
}

static _Noreturn void refuse_more(void)
{
    kv_simt_find(
        KV_SIMT_MISUSE, "more than %d tensor instructions without kv_tensor_wait", NOTES_MAX);
    kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
}

static note_t *next_note(kv_simt_lane_t *self)
{
    if (self->note_count == NOTES_MAX) {
        refuse_more();
    }
    return &notes_of(self)->notes[self->note_count++];
}

static bool is_mark(uint32_t word)
{
    return (word & ~MARK_MASK) == MARK;
}

/* The words as a run of marks, or as words of the lane's own. */
static uint16_t left_of(struct kv_simt_notes *notes, const uint32_t a[4])
{
    if (is_mark(a[0]) && a[1] == a[0] + 1 && a[2] == a[0] + 2 && a[3] == a[0] + 3) {
        return (uint16_t)(a[0] & MARK_MASK);
    }
    if (notes->left_count == OWN_MAX) {
        refuse_more();
    }
    memcpy(notes->lefts[notes->left_count], a, sizeof notes->lefts[0]);
    return (uint16_t)(OWN | notes->left_count++);
}

static uint16_t right_of(struct kv_simt_notes *notes, const uint32_t b[2])
{
    if (is_mark(b[0]) && b[1] == b[0] + 1) {
        return (uint16_t)(b[0] & MARK_MASK);
    }
    if (notes->right_count == OWN_MAX) {
        refuse_more();
    }
    memcpy(notes->rights[notes->right_count], b, sizeof notes->rights[0]);
    return (uint16_t)(OWN | notes->right_count++);
}

void kv_simt_mma(kv_simt_operand_t operand, float c[4], const uint32_t a[4], const uint32_t b[2])
{
    note_t *note = next_note(kv_simt_block.current);
    struct kv_simt_notes *notes = kv_simt_block.current->notes;
    note->sums = c;
    note->left = left_of(notes, a);
    note->right = right_of(notes, b);
    note->kind = operand == KV_SIMT_BF16 ? PRODUCT_BF16 : PRODUCT_F16;
    note->count = 0;
}

void kv_simt_load_matrix(uint32_t count, bool transposed, uint32_t *out, const void *row)
{
    kv_simt_lane_t *self = kv_simt_block.current;
    if (self->lane < 8 * count) {
        if ((uintptr_t)row % 16 != 0) {
            kv_simt_find(KV_SIMT_MISALIGNED, "ldmatrix of a row that is not aligned to 16 bytes");
            kv_simt_abandon(KV_SIMT_MISALIGNED_ADDRESS);
        }
        kv_simt_access(row, 16, KV_SIMT_READ, __builtin_return_address(0));
    }
    uint32_t number = self->note_count;
    note_t *note = next_note(self);
    note->row = row;
    note->left = note->right = 0;
    note->kind = transposed ? LOAD_TRANSPOSED : LOAD;
    note->count = (uint16_t)count;
    for (uint32_t i = 0; i < count; i++) {
        out[i] = MARK | number << 2 | i;
    }
}

void kv_simt_tensor_refuse(const kv_simt_lane_t *lane)
{
    kv_simt_find(KV_SIMT_MISUSE, "%u tensor instructions that kv_tensor_wait does not follow",
        lane->note_count);
    kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
}

void kv_simt_tensor_forget(kv_simt_lane_t *lane)
{
    lane->note_count = 0;
    if (lane->notes != NULL) {
        lane->notes->left_count = lane->notes->right_count = 0;
    }
}

/* ---- the step: matrices ---- */

/* [word][i][j]: words of a fragment as matrices of 8 x 8. */
typedef float words_t[4][8][8];

typedef struct {
    uint16_t rows[4][8][8];
    bool transposed;
    kind_t left_kind, right_kind; /* what left and right were made for; LOAD: not made */
    words_t left;                 /* [word][group][column]: a left side's */
    words_t right;                /* turned: a right side's */
} loaded_t;

static loaded_t loaded[NOTES_MAX];

/* Sums of the products so far; by lane 0's pointer to its own. */
typedef struct {
    float *first;
    float sums[16][8];
} kept_t;

static kept_t kept[SUMS_MAX];
static uint32_t kept_count, kept_last;
static ptrdiff_t shifts[LANES]; /* from lane 0's sums to the lane's own, in bytes */

/* The left side that lanes' own words made last. */
static uint32_t own_left[LANES][4];
static kind_t own_left_kind;
static words_t own_left_words;

static void load(const kv_simt_lane_t *lanes, uint32_t number, const note_t *first)
{
    loaded_t *to = &loaded[number];
    to->transposed = first->kind == LOAD_TRANSPOSED;
    to->left_kind = to->right_kind = LOAD;
    for (uint32_t i = 0; i < 8u * first->count; i++) {
        memcpy(to->rows[i / 8][i % 8], lanes[i].notes->notes[number].row, sizeof to->rows[0][0]);
    }
}

static inline float widen(kind_t kind, uint32_t bits)
{
    return kind == PRODUCT_BF16 ? kv_float_of_bits(bits << 16) : kv_half_to_float((uint16_t)bits);
}

static inline __attribute__((always_inline)) void widen_word(
    kind_t kind, uint16_t (*rows)[8], bool turned, float (*restrict out)[8])
{
    for (uint32_t i = 0; i < 8; i++) {
        for (uint32_t j = 0; j < 8; j++) {
            out[i][j] = widen(kind, turned ? rows[j][i] : rows[i][j]);
        }
    }
}

static inline __attribute__((always_inline)) void widen_words(
    kind_t kind, uint16_t (*rows)[8][8], bool turned, words_t out)
{
    for (uint32_t word = 0; word < 4; word++) {
        if (kind == PRODUCT_BF16 && turned) {
            widen_word(PRODUCT_BF16, rows[word], true, out[word]);
        } else if (kind == PRODUCT_BF16) {
            widen_word(PRODUCT_BF16, rows[word], false, out[word]);
        } else {
            widen_word(kind, rows[word], turned, out[word]);
        }
    }
}

/* A lane's word: its own, or what its mark stands for. */
static uint32_t resolve(const note_t *notes, uint32_t word, uint32_t lane)
{
    uint32_t mark = word & MARK_MASK, group = lane / 4, pair = lane % 4 * 2;
    if (!is_mark(word) || notes[mark / 4].kind > LOAD_TRANSPOSED) {
        return word;
    }
    uint16_t(*rows)[8] = loaded[mark / 4].rows[mark % 4];
    return loaded[mark / 4].transposed ? rows[pair][group] | (uint32_t)rows[pair + 1][group] << 16
                                       : rows[group][pair] | (uint32_t)rows[group][pair + 1] << 16;
}

/* Lanes' own words as a left side; a product after the other has the same. */
static float (*make_own_left(kv_simt_lane_t *lanes, const note_t *first, uint32_t number))[8][8]
{
    uint32_t changed = first->kind ^ own_left_kind;
    for (uint32_t i = 0; i < LANES; i++) {
        const struct kv_simt_notes *notes = lanes[i].notes;
        const uint32_t *words = notes->lefts[notes->notes[number].left & ~OWN];
        for (uint32_t word = 0; word < 4; word++) {
            uint32_t value = resolve(notes->notes, words[word], i);
            changed |= value ^ own_left[i][word];
            own_left[i][word] = value;
        }
    }
    own_left_kind = first->kind;
    for (uint32_t i = 0; changed != 0 && i < LANES; i++) {
        for (uint32_t word = 0; word < 4; word++) {
            float *to = &own_left_words[word][i / 4][i % 4 * 2];
            to[0] = widen(first->kind, own_left[i][word] & 0xffffu);
            to[1] = widen(first->kind, own_left[i][word] >> 16);
        }
    }
    return own_left_words;
}

static void make_own_right(
    kv_simt_lane_t *lanes, const note_t *first, uint32_t number, float right[16][8])
{
    for (uint32_t i = 0; i < LANES; i++) {
        const struct kv_simt_notes *notes = lanes[i].notes;
        const uint32_t *words = notes->rights[notes->notes[number].right & ~OWN];
        for (uint32_t word = 0; word < 2; word++) {
            uint32_t value = resolve(notes->notes, words[word], i);
            right[word * 8 + i % 4 * 2][i / 4] = widen(first->kind, value & 0xffffu);
            right[word * 8 + i % 4 * 2 + 1][i / 4] = widen(first->kind, value >> 16);
        }
    }
}

/* ---- the step: sums ---- */

static float *sums_of(const kept_t *from, uint32_t lane)
{
    return (float *)(void *)((char *)from->first + shifts[lane]);
}

static kept_t *take_sums(float *first)
{
    for (uint32_t i = 0; i < kept_count; i++) {
        kept_last = kept_last + 1 < kept_count ? kept_last + 1 : 0;
        if (kept[kept_last].first == first) {
            return &kept[kept_last];
        }
    }
    if (kept_count == SUMS_MAX) {
        refuse_more();
    }
    kept_last = kept_count++;
    kept_t *made = &kept[kept_last];
    made->first = first;
    for (uint32_t i = 0; i < LANES; i++) {
        const float *from = sums_of(made, i);
        memcpy(&made->sums[i / 4][i % 4 * 2], from, 2 * sizeof *from);
        memcpy(&made->sums[i / 4 + 8][i % 4 * 2], from + 2, 2 * sizeof *from);
    }
    return made;
}

static void give_sums(void)
{
    for (uint32_t at = 0; at < kept_count; at++) {
        for (uint32_t i = 0; i < LANES; i++) {
            float *to = sums_of(&kept[at], i);
            memcpy(to, &kept[at].sums[i / 4][i % 4 * 2], 2 * sizeof *to);
            memcpy(to + 2, &kept[at].sums[i / 4 + 8][i % 4 * 2], 2 * sizeof *to);
        }
    }
}

typedef float row_t __attribute__((vector_size(32), aligned(4)));

/* Sums (16 x 8) += left (16 x 16) x right (16 x 8). */
static inline __attribute__((always_inline)) void multiply(
    float (*left)[8][8], float (*right)[8], float (*sums)[8])
{
    enum { AT_ONCE = 8 };
    for (uint32_t half = 0; half < 2; half++) {
        row_t rows[AT_ONCE];
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            rows[i] = (row_t){0};
        }
        for (uint32_t k = 0; k < 16; k++) {
            const row_t *beside = (const row_t *)(const void *)right[k];
            for (uint32_t i = 0; i < AT_ONCE; i++) {
                rows[i] += left[half + k / 8 * 2][i][k % 8] * *beside;
            }
        }
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            row_t *to = (row_t *)(void *)sums[half * 8 + i];
            *to += rows[i];
        }
    }
}

/* ---- the step ---- */

static _Noreturn void refuse_difference(const kv_simt_lane_t *lane)
{
    kv_simt_find(KV_SIMT_INACTIVE_LANE,
        "lane %u has come to other tensor instructions than lane 0, %u of them", lane->lane,
        lane->note_count);
    kv_simt_abandon(KV_SIMT_LAUNCH_FAILURE);
}

/* Lanes ask for the same, with sums that lie alike. */
static void check_alike(const kv_simt_lane_t *lanes, uint32_t number, const note_t *first)
{
    uint64_t wanted, found;
    memcpy(&wanted, &first->left, sizeof wanted);
    for (uint32_t i = 1; i < LANES; i++) {
        const note_t *note = &lanes[i].notes->notes[number];
        memcpy(&found, &note->left, sizeof found);
        ptrdiff_t shift = (const char *)note->sums - (const char *)first->sums;
        if (found != wanted || (first->kind >= PRODUCT_BF16 && shift != shifts[i])) {
            refuse_difference(&lanes[i]);
        }
    }
}

static inline __attribute__((always_inline)) void do_product(
    kv_simt_lane_t *lanes, uint32_t number, const note_t *first)
{
    float own_right[16][8], (*left)[8][8], (*right)[8] = own_right;
    kind_t kind = first->kind;
    if ((first->left & OWN) != 0) {
        left = make_own_left(lanes, first, number);
    } else {
        loaded_t *from = &loaded[first->left / 4];
        if (from->left_kind != kind) {
            widen_words(kind, from->rows, from->transposed, from->left);
            from->left_kind = kind;
        }
        left = from->left;
    }
    if ((first->right & OWN) != 0) {
        make_own_right(lanes, first, number, own_right);
    } else {
        loaded_t *from = &loaded[first->right / 4];
        if (from->right_kind != kind) {
            widen_words(kind, from->rows, !from->transposed, from->right);
            from->right_kind = kind;
        }
        right = from->right[first->right % 4];
    }
    multiply(left, right, take_sums(first->sums)->sums);
}

static inline __attribute__((always_inline)) void work_off(kv_simt_lane_t *lanes)
{
    const struct kv_simt_notes *notes = lanes[0].notes;
    for (uint32_t number = 0; number < lanes[0].note_count; number++) {
        const note_t *first = &notes->notes[number];
        check_alike(lanes, number, first);
        if (first->kind <= LOAD_TRANSPOSED) {
            load(lanes, number, first);
        } else {
            do_product(lanes, number, first);
        }
    }
}

static void work_off_plain(kv_simt_lane_t *lanes)
{
    work_off(lanes);
}

#ifdef __x86_64__
/* Without FMA: the same sums. */
__attribute__((target("avx2"))) static void work_off_avx2(kv_simt_lane_t *lanes)
{
    work_off(lanes);
}
#endif

/* Where the lanes' sums lie, from the first product on. */
static void find_shifts(const kv_simt_lane_t *lanes)
{
    const note_t *first = lanes[0].notes->notes;
    uint32_t number = 0, count = lanes[0].note_count;
    while (number < count && first[number].kind < PRODUCT_BF16) {
        number++;
    }
    for (uint32_t i = 1; number < count && i < LANES; i++) {
        shifts[i] =
            (const char *)lanes[i].notes->notes[number].sums - (const char *)first[number].sums;
    }
}

void kv_simt_tensor_step(kv_simt_lane_t *lanes)
{
    for (uint32_t i = 0; i < LANES; i++) {
        if (lanes[i].note_count != lanes[0].note_count) {
            refuse_difference(&lanes[i]);
        }
    }
    if (lanes[0].note_count == 0) {
        return;
    }
    kept_count = kept_last = 0;
    own_left_kind = LOAD;
    find_shifts(lanes);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        work_off_avx2(lanes);
    } else {
        work_off_plain(lanes);
    }
#else
    work_off_plain(lanes);
#endif
    give_sums();
    for (uint32_t i = 0; i < LANES; i++) {
        lanes[i].note_count = lanes[i].notes->left_count = lanes[i].notes->right_count = 0;
    }
}
