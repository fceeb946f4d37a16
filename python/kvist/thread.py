"""A store on a thread of its own."""
from __future__ import annotations

import atexit
import collections
import functools
import os
import select
import threading
import weakref
from concurrent.futures import Future
from typing import Any, Callable, Optional

from kvist.errors import KvistError, Status, invalid
from kvist.pending import Pending
from kvist.store import Store

Call = tuple[Callable[..., Any], tuple[Any, ...], "Future[Any]"]


class StoreThread:
    """A thread that opens a store, polls it whenever that has something to do, and calls it for
    others. The interpreter's lock is free while it waits and while bytes are copied.

    factory: makes the store, on the thread; what it raises, the constructor raises.

    Threads: any may submit and close.
    """

    def __init__(self, factory: Callable[[], Store], name: str = "kvist-store") -> None:
        self._calls: collections.deque[Call] = collections.deque()
        self._lock = threading.RLock()  # of what is below; garbage is collected under it too
        self._woken = False
        self._closing = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(factory, opened), name=name, daemon=True
        )
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self._thread.join()
            self._close_pipe()
            raise
        _at_exit_close(self)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Calls function(store, *arguments) on the thread. The future has what it returns; where
        that is a Pending, what that comes to. Cancelling it works until the call begins.
        KvistError (CANCELLED): the thread was closed."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closing:
                raise KvistError(Status.CANCELLED, "the store's thread was closed", "open another")
            self._calls.append((function, arguments, future))
        self._wake()
        return future

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """submit, and its result."""
        if threading.current_thread() is self._thread:
            raise invalid(
                "call() from the store's own thread would wait for itself",
                "call the function with the store",
            )
        return self.submit(function, *arguments).result()

    def close(self) -> None:
        """Makes the calls that were submitted, closes the store, ends the thread; a second time
        waits for the first. What is pending ends as Store.close says."""
        with self._lock:
            self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> StoreThread:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # ---- the thread ----

    def _wake(self) -> None:
        with self._lock:
            if self._woken or self._wake_write < 0:
                return
            self._woken = True
            os.write(self._wake_write, b"\0")

    def _take_wake(self) -> None:
        with self._lock:
            if self._woken:
                os.read(self._wake_read, 64)
                self._woken = False

    def _run(self, factory: Callable[[], Store], opened: Future[None]) -> None:
        try:
            store = factory()
        except BaseException as error:
            opened.set_exception(error)
            return
        try:
            store.handle.wake = self._wake
            ready = select.poll()
            ready.register(store.fileno(), select.POLLIN)
            ready.register(self._wake_read, select.POLLIN)
            opened.set_result(None)
            while not store.closed and (self._calls or not self._closing):
                store.poll()
                self._take_wake()
                self._make_calls(store)
                if not self._closing and not store.closed:
                    ready.poll()
        finally:
            store.handle.wake = None
            store.close()
            self._close_pipe()
            self._refuse_calls()

    def _refuse_calls(self) -> None:
        """Where the thread ended by an error, nobody waits for ever."""
        with self._lock:
            self._closing = True
        while self._calls:
            error = KvistError(Status.CANCELLED, "the store's thread has ended", "open another")
            self._calls.popleft()[2].set_exception(error)

    def _close_pipe(self) -> None:
        with self._lock:
            if self._wake_write >= 0:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_read = self._wake_write = -1

    def _make_calls(self, store: Store) -> None:
        while self._calls:
            function, arguments, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(store, *arguments)
            except BaseException as error:
                future.set_exception(error)
                continue
            if isinstance(result, Pending):
                result.add_done_callback(functools.partial(_pass_on, future))
            else:
                future.set_result(result)


def _pass_on(future: Future[Any], pending: Pending[Any]) -> None:
    error = pending.error()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(pending.result())


def _at_exit_close(thread: StoreThread) -> None:
    """Before the interpreter takes its memory away from under the copies."""
    reference = weakref.ref(thread)

    def close() -> None:
        of: Optional[StoreThread] = reference()
        if of is not None:
            of.close()

    atexit.register(close)
