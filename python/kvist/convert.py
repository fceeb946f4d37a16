"""Values of the caller's on their way into C: what does not fit is an error that names the field,
never a wrapped number or a cut string."""
from __future__ import annotations

import array
import enum
import os
from typing import Any, Optional, Sequence, Type, TypeVar, Union

from kvist.errors import invalid
from kvist.native import KEY_BYTES, NULL, ffi

# Token ids: a contiguous array of unsigned 32-bit integers (numpy's uint32, array.array("I")) is
# used in place, any other sequence of integers is copied.
Tokens = Union[Sequence[int], Any]
# For each block 32 bytes more of what it depends on, or None; or all of them together.
Extras = Union[Sequence[Optional[bytes]], bytes]
Enumeration = TypeVar("Enumeration", bound=enum.IntEnum)


def u32(field: str, value: int) -> int:
    """The value, if it fits."""
    return _bounded(field, value, 32)


def u64(field: str, value: int) -> int:
    """The value, if it fits."""
    return _bounded(field, value, 64)


def _bounded(field: str, value: int, bits: int) -> int:
    try:
        if 0 <= value < 1 << bits and value == int(value):
            return int(value)
    except TypeError:
        pass
    raise invalid(f"{field} is {value!r}: it must be a whole number from 0 to 2^{bits} - 1")


def enumeration(field: str, kind: Type[Enumeration], value: Any) -> Enumeration:
    """The value, if it is one of the enumeration."""
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
        raise invalid(f"{field} is {value!r}: it must be one of {names}") from None


def c_string(field: str, text: Optional[str]) -> Any:
    """A new C string that lives as long as what is returned; NULL for None."""
    return NULL if text is None else _terminated(field, text.encode())


def c_path(field: str, path: Optional[Union[str, os.PathLike[str]]]) -> Any:
    """As c_string, of a path in the file system's encoding."""
    return NULL if path is None else _terminated(field, os.fsencode(path))


def _terminated(field: str, text: bytes) -> Any:
    if b"\0" in text:
        raise invalid(f"{field} has a character of code 0")
    return ffi.new("char[]", text)


def key_bytes(field: str, key: bytes) -> bytes:
    """The key, if it is one."""
    if not isinstance(key, (bytes, bytearray)) or len(key) != KEY_BYTES:
        what = f"{len(key)} bytes" if isinstance(key, (bytes, bytearray)) else type(key).__name__
        raise invalid(f"{field} is {what}: it must be {KEY_BYTES} bytes")
    return key


def c_key(field: str, key: bytes) -> Any:
    """A new kvist_key_t."""
    made = ffi.new("kvist_key_t *")
    ffi.memmove(made.bytes, key_bytes(field, key), KEY_BYTES)
    return made


def key_of(made: Any) -> bytes:
    """A kvist_key_t as bytes."""
    return bytes(ffi.buffer(made.bytes))


def split_keys(made: Any, count: int) -> list[bytes]:
    """A C array of keys as bytes objects."""
    if count == 0:
        return []
    together = bytes(ffi.buffer(made, count * KEY_BYTES))
    return [together[at : at + KEY_BYTES] for at in range(0, count * KEY_BYTES, KEY_BYTES)]


def token_array(tokens: Tokens) -> Any:
    """A uint32_t array of the token ids, without a copy where they lie as such; it holds what they
    lie in."""
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]
        if view.format in ("I", "=I", "<I") and view.itemsize == 4 and view.c_contiguous:
            return ffi.from_buffer("uint32_t[]", tokens)
    except TypeError:
        pass  # no buffer: a list, a tensor
    try:
        copied = array.array("I", integers(tokens))
    except (TypeError, OverflowError, ValueError) as error:
        raise invalid(
            f"tokens are no token ids: {error}",
            "give a sequence of integers from 0 to 2^32 - 1, at best a numpy array of uint32",
        ) from error
    return ffi.from_buffer("uint32_t[]", copied) if copied else ffi.new("uint32_t[]", 0)


def integers(values: Any) -> Any:
    """What array.array takes numbers from; it would take bytes for the numbers' own memory."""
    if isinstance(values, (bytes, bytearray)):
        raise TypeError(f"{type(values).__name__} is no sequence of integers here")
    return values.tolist() if hasattr(values, "tolist") else values


def extra_array(extras: Optional[Extras], block_count: int) -> Any:
    """A kvist_key_t array of the blocks' extra keys; NULL for None. It holds what they lie in."""
    if extras is None:
        return NULL
    try:
        together = extras if isinstance(extras, (bytes, bytearray)) else _joined(extras)
    except TypeError as error:
        raise invalid(
            f"extras are no extra keys: {error}",
            f"give {KEY_BYTES} bytes or None for each whole block, or all of them in one object",
        ) from error
    if len(together) != block_count * KEY_BYTES:
        raise invalid(
            f"extras have {len(together)} bytes: {block_count} whole blocks have {KEY_BYTES} each"
        )
    return ffi.from_buffer("kvist_key_t[]", together)


def _joined(extras: Sequence[Optional[bytes]]) -> bytes:
    none = bytes(KEY_BYTES)
    return b"".join(none if extra is None else key_bytes("extras", extra) for extra in extras)
