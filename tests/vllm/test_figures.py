"""Figures of the connector: what is told, what travels, what vLLM's log and /metrics show."""

from __future__ import annotations

import enum
import pickle
import threading
import types
import unittest

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kvist.vllm import figures


class Tier(enum.IntEnum):
    HOST = 1
    DISK = 2


class Miss(enum.IntEnum):
    NONE = 0
    NEW = 1
    SHORT = 2


class FiguresTest(unittest.TestCase):
    def test_nothing_told_is_nothing_sent(self) -> None:
        self.assertIsNone(figures.Figures("scheduler").take())

    def test_a_take_holds_what_came_since_the_last(self) -> None:
        told = figures.Figures("worker-0")
        told.saved(3, 300, 0.5)
        first = told.take()
        assert first is not None
        self.assertEqual(first.data["counters"], {"save_blocks": 3, "save_bytes": 300})
        self.assertEqual(first.data["samples"], {"save_seconds": [0.5]})
        self.assertIsNone(told.take())
        told.save_given_up(2, "peer_lost")
        second = told.take()
        assert second is not None
        self.assertEqual(
            second.data["counters"], {"saves_given_up:peer_lost": 1, "save_given_up_blocks": 2}
        )

    def test_a_match_by_tier_and_reason(self) -> None:
        told = figures.Figures("scheduler")
        told.matched(1024, {Tier.HOST: 512, Tier.DISK: 0}, Miss.NEW, 0.001)
        told.matched(512, {Tier.HOST: 256, Tier.DISK: 256}, Miss.NONE, 0.001)
        told.matched(100, {}, Miss.SHORT, 0.001)
        taken = told.take()
        assert taken is not None
        self.assertEqual(
            taken.data["counters"],
            {
                "queries": 3,
                "query_tokens": 1636,
                "hit_tokens:host": 768,
                "hit_tokens:disk": 256,
                "misses:new": 1,
            },
        )

    def test_gauges_travel_when_they_change(self) -> None:
        told = figures.Figures("worker-1")
        told.attached(True)
        told.under_way(0, 4096)
        taken = told.take()
        assert taken is not None
        self.assertEqual(
            taken.data["gauges"],
            {
                "store_attached:worker-1": 1,
                "load_bytes_under_way:worker-1": 0,
                "save_bytes_under_way:worker-1": 4096,
            },
        )
        told.attached(True)
        told.under_way(0, 4096)
        self.assertIsNone(told.take())
        told.attached(False)
        taken = told.take()
        assert taken is not None
        self.assertEqual(taken.data["gauges"], {"store_attached:worker-1": 0})

    def test_threads_lose_nothing(self) -> None:
        told = figures.Figures("worker-0")
        sums = figures.KvistStatistics()

        def tell() -> None:
            for _ in range(1000):
                told.loaded(1, 10, 0.1)

        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if taken := told.take():
                sums.aggregate(taken)
        if taken := told.take():
            sums.aggregate(taken)
        self.assertEqual(sums.data["counters"], {"load_blocks": 4000, "load_bytes": 40000})
        self.assertEqual(len(sums.data["samples"]["load_seconds"]), 4000)

    def test_observations_are_bounded(self) -> None:
        one = figures.KvistStatistics(
            {"counters": {}, "gauges": {}, "samples": {"load_seconds": [1.0] * 40_000}}
        )
        one.aggregate(figures.KvistStatistics(one.to_dict()))
        self.assertEqual(len(one.data["samples"]["load_seconds"]), figures.SAMPLES_MAX)


class StatisticsTest(unittest.TestCase):
    def told(self) -> figures.KvistStatistics:
        told = figures.Figures("scheduler")
        told.attached(True)
        told.matched(1000, {Tier.HOST: 700, Tier.DISK: 131}, Miss.NEW, 0.002)
        told.loaded(7, 7_000_000, 0.25)
        told.load_failed(1, "damaged")
        taken = told.take()
        assert taken is not None
        return taken

    def test_workers_and_intervals_add_up(self) -> None:
        one, two = self.told(), self.told()
        one.aggregate(two)
        self.assertEqual(one.data["counters"]["load_bytes"], 14_000_000)
        self.assertEqual(one.data["samples"]["load_seconds"], [0.25, 0.25])
        self.assertEqual(one.data["gauges"], {"store_attached:scheduler": 1})

    def test_a_payload_is_copied(self) -> None:
        payload = self.told().to_dict()
        before = msgspec.msgpack.encode(payload)
        figures.KvistStatistics(payload).aggregate(self.told())
        self.assertEqual(msgspec.msgpack.encode(payload), before)

    def test_every_way_that_vllm_sends_it(self) -> None:
        told = self.told()
        self.assertEqual(pickle.loads(pickle.dumps(told)).data, told.data)
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(told.to_dict()))
        self.assertEqual(figures.KvistStatistics(sent).data, told.data)

    def test_the_line_begins_with_the_hit_rate(self) -> None:
        line = self.told().reduce()
        self.assertEqual(next(iter(line.items())), ("Kvist hit rate (%)", 83.1))
        self.assertEqual(line["hit tokens disk"], 131)
        self.assertEqual(line["misses new"], 1)
        self.assertEqual(line["failed loads damaged"], 1)
        self.assertEqual(line["load (MB)"], 7.0)
        self.assertEqual(line["load mean (ms)"], 250.0)
        self.assertNotIn("parts without a store", line)

    def test_the_line_tells_of_a_store_that_is_away(self) -> None:
        told = figures.Figures("worker-3")
        told.attached(False)
        taken = told.take()
        assert taken is not None
        self.assertEqual(taken.reduce(), {"parts without a store": 1})


class PrometheusTest(unittest.TestCase):
    def setUp(self) -> None:
        self.registry = CollectorRegistry()
        kinds = {
            kind: (lambda kind: lambda **words: kind(registry=self.registry, **words))(kind)
            for kind in (Counter, Gauge, Histogram)
        }
        config = types.SimpleNamespace(kv_transfer_config=None)
        self.metrics = figures.KvistPrometheus(
            config, kinds, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]}
        )

    def value(self, name: str, engine: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(
            f"vllm:kvist_{name}", {"model_name": "m", "engine": engine, **labels}
        )

    def test_series_without_a_label_are_there_from_the_start(self) -> None:
        self.assertEqual(self.value("queries_total", "1"), 0)
        self.assertEqual(self.value("load_seconds_count", "0"), 0)

    def test_engines_are_told_apart(self) -> None:
        told = figures.Figures("scheduler")
        told.matched(512, {Tier.HOST: 256}, Miss.NEW, 0.002)
        told.attached(True)
        taken = told.take()
        assert taken is not None
        self.metrics.observe(taken.to_dict(), 1)
        self.metrics.observe(taken.to_dict(), 1)
        self.assertEqual(self.value("queries_total", "1"), 2)
        self.assertEqual(self.value("queries_total", "0"), 0)
        self.assertEqual(self.value("hit_tokens_total", "1", tier="host"), 512)
        self.assertEqual(self.value("misses_total", "1", reason="new"), 2)
        self.assertEqual(self.value("look_up_seconds_count", "1"), 2)
        self.assertEqual(self.value("store_attached", "1", part="scheduler"), 1)

    def test_the_store_goes_and_comes(self) -> None:
        told = figures.Figures("worker-0")
        for there in (True, False, True):
            told.attached(there)
            taken = told.take()
            assert taken is not None
            self.metrics.observe(taken.to_dict())
            self.assertEqual(self.value("store_attached", "0", part="worker-0"), int(there))

    def test_every_metric_has_a_name_with_its_unit_and_a_text(self) -> None:
        units = ("tokens", "blocks", "bytes", "seconds", "bytes_under_way")
        counts = ("queries", "misses", "failed_loads", "saves_given_up", "store_attached")
        for metric in figures.METRICS.values():
            self.assertTrue(metric.name.endswith(units) or metric.name in counts, metric.name)
            self.assertTrue(metric.text.endswith("."), metric.name)


if __name__ == "__main__":
    unittest.main()
