"""What vLLM's own doors tell of Kvist: metrics after misses and hits, KV events as a router hears
them."""
from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from typing import Any

from bench import Bench, hit_tokens, prompt, wait_until
from engines import BLOCK_TOKENS, Engine

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = (70, 200, 333)


def prompts_of(bench: Bench, case: int) -> list[list[int]]:
    return [prompt(bench.seed + 1000 * case + length, length) for length in LENGTHS]


def figure(engine: Engine, name: str) -> float:
    """0: no such series yet."""
    return engine.metrics().get(f"vllm:kvist_{name}", 0)


def misses(engine: Engine) -> float:
    """For whatever reason: new, or diverged from what another case has stored."""
    return sum(value for name, value in engine.metrics().items()
               if name.startswith("vllm:kvist_misses_total"))


def metrics_tell(bench: Bench, case: int, **arguments: Any) -> None:
    prompts = prompts_of(bench, case)
    hits = hit_tokens(prompts)
    blocks = sum(len(one) // BLOCK_TOKENS for one in prompts)
    with bench.settled(connector="kvist", **arguments) as engine:
        engine.ask(prompts, max_tokens=1)
        # The figures of a step come with the next one's outputs, at the latest with an answer.
        engine.settle()
        engine.ask([prompt(1, 5)], max_tokens=2)
        assert figure(engine, "queries_total") == len(prompts)
        assert figure(engine, "query_tokens_total") == hits
        assert misses(engine) == len(prompts)
        assert figure(engine, "hit_tokens_total{tier=host}") == 0
        assert figure(engine, "save_blocks_total") == blocks
        assert figure(engine, "look_up_seconds_count") == len(prompts)
        assert figure(engine, "store_attached{part=scheduler}") == 1
        assert figure(engine, "store_attached{part=worker-0}") == 1
        assert figure(engine, "save_bytes_under_way{part=worker-0}") == 0
        engine.reset()
        engine.ask(prompts, max_tokens=2)
        assert figure(engine, "hit_tokens_total{tier=host}") == hits
        assert figure(engine, "load_blocks_total") == hits // BLOCK_TOKENS
        assert figure(engine, "load_seconds_count") == len(prompts)
        assert figure(engine, "load_bytes_total") > 0
        assert misses(engine) == len(prompts)
        assert engine.sources()[2] == hits


def test_metrics_after_misses_and_hits(bench: Bench) -> None:
    metrics_tell(bench, 1)


def test_metrics_from_processes_of_their_own(bench: Bench) -> None:
    metrics_tell(bench, 2, processes=True)


class Listener:
    """listener.py, as a process; events are taken as they come."""

    def __init__(self, bench: Bench, endpoint: str) -> None:
        self.process = subprocess.Popen(
            [bench.nest.python, os.path.join(HERE, "listener.py"), endpoint], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self.listen, daemon=True).start()
        assert self.lines.get(timeout=120)["type"] == "listening"

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def of_kvist(self) -> list[dict[str, Any]]:
        """Events of the store so far."""
        while not self.lines.empty():
            self.events.append(self.lines.get())
        return [event for event in self.events if event.get("ownership") == "kvist"]

    def of_vllm(self) -> list[dict[str, Any]]:
        self.of_kvist()
        return [event for event in self.events if event.get("ownership") is None]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def hashes_of(events: list[dict[str, Any]], one: list[int]) -> list[Any]:
    """Of the prompt's blocks in order, as BlockStored names them, which tells their tokens too."""
    named = {}
    for event in events:
        for number, name in enumerate(event["block_hashes"]):
            tokens = event.get("token_ids", [])[number * BLOCK_TOKENS:][:BLOCK_TOKENS]
            named[tuple(tokens)] = name
    starts = range(0, len(one) - BLOCK_TOKENS + 1, BLOCK_TOKENS)
    found = [named.get(tuple(one[start:start + BLOCK_TOKENS])) for start in starts]
    return [name for name in found if name is not None]


def test_events_of_what_is_stored_and_found(bench: Bench) -> None:
    """vLLM names the blocks in its own events; the store's are the same, with medium CPU."""
    one = prompt(bench.seed + 3000, 333)
    blocks = len(one) // BLOCK_TOKENS
    endpoint = f"ipc://{bench.folder}/events"
    listener = Listener(bench, endpoint)
    try:
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}
        with bench.settled(connector="kvist", kv_events=events) as engine:
            # A subscriber that has just connected may miss the first events: until it hears some.
            number = 0

            def heard() -> bool:
                nonlocal number
                number += 1
                engine.ask([prompt(bench.seed + 5000 + number, 64)], max_tokens=1)
                return bool(listener.of_vllm())

            wait_until(heard, 60, "vLLM's own events")
            engine.ask([one], max_tokens=1)
            engine.settle()
            engine.ask([prompt(2, 5)], max_tokens=2)  # a step that carries what was told last
            wait_until(lambda: len(hashes_of(listener.of_vllm(), one)) == blocks and
                       len(hashes_of(listener.of_kvist(), one)) == blocks, 30,
                       "both caches' events of all blocks")
            names = hashes_of(listener.of_vllm(), one)
            assert hashes_of(listener.of_kvist(), one) == names
            stored = [event for event in listener.of_kvist() if event["block_hashes"][0] in names]
            assert {event["medium"] for event in stored} == {"CPU"}
            parents = [event["parent_block_hash"] for event in stored]
            ends = [None, *(event["block_hashes"][-1] for event in stored)]
            assert parents == ends[:-1], (parents, ends)
    finally:
        listener.close()
