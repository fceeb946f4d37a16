"""Pending: what a store was asked for and has not ended yet.

libkvist answers by callbacks, which run inside the store's poll. Here they only note what they were
told, so nothing can be raised into C; the caller's own callbacks run after the poll, and may call
the store as they like. Until the note is taken, what is pending holds the memory that C borrows.
"""
from __future__ import annotations

import itertools
import logging
import select
import time
from typing import TYPE_CHECKING, Any, Callable, Generator, Generic, Optional, TypeVar

from kvist.errors import KvistError, Status
from kvist.native import ffi, lib
from kvist.records import Loaded, Miss

if TYPE_CHECKING:
    from kvist.store import Store

Result = TypeVar("Result")
logger = logging.getLogger("kvist")


class Pending(Generic[Result]):
    """The outcome of a load, a store, a flush, a drop or a verification, once it is there.

    It comes while the store is polled: by Store.poll, by result() of this or another one, by an
    event loop (await) or by a StoreThread.

    Threads: its store's.
    """

    __slots__ = ("_store", "_number", "_outcome", "_error", "_make", "_held", "_callbacks", "done")

    done: bool  # whether the outcome is there

    def __init__(
        self, store: Store, make: Callable[..., Result], held: Any
    ) -> None:
        """make: the result of what the callback was told (status first), or an error raised;
        held: what C borrows until then."""
        self._store = store
        self._make = make
        self._held = held
        self._outcome: Any = None
        self._error: Optional[KvistError] = None
        self._callbacks: list[Callable[[Pending[Result]], Any]] = []
        self.done = False
        self._number = next(_numbers)
        store.in_flight[self._number] = self
        _in_flight[self._number] = store

    def result(self, timeout_s: Optional[float] = None) -> Result:
        """The result, which is waited for while the store is polled.

        timeout_s: TimeoutError after so many seconds; what is pending goes on.
        KvistError: it failed, or was cancelled.
        """
        self._store.check()
        if not self.done:
            self._wait(timeout_s)
        if self._error is not None:
            raise self._error
        result: Result = self._outcome
        return result

    def error(self) -> Optional[KvistError]:
        """How it failed; None: it did not, or is not over."""
        return self._error

    def add_done_callback(self, function: Callable[[Pending[Result]], Any]) -> None:
        """Calls function(self) on the store's thread when it is over, after the poll that told; at
        once where it is over already. What it raises is logged."""
        if self.done:
            _call(function, self)
        else:
            self._callbacks.append(function)

    def __await__(self) -> Generator[Any, None, Result]:
        from kvist.asynchronous import wait

        return wait(self).__await__()

    @property
    def store(self) -> Store:
        """Whose it is."""
        return self._store

    def _wait(self, timeout_s: Optional[float]) -> None:
        ready = select.poll()
        ready.register(self._store.fileno(), select.POLLIN)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        self._store.poll()
        while not self.done:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"nothing within {timeout_s} s; it goes on")
            ready.poll(None if left is None else left * 1000)
            self._store.poll()

    # For the package.

    @property
    def context(self) -> Any:
        """What C is to give back to the callback."""
        return ffi.cast("void *", self._number)

    def refuse(self) -> None:
        """C has not taken it: no callback will run."""
        del _in_flight[self._number], self._store.in_flight[self._number]
        self._held = None

    def end(self, told: tuple[Any, ...]) -> None:
        """Takes the callback's note; nothing is borrowed any more."""
        try:
            self._outcome = self._make(*told)
        except KvistError as error:
            self._error = error
        self._held = None
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for function in callbacks:
            _call(function, self)


_numbers = itertools.count(1)
_in_flight: dict[int, Store] = {}


def _call(function: Callable[[Any], Any], pending: Any) -> None:
    try:
        function(pending)
    except Exception:
        logger.exception("a callback of the caller's failed; do: correct it")


def _note(context: Any, told: tuple[Any, ...]) -> None:
    number = int(ffi.cast("uintptr_t", context))
    _in_flight.pop(number).ended.append((number, told))


# ---- what libkvist calls ----


@ffi.callback("kvist_loaded_t")  # type: ignore[untyped-decorator]
def on_loaded(context: Any, lease: Any, status: int, block_count: int, miss: int) -> None:
    _note(context, (status, block_count, miss))


@ffi.callback("kvist_stored_t")  # type: ignore[untyped-decorator]
def on_stored(context: Any, lease: Any, status: int, block_count: int) -> None:
    _note(context, (status, block_count))


@ffi.callback("void(*)(void *, kv_status_t)")  # type: ignore[untyped-decorator]
def on_flushed(context: Any, status: int) -> None:
    _note(context, (status,))


# ---- what becomes of it ----


def loaded(status: int, block_count: int, miss: int) -> Loaded:
    if status != lib.KV_OK:
        raise ended("the load", status)
    return Loaded(block_count, Miss(miss))


_NOT_STORED = {
    Status.BUSY: ("there was no room before the deadline", "give more time or more host memory"),
    Status.NO_SPACE: (
        "there is no room to be had: no host tier, or all of it is pinned or leased",
        "give more host memory, or release and unpin what is not needed",
    ),
    Status.MISSING: (
        "what they go on from was not stored, or is gone",
        "match again, and store from the first block that is missing",
    ),
    Status.REFUSED: ("another block has that key", "leave it: the keys of two contexts collide"),
}


def stored(status: int, block_count: int) -> int:
    if status != lib.KV_OK:
        text, remedy = _NOT_STORED.get(Status(status), (None, None))
        raise ended("the store", status, text, remedy, block_count)
    return block_count


def flushed(status: int) -> None:
    if status != lib.KV_OK:
        raise ended("the flush", status)


def ended(
    what: str,
    status: int,
    text: Optional[str] = None,
    remedy: Optional[str] = None,
    block_count: Optional[int] = None,
) -> KvistError:
    """The error that something ended with."""
    if text is None:
        text = {
            Status.CANCELLED: "its lease was released, or the store closed, before its end",
            Status.PEER_LOST: "kvist-store does not answer",
        }.get(Status(status), ffi.string(lib.kv_status_name(status)).decode())
    of = "" if block_count is None else f" after {block_count} blocks"
    return KvistError(Status(status), f"{what} ended{of}: {text}", remedy, block_count)
