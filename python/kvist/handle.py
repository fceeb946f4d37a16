"""The handle: an open kvist_store_t, whose thread it is, and what of it is not over.

The rules of libkvist that Python could break without noticing are kept here: one thread, no call
after a fork, no lease open when the store closes, memory borrowed until C has let go of it.
"""
from __future__ import annotations

import collections
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Optional

from kvist.callbacks import raise_interruption
from kvist.errors import invalid
from kvist.native import NULL, ffi, lib

if TYPE_CHECKING:
    from kvist.contents import Listening
    from kvist.pending import Pending

logger = logging.getLogger("kvist")


class Handle:
    """Of an open store; the package's own.

    attach: the path of an attached store's service.
    leases: the open ones (kvist_lease_t *), by number.
    in_flight: what C has yet to answer, by number; what it holds is borrowed.
    ended: notes of C's callbacks: number, and what they were told.
    listening: who is told of changes.
    selection, put, query, lease_out, match_out: for the arguments of one call at a time, which
        copies what it is given.

    Threads: the store's, but for orphan.
    """

    def __init__(self) -> None:
        self.store: Any = NULL
        self.attach: Optional[str] = None
        self._there = True  # what was last said of the service
        self.leases: dict[int, Any] = {}
        self.in_flight: dict[int, Pending[Any]] = {}
        self.ended: collections.deque[tuple[int, tuple[Any, ...]]] = collections.deque()
        self.listening: Optional[Listening] = None
        self.wake: Optional[Callable[[], None]] = None  # told of orphans, on any thread
        self.at_close: list[Callable[[], None]] = []
        self.selection = ffi.new("kvist_selection_t *")
        self.put = ffi.new("kvist_put_t *")
        self.query = ffi.new("kvist_query_t *")
        self.lease_out = ffi.new("kvist_lease_t **")
        self.match_out = ffi.new("kvist_match_t *")
        self._orphans: collections.deque[int] = collections.deque()
        self._lease_count = 0
        self._owner = threading.get_ident()
        self._forked = False

    @property
    def is_open(self) -> bool:
        """Whether there is a store, and it is this process's."""
        return bool(self.store != NULL)

    def check(self) -> Any:
        """The store, if this thread may call it; releases what other threads left."""
        if threading.get_ident() != self._owner or self.store == NULL:
            self._refuse()
        while self._orphans:
            self._release(self._orphans.popleft())
        return self.store

    def lease(self, number: int) -> Any:
        """The open lease of this number."""
        self.check()
        made = self.leases.get(number)
        if made is None:
            raise invalid("the lease was released", "match again")
        return made

    def add_lease(self) -> int:
        """The number of the new lease in lease_out."""
        self._lease_count += 1
        self.leases[self._lease_count] = self.lease_out[0]
        return self._lease_count

    def release(self, number: int) -> None:
        """Releases the lease, if it is open."""
        if number in self.leases:
            self.check()
            self._release(number)

    def _release(self, number: int) -> None:
        if number in self.leases:
            made = self.leases[number]
            del self.leases[number]  # no call is between this and the next: no interruption either
            lib.kvist_lease_release(made)

    def give_back(self, made: Any) -> None:
        """Releases a lease that its caller has not come to have."""
        for number in [number for number, lease in self.leases.items() if lease == made]:
            del self.leases[number]
        lib.kvist_lease_release(made)

    def orphan(self, number: int) -> None:
        """A lease that nobody has any more: the store's next call releases it. Any thread."""
        self._orphans.append(number)
        wake = self.wake
        if wake is not None:
            wake()

    def poll(self) -> None:
        """Does what is to be done, and ends what is pending."""
        lib.kvist_store_poll(self.check())
        self.watch()
        self.take_ended()

    def watch(self) -> None:
        """Warns once when an attached store's service is away, and tells when it is back."""
        if self.attach is None:
            return
        there = lib.kvist_store_attached_to(self.store) != NULL
        if there == self._there:
            return
        self._there = there
        if there:
            logger.warning("kvist-store is back: attached to %s", self.attach)
        else:
            logger.warning(
                "kvist-store is away: not attached to %s (standard error says why); nothing is "
                "found and nothing stored until it is back, which is tried meanwhile; do: start "
                "kvist-store, or correct the path",
                self.attach,
            )

    def take_ended(self) -> None:
        """Ends what C has answered, and runs the caller's callbacks."""
        while self.ended:
            # An interruption may come between any two steps: the note goes when it was taken.
            number, told = self.ended[0]
            pending, is_over = self.in_flight.get(number), told[0] is not None
            if is_over:
                if pending is not None:
                    pending.settle(told)
                self.in_flight.pop(number, None)
            self.ended.popleft()
            if pending is not None:
                if is_over:
                    pending.call_back()
                else:
                    pending.tell(told[1])
        if self.listening is not None:
            self.listening.tell()
        raise_interruption()

    def adopt(self) -> None:
        """For a store that nobody has any more: no other thread can be in a call of it."""
        self._owner = threading.get_ident()

    def close(self) -> None:
        """Releases the leases, closes the store, ends what is pending."""
        self.check()
        for function in self.at_close:
            function()
        self.at_close.clear()
        _handles.discard(self)
        for number in list(self.leases):
            self._release(number)
        store, self.store = self.store, NULL
        try:
            lib.kvist_store_close(store)
        finally:
            self.take_ended()

    def forget(self) -> None:
        """In the child of a fork: the store is the parent's."""
        self.store = NULL
        self._forked = True
        self.leases.clear()
        self._orphans.clear()

    def opened(self, attach: Optional[str]) -> None:
        """The store is there; in children of this process it is forgotten."""
        self.attach = attach
        _handles.add(self)
        self.watch()

    def _refuse(self) -> None:
        if self._forked:
            raise invalid(
                "the store belongs to the process that this one was forked from",
                "open a store of this process's own",
            )
        if self.store == NULL:
            raise invalid("the store is closed", "open another one")
        raise invalid(
            f"this is thread {threading.current_thread().name}: the store belongs to the one that "
            "opened it",
            "call it there, or open it with a StoreThread and submit what is to be done",
        )


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def _after_fork() -> None:
    for handle in list(_handles):
        handle.forget()
    _handles.clear()


os.register_at_fork(after_in_child=_after_fork)
