"""What is being saved, and the hold on its pages, at the scheduler's side.

A job's pages are read by the workers for some steps. For so long this holds a reference of its own
to each of them in vLLM's block pool, so that nobody else gets them: not when the request ends, not
when it is preempted, not when a window moves on.

Owns: references in the block pool, one for each page of each job that has not ended.
Borrows: the block pool. Threads: the scheduler's. Errors: none.
Invariant: a job is told as ended once, when all workers have reported it; then its references are
given back, and the pool's free blocks are as if it had never been.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvist.vllm.metadata import NO_PAGE, Pages, SaveJob, SaveResult

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request

FRESH_S = 0.5
"""A job younger than this is worth waiting for before another request is preempted."""


@dataclass
class _Job:
    request: Request
    sequence: int
    first_block: int
    block_count: int
    held: list[KVCacheBlock]
    begun_s: float
    reported: int = 0
    stored: bool = True


@dataclass(frozen=True)
class Ended:
    """A job that all workers have reported."""

    request: Request
    sequence: int
    first_block: int
    block_count: int
    stored: bool


class Saves:
    """Jobs that have not ended."""

    def __init__(self, worker_count: int) -> None:
        self._worker_count = worker_count
        self._pool: BlockPool | None = None
        self._jobs: dict[int, _Job] = {}

    def bind(self, pool: BlockPool) -> None:
        self._pool = pool

    def page(self, block_id: int) -> int:
        """The page of one of vLLM's block ids: NO_PAGE for the one that stands for none."""
        assert self._pool is not None
        return NO_PAGE if block_id == self._pool.null_block.block_id else block_id

    def begin(self, job: SaveJob, request: Request) -> None:
        assert self._pool is not None
        held = [self._pool.blocks[page] for page in _distinct(job.pages)]
        self._pool.touch(held)
        self._jobs[job.job] = _Job(
            request, job.sequence, job.first_block, job.block_count, held, time.monotonic()
        )

    def report(self, number: int, result: SaveResult) -> Ended | None:
        """None: other workers have not reported it yet."""
        job = self._jobs[number]
        job.reported += result.workers
        job.stored = job.stored and result.stored
        if job.reported < self._worker_count:
            return None
        del self._jobs[number]
        self._give_back(job)
        return Ended(job.request, job.sequence, job.first_block, job.block_count, job.stored)

    def _give_back(self, job: _Job) -> None:
        assert self._pool is not None
        # The end of a prefix is evicted first, as vLLM has it.
        self._pool.free_blocks(reversed(job.held))

    def under_way(self) -> bool:
        return bool(self._jobs)

    def frees_soon(self) -> bool:
        """Whether pages come free by waiting: a young job is the only one to hold some."""
        now = time.monotonic()
        return any(
            now - job.begun_s < FRESH_S and any(block.ref_cnt == 1 for block in job.held)
            for job in self._jobs.values()
        )


def _distinct(pages: Pages) -> list[int]:
    """All pages, each once, in the order of blocks. Groups made of one of vLLM's share its ids."""
    found: dict[int, None] = {}
    for of_block in zip(*pages):
        found.update((page, None) for page in of_block if page != NO_PAGE)
    return list(found)
