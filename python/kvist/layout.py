"""Layouts: what a block's bytes are."""
from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Sequence

from kvist.convert import enumeration, u32
from kvist.errors import invalid, new_error, raise_for
from kvist.native import ffi, lib


class PartKind(enum.IntEnum):
    """What the elements of a part are."""

    K = lib.KVIST_PART_K
    V = lib.KVIST_PART_V
    LATENT = lib.KVIST_PART_LATENT
    ROPE = lib.KVIST_PART_ROPE
    STATE = lib.KVIST_PART_STATE
    OPAQUE = lib.KVIST_PART_OPAQUE


class GroupKind(enum.IntEnum):
    """Which objects of a group a hit at n tokens needs."""

    FULL = lib.KVIST_GROUP_FULL  # those of all blocks before n
    WINDOW = lib.KVIST_GROUP_WINDOW  # those that the last window_tokens - 1 tokens lie in
    STATE = lib.KVIST_GROUP_STATE  # that of the block that ends at n


@dataclass(frozen=True)
class Part:
    """Of each layer of a group: `heads` units, one after the other. A unit is the smallest part
    that can be read and verified alone: [block_tokens][dims] elements, or [dims] for state and
    opaque."""

    kind: PartKind
    heads: int
    dims: int
    element_bytes: int


@dataclass(frozen=True)
class Group:
    """Layers whose blocks live and die alike. An object (one block of one group) is, for each layer
    in order, for each part in order, for each head in order, one unit, without gaps.

    layers: the model's numbers of them, in order (0 to 1,023).
    window_tokens: of a windowed group; else 0.
    """

    kind: GroupKind
    layers: Sequence[int]
    parts: Sequence[Part]
    window_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "parts", tuple(self.parts))


@dataclass(frozen=True)
class Layout:
    """Of every block of a store. The first group is full: it is the spine that chains are made of.
    Checked when it is made: KvistError names the field and its bound.

    block_tokens: 1 to 1,024.
    groups: 1 to 4.
    """

    block_tokens: int
    groups: Sequence[Group]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "_c", _made(self))
        self.check()

    @property
    def c(self) -> Any:
        """The kvist_layout_t, alive as long as the layout."""
        return self._c  # type: ignore[attr-defined]

    def check(self) -> None:
        """KvistError (INVALID) with the field and its bound."""
        error = new_error()
        raise_for(lib.kvist_layout_check(self.c, error), error)

    def object_bytes(self, group: int = 0) -> int:
        """Bytes of one block of the group."""
        if not 0 <= group < len(self.groups):
            raise invalid(f"group is {group}: it must be 0 to {len(self.groups) - 1}")
        return int(lib.kvist_layout_object_bytes(self.c, group))

    def __getstate__(self) -> Any:
        return {"block_tokens": self.block_tokens, "groups": self.groups}

    def __setstate__(self, state: Any) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()


def _made(layout: Layout) -> Any:
    made = ffi.new("kvist_layout_t *")
    made.block_tokens = u32("layout.block_tokens", layout.block_tokens)
    made.group_count = len(layout.groups)
    if not 1 <= len(layout.groups) <= lib.KVIST_GROUPS_MAX:
        raise invalid(
            f"layout has {len(layout.groups)} groups: 1 to {lib.KVIST_GROUPS_MAX} are possible"
        )
    for group, to in zip(layout.groups, made.groups):
        _fill(group, to)
    return made


def _fill(group: Group, to: Any) -> None:
    to.kind = enumeration("layout.groups.kind", GroupKind, group.kind)
    to.window_tokens = u32("layout.groups.window_tokens", group.window_tokens)
    layers = group.layers
    if any(not 0 <= layer < lib.KVIST_LAYERS_MAX for layer in layers) or any(
        layer >= after for layer, after in zip(layers, layers[1:])
    ):
        raise invalid(
            f"layout.groups.layers are {list(layers)}: they must be numbers from 0 to "
            f"{lib.KVIST_LAYERS_MAX - 1}, in order, each once"
        )
    for layer in layers:
        to.layers[layer // 64] |= 1 << layer % 64
    if len(group.parts) > lib.KVIST_PARTS_MAX:
        raise invalid(
            f"layout.groups has {len(group.parts)} parts: at most {lib.KVIST_PARTS_MAX} are "
            "possible"
        )
    to.part_count = len(group.parts)
    for part, into in zip(group.parts, to.parts):
        into.kind = enumeration("layout.groups.parts.kind", PartKind, part.kind)
        into.heads = u32("layout.groups.parts.heads", part.heads)
        into.dims = u32("layout.groups.parts.dims", part.dims)
        into.element_bytes = u32("layout.groups.parts.element_bytes", part.element_bytes)
