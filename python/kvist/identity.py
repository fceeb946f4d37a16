"""Identity: namespaces, the keys of blocks, fingerprints. Pure functions, for any thread.

Keys are the same in every process and on every machine; docs/formats.md has their encoding.
"""
from __future__ import annotations

import array
import enum
import os
from typing import Any, Optional, Sequence, Union

from kvist.errors import invalid, new_error, raise_for
from kvist.layout import Layout
from kvist.native import KEY_BYTES, NULL, c_path, c_string, ffi, integers, lib

# Token ids: a contiguous array of unsigned 32-bit integers (numpy's uint32, array.array("I")) is
# used in place, any other sequence of integers is copied.
Tokens = Union[Sequence[int], Any]


class Dtype(enum.IntEnum):
    """The element type that a namespace names; what else there is belongs in its model digest."""

    BF16 = lib.KVIST_DTYPE_BF16
    F32 = lib.KVIST_DTYPE_F32


def name_space(
    model: bytes,
    layout: Layout,
    dtype: Dtype = Dtype.BF16,
    salt: Union[bytes, str] = b"",
    adapter: str = "",
) -> bytes:
    """What must be equal before two blocks may be compared at all: 32 bytes.

    model: 32 bytes, a digest of all that makes the KV what it is (fingerprint_file, or any digest
    of weights, hyperparameters and what else matters).
    salt: the tenant's; two salts share nothing.
    adapter: "" for none.
    """
    params, _kept = namespace_params(model, layout, dtype, salt, adapter)
    return bytes(ffi.buffer(lib.kvist_namespace(params).bytes))


def namespace_params(
    model: bytes, layout: Layout, dtype: Dtype, salt: Union[bytes, str], adapter: str
) -> tuple[Any, Any]:
    """The kvist_namespace_params_t, and what must live as long as it is used."""
    salt = salt.encode() if isinstance(salt, str) else bytes(salt)
    params = ffi.new("kvist_namespace_params_t *")
    kept = (layout, ffi.from_buffer(salt), c_string(adapter))
    ffi.memmove(params.model.bytes, key_bytes("model", model), KEY_BYTES)
    params.layout = layout.c
    params.dtype = Dtype(dtype)
    params.codec_class = lib.KVIST_CODEC_CLASS_LOSSLESS
    params.salt, params.salt_bytes = kept[1], len(salt)
    params.adapter = kept[2]
    return params, kept


def keys(
    name_space: bytes, tokens: Tokens, block_tokens: int, extras: Optional[Sequence[bytes]] = None
) -> list[bytes]:
    """Keys of the whole blocks of a context, from its first one on; each names all before it."""
    if not 1 <= block_tokens < 1 << 32:
        raise invalid(f"block_tokens is {block_tokens}: it must be 1 or more")
    ids = token_array(tokens)
    count = len(ids) // block_tokens
    of = ffi.new("kvist_key_t *")
    ffi.memmove(of, key_bytes("name_space", name_space), KEY_BYTES)
    made = ffi.new("kvist_key_t[]", count)
    no_extras(extras)
    lib.kvist_keys(of, ids, len(ids), block_tokens, made)
    return split_keys(made, count)


def fingerprint_file(
    path: Union[str, os.PathLike[str]],
    cache_folder: Optional[Union[str, os.PathLike[str]]] = None,
) -> bytes:
    """SHA-256 of a model file: 32 bytes. Remembered by device, inode, size and mtime in
    cache_folder. KvistError: the file cannot be read."""
    key, error = ffi.new("kvist_key_t *"), new_error()
    status = lib.kvist_fingerprint_file(c_path(path), c_path(cache_folder), key, error)
    raise_for(status, error)
    return bytes(ffi.buffer(key.bytes))


# ---- for the package ----


def key_bytes(field: str, key: bytes) -> bytes:
    """The key, if it is one."""
    if not isinstance(key, (bytes, bytearray)) or len(key) != KEY_BYTES:
        what = f"{len(key)} bytes" if isinstance(key, (bytes, bytearray)) else type(key).__name__
        raise invalid(f"{field} is {what}: it must be {KEY_BYTES} bytes")
    return key


def split_keys(made: Any, count: int) -> list[bytes]:
    """A C array of keys as bytes objects."""
    if count == 0:
        return []
    together = bytes(ffi.buffer(made, count * KEY_BYTES))
    return [together[at : at + KEY_BYTES] for at in range(0, count * KEY_BYTES, KEY_BYTES)]


def token_array(tokens: Tokens, field: str = "tokens") -> Any:
    """A uint32_t array of the token ids; without a copy where they lie as such. It holds what they
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
            f"{field} are no token ids: {error}",
            "give a sequence of integers from 0 to 2^32 - 1, at best a numpy array of uint32",
        ) from error
    return ffi.from_buffer("uint32_t[]", copied) if copied else ffi.new("uint32_t[]", 0)


def no_extras(extras: Optional[Sequence[bytes]]) -> Any:
    """Extra keys are not yet part of this libkvist."""
    if extras is not None:
        raise invalid("extras: this libkvist has no extra keys", "leave them off")
    return NULL
