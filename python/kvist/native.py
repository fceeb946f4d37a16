"""libkvist, as the other modules of the package use it.

`ffi` has the declarations of kvist.h, `lib` its functions: libkvist.so, which lies beside this
file. Nothing else in the package loads a library. cffi releases the interpreter's lock during each
call into it.

Threads: functions of `lib` that name a store belong to that store's thread (kvist.h).
"""
from __future__ import annotations

import os
from typing import Any

from kvist._declarations import ffi as _ffi

ffi: Any = _ffi
NULL: Any = ffi.NULL
LIBRARY_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libkvist.so")


def _load() -> Any:
    try:
        return ffi.dlopen(LIBRARY_PATH)
    except OSError as error:
        raise ImportError(
            f"{LIBRARY_PATH} cannot be loaded: {error}; do: install a kvist wheel, which brings "
            "all libraries, or the Debian packages of tools/packages.txt"
        ) from error


lib: Any = _load()

KEY_BYTES: int = lib.KVIST_KEY_BYTES


def text_of(characters: Any) -> str:
    """A C string or array of characters; "" for NULL."""
    return "" if characters == NULL else ffi.string(characters).decode("utf-8", "replace")
