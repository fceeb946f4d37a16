#include "kernels/simt/block_internal.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kv_simt_finding_t kept[KV_SIMT_FINDINGS_KEPT];
static size_t counts[KV_SIMT_FINDING_KINDS];
static size_t total;

const char *kv_simt_finding_kind_name(kv_simt_finding_kind_t kind)
{
    static const char *const names[KV_SIMT_FINDING_KINDS] = {
        [KV_SIMT_DIVERGENT_BARRIER] = "divergent barrier",
        [KV_SIMT_INACTIVE_LANE] = "inactive lane",
        [KV_SIMT_OUT_OF_BOUNDS] = "out of bounds",
        [KV_SIMT_MISALIGNED] = "misaligned",
        [KV_SIMT_RACE] = "race",
        [KV_SIMT_UNWRITTEN] = "read before written",
        [KV_SIMT_HOST_ACCESS] = "host access",
        [KV_SIMT_MISUSE] = "misuse",
    };
    return (unsigned)kind < KV_SIMT_FINDING_KINDS ? names[kind] : "unknown";
}

/* " in KERNEL, block (x, y, z), thread (x, y, z)" */
static void place(char *text, size_t bytes)
{
    const kv_simt_lane_t *lane = kv_simt_block.current;
    if (!kv_simt_inside) {
        text[0] = '\0';
        return;
    }
    const kv_simt_index_t *block = &kv_simt_block.index;
    int length = snprintf(text, bytes, " in %s, block (%u, %u, %u)", kv_simt_block.launch->name,
        block->x, block->y, block->z);
    if (lane != NULL && length > 0 && (size_t)length < bytes) {
        const kv_simt_index_t *thread = &lane->seen.thread;
        snprintf(text + length, bytes - (size_t)length, ", thread (%u, %u, %u)", thread->x,
            thread->y, thread->z);
    }
}

void kv_simt_find(kv_simt_finding_kind_t kind, const char *format, ...)
{
    char cause[160], where[96];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cause, sizeof cause, format, arguments);
    va_end(arguments);
    place(where, sizeof where);
    pthread_mutex_lock(&lock);
    counts[kind]++;
    if (total < KV_SIMT_FINDINGS_KEPT) {
        kept[total].kind = kind;
        snprintf(kept[total].text, sizeof kept[total].text, "%s%s", cause, where);
        fprintf(stderr, "simt: %s: %s%s\n", kv_simt_finding_kind_name(kind), cause, where);
    }
    total++;
    pthread_mutex_unlock(&lock);
}

size_t kv_simt_finding_count(kv_simt_finding_kind_t kind)
{
    pthread_mutex_lock(&lock);
    size_t count = kind == KV_SIMT_FINDING_KINDS ? total : counts[kind];
    pthread_mutex_unlock(&lock);
    return count;
}

const kv_simt_finding_t *kv_simt_finding_at(size_t index)
{
    pthread_mutex_lock(&lock);
    const kv_simt_finding_t *found =
        index < total && index < KV_SIMT_FINDINGS_KEPT ? &kept[index] : NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

void kv_simt_findings_clear(void)
{
    pthread_mutex_lock(&lock);
    memset(counts, 0, sizeof counts);
    total = 0;
    pthread_mutex_unlock(&lock);
}
