"""Records: the enumerations and plain records that go into the store and come out of it.

Times are unix times in nanoseconds, 0 for none, unless a name says otherwise.
"""
from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Optional

from kvist.convert import c_string, enumeration, key_of, u64
from kvist.native import NULL, lib, text_of


class Tier(enum.IntEnum):
    """Where a block is."""

    DEVICE = lib.KVIST_TIER_DEVICE
    HOST = lib.KVIST_TIER_HOST
    DISK = lib.KVIST_TIER_DISK
    REMOTE = lib.KVIST_TIER_REMOTE


class Miss(enum.IntEnum):
    """Why a match ended where it did (docs/ARCHITECTURE.md has the list with its causes)."""

    NONE = lib.KVIST_MISS_NONE
    NEW = lib.KVIST_MISS_NEW
    SHORT = lib.KVIST_MISS_SHORT
    EXPIRED = lib.KVIST_MISS_EXPIRED
    NOT_ADMITTED = lib.KVIST_MISS_NOT_ADMITTED
    PENDING = lib.KVIST_MISS_PENDING
    DAMAGED = lib.KVIST_MISS_DAMAGED
    FAILED = lib.KVIST_MISS_FAILED
    BYPASSED = lib.KVIST_MISS_BYPASSED
    EVICTED = lib.KVIST_MISS_EVICTED
    DIVERGED = lib.KVIST_MISS_DIVERGED
    NAMESPACE = lib.KVIST_MISS_NAMESPACE
    ELSEWHERE = lib.KVIST_MISS_ELSEWHERE
    CHEAPER = lib.KVIST_MISS_CHEAPER
    CANCELLED = lib.KVIST_MISS_CANCELLED


class Mode(enum.IntEnum):
    """What a lease is for: bypass and write match nothing; read and bypass store nothing."""

    READWRITE = lib.KVIST_MODE_READWRITE
    READ = lib.KVIST_MODE_READ
    WRITE = lib.KVIST_MODE_WRITE
    BYPASS = lib.KVIST_MODE_BYPASS


class Priority(enum.IntEnum):
    """Under pressure background blocks go first, then batch, then interactive ones."""

    INTERACTIVE = lib.KVIST_PRIORITY_INTERACTIVE
    BATCH = lib.KVIST_PRIORITY_BATCH
    BACKGROUND = lib.KVIST_PRIORITY_BACKGROUND


@dataclass(frozen=True)
class Terms:
    """What blocks are kept under.

    expires_unix_ns: a limit: a miss from then on.
    pin_until_unix_ns: a promise: not evicted before.
    tenant: whose they are, for accounting ("": nobody's); identity is the salt's.
    expected_next_use_unix_ns: a hint: when they will be asked for next.
    """

    priority: Priority = Priority.INTERACTIVE
    expires_unix_ns: int = 0
    pin_until_unix_ns: int = 0
    tenant: str = ""
    expected_next_use_unix_ns: int = 0

    def fill(self, to: Any) -> Any:
        """Writes the terms to a kvist_terms_t; returns what must live as long as it is used."""
        tenant = c_string("terms.tenant", self.tenant) if self.tenant else NULL
        to.priority = enumeration("terms.priority", Priority, self.priority)
        to.expires_unix_ns = u64("terms.expires_unix_ns", self.expires_unix_ns)
        to.pin_until_unix_ns = u64("terms.pin_until_unix_ns", self.pin_until_unix_ns)
        to.tenant = tenant
        to.expected_next_use_unix_ns = u64(
            "terms.expected_next_use_unix_ns", self.expected_next_use_unix_ns
        )
        return tenant


@dataclass(frozen=True)
class MissDetail:
    """What is known of the first block that was not found, without anything being read.

    block: its number in the query.
    tier: evicted: out of which, as the last copy.
    dropped: evicted: a drop asked for that.
    when_unix_ns: evicted, expired, damaged, not admitted: it went then (0: not known). New,
        diverged: it may have been there before this time, of which nothing is known.
    priority, request, tenant, origin: evicted: for whom room was made; None where not known.
    token: diverged: number of the query's first token that differs, or the earliest that may.
    token_exact: whether just that one differs.
    other: diverged: the key of the stored block that shares most with the query.
    extra_differs: diverged: that block's tokens are equal, its extra key is not; token: its first.
    """

    block: int
    tier: Tier
    dropped: bool
    when_unix_ns: int
    priority: Optional[Priority]
    request: Optional[int]
    tenant: Optional[str]
    origin: Optional[str]
    token: int
    token_exact: bool
    other: bytes
    extra_differs: bool

    @classmethod
    def of(cls, made: Any) -> MissDetail:
        known = bool(made.maker_known)
        return cls(
            block=made.block,
            tier=Tier(made.tier),
            dropped=bool(made.dropped),
            when_unix_ns=made.when_unix_ns,
            priority=Priority(made.priority) if known else None,
            request=made.request if known else None,
            tenant=text_of(made.tenant) if known else None,
            origin=text_of(made.origin) if known else None,
            token=made.token,
            token_exact=bool(made.token_known),
            other=key_of(made.other),
            extra_differs=bool(made.extra_differs),
        )


@dataclass(frozen=True)
class Match:
    """What was found: blocks 0 to block_count - 1 of the query, in all groups.

    tier_blocks: of those, by the fastest tier that holds each.
    miss: why it is not more: a hit where it is none or short, else a miss for that reason.
    detail: where miss is neither none nor short.
    """

    block_count: int
    tier_blocks: dict[Tier, int]
    miss: Miss
    detail: Optional[MissDetail]

    @classmethod
    def of(cls, made: Any) -> Match:
        miss, tiers = made.miss, made.tier_blocks
        whole = miss == lib.KVIST_MISS_NONE or miss == lib.KVIST_MISS_SHORT
        return cls(
            made.block_count,
            {tier: tiers[tier] for tier in _TIERS},
            _MISSES[miss],
            None if whole else MissDetail.of(made.detail),
        )


_TIERS = tuple(Tier)
_MISSES = tuple(Miss)


@dataclass(frozen=True)
class Run:
    """Consecutive found blocks of one tier.

    bytes: of all groups' objects. cost_ns: estimate of loading just this run now.
    """

    first_block: int
    block_count: int
    tier: Tier
    bytes: int
    cost_ns: int


@dataclass(frozen=True)
class Loaded:
    """The first block_count blocks of a selection are in the caller's memory, verified; miss says
    why it is not all of them (damaged, failed). What lies in the pieces after them is not KV."""

    block_count: int
    miss: Miss
