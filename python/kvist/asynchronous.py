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

from kvist.handle import Handle
from kvist.native import lib

if TYPE_CHECKING:
    from kvist.pending import Pending

Result = TypeVar("Result")
_loops: weakref.WeakKeyDictionary[Handle, asyncio.AbstractEventLoop] = weakref.WeakKeyDictionary()


def watch(handle: Handle) -> None:
    """Has the running loop poll the store from now on."""
    loop, descriptor = asyncio.get_running_loop(), lib.kvist_store_fd(handle.check())
    before = _loops.get(handle)
    if before is loop:
        return
    if before is None:
        handle.at_close.append(lambda: _unwatch(handle, descriptor))
    _unwatch(handle, descriptor)
    loop.add_reader(descriptor, handle.poll)
    _loops[handle] = loop


def _unwatch(handle: Handle, descriptor: int) -> None:
    loop = _loops.pop(handle, None)
    if loop is not None and not loop.is_closed():
        loop.remove_reader(descriptor)


async def wait(pending: Pending[Result]) -> Result:
    """The result of what is pending; the loop goes on meanwhile. Cancelling the task gives up
    waiting, not what is pending: that is cancelled with its lease."""
    if not pending.done:
        watch(pending.handle)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(_pending: Any) -> None:
            if not future.done():
                future.set_result(None)

        pending.add_done_callback(wake)
        await future
    return pending.result()
