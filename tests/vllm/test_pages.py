"""Where blocks lie: every layout that vLLM makes, by vLLM's own functions, and what is refused."""

from __future__ import annotations

import ctypes
import unittest

import numpy
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, MLAAttentionSpec
from vllm.v1.kv_cache_layout import KVCacheLayout
from worker_case import full_spec, kv_cache_config, make_tensors, storage_of

import kvist
from kvist.native import ffi
from kvist.vllm.addresses import GroupPages, PageError, layer_pages
from kvist.vllm.pages import check_all_known, group_pages

BLOCKS, LAYERS, TOKENS = 11, 3, 32
SPEC = full_spec(TOKENS, heads=3, dims=8)


def bytes_at(addresses: numpy.ndarray, sizes: numpy.ndarray | int) -> bytes:
    """What lies in these pieces of this process' memory."""
    lengths = [sizes] * len(addresses) if isinstance(sizes, int) else sizes
    return b"".join(ctypes.string_at(int(a), int(n)) for a, n in zip(addresses, lengths))


def bytes_of(pieces: kvist.Pieces) -> bytes:
    return b"".join(bytes(ffi.buffer(piece.base, piece.bytes)) for piece in pieces.c)


def fill(pieces: kvist.Pieces, what: bytes) -> None:
    at = 0
    for piece in pieces.c:
        ffi.memmove(piece.base, what[at : at + piece.bytes], piece.bytes)
        at += piece.bytes


def filled(
    config: KVCacheConfig, layout: KVCacheLayout, kernel: list[int] | None
) -> dict[str, torch.Tensor]:
    tensors = make_tensors(config, layout, kernel)
    memory = storage_of(tensors)
    memory[:] = numpy.random.default_rng(1).integers(0, 256, memory.size, dtype=numpy.uint8)
    return tensors


def logical(tensors: dict[str, torch.Tensor], blocks: int, block: int) -> bytes:
    """A block's bytes, layer after layer, sorted: whatever the order of memory, they are these."""
    parts = []
    for tensor in tensors.values():
        ratio = tensor.shape[0] // blocks
        part = tensor[block * ratio : (block + 1) * ratio].contiguous().view(torch.uint8)
        parts.append(bytes(sorted(part.numpy().tobytes())))
    return b"".join(parts)


class LayoutTest(unittest.TestCase):
    def check(
        self,
        spec: FullAttentionSpec,
        layout: KVCacheLayout,
        packed: bool,
        kernel: list[int] | None,
        pieces_of_block: int,
    ) -> None:
        config = kv_cache_config([(spec, LAYERS)], BLOCKS, packed)
        tensors = filled(config, layout, kernel)
        names, page = list(tensors), spec.real_page_size_bytes
        in_place = group_pages(tensors, names, BLOCKS, page)
        staged = group_pages(tensors, names, BLOCKS, page, staged=True)
        self.assertEqual(in_place.object_bytes, LAYERS * page)
        self.assertEqual(in_place.object_bytes, staged.object_bytes)
        ids = numpy.array([7, 1, 10], dtype=numpy.int64)
        pages = in_place.pages  # type: ignore[attr-defined]
        addresses, sizes = pages.spans(ids)
        self.assertEqual(len(addresses), 3 * pieces_of_block)
        got = bytes_at(addresses, sizes)
        for i, block in enumerate(ids):
            part = got[i * LAYERS * page : (i + 1) * LAYERS * page]
            by_layer = [bytes(sorted(part[at : at + page])) for at in range(0, len(part), page)]
            self.assertEqual(b"".join(by_layer), logical(tensors, BLOCKS, int(block)))
        # Both ways take the same bytes in the same order.
        stage = staged.to_save(ids)
        stage.ready()
        self.assertEqual(bytes_of(stage.pieces(3)), got)
        # And back into other pages, as a load does.
        to = numpy.array([2, 9, 4], dtype=numpy.int64)
        back = staged.to_load(to)
        fill(back.pieces(3), got)
        back.finish(2)
        self.assertEqual(bytes_at(*pages.spans(to[:2])), got[: 2 * LAYERS * page])
        self.assertNotEqual(bytes_at(*pages.spans(to[2:])), got[2 * LAYERS * page :])

    def test_all_layouts(self) -> None:
        layouts = KVCacheLayout
        for layout, packed, pieces in (
            (layouts.LBHNC, False, LAYERS),
            (layouts.LBNHC, False, LAYERS),
            (layouts.BLHNC, True, 1),
            (layouts.BLNHC, True, 1),
        ):
            with self.subTest(layout=layout.name):
                self.check(SPEC, layout, packed, None, pieces)

    def test_kernel_blocks_within_a_block(self) -> None:
        self.check(SPEC, KVCacheLayout.LBHNC, False, [TOKENS // 2], LAYERS)

    def test_latent_attention(self) -> None:
        spec = MLAAttentionSpec(
            block_size=TOKENS, num_kv_heads=1, head_size=24, dtype=torch.bfloat16
        )
        self.check(spec, KVCacheLayout.LBHNC, False, None, LAYERS)


class FragmentsTest(unittest.TestCase):
    def test_keys_and_values_apart(self) -> None:
        """[2, blocks, ...] in memory, as [blocks, 2, ...]: two pieces for each block."""
        memory = torch.arange(2 * 4 * 6, dtype=torch.int16).reshape(2, 4, 6)
        pages = layer_pages("layer", memory.transpose(0, 1), 4, 24)
        self.assertEqual((pages.offsets, pages.fragment_bytes), ((0, 48), 12))
        self.assertEqual(pages.block_stride, 12)
        group = GroupPages([pages])
        got = numpy.frombuffer(bytes_at(*group.spans(numpy.array([3, 1]))), dtype=numpy.int16)
        want = torch.cat([memory[:, 3].reshape(-1), memory[:, 1].reshape(-1)])
        self.assertEqual(got.tolist(), want.tolist())

    def test_heads_outside_of_blocks(self) -> None:
        memory = torch.arange(3 * 5 * 2 * 4, dtype=torch.int16).reshape(3, 5, 2, 4)
        view = memory.permute(1, 0, 2, 3)  # [blocks, heads, tokens, content]
        pages = layer_pages("layer", view, 5, 3 * 2 * 4 * 2)
        self.assertEqual(len(pages.offsets), 3)
        group = GroupPages([pages])
        got = numpy.frombuffer(bytes_at(*group.spans(numpy.array([4]))), dtype=numpy.int16)
        self.assertEqual(got.tolist(), view[4].reshape(-1).tolist())

    def test_pages_with_padding_behind_them(self) -> None:
        memory = torch.zeros(6, 40, dtype=torch.uint8)
        pages = layer_pages("layer", memory[:, :32].unflatten(1, (4, 8)), 6, 32)
        self.assertEqual((pages.block_stride, pages.page_bytes), (40, 32))

    def test_layers_that_touch_are_one_piece(self) -> None:
        memory = torch.zeros(4, 3, 16, dtype=torch.uint8)
        group = GroupPages([layer_pages(str(i), memory[:, i], 4, 16) for i in range(3)])
        addresses, sizes = group.spans(numpy.array([2]))
        self.assertEqual((len(addresses), sizes), (1, 48))
        self.assertEqual(int(addresses[0]), memory[2].data_ptr())


class RefusalTest(unittest.TestCase):
    def refused(self, words: str, tensor: torch.Tensor, blocks: int, page_bytes: int) -> None:
        with self.assertRaises(PageError) as caught:
            layer_pages("model.layers.7.attn", tensor, blocks, page_bytes)
        self.assertIn("model.layers.7.attn", str(caught.exception))
        self.assertRegex(str(caught.exception), words)

    def test_tensors_that_are_not_what_was_said(self) -> None:
        tensor = torch.zeros(6, 4, 8, dtype=torch.bfloat16)
        self.refused("64 bytes by its tensor.*bfloat16.*and 60", tensor, 6, 60)
        self.refused("first dimension is 6.*4 blocks", tensor, 4, 64)
        self.refused("first dimension is 6.*12 blocks", tensor, 12, 64)
        self.refused("1 dimension", torch.zeros(6), 6, 4)
        self.refused("strides", tensor[:1].expand(6, 4, 8), 6, 64)
        self.refused("strides", tensor[:, :, :1].expand(6, 4, 8), 6, 64)
        self.refused("overlap", tensor.as_strided((6, 4, 8), (8, 8, 1)), 6, 64)
        self.refused("overlap", tensor.as_strided((2, 4, 8), (96, 4, 1)), 2, 64)

    def test_a_block_in_too_many_pieces(self) -> None:
        tensor = torch.zeros(3, 2000, 2, dtype=torch.uint8)[:, :, :1]
        self.refused("2000 pieces", tensor, 3, 2000)

    def test_layers_that_do_not_belong_together(self) -> None:
        tensors = {"a": torch.zeros(4, 8), "b": torch.zeros(6, 8)}
        with self.assertRaisesRegex(PageError, "no KV tensor for layers \\['c'\\]"):
            group_pages(tensors, ["a", "c"], 4, 32)
        with self.assertRaisesRegex(PageError, "layer b"):
            group_pages(tensors, ["a", "b"], 4, 32)
        with self.assertRaisesRegex(PageError, "of the group"):
            group_pages(tensors, [], 4, 32)

    def test_a_layer_that_nobody_saves(self) -> None:
        shared = torch.zeros(4, 8)
        check_all_known({"a": shared, "b": shared}, ["a"])
        with self.assertRaisesRegex(PageError, "layer c.*none of the groups"):
            check_all_known({"a": shared, "c": torch.zeros(4, 8)}, ["a"])

    def test_block_ids(self) -> None:
        group = group_pages({"a": torch.zeros(4, 8)}, ["a"], 4, 32)
        for block in (0, -1, 4):
            with self.assertRaisesRegex(PageError, "1 to 3"):
                group.to_save(numpy.array([1, block], dtype=numpy.int64))


if __name__ == "__main__":
    unittest.main()
