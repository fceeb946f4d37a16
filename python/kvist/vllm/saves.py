"""What is being saved, and the hold on its pages, at the scheduler's side.

Blocks of a request are asked to be saved once, in order from block 0 on, as steps complete them:
one sequence of jobs. A job's pages are read by the workers for some steps. For so long this holds a
reference of its own to each of them in vLLM's block pool, so that nobody else gets them: not when
the request ends, not when it is preempted, not when a window moves on.

Owns: references in the block pool, one for each page of each job that has not ended.
Borrows: the block pool. Threads: the scheduler's. Errors: none.
Invariant: a job is over once, when all workers have reported it; then its references are given
back, and the pool's free blocks are as if it had never been.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from kvist.vllm.config import Config
from kvist.vllm.metadata import (
    NO_PAGE,
    GroupDescription,
    Pages,
    SaveJob,
    SaveResult,
)
from kvist.vllm.prompts import Prompts, token_array
from kvist.vllm.tracked import Tracked

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request

FRESH_S = 0.5
"""A job younger than this is worth waiting for before another request is preempted."""
SAVE_AGAIN_S = 1.0
"""After a save failed its request's blocks are not begun with again for so long."""

Tables = Sequence[Sequence[int]]
"""[vLLM's groups][blocks]: block ids of a request."""


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
    """Of one engine."""

    def __init__(
        self,
        config: Config,
        groups: Sequence[GroupDescription],
        block_tokens: int,
        prompts: Prompts,
        pool: BlockPool,
        worker_count: int,
    ) -> None:
        """groups: in Kvist's order."""
        self._config = config
        self._groups = groups
        self._block_tokens = block_tokens
        self._prompts = prompts
        self._pool = pool
        self._worker_count = worker_count
        self._numbers = itertools.count(1)
        self._jobs: dict[int, _Job] = {}

    # ---- jobs ----

    def save(
        self, tracked: Tracked, end_token: int, tables: Callable[[], Optional[Tables]]
    ) -> SaveJob | None:
        """A job for the blocks that are complete up to end_token and were not asked for yet; None:
        there are none. tables: asked for where there are some."""
        request = tracked.request
        if not self._config.save_generated:
            end_token = min(end_token, request.num_prompt_tokens)
        first = tracked.next_block
        # The cheap bound first: most steps complete nothing.
        if tracked.owner is None or end_token // self._block_tokens <= first:
            return None
        end = self._prompts.cacheable_blocks(request, end_token)
        if end <= first or time.monotonic() < tracked.save_from_s:
            return None
        block_ids = tables()
        if block_ids is None:
            return None
        if tracked.sequence is None:
            tracked.sequence = next(self._numbers)
        job = SaveJob(
            next(self._numbers),
            tracked.sequence,
            request.request_id,
            tracked.owner,
            token_array(request, first * self._block_tokens, end * self._block_tokens),
            self._prompts.extras(request, first, end),
            first,
            end - first,
            self.pages(block_ids, first, end - first),
        )
        tracked.next_block = end
        self._hold(job, request)
        return job

    def pages(self, block_ids: Tables, first: int, count: int) -> Pages:
        """[groups][count] out of vLLM's tables."""
        null = self._pool.null_block.block_id
        return tuple(
            tuple(
                NO_PAGE if block_id == null else block_id
                for block_id in block_ids[group.engine_group][first : first + count]
            )
            for group in self._groups
        )

    def _hold(self, job: SaveJob, request: Request) -> None:
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
        # The end of a prefix is evicted first, as vLLM has it.
        self._pool.free_blocks(reversed(job.held))
        return Ended(job.request, job.sequence, job.first_block, job.block_count, job.stored)

    def begin_again(self, tracked: Tracked, sequence: int) -> bool:
        """A save of the sequence failed: what follows in its lease cannot be stored either. False:
        the request has another one by now. With one group all its pages are still there for
        another attempt; a window's are not."""
        if tracked.sequence != sequence:
            return False
        tracked.sequence = None
        if len(self._groups) > 1:
            tracked.save_from_s = float("inf")
        else:
            tracked.next_block = 0
            tracked.save_from_s = time.monotonic() + SAVE_AGAIN_S
        return True

    # ---- what is held ----

    def under_way(self) -> bool:
        return bool(self._jobs)

    def free_soon(self) -> bool:
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
