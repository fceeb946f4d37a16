"""Leases: a sequence's hold on its blocks, and the bytes behind it."""
from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Optional

from kvist.convert import Extras, Tokens, c_string, extra_array, token_array
from kvist.errors import KvistError, Status, invalid
from kvist.native import NULL, ffi, lib, text_of
from kvist.pending import Pending, loaded, on_loaded, on_stored, stored
from kvist.pieces import Pieces, pieces_of
from kvist.records import Loaded, Match, Run, Tier

if TYPE_CHECKING:
    from kvist.store import Store


class Lease:
    """What Store.match returns. While it lives none of its blocks is evicted, moved or reused.

    match: what was found.

    Release it, or use it in a with statement; one that is dropped without is released by its
    store's next call, with a ResourceWarning.
    Threads: its store's.
    """

    __slots__ = ("match", "_store", "_handle", "_number", "__weakref__")

    match: Match

    def __init__(self, store: Store, number: int, match: Match) -> None:
        self.match = match
        self._store = store  # which is not to be collected before its leases
        self._handle = store.handle
        self._number = number

    # ---- bytes ----

    def load(
        self,
        pieces: Any,
        first_block: int = 0,
        block_count: Optional[int] = None,
        group: int = 0,
        first_layer: int = 0,
        layer_count: int = 0,
        first_head: int = 0,
        head_count: int = 0,
    ) -> Pending[Loaded]:
        """Copies found blocks into the caller's memory, verified, from whatever tier they are in.

        pieces: Pieces, or what Pieces.of takes; together just the selection's bytes: for each block
        in order, the selected units of the group's object in their order. Kept alive until the end.
        block_count: None: all that are found from first_block on.
        layer_count, head_count: 0: all. layers: of the group's, by number in the group; heads: of
        each part. A selection of one layer, or of a range of heads, is read alone.

        Several loads of a lease may be under way. Cancelled by release.
        KvistError (INVALID): the selection or the pieces' size, with what they should be.
        """
        made = self._handle.lease(self._number)
        pieces = pieces_of(pieces)
        if block_count is None:
            block_count = max(self.sealed_count - first_block, 0)
        selection = self._handle.selection
        try:
            selection.group, selection.first_block = group, first_block
            selection.block_count = block_count
            selection.first_layer, selection.layer_count = first_layer, layer_count
            selection.first_head, selection.head_count = first_head, head_count
        except (OverflowError, TypeError) as error:
            raise invalid(f"the selection: {error}", "give numbers of 0 and more") from error
        if not pieces.writable:
            raise invalid("the pieces are read-only: nothing can be loaded into them")
        pending = Pending(self._handle, loaded, (self, pieces))
        status = pending.ask(
            lib.kvist_lease_load, made, selection, pieces.c, pieces.count, on_loaded
        )
        if status != lib.KV_OK:
            raise self._not_loaded(status, pieces, selection)
        return pending

    def store(
        self,
        pieces: Any,
        first_block: int = 0,
        block_count: Optional[int] = None,
        group: int = 0,
        tokens: Optional[Tokens] = None,
        extras: Optional[Extras] = None,
        arithmetic: str = "",
        timeout_s: Optional[float] = 60,
    ) -> Pending[int]:
        """Copies whole objects in, as the lease's next blocks; the result is how many.

        pieces: as for load, read only.
        first_block: of the first group: after those that are sealed or asked to be stored.
        block_count: None: as many as the pieces have bytes for.
        tokens: the blocks' ids, copied; None where the blocks are in the query.
        extras: of these tokens, as in keys(); None: of those in the query.
        arithmetic: which kernels made them, at most 47 bytes.
        timeout_s: to wait for room; None: as long as it takes.

        Each block is published when its bytes are in, in order; one that is stored already stays as
        it is and counts. Stored is in host memory; durable after Store.flush, or behind. Stores of
        a lease are carried out in the order of their calls. Leases of mode read and bypass store
        nothing: the result is 0.
        The result's KvistError has block_count: the first so many blocks are stored. BUSY: no room
        before the deadline; NO_SPACE: none to be had; MISSING: what they go on from is gone;
        PEER_LOST: the attached kvist-store is away; CANCELLED: released first.
        """
        made = self._handle.lease(self._number)
        pieces = pieces_of(pieces)
        if block_count is None:
            block_count = self._blocks_of(pieces, group)
        ids = NULL if tokens is None else token_array(tokens)
        if tokens is None and extras is not None:
            raise invalid("extras are given without tokens: they are of these", "give both or none")
        more = extra_array(extras, block_count)
        name = c_string("arithmetic", arithmetic)
        put = self._handle.put
        try:
            put.group, put.first_block, put.block_count = group, first_block, block_count
        except (OverflowError, TypeError) as error:
            raise invalid(f"what to store: {error}", "give numbers of 0 and more") from error
        if ids != NULL and len(ids) != block_count * self._store.layout.block_tokens:
            raise invalid(
                f"there are {len(ids)} tokens: {block_count} blocks have "
                f"{block_count * self._store.layout.block_tokens}"
            )
        put.tokens, put.extras, put.arithmetic = ids, more, name
        put.deadline_ns = _deadline_ns(timeout_s)
        pending = Pending(self._handle, stored, (self, pieces))
        status = pending.ask(
            lib.kvist_lease_store, made, put, pieces.c, pieces.count, on_stored
        )
        if status != lib.KV_OK:
            raise self._not_stored(status, pieces, put, len(name) - 1)
        return pending

    # ---- looking ----

    @property
    def sealed_count(self) -> int:
        """Blocks that are sealed: found ones and those stored through this lease."""
        return int(lib.kvist_lease_sealed_count(self._handle.lease(self._number)))

    def runs(self) -> list[Run]:
        """The runs of what was found, in order."""
        made = self._handle.lease(self._number)
        count = lib.kvist_lease_runs(made, NULL, 0)
        runs = ffi.new("kvist_run_t[]", count)
        count = min(count, lib.kvist_lease_runs(made, runs, count))
        return [
            Run(run.first_block, run.block_count, Tier(run.tier), run.bytes, run.cost_ns)
            for run in runs[0:count]
        ]

    def arithmetic(self, block: int) -> str:
        """Which kernels made a sealed block."""
        made, count = self._handle.lease(self._number), self.sealed_count
        if not 0 <= block < count:
            raise invalid(f"block is {block}: the lease has {count} sealed ones, from 0 on")
        return text_of(lib.kvist_lease_arithmetic(made, block))

    # ---- the end ----

    @property
    def released(self) -> bool:
        """Whether it was released, or its store closed."""
        return self._number not in self._handle.leases

    def release(self) -> None:
        """Gives everything back; a second time does nothing. What is under way is cancelled: it
        ends with CANCELLED in a later poll, and holds its memory until then."""
        self._handle.release(self._number)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()

    def __del__(self) -> None:
        # On whatever thread this is: the store's own releases it.
        if self._number in self._handle.leases:
            self._handle.orphan(self._number)
            warnings.warn(
                f"a lease of {self.match.block_count} blocks was dropped without release()",
                ResourceWarning,
                source=self,
            )

    def __repr__(self) -> str:
        state = "released" if self.released else "held"
        return f"<kvist.Lease blocks {self.match.block_count} miss {self.match.miss.name} {state}>"

    # ---- why not ----

    def _blocks_of(self, pieces: Pieces, group: int) -> int:
        object_bytes = self._store.layout.object_bytes(group)
        if pieces.bytes % object_bytes:
            raise invalid(
                f"the pieces have {pieces.bytes} bytes: blocks of group {group} have "
                f"{object_bytes} each"
            )
        return pieces.bytes // object_bytes

    def _not_loaded(self, status: int, pieces: Pieces, selection: Any) -> KvistError:
        first, count, sealed = selection.first_block, selection.block_count, self.sealed_count
        layout, remedy = self._store.layout, None
        bytes_needed = lib.kvist_selection_bytes(layout.c, selection)
        if status != lib.KV_INVALID:
            text = f"the load was not begun: {text_of(lib.kv_status_name(status))}"
        elif selection.group >= len(layout.groups):
            text = f"group is {selection.group}: it must be 0 to {len(layout.groups) - 1}"
        elif first + count > sealed:
            text = f"blocks {first} to {first + count - 1} are asked for: {sealed} were found"
            remedy = "load of what was found (match.block_count), or match again"
        elif bytes_needed == 0 and count > 0:
            text = (
                f"layers from {selection.first_layer} on, {selection.layer_count} of them, and "
                f"heads from {selection.first_head} on, {selection.head_count} of them, are not "
                f"all in group {selection.group} of the layout"
            )
        elif bytes_needed != pieces.bytes:
            text = f"the pieces have {pieces.bytes} bytes: the selection has {bytes_needed}"
            remedy = "give memory of just that size, or select what fits it"
        else:
            text = f"these blocks of group {selection.group} are not needed for a hit here"
            remedy = "load the last blocks before the hit's end, as the group's kind says"
        return KvistError(Status(status), text, remedy)

    def _not_stored(self, status: int, pieces: Pieces, put: Any, text_bytes: int) -> KvistError:
        layout, remedy = self._store.layout, None
        first, count = put.first_block, put.block_count
        if status != lib.KV_INVALID:
            cause = f"the store was not begun: {text_of(lib.kv_status_name(status))}"
        elif put.group >= len(layout.groups):
            cause = f"group is {put.group}: it must be 0 to {len(layout.groups) - 1}"
        elif text_bytes > lib.KVIST_ARITHMETIC_BYTES_MAX:
            cause = f"arithmetic has {text_bytes} bytes: at most {lib.KVIST_ARITHMETIC_BYTES_MAX}"
        elif count * layout.object_bytes(put.group) != pieces.bytes:
            cause = (
                f"the pieces have {pieces.bytes} bytes: {count} blocks of group {put.group} have "
                f"{count * layout.object_bytes(put.group)}"
            )
            remedy = "give memory of just that size"
        else:
            cause = (
                f"blocks {first} to {first + count - 1} are not the lease's next ones, or beyond "
                "its query without tokens"
            )
            remedy = "store from block sealed_count on, after what is under way, without a gap"
        return KvistError(Status(status), cause, remedy)


def _deadline_ns(timeout_s: Optional[float]) -> int:
    if timeout_s is None:
        return (1 << 64) - 1
    if not 0 <= timeout_s < 1e9:
        raise invalid(f"timeout_s is {timeout_s}: it must be 0 to 10^9, or None")
    return time.monotonic_ns() + int(timeout_s * 1e9)
