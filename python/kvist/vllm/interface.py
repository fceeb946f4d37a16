"""That this vLLM is one that the connector can work with: what it uses of vLLM is still there.

vLLM calls its connector interface experimental and changes it between versions. A name or an
argument that moved would show as a crash in the middle of a request, or not at all; so all that is
used is looked for once, at import, and nothing else.

Errors: ImportError with everything that moved, and the versions that were tested.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
from typing import Any

logger = logging.getLogger("kvist.vllm")

TESTED_VERSIONS = ("0.32.0",)

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"

OVERRIDDEN: dict[str, dict[str, tuple[str, ...]]] = {
    f"{BASE}:KVConnectorBase_V1": {
        "bind_gpu_block_pool": ("gpu_block_pool",),
        "build_connector_meta": ("scheduler_output",),
        "build_connector_worker_meta": (),
        "build_kv_connector_stats": ("data",),
        "build_prom_metrics": (
            "vllm_config", "metric_types", "labelnames", "per_engine_labelvalues",
        ),
        "get_block_ids_with_load_errors": (),
        "get_external_cache_hit_sources": ("request", "num_external_tokens"),
        "get_handshake_metadata": (),
        "get_kv_connector_stats": (),
        "get_num_new_matched_tokens": ("request", "num_computed_tokens"),
        "get_transfer_results": ("finished_req_ids",),
        "has_pending_block_frees": (),
        "has_pending_push_work": (),
        "register_kv_caches": ("kv_caches",),
        "request_finished": ("request", "block_ids"),
        "reset_cache": (),
        "save_kv_layer": ("layer_name", "kv_layer", "attn_metadata", "kwargs"),
        "set_xfer_handshake_metadata_pp_aware": ("metadata",),
        "shutdown": (),
        "start_load_kv": ("forward_context", "kwargs"),
        "take_events": (),
        "update_connector_output": ("connector_output",),
        "update_state_after_alloc": ("request", "blocks", "num_external_tokens"),
        "wait_for_layer_load": ("layer_name",),
        "wait_for_save": (),
    },
    f"{BASE}:SupportsHMA": {"request_finished_all_groups": ("request", "block_ids")},
    f"{BASE}:KVConnectorWorkerMetadata": {"aggregate": ("other",)},
}  # fmt: skip
"""vLLM calls these: each with just these arguments, but self and cls."""

CALLED: dict[str, dict[str, tuple[str, ...]]] = {
    f"{BASE}:KVConnectorBase_V1": {
        "__init__": ("vllm_config", "role", "kv_cache_config"),
        "_get_connector_metadata": (),
    },
    "vllm.v1.core.sched.output:KVConnectorBlockState": {"get_block_ids": ("req_id",)},
    "vllm.v1.core.kv_cache_manager:KVCacheBlocks": {"get_block_ids": ()},
    "vllm.v1.core.block_pool:BlockPool": {
        "touch": ("blocks",),
        "free_blocks": ("ordered_blocks",),
    },
}
"""These are called: with these arguments; others must have defaults."""

FIELDS: dict[str, tuple[str, ...]] = {
    f"{BASE}:KVConnectorTransferResults": ("finished_recving", "failed_recving"),
    "vllm.v1.outputs:KVConnectorOutput": (
        "finished_recving", "failed_recving", "invalid_block_ids", "kv_connector_worker_meta",
    ),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "num_scheduled_tokens", "kv_connector_block_state",
    ),
    "vllm.v1.kv_cache_interface:KVCacheConfig": (
        "kv_cache_groups", "num_blocks", "hash_block_size",
    ),
    "vllm.v1.kv_cache_interface:KVCacheGroupSpec": (
        "layer_names", "kv_cache_spec", "enable_kv_transfer", "host_resident",
    ),
    "vllm.config:KVTransferConfig": (
        "kv_role", "kv_connector_extra_config", "kv_load_failure_policy",
    ),
    "vllm.multimodal.inputs:MultiModalFeatureSpec": ("identifier", "modality", "mm_position"),
}  # fmt: skip
"""Fields of dataclasses that are read or written."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "vllm.v1.request:Request": (
        "request_id", "prompt_token_ids", "prompt_embeds", "num_prompt_tokens",
        "num_computed_tokens", "num_in_flight_tokens", "all_token_ids", "cache_salt",
        "lora_request", "mm_features", "kv_transfer_params", "skip_reading_prefix_cache",
    ),
    "vllm.v1.core.block_pool:BlockPool": ("blocks", "null_block"),
}  # fmt: skip
"""What __init__ sets and is read."""

NAMES: dict[str, tuple[str, ...]] = {
    f"{BASE}:KVConnectorRole": ("SCHEDULER", "WORKER"),
    "vllm.v1.metrics.cache_hit_source:CacheHitSource": ("HOST", "DISK", "P2P"),
    "vllm.v1.request:Request": ("num_tokens",),
    "vllm.v1.core.kv_cache_utils:KVCacheBlock": ("block_id", "ref_cnt"),
    "vllm.v1.kv_cache_interface:AttentionSpec": ("real_page_size_bytes", "tokens_per_state"),
    "vllm.v1.kv_cache_interface:SlidingWindowSpec": ("sliding_window",),
    "vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs": ("kv_cache_specs",),
}
"""Members, properties and annotated fields."""


def moved() -> list[str]:
    """What is used and is not there, or is called otherwise: one line each."""
    found: list[str] = []
    for methods_of, exact in ((OVERRIDDEN, True), (CALLED, False)):
        for place, methods in methods_of.items():
            owner = _resolve(place, found)
            for name, arguments in methods.items() if owner is not None else ():
                _compare(f"{place}.{name}", getattr(owner, name, None), arguments, exact, found)
    for place, names in FIELDS.items():
        owner = _resolve(place, found)
        if owner is not None:
            there = {field.name for field in dataclasses.fields(owner)}
            found.extend(f"{place}.{name} is gone" for name in names if name not in there)
    for place, names in ATTRIBUTES.items():
        owner = _resolve(place, found)
        if owner is not None:
            set_names = owner.__init__.__code__.co_names
            found.extend(f"{place}.{name} is gone" for name in names if name not in set_names)
    for place, names in NAMES.items():
        owner = _resolve(place, found)
        if owner is not None:
            annotated = (vars(base).get("__annotations__", {}) for base in owner.mro())
            there = set(dir(owner)).union(*annotated)
            found.extend(f"{place}.{name} is gone" for name in names if name not in there)
    return found


def _resolve(place: str, found: list[str]) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        line = f"{place} is gone"
        if line not in found:
            found.append(line)
        return None


def _compare(
    method_name: str, method: Any, arguments: tuple[str, ...], exact: bool, found: list[str]
) -> None:
    if method is None:
        found.append(f"{method_name} is gone")
        return
    there = {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(method).parameters.items()
        if name != "self"
    }
    needed = {name for name, is_needed in there.items() if is_needed}
    fits = tuple(there) == arguments if exact else needed <= set(arguments) <= set(there)
    if not fits:
        found.append(f"{method_name} takes ({', '.join(there)}), not ({', '.join(arguments)})")


def check() -> None:
    """ImportError: this vLLM cannot be worked with. Warns of versions that were not tested."""
    import vllm

    found = moved()
    tested = ", ".join(TESTED_VERSIONS)
    if found:
        raise ImportError(
            f"kvist.vllm does not work with vLLM {vllm.__version__} (tested: {tested}), whose "
            "interface for connectors has moved: " + "; ".join(found) + ". Install a tested "
            "vLLM, or a kvist made for this one"
        )
    if vllm.__version__.split("+")[0] not in TESTED_VERSIONS:
        logger.warning(
            "vLLM %s has the interface that kvist.vllm needs, but was not tested with it (tested: "
            "%s)",
            vllm.__version__,
            tested,
        )
