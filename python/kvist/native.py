"""libkvist, as the other modules of the package use it.

`ffi` has the declarations of kvist.h, `lib` its functions: libkvist.so, which lies beside this
file. Nothing else in the package loads a library. cffi releases the interpreter's lock during each
call into it.

Threads: functions of `lib` that name a store belong to that store's thread (kvist.h).
"""
from __future__ import annotations

import os
from typing import Any, Optional

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


def c_string(text: Optional[str]) -> Any:
    """A new C string that lives as long as what is returned; NULL for None."""
    return NULL if text is None else ffi.new("char[]", text.encode())


def c_path(path: Optional[os.PathLike[str] | str]) -> Any:
    """As c_string, of a path in the file system's encoding."""
    return NULL if path is None else ffi.new("char[]", os.fsencode(path))


def integers(values: Any) -> Any:
    """What array.array takes numbers from; it would take bytes for the numbers' own memory."""
    if isinstance(values, (bytes, bytearray)):
        raise TypeError(f"{type(values).__name__} is no sequence of integers here")
    return values.tolist() if hasattr(values, "tolist") else values
