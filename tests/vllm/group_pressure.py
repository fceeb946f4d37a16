"""Aborts and preemptions: no block, lease or request is left on either side, and what is answered
is right."""
from __future__ import annotations

import random
import time
from typing import Any

from bench import Bench, prompt
from engines import Request

BLOCKS = 30  # of vLLM's: eight requests do not fit, so that some are preempted
TOKENS_MAX = 64  # of an answer


def pressed(bench: Bench, model: str, count: int) -> None:
    chance = random.Random(bench.seed)
    begin = prompt(bench.seed + 1, 128)
    prompts = [prompt(bench.seed + 100 + number, chance.randrange(20, 300),
                      begin[:chance.choice((0, 5, 19))]) for number in range(12)]
    prompts += [prompt(bench.seed + 200 + number, chance.randrange(140, 300), begin)
                for number in range(4)]
    rights = bench.right(prompts, model, max_tokens=TOKENS_MAX)
    blocks = BLOCKS if model == "llama" else BLOCKS * 4 // 3  # of two groups
    with bench.settled(model, num_gpu_blocks_override=blocks, max_model_len=512) as engine:
        under_way: list[tuple[int, int, Request]] = []
        answered = aborted = 0

        def take(number: int, tokens: int, request: Request) -> None:
            nonlocal answered, aborted
            answer = request.wait()
            if answer.aborted:
                aborted += 1
                return
            answered += 1
            assert answer.tokens[0] in [right[0][:tokens] for right in rights[number]], (
                f"prompt {number}, {tokens} tokens: {answer.tokens[0]}")

        for _ in range(count):
            number, tokens = chance.randrange(len(prompts)), chance.randrange(1, TOKENS_MAX)
            under_way.append((number, tokens, engine.add(prompts[number], tokens)))
            if chance.randrange(4) == 0:  # one that runs, waits, loads, or has just come
                chance.choice(under_way)[2].abort()
            while len(under_way) > 12:
                take(*under_way.pop(0))
            if chance.randrange(8) == 0:
                time.sleep(chance.uniform(0, 0.05))
        for one in under_way:
            take(*one)
        engine.settle()
        metrics: dict[str, Any] = engine.metrics()
        preempted = metrics["vllm:num_preemptions_total"]
        loaded = engine.sources()[2]
        print(f"         {model}: {answered} answered, {aborted} aborted, {preempted:.0f} "
              f"preempted, {loaded} tokens loaded")
        assert aborted > count // 20 and preempted > 0 and loaded > 0
        clients = bench.store.attached()
        assert clients, "nobody is attached"
    bench.store.settle()
    bench.bytes_must_be_right()


def test_one_group(bench: Bench) -> None:
    pressed(bench, "llama", 500 if bench.long else 120)


def test_several_groups(bench: Bench) -> None:
    pressed(bench, "hybrid", 500 if bench.long else 80)


def test_an_engine_that_was_killed_leaves_nothing(bench: Bench) -> None:
    """In the middle of loads and saves; the store lets go of all that it held."""
    prompts = [prompt(bench.seed + 300 + number, 500) for number in range(8)]
    rights = bench.right(prompts)
    for number in range(3):
        engine = bench.engine()
        for one in prompts:
            engine.add(one, 40)
        time.sleep(0.05 * number)
        engine.kill()
    bench.store.settle()
    with bench.settled() as engine:
        bench.must_be_right(engine.ask(prompts), rights, "after the kills")
