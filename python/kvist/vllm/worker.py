"""The connector's side in a worker: pages, their description, and what moves between them and the
store.

    register_kv_caches   the pages are checked and described; the store is opened; moving can begin
    each step            start_loads, start_saves: jobs of KvistMetadata;
                         transfer_results, block_ids_with_load_errors, report: what ended since

Reading pages that the forward pass writes. On the CPU vLLM runs a step on one thread: the kernels'
calls return when their OpenMP team is through, asynchronous scheduling is off, and start_saves is
called after the forward pass of the model (and of a draft model): the pages are final. On CUDA
kernels are only launched by then; pages.StagedPages reads in the order of the stream. What keeps
pages from being given to others meanwhile: metadata.py.

Owns: the store's thread, what is under way. Borrows: vLLM's KV tensors, until shutdown.
Threads: vLLM's worker thread.
Errors: register_kv_caches raises ValueError (a model or configuration that cannot be served, a
kvist-store that refuses), which ends vLLM's start with its text. A kvist-store that is not there is
no error: loads fail and saves are given up, until it is there. Afterwards nothing is raised.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank

import kvist
from kvist.vllm import identity
from kvist.vllm.config import Config
from kvist.vllm.figures import Figures
from kvist.vllm.metadata import (
    Description,
    KvistMetadata,
    Owner,
    SaveResult,
    WorkerHandshake,
    WorkerReport,
)
from kvist.vllm.pages import PageGroup, check_all_known, group_pages
from kvist.vllm.stores import open_thread
from kvist.vllm.transfers import Transfers

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVConnectorKVEvents
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger("kvist.vllm")

DRAIN_S = 5.0  # at the end: for saves that are under way
OWNERS_REMEMBERED = 1024


class WorkerSide:
    """One worker's."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, config: Config
    ) -> None:
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._config = config
        self._figures = Figures(f"worker-{vllm_config.parallel_config.rank}")
        self._description: Description | None = None
        self._thread: kvist.StoreThread | None = None
        self._transfers: Transfers | None = None
        # Of the results that were taken, until vLLM asks for them in the same step.
        self._failed_pages: set[int] = set()
        self._saves: dict[int, bool] = {}

    # ---- the start ----

    def register_kv_caches(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Layer name -> [blocks, ...]. Called again, with other tensors, it begins anew."""
        self.shutdown()
        description = identity.describe(
            self._vllm_config,
            self._kv_cache_config,
            self._config,
            tensors,
            tensor_rank=get_tensor_model_parallel_rank(),
            pipeline_rank=get_pp_group().rank_in_group,
        )
        names = [name for group in description.groups for name in group.layer_names]
        check_all_known(tensors, names)
        groups: list[PageGroup] = [
            group_pages(
                tensors, group.layer_names, self._kv_cache_config.num_blocks, group.page_bytes
            )
            for group in description.groups
        ]
        layout = identity.layout_of(description)
        self._check_sizes(layout, groups)
        self._thread = open_thread(self._config, layout, "kvist-worker")
        self._transfers = Transfers(
            self._thread,
            groups,
            functools.lru_cache(OWNERS_REMEMBERED)(
                functools.partial(_name_space, description, layout)
            ),
            self._terms_now,
            self._figures,
            self._config.save_wait_s,
        )
        self._description = description

    @staticmethod
    def _check_sizes(layout: kvist.Layout, groups: list[PageGroup]) -> None:
        for number, group in enumerate(groups):
            if layout.object_bytes(number) != group.object_bytes:
                raise ValueError(
                    f"kvist: a block of group {number} has {group.object_bytes} bytes in its "
                    f"tensors and {layout.object_bytes(number)} in the layout; report it"
                )

    def _terms_now(self) -> kvist.Terms:
        config, expires_unix_ns = self._config, 0
        if config.expire_after_s > 0:
            expires_unix_ns = time.time_ns() + int(config.expire_after_s * 1e9)
        return kvist.Terms(
            priority=kvist.Priority[config.priority.upper()],
            expires_unix_ns=expires_unix_ns,
            tenant=config.tenant,
        )

    def handshake(self) -> WorkerHandshake | None:
        """For the scheduler's side; None before register_kv_caches."""
        return None if self._description is None else WorkerHandshake(self._description)

    # ---- each step ----

    def start_loads(self, metadata: KvistMetadata) -> None:
        """Behind this step's forward pass: the loads are of requests that take no part in it."""
        if self._transfers is not None and (metadata.loads or metadata.cancelled_loads):
            self._transfers.start_loads(metadata.loads, metadata.cancelled_loads)

    def start_saves(self, metadata: KvistMetadata) -> None:
        """Behind it too: what it wrote is saved."""
        if self._transfers is not None and (metadata.saves or metadata.ended_sequences):
            self._transfers.start_saves(metadata.saves, metadata.ended_sequences)

    def transfer_results(self) -> KVConnectorTransferResults:
        """Loads that ended. The two calls below tell the rest of what this one took."""
        if self._transfers is None:
            return KVConnectorTransferResults()
        results = self._transfers.take()
        self._saves.update(results.saves)
        if len(self._kv_cache_config.kv_cache_groups) > 1:
            # vLLM cannot tell whose a page is where several groups number theirs.
            return KVConnectorTransferResults(
                finished_recving=results.received, failed_recving=results.failed
            )
        self._failed_pages |= results.failed_pages
        return KVConnectorTransferResults(finished_recving=results.received)

    def block_ids_with_load_errors(self) -> set[int]:
        """Of the loads that the last transfer_results named."""
        failed, self._failed_pages = self._failed_pages, set()
        return failed

    def report(self) -> WorkerReport | None:
        """Saves that ended, each once; None: none did."""
        if not self._saves:
            return None
        saves, self._saves = self._saves, {}
        return WorkerReport({job: SaveResult(1, stored) for job, stored in saves.items()})

    def events(self) -> KVConnectorKVEvents | None:
        """The scheduler's side tells of blocks, once all workers have stored them."""
        return None

    def statistics(self) -> KVConnectorStats | None:
        """What happened since the last call."""
        return self._figures.take()

    def shutdown(self) -> None:
        """Saves that are under way may end, for DRAIN_S; then nothing touches the pages."""
        transfers, self._transfers = self._transfers, None
        thread, self._thread = self._thread, None
        if transfers is not None:
            transfers.close(DRAIN_S)
        if thread is not None:
            thread.close()


def _name_space(description: Description, layout: kvist.Layout, owner: Owner) -> bytes:
    return identity.name_space(description, layout, owner)
