"""What the host's store holds of vLLM's blocks, as vLLM's own KV events.

A consumer of vLLM's events (a router that sends a prompt to where its prefix is) learns from them
which blocks this engine can have back without computing them. Blocks are named by vLLM's own
hashes, so that one block in the device's memory and in the store is one block to the consumer:
medium "CPU" while the store has it in host memory, "STORAGE" while it has it on disk alone;
locality "LOCAL", ownership "kvist".

What is told is what this engine came to know, and when:
- stored: when every worker's part of a block was sealed in the store, and when a look-up found
  blocks that were not told of yet (another engine stored them, or this one before a restart);
- moved: when a look-up found a block in another medium: removed from one, stored in the other;
- removed: when a look-up says that a block is stored no more. The store evicts by itself and an
  attached client is not told, so a block can be gone before its removal is told. An event is a
  hint; whether a block is there is decided by the look-up of the request that wants it.

Only groups of full attention are told of, as a prefix of theirs is all that a consumer can place.

Owns: the hashes that were told, the events not taken yet. Borrows: nothing beyond a call.
Threads: the scheduler's alone. Errors: none.
Limits: TOLD_MAX hashes are remembered; one that was forgotten is told again when it is met again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import (
    MEDIUM_CPU,
    MEDIUM_STORAGE,
    BlockRemoved,
    BlockStored,
    KVCacheEvent,
)
from vllm.v1.core.kv_cache_utils import (
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    resolve_block_hashes,
    to_event_extra_keys,
)
from vllm.v1.kv_cache_interface import KVCacheSpecKind, get_kv_cache_spec_kind

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

FULL_KINDS = (
    KVCacheSpecKind.FULL_ATTENTION,
    KVCacheSpecKind.MLA_ATTENTION,
    KVCacheSpecKind.SINK_FULL_ATTENTION,
)
LOCALITY = "LOCAL"
OWNERSHIP = "kvist"
TOLD_MAX = 262_144
"""Block hashes that are remembered as told, about 50 MB of them at the most."""


@dataclass(frozen=True)
class Found:
    """Consecutive blocks of a prompt that a look-up found, in one tier."""

    first_block: int
    block_count: int
    on_disk: bool  # else in memory


class StoreEvents:
    """The events of one scheduler; every call but `take` does nothing where they are off."""

    def __init__(
        self,
        enabled: bool,
        kv_cache_config: KVCacheConfig,
        block_tokens: int,
        hash_block_tokens: int,
    ) -> None:
        """enabled: vLLM's kv_events_config wants events; block_tokens: of a block of the store and
        of vLLM's pages; hash_block_tokens: of what one of vLLM's hashes covers (the block pool's
        hash_block_size)."""
        self.enabled = enabled
        self._block_tokens = block_tokens
        self._hash_block_tokens = hash_block_tokens
        self._groups = [
            (index, kind)
            for index, group in enumerate(kv_cache_config.kv_cache_groups)
            for kind in [get_kv_cache_spec_kind(group.kv_cache_spec)]
            if kind in FULL_KINDS
        ]
        self._told: OrderedDict[bytes, str] = OrderedDict()  # the medium, by vLLM's block hash
        self._events: list[KVCacheEvent] = []

    def stored(self, request: Request, first_block: int, block_count: int) -> None:
        """These blocks of the request, every worker's part of them, were sealed in the store."""
        if self.enabled:
            end = first_block + block_count
            self._tell_stored(request, first_block, end, MEDIUM_CPU, moves=False)

    def found(self, request: Request, runs: Sequence[Found]) -> None:
        """A look-up found these blocks of the request's prompt."""
        if not self.enabled:
            return
        for run in runs:
            medium = MEDIUM_STORAGE if run.on_disk else MEDIUM_CPU
            end = run.first_block + run.block_count
            self._tell_stored(request, run.first_block, end, medium, moves=True)

    def gone(self, request: Request, first_block: int) -> None:
        """A look-up says that this block was stored and is no more; nor is what goes on from it."""
        if not self.enabled:
            return
        removed: dict[str, list[bytes]] = {}
        for block_hash in self._hashes(request)[first_block:]:
            medium = self._told.pop(block_hash, None)
            if medium is not None:
                removed.setdefault(medium, []).append(block_hash)
        for medium, block_hashes in removed.items():
            self._tell_removed(block_hashes, medium)

    def cleared(self) -> None:
        """A consumer was told that nothing is cached any more: what is met again is told again."""
        self._told.clear()

    def take(self) -> list[KVCacheEvent]:
        """The events since the last take, in their order."""
        events, self._events = self._events, []
        return events

    def _hashes(self, request: Request) -> Sequence[bytes]:
        """vLLM's hashes of the request's whole blocks: each covers the prefix up to its end."""
        return resolve_block_hashes(
            request.block_hashes, self._hash_block_tokens, self._block_tokens
        )

    def _tell_stored(
        self, request: Request, first: int, end: int, medium: str, *, moves: bool
    ) -> None:
        """Tells of blocks first to end (excluded) what was not told yet, in runs without gaps.
        moves: one that was told in another medium is in this one now."""
        hashes = self._hashes(request)
        moved: dict[str, list[bytes]] = {}
        run: list[int] = []
        for block in range(first, min(end, len(hashes))):
            before = self._told.get(hashes[block])
            if before == medium or (before is not None and not moves):
                self._told.move_to_end(hashes[block])
                self._tell_run(request, hashes, run, medium)
                run = []
                continue
            if before is not None:
                moved.setdefault(before, []).append(hashes[block])
            self._told[hashes[block]] = medium
            run.append(block)
        self._tell_run(request, hashes, run, medium)
        for before, block_hashes in moved.items():
            self._tell_removed(block_hashes, before)
        while len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)

    def _tell_run(
        self, request: Request, hashes: Sequence[bytes], run: list[int], medium: str
    ) -> None:
        if not run:
            return
        first, tokens = run[0], self._block_tokens
        lora = request.lora_request
        for group, kind in self._groups:
            self._events.append(
                BlockStored(
                    block_hashes=[maybe_convert_block_hash(hashes[block]) for block in run],
                    parent_block_hash=(
                        maybe_convert_block_hash(hashes[first - 1]) if first > 0 else None
                    ),
                    token_ids=list(request.all_token_ids[first * tokens : (run[-1] + 1) * tokens]),
                    block_size=tokens,
                    lora_id=lora.adapter_id if lora else None,
                    medium=medium,
                    lora_name=lora.name if lora else None,
                    extra_keys=to_event_extra_keys(self._extra_keys(request, run)),
                    group_idx=group,
                    kv_cache_spec_kind=kind.value,
                    locality=LOCALITY,
                    ownership=OWNERSHIP,
                )
            )

    def _extra_keys(self, request: Request, run: list[int]) -> list[tuple[Any, ...] | None]:
        """What else vLLM's hash of each block covers: adapter, images, salt."""
        feature = 0  # vLLM counts on from here: the first image that may reach into a block
        keys: list[tuple[Any, ...] | None] = []
        for block in range(run[-1] + 1):
            start = block * self._block_tokens
            extra, feature = generate_block_hash_extra_keys(
                request, start, start + self._block_tokens, feature
            )
            if block >= run[0]:
                keys.append(extra)
        return keys

    def _tell_removed(self, block_hashes: list[bytes], medium: str) -> None:
        for group, _ in self._groups:
            self._events.append(
                BlockRemoved(
                    block_hashes=[maybe_convert_block_hash(each) for each in block_hashes],
                    medium=medium,
                    group_idx=group,
                    locality=LOCALITY,
                    ownership=OWNERSHIP,
                )
            )
