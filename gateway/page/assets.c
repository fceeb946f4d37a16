/* The page's files, put into the program as they are. */
#include "gateway/page/page_internal.h"

#include <string.h>

#define ASSET(name, file)                                                                          \
    __asm__(".section .rodata\n" #name ":\n.incbin \"" KVIST_PAGE "/" file "\"\n" #name            \
            "_end:\n.byte 0\n.text\n");                                                            \
    extern const char name[] __attribute__((visibility("hidden")));                                \
    extern const char name##_end[] __attribute__((visibility("hidden")))

ASSET(kv_asset_index, "index.html");
ASSET(kv_asset_style, "page.css");
ASSET(kv_asset_script, "page.js");
ASSET(kv_asset_icon, "icon.svg");

static const kv_asset_t ASSETS[] = {
    {"/", "text/html; charset=utf-8", kv_asset_index, kv_asset_index_end},
    {"/page.css", "text/css; charset=utf-8", kv_asset_style, kv_asset_style_end},
    {"/page.js", "text/javascript; charset=utf-8", kv_asset_script, kv_asset_script_end},
    {"/icon.svg", "image/svg+xml", kv_asset_icon, kv_asset_icon_end},
};

const kv_asset_t *kv_asset_find(const char *path)
{
    for (size_t i = 0; i < sizeof ASSETS / sizeof ASSETS[0]; i++) {
        if (strcmp(ASSETS[i].path, path) == 0) {
            return &ASSETS[i];
        }
    }
    return NULL;
}
