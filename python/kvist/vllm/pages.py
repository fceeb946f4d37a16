"""The pages of vLLM's groups, as the store reads and writes them.

    GroupPages (addresses.py)       where each block lies
    PageGroup.to_save, to_load      some of them, to be moved: a Stage
    Stage.pieces                    the scatter list for the store

Two ways, with one interface:
- InPlacePages: CPU tensors. The store copies straight from and to the pages.
- StagedPages (staging.py): any device; blocks pass through a buffer in host memory.

Owns: nothing. Borrows: the tensors, for as long as a PageGroup lives.
Threads: to_save and to_load on the thread that launches vLLM's kernels; a Stage on any one thread.
Errors: PageError, which names the layer, what was found, and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

import kvist
from kvist.vllm.addresses import GroupPages, PageError, PageIds, layer_pages
from kvist.vllm.staging import StagedPages


class Stage(Protocol):
    """Bytes of some blocks of one group on their way. They stay as long as the stage lives."""

    def pieces(self, block_count: int) -> kvist.Pieces:
        """What the store reads (a save) or fills (a load): of the first block_count blocks."""

    def skip(self, block_count: int) -> None:
        """Of a save, before it is ready: without its first blocks."""

    def ready(self) -> None:
        """Of a save: returns once the pieces hold the blocks' bytes."""

    def finish(self, block_count: int) -> None:
        """Of a load: brings the first block_count blocks into their pages; returns once they
        are there."""


class PageGroup(Protocol):
    """The pages of one group, by either way.

    object_bytes: of one block. in_place: Stage.ready and Stage.finish do nothing.
    """

    object_bytes: int
    in_place: bool

    def to_save(self, page_ids: PageIds) -> Stage:
        """These blocks, as the kernels that are launched by now leave them. Raises PageError."""

    def to_load(self, page_ids: PageIds) -> Stage:
        """Room for these blocks. Raises PageError."""


class _InPlace:
    def __init__(self, group: InPlacePages, page_ids: PageIds) -> None:
        self._group = group
        self._ids = page_ids

    def pieces(self, block_count: int) -> kvist.Pieces:
        addresses, sizes = self._group.pages.spans(self._ids[:block_count])
        return kvist.Pieces(addresses, sizes, keep=self._group)

    def skip(self, block_count: int) -> None:
        self._ids = self._ids[block_count:]

    def ready(self) -> None:
        pass

    def finish(self, block_count: int) -> None:
        pass


class InPlacePages:
    """Pages in this process' memory."""

    in_place = True

    def __init__(self, pages: GroupPages, tensors: Sequence[torch.Tensor]) -> None:
        """tensors: whose memory it is, kept alive."""
        self.pages = pages
        self.object_bytes = pages.object_bytes
        self._tensors = tuple(tensors)

    def to_save(self, page_ids: PageIds) -> Stage:
        """The CPU's kernels have run when their calls return: nothing is waited for."""
        self.pages.check(page_ids)
        return _InPlace(self, page_ids)

    def to_load(self, page_ids: PageIds) -> Stage:
        """The pages themselves."""
        self.pages.check(page_ids)
        return _InPlace(self, page_ids)


def group_pages(
    tensors: Mapping[str, torch.Tensor],
    layer_names: Sequence[str],
    block_count: int,
    page_bytes: int,
    staged: bool | None = None,
) -> PageGroup:
    """The pages of one group out of what vLLM registered.

    block_count: of the KV cache; page_bytes: of one block of one layer, without padding. staged:
    None takes CPU tensors in place and all others through host memory. Raises PageError.
    """
    missing = [name for name in layer_names if name not in tensors]
    if missing or not layer_names:
        raise PageError(f"vLLM registered no KV tensor for layers {missing or 'of the group'}")
    chosen = [tensors[name] for name in layer_names]
    devices = {str(tensor.device) for tensor in chosen}
    if len(devices) != 1:
        raise PageError(f"layer {layer_names[0]} and its group lie on {sorted(devices)}")
    pages = GroupPages(
        [
            layer_pages(name, tensor, block_count, page_bytes)
            for name, tensor in zip(layer_names, chosen)
        ]
    )
    if staged is None:
        staged = chosen[0].device.type != "cpu"
    return StagedPages(pages, chosen) if staged else InPlacePages(pages, chosen)


def check_all_known(tensors: Mapping[str, torch.Tensor], layer_names: Sequence[str]) -> None:
    """Every registered tensor is one of these layers', or the same memory as one of theirs (a layer
    that uses another's KV): what nobody saves would be missing after a load. Raises PageError."""
    known = {tensors[name].data_ptr() for name in layer_names if name in tensors}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in known:
            raise PageError(
                f"layer {name}: it has KV of its own, shape {tuple(tensor.shape)}, and is in none "
                "of the groups that are saved"
            )
