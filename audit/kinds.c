#include "audit/audit.h"

static const struct {
    const char *name, *advice;
} KINDS[KV_AUDIT_KINDS] = {
    [KV_AUDIT_NONE] = {"none", ""},
    [KV_AUDIT_TIMESTAMP] = {"timestamp",
        "Put the time at the end of the prompt, into the last message, or round it to what the "
        "task needs (the day)."},
    [KV_AUDIT_UUID] = {"uuid",
        "Send ids of requests and traces in headers, not in the prompt; give tool calls the ids "
        "that they had when they were made."},
    [KV_AUDIT_COUNTER] = {"counter",
        "Put numbers that change (turn, budget, queue) at the end of the prompt, or leave them "
        "out."},
    [KV_AUDIT_JSON_KEYS] = {"reordered_json_keys",
        "Write JSON with its keys in one order (sorted, or as they were first written), and lists "
        "that stand for sets sorted."},
    [KV_AUDIT_TOOLS] = {"reordered_tools",
        "Send tools in one order, sorted by name: not in that of a set, a map or of who answered "
        "first."},
    [KV_AUDIT_WHITESPACE] = {"whitespace",
        "Write the same text byte by byte each time: one way of JSON's blanks, of line ends, of "
        "trimming messages."},
    [KV_AUDIT_SUMMARY] = {"rewritten_summary",
        "Let summaries stand once they are made and add to them at the end; rewrite one rarely, "
        "when much can be dropped at once."},
    [KV_AUDIT_HISTORY] = {"trimmed_history",
        "Keep the history and add to it; when it must be cut, cut much and seldom instead of a "
        "turn each time."},
    [KV_AUDIT_TEMPLATE] = {"template_change",
        "Release changes of templates, system messages and tool sets rarely and for all callers "
        "at once; what differs by user or mode belongs behind what is common."},
    [KV_AUDIT_OTHER] = {"other",
        "Keep what was sent before as it was, and put what changes behind what stays."},
};

const char *kv_audit_kind_name(kv_audit_kind_t kind)
{
    return KINDS[kind].name;
}

const char *kv_audit_advice(kv_audit_kind_t kind)
{
    return KINDS[kind].advice;
}
