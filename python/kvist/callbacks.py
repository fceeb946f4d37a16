"""Callbacks that libkvist calls within a call of ours, and what may go wrong in them.

Python may raise KeyboardInterrupt in any function of the main thread, also in one that C has
called; cffi would print it and go on, and what C told would be lost. Here the function is called
again, and the exception raised when C has returned.

Threads: each has its own interruptions.
"""
from __future__ import annotations

import threading
from typing import Any, Callable, Optional

from kvist.native import ffi


class _Interruptions(threading.local):
    error: Optional[BaseException] = None


_interruptions = _Interruptions()


def callback(declaration: str) -> Callable[[Callable[..., None]], Any]:
    """Makes a C callback of a function that may be called twice with the same."""

    def make(function: Callable[..., None]) -> Any:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]

        def again(_kind: Any, error: BaseException, trace: Any) -> None:
            told = trace.tb_frame.f_locals
            _interruptions.error = error
            function(*(told[name] for name in names))

        return ffi.callback(declaration, function, onerror=again)

    return make


def raise_interruption() -> None:
    """To be called when C has returned."""
    error = _interruptions.error
    if error is not None:
        _interruptions.error = None
        raise error
