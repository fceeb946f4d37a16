/* Small arrays of the host that kernels read: tokens and block tables. A forward pass names the
 * same block table in every layer; it goes to the device once. */
#include "kernels/cuda/device_internal.h"

#include <string.h>

enum { ALIGNMENT = 16 };
#define RING_BYTES_MIN ((size_t)1 << 20)

void cuda_uploads_close(cuda_device_t *cuda)
{
    cuda_uploads_t *uploads = &cuda->uploads;
    if (uploads->host != nullptr) {
        (void)cuda_check(cuda, cudaFreeHost(uploads->host), "cudaFreeHost", nullptr);
    }
    cuda_release(&cuda->device, uploads->device, uploads->bytes);
    uploads->host = uploads->device = nullptr;
    uploads->bytes = 0;
}

void cuda_uploads_reset(cuda_uploads_t *uploads)
{
    uploads->used = 0;
    uploads->table_count = 0;
}

static kv_status_t grow(cuda_device_t *cuda, size_t bytes, kv_error_t *error)
{
    cuda_uploads_t *uploads = &cuda->uploads;
    size_t wanted = RING_BYTES_MIN;
    while (wanted < bytes) {
        wanted *= 2;
    }
    cuda_uploads_close(cuda);
    void *host = nullptr, *memory = nullptr;
    kv_status_t status = cuda_check(
        cuda, cudaHostAlloc(&host, wanted, cudaHostAllocDefault), "cudaHostAlloc", error);
    if (status == KV_OK) {
        status = cuda_check(cuda, cudaMalloc(&memory, wanted), "cudaMalloc", error);
    }
    if (status != KV_OK) {
        (void)cudaFreeHost(host);
        return status;
    }
    uploads->host = (char *)host;
    uploads->device = (char *)memory;
    uploads->bytes = wanted;
    return KV_OK;
}

/* A full ring is waited for: what lies in it may still be read, and tables go up again when they
 * are named next. */
kv_status_t cuda_upload_reserve(
    cuda_device_t *cuda, size_t bytes, size_t *at_out, kv_error_t *error)
{
    cuda_uploads_t *uploads = &cuda->uploads;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes > uploads->bytes - uploads->used) {
        kv_status_t status =
            cuda_check(cuda, cudaStreamSynchronize(cuda->compute), "cudaStreamSynchronize", error);
        if (status != KV_OK) {
            return status;
        }
        cuda_uploads_reset(uploads);
        if (bytes > uploads->bytes) {
            status = grow(cuda, bytes, error);
            if (status != KV_OK) {
                return status;
            }
        }
    }
    *at_out = uploads->used;
    uploads->used += bytes;
    return KV_OK;
}

kv_status_t cuda_upload_send(cuda_device_t *cuda, size_t at, size_t bytes, kv_error_t *error)
{
    return cuda_check(cuda,
        cudaMemcpyAsync(cuda->uploads.device + at, cuda->uploads.host + at, bytes,
            cudaMemcpyHostToDevice, cuda->compute),
        "cudaMemcpyAsync", error);
}

kv_status_t cuda_upload_tokens(cuda_device_t *cuda, const uint32_t *tokens, uint32_t count,
    const uint32_t **device_out, kv_error_t *error)
{
    size_t at;
    const size_t bytes = count * sizeof *tokens;
    kv_status_t status = cuda_upload_reserve(cuda, bytes, &at, error);
    if (status != KV_OK) {
        return status;
    }
    memcpy(cuda->uploads.host + at, tokens, bytes);
    status = cuda_upload_send(cuda, at, bytes, error);
    if (status == KV_OK) {
        *device_out = (const uint32_t *)(cuda->uploads.device + at);
    }
    return status;
}

/* Slots of the block table that the sequence's tokens lie in. */
static uint32_t table_length(const kv_sequence_t *sequence, uint32_t block_tokens)
{
    return (sequence->position + sequence->row_count + block_tokens - 1) / block_tokens;
}

static const kv_sequence_t *find_table(const cuda_uploads_t *uploads,
    const kv_sequence_t *sequences, uint32_t count, uint32_t block_tokens)
{
    for (uint32_t i = 0; i < uploads->table_count; i++) {
        if (uploads->tables[i].key == sequences && uploads->tables[i].count == count &&
            uploads->tables[i].block_tokens == block_tokens) {
            return uploads->tables[i].device;
        }
    }
    return nullptr;
}

static void note_table(cuda_uploads_t *uploads, const kv_sequence_t *sequences, uint32_t count,
    uint32_t block_tokens, const kv_sequence_t *device)
{
    const uint32_t at = uploads->table_count % CUDA_TABLES_MAX;
    uploads->tables[at].key = sequences;
    uploads->tables[at].count = count;
    uploads->tables[at].block_tokens = block_tokens;
    uploads->tables[at].device = device;
    uploads->table_count = at + 1;
}

kv_status_t cuda_upload_sequences(cuda_device_t *cuda, const kv_sequence_t *sequences,
    uint32_t count, uint32_t block_tokens, const kv_sequence_t **device_out, kv_error_t *error)
{
    cuda_uploads_t *uploads = &cuda->uploads;
    const kv_sequence_t *known = find_table(uploads, sequences, count, block_tokens);
    if (known != nullptr) {
        *device_out = known;
        return KV_OK;
    }
    size_t bytes = count * sizeof *sequences, at;
    for (uint32_t i = 0; i < count; i++) {
        bytes += table_length(&sequences[i], block_tokens) * sizeof(uint32_t);
    }
    kv_status_t status = cuda_upload_reserve(cuda, bytes, &at, error);
    if (status != KV_OK) {
        return status;
    }
    kv_sequence_t *copies = (kv_sequence_t *)(uploads->host + at);
    size_t slots_at = at + count * sizeof *sequences;
    for (uint32_t i = 0; i < count; i++) {
        const size_t slots_bytes = table_length(&sequences[i], block_tokens) * sizeof(uint32_t);
        memcpy(uploads->host + slots_at, sequences[i].slots, slots_bytes);
        copies[i] = sequences[i];
        copies[i].slots = (const uint32_t *)(uploads->device + slots_at);
        slots_at += slots_bytes;
    }
    status = cuda_upload_send(cuda, at, bytes, error);
    if (status == KV_OK) {
        *device_out = (const kv_sequence_t *)(uploads->device + at);
        note_table(uploads, sequences, count, block_tokens, *device_out);
    }
    return status;
}
