#include "gateway/description.h"

#include <string.h>

/* The file, and a zero after it. */
__asm__(
    ".section .rodata\nkv_description_text:\n.incbin \"" KVIST_DESCRIPTION "\"\n.byte 0\n.text\n");
extern const char kv_description_text[] __attribute__((visibility("hidden")));

const char *kv_description(size_t *bytes_out)
{
    *bytes_out = strlen(kv_description_text);
    return kv_description_text;
}
