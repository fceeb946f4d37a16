"""Which blocks are the same: the namespace of a worker's KV, from what the worker really has.

Each worker describes, when vLLM gives it its KV tensors, everything that must be equal before two
blocks may be compared (`describe`). The facts are canonical JSON (canonical.py): the same text in
every process, whatever PYTHONHASHSEED is. Their SHA-256 is the `model` of Kvist's namespace; a
request's salt and adapter (prompts.py) are the other two parts, and the layout is what the groups
say. The scheduler gets the very same text from the workers (metadata.WorkerHandshake) and computes
nothing anew.

Facts, by name (docs/vllm.md says which change costs what):
    format        1: of this list; another number, other facts
    engine        vLLM's version
    weights       digests of the weight files, or the hub's commit, or the user's name for them
    model         the effective configuration: after overrides, without where it was read from
    settings      what else of vLLM's configuration changes KV
    draft         of speculative decoding with layers of its own: the same of its model
    platform      device kind; CPU: architecture and instruction sets; else name and capability
    attention     the backends' names
    parallel      degrees and ranks of tensor and pipeline parallelism
    tensors       for each layer: type, shape and strides within one block
    groups        kind, window, layers and page size of each

Errors: ValueError at start, which names what Kvist cannot serve and what to do.
Threads: pure functions, but for describe, which reads files.
"""

from __future__ import annotations

import hashlib
import platform as machine
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
from vllm.platforms import current_platform

import kvist
from kvist.vllm import weights
from kvist.vllm.canonical import canonical, plain
from kvist.vllm.config import Config
from kvist.vllm.groups import groups_of, lookahead_tokens
from kvist.vllm.metadata import Description, LayerKind, Owner

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

FORMAT = 1
PLACE_KEYS = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")
"""Of a model's configuration: where it was read from and by what, not what it is."""

PLAIN_ROPES = ("default", "linear", "llama3", "yarn", "mrope", "proportional")
"""Rotary embeddings that do not depend on max_model_len; for any other it is a fact too."""

CPU_FLAGS = re.compile(
    r"^(amx|avx|sse|ssse|fma|f16c|bmi|asimd|sve|sme(?!p)|neon|bf16|i8mm|fp16|fphp|vx|rv|zv"
    r"|altivec|vsx)"
)


# ---- the description ----


def describe(
    vllm_config: VllmConfig,
    kv_cache_config: KVCacheConfig,
    config: Config,
    tensors: Mapping[str, torch.Tensor],
    tensor_rank: int,
    pipeline_rank: int,
) -> Description:
    """What this worker has.

    tensors: as register_kv_caches got them, [blocks, ...] each. tensor_rank, pipeline_rank: this
    worker's place among parallel ones. Reads weight files, once: digests are remembered.
    ValueError: as groups.groups_of, or the weights cannot be known.
    """
    block_tokens, groups = groups_of(vllm_config, kv_cache_config)
    model_config = vllm_config.model_config
    parallel = vllm_config.parallel_config
    load_format = str(vllm_config.load_config.load_format)
    names = [name for group in groups for name in group.layer_names]
    facts = {
        "format": FORMAT,
        "engine": vllm.__version__,
        "weights": weights.of_model(model_config, load_format, config),
        "model": effective_config(model_config.hf_config),
        "settings": _settings(vllm_config),
        "draft": _draft(vllm_config, config),
        "platform": _platform(),
        "attention": sorted(
            backend.full_cls_name()[1] for backend in get_current_attn_backends(vllm_config, names)
        ),
        "parallel": {
            "tensor": [tensor_rank, parallel.tensor_parallel_size],
            "pipeline": [pipeline_rank, parallel.pipeline_parallel_size],
        },
        "tensors": {
            name: _inside(tensors[name], kv_cache_config.num_blocks)
            for name in names
            if name in tensors
        },
        "groups": [
            [group.kind.value, group.window_tokens, list(group.layer_names), group.page_bytes]
            for group in groups
        ],
    }
    return Description(block_tokens, groups, canonical(facts))


def model_digest(description: Description) -> bytes:
    """The `model` of the namespace: SHA-256 of the facts."""
    return hashlib.sha256(description.facts.encode()).digest()


def layout_of(description: Description) -> kvist.Layout:
    """One group of Kvist's for each of the worker's; of each layer one opaque part, a page.

    Layers are numbered from 0 within the worker, so that pipeline stages of equal depth have equal
    layouts and can share a domain; whose layers they are the namespace tells apart.
    """
    groups, first = [], 0
    for group in description.groups:
        end = first + len(group.layer_names)
        groups.append(
            kvist.Group(
                kind=(
                    kvist.GroupKind.FULL
                    if group.kind is LayerKind.FULL
                    else kvist.GroupKind.WINDOW
                ),
                window_tokens=group.window_tokens,
                layers=range(first, end),
                parts=[
                    kvist.Part(
                        kvist.PartKind.OPAQUE, heads=1, dims=group.page_bytes, element_bytes=1
                    )
                ],
            )
        )
        first = end
    return kvist.Layout(block_tokens=description.block_tokens, groups=groups)


def name_space(description: Description, layout: kvist.Layout, owner: Owner) -> bytes:
    """32 bytes. layout: of this description (layout_of), made once."""
    return kvist.name_space(
        model=model_digest(description),
        layout=layout,
        dtype=kvist.Dtype.BF16,  # opaque bytes: what they really are is among the facts
        salt=owner.salt,
        adapter=owner.adapter,
    )


# ---- facts ----


def effective_config(hf_config: Any) -> Any:
    """A model's configuration as vLLM uses it, after overrides, without the place it is from."""
    return _without_place(plain(hf_config))


def _without_place(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_place(v) for k, v in value.items() if k not in PLACE_KEYS}
    if isinstance(value, list):
        return [_without_place(each) for each in value]
    return value


def _settings(vllm_config: VllmConfig) -> dict[str, Any]:
    model_config, cache_config = vllm_config.model_config, vllm_config.cache_config
    multimodal = model_config.multimodal_config
    return {
        "dtype": str(model_config.dtype),
        "quantization": model_config.quantization,
        "quantization_config": plain(model_config.quantization_config),
        "model_impl": plain(model_config.model_impl),
        "sliding_window_off": model_config.disable_sliding_window,
        "rope_length": rope_length(model_config),
        "cache_dtype": str(cache_config.cache_dtype),
        "cache_dtype_skipped": plain(cache_config.kv_cache_dtype_skip_layers),
        "block_tokens": cache_config.block_size,
        "fast_prefill": cache_config.kv_sharing_fast_prefill,
        "multimodal": None
        if multimodal is None
        else {
            name: plain(getattr(multimodal, name, None))
            for name in (
                "mm_processor_kwargs",
                "video_pruning_rate",
                "video_pruning_method",
                "language_model_only",
                "mm_encoder_attn_dtype",
            )
        },
    }


def rope_length(model_config: Any) -> int | None:
    """max_model_len, where a rotary embedding of the model may depend on it; else None."""
    kinds: set[str] = set()
    _collect_ropes(plain(model_config.hf_config), kinds)
    return model_config.max_model_len if kinds - set(PLAIN_ROPES) else None


def _collect_ropes(value: Any, kinds: set[str]) -> None:
    if isinstance(value, list):
        for each in value:
            _collect_ropes(each, kinds)
    if not isinstance(value, dict):
        return
    for name, each in value.items():
        if name == "rope_type" and isinstance(each, str):
            kinds.add(each)
        elif name == "rope_scaling" and isinstance(each, dict) and "type" in each:
            kinds.add(str(each["type"]))
        _collect_ropes(each, kinds)


def _draft(vllm_config: VllmConfig, config: Config) -> Any:
    speculative = vllm_config.speculative_config
    if speculative is None or not speculative.uses_draft_kv_cache():
        return None
    draft = speculative.draft_model_config
    load = speculative.draft_load_config or vllm_config.load_config
    return {
        "method": speculative.method,
        "lookahead_tokens": lookahead_tokens(vllm_config),
        "weights": weights.of_model(draft, str(load.load_format), config),
        "model": effective_config(draft.hf_config),
        "dtype": str(draft.dtype),
        "quantization": draft.quantization,
        "rope_length": rope_length(draft),
    }


def _platform() -> dict[str, Any]:
    facts: dict[str, Any] = {"device": current_platform.device_type}
    if current_platform.is_cpu():
        facts["architecture"] = machine.machine()
        facts["instructions"] = cpu_instructions()
    else:
        facts["name"] = current_platform.get_device_name()
        facts["capability"] = plain(current_platform.get_device_capability())
    return facts


def cpu_instructions(path: str = "/proc/cpuinfo") -> list[str]:
    """The processor's instruction sets that vector kernels choose by; empty where unknown."""
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, flags = line.partition(":")
                if name.strip().lower() in ("flags", "features", "isa"):
                    return sorted(flag for flag in set(flags.split()) if CPU_FLAGS.match(flag))
    except OSError:
        pass
    return []


def _inside(tensor: torch.Tensor, block_count: int) -> list[Any]:
    """Type, kernel blocks to a block and (where several) their stride, and shape and strides within
    one of them, in elements: the order of the bytes that are moved."""
    kernel_blocks = tensor.shape[0] // block_count
    return [
        str(tensor.dtype),
        kernel_blocks,
        tensor.stride(0) if kernel_blocks > 1 else None,
        list(tensor.shape[1:]),
        list(tensor.stride()[1:]),
    ]
