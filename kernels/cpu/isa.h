/* The instruction sets that the CPU's kernels are written for, and which of them to use here.
 *
 * Threads: any.
 * Errors: KV_INVALID for an unknown value of KVIST_ISA. */
#ifndef KV_KERNELS_CPU_ISA_H
#define KV_KERNELS_CPU_ISA_H

#include "base/status.h"

#include <stdbool.h>

/* Ascending: a machine that has one has all before it. */
typedef enum {
    CPU_ISA_PLAIN,  /* C as the compiler makes it */
    CPU_ISA_AVX2,   /* with FMA and F16C */
    CPU_ISA_AVX512, /* F, BW, DQ, VL */
    CPU_ISA_AMX,    /* with AVX-512 BF16, permitted by the kernel */
} cpu_isa_t;

/* The best of the machine, asked for where asking is needed (AMX). */
cpu_isa_t cpu_isa_detect(void);

/* The lower of the machine's best and the cap in KVIST_ISA. */
kv_status_t cpu_isa_choose(cpu_isa_t *isa_out, kv_error_t *error);

#endif
