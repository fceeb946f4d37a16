"""How much of a prompt is loaded: when the store is asked, and what is made of the answer.

An answer is good for as long as its leases hold; vLLM asks at every step until it has room for the
request, the store is asked once. A request waits (and is asked about again, a few milliseconds
later) where the next block is being stored by somebody at this moment, or a prefill instance with
the same namespaces has announced more; Config.pending_wait_s bounds that, from the first question.

Owns: answers of requests, until dropped. Borrows: the look-ups, the prompts, figures and events.
Threads: the scheduler's. Errors: none.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from vllm.v1.metrics.cache_hit_source import CacheHitSource

import kvist
from kvist.vllm import handover
from kvist.vllm.config import Config
from kvist.vllm.events import Found, StoreEvents
from kvist.vllm.figures import Figures
from kvist.vllm.lookups import Answer, LookUps
from kvist.vllm.metadata import Owner
from kvist.vllm.prompts import Prompts, token_array
from kvist.vllm.tracked import Tracked

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = logging.getLogger("kvist.vllm")

ASK_AGAIN_S = 0.005
"""Between two look-ups of a request that waits for blocks that are on their way."""
MISS_HOLDS_S = 0.25
"""A request that waits for room in vLLM is asked for at every step; a miss is believed so long."""

GONE = (kvist.Miss.EVICTED, kvist.Miss.EXPIRED, kvist.Miss.DAMAGED, kvist.Miss.NOT_ADMITTED)
SOURCES = {
    kvist.Tier.DEVICE: CacheHitSource.HOST,
    kvist.Tier.HOST: CacheHitSource.HOST,
    kvist.Tier.DISK: CacheHitSource.DISK,
    kvist.Tier.REMOTE: CacheHitSource.P2P,
}


class Finding:
    """Of one engine."""

    def __init__(
        self,
        config: Config,
        look_ups: LookUps,
        prompts: Prompts,
        figures: Figures,
        events: StoreEvents,
    ) -> None:
        self.block_tokens = look_ups.block_tokens
        self._config = config
        self._look_ups = look_ups
        self._prompts = prompts
        self._figures = figures
        self._events = events
        self._told_foreign = False

    def matched_tokens(self, tracked: Tracked, local_tokens: int) -> tuple[int | None, bool]:
        """vLLM's get_num_new_matched_tokens: (tokens beyond local_tokens, True) to be loaded,
        (0, False) for none, (None, False) to be asked again."""
        request, owner = tracked.request, tracked.owner
        if (
            owner is None
            or tracked.load_failed
            or not self._config.loads
            or request.skip_reading_prefix_cache
        ):
            return 0, False
        tracked.local_tokens = local_tokens
        wanted = self._wanted_blocks(request)
        if wanted * self.block_tokens <= local_tokens:
            self.drop(tracked)
            return 0, False
        now = time.monotonic()
        if tracked.first_asked_s is None:
            tracked.first_asked_s = now
            tracked.announced = self._announced_blocks(request, owner)
        if self._ask(tracked, owner, wanted, now):
            return None, False
        return self._taken(tracked, wanted)

    def _wanted_blocks(self, request: Request) -> int:
        """Of the request's tokens, but for the last, which vLLM must compute."""
        return min(
            self._prompts.cacheable_blocks(request, request.num_tokens),
            (request.num_tokens - 1) // self.block_tokens,
        )

    def _ask(self, tracked: Tracked, owner: Owner, wanted: int, now: float) -> bool:
        """Sees to an answer that is fresh enough; True: more is on its way, and worth waiting."""
        answer = tracked.answer
        waits = answer is not None and self._on_its_way(tracked, answer, wanted, now)
        if answer is not None:
            holds = ASK_AGAIN_S if waits else MISS_HOLDS_S
            if (answer.leases and not waits) or now - tracked.asked_s < holds:
                return waits
            self.drop(tracked)
        request = tracked.request
        tokens = token_array(request, 0, wanted * self.block_tokens)
        extras = self._prompts.extras(request, 0, wanted)
        again = tracked.asked_s > 0
        answer = self._look_ups.look_up(owner, tokens, extras, tracked.number, again)
        tracked.answer, tracked.asked_s = answer, now
        self._figures.attached(self._look_ups.attached)
        waits = self._on_its_way(tracked, answer, wanted, now)
        if not waits:
            self._tell_events(request, answer, wanted)
        return waits

    def _on_its_way(self, tracked: Tracked, answer: Answer, wanted: int, now: float) -> bool:
        """More blocks than were found will be there soon, and more than vLLM has itself."""
        assert tracked.first_asked_s is not None
        if now - tracked.first_asked_s >= self._config.pending_wait_s:
            return False
        have = max(answer.block_count, tracked.local_tokens // self.block_tokens)
        if answer.miss is kvist.Miss.PENDING and answer.block_count >= have:
            return True
        return min(tracked.announced, wanted) > have

    def _announced_blocks(self, request: Request, owner: Owner) -> int:
        """Blocks that a prefill instance with the same namespaces has announced."""
        announced = handover.announcement(request.kv_transfer_params)
        if announced is None:
            return 0
        count = announced.block_count
        if count > self._prompts.cacheable_blocks(request, request.num_prompt_tokens):
            return 0
        tokens = token_array(request, 0, count * self.block_tokens)
        extras = self._prompts.extras(request, 0, count)
        if self._look_ups.key_of(owner, tokens, extras) == announced.key:
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

    def _taken(self, tracked: Tracked, wanted: int) -> tuple[int, bool]:
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
            self._look_ups.release(answer)
        return tokens, tokens > 0

    def _tell_figures(self, tracked: Tracked, answer: Answer, wanted: int, tokens: int) -> None:
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

    def _tiers(self, tracked: Tracked, tokens: int) -> list[tuple[kvist.Tier, int]]:
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

    def hit_sources(self, tracked: Tracked, external_tokens: int) -> dict[CacheHitSource, int]:
        """Where so many tokens of the last answer come from."""
        sources: dict[CacheHitSource, int] = {}
        for tier, tokens in self._tiers(tracked, external_tokens):
            sources[SOURCES[tier]] = sources.get(SOURCES[tier], 0) + tokens
        return sources

    def drop(self, tracked: Tracked) -> None:
        """The request's answer is not needed any more."""
        answer, tracked.answer = tracked.answer, None
        if answer is not None:
            self._look_ups.release(answer)
