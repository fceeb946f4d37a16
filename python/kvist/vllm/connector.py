"""KvistConnector: the class that vLLM loads. A table of vLLM's hooks and who answers each.

vLLM makes one in its scheduler and one in each worker, and calls each hook at one of them alone.
SchedulerSide (scheduler.py) and WorkerSide (worker.py) do the work; metadata.py is what they tell
each other. Anything that is more than a call belongs there.

Threads: vLLM calls from the one thread of its scheduler, or of its worker.
Errors: configuration and models that Kvist cannot serve end the start with a ValueError that says
what to change. Once started, trouble with the store is a miss, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from kvist.vllm import figures
from kvist.vllm.config import Config
from kvist.vllm.metadata import KvistMetadata
from kvist.vllm.scheduler import SchedulerSide
from kvist.vllm.worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
        PromMetric,
        PromMetricT,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class KvistConnector(KVConnectorBase_V1, SupportsHMA):
    """KV that leaves vLLM's memory goes to this host's kvist-store, and comes back from there."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        config = Config.of(vllm_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, config)
        else:
            self._worker = WorkerSide(vllm_config, kv_cache_config, config)

    @property
    def _at_scheduler(self) -> SchedulerSide:
        assert self._scheduler is not None, "a scheduler's hook was called at a worker"
        return self._scheduler

    @property
    def _at_worker(self) -> WorkerSide:
        assert self._worker is not None, "a worker's hook was called at the scheduler"
        return self._worker

    @property
    def _metadata(self) -> KvistMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, KvistMetadata)
        return metadata

    # ---- both roles ----

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what is not handed on is computed again."""
        return False

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        side = self._scheduler or self._worker
        return side.statistics() if side is not None else None

    def shutdown(self) -> None:
        if self._scheduler is not None:
            self._scheduler.shutdown()
        if self._worker is not None:
            self._worker.shutdown()

    @classmethod
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> KVConnectorStats | None:
        return figures.KvistStatistics(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        return figures.KvistPrometheus(
            vllm_config, metric_types, labelnames, per_engine_labelvalues
        )

    # ---- at a worker ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._at_worker.register_kv_caches(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._at_worker.handshake()

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self._at_worker.start_loads(self._metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads end between steps: no layer of this step waits for one."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """Whole blocks are saved, after the step (wait_for_save)."""

    def wait_for_save(self) -> None:
        self._at_worker.start_saves(self._metadata)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        return self._at_worker.transfer_results()

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._at_worker.block_ids_with_load_errors()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._at_worker.report()

    # ---- at the scheduler ----

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self._at_scheduler.bind_block_pool(gpu_block_pool)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        self._at_scheduler.set_handshakes(metadata)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return self._at_scheduler.matched_tokens(request, num_computed_tokens)

    def get_external_cache_hit_sources(
        self, request: Request, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        return self._at_scheduler.hit_sources(request, num_external_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        self._at_scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._at_scheduler.build_metadata(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._at_scheduler.update_output(connector_output)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self._at_scheduler.finished(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, self._at_scheduler.finished(request, block_ids)

    def has_pending_block_frees(self) -> bool:
        return self._at_scheduler.frees_pages_soon()

    def has_pending_push_work(self) -> bool:
        return self._at_scheduler.holds_pages()

    def take_events(self) -> Iterable[KVCacheEvent]:
        return self._at_scheduler.take_events()

    def reset_cache(self) -> bool | None:
        return self._at_scheduler.reset()
