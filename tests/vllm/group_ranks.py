"""Two ranks of tensor parallelism: each stores its own share of a block under a namespace of its
own; a hit takes both."""
from __future__ import annotations

import os

import admin
from bench import Bench, hit_tokens, prompt

LENGTHS = (40, 100, 333, 600)
BOTH = {"tensor_parallel_size": 2, "processes": True}
RANKS = {"domain": "llama-ranks"}


def why_not() -> str | None:
    count = len(os.sched_getaffinity(0))
    return None if count > 1 else "two ranks take two cores, this machine lets us use one"


def drop_a_rank(bench: Bench) -> None:
    """All that one of the two namespaces holds."""
    path = bench.store.admin
    dropped = None
    while True:
        for context in admin.ask(path, "list", limit_s=10)["list"]["contexts"]:
            block = admin.ask(path, "show", admin.pack_string("ShowRequest", "key",
                                                              context["key"]))["object"]
            dropped = dropped or block["name_space"]
            if block["name_space"] == dropped:
                break
        else:
            return
        key = context["key"]
        while block["position"] > 0:
            key = block["parent"]
            block = admin.ask(path, "show", admin.pack_string("ShowRequest", "key", key))["object"]
        admin.ask(path, "drop", admin.pack_string("DropRequest", "key", key), limit_s=10)


def test_a_hit_takes_both_ranks(bench: Bench) -> None:
    bench.store.domains = ("llama-ranks", "llama")
    prompts = [prompt(bench.seed + length, length) for length in LENGTHS]
    rights = bench.right(prompts)  # in f32 two ranks answer as one does
    hits = hit_tokens(prompts)
    with bench.settled(kvist=RANKS, **BOTH) as engine:
        bench.must_be_right(engine.ask(prompts), rights, "cold")
        engine.reset()
        bench.must_be_right(engine.ask(prompts), rights, "both ranks' blocks")
        assert engine.sources()[2] == hits, engine.sources()
        engine.reset()
        bench.store.settle()
        drop_a_rank(bench)
        bench.must_be_right(engine.ask(prompts), rights, "one rank's blocks are gone")
        assert engine.sources()[2] == hits, "blocks of one rank were a hit"
        engine.reset()
        bench.must_be_right(engine.ask(prompts), rights, "they are there again")
        assert engine.sources()[2] == 2 * hits, engine.sources()
    # One rank's share is half a whole: not even laid out alike.
    refused = bench.must_not_start(kvist=RANKS)
    assert "has another layout" in refused, refused
    bench.bytes_must_be_right()
