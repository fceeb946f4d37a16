"""Values in one form that is equal in every process: what digests of configurations are made of.

Threads: pure functions. Errors: ValueError for what has no such form.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def canonical(value: Any) -> str:
    """JSON of the value, in one way alone: sorted keys, no blanks, ASCII. Enumerators are their
    values, tuples and sets lists (sets sorted), types of tensors and classes their names.
    ValueError: something in it has no such form (an object that prints its address would differ in
    every process, and every look-up would be a miss)."""
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def canonical_digest(value: Any) -> bytes:
    """SHA-256 of the value's canonical JSON: 32 bytes."""
    return hashlib.sha256(canonical(value).encode()).digest()


def plain(value: Any, where: str = "") -> Any:
    """The value out of dict, list, str, int, float, bool and None alone."""
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        # JSON has no others; as text they cannot be taken for numbers.
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, (set, frozenset)):
        return sorted((plain(each, where) for each in value), key=json.dumps)
    if isinstance(value, Sequence):
        return [plain(each, f"{where}[{i}]") for i, each in enumerate(value)]
    if callable(getattr(value, "to_dict", None)):
        return plain(value.to_dict(), where)
    if dataclasses.is_dataclass(value):
        return {
            each.name: plain(getattr(value, each.name), f"{where}.{each.name}")
            for each in dataclasses.fields(value)
        }
    raise ValueError(
        f"kvist: the model's configuration has a {type(value).__name__} at {where or 'its top'}, "
        "which has no form that is equal in every process; leave it out of --hf-overrides, or "
        "leave --kv-transfer-config off for this model"
    )


def _plain_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, each in value.items():
        # JSON's keys are texts: 1 and "1" must not meet unnoticed.
        name = key if isinstance(key, str) else f"{type(key).__name__}:{plain(key, where)}"
        made[name] = plain(each, f"{where}.{name}")
    return made
