"""What a store is opened with, beside its layout: kvist_store_params_t."""
from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Union

from kvist.convert import c_path, c_string, enumeration, u64
from kvist.errors import invalid
from kvist.native import ffi, lib

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
    """What a tenant may have of host memory and disk, in bytes; 0: as much as there is."""

    tenant: str
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True)
class Disk:
    """A further disk of the disk tier: a folder of this store alone, and its quota in bytes."""

    folder: Path
    bytes: int


@dataclass(frozen=True)
class Options:
    """The fields of kvist_store_params_t by their names, with their meanings (kvist.h); what a
    Python program cannot give (device, clock) is not among them."""

    attach: Optional[Path] = None
    domain: Optional[str] = None
    host_bytes: int = 0
    host_shared: bool = False
    directory: Optional[Path] = None
    disk_bytes: int = 0
    disks: Sequence[Disk] = ()
    segment_bytes: int = 0
    write_bytes_per_day: int = 0
    persist: Persist = Persist.EAGER
    codec: Codec = Codec.NONE
    key_file: Optional[Path] = None
    policy: Policy = Policy.LRU
    quotas: Sequence[Quota] = ()
    compute_token_ns: float = 0
    compute_distance_ns: float = 0
    io: Io = Io.AUTO
    origin: Optional[str] = None
    history_bytes: int = 0

    def params(self) -> tuple[Any, list[Any]]:
        """The kvist_store_params_t without its layout, and what must live until it was used."""
        to = ffi.new("kvist_store_params_t *")
        kept: list[Any] = []
        for field in ("attach", "directory", "key_file"):
            kept.append(c_path(field, getattr(self, field)))
            setattr(to, field, kept[-1])
        for field in ("domain", "origin"):
            kept.append(c_string(field, getattr(self, field)))
            setattr(to, field, kept[-1])
        for field in (
            "host_bytes", "disk_bytes", "segment_bytes", "write_bytes_per_day", "history_bytes",
        ):
            setattr(to, field, u64(field, getattr(self, field)))
        to.host_shared = bool(self.host_shared)
        to.persist = enumeration("persist", Persist, self.persist)
        to.codec = enumeration("codec", Codec, self.codec)
        to.policy = enumeration("policy", Policy, self.policy)
        to.io = enumeration("io", Io, self.io)
        to.compute_token_ns = self.compute_token_ns
        to.compute_distance_ns = self.compute_distance_ns
        to.disks, to.disk_count = self._disks(kept), len(self.disks)
        to.quotas, to.quota_count = self._quotas(kept), len(self.quotas)
        return to, kept

    def _disks(self, kept: list[Any]) -> Any:
        if len(self.disks) > lib.KVIST_DISKS_MAX:
            raise invalid(f"there are {len(self.disks)} disks: at most {lib.KVIST_DISKS_MAX}")
        made = ffi.new("kvist_disk_params_t[]", len(self.disks))
        for to, disk in zip(made, self.disks):
            kept.append(c_path("disks.folder", disk.folder))
            to.folder, to.bytes = kept[-1], u64("disks.bytes", disk.bytes)
        kept.append(made)
        return made

    def _quotas(self, kept: list[Any]) -> Any:
        made = ffi.new("kvist_quota_t[]", len(self.quotas))
        for to, quota in zip(made, self.quotas):
            kept.append(fill_quota(quota, to))
        kept.append(made)
        return made


def fill_quota(quota: Quota, to: Any) -> Any:
    """Writes it to a kvist_quota_t; returns what must live as long as that is used."""
    name = c_string("quota.tenant", quota.tenant)
    to.tenant = name
    to.host_bytes = u64("quota.host_bytes", quota.host_bytes)
    to.disk_bytes = u64("quota.disk_bytes", quota.disk_bytes)
    return name
