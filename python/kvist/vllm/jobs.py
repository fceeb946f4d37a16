"""Jobs on their way between vLLM's pages and the store: what loads and saves have in common.

A job names a page for each of its blocks, in each group, or NO_PAGE. The store takes ranges of
blocks of one group: `parts_of` makes a job into those. Where pages are a device's, somebody must
wait for the device: `Stager` is a thread for that.

Owns: the stager's thread. Borrows: nothing.
Threads: parts are made on vLLM's thread, and belong to the store's (and the stager's) afterwards.
Errors: PageError where a page is none.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from kvist.vllm.addresses import PageError
from kvist.vllm.metadata import NO_PAGE, LoadJob, SaveJob
from kvist.vllm.pages import PageGroup, Stage

logger = logging.getLogger("kvist.vllm")

LOG_INTERVAL_S = 60.0


@dataclass
class Part:
    """Blocks of one group of a job: from first_block of the request on, without gaps."""

    group: int
    first_block: int
    block_count: int
    stage: Stage

    def skip(self, block_count: int) -> None:
        """Without its first blocks; of a save that is not ready yet."""
        count = min(max(block_count, 0), self.block_count)
        if count:
            self.first_block += count
            self.block_count -= count
            self.stage.skip(count)


def _ranges(pages: Sequence[int]) -> list[tuple[int, int]]:
    """[begin, end) of consecutive blocks that have a page."""
    if NO_PAGE not in pages:
        return [(0, len(pages))]
    there = numpy.array([False, *(page != NO_PAGE for page in pages), False])
    edges = numpy.flatnonzero(there[1:] != there[:-1])
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2])]


def parts_of(
    job: LoadJob | SaveJob, groups: Sequence[PageGroup], way: Callable[[PageGroup, Any], Stage]
) -> list[Part]:
    """The job's parts, group by group; way: PageGroup.to_load or to_save. Raises PageError."""
    if len(job.pages) != len(groups):
        raise PageError(f"a job of {len(job.pages)} groups, where {len(groups)} are expected")
    parts = []
    for number, (group, pages) in enumerate(zip(groups, job.pages)):
        if len(pages) != job.block_count:
            raise PageError(f"{len(pages)} pages for {job.block_count} blocks")
        for begin, end in _ranges(pages):
            page_ids = numpy.array(pages[begin:end], dtype=numpy.int64)
            stage = way(group, page_ids)
            parts.append(Part(number, job.first_block + begin, end - begin, stage))
    return parts


class Complaints:
    """Warnings, about one reason once in LOG_INTERVAL_S. Threads: any; one too many is no harm."""

    def __init__(self) -> None:
        self._told_s: dict[str, float] = {}

    def warn(self, reason: str, text: str, *values: Any) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s.get(reason, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._told_s[reason] = now_s
            logger.warning(text, *values)


class Stager:
    """A thread that does one thing after the other, in the order in which they were given."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kvist-stager", daemon=True)
        self._thread.start()

    def give(self, work: Callable[[], None]) -> None:
        """work must not raise: that would be logged, and whoever waits for it waits for ever."""
        self._queue.put(work)

    def close(self, timeout_s: float) -> None:
        """Waits until all that was given is done, but for no longer than that."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:
                logger.exception("kvist: a mistake in what waits for the device")


class Budget:
    """Bytes that may be in use at once. Threads: any."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._used_bytes = 0
        self._changed = threading.Condition()

    def take(self, size_bytes: int) -> None:
        """Waits until there is room; more than there is at all gets it alone."""
        with self._changed:
            while self._used_bytes and self._used_bytes + size_bytes > self._size_bytes:
                self._changed.wait()
            self._used_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        with self._changed:
            self._used_bytes -= size_bytes
            self._changed.notify_all()
