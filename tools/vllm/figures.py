"""Figures of a trial: medians with their spread, and what vLLM's metrics say happened meanwhile."""
import statistics
from dataclasses import asdict, dataclass, field

SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


@dataclass
class Spread:
    """Of some repetitions: the median, the least and the most of them."""
    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values):
        """None: there are no values."""
        return cls(statistics.median(values), min(values), max(values),
                   len(values)) if values else None


@dataclass
class Counts:
    """Differences of a server's counters.

    sources: prompt tokens by vLLM's own account of where their KV came from; tiers: of those that
    came from Kvist. Bytes and seconds are Kvist's: seconds from when a load (a save) was asked for
    until its last byte was there (it was sealed), added up.
    """
    sources: dict = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    tiers: dict = field(default_factory=dict)
    load_bytes: float = 0
    load_seconds: float = 0
    save_bytes: float = 0
    save_seconds: float = 0
    failed_load_blocks: float = 0
    given_up_blocks: float = 0

    SUMS = {
        "load_bytes": "vllm:kvist_load_bytes_total",
        "load_seconds": "vllm:kvist_load_seconds_sum",
        "save_bytes": "vllm:kvist_save_bytes_total",
        "save_seconds": "vllm:kvist_save_seconds_sum",
        "failed_load_blocks": "vllm:kvist_failed_load_blocks_total",
        "given_up_blocks": "vllm:kvist_save_given_up_blocks_total",
    }

    @classmethod
    def between(cls, before, after):
        """Of two answers of Client.metrics()."""
        grown = {key: after[key] - before.get(key, 0) for key in after}
        counts = cls()
        for (name, labels), value in grown.items():
            if name == "vllm:prompt_tokens_by_source_total":
                counts.sources[labels[0]] = int(value)
            elif name == "vllm:kvist_hit_tokens_total" and value:
                counts.tiers[labels[0]] = int(value)
        for member, name in cls.SUMS.items():
            setattr(counts, member, grown.get((name, ()), 0))
        return counts

    def add(self, other):
        for ours, theirs in ((self.sources, other.sources), (self.tiers, other.tiers)):
            for key, value in theirs.items():
                ours[key] = ours.get(key, 0) + value
        for member in self.SUMS:
            setattr(self, member, getattr(self, member) + getattr(other, member))

    def load_rate(self):
        """GB/s; None: nothing was loaded."""
        return self.load_bytes / self.load_seconds / 1e9 if self.load_seconds else None

    def save_rate(self):
        return self.save_bytes / self.save_seconds / 1e9 if self.save_seconds else None

    def plain(self):
        return {**asdict(self), "load_GB_s": self.load_rate(), "save_GB_s": self.save_rate()}


@dataclass
class Equality:
    """Answers compared with those of vLLM without Kvist.

    equal: of all that were asked; different: names of prompts whose answer differs although vLLM
    answers them alike whenever it is asked without Kvist; unsteady: those that differ where vLLM
    differs from itself, too.
    """
    equal: int = 0
    different: list = field(default_factory=list)
    unsteady: list = field(default_factory=list)

    @property
    def asked(self):
        return self.equal + len(self.different) + len(self.unsteady)
