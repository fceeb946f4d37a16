/* What tests ask of the stand-in beyond CUDA's functions: failures, delays, order, leaks.
 *
 * Each function of the runtime counts its calls under its name ("cudaMalloc"). So do launches
 * ("launch") and, when a stream comes to them, operations under way ("run launch", "run copy",
 * "run set", "run work"): a failure injected there is what a GPU shows for a broken link or a bad
 * kernel, an error that stays. Calls that give something back do so and answer with the failure.
 * Copies under way also count as "damage": what fails there (with any error) is told to nobody, but
 * one bit of what arrived is wrong.
 *
 * Environment, read at the first call:
 *   KVIST_SIMT_FAIL    name:nth:error, ... ("cudaMalloc:3:2" fails the third with error 2)
 *   KVIST_SIMT_DELAY   microseconds that an operation may be delayed by
 *   KVIST_SIMT_SEED    of delays and of the order of threads, warps and blocks
 *   KVIST_SIMT_MEMORY  MiB of device memory
 *   KVIST_SIMT_CHIP    the compute capability it says it has, read whenever it is asked: 90 for 9.0
 *   KVIST_SIMT_CONTROL a folder: control from outside
 *
 * Control from outside. In that folder each process that loads the stand-in listens at PID.sock
 * (SOCK_SEQPACKET, one message asks and one answers):
 *   fail NAME:NTH:ERROR   "planned", "too many"
 *   fail none             "forgotten"
 *   waiting               how many of those have not happened
 *   calls NAME            calls of the name so far
 *   held                  device bytes, pinned ranges, streams, events
 *
 * Threads: any. */
#ifndef KV_KERNELS_SIMT_CONTROL_H
#define KV_KERNELS_SIMT_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { KV_SIMT_FAILURES_MAX = 16, KV_SIMT_CALLS_MAX = 96 };

/* The nth call of the name from now on (1: the next) answers with the cudaError_t; false if
 * KV_SIMT_FAILURES_MAX are waiting already. A failure happens once. */
bool kv_simt_fail(const char *name, uint64_t nth, int error);
void kv_simt_fail_none(void);

/* Of those that were asked for, how many have not happened yet. */
size_t kv_simt_failures_waiting(void);

/* Calls of the name so far; the name number index that was called so far, or NULL. */
uint64_t kv_simt_call_count(const char *name);
const char *kv_simt_call_name(size_t index);

/* Every operation of a stream waits for up to delay_us_max first, by the seed. */
void kv_simt_set_delay(uint32_t delay_us_max, uint64_t seed);

/* What is still held. */
typedef struct {
    size_t device_bytes, pinned_ranges, streams, events;
} kv_simt_held_t;
void kv_simt_held(kv_simt_held_t *held_out);

/* The device as new: waits for the streams, takes back whatever was held, forgets errors, failures
 * and counts. Handles from before are invalid. Findings stay. */
void kv_simt_reset(void);

#ifdef __cplusplus
}
#endif

#endif
