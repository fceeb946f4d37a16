#include "kernels/device.h"

uint32_t kv_weight_block_elements(kv_weight_type_t type)
{
    switch (type) {
    case KV_WEIGHT_F32:
    case KV_WEIGHT_F16:
    case KV_WEIGHT_BF16:
        return 1;
    case KV_WEIGHT_Q4_0:
    case KV_WEIGHT_Q4_1:
    case KV_WEIGHT_Q8_0:
        return 32;
    case KV_WEIGHT_Q4_K:
    case KV_WEIGHT_Q6_K:
        return 256;
    }
    return 0;
}

uint32_t kv_weight_block_bytes(kv_weight_type_t type)
{
    switch (type) {
    case KV_WEIGHT_F32:
        return 4;
    case KV_WEIGHT_F16:
    case KV_WEIGHT_BF16:
        return 2;
    case KV_WEIGHT_Q4_0:
        return 18;
    case KV_WEIGHT_Q4_1:
        return 20;
    case KV_WEIGHT_Q8_0:
        return 34;
    case KV_WEIGHT_Q4_K:
        return 144;
    case KV_WEIGHT_Q6_K:
        return 210;
    }
    return 0;
}

void kv_device_close(kv_device_t *device)
{
    if (device != NULL) {
        device->ops->close(device);
    }
}
