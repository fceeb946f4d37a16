"""What blocks are known by: canonical facts, weights, adapters, salts, extra keys."""
from __future__ import annotations

import dataclasses
import enum
import json
import os
import subprocess
import sys
import tempfile
import unittest
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any
from unittest import mock

import kvist
import torch
from kvist.vllm import groups, identity, prompts, weights
from kvist.vllm.canonical import canonical
from kvist.vllm.config import Config
from kvist.vllm.metadata import Description, GroupDescription, LayerKind, Owner
from simulated import kv_cache_config, model_folder, vllm_config
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

SHAPE: dict[str, Any] = {"block_size": 32, "num_kv_heads": 2, "head_size": 64,
                         "dtype": torch.bfloat16}


class Colour(enum.Enum):
    RED = "red"


class Canonical(unittest.TestCase):
    def test_one_form(self) -> None:
        one = {"b": [1, 2.5, None, True], "a": {"y": torch.float16, "x": Colour.RED}, "c": (1, 2),
               "d": {"q", "r", "s"}, "e": float("inf"), "f": b"\1", "g": Config}
        other = OrderedDict(reversed(list(one.items())))
        self.assertEqual(canonical(one), canonical(other))
        self.assertEqual(json.loads(canonical(one))["d"], ["q", "r", "s"])

    def test_different_values_differ(self) -> None:
        values = [{"1": 0}, {1: 0}, {True: 0}, 1, 1.5, "1", [1], [[1]], None, "None", True, "inf",
                  {"a": None}, {}, []]
        self.assertEqual(len({canonical(value) for value in values}), len(values))

    def test_what_has_no_form_is_refused_with_its_place(self) -> None:
        with self.assertRaisesRegex(ValueError, r"object at \.a\[1\]"):
            canonical({"a": [1, object()]})


def tiny_engine(folder: str, **arguments: Any) -> Any:
    return vllm_config(options={"fingerprint_folder": folder}, **arguments)


def described(folder: str, rank: tuple[int, int] = (0, 0), blocks: int = 20,
              dtype: torch.dtype = torch.bfloat16, change: Any = None, **arguments: Any,
              ) -> Description:
    config = tiny_engine(folder, **arguments)
    if change is not None:
        change(config)
    tensors = {"layer.0": torch.zeros(blocks, 2, 32, 128, dtype=dtype)}
    with mock.patch.object(identity, "get_current_attn_backends", return_value=[]):
        return identity.describe(config, kv_cache_config(blocks), Config.of(config), tensors, *rank)


class Facts(unittest.TestCase):
    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = held.name
        self.facts = described(self.folder).facts

    def test_equal_where_nothing_that_counts_differs(self) -> None:
        same = described(self.folder, blocks=33, max_num_seqs=4, max_num_batched_tokens=128)
        self.assertEqual(same.facts, self.facts)

    def test_each_fact_counts(self) -> None:
        def set_rope(config: Any) -> None:
            config.model_config.hf_config.rope_parameters = {"rope_type": "default",
                                                             "rope_theta": 7.0}

        def set_cache_dtype(config: Any) -> None:
            config.cache_config.cache_dtype = "fp8"

        def set_quantization(config: Any) -> None:
            config.model_config.quantization = "fp8"

        def name(config: Any) -> None:
            config.kv_transfer_config.kv_connector_extra_config["model_identity"] = "mine"

        seen = {self.facts}
        for change in (set_rope, set_cache_dtype, set_quantization, name):
            seen.add(described(self.folder, change=change).facts)
        seen.add(described(self.folder, rank=(1, 0)).facts)
        seen.add(described(self.folder, rank=(0, 1)).facts)
        seen.add(described(self.folder, dtype=torch.float16).facts)
        with mock.patch.object(identity.vllm, "__version__", "0.0.1"):
            seen.add(described(self.folder).facts)
        with mock.patch.object(identity, "cpu_instructions", return_value=["avx2"]):
            seen.add(described(self.folder).facts)
        self.assertEqual(len(seen), 10)

    def test_weights_count(self) -> None:
        path = os.path.join(model_folder(), "model.safetensors")
        with open(path, "ab") as file:
            file.write(b" trained on")
        self.assertNotEqual(described(self.folder).facts, self.facts)

    def test_max_model_len_counts_with_the_ropes_that_depend_on_it(self) -> None:
        def longrope(config: Any) -> None:
            config.model_config.hf_config.rope_parameters = {"rope_type": "longrope",
                                                             "factor": 4.0}

        self.assertEqual(described(self.folder, max_model_len=1024).facts, self.facts)
        long = described(self.folder, change=longrope).facts
        self.assertNotEqual(described(self.folder, change=longrope, max_model_len=1024).facts, long)

    def test_equal_in_other_processes_whatever_the_hash_seed(self) -> None:
        program = ("import sys; sys.path.insert(0, sys.argv[1])\n"
                   "import simulated, test_identity\n"
                   "simulated.model_folder = lambda: sys.argv[3]\n"
                   "print('FACTS', test_identity.described(sys.argv[2]).facts)")
        here = os.path.dirname(os.path.abspath(__file__))
        facts = described(self.folder).facts
        run = subprocess.run(
            [sys.executable, "-c", program, here, self.folder, model_folder()],
            env=dict(os.environ, PYTHONHASHSEED="1"), check=True, stdout=subprocess.PIPE, text=True)
        lines = [line for line in run.stdout.splitlines() if line.startswith("FACTS ")]
        self.assertEqual(lines, ["FACTS " + facts])

    def test_name_spaces(self) -> None:
        description = described(self.folder)
        layout = identity.layout_of(description)
        self.assertEqual(layout.object_bytes(0), 2 * 32 * 128 * 2)
        names = {identity.name_space(description, layout, owner) for owner in (
            Owner(), Owner(b"a"), Owner(b"", "a"), Owner(b"a", "a"), Owner(b"b"))}
        self.assertEqual(len(names), 5)
        other = dataclasses.replace(description, facts=description.facts + " ")
        self.assertNotIn(identity.name_space(other, layout, Owner()), names)


class Weights(unittest.TestCase):
    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = held.name
        self.config = SimpleNamespace(fingerprint_folder=os.path.join(self.folder, "notes"),
                                      model_identity="")
        self.place = os.path.join(self.folder, "adapter")
        os.mkdir(self.place)
        self.write("adapter_model.safetensors", b"bytes")
        self.write("adapter_config.json", b"{}")

    def write(self, name: str, content: bytes) -> None:
        with open(os.path.join(self.place, name), "wb") as file:
            file.write(content)

    def test_content_not_place(self) -> None:
        one = weights.of_place(self.place, None, self.config)
        self.assertEqual(sorted(one["files"]), ["adapter_config.json", "adapter_model.safetensors"])
        self.write("readme.txt", b"nothing")
        os.rename(self.place, self.place + "2")
        self.place += "2"
        self.assertEqual(weights.of_place(self.place, None, self.config), one)
        self.write("adapter_config.json", b"{ }")
        self.assertNotEqual(weights.of_place(self.place, None, self.config), one)

    def test_a_snapshot_of_a_hub_is_known_by_its_commit(self) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        folder = os.path.join(self.folder, f"models--someone--model/snapshots/{commit}")
        os.makedirs(folder)
        self.assertEqual(weights.of_place(folder, None, self.config),
                         {"repository": "someone--model", "commit": commit})

    def test_what_cannot_be_known_is_refused(self) -> None:
        empty = os.path.join(self.folder, "empty")
        os.mkdir(empty)
        with self.assertRaisesRegex(ValueError, "no weight files.*model_identity"):
            weights.of_place(empty, None, self.config)
        with self.assertRaisesRegex(ValueError, "model_identity"):
            weights.of_place("nobody/nothing-of-the-kind", None, self.config)

    def test_adapters_are_name_and_content(self) -> None:
        adapters = weights.Adapters(self.config)
        one = adapters.name_of("a", 1, self.place)
        assert one is not None
        self.assertRegex(one, "^a@[0-9a-f]{64}$")
        self.assertEqual(adapters.name_of("a", 1, self.place), one)
        self.assertEqual(adapters.name_of("b", 2, self.place), "b" + one[1:])
        self.write("adapter_model.safetensors", b"trained on")
        with self.assertLogs("kvist.vllm", "WARNING") as logs:
            self.assertIsNone(adapters.name_of("a", 1, self.place))
        self.assertIn("changed while vLLM runs", logs.output[0])
        self.assertIsNone(adapters.name_of("a", 1, self.place))
        new = adapters.name_of("c", 3, self.place)
        assert new is not None
        self.assertNotEqual(new[2:], one[2:])

    def test_an_adapter_that_is_not_there_is_bypassed(self) -> None:
        adapters = weights.Adapters(self.config)
        with self.assertLogs("kvist.vllm", "WARNING"):
            self.assertIsNone(adapters.name_of("a", 1, os.path.join(self.folder, "none")))

    def test_notes_that_cannot_be_kept(self) -> None:
        self.config.fingerprint_folder = os.path.join(self.place, "adapter_config.json", "notes")
        with self.assertLogs("kvist.vllm", "WARNING") as logs:
            weights.of_place(self.place, None, self.config)
        self.assertIn("cannot be remembered", logs.output[0])


def item(offset: int, length: int, identifier: str = "ab" * 32, modality: str = "image") -> Any:
    return SimpleNamespace(identifier=identifier, modality=modality,
                           mm_position=SimpleNamespace(offset=offset, length=length))


def request(*items: Any, tokens: int = 96, **more: Any) -> Any:
    made = SimpleNamespace(prompt_embeds=None, prompt_token_ids=list(range(tokens)),
                           all_token_ids=list(range(tokens)), lora_request=None, cache_salt=None,
                           mm_features=list(items))
    for name, value in more.items():
        setattr(made, name, value)
    return made


class Prompts(unittest.TestCase):
    def setUp(self) -> None:
        adapters = SimpleNamespace(name_of=lambda name, number, path: f"{name}@x" if path else None)
        self.prompts = prompts.Prompts(adapters, 32, 0)  # type: ignore[arg-type]
        self.ahead = prompts.Prompts(adapters, 32, 1)  # type: ignore[arg-type]

    def test_owner(self) -> None:
        self.assertEqual(self.prompts.owner(request()), Owner())
        self.assertEqual(self.prompts.owner(request(cache_salt="grün")), Owner("grün".encode()))
        lora = SimpleNamespace(lora_name="a", lora_int_id=1, lora_path="p")
        self.assertEqual(self.prompts.owner(request(lora_request=lora)), Owner(b"", "a@x"))
        lora.lora_path = ""
        self.assertIsNone(self.prompts.owner(request(lora_request=lora)))
        self.assertIsNone(self.prompts.owner(request(prompt_embeds=torch.zeros(2))))
        self.assertIsNone(self.prompts.owner(request(prompt_token_ids=None)))

    def test_text_has_no_extra_keys(self) -> None:
        self.assertIsNone(self.prompts.extras(request(), 0, 3))
        self.assertIsNone(self.prompts.extras(request(item(0, 32)), 1, 3))

    def test_every_property_of_an_item_counts(self) -> None:
        seen = set()
        for one in (item(10, 5), item(11, 5), item(10, 6), item(10, 5, "cd" * 32),
                    item(10, 5, modality="video"), item(10, 5, "lora:" + "ab" * 32)):
            extras = self.prompts.extras(request(one), 0, 3)
            assert extras is not None
            self.assertEqual(extras[1:], (bytes(32), bytes(32)))
            seen.add(extras[0])
        for several in ((item(10, 5), item(20, 5)), (item(20, 5), item(10, 5))):
            seen.add(self.prompts.extras(request(*several), 0, 1)[0])  # type: ignore[index]
        self.assertEqual(len(seen), 8)

    def test_positions_count_from_the_block(self) -> None:
        # The same item at the same place of another block: the chain tells them apart.
        first = self.prompts.extras(request(item(10, 5)), 0, 1)
        third = self.prompts.extras(request(item(74, 5)), 2, 3)
        self.assertEqual(first, third)
        over = self.prompts.extras(request(item(20, 60)), 0, 3)
        assert over is not None
        self.assertEqual(len(set(over)), 3)
        self.assertNotIn(bytes(32), over)

    def test_vector(self) -> None:
        """docs/vllm.md has the encoding."""
        extras = self.prompts.extras(request(item(20, 60)), 1, 2)
        assert extras is not None
        import hashlib
        import struct
        text = "ab" * 32
        good = (struct.pack("<I", 18) + b"kvist.vllm.extra.1" + struct.pack("<BqQ", 1, -12, 60)
                + struct.pack("<I", 5) + b"image" + struct.pack("<I", 64) + text.encode())
        self.assertEqual(extras[0], hashlib.sha256(good).digest())

    def test_items_that_are_not_known_by_content_end_what_is_cached(self) -> None:
        for bad in ("0-image-0", "my-cat", "", "ab" * 31, "AB" * 32):
            one = request(item(10, 5), item(40, 10, bad))
            self.assertEqual(self.prompts.cacheable_blocks(one, 96), 1, bad)
        self.assertEqual(self.prompts.cacheable_blocks(request(item(40, 10)), 96), 3)
        self.assertEqual(self.prompts.cacheable_blocks(request(), 95), 2)

    def test_what_a_draft_model_reads_ahead_counts(self) -> None:
        one = request()
        self.assertEqual(self.ahead.cacheable_blocks(one, 96), 2)
        extras = self.ahead.extras(one, 0, 2)
        other = request()
        other.all_token_ids[64] = 7
        assert extras is not None
        self.assertEqual(self.ahead.extras(other, 0, 2)[0], extras[0])  # type: ignore[index]
        self.assertNotEqual(self.ahead.extras(other, 0, 2)[1], extras[1])  # type: ignore[index]


class Groups(unittest.TestCase):
    def setUp(self) -> None:
        self.config = vllm_config()

    def of(self, *specs: Any) -> Any:
        made = [KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)]
        return groups.groups_of(self.config, KVCacheConfig(10, [], made))

    def refused(self, text: str, *specs: Any) -> None:
        with self.assertRaisesRegex(ValueError, text):
            self.of(*specs)

    def test_full_ones_first(self) -> None:
        window = SlidingWindowSpec(sliding_window=64, **SHAPE)
        tokens, made = self.of(window, FullAttentionSpec(**SHAPE))
        self.assertEqual(tokens, 32)
        self.assertEqual([(g.engine_group, g.kind, g.window_tokens) for g in made],
                         [(1, LayerKind.FULL, 0), (0, LayerKind.WINDOW, 64)])

    def test_pages_of_several_sizes_are_several_groups(self) -> None:
        small = FullAttentionSpec(**{**SHAPE, "head_size": 32})
        whole = UniformTypeKVCacheSpecs(
            block_size=32, kv_cache_specs={"a": FullAttentionSpec(**SHAPE), "b": small,
                                           "c": FullAttentionSpec(**SHAPE)})
        made = groups.groups_of(self.config, KVCacheConfig(
            10, [], [KVCacheGroupSpec(["a", "b", "c"], whole)]))[1]
        self.assertEqual([g.layer_names for g in made], [("a", "c"), ("b",)])
        self.assertEqual([g.engine_group for g in made], [0, 0])
        self.assertEqual(made[0].page_bytes, 2 * made[1].page_bytes)

    def test_what_is_not_served(self) -> None:
        full = FullAttentionSpec(**SHAPE)
        self.refused("no KV cache")
        self.refused("MambaSpec", full, MambaSpec(block_size=32, shapes=((1,),),
                                                  dtypes=(torch.float32,)))
        self.refused("ChunkedLocal", ChunkedLocalAttentionSpec(attention_chunk_size=64, **SHAPE))
        self.refused(r"blocks of \[32, 64\] tokens", full,
                     FullAttentionSpec(**{**SHAPE, "block_size": 64}))
        self.refused("more than 1024", FullAttentionSpec(**{**SHAPE, "block_size": 2048}))
        self.refused("disable-hybrid", SlidingWindowSpec(sliding_window=64, **SHAPE))
        self.refused(f"{groups.GROUPS_MAX + 1} layer groups", full, *(
            SlidingWindowSpec(sliding_window=64 * (i + 1), **SHAPE)
            for i in range(groups.GROUPS_MAX)))
        self.refused("attends to later", FullAttentionSpec(non_causal=True, **SHAPE))
        self.config.parallel_config.decode_context_parallel_size = 2
        self.refused("decode_context_parallel_size is 2", full)

    def test_layouts(self) -> None:
        made = (GroupDescription(1, LayerKind.FULL, 0, ("a", "b"), 100),
                GroupDescription(0, LayerKind.WINDOW, 64, ("c",), 300))
        layout = identity.layout_of(Description(32, made, "{}"))
        self.assertEqual([layout.object_bytes(0), layout.object_bytes(1)], [200, 300])
        self.assertEqual([list(group.layers) for group in layout.groups], [[0, 1], [2]])
        self.assertEqual([group.kind for group in layout.groups],
                         [kvist.GroupKind.FULL, kvist.GroupKind.WINDOW])


if __name__ == "__main__":
    unittest.main()
