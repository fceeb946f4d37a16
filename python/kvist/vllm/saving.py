"""Saves, on the thread that owns the store.

A sequence is one lease, which its jobs go through in order, each going on where the one before
ended, from block 0 on:

    (first job, at block 0) --> open --> failed: a block could not be stored, or a job has a gap
                                 |          |   all that is behind it is given up
                                 +--ended---+--> gone, once nothing of it is under way

A save begins before its bytes are at hand: what the store has already of the first job, which is
most of a context that came back, is then neither gathered nor offered.

Owns: the leases. Borrows: the store, the parts' memory.
Threads: the store's alone. Errors: none: each save ends once, as stored or with a reason.
Limits: as many open sequences as kvist-store allows leases; one more fails (busy).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import kvist
from kvist.vllm.jobs import Part
from kvist.vllm.metadata import SaveJob

logger = logging.getLogger("kvist.vllm")


@dataclass
class Save:
    """One job on its way.

    reason: why it is not stored; a save that has one
    from the start was refused, and fails its sequence. "" once it has ended: it is stored.
    parts: what is to be copied. staged_bytes: of host memory that they are in. held_count: of the
    job's blocks, those at its beginning that the store had.
    """

    job: SaveJob
    name_space: bytes
    parts: list[Part]
    reason: str = ""
    staged_bytes: int = 0
    held_count: int = 0
    began_s: float = field(default_factory=time.monotonic)
    parts_left: int = 0


@dataclass
class _Sequence:
    lease: kvist.Lease | None = None
    queried_count: int = 0  # blocks that the lease's query has
    next_block: int = 0
    under_way: int = 0
    failed: str = ""  # why
    ended: bool = False  # no further job comes


def _status_name(status: kvist.Status) -> str:
    return status.name.lower()


class Saves:
    """All saves of one worker."""

    def __init__(
        self,
        store: kvist.Store,
        terms_now: Callable[[], kvist.Terms],
        wait_s: float,
        ended: Callable[[Save], None],
    ) -> None:
        """terms_now: what blocks that are stored from now on are kept under. wait_s: for room.
        ended: called once for each save, when nothing will read its pages any more."""
        self._store = store
        self._terms_now = terms_now
        self._wait_s = wait_s
        self._ended = ended
        self._sequences: dict[int, _Sequence] = {}

    def begin(self, save: Save) -> None:
        """Behind its sequence's earlier ones; takes off its parts what is stored already. add must
        follow, when the bytes are there."""
        job = save.job
        sequence = self._sequences.setdefault(job.sequence, _Sequence())
        sequence.under_way += 1
        if not save.reason:
            save.reason = sequence.failed
        if not save.reason and job.first_block != sequence.next_block:
            save.reason = "gap"
        if not save.reason:
            sequence.next_block += job.block_count
            if sequence.lease is None:
                self._guarded(save, lambda: self._open(sequence, save))
        sequence.failed = sequence.failed or save.reason

    def add(self, save: Save) -> None:
        """Stores it. Its reason may have come meanwhile."""
        sequence = self._sequences[save.job.sequence]
        save.parts_left = 1  # this function's, so that it does not end while it begins
        if not save.reason:
            save.reason = sequence.failed
        if not save.reason:
            self._guarded(save, lambda: self._store_parts(sequence, save))
        self._part_over(sequence, save)

    def end_sequence(self, number: int) -> None:
        """No further job of it comes."""
        sequence = self._sequences.get(number)
        if sequence is not None:
            sequence.ended = True
            self._forget_if_over(number, sequence)

    def cancel_all(self) -> None:
        """Of the store's end."""
        for number, sequence in list(self._sequences.items()):
            sequence.failed = sequence.failed or "cancelled"
            self._release(sequence)
            self.end_sequence(number)

    @staticmethod
    def _guarded(save: Save, work: Callable[[], None]) -> None:
        try:
            work()
        except kvist.KvistError as error:
            save.reason = _status_name(error.status)
        except Exception:
            logger.exception("kvist: a mistake in saving; do: report it")
            save.reason = "mistake"

    def _open(self, sequence: _Sequence, save: Save) -> None:
        job = save.job
        lease = sequence.lease = self._store.match(
            save.name_space,
            job.tokens,
            terms=self._terms_now(),
            renew=True,
            extras=job.extras,
            uncounted=True,
        )
        sequence.queried_count = job.block_count
        save.held_count = lease.match.block_count
        for part in save.parts:
            part.skip(save.held_count - part.first_block)
        save.parts = [part for part in save.parts if part.block_count]

    def _store_parts(self, sequence: _Sequence, save: Save) -> None:
        job, lease = save.job, sequence.lease
        assert lease is not None
        queried = job.first_block < sequence.queried_count
        tokens = job.tokens.reshape(job.block_count, -1)
        for part in save.parts:
            begin = part.first_block - job.first_block
            end = begin + part.block_count
            pending = lease.store(
                part.stage.pieces(part.block_count),
                first_block=part.first_block,
                block_count=part.block_count,
                group=part.group,
                tokens=None if queried else tokens[begin:end].reshape(-1),
                extras=None if queried or job.extras is None else job.extras[begin:end],
                timeout_s=self._wait_s,
            )
            save.parts_left += 1
            pending.add_done_callback(partial(self._stored, sequence, save, part))

    def _stored(
        self, sequence: _Sequence, save: Save, part: Part, pending: kvist.Pending[int]
    ) -> None:
        error = pending.error()
        if error is not None:
            save.reason = _status_name(error.status)
        elif pending.result() < part.block_count:
            save.reason = "missing"
        self._part_over(sequence, save)

    def _part_over(self, sequence: _Sequence, save: Save) -> None:
        sequence.failed = sequence.failed or save.reason
        save.parts_left -= 1
        if save.parts_left == 0:
            sequence.under_way -= 1
            self._ended(save)
            if sequence.failed and sequence.under_way == 0:
                self._release(sequence)  # nobody is to wait for what it will not store
            self._forget_if_over(save.job.sequence, sequence)

    def _forget_if_over(self, number: int, sequence: _Sequence) -> None:
        if sequence.ended and sequence.under_way == 0:
            self._release(sequence)
            self._sequences.pop(number, None)

    @staticmethod
    def _release(sequence: _Sequence) -> None:
        lease, sequence.lease = sequence.lease, None
        if lease is not None:
            lease.release()
