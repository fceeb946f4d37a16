"""What must never be taken for the same: no block comes across, and answers are right. What must
be: a process that hashes otherwise."""
from __future__ import annotations

import os
import shutil
import zlib
from typing import Any

from bench import Bench, hit_tokens, prompt
from engines import Nest

LENGTHS = (70, 130, 400)


def prompts_of(bench: Bench) -> list[list[int]]:
    return [prompt(bench.seed + length, length) for length in LENGTHS]


def stored(bench: Bench) -> None:
    """Llama's blocks of the prompts are in the store from here on."""
    if bench.store.process is None:
        with bench.settled() as engine:
            engine.ask(prompts_of(bench))


def comes(bench: Bench, engine: Any, rights: Any, hits: int, what: str, **more: Any) -> None:
    """rights: None: not looked at (half precision)."""
    prompts = prompts_of(bench)
    before = engine.sources()[2]
    answers = engine.ask(prompts, **more)
    if rights is not None:
        bench.must_be_right(answers, rights, what)
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
        comes(bench, engine, rights, hit_tokens(prompts), what + ", its own")


def test_what_is_the_same_comes_across(bench: Bench) -> None:
    """Or all that follows would show nothing."""
    stored(bench)
    prompts = prompts_of(bench)
    with bench.settled() as engine:
        comes(bench, engine, bench.right(prompts), hit_tokens(prompts), "the same")


def test_another_model_of_the_same_shape(bench: Bench) -> None:
    never(bench, "other")


def test_a_model_of_which_a_byte_was_changed(bench: Bench) -> None:
    """In the same file: first as it was, which is known wherever it lies, then with the change."""
    stored(bench)
    folder = os.path.join(bench.folder, "changed")
    shutil.copytree(os.path.join(bench.models, "llama"), folder)
    prompts = prompts_of(bench)
    with bench.settled(folder) as engine:
        comes(bench, engine, bench.right(prompts), hit_tokens(prompts), "a copy")
    with open(os.path.join(folder, "model.safetensors"), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 0x80]))  # the sign of one weight
    with bench.settled(folder) as engine:
        comes(bench, engine, bench.right(prompts, folder), 0, "a changed copy")


def test_another_dtype_of_the_same_size(bench: Bench) -> None:
    stored(bench)
    prompts = prompts_of(bench)
    for dtype in ("bfloat16", "float16"):
        with bench.settled(dtype=dtype) as engine:
            comes(bench, engine, None, 0, dtype)
            comes(bench, engine, None, hit_tokens(prompts), f"{dtype}, its own")


def test_another_kv_dtype_of_the_same_size(bench: Bench) -> None:
    stored(bench)
    prompts = prompts_of(bench)
    for dtype in ("fp8_e5m2", "fp8_e4m3"):
        with bench.settled(dtype="bfloat16", kv_cache_dtype=dtype,
                           kvist={"domain": "llama-wide"}) as engine:
            comes(bench, engine, None, 0, dtype)
            comes(bench, engine, None, hit_tokens(prompts), f"{dtype}, its own")


def test_blocks_of_another_shape_are_refused_a_domain(bench: Bench) -> None:
    """At the start, with what differs: they could never be found."""
    stored(bench)
    for arguments in ({"block_size": 64}, {"dtype": "bfloat16"}, {"model": "hybrid"}):
        said = bench.must_not_start(**arguments, kvist={"domain": "llama"})
        assert "domain llama has another layout: " in said, said


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
        path = os.path.join(bench.models, "adapters", folder)
        number = 1 + zlib.crc32(f"{name}/{folder}".encode()) % 10000
        return {"lora_name": name, "lora_int_id": number, "lora_path": path}

    def rights(folder: str) -> Any:
        return bench.right(prompts, more={"adapter": adapter(folder, folder)}, enable_lora=True)

    plain = bench.right(prompts)
    assert rights("a") != plain and rights("a") != rights("b"), "adapters change nothing"
    with bench.settled(enable_lora=True) as engine:
        comes(bench, engine, rights("a"), 0, "a", adapter=adapter("a", "a"))
        comes(bench, engine, rights("b"), 0, "b", adapter=adapter("b", "b"))
        other_name = adapter("again", "again")
        comes(bench, engine, rights("a"), 0, "a by another name", adapter=other_name)
        comes(bench, engine, rights("a"), hits, "a again", adapter=adapter("a", "a"))
        comes(bench, engine, plain, 0, "a salt named as an adapter", salt="again")
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
