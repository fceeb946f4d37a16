"""Stores in an asyncio program: `loaded = await lease.load(pieces)`.

The store's descriptor is watched by the running loop from the first await on, until the store is
closed; whatever else the store has to do is done by the way.

Threads: the loop runs on the store's thread. For a store elsewhere, await what a StoreThread
returns: `await asyncio.wrap_future(thread.submit(function))`.
"""
from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from kvist.pending import Pending
    from kvist.store import Store

Result = TypeVar("Result")
_watched: weakref.WeakKeyDictionary[Store, asyncio.AbstractEventLoop] = weakref.WeakKeyDictionary()


def watch(store: Store) -> None:
    """Has the running loop poll the store from now on."""
    loop = asyncio.get_running_loop()
    before = _watched.get(store)
    if before is loop:
        return
    if before is not None and not before.is_closed():
        before.remove_reader(store.fileno())
    reference = weakref.ref(store)
    descriptor = store.fileno()

    def poll() -> None:
        of = reference()
        if of is not None and not of.closed:
            of.poll()

    loop.add_reader(descriptor, poll)
    _watched[store] = loop
    store.at_close(lambda: _unwatch(store, descriptor))


def _unwatch(store: Store, descriptor: int) -> None:
    loop = _watched.pop(store, None)
    if loop is not None and not loop.is_closed():
        loop.remove_reader(descriptor)


async def wait(pending: Pending[Result]) -> Result:
    """The result of what is pending; the loop goes on meanwhile. Cancelling the task gives up
    waiting, not what is pending: that is released with its lease."""
    if not pending.done:
        watch(pending.store)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake(_pending: Any) -> None:
            if not future.done():
                future.set_result(None)

        pending.add_done_callback(wake)
        pending.store.poll()
        await future
    return pending.result()
