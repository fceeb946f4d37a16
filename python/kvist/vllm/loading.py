"""Loads, on the thread that owns the store.

    waiting --> begun: a READ lease of its own --> each part copied into the pages --> ended

At most LOADS_AT_ONCE are begun, first come, first served: the first request should have its blocks
before the last has any. What comes is a prefix of what was asked for. With one group that prefix
counts; with several all or nothing does, as vLLM knows no prefix there.

Owns: the READ leases. Borrows: the store, the parts' memory.
Threads: the store's alone. Errors: none: each load ends once, with what came and why it is not all.
Limits: LOADS_AT_ONCE.
"""

from __future__ import annotations

import enum
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import kvist
from kvist.vllm.jobs import Part
from kvist.vllm.metadata import LoadJob

logger = logging.getLogger("kvist.vllm")

LOADS_AT_ONCE = 8


@dataclass
class Load:
    """One job on its way.

    parts: of the pages; none: it was refused, for `reason`. good_count: blocks of the job that are
    in their pages, once it has ended. reason: why it is not all of them.
    """

    job: LoadJob
    name_space: bytes
    parts: list[Part]
    began_s: float = field(default_factory=time.monotonic)
    good_count: int = 0
    reason: enum.Enum | str = "failed"
    cancelled: bool = False
    lease: kvist.Lease | None = None
    parts_left: int = 0


class Loads:
    """All loads of one worker."""

    def __init__(self, store: kvist.Store, ended: Callable[[Load], None]) -> None:
        """ended: called once for each load, when nothing will be written to its pages any more."""
        self._store = store
        self._ended = ended
        self._waiting: deque[Load] = deque()
        self._going_on = False
        self._begun: dict[str, Load] = {}  # by request

    def add(self, load: Load) -> None:
        """Begins it, or lets it wait for its turn."""
        self._waiting.append(load)
        self._go_on()

    def cancel(self, request_id: str) -> None:
        """It ends as soon as can be; nothing where it has ended."""
        begun = self._begun.get(request_id)
        if begun is not None:
            begun.cancelled = True
            self._release(begun)  # the parts' callbacks end it
        for load in [load for load in self._waiting if load.job.request_id == request_id]:
            self._waiting.remove(load)
            load.cancelled = True
            self._ended(load)

    def cancel_all(self) -> None:
        """Of the store's end."""
        for load in [*self._waiting, *self._begun.values()]:
            self.cancel(load.job.request_id)

    def _go_on(self) -> None:
        """A load that ends at once comes back here: the loop goes on, however many do."""
        if self._going_on:
            return
        self._going_on = True
        while self._waiting and len(self._begun) < LOADS_AT_ONCE:
            self._begin_or_end(self._waiting.popleft())
        self._going_on = False

    def _begin_or_end(self, load: Load) -> None:
        self._begun[load.job.request_id] = load
        load.parts_left = 1  # this function's, so that it does not end while it begins
        try:
            self._begin(load)
        except kvist.KvistError as error:
            load.good_count, load.reason = 0, error.status
        except Exception:
            logger.exception("kvist: a mistake in loading; do: report it")
            load.good_count, load.reason = 0, "mistake"
        self._part_over(load)

    def _begin(self, load: Load) -> None:
        job = load.job
        end = job.first_block + job.block_count
        load.lease = self._store.match(
            load.name_space,
            job.tokens,
            mode=kvist.Mode.READ,
            extras=job.extras,
            uncounted=True,  # the scheduler's side has asked, and was counted
        )
        match = load.lease.match
        count = max(min(match.block_count, end) - job.first_block, 0)
        if count < job.block_count:
            load.reason = match.miss
            if len(job.pages) > 1:
                return
        load.good_count = count
        for part in load.parts:
            if count > 0:
                self._copy(load, part, min(part.block_count, count))

    def _copy(self, load: Load, part: Part, block_count: int) -> None:
        assert load.lease is not None
        pending = load.lease.load(
            part.stage.pieces(block_count),
            first_block=part.first_block,
            block_count=block_count,
            group=part.group,
        )
        load.parts_left += 1
        pending.add_done_callback(partial(self._copied, load, part, block_count))

    def _copied(
        self, load: Load, part: Part, block_count: int, pending: kvist.Pending[kvist.Loaded]
    ) -> None:
        error = pending.error()
        good = 0 if error is not None else pending.result().block_count
        if good < block_count:
            load.reason = pending.result().miss if error is None else error.status
            several = len(load.job.pages) > 1
            load.good_count = 0 if several else min(load.good_count, good)
        self._part_over(load)

    def _part_over(self, load: Load) -> None:
        load.parts_left -= 1
        if load.parts_left == 0:
            self._release(load)
            del self._begun[load.job.request_id]
            if load.cancelled:
                load.good_count = 0
            self._ended(load)
            self._go_on()

    @staticmethod
    def _release(load: Load) -> None:
        lease, load.lease = load.lease, None
        if lease is not None:
            lease.release()
