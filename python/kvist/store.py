"""Stores: opening, matching, polling, closing."""
from __future__ import annotations

import atexit
import collections
import enum
import logging
import os
import threading
import warnings
import weakref
from dataclasses import dataclass
from typing import Any, Callable, Optional, Sequence, Union

from kvist.errors import KvistError, Status, invalid, new_error, raise_for
from kvist.identity import Tokens, key_bytes, no_extras, token_array
from kvist.layout import Layout
from kvist.lease import Lease
from kvist.native import KEY_BYTES, NULL, c_path, c_string, ffi, lib, text_of
from kvist.pending import Pending, flushed, on_flushed
from kvist.records import Match, Mode, Terms, u64

logger = logging.getLogger("kvist")
Path = Union[str, "os.PathLike[str]"]


class Persist(enum.IntEnum):
    """When blocks go to the disk."""

    EAGER = lib.KVIST_PERSIST_EAGER  # written behind, as sealed
    SPILL = lib.KVIST_PERSIST_SPILL  # when evicted from host memory


class Codec(enum.IntEnum):
    """Lossless encodings of units on disk. BF16 makes other elements no smaller."""

    NONE = lib.KVIST_CODEC_NONE
    LZ4 = lib.KVIST_CODEC_LZ4
    BF16 = lib.KVIST_CODEC_BF16


class Io(enum.IntEnum):
    """How the disk is read and written; auto: io_uring, or threads where it is forbidden."""

    AUTO = lib.KVIST_IO_AUTO
    URING = lib.KVIST_IO_URING
    THREADS = lib.KVIST_IO_THREADS


class Policy(enum.IntEnum):
    """Which blocks leave memory first, within a class (kvist.h)."""

    LRU = lib.KVIST_POLICY_LRU
    S3_FIFO = lib.KVIST_POLICY_S3_FIFO
    GDSF = lib.KVIST_POLICY_GDSF
    FORECAST = lib.KVIST_POLICY_FORECAST


@dataclass(frozen=True)
class Quota:
    """What a tenant may have of host memory and disk; 0: as much as there is."""

    tenant: str
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True)
class Disk:
    """A further disk of the disk tier: a folder of this store alone, and its quota."""

    folder: Path
    bytes: int


class Store:
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
        self._store: Any = NULL  # for a constructor that fails
        self._owner = threading.get_ident()
        self.layout = layout
        params = ffi.new("kvist_store_params_t *")
        strings = [c_path(attach), c_string(domain), c_path(directory), c_path(key_file)]
        strings.append(c_string(origin))
        params.layout = layout.c
        params.attach, params.domain, params.directory, params.key_file, params.origin = strings
        for field, value in (
            ("host_bytes", host_bytes),
            ("disk_bytes", disk_bytes),
            ("segment_bytes", segment_bytes),
            ("write_bytes_per_day", write_bytes_per_day),
            ("history_bytes", history_bytes),
        ):
            setattr(params, field, u64(field, value))
        params.host_shared = host_shared
        params.persist, params.codec = Persist(persist), Codec(codec)
        params.policy, params.io = Policy(policy), Io(io)
        params.compute_token_ns, params.compute_distance_ns = compute_token_ns, compute_distance_ns
        further, folders = _disks_of(disks)
        params.disks, params.disk_count = further, len(disks)
        of_tenants, names = _quotas_of(quotas)
        params.quotas, params.quota_count = of_tenants, len(quotas)

        self.leases: dict[int, Any] = {}  # open ones: kvist_lease_t * by number
        self.in_flight: dict[int, Pending[Any]] = {}
        self.ended: collections.deque[tuple[int, tuple[Any, ...]]] = collections.deque()
        self._orphans: collections.deque[int] = collections.deque()
        self._lease_number = 0
        self._at_close: list[Callable[[], None]] = []
        self._wake: Any = None  # called when another thread has left something to be done
        # Written for each call: the calls copy what they are given.
        self.selection = ffi.new("kvist_selection_t *")
        self.put = ffi.new("kvist_put_t *")
        self._query = ffi.new("kvist_query_t *")
        self._lease_out = ffi.new("kvist_lease_t **")
        self._match_out = ffi.new("kvist_match_t *")

        out, error = ffi.new("kvist_store_t **"), new_error()
        raise_for(lib.kvist_store_open(params, out, error), error)
        del folders, names
        self._store = out[0]
        self._attach = None if attach is None else os.fspath(attach)
        self._there = True  # what was last said of the service
        _open_stores.add(self)
        self._watch()

    # ---- matching ----

    def match(
        self,
        name_space: bytes,
        tokens: Tokens,
        mode: Mode = Mode.READWRITE,
        terms: Terms = Terms(),
        renew: bool = False,
        request: int = 0,
        extras: Optional[Sequence[bytes]] = None,
    ) -> Lease:
        """The longest stored prefix that all groups can serve, held by a new lease (of zero blocks
        where nothing is stored).

        tokens: whole blocks of them are looked for: leave off what must be computed anyway.
        terms: of the blocks that the lease stores.
        renew: found blocks get expiry and pin of these terms, where those are later.
        request: what the caller knows its request by; told of blocks that go for its sake.

        Reads nothing from disk. An attached store waits for the service, for at most a quarter of
        a second. KvistError: INVALID: too long, or terms out of bounds; BUSY: too many leases.
        """
        self.check()
        ids = token_array(tokens)
        query = self._query
        ffi.memmove(query.name_space.bytes, key_bytes("name_space", name_space), KEY_BYTES)
        query.tokens, query.token_count = ids, len(ids)
        query.mode = mode
        tenant = terms.fill(query.terms)
        query.renew, query.request = renew, request
        no_extras(extras)
        status = lib.kvist_match(self._store, query, self._lease_out, self._match_out)
        del tenant
        self._watch()
        if status != lib.KV_OK:
            raise _not_matched(status, len(ids) // self.layout.block_tokens, terms)
        self._lease_number += 1
        self.leases[self._lease_number] = self._lease_out[0]
        return Lease(self, self._lease_number, Match.of(self._match_out))

    def flush(self) -> Pending[None]:
        """Over when all that was sealed before the call is durable; KvistError: it could not be
        made so."""
        self.check()
        pending = Pending(self, flushed, None)
        lib.kvist_store_flush(self._store, on_flushed, pending.context)
        return pending

    # ---- going on ----

    def fileno(self) -> int:
        """A descriptor that is readable when a poll has something to do."""
        self.check()
        return int(lib.kvist_store_fd(self._store))

    def poll(self) -> None:
        """Does what is to be done, and ends what is pending. Never waits for anything; callbacks
        of the caller's run in it."""
        self.check()
        lib.kvist_store_poll(self._store)
        self._watch()
        self._take_ended()

    @property
    def attached_to(self) -> Optional[str]:
        """The kvist-store's name while it is there; None: it is away, or the store is not
        attached."""
        self.check()
        return text_of(lib.kvist_store_attached_to(self._store)) or None

    # ---- the end ----

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the process that this one was forked from."""
        return bool(self._store == NULL)

    def close(self) -> None:
        """Releases all leases, makes what is sealed durable, closes; a second time does nothing.
        What is pending ends with CANCELLED, flushes with what they come to. An attached store waits
        at most five seconds."""
        if self.closed:
            return
        self.check()
        for function in self._at_close:
            function()
        self._at_close.clear()
        store, self._store = self._store, NULL
        _open_stores.discard(self)
        for made in self.leases.values():
            lib.kvist_lease_release(made)
        self.leases.clear()
        lib.kvist_store_close(store)
        self._take_ended()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._store != NULL:
            # Nobody has it any more, so no other thread can be in a call of it.
            self._owner = threading.get_ident()
            warnings.warn("a store was dropped without close()", ResourceWarning, source=self)
            self.close()

    def __repr__(self) -> str:
        where = f" attach {self._attach}" if self._store != NULL and self._attach else ""
        return f"<kvist.Store{where}{' closed' if self.closed else ''}>"

    # ---- for the package ----

    def check(self) -> None:
        """That this thread may call, and releases what other threads left."""
        if threading.get_ident() != self._owner or self._store == NULL:
            self._refuse()
        while self._orphans:
            made = self.leases.pop(self._orphans.popleft(), None)
            if made is not None:
                lib.kvist_lease_release(made)

    def orphan(self, number: int) -> None:
        """A lease that nobody has any more; any thread."""
        self._orphans.append(number)
        if self._wake is not None:
            self._wake()

    def at_close(self, function: Callable[[], None]) -> None:
        """Calls it before the store's descriptor is closed."""
        self._at_close.append(function)

    def set_wake(self, wake: Any) -> None:
        """Whom to tell that orphans wait for the store's next call."""
        self._wake = wake

    def _refuse(self) -> None:
        if self._store == NULL:
            raise invalid("the store is closed", "open another one")
        raise invalid(
            f"this is thread {threading.current_thread().name}: the store belongs to the one that "
            "opened it",
            "call it there, or open it with a StoreThread and submit what is to be done",
        )

    def _take_ended(self) -> None:
        while self.ended:
            number, told = self.ended.popleft()
            self.in_flight.pop(number).end(told)

    def _watch(self) -> None:
        """Warns once when the service is away, and says when it is back."""
        if self._attach is None:
            return
        there = lib.kvist_store_attached_to(self._store) != NULL
        if there == self._there:
            return
        self._there = there
        if there:
            logger.info(
                "kvist-store is back at %s: the store is attached to it", self._attach
            )
        else:
            logger.warning(
                "no kvist-store answers at %s: until it does nothing is found there and nothing "
                "stored; do: start kvist-store, or correct the path; it is tried again meanwhile",
                self._attach,
            )

    def forget(self) -> None:
        """After a fork, in the child: the store is the parent's."""
        self._store = NULL
        self.leases.clear()


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_open_stores):
        store.forget()
    _open_stores.clear()


def _at_exit() -> None:
    """Stores of this thread that were forgotten."""
    for store in list(_open_stores):
        try:
            store.close()
        except KvistError:
            pass  # another thread's, which may be using it


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def _disks_of(disks: Sequence[Disk]) -> tuple[Any, list[Any]]:
    made = ffi.new("kvist_disk_params_t[]", len(disks))
    folders = [c_path(disk.folder) for disk in disks]
    for to, disk, folder in zip(made, disks, folders):
        to.folder, to.bytes = folder, u64("disks.bytes", disk.bytes)
    return made, folders


def _quotas_of(quotas: Sequence[Quota]) -> tuple[Any, list[Any]]:
    made = ffi.new("kvist_quota_t[]", len(quotas))
    names = [c_string(quota.tenant) for quota in quotas]
    for to, quota, name in zip(made, quotas, names):
        to.tenant = name
        to.host_bytes = u64("quotas.host_bytes", quota.host_bytes)
        to.disk_bytes = u64("quotas.disk_bytes", quota.disk_bytes)
    return made, names


def _not_matched(status: int, block_count: int, terms: Terms) -> KvistError:
    if status == lib.KV_BUSY:
        return KvistError(Status.BUSY, "too many leases are open", "release some, then match again")
    if status != lib.KV_INVALID:
        return KvistError(Status(status), f"the match: {text_of(lib.kv_status_name(status))}")
    return invalid(
        f"the query has {block_count} blocks (at most {lib.KVIST_CHAIN_BLOCKS_MAX}; of an attached "
        f"store 2^17, and 2^20 tokens), or its terms are out of bounds: {terms}",
        "shorten it; give a pin that is not beyond the expiry, and a tenant of at most "
        f"{lib.KVIST_TENANT_BYTES_MAX} characters",
    )
