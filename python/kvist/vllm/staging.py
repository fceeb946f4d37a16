"""Pages of a device, by way of host memory.

A save's bytes are gathered on the compute stream itself, so that they are read after the kernels
that wrote them and before any that come later, and leave the device on a side stream. A load's
bytes are scattered on the side stream, behind what the compute stream had been given when the load
was asked for (vLLM zeroes new blocks there). On the CPU, where this runs in tests, all is in order.

Owns: a host buffer (pinned for CUDA) for each stage that is alive, and, until its end, as much on
the device. Borrows: the tensors.
Threads: to_save and to_load on the thread that launches vLLM's kernels, whose current stream is the
compute stream; a stage's methods on any one thread, which ready and finish block.
Errors: PageError; RuntimeError, torch's, where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import kvist
from kvist.vllm.addresses import GroupPages, LayerPages, PageIds


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

    def run(self, behind: Any, work: Callable[[], Any]) -> Any:
        """work() on the side stream, behind that mark; the mark of its end."""
        if self._side is None:
            work()
            return None
        with torch.cuda.stream(self._side):
            self._side.wait_event(behind)
            work()
            event = torch.cuda.Event()
            event.record(self._side)
        return event


class Staged:
    """Blocks on their way: a Stage (pages.py)."""

    def __init__(self, group: StagedPages, page_ids: PageIds) -> None:
        self._group = group
        self._ids = torch.from_numpy(page_ids)
        self._mark = group.streams.mark()
        self._host: torch.Tensor | None = None  # made when it is needed: loads may wait for long
        self._blocks: torch.Tensor | None = None  # on the device, until they are through

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

    def gather(self) -> None:
        """The blocks leave their pages in the order of the compute stream."""
        self._blocks = blocks = self._group.gather(self._ids)
        buffer, streams = self._buffer(), self._group.streams
        self._mark = streams.run(streams.mark(), lambda: buffer.copy_(blocks, non_blocking=True))

    def ready(self) -> None:
        if self._mark is not None:
            self._mark.synchronize()
        self._blocks = None

    def finish(self, block_count: int) -> None:
        if block_count == 0:
            return

        def move() -> None:
            blocks = self._buffer()[:block_count].to(self._group.device, non_blocking=True)
            self._blocks = blocks
            self._group.scatter(self._ids[:block_count], blocks)

        mark = self._group.streams.run(self._mark, move)
        if mark is not None:
            mark.synchronize()
        self._blocks = None


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
        """The blocks are gathered on the current stream."""
        self._pages.check(page_ids)
        stage = Staged(self, page_ids)
        stage.gather()
        return stage

    def to_load(self, page_ids: PageIds) -> Staged:
        """They are scattered behind what the current stream has been given."""
        self._pages.check(page_ids)
        return Staged(self, page_ids)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """uint8 [blocks, object_bytes] on the device, on the current stream."""
        ids = ids.to(self.device, non_blocking=True)
        return torch.cat(
            [view.index_select(0, ids).reshape(ids.numel(), -1) for view in self._views], dim=1
        )

    def scatter(self, ids: torch.Tensor, blocks: torch.Tensor) -> None:
        """And back, on the current stream."""
        ids = ids.to(self.device, non_blocking=True)
        start = 0
        for layer, view in zip(self._pages.layers, self._views, strict=True):
            part = blocks[:, start : start + layer.page_bytes]
            view.index_copy_(0, ids, part.reshape(ids.numel(), *view.shape[1:]))
            start += layer.page_bytes
