/* How each function of the stand-in begins and ends: counting, injected failures, errors that stay.
 *
 * Threads: any. */
#ifndef KV_KERNELS_SIMT_CALLS_H
#define KV_KERNELS_SIMT_CALLS_H

#include "kernels/simt/api.h"

/* Counts the call; the error that it must answer with at once: the one that stays, or an injected
 * one. The calling thread's last error is set. */
cudaError_t kv_simt_call(const char *name);

/* The same for an operation that a stream comes to: an injected failure stays. */
cudaError_t kv_simt_operation(const char *name);

/* Counted alike; true: it was planned, and breaks nothing. */
bool kv_simt_happens(const char *name);

/* Remembers the error for cudaGetLastError and gives it back. */
cudaError_t kv_simt_answer(cudaError_t error);

/* From now on every call answers with the error. */
void kv_simt_break(cudaError_t error);
cudaError_t kv_simt_broken(void);

/* The compute capability that the device says it has, 90 for 9.0. */
int kv_simt_chip(void);

/* How long the next operation is delayed. */
uint32_t kv_simt_next_delay_us(void);

/* Forgets counts, failures and the error that stays. */
void kv_simt_calls_reset(void);

#endif
