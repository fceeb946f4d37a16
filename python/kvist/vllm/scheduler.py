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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvist.vllm import groups, handover
from kvist.vllm.config import Config
from kvist.vllm.events import StoreEvents
from kvist.vllm.figures import Figures, KvistStatistics
from kvist.vllm.finding import Finding
from kvist.vllm.lookups import LookUps
from kvist.vllm.metadata import (
    Description,
    KvistMetadata,
    LoadJob,
    Owner,
    SaveJob,
    WorkerHandshake,
    WorkerReport,
)
from kvist.vllm.prompts import Prompts, token_array
from kvist.vllm.saves import Saves, Tables
from kvist.vllm.tracked import Tracked
from kvist.vllm.weights import Adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger("kvist.vllm")


@dataclass
class _Step:
    """What the next metadata will say."""

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
        self.block_tokens, self._groups = groups.groups_of(vllm_config, kv_cache_config)
        self._prompts = Prompts(
            Adapters(config), self.block_tokens, groups.lookahead_tokens(vllm_config)
        )
        self._requests: dict[str, Tracked] = {}
        self._numbers = itertools.count(1)
        self._step = _Step()
        self._epoch = b""  # since the last reset
        self._figures = Figures("scheduler")
        self._events = _events_of(vllm_config, kv_cache_config, self.block_tokens)
        self._pool: BlockPool | None = None
        # Until the workers have said what they have, nothing is found and nothing saved.
        self._look_ups: LookUps | None = None
        self._finding: Finding | None = None
        self._saves: Saves | None = None
        _recompute_failed_loads(vllm_config)

    # ---- start ----

    def bind_block_pool(self, pool: BlockPool) -> None:
        self._pool = pool

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
        assert self._pool is not None, "vLLM binds the pool when it has made its scheduler"
        self._look_ups = LookUps(self._config, descriptions)
        self._finding = Finding(
            self._config, self._look_ups, self._prompts, self._figures, self._events
        )
        self._saves = Saves(
            self._config, self._groups, self.block_tokens, self._prompts, self._pool, expected
        )
        logger.info(
            "kvist: %d workers, blocks of %d tokens in %d groups, kvist-store at %s, domain %s",
            expected,
            self.block_tokens,
            len(self._groups),
            self._config.socket,
            self._config.domain,
        )

    # ---- look-ups and loads ----

    def matched_tokens(self, request: Request, local_tokens: int) -> tuple[int | None, bool]:
        if self._finding is None:
            return 0, False
        return self._finding.matched_tokens(self._track(request), local_tokens)

    def hit_sources(self, request: Request, external_tokens: int) -> dict[CacheHitSource, int]:
        tracked = self._requests.get(request.request_id)
        if tracked is None or self._finding is None:
            return {}
        return self._finding.hit_sources(tracked, external_tokens)

    def allocated(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        tracked = self._track(request)
        if external_tokens == 0:
            if tracked.load_pages is None:
                self._drop(tracked)
            return
        assert tracked.owner is not None and self._saves is not None
        first = tracked.local_tokens // self.block_tokens
        count = external_tokens // self.block_tokens
        pages = self._saves.pages(blocks.get_block_ids(), first, count)
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

    # ---- steps ----

    def build_metadata(self, scheduler_output: SchedulerOutput) -> KvistMetadata:
        state = scheduler_output.kv_connector_block_state
        for request_id, token_count in scheduler_output.num_scheduled_tokens.items():
            tracked = self._requests.get(request_id)
            if tracked is not None and state is not None:
                request = tracked.request
                end = min(request.num_computed_tokens + token_count, request.num_tokens)
                self._save(tracked, end, functools.partial(state.get_block_ids, request_id))
        step, self._step = self._step, _Step()
        return KvistMetadata(step.loads, step.saves, step.ended_sequences, step.cancelled_loads)

    def _save(
        self, tracked: Tracked, end_token: int, tables: Callable[[], Tables | None]
    ) -> None:
        if self._config.saves and self._saves is not None:
            job = self._saves.save(tracked, end_token, tables)
            if job is not None:
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
            self._drop(tracked)
        report = output.kv_connector_worker_meta
        if isinstance(report, WorkerReport):
            self._end_saves(report)

    def _end_saves(self, report: WorkerReport) -> None:
        assert self._saves is not None
        for number, result in report.saves.items():
            ended = self._saves.report(number, result)
            if ended is None:
                continue
            if ended.stored:
                self._events.stored(ended.request, ended.first_block, ended.block_count)
                continue
            tracked = self._requests.get(ended.request.request_id)
            if tracked is not None and tracked.request is ended.request:
                if self._saves.begin_again(tracked, ended.sequence):
                    self._step.ended_sequences.append(ended.sequence)

    # ---- ends ----

    def finished(self, request: Request, block_ids: Tables) -> dict[str, Any] | None:
        """The request has ended, or was aborted, in whatever state it was."""
        tracked = self._requests.pop(request.request_id, None)
        if tracked is None:
            return None
        loading = tracked.load_pages is not None
        if loading:
            self._step.cancelled_loads.append(request.request_id)
        self._drop(tracked)
        if tracked.sequence is not None and not loading:
            # The last token was sampled and not computed; what is in flight may not end.
            computed = request.num_computed_tokens - request.num_in_flight_tokens
            self._save(tracked, min(computed, request.num_tokens - 1), lambda: block_ids)
        if tracked.sequence is not None:
            self._step.ended_sequences.append(tracked.sequence)
        return self._announced(tracked)

    def _announced(self, tracked: Tracked) -> dict[str, Any] | None:
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
        return self._saves is not None and self._saves.under_way()

    def frees_pages_soon(self) -> bool:
        return self._saves is not None and self._saves.free_soon()

    def reset(self) -> bool:
        """vLLM's user says that cached KV is no longer what its weights compute: nothing from
        before is found from now on, and what requests have begun is neither loaded nor saved."""
        self._epoch = secrets.token_bytes(16)
        for tracked in self._requests.values():
            tracked.owner = None
            if tracked.load_pages is None:
                self._drop(tracked)
        self._events.cleared()
        logger.info("reset: what was stored so far is not found again by this engine")
        return True

    def take_events(self) -> list[KVCacheEvent]:
        return self._events.take()

    def statistics(self) -> KvistStatistics | None:
        return self._figures.take()

    def shutdown(self) -> None:
        for tracked in self._requests.values():
            self._drop(tracked)
        if self._look_ups is not None:
            self._look_ups.close()

    # ---- what is held ----

    @property
    def held_answers(self) -> int:
        """Look-ups whose leases were not released."""
        return 0 if self._look_ups is None else self._look_ups.held

    def _track(self, request: Request) -> Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            owner = self._prompts.owner(request)
            if owner is not None and self._epoch:
                # No cache salt of a user's is equal but by guessing 16 random bytes.
                owner = Owner(b"\0kvist.epoch\0" + self._epoch + owner.salt, owner.adapter)
            tracked = Tracked(request, owner, next(self._numbers))
            self._requests[request.request_id] = tracked
        return tracked

    def _drop(self, tracked: Tracked) -> None:
        if self._finding is not None:
            self._finding.drop(tracked)


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
