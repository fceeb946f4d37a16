"""The connector at vLLM's scheduler: what to load, what to save, and until when things are held.

    new request --matched_tokens--> found: leased --allocated--> LoadJob ... finished_recving
                        |             |                            leases released
                        |             +-- not taken, or the request ends: released
                        +-- pending, or announced by a prefill instance: asked again, bounded
    each step   --build_metadata--> SaveJobs of blocks that this step completes; pages held
                  update_output <-- WorkerReport: all workers done: pages given back

Which tokens a page holds. At the time of a step vLLM has computed C tokens of a request (of which
steps in flight are counted as if all their drafts were accepted), schedules n more, and knows N
token ids for certain: sampled tokens are appended when their step was processed, placeholders of
steps in flight and draft tokens are not among them. Every position below min(C + n, N) was, or is
in this very step, computed from just the token that stands there: its step had the prompt's token,
or the sampled one, as input. So the blocks below are complete when the step is, and only they are
saved. Where a load failed vLLM counts C back to the first block that did not come.

Owns: the look-ups' store, leases of what was found and not loaded yet, references to pages that
are being saved. Borrows: vLLM's requests, until finished.
Threads: the scheduler's. Errors: ValueError at start; then none: trouble is a miss.
Limits: none of its own.
"""

from __future__ import annotations

import functools
import itertools
import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.cache_hit_source import CacheHitSource

import kvist
from kvist.vllm import groups, handover
from kvist.vllm.config import Config
from kvist.vllm.events import Found, StoreEvents
from kvist.vllm.figures import Figures, KvistStatistics
from kvist.vllm.lookups import Answer, LookUps
from kvist.vllm.metadata import (
    Description,
    KvistMetadata,
    LoadJob,
    Owner,
    Pages,
    SaveJob,
    WorkerHandshake,
    WorkerReport,
)
from kvist.vllm.prompts import Prompts, token_array
from kvist.vllm.saves import Saves
from kvist.vllm.weights import Adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger("kvist.vllm")

ASK_AGAIN_S = 0.005
"""Between two look-ups of a request that waits for blocks that are on their way."""
MISS_HOLDS_S = 0.25
"""A request that waits for room in vLLM is asked for at every step; a miss is believed so long."""
SAVE_AGAIN_S = 1.0
"""After a save failed nothing begins at block 0 again for so long."""

GONE = (kvist.Miss.EVICTED, kvist.Miss.EXPIRED, kvist.Miss.DAMAGED, kvist.Miss.NOT_ADMITTED)
SOURCES = {
    kvist.Tier.DEVICE: CacheHitSource.HOST,
    kvist.Tier.HOST: CacheHitSource.HOST,
    kvist.Tier.DISK: CacheHitSource.DISK,
    kvist.Tier.REMOTE: CacheHitSource.P2P,
}


@dataclass
class _Tracked:
    """A request, from its first look-up or step to its end."""

    request: Request
    owner: Owner | None  # None: bypasses the store
    number: int
    # The look-up.
    first_asked_s: float | None = None
    asked_s: float = 0.0
    answer: Answer | None = None
    local_tokens: int = 0  # what vLLM had itself, at the last look-up
    announced: int = 0  # blocks that a prefill instance has announced
    told: bool = False  # the answer is among the figures
    load_pages: frozenset[int] | None = None  # while a load is under way
    load_failed: bool = False
    # Saves.
    sequence: int | None = None
    next_block: int = 0
    save_from_s: float = 0.0


@dataclass
class _Step:
    """What the next metadata will say beside this step's own saves."""

    loads: list[LoadJob] = field(default_factory=list)
    saves: list[SaveJob] = field(default_factory=list)
    ended_sequences: list[int] = field(default_factory=list)
    cancelled_loads: list[str] = field(default_factory=list)


class SchedulerSide:
    """The hooks of KvistConnector at the scheduler, under their names in connector.py."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, config: Config
    ) -> None:
        """ValueError: the model is not one that can be served."""
        self._config = config
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self.block_tokens, self._groups = groups.groups_of(vllm_config, kv_cache_config)
        self._prompts = Prompts(
            Adapters(config), self.block_tokens, groups.lookahead_tokens(vllm_config)
        )
        self._requests: dict[str, _Tracked] = {}
        self._numbers = itertools.count(1)
        self._step = _Step()
        self._epoch = b""  # since the last reset
        self._told_foreign = False
        self._figures = Figures("scheduler")
        self._events = _events_of(vllm_config, kv_cache_config, self.block_tokens)
        self._look_ups: LookUps | None = None
        self._saves = Saves(0)
        self._pool: BlockPool | None = None
        _recompute_failed_loads(vllm_config)

    # ---- start ----

    def bind_block_pool(self, pool: BlockPool) -> None:
        self._pool = pool
        self._saves.bind(pool)

    def set_handshakes(
        self, handshakes: Mapping[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """What the workers have, by (pipeline rank, tensor rank). ValueError: one is missing, or
        kvist-store does not serve what they have."""
        descriptions: list[Description] = []
        for rank in sorted(handshakes):
            handshake = handshakes[rank]
            if not isinstance(handshake, WorkerHandshake):
                raise ValueError(f"kvist: worker {rank} runs another connector")
            descriptions.append(handshake.description)
        parallel = self._vllm_config.parallel_config
        expected = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        if len(descriptions) != expected:
            raise ValueError(
                f"kvist: {len(descriptions)} workers have said what they have, of {expected}"
            )
        self._look_ups = LookUps(self._config, descriptions)
        self._saves = Saves(expected)
        if self._pool is not None:
            self._saves.bind(self._pool)

    # ---- look-ups and loads ----

    def matched_tokens(self, request: Request, local_tokens: int) -> tuple[int | None, bool]:
        tracked = self._track(request)
        look_ups = self._look_ups
        if (
            look_ups is None
            or tracked.owner is None
            or tracked.load_failed
            or not self._config.loads
            or request.skip_reading_prefix_cache
        ):
            return 0, False
        tracked.local_tokens = local_tokens
        wanted = self._wanted_blocks(request)
        if wanted * self.block_tokens <= local_tokens:
            self._drop_answer(tracked)
            return 0, False
        now = time.monotonic()
        if tracked.first_asked_s is None:
            tracked.first_asked_s = now
            tracked.announced = self._announced_blocks(tracked, look_ups, tracked.owner)
        if self._ask(tracked, tracked.owner, look_ups, wanted, now):
            return None, False
        return self._taken(tracked, wanted)

    def _wanted_blocks(self, request: Request) -> int:
        """Of the request's tokens, but for the last, which vLLM must compute."""
        return min(
            self._prompts.cacheable_blocks(request, request.num_tokens),
            (request.num_tokens - 1) // self.block_tokens,
        )

    def _ask(
        self, tracked: _Tracked, owner: Owner, look_ups: LookUps, wanted: int, now: float
    ) -> bool:
        """Sees to an answer that is fresh enough; True: more is on its way, and worth waiting."""
        answer = tracked.answer
        waits = answer is not None and self._on_its_way(tracked, answer, wanted, now)
        if answer is not None:
            holds = ASK_AGAIN_S if waits else MISS_HOLDS_S
            if (answer.leases and not waits) or now - tracked.asked_s < holds:
                return waits
            self._drop_answer(tracked)
        request = tracked.request
        tokens = token_array(request, 0, wanted * self.block_tokens)
        extras = self._prompts.extras(request, 0, wanted)
        answer = look_ups.look_up(owner, tokens, extras, tracked.number)
        tracked.answer, tracked.asked_s = answer, now
        self._figures.attached(look_ups.attached)
        waits = self._on_its_way(tracked, answer, wanted, now)
        if not waits:
            self._tell_events(request, answer, wanted)
        return waits

    def _on_its_way(self, tracked: _Tracked, answer: Answer, wanted: int, now: float) -> bool:
        """More blocks than were found will be there soon, and more than vLLM has itself."""
        assert tracked.first_asked_s is not None
        if now - tracked.first_asked_s >= self._config.pending_wait_s:
            return False
        have = max(answer.block_count, tracked.local_tokens // self.block_tokens)
        if answer.miss is kvist.Miss.PENDING and answer.block_count >= have:
            return True
        return min(tracked.announced, wanted) > have

    def _announced_blocks(self, tracked: _Tracked, look_ups: LookUps, owner: Owner) -> int:
        """Blocks that a prefill instance with the same namespaces has announced."""
        request = tracked.request
        announced = handover.announcement(request.kv_transfer_params)
        if announced is None:
            return 0
        count = announced.block_count
        if count > self._prompts.cacheable_blocks(request, request.num_prompt_tokens):
            return 0
        tokens = token_array(request, 0, count * self.block_tokens)
        if look_ups.key_of(owner, tokens, self._prompts.extras(request, 0, count)) == announced.key:
            return count
        if not self._told_foreign:
            self._told_foreign = True
            logger.warning(
                "request %s: the blocks that were announced for it lie under another name: the "
                "prefill instance has another prompt, model, version or setting than this one "
                "(docs/vllm.md: what must be equal); such requests are computed here",
                request.request_id,
            )
        return 0

    def _taken(self, tracked: _Tracked, wanted: int) -> tuple[int, bool]:
        """What of the answer is used: all, or nothing."""
        answer = tracked.answer
        assert answer is not None
        tokens = answer.block_count * self.block_tokens - tracked.local_tokens
        if tokens < self._config.minimum_hit_blocks * self.block_tokens:
            tokens = 0
        if not tracked.told:
            tracked.told = True
            self._tell_figures(tracked, answer, wanted, tokens)
        if tokens == 0:
            self._release(answer)
        return tokens, tokens > 0

    def _tell_figures(self, tracked: _Tracked, answer: Answer, wanted: int, tokens: int) -> None:
        assert tracked.first_asked_s is not None
        by_tier: dict[kvist.Tier, int] = {}
        for tier, count in self._tiers(tracked, tokens):
            by_tier[tier] = by_tier.get(tier, 0) + count
        self._figures.matched(
            wanted * self.block_tokens - tracked.local_tokens,
            by_tier,
            answer.miss,
            time.monotonic() - tracked.first_asked_s,
        )

    def _tiers(self, tracked: _Tracked, tokens: int) -> list[tuple[kvist.Tier, int]]:
        """Where so many found tokens beyond vLLM's own are, in their order."""
        answer = tracked.answer
        if answer is None:
            return []
        first = tracked.local_tokens // self.block_tokens
        end = first + tokens // self.block_tokens
        found = []
        for run in answer.runs:
            count = min(run.first_block + run.block_count, end) - max(run.first_block, first)
            if count > 0:
                found.append((run.tier, count * self.block_tokens))
        return found

    def _tell_events(self, request: Request, answer: Answer, wanted: int) -> None:
        runs = [
            Found(run.first_block, run.block_count, run.tier is kvist.Tier.DISK)
            for run in answer.runs
        ]
        self._events.found(request, runs)
        if answer.block_count < wanted and answer.miss in GONE:
            self._events.gone(request, answer.block_count)

    def hit_sources(self, request: Request, external_tokens: int) -> dict[CacheHitSource, int]:
        sources: dict[CacheHitSource, int] = {}
        tracked = self._requests.get(request.request_id)
        if tracked is not None:
            for tier, tokens in self._tiers(tracked, external_tokens):
                sources[SOURCES[tier]] = sources.get(SOURCES[tier], 0) + tokens
        return sources

    def allocated(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        tracked = self._track(request)
        if external_tokens == 0:
            if tracked.load_pages is None:
                self._drop_answer(tracked)
            return
        assert tracked.owner is not None and tracked.answer is not None
        first = tracked.local_tokens // self.block_tokens
        count = external_tokens // self.block_tokens
        pages = self._pages(blocks.get_block_ids(), first, count)
        tracked.load_pages = frozenset(page for group in pages for page in group)
        self._step.loads.append(
            LoadJob(
                request.request_id,
                tracked.owner,
                token_array(request, 0, (first + count) * self.block_tokens),
                self._prompts.extras(request, 0, first + count),
                first,
                count,
                pages,
            )
        )

    def _pages(self, block_ids: Sequence[Sequence[int]], first: int, count: int) -> Pages:
        """[groups][count] out of vLLM's tables, one for each of its groups."""
        return tuple(
            tuple(
                self._saves.page(block_id)
                for block_id in block_ids[group.engine_group][first : first + count]
            )
            for group in self._groups
        )

    # ---- steps ----

    def build_metadata(self, scheduler_output: SchedulerOutput) -> KvistMetadata:
        if self._config.saves:
            state = scheduler_output.kv_connector_block_state
            for request_id, token_count in scheduler_output.num_scheduled_tokens.items():
                tracked = self._requests.get(request_id)
                if tracked is not None and state is not None:
                    end = min(
                        tracked.request.num_computed_tokens + token_count,
                        tracked.request.num_tokens,
                    )
                    block_ids = functools.partial(state.get_block_ids, request_id)
                    self._save(tracked, end, block_ids)
        step, self._step = self._step, _Step()
        return KvistMetadata(step.loads, step.saves, step.ended_sequences, step.cancelled_loads)

    def _save(
        self,
        tracked: _Tracked,
        end_token: int,
        block_ids: Callable[[], Sequence[Sequence[int]] | None],
    ) -> None:
        """A job for the blocks that are complete up to end_token and were not asked for yet."""
        request = tracked.request
        if not self._config.save_generated:
            end_token = min(end_token, request.num_prompt_tokens)
        first = tracked.next_block
        # The cheap bound first: most steps complete nothing.
        if tracked.owner is None or end_token // self.block_tokens <= first:
            return
        end = self._prompts.cacheable_blocks(request, end_token)
        if end <= first or time.monotonic() < tracked.save_from_s:
            return
        tables = block_ids()
        if tables is None:
            return
        if tracked.sequence is None:
            tracked.sequence = next(self._numbers)
        job = SaveJob(
            next(self._numbers),
            tracked.sequence,
            request.request_id,
            tracked.owner,
            token_array(request, first * self.block_tokens, end * self.block_tokens),
            self._prompts.extras(request, first, end),
            first,
            end - first,
            self._pages(tables, first, end - first),
        )
        tracked.next_block = end
        self._saves.begin(job, request)
        self._step.saves.append(job)

    def update_output(self, output: KVConnectorOutput) -> None:
        for request_id in output.finished_recving or ():
            tracked = self._requests.get(request_id)
            if tracked is None or tracked.load_pages is None:
                continue  # it was aborted
            if request_id in output.failed_recving or (
                output.invalid_block_ids and tracked.load_pages & output.invalid_block_ids
            ):
                tracked.load_failed = True
            tracked.load_pages = None
            self._drop_answer(tracked)
        report = output.kv_connector_worker_meta
        if isinstance(report, WorkerReport):
            self._end_saves(report)

    def _end_saves(self, report: WorkerReport) -> None:
        for number, result in report.saves.items():
            ended = self._saves.report(number, result)
            if ended is None:
                continue
            if ended.stored:
                self._events.stored(ended.request, ended.first_block, ended.block_count)
                continue
            tracked = self._requests.get(ended.request.request_id)
            if tracked is not None and tracked.request is ended.request:
                self._begin_again(tracked, ended.sequence)

    def _begin_again(self, tracked: _Tracked, sequence: int) -> None:
        """A save of the request failed: what follows it in its lease cannot be stored either. With
        one group all its pages are still there; a window's are not."""
        if tracked.sequence != sequence:
            return  # a later job of a sequence that was given up already
        self._step.ended_sequences.append(sequence)
        tracked.sequence = None
        if len(self._groups) > 1:
            tracked.save_from_s = float("inf")
        else:
            tracked.next_block = 0
            tracked.save_from_s = time.monotonic() + SAVE_AGAIN_S

    # ---- ends ----

    def finished(
        self, request: Request, block_ids: Sequence[Sequence[int]]
    ) -> dict[str, Any] | None:
        """The request has ended, or was aborted, in whatever state it was."""
        tracked = self._requests.pop(request.request_id, None)
        if tracked is None:
            return None
        loading = tracked.load_pages is not None
        if loading:
            self._step.cancelled_loads.append(request.request_id)
        self._drop_answer(tracked)
        if self._config.saves and tracked.sequence is not None and not loading:
            # The last token was sampled and not computed; what is in flight may not end.
            computed = request.num_computed_tokens - request.num_in_flight_tokens
            self._save(tracked, min(computed, request.num_tokens - 1), lambda: block_ids)
        if tracked.sequence is not None:
            self._step.ended_sequences.append(tracked.sequence)
        return self._announced(tracked)

    def _announced(self, tracked: _Tracked) -> dict[str, Any] | None:
        request, owner = tracked.request, tracked.owner
        if not self._config.saves or not (
            self._config.announces or handover.is_asked_for(request.kv_transfer_params)
        ):
            return None
        count = min(tracked.next_block, request.num_prompt_tokens // self.block_tokens)
        if owner is None or self._look_ups is None or count == 0:
            return None
        tokens = token_array(request, 0, count * self.block_tokens)
        extras = self._prompts.extras(request, 0, count)
        return handover.params_of(count, self._look_ups.key_of(owner, tokens, extras))

    def holds_pages(self) -> bool:
        """Saves are under way: steps must go on until they have ended."""
        return self._saves.under_way()

    def frees_pages_soon(self) -> bool:
        return self._saves.frees_soon()

    def reset(self) -> bool:
        """vLLM's user says that cached KV is no longer what its weights compute: nothing from
        before is found from now on, and what requests have begun is neither loaded nor saved."""
        self._epoch = secrets.token_bytes(16)
        for tracked in self._requests.values():
            tracked.owner = None
            if tracked.load_pages is None:
                self._drop_answer(tracked)
        self._events.cleared()
        logger.info("reset: what was stored so far is not found again by this engine")
        return True

    def take_events(self) -> list[KVCacheEvent]:
        return self._events.take()

    def statistics(self) -> KvistStatistics | None:
        return self._figures.take()

    def shutdown(self) -> None:
        for tracked in self._requests.values():
            self._drop_answer(tracked)
        if self._look_ups is not None:
            self._look_ups.close()

    # ---- what is held ----

    @property
    def held_answers(self) -> int:
        """Look-ups whose leases were not released."""
        return 0 if self._look_ups is None else self._look_ups.held

    def _track(self, request: Request) -> _Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            owner = self._prompts.owner(request)
            if owner is not None and self._epoch:
                # No cache salt of a user's is equal but by guessing 16 random bytes.
                owner = Owner(b"\0kvist.epoch\0" + self._epoch + owner.salt, owner.adapter)
            tracked = _Tracked(request, owner, next(self._numbers))
            self._requests[request.request_id] = tracked
        return tracked

    def _drop_answer(self, tracked: _Tracked) -> None:
        answer, tracked.answer = tracked.answer, None
        if answer is not None:
            self._release(answer)

    def _release(self, answer: Answer) -> None:
        if self._look_ups is not None:
            self._look_ups.release(answer)


def _events_of(
    vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, block_tokens: int
) -> StoreEvents:
    events = vllm_config.kv_events_config
    return StoreEvents(
        events is not None and events.enable_kv_cache_events,
        kv_cache_config,
        block_tokens,
        kv_cache_config.hash_block_size or block_tokens,
    )


def _recompute_failed_loads(vllm_config: VllmConfig) -> None:
    """vLLM's scheduler reads the policy after it made the connector: a load that fails must cost
    time, not the request."""
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    if transfer.kv_load_failure_policy != "recompute":
        logger.info(
            "kv_load_failure_policy is %s: set to recompute, so that blocks that cannot be loaded "
            "are computed",
            transfer.kv_load_failure_policy,
        )
        transfer.kv_load_failure_policy = "recompute"
