/* Devices by name, and the plug-ins that bring them: libkvist-cuda.so with the GPUs of this
 * machine, libkvist-simt.so with their kernels run on the CPU, for tests. A plug-in lies beside the
 * program, or in ../lib/kvist from there, or in the folder that the environment's KVIST_PLUGINS
 * names; without it, or without a GPU, everything goes on without that device.
 *
 *   auto    what the environment's KVIST_DEVICE names; without it the first GPU where there is one
 *           that the plug-in can use, else the CPU
 *   cpu     the CPU
 *   cuda:N  the GPU of that number; cuda: number 0
 *   simt    the GPU's kernels on the CPU
 *
 * Owns: a plug-in stays loaded as long as the process: its code may be in use by threads of its
 * libraries even after the device was closed.
 * Threads: open from one thread at a time.
 * Errors: KV_INVALID for a name that is none; KV_MISSING for a device or plug-in that is not there,
 * with the cause; KV_REFUSED for a plug-in of another build. */
#ifndef KV_KERNELS_PLUGIN_H
#define KV_KERNELS_PLUGIN_H

#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a plug-in exports under KV_PLUGIN_SYMBOL. The first two fields tell a plug-in of another
 * build before anything else of it is believed. */
typedef struct {
    uint32_t version;   /* KV_PLUGIN_VERSION */
    uint32_t ops_bytes; /* sizeof(kv_device_ops_t) */
    const char *build;  /* the project's version */
    const char *name;   /* "cuda" */

    /* The device of that number; KV_MISSING: there is none. */
    kv_status_t (*open)(uint32_t number, kv_device_t **device_out, kv_error_t *error);
} kv_device_plugin_t;

enum { KV_PLUGIN_VERSION = 2, KV_DEVICE_NAME_BYTES = 16 };
#define KV_PLUGIN_SYMBOL "kv_device_plugin"

enum { KV_DEVICE_TITLE_BYTES = 160 };

/* A device by its name. thread_count: of the CPU's team. passed_over_out: why auto took no GPU, its
 * status KV_OK where that is no question; may be NULL. */
kv_status_t kv_device_open(const char *name, uint32_t thread_count, kv_device_t **device_out,
    kv_error_t *passed_over_out, kv_error_t *error);

#ifdef __cplusplus
}
#endif

#endif
