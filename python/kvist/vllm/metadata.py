"""What the two roles of the connector tell each other: the contract between scheduler and worker.

vLLM makes one connector in the process of its scheduler and one in each worker. This module holds
all that travels between them, and nothing else.

    scheduler.SchedulerSide --- KvistMetadata, with every step ---------> worker.WorkerSide
    scheduler.SchedulerSide <-- WorkerHandshake, once, after start ------ worker.WorkerSide
    scheduler.SchedulerSide <-- WorkerReport, with every step's output -- worker.WorkerSide

Blocks. A Kvist block is a block of vLLM: `Description.block_tokens` tokens. Blocks of a request are
numbered from 0, the start of its prompt. A page is one block of one KV group in the worker's
memory; its number is vLLM's block id.

Groups. Everywhere here groups are in Kvist's order, which is that of `Description.groups` (Kvist's
first group is a full one); `GroupDescription.engine_group` is the number of the same group in
vLLM's kv_cache_config. A group of sliding windows has no page for blocks that no token will ask for
any more: NO_PAGE stands for them, and they are neither loaded nor saved.

Who owns the pages.
- Of a load: vLLM, which keeps the request out of its steps until the worker has named it in
  finished_recving (also where the load failed, and where the request was aborted meanwhile). The
  worker writes into the pages from start_load on, never after it named the request.
- Of a save: the scheduler's side takes a reference of its own to each page in vLLM's block pool
  before it hands the job out, and gives it back when every worker has reported the job as ended.
  So neither the end of the request, nor preemption, nor a sliding window gives a page to anyone
  else while it is read: request_finished never delays, finished_sending stays empty, and
  handle_preemptions has nothing to wait for. Each worker therefore reports each SaveJob exactly
  once, whatever became of it.

Threads: plain records; whoever holds one may read it. Errors: none of their own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

NO_PAGE = -1

EXTRA_BYTES = 32  # of one block's extra key

Pages = tuple[tuple[int, ...], ...]
"""[groups][blocks of the job]: page numbers, or NO_PAGE."""


@dataclass(frozen=True)
class Owner:
    """Whose blocks a job is about: what, beside the worker's own description, makes a namespace.

    salt: the request's cache salt in UTF-8, empty for none. adapter: the LoRA adapter's name and
    the digest of its content (identity.adapter_name), empty for none.
    """

    salt: bytes = b""
    adapter: str = ""


@dataclass(frozen=True)
class LoadJob:
    """Blocks first_block .. first_block + block_count - 1 of a request, to be copied to its pages.

    tokens: uint32 [(first_block + block_count) x block_tokens], from block 0 on: keys need all.
    extras: EXTRA_BYTES bytes for each of those blocks; None: all zero.
    pages: [groups][block_count], of the blocks that are loaded.

    The worker names the request in finished_recving once for each LoadJob. Blocks that did not
    come: with one group their pages' numbers in block_ids_with_load_errors, with several the
    request in failed_recving too; in the same step at the latest.
    """

    request_id: str
    owner: Owner
    tokens: NDArray[numpy.uint32]
    extras: tuple[bytes, ...] | None
    first_block: int
    block_count: int
    pages: Pages


@dataclass(frozen=True)
class SaveJob:
    """Blocks of a request that are complete when this step's forward pass is, to be stored.

    job: a number of its own; it is what the WorkerReport names.
    sequence: the jobs of one sequence follow each other without gaps from block 0 on, and go
    through one lease, in order. Where one of them could not be stored, those behind it in the
    same sequence end as failed too; the scheduler's side may begin another sequence at block 0.
    tokens: uint32 [block_count x block_tokens] of these blocks alone. extras: as in LoadJob, of
    these blocks alone. pages: [groups][block_count].
    """

    job: int
    sequence: int
    request_id: str
    owner: Owner
    tokens: NDArray[numpy.uint32]
    extras: tuple[bytes, ...] | None
    first_block: int
    block_count: int
    pages: Pages


@dataclass
class KvistMetadata(KVConnectorMetadata):
    """Of one step. Made by SchedulerSide.build_metadata, read by WorkerSide.

    ended_sequences: no further job of these will come; their leases can be released when what is
    under way has ended. A sequence that never had a job is not named.
    cancelled_loads: requests that were aborted while their load was under way. The load may end
    early; the request is still named in finished_recving.
    """

    loads: list[LoadJob] = field(default_factory=list)
    saves: list[SaveJob] = field(default_factory=list)
    ended_sequences: list[int] = field(default_factory=list)
    cancelled_loads: list[str] = field(default_factory=list)

    def is_empty(self) -> bool:
        return not (self.loads or self.saves or self.ended_sequences or self.cancelled_loads)


@dataclass
class SaveResult:
    """workers: how many have reported. stored: all blocks of the job are in the store, of every
    worker that reported."""

    workers: int
    stored: bool


@dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """What ended at the workers since their last report; None is reported where nothing did.

    saves: by SaveJob.job. A job is over once SaveResult.workers of all reports together are as many
    as there are workers.
    """

    saves: dict[int, SaveResult] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        """The reports of two workers about one step, as one; neither is changed."""
        if not isinstance(other, WorkerReport):
            raise TypeError(f"a WorkerReport was expected, not {type(other).__name__}")
        saves = dict(self.saves)
        for job, result in other.saves.items():
            mine = saves.get(job)
            saves[job] = (
                SaveResult(result.workers, result.stored)
                if mine is None
                else SaveResult(mine.workers + result.workers, mine.stored and result.stored)
            )
        return WorkerReport(saves)


class LayerKind(str, enum.Enum):
    FULL = "full"
    WINDOW = "window"


@dataclass(frozen=True)
class GroupDescription:
    """One KV group: layers whose blocks live and die alike.

    layer_names: as in vLLM's kv_caches. page_bytes: of one block of one layer, the same in all of
    its layers. window_tokens: of a windowed group, else 0.
    """

    engine_group: int
    kind: LayerKind
    window_tokens: int
    layer_names: tuple[str, ...]
    page_bytes: int


@dataclass(frozen=True)
class Description:
    """What one worker has: its share of the model's KV, and what that KV depends on.

    groups: full ones first. facts: canonical JSON (identity.canonical) of everything that must be
    equal before two blocks may be compared; its SHA-256 is the `model` of Kvist's namespace
    (identity.model_digest), and the salt and the adapter of an Owner the other two variable parts.
    """

    block_tokens: int
    groups: tuple[GroupDescription, ...]
    facts: str


@dataclass
class WorkerHandshake(KVConnectorHandshakeMetadata):
    """Sent once by each worker, after register_kv_caches."""

    description: Description
