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
from typing import Any, Callable, Generator, Generic, Optional, TypeVar

from kvist.callbacks import callback
from kvist.errors import KvistError, Reasons, Status, raise_status, reason_of
from kvist.handle import Handle
from kvist.native import ffi, lib
from kvist.records import Loaded, Miss
from kvist.stored import Verification

Result = TypeVar("Result")
logger = logging.getLogger("kvist")


class Pending(Generic[Result]):
    """The outcome of a load, a store, a flush, a drop or a verification, once it is there.

    It comes while the store is polled: by Store.poll, by result() of this or another one, by an
    event loop (await) or by a StoreThread. Dropping it cancels nothing.

    done: whether the outcome is there.
    Threads: its store's.
    """

    __slots__ = (
        "done", "_handle", "_number", "_outcome", "_error", "_make", "_held", "_progress",
        "_callbacks",
    )  # fmt: skip

    done: bool

    def __init__(
        self,
        handle: Handle,
        make: Callable[..., Result],
        held: Any,
        progress: Optional[Callable[[Any], Any]] = None,
    ) -> None:
        """make: the result of what the callback was told (status first), or a KvistError; held:
        what C borrows until then; progress: what is called with what a callback tells before."""
        self.done = False
        self._handle = handle
        self._make = make
        self._held = held
        self._progress = progress
        self._outcome: Any = None
        self._error: Optional[KvistError] = None
        self._callbacks: list[Callable[[Pending[Result]], Any]] = []
        self._number = next(_numbers)

    def result(self, timeout_s: Optional[float] = None) -> Result:
        """The result, which is waited for while the store is polled.

        timeout_s: TimeoutError after so many seconds; what is pending goes on.
        KvistError: it failed, or was cancelled.
        """
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
            call(function, self)
        else:
            self._handle.check()
            self._callbacks.append(function)

    def __await__(self) -> Generator[Any, None, Result]:
        from kvist.asynchronous import wait

        return wait(self).__await__()

    def __repr__(self) -> str:
        state = "under way" if not self.done else "failed" if self._error else "done"
        return f"<kvist.Pending {state}>"

    def _wait(self, timeout_s: Optional[float]) -> None:
        poll, ready = self._handle.poll, select.poll()
        ready.register(lib.kvist_store_fd(self._handle.check()), select.POLLIN)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        poll()
        while not self.done:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"nothing within {timeout_s} s; it goes on")
            ready.poll(None if left is None else left * 1000)
            poll()

    # For the package.

    @property
    def handle(self) -> Handle:
        """Whose it is."""
        return self._handle

    @property
    def context(self) -> Any:
        """What C is to give back to the callback."""
        return ffi.cast("void *", self._number)

    def ask(self, function: Any, *arguments: Any) -> int:
        """Calls C with the arguments, a callback and the context; returns the status. From then on
        it is in flight, unless C refused it.

        Call and result are one step of the interpreter's (map within extend): an interruption
        comes before or after it, and never leaves open whether C has borrowed memory.
        """
        statuses: list[Any] = []
        try:
            self._handle.in_flight[self._number] = self
            _handles[self._number] = self._handle
            each_alone = [(argument,) for argument in (*arguments, self.context)]
            statuses.extend(map(function, *each_alone))
        finally:
            if statuses not in _TAKEN:
                _handles.pop(self._number, None)
                self._handle.in_flight.pop(self._number, None)
                self._held = None
        return int(statuses[0] or lib.KV_OK)

    def asked(self, reasons: Optional[Reasons], what: str, *call: Any) -> Pending[Result]:
        """As ask; itself, or the error of the status."""
        raise_status(what, self.ask(*call), reasons)
        return self

    def tell(self, progress: Any) -> None:
        """It goes on."""
        if self._progress is not None:
            call(self._progress, progress)

    def settle(self, told: tuple[Any, ...]) -> None:
        """Takes the callback's note; nothing is borrowed any more. May be done again."""
        _handles.pop(self._number, None)
        try:
            self._outcome = self._make(*told)
        except KvistError as error:
            self._error = error
        self._held = None
        self.done = True

    def call_back(self) -> None:
        """Runs the caller's callbacks."""
        callbacks, self._callbacks = self._callbacks, []
        for function in callbacks:
            call(function, self)


_numbers = itertools.count(1)
_TAKEN = ([lib.KV_OK], [None])  # None: of a call that cannot refuse
_handles: dict[int, Handle] = {}  # of what is in flight


def call(function: Callable[[Any], Any], argument: Any) -> None:
    """Calls what the caller gave."""
    try:
        function(argument)
    except Exception:
        logger.exception("a callback of the caller's failed; do: correct it")


# ---- what libkvist calls, within a poll ----


def _note(context: Any, told: tuple[Any, ...]) -> None:
    number = int(ffi.cast("uintptr_t", context))
    handle = _handles.get(number)
    if handle is not None:
        handle.ended.append((number, told))


@callback("kvist_loaded_t")
def on_loaded(context: Any, _lease: Any, status: int, block_count: int, miss: int) -> None:
    _note(context, (status, block_count, miss))


@callback("kvist_stored_t")
def on_stored(context: Any, _lease: Any, status: int, block_count: int) -> None:
    _note(context, (status, block_count))


@callback("void(*)(void *, kv_status_t)")
def on_flushed(context: Any, status: int) -> None:
    _note(context, (status,))


@callback("kvist_dropped_t")
def on_dropped(context: Any, status: int, object_count: int) -> None:
    _note(context, (status, object_count))


@callback("void(*)(void *, const kvist_verify_t *)")
def on_progress(context: Any, state: Any) -> None:
    _note(context, (None, Verification.of(state)))


@callback("void(*)(void *, kv_status_t, const kvist_verify_t *)")
def on_verified(context: Any, status: int, state: Any) -> None:
    _note(context, (status, Verification.of(state)))


# ---- what becomes of it ----

_STORED: Reasons = {
    Status.BUSY: ("there was no room before the deadline", "give more time or more host memory"),
    Status.NO_SPACE: (
        "there is no room to be had: no host tier, or all of it is pinned or leased, or the "
        "tenant's quota is",
        "give more host memory, or release and unpin what is not needed",
    ),
    Status.MISSING: (
        "what they go on from was not stored, or is gone",
        "match again, and store from the first block that is missing",
    ),
    Status.REFUSED: ("another block has that key", "leave it: two contexts have one key"),
}
_FLUSHED: Reasons = {
    Status.MISSING: (
        "there is no disk tier: nothing becomes durable",
        "open the store with directory and disk_bytes; an attached store: give kvist-store a disk",
    ),
}
DROPPED: Reasons = {
    Status.MISSING: ("nothing of it is stored", "nothing: it is not there"),
    Status.BUSY: (
        "a lease holds what is to be erased, or a disk is missing and could bring it back",
        "release the leases, or bring the disk back; then drop again",
    ),
}


def loaded(status: int, block_count: int, miss: int) -> Loaded:
    """Of a load."""
    raise_status("the load", status)
    return Loaded(block_count, Miss(miss))


def stored(status: int, block_count: int) -> int:
    """Of a store."""
    if status != lib.KV_OK:
        known, text, remedy = reason_of(status, _STORED)
        text = f"the store ended after {block_count} blocks: {text}"
        raise KvistError(known, text, remedy, block_count)
    return block_count


def flushed(status: int) -> None:
    """Of a flush."""
    raise_status("the flush", status, _FLUSHED)


def dropped(status: int, object_count: int) -> int:
    """Of a drop."""
    raise_status("the drop", status, DROPPED)
    return object_count


def verified(status: int, state: Verification) -> Verification:
    """Of a verification."""
    raise_status("the verification", status)
    return state
