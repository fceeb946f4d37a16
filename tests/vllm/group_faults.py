"""Loads that fail, kvist-store that is killed, or is not there: every answer is right, and the
engine goes on."""
from __future__ import annotations

import glob
import os
import random
import signal
import threading
import time
from typing import Any

from bench import Bench, hit_tokens, prompt, wait_until
from engines import Engine, tail

BACK_LIMIT_S = 5.0  # from the store's return to the first hit
FAILED = "vllm:kvist_failed_loads_total"
GIVEN_UP = "vllm:kvist_saves_given_up_total"


def pool_of(bench: Bench, case: int, count: int) -> list[list[int]]:
    chance = random.Random(bench.seed + case)
    return [prompt(chance.randrange(1 << 60), chance.randrange(40, 600)) for _ in range(count)]


def failing_loads(bench: Bench, model: str, count: int) -> None:
    """One block of 16 that are loaded fails, rubbish in its page and in those after it."""
    prompts = pool_of(bench, 1, 40)
    rights = bench.right(prompts, model)
    with bench.settled(model) as engine:
        engine.ask(prompts)
    before, asked = bench.tally(), 0
    with bench.settled(model, fail=f"16:{bench.seed}") as engine:
        while asked < count:
            bench.must_be_right(engine.ask(prompts), rights, f"{model} after {asked}")
            asked += len(prompts)
            engine.reset()
        counted = {name: value for name, value in engine.metrics().items()
                   if name.startswith(FAILED) and value}
        loaded = engine.sources()[2]
    failed = bench.tally()["failed"] - before.get("failed", 0)
    print(f"         {model}: {asked} requests, {loaded} tokens loaded, {failed} loads failed; "
          f"{counted}")
    assert failed > asked // 20, f"only {failed} loads failed"
    assert loaded > 0
    assert counted, "no figure tells of failed loads"
    # What was saved meanwhile is right: all of it comes now, and nothing fails.
    with bench.settled(model) as engine:
        before = engine.sources()[2]
        bench.must_be_right(engine.ask(prompts), rights, f"{model} at last")
        assert engine.sources()[2] - before == hit_tokens(prompts)
    bench.bytes_must_be_right()


def test_loads_fail_with_one_group(bench: Bench) -> None:
    failing_loads(bench, "llama", 200)


def test_loads_fail_with_several_groups(bench: Bench) -> None:
    failing_loads(bench, "hybrid", 200 if bench.long else 80)


def test_damage_on_disk_is_a_miss(bench: Bench) -> None:
    """Bytes of the store's files change under it: what lies there is not what was stored. (Its
    memory nobody else can change: it is sealed.)"""
    prompts = pool_of(bench, 2, 12)
    rights = bench.right(prompts)
    with bench.settled() as engine:
        engine.ask(prompts)
    bench.store.stop()
    changed = damage(os.path.join(bench.store.folder, "disk"))
    bench.store.start()
    with bench.settled() as engine:
        bench.must_be_right(engine.ask(prompts), rights, "after the damage")
        came = engine.sources()[2]
        engine.reset()
        bench.must_be_right(engine.ask(prompts), rights, "again")
        again = engine.sources()[2] - came
    print(f"         {changed} places changed; {came} tokens came after that, {again} again")
    assert came < hit_tokens(prompts) == again
    bench.bytes_must_be_right()


def damage(folder: str) -> int:
    """A bit in every 100,000 bytes of the segment files that are in use."""
    changed = 0
    for path in glob.glob(os.path.join(folder, "**", "*"), recursive=True):
        if not os.path.isfile(path) or os.path.getsize(path) < 1 << 20:
            continue
        with open(path, "r+b", buffering=0) as file:
            for offset in range(50_000, os.path.getsize(path), 100_000):
                there = os.pread(file.fileno(), 1, offset)
                if there != b"\0":
                    os.pwrite(file.fileno(), bytes([there[0] ^ 0x40]), offset)
                    changed += 1
    assert changed, "nothing that was stored was found"
    return changed


class Load:
    """Requests without end, eight at a time, from a thread of its own; each answer is compared."""

    def __init__(self, engine: Engine, prompts: Any, rights: Any, seed: int) -> None:
        self.engine, self.prompts, self.rights = engine, prompts, rights
        self.chance = random.Random(seed)
        self.asked, self.wrong = 0, []  # type: ignore[var-annotated]
        self.longest_s = 0.0  # from asking eight to having all their answers
        self.error: Exception | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                numbers = self.chance.sample(range(len(self.prompts)), 8)
                begun = time.monotonic()
                answers = self.engine.ask([self.prompts[number] for number in numbers])
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
                for number, answer in zip(numbers, answers):
                    self.asked += 1
                    if answer.tokens not in self.rights[number]:
                        self.wrong.append((number, answer.tokens))
        except Exception as error:  # told to whoever ends it
            self.error = error

    def end(self) -> None:
        self.ending.set()
        self.thread.join()
        if self.error is not None:
            raise self.error
        assert not self.wrong, f"{len(self.wrong)} of {self.asked} are wrong: {self.wrong[0]}"


def killed(bench: Bench, times: int, processes: bool) -> None:
    chance = random.Random(bench.seed)
    prompts = pool_of(bench, 3, 60)
    rights = bench.right(prompts)
    # Few blocks of vLLM's own, so that most of what is asked for again comes from the store.
    with bench.engine(num_gpu_blocks_override=180, processes=processes) as engine:
        load = Load(engine, prompts, rights, bench.seed)
        slowest, hit = 0.0, engine.sources()[2]
        try:
            wait_until(lambda: engine.sources()[2] > hit, 60, "a hit before the first kill")
            for number in range(times):
                time.sleep(chance.uniform(0.0, 0.5))
                assert load.error is None, load.error
                if number % 2:  # loads from disk, and saves, are under way for sure
                    os.kill(bench.store.process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
                    time.sleep(chance.uniform(0.02, 0.3))
                bench.store.kill()
                time.sleep(chance.choice((0.0, chance.uniform(0.0, 1.0))))
                bench.store.start()
                hit = engine.sources()[2]
                back = wait_until(lambda: engine.sources()[2] > hit or load.error is not None,
                                  60, "a hit after the store's return")
                slowest = max(slowest, back)
        finally:
            load.end()
        figures = {name: value for name, value in engine.metrics().items()
                   if name.startswith((FAILED, GIVEN_UP)) and value}
        print(f"         {times} kills, {load.asked} requests, all right; the first hit at most "
              f"{slowest:.2f} s after the store's return (eight requests: at most "
              f"{load.longest_s:.2f} s); {figures}")
        # What was asked before the return is to be answered first, on whatever machine this is.
        assert slowest < BACK_LIMIT_S + 2 * load.longest_s, f"{slowest:.2f} s until the first hit"
        engine.settle()
    bench.store.settle()
    bench.bytes_must_be_right()


def test_the_store_is_killed_under_load(bench: Bench) -> None:
    bench.store.kill()
    bench.store.host_bytes = 4 << 20  # most of it is on disk alone
    killed(bench, 50 if bench.long else 6, processes=False)


def test_the_store_is_killed_under_an_engine_of_several_processes(bench: Bench) -> None:
    killed(bench, 50 if bench.long else 3, processes=True)


def test_it_starts_without_a_store(bench: Bench) -> None:
    """And says so; when there is one, hits begin."""
    bench.store.kill()
    bench.starts_store = False
    prompts = pool_of(bench, 4, 6)
    rights = bench.right(prompts)
    with bench.engine() as engine:
        begun = time.monotonic()
        bench.must_be_right(engine.ask(prompts), rights, "without a store")
        asking_s = time.monotonic() - begun
        print(f"         without a store: {asking_s:.2f} s for 6 requests")
        assert engine.sources()[2] == 0
        with open(engine.log, encoding="utf-8") as file:
            said = [line for line in file if "kvist-store is away" in line]
        assert said and bench.store.clients in said[0], tail(engine.log)
        assert len(said) <= 2, f"it was said {len(said)} times"
        bench.store.start()

        def hits() -> bool:
            engine.reset()
            before = engine.sources()[2]
            bench.must_be_right(engine.ask(prompts), rights, "with a store")
            return engine.sources()[2] > before
        took = wait_until(hits, BACK_LIMIT_S + 4 * asking_s, "a hit after the store came")
        print(f"         the first hit {took:.2f} s after the store came")
        engine.settle()
    bench.store.settle()
