#!/usr/bin/env python3
"""Makes the package's declarations of libkvist: kvist.h, preprocessed, as a cffi module.

usage: declarations.py PREPROCESSED-HEADER MODULE-OUT

The module is in cffi's out-of-line ABI mode: plain Python, read at import in about a millisecond
(parsing the declarations at import took 300 times as long), and used with libkvist.so as it is:
without a compiler. It is made at build time, with cffi and pycparser; it is used with any cffi
that is not older.
"""
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


def main(header: str, module: str) -> None:
    with open(header, encoding="utf-8") as file:
        text = without_bodies(without_attributes(file.read()))
    builder = cffi.FFI()
    builder.cdef(text)
    builder.set_source("kvist._declarations", None)
    builder.emit_python_code(module)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
