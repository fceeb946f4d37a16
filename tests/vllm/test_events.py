"""KV events of the host's store: named, placed and chained as vLLM's own are."""

from __future__ import annotations

import types
import unittest
from typing import Any

import msgspec
import torch
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import (
    get_request_block_hasher,
    init_none_hash,
    maybe_convert_block_hash,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.request import Request

from kvist.vllm.events import TOLD_MAX, Found, StoreEvents

TOKENS = 16


def cache_config(*specs: Any) -> Any:
    """What vLLM tells a connector of its groups, as far as events look at it."""
    groups = [types.SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    return types.SimpleNamespace(kv_cache_groups=groups)


def full() -> FullAttentionSpec:
    return FullAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)


def window() -> SlidingWindowSpec:
    return SlidingWindowSpec(
        block_size=TOKENS, num_kv_heads=1, head_size=8, dtype=torch.bfloat16, sliding_window=64
    )


def names(request: Request, first: int, end: int | None = None) -> list[Any]:
    """The hashes of a request as vLLM publishes them."""
    return [maybe_convert_block_hash(each) for each in request.block_hashes[first:end]]


class EventsTest(unittest.TestCase):
    def setUp(self) -> None:
        init_none_hash(sha256)
        self.events = self.log()

    def log(self, *specs: Any, enabled: bool = True) -> StoreEvents:
        return StoreEvents(enabled, cache_config(*(specs or (full(),))), TOKENS, TOKENS)

    def request(
        self, blocks: int, name: str = "r", hash_tokens: int = TOKENS, **more: Any
    ) -> Request:
        return Request(
            request_id=name,
            prompt_token_ids=list(range(100, 100 + blocks * TOKENS + 3)),
            sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None,
            block_hasher=get_request_block_hasher(hash_tokens, sha256),
            **more,
        )

    def test_sealed_blocks_are_stored_under_vllms_hashes(self) -> None:
        request = self.request(4)
        self.events.stored(request, 0, 2)
        self.events.stored(request, 2, 2)
        first, second = self.events.take()
        assert isinstance(first, BlockStored) and isinstance(second, BlockStored)
        self.assertEqual(first.block_hashes, names(request, 0, 2))
        self.assertIsNone(first.parent_block_hash)
        self.assertEqual(first.token_ids, list(range(100, 132)))
        self.assertEqual(
            (first.block_size, first.medium, first.group_idx, first.kv_cache_spec_kind),
            (TOKENS, "CPU", 0, "full_attention"),
        )
        self.assertEqual((first.locality, first.ownership), ("LOCAL", "kvist"))
        self.assertEqual(second.block_hashes, names(request, 2, 4))
        self.assertEqual(second.parent_block_hash, names(request, 1)[0])
        self.assertEqual(second.token_ids, list(range(132, 164)))
        self.assertEqual(self.events.take(), [])

    def test_a_block_is_told_once(self) -> None:
        one, other = self.request(2), self.request(4, "s")
        self.events.stored(one, 0, 2)
        self.events.stored(other, 0, 4)
        _, second = self.events.take()
        self.assertEqual(second.block_hashes, names(other, 2, 4))
        self.assertEqual(second.parent_block_hash, names(one, 1)[0])

    def test_what_a_look_up_finds_is_told(self) -> None:
        request = self.request(4)
        self.events.found(request, [Found(0, 3, on_disk=False), Found(3, 1, on_disk=True)])
        memory, disk = self.events.take()
        self.assertEqual((memory.medium, memory.block_hashes), ("CPU", names(request, 0, 3)))
        self.assertEqual((disk.medium, disk.block_hashes), ("STORAGE", names(request, 3, 4)))
        self.assertEqual(disk.parent_block_hash, names(request, 2)[0])

    def test_a_block_that_moved_leaves_where_it_was(self) -> None:
        request = self.request(2)
        self.events.found(request, [Found(0, 2, on_disk=False)])
        self.events.take()
        self.events.found(request, [Found(0, 2, on_disk=True)])
        stored, removed = self.events.take()
        self.assertEqual((stored.medium, len(stored.block_hashes)), ("STORAGE", 2))
        assert isinstance(removed, BlockRemoved)
        self.assertEqual((removed.medium, removed.block_hashes), ("CPU", names(request, 0, 2)))

    def test_what_is_gone_is_removed_with_what_goes_on_from_it(self) -> None:
        request = self.request(4)
        self.events.found(request, [Found(0, 3, on_disk=False), Found(3, 1, on_disk=True)])
        self.events.take()
        self.events.gone(request, 2)
        memory, disk = self.events.take()
        self.assertEqual((memory.medium, memory.block_hashes), ("CPU", names(request, 2, 3)))
        self.assertEqual((disk.medium, disk.block_hashes), ("STORAGE", names(request, 3, 4)))
        self.events.gone(request, 2)
        self.assertEqual(self.events.take(), [])

    def test_after_a_clearing_all_is_told_again(self) -> None:
        request = self.request(2)
        self.events.found(request, [Found(0, 2, on_disk=False)])
        self.events.cleared()
        self.events.found(request, [Found(0, 2, on_disk=False)])
        self.assertEqual(len(self.events.take()), 2)

    def test_adapter_and_salt_are_told_as_vllm_tells_them(self) -> None:
        lora = LoRARequest("poet", 7, "/nowhere")
        request = self.request(2, lora_request=lora, cache_salt="pepper")
        self.events.found(request, [Found(0, 2, on_disk=False)])
        (stored,) = self.events.take()
        self.assertEqual((stored.lora_name, stored.lora_id), ("poet", 7))
        self.assertEqual(stored.extra_keys, [("poet", "pepper"), ("poet",)])

    def test_hashes_finer_than_blocks(self) -> None:
        events = StoreEvents(True, cache_config(full()), TOKENS, TOKENS // 2)
        request = self.request(2, hash_tokens=TOKENS // 2)
        events.found(request, [Found(1, 1, on_disk=False)])
        (stored,) = events.take()
        self.assertEqual(stored.block_hashes, names(request, 3, 4))
        self.assertEqual(stored.parent_block_hash, names(request, 1)[0])
        self.assertEqual(len(stored.token_ids), TOKENS)

    def test_windows_are_not_told(self) -> None:
        events = self.log(window(), full())
        events.found(self.request(1), [Found(0, 1, on_disk=False)])
        self.assertEqual([each.group_idx for each in events.take()], [1])

    def test_events_that_nobody_wants_are_not_made(self) -> None:
        events = self.log(enabled=False)
        request = self.request(2)
        events.stored(request, 0, 2)
        events.found(request, [Found(0, 2, on_disk=False)])
        events.gone(request, 0)
        self.assertEqual(events.take(), [])

    def test_more_blocks_than_the_request_has_hashes_of(self) -> None:
        request = self.request(2)
        self.events.stored(request, 0, 9)
        (stored,) = self.events.take()
        self.assertEqual(len(stored.block_hashes), 2)

    def test_a_consumer_can_read_a_batch(self) -> None:
        request = self.request(2)
        self.events.found(request, [Found(0, 2, on_disk=False)])
        self.events.gone(request, 1)
        sent = msgspec.msgpack.encode(KVEventBatch(ts=1.0, events=self.events.take()))
        stored, removed = msgspec.msgpack.decode(sent, type=KVEventBatch).events
        self.assertEqual(stored.block_hashes, names(request, 0, 2))
        self.assertEqual(removed.block_hashes, names(request, 1, 2))

    def test_what_is_remembered_is_bounded(self) -> None:
        self.assertGreater(TOLD_MAX, 2)
        self.events._told.update((index.to_bytes(32, "big"), "CPU") for index in range(TOLD_MAX))
        self.events.found(self.request(2), [Found(0, 2, on_disk=False)])
        self.assertEqual(len(self.events._told), TOLD_MAX)


if __name__ == "__main__":
    unittest.main()
