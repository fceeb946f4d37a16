"""Saves, on the thread that owns the store.

A sequence is one WRITE lease, which its jobs go through in order, each going on where the one
before ended, from block 0 on:

    (first job, at block 0) --> open --> failed: a block could not be stored, or a job has a gap
                                 |          |   all that is behind it is given up
                                 +--ended---+--> gone, once nothing of it is under way

The store is asked first: what it has already is not copied.

Owns: the WRITE leases. Borrows: the store, the parts' memory.
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
    staged_bytes: of host memory that its parts are in.
    """

    job: SaveJob
    name_space: bytes
    parts: list[Part]
    reason: str = ""
    staged_bytes: int = 0
    began_s: float = field(default_factory=time.monotonic)
    parts_left: int = 0


@dataclass
class _Sequence:
    lease: kvist.Lease | None = None
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

    def add(self, save: Save) -> None:
        """Begins it, behind its sequence's earlier ones."""
        sequence = self._sequences.setdefault(save.job.sequence, _Sequence())
        sequence.under_way += 1
        save.parts_left = 1  # this function's, so that it does not end while it begins
        if not save.reason:
            save.reason = sequence.failed
        if not save.reason and save.job.first_block != sequence.next_block:
            save.reason = "gap"
        if not save.reason:
            sequence.next_block += save.job.block_count
            try:
                self._begin(sequence, save)
            except kvist.KvistError as error:
                save.reason = _status_name(error.status)
            except Exception:
                logger.exception("kvist: a mistake in saving; do: report it")
                save.reason = "mistake"
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

    def _begin(self, sequence: _Sequence, save: Save) -> None:
        job = save.job
        queried = sequence.lease is None  # the blocks are in the lease's query
        if sequence.lease is None:
            sequence.lease = self._store.match(
                save.name_space,
                job.tokens,
                mode=kvist.Mode.WRITE,
                terms=self._terms_now(),
                extras=job.extras,
            )
        tokens = job.tokens.reshape(job.block_count, -1)
        for part in save.parts:
            begin = part.first_block - job.first_block
            end = begin + part.block_count
            pending = sequence.lease.store(
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
