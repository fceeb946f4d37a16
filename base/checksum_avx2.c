#include "base/checksum_kernel.h"

KV_CHECKSUM_KERNEL(kv_checksum_avx2);
