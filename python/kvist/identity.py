"""Identity: namespaces, the keys of blocks, fingerprints. Pure functions, for any thread.

Keys are the same in every process and on every machine; docs/formats.md has their encoding.
"""
from __future__ import annotations

import enum
import os
from typing import Any, Optional, Union

from kvist.convert import (
    Extras,
    Tokens,
    c_key,
    c_path,
    c_string,
    enumeration,
    extra_array,
    key_bytes,
    key_of,
    split_keys,
    token_array,
    u32,
)
from kvist.errors import invalid, new_error, raise_for
from kvist.layout import Layout
from kvist.native import KEY_BYTES, ffi, lib


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
    return key_of(lib.kvist_namespace(params))


def namespace_params(
    model: bytes, layout: Layout, dtype: Dtype, salt: Union[bytes, str], adapter: str
) -> tuple[Any, Any]:
    """The kvist_namespace_params_t, and what must live as long as it is used."""
    salt = salt.encode() if isinstance(salt, str) else bytes(salt)
    params = ffi.new("kvist_namespace_params_t *")
    kept = (layout, ffi.from_buffer(salt), c_string("adapter", adapter))
    ffi.memmove(params.model.bytes, key_bytes("model", model), KEY_BYTES)
    params.layout = layout.c
    params.dtype = enumeration("dtype", Dtype, dtype)
    params.codec_class = lib.KVIST_CODEC_CLASS_LOSSLESS
    params.salt, params.salt_bytes = kept[1], len(salt)
    params.adapter = kept[2]
    return params, kept


def keys(
    name_space: bytes, tokens: Tokens, block_tokens: int, extras: Optional[Extras] = None
) -> list[bytes]:
    """Keys of the whole blocks of a context, from its first one on; each names all before it.

    extras: for each whole block 32 bytes more of what its KV depends on, a digest of the images
    behind its placeholder tokens, say; None, or zeros: nothing. Or all of them in one bytes object.
    """
    if u32("block_tokens", block_tokens) == 0:
        raise invalid("block_tokens is 0: it must be 1 or more")
    ids = token_array(tokens)
    count = len(ids) // block_tokens
    made = ffi.new("kvist_key_t[]", count)
    more = extra_array(extras, count)
    lib.kvist_keys(c_key("name_space", name_space), ids, more, len(ids), block_tokens, made)
    return split_keys(made, count)


def fingerprint_file(
    path: Union[str, os.PathLike[str]],
    cache_folder: Optional[Union[str, os.PathLike[str]]] = None,
) -> bytes:
    """SHA-256 of a model file: 32 bytes. Remembered by device, inode, size and mtime in
    cache_folder. KvistError: the file cannot be read."""
    key, error = ffi.new("kvist_key_t *"), new_error()
    status = lib.kvist_fingerprint_file(
        c_path("path", path), c_path("cache_folder", cache_folder), key, error
    )
    raise_for(status, error)
    return key_of(key)


def key_file_new(path: Union[str, os.PathLike[str]]) -> None:
    """Makes a key file with a new random key, for its owner alone: a store's key_file. KvistError
    (REFUSED): there is a file."""
    error = new_error()
    raise_for(lib.kvist_key_file_new(c_path("path", path), error), error)


def key_file_rotate(path: Union[str, os.PathLike[str]]) -> None:
    """Gives the key file a new key, before the one that it has: a store that is opened with it
    wraps its keys anew. When all were, the later lines can be deleted."""
    error = new_error()
    raise_for(lib.kvist_key_file_rotate(c_path("path", path), error), error)
