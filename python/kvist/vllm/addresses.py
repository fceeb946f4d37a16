"""Where the bytes of vLLM's blocks lie, as numbers.

vLLM gives each layer a tensor whose first dimension counts blocks (or kernel blocks: an equal
number of them to each block); the inside of a block is opaque here. What belongs to one block of
one layer is found from the tensor's shape and strides alone: it is one contiguous fragment, or
several at the same distances in every block (heads that lie outside of blocks, say). A group's
object in Kvist is, for each of its layers in order, these fragments in the order of memory. Layers
whose fragments touch in memory become one piece.

Owns: nothing but numbers. Borrows: the tensors' memory, which the caller keeps alive.
Threads: any. Errors: PageError, which names the layer, what was found, and what was expected.
Limits: block ids from 1 on: block 0 is vLLM's null block, whose bytes are nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray

PageIds = NDArray[numpy.int64]
"""[blocks] vLLM's block ids."""

FRAGMENTS_MAX = 1024  # of one block of one layer: beyond it a layout is taken for a mistake


class PageError(ValueError):
    """The tensors are not what vLLM's configuration says, or a block id is out of bounds."""


@dataclass(frozen=True)
class LayerPages:
    """One layer's blocks, as addresses; all numbers are bytes but block_count.

    Fragment f of block b is fragment_bytes long from base + b x block_stride + offsets[f].
    """

    name: str
    base: int
    block_count: int
    block_stride: int
    offsets: tuple[int, ...]
    fragment_bytes: int

    @property
    def page_bytes(self) -> int:
        """Of one block."""
        return len(self.offsets) * self.fragment_bytes


def _inner_dimensions(
    name: str, tensor: torch.Tensor, block_count: int
) -> tuple[list[tuple[int, int]], int]:
    """(length, stride) of what is inside of a block, in elements; and a block's stride."""
    if tensor.dim() < 2:
        raise PageError(
            f"layer {name}: its KV tensor has {tensor.dim()} dimension(s), {tuple(tensor.shape)}; "
            "at least 2 are expected, of which the first counts blocks"
        )
    length = tensor.shape[0]
    if block_count < 1 or length < block_count or length % block_count:
        raise PageError(
            f"layer {name}: its KV tensor's first dimension is {length}, shape "
            f"{tuple(tensor.shape)}; the {block_count} blocks of the KV cache, or a multiple, are "
            "expected"
        )
    kernel_blocks = length // block_count
    inner = list(zip(tensor.shape[1:], tensor.stride()[1:]))
    if kernel_blocks > 1:
        inner.append((kernel_blocks, tensor.stride(0)))
    return [(n, s) for n, s in inner if n != 1], kernel_blocks * tensor.stride(0)


def _fragments(inner: list[tuple[int, int]]) -> tuple[int, list[int]]:
    """Length of the contiguous run at the innermost, and where all runs begin; in elements."""
    run, outer = 1, list[tuple[int, int]]()
    for length, stride in sorted(inner, key=lambda dimension: dimension[1]):
        if stride == run and not outer:
            run *= length
        else:
            outer.append((length, stride))
    offsets = [0]
    for length, stride in outer:  # the smallest stride first: it stays the innermost
        offsets = [index * stride + offset for index in range(length) for offset in offsets]
    return run, offsets


def _check_bounds(pages: LayerPages, tensor: torch.Tensor) -> None:
    storage = tensor.untyped_storage()
    end = (
        pages.base
        + (pages.block_count - 1) * pages.block_stride
        + pages.offsets[-1]
        + pages.fragment_bytes
    )
    if pages.base < storage.data_ptr() or end > storage.data_ptr() + storage.nbytes():
        raise PageError(
            f"layer {pages.name}: its blocks would end {end - storage.data_ptr()} bytes into a "
            f"storage of {storage.nbytes()} bytes"
        )
    begins = sorted(pages.offsets)
    if pages.block_stride < pages.fragment_bytes or any(
        after - offset < pages.fragment_bytes for offset, after in zip(begins, begins[1:])
    ):
        raise PageError(
            f"layer {pages.name}: parts of a block overlap, shape {tuple(tensor.shape)}, strides "
            f"{tensor.stride()}"
        )


def layer_pages(
    name: str, tensor: torch.Tensor, block_count: int, page_bytes: int
) -> LayerPages:
    """A layer's pages from its tensor, [block_count x kernel blocks, ...] of any strides.

    page_bytes: what one block of the layer has by vLLM's configuration, without padding.
    Raises PageError.
    """
    inner, block_stride = _inner_dimensions(name, tensor, block_count)
    if any(stride < 1 for _, stride in inner) or tensor.stride(0) < 1:
        raise PageError(
            f"layer {name}: strides {tensor.stride()} of shape {tuple(tensor.shape)}; each is "
            "expected to be 1 or more, so that no two elements share their bytes"
        )
    run, offsets = _fragments(inner)
    if len(offsets) > FRAGMENTS_MAX:
        raise PageError(
            f"layer {name}: a block lies in {len(offsets)} pieces, shape {tuple(tensor.shape)}, "
            f"strides {tensor.stride()}; at most {FRAGMENTS_MAX} are taken"
        )
    size = tensor.element_size()
    pages = LayerPages(
        name,
        tensor.data_ptr(),
        block_count,
        block_stride * size,
        tuple(offset * size for offset in offsets),
        run * size,
    )
    if pages.page_bytes != page_bytes:
        raise PageError(
            f"layer {name}: a block has {pages.page_bytes} bytes by its tensor, shape "
            f"{tuple(tensor.shape)} of {tensor.dtype}, and {page_bytes} by vLLM's configuration"
        )
    _check_bounds(pages, tensor)
    return pages


class GroupPages:
    """The pages of a group's layers: where block b's object lies, whatever b is."""

    def __init__(self, layers: Sequence[LayerPages]) -> None:
        """layers: in the order of the object. Raises PageError."""
        counts = {layer.block_count for layer in layers}
        if len(counts) != 1:
            raise PageError(f"a group needs layers with one number of blocks, not {sorted(counts)}")
        self.layers = tuple(layers)
        self.block_count = counts.pop()
        bases, strides, sizes = list[int](), list[int](), list[int]()
        for layer in layers:
            for offset in layer.offsets:
                base = layer.base + offset
                if bases and bases[-1] + sizes[-1] == base and strides[-1] == layer.block_stride:
                    sizes[-1] += layer.fragment_bytes
                else:
                    bases.append(base)
                    strides.append(layer.block_stride)
                    sizes.append(layer.fragment_bytes)
        self._bases = numpy.array(bases, dtype=numpy.uint64)
        self._strides = numpy.array(strides, dtype=numpy.uint64)
        self._sizes = numpy.array(sizes, dtype=numpy.uint64)
        self.object_bytes = int(self._sizes.sum())

    def check(self, page_ids: PageIds) -> None:
        """Raises PageError where an id is not a block of vLLM's, or is the null block."""
        if page_ids.size and (page_ids.min() < 1 or page_ids.max() >= self.block_count):
            raise PageError(
                f"block ids from {page_ids.min()} to {page_ids.max()}: 1 to "
                f"{self.block_count - 1} are expected"
            )

    def spans(self, page_ids: PageIds) -> tuple[NDArray[numpy.uint64], NDArray[numpy.uint64] | int]:
        """Addresses of the pieces of these blocks, one block after the other; their sizes, or the
        one size of all."""
        addresses = self._bases + page_ids.astype(numpy.uint64)[:, None] * self._strides
        if (self._sizes == self._sizes[0]).all():
            return addresses.reshape(-1), int(self._sizes[0])
        return addresses.reshape(-1), numpy.tile(self._sizes, page_ids.size)
