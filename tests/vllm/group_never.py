"""What must never be taken for the same: no block comes across, and answers are right. What must
be: a process that hashes otherwise."""
from __future__ import annotations

import os
from typing import Any

from bench import Bench, hit_tokens, prompt
from engines import Nest

LENGTHS = (70, 130, 400)


def prompts_of(bench: Bench) -> list[list[int]]:
    return [prompt(bench.seed + length, length) for length in LENGTHS]


def stored(bench: Bench) -> None:
    """Llama's blocks of the prompts are in the store from here on."""
    if bench.store.status() is None:
        bench.store.start()
        with bench.settled() as engine:
            engine.ask(prompts_of(bench))


def comes(bench: Bench, engine: Any, rights: Any, hits: int, what: str, **more: Any) -> None:
    prompts = prompts_of(bench)
    before = engine.sources()[2]
    bench.must_be_right(engine.ask(prompts, **more), rights, what)
    came = engine.sources()[2] - before
    assert came == hits, f"{what}: {came} tokens came from the store, not {hits}"
    engine.reset()


def never(bench: Bench, model: str = "llama", **arguments: Any) -> None:
    """An engine of this kind finds nothing of llama's, then all of its own."""
    stored(bench)
    prompts, what = prompts_of(bench), f"{model} {arguments}"
    rights = bench.right(prompts, model, **arguments)
    with bench.settled(model, **arguments) as engine:
        comes(bench, engine, rights, 0, what)
        block = arguments.get("block_size", 32)
        own = sum((len(one) - 1) // block * block for one in prompts)
        comes(bench, engine, rights, own, what + ", its own")


def test_what_is_the_same_comes_across(bench: Bench) -> None:
    """Or all that follows would show nothing."""
    stored(bench)
    prompts = prompts_of(bench)
    with bench.settled() as engine:
        comes(bench, engine, bench.right(prompts), hit_tokens(prompts), "the same")


def test_another_model_of_the_same_shape(bench: Bench) -> None:
    never(bench, "other")


def test_a_model_whose_weights_were_replaced(bench: Bench) -> None:
    """In the same folder, under the same names."""
    stored(bench)
    folder = os.path.join(bench.folder, "replaced")
    os.mkdir(folder)
    prompts = prompts_of(bench)
    for source in ("llama", "other"):
        for name in os.listdir(os.path.join(bench.models, source)):
            with open(os.path.join(bench.models, source, name), "rb") as file:
                content = file.read()
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        with bench.settled(folder) as engine:
            comes(bench, engine, bench.right(prompts, source),
                  hit_tokens(prompts) if source == "llama" else 0, f"weights of {source}")


def test_another_dtype(bench: Bench) -> None:
    never(bench, dtype="bfloat16")


def test_another_block_size(bench: Bench) -> None:
    never(bench, block_size=64)


def test_another_kv_dtype(bench: Bench) -> None:
    never(bench, dtype="bfloat16", kv_cache_dtype="fp8_e5m2")


def test_another_salt(bench: Bench) -> None:
    stored(bench)
    prompts = prompts_of(bench)
    rights, hits = bench.right(prompts), hit_tokens(prompts)
    with bench.settled() as engine:
        comes(bench, engine, rights, 0, "salt a", salt="a")
        comes(bench, engine, rights, 0, "salt b", salt="b")
        comes(bench, engine, rights, hits, "salt a again", salt="a")
        comes(bench, engine, rights, hits, "none", salt="")


def test_another_adapter(bench: Bench) -> None:
    """Another name, other content, both; and an adapter named as a salt was."""
    stored(bench)
    prompts, hits = prompts_of(bench), hit_tokens(prompts_of(bench))

    def adapter(name: str, folder: str) -> dict[str, Any]:
        return {"lora_name": name, "lora_int_id": 1 + len(name) + ord(folder[0]),
                "lora_path": os.path.join(bench.models, "adapters", folder)}

    def rights(folder: str) -> Any:
        return bench.right(prompts, more={"adapter": adapter(folder, folder)}, enable_lora=True)

    plain = bench.right(prompts)
    assert rights("a") != plain and rights("a") != rights("b"), "adapters change nothing"
    with bench.settled(enable_lora=True) as engine:
        comes(bench, engine, rights("a"), 0, "a", adapter=adapter("a", "a"))
        comes(bench, engine, rights("b"), 0, "b", adapter=adapter("b", "b"))
        comes(bench, engine, rights("a"), 0, "a by another name", adapter=adapter("again", "again"))
        comes(bench, engine, rights("a"), hits, "a again", adapter=adapter("a", "a"))
        comes(bench, engine, plain, 0, "a salt named as the adapter", salt="a")
    with bench.settled(enable_lora=True) as engine:
        comes(bench, engine, rights("b"), 0, "b in place of a", adapter=adapter("a", "b"))
        comes(bench, engine, rights("b"), hits, "b by its name", adapter=adapter("b", "b"))


def test_a_process_that_hashes_otherwise_finds_all(bench: Bench) -> None:
    """Keys come from tokens, not from Python's hash."""
    stored(bench)
    prompts = prompts_of(bench)
    for seed in ("1",):
        folder = os.path.join(bench.folder, f"nest-{seed}")
        os.mkdir(folder)
        nest, bench.nest = bench.nest, Nest.like(bench.nest, folder, hash_seed=seed)
        try:
            with bench.settled() as engine:
                comes(bench, engine, bench.right(prompts), hit_tokens(prompts), f"hash seed {seed}")
        finally:
            bench.nest, nest = nest, bench.nest
            nest.close()


def test_every_byte_came_back_as_it_was_saved(bench: Bench) -> None:
    bench.bytes_must_be_right()
