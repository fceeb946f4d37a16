"""Kvist: a tiered store for the KV of language models.

    import kvist, numpy

    layout = kvist.Layout(128, [kvist.Group(kvist.GroupKind.FULL, range(30),
                                            [kvist.Part(kvist.PartKind.OPAQUE, 1, 98304, 1)])])
    name_space = kvist.name_space(model=digest, layout=layout)
    with kvist.Store(layout, attach="/run/kvist/store.sock") as store:
        with store.match(name_space, tokens) as lease:
            found = lease.match.block_count
            lease.load(kvist.Pieces.of(pages[:found])).result()
            lease.store(kvist.Pieces.of(pages[found:]), first_block=found).result()

docs/python.md is the guide; kvstore/kvist.h, whose words hold here too, the reference.
"""
from kvist._version import __version__
from kvist.errors import KvistError, Status
from kvist.identity import (
    Dtype,
    fingerprint_file,
    key_file_new,
    key_file_rotate,
    keys,
    name_space,
)
from kvist.layout import Group, GroupKind, Layout, Part, PartKind
from kvist.lease import Lease
from kvist.options import Codec, Disk, Io, Persist, Policy, Quota
from kvist.pending import Pending
from kvist.pieces import Pieces
from kvist.records import Loaded, Match, Miss, MissDetail, Mode, Priority, Run, Terms, Tier
from kvist.store import Store
from kvist.stored import (
    Block,
    Change,
    Context,
    Statistics,
    TenantUse,
    TierStatistics,
    Verification,
    Why,
)
from kvist.thread import StoreThread

__all__ = [
    "Block",
    "Change",
    "Codec",
    "Context",
    "Disk",
    "Dtype",
    "Group",
    "GroupKind",
    "Io",
    "KvistError",
    "Layout",
    "Lease",
    "Loaded",
    "Match",
    "Miss",
    "MissDetail",
    "Mode",
    "Part",
    "PartKind",
    "Pending",
    "Persist",
    "Pieces",
    "Policy",
    "Priority",
    "Quota",
    "Run",
    "Statistics",
    "Status",
    "Store",
    "StoreThread",
    "TenantUse",
    "Terms",
    "Tier",
    "TierStatistics",
    "Verification",
    "Why",
    "__version__",
    "fingerprint_file",
    "key_file_new",
    "key_file_rotate",
    "keys",
    "name_space",
]
