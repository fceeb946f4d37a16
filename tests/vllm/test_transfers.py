"""Loads and saves against a kvist-store process: every byte, every end that a job can have."""

from __future__ import annotations

import signal
import threading
import time
import unittest
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy
import torch
from vllm.v1.kv_cache_interface import KVCacheSpec, SlidingWindowSpec
from worker_case import (
    WAIT_LIMIT_S,
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

import kvist
from kvist.vllm import loading, staging, transfers
from kvist.vllm.figures import Figures
from kvist.vllm.metadata import NO_PAGE, LoadJob, Owner, SaveJob
from kvist.vllm.pages import group_pages
from kvist.vllm.transfers import Results, Transfers

BLOCK_TOKENS = 16
PAGES = 64  # of vLLM's memory
FULL = full_spec(BLOCK_TOKENS)
WINDOW = SlidingWindowSpec(
    block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=8, dtype=torch.bfloat16, sliding_window=40
)


class Bench:
    """One worker's transfers, without vLLM around them."""

    def __init__(
        self,
        store: HostStore,
        groups: list[tuple[KVCacheSpec, int]] | None = None,
        staged: bool = False,
        save_wait_s: float = 10.0,
    ) -> None:
        specs = groups or [(FULL, 3)]
        config = kv_cache_config(specs, PAGES)
        self.tensors = make_tensors(config)
        self.memory = storage_of(self.tensors)
        self.names = [group.layer_names for group in config.kv_cache_groups]
        self.counted: dict[str, float] = {}
        self.groups = [
            group_pages(
                self.tensors, group.layer_names, PAGES, spec.real_page_size_bytes, staged=staged
            )
            for group, (spec, _) in zip(config.kv_cache_groups, specs)
        ]
        self.layout = kvist.Layout(BLOCK_TOKENS, [_layout_group(*spec) for spec in specs])
        self.figures = Figures("worker-0")
        self.thread = kvist.StoreThread(lambda: kvist.Store(self.layout, attach=store.socket))
        self.transfers = Transfers(
            self.thread, self.groups, self.name_space, kvist.Terms, self.figures, save_wait_s
        )
        self.results = Results()
        self.number = 0  # of the last sequence

    def name_space(self, owner: Owner) -> bytes:
        return kvist.name_space(
            model=b"m" * 32, layout=self.layout, dtype=kvist.Dtype.BF16, salt=owner.salt
        )

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.transfers.close(10.0)
        self.thread.close()

    def fill(self, seed: int) -> None:
        """Other bytes in all pages."""
        generator = numpy.random.default_rng(seed)
        self.memory[:] = generator.integers(0, 256, self.memory.size, dtype=numpy.uint8)

    def page(self, page: int, group: int = 0) -> bytes:
        """All bytes of a page, layer after layer."""
        return b"".join(
            self.tensors[name][page].contiguous().view(torch.uint8).numpy().tobytes()
            for name in self.names[group]
        )

    def take(self) -> None:
        results = self.transfers.take()
        self.results.received |= results.received
        self.results.failed |= results.failed
        self.results.failed_pages |= results.failed_pages
        self.results.saves.update(results.saves)

    def wait_save(self, job: int) -> bool:
        def over() -> bool:
            self.take()
            return job in self.results.saves

        wait_until(over, f"save {job}")
        return self.results.saves[job]

    def wait_load(self, request_id: str) -> Results:
        def over() -> bool:
            self.take()
            return request_id in self.results.received

        wait_until(over, f"the load of {request_id}")
        results, self.results = self.results, Results(saves=self.results.saves)
        return results

    def save(self, *jobs: SaveJob) -> bool:
        """Whether all of these, one sequence, were stored. A look-up waits for kvist-store for a
        quarter of a second, which is short where other work has the cores: then once more."""
        end_s = time.monotonic() + WAIT_LIMIT_S
        while True:
            self.number += 1000
            again = [
                replace(job, job=job.job + self.number, sequence=self.number) for job in jobs
            ]
            late = self.count("saves_given_up:peer_lost")
            self.transfers.start_saves(again, [self.number])
            ended = [self.wait_save(job.job) for job in again]
            if self.count("saves_given_up:peer_lost") == late or time.monotonic() > end_s:
                return all(ended)

    def load(self, job: LoadJob) -> Results:
        """What came of it; where kvist-store was late, once more."""
        end_s = time.monotonic() + WAIT_LIMIT_S
        while True:
            late = self.count("failed_loads:failed")
            self.transfers.start_loads([job])
            results = self.wait_load(job.request_id)
            if self.count("failed_loads:failed") == late or time.monotonic() > end_s:
                return results

    def count(self, key: str) -> float:
        taken = self.figures.take()
        if taken is not None:
            for name, value in taken.data["counters"].items():
                self.counted[name] = self.counted.get(name, 0) + value
        return self.counted.get(key, 0)


def _layout_group(spec: KVCacheSpec, layers: int) -> kvist.Group:
    window = getattr(spec, "sliding_window", None)
    first = 0 if window is None else 100
    return kvist.Group(
        kvist.GroupKind.FULL if window is None else kvist.GroupKind.WINDOW,
        range(first, first + layers),
        [kvist.Part(kvist.PartKind.OPAQUE, 1, spec.page_size_bytes, 1)],
        window_tokens=window or 0,
    )


class TransfersTest(unittest.TestCase):
    def setUp(self) -> None:
        self.store = self.enterContext(HostStore())

    def bench(self, **options: Any) -> Bench:
        return self.enterContext(Bench(self.store, **options))

    def saved(self, bench: Bench, seed: int, count: int, first_page: int = 1) -> Any:
        """A context of `count` blocks, stored from pages first_page on: its tokens."""
        tokens = tokens_of(seed, count, BLOCK_TOKENS)
        pages = [list(range(first_page, first_page + count))] * len(bench.groups)
        self.assertTrue(bench.save(save_job(1, 1, tokens, pages)))
        return tokens


class MovingTest(TransfersTest):
    def test_what_was_saved_comes_back_into_other_pages(self) -> None:
        for staged in (False, True):
            with self.subTest(staged=staged), Bench(self.store, staged=staged) as bench:
                bench.fill(1)
                pages = [1, 9, 4, 63, 17]
                want = [bench.page(page) for page in pages]
                tokens = tokens_of(10 + staged, 5, BLOCK_TOKENS)
                self.assertTrue(bench.save(save_job(1, 1, tokens, [pages])))
                bench.fill(2)
                before = bench.memory.copy()
                other = [30, 2, 40, 11, 5]
                results = bench.load(load_job("r", tokens, [other]))
                self.assertEqual(results.failed, set())
                self.assertEqual(results.failed_pages, set())
                self.assertEqual([bench.page(page) for page in other], want)
                changed = numpy.flatnonzero(bench.memory != before)
                inside = set((changed // FULL.page_size_bytes % PAGES).tolist())
                self.assertLessEqual(inside, set(other), "no other page was written to")
                self.assertEqual(bench.count("load_blocks"), 5)
                self.assertEqual(bench.count("save_blocks"), 5)
                size_bytes = 5 * 3 * FULL.page_size_bytes
                self.assertEqual(bench.count("load_bytes"), size_bytes)
                self.assertEqual(bench.count("save_bytes"), size_bytes)

    def test_staged_saves_wait_for_host_memory(self) -> None:
        """Room for one of them, on their way in chunks of one block."""
        with (
            mock.patch.object(transfers, "STAGED_BYTES_MAX", 3 * 3 * FULL.page_size_bytes),
            mock.patch.object(staging, "CHUNK_BYTES", 1),
            Bench(self.store, staged=True) as bench,
        ):
            bench.fill(1)
            tokens = [tokens_of(seed, 2, BLOCK_TOKENS) for seed in range(8)]
            pages = [[1 + 2 * i, 2 + 2 * i] for i in range(8)]
            saves = [save_job(i, i, tokens[i], [pages[i]]) for i in range(8)]
            bench.transfers.start_saves(saves, list(range(8)))
            for number in range(8):
                bench.wait_save(number)
            want = [bench.page(page) for page in pages[7]]
            self.assertTrue(bench.save(saves[7]))
            bench.fill(2)
            self.assertEqual(bench.load(load_job("r", tokens[7], [[41, 42]])).failed, set())
            self.assertEqual([bench.page(page) for page in (41, 42)], want)

    def test_a_load_begins_behind_what_vllm_has(self) -> None:
        bench = self.bench()
        bench.fill(1)
        tokens = self.saved(bench, 1, 6)
        want = [bench.page(page) for page in range(4, 7)]
        bench.fill(2)
        results = bench.load(load_job("r", tokens, [[20, 21, 22]], first_block=3))
        self.assertEqual(results.failed, set())
        self.assertEqual([bench.page(page) for page in (20, 21, 22)], want)

    def test_jobs_of_a_sequence_go_on_from_each_other(self) -> None:
        bench = self.bench()
        bench.fill(1)
        tokens = tokens_of(1, 6, BLOCK_TOKENS)
        part = BLOCK_TOKENS * 2
        jobs = [
            save_job(i, 7, tokens[i * part : (i + 1) * part], [[1 + 2 * i, 2 + 2 * i]], 2 * i)
            for i in range(3)
        ]
        self.assertTrue(bench.save(*jobs))
        want = [bench.page(page) for page in range(1, 7)]
        bench.fill(2)
        self.assertEqual(bench.load(load_job("r", tokens, [list(range(11, 17))])).failed, set())
        self.assertEqual([bench.page(page) for page in range(11, 17)], want)

    def test_what_is_stored_already_is_not_gathered(self) -> None:
        """A context that came back, and went on."""
        for staged in (False, True):
            with self.subTest(staged=staged), Bench(self.store, staged=staged) as bench:
                bench.fill(1)
                tokens = tokens_of(20 + staged, 6, BLOCK_TOKENS)
                self.assertTrue(
                    bench.save(save_job(1, 1, tokens[: 4 * BLOCK_TOKENS], [[1, 2, 3, 4]]))
                )
                gathered: list[int] = []
                gather = staging.StagedPages.gather

                def noted(group: Any, ids: torch.Tensor) -> torch.Tensor:
                    gathered.extend(ids.tolist())
                    return gather(group, ids)

                with mock.patch.object(staging.StagedPages, "gather", noted):
                    self.assertTrue(
                        bench.save(save_job(2, 2, tokens, [[11, 12, 13, 14, 15, 16]]))
                    )
                self.assertEqual(gathered, [15, 16] if staged else [])
                self.assertEqual(bench.count("save_blocks"), 6)
                want = [bench.page(page) for page in (1, 2, 3, 4, 15, 16)]
                bench.fill(2)
                pages = [31, 32, 33, 34, 35, 36]
                self.assertEqual(bench.load(load_job("r", tokens, [pages])).failed, set())
                self.assertEqual([bench.page(page) for page in pages], want)

    def test_owners_share_nothing(self) -> None:
        bench = self.bench()
        tokens = self.saved(bench, 1, 2)
        job = load_job("r", tokens, [[5, 6]], owner=Owner(salt=b"another"))
        self.assertEqual(bench.load(job).failed_pages, {5, 6})

    def test_extra_keys_are_part_of_a_block(self) -> None:
        bench = self.bench()
        bench.fill(1)
        tokens = tokens_of(1, 3, BLOCK_TOKENS)
        extras = (b"\0" * 32, b"image".ljust(32), b"image".ljust(32))
        first = save_job(1, 1, tokens[:32], [[1, 2]])
        second = save_job(2, 1, tokens[32:], [[3]], 2)
        jobs = [replace(first, extras=extras[:2]), replace(second, extras=extras[2:])]
        self.assertTrue(bench.save(*jobs))
        want = [bench.page(page) for page in (1, 2, 3)]
        job = load_job("r", tokens, [[5, 6, 7]])
        self.assertEqual(bench.load(replace(job, extras=extras)).failed, set())
        self.assertEqual([bench.page(page) for page in (5, 6, 7)], want)
        for others, missing in ((None, {6, 7}), (extras[:2] + extras[:1], {7})):
            self.assertEqual(bench.load(replace(job, extras=others)).failed_pages, missing)

    def test_more_loads_than_are_begun_at_once(self) -> None:
        bench = self.bench()
        bench.fill(1)
        count = 3 * loading.LOADS_AT_ONCE
        tokens = self.saved(bench, 1, 2)
        want = [bench.page(1), bench.page(2)]
        jobs = [load_job(f"r{i}", tokens, [[3 + 2 * i, 4 + 2 * i]]) for i in range(count)]
        bench.transfers.start_loads(jobs)
        wait_until(lambda: bench.take() or len(bench.results.received) == count, "all loads")
        self.assertEqual(bench.results.failed, set())
        for i in range(count):
            self.assertEqual([bench.page(3 + 2 * i), bench.page(4 + 2 * i)], want)

    def test_two_groups_one_with_a_window(self) -> None:
        bench = self.bench(groups=[(FULL, 2), (WINDOW, 2)])
        bench.fill(1)
        tokens = tokens_of(1, 6, BLOCK_TOKENS)
        full, window = [1, 2, 3, 4, 5, 6], [NO_PAGE, NO_PAGE, 13, 14, 15, 16]
        self.assertTrue(bench.save(save_job(1, 1, tokens, [full, window])))
        want = [bench.page(page) for page in full], [bench.page(page, 1) for page in window[3:]]
        bench.fill(2)
        # 6 blocks are 96 tokens: the last 39 lie in blocks 3 to 5.
        to = [[21, 22, 23, 24, 25, 26], [NO_PAGE, NO_PAGE, NO_PAGE, 34, 35, 36]]
        self.assertEqual(bench.load(load_job("r", tokens, to)).failed, set())
        got = [bench.page(page) for page in to[0]], [bench.page(page, 1) for page in to[1][3:]]
        self.assertEqual(got, want)


class FailingTest(TransfersTest):
    def test_a_miss_names_its_pages_and_its_reason(self) -> None:
        bench = self.bench()
        results = bench.load(load_job("r", tokens_of(1, 3, BLOCK_TOKENS), [[7, 8, 9]]))
        self.assertEqual((results.failed, results.failed_pages), ({"r"}, {7, 8, 9}))
        self.assertEqual(bench.count("failed_loads:new"), 1)
        misses = bench.thread.call(lambda store: store.statistics().miss_count)
        self.assertEqual(misses[kvist.Miss.NEW], 0, "the scheduler asked, and was counted")
        self.assertGreaterEqual(bench.count("failed_load_blocks"), 3)

    def test_the_good_prefix_of_a_load_counts(self) -> None:
        bench = self.bench()
        bench.fill(1)
        tokens = self.saved(bench, 1, 2)
        want = [bench.page(1), bench.page(2)]
        longer = numpy.concatenate([tokens, tokens_of(2, 2, BLOCK_TOKENS)])
        results = bench.load(load_job("r", longer, [[11, 12, 13, 14]]))
        self.assertEqual((results.failed, results.failed_pages), ({"r"}, {13, 14}))
        self.assertEqual([bench.page(11), bench.page(12)], want)
        self.assertEqual(bench.count("load_blocks"), 2)

    def test_of_several_groups_all_or_nothing_counts(self) -> None:
        bench = self.bench(groups=[(FULL, 2), (WINDOW, 2)])
        tokens = self.saved(bench, 1, 2)
        longer = numpy.concatenate([tokens, tokens_of(2, 1, BLOCK_TOKENS)])
        results = bench.load(load_job("r", longer, [[11, 12, 13], [21, 22, 23]]))
        self.assertEqual(results.failed, {"r"})
        self.assertEqual(results.failed_pages, {11, 12, 13, 21, 22, 23})

    def test_a_gap_ends_a_sequence_and_a_new_one_begins(self) -> None:
        bench = self.bench()
        tokens = tokens_of(1, 4, BLOCK_TOKENS)
        bench.transfers.start_saves([
            save_job(1, 1, tokens[:16], [[1]]),
            save_job(2, 1, tokens[32:48], [[3]], 2),
            save_job(3, 1, tokens[16:32], [[2]], 1),
        ])  # fmt: skip
        self.assertEqual([bench.wait_save(2), bench.wait_save(3)], [False, False])
        self.assertGreaterEqual(bench.count("saves_given_up:gap"), 2)
        bench.transfers.start_saves([], [1])
        self.assertTrue(bench.save(save_job(4, 2, tokens, [[1, 2, 3, 4]])))

    def test_a_sequence_that_does_not_begin_at_its_start(self) -> None:
        bench = self.bench()
        tokens = tokens_of(1, 1, BLOCK_TOKENS)
        bench.transfers.start_saves([save_job(1, 1, tokens, [[1]], 3)], [1])
        self.assertFalse(bench.wait_save(1))

    def test_pages_that_are_none_are_refused(self) -> None:
        bench = self.bench()
        tokens = tokens_of(1, 1, BLOCK_TOKENS)
        for page in (0, PAGES, -2):
            with self.subTest(page=page):
                bench.transfers.start_saves([save_job(page, page, tokens, [[page]])], [page])
                self.assertFalse(bench.wait_save(page))
                self.assertEqual(bench.load(load_job("r", tokens, [[page]])).failed, {"r"})

    def test_too_much_under_way_is_given_up_at_once(self) -> None:
        bench = self.bench()
        size_bytes = 3 * FULL.page_size_bytes
        with mock.patch.object(transfers, "SAVE_BYTES_MAX", 2 * size_bytes):
            tokens = tokens_of(1, 3, BLOCK_TOKENS)
            bench.transfers.start_saves([
                save_job(1, 1, tokens[:32], [[1, 2]]), save_job(2, 1, tokens[32:], [[3]], 2),
            ], [1])  # fmt: skip
            self.assertFalse(bench.wait_save(2))
            self.assertEqual(bench.count("saves_given_up:too much under way"), 1)
            stored = bench.wait_save(1) or bench.count("saves_given_up:peer_lost") > 0
            self.assertTrue(stored, "what is before it is not given up with it")
            self.saved(bench, 5, 2)


class PoisonTest(TransfersTest):
    def test_pages_of_a_load_are_not_saved_until_its_result_is_taken(self) -> None:
        bench = self.bench()
        bench.fill(1)
        tokens, other = tokens_of(1, 2, BLOCK_TOKENS), tokens_of(2, 2, BLOCK_TOKENS)
        bench.transfers.start_loads([load_job("r", tokens, [[5, 6]])])
        with self.assertLogs("kvist.vllm", "ERROR"):
            bench.transfers.start_saves([save_job(1, 1, other, [[9, 6]])], [1])
        self.assertEqual(bench.wait_load("r").failed_pages, {5, 6})
        self.assertFalse(bench.wait_save(1))
        # vLLM computed them anew.
        self.assertTrue(bench.save(save_job(2, 2, tokens, [[5, 6]])))

    def test_nothing_of_a_failed_load_is_ever_found(self) -> None:
        bench = self.bench()
        bench.fill(1)
        first = self.saved(bench, 1, 2)
        tokens = numpy.concatenate([first, tokens_of(2, 2, BLOCK_TOKENS)])
        bench.transfers.start_loads([load_job("r", tokens, [[11, 12, 13, 14]])])
        bench.transfers.start_saves([save_job(9, 9, tokens, [[11, 12, 13, 14]])], [9])
        wait_until(lambda: bench.take() or 9 in bench.results.saves, "the save")
        self.assertFalse(bench.results.saves[9])
        bench.wait_load("r")
        results = bench.load(load_job("s", tokens, [[21, 22, 23, 24]]))
        self.assertEqual(results.failed_pages, {23, 24})


class EndingTest(TransfersTest):
    def test_thousands_of_loads_that_end_at_once(self) -> None:
        bench = self.bench()
        tokens = tokens_of(1, 1, BLOCK_TOKENS)
        bench.transfers.start_loads([load_job(f"r{i}", tokens, [[5]]) for i in range(3000)])
        wait_until(lambda: bench.take() or len(bench.results.received) == 3000, "all loads")
        self.assertEqual(len(bench.results.failed), 3000)

    def test_an_aborted_load_is_received_and_not_failed(self) -> None:
        bench = self.bench()
        tokens = self.saved(bench, 1, 4)
        jobs = [load_job(f"r{i}", tokens, [[5, 6, 7, 8]]) for i in range(20)]
        bench.transfers.start_loads(jobs, [job.request_id for job in jobs])
        wait_until(lambda: bench.take() or len(bench.results.received) == 20, "all loads")
        self.assertEqual(bench.results.failed_pages, set())
        bench.transfers.start_loads([], ["r1", "unknown"])  # over: nothing happens
        self.assertEqual(bench.thread.call(lambda store: store.statistics().leases), 0)

    def test_leases_are_given_back(self) -> None:
        bench = self.bench()
        for seed in range(1, 6):
            tokens = self.saved(bench, seed, 3)
            bench.transfers.start_loads([load_job("r", tokens, [[40, 41, 42]])])
            bench.wait_load("r")
        bench.transfers.start_saves([save_job(9, 9, tokens_of(9, 1, 16), [[1]])])
        bench.wait_save(9)
        self.assertEqual(bench.thread.call(lambda store: store.statistics().leases), 1)
        bench.transfers.start_saves([], [9, 1000])
        wait_until(lambda: bench.thread.call(lambda store: store.statistics().leases) == 0,
                   "its lease")

    def test_close_lets_saves_end(self) -> None:
        tokens = tokens_of(1, 8, BLOCK_TOKENS)
        stored = False
        end_s = time.monotonic() + WAIT_LIMIT_S
        while not stored and time.monotonic() < end_s:  # kvist-store may be late
            with Bench(self.store) as bench:
                bench.transfers.start_saves([save_job(1, 1, tokens, [list(range(1, 9))])])
            self.assertEqual(bench.count("saves_given_up:cancelled"), 0)
            stored = bench.count("save_blocks") == 8
        self.assertTrue(stored)

    def test_after_the_thread_has_ended_jobs_end_too(self) -> None:
        bench = self.bench()
        bench.thread.close()
        tokens = tokens_of(1, 1, BLOCK_TOKENS)
        bench.transfers.start_loads([load_job("r", tokens, [[3]])])
        bench.transfers.start_saves([save_job(1, 1, tokens, [[4]])], [1])
        self.assertEqual(bench.wait_load("r").failed, {"r"})
        bench.transfers.start_saves([save_job(2, 2, tokens, [[4]])], [2])
        self.assertFalse(bench.wait_save(2))


class StoreGoneTest(TransfersTest):
    def test_without_a_store_everything_ends_and_it_is_told(self) -> None:
        self.store.end(signal.SIGKILL)
        bench = self.bench()
        tokens = tokens_of(1, 2, BLOCK_TOKENS)
        bench.transfers.start_loads([load_job("r", tokens, [[5, 6]])])
        self.assertEqual(bench.wait_load("r").failed_pages, {5, 6})
        bench.transfers.start_saves([save_job(1, 1, tokens, [[1, 2]])], [1])
        self.assertFalse(bench.wait_save(1))

    def test_a_store_that_was_killed_comes_back_into_service(self) -> None:
        bench = self.bench()
        bench.fill(1)
        self.saved(bench, 1, 2)
        self.store.end(signal.SIGKILL)
        tokens = tokens_of(2, 2, BLOCK_TOKENS)
        bench.transfers.start_saves([save_job(50, 50, tokens, [[1, 2]])], [50])
        self.assertFalse(bench.wait_save(50))
        self.store.start()
        wait_until(lambda: bench.thread.call(lambda store: store.attached_to is not None),
                   "the store's return")
        want = [bench.page(1), bench.page(2)]
        tokens = self.saved(bench, 3, 2)
        self.assertEqual(bench.load(load_job("r", tokens, [[5, 6]])).failed, set())
        self.assertEqual([bench.page(5), bench.page(6)], want)

    def test_killed_under_load_each_job_ends_once(self) -> None:
        bench = self.bench()
        bench.fill(1)
        tokens = self.saved(bench, 1, 8)
        want = [bench.page(page) for page in range(1, 9)]
        stop = threading.Event()

        def kill_now_and_then() -> None:
            while not stop.wait(0.15):
                self.store.end(signal.SIGKILL)
                self.store.start()

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            for number in range(100, 200):
                others = tokens_of(number, 8, BLOCK_TOKENS)
                bench.transfers.start_saves(
                    [save_job(number, number, others, [list(range(1, 9))])], [number]
                )
                bench.transfers.start_loads([load_job("r", tokens, [list(range(21, 29))])])
                bench.wait_save(number)
                results = bench.wait_load("r")
                for i, page in enumerate(range(21, 29)):
                    if page not in results.failed_pages:
                        self.assertEqual(bench.page(page), want[i])
                time.sleep(0.01)
        finally:
            stop.set()
            killer.join()

    def test_a_store_that_stands_still_does_not_hold_anything_for_long(self) -> None:
        bench = self.bench()
        self.saved(bench, 1, 2)
        self.store.signal(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            tokens = tokens_of(2, 8, BLOCK_TOKENS)
            bench.transfers.start_saves([save_job(7, 7, tokens, [list(range(1, 9))])], [7])
            bench.transfers.start_loads([load_job("r", tokens, [[31, 32]], first_block=6)])
            self.assertLess(time.monotonic() - began_s, 5.0, "vLLM's thread went on")
            bench.wait_load("r")
            self.assertFalse(bench.wait_save(7))
        finally:
            self.store.signal(signal.SIGCONT)


if __name__ == "__main__":
    unittest.main()
