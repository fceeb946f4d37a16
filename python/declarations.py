#!/usr/bin/env python3
"""Makes the package's declarations of libkvist: kvist.h, preprocessed, as a cffi module.

usage: declarations.py PREPROCESSED-HEADER EXPORTS MODULE-OUT

EXPORTS is the version script that the library is linked with (kvstore/libkvist.map).

The module is in cffi's out-of-line ABI mode: plain Python, read at import in about a millisecond
(parsing the declarations there takes a hundred times as long), and used with libkvist.so as it is:
without a compiler. It is made at build time, with cffi and pycparser; it is used with any cffi that
is not older.
"""
import fnmatch
import re
import sys

import cffi


def without_attributes(text: str) -> str:
    """Without __attribute__((...)), whatever parentheses are in it."""
    while (at := text.find("__attribute__")) >= 0:
        end = closing(text, text.index("(", at), "()")
        text = text[:at] + text[end:]
    return text


def without_bodies(text: str) -> str:
    """Without the functions that the header defines itself: no library has them."""
    while match := re.search(r"\bstatic\s+inline\b", text):
        end = closing(text, text.index("{", match.start()), "{}")
        text = text[: match.start()] + text[end:]
    return text


def closing(text: str, at: int, pair: str) -> int:
    """Index after the bracket that closes the one at `at`."""
    depth = 0
    for index in range(at, len(text)):
        depth += (text[index] == pair[0]) - (text[index] == pair[1])
        if depth == 0:
            return index + 1
    raise ValueError(f"the {pair[0]!r} at {text[at:at + 40]!r} is not closed")


def without_others(text: str, exported: list[str]) -> str:
    """Without functions that the library does not export: whoever looks at all that the module has,
    as vLLM does at its start, would have each of them looked up, and fail."""

    def kept(match: re.Match[str]) -> str:
        name = match.group(1)
        return match.group() if any(fnmatch.fnmatch(name, one) for one in exported) else ""

    return re.sub(r"^(?!typedef\b)\w[\w \*]*?\b(kv\w+)\([^;{}]*\)\s*;", kept, text, flags=re.M)


def exports_of(script: str) -> list[str]:
    """The patterns of its global symbols."""
    names = script[script.index("global:") + len("global:") : script.index("local:")]
    return [name.strip() for name in names.split(";") if name.strip()]


def main(header: str, exports: str, module: str) -> None:
    with open(header, encoding="utf-8") as file:
        text = without_bodies(without_attributes(file.read()))
    with open(exports, encoding="utf-8") as file:
        text = without_others(text, exports_of(file.read()))
    builder = cffi.FFI()
    builder.cdef(text)
    builder.set_source("kvist._declarations", None)
    builder.emit_python_code(module)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
