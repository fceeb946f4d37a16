#include "tools/kvist/tour/text.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>

/* The files are put into the program as they are, each with a zero after it. */
#define EMBED(name, file)                                                                          \
    __asm__(".section .rodata\n" #name ":\n.incbin \"" KVIST_TOUR_FOLDER "/" file                  \
            "\"\n.byte 0\n.text\n");                                                               \
    extern const char name[] __attribute__((visibility("hidden")))

EMBED(kv_tour_system, "system.txt");
EMBED(kv_tour_tools, "tools.json");
EMBED(kv_tour_handbook, "handbook.md");
EMBED(kv_tour_log, "shift.log");

static json_t *message(const char *role, const char *format, const char *one, const char *two,
    const char *three, const char *four)
{
    size_t bytes = (size_t)snprintf(NULL, 0, format, one, two, three, four) + 1;
    char *text = kv_allocate(bytes);
    snprintf(text, bytes, format, one, two, three, four);
    json_t *made = json_pack("{s:s, s:s}", "role", role, "content", text);
    free(text);
    return made;
}

json_t *kv_tour_messages(const char *session, const char *question)
{
    json_t *messages = json_array();
    json_array_append_new(messages, message("system", "Session %s.\n\n%s\n%s\n%s", session,
                                        kv_tour_system, kv_tour_tools, kv_tour_handbook));
    json_array_append_new(
        messages, message("user", "The log of the shift so far:\n\n%s\nThe engineer asks: %s%s%s",
                      kv_tour_log, question, "", ""));
    return messages;
}
