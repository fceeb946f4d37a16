"""Stores: opening, matching, polling, closing."""
from __future__ import annotations

import atexit
import os
import warnings
import weakref
from typing import Optional, Sequence

from kvist.contents import Contents
from kvist.convert import Extras, Tokens, enumeration, extra_array, key_bytes, token_array, u64
from kvist.errors import KvistError, Status, invalid, new_error, raise_for
from kvist.handle import Handle
from kvist.layout import Layout
from kvist.lease import Lease
from kvist.native import KEY_BYTES, NULL, ffi, lib, text_of
from kvist.options import Codec, Disk, Io, Options, Path, Persist, Policy, Quota
from kvist.pending import Pending, flushed, on_flushed
from kvist.records import Match, Mode, Terms

_DEFAULT_TERMS = Terms()


class Store(Contents):
    """A tiered store of KV: this process's own, or attached to the host's kvist-store.

    layout: of every block.
    attach: path of the client socket of this host's kvist-store; host and disk tier are that one's
        then, and only domain, origin and the compute costs are to be given beside it. The store
        opens, and goes on, without the service: every match is a miss meanwhile, every store ends
        with PEER_LOST, and it attaches by itself, while it is polled, within half a second of the
        service's return. Logger "kvist" warns once when it is away and tells when it is back.
    domain: whose memory is shared ("default").
    host_bytes: of the host tier; 0: none.
    directory, disk_bytes: of the disk tier, made when absent, and its quota; None: none. One
        process at a time.
    All else is kvist_store_params_t's, by its name and with its meaning (kvist.h).

    KvistError: INVALID with the field and its bound; BUSY: another process has the directory;
    REFUSED: not this user's domain, or it has another layout; and what kvist_store_open says.

    Threads: the one that opened it makes every call; others are refused with an error. A
    StoreThread lends a thread. Not for use after a fork: a child opens a store of its own.
    Close it, or use it in a with statement: then what is sealed becomes durable. One that is
    forgotten is closed at the latest when the interpreter ends.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        attach: Optional[Path] = None,
        domain: Optional[str] = None,
        host_bytes: int = 0,
        host_shared: bool = False,
        directory: Optional[Path] = None,
        disk_bytes: int = 0,
        disks: Sequence[Disk] = (),
        segment_bytes: int = 0,
        write_bytes_per_day: int = 0,
        persist: Persist = Persist.EAGER,
        codec: Codec = Codec.NONE,
        key_file: Optional[Path] = None,
        policy: Policy = Policy.LRU,
        quotas: Sequence[Quota] = (),
        compute_token_ns: float = 0,
        compute_distance_ns: float = 0,
        io: Io = Io.AUTO,
        origin: Optional[str] = None,
        history_bytes: int = 0,
    ) -> None:
        self.layout = layout
        self.handle = Handle()
        options = Options(
            attach, domain, host_bytes, host_shared, directory, disk_bytes, disks, segment_bytes,
            write_bytes_per_day, persist, codec, key_file, policy, quotas, compute_token_ns,
            compute_distance_ns, io, origin, history_bytes,
        )  # fmt: skip
        params, _kept = options.params()
        params.layout = layout.c
        out, error = ffi.new("kvist_store_t **"), new_error()
        try:
            raise_for(lib.kvist_store_open(params, out, error), error)
            self.handle.store = out[0]
        except BaseException:  # an interruption, when it was open already
            if out[0] != NULL:
                lib.kvist_store_close(out[0])
            raise
        self.handle.opened(None if attach is None else os.fsdecode(attach))
        _open_stores.add(self)

    # ---- matching ----

    def match(
        self,
        name_space: bytes,
        tokens: Tokens,
        mode: Mode = Mode.READWRITE,
        terms: Terms = _DEFAULT_TERMS,
        renew: bool = False,
        request: int = 0,
        extras: Optional[Extras] = None,
        uncounted: bool = False,
    ) -> Lease:
        """The longest stored prefix that all groups can serve, held by a new lease (of zero blocks
        where nothing is stored).

        tokens: whole blocks of them are looked for: leave off what must be computed anyway.
        terms: of the blocks that the lease stores.
        renew: found blocks get expiry and pin of these terms, where those are later.
        request: what the caller knows its request by; told of blocks that go for its sake.
        extras: 32 bytes more of what each whole block's KV depends on, as in keys().
        uncounted: the request was looked up before, by another lease or process: the statistics'
            miss_count does not count this match.

        Reads nothing from disk. An attached store waits for the service, for at most a quarter of
        a second. KvistError: INVALID: too long, or terms out of bounds; BUSY: too many leases.
        """
        handle = self.handle
        store, ids = handle.check(), token_array(tokens)
        more = extra_array(extras, len(ids) // self.layout.block_tokens)
        query, out = handle.query, handle.lease_out
        ffi.memmove(query.name_space.bytes, key_bytes("name_space", name_space), KEY_BYTES)
        query.tokens, query.token_count = ids, len(ids)
        query.mode = enumeration("mode", Mode, mode)
        _tenant = terms.fill(query.terms)
        query.renew, query.request = bool(renew), u64("request", request)
        query.extras, query.uncounted = more, bool(uncounted)
        out[0] = NULL
        try:
            status = lib.kvist_match(store, query, out, handle.match_out)
            if status == lib.KV_OK:
                lease = Lease(self, handle.add_lease(), Match.of(handle.match_out))
                out[0] = NULL  # it is the lease's now
                handle.watch()
                return lease
        finally:
            if out[0] != NULL:  # an interruption, when it was found already
                handle.give_back(out[0])
        handle.watch()
        raise _not_matched(status, len(ids) // self.layout.block_tokens, terms)

    def flush(self) -> Pending[None]:
        """Over when all that was sealed before the call is durable; KvistError: it could not be
        made so."""
        store = self.handle.check()
        return Pending(self.handle, flushed, None).asked(
            None, "flush", lib.kvist_store_flush, store, on_flushed
        )

    # ---- going on ----

    def fileno(self) -> int:
        """A descriptor that is readable when a poll has something to do."""
        return int(lib.kvist_store_fd(self.handle.check()))

    def poll(self) -> None:
        """Does what is to be done, and ends what is pending. Never waits for anything; callbacks
        of the caller's run in it."""
        self.handle.poll()

    @property
    def attached_to(self) -> Optional[str]:
        """The kvist-store's name while it is there; None: it is away, or the store is not
        attached."""
        return text_of(lib.kvist_store_attached_to(self.handle.check())) or None

    # ---- the end ----

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the process that this one was forked from."""
        return not self.handle.is_open

    def close(self) -> None:
        """Releases all leases, makes what is sealed durable, closes; a second time does nothing.
        What is pending ends with CANCELLED, flushes with what they come to. An attached store waits
        at most five seconds."""
        if self.handle.is_open:
            self.handle.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        handle: Optional[Handle] = getattr(self, "handle", None)
        if handle is not None and handle.is_open:
            handle.adopt()
            warnings.warn("a store was dropped without close()", ResourceWarning, source=self)
            handle.close()

    def __repr__(self) -> str:
        attach = self.handle.attach
        where = "" if attach is None else f" attach {attach}"
        return f"<kvist.Store{where}{' closed' if self.closed else ''}>"


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _at_exit() -> None:
    """Stores of this thread that were forgotten, before their memory goes."""
    for store in list(_open_stores):
        try:
            store.close()
        except KvistError:
            pass  # another thread's, which may be using it


atexit.register(_at_exit)


def _not_matched(status: int, block_count: int, terms: Terms) -> KvistError:
    if status == lib.KV_BUSY:
        return KvistError(Status.BUSY, "too many leases are open", "release some, then match again")
    if status != lib.KV_INVALID:
        return KvistError(Status(status), f"the match: {text_of(lib.kv_status_name(status))}")
    return invalid(
        f"the query has {block_count} blocks (at most {lib.KVIST_CHAIN_BLOCKS_MAX}; of an attached "
        f"store 2^17, 2^16 with extras, and 2^20 tokens), or its terms are out of bounds: {terms}",
        "shorten it; give a pin that is not beyond the expiry, and a tenant of at most "
        f"{lib.KVIST_TENANT_BYTES_MAX} characters",
    )
