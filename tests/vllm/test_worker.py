"""The worker's hooks as vLLM calls them, on a kvist-store process, without an engine."""

from __future__ import annotations

import signal
import types
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy
import torch
from vllm.v1.kv_cache_interface import SlidingWindowSpec
from worker_case import (
    HostStore,
    full_spec,
    kv_cache_config,
    load_job,
    make_tensors,
    save_job,
    storage_of,
    tokens_of,
    wait_until,
)

from kvist.vllm import worker
from kvist.vllm.config import Config, validated
from kvist.vllm.metadata import (
    NO_PAGE,
    Description,
    GroupDescription,
    KvistMetadata,
    LayerKind,
    WorkerReport,
)
from kvist.vllm.worker import WorkerSide

BLOCK_TOKENS, PAGES = 16, 32
FULL = full_spec(BLOCK_TOKENS)
WINDOW = SlidingWindowSpec(
    block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=8, dtype=torch.bfloat16, sliding_window=40
)


@contextmanager
def parallel_state() -> Iterator[None]:
    """One worker alone: what vLLM has set up by then."""
    with (
        mock.patch.object(worker, "get_tensor_model_parallel_rank", lambda: 0),
        mock.patch.object(worker, "get_pp_group", lambda: types.SimpleNamespace(rank_in_group=0)),
    ):
        yield


class WorkerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.store = self.enterContext(HostStore())

    def side(self, groups: list[Any] | None = None, **options: Any) -> WorkerSide:
        """With registered pages; self.tensors has them, self.config what vLLM says of them."""
        specs = groups or [(FULL, 3)]
        self.config = kv_cache_config(specs, PAGES)
        self.tensors = make_tensors(self.config)
        self.memory = storage_of(self.tensors)
        values = validated({"socket": self.store.socket, **options})
        config = Config(**values, saves=True, loads=True, announces=False)
        vllm_config: Any = types.SimpleNamespace(parallel_config=types.SimpleNamespace(rank=0))
        made = WorkerSide(vllm_config, self.config, config)
        self.addCleanup(made.shutdown)
        with parallel_state(), self.described():
            made.register_kv_caches(self.tensors)
        return made

    def described(self) -> Any:
        """identity.describe, whose own tests are elsewhere: it reads a model."""
        groups = tuple(
            GroupDescription(
                number,
                LayerKind.WINDOW if hasattr(spec, "sliding_window") and spec.sliding_window
                else LayerKind.FULL,
                getattr(spec, "sliding_window", None) or 0,
                tuple(group.layer_names),
                spec.page_size_bytes,
            )
            for number, group in enumerate(self.config.kv_cache_groups)
            for spec in [group.kv_cache_spec]
        )  # fmt: skip
        description = Description(BLOCK_TOKENS, groups, '{"a":"test"}')
        return mock.patch.object(worker.identity, "describe", lambda *_, **__: description)

    def step(
        self, side: WorkerSide, metadata: KvistMetadata = KvistMetadata()
    ) -> types.SimpleNamespace:
        """One step, in the order of vLLM's model runner."""
        side.start_loads(metadata)
        side.start_saves(metadata)
        return types.SimpleNamespace(
            results=side.transfer_results(),
            failed_pages=side.block_ids_with_load_errors(),
            report=side.report(),
        )

    def until_received(self, side: WorkerSide, metadata: KvistMetadata) -> types.SimpleNamespace:
        """Steps until a load has ended; the step that told."""
        steps = [self.step(side, metadata)]

        def over() -> bool:
            if not steps[-1].results.finished_recving:
                steps.append(self.step(side))
            return bool(steps[-1].results.finished_recving)

        wait_until(over, "the load")
        for step in steps[:-1]:
            self.assertEqual(step.failed_pages, set(), "not before the load is over")
        return steps[-1]

    def until_saved(self, side: WorkerSide, metadata: KvistMetadata) -> WorkerReport:
        report = [self.step(side, metadata).report]
        wait_until(lambda: report.append(self.step(side).report) or any(report), "the save")
        self.assertEqual(len([r for r in report if r is not None]), 1, "each job is told once")
        return next(r for r in report if r is not None)

    def stored(self, side: WorkerSide, tokens: Any, pages: list[int]) -> None:
        """Until kvist-store was in time for it: a look-up waits for a quarter of a second, which
        is short where other work has the cores."""
        numbers = iter(range(100, 1_000_000))

        def stored() -> bool:
            number = next(numbers)
            jobs = [save_job(number, number, tokens, [pages])]
            metadata = KvistMetadata(saves=jobs, ended_sequences=[number])
            result = self.until_saved(side, metadata).saves[number]
            self.assertEqual(result.workers, 1)
            return result.stored

        wait_until(stored, "a save")

    def loaded(self, side: WorkerSide, tokens: Any, pages: list[int]) -> types.SimpleNamespace:
        """The step that told of a load that found something; in time as above."""
        job = load_job("r", tokens, [pages])
        steps: list[types.SimpleNamespace] = []

        def loaded() -> bool:
            steps.append(self.until_received(side, KvistMetadata(loads=[job])))
            return not steps[-1].failed_pages

        wait_until(loaded, "a load")
        return steps[-1]

    def fill(self, seed: int) -> None:
        generator = numpy.random.default_rng(seed)
        self.memory[:] = generator.integers(0, 256, self.memory.size, dtype=numpy.uint8)

    def page(self, page: int) -> list[bytes]:
        return [
            tensor[page].contiguous().view(torch.uint8).numpy().tobytes()
            for tensor in self.tensors.values()
        ]


class StepsTest(WorkerTest):
    def test_saved_and_loaded_in_steps(self) -> None:
        side = self.side()
        self.fill(1)
        tokens = tokens_of(1, 3, BLOCK_TOKENS)
        want = [self.page(page) for page in (4, 5, 6)]
        self.stored(side, tokens, [4, 5, 6])
        self.fill(2)
        step = self.loaded(side, tokens, [9, 10, 11])
        self.assertEqual(step.results.finished_recving, {"r"})
        self.assertEqual(step.results.failed_recving, set())
        self.assertEqual(step.failed_pages, set())
        self.assertEqual([self.page(page) for page in (9, 10, 11)], want)
        statistics = side.statistics()
        assert statistics is not None
        self.assertEqual(statistics.data["counters"]["load_blocks"], 3)
        self.assertIsNone(side.statistics(), "nothing happened since")

    def test_with_one_group_the_failed_pages_are_told_in_the_same_step(self) -> None:
        side = self.side()
        tokens = tokens_of(1, 2, BLOCK_TOKENS)
        step = self.until_received(side, KvistMetadata(loads=[load_job("r", tokens, [[3, 4]])]))
        self.assertEqual(step.failed_pages, {3, 4})
        self.assertEqual(step.results.failed_recving, set())
        self.assertEqual(self.step(side).failed_pages, set(), "once")

    def test_with_several_groups_the_request_is_told(self) -> None:
        side = self.side([(FULL, 2), (WINDOW, 2)])
        tokens = tokens_of(1, 4, BLOCK_TOKENS)
        pages = [[3, 4, 5, 6], [NO_PAGE, 14, 15, 16]]
        step = self.until_received(side, KvistMetadata(loads=[load_job("r", tokens, pages)]))
        self.assertEqual(step.failed_pages, set(), "vLLM raises where it gets one")
        self.assertEqual(step.results.failed_recving, {"r"})

    def test_an_aborted_request_is_still_named(self) -> None:
        side = self.side()
        tokens = tokens_of(1, 2, BLOCK_TOKENS)
        metadata = KvistMetadata(loads=[load_job("r", tokens, [[3, 4]])], cancelled_loads=["r"])
        self.assertEqual(self.until_received(side, metadata).results.finished_recving, {"r"})

    def test_tenants_and_limits_go_with_what_is_stored(self) -> None:
        side = self.side(tenant="team-a", priority="batch", expire_after_s=3600)
        terms = side._terms_now()
        self.assertEqual((terms.tenant, terms.priority.name), ("team-a", "BATCH"))
        self.assertGreater(terms.expires_unix_ns, 0)


class StartTest(WorkerTest):
    def test_the_description_is_handed_over_once_pages_are_there(self) -> None:
        side = self.side()
        handshake = side.handshake()
        assert handshake is not None
        self.assertEqual(handshake.description.block_tokens, BLOCK_TOKENS)
        empty = WorkerSide(side._vllm_config, self.config, side._config)
        self.assertIsNone(empty.handshake())
        self.assertEqual(self.step(empty).results.finished_recving, set())

    def test_a_page_size_that_is_not_the_tensors_ends_the_start(self) -> None:
        side = self.side()
        wrong = {name: tensor[:, :, :, :-1] for name, tensor in self.tensors.items()}
        with parallel_state(), self.described():
            with self.assertRaisesRegex(ValueError, "layers.0.attn.*bytes"):
                side.register_kv_caches(wrong)

    def test_a_layer_that_is_in_no_group_ends_the_start(self) -> None:
        side = self.side()
        more = {**self.tensors, "draft.0.attn": torch.zeros(PAGES, 4)}
        with parallel_state(), self.described():
            with self.assertRaisesRegex(ValueError, "draft.0.attn"):
                side.register_kv_caches(more)

    def test_another_layout_in_the_domain_ends_the_start(self) -> None:
        self.side().shutdown()
        with self.assertRaisesRegex(ValueError, "kvist: .*layout"):
            self.side([(full_spec(BLOCK_TOKENS, heads=4), 3)])

    def test_no_store_is_no_error_and_it_is_taken_up_when_it_comes(self) -> None:
        self.store.end(signal.SIGKILL)
        side = self.side()
        tokens = tokens_of(1, 2, BLOCK_TOKENS)
        saves = [save_job(1, 1, tokens, [[1, 2]])]
        report = self.until_saved(side, KvistMetadata(saves=saves, ended_sequences=[1]))
        self.assertFalse(report.saves[1].stored)
        self.store.start()
        self.stored(side, tokens, [1, 2])

    def test_registered_again_it_serves_the_new_pages(self) -> None:
        side = self.side()
        old = self.tensors
        self.tensors = make_tensors(self.config)
        self.memory = storage_of(self.tensors)
        with parallel_state(), self.described():
            side.register_kv_caches(self.tensors)
        self.fill(1)
        tokens = tokens_of(1, 1, BLOCK_TOKENS)
        self.stored(side, tokens, [1])
        self.loaded(side, tokens, [2])
        self.assertEqual(self.page(2), self.page(1))
        self.assertFalse(any(storage_of(old)), "the old ones are left alone")

    def test_shut_down_it_does_nothing_any_more(self) -> None:
        side = self.side()
        side.shutdown()
        side.shutdown()
        tokens = tokens_of(1, 1, BLOCK_TOKENS)
        step = self.step(side, KvistMetadata(loads=[load_job("r", tokens, [[2]])]))
        self.assertIsNone(step.report)


if __name__ == "__main__":
    unittest.main()
