"""Every way on which blocks come back: outputs are those of vLLM without Kvist, bytes are those
that were saved, and just what should come back does."""
from __future__ import annotations

from typing import Any, Sequence
from unittest import SkipTest

from bench import Bench, hit_tokens, prompt
from engines import BLOCK_TOKENS, Engine

# Shorter than a block, whole blocks, a token more; the last two are computed in several chunks.
LENGTHS = (7, 31, 32, 33, 64, 65, 96, 200, 333, 700, 1100)
MODELS = ("llama", "hybrid")


def prompts_of(bench: Bench, case: int) -> list[list[int]]:
    return [prompt(bench.seed + 1000 * case + length, length) for length in LENGTHS]


def play(bench: Bench, engine: Engine, prompts: Sequence[Sequence[int]], rights: Any, hits: int,
         what: str, **more: Any) -> None:
    """Right answers, and just so many tokens from the connector."""
    before = engine.sources()[2]
    answers = engine.ask(prompts, **more)
    bench.must_be_right(answers, rights, what)
    came = engine.sources()[2] - before
    assert came == hits, f"{what}: {came} tokens came from the store, not {hits}"


def test_after_a_reset_blocks_come_from_memory(bench: Bench) -> None:
    for model in MODELS:
        prompts = prompts_of(bench, 1)
        rights = bench.right(prompts, model)
        with bench.settled(model) as engine:
            play(bench, engine, prompts, rights, 0, f"{model}, cold")
            for number in range(2):
                engine.reset()
                play(bench, engine, prompts, rights, hit_tokens(prompts), f"{model}, {number}")


def test_after_a_restart_blocks_come_from_memory(bench: Bench) -> None:
    """Of the case before, too: another process finds them."""
    for model in MODELS:
        prompts = prompts_of(bench, 1)
        with bench.settled(model) as engine:
            play(bench, engine, prompts, bench.right(prompts, model), hit_tokens(prompts), model)


def test_after_a_restart_of_both_blocks_come_from_disk(bench: Bench) -> None:
    bench.store.settle()
    bench.store.stop()
    bench.store.start()
    for model in MODELS:
        prompts = prompts_of(bench, 1)
        with bench.settled(model) as engine:
            play(bench, engine, prompts, bench.right(prompts, model), hit_tokens(prompts), model)
    assert bench.store.disk_hits() > 0


def test_two_engines_share_what_each_of_them_stores(bench: Bench) -> None:
    mine, other = prompts_of(bench, 2), prompts_of(bench, 3)
    rights, others = bench.right(mine), bench.right(other)
    with bench.settled() as one, bench.settled() as two:
        play(bench, one, mine, rights, 0, "the first stores")
        play(bench, two, other, others, 0, "the second stores")
        one.settle()
        two.settle()
        play(bench, one, other, others, hit_tokens(other), "the first loads")
        play(bench, two, mine, rights, hit_tokens(mine), "the second loads")


def test_a_consumer_gets_what_a_producer_computed(bench: Bench) -> None:
    """Asked while the producer may still be saving: nothing but its answer is waited for."""
    for number, model in enumerate(MODELS):
        prompts = prompts_of(bench, 4 + number)
        rights = bench.right(prompts, model)
        with bench.settled(model, role="kv_producer") as producer, \
                bench.settled(model, role="kv_consumer") as consumer:
            for one, right in zip(prompts, rights):
                first = producer.ask([one], max_tokens=1)[0]
                told = {"extra_args": {"kv_transfer_params": first.transfer}}
                play(bench, consumer, [one], [right], hit_tokens([one]), model, sampling=told)


def test_the_next_turn_finds_the_answer_before_it(bench: Bench) -> None:
    first = [prompt(bench.seed + 6000 + number, 100 + 29 * number) for number in range(6)]
    for model in MODELS:
        with bench.settled(model) as engine:
            answers = engine.ask(first, max_tokens=70)
            # The last token that was generated has no KV.
            known = [[*one, *answer.tokens[0][:-1]] for one, answer in zip(first, answers)]
            turns = [prompt(bench.seed + 6500 + number, len(one) + 40, one)
                     for number, one in enumerate(known)]
            stored = sum(len(one) // BLOCK_TOKENS * BLOCK_TOKENS for one in known)
            engine.reset()
            play(bench, engine, turns, bench.right(turns, model), stored, model)


def test_a_common_beginning_is_found(bench: Bench) -> None:
    begin = prompt(bench.seed + 7000, 10 * BLOCK_TOKENS + 5)
    prompts = [prompt(bench.seed + 7001 + number, 420, begin) for number in range(5)]
    for model in MODELS:
        rights = bench.right(prompts, model)
        with bench.settled(model) as engine:
            play(bench, engine, prompts[:1], rights[:1], 0, f"{model}, the first")
            engine.reset()
            begun = engine.sources()
            answers = engine.ask(prompts[1:])
            bench.must_be_right(answers, rights[1:], model)
            # vLLM's own cache has it for those that come a step later.
            found = [now - before for now, before in zip(engine.sources(), begun)]
            assert found[1] + found[2] == 4 * 10 * BLOCK_TOKENS, found


def test_several_samples_of_a_prompt(bench: Bench) -> None:
    prompts = [prompt(bench.seed + 8000 + number, 150) for number in range(3)]
    sampling = {"n": 3, "temperature": 1.0, "seed": 5}
    # In one step: on a CPU vLLM cannot take up a seeded request's prompt in a later one.
    how = {"max_num_seqs": 16, "max_num_batched_tokens": 2048}
    rights = bench.right(prompts, max_tokens=40, more={"sampling": sampling}, **how)
    with bench.settled(**how) as engine:
        for number in range(2):
            answers = engine.ask(prompts, max_tokens=40, sampling=sampling)
            bench.must_be_right(answers, rights, f"round {number}")
            assert all(len(answer.tokens) == 3 for answer in answers)
            engine.reset()
        assert engine.sources()[2] > 0


def test_guessed_tokens_are_not_stored(bench: Bench) -> None:
    """With n-gram speculation pages hold tokens that were guessed and rejected; what is stored
    holds those that were accepted."""
    speculation = {"speculative_config": {
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3,
        "prompt_lookup_min": 1}}
    # Of few different tokens, so that guesses are made.
    prompts = [[token % 6 for token in prompt(bench.seed + 9000 + number, 120)]
               for number in range(4)]
    with bench.settled(**speculation) as engine:
        answers = engine.ask(prompts, max_tokens=150)
        bench.must_be_right(answers, bench.right(prompts, max_tokens=150), "guessing")
        drafts = engine.metrics().get("vllm:spec_decode_num_draft_tokens_total", 0)
        assert drafts > 0, "nothing was guessed"
        turns = [prompt(bench.seed + 9500 + number, len(one) + 200, [*one, *answer.tokens[0]])
                 for number, (one, answer) in enumerate(zip(prompts, answers))]
    with bench.settled() as engine:
        before = engine.sources()[2]
        answers = engine.ask(turns)
        bench.must_be_right(answers, bench.right(turns), "what was accepted")
        came = engine.sources()[2] - before
        assert came >= len(turns) * 200, came


def test_half_precision(bench: Bench) -> None:
    """As most run it. There a greedy answer hangs on roundings, and those on what is computed
    together: each prompt is asked alone, and each answer is that of an engine which computed, or
    found in its own cache, the same."""
    prompts = prompts_of(bench, 10)
    for model in MODELS:
        plain = bench.plain_engine(model, dtype="bfloat16")
        cold = [plain.ask([one])[0].tokens for one in prompts]
        warm = [plain.ask([one])[0].tokens for one in prompts]
        with bench.settled(model, dtype="bfloat16") as engine:
            for one, right in zip(prompts, cold):
                play(bench, engine, [one], [[right]], 0, f"{model}, cold")
            engine.reset()
            for one, right in zip(prompts, warm):
                play(bench, engine, [one], [[right]], hit_tokens([one]), f"{model}, again")


def test_scheduler_and_worker_in_processes_of_their_own(bench: Bench) -> None:
    """As vLLM is by itself."""
    prompts = prompts_of(bench, 11)
    rights = bench.right(prompts)
    with bench.settled(processes=True) as engine:
        play(bench, engine, prompts, rights, 0, "cold")
        engine.reset()
        play(bench, engine, prompts, rights, hit_tokens(prompts), "again")


def test_the_connector_that_users_have(bench: Bench) -> None:
    """The one before, not checked.py's."""
    prompts = prompts_of(bench, 11)
    with bench.settled(connector="kvist") as engine:
        play(bench, engine, prompts, bench.right(prompts), hit_tokens(prompts), "plain")


def test_a_model_that_people_use(bench: Bench) -> None:
    """SmolLM2, in blocks as vLLM chooses them by itself."""
    if bench.real_model is None:
        raise SkipTest("no --model")
    block = 128
    how = {"block_size": block, "num_gpu_blocks_override": 24}
    prompts = [prompt(bench.seed + 12000 + number, 100 + 150 * number) for number in range(4)]
    rights = bench.right(prompts, bench.real_model, **how)
    found = sum((len(one) - 1) // block * block for one in prompts)
    with bench.settled(bench.real_model, **how) as engine:
        play(bench, engine, prompts, rights, 0, "cold")
        engine.reset()
        play(bench, engine, prompts, rights, found, "again")


def test_every_byte_came_back_as_it_was_saved(bench: Bench) -> None:
    """Of all the cases before."""
    tally = bench.bytes_must_be_right()
    print(f"         pages of a layer: {tally}; answers that vLLM gives in two ways: "
          f"{bench.uncertain}")


def swapped(bench: Bench, model: str, what: str) -> None:
    """Blocks that come back to the wrong place must be seen, by bytes and by answers. (But
    an answer does not depend on the order of a request's own blocks: a key has its position in
    it. There the bytes alone tell.)"""
    prompts = prompts_of(bench, 1)
    before = bench.tally()
    # Not settled: what is computed from these pages must not be believed, or saved, by anyone.
    with bench.engine(model, swap=what, role="kv_consumer") as engine:
        answers = engine.ask(prompts)
    after = bench.tally()
    assert after["different"] > before["different"], f"{what}: the check has not seen it: {after}"
    if what == "blocks":
        return
    rights = bench.right(prompts, model)
    wrong = [number for number, answer in enumerate(answers) if answer.tokens not in rights[number]]
    assert wrong, f"{what}: all answers are right: they do not depend on KV"


def test_the_check_sees_what_is_mixed_up(bench: Bench) -> None:
    with bench.settled("llama") as engine:
        engine.ask(prompts_of(bench, 1))
    with bench.settled("hybrid") as engine:
        engine.ask(prompts_of(bench, 1))
    swapped(bench, "llama", "blocks")
    swapped(bench, "llama", "layers")
    swapped(bench, "hybrid", "groups")
