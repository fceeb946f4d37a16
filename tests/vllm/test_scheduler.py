"""The connector at vLLM's own scheduler, with a model that only remembers (simulated.py)."""
from __future__ import annotations

import os
import random
import unittest
from typing import Any
from unittest import mock

from kvist.vllm import finding, saves, scheduler
from simulated import BLOCK_TOKENS, Engine, Prefixes, VOCABULARY
from vllm.v1.metrics.cache_hit_source import CacheHitSource


def prompt(seed: int, tokens: int, begin: list[int] | None = None) -> list[int]:
    chance = random.Random(seed)
    made = list(begin or [])
    return made + [chance.randrange(VOCABULARY) for _ in range(tokens - len(made))]


class Case(unittest.TestCase):
    def setUp(self) -> None:
        patch = mock.patch.object(scheduler, "LookUps", Prefixes)
        patch.start()
        self.addCleanup(patch.stop)

    def engine(self, seed: int = 1, **arguments: Any) -> Engine:
        engine = Engine(seed, **arguments)
        self.addCleanup(engine.connector.shutdown)
        return engine


class Paths(Case):
    def test_comes_back_after_a_reset(self) -> None:
        engine = self.engine()
        text = prompt(1, 10 * BLOCK_TOKENS + 5)
        engine.add("cold", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 0)
        self.assertEqual(engine.model.saved_blocks, 10)
        engine.reset_prefix_cache()
        engine.add("again", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 10)
        engine.check_answer("cold", text, 8)
        engine.check_answer("again", text, 8)
        engine.check_nothing_left()

    def test_never_the_whole_prompt(self) -> None:
        engine = self.engine()
        text = prompt(1, 4 * BLOCK_TOKENS)
        engine.add("cold", text)
        engine.run()
        self.assertEqual(engine.model.saved_blocks, 4)
        engine.reset_prefix_cache()
        engine.add("again", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 3)
        engine.check_answer("again", text, 8)
        engine.check_nothing_left()


    def test_more_than_vllm_has_itself(self) -> None:
        engine = self.engine()
        begin = prompt(1, 4 * BLOCK_TOKENS + 1)
        text = prompt(2, 9 * BLOCK_TOKENS + 1, begin)
        engine.add("long", text)
        engine.run()
        engine.reset_prefix_cache()
        engine.add("short", begin)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 4)
        engine.add("both", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 4 + 5)
        engine.check_answer("both", text, 8)
        engine.check_nothing_left()

    def test_generated_blocks_are_saved_but_for_the_open_end(self) -> None:
        for overlapping in (False, True):
            engine = self.engine(overlapping=overlapping)
            text = prompt(1, 2 * BLOCK_TOKENS + 20)
            engine.add("one", text, max_tokens=BLOCK_TOKENS * 2)
            engine.run()
            # 148 tokens, the last of which was never computed.
            self.assertEqual(engine.model.saved_blocks, 4)
            engine.check_nothing_left()
            # A last block that is full but for the token that was sampled last.
            engine.add("two", prompt(2, 3 * BLOCK_TOKENS), max_tokens=BLOCK_TOKENS)
            engine.run()
            self.assertEqual(engine.model.saved_blocks, 4 + 3)
            engine.add("three", prompt(3, 3 * BLOCK_TOKENS), max_tokens=BLOCK_TOKENS + 1)
            engine.run()
            self.assertEqual(engine.model.saved_blocks, 4 + 3 + 4)
            engine.check_nothing_left()

    def test_generated_blocks_only_where_wanted(self) -> None:
        engine = self.engine(options={"save_generated": False})
        engine.add("one", prompt(1, 2 * BLOCK_TOKENS + 20), max_tokens=BLOCK_TOKENS * 2)
        engine.run()
        self.assertEqual(engine.model.saved_blocks, 2)
        engine.check_nothing_left()

    def test_sources_and_figures(self) -> None:
        engine = self.engine()
        text = prompt(1, 6 * BLOCK_TOKENS + 5)
        engine.add("cold", text)
        engine.run()
        engine.reset_prefix_cache()
        seen = []
        ask = engine.connector.get_external_cache_hit_sources
        with mock.patch.object(engine.connector, "get_external_cache_hit_sources",
                               side_effect=lambda *args: seen.append(ask(*args)) or seen[-1]):
            engine.add("again", text)
            engine.run()
        self.assertEqual(seen, [{CacheHitSource.HOST: 6 * BLOCK_TOKENS}])

    def test_minimum_hit(self) -> None:
        engine = self.engine(options={"minimum_hit_blocks": 4})
        text = prompt(1, 3 * BLOCK_TOKENS + 5)
        engine.add("cold", text)
        engine.run()
        engine.reset_prefix_cache()
        engine.add("again", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 0)
        engine.check_answer("again", text, 8)
        engine.check_nothing_left()

    def test_policy_is_recompute(self) -> None:
        engine = self.engine()
        self.assertEqual(engine.config.kv_transfer_config.kv_load_failure_policy, "recompute")
        self.assertTrue(engine.scheduler.recompute_kv_load_failures)

    def test_a_step_that_completes_nothing_asks_for_no_table(self) -> None:
        engine = self.engine()
        engine.add("one", prompt(1, 10), max_tokens=5)
        with mock.patch.object(engine.scheduler.kv_cache_manager, "get_block_ids",
                               side_effect=AssertionError("a table was asked for")):
            engine.step()
            engine.step()
        engine.run()
        engine.check_nothing_left()


class Trouble(Case):
    def warm(self, **arguments: Any) -> tuple[Engine, list[int]]:
        """An engine whose store has a prompt of 8 blocks that vLLM has forgotten."""
        engine = self.engine(**arguments)
        text = prompt(1, 8 * BLOCK_TOKENS + 5)
        engine.add("cold", text)
        engine.run()
        engine.reset_prefix_cache()
        return engine, text

    def test_failed_loads_are_computed_and_not_asked_for_again(self) -> None:
        for windowed in (False, True):
            engine, text = self.warm(windowed=windowed)
            engine.model.fail_one_in = 1
            asked = engine.store.asked
            engine.add("again", text)
            engine.run()
            self.assertEqual(engine.model.failed_loads, 1)
            self.assertEqual(engine.store.asked, asked + 1)
            engine.check_answer("again", text, 8)
            engine.check_nothing_left()

    def test_aborted_while_it_loads(self) -> None:
        for windowed in (False, True):
            engine, text = self.warm(windowed=windowed)
            engine.model.delay_steps = 50
            engine.add("again", text)
            engine.step()
            self.assertEqual(len(engine.model.loads), 1)
            self.assertEqual(engine.side.held_answers, 1)
            engine.abort("again")
            self.assertEqual(engine.side.held_answers, 0)
            engine.run(10)  # the worker is told
            engine.check_nothing_left()

    def test_aborted_between_its_load_and_its_first_step(self) -> None:
        engine, text = self.warm()
        engine.model.delay_steps = 0
        engine.add("again", text)
        engine.step()
        engine.abort("again")
        engine.run()
        engine.check_nothing_left()

    def test_aborted_while_it_waits_for_blocks_to_come(self) -> None:
        engine, text = self.warm()
        longer = prompt(2, 12 * BLOCK_TOKENS, text)
        owner = next(iter(engine.store.stored))[0]
        engine.store.pending.add((owner, tuple(longer[: 9 * BLOCK_TOKENS]), None))
        engine.add("again", longer)
        engine.step()
        self.assertEqual(engine.model.loads, [])
        engine.abort("again")
        engine.run()
        engine.check_nothing_left()

    def test_aborted_while_it_runs_and_while_it_is_saved(self) -> None:
        engine = self.engine(max_num_batched_tokens=250)
        engine.model.delay_steps = 10
        engine.add("one", prompt(1, 20 * BLOCK_TOKENS), max_tokens=100)
        for _ in range(2):
            engine.step()
        self.assertTrue(engine.side.holds_pages())
        free = engine.pool.get_num_free_blocks()
        engine.abort("one")
        # Pages under a save are not free, the others are.
        held = {page for job, _ in engine.model.saves for page in job.pages[0]}
        self.assertEqual(engine.pool.get_num_free_blocks(), engine.free_at_start - len(held))
        self.assertLess(free, engine.pool.get_num_free_blocks())
        engine.run()
        engine.check_nothing_left()

    def test_aborted_before_it_is_scheduled(self) -> None:
        engine, text = self.warm()
        engine.add("again", text)
        engine.abort("again")
        engine.run()
        engine.check_nothing_left()

    def test_no_room_for_what_was_found(self) -> None:
        engine, text = self.warm(block_count=14)
        engine.model.delay_steps = 0
        engine.add("large", prompt(3, 10 * BLOCK_TOKENS), max_tokens=20)
        engine.step()
        engine.step()
        asked = engine.store.asked
        engine.add("again", text)
        engine.step()
        engine.step()
        # Asked once, held, and not asked again while it waits for room.
        self.assertEqual(engine.store.asked, asked + 1)
        self.assertEqual(engine.side.held_answers, 1)
        engine.run()
        engine.check_answer("again", text, 8)
        engine.check_nothing_left()

    def test_a_failed_save_begins_again_at_block_0(self) -> None:
        engine = self.engine()
        engine.model.save_fails_one_in = 1
        engine.model.delay_steps = 0
        text = prompt(1, 2 * BLOCK_TOKENS)
        engine.add("one", text, max_tokens=6 * BLOCK_TOKENS)
        now = [1000.0]
        with mock.patch.object(finding.time, "monotonic", side_effect=lambda: now[0]):
            for _ in range(40):
                engine.step()
            self.assertEqual(engine.model.saved_blocks, 0)
            engine.model.save_fails_one_in = 0
            jobs = engine.side._saves._numbers
            before = next(jobs)
            for _ in range(40):
                engine.step()
            self.assertEqual(next(jobs), before + 1, "not before a while has passed")
            now[0] += saves.SAVE_AGAIN_S
            engine.run()
        self.assertEqual(engine.model.saved_blocks, 7)
        engine.check_nothing_left()

    def test_store_away(self) -> None:
        engine, text = self.warm()
        engine.store.fails = True
        engine.add("again", text)
        engine.run()
        engine.check_answer("again", text, 8)
        engine.store.fails = False
        engine.reset_prefix_cache()
        engine.add("third", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 8)
        engine.check_nothing_left()

    def test_reset_of_the_connector_finds_nothing_from_before(self) -> None:
        engine, text = self.warm()
        engine.add("running", prompt(5, 3 * BLOCK_TOKENS), max_tokens=40)
        engine.step()
        self.assertTrue(engine.scheduler.reset_connector_cache())
        engine.run()
        engine.reset_prefix_cache()
        stored = len(engine.store.stored)
        engine.add("again", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 0)
        self.assertEqual(len(engine.store.stored), stored + 8)
        engine.reset_prefix_cache()
        engine.add("third", text)
        engine.run()
        self.assertEqual(engine.model.loaded_blocks, 8)
        engine.check_nothing_left()

    def test_no_prefix_cache_wanted(self) -> None:
        engine, text = self.warm()
        request = engine.add("again", text)
        request.skip_reading_prefix_cache = True
        asked = engine.store.asked
        engine.run()
        self.assertEqual(engine.store.asked, asked)
        engine.check_answer("again", text, 8)
        engine.check_nothing_left()


class HandOver(Case):
    def test_a_producer_announces_and_a_consumer_waits(self) -> None:
        producer = self.engine(role="kv_producer")
        text = prompt(1, 8 * BLOCK_TOKENS + 5)
        producer.add("one", text, max_tokens=1)
        producer.run()
        params = producer.params["one"]
        self.assertEqual(params["kvist"]["blocks"], 8)
        producer.add("short", text[:10], max_tokens=1)
        producer.run()
        self.assertIsNone(producer.params["short"])
        producer.check_nothing_left()

        consumer = self.engine(role="kv_consumer")
        consumer.add("one", text, params={"other": 1, **params})
        now = [1000.0]
        with mock.patch.object(finding.time, "monotonic", side_effect=lambda: now[0]):
            for _ in range(5):
                consumer.step()
                now[0] += 0.01
            self.assertEqual(consumer.answers["one"], [])
            consumer.store.stored |= producer.store.stored
            now[0] += 0.01
            consumer.run()
        self.assertEqual(consumer.model.loaded_blocks, 8)
        self.assertEqual(consumer.model.saved_blocks, 0)
        consumer.check_answer("one", text, 8)
        consumer.check_nothing_left()

    def test_a_consumer_does_not_wait_for_ever(self) -> None:
        text = prompt(1, 8 * BLOCK_TOKENS + 5)
        consumer = self.engine(options={"pending_wait_s": 2})
        producer = self.engine(role="kv_producer")
        producer.add("one", text, max_tokens=1)
        producer.run()
        consumer.add("one", text, params=producer.params["one"])
        now = [1000.0]
        with mock.patch.object(finding.time, "monotonic", side_effect=lambda: now[0]):
            consumer.step()
            self.assertEqual(consumer.answers["one"], [])
            now[0] += 2
            consumer.run()
        consumer.check_answer("one", text, 8)
        consumer.check_nothing_left()

    def test_nobody_waits_for_what_has_another_name(self) -> None:
        text = prompt(1, 8 * BLOCK_TOKENS + 5)
        for params in ({"kvist": {"blocks": 8, "key": "ab" * 32}}, {"kvist": 7}, {"kvist": {}},
                       {"kvist": {"blocks": 8, "key": "xy" * 32}},
                       {"kvist": {"blocks": 1 << 40, "key": "ab" * 32}},
                       {"kvist": {"blocks": 9, "key": "ab" * 32}}, {"kvist": None}):
            consumer = self.engine()
            with self.subTest(params), mock.patch.object(finding.time, "monotonic", lambda: 1000.0):
                consumer.add("one", text, params=params)
                consumer.run(60)
                consumer.check_answer("one", text, 8)

    def test_both_announce_when_asked(self) -> None:
        engine = self.engine()
        text = prompt(1, 8 * BLOCK_TOKENS + 5)
        engine.add("asked", text, params={"do_remote_decode": True})
        engine.add("other", text, params={"do_remote_decode": False})
        engine.run()
        self.assertEqual(engine.params["asked"]["kvist"]["blocks"], 8)
        self.assertIsNone(engine.params["other"])

    def test_a_producer_loads_nothing(self) -> None:
        engine = self.engine(role="kv_producer")
        text = prompt(1, 8 * BLOCK_TOKENS + 5)
        for name in ("one", "two"):
            engine.add(name, text)
            engine.run()
            engine.reset_prefix_cache()
        self.assertEqual((engine.store.asked, engine.model.loaded_blocks), (0, 0))


class Random(Case):
    """Requests that share prefixes, come, end and are aborted at random, under pressure."""

    def play(self, seed: int, **arguments: Any) -> None:
        engine = self.engine(seed, **arguments)
        model, chance = engine.model, engine.chance
        model.fail_one_in, model.save_fails_one_in = 16, 24
        model.delay_steps = chance.choice((0, 2, 8))
        begins = [prompt(seed * 100 + i, chance.randrange(1, 300)) for i in range(4)]
        wanted: dict[str, tuple[list[int], int]] = {}
        aborted = set()
        with mock.patch.object(saves, "SAVE_AGAIN_S", 0.0):
            for number in range(40):
                name = f"{number}"
                text = prompt(number, chance.randrange(1, 420), chance.choice(begins))
                wanted[name] = (text, chance.randrange(1, 120))
                engine.add(name, text, wanted[name][1])
                for _ in range(chance.randrange(12)):
                    engine.step()
                if chance.random() < 0.2:
                    name = chance.choice(list(wanted))
                    if name not in engine.reasons:
                        engine.abort(name)
                        aborted.add(name)
                if chance.random() < 0.1:
                    engine.scheduler.reset_prefix_cache()
            engine.run(20000)
            # Whatever chance had: something is loaded.
            model.fail_one_in = model.save_fails_one_in = 0
            text = prompt(seed, 300)
            for name in ("first", "second"):
                wanted[name] = (text, 4)
                engine.add(name, *wanted[name])
                engine.run()
                engine.reset_prefix_cache()
            self.assertGreaterEqual(model.loaded_blocks, 9)
        for name, (text, max_tokens) in wanted.items():
            if name not in aborted:
                engine.check_answer(name, text, max_tokens)
        engine.check_nothing_left()

    def many(self, **arguments: Any) -> None:
        seed = int(os.environ.get("KVIST_SEED") or random.SystemRandom().randrange(1 << 20))
        for i in range(10 if os.environ.get("KVIST_TEST_LONG") == "1" else 2):
            with self.subTest(seed=seed + i):
                self.play(seed + i, **arguments)

    def test_one_step_at_a_time(self) -> None:
        self.many(block_count=64)

    def test_drafts(self) -> None:
        self.many(block_count=64, spec_tokens=3)

    def test_overlapping_steps(self) -> None:
        self.many(block_count=64, overlapping=True)

    def test_overlapping_steps_with_drafts(self) -> None:
        self.many(block_count=64, overlapping=True, spec_tokens=3)

    def test_windows(self) -> None:
        self.many(block_count=90, windowed=True)

    def test_windows_and_overlapping_steps(self) -> None:
        self.many(block_count=90, windowed=True, overlapping=True)


if __name__ == "__main__":
    unittest.main()
