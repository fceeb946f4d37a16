"""Pages of a device, by way of host memory.

A save's blocks are gathered, a load's scattered, on a side stream, behind what the compute stream
had been given when the save or load was asked for: the kernels that write what is saved, and those
that zero new blocks. Until a save has ended the scheduler's side keeps its pages from others
(metadata.py), so nothing that comes later on the compute stream writes to them. On the CPU, where
this runs in tests, all is in order. No GPU has run it.

Owns: a host buffer (pinned for CUDA) for each stage that has begun to move, as long as it lives,
and CHUNK_BYTES or a block on the device while it moves. Borrows: the tensors.
Threads: to_save and to_load on the thread that launches vLLM's kernels, whose current stream is the
compute stream; a stage's methods on any one thread, which ready and finish block.
Errors: PageError; RuntimeError, torch's, where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

import kvist
from kvist.vllm.addresses import GroupPages, LayerPages, PageIds

CHUNK_BYTES = 32 << 20


class _Streams:
    """The compute stream's order, and a side stream for copies; on the CPU all is in order."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def pinned(self) -> bool:
        return self._side is not None

    def mark(self) -> Any:
        """Behind all that the current stream was given; None on the CPU."""
        if self._side is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._side.device))
        return event

    def run(self, behind: Any, work: Callable[[], torch.Tensor]) -> None:
        """work() on the side stream, behind that mark; returns when it has ended."""
        if self._side is None:
            work()
            return
        with torch.cuda.stream(self._side):
            self._side.wait_event(behind)
            blocks = work()
            self._side.synchronize()
            del blocks  # not before


class Staged:
    """Blocks on their way: a Stage (pages.py)."""

    def __init__(self, group: StagedPages, page_ids: PageIds) -> None:
        self._group = group
        self._ids = torch.from_numpy(page_ids)
        self._mark = group.streams.mark()
        self._host: torch.Tensor | None = None  # made when it is needed: jobs may wait for long

    def _buffer(self) -> torch.Tensor:
        if self._host is None:
            shape = (self._ids.numel(), self._group.object_bytes)
            pinned = self._group.streams.pinned
            self._host = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        return self._host

    def pieces(self, block_count: int) -> kvist.Pieces:
        buffer = self._buffer()
        return kvist.Pieces(
            (buffer.data_ptr(),), block_count * self._group.object_bytes, keep=buffer
        )

    def skip(self, block_count: int) -> None:
        """Of a save: they stay in the pages."""
        self._ids = self._ids[block_count:]

    def ready(self) -> None:
        """Of a save: out of the pages."""
        self._move(self._ids.numel(), self._out)

    def finish(self, block_count: int) -> None:
        """Of a load: into them."""
        self._move(block_count, self._in)

    def _out(self, ids: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        blocks = self._group.gather(ids)
        host.copy_(blocks, non_blocking=True)
        return blocks

    def _in(self, ids: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        blocks = host.to(self._group.device, non_blocking=True)
        self._group.scatter(ids, blocks)
        return blocks

    def _move(
        self, block_count: int, move: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        """A chunk at a time; what lies on the device lives until its copies have ended."""
        step = max(CHUNK_BYTES // self._group.object_bytes, 1)
        for first in range(0, block_count, step):
            chunk = slice(first, min(first + step, block_count))
            self._group.streams.run(
                self._mark, partial(move, self._ids[chunk], self._buffer()[chunk])
            )


class StagedPages:
    """A PageGroup of any device's pages."""

    in_place = False

    def __init__(self, pages: GroupPages, tensors: Sequence[torch.Tensor]) -> None:
        """tensors: of the group's layers, in their order."""
        self._pages = pages
        self.object_bytes = pages.object_bytes
        self.device = tensors[0].device
        self.streams = _Streams(self.device)
        self._views = [
            self._view(layer, tensor) for layer, tensor in zip(pages.layers, tensors, strict=True)
        ]

    @staticmethod
    def _view(layer: LayerPages, tensor: torch.Tensor) -> torch.Tensor:
        """uint8 [block_count, ..., fragment_bytes]: the same bytes in the order of memory."""
        kernel_blocks = tensor.shape[0] // layer.block_count
        blocks = tensor.unflatten(0, (layer.block_count, kernel_blocks))
        strides = blocks.stride()
        # Dimensions of length 1 may have any stride; last of all they would hide the innermost.
        order = sorted(
            range(1, blocks.dim()),
            key=lambda dimension: (blocks.shape[dimension] != 1, -strides[dimension]),
        )
        return blocks.permute(0, *order).view(torch.uint8)

    def to_save(self, page_ids: PageIds) -> Staged:
        """They are gathered behind what the current stream has been given."""
        self._pages.check(page_ids)
        return Staged(self, page_ids)

    def to_load(self, page_ids: PageIds) -> Staged:
        """They are scattered behind what the current stream has been given."""
        self._pages.check(page_ids)
        return Staged(self, page_ids)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """uint8 [blocks, object_bytes] on the device."""
        ids = ids.to(self.device, non_blocking=True)
        return torch.cat(
            [view.index_select(0, ids).reshape(ids.numel(), -1) for view in self._views], dim=1
        )

    def scatter(self, ids: torch.Tensor, blocks: torch.Tensor) -> None:
        """And back."""
        ids = ids.to(self.device, non_blocking=True)
        start = 0
        for layer, view in zip(self._pages.layers, self._views, strict=True):
            part = blocks[:, start : start + layer.page_bytes]
            view.index_copy_(0, ids, part.reshape(ids.numel(), *view.shape[1:]))
            start += layer.page_bytes
