"""What the host's store has of a prompt, asked by the scheduler's side.

Each worker's part of a model's KV lies under a namespace of its own, so a look-up asks for the
prompt under all of them: a block is found where every worker's part of it is. What was found is
leased until it was loaded: meanwhile nothing of it is evicted.

Owns: the scheduler's attached store, on a thread of its own, and the leases of answers that were
not released. Borrows: nothing.
Threads: the scheduler's; look_up waits for the store's thread, which waits for kvist-store for at
most a quarter of a second for each worker.
Errors: ValueError when it is made: kvist-store refuses this layout or user. Later trouble with the
store is an answer without blocks.
Limits: NAMES_MAX namespaces are remembered; others are computed anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

import kvist
from kvist.vllm import identity
from kvist.vllm.config import Config
from kvist.vllm.metadata import Description, Owner
from kvist.vllm.stores import open_thread

logger = logging.getLogger("kvist.vllm")

NAMES_MAX = 4096


@dataclass(frozen=True)
class Run:
    """Consecutive found blocks of one tier: the slowest that any worker's part of them is in."""

    first_block: int
    block_count: int
    tier: kvist.Tier


@dataclass
class Answer:
    """What was found, and why it is not more; held until LookUps.release.

    block_count: of every worker's part, from block 0 on. runs: of those, in order.
    miss: of the worker whose part ends first; none or short where nothing is missing.
    """

    block_count: int
    runs: tuple[Run, ...]
    miss: kvist.Miss
    leases: list[kvist.Lease] = field(default_factory=list, repr=False)


class LookUps:
    """Of one engine, whose workers have described what they have."""

    def __init__(self, config: Config, descriptions: Sequence[Description]) -> None:
        """descriptions: of all workers, in any order."""
        layouts = [identity.layout_of(each) for each in descriptions]
        self.block_tokens = layouts[0].block_tokens
        if any(layout != layouts[0] for layout in layouts):
            raise ValueError(
                "kvist: the pipeline's stages have KV of different layouts (layers for each stage: "
                f"{[sum(len(g.layer_names) for g in each.groups) for each in descriptions]}); "
                "choose a --pipeline-parallel-size that divides the model's layers"
            )
        self._descriptions = tuple(descriptions)
        self._layout = layouts[0]
        self._names: OrderedDict[Owner, tuple[bytes, ...]] = OrderedDict()
        self._open: dict[int, Answer] = {}  # by id(): answers that hold leases
        self.attached = False  # as of the last look-up
        self._thread = open_thread(config, layouts[0], "kvist-look-ups")

    def look_up(
        self,
        owner: Owner,
        tokens: NDArray[numpy.uint32],
        extras: Sequence[bytes] | None,
        request: int,
        again: bool = False,
    ) -> Answer:
        """tokens: uint32 [blocks x block_tokens], all that could be used. extras: of each block.
        again: the request was looked up before; kvist-store's statistics count it once."""
        try:
            answer: Answer = self._thread.call(
                self._match_all, self._names_of(owner), tokens, extras, request, again
            )
        except kvist.KvistError as error:
            logger.warning("a look-up in the store failed: %s", error)
            return Answer(0, (), kvist.Miss.FAILED)
        if answer.leases:
            self._open[id(answer)] = answer
        return answer

    def release(self, answer: Answer) -> None:
        """Gives up the hold on what was found; a second time does nothing."""
        if self._open.pop(id(answer), None) is None:
            return
        leases, answer.leases = answer.leases, []
        try:
            self._thread.submit(_release, leases)
        except kvist.KvistError:
            pass  # the thread was closed, and every lease with it

    @property
    def held(self) -> int:
        """Answers that hold leases."""
        return len(self._open)

    def key_of(
        self, owner: Owner, tokens: NDArray[numpy.uint32], extras: Sequence[bytes] | None
    ) -> bytes:
        """Of the last whole block, for the first worker: the same at another engine alone if its
        namespace is the same."""
        keys = kvist.keys(self._names_of(owner)[0], tokens, self.block_tokens, extras)
        return keys[-1] if keys else b""

    def close(self) -> None:
        self._thread.close()
        self._open.clear()

    def _names_of(self, owner: Owner) -> tuple[bytes, ...]:
        names = self._names.get(owner)
        if names is None:
            names = tuple(
                identity.name_space(each, self._layout, owner) for each in self._descriptions
            )
            self._names[owner] = names
            if len(self._names) > NAMES_MAX:
                self._names.popitem(last=False)
        return names

    # ---- on the store's thread ----

    def _match_all(
        self,
        store: kvist.Store,
        names: Sequence[bytes],
        tokens: NDArray[numpy.uint32],
        extras: Sequence[bytes] | None,
        request: int,
        again: bool,
    ) -> Answer:
        leases: list[kvist.Lease] = []
        count, miss = len(tokens) // self.block_tokens, kvist.Miss.NONE

        def match(name: bytes, uncounted: bool) -> kvist.Lease:
            return store.match(
                name,
                tokens[: count * self.block_tokens],
                mode=kvist.Mode.READ,
                request=request,
                extras=None if extras is None else extras[:count],
                uncounted=uncounted,
            )

        try:
            for name in names:
                lease = match(name, again or bool(leases))
                leases.append(lease)
                if lease.match.block_count < count:
                    count, miss = lease.match.block_count, lease.match.miss
                if count == 0:
                    break
            # With windows a longer match does not hold what a shorter one needs.
            for i, name in enumerate(names):
                if count and len(self._layout.groups) > 1 and leases[i].match.block_count > count:
                    leases[i].release()
                    leases[i] = match(name, uncounted=True)
                    count = min(count, leases[i].match.block_count)
        except BaseException:
            _release(store, leases)
            raise
        self.attached = store.attached_to is not None
        runs = _slowest_runs([lease.runs() for lease in leases], count)
        if count == 0:
            _release(store, leases)
            leases = []
        return Answer(count, runs, miss, leases)


def _release(store: kvist.Store, leases: Sequence[kvist.Lease]) -> None:
    for lease in leases:
        lease.release()


def _slowest_runs(of_workers: Sequence[Sequence[kvist.Run]], count: int) -> tuple[Run, ...]:
    """Runs of the first count blocks, each in the slowest tier of any worker."""
    if len(of_workers) == 1:
        cut = [(run.first_block, min(run.block_count, count - run.first_block), run.tier)
               for run in of_workers[0]]  # fmt: skip
        return tuple(Run(*each) for each in cut if each[1] > 0)
    tiers = [kvist.Tier.DEVICE] * count
    for runs in of_workers:
        for run in runs:
            for block in range(run.first_block, min(run.first_block + run.block_count, count)):
                tiers[block] = max(tiers[block], run.tier)
    made: list[Run] = []
    for block, tier in enumerate(tiers):
        if made and made[-1].tier == tier:
            made[-1] = Run(made[-1].first_block, made[-1].block_count + 1, tier)
        else:
            made.append(Run(block, 1, tier))
    return tuple(made)
