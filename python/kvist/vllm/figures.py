"""What the connector did, as figures: vLLM's log line and vLLM's own /metrics.

Both roles of the connector tell a `Figures` what happened; once a step vLLM asks for what came
since the last time (`Figures.take`), sends it from the workers over the scheduler to the front end,
and there it becomes a line of the log (`KvistStatistics.reduce`) and Prometheus metrics
(`KvistPrometheus`). `METRICS` below is the one table of all of them; docs/vllm.md prints it.

Owns: counts since the last take. Borrows: nothing.
Threads: `Figures` may be told from any thread; the other classes belong to vLLM's threads.
Errors: none; what is told is trusted, the connector alone tells it.
Limits: at most SAMPLES_MAX observations of a histogram between two takes; more are left out.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

SAMPLES_MAX = 65_536
"""Observations that are kept of one histogram between two takes."""

_SECONDS = (
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0,
)  # fmt: skip


class Kind(enum.Enum):
    """How a metric's values go together."""

    COUNTER = "counters"  # they are added
    GAUGE = "gauges"  # the latest is the value
    HISTOGRAM = "samples"  # each is one observation


@dataclass(frozen=True)
class Metric:
    """One metric: its name behind `vllm:kvist_`, what it says, and its own label, if any.

    vLLM's prefix comes first because vLLM takes what bears it out of the registry when an engine
    is made anew in the same process; without it the second engine could not register.
    """

    name: str
    kind: Kind
    text: str
    label: str = ""

    @property
    def prometheus_name(self) -> str:
        """As it is registered; Prometheus adds _total to counters."""
        return f"vllm:kvist_{self.name}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("queries", Kind.COUNTER, "Requests that the host's store was asked about."),
        Metric(
            "query_tokens",
            Kind.COUNTER,
            "Prompt tokens beyond vLLM's own prefix cache that the store was asked for.",
        ),
        Metric(
            "hit_tokens",
            Kind.COUNTER,
            "Of those, tokens that the store had, by the tier that they came from.",
            "tier",
        ),
        Metric(
            "misses",
            Kind.COUNTER,
            "Queries that found less than they asked for, by Kvist's miss reason.",
            "reason",
        ),
        Metric("look_up_seconds", Kind.HISTOGRAM, "From the question to the store's answer."),
        Metric("load_blocks", Kind.COUNTER, "Blocks copied into vLLM's pages, of all ranks."),
        Metric("load_bytes", Kind.COUNTER, "Bytes copied into vLLM's pages, of all ranks."),
        Metric("load_seconds", Kind.HISTOGRAM, "One request's load at one rank, to the last byte."),
        Metric("failed_loads", Kind.COUNTER, "Loads that ended early, by miss reason.", "reason"),
        Metric(
            "failed_load_blocks",
            Kind.COUNTER,
            "Blocks of those that vLLM computed after all.",
        ),
        Metric("save_blocks", Kind.COUNTER, "Blocks stored, of all ranks."),
        Metric("save_bytes", Kind.COUNTER, "Bytes of the blocks stored, of all ranks."),
        Metric("save_seconds", Kind.HISTOGRAM, "One save at one rank, until it was sealed."),
        Metric(
            "saves_given_up",
            Kind.COUNTER,
            "Saves that ended with blocks that were not stored, by status.",
            "reason",
        ),
        Metric(
            "save_given_up_blocks",
            Kind.COUNTER,
            "Blocks of those: nothing is lost but a later hit.",
        ),
        Metric(
            "load_bytes_under_way",
            Kind.GAUGE,
            "Bytes of loads that were asked for and have not ended.",
            "part",
        ),
        Metric(
            "save_bytes_under_way",
            Kind.GAUGE,
            "Bytes of saves that were asked for and have not ended.",
            "part",
        ),
        Metric(
            "store_attached",
            Kind.GAUGE,
            "1: this part of the connector is attached to its kvist-store; 0: it is away.",
            "part",
        ),
    )
}


def _word(value: enum.Enum | str) -> str:
    """A label's value: the enumerator's name in lower case, or the text itself."""
    return value.name.lower() if isinstance(value, enum.Enum) else value


def _key(name: str, label: str = "") -> str:
    """One series within a payload: its metric, and the value of its label behind a colon."""
    return f"{name}:{label}" if label else name


def _metric_of(key: str) -> tuple[Metric, str]:
    """The metric of a payload's key, and the value of its label ("": it has none)."""
    name, _, label = key.partition(":")
    return METRICS[name], label


class KvistStatistics(KVConnectorStats):
    """What happened in one interval, at one part of the connector or at several.

    `data` is plain and survives every serialisation that vLLM puts it through:
    {"counters": {key: number}, "gauges": {key: number}, "samples": {key: [number]}}.
    """

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        """data: another's `to_dict()`, copied: vLLM hands one payload to several loggers."""
        super().__init__({})
        self.reset()
        if data:
            self._add(data)

    def reset(self) -> None:
        """Forgets everything."""
        self.data: dict[str, dict[str, Any]] = {kind.value: {} for kind in Kind}

    def _add(self, data: Mapping[str, Any]) -> None:
        counters, samples = self.data["counters"], self.data["samples"]
        for key, value in data["counters"].items():
            counters[key] = counters.get(key, 0) + value
        self.data["gauges"].update(data["gauges"])
        for key, values in data["samples"].items():
            kept = samples.setdefault(key, [])
            kept.extend(values[: SAMPLES_MAX - len(kept)])

    def aggregate(self, other: KVConnectorStats) -> KvistStatistics:
        """Takes another's figures in: another worker's, or those of a later interval."""
        self._add(other.data)
        return self

    def is_empty(self) -> bool:
        """Nothing was told."""
        return not any(self.data.values())

    def total(self, name: str) -> float:
        """Sum of a counter over all values of its label."""
        return sum(
            value for key, value in self.data["counters"].items() if key.partition(":")[0] == name
        )

    def reduce(self) -> dict[str, int | float]:
        """The interval in a few words for vLLM's log: the hit rate first; what did not happen is
        left out."""
        line: dict[str, int | float] = {}
        asked, found = self.total("query_tokens"), self.total("hit_tokens")
        if asked:
            line["Kvist hit rate (%)"] = round(100 * found / asked, 1)
            line["asked tokens"] = int(asked)
        for key, value in sorted(self.data["counters"].items()):
            metric, label = _metric_of(key)
            if metric.label and value:
                line[f"{metric.name.replace('_', ' ')} {label}"] = value
        for verb in ("load", "save"):
            seconds = self.data["samples"].get(f"{verb}_seconds", [])
            if seconds:
                line[f"{verb} (MB)"] = round(self.total(f"{verb}_bytes") / 1e6, 1)
                line[f"{verb} mean (ms)"] = round(1e3 * sum(seconds) / len(seconds), 2)
                line[f"{verb} longest (ms)"] = round(1e3 * max(seconds), 2)
        look_ups = self.data["samples"].get("look_up_seconds", [])
        if look_ups:
            line["look-up mean (ms)"] = round(1e3 * sum(look_ups) / len(look_ups), 3)
        away = sum(
            not value
            for key, value in self.data["gauges"].items()
            if key.partition(":")[0] == "store_attached"
        )
        if away:
            line["parts without a store"] = away
        return line


class Figures:
    """What one part of the connector (the scheduler, or a worker) tells of what it does."""

    def __init__(self, part: str) -> None:
        """part: "scheduler", or "worker-" and the rank: told apart where a value is not a sum."""
        self._part = part
        self._lock = threading.Lock()  # guards the two below; nothing is called under it
        self._counted = KvistStatistics()
        self._gauges: dict[str, float] = {}  # as last told: only changes are passed on

    def matched(
        self,
        query_tokens: int,
        tier_tokens: Mapping[Any, int],
        miss: enum.Enum | str,
        seconds: float,
    ) -> None:
        """A look-up was answered for good (not "ask again").

        query_tokens: those beyond what vLLM has; tier_tokens: of them, those that are taken from
        the store, by tier; miss: why it is not more ("none", or "short" where what is left is less
        than a block, are no misses); seconds: from the first question to the answer.
        """
        with self._lock:
            self._count("queries", 1)
            self._count("query_tokens", query_tokens)
            for tier, tokens in tier_tokens.items():
                if tokens:
                    self._count(_key("hit_tokens", _word(tier)), tokens)
            reason = _word(miss)
            if reason not in ("none", "short"):
                self._count(_key("misses", reason), 1)
            self._observe("look_up_seconds", seconds)

    def loaded(self, block_count: int, size_bytes: int, seconds: float) -> None:
        """A request's load ended, with so much in the pages; seconds: since it was asked for."""
        with self._lock:
            self._count("load_blocks", block_count)
            self._count("load_bytes", size_bytes)
            self._observe("load_seconds", seconds)

    def load_failed(self, block_count: int, reason: enum.Enum | str) -> None:
        """And so many blocks of it did not come, for that reason."""
        with self._lock:
            self._count(_key("failed_loads", _word(reason)), 1)
            self._count("failed_load_blocks", block_count)

    def saved(self, block_count: int, size_bytes: int, seconds: float) -> None:
        """Blocks were stored; seconds: since the save was asked for."""
        with self._lock:
            self._count("save_blocks", block_count)
            self._count("save_bytes", size_bytes)
            self._observe("save_seconds", seconds)

    def save_given_up(self, block_count: int, reason: enum.Enum | str) -> None:
        """Blocks will not be stored: a status of the store's, or why the connector gave up."""
        with self._lock:
            self._count(_key("saves_given_up", _word(reason)), 1)
            self._count("save_given_up_blocks", block_count)

    def under_way(self, load_bytes: int, save_bytes: int) -> None:
        """Bytes that were asked for and are not through yet."""
        with self._lock:
            self._set(_key("load_bytes_under_way", self._part), load_bytes)
            self._set(_key("save_bytes_under_way", self._part), save_bytes)

    def attached(self, there: bool) -> None:
        """Whether this part's kvist-store is there; telling it every step costs nothing."""
        with self._lock:
            self._set(_key("store_attached", self._part), int(there))

    def take(self) -> KvistStatistics | None:
        """What was told since the last take; None: nothing, so that nothing travels."""
        with self._lock:
            if self._counted.is_empty():
                return None
            taken, self._counted = self._counted, KvistStatistics()
            return taken

    def _count(self, key: str, value: float) -> None:
        counters = self._counted.data["counters"]
        counters[key] = counters.get(key, 0) + value

    def _observe(self, key: str, value: float) -> None:
        kept = self._counted.data["samples"].setdefault(key, [])
        if len(kept) < SAMPLES_MAX:
            kept.append(value)

    def _set(self, key: str, value: float) -> None:
        if self._gauges.get(key) != value:
            self._gauges[key] = value
            self._counted.data["gauges"][key] = value


class KvistPrometheus(KVConnectorPromMetrics):
    """The figures in vLLM's registry, one series for each engine and value of a metric's label."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        """As vLLM calls `build_prom_metrics`: classes to use in place of prometheus_client's, its
        own labels, and their values for each engine."""
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._families = {metric.name: self._family(metric) for metric in METRICS.values()}
        self._series: dict[tuple[int, str], Any] = {}
        # Without a label there is one series, and it is there from the start: a rate over a
        # counter that appears with its first value misses that value.
        for engine in per_engine_labelvalues:
            for metric in METRICS.values():
                if not metric.label:
                    self._series_of(metric.name, engine)

    def _family(self, metric: Metric) -> Any:
        labels = [*self._labelnames, *([metric.label] if metric.label else [])]
        name, text = metric.prometheus_name, metric.text
        if metric.kind is Kind.COUNTER:
            return self._counter_cls(name=name, documentation=text, labelnames=labels)
        if metric.kind is Kind.GAUGE:
            return self._gauge_cls(
                name=name, documentation=text, labelnames=labels, multiprocess_mode="mostrecent"
            )
        return self._histogram_cls(
            name=name, documentation=text, labelnames=labels, buckets=list(_SECONDS)
        )

    def _series_of(self, key: str, engine: int) -> Any:
        series = self._series.get((engine, key))
        if series is None:
            metric, label = _metric_of(key)
            values = [*self.per_engine_labelvalues[engine], *([label] if metric.label else [])]
            series = self._families[metric.name].labels(*values)
            self._series[engine, key] = series
        return series

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """One step's figures of one engine: `KvistStatistics.to_dict()`."""
        for key, value in transfer_stats_data["counters"].items():
            self._series_of(key, engine_idx).inc(value)
        for key, value in transfer_stats_data["gauges"].items():
            self._series_of(key, engine_idx).set(value)
        for key, values in transfer_stats_data["samples"].items():
            series = self._series_of(key, engine_idx)
            for value in values:
                series.observe(value)
