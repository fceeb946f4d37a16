"""Errors: what every call of the package fails with."""
from __future__ import annotations

import enum
from typing import Any, Mapping, Optional, Tuple

from kvist.native import ffi, lib, text_of


class Status(enum.IntEnum):
    """What a caller should do; the numbers are kv_status_t's (base/status.h)."""

    OK = lib.KV_OK
    BUSY = lib.KV_BUSY
    MISSING = lib.KV_MISSING
    CORRUPT = lib.KV_CORRUPT
    PEER_LOST = lib.KV_PEER_LOST
    REFUSED = lib.KV_REFUSED
    INVALID = lib.KV_INVALID
    CANCELLED = lib.KV_CANCELLED
    IO = lib.KV_IO
    NO_SPACE = lib.KV_NO_SPACE
    FATAL = lib.KV_FATAL


# What to do, where a call knows nothing better.
_REMEDIES = {
    Status.BUSY: "try again later",
    Status.MISSING: "compute it, or ask elsewhere",
    Status.CORRUPT: "compute it again",
    Status.PEER_LOST: "go on without it; the store attaches again by itself, while it is polled, "
    "when kvist-store is back",
    Status.REFUSED: "look at the permissions, the user and the names",
    Status.INVALID: "correct the named field",
    Status.CANCELLED: "nothing: it was asked for",
    Status.IO: "look at the disk and the system's log; what is stored may be whole",
    Status.NO_SPACE: "give more room, or keep less",
    Status.FATAL: "close the store and open it again",
}


class KvistError(Exception):
    """A call that failed.

    status: what a caller should do, as a program reads it.
    text: the cause, with the field and its bound where there is one.
    remedy: what to do about it.
    block_count: of a store that ended early: so many first blocks were stored; else None.
    """

    def __init__(
        self,
        status: Status,
        text: str,
        remedy: Optional[str] = None,
        block_count: Optional[int] = None,
    ) -> None:
        self.status = status
        self.text = text
        self.remedy = _REMEDIES.get(status, "") if remedy is None else remedy
        self.block_count = block_count
        super().__init__(f"{text}; do: {self.remedy}" if self.remedy else text)

    def __reduce__(self) -> Any:
        return (KvistError, (self.status, self.text, self.remedy, self.block_count))


def invalid(text: str, remedy: Optional[str] = None) -> KvistError:
    """The caller's input is out of bounds: the text names the field and the bound."""
    return KvistError(Status.INVALID, text, remedy)


def new_error() -> Any:
    """A kv_error_t for a call to fill."""
    return ffi.new("kv_error_t *")


def raise_for(status: int, error: Any, remedy: Optional[str] = None) -> None:
    """Raises what a call returned and wrote to its kv_error_t, unless that is KV_OK."""
    if status != lib.KV_OK:
        text = text_of(error.text) or text_of(lib.kv_status_name(status))
        raise KvistError(Status(status), text, remedy)


# Of one call: what a status means there, and what to do.
Reasons = Mapping[Status, Tuple[str, str]]


def reason_of(status: int, reasons: Optional[Reasons] = None) -> Tuple[Status, str, Optional[str]]:
    """The status, its cause and its remedy, as the call's own reasons tell or else as any's."""
    try:
        known = Status(status)
    except ValueError:
        return Status.FATAL, f"libkvist answers with status {status}, which is none", None
    text, remedy = _COMMON.get(known, (text_of(lib.kv_status_name(status)), None))
    if reasons is not None and known in reasons:
        text, remedy = reasons[known]
    return known, text, remedy


def raise_status(what: str, status: int, reasons: Optional[Reasons] = None) -> None:
    """Raises what a call without a kv_error_t returned, unless that is KV_OK."""
    if status != lib.KV_OK:
        known, text, remedy = reason_of(status, reasons)
        raise KvistError(known, f"{what}: {text}", remedy)


_COMMON: Mapping[Status, Tuple[str, Optional[str]]] = {
    Status.CANCELLED: ("its lease was released, or the store closed, before its end", None),
    Status.PEER_LOST: ("kvist-store is away", None),
}
