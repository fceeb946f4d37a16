"""Records of what a store holds, and of how it does. Times are unix times in nanoseconds."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvist.convert import key_of
from kvist.native import lib, text_of
from kvist.options import Quota
from kvist.records import Match, Miss, Priority, Tier


@dataclass(frozen=True)
class TierStatistics:
    """Of one tier; used_bytes: by objects."""

    capacity_bytes: int
    used_bytes: int
    object_count: int
    hit_blocks: int
    read_bytes: int
    written_bytes: int
    evicted_objects: int

    @classmethod
    def of(cls, made: Any) -> TierStatistics:
        return cls(*(getattr(made, name) for name in _TIER_FIELDS))


@dataclass(frozen=True)
class Statistics:
    """kvist_stats_t; kvist.h says what each figure counts.

    Of an attached store host and disk are the service's, up to a quarter of a second old, but for
    hit_blocks and read_bytes: those are what this process loaded.
    """

    tiers: dict[Tier, TierStatistics]
    miss_count: dict[Miss, int]  # matches that ended for that reason
    leases: int
    slots_free: int
    slots_private: int
    unsaved_objects: int  # sealed, not durable yet
    barriers: int
    host_coming_bytes: int
    host_locked_bytes: int
    damaged_objects: int
    failed_reads: int
    failed_writes: int
    keyless_objects: int
    encrypted_objects: int
    device_packed_objects: int
    device_unpacked_objects: int
    encrypting: bool
    moved_objects: int
    write_budget_bytes: int
    write_left_bytes: int
    segment_written_bytes: int
    not_admitted_objects: int
    pinned_bytes: int
    history_entries: int
    history_forgotten: int
    index_loaded: int
    index_total: int
    index_loading: bool
    disk_offline: bool
    io: str  # "io_uring" or "threads"; "none" without a disk tier

    @classmethod
    def of(cls, made: Any) -> Statistics:
        return cls(
            tiers={tier: TierStatistics.of(made.tiers[tier]) for tier in Tier},
            miss_count={miss: made.miss_count[miss] for miss in Miss},
            io=text_of(made.io),
            **{name: getattr(made, name) for name in _PLAIN_FIELDS},
        )


_TIER_FIELDS = tuple(TierStatistics.__dataclass_fields__)
_PLAIN_FIELDS = tuple(
    name for name in Statistics.__dataclass_fields__ if name not in ("tiers", "miss_count", "io")
)


@dataclass(frozen=True)
class Block:
    """One stored block.

    position: its number in its context. token_count: from the context's start to its end.
    children: blocks that go on from it. groups: of which an object of it is stored.
    tiers: that hold its object of group 0. segment, segment_offset, stored_bytes: on disk.
    created_unix_ns: 0: known once it is on disk. leases: that hold it now.
    """

    key: bytes
    parent: bytes
    name_space: bytes
    position: int
    token_count: int
    children: int
    groups: tuple[int, ...]
    tiers: tuple[Tier, ...]
    bytes: int
    segment: int
    segment_offset: int
    stored_bytes: int
    created_unix_ns: int
    used_unix_ns: int
    expires_unix_ns: int
    pin_until_unix_ns: int
    priority: Priority
    leases: int
    origin: str
    tenant: str
    arithmetic: str

    @classmethod
    def of(cls, made: Any) -> Block:
        return cls(
            key=key_of(made.key),
            parent=key_of(made.parent),
            name_space=key_of(made.name_space),
            groups=tuple(g for g in range(lib.KVIST_GROUPS_MAX) if made.groups >> g & 1),
            tiers=tuple(tier for tier in Tier if made.tiers[tier]),
            priority=Priority(made.priority),
            origin=text_of(made.origin),
            tenant=text_of(made.tenant),
            arithmetic=text_of(made.arithmetic),
            **{name: getattr(made, name) for name in _BLOCK_NUMBERS},
        )


_BLOCK_NUMBERS = (
    "position", "token_count", "children", "bytes", "segment", "segment_offset", "stored_bytes",
    "created_unix_ns", "used_unix_ns", "expires_unix_ns", "pin_until_unix_ns", "leases",
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """One stored context: a chain's last block.

    bytes: of the whole chain, blocks shared with other contexts included.
    tier: the slowest one that any block needs.
    """

    key: bytes
    name_space: bytes
    token_count: int
    bytes: int
    tier: Tier
    used_unix_ns: int
    expires_unix_ns: int
    pin_until_unix_ns: int
    priority: Priority
    origin: str
    tenant: str

    @classmethod
    def of(cls, made: Any) -> Context:
        return cls(
            key=key_of(made.key),
            name_space=key_of(made.name_space),
            token_count=made.token_count,
            bytes=made.bytes,
            tier=Tier(made.tier),
            used_unix_ns=made.used_unix_ns,
            expires_unix_ns=made.expires_unix_ns,
            pin_until_unix_ns=made.pin_until_unix_ns,
            priority=Priority(made.priority),
            origin=text_of(made.origin),
            tenant=text_of(made.tenant),
        )


@dataclass(frozen=True)
class TenantUse:
    """What one tenant has ("": what is nobody's): its quota, and bytes of its objects by tier."""

    quota: Quota
    bytes: dict[Tier, int]
    pinned_bytes: int

    @classmethod
    def of(cls, made: Any) -> TenantUse:
        quota = Quota(text_of(made.quota.tenant), made.quota.host_bytes, made.quota.disk_bytes)
        return cls(quota, {tier: made.bytes[tier] for tier in Tier}, made.pinned_bytes)


@dataclass(frozen=True)
class Verification:
    """What was read and proved, so far or in all.

    damaged_objects: with the descendants that were dropped with them.
    failed_objects: could not be read: they stay.
    """

    object_count: int
    object_total: int
    bytes: int
    bytes_total: int
    damaged_objects: int
    failed_objects: int

    @classmethod
    def of(cls, made: Any) -> Verification:
        return cls(
            made.object_count, made.object_total, made.bytes, made.bytes_total,
            made.damaged_objects, made.failed_objects,
        )  # fmt: skip


@dataclass(frozen=True)
class Why:
    """What a match would find now, and why not more.

    Where match.miss is namespace: other_name_space: the other one; other_block_count: how many
    blocks are found there; fields: what differs ("salt", "model,dtype", ...; "unknown").
    """

    match: Match
    block_tokens: int
    other_name_space: bytes
    other_block_count: int
    fields: str

    @classmethod
    def of(cls, made: Any) -> Why:
        return cls(
            match=Match.of(made.match),
            block_tokens=made.block_tokens,
            other_name_space=key_of(made.other_name_space),
            other_block_count=made.other_block_count,
            fields=text_of(made.fields),
        )


@dataclass(frozen=True)
class Change:
    """Blocks of one group that a tier holds from now on (stored), or no longer.

    keys: stored: in the order of their chain, without gaps; else in any.
    name_space, first_block (position of keys[0]), parent (the key before keys[0], the namespace at
    position 0): of stored blocks only; else empty and 0.
    """

    tier: Tier
    stored: bool
    group: int
    keys: tuple[bytes, ...]
    name_space: bytes
    first_block: int
    parent: bytes
