"""The part of a store's calls that is about what it holds: how long, for whom, why not."""
from __future__ import annotations

import logging
from typing import Any, Callable, Iterator, List, Optional, Tuple, Union

from kvist.callbacks import callback, raise_interruption
from kvist.convert import (
    Extras,
    Tokens,
    c_key,
    c_string,
    extra_array,
    key_bytes,
    key_of,
    split_keys,
    token_array,
    u32,
    u64,
)
from kvist.errors import Reasons, Status, invalid, new_error, raise_for, raise_status
from kvist.handle import Handle
from kvist.identity import Dtype, namespace_params
from kvist.layout import Layout
from kvist.native import KEY_BYTES, NULL, ffi, lib
from kvist.options import Quota, fill_quota
from kvist.pending import DROPPED, Pending, dropped, on_dropped, on_progress, on_verified, verified
from kvist.records import Terms, Tier
from kvist.stored import Block, Change, Context, Statistics, TenantUse, Verification, Why

logger = logging.getLogger("kvist")
Listener = Callable[[Change], Any]
_READING = ("the index is still being read after the start", "poll, and try again soon")
_KEPT: Reasons = {
    Status.MISSING: ("no block with this key is stored", "give the key of a stored block"),
    Status.INVALID: (
        "the pin is in the past, or beyond the expiry of this block or of one that goes on from it",
        "give a later pin, or a later expiry, or none",
    ),
    Status.NO_SPACE: (
        "pins would take more than nine tenths of the last tier, or of its tenant's quota",
        "unpin something, or give more room",
    ),
    Status.BUSY: _READING,
}
_SHOWN: Reasons = {
    Status.MISSING: ("no block with this key is stored", "give the key of a stored block"),
    Status.IO: ("its record cannot be read now", "try again; look at the disk and the log"),
    Status.BUSY: _READING,
}
_WHY: Reasons = {
    Status.INVALID: (
        f"the query has more than {lib.KVIST_CHAIN_BLOCKS_MAX} blocks, or 2^20 tokens of an "
        "attached store",
        "shorten it",
    ),
}
_VERIFIED: Reasons = {
    Status.BUSY: ("a verification is under way", "wait for its end"),
}


class Contents:
    """What kvist.Store inherits; of no use alone. Threads: the store's."""

    handle: Handle
    layout: Layout

    # ---- until when ----

    def keep(self, key: bytes, terms: Terms) -> None:
        """Gives a block's whole chain, from the root to it, expiry and pin of these terms, as they
        are (also earlier, also none); priority and tenant are not changed. Survives a restart once
        a later flush is done.

        KvistError: MISSING: not stored; INVALID: a pin in the past or beyond the expiry; NO_SPACE:
        pins would take more than nine tenths of the last tier; BUSY: the index is still read.
        """
        made = ffi.new("kvist_terms_t *")
        _tenant = terms.fill(made)
        store = self.handle.check()
        status = lib.kvist_store_keep(store, c_key("key", key), made)
        raise_status("keep", status, _KEPT)

    def drop(self, key: bytes, erase: bool = False) -> Pending[int]:
        """Drops a block and all its descendants, of all groups, pinned or not, for good; the result
        is how many objects went. Durable when it is over.

        erase: their bytes are overwritten, in memory and on disk.
        KvistError, at once or as the result: MISSING: not stored; BUSY: a lease holds one that is
        to be erased, or a disk is missing and could bring it back.
        """
        store, of = self.handle.check(), c_key("key", key)
        return Pending(self.handle, dropped, None).asked(
            DROPPED, "drop", lib.kvist_store_drop, store, of, bool(erase), on_dropped
        )

    def drop_tenant(self, tenant: str) -> Pending[int]:
        """Drops what is stored of the tenant ("": nobody's) and what goes on from that, and erases
        it; where it is encrypted the tenant's key is destroyed. Waits for leases. Of an attached
        store: what its device tier holds; the rest is asked of kvist-store itself.

        KvistError: MISSING: nothing is known of it; BUSY: a disk is missing."""
        store, name = self.handle.check(), c_string("tenant", tenant)
        return Pending(self.handle, dropped, None).asked(
            DROPPED, "drop_tenant", lib.kvist_store_drop_tenant, store, name, on_dropped
        )

    def verify(
        self, progress: Optional[Callable[[Verification], Any]] = None
    ) -> Pending[Verification]:
        """Reads everything in host memory and on disk, and forgets what is damaged.

        progress: called every now and then, after a poll. KvistError: BUSY: one is under way;
        CANCELLED: the store was closed."""
        store = self.handle.check()
        return Pending(self.handle, verified, None, progress).asked(
            _VERIFIED, "verify", lib.kvist_store_verify, store, on_progress, on_verified
        )

    def set_disk_bytes(self, disk_bytes: int) -> None:
        """The disk tier's quota, from now on. KvistError: INVALID with the bound; REFUSED: the
        store is attached, and this is neither root nor the user of kvist-store."""
        error, count = new_error(), u64("disk_bytes", disk_bytes)
        store = self.handle.check()
        raise_for(lib.kvist_store_set_disk_bytes(store, count, error), error)

    def set_quota(self, quota: Quota) -> None:
        """A tenant's quota, until the store is closed. KvistError: INVALID: the name, or less than
        a block; REFUSED: the store is attached: kvist-store has the quotas."""
        error, made = new_error(), ffi.new("kvist_quota_t *")
        _name = fill_quota(quota, made)
        store = self.handle.check()
        raise_for(lib.kvist_store_set_quota(store, made, error), error)

    # ---- looking in ----

    def statistics(self) -> Statistics:
        """The figures now."""
        made = ffi.new("kvist_stats_t *")
        lib.kvist_store_stats(self.handle.check(), made)
        return Statistics.of(made)

    def tenants(self) -> List[TenantUse]:
        """Every tenant that has anything, stored anything or has a quota."""
        found: List[TenantUse] = []
        lib.kvist_store_tenants(self.handle.check(), _on_tenant, ffi.new_handle(found))
        raise_interruption()
        return found

    def find(self, digits: str) -> bytes:
        """The key of the one stored block whose key begins with these hexadecimal digits, 8 to 64
        of them. KvistError: INVALID: they are none, or more than one begins so; MISSING: none
        does; BUSY: the index is still being read."""
        key, error = ffi.new("kvist_key_t *"), new_error()
        text, store = c_string("digits", digits), self.handle.check()
        raise_for(lib.kvist_store_find(store, text, key, error), error)
        return key_of(key)

    def show(self, key: bytes) -> Block:
        """One stored block; may read its record. KvistError (MISSING): not stored."""
        made = ffi.new("kvist_object_t *")
        status = lib.kvist_store_show(self.handle.check(), c_key("key", key), made)
        raise_status("show", status, _SHOWN)
        return Block.of(made)

    def list(self, count_max: int = 1000) -> List[Context]:
        """Stored contexts, newest use first. While the index is still being read
        (statistics().index_loading) not all."""
        found: List[Context] = []
        count = u64("count_max", count_max)
        lib.kvist_store_list(self.handle.check(), count, _on_context, ffi.new_handle(found))
        raise_interruption()
        return found

    def tokens(self, key: bytes) -> List[int]:
        """The token ids of a stored block; may read its record. KvistError: MISSING: not stored;
        IO: it cannot be read now."""
        return self._tokens(key)[0]

    def extra(self, key: bytes) -> bytes:
        """The extra key of a stored block, as tokens(): 32 bytes; zeros: it has none."""
        return self._tokens(key)[1]

    def _tokens(self, key: bytes) -> Tuple[List[int], bytes]:
        made, extra = ffi.new("uint32_t[]", self.layout.block_tokens), ffi.new("kvist_key_t *")
        status = lib.kvist_store_tokens(self.handle.check(), c_key("key", key), made, extra)
        raise_status("the tokens of a block", status, _SHOWN)
        return [int(token) for token in made], key_of(extra)

    # ---- why ----

    def describe(
        self,
        model: bytes,
        dtype: Dtype = Dtype.BF16,
        salt: Union[bytes, str] = b"",
        adapter: str = "",
    ) -> None:
        """What a namespace of this store's blocks is made of, so that why() can tell what two of
        them differ in; until the store is closed, for 1,024 of them."""
        params, _kept = namespace_params(model, self.layout, dtype, salt, adapter)
        lib.kvist_store_describe(self.handle.check(), params)

    def why(
        self,
        name_space: bytes,
        tokens: Tokens,
        all_name_spaces: bool = False,
        extras: Optional[Extras] = None,
    ) -> Why:
        """What a match would find now, and why not more, as exactly as can be known. Nothing is
        leased or changed; a few records are read: it may take a while.

        all_name_spaces: also look under all others: for whoever runs the store alone."""
        query, made = ffi.new("kvist_why_query_t *"), ffi.new("kvist_why_t *")
        ids = token_array(tokens)
        ffi.memmove(query.name_space.bytes, key_bytes("name_space", name_space), KEY_BYTES)
        query.tokens, query.token_count = ids, len(ids)
        query.all_name_spaces = bool(all_name_spaces)
        more = extra_array(extras, len(ids) // self.layout.block_tokens)
        query.extras = more
        status = lib.kvist_why(self.handle.check(), query, made)
        raise_status("why", status, _WHY)
        return Why.of(made)

    # ---- what the tiers hold, as it changes ----

    def listen(self, listener: Optional[Listener]) -> None:
        """Calls listener(change) for every change from now on, in order for each tier, after the
        poll that told of it; it may call the store. What it raises is logged. What is held already
        is not told: held(). None: nobody listens any more. Of an attached store: about its device
        tier alone."""
        store = self.handle.check()
        if listener is None:
            lib.kvist_store_listen(store, NULL, NULL)
            self.handle.listening = None
        else:
            listening = Listening(listener)
            lib.kvist_store_listen(store, _on_change, listening.into)
            self.handle.listening = listening  # and one before it is C's no more

    def held(self, object_count_max: int = 4096) -> Iterator[List[Change]]:
        """All that the tiers hold now, a part at a time: object_count_max objects are looked at for
        each. Whoever listens meanwhile and takes parts and changes in the order in which they come
        has the whole at the end; changes that came before a part are told before it."""
        count = u32("object_count_max", object_count_max)
        if count == 0:
            raise invalid("object_count_max is 0: it must be 1 or more")
        cursor, more = ffi.new("uint32_t *"), True
        while more:
            part: List[Change] = []
            into = ffi.new_handle(part)
            more = bool(
                lib.kvist_store_held(self.handle.check(), cursor, count, _on_change, into)
            )
            raise_interruption()
            if self.handle.listening is not None:
                self.handle.listening.tell()
            yield part


class Listening:
    """A listener, and the changes that C has told and it has not been told yet."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._changes: List[Change] = []
        self.into = ffi.new_handle(self._changes)

    def tell(self) -> None:
        """Tells the listener, which may call the store meanwhile."""
        while self._changes:
            change = self._changes.pop(0)
            try:
                self._listener(change)
            except Exception:
                logger.exception("a listener of the caller's failed; do: correct it")


# ---- what libkvist calls, within the call that asked or within a poll ----


@callback("void(*)(void *, const kvist_tenant_t *)")
def _on_tenant(into: Any, tenant: Any) -> None:
    ffi.from_handle(into).append(TenantUse.of(tenant))


@callback("void(*)(void *, const kvist_context_t *)")
def _on_context(into: Any, entry: Any) -> None:
    ffi.from_handle(into).append(Context.of(entry))


@callback("kvist_changed_t")
def _on_change(into: Any, change: Any) -> None:
    stored = bool(change.stored)
    ffi.from_handle(into).append(
        Change(
            tier=Tier(change.tier),
            stored=stored,
            group=change.group,
            keys=tuple(split_keys(change.keys, change.block_count)),
            name_space=key_of(change.name_space) if stored else b"",
            first_block=change.first_block if stored else 0,
            parent=key_of(change.parent) if stored else b"",
        )
    )
